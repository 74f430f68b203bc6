"""gpt2wds-shard push: a finished dataset → the Hub, an object store or another directory, with its card."""

import click

from ..dataset.card import CARD
from ..dataset.directory import Dataset
from ..dataset.hub_target import HUB, HubTarget
from ..dataset.publish import DirectoryTarget, has_another_card, published_plan, send, telling, to_send
from ..errors import Error, counted
from .common import Directory
from .looking import DIRECTORY, totals
from .output import ProgressLine, say


@click.command("push")
@DIRECTORY
@click.argument("url", metavar="URL")
@click.option(
    "--license", "licence", metavar="NAME", help="For the card, as the Hub names it: odc-by, mit, cc-by-4.0, …"
)
@click.option("--private", "is_private", is_flag=True, help="Make the Hub's repository private, if it is made.")
@click.option(
    "--local-paths", "tells_paths", is_flag=True, help="Publish it although it names absolute paths of this machine."
)
def push_command(directory: str, url: str, licence: str | None, is_private: bool, tells_paths: bool) -> None:
    """Publish a finished dataset, with a card (README.md): the same command goes on where it was stopped.

    URL is hf://datasets/OWNER/NAME (log in with `hf auth login`), s3://bucket/data, or a directory. The manifest is
    sent last: nobody takes a part for the whole. What is there already is not sent again and never overwritten.
    """
    if is_private and not url.startswith(HUB):
        raise click.UsageError("--private: expected with hf://datasets/OWNER/NAME, got another URL")
    dataset = Dataset(directory)
    told = telling(dataset)
    if told and not tells_paths:
        raise Error(
            f"{directory}: its manifest or plan would tell everybody of {told[0]}"
            f"{f' and {len(told) - 1:,} more' if len(told) > 1 else ''}; make the dataset with relative paths, or give "
            "--local-paths to publish it as it is"
        )
    target = HubTarget(url, is_private=is_private) if url.startswith(HUB) else DirectoryTarget(Directory()(url))
    if published_plan(dataset) is None:
        say(f"{directory}: without its plan.json nobody can make shards of it again, to audit it")
    known_as = url.rstrip("/")
    stages = to_send(dataset, target, known_as, licence)
    pieces = [piece for stage in stages for piece in stage.pieces]
    if pieces:
        progress = ProgressLine("pushing", sum(piece.size for piece in pieces), "B")
        send(target, stages, progress.update)
        progress.close()
    done = f"{counted(len(pieces), 'file')} sent" if pieces else "already there"
    say(f"{url}: {done}, {totals(dataset)}")
    if any(piece.name == CARD for piece in pieces):
        if licence is None:
            say(f"{url}: its README.md names no license (--license, or edit it there)")
    elif (pieces or licence) and has_another_card(dataset, target, known_as, licence):
        what = f"--license {licence}" if licence else "the card"
        say(f"{url}: {what} is not written, the README.md that is there stays as it is; edit it there")
