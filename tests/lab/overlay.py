"""The pod network between the nodes.

Rule: tunnel devices and the routes into them; carries packets only when somebody else sends.

VXLAN as flannel's vxlan backend sets it up (no learning, one forwarding and one neighbour entry for each
other node), WireGuard as its wireguard backend in mode ``separate`` (one device for each IP version, on its
own port).
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lab import plan, processes
from lab.topology import add_address, index_of, routes

if TYPE_CHECKING:
    from pyroute2 import IPRoute

FAMILIES = (4, 6)
FULL_LENGTH = {4: 32, 6: 128}
NTF_SELF = 0x02  # linux/neighbour.h
NUD_PERMANENT = 0x80
ANY_MAC = "00:00:00:00:00:00"  # where frames for an unknown or a group's address go
RTNH_F_ONLINK = 4  # linux/rtnetlink.h
WIREGUARD_SOCKETS = "/run/wireguard"


def build_vxlan(namespaces: dict[str, str]) -> None:
    for host in plan.NODES.values():
        with routes(namespaces[host.name]) as ip:
            for family in FAMILIES:
                index = add_vxlan(ip, host, family)
                add_address(ip, index, host.overlay_addresses[family], FULL_LENGTH[family])
                for peer in others(host):
                    add_peer(ip, index, peer, family)


def add_vxlan(
    ip: IPRoute, host: plan.Host, family: int, *, name: str = "", vni: int = plan.VNI, local_address: str = ""
) -> int:
    """The VXLAN device of a host; returns its interface index."""
    name = name or plan.OVERLAY_DEVICES["vxlan"][family]
    local = {("vxlan_local" if family == 4 else "vxlan_local6"): local_address or host.addresses[family]}
    ip.link(
        "add",
        ifname=name,
        kind="vxlan",
        address=host.overlay_mac(family),
        mtu=plan.OVERLAY_MTU["vxlan"][family],
        vxlan_id=vni,
        vxlan_port=plan.VXLAN_PORT,
        vxlan_learning=False,
        vxlan_link=index_of(ip, plan.UPLINK),
        **local,
    )
    index = index_of(ip, name)
    ip.link("set", index=index, state="up")
    return index


def add_peer(ip: IPRoute, index: int, peer: plan.Host, family: int) -> None:
    """The peer's pods are behind its VXLAN device, and frames for that device go to its uplink address."""
    gateway = peer.overlay_addresses[family]
    mac = peer.overlay_mac(family)
    ip.fdb("add", ifindex=index, lladdr=mac, dst=peer.addresses[family], flags=NTF_SELF, state=NUD_PERMANENT)
    ip.neigh("add", ifindex=index, dst=gateway, lladdr=mac, state=NUD_PERMANENT)
    ip.route("add", dst=peer.pod_networks[family], gateway=gateway, oif=index, flags=RTNH_F_ONLINK)


def add_stale_network(namespaces: dict[str, str], aliases: tuple[str, ...]) -> None:
    """A second VXLAN network of these aliases' hosts on the same port, as a CNI that was replaced leaves."""
    for name in aliases:
        host = plan.NODES[plan.node_of(name)]
        with routes(namespaces[host.name]) as ip:
            index = add_vxlan(ip, host, 4, name="stale", vni=plan.STALE_VNI)
            add_address(ip, index, plan.addresses(name)[4], 24)
            for peer in (plan.NODES[plan.node_of(other)] for other in aliases if other != name):
                ip.fdb("append", ifindex=index, lladdr=ANY_MAC, dst=peer.addresses[4], flags=NTF_SELF)


def move_to_virtual_address(namespace: str, host: plan.Host) -> None:
    """The host has the virtual address too, and its VXLAN device sends from it."""
    with routes(namespace) as ip:
        add_address(ip, index_of(ip, plan.UPLINK), plan.VIRTUAL_ADDRESS, 32)
        ip.link("del", index=index_of(ip, plan.OVERLAY_DEVICES["vxlan"][4]))
        index = add_vxlan(ip, host, 4, local_address=plan.VIRTUAL_ADDRESS)
        add_address(ip, index, host.overlay_addresses[4], FULL_LENGTH[4])
        for peer in others(host):
            add_peer(ip, index, peer, 4)


def others(host: plan.Host) -> list[plan.Host]:
    return [peer for peer in plan.NODES.values() if peer is not host]


class WireGuard:
    """wireguard-go on every node, one process for each IP version, each with its control socket to itself."""

    def __init__(self, children: processes.Children, namespaces: dict[str, str]) -> None:
        self._children = children
        self._namespaces = namespaces
        self._running: list[processes.Child] = []
        self._keys = {(name, family): os.urandom(32) for name in plan.NODES for family in FAMILIES}

    def build(self) -> None:
        started = [self._start(host, family) for host in plan.NODES.values() for family in FAMILIES]
        public = {
            (host.name, family): self._public_key(host, family)
            for host in plan.NODES.values()
            for family in FAMILIES
        }
        for host, family, child in started:
            socket = Path(f"/proc/{child.pid}/root{WIREGUARD_SOCKETS}", f"{_device(family)}.sock")
            child.wait_for(socket.exists, "its control socket")
            self._configure(host, family, child, public)

    def _start(self, host: plan.Host, family: int) -> tuple[plan.Host, int, processes.Child]:
        place = WIREGUARD_SOCKETS
        script = f"mkdir -p {place} && mount -t tmpfs lab {place} && exec wireguard-go -f {_device(family)}"
        child = self._children.start(
            f"{host.name}-wireguard-{family}",
            self._namespaces[host.name],
            ["unshare", "--mount", "--", "sh", "-c", script],
            environment={"LOG_LEVEL": "error"},
        )
        self._running.append(child)
        return host, family, child

    def end(self) -> None:
        """The tunnels end, and so do their timers."""
        self._children.end(*self._running)
        self._running.clear()

    def _public_key(self, host: plan.Host, family: int) -> str:
        key = base64.b64encode(self._keys[host.name, family]).decode()
        return processes.call(self._namespaces[host.name], ["wg", "pubkey"], text=key + "\n").strip()

    def _configure(
        self, host: plan.Host, family: int, child: processes.Child, public: dict[tuple[str, int], str]
    ) -> None:
        port = plan.WIREGUARD_PORTS[family]
        words = [_device(family), "listen-port", str(port), "private-key", "/dev/stdin"]
        for peer in others(host):
            end = f"[{peer.addresses[family]}]:{port}" if family == 6 else f"{peer.addresses[family]}:{port}"
            words += [
                "peer",
                public[peer.name, family],
                "endpoint",
                end,
                "allowed-ips",
                peer.pod_networks[family],
            ]
        key = base64.b64encode(self._keys[host.name, family]).decode()
        inside = ["nsenter", f"--mount=/proc/{child.pid}/ns/mnt", "--"]
        processes.call(self._namespaces[host.name], [*inside, "wg", "set", *words], text=key + "\n")
        with routes(self._namespaces[host.name]) as ip:
            self._routes(ip, host, family)

    def _routes(self, ip: IPRoute, host: plan.Host, family: int) -> None:
        index = index_of(ip, _device(family))
        ip.link("set", index=index, mtu=plan.OVERLAY_MTU["wireguard"][family], state="up")
        add_address(ip, index, host.overlay_addresses[family], FULL_LENGTH[family])
        for peer in others(host):
            ip.route("add", dst=peer.pod_networks[family], oif=index)


def _device(family: int) -> str:
    return plan.OVERLAY_DEVICES["wireguard"][family]
