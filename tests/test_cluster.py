"""The inventory: what is written is read, what is wrong is named with its place, each address is found."""

from __future__ import annotations

import copy
import io
import ipaddress
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.cluster import (
    KINDS,
    NODE_ROLES,
    Cluster,
    Node,
    Places,
    VirtualIP,
    from_kubectl,
    load_cluster,
    parse_cluster,
)
from analyzer.errors import ClusterError
from analyzer.spec import ROLE_BITS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROD = """\
name: prod
pod_cidrs: [10.42.0.0/16]
service_cidrs: [10.43.0.0/16]
nodes:
  - {name: server-1, role: server, addresses: [10.10.0.11, "fd00:10::11"]}
  - {name: agent-1, role: agent, addresses: [10.10.0.21]}
virtual_ips:
  - {address: 10.10.0.10, role: server}
"""


def prod() -> Cluster:
    return parse_cluster(PROD, where="nodes.yaml")


# The cluster file


def test_the_cluster_file() -> None:
    cluster = prod()
    assert cluster == Cluster(
        name="prod",
        nodes=(
            Node("server-1", "server", ("10.10.0.11", "fd00:10::11")),
            Node("agent-1", "agent", ("10.10.0.21",)),
        ),
        virtual_ips=(VirtualIP("10.10.0.10", "server", "vip-10.10.0.10"),),
        pod_cidrs=("10.42.0.0/16",),
        service_cidrs=("10.43.0.0/16",),
    )
    assert cluster.members == ("server-1", "agent-1", "vip-10.10.0.10")


def test_the_same_from_file_json_dict_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = yaml.safe_load(PROD)
    (tmp_path / "a.yaml").write_text(PROD, encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(document), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROD.encode())))
    sources = (tmp_path / "a.yaml", str(tmp_path / "a.json"), document, "-")
    assert [load_cluster(source) for source in sources] == [prod()] * 4


def test_a_cluster_without_a_name_is_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "east.yaml").write_text(PROD.partition("\n")[2], encoding="utf-8")
    assert load_cluster(tmp_path / "east.yaml").name == "east"


def test_addresses_and_cidrs_become_canonical() -> None:
    text = PROD.replace("10.10.0.21", "'::ffff:10.10.0.21', FD00:0:0::1, fd00::1")
    text = text.replace("[10.42.0.0/16]", "['::ffff:10.42.0.0/112', '2001:CAFE:0::/56']")
    cluster = parse_cluster(text, where="x")
    assert cluster.nodes[1].addresses == ("10.10.0.21", "fd00::1")
    assert cluster.pod_cidrs == ("10.42.0.0/16", "2001:cafe::/56")


def test_names_are_never_guessed_to_be_something_else() -> None:
    cluster = parse_cluster(PROD.replace("agent-1", "no").replace("server-1", "0x10"), where="x")
    assert cluster.members[:2] == ("0x10", "no")


def test_frame_for_people() -> None:
    frame = prod().to_frame()
    assert list(frame.columns) == ["name", "kind", "role", "addresses", "pod_cidrs"]
    assert frame.to_numpy().tolist()[::2] == [
        ["server-1", "node", "server", "10.10.0.11, fd00:10::11", ""],
        ["vip-10.10.0.10", "virtual-ip", "server", "10.10.0.10", ""],
    ]


def edit(old: str, new: str) -> str:
    assert old in PROD
    return PROD.replace(old, new)


