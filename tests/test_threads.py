"""One capture read by several threads.

Rule: what is expected is what one thread gives, bit for bit: rows and their order, ledger, fragments,
observers or the error's text. Pieces are made so small that records, datagrams and faults lie across their
borders.
"""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import RECORDED, SHARED
from frames import (
    COMPRESSIONS,
    EPOCH,
    FILES,
    NS,
    Frame,
    Interface,
    carried,
    datagram,
    fragments,
    option,
    pcap,
    pcapng,
    save,
    statistics,
    talk,
    timed,
    traffic,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from analyzer.capture import _together, offline
from analyzer.capture.offline import read_capture, read_captures
from analyzer.cli import app
from analyzer.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from analyzer.rows import OneWay

CAPTURES = sorted(
    path
    for folder in (SHARED / "captures" / "public", SHARED / "captures" / "zeek", RECORDED)
    if folder.is_dir()
    for path in folder.rglob("*.pcap*")
)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def seen(read: Callable[[], OneWay]) -> tuple[object, ...]:
    """All that is read, or the error's text."""
    try:
        table = read()
    except CaptureError as error:
        return (str(error),)
    fragments = [table.fragments[name].tobytes() for name in table.fragments.dtype.names or ()]
    return table.rows.tobytes(), fragments, table.coverage, table.observers


def shared(path: Path, threads: int, piece: int, interval: int = 0, max_rows: int = 0) -> tuple[object, ...]:
    """What so many threads say of a file, each worth it from the first byte on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_together, "PIECE", piece)
        patch.setattr(_together, "ROOM", 40)
        patch.setattr(_together, "SHARE", 1)
        return seen(lambda: read_capture(path, "one", interval, max_rows=max_rows, threads=threads))


def alone(path: Path, interval: int = 0, max_rows: int = 0) -> tuple[object, ...]:
    return seen(lambda: read_capture(path, "one", interval, max_rows=max_rows, threads=1))


def sections(frames: Sequence[Frame]) -> bytes:
    """pcapng sections of both byte orders, block kinds and resolutions, with counts of lost frames."""
    third = -(-len(frames) // 3)
    many = (Interface("a", 9), Interface("b", 0x8A, 5), Interface("c", 3))
    return b"".join(
        pcapng(frames[n * third : (n + 1) * third], order, many[n:], kind, statistics(order, 0, 7 * n, n))
        for n, (order, kind) in enumerate((("<", "enhanced"), (">", "obsolete")))
    ) + pcapng([Frame(f.data) for f in frames[2 * third :]], "<", (Interface("d"),), "simple")


KINDS: dict[str, Callable[[Sequence[Frame]], bytes]] = {**FILES, "sections": sections}


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Traffic in a file, one in two of them cut short or with changed bytes."""
    data = bytearray(KINDS[draw(st.sampled_from(sorted(KINDS)))](draw(traffic())))
    damage = draw(st.sampled_from(["none", "none", "cut", "changed"]))
    if damage == "cut":
        del data[draw(st.integers(0, len(data))) :]
    for _ in range(3 * (damage == "changed")):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.sampled_from([0, 1, 4, 0x7F, 0xFF]))
    return bytes(data)


@given(
    files(),
    st.sampled_from([2, 3, 7]),
    st.sampled_from([24, 61, 256, 1000, 5000]),
    st.sampled_from([0, NS]),
    st.sampled_from([0, 0, 1, 5, 12]),
)
@settings(max_examples=150)
def test_any_capture(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    threads: int,
    piece: int,
    interval: int,
    max_rows: int,
) -> None:
    path = save(tmp_path_factory.getbasetemp(), "shared", data)
    assert shared(path, threads, piece, interval, max_rows) == alone(path, interval, max_rows)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in CAPTURES])
