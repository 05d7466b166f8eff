"""Flows × cluster × specification → verdict columns. Rule: pure and vectorised; looks up, never decides by
an address or a port of its own.

Every distinct address is placed once, every row then indexes tables: which scope two kinds of place make
(``_SCOPE_OF_PLACES``), and which rule and verdict a port and two roles make (the compiled specification).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer.cluster import KINDS, Cluster
from analyzer.flows import CARRIER_PORTS
from analyzer.given import given
from analyzer.spec import PROTOCOLS, ROLE_BITS, CompiledSpec, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

#: column → what it holds; :func:`judge` adds them to the flow table, all categorical
COLUMNS = {
    "client_node": "node (or virtual address) of the client, empty where it is none",
    "server_node": "node (or virtual address) of the server, empty where it is none",
    "client_role": "`server`, `agent`, `etcd`, `control-plane`; empty where the client is no node",
    "server_role": "the same of the server",
    "scope": "`inter-node`, `intra-node`, `external`, `overlay`, `other`",
    "rule": "id of the rule whose port it is; empty where the table does not name the port",
    "verdict": "`allowed`, `wrong-pair`, `wrong-protocol`, `unlisted`, `not-judged`",
}
SCOPES = ("inter-node", "intra-node", "external", "overlay", "other")
VERDICTS = ("allowed", "wrong-pair", "wrong-protocol", "unlisted", "not-judged")

#: of the flow table, what verdicts rest on
_NEEDED = ("client", "client_port", "server", "server_port", "protocol", "tunnel", "packets_in", "outcome")
_MEMBERS = ("node", "virtual-ip")
_INSIDE = ("pod", "service")
_NO_PLACE = ("multicast", "link-local", "loopback", "unspecified")
#: ICMP errors belong to the flow that they quote; neighbour discovery and group membership to the link, as
#: ARP does (RFC 792, RFC 4443, RFC 4861, RFC 2710, RFC 3810)
_CONTROL_TYPES = {
    "icmp": (3, 4, 5, 9, 10, 11, 12),
    "icmpv6": (1, 2, 3, 4, 130, 131, 132, 133, 134, 135, 136, 137, 143),
}
_NO_PROTOCOL = len(PROTOCOLS)  # an extra row of the lookup tables, where no port is in any rule

Codes = npt.NDArray[Any]


def _scope_of(client: str, server: str) -> str:
    kinds = (client, server)
    if any(kind in _NO_PLACE for kind in kinds):
        return "other"
    if any(kind in _INSIDE for kind in kinds):
        return "overlay"
    members = sum(kind in _MEMBERS for kind in kinds)
    return ("other", "external", "inter-node")[members]


#: [kind of the client's place, kind of the server's place] → index in SCOPES
_SCOPE_OF_PLACES = np.array([[SCOPES.index(_scope_of(a, b)) for b in KINDS] for a in KINDS], np.int8)


def judge(
    flows: pd.DataFrame, cluster: Cluster, spec: Spec, carriers: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The flow table with the verdict columns added; rows and their order stay.

    `flows` has the columns of :data:`analyzer.flows.COLUMNS`; raises CaptureError where it lacks one that
    verdicts rest on. Inner flows of tunnels, and flows of addresses
    in the pod or service ranges, are `overlay`. Only `inter-node` flows get a verdict; `rule` is also set
    for `external` ones, where a node serves. The outcome of a tunnel's carrier is judged again by node pair,
    since nodes may have several addresses: where `flows` are a part of a whole, `carriers` are
    :func:`silent_carriers` of all parts together, and each part is judged as in the whole.
    """
    flows = given(flows, "judge()", _NEEDED)
    client, server = (_Side.of(flows[name], cluster) for name in ("client", "server"))
    scope = _scopes(flows, client, server)
    rule, verdict = _verdicts(flows, client, server, scope, spec)
    names = ["", *cluster.members]
    roles = ["", *ROLE_BITS]
    added = {
        "client_node": _categorical(client.member + 1, names),
        "server_node": _categorical(server.member + 1, names),
        "client_role": _categorical(client.role_code, roles),
        "server_role": _categorical(server.role_code, roles),
        "scope": _categorical(scope, SCOPES),
        "rule": _categorical(rule + 1, ["", *(r.id for r in spec.rules)]),
        "verdict": _categorical(verdict, VERDICTS),
    }
    rows = _carriers(flows, scope)
    known = _known(flows, cluster, client, server, rows) if carriers is None else carriers
    outcome = _carrier_outcomes(flows, cluster, client, server, rows, known)
    return flows.assign(**({} if outcome is None else {"outcome": outcome}), **added)


