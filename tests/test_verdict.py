"""Verdicts against a plain evaluation of the rules. Rule: the oracle reads rules and inventories one by one,
row by row; it shares no table with the code.
"""

from __future__ import annotations

import io
import ipaddress
from dataclasses import replace
from typing import Any

import frames as fr
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import recorded

from analyzer.cluster import Cluster, Node, VirtualIP
from analyzer.flows import COLUMNS as FLOW_COLUMNS
from analyzer.flows import pair
from analyzer.spec import Rule, Spec, load_spec
from analyzer.verdict import COLUMNS, SCOPES, VERDICTS, judge, silent_carriers

# ---- the oracle ----

DUTIES = {"server": {"etcd", "control-plane"}, "etcd": {"etcd"}, "control-plane": {"control-plane"}}
DUTIES |= {"agent": {"agent"}, "external": {"external"}}
NOWHERE = [
    ipaddress.ip_network(text)
    for text in (
        *("224.0.0.0/4", "255.255.255.255/32", "ff00::/8", "169.254.0.0/16", "fe80::/10"),
        *("127.0.0.0/8", "::1/128", "0.0.0.0/32", "::/128"),
    )
]
ERRORS = {"icmp": (3, 4, 5, 11, 12, 9, 10), "icmpv6": (1, 2, 3, 4, *range(130, 138), 143)}
TUNNEL_PORTS = (4789, 6081, 8472)


def member(address: str, cluster: Cluster) -> tuple[str, str]:
    """Name and role of who has the address; empty for none."""
    for node in cluster.nodes:
        if address in node.addresses:
            return node.name, node.role
    for vip in cluster.virtual_ips:
        if address == vip.address:
            return vip.name, vip.role
    return "", ""


def within(address: str, networks: list[Any]) -> int:
    """Length of the longest prefix that holds the address, -1 for none."""
    ip = ipaddress.ip_address(address)
    return max((n.prefixlen for n in networks if ip.version == n.version and ip in n), default=-1)


def kind(address: str, cluster: Cluster) -> str:
    if member(address, cluster)[0]:
        return "member"
    pods = [*cluster.pod_cidrs, *cluster.service_cidrs, *(c for n in cluster.nodes for c in n.pod_cidrs)]
    inside = within(address, [ipaddress.ip_network(c) for c in pods])
    nowhere = within(address, NOWHERE)
    return "outside" if inside < 0 and nowhere < 0 else "inside" if inside >= nowhere else "nowhere"


def scope_of(flow: dict[str, Any], cluster: Cluster) -> str:
    ends = [kind(flow[end], cluster) for end in ("client", "server")]
    if flow["tunnel"]:
        return "overlay"
    if "nowhere" in ends:
        return "other"
    if "inside" in ends:
        return "overlay"
    if flow["client_port"] in ERRORS.get(flow["protocol"], ()):
        return "other"
    if ends == ["member", "member"]:
        same = member(flow["client"], cluster) == member(flow["server"], cluster)
        return "intra-node" if same else "inter-node"
    return "external" if "member" in ends else "other"


def takes(roles: frozenset[str], role: str) -> bool:
    return any(DUTIES[word] & DUTIES[role] for word in roles)


def judged_one(flow: dict[str, Any], cluster: Cluster, spec: Spec) -> tuple[str, str, str]:
    """(scope, rule, verdict)"""
    scope = scope_of(flow, cluster)
    icmp = flow["protocol"] in ERRORS
    port = flow["client_port"] if icmp else flow["server_port"]
    covers = [rule for rule in spec.rules if rule.first_port <= port <= rule.last_port]
    own = [rule for rule in covers if rule.protocol == flow["protocol"]]
    client, server = (member(flow[end], cluster)[1] for end in ("client", "server"))
    if scope == "external":
        return scope, own[0].id if own and server else "", "not-judged"
    if scope != "inter-node":
        return scope, "", "not-judged"
    for rule in own:
        if takes(rule.clients, client) and takes(rule.servers, server):
            return scope, rule.id, "allowed"
    if own:
        return scope, own[0].id, "wrong-pair"
    ported = ("tcp", "udp", "sctp")
    others = [rule for name in ported for rule in covers if rule.protocol == name]
    if others and flow["protocol"] in ported:
        return scope, others[0].id, "wrong-protocol"
    return scope, "", "unlisted"


