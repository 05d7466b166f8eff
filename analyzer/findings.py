"""Verdicts → findings. Rule: pure; the kinds, their severities and their words are tables.

A finding is one (kind, client, server, protocol, port), however many flows it stands for; its id depends on
nothing else, so that it is the same in every run. Who is part of a scan is settled first: the thousand
refused ports of one client are one finding.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyzer.facts import parse_drops
from analyzer.spec import PROTOCOLS, ROLE_BITS, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from analyzer.cluster import Cluster
    from analyzer.rows import Coverage

#: column → what it holds
COLUMNS = {
    "id": "the same for the same kind, pair, protocol and port in every run",
    "kind": "`violation`, `blocked`, `exposure`, `foreign-tunnel`, `scan`, `listener`, `blind-spot`",
    "severity": "`critical`, `high`, `medium`, `low`, `info`",
    "title": "one sentence: who did what",
    "client": "node, or the address where it is no node; empty for a blind spot",
    "client_role": "role of the client, `outside` for an address that is no node",
    "server": "node, or `(n nodes)` for a scan of several",
    "server_role": "role of the server",
    "protocol": "as in the flow table; empty where several",
    "port": "server's port, for ICMP the type; 0 where several",
    "rule": "id of the rule that names the port; empty where none does",
    "verdict": "of the flows",
    "flows": "how many flows it stands for",
    "packets": "their packets, both directions",
    "bytes": "their IP bytes, both directions",
    "first_seen": "start of the earliest flow, UTC",
    "last_seen": "end of the latest flow, UTC",
    "outcomes": "what became of the flows: outcome → how many",
    "evidence": "up to three places to look: capture and frame number",
    "advice": "what it probably means and what to do",
}
SEVERITIES = ("critical", "high", "medium", "low", "info")

#: kind → (title, what it probably means and what to do)
KINDS = {
    "violation": (
        "{client} ({client_role}) {reached} {server} ({server_role}) on {port}, {verdict_words}",
        "Find out what on the client does this. If it is meant to be, write a rule for it in a specification "
        "of your own that extends {spec}; if not, close the port between these two nodes.",
    ),
    "blocked": (
        "{client} ({client_role}) does not get through to {server} ({server_role}) on {port}{rule_words}: "
        "{outcomes}{dropped}",
        "The table allows it. {where}",
    ),
    "exposure": (
        "{client} (outside the cluster) is answered by {server} ({server_role}) on {port}{rule_words}",
        "Close the port to addresses that are no node, or, where it is meant to be open, write a rule with "
        "`clients: [external]`.",
    ),
    "foreign-tunnel": (
        "{client} (no node of the cluster) sends tunnel traffic to {server} ({server_role}) on {port}",
        "Whoever can send it can put packets into the pod network. Let only nodes reach this port; or, if "
        "the address belongs to a node, add it to the cluster file.",
    ),
    "scan": (
        "{client} ({client_role}) tried {targets} of {server}, mostly in vain: {outcomes}",
        "One client that tries many ports or many nodes is a scanner, or a program with a wrong list of "
        "targets. Find the process.",
    ),
    "listener": ("{what}", "{advice}"),
    "blind-spot": ("{client}: {what}", "{advice}"),
}

_VERDICT_WORDS = {
    "wrong-pair": "which the table has, but not for {client_role} → {server_role}",
    "wrong-protocol": "a port that the table has for another protocol",
    "unlisted": "which is not in the table",
}
_FAILED = ("refused", "unreachable", "unanswered")
_TUNNEL_PORTS = (4789, 6081, 8472, 51820, 51821, 51871)
_ETCD_PORTS = (2379, 2380, 2381)
_JOIN_PORTS = (6443, 9345)
_NODE_PORTS = range(30000, 32768)

#: (what it is, whether it got through) → severity of a violation; the first test that holds names what it is
_VIOLATION_TESTS: tuple[tuple[str, Callable[[pd.Series], bool]], ...] = (
    ("etcd by an agent", lambda f: f["port"] in _ETCD_PORTS and f["client_role"] == "agent"),
    (
        "server to server join",
        lambda f: f["port"] in _JOIN_PORTS and _both_servers(f) and f["protocol"] == "tcp",
    ),
    ("wrong-pair", lambda f: f["verdict"] == "wrong-pair"),
    ("wrong-protocol", lambda f: f["verdict"] == "wrong-protocol"),
    ("unlisted", lambda f: True),
)
_VIOLATION_SEVERITY = {
    ("etcd by an agent", True): "critical",
    ("etcd by an agent", False): "high",
    ("server to server join", True): "low",
    ("server to server join", False): "low",
    ("wrong-pair", True): "high",
    ("wrong-pair", False): "medium",
    ("wrong-protocol", True): "medium",
    ("wrong-protocol", False): "low",
    ("unlisted", True): "medium",
    ("unlisted", False): "low",
}
_JOIN_ADVICE = (
    "Real clusters need it: servers join through 9345 and keep a tunnel to every apiserver. Upstream's table "
    "has allowed all nodes since 2025-07-28 (rancher/rke2-docs ff8d0c2); judge with --spec "
    "rke2-canal-2025-07-28 if that is the table you mean."
)
#: port → severity of a blocked flow; others are medium. Those that bind to loopback by default refuse when
#: all is well.
_BLOCKED_SEVERITY = {
    6443: "high",
    9345: "high",
    2379: "high",
    2380: "high",
    8472: "high",
    4789: "high",
    6081: "high",
    51820: "high",
    51821: "high",
    51871: "high",
    2381: "info",
    9098: "info",
    9099: "info",
}
_LOOPBACK_PORTS = (2381, 9098, 9099)
#: port → severity of being answered from outside; NodePorts are there for that, 6443 is where kubectl comes
#: in
_EXPOSURE_SEVERITY = {
    6443: "low",
    9345: "medium",
    10250: "critical",
    2379: "critical",
    2380: "critical",
    2381: "critical",
}

#: failing flows of one client that make a scan: distinct ports of one node, or distinct nodes on one
#: unlisted port
SCAN_PORTS = 20
SCAN_NODES = 10
_SCAN_GAP = pd.Timedelta(seconds=5)
#: a single unanswered packet so short before the capture's end proves nothing: TCP asks again after 1 s (RFC
#: 6298)
_GRACE = pd.Timedelta(seconds=1)
#: external clients of one port of one node, above which they are one finding
MANY_CLIENTS = 50

#: the kernel's name for why it dropped a packet (include/net/dropreason-core.h) → what it means and what to
#: do; one that is not here is told by its name alone
DROP_REASONS = {
    "NETFILTER_DROP": "a firewall rule on {node} drops it; see `nft list ruleset` or `iptables-save` there",
    "NO_SOCKET": "nothing on {node} listens on that port; look at the service there",
    "TCP_LISTEN_OVERFLOW": "the service on {node} accepts connections slower than they come, its backlog is "
    "full; look at its load, and at net.core.somaxconn",
    "IP_RPFILTER": "{node}'s route back to the sender leaves through another interface; look at its routes, "
    "and at net.ipv4.conf.*.rp_filter",
    "SOCKET_RCVBUFF": "the service on {node} reads slower than packets come, its receive buffer is full",
    "SOCKET_BACKLOG": "the service on {node} handles packets slower than they come, its backlog is full",
    "SOCKET_FILTER": "a program on {node} has put a filter on its socket that drops it",
    "PROTO_MEM": "{node}'s memory for sockets is used up; look at net.ipv4.tcp_mem and udp_mem",
    "NOMEM": "{node} is out of memory",
    "NEIGH_FAILED": "{node} gets no answer to its ARP or neighbour requests; the next hop is down or on "
    "another link",
    "NEIGH_QUEUEFULL": "{node} waits for the next hop's hardware address, which does not come",
    "IP_OUTNOROUTES": "{node} has no route to where it goes; see `ip route` there",
    "IP_INNOROUTES": "{node} has no route for what came in; see `ip route` there, and whether it forwards",
    "IP_INADDRERRORS": "the address is none of {node}'s, and {node} does not forward it",
    "PKT_TOO_BIG": "it is larger than the next link's MTU, as a tunnel's is; compare the MTUs on the way",
    "QDISC_DROP": "a queue or a traffic limit on {node}'s interface drops it; see `tc -s qdisc` there",
    "QDISC_OVERLIMIT": "a queue on {node}'s interface is full; see `tc -s qdisc` there",
    "CPU_BACKLOG": "{node} handles packets slower than they come; look at net.core.netdev_max_backlog",
    "XFRM_POLICY": "an IPsec policy on {node} does not let it through; see `ip xfrm policy` there",
    "XDP": "an XDP program on {node} drops it; see `bpftool net` there",
    "TC_INGRESS": "a tc program on {node}, a CNI's for one, drops what comes in; see `bpftool net` there",
    "TC_EGRESS": "a tc program on {node}, a CNI's for one, drops what goes out; see `bpftool net` there",
    "BPF_CGROUP_EGRESS": "an eBPF program on the sender's cgroup on {node} drops it",
    "SECURITY_HOOK": "a security module on {node}, SELinux for one, drops it",
    "IPV6DISABLED": "IPv6 is off on {node}'s interface",
}
_TAKEN = ("TCP_RESET",)  # names of what was taken in and done with: an answer, not a loss
_MANY_REASONS = 3
_MANY_OWNERS = 3

_MORE_SNAPLEN = "Capture with a larger snaplen: 160 bytes hold all headers."
#: count in the ledger → (severity, what it is, what to do)
_BLIND_SPOTS = {
    "lost": (
        "medium",
        "frames were lost before they were written",
        "Capture with a larger buffer (tcpdump -B), or fewer bytes a frame.",
    ),
    "truncated": ("medium", "frames are cut off within their headers", _MORE_SNAPLEN),
    "unsupported": (
        "medium",
        "frames have a link type that is not known",
        "Capture on an Ethernet interface, or with -i any.",
    ),
    "malformed": (
        "low",
        "frames contradict themselves",
        "Look at them in Wireshark; a few may be damage, many are an attack or a bug.",
    ),
    "fragment": (
        "low",
        "later fragments belong to datagrams whose first fragment, which has the ports, was not seen",
        "Capture for longer, or where datagrams are still whole.",
    ),
    "inner_truncated": ("low", "packets in tunnels are cut off within their headers", _MORE_SNAPLEN),
    "inner_malformed": ("low", "packets in tunnels contradict themselves", "Look at them in Wireshark."),
    "overflow": (
        "medium",
        "frames came when the kernel's flow table was full, so their flows are not known",
        "Capture with a shorter --interval, which empties the table sooner.",
    ),
    "inner_overflow": (
        "low",
        "packets in tunnels came when the kernel's flow table was full",
        "Capture with a shorter --interval, which empties the tables sooner.",
    ),
    "alerts_lost": (
        "low",
        "alerts were lost, there being more than could be taken",
        "What they were about is in the flows and findings all the same.",
    ),
}
_MISSING_ADVICE = (
    "This node could not observe it; flows and verdicts do not hang on it. `rke2-flows doctor`, run there, "
    "says what to do."
)
_DAMAGE_ADVICE = "What comes after it was not read. Copy or record the capture again."
_DEAF = (
    "only one direction of the conversations is in it, so what was not answered cannot be told",
    "Capture on the node's own uplink, or mirror both directions of the switch port.",
)
_EMPTY = ("it holds no frames", "Check the interface and the capture filter.")


@dataclass
class _Draft:
    """A finding before its id, words and severity."""

    kind: str
    severity: str
    flows: pd.DataFrame
    client: str
    server: str
    protocol: str = ""
    port: int = 0
    words: dict[str, str] = field(default_factory=dict)
    advice: str = ""
    #: columns that do not come from flows
    fixed: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Remark:
    """What the sockets of a node say of a port. `reason`: one word, part of the id; `node` empty: it is about
    the rule. `source`: where the sockets, or the flows, were read.
    """

    reason: str
    severity: str
    node: str
    protocol: str
    port: int
    what: str
    advice: str
    rule: str = ""
    source: str = ""


def find(
    judged: pd.DataFrame,
    cluster: Cluster,
    spec: Spec,
    coverage: Sequence[Coverage] = (),
    remarks: Sequence[Remark] = (),
) -> pd.DataFrame:
    """Judged flows and the coverage ledger to findings, the gravest first.

    `judged`: what :func:`analyzer.verdict.judge` returns; `remarks`: what
    :func:`analyzer.listeners.remark` returns. Returns a DataFrame with :data:`COLUMNS`; `outcomes` holds
    dicts, `evidence` lists of dicts with `source` and `first_frame`.
    """
    seen = _with_ends(_relevant(judged))
    scans, seen = _scans(seen)
    deaf = deaf_sources(judged, {ledger.source for ledger in coverage})
    drafts = [
        *scans,
        *_violations(seen),
        *_blocked(seen, cluster, coverage, deaf),
        *_exposures(seen, cluster, spec),
        *_foreign_tunnels(seen),
        *_listeners(remarks, judged, cluster),
        *_blind_spots(coverage, deaf),
    ]
    return _table(drafts, cluster, spec, coverage)


def remarked(remarks: Sequence[Remark], judged: pd.DataFrame, cluster: Cluster, spec: Spec) -> pd.DataFrame:
    """The findings of the kind `listener` alone."""
    return _table(list(_listeners(remarks, judged, cluster)), cluster, spec, ())


def _table(drafts: list[_Draft], cluster: Cluster, spec: Spec, coverage: Sequence[Coverage]) -> pd.DataFrame:
    rows = [_finding(draft, cluster, spec, coverage) for draft in drafts]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    rank = table["severity"].map(SEVERITIES.index)
    order = np.lexsort((table["id"], table["port"], table["server"], table["client"], table["kind"], rank))
    return table.iloc[order].reset_index(drop=True)


# ---- which flows ----


def _relevant(judged: pd.DataFrame) -> pd.DataFrame:
    """The few flows that can be in a finding: all between nodes that failed or are not allowed, and all from
    outside.
    """
    inter, external = (judged["scope"] == scope for scope in ("inter-node", "external"))
    quiet = (judged["verdict"] == "allowed") & (judged["outcome"] == "answered")
    return judged[(inter & ~quiet) | external]


_TEXTS = (
    *("client_node", "server_node", "client", "server", "client_role", "server_role"),
    *("scope", "verdict", "outcome", "rule", "protocol", "source", "witnesses"),
)


_KNOWN_BY_NODES = ("process", "pid", "pod", "drops")


def _with_ends(flows: pd.DataFrame) -> pd.DataFrame:
    """The flows with `from`, `to` (node, or address where it is none) and `port` (for ICMP the type), as
    plain columns.
    """
    flows = flows.assign(
        **{name: flows[name].astype(str).astype(object) for name in _TEXTS},
        **{name: flows[name].astype(object).fillna("").astype(str) for name in _KNOWN_BY_NODES},
    )
    icmp = flows["protocol"].isin(("icmp", "icmpv6"))
    return flows.assign(
        **{
            "from": flows["client_node"].where(flows["client_node"] != "", flows["client"]),
            "to": flows["server_node"].where(flows["server_node"] != "", flows["server"]),
            "port": flows["client_port"].where(icmp, flows["server_port"]).astype(int),
        }
    )


def _groups(flows: pd.DataFrame, *by: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    yield from flows.groupby(list(by), sort=True)


# ---- scans ----


def _scans(flows: pd.DataFrame) -> tuple[list[_Draft], pd.DataFrame]:
    """One draft for each scanning client; and the flows that are not part of a scan."""
    failed = flows[
        flows["outcome"].isin(_FAILED) & (flows["server_node"] != "") & flows["protocol"].isin(("tcp", "udp"))
    ]
    wide = failed[_distinct(failed, ["from", "to"], ["protocol", "port"]) >= SCAN_PORTS]
    stray = failed[failed["verdict"] != "allowed"]
    broad = stray[_distinct(stray, ["from", "protocol", "port"], ["to"]) >= SCAN_NODES]
    members = _within(failed.loc[wide.index.union(broad.index)], flows)
    drafts = [
        _Draft(
            "scan",
            _scan_severity(of),
            of,
            client,
            _targets(of),
            _one_or(of["protocol"], ""),
            words=_scan_words(of),
        )
        for (client,), of in _groups(members, "from")
    ]
    return drafts, flows.drop(members.index)


def _distinct(flows: pd.DataFrame, by: list[str], what: list[str]) -> pd.Series:
    """For each flow, how many different `what` its group has."""
    counts = flows.drop_duplicates([*by, *what]).groupby(by).size().rename("count")
    result: pd.Series = (
        flows[by].merge(counts, left_on=by, right_index=True, how="left").set_index(flows.index)["count"]
    )
    return result


def _within(members: pd.DataFrame, flows: pd.DataFrame) -> pd.DataFrame:
    """Without what failed on a port of the table outside of the time of the scan, and without clients who
    mostly succeeded.
    """
    stray = members[members["verdict"] != "allowed"]
    keep = []
    for (client,), of in _groups(members, "from"):
        window = stray[stray["from"] == client]["start"]
        tried = flows[(flows["from"] == client) & flows["to"].isin(of["to"].unique())]
        mostly = len(of) * 2 > len(tried)
        during = of["start"].between(window.min() - _SCAN_GAP, window.max() + _SCAN_GAP)
        keep.append(of[mostly & ((of["verdict"] != "allowed") | during)])
    return pd.concat(keep) if keep else members


def _targets(of: pd.DataFrame) -> str:
    nodes = sorted(of["to"].unique())
    return nodes[0] if len(nodes) == 1 else f"({len(nodes)} nodes)"


def _scan_words(of: pd.DataFrame) -> dict[str, str]:
    ports = of.drop_duplicates(["protocol", "port"])
    return {
        "targets": f"{len(ports)} ports"
        if len(ports) > 1
        else f"{ports['protocol'].iloc[0]}/{ports['port'].iloc[0]}"
    }


def _scan_severity(of: pd.DataFrame) -> str:
    return "high" if (of["scope"] == "inter-node").any() else "medium"


def _one_or(values: pd.Series, otherwise: str) -> str:
    distinct = values.unique()
    return str(distinct[0]) if len(distinct) == 1 else otherwise


# ---- the other kinds ----


def _violations(flows: pd.DataFrame) -> Iterator[_Draft]:
    outside = flows[(flows["scope"] == "inter-node") & (flows["verdict"] != "allowed")]
    for (client, server, protocol, port), of in _groups(outside, "from", "to", "protocol", "port"):
        through = not of["outcome"].isin(_FAILED).all()
        what = next(name for name, holds in _VIOLATION_TESTS if holds(of.iloc[0]))
        words = {
            "reached": "reached" if through else "tried to reach",
            "verdict_words": _VERDICT_WORDS[of["verdict"].iloc[0]].format(**_roles(of)),
        }
        advice = _JOIN_ADVICE if what == "server to server join" else ""
        severity = _VIOLATION_SEVERITY[what, through]
        yield _Draft("violation", severity, of, client, server, protocol, int(port), words, advice)


def _both_servers(flow: pd.Series) -> bool:
    return all(ROLE_BITS.get(flow[f"{side}_role"], 0) & ROLE_BITS["server"] for side in ("client", "server"))


def _roles(of: pd.DataFrame) -> dict[str, str]:
    return {name: of[name].iloc[0] or "outside" for name in ("client_role", "server_role")}


def _blocked(
    flows: pd.DataFrame, cluster: Cluster, coverage: Sequence[Coverage], deaf: set[str]
) -> Iterator[_Draft]:
    files = {ledger.source for ledger in coverage}
    heard = ~flows["source"].map(lambda name: _file_of(name, files)).isin(deaf)
    allowed = flows[(flows["verdict"] == "allowed") & flows["outcome"].isin(_FAILED) & heard]
    proven = allowed[~_too_late(allowed, coverage)]
    for (client, server, protocol, port), of in _groups(proven, "from", "to", "protocol", "port"):
        severity = _BLOCKED_SEVERITY.get(int(port), "medium")
        drops = _drops(of, cluster.members)
        where = [*_drop_advice(drops), *_where_lost(client, server, of, coverage, cluster.members, drops)]
        if port in _LOOPBACK_PORTS and {reason for _, reason, _ in drops} <= {"NO_SOCKET"}:
            where = [_LOOPBACK_ADVICE]
        words = {"where": " ".join(where), "dropped": _drop_words(drops)}
        yield _Draft("blocked", severity, of, client, server, protocol, int(port), words)


def _drops(of: pd.DataFrame, nodes: Sequence[str]) -> list[tuple[str, str, int]]:
    """(node, kernel's reason, packets) of all these flows together, the most first."""
    counts: Counter[tuple[str, str]] = Counter()
    for observer, reason, packets in (drop for text in of["drops"] for drop in parse_drops(text)):
        if reason not in _TAKEN:
            counts[capturing_node(observer, nodes) or observer, reason] += packets
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(node, reason, packets) for (node, reason), packets in ordered]


