"""Listening sockets: real ones by sock_diag and by ss, hostile names, and what they say beside rules and
flows.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import frames as fr
import pytest
from conftest import PROJECT, RECORDED, require_program, require_root
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.analysis import Analysis, analyze
from analyzer.cluster import Cluster, Node
from analyzer.errors import CaptureError, ClusterError
from analyzer.findings import COLUMNS, KINDS, find
from analyzer.listeners import (
    KNOWN_PORTS,
    LOOPBACK_PORTS,
    NO_SOCKET_PORTS,
    SILENT_PORTS,
    Listening,
    Socket,
    compare,
    crossing,
    listening_here,
    read_listeners,
    remark,
)
from analyzer.rows import Coverage
from analyzer.spec import Rule, load_spec
from analyzer.verdict import judge

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

SERVER, SERVER_2, AGENT, AGENT_2 = "10.10.0.11", "10.10.0.12", "10.10.0.21", "10.10.0.22"
CLUSTER = Cluster(
    "prod",
    (
        Node("server-1", "server", (SERVER,)),
        Node("server-2", "server", (SERVER_2,)),
        Node("agent-1", "agent", (AGENT,)),
        Node("agent-2", "agent", (AGENT_2,)),
    ),
)
SPEC = load_spec()

# ---- this machine ----

#: opens sockets of every form under a hostile name, and prints what the kernel and what ss say of them
CHILD = """
import ctypes, json, socket, subprocess, sys
sys.path.insert(0, sys.argv[2])
def run(*words): subprocess.run(words, check=True)
run("ip", "link", "set", "lo", "up")
run("ip", "link", "add", "vx", "type", "vxlan", "id", "1", "dstport", "8472", "local", "127.0.0.1")
run("ip", "link", "set", "vx", "up")
held = []
def opened(family, kind, address, port, only_v6=None, device=None):
    one = socket.socket(family, kind)
    if only_v6 is not None: one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
    if device: one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    one.bind((address, port))
    if kind == socket.SOCK_STREAM: one.listen()
    held.append(one)
