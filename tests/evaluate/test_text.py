"""Samples, losses and the commands that show them, against direct computations."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from making import shard_files, write_jsonl
from runs import forked, in_process
from torch.nn import functional as F

from gpt2wds.commands import eval as eval_command
from gpt2wds.commands import shard as shard_command
from gpt2wds.commands.models import find_weights
from gpt2wds.commands.settings import Run
from gpt2wds.dataset.directory import Dataset
from gpt2wds.dataset.validation import validation_sequences
from gpt2wds.distributed import World
from gpt2wds.errors import Error
from gpt2wds.evaluate.text import Sampling, choose_token, generate, unigram_entropy, validation_loss
from gpt2wds.model import GPT2, GPT2Config
from gpt2wds.tokenizer import END_OF_TEXT, load_tokenizer
from gpt2wds.train.checkpoint import State, save_checkpoint
from gpt2wds.train.weights import load_weights

ALONE = World(0, 1, torch.device("cpu"))
PROMPT = "To be, or not to be"  # 6 tokens


def opinionated(n_positions: int = 64) -> GPT2:
    """A tiny model with strong preferences that depend on what it has read."""
    model = GPT2(GPT2Config(2, 2, 32, n_positions=n_positions)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        model.wte.weight[model.config.vocab_size :] = 0
    return model


def continued(model: GPT2, prompt: str = PROMPT, *, use_cache: bool = True, **options: Any) -> str:
    return generate(model, load_tokenizer(), prompt, Sampling(**options), use_cache=use_cache)


@torch.no_grad()
def greedy(model: GPT2, prompt: str, count: int) -> str:
    """The likeliest token, `count` times: each time the whole text is read again."""
    tokenizer = load_tokenizer()
    ids = tokenizer.encode(prompt).tolist()
    for _ in range(count):
        ids.append(int(model.logits(model.hidden(torch.tensor([ids]))[0])[0, -1].argmax()))
    return tokenizer.decode(np.array(ids, dtype=np.uint16))


def ends_after(monkeypatch: pytest.MonkeyPatch, model: GPT2, count: int) -> None:
    """Make `<|endoftext|>` by far the likeliest token after `count` others."""
    inner, calls = model.logits, 0

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        values = inner(hidden).clone()
        values[..., END_OF_TEXT] = 1e4 if calls == count else -1e4
        calls += 1
        return values

    monkeypatch.setattr(model, "logits", logits)


# --- generate


def test_greedy_with_the_cache_is_greedy_over_the_whole_text() -> None:
    model = opinionated()
    expected = greedy(model, PROMPT, 40)
    assert len(set(load_tokenizer().encode(expected).tolist())) > 20  # it does not just repeat itself
    assert continued(model, tokens=40, temperature=0) == expected
    assert continued(model, tokens=40, temperature=0, use_cache=False) == expected


@pytest.mark.parametrize("n_positions", [64, 16])
def test_a_seed_is_a_text_with_and_without_the_cache(n_positions: int) -> None:
    model = opinionated(n_positions)
    texts = [continued(model, tokens=20, temperature=5.0, seed=seed, use_cache=c) for seed in (1, 2) for c in (1, 0, 1)]
    assert texts[0] == texts[1] == texts[2]
    assert texts[3] == texts[4] == texts[5] != texts[0]


def test_top_k_one_is_temperature_zero() -> None:
    model = opinionated()
    assert continued(model, tokens=20, top_k=1, temperature=3.0) == continued(model, tokens=20, temperature=0)


def test_top_k_leaves_the_k_likeliest() -> None:
    model, tokenizer = opinionated(), load_tokenizer()
    with torch.no_grad():
        ids = torch.tensor([tokenizer.encode(PROMPT).tolist()])
        likeliest = model.logits(model.hidden(ids)[0])[0, -1].topk(3).indices.tolist()
    allowed = {PROMPT + tokenizer.decode(np.array([token], dtype=np.uint16)) for token in likeliest}
    found = {continued(model, tokens=1, top_k=3, temperature=100.0, seed=seed) for seed in range(40)}
    assert found == allowed
    everything = {continued(model, tokens=1, top_k=0, temperature=100.0, seed=seed) for seed in range(40)}
    assert len(everything) > 20


@pytest.mark.parametrize(("temperature", "top_k"), [(0.5, 0), (1.0, 50), (5.0, 3)])
def test_every_way_to_choose_is_the_same_without_the_cache(temperature: float, top_k: int) -> None:
    model, options = opinionated(32), {"tokens": 30, "temperature": temperature, "top_k": top_k, "seed": 7}
    assert continued(model, **options) == continued(model, **options, use_cache=False)


@pytest.mark.slow
def test_temperature_divides_the_logits() -> None:
    model, tokenizer = opinionated(), load_tokenizer()
    with torch.no_grad():
        ids = torch.tensor([tokenizer.encode(PROMPT).tolist()])
        two = model.logits(model.hidden(ids)[0])[0, -1].topk(2)
    second = PROMPT + tokenizer.decode(np.array([two.indices[1]], dtype=np.uint16))
    gap = (two.values[0] - two.values[1]).item()
    for temperature in (gap / 3, gap, 5 * gap):
        texts = [continued(model, tokens=1, top_k=2, temperature=temperature, seed=seed) for seed in range(300)]
        expected = 1 / (1 + math.exp(gap / temperature))
        assert texts.count(second) / 300 == pytest.approx(expected, abs=0.09)  # three standard errors


@pytest.mark.parametrize("temperature", [1e10, 1e300])
def test_a_high_temperature_keeps_to_the_likeliest(temperature: float) -> None:
    model = opinionated()
    found = {continued(model, tokens=1, top_k=2, temperature=temperature, seed=seed) for seed in range(30)}
    assert len(found) == 2


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
def test_next_to_no_temperature_is_none(temperature: float) -> None:
    model = opinionated()
    assert continued(model, tokens=20, temperature=temperature) == continued(model, tokens=20, temperature=0)


@pytest.mark.parametrize(
    "option",
    [
        "temperature=nan",
        "temperature=inf",
        "temperature=-1",
        "top-p=0",
        "top-p=nan",
        "top-p=2",
        "seed=-1",
        f"seed={1 << 64}",
    ],
)
def test_options_that_mean_nothing_are_one_line(run_dir: Path, option: str) -> None:
    result = CliRunner().invoke(eval_command.main, ["sample", str(run_dir), f"--{option}"])
    assert result.exit_code == 1 and result.stdout == ""
    assert re.fullmatch(rf"error: (--)?{option.partition('=')[0]}: expected .*, got -?[\w.]+\n", result.stderr), (
        result.stderr
    )


def test_sampling_is_checked_where_it_is_made() -> None:
    for wrong, said in (
        ({"tokens": 1.5}, "tokens: expected a whole number, 0 or more, got 1.5"),
        ({"tokens": 1, "top_k": -2}, "top_k: expected a whole number, 0 or more, got -2"),
        ({"tokens": 1, "temperature": "1"}, "temperature: expected a number, got '1'"),
        ({"tokens": 1, "seed": 0.5}, "seed: expected a whole number, got 0.5"),
    ):
        with pytest.raises(Error, match=f"^{said}"):
            Sampling(**wrong)


def test_a_prompt_of_other_bytes_is_one_line(run_dir: Path) -> None:
    result = CliRunner().invoke(eval_command.main, ["sample", str(run_dir), "--prompt", "caf\udce9"])
    assert (result.exit_code, result.stderr) == (1, "error: --prompt: expected text in UTF-8, got b'caf\\xe9'\n")


def test_every_seed_that_a_run_may_have_draws_samples() -> None:
    largest = Run(seed=2**64 - 1).seed
    assert continued(opinionated(), tokens=2, seed=largest) == continued(opinionated(), tokens=2, seed=largest)


def test_it_stops_at_the_end_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opinionated()
    ends_after(monkeypatch, model, 3)
    text = continued(model, tokens=20, temperature=0)
    monkeypatch.undo()
    ends_after(monkeypatch, model, 1000)
    assert text == continued(model, tokens=3, temperature=0)
    assert "<|endoftext|>" not in text


def test_as_many_tokens_as_were_asked_for() -> None:
    # Counted by the calls of the model: text that is decoded may be encoded in another way.
    model, lengths = opinionated(), []
    model.ln_f.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    continued(model, tokens=5, temperature=0)
    assert lengths == [len(load_tokenizer().encode(PROMPT)), 1, 1, 1, 1]


def test_a_text_longer_than_the_models_positions_goes_on() -> None:
    model, tokenizer = opinionated(16), load_tokenizer()
    given = len(tokenizer.encode(PROMPT))
    fits = 16 - given + 1  # the last of them is not read any more
    assert continued(model, tokens=fits, temperature=0) == greedy(model, PROMPT, fits)
    lengths: list[int] = []
    model.ln_f.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    text = continued(model, tokens=60, temperature=0)
    assert text.startswith(continued(model, tokens=fits, temperature=0))
    assert lengths[:60].count(1) < 60 and max(lengths) <= 16
    assert lengths[fits] == 8  # the last half, read afresh


def test_a_prompt_longer_than_the_models_positions() -> None:
    model, tokenizer = opinionated(16), load_tokenizer()
    prompt = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings"
    seen = tokenizer.encode(prompt)[-16:]
    assert len(tokenizer.encode(prompt)) > 16
    with torch.no_grad():
        token = int(model.logits(model.hidden(torch.tensor([seen.tolist()]))[0])[0, -1].argmax())
    expected = prompt + tokenizer.decode(np.array([token], dtype=np.uint16))
    assert continued(model, prompt, tokens=1, temperature=0) == expected


def test_an_empty_prompt_begins_a_document() -> None:
    model = opinionated()
    with torch.no_grad():
        token = int(model.logits(model.hidden(torch.tensor([[END_OF_TEXT]]))[0])[0, -1].argmax())
    assert token != END_OF_TEXT
    assert continued(model, "", tokens=1, temperature=0) == load_tokenizer().decode(np.array([token], dtype=np.uint16))


# --- losses


def test_entropy_by_hand() -> None:
    # Four of eight tokens are 7, two are 9, two occur once: 1/2 of 1 bit, 1/4 of 2, 2/8 of 3.
    pieces = [np.array([7, 9, 7, 1], dtype=np.uint16), np.array([7, 7, 9, 50256], dtype=np.uint16)]
    assert unigram_entropy(pieces) == pytest.approx((0.5 * 1 + 0.25 * 2 + 0.25 * 3) * math.log(2))
    assert unigram_entropy([np.array([5, 5], dtype=np.uint16)]) == 0


@torch.no_grad()
def direct_loss(model: GPT2, tokens: np.ndarray, length: int) -> float:
    """Mean loss of the tokens that follow, `length` at a time, one sequence after the other."""
    losses = []
    for start in range(0, len(tokens) - length, length):
        part = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))
        logits = model.logits(model.hidden(part[None, :-1])[0])[0]
        losses.append(F.cross_entropy(logits, part[1:], reduction="none").double())
    return torch.cat(losses).mean().item()


def batches(plays: Dataset, size: int) -> Any:
    return validation_sequences(plays, seq_len=32, max_tokens=32 * 13, batch_sequences=size)


def test_validation_loss_is_the_mean_over_tokens(plays: Dataset) -> None:
    model = opinionated(32)
    expected = direct_loss(model, plays.read_tokens("val", 0)[: 32 * 13 + 1], 32)
    assert expected > 11  # this model is sure of the wrong tokens
    for size in (1, 5, 13):  # a last batch of 3 counts as 3 of 13, not as a third
        assert validation_loss(model, batches(plays, size), ALONE, "float32") == pytest.approx(expected, rel=1e-6)


def test_validation_loss_does_not_depend_on_the_batch(plays: Dataset) -> None:
    model = opinionated(32)
    found = [validation_loss(model, batches(plays, size), ALONE, "float32") for size in (1, 2, 5, 13)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-9)


@pytest.mark.slow
def test_validation_loss_does_not_depend_on_the_ranks(run_dir: Path, plays: Dataset) -> None:
    found = []
    for ranks in (1, 2, 3):
        line = ["loss", run_dir, "--data", plays.path, "--device", "cpu", "--json", "--limit", 26_000]
        codes, said, problems = forked("eval", *[line] * ranks)
        assert codes == [0] * ranks, problems
        found.append(json.loads(said))
    losses = [one.pop("loss") for one in found]
    # The same float32 numbers in each batch; only float64 sums of whole batches come in another order.
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)
    assert found[0]["tokens"] == found[1]["tokens"] == found[2]["tokens"] > 3 * 8192  # work for each of them


# --- the commands


@pytest.fixture(scope="module")
def run_dir(plays: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, as gpt2wds-train leaves it."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    rates = ["train.learning_rate=6e-4", "train.min_learning_rate=6e-5"]
    code, said = in_process(run, plays, "train.max_steps=2", "train.warmup_steps=1", "eval.val_tokens=64", *rates)
    assert code == 0, said
    return run


def command(*arguments: object) -> str:
    result = CliRunner().invoke(eval_command.main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_loss_command(run_dir: Path, tmp_path: Path) -> None:
    stories = [f"Story {n}: " + " ".join(f"word{i * n % 97}" for i in range(200 + n)) for n in range(6)]
    source = write_jsonl(tmp_path / "stories.jsonl", stories)
    data = shard_files(tmp_path / "data", source, val_docs=4, docs_per_shard=2)
    output = command("loss", run_dir, "--data", data.path, "--json")
    result = json.loads(output)
    assert output == json.dumps(result) + "\n"
    assert (result["model"], result["split"], result["corpus"]) == (str(run_dir), "val", data.corpus)
    assert 10 < result["loss"] < 12
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    # Of the text that was scored: all but the first token, and but what fills no sequence of 32 at the end.
    text = data.read_tokens("val", 0), data.read_tokens("val", 1)
    scored = [block[1 : (len(block) - 1) // 32 * 32 + 1] for block in text]
    assert result["tokens"] == sum(map(len, scored))
    pieces = [load_tokenizer().encoding.decode_bytes(block[block != END_OF_TEXT].tolist()) for block in scored]
    assert result["text_bytes"] == sum(map(len, pieces))
    assert result["bits_per_byte"] == pytest.approx(
        result["loss"] * result["tokens"] / math.log(2) / result["text_bytes"], rel=1e-12
    )
    line = command("loss", run_dir, "--data", data.path)
    assert line.count("\n") == 1
    assert f"loss {result['loss']:.4f} nats per token" in line and f"{result['bits_per_byte']:.4f} bits" in line


def test_bits_per_byte_of_little_text(tmp_path: Path) -> None:
    # 32 of 45 tokens are scored, and those are not like the rest: the bytes of the whole text would mislead.
    text = "a " * 32 + " internationalisation responsibilities" * 6
    for name, end in (("a.txt", ""), ("b.txt", " no copy")):
        (tmp_path / name).write_text(text + end)
    out, model = tmp_path / "data", save_checkpoint(tmp_path / "model", State(1), opinionated(32), {}, keep=1)
    result = CliRunner().invoke(
        shard_command.main, ["files", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(command("loss", model, "--data", out, "--json"))
    tokens = load_tokenizer().encode(text)[:32]
    assert found["tokens"] == 32
    assert found["text_bytes"] == len(load_tokenizer().decode(tokens)) < 0.4 * len(text)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * 32 / math.log(2) / found["text_bytes"])


@pytest.mark.parametrize("vocab_size", [300, 60_000])
def test_another_vocabulary_is_one_line(vocab_size: int, plays: Dataset, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path, State(1), GPT2(GPT2Config(1, 2, 32, 32, vocab_size)), {}, keep=1)
    for arguments in (["loss", str(model), "--data", str(plays.path)], ["sample", str(model)]):
        result = CliRunner().invoke(eval_command.main, arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith("error: model: expected GPT-2's vocabulary, 50,257 tokens")
        assert f"got {vocab_size:,}" in result.stderr and result.stderr.count("\n") == 1


def test_the_loss_of_examples_is_one_line(run_dir: Path, choices: Dataset) -> None:
    result = CliRunner().invoke(eval_command.main, ["loss", str(run_dir), "--data", str(choices.path)])
    assert result.exit_code == 1
    assert "expected tokens, got multiple-choice" in result.stderr and result.stderr.count("\n") == 1


def test_the_loss_command_says_what_the_run_said(run_dir: Path, plays: Dataset) -> None:
    # The checkpoint that the run directory stands for is its last; log.txt: step, train_loss, val_loss, hella_acc.
    model = load_weights(find_weights(str(run_dir)))
    options = {"seq_len": 32, "max_tokens": 64, "batch_sequences": 2}
    found = validation_loss(model, validation_sequences(plays, **options), ALONE, "float32")
    last = (run_dir / "log.txt").read_text().splitlines()[-1].split()
    assert last[0] == "2"
    assert float(last[2]) == pytest.approx(found, abs=1e-4)


def test_the_sample_command(run_dir: Path) -> None:
    prompts = ["--prompt", "**ROMEO**", "--prompt", "O"]
    options = ["--tokens", 34, "--seed", 3, "--device", "cpu"]  # 34 is more than the model's 32 positions
    output = command("sample", run_dir, *prompts, *options)
    first, second = output.split("\n---\n")
    assert first.startswith("**ROMEO**") and second.startswith("O") and len(first) > 60
    assert command("sample", run_dir, *prompts, *options) == output
    assert command("sample", run_dir, *prompts, *options[:3], 4) != output
    assert command("sample", run_dir, "--prompt", "O", *options) == second


def test_the_report_command(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the report's pictures need the extra `plot`")
    out = tmp_path / "page.html"
    # Without all that would be drawn but its losses.
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    kept = ({name: row[name] for name in ("step", "tokens", "val_loss") if name in row} for row in rows)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert command("report", run_dir, "--out", out) == f"{out}\n"
    text = out.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert re.search(r"validation text, tokens used</th><td>[\d,]+ of the split&#x27;s [\d,]+<", text)
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    assert command("report", run_dir, copy, "--by", "tokens", "--out", out) == f"{out}\n"
    assert "<h1>2 runs of GPT-2 on" in out.read_text(encoding="utf-8")


def test_a_report_of_a_dataset_is_one_line(plays: Dataset) -> None:
    result = CliRunner().invoke(eval_command.main, ["report", str(plays.path)])
    assert result.exit_code == 1
    assert f"expected a run directory, got the dataset {plays.path}" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["hellaswag", "loss", "sample"])
def test_an_absent_model_is_one_line(name: str, plays: Dataset, choices: Dataset, tmp_path: Path) -> None:
    data = {"hellaswag": ["--data", choices.path], "loss": ["--data", plays.path], "sample": []}[name]
    empty = tmp_path / "empty"
    empty.mkdir()
    for model in (tmp_path / "no" / "such" / "model", empty):
        result = CliRunner().invoke(eval_command.main, [name, str(model), *data])
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith(f"error: model {model}: expected a ") and result.stderr.count("\n") == 1


def test_an_absent_run_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(eval_command.main, ["report", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A checkpoint with one weight that is not a number."""
    model = GPT2(GPT2Config(1, 2, 32, n_positions=256))
    with torch.no_grad():
        model.h[0].attn.c_proj.weight[3, 4] = math.nan
    return save_checkpoint(tmp_path, State(1), model, {}, keep=1)


