"""What a capture shows. Rule: lines and tables of values made by hand, and one collector on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import live
import pytest
from conftest import PROJECT, require_root
from frames import pcap, read, refusal, talk, timed
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.live import Live
from test_alerts import alert
from test_live_run import FAR, FINE, HOSTILE, UPLINK, connecting, hooks, offend, session, within
from test_packet import require_bpf

from analyzer import load_cluster, load_spec
from analyzer.capture.live import Collector, Order, Part
from analyzer.errors import CaptureError
from analyzer.rows import COUNTS, Coverage
from analyzer.screen import Lines, Screen, amount, ended, losses, say_all, write
from lab.processes import wrapper

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER, AGENT = live.NEAR[4], live.FAR[4]
#: cursor movements, erasures and modes (ECMA-48), and the carriage return
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\r")
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"
WIDE, HIGH = 120, 40


# ---- numbers and losses ----


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0 k"),
        (1234, "1.2 k"),
        (99_949, "99.9 k"),
        (99_960, "100 k"),
        (999_499, "999 k"),
        (999_500, "1.0 M"),
        (1_234_567, "1.2 M"),
        (5e9, "5.0 G"),
        (7.25e12, "7.2 T"),
    ],
)
def test_amounts(number: float, text: str) -> None:
    assert amount(number) == text


@given(st.integers(0, 999 * 10**12))
def test_an_amount_is_short_and_nearly_right(number: int) -> None:
    text = amount(number)
    value, _, unit = text.partition(" ")
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert abs(float(value) * scale - number) <= 0.051 * max(number, 1)
    assert len(text) <= 7


def test_losses_are_what_should_have_been_counted() -> None:
    assert losses(Coverage("n", frames=9, flow=4, not_ip=5)) == "nothing lost"
    assert losses(Coverage("n", overflow=3, alerts_lost=1)) == "3 overflow, 1 alerts lost"


@given(st.dictionaries(st.sampled_from(sorted(COUNTS)), st.integers(1, 9)))
def test_no_loss_is_silent(counts: dict[str, int]) -> None:
    """Every count of the ledger but those of what is well, of capture files and of choosing alone."""
    text = losses(Coverage("n", **counts))  # type: ignore[arg-type]
    fine = {"frames", "flow", "not_ip", "inner_not_ip", "other_bytes", "lost", "not_chosen", "parts_not_read"}
    for name in set(counts) - fine:
        assert f"{counts[name]} {name.replace('_', ' ')}" in text
    if set(counts) <= fine:
        assert text == "nothing lost"


# ---- the summary ----


@pytest.fixture
def collector(tmp_path: Path) -> Collector:
    """One that never ran."""
    made = Collector(Order(tmp_path / "parts"), Lines())
    made.node, made.interfaces = "server-1", ("eth0", "eth1")
    return made


def test_the_summary_says_all_of_it(collector: Collector, tmp_path: Path) -> None:
    collector.total = Coverage("server-1", frames=10, flow=7, not_ip=2, overflow=1)
    collector.alerts = {"wrong-pair": 2, "unlisted": 60}
    collector.flood.held["a", "b"] = 10
    collector.missing = ("why packets were dropped",)
    collector.parts = 1
    assert list(ended(collector)) == [
        "server-1: 10 frames on eth0, eth1: 7 in flows, 2 not IP, 1 overflow",
        "alerts: 60 unlisted, 2 wrong-pair (10 of them only counted)",
        "not captured: why packets were dropped",
        f"wrote 1 part to {tmp_path / 'parts'}",
    ]


def test_the_summary_of_nothing(collector: Collector) -> None:
    lines = list(ended(collector))
    assert lines[0].endswith("0 frames on eth0, eth1: 0 in flows, 0 not IP, nothing lost")
    assert lines[1] == "alerts: none"


# ---- plain lines ----


@dataclass
class Piped:
    """Standard output and standard error are pipes, of which the test has the other ends."""

    out: int
    err: int


@contextlib.contextmanager
def piped() -> Iterator[Piped]:
    """For the length of the block: pytest puts streams of its own there, other ones for each step."""
    ends = [os.pipe() for _ in range(2)]
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        with (
            os.fdopen(ends[0][1], "w") as out,
            os.fdopen(ends[1][1], "w") as err,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            yield Piped(ends[0][0], ends[1][0])
    finally:
        signal.signal(signal.SIGPIPE, before)
        for end, _ in ends:
            os.close(end)


def leave(piped: Piped, name: str) -> None:
    """Who reads there leaves."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, getattr(piped, name))
    os.close(nowhere)


