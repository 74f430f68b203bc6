"""JSON that may be anybody's: whatever is read can be shown, compared and written again; and JSON with a check.

A check is a member of an object: the SHA-256 of all its other members, however they are laid out.
"""

import hashlib
import json
import math
from typing import Any

from .errors import Error, reason

CHECK = "check"
Record = dict[str, Any]  # JSON's object, at its edge only (test_architecture.py says where)
LEVELS = 64  # of lists and objects within one another; Python's own limit depends on who calls
_OUTER = (dict, list)
_TOO_DEEP = f"expected at most {LEVELS} levels of lists and objects within one another, got more"


def load_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises Error for what is no JSON, infinite numbers, and more than LEVELS levels.

    >>> load_json(b'{"tokens": [1, 2.5]}')
    {'tokens': [1, 2.5]}
    """
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise Error(_TOO_DEEP) from None
    except ValueError as error:
        raise Error(f"it is no JSON ({reason(error)})") from None
    if is_deeper(value, LEVELS):
        raise Error(_TOO_DEEP)
    return value


def is_deeper(value: Any, levels: int) -> bool:
    """Whether a value of JSON has more than so many levels of lists and objects within one another.

    >>> is_deeper([[]], 2), is_deeper([[]], 1), is_deeper(1, 0)
    (False, True, False)
    """
    level = [value] if isinstance(value, _OUTER) else []
    for _ in range(levels):
        if not level:
            return False
        level = [each for outer in level for each in _members(outer) if isinstance(each, _OUTER)]
    return bool(level)


def checked(record: Record) -> Record:
    """A JSON object with its check."""
    others = {name: value for name, value in record.items() if name != CHECK}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"))  # keys sorted, no blanks, ASCII alone
    return {**others, CHECK: hashlib.sha256(text.encode("ascii")).hexdigest()}


def refuse_damage(record: Record) -> None:
    """Raises Error for an object that has a check and is not as it was written."""
    if CHECK in record and record[CHECK] != checked(record)[CHECK]:
        raise Error("it is not as it was written: its check does not fit")


def _members(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text[:20]} is no number")
    return float(text)
