"""Flow tables and one-way rows in files, and what a list of inputs holds. Rule: the only room that reads and
writes tables; it changes no value.

A flow table is for people and other programs: Parquet keeps types, the interval and the coverage ledger, CSV
and JSON Lines keep the table. A part is one-way rows in Parquet, and loses nothing: it is what a live capture
writes for each interval. A file is written beside its place and renamed, so that no reader sees half of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import urllib.parse
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from analyzer.capture.offline import read_captures
from analyzer.capture.streams import MAGICS, NOT_UNPACKED, Progress
from analyzer.choice import (
    ALL,
    BOUNDED,
    Choice,
    Unread,
    Window,
    choose,
    nothing_recorded,
    sift,
    unread_groups,
    with_unread,
)
from analyzer.errors import CaptureError
from analyzer.rows import Coverage, Folding, Observer, OneWay, alike, as_text, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pandas as pd

    from analyzer.capture.reading import Early
    from analyzer.columns import FlowColumns

T = TypeVar("T")
R = TypeVar("R")
SCHEMA = 1
METADATA_KEY = b"rke2-flows"
_ROWS = "rows"  # what the notes of a part say that it is; those of a flow table say nothing
_INTERVAL_LIMIT = 2**63  # ns
_COUNT_LIMIT = 2**64
#: what a part is called that takes the place of others: from when to when
_STAMP = r"\d{8}T\d{6}\.\d{3}Z"
COMPACTED = re.compile(rf"{_STAMP}-{_STAMP}(-\d+)?\.parquet")
_PLACE = re.compile(
    rf"(?:^|/)date=(\d{{4}}-\d\d-\d\d)/node=([^/]+)/({_STAMP})-({_STAMP})(?:-\d+)?\.parquet\Z", re.ASCII
)
#: fields of a ledger that are no counts → which ns they may be
_RANGES = {
    **dict.fromkeys(("start", "end"), range(_INTERVAL_LIMIT)),
    "clock_offset": range(-_INTERVAL_LIMIT, _INTERVAL_LIMIT),
}
#: fields of a ledger that not every version has
_LATER = ("not_chosen", "parts_not_read", "drops_lost", "clock_offset")
GROUP_ROWS = 1 << 16  # rows that are read or left unread together
_MARK = b"\xef\xbb\xbf"  # with which a spreadsheet begins a CSV file; it may also quote, and write semicolons
_NO_FLOWS = b"\n"  # all that is in a JSON Lines file of none
_LISTINGS = 20  # how often a folder is listed again that changes meanwhile
#: what file systems say that have no second name for a file: FAT, some of networks
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
#: what file systems say that know no more of a folder than what is on the disk already
_NO_FLUSH = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_asking = threading.Lock()


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
    threads: int | None = None,
    choice: Choice = ALL,
    early: Early | None = None,
) -> OneWay:
    """Captures, flow files, parts of a live capture and folders of them, as one table of one-way rows. ``-``
    is a capture on standard input.

    Of several intervals the least stands that all divide, most often the longest; captures are cut as the
    tables beside them are, and nothing is where a flow table among them is not. A folder may be compacted or
    pruned meanwhile: it is listed again, and each packet counts once. Rows are added up as they are read, so
    memory follows distinct rows and not files.

    `choice`: which rows, as :func:`analyzer.choice.choose` has it of each input. Parts that recorded nothing
    in the time are not read, compacted ones not even opened; of the others groups of rows are not read that
    hold none. `threads` and `early`: as :func:`~analyzer.capture.offline.read_captures` has them.

    Raises CaptureError where one is missing or is neither, where a folder holds none, and where nothing was
    recorded in the time.
    """
    for _ in range(_LISTINGS):
        beyond = Beyond(choice)
        files = list(expand(paths, beyond))
        try:
            return _read_files(
                selected(files, read_notes, beyond), interval, progress, threads, choice, early
            )
        except CaptureError:
            if not _vanished(files, paths):
                raise
    raise _restless(" ".join(map(str, paths)))


# ---- what need not be read ----


def place_of(path: str) -> tuple[str, Window] | None:
    """Whose a compacted part is, and from when to when, by its place alone; None for what lies elsewhere.

    Names have no more than ms, so it ends with the last ns of one.
    """
    found = _PLACE.search(path)
    if found is None:
        return None
    date, node, *stamps = found.groups()
    try:
        start, end = (_time_of(stamp) for stamp in stamps)
        named = as_text(urllib.parse.unquote(node, errors="surrogatepass"))
    except ValueError:
        return None
    if date.replace("-", "") != stamps[0][:8]:
        return None
    return named, (start, end + 10**6 - 1)


def _time_of(stamp: str) -> int:
    whole, _, rest = stamp.partition(".")
    moment = datetime.strptime(whole, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9 + int(rest[:3]) * 10**6


class Beyond:
    """Compacted parts that lie outside of a choice's time by their places. `parts`: path → node."""

    def __init__(self, choice: Choice = ALL) -> None:
        self.choice = choice
        self.parts: dict[str, str] = {}

    def has(self, path: str | Path) -> bool:
        """Whether it is one of them, which is noted."""
        place = place_of(str(path)) if self.choice.timed else None
        if place is None or self.choice.reaches([place[1]]):
            return False
        self.parts[str(path)] = place[0]
        return True