def outcome_of(flow: dict[str, Any], flows: list[dict[str, Any]], cluster: Cluster) -> str:
    """A silent carrier is answered where one went back between the same two nodes, at whatever addresses."""

    def silent(f: dict[str, Any]) -> bool:
        carrier = f["protocol"] == "udp" and f["server_port"] in TUNNEL_PORTS and not f["packets_in"]
        return carrier and scope_of(f, cluster) == "inter-node"

    def way(f: dict[str, Any], ends: tuple[str, str]) -> tuple[str, str, int]:
        one, other = (member(f[end], cluster)[0] for end in ends)
        return one, other, f["server_port"]

    back = {way(f, ("server", "client")) for f in flows if silent(f)}
    answered = flow["outcome"] == "unanswered" and silent(flow) and way(flow, ("client", "server")) in back
    return "answered" if answered else str(flow["outcome"])


# ---- generated inventories, specifications and flows ----

NODE_ADDRESSES = (
    "10.10.0.11",
    "10.10.0.12",
    "10.10.0.21",
    "10.10.1.21",
    "fd00:10::11",
    "10.42.3.1",
    "169.254.9.9",
)
ADDRESSES = (
    *NODE_ADDRESSES,
    "10.10.0.10",
    "10.10.0.99",
    "fd00:10::99",
    "10.42.0.5",
    "10.42.200.5",
    "10.43.0.1",
    "224.0.0.251",
    "255.255.255.255",
    "ff02::1",
    "fe80::5",
    "169.254.1.1",
    "127.0.0.1",
    "::1",
    "0.0.0.0",
    "::",
    "fd42::7",
)
PORTS = (0, 8, 3, 53, 128, 135, 2379, 6443, 6444, 8472, 4789, 30000, 65535)
PROTOCOLS = ("tcp", "udp", "sctp", "icmp", "icmpv6", "47")
ROLES = ("server", "agent", "etcd", "control-plane")
WORDS = st.frozensets(st.sampled_from((*ROLES, "external")), min_size=1, max_size=3)


@st.composite
def inventories(draw: st.DrawFn) -> Cluster:
    owners = draw(st.lists(st.integers(0, 3), min_size=len(NODE_ADDRESSES), max_size=len(NODE_ADDRESSES)))
    owned = {
        n: tuple(a for a, o in zip(NODE_ADDRESSES, owners, strict=True) if o == n)
        for n in sorted(set(owners))
    }
    nodes = [Node(f"node-{n}", draw(st.sampled_from(ROLES)), addresses) for n, addresses in owned.items()]
    vips = (VirtualIP("10.10.0.10", draw(st.sampled_from(ROLES))),) if draw(st.booleans()) else ()
    pods = draw(st.sampled_from(((), ("10.42.0.0/16",), ("10.42.0.0/24", "fd42::/64"), ("10.0.0.0/8",))))
    return Cluster("generated", tuple(nodes), vips, pods, draw(st.sampled_from(((), ("10.43.0.0/16",)))))


@st.composite
def specifications(draw: st.DrawFn) -> Spec:
    rules = []
    for n in range(draw(st.integers(1, 8))):
        protocol = draw(st.sampled_from(PROTOCOLS[:5]))
        high = 255 if protocol.startswith("icmp") else 65535
        first, last = sorted(draw(st.tuples(*[st.sampled_from([p for p in PORTS if p <= high])] * 2)))
        rules.append(Rule(f"rule-{n}", protocol, first, last, draw(WORDS), draw(WORDS)))
    return Spec("generated", "", "", tuple(rules))