def _categorical(codes: Codes, names: list[str] | tuple[str, ...]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, pd.Index(names, dtype="str"), validate=False)


class _Side:
    """Where one end of each flow is. All arrays have shape (n,)."""

    def __init__(self, kind: Codes, member: Codes, mask: npt.NDArray[np.uint8], role_code: Codes) -> None:
        self.kind, self.member, self.mask, self.role_code = kind, member, mask, role_code

    @classmethod
    def of(cls, column: pd.Series, cluster: Cluster) -> _Side:
        codes, texts = _coded(column)
        known = [text if text else "::" for text in texts]
        places = cluster.places(known)
        role_codes = np.zeros(max(ROLE_BITS.values()) + 1, np.int8)
        for number, mask in enumerate(ROLE_BITS.values()):
            role_codes[mask] = number + 1
        return cls(
            places.kind.astype(np.int8)[codes],
            places.member[codes],
            places.role[codes],
            role_codes[places.role][codes],
        )


def _coded(column: pd.Series) -> tuple[Codes, list[str]]:
    """Codes and distinct texts of a text column, categorical or not. A missing text is empty: so are the
    empty ones of a CSV file that pandas has read.
    """
    codes: Codes
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, names = column.cat.codes.to_numpy(), column.cat.categories
    else:
        codes, names = pd.factorize(column)
    texts = [str(name) for name in names]
    if (codes < 0).any():
        texts = texts if "" in texts else [*texts, ""]
        codes = np.where(codes < 0, texts.index(""), codes.astype(np.intp))
    return codes, texts


def _looked_up(column: pd.Series, value: Callable[[str], int], dtype: type[np.generic]) -> Codes:
    """value(text) for each row, computed once for each distinct text."""
    codes, texts = _coded(column)
    return np.array([value(text) for text in texts], dtype)[codes] if texts else np.zeros(0, dtype)


def _scopes(flows: pd.DataFrame, client: _Side, server: _Side) -> Codes:
    scope = _SCOPE_OF_PLACES[client.kind, server.kind]
    inter = scope == SCOPES.index("inter-node")
    scope[inter & (client.member == server.member)] = SCOPES.index("intra-node")
    scope[_looked_up(flows["tunnel"], bool, np.bool_).astype(bool)] = SCOPES.index("overlay")
    scope[_is_control(flows) & (scope != SCOPES.index("overlay"))] = SCOPES.index("other")
    return scope


