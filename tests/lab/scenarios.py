"""What happens in the lab and what is right about it.

Rule: tables only, written by hand from the specification's text.

The verdicts follow the strict reading of the port and role table: server to server on 6443 or 9345 is not in
it. Nothing here is computed by the analyzer, so that its answers can be held against these.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from lab import faults, plan
from lab.plan import AGENTS, SERVERS

BASELINE = "baseline"


@dataclass(frozen=True)
class Expected:
    """The three columns of truth.json that are a judgement; ``finding`` is a kind or None."""

    verdict: str
    outcome: str
    finding: str | None


FINE = Expected("allowed", "answered", None)
BLOCKED_UNANSWERED = Expected("allowed", "unanswered", "blocked")
BLOCKED_UNREACHABLE = Expected("allowed", "unreachable", "blocked")
BLOCKED_REFUSED = Expected("allowed", "refused", "blocked")
WRONG_PAIR = Expected("wrong-pair", "answered", "violation")
WRONG_PAIR_REFUSED = Expected("wrong-pair", "refused", "violation")
WRONG_PROTOCOL = Expected("wrong-protocol", "unreachable", "violation")
UNLISTED = Expected("unlisted", "answered", "violation")
SCAN = Expected("unlisted", "refused", "scan")
EXPOSED = Expected("not-judged", "answered", "exposure")
FOREIGN = Expected("not-judged", "unanswered", "foreign-tunnel")
UNLISTED_REFUSED = Expected("unlisted", "refused", "violation")
UNLISTED_UNANSWERED = Expected("unlisted", "unanswered", "violation")
STRANGER_REFUSED = Expected("not-judged", "refused", None)


@dataclass(frozen=True)
class Inner:
    """Traffic to a pod through the tunnel. ``expected`` is about the carriers between the two nodes' uplinks.

    ``client`` is a pod, or a host whose tunnel address is the source. Without ``do`` another flow brings it
    about. ``carriers`` is what is expected of the carriers where it is not the same.
    """

    client: str
    server: str
    protocol: str
    port: int
    expected: Expected
    do: tuple[str, ...] = ()
    family: int = 4
    carriers: Expected | None = None


@dataclass(frozen=True)
class Flow:
    """Traffic between two machines' uplinks: one row of the truth, and the actions that bring it about.

    ``inside`` sends the action to the server's tunnel address instead, so that the flow is the tunnel's own;
    ``first`` has it done before all others. ``leads_to`` is what the server makes of it (a NodePort's way to
    its pod).
    """

    client: str
    server: str
    protocol: str
    port: int
    expected: Expected
    do: tuple[str, ...]
    family: int = 4
    ports: tuple[int, ...] = ()
    inside: bool = False
    first: bool = False
    leads_to: Inner | None = None


@dataclass(frozen=True)
class Refusal:
    """``server`` drops or rejects what ``client`` sends to these ports; ``how`` is one of the faults."""

    server: str
    how: str
    client: str
    ports: tuple[int, ...]


@dataclass(frozen=True)
class Quiet:
    """Baseline traffic that must not happen beside a scenario; an empty field stands for all."""

    client: str = ""
    server: str = ""
    port: int = 0

    def covers(self, item: Flow | Inner) -> bool:
        ends = ((self.client, plan.node_of(item.client)), (self.server, plan.node_of(item.server)))
        return all(want in ("", have) for want, have in ends) and self.port in (0, item.port)


@dataclass(frozen=True)
class Scenario:
    """A row of the table.

    ``listens`` and ``closes`` change who listens, ``mutes`` names nodes whose tunnel sends nothing; with
    ``etcd`` the servers' etcd cluster runs, baseline or not.
    """

    name: str
    summary: str
    items: tuple[Flow | Inner, ...]
    variants: tuple[str, ...] = ("vxlan", "wireguard")
    listens: tuple[tuple[str, str, int], ...] = ()
    closes: tuple[tuple[str, int], ...] = ()
    refusals: tuple[Refusal, ...] = ()
    mutes: tuple[str, ...] = ()
    losses: tuple[tuple[str, str, int], ...] = ()
    """(client, server, port) that the switch between them loses."""
    opens: tuple[tuple[str, str, str, int], ...] = ()
    """(client, action, server, port) to be done before anybody looks."""
    quiet: tuple[Quiet, ...] = ()
    etcd: bool = False
    builds: tuple[str, ...] = ()
    """Networks, addresses and faults to be brought up, by the names in ``cluster.BUILDS``."""
    drowns: tuple[tuple[str, str, int], ...] = ()
    """(node, node, IP length) between which the switch loses VXLAN that is longer."""
    stops: tuple[str, ...] = ()
    """Nodes that stop forwarding once the items are done; then ``later`` happens."""
    later: tuple[Flow | Inner, ...] = ()


LISTENERS = (
    *(
        (server, service, port)
        for server in SERVERS
        for service, port in (("apiserver", 6443), ("supervisor", 9345))
    ),
    *(
        (node, service, port)
        for node in plan.NODES
        for service, port in (("kubelet", 10250), ("felix", 9099))
    ),
    *((pod, "web", plan.POD_PORT) for pod in plan.PODS),
    ("dns", "dns", 53),
    ("web-2", "dns", 53),
)
"""(where, service, port) that listen in every lab. The second DNS server has no client in the baseline."""


def _agent_family(agent: str) -> int:
    """agent-3 speaks IPv6 where it can choose."""
    return 6 if agent == "agent-3" else 4


def _tunnel_flows() -> tuple[Flow, ...]:
    """WireGuard between all nodes: of each pair the one that is named first starts, over both IP versions."""
    return tuple(
        Flow(a, b, "udp", plan.WIREGUARD_PORTS[family], FINE, ("ping",), family, inside=True, first=True)
        for a, b in itertools.combinations(plan.NODES, 2)
        for family in (4, 6)
    )


_CONTROL_PLANE = (
    *(Flow(a, s, "tcp", 6443, FINE, ("list", "watch"), _agent_family(a)) for a in AGENTS for s in SERVERS),
    *(Flow(a, s, "tcp", 9345, FINE, ("poll", "tunnel")) for a in AGENTS for s in SERVERS),
)
_KUBELET = (
    Flow("server-1", "agent-1", "tcp", 10250, FINE, ("scrape",)),
    Flow("server-1", "agent-2", "tcp", 10250, FINE, ("scrape",)),
    Flow("server-2", "agent-3", "tcp", 10250, FINE, ("scrape",), 6),
    Flow("server-2", "server-3", "tcp", 10250, FINE, ("scrape",)),
    Flow("agent-1", "agent-2", "tcp", 10250, FINE, ("scrape",)),
    Flow("agent-3", "agent-1", "tcp", 10250, FINE, ("scrape",), 6),
    Flow("agent-2", "server-1", "tcp", 10250, FINE, ("scrape",)),
    Flow("agent-3", "server-3", "tcp", 10250, FINE, ("scrape",), 6),
)
_ETCD_PEERS = tuple(
    Flow(a, b, "tcp", 2380, FINE, ("etcd-peer",)) for a, b in itertools.permutations(SERVERS, 2)
)
_ETCD_CLIENTS = (
    Flow("server-1", "server-2", "tcp", 2379, FINE, ("etcdctl",)),
    Flow("server-2", "server-3", "tcp", 2379, FINE, ("etcdctl",)),
    Flow("server-3", "server-1", "tcp", 2379, FINE, ("etcdctl",)),
    Flow("server-1", "server-3", "tcp", 2381, FINE, ("scrape-plain",)),
    Flow("server-2", "server-1", "tcp", 2381, FINE, ("scrape-plain",)),
    Flow("server-3", "server-2", "tcp", 2381, FINE, ("scrape-plain",)),
)
_HEALTH = (
    Flow("server-1", "agent-1", "tcp", 9099, FINE, ("probe",)),
    Flow("agent-2", "agent-3", "tcp", 9099, FINE, ("probe",)),
    Flow("agent-1", "server-2", "tcp", 9099, FINE, ("probe",), 6),
)
_NODE_PORTS = (
    Flow("agent-2", "agent-1", "tcp", plan.NODE_PORT, FINE, ("page",)),
    Flow(
        *("agent-3", "server-2", "tcp", plan.NODE_PORT, FINE, ("page",)),
        leads_to=Inner("server-2", "web-1", "tcp", plan.POD_PORT, FINE),
    ),
    Flow("outside", "agent-1", "tcp", plan.NODE_PORT, EXPOSED, ("page",)),
)
_PODS = (
    Inner("web-1", "web-2", "tcp", plan.POD_PORT, FINE, ("page",)),
    Inner("web-2", "web-3", "tcp", plan.POD_PORT, FINE, ("page",)),
    Inner("web-3", "web-1", "tcp", plan.POD_PORT, FINE, ("page",), 6),
    Inner("web-1", "dns", "udp", 53, FINE, ("dns-udp",)),
    Inner("web-2", "dns", "udp", 53, FINE, ("dns-udp",), 6),
    Inner("web-3", "dns", "udp", 53, FINE, ("dns-udp",)),
    Inner("web-3", "dns", "tcp", 53, FINE, ("dns-tcp",)),
)
VARIANT_ITEMS = {"vxlan": (), "wireguard": _tunnel_flows()}
"""What the baseline has beside its own items in one variant of the lab."""

TABLE = (
    Scenario(
        BASELINE,
        "a healthy cluster: etcd, watches, polls, scrapes, probes, pods, a NodePort",
        (*_CONTROL_PLANE, *_KUBELET, *_ETCD_PEERS, *_ETCD_CLIENTS, *_HEALTH, *_NODE_PORTS, *_PODS),
        etcd=True,
    ),
    Scenario(
        "etcd-from-agent-answered",
        "an agent connects to a server's etcd, clients' and peers' port, and is answered",
        (
            Flow("agent-1", "server-1", "tcp", 2379, WRONG_PAIR, ("connect",)),
            Flow("agent-1", "server-1", "tcp", 2380, WRONG_PAIR, ("connect",)),
        ),
        etcd=True,
    ),
    Scenario(
        "etcd-from-agent-refused",
        "an agent tries a server's etcd ports and its firewall answers with a reset",
        (
            Flow("agent-2", "server-2", "tcp", 2379, WRONG_PAIR_REFUSED, ("connect",)),
            Flow("agent-2", "server-2", "tcp", 2380, WRONG_PAIR_REFUSED, ("connect",)),
        ),
        refusals=(Refusal("server-2", faults.REJECT_RESET, "agent-2", (2379, 2380)),),
    ),
    Scenario(
        "ssh-agent-to-agent",
        "one agent logs in to another over SSH",
        (Flow("agent-1", "agent-3", "tcp", 22, UNLISTED, ("ssh",)),),
        listens=(("agent-3", "ssh", 22),),
    ),
    Scenario(
        "apiserver-on-agent",
        "something on an agent listens on 6443, and a server talks to it",
        (Flow("server-2", "agent-1", "tcp", 6443, WRONG_PAIR, ("list",)),),
        listens=(("agent-1", "apiserver", 6443),),
    ),
    Scenario(
        "udp-to-6443",
        "UDP datagrams to the apiserver's port; the kernel says port unreachable",
        (Flow("agent-2", "server-3", "udp", 6443, WRONG_PROTOCOL, ("datagram",)),),
    ),
    Scenario(
        "port-scan",
        "an agent tries 240 closed ports of one server",
        (Flow("agent-3", "server-1", "tcp", 0, SCAN, ("scan",), ports=tuple(range(7000, 7240))),),
    ),
    Scenario(
        "outside-to-kubelet-and-etcd",
        "a host outside the cluster is answered by a kubelet and by etcd",
        (
            Flow("outside", "agent-2", "tcp", 10250, EXPOSED, ("connect",)),
            Flow("outside", "server-1", "tcp", 2379, EXPOSED, ("connect",)),
        ),
        etcd=True,
    ),
    Scenario(
        "outside-to-apiserver-and-supervisor",
        "a host outside the cluster uses the apiserver, as kubectl does, and the supervisor, to join",
        (
            Flow("outside", "server-1", "tcp", 6443, EXPOSED, ("list",)),
            Flow("outside", "server-2", "tcp", 9345, EXPOSED, ("poll",)),
        ),
    ),
    Scenario(
        "foreign-vxlan",
        "a host outside the cluster sends VXLAN frames of the cluster's network to a node, into a pod",
        (
            Inner("outside", "web-2", "udp", 53, FOREIGN, ("dns-udp",)),
            Inner("outside", "web-2", "tcp", plan.POD_PORT, FOREIGN, ("connect",)),
        ),
        variants=("vxlan",),
    ),
    Scenario(
        "server-to-server-supervisor",
        "one server uses another's supervisor and apiserver: real in RKE2, outside the strict table",
        (
            Flow("server-3", "server-1", "tcp", 9345, WRONG_PAIR, ("poll", "tunnel")),
            Flow("server-3", "server-1", "tcp", 6443, WRONG_PAIR, ("list",)),
        ),
    ),
    Scenario(
        "supervisor-dropped",
        "a server drops what one agent sends to its supervisor",
        (Flow("agent-1", "server-2", "tcp", 9345, BLOCKED_UNANSWERED, ("connect",)),),
        refusals=(Refusal("server-2", faults.DROP_INPUT, "agent-1", (9345,)),),
    ),
    Scenario(
        "supervisor-lost",
        "what one agent sends to a server's supervisor leaves the agent, and is lost in the switch",
        (Flow("agent-2", "server-1", "tcp", 9345, BLOCKED_UNANSWERED, ("connect",)),),
        losses=(("agent-2", "server-1", 9345),),
    ),
    Scenario(
        "supervisor-rejected",
        "a server answers one agent's SYN to its supervisor with ICMP administratively prohibited",
        (Flow("agent-2", "server-2", "tcp", 9345, BLOCKED_UNREACHABLE, ("connect",)),),
        refusals=(Refusal("server-2", faults.REJECT_PROHIBITED, "agent-2", (9345,)),),
    ),
    Scenario(
        "supervisor-refused",
        "a server's supervisor is down, and its kernel answers with a reset",
        (Flow("agent-3", "server-3", "tcp", 9345, BLOCKED_REFUSED, ("connect",)),),
        closes=(("server-3", 9345),),
        quiet=(Quiet(server="server-3", port=9345),),
    ),
    Scenario(
        "vxlan-answers-lost",
        "no VXLAN that server-1 sends reaches the wire; pods of other nodes keep asking its DNS pod",
        (
            Inner("web-1", "dns", "udp", 53, BLOCKED_UNANSWERED, ("dns-udp",)),
            Inner("web-2", "dns", "tcp", plan.POD_PORT, BLOCKED_UNANSWERED, ("connect",)),
            Inner("web-3", "dns", "udp", 53, BLOCKED_UNANSWERED, ("dns-udp",), 6),
            Inner("web-3", "dns", "tcp", 53, BLOCKED_UNANSWERED, ("connect",)),
        ),
        variants=("vxlan",),
        mutes=("server-1",),
        quiet=(Quiet(server="server-1", port=53),),
    ),
    Scenario(
        "open-watch",
        "a watch that was open before the capture: no SYN of it is in the capture",
        (Flow("agent-2", "server-2", "tcp", 6443, FINE, ("held-watch",)),),
        opens=(("agent-2", "hold-watch", "server-2", 6443),),
        quiet=(Quiet(client="agent-2", port=6443),),
    ),
)
SCENARIOS = {scenario.name: scenario for scenario in TABLE}
#: what operators run into, one cause each; happens alone, one after the other in one lab
FAILURES_TABLE = (
    Scenario(
        "etcd-dropped",
        "a server joins: the supervisor answers it, etcd's port is closed on the way",
        (
            Flow("server-3", "server-2", "tcp", 9345, WRONG_PAIR, ("poll",)),
            Flow("server-3", "server-2", "tcp", 2379, BLOCKED_UNANSWERED, ("connect",)),
        ),
        refusals=(Refusal("server-2", faults.DROP_INPUT, "server-3", (2379,)),),
    ),
    Scenario(
        "join-at-apiserver",
        "an agent joins at 6443 in place of 9345",
        (
            Flow("agent-3", "server-1", "tcp", 6443, FINE, ("list",)),
            Flow("agent-2", "server-1", "tcp", 9345, FINE, ("poll",)),
        ),
    ),
    Scenario(
        "join-at-mistyped-port",
        "an agent joins at 9435 in place of 9345",
        (Flow("agent-1", "server-3", "tcp", 9435, UNLISTED_REFUSED, ("connect",)),),
    ),
    Scenario(
        "join-at-old-address",
        "an agent's load balancer asks a server, and an address that is none any more",
        (
            Flow("agent-2", "outside", "tcp", 9345, STRANGER_REFUSED, ("connect",)),
            Flow("agent-2", "server-1", "tcp", 9345, FINE, ("poll",)),
        ),
    ),
    Scenario(
        "join-at-nat-address",
        "an agent asks for the supervisor at 10.0.2.15",
        (Flow("agent-1", "nat", "tcp", 9345, STRANGER_REFUSED, ("connect",)),),
        builds=("nat",),
    ),
    Scenario(
        "typha-dropped",
        "an agent's Felix does not reach Typha on a server",
        (Flow("agent-2", "server-1", "tcp", 5473, UNLISTED_UNANSWERED, ("connect",)),),
        refusals=(Refusal("server-1", faults.DROP_INPUT, "agent-2", (5473,)),),
    ),
    Scenario(
        "kubelet-dropped",
        "an agent drops what a server asks of its kubelet",
        (Flow("server-2", "agent-2", "tcp", 10250, BLOCKED_UNANSWERED, ("connect",)),),
        refusals=(Refusal("agent-2", faults.DROP_INPUT, "server-2", (10250,)),),
    ),
    Scenario(
        "vxlan-lost",
        "VXLAN from one agent to another goes into the switch and does not come out",
        (
            Inner("web-2", "web-3", "tcp", plan.POD_PORT, BLOCKED_UNANSWERED, ("connect",)),
            Inner("web-2", "web-3", "udp", 53, BLOCKED_UNANSWERED, ("dns-udp",)),
            Flow("agent-3", "server-1", "tcp", 9345, FINE, ("poll", "tunnel")),
            Inner("web-1", "web-3", "tcp", plan.POD_PORT, FINE, ("page",)),
        ),
        variants=("vxlan",),
        drowns=(("agent-2", "agent-3", 0),),
    ),
    Scenario(
        "stale-vxlan-network",
        "two agents have a second VXLAN network on the same port",
        (
            Inner("web-1", "web-3", "tcp", plan.POD_PORT, FINE, ("page",)),
            Inner("stale-agent-1", "stale-agent-3", "tcp", 10250, FINE, ("connect",)),
        ),
        variants=("vxlan",),
        builds=("stale-network",),
    ),
    Scenario(
        "vxlan-from-virtual-address",
        "a server's VXLAN device sends from a virtual address",
        (Inner("server-3", "web-3", "tcp", plan.POD_PORT, FINE, ("page",)),),
        variants=("vxlan",),
        builds=("virtual-address",),
    ),
    Scenario(
        "bad-checksums",
        "what pods of an agent send through the tunnel has wrong TCP checksums; ping is good",
        (
            Inner("web-3", "web-1", "icmp", 0, FINE, ("ping",)),
            Inner("web-3", "web-1", "tcp", plan.POD_PORT, BLOCKED_UNANSWERED, ("connect",), carriers=FINE),
            Inner("web-3", "web-1", "tcp", 9100, BLOCKED_UNANSWERED, ("connect",), carriers=FINE),
        ),
        variants=("vxlan",),
        builds=("bad-checksums",),
    ),
    Scenario(
        "pods-stop",
        "a server's pods are reached, until the server forwards no more",
        (
            Inner("web-1", "dns", "udp", 53, FINE, ("dns-udp",)),
            Inner("web-2", "dns", "tcp", plan.POD_PORT, FINE, ("page",)),
        ),
        variants=("vxlan",),
        stops=("server-1",),
        later=(
            Inner("web-1", "dns", "udp", 53, BLOCKED_UNANSWERED, ("dns-udp",), carriers=FINE),
            Inner("web-2", "dns", "tcp", plan.POD_PORT, BLOCKED_UNANSWERED, ("connect",), carriers=FINE),
            Flow("agent-3", "server-1", "tcp", 9345, FINE, ("poll",)),
        ),
    ),
    Scenario(
        "large-vxlan-lost",
        "the switch loses VXLAN of more than 1400 bytes between two agents",
        (
            Inner("web-1", "web-2", "tcp", plan.POD_PORT, FINE, ("stall",)),
            Inner("web-2", "web-1", "tcp", plan.POD_PORT, FINE, ("connect",)),
        ),
        variants=("vxlan",),
        drowns=(("agent-1", "agent-2", 1400),),
    ),
)
FAILURES = {scenario.name: scenario for scenario in FAILURES_TABLE}
EVERY = SCENARIOS | FAILURES


def items(names: tuple[str, ...], variant: str, *, etcd: bool) -> list[tuple[str, Flow | Inner]]:
    """(scenario, item) of everything that happens when these scenarios run together.

    The baseline leaves out what another scenario is about and what it keeps quiet. Where ``etcd`` runs
    without it, what its members say to each other is the baseline's all the same.
    """
    others = [EVERY[name] for name in names if name != BASELINE]
    found: list[tuple[str, Flow | Inner]] = [(other.name, item) for other in others for item in other.items]
    if BASELINE not in names:
        return [(BASELINE, peer) for peer in _ETCD_PEERS if etcd] + found
    taken = {_key(item) for _, item in found}
    quiet = [rule for other in others for rule in other.quiet]
    base = [
        (BASELINE, item)
        for item in (*VARIANT_ITEMS[variant], *SCENARIOS[BASELINE].items)
        if _key(item) not in taken and not any(rule.covers(item) for rule in quiet)
    ]
    return base + found


def need_etcd(names: tuple[str, ...]) -> bool:
    """Whether one of these scenarios needs the etcd cluster."""
    return any(EVERY[name].etcd for name in names)


def _key(item: Flow | Inner) -> tuple[str, str, str, int]:
    return item.client, item.server, item.protocol, item.port
