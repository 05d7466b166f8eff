"""What is said of an alert. Rule: records made by hand; no kernel and no packet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from analyzer import load_cluster, load_spec
from analyzer.capture._program import ALERT, ETHERNET
from analyzer.capture.alerts import FLOOD_LINES, FLOOD_NS, VERDICTS, Alert, Flood, Reader
from analyzer.flows import parse_address

if TYPE_CHECKING:
    from analyzer.cluster import Cluster
    from analyzer.rows import Rows

TCP, UDP, ICMP, ICMPV6, SCTP, GRE = 6, 17, 1, 58, 132, 47
WRONG_PAIR, WRONG_PROTOCOL, UNLISTED, FOREIGN_TUNNEL = VERDICTS
SERVER, AGENT, STRANGER = "10.0.0.1", "10.0.0.2", "192.0.2.7"
SERVER_6, AGENT_6 = "fd00::1", "fd00::2"
MOMENT = 1_800_000_000_123_456_789  # 2027-01-15 08:00:00.123 UTC
OFFSET = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    nodes = [
        {"name": "server-1", "role": "server", "addresses": [SERVER, SERVER_6]},
        {"name": "agent-1", "role": "agent", "addresses": [AGENT, AGENT_6]},
    ]
    vips = [{"address": "10.0.0.10", "role": "server"}]
    file = tmp_path_factory.mktemp("cluster") / "nodes.yaml"
    file.write_text(yaml.safe_dump({"name": "c", "nodes": nodes, "virtual_ips": vips}))
    return load_cluster(file)


def record(
    src: str = AGENT,
    dst: str = SERVER,
    protocol: int = TCP,
    port: int = 2379,
    verdict: int = WRONG_PAIR,
    **more: Any,
) -> Rows:
    """One record, as bpf/live.c writes it."""
    made = np.zeros(1, ALERT)
    made["key"]["src"], made["key"]["dst"] = np.void(parse_address(src)), np.void(parse_address(dst))
    made["key"]["protocol"], made["port"], made["verdict"] = protocol, port, verdict
    made["time"], made["link"] = MOMENT - OFFSET, ETHERNET
    for name, value in more.items():
        target = made["owner"] if name in ("cgroup", "pid", "process") else made
        target[name] = value
    return made


def told(cluster: Cluster, pod: str = "", **of: Any) -> Alert:
    return Reader(cluster, load_spec(), lambda _cgroup, _pid: pod).read(record(**of), OFFSET)


# ---- the sentence ----

LINES: dict[str, tuple[dict[str, Any], str]] = {
    "the pair is wrong": (
        {},
        "wrong-pair agent-1 (agent) → server-1 (server) tcp/2379: "
        "rule etcd-client does not allow agent to server",
    ),
    "from server to client": (
        {"src": SERVER, "dst": AGENT, "reversed": 1},
        "wrong-pair agent-1 (agent) → server-1 (server) tcp/2379: "
        "rule etcd-client does not allow agent to server",
    ),
    "over IPv6": (
        {"src": AGENT_6, "dst": SERVER_6, "port": 22, "verdict": UNLISTED},
        "unlisted agent-1 (agent) → server-1 (server) tcp/22: no rule names it",
    ),
    "the protocol is wrong": (
        {"protocol": UDP, "port": 6443, "verdict": WRONG_PROTOCOL},
        "wrong-protocol agent-1 (agent) → server-1 (server) udp/6443: "
        "rule kubernetes-api has the port for another protocol",
    ),
    "a tunnel of a stranger": (
        {"src": STRANGER, "protocol": UDP, "port": 8472, "verdict": FOREIGN_TUNNEL},
        f"foreign-tunnel {STRANGER} → server-1 (server) udp/8472: "
        "tunnel traffic from an address that is no node",
    ),
    "ICMP has types": (
        {"protocol": ICMP, "port": 8, "verdict": UNLISTED},
        "unlisted agent-1 (agent) → server-1 (server) icmp type 8: no rule names it",
    ),
    "ICMPv6 too": (
        {"src": AGENT_6, "dst": SERVER_6, "protocol": ICMPV6, "port": 128, "verdict": UNLISTED},
        "unlisted agent-1 (agent) → server-1 (server) icmpv6 type 128: no rule names it",
    ),
    "a protocol without ports": (
        {"protocol": GRE, "port": 0, "verdict": UNLISTED},
        "unlisted agent-1 (agent) → server-1 (server) 47/0: no rule names it",
    ),
    "a process": (
        {"pid": 4711, "process": b"curl", "port": 22, "verdict": UNLISTED},
        "unlisted agent-1 (agent) → server-1 (server) tcp/22: no rule names it; by curl (pid 4711)",
    ),
    "a process without a name": (
        {"pid": 4711, "port": 22, "verdict": UNLISTED},
        "unlisted agent-1 (agent) → server-1 (server) tcp/22: no rule names it; by ? (pid 4711)",
    ),
    "a pod": (
        {"pid": 4711, "process": b"curl", "port": 22, "verdict": UNLISTED, "pod": "default/web-0"},
        "unlisted agent-1 (agent) → server-1 (server) tcp/22: no rule names it; "
        "by curl (pid 4711, pod default/web-0)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("of", "line"), LINES.values(), ids=list(LINES))
def test_the_line_says_all_of_it(cluster: Cluster, of: dict[str, Any], line: str) -> None:
    assert told(cluster, **of).line == f"08:00:00.123 {line}"


def test_a_virtual_address_has_a_role(cluster: Cluster) -> None:
    alert = told(cluster, dst="10.0.0.10")
    assert (alert.server_role, alert.server) == (
        "server",
        next(n for n, _, a in cluster.rows() if "10.0.0.10" in a),
    )


def test_the_packet_is_kept_as_far_as_it_was_captured(cluster: Cluster) -> None:
    alert = told(cluster, bytes=np.void(bytes(range(128))), captured=60, length=1514)
    assert (alert.packet, alert.length, alert.time, alert.link) == (bytes(range(60)), 1514, MOMENT, ETHERNET)


def test_a_pod_is_asked_for_by_cgroup_and_pid(cluster: Cluster) -> None:
    asked: list[tuple[int, int]] = []

    def pod_of(cgroup: int, pid: int) -> str:
        asked.append((cgroup, pid))
        return "kube-system/canal"

    reader = Reader(cluster, load_spec(), pod_of)
    assert reader.read(record(cgroup=77, pid=5), OFFSET).pod == "kube-system/canal"
    assert reader.read(record(cgroup=77), OFFSET).pod == ""
    assert asked == [(77, 5)], "nobody is asked for a process that is not known"


@given(process=st.binary(max_size=15).map(lambda b: b.replace(b"\0", b"?")))
def test_a_process_may_call_itself_anything(cluster: Cluster, process: bytes) -> None:
    line = told(cluster, pid=1, process=process).line
    assert line.isprintable()
    assert line.endswith(" (pid 1)")


def test_what_commands_a_terminal_is_shown_as_what_it_is(cluster: Cluster) -> None:
    line = told(cluster, pid=1, process=b"\x1b[2Jx\n\xe2\x80\xae").line
    assert "by \\x1b[2Jx\\x0a\\x202e (pid 1)" in line


@given(
    src=st.sampled_from([SERVER, AGENT, STRANGER]),
    dst=st.sampled_from([SERVER, AGENT]),
    protocol=st.integers(0, 255),
    port=st.integers(0, 65535),
    verdict=st.sampled_from(list(VERDICTS)),
    turned=st.integers(0, 1),
)
def test_every_record_has_a_line(
    cluster: Cluster, src: str, dst: str, protocol: int, port: int, verdict: int, turned: int
) -> None:
    alert = told(cluster, src=src, dst=dst, protocol=protocol, port=port, verdict=verdict, reversed=turned)
    assert alert.verdict in alert.line
    assert str(port) in alert.line
    assert "{" not in alert.line


# ---- not too many of them ----


def alert(time: int = MOMENT, client: str = "a", server: str = "b") -> Alert:
    return Alert(
        time, client, server, "agent", "server", "tcp", 1, "unlisted", "", "", 0, "", b"", 0, 1, ETHERNET
    )  # fmt: skip


def test_a_pair_has_so_many_lines_a_minute_and_the_rest_is_counted() -> None:
    flood = Flood()
    assert all(flood.shows(alert(MOMENT + n)) for n in range(FLOOD_LINES))
    late = alert(MOMENT + FLOOD_LINES)
    assert not flood.shows(late)
    assert flood.first(late), "that it goes on is said once"
    assert not flood.shows(late)
    assert not flood.first(late)
    assert flood.held == {("a", "b"): 2}


def test_another_pair_is_not_held_back() -> None:
    flood = Flood()
    for n in range(FLOOD_LINES + 1):
        flood.shows(alert(MOMENT + n))
    assert flood.shows(alert(client="b", server="a"))
    assert flood.shows(alert(server="c"))


def test_addresses_that_are_made_up_are_one_client() -> None:
    flood = Flood()
    strangers = [replace(alert(client=f"192.0.2.{n}"), client_role="") for n in range(FLOOD_LINES + 1)]
    assert [flood.shows(one) for one in strangers] == [True] * FLOOD_LINES + [False]
    assert flood.shows(alert())


def test_a_minute_later_there_are_lines_again() -> None:
    flood = Flood()
    for n in range(FLOOD_LINES + 5):
        flood.shows(alert(MOMENT + n))
    assert not flood.shows(alert(MOMENT + FLOOD_NS))
    assert flood.shows(alert(MOMENT + FLOOD_NS + 1))


@given(
    gaps=st.lists(st.integers(0, FLOOD_NS // 10), max_size=200),
    pairs=st.lists(st.sampled_from(["a", "b"]), min_size=200, max_size=200),
)
def test_no_minute_has_more_lines_and_none_is_forgotten(gaps: list[int], pairs: list[str]) -> None:
    flood, time = Flood(), MOMENT
    shown: dict[str, list[int]] = {"a": [], "b": []}
    for gap, client in zip(gaps, pairs, strict=False):
        time += gap
        if flood.shows(alert(time, client)):
            shown[client].append(time)
    for times in shown.values():
        assert all(sum(start <= t <= start + FLOOD_NS for t in times) <= FLOOD_LINES for start in times)
    assert sum(flood.held.values()) + sum(map(len, shown.values())) == len(gaps)
