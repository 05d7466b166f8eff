"""Findings: each kind by the least that makes one, and by a near miss that does not. Rule: flow rows by hand,
judged by verdict.py; captures where a kind hangs on them.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import frames as fr
import pandas as pd
import pytest
from frames import EPOCH, NS, failed, flow
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import SYN
from runs import RECORDINGS, recorded

from analyzer.analysis import Analysis
from analyzer.cluster import Cluster, Node
from analyzer.findings import (
    COLUMNS,
    DROP_REASONS,
    KINDS,
    MANY_CLIENTS,
    SCAN_NODES,
    SCAN_PORTS,
    SEVERITIES,
    Remark,
    find,
    members,
)
from analyzer.rows import Coverage
from analyzer.spec import Rule, Spec, load_spec
from analyzer.verdict import judge

AGENTS = tuple(f"10.10.0.{20 + n}" for n in range(1, 13))
SERVER, SERVER_2 = "10.10.0.11", "10.10.0.12"
AGENT, AGENT_2 = AGENTS[:2]
OUTSIDE = "10.10.0.99"
CLUSTER = Cluster(
    "prod",
    (
        Node("server-1", "server", (SERVER,)),
        Node("server-2", "server", (SERVER_2,)),
        *(Node(f"agent-{n}", "agent", (address,)) for n, address in enumerate(AGENTS, 1)),
    ),
    pod_cidrs=("10.42.0.0/16",),
)
SPEC = load_spec("rke2-canal")
Flow = dict[str, Any]


def found(
    *flows: Flow, coverage: tuple[Coverage, ...] = (), spec: Spec = SPEC, cluster: Cluster = CLUSTER
) -> pd.DataFrame:
    return find(judge(fr.table(flows), cluster, spec), cluster, spec, coverage)


def brief(findings: pd.DataFrame) -> set[tuple[str, str, str, str, int]]:
    columns = ("kind", "severity", "client", "server", "port")
    return set(findings[list(columns)].itertuples(index=False, name=None))


def only(findings: pd.DataFrame) -> pd.Series:
    assert len(findings) == 1, findings[["kind", "title"]].to_string()
    return findings.iloc[0]


def ledger(**changes: Any) -> Coverage:
    whole = {"frames": 100, "flow": 100, "start": EPOCH, "end": EPOCH + 600 * NS}
    return Coverage(**({"source": "capture.pcap"} | whole | changes))


# ---- violation ----

VIOLATIONS: dict[str, tuple[Flow, str]] = {
    "an agent reaches etcd": (flow(AGENT, SERVER, 2379), "critical"),
    "an agent reaches etcd's peers": (flow(AGENT, SERVER, 2380), "critical"),
    "an agent reaches etcd's metrics": (flow(AGENT, SERVER, 2381), "critical"),
    "an agent tries etcd": (failed(AGENT, SERVER, 2379), "high"),
    "an agent tries etcd, one way": (flow(AGENT, SERVER, 2379, outcome="one-way"), "critical"),
    "an agent's UDP to etcd's port": (flow(AGENT, SERVER, 2379, "udp"), "medium"),
    "an agent's UDP to etcd's port, unanswered": (failed(AGENT, SERVER, 2379, "udp"), "low"),
    "a server reaches an agent's etcd port": (flow(SERVER, AGENT, 2379), "high"),
    "a server joins through another": (flow(SERVER, SERVER_2, 9345), "low"),
    "a server tries to join through another": (failed(SERVER, SERVER_2, 9345), "low"),
    "a server asks another's apiserver": (flow(SERVER, SERVER_2, 6443), "low"),
    "a server reaches an agent's 6443": (flow(SERVER, AGENT, 6443), "high"),
    "a server tries an agent's 6443": (failed(SERVER, AGENT, 6443), "medium"),
    "UDP reaches 6443": (flow(AGENT, SERVER, 6443, "udp"), "medium"),
    "UDP tries 6443": (failed(AGENT, SERVER, 6443, "udp"), "low"),
    "ssh": (flow(AGENT, AGENT_2, 22), "medium"),
    "ssh is refused": (failed(AGENT, AGENT_2, 22, outcome="refused"), "low"),
    "a ping": (flow(AGENT, SERVER, 0, "icmp", client_port=8), "medium"),
}
NO_VIOLATIONS = {
    "an agent asks the apiserver": flow(AGENT, SERVER, 6443),
    "etcd among servers": flow(SERVER, SERVER_2, 2379),
    "a node asks itself": flow(AGENT, AGENT, 2379),
    "a pod's etcd": flow("10.42.0.5", SERVER, 2379),
    "in the overlay": flow(AGENT, SERVER, 2379, tunnel="vxlan", vni=1),
    "neither is a node": flow(OUTSIDE, "10.10.0.98", 2379),
    "out of the cluster": flow(AGENT, OUTSIDE, 22),
    "an ICMP error": flow(AGENT, SERVER, 1, "icmp", client_port=3),
    "multicast": flow(AGENT, "224.0.0.1", 5353, "udp"),
    "an allowed flow, one way": flow(AGENT, SERVER, 6443, outcome="one-way"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation(name: str) -> None:
    row, severity = VIOLATIONS[name]
    finding = only(found(row))
    assert (finding["kind"], finding["severity"]) == ("violation", severity)
    assert finding["port"] == (row["client_port"] if row["protocol"] == "icmp" else row["server_port"])
    assert finding["client"] in finding["title"]
    assert ("tried to reach" in finding["title"]) == (row["outcome"] in ("unanswered", "refused"))


@pytest.mark.parametrize("name", NO_VIOLATIONS)
def test_no_violation(name: str) -> None:
    assert found(NO_VIOLATIONS[name]).empty


def test_one_that_got_through_makes_it_graver() -> None:
    finding = only(found(failed(AGENT, SERVER, 2379), flow(AGENT, SERVER, 2379), failed(AGENT, SERVER, 2379)))
    assert finding["severity"] == "critical"
    assert finding["outcomes"] == {"answered": 1, "unanswered": 2}
    assert list(finding["outcomes"]) == ["answered", "unanswered"]


def test_a_violation_says_where_it_is_written() -> None:
    flows = [
        flow(AGENT, SERVER, 2379, start=EPOCH + n * NS, first_frame=10 + n, source=f"{n}.pcap")
        for n in (4, 1, 3, 2)
    ]
    finding = only(found(*flows))
    assert finding["evidence"] == [{"source": f"{n}.pcap", "first_frame": 10 + n} for n in (1, 2, 3)]
    assert (finding["flows"], finding["packets"], finding["bytes"]) == (4, 44, 4 * 5600)
    assert finding["first_seen"] == pd.Timestamp(EPOCH + NS, tz="UTC")
    assert finding["last_seen"] == pd.Timestamp(EPOCH + 5 * NS, tz="UTC")
    assert (finding["rule"], finding["verdict"]) == ("etcd-client", "wrong-pair")
    assert (finding["client_role"], finding["server_role"]) == ("agent", "server")


def test_joining_through_a_server_names_the_other_table() -> None:
    assert "rke2-canal-2025-07-28" in only(found(flow(SERVER, SERVER_2, 9345)))["advice"]
    assert "rke2-canal-2025-07-28" not in only(found(flow(SERVER, AGENT, 9345)))["advice"]
    assert found(flow(SERVER, SERVER_2, 9345), spec=load_spec("rke2-canal-2025-07-28")).empty


# ---- blocked ----


@pytest.mark.parametrize("outcome", ["refused", "unreachable", "unanswered"])
@pytest.mark.parametrize(
    ("client", "port", "protocol", "severity"),
    [
        (AGENT, 6443, "tcp", "high"),
        (AGENT, 9345, "tcp", "high"),
        (SERVER_2, 2379, "tcp", "high"),
        (AGENT, 8472, "udp", "high"),
        (AGENT, 51820, "udp", "high"),
        (AGENT, 10250, "tcp", "medium"),
        (AGENT, 30080, "tcp", "medium"),
        (AGENT, 9099, "tcp", "info"),
        (SERVER_2, 2381, "tcp", "info"),
    ],
)
def test_blocked(client: str, port: int, protocol: str, severity: str, outcome: str) -> None:
    finding = only(found(failed(client, SERVER, port, protocol, outcome=outcome), coverage=(ledger(),)))
    assert (finding["kind"], finding["severity"], finding["port"]) == ("blocked", severity, port)
    assert finding["outcomes"] == {outcome: 1}
    assert ("loopback" in finding["advice"]) == (severity == "info")
    assert ("not a fault" in finding["advice"]) == (severity == "info" and outcome == "refused")
    assert ("Silence" in finding["advice"]) == (outcome == "unanswered")


@pytest.mark.parametrize(
    "row",
    [
        flow(AGENT, SERVER, 6443),
        flow(AGENT, SERVER, 6443, outcome="one-way", packets_in=0),
        failed(AGENT, "10.42.0.5", 6443),
        failed(AGENT, OUTSIDE, 6443),
        failed(OUTSIDE, SERVER, 6443),
    ],
    ids=["answered", "one way", "a pod", "the outside", "from outside"],
)
def test_not_blocked(row: Flow) -> None:
    others = [flow(AGENT_2, SERVER, 6443) for _ in range(3)]
    assert "blocked" not in set(found(row, *others, coverage=(ledger(),))["kind"])


LAST = EPOCH + 600 * NS
ENDINGS: dict[str, tuple[Flow, bool]] = {
    "a single packet, half a second before the end": (
        failed(AGENT, SERVER, start=LAST - NS // 2, end=LAST - NS // 2, packets_out=1),
        False,
    ),
    "a single packet, two seconds before the end": (
        failed(AGENT, SERVER, start=LAST - 2 * NS, end=LAST - 2 * NS, packets_out=1),
        True,
    ),
    "two packets, the later at the very end": (
        failed(AGENT, SERVER, start=LAST - NS, end=LAST, packets_out=2),
        True,
    ),
    "refused at the very end": (
        failed(AGENT, SERVER, start=LAST, end=LAST, packets_out=1, packets_in=1, outcome="refused"),
        True,
    ),
    "unreachable at the very end": (
        failed(AGENT, SERVER, start=LAST, end=LAST, packets_out=1, outcome="unreachable"),
        True,
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("interface", ["", ":if2", ":0-eth0"])
def test_blocked_is_not_claimed_at_the_very_end(name: str, interface: str) -> None:
    row, blocked = ENDINGS[name]
    row = row | {"source": f"capture.pcap{interface}"}
    assert (len(found(row, coverage=(ledger(),))) == 1) == blocked


#: sources, one after the other, and when each begins and ends, in seconds → whether a packet of the last half
#: second of the first one had time to be answered
PIECES: dict[str, tuple[tuple[tuple[str, float, float], ...], bool]] = {
    "the next piece goes on": ((("x_1.pcap", 0, 600), ("x_2.pcap", 600.2, 900)), True),
    "its last and the next one's first frame have one time": (
        (("x.pcap", 0, 600), ("x.pcap1", 600, 900)),
        True,
    ),
    "the next piece goes on, and ends at once": ((("x_1.pcap", 0, 600), ("x_2.pcap", 600.1, 600.3)), False),
    "and a third goes on": (
        (("x_1.pcap", 0, 600), ("x_2.pcap", 600.1, 600.3), ("x_3.pcap", 600.4, 601)),
        True,
    ),
    "the next piece is missing": ((("x_1.pcap", 0, 600), ("x_3.pcap", 660, 900)), False),
    "another capture": ((("x_1.pcap", 0, 600), ("y.pcap", 600.2, 900)), False),
    "another node's": ((("agent-1.pcap", 0, 600), ("agent-2.pcap", 600.2, 900)), False),
    "the same node's": ((("agent-1_1.pcap", 0, 600), ("agent-1_2.pcap", 600.2, 900)), True),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_one_capture_end_together(name: str) -> None:
    """What one still waited for, the next one may show never to have come."""
    pieces, blocked = PIECES[name]
    at = LAST - NS // 2
    row = failed(AGENT, SERVER, start=at, end=at, packets_out=1, source=pieces[0][0], witnesses=pieces[0][0])
    ledgers = tuple(
        ledger(source=source, start=EPOCH + int(a * NS), end=EPOCH + int(b * NS)) for source, a, b in pieces
    )
    assert (len(found(row, coverage=ledgers)) == 1) == blocked
    assert (len(found(row, coverage=ledgers[::-1])) == 1) == blocked


WITNESSES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "both captures, both saw it": (
        "agent-1.pcap;server-1.pcap",
        ("agent-1.pcap", "server-1.pcap"),
        "came to server-1",
    ),
    "both captures, the server did not": (
        "agent-1.pcap",
        ("agent-1.pcap", "server-1.pcap"),
        "never came to server-1",
    ),
    "only the agent's capture": ("agent-1.pcap", ("agent-1.pcap",), ""),
    "a capture of another node": ("agent-1.pcap", ("agent-1.pcap", "server-11.pcap"), ""),
    "in a folder, by interface": (
        "x/agent-1_any.pcap:if2",
        ("x/agent-1_any.pcap", "x/server-1_any.pcap"),
        "never came to server-1",
    ),
    "the server's capture saw it only": ("server-1.pcap", ("agent-1.pcap", "server-1.pcap"), ""),
}


@pytest.mark.parametrize("name", WITNESSES)
def test_blocked_says_where_it_was_lost(name: str) -> None:
    witnesses, files, words = WITNESSES[name]
    row = failed(AGENT, SERVER, source=witnesses.split(";", maxsplit=1)[0], witnesses=witnesses)
    advice = only(found(row, coverage=tuple(replace(ledger(), source=f) for f in files)))["advice"]
    assert ("It left" in advice) == bool(words)
    assert words in advice


def test_a_server_of_several_addresses_may_have_been_captured_elsewhere() -> None:
    """Where its capture has the packet there is no doubt."""
    server = replace(CLUSTER.nodes[0], addresses=(SERVER, "192.168.7.11"))
    cluster = replace(CLUSTER, nodes=(server, *CLUSTER.nodes[1:]))
    coverage = tuple(ledger(source=name) for name in ("agent-1.pcap", "server-1.pcap"))
    dual = replace(CLUSTER, nodes=(replace(server, addresses=(SERVER, "fd00:7::11")), *CLUSTER.nodes[1:]))
    for witnesses, doubt in (("agent-1.pcap", True), ("agent-1.pcap;server-1.pcap", False)):
        row = failed(AGENT, SERVER, source="agent-1.pcap", witnesses=witnesses)
        told = [only(found(row, coverage=coverage, cluster=of))["advice"] for of in (cluster, dual, CLUSTER)]
        assert ["several addresses" in advice for advice in told] == [doubt, False, False]


def test_who_mostly_gets_through_does_not_always_get_through() -> None:
    """An apiserver that was restarted: one connection of many was refused. Other ports say nothing of it."""
    good = [flow(AGENT, SERVER, client_port=41000 + n) for n in range(20)]
    refused = failed(AGENT, SERVER, outcome="refused")
    title = only(found(*good, refused))["title"]
    assert "does not always get through to server-1" in title
    assert title.endswith(": 1 refused, 20 answered")
    beside = (flow(AGENT, SERVER, 10250), flow(AGENT_2, SERVER), flow(AGENT, SERVER_2))
    assert "does not get through to server-1" in only(found(*beside, refused))["title"]


def test_silence_of_a_machine_that_nobody_captured_may_be_that_of_one_that_is_down() -> None:
    row = failed(AGENT, SERVER, source="agent-1.pcap")
    for names, down in ((("agent-1.pcap",), True), (("agent-1.pcap", "server-1.pcap"), False)):
        coverage = tuple(ledger(source=name) for name in names)
        assert ("or that the machine is down" in only(found(row, coverage=coverage))["advice"]) == down


#: (start, end) of the server's capture in seconds after the first of three SYNs within 3 s → whether it was
#: running
RUNNING = {
    "an hour later": (3600, 4200, False),
    "ended before": (-600, -1, False),
    "begins while the client still asks": (2, 600, True),
    "ends while the client still asks": (-600, 1, True),
}


@pytest.mark.parametrize("name", RUNNING)
def test_a_capture_of_another_time_does_not_say_where_it_was_lost(name: str) -> None:
    begin, end, running = RUNNING[name]
    row = failed(AGENT, SERVER, source="agent-1.pcap", witnesses="agent-1.pcap")
    window = {"start": EPOCH + begin * NS, "end": EPOCH + end * NS}
    files = (ledger(source="agent-1.pcap"), ledger(source="server-1.pcap", **window))
    assert ("never came to server-1" in only(found(row, coverage=files))["advice"]) == running


#: (start, end) in seconds of each of some flows, all of one finding → whether a packet of one of them was on
#: its way while the server's capture ran, from 200 s to 300 s
MEANWHILE = {
    "none of two": (((0, 3), (500, 503)), False),
    "one of three": (((0, 3), (250, 253), (500, 503)), True),
    "none of one that asks seldom": (((0, 500),), False),
    "one that asks all the while": (((150, 320),), True),
    "one that begins as it ends": (((299.9, 303),), False),
}


@pytest.mark.parametrize("name", MEANWHILE)
def test_each_flow_says_for_itself_whether_it_was_watched(name: str) -> None:
    """That the first of a finding's flows began before a capture and the last one ended after it shows of
    none of them that it was lost on the way.
    """
    times, running = MEANWHILE[name]
    rows = [
        failed(
            AGENT,
            SERVER,
            client_port=40000 + n,
            start=EPOCH + int(a * NS),
            end=EPOCH + int(b * NS),
            source="agent-1.pcap",
            witnesses="agent-1.pcap",
        )
        for n, (a, b) in enumerate(times)
    ]
    window = {"start": EPOCH + 200 * NS, "end": EPOCH + 300 * NS}
    files = (ledger(source="agent-1.pcap"), ledger(source="server-1.pcap", **window))
    assert ("never came to server-1" in only(found(*rows, coverage=files))["advice"]) == running


def test_an_empty_capture_does_not_say_where_it_was_lost() -> None:
    row = failed(AGENT, SERVER, source="agent-1.pcap", witnesses="agent-1.pcap")
    files = (ledger(source="agent-1.pcap"), Coverage("server-1.pcap"))
    table = found(row, coverage=files)
    assert "never came" not in table[table["kind"] == "blocked"].iloc[0]["advice"]


def test_lost_between_two_nodes_names_both() -> None:
    row = failed(AGENT, SERVER, source="agent-1", witnesses="agent-1")
    live = tuple(replace(ledger(), source=name) for name in ("agent-1", "server-1"))
    assert "between agent-1 and server-1" in only(found(row, coverage=live))["advice"]
    assert "between" not in only(found(row, coverage=live[:1]))["advice"]


@pytest.mark.parametrize("interface", ["", ":eth0", ":eth0:1"])
@pytest.mark.parametrize("name", WITNESSES)
def test_blocked_says_where_it_was_lost_live(name: str, interface: str) -> None:
    """The sources of a live capture are nodes, and their interfaces where there are several."""
    witnesses, files, words = WITNESSES[name]
    nodes = ";".join(_live(w) + interface for w in witnesses.split(";"))
    row = failed(AGENT, SERVER, source=nodes.split(";", maxsplit=1)[0], witnesses=nodes)
    advice = only(found(row, coverage=tuple(replace(ledger(), source=_live(f)) for f in files)))["advice"]
    assert ("It left" in advice) == bool(words)
    assert words in advice


def _live(file: str) -> str:
    return file.removeprefix("x/").partition(".pcap")[0].partition("_any")[0]


def test_a_node_whose_name_begins_with_anothers() -> None:
    """`server-1-b` captured, `server-1` did not: nothing can be said of what came to server-1."""
    nodes = (*CLUSTER.nodes, Node("server-1-b", "server", ("10.10.0.13",)))
    row = failed(AGENT, SERVER, source="agent-1", witnesses="agent-1")
    live = tuple(replace(ledger(), source=name) for name in ("agent-1", "server-1-b"))
    assert "It left" not in only(found(row, coverage=live, cluster=replace(CLUSTER, nodes=nodes)))["advice"]


@pytest.mark.parametrize("source", ["server-1", "server-1:eth0", "server-1:eth0:1"])
@pytest.mark.parametrize("name", ENDINGS)
def test_blocked_is_not_claimed_at_the_very_end_of_a_live_capture(name: str, source: str) -> None:
    """Each node's end is its own: another one's, which went on, says nothing."""
    row, blocked = ENDINGS[name]
    live = (replace(ledger(), source="server-1"), replace(ledger(), source="server-2", end=LAST + 60 * NS))
    assert (len(found(row | {"source": source}, coverage=live)) == 1) == blocked


# ---- dropped by a kernel ----


def dropped(text: str, port: int = 9345, **changes: Any) -> pd.Series:
    row = failed(AGENT, SERVER, port, source="agent-1", witnesses="agent-1;server-1", drops=text, **changes)
    live = tuple(replace(ledger(), source=name) for name in ("agent-1", "server-1"))
    return only(found(row, coverage=live))


def test_a_blocked_flow_names_who_dropped_it_and_why() -> None:
    finding = dropped("server-1 NETFILTER_DROP 3")
    assert (finding["kind"], finding["severity"], finding["port"]) == ("blocked", "high", 9345)
    assert finding["title"].endswith(": 1 unanswered, 3 dropped by server-1 (NETFILTER_DROP)")
    assert (
        "server-1's kernel dropped 3 of its packets: NETFILTER_DROP, a firewall rule on" in finding["advice"]
    )
    assert "came to server-1" in finding["advice"]
    assert finding["id"] == only(found(failed(AGENT, SERVER, 9345)))["id"]


@pytest.mark.parametrize("reason", [*DROP_REASONS, "SOMETHING_NEW"])
def test_every_reason_has_its_words(reason: str) -> None:
    advice = dropped(f"server-1 {reason} 3")["advice"]
    assert f"server-1's kernel dropped 3 of its packets: {reason}" in advice
    assert "{" not in advice
    assert (f"{reason}." in advice) == (reason == "SOMETHING_NEW")


def test_reasons_are_the_kernels() -> None:
    """Names that no kernel uses would never be seen; those of this one, where it publishes them."""
    try:
        published = Path("/sys/kernel/tracing/events/skb/kfree_skb/format").read_text("ascii")
    except OSError:
        pytest.skip("this kernel's reasons cannot be read: no tracefs, or not root")
    assert [name for name in DROP_REASONS if f'"{name}"' not in published] == []


def test_a_reason_by_itself_is_no_finding() -> None:
    row = flow(AGENT, SERVER, drops="server-1 NETFILTER_DROP 3")
    assert found(row).empty
    assert (
        "NETFILTER" not in only(found(flow(AGENT, SERVER, 2379, drops="server-1 NETFILTER_DROP 3")))["title"]
    )


def test_drops_of_one_finding_add_up_by_node_and_reason() -> None:
    """An interface of a node is that node; the most first, three at most."""
    texts = (
        "server-1 NO_SOCKET 1; agent-1 TC_EGRESS 2",
        "server-1:eth0 NO_SOCKET 4; server-1 A 1; server-1 B 1",
    )
    rows = [failed(AGENT, SERVER, client_port=n, drops=text) for n, text in enumerate(texts)]
    title = only(found(*rows, failed(AGENT, SERVER, client_port=9)))["title"]
    assert title.endswith(
        "3 unanswered, 5 dropped by server-1 (NO_SOCKET), 2 dropped by agent-1 (TC_EGRESS), "
        "1 dropped by server-1 (A)"
    )


def test_where_the_server_dropped_it_nothing_is_lost_between() -> None:
    """Its kernel had it before the collector could see it, as with XDP."""
    row = failed(AGENT, SERVER, source="agent-1", witnesses="agent-1", drops="server-1 XDP 3")
    live = tuple(replace(ledger(), source=name) for name in ("agent-1", "server-1"))
    advice = only(found(row, coverage=live))["advice"]
    assert "never came" not in advice
    assert "came to server-1" in advice


def test_a_reset_that_was_taken_is_no_loss() -> None:
    finding = dropped("server-1 NO_SOCKET 1; agent-1 TCP_RESET 1", outcome="refused", packets_in=1)
    assert "NO_SOCKET" in finding["title"]
    assert "TCP_RESET" not in finding["title"] + finding["advice"]


def test_a_port_on_loopback_that_is_refused_is_still_no_fault() -> None:
    finding = dropped("server-1 NO_SOCKET 1", 9099, outcome="refused")
    assert (finding["severity"], "no" in finding["advice"]) == ("info", True)
    assert "loopback" in finding["advice"]
    assert "firewall rule" in dropped("server-1 NETFILTER_DROP 1", 9099)["advice"]


# ---- by whom ----


def by(process: str, pid: int | None = None, pod: str | None = None, **changes: Any) -> Flow:
    return flow(AGENT, SERVER, 2379, process=process, pid=pid, pod=pod, **changes)


BY_WHOM: dict[str, tuple[list[Flow], str]] = {
    "one": ([by("curl", 123, "default/web")], ", by curl (pid 123, pod default/web)"),
    "one, all its flows": ([by("curl", 1), by("curl", 1), flow(AGENT, SERVER, 2379)], ", by curl (pid 1)"),
    "without a pid": ([by("curl")], ", by curl"),
    "three": ([by("c", 1), by("b", 2), by("a", 3)], ", by a (pid 3), b (pid 2), c (pid 1)"),
    "one that starts again and again": ([by("curl", n, "x/y") for n in range(1, 9)], ", by curl (pod x/y)"),
    "many": ([by(f"p{n}", n) for n in range(1, 7)], ", by p1, p2, p3, 3 more"),
    "nobody": ([flow(AGENT, SERVER, 2379)], "not for agent → server"),
    "hostile": ([by("{x}\x1b[31m", 1)], ", by {x}\x1b[31m (pid 1)"),
}


@pytest.mark.parametrize("name", BY_WHOM)
def test_by_whom(name: str) -> None:
    rows, words = BY_WHOM[name]
    finding = only(found(*rows))
    assert finding["title"].endswith(words)
    assert finding["id"] == only(found(flow(AGENT, SERVER, 2379)))["id"]


# ---- exposure ----

EXPOSURES: dict[str, tuple[int, str, str]] = {
    "NodePort": (30080, "tcp", "info"),
    "the last NodePort": (32767, "tcp", "info"),
    "kubectl": (6443, "tcp", "low"),
    "join": (9345, "tcp", "medium"),
    "kubelet": (10250, "tcp", "critical"),
    "etcd": (2379, "tcp", "critical"),
    "etcd's peers": (2380, "tcp", "critical"),
    "etcd's metrics": (2381, "tcp", "critical"),
    "health": (9099, "tcp", "high"),
}


@pytest.mark.parametrize("name", EXPOSURES)
def test_exposure(name: str) -> None:
    port, protocol, severity = EXPOSURES[name]
    finding = only(found(flow(OUTSIDE, SERVER, port, protocol)))
    assert (finding["kind"], finding["severity"]) == ("exposure", severity)
    assert (finding["client"], finding["client_role"]) == (OUTSIDE, "outside")
    assert (finding["server"], finding["rule"] != "") == ("server-1", True)


def test_a_ping_from_outside_is_no_alarm_where_the_table_has_it() -> None:
    """Cilium's does: the gateway's, or a monitor's, is answered by every machine."""
    ping = flow(OUTSIDE, SERVER, 0, "icmp", client_port=8)
    finding = only(found(ping, spec=load_spec("rke2-cilium")))
    assert (finding["kind"], finding["severity"], finding["port"]) == ("exposure", "info", 8)
    assert "Close the port" not in finding["advice"]


