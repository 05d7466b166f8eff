"""What the kernel told at once, in words. Rule: alert records, cluster and specification in, sentences out;
prints nothing and keeps no packet.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from analyzer.flows import PROTOCOLS as PROTOCOL_NAMES
from analyzer.flows import format_address
from analyzer.spec import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from analyzer.cluster import Cluster
    from analyzer.spec import Spec

#: enum alert_verdict of bpf/live.c
VERDICTS = {1: "wrong-pair", 2: "wrong-protocol", 3: "unlisted", 4: "foreign-tunnel"}
#: what is said of each; {rule} is the rule that names the port
_WORDS = {
    "wrong-pair": "rule {rule} does not allow {client_role} to {server_role}",
    "wrong-protocol": "rule {rule} has the port for another protocol",
    "unlisted": "no rule names it",
    "foreign-tunnel": "tunnel traffic from an address that is no node",
}
#: lines of one pair of nodes within so many ns, before it is called a scan
FLOOD_LINES, FLOOD_NS = 50, 60 * 10**9


@dataclass(frozen=True)
class Alert:
    """The first packet of a flow outside the specification. `time`: ns since the epoch. `client`, `server`:
    node, or address where it is none. `process`, `pid`, `pod`: of the connecting side, empty and 0 where not
    known. `packet`: the frame's first bytes, of `length`; `interface`: ifindex, `link`: link type.
    """

    time: int
    client: str
    server: str
    client_role: str
    server_role: str
    protocol: str
    port: int
    verdict: str
    rule: str
    process: str
    pid: int
    pod: str
    packet: bytes
    length: int
    interface: int
    link: int

    @property
    def fault(self) -> str:
        """What is wrong, in words."""
        return _WORDS[self.verdict].format(**self.__dict__)

    @property
    def line(self) -> str:
        r"""All of it in one line: time, client → server, protocol and port, rule broken, process. A process
        may call itself anything: what could command a terminal is written as ``\xNN``.
        """
        moment = datetime.fromtimestamp(self.time / 1e9, UTC).strftime("%H:%M:%S.%f")[:-3]
        ends = f"{_with_role(self.client, self.client_role)} → {_with_role(self.server, self.server_role)}"
        said = f"{moment} {self.verdict} {ends} {self._place()}: {self.fault}{self._who()}"
        return "".join(ch if ch.isprintable() else f"\\x{ord(ch):02x}" for ch in said)

    def _place(self) -> str:
        return (
            f"{self.protocol} type {self.port}" if "icmp" in self.protocol else f"{self.protocol}/{self.port}"
        )

    def _who(self) -> str:
        pod = f", pod {self.pod}" if self.pod else ""
        return f"; by {self.process or '?'} (pid {self.pid}{pod})" if self.pid else ""


def _with_role(name: str, role: str) -> str:
    return f"{name} ({role})" if role else name


class Reader:
    """Alert records to :class:`Alert`. `pod_of`: the pod of a cgroup id and a pid, empty where not known."""

    def __init__(self, cluster: Cluster, spec: Spec, pod_of: Callable[[int, int], str]) -> None:
        self._spec, self._pod_of = spec, pod_of
        rows = list(cluster.rows())
        self._members = {address: (name, role) for name, role, addresses in rows for address in addresses}
        compiled = spec.compile()
        self._classes = compiled.port_class, compiled.other_class
        self._named = compiled.named

    def read(self, record: NDArray[np.void], offset: int) -> Alert:
        """`record`: dtype ALERT, shape (1,). `offset`: ns to add to the kernel's clock for the epoch."""
        one: Any = record[0]
        key, owner = one["key"], one["owner"]
        ends = [format_address(key[side].tobytes()) for side in ("src", "dst")]
        client, server = reversed(ends) if one["reversed"] else ends
        (client_name, client_role), (server_name, server_role) = (
            self._members.get(end, (end, "")) for end in (client, server)
        )
        pid = int(owner["pid"])
        protocol, port = PROTOCOL_NAMES[int(key["protocol"])], int(one["port"])
        return Alert(
            time=int(one["time"]) + offset,
            client=client_name,
            server=server_name,
            client_role=client_role,
            server_role=server_role,
            protocol=protocol,
            port=port,
            verdict=VERDICTS[int(one["verdict"])],
            rule=self._rule(protocol, port),
            process=owner["process"].decode("utf-8", "replace"),
            pid=pid,
            pod=self._pod_of(int(owner["cgroup"]), pid) if pid else "",
            packet=one["bytes"].tobytes()[: int(one["captured"])],
            length=int(one["length"]),
            interface=int(key["interface"]),
            link=int(one["link"]),
        )

    def _rule(self, protocol: str, port: int) -> str:
        if protocol not in PROTOCOLS:
            return ""
        own, other = (int(table[PROTOCOLS.index(protocol), port]) for table in self._classes)
        named = int(self._named[own or other])
        return self._spec.rules[named].id if named >= 0 else ""


class Flood:
    """Keeps one client's many ports from filling the screen: a pair's lines are counted, not shown, once
    there were FLOOD_LINES of them within FLOOD_NS. Addresses that are no node's count as one client: whoever
    sends may make them up.
    """

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], deque[int]] = {}
        self.held: Counter[tuple[str, str]] = Counter()

    def shows(self, alert: Alert) -> bool:
        """Whether the alert's line is to be shown."""
        times = self._times.setdefault(_pair(alert), deque())
        while times and alert.time - times[0] > FLOOD_NS:
            times.popleft()
        if len(times) < FLOOD_LINES:
            times.append(alert.time)
            return True
        self.held[_pair(alert)] += 1
        return False

    def first(self, alert: Alert) -> bool:
        """Whether the alert just held back is its pair's first one."""
        return self.held[_pair(alert)] == 1


def _pair(alert: Alert) -> tuple[str, str]:
    return alert.client if alert.client_role else "", alert.server
