"""JSON documents of earlier runs, read back. Rule: trusts nothing in them; what the schema says is checked
value by value, and nothing is judged.

Read is what runs are compared by: :data:`NEEDED`. What a later version adds to a document is passed over, so
that a kept one outlives an update; what is read is of the shape that ``schema/document.json`` says.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from analyzer._yaml import located, place_of, quote, read_text
from analyzer.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

NEEDED = ("schema", "spec", "cluster", "coverage", "pairs", "findings")
MAX_BYTES = 256 << 20
_ADVICE = "is it what `rke2-flows check --json` wrote?"
_ANOTHER = "make it again with this version: rke2-flows check … --json"

#: JSON Schema's name of a type → test; a bool is no number, though Python says so
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number with a fraction",
    bool: "true or false",
    type(None): "null",
}
_WANTED = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
}

#: JSON Schema's keyword → (does it hold?, what to say where it does not); those that the schema uses
_TESTS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "const": (lambda v, wanted: type(v) is type(wanted) and v == wanted, "{value} is not {wanted}"),
    "enum": (lambda v, known: isinstance(v, str) and v in known, "{value} is none of {wanted}"),
    "minimum": (lambda v, least: not isinstance(v, int) or v >= least, "{value} is below {wanted}"),
    "maximum": (lambda v, most: not isinstance(v, int) or v <= most, "{value} is above {wanted}"),
    "minLength": (lambda v, least: not isinstance(v, str) or len(v) >= least, "the text is empty"),
    "maxItems": (lambda v, most: not isinstance(v, list) or len(v) <= most, "more than {wanted} are listed"),
    "pattern": (
        lambda v, pattern: not isinstance(v, str) or re.search(_ended(pattern), v) is not None,
        "{value} is not of the form {wanted}",
    ),
}


_HALF = re.compile("[\ud800-\udfff]")
"""JSON can write it, UTF-8 cannot."""


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the document, as it is shipped."""
    text = files("analyzer.schema").joinpath("document.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@dataclass(frozen=True)
class Document:
    """What is needed of one run's JSON document.

    `name`: what to call it. `window`: seconds in which at least one source watched; 0 where it is not known.
    `pairs`, `findings`: rows as :data:`analyzer.pairs.COLUMNS` and
    :data:`analyzer.findings.COLUMNS` say, as dicts of plain values. `coverage`: ledgers, times as texts.
    """

    name: str
    spec: str
    cluster: str
    window: float
    coverage: tuple[dict[str, Any], ...]
    pairs: tuple[dict[str, Any], ...]
    findings: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, name: str, document: dict[str, Any]) -> Document:
        """From the values of a document that is known to be one (:func:`analyzer.report.document`).

        Raises CaptureError where a ledger's time is no date.
        """
        lists = {part: tuple(document[part]) for part in ("coverage", "pairs", "findings")}
        window = _seconds(_windows(document["coverage"], name))
        return cls(name, document["spec"]["name"], document["cluster"]["name"], window, **lists)


def _windows(coverage: list[dict[str, Any]], where: str) -> Iterator[tuple[datetime, datetime]]:
    for number, ledger in enumerate(coverage):
        with located(f"{where}, coverage[{number}]", CaptureError):
            watched = [
                tuple(_time(window[name]) for name in ("start", "end"))
                for window in ledger.get("windows") or [ledger]
            ]
        yield from ((start, end) for start, end in watched if start and end)


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        raise CaptureError(f"{quote(text)} is no date and time", next_step=_ADVICE) from None


def _seconds(windows: Iterable[tuple[datetime, datetime]]) -> float:
    """How long at least one of the windows was open."""
    whole, until = timedelta(), None
    for start, end in sorted(windows):
        begin = max(start, until) if until else start
        whole += max(end - begin, timedelta())
        until = max(end, until) if until else end
    return whole.total_seconds()


def read_document(path: str | Path) -> Document:
    """The JSON document of `path` (``-`` is standard input), checked.

    Raises CaptureError where it cannot be read, is no JSON, or is not what ``check --json`` writes; says the
    line, or the place in it.
    """
    return parse_document(read_text(path, CaptureError, limit=MAX_BYTES), where=place_of(path))


