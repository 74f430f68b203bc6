"""Who imports whom: read from the source with ast, so that an import inside a function counts too."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gpt2wds

PACKAGE = Path(gpt2wds.__file__).parent
FOLDERS = ("tests", "tools", "examples")
PROGRAMS = sorted(path for folder in FOLDERS for path in PACKAGE.parent.glob(f"{folder}/**/*.py"))


def module_name(path: Path) -> str:
    return ".".join(("gpt2wds", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name: str, path: Path) -> set[str]:
    """Modules of ours that a module's source asks for, by full name."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import shards` asks for a module, `from . import Dataset` for the package itself.
            found |= {f"{source}.{a.name}" if f"{source}.{a.name}" in MODULES else source for a in node.names}
    return found & MODULES.keys()


# The package itself imports a public name when it is first used (test_public.py): it stands on nothing.
GRAPH = {name: imported(name, path) for name, path in MODULES.items() if name != "gpt2wds"} | {"gpt2wds": set()}


WINGS = ("corpus", "dataset", "train", "evaluate", "commands")


def wing(name: str) -> str:
    """The wing a module is in, "" for those that stand on the ground floor."""
    second = name.split(".")[1] if "." in name else ""
    return second if second in WINGS else ""


def test_the_graph_is_read_right() -> None:
    assert {"gpt2wds.files", "gpt2wds.model"} <= GRAPH["gpt2wds.train.checkpoint"]
    assert {"gpt2wds.version", "gpt2wds.config", "gpt2wds.commands.common"} <= GRAPH["gpt2wds.commands.train"]
    assert "gpt2wds.dataset.shards" in GRAPH["gpt2wds.dataset.directory"]


def test_some_modules_stand_alone() -> None:
    for name in ("tokenizer", "vocabulary", "dataset.shards", "attention", "head", "distributed", "config"):
        assert GRAPH[f"gpt2wds.{name}"] <= {"gpt2wds.errors", "gpt2wds.vocabulary"}, name
    assert GRAPH["gpt2wds.model"] <= {"gpt2wds.errors", "gpt2wds.arguments", "gpt2wds.attention", "gpt2wds.head"}


def test_wings_stand_on_the_dataset_and_not_on_each_other() -> None:
    may = {"": {""}, "dataset": {"", "dataset"}, "corpus": {"", "dataset", "corpus"}, "train": {"", "dataset", "train"},
           "evaluate": {"", "dataset", "evaluate"}, "commands": {"", *WINGS}}  # fmt: skip
    for name, asked in GRAPH.items():
        for other in asked:
            assert wing(other) in may[wing(name)], f"{name} imports {other}"


def test_every_module_has_a_room() -> None:
    ground = {name.split(".")[1] for name in MODULES if "." in name and not wing(name)}
    words = "__main__ errors arguments rows strict_json version config"
    storage = "files folder stores locations ranges repository patience"
    language = "vocabulary tokenizer fast_tokenizer model attention head distributed malloc"
    assert ground <= {*words.split(), *storage.split(), *language.split()}


def test_only_commands_know_the_configuration() -> None:
    assert all(wing(name) == "commands" for name, asked in GRAPH.items() if "gpt2wds.config" in asked)


def test_only_commands_know_commands() -> None:
    for name, asked in GRAPH.items():
        if not name.startswith("gpt2wds.commands"):
            assert not any(other.startswith("gpt2wds.commands") for other in asked), name


def test_no_module_imports_itself_by_way_of_others() -> None:
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names the cycle


def test_modules_and_functions_are_short() -> None:
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None and node.end_lineno - node.lineno < 60, (path, node.name)