NODE = "  - {name: agent-1, role: agent, addresses: [10.10.0.21]}\n"
FAULTS = [
    ("", "", "the file is empty"),
    ("\n# nothing\n", "", "the file is empty"),
    ("nodes: []\n", ", line 1", "the cluster has no nodes"),
    ("name: x\nnodes:\n", ", line 2", "a list is needed here, not nothing"),
    ("name: x\nnodes: {a: b}\n", ", line 2", "a list is needed here, not a mapping"),
    ("name: x\n", ", line 1", "the key 'nodes' is missing"),
    ("x\n", ", line 1", "a mapping is needed here, not a text"),
    ("nodes: [a\n", ", line 2", "no valid YAML"),
    ("{nodes: [a}\n", ", line 1", "no valid YAML"),
    (edit("pod_cidrs", "pod_cidr"), ", line 2", "unknown key 'pod_cidr'"),
    (edit("addresses: [10.10.0.21", "adresses: [10.10.0.21"), ", line 6", "unknown key 'adresses'"),
    (edit("role: agent", "role: worker"), ", line 6", "unknown role 'worker'"),
    (edit("role: agent", "role: external"), ", line 6", "unknown role 'external'"),
    (edit("role: agent", "role: [agent]"), ", line 6", "a text is needed here, not a list"),
    (edit("role: agent, ", ""), ", line 6", "the key 'role' is missing"),
    (edit("addresses: [10.10.0.21]", "addresses: []"), ", line 6", "the node has no address"),
    (edit("addresses: [10.10.0.21]", "addresses: 10.10.0.21"), ", line 6", "a list is needed here"),
    (edit("10.10.0.21", "10.10.0.256"), ", line 6", "'10.10.0.256' is no IP address"),
    (edit("10.10.0.21", "10.10.0.021"), ", line 6", "'10.10.0.021' is no IP address"),
    (edit("10.10.0.21", "10.10.0.21/24"), ", line 6", "'10.10.0.21/24' is no IP address"),
    (edit("10.10.0.21", "agent-1.example"), ", line 6", "is no IP address"),
    (edit("10.10.0.21", "0.0.0.0"), ", line 6", "can be no single machine's address"),
    (edit("10.10.0.21", "'ff02::1'"), ", line 6", "can be no single machine's address"),
    (edit("10.10.0.21", "255.255.255.255"), ", line 6", "can be no single machine's address"),
    (edit("10.10.0.21", "'fe80::1%eth0'"), ", line 6", "has a zone"),
    (edit("10.10.0.21", "10.10.0.11"), ", line 6", "10.10.0.11 is an address of 'server-1' and of 'agent-1'"),
    (edit("10.10.0.21", "'::ffff:10.10.0.11'"), ", line 6", "10.10.0.11 is an address of"),
    (edit("10.10.0.21", "'FD00:0010::11'"), ", line 6", "fd00:10::11 is an address of"),
    (edit("10.10.0.10", "10.10.0.21"), ", line 8", "of 'agent-1' and of 'vip-10.10.0.21'"),
    (edit("agent-1", "server-1"), ", line 6", "two members are named 'server-1'"),
    (edit("10.10.0.10,", "10.10.0.10, name: agent-1,"), ", line 8", "two members are named 'agent-1'"),
    (edit("agent-1", '"a\\e[31mb"'), ", line 6", "unprintable characters: 'a\\x1b[31mb'"),
    (edit("agent-1", '"a\\nb"'), ", line 6", "unprintable characters"),
    (edit("agent-1", "''"), ", line 6", "a name is empty"),
    (edit("name: prod", 'name: "\\a"'), ", line 1", "unprintable characters"),
    (edit("10.42.0.0/16", "10.42.0.0"), ", line 2", "'10.42.0.0' is no CIDR"),
    (edit("10.42.0.0/16", "10.42.0.1/16"), ", line 2", "'10.42.0.1/16' has bits set beyond its prefix"),
    (edit("10.43.0.0/16", "10.43.0.0/33"), ", line 3", "'10.43.0.0/33' is no CIDR"),
    (edit("address: 10.10.0.10", "address: x"), ", line 8", "'x' is no IP address"),
    (PROD + NODE.replace("  - ", "nodes: "), ", line 9", "the key 'nodes' is there twice"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "what"), FAULTS)
def test_faults_have_place_and_advice(text: str, place: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ClusterError) as caught:
        load_cluster(path)
    assert caught.value.where == f"{path}{place}"
    assert what in caught.value.what
    assert str(caught.value).isprintable()


def test_the_first_mention_is_told_too() -> None:
    with pytest.raises(ClusterError) as caught:
        parse_cluster(edit("10.10.0.21", "10.10.0.11"), where="nodes.yaml")
    assert "the first is in nodes.yaml, line 5" in caught.value.next_step


def test_each_address_of_a_list_over_lines_has_its_own_line() -> None:
    text = PROD.replace("[10.10.0.21]", "[10.10.0.21,\n    10.10.0.22,\n    10.10.0.11]")
    with pytest.raises(ClusterError) as caught:
        parse_cluster(text, where="n")
    assert caught.value.where == "n, line 8"


