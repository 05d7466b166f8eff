"""Compressed captures, unpacked in a thread of their own.

Rule: what is expected is what the same bytes give where no thread is: plain, or compressed through a pipe.
"""

from __future__ import annotations

import gzip
import os
import random
import struct
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import zstandard
from frames import COMPRESSIONS, EPOCH, Frame, Pipe, pcap, save, segment, talk, timed
from packets import ACK

from analyzer.capture import _reader, reading, streams
from analyzer.capture.offline import cut_capture, read_capture, read_captures
from analyzer.errors import CaptureError
from analyzer.rows import ROW, OneWay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIECES = 8  # of _ahead.h
KINDS = [kind for kind in COMPRESSIONS if kind != "plain"]
SOURCE = "capture"


def chance(of: str) -> random.Random:
    """The same numbers in each run."""
    return random.Random(of)  # noqa: S311 a seed, so that a fault can be had again


FRAMES = 1200


def capture(size: int = FRAMES) -> bytes:
    """Some MB, of which one half can hardly be compressed: many pieces, and many reads of the file."""
    numbers = chance("capture")
    frames = []
    for n in range(size):
        head = segment(("10.10.0.21", 1024 + n % 700), ("10.10.0.11", 6443), ACK, 1200)
        frames.append(Frame(head[:-600] + numbers.randbytes(600), EPOCH + n))
        frames.append(Frame(head, EPOCH + n))
    return pcap(frames, "ns")


DATA = capture()


def unpacking() -> int:
    """Threads of this process that unpack, by what they call themselves."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text())
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return names.count("unpack\n")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """The kernel lists a thread for a moment after it was waited for. A file that other files' tests left may
    be closed meanwhile.
    """
    files = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 5
    while unpacking() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not unpacking()
    assert len(os.listdir("/proc/self/fd")) <= files


def seen(read: Callable[[], OneWay]) -> tuple[object, ...]:
    """Rows, fragments and ledger, or the error's text."""
    try:
        table = read()
    except CaptureError as error:
        return (str(error).replace("-: ", f"{SOURCE}: "),)
    return table.rows.tobytes(), table.fragments.tobytes(), table.coverage, table.observers


