"""Roles without an inventory. Rule: the recordings' own inventory is the truth; what is unknown may stay so,
what is said must be right.

Recordings together and each capture alone, subsets of their flows, flow rows by hand for what misleads, and
captures of other projects.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import frames as fr
import pandas as pd
import pytest
from conftest import PUBLIC, RECORDED, require_shared
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.analysis import Analysis
from analyzer.cluster import Cluster, Node, load_cluster
from analyzer.errors import CaptureError, ClusterError
from analyzer.flows import pair
from analyzer.infer import Inferred, InferredNode, doubt, doubtful, infer, no_node
from analyzer.spec import load_spec
from analyzer.store import read_inputs
from analyzer.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from analyzer.rows import OneWay

RECORDINGS = sorted(folder.name for folder in RECORDED.iterdir() if (folder / "truth.json").is_file())
CAPTURES = sorted(file for name in RECORDINGS for file in (RECORDED / name).glob("*.pcap*"))
ALL_SIX = [name for name in RECORDINGS if len(list((RECORDED / name).glob("*.pcap*"))) == 6]
SURE = ("high", "medium")
SPEC = load_spec("rke2-canal")
Flow = dict[str, Any]


def _truth() -> dict[str, tuple[str, str]]:
    cluster = load_cluster(RECORDED / "baseline" / "cluster.yaml")
    return {address: (node.name, node.role) for node in cluster.nodes for address in node.addresses}


TRUTH = _truth()


@lru_cache(maxsize=64)
def _rows(path: Path, interval: int = 0) -> OneWay:
    return read_inputs([path], interval=interval)


def _faults(inferred: Inferred, confidences: Iterable[str]) -> list[InferredNode]:
    """Nodes whose role is not the truth's, or whose addresses are not one machine's."""
    wanted = [node for node in inferred.nodes if node.confidence in set(confidences)]
    machines = [{TRUTH.get(address, ("", ""))[0] for address in node.addresses} for node in wanted]
    roles = [{TRUTH.get(address, ("", "outside"))[1] for address in node.addresses} for node in wanted]
    return [
        node
        for node, names, said in zip(wanted, machines, roles, strict=True)
        if len(names) > 1 or said != {node.role}
    ]


# ---- recordings ----


@pytest.mark.parametrize("name", ALL_SIX)
def test_all_six_nodes_of_a_recording_are_right(name: str) -> None:
    inferred = infer(_rows(RECORDED / name))
    assert {(node.name, node.role) for node in inferred.nodes} == set(TRUTH.values())
    assert _faults(inferred, SURE) == []
    assert {node.confidence for node in inferred.nodes} <= set(SURE)
    assert {node.confidence for node in inferred.nodes if node.role == "server"} == {"high"}


@pytest.mark.parametrize("name", RECORDINGS)
def test_nothing_said_of_a_recording_is_wrong(name: str) -> None:
    inferred = infer(_rows(RECORDED / name))
    assert _faults(inferred, ("high", "medium", "low")) == []
    told = {address for node in (*inferred.nodes, *inferred.unknown) for address in node.addresses}
    assert {address for address in TRUTH if ":" not in address} <= told


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_one_capture_alone_says_nothing_wrong(path: Path) -> None:
    inferred = infer(_rows(path))
    assert _faults(inferred, ("high", "medium", "low")) == []


#: captures of nodes that offend or cannot join: what they do fits no role, as far as they alone can see
_MISFITS = {("offences", "agent-1"), ("offences", "agent-2"), ("any", "agent-1"), ("blocked", "agent-2")}


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_one_capture_alone_knows_its_own_node(path: Path) -> None:
    name, role = path.stem.removesuffix(".pcap"), path.stem.split("-")[0]
    address = next(a for a, (node, _) in TRUTH.items() if node == name and ":" not in a)
    inferred = infer(_rows(path))
    (own,) = (n for n in (*inferred.nodes, *inferred.unknown) if address in n.addresses)
    misfit = (path.parent.name, name) in _MISFITS
    assert own.role == ("" if misfit else role)
    assert own.confidence == "unknown" if misfit else own.confidence in SURE


def test_the_address_outside_is_no_node() -> None:
    """It asks a supervisor, an apiserver, a kubelet and etcd, and sends VXLAN that nobody answers."""
    inferred = infer(_rows(RECORDED / "offences"))
    (outside,) = inferred.unknown
    assert (outside.addresses, outside.role, outside.vteps, outside.pod_cidrs) == (
        ("10.10.0.99",),
        "",
        (),
        (),
    )


@pytest.mark.parametrize("name", ["baseline", "offences"])
def test_tunnel_ends_and_pod_ranges(name: str) -> None:
    inferred = infer(_rows(RECORDED / name))
    assert set(inferred.pod_cidrs) == {"10.42.0.0/16", "2001:cafe:42::/56"}
    nodes = {node.name: node for node in inferred.nodes}
    assert nodes["agent-1"].pod_cidrs == ("10.42.3.0/24", "2001:cafe:42:3::/64")
    assert nodes["agent-1"].vteps == ("10.10.0.21", "fd00:10::21")
    assert nodes["server-3"].vteps == ()


def test_wireguard_hides_pods_and_says_so() -> None:
    inferred = infer(_rows(RECORDED / "wireguard"))
    assert inferred.pod_cidrs == {}
    assert "# pod_cidrs: not seen" in inferred.to_yaml()


def test_verdicts_are_those_of_the_inventory() -> None:
    """What an inferred cluster judges is what the written one judges."""
    rows, spec = _rows(RECORDED / "offences"), load_spec()
    known = Analysis.of(rows, load_cluster(RECORDED / "offences" / "cluster.yaml"), spec).flows
    guessed = Analysis.of(rows, infer(rows).to_cluster(), spec).flows
    columns = ["client_node", "server_node", "client_role", "server_role", "scope", "verdict"]
    pd.testing.assert_frame_equal(known[columns].astype(str), guessed[columns].astype(str))


def test_a_flow_table_says_the_same_as_its_rows() -> None:
    rows = _rows(RECORDED / "baseline")
    assert infer(pair(rows.settled())).to_yaml() == infer(rows).to_yaml()


# ---- parts of recordings ----


@lru_cache(maxsize=16)
def _flows(name: str) -> pd.DataFrame:
    return pair(_rows(RECORDED / name, 2 * fr.NS).settled())


@settings(max_examples=60)
@given(
    name=st.sampled_from(RECORDINGS),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.02, 1),
    data=st.data(),
)
def test_no_part_of_the_traffic_makes_a_sure_role_wrong(
    name: str, seed: int, share: float, data: st.DataObject
) -> None:
    """A part: some of the flows, at some of the ports, of some of the captures, in some of the time."""
    table = _flows(name)
    table = table.sample(frac=share, random_state=seed)
    ports = sorted(table["server_port"].unique().tolist())
    dropped = data.draw(st.sets(st.sampled_from(ports), max_size=3)) if ports else set()
    windows = sorted(table["start"].dt.floor("2s").unique())
    kept = data.draw(st.sets(st.sampled_from(windows), min_size=1)) if windows else set()
    part = table[~table["server_port"].isin(dropped) & table["start"].dt.floor("2s").isin(kept)]
    assert _faults(infer(part), SURE) == []


@settings(max_examples=60)
@given(
    name=st.sampled_from(RECORDINGS),
    ends=st.sets(
        st.sampled_from([a for a in TRUTH if ":" not in a] + ["10.10.0.99"]), min_size=2, max_size=4
    ),
)
def test_no_choice_of_addresses_makes_a_sure_role_wrong(name: str, ends: set[str]) -> None:
    """As with the capture filter `host A or host B`, and only what is between those."""
    table = _flows(name)
    part = table[table["client"].astype(str).isin(ends) & table["server"].astype(str).isin(ends)]
    assert _faults(infer(part), SURE) == []


@settings(max_examples=60)
@given(
    name=st.sampled_from(RECORDINGS),
    ports=st.sets(
        st.sampled_from([2379, 2380, 2381, 6443, 9345, 10250, 9099, 8472, 51820, 30080]), min_size=1
    ),
)
def test_no_choice_of_ports_makes_a_sure_role_wrong(name: str, ports: set[int]) -> None:
    """As with the capture filter `port A or port B`."""
    table = _flows(name)
    assert _faults(infer(table[table["server_port"].isin(ports)]), SURE) == []


def test_a_part_that_is_large_still_says_something() -> None:
    """The properties above could hold by silence."""
    part = _flows("baseline").sample(frac=0.7, random_state=1)
    assert sum(node.confidence in SURE for node in infer(part).nodes) >= 4


# ---- what misleads ----

S1, S2, S3, A1, A2, A3 = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.21", "10.0.0.22", "10.0.0.23")
OUT, VIP = "192.0.2.7", "10.0.0.100"


def vxlan(a: str, b: str) -> list[Flow]:
    """Carriers both ways."""
    one_way = {"packets_in": 0, "bytes_in": 0}
    return [fr.flow(x, y, 8472, "udp", client_port=50000, **one_way) for x, y in ((a, b), (b, a))]


def etcd(*members: str) -> list[Flow]:
    return [fr.flow(a, b, 2380) for a in members for b in members if a != b]


def agent(address: str, *servers: str, port: int = 9345) -> list[Flow]:
    """What an agent does with each server, and a metrics-server's scrape of its kubelet."""
    asks = [fr.flow(address, server, p) for server in servers for p in (6443, port)]
    return [*asks, *vxlan(address, servers[0]), fr.flow(servers[0], address, 10250)]