def _drop_words(drops: Sequence[tuple[str, str, int]]) -> str:
    """For the title."""
    told = [f"{packets} dropped by {node} ({reason})" for node, reason, packets in drops[:_MANY_REASONS]]
    return "".join(f", {words}" for words in told)


def _drop_advice(drops: Sequence[tuple[str, str, int]]) -> Iterator[str]:
    for node, reason, packets in drops[:_MANY_REASONS]:
        meaning = DROP_REASONS.get(reason, "").format(node=node)
        yield f"{node}'s kernel dropped {packets} of its packets: {reason}{meaning and f', {meaning}'}."


_LOOPBACK_ADVICE = (
    "RKE2 binds this port to loopback unless told otherwise: being refused is the default, not a fault."
)


def _too_late(flows: pd.DataFrame, coverage: Sequence[Coverage]) -> pd.Series:
    """Whether a flow is a single packet that had no time to be answered before its capture ended."""
    ends = {c.source: pd.Timestamp(c.end, unit="ns", tz="UTC") for c in coverage if c.end}
    last = flows["source"].map(lambda name: ends.get(_file_of(name, ends), pd.NaT))
    single = (flows["packets_out"] <= 1) & (flows["outcome"] == "unanswered")
    return single & (pd.to_datetime(last, utc=True) - flows["end"] < _GRACE)