@pytest.mark.parametrize(
    "row",
    [
        failed(OUTSIDE, SERVER, 10250),
        failed(OUTSIDE, SERVER, 10250, outcome="refused"),
        flow(OUTSIDE, SERVER, 10250, outcome="one-way"),
        flow(OUTSIDE, SERVER, 22),
        flow(OUTSIDE, SERVER, 10250, "udp"),
        flow(SERVER, OUTSIDE, 10250),
        flow(OUTSIDE, "10.42.0.5", 10250),
        flow(AGENT, SERVER, 10250),
    ],
    ids=[
        "silent",
        "refused",
        "one way",
        "not in the table",
        "the other protocol",
        "outwards",
        "a pod",
        "a node",
    ],
)
def test_no_exposure(row: Flow) -> None:
    assert found(row).empty


def test_a_port_that_the_specification_opens_to_the_outside_is_no_exposure() -> None:
    everyone = Rule("kubectl", "tcp", 6443, 6443, frozenset({"external"}), frozenset({"server"}))
    spec = replace(SPEC, rules=(*SPEC.rules, everyone))
    assert found(flow(OUTSIDE, SERVER, 6443), spec=spec).empty
    assert len(found(flow(OUTSIDE, SERVER, 6443), flow(OUTSIDE, AGENT, 6443), spec=spec)) == 1


