"""Several datasets in one step, against the definition: end to end, the steps of each alone with its slots."""

import json
import math
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader import expected_steps, shard_texts, state_after

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.loader import StepBatches
from gpt2wds.dataset.mixture import divide, identity, portions
from gpt2wds.errors import Error

SEQ_LEN, PER_STEP, SEED = 8, 7, 1337  # what the definition of an epoch in test_loader has for a seed
WEIGHTS = (4, 0.5, 2)  # of 7 slots 4.31, 0.54, 2.15: the second has the one that is left, so 4, 1, 2

Mixture = list[tuple[Dataset, float]]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Datasets of short blocks, of about 40, 8 and 12 sequences, each sequence another text."""
    folder = tmp_path_factory.mktemp("three")
    made = []
    for name, documents in (("a", 20), ("b", 4), ("c", 6)):
        texts = [" ".join(f"{name}{n}" for n in range(7 * i, 7 * i + 7)) for i in range(documents)]
        made.append(shard_texts(folder / name, texts, val_docs=0, docs_per_shard=2))
    return made


@pytest.fixture(scope="module")
def mixture(three: list[Dataset]) -> Mixture:
    return list(zip(three, WEIGHTS, strict=True))


def load(data: Dataset | Mixture, state: dict[str, Any] | None = None, **options: Any) -> StepBatches:
    batches = StepBatches(data, **{"seq_len": SEQ_LEN, "sequences_per_step": PER_STEP, "seed": SEED} | options)
    if state is not None:
        batches.load_state_dict(state)
    return batches


def steps_alone(dataset: Dataset, slots: int, count: int) -> np.ndarray:
    """(count, slots, seq_len + 1): epoch after epoch of a dataset alone, from the shards' own tokens."""
    found: list[np.ndarray] = []
    for epoch in range(1000):
        if len(found) >= count:
            return np.stack(found[:count])
        found += list(expected_steps(dataset, epoch, seq_len=SEQ_LEN, per_step=slots))
    raise AssertionError(f"no {count} steps in a thousand epochs")


def mixed_steps(three: list[Dataset], counts: list[int], steps: int) -> np.ndarray:
    return np.concatenate([steps_alone(d, n, steps) for d, n in zip(three, counts, strict=True)], axis=1)


@settings(deadline=None)
@given(st.integers(1, 600), st.lists(st.integers(1, 10**6) | st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_slots_are_divided_by_the_largest_remainder(slots: int, weights: list[float]) -> None:
    counts = divide(slots, weights)
    exact = [Fraction(str(weight)) for weight in weights]
    quotas = [slots * weight / sum(exact) for weight in exact]
    assert sum(counts) == slots
    up = {i: count - math.floor(quota) for i, (count, quota) in enumerate(zip(counts, quotas, strict=True))}
    assert set(up.values()) <= {0, 1}
    remainder = {i: quota - math.floor(quota) for i, quota in enumerate(quotas)}
    for i in up:
        for j in up:
            if up[i] > up[j]:  # i has one of those that were left, and j has none
                assert (remainder[i], -i) > (remainder[j], -j)


def test_a_weight_is_the_decimal_number_that_it_is_written_as() -> None:
    assert divide(6, [0.1, 0.2, 0.3]) == [1, 2, 3]
    assert divide(3, [0.1, 0.2, 0.3]) == [1, 1, 1]  # quotas of 0.5, 1 and 1.5: of equal remainders the first
    assert divide(2, [0.3, 0.1]) == divide(2, [3, 1]) == [2, 0]  # as binary numbers they would not be equal remainders
    assert divide(512, [3, 1]) == divide(512, [0.75, 0.25]) == [384, 128]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("world_size", "num_workers"), [(1, 0), (2, 0), (3, 0), (4, 0), (7, 0), (1, 1), (1, 2), (2, 2), (4, 2)]
)
def test_a_step_is_that_of_each_alone(
    three: list[Dataset], mixture: Mixture, world_size: int, num_workers: int
) -> None:
    count = 25  # of the second dataset three epochs, of the others two or more
    options = {"world_size": world_size, "num_workers": num_workers}
    ranks = [list(islice(load(mixture, rank=rank, **options), count)) for rank in range(world_size)]
    got = np.stack([np.concatenate(parts) for parts in zip(*ranks, strict=True)])
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, mixed_steps(three, [4, 1, 2], count))