def capturing_node(name: str, nodes: Iterable[str]) -> str:
    """The node of a live observer, or the one on which a capture was taken, where its file name begins with
    the node's. Empty where it is none of `nodes`.

    Of several the longest: all of the cluster's are asked, so that `server-1-b` is not taken for `server-1`.
    """
    stem = PurePath(name).name
    fitting = [node for node in nodes if re.match(rf"{re.escape(node)}(?![A-Za-z0-9])", stem)]
    return max(fitting, key=len, default="")


def _where_lost(
    client: str,
    server: str,
    of: pd.DataFrame,
    coverage: Sequence[Coverage],
    nodes: Sequence[str],
    drops: Sequence[tuple[str, str, int]],
) -> list[str]:
    """What the observers at both ends say about where it was lost. A node whose kernel dropped it had it."""
    captured = {capturing_node(c.source, nodes) for c in coverage}
    names = {name for text in of["witnesses"] for name in text.split(";")}
    saw = {capturing_node(name, nodes) for name in names} | {node for node, _, _ in drops}
    answers = [advice for outcome, advice in _OUTCOME_ADVICE.items() if outcome in set(of["outcome"])]
    if {client, server} <= captured and client in saw:
        place = _SERVER_SAW if server in saw else _SERVER_DID_NOT
        answers.insert(0, place.format(client=client, server=server))
    return answers


