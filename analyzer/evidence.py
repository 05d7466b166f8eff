"""A finding → the flows it stands for, the rules that it is about, and where to see it. Rule: pure; looks up
what ``find()`` decided, decides nothing again.

A finding names its ends, protocol and port, and what kind of flow it collects; :class:`Evidence` takes the
flows of those. Where a client both scans and offends on one port, its flows there are under both findings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analyzer.matrices import FAILED_OUTCOMES
from analyzer.spec import LAST_PORT, PORTED, PROTOCOLS, Rule, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pandas as pd

FIRST = 3
_KEY = ["from", "to", "protocol", "port"]
_Mask = Any
Rows = npt.NDArray[np.intp]
Ends = tuple[str, str, str, int]

#: kind → which judged flows it collects; a kind that is not here is about no flows
_COLLECTS: dict[str, Callable[[pd.DataFrame], _Mask]] = {
    "violation": lambda f: (f["scope"] == "inter-node") & (f["verdict"] != "allowed"),
    "blocked": lambda f: (f["verdict"] == "allowed") & f["outcome"].isin(FAILED_OUTCOMES),
    "exposure": lambda f: (f["scope"] == "external") & (f["outcome"] == "answered"),
    "foreign-tunnel": lambda f: f["scope"] == "external",
    "scan": lambda f: f["outcome"].isin(FAILED_OUTCOMES) & f["scope"].isin(("inter-node", "external")),
}


class Evidence:
    """The flows behind findings.

    ``flows``: a judged flow table; only those that a finding can be about are kept, with ``from`` and ``to``
    (node, or address where it is none) and ``port`` (for ICMP the type) added. Rows are positions in it.
    """

    def __init__(self, flows: pd.DataFrame) -> None:
        self.flows = _with_ends(_relevant(flows))
        self._column: dict[str, npt.NDArray[Any]] = {
            name: self.flows[name].to_numpy() for name in (*_KEY, *_TEXTS, "first_frame")
        }
        self._of_kind = {kind: np.asarray(mask(self.flows), bool) for kind, mask in _COLLECTS.items()}
        self._by_key = self._grouped(_KEY)
        self._by_client, self._by_server = self._grouped("from"), self._grouped("to")

    def _grouped(self, by: Any) -> dict[Any, Rows]:
        groups: dict[Any, Any] = self.flows.groupby(by, sort=False).indices
        return groups

    def rows_of(self, finding: Mapping[str, Any]) -> Rows:
        """Which flows a finding (a row of ``findings``, or of the JSON document) stands for, by time."""
        mask = self._of_kind.get(finding["kind"])
        if mask is None:
            return _NONE
        rows = self._candidates(finding)
        return np.sort(rows[mask[rows]])

    def _candidates(self, finding: Mapping[str, Any]) -> Rows:
        if finding["kind"] == "scan":
            return self._by_client.get(finding["client"], _NONE)
        key = tuple(finding[name] for name in ("client", "server", "protocol", "port"))
        rows = self._by_key.get(key)
        if rows is not None or finding["client"] in self._by_client:
            return _NONE if rows is None else rows
        served = self._by_server.get(finding["server"], _NONE)  # "(many addresses)"
        protocol, port = self._column["protocol"][served], self._column["port"][served]
        same: Rows = served[(protocol == finding["protocol"]) & (port == finding["port"])]
        return same

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


def _relevant(flows: pd.DataFrame) -> pd.DataFrame:
    quiet = (flows["verdict"] == "allowed") & ~flows["outcome"].isin(FAILED_OUTCOMES)
    between = (flows["scope"] == "inter-node") & ~quiet
    relevant = flows[(between | (flows["scope"] == "external")).to_numpy()]
    return relevant.sort_values("start", kind="stable")


def _with_ends(flows: pd.DataFrame) -> pd.DataFrame:
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
