"""The flow table's columns. Rule: one-way rows to arrays, one for each column; knows no DataFrame, no role,
no rule and no file.

It imports neither pandas nor Arrow: a flow table that only goes into a file needs but one of them.
"""

from __future__ import annotations

import socket
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from analyzer._grouping import ADDRESS, Array
from analyzer._pairing import DIRECTION_BY, OUTCOMES, REPLIES, Addresses, Pairing, ServerPorts
from analyzer._witness import roles_of, witnesses
from analyzer.facts import TUPLE, drops_by_flow, owner_of
from analyzer.rows import Observer, OneWay

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from analyzer.rows import Endpoint

#: column → what it holds; the order is the table's. Text columns are categorical.
COLUMNS = {
    "source": "capture file, or node of a live capture, of the fullest witness",
    "witnesses": "names of all nodes or captures that saw it, `;` between",
    "client": "IP address, as text, of the end that initiated",
    "client_port": "0-65535; for ICMP the type",
    "server": "IP address, as text, of the end that answered",
    "server_port": "0-65535; for ICMP the code",
    "protocol": "`tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, else the IANA number",
    "tunnel": "`vxlan`, `geneve`, `gre`, `ipip`: what an inner flow was carried in; empty for others",
    "vni": "the VXLAN or Geneve network identifier, else 0",
    "outer_client": "IP address of the tunnel's end on the client's side; empty for a flow in no tunnel",
    "outer_server": "IP address of the tunnel's end on the server's side; empty for a flow in no tunnel",
    "start": "time of the first packet, UTC; missing where the capture has none",
    "end": "time of the last packet, UTC; missing where the capture has none",
    "packets_out": "packets, client to server",
    "packets_in": "packets, server to client",
    "bytes_out": "IP bytes (header and payload, not cut by the snaplen), client to server",
    "bytes_in": "IP bytes, server to client",
    "tcp_flags_out": "OR of the TCP flags that the client sent",
    "tcp_flags_in": "OR of the TCP flags that the server sent",
    "outcome": "`answered`, `refused`, `unreachable`, `unanswered`, `one-way`",
    "direction_by": "how client and server were told apart, surest first: `syn`, `listener`, `spec`, `port`",
    "first_frame": "number of its first frame in the capture, as Wireshark counts; 0 for live",
    "process": "name of the connecting process; live only",
    "pid": "its process id; live only",
    "pod": "its pod, as namespace/name; live only",
    "drops": "its packets, either way, that a node's kernel dropped: `node REASON packets`, `; ` between; "
    "live only",
}

PROTOCOL_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}
PROTOCOLS = tuple(PROTOCOL_NAMES.get(number, str(number)) for number in range(256))
TUNNELS = ("", "vxlan", "geneve", "gre", "ipip")
#: destination ports of VXLAN (IANA's, and the kernel's older default) and Geneve
CARRIER_PORTS = (4789, 6081, 8472)

_MAPPED = b"\0" * 10 + b"\xff\xff"


def format_address(address: bytes) -> str:
    """Text of a 16-byte address; IPv4 where it is ::ffff:a.b.c.d,"""
    if address[:12] == _MAPPED:
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


def parse_address(text: str) -> bytes:
    """The inverse of :func:`format_address`; OSError where the text is no address."""
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text)
    return _MAPPED + socket.inet_pton(socket.AF_INET, text)


class Text(NamedTuple):
    """A column of texts. `codes`: which of `names` each element is, -1 none."""

    codes: Array
    names: Sequence[str] | Addresses


class Masked(NamedTuple):
    """A column of numbers of which some are `missing`."""

    values: Array
    missing: Array


class Times(NamedTuple):
    """A column of times, ns since the epoch; the least int64 where there is none."""

    ns: Array


Column = Array | Text | Masked | Times