_SERVER_SAW = (
    "It left {client} and came to {server}, as both captures show: look at {server}'s own firewall "
    "and service."
)
_SERVER_DID_NOT = (
    "It left {client} and never came to {server}, as both captures show: it is lost between {client} and "
    "{server}. Look at what is there: security groups, firewalls, switches, routes."
)
_OUTCOME_ADVICE = {
    "refused": "A reset says that nothing listens there, or that a firewall rejects with a reset.",
    "unreachable": "ICMP says that a firewall rejects it, as firewalld does, or that nothing is there.",
    "unanswered": "Silence says that a firewall drops it, or that the answer is lost.",
}


def _exposures(flows: pd.DataFrame, cluster: Cluster, spec: Spec) -> Iterator[_Draft]:
    served = flows[
        (flows["scope"] == "external")
        & (flows["server_node"] != "")
        & (flows["rule"] != "")
        & (flows["outcome"] == "answered")
        & ~((flows["protocol"] == "udp") & flows["port"].isin(_TUNNEL_PORTS))
    ]
    open_to_all = [_meant_for_outside(flow, spec) for _, flow in served.iterrows()]
    served = served[~np.array(open_to_all, bool)]
    for (server, protocol, port), of_port in _groups(served, "to", "protocol", "port"):
        severity = "info" if port in _NODE_PORTS else _EXPOSURE_SEVERITY.get(int(port), "high")
        clients = of_port["from"].nunique()
        if clients > MANY_CLIENTS:
            yield _Draft("exposure", severity, of_port, "(many addresses)", server, protocol, int(port))
            continue
        for (client,), of in _groups(of_port, "from"):
            yield _Draft("exposure", severity, of, client, server, protocol, int(port))


