"""TOML and `section.key=value` → a frozen dataclass of frozen dataclasses. Knows no field by name."""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import Error, refuse_other_bytes

Schema = TypeVar("Schema")
Table = dict[str, Mapping[str, Any]]  # a configuration as TOML has it: sections of keys
Source = Callable[[str], str]  # where a key's value was written


def load_config(path: Path | None, overrides: list[str], schema: type[Schema]) -> Schema:
    """Read a configuration file, if given, apply overrides such as `train.max_steps=100`, and fill in defaults.

    A value after `=` is read as TOML, or as a string where it is none: `model.size=gpt2-medium` needs no quotes.
    Raises Error for an unknown key (naming the nearest) and for a value of another type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except OSError as error:
        raise Error(f"configuration {path}: expected a TOML file ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Error(f"configuration {path}: expected TOML ({error})") from None
    except RecursionError:
        raise Error(f"configuration {path}: expected TOML (lists within lists, too many to read)") from None
    sections = set(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not (separator and dot and section and name):
            raise Error(f"expected section.key=value, got {override!r}; for example train.max_steps=100")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            value = text
        values.setdefault(section, {})
        if isinstance(values[section], dict):
            values[section][name] = value
    given = {override.partition("=")[0] for override in overrides}

    def source(key: str) -> str:
        is_given = key.partition("[")[0] in given or ("." not in key and key not in sections)
        return "of the command line" if is_given else str(path or "of defaults")

    return _build(values, schema, source, "")


def dump_config(config: Any) -> str:
    """The configuration as TOML, every value written out."""
    lines = []
    for section in dataclasses.fields(config):
        lines.append(f"[{section.name}]")
        for name, value in vars(getattr(config, section.name)).items():
            lines.append(f"{name} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def explain_config(config: Any) -> str:
    """The configuration as TOML, with what the fields' metadata says of each value: "unit" and "says".

    What a table makes of its other values, where nothing is given (None), is written as a comment.
    """
    lines = []
    for section in dataclasses.fields(config):
        table = getattr(config, section.name)
        lines.append(f"[{section.name}]")
        for field in dataclasses.fields(table):
            value, unit, says = getattr(table, field.name), field.metadata["unit"], field.metadata["says"]
            is_made = field.default is None and dataclasses.replace(table, **{field.name: None}) == table
            line = f"{'# ' if is_made else ''}{field.name} = {_toml(value)}"
            lines.append(f"{line:40}  # {unit and unit + ': '}{says}")
        lines.append("")
    return "\n".join(lines)


def differences(old: Table, new: Table) -> list[str]:
    """`section.key: old → new` for every value that is not the same in two configurations as plain dicts.

    >>> differences({"run": {"seed": 1}}, {"run": {"seed": 2}})
    ['run.seed: 1 → 2']
    """
    keys = [(section, name) for section in (*new, *old) for name in (*new.get(section, {}), *old.get(section, {}))]
    return [
        f"{section}.{name}: {old.get(section, {}).get(name)!r} → {new.get(section, {}).get(name)!r}"
        for section, name in dict.fromkeys(keys)
        if old.get(section, {}).get(name) != new.get(section, {}).get(name)
    ]


def _build(values: Mapping[str, object], schema: type[Any], source: Source, prefix: str) -> Any:
    hints = typing.get_type_hints(schema)
    built = {}
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0)
            raise Error(
                f"configuration {source(prefix + name)}: unknown key {prefix}{name}; did you mean {prefix}{near[0]}?"
            )
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise Error(f"configuration {source(name)}: expected a section [{name}], got {name} = {value!r}")
            built[name] = _build(value, typing.cast(type, hint), source, f"{prefix}{name}.")
        else:
            built[name] = _checked(value, hint, source, f"{prefix}{name}")
    for field in dataclasses.fields(schema):
        if field.name not in built and field.default is field.default_factory is dataclasses.MISSING:
            key = f"{prefix}{field.name}"
            raise Error(f"configuration {source(key)}: expected {key}, got none")
    return schema(**built)


def _checked(value: Any, hint: Any, source: Source, key: str) -> Any:
    options = [hint]
    if isinstance(hint, types.UnionType):  # `float | None`: None is a default that TOML cannot say
        options = [option for option in typing.get_args(hint) if option is not types.NoneType]
        hint = next(
            (option for option in options if isinstance(value, typing.get_origin(option) or option)), options[0]
        )
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if kind is list and isinstance(value, list) and items[0] is float:
        value = [_as_float(each) for each in value]
    value = _as_float(value) if kind is float else value
    good = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if good and items and dataclasses.is_dataclass(items[0]) and all(isinstance(item, dict) for item in value):
        tables = typing.cast(type, items[0])
        return [_build(item, tables, source, f"{key}[{i}].") for i, item in enumerate(value)]
    if good and items:
        good = all(isinstance(item, items[0]) for item in value)
    if not good:
        said = " or ".join(map(_named, options))
        raise Error(f"configuration {source(key)}: {key}: expected {said}, got {value!r}")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            refuse_other_bytes(f"configuration {source(key)}: {key}", text)
    return value


def _as_float(value: Any) -> Any:
    """A whole number as a float; TOML writes 1 where 1.0 is meant."""
    if type(value) is not int:
        return value
    try:
        return float(value)
    except OverflowError:
        return value  # beyond any float, and so not one


def _named(hint: Any) -> str:
    """What a type of the schema is called; a table of its own, by its keys.

    >>> _named(list[str]), _named(int)
    ('a list of texts in quotes', 'a whole number')
    """
    items = typing.get_args(hint)
    if items and dataclasses.is_dataclass(items[0]):
        return "a list of tables {" + ", ".join(f"{field.name} = …" for field in dataclasses.fields(items[0])) + "}"
    if items:
        return {str: "a list of texts in quotes", float: "a list of numbers"}[items[0]]
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if dataclasses.is_dataclass(value):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in vars(value).items()) + "}"
    return repr(value)
