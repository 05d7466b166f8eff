"""Flow tables and one-way rows in files, and what a list of inputs holds. Rule: the only room that reads and
writes tables; it changes no value.

A flow table is for people and other programs: Parquet keeps types, the interval and the coverage ledger, CSV
and JSON Lines keep the table. A part is one-way rows in Parquet, and loses nothing: it is what a live capture
writes for each interval. A file is written beside its place and renamed, so that no reader sees half of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from analyzer.capture.offline import COMPRESSIONS, Progress, read_captures
from analyzer.errors import CaptureError
from analyzer.rows import Coverage, Observer, OneWay, alike, merge

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import pandas as pd

    from analyzer.columns import FlowColumns

SCHEMA = 1
METADATA_KEY = b"rke2-flows"
_ROWS = "rows"  # what the notes of a part say that it is; those of a flow table say nothing
_INTERVAL_LIMIT = 2**63  # ns
#: what a part is called that takes the place of others: from when to when
COMPACTED = re.compile(r"\d{8}T\d{6}\.\d{3}Z-\d{8}T\d{6}\.\d{3}Z(-\d+)?\.parquet")
_LISTINGS = 20  # how often a folder is listed again that changes meanwhile
_CAPTURE_MAGICS = (
    b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x34\xcd\xb2\xa1",
    b"\xa1\xb2\xcd\x34", b"\x0a\x0d\x0d\x0a", *(magic for magic, _, _ in COMPRESSIONS),
)  # fmt: skip


@dataclass(frozen=True)
class FlowFile:
    """A flow table as a file holds it."""

    table: pd.DataFrame
    coverage: tuple[Coverage, ...] = ()
    interval: int = 0


# ---- inputs ----


def read_inputs(
    paths: Sequence[str | Path],
    *,
    interval: int = 0,
    progress: Progress = lambda _: None,
    since: int = 0,
    until: int = _INTERVAL_LIMIT,
    nodes: Collection[str] = (),
    threads: int | None = None,
) -> OneWay:
    """Captures, flow files, parts of a live capture and folders of them, as one table of one-way rows. ``-``
    is a capture on standard input.

    Of several intervals the longest stands, where the others divide it. A folder may be compacted or pruned
    meanwhile: it is listed again, and each packet counts once.

    `since`, `until` (ns) and `nodes` choose parts, whole ones, so that rows and ledgers still agree: those in
    which something was recorded from `since` on and before `until`, by these nodes (none: all). Of the others
    nothing but the notes is read. `threads`: as :func:`~analyzer.capture.offline.read_captures` has it.

    Raises CaptureError where one is missing or is neither, and where a folder holds none; and where parts are
    to be chosen: for an input that is no part, for a node that no part has, and where none is left.
    """
    chosen = Choice(since, until, frozenset(nodes))
    for _ in range(_LISTINGS):
        files = list(expand(paths))
        try:
            return _read_files(chosen.of(files), interval, progress, threads)
        except CaptureError:
            if not _vanished(files, paths):
                raise
    raise _restless(" ".join(map(str, paths)))


class Choice(NamedTuple):
    """Which parts of a store to read. `since`, `until`: ns; `nodes`: names, none for all."""

    since: int = 0
    until: int = _INTERVAL_LIMIT
    nodes: frozenset[str] = frozenset()

    def of(self, files: Sequence[Path]) -> Sequence[Path]:
        """Those among these files. Raises CaptureError as :func:`read_inputs` says."""
        if self == Choice():
            return files
        notes = {path: _part_notes(path) for path in files}
        known = frozenset().union(*(note.sources for note in notes.values()))
        if not self.nodes <= known:
            raise CaptureError(
                f"no part is of node {min(self.nodes - known)}",
                next_step=f"there are {', '.join(sorted(known))}",
            )
        found = [path for path, note in notes.items() if self._has(note)]
        if not found:
            raise CaptureError(
                "nothing was recorded in this time", next_step="`rke2-flows store show` says when it was"
            )
        return found

    def _has(self, note: Notes) -> bool:
        if self.nodes and not note.sources & self.nodes:
            return False
        return any(start < self.until and end >= self.since for start, end in note.windows)


def _part_notes(path: Path) -> Notes:
    note = read_notes(path)
    if note is None:
        raise CaptureError(
            "is no part of a store, so no time or node of it can be chosen",
            where=str(path),
            next_step="leave it out, or choose nothing",
        )
    return note


def _vanished(files: Sequence[Path], given: Sequence[str | Path]) -> bool:
    """Whether a file is gone that a folder's listing had. What was named itself is not looked for again, and
    standard input can be read but once.
    """
    named = {Path("-"), *map(Path, given)}
    return Path("-") not in files and any(not path.exists() for path in files if path not in named)


def _restless(where: str) -> CaptureError:
    return CaptureError(
        "changes faster than it can be read", where=where, next_step="try again when less is deleted there"
    )


def _read_files(files: Sequence[Path], interval: int, progress: Progress, threads: int | None) -> OneWay:
    tables = {path: kind_of(path) in FLOW_FILES for path in files}
    captures = [path for path in files if not tables[path]]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        parts = list(pool.map(read_flows, (path for path in files if tables[path])))
    if captures:
        parts.insert(0, read_captures(captures, interval=interval, progress=progress, threads=threads))
    return merge(alike(parts))


def expand(paths: Sequence[str | Path]) -> Iterator[Path]:
    """Files as they are, folders as the captures, flow files and parts in them, by name; each file once.

    What is hidden in a folder stays so: a part that is being written has such a name. A part of which another
    one among them says that it took its place is left out: what compacted them was stopped before it deleted
    it.
    """
    files: dict[str, Path] = {}
    for path in (found for given in paths for found in _files_of(_path(given))):
        # realpath, unlike resolve(), bears a loop of links
        files.setdefault("-" if str(path) == "-" else os.path.realpath(path), path)
    left_out = replaced(list(files.values()))
    yield from (path for path in files.values() if path not in left_out)


def _path(given: str | Path) -> Path:
    if not str(given):
        raise CaptureError(
            "an empty name is no file", next_step="give captures, flow files or folders of them"
        )
    return Path(given)


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = files_in(path)
    if not files:
        raise CaptureError(
            "no capture and no flow file in this folder",
            where=str(path),
            next_step="give a folder with pcap, pcapng or Parquet files",
        )
    return files


def files_in(folder: Path) -> list[Path]:
    """The captures, flow files and parts in a folder and below it, by name; none where it has none.

    A part may appear in one folder and those whose place it takes be deleted from another while they are
    listed. So all is listed twice: what was there when the first listing ended is in one of the two, or what
    took its place is; and what is in one of them and gone makes it begin anew.
    """
    for _ in range(_LISTINGS):
        seen = {path for _ in range(2) for path in _listed(folder)}
        files = [path for path in sorted(seen) if path.is_file() and kind_of(path)]
        if all(map(os.path.lexists, seen)):
            return files
    raise _restless(str(folder))


def _listed(folder: Path) -> Iterator[Path]:
    """What is not hidden, files and folders."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in (*folders, *names) if not name.startswith("."))