@pytest.mark.parametrize("path", ["nowhere.yaml", "\0", "a" * 5000, "/", "x\x1b.yaml"])
def test_no_such_file(path: str) -> None:
    with pytest.raises(ClusterError, match="cannot be read") as caught:
        load_cluster(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"nodes": [{"name": "a", "role": "agent", "addresses": [True]}]}, "nodes[0].addresses[0]"),
        ({"nodes": [{"name": "a", "role": "agnt", "addresses": ["1.1.1.1"]}]}, "nodes[0].role"),
        ({"nodes": [{"name": "a", "role": "agent", "addresses": ["1.1.1.1"], 1: 2}]}, "nodes[0]"),
        ({"nodez": []}, "nodez"),
    ],
)
def test_a_dict_is_checked_alike(document: dict[str, Any], where: str) -> None:
    with pytest.raises(ClusterError) as caught:
        load_cluster(document)
    assert caught.value.where == where


@pytest.mark.parametrize(
    "build",
    [
        lambda: Node("a", "worker", ("1.1.1.1",)),
        lambda: Node("a", "agent", ()),
        lambda: Node("a", "agent", ("1.1.1",)),
        lambda: Node("\n", "agent", ("1.1.1.1",)),
        lambda: Node("a", "agent", ("1.1.1.1",), ("10.0.0.0",)),
        lambda: VirtualIP("x", "server"),
        lambda: Cluster("a", ()),
        lambda: Cluster("a", (Node("a", "agent", ("1.1.1.1",)),) * 2),
        lambda: Cluster("a", tuple(Node(name, "agent", ("1.1.1.1",)) for name in "ab")),
        lambda: Cluster("a", (Node("a", "agent", ("1.1.1.1",)),), (VirtualIP("1.1.1.1", "server"),)),
        lambda: Cluster("a", (Node("a", "agent", ("1.1.1.1",)),), (), ("10.0.0.0/40",)),
    ],
)
def test_what_is_made_in_code_is_checked_alike(build: Any) -> None:
    with pytest.raises(ClusterError):
        build()


# kubectl

KUBECTL_NODE: dict[str, Any] = {
    "metadata": {
        "name": "s1",
        "labels": {
            "kubernetes.io/os": "linux",
            "node-role.kubernetes.io/control-plane": "true",
            "node-role.kubernetes.io/etcd": "true",
        },
        "annotations": {
            "rke2.io/node-args": '["server","--server","https://vip:9345"]',
            "rke2.io/internal-ip": "10.0.0.11",
            "rke2.io/external-ip": "203.0.113.11",
            "etcd.rke2.cattle.io/node-address": "10.0.0.11",
            "etcd.rke2.cattle.io/node-name": "s1-0213ded2",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": '{"VNI":1,"VtepMAC":".."}',
            "flannel.alpha.coreos.com/public-ip": "10.0.0.11",
            "projectcalico.org/IPv4Address": "10.0.0.11/20",
        },
    },
    "spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"]},
    "status": {
        "addresses": [
            {"type": "InternalIP", "address": "10.0.0.11"},
            {"type": "ExternalIP", "address": "203.0.113.11"},
            {"type": "Hostname", "address": "s1"},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
    },
}


def kubectl_node(name: str = "s1", **changes: Any) -> dict[str, Any]:
    """The example with other annotations, labels (None: without them), addresses or pod CIDRs."""
    node = copy.deepcopy(KUBECTL_NODE)
    node["metadata"]["name"] = name
    for part in ("annotations", "labels"):
        if part in changes:
            node["metadata"][part] = changes[part]
    if "addresses" in changes:
        node["status"]["addresses"] = [{"type": kind, "address": a} for kind, a in changes["addresses"]]
    return node


def kubectl(*nodes: dict[str, Any], kind: str = "List") -> dict[str, Any]:
    items = [{"apiVersion": "v1", "kind": "Node", **node} for node in nodes]
    return {"apiVersion": "v1", "kind": kind, "items": items, "metadata": {"resourceVersion": ""}}


def test_kubectl_example() -> None:
    cluster = from_kubectl(kubectl(KUBECTL_NODE), where="nodes.json")
    assert cluster.name == "nodes"
    assert cluster.nodes == (Node("s1", "server", ("10.0.0.11", "203.0.113.11"), ("10.42.0.0/24",)),)
    assert (cluster.pod_cidrs, cluster.service_cidrs) == (("10.42.0.0/16",), ("10.43.0.0/16",))


