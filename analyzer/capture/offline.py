"""Capture files to one-way rows. Rule: opens, unpacks and cuts bytes into chunks; what the bytes mean is the
native reader's.

A file is streamed through one small buffer, not mapped: a capture that is cut short while it is read would
end a process that has it mapped (SIGBUS), and streaming is as fast. No Python object stands for a packet,
and the reader runs without the GIL, so that several files are read on several cores.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from analyzer.capture import _reader
from analyzer.errors import CaptureError
from analyzer.rows import BY_IFINDEX, FRAGMENT, KEY, ROW, Coverage, Observer, OneWay, Rows, merge

if TYPE_CHECKING:
    import numpy.typing as npt

CHUNK = 256 << 10
#: what is unpacked ahead: as many buffers of so many bytes
PIECES, PIECE = 8, CHUNK // 2
#: bytes of a file for which a second thread is worth it; of packets that it is handed at a time
LARGE, BATCH = 4 << 20, 1024
#: threads of one source at most: one unpacks, one parses, one counts
MOST = 3
#: rows of one source; about 2.6 GB where they are all there
MAX_ROWS = 1 << 24
SEED = int.from_bytes(os.urandom(8), "little")

#: called with the bytes read of a file since the last call
Progress = Callable[[int], None]


def _no_progress(_: int) -> None:
    return


def _nothing() -> None:
    return


class _ZstdFrames:
    """Hands compressed bytes on and follows them through frames: `whole` where a frame has just ended."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._fields = raw, _zstd_fields()
        self._wanted, self.whole = next(self._fields)
        self._field = b""

    def read(self, size: int = -1) -> bytes:
        data, at = self._raw.read(size), 0
        while at < len(data):
            self._field += data[at : at + min(self._wanted, 4 - len(self._field))]
            step = min(self._wanted, len(data) - at)
            self._wanted, self.whole, at = self._wanted - step, False, at + step
            while not self._wanted:
                self._wanted, self.whole = self._fields.send(self._field)
                self._field = b""
        return data


def _zstd_fields() -> Generator[tuple[int, bool], bytes, None]:
    """RFC 8878, 3.1: each field's length, and whether a frame begins with it; is sent its first 4 bytes."""
    while True:
        magic = yield 4, True
        if magic[0] >> 4 == 5 and magic[1:] == b"\x2a\x4d\x18":  # a skippable frame
            yield int.from_bytes((yield 4, False), "little"), False
            continue
        flags = (yield 1, False)[0]
        single = flags >> 5 & 1
        yield (1 - single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6], False
        block = 0
        while not block & 1:  # the last one
            block = int.from_bytes((yield 3, False), "little")
            yield 1 if block >> 1 & 3 == 1 else block >> 3, False
        yield flags & 4, False  # checksum


class _Zstd(io.RawIOBase):
    """Unpacks zstd frames. The library takes a cut one for a whole one; here it ends in an EOFError."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard  # noqa: PLC0415  what unpacks is imported where something is packed

        self._frames = _ZstdFrames(raw)
        self._unpacked = zstandard.ZstdDecompressor().stream_reader(
            cast("IO[bytes]", self._frames), read_across_frames=True
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count: int = self._unpacked.readinto(buffer)
        if not count and not self._frames.whole:
            raise EOFError("it ends within a frame")
        return count


def _zstd(raw: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_Zstd(raw))


def _gzip(raw: IO[bytes]) -> IO[bytes]:
    import gzip  # noqa: PLC0415  see _Zstd

    return gzip.GzipFile(fileobj=raw, mode="rb")  # type: ignore[return-value]


def _lz4(raw: IO[bytes]) -> IO[bytes]:
    import lz4.frame  # noqa: PLC0415  see _Zstd

    return lz4.frame.LZ4FrameFile(raw, mode="rb")  # type: ignore[no-any-return]


#: the first bytes of a compressed file, its name, and what unpacks it
COMPRESSIONS: tuple[tuple[bytes, str, Callable[[IO[bytes]], IO[bytes]]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x04\x22\x4d\x18", "lz4", _lz4),
)


def _unpack_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise when a compressed file is damaged."""
    import gzip  # noqa: PLC0415  see _Zstd
    import zlib  # noqa: PLC0415

    import zstandard  # noqa: PLC0415

    return (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, RuntimeError)


@dataclass
class _Input:
    """One capture while it is read."""

    source: str
    reader: _reader.Reader
    drain: Callable[[], None] = _nothing
    threads: int = MOST
    rest: int = 0
    damage: str = ""


class _Counted(io.RawIOBase):
    """A stream that tells the progress bar what was read of it, with its first bytes put back."""

    def __init__(self, raw: IO[bytes], head: bytes, progress: Progress) -> None:
        self._raw, self._head, self._progress = raw, head, progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._head[: len(buffer)] or self._raw.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        self._progress(len(data))
        return len(data)


