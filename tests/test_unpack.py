"""Compressed captures, unpacked in a thread of their own.

Rule: what is expected is what the same bytes give where no thread is: plain, or compressed through a pipe.
"""

from __future__ import annotations

import gzip
import random
import struct
import sys
import threading
from functools import partial
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import zstandard
from frames import COMPRESSIONS, EPOCH, Frame, Pipe, pcap, save, segment, talk, timed
from packets import ACK

from analyzer.capture import streams
from analyzer.capture.offline import cut_capture, read_capture, read_captures
from analyzer.errors import CaptureError
from analyzer.rows import ROW, OneWay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


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
    assert len(DATA) > 2 * streams.PIECES * streams.PIECE
    assert all(len(COMPRESSIONS[kind](DATA)) > 2 * streams.CHUNK for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [2, 4099, streams.PIECE])
def test_the_same_as_plain(kind: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DATA if piece > 2 else DATA[:20000]
    monkeypatch.setattr(streams, "PIECE", piece)
    packed = save(tmp_path, "packed", COMPRESSIONS[kind](data))
    plain = save(tmp_path, "plain", data)
    assert seen(lambda: read_capture(packed, SOURCE)) == seen(lambda: read_capture(plain, SOURCE))


def test_pieces_are_unpacked_in_another_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()

    def noting(raw: IO[bytes]) -> IO[bytes]:
        stream = gzip.GzipFile(fileobj=raw, mode="rb")
        readinto1 = stream.readinto1

        def noted(buffer: memoryview) -> int:
            names.add(threading.current_thread().name)
            return readinto1(buffer)

        monkeypatch.setattr(stream, "readinto1", noted)
        return cast("IO[bytes]", stream)

    monkeypatch.setattr(streams, "COMPRESSIONS", ((b"\x1f\x8b", "gzip", noting),))
    path = save(tmp_path, "packed", gzip.compress(DATA))
    read_capture(path)
    assert names == {"unpack"}
    names.clear()
    through_a_pipe(path.read_bytes(), monkeypatch)
    assert names == {threading.current_thread().name}


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
def test_what_the_stream_raises(error: type[BaseException], tmp_path: Path) -> None:
    """Progress is told in the thread, and what it raises comes back to the caller."""
    calls = []

    def progress(_: int) -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            raise error("stop", where="here", next_step="") if error is CaptureError else error

    path = save(tmp_path, "packed", gzip.compress(DATA))
    with pytest.raises(error):
        read_capture(path, progress=progress)
    assert set(calls) == {"unpack"}
    calls.clear()
    with pytest.raises(error):
        read_captures([path, path], progress=progress)


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