def roles(*flows: Iterable[Flow]) -> dict[str, tuple[str, str]]:
    """Address → (role, confidence), of all that is told of."""
    inferred = infer(fr.table([row for part in flows for row in part]))
    return {
        address: (node.role, node.confidence)
        for node in (*inferred.nodes, *inferred.unknown)
        for address in node.addresses
    }


HA = [*etcd(S1, S2, S3), *agent(A1, S1, S2, S3), *agent(A2, S1, S2, S3)]


def test_a_cluster_of_three_servers() -> None:
    said = roles(HA)
    assert {said[a] for a in (S1, S2, S3)} == {("server", "high")}
    assert {said[a] for a in (A1, A2)} == {("agent", "high")}


def test_one_server_alone_has_no_etcd_on_the_wire() -> None:
    said = roles(agent(A1, S1), agent(A2, S1))
    assert said == {S1: ("server", "high"), A1: ("agent", "medium"), A2: ("agent", "medium")}


def test_an_agent_that_talks_to_etcd_does_not_become_a_server() -> None:
    offences = [fr.flow(A1, S1, 2379), fr.flow(A1, S1, 2380), fr.flow(A1, S2, 2379)]
    assert roles(HA, offences)[A1] == ("agent", "medium")


def test_an_agent_that_answers_on_6443_does_not_become_a_server() -> None:
    assert roles(HA, [fr.flow(S2, A1, 6443)])[A1] == ("agent", "medium")


