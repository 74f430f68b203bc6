"""HellaSwag of any causal language model of `transformers`, with its own tokenizer, in lm-eval's way.

    python examples/any_model.py data/hellaswag EleutherAI/pythia-70m

Questions have the texts as lm-eval shows them; a model gives the log-probability of each ending after its context, and
`scores` makes the same accuracies of them as for a GPT-2 of gpt2wds (but acc_norm_tokens, which counts GPT-2 tokens).
"""

import argparse
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt2wds import Dataset, Error, load_questions, scores


@torch.no_grad()
def log_probability(model: torch.nn.Module, context: list[int], ending: list[int]) -> float:
    """Sum of the ending's log-probabilities after the context, in nats; the last tokens that the model can hold."""
    ids = torch.tensor([(context + ending)[-model.config.max_position_embeddings - 1 :]])
    log_p = model(ids[:, :-1]).logits[0, -len(ending) :].float().log_softmax(dim=-1)
    return log_p.gather(1, ids[0, -len(ending) :, None]).sum().item()


def main(data: str, name: str) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    # The number of positions only matters for GPT-2's own tokens, of which none are used here.
    questions = load_questions(Dataset(data), "lm-eval", n_positions=1 << 30)
    sums = np.zeros((len(questions.labels), 4))
    for number, (context, endings) in enumerate(questions.texts):
        given = tokenizer(context.rstrip())["input_ids"]
        for choice, ending in enumerate(endings):
            # Encoded together and cut by the context's own length, as lm-eval does.
            whole = tokenizer(f"{context} {ending}")["input_ids"]
            sums[number, choice] = log_probability(model, given, whole[len(given) :])
    for score, value in scores(questions, sums).items():
        print(f"{score}: {value}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="dataset directory that gpt2wds-shard hellaswag made")
    parser.add_argument("model", help="directory of a Hugging Face model, or its name on the Hub")
    args = parser.parse_args()
    try:
        main(args.data, args.model)
    except (Error, OSError) as error:  # what a user can mend
        sys.exit(str(error))