def test_sharding_files_of_this_machine_needs_neither_torch_nor_fsspec() -> None:
    # Workers start often and in numbers; torch would cost each of them seconds and hundreds of megabytes.
    slow = {"torch", "webdataset", "fsspec", "asyncio", "importlib.metadata", "tqdm"}  # the latter: a tenth of a second
    script = f"import sys, gpt2wds.commands.shard; print(sorted({slow} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_begins_without_what_only_shards_of_a_model_need() -> None:
    # SymPy, which comes with them, and the Hub's client take as long as half of torch.
    slow = {"torch.distributed.tensor", "torch.distributed.fsdp", "sympy", "huggingface_hub.hf_api", "matplotlib"}
    script = f"import sys, gpt2wds.commands.launch; print(sorted({slow} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Modules that read or write JSON whose members are not all ours: open objects, and what strangers wrote.
JSON_EDGE = {
    "strict_json",
    "locations",
    *(f"dataset.{name}" for name in ("manifest", "mixture", "loader", "verify", "publish")),
    *(f"corpus.{name}" for name in ("corpora", "plan", "sources")),
    "train.checkpoint",
}


def loose_tables(source: str) -> set[str]:
    """Types of a source's parameters, results, members and aliases that say nothing of a table but that its keys are
    texts: `Record`, `dict[str, Any]`. What a function has for itself, such as keywords for another's, may be one."""
    annotations: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            annotations += [
                node.returns,
                *(each.annotation for each in ast.walk(node.args) if isinstance(each, ast.arg)),
            ]
        elif isinstance(node, ast.ClassDef | ast.Module):
            annotations += [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]
            annotations += [each.value for each in node.body if isinstance(each, ast.Assign)]
    found = {ast.unparse(part) for each in annotations if each for part in ast.walk(each) if isinstance(part, ast.expr)}
    return found & {"dict[str, Any]", "Mapping[str, Any]", "Record"}


def test_tables_without_types_are_at_jsons_edge_only() -> None:
    """Elsewhere an object that travels is a frozen dataclass or a TypedDict."""
    found = {name.removeprefix("gpt2wds."): loose_tables(path.read_text("utf-8")) for name, path in MODULES.items()}
    assert {name for name, tables in found.items() if "Record" in tables} == JSON_EDGE
    # What Record is, and its like in TOML.
    assert {name for name, tables in found.items() if tables - {"Record"}} == {"strict_json", "config"}
    for path in (PACKAGE.parent / "tools").glob("*.py"):
        assert loose_tables(path.read_text("utf-8")) == set(), path.name


def test_a_table_without_types_would_be_found() -> None:
    for line in (
        "x: dict[str, Any] = {}",
        "Table = dict[str, dict[str, Any]]",
        "class C:\n    x: Record | None = None",
        "def f(*, x: Mapping[str, Any]): ...",
        "def f() -> list[Record]: ...",
    ):
        assert loose_tables(line), line
    assert not loose_tables("def f(x: dict[str, object], y: Any) -> dict[str, int]:\n    z: dict[str, Any] = {}")


def private_names_of_ours() -> set[str]:
    """Names with one underscore in front that a module of ours gives to a function, a class, a value or a member."""
    found = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__") and name != "_"}


PRIVATE = private_names_of_ours()


def reached_into(source: str) -> set[str]:
    """Private names of ours that a program asks others for: as a member, in an import, or as the words of a patch."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found |= {node.attr} if not is_own else set()
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call):
            words = [value.value for value in node.args[:2] if isinstance(value, ast.Constant)]
            found |= {word.rpartition(".")[2] for word in words if isinstance(word, str)}
    return found & PRIVATE


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_tests_and_tools_use_public_names_only(path: Path) -> None:
    assert reached_into(path.read_text(encoding="utf-8")) == set()


def test_a_private_name_would_be_found() -> None:
    assert {"_runner", "_at", "_OpenExamples"} <= PRIVATE
    for line in (
        "sharding._runner(1)",
        "file()._at",
        "from gpt2wds.corpus.sharding import _runner",
        "patch.setattr(sharding, '_runner', None)",
        "patch.setattr('gpt2wds.corpus.sharding._runner', 1)",
    ):
        assert reached_into(line), line
    assert not reached_into("self._at = os._exit(1)")
