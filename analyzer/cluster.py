"""The cluster inventory. Rule: knows nodes, roles, addresses and CIDRs; nothing of packets, flows and ports.

An inventory comes in as YAML, as a dict, or as what ``kubectl get nodes -o json`` (or ``-o yaml``) prints,
and answers one question, for many addresses at once: what is at this address?
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyzer._yaml import (
    Marked,
    dump_yaml,
    located,
    mark_plain,
    near,
    parse_yaml,
    place_of,
    printable,
    quote,
    read_text,
)
from analyzer.cards import card
from analyzer.errors import ClusterError
from analyzer.spec import ROLE_BITS

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

NODE_ROLES = ("server", "agent", "etcd", "control-plane")

KINDS = (
    "outside",
    "node",
    "virtual-ip",
    "pod",
    "service",
    "multicast",
    "link-local",
    "loopback",
    "unspecified",
)
"""What can be at an address; ``Places.kind`` holds the index. Multicast includes IPv4 broadcast."""

SPECIAL = (
    ("multicast", "224.0.0.0/4"),
    ("multicast", "255.255.255.255/32"),
    ("multicast", "ff00::/8"),
    ("link-local", "169.254.0.0/16"),
    ("link-local", "fe80::/10"),
    ("loopback", "127.0.0.0/8"),
    ("loopback", "::1/128"),
    ("unspecified", "0.0.0.0/32"),
    ("unspecified", "::/128"),
)
"""RFC 6890 and RFC 4291; of two CIDRs that hold an address the longer prefix counts."""

_MAPPED = b"\0" * 10 + b"\xff\xff"
_MAPPED_NETWORK = ipaddress.IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. ``role`` is one of NODE_ROLES; ``addresses`` and ``pod_cidrs`` become
    canonical text.

    Raises ClusterError when a field is none of that, or there is no address.
    """

    name: str
    role: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        with located(f"node {quote(self.name)}", ClusterError):
            _name(self.name)
            _role(self.role)
            object.__setattr__(self, "addresses", _distinct(_address, self.addresses))
            object.__setattr__(self, "pod_cidrs", _distinct(_cidr, self.pod_cidrs))
            if not self.addresses:
                raise ClusterError("the node has no address", next_step="write those it is reached at")


@dataclass(frozen=True)
class VirtualIP:
    """An address that moves between nodes or stands before them; ``role`` is that of the nodes behind
    it.
    """

    address: str
    role: str
    name: str = ""

    def __post_init__(self) -> None:
        with located(f"virtual IP {quote(self.address)}", ClusterError):
            object.__setattr__(self, "address", _address(self.address))
            _role(self.role)
            object.__setattr__(self, "name", self.name or f"vip-{self.address}")
            _name(self.name)


@dataclass(frozen=True, eq=False)
class Places:
    """What is at each of n addresses.

    ``kind``    uint8 (n,)  index in KINDS
    ``member``  int32 (n,)  index in ``Cluster.members`` for a node or virtual IP, else -1
    ``role``    uint8 (n,)  mask of ROLE_BITS of that member, else 0
    """

    kind: NDArray[np.uint8]
    member: NDArray[np.int32]
    role: NDArray[np.uint8]