def _meant_for_outside(flow: pd.Series, spec: Spec) -> bool:
    tables = spec.compile()
    number = tables.port_class[PROTOCOLS.index(flow["protocol"]), flow["port"]]
    mask = ROLE_BITS.get(flow["server_role"], 0)
    return bool(tables.allowed[number, ROLE_BITS["external"], mask] >= 0)


def _foreign_tunnels(flows: pd.DataFrame) -> Iterator[_Draft]:
    foreign = flows[
        (flows["scope"] == "external")
        & (flows["server_node"] != "")
        & (flows["protocol"] == "udp")
        & flows["port"].isin(_TUNNEL_PORTS)
    ]
    for (client, server, protocol, port), of in _groups(foreign, "from", "to", "protocol", "port"):
        yield _Draft("foreign-tunnel", "high", of, client, server, protocol, int(port))


# ---- listening sockets ----


def _listeners(remarks: Sequence[Remark], judged: pd.DataFrame, cluster: Cluster) -> Iterator[_Draft]:
    """Each with the flows that other machines sent to that port of that node."""
    roles = {name: role for name, role, _ in cluster.rows()}
    asked = judged[judged["scope"].isin(("inter-node", "external"))] if remarks else judged[:0]
    nodes, protocols = asked["server_node"].astype(str), asked["protocol"].astype(str)
    for told in remarks:
        of = asked[(nodes == told.node) & (protocols == told.protocol) & (asked["server_port"] == told.port)]
        words = {"what": told.what, "advice": told.advice, "reason": told.reason}
        fixed: dict[str, object] = {
            "client_role": "",
            "server_role": roles.get(told.node, ""),
            "rule": told.rule,
            "verdict": "",
            **({} if len(of) else {"evidence": [{"source": told.source, "first_frame": 0}]}),
        }
        flows = _with_ends(of) if told.node else pd.DataFrame()
        yield _Draft(
            "listener", told.severity, flows, "", told.node, told.protocol, told.port, words, fixed=fixed
        )