def selected(
    items: Sequence[T], notes_of: Callable[[T], Notes | None], beyond: Beyond
) -> list[tuple[T, Unread]]:
    """Which of these are to be read, in their order, by when their notes say that something was recorded;
    with the first one of each source, how many of its parts are not. What has no notes is to be read.

    Raises CaptureError where none is left.
    """
    choice = beyond.choice
    if not choice.timed:
        return [(item, ()) for item in items]
    with ThreadPoolExecutor() as pool:
        noted = list(zip(items, pool.map(notes_of, items), strict=True))
    unread = Counter(beyond.parts.values())
    kept: list[tuple[T, frozenset[str]]] = []
    for item, notes in noted:
        if notes is None or not notes.windows or choice.reaches(notes.windows):
            kept.append((item, notes.sources if notes else frozenset()))
        else:
            unread.update(notes.sources)
    if not kept:
        raise nothing_recorded()
    return [
        (item, tuple((source, unread.pop(source)) for source in sorted(sources & unread.keys())))
        for item, sources in kept
    ]


def _vanished(files: Sequence[Path], given: Sequence[str | Path]) -> bool:
    """Whether a file is gone that a folder's listing had. What was named itself is not looked for again, and
    standard input can be read but once.
    """
    named = {Path("-"), *map(Path, given)}
    return Path("-") not in files and any(
        not _is_there(path, links=True) for path in files if path not in named
    )


def _restless(where: str) -> CaptureError:
    return CaptureError(
        "changes faster than it can be read", where=where, next_step="try again when less is deleted there"
    )


def _read_files(
    files: Sequence[tuple[Path, Unread]],
    interval: int,
    progress: Progress,
    threads: int | None,
    choice: Choice,
    early: Early | None,
) -> OneWay:
    tables = {path: kind_of(path) in FLOW_FILES for path, _ in files}
    captures = [path for path in tables if not tables[path]]
    adding = Adding()
    workers = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        wanted = ((path, unread) for path, unread in files if tables[path])
        for part in ahead(pool, lambda one: read_chosen(one[0], choice, one[1]), wanted, 2 * workers):
            adding.add(part)
    first = OneWay()
    if captures:
        step = interval or adding.interval
        read = read_captures(captures, interval=step, progress=progress, threads=threads, early=early)
        first = choose(read, choice)
    return chosen_of_all(adding.whole(first), choice)


def chosen_of_all(whole: OneWay, choice: Choice) -> OneWay:
    """What is chosen once all inputs are added up. Raises CaptureError where nothing was recorded."""
    if choice.timed and not (whole.coverage or len(whole.rows)):
        raise nothing_recorded()
    return sift(whole, choice)