@dataclass(frozen=True)
class Cluster:
    """The nodes, virtual IPs and CIDRs of one cluster.

    Raises ClusterError when there is no node, or a name or an address belongs to two members.
    """

    name: str
    nodes: tuple[Node, ...]
    virtual_ips: tuple[VirtualIP, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        with located(f"cluster {quote(self.name)}", ClusterError):
            _name(self.name)
            for cidrs in ("pod_cidrs", "service_cidrs"):
                object.__setattr__(self, cidrs, _distinct(_cidr, getattr(self, cidrs)))
            if not self.nodes:
                raise ClusterError("the cluster has no nodes", next_step="list them under 'nodes'")
            claims = _Claims()
            for name, _, addresses in self.rows():
                claims.name(name, "")
                for address in addresses:
                    claims.address(address, name, "")

    def rows(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Name, role and addresses of each member, in the order of ``members``."""
        yield from ((node.name, node.role, node.addresses) for node in self.nodes)
        yield from ((vip.name, vip.role, (vip.address,)) for vip in self.virtual_ips)

    @property
    def members(self) -> tuple[str, ...]:
        """All names that can stand at an address: nodes first, then virtual IPs."""
        return tuple(name for name, _, _ in self.rows())

    def places(self, addresses: Sequence[str]) -> Places:
        """What is at each address; meant for the distinct addresses of a flow table, which may be a
        million.

        A node's or virtual IP's own address counts before any CIDR, among CIDRs the longest prefix. An
        IPv4-mapped address is its IPv4 address. Raises ClusterError for a text that is no IP address.
        """
        exact, roles, tables = _index(self)
        packed = _packed(addresses)
        kind = _kinds(packed, tables)
        member = np.fromiter((exact.get(key, -1) for key in packed), np.int32, len(packed))
        known = member >= 0
        kind[known] = np.where(
            member[known] < len(self.nodes), KINDS.index("node"), KINDS.index("virtual-ip")
        )
        return Places(kind, member, np.append(roles, np.uint8(0))[member])

    def to_yaml(self) -> str:
        """The cluster file; ``load_cluster`` reads the same back."""
        head = {
            "name": self.name,
            "pod_cidrs": list(self.pod_cidrs),
            "service_cidrs": list(self.service_cidrs),
        }
        members = {"nodes": [_written_node(node) for node in self.nodes]}
        vips = {"virtual_ips": [_written_vip(vip) for vip in self.virtual_ips]} if self.virtual_ips else {}
        return dump_yaml({key: value for key, value in head.items() if value} | members | vips)

    def to_frame(self) -> pd.DataFrame:
        """One row of text for each member, for people: name, kind, role, addresses, pod_cidrs."""
        nodes = [(n.name, "node", n.role, ", ".join(n.addresses), ", ".join(n.pod_cidrs)) for n in self.nodes]
        vips = [(v.name, "virtual-ip", v.role, v.address, "") for v in self.virtual_ips]
        return pd.DataFrame(nodes + vips, columns=["name", "kind", "role", "addresses", "pod_cidrs"])

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        ranges = {"pods": ", ".join(self.pod_cidrs), "services": ", ".join(self.service_cidrs)}
        return card(f"Cluster {self.name}", ranges, {"to_frame()": self.to_frame()})


def _written_node(node: Node) -> dict[str, Any]:
    row = {"name": node.name, "role": node.role, "addresses": list(node.addresses)}
    return row | ({"pod_cidrs": list(node.pod_cidrs)} if node.pod_cidrs else {})


def _written_vip(vip: VirtualIP) -> dict[str, Any]:
    row = {"address": vip.address, "role": vip.role}
    return row if vip.name == f"vip-{vip.address}" else row | {"name": vip.name}


# Finding the place of an address. Keys are 16 bytes, IPv4 as ::ffff:a.b.c.d.

_Table: TypeAlias = tuple[NDArray[Any], NDArray[np.uint8]]


@lru_cache(maxsize=8)
def _index(cluster: Cluster) -> tuple[dict[bytes, int], NDArray[np.uint8], tuple[_Table, _Table]]:
    """Exact key → member, member → role mask, and the CIDRs of IPv4 and of IPv6 as segments."""
    rows = list(cluster.rows())
    exact = {_packed([text])[0]: index for index, (_, _, texts) in enumerate(rows) for text in texts}
    roles = np.array([ROLE_BITS[role] for _, role, _ in rows], np.uint8)
    pods = [*cluster.pod_cidrs, *(cidr for node in cluster.nodes for cidr in node.pod_cidrs)]
    named = [("pod", cidr) for cidr in pods] + [("service", cidr) for cidr in cluster.service_cidrs]
    cidrs = [(KINDS.index(kind), ipaddress.ip_network(text)) for kind, text in (*SPECIAL, *named)]
    return exact, roles, (_segments(cidrs, 4), _segments(cidrs, 6))


def _segments(cidrs: list[tuple[int, Network]], version: int) -> _Table:
    """The address space cut at every CIDR's ends: ascending first keys, and the kind of each piece.

    CIDRs nest or are apart, so painting them from the shortest prefix to the longest leaves the longest on
    top; of equal ones the later counts.
    """
    offset = int.from_bytes(_MAPPED + b"\0" * 4, "big") if version == 4 else 0
    spans = [
        (offset + int(net.network_address), offset + int(net.broadcast_address) + 1, kind)
        for kind, net in sorted(cidrs, key=lambda entry: entry[1].prefixlen)
        if net.version == version
    ]
    cuts = sorted({0} | {end for span in spans for end in span[:2] if end < 1 << 128})
    position = {cut: index for index, cut in enumerate(cuts)}
    kinds = np.zeros(len(cuts), np.uint8)
    for start, end, kind in spans:
        kinds[position[start] : position.get(end, len(cuts))] = kind
    return np.array([cut.to_bytes(16, "big") for cut in cuts], "S16"), kinds


def _kinds(packed: list[bytes], tables: tuple[_Table, _Table]) -> NDArray[np.uint8]:
    keys = np.frombuffer(b"".join(packed), "S16")
    mapped = np.frombuffer(b"".join(packed), np.uint8).reshape(-1, 16)[:, :12]
    v4 = (mapped == np.frombuffer(_MAPPED, np.uint8)).all(axis=1)
    kind = np.zeros(len(packed), np.uint8)
    for chosen, (starts, kinds) in zip((v4, ~v4), tables, strict=True):
        kind[chosen] = kinds[np.searchsorted(starts, keys[chosen], side="right") - 1]
    return kind


def _packed(addresses: Iterable[str]) -> list[bytes]:
    """The 16-byte key of each address."""
    v4, v6, parse = socket.AF_INET, socket.AF_INET6, socket.inet_pton
    texts = list(addresses)
    try:
        return [parse(v6, text) if ":" in text else _MAPPED + parse(v4, text) for text in texts]
    except (OSError, ValueError):  # a zone (fe80::1%eth0), or no address at all
        return [_pack_slowly(text) for text in texts]


def _pack_slowly(text: str) -> bytes:
    with located("addresses", ClusterError):
        packed = _parse_address(text.partition("%")[0]).packed
    return packed if len(packed) == 16 else _MAPPED + packed


# Checks of single values; their ClusterErrors get a place from the caller


def _name(text: str) -> str:
    return printable(text, ClusterError)


def _role(text: str) -> str:
    if text not in NODE_ROLES:
        advice = near(text, NODE_ROLES) or f"one of {', '.join(NODE_ROLES)}"
        raise ClusterError(f"unknown role {quote(text)}", next_step=advice)
    return text


def _parse_address(text: str) -> Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        what = f"{quote(text)} is no IP address"
        raise ClusterError(what, next_step="write 10.0.0.1 or fd00::1") from None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _address(text: str) -> str:
    """A member's address in canonical text."""
    address = _parse_address(text)
    if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
        raise ClusterError(f"{quote(text)} can be no single machine's address", next_step="correct it")
    if getattr(address, "scope_id", None):
        raise ClusterError(f"{quote(text)} has a zone", next_step="leave the % and what follows out")
    return str(address)


def _cidr(text: str) -> str:
    if "/" not in text:
        raise ClusterError(
            f"{quote(text)} is no CIDR", next_step="write it with its prefix length, as 10.42.0.0/16"
        )
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ClusterError(f"{quote(text)} is no CIDR", next_step="write it as 10.42.0.0/16") from None
    if ipaddress.ip_address(text.partition("/")[0].partition("%")[0]) != network.network_address:
        raise ClusterError(f"{quote(text)} has bits set beyond its prefix", next_step=f"write {network}")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED_NETWORK):
        network = ipaddress.IPv4Network((network.network_address.packed[12:], network.prefixlen - 96))
    return str(network)


def _distinct(parse: Callable[[str], str], texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse(text) for text in texts))