def test_alerts_are_data_and_all_else_is_not(collector: Collector) -> None:
    lines = Lines()
    with piped() as ends:
        lines.started(collector)
        lines.alert(alert())
        lines.note("a note\x1b[31m")
        data, rest = (os.read(end, 1000).decode().splitlines() for end in (ends.out, ends.err))
    assert data == [alert().line]
    assert rest == ["server-1: capturing on eth0, eth1; Ctrl-C ends it", "a note\\x1b[31m"]
    assert not collector.stop.is_set()


@pytest.mark.parametrize("name", ["out", "err"])
def test_a_reader_who_leaves_ends_the_capture(collector: Collector, name: str) -> None:
    lines = Lines()
    with piped() as ends:
        lines.started(collector)
        leave(ends, name)
        before = collector.stop.is_set()
        tell = partial(lines.alert, alert()) if name == "out" else partial(lines.note, "x")
        tell()
        after = collector.stop.is_set()
        tell()
        say_all(ended(collector))
        sys.stdout.flush()
        sys.stderr.flush()
    assert (before, after) == (False, True)


def fill(stream: IO[str]) -> int:
    """A pipe that takes no more; how many bytes it holds."""
    size: int = fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    return os.write(stream.fileno(), b"x" * size)


def test_nothing_waits_for_a_reader_who_stands_still(collector: Collector) -> None:
    lines = Lines()
    with piped() as ends:
        full = fill(sys.stderr)
        told = threading.Thread(target=lambda: deque(map(lines.note, "abc")), daemon=True)
        told.start()
        told.join(10)
        waits = told.is_alive()
        os.read(ends.err, full)
        lines.note("d")
        said = os.read(ends.err, 1000).decode().splitlines()
        fill(sys.stderr)
        summary = threading.Thread(target=say_all, args=(ended(collector),), daemon=True)
        summary.start()
        summary.join(10)
        waits |= summary.is_alive()
        os.read(ends.err, 1 << 16)
        summary.join()
    assert (waits, said) == (False, ["nobody read: left out 3 lines", "d"])


def test_an_alert_waits_for_its_reader_until_the_end(collector: Collector) -> None:
    lines = Lines()
    with piped() as ends:
        lines.started(collector)
        full = fill(sys.stdout)
        told = threading.Thread(target=lines.alert, args=(alert(),), daemon=True)
        told.start()
        told.join(0.2)
        waits = told.is_alive()
        os.read(ends.out, full)
        told.join(10)
        data = os.read(ends.out, 1000).decode()
        fill(sys.stdout)
        collector.stop.set()
        last = threading.Thread(target=lambda: deque(map(lines.alert, [alert()] * 1000)), daemon=True)
        last.start()
        last.join(10)
        ends_not = last.is_alive()
        os.read(ends.out, 1 << 16)
        last.join()
        *_, said = os.read(ends.err, 1000).decode().splitlines()
    assert (waits, data, ends_not) == (True, f"{alert().line}\n", False)
    assert said == "nobody reads standard output: alerts of the end are only counted"


def test_output_that_cannot_be_written_is_an_error(collector: Collector) -> None:
    lines = Lines()
    with open("/dev/full", "w") as full, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(CaptureError, match="alerts cannot be written any more: No space left on device"):
            lines.alert(alert())
    assert not collector.stop.is_set(), "the collector ends it, with the error"


def test_a_line_is_written_whole_and_at_once(tmp_path: Path) -> None:
    with (tmp_path / "lines").open("w") as stream:
        assert write(stream, "tab\tand\nline")
        assert (tmp_path / "lines").read_text() == "tab\\x09and\\x0aline\n"


# ---- the table ----


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    return live.Wire.write_cluster(None, tmp_path)  # type: ignore[arg-type]


