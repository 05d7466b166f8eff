"""Diagnoses. Rule: each signature fires on what it is about and on nothing else: in the lab, whose kernel,
firewalls and tunnels are real, on the recordings, and on packets by hand that differ from it in one thing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import frames as fr
import pytest
from conftest import PUBLIC, RECORDED, require_program, require_root, require_shared
from frames import (
    EPOCH,
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
    traffic,
    unreachable,
)
from hypothesis import given, settings
from packets import ACK, SYN
from runs import AGENT, AGENT_2, OUTSIDE, RECORDINGS, SERVER, SERVER_2, recorded
from runs import CLUSTER as PLAIN

from analyzer.analysis import Analysis, analyze
from analyzer.cluster import Cluster, Node, VirtualIP, load_cluster
from analyzer.diagnosis import COLUMNS, CONFIDENCES, SIGNATURES, diagnose
from analyzer.infer import infer
from analyzer.report import document
from analyzer.rows import merge
from analyzer.spec import load_spec
from analyzer.store import read_inputs
from lab import plan
from lab.scenarios import FAILURES

if TYPE_CHECKING:
    from collections.abc import Iterable

End = tuple[str, int]
NAMES = tuple(signature.name for signature in SIGNATURES)


def names(of: Analysis) -> set[str]:
    return set(diagnose(of)["name"])


def only(of: Analysis) -> dict[Any, Any]:
    (row,) = diagnose(of).to_dict("records")
    return row


# ---- the lab ----

#: scenario → signature, confidence, nodes concerned, (kind, port) of the findings that it explains
FAILED: dict[str, tuple[str, str, list[str], set[tuple[str, int]]]] = {
    "etcd-dropped": ("etcd-port-closed", "high", ["server-2", "server-3"], {("blocked", 2379)}),
    "join-at-apiserver": ("server-url-is-6443", "medium", ["agent-3", "server-1"], set()),
    "join-at-mistyped-port": ("port-mistyped", "high", ["agent-1", "server-3"], {("violation", 9435)}),
    "join-at-old-address": ("old-server-address", "high", ["10.10.0.99", "agent-2"], set()),
    "join-at-nat-address": ("nat-address-advertised", "high", ["10.0.2.15", "agent-1"], set()),
    "typha-dropped": ("typha-blocked", "high", ["agent-2", "server-1"], {("violation", 5473)}),
    "kubelet-dropped": ("kubelet-blocked", "high", ["agent-2", "server-2"], {("blocked", 10250)}),
    "bad-checksums": ("pod-tcp-lost", "medium", ["agent-1", "agent-3"], set()),
    "vxlan-lost": ("vxlan-lost", "high", ["agent-2", "agent-3"], {("blocked", 8472)}),
    "large-vxlan-lost": ("mtu-black-hole", "medium", ["agent-1", "agent-2"], set()),
    "stale-vxlan-network": ("two-vnis", "medium", ["agent-1", "agent-3"], set()),
    "vxlan-from-virtual-address": (
        *("virtual-address-as-vtep", "high", ["agent-3", "api"]),
        {("blocked", 8472)},
    ),
    "pods-stop": ("pods-stopped", "low", ["server-1"], set()),
}


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Analysis]:
    """All of them in one lab, one after the other, each captured on every node for itself."""
    from lab import Lab
    from lab.recordings import Recording, capture

    require_root()
    for program in ("tcpdump", "nft", "setpriv"):
        require_program(program)
    whole = load_cluster(RECORDED / "baseline" / "cluster.yaml")
    cluster = replace(whole, virtual_ips=(VirtualIP(plan.VIRTUAL_ADDRESS, "server", "api"),))
    out = tmp_path_factory.mktemp("failures")
    with Lab() as lab:
        lab.start()
        for name in FAILURES:
            (out / name).mkdir()
            lab.prepare(name)
            with capture(lab, Recording("", "", (), nodes=tuple(plan.NODES)), out / name):
                lab.run(name, seconds=0.5)
                lab.settle()
    return {name: analyze(out / name, cluster=cluster) for name in FAILURES}


@pytest.mark.parametrize("scenario", FAILURES)
def test_a_failure_in_the_lab_has_its_diagnosis_and_no_other(
    scenario: str, failures: dict[str, Analysis]
) -> None:
    of = failures[scenario]
    told = only(of)
    name, confidence, nodes, explained = FAILED[scenario]
    assert (told["name"], told["confidence"], told["nodes"]) == (name, confidence, nodes)
    found = of.findings[of.findings["id"].isin(told["findings"])]
    assert set(zip(found["kind"], found["port"], strict=True)) == explained
    assert len(told["findings"]) == len(explained)


# ---- the recordings ----

#: recording → signature → pairs that show it; the others show none
RECORDED_CAUSES = {
    "blocked": {
        "join-blocked": "agent-1 → server-2 (9345), agent-2 → server-1 (9345)",
        "firewall-rejects": "agent-2 → server-2 (9345)",
    },
    "vxlan-answers-lost": {
        "vxlan-one-way": "agent-1 → server-1 (8472), agent-2 → server-1 (8472), agent-3 → server-1 (8472)"
    },
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_has_its_diagnoses_and_no_other(name: str) -> None:
    told = diagnose(recorded(name))
    causes = dict(zip(told["name"], told["cause"], strict=True))
    wanted = RECORDED_CAUSES.get(name, {})
    assert set(causes) == set(wanted)
    assert all(causes[signature].endswith(f": {pairs}") for signature, pairs in wanted.items())
    assert set(told["confidence"]) <= {"high"}


def test_a_real_flannel_cluster_has_none() -> None:
    require_shared()
    rows = read_inputs([PUBLIC / "wz1st__flannel.pcap"])
    seen = infer(rows)
    nodes = tuple(Node(node.name, "agent", node.addresses) for node in (*seen.nodes, *seen.unknown))
    of = Analysis.of(rows, Cluster("flannel", nodes, pod_cidrs=("10.244.0.0/16",)), load_spec())
    assert (of.flows["vni"] == 1).any()
    assert names(of) == set()


# ---- packets by hand ----

VIP, NAT = "10.10.0.10", "10.0.2.15"
POD, POD_2, POD_3 = "10.42.3.10", "10.42.4.10", "10.42.4.11"
CLUSTER = replace(PLAIN, virtual_ips=(VirtualIP(VIP, "server", "api"),))


def seconds(*frames: bytes, since: float = 0) -> list[Frame]:
    """A frame each second."""
    return timed(frames, EPOCH + int(since * NS), NS)


def quick(*frames: bytes, since: float = 0) -> list[Frame]:
    """A frame each millisecond."""
    return timed(frames, EPOCH + int(since * NS))


def silent(client: End, server: End, since: float = 0) -> list[Frame]:
    """SYNs as TCP repeats them, and no answer."""
    return seconds(*[segment(client, server, SYN)] * 3, since=since)


def tunnel(frames: Iterable[Frame], here: str = AGENT, there: str = AGENT_2, **how: Any) -> list[Frame]:
    """Frames of pods in VXLAN between two nodes: those of the pod behind `here` go there."""
    mine = bytes(map(int, POD.split(".")))
    ways = ((here, there), (there, here))
    return [replace(f, data=carried(f.data, *ways[f.data[26:30] != mine], **how)) for f in frames]


def stalled(client: End, server: End, since: float = 0) -> list[Frame]:
    """A question whose answer is too large: the segment is sent again and again (RFC 6298)."""
    asked = [*handshake(client, server), segment(client, server, fr.PUSH, 100)]
    times = (0, 0.2, 0.6, 1.4, 3.0, 6.2)
    answers = [Frame(segment(server, client, ACK, 1300), EPOCH + int((since + 0.1 + t) * NS)) for t in times]
    return [*quick(*asked, since=since), *answers]


def download(client: End, server: End, since: float = 0, *, packets: int = 40) -> list[Frame]:
    """A large answer, of which each second packet is acknowledged."""
    data = [
        frame
        for n in range(packets)
        for frame in (segment(server, client, ACK, 1300), segment(client, server, ACK))[: 1 + n % 2]
    ]
    return timed([*handshake(client, server), *data], EPOCH + int(since * NS), 50_000_000)


A, A2, S2 = (AGENT, 40000), (AGENT, 40001), (SERVER_2, 40000)
JOIN, API, ETCD, WRONG, TYPHA = ((SERVER, port) for port in (9345, 6443, 2379, 9435, 5473))
P, P2 = (POD, 50000), (POD, 50001)
WEB, WEB_2, DNS = (POD_2, 8080), (POD_3, 8080), (POD_2, 53)
SYSLOG = [datagram((POD, 50000), (POD_2, 514), b"line")] * 5
ASKED = quick(*talk(P, WEB))
PING = tunnel(quick(message(POD, POD_2, 8), message(POD_2, POD, 0)))
KUBELET = (AGENT, 10250)
ALIVE = quick(*talk((AGENT_2, 41000), JOIN), since=60)
#: agent-1's and server-1's healthy supervisor's and API's connections, over a minute
JOINED = [*quick(*talk(A2, JOIN)), *quick(*talk((AGENT, 40002), JOIN), since=60)]
SMALL = tunnel(quick(*talk((POD, 50009), (POD_2, 9000))))
BEFORE = [*tunnel(quick(*talk(P, WEB))), *tunnel(quick(*talk(P2, WEB_2), since=1))]
AFTER = [
    *tunnel(silent((POD, 50002), WEB, since=20)),
    *tunnel(silent((POD, 50003), WEB_2, since=21)),
]
Captures = dict[str, list[Frame]]

#: signature → captures of nodes that show it
SIGNS: dict[str, Captures] = {
    "join-blocked": {"agent-1.pcap": silent(A, JOIN)},
    "firewall-rejects": {
        "agent-1.pcap": seconds(segment(A, JOIN, SYN), unreachable(SERVER, segment(A, JOIN, SYN), 10))
    },
    "etcd-port-closed": {"server-2.pcap": [*quick(*talk(S2, JOIN)), *silent(S2, ETCD, since=1)]},
    "server-url-is-6443": {
        "agent-1.pcap": [*quick(*talk(A, API)), *quick(*talk(A2, API), since=5)],
        "server-1.pcap": quick(*talk((AGENT_2, 40000), JOIN)),
    },
    "port-mistyped": {"agent-1.pcap": [*quick(*refusal(A, WRONG)), *quick(*refusal(A2, WRONG), since=5)]},
    "old-server-address": {
        "agent-1.pcap": [
            *quick(*refusal(A, (OUTSIDE, 9345))),
            *quick(*refusal((AGENT, 40009), (OUTSIDE, 9345)), since=5),
            *JOINED,
        ]
    },
    "nat-address-advertised": {"agent-1.pcap": quick(*refusal(A, (NAT, 9345)))},
    "typha-blocked": {"agent-1.pcap": silent(A, TYPHA)},
    "kubelet-blocked": {"server-2.pcap": silent(S2, KUBELET)},
    "vxlan-one-way": {name: tunnel(silent(P, WEB)) for name in ("agent-1.pcap", "agent-2.pcap")},
    "vxlan-lost": {
        "agent-1.pcap": tunnel(silent(P, WEB)),
        "agent-2.pcap": quick(*talk((AGENT_2, 41000), JOIN)),
    },
    "pods-stopped": {"agent-1.pcap": [*BEFORE, *AFTER], "agent-2.pcap": ALIVE},
    "pod-tcp-lost": {
        "agent-1.pcap": [*PING, *tunnel(silent(P, WEB)), *tunnel(silent(P2, WEB_2, since=1))],
        "agent-2.pcap": PING,
    },
    "two-vnis": {
        "agent-1.pcap": [
            *tunnel(quick(*talk(P, WEB)), vni=1),
            *tunnel(quick(*talk(P2, WEB), since=1), vni=15042),
        ]
    },
    "virtual-address-as-vtep": {"server-1.pcap": tunnel(quick(*talk(P, WEB)), here=VIP)},
    "mtu-black-hole": {
        "agent-1.pcap": [*SMALL, *tunnel(stalled(P, WEB)), *tunnel(stalled(P2, WEB, since=1))]
    },
}


@dataclass(frozen=True)
class Near:
    """What looks like a signature's sign and is none; `instead`: what it is."""

    signature: str
    why: str
    captures: Captures
    instead: frozenset[str] = frozenset()