V4, V6, TCP, UDP = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
opened(V4, TCP, "0.0.0.0", 10250)
opened(V6, TCP, "::", 6443, 0)
opened(V6, TCP, "::", 9345, 1)
opened(V4, TCP, "127.0.0.1", 2381)
opened(V6, TCP, "::1", 2382, 1)
opened(V6, TCP, "::ffff:127.0.0.1", 2379, 0)
opened(V4, UDP, "0.0.0.0", 51820)
opened(V6, UDP, "::", 51821, 1)
opened(V4, UDP, "127.0.0.1", 53, None, b"lo")
ctypes.CDLL(None).prctl(15, sys.argv[1].encode("utf-8", "surrogateescape"), 0, 0, 0)
from analyzer.listeners import listening_here
print(json.dumps([
    json.loads(listening_here("node").to_json()),
    subprocess.run(["ss", "-H", "-tulpn"], capture_output=True, check=True).stdout.decode("latin-1"),
    subprocess.run(["ss", "-tulpn"], capture_output=True, check=True).stdout.decode("latin-1"),
    subprocess.run(["ss", "-tulpe"], capture_output=True, check=True).stdout.decode("latin-1"),
]))
"""
NAMES = {
    "plain": "rke2 server",
    "an end": 'x",pid=1,fd=3))',
    "an entry": '",pid=1,fd=3)),',
    "a quote": 'a"b',
    "parentheses": "))((",
    "a line": "a\nLISTEN 0 0 *:1",
    "a line of UDP": "\nudp UNCONN 0 0",
    "no text": "\udcff\udcfe name",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_ss_and_the_kernel_say_the_same(name: str, tmp_path: Path) -> None:
    """Whatever the process calls itself; in a network namespace of its own, which goes with the process."""
    require_root()
    require_program("ss")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", CHILD, name, str(PROJECT)], capture_output=True, check=True
    )
    document, *texts = json.loads(done.stdout)
    by_kernel = tmp_path / "node.json"
    by_kernel.write_text(json.dumps(document), encoding="utf-8")
    known = read_listeners(by_kernel)
    assert len(known.sockets) == 10 + _vxlan_has_v6(known)
    assert ("udp", 8472) in {(s.protocol, s.port) for s in known.sockets if not s.process}
    assert {s.address for s in known.sockets if s.port == 6443} == {"*"}
    assert {s.address for s in known.sockets if s.port == 9345} == {"::"}
    assert {s.address for s in known.sockets if s.port == 2379} == {"127.0.0.1"}
    for text in texts:
        file = tmp_path / "node.ss"
        file.write_bytes(text.encode("latin-1"))
        told = read_listeners(file)
        assert _without_names(told) == _without_names(known)
        (mine,) = {s.process for s in known.sockets if s.pid}
        assert {s.process for s in told.sockets if s.pid} <= {mine, mine.split(")")[0], mine.split("\n")[0]}
        assert told.node == "node"


def _vxlan_has_v6(known: Listening) -> bool:
    return sum(s.port == 8472 for s in known.sockets) == 2


def _without_names(known: Listening) -> set[tuple[str, str, int, int]]:
    return {(s.protocol, s.address, s.port, s.pid) for s in known.sockets}


def test_a_socket_of_this_process_is_there() -> None:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        known = listening_here()
        port = one.getsockname()[1]
    mine = [s for s in known.sockets if s.port == port and s.protocol == "tcp"]
    assert [(s.address, s.pid, s.is_loopback) for s in mine] == [("127.0.0.1", os.getpid(), True)]
    assert known.node
    assert known.time.endswith("Z")


# ---- the text of ss ----

SS = """\
Netid State  Recv-Q Send-Q           Local Address:Port  Peer Address:PortProcess
udp   UNCONN 0      0                      0.0.0.0:8472       0.0.0.0:*
udp   UNCONN 0      0      127.0.0.53%lo:53         0.0.0.0:*    users:(("systemd-resolve",pid=611,fd=13))
udp   UNCONN 0      0      [fe80::5054:ff:fe1]%eth0:546              *:*    users:(("dhclient",pid=700,fd=5))
udp   ESTAB  0      0                   10.10.0.11:40000    10.10.0.9:123  users:(("chronyd",pid=650,fd=7))
tcp   LISTEN 0      4096                 127.0.0.1:2381       0.0.0.0:*    users:(("etcd",pid=2001,fd=11))
tcp   LISTEN 0      4096               *:6443             *:*    users:(("kube-apiserver",pid=1900,fd=3))
tcp   LISTEN 0      4096         [::]:9345          [::]:*    users:(("rke2",pid=900,fd=9),("x",pid=1,fd=9))
tcp   LISTEN 0      4096    [::ffff:10.10.0.11]:2379                *:*    users:(("etcd",pid=2001,fd=8))
tcp   LISTEN 0      128                        :::22             :::*      users:(("sshd",pid=800,fd=4))
icmp6 UNCONN 0      0                       *%eth0:58               *:*
"""
EXPECTED = {
    Socket("udp", "0.0.0.0", 8472),
    Socket("udp", "127.0.0.53", 53, "systemd-resolve", 611),
    Socket("udp", "fe80::5054:ff:fe1", 546, "dhclient", 700),
    Socket("tcp", "127.0.0.1", 2381, "etcd", 2001),
    Socket("tcp", "*", 6443, "kube-apiserver", 1900),
    Socket("tcp", "::", 9345, "rke2", 900),
    Socket("tcp", "10.10.0.11", 2379, "etcd", 2001),
    Socket("tcp", "::", 22, "sshd", 800),
}


def told(text: str, tmp_path: Path, name: str = "server-1.ss") -> Listening:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return read_listeners(file)


def test_all_forms_of_ss(tmp_path: Path) -> None:
    assert set(told(SS, tmp_path).sockets) == EXPECTED
    assert set(told(SS.split("\n", 1)[1], tmp_path).sockets) == EXPECTED
    assert set(told(SS.replace("\n", "\r\n"), tmp_path).sockets) == EXPECTED


def test_names_of_ports(tmp_path: Path) -> None:
    known = told("tcp LISTEN 0 128 0.0.0.0:ssh 0.0.0.0:*\nudp UNCONN 0 0 *:domain *:*\n", tmp_path)
    assert {(s.protocol, s.port) for s in known.sockets} == {("tcp", 22), ("udp", 53)}
    with pytest.raises(CaptureError, match=r"line 1: 'nonsuch' is no port .*run ss with -n"):
        told("tcp LISTEN 0 128 0.0.0.0:nonsuch 0.0.0.0:*\n", tmp_path)


def test_ss_of_one_protocol_has_no_netid(tmp_path: Path) -> None:
    known = told("State Recv-Q Send-Q Local Address:Port Peer Address:Port\nLISTEN 0 1 *:22 *:*\n", tmp_path)
    assert known.sockets == (Socket("tcp", "*", 22),)


@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1, max_size=15
            ).filter(lambda t: len(t.encode()) <= 15),
            st.integers(2, 4194304),
            st.integers(0, 1023),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["", " timer:(keepalive,1min,0) ino:77 sk:5 cgroup:/a v6only:0 <->", "  "]),
)
def test_hostile_names_hide_and_forge_nothing(users: list[tuple[str, int, int]], more: str) -> None:
    """Whatever 15 bytes a process takes for its name, the pids and the next line are the real ones."""
    from analyzer.listeners import _from_ss

    entries = ",".join(f'("{name}",pid={pid},fd={fd})' for name, pid, fd in users)
    text = f"tcp LISTEN 0 9 *:6443 *:* users:({entries}){more}\ntcp LISTEN 0 9 *:9345 *:*\n"
    sockets = _from_ss(text, "server-1.ss")
    assert {(s.port, s.pid) for s in sockets} == {(6443, min(pid for _, pid, _ in users)), (9345, 0)}


FORGERIES = ['x",pid=1,fd=3))', '",pid=1,fd=3)) ', 'a",pid=1,fd=3)', '",pid=1,fd=3),(', "\ntcp LISTEN 0 9"]


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_pid_is_not_believed(name: str, tmp_path: Path) -> None:
    assert len(name.encode()) <= 15, "longer than a process' name can be"
    (one,) = told(f'tcp LISTEN 0 9 *:6443 *:* users:(("{name}",pid=4242,fd=5))\n', tmp_path).sockets
    assert (one.pid, one.process) == (4242, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no listening socket"),
        ("\x7fELF\x02\x01\n", "line 1: no line of ss"),
        ("tcp LISTEN 0 128 10.0.0.300:22 0.0.0.0:*\n", "line 1: '10.0.0.300' is no IP address"),
        ("tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:*\nhello\n", "line 2: no line of ss: 'hello'"),
        ("tcp LISTEN 0 128 0.0.0.0:70000 0.0.0.0:*\n", "'70000' is no port"),
        ("{", "no valid JSON"),
        ('{"schema": 2, "sockets": []}', "no listening sockets of schema 1"),
        ('{"schema": 1, "sockets": [1]}', "a socket has protocol"),
        ('{"schema": 1, "sockets": [{"protocol": "tcp", "address": "*", "port": 0}]}', "no socket"),
        ('{"schema": 1, "sockets": [{"protocol": "tcp", "address": "x", "port": 1}]}', "no IP address"),
        ('{"schema": 1, "node": 5, "sockets": []}', "are texts"),
        ("{" * 100_000, "no valid JSON"),
    ],
)
def test_what_is_neither_is_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        told(text, tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "server-1.ss"))


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_any_bytes_end_in_sockets_or_one_line(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(CaptureError):
            read_listeners(file.name)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(CaptureError, match="cannot be read"):
        read_listeners("/nonexistent/server-1.ss")


# ---- whose they are ----


@pytest.mark.parametrize(
    ("name", "node", "nodes", "expected"),
    [
        ("server-1.ss.txt", "", (), "server-1"),
        ("server-1.example.com.ss", "", (), "server-1.example.com"),
        ("server-1-2026-11-24.txt", "", ("server-1", "server-1-b"), "server-1"),
        ("server-1-b.txt", "", ("server-1", "server-1-b"), "server-1-b"),
        ("x.txt", "agent-1", ("x",), "agent-1"),
    ],
)
def test_the_node(name: str, node: str, nodes: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(SS, encoding="utf-8")
    assert read_listeners(file, node, nodes).node == expected


@given(
    st.lists(
        st.builds(
            Socket,
            st.sampled_from(["tcp", "udp"]),
            st.sampled_from(["*", "::", "0.0.0.0", "10.0.0.1", "fd00::1"]),
            st.integers(1, 65535),
            st.text(max_size=15),
            st.integers(0, 4194304),
        )
    ),
    st.text(max_size=20),
)
def test_json_reads_back(sockets: list[Socket], node: str) -> None:
    from analyzer.listeners import _from_json

    listed = Listening(node, tuple(sorted(set(sockets))), "2026-01-01T00:00:00Z")
    back = _from_json(listed.to_json(), "x.json")
    assert (back.node, back.sockets, back.time) == (listed.node, listed.sockets, listed.time)


# ---- compared ----

#: what a healthy server and a healthy agent listen on, as ss has it on nodes of RKE2 with Canal
HEALTHY_SERVER = (
    *(Socket("tcp", "*", port, process) for port, process in ((6443, "kube-apiserver"), (9345, "rke2"))),
    *(Socket("tcp", SERVER, port, "etcd") for port in (2379, 2380)),
    *(Socket("tcp", "127.0.0.1", port, "etcd") for port in (2379, 2380, 2381, 2382)),
    *(
        Socket("tcp", "127.0.0.1", port)
        for port in (6444, 9099, 10010, 10248, 10249, 10256, 10257, 10258, 10259)
    ),
    Socket("tcp", "*", 10250, "kubelet"),
    Socket("udp", "0.0.0.0", 8472),
)
HEALTHY_AGENT = (
    Socket("tcp", "*", 10250, "kubelet"),
    *(Socket("tcp", "127.0.0.1", port) for port in (6443, 6444, 9099, 10010, 10248, 10249, 10256)),
    Socket("udp", "0.0.0.0", 8472),
)


def analysis(
    *flows: dict[str, Any], coverage: tuple[Coverage, ...] = (), cluster: Cluster = CLUSTER
) -> Analysis:
    return Analysis(judge(fr.table(flows), cluster, SPEC), cluster, SPEC, coverage)


def found(node: str, *sockets: Socket, flows: tuple[dict[str, Any], ...] = ()) -> pd.DataFrame:
    """The findings of one node's sockets."""
    return compare(analysis(*flows), [Listening(node, sockets, source=f"{node}.ss")])


