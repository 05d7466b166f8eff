"""More 5-tuples than a table may have rows.

Rule: what is expected follows from the table without a limit: rows stand in the order in which their first
packets came, so a limit keeps the first ones, whole, and the packets of the others are counted.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from frames import EPOCH, FILES, NS, Frame, datagram, pcap, save, traffic
from hypothesis import given
from hypothesis import strategies as st

from analyzer.capture.offline import read_capture, read_captures
from analyzer.capture.reading import MAX_ROWS

if TYPE_CHECKING:
    from pathlib import Path

    from analyzer.rows import OneWay, Rows


def check_limit(path: Path, limit: int, interval: int = 0) -> OneWay:
    """Reads with a limit and without one, and compares all that there is."""
    whole = read_capture(path, "one", interval, max_rows=0)
    limited = read_capture(path, "one", interval, max_rows=limit)
    rest = whole.rows[limit:]
    outer = int(rest["packets"][rest["tunnel"] == 0].sum())
    inner = int(rest["packets"][rest["tunnel"] != 0].sum())
    (all_counts,), (counts,) = whole.coverage, limited.coverage
    assert counts == replace(all_counts, flow=all_counts.flow - outer, overflow=outer, inner_overflow=inner)
    kept = [row.tobytes() for row in _by_observer(limited)]
    assert kept == [row.tobytes() for row in _by_observer(whole)[:limit]]
    assert len(limited.fragments) == len(whole.fragments)
    settled = limited.settled()
    assert settled.coverage[0].accounted() == counts.frames
    return limited


def _by_observer(table: OneWay) -> Rows:
    """Observers are numbered as they are seen: put in a row what the number stands for."""
    rows = table.rows.copy()
    rows["interface"] = [zlib.crc32(table.observers[n].interface.encode()) for n in rows["interface"]]
    return rows


@given(
    traffic(),
    st.sampled_from(sorted(FILES)),
    st.integers(1, 24),
    st.sampled_from([0, NS]),
)
def test_the_first_rows_stay_and_the_rest_is_counted(
    tmp_path_factory: pytest.TempPathFactory, frames: list[Frame], kind: str, limit: int, interval: int
) -> None:
    path = save(tmp_path_factory.getbasetemp(), "overflow", FILES[kind](frames))
    check_limit(path, limit, interval)


def spoofed(count: int) -> bytes:
    """Every frame has a source address and a port of its own."""
    frame = bytearray(datagram(("10.0.0.1", 1), ("10.10.0.11", 53), b"?"))
    records = []
    for n in range(count):
        struct.pack_into(">I", frame, 26, 0x0A000000 + n)
        struct.pack_into(">H", frame, 34, n & 0xFFFF)
        records.append(Frame(bytes(frame), EPOCH + n))
    return pcap(records, "ns")


@pytest.mark.parametrize("limit", [1, 31, 32, 33, 1023, 1024, 1025, 2049, 4999, 5000, 5001])
def test_spoofed_sources(limit: int, tmp_path: Path) -> None:
    """Limits around the queue's length, the table's first room and the index's growth."""
    limited = check_limit(save(tmp_path, "spoofed", spoofed(5000)), limit)
    assert len(limited.rows) == min(limit, 5000)
    assert limited.coverage[0].overflow == max(0, 5000 - limit)


def test_a_known_flow_is_counted_when_the_table_is_full(tmp_path: Path) -> None:
    known = datagram(("10.9.9.9", 1), ("10.10.0.11", 53), b"?")
    data = pcap([Frame(known)], "ns") + spoofed(100)[24:] + pcap([Frame(known)] * 7, "ns")[24:]
    limited = check_limit(save(tmp_path, "known", data), 10)
    assert limited.rows["packets"].tolist() == [8] + [1] * 9
    assert limited.coverage[0].overflow == 91


def test_each_source_has_its_own_limit(tmp_path: Path) -> None:
    paths = [save(tmp_path, name, spoofed(count)) for name, count in (("a", 50), ("b", 300))]
    both = read_captures(paths, max_rows=100)
    assert [(c.frames, c.flow, c.overflow) for c in both.coverage] == [(50, 50, 0), (300, 100, 200)]
    assert len(both.rows) == 150
    assert not any(c.overflow for c in read_captures(paths).coverage)
    assert MAX_ROWS > 1 << 20
