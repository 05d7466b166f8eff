"""A folder of parts, kept for long: compacted, and deleted when old. Rule: whole parts in, whole parts out;
rows add up as :mod:`analyzer.rows` says, nothing is judged, and no packet is lost or counted twice, whenever
it is stopped.

A compacted part lies in `date=2026-11-24/node=agent-1/`, named by its first and last moment, and says which
parts it takes the place of, by name and content. It appears by one rename; from then on readers leave those
out, and only then are they deleted. No name is used again. So a run may be killed anywhere: the next one
finishes what it had begun. `now` is given: this room has no clock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import numpy as np

from analyzer.errors import CaptureError
from analyzer.rows import Coverage, OneWay, Rows, Window, coarser, fold, joined
from analyzer.store import (
    COMPACTED,
    content_id,
    files_in,
    flush,
    is_closed,
    read_notes,
    read_rows,
    replaced_among,
    replaces_in,
    write_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

NS = 10**9
LOCK = ".rke2-flows.lock"
#: what a writer that was killed leaves behind: hidden, with a part's name
_LEFTOVER = re.compile(rf"\.{{1,2}}[^.].*\.parquet\.[a-z0-9_]{{8}}|\.{COMPACTED.pattern}")
LEFTOVER_AGE = 600 * NS
_MOST_PARTS = 4096  # that one part takes the place of
_MOST_RECORDS = 1 << 20  # that are put together: some 0.7 kB of memory each, however well they are packed
_LISTINGS = 20  # how often a folder is listed again that changes meanwhile
_LONGEST_NAME = 200  # bytes, of the 255 that file systems allow


@dataclass(frozen=True)
class Stored:
    """A part, without its rows. `start`, `end`: of its ledgers, ns, 0 for none. `windows`: when something was
    recorded, in order, ns. `records`: rows and facts. `size`: bytes of the file.
    """

    path: Path
    size: int
    records: int
    interval: int
    sources: tuple[str, ...]
    coverage: tuple[Coverage, ...]
    windows: tuple[Window, ...]

    @property
    def start(self) -> int:
        """The first moment that its ledgers name."""
        return min((ledger.start for ledger in self.coverage if ledger.start), default=0)

    @property
    def end(self) -> int:
        """The last one."""
        return max((ledger.end for ledger in self.coverage), default=0)

    @property
    def date(self) -> str:
        """The day on which it starts, UTC."""
        return f"{_moment(self.start):%Y-%m-%d}"

    @property
    def node(self) -> str:
        """Whose it is; of several, their names with `;` between."""
        return ";".join(self.sources)


@dataclass(frozen=True)
class Rules:
    """How to compact. `interval`: ns, what shorter intervals are made of that divide it, 0 to keep them.
    `older_than`: ns since a part ended. `target`: bytes at which parts are no longer put together.
    """

    interval: int = 0
    older_than: int = 0
    target: int = 64 << 20


@dataclass(frozen=True)
class Batch:
    """Parts of one node and date that become one. `path`, `size`: of the new part, once it is there."""

    parts: tuple[Stored, ...]
    interval: int
    path: Path | None = None
    size: int = 0


@dataclass
class Work:
    """What was done, or is to be done. `finished`: parts to delete that an earlier run compacted;
    `leftovers`: of killed writers; `old`: parts past their time; `left`: what stays as it is, and why.
    """

    batches: list[Batch] = field(default_factory=list)
    finished: list[Path] = field(default_factory=list)
    leftovers: list[Path] = field(default_factory=list)
    old: list[Stored] = field(default_factory=list)
    left: dict[Path, str] = field(default_factory=dict)


# ---- what is there ----


def stored(folder: Path) -> tuple[list[Stored], Work]:
    """The parts in a folder and below it, by name, and what else there is to say: which wait for their
    deletion, which cannot be read. Captures and flow tables are no parts.

    Raises CaptureError where there is no such folder.
    """
    if not folder.is_dir():
        raise CaptureError(
            "is no folder", where=str(folder), next_step="give the folder that `rke2-flows capture -o` writes"
        )
    for _ in range(_LISTINGS):
        files = files_in(folder)
        work = Work()
        gone = _replaced(files, work)
        found = [part for path in files if path not in gone for part in _stored(path, work)]
        if all(path.exists() for path in files):
            return found, work
    raise CaptureError("changes faster than it can be read", where=str(folder), next_step="try again")


def _replaced(files: Sequence[Path], work: Work) -> set[Path]:
    """Which wait for their deletion. A compacted part that cannot be read says of none that it does."""

    def replaces(path: Path) -> list[tuple[str, str]]:
        try:
            return replaces_in(path, str(path))
        except CaptureError as error:
            if path.exists():
                work.left[path] = error.what
            return []

    gone = replaced_among(files, lambda path: path.name, replaces, content_id)
    work.finished = sorted(gone)
    return gone


def _stored(path: Path, work: Work) -> Iterator[Stored]:
    try:
        notes = read_notes(path)
        size = path.stat().st_size
    except FileNotFoundError:  # another run has just compacted it
        return
    except CaptureError as error:
        work.left[path] = error.what
        return
    if notes is None:
        if is_closed(path):
            work.left[path] = "cannot be opened"
    else:
        sources = tuple(sorted({ledger.source for ledger in notes.coverage} | notes.sources))
        windows = joined(notes.windows)
        yield Stored(path, size, notes.records, notes.interval, sources, notes.coverage, windows)


def gaps(parts: Sequence[Stored]) -> dict[str, list[Window]]:
    """For each node, when nothing was recorded between its first part and its last. ns."""
    windows: dict[str, list[Window]] = {}
    for part in parts:
        for source in part.sources:
            windows.setdefault(source, []).extend(part.windows)
    return {source: _between(joined(windows[source])) for source in sorted(windows)}


def _between(windows: Sequence[Window]) -> list[Window]:
    return [(before[1], after[0]) for before, after in pairwise(windows)]


# ---- compacting ----


def compact(folder: Path, rules: Rules, now: int, *, dry_run: bool = False) -> Work:
    """Puts small parts of one node and date together, and finishes what a killed run had begun.

    The totals and the flows stay as they are; a longer interval makes fewer rows of them. `now`: ns. Raises
    CaptureError where the folder cannot be read or written, or another run is at work in it.
    """
    with _alone(folder, dry_run):
        parts, work = stored(folder)
        work.leftovers = _leftovers(folder, now)
        work.batches = list(plan(parts, rules, now, work))
        if dry_run:
            return work
        _finish(folder, parts, work)
        done = [batch for planned in work.batches for batch in _compacted(folder, planned, work)]
        return replace(work, batches=done)


def plan(parts: Sequence[Stored], rules: Rules, now: int, work: Work) -> Iterator[Batch]:
    """What is to become one part: of one node, date and interval, from old to new, up to the target size."""
    small = [
        p for p in parts if _is_movable(p, work) and p.end <= now - rules.older_than and p.size < rules.target
    ]
    held = _held(small, work)
    work.left |= dict.fromkeys(held, "may be in a compacted part that cannot be read")
    small = [part for part in small if part.path not in held]

    def key(part: Stored) -> tuple[str, str, int]:
        return part.node, part.date, _interval(part, rules)

    for (_, _, interval), group in groupby(sorted(small, key=lambda p: (*key(p), p.start, p.path)), key):
        for run in _runs(list(group), rules.target):
            if len(run) > 1 or run[0].interval != interval or not _is_at_home(run[0]):
                yield Batch(tuple(run), interval)


def _held(parts: Sequence[Stored], work: Work) -> set[Path]:
    """Those whose place a compacted part may have taken that cannot be read: once that is mended it would
    count beside what these have become.
    """
    unread = {path.parent.parts[-2:] for path in work.left if COMPACTED.fullmatch(path.name)}
    return {part.path for part in parts if unread and _home(part) in unread}


def _is_movable(part: Stored, work: Work) -> bool:
    why = (
        (part.path.is_symlink(), "is a link"),
        (len(part.sources) != 1, "is not of one node"),
        (not part.start, "names no time"),
    )
    reason = next((text for applies, text in why if applies), "")
    if reason:
        work.left[part.path] = reason
    return not reason


def _interval(part: Stored, rules: Rules) -> int:
    """The interval that a part shall have: a longer one only where it holds whole ones of its own."""
    whole = part.interval and rules.interval > part.interval and rules.interval % part.interval == 0
    return rules.interval if whole else part.interval


def _runs(parts: Sequence[Stored], target: int) -> Iterator[list[Stored]]:
    run: list[Stored] = []
    size = records = 0
    for part in parts:
        size, records = size + part.size, records + part.records
        if run and (size > target or records > _MOST_RECORDS or len(run) == _MOST_PARTS):
            yield run
            run, size, records = [], part.size, part.records
        run.append(part)
    if run:
        yield run


def _is_at_home(part: Stored) -> bool:
    return part.path.parent.parts[-2:] == _home(part)


def _home(part: Stored) -> tuple[str, str]:
    return f"date={part.date}", f"node={encoded(part.sources[0])}"


def encoded(node: str) -> str:
    """A node's name as part of a path: percent-encoded but for letters, digits and `_.-`, so that no name
    leads elsewhere. One that would be too long for a file system is cut, with `~` and a digest; the part's
    ledger has it whole.
    """
    name = urllib.parse.quote(node, safe="", errors="surrogatepass").replace("~", "%7E")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 33]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _compacted(folder: Path, batch: Batch, work: Work) -> Iterator[Batch]:
    """Writes the new part and deletes those whose place it takes."""
    try:
        entries = [(part.path.name, content_id(part.path)) for part in batch.parts]
        whole = fold(coarser(read_rows(part.path), batch.interval) for part in batch.parts)
        one_way = replace(whole, rows=_together(whole.rows))
    except CaptureError as error:  # it cannot be read as a whole: all stay
        work.left |= {part.path: error.what for part in batch.parts}
        return
    windows = joined(window for part in batch.parts for window in part.windows)
    with _telling(folder):
        path = _placed(one_way, folder.joinpath(*_home(batch.parts[0])), entries, windows)
        size = path.stat().st_size
    _flush_all((path.parent, path.parent.parent, folder))
    _delete([part.path for part in batch.parts])
    yield replace(batch, path=path, size=size)


def _together(rows: Rows) -> Rows:
    """In an order in which few groups of rows hold a time, and within it few the port of a service: who asks
    for either reads no others. The two ways of a flow stand apart, since the other port of each is any.
    """
    src, dst = rows["src_port"], rows["dst_port"]
    return rows[np.lexsort((np.minimum(src, dst), src < dst, rows["interval"]))]


def _placed(
    one_way: OneWay, place: Path, entries: Sequence[tuple[str, str]], windows: Sequence[Window]
) -> Path:
    """The new part: written hidden, read back, on the disk, and only then there."""
    place.mkdir(parents=True, exist_ok=True)
    path = _free_name(place, windows[0][0], max(end for _, end in windows))
    hidden = path.with_name(f".{path.name}")
    try:
        write_rows(one_way, hidden, {"replaces": entries, "windows": windows})
        _check_written(one_way, hidden)
        flush(hidden)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    return path


def _free_name(place: Path, start: int, end: int) -> Path:
    """A name that nothing has, and nothing whose place it takes had: those have lower numbers."""
    name = f"{_stamp(start)}-{_stamp(end)}"
    taken = [path.stem.removeprefix(name).lstrip("-") for path in place.glob(f"{name}*.parquet")]
    number = max((int(n or 0) + 1 for n in taken if n.isdecimal() or not n), default=0)
    return place / f"{name}{f'-{number}' if number else ''}.parquet"


def _stamp(time: int) -> str:
    return f"{_moment(time):%Y%m%dT%H%M%S}.{time // 10**6 % 1000:03}Z"


def _moment(time: int) -> datetime:
    return datetime.fromtimestamp(time // NS, UTC)


def _check_written(one_way: OneWay, path: Path) -> None:
    """Reads it back before anything is deleted."""
    back = read_rows(path)
    same = (
        np.array_equal(back.rows, one_way.rows),
        np.array_equal(back.fragments, one_way.fragments),
        back.coverage == one_way.coverage,
        back.listeners == one_way.listeners,
        len(back.facts) == len(one_way.facts),
    )
    if not all(same):
        raise CaptureError(
            "is not read as it was written; nothing was deleted", where=str(path), next_step="check the disk"
        )


# ---- deleting ----


def prune(folder: Path, keep: int, now: int, *, dry_run: bool = False) -> Work:
    """Deletes the parts that ended more than `keep` ns before `now`, whole ones only, and what killed runs
    left.

    Captures, flow tables and parts that name no time stay. Raises as :func:`compact`.
    """
    with _alone(folder, dry_run):
        parts, work = stored(folder)
        work.leftovers = _leftovers(folder, now)
        work.old = [part for part in parts if part.end and part.end < now - keep]
        work.left |= {part.path: "names no time" for part in parts if not part.end}
        if not dry_run:
            _finish(folder, parts, work)
            _delete([part.path for part in work.old])
            _remove_empty(folder)
        return work


def _finish(folder: Path, parts: Sequence[Stored], work: Work) -> None:
    """Deletes what a killed run had not, once what it made is on the disk: it need not have come to that."""
    made = [part.path for part in parts if work.finished and COMPACTED.fullmatch(part.path.name)]
    _flush_all([*made, *(above for path in made for above in path.parents if above.is_relative_to(folder))])
    _delete([*work.finished, *work.leftovers])


def _delete(paths: Sequence[Path]) -> None:
    """For good: one that came back when the power failed would count beside what a later run made of it."""
    for path in paths:
        with _telling(path):
            path.unlink(missing_ok=True)
    _flush_all([path.parent for path in paths])


def _flush_all(paths: Iterable[Path]) -> None:
    for path in dict.fromkeys(paths):
        with _telling(path):
            flush(path)


def _remove_empty(folder: Path) -> None:
    """The folders of dates and nodes that have nothing in them, also those that a killed run left."""
    for place in [*folder.glob("date=*/node=*"), *folder.glob("date=*")]:
        with _telling(place):
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def _leftovers(folder: Path, now: int) -> list[Path]:
    """What killed writers left: hidden, with a part's name, and long not written to."""
    hidden = (p for p in sorted(folder.rglob(".*.parquet*")) if _LEFTOVER.fullmatch(p.name))
    return [p for p in hidden if _age(p, now) > LEFTOVER_AGE]


def _age(path: Path, now: int) -> int:
    """How long ago, in ns, a file was last written to; 0 where it is none, or gone."""
    try:
        return now - path.stat().st_mtime_ns if path.is_file() and not path.is_symlink() else 0
    except FileNotFoundError:
        return 0


# ---- one at a time ----


@contextmanager
def _alone(folder: Path, dry_run: bool) -> Iterator[None]:
    """No other run changes the folder meanwhile. The lock is the kernel's, and ends with the process."""
    if dry_run or not folder.is_dir():
        yield
        return
    with _telling(folder):
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CaptureError(
                "another run compacts or prunes it", where=str(folder), next_step="wait until it has ended"
            ) from error
        yield
    finally:
        os.close(handle)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CaptureError(
            f"cannot be changed: {error.strerror or error}",
            where=str(path),
            next_step="check the folder, its rights and its space",
        ) from error
