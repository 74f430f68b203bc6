"""What the documents say, held to the code: files, links, keys, command lines, names."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import gpt2wds
from gpt2wds.commands import eval as eval_commands
from gpt2wds.commands import shard as shard_commands
from gpt2wds.commands import train as train_commands
from gpt2wds.commands.settings import Config
from gpt2wds.config import explain_config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted([README, ROOT / "CHANGELOG.md", ROOT / "tools" / "EXPERIMENTS.md", *ROOT.glob("docs/*.md")])
COMMANDS = {
    "gpt2wds-shard": shard_commands.main,
    "gpt2wds-train": train_commands.main,
    "gpt2wds-eval": eval_commands.main,
}


def blocks(path: Path) -> list[str]:
    """The indented blocks of a document, without their indentation."""
    text = re.sub(r"\n\s*\n(?= {4})", "\n    \n", path.read_text(encoding="utf-8"))  # blank lines within a block
    found = re.findall(r"(?:^ {4}.*\n)+", text, flags=re.MULTILINE)
    return ["".join(line[4:] or "\n" for line in block.splitlines(keepends=True)) for block in found]


def command_lines() -> list[str]:
    """Every line of an indented block that runs one of our commands, alone or through torchrun."""
    lines = [line for path in DOCUMENTS for block in blocks(path) for line in block.splitlines()]
    return sorted({line for line in lines if any(name in line.split() for name in COMMANDS)})


def programs() -> list[ast.Module]:
    """The Python programs among the blocks of all documents."""
    texts = [block for path in DOCUMENTS for block in blocks(path)]
    return [ast.parse(text) for text in texts if re.search(r"^(import|from) \w", text, flags=re.MULTILINE)]


def tree() -> set[str]:
    """Paths of the modules that the README's file tree names."""
    paragraphs = [part for block in blocks(README) for part in block.split("\n\n")]
    (block,) = (part for part in paragraphs if part.startswith("gpt2wds/"))
    found: set[str] = set()
    folders: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        folders = folders[:depth]
        if names[0].endswith("/"):
            folders.append(names[0])
        found |= {"".join([*folders, name]) for name in names if name.endswith(".py")}
    return found


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 140


def test_the_file_tree_names_the_modules_that_exist() -> None:
    package = [
        path for path in ROOT.glob("gpt2wds/**/*.py") if path.parent.name == "gpt2wds" or path.stem != "__init__"
    ]
    assert tree() == {str(path.relative_to(ROOT)) for path in package}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other), target


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:configs|docs|examples|tools|tests)/[\w/.-]+\.(?:toml|py|md|png)\b", text))
    assert not {name for name in named if not (ROOT / name).is_file()}


def test_the_configuration_table_is_the_schema() -> None:
    """Every key, its default, its unit and what it says: what --print-config prints."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.\w+)` \| `(.*?)` \| (.*?) ?\| (.*?) ?\|$", text, flags=re.MULTILINE)
    section, expected = "", []
    for line in filter(None, explain_config(Config()).splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
        else:
            key, value, comment = re.match(r"(?:# )?(\w+) = (.*?)\s+# (.+)$", line).groups()
            expected.append((f"{section}.{key}", value, comment))
    assert all(says for *_, says in rows)
    assert [(key, value, (unit and unit + ": ") + says.replace("`", "")) for key, value, unit, says in rows] == expected


def test_there_are_command_lines_and_programs_to_check() -> None:
    assert len(command_lines()) > 30 and len(programs()) > 5


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_parse(line: str) -> None:
    words = shlex.split(line, comments=True)
    at = next(i for i, word in enumerate(words) if word in COMMANDS)
    assert not at or words[0] == "torchrun"
    parse(COMMANDS[words[at]], words[at], words[at + 1 :])
    for word in words[at + 1 :]:
        if words[at] == "gpt2wds-train" and word.endswith(".toml"):
            assert (ROOT / word).is_file()


def parse(command: click.Command, name: str, words: list[str]) -> None:
    """Parse a command line without running it. Raises click's errors for what the command does not know."""
    if isinstance(command, click.Group):
        if words[0] not in command.commands:
            raise click.UsageError(f"no such command {words[0]}")
        name, command, words = words[0], command.commands[words[0]], words[1:]
    command.make_context(name, list(words))


def test_options_in_running_text_exist() -> None:
    known = {"--max-restarts", "--no-python", "--nproc-per-node", "--lm-eval"}  # torchrun's, and a tool's
    known |= {"--signal", "--disable-usage-stats"}  # Slurm's and Ray's
    for command in COMMANDS.values():
        for each in command.commands.values() if isinstance(command, click.Group) else (command,):
            known |= {name for parameter in each.params for name in (*parameter.opts, *parameter.secondary_opts)}
    # The file CHANGELOG.md also tells of what was.
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS if path.parent == ROOT / "docs" or path == README]
    spans = [
        span for text in texts for span in re.findall(r"`([^`\n]+)`", text) if not span.startswith("python tools/")
    ]
    assert {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)} <= known


def test_a_misspelt_option_would_be_found() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(shard_commands.main, "gpt2wds-shard", ["info", "data/mine", "--jsn"])
    with pytest.raises(click.UsageError):
        parse(shard_commands.main, "gpt2wds-shard", ["inform", "data/mine"])


def test_programs_compile_and_import_public_names_only() -> None:
    for program in programs():
        compile(program, "a document", "exec")
        for node in ast.walk(program):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gpt2wds":
                assert node.module == "gpt2wds"
                assert {alias.name for alias in node.names} <= set(gpt2wds.__all__)