def _moved(captures: Captures, name: str, by: float) -> Captures:
    return captures | {name: [replace(f, time=f.time + int(by * NS)) for f in captures[name]]}


NEAR = (
    Near(
        "join-blocked",
        "the second SYN is answered",
        {"agent-1.pcap": seconds(segment(A, JOIN, SYN), *talk(A, JOIN))},
    ),
    Near("join-blocked", "the server restarts: it resets", {"agent-1.pcap": quick(*refusal(A, JOIN))}),
    Near(
        "join-blocked",
        "one connection was lost, the next is good",
        {"agent-1.pcap": [*silent(A, JOIN), *JOINED]},
    ),
    Near(
        "join-blocked",
        "one SYN that is not repeated",
        {"agent-1.pcap": [*quick(segment(A, JOIN, SYN)), *quick(*talk(A2, API), since=5)]},
    ),
    Near(
        "join-blocked",
        "a filter left SYNs alone of each connection, two servers' own, which the table does not have",
        {"server-1.pcap": seconds(*[segment((SERVER_2, 40000 + n), JOIN, SYN) for n in range(4)])},
    ),
    Near("join-blocked", "somebody outside is kept out", {"server-1.pcap": silent((OUTSIDE, 40000), JOIN)}),
    Near(
        "join-blocked",
        "the capture ends before an answer could come",
        {"agent-1.pcap": quick(segment(A, JOIN, SYN))},
    ),
    Near(
        "firewall-rejects",
        "the machine is down: host unreachable",
        {"agent-1.pcap": seconds(segment(A, JOIN, SYN), unreachable(SERVER, segment(A, JOIN, SYN), 1))},
    ),
    Near(
        "firewall-rejects",
        "a router in between prohibits it, not the server",
        {"agent-1.pcap": seconds(segment(A, JOIN, SYN), unreachable(OUTSIDE, segment(A, JOIN, SYN), 13))},
    ),
    Near(
        "etcd-port-closed",
        "the supervisor does not answer either",
        {"server-2.pcap": [*silent(S2, JOIN), *silent(S2, ETCD, since=1)]},
        frozenset({"join-blocked"}),
    ),
    Near(
        "etcd-port-closed",
        "etcd is not up yet: it resets",
        {"server-2.pcap": [*quick(*talk(S2, JOIN)), *quick(*refusal(S2, ETCD), since=1)]},
    ),
    Near(
        "etcd-port-closed",
        "it is an agent, which the firewall of a healthy cluster keeps away from etcd",
        {"agent-1.pcap": [*quick(*talk(A, JOIN)), *silent(A2, ETCD, since=1)]},
    ),
    Near(
        "server-url-is-6443",
        "the node has a supervisor too",
        {"agent-1.pcap": [*SIGNS["server-url-is-6443"]["agent-1.pcap"], *JOINED]},
    ),
    Near(
        "server-url-is-6443",
        "kubectl, from outside",
        {"server-1.pcap": [f for n in range(4) for f in quick(*talk((OUTSIDE, 40000 + n), API), since=n)]},
    ),
    Near(
        "server-url-is-6443",
        "the captures hold port 6443 alone",
        {"agent-1.pcap": SIGNS["server-url-is-6443"]["agent-1.pcap"]},
    ),
    Near(
        "server-url-is-6443",
        "one watch that is open",
        SIGNS["server-url-is-6443"] | {"agent-1.pcap": quick(*handshake(A, API))},
    ),
    Near(
        "port-mistyped",
        "the node has a supervisor, something else asks for that port",
        {"agent-1.pcap": [*SIGNS["port-mistyped"]["agent-1.pcap"], *JOINED]},
    ),
    Near(
        "port-mistyped",
        "a scan, which tries that port among others",
        {
            "agent-1.pcap": [
                f for port in range(9430, 9440) for f in quick(*refusal(A, (SERVER, port)), since=port)
            ]
        },
    ),
    Near("port-mistyped", "no slip makes this of 9345", {"agent-1.pcap": quick(*refusal(A, (SERVER, 9090)))}),
    Near(
        "old-server-address",
        "it is a server's address: that one restarts",
        {"agent-1.pcap": [*quick(*refusal(A, JOIN)), *quick(*refusal(A2, JOIN), since=5)]},
    ),
    Near(
        "old-server-address",
        "a load balancer that the cluster file does not have: it answers before and after",
        {
            "agent-1.pcap": [
                *SIGNS["old-server-address"]["agent-1.pcap"],
                *quick(*talk((AGENT, 40010), (OUTSIDE, 9345)), since=7),
            ]
        },
    ),
    Near("old-server-address", "once only", {"agent-1.pcap": quick(*refusal(A, (OUTSIDE, 9345)))}),
    Near("nat-address-advertised", "another service there", {"agent-1.pcap": quick(*talk(A, (NAT, 443)))}),
    Near(
        "nat-address-advertised",
        "another address of NAT",
        {"agent-1.pcap": quick(*refusal(A, ("10.0.2.2", 9345)))},
    ),
    Near("typha-blocked", "Typha runs elsewhere: it resets", {"agent-1.pcap": quick(*refusal(A, TYPHA))}),
    Near(
        "typha-blocked",
        "another Typha answers this node",
        {"agent-1.pcap": [*silent(A, TYPHA), *quick(*talk(A2, (SERVER_2, 5473)), since=4)]},
    ),
    Near("typha-blocked", "Typha answers", {"agent-1.pcap": quick(*talk(A, TYPHA))}),
    Near("kubelet-blocked", "a server's kubelet", {"server-2.pcap": silent(S2, (SERVER, 10250))}),
    Near("kubelet-blocked", "the agent restarts: it resets", {"server-2.pcap": quick(*refusal(S2, KUBELET))}),
    Near(
        "kubelet-blocked",
        "it is metrics-server's pod that listens on 10250 and does not answer",
        {"server-2.pcap": tunnel(silent((POD, 40000), (POD_2, 10250)), here=SERVER_2)},
        frozenset({"vxlan-one-way"}),
    ),
    Near(
        "pod-tcp-lost",
        "one port is closed by a network policy, another is open",
        {"agent-1.pcap": [*PING, *tunnel(silent(P, WEB)), *tunnel(quick(*talk(P2, WEB_2), since=1))]},
    ),
    Near(
        "pod-tcp-lost",
        "two ports are closed by a network policy, a third one is open",
        {
            "agent-1.pcap": [
                *SIGNS["pod-tcp-lost"]["agent-1.pcap"],
                *tunnel(quick(*talk((POD, 50005), (POD_2, 9000)), since=2)),
            ]
        },
    ),
    Near(
        "pod-tcp-lost",
        "no ping was answered, but a question to DNS, whose checksum is a network card's work too",
        {
            "agent-1.pcap": [
                *tunnel(quick(datagram(P, DNS, b"?"), datagram(DNS, P, b"!"))),
                *tunnel(silent(P, WEB)),
                *tunnel(silent(P2, WEB_2, since=1)),
            ]
        },
    ),
    Near("pod-tcp-lost", "one port alone", {"agent-1.pcap": [*PING, *tunnel(silent(P, WEB))]}),
    Near(
        "pod-tcp-lost",
        "one is refused, so TCP comes through",
        {"agent-1.pcap": [*PING, *tunnel(silent(P, WEB)), *tunnel(quick(*refusal(P2, WEB_2), since=1))]},
    ),
    Near(
        "vxlan-one-way",
        "only what expects no answer is in it",
        {name: tunnel(seconds(*SYSLOG)) for name in ("agent-1.pcap", "agent-2.pcap")},
    ),
    Near(
        "vxlan-one-way",
        "one pod does not answer, others do",
        {"agent-1.pcap": [*tunnel(silent(P, WEB)), *tunnel(quick(*talk(P2, WEB_2)))]},
    ),
    Near(
        "vxlan-one-way",
        "answers go to the node's own address, and one pod gives none",
        {
            "server-1.pcap": [
                *tunnel(silent(P2, WEB_2), here=VIP),
                *(f for f in tunnel(ASKED, here=VIP) if f.data[26:30] == bytes((10, 10, 0, 10))),
                *(f for f in tunnel(ASKED, here=SERVER) if f.data[26:30] != bytes((10, 10, 0, 11))),
            ]
        },
        frozenset({"virtual-address-as-vtep"}),
    ),
    Near(
        "vxlan-lost",
        "the other end was not captured: where it is lost is not known",
        {"agent-1.pcap": tunnel(silent(P, WEB))},
        frozenset({"vxlan-one-way"}),
    ),
    Near(
        "vxlan-lost",
        "the other end was captured an hour later",
        _moved(SIGNS["vxlan-lost"], "agent-2.pcap", 3600),
        frozenset({"vxlan-one-way"}),
    ),
    Near(
        "pods-stopped",
        "one pod ended, another of the node goes on",
        {
            "agent-1.pcap": [*BEFORE, *AFTER, *tunnel(quick(*talk((POD, 50004), WEB_2), since=30))],
            "agent-2.pcap": ALIVE,
        },
    ),
    Near("pods-stopped", "the whole node ended", {"agent-1.pcap": [*BEFORE, *AFTER]}),
    Near(
        "pods-stopped",
        "one service stopped",
        {"agent-1.pcap": [*BEFORE, *tunnel(silent((POD, 50002), WEB, since=20))], "agent-2.pcap": ALIVE},
    ),
    Near(
        "two-vnis",
        "Cilium, whose VNI is the sender's identity",
        {
            "agent-1.pcap": [
                *tunnel(quick(*talk(P, WEB)), vni=6),
                *tunnel(quick(*talk(P2, WEB), since=1), vni=15042),
            ]
        },
    ),
    Near(
        "two-vnis",
        "one on each port: Windows beside Linux",
        {
            "agent-1.pcap": [
                *tunnel(quick(*talk(P, WEB)), vni=1),
                *tunnel(quick(*talk(P2, WEB), since=1), vni=4096, port=4789),
            ]
        },
    ),
    Near(
        "two-vnis",
        "the other one comes from outside the cluster",
        {
            "agent-1.pcap": [
                *tunnel(quick(*talk(P, WEB)), vni=1),
                *tunnel(quick(*talk(P2, WEB), since=1), here=OUTSIDE, vni=15042),
                *tunnel(quick(*talk((POD, 50006), WEB), since=2), here=OUTSIDE, vni=1),
            ]
        },
    ),
    Near(
        "virtual-address-as-vtep",
        "the virtual address is there for joining",
        {"agent-1.pcap": [*quick(*talk(A, (VIP, 9345))), *tunnel(quick(*talk(P, WEB)))]},
    ),
    Near(
        "mtu-black-hole",
        "large packets are acknowledged",
        {"agent-1.pcap": [*SMALL, *tunnel(download(P, WEB)), *tunnel(download(P2, WEB, since=1))]},
    ),
    Near(
        "mtu-black-hole",
        "ICMP says too big once, and the sender goes on with smaller packets, as it should",
        {
            "agent-1.pcap": [
                *quick(message(OUTSIDE, AGENT_2, 3, 4)),
                *timed(
                    [
                        *handshake(A, (AGENT_2, 10250)),
                        *[segment((AGENT_2, 10250), A, ACK, 1100), segment(A, (AGENT_2, 10250), ACK)] * 20,
                    ],
                    step=200_000_000,
                ),
            ]
        },
    ),
    Near(
        "mtu-black-hole",
        "the other end fell silent after large packets were good",
        {
            "agent-1.pcap": [
                *SMALL,
                *tunnel(download((POD, 50008), WEB)),
                *tunnel(stalled(P, WEB, since=10)),
                *tunnel(stalled(P2, WEB, since=11)),
            ]
        },
    ),
    Near(
        "mtu-black-hole",
        "one connection alone proves nothing: the other program may hang",
        {"agent-1.pcap": [*SMALL, *tunnel(stalled(P, WEB))]},
    ),
    Near(
        "mtu-black-hole",
        "nothing else passes between these nodes: they may be cut off",
        {"agent-1.pcap": [*tunnel(stalled(P, WEB)), *tunnel(stalled(P2, WEB, since=1))]},
    ),
)


