"""Scores against the lesson's slow loop, which shares no code with them; test_parity.py has EleutherAI's lm-eval."""

import dataclasses
import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from making import CHOICES, shard_choices, shared_file
from runs import forked
from torch.nn import functional as F

from gpt2wds.commands import eval as eval_command
from gpt2wds.commands import shard as shard_command
from gpt2wds.dataset.directory import Dataset
from gpt2wds.distributed import World
from gpt2wds.errors import Error
from gpt2wds.evaluate import hellaswag, inference
from gpt2wds.evaluate.hellaswag import ending_log_probabilities, mcnemar, per_example, scores
from gpt2wds.evaluate.questions import NORMS, Questions, load_questions
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.tokenizer import load_tokenizer
from gpt2wds.train.checkpoint import State, save_checkpoint

ALONE = World(0, 1, torch.device("cpu"))
REAL = "hellaswag_val_1000.jsonl"
SAMPLE = CHOICES
SCORES = ("acc", "acc_norm_tokens", "acc_norm_characters", "acc_norm_bytes")  # firm: other tools read them


def opinionated(n_positions: int = 1024, *, seed: int = 0, vocab_size: int = 50257) -> GPT2:
    """A tiny model with strong preferences: one fresh from its initialisation finds all tokens about as likely."""
    model = GPT2(GPT2Config(1, 2, 32, n_positions=n_positions, vocab_size=vocab_size), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        model.wte.weight[vocab_size:] = 0
    return model


def saved(path: Path, model: GPT2) -> Path:
    return save_checkpoint(path, State(1), model, {}, keep=1)


def command(*arguments: object) -> str:
    """Run gpt2wds-eval hellaswag in this process; its standard output."""
    result = CliRunner().invoke(eval_command.main, ["hellaswag", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def failure(*arguments: object) -> str:
    """Run it where it must fail: its only line, on standard error."""
    result = CliRunner().invoke(eval_command.main, ["hellaswag", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def few(shared: Callable[..., Path]) -> Dataset:
    """Twelve examples of the sample, under its name."""
    return Dataset(shared("few", lambda path: shard_choices(path, limit=12)))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), opinionated())


# --- completion mode against the lesson's definition


@torch.no_grad()
def lesson(model: GPT2, example: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Each ending's summed and mean loss, as "let's reproduce GPT-2" defines them, one row at a time."""
    encode = load_tokenizer().encode
    context = encode(example["ctx"]).tolist()
    sums, means = [], []
    for text in example["endings"]:
        ending = encode(" " + text).tolist()
        # What is too long for the model loses tokens on the left: the lesson has no such example, lm-eval does it.
        tokens = torch.tensor([context + ending])[:, -model.config.n_positions - 1 :]  # (1, T + 1)
        mask = torch.tensor([False] * len(context) + [True] * len(ending))[-tokens.shape[1] :][1:]
        logits = model.logits(model.hidden(tokens[:, :-1])[0][0, mask])
        losses = F.cross_entropy(logits, tokens[0, 1:][mask], reduction="none")
        sums.append(losses.sum().item())
        means.append(losses.mean().item())
    return sums, means


def records_of(dataset: Dataset, n_positions: int = 1024) -> list[dict[str, Any]]:
    questions = load_questions(dataset, "completion", n_positions)
    return per_example(questions, ending_log_probabilities(opinionated(n_positions), questions, ALONE, "float32"))


def examples_of(source: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]


def assert_as_the_lesson(
    records: list[dict[str, Any]], examples: list[dict[str, Any]], n_positions: int = 1024
) -> None:
    model = opinionated(n_positions)
    for example, record in zip(examples, records, strict=True):
        sums, means = lesson(model, example)
        assert record["log_probabilities"] == pytest.approx([-value for value in sums], rel=1e-5, abs=1e-4)
        assert record["tokens"] == [round(s / m) for s, m in zip(sums, means, strict=True)]
        assert record["characters"] == [len(ending) for ending in example["endings"]]
        assert record["bytes"] == [len(ending.encode()) for ending in example["endings"]]
        assert (record["ind"], record["label"]) == (example["ind"], example["label"])
        assert record["predicted"]["acc"] == np.argmin(sums)
        assert record["predicted"]["acc_norm_tokens"] == np.argmin(means)
    # Not all endings are alike to this model, or the comparison would say nothing.
    assert len({record["predicted"]["acc_norm_tokens"] for record in records}) == 4


def test_completion_mode_is_the_lessons_on_the_sample(tmp_path: Path) -> None:
    assert_as_the_lesson(records_of(shard_choices(tmp_path / "data", limit=12)), examples_of(SAMPLE)[:12])


# --- scores


def hand_made() -> tuple[Questions, np.ndarray]:
    """Three examples whose four scores all differ, with the endings' sums."""
    lengths = {
        "tokens": np.array([[1, 2, 4, 4]] * 3),
        "characters": np.array([[1, 8, 4, 4]] * 3),
        "bytes": np.array([[1, 4, 4, 80]] * 3),
    }
    questions = Questions("set", "completion", [], lengths, np.array([0, 1, 1]), [7, 8, 9], 2)
    return questions, np.array([[-2.0, -3.0, -4.0, -8.0]] * 3)


def test_scores_by_hand() -> None:
    # Sums choose ending 0; per token 2, 1.5, 1, 2: ending 2; per character 2, .375, 1, 2: ending 1; per byte 2,
    # .75, 1, .1: ending 3. Labels 0, 1, 1: one right of three, none, two, none.
    result = scores(*hand_made())
    error = math.sqrt((2 / 3 * 1 / 3) * 3 / 2 / 3)  # of one or two of three: sample variance over 3
    assert result == {
        "name": "set", "mode": "completion", "examples": 3, "truncated": 2,
        "acc": pytest.approx(1 / 3), "acc_stderr": pytest.approx(error),
        "acc_norm_tokens": 0, "acc_norm_tokens_stderr": 0,
        "acc_norm_characters": pytest.approx(2 / 3), "acc_norm_characters_stderr": pytest.approx(error),
        "acc_norm_bytes": 0, "acc_norm_bytes_stderr": 0,
    }  # fmt: skip


def test_one_example_has_no_standard_error() -> None:
    questions, sums = hand_made()
    lengths = {norm: values[:1] for norm, values in questions.lengths.items()}
    result = scores(dataclasses.replace(questions, labels=np.array([0]), lengths=lengths), sums[:1])
    assert (result["acc"], result["acc_stderr"]) == (1, None)


def test_the_standard_error_of_the_whole_set() -> None:
    # 0.45 points at 10,042 examples and an accuracy near 0.29.
    n = 10_042
    lengths = {norm: np.ones((n, 4)) for norm in NORMS}
    questions = Questions("set", "completion", [], lengths, (np.arange(n) > 0.29 * n).astype(int), [], 0)
    result = scores(questions, np.tile([0.0, -1, -2, -3], (n, 1)))
    assert result["acc_stderr"] == pytest.approx(0.0045, abs=5e-5)


# --- the same for any batch and any number of ranks


@pytest.mark.parametrize("mode", ["completion", "lm-eval"])
def test_any_batch_size_gives_the_same(few: Dataset, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    model, questions = opinionated(), load_questions(few, mode, 1024)
    expected = ending_log_probabilities(model, questions, ALONE, "float32")
    for batch_tokens, padding, positions in ((1, 0.0, 1024), (100, 0.5, 1024), (777, 0.1, 7), (1 << 20, 1.0, 1 << 20)):
        monkeypatch.setattr(hellaswag, "BATCH_TOKENS_CPU", batch_tokens)
        monkeypatch.setattr(hellaswag, "PADDING_SHARE", padding)
        monkeypatch.setattr(inference, "HEAD_POSITIONS_CPU", positions)
        found = ending_log_probabilities(model, questions, ALONE, "float32")
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert scores(questions, found) == scores(questions, expected)


@pytest.mark.parametrize(("budget", "share"), [(1000, 1 / 16), (8192, 1 / 16), (8192, 1 / 100)])
def test_batches_keep_to_their_budget(
    choices: Dataset, monkeypatch: pytest.MonkeyPatch, budget: int, share: float
) -> None:
    monkeypatch.setattr(hellaswag, "BATCH_TOKENS_CPU", budget)
    monkeypatch.setattr(hellaswag, "PADDING_SHARE", share)
    questions, model = load_questions(choices, "completion", 1024), opinionated()
    lengths = [[len(row.tokens) for row in batch] for batch in hellaswag.batches(questions.rows, ALONE.device)]
    padded = [len(batch) * max(batch) for batch in lengths]
    assert all(tokens <= budget for tokens in padded)
    assert all(1 - sum(batch) / tokens <= share for batch, tokens in zip(lengths, padded, strict=True))
    assert len(lengths) < 36  # rows of about the same length do share a batch
    read = sum(map(sum, lengths))
    assert read == sum(len(row.tokens) for row in questions.rows)
    assert hellaswag.padding_share(questions, ALONE.device) == pytest.approx(1 - read / sum(padded))
    # They are what the model reads.
    shapes = []
    model.h[0].register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[:2]))
    ending_log_probabilities(model, questions, ALONE, "float32")
    assert shapes == [(len(batch), max(batch)) for batch in lengths]


@pytest.mark.slow
def test_any_number_of_ranks_scores_as_one(choices: Dataset, model_path: Path, tmp_path: Path) -> None:
    outputs, records = [], []
    for ranks in (1, 2, 3):
        file = tmp_path / f"{ranks}.jsonl"
        line = ["hellaswag", model_path, "--data", choices.path, "--device", "cpu", "--json", "--per-example", file]
        codes, said, problems = forked("eval", *[line] * ranks)
        assert codes == [0] * ranks, problems
        outputs.append(said)
        records.append(file.read_text())
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0].count("\n") == 1  # one object, from rank 0 alone
    assert json.loads(outputs[1])["examples"] == 36
    assert records[0] == records[1] == records[2]  # the log-probabilities too, to the last digit
    # There was work for each of them.
    assert len(hellaswag.batches(load_questions(choices, "completion", 1024).rows, ALONE.device)) >= 3


def test_more_ranks_than_rows(choices: Dataset) -> None:
    model, questions = opinionated(), load_questions(choices, "completion", 1024, limit=1)
    parts = [ending_log_probabilities(model, questions, _Silent(rank, 6, ALONE.device), "float32") for rank in range(6)]
    expected = ending_log_probabilities(model, questions, ALONE, "float32")
    np.testing.assert_allclose(np.sum(parts, axis=0), expected, rtol=1e-5)
    assert (parts[5] == 0).all()


class _Silent(World):
    """A rank whose sums stay its own."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


# --- the command


def test_json_is_all_that_is_printed(choices: Dataset, model_path: Path) -> None:
    output = command(model_path, "--data", choices.path, "--json")
    result = json.loads(output)
    assert output == json.dumps(result) + "\n"
    assert (result["model"], result["name"], result["mode"], result["examples"]) == (
        str(model_path), "sample", "completion", 36,
    )  # fmt: skip
    for score in SCORES:
        assert 0 <= result[score] <= 1 and result[f"{score}_stderr"] > 0


def test_the_plain_output_names_mode_scores_and_errors(choices: Dataset, model_path: Path) -> None:
    for mode in ("completion", "lm-eval"):
        first, *rest = command(model_path, "--data", choices.path, "--mode", mode).splitlines()
        assert first == f"{model_path}, step 1: sample, {mode} mode, 36 examples, chance 0.25"
        assert [line.split()[0] for line in rest] == list(SCORES)
        assert all(" ± " in line for line in rest)


def test_the_sample_is_never_called_hellaswag(few: Dataset, model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "each.jsonl"
    for flags in ([], ["--json"], ["--mode", "lm-eval"], ["--per-example", file], [model_path]):
        assert "hellaswag" not in command(model_path, *flags, "--data", few.path).lower()
    assert "hellaswag" not in file.read_text().lower()


def test_a_record_for_each_example(choices: Dataset, model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "each.jsonl"
    result = json.loads(command(model_path, "--data", choices.path, "--json", "--per-example", file))
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["ind"] for record in records] == [json.loads(line)["ind"] for line in SAMPLE.open()]
    for score in SCORES:
        right = [record["predicted"][score] == record["label"] for record in records]
        assert result[score] == pytest.approx(np.mean(right))
    for record in records:
        assert set(record) == {
            "model", "ind", "label", "log_probabilities", "tokens", "characters", "bytes", "predicted",
        }  # fmt: skip
        assert all(value < 0 for value in record["log_probabilities"])
    assert "--per-example" in failure(model_path, "--data", choices.path, "--per-example", tmp_path / "no" / "file")


def test_a_full_disk_leaves_no_half_of_the_records(choices: Dataset, model_path: Path, tmp_path: Path) -> None:
    """A limit on a file's size stands for it."""
    file = tmp_path / "each.jsonl"
    file.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        line = ["hellaswag", model_path, "--data", choices.path, "--device", "cpu", "--per-example", file]
        result = CliRunner().invoke(eval_command.main, list(map(str, line)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith(f"error: {file}: File too large; allow larger files")
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["each.jsonl"]


def test_a_limit(choices: Dataset, model_path: Path) -> None:
    assert json.loads(command(model_path, "--data", choices.path, "--json", "--limit", 5))["examples"] == 5


@pytest.mark.slow
def test_a_thousand_real_examples_through_the_commands(model_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    made = CliRunner().invoke(shard_command.main, ["hellaswag", "--source", str(shared_file(REAL)), "--out", str(out)])
    assert made.exit_code == 0, made.output
    file = tmp_path / "each.jsonl"
    result = json.loads(command(model_path, "--data", out, "--json", "--per-example", file))
    # A part of HellaSwag goes by its file's name: published scores are of the whole.
    assert (result["name"], result["examples"], result["truncated"]) == ("hellaswag_val_1000", 1000, 0)
    assert 0.2 < result["acc_norm_tokens"] < 0.3  # a model that knows nothing
    # The lesson's way is slow: a quarter of them, from all over, for the first are short.
    assert_as_the_lesson(examples_of(file)[::4], examples_of(shared_file(REAL))[::4])


# --- what does not fit


def test_long_prompts_lose_tokens_on_the_left_and_are_counted(few: Dataset, tmp_path: Path) -> None:
    encode = load_tokenizer().encode
    count = 0
    for example in examples_of(SAMPLE)[:12]:
        context = len(encode(example["ctx"]))
        count += sum(context + len(encode(" " + ending)) > 41 for ending in example["endings"])  # 40 and a last target
    assert 0 < count < 4 * 12
    assert load_questions(few, "completion", 40).truncated == count
    assert load_questions(few, "completion", 1024).truncated == 0
    assert_as_the_lesson(records_of(few, 40), examples_of(SAMPLE)[:12], 40)
    path = saved(tmp_path, opinionated(40))
    assert json.loads(command(path, "--data", few.path, "--json"))["truncated"] == count
    assert command(path, "--data", few.path).splitlines()[-1].startswith(f"  {count} endings had a context longer")


def test_an_ending_that_does_not_fit(choices: Dataset, tmp_path: Path) -> None:
    message = failure(saved(tmp_path, opinionated(8)), "--data", choices.path)
    assert "expected at most 8, the model's n_positions" in message


def test_a_smaller_vocabulary(choices: Dataset, tmp_path: Path) -> None:
    message = failure(saved(tmp_path, opinionated(vocab_size=300)), "--data", choices.path)
    assert "expected GPT-2's vocabulary, 50,257 tokens" in message and "got 300" in message


@pytest.mark.parametrize("vocab_size", [50_256, 50_305])
def test_another_vocabulary(choices: Dataset, vocab_size: int) -> None:
    questions = load_questions(choices, "completion", 1024, limit=1)
    for rank in range(2):  # the ranks fail together
        with pytest.raises(ValueError, match=f"got {vocab_size:,}"):
            ending_log_probabilities(
                opinionated(vocab_size=vocab_size), questions, _Silent(rank, 2, ALONE.device), "float32"
            )


def test_tokens_are_no_examples(plays: Dataset, model_path: Path) -> None:
    assert "expected multiple-choice examples, got tokens" in failure(model_path, "--data", plays.path)


def test_an_unknown_mode(choices: Dataset) -> None:
    with pytest.raises(ValueError, match="expected completion or lm-eval, got 'harness'"):
        load_questions(choices, "harness", 1024)


# --- two models


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 1, 1.0),
        (0, 5, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (5, 1, 2 * (1 + 6) / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (4, 5, 1.0),
    ],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar(only_first, only_second) == p


def test_mcnemar_of_large_counts() -> None:
    # The normal approximation with continuity correction, which is close here.
    z = (abs(2700 - 2500) - 1) / math.sqrt(5200)
    assert mcnemar(2500, 2700) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)
    assert mcnemar(0, 10_042) == 0


def test_two_models_on_the_same_examples(few: Dataset, model_path: Path, tmp_path: Path) -> None:
    other, file = saved(tmp_path, opinionated(seed=3)), tmp_path / "each.jsonl"
    result = json.loads(command(model_path, other, "--data", few.path, "--json", "--per-example", file))
    assert result["models"] == [json.loads(command(path, "--data", few.path, "--json")) for path in (model_path, other)]
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["model"] for record in records] == [str(model_path)] * 12 + [str(other)] * 12
    assert set(result["comparison"]) == set(SCORES)
    for score, pair in result["comparison"].items():
        right = [record["predicted"][score] == record["label"] for record in records]
        pairs = list(zip(right[:12], right[12:], strict=True))
        assert (pair["only_first_right"], pair["only_second_right"]) == (
            pairs.count((True, False)),
            pairs.count((False, True)),
        )
        first, second = (model[score] for model in result["models"])
        assert pair["difference"] == pytest.approx(second - first)
        assert pair["p"] == mcnemar(pair["only_first_right"], pair["only_second_right"])
    assert any(pair["only_first_right"] != pair["only_second_right"] for pair in result["comparison"].values())
    lines = command(model_path, other, "--data", few.path).splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        f"{model_path}, step 1: sample, completion mode, 12 examples, chance 0.25",
        f"{other}, step 1: sample, completion mode, 12 examples, chance 0.25",
        f"{other} less {model_path}, with McNemar's exact two-sided p",
    ]
    assert sum(" p = " in line for line in lines) == 4


def test_several_datasets_are_one_table(few: Dataset, model_path: Path, tmp_path: Path) -> None:
    examples = [json.loads(line) for line in SAMPLE.open()]
    source = tmp_path / "mine.jsonl"
    # Long contexts, which are cut, in the second one only.
    source.write_text("".join(json.dumps(e | {"ctx": e["ctx"] * 40}) + "\n" for e in examples[:8:2]))
    mine, file = shard_choices(tmp_path / "data", source), tmp_path / "each.jsonl"
    both = ("--data", few.path, "--data", mine.path)
    alone = [json.loads(command(model_path, "--data", each.path, "--json")) for each in (few, mine)]
    found = json.loads(command(model_path, *both, "--json", "--per-example", file))["datasets"]
    assert found == [{"data": each.path, **one} for each, one in zip((few, mine), alone, strict=True)]
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["data"] for record in records] == [few.path] * 12 + [mine.path] * 4
    first, header, *lines, truncated = command(model_path, *both).splitlines()
    assert first == "completion mode, chance 0.25" and header.split() == ["dataset", "examples", *SCORES, "model"]
    for line, result in zip(lines, alone, strict=True):
        name, number, *words = line.split()
        assert (name, int(number)) == (result["name"], result["examples"])
        assert words[0:12:3] == [f"{result[score]:.4f}" for score in SCORES]
    assert truncated.startswith("mine, ") and "cut on the left" in truncated


def test_two_models_on_several_datasets(few: Dataset, model_path: Path, tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text("".join(SAMPLE.read_text().splitlines(keepends=True)[:6]))
    mine, other = shard_choices(tmp_path / "data", source), saved(tmp_path, opinionated(seed=3))
    both = ("--data", few.path, "--data", mine.path)
    alone = [json.loads(command(model_path, other, "--data", each.path, "--json")) for each in (few, mine)]
    assert json.loads(command(model_path, other, *both, "--json")) == {
        "datasets": [{"data": each.path, **one} for each, one in zip((few, mine), alone, strict=True)]
    }
    lines = command(model_path, other, *both).splitlines()
    assert [line.split()[-3] for line in lines[2:6]] == [f"{path}," for path in (model_path, other)] * 2
    for name in ("sample", "mine"):
        assert f"{other} less {model_path} on {name}, with McNemar's exact two-sided p" in lines


def test_a_dataset_given_twice_is_one_line(choices: Dataset, model_path: Path) -> None:
    twice = ["hellaswag", str(model_path), "--data", choices.path, "--data", f"{choices.path}/"]
    result = CliRunner().invoke(eval_command.main, twice)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: --data: expected different datasets, {choices.path} and ")


def test_a_model_against_itself(few: Dataset, model_path: Path) -> None:
    result = json.loads(command(model_path, model_path, "--data", few.path, "--json"))
    for pair in result["comparison"].values():
        assert pair == {"difference": 0, "difference_stderr": 0, "only_first_right": 0, "only_second_right": 0, "p": 1}


def test_arguments_that_cannot_be(choices: Dataset) -> None:
    questions, model = load_questions(choices, "lm-eval", 256), GPT2(GPT2Config(1, 1, 8, 256))
    for name, call in {
        "dataset": lambda: load_questions(choices.path, "lm-eval", 256),
        "n_positions": lambda: load_questions(choices, "lm-eval", 0),
        "limit": lambda: load_questions(choices, "lm-eval", 256, 0),
        "model": lambda: hellaswag.score("runs/gpt2", questions),
        "questions": lambda: hellaswag.score(model, choices),
        "dtype": lambda: hellaswag.score(model, questions, dtype="float16"),
        "questions: expected at most 16 positions, the model's, got [0-9]+; make them": lambda: hellaswag.score(
            GPT2(GPT2Config(1, 1, 8, 16)), questions
        ),
        "world": lambda: hellaswag.score(model, questions, world=2),
    }.items():
        with pytest.raises(Error, match=f"^{name}" if " " in name else f"^{name}: expected "):
            call()
    sums = np.zeros((len(questions.labels), 4))
    for wrong in (None, sums[1:], sums[:, :3], np.full_like(sums, np.nan)):
        with pytest.raises(Error, match="^sums: expected "):
            scores(questions, wrong)
    with pytest.raises(Error, match="^questions: expected "):
        scores(choices, sums)