def _is_control(flows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    names = list(_CONTROL_TYPES)
    row = _looked_up(flows["protocol"], lambda p: names.index(p) if p in names else len(names), np.int8)
    result = np.zeros(len(flows), bool)
    icmp = np.flatnonzero(row < len(names))
    table = np.zeros((len(names), 65536), bool)
    for number, types in enumerate(_CONTROL_TYPES.values()):
        table[number, list(types)] = True
    result[icmp] = table[row[icmp], flows["client_port"].to_numpy()[icmp]]
    return result


def _rule_ports(flows: pd.DataFrame, protocol: Codes) -> Codes:
    """The number that a rule names: the server's port, for ICMP the type."""
    ports = flows["server_port"].to_numpy()
    icmp = np.flatnonzero(protocol >= PROTOCOLS.index("icmp"))
    if len(icmp):
        ports = ports.copy()
        ports[icmp] = flows["client_port"].to_numpy()[icmp]
    return ports


class _Lookup:
    """The compiled specification as one table: [state of a protocol's port, client mask × 16 + server mask]
    → rule and verdict.

    A state is a distinct pair of the port's own class and its class under another protocol.
    """

    def __init__(self, tables: CompiledSpec) -> None:
        none = np.zeros((1, 65536), np.uint16)
        own = np.concatenate([tables.port_class, none]).ravel()
        other = np.concatenate([tables.other_class, none]).ravel()
        states, state = np.unique(own.astype(np.uint32) << 16 | other, return_inverse=True)
        self.state = state.astype(np.int16)
        self.own, other_of = states >> 16, states & 0xFFFF
        allowed = tables.allowed[self.own].reshape(len(states), -1)
        self.named = tables.named[np.where(self.own > 0, self.own, other_of)]
        refused = np.where(self.own > 0, 1, np.where(other_of > 0, 2, 3))
        self.rule = np.where(allowed >= 0, allowed, self.named[:, None]).astype(np.int16)
        self.verdict = np.where(allowed >= 0, 0, refused[:, None]).astype(np.int8)


_lookup = lru_cache(maxsize=8)(_Lookup)  # one takes under 1 MB, and 30 ms to make


def _verdicts(
    flows: pd.DataFrame, client: _Side, server: _Side, scope: Codes, spec: Spec
) -> tuple[Codes, Codes]:
    """(index of the rule or -1, index in VERDICTS) of each row."""
    lookup = _lookup(spec.compile())
    protocol = _looked_up(
        flows["protocol"], lambda p: PROTOCOLS.index(p) if p in PROTOCOLS else _NO_PROTOCOL, np.int32
    )
    state = lookup.state.take((protocol << 16) | _rule_ports(flows, protocol))
    cell = (state.astype(np.int32) << 8) | (client.mask << 4) | server.mask
    rule, verdict = lookup.rule.take(cell), lookup.verdict.take(cell)
    rest = np.flatnonzero(scope != SCOPES.index("inter-node"))
    verdict[rest] = VERDICTS.index("not-judged")
    served = (scope[rest] == SCOPES.index("external")) & (server.member[rest] >= 0)
    rule[rest] = np.where(served & (lookup.own[state[rest]] > 0), lookup.named[state[rest]], -1)
    return rule, verdict


def silent_carriers(flows: pd.DataFrame, cluster: Cluster) -> pd.DataFrame:
    """Between which nodes, and on which port, a tunnel's carriers went one way: each once.

    Returns `client_node`, `server_node` (text) and `server_port` (int64). Those of parts of a flow table,
    one after another, serve for those of the whole.
    """
    flows = given(flows, "silent_carriers()", _NEEDED)
    client, server = (_Side.of(flows[name], cluster) for name in ("client", "server"))
    rows = _carriers(flows, _scopes(flows, client, server))
    return _known(flows, cluster, client, server, rows)


def _known(flows: pd.DataFrame, cluster: Cluster, client: _Side, server: _Side, rows: Codes) -> pd.DataFrame:
    ports = flows["server_port"].to_numpy()[rows]
    ways = pd.unique(_pair_keys(client.member[rows], server.member[rows], ports, len(cluster.members)))
    ends, port = np.divmod(ways, 65536)
    one, other = np.divmod(ends, len(cluster.members))
    names = np.array(cluster.members, dtype=object)
    return pd.DataFrame({"client_node": names[one], "server_node": names[other], "server_port": port})


def _carriers(flows: pd.DataFrame, scope: Codes) -> npt.NDArray[np.intp]:
    """Rows of carriers between nodes that nothing came back for with the same 5-tuple."""
    silent = np.flatnonzero((flows["packets_in"].to_numpy() == 0) & (scope == SCOPES.index("inter-node")))
    tunnels = silent[np.isin(flows["server_port"].to_numpy()[silent], CARRIER_PORTS)]
    return tunnels[(flows["protocol"].iloc[tunnels] == "udp").to_numpy()]


def _carrier_outcomes(
    flows: pd.DataFrame, cluster: Cluster, client: _Side, server: _Side, rows: Codes, known: pd.DataFrame
) -> pd.Categorical | None:
    """Outcomes where a carrier went unanswered between two addresses, yet not between their nodes; None
    where there is none. `rows`: of carriers.
    """
    codes, names = _coded(flows["outcome"])
    if "unanswered" not in names:
        return None
    names = names if "answered" in names else [*names, "answered"]
    rows = rows[codes[rows] == names.index("unanswered")]
    number = {name: n for n, name in enumerate(cluster.members)}
    one, other = (known[f"{side}_node"].map(number).to_numpy(np.int64) for side in ("server", "client"))
    back = _pair_keys(one, other, known["server_port"].to_numpy(), len(number))
    there = _pair_keys(
        client.member[rows], server.member[rows], flows["server_port"].to_numpy()[rows], len(number)
    )
    answered = rows[pd.Index(there).isin(back)]
    if not len(answered):
        return None
    codes = codes.copy()
    codes[answered] = names.index("answered")
    return _categorical(codes, names)


def _pair_keys(one: Codes, other: Codes, port: Codes, members: int) -> npt.NDArray[np.int64]:
    return (one.astype(np.int64) * members + other) * 65536 + port