@pytest.mark.parametrize("arguments", [["loss", "--data"], ["hellaswag", "--data"], ["sample"]])
def test_numbers_that_are_none_are_an_error(
    broken: Path, plays: Dataset, choices: Dataset, arguments: list[str]
) -> None:
    name, *rest = arguments
    data = {"loss": [plays.path, "--limit", "2000"], "hellaswag": [choices.path, "--limit", "2"], "sample": []}[name]
    result = CliRunner().invoke(eval_command.main, [name, str(broken), *rest, *data, "--json"])
    assert (result.exit_code, result.stdout) == (1, "")
    said = "error: model: expected finite weights, 1 of h.0.attn.c_proj.weight are not; use an earlier checkpoint"
    assert said in result.stderr


def test_top_p_takes_the_likeliest_that_together_have_it(plays: Dataset) -> None:
    logits = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04]).log()

    def chosen(top_p: float) -> set[int]:
        generator, sampling = torch.Generator().manual_seed(0), Sampling(1, top_k=0, top_p=top_p)
        return {choose_token(logits, sampling, generator) for _ in range(500)}

    assert chosen(0.5) == {0}
    assert chosen(0.51) == chosen(0.79) == {0, 1}
    assert chosen(0.95) == {0, 1, 2, 3}
    assert chosen(1.0) == {0, 1, 2, 3, 4}
