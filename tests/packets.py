"""The packet table: bytes and what they mean, both written by hand.

Rule: this file builds packets from ``struct`` alone and knows neither the parser nor the kernel. What a
packet is expected to mean comes from the RFCs and from bpf/packet.h's contract, never from running it.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field, replace

# bpf/packet.h: enum parse_result, link_type, fragment, next
PARSED, NOT_IP, TRUNCATED, MALFORMED, UNSUPPORTED = range(5)
NULL, ETHERNET, PPP, RAW_BSD, RAW_OPENBSD, PPP_HDLC, PPPOE = 0, 1, 9, 12, 14, 50, 51
RAW, IEEE802_11, LOOP, SLL, LINK_IPV4, LINK_IPV6, SLL2 = 101, 105, 108, 113, 228, 229, 276
WHOLE, FIRST, LATER = range(3)
NEXT_NONE, NEXT_IP, NEXT_ETHERNET, NEXT_QUOTE, NEXT_CUT = range(5)
# bpf/flow.h: enum flow_tunnel, flow_direction, flow_event
NO_TUNNEL, VXLAN, GENEVE, GRE, IPIP = range(5)
IN, OUT = 1, 2
EVENT_SYN, EVENT_SYN_ACK, EVENT_CARRIER = 1, 2, 4

# The registries' own numbers
TYPE_IPV4, TYPE_ARP, TYPE_BRIDGED, TYPE_VLAN, TYPE_IPV6 = 0x0800, 0x0806, 0x6558, 0x8100, 0x86DD
TYPE_MPLS, TYPE_MPLS_UPSTREAM, TYPE_PPPOE_DISCOVERY, TYPE_PPPOE, TYPE_QINQ = (
    0x8847,
    0x8848,
    0x8863,
    0x8864,
    0x88A8,
)
HOP_BY_HOP, ICMP, PROTOCOL_IPIP, TCP, UDP, PROTOCOL_IPV6, ROUTING, FRAGMENT = 0, 1, 4, 6, 17, 41, 43, 44
PROTOCOL_GRE, ESP, AH, ICMPV6, NO_NEXT, OPTIONS, OSPF, SCTP, MOBILITY, HIP, SHIM6 = (
    47, 50, 51, 58, 59, 60, 89, 132, 135, 139, 140,
)  # fmt: skip
FIN, SYN, RST, PSH, ACK, ECE, CWR, NS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x40, 0x80, 0x100

SERVER, AGENT = "10.10.0.11", "10.10.0.21"
SERVER6, AGENT6 = "fd00:10::11", "fd00:10::21"
POD_A, POD_B = "10.42.0.5", "10.42.1.6"
POD_A6, POD_B6 = "fd42::5", "fd42:1::6"


@dataclass(frozen=True)
class Layer:
    """What one IP header and its transport mean. Field names are those of struct packet and struct flow_key.

    Of a layer that was not parsed the result alone is promised.
    """

    result: int = PARSED
    src: str = "::"
    dst: str = "::"
    src_port: int = 0
    dst_port: int = 0
    protocol: int = 0
    bytes: int = 0
    tcp_flags: int = 0
    events: int = 0
    fragment: int = WHOLE
    fragment_id: int = 0
    fragment_protocol: int = 0
    fragment_payload: int = 0
    fragment_end: int = 0
    next: int = NEXT_NONE
    next_tunnel: int = NO_TUNNEL
    next_vni: int = 0
    unreachable: int = 0
    tunnel: int = NO_TUNNEL
    vni: int = 0
    outer_src: str = "::"
    outer_dst: str = "::"
    interface: int = 0
    direction: int = 0


@dataclass(frozen=True)
class Packet:
    """One frame as captured; ``wire`` is its length before the snaplen cut it."""

    name: str
    data: bytes = field(repr=False)
    layers: tuple[Layer, ...]
    link: int = ETHERNET
    wire: int = -1

    def __post_init__(self) -> None:
        if self.wire < 0:
            object.__setattr__(self, "wire", len(self.data))


def cut(name: str, data: bytes, keep: int, *layers: Layer, link: int = ETHERNET) -> Packet:
    """The first ``keep`` bytes of a frame, as a snaplen leaves them."""
    return Packet(name, data[:keep], layers, link, len(data))


# ---- builders: each puts its header before what it carries ----


def ether(kind: int, payload: bytes) -> bytes:
    return bytes.fromhex("02000000001102000000002a") + struct.pack(">H", kind) + payload


def tag(kind: int, payload: bytes, vid: int = 100) -> bytes:
    """802.1Q: what stands behind an EtherType that announces it."""
    return struct.pack(">HH", vid, kind) + payload


def tags(kinds: list[int], payload: bytes) -> bytes:
    """An Ethernet frame whose EtherTypes are ``kinds``: all but the last are tags."""
    for kind in reversed(kinds[1:]):
        payload = tag(kind, payload)
    return ether(kinds[0], payload)


def snap(kind: int, payload: bytes, oui: bytes = b"\0\0\0") -> bytes:
    return b"\xaa\xaa\x03" + oui + struct.pack(">H", kind) + payload


def ieee802_3(payload: bytes) -> bytes:
    return ether(len(payload), payload)


def pppoe(ppp: bytes, code: int = 0) -> bytes:
    return struct.pack(">BBHH", 0x11, code, 0x1234, len(ppp)) + ppp


def mpls(labels: int, payload: bytes) -> bytes:
    """``labels`` label stack entries, the S bit on the last."""
    return (
        b"".join(struct.pack(">I", (16 + i) << 12 | (i == labels - 1) << 8 | 64) for i in range(labels))
        + payload
    )


def sll(packet_type: int, kind: int, payload: bytes) -> bytes:
    return struct.pack(">HHH8sH", packet_type, 1, 6, b"\x02\0\0\0\0\x11\0\0", kind) + payload


def sll2(packet_type: int, kind: int, payload: bytes, interface: int = 7) -> bytes:
    return struct.pack(">HHIHBB8s", kind, 0, interface, 1, packet_type, 6, b"\x02\0\0\0\0\x11\0\0") + payload


def ipv4(
    protocol: int,
    payload: bytes,
    src: str = SERVER,
    dst: str = AGENT,
    *,
    total: int | None = None,
    options: bytes = b"",
    ihl: int | None = None,
    version: int = 4,
    ident: int = 0,
    fragment: int = 0x4000,
) -> bytes:
    """RFC 791; ``fragment`` is the whole 16-bit field of flags and offset."""
    ihl = 5 + len(options) // 4 if ihl is None else ihl
    total = 20 + len(options) + len(payload) if total is None else total
    fixed = struct.pack(">BBHHHBBH", version << 4 | ihl, 0, total, ident, fragment, 64, protocol, 0)
    return fixed + ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed + options + payload


def ipv6(
    following: int,
    payload: bytes,
    src: str = SERVER6,
    dst: str = AGENT6,
    *,
    length: int | None = None,
    version: int = 6,
) -> bytes:
    """RFC 8200."""
    length = len(payload) if length is None else length
    fixed = struct.pack(">IHBB", version << 28, length, following, 64)
    return fixed + ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed + payload


def extension(following: int, payload: bytes, units: int = 0) -> bytes:
    """An IPv6 extension header of 8 × (``units`` + 1) bytes, filled with Pad1 options."""
    return bytes([following, units]) + bytes(6 + 8 * units) + payload


def extensions(kinds: list[int], payload: bytes) -> bytes:
    """An IPv6 packet whose Next Header fields are ``kinds``."""
    for following in reversed(kinds[1:]):
        payload = extension(following, payload)
    return ipv6(kinds[0], payload)


def fragment6(
    following: int, payload: bytes, offset: int = 0, *, more: bool = False, ident: int = 0
) -> bytes:
    return struct.pack(">BBHI", following, 0, offset | more, ident) + payload


def ah(following: int, payload: bytes) -> bytes:
    """RFC 4302 with a 96-bit integrity value: 24 bytes, 6 words, 4 in the length field."""
    return struct.pack(">BBHII12s", following, 4, 0, 0x100, 1, bytes(12)) + payload


def tcp(flags: int = SYN, payload: bytes = b"", src_port: int = 40000, dst_port: int = 6443) -> bytes:
    offset_and_flags = 5 << 12 | flags
    return struct.pack(">HHIIHHHH", src_port, dst_port, 1, 0, offset_and_flags, 64240, 0, 0) + payload


def udp(src_port: int, dst_port: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HHHH", src_port, dst_port, 8 + len(payload), 0) + payload


def sctp(src_port: int, dst_port: int) -> bytes:
    return struct.pack(">HHII", src_port, dst_port, 0x5EED, 0)


def icmp(kind: int, code: int, payload: bytes = bytes(8)) -> bytes:
    return struct.pack(">BBHI", kind, code, 0, 0) + payload


def vxlan(frame: bytes, vni: int = 1, flags: int = 0x08, reserved: int = 0) -> bytes:
    return struct.pack(">II", flags << 24, vni << 8 | reserved) + frame


def geneve(
    payload: bytes, kind: int = TYPE_BRIDGED, vni: int = 1, options: bytes = b"", version: int = 0
) -> bytes:
    return struct.pack(">BBHI", version << 6 | len(options) // 4, 0, kind, vni << 8) + options + payload


def gre(kind: int, payload: bytes, flags: int = 0, version: int = 0) -> bytes:
    """RFC 2890; ``flags``: 0x80 checksum, 0x20 key, 0x10 sequence number, each with its four bytes."""
    fields = b"".join(b"\xde\xad\xbe\xef" for bit in (0x80, 0x20, 0x10) if flags & bit)
    return struct.pack(">BBH", flags, version, kind) + fields + payload


# ---- what is said again and again ----

SYN4 = ipv4(TCP, tcp())
SYN6 = ipv6(TCP, tcp())
POD_SYN = ipv4(TCP, tcp(), POD_A, POD_B)
POD_SYN6 = ipv6(TCP, tcp(), POD_A6, POD_B6)
POD_FRAME = ether(TYPE_IPV4, POD_SYN)
OVERLAY = ether(TYPE_IPV4, ipv4(UDP, udp(51000, 8472, vxlan(POD_FRAME))))

IS_SYN4 = Layer(
    src=SERVER,
    dst=AGENT,
    src_port=40000,
    dst_port=6443,
    protocol=TCP,
    bytes=40,
    tcp_flags=SYN,
    events=EVENT_SYN,
)
IS_SYN6 = replace(IS_SYN4, src=SERVER6, dst=AGENT6, bytes=60)
IS_POD_SYN = replace(IS_SYN4, src=POD_A, dst=POD_B)
IS_VXLAN_POD = replace(IS_POD_SYN, tunnel=VXLAN, vni=1, outer_src=SERVER, outer_dst=AGENT)
IS_GENEVE_POD = replace(IS_VXLAN_POD, tunnel=GENEVE)
IS_GRE_POD = replace(IS_VXLAN_POD, tunnel=GRE, vni=0)
IS_IPIP_POD = replace(IS_VXLAN_POD, tunnel=IPIP, vni=0)
IS_UDP4 = Layer(src=SERVER, dst=AGENT, src_port=51000, dst_port=53, protocol=UDP, bytes=28)
IS_VXLAN = replace(
    IS_UDP4, dst_port=8472, bytes=90, events=EVENT_CARRIER, next=NEXT_ETHERNET, next_tunnel=VXLAN, next_vni=1
)
IS_GENEVE = replace(IS_VXLAN, dst_port=6081, next_tunnel=GENEVE)
IS_GRE = Layer(src=SERVER, dst=AGENT, protocol=PROTOCOL_GRE, bytes=64, next=NEXT_IP, next_tunnel=GRE)
IS_IPIP = Layer(src=SERVER, dst=AGENT, protocol=PROTOCOL_IPIP, bytes=60, next=NEXT_IP, next_tunnel=IPIP)


def fails(result: int) -> Layer:
    return Layer(result)


def on_ethernet() -> list[Packet]:
    qinq = [
        Packet(f"QinQ type {kind:#06x}", tags([kind, TYPE_VLAN, TYPE_IPV4], SYN4), (IS_SYN4,))
        for kind in (TYPE_QINQ, 0x9100, 0x9200, 0x9300)
    ]
    tagged = [
        Packet(f"{n} VLAN tags", tags([TYPE_VLAN] * n + [TYPE_IPV4], SYN4), (IS_SYN4,)) for n in (1, 2, 3, 4)
    ]
    return [
        Packet("IPv4 TCP", ether(TYPE_IPV4, SYN4), (IS_SYN4,)),
        Packet("IPv6 TCP", ether(TYPE_IPV6, SYN6), (IS_SYN6,)),
        Packet("ARP", ether(TYPE_ARP, bytes(28)), (fails(NOT_IP),)),
        Packet("LLDP", ether(0x88CC, bytes(40)), (fails(NOT_IP),)),
        *tagged,
        Packet("a fifth VLAN tag", tags([TYPE_VLAN] * 5 + [TYPE_IPV4], SYN4), (fails(NOT_IP),)),
        *qinq,
        Packet("VLAN IPv6", tags([TYPE_VLAN, TYPE_IPV6], SYN6), (IS_SYN6,)),
        Packet("VLAN ARP", tags([TYPE_VLAN, TYPE_ARP], bytes(28)), (fails(NOT_IP),)),
        Packet("SNAP IPv4", ieee802_3(snap(TYPE_IPV4, SYN4)), (IS_SYN4,)),
        Packet("SNAP IPv6", ieee802_3(snap(TYPE_IPV6, SYN6)), (IS_SYN6,)),
        Packet("SNAP behind a VLAN tag", tags([TYPE_VLAN, 48], snap(TYPE_IPV4, SYN4)), (IS_SYN4,)),
        Packet(
            "SNAP of another organisation", ieee802_3(snap(TYPE_IPV4, SYN4, b"\0\0\x0c")), (fails(NOT_IP),)
        ),
        Packet("802.2 spanning tree", ieee802_3(b"\x42\x42\x03" + bytes(35)), (fails(NOT_IP),)),
        Packet("802.2 of three bytes", ieee802_3(b"\x42\x42\x03"), (fails(NOT_IP),)),
        Packet("PPPoE IPv4", ether(TYPE_PPPOE, pppoe(b"\0\x21" + SYN4)), (IS_SYN4,)),
        Packet("PPPoE IPv6", ether(TYPE_PPPOE, pppoe(b"\0\x57" + SYN6)), (IS_SYN6,)),
        Packet("PPPoE compressed protocol", ether(TYPE_PPPOE, pppoe(b"\x21" + SYN4)), (IS_SYN4,)),
        Packet("PPPoE LCP", ether(TYPE_PPPOE, pppoe(b"\xc0\x21" + bytes(20))), (fails(NOT_IP),)),
        Packet("PPPoE code 9", ether(TYPE_PPPOE, pppoe(b"\0\x21" + SYN4, code=9)), (fails(NOT_IP),)),
        Packet("PPPoE discovery", ether(TYPE_PPPOE_DISCOVERY, pppoe(bytes(12), code=9)), (fails(NOT_IP),)),
        Packet(
            "PPPoE over QinQ", tags([TYPE_QINQ, TYPE_VLAN, TYPE_PPPOE], pppoe(b"\0\x21" + SYN4)), (IS_SYN4,)
        ),
        Packet("MPLS one label", ether(TYPE_MPLS, mpls(1, SYN4)), (IS_SYN4,)),
        Packet("MPLS three labels, IPv6", ether(TYPE_MPLS, mpls(3, SYN6)), (IS_SYN6,)),
        Packet("MPLS eight labels", ether(TYPE_MPLS, mpls(8, SYN4)), (IS_SYN4,)),
        Packet("MPLS nine labels", ether(TYPE_MPLS, mpls(9, SYN4)), (fails(MALFORMED),)),
        Packet("MPLS upstream label", ether(TYPE_MPLS_UPSTREAM, mpls(1, SYN4)), (IS_SYN4,)),
        Packet("MPLS behind a VLAN tag", tags([TYPE_VLAN, TYPE_MPLS], mpls(2, SYN4)), (IS_SYN4,)),
        Packet("MPLS pseudowire", ether(TYPE_MPLS, mpls(1, bytes(4) + OVERLAY)), (fails(NOT_IP),)),
        Packet("Ethernet of 13 bytes", ether(TYPE_IPV4, b"")[:13], (fails(MALFORMED),)),
        Packet("Ethernet header alone", ether(TYPE_IPV4, b""), (fails(MALFORMED),)),
        Packet("VLAN tag that ends the frame", ether(TYPE_VLAN, b"\0\x64"), (fails(MALFORMED),)),
        Packet("no byte at all", b"", (fails(MALFORMED),)),
    ]


def on_other_links() -> list[Packet]:
    incoming, outgoing = replace(IS_SYN4, direction=IN), replace(IS_SYN4, direction=OUT)
    families = [
        Packet(f"NULL family {family} of a {order} host", family.to_bytes(4, order) + ip, (layer,), NULL)
        for family, ip, layer in ((2, SYN4, IS_SYN4), *((n, SYN6, IS_SYN6) for n in (10, 24, 28, 30)))
        for order in ("little", "big")
    ]
    raws = [
        Packet(f"RAW link type {link}, IPv{version}", ip, (layer,), link)
        for link in (RAW, RAW_BSD, RAW_OPENBSD)
        for version, ip, layer in ((4, SYN4, IS_SYN4), (6, SYN6, IS_SYN6))
    ]
    return [
        Packet("PPP with HDLC address", b"\xff\x03\0\x21" + SYN4, (IS_SYN4,), PPP),
        Packet("PPP without HDLC address", b"\0\x21" + SYN4, (IS_SYN4,), PPP),
        Packet("PPP compressed protocol", b"\x21" + SYN4, (IS_SYN4,), PPP),
        Packet("PPP IPv6", b"\xff\x03\0\x57" + SYN6, (IS_SYN6,), PPP),
        Packet("PPP compressed IPv6", b"\xff\x03\x57" + SYN6, (IS_SYN6,), PPP),
        Packet("PPP LCP", b"\xff\x03\xc0\x21" + bytes(20), (fails(NOT_IP),), PPP),
        Packet("PPP IPCP", b"\xff\x03\x80\x21" + bytes(20), (fails(NOT_IP),), PPP),
        Packet("PPP_HDLC", b"\xff\x03\0\x21" + SYN4, (IS_SYN4,), PPP_HDLC),
        Packet("Cisco HDLC is not PPP", b"\x0f\0\x08\0" + SYN4, (fails(NOT_IP),), PPP_HDLC),
        Packet("PPP of one byte", b"\xff", (fails(MALFORMED),), PPP),
        Packet("link type PPPoE", pppoe(b"\0\x21" + SYN4), (IS_SYN4,), PPPOE),
        Packet("SLL incoming", sll(0, TYPE_IPV4, SYN4), (incoming,), SLL),
        Packet("SLL outgoing", sll(4, TYPE_IPV4, SYN4), (outgoing,), SLL),
        Packet("SLL IPv6", sll(0, TYPE_IPV6, SYN6), (replace(IS_SYN6, direction=IN),), SLL),
        Packet("SLL VLAN", sll(4, TYPE_VLAN, tag(TYPE_IPV4, SYN4)), (outgoing,), SLL),
        Packet("SLL 802.2", sll(0, 4, b"\xaa\xaa\x03" + bytes(20)), (fails(NOT_IP),), SLL),
        Packet("SLL ARP", sll(1, TYPE_ARP, bytes(28)), (fails(NOT_IP),), SLL),
        Packet("SLL2 incoming", sll2(0, TYPE_IPV4, SYN4), (replace(incoming, interface=7),), SLL2),
        Packet(
            "SLL2 outgoing", sll2(4, TYPE_IPV6, SYN6), (replace(IS_SYN6, direction=OUT, interface=7),), SLL2
        ),
        Packet(
            "SLL2 tunnel",
            sll2(4, TYPE_IPV4, OVERLAY[14:], 0x01020304),
            (
                replace(IS_VXLAN, direction=OUT, interface=0x01020304),
                replace(IS_VXLAN_POD, direction=OUT, interface=0x01020304),
            ),
            SLL2,
        ),
        Packet("SLL2 ARP", sll2(1, TYPE_ARP, bytes(28)), (fails(NOT_IP),), SLL2),
        *families,
        Packet("NULL family 7", b"\x07\0\0\0" + SYN4, (fails(NOT_IP),), NULL),
        Packet("LOOP IPv4", b"\0\0\0\x02" + SYN4, (IS_SYN4,), LOOP),
        Packet("LOOP IPv6", b"\0\0\0\x18" + SYN6, (IS_SYN6,), LOOP),
        *raws,
        Packet("link type IPV4", SYN4, (IS_SYN4,), LINK_IPV4),
        Packet("link type IPV6", SYN6, (IS_SYN6,), LINK_IPV6),
        Packet("RAW of version 5", ipv4(TCP, tcp(), version=5), (fails(NOT_IP),), RAW),
        Packet("RAW of no byte", b"", (fails(MALFORMED),), RAW),
        Packet("link type 802.11", bytes(60), (fails(UNSUPPORTED),), IEEE802_11),
    ]


def of_ipv4() -> list[Packet]:
    first = replace(
        IS_UDP4, bytes=44, fragment=FIRST, fragment_id=0x1234, fragment_protocol=UDP, fragment_payload=24
    )
    later = replace(first, fragment=LATER, src_port=0, dst_port=0)
    tiny = replace(
        IS_SYN4, bytes=28, tcp_flags=0, events=0, fragment=FIRST, fragment_id=7, fragment_protocol=TCP,
        fragment_payload=8,
    )  # fmt: skip
    frames = {
        "options of 4 bytes": (ipv4(TCP, tcp(), options=b"\x94\x04\0\0"), replace(IS_SYN4, bytes=44)),
        "options of 40 bytes": (ipv4(TCP, tcp(), options=b"\x01" * 40), replace(IS_SYN4, bytes=80)),
        "don't fragment alone": (ipv4(TCP, tcp(), fragment=0x4000), IS_SYN4),
        "reserved flag alone": (ipv4(TCP, tcp(), fragment=0x8000), IS_SYN4),
        "IHL 4": (ipv4(TCP, tcp(), ihl=4), fails(MALFORMED)),
        "IHL 0": (ipv4(TCP, tcp(), ihl=0), fails(MALFORMED)),
        "version 6 behind EtherType IPv4": (SYN6, fails(MALFORMED)),
        "total length 0 (TSO)": (ipv4(TCP, tcp(ACK, bytes(3000)), total=0),
                                 replace(IS_SYN4, bytes=3040, tcp_flags=ACK, events=0)),
        "total length less than the header": (ipv4(TCP, tcp(), total=19), fails(MALFORMED)),
        "total length less than the options": (ipv4(TCP, tcp(), options=bytes(8), total=24),
            fails(MALFORMED)),
        "total length more than the frame": (ipv4(TCP, tcp(), total=1500), replace(IS_SYN4, bytes=1500)),
        "ports in the padding": (ipv4(TCP, tcp(), total=22), fails(MALFORMED)),
        "options beyond the frame": (ipv4(TCP, b"", ihl=15, total=0), fails(MALFORMED)),
        "flags in the padding": (ipv4(TCP, tcp(), total=28),
            replace(IS_SYN4, bytes=28, tcp_flags=0, events=0)),
        "first fragment": (ipv4(UDP, udp(51000, 53, bytes(16)), ident=0x1234, fragment=0x2000), first),
        "middle fragment": (ipv4(UDP, bytes(24), ident=0x1234, fragment=0x2003), later),
        "last fragment": (ipv4(UDP, bytes(10), ident=0x1234, fragment=6),
                          replace(later, bytes=30, fragment_payload=10, fragment_end=58)),
        "last fragment of the greatest offset": (ipv4(UDP, bytes(7), ident=0x1234, fragment=0x1FFF),
                                                 replace(later, bytes=27, fragment_payload=7,
                                                     fragment_end=65535)),
        "fragment with options": (ipv4(UDP, udp(51000, 53, bytes(16)), ident=0x1234, fragment=0x2000,
                                       options=bytes(8)), replace(first, bytes=52)),
        "tiny first fragment": (ipv4(TCP, tcp()[:8], ident=7, fragment=0x2000), tiny),
        "first fragment without ports": (ipv4(TCP, tcp()[:3], fragment=0x2000), fails(MALFORMED)),
        "AH": (ipv4(AH, ah(TCP, tcp())), replace(IS_SYN4, bytes=64)),
        "AH first fragment": (ipv4(AH, ah(UDP, udp(51000, 53, bytes(16))), ident=0x1234, fragment=0x2000),
                              replace(first, bytes=68, fragment_protocol=AH, fragment_payload=48)),
        "AH longer than the packet": (ipv4(AH, b"\x06\xff" + bytes(22) + tcp()), fails(MALFORMED)),
        "AH of one byte": (ipv4(AH, b"\x06"), fails(MALFORMED)),
        "ESP": (ipv4(ESP, bytes(40)), Layer(src=SERVER, dst=AGENT, protocol=ESP, bytes=60)),
        "OSPF": (ipv4(OSPF, bytes(24)), Layer(src=SERVER, dst=AGENT, protocol=OSPF, bytes=44)),
        "no payload": (ipv4(255, b""), Layer(src=SERVER, dst=AGENT, protocol=255, bytes=20)),
    }  # fmt: skip
    return [
        *(Packet(f"IPv4 {name}", ether(TYPE_IPV4, ip), (layer,)) for name, (ip, layer) in frames.items()),
        Packet("IPv4 padding", ether(TYPE_IPV4, SYN4) + bytes(6), (IS_SYN4,)),
        Packet("IPv4 padding behind a fragment", ether(TYPE_IPV4, frames["last fragment"][0]) + bytes(16),
               (frames["last fragment"][1],)),
    ]  # fmt: skip


def of_ipv6() -> list[Packet]:
    single = {
        name: (extensions([kind, TCP], tcp()), replace(IS_SYN6, bytes=68))
        for name, kind in {
            "hop-by-hop options": HOP_BY_HOP,
            "routing header": ROUTING,
            "destination options": OPTIONS,
            "mobility header": MOBILITY,
            "HIP": HIP,
            "Shim6": SHIM6,
        }.items()
    }
    first = replace(IS_UDP4, src=SERVER6, dst=AGENT6, bytes=72, fragment=FIRST, fragment_id=0xABCD1234,
                    fragment_payload=24)  # fmt: skip
    later = replace(first, fragment=LATER, src_port=0, dst_port=0)
    whole = udp(51000, 53, bytes(16))
    jumbo = struct.pack(">BBBBI", TCP, 0, 0xC2, 4, 70028) + tcp(ACK, bytes(100))
    frames = {
        **single,
        "an extension header of 2048 bytes": (ipv6(OPTIONS, extension(TCP, tcp(), 255)),
            replace(IS_SYN6, bytes=2108)),
        "an extension header of 64 bytes": (ipv6(OPTIONS, extension(TCP, tcp(), 7)),
            replace(IS_SYN6, bytes=124)),
        "AH": (ipv6(AH, ah(TCP, tcp())), replace(IS_SYN6, bytes=84)),
        "ESP": (ipv6(ESP, bytes(40)), Layer(src=SERVER6, dst=AGENT6, protocol=ESP, bytes=80)),
        "no next header": (ipv6(NO_NEXT, bytes(4)),
            Layer(src=SERVER6, dst=AGENT6, protocol=NO_NEXT, bytes=44)),
        "a chain": (ipv6(HOP_BY_HOP, extension(OPTIONS, extension(ROUTING, extension(AH, ah(OPTIONS,
                    extension(TCP, tcp())))), 1)), replace(IS_SYN6, bytes=124)),
        "eight extension headers": (extensions([OPTIONS] * 8 + [TCP], tcp()), replace(IS_SYN6, bytes=124)),
        "nine extension headers": (extensions([OPTIONS] * 9 + [TCP], tcp()), fails(MALFORMED)),
        "an extension longer than the packet": (ipv6(OPTIONS, bytes([TCP, 9]) + bytes(6) + tcp()),
            fails(MALFORMED)),
        "an extension of one byte": (ipv6(OPTIONS, b"\x06"), fails(MALFORMED)),
        "version 4 behind EtherType IPv6": (SYN4 + bytes(20), fails(MALFORMED)),
        "payload less than the ports": (ipv6(TCP, tcp(), length=3), fails(MALFORMED)),
        "payload more than the frame": (ipv6(TCP, tcp(), length=1460), replace(IS_SYN6, bytes=1500)),
        "payload 0 (BIG TCP)": (ipv6(TCP, tcp(ACK, bytes(100)), length=0),
                                replace(IS_SYN6, bytes=160, tcp_flags=ACK, events=0)),
        "atomic fragment": (ipv6(FRAGMENT, fragment6(TCP, tcp(), ident=9)), replace(IS_SYN6, bytes=68)),
        "first fragment": (ipv6(FRAGMENT, fragment6(UDP, whole, more=True, ident=0xABCD1234)), first),
        "middle fragment": (ipv6(FRAGMENT, fragment6(UDP, bytes(24), 24, more=True, ident=0xABCD1234)),
            later),
        "last fragment": (ipv6(FRAGMENT, fragment6(UDP, bytes(10), 48, ident=0xABCD1234)),
                          replace(later, bytes=58, fragment_payload=10, fragment_end=58)),
        "fragment behind a routing header": (
            ipv6(ROUTING, extension(FRAGMENT, fragment6(UDP, whole, more=True, ident=0xABCD1234))),
            replace(first, bytes=80)),
        "options inside a first fragment": (
            ipv6(FRAGMENT, fragment6(OPTIONS, extension(UDP, whole), more=True, ident=0xABCD1234)),
            replace(first, bytes=80, fragment_payload=32)),
        "later fragment of options": (ipv6(FRAGMENT,
            fragment6(OPTIONS, bytes(24), 24, more=True, ident=0xABCD1234)),
                                      replace(later, protocol=OPTIONS)),
        "fragment header of seven bytes": (ipv6(FRAGMENT, fragment6(UDP, b"")[:7]), fails(MALFORMED)),
    }  # fmt: skip
    return [
        *(Packet(f"IPv6 {name}", ether(TYPE_IPV6, ip), (layer,)) for name, (ip, layer) in frames.items()),
        Packet("IPv6 padding", ether(TYPE_IPV6, SYN6) + bytes(4), (IS_SYN6,)),
        Packet("IPv6 with nothing in it, padded", ether(TYPE_IPV6, ipv6(NO_NEXT, b"")) + bytes(6),
               (Layer(src=SERVER6, dst=AGENT6, protocol=NO_NEXT, bytes=40),)),
        Packet(
            "IPv6 jumbogram", ether(TYPE_IPV6, ipv6(HOP_BY_HOP, jumbo, length=0)),
            (replace(IS_SYN6, bytes=70068, tcp_flags=ACK, events=0),), wire=14 + 70068,
        ),
    ]  # fmt: skip


def of_transport() -> list[Packet]:
    flags = [
        Packet(
            f"TCP {name}",
            ether(TYPE_IPV4, ipv4(TCP, tcp(bits))),
            (replace(IS_SYN4, tcp_flags=bits, events=event),),
        )
        for name, bits, event in (
            ("SYN-ACK", SYN | ACK, EVENT_SYN_ACK),
            ("SYN with ECN", SYN | ECE | CWR, EVENT_SYN),
            ("RST", RST, 0),
            ("RST-ACK", RST | ACK, 0),
            ("FIN-PSH-ACK", FIN | PSH | ACK, 0),
            ("with the ninth flag", NS | ACK, 0),
            ("without flags", 0, 0),
        )
    ]
    host = Layer(src=SERVER, dst=AGENT)
    host6 = Layer(src=SERVER6, dst=AGENT6)
    rest = {
        "TCP of four bytes": (ipv4(TCP, tcp()[:4]), replace(IS_SYN4, bytes=24, tcp_flags=0, events=0)),
        "TCP of thirteen bytes": (ipv4(TCP, tcp()[:13]), replace(IS_SYN4, bytes=33, tcp_flags=0, events=0)),
        "TCP of fourteen bytes": (ipv4(TCP, tcp()[:14]), replace(IS_SYN4, bytes=34)),
        "TCP of three bytes": (ipv4(TCP, tcp()[:3]), fails(MALFORMED)),
        "UDP": (ipv4(UDP, udp(51000, 53)), IS_UDP4),
        "UDP of WireGuard": (ipv4(UDP, udp(51820, 51820, bytes(32))),
                             replace(IS_UDP4, src_port=51820, dst_port=51820, bytes=60)),
        "UDP of three bytes": (ipv4(UDP, udp(51000, 53)[:3]), fails(MALFORMED)),
        "UDP from a VXLAN port": (ipv4(UDP, udp(8472, 51000, vxlan(POD_FRAME))),
                                  replace(IS_UDP4, src_port=8472, dst_port=51000, bytes=90)),
        "SCTP": (ipv4(SCTP, sctp(36412, 38412)),
                 replace(host, src_port=36412, dst_port=38412, protocol=SCTP, bytes=32)),
        "ICMP echo request": (ipv4(ICMP, icmp(8, 0)), replace(host, src_port=8, protocol=ICMP, bytes=36)),
        "ICMP echo reply": (ipv4(ICMP, icmp(0, 0)), replace(host, protocol=ICMP, bytes=36)),
        "ICMP time exceeded": (ipv4(ICMP, icmp(11, 1, SYN4)),
                               replace(host, src_port=11, dst_port=1, protocol=ICMP, bytes=68)),
        "ICMP unreachable of an unknown code": (ipv4(ICMP, icmp(3, 16, SYN4)),
                                                replace(host, src_port=3, dst_port=16, protocol=ICMP,
                                                    bytes=68)),
        "ICMP of one byte": (ipv4(ICMP, b"\x08"), fails(MALFORMED)),
    }  # fmt: skip
    rest6 = {
        "ICMPv6 echo request": (ipv6(ICMPV6, icmp(128, 0)),
            replace(host6, src_port=128, protocol=ICMPV6, bytes=56)),
        "ICMPv6 echo reply": (ipv6(ICMPV6, icmp(129, 0)),
            replace(host6, src_port=129, protocol=ICMPV6, bytes=56)),
        "ICMPv6 neighbour solicitation": (ipv6(ICMPV6, icmp(135, 0, bytes(24))),
                                          replace(host6, src_port=135, protocol=ICMPV6, bytes=72)),
        "ICMPv6 packet too big": (ipv6(ICMPV6, icmp(2, 0, SYN6)),
                                  replace(host6, src_port=2, protocol=ICMPV6, bytes=108)),
        "UDP over IPv6": (ipv6(UDP, udp(51000, 53)), replace(IS_UDP4, src=SERVER6, dst=AGENT6, bytes=48)),
        "SCTP over IPv6": (ipv6(SCTP, sctp(1, 2)),
                           replace(host6, src_port=1, dst_port=2, protocol=SCTP, bytes=52)),
    }  # fmt: skip
    return [
        *flags,
        *(Packet(name, ether(TYPE_IPV4, ip), (layer,)) for name, (ip, layer) in rest.items()),
        *(Packet(name, ether(TYPE_IPV6, ip), (layer,)) for name, (ip, layer) in rest6.items()),
    ]


def of_quotes() -> list[Packet]:
    """The agent (or a router on its behalf) says to the server what became of the server's packet."""
    said = Layer(src=AGENT, dst=SERVER, src_port=3, protocol=ICMP, next=NEXT_QUOTE)
    said6 = Layer(src=AGENT6, dst=SERVER6, src_port=1, protocol=ICMPV6, next=NEXT_QUOTE)
    quoted = Layer(src=SERVER, dst=AGENT, src_port=40000, dst_port=6443, protocol=TCP)
    quoted6 = replace(quoted, src=SERVER6, dst=AGENT6)

    def unreachable(code: int, quote: bytes) -> bytes:
        return ether(TYPE_IPV4, ipv4(ICMP, icmp(3, code, quote), AGENT, SERVER))

    def unreachable6(code: int, quote: bytes) -> bytes:
        return ether(TYPE_IPV6, ipv6(ICMPV6, icmp(1, code, quote), AGENT6, SERVER6))

    def says(code: int, size: int) -> Layer:
        return replace(said, dst_port=code, bytes=size, unreachable=1 << code)

    def says6(code: int, size: int) -> Layer:
        return replace(said6, dst_port=code, bytes=size, unreachable=1 << (16 + code))

    late = Layer(src=SERVER, dst=AGENT, protocol=UDP, fragment=LATER, fragment_id=5, fragment_protocol=UDP,
                 fragment_payload=8, fragment_end=24, unreachable=1 << 1)  # fmt: skip
    in_pod = ether(TYPE_IPV4, ipv4(ICMP, icmp(3, 3, ipv4(TCP, tcp(), POD_B, POD_A)), POD_A, POD_B))
    return [
        Packet("host unreachable, 8 bytes of TCP", unreachable(1, SYN4[:28]),
               (says(1, 56), replace(quoted, unreachable=1 << 1))),
        Packet("prohibited, all of TCP", unreachable(13, SYN4),
            (says(13, 68), replace(quoted, unreachable=1 << 13))),
        Packet("code 15", unreachable(15, SYN4), (says(15, 68), replace(quoted, unreachable=1 << 15))),
        Packet("port unreachable, UDP", unreachable(3, ipv4(UDP, udp(51000, 53))),
               (says(3, 56), replace(quoted, src_port=51000, dst_port=53, protocol=UDP, unreachable=1 << 3))),
        Packet("port unreachable, a VXLAN carrier", unreachable(3, OVERLAY[14:]),
               (says(3, 118),
                   replace(quoted, src_port=51000, dst_port=8472, protocol=UDP, unreachable=1 << 3))),
        Packet("unreachable, quoting options", unreachable(0, ipv4(TCP, tcp(), options=bytes(8))),
               (says(0, 76), replace(quoted, unreachable=1 << 0))),
        Packet("unreachable, quoting a later fragment",
            unreachable(1, ipv4(UDP, bytes(8), ident=5, fragment=2)),
               (says(1, 56), late)),
        Packet("unreachable, quoting half a header", unreachable(1, SYN4[:12]),
            (says(1, 40), fails(MALFORMED))),
        Packet("unreachable, quoting no port", unreachable(1, SYN4[:22]), (says(1, 50), fails(MALFORMED))),
        Packet("unreachable, quoting no IP", unreachable(1, bytes(28)), (says(1, 56), fails(NOT_IP))),
        Packet("unreachable, quoting nothing", unreachable(1, b""), (says(1, 28), fails(MALFORMED))),
        Packet("ICMPv6 prohibited, TCP", unreachable6(1, SYN6),
               (says6(1, 108), replace(quoted6, unreachable=1 << 17))),
        Packet("ICMPv6 port unreachable, UDP", unreachable6(4, ipv6(UDP, udp(51000, 53))),
               (says6(4, 96),
                   replace(quoted6, src_port=51000, dst_port=53, protocol=UDP, unreachable=1 << 20))),
        Packet("ICMPv6 unreachable, quoting an extension", unreachable6(0, extensions([OPTIONS, TCP], tcp())),
               (says6(0, 116), replace(quoted6, unreachable=1 << 16))),
        Packet("unreachable inside VXLAN", ether(TYPE_IPV4, ipv4(UDP, udp(51000, 8472, vxlan(in_pod)))),
               (replace(IS_VXLAN, bytes=118),
                replace(IS_VXLAN_POD, src_port=3, dst_port=3, protocol=ICMP, bytes=68, tcp_flags=0, events=0,
                        next=NEXT_QUOTE, next_tunnel=VXLAN, unreachable=1 << 3),
                replace(quoted, src=POD_B, dst=POD_A, tunnel=VXLAN, vni=1, outer_src=AGENT, outer_dst=SERVER,
                        unreachable=1 << 3))),
    ]  # fmt: skip