def analysis(captures: Captures, interval: int = 0) -> Analysis:
    """Captures as files, read, paired, judged. Each ends with a frame of nobody, ten seconds later."""
    parts = []
    for source, frames in captures.items():
        ordered = sorted(frames, key=lambda f: f.time)
        last = Frame(fr.arp(), ordered[-1].time + 10 * NS)
        parts.append(
            fr.read(fr.pcap([*ordered, last][: len(ordered) + (len(ordered) > 1)]), source, interval)
        )
    return Analysis.of(merge(parts), CLUSTER, load_spec())


@cache
def shown(signature: str) -> Analysis:
    return analysis(SIGNS[signature])


def test_every_signature_is_shown_in_the_lab_and_has_a_near_miss() -> None:
    live = {name for name, *_ in FAILED.values()}
    seen = {name for causes in RECORDED_CAUSES.values() for name in causes}
    assert live | seen == set(SIGNS) == {near.signature for near in NEAR} == set(NAMES)
    assert set(FAILED) == set(FAILURES)
    assert len(NAMES) == len(set(NAMES)) >= 14


@pytest.mark.parametrize("signature", NAMES)
def test_its_sign_alone_is_told(signature: str) -> None:
    assert names(shown(signature)) == {signature}


@pytest.mark.parametrize("near", NEAR, ids=lambda near: f"{near.signature}: {near.why}")
def test_what_only_looks_like_it_is_not(near: Near) -> None:
    assert names(analysis(near.captures)) == near.instead