def brief(findings: pd.DataFrame) -> set[tuple[str, str, str, int]]:
    columns = ("severity", "server", "protocol", "port")
    return set(findings[list(columns)].itertuples(index=False, name=None))


def test_healthy_nodes_have_no_finding() -> None:
    assert found("server-1", *HEALTHY_SERVER).empty
    assert found("agent-1", *HEALTHY_AGENT).empty


OPEN: dict[str, tuple[str, Socket, str]] = {
    "in no rule": ("agent-1", Socket("tcp", "0.0.0.0", 22, "sshd", 800), "low"),
    "in no rule, on the node's own address": ("agent-1", Socket("tcp", AGENT, 9100, "node_exporter"), "low"),
    "RKE2's own, in no rule": ("agent-1", Socket("tcp", "*", 9091, "calico-node"), "info"),
    "etcd on an agent": ("agent-1", Socket("tcp", "*", 2379, "etcd"), "medium"),
    "an apiserver on an agent": ("agent-1", Socket("tcp", "0.0.0.0", 6443, "nginx"), "medium"),
    "the scheduler on all addresses": ("server-1", Socket("tcp", "*", 10259, "kube-scheduler"), "medium"),
    "etcd's metrics on the node's address": ("server-1", Socket("tcp", SERVER, 2381, "etcd"), "medium"),
    "Felix's health on all addresses": ("agent-1", Socket("tcp", "*", 9099, "calico-node"), "medium"),
    "UDP in no rule": ("agent-1", Socket("udp", "0.0.0.0", 161, "snmpd"), "low"),
}


