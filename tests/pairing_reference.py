"""Pairing written once more, with NumPy and no thought of speed: what the native one is held against. Rule:
one-way rows in, flow table out; shares no code with what it checks but names, and who watched when.

A *tuple* is all rows of one direction of one 5-tuple, whoever saw them and whenever. A *connection* is a
tuple and the one that answers it. `low` and `high` name a connection's ends by the order of their addresses
and ports, until it is known who asked; of an ICMP request and its reply the lower end asks.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer._grouping import ADDRESS, Array, Groups, Indices, group, pack
from analyzer._pairing import DIRECTION_BY, OUTCOMES, REPLIES, ServerPorts
from analyzer._witness import roles_of, witnesses
from analyzer.facts import TUPLE, Facts, drops_by_flow, owner_of
from analyzer.flows import COLUMNS, PROTOCOL_NUMBERS, PROTOCOLS, TUNNELS, format_address
from analyzer.rows import (
    EVENT_CARRIER,
    EVENT_SYN,
    EVENT_SYN_ACK,
    NO_TIME,
    Coverage,
    Endpoint,
    Observer,
    OneWay,
    Rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Booleans = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.uint64]
Signs = npt.NDArray[np.int8]
Array16 = npt.NDArray[np.void]

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
_RST, _ACK = 0x04, 0x10
#: reply → request (RFC 792, 950, 4443, 4861): the two directions of one flow
_REQUESTS = {ICMP: {0: 8, 14: 13, 16: 15, 18: 17}, ICMPV6: {129: 128, 134: 133, 136: 135}}
_NO_CLIENTS = 512  # below it are no clients' ports
_UNPRIVILEGED = 1024  # the first port that anybody may take
_EPHEMERAL = 32768  # the first port that Linux gives to clients
_FRAGMENTATION_NEEDED = np.uint32(1 << 4)  # RFC 792 code 4 is path MTU discovery: the flow goes on


@dataclass
class Tuples:
    """What all rows of a tuple show together. `of_row`: tuple of each row; the rest has shape (t,).

    `protocol`, `ports`: of its key; the ports of ICMP are 0. `type`: ICMP type, replies named as their
    requests, else 0. `asks`: 1 for an ICMP request, -1 for a reply, 0 for all else.
    `reverse`: sent by the connection's higher end.
    """

    of_row: Indices
    key: Rows
    protocol: npt.NDArray[np.uint8]
    ports: dict[str, npt.NDArray[np.uint16]]
    events: Array
    flags: Array
    unreachable: Array
    packets: Array
    start: Array
    type: npt.NDArray[np.uint16]
    asks: Signs
    reverse: Booleans
    carrier: Booleans


@dataclass
class Connections:
    """`of_tuple`: connection of each tuple. `low`, `high`: tuple sent by the lower, by the higher end; -1
    none. `any`: either.
    """

    of_tuple: Indices
    low: Indices
    high: Indices
    any: Indices
    carrier: Booleans
    protocol: npt.NDArray[np.uint8]


@dataclass
class Paired:
    """The result: `connection` and `inward` (from server to client) of each row; the rest of each
    connection.
    """

    connection: Indices
    inward: Booleans
    client: Indices  # tuple that the client sent, -1 none
    server: Indices
    outcome: npt.NDArray[np.intp]  # index into OUTCOMES
    direction_by: npt.NDArray[np.intp]  # index into DIRECTION_BY
    tuples: Tuples
    carrier: Booleans


def pair_rows(rows: Rows, server_ports: ServerPorts, listeners: Iterable[Endpoint]) -> Paired:
    """Finds connections among one-way rows and tells their clients from their servers."""
    tuples = _tuples(rows)
    c = _connections(tuples, rows)
    low_asks, by = _directions(tuples, c, server_ports, listeners)
    client, server = np.where(low_asks, c.low, c.high), np.where(low_asks, c.high, c.low)
    inward = (tuples.reverse == low_asks[c.of_tuple])[tuples.of_row]
    outcome = _outcomes(tuples, c, client, server)
    return Paired(c.of_tuple[tuples.of_row], inward, client, server, outcome, by, tuples, c.carrier)


# ---- tuples ----


def _tuples(rows: Rows) -> Tuples:
    names = ("src", "dst", "src_port", "dst_port", "vni", "protocol", "tunnel")
    numbers, first = group(pack(*(rows[name] for name in names)))
    groups = Groups(numbers, len(first))
    key = rows[first] if len(first) < len(rows) else rows
    protocol = np.ascontiguousarray(key["protocol"])
    ports = {side: _port(key, protocol, side) for side in ("src", "dst")}
    type_, asks = _request_types(key, protocol)
    events = groups.reduce(np.bitwise_or, rows["events"])
    carrier = (events & np.uint8(EVENT_CARRIER)) > 0
    return Tuples(
        numbers,
        key,
        protocol,
        ports,
        events,
        groups.reduce(np.bitwise_or, rows["tcp_flags"]),
        groups.reduce(np.bitwise_or, rows["unreachable"]),
        groups.reduce(np.add, rows["packets"]),
        groups.reduce(np.minimum, rows["start"]),
        type_,
        asks,
        np.where(asks, asks < 0, _less(_end(key, ports, "dst"), _end(key, ports, "src"))) & ~carrier,
        carrier,
    )


def _request_types(key: Rows, protocol: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint16], Signs]:
    types, asks = np.zeros(len(key), np.uint16), np.zeros(len(key), np.int8)
    for number, requests in _REQUESTS.items():
        mine = np.flatnonzero(protocol == number)
        said = key["src_port"][mine]
        types[mine] = said
        for reply, request in requests.items():
            asks[mine[said == request]] = 1
            asks[mine[said == reply]] = -1
            types[mine[said == reply]] = request
    return types, asks


def _is_icmp(protocol: Array) -> Booleans:
    icmp: Booleans = (protocol == ICMP) | (protocol == ICMPV6)
    return icmp


def _port(key: Rows, protocol: npt.NDArray[np.uint8], side: str) -> npt.NDArray[np.uint16]:
    """The port of a side; ICMP has none."""
    return np.where(_is_icmp(protocol), np.uint16(0), key[f"{side}_port"])


def _end(key: Rows, ports: dict[str, npt.NDArray[np.uint16]], side: str) -> tuple[Array, ...]:
    halves = np.ascontiguousarray(key[side]).view(">u8").reshape(-1, 2).astype(np.uint64)
    return halves[:, 0], halves[:, 1], ports[side]


def _less(a: tuple[Array, ...], b: tuple[Array, ...]) -> Booleans:
    """Whether a < b, lexicographically, elementwise."""
    result = np.zeros(len(a[0]), bool)
    for left, right in zip(reversed(a), reversed(b), strict=True):
        result = (left < right) | ((left == right) & result)
    return result


# ---- connections ----


def _connections(t: Tuples, rows: Rows) -> Connections:
    icmp = _is_icmp(t.protocol)
    ends = [(np.where(t.reverse, t.key[b], t.key[a])) for a, b in (("src", "dst"), ("dst", "src"))]
    ports = [np.where(t.reverse, t.ports[b], t.ports[a]) for a, b in (("src", "dst"), ("dst", "src"))]
    code = np.where(icmp, t.key["dst_port"], 0).astype(np.uint16)
    plain = pack(*ends, *ports, t.type, code, t.protocol, t.carrier.view(np.uint8))
    numbers, first = group(np.concatenate([plain, pack(t.key["vni"], t.key["tunnel"])], axis=1))
    numbers, first = _join_halves(numbers, first, plain, t)
    apart = _is_tunnel_end(rows, *ends)[first]
    of_tuple = _fold_plain(plain[first], t.key["tunnel"][first] > 0, apart)[numbers]
    low, high = (_sent_by(of_tuple, t, reverse, len(first)) for reverse in (False, True))
    either = np.where(low >= 0, low, high)
    return Connections(of_tuple, low, high, either, t.carrier[either], t.protocol[either])


def _join_halves(
    numbers: Indices, first: Indices, plain: npt.NDArray[np.uint8], t: Tuples
) -> tuple[Indices, Indices]:
    """Connections in one kind of tunnel with the same ends, of which one end sent under one VNI and the other
    under another, and no more than these: one connection. What ICMP quoted under a further one is of it, or
    of the only one that there is.
    """
    sides, into = np.zeros(len(first), np.uint8), np.arange(len(first))
    quote = (t.packets == 0) & (t.unreachable > 0)
    np.bitwise_or.at(sides, numbers, np.where(quote, 0, np.where(t.reverse, 2, 1)).astype(np.uint8))
    tunnel = t.key["tunnel"][first]
    families = group(np.concatenate([plain[first], pack(tunnel)], axis=1))[0]
    for family in np.unique(families[tunnel > 0]):
        mine = np.flatnonzero(families == family)
        sent = sorted(side for side in sides[mine].tolist() if side)
        if sent == [1, 2] or len(sent) == 1:
            into[mine] = mine.min()
    _, joined, of_tuple = np.unique(into[numbers], return_index=True, return_inverse=True)
    return of_tuple, joined


def _is_tunnel_end(rows: Rows, low: Array, high: Array) -> Booleans:
    """Whether either end of each tuple is an end of some tunnel, so a node rather than a pod."""
    outer = [rows[name][rows["tunnel"] > 0] for name in ("outer_src", "outer_dst")]
    numbers, first = group(pack(np.concatenate([low, high, *outer])))
    carries = np.zeros(len(first), bool)
    carries[numbers[2 * len(low) :]] = True
    ends: Booleans = carries[numbers[: len(low)]] | carries[numbers[len(low) : 2 * len(low)]]
    return ends


def _fold_plain(plain: npt.NDArray[np.uint8], tunnelled: Booleans, apart: Booleans) -> Indices:
    """The connection that each one is part of: one that was also seen inside exactly one tunnel is that
    inner flow, seen outside of it (`-i any` shows a pod's datagram on its veth, on the bridge, and in its
    carrier). Not so one of a tunnel's own end: who sends a forged inner packet must not hide a flow of nodes.
    """
    stand_in = np.arange(len(plain))
    if not tunnelled.any():
        return stand_in
    numbers, first = group(plain)
    times = np.bincount(numbers, tunnelled, minlength=len(first))
    inner = np.zeros(len(first), np.intp)
    inner[numbers[tunnelled]] = np.flatnonzero(tunnelled)
    folded = ~tunnelled & ~apart & (times[numbers] == 1)
    stand_in[folded] = inner[numbers[folded]]
    return stand_in


def _sent_by(of_tuple: Indices, t: Tuples, reverse: bool, count: int) -> Indices:
    """The tuple of each connection that the lower (or the higher) end sent; inside the tunnel rather than
    outside of it, sent rather than quoted.
    """
    sent = np.full(count, -1)
    mine = np.flatnonzero(t.reverse == reverse)
    for tuple_ in mine[
        np.lexsort((-t.key["vni"][mine].astype(int), t.packets[mine] > 0, t.key["tunnel"][mine] > 0))
    ]:
        sent[of_tuple[tuple_]] = tuple_
    return sent


def at(values: Array, index: Indices, missing: int = 0) -> Array:
    """values[index], and `missing` where index is -1."""
    if not len(values):
        return np.full(len(index), missing, values.dtype)
    return np.where(index >= 0, values[index], values.dtype.type(missing))


# ---- direction ----


def _prefer(low: Array, high: Array) -> Signs:
    """1 where only the lower end has the mark, -1 where only the higher one, 0 where it tells nothing."""
    return low.astype(np.int8) - high.astype(np.int8)


def _directions(
    t: Tuples, c: Connections, named: ServerPorts, listeners: Iterable[Endpoint]
) -> tuple[Booleans, npt.NDArray[np.intp]]:
    """Whether the lower end is the client, and which evidence said so."""
    ports = _ports(t, c)
    spec = [_is_named(port, c.protocol, named) for port in ports]
    says = np.stack(
        [
            _by_opening(t, c),
            _by_group(t, c),
            _by_listener(t, c, ports, listeners),
            np.where(_by_chance(t, c, ports, spec), 0, _prefer(spec[1], spec[0])),
            _by_port(t, c, ports),
        ]
    )
    first = np.argmax(says != 0, axis=0)
    low_asks = np.take_along_axis(says, first[None], axis=0)[0] > 0
    by = np.array([DIRECTION_BY.index(name) for name in ("syn", "port", "listener", "spec", "port")])[first]
    # a carrier's client is its sender: its source port is a hash and tells nothing
    by = np.where(c.carrier, np.where(spec[1], DIRECTION_BY.index("spec"), DIRECTION_BY.index("port")), by)
    return low_asks | c.carrier, by


def _ports(t: Tuples, c: Connections) -> tuple[Array, Array]:
    src, dst = t.ports["src"][c.any], t.ports["dst"][c.any]
    return np.where(c.low >= 0, src, dst), np.where(c.low >= 0, dst, src)


def _by_opening(t: Tuples, c: Connections) -> Signs:
    """A SYN or an ICMP request is sent by the client, a SYN-ACK or a reply by the server."""
    opens = ((t.events & np.uint8(EVENT_SYN)) > 0) | (t.asks > 0)
    accepts = ((t.events & np.uint8(EVENT_SYN_ACK)) > 0) | (t.asks < 0)
    opened = _prefer(at(opens, c.low), at(opens, c.high))
    return np.where(opened != 0, opened, _prefer(at(accepts, c.high), at(accepts, c.low))).astype(np.int8)


def _by_group(t: Tuples, c: Connections) -> Signs:
    """Nobody sends from a multicast or the broadcast address."""
    src, dst = t.key["src"][c.any], t.key["dst"][c.any]
    low, high = np.where(c.low >= 0, src, dst), np.where(c.low >= 0, dst, src)
    return _prefer(_is_group(high), _is_group(low))


def _is_group(addresses: Array) -> Booleans:
    texts = [ipaddress.IPv6Address(address.tobytes()) for address in addresses]
    known = [address.ipv4_mapped or address for address in texts]
    return np.array([a.is_multicast or str(a) == "255.255.255.255" for a in known], bool)


def _by_listener(t: Tuples, c: Connections, ports: tuple[Array, Array], known: Iterable[Endpoint]) -> Signs:
    """Who is known to listen, or accepted another connection on the same address and port, is the server."""
    extra = list(known)
    src, dst = t.key["src"][c.any], t.key["dst"][c.any]
    low, high = np.where(c.low >= 0, src, dst), np.where(c.low >= 0, dst, src)
    address = np.concatenate([low, high, np.array([e.address for e in extra], ADDRESS)])
    port = np.concatenate([*ports, np.array([e.port for e in extra], np.uint16)]).astype(np.uint16)
    protocol = np.concatenate([c.protocol, c.protocol, np.array([e.protocol for e in extra], np.uint8)])
    numbers, first = group(pack(address, port, protocol))
    n = len(c.protocol)
    accepts = (t.events & np.uint8(EVENT_SYN_ACK)) > 0
    listens = np.zeros(len(first), bool)
    for mine, sent in ((numbers[:n], c.low), (numbers[n : 2 * n], c.high)):
        listens[mine[at(accepts, sent).astype(bool)]] = True
    listens[numbers[2 * n :]] = True
    return _prefer(listens[numbers[n : 2 * n]], listens[numbers[:n]])


def _is_named(port: Array, protocol: npt.NDArray[np.uint8], named: ServerPorts) -> Booleans:
    table = np.zeros((256, 65536), bool)
    for number, named_port in named:
        table[number, named_port] = True
    result: Booleans = table[protocol, port]
    return result


def _by_chance(t: Tuples, c: Connections, ports: tuple[Array, Array], spec: list[Booleans]) -> Booleans:
    """A named port of UDP that is ephemeral beside one that is not, or unprivileged beside one that is not,
    and was heard first: a client's. Of others an unprivileged one beside one that no client has.
    """
    starts = [at(t.start, end, int(NO_TIME)) for end in (c.low, c.high)]
    ways = [
        spec[i]
        & ~spec[1 - i]
        & (
            ((ports[i] >= _EPHEMERAL) & (ports[1 - i] < _EPHEMERAL))
            | ((ports[i] >= _UNPRIVILEGED) & (ports[1 - i] < _UNPRIVILEGED))
        )
        & (starts[i] < starts[1 - i])
        for i in (0, 1)
    ]
    given = [
        spec[i] & ~spec[1 - i] & (ports[i] >= _UNPRIVILEGED) & (ports[1 - i] < _NO_CLIENTS) for i in (0, 1)
    ]
    return np.where(c.protocol == UDP, ways[0] | ways[1], given[0] | given[1])


def _by_port(t: Tuples, c: Connections, ports: tuple[Array, Array]) -> Signs:
    """The lower port answers; with equal ports, who was heard first asked. Never 0: the last resort
    decides.
    """
    low, high = (p.astype(np.int32) for p in ports)
    first = at(t.start, c.low, int(NO_TIME)) <= at(t.start, c.high, int(NO_TIME))
    return np.where(low == high, np.where(first, 1, -1), np.where(low > high, 1, -1)).astype(np.int8)


# ---- outcome ----


def _outcomes(t: Tuples, c: Connections, client: Indices, server: Indices) -> npt.NDArray[np.intp]:
    """Index into OUTCOMES. The cases are tried in the order written; the first that holds stands."""
    asked, replied = at(t.packets, client) > 0, at(t.packets, server) > 0
    opened = (((at(t.events, client) & np.uint8(EVENT_SYN)) > 0) | (at(t.asks, client) > 0)) & asked
    tcp_or_icmp = (c.protocol == TCP) | _is_icmp(c.protocol)
    cases = (
        (_carrier_answered(t, c), "answered"),
        (asked & replied & opened & _only_reset(t, c, server), "refused"),
        (asked & replied, "answered"),
        (~replied & _quoted(t, c, client), "unreachable"),
        (~replied & _acknowledges(t, c, client), "one-way"),
        (opened | (asked & (~tcp_or_icmp & np.isin(c.protocol, (UDP, SCTP)))), "unanswered"),
    )
    numbers = [OUTCOMES.index(name) for _, name in cases]
    return np.select([case for case, _ in cases], numbers, OUTCOMES.index("one-way"))


def _only_reset(t: Tuples, c: Connections, server: Indices) -> Booleans:
    """The server sent resets and nothing else."""
    flags = at(t.flags, server)
    reset = ((flags & np.uint16(_RST)) > 0) & ((flags & ~np.uint16(_RST | _ACK)) == 0)
    only: Booleans = (c.protocol == TCP) & reset
    return only


def _acknowledges(t: Tuples, c: Connections, client: Indices) -> Booleans:
    """The client acknowledged what the capture does not hold: it was answered out of sight."""
    acknowledges: Booleans = (c.protocol == TCP) & ((at(t.flags, client) & np.uint16(_ACK)) > 0)
    return acknowledges


def _quoted(t: Tuples, c: Connections, client: Indices) -> Booleans:
    """An ICMP destination-unreachable quoted what the client sent."""
    said = np.zeros((len(client), 2), np.uint32)
    np.bitwise_or.at(said, (c.of_tuple, t.reverse.astype(np.intp)), t.unreachable)
    sent = np.flatnonzero(client >= 0)
    quoted = np.zeros(len(client), bool)
    quoted[sent] = (said[sent, t.reverse[client[sent]].astype(np.intp)] & ~_FRAGMENTATION_NEEDED) > 0
    return quoted


def _carrier_answered(t: Tuples, c: Connections) -> Booleans:
    """The other end sent carriers too: judged by address pair and destination port, since the source port is
    a hash.
    """
    carriers = np.flatnonzero(c.carrier)
    key = t.key[c.any[carriers]]
    there, back = (pack(key[a], key[b], key["dst_port"]) for a, b in (("src", "dst"), ("dst", "src")))
    numbers, first = group(np.concatenate([there, back]))
    sent = np.zeros(len(first), bool)
    sent[numbers[: len(key)]] = True
    answered = np.zeros(len(c.carrier), bool)
    answered[carriers] = sent[numbers[len(key) :]]
    return answered


# ---- the fullest witness ----

_TOP = np.uint64(2**63)


@dataclass
class Fullest:
    """What stands for each flow. `packets`, `octets`: shape (flows, 2), out and in. The rest has shape
    (flows,).
    """

    packets: Counts
    octets: Counts
    observer: Indices
    first_frame: Counts


def stand_for(
    rows: Rows,
    observers: Sequence[Observer],
    flow: Indices,
    inward: Booleans,
    flows: int,
    coverage: Sequence[Coverage] = (),
) -> Fullest:
    """The fullest witness's counts for each flow and direction, and who it was."""
    turn, chain, window = (of[rows["interface"]] for of in roles_of(rows, observers, coverage))
    order = np.argsort(roles_of(rows, observers, coverage)[0])
    # the same datagram inside and outside of a tunnel, or coming in and going out, was seen twice by one
    # observer
    unit = (chain * 4 + rows["direction"]) * 2 + (rows["tunnel"] > 0)
    first, packets, octets, turn = _unit_sums(rows, flow, inward, unit, turn)
    way = flow[first] * 2 + inward[first]
    apart = _clusters(way, unit[first], window[first], packets)
    best = _first_of(apart, (_TOP - packets, _TOP - octets, turn, unit[first]))
    totals = np.zeros((2, flows * 2), np.uint64)
    np.add.at(totals[0], way[best], packets[best])
    np.add.at(totals[1], way[best], octets[best])
    lead = best[_first_of(flow[first[best]], (_TOP - packets[best], turn[best]))]
    observer = order[turn[lead]]
    return Fullest(
        totals[0].reshape(-1, 2), totals[1].reshape(-1, 2), observer, _first_frames(rows, flow, observer)
    )


