"""Configuration: types, overrides, the way through a file and back; and how mistakes are told."""

import math
import os
import platform
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import click.testing
import pytest
import runs
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import shard_plays

from gpt2wds.commands.settings import Config
from gpt2wds.commands.train import main
from gpt2wds.config import differences, dump_config, load_config
from gpt2wds.dataset.directory import Dataset
from gpt2wds.errors import Error
from gpt2wds.model import GPT2, GPT2Config


@dataclass(frozen=True)
class Kitchen:
    name: str = "galley"
    pans: int = 3
    warmth: float = 20.5
    open: bool = False
    sizes: list[float] = field(default_factory=lambda: [1.5])
    dishes: list[str] = field(default_factory=lambda: ["soup"])


@dataclass(frozen=True)
class Cellar:
    depth: float = 2.0


@dataclass(frozen=True)
class House:
    kitchen: Kitchen = field(default_factory=Kitchen)
    cellar: Cellar = field(default_factory=Cellar)


def load(folder: Path, text: str, *overrides: str) -> House:
    path = folder / "house.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, list(overrides), House)


def test_defaults_file_and_overrides(tmp_path: Path) -> None:
    assert load(tmp_path, "") == House()
    text = '[kitchen]\npans = 5\ndishes = ["pie", "stew"]\n'
    assert load(tmp_path, text) == House(Kitchen(pans=5, dishes=["pie", "stew"]))
    changed = load(tmp_path, text, "kitchen.pans=7", "cellar.depth=3", "kitchen.name=big-one", "kitchen.open=true")
    assert changed == House(Kitchen("big-one", pans=7, open=True, dishes=["pie", "stew"]), Cellar(3.0))
    assert type(changed.cellar.depth) is float
    sizes = load(tmp_path, "[kitchen]\nsizes = [1, 2.5]").kitchen.sizes
    assert sizes == [1.0, 2.5] and type(sizes[0]) is float
    assert load(tmp_path, "", 'kitchen.dishes=["a=b", "c"]', "kitchen.pans=1", "kitchen.pans=2") == House(
        Kitchen(pans=2, dishes=["a=b", "c"])
    )


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[kitchen]\npan = 5", [], r"unknown key kitchen.pan; did you mean kitchen.pans\?"),
        ("[kitchens]\npans = 5", [], r"unknown key kitchens; did you mean kitchen\?"),
        ("[kitchen]\nzzz = 5", [], r"unknown key kitchen.zzz; did you mean kitchen\.\w+\?"),
        ("", ["celler.depth=5"], r"^configuration of the command line: unknown key celler; did you mean cellar\?"),
        ("", [".=5"], r"expected section.key=value, got '.=5'"),
        ("", ["cellar.dpeth=5"], r"unknown key cellar.dpeth; did you mean cellar.depth\?"),
        ('[kitchen]\npans = "5"', [], r"house.toml: kitchen.pans: expected a whole number, got '5'"),
        ("[kitchen]\npans = 5.0", [], r"kitchen.pans: expected a whole number, got 5.0"),
        ("[kitchen]\npans = true", [], r"kitchen.pans: expected a whole number, got True"),
        ("[kitchen]\nwarmth = true", [], r"kitchen.warmth: expected a number, got True"),
        ("[kitchen]\nopen = 1", [], r"kitchen.open: expected true or false, got 1"),
        ("[kitchen]\nname = 1", [], r"kitchen.name: expected text, got 1"),
        ('[kitchen]\ndishes = "soup"', [], r"kitchen.dishes: expected a list of texts in quotes, got 'soup'"),
        ("[kitchen]\ndishes = [1]", [], r"kitchen.dishes: expected a list of texts in quotes, got \[1\]"),
        ("[kitchen]\nsizes = [true]", [], r"kitchen.sizes: expected a list of numbers, got \[True\]"),
        (f"[kitchen]\nsizes = [1{'0' * 400}]", [], r"kitchen.sizes: expected a list of numbers, got \[1000"),
        ("", ["kitchen.pans=many"], r"of the command line: kitchen.pans: expected a whole number, got 'many'"),
        ("kitchen = 1", [], r"expected a section \[kitchen\], got kitchen = 1"),
        ("kitchen = 1", ["kitchen.pans=2"], r"expected a section \[kitchen\], got kitchen = 1"),
        ("", ["pans=5"], r"expected section.key=value, got 'pans=5'"),
        ("", ["kitchen.pans"], r"expected section.key=value, got 'kitchen.pans'"),
        ("[kitchen", [], r"house.toml: expected TOML"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text, *overrides)