def test_kubectl_in_every_dress(tmp_path: Path) -> None:
    document = kubectl(KUBECTL_NODE)
    bare = {"apiVersion": "v1", "kind": "NodeList", "items": [KUBECTL_NODE]}
    single = {"apiVersion": "v1", "kind": "Node", **KUBECTL_NODE}
    texts: dict[str, Callable[[Any], str]] = {
        "json": json.dumps,
        "indented": lambda value: "\n" + json.dumps(value, indent=4),
        "yaml": yaml.safe_dump,
    }
    for name, dress in texts.items():
        for given_document in (document, bare, single):
            path = tmp_path / f"nodes.{name}"
            path.write_text(dress(given_document), encoding="utf-8")
            assert load_cluster(path) == from_kubectl(document, where="nodes.json")
    assert load_cluster(document).nodes == from_kubectl(document, where="nodes").nodes


LABELS = "node-role.kubernetes.io/"
ARGS = "rke2.io/node-args"


@pytest.mark.parametrize(
    ("arguments", "labels", "role"),
    [
        ('["server"]', [], "server"),
        ('["server","--disable-etcd"]', [], "control-plane"),
        ('["server","--disable-etcd","true"]', [], "control-plane"),
        ('["server","--disable-etcd=true","--server","x"]', [], "control-plane"),
        ('["server","--disable-etcd","false"]', [], "server"),
        ('["server","--disable-etcd=false"]', [], "server"),
        ('["server","--datastore-endpoint","********"]', ["control-plane", "master"], "control-plane"),
        ('["server","--datastore-endpoint="]', [], "server"),
        ('["server","--disable-apiserver","--disable-scheduler"]', [], "etcd"),
        ('["server","--disable-apiserver","true"]', ["control-plane"], "etcd"),
        ('["agent","--server","https://vip:9345"]', ["control-plane", "etcd"], "agent"),
        ('["server', ["etcd"], "etcd"),
        ("[" * 100_000, ["control-plane", "etcd"], "server"),
        ('{"server": 1}', ["control-plane", "etcd"], "server"),
        ("[1, 2]", ["control-plane"], "control-plane"),
        ("[]", ["control-plane", "etcd"], "server"),
        ('["etcd-snapshot"]', ["etcd"], "etcd"),
        (None, ["control-plane", "etcd"], "server"),
        (None, ["control-plane", "etcd", "master"], "server"),
        (None, ["master", "etcd"], "server"),
        (None, ["master"], "control-plane"),
        (None, ["control-plane"], "control-plane"),
        (None, ["etcd"], "etcd"),
        (None, ["worker"], "agent"),
        (None, [], "agent"),
    ],
)
def test_roles_from_kubectl(arguments: str | None, labels: list[str], role: str) -> None:
    annotations = {} if arguments is None else {ARGS: arguments}
    node = kubectl_node(annotations=annotations, labels={LABELS + label: "true" for label in labels})
    assert from_kubectl(kubectl(node), where="n").nodes[0].role == role


def test_a_label_counts_when_it_says_true() -> None:
    node = kubectl_node(annotations={}, labels={LABELS + "etcd": "false", LABELS + "control-plane": "true"})
    assert from_kubectl(kubectl(node), where="n").nodes[0].role == "control-plane"