class Adding:
    """Inputs added up as they come, those of each interval apart: which is the longest, in which all are to
    be, is known at the end. Captures are read last: they can be cut as the tables are.
    """

    def __init__(self) -> None:
        self._by_interval: dict[int, Folding] = {}

    @property
    def interval(self) -> int:
        """The longest so far, ns, 0 for none: how captures are to be cut, so that what they and the tables
        saw of one flow meets.
        """
        return max(self._by_interval, default=0)

    def add(self, part: OneWay) -> None:
        """One more."""
        self._by_interval.setdefault(part.interval, Folding()).add(part)

    def whole(self, first: OneWay | None = None) -> OneWay:
        """All of them, in one interval. `first`: another one, whose ledgers come before theirs."""
        parts = [folding.whole() for folding in self._by_interval.values()]
        return merge(alike(parts if first is None else [first, *parts]))


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], depth: int
) -> Iterator[R]:
    """As `pool.map`, with no more than `depth` results that wait to be taken."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def expand(paths: Sequence[str | Path], beyond: Beyond | None = None) -> Iterator[Path]:
    """Files as they are, folders as the captures, flow files and parts in them, by name; each file once.

    What is hidden in a folder stays so: a part that is being written has such a name. A part of which another
    one among them says that it took its place is left out: what compacted them was stopped before it deleted
    it. What is `beyond` is left out unopened: what it took the place of is so too, since that was no earlier
    and no later.
    """
    files = listed(paths, beyond or Beyond())
    left_out = replaced(files)
    yield from (path for path in files if path not in left_out)


def keep_apart(inputs: Sequence[str | Path], output: str | Path) -> None:
    """Raises CaptureError where a table would stand in a folder that it is made of: whoever reads that folder
    again would count its packets once more, as those of the same sources.
    """
    target = Path(os.path.realpath(output))
    for folder in (Path(os.path.realpath(given)) for given in inputs if Path(given).is_dir()):
        if folder in target.parents and not any(
            part.startswith(".") for part in target.relative_to(folder).parts
        ):
            raise CaptureError(
                f"it would be read with {folder} the next time, and its packets counted once more",
                where=str(output),
                next_step="write it outside of the folders that are read",
            )


def refuse_none(paths: Sequence[str | Path]) -> None:
    """Raises CaptureError for no paths: a pattern that fits nothing ends in no run without findings."""
    if not paths:
        raise CaptureError("no input is given", next_step="give captures, flow files or folders of them")


def listed(paths: Sequence[str | Path], beyond: Beyond) -> list[Path]:
    """As :func:`expand`, with what others have taken the place of."""
    refuse_none(paths)
    files: dict[str, Path] = {}
    for path in (found for given in paths for found in _files_of(_path(given), beyond)):
        # realpath, unlike resolve(), bears a loop of links
        files.setdefault("-" if str(path) == "-" else os.path.realpath(path), path)
    return list(files.values())


def _path(given: str | Path) -> Path:
    if not str(given):
        raise CaptureError(
            "an empty name is no file", next_step="give captures, flow files or folders of them"
        )
    return Path(given)


def _files_of(path: Path, beyond: Beyond) -> list[Path]:
    if str(path) == "-" or not _is_folder(path):
        return [] if beyond.has(path) else [path]
    files = files_in(path, beyond)
    if not (files or beyond.parts):
        raise CaptureError(
            "no capture and no flow file in this folder",
            where=str(path),
            next_step="give a folder with pcap, pcapng or Parquet files",
        )
    return files


def _is_folder(path: Path) -> bool:
    """False also where it cannot be told: who opens it says why."""
    try:
        return path.is_dir()
    except OSError:
        return False


def files_in(folder: Path, beyond: Beyond | None = None) -> list[Path]:
    """The captures, flow files and parts in a folder and below it, by name; none where it has none. What is
    `beyond` is not opened, and not among them.

    A part may appear in one folder and those whose place it takes be deleted from another while they are
    listed. So all is listed twice: what was there when the first listing ended is in one of the two, or what
    took its place is; and what is in one of them and gone makes it begin anew.
    """
    beyond = beyond or Beyond()
    for _ in range(_LISTINGS):
        seen = {path for _ in range(2) for path in _listed(folder)}
        files = [path for path in sorted(seen) if not beyond.has(path) and _counts(path)]
        if all(map(_is_there, seen)):
            return files
    raise _restless(str(folder))


def _is_there(path: Path, *, links: bool = False) -> bool:
    """Also what was listed in a folder that may not be entered. `links`: a link is what it leads to."""
    try:
        path.stat(follow_symlinks=links)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _counts(path: Path) -> bool:
    """Whether it is a file and an input. What cannot be opened may be: who reads it says why it cannot."""
    try:
        is_file = path.is_file()
    except OSError:
        return True
    return is_file and (bool(kind_of(path)) or is_closed(path))


def is_closed(path: Path) -> bool:
    """Whether a file is there and cannot be opened, for want of rights or by a fault of the disk."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _listed(folder: Path) -> Iterator[Path]:
    """What is not hidden, files and folders. Raises CaptureError for a folder that cannot be listed."""
    for place, folders, names in os.walk(folder, onerror=_unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in (*folders, *names) if not name.startswith("."))


