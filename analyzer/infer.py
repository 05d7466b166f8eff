"""Nodes and roles out of flows. Rule: pure; knows flows and what RKE2's ports mean, reads no file, and says
"unknown" where the flows do not show it.

What a machine serves shows a server; that it is an agent shows only in what it does not do, so that is said
only where enough of its traffic was seen. A refused, an unanswered and a one-way flow show nothing: a scan
must not make a node. Addresses that were never seen to belong to one machine stay apart.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from analyzer._yaml import dump_yaml
from analyzer.cluster import SPECIAL, Cluster, Node
from analyzer.errors import ClusterError
from analyzer.flows import CARRIER_PORTS, PROTOCOL_NUMBERS, pair
from analyzer.given import given
from analyzer.rows import ENDINGS, OneWay

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set

    from analyzer.cluster import Network
    from analyzer.rows import Coverage

CONFIDENCES = ("high", "medium", "low", "unknown")

_API, _SUPERVISOR, _KUBELET, _ETCD_CLIENT, _ETCD_PEER, _ETCD_METRICS = 6443, 9345, 10250, 2379, 2380, 2381
_ETCD = frozenset((_ETCD_CLIENT, _ETCD_PEER))
_REGISTRY = 5001  # the embedded registry mirror: with it agents answer on 9345 too
_NODE_PORT = 30000  # stands for the whole range
_CARRIER, _WIREGUARD = -1, -2  # stand for the tunnel ports

#: (protocol, port) → what a flow on it shows, as an index of _WORDS; ports of RKE2's tables (docs.rke2.io,
#: requirements)
_PORTS = {
    **{("tcp", port): port for port in (_API, _SUPERVISOR, _KUBELET, *_ETCD, _ETCD_METRICS, 9099, _REGISTRY)},
    **{("tcp", port): _NODE_PORT for port in range(30000, 32768)},
    **{("udp", port): _CARRIER for port in CARRIER_PORTS},
    **{("udp", port): _WIREGUARD for port in (51820, 51821, 51871)},
}
_WORDS = {
    _API: "tcp/6443 (Kubernetes API)",
    _SUPERVISOR: "tcp/9345 (supervisor)",
    _KUBELET: "tcp/10250 (kubelet)",
    _ETCD_CLIENT: "tcp/2379 (etcd)",
    _ETCD_PEER: "tcp/2380 (etcd peers)",
    _ETCD_METRICS: "tcp/2381 (etcd metrics)",
    9099: "tcp/9099 (Canal)",
    _REGISTRY: "tcp/5001 (embedded registry)",
    _NODE_PORT: "a NodePort",
    _CARRIER: "VXLAN or Geneve",
    _WIREGUARD: "WireGuard",
}
_SERVER_PORTS = frozenset((_API, _SUPERVISOR, *_ETCD, _ETCD_METRICS))
_SERVER_PORT_PAIRS = frozenset((PROTOCOL_NUMBERS[protocol], port) for protocol, port in _PORTS)
_BOTH_WAYS = (_CARRIER, _WIREGUARD)

_SPECIAL_NETWORKS = tuple(ipaddress.ip_network(cidr) for _, cidr in SPECIAL)
#: IP version → prefix length of a node's pods, and of the cluster's (RKE2's defaults, its dual-stack example)
_NODE_PREFIX, _CLUSTER_PREFIX = {4: 24, 6: 64}, {4: 16, 6: 56}
_DEFAULT_SERVICES = ipaddress.ip_network("10.43.0.0/16")


@dataclass(frozen=True)
class InferredNode:
    """One machine, or one address of which it is not known whose it is.

    `role`: `server`, `agent`, or empty where `confidence` is `unknown`. `why`: the rule that held.
    `evidence`: what was seen, in words and with counts. `vteps`: those of `addresses` at which tunnels end.
    """

    name: str
    role: str
    confidence: str
    addresses: tuple[str, ...]
    vteps: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    why: str = ""
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inferred:
    """What flows show of a cluster.

    `nodes`: those with a role, servers first. `unknown`: machines that may be nodes, of which too little was
    seen. `pod_cidrs`, `service_cidrs`: range → why. `outside`: how many other addresses were seen.
    """

    nodes: tuple[InferredNode, ...]
    unknown: tuple[InferredNode, ...] = ()
    pod_cidrs: Mapping[str, str] = field(default_factory=dict)
    service_cidrs: Mapping[str, str] = field(default_factory=dict)
    outside: int = 0

    def __str__(self) -> str:
        """One line: how many nodes of each role, and how sure."""
        counts = Counter((node.role, node.confidence) for node in self.nodes)
        told = [f"{count} {role} ({confidence})" for (role, confidence), count in counts.items()]
        return f"{', '.join(told) or 'no node'}; {len(self.unknown)} unknown"

    def to_cluster(self, name: str = "inferred", least: str = "low") -> Cluster:
        """The nodes whose confidence is at least `least`. Raises ClusterError where there is none."""
        wanted = CONFIDENCES[: CONFIDENCES.index(least) + 1]
        nodes = tuple(
            Node(n.name, n.role, n.addresses, n.pod_cidrs) for n in self.nodes if n.confidence in wanted
        )
        if not nodes:
            raise ClusterError(
                f"no node's role shows in the flows ({len(self.unknown)} may be nodes)",
                where="inferred cluster",
                next_step="write a cluster file, or capture for longer on more nodes",
            )
        return Cluster(name, nodes, (), tuple(self.pod_cidrs), tuple(self.service_cidrs))

    def to_yaml(self, name: str = "inferred") -> str:
        """A cluster file to check, which ``load_cluster`` reads: above each entry why it is there and how
        sure it is. What is unknown stands in comments.
        """
        return "\n".join(_written(self, name)) + "\n"

    def to_frame(self) -> pd.DataFrame:
        """One row of text for each node and unknown machine: name, role, confidence, addresses, vteps,
        pod_cidrs, why, evidence.
        """
        rows = [
            {
                **{name: getattr(node, name) for name in ("name", "role", "confidence", "why")},
                **{name: ", ".join(getattr(node, name)) for name in ("addresses", "vteps", "pod_cidrs")},
                "evidence": "; ".join(node.evidence),
            }
            for node in (*self.nodes, *self.unknown)
        ]
        columns = ["name", "role", "confidence", "addresses", "vteps", "pod_cidrs", "why", "evidence"]
        return pd.DataFrame(rows, columns=columns)


def infer(*flows: pd.DataFrame | OneWay) -> Inferred:
    """Nodes, roles, tunnel ends and pod ranges out of a flow table (:data:`analyzer.flows.COLUMNS`) or of
    one-way rows, which are paired first; several are runs of one cluster, at different times. Raises
    CaptureError where a column lacks.
    """
    tables = [
        pair(of.settled(), _SERVER_PORT_PAIRS)
        if isinstance(of, OneWay)
        else given(of, "infer()", _NEEDED, gaps=False)
        for of in flows
    ]
    table = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
    inner = _inner(table)
    plain = _plain(table, inner)
    ranges = _pod_ranges(inner, plain)
    plain = _without(plain, ranges)
    machines = _machines(plain, ranges)
    edges = _edges(plain, machines)
    seen = _all_seen(set(machines.values()), edges, ranges)
    club, names, has_registry = _club(seen), _names(machines), _has_registry(edges)
    found = [_judged(each, club, names[each.machine], has_registry) for each in seen]
    nodes = sorted((n for n in found if n.role), key=lambda n: (n.role != "server", _key(n.addresses[0])))
    unknown = [n for n in found if not n.role and n.why]
    return Inferred(
        tuple(nodes),
        tuple(unknown),
        ranges.cluster,
        _service_ranges(table),
        len(found) - len(nodes) - len(unknown),
    )


# ---- where none shows ----

#: what most frames came to → what to do where no node shows in them
_NEXT_STEPS = {
    "flow": "write a cluster file, or capture for longer on more nodes",
    "not_ip": "ARP and the like show no node: capture where the nodes' IP packets pass, on their uplinks",
    "truncated": "capture with a larger snaplen: 160 bytes hold all headers",
    "malformed": "look at them in Wireshark, and record the capture again",
    "unsupported": "capture on an Ethernet interface, or with -i any",
    "fragment": "capture for longer, or where datagrams are still whole",
    "overflow": "split the capture by time",
    "not_chosen": "ask for a longer time",
}
_NO_FRAMES = "check the interface and the capture filter"
_DAMAGED = "copy or record what is damaged again"


def no_node(inferred: Inferred, coverage: Iterable[Coverage]) -> ClusterError:
    """What to say where no node shows: what was seen, what became of it, and what to do next.

    `coverage`: of all that `inferred` was made from.
    """
    ledgers = list(coverage)
    counts = {name: sum(getattr(ledger, name) for ledger in ledgers) for name in ENDINGS}
    frames, damaged = sum(ledger.frames for ledger in ledgers), sum(bool(ledger.damage) for ledger in ledgers)
    parts = [
        *(f"{count} {_WORDS_OF_ENDINGS.get(name, name)}" for name, count in counts.items() if count),
        *([f"{_count(damaged, 'source')} damaged"] if damaged else ()),
    ]
    read = (
        f"{_count(frames, 'frame')} in {_count(len(ledgers), 'source')}" if ledgers else "flow tables alone"
    )
    usual = _NEXT_STEPS[max(counts, key=counts.__getitem__)] if frames or not ledgers else _NO_FRAMES
    return ClusterError(
        f"no node's role shows ({len(inferred.unknown)} may be nodes): {read}{': ' if parts else ''}"
        f"{', '.join(parts)}",
        next_step=_DAMAGED if damaged and not counts["flow"] else usual,
    )


_WORDS_OF_ENDINGS = {
    "flow": "in flows",
    "not_ip": "not IP",
    "unsupported": "of a link type that is not known",
    "fragment": "later fragments",
    "overflow": "came when the flow table was full",
    "not_chosen": "not chosen",
}


# ---- what counts as outside, and may be a node ----

#: private addresses: IPv4 (RFC 1918) and unique local IPv6 (RFC 4193)
_PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
_NAMED = 5
_MAY = "may be a node that the flows did not show"
#: added to the advice of an exposure to a doubtful address
_DOUBT = (
    f" The cluster was inferred: this private address {_MAY}. If it is one, name it in a cluster file "
    "(--cluster)."
)


def doubtful(judged: pd.DataFrame, cluster: Cluster) -> tuple[str, ...]:
    """The private addresses that talk to nodes and are none, nor pods or services, in their order.

    `judged`: what :func:`analyzer.verdict.judge` returns. Where the cluster was inferred each may be a node
    that the flows did not show. Raises CaptureError where a column lacks.
    """
    needed = ("client", "server", "client_node", "server_node", "scope")
    judged = given(judged, "doubtful()", needed, gaps=False)
    outside = judged[judged["scope"] == "external"]
    ends = {
        text
        for side in ("client", "server")
        for text in outside.loc[outside[f"{side}_node"] == "", side].astype(str).unique()
    }
    inside = [ipaddress.ip_network(cidr) for cidr in (*cluster.pod_cidrs, *cluster.service_cidrs)]
    private = (text for text in ends if any(_holds(net, text) for net in _PRIVATE))
    return tuple(sorted((a for a in private if not any(_holds(net, a) for net in inside)), key=_key))


def doubt(addresses: Sequence[str]) -> str:
    """One line that names them, the first few of many."""
    more = f" and {len(addresses) - _NAMED} more" if len(addresses) > _NAMED else ""
    number, named = len(addresses), f"{', '.join(addresses[:_NAMED])}{more}"
    if number == 1:
        return f"1 private address, no node of the inferred cluster, counts as outside: {named}; it {_MAY}"
    words = f"{number} private addresses, no nodes of the inferred cluster, count as outside"
    return f"{words}: {named}; each {_MAY}"


def doubted(findings: pd.DataFrame, addresses: Collection[str]) -> pd.DataFrame:
    """The findings, with what to make of an exposure to one of the addresses in its advice."""
    rows = (findings["kind"] == "exposure") & findings["client"].isin(addresses)
    return findings.assign(advice=findings["advice"].where(~rows, findings["advice"] + _DOUBT))


# ---- which flows ----

_BY = ("client", "server", "shows", "same_port", "outcome", "direction_by", "protocol", "witnesses")
_INNER = ("client", "server", "outer_client", "outer_server")
_NEEDED = (
    *_INNER,
    *("client_port", "server_port", "protocol", "tunnel", "outcome", "direction_by", "witnesses"),
)


def _inner(table: pd.DataFrame) -> pd.DataFrame:
    """Inner flows of tunnels, each pair of ends once."""
    found = table.loc[table["tunnel"].astype(str) != "", list(_INNER)].drop_duplicates()
    return found.astype(str).astype(object)


def _plain(table: pd.DataFrame, inner: pd.DataFrame) -> pd.DataFrame:
    """Flows in no tunnel, between addresses that a machine can have and that are not seen inside of tunnels:
    how many `flows` of each _BY.
    """
    outside = table[table["tunnel"].astype(str) == ""]
    shows = _shows(outside)
    same = (outside["client_port"] == outside["server_port"]) & (shows != 0)
    counted = outside.assign(shows=shows, same_port=same).groupby(list(_BY), observed=True, sort=False)
    columns = counted.size().rename("flows").reset_index()
    columns = columns.assign(**{n: columns[n].astype(str).astype(object) for n in _BY if n not in _OWN})
    ends = set(inner["outer_client"]) | set(inner["outer_server"])
    inside = (set(inner["client"]) | set(inner["server"])) - ends
    good = {text for text in _ends(columns) if text not in inside and _is_machine(text)}
    return columns[columns["client"].isin(good) & columns["server"].isin(good)]


_OWN = ("shows", "same_port")


def _shows(table: pd.DataFrame) -> pd.Series:
    """What each flow's protocol and server port show, as in _PORTS; 0 nothing."""
    protocol, port = table["protocol"].astype(str), table["server_port"].astype(int)
    shown = pd.Series(0, index=table.index)
    for name in ("tcp", "udp"):
        known = {number: shows for (of, number), shows in _PORTS.items() if of == name}
        rows = protocol == name
        shown[rows] = port[rows].map(known).fillna(0).astype(int)
    return shown


