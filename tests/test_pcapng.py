"""What is kept of flagged packets, as other programs and this one read it."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from typing import IO, TYPE_CHECKING, cast

import frames
import pytest
from conftest import PROJECT, require_program
from hypothesis import given
from hypothesis import strategies as st

from analyzer import read_captures
from analyzer.capture.pcapng import Writer
from analyzer.errors import LiveError

if TYPE_CHECKING:
    from pathlib import Path

LINKS = (("eth0", 1), ("wg0", 101))
START = 1_795_515_300_123_456_789
CLIENT, SERVER = ("10.10.0.21", 40000), ("10.10.0.11", 2379)


def asked(program: str, *words: str) -> str:
    require_program(program)
    return subprocess.run([program, *words], capture_output=True, text=True, check=True).stdout


def fields(path: Path, *names: str) -> list[list[str]]:
    words = [word for name in names for word in ("-e", name)]
    text = asked("tshark", "-r", str(path), "-T", "fields", "-E", "separator=|", *words)
    return [line.split("|") for line in text.splitlines()]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Two packets: a whole Ethernet frame, and the first bytes of a bare IP packet."""
    path = tmp_path / "alerts.pcapng"
    frame = frames.segment(CLIENT, SERVER, 0x02)
    with path.open("wb") as stream:
        writer = Writer(stream, LINKS)
        writer.packet(START, 0, frame, len(frame), "agent-1 → server-1 tcp/2379")
        writer.packet(START + 1, 1, frame[14:44], 1400)
    return path


def test_tshark_shows_time_interface_lengths_and_comment(kept: Path) -> None:
    names = ("frame.time_epoch", "frame.interface_name", "frame.cap_len", "frame.len", "frame.comment")
    length = str(len(frames.segment(CLIENT, SERVER, 0x02)))
    assert fields(kept, *names) == [
        ["1795515300.123456789", "eth0", length, length, "agent-1 → server-1 tcp/2379"],
        ["1795515300.123456790", "wg0", "30", "1400", ""],
    ]
    assert fields(kept, "ip.src", "tcp.dstport")[0] == ["10.10.0.21", "2379"]


def test_capinfos_finds_a_whole_file_and_who_wrote_it(kept: Path) -> None:
    text = asked("capinfos", str(kept))
    assert "Number of packets:   2" in text
    assert "Capture application: rke2-flows" in text
    assert "Number of interfaces in file: 2" in text
    assert "nanoseconds (9)" in text


def test_this_project_reads_it_as_its_own_captures(kept: Path) -> None:
    one_way = read_captures([kept])
    (ledger,) = one_way.coverage
    assert (ledger.frames, ledger.flow, ledger.damage) == (2, 2, "")
    seen = [(one_way.observers[row["interface"]].interface, int(row["start"])) for row in one_way.rows]
    assert sorted(seen) == [("0-eth0", START), ("1-wg0", START + 1)]
    assert set(one_way.rows["dst_port"].tolist()) == {2379}


def test_a_killed_run_leaves_all_that_was_written(tmp_path: Path) -> None:
    """The writer's process ends by SIGKILL with its stream open."""
    path = tmp_path / "killed.pcapng"
    code = (
        "import sys, time\n"
        "from analyzer.capture.pcapng import Writer\n"
        "writer = Writer(open(sys.argv[1], 'wb'), [('eth0', 1)])\n"
        "for n in range(50):\n"
        "    writer.packet(n, 0, bytes(60), 60, f'packet {n}')\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, cwd=PROJECT)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"written\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert [line for (line,) in fields(path, "frame.comment")] == [f"packet {n}" for n in range(50)]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**63),
            st.integers(0, 1),
            st.binary(max_size=200),
            st.integers(0, 9000),
            st.text(alphabet=st.characters(), max_size=200),
        ),
        max_size=8,
    )
)
def test_any_packet_and_any_words_make_a_whole_file(
    packets: list[tuple[int, int, bytes, int, str]],
) -> None:
    """Names and comments come from strangers: lone surrogates, zeros, line ends."""
    stream = io.BytesIO()
    writer = Writer(stream, LINKS)
    for time, link, data, more, comment in packets:
        writer.packet(time, link, data, len(data) + more, comment)
    (ledger,) = frames.read(stream.getvalue(), "any.pcapng").coverage
    assert (ledger.frames, ledger.damage) == (len(packets), "")


def test_tshark_takes_hostile_words(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pcapng"
    with path.open("wb") as stream:
        writer = Writer(stream, [("et\udc80h\x1b[2J", 1)])
        writer.packet(0, 0, bytes(60), 60, "é" * 40_000)
        writer.packet(0, 0, bytes(60), 60, "\udc80\x1b]0;x\x07")
        writer.packet(0, 0, bytes(60), 60, "last")
    found = fields(path, "frame.number", "frame.comment")
    assert [number for number, _ in found] == ["1", "2", "3"]
    assert set(found[0][1]) == {"é"}
    assert found[2][1] == "last"


def test_what_no_file_can_hold_is_the_callers_fault() -> None:
    writer = Writer(io.BytesIO(), LINKS)
    with pytest.raises(ValueError, match="no interface 2"):
        writer.packet(0, 2, b"", 0)
    with pytest.raises(ValueError, match="60 bytes of a packet of 10"):
        writer.packet(0, 0, bytes(60), 10)


def test_a_full_disk_is_a_live_error() -> None:
    with io.FileIO("/dev/full", "w") as full, pytest.raises(LiveError, match="No space left"):
        Writer(cast("IO[bytes]", full), LINKS)