def _unlisted(error: OSError) -> None:
    """What vanishes meanwhile is no fault, nor what a file system has at its root, for root alone."""
    if not isinstance(error, FileNotFoundError) and os.path.basename(error.filename) != "lost+found":
        raise CaptureError(
            f"the folder cannot be read: {error.strerror}",
            where=str(error.filename),
            next_step="run it as who may read it, or leave it out",
        ) from error


def replaced(files: Sequence[Path]) -> set[Path]:
    """Which of these parts have their rows in another of them as well, which took their place.

    Raises CaptureError where one that has the name of a compacted part is damaged.
    """
    return replaced_among(files, lambda path: path.name, _replaces, content_id)


def replaced_among(
    items: Sequence[T],
    name_of: Callable[[T], str],
    replaces: Callable[[T], list[tuple[str, str]]],
    content_of: Callable[[T], str],
) -> set[T]:
    """The same, wherever they lie: by their names, what they say they take the place of, and what they hold;
    the last two are asked of few.
    """
    gone = {entry for item in items if COMPACTED.fullmatch(name_of(item)) for entry in replaces(item)}
    names = {name for name, _ in gone}
    return {item for item in items if name_of(item) in names and (name_of(item), content_of(item)) in gone}


def _replaces(path: Path) -> list[tuple[str, str]]:
    """Names and content ids. A file that is gone says nothing; who reads it will find that out."""
    try:
        return replaces_in(path, str(path))
    except CaptureError:
        if path.exists():
            raise
        return []


def replaces_in(source: Path | IO[bytes], where: str) -> list[tuple[str, str]]:
    """Names and content ids of the parts whose place a part takes. Raises CaptureError with `where` where it
    is damaged.
    """
    with _told(where), _opened(source) as (_, notes):
        return [(_text(name), _text(content)) for name, content in notes.get("replaces", [])]


def interval_in(source: Path | IO[bytes], where: str) -> int:
    """The interval of a Parquet table or part, ns, 0 for none. Raises CaptureError with `where` where it is
    damaged.
    """
    with _told(where), _opened(source) as (_, notes):
        return _interval(notes)