def _clusters(way: Indices, unit: Indices, window: Counts, packets: Counts) -> Indices:
    """Number of each sum's cluster: those of one flow and direction that watched together, directly or
    through others that counted any.
    """
    cluster = np.zeros(len(way), np.intp)
    before, reached, number = (-1, -1), 0, -1
    for n in np.lexsort((unit, window[:, 0], way)).tolist():
        begin, end = window[n].tolist()
        chain = int(way[n]), int(unit[n]) // 8
        if chain != before and (chain[0] != before[0] or begin > reached):
            reached, number = 0, number + 1
        before, cluster[n] = chain, number
        reached = max(reached, end if packets[n] else 0)
    return cluster


def _unit_sums(
    rows: Rows, flow: Indices, inward: Booleans, unit: Indices, turn: Indices
) -> tuple[Indices, Counts, Counts, Indices]:
    """Rows of one flow, direction and unit of observation added up: first row of each sum, packets, bytes,
    least turn of those that counted any.
    """
    numbers, first = group(pack(flow, unit, inward))
    groups = Groups(numbers, len(first))
    sums = [groups.reduce(np.add, rows[name]).astype(np.uint64) for name in ("packets", "bytes")]
    many = int(turn.max(initial=0)) + 1
    named = groups.reduce(np.minimum, turn + many * (rows["packets"] == 0)) % many
    return first, sums[0], sums[1], named


