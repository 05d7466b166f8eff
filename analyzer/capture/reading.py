"""One capture's bytes on their way into the native reader. Rule: knows no NumPy, so that reading begins
before tables can be made; what was read is asked of the reader.

No Python object stands for a packet, and the reader runs without the GIL, so that several files are read on
several cores.
"""

from __future__ import annotations

import io
import os
import stat
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import IO, TYPE_CHECKING

from analyzer.capture import _reader, streams
from analyzer.capture.streams import Ahead, Counted, Direct, Progress, no_progress
from analyzer.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: bytes of a file for which a second thread is worth it; of packets that it is handed at a time
LARGE, BATCH = 4 << 20, 1024
#: bytes that the reader reads at a time: with fewer the calls take longer, more leave the cache
BLOCK = 1 << 20
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
    damage: str = ""
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
    """A capture whose packets are to be counted."""
    at_most = min(MOST, threads_of(threads))
    reader = _reader.Reader(SEED, interval, max_rows)
    return Reading(source, reader, threads=at_most, stop=stop or Event())


def read_all(job: Reading, path: str | Path, progress: Progress) -> None:
    """A file to its end or its first fault. Raises CaptureError where it cannot be opened or read."""
    with streams.opened(path) as raw:
        with _told(job):
            head, size = streams.head_of(raw), streams.file_size(raw)
        unpack = streams.unpacker(head)
        if not job.drain and job.threads > (2 if unpack else 1) and not 0 < size < LARGE:
            job.reader.count_beside(BATCH)
        if not unpack:
            _read_plain(job, raw, head, progress)
            return
        unpacked = unpack(io.BufferedReader(Counted(raw, head, progress), streams.CHUNK))
        # from a pipe nothing may ever come, and a thread that waits for it could not be ended
        with Ahead(unpacked) if size and job.threads > 1 else nullcontext(Direct(unpacked)) as pieces:
            _feed(job, pieces, no_progress)


@contextmanager
def _told(job: Reading) -> Iterator[None]:
    """Around what reads the file, and nothing else: others have errors of their own."""
    try:
        yield
    except OSError as error:
        raise CaptureError(f"cannot be read: {error.strerror}", where=job.source) from error


def _read_plain(job: Reading, raw: IO[bytes], head: bytes, progress: Progress) -> None:
    """By the reader itself, where it can and where nothing is to be taken from it meanwhile."""
    number = streams.descriptor(raw)
    progress(len(head))
    job.reader.consume(head)
    if job.drain or number < 0:
        _feed(job, Direct(raw), progress)
        return
    while job.goes_on() and (count := _turn(job, number)):
        progress(count)


def _turn(job: Reading, descriptor: int) -> int:
    with _told(job):
        return job.reader.read(descriptor, BLOCK, TURN)


def _feed(job: Reading, pieces: Ahead | Direct, progress: Progress) -> None:
    while job.goes_on() and (piece := _piece(job, pieces)):
        progress(len(piece))
        job.reader.consume(piece)
        if job.drain:
            job.drain()


def _piece(job: Reading, pieces: Ahead | Direct) -> memoryview | None:
    """None where a packed stream is damaged."""
    with _told(job):
        try:
            return pieces.piece()
        except streams.unpack_errors() as error:
            job.damage = f"the compressed stream is damaged: {' '.join(str(error).split())}"
            return None


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
        while self._thread.is_alive():
            self._thread.join(_PATIENCE)
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
