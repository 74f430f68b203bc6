"""The public names: what `gpt2wds` offers to Python, no more and no less."""

import ast
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2wds

HEAVY = ("torch", "webdataset", "datasets", "pyarrow", "transformers")
# As the house's drawing has them; who adds a name adds it there too.
NAMES = {
    "Error", "Dataset", "StepBatches", "validation_sequences", "load_tokenizer", "Tokenizer", "GPT2", "GPT2Config",
    "load_weights", "Questions", "load_questions", "score", "scores", "make_dataset", "Files",
    "HubDataset", "MultipleChoice", "OnRay", "Plays", "Cut",
}  # fmt: skip
WITH_ARRAYS = {"StepBatches", "validation_sequences", "Dataset", "Tokenizer", "Questions", "GPT2", "scores"}
WITH_EXAMPLES = {"Dataset", "StepBatches", "Tokenizer", "Files"}


def loaded(code: str) -> set[str]:
    """Which of the heavy packages a program has loaded in the end."""
    script = f"import sys\n{code}\nprint(*(set({HEAVY!r}) & sys.modules.keys()))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_names_are_these() -> None:
    assert set(gpt2wds.__all__) == NAMES
    assert {name for name in dir(gpt2wds) if not name.startswith("_")} == NAMES
    assert len(gpt2wds.__all__) == len(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(gpt2wds, name)
    assert getattr(gpt2wds, name) is value and value.__name__ == name
    text = inspect.getdoc(value) or ""
    assert len(text.split()) > 5
    assert not text.startswith(f"{name}("), "a dataclass without a docstring of its own"
    if name in WITH_EXAMPLES:
        assert ">>> " in text
    if name in WITH_ARRAYS:
        assert any(mark in inspect.getsource(value) for mark in ("(tokens,)", "(E, 4)", "seq_len + 1)", "(B, T"))


def test_editors_and_type_checkers_know_the_same_names() -> None:
    tree = ast.parse(Path(gpt2wds.__file__).read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {f"{alias.name}": node.module for node in guarded.body for alias in node.names}
    assert set(declared) == NAMES
    for name in NAMES:
        assert getattr(gpt2wds, name).__module__ == f"gpt2wds.{declared[name]}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gpt2wds' has no attribute 'nothing'"):
        _ = gpt2wds.nothing
    with pytest.raises(ImportError):
        exec("from gpt2wds import nothing")


def test_importing_loads_nothing_heavy_before_it_is_used() -> None:
    assert loaded("import gpt2wds; dir(gpt2wds); from gpt2wds import Error, Dataset, load_tokenizer") == set()
    # Which is noticed: making a dataset needs pyarrow, and no torch.
    assert loaded("from gpt2wds import make_dataset, Files, HubDataset, Plays, Cut") == {"pyarrow"}


def test_errors_are_value_errors() -> None:
    assert issubclass(gpt2wds.Error, ValueError)
    assert str(pickle.loads(pickle.dumps(gpt2wds.Error("said")))) == "said"
