"""Shakespeare's texts: the one that is downloaded, and the plays of a package."""

import pytest
from making import shard_plays, shared_file
from reading import read_run

from gpt2wds.corpus import shakespeare
from gpt2wds.corpus import text as text_module
from gpt2wds.corpus.shakespeare import Plays, Shakespeare
from gpt2wds.errors import Error
from gpt2wds.folder import Folder


def test_tiny_shakespeare_has_documents_and_a_validation_split(tmp_path):
    path = shared_file("tinyshakespeare.txt")
    corpus = Shakespeare(str(path)).resolve(Folder(tmp_path))
    (source,) = corpus.sources
    documents = read_run(source.open())
    assert (len(documents), corpus.val_docs) == (17, 1)
    assert "".join(documents).encode() == path.read_bytes()
    for text in documents[:-1]:
        assert text.endswith("\n\n") and text.encode().find(b"\n\n", text_module.TEXT_PIECE_BYTES) == len(text) - 2
    assert list(tmp_path.iterdir()) == []


def test_another_text_is_not_taken_for_tiny_shakespeare(tmp_path):
    path = tmp_path / "tinyshakespeare.txt"
    path.write_text("To be")
    # Where the download is kept, too.
    for source in (str(path), "tiny"):
        with pytest.raises(Error, match="expected SHA-256 86c4e6aa.*, got [0-9a-f]{64} for .*tinyshakespeare.txt"):
            Shakespeare(source).resolve(Folder(tmp_path))
    with pytest.raises(Error, match="expected tiny, plays or a path for source, got 'hamlet'"):
        Shakespeare("hamlet").resolve(Folder(tmp_path))


def test_tiny_shakespeare_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(shakespeare, "TINY_SHAKESPEARE_URL", "http://127.0.0.1:9/input.txt")
    with pytest.raises(Error, match=r"got <urlopen error .*; give a local copy with --source FILE, or .* plays"):
        Shakespeare("tiny").resolve(Folder(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_each_play_is_one_document(tmp_path):
    corpus = Plays().resolve(Folder(tmp_path))
    documents = [read_run(source.open()) for source in corpus.sources]
    assert [[len(text.encode()) for text in texts] for texts in documents] == [
        [source.location.size] for source in corpus.sources
    ]
    dataset = shard_plays(tmp_path / "out", docs_per_shard=10)
    assert [[entry.documents for entry in dataset.shards(split)] for split in ("val", "train")] == [
        [2],
        [10, 10, 10, 6],
    ]
