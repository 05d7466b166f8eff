"""What other programs say of a capture, in the words of one-way rows.

Rule: this file asks tshark and reads Zeek's logs; of the analyzer it knows the row's dtype and how an address
is written, and it compares nothing. Nothing that it says of a packet comes from the analyzer.
"""

from __future__ import annotations

import subprocess
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from analyzer.flows import TUNNELS, format_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from analyzer.rows import OneWay, Rows

ICMP, IPIP, TCP, UDP, IPV6, GRE, ICMPV6, SCTP = 1, 4, 6, 17, 41, 47, 58, 132


class Key(NamedTuple):
    """One direction of a 5-tuple, in its tunnel. ICMP: type and code stand as the ports."""

    src: str
    dst: str
    src_port: int
    dst_port: int
    protocol: int
    tunnel: str = ""
    vni: int = 0
    outer_src: str = ""
    outer_dst: str = ""


class Count(NamedTuple):
    """Packets and their IP bytes."""

    packets: int
    bytes: int


Counts = dict[Key, Count]


def summed(pairs: Iterable[tuple[Key, Count]]) -> Counts:
    """Counts of equal keys added up."""
    packets: Counter[Key] = Counter()
    octets: Counter[Key] = Counter()
    for key, count in pairs:
        packets[key] += count.packets
        octets[key] += count.bytes
    return {key: Count(packets[key], octets[key]) for key in packets}


# ---- what the analyzer counted ----


def one_way_counts(one_way: OneWay) -> Counts:
    """One-way rows summed over observers. Rows that only say what an ICMP message quoted have no packets and
    are left out.
    """
    return summed(
        (_key_of(row), Count(int(row["packets"]), int(row["bytes"]))) for row in _happened(one_way.rows)
    )


def quoted_keys(one_way: OneWay) -> set[Key]:
    """The flows that an ICMP destination-unreachable quoted."""
    return {_key_of(row) for row in one_way.rows if row["unreachable"]}


def _happened(rows: Rows) -> Rows:
    return rows[rows["packets"] > 0]


def _key_of(row: Rows) -> Key:
    tunnelled = bool(row["tunnel"])
    return Key(
        format_address(row["src"].tobytes()),
        format_address(row["dst"].tobytes()),
        int(row["src_port"]),
        int(row["dst_port"]),
        int(row["protocol"]),
        TUNNELS[row["tunnel"]],
        int(row["vni"]),
        format_address(row["outer_src"].tobytes()) if tunnelled else "",
        format_address(row["outer_dst"].tobytes()) if tunnelled else "",
    )


# ---- tshark ----

TSHARK_OPTIONS = (
    "-n",
    *("-o", "ip.defragment:FALSE"),
    *("-o", "ipv6.defragment:FALSE"),
    *("-o", "tcp.desegment_tcp_streams:FALSE"),
    *("-d", "udp.port==8472,vxlan"),
)
TSHARK_FIELDS = (
    "frame.protocols", "frame.len",
    "ip.src", "ip.dst", "ip.proto", "ip.len", "ip.id", "ip.frag_offset", "ip.flags.mf",
    "ipv6.src", "ipv6.dst", "ipv6.nxt", "ipv6.plen",
    "ipv6.hopopts.nxt", "ipv6.routing.nxt", "ipv6.dstopts.nxt", "ah.next_header",
    "ipv6.fraghdr.nxt", "ipv6.fraghdr.offset", "ipv6.fraghdr.more", "ipv6.fraghdr.ident",
    "tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport", "sctp.srcport", "sctp.dstport",
    "icmp.type", "icmp.code", "icmpv6.type", "icmpv6.code", "vxlan.vni", "geneve.vni",
)  # fmt: skip
_EXTENSIONS = {
    "ipv6.hopopts": "ipv6.hopopts.nxt",
    "ipv6.routing": "ipv6.routing.nxt",
    "ipv6.dstopts": "ipv6.dstopts.nxt",
    "ah": "ah.next_header",
}
_PORTS = {
    "tcp": ("tcp.srcport", "tcp.dstport"),
    "udp": ("udp.srcport", "udp.dstport"),
    "sctp": ("sctp.srcport", "sctp.dstport"),
    "icmp": ("icmp.type", "icmp.code"),
    "icmpv6": ("icmpv6.type", "icmpv6.code"),
}
_TUNNEL_IDS = {"vxlan": "vxlan.vni", "geneve": "geneve.vni", "gre": ""}
_UNREACHABLE = {"icmp": 3, "icmpv6": 1}


