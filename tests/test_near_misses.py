"""What looks wrong and is right. Rule: packets by hand, through the reader, pairing, judging and finding;
each row says why it is no fault, and what comes out.

The last tests take what makes a row right out of it: then it must be told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import frames as fr
import pytest
from frames import (
    NS,
    Frame,
    carried,
    datagram,
    handshake,
    message,
    refusal,
    segment,
    talk,
    timed,
    unreachable,
)
from packets import ACK, FIN, RST, SYN

from analyzer.analysis import Analysis
from analyzer.cluster import Cluster, Node
from analyzer.rows import merge
from analyzer.spec import load_spec

if TYPE_CHECKING:
    from collections.abc import Iterable

End = tuple[str, int]
SERVER, SERVER_2, AGENT, AGENT_2, OUTSIDE = (
    "10.10.0.11",
    "10.10.0.12",
    "10.10.0.21",
    "10.10.0.22",
    "10.10.0.99",
)
SERVER_6, AGENT_6 = "fd00:10::11", "fd00:10::21"
POD, POD_2, VTEP = "10.42.3.10", "10.42.4.10", "10.42.3.0"
CLUSTER = Cluster(
    "prod",
    (
        Node("server-1", "server", (SERVER, SERVER_6)),
        Node("server-2", "server", (SERVER_2,)),
        Node("agent-1", "agent", (AGENT, AGENT_6)),
        Node("agent-2", "agent", (AGENT_2,)),
    ),
    pod_cidrs=("10.42.0.0/16",),
    service_cidrs=("10.43.0.0/16",),
)
SPEC = load_spec("rke2-canal")
SYN_ACK, PUSH = fr.SYN_ACK, fr.PUSH
ECE, CWR = 0x40, 0x80

#: (client, server, protocol, server port, verdict, outcome)
Judged = tuple[str, str, str, int, str, str]
#: (kind, severity, port)
Found = tuple[str, str, int]


def analysis(*captures: Iterable[Frame]) -> Analysis:
    """Captures as files, read, paired, judged."""
    rows = [fr.read(fr.pcap(list(frames)), f"capture-{n}.pcap") for n, frames in enumerate(captures, 1)]
    return Analysis.of(merge(rows), CLUSTER, SPEC)


def judged(of: Analysis) -> set[Judged]:
    rows: Any = of.flows.itertuples(index=False)
    return {
        (
            str(r.client_node) or str(r.client),
            str(r.server_node) or str(r.server),
            str(r.protocol),
            int(r.server_port),
            str(r.verdict),
            str(r.outcome),
        )
        for r in rows
    }


def found(of: Analysis) -> set[Found]:
    rows: Any = of.findings.itertuples(index=False)
    return {(f.kind, f.severity, f.port) for f in rows}


@dataclass(frozen=True)
class Row:
    """`frames`: a conversation, a ms apart. `flows`: all that comes of it; `findings`: none but these."""

    why: str
    frames: list[bytes]
    flows: set[Judged]
    findings: set[Found] = field(default_factory=set)


def allowed(client: str, server: str, port: int, protocol: str = "tcp") -> set[Judged]:
    return {(client, server, protocol, port, "allowed", "answered")}


def quiet(client: str, server: str, port: int, protocol: str = "tcp") -> set[Judged]:
    """Seen, and not judged: pods."""
    return {(client, server, protocol, port, "not-judged", "answered")}


#: DNS: id, QR RD RA and NXDOMAIN, one question, no answer, one authority
NO_SUCH_NAME = bytes.fromhex("0c00 8183 0001 0000 0001 0000 03617069 0178 00 0001 0001")
API: End = (SERVER, 6443)
A: End = (AGENT, 40000)
ETCD: End = (SERVER, 2380)
ETCD_2: End = (SERVER_2, 2380)
TO_API = allowed("agent-1", "server-1", 6443)


def both_ways(client: End, server: End) -> list[bytes]:
    """Data without a handshake, the server's first."""
    return [
        segment(server, client, PUSH, 900),
        segment(client, server, ACK),
        segment(client, server, PUSH, 90),
    ]


def through_tunnel(frames: list[bytes], client: str, here: str, there: str) -> list[bytes]:
    """Each frame in VXLAN from its sender's node; the source port is a hash."""
    from_client = [frame[26:30] == bytes(map(int, client.split("."))) for frame in frames]
    ways = [(here, there) if mine else (there, here) for mine in from_client]
    return [
        carried(f, *way, source_port=50000 + n % 3)
        for n, (f, way) in enumerate(zip(frames, ways, strict=True))
    ]


