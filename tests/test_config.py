"""Configuration files, overrides, and what gpt2wds-train says of settings that cannot be."""

import subprocess
import sys
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds.commands.train import Config, main
from gpt2wds.config import differences, dump_config, load_config
from gpt2wds.dataset import Dataset

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Wheel:
    spokes: int = 32
    radius: float = 0.3
    round: bool = True
    maker: str = "nobody"
    colours: list[str] = field(default_factory=lambda: ["black"])


@dataclass(frozen=True)
class Bicycle:
    front: Wheel = field(default_factory=Wheel)
    back: Wheel = field(default_factory=Wheel)


def load(folder: Path, text: str, *overrides: str) -> Bicycle:
    path = folder / "bicycle.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, list(overrides), Bicycle)


def test_values_and_defaults(tmp_path: Path) -> None:
    text = '[front]\nspokes = 28\nradius = 1\nround = false\nmaker = "Ümläut"\ncolours = ["red", "blue"]\n'
    bicycle = load(tmp_path, text)
    assert bicycle == Bicycle(front=Wheel(28, 1.0, False, "Ümläut", ["red", "blue"]))
    assert isinstance(bicycle.front.radius, float)
    assert load(tmp_path, "") == Bicycle()


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("back.spokes=20", "spokes", 20),
        ("back.radius=5e-2", "radius", 0.05),
        ("back.radius=2", "radius", 2.0),
        ("back.round=false", "round", False),
        ("back.maker=plain-text", "maker", "plain-text"),
        ("back.maker=a=b", "maker", "a=b"),
        ('back.maker="12"', "maker", "12"),
        ("back.maker=", "maker", ""),
        ('back.colours=["a", "b"]', "colours", ["a", "b"]),
        ("back.colours=[]", "colours", []),
    ],
)
def test_overrides(tmp_path: Path, override: str, name: str, expected: Any) -> None:
    bicycle = load(tmp_path, "[back]\nspokes = 1\n", "back.spokes=32", override)
    assert bicycle == Bicycle(back=replace(Wheel(), **{name: expected}))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[front]\nspoke = 1\n", [], r"unknown key front.spoke; did you mean front.spokes\?"),
        ("[frint]\nspokes = 1\n", [], r"unknown key frint; did you mean front\?"),
        ("", ["back.rond=true"], r"unknown key back.rond; did you mean back.round\?"),
        ("", ["bakc.round=true"], r"unknown key bakc; did you mean back\?"),
        ("", ["back.round.er=true"], r"unknown key back.round.er; did you mean back.round\?"),
        ("front = 3\n", [], r"expected a section \[front\], got front = 3"),
        ("front = 3\n", ["front.spokes=1"], r"expected a section \[front\], got front = 3"),
        ("[front]\nspokes = 1.5\n", [], "front.spokes: expected int, got 1.5"),
        ("[front]\nspokes = true\n", [], "front.spokes: expected int, got True"),
        ("[front]\nradius = true\n", [], "front.radius: expected float, got True"),
        ("[front]\nradius = '1'\n", [], "front.radius: expected float, got '1'"),
        ("[front]\nround = 1\n", [], "front.round: expected bool, got 1"),
        ("[front]\nmaker = 1\n", [], "front.maker: expected str, got 1"),
        ("[front]\ncolours = 'red'\n", [], r"front.colours: expected list\[str\], got 'red'"),
        ("[front]\ncolours = ['red', 1]\n", [], r"front.colours: expected list\[str\], got \['red', 1\]"),
        ("", ["front.spokes"], "expected section.key=value, got 'front.spokes'"),
        ("", ["spokes=1"], "expected section.key=value, got 'spokes=1'"),
        ("[front\n", [], r"bicycle\.toml: expected TOML \("),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text, *overrides)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.toml: expected a TOML file \(No such file"):
        load_config(tmp_path / "absent.toml", [], Bicycle)
    with pytest.raises(ValueError, match="expected a TOML file"):
        load_config(tmp_path, [], Bicycle)
    (tmp_path / "latin1.toml").write_bytes(b'[front]\nmaker = "\xfc"\n')
    with pytest.raises(ValueError, match=r"latin1\.toml: expected TOML"):
        load_config(tmp_path / "latin1.toml", [], Bicycle)


texts = st.text(st.characters(exclude_categories=["Cs"]))
wheels = st.builds(
    Wheel,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    texts,
    st.lists(texts, max_size=3),
)


@settings(deadline=None)
@given(wheels)
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, wheel: Wheel) -> None:
    bicycle = Bicycle(front=wheel)
    assert load(tmp_path_factory.getbasetemp(), dump_config(bicycle)) == bicycle


def test_quotes_newlines_and_unicode_read_back(tmp_path: Path) -> None:
    hostile = 'a "quoted" \\ back\\nslash\nnew\tline\r\x00\x1b\x7f\u2028 é 漢字 🚲 # [front]'
    bicycle = Bicycle(front=Wheel(maker=hostile, colours=[hostile, ""]))
    assert load(tmp_path, dump_config(bicycle)) == bicycle


def test_differences_name_both_values() -> None:
    old = {"run": {"seed": 1, "dir": "a"}, "gone": {"x": 1}}
    new = {"run": {"seed": 2, "dir": "a"}, "data": {"path": "b"}}
    assert differences(old, new) == ["run.seed: 1 → 2", "data.path: None → 'b'", "gone.x: 1 → None"]
    assert differences(new, new) == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_the_configurations_that_come_with_it_load(path: Path) -> None:
    config = load_config(path, [], Config)
    assert config.train.tokens_per_step % config.data.seq_len == 0
    assert load_config(path, ["run.seed=7"], Config).run.seed == 7


