"""The interfaces of this machine. Rule: asks netlink and changes nothing; knows no filter and no program.

All answers are about the network namespace of the calling thread.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from analyzer.errors import LiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

#: linux/if_arp.h to the link type of a capture file: what a program sees first
LINK_TYPES = {
    1: 1,  # ARPHRD_ETHER
    772: 1,  # ARPHRD_LOOPBACK: an Ethernet header of zeros
    0xFFFE: 101,  # ARPHRD_NONE: WireGuard, tun
    519: 101,  # ARPHRD_RAWIP
    768: 101,  # ARPHRD_TUNNEL: ipip
    769: 101,  # ARPHRD_TUNNEL6
    776: 101,  # ARPHRD_SIT
}
ARPHRD_LOOPBACK = 772
IFF_UP = 1
RT_TABLE_MAIN, RT_SCOPE_UNIVERSE = 254, 0  # linux/rtnetlink.h
#: kinds of links that carry what crosses the wire on another link, or nothing of the wire at all
VIRTUAL = frozenset(
    (
        "bridge", "dummy", "erspan", "geneve", "gre", "gretap", "ifb",
        "ip6erspan", "ip6gre", "ip6gretap", "ip6tnl", "ipip", "ipvlan", "macvlan",
        "macvtap", "netkit", "nlmon", "sit", "tun", "veth", "vrf",
        "vti", "vti6", "vxlan", "wireguard", "xfrm",
    )
)  # fmt: skip
#: links that hold an address and pass no packet on
HOLDERS = frozenset(("dummy",))
#: links that stand for their members
BUNDLES = frozenset(("bond", "team"))

LISTS = "ip -brief link lists them"
_ROOT = "run as root, or with CAP_NET_ADMIN and CAP_BPF"
#: errno of a refusal: what it means, what to do next; {said} is the kernel's own message
REFUSALS = {
    errno.EPERM: ("no right to put a program on an interface", _ROOT),
    errno.EACCES: ("no right to put a program on an interface", _ROOT),
    errno.EEXIST: ("this run watches it already", "name it once"),
    errno.ENODEV: ("the interface vanished", LISTS),
    errno.ENOENT: ("this kernel has no clsact or no bpf filter: {said}", "modprobe sch_ingress cls_bpf"),
    errno.EOPNOTSUPP: ("the kernel refused the filter: {said}", "tc qdisc show: is its block shared?"),
}
OTHER_REFUSAL = ("the kernel refused the program: {said}", "rke2-flows doctor tells what this kernel lacks")


@contextlib.contextmanager
def netlink(where: str = "") -> Iterator[Any]:
    """An ``IPRoute`` in the namespace of the calling thread. LiveError for what the kernel refuses."""
    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        raise _refusal(error.code, str(error.args[1]), where) from error
    except OSError as error:
        raise _refusal(error.errno or 0, error.strerror or str(error), where) from error


def _refusal(code: int, said: str, where: str) -> LiveError:
    what, next_step = REFUSALS.get(code, OTHER_REFUSAL)
    return LiveError(what.format(said=said), where=where, next_step=next_step)


def whole(dump: Callable[[], Iterable[T]]) -> list[T]:
    """A dump during which nothing changed; asked again where something did."""
    for _ in range(10):
        with contextlib.suppress(NetlinkDumpInterrupted):
            return list(dump())
    return list(dump())


def index_of(interface: str) -> int:
    """The interface's index. LiveError: there is none of that name."""
    try:
        return socket.if_nametoindex(interface)
    except (OSError, ValueError) as error:
        raise LiveError("no such interface", where=interface, next_step=LISTS) from error


def link_of(ip: Any, index: int) -> Any:
    """One interface, asked for alone: a node has hundreds. NetlinkError where there is none."""
    return next(iter(ip.get_links(index)))


def names(ip: Any) -> dict[int, str]:
    """Interface index → name."""
    return {link["index"]: _name(link) for link in whole(ip.get_links)}


def link_type(interface: str) -> int:
    """What a frame there begins with: 1 Ethernet header, 101 IP header, as in capture files (LINKTYPE_).

    LiveError: no such interface, or one whose frames begin with something else.
    """
    index = index_of(interface)
    with netlink(interface) as ip:
        kind = link_of(ip, index)["ifi_type"]
    if kind not in LINK_TYPES:
        raise LiveError(
            f"it cannot be watched: hardware type {kind} is neither Ethernet nor bare IP",
            where=interface,
            next_step="watch the interface that it sends through",
        )
    return LINK_TYPES[kind]


def local_addresses() -> dict[str, list[str]]:
    """Interface → its addresses of global scope, without prefix lengths; every interface is in."""
    with netlink() as ip:
        named, addresses = names(ip), whole(ip.get_addr)
    found: dict[str, list[str]] = {name: [] for name in named.values()}
    for one in addresses:
        if one["scope"] == RT_SCOPE_UNIVERSE and one["index"] in named:
            address = one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS")
            found[named[one["index"]]].append(str(ipaddress.ip_address(address)))
    return found


def uplinks(addresses: Iterable[str] = ()) -> list[str]:
    """The interfaces through which this node talks to others, in the kernel's order.

    With addresses: the interfaces that carry one of them; where only a loopback or dummy interface does (a
    node that announces itself by BGP), those of the default routes; none where no interface carries one.
    Without: those of the default routes in the main table; where there is none, all that are up and neither
    loopback nor virtual (a bond is in, its members are not).
    """
    wanted = {str(ipaddress.ip_address(address)) for address in addresses}
    carriers = {name for name, there in local_addresses().items() if wanted.intersection(there)}
    if wanted and not carriers:
        return []
    with netlink() as ip:
        links = whole(ip.get_links)
        routed = _of_default_routes(ip)
    choices = (
        [link for link in links if _name(link) in carriers and not _holds(link)],
        [link for link in links if link["index"] in routed and not _holds(link)],
        [] if wanted else of_wire(links),
    )
    return [_name(link) for link in next(filter(None, choices), [])]


def _of_default_routes(ip: Any) -> set[int]:
    """Indices of the interfaces that a default route of either family goes out of."""
    found: set[int] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in whole(partial(ip.get_routes, family=family, table=RT_TABLE_MAIN)):
            if route["dst_len"] == 0:
                found.update(hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or ())
                found.add(route.get_attr("RTA_OIF") or 0)
    return found


def _name(link: Any) -> str:
    return str(link.get_attr("IFLA_IFNAME"))


def _kind(link: Any) -> str:
    information = link.get_attr("IFLA_LINKINFO")
    return (information.get_attr("IFLA_INFO_KIND") if information else None) or ""


def _holds(link: Any) -> bool:
    return link["ifi_type"] == ARPHRD_LOOPBACK or _kind(link) in HOLDERS


def of_wire(links: list[Any]) -> list[Any]:
    """Those up, of a type that can be watched, not virtual, and no member of a bond, which stands for it."""
    bundles = {link["index"] for link in links if _kind(link) in BUNDLES}
    return [
        link
        for link in links
        if link["flags"] & IFF_UP
        and link["ifi_type"] in LINK_TYPES
        and not _holds(link)
        and _kind(link) not in VIRTUAL
        and link.get_attr("IFLA_MASTER") not in bundles
    ]