NODE_PORT: End = (AGENT, 30080)
CARRIERS = allowed("agent-1", "agent-2", 8472, "udp") | allowed("agent-2", "agent-1", 8472, "udp")

ROWS: dict[str, Row] = {
    "answers from a server's port come first": Row(
        "the capture began in the middle; a server that sends from 6443 is no client",
        both_ways(A, API),
        TO_API,
    ),
    "a watch without SYN": Row(
        "it was open before the capture, and the client only acknowledges",
        [segment(API, A, PUSH, 500), segment(A, API, ACK)] * 3,
        TO_API,
    ),
    "keepalives without data": Row(
        "an idle connection: nothing but acknowledgements",
        [segment(A, API, ACK), segment(API, A, ACK)] * 2,
        TO_API,
    ),
    "a retransmitted SYN": Row(
        "the first two were lost on the way; it was answered in the end",
        [segment(A, API, SYN), segment(A, API, SYN), *talk(A, API)],
        TO_API,
    ),
    "a retransmitted SYN-ACK": Row(
        "the client's acknowledgement was lost",
        [segment(A, API, SYN), segment(API, A, SYN_ACK), segment(API, A, SYN_ACK), segment(A, API, ACK)],
        TO_API,
    ),
    "a reused 5-tuple": Row(
        "two connections one after the other; to the table they are one flow",
        [*talk(A, API), *talk(A, API)],
        TO_API,
    ),
    "a reused 5-tuple, refused the first time": Row(
        "the apiserver was starting; the same port tried again was answered",
        [*refusal(A, API), *talk(A, API)],
        TO_API,
    ),
    "a simultaneous open": Row(
        "both etcd members dial from their peer port at once (RFC 9293 section 3.5)",
        [
            segment(ETCD, ETCD_2, SYN),
            segment(ETCD_2, ETCD, SYN),
            segment(ETCD, ETCD_2, SYN_ACK),
            segment(ETCD_2, ETCD, SYN_ACK),
            segment(ETCD, ETCD_2, PUSH, 10),
        ],
        allowed("server-1", "server-2", 2380),
    ),
    "a SYN-ACK before its SYN": Row(
        "two interfaces, or two CPUs, wrote them in the wrong order",
        [segment(API, A, SYN_ACK), segment(A, API, SYN), segment(A, API, ACK)],
        TO_API,
    ),
    "a SYN that asks for ECN": Row(
        "ECE and CWR beside SYN are an offer (RFC 3168 section 6.1.1), no malformed flags",
        [segment(A, API, SYN | ECE | CWR), segment(API, A, SYN_ACK | ECE), segment(A, API, ACK)],
        TO_API,
    ),
    "a SYN with data": Row(
        "TCP Fast Open (RFC 7413)",
        [segment(A, API, SYN, 200), segment(API, A, SYN_ACK), segment(API, A, PUSH, 80)],
        TO_API,
    ),
    "a reset at the end": Row(
        "many clients close with RST; a connection that had data was not refused",
        [*handshake(A, API), segment(A, API, PUSH, 9), segment(API, A, PUSH, 9), segment(API, A, RST | ACK)],
        TO_API,
    ),
    "a reset to an old connection": Row(
        "no SYN was refused: the server forgot a connection from before the capture",
        [segment(A, API, PUSH, 9), segment(API, A, RST)],
        TO_API,
    ),
    "a scan from outside by ACK, FIN, or no flag at all": Row(
        "a reset to what opens nothing is a closed port's answer; no kubelet is exposed by it",
        [
            segment((OUTSIDE, 40000), (AGENT, 10250), ACK),
            segment((AGENT, 10250), (OUTSIDE, 40000), RST),
            segment((OUTSIDE, 40001), (AGENT, 2379), FIN),
            segment((AGENT, 2379), (OUTSIDE, 40001), RST | ACK),
            segment((OUTSIDE, 40002), (AGENT, 9345), 0),
            segment((AGENT, 9345), (OUTSIDE, 40002), RST | ACK),
        ],
        {(OUTSIDE, "agent-1", "tcp", port, "not-judged", "answered") for port in (10250, 2379, 9345)},
    ),
    "half closed": Row(
        "the client has said all it has to say, the server goes on",
        [*handshake(A, API), segment(A, API, FIN | ACK), *[segment(API, A, PUSH, 900)] * 3],
        TO_API,
    ),
    "a client's port in the NodePort range": Row(
        "30000-32767 lies below Linux' ephemeral ports, but other systems hand them out",
        talk((AGENT, 31000), (SERVER, 9345)),
        allowed("agent-1", "server-1", 9345),
    ),
    "a client's port in the NodePort range, without SYN": Row(
        "both ports are in the table; the kubelet's is the lower one",
        both_ways((AGENT, 31000), (AGENT_2, 10250)),
        allowed("agent-1", "agent-2", 10250),
    ),
    "a client's port that is etcd's": Row(
        "who asked is said by the SYN; port 2379 is only where it came from",
        talk((AGENT, 2379), API),
        TO_API,
    ),
    "the last NodePort and an ephemeral port above it": Row(
        "both ports are high; without SYN the table tells which one serves",
        both_ways((AGENT, 60999), (AGENT_2, 32767)),
        allowed("agent-1", "agent-2", 32767),
    ),
    "ephemeral ports above 32767 on both sides": Row(
        "two pods; what they talk inside of VXLAN is theirs",
        through_tunnel(talk((POD, 45000), (POD_2, 50000)), POD, AGENT, AGENT_2),
        CARRIERS | quiet(POD, POD_2, 50000),
    ),
    "WireGuard from its own port to its own port": Row(
        "both ends send from 51820; who began is a matter of chance",
        [
            datagram((SERVER, 51820), (AGENT, 51820), bytes(148)),
            datagram((AGENT, 51820), (SERVER, 51820), bytes(92)),
        ],
        allowed("server-1", "agent-1", 51820, "udp"),
    ),
    "a question to DNS from a port that is WireGuard's": Row(
        "an ephemeral port of 28,232, which a busy resolver has every quarter of an hour",
        [
            datagram((AGENT, 51820), (OUTSIDE, 53), bytes(40)),
            datagram((OUTSIDE, 53), (AGENT, 51820), bytes(90)),
        ],
        quiet("agent-1", OUTSIDE, 53, "udp"),
    ),
    "the same, unanswered": Row(
        "nobody outside sent anything",
        [datagram((AGENT, 51821), (OUTSIDE, 53), bytes(40))] * 3,
        {("agent-1", OUTSIDE, "udp", 53, "not-judged", "unanswered")},
    ),
    "a question to DNS from a port that is VXLAN's": Row(
        "unbound and BIND take any of the unprivileged ports",
        [
            datagram((AGENT, 8472), (OUTSIDE, 53), bytes(40)),
            datagram((OUTSIDE, 53), (AGENT, 8472), bytes(90)),
        ],
        quiet("agent-1", OUTSIDE, 53, "udp"),
    ),
    **{
        f"a pod's connection to the outside that was open before, and got port {port}": Row(
            "NAT gives it any port above 1023; nobody serves the web to a NodePort",
            both_ways((AGENT, port), (OUTSIDE, 443)),
            quiet("agent-1", OUTSIDE, 443),
        )
        for port in (31000, 10250)
    },
    "a connection to NFS that was open before": Row(
        "its clients have ports from 512 to 1023; a NodePort is what serves it here",
        both_ways((AGENT, 700), (SERVER, 32049)),
        allowed("agent-1", "server-1", 32049),
    ),
    **{
        f"a name that is not there, asked for from port {port}": Row(
            "NAT takes any port above 1023 for a pod's question; bits of the answer are a tunnel header's",
            [
                datagram((AGENT, port), (OUTSIDE, 53), bytes(30)),
                datagram((OUTSIDE, 53), (AGENT, port), NO_SUCH_NAME),
            ],
            quiet("agent-1", OUTSIDE, 53, "udp"),
        )
        for port in (8472, 4789, 6081)
    },
    "VXLAN from a port that changes": Row(
        "the source port is a hash of the inner frame: no carrier is answered on its own 5-tuple",
        [
            carried(segment((POD, 40000), (POD_2, 80), SYN), AGENT, AGENT_2, source_port=41000),
            carried(segment((POD_2, 80), (POD, 40000), SYN_ACK), AGENT_2, AGENT, source_port=52000),
        ],
        CARRIERS | quiet(POD, POD_2, 80),
    ),
    "a NodePort, and its way on after translation": Row(
        "the node puts its own tunnel address in place of the client's and goes on to another node's pod",
        [
            *talk((AGENT_2, 40000), NODE_PORT),
            *through_tunnel(talk((VTEP, 20000), (POD_2, 8080)), VTEP, AGENT, AGENT_2),
        ],
        allowed("agent-2", "agent-1", 30080) | CARRIERS | quiet(VTEP, POD_2, 8080),
    ),
    "a NodePort seen after translation": Row(
        "on the pod's bridge its address stands where the NodePort was: 8080 is the pod's, not the node's",
        talk((AGENT_2, 40000), (POD, 8080)),
        quiet("agent-2", POD, 8080),
    ),
    "a NodePort's client outside": Row(
        "NodePorts are there for that",
        talk((OUTSIDE, 40000), NODE_PORT),
        {(OUTSIDE, "agent-1", "tcp", 30080, "not-judged", "answered")},
        {("exposure", "info", 30080)},
    ),
    "a pod that asks the apiserver": Row(
        "before the node puts its own address in place of the pod's it is the pod's flow",
        talk((POD, 40000), API),
        quiet(POD, "server-1", 6443),
    ),
    "fragmentation needed": Row(
        "ICMP that quotes a flow and asks for smaller packets does not end it",
        [
            *handshake(A, API),
            segment(A, API, PUSH, 1400),
            unreachable(SERVER, segment(A, API, PUSH, 1400), 4),
        ],
        TO_API | {("server-1", "agent-1", "icmp", 4, "not-judged", "one-way")},
    ),
    "neighbour discovery between nodes": Row(
        "what ARP is to IPv4 belongs to the link",
        [
            message(AGENT_6, SERVER_6, 135),
            message(SERVER_6, AGENT_6, 136),
            *talk((AGENT_6, 40000), (SERVER_6, 6443)),
        ],
        TO_API | {("agent-1", "server-1", "icmpv6", 0, "not-judged", "answered")},
    ),
    "etcd's metrics refused": Row(
        "they are bound to loopback by default; it is told, and no more",
        refusal((SERVER_2, 40000), (SERVER, 2381)),
        {("server-2", "server-1", "tcp", 2381, "allowed", "refused")},
        {("blocked", "info", 2381)},
    ),
    "a node that asks itself": Row(
        "a node's own address is no way between nodes",
        talk((SERVER, 40000), API),
        {("server-1", "server-1", "tcp", 6443, "not-judged", "answered")},
    ),
}


