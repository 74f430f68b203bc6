"""GPT-2 from text: WebDataset shards, an exact loader, a compact trainer, HellaSwag.

    from gpt2wds import Dataset, Files, StepBatches, make_dataset

    dataset = make_dataset("data/mine", Files(("texts/*.jsonl.zst",)))
    for sequences in StepBatches(dataset, seq_len=1024, sequences_per_step=512, seed=1337):
        ...  # (512, 1025) uint16

The names in `__all__` are what this package promises. Each is imported when it is first used, so that a program that
only makes shards never loads torch. What is in the modules beside them may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .corpus.corpora import Files, HubDataset, MultipleChoice
    from .corpus.cutting import Cut
    from .corpus.ray_executor import OnRay
    from .corpus.shakespeare import Plays
    from .corpus.sharding import make_dataset
    from .dataset.directory import Dataset
    from .dataset.loader import StepBatches
    from .dataset.validation import validation_sequences
    from .errors import Error
    from .evaluate.hellaswag import score, scores
    from .evaluate.questions import Questions, load_questions
    from .model import GPT2, GPT2Config
    from .tokenizer import Tokenizer, load_tokenizer
    from .train.weights import load_weights

__all__ = [
    "GPT2",
    "Cut",
    "Dataset",
    "Error",
    "Files",
    "GPT2Config",
    "HubDataset",
    "MultipleChoice",
    "OnRay",
    "Plays",
    "Questions",
    "StepBatches",
    "Tokenizer",
    "load_questions",
    "load_tokenizer",
    "load_weights",
    "make_dataset",
    "score",
    "scores",
    "validation_sequences",
]

_HOMES = {
    "corpus.corpora": ("Files", "HubDataset", "MultipleChoice"),
    "corpus.cutting": ("Cut",),
    "corpus.ray_executor": ("OnRay",),
    "corpus.shakespeare": ("Plays",),
    "corpus.sharding": ("make_dataset",),
    "dataset.directory": ("Dataset",),
    "dataset.loader": ("StepBatches",),
    "dataset.validation": ("validation_sequences",),
    "errors": ("Error",),
    "evaluate.hellaswag": ("score", "scores"),
    "evaluate.questions": ("Questions", "load_questions"),
    "model": ("GPT2", "GPT2Config"),
    "tokenizer": ("Tokenizer", "load_tokenizer"),
    "train.weights": ("load_weights",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f".{home}", __name__), name)
            globals()[name] = value  # next time without this function
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "__doc__", "__all__"])