@dataclass(frozen=True)
class Layer:
    """One IP packet as tshark dissects it: of a frame, or of a tunnel within it. `datagram`: what tells
    fragments' datagrams apart.
    """

    key: Key
    bytes: int
    ports: bool = False
    datagram: tuple[str, str, int, str] | None = None
    later: bool = False


@dataclass
class Dissected:
    """What tshark says of one file. `frames`: how many it read. `errors`: its standard error, without what it
    says to root.
    """

    frames: int = 0
    counts: Counts = field(default_factory=dict)
    quoted: set[Key] = field(default_factory=set)
    errors: str = ""


def tshark(path: Path) -> Dissected:
    """Runs tshark over a capture, without reassembly and name resolution; sums the packets of each key."""
    fields = [word for name in TSHARK_FIELDS for word in ("-e", name)]
    done = subprocess.run(
        ["tshark", *TSHARK_OPTIONS, "-r", path, "-T", "fields", "-E", "occurrence=a", *fields],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if line and not line.startswith("Running as user")]
    return _dissected(done.stdout.splitlines(), "\n".join(errors))


def _dissected(lines: list[str], errors: str) -> Dissected:
    layers: list[Layer] = []
    quoted: set[Key] = set()
    for line in lines:
        walk = _Walk(line)
        layers += walk.layers()
        quoted |= walk.quoted
    whole = _with_ports_of_first_fragments(layers)
    return Dissected(
        len(lines), summed((layer.key, Count(1, layer.bytes)) for layer in whole), quoted, errors
    )


def _with_ports_of_first_fragments(layers: list[Layer]) -> Iterator[Layer]:
    """Later fragments with the ports and the protocol of the first one, wherever in the file it stands."""
    first = {layer.datagram: layer.key for layer in layers if layer.datagram and not layer.later}
    for layer in layers:
        known = first.get(layer.datagram) if layer.datagram and layer.later else None
        if known is None:
            yield layer
            continue
        key = layer.key._replace(src_port=known.src_port, dst_port=known.dst_port, protocol=known.protocol)
        yield replace(layer, key=key)


