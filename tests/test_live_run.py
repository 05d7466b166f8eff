"""Collectors as a person runs them: alerts at once, orderly ends, clear failures. Rule: real processes on a
wire of their own; what they say, their exit status, and what is left of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import live
import live_latency
import pytest
from conftest import PROJECT, require, require_program, require_root
from pyroute2 import IPRoute
from test_packet import require_bpf
from test_tc import passing_on_xdp, tun
from test_who import Tree, cgroupfs

from analyzer import Analysis, load_cluster, load_spec
from analyzer.capture import _tc, _tcx, who
from analyzer.capture._program import features
from analyzer.capture.live import LONGEST_NAME, Order, _file_name
from analyzer.capture.live import Collector as Capture
from analyzer.rows import Observer
from analyzer.store import read_inputs
from lab import kernel
from lab.processes import wrapper
from lab.topology import index_of, routes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from live import Collector, Wire

NEAR, FAR, UPLINK = live.NEAR, live.FAR, live.UPLINK
NOBODY = 65534
POD_UID = "0b5a3b1e-7f43-4c0c-9d5a-6e1c2f3a4b5c"
HOSTILE = "a\x1b[2Jb"
CLIENT_PORT = live_latency.CLIENT_PORT
FINE, INPUT_FAULT, UNABLE = 0, 2, 3

#: calls itself what it is told, enters a cgroup if told one, and connects in a thread of another name;
#: waits until its input ends
CONNECT = """
import contextlib, ctypes, os, socket, sys, threading
name, cgroup, host, port = sys.argv[1:]
ctypes.CDLL(None).prctl(15, name.encode())
if cgroup:
    open(cgroup + "/cgroup.procs", "w").write(str(os.getpid()))
s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
def connect():
    ctypes.CDLL(None).prctl(15, b"wrk:worker_0")
    with contextlib.suppress(OSError):
        s.connect((host, int(port)))
