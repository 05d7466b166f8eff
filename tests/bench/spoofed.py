"""A flood: every frame from another address. Rule: as generate.py, same settings, same bytes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import frames as fr
from bench.generate import LINKTYPE_ETHERNET, MAGIC_MICROS, START, UNCUT
from bench.population import EPHEMERAL, EPHEMERAL_COUNT, TCP, Addresses

if TYPE_CHECKING:
    from pathlib import Path

RATE = 200_000  # frames a second
TARGET = (bytes([10, 10, 0, 11]), 6443)
SPREAD = 2_654_435_761  # odd, so n → n · SPREAD mod 2³² names every address once


def _chunk(number: np.ndarray[Any, np.dtype[np.int64]]) -> bytes:
    count = len(number)
    sources = ((number.astype(np.uint64) * np.uint64(SPREAD)) & np.uint64(0xFFFFFFFF)).astype(">u4")
    v4 = np.concatenate([np.frombuffer(TARGET[0], np.uint8)[None], sources.view(np.uint8).reshape(-1, 4)])
    zero = np.zeros(count, np.int64)
    ports = np.stack([EPHEMERAL[0] + number % EPHEMERAL_COUNT, np.full(count, TARGET[1])], axis=1)
    micros = number * 1_000_000 // RATE
    told = fr.Frames(
        seconds=START + micros // 1_000_000,
        micros=micros % 1_000_000,
        length=np.full(count, fr.header_length(4, TCP, tunnel=False)),
        serial=number & 0xFFFF,
        host=np.stack([1 + np.arange(count), zero], axis=1),
        port=ports,
        pod=np.zeros((count, 2), np.int64),
        pod_port=ports,
        seq=(number * SPREAD) & 0xFFFFFFFF,
        ack=zero,
        flags=np.full(count, fr.SYN),
        clock=micros // 1000 + 1,
    )
    book = Addresses(0, v4, np.zeros((0, 16), np.uint8))
    return fr.build(told, 4, TCP, tunnel=False, addresses=book, snaplen=UNCUT).tobytes()


def write_spoofed(path: Path, frames: int, *, chunk: int = 200_000) -> dict[str, int]:
    """A capture of SYNs, no two of one 5-tuple; returns what it holds, as `Truth.summary` names it.

    ValueError beyond 2³² frames.
    """
    if not 1 <= frames <= 1 << 32:
        raise ValueError(f"1 to 2^32 frames have a source each, not {frames}")
    with path.open("wb") as out:
        out.write(struct.pack("<IHHiIII", MAGIC_MICROS, 2, 4, 0, 0, UNCUT, LINKTYPE_ETHERNET))
        for begin in range(0, frames, chunk):
            out.write(_chunk(np.arange(begin, min(begin + chunk, frames))))
        written = out.tell()
    size = fr.header_length(4, TCP, tunnel=False) - fr.ETHERNET_SIZE
    return {"frames": frames, "ip_bytes": frames * size, "one_way_tuples": frames, "file_bytes": written,
            "tunnel_one_way_tuples": 0}  # fmt: skip