# ---- blind spots ----


def deaf_sources(judged: pd.DataFrame, files: set[str]) -> set[str]:
    """Captures most of whose TCP clients acknowledge what is not in them: they hold one direction only."""
    tcp = judged[(judged["protocol"] == "tcp") & (judged["tunnel"] == "")]
    captures = tcp["source"].astype(str).map(lambda name: _file_of(name, files))
    one_sided = (tcp["outcome"] == "one-way").groupby(captures).agg(["sum", "count"])
    return {str(name) for name in one_sided.index[one_sided["sum"] * 2 > one_sided["count"]]}


def _file_of(observer: str, files: Collection[str]) -> str:
    """The capture or live node of an observer, which may be one interface of it, named after a colon."""
    parts = observer.split(":")
    prefixes = [":".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in prefixes if name in files), observer.rpartition(":")[0] or observer)


def _blind_spots(coverage: Sequence[Coverage], deaf: set[str]) -> Iterator[_Draft]:
    for ledger in coverage:
        for severity, packets, what, advice in _ledger_gaps(ledger, deaf):
            words = {"what": what, "advice": advice, "packets": str(packets)}
            yield _Draft("blind-spot", severity, pd.DataFrame(), ledger.source, "", words=words)


def _ledger_gaps(ledger: Coverage, deaf: set[str]) -> Iterator[tuple[str, int, str, str]]:
    if ledger.damage:
        yield "high", 0, f"the file is damaged, {ledger.damage}", _DAMAGE_ADVICE
    if not ledger.frames:
        yield ("medium", 0, *_EMPTY)
    if ledger.source in deaf:
        yield ("medium", ledger.frames, *_DEAF)
    if ledger.missing:
        yield "info", 0, f"not observed: {ledger.missing}", _MISSING_ADVICE
    for name, (severity, what, advice) in _BLIND_SPOTS.items():
        count = getattr(ledger, name)
        if count:
            yield severity, count, f"{count} {what}", advice