def test_there_are_enough() -> None:
    assert len(ROWS) >= 14
    assert all(row.why for row in ROWS.values())


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_what_looks_wrong_and_is_right(row: Row) -> None:
    of = analysis(timed(row.frames))
    assert judged(of) == row.flows
    assert found(of) == row.findings
    (ledger,) = of.coverage
    assert ledger.flow == ledger.frames == len(row.frames)


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_two_captures_of_it_are_one(row: Row) -> None:
    """Both nodes captured it: nothing comes twice."""
    once, twice = (
        analysis(timed(row.frames)),
        analysis(timed(row.frames), timed(row.frames, fr.EPOCH + 50_000)),
    )
    assert judged(twice) == judged(once)
    assert found(twice) == found(once)
    columns = ["packets_out", "packets_in", "bytes_out", "bytes_in"]
    assert twice.flows[columns].sum().tolist() == once.flows[columns].sum().tolist()


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_cut_anywhere_it_is_the_same(row: Row) -> None:
    """Two files, one after the other, in place of one; as captures are rotated."""
    frames = timed(row.frames)
    for cut in range(1, len(frames), max(1, len(frames) // 4)):
        parts = [fr.read(fr.pcap(part), "capture-1.pcap") for part in (frames[:cut], frames[cut:])]
        of = Analysis.of(merge(parts), CLUSTER, SPEC)
        assert judged(of) == row.flows
        assert found(of) == row.findings


def test_a_question_at_the_end_of_the_capture() -> None:
    """A SYN 100 ms before the end had no time to be answered; TCP asks again after a second."""
    asked = Frame(segment((AGENT_2, 41000), API, SYN), fr.EPOCH + 10 * NS)
    other = [*timed(talk(A, API)), asked, Frame(segment(API, A, ACK), fr.EPOCH + 10 * NS + NS // 10)]
    of = analysis(other)
    assert ("agent-2", "server-1", "tcp", 6443, "allowed", "unanswered") in judged(of)
    assert found(of) == set()


# ---- the same, with what makes it right taken out ----

WRONG: dict[str, tuple[list[bytes], set[Found]]] = {
    "a SYN that is never answered": ([segment(A, API, SYN)] * 3, {("blocked", "high", 6443)}),
    "refused, and not tried again": (refusal(A, API), {("blocked", "high", 6443)}),
    "etcd as a server's port": (talk((AGENT, 40000), (SERVER, 2379)), {("violation", "critical", 2379)}),
    "ephemeral ports on both sides between nodes": (
        talk((AGENT, 45000), (AGENT_2, 50000)),
        {("violation", "medium", 50000)},
    ),
    "a kubelet's connection that ends with a reset": (
        [
            segment((OUTSIDE, 40000), (AGENT, 10250), ACK),
            segment((AGENT, 10250), (OUTSIDE, 40000), ACK),
            segment((AGENT, 10250), (OUTSIDE, 40000), RST),
        ],
        {("exposure", "critical", 10250)},
    ),
    "etcd tried by an agent without SYN, and reset": (
        [segment((AGENT, 40000), (SERVER, 2379), ACK), segment((SERVER, 2379), (AGENT, 40000), RST)],
        {("violation", "high", 2379)},
    ),
    "a pod's port asked of a node": (talk((AGENT_2, 40000), (AGENT, 8080)), {("violation", "medium", 8080)}),
    "VXLAN one way": (
        [carried(segment((POD, 40000), (POD_2, 80), SYN), AGENT, AGENT_2)] * 3,
        {("blocked", "high", 8472)},
    ),
    "prohibited by a firewall": (
        [segment(A, API, SYN), unreachable(SERVER, segment(A, API, SYN), 13)],
        {("blocked", "high", 6443)},
    ),
    "WireGuard from outside": (
        [datagram((OUTSIDE, 51820), (AGENT, 51820), bytes(148))],
        {("foreign-tunnel", "high", 51820)},
    ),
    "WireGuard from outside, from a port that it got behind NAT": (
        [
            datagram((OUTSIDE, 1053), (AGENT, 51820), bytes(148)),
            datagram((AGENT, 51820), (OUTSIDE, 1053), bytes(92)),
        ],
        {("foreign-tunnel", "high", 51820)},
    ),
    "to VXLAN's port from outside, from DNS's": (
        [
            datagram((OUTSIDE, 53), (AGENT, 8472), bytes(40)),
            datagram((AGENT, 8472), (OUTSIDE, 53), bytes(40)),
        ],
        {("foreign-tunnel", "high", 8472)},
    ),
    "WireGuard from outside, answered from an ephemeral port": (
        [
            datagram((AGENT, 51820), (OUTSIDE, 40000), bytes(92)),
            datagram((OUTSIDE, 40000), (AGENT, 51820), bytes(148)),
        ],
        {("foreign-tunnel", "high", 51820)},
    ),
    "a question to a node's DNS from a port that is WireGuard's": (
        [
            datagram((AGENT, 51820), (AGENT_2, 53), bytes(40)),
            datagram((AGENT_2, 53), (AGENT, 51820), bytes(90)),
        ],
        {("violation", "medium", 53)},
    ),
}


@pytest.mark.parametrize(("frames", "findings"), WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_told(frames: list[bytes], findings: set[Found]) -> None:
    later = Frame(fr.arp(), fr.EPOCH + 30 * NS)
    assert found(analysis([*timed(frames, step=NS), later])) == findings


@pytest.mark.parametrize(
    ("kept", "findings"), [(74, {("blocked", "high", 6443)}), (64, {("blind-spot", "medium", 0)})]
)
def test_what_was_refused_without_its_flags_is_no_health(kept: int, findings: set[Found]) -> None:
    """Behind IPv6 a snaplen of 64 bytes holds the ports of TCP, and not its flags."""
    frames = timed(refusal((AGENT_6, 40000), (SERVER_6, 6443)) * 3)
    of = analysis([Frame(f.data[:kept], f.time, len(f.data)) for f in frames])
    assert found(of) == findings
