"""A real cluster: flannel's VXLAN between three nodes, and a NodePort's client.

Rule: the capture is another project's; the cluster file is written here, from what the capture shows of its
three nodes.

192.168.2.100 takes the NodePort's connections (TCP 32150, from 192.168.2.212, which never sends VXLAN) and
carries them on to a pod on 192.168.2.101; a pod on 192.168.2.102 is asked on 443. Pods have addresses of
10.244.0.0/16: 10.244.0.0 is the first node's own VXLAN device, 10.244.1.25 and 10.244.2.5 live on the second
and the third.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import PUBLIC, require_shared
from oracles import UDP, Counts, Key, one_way_counts

from analyzer.analysis import Analysis, analyze
from analyzer.capture.offline import read_capture
from analyzer.cluster import load_cluster

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

CAPTURE = PUBLIC / "wz1st__flannel.pcap"
FIRST, SECOND, THIRD, OUTSIDE = "192.168.2.100", "192.168.2.101", "192.168.2.102", "192.168.2.212"
NODE_PORT = 32150
CLUSTER = f"""
name: flannel
pod_cidrs: [10.244.0.0/16]
service_cidrs: [10.96.0.0/12]
nodes:
  - {{name: node-1, role: server, addresses: [{FIRST}]}}
  - {{name: node-2, role: agent, addresses: [{SECOND}]}}
  - {{name: node-3, role: agent, addresses: [{THIRD}]}}
"""
#: where a pod lives: the carriers of its packets end there
HOME = {"10.244.0.0": FIRST, "10.244.1.25": SECOND, "10.244.2.5": THIRD}
IPV4_HEADER, UDP_HEADER, VXLAN_HEADER, ETHERNET_HEADER = 20, 8, 8, 14
OVERHEAD = IPV4_HEADER + UDP_HEADER + VXLAN_HEADER + ETHERNET_HEADER


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    require_shared()
    file = tmp_path_factory.mktemp("flannel") / "nodes.yaml"
    file.write_text(CLUSTER, encoding="utf-8")
    return analyze(CAPTURE, cluster=load_cluster(file))


@pytest.fixture(scope="module")
def counts() -> Counts:
    require_shared()
    return one_way_counts(read_capture(CAPTURE))


def carriers(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["protocol"] == "udp") & (table["server_port"] == 8472)]


def inner(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["tunnel"] != ""]


def test_every_frame_is_a_flow(analysis: Analysis) -> None:
    (ledger,) = analysis.coverage
    assert (ledger.frames, ledger.flow, ledger.damage) == (40, 40, "")


def test_vxlan_is_allowed(analysis: Analysis) -> None:
    table = carriers(analysis.flows)
    assert len(table) == 9
    assert set(table["verdict"]) == {"allowed"}
    assert set(table["scope"]) == {"inter-node"}
    assert set(table["outcome"]) == {"answered"}
    pairs = set(zip(table["client_node"], table["server_node"], strict=True))
    assert pairs == {("node-1", "node-2"), ("node-2", "node-1"), ("node-1", "node-3"), ("node-3", "node-1")}
    assert table["rule"].nunique() == 1
    assert all(table["rule"] != "")


def test_outside_client_is_external(analysis: Analysis) -> None:
    table = analysis.flows[analysis.flows["scope"] == "external"]
    assert len(table) == 3
    assert set(table["client"]) == {OUTSIDE}
    assert set(table["client_node"]) == {""}
    assert set(table["server_node"]) == {"node-1"}
    assert set(table["server_port"]) == {NODE_PORT}
    assert set(table["verdict"]) == {"not-judged"}


def test_node_port_is_the_only_finding(analysis: Analysis) -> None:
    findings = analysis.findings
    assert list(zip(findings["kind"], findings["severity"], strict=True)) == [("exposure", "info")]
    finding = findings.iloc[0]
    assert (finding["client"], finding["server"], finding["port"]) == (OUTSIDE, "node-1", NODE_PORT)
    assert (finding["flows"], finding["packets"]) == (3, 2 + 12 + 3)


def test_pods_hang_on_their_carriers(analysis: Analysis) -> None:
    table = inner(analysis.flows)
    assert len(table) == 4
    assert set(table["scope"]) == {"overlay"}
    assert set(table["verdict"]) == {"not-judged"}
    assert set(table["tunnel"]) == {"vxlan"}
    assert set(table["vni"]) == {1}
    for _, row in table.iterrows():
        assert (row["outer_client"], row["outer_server"]) == (HOME[row["client"]], HOME[row["server"]])
    assert set(analysis.flows.loc[analysis.flows["tunnel"] == "", "outer_client"]) == {""}


def test_every_flow_is_of_one_kind(analysis: Analysis) -> None:
    flows = analysis.flows
    assert len(flows) == 9 + 3 + 4
    assert set(flows["scope"]) == {"inter-node", "external", "overlay"}


def test_carriers_are_their_inner_packets(counts: Counts) -> None:
    """Node pair by node pair and direction by direction: as many packets, and the headers of the tunnel in
    bytes.
    """
    outside = by_pair(
        {k: c for k, c in counts.items() if k.protocol == UDP and k.dst_port == 8472}, "src", "dst"
    )
    within = by_pair({k: c for k, c in counts.items() if k.tunnel}, "outer_src", "outer_dst")
    assert outside == {
        pair: (packets, octets + OVERHEAD * packets) for pair, (packets, octets) in within.items()
    }
    assert sum(packets for packets, _ in outside.values()) == 23


def by_pair(counts: Counts, src: str, dst: str) -> dict[tuple[str, str], tuple[int, int]]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for key, count in counts.items():
        pair = _address(key, src), _address(key, dst)
        packets, octets = sums.get(pair, (0, 0))
        sums[pair] = packets + count.packets, octets + count.bytes
    return sums


def _address(key: Key, name: str) -> str:
    return str(getattr(key, name))


def test_node_port_and_pod_carry_the_same(analysis: Analysis) -> None:
    """The NodePort's DNAT changes addresses, not packets: each outside connection has its twin in the
    overlay.
    """
    measures = ["packets_out", "packets_in", "bytes_out", "bytes_in", "outcome"]
    outside = analysis.flows[analysis.flows["scope"] == "external"]
    twins = inner(analysis.flows)
    twins = twins[twins["server_port"] == 80]
    rows = [sorted(map(tuple, table[measures].astype(str).to_numpy())) for table in (outside, twins)]
    assert rows[0] == rows[1]


def test_without_its_node_the_tunnel_is_foreign(tmp_path: Path) -> None:
    """The cluster file decides: a VXLAN sender that is not in it is a finding."""
    require_shared()
    file = tmp_path / "nodes.yaml"
    file.write_text(
        "\n".join(line for line in CLUSTER.splitlines() if "node-3" not in line), encoding="utf-8"
    )
    findings = analyze(CAPTURE, cluster=load_cluster(file)).findings
    foreign = findings[findings["kind"] == "foreign-tunnel"]
    assert list(foreign["client"]) == [THIRD]
