"""The report against run directories whose numbers are made up and whose files are real."""

import html
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpt2wds.train.report import write_report
from gpt2wds.train.rundir import RunDirectory

pytest.importorskip("matplotlib", reason="the report's pictures need the extra `plot`")

CHROMIUM = shutil.which("chromium") or shutil.which("/usr/bin/chromium")
HOSTILE = '<script>alert(1)</script> & <b>"bold"</b> $x^$ \x00\x1b{}</pre>'
OPENAI_LOSS = "OpenAI GPT-2 124M 3.2924"
OPENAI_CHOICE = [f"OpenAI GPT-2 {s}" for s in ("124M 0.2955", "350M 0.3752", "774M 0.4320", "1558M 0.4889")]
FACTS = {
    "version": "0.1", "corpus": "HuggingFaceFW/fineweb-edu", "dataset_id": "ab" * 32, "train_tokens": 40_000,
    "val_tokens": 4096, "parameters": 124_439_808, "tokens_per_step": 1024, "seq_len": 64, "max_steps": 40,
    "world_size": 2, "device": "cpu", "torch": "2.13.0", "val_unigram_entropy": 7.25,
}  # fmt: skip
CHOICE: dict[str, Any] = {"name": "HellaSwag", "mode": "completion", "examples": 10042, "truncated": 3}


def metrics(step: int, choice: dict[str, Any], text: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": step, "learning_rate": 6e-4, "grad_norm": 1 + 9 / (step + 1), "tokens": 1024 * step,
        "tokens_per_second": 5000.0 + step, "seconds": 0.2,
    }  # fmt: skip
    if step > 0:
        row["train_loss"] = math.nan if step == 3 else 4 + 6 * math.exp(-step / 10)
    if step % 10 == 0:
        row["val_loss"] = {30: 4.0}.get(step, 4.5 + 6 * math.exp(-step / 10))
        scores = {"acc": 0.26, "acc_norm_tokens": 0.27, "acc_norm_characters": 0.28, "acc_norm_bytes": 0.29}
        errors = {f"{name}_stderr": 0.001 * i for i, name in enumerate(scores, 1)}
        row |= {"hella_acc": 0.27, "hellaswag": choice | scores | errors}
    if step % 20 == 0:
        row["samples"] = [{"prompt": "Hello", "text": f"Hello at {step}: {text}"}]
    return row


def make_run(path: Path, steps: int = 40, choice: dict[str, Any] = CHOICE, text: str = "", **facts: Any) -> Path:
    path.mkdir(parents=True)
    run = RunDirectory(path)
    run.config.write_text('[run]\ndir = "<here>"\n')
    run.facts_path.write_text(json.dumps(FACTS | facts))
    for step in range(steps + 1):
        run.append(metrics(step, choice, text))
    return path


def page(path: Path, **options: Any) -> str:
    return write_report(make_run(path, **options)).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tags must close in order; collects attributes, ids and the text of table cells."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.rows = dict(zip(self.cells[::2], self.cells[1::2], strict=True))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta",):
            self.open.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert len({name for name, _ in attrs}) == len(attrs)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1] += data


def test_one_well_formed_page_that_asks_for_nothing(tmp_path: Path) -> None:
    text = page(tmp_path / "run", text=HOSTILE)
    read = Reader(text)
    assert not read.tags & {"script", "link", "img", "image", "iframe", "object", "embed", "base", "foreignobject"}
    for _, name, value in read.attributes:
        assert not name.startswith("on")
        assert "//" not in value or name.startswith("xmlns"), (name, value)
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    targets = {v.removeprefix("url(").strip("#)") for _, n, v in read.attributes if n in ("xlink:href", "clip-path")}
    assert targets and targets <= set(ids)
    assert ("meta", "name", "viewport") in read.attributes


