"""The flow table. Rule: one-way rows to a DataFrame of flows, and back; knows no role, no rule and no file.

One row for each 5-tuple, tunnel and interval; its columns are :data:`COLUMNS`. How client and server are
told apart and what an outcome means stands in ``_connections.h``, how a datagram with several witnesses
counts once in ``_witness.py`` and ``_flows.h``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer._grouping import ADDRESS, Array, Indices
from analyzer._pairing import REPLIES, Addresses, ServerPorts
from analyzer.columns import (
    CARRIER_PORTS,
    COLUMNS,
    PROTOCOL_NUMBERS,
    PROTOCOLS,
    TUNNELS,
    FlowColumns,
    Masked,
    Text,
    Times,
    format_address,
    parse_address,
)
from analyzer.facts import DROP, OWNER, Facts, merge_facts, parse_drops
from analyzer.given import given, without_gaps
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
    from collections.abc import Collection, Iterable, Sequence

    from analyzer.columns import Column

__all__ = [
    "CARRIER_PORTS",
    "COLUMNS",
    "PROTOCOLS",
    "PROTOCOL_NUMBERS",
    "TUNNELS",
    "format_address",
    "pair",
    "parse_address",
    "unpair",
]

_TCP, _UDP = PROTOCOL_NUMBERS["tcp"], PROTOCOL_NUMBERS["udp"]
_SYN = np.uint16(0x02)
_NOWHERE = b"\0" * 16
_NOT_A_TIME = np.iinfo(np.int64).min  # NaT

Array16 = npt.NDArray[np.void]


def pair(
    one_way: OneWay,
    server_ports: ServerPorts = frozenset(),
    listeners: Iterable[Endpoint] = (),
    nodes: Collection[str] = (),
) -> pd.DataFrame:
    """One-way rows of any number of observers to the flow table.

    Client and server are told apart by who opened (TCP SYN, ICMP request), else by who is known to listen
    (from `listeners`, or because it accepted another connection), else by `server_ports` (pairs of protocol
    number and port), else by the lower port; `direction_by` says which. A datagram that several observers
    saw counts once: in each interval and direction the fullest witness's counts stand. Observers whose
    captures do not overlap in time add up. Sources that begin with the names of two of the `nodes` are no
    parts of one rotated capture.

    Returns a DataFrame with :data:`COLUMNS`, sorted by start; neither it nor its order depends on the order
    of the rows.
    """
    return frame_of(FlowColumns(one_way, server_ports, listeners, nodes).between())


def frame_of(columns: dict[str, Column]) -> pd.DataFrame:
    """Columns as a DataFrame."""
    names: dict[int, pd.Index] = {}  # those of several columns once
    return pd.DataFrame({name: _series(column, names) for name, column in columns.items()})


def _series(column: Column, names: dict[int, pd.Index]) -> Any:
    if isinstance(column, Text):
        known = names.setdefault(id(column.names), _index(column.names))
        return pd.Categorical.from_codes(column.codes, known)
    if isinstance(column, Masked):
        return pd.arrays.IntegerArray(column.values, column.missing)
    if isinstance(column, Times):
        return pd.DatetimeIndex(column.ns.view("datetime64[ns]")).tz_localize("UTC")
    return column


def _index(names: Sequence[str] | Addresses) -> pd.Index:
    return pd.Index(names.names() if isinstance(names, Addresses) else list(names), dtype="str")


# ---- back to one-way rows ----


def unpair(table: pd.DataFrame, coverage: Sequence[Coverage] = (), interval: int = 0) -> OneWay:
    """Takes a flow table apart into one-way rows, so that it can be merged and paired again with others.

    What :func:`pair` found out stays known: a client by its SYN keeps an opening, one by a listener makes
    the listener known; processes, pods and drops become facts again. Other witnesses than the fullest keep
    their names, with no counts. Raises CaptureError where a column of :data:`COLUMNS` is missing, ValueError
    where `drops` is not as :func:`pair` writes it.
    """
    table = without_gaps(given(table, "unpair()", tuple(COLUMNS)), _TEXTS)
    observers = tuple(Observer(name) for name in _witness_names(table))
    number = {observer.source: i for i, observer in enumerate(observers)}
    out, back = (_direction_rows(table, side, number, interval) for side in ("out", "in"))
    silent = _happened(back) & ~_happened(out)  # a client of whom nothing was seen was not heard first
    told = out.copy()
    told[silent] = back[silent]
    named = _named_witnesses(table, told, number)
    return OneWay(
        sum_rows(np.concatenate([out[~silent], back[_happened(back)], named])) if len(table) else no_rows(),
        observers,
        tuple(coverage),
        interval=interval,
        listeners=_known_listeners(table),
        facts=_facts(table, out, number),
    )


_TEXTS = ("source", "witnesses", "tunnel", "outer_client", "outer_server")  # of which some may be empty


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
    later = np.minimum(start + ((side == "in") & (table["packets_out"].to_numpy() > 0)), end)
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


def _named_witnesses(table: pd.DataFrame, told: Rows, number: dict[str, int]) -> Rows:
    """A row without counts for each further witness of each flow. `told`: one row of each flow."""
    lists = [text.split(";") for text in table["witnesses"].astype(str)]
    which = np.repeat(np.arange(len(table)), [len(names) for names in lists])
    rows = told[which].copy()
    rows["interface"] = np.array([number.get(name, 0) for names in lists for name in names], np.uint32)
    for name in ("packets", "bytes", "first_frame"):
        rows[name] = 0
    further: Rows = rows[rows["interface"] != told["interface"][which]]
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
    for name in ("src", "dst", "src_port", "dst_port", "protocol"):
        records[name] = rows[name]
    return records
