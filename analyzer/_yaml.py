"""Text files that people write, as values that know their place. Rule: knows YAML and nothing of
specifications or clusters.

Everything a file holds stays text: no scalar is guessed to be a number, a date or a boolean, so a node
named ``no`` or ``0x10`` keeps its name. Only an unquoted empty value or ``null`` is None. Anchors, aliases,
tags and further documents have no use in these files and are refused, which leaves no way to make a short
file large.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

if TYPE_CHECKING:
    from analyzer.errors import AnalyzerError

T = TypeVar("T")

MAX_YAML_CHARACTERS = 16 << 20
MAX_DEPTH = 64
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Only its event parser is used: no object is ever constructed from a tag."""

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_STRING_TAG = "tag:yaml.org,2002:str"
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def quote(text: object, limit: int = 60) -> str:
    """A foreign value for an error message: quoted, escaped, and cut after ``limit`` characters."""
    whole = str(text)
    return repr(whole if len(whole) <= limit else whole[: limit - 1] + "…")


def near(word: str, known: Iterable[str]) -> str:
    """`` did you mean 'x'?`` for the best near match of ``word`` among ``known``, else an empty text."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {match[0]!r}?" if match else ""


def printable(text: str, error: type[AnalyzerError], what: str = "a name") -> str:
    """``text`` itself; ``error`` when it is blank or holds a control or other unprintable character."""
    if not text.strip():
        raise error(f"{what} is empty", next_step="write one")
    if not text.isprintable():
        raise error(
            f"{what} holds unprintable characters: {quote(text)}", next_step="use printable characters only"
        )
    return text


def prose(text: str, error: type[AnalyzerError]) -> str:
    """``text`` on one line (titles, descriptions, sources); may be empty, must be printable."""
    line = " ".join(text.split())
    return printable(line, error, "a text") if line else ""


@contextlib.contextmanager
def located(place: str, errors: type[AnalyzerError], *, replace: bool = False) -> Iterator[None]:
    """Give ``place`` to an error of this kind raised inside that has none yet, or to any with ``replace``."""
    try:
        yield
    except errors as fault:
        fault.where = place if replace else fault.where or place
        raise


@dataclass(frozen=True, eq=False)
class Marked:
    """A value and its place: text, None, a list of Marked, or a dict of text to Marked.

    ``place`` is what an error names ("nodes.yaml, line 7"); ``key_places`` holds a mapping's places of
    keys. Every reading method raises ``error`` with the place when the value is not what it is read as.
    """

    value: Any
    place: str
    error: type[AnalyzerError]
    key_places: dict[str, str] = field(default_factory=dict)

    def fault(self, what: str, next_step: str = "") -> AnalyzerError:
        """The error to raise for this value."""
        return self.error(what, where=self.place, next_step=next_step)

    def kind(self) -> str:
        """What it is, for people."""
        return {str: "a text", list: "a list", dict: "a mapping", type(None): "nothing"}[type(self.value)]

    def text(self) -> str:
        """The scalar as it is written."""
        if not isinstance(self.value, str):
            raise self.fault(f"a text is needed here, not {self.kind()}", "write one value")
        return self.value

    def read(self, parse: Callable[[str], T]) -> T:
        """``parse(text)``, whose error gets this place."""
        with located(self.place, self.error):
            return parse(self.text())

    def items(self) -> list[Marked]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self.fault(
                f"a list is needed here, not {self.kind()}", "write [a, b] or one '- …' line for each"
            )
        return self.value

    def mapping(self, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Marked]:
        """A mapping's fields; any other key is a fault, and so is a missing one."""
        if not isinstance(self.value, dict):
            raise self.fault(
                f"a mapping is needed here, not {self.kind()}", f"its keys: {', '.join(required)}"
            )
        known = required + optional
        for key in self.value:
            if key not in known:
                advice = near(key, known) or f"known keys: {', '.join(dict.fromkeys(known))}"
                raise self.error(f"unknown key {quote(key)}", where=self.key_places[key], next_step=advice)
        for key in required:
            if key not in self.value:
                raise self.fault(f"the key {key!r} is missing", "add it")
        return self.value

    def plain(self) -> Any:
        """The same without places."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        return [item.plain() for item in self.value] if isinstance(self.value, list) else self.value


class _Builder:
    """Parser events to Marked, without recursion."""

    def __init__(self, where: str, error: type[AnalyzerError]) -> None:
        self.where = where
        self.error = error
        self.root: Marked | None = None
        self.open: list[Marked] = []
        self.keys: list[Marked | None] = []

    def feed(self, event: yaml.Event) -> None:
        place = self.place(event.start_mark)
        self.refuse(event, place)
        if isinstance(event, yaml.ScalarEvent):
            empty = event.implicit[0] and not event.style and event.value in _NULLS
            self.add(Marked(None if empty else event.value, place, self.error))
        elif isinstance(event, yaml.CollectionStartEvent):
            item = Marked({} if isinstance(event, yaml.MappingStartEvent) else [], place, self.error)
            self.add(item)
            self.enter(item)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.open.pop()
            self.keys.pop()

    def place(self, mark: Any) -> str:
        return f"{self.where}, line {mark.line + 1}" if mark else self.where

    def refuse(self, event: yaml.Event, place: str) -> None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise self.error(
                "anchors and aliases are not read here", where=place, next_step="write the value out"
            )
        tag = getattr(event, "tag", None)
        if tag and tag != _STRING_TAG:
            raise self.error(
                f"the tag {quote(tag)} is not read here", where=place, next_step="leave the tag out"
            )
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise self.error(
                "a second document begins", where=place, next_step="keep one document in the file"
            )

    def enter(self, item: Marked) -> None:
        if len(self.open) >= MAX_DEPTH:
            raise item.fault(f"nested deeper than {MAX_DEPTH} levels", "is it the right file?")
        self.open.append(item)
        self.keys.append(None)

    def add(self, item: Marked) -> None:
        if not self.open:
            self.root = item
            return
        holder, key = self.open[-1], self.keys[-1]
        if isinstance(holder.value, list):
            holder.value.append(item)
        elif key is None:
            self.keys[-1] = self.new_key(holder, item)
        else:
            holder.value[key.value] = item
            self.keys[-1] = None

    @staticmethod
    def new_key(holder: Marked, key: Marked) -> Marked:
        name = key.text()
        if name in holder.key_places:
            raise key.fault(f"the key {quote(name)} is there twice", f"first in {holder.key_places[name]}")
        holder.key_places[name] = key.place
        return key


def parse_yaml(text: str, *, where: str, error: type[AnalyzerError]) -> Marked:
    """One YAML document as Marked values; places are "``where``, line n". Raises ``error`` for all else."""
    if len(text) > MAX_YAML_CHARACTERS:
        raise error(
            f"larger than {MAX_YAML_CHARACTERS >> 20} Mi characters",
            where=where,
            next_step="is it the right file?",
        )
    builder = _Builder(where, error)
    try:
        for event in yaml.parse(text, Loader=LOADER):
            builder.feed(event)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        what = f"no valid YAML: {fault.problem or fault.context}"
        raise error(what, where=builder.place(mark), next_step="correct the syntax there") from None
    except yaml.YAMLError as fault:
        raise _unreadable(text, fault, where, error) from None
    if builder.root is None or builder.root.value is None:
        raise error("the file is empty", where=where, next_step="is it the right file?")
    return builder.root


def _unreadable(text: str, fault: yaml.YAMLError, where: str, error: type[AnalyzerError]) -> AnalyzerError:
    """The error for a character that YAML does not allow; the loaders do not tell its line."""
    allowed = {"\t", "\n", "\r", "\x85"}
    bad = next(
        (i for i, c in enumerate(text) if c not in allowed and (c < " " or "\x7f" <= c <= "\x9f")), None
    )
    if bad is None:
        return error(
            f"no valid YAML: {getattr(fault, 'reason', fault)}", where=where, next_step="is it YAML?"
        )
    line = text.count("\n", 0, bad) + 1
    what = f"a control character, {quote(text[bad])}, which YAML does not allow"
    return error(what, where=f"{where}, line {line}", next_step="is it the right file?")


def mark_plain(value: object, *, where: str, error: type[AnalyzerError], depth: int = 0) -> Marked:
    """Python values (dict, list, str, int) as Marked; places are paths such as ``nodes[2].addresses``."""
    if depth > MAX_DEPTH:
        raise error(f"nested deeper than {MAX_DEPTH} levels", where=where, next_step="is it the right value?")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise error("a key is no text", where=where, next_step="write the keys as texts")
        places = {key: f"{where}.{key}".lstrip(".") for key in value}
        items = {k: mark_plain(v, where=places[k], error=error, depth=depth + 1) for k, v in value.items()}
        return Marked(items, where, error, places)
    if isinstance(value, list | tuple):
        pairs = enumerate(value)
        return Marked(
            [mark_plain(v, where=f"{where}[{i}]", error=error, depth=depth + 1) for i, v in pairs],
            where,
            error,
        )
    if value is None or isinstance(value, str):
        return Marked(value, where, error)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Marked(str(value), where, error)
    raise error(f"a {type(value).__name__} is not read here", where=where, next_step="write it as a text")


def dump_yaml(document: dict[str, Any]) -> str:
    """YAML for people: keys in their order, lists of words on one line."""
    text: str = yaml.safe_dump(
        document, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
    return text


def read_text(path: str | Path, error: type[AnalyzerError], *, limit: int = 256 << 20) -> str:
    """The text of a file, or of standard input for ``-``: UTF-8, or UTF-16 with its byte order mark.

    Raises ``error`` when it cannot be opened, is longer than ``limit`` bytes, or is no such text.
    """
    where = place_of(path)
    try:
        data = read_bytes(path, limit + 1)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"cannot be read: {reason}", where=where, next_step="name a readable file") from None
    if len(data) > limit:
        raise error(f"larger than {limit >> 20} MiB", where=where, next_step="is it the right file?")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise error(
            "no UTF-8 text", where=f"{where}, line {line}", next_step="is it the right file?"
        ) from None


def read_bytes(path: str | Path, limit: int) -> bytes:
    """At most so many, of a file or of standard input for ``-``. Raises OSError."""
    if path == "-":
        if sys.stdin is None:
            raise OSError(errno.EBADF, "it is closed")
        return sys.stdin.buffer.read(limit)
    with Path(path).open("rb") as file:
        return file.read(limit)


def place_of(path: str | Path) -> str:
    """A file's name for an error message."""
    shown = "standard input" if path == "-" else str(path)
    return shown if shown.isprintable() else quote(shown, limit=200)