@dataclass(frozen=True)
class Jar:
    label: str
    litres: float
    lid: bool = True


@dataclass(frozen=True)
class Larder:
    jars: str | list[Jar] = "none"


@dataclass(frozen=True)
class Farm:
    larder: Larder = field(default_factory=Larder)


def test_a_value_may_be_a_list_of_tables(tmp_path: Path) -> None:
    jam, oil = Jar("jam", 0.5), Jar('o"il', 2.0, lid=False)
    path = tmp_path / "farm.toml"
    for text in (
        'jars = [{label = "jam", litres = 0.5}, {litres = 2, label = "o\\"il", lid = false}]',
        '[[larder.jars]]\nlabel = "jam"\nlitres = 0.5\n[[larder.jars]]\nlabel = "o\\"il"\nlitres = 2\nlid = false',
    ):
        path.write_text(f"[larder]\n{text}\n", encoding="utf-8")
        assert load_config(path, [], Farm) == Farm(Larder([jam, oil]))
    path.write_text(dump_config(Farm(Larder([jam, oil]))), encoding="utf-8")
    assert load_config(path, [], Farm) == Farm(Larder([jam, oil]))
    assert load_config(path, ["larder.jars=many"], Farm) == Farm(Larder("many"))
    assert load_config(None, ['larder.jars=[{label = "jam", litres = 0.5}]'], Farm) == Farm(Larder([jam]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('[{labl = "jam"}]', r"unknown key larder.jars\[0\].labl; did you mean larder.jars\[0\].label\?"),
        ('[{label = "jam", litres = 1}, {label = "x"}]', r"expected larder.jars\[1\].litres, got none"),
        ('[{label = "jam", litres = true}]', r"larder.jars\[0\].litres: expected a number, got True"),
        ('["jam"]', r"larder.jars: expected text or a list of tables {label = …, litres = …, lid = …}, got \['jam'\]"),
        ("3", r"larder.jars: expected text or a list of tables .* got 3"),
    ],
)
def test_mistakes_in_a_list_of_tables(value: str, message: str) -> None:
    with pytest.raises(Error, match=message):
        load_config(None, [f"larder.jars={value}"], Farm)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.toml: expected a TOML file \(No such file or directory\)"):
        load_config(tmp_path / "absent.toml", [], House)
    (tmp_path / "latin.toml").write_bytes('[kitchen]\nname = "Küche"'.encode("latin-1"))
    with pytest.raises(ValueError, match="latin.toml: expected TOML"):
        load_config(tmp_path / "latin.toml", [], House)
    deep = f"[kitchen]\nname = {'[' * 10_000}"
    (tmp_path / "deep.toml").write_text(deep)
    with pytest.raises(Error, match="deep.toml: expected TOML .lists within lists"):
        load_config(tmp_path / "deep.toml", [], House)
    assert load_config(None, [f"kitchen.name={'[' * 10_000}"], House).kitchen.name == "[" * 10_000


