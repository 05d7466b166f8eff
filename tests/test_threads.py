"""One capture read by several threads.

Rule: what is expected is what one thread gives, bit for bit: rows and their order, ledger, fragments,
observers or the error's text. Batches are made so small that each thread waits for the other all the time.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import threading
import time
from itertools import pairwise
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

from analyzer.capture import _reader, reading
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


def shared(path: Path, batch: int, interval: int = 0, max_rows: int = 0) -> tuple[object, ...]:
    """What several threads say of a file that is worth it from its first byte on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BATCH", batch)
        patch.setattr(reading, "LARGE", 1)
        patch.setattr(reading, "PIECE", 5000)
        patch.setattr(reading, "BLOCK", 5000)
        return seen(lambda: read_capture(path, "one", interval, max_rows=max_rows, threads=reading.MOST))


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
    st.sampled_from(["plain", *COMPRESSIONS]),
    st.sampled_from([1, 2, 7, 64, 1024]),
    st.sampled_from([0, NS]),
    st.sampled_from([0, 0, 1, 5, 12]),
)
@settings(max_examples=100)
def test_any_capture(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    packed: str,
    batch: int,
    interval: int,
    max_rows: int,
) -> None:
    path = save(tmp_path_factory.getbasetemp(), "shared", COMPRESSIONS.get(packed, bytes)(data))
    assert shared(path, batch, interval, max_rows) == alone(path, interval, max_rows)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in CAPTURES])
def test_captures_of_others(path: Path) -> None:
    assert shared(path, 3, NS, 20) == alone(path, NS, 20)
    assert shared(path, 1024) == alone(path)


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
    return [Frame(found[n], EPOCH + at) for n, at in zip(order, times, strict=True)]


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("interval", [0, 10 * NS])
def test_fragments(batch: int, interval: int, tmp_path: Path) -> None:
    path = save(tmp_path, "fragments", pcap(scattered(batch), "ns"))
    for limit in (0, 40):
        one = alone(path, interval, limit)
        assert shared(path, batch, interval, limit) == one
        ledger = ledger_of(one)
        assert ledger.fragment > 10
        assert bool(ledger.overflow) == bool(limit)


def ledger_of(result: tuple[Any, ...]) -> Any:
    return result[2][0]


# ---- who reads ----


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """One that is worth a second thread."""
    frames = timed(talk(("10.10.0.21", 40000), ("10.10.0.11", 6443), 8000))
    path = save(tmp_path, "large", pcap(frames, "ns"))
    assert path.stat().st_size > 2 * reading.LARGE
    return path


def tasks() -> int:
    """Threads of this process, Python's or not."""
    return len(os.listdir("/proc/self/task"))


def ends_with(count: int) -> bool:
    """The kernel lists a thread for a moment after it was waited for."""
    deadline = time.monotonic() + 5
    while tasks() != count and time.monotonic() < deadline:
        time.sleep(0.001)
    return tasks() == count


def watched(monkeypatch: pytest.MonkeyPatch, *paths: Path, threads: int) -> tuple[OneWay, int]:
    """What is read, and by how many threads beside those that the process has anyway."""
    most, consulted = 0, reading.Reading.goes_on

    def noting(job: reading.Reading) -> bool:
        nonlocal most
        most = max(most, tasks())
        return consulted(job)

    time.sleep(0.05)  # threads of the test before may still be listed
    before = tasks()
    with monkeypatch.context() as patch:
        patch.setattr(reading.Reading, "goes_on", noting)
        patch.setattr(reading, "TURN", 0)  # else a file may be read between two looks
        table = read_captures(paths, threads=threads)
    assert ends_with(before)
    return table, most - before + 1


@pytest.mark.parametrize(("threads", "plain", "packed"), [(1, 1, 1), (2, 2, 2), (3, 2, 3), (9, 2, 3)])
def test_as_many_threads_as_asked_for(
    threads: int, plain: int, packed: int, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped = save(large.parent, "packed", COMPRESSIONS["gzip"](large.read_bytes()))
    monkeypatch.setattr(reading, "LARGE", zipped.stat().st_size)
    assert watched(monkeypatch, large, threads=threads)[1] == plain
    assert watched(monkeypatch, zipped, threads=threads)[1] == packed


def test_a_small_file_is_not_worth_a_thread(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = save(large.parent, "small", large.read_bytes()[: reading.LARGE - 1])
    assert watched(monkeypatch, small, threads=2)[1] == 1


def test_what_comes_by_a_pipe_is_counted_beside(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = large.parent / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', large, pipe]):
        table, used = watched(monkeypatch, pipe, threads=2)
    assert used == 2
    assert table.rows.tobytes() == read_capture(large, threads=1).rows.tobytes()


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_one_thread_is_one(kind: str, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = save(large.parent, "packed", COMPRESSIONS[kind](large.read_bytes()))
    found, used = watched(monkeypatch, packed, large, threads=1)
    assert used == 1
    expected = read_captures([packed, large])
    assert found.rows.tobytes() == expected.rows.tobytes()
    assert found.coverage == expected.coverage


def test_less_than_nothing_and_no_threads_are_an_error(large: Path) -> None:
    with pytest.raises(ValueError, match="0 threads"):
        read_captures([large], threads=0)
    with pytest.raises(ValueError, match="neither may be below 0"):
        read_captures([large], interval=-1)
    with pytest.raises(ValueError, match="neither may be below 0"):
        read_captures([large], max_rows=-1)


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


def test_so_many_packets_at_a_time() -> None:
    for wrong in (0, 1025, 2**32 + 1):
        with pytest.raises(ValueError, match="from 1 to 1024"):
            _reader.Reader(1, 0).count_beside(wrong)


def test_rows_can_be_asked_for_at_any_time(large: Path) -> None:
    """What is asked is what was read so far, counted or not."""
    data = large.read_bytes()
    alone, beside = _reader.Reader(1, 0), _reader.Reader(1, 0)
    beside.count_beside(1024)
    for begin, end in pairwise((0, 24, 1000, 90_000, len(data))):
        for reader in (alone, beside):
            reader.consume(data[begin:end])
        assert (alone.count(), alone.ledger()) == (beside.count(), beside.ledger())
    assert bytes(alone.take_rows()) == bytes(beside.take_rows())
    with pytest.raises(RuntimeError, match="taken"):
        beside.consume(b"")


def test_one_that_is_left_ends_its_thread(large: Path) -> None:
    before = tasks()
    reader = _reader.Reader(1, 0)
    reader.count_beside(1)
    reader.consume(large.read_bytes())
    assert tasks() == before + 1
    del reader
    assert ends_with(before)


# ---- the command line ----


@pytest.mark.parametrize("command", ["flows", "check", "matrix"])
def test_the_option(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RECORDED / "offences"
    words = [command, str(folder)] + ["--cluster", str(folder / "cluster.yaml")] * (command != "flows")
    one = CliRunner().invoke(app, [*words, "--threads", "1"])
    monkeypatch.setattr(reading, "LARGE", 10_000)
    monkeypatch.setattr(reading, "BATCH", 5)
    many = CliRunner().invoke(app, [*words, "--threads", "12"])
    assert many.stdout == one.stdout
    assert many.exit_code == one.exit_code < 2
    for wrong in (["0"], ["two"], ["2", "--scheduler", "threads"]):
        done = CliRunner().invoke(app, [*words, "--threads", *wrong])
        assert done.exit_code == 2
        assert "--threads" in done.output or "threads read" in done.output