def _first_of(key: Indices, rank: tuple[Array, ...]) -> Indices:
    """Of each distinct key the element that comes first by rank, in the order of the keys. `key`: none
    negative, and not much greater than there are elements.
    """
    left = np.arange(len(key))
    for values in rank:
        least = np.full(int(key.max(initial=-1)) + 1, np.iinfo(values.dtype).max, values.dtype)
        np.minimum.at(least, key[left], values[left])
        left = left[values[left] == least[key[left]]]
    place = np.full(int(key.max(initial=-1)) + 1, -1)
    place[key[left[::-1]]] = left[::-1]
    return place[place >= 0]


def _first_frames(rows: Rows, flow: Indices, observer: Indices) -> Counts:
    frames = np.full(len(observer), _TOP, np.uint64)
    mine = (rows["interface"] == observer[flow]) & (rows["first_frame"] > 0)
    np.minimum.at(frames, flow[mine], rows["first_frame"][mine])
    frames[frames == _TOP] = 0
    return frames


# ---- flows ----

_NOT_A_TIME = np.iinfo(np.int64).min  # NaT


def pair(
    one_way: OneWay, server_ports: ServerPorts = frozenset(), listeners: Iterable[Endpoint] = ()
) -> pd.DataFrame:
    """What analyzer.flows.pair tells."""
    rows = one_way.rows
    paired = pair_rows(rows, server_ports, [*one_way.listeners, *listeners])
    flow, first = group(pack(paired.connection, rows["interval"]))
    connection = paired.connection[first]
    table = (
        _ends(rows, paired, flow, connection, len(first))
        | _when(rows, flow, len(first))
        | _how_much(one_way, paired, flow, len(first))
        | {
            "outcome": _categorical(paired.outcome[connection], OUTCOMES),
            "direction_by": _categorical(paired.direction_by[connection], DIRECTION_BY),
        }
        | _known(one_way, paired, connection, rows["interval"][first])
    )
    apart = paired.carrier[connection], rows["interval"][first]
    return _sorted(pd.DataFrame({name: table[name] for name in COLUMNS}), *apart)


