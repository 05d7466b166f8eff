"""A population → a pcap file and the truth about it. Rule: same settings, same bytes, in chunks of any size.

Memory: 4 bytes a frame (the order of the flows) and one chunk; frames themselves are never all in memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from bench import frames as fr
from bench.population import TCP, UDP, VXLAN_PORT, Ints, Population, default_mix, populate, scramble

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MAGIC_MICROS, LINKTYPE_ETHERNET = 0xA1B2C3D4, 1
UNCUT = 262144
START = 1_700_000_100  # a multiple of 300 s: no peer's rotation falls into a short capture
SPREADS = ("uniform", "zipf")


@dataclass(frozen=True)
class Settings:
    """What a capture is made from. ``size``: bytes of a data frame; ``spread``: share by which they stray.

    ``snaplen`` 0 keeps frames whole; ``rate`` in frames a second; ``weights`` names frames-per-flow: SPREADS.
    """

    frames: int = 4_000_000
    flows: int = 50_000
    size: int = 450
    spread: float = 0.0
    snaplen: int = 0
    seed: int = 1
    nodes: int = 100
    ipv6: float = 0.1
    rate: int = 100_000
    weights: str = "uniform"
    mix: dict[str, float] = field(default_factory=default_mix)


@dataclass(frozen=True)
class Truth:
    """What the capture holds. ``packets``, ``ip_bytes``: int64 (flows, 2) [client, server], outermost."""

    settings: Settings
    population: Population
    packets: Ints
    ip_bytes: Ints
    file_bytes: int

    def outer(self) -> dict[tuple[str, str, int, int, int], tuple[int, int]]:
        """(source, destination, source port, destination port, protocol) → packets, IP bytes."""
        return self._table(_outer_keys(self.population), np.ones(len(self.population), bool), self.ip_bytes)

    def inner(self) -> dict[tuple[str, str, int, int, int], tuple[int, int]]:
        """The same for what runs inside tunnels."""
        carriage = np.array([_carriage(family) for family in self.population.family])
        return self._table(
            _inner_keys(self.population),
            self.population.tunnel,
            self.ip_bytes - self.packets * carriage[:, None],
        )

    def _table(
        self, keys: Ints, flows: NDArray[np.bool_], ip_bytes: Ints
    ) -> dict[tuple[str, str, int, int, int], tuple[int, int]]:
        rows, packets, octets = _grouped(keys[flows], self.packets[flows], ip_bytes[flows])
        book = self.population.addresses
        return {
            (book.text(family, src), book.text(family, dst), sport, dport, protocol): (count, size)
            for (family, protocol, src, dst, sport, dport), count, size in zip(
                rows.tolist(), packets.tolist(), octets.tolist(), strict=True
            )
        }

    def summary(self) -> dict[str, Any]:
        """Totals for people and for comparison, ready for JSON."""
        tunnel = self.population.tunnel
        return {
            "frames": int(self.packets.sum()),
            "file_bytes": self.file_bytes,
            "ip_bytes": int(self.ip_bytes.sum()),
            "client_server_flows": len(self.population),
            "one_way_tuples": len(np.unique(_outer_keys(self.population).reshape(-1, 6), axis=0)),
            "tunnel_frames": int(self.packets[tunnel].sum()),
            "tunnel_one_way_tuples": 2 * int(tunnel.sum()),
            "tcp_frames": int(self.packets[(self.population.protocol == TCP) & ~tunnel].sum()),
            "ipv6_frames": int(self.packets[self.population.family == 6].sum()),
            "seconds": self.settings.frames / self.settings.rate,
        }


def _carriage(family: int) -> int:
    """IP bytes of a tunnel datagram that are not the inner IP packet."""
    return fr.header_length(family, TCP, tunnel=True) - fr.header_length(family, TCP, tunnel=False)


def _keys(population: Population, protocol: Ints, host: Ints, source: Ints, target: Ints) -> Ints:
    """int64 (flows, 2, 6): family, protocol, hosts and ports of both directions."""
    both = [population.family, protocol]
    out = [*both, host[:, 0], host[:, 1], source[:, 0], target[:, 0]]
    back = [*both, host[:, 1], host[:, 0], source[:, 1], target[:, 1]]
    return np.stack([np.stack(out, axis=1), np.stack(back, axis=1)], axis=1)


def _outer_keys(population: Population) -> Ints:
    tunnel = population.tunnel[:, None]
    source = np.where(tunnel, population.carrier_port, population.port)
    target = np.where(tunnel, VXLAN_PORT, population.port[:, ::-1])
    protocol = np.where(population.tunnel, UDP, population.protocol)
    return _keys(population, protocol, population.host, source, target)


def _inner_keys(population: Population) -> Ints:
    return _keys(population, population.protocol, population.pod, population.port, population.port[:, ::-1])


def _grouped(keys: Ints, packets: Ints, ip_bytes: Ints) -> tuple[Ints, Ints, Ints]:
    """Distinct one-way keys with their sums: tunnel carriers of several flows may share one."""
    rows, place = np.unique(keys.reshape(-1, 6), axis=0, return_inverse=True)
    sums = np.zeros((2, len(rows)), np.int64)
    np.add.at(sums[0], place.reshape(-1), packets.reshape(-1))
    np.add.at(sums[1], place.reshape(-1), ip_bytes.reshape(-1))
    return rows, sums[0], sums[1]


def _order(settings: Settings) -> NDArray[np.int32]:
    """Flow number of each frame: every flow at least twice (its opening), the rest by weight, shuffled."""
    rng = np.random.default_rng([settings.seed, 1])
    weight = np.ones(settings.flows)
    if settings.weights == "zipf":
        weight = 1.0 / rng.permutation(np.arange(1, settings.flows + 1))
    count = 2 + rng.multinomial(settings.frames - 2 * settings.flows, weight / weight.sum())
    order = np.repeat(np.arange(settings.flows, dtype=np.int32), count)
    rng.shuffle(order)
    return order


class _Conversations:
    """Where each flow stands: frames so far and the next sequence number of both sides."""

    def __init__(self, population: Population, settings: Settings) -> None:
        self.seen = np.zeros(len(population), np.int64)
        start = scramble(np.arange(2 * len(population)), settings.seed + 2) >> np.uint64(33)
        self.next_seq = start.astype(np.int64).reshape(-1, 2)

    def ordinals(self, flow: Ints) -> tuple[Ints, Ints]:
        """Number of each frame within its flow (0 the first), and the order that sorts the chunk by flow."""
        by_flow = np.argsort(flow, kind="stable")
        grouped = flow[by_flow]
        first = np.concatenate([[True], grouped[1:] != grouped[:-1]])
        begin = np.maximum.accumulate(np.where(first, np.arange(len(flow)), 0))
        ordinal = np.empty(len(flow), np.int64)
        ordinal[by_flow] = self.seen[grouped] + np.arange(len(flow)) - begin
        np.maximum.at(self.seen, flow, ordinal + 1)
        return ordinal, by_flow

    def sequence(self, flow: Ints, by_flow: Ints, side: Ints, advance: Ints) -> Ints:
        """Sequence numbers before each frame: int64 (frames, 2) [client, server]."""
        grouped = flow[by_flow]
        first = np.concatenate([[True], grouped[1:] != grouped[:-1]])
        begin = np.maximum.accumulate(np.where(first, np.arange(len(flow)), 0))
        spent = np.where(side[by_flow, None] == [0, 1], advance[by_flow, None], 0)
        before = np.cumsum(spent, axis=0) - spent
        result = np.empty((len(flow), 2), np.int64)
        result[by_flow] = self.next_seq[grouped] + before - before[begin]
        last = np.flatnonzero(np.concatenate([first[1:], [True]]))
        self.next_seq[grouped[last]] += (before + spent)[last] - before[begin[last]]
        return result


def _header_lengths(population: Population) -> Ints:
    lengths = {
        (family, protocol, tunnel): fr.header_length(family, protocol, tunnel=bool(tunnel))
        for family in (4, 6)
        for protocol in (TCP, UDP)
        for tunnel in (0, 1)
    }
    table = np.zeros((7, 18, 2), np.int64)
    for place, length in lengths.items():
        table[place] = length
    return np.asarray(table[population.family, population.protocol, population.tunnel.astype(np.int64)])


def _lengths(settings: Settings, header: Ints, luck: NDArray[np.uint64], bare: NDArray[np.bool_]) -> Ints:
    """Frame lengths: the size, or uniform around it, one byte of payload at least; openings of TCP: none."""
    low = round(settings.size * (1 - settings.spread))
    span = 2 * (settings.size - low) + 1
    length = low + (luck % np.uint64(span)).astype(np.int64)
    return np.asarray(np.where(bare, header, np.maximum(length, header + 1)))


@dataclass(frozen=True)
class _Chunk:
    """A run of frames: which flow each belongs to, its direction (0 from the client), and what it says."""

    flow: Ints
    side: Ints
    frames: fr.Frames


class _Writer:
    """Turns the order of flows into bytes, a chunk at a time."""

    def __init__(self, population: Population, settings: Settings) -> None:
        self.population, self.settings = population, settings
        self.talk = _Conversations(population, settings)
        self.header = _header_lengths(population)
        self.snaplen = settings.snaplen or UNCUT

    def chunk(self, number: Ints, flow: Ints) -> _Chunk:
        """The frames of these numbers (0 the first of the file)."""
        ordinal, by_flow = self.talk.ordinals(flow)
        luck = scramble(number, self.settings.seed + 3)
        side = np.where(ordinal < 2, ordinal, (luck >> np.uint64(63)).astype(np.int64))
        opening = (ordinal < 2) & (self.population.protocol[flow] == TCP)
        stray = (luck >> np.uint64(20)) % np.uint64(1 << 40)
        length = _lengths(self.settings, self.header[flow], stray, opening)
        seq = self.talk.sequence(flow, by_flow, side, np.where(opening, 1, length - self.header[flow]))
        gap = max(1_000_000 // self.settings.rate, 1)
        micros = number * 1_000_000 // self.settings.rate + (luck % np.uint64(gap)).astype(np.int64)
        frames = self._frames(number, flow, side=side, ordinal=ordinal, length=length, seq=seq, micros=micros)
        return _Chunk(flow, side, frames)

    def _frames(
        self, number: Ints, flow: Ints, *, side: Ints, ordinal: Ints, length: Ints, seq: Ints, micros: Ints
    ) -> fr.Frames:
        people = self.population
        place = np.arange(len(flow))
        sender = np.stack([side, 1 - side], axis=1)
        ports = people.port[flow[:, None], sender]
        carrier = np.stack([people.carrier_port[flow, side], np.full(len(flow), VXLAN_PORT)], axis=1)
        return fr.Frames(
            seconds=START + micros // 1_000_000,
            micros=micros % 1_000_000,
            length=length,
            serial=number & 0xFFFF,
            host=people.host[flow[:, None], sender],
            port=np.where(people.tunnel[flow, None], carrier, ports),
            pod=people.pod[flow[:, None], sender],
            pod_port=ports,
            seq=seq[place, side] & 0xFFFFFFFF,
            ack=np.where(ordinal == 0, 0, seq[place, 1 - side] & 0xFFFFFFFF),
            flags=np.array([fr.SYN, fr.SYN | fr.ACK, fr.ACK | fr.PSH])[np.minimum(ordinal, 2)],
            clock=micros // 1000 + 1,
        )

    def lay_out(self, chunk: _Chunk) -> NDArray[np.uint8]:
        """The chunk's pcap records, one after the other."""
        stride = fr.RECORD_SIZE + np.minimum(chunk.frames.length, self.snaplen)
        offset = np.cumsum(stride) - stride
        buffer = np.zeros(int(stride.sum()), np.uint8)
        for rows, (family, protocol, tunnel) in self._shapes(chunk.flow):
            part = fr.Frames(**{name: column[rows] for name, column in vars(chunk.frames).items()})
            built = fr.build(
                part,
                family,
                protocol,
                tunnel=tunnel,
                addresses=self.population.addresses,
                snaplen=self.snaplen,
            )
            _place(buffer, offset[rows], fr.as_bytes(built)[:, : fr.RECORD_SIZE + self.snaplen])
        return buffer

    def _shapes(self, flow: Ints) -> Iterator[tuple[Ints, tuple[int, int, bool]]]:
        people = self.population
        code = (people.family * 512 + people.protocol * 2 + people.tunnel)[flow]
        for value in np.unique(code).tolist():
            yield np.flatnonzero(code == value), (value // 512, value % 512 // 2, bool(value % 2))


def _place(buffer: NDArray[np.uint8], offset: Ints, cells: NDArray[np.uint8]) -> None:
    """Copy each row to its offset: with an item of that width at every byte of the buffer, one assignment."""
    width = cells.shape[1]
    windows: NDArray[np.void] = np.ndarray((len(buffer) - width + 1,), f"V{width}", buffer, 0, (1,))
    windows[offset] = np.ascontiguousarray(cells).view(f"V{width}")[:, 0]


def _check(settings: Settings) -> None:
    if settings.frames < 2 * settings.flows:
        raise ValueError(
            f"{settings.flows} flows need at least {2 * settings.flows} frames, not {settings.frames}"
        )
    if settings.flows < 1 or settings.weights not in SPREADS or not 0 <= settings.spread < 1:
        raise ValueError(f"flows ≥ 1, 0 ≤ spread < 1, weights one of {', '.join(SPREADS)}")


def write(out: BinaryIO, settings: Settings, *, chunk: int = 100_000) -> Truth:
    """Write the capture to ``out``, ``chunk`` frames at a time. ValueError: settings that cannot be."""
    _check(settings)
    population = populate(
        settings.flows, seed=settings.seed, mix=settings.mix, nodes=settings.nodes, ipv6=settings.ipv6
    )
    order, writer = _order(settings), _Writer(population, settings)
    packets, ip_bytes = np.zeros(2 * settings.flows, np.int64), np.zeros(2 * settings.flows, np.int64)
    written = out.write(
        struct.pack("<IHHiIII", MAGIC_MICROS, 2, 4, 0, 0, settings.snaplen or UNCUT, LINKTYPE_ETHERNET)
    )
    for begin in range(0, settings.frames, chunk):
        flow = order[begin : begin + chunk].astype(np.int64)
        part = writer.chunk(np.arange(begin, begin + len(flow)), flow)
        written += out.write(writer.lay_out(part).data)
        place = 2 * part.flow + part.side
        packets += np.bincount(place, minlength=len(packets))
        size = part.frames.length - fr.ETHERNET_SIZE
        ip_bytes += np.bincount(place, weights=size, minlength=len(packets)).astype(np.int64)
    return Truth(settings, population, packets.reshape(-1, 2), ip_bytes.reshape(-1, 2), written)


def write_file(path: Path, settings: Settings, *, chunk: int = 100_000) -> Truth:
    """``write`` to a file."""
    with path.open("wb") as out:
        return write(out, settings, chunk=chunk)