def test_an_agent_that_offends_where_little_was_seen_is_unknown() -> None:
    assert roles(agent(A1, S1), agent(A2, S1), [fr.flow(A1, S1, 2379)])[A1] == ("", "unknown")


def test_a_joining_server_is_no_agent() -> None:
    """It asks a supervisor and an apiserver as an agent does, and then joins etcd."""
    joining = [fr.flow(S2, S1, 9345), fr.flow(S2, S1, 6443), fr.flow(S2, S1, 2379), *vxlan(S1, S2)]
    assert roles(agent(A1, S1), joining)[S2][1] == "unknown"
    assert roles(agent(A1, S1), joining, etcd(S1, S2))[S2] == ("server", "medium")


def test_control_plane_without_etcd_is_a_server() -> None:
    """It asks the etcd nodes and none asks it for etcd; agents ask it as they ask any server."""
    plane = [fr.flow(S3, S1, 2379), fr.flow(S3, S2, 9345), *vxlan(S3, S1)]
    said = roles(etcd(S1, S2), plane, agent(A1, S3), agent(A2, S3))
    assert said[S3] == ("server", "high")
    assert said[S1] == ("server", "medium")


def test_clients_from_outside_are_no_nodes() -> None:
    said = roles(HA, [fr.flow(OUT, S1, 6443), fr.flow(OUT, A1, 30080), fr.flow(OUT, A1, 10250)])
    assert OUT not in said