thread = threading.Thread(target=connect)
thread.start()
thread.join()
print(flush=True)
sys.stdin.read()
"""

_count = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    require_root()
    require_bpf()


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """One for all tests that leave it as it was."""
    with live.Wire(tmp_path_factory.mktemp("wire")) as made:
        yield made


@pytest.fixture
def cluster(wire: Wire, tmp_path: Path) -> str:
    return str(wire.write_cluster(tmp_path))


# ---- what is left of a collector ----


def hooks(namespace: str, interface: str = UPLINK) -> list[str]:
    """All that hangs on an interface: qdiscs where clsact would be, filters, tcx programs."""
    with kernel.inside(namespace), IPRoute() as ip:
        index = index_of(ip, interface)
        found = [kind for at, kind in _tc._qdiscs(ip).items() if at == index]
        found += [one.text() for one in _tc._filters(ip, index)]
        for direction in _tc.DIRECTIONS:
            found += [_tcx.program_name(program) for program, _ in _tcx.programs(index, direction.hook) or ()]
    return found


def loaded_by(pid: int) -> set[int]:
    """Ids of the eBPF programs that a process holds (proc(5), fdinfo)."""
    found = set()
    for file in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(n) for n in re.findall(r"^prog_id:\s*(\d+)", file.read_text(), re.MULTILINE)}
    return found


def loaded() -> set[int]:
    require_program("bpftool")
    said = subprocess.run(["bpftool", "-j", "prog", "show"], check=True, capture_output=True).stdout
    return {program["id"] for program in json.loads(said)}


def session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] not in "ZX" and int(fields[3]) == leader:
                found.append(int(folder.name))
    return found


def within(seconds: float, holds: Any) -> bool:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(holds())


@dataclass
class Traces:
    """What a running collector has in the kernel, to be looked for after its end."""

    wire: Wire
    pid: int
    pins: list[str] = field(default_factory=lambda: sorted(os.listdir("/sys/fs/bpf")))
    programs: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, wire: Wire, collector: Collector) -> Traces:
        traces = cls(wire, collector.pid, programs=loaded_by(collector.pid))
        assert len(traces.programs) >= 3, "both ways, and a tracepoint"
        assert hooks(wire.near) != []
        return traces

    def left(self) -> dict[str, list[Any]]:
        """What of it is still there; the kernel frees programs a little later."""
        within(5, lambda: not self.programs & loaded())
        return {
            "hooks": hooks(self.wire.near),
            "processes": session(self.pid),
            "programs": sorted(self.programs & loaded()),
            "pins": sorted(set(os.listdir("/sys/fs/bpf")) - set(self.pins)),
        }


NOTHING: dict[str, list[Any]] = {"hooks": [], "processes": [], "programs": [], "pins": []}


# ---- offences ----


@contextlib.contextmanager
def connecting(namespace: str, name: str, host: str, port: int, cgroup: str = "") -> Iterator[int]:
    """A process of that name that connects. Gives its pid."""
    words = [sys.executable, "-c", CONNECT, name, cgroup, host, str(port)]
    pipe = subprocess.PIPE
    with subprocess.Popen([*wrapper(namespace), *words], stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def offend(wire: Wire, *ports: int, host: str = FAR[4]) -> None:
    """A datagram to each port."""
    with kernel.inside(wire.near):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind(("", CLIENT_PORT))
        for port in ports:
            sock.sendto(b"offence", (host, port))


def in_mounts(*commands: str, then: str = "") -> list[str]:
    """Words before a command: in a mount namespace of its own, after these commands. ``then``: runs last."""
    script = " && ".join((*commands, '"$@"' if then else 'exec "$@"'))
    after = f"; status=$?; {then}; exit $status" if then else ""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script + after, "sh"]


# ---- alerts, reload, and an end by SIGTERM: one run for all ----


@dataclass
class Run:
    """What one run said, and what was done to it."""

    folder: Path
    lines: list[str]
    said: str
    pids: dict[str, int]
    left: dict[str, list[Any]]
    cluster: Path
    pcap: Path

    def line(self, text: str) -> str:
        found = [line for line in self.lines if text in line]
        assert len(found) == 1, (text, self.lines)
        return found[0]


@pytest.fixture(scope="module")
def run(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    cluster = wire.write_cluster(folder)
    pods = f"/var/log/pods/default_web-0_{POD_UID}"
    collector = live.start(
        wire,
        folder / "parts",
        *("--cluster", str(cluster), "--interval", "1s", "--pcap", str(folder / "alerts.pcapng")),
        pipes=True,
        wrapped=in_mounts("mount -t tmpfs none /var/log", f"mkdir -p {pods}"),
    )
    collector.wait_until_captures()
    traces = Traces.of(wire, collector)
    pids: dict[str, int] = {}
    stream = collector.child.process.stdout
    assert stream is not None
    lines: list[str] = []
    with pod_cgroup(folder) as cgroup:
        for name, host, port, group in (
            ("allowed", FAR[4], 10250, ""),
            (HOSTILE, FAR[4], 2379, ""),
            ("six", FAR[6], 22, ""),
            ("web", FAR[4], 23, cgroup),
        ):
            with connecting(wire.near, name, host, port, group) as pids[name]:
                if name == "web":  # a pod is known while it is there, and an alert may be later than this end
                    lines += until(stream, "tcp/23:")
    with connecting(wire.far, "inbound", NEAR[4], 2380):
        pass
    offend(wire, 40001)
    time.sleep(1.5)  # a part or two
    good = cluster.read_text()
    cluster.write_text("nodes: [\n")
    collector.child.process.send_signal(signal.SIGHUP)
    collector.wait_until_said("not reloaded")
    offend(wire, 40002)
    cluster.write_text(good.replace("agent-1", "agent-9"))
    collector.reload()
    offend(wire, 40003)
    time.sleep(0.3)
    collector.child.process.send_signal(signal.SIGTERM)
    lines += stream.read().decode().splitlines()
    collector.end()
    left = traces.left()
    cluster.write_text(good)
    return Run(folder / "parts", lines, collector.said(), pids, left, cluster, folder / "alerts.pcapng")


def until(stream: IO[bytes], text: str) -> list[str]:
    """The lines up to the one with this text."""
    lines = [stream.readline().decode()]
    while text not in lines[-1]:
        lines.append(stream.readline().decode())
        assert lines[-1], f"ended without {text}: {lines}"
    return [line.rstrip("\n") for line in lines]


@contextlib.contextmanager
def pod_cgroup(folder: Path) -> Iterator[str]:
    """A cgroup as the kubelet would make it; empty where the machine has no cgroup v2."""
    mount = who.cgroup2_mount(Path("/proc"))
    if mount is None:
        yield ""
        return
    tree = Tree(Path(mount, f"rke2-flows-run-{os.getpid()}-{next(_count)}"), folder / "logs")
    try:
        yield str(tree.add(cgroupfs(POD_UID, "burstable")))
    finally:
        within(5, lambda: not any(p.read_text() for p in tree.root.rglob("cgroup.procs")))
        tree.remove()


def test_an_offence_is_told_with_its_rule_and_its_process(run: Run) -> None:
    line = run.line("tcp/2379")
    assert re.match(
        r"\d\d:\d\d:\d\d\.\d{3} wrong-pair server-1 \(server\) → agent-1 \(agent\) tcp/2379: ", line
    )
    assert "rule etcd-client does not allow server to agent" in line
    assert line.endswith(f"; by a\\x1b[2Jb (pid {run.pids[HOSTILE]})")


def test_nothing_of_a_hostile_name_reaches_the_terminal(run: Run) -> None:
    assert "\x1b" not in run.said + "".join(run.lines)


def test_an_offence_over_ipv6(run: Run) -> None:
    line = run.line("tcp/22:")
    assert "unlisted server-1 (server) → agent-1 (agent)" in line
    assert line.endswith(f"; by six (pid {run.pids['six']})")


def test_an_offence_from_outside_has_no_process(run: Run) -> None:
    line = run.line("tcp/2380")
    assert "wrong-pair agent-1 (agent) → server-1 (server)" in line
    assert "by" not in line.split(": ")[-1]


def test_a_datagram_is_an_offence_too(run: Run) -> None:
    assert "unlisted server-1 (server) → agent-1 (agent) udp/40001: no rule names it" in run.line("udp/40001")


@pytest.mark.alone
def test_the_pod_is_named(run: Run) -> None:
    require(who.cgroup2_mount(Path("/proc")) is not None, "cgroup v2 is not mounted")
    assert run.line("tcp/23:").endswith(f"; by web (pid {run.pids['web']}, pod default/web-0)")


def test_what_is_allowed_is_not_told(run: Run) -> None:
    assert not any("10250" in line for line in run.lines)
    assert len(run.lines) == 7


def test_a_broken_file_changes_nothing_and_a_good_one_does(run: Run) -> None:
    (refusal,) = [line for line in run.said.splitlines() if "not reloaded" in line]
    assert "judging goes on as before" in refusal
    assert run.cluster.name in refusal
    assert "→ agent-1 (agent)" in run.line("udp/40002")
    assert "→ agent-9 (agent)" in run.line("udp/40003")


def test_the_packets_of_alerts_are_kept(run: Run) -> None:
    require_program("tshark")
    fields = ("frame.comment", "ip.dst", "ipv6.dst", "tcp.dstport", "udp.dstport", "frame.interface_name")
    said = subprocess.run(
        ["tshark", "-r", str(run.pcap), "-T", "fields", *(w for f in fields for w in ("-e", f))],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    packets = [dict(zip(fields, line.split("\t"), strict=True)) for line in said.splitlines()]
    assert [packet["frame.comment"] for packet in packets] == run.lines
    assert {packet["frame.interface_name"] for packet in packets} == {UPLINK}
    for packet in packets:
        (port,) = filter(None, (packet["tcp.dstport"], packet["udp.dstport"]))
        assert f"/{port}:" in packet["frame.comment"]
        assert packet["ip.dst"] + packet["ipv6.dst"] in (*FAR.values(), NEAR[4])


def test_the_summary_is_what_the_parts_hold(run: Run) -> None:
    summary = json.loads((run.folder / "server-1.summary.json").read_text())
    rows = read_inputs([run.folder])
    (ledger,) = rows.coverage
    parts = list(run.folder.glob("server-1-*.parquet"))
    assert len(parts) == summary["parts"] >= 3
    assert all(re.fullmatch(r"server-1-\d{8}T\d{6}\.\d{3}Z\.parquet", part.name) for part in parts)
    assert summary["coverage"]["frames"] == ledger.frames == ledger.accounted() > 0
    assert summary["alerts"] == {"unlisted": 5, "wrong-pair": 2}
    assert sorted(p.suffix for p in run.folder.iterdir()) == [".json", *[".parquet"] * len(parts)]
    assert f"wrote {len(parts)} parts" in run.said


@pytest.mark.alone
def test_the_flow_table_names_process_and_pod(run: Run) -> None:
    flows = Analysis.of(read_inputs([run.folder]), load_cluster(run.cluster), load_spec()).flows
    opened = flows[(flows["protocol"] == "tcp") & (flows["client_node"] == "server-1")]
    found = {row["server_port"]: (row["process"], row["pid"]) for row in opened.to_dict("records")}
    expected = {10250: "allowed", 2379: HOSTILE, 22: "six", 23: "web"}
    assert found == {port: (name, run.pids[name]) for port, name in expected.items()}
    if who.cgroup2_mount(Path("/proc")) is not None:
        assert set(opened["pod"].dropna()) == {"default/web-0"}


def test_sigterm_leaves_nothing(run: Run) -> None:
    assert run.left == NOTHING
    assert "Traceback" not in run.said


# ---- other ends ----


def test_ctrl_c_ends_in_order(wire: Wire, tmp_path: Path) -> None:
    """Without a cluster file: nothing is judged, parts are written."""
    collector = live.start(wire, tmp_path / "parts", "--clsact", node="here/../there")
    collector.wait_until_captures()
    traces = Traces.of(wire, collector)
    offend(wire, 40001)
    collector.end(signal.SIGINT)
    assert traces.left() == NOTHING
    assert collector.summary()["coverage"]["frames"] > 0
    assert (collector.summary()["alerts"], collector.summary()["node"]) == ({}, "here/../there")
    assert {file.parent for file in tmp_path.rglob("*.*")} == {tmp_path / "parts"}, "a name is no path"
    assert (read_inputs([tmp_path]).rows["packets"] > 0).any()
    assert "unlisted" not in collector.said()


def test_a_name_that_no_node_has_is_said_and_hides_no_interface(
    wire: Wire, tmp_path: Path, cluster: str
) -> None:
    """Misspelt, it still runs on the node that has the addresses."""
    words = [sys.executable, "-m", "analyzer", "capture", "-o", str(tmp_path / "parts"), "-c", cluster]
    child = wire.children.start("misspelt", wire.near, [*words, "--node", "sever-1", "--duration", "1s"])
    assert child.process.wait(live.READY_SECONDS) == FINE
    said = child.said()
    assert "no node of the cluster file is called sever-1 (there are server-1, agent-1)" in said
    assert f"sever-1: capturing on {UPLINK};" in said


def test_a_node_s_name_may_be_as_long_as_kubernetes_allows(wire: Wire, tmp_path: Path) -> None:
    node = "n" * 253
    with live.collecting(wire, tmp_path / "parts", node=node) as collector:
        offend(wire, 40001)
    (ledger,) = read_inputs([tmp_path]).coverage
    assert (ledger.source, collector.summary()["node"]) == (node, node)
    assert collector.summary()["coverage"]["frames"] == ledger.frames > 0


def test_names_too_long_for_a_file_stay_apart() -> None:
    names = {_file_name("n" * 252 + end) for end in "ab"} | {_file_name("n" * LONGEST_NAME)}
    assert len(names) == 3
    assert max(map(len, names)) == LONGEST_NAME


def test_a_reader_who_leaves_ends_it_in_order(wire: Wire, tmp_path: Path, cluster: str) -> None:
    collector = live.start(wire, tmp_path / "my parts", "--cluster", cluster, pipes=True)
    collector.wait_until_captures()
    traces = Traces.of(wire, collector)
    offend(wire, 40001)
    stream = collector.child.process.stdout
    assert stream is not None
    assert b"udp/40001" in stream.readline()
    stream.close()
    offend(wire, 40002, 40003)
    assert collector.child.process.wait(live.END_SECONDS) == FINE
    assert traces.left() == NOTHING
    assert collector.summary()["alerts"]["unlisted"] >= 2, "the one that could not be told ends it"
    assert len(collector.parts()) == 1
    lines = collector.said().splitlines()
    assert [line for line in lines if "Traceback" in line or "roken pipe" in line] == []
    assert lines[-1] == f"judge it with: rke2-flows check '{tmp_path}/my parts' --cluster {cluster}"


@pytest.mark.parametrize("screen", [True, False], ids=["screen", "lines"])
def test_a_terminal_that_hangs_up_ends_it_in_order(wire: Wire, tmp_path: Path, screen: bool) -> None:
    """As when the connection to the node ends."""
    folder = tmp_path / "parts"
    master, terminal = os.openpty()
    with open(terminal, "wb") as end, (tmp_path / "out").open("wb") as file:
        process = subprocess.Popen(
            [*wrapper(wire.near), *live.command(folder, "--interval", "500ms", "--node", "n")],
            stdin=subprocess.DEVNULL,
            stdout=end if screen else file,
            stderr=end,
            env={**os.environ, "TERM": "xterm"},
        )
    try:
        with open(master, "rb", buffering=0) as reader:
            said = b""
            while b"capturing on" not in said:
                said += reader.read(4096)
            offend(wire, 40001)
        assert process.wait(live.END_SECONDS) == FINE
    finally:
        process.kill()
        process.wait()
    assert hooks(wire.near) == []
    (summary,) = folder.glob("*.summary.json")
    document = json.loads(summary.read_text(encoding="utf-8"))
    assert document["parts"] == len(list(folder.glob("*.parquet")))
    assert read_inputs([folder]).coverage[0].frames == document["coverage"]["frames"] > 0


def test_sigterm_while_the_program_is_compiled(wire: Wire, tmp_path: Path) -> None:
    collector = live.start(wire, tmp_path / "parts")
    assert within(60, lambda: "libbcc" in Path(f"/proc/{collector.pid}/maps").read_text())
    time.sleep(0.5)
    assert hooks(wire.near) == []
    collector.end()
    assert Traces(wire, collector.pid).left() == NOTHING
    assert "Traceback" not in collector.said()
    assert collector.summary()["parts"] == len(collector.parts()) == 1


def test_it_ends_after_the_time_given(wire: Wire, tmp_path: Path) -> None:
    """Two interfaces, of which one has no Ethernet header."""
    with kernel.inside(wire.near), tun("tun0") as descriptor:
        with routes(wire.near) as ip:
            ip.link("set", index=index_of(ip, "tun0"), state="up")
        collector = live.start(
            wire, tmp_path / "parts", "-i", "tun0", "--duration", "1500ms", "--interval", "500ms"
        )
        collector.wait_until_captures()
        since = time.monotonic()
        offend(wire, 40001)
        packet = "4500001d000000004011000001020304" + "0a620001" + "3039003500090000" + "78"
        os.write(descriptor, bytes.fromhex(packet))
        assert collector.child.process.wait(live.END_SECONDS) == FINE
        took = time.monotonic() - since
        assert hooks(wire.near, "tun0") == []
    assert 1 < took < 1.5 + 5
    rows = read_inputs([tmp_path])
    assert set(rows.observers) >= {Observer("server-1", UPLINK), Observer("server-1", "tun0")}
    seen = {(rows.observers[row["interface"]].interface, int(row["dst_port"])) for row in rows.rows}
    assert {(UPLINK, 40001), ("tun0", 53)} <= seen
    assert len(collector.parts()) >= 3


# ---- killed ----


class Echo:
    """Datagrams from the near host to the far one and back, one after the other; counts what is lost."""

    def __init__(self, wire: Wire) -> None:
        self.sent = self.lost = 0
        self._over = threading.Event()
        with kernel.inside(wire.near):
            self._near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with kernel.inside(wire.far):
            self._far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._far.bind((FAR[4], 10250))
        self._near.connect((FAR[4], 10250))
        self._near.settimeout(0.2)
        self._far.settimeout(0.1)
        self._threads = [threading.Thread(target=self._answer), threading.Thread(target=self._ask)]

    def _answer(self) -> None:
        while self._threads[1].is_alive() or not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                self._far.sendto(*self._far.recvfrom(64))

    def _ask(self) -> None:
        while not self._over.is_set():
            self.sent += 1
            self._near.send(b"%d" % self.sent)
            try:
                self.lost += int(self._near.recv(64)) != self.sent
            except TimeoutError:
                self.lost += 1
            time.sleep(0.001)

    def __enter__(self) -> Echo:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)
        self._near.close()
        self._far.close()


def killed(wire: Wire, folder: Path, cluster: str, *words: str) -> Collector:
    """A collector that was killed with parts behind it, in the middle of traffic."""
    collector = live.start(wire, folder, "--cluster", cluster, "--interval", "500ms", *words)
    collector.wait_until_captures()
    assert within(20, lambda: len(collector.parts()) >= 3)
    assert hooks(wire.near) != []
    collector.child.process.kill()
    collector.child.process.wait()
    return collector


def check(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "analyzer", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_parts_are_whole(collector: Collector, cluster: str) -> None:
    rows = read_inputs([collector.folder])
    assert rows.rows["packets"].sum() > 0
    assert rows.coverage[0].frames == rows.coverage[0].accounted()
    done = check("check", collector.folder, "--cluster", cluster, "--fail-on", "never")
    assert (done.returncode, "udp" in done.stdout) == (FINE, True), done.stderr


def doctor(wire: Wire, *words: str, wrapped: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*wrapper(wire.near), *wrapped, sys.executable, "-m", "analyzer", "doctor", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_killed_on_tcx_leaves_parts_and_nothing_else(wire: Wire, tmp_path: Path, cluster: str) -> None:
    with kernel.inside(wire.near):
        require(_tc.has_tcx(socket.if_nametoindex(UPLINK)), "this kernel has no tcx")
    with Echo(wire) as echo:
        collector = killed(wire, tmp_path / "parts", cluster)
        assert within(5, lambda: hooks(wire.near) == []), "the kernel closes links a little later"
        time.sleep(0.2)
    assert echo.sent > 500
    assert echo.lost == 0
    assert session(collector.pid) == []
    assert_parts_are_whole(collector, cluster)
    assert doctor(wire, "--clean").stdout.startswith("nothing to remove")


def test_killed_on_clsact_and_what_is_left_goes(wire: Wire, tmp_path: Path, cluster: str) -> None:
    with Echo(wire) as echo:
        collector = killed(wire, tmp_path / "parts", cluster, "--clsact")
        left = hooks(wire.near)
        assert len(left) == 3, "a qdisc and two filters"
        told = doctor(wire)
        assert told.returncode == FINE, told.stderr
        leftovers = [line for line in told.stdout.splitlines() if line.startswith(f"leftover {UPLINK}")]
        assert [("ingress" in line, "egress" in line) for line in leftovers] == [(True, False), (False, True)]
        assert all("rke2-flows doctor --clean" in line for line in leftovers)
        assert hooks(wire.near) == left, "who asks changes nothing"
        after = killed(wire, tmp_path / "next", cluster, "--clsact")
        assert [line for line in after.said().splitlines() if "killed run" in line] == [
            f"removed a filter that a killed run left on {UPLINK} ({way})" for way in ("ingress", "egress")
        ]
        assert len(hooks(wire.near)) == 3, "those of the first one are gone"
        refused = doctor(wire, "--clean", wrapped=AS_NOBODY)
        assert (refused.returncode, refused.stdout) == (UNABLE, "")
        assert "no right" in refused.stderr
        assert len(hooks(wire.near)) == 3
        cleaned = doctor(wire, "--clean")
        assert cleaned.returncode == FINE
        assert cleaned.stdout.count(f"from {UPLINK}") == 2
        assert hooks(wire.near) == []
    assert echo.sent > 1000
    # The qdisc came and went twice, and the kernel drops what is sent just then.
    assert echo.lost <= 2 * 2
    assert_parts_are_whole(collector, cluster)


# ---- failures ----


@dataclass(frozen=True)
class Fault:
    """A command that cannot work: its words, what it says, its status, and what comes before it."""

    says: str
    status: int
    words: tuple[str, ...] = ()
    wrapped: tuple[str, ...] = ()


AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
FAULTS = {
    "without root": Fault("live capture needs root (run it with sudo)", UNABLE, wrapped=AS_NOBODY),
    "without bcc": Fault(
        "BCC is not installed for this Python (install your distribution's python3-bpfcc",
        UNABLE,
        wrapped=tuple(in_mounts("mount -t tmpfs none /usr/lib/python3/dist-packages/bcc")),
    ),
    "without headers": Fault(
        "there are no kernel headers at /lib/modules/",
        UNABLE,
        wrapped=tuple(in_mounts("mount -t tmpfs none /lib/modules")),
    ),
    "on no interface": Fault("nope0: no such interface", UNABLE, ("-i", "nope0")),
    "on a link that cannot be watched": Fault(
        "radio0: it cannot be watched: hardware type 801 is neither Ethernet nor bare IP",
        UNABLE,
        ("-i", "radio0"),
    ),
    "with a broken cluster file": Fault("broken.yaml", INPUT_FAULT, ("--cluster", "broken.yaml")),
    "with no cluster file": Fault("none.yaml", INPUT_FAULT, ("--cluster", "none.yaml")),
    "with no such specification": Fault("nonsense", INPUT_FAULT, ("--spec", "nonsense")),
    "into a file": Fault("a-file: no parts can be written there: File exists", INPUT_FAULT, ("-o", "a-file")),
    "into a folder that cannot be written": Fault(
        "read-only: no parts can be written there: Read-only file system",
        INPUT_FAULT,
        ("-o", "read-only"),
        tuple(in_mounts("mount -t tmpfs -o ro none read-only")),
    ),
    "with an interval that is none": Fault("nonsense", INPUT_FAULT, ("--interval", "nonsense")),
    "with a duration that is none": Fault("-1s", INPUT_FAULT, ("--duration", "-1s")),
    "with a table of no size": Fault("--flows", INPUT_FAULT, ("--flows", "0")),
    "with packets kept nowhere": Fault(
        "no/alerts.pcapng: cannot be written: No such file or directory (check the folder",
        INPUT_FAULT,
        ("--pcap", "no/alerts.pcapng"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_fault_is_one_clear_line(wire: Wire, tmp_path: Path, fault: Fault) -> None:
    (tmp_path / "broken.yaml").write_text("nodes: [\n")
    (tmp_path / "a-file").touch()
    (tmp_path / "read-only").mkdir()
    before = set(tmp_path.rglob("*"))
    words = [*fault.words, *([] if "-o" in fault.words else ["-o", "parts"])]
    words += [] if "-i" in fault.words else ["-i", UPLINK]
    command = [*wrapper(wire.near), *fault.wrapped, sys.executable, "-m", "analyzer", "capture", *words]
    with kernel.inside(wire.near), tun("radio0", 801):
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "TERM": "dumb", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        out, error = process.communicate(timeout=60)
    assert process.returncode == fault.status, error
    assert fault.says in error
    assert out == ""
    assert "Traceback" not in error
    if "Usage:" not in error:  # typer's own box, which names the option
        assert len(error.splitlines()) == 1
        assert error.startswith("rke2-flows: ")
    left = {path.name for path in set(tmp_path.rglob("*")) - before}
    assert left <= ({"parts"} if "--pcap" in words else set()), (
        "no file; and no folder but one it had use for"
    )
    assert (hooks(wire.near), session(process.pid)) == ([], [])


def test_what_is_said_with_standard_error_closed_is_no_data(wire: Wire, tmp_path: Path) -> None:
    words = ["capture", "-i", "nope0", "-o", str(tmp_path / "parts")]
    command = [sys.executable, "-m", "analyzer", *words]
    done = subprocess.run(
        [*wrapper(wire.near), "sh", "-c", 'exec "$@" 2>&-', "sh", *command],
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (UNABLE, b"")


LESS = {
    "BTF": (
        "mount -t tmpfs none /sys/kernel/btf",
        "why packets are dropped: this kernel publishes no BTF",
    ),
    "tracefs": (
        "mount -t tmpfs none /sys/kernel/tracing; mount -t tmpfs none /sys/kernel/debug",
        "which process opens a connection, and why packets are dropped: no tracefs",
    ),
}


@pytest.mark.parametrize("what", list(LESS))
def test_with_less_it_captures_and_says_what_is_missing(
    wire: Wire, tmp_path: Path, cluster: str, what: str
) -> None:
    how, missing = LESS[what]
    collector = live.start(
        wire, tmp_path / "parts", "--cluster", cluster, wrapped=in_mounts(f"{{ {how}; true; }}")
    )
    collector.wait_until_captures()
    with connecting(wire.near, "child", FAR[4], 22) as pid:
        pass
    collector.end()
    assert f"not captured: {missing}" in collector.said()
    assert "Traceback" not in collector.said()
    rows = read_inputs([tmp_path / "parts"])
    assert missing in rows.coverage[0].missing
    assert (rows.rows["dst_port"] == 22).any()
    named = re.findall(rf"by (\S+) \(pid {pid}\)", collector.said())
    assert named == ([] if what == "tracefs" else ["wrk:worker_0"]), "the thread's name, for want of another"


def add_pair(wire: Wire, name: str) -> None:
    with routes(wire.near) as ip:
        ip.link("add", ifname=name, kind="veth", peer={"ifname": f"{name}-peer"})
        for end in (name, f"{name}-peer"):
            ip.link("set", index=index_of(ip, end), state="up")


def delete_link(wire: Wire, name: str) -> None:
    with routes(wire.near) as ip:
        ip.link("del", index=index_of(ip, name))


def send_on(wire: Wire, interface: str, frame: bytes) -> None:
    with kernel.inside(wire.near), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, 0))
        sock.send(frame)


@pytest.mark.parametrize("words", [(), ("--clsact",)], ids=["tcx", "clsact"])
def test_an_interface_vanishes(wire: Wire, tmp_path: Path, words: tuple[str, ...]) -> None:
    """With one of two the capture goes on, with the last one it ends; what was seen before is written."""
    names = ("gone0", "gone1")
    for name in names:
        add_pair(wire, name)
    folder = tmp_path / "parts"
    command = [sys.executable, "-m", "analyzer", "capture", "-o", str(folder), "--node", "n", *words]
    child = wire.children.start(
        f"vanish-{next(_count)}", wire.near, [*command, "-i", names[0], "-i", names[1]]
    )
    collector = live.Collector(child, folder)
    collector.wait_until_captures()
    frame = bytes(12) + b"\x88\xb5" + bytes(50)  # a local experimental EtherType
    send_on(wire, names[0], frame)
    delete_link(wire, names[0])
    collector.wait_until_said(f"not captured: {names[0]}, since it vanished")
    assert child.alive()
    send_on(wire, names[1], frame)
    delete_link(wire, names[1])
    assert child.process.wait(live.END_SECONDS) == UNABLE
    *_, last = collector.said().splitlines()
    assert last.startswith("rke2-flows: gone0 and gone1 vanished during the capture")
    assert "Traceback" not in collector.said()
    (ledger,) = read_inputs([folder]).coverage
    assert ledger.not_ip >= 2
    assert names[0] in ledger.missing
    assert collector.summary()["coverage"]["frames"] == ledger.frames
    assert session(child.pid) == []


def test_an_interface_moves_to_another_namespace(wire: Wire, tmp_path: Path) -> None:
    """It is told, and what it carries there is no packet of this node."""
    with kernel.inside(wire.near):
        require(_tc.has_tcx(socket.if_nametoindex(UPLINK)), "this kernel has no tcx")
    add_pair(wire, "moves")
    folder, frame = tmp_path / "parts", bytes(12) + b"\x88\xb5" + bytes(50)
    collector = live.start(wire, folder, "-i", "moves")
    collector.wait_until_captures()
    send_on(wire, "moves", frame)
    move = (["link", "set", "moves", "netns", wire.far], ["-n", wire.far, "link", "set", "moves", "up"])
    for words in move:
        subprocess.run([*wrapper(wire.near), "ip", *words], check=True)
    collector.wait_until_said("not captured: moves, since it vanished", 3)
    with kernel.inside(wire.far), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("moves", 0))
        for _ in range(50):
            sock.send(frame)
    subprocess.run(["ip", "-n", wire.far, "link", "delete", "moves"], check=True)
    collector.end(status=UNABLE)
    (ledger,) = read_inputs([folder]).coverage
    assert 1 <= ledger.not_ip < 50
    assert "moves" in ledger.missing


def test_each_dropped_packet_is_told_or_counted_as_lost(wire: Wire, tmp_path: Path) -> None:
    """More 5-tuples that nobody listens for than the kernel's table holds, in one interval."""
    require(bool(features().reasons), "this kernel does not say why it drops")
    folder, number, first = tmp_path / "parts", 60000, 1024
    with live.collecting(wire, folder, "--interval", "1h"):
        with kernel.inside(wire.far):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            for port in range(first, first + number):
                sock.sendto(b"?", (NEAR[4], port))
        time.sleep(0.5)
    one_way = read_inputs([folder])
    drops, (ledger,) = one_way.facts.drops, one_way.coverage
    mine = drops[(drops["protocol"] == socket.IPPROTO_UDP) & (drops["dst_port"] >= first)]
    assert {one_way.facts.names[n] for n in mine["reason"].tolist()} == {"NO_SOCKET"}
    assert int(mine["packets"].sum()) + ledger.drops_lost == number
    assert len(mine) > number // 4


