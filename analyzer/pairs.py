"""Who talks to whom on which port, as a table to keep and to compare. Rule: pure; counts judged flows and
judges nothing.

One row for each client, server, protocol and port: what two runs of one cluster have in common, whatever
source ports and times their flows have. Only flows with a node at an end count (scopes ``inter-node`` and
``external``); pods' addresses change from day to day, and what they ask of each other is no matter of the
table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer.findings import MANY, MANY_CLIENTS, SCAN_PORTS
from analyzer.given import given, without_gaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: column → what it holds
COLUMNS = {
    "client": "node, or the address where it is none; `(many addresses)` for over 50 of one server's port",
    "server": "node, or the address where it is none; `(many addresses)` for over 50 of one client",
    "protocol": "as in the flow table",
    "port": "server's port, for ICMP the type; 0 for over 20 ports of one pair that no rule names, and for a "
    "port from 32768 on that may as well be the client's",
    "scope": "`inter-node` or `external`",
    "rule": "id of the rule that names the port; empty where none does",
    "verdict": "of the flows",
    "flows": "how many flows",
    "packets": "their packets, both directions",
    "bytes": "their IP bytes, both directions",
}
KEY = ("client", "server", "protocol", "port")
SCOPES = ("inter-node", "external")
ICMP = ("icmp", "icmpv6")
"""Their `port` is the type, of which 0 is one (echo reply)."""
EPHEMERAL = 32768
"""The first port that Linux gives to clients (net.ipv4.ip_local_port_range)."""

_NEEDED = (
    *("client", "client_port", "server", "server_port", "protocol", "packets_out", "packets_in"),
    *("bytes_out", "bytes_in", "direction_by", "client_node", "server_node", "scope", "rule", "verdict"),
)
_SUMS = {"flows": "sum", "packets": "sum", "bytes": "sum"}
_FIRSTS = {"scope": "first", "rule": "first", "verdict": "first"}


def pairs(judged: pd.DataFrame) -> pd.DataFrame:
    """Judged flows (:func:`analyzer.verdict.judge`) to one row for each pair and port.

    Returns a DataFrame with :data:`COLUMNS`; `port` int64, counts uint64, the others text; ordered by
    :data:`KEY`, which is unique. Raises CaptureError where a column lacks.
    """
    judged = given(judged, "pairs()", _NEEDED)
    return finished(of_part(judged))


def of_part(judged: pd.DataFrame) -> pd.DataFrame:
    """What a part that has all flows of its pairs of nodes adds, in no order; see :func:`joined`."""
    return _without_crowds(_many_ports(_grouped(_keyed(judged))))


def joined(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """What parts come to; no more than 50 addresses outside are named for one port, in parts or in all."""
    return _without_crowds(_grouped(pd.concat(list(parts), ignore_index=True)))


def finished(counted: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`pairs`."""
    table = counted.sort_values(list(KEY), ignore_index=True)[list(COLUMNS)]
    return table.astype(dict.fromkeys(_SUMS, np.uint64) | {"port": np.int64})


def _keyed(judged: pd.DataFrame) -> pd.DataFrame:
    """One row for each flow that counts, its ends as names; `…_outside`: the end is no node."""
    flows = without_gaps(judged[judged["scope"].isin(SCOPES)], ("client_node", "server_node", "rule"))
    sides = {side: _Ends(flows, side) for side in ("client", "server")}
    return pd.DataFrame(
        {
            **{side: ends.names for side, ends in sides.items()},
            **{f"{side}_outside": ends.outside for side, ends in sides.items()},
            "protocol": flows["protocol"].array,
            "port": _ports(flows),
            **{name: flows[name].array for name in _FIRSTS},
            "flows": np.ones(len(flows), np.uint64),
            **{what: _both_ways(flows, what) for what in ("packets", "bytes")},
        }
    )


class _Ends:
    """One end of each flow: names (n,), categorical; and whether it is no node, bool (n,)."""

    def __init__(self, flows: pd.DataFrame, side: str) -> None:
        nodes, addresses = (_categorical(flows[name]) for name in (f"{side}_node", side))
        texts = [*nodes.categories, *addresses.categories]
        places = {name: place for place, name in enumerate(dict.fromkeys(texts))}
        self.outside: npt.NDArray[np.bool_] = np.asarray(nodes == "")
        codes = np.where(self.outside, len(nodes.categories) + addresses.codes, nodes.codes)
        lookup = np.array([places[name] for name in texts], np.int64)
        self.names = pd.Categorical.from_codes(lookup[codes], pd.Index(list(places), dtype="str"))


def _categorical(column: pd.Series[Any]) -> pd.Categorical[Any]:
    values = column.array
    return values if isinstance(values, pd.Categorical) else pd.Categorical(column.astype(str))


def _ports(flows: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Which side of two high ports serves is a guess where no SYN was seen: such a port is not kept."""
    icmp = flows["protocol"].isin(ICMP)
    ports = flows["client_port"].where(icmp, flows["server_port"]).astype(np.int64)
    guessed = ~icmp & (ports >= EPHEMERAL) & (flows["direction_by"] == "port") & (flows["rule"] == "")
    return np.asarray(ports.where(~guessed, 0), np.int64)


def _both_ways(flows: pd.DataFrame, what: str) -> npt.NDArray[np.uint64]:
    out, back = (np.asarray(flows[f"{what}_{way}"], np.uint64) for way in ("out", "in"))
    return out + back


def _grouped(rows: pd.DataFrame) -> pd.DataFrame:
    outside: Sequence[str] = ("client_outside", "server_outside")
    how: Any = _SUMS | _FIRSTS | dict.fromkeys(outside, "first")
    table = rows.groupby(list(KEY), observed=True, sort=False).agg(how).reset_index()
    texts = ("client", "server", "protocol", *_FIRSTS)
    plain: pd.DataFrame = table.astype(dict.fromkeys(texts, object))
    return plain


def _many_ports(table: pd.DataFrame) -> pd.DataFrame:
    """A scan is one row, not a thousand."""
    unnamed = (table["rule"] == "") & ~table["protocol"].isin(ICMP)
    return _folded(table, "port", unnamed.astype(int), SCAN_PORTS, 0)


def _without_crowds(table: pd.DataFrame) -> pd.DataFrame:
    for side in ("client", "server"):
        how_many = table[f"{side}_outside"] * np.where(table[side] == MANY, MANY_CLIENTS + 1, 1)
        table = _folded(table, side, how_many, MANY_CLIENTS, MANY)
    return table


def _folded(
    table: pd.DataFrame, column: str, how_many: pd.Series[int], limit: int, stands_for_all: object
) -> pd.DataFrame:
    """Rows that differ in one column of the key alone, as one row where they stand for more than `limit`."""
    if table.empty:
        return table
    rest = [table[name] for name in KEY if name != column]
    many = (how_many > 0) & (how_many.groupby(rest).transform("sum") > limit)
    return _grouped(table.assign(**{column: table[column].where(~many, stands_for_all)}))