def _named(observer: Indices, names: Sequence[str]) -> pd.Categorical:
    """The observers' names; two of one name cannot be told apart in text."""
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return _categorical(np.array([number[name] for name in names], np.intp)[observer], list(number))


def _categorical(codes: Array, names: Sequence[str]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, pd.Index(list(names), dtype="str"))


def _ends(rows: Rows, paired: Paired, flow: Indices, connection: Indices, flows: int) -> dict[str, Any]:
    key, client = paired.tuples.key, paired.client[connection]
    asked = client >= 0
    one = np.where(asked, client, paired.server[connection])
    icmp = np.isin(key["protocol"][one], (PROTOCOL_NUMBERS["icmp"], PROTOCOL_NUMBERS["icmpv6"]))
    pairs = [np.where(asked, key[a][one], key[b][one]) for a, b in (("src", "dst"), ("dst", "src"))]
    client_port = np.where(asked, key["src_port"][one], key["dst_port"][one])
    server_port = np.where(asked | icmp, key["dst_port"][one], key["src_port"][one])
    texts = _address_texts(pairs, _outer_ends(rows, paired.inward, flow, flows))
    return {
        **dict(zip(("client", "server", "outer_client", "outer_server"), texts, strict=True)),
        "client_port": np.where(icmp, paired.tuples.type[one], client_port).astype(np.uint16),
        "server_port": server_port.astype(np.uint16),
        "protocol": _categorical(key["protocol"][one].astype(np.int16), PROTOCOLS).remove_unused_categories(),
        "tunnel": _categorical(key["tunnel"][one].astype(np.int8), TUNNELS),
        "vni": key["vni"][one],
    }