def test_a_node_with_next_to_nothing() -> None:
    bare = {
        "metadata": {"name": "a"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
    }
    cluster = from_kubectl(kubectl(bare), where="n")
    assert cluster.nodes == (Node("a", "agent", ("10.0.0.1",)),)
    assert (cluster.pod_cidrs, cluster.service_cidrs) == ((), ())


def test_addresses_of_all_kinds_and_families() -> None:
    node = kubectl_node(
        addresses=[
            ("InternalIP", "10.0.0.1"),
            ("InternalIP", "fd00::1"),
            ("ExternalIP", ""),
            ("Hostname", "10.9.9.9"),
            ("InternalDNS", "a.example"),
            ("ExternalDNS", "b.example"),
        ],
        annotations={
            "rke2.io/internal-ip": "10.0.0.1,fd00::1",
            "rke2.io/external-ip": "203.0.113.1, 2001:db8::1",
            "flannel.alpha.coreos.com/public-ip": "10.0.1.1",
            "flannel.alpha.coreos.com/public-ipv6": "fd00:1::1",
            "flannel.alpha.coreos.com/public-ip-overwrite": "198.51.100.1",
            "projectcalico.org/IPv4Address": "10.0.2.1/24",
            "projectcalico.org/IPv6Address": "fd00:2::1/64",
            "projectcalico.org/IPv4VXLANTunnelAddr": "10.42.0.0",
            "etcd.rke2.cattle.io/node-address": "10.0.3.1",
        },
    )
    assert from_kubectl(kubectl(node), where="n").nodes[0].addresses == (
        *("10.0.0.1", "fd00::1", "203.0.113.1", "2001:db8::1", "10.0.1.1", "198.51.100.1"),
        *("fd00:1::1", "10.0.2.1", "fd00:2::1", "10.0.3.1"),
    )


@pytest.mark.parametrize(
    ("arguments", "pods", "services"),
    [
        (["server"], ("10.42.0.0/16",), ("10.43.0.0/16",)),
        (["server", "--cluster-cidr", "10.40.0.0/13"], ("10.40.0.0/13",), ("10.43.0.0/16",)),
        (
            ["server", "--cluster-cidr=10.42.0.0/16,2001:cafe:42::/56", "--service-cidr", "10.96.0.0/12"],
            ("10.42.0.0/16", "2001:cafe:42::/56"),
            ("10.96.0.0/12",),
        ),
        (  # what a list in config.yaml becomes
            ["server", *("--cluster-cidr", "10.50.0.0/16", "--cluster-cidr", "2001:cafe:42::/56")],
            ("10.50.0.0/16", "2001:cafe:42::/56"),
            ("10.43.0.0/16",),
        ),
        (
            ["server", "--service-cidr=10.96.0.0/12", "--service-cidr=2001:cafe:43::/112"],
            ("10.42.0.0/16",),
            ("10.96.0.0/12", "2001:cafe:43::/112"),
        ),
        (["agent"], (), ()),
    ],
)
def test_cluster_cidrs_from_what_a_server_was_started_with(
    arguments: list[str], pods: tuple[str, ...], services: tuple[str, ...]
) -> None:
    cluster = from_kubectl(kubectl(kubectl_node(annotations={ARGS: json.dumps(arguments)})), where="n")
    assert (cluster.pod_cidrs, cluster.service_cidrs) == (pods, services)


def test_a_list_is_known_by_its_items_alone() -> None:
    assert load_cluster({"items": [KUBECTL_NODE], "kind": "NodeList"}).members == ("s1",)
    with pytest.raises(ClusterError, match="no list of nodes"):
        load_cluster({"items": [KUBECTL_NODE]})


def test_no_default_cidr_where_a_node_contradicts_it() -> None:
    node = kubectl_node()
    node["spec"] = {"podCIDR": "10.244.0.0/24"}
    cluster = from_kubectl(kubectl(node), where="n")
    assert (cluster.pod_cidrs, cluster.nodes[0].pod_cidrs) == ((), ("10.244.0.0/24",))


def two(name: str = "s2", address: str = "10.0.0.11") -> dict[str, Any]:
    return kubectl(kubectl_node(), kubectl_node(name, annotations={}, addresses=[("InternalIP", address)]))


KUBECTL_FAULTS: list[tuple[Any, str, str]] = [
    (two(), "n.json: items[1] ('s2')", "10.0.0.11 is an address of 's1' and of 's2'"),
    (two("s1", "10.0.0.12"), "n.json: items[1] ('s1')", "two members are named 's1'"),
    (
        kubectl(kubectl_node(annotations={}, addresses=[])),
        "n.json: items[0] ('s1')",
        "the node has no address",
    ),
    (kubectl(kubectl_node("a\nb")), "n.json: items[0]", "unprintable characters"),
    (kubectl({"metadata": {}}), "n.json: items[0]", "the node has no name"),
    (kubectl({"metadata": []}), "n.json: items[0]", "the node has no name"),
    (
        kubectl(kubectl_node(addresses=[("InternalIP", "x")])),
        "n.json: items[0] ('s1')",
        "'x' is no IP address",
    ),
    (
        kubectl(kubectl_node(annotations={"flannel.alpha.coreos.com/public-ip": "x"})),
        "n.json: items[0] ('s1'): annotation flannel.alpha.coreos.com/public-ip",
        "'x' is no IP address",
    ),
    (kubectl(), "n.json", "no node in it"),
    ({"kind": "List", "items": [{"kind": "Pod"}]}, "n.json", "no node in it"),
    ({"kind": "List", "items": [1]}, "n.json: items[0]", "the item is no mapping"),
    ({"kind": "List", "items": {}}, "n.json", "'items' is no list"),
    ({"kind": "PodList", "items": []}, "n.json", "no list of nodes, but 'PodList'"),
    ([], "n.json", "no list of nodes"),
]


@pytest.mark.parametrize(("document", "where", "what"), KUBECTL_FAULTS)
def test_faults_in_kubectls_list(document: Any, where: str, what: str) -> None:
    with pytest.raises(ClusterError) as caught:
        from_kubectl(document, where="n.json")
    assert where in caught.value.where
    assert what in caught.value.what


def test_pods_beside_nodes_are_passed_over() -> None:
    document = kubectl(KUBECTL_NODE)
    document["items"].insert(0, {"kind": "Pod", "metadata": {"name": "p"}})
    assert from_kubectl(document, where="n").members == ("s1",)


@pytest.mark.parametrize("cut", [200, 1500, -1])
def test_kubectls_json_cut_off(cut: int, tmp_path: Path) -> None:
    text = json.dumps(kubectl(KUBECTL_NODE), indent=4)[:cut]
    (tmp_path / "n.json").write_text(text, encoding="utf-8")
    with pytest.raises(ClusterError, match="no valid JSON") as caught:
        load_cluster(tmp_path / "n.json")
    line = text.count("\n") + 1
    assert caught.value.where in [f"{tmp_path / 'n.json'}, line {line - back}" for back in (0, 1)]


def test_json_nested_too_deeply() -> None:
    with pytest.raises(ClusterError, match="nested"):
        parse_cluster('{"a":' * 200_000, where="x")


# Places


def at(cluster: Cluster, *addresses: str) -> list[tuple[str, str, int]]:
    places = cluster.places(addresses)
    members = (*cluster.members, "")
    rows = zip(places.kind, places.member, places.role, strict=True)
    return [(KINDS[kind], members[member], int(role)) for kind, member, role in rows]


def test_places_of_every_kind() -> None:
    server, agent = ROLE_BITS["server"], ROLE_BITS["agent"]
    expected = {
        "10.10.0.11": ("node", "server-1", server),
        "fd00:10::11": ("node", "server-1", server),
        "FD00:10:0::11": ("node", "server-1", server),
        "::ffff:10.10.0.21": ("node", "agent-1", agent),
        "10.10.0.10": ("virtual-ip", "vip-10.10.0.10", server),
        "10.10.0.99": ("outside", "", 0),
        "fd00:10::99": ("outside", "", 0),
        "10.42.0.0": ("pod", "", 0),
        "10.42.255.255": ("pod", "", 0),
        "::ffff:10.42.1.1": ("pod", "", 0),
        "::10.42.1.1": ("outside", "", 0),
        "10.43.0.10": ("service", "", 0),
        "10.44.0.0": ("outside", "", 0),
        "10.41.255.255": ("outside", "", 0),
        "224.0.0.18": ("multicast", "", 0),
        "::ffff:224.0.0.1": ("multicast", "", 0),
        "239.255.255.255": ("multicast", "", 0),
        "240.0.0.0": ("outside", "", 0),
        "255.255.255.255": ("multicast", "", 0),
        "::ffff:255.255.255.255": ("multicast", "", 0),
        "ff02::1": ("multicast", "", 0),
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": ("multicast", "", 0),
        "169.254.0.1": ("link-local", "", 0),
        "fe80::1": ("link-local", "", 0),
        "fe80::1%eth0": ("link-local", "", 0),
        "fec0::1": ("outside", "", 0),
        "127.0.0.53": ("loopback", "", 0),
        "::1": ("loopback", "", 0),
        "::2": ("outside", "", 0),
        "0.0.0.0": ("unspecified", "", 0),
        "::": ("unspecified", "", 0),
    }
    assert dict(zip(expected, at(prod(), *expected), strict=True)) == expected
    assert {address: at(prod(), address)[0] for address in expected} == expected


def test_dtypes_and_no_address_at_all() -> None:
    places = prod().places([])
    assert isinstance(places, Places)
    assert [str(array.dtype) for array in (places.kind, places.member, places.role)] == [
        "uint8",
        "int32",
        "uint8",
    ]
    assert len(places.kind) == len(places.member) == len(places.role) == 0


def test_an_own_address_comes_before_a_cidr_and_the_longer_prefix_before_the_shorter() -> None:
    cluster = Cluster(
        "x",
        (Node("a", "etcd", ("10.42.0.1", "127.0.0.2"), ("10.42.0.0/24", "192.168.0.0/24")),),
        (VirtualIP("10.43.0.1", "control-plane", "api"),),
        ("10.0.0.0/8", "::/0"),
        ("10.43.0.0/16", "10.42.0.128/25"),
    )
    assert at(cluster, "10.42.0.1", "127.0.0.2", "10.43.0.1") == [
        ("node", "a", ROLE_BITS["etcd"]),
        ("node", "a", ROLE_BITS["etcd"]),
        ("virtual-ip", "api", ROLE_BITS["control-plane"]),
    ]
    addresses = (
        "10.42.0.2",
        "10.42.0.128",
        "10.43.9.9",
        "10.9.9.9",
        "192.168.0.7",
        "2001::1",
        "fe80::1",
        "8.8.8.8",
    )
    kinds = [kind for kind, _, _ in at(cluster, *addresses)]
    assert kinds == ["pod", "service", "service", "pod", "pod", "pod", "link-local", "outside"]


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "10.0.0.1/24", "1:2", "01.2.3.4", "1.2.3.4\0", "é"])
def test_a_text_that_is_no_address(text: str) -> None:
    with pytest.raises(ClusterError, match="is no IP address"):
        prod().places(["10.0.0.1", text])


