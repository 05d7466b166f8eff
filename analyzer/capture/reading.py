"""One capture's bytes on their way into the native reader. Rule: knows no NumPy, so that reading begins
before tables can be made; what was read is asked of the reader.

No Python object stands for a packet, and the reader runs without the GIL, so that several files are read on
several cores.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import IO, TYPE_CHECKING

from analyzer.capture import _reader, streams
from analyzer.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from analyzer.capture.streams import Progress

#: bytes of a file for which a second thread is worth it; of packets that it is handed at a time
LARGE, BATCH = 4 << 20, 1024
#: bytes that the reader reads at a time, and unpacks: with fewer calls take longer, more leave the cache
BLOCK, PIECE = 1 << 20, 128 << 10
#: ns for which the reader reads on its own, before progress is told and a signal heard
TURN = 50 * 10**6
#: threads of one source at most: one unpacks, one parses, one counts; more of them than cores take longer
MOST = 3
#: rows of one source; about 2.6 GB where they are all there
MAX_ROWS = 1 << 24
_PATIENCE = 0.05  # s between two looks at what was read
SEED = int.from_bytes(os.urandom(8), "little")


@dataclass
class Reading:
    """One capture while it is read. `drain`: called after each piece, where frames are to be found again
    rather than counted.
    """

    source: str
    reader: _reader.Reader
    drain: Callable[[], None] | None = None
    threads: int = MOST
    stop: Event = field(default_factory=Event)

    def goes_on(self) -> bool:
        """Whether there is any use in more bytes."""
        return not (self.stop.is_set() or self.reader.fault())


def threads_of(asked: int | None) -> int:
    """One for each core, where none is asked for."""
    if asked is not None and asked < 1:
        raise ValueError(f"{asked} threads cannot read")
    return asked or os.cpu_count() or 1


def counting(
    source: str, interval: int, max_rows: int, threads: int | None, stop: Event | None = None
) -> Reading:
    """A capture whose packets are to be counted. ValueError for what is below 0, which C would take for more
    than there is.
    """
    if interval < 0 or max_rows < 0:
        raise ValueError(f"interval={interval}, max_rows={max_rows}: neither may be below 0")
    at_most = min(MOST, threads_of(threads))
    reader = _reader.Reader(SEED, interval, max_rows)
    return Reading(source, reader, threads=at_most, stop=stop or Event())


def read_all(job: Reading, path: str | Path, progress: Progress) -> None:
    """A file to its end or its first fault. Raises CaptureError where it cannot be opened or read."""
    with streams.opened(path) as raw:
        with _told(job):
            head, size = streams.head_of(raw), streams.file_size(raw)
        _share(job, streams.packing_of(head), size)
        try:
            _read(job, raw, head, progress)
        finally:
            job.reader.end()


def _share(job: Reading, packing: str, size: int) -> None:
    """Says what threads do beside the one that reads. `size`: 0 of what is no file."""
    if packing:
        # from a pipe nothing may ever come, and a thread that waits for it could not be ended
        job.reader.unpack(packing, PIECE, bool(size) and job.threads > 1)
    if not job.drain and job.threads > (2 if packing else 1) and not 0 < size < LARGE:
        job.reader.count_beside(BATCH)


@contextmanager
def _told(job: Reading) -> Iterator[None]:
    """Around what reads the file, and nothing else: others have errors of their own."""
    try:
        yield
    except OSError as error:
        raise CaptureError(f"cannot be read: {error.strerror}", where=job.source) from error


def _read(job: Reading, raw: IO[bytes], head: bytes, progress: Progress) -> None:
    """Lets the reader have all of it, piece by piece."""
    number = streams.descriptor(raw)
    pieces = streams.pieces_of(raw) if number < 0 else None
    job.reader.consume(head)
    count: int | None = len(head)
    while count is not None:
        progress(count)
        if job.drain:
            job.drain()
        if not job.goes_on():
            return
        with _told(job):
            count = _consumed(job, pieces) if pieces else job.reader.read(number, BLOCK, _turn(job))


def _turn(job: Reading) -> int:
    return 0 if job.drain else TURN


def _consumed(job: Reading, pieces: Iterator[memoryview]) -> int | None:
    piece = next(pieces, None)
    if piece is None:
        return None
    job.reader.consume(piece)
    return len(piece)


# ---- before its table is asked for ----


class Early:
    """A capture that is read in a thread from now on, while what makes a table of it is being loaded."""

    def __init__(self, path: str, interval: int, threads: int | None) -> None:
        self._path, self._interval = path, interval
        self._job = counting(path, interval, MAX_ROWS, threads)
        self._bytes, self._told = 0, 0
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="read")
        self._thread.start()

    def _run(self) -> None:
        try:
            read_all(self._job, self._path, self._count)
        except BaseException as error:  # raised again where it is waited for
            self._error = error

    def _count(self, count: int) -> None:
        self._bytes += count

    def serves(self, path: str | Path, interval: int, max_rows: int = MAX_ROWS) -> bool:
        """Whether this is what is being read."""
        return (Path(self._path), self._interval, MAX_ROWS) == (Path(path), interval, max_rows)

    def whole(self, source: str, progress: Progress) -> Reading:
        """Waits until all is read, which raises what reading raised. Its table can be taken once."""
        self._job.source = source
        alive = True
        while alive:
            self._thread.join(_PATIENCE)
            alive = self._thread.is_alive()
            told, self._told = self._told, self._bytes
            progress(self._told - told)
        if self._error:
            raise self._error
        return self._job

    def stop(self) -> None:
        """Ends it, if it has not ended."""
        self._job.stop.set()
        self._thread.join()


def is_large(path: str) -> bool:
    """Whether it is a capture that is worth a thread; what cannot be told is for who reads it in earnest."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe may only be opened once
            return False
        with streams.opened(path) as raw:
            return streams.file_size(raw) >= LARGE and streams.is_capture(streams.head_of(raw))
    except (OSError, ValueError, CaptureError):
        return False
