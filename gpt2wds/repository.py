"""A dataset repository on the Hub, by the Hub's own client: files are uploaded, and seen when a commit comes.

One commit takes many files, and the Hub takes few commits an hour. Each names the commit before it, so that what
another writer committed in between is looked at, and never overwritten.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import Error
from .patience import WHOLE_SECONDS, Answer, seconds_for, status
from .stores import ask

Asked = Callable[[Any, dict[str, str]], Answer]  # huggingface_hub.HfApi, and what names the repository there
Addition = Any  # huggingface_hub.CommitOperationAdd, which is imported when it is needed

TRIES = 20  # of a commit, each time another writer's came first
_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:/([^@]+))?")
_PASSED_BY = 412  # how the Hub answers a commit that names another one before it than the last


@dataclass(frozen=True)
class Repository:
    """The main branch of a dataset repository, or a directory in it. Raises Error for what the Hub says."""

    url: str
    repo: str  # OWNER/NAME
    below: str = ""  # the directory, with a slash at its end

    @classmethod
    def of(cls, url: str) -> "Repository | None":
        """The one that a URL names, hf://datasets/OWNER/NAME[/DIRECTORY]; None if it names something else."""
        found = _URL.fullmatch(url)
        return cls(url, found[1], f"{found[2]}/" if found[2] else "") if found else None

    def create(self, name: str, file: Path) -> bool:
        """A file of a local one, in a commit of its own; False when another was there first, which stays."""
        return not self.commit_new({name: [self.uploaded(name, file)]}, name)

    def uploaded(self, name: str, file: Path) -> Addition:
        """A local file's content brought to the Hub, where nobody sees it. It can be sent to another process, and the
        local file is needed no more."""
        addition = self.addition(name, file)
        self.upload([addition], forgets=True)
        # What is large enough is there now, and empty here. The rest travels in the commit itself.
        return self.addition(name, file.read_bytes()) if addition.path_or_fileobj else addition

    def addition(self, name: str, content: bytes | Path) -> Addition:
        from huggingface_hub import CommitOperationAdd

        return CommitOperationAdd(self.below + name, content if isinstance(content, bytes) else str(content))

    def upload(self, additions: Sequence[Addition], forgets: bool = False) -> None:
        """Bring what is large of these files to the Hub. forgets: the content that is there now."""
        names = ", ".join(addition.path_in_repo for addition in additions)
        seconds = seconds_for(sum(addition.upload_info.size for addition in additions))
        options = {"additions": additions, "free_memory": forgets}
        with _no_bars():
            self.ask(names, lambda api, repo: api.preupload_lfs_files(**options, **repo), seconds)

    def commit_new(self, files: Mapping[str, Sequence[Addition]], message: str) -> set[str]:
        """Commit these files, but not those whose key is the name of a file that is there; returns those names."""
        for _ in range(TRIES):
            head = self.head()
            there = self._among(files, head)
            new = [each for name, additions in files.items() if name not in there for each in additions]
            if not new or self.commit(new, message, head) is not None:
                return there
        raise Error(f"{self.url}: other writers' commits came first {TRIES} times; give the same command again")

    def commit(self, additions: Sequence[Addition], message: str, head: str) -> str | None:
        """The commit of these files, whose parent is `head`; None where another came first."""

        def commit(api: Any, repo: dict[str, str]) -> str | None:
            options = {"operations": additions, "commit_message": message, "parent_commit": head}
            try:
                return str(api.create_commit(**options, **repo).oid)
            except Exception as error:  # of the Hub's client
                if status(error) != _PASSED_BY:
                    raise
                return None

        with _no_bars():
            return self.ask("the commit", commit)

    def head(self) -> str:
        """The last commit."""
        return str(self.ask("the repository", lambda api, repo: api.repo_info(**repo)).sha)

    def _among(self, names: Collection[str], head: str) -> set[str]:
        """Which of these files are there."""
        paths = [self.below + name for name in names]
        found = self.ask("its list", lambda api, repo: api.get_paths_info(paths=paths, revision=head, **repo))
        return {file.path.removeprefix(self.below) for file in found}

    def ask(self, what: str, question: Asked[Answer], seconds: float = WHOLE_SECONDS) -> Answer:
        """The answer to a question to the Hub."""
        from huggingface_hub import HfApi, errors

        def answered(_: object, __: str) -> Answer:
            try:
                return question(HfApi(), {"repo_id": self.repo, "repo_type": "dataset"})
            except errors.RepositoryNotFoundError:
                raise Error(
                    "expected a repository that can be written to, got none that your login sees; make it first "
                    f"(hf repos create {self.repo} --repo-type dataset), or log in (hf auth login)"
                ) from None
            except RuntimeError as error:  # says of a file that it was not uploaded; why is in its cause
                raise error.__cause__ or error from None
            except ValueError as error:  # a card that the Hub does not take, in lines
                if type(error) is not ValueError:
                    raise
                raise Error(" ".join(str(error).split())) from None

        return ask(self.url, answered, what=what, seconds=seconds)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the client's own progress bars: one line of ours says it all."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