def of_plain_tunnels() -> list[Packet]:
    def carried(name: str, protocol: int, payload: bytes, *layers: Layer) -> Packet:
        return Packet(name, ether(TYPE_IPV4, ipv4(protocol, payload)), layers)

    by_flags = [
        carried(f"GRE with {name}", PROTOCOL_GRE, gre(TYPE_IPV4, POD_SYN, flags),
            replace(IS_GRE, bytes=64 + 4 * words),
                IS_GRE_POD)
        for name, flags, words in (
            ("checksum", 0x80, 1), ("key", 0x20, 1), ("sequence", 0x10, 1),
            ("checksum, key and sequence", 0xB0, 3),
        )
    ]  # fmt: skip
    pod6 = replace(IS_SYN6, src=POD_A6, dst=POD_B6, outer_src=SERVER, outer_dst=AGENT)
    plain = replace(IS_GRE, next=NEXT_NONE)
    over6 = replace(IS_IPIP, src=SERVER6, dst=AGENT6)
    inside6 = replace(IS_IPIP_POD, outer_src=SERVER6, outer_dst=AGENT6)
    return [
        carried("GRE", PROTOCOL_GRE, gre(TYPE_IPV4, POD_SYN), IS_GRE, IS_GRE_POD),
        *by_flags,
        carried("GRE IPv6", PROTOCOL_GRE, gre(TYPE_IPV6, POD_SYN6), replace(IS_GRE, bytes=84),
                replace(pod6, tunnel=GRE)),
        carried("GRE bridged", PROTOCOL_GRE, gre(TYPE_BRIDGED, POD_FRAME),
                replace(IS_GRE, bytes=78, next=NEXT_ETHERNET), IS_GRE_POD),
        carried("GRE of another type", PROTOCOL_GRE, gre(0x88BE, POD_FRAME), replace(plain, bytes=78)),
        carried("GRE version 1", PROTOCOL_GRE, gre(TYPE_IPV4, POD_SYN, version=1), plain),
        carried("GRE with a source route", PROTOCOL_GRE, gre(TYPE_IPV4, POD_SYN, 0x40), plain),
        carried("GRE of three bytes", PROTOCOL_GRE, b"\0\0\x08", replace(plain, bytes=23)),
        carried("GRE that holds no IP", PROTOCOL_GRE, gre(TYPE_IPV4, bytes(20)), replace(IS_GRE, bytes=44),
                fails(NOT_IP)),
        carried("IPIP", PROTOCOL_IPIP, POD_SYN, IS_IPIP, IS_IPIP_POD),
        carried("6in4", PROTOCOL_IPV6, POD_SYN6, replace(IS_IPIP, protocol=PROTOCOL_IPV6, bytes=80),
                replace(pod6, tunnel=IPIP)),
        carried("IPIP of no byte", PROTOCOL_IPIP, b"", replace(IS_IPIP, bytes=20), fails(MALFORMED)),
        carried("IPIP of a header alone", PROTOCOL_IPIP, POD_SYN[:19], replace(IS_IPIP, bytes=39),
            fails(MALFORMED)),
        Packet("4in6", ether(TYPE_IPV6, ipv6(PROTOCOL_IPIP, POD_SYN)), (replace(over6, bytes=80), inside6)),
        Packet("6in6", ether(TYPE_IPV6, ipv6(PROTOCOL_IPV6, POD_SYN6)),
               (replace(over6, protocol=PROTOCOL_IPV6, bytes=100),
                replace(inside6, src=POD_A6, dst=POD_B6, bytes=60))),
    ]  # fmt: skip