# ---- what is said ----


def test_the_place_of_a_loss_makes_one_way_sure() -> None:
    """Both ends saw it go; or only one was captured."""
    one_end = analysis({"agent-1.pcap": tunnel(silent(P, WEB))})
    assert [only(of)["confidence"] for of in (shown("vxlan-one-way"), one_end)] == ["high", "medium"]


def test_a_capture_that_has_vxlan_makes_a_loss_sure() -> None:
    """One that has none may have been filtered."""
    captures = SIGNS["vxlan-lost"]
    other = tunnel(quick(*talk((POD, 50008), WEB)), here=SERVER)
    seeing = captures | {"agent-2.pcap": [*captures["agent-2.pcap"], *other]}
    assert [only(of)["confidence"] for of in (analysis(seeing), shown("vxlan-lost"))] == ["high", "medium"]


def test_by_two_clocks_nothing_is_lost_between_two_captures() -> None:
    of = shown("vxlan-lost")
    for node in ("agent-1", "agent-2"):
        wrong = [replace(one, clock_offset=2 * NS * (one.source == f"{node}.pcap")) for one in of.coverage]
        assert set(diagnose(replace(of, coverage=tuple(wrong)))["name"]) == {"vxlan-one-way"}


@pytest.mark.parametrize("signature", ["join-blocked", "typha-blocked", "kubelet-blocked"])
def test_a_machine_that_may_be_down_makes_silence_unsure(signature: str) -> None:
    """It is heard after the first SYN: as server, as client, by its own capture; or before it only."""
    (captures,) = SIGNS[signature].items()
    name, frames = captures
    asked = AGENT if signature == "kubelet-blocked" else SERVER
    serving, asking = talk((AGENT_2, 41000), (asked, 30080)), talk((asked, 41000), (AGENT_2, 10250))
    later = [{name: [*frames, *quick(*heard, since=3)]} for heard in (serving, asking)]
    own = {name: frames, f"{'agent-1' if asked == AGENT else 'server-1'}.pcap": quick(fr.arp(), since=1)}
    before = {name: [*quick(*serving, since=-3), *frames]}
    told = [only(analysis(of))["confidence"] for of in (*later, own, before, SIGNS[signature])]
    assert told == ["high", "high", "high", "medium", "medium"]