def test_services_outside_are_no_nodes() -> None:
    """DNS, NTP, another cluster's apiserver, and an apiserver's load balancer elsewhere."""
    asked = [fr.flow(S1, OUT, 53, "udp"), fr.flow(S1, OUT, 123, "udp"), fr.flow(A1, OUT, 443)]
    assert OUT not in roles(HA, asked)
    assert roles(HA, [fr.flow(A1, OUT, 6443)])[OUT] == ("", "unknown")


def test_a_scraped_kubelet_elsewhere_has_no_role() -> None:
    assert roles(HA, [fr.flow(A1, OUT, 10250)])[OUT] == ("", "unknown")


def test_a_scan_shows_nothing() -> None:
    """SYNs to many ports, each answered by a reset, in both directions."""
    ports = (2379, 2380, 6443, 9345, 10250, 9099, 30080)
    resets = [
        fr.failed(a, b, port, outcome="refused", packets_in=3, tcp_flags_in=0x14)
        for a, b in ((OUT, A1), (A1, OUT))
        for port in ports
    ]
    before, after = roles(HA), roles(HA, resets)
    assert OUT not in after
    assert {a: after[a] for a in (S1, S2, S3, A2)} == {a: before[a] for a in (S1, S2, S3, A2)}
    assert after[A1] in (("agent", "medium"), ("", "unknown"))


def test_one_way_flows_show_nothing() -> None:
    """Captured on one side of an asymmetric way: the answers are not there."""
    half = [fr.flow(A1, S1, p, outcome="one-way", packets_in=0) for p in (6443, 9345, 2380)]
    assert roles(half) == {}


def test_a_load_balancer_is_neither() -> None:
    ways = [fr.flow(VIP, s, p) for s in (S1, S2, S3) for p in (6443, 9345)]
    asked = [fr.flow(a, VIP, p) for a in (A1, A2) for p in (6443, 9345)]
    assert roles(HA, ways, asked)[VIP] == ("", "unknown")


def test_a_virtual_address_is_no_sure_node() -> None:
    asked = [fr.flow(a, VIP, 9345) for a in (A1, A2)]
    assert roles(HA, asked)[VIP] == ("server", "low")


def test_a_supervisor_that_only_one_asks_is_not_sure() -> None:
    """With supervisor-metrics every node answers on 9345; then it is Prometheus that asks."""
    said = roles(agent(A1, S1), agent(A2, S1), [fr.flow(A2, A1, 9345)])
    assert said[A1][0] != "server"


def test_with_the_embedded_registry_9345_shows_nothing() -> None:
    mesh = [fr.flow(a, b, p) for a in (A1, A2, A3) for b in (A1, A2, A3) if a != b for p in (5001, 9345)]
    said = roles(HA, agent(A3, S1, S2, S3), mesh)
    assert {said[a][0] for a in (A1, A2, A3)} == {"agent"}
    assert {said[a] for a in (S1, S2, S3)} == {("server", "high")}


def test_node_ports_are_on_all_nodes() -> None:
    said = roles(HA, [fr.flow(OUT, node, 30080) for node in (S1, A1)])
    assert (said[S1][0], said[A1][0]) == ("server", "agent")


def test_forged_tunnels_make_no_node() -> None:
    """VXLAN that a stranger sends is not answered by VXLAN."""
    assert OUT not in roles(HA, [fr.flow(OUT, A1, 8472, "udp", packets_in=0, outcome="unanswered")])


def test_metrics_server_is_a_pod() -> None:
    """A pod too answers on 10250; seen inside of a tunnel it is no kubelet."""
    ends: Flow = {"tunnel": "vxlan", "vni": 1, "outer_client": S1, "outer_server": A1}
    pod = fr.flow("10.42.0.5", "10.42.1.7", 10250, **ends)
    unwrapped = fr.flow("10.42.1.1", "10.42.1.8", 10250)
    inferred = infer(fr.table([*HA, pod, unwrapped]))
    told = {a for node in (*inferred.nodes, *inferred.unknown) for a in node.addresses}
    assert not any(a.startswith("10.42.") for a in told)
    assert set(inferred.pod_cidrs) == {"10.42.0.0/16"}