def test_a_rule_for_what_nodes_ask_outside_exposes_no_port_of_theirs() -> None:
    """As 443 of a registry, beside the nodes' own 443 of the ingress: without the rule it is no finding."""
    nodes, outside = frozenset({"server", "agent"}), frozenset({"external"})
    registry = Rule("registry", "tcp", 443, 443, nodes, outside)
    spec = replace(SPEC, rules=(*SPEC.rules, registry))
    assert found(flow(AGENT, OUTSIDE, 443), flow(OUTSIDE, AGENT, 443), spec=spec).empty
    for servers in (nodes, outside | nodes, frozenset({"server"})):
        spec = replace(SPEC, rules=(*SPEC.rules, registry, Rule("mirror", "tcp", 443, 443, nodes, servers)))
        assert only(found(flow(OUTSIDE, AGENT, 443), spec=spec))["severity"] == "high"


@pytest.mark.parametrize(("clients", "findings"), [(MANY_CLIENTS, MANY_CLIENTS), (MANY_CLIENTS + 1, 1)])
def test_many_outside_clients_are_one_exposure(clients: int, findings: int) -> None:
    table = found(*(flow(f"203.0.113.{n}", SERVER, 30080) for n in range(clients)))
    assert len(table) == findings
    assert table["flows"].sum() == clients
    assert (
        set(table["client"]) == {"(many addresses)"}
        if findings == 1
        else table["client"].nunique() == clients
    )