def _ends(plain: pd.DataFrame) -> set[str]:
    return set(plain["client"].unique()) | set(plain["server"].unique())


def _is_machine(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    return not any(address.version == net.version and address in net for net in _SPECIAL_NETWORKS)


# ---- pods ----


@dataclass(frozen=True)
class _Ranges:
    """`cluster`: range → why. `homes`: a node's range → the one address at which its tunnel ends."""

    cluster: dict[str, str]
    homes: dict[Network, str]


def _pod_ranges(inner: pd.DataFrame, plain: pd.DataFrame) -> _Ranges:
    """Ranges of inner addresses that go through tunnels which both ends use: what a stranger sends alone does
    not count.
    """
    homes: dict[Network, set[str]] = defaultdict(set)
    carriers = plain[plain["shows"] == _CARRIER]
    sent = set(zip(carriers["client"], carriers["server"], strict=True))
    rows: Any = inner.itertuples(index=False)
    outer = set(inner["outer_client"]) | set(inner["outer_server"])
    for row in rows:
        there = row.outer_client, row.outer_server
        for address, home in ((row.client, there[0]), (row.server, there[1])):
            if {there, there[::-1]} <= sent and _is_machine(address) and address not in outer:
                homes[_network(address, _NODE_PREFIX)].add(home)
    single = {net: next(iter(ends)) for net, ends in homes.items() if len(ends) == 1}
    shared = len(single) < len(homes)  # addresses are not handed out by node, as with Calico's own IPAM
    machines = _ends(plain[plain["shows"].isin(_NO_POD)])
    return _Ranges(_cluster_ranges(homes, machines), {} if shared else single)


def _network(address: str, prefix: dict[int, int]) -> Network:
    version = ipaddress.ip_address(address).version
    return ipaddress.ip_network(f"{address}/{prefix[version]}", strict=False)


#: what pods do not do, so that who does it is none, whatever range its address is in
_NO_POD = (_CARRIER, _WIREGUARD, _SUPERVISOR, _ETCD_PEER)


def _cluster_ranges(homes: Iterable[Network], machines: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for version, prefix in _CLUSTER_PREFIX.items():
        small = sorted((net for net in homes if net.version == version), key=lambda net: net.network_address)
        wide = {net.supernet(new_prefix=prefix) for net in small}
        fits = len(wide) == 1 and not any(_holds(next(iter(wide)), address) for address in machines)
        why = f"{len(small)} ranges of /{_NODE_PREFIX[version]} seen in tunnels"
        supposed = f"{why}; that the cluster's is a /{prefix} is supposed"
        chosen = wide if fits else {net for net in small if not any(_holds(net, a) for a in machines)}
        found |= {str(net): supposed if fits else why for net in sorted(chosen, key=str)}
    return found


def _holds(net: Network, text: str) -> bool:
    address = ipaddress.ip_address(text)
    return address.version == net.version and address in net


def _without(plain: pd.DataFrame, ranges: _Ranges) -> pd.DataFrame:
    """Without pods that no tunnel showed, as `-i any` sees them on their bridge."""
    nets = [ipaddress.ip_network(cidr) for cidr in ranges.cluster]
    pods = {text for text in _ends(plain) if any(_holds(net, text) for net in nets)}
    return plain[~plain["client"].isin(pods) & ~plain["server"].isin(pods)]


def _service_ranges(table: pd.DataFrame) -> dict[str, str]:
    """RKE2's default where its addresses were asked and none of them ever asked."""
    asked, asking = (
        {text for text in table[side].astype(str).unique() if _holds(_DEFAULT_SERVICES, text)}
        for side in ("server", "client")
    )
    if not asked or asking:
        return {}
    return {str(_DEFAULT_SERVICES): f"RKE2's default; {len(asked)} of its addresses were asked, none asked"}


# ---- which addresses are one machine ----


class _Machine(NamedTuple):
    """`observer`: the capture in every row of which it is; empty where there is none. `why`: what showed that
    its addresses are one machine's.
    """

    addresses: tuple[str, ...]
    observer: str
    why: tuple[str, ...]


def _machines(plain: pd.DataFrame, ranges: _Ranges) -> dict[str, _Machine]:
    """Address → its machine."""
    own = _own_addresses(plain)
    taken = Counter(address for addresses in own.values() for address in addresses)
    links: list[tuple[tuple[str, ...], str, str]] = [
        (tuple(addresses), observer, f"in every row of {_shown(observer)}: its capture")
        for observer, addresses in sorted(own.items())
        if addresses and all(taken[address] == 1 for address in addresses)
    ]
    links += [(ends, "", why) for ends, why in _same_pod_number(ranges)]
    machines = {text: _Machine((text,), "", ()) for text in sorted(_ends(plain), key=_key)}
    for addresses, observer, why in links:
        parts = [machines[address] for address in addresses if address in machines]
        if len({part.observer for part in parts if part.observer}) + bool(observer) > 1 or not parts:
            continue  # two captures claim it: nothing is shown
        joined = _join(parts, observer, why)
        machines |= dict.fromkeys(joined.addresses, joined)
    return machines


def _join(parts: list[_Machine], observer: str, why: str) -> _Machine:
    addresses = sorted({address for part in parts for address in part.addresses}, key=_key)
    named = observer or next((part.observer for part in parts if part.observer), "")
    reasons = dict.fromkeys((*(reason for part in parts for reason in part.why), why))
    return _Machine(tuple(addresses), named, tuple(reasons))


def _own_addresses(plain: pd.DataFrame) -> dict[str, list[str]]:
    """Observer → of each IP version the address that is at one end of all its rows, where it is one only.

    A node's uplink carries what the node sends and receives and nothing else; a mirror port carries more, so
    no address is in every row. Between two ends alone it cannot be told which of them captured.
    """
    pairs: Any = plain[["witnesses", "client", "server"]].drop_duplicates().itertuples(index=False)
    common: dict[tuple[str, bool], set[str]] = {}
    for row in pairs:
        ends = {row.client, row.server}
        for observer in row.witnesses.split(";"):
            place = observer, ":" in row.client
            common[place] = common[place] & ends if place in common else ends
    sure = {next(iter(ends)) for ends in common.values() if len(ends) == 1}
    own: dict[str, list[str]] = defaultdict(list)
    for (observer, _), ends in sorted(common.items()):
        left = ends - sure if len(ends) == 2 else ends
        if len(left) == 1 and (len(ends) == 1 or _has_one(common, observer)):
            own[observer] += left
    return own


def _has_one(common: dict[tuple[str, bool], set[str]], observer: str) -> bool:
    """Whether the observer's own address of one IP version is certain."""
    return any(len(common.get((observer, v6), ())) == 1 for v6 in (False, True))


def _same_pod_number(ranges: _Ranges) -> Iterator[tuple[tuple[str, str], str]]:
    """The tunnel ends of IPv4 and IPv6 whose pods have the same number within the cluster's range.

    A dual-stack cluster gives each node a range of both families at once and takes both back at once, so the
    numbers go in step (kubernetes pkg/controller/nodeipam/ipam/range_allocator.go). One pair of equal numbers
    may be chance, two are taken.
    """
    numbers: dict[int, dict[int, set[str]]] = {4: defaultdict(set), 6: defaultdict(set)}
    for net, home in ranges.homes.items():
        if ":" in home if net.version == 6 else ":" not in home:
            numbers[net.version][_number(net)].add(home)
    common = sorted(numbers[4].keys() & numbers[6].keys())
    single = [n for n in common if len(numbers[4][n]) == len(numbers[6][n]) == 1]
    if len(common) < 2 or single != common:
        return
    for n in common:
        ends = next(iter(numbers[4][n])), next(iter(numbers[6][n]))
        yield ends, f"its pods' IPv4 and IPv6 ranges are both number {n} of the cluster's: likely one machine"


def _number(net: Network) -> int:
    bits = _NODE_PREFIX[net.version] - _CLUSTER_PREFIX[net.version]
    return int(net.network_address) >> (net.max_prefixlen - net.prefixlen) & (1 << bits) - 1


def _key(text: str) -> tuple[int, int]:
    address = ipaddress.ip_address(text)
    return address.version, int(address)


def _by_address(machine: _Machine) -> tuple[int, int]:
    return _key(machine.addresses[0])


# ---- what a machine was seen to do ----


class _Edge(NamedTuple):
    """Answered flows of two machines on a port of the table; or, with `tried`, any."""

    client: _Machine
    server: _Machine
    port: int
    flows: int
    tried: int


def _edges(plain: pd.DataFrame, machines: dict[str, _Machine]) -> list[_Edge]:
    known = plain[(plain["shows"] != 0) & ~_by_guess(plain)]
    answered: Counter[tuple[_Machine, _Machine, int]] = Counter()
    tried: Counter[tuple[_Machine, _Machine, int]] = Counter()
    rows: Any = known.itertuples(index=False)
    for row in rows:
        place = machines[row.client], machines[row.server], int(row.shows)
        if place[0] != place[1]:
            tried[place] += int(row.flows)
            answered[place] += int(row.flows) if row.outcome == "answered" else 0
    return [_Edge(*place, answered[place], number) for place, number in sorted(tried.items())]


def _by_guess(plain: pd.DataFrame) -> pd.Series:
    """TCP whose client was told by the lower port alone shows nothing; WireGuard counts between its own ports
    only.
    """
    guessed = (plain["protocol"] == "tcp") & (plain["direction_by"] == "port")
    roaming = (plain["shows"] == _WIREGUARD) & ~plain["same_port"].astype(bool)
    return guessed | roaming


def _has_registry(edges: list[_Edge]) -> bool:
    return any(edge.port == _REGISTRY and edge.flows for edge in edges)


Peers = dict[int, set[_Machine]]


@dataclass
class _Seen:
    """`serves`, `asks`: port → machines, of answered flows; `tries`: of any; `counts`: (how, port) → flows"""

    machine: _Machine
    serves: Peers
    asks: Peers
    tries: Peers
    counts: Counter[tuple[str, int]]
    vteps: tuple[str, ...]
    pod_cidrs: tuple[str, ...]

    @property
    def etcd_peers(self) -> set[_Machine]:
        """Members of one etcd dial each other: those that it asked and that asked it."""
        return self.serves.get(_ETCD_PEER, set()) & self.asks.get(_ETCD_PEER, set())

    @property
    def tunnel_peers(self) -> set[_Machine]:
        """Tunnels both ways: one-way is what a stranger can do."""
        carrier = self.serves.get(_CARRIER, set()) & self.asks.get(_CARRIER, set())
        return carrier | self.serves.get(_WIREGUARD, set()) | self.asks.get(_WIREGUARD, set())

    @property
    def is_node(self) -> bool:
        """Whether it shows what only nodes do: a kubelet that answers, tunnels both ways, etcd peers."""
        return bool(self.serves.get(_KUBELET) or self.tunnel_peers or self.etcd_peers)

    @property
    def marks(self) -> Set[int]:
        """The servers' ports on which it answers."""
        return self.serves.keys() & _SERVER_PORTS

    @property
    def hints(self) -> Set[int]:
        """All that an agent does not do by itself: answering on servers' ports, trying etcd."""
        return self.marks | (self.tries.keys() & _ETCD)

    @property
    def kinds(self) -> Set[int]:
        """On how many ports of the table, other than servers' own, it was seen; a filter leaves few."""
        return (self.serves.keys() | self.asks.keys()) - _ETCD - {_ETCD_METRICS, _REGISTRY}


def _all_seen(machines: Iterable[_Machine], edges: list[_Edge], ranges: _Ranges) -> list[_Seen]:
    """What each machine was seen to do, in the order of their addresses."""
    seen = {
        m: _Seen(m, {}, {}, {}, Counter(), *_inside(m, ranges)) for m in sorted(machines, key=_by_address)
    }
    for client, server, port, flows, _ in edges:
        seen[client].tries.setdefault(port, set()).add(server)
        if flows:
            seen[client].asks.setdefault(port, set()).add(server)
            seen[server].serves.setdefault(port, set()).add(client)
            seen[client].counts["asks", port] += flows
            seen[server].counts["answers", port] += flows
    return list(seen.values())


def _inside(machine: _Machine, ranges: _Ranges) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where its tunnels end, and its pods' ranges."""
    mine = {net: home for net, home in ranges.homes.items() if home in machine.addresses}
    nets = sorted(mine, key=lambda net: (net.version, int(net.network_address)))
    return tuple(a for a in machine.addresses if a in mine.values()), tuple(map(str, nets))


# ---- roles ----


@dataclass(frozen=True)
class _Club:
    """The machines that are etcd members for certain, and who asks each of them for its supervisor."""

    members: frozenset[_Machine]
    asked_by: Mapping[_Machine, frozenset[_Machine]]


def _club(seen: list[_Seen]) -> _Club:
    members = frozenset(each.machine for each in seen if each.etcd_peers)
    return _Club(members, {each.machine: frozenset(each.serves.get(_SUPERVISOR, ())) for each in seen})


def _is_odd_one_out(s: _Seen, club: _Club) -> bool:
    """It asks every etcd member's supervisor, others do too, yet nobody asks its own, and no member dials its
    etcd: whatever else it does, it is none of them.
    """
    if len(club.members) < 2 or s.serves.keys() & {_SUPERVISOR, *_ETCD}:
        return False
    asking = frozenset.intersection(*(club.asked_by[member] for member in club.members)) - club.members
    return s.machine in asking and len(asking) > 1


def _joins(s: _Seen, club: _Club) -> bool:
    """It asks supervisors, or tries to, where those who do not answer are known to be servers."""
    return bool(s.asks.get(_SUPERVISOR)) or len(s.tries.get(_SUPERVISOR, set()) & club.members) > 1


def _acts_as_agent(s: _Seen, club: _Club) -> bool:
    return s.is_node and _joins(s, club) and not s.hints


def _is_well_seen(s: _Seen) -> bool:
    return len(s.kinds) >= 3 and bool(s.serves)


def _forwards(s: _Seen, _: _Club) -> bool:
    """A load balancer answers like a server and asks servers, and does nothing else that a node does."""
    joins = {_API, _SUPERVISOR}
    return not s.is_node and bool(s.marks & joins) and bool(s.asks.keys() & joins)


#: (role, confidence, why, test): the first that holds stands. Where the embedded registry runs, 9345 is taken
#: out of what is served before.
_RULES: tuple[tuple[str, str, str, Callable[[_Seen, _Club], bool]], ...] = (
    (
        "server",
        "high",
        "an etcd member that serves what servers serve",
        lambda s, _: bool(s.etcd_peers) and bool(s.marks & {_API, _SUPERVISOR}),
    ),
    (
        "server",
        "high",
        "a node that serves the Kubernetes API and the supervisor",
        lambda s, _: s.is_node and s.marks >= {_API, _SUPERVISOR},
    ),
    (
        "server",
        "medium",
        "an etcd member; it may be one with etcd alone",
        lambda s, _: bool(s.etcd_peers),
    ),
    (
        "server",
        "medium",
        "a node whose supervisor several machines ask",
        lambda s, _: s.is_node and len(s.serves.get(_SUPERVISOR, ())) > 1,
    ),
    (
        "agent",
        "medium",
        "it asks every server's supervisor and nobody asks its own, whatever else it does",
        lambda s, club: s.is_node and bool(s.hints) and _is_odd_one_out(s, club),
    ),
    (
        "agent",
        "high",
        "a node that asks the supervisors of etcd members and is none, in all its traffic",
        lambda s, club: (
            _acts_as_agent(s, club) and _is_well_seen(s) and len(s.tries[_SUPERVISOR] & club.members) > 1
        ),
    ),
    (
        "agent",
        "medium",
        "a node that asks a supervisor and serves nothing that servers serve",
        lambda s, club: _acts_as_agent(s, club) and _is_well_seen(s),
    ),
    (
        "",
        "unknown",
        "answers like a server and asks servers: a load balancer, or a server",
        _forwards,
    ),
    (
        "server",
        "low",
        "a node whose supervisor one machine asks",
        lambda s, _: s.is_node and _SUPERVISOR in s.marks - s.asks.keys(),
    ),
    (
        "server",
        "low",
        "serves the supervisor; it may be a virtual address of the servers, or a load balancer",
        lambda s, _: _SUPERVISOR in s.marks and not s.asks,
    ),
    (
        "agent",
        "low",
        "a node that asks a supervisor; too little of it was seen to say that it is no server",
        _acts_as_agent,
    ),
    ("", "unknown", "what it does fits no role", lambda s, _: bool(s.is_node and s.hints)),
    ("", "unknown", "a node; whether server or agent does not show", lambda s, _: s.is_node),
    ("", "unknown", "answers on a server's port, and shows no node", lambda s, _: bool(s.marks)),
    (
        "",
        "unknown",
        "asks servers, and shows no node",
        lambda s, _: _SUPERVISOR in s.asks,
    ),
)
_OUTSIDE = ("", "unknown", "")


def _judged(s: _Seen, club: _Club, name: str, has_registry: bool) -> InferredNode:
    known = _without_supervisor(s) if has_registry else s
    role, confidence, why = next((rule[:3] for rule in _RULES if rule[3](known, club)), _OUTSIDE)
    return InferredNode(
        name,
        role,
        confidence,
        s.machine.addresses,
        s.vteps,
        s.pod_cidrs,
        why,
        tuple(_evidence(s, has_registry)) if why else (),
    )


def _without_supervisor(s: _Seen) -> _Seen:
    """With the embedded registry every node may answer on 9345 (docs.rke2.io, embedded registry mirror)."""
    return replace(s, serves={port: peers for port, peers in s.serves.items() if port != _SUPERVISOR})


def _evidence(s: _Seen, has_registry: bool) -> Iterator[str]:
    for how, peers in (("answers", s.serves), ("asks", s.asks)):
        for port in sorted(peers):
            flows, machines = s.counts[how, port], len(peers[port])
            yield f"{how} {_WORDS[port]} of {_count(machines, 'machine')}, {_count(flows, 'flow')}"
    vain = {port: s.tries[port] - s.asks.get(port, set()) for port in s.tries.keys() & _ETCD}
    yield from (
        f"tries {_WORDS[port]} of {len(peers)} in vain" for port, peers in sorted(vain.items()) if peers
    )
    if s.etcd_peers:
        yield f"etcd peers with {len(s.etcd_peers)}, each asks the other"
    if has_registry and _SUPERVISOR in s.serves:
        yield "the embedded registry runs in this cluster, so answering on tcp/9345 shows nothing"
    yield from s.machine.why
    if len(s.machine.addresses) == 1:
        yield "that another address is the same machine's was not seen"


# ---- words ----


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _names(machines: Mapping[str, _Machine]) -> dict[_Machine, str]:
    """As their captures are called, where several nodes have one of their own, or a live one; else the first
    address. Each name once.
    """
    every = sorted(set(machines.values()), key=_by_address)
    stems = {machine: _stem(machine.observer) for machine in every if machine.observer}
    times = Counter(stems.values())
    several = len(times) > 1
    return {m: s if (s := stems.get(m, "")) and times[s] == 1 and (several or _is_live(m)) else m.addresses[0]
            for m in every}  # fmt: skip


def _source(observer: str) -> PurePath:
    """A capture's file, or a live node, without the interface that follows a colon."""
    return PurePath(observer.rpartition(":")[0] or observer)


def _stem(observer: str) -> str:
    stem = _source(observer).stem.removesuffix(".pcap").removesuffix(".pcapng")
    return stem if stem.strip() and stem.isprintable() else ""


def _is_live(machine: _Machine) -> bool:
    return not _source(machine.observer).suffix


def _shown(text: str) -> str:
    """Foreign text as part of a comment: on one line, and nothing in it that ends the comment."""
    return "".join(ch if ch.isprintable() else f"\\x{ord(ch):02x}" for ch in text)


_HEAD = (
    "# Made from flows, not from an inventory: check every entry.",
    "# high, medium, low: how sure a role is. What is unknown stands in comments at the end.",
)


def _written(inferred: Inferred, name: str) -> Iterator[str]:
    yield from _HEAD
    yield from dump_yaml({"name": name, "nodes": []}).splitlines()[:-1]
    for key, cidrs in (("pod_cidrs", inferred.pod_cidrs), ("service_cidrs", inferred.service_cidrs)):
        yield from (f"# {cidr}: {_shown(why)}" for cidr, why in cidrs.items())
        yield dump_yaml({key: list(cidrs)}).rstrip("\n") if cidrs else f"# {key}: not seen"
    yield "nodes:" if inferred.nodes else "nodes: []"
    for node in inferred.nodes:
        yield from _told(node)
        yield from _entry(node)
    if inferred.unknown:
        yield f"# Unknown ({len(inferred.unknown)}): give each a role, or leave it out."
    for node in inferred.unknown:
        yield from _told(node)
        yield from (f"# {line}" for line in _entry(node))
    if inferred.outside:
        yield f"# {inferred.outside} other addresses show nothing that a node does."


def _told(node: InferredNode) -> Iterator[str]:
    yield f"# {node.role or 'unknown'} ({node.confidence}): {node.why}"
    yield from (f"#   {_shown(text)}" for text in node.evidence)
    if node.vteps:
        yield f"#   tunnels end at {', '.join(node.vteps)}"


def _entry(node: InferredNode) -> list[str]:
    row: dict[str, Any] = {"name": node.name, "role": node.role or "?", "addresses": list(node.addresses)}
    row |= {"pod_cidrs": list(node.pod_cidrs)} if node.pod_cidrs else {}
    return dump_yaml({"nodes": [row]}).splitlines()[1:]