def test_a_pod_range_that_would_hold_a_node_is_not_said() -> None:
    near = [row for node in ("10.42.9.1",) for row in agent(node, S1)]
    ends: Flow = {"tunnel": "vxlan", "vni": 1, "outer_client": S1, "outer_server": A1}
    inferred = infer(fr.table([*HA, *near, fr.flow("10.42.0.5", "10.42.1.7", 80, **ends)]))
    assert set(inferred.pod_cidrs) == {"10.42.0.0/24", "10.42.1.0/24"}
    assert "10.42.9.1" in {a for node in inferred.nodes for a in node.addresses}


def test_calico_hands_out_no_range_by_node() -> None:
    """Two nodes with pods of one /24: no node's range is said."""
    ends = [("10.42.0.5", "10.42.1.7", S1, A1), ("10.42.0.200", "10.42.1.9", A1, S1)]
    inner = [
        fr.flow(a, b, 80, tunnel="vxlan", vni=4096, outer_client=x, outer_server=y) for a, b, x, y in ends
    ]
    inferred = infer(fr.table([*HA, *inner]))
    assert {node.pod_cidrs for node in inferred.nodes} == {()}
    assert set(inferred.pod_cidrs) == {"10.42.0.0/16"}


def test_the_service_range_is_the_default_where_it_was_asked() -> None:
    assert infer(fr.table([*HA, fr.flow(A1, "10.43.0.10", 53, "udp")])).service_cidrs.keys() == {
        "10.43.0.0/16"
    }
    assert infer(fr.table([*HA, fr.flow("10.43.0.10", A1, 30080)])).service_cidrs == {}


# ---- one machine, several addresses ----

SIX = {a: f"fd00::{a.rsplit('.', 1)[1]}" for a in (S1, S2, S3, A1, A2)}


def test_both_families_are_one_machine_where_its_own_capture_shows_it() -> None:
    rows = [
        *(fr.flow(A1, s, p, source="agent-1.pcap") for s in (S1, S2) for p in (6443, 9345)),
        *(fr.flow(SIX[A1], SIX[s], 6443, source="agent-1.pcap") for s in (S1, S2)),
        *(fr.flow(A2, s, 9345, source="agent-2.pcap") for s in (S1, S2)),
    ]
    inferred = infer(fr.table(rows))
    machines = {node.addresses for node in (*inferred.nodes, *inferred.unknown)}
    assert machines >= {(S1,), (S2,)}
    both = infer(fr.table([*rows, *vxlan(A1, S1), fr.flow(S1, A1, 10250, source="agent-1.pcap")]))
    # a carrier that another capture holds takes nothing away; agent-1.pcap holds all of A1
    assert (A1, SIX[A1]) in {node.addresses for node in (*both.nodes, *both.unknown)}


def test_two_families_between_two_ends_stay_apart() -> None:
    """Which of the two captured it does not show."""
    rows = [*agent(A1, S1), fr.flow(SIX[A1], SIX[S1], 9345), fr.flow(SIX[S1], SIX[A1], 10250)]
    inferred = infer(fr.table(rows))
    assert all(len(node.addresses) == 1 for node in (*inferred.nodes, *inferred.unknown))
    assert "that another address is the same machine's was not seen" in inferred.to_yaml()


def test_a_mirror_port_links_nothing() -> None:
    rows = [*HA, *(fr.flow(SIX[A1], SIX[s], 6443) for s in (S1, S2)), fr.flow(SIX[A2], SIX[S1], 6443)]
    inferred = infer(fr.table(rows))
    assert all(len(node.addresses) == 1 for node in (*inferred.nodes, *inferred.unknown))


# ---- what is written ----


def test_the_yaml_is_a_cluster_file(tmp_path: Path) -> None:
    inferred = infer(_rows(RECORDED / "baseline"))
    file = tmp_path / "nodes.yaml"
    file.write_text(inferred.to_yaml("prod"), encoding="utf-8")
    assert load_cluster(file) == _same(inferred.to_cluster("prod"))
    assert "# server (high): " in file.read_text(encoding="utf-8")


def _same(cluster: Cluster) -> object:
    """Compares by what is in it."""
    return _ByContent(cluster)


class _ByContent:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cluster) and other.to_yaml() == self.cluster.to_yaml()

    __hash__ = None  # type: ignore[assignment]