def test_captures_without_times_end_in_a_table() -> None:
    for captures in SIGNS.values():
        parts = [fr.read(fr.pcapng(frames, kind="simple"), name) for name, frames in captures.items()]
        of = Analysis.of(merge(parts), CLUSTER, load_spec())
        assert of.flows["start"].isna().all()
        assert list(diagnose(of)) == list(COLUMNS)


def test_an_interval_without_an_answer_makes_a_black_hole_sure() -> None:
    one = {"agent-1.pcap": [*SMALL, *tunnel(stalled(P, WEB))]}
    told = only(analysis(one, interval=NS))
    assert (told["name"], told["confidence"]) == ("mtu-black-hole", "high")


def test_an_answer_in_the_next_interval_is_one() -> None:
    """A large packet at the end of each interval, acknowledged at the beginning of the next."""
    server, client = WEB, P
    frames = [*SMALL, *tunnel(quick(*handshake(client, server), segment(server, client, ACK, 1300)))]
    for n in range(1, 8):
        sent = Frame(segment(server, client, ACK, 1300), EPOCH + n * NS + 999_000_000)
        frames += tunnel([sent, Frame(segment(client, server, ACK), EPOCH + (n + 1) * NS + 1_000_000)])
    of = analysis({"agent-1.pcap": frames}, interval=NS)
    assert ((of.flows["packets_in"] > 0) & (of.flows["packets_out"] == 0)).any()
    assert names(of) == set()


