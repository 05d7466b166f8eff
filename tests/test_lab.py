"""The lab comes up and goes down without a trace, and its truth is what the packets show.

Rule: packets are read by tshark alone, so that nothing here leans on the reader that the recordings test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from conftest import PROJECT, RECORDED, require_program, require_root

from lab import SCENARIOS, Lab, LabError, faults, kernel, plan, recordings, scenarios, topology
from lab.truth import Truth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SYN, RST, ACK = 0x02, 0x04, 0x10
HOST_LINKS = Path("/sys/class/net")


@pytest.fixture
def machine() -> None:
    """The lab can be built here."""
    require_root()
    for program in ("etcd", "etcdctl", "nft", "setpriv", "tcpdump", "wireguard-go", "wg"):
        require_program(program)


def require_reader() -> None:
    require_program("tshark")
    require_program("mergecap")


# -- what a lab leaves


class Trace(NamedTuple):
    """What of a lab can be seen on the machine: its namespaces, who lives in them, its files."""

    namespaces: dict[str, int]
    pids: set[int]
    folders: set[Path]


def trace(owner: int) -> Trace:
    """The trace of all labs of one process."""
    prefix = f"{plan.PREFIX}{owner}-"
    namespaces = {
        path.name: path.stat().st_ino
        for path in kernel.NAMESPACES.glob(f"{prefix}*")
        if path.name.startswith(prefix)
    }
    return Trace(namespaces, living_in(set(namespaces.values())), set(Path("/tmp").glob(f"{prefix}*")))


def living_in(inodes: set[int]) -> set[int]:
    """Processes whose network namespace is one of these."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            if link.stat().st_ino in inodes:
                found.add(int(link.parent.parent.name))
    return found


def gone(before: Trace, owner: int) -> bool:
    """Nothing of it is there any more: no namespace, no process in it, no file."""
    return trace(owner) == Trace({}, set(), set()) and not living_in(set(before.namespaces.values()))


def eventually(holds: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("variant", ["vxlan", "wireguard"])
@pytest.mark.usefixtures("machine")
def test_a_lab_leaves_nothing(variant: str) -> None:
    links = {path.name for path in HOST_LINKS.iterdir()}
    with Lab(variant) as lab:
        lab.start()
        before = trace(os.getpid())
        names = {path.name for path in HOST_LINKS.iterdir()} - links
        assert len(before.namespaces) == len(lab.namespaces) == 12
        assert len(before.pids) >= len(plan.HOSTS) + len(plan.PODS)
        assert {node.pid for node in lab.nodes.values()} <= before.pids
        assert len(before.folders) == 1
        assert not names & {
            plan.UPLINK,
            "cni0",
            "switch",
            *plan.HOSTS,
            *plan.OVERLAY_DEVICES[variant].values(),
        }
    assert gone(before, os.getpid())
    lab.close()  # once more does no harm


@pytest.mark.usefixtures("machine")
def test_an_exception_takes_the_lab_down() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(ZeroDivisionError), Lab() as lab:  # noqa: PT012
        lab.start()
        before = trace(os.getpid())
        assert before.pids
        raise ZeroDivisionError
    assert gone(before, os.getpid())
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@contextlib.contextmanager
def lab_process() -> Iterator[subprocess.Popen[str]]:
    """``python -m lab up`` as a child, up and holding."""
    command = [sys.executable, "-m", "lab", "up"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "tests")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("up;"):
                    break
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.usefixtures("machine")
def test_a_signal_takes_the_lab_down(number: signal.Signals) -> None:
    with lab_process() as process:
        before = trace(process.pid)
        assert len(before.namespaces) == 12
        process.send_signal(number)
        assert process.wait(20) != 0
        assert gone(before, process.pid)


@pytest.mark.usefixtures("machine")
def test_clean_removes_what_a_killed_lab_left_and_nothing_of_a_running_one() -> None:
    command = [sys.executable, "-m", "lab", "clean"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "tests")}
    with Lab() as running, lab_process() as process:
        before, kept = trace(process.pid), trace(os.getpid())
        process.kill()
        process.wait()
        assert eventually(
            lambda: not living_in(set(before.namespaces.values()))
        )  # they die with their parent
        assert set(trace(process.pid).namespaces) == set(before.namespaces)
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        assert gone(before, process.pid)
        assert trace(os.getpid()) == kept
        running.start()


