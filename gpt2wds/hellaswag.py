"""Scoring multiple-choice examples: which ending does the model find likeliest?

Four scores, because "accuracy" alone says little: endings compared by the sum of their log-probabilities (`acc`),
and by that sum per token, per character (what EleutherAI's harness calls acc_norm) and per byte.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import prompts
from .dataset import MULTIPLE_CHOICE, Dataset
from .distributed import World
from .model import GPT2, autocast
from .tokenizer import END_OF_TEXT

NORMS = ("tokens", "characters", "bytes")
BATCH_TOKENS = 8192  # padded tokens of one forward pass
HEAD_POSITIONS = 1024  # positions whose logits exist at a time: 200 MB in float32


@dataclass(frozen=True)
class Questions:
    """A set made ready for one prompt mode. E examples give 4 E rows, those of an example together."""

    name: str
    mode: str
    rows: list[np.ndarray]  # context and ending, at most n_positions + 1 tokens
    ending_tokens: np.ndarray  # (4 E,) how many of a row's last tokens are its ending
    lengths: dict[str, np.ndarray]  # by norm: (E, 4)
    labels: np.ndarray  # (E,)
    inds: list[int]
    truncated: int  # rows that lost tokens on the left


def load_questions(dataset: Dataset, mode: str, n_positions: int, limit: int | None = None) -> Questions:
    """Read a multiple-choice dataset. Raises ValueError for another kind of dataset or an unknown mode."""
    if dataset.kind != MULTIPLE_CHOICE:
        raise ValueError(
            f"dataset {dataset.path}: expected multiple-choice examples, got {dataset.kind}; "
            "make some with gpt2wds-shard hellaswag"
        )
    if mode not in prompts.MODES:
        raise ValueError(f"mode: expected {' or '.join(prompts.MODES)}, got {mode!r}")
    rows, ending_tokens, labels, inds, truncated = [], [], [], [], 0
    lengths: dict[str, list[list[int]]] = {norm: [] for norm in NORMS}
    for example in dataset.examples("val"):
        if limit is not None and len(labels) >= limit:
            break
        context, endings = prompts.split_prompt(example["prompts"][mode])
        if not len(context):
            context = np.array([END_OF_TEXT], dtype=np.uint16)
        for ending in endings:
            if not 0 < len(ending) <= n_positions:
                raise ValueError(
                    f"dataset {dataset.path}: example {example['ind']} has an ending of {len(ending)} tokens, "
                    f"expected 1 to {n_positions}, the model's n_positions"
                )
            row = np.concatenate((context, ending))
            truncated += len(row) > n_positions + 1
            rows.append(row[-(n_positions + 1) :])
            ending_tokens.append(len(ending))
        texts = prompts.ending_lengths(example, mode)
        lengths["tokens"].append([len(ending) for ending in endings])
        lengths["characters"].append([max(1, characters) for characters, _ in texts])
        lengths["bytes"].append([max(1, size) for _, size in texts])
        labels.append(example["label"])
        inds.append(example["ind"])
    arrays = {norm: np.array(values) for norm, values in lengths.items()}
    return Questions(dataset.corpus, mode, rows, np.array(ending_tokens), arrays, np.array(labels), inds, truncated)


@torch.no_grad()
def ending_log_probabilities(model: GPT2, questions: Questions, world: World, dtype: str) -> np.ndarray:
    """(E, 4) sums of the endings' log-probabilities in nats, the same on every rank.

    Rows are sorted by length and padded on the right, which is exact under causal attention; only the positions
    that predict an ending go through the head.
    """
    order = np.argsort([len(row) for row in questions.rows], kind="stable")[world.rank :: world.world_size]
    sums = torch.zeros(len(questions.rows), device=world.device)
    for batch in _batches(order, questions.rows):
        longest = len(questions.rows[batch[-1]]) - 1
        tokens = np.full((len(batch), longest + 1), END_OF_TEXT, dtype=np.int64)
        predicts = np.zeros((len(batch), longest), dtype=bool)
        for i, row in enumerate(batch):
            length = len(questions.rows[row])
            tokens[i, :length] = questions.rows[row]
            predicts[i, length - 1 - questions.ending_tokens[row] : length - 1] = True
        inputs = torch.from_numpy(tokens).to(world.device)  # (B, T + 1)
        mask = torch.from_numpy(predicts).to(world.device)  # (B, T)
        with autocast(world.device, dtype):
            hidden = model.hidden(inputs[:, :-1])[0][mask]  # (positions, C)
            targets = inputs[:, 1:][mask]
            log_p = torch.cat(
                [
                    torch.log_softmax(model.logits(h).float(), dim=-1).gather(1, t[:, None])[:, 0]
                    for h, t in zip(hidden.split(HEAD_POSITIONS), targets.split(HEAD_POSITIONS), strict=True)
                ]
            )
        owners = torch.from_numpy(np.repeat(batch, questions.ending_tokens[batch])).to(world.device)
        sums.index_add_(0, owners, log_p)
    return world.sum(sums).cpu().numpy().reshape(-1, prompts.ENDINGS)


def scores(questions: Questions, sums: np.ndarray) -> dict[str, Any]:
    """The result as it is printed and logged: four accuracies with their standard errors, and what was scored."""
    predicted = predictions(questions, sums)
    result: dict[str, Any] = {"name": questions.name, "mode": questions.mode, "examples": len(questions.labels)}
    for score, chosen in predicted.items():
        right = (chosen == questions.labels).astype(np.float64)
        result[score] = float(right.mean())
        result[f"{score}_stderr"] = float(right.std(ddof=1) / np.sqrt(len(right))) if len(right) > 1 else None
    result["truncated"] = questions.truncated
    return result


def predictions(questions: Questions, sums: np.ndarray) -> dict[str, np.ndarray]:
    """Chosen ending of each example, (E,), by score."""
    chosen = {"acc": sums.argmax(axis=1)}
    for norm in NORMS:
        chosen[f"acc_norm_{norm}"] = (sums / questions.lengths[norm]).argmax(axis=1)
    return chosen


def per_example(questions: Questions, sums: np.ndarray) -> list[dict[str, Any]]:
    """One record per example: everything that the scores are made of."""
    predicted = predictions(questions, sums)
    return [
        {
            "ind": questions.inds[i],
            "label": int(questions.labels[i]),
            "log_probabilities": [float(value) for value in sums[i]],
            **{norm: questions.lengths[norm][i].tolist() for norm in NORMS},
            "predicted": {score: int(chosen[i]) for score, chosen in predicted.items()},
        }
        for i in range(len(questions.labels))
    ]


def _batches(order: np.ndarray, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Cut rows in ascending length into batches of at most BATCH_TOKENS padded tokens."""
    batches, start = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or (i + 1 - start) * (len(rows[order[i]]) - 1) > BATCH_TOKENS:
            batches.append(order[start:i])
            start = i
    return batches