# Few bits vary, so that addresses fall on, beside and at the ends of CIDRs.
V4 = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2, 3]).map(lambda low: (10 << 24) + low)
V6 = st.integers(0, 2**128 - 1) | st.sampled_from([0, 1, 2, 3]).map(lambda low: (0xFD << 120) + low)
ADDRESSES = V4.map(ipaddress.IPv4Address) | V6.map(ipaddress.IPv6Address)
MAPPED = V4.map(lambda value: ipaddress.IPv6Address((0xFFFF << 32) + value))


def plain(address: Any) -> Any:
    return getattr(address, "ipv4_mapped", None) or address


@st.composite
def networks(draw: st.DrawFn) -> str:
    address = plain(draw(ADDRESSES))
    length = draw(st.integers(0, address.max_prefixlen))
    return str(ipaddress.ip_network((address, length), strict=False))


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    usable = ADDRESSES.map(plain).filter(
        lambda a: not (a.is_multicast or a.is_unspecified or int(a) == 2**32 - 1)
    )
    texts = draw(st.lists(usable.map(str), min_size=1, max_size=6, unique=True))
    vips = draw(st.integers(0, len(texts) - 1))
    cidrs = st.lists(networks(), max_size=3, unique=True).map(tuple)
    roles = st.sampled_from(NODE_ROLES)
    nodes = [Node(f"n{i}", draw(roles), (text,), draw(cidrs)) for i, text in enumerate(texts[vips:])]
    virtual = [VirtualIP(text, draw(roles)) for text in texts[:vips]]
    return Cluster("x", tuple(nodes), tuple(virtual), draw(cidrs), draw(cidrs))