@pytest.mark.parametrize("words", [(), ("--clsact",)], ids=["tcx", "clsact"])
def test_what_comes_to_run_first_is_told(wire: Wire, tmp_path: Path, words: tuple[str, ...]) -> None:
    """An XDP program sees a packet before us, and what it drops nobody counts: from when it came on."""
    folder = tmp_path / "parts"
    with live.collecting(wire, folder, "--interval", "500ms", *words) as collector:
        within(2, collector.parts)
        with kernel.inside(wire.near):
            index = socket.if_nametoindex(UPLINK)
        with kernel.inside(wire.near), passing_on_xdp(index):
            collector.wait_until_said("not captured: what ingress xdp passing on")
            time.sleep(1.2)
    assert collector.said().count(f"on {UPLINK}, running first") == 2, "once, and in the summary"
    first, *_, last = collector.parts()
    missing = [read_inputs([part]).coverage[0].missing for part in (first, last)]
    assert ["xdp passing" in text for text in missing] == [False, True]


def test_two_of_a_node_in_one_folder_lose_no_part(wire: Wire, tmp_path: Path) -> None:
    """Their intervals end at the same moments, by which parts are named."""
    folder = tmp_path / "parts"
    both = [live.start(wire, folder, "--interval", "100ms", "--duration", "4s") for _ in range(2)]
    assert [one.child.process.wait(live.END_SECONDS) for one in both] == [FINE, FINE]
    assert ["running first" in one.said() for one in both] == [False, False]
    told = [re.findall(r"^(server-1-\S+\.parquet): ", one.said(), re.MULTILINE) for one in both]
    assert live.Collector(both[0].child, folder).parts() == sorted(
        folder / name for names in told for name in names
    )
    assert re.findall(r"^wrote (\d+) parts", "\n".join(one.said() for one in both), re.MULTILINE) == [
        str(len(names)) for names in told
    ]


