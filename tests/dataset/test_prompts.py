"""Multiple-choice examples: what each prompt mode shows the model, and that nothing wrong is read in silence."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import shared_file

from gpt2wds.dataset import prompts
from gpt2wds.dataset.prompts import harness_text, prompt_texts, prompt_tokens, read_examples, split_prompt
from gpt2wds.tokenizer import load_tokenizer

SAMPLE = Path(prompts.__file__).parents[1] / "data" / "multiple_choice_sample.jsonl"
EXAMPLE = {
    "ind": 3,
    "activity_label": "Frying eggs",
    "ctx_a": "[header] How to fry an egg [title] Heat the pan.",
    "ctx_b": "a COOK",
    "ctx": "[header] How to fry an egg [title] Heat the pan. a COOK",
    "endings": ["breaks it.", " waits [substeps] long. ", "runs", "eats  it [title] Well"],
    "label": 0,
}


def decoded(tokens: np.ndarray) -> tuple[str, list[str]]:
    """Texts of the context and the endings of a stored prompt."""
    context, endings = split_prompt(tokens)
    return load_tokenizer().decode(context), [load_tokenizer().decode(ending) for ending in endings]


def write(path: Path, *lines: str | dict) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Plain text.", "Plain text."),
        ("  blanks around \n", "blanks around"),
        ("two  blanks,   three", "two blanks,  three"),
        ("Heat. [title] Then wait.", "Heat.. Then wait."),
        ("Heat [title] Then wait.", "Heat. Then wait."),
        ("[title] First", " First"),
        ("a [step] b [substeps] c", "a b c"),
        ("ends in a tag [step]", "ends in a tag "),
        ("[a [b] c]", " c]"),
        ("[across\nlines]", "[across\nlines]"),
        ("[header]", ""),
    ],
)
def test_text_as_the_harness_changes_it(text, expected):
    assert harness_text(text) == expected


def test_completion_mode_shows_the_texts_as_they_are():
    context, endings = decoded(prompt_tokens(EXAMPLE, "completion", load_tokenizer()))
    assert context == EXAMPLE["ctx"]
    assert endings == [" " + ending for ending in EXAMPLE["endings"]]


def test_harness_mode_shows_label_and_capitalised_second_part():
    context, endings = decoded(prompt_tokens(EXAMPLE, "lm-eval", load_tokenizer()))
    # str.capitalize also lowers the rest, as in the harness.
    assert context == "Frying eggs: How to fry an egg. Heat the pan. A cook"
    assert endings == [" breaks it.", " waits long.", " runs", " eats it. Well"]


@pytest.mark.parametrize(
    ("second_part", "context", "blank"),
    [
        ("", "Frying eggs: Heat.", ""),
        ("then [step]", "Frying eggs: Heat. Then", " "),
        ("then", "Frying eggs: Heat. Then", ""),
    ],
)
def test_blanks_at_the_contexts_end_go_to_the_endings(second_part, context, blank):
    example = EXAMPLE | {"ctx_a": "Heat.", "ctx_b": second_part}
    found, endings = decoded(prompt_tokens(example, "lm-eval", load_tokenizer()))
    assert found == context
    assert endings[0] == blank + " breaks it."


def test_harness_mode_encodes_context_and_ending_together():
    tokenizer = load_tokenizer()
    for example in (EXAMPLE, EXAMPLE | {"ctx_b": "then [step]"}):
        context, endings = split_prompt(prompt_tokens(example, "lm-eval", tokenizer))
        shown = harness_text(f"{example['activity_label']}: {example['ctx_a']} {example['ctx_b'].capitalize()}")
        for ending, tokens in zip(example["endings"], endings, strict=True):
            whole = tokenizer.encode(f"{shown} {harness_text(ending)}")
            np.testing.assert_array_equal(np.concatenate([context, tokens]), whole)


PART = st.lists(st.integers(0, 50_255), max_size=5).map(lambda ids: np.array(ids, dtype=np.uint16))


@given(PART, st.lists(PART, min_size=4, max_size=4))
def test_a_stored_prompt_is_split_into_its_parts(context, endings):
    pieces = [np.concatenate([np.array([50256], dtype=np.uint16), part]) for part in (context, *endings)]
    found_context, found_endings = split_prompt(np.concatenate(pieces))
    np.testing.assert_array_equal(found_context, context)
    assert [ending.tolist() for ending in found_endings] == [ending.tolist() for ending in endings]


@settings(deadline=None)
@given(st.sampled_from(prompts.MODES), st.lists(st.text(max_size=20).filter(str.strip), min_size=7, max_size=7))
def test_every_prompt_has_a_context_and_four_endings(mode, texts):
    label, first, second, *endings = texts
    example = EXAMPLE | {"activity_label": label, "ctx_a": first, "ctx_b": second, "ctx": first, "endings": endings}
    tokens = prompt_tokens(example, mode, load_tokenizer())
    assert tokens.dtype == np.uint16
    context, found = split_prompt(tokens)
    assert [len(ending) > 0 for ending in (context, *found)] == [True] * 5
    if mode == "completion":
        assert decoded(tokens) == (first, [" " + ending for ending in endings])


def test_endings_are_without_the_space_before_them():
    example = EXAMPLE | {"endings": ["café", "a [step] b", "runs", "eats"]}
    assert prompt_texts(example, "completion")[1] == ["café", "a [step] b", "runs", "eats"]
    assert prompt_texts(example, "lm-eval")[1] == ["café", "a b", "runs", "eats"]


def test_examples_are_read_with_the_fields_of_the_schema(tmp_path):
    path = write(tmp_path / "a.jsonl", EXAMPLE | {"split": "val", "source_id": "x"}, "", EXAMPLE | {"ctx_b": "é\u2028"})
    assert list(read_examples(path)) == [EXAMPLE, EXAMPLE | {"ctx_b": "é\u2028"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no JSON", "expected a JSON object in HellaSwag's schema, got 'no JSON'"),
        ('{"ind": 1', "expected a JSON object"),
        (
            "[" * 100_000,
            f"expected a JSON object in HellaSwag's schema, got '{'[' * 40}' (expected at most 64 levels of",
        ),
        ("[" * 2_000_000, "expected an example of at most 1,048,576 bytes, got more"),
        ("[1]", "expected 'ind' to be int"),
        (EXAMPLE | {"ind": "1"}, "expected 'ind' to be int"),
        (EXAMPLE | {"label": ""}, "expected a label from 0 to 3, got none"),
        (EXAMPLE | {"label": None}, "expected a label from 0 to 3, got none"),
        (EXAMPLE | {"label": "7"}, "expected 'label' to be int, as in HellaSwag's schema, got '7'"),
        (EXAMPLE | {"ctx": None}, "expected 'ctx' to be str"),
        ({name: value for name, value in EXAMPLE.items() if name != "ctx_b"}, "expected 'ctx_b' to be str"),
        (EXAMPLE | {"endings": "text"}, "expected 'endings' to be list"),
        (EXAMPLE | {"endings": ["a", "b", "c"]}, "expected 4 endings with text"),
        (EXAMPLE | {"endings": ["a", "b", "c", 4]}, "expected 4 endings with text"),
        (EXAMPLE | {"endings": ["a", "b", "c", " "]}, "expected 4 endings with text"),
        (EXAMPLE | {"label": 4}, "expected a label from 0 to 3, got 4"),
        (EXAMPLE | {"label": -1}, "expected a label from 0 to 3, got -1"),
        (EXAMPLE | {"ctx": "a\ud800"}, "expected text, got half of a surrogate pair"),
    ],
)
def test_an_error_names_the_line(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", EXAMPLE, "", line)
    with pytest.raises(ValueError) as caught:
        list(read_examples(path))
    assert str(caught.value).startswith(f"{path} line 3: {message}")
    assert len(str(caught.value)) < 400


def test_a_line_that_is_no_utf8_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", EXAMPLE)
    path.write_bytes(path.read_bytes() + b'{"ind": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl line 2: expected a JSON object"):
        list(read_examples(path))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_examples_is_refused(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="expected examples in HellaSwag's schema, got an empty file"):
        list(read_examples(path))


def test_every_example_of_the_sample_comes_back(choices):
    source = list(read_examples(SAMPLE))
    stored = list(choices.examples("val"))
    assert len(source) == len(stored) == 36
    for example, found in zip(source, stored, strict=True):
        modes = found.pop("prompts")
        assert found == example
        assert decoded(modes["completion"]) == (example["ctx"], [" " + ending for ending in example["endings"]])
        for mode in prompts.MODES:
            np.testing.assert_array_equal(modes[mode], prompt_tokens(example, mode, load_tokenizer()))


def test_real_examples_in_harness_mode_join_to_the_harnesss_text():
    tokenizer = load_tokenizer()
    for example in read_examples(shared_file("hellaswag_val_1000.jsonl")):
        context, endings = split_prompt(prompt_tokens(example, "lm-eval", tokenizer))
        shown = harness_text(f"{example['activity_label']}: {example['ctx_a']} {example['ctx_b'].capitalize()}")
        for text, ending in zip(example["endings"], endings, strict=True):
            assert tokenizer.decode(np.concatenate([context, ending])) == f"{shown} {harness_text(text)}"
