"""Capture files, opened. Rule: knows where bytes are, and what their first ones say; the native reader reads
and unpacks them, and no row is made here.

A file is streamed through a small buffer, not mapped: a capture that is cut short while it is read would end
a process that has it mapped (SIGBUS), and streaming is as fast.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from analyzer.errors import CaptureError

#: bytes at a time of what has no descriptor
CHUNK = 256 << 10

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


#: the first bytes of a packed file, and how it is packed. zstd's may begin with a frame that is to be skipped
#: (RFC 8878, 3.1.2): pzstd's do
PACKINGS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    **{bytes((0x50 + n, 0x2A, 0x4D, 0x18)): "zstd" for n in range(16)},
}
#: those of a file that xz or bzip2 packed: to read it fails, and so says that it was not read
NOT_UNPACKED = (b"\xfd7zXZ", b"BZh")
#: the first 4 bytes of a capture; of a packed one those that tell how
MAGICS = (
    b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x34\xcd\xb2\xa1",
    b"\xa1\xb2\xcd\x34", b"\x0a\x0d\x0d\x0a", *PACKINGS,
)  # fmt: skip


def is_capture(head: bytes) -> bool:
    """Whether a file that begins so may be one."""
    return head.startswith(MAGICS)


def packing_of(head: bytes) -> str:
    """How a file that begins so is packed; empty where it is not."""
    return next((packing for magic, packing in PACKINGS.items() if head.startswith(magic)), "")


def pieces_of(raw: IO[bytes]) -> Iterator[memoryview]:
    """The bytes of what has no descriptor, each piece valid until the next one."""
    given: Any = raw
    readinto: Callable[[memoryview], int | None] = getattr(given, "readinto1", given.readinto)
    view = memoryview(bytearray(CHUNK))
    while count := _came(readinto(view)):
        yield view[:count]
