"""What a user can mend: one line that says what was expected, what came, and what to do."""


class Error(ValueError):
    """An expected failure: bad input, a damaged file, a source that changed. Commands print one line, exit code 1.

    Every other exception but an OSError (disk, network) is a mistake of ours, and comes with its traceback.
    """


class EngineError(Error):
    """A fast tokenizer engine gave other ids than tiktoken."""


def reason(error: BaseException) -> str:
    """Why, in one line: the first line of an exception's message, or its class where it has none.

    >>> reason(OSError(28, "No space left on device"))
    'No space left on device'
    >>> reason(TimeoutError())
    'TimeoutError'
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def counted(number: int, noun: str) -> str:
    """A number of things, in a message.

    >>> counted(1, "document"), counted(12_000, "document")
    ('1 document', '12,000 documents')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
