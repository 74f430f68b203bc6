"""The types of tables, held to what a run writes: mypy holds the code to them."""

from pathlib import Path

from making import shard_choices
from runs import finished

from gpt2wds.dataset.directory import Dataset
from gpt2wds.rows import Row, Sample, Scores, number
from gpt2wds.train.rundir import RunDirectory


def test_a_runs_rows_have_no_other_members(plays: Dataset, tmp_path: Path) -> None:
    choices = shard_choices(tmp_path / "choices", limit=1)
    options = (
        f"eval.hellaswag={choices.path}",
        'eval.sample_prompts=["A"]',
        "eval.sample_tokens=1",
    )
    run = finished(
        tmp_path / "run",
        plays,
        *options,
        "data.seq_len=64",
        "train.max_steps=2",
        "train.on_nan=skip",
        "data.skip_steps=['1']",
    )
    rows = RunDirectory(run).read_metrics()
    found = {name for row in rows for name in row}
    assert found == Row.__annotations__.keys() - {"val_losses", "mfu"}  # of several datasets, of some GPUs
    assert rows[-1]["hellaswag"].keys() == Scores.__annotations__.keys()
    assert [sample.keys() for sample in rows[-1]["samples"]] == [Sample.__annotations__.keys()]


def test_a_number_is_one() -> None:
    row = {"step": 1, "loss": None, "samples": []}
    assert [number(row, name) for name in ("step", "loss", "samples", "absent")] == [1, None, None, None]