def test_captures_of_others(path: Path) -> None:
    piece = max(1000, path.stat().st_size // 50)
    assert shared(path, 3, piece, NS, 20) == alone(path, NS, 20)
    assert shared(path, 2, piece) == alone(path)


def scattered(seed: int, count: int = 1000) -> list[Frame]:
    """Fragments of more datagrams than are followed, in any order, over longer than they are waited for; some
    in tunnels, some without their first, and flows that both have fragments and whole datagrams.
    """
    chance = random.Random(seed)  # noqa: S311 a seed, so that a fault can be had again
    found: list[bytes] = []
    lonely = fragments(("10.0.1.1", 7), ("10.10.0.11", 53), 100, 0)[1]
    for n in range(count):
        ends = (f"10.0.{n % 5}.1", 1000 + n % 70), ("10.10.0.11", 53)
        pieces = fragments(*ends, 180, n if n % 4 else n % 3)[: chance.choice((2, 3, 3))]
        pieces.append(datagram(*ends, b"?"))
        found += [carried(piece, "10.1.1.1", "10.1.1.2") for piece in pieces] if n % 5 == 0 else pieces
        found += [lonely[:18] + struct.pack(">H", 5000 + 4 * n + i) + lonely[20:] for i in range(4)]
    order = sorted(range(len(found)), key=lambda n: n + chance.choice((0, 3, 40, 2000)))
    times = sorted(chance.randrange(200 * NS) for _ in order)
    return [Frame(found[n], EPOCH + time) for n, time in zip(order, times, strict=True)]


@pytest.mark.parametrize(("threads", "piece"), [(2, 700), (3, 5000), (7, 2011)])
@pytest.mark.parametrize("interval", [0, 10 * NS])
def test_fragments_across_pieces(threads: int, piece: int, interval: int, tmp_path: Path) -> None:
    path = save(tmp_path, "fragments", pcap(scattered(threads), "ns"))
    for limit in (0, 40):
        one = alone(path, interval, limit)
        assert shared(path, threads, piece, interval, limit) == one
        ledger = ledger_of(one)
        assert ledger.fragment > 10
        assert bool(ledger.overflow) == bool(limit)


def ledger_of(result: tuple[Any, ...]) -> Any:
    return result[2][0]


@pytest.mark.parametrize("piece", [100, 7000])
def test_records_longer_than_a_piece(piece: int, tmp_path: Path) -> None:
    long = [
        Frame(frame + bytes(20_000), EPOCH + n)
        for n, frame in enumerate(talk(("10.0.0.1", 1), ("10.0.0.2", 2)))
    ]
    path = save(tmp_path, "long", pcap(long, "ns"))
    assert shared(path, 3, piece) == alone(path)


DROPPED = option("<", 4, struct.pack("<Q", 3)) + option("<", 0, b"")
#: an enhanced packet block's options are read after its frame is counted
LATE_FAULT = option("<", 4, bytes(8))[:-8] + b"\0\0\0\0"


def block_with(options: bytes, data: bytes) -> bytes:
    body = struct.pack("<IIIII", 0, 0, 9, len(data), len(data)) + data + bytes(-len(data) % 4) + options
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", 6) + size + body + size


@pytest.mark.parametrize("piece", [64, 333])
def test_blocks_with_options(piece: int, tmp_path: Path) -> None:
    frames = talk(("10.0.0.1", 1), ("10.0.0.2", 2))
    good = pcapng([], interfaces=(Interface("a"),)) + b"".join(block_with(DROPPED, f) for f in frames)
    path = save(tmp_path, "options", good + block_with(LATE_FAULT, frames[0]) + good)
    one = alone(path)
    assert shared(path, 3, piece) == one
    ledger = ledger_of(one)
    assert (ledger.frames, ledger.lost) == (len(frames) + 1, 3 * len(frames))
    assert "option 4" in ledger.damage


# ---- who reads ----


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Several pieces of the size that is used in earnest."""
    frames = timed(talk(("10.10.0.21", 40000), ("10.10.0.11", 6443), 8000))
    path = save(tmp_path, "large", pcap(frames, "ns"))
    assert path.stat().st_size > 2 * _together.SHARE > 2 * _together.PIECE
    return path


def names_of(read: Callable[[], OneWay], monkeypatch: pytest.MonkeyPatch) -> set[threading.Thread]:
    """The threads in which something is read."""
    threads = set()
    fill, feed = _together.File.fill, offline._fill

    def noting(of: Callable[..., int]) -> Callable[..., int]:
        def noted(*arguments: Any) -> int:
            threads.add(threading.current_thread())
            time.sleep(0.001)
            return of(*arguments)

        return noted

    monkeypatch.setattr(_together.File, "fill", noting(fill))
    monkeypatch.setattr(offline, "_fill", noting(feed))
    read()
    return threads


@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_threads_as_asked_for(threads: int, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = names_of(lambda: read_captures([large], threads=threads), monkeypatch)
    assert len(used) == threads
    assert threading.current_thread() in used


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_one_thread_is_one(kind: str, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = save(large.parent, "packed", COMPRESSIONS[kind](large.read_bytes()))
    expected = read_captures([packed, large])

    def started(_: threading.Thread) -> None:
        raise AssertionError("another thread")

    monkeypatch.setattr(threading.Thread, "start", started)
    found = read_captures([packed, large], threads=1)
    assert found.rows.tobytes() == expected.rows.tobytes()
    assert found.coverage == expected.coverage


def test_files_share_the_threads(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = save(large.parent, "small", large.read_bytes()[:100_000])
    assert len(names_of(lambda: read_captures([small] * 7, threads=3), monkeypatch)) == 3


def test_no_threads_are_an_error(large: Path) -> None:
    with pytest.raises(ValueError, match="0 threads"):
        read_captures([large], threads=0)


# ---- what may happen meanwhile ----


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, CaptureError])
def test_what_progress_raises(error: type[BaseException], large: Path) -> None:
    def progress(_: int) -> None:
        raise error("stop", where="here", next_step="") if error is CaptureError else error

    with pytest.raises(error):
        read_capture(large, progress=progress, threads=2)


def test_progress_is_told_of_every_byte(large: Path) -> None:
    told: list[int] = []
    read_capture(large, progress=told.append, threads=2)
    assert sum(told) == large.stat().st_size


def test_a_disk_that_fails(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv

    def failing(descriptor: int, views: list[memoryview], at: int) -> int:
        if at > 3 * _together.PIECE:
            raise OSError(5, "Input/output error")
        return preadv(descriptor, views, at)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CaptureError, match="one: cannot be read: Input/output error"):
        read_capture(large, "one", threads=2)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_file_that_becomes_shorter(keep: float, large: Path) -> None:
    length = int(large.stat().st_size * keep)
    (ledger,) = read_capture(large, progress=lambda _: os.truncate(large, length), threads=2).coverage
    cut = read_capture(large, threads=1).coverage[0]
    assert ledger.frames >= cut.frames > 0  # some pieces may have been read before
    assert ledger.flow == ledger.frames


def test_a_file_that_becomes_longer(large: Path) -> None:
    """What was added at the end before it was reached is read too."""
    data = large.read_bytes()
    added = data[24 : 24 + (len(data) - 24) // 7]
    calls: list[int] = []

    def progress(length: int) -> None:
        if not calls:
            with large.open("ab") as file:
                file.write(added)
        calls.append(length)

    found = read_capture(large, "one", progress=progress, threads=2)
    (again,) = read_capture(large, "one", threads=1).coverage
    assert found.coverage == (again,)


def test_rows_enough_for_one_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame a new 5-tuple: before the tables hold more than one may have, one reader goes on."""
    frames = [
        Frame(datagram((f"10.{n >> 8}.{n & 255}.1", n), ("10.10.0.11", 53)), EPOCH + n) for n in range(4000)
    ]
    path = save(tmp_path, "spoofed", pcap(frames, "ns"))
    rows: list[int] = []

    def noting(self: Any, worker: Any, piece: int) -> None:
        settle(self, worker, piece)
        rows.append(sum(self._rows.values()))

    settle = _together.Together._settle
    monkeypatch.setattr(_together.Together, "_settle", noting)
    assert shared(path, 3, 2000, max_rows=1500) == alone(path, max_rows=1500)
    assert 750 <= max(rows) < 900


# ---- the command line ----


@pytest.mark.parametrize("command", ["flows", "check", "matrix"])
def test_the_option(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RECORDED / "offences"
    words = [command, str(folder)] + ["--cluster", str(folder / "cluster.yaml")] * (command != "flows")
    one = CliRunner().invoke(app, [*words, "--threads", "1"])
    monkeypatch.setattr(_together, "SHARE", 10_000)
    monkeypatch.setattr(_together, "PIECE", 10_000)
    many = CliRunner().invoke(app, [*words, "--threads", "12"])
    assert many.stdout == one.stdout
    assert many.exit_code == one.exit_code < 2
    for wrong in (["0"], ["two"], ["2", "--scheduler", "threads"]):
        done = CliRunner().invoke(app, [*words, "--threads", *wrong])
        assert done.exit_code == 2
        assert "--threads" in done.output or "threads read" in done.output