@pytest.mark.parametrize(("node", "one", "severity"), OPEN.values(), ids=list(OPEN))
def test_one_socket_too_many(node: str, one: Socket, severity: str) -> None:
    healthy = HEALTHY_SERVER if node == "server-1" else HEALTHY_AGENT
    findings = found(node, *healthy, one)
    assert brief(findings) == {(severity, node, one.protocol, one.port)}
    (title,) = findings["title"]
    assert one.process in title
    assert ("on all its addresses" in title) == one.is_everywhere


NEAR_MISSES = {
    "on loopback": Socket("tcp", "127.0.0.1", 22),
    "on loopback, IPv6": Socket("tcp", "::1", 10259),
    "on another network's address": Socket("tcp", "192.168.122.1", 53),
    "link-local": Socket("udp", "fe80::1", 546),
    "a port that a UDP client may have": Socket("udp", "0.0.0.0", 40000),
    "WireGuard": Socket("udp", "0.0.0.0", 51820),
    "a NodePort that something holds": Socket("tcp", "0.0.0.0", 30080),
}


@pytest.mark.parametrize("one", NEAR_MISSES.values(), ids=list(NEAR_MISSES))
def test_one_socket_that_is_right(one: Socket) -> None:
    assert found("agent-1", *HEALTHY_AGENT, one).empty


