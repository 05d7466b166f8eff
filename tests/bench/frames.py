"""Arrays of header fields → bytes of Ethernet frames. Rule: knows formats, not why a frame is sent; no file.

Each frame shape is one packed NumPy record: pcap record header, Ethernet, network, transport (for VXLAN, all
again). Payload is zeros, so checksums over headers are the true ones. Formats: RFC 768, 791, 7323, 7348,
8200, 9293.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.population import TCP, UDP, Addresses, Bytes, Ints

Rows = NDArray[np.void]

RECORD_SIZE, ETHERNET_SIZE = 16, 14
VNI = 1
MAC_PREFIX = (0x02, 0x00, 0x00, 0x00)
SYN, ACK, PSH = 0x02, 0x10, 0x08

RECORD = np.dtype([("sec", "<u4"), ("usec", "<u4"), ("caplen", "<u4"), ("length", "<u4")])
ETHERNET = np.dtype([("dst", "u1", 6), ("src", "u1", 6), ("type", ">u2")])
IPV4 = np.dtype(
    [
        *(
            ("version", "u1"),
            ("tos", "u1"),
            ("length", ">u2"),
            ("id", ">u2"),
            ("fragment", ">u2"),
            ("ttl", "u1"),
        ),
        *(("protocol", "u1"), ("checksum", ">u2"), ("src", "u1", 4), ("dst", "u1", 4)),
    ]
)
IPV6 = np.dtype(
    [
        ("version", ">u4"),
        ("length", ">u2"),
        ("protocol", "u1"),
        ("ttl", "u1"),
        ("src", "u1", 16),
        ("dst", "u1", 16),
    ]
)
TCP_HEADER = np.dtype(
    [
        ("src", ">u2"),
        ("dst", ">u2"),
        ("seq", ">u4"),
        ("ack", ">u4"),
        ("offset", "u1"),
        ("flags", "u1"),
        ("window", ">u2"),
        ("checksum", ">u2"),
        ("urgent", ">u2"),
        ("options", ">u4"),
        ("tsval", ">u4"),
        ("tsecr", ">u4"),
    ]
)
UDP_HEADER = np.dtype([("src", ">u2"), ("dst", ">u2"), ("length", ">u2"), ("checksum", ">u2")])
VXLAN = np.dtype([("flags", ">u4"), ("vni", ">u4")])

NETWORK = {4: IPV4, 6: IPV6}
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
TRANSPORT = {TCP: TCP_HEADER, UDP: UDP_HEADER}
ADDRESS_SPAN = {4: (12, 20), 6: (8, 40)}  # of source and destination in the network header


@dataclass(frozen=True)
class Frames:
    """What one shape's frames say; int64, shape (frames,), the two-sided ones (frames, 2) [sender, receiver].

    ``seconds``, ``micros``: capture time; ``length``: bytes of the frame on the wire; ``serial``: IPv4
    identification; ``host``/``port``: of the outer layer; ``pod``/``pod_port``: inside a tunnel.
    """

    seconds: Ints
    micros: Ints
    length: Ints
    serial: Ints
    host: Ints
    port: Ints
    pod: Ints
    pod_port: Ints
    seq: Ints
    ack: Ints
    flags: Ints
    clock: Ints


def shape(family: int, protocol: int, *, tunnel: bool) -> np.dtype[np.void]:
    """The record of one frame shape, from pcap record header to the last header byte."""
    layers = [("ethernet", ETHERNET), ("network", NETWORK[family]), ("transport", TRANSPORT[protocol])]
    if not tunnel:
        return np.dtype([("record", RECORD), *layers])
    carrier = [("o_ethernet", ETHERNET), ("o_network", NETWORK[family]), ("o_transport", UDP_HEADER)]
    return np.dtype([("record", RECORD), *carrier, ("vxlan", VXLAN), *layers])


def header_length(family: int, protocol: int, *, tunnel: bool) -> int:
    """Bytes of the shortest frame of this shape (no payload)."""
    return shape(family, protocol, tunnel=tunnel).itemsize - RECORD_SIZE


def as_bytes(rows: Rows) -> Bytes:
    """The rows as uint8 (rows, itemsize), the same memory."""
    return rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)


def _words(table: Bytes, begin: int, end: int) -> Ints:
    return np.asarray(table[:, begin:end].view(">u2").sum(axis=1, dtype=np.int64))


def _checksum(total: Ints) -> Ints:
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _start(rows: Rows, layer: str) -> int:
    fields = rows.dtype.fields
    assert fields is not None
    return int(fields[layer][1])


def _ethernet(rows: Rows, layer: str, family: int, host: Ints) -> None:
    for side, column in (("src", 0), ("dst", 1)):
        mac = rows[layer][side]
        mac[:, :4] = MAC_PREFIX
        mac[:, 4], mac[:, 5] = host[:, column] >> 8, host[:, column] & 0xFF
    rows[layer]["type"] = ETHERTYPE[family]


def _network(
    rows: Rows, layer: str, family: int, protocol: int, *, ends: tuple[Bytes, Bytes], size: Ints, serial: Ints
) -> None:
    """Fill an IP header; ``size`` is the IP packet's length in bytes."""
    header = rows[layer]
    header["src"], header["dst"] = ends
    header["protocol"], header["ttl"] = protocol, 64
    if family == 6:
        header["version"], header["length"] = 6 << 28, size - IPV6.itemsize
        return
    header["version"], header["length"] = 0x45, size
    header["id"], header["fragment"] = serial & 0xFFFF, 0x4000
    begin = _start(rows, layer)
    header["checksum"] = _checksum(_words(as_bytes(rows), begin, begin + IPV4.itemsize))


