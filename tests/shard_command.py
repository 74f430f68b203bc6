"""gpt2wds-shard for tests: called in this process, which is faster than a new one."""

import sys
from pathlib import Path

from click.testing import CliRunner

from gpt2wds.commands.shard import main

COMMAND = Path(sys.executable).with_name("gpt2wds-shard")


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error, their line ends as they are."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout_bytes.decode(), result.stderr_bytes.decode()


def fails(*arguments: object) -> str:
    """The one line in which it must say what is wrong."""
    code, _, err = run(*arguments)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (1, 1), err
    assert err.endswith(errors[0] + "\n")
    return errors[0]