@pytest.mark.parametrize("port", [6443, 9345, 2379, 2380, 10250])
def test_a_service_that_does_not_listen(port: int) -> None:
    rest = [one for one in HEALTHY_SERVER if one.port != port]
    findings = found("server-1", *rest)
    assert brief(findings) == {("medium", "server-1", "tcp", port)}
    assert "not at all" in findings["title"].iloc[0]


def test_a_service_that_listens_on_loopback_alone() -> None:
    rest = [one for one in HEALTHY_AGENT if one.port != 10250]
    findings = found("agent-1", *rest, Socket("tcp", "127.0.0.1", 10250, "kubelet"))
    assert "only on 127.0.0.1" in findings["title"].iloc[0]


def test_roles_that_are_split_serve_their_own_part() -> None:
    cluster = Cluster(
        "split", (Node("etcd-1", "etcd", (SERVER,)), Node("plane-1", "control-plane", (SERVER_2,)))
    )
    etcd = [Socket("tcp", "*", port) for port in (2379, 2380, 10250)]
    plane = [Socket("tcp", "*", port) for port in (6443, 9345, 10250)]
    lists = [Listening("etcd-1", tuple(etcd)), Listening("plane-1", tuple(plane))]
    assert compare(analysis(cluster=cluster), lists).empty
    swapped = [Listening("etcd-1", tuple(plane)), Listening("plane-1", tuple(etcd))]
    assert {port for _, _, _, port in brief(compare(analysis(cluster=cluster), swapped))} == {
        6443,
        9345,
        2379,
        2380,
    }


def test_a_rule_for_what_nodes_ask_outside_is_about_no_socket_of_theirs() -> None:
    """As with 443 of a registry: a node's own 443 is in no rule, not one that its role should not serve."""
    nodes, outside = frozenset({"server", "agent"}), frozenset({"external"})
    spec = replace(SPEC, rules=(*SPEC.rules, Rule("registry", "tcp", 443, 443, nodes, outside)))
    sockets = [Listening("agent-1", (*HEALTHY_AGENT, Socket("tcp", "*", 443, "traefik")))]
    findings = compare(replace(analysis(), spec=spec), sockets)
    assert brief(findings) == {("low", "agent-1", "tcp", 443)}
    assert findings["rule"].tolist() == [""]


def test_a_node_with_etcd_alone_may_run_the_supervisor() -> None:
    """The first server of a split cluster is one, and the others join through it; none is missed there."""
    cluster = Cluster("split", (Node("etcd-1", "etcd", (SERVER,)), Node("agent-1", "agent", (AGENT,))))
    etcd = [Socket("tcp", "*", port, "rke2") for port in (2379, 2380, 9345, 10250)]
    assert compare(analysis(cluster=cluster), [Listening("etcd-1", tuple(etcd))]).empty
    api = Socket("tcp", "*", 6443, "kube-apiserver")
    findings = compare(analysis(cluster=cluster), [Listening("etcd-1", (*etcd, api))])
    assert brief(findings) == {("medium", "etcd-1", "tcp", 6443)}
    assert brief(found("agent-1", *HEALTHY_AGENT, Socket("tcp", "*", 9345, "rke2"))) == {
        ("medium", "agent-1", "tcp", 9345)
    }