def test_each_datasets_epoch_is_exactly_once(three: list[Dataset], mixture: Mixture) -> None:
    batches = load(mixture)
    assert [portion.slots for portion in batches.portions] == [range(4), range(4, 5), range(5, 7)]
    assert batches.steps_per_epoch == min(portion.steps_per_epoch for portion in batches.portions)
    count = 2 * max(portion.steps_per_epoch for portion in batches.portions)
    got = np.stack(list(islice(batches, count)))
    ends = set()
    for portion in batches.portions:
        own, steps = got[:, portion.slots.start : portion.slots.stop], portion.steps_per_epoch
        ends.add(steps)
        for first in range(0, count - steps + 1, steps):
            read = [sequence.tobytes() for step in own[first : first + steps] for sequence in step]
            assert len(set(read)) == len(read) == portion.sequences - portion.left_out
            assert portion.left_out < len(portion.slots)
    assert len(ends) == 3, "epochs that end together would show nothing"
    assert batches.epochs_read() == pytest.approx([count / p.steps_per_epoch for p in batches.portions], rel=0.05)


def test_a_run_continues_at_any_step_on_any_number_of_ranks(mixture: Mixture) -> None:
    whole = list(islice(load(mixture), 16))
    for step in range(15):
        state = state_after(load(mixture, world_size=3, rank=1), step)
        for world_size in (1, 2):
            ranks = [load(mixture, state, rank=rank, world_size=world_size) for rank in range(world_size)]
            got = np.concatenate([next(iter(rank)) for rank in ranks])
            np.testing.assert_array_equal(got, whole[step], err_msg=f"step {step}")
    resumed = load(mixture, state_after(load(mixture, num_workers=2), 5), num_workers=2)
    np.testing.assert_array_equal(list(islice(resumed, 11)), whole[5:])


def test_a_changed_step_takes_what_each_has_unread(three: list[Dataset], mixture: Mixture) -> None:
    before = state_after(load(mixture), 2)
    counts, taken = divide(14, WEIGHTS), divide(7, WEIGHTS)
    assert (counts, taken) == ([9, 1, 4], [4, 1, 2])
    got = next(iter(load(mixture, before, sequences_per_step=14)))
    expected = [
        expected_steps(dataset, 0, seq_len=SEQ_LEN, per_step=slots, taken=((old, 2),))[0]
        for dataset, slots, old in zip(three, counts, taken, strict=True)
    ]
    np.testing.assert_array_equal(got, np.concatenate(expected))


def test_one_dataset_is_a_mixture_of_one(three: list[Dataset]) -> None:
    alone, mixed = load(three[0]), load([(three[0], 0.3)])
    np.testing.assert_array_equal(list(islice(alone, 12)), list(islice(mixed, 12)))
    assert alone.state_dict() == mixed.state_dict()
    assert list(alone.state_dict()) == ["version", "dataset_id", "seed", "seq_len", "epoch", "taken"]
    assert identity(alone.portions) == three[0].id


def test_the_same_proportion_is_the_same_mixture(three: list[Dataset]) -> None:
    state = state_after(load([(three[0], 3), (three[1], 1)]), 3)
    again = load([(three[0], 0.75), (three[1], 0.25)], state)
    assert identity(again.portions) == f"5/7 of {three[0].id} + 2/7 of {three[1].id}"
    whole = islice(load([(three[0], 6), (three[1], 2)]), 3, 5)
    np.testing.assert_array_equal(list(islice(again, 2)), list(whole))


def test_the_state_of_another_mixture_is_refused(three: list[Dataset], mixture: Mixture) -> None:
    a, b, c = three
    batches, ids = load(mixture), " and ".join(dataset.id for dataset in three)
    before = state_after(batches, 3)
    others: list[tuple[Dataset | Mixture, str]] = [
        ([(a, 1), (b, 1), (c, 1)], "it was saved with the weights 4 and 0.5 and 2, here they are 1 and 1 and 1, which"),
        (
            [(a, 4), (c, 2), (b, 0.5)],
            f"it was saved with dataset_id {ids}, here it is {a.id} and {c.id} and {b.id}; give",
        ),
        ([(a, 4), (c, 2)], f"saved with dataset_id {ids}, here it is {a.id} and {c.id}"),
        (a, f"saved with dataset_id {ids}, here it is {a.id}; give the same datasets"),
    ]
    for data, said in others:
        with pytest.raises(Error) as caught:
            load(data, before)
        assert str(caught.value).startswith("state: ") and said in str(caught.value)
    with pytest.raises(Error, match=f"saved with dataset_id {a.id}, here it is {a.id} and {b.id} and"):
        batches.load_state_dict(state_after(load(a), 2))
    for name, value in (("seed", 1), ("seq_len", 9), ("datasets", 7), ("datasets", [1, 2, 3])):
        with pytest.raises(Error, match=name):
            batches.load_state_dict(before | {name: value})
    for name, value in (("weight", "4"), ("weight", -1), ("weight", None), ("taken", [[4, 99]]), ("epoch", -1)):
        records = [{**record, name: value} for record in before["datasets"]]
        with pytest.raises(Error, match=f"'{name}': expected"):
            batches.load_state_dict(before | {"datasets": records})
    assert json.loads(json.dumps(batches.state_dict())) == before