SPECIAL = (
    ("unspecified", "is_unspecified"),
    ("loopback", "is_loopback"),
    ("link-local", "is_link_local"),
    ("multicast", "is_multicast"),
)
SPECIAL_LENGTHS = {
    "unspecified": (32, 128),
    "loopback": (8, 128),
    "link-local": (16, 10),
    "multicast": (4, 8),
}


def oracle(cluster: Cluster, address: Any) -> tuple[str, str, int]:
    """One address by the ipaddress module: own addresses, then the longest prefix that holds it."""
    bare = plain(address)
    for node in cluster.nodes:
        if str(bare) in node.addresses:
            return "node", node.name, ROLE_BITS[node.role]
    for vip in cluster.virtual_ips:
        if str(bare) == vip.address:
            return "virtual-ip", vip.name, ROLE_BITS[vip.role]
    found = [(0, 0, "outside")]
    for name, test in SPECIAL:
        if getattr(bare, test):
            found.append((SPECIAL_LENGTHS[name][bare.version == 6], 1, name))
    if str(bare) == "255.255.255.255":
        found.append((32, 1, "multicast"))
    pods = [*cluster.pod_cidrs, *(cidr for node in cluster.nodes for cidr in node.pod_cidrs)]
    for rank, kind, cidrs in ((2, "pod", pods), (3, "service", cluster.service_cidrs)):
        nets = [ipaddress.ip_network(cidr) for cidr in cidrs]
        found += [(net.prefixlen, rank, kind) for net in nets if bare in net]
    return max(found)[2], "", 0