def test_icmp_too_big_makes_a_black_hole_sure() -> None:
    server = (AGENT_2, 30080)
    one = [*quick(*talk(A2, server)), *stalled(A, server), *quick(message(OUTSIDE, AGENT_2, 3, 4), since=1)]
    told = only(analysis({"agent-1.pcap": one}))
    assert (told["name"], told["confidence"]) == ("mtu-black-hole", "high")
    assert told["nodes"] == ["agent-1", "agent-2"]


def test_two_pods_make_stopped_pods_surer_than_one_and_a_drained_node_looks_the_same() -> None:
    one = tunnel([*quick(*talk(P, WEB)), *quick(*talk(P2, (POD_2, 9000)), since=1)])
    ended = tunnel([*silent((POD, 50002), WEB, since=20), *silent((POD, 50003), (POD_2, 9000), since=21)])
    of_one = analysis({"agent-1.pcap": [*one, *ended], "agent-2.pcap": ALIVE})
    assert [only(of)["confidence"] for of in (shown("pods-stopped"), of_one)] == ["medium", "low"]
    assert "server-1: " not in only(shown("pods-stopped"))["cause"]


def test_what_is_explained_are_findings_and_what_is_evidence_is_in_a_capture() -> None:
    of = recorded("blocked")
    for row in diagnose(of).to_dict("records"):
        found = of.findings.set_index("id").loc[row["findings"]]
        assert set(found["kind"]) == {"blocked"}
        assert set(found["client"]) | set(found["server"]) == set(row["nodes"])
        assert 1 <= len(row["evidence"]) <= 3
        places = set(zip(of.flows["source"].astype(str), of.flows["first_frame"], strict=True))
        assert {(e["source"], e["first_frame"]) for e in row["evidence"]} <= places


