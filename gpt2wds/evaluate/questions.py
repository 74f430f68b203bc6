"""Multiple-choice examples → what a model reads at once, and what it must predict.

The four endings of an example have one context, so the model reads it once: a row is the context and behind it the
endings, each of which counts its positions from the context's end and sees the context and itself, not the others.
"""

from dataclasses import dataclass, field

import numpy as np

from ..arguments import whole
from ..dataset import prompts
from ..dataset.directory import Dataset, expect_dataset
from ..dataset.manifest import MULTIPLE_CHOICE
from ..errors import Error
from ..tokenizer import END_OF_TEXT

NORMS = ("tokens", "characters", "bytes")
CONTEXT, PADDING = -1, -2  # segments of a row that are no ending


@dataclass(frozen=True)
class Packed:
    """What the model reads at once: T tokens, a context and one or more endings without their last tokens.

    The P tokens of those endings are what is predicted: `targets[i]` by the row's position `predictors[i]`, for the
    ending `owners[i]` of the set (ending k of example e is 4 e + k).
    """

    tokens: np.ndarray  # (T,)
    positions: np.ndarray  # (T,)
    segments: np.ndarray  # (T,) CONTEXT, or the ending's number in this row
    predictors: np.ndarray  # (P,)
    targets: np.ndarray  # (P,)
    owners: np.ndarray  # (P,)


@dataclass(frozen=True)
class Questions:
    """A set of E examples made ready for one prompt mode.

    texts and tokens are for models that are not ours: of each example the context and its four endings, as the mode
    shows them.
    """

    name: str
    mode: str
    rows: list[Packed]
    lengths: dict[str, np.ndarray]  # by norm: (E, 4)
    labels: np.ndarray  # (E,)
    inds: list[int]
    truncated: int  # endings whose context lost tokens on the left, to fit the model's positions
    texts: list[tuple[str, list[str]]] = field(default_factory=list)
    tokens: list[tuple[np.ndarray, list[np.ndarray]]] = field(default_factory=list)  # GPT-2's: (T,) each


def load_questions(dataset: Dataset, mode: str, n_positions: int, limit: int | None = None) -> Questions:
    """Read a multiple-choice dataset, or its first `limit` examples.

    Raises Error for another kind of dataset, an unknown mode, and an ending that the model cannot hold.
    """
    whole("n_positions", n_positions, 1)
    if limit is not None:
        whole("limit", limit, 1)
    expect_dataset(dataset)
    if dataset.kind != MULTIPLE_CHOICE:
        raise Error(
            f"dataset {dataset.path}: expected multiple-choice examples, got {dataset.kind}; "
            "make some with gpt2wds-shard hellaswag"
        )
    if mode not in prompts.MODES:
        raise Error(f"mode: expected {' or '.join(prompts.MODES)}, got {mode!r}")
    rows: list[Packed] = []
    labels: list[int] = []
    inds: list[int] = []
    truncated = 0
    all_texts: list[tuple[str, list[str]]] = []
    all_tokens: list[tuple[np.ndarray, list[np.ndarray]]] = []
    for example in dataset.examples("val"):
        if limit is not None and len(labels) >= limit:
            break
        context, endings = prompts.split_prompt(example["prompts"][mode])
        all_texts.append(prompts.prompt_texts(example, mode))
        all_tokens.append((context, endings))
        if not len(context):
            context = np.array([END_OF_TEXT], dtype=np.uint16)
        longest = max(map(len, endings))
        if longest > n_positions:
            raise Error(
                f"dataset {dataset.path}: example {example['ind']} has an ending of {longest} tokens, expected at most "
                f"{n_positions}, the model's n_positions; leave the example out, or score a model that holds it"
            )
        truncated += sum(len(context) + len(ending) > n_positions + 1 for ending in endings)
        rows += _rows(context, endings, prompts.ENDINGS * len(labels), n_positions)
        labels.append(example["label"])
        inds.append(example["ind"])
    lengths = {
        "tokens": [[len(ending) for ending in endings] for _, endings in all_tokens],
        "characters": [[len(text) for text in endings] for _, endings in all_texts],
        "bytes": [[len(text.encode()) for text in endings] for _, endings in all_texts],
    }
    arrays = {norm: np.array(values) for norm, values in lengths.items()}
    label_array = np.array(labels)
    return Questions(dataset.corpus, mode, rows, arrays, label_array, inds, truncated, all_texts, all_tokens)


def _rows(context: np.ndarray, endings: list[np.ndarray], first_owner: int, n_positions: int) -> list[Packed]:
    """One row for an example, or one for each ending where they leave the context different room."""
    contexts = [context[-(n_positions + 1 - len(ending)) :] for ending in endings]
    if all(len(cut) == len(context) for cut in contexts):
        return [_row(context, endings, first_owner)]
    return [_row(cut, [ending], first_owner + k) for k, (cut, ending) in enumerate(zip(contexts, endings, strict=True))]


def _row(context: np.ndarray, endings: list[np.ndarray], first_owner: int) -> Packed:
    tokens, positions, segments = [context], [np.arange(len(context))], [np.full(len(context), CONTEXT)]
    predictors, at = [], len(context)
    for k, ending in enumerate(endings):
        read = len(ending) - 1  # nothing is predicted from an ending's last token
        tokens.append(ending[:read])
        positions.append(len(context) + np.arange(read))
        segments.append(np.full(read, k))
        predictors += [np.array([len(context) - 1]), at + np.arange(read)]
        at += read
    return Packed(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions),
        segments=np.concatenate(segments),
        predictors=np.concatenate(predictors),
        targets=np.concatenate(endings),
        owners=np.repeat(first_owner + np.arange(len(endings)), [len(ending) for ending in endings]),
    )