# What gpt2wds-train says.

BASE = """
[run]
device = "cpu"
[data]
seq_len = 32
[model]
n_layer = 1
n_head = 2
n_embd = 32
[train]
tokens_per_step = 256
max_steps = 2
warmup_steps = 1
dtype = "float32"
compile = false
[eval]
sample_prompts = []
"""


def command(folder: Path, dataset: Dataset, *overrides: str) -> list[str]:
    path = folder / "config.toml"
    path.write_text(BASE, encoding="utf-8")
    return [str(path), f"run.dir={folder / 'run'}", f"data.path={dataset.path}", *overrides]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.tokens_per_step=300", "expected a multiple of data.seq_len = 32, got 300; try 288 or 320"),
        ("train.tokens_per_step=31", "expected a multiple of data.seq_len = 32, got 31; try 32"),
        ("train.tokens_per_stp=256", "unknown key train.tokens_per_stp; did you mean train.tokens_per_step?"),
        ("train.dtype=float16", "train.dtype: expected bfloat16, float32 or auto, got 'float16'"),
        ("train.schedule=cosinus", "train.schedule: expected cosine, linear, constant, got 'cosinus'"),
        ("train.optimizer=sgd", "train.optimizer: expected adamw or muon, got 'sgd'"),
        ("train.warmup_steps=3", "train.warmup_steps: expected 0 to max_steps = 2, got 3"),
        ("train.max_steps=0", "train.max_steps: expected at least 1, got 0"),
        ("train.micro_batch_sequences=0", "train.micro_batch_sequences: expected at least 1, got 0"),
        ("train.learning_rate=0", "train.learning_rate: expected more than 0, got 0.0"),
        ("eval.every_steps=0", "eval.every_steps: expected at least 1, got 0"),
        ("checkpoint.every_steps=0", "checkpoint.every_steps: expected at least 1, got 0"),
        ("checkpoint.keep=0", "checkpoint.keep: expected at least 1, got 0"),
        ("run.device=tpu", "run.device: expected auto, cpu, cuda or mps, got 'tpu'"),
        ("run.seed=-1", "run.seed: expected 0 to 2^64 - 1, got -1"),
        ("model.n_head=3", "n_embd must be a multiple of n_head, got n_embd=32 and n_head=3; try n_embd=33"),
        ("model.n_layer=0", "n_layer must be at least 1, got 0"),
        ("model.init_from=absent", "model absent: "),
        ("data.path=absent", "dataset absent: expected a finished dataset (manifest.json), found none"),
        ("data.seq_len=0", "data.seq_len: expected at least 1, got 0"),
        ("eval.hellaswag=absent", "dataset absent: expected a finished dataset"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(tmp_path: Path, plays: Dataset, override: str, message: str) -> None:
    result = CliRunner().invoke(main, command(tmp_path, plays, override))
    assert isinstance(result.exception, SystemExit), result.exception  # not a traceback
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    # A mistake leaves nothing behind that the corrected command would stumble over.
    assert not (tmp_path / "run").exists()


def test_an_unknown_size_names_the_known(tmp_path: Path, plays: Dataset) -> None:
    shape = ["model.n_layer=0", "model.n_head=0", "model.n_embd=0"]
    result = CliRunner().invoke(main, command(tmp_path, plays, *shape, "model.size=gpt3"))
    assert result.exit_code == 1
    assert "model.size: expected gpt2, gpt2-medium, gpt2-large, gpt2-xl, or n_layer" in result.stderr


def test_training_needs_tokens(tmp_path: Path, plays: Dataset, choices: Dataset) -> None:
    result = CliRunner().invoke(main, command(tmp_path, plays, f"data.path={choices.path}"))
    assert result.exit_code == 1
    assert "expected tokens to train on, got multiple-choice" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_that_is_absent(tmp_path: Path, plays: Dataset) -> None:
    result = CliRunner().invoke(main, command(tmp_path, plays, "run.device=cuda"))
    assert result.exit_code == 1
    assert "run.device: expected a CUDA device" in result.stderr
    assert "use auto" in result.stderr


def test_a_missing_configuration(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path / "absent.toml")])
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: configuration {tmp_path}/absent.toml: expected a TOML file (No such file or directory)\n"
    )


def test_the_installed_command_says_it_the_same_way(tmp_path: Path, plays: Dataset) -> None:
    program = Path(sys.executable).with_name("gpt2wds-train")
    arguments = command(tmp_path, plays, "train.tokens_per_step=300")
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: train.tokens_per_step: expected a multiple of data.seq_len = 32, got 300; try 288 or 320\n"
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Missing argument 'CONFIG'" in done.stderr


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path, plays: Dataset) -> None:
    result = CliRunner().invoke(main, [*command(tmp_path, plays), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert f"dataset_id {plays.id}" in result.output
    assert "2 of 256 tokens" in result.output
    assert "left out of an epoch" in result.output
    assert not (tmp_path / "run").exists()


def test_the_resolved_configuration_is_written_out(tmp_path: Path, plays: Dataset) -> None:
    arguments = command(tmp_path, plays, "eval.val_tokens=64", "train.max_steps=1")
    assert CliRunner().invoke(main, arguments).exit_code == 0
    written = tmp_path / "run" / "config.toml"
    config = load_config(written, [], Config)
    assert (config.train.max_steps, config.eval.val_tokens, config.data.seq_len) == (1, 64, 32)
    values = tomllib.loads(written.read_text())
    assert {name: set(section) for name, section in values.items()} == {
        name: set(vars(section)) for name, section in vars(Config()).items()
    }