class Terminal:
    """A screen on a terminal in memory."""

    def __init__(self, cluster_file: Path | None, height: int = HIGH, width: int = WIDE) -> None:
        self.file = io.StringIO()
        console = Console(
            file=self.file, force_terminal=True, width=width, height=height, legacy_windows=False
        )
        self.live = Live(console=console, auto_refresh=False)
        self.live.start()
        self.screen = Screen(self.live, load_cluster(cluster_file) if cluster_file else None, load_spec())

    def frame(self, show: Any, *of: Any) -> list[str]:
        """The lines that are drawn when the screen is told something."""
        self.file.seek(0)
        self.file.truncate()
        show(*of)
        return [line.rstrip() for line in CONTROL.sub("", self.file.getvalue()).splitlines()]


def part(frames: list[bytes]) -> Part:
    rows = read(pcap(timed(frames)))
    return Part(Path("p.parquet"), rows, rows.coverage[0])


FRAMES = [
    *talk((AGENT, 40000), (SERVER, 6443), rounds=3),
    *refusal((AGENT, 40001), (SERVER, 2379)),
    *refusal((AGENT, 40002), (SERVER, 2379)),
]


def test_pairs_verdicts_alerts_and_losses_are_shown(collector: Collector, cluster_file: Path) -> None:
    terminal = Terminal(cluster_file)
    terminal.frame(terminal.screen.started, collector)
    collector.total = Coverage("server-1", frames=1500, flow=1499, overflow=1)
    collector.alerts = {"wrong-pair": 1}
    terminal.frame(terminal.screen.alert, alert())
    lines = terminal.frame(terminal.screen.part, part(FRAMES))
    assert lines[0] == "server-1: capturing on eth0, eth1; Ctrl-C ends it"
    assert lines[1] == "1.5 k frames, 1.5 k in flows; 1 overflow"
    assert lines[2] == "flows now: 2 wrong-pair  1 allowed"
    assert lines[3].split() == ["client", "server", "rule", "verdict", "flows", "now", "bytes"]
    assert lines[4].split() == ["agent", "server", "kubernetes-api", "allowed", "1", "3.8", "k"]
    assert lines[5].split() == ["agent", "server", "etcd-client", "wrong-pair", "2", "160"]
    assert lines[6:] == ["alerts: 1 wrong-pair", alert().line]


def test_bytes_add_up_and_flows_are_those_of_now(collector: Collector, cluster_file: Path) -> None:
    terminal = Terminal(cluster_file)
    terminal.frame(terminal.screen.part, part(FRAMES))
    lines = terminal.frame(terminal.screen.part, part(FRAMES[-2:]))
    assert "flows now: 1 wrong-pair" in lines
    rows = [line.split() for line in lines if "etcd-client" in line or "kubernetes-api" in line]
    assert rows == [
        ["agent", "server", "kubernetes-api", "allowed", "0", "3.8", "k"],
        ["agent", "server", "etcd-client", "wrong-pair", "1", "240"],
    ]


def test_without_a_cluster_there_are_ports(collector: Collector) -> None:
    terminal = Terminal(None)
    lines = terminal.frame(terminal.screen.part, part(FRAMES))
    assert ["tcp", "2379", "2", "160"] in [line.split() for line in lines]


def test_what_is_new_is_never_cut_off(collector: Collector, cluster_file: Path) -> None:
    """On a low and narrow terminal there are fewer pairs."""
    terminal = Terminal(None, height=18, width=60)
    terminal.frame(terminal.screen.started, collector)
    frames = [frame for n in range(12) for frame in refusal((AGENT, 40000 + n), (SERVER, 1000 + n))]
    terminal.frame(terminal.screen.part, part(frames))
    for n in range(20):
        terminal.frame(terminal.screen.alert, replace(alert(), port=n))
    lines = terminal.frame(terminal.screen.note, "the note")
    assert len(lines) <= 18
    assert lines[-1] == "the note"
    shown = [int(n) for n in re.findall(r"tcp/(\d+):", " ".join(lines))]
    assert shown == list(range(20 - len(shown), 20))
    assert len(shown) >= 4, "of two lines each"
    assert sum(line.startswith("tcp ") for line in lines) >= 1


