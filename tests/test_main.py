"""python -m gpt2wds, and what it names."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gpt2wds
from gpt2wds.version import __version__

SCRIPTS = tomllib.loads((Path(gpt2wds.__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]


def python_m(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)


def test_it_says_the_version_and_the_commands() -> None:
    done = python_m("gpt2wds")
    first, *lines, last = done.stdout.splitlines()
    assert (done.returncode, first) == (0, f"gpt2wds {__version__}")
    assert [line.split()[0] for line in lines] == list(SCRIPTS)
    assert "python -m gpt2wds.commands.shard, .train, .eval" in last


def test_who_takes_it_for_a_command_is_told() -> None:
    done = python_m("gpt2wds", "train", "configs/demo.toml")
    assert (done.returncode, done.stdout) == (2, "") and "gpt2wds-train " in done.stderr


@pytest.mark.parametrize("place", SCRIPTS.values())
def test_every_command_runs_as_a_module(place: str) -> None:
    module = place.partition(":")[0]
    done = python_m(module, "--version")
    assert done.returncode == 0 and __version__ in done.stdout