def many_flows(wire: Wire, number: int) -> None:
    """Datagrams that cannot be compressed away: addresses and ports at random."""
    with kernel.inside(wire.near):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sock:
        sock.bind((UPLINK, 0))
        ethernet = bytes.fromhex("020000000021020000000011") + b"\x08\0"
        for _ in range(number):
            head = b"\x45\0\0\x1d\0\0\0\0\x40\x11\0\0" + os.urandom(8)
            sock.send(ethernet + head + os.urandom(4) + b"\0\x09\0\0x")


def test_a_full_disk(wire: Wire, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    mounts = in_mounts(f"mount -t tmpfs -o size=256k none {folder}", then=f"ls -A {folder}")
    collector = live.start(
        wire, folder, "--interval", "500ms", "--duration", "20s", pipes=True, wrapped=mounts
    )
    collector.wait_until_captures()
    offend(wire, 40001)
    assert within(10, lambda: ".parquet: " in collector.said())
    many_flows(wire, 20_000)
    assert collector.child.process.wait(live.END_SECONDS) == UNABLE
    *before, last = collector.said().splitlines()
    assert last.startswith(f"rke2-flows: {folder}/server-1-")
    assert re.search(r": the capture ends: cannot be written: .*No space left on device", last)
    assert not any(
        word in line for line in before for word in ("rke2-flows:", "Traceback", "clang", "warning")
    )
    stream = collector.child.process.stdout
    assert stream is not None
    left = stream.read().decode().split()
    told = re.findall(r"^(server-1-\S+\.parquet): ", collector.said(), re.MULTILINE)
    assert left == sorted(told), "whole parts and nothing else"
    assert (hooks(wire.near), session(collector.pid)) == ([], [])


def test_a_fault_in_the_middle_loses_no_interval(wire: Wire, tmp_path: Path) -> None:
    """Standard error is a file that has room for the first line and not for a long one."""
    folder, log = tmp_path / "parts", tmp_path / "log"
    broken = tmp_path / f"{'x' * 200}.yaml"
    wire.write_cluster(tmp_path).rename(broken)
    log.write_bytes(bytes((1 << 20) - 200))
    full = ["prlimit", f"--fsize={1 << 20}", "sh", "-c", 'exec "$@" 2>>' + str(log), "sh"]
    collector = live.start(wire, folder, "--interval", "1h", "--cluster", str(broken), wrapped=full)
    assert within(live.READY_SECONDS, lambda: b"capturing on" in log.read_bytes())
    offend(wire, 40001)
    broken.write_text("nodes: 7", encoding="utf-8")
    collector.child.process.send_signal(signal.SIGHUP)
    assert collector.child.process.wait(live.END_SECONDS) == INPUT_FAULT
    assert hooks(wire.near) == []
    (ledger,) = read_inputs([folder]).coverage
    assert collector.summary()["coverage"]["frames"] == ledger.frames > 0


class Faulty:
    """A teller with a fault of its own, as when memory runs out: at alerts, or at parts."""

    def __init__(self, at: str) -> None:
        self._at = at
        self.began = threading.Event()

    def started(self, _: object) -> None:
        self.began.set()

    def alert(self, _: object) -> None:
        self._fail("alert")

    def part(self, _: object) -> None:
        self._fail("part")

    def note(self, _: str) -> None:
        pass

    def _fail(self, where: str) -> None:
        if where == self._at:
            self._at = ""
            raise MemoryError(where)


@pytest.mark.parametrize("where", ["alert", "part"])
def test_a_fault_that_nobody_expects_loses_no_interval(
    wire: Wire, tmp_path: Path, cluster: str, where: str
) -> None:
    """It ends the capture, and what was counted is written all the same."""
    order = Order(tmp_path / "parts", (UPLINK,), cluster, node="server-1", interval=10**9, duration=10**10)
    teller = Faulty(where)

    def offend_then() -> None:
        teller.began.wait(60)
        offend(wire, 22, 23)

    offender = threading.Thread(target=offend_then)
    offender.start()
    with kernel.inside(wire.near), pytest.raises(MemoryError, match=where):
        Capture(order, teller).run()
    offender.join()
    assert hooks(wire.near) == []
    (ledger,) = read_inputs([order.folder]).coverage
    (summary,) = order.folder.glob("*.summary.json")
    assert json.loads(summary.read_text())["coverage"]["frames"] == ledger.frames >= 2


def test_alerts_that_cannot_be_written(wire: Wire, tmp_path: Path, cluster: str) -> None:
    full = ["sh", "-c", 'exec "$@" >/dev/full', "sh"]
    collector = live.start(wire, tmp_path / "parts", "--cluster", cluster, wrapped=full)
    collector.wait_until_captures()
    traces = Traces.of(wire, collector)
    offend(wire, 40001)
    assert collector.child.process.wait(live.END_SECONDS) == INPUT_FAULT
    assert traces.left() == NOTHING
    *_, last = collector.said().splitlines()
    assert last.startswith("rke2-flows: standard output: alerts cannot be written any more: No space left")
    assert "Traceback" not in collector.said()
    assert len(collector.parts()) == 1, "what was captured is kept"


# ---- at once ----


@pytest.mark.alone
def test_an_alert_takes_less_than_ten_milliseconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = live_latency.latency(tmp_path, enough=10)
    with capsys.disabled():
        print(f"\nalert latency: {found}")
    assert len(found.seconds) == found.offences == 200
    assert found.rate > 10_000, "that is no load"
    assert found.milliseconds(0.99) <= 10
