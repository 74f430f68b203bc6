"""gpt2wds-train: the command line."""

import re
import signal
import sys
from pathlib import Path

import click

from .. import __version__
from ..config import load_config
from ..train.signals import Signals, end_with_launcher
from .common import one_line_errors

_KEYS = {"device": "run.device", "seed": "run.seed", "seq_len": "data.seq_len"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Print what would be done: sizes, steps, what each rank takes, memory.")
@click.version_option(__version__)
def main(config: Path, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train a GPT-2 on a dataset directory as CONFIG, a TOML file, says.

    Alone, or on several GPUs: torchrun --standalone --nproc-per-node=8 --no-python gpt2wds-train CONFIG.
    A run that was stopped, in whatever way, goes on when the same command is given again.

    MFU, shown on GPUs whose bfloat16 peak we know, is tokens/s × (6 N + 12 L H Q T) / peak, as in PaLM's appendix B;
    nanoGPT's way leaves the position embeddings out of N.
    """
    signals = Signals()
    end_with_launcher()
    # Noted before torch is imported, which takes seconds: a SIGUSR1 in that time must not kill, nor be lost.
    with one_line_errors(_with_keys), signals.noting(signal.SIGUSR1):
        from ..distributed import join_world
        from .launch import launch
        from .settings import Config

        settings = load_config(config, list(overrides), Config)
        with join_world(settings.run.device) as world:
            stopped_by = launch(settings, world, signals, dry_run)
    if stopped_by:
        sys.exit(128 + stopped_by)


def _with_keys(text: str) -> str:
    """A message of the library with the configuration's keys in place of its arguments' names."""
    return re.sub("^(device|seed|seq_len):", lambda found: f"{_KEYS[found[1]]}:", text)
