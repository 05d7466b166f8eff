"""A finding → the flows it stands for, the rules that it is about, and where to see it. Rule: pure; looks up
what ``find()`` decided, decides nothing again.

Which flows a finding counts :func:`analyzer.findings.members` says; :class:`Evidence` keeps those, by time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analyzer.findings import FlowColumns, members
from analyzer.given import without_gaps
from analyzer.listeners import remark
from analyzer.spec import LAST_PORT, PORTED, PROTOCOLS, Rule, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from analyzer.analysis import Analysis

FIRST = 3
_KEY = ["from", "to", "protocol", "port"]
Rows = npt.NDArray[np.intp]
Ends = tuple[str, str, str, int]


class Evidence:
    """The flows behind findings.

    ``judged``: a judged flow table; ``counted``: the positions in it of each finding's flows, by the
    finding's id. ``flows`` are those that a finding counts, by start, with ``from`` and ``to`` (node, or
    address where it is none) and ``port`` (for ICMP the type) added. Rows are positions in ``flows``.
    """

    def __init__(self, judged: pd.DataFrame, counted: Mapping[str, Rows]) -> None:
        kept = _by_start(judged, counted)
        self.flows = _with_ends(judged.iloc[kept])
        self._column: dict[str, npt.NDArray[Any]] = {
            name: self.flows[name].to_numpy() for name in (*_KEY, *_TEXTS, "first_frame")
        }
        place = np.zeros(len(judged), np.intp)
        place[kept] = np.arange(len(kept))
        self._rows = {finding: np.sort(place[rows]) for finding, rows in counted.items()}

    @classmethod
    def of(cls, analysis: Analysis) -> Evidence:
        """Of all findings of an analysis."""
        known = (analysis.flows, analysis.cluster, analysis.spec, analysis.coverage)
        remarks = remark(*known, analysis.sockets) if analysis.sockets else ()
        return cls(analysis.flows, members(*known, remarks))

    def rows_of(self, finding: Mapping[str, Any]) -> Rows:
        """Which flows a finding (a row of ``findings``, or of the JSON document) stands for, by time."""
        return self._rows.get(finding["id"], _NONE)

    def distinct(self, rows: Rows, *columns: str) -> list[tuple[Any, ...]]:
        """The different values of some columns, in order of appearance."""
        return list(dict.fromkeys(zip(*(self._column[name][rows].tolist() for name in columns), strict=True)))

    def first_rows(self, rows: Rows, finding: Mapping[str, Any], limit: int = FIRST) -> Rows:
        """Of a finding's rows the earliest, where its ``evidence`` names frames those alone."""
        places = {(place["source"], place["first_frame"]) for place in finding["evidence"]}
        of = zip(self._column["source"][rows], self._column["first_frame"][rows].tolist(), strict=True)
        named = np.fromiter((place in places for place in of), bool, len(rows))
        return (rows[named] if named.any() else rows)[:limit]


_NONE: Rows = np.zeros(0, np.intp)


def _by_start(judged: pd.DataFrame, counted: Mapping[str, Rows]) -> Rows:
    """Positions of all flows that some finding counts, the earliest first."""
    return FlowColumns(judged).by_start(np.unique(np.concatenate([_NONE, *counted.values()])))


def _with_ends(judged: pd.DataFrame) -> pd.DataFrame:
    flows = without_gaps(judged, _TEXTS)
    texts = {name: flows[name].astype(str).astype(object) for name in _TEXTS}
    icmp = texts["protocol"].isin(("icmp", "icmpv6"))
    ends = {
        side: texts[f"{role}_node"].where(texts[f"{role}_node"] != "", texts[role])
        for side, role in (("from", "client"), ("to", "server"))
    }
    port = flows["client_port"].where(icmp, flows["server_port"]).astype(int)
    return flows.assign(**texts, **ends, port=port)


_TEXTS = (
    *("client", "server", "client_node", "server_node", "client_role", "server_role"),
    *("source", "protocol", "scope", "outcome", "rule"),
)


# ---- the rules that a finding is about ----


def rules_about(finding: Mapping[str, Any], spec: Spec) -> tuple[Rule, ...]:
    """The rules that name a finding's port; where none does, those that name it for another protocol."""
    named = [rule for rule in spec.rules if rule.first_port <= finding["port"] <= rule.last_port]
    own = tuple(rule for rule in named if rule.protocol == finding["protocol"])
    if own or finding["protocol"] not in PROTOCOLS[:PORTED]:
        return own
    return tuple(rule for rule in named if rule.protocol in PROTOCOLS[:PORTED])


# ---- where to see it ----

_MANY_PAIRS = 4
_MANY_PORTS = 8
_MANY_ADDRESSES = 64
FAMILIES = ("ip", "ipv6")


def display_filter(ends: Iterable[Ends]) -> str:
    """A Wireshark display filter for flows, both directions and the ICMP errors that quote them; empty for
    no flows.

    ``ends``: client's and server's address, protocol, and port (for ICMP the type) of each. Wider than the
    flows where they have many ends, never narrower.
    """
    whole = list(ends)
    parts = [part for part in (_ends_filter(whole), _ports_filter(whole)) if part]
    return " && ".join(f"({part})" if "||" in part and len(parts) > 1 else part for part in parts)


def _ends_filter(ends: Sequence[Ends]) -> str:
    pairs = list(dict.fromkeys(tuple(sorted(one[:2])) for one in ends))
    if len(pairs) <= _MANY_PAIRS:
        each = [" && ".join(f"{_family(end)}.addr == {end}" for end in pair) for pair in pairs]
    else:
        each = [
            _wide_filter(family, [one for one in ends if _family(one[0]) == family]) for family in FAMILIES
        ]
    each = [part for part in each if part]
    return " || ".join(f"({part})" if len(each) > 1 else part for part in each)


def _wide_filter(family: str, ends: Sequence[Ends]) -> str:
    if not ends:
        return ""
    sides = [_address_set(family, set(side)) for side in list(zip(*ends, strict=True))[:2]]
    return " && ".join(part for part in sides if part) or family


def _family(address: str) -> str:
    return "ipv6" if ":" in address else "ip"


def _address_set(family: str, addresses: set[str]) -> str:
    if len(addresses) > _MANY_ADDRESSES:
        return ""
    if len(addresses) == 1:
        return f"{family}.addr == {addresses.pop()}"
    return f"{family}.addr in {{{', '.join(sorted(addresses))}}}"


def _ports_filter(ends: Sequence[Ends]) -> str:
    protocols = sorted({one[2] for one in ends})
    ports = {protocol: sorted({one[3] for one in ends if one[2] == protocol}) for protocol in protocols}
    return " || ".join(_port_filter(protocol, ports[protocol]) for protocol in protocols)


def _port_filter(protocol: str, ports: Sequence[int]) -> str:
    if protocol not in LAST_PORT:
        return f"ip.proto == {protocol} || ipv6.nxt == {protocol}"
    if protocol not in PROTOCOLS[:PORTED] or len(ports) > _MANY_PORTS:
        return protocol
    if len(ports) == 1:
        return f"{protocol}.port == {ports[0]}"
    return f"{protocol}.port in {{{', '.join(map(str, ports))}}}"
