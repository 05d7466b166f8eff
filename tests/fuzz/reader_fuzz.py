"""Feeds damaged captures to a reader built with sanitizers, and says what must hold whatever is in them.

Rule: this file runs alone, in an interpreter with libasan loaded first, and imports nothing of the package:
the reader comes from the path given. A fault that a sanitizer sees ends the process, one that is seen here
raises. Either way the input stays in the file that --keep names.

    LD_PRELOAD=$(gcc -print-file-name=libasan.so) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \\
        python tests/fuzz/reader_fuzz.py --reader build/_reader.so --seed 1 --inputs 3000 --keep last-input
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import importlib.util
import os
import random
import struct
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

import lz4.frame
import zstandard

HERE = Path(__file__).resolve().parent
sys.path.insert(0, os.fspath(HERE.parent))

from packets import PACKETS, Packet  # noqa: E402 this file is run, not imported

PUBLIC = HERE.parent.parent.parent / "shared" / "captures" / "public"
SEED_BYTES_MAX = 64 << 10  # of a public capture: many small inputs find more than few large ones
EDGES = (0, 1, 3, 4, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
ROW_SIZE, ROW_TUNNEL, ROW_PACKETS = 136, 77, 88  # bpf/flow.h, struct flow_row
RESULTS = ("flow", "not_ip", "truncated", "malformed", "unsupported", "fragment")

# ---- good captures ----

PCAP_MAGICS = {"<": (0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34), ">": (0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34)}


def pcap(packets: Sequence[Packet], order: str, variant: int) -> bytes:
    """Variants: microseconds, nanoseconds, Kuznetzov. All frames get the first packet's link type."""
    magic = PCAP_MAGICS[order][variant]
    parts = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 262144, packets[0].link)]
    for i, packet in enumerate(packets):
        parts.append(struct.pack(f"{order}IIII", 1_700_000_000 + i * 20, i, len(packet.data), packet.wire))
        if variant == 2:
            parts.append(struct.pack(f"{order}IHBB", 3, 0x0800, i % 5, 0))
        parts.append(packet.data)
    return b"".join(parts)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    total = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + total + body + total


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def pcapng(packets: Sequence[Packet], order: str, chance: random.Random) -> bytes:
    """One section; an interface for each link type; packets as enhanced, obsolete or simple blocks."""
    links = sorted({packet.link for packet in packets})
    parts = [block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))]
    for link in links:
        options = option(order, 2, b"eth\xff0") + option(
            order, 9, bytes([chance.choice((3, 6, 9, 20, 0x8A, 0xFF))])
        )
        options += option(order, 14, struct.pack(f"{order}q", chance.choice((0, -5, 1 << 40)))) + bytes(4)
        parts.append(block(order, 1, struct.pack(f"{order}HHI", link, 0, 262144) + options))
    for i, packet in enumerate(packets):
        number, sizes = links.index(packet.link), (len(packet.data), packet.wire)
        data = packet.data + bytes(-len(packet.data) % 4)
        match chance.randrange(6):
            case 0:
                fields = struct.pack(f"{order}HHIIII", number, 2, 0, i, *sizes)
                parts.append(block(order, 2, fields + data))
            case 1 if packet.link == links[0] and packet.wire == len(packet.data):
                parts.append(block(order, 3, struct.pack(f"{order}I", packet.wire) + data))
            case _:
                drops = option(order, 4, struct.pack(f"{order}Q", i)) + bytes(4)
                fields = struct.pack(f"{order}IIIII", number, 0x6000, i, *sizes)
                parts.append(block(order, 6, fields + data + drops))
    statistics = (
        struct.pack(f"{order}III", 0, 0, 0) + option(order, 5, struct.pack(f"{order}Q", 9)) + bytes(4)
    )
    parts.append(block(order, 5, statistics))
    return b"".join(parts)


def table_capture(chance: random.Random) -> bytes:
    packets = chance.choices(PACKETS, k=chance.randint(1, 24))
    order = chance.choice("<>")
    if chance.random() < 0.5:
        return pcapng(packets, order, chance)
    return pcap(packets, order, chance.randrange(3))


