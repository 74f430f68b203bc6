"""Scoring multiple-choice examples: which ending does the model find likeliest?

Four scores, because "accuracy" alone says little: endings compared by the sum of their log-probabilities (`acc`),
and by that sum per token, per character (what EleutherAI's harness calls acc_norm) and per byte.

What a model reads is in questions.py.
"""

from collections.abc import Callable, Iterable
from typing import TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from ..dataset import prompts
from ..distributed import World
from ..errors import Error
from ..model import GPT2
from ..rows import Scores
from ..tokenizer import END_OF_TEXT
from .inference import check_vocabulary, inference, not_finite, target_log_probabilities
from .questions import CONTEXT, NORMS, PADDING, Packed, Questions

SCORES = ("acc", *(f"acc_norm_{norm}" for norm in NORMS))
BATCH_TOKENS, BATCH_TOKENS_CPU = 8192, 1024  # padded tokens of one forward pass; a CPU's caches are small
PADDING_SHARE = 1 / 16  # of a batch, at most: a small set has no two rows of one length


class Comparison(TypedDict):
    """Two models' accuracies on the same examples: the second's less the first's."""

    difference: float
    difference_stderr: float | None
    only_first_right: int
    only_second_right: int
    p: float


def score(
    model: GPT2,
    questions: Questions,
    world: World | None = None,
    dtype: str = "float32",
    progress: Callable[[int], None] = lambda endings: None,
    each: Callable[[list[list[Packed]]], Iterable[list[Packed]]] = iter,
) -> Scores:
    """Score a model on a set: acc and acc_norm by tokens, characters and bytes, each with its standard error.

    world: the ranks that share the work, None for this process alone on the model's device. dtype: of the matrix
    products, "float32" or "bfloat16". each: how a rank goes through its batches, to the end.

    Raises Error for a model of another vocabulary, or of fewer positions than the questions were made for, and
    NotFinite for one whose numbers are not finite.

    >>> from gpt2wds import Dataset, load_questions, load_weights, score
    >>> model = load_weights("runs/gpt2-124m/checkpoints/step-0019073")  # doctest: +SKIP
    >>> questions = load_questions(Dataset("data/hellaswag"), "lm-eval", model.config.n_positions)  # doctest: +SKIP
    >>> score(model, questions)["acc_norm_characters"]  # doctest: +SKIP
    0.31...
    """
    if not isinstance(model, GPT2):
        raise Error(f"model: expected a GPT2, such as load_weights('runs/…') gives, got {repr(model)[:80]}")
    _expect_questions(questions)
    if not isinstance(world, World | None):
        raise Error(f"world: expected a World, or None for this process alone, got {repr(world)[:80]}")
    world = world or World(0, 1, next(model.parameters()).device)
    return scores(questions, ending_log_probabilities(model, questions, world, dtype, progress, each))


def ending_log_probabilities(
    model: GPT2,
    questions: Questions,
    world: World,
    dtype: str,
    progress: Callable[[int], None] = lambda endings: None,
    each: Callable[[list[list[Packed]]], Iterable[list[Packed]]] = iter,
) -> np.ndarray:
    """(E, 4) sums of the endings' log-probabilities in nats, the same on every rank.

    Rows go in order of their length and are padded on the right, which nobody sees; only positions that predict
    something go through the head. Batches are cut before they are dealt out, so the ranks compute what one would, to
    the last digit; `progress` hears of the endings that this rank has done.
    Raises Error for a model with another vocabulary than GPT-2's or fewer positions than the questions were made for,
    and NotFinite for one whose numbers are not finite.
    """
    check_vocabulary(model)
    longest = max((int(row.positions.max()) + 1 for row in questions.rows), default=0)
    if longest > model.config.n_positions:
        raise Error(
            f"questions: expected at most {model.config.n_positions} positions, the model's, got {longest}; "
            "make them with load_questions(dataset, mode, model.config.n_positions)"
        )
    log_p, owners = [torch.zeros(0, device=world.device)], [np.zeros(0, dtype=np.int64)]
    with inference(world.device, dtype):
        for batch in each(batches(questions.rows, world.device)[world.rank :: world.world_size]):
            log_p.append(_batch_log_probabilities(model, batch, world.device))
            owners += [row.owners for row in batch]
            progress(sum(len(np.unique(row.owners)) for row in batch))
    # Added up here and in order: the same digits every time, which a GPU's index_add_ does not promise.
    here = torch.cat(log_p).double().cpu() if world.device.type != "mps" else torch.cat(log_p).cpu().double()
    sums = np.bincount(np.concatenate(owners), here.numpy(), minlength=prompts.ENDINGS * len(questions.labels))
    total = world.sum(torch.from_numpy(sums).float().to(world.device))
    summed = total.cpu().numpy().astype(np.float64).reshape(-1, prompts.ENDINGS)
    if not np.isfinite(summed).all():
        raise not_finite(model, "log-probabilities of endings", dtype)
    return summed


def scores(questions: Questions, sums: np.ndarray) -> Scores:
    """The result of (E, 4) sums of the endings' log-probabilities, of whatever model gave them.

    Four accuracies with their standard errors, and what was scored. Raises Error for an array of another shape or NaN.
    """
    _expect_questions(questions)
    shape = len(questions.labels), prompts.ENDINGS
    if not isinstance(sums, np.ndarray) or sums.shape != shape:
        got = f"an array of {sums.shape}" if isinstance(sums, np.ndarray) else repr(sums)[:80]
        raise Error(f"sums: expected an array of {shape}, of each example its four endings, got {got}")
    if np.isnan(sums).any():
        raise Error("sums: expected log-probabilities, got some that are no numbers (NaN); look at the model")
    result: dict[str, object] = {"name": questions.name, "mode": questions.mode, "examples": len(questions.labels)}
    for score, right in _right(questions, sums).items():
        result[score] = float(right.mean())
        result[f"{score}_stderr"] = _standard_error(right)
    result["truncated"] = questions.truncated
    return cast(Scores, result)


