"""Datasets on the Hub: which files a configuration has at a commit, and reading byte ranges of one, checked.

A file is never downloaded whole and nothing is kept on disk. huggingface_hub retries what a network does (429, 5xx,
time-outs, resets, bodies cut short) with back-off; what it does not check is checked here: that a range was honoured,
and that the file is still the one that was planned.
"""

import io
from dataclasses import dataclass
from typing import Any

SMALLEST_REQUEST = 1 << 16


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset repository at a pinned commit. `etag` names its content."""

    repo: str
    revision: str
    name: str
    size: int
    etag: str

    def __str__(self) -> str:
        return f"hf://datasets/{self.repo}@{self.revision}/{self.name}"

    def open(self, mode: str = "rb") -> "RangedFile":
        assert mode == "rb"
        return RangedFile(self)

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes start … end - 1. Raises ValueError for a server that gives anything else."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff  # type: ignore[attr-defined]

        url = hf_hub_url(self.repo, self.name, repo_type="dataset", revision=self.revision)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}"}
        try:
            response = http_backoff("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(response)
        except Exception as error:  # the HTTP client's own: huggingface_hub changes clients between versions
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{self}: bytes {start} to {end} did not arrive ({reason}); the same command goes on"
            ) from None
        self._check(response, start, end)
        return response.content

    def _check(self, response: Any, start: int, end: int) -> None:
        first = (response.history or [response])[0]  # the Hub's own answer, before it sends us to its storage
        etag = (first.headers.get("X-Linked-Etag") or first.headers.get("ETag") or "").removeprefix("W/").strip('"')
        if etag and etag != self.etag:
            raise ValueError(f"{self}: the file changed under its commit (ETag {self.etag} → {etag}); plan again")
        if response.status_code != 206 or len(response.content) != end - start:
            raise ValueError(
                f"{self}: expected {end - start} bytes from {start} (status 206), got {len(response.content)} "
                f"(status {response.status_code}): the server or a proxy ignores byte ranges"
            )
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if total not in ("", "*", str(self.size)):
            raise ValueError(f"{self}: expected a file of {self.size} bytes, the server has {total}; plan again")


class RangedFile(io.RawIOBase):
    """A HubFile for reading. `prefetch` takes a stretch in one request; reads within it ask for nothing more."""

    def __init__(self, file: HubFile):
        self._file, self._at = file, 0
        self._held, self._held_from = b"", 0

    def prefetch(self, start: int, end: int) -> None:
        self._held, self._held_from = self._file.read_range(start, end), start

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._file.size - self._at)
        if wanted <= 0:
            return 0
        if not self._held_from <= self._at <= self._at + wanted <= self._held_from + len(self._held):
            self.prefetch(self._at, min(self._file.size, self._at + max(wanted, SMALLEST_REQUEST)))
        offset = self._at - self._held_from
        buffer[:wanted] = self._held[offset : offset + wanted]
        self._at += wanted
        return wanted

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def resolve(repo: str, config: str | None, split: str, revision: str | None) -> tuple[str, list[HubFile]]:
    """The commit that `revision` (default: main) is now, and the parquet files of a configuration's split, in order.

    Configurations are understood by `datasets`, whatever way the repository declares them. Raises ValueError.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

    try:
        commit = str(HfApi().dataset_info(repo, revision=revision).sha)
        builder = datasets.load_dataset_builder(repo, config, revision=commit)
        found = builder.config.data_files or {}
        if split not in found:
            raise ValueError(f"dataset {repo}: expected a split {split!r}, it has {', '.join(found) or 'none'}")
        prefix = f"hf://datasets/{repo}@{commit}/"
        names = [str(url).removeprefix(prefix) for url in found[split]]
        other = [name for name in names if not name.endswith(".parquet")]
        if other:
            raise ValueError(f"dataset {repo}: expected parquet files, got {other[0]}; download them and use files")
        listed = HfApi().get_paths_info(repo, names, repo_type="dataset", revision=commit)
        infos = {info.path: info for info in listed if isinstance(info, RepoFile)}
    except (HfHubHTTPError, datasets.exceptions.DatasetsError, OSError) as error:
        raise ValueError(f"dataset {repo}: expected it on the Hub, got {str(error).splitlines()[0]}") from None
    files = []
    for name in names:
        info = infos[name]
        etag = info.lfs.sha256 if info.lfs else info.blob_id
        files.append(HubFile(repo, commit, name, info.size, etag))
    return commit, files