class FlowColumns:
    """All flows of one-way rows, sorted by start; what :func:`analyzer.flows.pair` tells stands there."""

    def __init__(
        self,
        one_way: OneWay,
        server_ports: ServerPorts = frozenset(),
        listeners: Iterable[Endpoint] = (),
        nodes: Collection[str] = (),
    ) -> None:
        self._one_way = one_way
        roles = roles_of(one_way.rows, one_way.observers, one_way.coverage, nodes)
        self._pairing = Pairing(one_way.rows, roles, server_ports, [*one_way.listeners, *listeners])
        self._names = [observer.name for observer in one_way.observers]

    def __len__(self) -> int:
        """How many flows there are."""
        return len(self._pairing)

    def between(self, begin: int = 0, end: int | None = None, *, in_order: bool = True) -> dict[str, Column]:
        """The columns of the flows from `begin` to `end`, in the order of :data:`COLUMNS`.

        The names of addresses are in numerical order, or in order of appearance.
        """
        flows = slice(begin, len(self) if end is None else min(end, len(self)))
        numbers, addresses = self._pairing.columns(flows.start, flows.stop, in_order=in_order)
        columns: dict[str, Column] = {
            **numbers,
            **{name: Text(numbers[name], addresses) for name in _ADDRESSES},
            **{name: Times(numbers[name]) for name in ("start", "end")},
            **{name: Text(numbers[name].view(np.int8), names) for name, names in _NAMED.items()},
            "protocol": _used(numbers["protocol"].astype(np.int16), PROTOCOLS),
            "source": _distinct(numbers["observer"], self._names),
            "witnesses": Text(self._witnesses.codes[numbers["flow"]], self._witnesses.names),
            **self._known(flows),
        }
        return {name: columns[name] for name in COLUMNS}

    @cached_property
    def _witnesses(self) -> Text:
        """By the flows' numbers."""
        if len(set(self._names)) == 1:
            return Text(np.zeros(len(self), np.int8), self._names[:1])
        flow = self._pairing.flow_of_row().astype(np.intp)
        return Text(*witnesses(self._one_way.rows["interface"], flow, len(self), self._names))

    def _known(self, flows: slice) -> dict[str, Column]:
        """Process, pid, pod and drops."""
        if not len(self._one_way.facts):
            return _nothing_known(flows.stop - flows.start)
        pid, texts = self._all_known
        known: dict[str, Column] = {name: Text(text.codes[flows], text.names) for name, text in texts.items()}
        return {**known, "pid": Masked(pid[flows], pid[flows] == 0)}

    @cached_property
    def _all_known(self) -> tuple[Array, dict[str, Text]]:
        """Of all flows the pid, 0 for none, and the texts: a drop is told of one flow among those of its
        5-tuple. Facts are about flows outside of tunnels.
        """
        facts = self._one_way.facts
        numbers, addresses = self._pairing.columns(0, len(self), in_order=False)
        plain = np.flatnonzero(numbers["tunnel"] == 0)
        ways = _both_ways({name: column[plain] for name, column in numbers.items()}, addresses)
        owner, codes = np.full(len(self), -1), np.full(len(self), -1, np.int32)
        owner[plain] = owner_of(facts, ways[0])
        nodes = [Observer(observer.source).name for observer in self._one_way.observers]
        codes[plain], texts = drops_by_flow(facts, nodes, ways, numbers["interval"][plain])
        owned = {name: _at(facts.owners[name].astype(np.int64), owner) for name in ("process", "pod")}
        named = {name: _used(number - 1, facts.names[1:]) for name, number in owned.items()}
        return _at(facts.owners["pid"].astype(np.int64), owner), {**named, "drops": Text(codes, texts)}


_ADDRESSES = ("client", "server", "outer_client", "outer_server")
_NAMED: dict[str, Sequence[str]] = {"tunnel": TUNNELS, "outcome": OUTCOMES, "direction_by": DIRECTION_BY}


def _at(values: Array, index: Array) -> Array:
    """values[index], and 0 where index is -1."""
    return np.where(index >= 0, values[index], 0) if len(values) else np.zeros(len(index), values.dtype)


def _used(codes: Array, names: Sequence[str]) -> Text:
    """Only the names that occur."""
    used = np.flatnonzero(np.bincount(codes[codes >= 0], minlength=len(names)))
    number = np.full(len(names) + 1, -1, np.int32)
    number[used] = np.arange(len(used))
    return Text(number[codes], [names[i] for i in used.tolist()])


def _distinct(codes: Array, names: Sequence[str]) -> Text:
    """Equal names under one number: two observers of one name cannot be told apart in text."""
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return Text(np.array([number[name] for name in names], np.int32)[codes], list(number))


def _nothing_known(flows: int) -> dict[str, Column]:
    nothing = Text(np.full(flows, -1, np.int8), [])
    return {
        **dict.fromkeys(("process", "pod", "drops"), nothing),
        "pid": Masked(np.zeros(flows, np.int64), np.ones(flows, bool)),
    }


def _both_ways(numbers: dict[str, Array], addresses: Addresses) -> tuple[Array, Array]:
    """The 5-tuples of each flow, shape (n,), dtype TUPLE: the client's direction and the server's. A carrier
    has no answer of its own.
    """
    packed = np.array([parse_address(text) if text else b"\0" * 16 for text in addresses.names()], ADDRESS)
    ways = [np.zeros(len(numbers["flow"]), TUPLE) for _ in range(2)]
    for way, (src, dst) in zip(ways, (("client", "server"), ("server", "client")), strict=True):
        way["src"], way["dst"] = packed[numbers[src]], packed[numbers[dst]]
        way["src_port"], way["dst_port"] = numbers[f"{src}_port"], numbers[f"{dst}_port"]
        way["protocol"] = numbers["protocol"]
    _answer_icmp(ways[1])
    carrier = numbers["carrier"] > 0
    ways[1][carrier] = ways[0][carrier]
    return ways[0], ways[1]


def _answer_icmp(back: Array) -> None:
    """Type and code stay where they are, and a request's type becomes its reply's."""
    for protocol, replies in REPLIES.items():
        icmp = back["protocol"] == protocol
        reply = np.arange(2**16, dtype=np.uint16)
        reply[list(replies)] = list(replies.values())
        back["src_port"][icmp], back["dst_port"][icmp] = reply[back["dst_port"][icmp]], back["src_port"][icmp]