def replaced(files: Sequence[Path]) -> set[Path]:
    """Which of these parts have their rows in another of them as well, which took their place.

    Raises CaptureError where one that has the name of a compacted part is damaged.
    """
    gone = {entry for path in files if COMPACTED.fullmatch(path.name) for entry in _replaces(path)}
    names = {name for name, _ in gone}
    return {path for path in files if path.name in names and (path.name, content_id(path)) in gone}


def _replaces(path: Path) -> list[tuple[str, str]]:
    """Names and content ids. A file that is gone says nothing; who reads it will find that out."""
    try:
        with _told(path), _opened(path) as (_, notes):
            return [(_text(name), _text(content)) for name, content in notes.get("replaces", [])]
    except CaptureError:
        if path.exists():
            raise
        return []


def content_id(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; empty where it is gone."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def kind_of(path: Path) -> str:
    """`capture`, `parquet`, `csv` or `jsonl` by the file's first bytes; empty for anything else."""
    if str(path) == "-" or not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return ""
    starts = {
        "parquet": (b"PAR1",),
        "csv": (b"source,witnesses,",),
        "jsonl": (b'{"source":',),
        "capture": _CAPTURE_MAGICS,
    }
    return next((kind for kind, magics in starts.items() if head.startswith(magics)), "")


# ---- reading tables ----


def read_flows(path: str | Path) -> OneWay:
    """A flow file, taken apart into one-way rows so that it can be merged with captures and other flow files;
    or a part of a live capture, which holds one-way rows as they are.

    Raises CaptureError where it is neither.
    """
    path = Path(path)
    if kind_of(path) == "parquet":
        with _told(path):
            part = _read_part(path)
        if part is not None:
            return part
    from analyzer.flows import unpair  # noqa: PLC0415  see read_flow_file

    file = read_flow_file(path)
    return unpair(file.table, file.coverage, file.interval)


def read_rows(path: str | Path) -> OneWay:
    """A part, as :func:`write_rows` wrote it. Raises CaptureError where it is none."""
    path = Path(path)
    part = None
    if kind_of(path) == "parquet":
        with _told(path):
            part = _read_part(path)
    if part is None:
        raise CaptureError(
            "is not a part of a live capture",
            where=str(path),
            next_step="give what `rke2-flows capture -o` wrote",
        )
    return part


class Notes(NamedTuple):
    """What a part says of itself. `windows`: from when to when something was recorded, ns; `records`: how
    many it holds.
    """

    sources: frozenset[str]
    coverage: tuple[Coverage, ...]
    interval: int
    windows: tuple[tuple[int, int], ...]
    records: int


def read_notes(path: Path) -> Notes | None:
    """A part's notes, without its records; None for any other file. Raises CaptureError where it is
    damaged.
    """
    if kind_of(path) != "parquet":
        return None
    with _told(path), _opened(path) as (file, notes):
        if notes.get("kind") != _ROWS:
            return None
        coverage = _ledgers(notes)
        sources = frozenset(_text(source) for source, *_ in notes["observers"])
        return Notes(sources, coverage, _interval(notes), _windows(notes, coverage), file.metadata.num_rows)


def _windows(notes: dict[str, Any], coverage: Sequence[Coverage]) -> tuple[tuple[int, int], ...]:
    ledgers = [(ledger.start, ledger.end) for ledger in coverage if ledger.start]
    windows = tuple((int(start), int(end)) for start, end in notes.get("windows", ledgers))
    wrong = [window for window in (*windows, *ledgers) if not 0 < window[0] <= window[1] < _INTERVAL_LIMIT]
    if wrong:
        raise ValueError(f"its window from {wrong[0][0]} to {wrong[0][1]} ns is none")
    return windows


#: what pandas and Arrow raise where a file is not what it claims to be
UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    OSError,
)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong in reading, told as CaptureError."""
    try:
        yield
    except UNREADABLE as error:
        raise CaptureError(
            f"cannot be read as a flow table: {error}",
            where=str(path),
            next_step="write it again with `rke2-flows flows`, or leave it out",
        ) from error


def read_flow_file(path: str | Path) -> FlowFile:
    """A flow table from Parquet, CSV or JSON Lines. Raises CaptureError where it is none, and for a part of a
    live capture, whose rows have no client and server yet.
    """
    from analyzer import _tables  # noqa: PLC0415  pandas, which captures and parts need not wait for

    path = Path(path)
    kind = kind_of(path)
    if kind not in FLOW_FILES:
        raise CaptureError(
            "is not a flow file", where=str(path), next_step="give what `rke2-flows flows -o` wrote"
        )
    with _told(path):
        file = _read_parquet(path) if kind == "parquet" else FlowFile(_tables.READERS[kind](path))
        table = _tables.typed(file.table)
        _tables.check(table)
    return FlowFile(table, file.coverage, file.interval)


def _read_parquet(path: Path) -> FlowFile:
    with _opened(path) as (file, notes):
        if notes.get("kind") == _ROWS:
            raise ValueError("it is a part of a live capture; `rke2-flows flows` makes a flow table of parts")
        return FlowFile(file.read().to_pandas(), _ledgers(notes), _interval(notes))


def _read_part(path: Path) -> OneWay | None:
    """None where it is a flow table."""
    from analyzer import _parts  # noqa: PLC0415  see _opened

    with _opened(path) as (file, notes):
        if notes.get("kind") != _ROWS:
            return None
        observers = tuple(Observer(*(_text(name) for name in names)) for names in notes["observers"])
        return _parts.from_arrow(file.read(use_threads=False), observers, _ledgers(notes), _interval(notes))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A Parquet file, and what it says of itself: nothing where others wrote it."""
    import pyarrow.parquet as pq  # noqa: PLC0415  a third of a second, and only for Parquet

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        notes: dict[str, Any] = json.loads((file.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"))
        if notes.get("schema", SCHEMA) > SCHEMA:
            raise ValueError(f"it has schema {notes['schema']}, this version reads up to {SCHEMA}")
        yield file, notes


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"it names {value!r} as an observer")
    return value


def _interval(notes: dict[str, Any]) -> int:
    interval = int(notes.get("interval", 0))
    if not 0 <= interval < _INTERVAL_LIMIT:
        raise ValueError(f"its interval of {interval} ns is none")
    return interval


def _ledgers(notes: dict[str, Any]) -> tuple[Coverage, ...]:
    return tuple(_ledger(ledger) for ledger in notes.get("coverage", []))


def _ledger(fields: dict[str, str | int]) -> Coverage:
    texts = [name for name, value in fields.items() if isinstance(value, str)]
    numbers = [value for value in fields.values() if isinstance(value, int) and value >= 0]
    if not set(texts) <= {"source", "damage", "missing"} or len(texts) + len(numbers) != len(fields):
        raise ValueError("its coverage ledger holds what is no count")
    return Coverage(**fields)  # type: ignore[arg-type]


#: what a flow table is written as
SUFFIXES = (".parquet", ".csv", ".jsonl")
#: kinds of files that hold flows or one-way rows
FLOW_FILES = ("parquet", "csv", "jsonl")


# ---- writing tables ----


def write_flows(
    table: pd.DataFrame, path: str | Path, coverage: Sequence[Coverage] = (), interval: int = 0
) -> None:
    """Writes a flow table, judged or not, as the suffix says; ``-`` is CSV on standard output.

    Raises CaptureError for another suffix, or where the place cannot be written.
    """
    from analyzer import _tables  # noqa: PLC0415  see read_flow_file

    if str(path) == "-":
        _tables.to_csv(table, sys.stdout)
        return
    suffix = _suffix(path)
    with replacing(path) as beside:
        if suffix == ".parquet":
            _write_parquet(table, beside, _flow_notes(coverage, interval))
        else:
            _tables.WRITERS[suffix](table, beside)


def write_columns(
    flows: FlowColumns, path: str | Path, coverage: Sequence[Coverage] = (), interval: int = 0
) -> None:
    """Writes a flow table that is not judged, as :func:`write_flows` does; as Parquet it is never there as a
    whole, and pandas is not needed.
    """
    if str(path) == "-" or _suffix(path) != ".parquet":
        from analyzer.flows import frame_of  # noqa: PLC0415  see read_flow_file

        write_flows(frame_of(flows.between()), path, coverage, interval)
        return
    from analyzer import _arrow  # noqa: PLC0415  see _opened

    with replacing(path) as beside:
        _arrow.write_columns(flows, beside, _flow_notes(coverage, interval))


def _suffix(path: str | Path) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise CaptureError(
            f"no table format has the suffix {suffix!r}",
            where=str(path),
            next_step=f"use {', '.join(SUFFIXES)}",
        )
    return suffix


def _flow_notes(coverage: Sequence[Coverage], interval: int) -> dict[bytes, bytes]:
    notes = {"schema": SCHEMA, "interval": interval, "coverage": [asdict(ledger) for ledger in coverage]}
    return {METADATA_KEY: json.dumps(notes).encode()}


def write_rows(one_way: OneWay, path: str | Path, more: Mapping[str, object] | None = None) -> None:
    """Writes one-way rows as a part, Parquet whatever the suffix; :func:`read_rows` gives the same back.
    `more`: what else it is to say of itself.

    Raises CaptureError where the place cannot be written.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415  see _opened

    from analyzer import _parts  # noqa: PLC0415  it imports Arrow too

    notes = {
        "schema": SCHEMA,
        "kind": _ROWS,
        "interval": one_way.interval,
        "observers": one_way.observers,
        "coverage": [asdict(ledger) for ledger in one_way.coverage],
        **(more or {}),
    }
    table = _parts.to_arrow(one_way)
    with replacing(path) as beside:
        pq.write_table(
            table.replace_schema_metadata({METADATA_KEY: json.dumps(notes).encode()}),
            beside,
            compression="zstd",
            compression_level=1,
            use_dictionary=_parts.DICTIONARY,
            write_statistics=False,
            write_page_checksum=True,
        )


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file beside `path` to write to; it takes the place of `path` when all went well, and is removed when
    not. A device or a pipe is written to as it is: it must not be replaced by a file.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        with _writing(target):
            yield target
        return
    with _writing(target):
        beside = _beside(target)
    try:
        with _writing(target):
            yield beside
            beside.chmod(0o666 & ~_umask())
            beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    return Path(name)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CaptureError(
            f"cannot be written: {error.strerror or error}",
            where=str(target),
            next_step="check the folder, its rights and its space",
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_parquet(table: pd.DataFrame, path: Path, metadata: dict[bytes, bytes]) -> None:
    import pyarrow as pa  # noqa: PLC0415  see _opened
    import pyarrow.parquet as pq  # noqa: PLC0415

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    # counts and times hardly repeat: a dictionary of them costs time and makes the file longer
    named = [column.name for column in arrow.schema if pa.types.is_dictionary(column.type)]
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **metadata})
    pq.write_table(arrow, path, compression="zstd", use_dictionary=named or False)