def test_datasets_that_different_steps_took_where_they_are_are_refused(three: list[Dataset], mixture: Mixture) -> None:
    ramped = state_after(load(mixture), 9)  # of the second dataset more than an epoch
    ramped = state_after(load(mixture, ramped, sequences_per_step=11), 4)
    assert ramped["steps"] == [[7, 9], [11, 4]]
    for state in (state_after(load(mixture), 3), state_after(load(mixture), 30), ramped):
        assert load(mixture, state).state_dict() == state
        for i in range(3):
            for others in (state_after(load(mixture), 4), state_after(load(mixture), 29)):
                mixed = [record if j != i else others["datasets"][i] for j, record in enumerate(state["datasets"])]
                with pytest.raises(
                    Error, match=f"^state: dataset {three[i].path}: expected epoch .*; give the state as"
                ):
                    load(mixture, state | {"datasets": mixed})
    assert "steps" not in state_after(load(three[0]), 1)
    for steps in (7, [7], [[7, -1]], [[7, 3.0]], [[10**12, 3]]):
        with pytest.raises(Error, match="^state: 'steps': expected"):
            load(mixture, state | {"steps": steps})
    # Older ones say only where each dataset is.
    older = {name: value for name, value in state.items() if name != "steps"}
    assert "steps" not in state_after(load(mixture, older), 2)


def test_weights_that_are_none(three: list[Dataset]) -> None:
    a, b, _ = three
    for weight in (0, -1, math.inf, math.nan, 10**400, True, "3", None):
        with pytest.raises(Error, match=rf"^dataset {b.path}: weight: expected a number above 0 and finite, got "):
            load([(a, 1), (b, weight)])
    for data in ([a, b], [("a", 1)], "a", None, {a: 1}, [(a, 1, 2)]):
        with pytest.raises(Error, match=r"^dataset: expected (pairs such as|a Dataset, or a list of) \(?"):
            load(data)
    first, second = load([(a, np.float32(3)), (b, np.float64(1))]).portions
    assert (first.weight, second.weight) == (3, 1)
    with pytest.raises(Error, match="^dataset: expected a Dataset, or a list of"):
        load([])


def test_a_weight_too_small_for_a_slot_says_what_would_do(three: list[Dataset]) -> None:
    a, b, c = three
    with pytest.raises(Error) as caught:
        load([(a, 5), (b, 0.1), (c, 3)])
    assert str(caught.value) == (
        f"dataset {b.path}: expected a weight that gives it one of the 7 sequences of a step, got 0.1, which gives it "
        "none; a weight of 1.34, or steps of 81 sequences, that is 648 tokens, are enough"
    )
    assert 0 not in divide(7, [5, 1.34, 3]) and 0 not in divide(81, [5, 0.1, 3])
    with pytest.raises(Error, match="got 1, which gives it none; steps of 3 sequences, that is 24 tokens, are enough"):
        load([(a, 1), (b, 1), (c, 1)], sequences_per_step=2)
    with pytest.raises(Error, match="none; a weight of 8.34E-321 is enough$"):  # none of ours is too small to be said
        load([(a, 5e-320), (b, 5e-324)])


def test_no_step_of_a_billion_sequences_is_advised(three: list[Dataset]) -> None:
    a, b, c = three
    with pytest.raises(Error, match="got 1e-09, which gives it none; a weight of 0.167 is enough$"):
        load([(a, 1), (b, 1e-9)])
    assert divide(7, [1, 0.167]) == [6, 1]
    with pytest.raises(Error, match="none; give it a weight nearer to the others', and steps of 3 sequences or more$"):
        load([(a, 1), (b, 1), (c, 1e-9)], sequences_per_step=2)


def test_data_that_are_none_for_a_mixture(three: list[Dataset], choices: Dataset) -> None:
    a, b, _ = three
    again = Dataset(a.path)
    with pytest.raises(
        Error, match=f"expected each dataset once, got dataset_id {a.id} twice, first as {a.path}; give"
    ):
        load([(a, 1), (b, 1), (again, 2)])
    with pytest.raises(Error, match="expected tokens to train on, got multiple-choice"):
        load([(a, 1), (choices, 1)])
    (portion,) = portions(b, sequences_per_step=1, seq_len=SEQ_LEN)
    slots = portion.sequences + 1
    with pytest.raises(Error) as caught:
        load([(a, 1), (b, slots)], sequences_per_step=slots + 1)
    assert str(caught.value).startswith(
        f"dataset {b.path}: expected at least one step of {slots} sequences of 8 tokens"
    )
    assert str(caught.value).endswith(
        f"its slots of a step may have at most {slots - 1}, that is {8 * (slots - 1)} tokens: lower its weight, or the "
        "size of a step"
    )
