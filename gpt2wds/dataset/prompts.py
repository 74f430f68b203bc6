"""Multiple-choice examples in HellaSwag's schema → what each prompt mode shows the model.

Two modes, because two ways to score HellaSwag are in use and their numbers differ:

* `completion`: the context, a space and the ending, encoded apart and joined (as in "let's reproduce GPT-2");
* `lm-eval`: as in EleutherAI's harness: "activity: context", second part capitalised, WikiHow's bracketed tags
  removed; context and ending encoded together and split by the context's own length.

A prompt is stored as five "documents": the context and the four endings, each after `<|endoftext|>`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from ..errors import Error, reason
from ..strict_json import load_json
from ..tokenizer import END_OF_TEXT, Tokenizer
from .members import npy_tokens

MODES = ("completion", "lm-eval")
ENDINGS = 4
MAX_EXAMPLE_BYTES = 1 << 20  # of an example's JSON; HellaSwag's have 1 to 2 KB


class Example(TypedDict):
    """A question in HellaSwag's schema: a context, the endings to choose from, and which is right."""

    ind: int
    activity_label: str
    ctx_a: str
    ctx_b: str
    ctx: str
    endings: list[str]
    label: int


class StoredExample(Example):
    """An example of a dataset. prompts: by mode, (tokens,) uint16 (see split_prompt)."""

    prompts: dict[str, np.ndarray]


def read_examples(path: Path) -> Iterator[Example]:
    """Examples of a JSON-lines file in HellaSwag's schema. Raises Error that names the line."""
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_EXAMPLE_BYTES + 1), b""), 1):
            if line.strip():
                count += 1
                yield checked_example(line, f"{path} line {number}")
    if not count:
        raise Error(f"{path}: expected examples in HellaSwag's schema, got an empty file")


def prompt_texts(example: Example, mode: str) -> tuple[str, list[str]]:
    """What a mode shows of an example: the context, and the endings that follow it after a space."""
    if mode == "completion":
        return example["ctx"], example["endings"]
    context = harness_text(f"{example['activity_label']}: {example['ctx_a']} {example['ctx_b'].capitalize()}")
    return context, [harness_text(ending) for ending in example["endings"]]


def prompt_tokens(example: Example, mode: str, tokenizer: Tokenizer) -> np.ndarray:
    """(tokens,) uint16: `<|endoftext|>` context, then `<|endoftext|>` ending, four times."""
    context, endings = prompt_texts(example, mode)
    if mode == "completion":
        pieces = [tokenizer.encode(context), *(tokenizer.encode(" " + ending) for ending in endings)]
    else:
        # The harness moves blanks at the context's end to the ending before it encodes both together.
        context_ids = tokenizer.encode(context.rstrip())
        joined = [tokenizer.encode(f"{context} {ending}") for ending in endings]
        pieces = [context_ids, *(ids[len(context_ids) :] for ids in joined)]
    separator = np.array([END_OF_TEXT], dtype=np.uint16)
    return np.concatenate([array for piece in pieces for array in (separator, piece)])


def stored_example(key: str, members: Mapping[str, bytes]) -> StoredExample:
    """The example of a shard's sample. Raises Error."""
    missing = [name for name in ("json", *(f"{mode}.npy" for mode in MODES)) if name not in members]
    if missing:
        raise Error(f"{key}: expected a member {missing[0]}, got none")
    example = checked_example(members["json"], key)
    prompts = {mode: npy_tokens(members[f"{mode}.npy"]) for mode in MODES}
    for mode, tokens in prompts.items():
        starts = np.flatnonzero(tokens == END_OF_TEXT)
        texts = np.diff(starts, append=len(tokens)) - 1  # tokens of context and endings; only the context may be empty
        if (tokens > END_OF_TEXT).any() or len(texts) != 1 + ENDINGS or starts[0] or not texts[1:].all():
            raise Error(f"{key}: expected the tokens of a context and {ENDINGS} endings in {mode}.npy")
    return {**example, "prompts": prompts}


def split_prompt(tokens: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The context and the endings of a stored prompt."""
    context, *endings = np.split(tokens, np.flatnonzero(tokens == END_OF_TEXT))[1:]
    return context[1:], [ending[1:] for ending in endings]


def harness_text(text: str) -> str:
    """What lm-eval's hellaswag task makes of a text.

    >>> harness_text("[header] How to fry [title] Heat oil.  Wait. [step] Then")
    ' How to fry. Heat oil. Wait. Then'
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def checked_example(line: bytes, where: str) -> Example:
    """An example from its JSON. Raises Error, beginning with `where`, for what is not HellaSwag's schema."""
    if len(line) > MAX_EXAMPLE_BYTES:
        raise Error(f"{where}: expected an example of at most {MAX_EXAMPLE_BYTES:,} bytes, got more")
    try:
        example = load_json(line.decode("utf-8"))
    except ValueError as error:
        start = line.strip()[:40].decode("utf-8", "backslashreplace")
        raise Error(f"{where}: expected a JSON object in HellaSwag's schema, got {start!r} ({reason(error)})") from None
    if isinstance(example, dict) and example.get("label") in ("0", "1", "2", "3"):
        example["label"] = int(example["label"])  # as the Hub's copy of HellaSwag has it
    kinds = {"ind": int, "activity_label": str, "ctx_a": str, "ctx_b": str, "ctx": str, "endings": list, "label": int}
    for name, kind in kinds.items():
        value = example.get(name) if isinstance(example, dict) else None
        if name == "label" and value in (None, ""):
            raise Error(
                f"{where}: expected a label from 0 to {ENDINGS - 1}, got none, as in HellaSwag's test split; "
                "use its validation split"
            )
        if type(value) is not kind:
            got = "nothing" if value is None else f"{str(value)[:40]!r}"
            raise Error(f"{where}: expected {name!r} to be {kind.__name__}, as in HellaSwag's schema, got {got}")
    if len(example["endings"]) != ENDINGS or not all(isinstance(e, str) and e.strip() for e in example["endings"]):
        raise Error(f"{where}: expected {ENDINGS} endings with text, got {str(example['endings'])[:80]}")
    if not 0 <= example["label"] < ENDINGS:
        raise Error(f"{where}: expected a label from 0 to {ENDINGS - 1}, got {example['label']}")
    try:
        json.dumps(example, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise Error(f"{where}: expected text, got half of a surrogate pair") from None
    return cast(Example, {name: example[name] for name in kinds})