def test_nothing_hostile_reaches_the_terminal(collector: Collector, cluster_file: Path) -> None:
    terminal = Terminal(cluster_file)
    collector.node = "n\x1b]0;title\x07"
    terminal.frame(terminal.screen.started, collector)
    terminal.frame(terminal.screen.alert, replace(alert(), process=HOSTILE, pid=7))
    lines = terminal.frame(terminal.screen.note, "\x1b[2J[bold]\u202e")
    assert not any(ord(ch) < 32 or ch == "\u202e" for line in lines for ch in line)
    assert any("a\\x1b[2Jb" in line for line in lines)
    assert lines[-1] == "\\x1b[2J[bold]\\x202e", "nor is it markup"


def replace_ports(part: Part) -> Part:
    """The same with servers' ports that were not seen yet."""
    rows = part.rows.rows.copy()
    for name in ("src_port", "dst_port"):
        rows[name][rows[name] < 30000] += 1
    return replace(part, rows=replace(part.rows, rows=rows))


def test_alerts_and_parts_may_come_at_once(collector: Collector) -> None:
    terminal = Terminal(None)
    terminal.screen.started(collector)
    told, failed = part(FRAMES), []

    def alerts() -> None:
        try:
            for n in range(150):
                terminal.screen.alert(replace(alert(), port=n))
        except Exception as error:
            failed.append(error)

    thread, before = threading.Thread(target=alerts), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        while thread.is_alive():
            terminal.screen.part(told)
            told = replace_ports(told)
    finally:
        thread.join()
        sys.setswitchinterval(before)
    assert failed == []


# ---- a terminal ----


class Watched:
    """A collector on a terminal of its own."""

    def __init__(self, wire: live.Wire, *words: str) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", HIGH, WIDE, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*wrapper(wire.near), sys.executable, "-m", "analyzer", "capture", "-i", UPLINK, *words],
            cwd=PROJECT,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        self.raw = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            self.raw += data
            if not data or b"\0over" in self.raw:
                return

    def text(self) -> str:
        return CONTROL.sub("", self.raw.decode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.write(self.slave, b"\0over")
        self._reader.join()
        os.close(self.slave)
        os.close(self.master)


def test_a_capture_on_a_terminal(tmp_path: Path) -> None:
    require_root()
    require_bpf()
    with live.Wire(tmp_path) as wire:
        cluster = wire.write_cluster(tmp_path)
        words = ("--cluster", str(cluster), "--interval", "500ms", "-o", str(tmp_path / "parts"))
        watched = Watched(wire, *words, "--node", "server-1")
        try:
            assert within(60, lambda: "server-1: capturing on eth0; Ctrl-C ends it" in watched.text())
            assert "starting: the program is being compiled" in watched.text()
            with connecting(wire.near, HOSTILE, FAR[4], 2379) as pid:
                pass
            with connecting(wire.near, "fine", FAR[4], 10250):
                pass
            offend(wire, 40001)
            assert within(10, lambda: re.search(r"kubelet-metrics +allowed", watched.text()))
            time.sleep(0.6)
            text = watched.text()
            offence = "tcp/2379: rule etcd-client does not allow server to agent"
            assert f"{offence}; by a\\x1b[2Jb (pid {pid})" in " ".join(text.split())
            assert re.search(r"server +agent +etcd-client +wrong-pair +\d", text)
            assert "nothing lost" in text
            assert re.search(r"flows now: .*\d wrong-pair", text)
            assert re.search(r"alerts: \d unlisted, 1 wrong-pair", text)
            assert HIDDEN in watched.raw.decode()
            os.write(watched.master, b"\x03")  # Ctrl-C, as a person types it
            time.sleep(0.1)
            watched.process.send_signal(signal.SIGINT)  # no terminal controls this session
            assert watched.process.wait(live.END_SECONDS) == FINE
            assert within(5, lambda: "judge it with: " in watched.text())
            raw = watched.raw.decode()
            assert raw.rindex(SHOWN) > raw.rindex(HIDDEN), "the cursor is back"
            assert "\x1b[2J" not in raw, "what the process called itself"
            assert raw.count("\x1b[?1049h") == raw.count("\x1b[?1049l")
            assert termios.tcgetattr(watched.slave) == watched.before
            assert "Traceback" not in raw
            assert "alerts: 1 unlisted, 1 wrong-pair" in watched.text()
        finally:
            watched.close()
        assert hooks(wire.near) == []
        assert session(watched.process.pid) == []
