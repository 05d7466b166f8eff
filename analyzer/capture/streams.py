"""Bytes of capture files, unpacked where they are packed. Rule: opens, unpacks and hands on pieces; what is
in them is the native reader's, and no row is made here.

A file is streamed through a small buffer, not mapped: a capture that is cut short while it is read would end
a process that has it mapped (SIGBUS), and streaming is as fast.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, TypeVar, cast

from analyzer.errors import CaptureError

CHUNK = 256 << 10
#: what is unpacked ahead: as many buffers of so many bytes
PIECES, PIECE = 8, CHUNK // 2

T = TypeVar("T")
#: called with the bytes read of a file since the last call
Progress = Callable[[int], None]


def no_progress(_: int) -> None:
    """For who does not want to be told."""


@contextmanager
def opened(path: str | Path) -> Iterator[IO[bytes]]:
    """A file, or standard input for ``-``, unbuffered where it has a descriptor. Raises CaptureError."""
    if str(path) == "-":
        if sys.stdin is None:
            raise CaptureError(
                "standard input is closed", where="-", next_step="give a file, or pipe a capture in"
            )
        yield getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        return
    try:
        raw = Path(path).open("rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise CaptureError(
            f"cannot be opened: {error.strerror}", where=str(path), next_step="check the path and the rights"
        ) from error
    with raw:
        yield cast("IO[bytes]", raw)


def descriptor(raw: IO[bytes]) -> int:
    """-1 of what has none."""
    try:
        return raw.fileno()
    except OSError:
        return -1


def file_size(raw: IO[bytes]) -> int:
    """Bytes of a regular file; 0 of what is none."""
    number = descriptor(raw)
    found = os.fstat(number) if number >= 0 else None
    return found.st_size if found and stat.S_ISREG(found.st_mode) else 0


def _came(what: T | None) -> T:
    """What was read. Raises OSError where a non-blocking descriptor has nothing to say, which is no end."""
    if what is None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return what


def head_of(raw: IO[bytes]) -> bytes:
    """Its first 4 bytes, fewer where it has no more."""
    head = b""
    while len(head) < 4 and (more := _came(raw.read(4 - len(head)))):
        head += more
    return head


# ---- packed ----


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


#: the first 4 bytes of a capture; of a compressed one those that tell how
MAGICS = (
    b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x34\xcd\xb2\xa1",
    b"\xa1\xb2\xcd\x34", b"\x0a\x0d\x0d\x0a", *(magic for magic, _, _ in COMPRESSIONS),
)  # fmt: skip


def unpack_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise when a compressed file is damaged."""
    import gzip  # noqa: PLC0415  see _Zstd
    import zlib  # noqa: PLC0415

    import zstandard  # noqa: PLC0415

    return (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, RuntimeError)


def is_capture(head: bytes) -> bool:
    """Whether a file that begins so may be one."""
    return head.startswith(MAGICS)


def unpacker(head: bytes) -> Callable[[IO[bytes]], IO[bytes]] | None:
    """What unpacks a file that begins so; None where it is not packed."""
    return next((unpack for magic, _, unpack in COMPRESSIONS if head.startswith(magic)), None)


class Counted(io.RawIOBase):
    """A stream that tells the progress bar what was read of it, with its first bytes put back."""

    def __init__(self, raw: IO[bytes], head: bytes, progress: Progress) -> None:
        self._raw, self._head, self._progress = raw, head, progress

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As of any raw stream."""
        data = self._head[: len(buffer)] or _came(self._raw.read(len(buffer)))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        self._progress(len(data))
        return len(data)


class Direct:
    """A stream's bytes, piece by piece, read when they are asked for."""

    def __init__(self, stream: IO[bytes]) -> None:
        given: Any = stream
        self._readinto: Callable[[memoryview], int | None] = getattr(given, "readinto1", given.readinto)
        self._view = memoryview(bytearray(CHUNK))

    def piece(self) -> memoryview:
        """The next bytes, valid until the next call; none at the end. Raises what the stream raises."""
        return self._view[: _came(self._readinto(self._view))]


class _Filled:
    """Bytes on their way from one thread to the other."""

    def __init__(self) -> None:
        self.view, self.length = memoryview(bytearray(PIECE)), 0


class Ahead:
    """Unpacks a stream in a thread of its own, a few pieces before they are asked for; the libraries do so
    without the GIL.

    What the stream raises is raised here, behind what came before it. Leaving the context ends the thread,
    which waits for nothing but the stream: it must be one of a file.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._readinto: Callable[[memoryview], int] = stream.readinto1  # type: ignore[attr-defined]
        self._empty: SimpleQueue[_Filled | None] = SimpleQueue()
        self._full: SimpleQueue[_Filled | BaseException] = SimpleQueue()
        self._taken, self._left = _Filled(), False
        self._thread = Thread(target=self._unpack, name="unpack", daemon=True)

    def __enter__(self) -> Ahead:
        for _ in range(PIECES):
            self._empty.put(_Filled())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        self._empty.put(None)
        self._thread.join()

    def piece(self) -> memoryview:
        """As of :class:`Direct`; not to be called again after the end or an error."""
        self._empty.put(self._taken)
        got = self._full.get()
        if isinstance(got, BaseException):
            raise got
        self._taken = got
        return got.view[: got.length]

    def _unpack(self) -> None:
        """Ends with a piece of no bytes, or with an error."""
        while (piece := self._empty.get()) is not None and not self._left:
            error = self._fill(piece)
            if piece.length or not error:
                self._full.put(piece)
            if error:
                self._full.put(error)
            if error or not piece.length:
                return

    def _fill(self, piece: _Filled) -> BaseException | None:
        """Half of it is enough: a call that is given little room makes little of it."""
        piece.length = 0
        try:
            while piece.length < PIECE // 2 and (count := self._readinto(piece.view[piece.length :])):
                piece.length += count
        except BaseException as error:  # raised again where it is waited for
            return error
        return None