def test_the_flows_to_the_socket_are_counted() -> None:
    asked = (fr.flow(AGENT_2, AGENT, 22), fr.flow("192.0.2.1", AGENT, 22), fr.flow(AGENT_2, SERVER, 22))
    findings = found("agent-1", *HEALTHY_AGENT, Socket("tcp", "*", 22, "sshd"), flows=asked)
    (row,) = findings.to_dict("records")
    assert (row["flows"], row["packets"], row["outcomes"]) == (2, 22, {"answered": 2})
    assert row["evidence"][0]["source"] == "capture.pcap"
    (quiet,) = found("agent-1", *HEALTHY_AGENT, Socket("tcp", "*", 22, "sshd")).to_dict("records")
    assert (quiet["flows"], quiet["evidence"]) == (0, [{"source": "agent-1.ss", "first_frame": 0}])
    assert quiet["id"] == row["id"]


def test_a_hostile_process_name_is_shown_harmlessly() -> None:
    (title,) = found("agent-1", *HEALTHY_AGENT, Socket("tcp", "*", 22, "\x1b[31m{node}\n", 7))["title"]
    assert title.isprintable()
    assert "{node}" in title


def test_sockets_of_no_node_are_a_fault() -> None:
    with pytest.raises(ClusterError, match="no node is called 'elsewhere'") as caught:
        found("elsewhere", Socket("tcp", "*", 22))
    assert "`rke2-flows listeners --node NAME`" in caught.value.next_step  # check's --node is another one


def test_several_lists_of_one_node_add_up() -> None:
    half = len(HEALTHY_SERVER) // 2
    lists = [Listening("server-1", HEALTHY_SERVER[:half]), Listening("server-1", HEALTHY_SERVER[half:])]
    assert compare(analysis(), lists).empty


# ---- never seen ----


def whole(*nodes: str, **changes: Any) -> tuple[Coverage, ...]:
    span = {"frames": 9, "flow": 9, "start": fr.EPOCH, "end": fr.EPOCH + 600 * fr.NS}
    return tuple(Coverage(f"{node}.pcap", **(span | changes)) for node in nodes)


EVERY = ("server-1", "server-2", "agent-1", "agent-2")


def silent(*flows: dict[str, Any], coverage: tuple[Coverage, ...]) -> set[str]:
    judged = analysis(*flows, coverage=coverage)
    return {
        r.rule for r in remark(judged.flows, CLUSTER, SPEC, coverage, ()) if r.reason.startswith("silent")
    }


def test_rules_that_no_flow_used() -> None:
    must = {"kubernetes-api", "supervisor-api", "kubelet-metrics", "etcd-peer"}
    assert silent(coverage=whole(*EVERY)) == must
    assert silent(fr.flow(AGENT, SERVER, 6443), coverage=whole(*EVERY)) == must - {"kubernetes-api"}


def test_an_answered_ping_uses_the_rules_of_both_its_types() -> None:
    """Cilium's table has echo and its reply; they are one flow, of the request's type."""
    spec, rules = load_spec("rke2-cilium"), ("cilium-health-checks-icmp-8", "cilium-health-checks-icmp-0")
    ping = fr.flow(AGENT, SERVER, 0, "icmp", client_port=8)
    lost = fr.failed(AGENT, SERVER, 0, "icmp", client_port=8)
    for row, flows in ((ping, [1, 1]), (lost, [1, 0])):
        of = replace(
            analysis(), flows=judge(fr.table([row]), CLUSTER, spec), spec=spec, coverage=whole(*EVERY)
        )
        table = crossing(of, ()).set_index("rule")
        assert table.loc[list(rules), "flows"].tolist() == flows
        unused = {told.rule for told in remark(of.flows, CLUSTER, spec, of.coverage, ())}
        assert unused & set(rules) == {rule for rule, count in zip(rules, flows, strict=True) if not count}