def test_a_name_that_is_not_utf_8_is_one_line() -> None:
    """A command line may hold any bytes; a configuration, which is written down, may not."""
    for key, value in (("kitchen.name", "caf\udce9"), ("kitchen.dishes", '["a", "caf\udce9"]')):
        with pytest.raises(Error, match=rf"of the command line: {key}: expected names in UTF-8, got b'caf\\xe9'"):
            load_config(None, [f"{key}={value}"], House)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.builds(
        House,
        st.builds(
            Kitchen,
            name=texts | st.sampled_from(['"', "\\", "two\nlines", "tab\t", "\r\n", "\x00\x7f", "日本語 🙂", "'''"]),
            pans=st.integers(-(2**63), 2**63 - 1),
            warmth=st.floats(allow_nan=False),
            open=st.booleans(),
            dishes=st.lists(texts),
        ),
        st.builds(Cellar, depth=st.floats(allow_nan=False)),
    )
)
def test_written_and_read_back(tmp_path_factory: pytest.TempPathFactory, house: House) -> None:
    # bytes, so that no platform's line ends come in between
    path = tmp_path_factory.getbasetemp() / "house.toml"
    path.write_bytes(dump_config(house).encode())
    assert load_config(path, [], House) == house


def test_differences() -> None:
    old, new = (tomllib.loads(dump_config(house)) for house in (House(), House(Kitchen(pans=4), Cellar(1.5))))
    assert differences(old, old) == []
    assert differences(old, new) == ["kitchen.pans: 3 → 4", "cellar.depth: 2.0 → 1.5"]
    assert differences({}, {"a": {"b": 1}}) == ["a.b: None → 1"]
    assert differences({"a": {"b": 1}}, {}) == ["a.b: 1 → None"]


# Mistakes as gpt2wds-train tells them.


def arguments(folder: Path, data: Dataset | Path, *overrides: str) -> list[str]:
    """Of a run of two steps, at the rates that hold where none is given."""
    rates = ["train.learning_rate=6e-4", "train.min_learning_rate=6e-5"]
    return runs.arguments(folder / "run", data, "train.max_steps=2", "train.warmup_steps=1", *rates, *overrides)


def assert_one_line(exit_code: int, stderr: str, *expected: str) -> None:
    assert exit_code == 1, stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    for part in expected:
        assert part in stderr


