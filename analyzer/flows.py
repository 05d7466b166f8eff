"""The flow table. Rule: one-way rows to a DataFrame of flows, and back; knows no role, no rule and no file.

One row for each 5-tuple, tunnel and interval; its columns are :data:`COLUMNS`. How client and server are
told apart and what an outcome means stands in ``_pairing.py``, how a datagram with several witnesses counts
once in ``_witness.py``.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer._grouping import ADDRESS, Array, Groups, Indices, group, pack
from analyzer._pairing import DIRECTION_BY, OUTCOMES, REPLIES, Paired, ServerPorts, at, pair_rows
from analyzer._witness import stand_for, witnesses
from analyzer.facts import DROP, OWNER, TUPLE, Facts, drops_by_flow, merge_facts, owner_of, parse_drops
from analyzer.rows import (
    EVENT_CARRIER,
    EVENT_SYN,
    EVENT_SYN_ACK,
    NO_TIME,
    ROW,
    Coverage,
    Endpoint,
    Observer,
    OneWay,
    Rows,
    no_rows,
    sum_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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

_TCP, _UDP = PROTOCOL_NUMBERS["tcp"], PROTOCOL_NUMBERS["udp"]
_SYN = np.uint16(0x02)
_MAPPED = b"\0" * 10 + b"\xff\xff"
_NOWHERE = b"\0" * 16
_NOT_A_TIME = np.iinfo(np.int64).min  # NaT

Array16 = npt.NDArray[np.void]


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


def pair(
    one_way: OneWay, server_ports: ServerPorts = frozenset(), listeners: Iterable[Endpoint] = ()
) -> pd.DataFrame:
    """One-way rows of any number of observers to the flow table.

    Client and server are told apart by who opened (TCP SYN, ICMP request), else by who is known to listen
    (from `listeners`, or because it accepted another connection), else by `server_ports` (pairs of protocol
    number and port), else by the lower port; `direction_by` says which. A datagram that several observers
    saw counts once: in each interval and direction the fullest witness's counts stand. Observers whose
    captures do not overlap in time add up.

    Returns a DataFrame with :data:`COLUMNS`, sorted by start; neither it nor its order depends on the order
    of the rows.
    """
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
    return _sorted(pd.DataFrame({name: table[name] for name in COLUMNS}))


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
    # emptier ones
    inner = inner[np.lexsort((rows["packets"][inner], ~inward[inner]))]
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
        "witnesses": witnesses(rows, flow, flows, names),
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


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    """By start, and where that is equal by what tells flows apart."""
    names = ("server_port", "client_port", "server", "client", "vni", "tunnel", "protocol")
    codes = [table[n].cat.codes if table[n].dtype == "category" else table[n] for n in names]
    starts = table["start"].astype("int64")
    return table.take(np.lexsort((*codes, starts))).reset_index(drop=True)


# ---- back to one-way rows ----


def unpair(table: pd.DataFrame, coverage: Sequence[Coverage] = (), interval: int = 0) -> OneWay:
    """Takes a flow table apart into one-way rows, so that it can be merged and paired again with others.

    What :func:`pair` found out stays known: a client by its SYN keeps an opening, one by a listener makes
    the listener known; processes, pods and drops become facts again. Other witnesses than the fullest keep
    their names, with no counts. Raises KeyError where a column of :data:`COLUMNS` is missing, ValueError
    where `drops` is not as :func:`pair` writes it.
    """
    observers = tuple(Observer(name) for name in _witness_names(table))
    number = {observer.source: i for i, observer in enumerate(observers)}
    out, back = (_direction_rows(table, side, number, interval) for side in ("out", "in"))
    named = _named_witnesses(table, out, number)
    return OneWay(
        sum_rows(np.concatenate([out, back[_happened(back)], named])) if len(table) else no_rows(),
        observers,
        tuple(coverage),
        interval=interval,
        listeners=_known_listeners(table),
        facts=_facts(table, out, number),
    )


def _witness_names(table: pd.DataFrame) -> list[str]:
    sources = pd.unique(table["source"].astype(str)).tolist()
    further = [name for text in pd.unique(table["witnesses"].astype(str)) for name in text.split(";") if name]
    droppers = [name for text in table["drops"].dropna().unique() for name, _, _ in parse_drops(text)]
    return list(dict.fromkeys([*sources, *further, *droppers]))


def _codes(table: pd.DataFrame, column: str, number: dict[str, int]) -> Array:
    return table[column].astype(str).map(number).to_numpy(np.uint32)


def _addresses(column: pd.Series) -> Array16:
    """Text to 16 bytes, each distinct text once."""
    codes, texts = pd.factorize(column.astype(str))
    packed = [parse_address(text) if text else _NOWHERE for text in texts]
    return np.array(packed, ADDRESS)[codes] if len(codes) else np.zeros(0, ADDRESS)


#: where a row's two ends stand in the flow table, by the direction in which it went
_SIDES = {
    "out": {"src": "client", "dst": "server", "outer_src": "outer_client", "outer_dst": "outer_server"},
    "in": {"src": "server", "dst": "client", "outer_src": "outer_server", "outer_dst": "outer_client"},
}


def _direction_rows(table: pd.DataFrame, side: str, number: dict[str, int], interval: int) -> Rows:
    rows = np.zeros(len(table), ROW)
    for name, column in _SIDES[side].items():
        rows[name] = _addresses(table[column])
    protocol = table["protocol"].astype(str)
    rows["protocol"] = protocol.map({name: n for n, name in enumerate(PROTOCOLS)}).to_numpy(np.uint8)
    rows["tunnel"] = table["tunnel"].astype(str).map(TUNNELS.index).to_numpy(np.uint8)
    rows["vni"] = table["vni"].to_numpy()
    rows["interface"] = _codes(table, "source", number)
    for name, column in (("packets", "packets"), ("bytes", "bytes"), ("tcp_flags", "tcp_flags")):
        rows[name] = table[f"{column}_{side}"].to_numpy()
    _set_ports(rows, table, side)
    _set_times(rows, table, side, interval)
    _set_evidence(rows, table, side)
    return rows


def _set_ports(rows: Rows, table: pd.DataFrame, side: str) -> None:
    client, server = table["client_port"].to_numpy(), table["server_port"].to_numpy()
    rows["src_port"], rows["dst_port"] = (client, server) if side == "out" else (server, client)
    for protocol, replies in REPLIES.items():
        icmp = rows["protocol"] == protocol
        types = pd.Series(client[icmp]).map(
            lambda t, replies=replies: replies.get(t, t) if side == "in" else t
        )
        rows["src_port"][icmp] = types.to_numpy(np.uint16)
        rows["dst_port"][icmp] = server[icmp]


def _set_times(rows: Rows, table: pd.DataFrame, side: str, interval: int) -> None:
    """An answer is put 1 ns later than the question, so that who was heard first stays known."""
    start, end = (_ns(table[name]) for name in ("start", "end"))
    none = start == _NOT_A_TIME
    later = np.minimum(start + (side == "in"), end)
    rows["start"] = np.where(none, NO_TIME, later.astype(np.uint64))
    rows["end"] = np.where(none, 0, end).astype(np.uint64)
    rows["first_frame"] = table["first_frame"].to_numpy()
    if interval:
        rows["interval"] = np.where(none, 0, start - start % interval)


def _ns(column: pd.Series) -> npt.NDArray[np.int64]:
    return pd.DatetimeIndex(column).tz_convert("UTC").as_unit("ns").asi8


def _set_evidence(rows: Rows, table: pd.DataFrame, side: str) -> None:
    tcp, udp = rows["protocol"] == _TCP, rows["protocol"] == _UDP
    by_syn = (table["direction_by"].astype(str) == "syn").to_numpy() & tcp & ((rows["tcp_flags"] & _SYN) > 0)
    if side == "in":
        rows["events"] = np.where(by_syn, EVENT_SYN_ACK, 0)
        return
    carrier = udp & np.isin(rows["dst_port"], CARRIER_PORTS) & (table["packets_in"].to_numpy() == 0)
    rows["events"] = np.where(by_syn, EVENT_SYN, 0) | np.where(carrier, EVENT_CARRIER, 0)
    rows["unreachable"] = np.where(table["outcome"].astype(str) == "unreachable", 1, 0)


def _happened(rows: Rows) -> npt.NDArray[np.bool_]:
    happened: npt.NDArray[np.bool_] = rows["packets"] > 0
    return happened


def _named_witnesses(table: pd.DataFrame, out: Rows, number: dict[str, int]) -> Rows:
    """A row without counts for each further witness of each flow."""
    lists = [text.split(";") for text in table["witnesses"].astype(str)]
    which = np.repeat(np.arange(len(table)), [len(names) for names in lists])
    rows = out[which].copy()
    rows["interface"] = np.array([number.get(name, 0) for names in lists for name in names], np.uint32)
    for name in ("packets", "bytes", "first_frame"):
        rows[name] = 0
    further: Rows = rows[rows["interface"] != out["interface"][which]]
    return further


def _known_listeners(table: pd.DataFrame) -> frozenset[Endpoint]:
    known = table[table["direction_by"].astype(str) == "listener"]
    ends = zip(known["server"].astype(str), known["protocol"].astype(str), known["server_port"], strict=True)
    return frozenset(Endpoint(parse_address(a), PROTOCOLS.index(p), int(port)) for a, p, port in set(ends))


def _facts(table: pd.DataFrame, out: Rows, number: dict[str, int]) -> Facts:
    """`out`: the client's rows, one for each flow."""
    owned = table[["process", "pid", "pod"]].notna().any(axis=1).to_numpy() & (out["tunnel"] == 0)
    dropped = np.flatnonzero(table["drops"].notna().to_numpy() & (out["tunnel"] == 0))
    if not owned.any() and not len(dropped):
        return Facts()
    flow, drops = _dropped(table, dropped)
    texts = {name: table[name][owned].astype(object).fillna("") for name in ("process", "pod")}
    names = tuple(dict.fromkeys(["", *texts["process"], *texts["pod"], *(reason for _, reason, _ in drops)]))
    index = {name: i for i, name in enumerate(names)}
    owners = _like(out[owned], OWNER)
    owners["pid"] = table["pid"][owned].fillna(0).to_numpy(np.uint32)
    for column, values in texts.items():
        owners[column] = values.map(index).to_numpy(np.uint32)
    records = _like(out[flow], DROP)
    records["observer"] = [number[observer] for observer, _, _ in drops]
    records["reason"] = [index[reason] for _, reason, _ in drops]
    records["packets"] = [packets for _, _, packets in drops]
    for name in ("interval", "start", "end"):
        records[name] = out[name][flow]
    facts = Facts(names, owners, records)
    return merge_facts([(facts, np.arange(len(number), dtype=np.uint32))])


def _dropped(table: pd.DataFrame, flows: Indices) -> tuple[Indices, list[tuple[str, str, int]]]:
    """(observer, reason, packets) of each drop that the table tells of, and its flow."""
    parsed = [parse_drops(text) for text in table["drops"].iloc[flows]]
    return np.repeat(flows, [len(drops) for drops in parsed]), [drop for drops in parsed for drop in drops]


def _like(rows: Rows, dtype: np.dtype[np.void]) -> Rows:
    """Records of another dtype with the rows' 5-tuples."""
    records = np.zeros(len(rows), dtype)
    for name in _OPPOSITE:
        records[name] = rows[name]
    return records