def _transport_checksum(rows: Rows, prefix: str, family: int, protocol: int, size: Ints) -> None:
    """Over pseudo header and all bytes from the transport header on (payload: zeros); ``size`` is theirs."""
    table, begin = as_bytes(rows), _start(rows, f"{prefix}transport")
    first, last = (_start(rows, f"{prefix}network") + edge for edge in ADDRESS_SPAN[family])
    pseudo = _words(table, first, last) + protocol + size
    value = _checksum(pseudo + _words(table, begin, table.shape[1]))
    rows[f"{prefix}transport"]["checksum"] = np.where((value == 0) & (protocol == UDP), 0xFFFF, value)


def _tcp(rows: Rows, frames: Frames, port: Ints) -> None:
    header = rows["transport"]
    header["src"], header["dst"] = port[:, 0], port[:, 1]
    header["seq"], header["ack"], header["flags"] = frames.seq, frames.ack, frames.flags
    header["offset"], header["window"] = TCP_HEADER.itemsize // 4 << 4, 0xFFFF
    header["options"] = 0x0101080A  # NOP, NOP, timestamps of 10 bytes
    header["tsval"], header["tsecr"] = frames.clock, np.where(frames.ack > 0, frames.clock - 1, 0)


def _udp(rows: Rows, layer: str, port: Ints, size: Ints) -> None:
    header = rows[layer]
    header["src"], header["dst"], header["length"] = port[:, 0], port[:, 1], size


def _layers(
    rows: Rows, frames: Frames, family: int, protocol: int, *, book: Bytes, host: Ints, port: Ints, size: Ints
) -> None:
    """Ethernet, network and transport of the innermost layer; ``size``: bytes of its IP packet."""
    payload = size - NETWORK[family].itemsize
    _ethernet(rows, "ethernet", family, host)
    ends = (book[host[:, 0]], book[host[:, 1]])
    _network(rows, "network", family, protocol, ends=ends, size=size, serial=frames.serial)
    if protocol == TCP:
        _tcp(rows, frames, port)
    else:
        _udp(rows, "transport", port, payload)
    _transport_checksum(rows, "", family, protocol, payload)


def build(
    frames: Frames, family: int, protocol: int, *, tunnel: bool, addresses: Addresses, snaplen: int
) -> Rows:
    """Headers of one shape's frames, ready to lie in a pcap file: (frames,) records of ``shape(...)``."""
    rows = np.zeros(len(frames.length), shape(family, protocol, tunnel=tunnel))
    book = addresses.v4 if family == 4 else addresses.v6
    size = frames.length - ETHERNET_SIZE
    rows["record"]["sec"], rows["record"]["usec"] = frames.seconds, frames.micros
    rows["record"]["length"], rows["record"]["caplen"] = frames.length, np.minimum(frames.length, snaplen)
    if not tunnel:
        _layers(rows, frames, family, protocol, book=book, host=frames.host, port=frames.port, size=size)
        return rows
    carried = size - NETWORK[family].itemsize
    inner = carried - UDP_HEADER.itemsize - VXLAN.itemsize - ETHERNET_SIZE
    _layers(rows, frames, family, protocol, book=book, host=frames.pod, port=frames.pod_port, size=inner)
    rows["vxlan"]["flags"], rows["vxlan"]["vni"] = 0x08000000, VNI << 8
    _ethernet(rows, "o_ethernet", family, frames.host)
    ends = (book[frames.host[:, 0]], book[frames.host[:, 1]])
    _network(rows, "o_network", family, UDP, ends=ends, size=size, serial=frames.serial)
    _udp(rows, "o_transport", frames.port, carried)
    _transport_checksum(rows, "o_", family, UDP, carried)
    return rows