def content_id(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; empty where it is gone."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return digest(file)
    return ""


def digest(stream: IO[bytes]) -> str:
    """SHA-256 of what a stream holds from here on, in hex."""
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def kind_of(path: Path) -> str:
    """`capture`, `parquet`, `csv` or `jsonl` by the file's first bytes; empty for anything else."""
    try:
        if str(path) == "-" or not path.is_file():
            return ""
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return ""
    starts = {
        "parquet": (b"PAR1",),
        "csv": (b"source,witnesses,", b"source;witnesses;"),
        "jsonl": (b'{"source":',),
        "capture": (*MAGICS, *NOT_UNPACKED),
    }
    if head == _NO_FLOWS:
        return "jsonl"
    text = head.removeprefix(_MARK).replace(b'"', b"") if head.startswith((_MARK, b'"')) else head
    return next((kind for kind, magics in starts.items() if text.startswith(magics)), "")


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
            return part[0]
    from analyzer.flows import unpair  # noqa: PLC0415  see read_flow_file

    file = read_flow_file(path)
    return unpair(file.table, file.coverage, file.interval)


def read_chosen(path: Path, choice: Choice, unread: Unread = ()) -> OneWay:
    """As :func:`read_flows`, and of it what is chosen. `unread`: how many parts of its sources were left
    unread beside it, for the ledgers.
    """
    part = part_in(path, str(path), choice) if choice and kind_of(path) == "parquet" else None
    whole, windows = part or (read_flows(path), ())
    return with_unread(choose(whole, choice, windows), unread)


def part_in(source: Path | IO[bytes], where: str, choice: Choice) -> tuple[OneWay, tuple[Window, ...]] | None:
    """A part without groups of rows of which none is chosen, and when something was recorded; None for a flow
    table. Raises CaptureError with `where` where it cannot be read.
    """
    with _told(where):
        return _read_part(source, choice)


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
    return part[0]


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
    return notes_in(path, str(path)) if kind_of(path) == "parquet" else None


def notes_in(source: Path | IO[bytes], where: str) -> Notes | None:
    """The same of Parquet that lies elsewhere."""
    with _told(where), _opened(source) as (file, notes):
        if notes.get("kind") != _ROWS:
            return None
        coverage = _ledgers(notes)
        sources = frozenset(as_text(_text(source)) for source, *_ in notes["observers"])
        return Notes(sources, coverage, _interval(notes), _windows(notes, coverage), file.metadata.num_rows)


def _windows(notes: dict[str, Any], coverage: Sequence[Coverage]) -> tuple[tuple[int, int], ...]:
    _checked((ledger.start, ledger.end) for ledger in coverage if ledger.start)
    ledgers = [window for ledger in coverage for window in ledger.watched]
    return _checked((int(start), int(end)) for start, end in notes.get("windows", ledgers))


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
def _told(path: str | Path) -> Iterator[None]:
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
        return FlowFile(file.read().to_pandas(ignore_metadata=True), _ledgers(notes), _interval(notes))


def _read_part(source: Path | IO[bytes], choice: Choice = ALL) -> tuple[OneWay, tuple[Window, ...]] | None:
    """None where it is a flow table."""
    from analyzer import _parts  # noqa: PLC0415  see _opened

    with _opened(source) as (file, notes):
        if notes.get("kind") != _ROWS:
            return None
        observers = tuple(Observer(*(as_text(_text(name)) for name in names)) for names in notes["observers"])
        coverage, interval = _ledgers(notes), _interval(notes)
        groups = _parts.groups_of(file.metadata, choice, interval)
        table = file.read_row_groups(groups, use_threads=False)
        part = _parts.from_arrow(table, observers, coverage, interval)
        whole = part if len(groups) == file.num_row_groups else unread_groups(part)
        return whole, _windows(notes, coverage) if choice.timed else ()


@contextmanager
def _opened(source: Path | IO[bytes]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A Parquet file, and what it says of itself: nothing where others wrote it."""
    import pyarrow.parquet as pq  # noqa: PLC0415  a third of a second, and only for Parquet

    with (
        _for_arrow(source, "rb") as place,
        pq.ParquetFile(place, page_checksum_verification=True) as file,
    ):
        notes: dict[str, Any] = json.loads((file.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"))
        if notes.get("schema", SCHEMA) > SCHEMA:
            raise ValueError(f"it has schema {notes['schema']}, this version reads up to {SCHEMA}")
        yield file, notes


@contextmanager
def _for_arrow(source: Path | IO[bytes], mode: str) -> Iterator[Path | IO[bytes]]:
    """A file of which Arrow need not know the name, where that is raw bytes: it knows texts alone."""
    if isinstance(source, Path) and as_text(str(source)) != str(source):
        with source.open(mode) as stream:
            yield stream
    else:
        yield source


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"it names {value!r} as an observer")
    return value


def _interval(notes: dict[str, Any]) -> int:
    interval = int(notes.get("interval", 0))
    if not 0 <= interval < _INTERVAL_LIMIT:
        raise ValueError(f"its interval of {interval} ns is none")
    return interval


def _noted(ledger: Coverage) -> dict[str, str | int]:
    """A ledger's fields; of those that earlier versions do not read none that is 0."""
    fields: dict[str, str | int] = asdict(ledger)
    del fields["windows"]
    return {name: value for name, value in fields.items() if value or name not in _LATER}


def _watched(coverage: Sequence[Coverage]) -> dict[str, dict[str, tuple[Window, ...]]]:
    """What the notes say where sources did not watch all the while; earlier versions pass it over."""
    watched = {ledger.source: ledger.windows for ledger in coverage if ledger.windows}
    return {"watched": watched} if watched else {}


def _ledgers(notes: dict[str, Any]) -> tuple[Coverage, ...]:
    ledgers = tuple(_ledger(ledger) for ledger in notes.get("coverage", []))
    watched = notes.get("watched", {})
    if not watched and len(ledgers) == 1 and "windows" in notes:  # compacted by an earlier version
        watched = {ledgers[0].source: notes["windows"]}
    return tuple(_at(ledger, watched.get(ledger.source, ())) for ledger in ledgers)


def _at(ledger: Coverage, windows: Iterable[Sequence[int]]) -> Coverage:
    return ledger.at(_checked((int(start), int(end)) for start, end in windows))


def _checked(windows: Iterable[Window]) -> tuple[Window, ...]:
    found = tuple(windows)
    wrong = [window for window in found if not 0 < window[0] <= window[1] < _INTERVAL_LIMIT]
    if wrong:
        raise ValueError(f"its window from {wrong[0][0]} to {wrong[0][1]} ns is none")
    return found


def _ledger(fields: dict[str, str | int]) -> Coverage:
    texts = [name for name, value in fields.items() if isinstance(value, str)]
    numbers = [
        name
        for name, value in fields.items()
        if isinstance(value, int) and value in _RANGES.get(name, range(_COUNT_LIMIT))
    ]
    if not set(texts) <= {"source", "damage", "missing"} or len(texts) + len(numbers) != len(fields):
        raise ValueError("its coverage ledger holds what is no count")
    return Coverage(**{**fields, **{name: as_text(str(fields[name])) for name in texts}})  # type: ignore[arg-type]


#: what a flow table is written as
SUFFIXES = (".parquet", ".csv", ".jsonl")
#: kinds of files that hold flows or one-way rows
FLOW_FILES = ("parquet", "csv", "jsonl")


# ---- writing tables ----


def write_flows(
    table: pd.DataFrame, path: str | Path, coverage: Sequence[Coverage] = (), interval: int = 0
) -> None:
    """Writes a flow table, judged or not, as the suffix says; ``-`` is CSV on standard output.

    `coverage` and `interval` (ns) are those of the one-way rows that the table was made of; Parquet keeps
    them. Read back without the interval, what a flow did in several intervals is one row.

    Raises CaptureError for another suffix, where a column of :data:`analyzer.flows.COLUMNS` lacks, or where
    the place cannot be written.
    """
    from analyzer import _tables  # noqa: PLC0415  see read_flow_file
    from analyzer.columns import COLUMNS  # noqa: PLC0415
    from analyzer.given import given  # noqa: PLC0415

    table = given(table, "write_flows()", tuple(COLUMNS))
    table = table[[*COLUMNS, *(name for name in table.columns if name not in COLUMNS)]]
    if str(path) == "-":
        _tables.to_csv(table, sys.stdout)
        return
    suffix = _suffix(path)
    with replacing(path) as beside:
        if suffix == ".parquet":
            _write_parquet(table, beside, _flow_notes(coverage, interval))
        else:
            _tables.WRITERS[suffix](table, beside)


def writer_of(path: str | Path) -> str:
    """The module that writes such a file, which takes a while to load. Raises CaptureError for a suffix that
    no format has.
    """
    return "analyzer._arrow" if str(path) != "-" and _suffix(path) == ".parquet" else "analyzer._tables"


def write_columns(
    flows: FlowColumns,
    path: str | Path,
    coverage: Sequence[Coverage] = (),
    interval: int = 0,
    threads: int | None = None,
) -> None:
    """Writes a flow table that is not judged, as :func:`write_flows` does; as Parquet it is never there as a
    whole, and pandas is not needed. `threads`: as :func:`read_inputs` has it.
    """
    if writer_of(path) != "analyzer._arrow":
        from analyzer.flows import frame_of  # noqa: PLC0415  see read_flow_file

        write_flows(frame_of(flows.between()), path, coverage, interval)
        return
    from analyzer import _arrow  # noqa: PLC0415  see _opened

    with replacing(path) as beside, _for_arrow(beside, "wb") as place:
        _arrow.write_columns(flows, place, _flow_notes(coverage, interval), threads or os.cpu_count() or 1)


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
    ledgers = [_noted(ledger) for ledger in coverage]
    notes = {"schema": SCHEMA, "interval": interval, "coverage": ledgers, **_watched(coverage)}
    return {METADATA_KEY: json.dumps(notes).encode()}


def write_rows(one_way: OneWay, path: str | Path, more: Mapping[str, object] | None = None) -> None:
    """Writes one-way rows as a part, Parquet whatever the suffix; :func:`read_rows` gives the same back.
    `more`: what else it is to say of itself.

    Raises CaptureError where the place cannot be written.
    """
    with replacing(path) as beside:
        _write_part(one_way, beside, more or {})


def add_rows(one_way: OneWay, path: Path) -> Path:
    """The same, and no file loses its place to it: where one has the name, whoever wrote it and at whatever
    moment, a number follows. The path that it has. It is on the disk when it appears, and stays there when
    the power fails.

    Raises CaptureError where the place cannot be written.
    """
    with writing(path):
        beside = _beside(path)
    try:
        with writing(path):
            _write_part(one_way, beside, {})
            beside.chmod(0o666 & ~_umask())
            flush(beside)
            added = _added(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    with writing(path):
        flush(path.parent)
    return added


def flush(path: Path) -> None:
    """A file's bytes, or a folder's names, are on the disk and not only in the kernel's memory. OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(handle)


def _added(new: Path, path: Path) -> Path:
    """A link, unlike a name given by renaming, is never in the place of another file."""
    for number in count():
        free = path.with_stem(f"{path.stem}-{number}") if number else path
        try:
            os.link(new, free)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if free.exists():
                continue
            new.replace(free)
        return free
    raise AssertionError


def _write_part(one_way: OneWay, path: Path, more: Mapping[str, object]) -> None:
    import pyarrow.parquet as pq  # noqa: PLC0415  see _opened

    from analyzer import _parts  # noqa: PLC0415  it imports Arrow too

    notes = {
        "schema": SCHEMA,
        "kind": _ROWS,
        "interval": one_way.interval,
        "observers": one_way.observers,
        "coverage": [_noted(ledger) for ledger in one_way.coverage],
        **_watched(one_way.coverage),
        **more,
    }
    table = _parts.to_arrow(one_way)
    with _for_arrow(path, "wb") as place:
        pq.write_table(
            table.replace_schema_metadata({METADATA_KEY: json.dumps(notes).encode()}),
            place,
            compression="zstd",
            compression_level=1,
            use_dictionary=_parts.DICTIONARY,
            row_group_size=GROUP_ROWS,
            write_statistics=["record", *BOUNDED],
            write_page_checksum=True,
        )


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file beside `path` to write to; it takes the place of `path` when all went well, and is removed when
    not. A device or a pipe is written to as it is: it must not be replaced by a file.
    """
    target = Path(path)
    with writing(target):
        as_it_is = target.exists() and not target.is_file()
        beside = target if as_it_is else _beside(target)
    if as_it_is:
        with writing(target):
            yield target
        return
    try:
        with writing(target):
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
def writing(target: Path) -> Iterator[None]:
    """What the system refuses meanwhile is a CaptureError with this place."""
    try:
        yield
    except OSError as error:
        raise CaptureError(
            f"cannot be written: {error.strerror or error}",
            where=str(target),
            next_step="check the folder, its rights and its space",
        ) from error


def _umask() -> int:
    with _asking:  # it is the process's: who asks while another does would keep 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


def _write_parquet(table: pd.DataFrame, path: Path, metadata: dict[bytes, bytes]) -> None:
    import pyarrow as pa  # noqa: PLC0415  see _opened
    import pyarrow.parquet as pq  # noqa: PLC0415

    from analyzer import _arrow  # noqa: PLC0415

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **metadata})
    with _for_arrow(path, "wb") as place:
        pq.write_table(arrow, place, **_arrow.how_written(arrow.schema))
