"""The report against run directories whose numbers are made up and whose files are real."""

import html
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpt2wds import files
from gpt2wds.errors import Error
from gpt2wds.train.curves import Run, pictures
from gpt2wds.train.report import write_report
from gpt2wds.train.rundir import RunDirectory

pytest.importorskip("matplotlib", reason="the report's pictures need the extra `plot`")

CHROMIUM = shutil.which("chromium") or shutil.which("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
    "--enable-logging=stderr",
]  # fmt: skip
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page was not rendered")
HOSTILE = '<script>alert(1)</script> & <b>"bold"</b> $x^$ \x00\x1b{}</pre>'
OPENAI_LOSS = "3.2924"
OPENAI_CHOICE = ["0.2955", "0.3752", "0.4320", "0.4889"]
VIEWS = ["linear", "log-loss", "log-x", "log-both", "half"]
FACTS = {
    "version": "0.1", "corpus": "fineweb-edu sample-10BT", "dataset_id": "ab" * 32, "train_tokens": 40_000,
    "val_tokens": 10_485_760, "val_split_tokens": 12_345_678,
    "parameters": 124_439_808, "tokens_per_step": 1024, "seq_len": 1024, "max_steps": 40,
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


def labels(text: str) -> list[str]:
    """The labels of the lines that a page draws for values known beforehand, of every view."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", text)


def curves(text: str, caption: str) -> dict[str, tuple[list[float], list[float]]]:
    """Steps or tokens, and values, of each curve of a picture: what the page shows under the pointer."""
    (data,) = re.findall(rf"<figcaption>{caption}.*?<script[^>]*>(.*?)</script>", text, re.DOTALL)
    return {curve["name"]: (curve["x"], curve["y"]) for curve in json.loads(data)["curves"]}


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


LOSSES = ("tokens", "train_loss", "val_loss")


def plain_run(path: Path, steps: int = 40, kept: Sequence[str] = LOSSES, **options: Any) -> Path:
    """A run of which not all was kept, for there to be fewer pictures: to draw them all takes four times as long as
    those of its losses."""
    rows = [json.loads(line) for line in RunDirectory(make_run(path, steps, **options)).metrics.open()]
    rows = [{name: row[name] for name in ("step", *kept) if name in row} for row in rows]
    RunDirectory(path).metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def bare_run(path: Path, steps: int = 40, **facts: Any) -> Path:
    """A run of which there is nothing to draw, for what its page says in words."""
    run = plain_run(path, steps, **facts)
    RunDirectory(run).metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(steps + 1)))
    return run


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run that has all there is, under its own name everywhere."""
    return page(tmp_path_factory.mktemp("usual") / "run")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with every text that others write being one that would do harm."""
    facts = {"corpus": HOSTILE, "device": HOSTILE, "choice": CHOICE | {"name": HOSTILE}}
    return page(tmp_path_factory.mktemp("hostile") / "run", text=HOSTILE, **facts)


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
        self.rows = dict(zip(self.cells[::2], self.cells[1::2], strict=False))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "input"):
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


def test_one_well_formed_page_that_asks_for_nothing(hostile: str) -> None:
    text, read = hostile, Reader(hostile)
    assert not read.tags & {"link", "img", "image", "iframe", "object", "embed", "base", "foreignobject"}
    for tag, name, value in read.attributes:
        assert not name.startswith("on")
        assert "//" not in value or name.startswith("xmlns"), (name, value)
        assert (tag, name) not in (("script", "src"), ("script", "href"))
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    targets = {v.removeprefix("url(").strip("#)") for _, n, v in read.attributes if n in ("xlink:href", "clip-path")}
    assert targets and targets <= set(ids)
    assert ("meta", "name", "viewport") in read.attributes


def test_texts_are_escaped(hostile: str) -> None:
    assert "\x00" not in hostile and "\x1b" not in hostile
    shown = html.escape(HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd"))
    # title and h1, device, the set in the table, over its picture and as label of its three drawings, the sample
    assert hostile.count(shown) == 9
    assert "dir = &quot;&lt;here&gt;&quot;" in hostile
    assert hostile.count("</pre>") == 2


def test_summary(usual: str) -> None:
    rows = Reader(usual).rows
    assert "<title>GPT-2 on fineweb-edu sample-10BT, 124,439,808 parameters</title>" in usual
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
    text = write_report(plain_run(tmp_path / "run", 35, ["samples"], text="\n\nend")).read_text()
    assert "<h2>Samples at step 20</h2>" in text
    assert "<pre>\n<b>Hello</b> at 20: \n\nend</pre>" in text
    assert "at 0:" not in text


def test_five_pictures_in_every_view_and_the_lines_that_always_hold(usual: str) -> None:
    choice = "Accuracy: HellaSwag, 10,042 examples, completion mode"
    drawn: dict[str, list[str]] = {}
    for views, label in re.findall(r'<svg class="([^"]*)"[^>]*aria-label="([^"]*)"', usual):
        drawn.setdefault(label, []).extend(views.split())
    assert list(drawn) == ["Loss", choice, "Learning rate", "Gradient norm", "Tokens per second"]
    assert all(sorted(views) == sorted(VIEWS) for views in drawn.values())  # each view shows each picture once
    assert {"uniform guess", "10.82", "unigram entropy", "7.25", "chance", "0.25"} <= set(labels(usual))
    assert "#0000" not in usual  # every colour is the page's


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, True),
        ({"corpus": "fineweb-edu"}, False),  # the whole of it begins with other documents
        ({"corpus": "fineweb-edu sample-100BT"}, False),
        ({"corpus": "fineweb sample-10BT"}, False),
        ({"corpus": "my fineweb-edu sample-10BT"}, False),
        ({"corpus": None}, False),
        ({"val_tokens": 10_485_759}, False),
        ({"val_tokens": 1_048_576}, False),
        ({"val_tokens": None}, False),
        ({"seq_len": 512}, False),  # the same text in shorter contexts
    ],
)
def test_published_loss_only_beside_losses_of_its_text(change: dict[str, Any], shown: bool) -> None:
    (loss, _), _ = pictures([Run("run", [metrics(0, CHOICE, "")], FACTS | change, "")], "step")
    assert (3.2924 in loss.references.values()) is shown


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
def test_published_accuracies_only_beside_the_whole_set(change: dict[str, Any], shown: bool) -> None:
    choice = CHOICE | change
    (_, accuracy), _ = pictures([Run("run", [metrics(0, choice, "")], FACTS, "")], "step")
    assert [float(line) in accuracy.references.values() for line in OPENAI_CHOICE] == [shown] * 4
    name = choice["name"] or "unnamed set"
    assert accuracy.label == f"Accuracy: {name}, {choice['examples']:,} examples, {choice['mode']} mode"


def test_results_of_another_set_are_not_drawn_with_the_last(tmp_path: Path) -> None:
    path = plain_run(tmp_path / "run", 39, ["hella_acc", "hellaswag"])
    before = write_report(path).read_text()
    last = metrics(40, CHOICE | {"examples": 100}, "")
    RunDirectory(path).append({name: last[name] for name in ("step", "hella_acc", "hellaswag")})
    after = write_report(path).read_text()
    assert all(line in labels(before) and line not in labels(after) for line in OPENAI_CHOICE)
    assert [curves(text, "Accuracy")["acc_norm_tokens"][0] for text in (before, after)] == [[0, 10, 20, 30], [40]]


def test_an_unfinished_run_says_so_and_how_the_page_is_renewed(tmp_path: Path) -> None:
    runs = bare_run(tmp_path / "a", 39), bare_run(tmp_path / "b", 40), bare_run(tmp_path / "c", 39, max_steps=None)
    unfinished, finished, unknown = (write_report(run).read_text() for run in runs)
    assert "Unfinished: step 39 of 40, 97.5%. The command that made this page renews it." in unfinished
    for text in (finished, unknown):
        assert "refresh" not in text and "Unfinished" not in text


@pytest.mark.slow
def test_same_run_same_bytes(usual: str, tmp_path: Path) -> None:
    """Also in another process, and wherever the page goes."""
    path, out = make_run(tmp_path / "run"), tmp_path / "new" / "page.html"
    program = f"from gpt2wds.train.report import write_report; print(write_report({str(path)!r}, out={str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == f"{out}\n"
    assert out.read_text(encoding="utf-8") == usual
    assert write_report(bare_run(tmp_path / "bare")) == tmp_path / "bare" / "report.html"


def test_what_a_report_that_was_killed_left_goes_with_the_next(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    run = bare_run(tmp_path / "run", steps=1)
    stray = files.temporary_name(run / "report.html")
    stray = stray.with_name(stray.name.replace(f".{os.getpid()}.", f".{ended.pid}."))
    stray.write_text("half")
    write_report(run)
    assert not list(run.glob(".*")) and (run / "report.html").exists()


def test_a_long_run_keeps_its_peaks_and_stays_small(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    values = [500.0 if i in (3, 7777) else 1 + i % 7 / 10 for i in range(19_074)]
    run.metrics.write_text("".join(json.dumps({"step": i, "grad_norm": v}) + "\n" for i, v in enumerate(values)))
    text = write_report(tmp_path).read_text()
    assert len(text) < 300_000
    steps, shown = curves(text, "Gradient norm")["Gradient norm"]
    assert len(steps) < 1300 and {3, 7777} <= set(steps)
    assert shown == [values[int(step)] for step in steps]  # real points, no averages
    curve = re.findall(r'd="([^"]*)"[^>]*stroke: var\(--smooth\); stroke-opacity: 0.3', text)[0]  # the linear view's
    x, y = zip(*((float(a), float(b)) for a, b in re.findall(r"[ML] (\S+) (\S+)", curve)), strict=True)
    assert (x[-y[::-1].index(min(y)) - 1] - x[0]) / (x[-1] - x[0]) == pytest.approx(7777 / 19_073, abs=1e-3)


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


def in_chromium(path: Path, text: str, script: str, width: int, shot: Path | None = None) -> str:
    """What `script` (an expression over the loaded page) gives, and a picture, of a page in a frame of that width.

    The page's policy lets no script run but its own: the copy that is measured has no policy.
    """
    text = re.sub("<meta http-equiv[^>]*>", "", text)
    probe = f"<script>onload = () => {{ top.document.title = {script}; }}</script></body>"
    (path / "copy.html").write_text(text.replace("</body>", probe))
    style = f"border: 0; width: {width}px; height: 6000px"
    frame = f'<title>-</title><body style="margin: 0"><iframe src="copy.html" style="{style}"></iframe>'
    (path / "frame.html").write_text(frame)
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={path / 'profile'}", f"--window-size={width},6000"]
    page_url = (path / "frame.html").as_uri()
    dom = subprocess.run([*command, "--dump-dom", page_url], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in dom.stderr
    title = re.search("<title>(.*?)</title>", dom.stdout, re.DOTALL)
    assert title
    if shot is not None:
        subprocess.run([*command, f"--screenshot={shot}", page_url], capture_output=True, timeout=120, check=True)
    return html.unescape(title[1])


@needs_chromium
@pytest.mark.parametrize("width", [390, pytest.param(1400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_chromium_shows_it_without_overflow(tmp_path: Path, width: int, several: bool) -> None:
    for name in "ab":
        choice = CHOICE | {"name": "n" * 90}
        make_run(tmp_path / (name * 60), text="word " * 60 + "x" * 500, device="d" * 200, choice=choice)
    names = [tmp_path / ("a" * 60), tmp_path / ("b" * 60)]
    text = write_report(*names[: 1 + several], out=tmp_path / "page.html").read_text()
    measure = """(() => {
      const e = document.documentElement;
      const s = [...document.querySelectorAll("svg")].map(x => x.getBoundingClientRect().width).filter(x => x);
      return [innerWidth, e.scrollWidth, s.length, Math.round(Math.min(...s))].join(" ");
    })()"""
    shot = tmp_path / "shot.png"
    title = in_chromium(tmp_path, text, measure, width, shot)
    inner, scroll, pictures, narrowest = map(int, title.split())
    assert (inner, scroll, pictures) == (width, width, 5 + several)
    assert narrowest > 300
    assert shot.stat().st_size > 50_000


@needs_chromium
def test_values_under_the_pointer_in_every_view(usual: str, tmp_path: Path) -> None:
    """The pointer goes to where the curve of validation has its step 20."""
    script = """JSON.stringify(VIEWS.map(view => {
      document.getElementById(view).checked = true;
      const plots = document.querySelector(".plots"), box = plots.querySelector(".values");
      const svg = [...plots.querySelectorAll("svg")].find(x => x.getClientRects().length);
      const style = x => x.getAttribute("style") || "";
      const line = [...svg.querySelectorAll("path")].find(x => style(x).includes("fill: none; stroke: var(--val)"));
      const points = line.getAttribute("d").match(/[ML] \\S+ \\S+/g), [, x, y] = points.at(-3).split(" ").map(Number);
      const place = new DOMPoint(x, y).matrixTransform(line.getScreenCTM());
      const send = kind => plots.dispatchEvent(new PointerEvent(kind, {clientX: place.x, clientY: place.y}));
      const states = [box.hidden];
      send("pointermove");
      const rows = [...box.querySelectorAll("tr")].map(row => [...row.cells].map(cell => cell.textContent));
      const guide = plots.querySelector(".guide").getBoundingClientRect();
      states.push(box.hidden, Math.abs(guide.x - place.x) < 1.5);
      send("pointerleave");
      return [svg.getAttribute("class"), [...states, box.hidden], rows];
    }))""".replace("VIEWS", json.dumps(VIEWS))
    title = in_chromium(tmp_path, usual, script, 1400)
    drawn = curves(usual, "Loss")
    rows = [[name, f"{y[x.index(20)]:.6g}", "step 20"] for name, (x, y) in drawn.items()]
    assert [row[0] for row in rows] == ["training", "training, smoothed", "validation"]
    assert json.loads(title) == [[view, [True, False, True, True], rows] for view in VIEWS]


@needs_chromium
def test_a_script_that_is_not_the_pages_own_does_not_run(usual: str, tmp_path: Path) -> None:
    text = usual.replace("</h1>", '</h1><script>document.title = "bad"</script>', 1)
    (tmp_path / "page.html").write_text(text)
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    url = (tmp_path / "page.html").as_uri()
    dom = subprocess.run([*command, url], capture_output=True, text=True, timeout=120, check=True)
    assert "<title>GPT-2 on" in dom.stdout
    assert 'class="values"' in dom.stdout  # its own did


def test_losses_that_are_not_numbers_are_told(tmp_path: Path) -> None:
    """Not the last good ones alone, as if they were the last."""
    path = plain_run(tmp_path / "run", steps=20)
    assert Reader(write_report(path).read_text()).rows["training loss, last"] == f"{4 + 6 * math.exp(-2):.4f}"
    for step in (21, 22, 23):
        RunDirectory(path).append({"step": step, "tokens": step, "train_loss": math.nan})
    text = write_report(path).read_text()
    rows = Reader(text).rows
    assert rows["training loss, not a number"] == "4 times, first at step 3, last at 23"
    assert rows["training loss, last"] == f"{4 + 6 * math.exp(-2):.4f} at step 20; from step 21 on not a number"
    assert "validation loss, not a number" not in text


def test_size_of_the_split_and_origin(tmp_path: Path) -> None:
    def table(name: str, **facts: Any) -> dict[str, str]:
        return Reader(write_report(bare_run(tmp_path / name, **facts)).read_text()).rows

    rows = table("a")
    assert rows["validation text, tokens used"] == "10,485,760 of the split's 12,345,678"
    assert "begun from" not in rows
    rows = table("b", val_split_tokens=None, origin="runs/other")
    assert rows["validation text, tokens used"] == "10,485,760"
    assert rows["begun from"] == "runs/other"
    origin = {"path": "runs/other", "step": 12, "sha256": "cd" * 32}
    rows = table("c", origin=origin)
    assert rows["begun from"] == f"runs/other, step 12, SHA-256 of its weights {'cd' * 32}"


def rewrite(run: Path, config: str) -> Path:
    RunDirectory(run).config.write_text(config)
    return run


def columns(text: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, row by row."""
    part = text.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part)
    return [[html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", r)] for r in rows]


def test_several_runs_in_the_same_pictures(tmp_path: Path) -> None:
    a = rewrite(make_run(tmp_path / "x" / "a"), '[run]\ndir = "x"\n[train]\nlearning_rate = 6e-4\nschedule = "<wsd>"\n')
    b = rewrite(
        make_run(tmp_path / "b", steps=30, tokens_per_step=2048), '[run]\ndir = "b"\n[train]\nschedule = "cosine"\n'
    )
    out = write_report(a, b, out=tmp_path / "both.html", by="step")
    text = out.read_text()
    Reader(text)
    assert "<h1>2 runs of GPT-2 on fineweb-edu sample-10BT</h1>" in text
    assert curves(text, "Validation loss") == {
        "a": ([0, 10, 20, 30, 40], [10.5, 6.70728, 5.31201, 4, 4.60989]),
        "b": ([0, 10, 20, 30], [10.5, 6.70728, 5.31201, 4]),
    }
    assert list(curves(text, "Training loss")) == ["a", "b", "a, smoothed", "b, smoothed"]
    assert list(curves(text, "Accuracy")) == list(curves(text, "Learning rate")) == ["a", "b"]
    assert OPENAI_LOSS in labels(text)
    results = {row[0]: row[1:] for row in columns(text, "Results")}
    assert results[""] == ["a", "b"]
    assert results["last step"] == ["40 of 40", "30 of 40"]
    assert results["tokens per step"] == ["1,024", "2,048"]
    differences = columns(text, "What their configurations differ in")
    assert differences[1:] == [["train.learning_rate", "0.0006", "–"], ["train.schedule", "<wsd>", "cosine"]]
    assert "b is unfinished: step 30 of 40" in text and "a is unfinished" not in text
    assert "A step is not the same number of tokens in all runs" in text
    assert "do not compare" not in text


def test_runs_by_tokens(tmp_path: Path) -> None:
    a, b = plain_run(tmp_path / "a"), plain_run(tmp_path / "b", steps=20)
    out = write_report(a, b, out=tmp_path / "both.html", by="tokens")
    text = out.read_text()
    assert write_report(a, b, out=tmp_path / "again.html", by="tokens").read_bytes() == out.read_bytes()
    assert curves(text, "Validation loss")["b"][0] == [0, 10240, 20480]
    assert "tokens trained on" in labels(text) and "step" not in labels(text)
    assert "Nothing but the directory." in text
    RunDirectory(b).append({"step": 21, "train_loss": 1.0})
    with pytest.raises(Error, match="expected tokens in every row of .*b/metrics.jsonl, got .*; compare by step"):
        write_report(a, b, out=tmp_path / "both.html", by="tokens")
    with pytest.raises(Error, match="by: expected step or tokens, got 'epoch'"):
        write_report(a, by="epoch")


@pytest.mark.parametrize(
    "change",
    [
        {"val_tokens": 4096},
        pytest.param({"dataset_id": "cd" * 32}, marks=pytest.mark.slow),
        pytest.param({"seq_len": 512}, marks=pytest.mark.slow),
        {"document_masking": True},
    ],
)
def test_runs_of_other_validation_text_are_not_compared_in_silence(tmp_path: Path, change: dict[str, Any]) -> None:
    a, b = plain_run(tmp_path / "a"), plain_run(tmp_path / "b", **change)
    text = write_report(a, b, out=tmp_path / "both.html").read_text()
    word = {"val_tokens": "validation tokens", "dataset_id": "dataset", "seq_len": "sequence length"}
    (changed,) = change
    why = word.get(changed, "document masking")
    assert f"Validation losses do not compare between a | b: these runs differ in {why}." in text
    assert not {OPENAI_LOSS, "unigram entropy"} & set(labels(text)) and "uniform guess" in labels(text)


def test_accuracies_of_other_sets_are_pictures_of_their_own(tmp_path: Path) -> None:
    a = plain_run(tmp_path / "a", kept=["hella_acc", "hellaswag"])
    b = plain_run(tmp_path / "b", kept=["hella_acc", "hellaswag"], choice=CHOICE | {"mode": "lm-eval"})
    text = write_report(a, b, out=tmp_path / "both.html").read_text()
    assert list(curves(text, "Accuracy: HellaSwag, 10,042 examples, completion")) == ["a"]
    assert list(curves(text, "Accuracy: HellaSwag, 10,042 examples, lm-eval")) == ["b"]


@pytest.mark.parametrize(
    ("datasets", "title"),
    [
        ([("files", "data/code"), ("files", "data/prose/")], "code + prose"),
        ([("files", "one/data"), ("files", "two/data")], "one/data + two/data"),
        ([("files", "data/code"), ("web", "data/web"), ("files", "s3://bucket/web")], "code + web + web"),
        ([("files", "data/code"), ("fineweb-edu", "data/web")], "code + fineweb-edu"),
    ],
)
def test_datasets_of_one_corpus_are_told_apart_in_the_title(
    tmp_path: Path, datasets: list[tuple[str, str]], title: str
) -> None:
    one = {"weight": 1, "sequences_per_step": 1, "steps_per_epoch": 9, "train_tokens": 9}
    facts = {
        "corpus": " + ".join(corpus for corpus, _ in datasets),
        "datasets": [{"corpus": corpus, "path": path} | one for corpus, path in datasets],
    }
    assert f"<h1>GPT-2 on {title}</h1>" in write_report(bare_run(tmp_path / "run", steps=1, **facts)).read_text()


@pytest.mark.parametrize(
    ("corpus", "path", "title"),
    [
        ("files", '"data/mine/"', "mine"),
        ("files", '"s3://bucket/texts/mine"', "mine"),
        ("files", '[{path = "data/mine", weight = 1}]', "mine"),
        ("files", '"."', "files"),
        ("files", "{", "files"),
        ("owner/name", '"hf://datasets/me/copy"', "owner/name"),
    ],
)
def test_a_dataset_of_files_is_known_by_its_directory(tmp_path: Path, corpus: str, path: str, title: str) -> None:
    run = bare_run(tmp_path / "run", steps=1, corpus=corpus)
    (run / "config.toml").write_text(f"[data]\npath = {path}\n")
    assert f"<h1>GPT-2 on {title}</h1>" in write_report(run).read_text(encoding="utf-8")


def test_runs_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [bare_run(tmp_path / name / "run", steps=10) for name in ("a<b>", "c")]
    monkeypatch.chdir(tmp_path)
    assert write_report(*runs) == Path("report.html")
    text = Path("report.html").read_text()
    assert columns(text, "Results")[0][1:] == ["a<b>/run", "c/run"]
    assert "a<b>" not in text  # not as HTML
    with pytest.raises(Error, match="expected different run directories, got .* more than once; leave one out"):
        write_report(runs[0], runs[0] / ".." / "run")


@pytest.mark.slow
def test_three_runs_of_full_length_stay_below_3_mb(tmp_path: Path) -> None:
    noise = random.Random(0)
    for name in "abc":
        run = RunDirectory(make_run(tmp_path / name, steps=0))
        rows = [metrics(step, CHOICE, "") if step % 250 == 0 else {"step": step} for step in range(19_074)]
        for row in rows:
            row |= {
                "train_loss": 3 + noise.random(),
                "grad_norm": noise.random(),
                "learning_rate": 1 / (row["step"] + 1),
            }
            row["tokens_per_second"] = 150_000 * noise.random()
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = write_report(*(tmp_path / name for name in "abc"), out=tmp_path / "page.html")
    assert out.stat().st_size < 3_000_000


def test_labels_lie_beside_the_axes_and_not_on_each_other(tmp_path: Path) -> None:
    """So no curve can be under one: axes end where labels begin."""
    kept = [*LOSSES, "hella_acc", "hellaswag"]
    run = plain_run(tmp_path / "run", kept=kept, val_unigram_entropy=10.7)  # beside the uniform guess
    text = write_report(run).read_text()
    known = {"uniform guess", "unigram entropy", "OpenAI 124M", "chance", "OpenAI 350M", "OpenAI 774M", "OpenAI 1558M"}
    found = 0
    for axes, drawing in re.findall(r'data-axes="([^"]*)">(.*?)</svg>', text, re.DOTALL):
        right = float(axes.split()[1])
        texts = re.findall(r'<text [^>]*transform="translate\((\S+) (\S+)\)">([^<]*)</text>', drawing)
        places = [(float(x), float(y)) for x, y, label in texts if label in known]
        assert all(x > right for x, _ in places)
        heights = sorted(y for _, y in places)
        assert all(b - a > 17 for a, b in itertools.pairwise(heights))  # two lines of 8 points
        found += len(places)
    assert found > 20


def test_a_directory_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(Error, match="expected a run directory, got the dataset .*; gpt2wds-shard info .* tells of it"):
        write_report(tmp_path)
    weights = tmp_path / "step-0000010"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"")
    with pytest.raises(Error, match="expected a run directory, got the weights .*; give the directory that"):
        write_report(weights)
    a, b = bare_run(tmp_path / "a", steps=1), rewrite(bare_run(tmp_path / "b", steps=1), "no toml")
    with pytest.raises(Error, match="run b: expected TOML in config.toml, got .*; restore it"):
        write_report(a, b, out=tmp_path / "page.html")