# ---- foreign tunnels ----


@pytest.mark.parametrize("port", [4789, 6081, 8472, 51820, 51821, 51871])
@pytest.mark.parametrize("make", [flow, failed])
def test_foreign_tunnel(port: int, make: Any) -> None:
    """Even unanswered: what came in came in."""
    finding = only(found(make(OUTSIDE, AGENT, port, "udp")))
    assert (finding["kind"], finding["severity"], finding["port"]) == ("foreign-tunnel", "high", port)
    assert ("into the pod network" in finding["advice"]) == (port < 10000)


def test_a_foreign_tunnel_that_is_turned_away_puts_nothing_into_the_pod_network() -> None:
    away = failed(OUTSIDE, AGENT, 8472, "udp", outcome="unreachable")
    in_it = failed(OUTSIDE, AGENT, 8472, "udp", client_port=40001)
    told = ["into the pod network" in only(found(*rows))["advice"] for rows in ((away,), (away, in_it))]
    assert told == [False, True]


@pytest.mark.parametrize(
    "row",
    [
        flow(AGENT, AGENT_2, 8472, "udp"),
        flow(AGENT, OUTSIDE, 8472, "udp"),
        flow(OUTSIDE, "10.10.0.98", 8472, "udp"),
        flow(OUTSIDE, AGENT, 51820, "udp", packets_out=0, bytes_out=0, outcome="one-way"),
    ],
    ids=["among nodes", "outwards", "to no node", "from WireGuard's port, and nothing came in"],
)
def test_no_foreign_tunnel(row: Flow) -> None:
    assert found(row).empty