def through_a_pipe(data: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", Pipe(data))
        return seen(lambda: read_capture("-", SOURCE))


def test_the_capture_is_of_many_pieces() -> None:
    assert len(DATA) > 2 * PIECES * reading.PIECE
    assert all(len(COMPRESSIONS[kind](DATA)) > 2 * streams.CHUNK for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [1, 2, 4099, reading.PIECE])
@pytest.mark.parametrize("block", [1, 4099, reading.BLOCK])
def test_the_same_as_plain(
    kind: str, piece: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DATA if min(piece, block) > 2 else DATA[:20000]
    monkeypatch.setattr(reading, "PIECE", piece)
    monkeypatch.setattr(reading, "BLOCK", block)
    packed = save(tmp_path, "packed", COMPRESSIONS[kind](data))
    plain = save(tmp_path, "plain", data)
    assert seen(lambda: read_capture(packed, SOURCE)) == seen(lambda: read_capture(plain, SOURCE))


def test_pieces_are_unpacked_in_another_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of a pipe, and not where one thread is all that is wanted."""
    monkeypatch.setattr(reading, "TURN", 0)
    most = 0

    def progress(_: int) -> None:
        nonlocal most
        most = max(most, unpacking())

    path = save(tmp_path, "packed", gzip.compress(DATA))
    read_capture(path, progress=progress)
    assert most == 1
    most = 0
    read_capture(path, progress=progress, threads=1)
    with path.open("rb", buffering=0) as file, monkeypatch.context() as patch:
        patch.setattr(streams, "file_size", lambda _: 0)
        patch.setattr(sys, "stdin", type("Stdin", (), {"buffer": file}))
        read_capture("-", progress=progress)
    assert most == 0


def test_progress_is_told_of_every_packed_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TURN", 0)
    for kind in KINDS:
        path, counts = save(tmp_path, "packed", COMPRESSIONS[kind](DATA)), list[int]()
        read_capture(path, progress=counts.append)
        assert sum(counts) == path.stat().st_size
        assert len(counts) > 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_unpacked_may_be_read_from_several_places(kind: str, ahead: bool, tmp_path: Path) -> None:
    """Bytes that are given, then a descriptor, which may be closed when the thread has it."""
    whole, parts = _reader.Reader(1, 0), _reader.Reader(1, 0)
    whole.consume(DATA)
    packed = COMPRESSIONS[kind](DATA)
    parts.unpack(kind, 1000, ahead)
    parts.consume(packed[:3])
    parts.consume(packed[3:5000])
    with save(tmp_path, "packed", packed).open("rb", buffering=0) as file:
        file.seek(5000)
        counts = [parts.read(file.fileno(), 777, 0)]
        other = os.dup(file.fileno())
    with os.fdopen(other, "rb", buffering=0) as file:
        while counts[-1] is not None:
            counts.append(parts.read(file.fileno(), 777, 0))
        parts.end()
    assert sum(filter(None, counts)) == len(packed) - 5000
    assert parts.ledger() == whole.ledger()
    assert bytes(parts.take_rows()) == bytes(whole.take_rows())


def test_how_it_is_packed_is_known_before() -> None:
    reader = _reader.Reader(1, 0)
    for kind, size in (("bzip2", 10), ("gzip", 0), ("gzip", 1 << 40)):
        with pytest.raises(ValueError, match="gzip, zstd or lz4"):
            reader.unpack(kind, size, False)
    reader.consume(DATA[:10])
    with pytest.raises(RuntimeError, match="before its first byte"):
        reader.unpack("gzip", 10, False)
    reader = _reader.Reader(1, 0)
    reader.unpack("gzip", 10, True)
    with pytest.raises(RuntimeError, match="before its first byte"):
        reader.unpack("zstd", 10, True)


def test_nothing_is_read_after_the_end(tmp_path: Path) -> None:
    """Of a file that was being unpacked ahead something is missing then."""
    reader = _reader.Reader(1, 0)
    reader.unpack("gzip", 1000, True)
    with save(tmp_path, "packed", gzip.compress(DATA)).open("rb", buffering=0) as file:
        assert reader.read(file.fileno(), 1000, 0) is not None
        frames = reader.ledger()["frames"]
        reader.end()
        while reader.read(file.fileno(), 1000, 0) is not None:
            pass
    assert reader.ledger()["frames"] == frames < 2 * FRAMES
    assert not reader.ledger()["whole"]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_reads_as_without_a_thread(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, whole = chance(kind), COMPRESSIONS[kind](DATA[:600_000])
    damaged = 0
    for n in range(24):
        data = bytearray(whole)
        at = numbers.randrange(len(data))
        if n % 3:
            data[at] ^= 1 << numbers.randrange(8)
        else:
            del data[at:]
        path = save(tmp_path, "file", bytes(data))
        result = seen(partial(read_capture, path, SOURCE))
        assert result == through_a_pipe(bytes(data), monkeypatch)
        damaged += len(result) == 1 or bool(cast("Any", result[2])[0].damage)
    assert damaged > 12


def test_a_window_that_takes_too_much_memory(tmp_path: Path) -> None:
    """What `zstd --long=31` packs is not damaged. RFC 8878, 3.1.1.1.2: a window of 2 GiB."""
    block = (len(SOURCE) << 3 | 1).to_bytes(3, "little") + SOURCE.encode()
    path = save(tmp_path, "packed", b"\x28\xb5\x2f\xfd\x00\xa8" + block)
    with pytest.raises(CaptureError, match=r"more than 128 MiB: use zstd -d --long=31"):
        read_capture(path)


# ---- every way out ends the thread; the fixture looks ----


def test_a_fault_of_the_capture(tmp_path: Path) -> None:
    """It stops the reading while pieces are still on their way."""
    impossible = struct.pack("<IIII", 1, 0, 0xFFFFFFFF, 0)
    path = save(tmp_path, "broken", gzip.compress(DATA[:24] + impossible + DATA))
    with pytest.raises(CaptureError, match="more than the limit"):
        read_capture(path)
    path = save(tmp_path, "later", gzip.compress(DATA + impossible + DATA))
    (ledger,) = read_capture(path).coverage
    assert ledger.frames == 2 * FRAMES
    assert "more than the limit" in ledger.damage
    with pytest.raises(CaptureError, match="neither pcap nor pcapng"):
        read_capture(save(tmp_path, "text", gzip.compress(b"text" * 1_000_000)))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, CaptureError])
def test_what_progress_raises(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where progress is told, a thread has pieces that nobody will take."""
    monkeypatch.setattr(reading, "TURN", 0)
    calls = []

    def progress(_: int) -> None:
        calls.append(unpacking())
        if len(calls) == 3:
            raise error("stop", where="here", next_step="") if error is CaptureError else error

    paths = [save(tmp_path, name, gzip.compress(DATA)) for name in ("packed", "another")]
    with pytest.raises(error):
        read_capture(paths[0], progress=progress)
    assert 1 in calls
    calls.clear()
    with pytest.raises(error):
        read_captures(paths, progress=progress)


def test_what_the_reading_side_raises(tmp_path: Path) -> None:
    class Full:
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    frames = timed(talk(("10.10.0.21", 40000), ("10.10.0.11", 6443), 3000))
    path = save(tmp_path, "packed", zstandard.compress(pcap(frames)))
    keys = read_capture(path).rows
    assert keys.dtype == ROW
    with pytest.raises(OSError, match="No space left"):
        cut_capture(path, np.ascontiguousarray(keys), cast("Any", Full()))
