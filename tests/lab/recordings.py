"""Recordings. Rule: captures what a lab does and writes it down with its truth, or writes nothing.

A capture starts before any client, and etcd starts inside it, so that every connection shows its SYN; only
what a scenario opens beforehand does not.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lab import plan, readme
from lab.cluster import Lab
from lab.errors import LabError
from lab.scenarios import BASELINE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.processes import Child
    from lab.truth import Truth

SNAPLEN = 160
EVERY_NODE = tuple(plan.NODES)


@dataclass(frozen=True)
class Tool:
    """A capture program: its command, the words that say it captures, and those that count what it lost."""

    command: tuple[str, ...]
    suffix: str
    ready: str
    lost: re.Pattern[str]
    watches: str
    format: str

    def line(self, path: str) -> list[str]:
        return [*self.command, path]


_TCPDUMP_LOST = re.compile(r"(\d+) packets? dropped by (?:kernel|interface)")
_TCPDUMP = ("tcpdump", "-n", "-s", str(SNAPLEN), "--immediate-mode", "-U", "-B", "8192", "-Z", "root")
TOOLS = {
    "uplink": Tool(
        (*_TCPDUMP, "-i", plan.UPLINK, "-w"),
        "pcap",
        "listening on",
        _TCPDUMP_LOST,
        f"the uplink `{plan.UPLINK}`",
        "pcap, microseconds, Ethernet",
    ),
    "any": Tool(
        (*_TCPDUMP, "-i", "any", "-w"),
        "pcap",
        "listening on",
        _TCPDUMP_LOST,
        "all interfaces",
        "pcap, microseconds, Linux SLL2",
    ),
    "nanoseconds": Tool(
        ("dumpcap", "-q", "-i", plan.UPLINK, "-s", str(SNAPLEN), "-B", "8", "-w"),
        "pcapng",
        "File: ",
        re.compile(r"Packets received/dropped on interface '[^']*': \d+/(\d+)"),
        f"the uplink `{plan.UPLINK}`",
        "pcapng, nanoseconds, Ethernet",
    ),
}


@dataclass(frozen=True)
class Recording:
    """A row of the table: what runs, on which nodes it is watched, and with which tool."""

    name: str
    summary: str
    scenarios: tuple[str, ...]
    variant: str = "vxlan"
    tool: str = "uplink"
    nodes: tuple[str, ...] = EVERY_NODE


OFFENCES = (
    "etcd-from-agent-answered",
    "etcd-from-agent-refused",
    "ssh-agent-to-agent",
    "apiserver-on-agent",
    "udp-to-6443",
    "port-scan",
    "outside-to-kubelet-and-etcd",
    "outside-to-apiserver-and-supervisor",
    "foreign-vxlan",
    "server-to-server-supervisor",
)
BROKEN = ("supervisor-dropped", "supervisor-lost", "supervisor-rejected", "supervisor-refused")
TABLE = (
    Recording(
        "baseline", "A healthy cluster: nothing in it is outside the table, nothing is blocked.", (BASELINE,)
    ),
    Recording("offences", "Every offence at once, beside the baseline.", (BASELINE, *OFFENCES)),
    Recording(
        "blocked",
        "Agents whose way to a supervisor is dropped, lost, rejected and refused.",
        (BASELINE, *BROKEN),
    ),
    Recording(
        "vxlan-answers-lost", "One node's VXLAN does not reach the wire.", (BASELINE, "vxlan-answers-lost")
    ),
    Recording("open-watch", "A watch that was open before the capture began.", (BASELINE, "open-watch")),
    Recording(
        "wireguard", "WireGuard between the nodes in place of VXLAN.", (BASELINE,), variant="wireguard"
    ),
    Recording(
        *("any", "All interfaces of two nodes at once: each packet of a pod is there up to four times."),
        (BASELINE, "etcd-from-agent-answered"),
        tool="any",
        nodes=("agent-1", "server-1"),
    ),
    Recording(
        *("nanoseconds", "Nanosecond time stamps, on three nodes."),
        (BASELINE, "server-to-server-supervisor"),
        tool="nanoseconds",
        nodes=("agent-2", "server-1", "server-3"),
    ),
)
RECORDINGS = {recording.name: recording for recording in TABLE}


def record(recording: Recording, out: Path) -> Path:
    """Record into ``out/<name>``, in place of what was there, and give that folder.

    Raises LabError, and leaves the old folder as it was, if the lab fails or a capture lost a packet.
    """
    folder = out / recording.name
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{recording.name}-") as work:
        fresh = Path(work, recording.name)
        fresh.mkdir(mode=0o755)
        with Lab(recording.variant) as lab:
            lab.start()
            lab.prepare(*recording.scenarios)
            with capture(lab, recording, fresh):
                truth = lab.run(*recording.scenarios)
                lab.settle()
        describe(recording, truth.seen_by(recording.nodes), fresh)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    return folder


@contextmanager
def capture(lab: Lab, recording: Recording, folder: Path) -> Iterator[None]:
    """Capture every node of a recording for the length of the block. Raises LabError for a lost packet."""
    tool = TOOLS[recording.tool]
    if shutil.which(tool.command[0]) is None:
        raise LabError(f"{tool.command[0]} is not installed")
    running = [_start_capture(lab, tool, node, folder) for node in recording.nodes]
    for child in running:
        child.wait_for(partial(_captures, child, tool), "capturing")
    yield
    lab.children.end(*running)
    for child in running:
        lost = tool.lost.findall(child.said())
        if not lost or any(map(int, lost)):
            raise child.fault("the capture lost packets, or does not say")


def _captures(child: Child, tool: Tool) -> bool:
    return tool.ready in child.said()


def _start_capture(lab: Lab, tool: Tool, node: str, folder: Path) -> Child:
    line = tool.line(str(folder / f"{node}.{tool.suffix}"))
    return lab.children.start(f"{node}-capture", lab.namespaces[node], line)


def describe(recording: Recording, truth: Truth, folder: Path) -> None:
    """Write the inventory, the truth and the README beside the captures."""
    inventory = yaml.safe_dump(plan.cluster(), sort_keys=False, default_flow_style=None, width=120)
    (folder / "cluster.yaml").write_text(inventory, encoding="utf-8")
    truth.write(folder / "truth.json")
    text = readme.folder(recording, TOOLS[recording.tool], SNAPLEN, truth)
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_overview(out: Path) -> None:
    """The README of the folder that holds the recordings."""
    (out / "README.md").write_text(readme.overview(TABLE), encoding="utf-8")