def parse_document(text: str, *, where: str) -> Document:
    """See :func:`read_document`; `where` names the text."""
    value = _parsed(text, where)
    if not isinstance(value, dict):
        raise CaptureError(f"{_kind(value)} is no document", where=where, next_step=_ADVICE)
    _check_number(value, where)
    for part in NEEDED:
        if part not in value:
            raise CaptureError(
                f"the key {part!r} is missing", where=where, next_step=f"{_ADVICE} else {_ANOTHER}"
            )
        for place, fault in faults(value[part], schema()["properties"][part], part):
            raise CaptureError(fault, where=f"{where}, {place}", next_step=_ADVICE)
    _check_unique(value, where)
    return Document.of(where, value)


def _check_number(value: dict[str, Any], where: str) -> None:
    known = schema()["properties"]["schema"]["const"]
    found = value.get("schema")
    if not _TYPES["integer"](found):
        raise CaptureError("it has no schema number", where=where, next_step=_ADVICE)
    if found != known:
        what = f"a document of schema {_shown(found)}; this version reads {known}"
        raise CaptureError(what, where=where, next_step=_ANOTHER)


def _check_unique(value: dict[str, Any], where: str) -> None:
    """What is compared by a key has it once."""
    keys = {"findings": ("id",), "pairs": ("client", "server", "protocol", "port")}
    for part, names in keys.items():
        seen: dict[tuple[Any, ...], int] = {}
        for number, row in enumerate(value[part]):
            first = seen.setdefault(tuple(row[name] for name in names), number)
            if first != number:
                place = f"{where}, {part}[{number}]"
                raise CaptureError(f"the same as {part}[{first}]", where=place, next_step=_ADVICE)


# ---- JSON ----


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_doubles)
    except json.JSONDecodeError as fault:
        place = f"{where}, line {fault.lineno}"
        raise CaptureError(f"no valid JSON: {fault.msg}", where=place, next_step=_ADVICE) from None
    except (_NoJSONError, RecursionError, ValueError) as fault:
        what = _UNREADABLE.get(type(fault), str(fault))
        raise CaptureError(f"no valid JSON: {what}", where=where, next_step=_ADVICE) from None


class _NoJSONError(Exception):
    """What Python's reader takes, and JSON does not have."""


_UNREADABLE = {RecursionError: "nested too deep", ValueError: "a number of thousands of digits"}


def _no_constant(name: str) -> Any:
    raise _NoJSONError(f"{name} is no JSON number")


def _no_doubles(items: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(items)
    if len(whole) != len(items):
        names = [name for name, _ in items]
        raise _NoJSONError(f"the key {quote(max(names, key=names.count))} is there twice")
    return whole


# ---- the schema ----


def faults(value: Any, shape: dict[str, Any], place: str) -> Iterator[tuple[str, str]]:
    """(place, what is wrong) of each fault of `value` under `shape`, a part of the schema.

    Knows the keywords that the schema uses. Keys that it does not name are passed over.
    """
    if "$ref" in shape:
        shape = schema()["$defs"][shape["$ref"].rpartition("/")[2]]
    types = [shape["type"]] if isinstance(shape.get("type"), str) else shape.get("type", ())
    if types and not any(_TYPES[name](value) for name in types):
        yield place, f"{_kind(value)} stands where {' or '.join(_WANTED[name] for name in types)} should"
        return
    if isinstance(value, str) and _HALF.search(value):
        yield place, f"{quote(value)} holds half of a character (a lone surrogate)"
    for keyword, (holds, words) in _TESTS.items():
        if keyword in shape and not holds(value, shape[keyword]):
            wanted = shape[keyword]
            named = ", ".join(filter(None, wanted)) if isinstance(wanted, list) else str(wanted)
            yield place, words.format(value=_shown(value), wanted=named)
    yield from _inner_faults(value, shape, place)


def _inner_faults(value: Any, shape: dict[str, Any], place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from faults(item, shape.get("items", {}), f"{place}[{number}]")
    elif isinstance(value, dict):
        for name in shape.get("required", ()):
            if name not in value:
                yield place, f"the key {name!r} is missing"
        for name, inner in shape.get("properties", {}).items():
            if name in value:
                yield from faults(value[name], inner, f"{place}.{name}")


def _ended(pattern: str) -> str:
    """Python's ``$`` also stands before a last newline; JSON Schema's does not."""
    return f"{pattern.removesuffix('$')}\\Z" if pattern.endswith("$") else pattern


def _kind(value: Any) -> str:
    return _KINDS[type(value)]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return _kind(value)
    return quote(value) if isinstance(value, str) else quote(json.dumps(value)).strip("'")