@st.composite
def drawn_flows(draw: st.DrawFn) -> list[dict[str, Any]]:
    ends, ports = st.sampled_from(ADDRESSES), st.sampled_from(PORTS)
    rows = []
    for n in range(draw(st.integers(0, 25))):
        make = draw(st.sampled_from((fr.flow, fr.failed)))
        protocol = draw(st.sampled_from(PROTOCOLS))
        changes = {
            "client_port": draw(ports),
            "tunnel": draw(st.sampled_from(("", "", "", "vxlan"))),
            "first_frame": n,
        }
        rows.append(make(draw(ends), draw(ends), draw(ports), protocol, **changes))
    return rows


@given(drawn_flows(), inventories(), specifications(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_verdicts_are_what_the_rules_say(
    flows: list[dict[str, Any]], cluster: Cluster, spec: Spec, plain: bool
) -> None:
    table = fr.table(flows)
    if plain:
        table = table.astype({name: object for name in table if table[name].dtype == "category"})
    judged = judge(table, cluster, spec)
    expected = [(*judged_one(flow, cluster, spec), outcome_of(flow, flows, cluster)) for flow in flows]
    got = judged[["scope", "rule", "verdict", "outcome"]].astype(str).itertuples(index=False, name=None)
    assert list(got) == expected
    for side in ("client", "server"):
        names = judged[[f"{side}_node", f"{side}_role"]].astype(str).itertuples(index=False, name=None)
        assert list(names) == [member(flow[side], cluster) for flow in flows]


@given(drawn_flows(), inventories(), specifications())
@settings(max_examples=25, deadline=None)
def test_judging_adds_and_changes_nothing_else(
    flows: list[dict[str, Any]], cluster: Cluster, spec: Spec
) -> None:
    table = fr.table(flows)
    before = table.copy(deep=True)
    judged = judge(table, cluster, spec)
    pd.testing.assert_frame_equal(table, before)
    kept = [name for name in table if name != "outcome"]
    pd.testing.assert_frame_equal(judged[kept], table[kept])
    assert list(judged) == [*table, *COLUMNS]
    assert {str(judged[name].dtype) for name in COLUMNS} == {"category"}
    for position in range(min(len(flows), 4)):
        (alone,) = judge(table.iloc[[position]], cluster, spec)["verdict"].astype(str)
        assert alone == judged["verdict"].iloc[position], "a verdict hangs on its own row alone"


# ---- by example ----

CLUSTER = Cluster(
    "prod",
    (
        Node("server-1", "server", ("10.10.0.11", "fd00:10::11")),
        Node("server-2", "server", ("10.10.0.12",)),
        Node("agent-1", "agent", ("10.10.0.21", "10.10.1.21", "fd00:10::21")),
        Node("agent-2", "agent", ("10.10.0.22",)),
    ),
    (VirtualIP("10.10.0.10", "server"),),
    ("10.42.0.0/16",),
    ("10.43.0.0/16",),
)
SPEC = load_spec("rke2-canal")
SERVER, SERVER_2, AGENT, AGENT_2 = "10.10.0.11", "10.10.0.12", "10.10.0.21", "10.10.0.22"
OUTSIDE, POD, SERVICE = "10.10.0.99", "10.42.0.5", "10.43.0.1"

#: client, server, port, protocol, changes → scope, rule, verdict
EXAMPLES: dict[str, tuple[tuple[Any, ...], dict[str, Any], tuple[str, str, str]]] = {
    "an agent asks the apiserver": ((AGENT, SERVER, 6443), {}, ("inter-node", "kubernetes-api", "allowed")),
    "over IPv6": (("fd00:10::21", "fd00:10::11", 6443), {}, ("inter-node", "kubernetes-api", "allowed")),
    "a server asks another's apiserver": (
        (SERVER, SERVER_2, 6443),
        {},
        ("inter-node", "kubernetes-api", "wrong-pair"),
    ),
    "a server asks an agent's port 6443": (
        (SERVER, AGENT, 6443),
        {},
        ("inter-node", "kubernetes-api", "wrong-pair"),
    ),
    "an agent asks etcd": ((AGENT, SERVER, 2379), {}, ("inter-node", "etcd-client", "wrong-pair")),
    "etcd asks etcd": ((SERVER, SERVER_2, 2379), {}, ("inter-node", "etcd-client", "allowed")),
    "UDP to 6443": ((AGENT, SERVER, 6443, "udp"), {}, ("inter-node", "kubernetes-api", "wrong-protocol")),
    "TCP to 8472": ((AGENT, SERVER, 8472, "tcp"), {}, ("inter-node", "canal-vxlan", "wrong-protocol")),
    "ssh": ((AGENT, AGENT_2, 22), {}, ("inter-node", "", "unlisted")),
    "the last NodePort": ((AGENT, AGENT_2, 32767), {}, ("inter-node", "nodeport", "allowed")),
    "behind the last NodePort": ((AGENT, AGENT_2, 32768), {}, ("inter-node", "", "unlisted")),
    "a ping": ((AGENT, SERVER, 0, "icmp"), {"client_port": 8}, ("inter-node", "", "unlisted")),
    "GRE": ((AGENT, SERVER, 0, "47"), {"client_port": 0}, ("inter-node", "", "unlisted")),
    "a node asks itself": ((AGENT, "10.10.1.21", 6443), {}, ("intra-node", "", "not-judged")),
    "kubectl": ((OUTSIDE, SERVER, 6443), {}, ("external", "kubernetes-api", "not-judged")),
    "ssh from outside": ((OUTSIDE, SERVER, 22), {}, ("external", "", "not-judged")),
    "UDP from outside to 6443": ((OUTSIDE, SERVER, 6443, "udp"), {}, ("external", "", "not-judged")),
    "a node asks the outside": ((AGENT, OUTSIDE, 6443), {}, ("external", "", "not-judged")),
    "a pod asks a node": ((POD, SERVER, 6443), {}, ("overlay", "", "not-judged")),
    "a node asks a service": ((AGENT, SERVICE, 443), {}, ("overlay", "", "not-judged")),
    "in a tunnel": ((AGENT, SERVER, 6443), {"tunnel": "vxlan", "vni": 1}, ("overlay", "", "not-judged")),
    "neither end is a node": ((OUTSIDE, "10.10.0.98", 6443), {}, ("other", "", "not-judged")),
    "multicast": ((AGENT, "224.0.0.251", 5353, "udp"), {}, ("other", "", "not-judged")),
    "multicast over IPv6": (("fd00:10::21", "ff02::fb", 5353, "udp"), {}, ("other", "", "not-judged")),
    "broadcast": (("0.0.0.0", "255.255.255.255", 67, "udp"), {}, ("other", "", "not-judged")),
    "link-local": (("fe80::21", "fe80::11", 6443), {}, ("other", "", "not-judged")),
    "a virtual IP": ((AGENT, "10.10.0.10", 6443), {}, ("inter-node", "kubernetes-api", "allowed")),
    "a virtual IP's etcd": ((AGENT, "10.10.0.10", 2379), {}, ("inter-node", "etcd-client", "wrong-pair")),
    "a server asks by a virtual IP": (
        (SERVER, "10.10.0.10", 9345),
        {},
        ("inter-node", "supervisor-api", "wrong-pair"),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_by_example(name: str) -> None:
    ends, changes, expected = EXAMPLES[name]
    (row,) = (r for _, r in judge(fr.table([fr.flow(*ends, **changes)]), CLUSTER, SPEC).iterrows())
    assert (row["scope"], row["rule"], row["verdict"]) == expected


def test_every_scope_and_verdict_has_an_example() -> None:
    assert {expected[0] for _, _, expected in EXAMPLES.values()} == set(SCOPES)
    assert {expected[2] for _, _, expected in EXAMPLES.values()} == set(VERDICTS)


@pytest.mark.parametrize(
    ("protocol", "kind", "scope"),
    [("icmp", n, "other") for n in (3, 4, 5, 11, 12)]
    + [("icmp", n, "inter-node") for n in (0, 8, 13, 42)]
    + [("icmpv6", n, "other") for n in (1, 2, 3, 4, 133, 134, 135, 136, 137, 143)]
    + [("icmpv6", n, "inter-node") for n in (128, 129, 160)]
    + [("tcp", 3, "inter-node"), ("udp", 135, "inter-node")],
)
def test_errors_and_neighbour_discovery_are_not_traffic_of_their_own(
    protocol: str, kind: int, scope: str
) -> None:
    table = fr.table([fr.flow("fd00:10::21", "fd00:10::11", 1, protocol, client_port=kind)])
    assert judge(table, CLUSTER, SPEC)["scope"].tolist() == [scope]


def test_names_and_roles() -> None:
    (row,) = (r for _, r in judge(fr.table([fr.flow(AGENT, "10.10.0.10")]), CLUSTER, SPEC).iterrows())
    assert (row["client_node"], row["client_role"]) == ("agent-1", "agent")
    assert (row["server_node"], row["server_role"]) == ("vip-10.10.0.10", "server")


def test_a_narrowed_server() -> None:
    cluster = Cluster("x", (Node("e", "etcd", ("10.0.0.1",)), Node("c", "control-plane", ("10.0.0.2",))))
    rule = Rule("peer", "tcp", 2380, 2380, frozenset({"etcd"}), frozenset({"etcd"}))
    spec = Spec(
        "x",
        "",
        "",
        (rule, replace(rule, id="api", first_port=6443, last_port=6443, servers=frozenset({"server"}))),
    )
    table = fr.table([fr.flow("10.0.0.2", "10.0.0.1", 2380), fr.flow("10.0.0.1", "10.0.0.2", 6443)])
    assert judge(table, cluster, spec)["verdict"].tolist() == ["wrong-pair", "allowed"]


# ---- carriers ----


def carriers(*ways: tuple[str, str], port: int = 8472) -> pd.DataFrame:
    return fr.table([fr.failed(a, b, port, "udp", client_port=50000 + n) for n, (a, b) in enumerate(ways)])


CARRIERS = {
    "the same addresses back": (((AGENT, SERVER), (SERVER, AGENT)), ["answered"] * 2),
    "another address of the same node back": (((AGENT, SERVER), (SERVER, "10.10.1.21")), ["answered"] * 2),
    "over the other family": (((AGENT, SERVER), ("fd00:10::11", "fd00:10::21")), ["answered"] * 2),
    "another node back": (((AGENT, SERVER), (SERVER_2, AGENT)), ["unanswered"] * 2),
    "nothing back": (((AGENT, SERVER), (AGENT, SERVER)), ["unanswered"] * 2),
    "from outside": (((OUTSIDE, SERVER), (SERVER, OUTSIDE)), ["unanswered"] * 2),
}


@pytest.mark.parametrize("name", CARRIERS)
@pytest.mark.parametrize("port", [8472, 4789, 6081, 51820])
def test_carriers_are_judged_by_node_pair(name: str, port: int) -> None:
    ways, outcomes = CARRIERS[name]
    expected = outcomes if port != 51820 else ["unanswered"] * 2
    assert judge(carriers(*ways, port=port), CLUSTER, SPEC)["outcome"].tolist() == expected


def test_a_carrier_that_icmp_quoted_stays_unreachable() -> None:
    table = fr.table(
        [
            fr.failed(AGENT, SERVER, 8472, "udp", outcome="unreachable"),
            fr.failed(SERVER, "10.10.1.21", 8472, "udp"),
        ]
    )
    assert judge(table, CLUSTER, SPEC)["outcome"].tolist() == ["unreachable", "answered"]


def test_carriers_of_a_capture() -> None:
    """From frames: two nodes that answer each other on other addresses than they were asked on."""
    ask, reply = fr.segment((POD, 1), ("10.42.1.6", 80), 2), fr.segment(("10.42.1.6", 80), (POD, 1), 18)
    frames = [fr.carried(ask, AGENT, SERVER), fr.carried(reply, SERVER, "10.10.1.21")]
    judged = judge(pair(fr.read(fr.pcap(fr.timed(frames)))), CLUSTER, SPEC)
    outer = judged[judged["tunnel"] == ""]
    assert outer["outcome"].tolist() == ["answered", "answered"]
    assert outer["verdict"].tolist() == ["allowed", "allowed"]


# ---- the shipped table ----

ALLOWED = {
    "kubernetes-api": (AGENT, SERVER, 6443, "tcp"),
    "supervisor-api": (AGENT, SERVER, 9345, "tcp"),
    "kubelet-metrics": (SERVER, AGENT, 10250, "tcp"),
    "etcd-client": (SERVER, SERVER_2, 2379, "tcp"),
    "etcd-peer": (SERVER, SERVER_2, 2380, "tcp"),
    "etcd-metrics": (SERVER, SERVER_2, 2381, "tcp"),
    "nodeport": (AGENT, AGENT_2, 30080, "tcp"),
    "canal-vxlan": (AGENT, AGENT_2, 8472, "udp"),
    "canal-health-checks": (SERVER, AGENT, 9099, "tcp"),
    "canal-wireguard-ipv4": (AGENT, AGENT_2, 51820, "udp"),
    "canal-wireguard-ipv6-dual-stack": (AGENT, AGENT_2, 51821, "udp"),
}


@pytest.mark.parametrize("gone", [rule.id for rule in SPEC.rules])
def test_each_rule_matters(gone: str) -> None:
    """Without a rule, what it alone allowed is unlisted, and nothing else changes."""
    table = fr.table([fr.flow(*ends) for ends in ALLOWED.values()])
    whole = judge(table, CLUSTER, SPEC)
    assert whole["verdict"].tolist() == ["allowed"] * len(SPEC.rules)
    assert whole["rule"].tolist() == list(ALLOWED)
    less = judge(table, CLUSTER, replace(SPEC, rules=tuple(r for r in SPEC.rules if r.id != gone)))
    assert less["verdict"].tolist() == ["unlisted" if rule == gone else "allowed" for rule in ALLOWED]


def test_no_flows() -> None:
    judged = judge(fr.table([]), CLUSTER, SPEC)
    assert len(judged) == 0
    assert set(COLUMNS) <= set(judged)


@pytest.mark.parametrize("kind", ["object", "category"])
@pytest.mark.parametrize("name", ["blocked", "offences"])
def test_texts_that_are_missing_are_empty(name: str, kind: str) -> None:
    """As pandas reads a flow table's CSV: what is in no tunnel has NaN there, and is not in any tunnel."""
    run = recorded(name)
    texts = [column for column in FLOW_COLUMNS if run.flows[column].dtype == "category"]
    text = run.flows[list(FLOW_COLUMNS)].to_csv(index=False)
    table = pd.read_csv(io.StringIO(text), parse_dates=["start", "end"], date_format="ISO8601")
    assert table["tunnel"].isna().any()
    judged = judge(table.astype(dict.fromkeys(texts, kind)), run.cluster, run.spec)
    for column in ("outcome", *COLUMNS):
        assert judged[column].tolist() == run.flows[column].tolist(), column


def test_parts_are_judged_as_the_whole_with_the_carriers_of_all() -> None:
    """The two directions of one tunnel, between different addresses of two nodes, in different parts."""
    cluster = Cluster(
        "two",
        (Node("a", "agent", ("10.10.0.21", "10.10.1.21")), Node("b", "agent", ("10.10.0.22", "10.10.1.22"))),
    )
    spec = load_spec("rke2-canal")
    lost = {"outcome": "unanswered", "packets_in": 0, "bytes_in": 0}
    rows = [
        fr.flow("10.10.0.21", "10.10.0.22", 8472, "udp", **lost),
        fr.flow("10.10.1.22", "10.10.1.21", 8472, "udp", **lost),
        fr.flow("10.10.0.22", "10.10.0.21", 4789, "udp", **lost),
    ]
    whole = fr.table(rows)
    parts = [whole.iloc[[n]].reset_index(drop=True) for n in range(len(rows))]
    known = pd.concat([silent_carriers(part, cluster) for part in parts]).drop_duplicates()
    expected = judge(whole, cluster, spec)["outcome"].tolist()
    assert expected == ["answered", "answered", "unanswered"]
    assert [judge(part, cluster, spec, known)["outcome"].iloc[0] for part in parts] == expected
    assert [judge(part, cluster, spec)["outcome"].iloc[0] for part in parts] == ["unanswered"] * 3