MISTAKES = {
    "train.tokens_per_step=250": "expected a multiple of data.seq_len = 32, got 250; try 224 or 256",
    "train.tokens_per_step=7": "got 7; try 32",
    "train.tokens_per_step=-5": "got -5; try 32",
    "train.dtype=float16": "train.dtype: expected bfloat16, float32 or auto, got 'float16'",
    "train.schedule=step": "train.schedule: expected cosine, linear, constant, wsd, got 'step'",
    "train.optimizer=sgd": "train.optimizer: expected adamw or muon, got 'sgd'",
    "train.warmup_steps=3": "train.warmup_steps: expected 0 to max_steps = 2, got 3",
    "train.max_steps=0": "train.max_steps: expected at least 1, got 0",
    "train.micro_batch_sequences=0": "train.micro_batch_sequences: expected at least 1, got 0",
    "train.learning_rate=0": "train.learning_rate: expected",
    "train.learning_rate=nan": "train.learning_rate: expected a finite number above 0, got nan",
    "train.learning_rate=inf": "train.learning_rate: expected a finite number above 0, got inf",
    "train.min_learning_rate=6.1e-4": "train.min_learning_rate: expected 0 to learning_rate = 0.0006, got 0.00061",
    "train.min_learning_rate=nan": "train.min_learning_rate: expected 0 to learning_rate = 0.0006, got nan",
    "train.min_learning_rate=-1": "train.min_learning_rate: expected 0 to learning_rate = 0.0006, got -1.0",
    "train.weight_decay=-1": "train.weight_decay: expected a finite number, 0 or more, got -1.0",
    "train.weight_decay=nan": "train.weight_decay: expected a finite number, 0 or more, got nan",
    "train.muon_learning_rate=-1": "train.muon_learning_rate: expected a finite number, 0 or more, got -1.0",
    "eval.val_tokens=-1": "eval.val_tokens: expected at least 1, got -1",
    "eval.sample_tokens=0": "eval.sample_tokens: expected at least 1, got 0",
    "eval.hellaswag_mode=foo": "eval.hellaswag_mode: expected completion or lm-eval, got 'foo'",
    "model.size=gpt3": "model.size: expected gpt2, gpt2-medium, gpt2-large, gpt2-xl, or n_layer, n_head and n_embd",
    "model.n_embd=0": "model: expected all of n_layer, n_head and n_embd or none, got n_layer, n_head",
    "train.max_stps=3": "unknown key train.max_stps; did you mean train.max_steps?",
    "train.betas=[0.9]": "train.betas: expected two numbers from 0 to below 1, got [0.9]",
    "train.betas=[0.9, 1.0]": "train.betas: expected two numbers from 0 to below 1, got [0.9, 1.0]",
    "train.betas=[1, 2]": "train.betas: expected two numbers from 0 to below 1, got [1.0, 2.0]",
    "train.grad_clip=0": "train.grad_clip: expected more than 0 (inf for none), got 0",
    "train.on_nan=ignore": "train.on_nan: expected stop or skip, got 'ignore'",
    "train.parallel=tp": "train.parallel: expected ddp or fsdp, got 'tp'",
    "checkpoint.on_error=ignore": "checkpoint.on_error: expected stop or continue, got 'ignore'",
    "eval.every_steps=0": "eval.every_steps: expected at least 1, got 0",
    "checkpoint.every_steps=0": "checkpoint.every_steps: expected at least 1, got 0",
    "checkpoint.keep=0": "checkpoint.keep: expected at least 1, got 0",
    "run.seed=-1": "seed: expected 0 to 2^64 - 1, got -1",
    f"run.seed={2**70}": "seed: expected 0 to 2^64 - 1",
    "run.device=tpu": "run.device: expected auto, cpu, cuda or mps, got 'tpu'",
    "data.seq_len=0": "data.seq_len: expected at least 1, got 0",
    "model.n_head=3": "n_embd must be a multiple of n_head, got n_embd=32 and n_head=3; try n_embd=33",
    "model.init_from=no/such-model/here": "model no/such-model/here: expected a directory, or a name",
    "eval.hellaswag=nowhere": "nowhere",
    "data.path=[]": "data.path: expected a dataset directory, got []; for example data/mine",
    'data.path=[{path = "", weight = 1}]': "data.path: expected dataset directories, got ''",
    'data.path=[{path = "a", weight = 0}]': "data.path: weight of a: expected a number above 0 and finite, got 0.0",
    'data.path=[{path = "a", weight = inf}]': "data.path: weight of a: expected a number above 0 and finite, got inf",
    'run.dir="a\\u0000b"': "run.dir: expected a path or a URL, got 'a\\x00b'; no name has a NUL",
    'data.path="a\\u0000b"': "expected a path or a URL, got 'a\\x00b'; no name has a NUL",
    'eval.hellaswag="a\\u0000b"': "no name has a NUL",
    'model.init_from="a\\u0000b"': "no name has a NUL",
    'run.fork_from="a\\u0000b"': "no name has a NUL",
    "data.path=[{path = a, weight = 1}]": "data.path: expected TOML, got [{path = a, weight = 1}]; write it as",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_line(plays: Dataset, tmp_path: Path, override: str) -> None:
    command = arguments(tmp_path, plays, override)
    result = click.testing.CliRunner().invoke(main, command)
    assert_one_line(result.exit_code, result.stderr, MISTAKES[override])
    # Nothing was claimed: the command put right is not another run.
    assert not (tmp_path / "run" / "config.toml").exists()


def test_muon_needs_whole_matrices(plays: Dataset, tmp_path: Path) -> None:
    command = arguments(tmp_path, plays, "train.parallel=fsdp", "train.optimizer=muon")
    result = click.testing.CliRunner().invoke(main, command)
    assert_one_line(result.exit_code, result.stderr, "expected adamw with train.parallel = fsdp, got muon, which needs")


def test_an_unknown_size(plays: Dataset, tmp_path: Path) -> None:
    command = arguments(tmp_path, plays, "model.n_layer=0", "model.n_head=0", "model.n_embd=0")
    result = click.testing.CliRunner().invoke(main, [*command, "model.size=gpt3"])
    assert_one_line(result.exit_code, result.stderr, "model.size: expected gpt2, gpt2-medium, ", "got 'gpt3'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(plays: Dataset, tmp_path: Path) -> None:
    result = click.testing.CliRunner().invoke(main, arguments(tmp_path, plays, "run.device=cuda"))
    assert_one_line(result.exit_code, result.stderr, "run.device: expected a CUDA device", "use auto")


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    result = click.testing.CliRunner().invoke(main, arguments(tmp_path, tmp_path / "nowhere"))
    assert_one_line(result.exit_code, result.stderr, str(tmp_path / "nowhere"))


def test_less_text_than_one_step(tmp_path: Path) -> None:
    small = shard_plays(tmp_path / "small", limit_docs=2, val_docs=1)
    sequences = small.total("train", "tokens") // 32
    command = arguments(tmp_path, small)
    result = click.testing.CliRunner().invoke(main, [*command, f"train.tokens_per_step={32 * 100_000}"])
    assert_one_line(result.exit_code, result.stderr, "expected at least one step of 100,000 sequences of 32 tokens")
    at_most = int(result.stderr.split()[-2].replace(",", ""))
    assert 0 < at_most <= 32 * sequences
    followed = click.testing.CliRunner().invoke(main, [*command, f"train.tokens_per_step={at_most}", "--dry-run"])
    assert followed.exit_code == 0, followed.output


@pytest.mark.slow
def test_a_missing_configuration_through_the_installed_command(tmp_path: Path) -> None:
    """As a shell sees it: exit code 1, nothing on standard output, no traceback."""
    command = [Path(sys.executable).with_name("gpt2wds-train"), tmp_path / "absent.toml"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert_one_line(done.returncode, done.stderr, "absent.toml: expected a TOML file (No such file or directory)")
    assert done.stdout == ""


def test_a_dry_run_writes_nothing(plays: Dataset, tmp_path: Path) -> None:
    result = click.testing.CliRunner().invoke(main, [*arguments(tmp_path, plays), "--dry-run"])
    assert result.exit_code == 0, result.output
    said = result.output
    assert "steps: 2 of 256 tokens" in said
    assert "model: 1,622,016 parameters" in said
    assert "rank 0: slots 0 to 7 of 8, 1 micro-step of at most 8 sequences; its first steps begin at positions" in said
    assert "memory of each rank, estimated: 0.0 GB" in said
    assert "attention: flash_attention" in said or "attention: math" in said
    assert not (tmp_path / "run").exists()


CONFIGS = Path(__file__).parents[2] / "configs"
# Parameters of the published models.
PARAMETERS = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_what_its_name_says(path: Path) -> None:
    settings = load_config(path, [], Config)
    with torch.device("meta"):
        model = GPT2(GPT2Config(*settings.model.shape, n_positions=settings.data.seq_len))
    settings.train.rate_factor()  # the schedule fits the steps
    assert settings.idle == []
    if path.stem == "demo":
        return
    assert settings.run.dir == f"runs/{path.stem}"
    assert model.parameter_count() == PARAMETERS[settings.model.size]
    size = int(re.match(r"gpt2-(\d+)m", path.stem)[1])
    # Names are as in the papers: 350M is GPT-3's word for 355M parameters.
    assert math.isclose(size * 1e6, model.parameter_count(), rel_tol=0.015)
    # One epoch of ten billion tokens, of whole sequences.
    assert math.isclose(settings.train.max_steps * settings.train.tokens_per_step, 1e10, rel_tol=1e-3)
    assert settings.data.seq_len == 1024
    published = {"gpt2": 6e-4, "gpt2-medium": 3e-4, "gpt2-large": 2.5e-4, "gpt2-xl": 2e-4}[settings.model.size]
    assert settings.train.learning_rate == (3 * published if "fast" in path.stem else published)


@pytest.mark.parametrize(("rate", "lowest"), [(6e-4, 6e-5), (2e-5, 2e-6), (1e-2, 1e-3), (3e-4, 3e-5)])
def test_the_lowest_rate_is_a_tenth_where_nothing_is_said(tmp_path: Path, rate: float, lowest: float) -> None:
    (tmp_path / "a.toml").write_text("")
    settings = load_config(tmp_path / "a.toml", [f"train.learning_rate={rate}"], Config)
    assert f"min_learning_rate = {lowest!r}" in dump_config(settings)
    (tmp_path / "b.toml").write_text(dump_config(settings))
    assert load_config(tmp_path / "b.toml", [], Config) == settings


def test_a_dry_run_says_which_precision_auto_is(plays: Dataset, tmp_path: Path) -> None:
    command = [*arguments(tmp_path, plays, "train.dtype=auto"), "--dry-run"]
    result = click.testing.CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    found = re.search(r"^precision: (bfloat16|float32); attention: ", result.output, re.MULTILINE)
    assert found and not (tmp_path / "run").exists()
    flags = Path("/proc/cpuinfo").read_text() if platform.machine() == "x86_64" else ""
    if "avx512f" in flags:  # which emulates bfloat16 where it has no instructions for it, in twice float32's time
        assert (found[1] == "bfloat16") == bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", flags))


def printed(*arguments: str) -> str:
    result = click.testing.CliRunner().invoke(main, ["--print-config", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_printed_configuration_is_one(tmp_path: Path) -> None:
    (tmp_path / "defaults.toml").write_text(printed())
    assert load_config(tmp_path / "defaults.toml", [], Config) == Config()
    # What follows from another key is not written as if it were chosen.
    assert load_config(tmp_path / "defaults.toml", ["train.learning_rate=2e-5"], Config).train.lowest_rate == 2e-6
    (tmp_path / "mine.toml").write_text("[train]\nmin_learning_rate = 1e-5\n")
    said = printed(str(tmp_path / "mine.toml"), "run.seed=3")
    assert re.search(r"^min_learning_rate = 1e-05 +# where the schedule ends; ", said, re.MULTILINE)
    assert re.search(r"^seed = 3 +# of the weights, ", said, re.MULTILINE)
    assert re.search(r"^warmup_steps = 715 +# steps: in which the rate rises from 0$", said, re.MULTILINE)


def test_without_a_configuration_the_way_to_one_is_named() -> None:
    for arguments, message in (([], "Missing argument 'CONFIG'; --print-config"), (["x", "--ranks", "2"], "--dry-run")):
        result = click.testing.CliRunner().invoke(main, arguments)
        assert (result.exit_code, message in result.stderr) == (2, True)


def test_a_dry_run_as_several_ranks_needs_one_process(plays: Dataset, tmp_path: Path) -> None:
    command = [*arguments(tmp_path, Path(plays.path)), "--dry-run"]
    result = click.testing.CliRunner().invoke(main, [*command, "--ranks", "3", "--tokens-per-second", "10"])
    assert result.exit_code == 0, result.output
    assert "3 ranks" in result.output
    slots = re.findall(r"rank (\d): slots (\d) to (\d) of 8, 1 micro-steps? of at most 3 seq", result.output)
    assert slots == [("0", "0", "1"), ("1", "2", "4"), ("2", "5", "7")]
    assert "time: 2 steps at 10 tokens/s: 0:00:51, without evaluations and checkpoints" in result.output
    assert not (tmp_path / "run").exists()
    result = click.testing.CliRunner().invoke(main, [*command, "--ranks", "9"])
    assert_one_line(result.exit_code, result.stderr, "expected at least one sequence per rank, got 8 sequences for 9")


def test_a_dry_run_says_what_a_fork_would_begin_from(plays: Dataset, tmp_path: Path) -> None:
    command = arguments(tmp_path, Path(plays.path))
    result = click.testing.CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    fork = [*command, f"run.fork_from={tmp_path / 'run'}", f"run.dir={tmp_path / 'fork'}", "train.max_steps=3"]
    result = click.testing.CliRunner().invoke(main, [*fork, "--dry-run"])
    checkpoint = (tmp_path / "run" / "checkpoints" / "step-0000002").resolve()
    assert f"a new run: it would begin from {checkpoint}, step 2 of 3" in result.output
    assert not (tmp_path / "fork").exists()