# ---- words ----


def _finding(draft: _Draft, cluster: Cluster, spec: Spec, coverage: Sequence[Coverage]) -> dict[str, object]:
    row = _identity(draft) | _measures(draft) | draft.fixed
    title, advice = KINDS[draft.kind]
    words = _words(draft, row, spec) | draft.words
    row["title"] = title.format(**words) + ("" if draft.kind == "listener" else _by(draft.flows))
    row["advice"] = (draft.advice or advice).format(**words) if not draft.advice else draft.advice
    return row


def _by(of: pd.DataFrame) -> str:
    """Which processes it is, where nodes know: each with its pid where they are few."""
    if of.empty:
        return ""
    known = of[of["process"] != ""]
    if known.empty:
        return ""
    for columns in (["process", "pid", "pod"], ["process", "pod"]):
        owners = known[columns].drop_duplicates().sort_values(columns).to_dict("records")
        if len(owners) <= _MANY_OWNERS:
            break
    told = [_owner_words(owner) for owner in owners[:_MANY_OWNERS]]
    more = [f"{len(owners) - len(told)} more"] if len(owners) > len(told) else []
    return f", by {', '.join(told + more)}" if told else ""


def _owner_words(owner: dict[Any, str]) -> str:
    marks = [f"{name} {owner[name]}" for name in ("pid", "pod") if owner.get(name)]
    return f"{owner['process']} ({', '.join(marks)})" if marks else owner["process"]


