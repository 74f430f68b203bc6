"""What a caller gave, checked by its name, so that a wrong one is told at once and not deep inside."""

import operator
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from .errors import Error

Check = Callable[[str, Any], object]  # of an argument's name and value; gives it as it is kept, or raises Error


def whole(name: str, value: object, least: int | None = None) -> int:
    """A whole number of a caller's, as Python's own int. Raises Error for anything else, and for one below `least`.

    >>> whole("val_docs", 1.5, 0)
    Traceback (most recent call last):
    gpt2wds.errors.Error: val_docs: expected a whole number, 0 or more, got 1.5
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        said = "" if least is None else f", {least} or more"
        raise Error(f"{name}: expected a whole number{said}, got {repr(value)[:80]}")
    return number


def text(name: str, value: object) -> str:
    """A text of a caller's. Raises Error for anything else."""
    if not isinstance(value, str):
        raise Error(f"{name}: expected a text, got {repr(value)[:80]}")
    return value


def path_text(name: str, value: object) -> str:
    """A path or URL of a caller's, also one of pathlib's, as a text. Raises Error for anything else."""
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str):
        raise Error(f"{name}: expected a path or a URL, got {repr(value)[:80]}")
    return found


def at_least(least: int) -> Check:
    """The check of a whole number that is not below `least`."""
    return partial(whole, least=least)


def or_none(check: Check) -> Check:
    """A check that lets None be."""
    return lambda name, value: None if value is None else check(name, value)


def keep_checked(request: object, **checks: Check) -> None:
    """Check fields of a frozen dataclass, which is just being made, and keep what the checks give.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Limit:
    ...     documents: int | None = None
    ...     def __post_init__(self) -> None:
    ...         keep_checked(self, documents=or_none(at_least(1)))
    >>> Limit(), Limit(2)
    (Limit(documents=None), Limit(documents=2))
    >>> Limit(0)
    Traceback (most recent call last):
    gpt2wds.errors.Error: documents: expected a whole number, 1 or more, got 0
    """
    for name, check in checks.items():
        object.__setattr__(request, name, check(name, getattr(request, name)))