def test_many_pairs_are_counted() -> None:
    clients = [(f"10.10.1.{n}", 40000) for n in range(1, 9)]
    cluster = replace(
        CLUSTER,
        nodes=(*CLUSTER.nodes, *(Node(f"node-{n}", "agent", (c[0],)) for n, c in enumerate(clients))),
    )
    frames = sorted((f for c in clients for f in silent(c, JOIN)), key=lambda f: f.time)
    told = only(Analysis.of(fr.read(fr.pcap(frames)), cluster, load_spec()))
    assert told["cause"].endswith(
        "node-0 → server-1 (9345), node-1 → server-1 (9345), node-2 → server-1 (9345), 5 more"
    )
    assert len(told["findings"]) == 8
    assert len(told["nodes"]) == 9


def test_that_address_is_another_machine_where_the_nodes_are_of_its_network() -> None:
    """A subnet of a cloud, say: no machine has a NAT of its own there."""
    refused = [f for n in (0, 5) for f in quick(*refusal((AGENT, 40000 + n), (NAT, 9345)), since=n)]
    known, spec = fr.read(fr.pcap(refused), "agent-1.pcap"), load_spec()
    there = replace(CLUSTER, nodes=(*CLUSTER.nodes, Node("server-3", "server", ("10.0.2.11",))))
    told = [names(Analysis.of(known, of, spec)) for of in (CLUSTER, there)]
    assert told == [{"nat-address-advertised"}, {"old-server-address"}]