def test_what_is_unknown_stands_in_comments(tmp_path: Path) -> None:
    inferred = infer(_rows(RECORDED / "offences" / "agent-1.pcap"))
    text = inferred.to_yaml()
    assert "10.10.0.21" in text
    file = tmp_path / "nodes.yaml"
    file.write_text(text, encoding="utf-8")
    assert "10.10.0.21" not in {a for node in load_cluster(file).nodes for a in node.addresses}


def test_where_nothing_shows_there_is_no_cluster(tmp_path: Path) -> None:
    inferred = infer(fr.table([fr.flow(OUT, A1, 443)]))
    assert (inferred.nodes, inferred.unknown, inferred.outside) == ((), (), 2)
    with pytest.raises(ClusterError, match="no node's role shows"):
        inferred.to_cluster()
    file = tmp_path / "nodes.yaml"
    file.write_text(inferred.to_yaml(), encoding="utf-8")
    with pytest.raises(ClusterError, match="no nodes"):
        load_cluster(file)


def test_no_flow_at_all() -> None:
    inferred = infer(fr.table([]))
    assert (inferred.nodes, inferred.unknown, inferred.outside) == ((), (), 0)
    assert str(inferred) == "no node; 0 unknown"


SHOWS_NOTHING: dict[str, tuple[bytes, str]] = {
    "no frame": (fr.pcap([]), "0 frames in 1 source (check the interface"),
    "only ARP": (fr.pcap(fr.timed([fr.arp()] * 5)), "5 frames in 1 source: 5 not IP (ARP and the like"),
    "link type": (
        fr.pcap(fr.timed([fr.arp()]), link=147),
        "1 frame in 1 source: 1 of a link type that is not known (capture on an Ethernet interface",
    ),
    "snaplen": (
        fr.pcap([fr.Frame(fr.segment((A1, 5), (A2, 6), 2)[:20], fr.EPOCH, 54)]),
        "1 frame in 1 source: 1 truncated (capture with a larger snaplen",
    ),
    "damaged": (
        fr.pcap(fr.timed([fr.arp()] * 2))[:-1],
        "1 frame in 1 source: 1 not IP, 1 source damaged (copy or record what is damaged again)",
    ),
    "others": (
        fr.pcap(fr.timed(fr.talk((OUT, 5), (A1, 443)))),
        "8 frames in 1 source: 8 in flows (write a cluster file, or capture for longer on more nodes)",
    ),
}


@pytest.mark.parametrize("name", SHOWS_NOTHING)
def test_where_no_node_shows_it_is_said_what_was_seen(name: str) -> None:
    data, expected = SHOWS_NOTHING[name]
    rows = fr.read(data).settled()
    said = str(no_node(infer(rows), rows.coverage))
    assert said.startswith("no node's role shows (0 may be nodes): ")
    assert expected in said


def test_where_no_node_shows_in_a_flow_table_its_ledger_is_missed() -> None:
    said = str(no_node(infer(fr.table([fr.flow(OUT, A1, 443)])), ()))
    assert said.endswith(": flow tables alone (write a cluster file, or capture for longer on more nodes)")


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
        lambda t: ";" not in t
    )
)
@settings(max_examples=50)
def test_hostile_capture_names_stay_in_their_comment(name: str) -> None:
    rows = [fr.flow(A1, s, p, source=name) for s in (S1, S2) for p in (6443, 9345)]
    rows += [
        fr.flow(S1, A1, 10250, source=name),
        *({**row, "source": name, "witnesses": name} for row in vxlan(A1, S1)),
    ]
    rows += [fr.flow(A2, s, 9345, source="agent-2.pcap") for s in (S1, S2)]
    inferred = infer(fr.table(rows))
    from analyzer.cluster import parse_cluster

    read = parse_cluster(inferred.to_yaml(), where="nodes.yaml")
    assert read.to_yaml() == inferred.to_cluster().to_yaml()


def test_confidence_chooses_what_the_cluster_holds() -> None:
    inferred = infer(_rows(RECORDED / "baseline" / "server-1.pcap"))
    sizes = [len(inferred.to_cluster(least=least).nodes) for least in ("high", "medium", "low")]
    assert sizes[0] < sizes[1] < sizes[2]


def test_the_frame_and_the_line_say_the_same() -> None:
    inferred = infer(_rows(RECORDED / "baseline"))
    assert str(inferred) == "3 server (high), 3 agent (high); 0 unknown"
    assert inferred.to_frame()["confidence"].tolist() == ["high"] * 6


