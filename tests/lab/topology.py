"""Namespaces, the switch between them, the pods behind them.

Rule: links and addresses; no program runs here, no tunnel.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pyroute2 import IPRoute, NetlinkError, netns

from lab import kernel, plan
from lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

IFA_F_NODAD = 0x02  # linux/if_addr.h
NAME = re.compile(rf"{plan.PREFIX}(?P<pid>\d+)-\d+-")
SYSCTLS: tuple[tuple[str, int | str], ...] = (
    ("ipv4/ip_forward", 1),
    ("ipv4/ping_group_range", "0 0"),  # root may open ping sockets (icmp(7))
    ("ipv4/conf/all/rp_filter", 0),
    ("ipv4/conf/default/rp_filter", 0),
    ("ipv6/conf/all/forwarding", 1),
    *(
        (f"ipv6/conf/{which}/{key}", 0)
        for which in ("all", "default")
        for key in ("accept_dad", "accept_ra", "dad_transmits")
    ),
    *((f"ipv6/conf/{which}/router_solicitations", 0) for which in ("all", "default")),
)
_count = itertools.count()


class Topology:
    """The wires of one lab.

    ``tag`` opens the name of all that it leaves outside itself; ``namespaces`` maps each host, each pod and
    ``switch`` to its namespace's name.
    """

    def __init__(self) -> None:
        self.tag = f"{plan.PREFIX}{os.getpid()}-{next(_count)}"
        members = ("switch", *plan.HOSTS, *plan.PODS)
        self.namespaces = {name: f"{self.tag}-{name}" for name in members}

    def build(self) -> None:
        for namespace in self.namespaces.values():
            netns.create(namespace)
            with kernel.inside(namespace):
                for key, value in SYSCTLS:
                    kernel.sysctl(key, value)
            with routes(namespace) as ip:
                ip.link("set", index=1, state="up")
        self._switch()
        for host in plan.HOSTS.values():
            self._host(host)
        for pod in plan.PODS.values():
            self._pod(pod)

    def remove(self) -> None:
        """Delete every namespace, and with it every link in it; one that is gone already is fine."""
        for namespace in self.namespaces.values():
            remove_namespace(namespace)

    def _switch(self) -> None:
        with routes(self.namespaces["switch"]) as ip:
            ip.link("add", ifname="switch", kind="bridge", br_stp_state=0, br_mcast_snooping=0)
            ip.link("set", index=index_of(ip, "switch"), state="up")

    def _host(self, host: plan.Host) -> None:
        with routes(self.namespaces["switch"]) as ip:
            add_veth(ip, host.name, plan.UPLINK, self.namespaces[host.name], host.mac)
            ip.link("set", index=index_of(ip, host.name), master=index_of(ip, "switch"), state="up")
            kernel.offloads_off(host.name)
        with routes(self.namespaces[host.name]) as ip:
            kernel.offloads_off(plan.UPLINK)
            uplink = index_of(ip, plan.UPLINK)
            ip.link("set", index=uplink, state="up")
            add_address(ip, uplink, host.addresses[4], 24)
            add_address(ip, uplink, host.addresses[6], 64)
            if host.name in plan.NODES:
                self._pod_bridge(ip, host)

    def _pod_bridge(self, ip: IPRoute, host: plan.Host) -> None:
        ip.link("add", ifname="cni0", kind="bridge", mtu=plan.POD_MTU, br_mcast_snooping=0)
        bridge = index_of(ip, "cni0")
        ip.link("set", index=bridge, state="up")
        add_address(ip, bridge, host.gateways[4], 24)
        add_address(ip, bridge, host.gateways[6], 64)

    def _pod(self, pod: plan.Pod) -> None:
        node = plan.NODES[pod.node]
        with routes(self.namespaces[pod.node]) as ip:
            add_veth(ip, f"veth{pod.name}", "eth0", self.namespaces[pod.name])
            ip.link(
                "set",
                index=index_of(ip, f"veth{pod.name}"),
                master=index_of(ip, "cni0"),
                mtu=plan.POD_MTU,
                state="up",
            )
            kernel.offloads_off(f"veth{pod.name}")
        with routes(self.namespaces[pod.name]) as ip:
            kernel.offloads_off("eth0")
            uplink = index_of(ip, "eth0")
            ip.link("set", index=uplink, mtu=plan.POD_MTU, state="up")
            add_address(ip, uplink, pod.addresses[4], 24)
            add_address(ip, uplink, pod.addresses[6], 64)
            ip.route("add", dst="0.0.0.0/0", gateway=node.gateways[4])
            ip.route("add", dst="::/0", gateway=node.gateways[6])


@contextlib.contextmanager
def routes(namespace: str) -> Iterator[IPRoute]:
    """Netlink inside a namespace; the calling thread is inside for the length of the block too."""
    with kernel.inside(namespace), IPRoute() as ip:
        yield ip


def index_of(ip: IPRoute, interface: str) -> int:
    found = ip.link_lookup(ifname=interface)
    if not found:
        raise LabError(f"no interface {interface} where it was just made")
    return int(found[0])


def add_veth(ip: IPRoute, interface: str, peer: str, peer_namespace: str, peer_mac: str = "") -> None:
    """A pair of which one end is here and the other is born inside ``peer_namespace``."""
    other = {"ifname": peer, "net_ns_fd": peer_namespace} | ({"address": peer_mac} if peer_mac else {})
    ip.link("add", ifname=interface, kind="veth", peer=other)


def add_address(ip: IPRoute, index: int, address: str, length: int) -> None:
    """An address that works at once: no duplicate address detection."""
    flags = {"flags": IFA_F_NODAD} if ":" in address else {}
    ip.addr("add", index=index, address=address, prefixlen=length, **flags)


def remove_namespace(namespace: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        try:
            netns.remove(namespace)
        except (OSError, NetlinkError) as error:
            if getattr(error, "errno", getattr(error, "code", 0)) not in (errno.ENOENT, errno.EINVAL):
                raise
            Path(kernel.NAMESPACES, namespace).unlink()


def leftovers(folder: Path) -> list[Path]:
    """What labs whose process has ended left in a folder: their namespaces, or their files."""
    if not folder.is_dir():
        return []
    found = ((path, NAME.match(path.name)) for path in folder.iterdir())
    return sorted(path for path, match in found if match and not alive(int(match["pid"])))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to ask does not (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