def test_the_surest_come_first() -> None:
    up = quick(*talk((SERVER, 40000), (SERVER_2, 2380)), since=9)
    both = analysis({"agent-1.pcap": [*tunnel(silent(P, WEB)), *silent((AGENT_2, 40000), TYPHA), *up]})
    told = diagnose(both)
    assert list(zip(told["name"], told["confidence"], strict=True)) == [
        ("typha-blocked", "high"),
        ("vxlan-one-way", "medium"),
    ]


def test_the_document_has_them() -> None:
    of = recorded("blocked")
    assert document(of)["diagnoses"] == diagnose(of).to_dict("records")
    assert document(recorded("baseline"))["diagnoses"] == []


@given(traffic(), traffic())
@settings(max_examples=30)
def test_any_traffic_ends_in_a_table(frames: list[Frame], more: list[Frame]) -> None:
    parts = [
        fr.read(fr.pcap(each), f"{node}.pcap") for node, each in (("agent-1", frames), ("server-1", more))
    ]
    of = Analysis.of(merge(parts), CLUSTER, load_spec())
    told = diagnose(of)
    assert list(told) == list(COLUMNS)
    assert set(told["name"]) <= set(NAMES)
    assert set(told["confidence"]) <= set(CONFIDENCES)
    assert {name for found in told["findings"] for name in found} <= set(of.findings["id"])


@pytest.mark.parametrize("known", [(), (AGENT,)])
def test_tunnels_between_addresses_that_are_no_nodes_end_in_an_empty_table(known: tuple[str, ...]) -> None:
    """As with another cluster's file, or one without the addresses at which tunnels end."""
    cluster = Cluster("another", (Node("node-1", "agent", (*known, "172.16.0.1")),))
    frames = tunnel(quick(*talk((POD, 50008), WEB)))
    of = Analysis.of(fr.read(fr.pcap(frames), "agent-1.pcap"), cluster, load_spec())
    assert (of.flows["vni"] > 0).any()
    assert diagnose(of).empty


def test_the_index_of_the_flows_does_not_matter() -> None:
    """Tables that were put together have each label several times."""
    of = recorded("offences")
    twice = replace(of, flows=of.flows.set_axis([0] * len(of.flows)))
    assert (of.flows["vni"] > 0).any()
    assert diagnose(twice).to_dict("records") == diagnose(of).to_dict("records")


def test_nothing_is_diagnosed_of_nothing() -> None:
    told = diagnose(Analysis.of(fr.read(fr.pcap([])), CLUSTER, load_spec()))
    assert told.empty
    assert list(told) == list(COLUMNS)
