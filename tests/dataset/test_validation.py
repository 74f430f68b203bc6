"""Validation: the same sequences of a split, in storage order, for any number of ranks."""

import numpy as np
import pytest
from test_loader import sequences_of_blocks, tokens_of_shards

from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.validation import validation_sequences
from gpt2wds.errors import Error


def validation(dataset: Dataset, world_size: int, max_tokens: int, seq_len: int = 512) -> list[np.ndarray]:
    rows = []
    for rank in range(world_size):
        options = {"batch_sequences": 7, "rank": rank, "world_size": world_size}
        batches = list(validation_sequences(dataset, seq_len=seq_len, max_tokens=max_tokens, **options))
        assert all(len(batch) == 7 for batch in batches[:-1])
        assert all(1 <= len(batch) <= 7 for batch in batches)
        rows += [row for batch in batches for row in batch]
    return rows


def test_validation_is_the_same_set_in_storage_order_for_any_world(plays: Dataset) -> None:
    stored = [sequence for block in sequences_of_blocks(plays, "val", 512) for sequence in block]
    assert len(stored) > 150
    for world_size in range(1, 17):
        np.testing.assert_array_equal(validation(plays, world_size, 10**9), stored)
        np.testing.assert_array_equal(validation(plays, world_size, 20 * 512), stored[:20])
    # More ranks than sequences: some have none.
    np.testing.assert_array_equal(validation(plays, 16, 5 * 512), stored[:5])


def test_validation_honours_its_limit(plays: Dataset) -> None:
    assert len(validation(plays, 1, 3 * 512)) == 3
    assert len(validation(plays, 1, 4 * 512 - 1)) == 3
    with pytest.raises(ValueError, match=r"more than seq_len = 512 tokens, .* max_tokens = 511 are used"):
        validation(plays, 1, 511)


def test_ranks_share_out_the_batches_of_one(plays: Dataset) -> None:
    options = {"seq_len": 512, "max_tokens": 40 * 512, "batch_sequences": 7}
    alone = list(validation_sequences(plays, **options))
    assert [len(batch) for batch in alone] == [7, 7, 7, 7, 7, 5]
    for world_size in (2, 3, 4, 9):
        ranks = [list(validation_sequences(plays, **options, rank=r, world_size=world_size)) for r in range(world_size)]
        together = [batch for rank in ranks for batch in rank]
        assert len(together) == len(alone)
        assert all(np.array_equal(one, many) for one, many in zip(alone, together, strict=True))
        assert max(map(len, ranks)) <= -(-6 // world_size)


def test_examples_are_no_text_to_validate_on(choices: Dataset) -> None:
    with pytest.raises(ValueError, match="expected tokens, got multiple-choice"):
        next(validation_sequences(choices, seq_len=8, max_tokens=100, batch_sequences=1))


def test_validation_of_another_split(plays: Dataset) -> None:
    batch = next(validation_sequences(plays, seq_len=100, max_tokens=10**6, batch_sequences=3, split="train"))
    tokens = tokens_of_shards(plays, "train")[0]
    np.testing.assert_array_equal(batch, [tokens[0:101], tokens[100:201], tokens[200:301]])


def test_arguments_that_cannot_be(plays: Dataset) -> None:
    good = {"seq_len": 8, "max_tokens": 100, "batch_sequences": 1}
    for name, least in {"seq_len": 1, "max_tokens": 0, "batch_sequences": 1}.items():
        for value in (least - 1, None, 1.5):
            with pytest.raises(Error, match=f"^{name}: expected a whole number, {least} or more, got {value}"):
                validation_sequences(plays, **{**good, name: value})
    with pytest.raises(Error, match="^world_size: expected 1 or more, got 0"):
        validation_sequences(plays, **good, world_size=0)
    with pytest.raises(Error, match="^rank: expected 0 to world_size - 1 = 1, got 2"):
        validation_sequences(plays, **good, rank=2, world_size=2)
    with pytest.raises(Error, match="^split: expected train or val, got 'test'"):
        validation_sequences(plays, **good, split="test")
    with pytest.raises(Error, match=r"^dataset: expected a Dataset, such as Dataset\('data/mine'\), got 'data'"):
        validation_sequences("data", **good)
