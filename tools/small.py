"""What attacks and loads work on: a small corpus, a run's configuration; and what is in a directory in the end."""

import hashlib
import json
import random
import subprocess
from pathlib import Path

from gpt2wds import Files

SMALL_RUN = """
[run]
device = "cpu"
[data]
seq_len = 32
[model]
n_layer = 1
n_head = 1
n_embd = 8
[train]
tokens_per_step = 128
micro_batch_sequences = 4
max_steps = 4
warmup_steps = 2
dtype = "float32"
compile = false
[eval]
every_steps = 2
val_tokens = 256
sample_prompts = ["Hi"]
sample_tokens = 2
[checkpoint]
every_steps = 1
keep = 2
"""


def corpus(folder: Path, documents: int, words: int) -> Path:
    """Two files of JSON lines of random words, one compressed."""
    folder.mkdir()
    chance = random.Random(3)
    vocabulary = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(3000)]
    for name in ("a.jsonl", "b.jsonl"):
        texts = [" ".join(chance.choices(vocabulary, k=words)) for _ in range(documents)]
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    subprocess.run(["gzip", folder / "b.jsonl"], check=True)
    return folder


def files_of(corpus: Path) -> Files:
    return Files((str(corpus / "a.jsonl"), str(corpus / "b.jsonl.gz")))


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder: strays would be seen, too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