@dataclass
class _Claims:
    """Which member has which name and address, and where that was said."""

    names: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, tuple[str, str]] = field(default_factory=dict)

    def name(self, name: str, place: str) -> None:
        if name in self.names:
            advice = "rename one of the two" + self.first(self.names[name])
            raise ClusterError(f"two members are named {quote(name)}", where=place, next_step=advice)
        self.names[name] = place

    def address(self, address: str, owner: str, place: str) -> None:
        other, there = self.addresses.setdefault(address, (owner, place))
        if other != owner:
            what = f"{address} is an address of {quote(other)} and of {quote(owner)}"
            raise ClusterError(what, where=place, next_step="take it from one of the two" + self.first(there))

    @staticmethod
    def first(place: str) -> str:
        return f"; the first is in {place}" if place else ""


# Reading cluster files


def load_cluster(path_or_dict: str | Path | Mapping[str, Any]) -> Cluster:
    """A cluster from a file (``-`` is standard input) or from the same as a dict.

    The file is a cluster file in YAML or JSON, or what ``kubectl get nodes`` prints with ``-o json`` or
    ``-o yaml``. Raises ClusterError with the file and line for any fault of the format, and for a name or
    address that is given twice, at its second mention.
    """
    if isinstance(path_or_dict, Mapping):
        if _is_kubectl(path_or_dict):
            return from_kubectl(path_or_dict, where="nodes")
        return _cluster(mark_plain(path_or_dict, where="", error=ClusterError), "cluster")
    return parse_cluster(read_text(path_or_dict, ClusterError), where=place_of(path_or_dict))


