"""Multiple-choice examples → prompts: what each mode shows, token by token, and what is no such example."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import shared_file
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2wds import prompts
from gpt2wds.tokenizer import END_OF_TEXT, load_tokenizer

SAMPLE = Path(prompts.__file__).parent / "data" / "multiple_choice_sample.jsonl"


def example(**changes: Any) -> dict[str, Any]:
    first = {"ind": 4, "activity_label": "Making tea", "ctx_a": "A kettle boils.", "ctx_b": "she"}
    rest = {"ctx": "A kettle boils. she", "endings": ["pours it.", "sings.", "sleeps.", "flies off."], "label": 0}
    return {**first, **rest, **changes}


def shown(mode: str, **changes: Any) -> tuple[str, list[str]]:
    """Context and endings as text, the way the model is shown them."""
    tokenizer = load_tokenizer()
    context, endings = prompts.split_prompt(prompts.prompt_tokens(example(**changes), mode, tokenizer))
    return tokenizer.decode(context), [tokenizer.decode(ending) for ending in endings]


# What lm-eval's task makes of a text, by hand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", "plain text"),
        ("  blanks outside \n", "blanks outside"),
        ("[header] How to fry [title] Heat oil.", " How to fry. Heat oil."),
        ("One. [step] Two. [substeps] Three.", "One. Two. Three."),
        ("[title] At the start", " At the start"),
        ("twice [title] and [title] again", "twice. and. again"),
        ("not greedy [a] b] c", "not greedy b] c"),
        ("open [bracket", "open [bracket"),
        ("over [two\nlines] stays", "over [two\nlines] stays"),
        ("two  blanks", "two blanks"),
        # Once only, from the left: as the harness does it.
        ("three   blanks, four    blanks", "three  blanks, four  blanks"),
        ("Stop. [step]", "Stop. "),
        ("[step]", ""),
    ],
)
def test_harness_text(text, expected):
    assert prompts.harness_text(text) == expected


# What the model is shown


def test_completion_shows_context_and_endings_as_they_are():
    context, endings = shown("completion", ctx="[header] Tea  [title] boil. she", endings=["a", " b", "[c] d", "e  f"])
    assert context == "[header] Tea  [title] boil. she"
    assert endings == [" a", "  b", " [c] d", " e  f"]


def test_lm_eval_shows_label_and_both_contexts():
    assert shown("lm-eval") == (
        "Making tea: A kettle boils. She",
        [" pours it.", " sings.", " sleeps.", " flies off."],
    )


def test_lm_eval_capitalises_the_second_part_and_lowers_the_rest():
    assert shown("lm-eval", ctx_b="then John smiles")[0] == "Making tea: A kettle boils. Then john smiles"


def test_lm_eval_takes_ctx_a_and_ctx_b_not_ctx():
    assert shown("lm-eval", ctx="something else") == shown("lm-eval")


@pytest.mark.parametrize(
    ("ctx_a", "ctx_b"), [("A kettle boils.", ""), ("A kettle boils. [step]", ""), ("A kettle boils.", "[step]")]
)
def test_lm_eval_moves_blanks_at_the_contexts_end_to_the_ending(ctx_a, ctx_b):
    """GPT-2 writes a blank with the word after it: a context that ends in one would split that word's token."""
    context, endings = shown("lm-eval", ctx_a=ctx_a, ctx_b=ctx_b)
    text = prompts.harness_text(f"Making tea: {ctx_a} {ctx_b.capitalize()}")
    assert context == text.rstrip() == "Making tea: A kettle boils."
    blanks = text[len(context) :]
    assert endings == [f"{blanks} {ending}" for ending in example()["endings"]]


def test_the_trailing_blank_case_really_has_one():
    context, endings = shown("lm-eval", ctx_a="A kettle boils. [step]", ctx_b="")
    assert (context, endings[1]) == ("Making tea: A kettle boils.", "  sings.")


def test_token_by_token():
    encode = load_tokenizer().encode
    context, *endings = [encode(text).tolist() for text in ("A kettle boils. she", " a", " b", " c", " d")]
    tokens = prompts.prompt_tokens(example(endings=list("abcd")), "completion", load_tokenizer())
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [token for part in (context, *endings) for token in (END_OF_TEXT, *part)]


def test_lm_eval_encodes_context_and_ending_together():
    """A tag removed from an ending's start leaves two blanks: together they are other tokens than apart."""
    tokenizer = load_tokenizer()
    tokens = prompts.prompt_tokens(example(endings=["[x] a b", "c", "d", "e"]), "lm-eval", tokenizer)
    context, endings = prompts.split_prompt(tokens)
    together = tokenizer.encode("Making tea: A kettle boils. She   a b".replace("   ", "  "))
    np.testing.assert_array_equal(np.concatenate((context, endings[0])), together)


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
FILLED = TEXT.filter(str.strip)


