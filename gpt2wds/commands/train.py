"""gpt2wds-train: the command line."""

import re
import signal
import sys
from pathlib import Path

import click

from ..config import explain_config, load_config
from ..malloc import keep_pages
from ..train.signals import Signals, end_with_launcher
from ..version import __version__
from . import importing
from .common import Command, one_line_errors
from .output import go_on_unread

_KEYS = {"device": "run.device", "seed": "run.seed", "seq_len": "data.seq_len"}


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Print what would be done: sizes, steps, what each rank takes, memory.")
@click.option("--ranks", type=click.IntRange(1), help="With --dry-run: as so many ranks would do it.")
@click.option(
    "--tokens-per-second",
    type=click.FloatRange(0, min_open=True),
    help="With --dry-run: how long the steps left take at that rate, of all ranks together.",
)
@click.option("--print-config", is_flag=True, help="Print every key of CONFIG, or of the defaults, and what it says.")
@click.version_option(__version__)
def main(
    config: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    ranks: int | None,
    tokens_per_second: float | None,
    print_config: bool,
) -> None:
    """Train a GPT-2 on a dataset directory as CONFIG, a TOML file, says.

    Alone, or on several GPUs: torchrun --standalone --nproc-per-node=8 --no-python gpt2wds-train CONFIG.
    A run that was stopped, in whatever way, goes on when the same command is given again.

    MFU, shown on GPUs whose bfloat16 peak we know, is tokens/s × (6 N + 12 L H Q T) / peak, as in PaLM's appendix B;
    nanoGPT's way leaves the position embeddings out of N.
    """
    if config is None and not print_config:
        raise click.UsageError("Missing argument 'CONFIG'; --print-config writes one to begin with.")
    if config is not None and "=" in str(config) and not config.exists():
        raise click.UsageError("CONFIG, a TOML file, comes before [SECTION.KEY=VALUE]; --print-config writes one.")
    if (ranks or tokens_per_second) and not dry_run:
        raise click.UsageError("--ranks and --tokens-per-second are for --dry-run.")
    signals = Signals()
    end_with_launcher()
    # Noted before torch is imported, which takes seconds: a SIGUSR1 in that time must not kill, nor be lost. And until
    # an error is said, however long the way out of the run is.
    with signals.noting(signal.SIGUSR1), one_line_errors(_with_keys):
        with importing():
            from ..distributed import join_world
            from ..train.faults import naming_faults
            from .launch import launch, preview
            from .settings import Config

        settings = load_config(config, list(overrides), Config)
        if print_config:
            print(explain_config(settings))
            return
        # No run of days may end because its terminal has, or `tee`: Ctrl-C ends that before a run has saved.
        if not dry_run:
            go_on_unread("stdout")
        with naming_faults(), join_world(settings.run.device) as world:
            if dry_run:
                preview(settings, world, ranks, tokens_per_second)
                return
            if world.device.type == "cpu":
                keep_pages()
            # Ranks that have met stop together, or say which way one was lost. Alone, one that starts ends at once.
            with signals.noting(*[signal.SIGTERM] * (world.world_size > 1)):
                stopped_by = launch(settings, world, signals)
    if stopped_by:
        sys.exit(128 + stopped_by)


def _with_keys(text: str) -> str:
    """A message of the library with the configuration's keys in place of its arguments' names."""
    text = text.replace("max_tokens =", "eval.val_tokens =")
    return re.sub("^(device|seed|seq_len):", lambda found: f"{_KEYS[found[1]]}:", text)


if __name__ == "__main__":  # python -m gpt2wds.commands.train
    main()