def test_only_a_dead_owner_counts_as_left_over(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    for owner in (os.getpid(), ended.pid):
        (tmp_path / f"{plan.PREFIX}{owner}-0-agent-1").touch()
    (tmp_path / "some-other-namespace").touch()
    assert [path.name for path in topology.leftovers(tmp_path)] == [f"{plan.PREFIX}{ended.pid}-0-agent-1"]


# -- what a lab does


@pytest.mark.usefixtures("machine")
def test_two_labs_side_by_side() -> None:
    with Lab() as one, Lab() as other:
        one.start()
        other.start()
        assert not set(one.namespaces.values()) & set(other.namespaces.values())
        truths = [lab.run("ssh-agent-to-agent", seconds=0.5) for lab in (one, other)]
        assert truths[0] == truths[1]
        assert len(truths[0].rows) == 1


@pytest.mark.usefixtures("machine")
def test_each_scenario_can_happen_alone() -> None:
    alone = [name for name in SCENARIOS if name != scenarios.BASELINE]
    with Lab() as lab:
        lab.start()
        for name in alone:
            truth = lab.run(name, seconds=0.5)
            happened = {row.scenario for row in truth.rows.values()}
            assert happened - {scenarios.BASELINE} == {name}, name


@pytest.mark.usefixtures("machine")
def test_what_does_not_happen_as_the_table_says_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sabotaged(lab: Lab, *names: str) -> None:
        prepare(lab, *names)
        faults.refuse_client(lab.nodes["agent-3"].namespace, faults.REJECT_RESET, "agent-1", (22,))

    prepare = Lab.prepare
    monkeypatch.setattr(Lab, "prepare", sabotaged)
    recording = recordings.Recording("sabotage", "refused", ("ssh-agent-to-agent",), nodes=("agent-1",))
    (tmp_path / "sabotage").mkdir()
    (tmp_path / "sabotage" / "older").touch()
    with pytest.raises(LabError, match=r"ssh agent-1 → agent-3 tcp/22 gave \{'refused': 2\}, not answered"):
        recordings.record(recording, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["sabotage", "older"]


def test_unknown_names_are_told() -> None:
    with pytest.raises(LabError, match="no variant 'geneve'"):
        Lab("geneve")
    with pytest.raises(LabError, match="no scenario 'flood'"):
        Lab().prepare("flood")
    with pytest.raises(LabError, match="foreign-vxlan needs the variant vxlan"):
        Lab("wireguard").prepare("foreign-vxlan")


# -- what the packets show


@dataclass(frozen=True)
class Packet:
    """One packet as tshark reads it. ``quoted``: the (source, target, port) that an ICMP error is about."""

    protocol: str
    source: str
    target: str
    source_port: int = 0
    target_port: int = 0
    flags: int = 0
    quoted: tuple[str, str, int] | None = None

    @property
    def tuple(self) -> tuple[str, str, int, int]:
        return self.source, self.target, self.source_port, self.target_port

    @property
    def opens(self) -> bool:
        return self.protocol == "tcp" and self.flags & (SYN | ACK) == SYN

    @property
    def accepts(self) -> bool:
        return self.protocol == "tcp" and self.flags & (SYN | ACK) == SYN | ACK

    @property
    def resets(self) -> bool:
        return self.protocol == "tcp" and bool(self.flags & RST)


FIELDS = (
    *("ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport"),
    *("tcp.flags", "icmp.type", "icmpv6.type"),
)
UNREACHABLE = {"icmp.type": "3", "icmpv6.type": "1"}
Layers = dict[str, list[str]]


def dissect(paths: list[Path]) -> Iterator[Layers]:
    """The fields of each packet in order of time; of each field one value a layer, outermost first."""
    fields = [word for field in FIELDS for word in ("-e", field)]
    command = [
        "tshark",
        "-n",
        "-r",
        "-",
        "-d",
        "udp.port==8472,vxlan",
        "-T",
        "fields",
        "-E",
        "separator=/t",
        *fields,
    ]
    merge = subprocess.run(["mergecap", "-w", "-", *map(str, paths)], stdout=subprocess.PIPE, check=True)
    done = subprocess.run(
        command, input=merge.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    for line in done.stdout.decode().splitlines():
        values = line.split("\t")
        yield {field: value.split(",") if value else [] for field, value in zip(FIELDS, values, strict=True)}


def packet(layers: Layers, which: int) -> Packet | None:
    """The outermost (0) or innermost (-1) packet of a frame, if it is TCP, UDP or an ICMP error."""
    sources, targets = layers["ip.src"] + layers["ipv6.src"], layers["ip.dst"] + layers["ipv6.dst"]
    for field, kind in UNREACHABLE.items():
        if layers[field][:1] == [kind] and len(sources) == 2:
            port = (layers["tcp.dstport"] or layers["udp.dstport"])[-1]
            return Packet("icmp", sources[0], targets[0], quoted=(sources[1], targets[1], int(port)))
    protocol = "tcp" if layers["tcp.srcport"] and (which == -1 or not layers["udp.srcport"]) else "udp"
    if not layers[f"{protocol}.srcport"]:
        return None
    source_port, target_port = (int(layers[f"{protocol}.{end}"][which]) for end in ("srcport", "dstport"))
    flags = int(layers["tcp.flags"][which], 16) if protocol == "tcp" else 0
    return Packet(protocol, sources[which], targets[which], source_port, target_port, flags)


class Seen:
    """All that the captures of a recording hold, by node names where an address has one."""

    def __init__(self, folder: Path) -> None:
        self.truth: dict[str, Any] = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        nodes = yaml.safe_load((folder / "cluster.yaml").read_text(encoding="utf-8"))["nodes"]
        self.names: dict[str, str] = {
            address: node["name"] for node in nodes for address in node["addresses"]
        }
        self.files = sorted(path for path in folder.iterdir() if path.suffix in (".pcap", ".pcapng"))
        self.packets: list[Packet] = []
        self.inner: list[Packet] = []
        for layers in dissect(self.files):
            self.packets += [one for one in [packet(layers, 0)] if one]
            if str(plan.VXLAN_PORT) in layers["udp.dstport"][:1]:
                self.inner += [one for one in [packet(layers, -1)] if one]
        self._by_ends: dict[tuple[str, str, str], list[Packet]] = {}
        for one in self.packets:
            self._by_ends.setdefault((one.protocol, *self.ends(one)), []).append(one)

    def name(self, address: str) -> str:
        return self.names.get(address, address)

    def ends(self, one: Packet) -> tuple[str, str]:
        return self.name(one.source), self.name(one.target)

    def between(self, row: dict[str, Any], port: int | None = None) -> tuple[list[Packet], list[Packet]]:
        """Packets from the row's client to its server's port, and from that port back."""
        port = row["port"] if port is None else port
        there = self._by_ends.get((row["protocol"], row["client"], row["server"]), [])
        back = self._by_ends.get((row["protocol"], row["server"], row["client"]), [])
        there = [one for one in there if one.target_port == port]
        if row["port"] != plan.VXLAN_PORT:
            return there, [one for one in back if one.source_port == port]
        return there, [one for one in back if one.target_port == port]  # a tunnel's source port is a hash

    def errors(self, row: dict[str, Any]) -> list[Packet]:
        """ICMP errors from the server about the row's packets."""
        about = row["client"], row["server"], row["port"]
        quoted = ((one, one.quoted) for one in self.packets if one.quoted)
        return [
            one
            for one, (client, server, port) in quoted
            if (*map(self.name, (client, server)), port) == about
        ]


def turned(packets_: list[Packet]) -> set[tuple[str, str, int, int]]:
    """The 5-tuples of packets as their other end would send."""
    return {(one.target, one.source, one.target_port, one.source_port) for one in packets_}


def answered(seen: Seen, row: dict[str, Any]) -> bool:
    there, back = seen.between(row)
    opened = {one.tuple for one in there if one.opens}
    if row["protocol"] == "udp" or row["scenario"] == "open-watch":
        return bool(there and back) and not opened
    return bool(opened) and opened == turned([one for one in back if one.accepts])


def refused(seen: Seen, row: dict[str, Any]) -> bool:
    for port in row.get("ports", [row["port"]]):
        there, back = seen.between(row, port)
        opened = {one.tuple for one in there if one.opens}
        if (
            not opened
            or opened != turned([one for one in back if one.resets])
            or any(one.accepts for one in back)
        ):
            return False
    return True


def unreachable(seen: Seen, row: dict[str, Any]) -> bool:
    there, back = seen.between(row)
    return bool(there and seen.errors(row)) and not back


def unanswered(seen: Seen, row: dict[str, Any]) -> bool:
    there, back = seen.between(row)
    return bool(there) and not back and not seen.errors(row)


OUTCOMES = {"answered": answered, "refused": refused, "unreachable": unreachable, "unanswered": unanswered}


def check_rows(seen: Seen) -> None:
    """Each row of the truth is in the packets, with the answers that its outcome means."""
    missing = [row for row in seen.truth["rows"] if not OUTCOMES[row["outcome"]](seen, row)]
    assert not missing


def check_nothing_else(seen: Seen) -> None:
    """Between nodes, and from outside to one, no connection begins and no datagram is sent without a row."""
    rows = seen.truth["rows"]
    known = {
        (row["client"], row["server"], row["protocol"], port)
        for row in rows
        for port in row.get("ports", [row["port"]])
    }
    replies = {(row["server"], row["client"]) for row in rows if row["protocol"] == "udp"}
    named = {*seen.names.values(), plan.OUTSIDE.addresses[4]}
    extra: Counter[tuple[str, str, str, int]] = Counter()
    for one in seen.packets:
        ends = seen.ends(one)
        if not named.issuperset(ends) or ends[0] == ends[1]:
            continue
        flow = (*ends, one.protocol, one.target_port)
        wireguard_reply = one.source_port == one.target_port and ends in replies
        if (one.opens or one.protocol == "udp") and flow not in known and not wireguard_reply:
            extra[flow] += 1
    assert not extra


def check_overlay(seen: Seen) -> None:
    """Each inner flow is inside the tunnel, and is answered there if and only if the truth says so."""
    inner = seen.inner
    sent = {(one.protocol, one.source, one.target, one.target_port) for one in inner}
    back = {(one.protocol, one.target, one.source, one.source_port) for one in inner}
    for row in seen.truth["overlay"]:
        key = row["protocol"], row["client"], row["server"], row["port"]
        assert key in sent, row
        assert (key in back) == (row["outcome"] == "answered"), row


def check(folder: Path) -> Seen:
    seen = Seen(folder)
    check_rows(seen)
    check_nothing_else(seen)
    check_overlay(seen)
    return seen


SHORT = recordings.Recording(
    "short",
    "One of each outcome.",
    (
        *(
            "ssh-agent-to-agent",
            "supervisor-dropped",
            "supervisor-rejected",
            "supervisor-refused",
            "udp-to-6443",
        ),
        *("port-scan", "foreign-vxlan"),
    ),
)


@pytest.mark.usefixtures("machine")
def test_a_recording_shows_what_its_truth_says(tmp_path: Path) -> None:
    require_reader()
    seen = check(recordings.record(SHORT, tmp_path))
    outcomes = Counter(row["outcome"] for row in seen.truth["rows"])
    assert outcomes == {"answered": 1, "unanswered": 2, "unreachable": 2, "refused": 2}
    # and the checks can fail: a truth that says something else is not in these packets
    for row in seen.truth["rows"]:
        others = [name for name in OUTCOMES if name != row["outcome"]]
        assert not any(OUTCOMES[name](seen, row) for name in others), row
    del seen.truth["rows"][0]
    with pytest.raises(AssertionError):
        check_nothing_else(seen)


@pytest.mark.parametrize("name", recordings.RECORDINGS)
def test_a_committed_recording_shows_what_its_truth_says(name: str) -> None:
    require_reader()
    seen = check(RECORDED / name)
    assert len(seen.files) == len(recordings.RECORDINGS[name].nodes)


@pytest.mark.parametrize("name", recordings.RECORDINGS)
def test_a_committed_truth_is_what_the_tables_say(name: str) -> None:
    recording = recordings.RECORDINGS[name]
    truth = Truth(recording.variant)
    for scenario, item in scenarios.items(recording.scenarios, recording.variant, etcd=True):
        truth.add(scenario, item)
    committed = json.loads((RECORDED / name / "truth.json").read_text(encoding="utf-8"))
    assert committed == truth.seen_by(recording.nodes).document()
    assert yaml.safe_load((RECORDED / name / "cluster.yaml").read_text(encoding="utf-8")) == plan.cluster()


def test_the_recordings_are_small_and_each_has_its_readme() -> None:
    files = [path for path in RECORDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert {path.parent.name for path in files if path.name == "README.md"} == {
        RECORDED.name,
        *recordings.RECORDINGS,
        "live",
    }


def test_of_a_wireguard_pair_the_client_sent_first() -> None:
    require_reader()
    seen = Seen(RECORDED / "wireguard")
    pairs: dict[tuple[frozenset[str], int], str] = {}
    for one in seen.packets:
        if one.target_port in plan.WIREGUARD_PORTS.values():
            pairs.setdefault((frozenset(seen.ends(one)), one.target_port), seen.name(one.source))
    rows = [row for row in seen.truth["rows"] if row["protocol"] == "udp"]
    assert len(rows) == 30
    assert {(frozenset((row["client"], row["server"])), row["port"]): row["client"] for row in rows} == pairs


def test_the_open_watch_has_no_handshake() -> None:
    require_reader()
    seen = Seen(RECORDED / "open-watch")
    watch = [one for one in seen.packets if one.protocol == "tcp" and "agent-2" in seen.ends(one)]
    watch = [one for one in watch if 6443 in (one.source_port, one.target_port)]
    assert (
        len({frozenset(((one.source, one.source_port), (one.target, one.target_port))) for one in watch}) == 1
    )
    assert not any(one.opens or one.accepts for one in watch)