def test_texts_are_escaped(tmp_path: Path) -> None:
    text = page(tmp_path / "run", text=HOSTILE, corpus=HOSTILE, device=HOSTILE, choice=CHOICE | {"name": HOSTILE})
    assert "\x00" not in text and "\x1b" not in text
    shown = html.escape(HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd"))
    assert text.count(shown) == 6  # title and h1, device, the set in the table and over its picture, the sample
    assert "dir = &quot;&lt;here&gt;&quot;" in text
    assert text.count("</pre>") == 2


def test_summary(tmp_path: Path) -> None:
    text = page(tmp_path / "run")
    rows = Reader(text).rows
    assert "<title>GPT-2 on HuggingFaceFW/fineweb-edu, 124,439,808 parameters</title>" in text
    assert rows["last step"] == "40 of 40"
    assert rows["training loss, last"] == "4.1099"
    assert rows["validation loss, best"] == "4.0000 at step 30"
    assert rows["validation loss, last"] == "4.6099 at step 40"
    assert rows["perplexity, last"] == f"{math.exp(4.5 + 6 * math.exp(-4)):.2f}"
    assert rows["acc"] == "0.2600 ± 0.0010"
    assert rows["acc_norm by tokens"] == "0.2700 ± 0.0020"
    assert rows["acc_norm by characters"] == "0.2800 ± 0.0030"
    assert rows["acc_norm by bytes"] == "0.2900 ± 0.0040"
    assert rows["multiple choice, last"] == "HellaSwag, 10,042 examples, completion mode, 3 truncated, at step 40"
    assert rows["tokens trained on"] == "40,960, 1.02 epochs"
    assert rows["tokens per second, median"] == "5,020"
    assert (rows["device"], rows["torch"], rows["ranks"]) == ("cpu", "2.13.0", "2")


def test_samples_are_the_last_ones(tmp_path: Path) -> None:
    text = page(tmp_path / "run", steps=35, text="\n\nend")
    assert "<h2>Samples at step 20</h2>" in text
    assert "<pre>\n<b>Hello</b> at 20: \n\nend</pre>" in text
    assert "at 0:" not in text


def test_five_pictures_and_the_lines_that_always_hold(tmp_path: Path) -> None:
    text = page(tmp_path / "run")
    labels = [value for tag, name, value in Reader(text).attributes if (tag, name) == ("svg", "aria-label")]
    assert labels == ["Loss", "Multiple-choice accuracy", "Learning rate", "Gradient norm", "Tokens per second"]
    for line in ("uniform guess 10.82", "unigram entropy of the validation text 7.25", "chance 0.25"):
        assert text.count(line) == 1
    assert "#00000" not in text  # every colour is the page's


@pytest.mark.parametrize(
    ("corpus", "shown"),
    [
        ("HuggingFaceFW/fineweb-edu", True),
        ("FineWeb-Edu sample-10BT", True),
        ("HuggingFaceFW/fineweb", False),
        ("HuggingFaceFW/fineweb-edu-score-2", False),
        ("my-fineweb-edu", False),
        ("shakespeare", False),
        (None, False),
    ],
)
def test_published_loss_only_beside_its_corpus(tmp_path: Path, corpus: str | None, shown: bool) -> None:
    assert (OPENAI_LOSS in page(tmp_path / "run", corpus=corpus)) is shown


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, True),
        ({"examples": 10041}, False),
        ({"mode": "lm-eval"}, False),
        ({"name": "HellaSwag sample"}, False),
        ({"name": "hellaswag"}, False),
        ({"name": None}, False),
    ],
)
def test_published_accuracies_only_beside_the_whole_set(tmp_path: Path, change: dict[str, Any], shown: bool) -> None:
    choice = CHOICE | change
    text = page(tmp_path / "run", choice=choice)
    assert [line in text for line in OPENAI_CHOICE] == [shown] * 4
    name = choice["name"] or "unnamed set"
    assert f"<figcaption>Accuracy: {name}, {choice['examples']:,} examples, {choice['mode']} mode<" in text
    assert ("HellaSwag" in text) is ("HellaSwag" in name)