def of_overlays() -> list[Packet]:
    def over(port: int, payload: bytes) -> bytes:
        return ether(TYPE_IPV4, ipv4(UDP, udp(51000, port, payload)))

    def inside(kinds: list[int], payload: bytes) -> bytes:
        return over(8472, vxlan(tags(kinds, payload)))

    plain = replace(IS_UDP4, dst_port=8472, bytes=90)
    no_geneve = replace(IS_UDP4, dst_port=6081, bytes=90)
    big = replace(IS_VXLAN, next_vni=0xABCDEF)
    pod6 = replace(IS_VXLAN_POD, src=POD_A6, dst=POD_B6, bytes=60)
    return [
        Packet("VXLAN on 8472", OVERLAY, (IS_VXLAN, IS_VXLAN_POD)),
        Packet("VXLAN on 4789", over(4789, vxlan(POD_FRAME)),
            (replace(IS_VXLAN, dst_port=4789), IS_VXLAN_POD)),
        Packet("VXLAN of a great VNI", over(8472, vxlan(POD_FRAME, 0xABCDEF)),
               (big, replace(IS_VXLAN_POD, vni=0xABCDEF))),
        Packet("VXLAN without the I flag", over(8472, vxlan(POD_FRAME, flags=0)), (plain,)),
        Packet("VXLAN with a reserved byte set", over(8472, vxlan(POD_FRAME, reserved=1)), (plain,)),
        Packet("VXLAN with a reserved flag set", over(8472, vxlan(POD_FRAME, flags=0x0C)), (plain,)),
        Packet("VXLAN of a group", over(8472, b"\x88\x48\x12\x34" + vxlan(POD_FRAME)[4:]),
               (IS_VXLAN, IS_VXLAN_POD)),
        Packet("VXLAN of a group with a reserved flag set",
               over(8472, b"\x88\x01" + vxlan(POD_FRAME)[2:]), (plain,)),
        Packet("VXLAN with a group and no flag for it",
               over(8472, b"\x08\x00\x12\x34" + vxlan(POD_FRAME)[4:]), (plain,)),
        Packet("VXLAN of seven bytes", over(8472, vxlan(b"")[:7]), (replace(plain, bytes=35),)),
        Packet("VXLAN header alone", over(8472, vxlan(b"")), (replace(IS_VXLAN, bytes=36), fails(MALFORMED))),
        Packet("VXLAN ARP", inside([TYPE_ARP], bytes(28)), (replace(IS_VXLAN, bytes=78), fails(NOT_IP))),
        Packet("VXLAN VLAN", inside([TYPE_VLAN, TYPE_IPV4], POD_SYN),
            (replace(IS_VXLAN, bytes=94), IS_VXLAN_POD)),
        Packet("VXLAN IPv6", inside([TYPE_IPV6], POD_SYN6), (replace(IS_VXLAN, bytes=110), pod6)),
        Packet("VXLAN first fragment", ether(TYPE_IPV4, ipv4(UDP, udp(51000, 8472, vxlan(POD_FRAME)), ident=3,
                                                             fragment=0x2000)),
               (replace(IS_VXLAN, fragment=FIRST, fragment_id=3, fragment_protocol=UDP, fragment_payload=70),
                IS_VXLAN_POD)),
        Packet("VXLAN inner first fragment",
               inside([TYPE_IPV4], ipv4(TCP, tcp(), POD_A, POD_B, ident=4, fragment=0x2000)),
               (IS_VXLAN, replace(IS_VXLAN_POD, fragment=FIRST, fragment_id=4, fragment_protocol=TCP,
                                  fragment_payload=20))),
        Packet("VXLAN over IPv6", ether(TYPE_IPV6, ipv6(UDP, udp(51000, 4789, vxlan(POD_FRAME)))),
               (replace(IS_VXLAN, src=SERVER6, dst=AGENT6, dst_port=4789, bytes=110),
                replace(IS_VXLAN_POD, outer_src=SERVER6, outer_dst=AGENT6))),
        Packet("Geneve", over(6081, geneve(POD_FRAME)), (IS_GENEVE, IS_GENEVE_POD)),
        Packet("Geneve with options", over(6081, geneve(POD_FRAME, options=bytes(12))),
               (replace(IS_GENEVE, bytes=102), IS_GENEVE_POD)),
        Packet("Geneve IPv4", over(6081, geneve(POD_SYN, TYPE_IPV4)),
               (replace(IS_GENEVE, bytes=76, next=NEXT_IP), IS_GENEVE_POD)),
        Packet("Geneve IPv6", over(6081, geneve(POD_SYN6, TYPE_IPV6)),
               (replace(IS_GENEVE, bytes=96, next=NEXT_IP), replace(pod6, tunnel=GENEVE))),
        Packet("Geneve of another type", over(6081, geneve(POD_FRAME, 0x88B5)), (no_geneve,)),
        Packet("Geneve with both flags", over(6081, b"\0\xc0" + geneve(POD_FRAME)[2:]),
               (IS_GENEVE, IS_GENEVE_POD)),
        Packet("Geneve with a reserved flag set", over(6081, b"\0\x01" + geneve(POD_FRAME)[2:]),
               (no_geneve,)),
        Packet("Geneve with a reserved byte set", over(6081, geneve(POD_FRAME)[:7] + b"\1" + POD_FRAME),
               (no_geneve,)),
        Packet("Geneve version 1", over(6081, geneve(POD_FRAME, version=1)), (no_geneve,)),
        Packet("Geneve of seven bytes", over(6081, geneve(b"")[:7]), (replace(no_geneve, bytes=35),)),
        Packet("Geneve options beyond the packet", over(6081, b"\x3f" + geneve(POD_FRAME)[1:]),
               (IS_GENEVE, fails(MALFORMED))),
    ]  # fmt: skip