def _expect_questions(value: object) -> None:
    if not isinstance(value, Questions):
        raise Error(f"questions: expected what load_questions gives, got {repr(value)[:80]}")


def compare(questions: Questions, first: np.ndarray, second: np.ndarray) -> dict[str, Comparison]:
    """Two models' (E, 4) sums on the same examples, by score: who is right more often, and could that be chance?

    `difference` is the second's accuracy minus the first's, `p` McNemar's exact test: the probability of so uneven a
    split of the examples on which just one is right, if either were equally likely to be that one.
    """
    rights = zip(_right(questions, first).items(), _right(questions, second).values(), strict=True)
    result: dict[str, Comparison] = {}
    for (score, a), b in rights:
        only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
        gain = b.astype(np.float64) - a
        result[score] = {
            "difference": float(gain.mean()),
            "difference_stderr": _standard_error(gain),
            "only_first_right": only_first,
            "only_second_right": only_second,
            "p": mcnemar(only_first, only_second),
        }
    return result


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p of two counts of examples.

    >>> mcnemar(1, 5)  # 2 × (1 + 6) / 2⁶
    0.21875
    >>> mcnemar(3, 3)
    1.0
    """
    n = only_first + only_second
    term = tail = 1  # ways to choose k of n; and k or fewer
    for k in range(min(only_first, only_second)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def predictions(questions: Questions, sums: np.ndarray) -> dict[str, np.ndarray]:
    """Chosen ending of each example, (E,), by score; the first of equals."""
    chosen = {"acc": sums.argmax(axis=1)}
    # An ending that a mode leaves without any text has no mean: -inf, never chosen, as in the harness.
    with np.errstate(divide="ignore"):
        for norm in NORMS:
            chosen[f"acc_norm_{norm}"] = (sums / questions.lengths[norm]).argmax(axis=1)
    return chosen


def per_example(questions: Questions, sums: np.ndarray) -> list[dict[str, object]]:
    """One record per example: everything that the scores are made of."""
    predicted = predictions(questions, sums)
    return [
        {
            "ind": questions.inds[i],
            "label": int(questions.labels[i]),
            "log_probabilities": sums[i].tolist(),
            **{norm: questions.lengths[norm][i].tolist() for norm in NORMS},
            "predicted": {score: int(chosen[i]) for score, chosen in predicted.items()},
        }
        for i in range(len(questions.labels))
    ]


def padding_share(questions: Questions, device: torch.device) -> float:
    """Share of padding in all that the forward passes read."""
    read = sum(len(batch) * len(batch[-1].tokens) for batch in batches(questions.rows, device))
    return 1 - sum(len(row.tokens) for row in questions.rows) / read


def batches(rows: list[Packed], device: torch.device) -> list[list[Packed]]:
    """Rows in ascending length, in batches of at most BATCH_TOKENS tokens and PADDING_SHARE padding, or one row."""
    most = BATCH_TOKENS_CPU if device.type == "cpu" else BATCH_TOKENS
    found: list[list[Packed]] = []
    tokens = 0  # of the last batch, without padding
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        tokens += len(row.tokens)
        padded = (len(found[-1]) + 1) * len(row.tokens) if found else 0
        if found and padded <= most and padded - tokens <= PADDING_SHARE * padded:
            found[-1].append(row)
        else:
            found.append([row])
            tokens = len(row.tokens)
    return found


def _batch_log_probabilities(model: GPT2, batch: list[Packed], device: torch.device) -> Tensor:
    """(P,) log-probabilities in nats of the targets of all rows, B of them, the last being the longest."""
    longest = len(batch[-1].tokens)
    tokens = np.full((len(batch), longest), END_OF_TEXT, dtype=np.int64)
    positions, segments = np.zeros_like(tokens), np.full_like(tokens, PADDING)
    for i, row in enumerate(batch):
        tokens[i, : len(row.tokens)] = row.tokens
        positions[i, : len(row.tokens)] = row.positions
        segments[i, : len(row.tokens)] = row.segments
    predictors = np.concatenate([i * longest + row.predictors for i, row in enumerate(batch)])
    targets = np.concatenate([row.targets for row in batch]).astype(np.int64)

    segment = torch.from_numpy(segments).to(device)
    # (B, 1, T, T): a position sees what comes before it in the context and in its own ending.
    visible = (segment[:, None, :] == CONTEXT) | (segment[:, None, :] == segment[:, :, None])
    visible = visible.tril()[:, None]
    places = torch.from_numpy(positions).to(device)
    hidden, _ = model.hidden(torch.from_numpy(tokens).to(device), positions=places, visible=visible)
    hidden = hidden.flatten(0, 1)[torch.from_numpy(predictors).to(device)]  # (P, C)
    return target_log_probabilities(model, hidden, torch.from_numpy(targets).to(device))


def _right(questions: Questions, sums: np.ndarray) -> dict[str, np.ndarray]:
    """(E,) of bool by score: whether the chosen ending is the true one."""
    return {score: chosen == questions.labels for score, chosen in predictions(questions, sums).items()}


def _standard_error(values: np.ndarray) -> float | None:
    """Of the mean of (E,) values; None for a single one, which says nothing of it."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
