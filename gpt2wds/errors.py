"""What a user can mend: one line that says what was expected, what came, and what to do."""

import os
import re

# What moves a terminal's cursor, ends a line, turns the writing around, or is no character at all.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Error(ValueError):
    """An expected failure: bad input, a damaged file, a source that changed. Commands print one line, exit code 1.

    Every other exception but an OSError (disk, network) is a mistake of ours, and comes with its traceback.
    """


class Unanswered(Error):
    """A store did not give what it was asked for: that says nothing of the file there, which may be sound."""


class NoRanges(Unanswered):
    """A server, or a proxy before it, ignores byte ranges: asked again, it would give no other answer."""


class EngineError(Error):
    """A fast tokenizer engine gave other ids than tiktoken."""


def refuse_other_bytes(what: str, name: str) -> None:
    r"""Raise Error for a name whose bytes are no UTF-8, where it would have to go into a text. `what` begins the line.

    >>> refuse_other_bytes("run.dir", "caf\udce9")
    Traceback (most recent call last):
    gpt2wds.errors.Error: run.dir: expected names in UTF-8, got b'caf\xe9'; rename it
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise Error(f"{what}: expected names in UTF-8, got {os.fsencode(name)!r}; rename it") from None


def reason(error: BaseException) -> str:
    """Why, in one line: the first line of an exception's message, all of an Error's, or the class where it has none.

    >>> reason(OSError(28, "No space left on device"))
    'No space left on device'
    >>> reason(TimeoutError())
    'TimeoutError'
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(error, Error):  # what ends a line of it is in a name
        return " ".join(lines)
    return lines[0] if lines else type(error).__name__


def counted(number: int, noun: str) -> str:
    """A number of things, in a message.

    >>> counted(1, "document"), counted(12_000, "document")
    ('1 document', '12,000 documents')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shown(text: object, keep: str = "") -> str:
    r"""Text that may hold anything, such as others' file names, for a terminal: control characters as escapes.

    keep: those that stay as they are.

    >>> shown("texts/a\x1b[2J\nb.txt"), shown("a\tb\n", keep="\n\t")
    ('texts/a\\x1b[2J\\nb.txt', 'a\tb\n')
    """
    return _CONTROLS.sub(lambda c: c[0] if c[0] in keep else ascii(c[0])[1:-1], str(text))


def shown_json(text: str) -> str:
    r"""JSON, in whose texts alone control characters can be: to a parser it stays the same.

    >>> shown_json('["\u202e"]')
    '["\\u202e"]'
    """
    return _CONTROLS.sub(lambda c: f"\\u{ord(c[0]):04x}", text)
