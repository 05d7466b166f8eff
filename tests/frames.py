"""Frames, capture files and tables for tests. Rule: bytes and rows are made here by hand; nothing is judged
here and nothing expected.

Headers come from packets.py; here they become conversations (lists of frames) and files of every kind that
the reader knows.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import lz4.frame
import numpy as np
import pandas as pd
import zstandard
from hypothesis import strategies as st
from packets import (
    ACK,
    ETHERNET,
    FIN,
    ICMP,
    ICMPV6,
    RST,
    SLL2,
    SYN,
    TCP,
    TYPE_ARP,
    TYPE_IPV4,
    TYPE_IPV6,
    UDP,
    ether,
    fragment6,
    icmp,
    ipv4,
    ipv6,
    sll2,
    tcp,
    udp,
    vxlan,
)

from analyzer.capture.offline import read_capture
from analyzer.flows import COLUMNS
from analyzer.rows import COUNTERS, KEY, Coverage, OneWay, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

NS = 10**9
#: 2025-01-01T00:00:00Z, and a fraction that no coarse resolution can hold
EPOCH = 1_735_689_600 * NS
SYN_ACK = SYN | ACK
PUSH = 0x08 | ACK


@dataclass(frozen=True)
class Frame:
    """One record: what was captured, when (ns), its length on the wire, the number of its interface."""

    data: bytes
    time: int = EPOCH
    wire: int = -1
    interface: int = 0

    @property
    def length(self) -> int:
        """On the wire; as captured where nothing else is said."""
        return len(self.data) if self.wire < 0 else self.wire


# ---- packets: each function is one IP packet in an Ethernet frame ----


def on_wire(packet: bytes) -> bytes:
    """An Ethernet frame around an IP packet."""
    return ether(TYPE_IPV6 if packet[0] >> 4 == 6 else TYPE_IPV4, packet)


def packet_of(protocol: int, payload: bytes, src: str, dst: str) -> bytes:
    """An IP packet of the family that its addresses have."""
    return ipv6(protocol, payload, src, dst) if ":" in src else ipv4(protocol, payload, src, dst)


def segment(src: tuple[str, int], dst: tuple[str, int], flags: int, size: int = 0) -> bytes:
    """A TCP segment, as a frame."""
    return on_wire(packet_of(TCP, tcp(flags, bytes(size), src[1], dst[1]), src[0], dst[0]))


def datagram(src: tuple[str, int], dst: tuple[str, int], payload: bytes = b"") -> bytes:
    """A UDP datagram, as a frame."""
    return on_wire(packet_of(UDP, udp(src[1], dst[1], payload), src[0], dst[0]))


def message(src: str, dst: str, kind: int, code: int = 0, payload: bytes = bytes(8)) -> bytes:
    """An ICMP or ICMPv6 message, as a frame."""
    protocol = ICMPV6 if ":" in src else ICMP
    return on_wire(packet_of(protocol, icmp(kind, code, payload), src, dst))


def unreachable(by: str, quoted: bytes, code: int) -> bytes:
    """What `by` says of a frame that it did not let through; IPv4 by type 3, IPv6 by type 1."""
    packet = quoted[14:]
    if packet[0] >> 4 == 6:
        sender = str(_address(packet[8:24]))
        return message(by, sender, 1, code, packet[:120])
    return message(by, str(_address(packet[12:16])), 3, code, packet[:60])


def _address(packed: bytes) -> object:
    import ipaddress

    return ipaddress.ip_address(packed)


def carried(
    frame: bytes, src: str, dst: str, *, source_port: int = 51000, vni: int = 1, port: int = 8472
) -> bytes:
    """A frame inside VXLAN."""
    return datagram((src, source_port), (dst, port), vxlan(frame, vni))


def arp() -> bytes:
    """No IP."""
    return ether(TYPE_ARP, bytes(28))


def fragments(
    src: tuple[str, int], dst: tuple[str, int], size: int, ident: int, each: int = 64
) -> list[bytes]:
    """A UDP datagram in fragments of `each` bytes of payload, in order. The header's checksum stays 0."""
    whole = udp(src[1], dst[1], bytes(size))
    pieces = [(at, whole[at : at + each], at + each < len(whole)) for at in range(0, len(whole), each)]
    if ":" in src[0]:
        return [
            on_wire(ipv6(44, fragment6(UDP, piece, at, more=more, ident=ident), src[0], dst[0]))
            for at, piece, more in pieces
        ]
    return [
        on_wire(ipv4(UDP, piece, src[0], dst[0], ident=ident, fragment=at // 8 | (0x2000 if more else 0)))
        for at, piece, more in pieces
    ]


def handshake(client: tuple[str, int], server: tuple[str, int]) -> list[bytes]:
    """SYN, SYN-ACK, ACK."""
    return [segment(client, server, SYN), segment(server, client, SYN_ACK), segment(client, server, ACK)]


def talk(client: tuple[str, int], server: tuple[str, int], rounds: int = 1) -> list[bytes]:
    """A handshake, requests and answers, and the goodbyes."""
    middle = [
        frame
        for _ in range(rounds)
        for frame in (segment(client, server, PUSH, 100), segment(server, client, PUSH, 1000))
    ]
    end = [
        segment(client, server, FIN | ACK),
        segment(server, client, FIN | ACK),
        segment(client, server, ACK),
    ]
    return [*handshake(client, server), *middle, *end]


def refusal(client: tuple[str, int], server: tuple[str, int]) -> list[bytes]:
    """A SYN, and a reset for an answer."""
    return [segment(client, server, SYN), segment(server, client, RST | ACK)]


def timed(
    frames: Iterable[bytes], start: int = EPOCH, step: int = 1_000_000, interface: int = 0
) -> list[Frame]:
    """Frames `step` ns apart."""
    return [Frame(data, start + n * step, interface=interface) for n, data in enumerate(frames)]


def on_any(frame: Frame, ifindex: int, packet_type: int = 0) -> Frame:
    """The same as `tcpdump -i any` writes it (SLL2); packet type 4 is what the host itself sent."""
    kind = struct.unpack(">H", frame.data[12:14])[0]
    return replace(frame, data=sll2(packet_type, kind, frame.data[14:], ifindex))


# ---- capture files ----

PCAP_MAGIC = {"us": 0xA1B2C3D4, "ns": 0xA1B23C4D, "kuznetzov": 0xA1B2CD34}


def pcap(
    frames: Sequence[Frame], kind: str = "us", order: str = "<", link: int = ETHERNET, snaplen: int = 262144
) -> bytes:
    """A pcap file. The Kuznetzov variant has an interface, a protocol and a packet type for each record."""
    head = struct.pack(order + "IHHiIII", PCAP_MAGIC[kind], 2, 4, 0, 0, snaplen, link)
    unit = 1 if kind == "ns" else 1000
    extra = kind == "kuznetzov"
    records = [
        struct.pack(order + "IIII", f.time // NS, f.time % NS // unit, len(f.data), f.length)
        + (struct.pack(order + "IHBB", f.interface, 0x0800, 0, 0) if extra else b"")
        + f.data
        for f in frames
    ]
    return b"".join((head, *records))


@dataclass(frozen=True)
class Interface:
    """A pcapng interface. `resolution`: the byte of if_tsresol; `offset`: if_tsoffset, in seconds."""

    name: str = ""
    resolution: int = 6
    offset: int = 0
    link: int = ETHERNET
    snaplen: int = 0

    @property
    def units(self) -> int:
        """To how many parts a second is divided."""
        return int(2 ** (self.resolution & 0x7F) if self.resolution & 0x80 else 10**self.resolution)

    def stamp(self, time: int) -> int:
        """ns since the epoch in this interface's units, rounded down."""
        return (time - self.offset * NS) * self.units // NS

    def kept(self, time: int) -> int:
        """What is left of a time, in ns, once it was written and read."""
        return self.stamp(time) * NS // self.units + self.offset * NS


def block(order: str, kind: int, body: bytes) -> bytes:
    """A pcapng block; its length stands at both ends."""
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def option(order: str, code: int, value: bytes) -> bytes:
    """A pcapng option, padded."""
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def _interface_block(order: str, interface: Interface) -> bytes:
    options = option(order, 9, bytes([interface.resolution]))
    if interface.name:
        options += option(order, 2, interface.name.encode())
    if interface.offset:
        options += option(order, 14, struct.pack(order + "q", interface.offset))
    fixed = struct.pack(order + "HHI", interface.link, 0, interface.snaplen)
    return block(order, 1, fixed + options + option(order, 0, b""))


def _enhanced(order: str, frame: Frame, interface: Interface) -> bytes:
    stamp = interface.stamp(frame.time)
    fixed = struct.pack(
        order + "IIIII", frame.interface, stamp >> 32, stamp & 0xFFFFFFFF, len(frame.data), frame.length
    )
    return block(order, 6, fixed + frame.data)


def _obsolete(order: str, frame: Frame, interface: Interface) -> bytes:
    stamp = interface.stamp(frame.time)
    head = struct.pack(order + "HH", frame.interface, 0xFFFF)
    fixed = struct.pack(order + "IIII", stamp >> 32, stamp & 0xFFFFFFFF, len(frame.data), frame.length)
    return block(order, 2, head + fixed + frame.data)


def _simple(order: str, frame: Frame, _: Interface) -> bytes:
    return block(order, 3, struct.pack(order + "I", frame.length) + frame.data)


PACKET_BLOCKS: dict[str, Callable[[str, Frame, Interface], bytes]] = {
    "enhanced": _enhanced,
    "obsolete": _obsolete,
    "simple": _simple,
}


def statistics(order: str, interface: int, dropped: int, by_system: int = 0) -> bytes:
    """An interface statistics block: frames that the interface and the operating system dropped."""
    options = option(order, 5, struct.pack(order + "Q", dropped)) + option(
        order, 7, struct.pack(order + "Q", by_system)
    )
    return block(order, 5, struct.pack(order + "III", interface, 0, 0) + options + option(order, 0, b""))


def pcapng(
    frames: Sequence[Frame],
    order: str = "<",
    interfaces: Sequence[Interface] = (Interface(),),
    kind: str = "enhanced",
    more: bytes = b"",
) -> bytes:
    """One pcapng section; sections may stand one after the other in a file. `more`: blocks for its end."""
    section = block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    described = [_interface_block(order, i) for i in interfaces]
    packets = [PACKET_BLOCKS[kind](order, f, interfaces[f.interface]) for f in frames]
    return b"".join((section, *described, *packets, more))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lambda data: cast("bytes", lz4.frame.compress(data)),
}


def read(data: bytes, source: str = "capture.pcap", interval: int = 0) -> OneWay:
    """A capture file's bytes, by way of a file and the reader."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return read_capture(file.name, source, interval)


class Pipe:
    """Stands for standard input: a stream of bytes that cannot be mapped."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def save(folder: Path, name: str, data: bytes) -> Path:
    """A file in a folder."""
    path = folder / name
    path.write_bytes(data)
    return path


# ---- traffic: one conversation of each kind; `n` tells conversations apart ----

NODES = ("10.10.0.11", "10.10.0.12", "10.10.0.21", "fd00:10::11", "fd00:10::21")
PODS = ("10.42.0.5", "10.42.1.6")


def client_of(n: int) -> tuple[str, int]:
    return NODES[n % 2], 40000 + n


def server_of(n: int) -> tuple[str, int]:
    return NODES[2], (6443, 9345, 10250, 2379)[n % 4]


def six(n: int) -> tuple[tuple[str, int], tuple[str, int]]:
    return (NODES[3], 41000 + n), (NODES[4], 10250)


def echo(n: int) -> list[bytes]:
    a, b = NODES[n % 2], NODES[2]
    return [message(a, b, 8), message(b, a, 0), message(NODES[3], NODES[4], 128)]


def quoted(n: int) -> list[bytes]:
    asked = datagram(client_of(n), (NODES[2], 53), b"?")
    asked6 = segment(*six(n), SYN)
    return [
        asked,
        unreachable(NODES[2], asked, (3, 4, 13)[n % 3]),
        asked6,
        unreachable(NODES[4], asked6, 1),
    ]


def tunnelled(n: int) -> list[bytes]:
    inner = talk((PODS[0], 42000 + n), (PODS[1], 80))
    ways = [(NODES[0], NODES[2]) if frame[29] == 5 else (NODES[2], NODES[0]) for frame in inner]
    return [
        carried(f, *way, source_port=50000 + i % 3)
        for i, (f, way) in enumerate(zip(inner, ways, strict=True))
    ]


def tunnelled_fragments(n: int) -> list[bytes]:
    pieces = fragments((PODS[0], 43000 + n), (PODS[1], 53), 150, n)
    return [carried(piece, NODES[0], NODES[2]) for piece in pieces]


def odd(n: int) -> list[bytes]:
    """What ends in the ledger: no IP, a header that contradicts itself, fragments without their first one."""
    lost = fragments(client_of(n), (NODES[2], 5000), 150, 20000 + n)[1:]
    return [arp(), ether(TYPE_IPV4, ipv4(TCP, tcp(), version=5)), *lost]


CONVERSATIONS: dict[str, Callable[[int], list[bytes]]] = {
    "tcp": lambda n: talk(client_of(n), server_of(n)),
    "tcp6": lambda n: talk(*six(n)),
    "refused": lambda n: refusal(client_of(n), server_of(n)),
    "udp": lambda n: [
        datagram(client_of(n), (NODES[2], 53), b"?"),
        datagram((NODES[2], 53), client_of(n)),
    ],
    "echo": echo,
    "unreachable": quoted,
    "fragments": lambda n: fragments(client_of(n), (NODES[2], 5000), 150, n),
    "fragments6": lambda n: fragments(six(n)[0], (NODES[4], 5000), 150, n),
    "vxlan": tunnelled,
    "vxlan fragments": tunnelled_fragments,
    "odd": odd,
}
STEPS = (0, 1, 1001, 1_000_000, 300_000_001, 900_000_000)  # below 54 s in all: no datagram is given up


@st.composite
def traffic(draw: st.DrawFn, of: Sequence[str] = tuple(CONVERSATIONS)) -> list[Frame]:
    """Conversations woven into each other; those of fragments out of order."""
    kinds = draw(st.lists(st.sampled_from(of), min_size=1, max_size=6))
    conversations = []
    for n, kind in enumerate(kinds):
        frames = CONVERSATIONS[kind](n)
        conversations.append(
            draw(st.permutations(frames)) if "fragments" in kind or kind == "odd" else frames
        )
    turns = [n for n, frames in enumerate(conversations) for _ in frames]
    rest = [iter(frames) for frames in conversations]
    time, woven = EPOCH, []
    for n in draw(st.permutations(turns))[:60]:
        time += draw(st.sampled_from(STEPS))
        woven.append(Frame(next(rest[n]), time, interface=n % 2))
    return woven


TWO_INTERFACES = (Interface("eth0", 9), Interface("cni0", 9))
#: each writes frames as a file: one observer, or one for each interface
FILES: dict[str, Callable[[Sequence[Frame]], bytes]] = {
    "pcap": lambda frames: pcap(frames, "ns"),
    "pcapng": lambda frames: pcapng(frames, "<", TWO_INTERFACES),
    "any": lambda frames: pcap(
        [on_any(f, 2 + f.interface, 4 * f.interface) for f in frames], "ns", link=SLL2
    ),
}


# ---- one-way rows as plain values ----

_KEY_NAMES = tuple(name for name in KEY.names or () if name not in ("interface", "reserved"))
_COUNTER_NAMES = tuple(name for name in COUNTERS.names or () if name != "reserved_counters")


def plain(one_way: OneWay) -> dict[tuple[object, ...], tuple[object, ...]]:
    """Key (observer, 5-tuple, tunnel, direction, interval) → counters. No key may be there twice."""
    result: dict[tuple[object, ...], tuple[object, ...]] = {}
    for row in one_way.rows:
        key = (
            one_way.observers[int(row["interface"])],
            *(row[name].tobytes() if row.dtype[name].kind == "V" else int(row[name]) for name in _KEY_NAMES),
            int(row["interval"]),
        )
        assert key not in result, "two rows of one key"
        result[key] = tuple(int(row[name]) for name in _COUNTER_NAMES)
    return result


def ledgers(one_way: OneWay) -> dict[str, Coverage]:
    """The coverage by source."""
    return {ledger.source: ledger for ledger in one_way.coverage}


def packets_by_ends(one_way: OneWay) -> dict[tuple[object, ...], int]:
    """(source port, destination port, protocol, tunnel) → packets."""
    names = ("src_port", "dst_port", "protocol", "tunnel")
    result: dict[tuple[object, ...], int] = {}
    for row in one_way.rows:
        key = tuple(int(row[name]) for name in names)
        result[key] = result.get(key, 0) + int(row["packets"])
    return result


def shifted(one_way: OneWay, by: int) -> OneWay:
    """The same with its frame numbers as they are where `by` frames come before."""

    def later(rows: Rows) -> Rows:
        rows = rows.copy()
        rows["first_frame"][rows["first_frame"] > 0] += np.uint64(by)
        return rows

    return replace(one_way, rows=later(one_way.rows), fragments=later(one_way.fragments))


def shuffled(one_way: OneWay, seed: int) -> OneWay:
    """The same rows in another order."""
    order = list(range(len(one_way.rows)))
    random.Random(seed).shuffle(order)  # noqa: S311 a seed, so that a fault can be had again
    return replace(one_way, rows=one_way.rows[order])


# ---- flow tables by hand ----


def flow(client: str, server: str, port: int = 6443, protocol: str = "tcp", **changes: Any) -> dict[str, Any]:
    """A row of the flow table: an answered connection, unless `changes` say otherwise."""
    row: dict[str, Any] = {
        "source": "capture.pcap",
        "witnesses": "",
        "client": client,
        "client_port": 40000,
        "server": server,
        "server_port": port,
        "protocol": protocol,
        "tunnel": "",
        "vni": 0,
        "outer_client": "",
        "outer_server": "",
        "start": EPOCH,
        "end": -1,
        "packets_out": 6,
        "packets_in": 5,
        "bytes_out": 600,
        "bytes_in": 5000,
        "tcp_flags_out": 0x1B,
        "tcp_flags_in": 0x1B,
        "outcome": "answered",
        "direction_by": "syn",
        "first_frame": 1,
        "process": None,
        "pid": None,
        "pod": None,
    } | changes
    row["end"] = row["start"] + NS if row["end"] == -1 else row["end"]
    row["witnesses"] = row["witnesses"] or row["source"]
    return row


def failed(
    client: str, server: str, port: int = 6443, protocol: str = "tcp", **changes: Any
) -> dict[str, Any]:
    """A row of the flow table: three attempts over three seconds, and no answer."""
    silent = {
        "packets_out": 3,
        "bytes_out": 180,
        "packets_in": 0,
        "bytes_in": 0,
        "tcp_flags_out": SYN,
        "tcp_flags_in": 0,
        "outcome": "unanswered",
        "end": int(changes.get("start", EPOCH)) + 3 * NS,
    }
    return flow(client, server, port, protocol, **(silent | changes))


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows of :func:`flow` as the flow table that `pair()` would return; the text columns are categorical."""
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    numbers = ("packets_out", "packets_in", "bytes_out", "bytes_in", "first_frame")
    small = ("client_port", "server_port", "tcp_flags_out", "tcp_flags_in")
    times = ("start", "end")
    casts: dict[str, Any] = {name: frame[name].astype("uint64") for name in numbers}
    casts |= {name: frame[name].astype("uint16") for name in small} | {"vni": frame["vni"].astype("uint32")}
    casts |= {name: pd.to_datetime(frame[name], unit="ns", utc=True).dt.as_unit("ns") for name in times}
    casts |= {"pid": frame["pid"].astype("Int64")}
    texts = [name for name in COLUMNS if name not in casts]
    casts |= {name: frame[name].astype("category") for name in texts}
    return frame.assign(**casts)


def same_table(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal in values and order; categories may be numbered otherwise."""
    a, b = (t.astype({name: object for name in t if t[name].dtype == "category"}) for t in (one, other))
    pd.testing.assert_frame_equal(a, b)