class _Walk:
    """Reads one line of fields: `frame.protocols` gives the order of the headers, each header takes the next
    value of its fields.

    It ends at the transport header, unless a tunnel follows that the analyzer decodes too; and at ICMP, since
    what stands in there is a quote, no packet.
    """

    def __init__(self, line: str) -> None:
        values = dict(zip(TSHARK_FIELDS, line.split("\t"), strict=True))
        self.tokens = deque(token for token in values.pop("frame.protocols").split(":") if token)
        self.frame_length = int(values.pop("frame.len"))
        self.values = defaultdict(
            deque, {name: deque(text.split(",")) for name, text in values.items() if text}
        )
        self.quoted: set[Key] = set()

    def _next(self, name: str) -> str:
        return self.values[name].popleft()

    def _number(self, name: str) -> int:
        text = self._next(name)
        return {"True": 1, "False": 0}.get(text) if text in ("True", "False") else int(text, 0)  # type: ignore[return-value]

    def layers(self) -> list[Layer]:
        found: list[Layer] = []
        tunnel, vni = "", 0
        while self._to_ip(inside=bool(found)):
            layer = self._ip()
            if found:
                outer = found[-1].key
                key = layer.key._replace(tunnel=tunnel, vni=vni, outer_src=outer.src, outer_dst=outer.dst)
                layer = replace(layer, key=key)
            found.append(layer)
            token = self.tokens[0] if self.tokens else ""
            if token in _UNREACHABLE and layer.key.src_port == _UNREACHABLE[token]:
                self._quote(layer)
                break
            if token in ("ip", "ipv6") and layer.key.protocol in (IPIP, IPV6):
                tunnel, vni = "ipip", 0
                continue
            if token in _PORTS:
                self.tokens.popleft()
                token = self.tokens[0] if layer.key.protocol == UDP and self.tokens else ""
            if token not in _TUNNEL_IDS:
                break
            self.tokens.popleft()
            tunnel, vni = token, self._number(_TUNNEL_IDS[token]) if _TUNNEL_IDS[token] else 0
        return found

    def _to_ip(self, *, inside: bool) -> bool:
        """Steps over link layers; within a tunnel only over Ethernet's."""
        while self.tokens and self.tokens[0] not in ("ip", "ipv6"):
            if inside and self.tokens[0] not in ("eth", "ethertype", "vlan", "ieee8021ad"):
                return False
            self.tokens.popleft()
        return bool(self.tokens)

    def _ip(self) -> Layer:
        layer = self._ipv4() if self.tokens.popleft() == "ip" else self._ipv6()
        layer = self._extensions(layer)
        if layer.later or not self.tokens or self.tokens[0] not in _PORTS:
            return layer
        names = _PORTS[self.tokens[0]]
        if not self.values[names[0]]:
            return layer
        src, dst = (self._number(name) for name in names)
        return replace(layer, key=layer.key._replace(src_port=src, dst_port=dst), ports=True)

    def _ipv4(self) -> Layer:
        protocol, identity = self._number("ip.proto"), self._next("ip.id")
        src, dst, length = self._next("ip.src"), self._next("ip.dst"), self._number("ip.len")
        offset, more = self._number("ip.frag_offset"), self._number("ip.flags.mf")
        datagram = (src, dst, protocol, identity) if offset or more else None
        return Layer(Key(src, dst, 0, 0, protocol), length, datagram=datagram, later=bool(offset))

    def _ipv6(self) -> Layer:
        protocol, length = self._number("ipv6.nxt"), self._number("ipv6.plen")
        src, dst = self._next("ipv6.src"), self._next("ipv6.dst")
        return Layer(Key(src, dst, 0, 0, protocol), length + 40 if length else 0)

    def _extensions(self, layer: Layer) -> Layer:
        while self.tokens and (self.tokens[0] in _EXTENSIONS or self.tokens[0] == "ipv6.fraghdr"):
            name = _EXTENSIONS.get(self.tokens.popleft())
            if name is None:
                layer = self._fragment(layer)
            elif self.values[name]:
                layer = replace(layer, key=layer.key._replace(protocol=self._number(name)))
        return layer

    def _fragment(self, layer: Layer) -> Layer:
        protocol, offset = self._number("ipv6.fraghdr.nxt"), self._number("ipv6.fraghdr.offset")
        more, identity = self._number("ipv6.fraghdr.more"), self._next("ipv6.fraghdr.ident")
        datagram = (layer.key.src, layer.key.dst, 0, identity) if offset or more else None
        key = layer.key._replace(protocol=protocol)
        return replace(layer, key=key, datagram=datagram, later=bool(offset))

    def _quote(self, carrier: Layer) -> None:
        """The datagram within an ICMP destination-unreachable; in its tunnel it travelled the other way."""
        self.tokens.popleft()
        if not self.tokens or self.tokens[0] not in ("ip", "ipv6"):
            return
        key, outer = self._ip().key, carrier.key
        self.quoted.add(key._replace(
            tunnel=outer.tunnel, vni=outer.vni, outer_src=outer.outer_dst, outer_dst=outer.outer_src
        ))  # fmt: skip


# ---- Zeek ----


class Connection(NamedTuple):
    """One line of conn.log. `parents`: uids of the connections that carried it. `history`: begins with S
    where Zeek saw the SYN.
    """

    uid: str
    orig: str
    orig_port: int
    resp: str
    resp_port: int
    protocol: int
    orig_count: Count
    resp_count: Count
    parents: tuple[str, ...]
    service: str
    history: str


def zeek_connections(path: Path) -> list[Connection]:
    """Reads Zeek's conn.log."""
    lines = path.read_text(encoding="utf-8").splitlines()
    names = next(line for line in lines if line.startswith("#fields")).split("\t")[1:]
    rows = [
        dict(zip(names, line.split("\t"), strict=True)) for line in lines if line and not line.startswith("#")
    ]
    return [_connection(row) for row in rows]


def _connection(row: dict[str, str]) -> Connection:
    orig, resp = (Count(int(row[f"{side}_pkts"]), int(row[f"{side}_ip_bytes"])) for side in ("orig", "resp"))
    parents = row["tunnel_parents"]
    return Connection(
        row["uid"], row["id.orig_h"], int(row["id.orig_p"]), row["id.resp_h"], int(row["id.resp_p"]),
        int(row["ip_proto"]),
        orig, resp, () if parents == "-" else tuple(parents.split(",")), row["service"], row["history"],
    )  # fmt: skip