def test_never_is_said_only_where_the_captures_would_show_it() -> None:
    assert silent(coverage=()) == set()
    assert silent(coverage=whole(*EVERY, lost=1)) == set()
    assert silent(coverage=whole(*EVERY, damage="cut off")) == set()
    servers = silent(coverage=whole("server-1", "server-2"))
    assert servers == {"kubernetes-api", "supervisor-api", "etcd-peer"}  # agent to agent was not in sight


def test_silence_that_is_normal_has_its_reason() -> None:
    table = crossing(analysis(coverage=whole(*EVERY)), ())
    reasons = dict(zip(table["rule"], table["silence"], strict=True))
    quiet = {"etcd-client", "etcd-metrics", "canal-health-checks", "nodeport", "canal-vxlan"}
    quiet |= {"canal-wireguard-ipv4", "canal-wireguard-ipv6-dual-stack"}
    assert {rule for rule, why in reasons.items() if why} == quiet


def test_documented_listening_observed() -> None:
    lists = [Listening("server-1", HEALTHY_SERVER), Listening("agent-1", HEALTHY_AGENT)]
    table = crossing(analysis(fr.flow(AGENT, SERVER, 6443)), lists)
    columns = ["rule", "serving", "listed", "listening", "flows"]
    rows = {rule: counts for rule, *counts in table[columns].itertuples(index=False, name=None)}
    assert rows["kubernetes-api"] == [2, 1, 1, 1]
    assert rows["kubelet-metrics"] == [4, 2, 2, 0]
    assert rows["etcd-metrics"] == [2, 1, 0, 0]


# ---- as findings ----


def test_they_are_findings_like_others() -> None:
    flows = (fr.flow(AGENT, AGENT_2, 22),)
    of = analysis(*flows, coverage=whole(*EVERY))
    lists = [
        Listening("agent-1", (*HEALTHY_AGENT, Socket("tcp", "*", 22, "sshd"), Socket("tcp", "*", 10256)))
    ]
    alone = compare(of, lists)
    together = find(of.flows, CLUSTER, SPEC, of.coverage, remark(of.flows, CLUSTER, SPEC, of.coverage, lists))
    assert list(alone.columns) == list(COLUMNS)
    assert set(alone["kind"]) == {"listener"} <= set(KINDS)
    assert together["id"].is_unique
    assert set(alone["id"]) < set(together["id"])
    assert set(together["kind"]) == {"listener", "violation"}


def test_what_two_rules_name_is_missed_once() -> None:
    """As a site lets others in on a port that nodes have a rule for: one finding, under one id."""
    outside = Rule("from-outside", "tcp", 10250, 10250, frozenset({"external"}), frozenset({"agent"}))
    of = replace(analysis(), spec=replace(SPEC, rules=(*SPEC.rules, outside)))
    table = compare(of, [Listening("agent-1", ())])
    assert table["id"].is_unique
    assert table["id"].tolist() == compare(analysis(), [Listening("agent-1", ())])["id"].tolist()


def test_the_tables_of_ports_say_why() -> None:
    for table in (LOOPBACK_PORTS, KNOWN_PORTS, SILENT_PORTS):
        assert all(words and source for words, source in table.values())
    assert {("tcp", 2381), ("tcp", 9099), ("udp", 51820), ("udp", 51821), ("tcp", 2379)} <= set(SILENT_PORTS)
    assert ("tcp", 2379) not in NO_SOCKET_PORTS


@lru_cache(maxsize=1)
def _recorded() -> Analysis:
    return analyze(RECORDED / "baseline", cluster=RECORDED / "baseline" / "cluster.yaml")


def test_on_a_recording_of_all_nodes_every_rule_that_must_be_was_used() -> None:
    of = _recorded()
    assert remark(of.flows, of.cluster, of.spec, of.coverage, ()) == []
    table = crossing(of, ()).set_index("rule")
    assert (table.loc[["kubernetes-api", "supervisor-api", "etcd-peer", "canal-vxlan"], "flows"] > 0).all()