def test_results_of_another_set_are_not_drawn_with_the_last(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", steps=39)
    before = write_report(path).read_text()
    RunDirectory(path).append(metrics(40, CHOICE | {"examples": 100}, ""))
    after = write_report(path).read_text()
    assert all(line in before and line not in after for line in OPENAI_CHOICE)
    points = r'aria-label="Multiple-choice accuracy".*?</svg>'
    drawn = [re.search(points, text, re.DOTALL) for text in (before, after)]
    assert [len(re.findall("<use [^>]*var\\(--val\\)", match[0])) for match in drawn if match] == [
        4 + 1,
        1 + 1,
    ]  # points, band


def test_an_unfinished_run_says_so_and_how_the_page_is_renewed(tmp_path: Path) -> None:
    unfinished, finished = page(tmp_path / "a", steps=39), page(tmp_path / "b", steps=40)
    unknown = page(tmp_path / "c", steps=39, max_steps=None)
    assert "Unfinished: step 39 of 40, 97.5%. The command that made this page renews it." in unfinished
    for text in (finished, unknown):
        assert "refresh" not in text and "Unfinished" not in text


def test_same_run_same_bytes(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    first, second = write_report(path), write_report(path, tmp_path / "new" / "page.html")
    assert (first, second) == (path / "report.html", tmp_path / "new" / "page.html")
    assert first.read_bytes() == second.read_bytes()
    third = tmp_path / "third.html"
    program = f"from gpt2wds.train.report import write_report; write_report({str(path)!r}, {str(third)!r})"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert first.read_bytes() == third.read_bytes()


def test_a_long_run_keeps_its_peaks_and_stays_small(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text(
        "".join(
            json.dumps({"step": i, "grad_norm": 500.0 if i == 7777 else 1 + i % 7 / 10}) + "\n" for i in range(19_074)
        )
    )
    text = write_report(tmp_path).read_text()
    assert len(text) < 100_000
    curve = max(re.findall(r'd="([^"]*)"[^>]*stroke: var\(--train\)', text), key=len)
    x, y = zip(*((float(a), float(b)) for a, b in re.findall(r"[ML] (\S+) (\S+)", curve)), strict=True)
    assert (x[y.index(min(y))] - x[0]) / (x[-1] - x[0]) == pytest.approx(7777 / 19_073, abs=1e-3)


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 0}],
        [{"step": 0, "val_loss": 10.9}],
        [{"step": 0, "val_loss": None, "hellaswag": None, "samples": []}, {"step": 1, "train_loss": math.nan}],
        [{"step": 1, "train_loss": 900.0, "val_loss": 900.0, "grad_norm": 0.0, "tokens_per_second": 0.0}],
        [{"step": 2, "hellaswag": {"name": "words"}, "samples": [{"prompt": "a"}], "learning_rate": 0.0}],
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_was_not_measured_is_left_out(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        RunDirectory(tmp_path).append(row)
    text = write_report(tmp_path).read_text()
    Reader(text)
    assert "nan" not in text.replace("unnamed", "") and "None" not in text


def test_errors_are_one_line_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ValueError, match=r"expected .*, got.*; .*$") as caught:
            write_report(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert str(tmp_path / "none") in message(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "no directory" in message(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "got none" in message(tmp_path / "empty")
    broken = make_run(tmp_path / "broken")
    RunDirectory(broken).metrics.write_text("{half\n")
    assert "metrics.jsonl" in message(broken)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'gpt2wds[plot]'" in message(make_run(tmp_path / "run"))
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page was not rendered")
@pytest.mark.parametrize("width", [390, 1400])
def test_chromium_shows_it_without_overflow(tmp_path: Path, width: int) -> None:
    text = page(tmp_path / "run", text="word " * 60 + "x" * 500, device="d" * 200, choice=CHOICE | {"name": "n" * 90})
    # The page itself has no script; this copy, in a frame of that width, tells what it measures.
    measure = (
        "const e = document.documentElement; const s = [...document.querySelectorAll('svg')];"
        "top.document.title = [innerWidth, e.scrollWidth, s.length,"
        "Math.round(Math.min(...s.map(x => x.getBoundingClientRect().width)))].join(' ');"
    )
    (tmp_path / "copy.html").write_text(
        text.replace("</body>", f"<script>onload = () => {{{measure}}}</script></body>")
    )
    style = f"border: 0; width: {width}px; height: 6000px"
    frame = f'<title>-</title><body style="margin: 0"><iframe src="copy.html" style="{style}"></iframe>'
    (tmp_path / "frame.html").write_text(frame)
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr"
    )
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},6000"]
    page_url = (tmp_path / "frame.html").as_uri()
    dom = subprocess.run([*command, "--dump-dom", page_url], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in dom.stderr
    title = re.search("<title>(.*?)</title>", dom.stdout)
    assert title
    inner, scroll, pictures, narrowest = map(int, title[1].split())
    assert (inner, scroll, pictures) == (width, width, 5)
    assert narrowest > 300
    shot = tmp_path / "shot.png"
    subprocess.run([*command, f"--screenshot={shot}", page_url], capture_output=True, timeout=120, check=True)
    assert shot.stat().st_size > 50_000


def test_losses_that_are_not_numbers_are_told(tmp_path: Path) -> None:
    """Not the last good ones alone, as if they were the last."""
    path = make_run(tmp_path / "run", steps=20)
    for step in (21, 22, 23):
        RunDirectory(path).append({"step": step, "tokens": step, "train_loss": math.nan})
    text = write_report(path).read_text()
    assert "training loss, not a number" in text and "4 times, first at step 3, last at 23" in text
    assert "validation loss, not a number" not in text
