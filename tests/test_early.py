"""Reading that goes on by itself: without the interpreter, and before its table can be asked for.

Rule: what is expected is what the same file gives when it is read in one thread after all is loaded.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import RECORDED
from frames import COMPRESSIONS, Frame, Interface, datagram, pcap, pcapng, save, statistics, talk, timed
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.__main__ import main
from analyzer.capture import _reader, offline, reading, streams
from analyzer.capture.offline import read_capture, read_captures
from analyzer.capture.reading import Early
from analyzer.commands import early
from analyzer.errors import CaptureError
from analyzer.store import read_flow_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NS = 10**9
TALK = pcap(timed(talk(("10.10.0.21", 40000), ("10.10.0.11", 6443), 8000)), "ns")
SMALL = TALK[: TALK.find(b"\0\0", 5000)]  # ends somewhere within a record
LONG = pcapng(
    [Frame(datagram(("10.0.0.1", 1), ("10.0.0.2", 53), bytes(60_000)) + bytes(200_000)) for _ in range(5)],
    "<",
    (Interface("a"),),
    "enhanced",
    statistics("<", 0, 7),
)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """One that is worth a thread."""
    path = save(tmp_path, "large.pcap", TALK)
    assert path.stat().st_size > reading.LARGE
    return path


def told(reader: _reader.Reader) -> tuple[Any, bytes]:
    ledger = reader.ledger()
    return ledger, bytes(reader.take_rows())


# ---- the reader reads ----


@given(st.sampled_from([SMALL, LONG, LONG[:-7]]), st.lists(st.integers(1, 300_000), max_size=6))
@settings(max_examples=60)
def test_pieces_of_any_length(data: bytes, lengths: list[int]) -> None:
    whole, pieces = _reader.Reader(1, 0), _reader.Reader(1, 0)
    whole.consume(data)
    at = 0
    for length in (*lengths, len(data)):
        pieces.consume(data[at : at + length])
        at += length
        ledger = pieces.ledger()
        assert ledger["offset"] + ledger["rest"] == min(at, len(data))
    assert told(pieces) == told(whole)


@pytest.mark.parametrize("size", [1, 100, 4096, 1 << 20])
@pytest.mark.parametrize("data", [SMALL[:20_000], LONG[:-7]], ids=["pcap", "long"])
def test_a_descriptor(data: bytes, size: int, tmp_path: Path) -> None:
    whole, by_descriptor = _reader.Reader(1, 0), _reader.Reader(1, 0)
    whole.consume(data)
    with save(tmp_path, "capture", data).open("rb", buffering=0) as file:
        sums = list(iter(lambda: by_descriptor.read(file.fileno(), size, 1000), None))
    assert sum(sums) == len(data)
    assert told(by_descriptor) == told(whole)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    reader, folder = _reader.Reader(1, 0), os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        reader.read(folder, 10, 0)
    os.close(folder)
    with pytest.raises(OSError, match="Bad file descriptor"):
        reader.read(folder, 10, 0)
    with pytest.raises(ValueError, match="1 to"):
        reader.read(0, 0, 0)
    reader.take_rows()
    with pytest.raises(RuntimeError, match="taken"):
        reader.read(0, 1, 0)


def test_a_turn_ends(large: Path) -> None:
    """Long before the file does, so that a signal is heard."""
    with large.open("rb") as file:
        assert _reader.Reader(1, 0).read(file.fileno(), 1000, 0) == 1000


def later(delay: float, what: Any, *arguments: Any) -> threading.Timer:
    timer = threading.Timer(delay, what, arguments)
    timer.start()
    return timer


class StoppedError(Exception):
    """What a signal's handler raises."""