#: kind → the word that tells apart what pair, protocol and port do not
_REASONS = {"blind-spot": "advice", "listener": "reason"}


def _identity(draft: _Draft) -> dict[str, object]:
    reason = draft.words.get(_REASONS.get(draft.kind, ""), "")
    key = "|".join((draft.kind, draft.client, draft.server, draft.protocol, str(draft.port), reason))
    first = draft.flows.iloc[0] if len(draft.flows) else None
    return {
        "id": f"{draft.kind}-{hashlib.sha256(key.encode()).hexdigest()[:10]}",
        "kind": draft.kind,
        "severity": draft.severity,
        "client": draft.client,
        "client_role": "" if first is None else first["client_role"] or "outside",
        "server": draft.server,
        "server_role": "" if first is None else _one_or(draft.flows["server_role"], ""),
        "protocol": draft.protocol,
        "port": draft.port,
        "rule": "" if first is None else _one_or(draft.flows["rule"], ""),
        "verdict": "" if first is None else _one_or(draft.flows["verdict"], ""),
    }


def _measures(draft: _Draft) -> dict[str, object]:
    of = draft.flows
    if of.empty:
        packets = int(draft.words.get("packets", 0))
        return {"flows": 0, "packets": packets, "bytes": 0, "first_seen": pd.NaT, "last_seen": pd.NaT,
                "outcomes": {}, "evidence": [{"source": draft.client, "first_frame": 0}]}  # fmt: skip
    earliest = of.sort_values("start").head(3)
    evidence = zip(earliest["source"], earliest["first_frame"], strict=True)
    return {
        "flows": len(of),
        "packets": int(of["packets_out"].sum() + of["packets_in"].sum()),
        "bytes": int(of["bytes_out"].sum() + of["bytes_in"].sum()),
        "first_seen": of["start"].min(),
        "last_seen": of["end"].max(),
        "outcomes": dict(sorted(Counter(of["outcome"]).items())),
        "evidence": [{"source": source, "first_frame": int(frame)} for source, frame in evidence],
    }


def _words(draft: _Draft, row: dict[str, object], spec: Spec) -> dict[str, str]:
    descriptions = {rule.id: rule.description for rule in spec.rules}
    description = descriptions.get(str(row["rule"]), "")
    outcomes = row["outcomes"]
    counted = ", ".join(f"{n} {name}" for name, n in outcomes.items()) if isinstance(outcomes, dict) else ""
    return {
        "client": draft.client,
        "server": draft.server,
        "client_role": str(row["client_role"]),
        "server_role": str(row["server_role"]),
        "port": f"{draft.protocol}/{draft.port}"
        if draft.protocol not in ("icmp", "icmpv6")
        else f"{draft.protocol} type {draft.port}",
        "rule_words": f" ({description})" if description else "",
        "outcomes": counted,
        "spec": spec.name,
    }
