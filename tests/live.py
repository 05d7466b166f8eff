"""Two hosts, the wire between them, and collectors. Rule: starts and ends things and reads the kernel's
counters; judges nothing.

The near host is the node ``server-1``, the far one ``agent-1``; each has one interface, ``eth0``. Nothing
speaks on the wire but what a test sends: no IPv6 autoconfiguration, neighbours known for good, and multicast
listener reports at once instead of spread over seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pyroute2 import NetlinkError, netns

from lab import kernel, plan
from lab.processes import Child, Children, call
from lab.topology import SYSCTLS, add_address, add_veth, index_of, remove_namespace, routes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

UPLINK = "eth0"
NEAR, FAR = {4: "10.10.0.11", 6: "fd00:10::11"}, {4: "10.10.0.21", 6: "fd00:10::21"}
MACS = {"near": "02:00:00:00:00:11", "far": "02:00:00:00:00:21"}
SWALLOWED = {4: "10.99.0.0/16", 6: "fd00:99::/64"}
READY_SECONDS, END_SECONDS = 90.0, 60.0
QUIET_SECONDS = 0.2
FIRST_WORDS_SECONDS = 1.2  # multicast listeners report once more after a second
CLUSTER: dict[str, Any] = {
    "name": "live",
    "pod_cidrs": ["10.42.0.0/16"],
    "service_cidrs": ["10.43.0.0/16"],
    "nodes": [
        {"name": "server-1", "role": "server", "addresses": list(NEAR.values())},
        {"name": "agent-1", "role": "agent", "addresses": list(FAR.values())},
    ],
}
_SILENCE = (
    *SYSCTLS,
    ("ipv6/conf/default/addr_gen_mode", 1),
    ("ipv6/conf/default/mldv2_unsolicited_report_interval", 1),
)
_STATS = tuple((way, what) for what in ("packets", "bytes", "dropped") for way in ("rx", "tx"))
_count = itertools.count()


@dataclass(frozen=True)
class Counters:
    """What an interface has carried (``ip -s link``): both ways, bytes with the Ethernet header."""

    rx_packets: int = 0
    tx_packets: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_dropped: int = 0
    tx_dropped: int = 0

    @property
    def packets(self) -> int:
        return self.rx_packets + self.tx_packets

    @property
    def bytes(self) -> int:
        return self.rx_bytes + self.tx_bytes

    def since(self, before: Counters) -> Counters:
        return Counters(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


class Wire:
    """A context manager: the two namespaces exist within it. ``folder`` gets the logs of the children.

    ``near``, ``far``: names of the namespaces. ``children``: programs in them, ended with the wire.
    """

    def __init__(self, folder: Path, *, offloads: bool = False, mtu: int = 1500) -> None:
        tag = f"{plan.PREFIX}{os.getpid()}-{next(_count)}w"
        self.near, self.far = f"{tag}-near", f"{tag}-far"
        self.folder, self.offloads, self.mtu = folder, offloads, mtu
        self.children = Children(folder)

    def __enter__(self) -> Wire:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _build(self) -> None:
        for namespace in (self.near, self.far):
            netns.create(namespace)
            with kernel.inside(namespace):
                for key, value in _SILENCE:
                    kernel.sysctl(key, value)
            with routes(namespace) as ip:
                ip.link("set", index=1, state="up")
        with routes(self.near) as ip:
            add_veth(ip, UPLINK, UPLINK, self.far, MACS["far"])
            ip.link("set", index=index_of(ip, UPLINK), address=MACS["near"])
        self._end(self.near, NEAR, FAR, MACS["far"])
        self._end(self.far, FAR, NEAR, MACS["near"])
        self.settle(quiet=FIRST_WORDS_SECONDS)

    def _end(self, namespace: str, mine: dict[int, str], theirs: dict[int, str], mac: str) -> None:
        with routes(namespace) as ip:
            if not self.offloads:
                kernel.offloads_off(UPLINK)
            index = index_of(ip, UPLINK)
            ip.link("set", index=index, mtu=self.mtu, state="up")
            add_address(ip, index, mine[4], 24)
            add_address(ip, index, mine[6], 64)
            for address in theirs.values():
                ip.neigh("replace", dst=address, lladdr=mac, ifindex=index, state="permanent")

    def _remove(self) -> None:
        self.children.kill_all()
        for namespace in (self.near, self.far):
            remove_namespace(namespace)

    def counters(self) -> Counters:
        """Of the near interface."""
        (link,) = json.loads(call(self.near, ["ip", "-s", "-j", "link", "show", "dev", UPLINK]))
        stats = link["stats64"]
        return Counters(*(stats[way][what] for way, what in _STATS))

    def settle(self, seconds: float = 20.0, quiet: float = QUIET_SECONDS) -> Counters:
        """The counters, once nothing has moved for a while. AssertionError where it does not end."""
        until, before = time.monotonic() + seconds, self.counters()
        while True:
            time.sleep(quiet)
            now = self.counters()
            if now == before:
                return now
            assert time.monotonic() < until, f"the wire does not fall silent: {now}"
            before = now

    def swallow(self) -> None:
        """What is sent to SWALLOWED is forwarded to a device that takes it in silence: no answer, no drop."""
        for namespace in (self.near, self.far):
            with routes(namespace) as ip:
                _add_hole(ip)
                index = index_of(ip, "hole")
                ip.link("set", index=index, state="up")
                for network in SWALLOWED.values():
                    ip.route("add", dst=network, oif=index, scope="link")
        self.settle(quiet=FIRST_WORDS_SECONDS)

    def write_cluster(self, folder: Path, document: dict[str, Any] | None = None) -> Path:
        file = folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(document or CLUSTER, sort_keys=False), encoding="utf-8")
        return file


def _add_hole(ip: Any) -> None:
    """Either kind frees what is sent to it as if it had been delivered (drivers/net/ifb.c, dummy.c)."""
    try:
        ip.link("add", ifname="hole", kind="ifb", txqlen=0)
    except NetlinkError:
        ip.link("add", ifname="hole", kind="dummy", txqlen=0)


class Collector:
    """A running ``rke2-flows capture`` on the near host. ``folder``: where its parts go."""

    def __init__(self, child: Child, folder: Path) -> None:
        self.child, self.folder = child, folder

    @property
    def pid(self) -> int:
        return self.child.pid

    def said(self) -> str:
        """Standard error so far; standard output too, where it is no pipe."""
        return self.child.said()

    def wait_until_said(self, text: str, seconds: float = READY_SECONDS) -> None:
        self.child.wait_for(lambda: text in self.said(), text, seconds)

    def wait_until_captures(self) -> None:
        self.wait_until_said("capturing on")

    def reload(self) -> None:
        """SIGHUP, and until it is obeyed."""
        before = self.said().count("reloaded ")
        self.child.process.send_signal(signal.SIGHUP)
        self.child.wait_for(lambda: self.said().count("reloaded ") > before, "reloaded")

    def end(self, how: signal.Signals = signal.SIGTERM, status: int = 0) -> None:
        """Asks it to end; an exit status other than the expected one is an error."""
        if self.child.alive():
            self.child.process.send_signal(how)
        found = self.child.process.wait(END_SECONDS)
        if found != status:
            raise self.child.fault(f"ended with status {found}, not {status}")

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def summary(self) -> dict[str, Any]:
        (file,) = self.folder.glob("*.summary.json")
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return document


def command(folder: Path, *words: str) -> list[str]:
    """What starts a collector on the near host."""
    return [sys.executable, "-m", "analyzer", "capture", "-i", UPLINK, "-o", str(folder), *words]


def start(
    wire: Wire,
    folder: Path,
    *words: str,
    node: str = "server-1",
    pipes: bool = False,
    wrapped: Sequence[str] = (),
) -> Collector:
    """Starts a collector and does not wait for it. With ``pipes`` its standard output is a pipe.

    ``wrapped``: words before the command, such as `unshare`.
    """
    name = f"collector-{next(_count)}"
    words = (*words, "--node", node)
    return Collector(
        wire.children.start(name, wire.near, [*wrapped, *command(folder, *words)], pipes=pipes), folder
    )


@contextmanager
def collecting(wire: Wire, folder: Path, *words: str, **how: Any) -> Iterator[Collector]:
    """A collector that captures, for the length of the block, and ends with status 0; see :func:`start`."""
    collector = start(wire, folder, *words, **how)
    collector.wait_until_captures()
    yield collector
    collector.end()


# ---- traffic ----


class Blaster:
    """Frames on the wire, by ``blast.c``. ``folder``: for the program and the frames."""

    def __init__(self, wire: Wire, folder: Path) -> None:
        self._wire, self._folder = wire, folder
        self._program = folder / "blast"
        compiler = ["cc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*compiler, "-o", self._program, Path(__file__).with_name("blast.c")], check=True)

    def save(self, frames: Iterable[bytes]) -> Path:
        """A file of frames that may be sent many times."""
        file = self._folder / f"frames-{next(_count)}"
        file.write_bytes(b"".join(struct.pack("=I", len(frame)) + frame for frame in frames))
        return file

    def start(self, namespace: str, frames: Path, count: int, rate: int = 0) -> Child:
        """Begins to send, and does not wait."""
        words = [str(self._program), UPLINK, str(frames), str(count), str(rate)]
        return self._wire.children.start(f"blast-{next(_count)}", namespace, words)

    def send(self, namespace: str, frames: Path, count: int, rate: int = 0) -> dict[str, Any]:
        """Sends and gives what the program says it did."""
        return self.sent(self.start(namespace, frames, count, rate))

    @staticmethod
    def sent(child: Child) -> dict[str, Any]:
        """Waits for a sender, and gives what it says it did."""
        if child.process.wait(120) != 0:
            raise child.fault("did not send")
        document: dict[str, Any] = json.loads(child.said())
        return document


def to_mac(frame: bytes, mac: str) -> bytes:
    """A frame as the owner of ``mac`` takes it for its own."""
    return bytes.fromhex(mac.replace(":", "")) + frame[6:]


def cpu_seconds(pid: int) -> float:
    """User and system time that a process and the children it waited for have used (proc(5))."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, text[11:15])) / os.sysconf("SC_CLK_TCK")