def parse_cluster(text: str, *, where: str) -> Cluster:
    """The same from text; ``where`` names it in errors and, without its ending, the cluster that has no
    name.
    """
    if text.lstrip().startswith("{"):
        document = _json(text, where)
        if _is_kubectl(document):
            return from_kubectl(document, where=where)
    root = parse_yaml(text, where=where, error=ClusterError)
    if _is_kubectl(root.value):
        return from_kubectl(root.plain(), where=where)
    return _cluster(root, _stem(where))


def _json(text: str, where: str) -> Any:
    """The JSON value; None for what may still be YAML's own {…}, which looks alike and tells its faults
    better.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ClusterError("nested too deeply", where=where, next_step="is it the right file?") from None
    except ValueError as fault:
        if '"apiVersion"' not in text[:10_000]:
            return None
        place = f"{where}, line {getattr(fault, 'lineno', 1)}"
        advice = "is it cut off? run kubectl get nodes -o json again"
        raise ClusterError(
            f"no valid JSON: {getattr(fault, 'msg', fault)}", where=place, next_step=advice
        ) from None


def _is_kubectl(document: Any) -> bool:
    return isinstance(document, Mapping) and not {"kind", "items"}.isdisjoint(document)


def _stem(where: str) -> str:
    stem = Path(where).stem
    return stem if stem.isprintable() and stem.strip() and where != place_of("-") else "cluster"


def _cluster(root: Marked, default_name: str) -> Cluster:
    fields = root.mapping(("nodes",), ("name", "pod_cidrs", "service_cidrs", "virtual_ips"))
    if not fields["nodes"].items():
        raise fields["nodes"].fault("the cluster has no nodes", "list them under 'nodes'")
    claims = _Claims()
    return Cluster(
        name=fields["name"].read(_name) if "name" in fields else default_name,
        nodes=tuple(_node(entry, claims) for entry in fields["nodes"].items()),
        virtual_ips=tuple(_vip(entry, claims) for entry in _items(fields, "virtual_ips")),
        pod_cidrs=_cidrs(fields, "pod_cidrs"),
        service_cidrs=_cidrs(fields, "service_cidrs"),
    )


def _node(entry: Marked, claims: _Claims) -> Node:
    fields = entry.mapping(("name", "role", "addresses"), ("pod_cidrs",))
    name = fields["name"].read(_name)
    claims.name(name, fields["name"].place)
    addresses = [(text.read(_address), text.place) for text in fields["addresses"].items()]
    for address, place in addresses:
        claims.address(address, name, place)
    role, cidrs = fields["role"].read(_role), _cidrs(fields, "pod_cidrs")
    with located(fields["addresses"].place, ClusterError, replace=True):
        return Node(name, role, tuple(address for address, _ in addresses), cidrs)


def _vip(entry: Marked, claims: _Claims) -> VirtualIP:
    fields = entry.mapping(("address", "role"), ("name",))
    address = fields["address"].read(_address)
    name = fields["name"].read(_name) if "name" in fields else ""
    vip = VirtualIP(address, fields["role"].read(_role), name)
    claims.name(vip.name, fields["name"].place if name else entry.place)
    claims.address(address, vip.name, fields["address"].place)
    return vip


def _items(fields: dict[str, Marked], key: str) -> list[Marked]:
    return fields[key].items() if key in fields else []


def _cidrs(fields: dict[str, Marked], key: str) -> tuple[str, ...]:
    return tuple(text.read(_cidr) for text in _items(fields, key))


# Reading what kubectl prints

_NODE_ARGS = "rke2.io/node-args"
_ADDRESS_TYPES = frozenset({"InternalIP", "ExternalIP"})
_ADDRESS_ANNOTATIONS = (
    "rke2.io/internal-ip",
    "rke2.io/external-ip",
    "flannel.alpha.coreos.com/public-ip",
    "flannel.alpha.coreos.com/public-ip-overwrite",
    "flannel.alpha.coreos.com/public-ipv6",
    "flannel.alpha.coreos.com/public-ipv6-overwrite",
    "projectcalico.org/IPv4Address",
    "projectcalico.org/IPv6Address",
    "etcd.rke2.cattle.io/node-address",
)
"""Annotations that hold addresses of the node itself: one, or several with commas, some with a prefix
length."""

_LABELS = ("control-plane", "etcd", "master")
_ROLE_BY_LABELS = {
    (False, False): "agent",
    (True, False): "control-plane",
    (False, True): "etcd",
    (True, True): "server",
}
"""(control-plane or master, etcd) → role."""

_DISABLING = ("--disable-etcd", "--disable-apiserver")
_ROLE_BY_FLAGS = {
    (False, False): "server",
    (True, False): "control-plane",
    (False, True): "etcd",
    (True, True): "control-plane",
}
"""The _DISABLING flags of an rke2 server → role. With an external datastore no etcd runs either
(docs.rke2.io, external datastore; rancher/rke2#5213)."""

_DEFAULT_CIDRS = {"--cluster-cidr": "10.42.0.0/16", "--service-cidr": "10.43.0.0/16"}
"""RKE2's defaults (docs.rke2.io, server configuration reference)."""


def from_kubectl(document: Any, *, where: str) -> Cluster:
    """A cluster from the parsed output of ``kubectl get nodes -o json``: a List, a NodeList or one Node.

    A role comes from the annotation rke2.io/node-args, else from the node-role.kubernetes.io labels, else
    it is agent. Addresses are all of the status and of the annotations in which RKE2, Flannel, Calico and
    etcd note the node's own. The cluster's pod and service CIDRs are those that a server was started with,
    or RKE2's defaults where a server names none and no node's pod CIDR contradicts them. Raises
    ClusterError, its place the item's index and name.
    """
    claims = _Claims()
    nodes = tuple(_kubectl_node(item, place, claims) for item, place in _kubectl_items(document, where))
    if not nodes:
        raise ClusterError("no node in it", where=where, next_step="run kubectl get nodes -o json")
    arguments = [
        _node_args(_texts(item, "metadata", "annotations")) for item, _ in _kubectl_items(document, where)
    ]
    with located(where, ClusterError):
        node_cidrs = [cidr for node in nodes for cidr in node.pod_cidrs]
        pods = _started_with("--cluster-cidr", arguments, node_cidrs)
        services = _started_with("--service-cidr", arguments, []) if pods else ()
        return Cluster(_stem(where), nodes, pod_cidrs=pods, service_cidrs=services)


def _kubectl_items(document: Any, where: str) -> list[tuple[Any, str]]:
    """The Node objects with their places."""
    kind = document.get("kind") if isinstance(document, Mapping) else None
    if kind not in ("List", "NodeList", "Node"):
        what = f"no list of nodes, but {quote(kind)}" if kind else "no list of nodes"
        raise ClusterError(what, where=where, next_step="run kubectl get nodes -o json")
    items = [document] if kind == "Node" else document.get("items")
    if not isinstance(items, list):
        raise ClusterError("'items' is no list", where=where, next_step="run kubectl get nodes -o json")
    numbered = [(item, f"{where}: items[{index}]") for index, item in enumerate(items)]
    for item, place in numbered:
        if not isinstance(item, Mapping):
            raise ClusterError(
                "the item is no mapping", where=place, next_step="run kubectl get nodes -o json"
            )
    return [(item, place) for item, place in numbered if item.get("kind", "Node") == "Node"]


def _kubectl_node(item: Any, place: str, claims: _Claims) -> Node:
    name = _inside(item, "metadata").get("name")
    with located(place, ClusterError):
        if not isinstance(name, str):
            raise ClusterError("the node has no name", next_step="run kubectl get nodes -o json")
        _name(name)
    here = f"{place} ({quote(name)})"
    claims.name(name, here)
    addresses = tuple(_kubectl_addresses(item, here))
    with located(here, ClusterError, replace=True):
        node = Node(name, _kubectl_role(item), addresses, tuple(_pod_cidrs(item)))
    for address in node.addresses:
        claims.address(address, name, here)
    return node


def _inside(item: Any, *keys: str) -> Mapping[str, Any]:
    """The mapping down this path, or an empty one where there is none."""
    for key in keys:
        item = item.get(key) if isinstance(item, Mapping) else None
    return item if isinstance(item, Mapping) else {}


def _texts(item: Any, *keys: str) -> dict[str, str]:
    return {key: value for key, value in _inside(item, *keys).items() if isinstance(value, str)}


def _list(mapping: Mapping[str, Any], key: str) -> list[Any]:
    value = mapping.get(key)
    return value if isinstance(value, list) else []


def _kubectl_role(item: Any) -> str:
    arguments = _node_args(_texts(item, "metadata", "annotations"))
    if arguments:
        no_etcd, no_apiserver = (_is_on(_flags(arguments, flag)) for flag in _DISABLING)
        no_etcd = no_etcd or any(_flags(arguments, "--datastore-endpoint")[-1:])
        return _ROLE_BY_FLAGS[no_etcd, no_apiserver] if arguments[0] == "server" else "agent"
    labels = _texts(item, "metadata", "labels")
    plane, etcd, master = (labels.get(f"node-role.kubernetes.io/{label}") == "true" for label in _LABELS)
    return _ROLE_BY_LABELS[plane or master, etcd]


def _node_args(annotations: dict[str, str]) -> list[str]:
    """The arguments rke2 was started with; empty when the annotation is absent or cannot be read."""
    try:
        arguments = json.loads(annotations.get(_NODE_ARGS, "[]"))
    except (ValueError, RecursionError):
        return []
    texts = isinstance(arguments, list) and all(isinstance(argument, str) for argument in arguments)
    return arguments if texts and arguments[:1] in (["server"], ["agent"]) else []


def _flags(arguments: list[str], flag: str) -> list[str]:
    """The value of each ``--flag value`` or ``--flag=value``, empty for a bare ``--flag``."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name == flag:
            found.append(value if equals or following.startswith("-") else following)
    return found


def _is_on(values: list[str]) -> bool:
    """Of a switch the last value counts."""
    return bool(values) and values[-1].lower() not in ("false", "f", "0")


def _kubectl_addresses(item: Any, place: str) -> Iterator[str]:
    for entry in _list(_inside(item, "status"), "addresses"):
        found = _texts(entry)
        if found.get("type") in _ADDRESS_TYPES and found.get("address"):
            with located(f"{place}: status.addresses", ClusterError):
                yield _address(found["address"])
    annotations = _texts(item, "metadata", "annotations")
    for key in _ADDRESS_ANNOTATIONS:
        for text in annotations.get(key, "").split(","):
            if text.strip():
                with located(f"{place}: annotation {key}", ClusterError):
                    yield _address(text.strip().partition("/")[0])


def _pod_cidrs(item: Any) -> list[str]:
    spec = _inside(item, "spec")
    cidrs = [*_list(spec, "podCIDRs"), spec.get("podCIDR")]
    return [cidr for cidr in cidrs if isinstance(cidr, str) and cidr]


def _started_with(flag: str, arguments: list[list[str]], inside: list[str]) -> tuple[str, ...]:
    """The CIDRs that a server's ``flag`` names, several with commas or, from a list in config.yaml, each with
    a flag of its own; else the default, if all CIDRs ``inside`` lie in it; else none.
    """
    servers = [each for each in arguments if each[:1] == ["server"]]
    values = [value for each in servers if (value := ",".join(filter(None, _flags(each, flag))))]
    if values:
        return _distinct(_cidr, [part.strip() for part in values[0].split(",")])
    default = ipaddress.ip_network(_DEFAULT_CIDRS[flag])
    fits = all(_holds(default, ipaddress.ip_network(text)) for text in inside)
    return (str(default),) if servers and fits else ()


def _holds(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]