class _Piece:
    """Bytes on their way from one thread to the other."""

    def __init__(self) -> None:
        self.view, self.filled = memoryview(bytearray(PIECE)), 0


class _Ahead:
    """Unpacks a stream in a thread of its own, a few pieces before they are asked for; the libraries do so
    without the GIL.

    What the stream raises is raised here, behind what came before it. Leaving the context ends the thread,
    which waits for nothing but the stream: it must be one of a file.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._readinto: Callable[[memoryview], int] = stream.readinto1  # type: ignore[attr-defined]
        self._empty: SimpleQueue[_Piece | None] = SimpleQueue()
        self._full: SimpleQueue[_Piece | BaseException] = SimpleQueue()
        self._piece, self._at, self._left = _Piece(), 0, False
        self._thread = Thread(target=self._unpack, name="unpack", daemon=True)

    def __enter__(self) -> _Ahead:
        for _ in range(PIECES):
            self._empty.put(_Piece())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        self._empty.put(None)
        self._thread.join()

    def _unpack(self) -> None:
        """Ends with a piece of no bytes, or with an error."""
        while (piece := self._empty.get()) is not None and not self._left:
            error = self._fill(piece)
            if piece.filled or not error:
                self._full.put(piece)
            if error:
                self._full.put(error)
            if error or not piece.filled:
                return

    def _fill(self, piece: _Piece) -> BaseException | None:
        """Half of it is enough: a call that is given little room makes little of it."""
        piece.filled = 0
        try:
            while piece.filled < PIECE // 2 and (count := self._readinto(piece.view[piece.filled :])):
                piece.filled += count
        except BaseException as error:  # raised again where it is waited for
            return error
        return None

    def readinto1(self, buffer: memoryview) -> int:
        """Bytes of one piece; not to be called again after 0 or an error."""
        if self._at == self._piece.filled:
            self._next()
        count = min(len(buffer), self._piece.filled - self._at)
        buffer[:count] = self._piece.view[self._at : self._at + count]
        self._at += count
        return count

    def _next(self) -> None:
        self._empty.put(self._piece)
        got = self._full.get()
        if isinstance(got, BaseException):
            raise got
        self._piece, self._at = got, 0


def read_captures(
    paths: Sequence[str | Path],
    *,
    interval: int = 0,
    progress: Progress = _no_progress,
    names: Sequence[str] | None = None,
    max_rows: int = MAX_ROWS,
    threads: int | None = None,
) -> OneWay:
    """Reads capture files, several at a time, to one table. ``-`` is standard input.

    `interval`: ns; rows are cut at its multiples, 0 for none. `names`: what to call the sources, by default
    :func:`source_names`. `max_rows`: of each source, 0 for no limit; packets of further 5-tuples are counted
    in the ledger's `overflow` and `inner_overflow`. `threads`: how many read at most; by default one for each
    core, and of a single large capture, where there is more than one core, three: one unpacks, one parses,
    one counts. The table is the same, however many there are.

    Formats: pcap (µs, ns, both byte orders, Kuznetzov), pcapng; plain or in gzip, zstd or lz4. Raises
    CaptureError where a file is missing or is no capture; one that is damaged further on is read up to there,
    and its ledger says so.
    """
    sources = list(names) if names is not None else source_names(paths)
    at_once = max(1, min(len(sources), _threads(threads)))
    each = (interval, progress, max_rows, threads if at_once == 1 else _threads(threads) // at_once)
    if at_once == 1:
        return merge([read_capture(p, n, *each) for p, n in zip(paths, sources, strict=True)])
    with ThreadPoolExecutor(at_once) as pool:
        jobs = [pool.submit(read_capture, p, n, *each) for p, n in zip(paths, sources, strict=True)]
        try:
            return merge([job.result() for job in jobs])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def source_names(paths: Sequence[str | Path]) -> list[str]:
    """What to call each file: its own name, or the path as given where two files have the same name. A name
    that is no text (Linux allows any bytes) has question marks in it.
    """
    names = [Path(path).name or str(path) for path in paths]
    times = Counter(names)
    full = [name if times[name] == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [name.encode("utf-8", "replace").decode() for name in full]


def read_capture(
    path: str | Path,
    source: str | None = None,
    interval: int = 0,
    progress: Progress = _no_progress,
    max_rows: int = MAX_ROWS,
    threads: int | None = None,
) -> OneWay:
    """Reads one capture file; see :func:`read_captures`."""
    at_most = MOST if threads is None and _threads(None) > 1 else _threads(threads)
    job = _Input(source or str(path), _reader.Reader(SEED, interval, max_rows), threads=at_most)
    with _opened(path) as raw:
        _read(job, raw, progress, counts=True)
    return _table(job, interval)


def _threads(asked: int | None) -> int:
    """One for each core, where none is asked for."""
    if asked is not None and asked < 1:
        raise ValueError(f"{asked} threads cannot read")
    return asked or os.cpu_count() or 1


#: `struct kept` of the reader: time in ns, number in its file from 1, bytes of its block
KEPT = np.dtype([("time", "u8"), ("frame", "u8"), ("length", "u8")])


@dataclass(frozen=True)
class CutFrames:
    """Frames of one capture, in its order.

    `interfaces`: name and link type of each of the file's. `index`: shape (n,), dtype KEPT. Their blocks,
    pcapng's enhanced packet blocks in this machine's byte order, were written one after the other.
    """

    source: str
    interfaces: tuple[tuple[str, int], ...]
    index: npt.NDArray[np.void]


def cut_capture(
    path: str | Path,
    keys: npt.NDArray[np.void],
    blocks: IO[bytes],
    *,
    source: str | None = None,
    limit: int = 0,
    progress: Progress = _no_progress,
) -> CutFrames:
    """Writes those frames of a capture file to `blocks`, an empty file, that belong to one-way 5-tuples, or
    in which ICMP quotes one.

    `keys`: shape (n,), dtype ROW, of which protocol, addresses, ports, tunnel and VNI count. `limit`: at most
    so many frames of each key, 0 for all. A fragment goes where its datagram goes, also where it comes before
    the one with the ports: then the file is read twice. Reads what :func:`read_capture` reads, and raises
    what it raises.
    """
    packed = np.ascontiguousarray(keys.view(np.uint8).reshape(len(keys), ROW.itemsize)[:, : KEY.itemsize])
    name = source or str(path)
    cut, late = _cut_once(path, name, packed, limit, np.zeros(0, np.uint64), blocks, progress)
    if not len(late):
        return cut
    blocks.seek(0)
    blocks.truncate()
    return _cut_once(path, name, packed, limit, np.unique(late), blocks, _no_progress)[0]


def _cut_once(
    path: str | Path,
    source: str,
    keys: npt.NDArray[np.uint8],
    limit: int,
    also: npt.NDArray[np.uint64],
    blocks: IO[bytes],
    progress: Progress,
) -> tuple[CutFrames, npt.NDArray[np.uint64]]:
    """The frames, and the numbers of those that were passed over before it was known that they belong."""
    index = [np.zeros(0, KEPT)]

    def drain() -> None:
        frames, kept = job.reader.take_cut()
        if memoryview(kept).nbytes:
            blocks.write(memoryview(frames))
            index.append(np.frombuffer(memoryview(kept), KEPT))

    job = _Input(source, _reader.Reader(SEED, 0), drain)
    job.reader.select(keys.data, limit, also.data)
    with _opened(path) as raw:
        _read(job, raw, progress)
    _damage(job, job.reader.ledger())
    late = np.frombuffer(memoryview(job.reader.late()), np.uint64)
    return CutFrames(source, tuple(_described(job.reader)), np.concatenate(index)), late


def _described(reader: _reader.Reader) -> Iterator[tuple[str, int]]:
    names, links = reader.interfaces(), reader.links()
    for number, link in enumerate(links):
        yield names[number] if number < len(names) else "", link & 0xFFFF


@contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    if str(path) == "-":
        if sys.stdin is None:
            raise CaptureError(
                "standard input is closed", where="-", next_step="give a file, or pipe a capture in"
            )
        yield sys.stdin.buffer
        return
    try:
        raw = Path(path).open("rb")  # noqa: SIM115
    except OSError as error:
        raise CaptureError(
            f"cannot be opened: {error.strerror}", where=str(path), next_step="check the path and the rights"
        ) from error
    with raw:
        yield raw


def _read(job: _Input, raw: IO[bytes], progress: Progress, *, counts: bool = False) -> None:
    """`counts`: packets, rather than to find frames again."""
    head, size = _head(job, raw), _size(raw)
    unpack = next((unpack for magic, _, unpack in COMPRESSIONS if head.startswith(magic)), None)
    if counts and job.threads > (2 if unpack else 1) and not 0 < size < LARGE:
        job.reader.count_beside(BATCH)
    if not unpack:
        progress(len(head))
        _feed(job, raw, head, progress)
        return
    unpacked = unpack(io.BufferedReader(_Counted(raw, head, progress), CHUNK))
    # from a pipe nothing may ever come, and a thread that waits for it could not be ended
    with _Ahead(unpacked) if size and job.threads > 1 else nullcontext(unpacked) as stream:
        _feed(job, cast("IO[bytes]", stream), b"", _no_progress)


def _size(raw: IO[bytes]) -> int:
    """Bytes of a regular file; 0 of what is none."""
    try:
        found = os.fstat(raw.fileno())
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _unreadable(job: _Input, error: OSError) -> CaptureError:
    return CaptureError(f"cannot be read: {error.strerror}", where=job.source)


def _feed(job: _Input, stream: IO[bytes], head: bytes, progress: Progress) -> None:
    """Whole records to the reader, from one buffer that fits the cache; it grows for a longer record."""
    buffer, filled = bytearray(CHUNK + len(head)), len(head)
    buffer[:filled] = head
    while not job.reader.fault() and (count := _fill(job, stream, buffer, filled)):
        progress(count)
        filled += count
        with memoryview(buffer) as view, view[:filled] as whole:
            used = job.reader.consume(whole)
        job.drain()
        filled -= used
        if used:  # none yet of a long record: moving it for each piece would take the square of its length
            buffer[:filled] = buffer[used : used + filled]
        if filled == len(buffer):
            buffer.extend(bytes(filled))
    job.rest = filled


def _fill(job: _Input, stream: IO[bytes], buffer: bytearray, filled: int) -> int:
    """Bytes read into the buffer behind `filled`; 0 at the end, or where a compressed stream is damaged."""
    readinto: Callable[[memoryview], int] = stream.readinto1  # type: ignore[attr-defined]
    try:
        with memoryview(buffer) as view, view[filled:] as free:
            return readinto(free)
    except _unpack_errors() as error:
        job.damage = f"the compressed stream is damaged: {' '.join(str(error).split())}"
        return 0
    except OSError as error:
        raise _unreadable(job, error) from error


def _head(job: _Input, raw: IO[bytes]) -> bytes:
    try:
        return raw.read(4)
    except OSError as error:
        raise _unreadable(job, error) from error


def _table(job: _Input, interval: int) -> OneWay:
    ledger = job.reader.ledger()
    damage = _damage(job, ledger)
    coverage = Coverage(
        job.source,
        start=ledger["start"] if ledger["end"] else 0,
        damage=damage,
        **{k: v for k, v in ledger.items() if k not in ("start", "offset", "fault", "format")},
    )
    rows = np.frombuffer(memoryview(job.reader.take_rows()), ROW)
    fragments = np.frombuffer(memoryview(job.reader.fragments()), FRAGMENT)
    table = OneWay(rows, (), (coverage,), fragments, interval)
    return _named(table, job.source, job.reader.interfaces())


def _damage(job: _Input, ledger: dict[str, int | str]) -> str:
    """What is wrong with the file; raises CaptureError where not even its header could be read."""
    place = f"frame {int(ledger['frames']) + 1}, byte {ledger['offset']}"
    if ledger["fault"]:
        damage = f"{place}: {ledger['fault']}"
    elif job.damage:
        damage = f"{place}: {job.damage}"
    elif job.rest:
        damage = f"{place}: the file ends within a record, {job.rest} bytes into it"
    else:
        damage = ""
    if not ledger["format"] or (damage and not ledger["frames"]):
        raise CaptureError(
            damage or "the file is empty",
            where=job.source,
            next_step="give a pcap or pcapng file, plain or in gzip, zstd or lz4",
        )
    return damage


def _named(table: OneWay, source: str, names: list[str]) -> OneWay:
    """Gives the file's interface numbers their names, where the file can tell interfaces apart.

    Never by how many were seen: then a part of a capture would name the same interface otherwise than the
    whole does.
    """
    numbers = np.concatenate([table.rows["interface"], table.fragments["interface"]])
    if len(numbers) and numbers.min() == numbers.max():  # as nearly always: there is nothing to sort
        seen, inverse = numbers[:1], np.zeros(len(numbers), np.intp)
    else:
        seen, inverse = np.unique(numbers, return_inverse=True)
    several = len(names) > 1
    labels = [_interface_name(int(n), names) if several or n & BY_IFINDEX else "" for n in seen]
    observers = [Observer(source, label) for label in labels]
    known = dict.fromkeys(observers) or {Observer(source): None}
    position = {observer: i for i, observer in enumerate(known)}
    index = np.array([position[o] for o in observers], np.uint32)
    numbers = index[inverse] if len(seen) else inverse.astype(np.uint32)
    return replace(
        table,
        rows=_with_interface(table.rows, numbers[: len(table.rows)]),
        fragments=_with_interface(table.fragments, numbers[len(table.rows) :]),
        observers=tuple(known),
    )


def _interface_name(number: int, names: list[str]) -> str:
    if number & BY_IFINDEX:
        return f"if{number & ~BY_IFINDEX}"
    name = names[number] if number < len(names) else ""
    return f"{number}-{name}" if name else str(number)


def _with_interface(rows: Rows, numbers: np.ndarray[tuple[int, ...], np.dtype[np.uint32]]) -> Rows:
    if np.array_equal(rows["interface"], numbers):
        return rows
    rows = rows.copy()
    rows["interface"] = numbers
    return rows