@settings(deadline=None)
@given(clusters(), st.data())
def test_places_agree_with_the_ipaddress_module(cluster: Cluster, data: st.DataObject) -> None:
    cidrs = [*cluster.pod_cidrs, *cluster.service_cidrs, *(c for n in cluster.nodes for c in n.pod_cidrs)]
    nets = [ipaddress.ip_network(cidr) for cidr in cidrs]
    ends = [end for net in nets for end in (net.network_address, net.broadcast_address)]
    own = [ipaddress.ip_address(text) for node in cluster.nodes for text in node.addresses]
    own += [ipaddress.ip_address(vip.address) for vip in cluster.virtual_ips]
    beside = [end + step for end in ends for step in (-1, 1) if 0 <= int(end) + step < 1 << end.max_prefixlen]
    addresses = [*ends, *own, *beside, *data.draw(st.lists(ADDRESSES | MAPPED, min_size=1))]
    assert at(cluster, *map(str, addresses)) == [oracle(cluster, address) for address in addresses]


@settings(deadline=None)
@given(clusters())
def test_yaml_round_trip(cluster: Cluster) -> None:
    assert parse_cluster(cluster.to_yaml(), where="other.yaml") == cluster


KEYS = ["kind", "items", "metadata", "name", "annotations", "labels", "spec", "status", "addresses"]
KEYS += ["podCIDRs", "podCIDR", "type", "address", ARGS]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=20,
)


def outcome(read: Callable[[], Cluster]) -> str:
    """One line, whether it is read or refused; anything else that is raised fails the test."""
    try:
        return read().name
    except ClusterError as fault:
        return str(fault)


@given(JSON)
def test_any_json_is_a_cluster_or_an_error(value: Any) -> None:
    documents = (value, {"kind": "List", "items": [value]}, kubectl({**KUBECTL_NODE, "status": value}))
    assert all(outcome(lambda d=d: from_kubectl(d, where="n")).isprintable() for d in documents)  # type: ignore[misc]


@given(st.text(alphabet=st.sampled_from("{}[]:,-'\"\n abc01./&*!|>#\t\x00é")))
def test_any_text_is_a_cluster_or_an_error(text: str) -> None:
    for document in (text, PROD + text, "{" + text):
        assert outcome(lambda document=document: parse_cluster(document, where="n")).isprintable()  # type: ignore[misc]


def test_a_million_addresses_in_a_large_cluster() -> None:
    """Meant to fail when a loop over CIDRs for each address comes in (that takes minutes), not to measure."""
    tails = [f"{i >> 8}.{i & 255}" for i in range(1, 1001)]
    nodes = tuple(Node(f"n{t}", "agent", (f"10.10.{t}",), (f"10.42.{t}/32",)) for t in tails)
    cluster = Cluster("big", nodes, (), ("2001:cafe:42::/56",), ("10.43.0.0/16",))
    v4 = [f"10.{net}.{i >> 8 & 255}.{i & 255}" for net in range(40, 50) for i in range(50_000)]
    v6 = [f"2001:cafe:{net:x}::{i:x}" for net in range(0x40, 0x4A) for i in range(50_000)]
    started = time.perf_counter()
    places = cluster.places(v4 + v6)
    assert time.perf_counter() - started < 15
    counts = np.bincount(places.kind, minlength=len(KINDS)).tolist()
    assert counts[KINDS.index("service")] == 50_000
    assert counts[KINDS.index("pod")] == 50_000 + 1000
