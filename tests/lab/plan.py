"""Who is who in the lab.

Rule: names, addresses and ports only, all of them constants; nothing is built or asked here.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

PREFIX = "rl"
UPLINK = "eth0"
VNI = 1
VXLAN_PORT = 8472
WIREGUARD_PORTS = {4: 51820, 6: 51821}
NODE_PORT = 30080
POD_PORT = 8080
CLUSTER_NAME = "lab"
POD_CIDRS = ("10.42.0.0/16", "2001:cafe:42::/56")
SERVICE_CIDRS = ("10.43.0.0/16",)
OVERLAY_DEVICES = {
    "vxlan": {4: "flannel.1", 6: "flannel-v6.1"},
    "wireguard": {4: "flannel-wg", 6: "flannel-wg-v6"},
}
OVERLAY_MTU = {"vxlan": {4: 1450, 6: 1430}, "wireguard": {4: 1420, 6: 1420}}
POD_MTU = 1420  # fits every tunnel of the lab


@dataclass(frozen=True)
class Host:
    """A machine on the switch.

    ``index`` is the third byte of its pod network; -1 for the host outside the cluster.
    """

    name: str
    role: str
    number: int
    index: int

    @property
    def addresses(self) -> dict[int, str]:
        """Its address on the uplink, by IP version."""
        return {4: f"10.10.0.{self.number}", 6: f"fd00:10::{self.number}"}

    @property
    def mac(self) -> str:
        return f"02:0a:0a:00:00:{self.number:02x}"

    def overlay_mac(self, family: int) -> str:
        """MAC of its VXLAN device, which the peers' forwarding entries name."""
        return f"02:0a:2a:0{family}:00:{self.number:02x}"

    @property
    def pod_networks(self) -> dict[int, str]:
        return {4: f"10.42.{self.index}.0/24", 6: f"{self.overlay_addresses[6]}/64"}

    @property
    def overlay_addresses(self) -> dict[int, str]:
        """The address of its tunnel device, and so the source of what it sends to other nodes' pods."""
        return {4: f"10.42.{self.index}.0", 6: _canonical(f"2001:cafe:42:{self.index}::")}

    @property
    def gateways(self) -> dict[int, str]:
        return {4: f"10.42.{self.index}.1", 6: _canonical(f"2001:cafe:42:{self.index}::1")}


@dataclass(frozen=True)
class Pod:
    """A pod in its own namespace behind the bridge ``cni0`` of its node."""

    name: str
    node: str

    @property
    def addresses(self) -> dict[int, str]:
        index = NODES[self.node].index
        return {4: f"10.42.{index}.10", 6: _canonical(f"2001:cafe:42:{index}::10")}


SERVERS = ("server-1", "server-2", "server-3")
AGENTS = ("agent-1", "agent-2", "agent-3")
NODES = {
    host.name: host
    for host in (
        Host("server-1", "server", 11, 0),
        Host("server-2", "server", 12, 1),
        Host("server-3", "server", 13, 2),
        Host("agent-1", "agent", 21, 3),
        Host("agent-2", "agent", 22, 4),
        Host("agent-3", "agent", 23, 5),
    )
}
OUTSIDE = Host("outside", "", 99, -1)
HOSTS = {**NODES, OUTSIDE.name: OUTSIDE}
PODS = {
    pod.name: pod
    for pod in (
        Pod("dns", "server-1"),
        Pod("web-1", "agent-1"),
        Pod("web-2", "agent-2"),
        Pod("web-3", "agent-3"),
    )
}
FOREIGN_POD = "10.42.99.10"
"""Inner source address of the tunnel that the outside host builds; no node owns its network."""
STALE_VNI = 4097
VIRTUAL_ADDRESS = "10.10.0.10"
ALIASES = {
    "nat": (OUTSIDE.name, "10.0.2.15"),
    "stale-agent-1": ("agent-1", "10.42.200.21"),
    "stale-agent-3": ("agent-3", "10.42.200.23"),
}
"""Further IPv4 addresses of hosts, which a scenario brings up: name → host, address."""


def _canonical(address: str) -> str:
    """As RFC 5952 writes it, and every program here too."""
    return str(ipaddress.ip_address(address))


def addresses(name: str) -> dict[int, str]:
    """Addresses of a host, a pod or an alias, by IP version."""
    if name in ALIASES:
        return {4: ALIASES[name][1]}
    return HOSTS[name].addresses if name in HOSTS else PODS[name].addresses


def node_of(name: str) -> str:
    """The machine that a name runs on: itself, or a pod's node, or an alias' host."""
    if name in ALIASES:
        return ALIASES[name][0]
    return PODS[name].node if name in PODS else name


def public_name(host: str) -> str:
    """How truth.json names an end: a node by its name, another address by itself."""
    return host if host in NODES else addresses(host)[4]


def cluster() -> dict[str, object]:
    """The inventory as the cluster file has it."""
    return {
        "name": CLUSTER_NAME,
        "pod_cidrs": list(POD_CIDRS),
        "service_cidrs": list(SERVICE_CIDRS),
        "nodes": [
            {"name": host.name, "role": host.role, "addresses": list(host.addresses.values())}
            for host in NODES.values()
        ],
    }