@settings(deadline=None)
@given(TEXT, TEXT, TEXT, st.lists(FILLED, min_size=4, max_size=4), st.sampled_from(prompts.MODES))
def test_a_prompt_comes_apart_into_context_and_four_endings(ctx, ctx_a, ctx_b, endings, mode):
    tokenizer = load_tokenizer()
    record = example(ctx=ctx, ctx_a=ctx_a, ctx_b=ctx_b, endings=endings)
    tokens = prompts.prompt_tokens(record, mode, tokenizer)
    context, parts = prompts.split_prompt(tokens)
    assert len(parts) == 4
    again = [piece for part in (context, *parts) for piece in ([END_OF_TEXT], part)]
    np.testing.assert_array_equal(np.concatenate(again), tokens)
    if mode == "completion":
        assert tokenizer.decode(context) == ctx
        assert [tokenizer.decode(part) for part in parts] == [" " + ending for ending in endings]
    else:
        text = prompts.harness_text(f"Making tea: {ctx_a} {ctx_b.capitalize()}")
        for part, ending in zip(parts, endings, strict=True):
            joined = tokenizer.decode(np.concatenate((context, part)))
            if len(tokenizer.encode(text.rstrip())) == len(context):
                assert joined.startswith(text.rstrip()[:5]) and len(joined) >= len(text.rstrip())
            assert joined == f"{text} {prompts.harness_text(ending)}" or context.tolist() != _start(joined, context)


def _start(text: str, context: np.ndarray) -> list[int]:
    return load_tokenizer().encode(text)[: len(context)].tolist()


def test_special_text_is_plain_text():
    assert shown("completion", ctx="<|endoftext|> she")[0] == "<|endoftext|> she"
    assert shown("lm-eval", endings=["<|endoftext|>", "b", "c", "d"])[1][0] == " <|endoftext|>"


def test_lengths_of_endings_are_as_the_mode_shows_them():
    record = example(endings=["a", "[step] é", "two  ", "日本"])
    assert prompts.ending_lengths(record, "completion") == [(1, 1), (8, 9), (5, 5), (2, 6)]
    assert prompts.ending_lengths(record, "lm-eval") == [(1, 1), (2, 3), (3, 3), (2, 6)]


# Files


def read(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return list(prompts.read_examples(path))


def test_only_the_schemas_fields_are_kept_and_blank_lines_do_not_count(tmp_path):
    line = json.dumps(example(split="val", source_id="x")).encode()
    assert read(tmp_path / "a.jsonl", line, b"", b"  ", line + b"\r") == [example(), example()]


BAD = [
    (b"no json", "expected a JSON object in HellaSwag's schema, got 'no json'"),
    (b"{", "expected a JSON object"),
    (b"\xff\xfe", "expected a JSON object"),
    (b'{"ind": "\xe9"}', "expected a JSON object"),
    (b"[" * 100_000, "expected a JSON object"),
    (b"[]", "expected 'ind' to be int"),
    (b"null", "expected 'ind' to be int"),
    (json.dumps({"text": "a document"}).encode(), "expected 'ind' to be int"),
    (json.dumps(example(ind="4")).encode(), "expected 'ind' to be int"),
    (json.dumps(example(ctx=None)).encode(), "expected 'ctx' to be str"),
    (json.dumps(example(endings="four")).encode(), "expected 'endings' to be list"),
    (json.dumps(example(label="0")).encode(), "expected 'label' to be int"),
    (json.dumps(example(label=True)).encode(), "expected 'label' to be int"),
    (json.dumps(example(label=4)).encode(), "expected a label from 0 to 3, got 4"),
    (json.dumps(example(label=-1)).encode(), "expected a label from 0 to 3, got -1"),
    (json.dumps(example(endings=["a", "b", "c"])).encode(), "expected 4 endings with text"),
    (json.dumps(example(endings=["a", "b", "c", "d", "e"])).encode(), "expected 4 endings with text"),
    (json.dumps(example(endings=["a", "b", "c", " "])).encode(), "expected 4 endings with text"),
    (json.dumps(example(endings=["a", "b", "c", 4])).encode(), "expected 4 endings with text"),
    (json.dumps(example(ctx_b="\ud800")).encode(), "expected text"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=range(len(BAD)))
def test_an_error_names_the_line(tmp_path, line, message):
    good = json.dumps(example()).encode()
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "a.jsonl", good, b"", line, good)
    assert str(caught.value).startswith(f"{tmp_path / 'a.jsonl'} line 3: {message}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(tmp_path)) + 250


@pytest.mark.parametrize("lines", [[], [b"", b"  "]])
def test_a_file_without_examples_is_refused(tmp_path, lines):
    with pytest.raises(ValueError, match=r"a\.jsonl: expected examples in HellaSwag's schema, got an empty file"):
        read(tmp_path / "a.jsonl", *lines)


# Through the shards


def test_every_example_of_the_sample_comes_back(choices):
    tokenizer = load_tokenizer()
    originals = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    found = list(choices.examples("val"))
    assert len(found) == len(originals) == 36
    for original, back in zip(originals, found, strict=True):
        stored = back.pop("prompts")
        assert back.items() <= original.items()
        assert back.keys() == example().keys()
        assert stored.keys() == set(prompts.MODES)
        context, endings = prompts.split_prompt(stored["completion"])
        assert tokenizer.decode(context) == original["ctx"]
        assert [tokenizer.decode(ending) for ending in endings] == [f" {ending}" for ending in original["endings"]]
        for mode, tokens in stored.items():
            np.testing.assert_array_equal(tokens, prompts.prompt_tokens(original, mode, tokenizer))


def test_a_thousand_real_examples_are_read():
    tokenizer = load_tokenizer()
    count = 0
    for record in prompts.read_examples(shared_file("hellaswag_val_1000.jsonl")):
        for mode in prompts.MODES:
            context, endings = prompts.split_prompt(prompts.prompt_tokens(record, mode, tokenizer))
            assert len(context) and len(endings) == 4 and all(len(ending) for ending in endings)
        count += 1
    assert count == 1000