# ---- scans ----


def ports(client: str, server: str, count: int, first: int = 1, **changes: Any) -> list[Flow]:
    return [
        failed(client, server, first + n, outcome="refused", **({"start": EPOCH + n * 1_000_000} | changes))
        for n in range(count)
    ]


def test_a_scan_of_a_thousand_ports_is_one_finding() -> None:
    finding = only(found(*ports(AGENT, SERVER, 1000)))
    assert (finding["kind"], finding["severity"], finding["client"], finding["server"]) == (
        "scan",
        "high",
        "agent-1",
        "server-1",
    )
    assert (finding["flows"], finding["protocol"], finding["port"]) == (1000, "tcp", 0)
    assert "1000 ports" in finding["title"]


def test_ports_of_the_table_that_a_scan_passes_over_are_part_of_it() -> None:
    assert brief(found(*ports(AGENT, SERVER, 500, 6200))) == {("scan", "high", "agent-1", "server-1", 0)}
    assert brief(found(*ports(AGENT, SERVER, 500, 2200))) == {("scan", "high", "agent-1", "server-1", 0)}


def test_a_scan_of_many_nodes_is_one_finding() -> None:
    wide = [row for server in (SERVER, SERVER_2, AGENT_2) for row in ports(AGENT, server, 400)]
    assert brief(found(*wide)) == {("scan", "high", "agent-1", "(3 nodes)", 0)}
    flat = [failed(SERVER, agent, 22) for agent in AGENTS[:SCAN_NODES]]
    assert brief(found(*flat)) == {("scan", "high", "server-1", f"({SCAN_NODES} nodes)", 0)}
    assert "tcp/22" in only(found(*flat))["title"]


