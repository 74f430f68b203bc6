"""A dataset's plan: made anew from what is asked for, or found, and held to what is asked for."""

import dataclasses

from ..dataset import shards
from ..dataset.manifest import MULTIPLE_CHOICE, TOKENS
from ..errors import Error
from ..folder import Folder
from ..tokenizer import load_tokenizer
from . import cutting
from .content import hashed, refuse_other_content
from .corpora import LATER, Files, Request, record
from .cutting import Cut
from .documents import Skipped
from .plan import PLAN, Plan, Span, Task, read_plan, write_plan
from .receipts import is_finished
from .sources import Corpus
from .trust import is_asked_for, refuse_other_package, refuse_others
from .writing import TaskRunner, text_hash


def make_plan(out: Folder, request: Request, cut: Cut | None = None, *, trust_times: bool = False) -> Plan:
    """The plan of a dataset: the one in `out` if there is one, else a new one, written there. See `begin`."""
    plan, _ = begin(out, request, cut, trust_times=trust_times)
    return plan


def begin(out: Folder, request: Request, cut: Cut | None = None, *, trust_times: bool = False) -> tuple[Plan, bool]:
    """The plan of a dataset, and whether nothing of it is left to do.

    trust_times: a new plan does not read local files only to hash them; one without hashes is known by its size and
    time of change. Raises Error when `request` or `cut` is not what the plan that is there was made for.
    """
    asked = record(request) | (dataclasses.asdict(cut) if cut else {})
    is_new = not out.exists(PLAN)
    if is_new:
        out.refuse_unwritable()
        _refuse_other_datasets(out)
        corpus = request.resolve(out)
        tasks = hashed(corpus.sources, _tasks(corpus, cut or Cut()), trust_times=trust_times)
        plan = Plan(
            request={name: value for name, value in asked.items() if name not in LATER or value != LATER[name]},
            tokenizer=load_tokenizer().identity(),
            versions=shards.shard_versions(),
            kind=corpus.kind,
            corpus=corpus.name,
            text_column=getattr(request, "text_column", "text"),
            sources=corpus.sources,
            tasks=tuple(tasks),
            validation_texts=(),
        )
        plan = dataclasses.replace(plan, validation_texts=_validation_texts(plan))
        plan = write_plan(out, plan)
    else:
        plan = read_plan(out)
    _refuse_other_request(out, plan, asked)
    is_done = not is_new and is_finished(out, plan)
    if not is_new:
        _refuse_other_sources(out, plan, request, is_done)
    refuse_other_tokenizer(out, plan)
    if not is_done:
        out.refuse_unwritable()
    return plan, is_done


def refuse_other_tokenizer(out: Folder, plan: Plan) -> None:
    """Raise Error where this machine's ids would not be the plan's."""
    for name, value in load_tokenizer().identity().items():
        if value != plan.tokenizer.get(name):
            raise Error(
                f"{out}: its plan was made with {name} = {plan.tokenizer.get(name)}, here it is {value}; "
                f"ids would differ: pip install tiktoken=={plan.tokenizer.get('tiktoken')}"
            )


def _tasks(corpus: Corpus, cut: Cut) -> list[Task]:
    if corpus.kind == MULTIPLE_CHOICE:
        return [Task("val", 0, (Span(0, 0, corpus.val_docs),))]
    tasks = cutting.tasks(corpus.sources, cut, val_docs=corpus.val_docs, spread=corpus.spread)
    if not tasks:
        raise Error(f"corpus {corpus.name.source}: expected at least one document, got none")
    if not any(task.split == "train" for task in tasks):
        raise Error(
            f"corpus {corpus.name.source}: all of its documents went to validation, none is left to train on; "
            "lower val_docs (0 for no validation), or give more text"
        )
    return tasks


def _validation_texts(plan: Plan) -> tuple[str, ...]:
    if plan.kind != TOKENS:
        return ()
    runner = TaskRunner(Folder("."), plan, None)
    held = (task for task in plan.tasks if task.split == "val")
    texts = (text for task in held for batch in runner.batches(task) for text in batch)
    found = sorted({text_hash(text) for text in texts if not isinstance(text, Skipped)})
    runner.close()
    return tuple(found)


def _refuse_other_datasets(out: Folder) -> None:
    if out.exists("manifest.json"):
        raise Error(f"{out}: expected an empty directory, got a dataset without its {PLAN}; choose another directory")
    if any(name.endswith(".json") for name in out.sizes("receipts")):
        # They are another plan's: taken for this one's, documents would be lost or doubled.
        raise Error(f"{out}: expected an empty directory, got shards without their {PLAN}; choose another directory")


def _refuse_other_sources(out: Folder, plan: Plan, request: Request, is_done: bool) -> None:
    if not is_done:
        refuse_others(request, plan, out)
        refuse_other_package(request, plan)
    if isinstance(request, Files):
        request.refuse_changes(plan.sources, is_done, out)
    if is_done:  # else each task holds its spans to their hashes
        meant = [number for number, source in enumerate(plan.sources) if is_asked_for(request, source, plan, out)]
        refuse_other_content(plan, meant)


def _refuse_other_request(out: Folder, plan: Plan, asked: dict[str, object]) -> None:
    for name, value in asked.items():
        planned = plan.request.get(name, LATER.get(name))
        if _meant(name, value) == _meant(name, planned):
            continue
        if planned is None:
            raise Error(
                f"{out}: its plan was made without {name}, this command has {value!r}; "
                "leave it out, or choose another directory"
            )
        if value is None:
            raise Error(
                f"{out}: its plan has {name} = {planned!r}, which this command leaves out; "
                "give it again, or choose another directory"
            )
        raise Error(
            f"{out}: its plan has {name} = {planned!r}, this command {value!r}; "
            "repeat the first command, or choose another directory"
        )


def _meant(name: str, value: object) -> object:
    """What a request asks for by `name`: a local directory's files are the same with a slash at its end."""
    if name != "paths" or not isinstance(value, list):
        return value
    return sorted(path if "://" in path else path.removesuffix("/") for path in map(str, value))