def _outer_ends(rows: Rows, inward: npt.NDArray[np.bool_], flow: Indices, flows: int) -> list[Array16]:
    """The tunnel's ends as its fullest row has them, the client's side first; zero for a flow in no
    tunnel.
    """
    ends = [np.zeros(flows, rows["src"].dtype) for _ in range(2)]
    inner = np.flatnonzero(rows["tunnel"] > 0)
    # the last assignment stands: rows of the client's own direction after the others, fuller ones after
    # emptier ones, greater addresses after lesser ones
    halves = (
        np.ascontiguousarray(pack(rows["outer_src"], rows["outer_dst"])[inner]).view(">u8").reshape(-1, 4)
    )
    inner = inner[np.lexsort((*halves.T[::-1], rows["packets"][inner], ~inward[inner]))]
    for end, (there, back) in zip(
        ends, (("outer_src", "outer_dst"), ("outer_dst", "outer_src")), strict=True
    ):
        end[flow[inner]] = np.where(inward[inner], rows[back][inner], rows[there][inner])
    return ends


def _address_texts(ends: Sequence[Array16], outer: Sequence[Array16]) -> list[pd.Categorical]:
    """Both as text, all with the same categories: empty, then the addresses in numerical order. An outer end
    of zero is empty.
    """
    values = np.concatenate([*ends, *outer])
    numbers, first = group(pack(values))
    halves = values[first].view(">u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    code = np.empty(len(order), np.int32)
    code[order] = np.arange(1, len(order) + 1)
    names = ["", *(format_address(a.tobytes()) for a in values[first[order]])]
    codes = np.split(code[numbers], len(ends) + len(outer))
    for column, none in zip(codes[len(ends) :], (_is_zero(end) for end in outer), strict=True):
        column[none] = 0
    return [_categorical(column, names) for column in codes]


def _is_zero(addresses: Array16) -> npt.NDArray[np.bool_]:
    some: npt.NDArray[np.bool_] = addresses.view(np.uint64).reshape(-1, 2).max(axis=1) > 0
    return ~some


def _when(rows: Rows, flow: Indices, flows: int) -> dict[str, pd.DatetimeIndex]:
    groups = Groups(flow, flows)
    start = groups.reduce(np.minimum, rows["start"])
    none = start == NO_TIME
    times = {"start": start, "end": groups.reduce(np.maximum, rows["end"])}
    return {
        name: _datetimes(np.where(none, _NOT_A_TIME, value.astype(np.int64))) for name, value in times.items()
    }


def _datetimes(ns: npt.NDArray[np.int64]) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(ns.view("datetime64[ns]")).tz_localize("UTC")


def _how_much(one_way: OneWay, paired: Paired, flow: Indices, flows: int) -> dict[str, object]:
    rows, inward = one_way.rows, paired.inward
    names = [observer.name for observer in one_way.observers]
    fullest = stand_for(rows, one_way.observers, flow, inward, flows, one_way.coverage)
    flags = np.zeros(flows * 2, np.uint16)
    np.bitwise_or.at(flags, flow * 2 + inward, rows["tcp_flags"])
    return {
        "source": _named(fullest.observer, names),
        "witnesses": _categorical(*witnesses(rows["interface"], flow, flows, names)),
        "first_frame": fullest.first_frame,
        "packets_out": fullest.packets[:, 0],
        "packets_in": fullest.packets[:, 1],
        "bytes_out": fullest.octets[:, 0],
        "bytes_in": fullest.octets[:, 1],
        "tcp_flags_out": flags[0::2],
        "tcp_flags_in": flags[1::2],
    }


# ---- what nodes know beside packets ----


def _known(one_way: OneWay, paired: Paired, connection: Indices, interval: Array) -> dict[str, object]:
    """Process, pid, pod and drops of each flow; facts are about flows outside of tunnels."""
    facts, count = one_way.facts, len(connection)
    owner, codes, texts = np.full(count, -1), np.full(count, -1, np.int32), list[str]()
    if len(facts):
        plain = np.flatnonzero(paired.tuples.key["tunnel"][_either(paired)[connection]] == 0)
        ways = _both_ways(paired, connection[plain])
        owner[plain] = owner_of(facts, ways[0])
        nodes = [Observer(observer.source).name for observer in one_way.observers]
        codes[plain], texts = drops_by_flow(facts, nodes, ways, interval[plain])
    return _owners(facts, owner) | {"drops": _categorical(codes, texts)}


def _owners(facts: Facts, owner: Indices) -> dict[str, object]:
    """`owner`: index into the facts' owners, -1 for none."""
    names = {
        column: _categorical(at(facts.owners[column].astype(np.int64), owner) - 1, facts.names[1:])
        for column in ("process", "pod")
    }
    pid = at(facts.owners["pid"].astype(np.int64), owner)
    return {
        **{column: codes.remove_unused_categories() for column, codes in names.items()},
        "pid": pd.arrays.IntegerArray(pid, pid == 0),
    }


def _either(paired: Paired) -> Indices:
    return np.where(paired.client >= 0, paired.client, paired.server)


_OPPOSITE = {
    "src": "dst",
    "dst": "src",
    "src_port": "dst_port",
    "dst_port": "src_port",
    "protocol": "protocol",
}


def _both_ways(paired: Paired, connection: Indices) -> tuple[Rows, Rows]:
    """The 5-tuples of each connection, shape (n,), dtype TUPLE: the client's direction and the server's. A
    carrier has no answer of its own.
    """
    key = paired.tuples.key
    one, asked = key[_either(paired)[connection]], paired.client[connection] >= 0
    same, turned = np.zeros(len(one), TUPLE), np.zeros(len(one), TUPLE)
    for name, opposite in _OPPOSITE.items():
        same[name], turned[name] = one[name], one[opposite]
    _turn_icmp(turned)
    turned[paired.carrier[connection]] = same[paired.carrier[connection]]
    return np.where(asked, same, turned), np.where(asked, turned, same)


def _turn_icmp(turned: Rows) -> None:
    """Type and code stay where they are, and a request's type becomes its reply's, or the other way round."""
    for protocol, replies in REPLIES.items():
        icmp = turned["protocol"] == protocol
        kind, code = turned["dst_port"][icmp], turned["src_port"][icmp]
        other = np.arange(2**16, dtype=np.uint16)
        for request, reply in replies.items():
            other[[request, reply]] = reply, request
        turned["src_port"][icmp], turned["dst_port"][icmp] = other[kind], code


def _sorted(table: pd.DataFrame, carrier: Booleans, interval: Counts) -> pd.DataFrame:
    """By start, and where that is equal by what tells flows apart."""
    names = ("server_port", "client_port", "server", "client", "vni", "tunnel", "protocol")
    codes = [table[n].cat.codes if table[n].dtype == "category" else table[n] for n in names]
    starts = table["start"].astype("int64")
    return table.take(np.lexsort((carrier, interval, *codes, starts))).reset_index(drop=True)