def public_captures() -> list[bytes]:
    if not PUBLIC.is_dir():
        return []
    files = [path.read_bytes() for path in sorted(PUBLIC.iterdir()) if path.is_file()]
    return [content[:SEED_BYTES_MAX] for content in files]


# ---- damage ----

Damage = Callable[[bytearray, random.Random], None]


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_early(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(min(len(data), 128))] = chance.randrange(256)


def set_word(data: bytearray, chance: random.Random) -> None:
    """An edge value where a 16- or 32-bit field may stand, in either byte order."""
    size = chance.choice((2, 4))
    at = chance.randrange(len(data)) & ~1
    if at + size <= len(data):
        value = chance.choice(EDGES) & ((1 << 8 * size) - 1)
        data[at : at + size] = value.to_bytes(size, chance.choice(("little", "big")))


def cut_end(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def cut_out(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randint(1, 64)]


def repeat(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.randint(1, 256)]


def put_in(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:at] = chance.randbytes(chance.randint(1, 16))


DAMAGES: tuple[Damage, ...] = (
    flip,
    flip,
    flip_early,
    set_word,
    set_word,
    set_word,
    cut_end,
    cut_out,
    repeat,
    put_in,
)


def damaged(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """A capture of the packet table or a public one, damaged in up to four ways; one in sixteen is whole."""
    source = chance.choice(seeds) if seeds and chance.random() < 0.3 else table_capture(chance)
    data = bytearray(source)
    for _ in range(chance.randint(1, 4) if chance.randrange(16) else 0):
        if data:
            chance.choice(DAMAGES)(data, chance)
    return bytes(data)


# ---- reading, and what must hold ----


def exact(data: bytes) -> Any:
    """A buffer without the byte that ``bytes`` keeps behind its end: it would hide a read of one too many."""
    return (ctypes.c_uint8 * len(data)).from_buffer_copy(data)


def read(
    module: Any, data: bytes, cuts: Sequence[int], seed: int, interval: int, batch: int = 0
) -> tuple[Any, ...]:
    """Feeds the capture as a stream whose buffer ends at each of ``cuts`` in turn; all that it says. With a
    `batch` another thread counts, so many packets at a time.
    """
    reader = module.Reader(seed, interval)
    if batch:
        reader.count_beside(batch)
    for begin, end in zip([0, *cuts], cuts, strict=False):
        reader.consume(exact(data[begin:end]))
        so_far = reader.ledger()
        if not so_far["fault"] and so_far["offset"] + so_far["rest"] != end:
            raise AssertionError(f"of {end} bytes {so_far['offset']} were read, {so_far['rest']} kept")
    ledger, fragments, interfaces = reader.ledger(), bytes(reader.fragments()), reader.interfaces()
    return bytes(reader.take_rows()), ledger, fragments, interfaces


PACKERS: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("gzip", lambda data: gzip.compress(data, 1, mtime=0)),
    ("zstd", zstandard.ZstdCompressor(level=1, write_checksum=True).compress),
    ("lz4", lambda data: lz4.frame.compress(data, block_size=lz4.frame.BLOCKSIZE_MAX64KB)),
)


def told(reader: Any) -> tuple[Any, ...]:
    return bytes(reader.fragments()), reader.ledger(), bytes(reader.take_rows())


def unpacked(
    module: Any, packing: str, data: bytes, cuts: Sequence[int], piece: int, ahead: bool
) -> tuple[Any, ...]:
    """Feeds packed bytes up to the last of ``cuts`` as buffers, and the rest by a descriptor."""
    reader = module.Reader(1, 0)
    reader.unpack(packing, piece, ahead)
    for begin, end in zip([0, *cuts], cuts, strict=False):
        reader.consume(exact(data[begin:end]))
    with os.fdopen(os.memfd_create("packed"), "w+b", buffering=0) as file:
        file.write(data[cuts[-1] :])
        file.seek(0)
        while not reader.fault() and reader.read(file.fileno(), piece, 0) is not None:
            pass
        reader.end()
    return told(reader)


def try_packed(module: Any, data: bytes, chance: random.Random) -> None:
    """The same bytes packed, and damaged once more in one case of two."""
    plain = module.Reader(1, 0)
    plain.consume(exact(data))
    packing, pack = chance.choice(PACKERS)
    packed = bytearray(pack(data))
    whole = chance.random() < 0.5
    if not whole:
        chance.choice(DAMAGES)(packed, chance)
    cuts, piece = sorted(chance.choices(range(len(packed) + 1), k=3)), chance.choice((1, 100, 4096, 1 << 20))
    answers = [
        unpacked(module, packing, bytes(packed), *how)
        for how in (([len(packed)], 1 << 20, False), (cuts, piece, False), ([0], piece, True))
    ]
    if whole and answers[0] != told(plain):
        raise AssertionError("packed it reads otherwise")
    if answers != answers[:1] * 3:
        raise AssertionError("the answer depends on how it was unpacked")


def check_sums(module: Any, rows: bytes, ledger: dict[str, Any], fragments: bytes) -> None:
    """Nothing read is silently dropped from the count."""
    layout = module.layout()
    size, waiting_at = layout["fragment_row"], layout["fragment_row.waiting"]
    waiting = sum(
        int.from_bytes(fragments[at + waiting_at : at + waiting_at + 8], sys.byteorder)
        for at in range(0, len(fragments), size)
        if fragments[at + ROW_TUNNEL] == 0
    )
    plain = sum(
        int.from_bytes(rows[at + ROW_PACKETS : at + ROW_PACKETS + 8], sys.byteorder)
        for at in range(0, len(rows), ROW_SIZE)
        if rows[at + ROW_TUNNEL] == 0
    )
    if len(rows) % ROW_SIZE or layout["flow_row"] != ROW_SIZE:
        raise AssertionError(f"{len(rows)} bytes are no whole rows")
    if ledger["frames"] != sum(ledger[name] for name in RESULTS) + waiting:
        raise AssertionError(f"frames are not the sum: {ledger}, {waiting} fragments waiting")
    if plain != ledger["flow"]:
        raise AssertionError(f"rows hold {plain} packets, the ledger {ledger['flow']}")


def try_one(module: Any, data: bytes, chance: random.Random) -> int:
    """Reads one input whole and in pieces, with one answer. Frames read."""
    seed, interval = chance.getrandbits(64), chance.choice((0, 0, 1, 10**9, 60 * 10**9, 2**64 - 1))
    cuts = sorted(chance.choices(range(len(data) + 1), k=chance.choice((0, 1, 3, 40))))
    whole = read(module, data, [len(data)], seed, interval)
    pieces = read(module, data, [*cuts, len(data)], seed, interval)
    if whole != pieces:
        raise AssertionError("the answer depends on where the stream was cut")
    if whole != read(module, data, [*cuts, len(data)], seed, interval, chance.choice((1, 2, 31, 1024))):
        raise AssertionError("the answer depends on how many threads read")
    check_sums(module, *whole[:3])
    return int(whole[1]["frames"])


def load_reader(path: Path) -> Any:
    loader = ExtensionFileLoader("_reader", os.fspath(path))
    spec = importlib.util.spec_from_loader("_reader", loader)
    if spec is None:
        raise ImportError(os.fspath(path))
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reader", type=Path, required=True, help="_reader.so, built with sanitizers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end earlier")
    parser.add_argument("--keep", type=Path, required=True, help="where the input under trial is written")
    parser.add_argument("--packed", action="store_true", help="read each input packed too")
    parser.add_argument("--input", type=Path, help="try this input alone")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    module = load_reader(options.reader)
    chance = random.Random(options.seed)  # noqa: S311 a seed, so that a fault can be had again
    if options.input:
        print(f"frames={try_one(module, options.input.read_bytes(), chance)}")
        return
    seeds, began, frames, inputs = public_captures(), time.monotonic(), 0, 0
    while inputs < options.inputs and time.monotonic() - began < options.seconds:
        data = damaged(seeds, chance)
        options.keep.write_bytes(data)
        frames += try_one(module, data, chance)
        if options.packed:
            try_packed(module, data, chance)
        inputs += 1
    print(f"inputs={inputs} frames={frames} seeds={len(seeds)} seconds={time.monotonic() - began:.1f}")


if __name__ == "__main__":
    main()
