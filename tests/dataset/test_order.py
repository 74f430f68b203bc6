"""The global order against a slow, direct reading of its definition."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds.dataset.order import EpochOrder, Slots, even_share, permutation

# Known values, made once by a Philox4x64-10 written in plain Python: the order can never drift unnoticed.
LARGE = "ed4fdb84c3d847d724818e1645a6d7da4759a5a84ea02eb7b5cd51ad3f96ee2d"


def reference_order(block_tokens: Sequence[int], seq_len: int, seed: int, epoch: int) -> list[tuple[int, int]]:
    """All sequences of an epoch as (block, sequence within the block), straight from the definition."""

    def shuffled(n: int, counter: list[int]) -> list[int]:
        words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64), counter=counter).random_raw(n).tolist()
        keys = sorted((word >> 32 << 32) + i for i, word in enumerate(words))
        return [key % 2**32 for key in keys]

    blocks = shuffled(len(block_tokens), [0, 0, 0, 0])
    order = []
    for window, first in enumerate(range(0, len(blocks), 8)):
        inside = [(b, i) for b in blocks[first : first + 8] for i in range((block_tokens[b] - 1) // seq_len)]
        order += [inside[i] for i in shuffled(len(inside), [0, 0, 1, window])]
    return order


def reference_steps(sequences: list[Any], per_step: int, taken: Sequence[tuple[int, int]] = ()) -> list[list[Any]]:
    """All steps of `per_step` sequences that are left when (sequences per step, steps) were taken."""
    goes_on = bool(taken) and taken[-1][0] == per_step
    for size, steps in taken[:-1] if goes_on else taken:
        stretches, leftover = _slots(sequences, size)
        sequences = [s for stretch in stretches for s in stretch[steps:]] + leftover
    stretches, _ = _slots(sequences, per_step)
    return [list(step) for step in zip(*stretches, strict=True)][taken[-1][1] if goes_on else 0 :]


def _slots(sequences: list[Any], slots: int) -> tuple[list[list[Any]], list[Any]]:
    length = len(sequences) // slots
    return [sequences[g * length : (g + 1) * length] for g in range(slots)], sequences[slots * length :]


def steps_of(order: EpochOrder, slots: Slots, per_step: int) -> list[list[tuple[int, int]]]:
    """What the module under test says: the sequences of every step from here on."""
    columns = []
    for slot in range(per_step):
        column: list[tuple[int, int]] = []
        for start, length in slots.ranges(slot):
            windows, firsts = order.windows(start, length)
            ends = [*firsts[1:], start + length]
            for window, first, end in zip(windows, firsts, ends, strict=True):
                blocks, places = order.window_sequences(window, first, end)
                column += zip(blocks.tolist(), places.tolist(), strict=True)
        columns.append(column)
    assert {len(column) for column in columns} == {slots.steps}
    return [list(step) for step in zip(*columns, strict=True)]


blocks_of_tokens = st.lists(st.integers(1, 400), min_size=1, max_size=40)
seeds = st.integers(0, 2**64 - 1)
step_sizes = st.integers(1, 20)


@settings(deadline=None)
@given(blocks_of_tokens, st.integers(1, 64), seeds, st.integers(0, 1000), step_sizes)
def test_an_epoch_is_the_definitions_epoch(
    block_tokens: list[int], seq_len: int, seed: int, epoch: int, per_step: int
) -> None:
    order = EpochOrder(np.array(block_tokens, dtype=np.uint32), seq_len=seq_len, seed=seed, epoch=epoch)
    expected = reference_order(block_tokens, seq_len, seed, epoch)
    slots = Slots(order.sequences, per_step)
    steps = steps_of(order, slots, per_step)
    assert order.sequences == len(expected)
    assert steps == reference_steps(expected, per_step)
    given_out = [sequence for step in steps for sequence in step]
    assert len(steps) == order.sequences // per_step
    assert len(set(given_out)) == len(given_out)
    assert slots.left_out == order.sequences - len(given_out) < per_step


@settings(deadline=None)
@given(blocks_of_tokens, st.integers(1, 64), seeds, st.lists(step_sizes, min_size=2, max_size=5), st.data())
def test_the_steps_size_may_change_in_mid_epoch(
    block_tokens: list[int], seq_len: int, seed: int, sizes: list[int], data: st.DataObject
) -> None:
    order = EpochOrder(np.array(block_tokens, dtype=np.uint32), seq_len=seq_len, seed=seed, epoch=3)
    everything = reference_order(block_tokens, seq_len, seed, 3)
    taken: list[tuple[int, int]] = []
    used: list[tuple[int, int]] = []
    for size in sizes:
        slots = Slots(order.sequences, size, tuple(taken))
        steps = steps_of(order, slots, size)
        rest = order.sequences - len(used)
        assert steps == reference_steps(everything, size, taken)
        assert len(steps) == rest // size
        assert slots.left_out == rest % size
        now = data.draw(st.integers(0, len(steps)), label=f"steps of {size}")
        used += [sequence for step in steps[:now] for sequence in step]
        same = taken and taken[-1][0] == size
        taken = [*taken[:-1], (size, taken[-1][1] + now)] if same else [*taken, (size, now)]
    used += [sequence for step in steps[now:] for sequence in step]
    assert len(set(used)) == len(used)
    assert set(used) <= set(everything)
    assert len(everything) - len(used) < sizes[-1]


def test_windows_give_only_those_that_hold_something() -> None:
    # 8 blocks of one token are a window without a sequence; it must not be visited, whichever it becomes.
    tokens = np.array([1] * 17 + [101] * 7, dtype=np.uint32)
    for seed in range(20):
        order = EpochOrder(tokens, seq_len=10, seed=seed, epoch=0)
        windows, firsts = order.windows(0, 70)
        found = [len(order.window_sequences(w, f, f + 1)[0]) for w, f in zip(windows, firsts, strict=True)]
        assert found == [1] * len(windows)
        assert steps_of(order, Slots(70, 7), 7) == reference_steps(reference_order(tokens.tolist(), 10, seed, 0), 7)


@pytest.mark.parametrize(
    ("n", "seed", "epoch", "counter", "expected"),
    [
        (12, 1337, 0, (0, 0, 0, 0), [2, 4, 5, 6, 9, 7, 10, 11, 3, 8, 0, 1]),
        (12, 1337, 1, (0, 0, 0, 0), [8, 3, 7, 9, 0, 1, 6, 5, 11, 10, 2, 4]),
        (12, 1337, 0, (0, 0, 1, 0), [1, 2, 7, 9, 10, 8, 5, 3, 4, 6, 0, 11]),
        (12, 1337, 0, (0, 0, 1, 3), [1, 9, 2, 3, 7, 10, 0, 6, 4, 5, 11, 8]),
        (12, 2**64 - 1, 7, (0, 0, 0, 0), [3, 0, 7, 10, 4, 6, 9, 8, 1, 11, 5, 2]),
    ],
)
def test_the_order_never_changes(
    n: int, seed: int, epoch: int, counter: tuple[int, int, int, int], expected: list[int]
) -> None:
    assert permutation(n, seed, epoch, counter).tolist() == expected


def test_a_large_permutation_never_changes() -> None:
    order = permutation(100_000, 1337, 2)
    assert order.dtype == np.uint32
    assert sorted(order.tolist()) == list(range(100_000))
    assert hashlib.sha256(order.astype("<u4").tobytes()).hexdigest() == LARGE


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@settings(deadline=None)
@given(st.integers(1, 600), st.integers(1, 40))
def test_ranks_share_the_slots(slots: int, world_size: int) -> None:
    shares = [even_share(slots, rank, world_size) for rank in range(world_size)]
    assert [slot for share in shares for slot in share] == list(range(slots))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [share.start for share in shares] == [rank * slots // world_size for rank in range(world_size)]