def of_nested_tunnels() -> list[Packet]:
    """Outermost: server to agent; in the middle: pod A to pod B; innermost: agent to server."""
    syn = ipv4(TCP, tcp(), AGENT, SERVER)
    innermost = replace(IS_SYN4, src=AGENT, dst=SERVER, outer_src=POD_A, outer_dst=POD_B)
    middle_vxlan = ipv4(UDP, udp(52000, 4789, vxlan(ether(TYPE_IPV4, syn), 2)), POD_A, POD_B)
    is_middle_vxlan = replace(IS_VXLAN, src=POD_A, dst=POD_B, src_port=52000, dst_port=4789, next_vni=2,
                              outer_src=SERVER, outer_dst=AGENT)  # fmt: skip
    middle_ipip = ipv4(PROTOCOL_IPIP, syn, POD_A, POD_B)
    is_middle_ipip = replace(IS_IPIP, src=POD_A, dst=POD_B, outer_src=SERVER, outer_dst=AGENT)
    deepest = ipv4(PROTOCOL_IPIP, ipv4(PROTOCOL_IPIP, syn, AGENT, SERVER), POD_A, POD_B)
    return [
        Packet("VXLAN in VXLAN",
            ether(TYPE_IPV4, ipv4(UDP, udp(51000, 8472, vxlan(ether(TYPE_IPV4, middle_vxlan))))),
               (replace(IS_VXLAN, bytes=140), replace(is_middle_vxlan, tunnel=VXLAN, vni=1),
                replace(innermost, tunnel=VXLAN, vni=2))),
        Packet("IPIP in VXLAN",
            ether(TYPE_IPV4, ipv4(UDP, udp(51000, 8472, vxlan(ether(TYPE_IPV4, middle_ipip))))),
               (replace(IS_VXLAN, bytes=110), replace(is_middle_ipip, tunnel=VXLAN, vni=1),
                replace(innermost, tunnel=IPIP))),
        Packet("VXLAN in IPIP", ether(TYPE_IPV4, ipv4(PROTOCOL_IPIP, middle_vxlan)),
               (replace(IS_IPIP, bytes=110), replace(is_middle_vxlan, tunnel=IPIP),
                replace(innermost, tunnel=VXLAN, vni=2))),
        Packet("IPIP in GRE", ether(TYPE_IPV4, ipv4(PROTOCOL_GRE, gre(TYPE_IPV4, middle_ipip))),
               (replace(IS_GRE, bytes=84), replace(is_middle_ipip, tunnel=GRE),
                   replace(innermost, tunnel=IPIP))),
        Packet("a fourth IP header", ether(TYPE_IPV4, ipv4(PROTOCOL_IPIP, deepest)),
               (replace(IS_IPIP, bytes=100), replace(is_middle_ipip, bytes=80, tunnel=IPIP),
                replace(IS_IPIP, src=AGENT, dst=SERVER, bytes=60, tunnel=IPIP, outer_src=POD_A,
                    outer_dst=POD_B))),
    ]  # fmt: skip