def test_a_scan_of_more_nodes_has_the_same_id() -> None:
    """Else what is accepted is open again with each node that joins."""
    scans = [
        found(*(failed(SERVER, agent, 22) for agent in AGENTS[:n])) for n in (SCAN_NODES, SCAN_NODES + 2)
    ]
    assert only(scans[0])["server"] != only(scans[1])["server"]
    others = found(*(failed(SERVER_2, agent, 22) for agent in AGENTS)), found(*ports(SERVER, AGENT, 50))
    ids = [only(table)["id"] for table in (*scans, *others)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_just_below_a_scan() -> None:
    assert set(found(*ports(AGENT, SERVER, SCAN_PORTS - 1))["kind"]) == {"violation"}
    assert set(found(*(failed(SERVER, agent, 22) for agent in AGENTS[: SCAN_NODES - 1]))["kind"]) == {
        "violation"
    }


def test_a_scan_does_not_swallow_what_was_answered() -> None:
    """The one port that was open is what matters."""
    rows = [*ports(AGENT, SERVER, 1000, 2000), flow(AGENT, SERVER, 2379, start=EPOCH + 379 * 1_000_000)]
    rows = [row for row in rows if row["outcome"] == "answered" or row["server_port"] != 2379]
    assert brief(found(*rows)) == {
        ("violation", "critical", "agent-1", "server-1", 2379),
        ("scan", "high", "agent-1", "server-1", 0),
    }


def test_a_scan_does_not_swallow_what_is_blocked_at_another_time() -> None:
    later = failed(AGENT, SERVER, 9345, start=EPOCH + 300 * NS)
    assert brief(found(*ports(AGENT, SERVER, 100), later, coverage=(ledger(),))) == {
        ("scan", "high", "agent-1", "server-1", 0),
        ("blocked", "high", "agent-1", "server-1", 9345),
    }


def test_two_scanners_are_two_findings() -> None:
    assert len(found(*ports(AGENT, SERVER, 50), *ports(AGENT_2, SERVER, 50))) == 2


def test_a_scan_from_outside_is_less_grave() -> None:
    assert brief(found(*ports(OUTSIDE, SERVER, 100))) == {("scan", "medium", OUTSIDE, "server-1", 0)}


def test_dead_nodes_are_no_scan() -> None:
    """Scraping twelve kubelets that are down: the table wants these flows, so each is blocked."""
    table = found(*(failed(SERVER, agent, 10250) for agent in AGENTS), coverage=(ledger(),))
    assert len(table) == len(AGENTS)
    assert set(table["kind"]) == {"blocked"}


def test_a_scan_does_not_swallow_what_is_blocked_elsewhere_meanwhile() -> None:
    """Kubelets that are down are no part of a scan, though as many nodes are asked in vain as make one."""
    scan = ports(SERVER, SERVER_2, 100, 3000)
    table = found(*scan, *(failed(SERVER, agent, 10250) for agent in AGENTS), coverage=(ledger(),))
    assert table["kind"].value_counts().to_dict() == {"blocked": len(AGENTS), "scan": 1}


def test_a_client_that_mostly_succeeds_is_no_scanner() -> None:
    rows = [*ports(AGENT, SERVER, 30), *(flow(AGENT, SERVER, 4000 + n) for n in range(40))]
    assert "scan" not in set(found(*rows)["kind"])


def test_a_connection_that_goes_on_over_intervals_is_one_attempt() -> None:
    """A table has a row for each interval of it; whether a client scans does not depend on their length."""
    watch = [flow(AGENT, SERVER, 9100, start=EPOCH + n * 10 * NS) for n in range(100)]
    assert "scan" in set(found(*ports(AGENT, SERVER, 30), *watch)["kind"])
    answered = [flow(AGENT, SERVER, 4000 + n) for n in range(40)]
    repeated = [row for n in range(3) for row in ports(AGENT, SERVER, 30, start=EPOCH + n * NS)]
    assert "scan" not in set(found(*repeated, *answered)["kind"])


# ---- blind spots ----

BLIND = {
    "lost": "medium",
    "truncated": "medium",
    "unsupported": "medium",
    "malformed": "low",
    "fragment": "low",
    "inner_truncated": "low",
    "inner_malformed": "low",
    "overflow": "medium",
    "inner_overflow": "low",
    "alerts_lost": "low",
    "drops_lost": "low",
}


@pytest.mark.parametrize("name", BLIND)
def test_blind_spot(name: str) -> None:
    finding = only(found(coverage=(ledger(**{name: 17}),)))
    assert (finding["kind"], finding["severity"]) == ("blind-spot", BLIND[name])
    assert (finding["client"], finding["packets"]) == ("capture.pcap", 17)
    assert finding["title"].startswith("capture.pcap: 17 ")
    assert finding["evidence"] == [{"source": "capture.pcap", "first_frame": 0}]


def test_damage_and_emptiness_are_blind_spots() -> None:
    damaged = only(found(coverage=(ledger(damage="frame 3: cut"),)))
    assert (damaged["severity"], "frame 3: cut" in damaged["title"]) == ("high", True)
    assert only(found(coverage=(Coverage("capture.pcap"),)))["severity"] == "medium"


@pytest.mark.parametrize(
    ("offset", "words"), [(3_600_040_000_000, "3,600.0 s ahead of"), (-15 * 10**8, "1.5 s behind")]
)
def test_a_clock_that_is_apart_is_a_blind_spot(offset: int, words: str) -> None:
    finding = only(found(coverage=(ledger(clock_offset=offset),)))
    assert (finding["kind"], finding["severity"], finding["packets"]) == ("blind-spot", "medium", 0)
    assert finding["title"] == f"capture.pcap: its clock is {words} the other captures'"
    assert finding["id"] == only(found(coverage=(ledger(clock_offset=1),)))["id"]


def test_no_blind_spot() -> None:
    assert found(
        coverage=(ledger(), ledger(not_ip=50, inner_not_ip=3, inner_fragment=2, other_bytes=9))
    ).empty


def test_what_a_node_could_not_observe_is_told() -> None:
    missing = "who opens a connection: no tracefs; why packets were dropped: this kernel publishes no BTF"
    finding = only(found(coverage=(ledger(missing=missing),)))
    assert (finding["kind"], finding["severity"]) == ("blind-spot", "info")
    assert finding["title"] == f"capture.pcap: not observed: {missing}"
    assert finding["id"] == only(found(coverage=(ledger(missing="another"),)))["id"]


FAR = ("172.30.0.1", "172.30.0.2")
PODS = ("10.42.1.7", "10.42.2.9")


def test_flows_of_another_cluster_are_no_sign_of_health() -> None:
    """With another cluster's file nothing is judged, and a pipeline would be green."""
    strange = [flow(*FAR, 6443), flow(*PODS, 80)]
    finding = only(found(*strange, coverage=(ledger(),)))
    assert (finding["kind"], finding["severity"], finding["client"]) == ("blind-spot", "high", CLUSTER.name)
    assert finding["title"].startswith(f"{CLUSTER.name}: none of the 2 flows has a node of this cluster ")
    assert finding["evidence"] == [{"source": "capture.pcap", "first_frame": 0}]
    assert finding["id"] == only(found(*strange * 2, coverage=(ledger(),)))["id"]
    for ends in ((AGENT, SERVER), (AGENT, OUTSIDE), (AGENT, AGENT), (AGENT, PODS[0]), (PODS[0], SERVER)):
        assert found(*strange, flow(*ends, 6443), coverage=(ledger(),)).empty, ends


def test_nothing_is_said_of_the_whole_where_it_is_not_there() -> None:
    """No flow at all; flows that were chosen, of which --port 80 may leave those of pods alone; and a table
    without its ledgers.
    """
    pods = flow(*PODS, 80)
    assert found(coverage=(ledger(),)).empty
    assert found(pods, coverage=(ledger(not_chosen=7),)).empty
    assert found(pods).empty
    assert len(found(pods, coverage=(ledger(),))) == 1


def test_several_gaps_of_several_captures_are_told_apart() -> None:
    ledgers = (ledger(lost=1, malformed=2), replace(ledger(lost=1, truncated=4), source="b.pcap"))
    table = found(coverage=ledgers)
    assert len(table) == 4
    assert table["id"].is_unique


def test_all_gaps_of_one_capture_are_told_apart() -> None:
    """A document with two findings of one id is not read as a baseline."""
    all_gaps = ledger(damage="frame 3: cut", missing="why packets were dropped", **dict.fromkeys(BLIND, 1))
    table = found(coverage=(all_gaps,))
    assert len(table) == len(BLIND) + 2
    assert table["id"].is_unique


def test_a_gap_that_grows_keeps_its_id() -> None:
    assert only(found(coverage=(ledger(lost=1),)))["id"] == only(found(coverage=(ledger(lost=99),)))["id"]


# ---- one direction only ----


def analysed(frames: list[bytes], cluster: Cluster = CLUSTER) -> Analysis:
    """From bytes to findings, the whole way; the capture goes on for a minute after its last frame."""
    records = [*fr.timed(frames, step=10_000_000), fr.Frame(fr.arp(), EPOCH + 60 * NS)]
    return Analysis.of(fr.read(fr.pcap(records)), cluster, SPEC)


CLIENTS = [((AGENT, 40000 + n), (SERVER, 6443)) for n in range(3)]
TALKS = [frame for ends in CLIENTS for frame in fr.talk(*ends)]
UDP_TALK = [fr.datagram((AGENT, 51820), (AGENT_2, 51820), b"x" * 40)]


def test_a_capture_of_one_direction_is_a_blind_spot_and_blocks_nothing() -> None:
    """A mirror port that shows what agents send: SYNs and acknowledgements, no answers, WireGuard one way."""
    out = [frame for frame in TALKS if frame[26:30] == TALKS[0][26:30]]
    assert brief(analysed(out + UDP_TALK).findings) == {("blind-spot", "medium", "capture.pcap", "", 0)}


def test_the_other_direction_is_one_too() -> None:
    back = [frame for frame in TALKS if frame[26:30] != TALKS[0][26:30]]
    assert brief(analysed(back).findings) == {("blind-spot", "medium", "capture.pcap", "", 0)}


def test_a_firewall_that_drops_is_no_blind_spot() -> None:
    """SYNs alone: the same counts, yet nothing was acknowledged."""
    syns = [fr.segment(*ends, SYN) for ends in CLIENTS for _ in range(3)]
    assert brief(analysed(syns).findings) == {("blocked", "high", "agent-1", "server-1", 6443)}
    assert brief(analysed(TALKS + UDP_TALK).findings) == {("blocked", "high", "agent-1", "agent-2", 51820)}


def test_a_capture_of_syns_alone_is_a_blind_spot_and_blocks_nothing() -> None:
    """`tcpdump 'tcp[tcpflags] == tcp-syn'`: of healthy connections one each, of blocked ones each attempt."""
    syns = [fr.segment((AGENT, 40000 + n), (SERVER, 6443), SYN) for n in range(5)]
    lost = [fr.segment((AGENT, 40009), (SERVER_2, 9345), SYN)] * 3
    deaf = {("blind-spot", "medium", "capture.pcap", "", 0)}
    assert brief(analysed(syns).findings) == brief(analysed(syns + lost).findings) == deaf
    assert "after its SYN" in only(analysed(syns).findings)["title"]


@pytest.mark.parametrize("frames", [TALKS, fr.refusal(*CLIENTS[0])], ids=["answered", "refused"])
def test_where_one_is_answered_a_syn_that_is_not_is_blocked(frames: list[bytes]) -> None:
    syns = [fr.segment((AGENT, 41000 + n), (SERVER_2, 9345), SYN) for n in range(20)]
    assert ("blocked", "high", "agent-1", "server-2", 9345) in brief(analysed(syns + frames).findings)


def test_attempts_that_intervals_take_apart_are_no_syns_alone() -> None:
    rows = [
        failed(AGENT, SERVER, client_port=40000 + n, packets_out=1, start=EPOCH + second * NS)
        for n in range(3)
        for second in (1, 2, 4)
    ]
    assert set(found(*rows, coverage=(ledger(),))["kind"]) == {"blocked"}


def test_a_whole_capture_has_no_findings() -> None:
    assert analysed(TALKS).findings.empty


def test_a_deaf_interface_of_a_capture() -> None:
    """Observers are interfaces, ledgers are files: the one finds the other."""
    table = judge(
        fr.table(
            [
                flow(AGENT, SERVER, outcome="one-way", source="capture.pcap:if2"),
                failed(AGENT, AGENT_2, 10250, source="capture.pcap:if2"),
                flow(AGENT, SERVER, outcome="one-way", source="capture.pcap:if3"),
            ]
        ),
        CLUSTER,
        SPEC,
    )
    assert brief(find(table, CLUSTER, SPEC, (ledger(),))) == {("blind-spot", "medium", "capture.pcap", "", 0)}


# ---- which flows a finding counts ----

_SOURCES = ("agent-1.pcap", "agent-1.pcap:eth0", "capture.pcap", "server-1")
_DROPS = (None, None, "agent-1 NETFILTER_DROP 3; server-1 TCP_RESET 2", "x NO_SOCKET 1")


@st.composite
def crowds(draw: st.DrawFn) -> list[Flow]:
    """Scans, strangers, tunnels, failures within the last second and what is allowed, in any order."""
    rng = draw(st.randoms(use_true_random=False))
    clients = (*AGENTS[:3], SERVER, OUTSIDE, "10.42.0.5")
    rows = []
    for n in range(draw(st.integers(0, 120))):
        row = rng.choice((flow, failed, failed))(
            rng.choice(clients),
            rng.choice((SERVER, AGENT_2, *AGENTS, OUTSIDE)),
            rng.choice((22, 2379, 6443, 9345, 10250, 8472, 1000 + n)),
            rng.choice(("tcp", "tcp", "tcp", "udp", "icmp")),
            client_port=rng.choice((8, 40000)),
            source=rng.choice(_SOURCES),
            start=EPOCH + rng.randrange(600) * NS,
            packets_out=rng.choice((1, 3)),
            drops=rng.choice(_DROPS),
            process=rng.choice((None, "curl", "sshd")),
            pid=rng.choice((None, 7, 12)),
        )
        rows.append(row | {"end": row["start"] + rng.choice((0, NS))})
    rows += [flow(f"192.0.2.{n}", SERVER, 10250) for n in range(draw(st.sampled_from((0, 50, 51))))]
    rng.shuffle(rows)
    return rows


LEDGERS = tuple(replace(ledger(), source=source) for source in ("agent-1.pcap", "capture.pcap", "server-1"))
REMARKS = tuple(Remark("r", "low", node, "tcp", port, "x", "y", "rule") for node in ("server-1", "")
                for port in (6443, 22))  # fmt: skip


def counted_again(table: pd.DataFrame, judged: pd.DataFrame, positions: dict[str, Any]) -> None:
    """Every number of a finding, from the flows at its positions."""
    assert set(positions) == set(table["id"])
    names = ("source", "first_frame", "outcome", "packets_out", "packets_in", "bytes_out", "bytes_in")
    rows = [
        dict(zip(names, row, strict=True)) for row in zip(*(judged[n].tolist() for n in names), strict=True)
    ]
    times = list(zip(judged["start"], judged["end"], strict=True))
    for finding in table.to_dict("records"):
        at = positions[finding["id"]].tolist()
        assert (len(at), sorted(set(at))) == (finding["flows"], at)
        assert Counter(rows[n]["outcome"] for n in at) == finding["outcomes"]
        if not at:
            continue
        for what in ("packets", "bytes"):
            assert sum(rows[n][f"{what}_out"] + rows[n][f"{what}_in"] for n in at) == finding[what]
        assert min(times[n][0] for n in at) == finding["first_seen"]
        assert max(times[n][1] for n in at) == finding["last_seen"]
        first = sorted(at, key=lambda n: times[n][0])[:3]
        assert finding["evidence"] == [{name: rows[n][name] for name in names[:2]} for n in first]


@given(crowds())
@settings(max_examples=40, deadline=None)
def test_a_finding_counts_the_flows_at_its_positions(rows: list[Flow]) -> None:
    judged = judge(fr.table(rows), CLUSTER, SPEC)
    known = (judged, CLUSTER, SPEC, LEDGERS, REMARKS)
    table, positions = find(*known), members(*known)
    counted_again(table, judged, positions)
    every = [
        n
        for finding in table[~table["kind"].isin(("listener", "blind-spot"))]["id"]
        for n in positions[finding].tolist()
    ]
    assert len(set(every)) == len(every), "a flow is counted once"


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_findings_count_the_flows_at_their_positions(name: str) -> None:
    run = recorded(name)
    positions = members(run.flows, run.cluster, run.spec, run.coverage)
    counted_again(run.findings, run.flows, positions)


def test_the_earliest_flows_are_the_evidence_and_of_equals_the_first() -> None:
    rows = [flow(AGENT, SERVER, 2379, first_frame=n) for n in range(100)]
    assert [place["first_frame"] for place in only(found(*rows))["evidence"]] == [0, 1, 2]


def test_thousands_of_findings_take_no_longer_than_their_flows() -> None:
    """Were each finding looked for in the table, these would take more than ten seconds."""
    rows = [flow(f"198.51.{n // 50}.{n % 50}", SERVER, 20000 + n // 50) for n in range(4000)]
    rule = Rule("all", "tcp", 20000, 20100, frozenset({"agent"}), frozenset({"server"}))
    spec = replace(SPEC, name="x", rules=(*SPEC.rules, rule))
    judged = judge(fr.table(rows), CLUSTER, spec)
    before = time.process_time()
    assert set(find(judged, CLUSTER, spec)["flows"]) == {1}
    assert time.process_time() - before < 2


# ---- the table ----

ALL_KINDS = (
    flow(AGENT, SERVER, 2379),
    failed(AGENT, SERVER, 9345),
    flow(OUTSIDE, SERVER, 10250),
    flow(OUTSIDE, AGENT, 8472, "udp"),
    *ports(AGENT_2, SERVER, 30),
    flow(AGENT, AGENT_2, 22),
    flow(SERVER, SERVER_2, 9345),
)


def test_an_id_is_the_digest_of_what_it_is_about() -> None:
    """Written out, so that it stays the same from version to version."""
    digest = hashlib.sha256(b"violation|agent-1|server-1|tcp|2379|").hexdigest()[:10]
    assert only(found(flow(AGENT, SERVER, 2379)))["id"] == f"violation-{digest}"


@given(st.integers(0, 2**16), st.integers(1, 10**6))
@settings(max_examples=30, deadline=None)
def test_ids_do_not_hang_on_order_times_or_counts(seed: int, more: int) -> None:
    first = found(*ALL_KINDS, coverage=(ledger(lost=1),))
    assert set(first["kind"]) == set(KINDS) - {"listener"}
    assert first["id"].is_unique
    later = [
        row
        | {
            "start": row["start"] + more * 1000,
            "end": row["end"] + more * 1000,
            "first_frame": more,
            "packets_out": more + 1,
            "client_port": more % 65536,
        }
        for row in ALL_KINDS
    ]
    random.Random(seed).shuffle(later)  # noqa: S311 a seed, so that a fault can be had again
    again = found(*later, coverage=(ledger(lost=1),))
    assert again["id"].tolist() == first["id"].tolist()
    assert again["title"].tolist() == first["title"].tolist()


def test_the_gravest_comes_first() -> None:
    ranks = [SEVERITIES.index(s) for s in found(*ALL_KINDS, coverage=(ledger(lost=1),))["severity"]]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) > 3


def test_no_flows_and_no_findings() -> None:
    for table in (found(), found(flow(AGENT, SERVER))):
        assert list(table) == list(COLUMNS)
        assert table.empty


HOSTILE = "a{0}\n\x1b[31m<script>;|'=1+1"


def test_hostile_names_are_carried_as_they_are() -> None:
    """Braces in names and in a rule's words are no format fields; nothing is cut, nothing raises."""
    rule = Rule("r", "tcp", 7000, 7000, frozenset({"agent"}), frozenset({"agent"}), "{where} {0} {nope}")
    spec = replace(SPEC, name="x", rules=(*SPEC.rules, rule))
    row = failed(AGENT, AGENT_2, 7000, source=HOSTILE, witnesses=HOSTILE)
    coverage = (replace(ledger(damage="{x}"), source=HOSTILE),)
    table = found(row, coverage=coverage, spec=spec)
    assert set(table["kind"]) == {"blocked", "blind-spot"}
    blocked = table[table["kind"] == "blocked"].iloc[0]
    assert "({where} {0} {nope})" in blocked["title"]
    assert blocked["evidence"][0]["source"] == HOSTILE
    assert HOSTILE in set(table["client"])


def test_node_names_with_patterns_in_them() -> None:
    """A name is no regular expression: `a.b` is not `axb`, and `agent` not `agent-1`."""
    cluster = Cluster("x", (Node("a.b", "agent", (AGENT,)), Node("c+", "server", (SERVER,))))
    coverage = tuple(replace(ledger(), source=s) for s in ("axb.pcap", "c+.pcap"))
    row = failed(AGENT, SERVER, source="axb.pcap", witnesses="axb.pcap")
    assert "It left" not in only(found(row, coverage=coverage, cluster=cluster))["advice"]
    coverage = tuple(replace(ledger(), source=s) for s in ("a.b.pcap", "c+.pcap"))
    row = failed(AGENT, SERVER, source="a.b.pcap", witnesses="a.b.pcap")
    assert (
        "It left a.b and never came to c+" in only(found(row, coverage=coverage, cluster=cluster))["advice"]
    )


@pytest.mark.parametrize("kind", ["object", "string"])
@pytest.mark.parametrize("name", ["offences", "blocked"])
def test_texts_that_are_not_categories_make_the_same_findings(name: str, kind: str) -> None:
    """As CSV read by pandas has them, or tables put together whose categories differ."""
    run = recorded(name)
    texts = [column for column in run.flows if run.flows[column].dtype == "category"]
    plain = run.flows.astype(dict.fromkeys(texts, kind))
    pd.testing.assert_frame_equal(find(plain, run.cluster, run.spec, run.coverage), run.findings)