def test_a_signal_is_heard_while_a_pipe_is_silent() -> None:
    """One whose handler returns lets the reading go on, one whose handler raises ends it."""
    heard: list[int] = []

    def hear(number: int, _: object) -> None:
        heard.append(number)
        if len(heard) > 1:
            raise StoppedError

    end, other = os.pipe()
    reader, before = _reader.Reader(1, 0), signal.signal(signal.SIGUSR1, hear)
    try:
        for delay, what in (
            (0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
            (0.1, lambda: os.write(other, SMALL[:24])),
        ):
            later(delay, what)
        assert reader.read(end, 1000, 0) == 24
        assert heard == [signal.SIGUSR1]
        later(0.05, os.kill, os.getpid(), signal.SIGUSR1)
        with pytest.raises(StoppedError):
            reader.read(end, 1000, 0)
        os.write(other, SMALL[24:])
        os.close(other)
        while reader.read(end, 1000, 0) is not None:
            pass
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(end)
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
    whole = _reader.Reader(1, 0)
    whole.consume(SMALL)
    assert told(reader) == told(whole)


@pytest.mark.parametrize("kind", ["plain", *COMPRESSIONS])
def test_a_descriptor_that_has_nothing_yet_is_no_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end, other = os.pipe()
    os.set_blocking(end, False)
    os.write(other, COMPRESSIONS.get(kind, bytes)(SMALL[:2000])[:1000])
    with os.fdopen(end, "rb") as stdin:
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": stdin}))
        with pytest.raises(CaptureError, match="cannot be read: Resource temporarily unavailable"):
            read_capture("-")
    os.close(other)


def test_who_reads_one_of_many_files_ends_when_another_fails(large: Path) -> None:
    """Progress is told of what it read; it may end its turn."""
    read = [0]
    text = save(large.parent, "text", b"this is no capture")

    def slow(count: int) -> None:
        read[0] += count
        time.sleep(0.05)

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(reading, "TURN", 0)
        patch.setattr(reading, "BLOCK", 10_000)
        with pytest.raises(CaptureError, match="neither pcap"):
            read_captures([text, large], progress=slow, threads=2)
    assert read[0] < large.stat().st_size / 10


# ---- begun early ----


def seen(path: Path, given: Early | None) -> tuple[Any, ...]:
    """All that is read, or the error's text."""
    try:
        table = read_captures([path], threads=2, early=given)
    except CaptureError as error:
        return (str(error),)
    return table.rows.tobytes(), table.fragments.tobytes(), table.coverage, table.observers


CUT = [("plain", TALK[:-5]), ("fault", TALK[:200_000] + b"\xff" * 5_000_000), ("none", b"no capture" * 10**6)]


@pytest.mark.parametrize(
    ("name", "data"), [("whole", TALK), *CUT], ids=lambda of: of if isinstance(of, str) else ""
)
@pytest.mark.parametrize("kind", ["plain", "zstd"])
def test_the_same_as_later(name: str, data: bytes, kind: str, tmp_path: Path) -> None:
    packed = COMPRESSIONS.get(kind, bytes)(data)
    for number, content in enumerate((packed, packed[: len(packed) * 2 // 3])):
        path = save(tmp_path, f"{name}-{number}", content)
        given = Early(str(path), 0, 2)
        try:
            assert seen(path, given) == seen(path, None)
        finally:
            given.stop()


def test_what_is_read_otherwise_is_read_again(large: Path) -> None:
    other = save(large.parent, "other", TALK[:500_000])
    given = Early(str(large), 0, 2)
    try:
        assert given.serves(large.parent / "." / large.name, 0)
        assert not given.serves(other, 0)
        assert not given.serves(large, NS)
        assert not given.serves(large, 0, 5)
        by_second = read_captures([large], interval=NS, early=given)
        assert len(by_second.rows) > len(read_captures([large], early=given).rows)
    finally:
        given.stop()


@pytest.mark.parametrize("later", [False, True])
def test_progress_is_told_of_every_byte(later: bool, large: Path) -> None:
    """Also where all was read before it was asked for."""
    counts: list[int] = []
    given = Early(str(large), 0, 2)
    if later:
        given._thread.join()
    read_captures([large], progress=counts.append, early=given)
    assert sum(counts) == large.stat().st_size


def test_it_is_stopped_within_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "endless.pcap"
    with path.open("wb") as file:
        file.write(TALK[:24])
        file.truncate(1 << 40)  # empty records: more than can be read
    monkeypatch.setattr(reading, "TURN", 10**7)
    given = Early(str(path), 0, 2)
    time.sleep(0.1)
    begin = time.monotonic()
    given.stop()
    assert time.monotonic() - begin < 5


def test_what_reading_raises_is_raised_where_it_is_waited_for(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(streams, "head_of", fails)
    given = Early(str(large), 0, 2)
    with pytest.raises(CaptureError, match=r"large\.pcap: cannot be read: Input/output error"):
        read_captures([large], early=given)


# ---- the words of the command line ----


def guesses(words: list[str]) -> list[str]:
    """What is read from the first moment on."""
    with early.foreseen(words):
        return [one._path for one in early._foreseen]


def test_which_file_is_foreseen(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, other = str(large), str(save(large.parent, "other", TALK))
    small = str(save(large.parent, "small", TALK[: reading.LARGE - 1]))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for words in (
        ["flows", name],
        ["check", "-c", small, name],
        ["matrix", name, "--threads", "2"],
        ["flows", name, "--threads=9"],
        ["flows", "-o", "new.parquet", name],
        ["explain", "x", name],
    ):
        assert guesses(words) == [name], words
    for words in (
        [],
        [name],
        ["flows"],
        ["diff", name, name],
        ["flows", small],
        ["flows", name, other],
        ["flows", name, "--interval", "1s"],
        ["flows", name, "--interval=1s"],
        ["flows", name, "--threads", "1"],
        ["flows", name, "--threads=1"],
        ["flows", name, "--threads", "many"],
        ["check", name, "--scheduler", "threads"],
        ["flows", str(large.parent)],
        ["flows", "\0"],
        ["flows", name, "--help"],
    ):
        assert guesses(words) == [], words
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert guesses(["flows", name]) == []


def test_what_was_foreseen_is_used_or_stopped(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    other = str(save(large.parent, "other", TALK))
    with early.foreseen(["flows", str(large)]):
        (foreseen,) = early._foreseen
        with early.begun([str(large)], 0, None) as given:
            assert given is foreseen
    with early.foreseen(["flows", str(large)]):
        (foreseen,) = early._foreseen
        for inputs, interval, threads in (
            ([other], 0, None),
            ([str(large)], NS, 2),
            ([str(large), other], 0, 2),
        ):
            with early.begun(inputs, interval, threads) as given:
                assert given is not foreseen
                assert (given is None) == (len(inputs) > 1)
                assert foreseen._job.stop.is_set()


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int | str | None, int]:
    """The exit status of the whole command, and how many times a capture was read."""
    reads: list[object] = []
    read_all = reading.read_all

    def noting(job: Any, path: Any, progress: Any) -> None:
        reads.append(path)
        read_all(job, path, progress)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_all", noting)
        patch.setattr(offline, "read_all", noting)
        patch.setattr(os, "cpu_count", lambda: 4)
        patch.setattr(sys, "argv", ["rke2-flows", *words])
        with pytest.raises(SystemExit) as left:
            main()
    gc.unfreeze()  # what main() froze, since its process goes on here
    assert not early._foreseen
    return left.value.code, len(reads)


def test_a_command_reads_once(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "flows.parquet"
    tables = []
    for more in ([], ["--threads", "1"], ["--threads", "3"], ["--interval", "1h"]):
        assert run(["flows", str(large), "-o", str(written), *more], monkeypatch) == (0, 1), more
        tables.append(read_flow_file(written).table)
    assert all(table.equals(tables[0]) for table in tables)
    of = [str(large), "--cluster", str(RECORDED / "baseline" / "cluster.yaml")]
    assert run(["check", *of, "--fail-on", "never"], monkeypatch) == (0, 1)
    assert run(["matrix", *of], monkeypatch) == (0, 1)


def test_what_was_foreseen_in_vain_does_no_harm(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is to be written, a wrong option, a specification that is not there."""
    capture = save(large.parent, "capture", SMALL)
    output = save(large.parent, "large.csv", TALK)
    assert run(["flows", str(capture), "-o", str(output)], monkeypatch) == (0, 2)
    assert b"client" in output.read_bytes()
    assert run(["flows", str(large), "--wrong"], monkeypatch)[0] == 2
    assert run(["flows", str(large), "--spec", "none"], monkeypatch)[0] == 2


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert holds()


@pytest.mark.parametrize("threads", [[], ["--threads", "1"]])
def test_ctrl_c_ends_it(threads: list[str], tmp_path: Path) -> None:
    """While it reads more than it ever could."""
    path = tmp_path / "endless.pcap"
    with path.open("wb") as file:
        file.write(TALK[:24])
        file.truncate(1 << 40)
    command = [sys.executable, "-m", "analyzer", "flows", str(path), *threads]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        opened = Path("/proc", str(process.pid), "fd")
        until(lambda: any(link.resolve() == path for link in opened.iterdir()))
        time.sleep(0.5)  # whatever was loaded before it: it reads
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert time.monotonic() - begin < 5
    assert (process.returncode, said) == (130, "rke2-flows: interrupted\n")


INTERRUPTING = """
import sys

module = sys.argv.pop(1)

class Finder:
    def find_spec(name, *_):
        if name == module:
            del sys.meta_path[0]
            exec("raise KeyboardInterrupt")

sys.meta_path.insert(0, Finder)
from analyzer.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["analyzer.commands.early", "analyzer.cli", "analyzer.capture.offline"])
def test_ctrl_c_while_it_loads(module: str, large: Path, tmp_path: Path) -> None:
    """Also amid an exec(), after which the interpreter would end by the signal."""
    (tmp_path / "interrupting.py").write_text(INTERRUPTING)
    command = [sys.executable, "-m", "interrupting", module, "flows", str(large)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "rke2-flows: interrupted\n")