def of_cuts() -> list[Packet]:
    """One cut in each header; the numbers are offsets into the frame."""
    cut_off = fails(TRUNCATED)
    no_flags = replace(IS_SYN4, tcp_flags=0, events=0)
    syn, syn6 = ether(TYPE_IPV4, SYN4), ether(TYPE_IPV6, SYN6)
    gone = replace(IS_VXLAN, events=0, next=NEXT_CUT, next_tunnel=NO_TUNNEL, next_vni=0)
    gre_frame = ether(TYPE_IPV4, ipv4(PROTOCOL_GRE, gre(TYPE_IPV4, POD_SYN, 0xB0)))
    geneve_frame = ether(TYPE_IPV4, ipv4(UDP, udp(51000, 6081, geneve(POD_FRAME, options=bytes(12)))))
    ipip_frame = ether(TYPE_IPV4, ipv4(PROTOCOL_IPIP, POD_SYN))
    quote = ether(TYPE_IPV4, ipv4(ICMP, icmp(3, 3, SYN4), AGENT, SERVER))
    is_said = Layer(src=AGENT, dst=SERVER, src_port=3, dst_port=3, protocol=ICMP, bytes=68, next=NEXT_QUOTE,
                    unreachable=1 << 3)  # fmt: skip
    optioned = ether(TYPE_IPV4, ipv4(TCP, tcp(), options=bytes(40)))
    fragment = ether(TYPE_IPV4, ipv4(UDP, udp(51000, 53, bytes(72)), ident=2, fragment=0x2000))
    chain = ether(TYPE_IPV6, extensions([HOP_BY_HOP, OPTIONS, TCP], tcp()))
    fragmented = ether(TYPE_IPV6, ipv6(FRAGMENT, fragment6(UDP, udp(51000, 53))))
    authenticated = ether(TYPE_IPV4, ipv4(AH, ah(TCP, tcp())))
    session = ether(TYPE_PPPOE, pppoe(b"\0\x21" + SYN4))
    return [
        cut("cut before Ethernet", syn, 0, cut_off),
        cut("cut in Ethernet", syn, 13, cut_off),
        cut("cut before IPv4", syn, 14, cut_off),
        cut("cut in IPv4", syn, 33, cut_off),
        cut("cut in the TCP ports", syn, 37, cut_off),
        cut("cut behind the TCP ports", syn, 38, no_flags),
        cut("cut before the TCP flags", syn, 47, no_flags),
        cut("cut behind the TCP flags", syn, 48, IS_SYN4),
        cut("cut in the IPv4 options", optioned, 60, cut_off),
        cut("cut in a VLAN tag", tags([TYPE_VLAN, TYPE_IPV4], SYN4), 17, cut_off),
        cut("cut in a second VLAN tag", tags([TYPE_QINQ, TYPE_VLAN, TYPE_IPV4], SYN4), 20, cut_off),
        cut("cut in SNAP", ieee802_3(snap(TYPE_IPV4, SYN4)), 21, cut_off),
        cut("cut in PPPoE", session, 19, cut_off),
        cut("cut before the PPP protocol", session, 20, cut_off),
        cut("cut in the PPP protocol", session, 21, cut_off),
        cut("cut in an MPLS label", ether(TYPE_MPLS, mpls(2, SYN4)), 21, cut_off),
        cut("cut behind the MPLS labels", ether(TYPE_MPLS, mpls(2, SYN4)), 22, cut_off),
        cut("cut in SLL", sll(0, TYPE_IPV4, SYN4), 15, cut_off, link=SLL),
        cut("cut in SLL2", sll2(0, TYPE_IPV4, SYN4), 19, cut_off, link=SLL2),
        cut("cut in NULL", b"\x02\0\0\0" + SYN4, 3, cut_off, link=NULL),
        cut("cut in LOOP", b"\0\0\0\x02" + SYN4, 3, cut_off, link=LOOP),
        cut("cut in PPP", b"\xff\x03\0\x21" + SYN4, 1, cut_off, link=PPP),
        cut("cut behind the HDLC address", b"\xff\x03\0\x21" + SYN4, 2, cut_off, link=PPP_HDLC),
        cut("cut before RAW", SYN4, 0, cut_off, link=RAW),
        cut("cut in RAW", SYN6, 39, cut_off, link=RAW),
        cut("cut in IPv6", syn6, 53, cut_off),
        cut("cut in the ports over IPv6", syn6, 57, cut_off),
        cut("cut in hop-by-hop options", chain, 55, cut_off),
        cut("cut in destination options", chain, 63, cut_off),
        cut("cut behind the extension headers", chain, 70, cut_off),
        cut("cut in an IPv6 fragment header", fragmented, 61, cut_off),
        cut("cut in AH", authenticated, 35, cut_off),
        cut("cut in AH's integrity value", authenticated, 50, cut_off),
        cut("cut in the UDP ports", OVERLAY, 36, cut_off),
        cut("cut in a fragment's payload", fragment, 42,
            replace(IS_UDP4, bytes=100, fragment=FIRST, fragment_id=2, fragment_protocol=UDP,
                fragment_payload=80)),
        cut("cut in ICMP", quote, 35, cut_off),
        cut("cut behind ICMP's type and code", quote, 36, is_said, cut_off),
        cut("cut in a quote's IPv4", quote, 61, is_said, cut_off),
        cut("cut in a quote's ports", quote, 65, is_said, cut_off),
        cut("cut behind a quote's ports", quote, 66, is_said,
            replace(IS_SYN4, bytes=0, tcp_flags=0, events=0, unreachable=1 << 3)),
        cut("cut behind UDP", OVERLAY, 42, gone),
        cut("cut in VXLAN", OVERLAY, 49, gone),
        cut("cut behind VXLAN", OVERLAY, 50, IS_VXLAN, cut_off),
        cut("cut in the inner Ethernet", OVERLAY, 63, IS_VXLAN, cut_off),
        cut("cut in the inner IPv4", OVERLAY, 80, IS_VXLAN, cut_off),
        cut("cut in the inner ports", OVERLAY, 87, IS_VXLAN, cut_off),
        cut("cut behind the inner ports", OVERLAY, 88, IS_VXLAN,
            replace(IS_VXLAN_POD, tcp_flags=0, events=0)),
        cut("cut in Geneve", geneve_frame, 49, replace(gone, dst_port=6081, bytes=102)),
        cut("cut in Geneve's options", geneve_frame, 55, replace(IS_GENEVE, bytes=102), cut_off),
        cut("cut in GRE", gre_frame, 37, replace(IS_GRE, bytes=76, next=NEXT_CUT, next_tunnel=NO_TUNNEL)),
        cut("cut in GRE's key", gre_frame, 44, replace(IS_GRE, bytes=76), cut_off),
        cut("cut before the inner IP of IPIP", ipip_frame, 34, IS_IPIP, cut_off),
        cut("cut in the inner IP of IPIP", ipip_frame, 53, IS_IPIP, cut_off),
        cut("cut an ARP", ether(TYPE_ARP, bytes(28)), 14, fails(NOT_IP)),
        cut("cut 802.11", bytes(60), 0, fails(UNSUPPORTED), link=IEEE802_11),
    ]  # fmt: skip


PACKETS: tuple[Packet, ...] = (
    *on_ethernet(),
    *on_other_links(),
    *of_ipv4(),
    *of_ipv6(),
    *of_transport(),
    *of_quotes(),
    *of_plain_tunnels(),
    *of_overlays(),
    *of_nested_tunnels(),
    *of_cuts(),
)