# ---- what counts as outside ----


def test_runs_of_one_cluster_are_looked_at_together() -> None:
    parts = [_rows(RECORDED / "baseline" / f"{name}.pcap") for name in ("server-1", "agent-1")]
    together = infer(*parts)
    assert len(together.nodes) >= max(len(infer(part).nodes) for part in parts)
    assert {"server-1", "agent-1"} <= {node.name for node in together.nodes}
    assert _faults(together, SURE) == []
    whole = _rows(RECORDED / "baseline")
    assert infer(whole, whole).to_cluster() == infer(whole).to_cluster()


@pytest.mark.parametrize("missing", ["", "agent-1", "server-2"])
def test_a_node_that_is_missing_is_doubtful(missing: str) -> None:
    whole = load_cluster(RECORDED / "offences" / "cluster.yaml")
    left = replace(whole, nodes=tuple(node for node in whole.nodes if node.name != missing))
    judged = Analysis.of(_rows(RECORDED / "offences"), left, SPEC).flows
    seen = {*judged["client"].astype(str), *judged["server"].astype(str)}
    expected = {a for a, (name, _) in TRUTH.items() if name == missing and a in seen} | {"10.10.0.99"}
    assert set(doubtful(judged, left)) == expected


@pytest.mark.parametrize(
    ("end", "named"),
    [("172.31.0.9", True), ("172.32.0.9", False), ("192.168.0.9", True), ("8.8.8.8", False),
     ("fd00::9", True), ("2001:db8::9", False), ("10.42.1.9", False), ("10.43.0.9", False),
     ("10.10.0.12", False)],
)  # fmt: skip
def test_only_private_addresses_that_are_not_the_clusters_are_doubtful(end: str, named: bool) -> None:
    nodes = (Node("a", "server", ("10.10.0.11", "fd00::1")), Node("b", "agent", ("10.10.0.12",)))
    cluster = Cluster("two", nodes, (), ("10.42.0.0/16",), ("10.43.0.0/16",))
    here = "fd00::1" if ":" in end else "10.10.0.11"
    judged = judge(fr.table([fr.flow(end, here), fr.flow(here, end)]), cluster, SPEC)
    assert doubtful(judged, cluster) == ((end,) if named else ())


@pytest.mark.parametrize(
    ("count", "start", "last"),
    [
        (1, "1 private address, ", "counts as outside: 10.0.0.1; it may be"),
        (5, "5 private addresses, ", "10.0.0.4, 10.0.0.5; each may be"),
        (6, "6 private addresses, ", "10.0.0.4, 10.0.0.5 and 1 more; each may be"),
    ],
)
def test_five_doubtful_addresses_are_named(count: int, start: str, last: str) -> None:
    line = doubt([f"10.0.0.{n + 1}" for n in range(count)])
    assert line.startswith(start)
    assert last in line


# ---- a real cluster ----


def test_flannel_shows_nodes_and_pods_but_no_role() -> None:
    """40 frames of VXLAN and a NodePort: nothing in them tells a server from an agent."""
    require_shared()
    inferred = infer(read_inputs([PUBLIC / "wz1st__flannel.pcap"]))
    assert inferred.nodes == ()
    assert inferred.outside == 1
    assert {node.addresses: node.pod_cidrs for node in inferred.unknown} == {
        ("192.168.2.100",): ("10.244.0.0/24",),
        ("192.168.2.101",): ("10.244.1.0/24",),
        ("192.168.2.102",): ("10.244.2.0/24",),
    }
    assert all(node.vteps == node.addresses for node in inferred.unknown)
    assert set(inferred.pod_cidrs) == {"10.244.0.0/16"}


def test_captures_of_other_projects_make_no_sure_node() -> None:
    """Protocol samples of all kinds; what is in them is no RKE2 cluster."""
    require_shared()
    sure: list[tuple[str, InferredNode]] = []
    for path in sorted(PUBLIC.glob("*.pcap")):
        with contextlib.suppress(CaptureError):  # some are damaged
            sure += [(path.name, n) for n in infer(read_inputs([path])).nodes if n.confidence in SURE]
    assert sure == []
