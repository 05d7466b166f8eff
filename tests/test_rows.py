"""Captures to one-way rows, and how rows add up. Rule: what is expected is counted here from the frames, or
is the whole against its parts.

The property: a capture may be cut between any two frames, its parts read apart and merged in any order and
grouping; rows, ledger and the paired table are those of the whole. It does not cover an IPv4 identification
that a sender uses again within a minute, nor a fragment that was captured twice: a part cannot know which of
them the other part has.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

import frames as fr
import numpy as np
import pandas as pd
import pytest
from frames import (
    CONVERSATIONS,
    EPOCH,
    FILES,
    NS,
    TWO_INTERFACES,
    Frame,
    Interface,
    client_of,
    same_table,
    server_of,
    talk,
    traffic,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import ACK, ETHERNET, RAW, SLL2, SYN, TCP, UDP

from analyzer._grouping import group
from analyzer.capture.offline import read_capture, read_captures
from analyzer.errors import CaptureError
from analyzer.flows import pair
from analyzer.rows import (
    COUNTERS,
    FRAGMENT,
    KEY_BYTES,
    NO_TIME,
    REDUCTIONS,
    ROW,
    Coverage,
    Endpoint,
    Folding,
    Observer,
    OneWay,
    fold,
    merge,
    sum_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SOURCE = "capture.pcap"


def unfinished(one_way: OneWay) -> Counter[tuple[object, ...]]:
    """Datagrams of which fragments are missing, by observer."""
    names = [name for name in FRAGMENT.names or () if name != "interface"]
    return Counter(
        (one_way.observers[int(row["interface"])], *(row[name].tolist() for name in names))
        for row in one_way.fragments
    )


def same(one: OneWay, other: OneWay) -> None:
    assert fr.plain(one) == fr.plain(other)
    assert fr.ledgers(one) == fr.ledgers(other)
    assert unfinished(one) == unfinished(other)


def merged_by_twos(data: st.DataObject, parts: list[OneWay]) -> OneWay:
    """Merges neighbours, two at a time, at drawn places, until one is left."""
    parts = [parts[n] for n in data.draw(st.permutations(range(len(parts))))]
    while len(parts) > 1:
        at = data.draw(st.integers(0, len(parts) - 2))
        parts = [*parts[:at], merge(parts[at : at + 2]), *parts[at + 2 :]]
    return parts[0]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("interval", [0, NS], ids=["whole", "intervals"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_capture_may_be_cut_anywhere(kind: str, interval: int, data: st.DataObject) -> None:
    frames = data.draw(traffic())
    write = FILES[kind]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(frames)), max_size=4)))
    bounds = list(zip([0, *cuts], [*cuts, len(frames)], strict=True))
    parts = [fr.shifted(fr.read(write(frames[a:b]), SOURCE, interval), a) for a, b in bounds]
    whole = fr.read(write(frames), SOURCE, interval)
    merged = merged_by_twos(data, parts)
    same(merged, whole)
    same(merged.settled(), whole.settled())
    same_table(pair(merged.settled()), pair(whole.settled()))


def test_an_empty_part_does_not_join_what_was_seen_apart() -> None:
    """Two interfaces saw alike packets, the second one only after the first: they add up."""
    one = talk(("10.10.0.21", 40000), ("10.10.0.11", 6443))[0]
    frames = [Frame(one, EPOCH, interface=0), Frame(one, EPOCH + NS, interface=1)]
    empty, whole = (fr.read(FILES["pcapng"](part), SOURCE) for part in ([], frames))
    assert pair(whole)["packets_out"].tolist() == [2]
    same_table(pair(merge([empty, whole])), pair(whole))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_merge_is_a_commutative_monoid(data: st.DataObject) -> None:
    """With other sources, listeners and intervals too, not only with parts of one capture."""
    sources = data.draw(st.lists(st.sampled_from(("a.pcap", "b.pcap")), min_size=3, max_size=3))
    x, y, z = (
        replace(
            fr.read(FILES["any"](data.draw(traffic())), source),
            listeners=frozenset({Endpoint(bytes(16), TCP, n)}),
        )
        for n, source in enumerate(sources)
    )
    same(merge([merge([x, y]), z]), merge([x, merge([y, z])]))
    same(merge([x, y, z]), merge([merge([x, y]), z]))
    same(merge([x, y]), merge([y, x]))
    same(merge([x, OneWay()]), x)
    same(merge([OneWay(), x]), x)
    assert merge([x, y, z]).listeners == x.listeners | y.listeners | z.listeners
    same(merge([]), OneWay())


@given(data=st.data(), batch=st.integers(1, 3000))
@settings(max_examples=40, deadline=None)
def test_added_up_as_they_come(data: st.DataObject, batch: int) -> None:
    """In batches of any size; fragments find each other over them."""
    frames = data.draw(traffic())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(frames)), max_size=6)))
    bounds = zip([0, *cuts], [*cuts, len(frames)], strict=True)
    parts = [fr.shifted(fr.read(fr.pcap(frames[a:b], "ns"), SOURCE), a) for a, b in bounds]
    folded = fold(iter(parts), batch)
    same(merge([folded, OneWay()]), merge([*parts, OneWay()]))
    same(fold([]), OneWay())


def test_what_waits_is_no_more_than_what_is_there() -> None:
    """So memory follows distinct rows: never more than a batch, or as many again, and the part that came."""
    part = fr.read(fr.pcap(fr.timed(talk(("10.10.0.21", 40000), ("10.10.0.11", 6443)))))
    folding, most = Folding(2000), 0
    for _ in range(100):
        folding.add(part)
        most = max(most, sum(len(p.rows) for p in (*folding._whole, *folding._waiting)))
    assert len(folding.whole().rows) == 2
    assert folding.whole().rows["packets"].sum() == 100 * part.rows["packets"].sum()
    assert most <= 2 + 2 * (2000 // 256 + 1)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_frame_is_accounted_for(data: st.DataObject) -> None:
    """Also frames of no meaning, and frames that a snaplen cut."""
    frames = data.draw(traffic())
    cut = data.draw(st.lists(st.sampled_from(frames), max_size=5))
    frames += [
        replace(f, data=f.data[: data.draw(st.integers(0, len(f.data)))], wire=len(f.data)) for f in cut
    ]
    frames += [Frame(noise, EPOCH) for noise in data.draw(st.lists(st.binary(max_size=80), max_size=5))]
    link = data.draw(st.sampled_from((ETHERNET, RAW, 105, SLL2)))
    for content in (
        fr.pcap(frames),
        fr.pcap(frames, link=link),
        fr.pcapng(frames, interfaces=TWO_INTERFACES),
    ):
        (ledger,) = fr.read(content).settled().coverage
        assert ledger.frames == len(frames)
        assert ledger.accounted() == len(frames)
        assert not ledger.damage


@given(traffic())
@settings(max_examples=60, deadline=None)
def test_packets_of_one_observer_are_its_frames(frames: list[Frame]) -> None:
    whole = fr.read(fr.pcap(frames)).settled()
    table = pair(whole)
    outside = table[table["tunnel"] == ""]
    assert outside["packets_out"].sum() + outside["packets_in"].sum() == whole.coverage[0].flow
    octets = sum(int(row["bytes"]) for row in whole.rows)
    assert table["bytes_out"].sum() + table["bytes_in"].sum() == octets


def test_rows_are_what_was_sent() -> None:
    """One connection, counted by hand: everything below leans on it."""
    client, server = ("10.10.0.21", 40000), ("10.10.0.11", 6443)
    times = [EPOCH + 123_456_789 + n * 1_000_000_001 for n in range(8)]
    frames = [Frame(data, time) for data, time in zip(fr.talk(client, server), times, strict=True)]
    one_way = fr.read(fr.pcap([Frame(fr.arp()), *frames], "ns"))
    a, b = one_way.rows
    assert (a["src_port"], a["dst_port"], b["src_port"], b["dst_port"]) == (40000, 6443, 6443, 40000)
    assert (int(a["packets"]), int(a["bytes"])) == (5, 4 * 40 + 140)
    assert (int(b["packets"]), int(b["bytes"])) == (3, 2 * 40 + 1040)
    assert (int(a["start"]), int(a["end"])) == (times[0], times[-1])
    assert (int(b["start"]), int(b["end"])) == (times[1], times[6])
    assert (int(a["first_frame"]), int(b["first_frame"])) == (2, 3)
    assert (int(a["tcp_flags"]), int(a["events"]), int(b["events"])) == (SYN | ACK | 0x08 | 0x01, 1, 2)
    assert one_way.coverage == (Coverage(SOURCE, EPOCH, times[-1], frames=9, flow=8, not_ip=1),)


# ---- fragments ----


def fragment_ports(one_way: OneWay) -> dict[tuple[object, ...], int]:
    return {key: n for key, n in fr.packets_by_ends(one_way).items() if key[2] == UDP}


LATE = 70 * NS


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_a_fragment_after_the_reassembly_time_is_of_another_datagram(cut: bool) -> None:
    pieces = fr.fragments(("10.10.0.21", 40000), ("10.10.0.11", 5000), 100, 7)
    near = [Frame(pieces[0]), Frame(pieces[1], EPOCH + NS)]
    far = [Frame(pieces[0]), Frame(pieces[1], EPOCH + LATE)]
    for frames, flow, waiting in ((near, 2, 0), (far, 1, 1)):
        parts = [frames[:1], frames[1:]] if cut else [frames]
        (ledger,) = merge(fr.read(fr.pcap(part)) for part in parts).settled().coverage
        assert (ledger.flow, ledger.fragment) == (flow, waiting)


def test_waiting_fragments_count_in_their_own_interval() -> None:
    """Two later fragments in two intervals, then the first one in a third: each counts where it was."""
    first, *later = fr.fragments(("10.10.0.21", 40000), ("10.10.0.11", 5000), 180, 7)
    frames = [Frame(f, EPOCH + n * NS) for n, f in enumerate((*later, first))]
    rows = fr.read(fr.pcap(frames), interval=NS).rows
    assert sorted((int(r["interval"]), int(r["packets"])) for r in rows) == [(f.time, 1) for f in frames]
    parts = [fr.read(fr.pcap([f]), interval=NS) for f in frames]
    merged = merge([merge(parts[:2]), parts[2]])
    assert sorted((int(r["interval"]), int(r["packets"])) for r in merged.rows) == [
        (f.time, 1) for f in frames
    ]
    assert not len(merged.fragments)


def test_fragments_that_never_found_their_first_one_are_in_the_ledger() -> None:
    outer = fr.fragments(("10.10.0.21", 40000), ("10.10.0.11", 5000), 180, 7)[1:]
    inner = [
        fr.carried(f, "10.10.0.21", "10.10.0.11")
        for f in fr.fragments(("10.42.0.5", 1), ("10.42.1.6", 2), 180, 7)[1:]
    ]
    (ledger,) = fr.read(fr.pcap(fr.timed(outer + inner))).settled().coverage
    assert (ledger.frames, ledger.flow, ledger.fragment, ledger.inner_fragment) == (4, 2, 2, 2)


# ---- adding up ----

ROWS = st.lists(
    st.tuples(
        *(st.integers(0, high) for high in (2, 1, 9, 2**63, 5, 511)),
    ),
    max_size=30,
)


@given(ROWS)
def test_sum_rows_against_a_dictionary(drawn: list[tuple[int, ...]]) -> None:
    rows = np.zeros(len(drawn), ROW)
    expected: dict[tuple[int, int], dict[str, int]] = {}
    for row, (port, interval, packets, time, frame, flags) in zip(rows, drawn, strict=True):
        row["src_port"], row["interval"], row["packets"], row["bytes"] = (
            port,
            interval,
            packets,
            2**40 * packets,
        )
        row["start"], row["end"], row["first_frame"], row["tcp_flags"] = time, time, frame, flags
        e = expected.setdefault(
            (port, interval), dict.fromkeys(REDUCTIONS, 0) | {"start": time, "first_frame": 0}
        )
        e["packets"] += packets
        e["bytes"] += 2**40 * packets
        e["start"], e["end"] = min(e["start"], time), max(e["end"], time)
        e["tcp_flags"] |= flags
        e["first_frame"] = min(filter(None, (e["first_frame"], frame)), default=0)
    summed = sum_rows(rows)
    got = {
        (int(r["src_port"]), int(r["interval"])): {n: int(r[n]) for n in (*REDUCTIONS, "first_frame")}
        for r in summed
    }
    assert got == expected
    assert len(summed) == len(expected)


@given(
    st.lists(
        st.binary(min_size=16, max_size=16) | st.sampled_from([bytes(16), b"\1" + bytes(15)]), max_size=50
    )
)
def test_group_is_exact(keys: list[bytes]) -> None:
    numbers, first = group(np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 16))
    order = list(dict.fromkeys(keys))
    assert numbers.tolist() == [order.index(key) for key in keys]
    assert first.tolist() == [keys.index(key) for key in order]


def test_key_bytes_end_where_the_counters_begin() -> None:
    assert ROW.fields is not None
    assert all(ROW.fields[name][1] >= KEY_BYTES for name in COUNTERS.names or ())
    assert ROW.fields["interval"][1] + 8 == KEY_BYTES


# ---- file formats ----


@dataclass(frozen=True)
class Variant:
    """A way to write frames, and what is left of a time in it."""

    write: Callable[[Sequence[Frame]], bytes]
    kept: Callable[[int], int] = lambda time: time // 1000 * 1000


def ng(order: str, interface: Interface, kind: str = "enhanced") -> Variant:
    return Variant(lambda frames: fr.pcapng(frames, order, (interface,), kind), interface.kept)


VARIANTS = {
    "pcap µs LE": Variant(fr.pcap),
    "pcap µs BE": Variant(lambda frames: fr.pcap(frames, order=">")),
    "pcap ns LE": Variant(lambda frames: fr.pcap(frames, "ns"), lambda time: time),
    "pcap ns BE": Variant(lambda frames: fr.pcap(frames, "ns", ">"), lambda time: time),
    "Kuznetzov LE": Variant(lambda frames: fr.pcap(frames, "kuznetzov")),
    "Kuznetzov BE": Variant(lambda frames: fr.pcap(frames, "kuznetzov", ">")),
    "pcapng ms": ng("<", Interface(resolution=3)),
    "pcapng µs LE": ng("<", Interface()),
    "pcapng µs BE": ng(">", Interface()),
    "pcapng ns": ng("<", Interface(resolution=9)),
    "pcapng ns BE": ng(">", Interface(resolution=9)),
    "pcapng 2^-10": ng("<", Interface(resolution=0x80 | 10)),
    "pcapng 2^-30": ng(">", Interface(resolution=0x80 | 30)),
    "pcapng s": ng("<", Interface(resolution=0)),
    "pcapng offset": ng("<", Interface(resolution=9, offset=1_700_000_000)),
    "pcapng negative offset": ng(">", Interface(resolution=6, offset=-3600)),
    "obsolete packet blocks": ng("<", Interface(resolution=9), "obsolete"),
    "obsolete packet blocks BE": ng(">", Interface(resolution=9), "obsolete"),
    "two sections": Variant(
        lambda frames: (
            fr.pcapng(frames[:5], "<", (Interface(resolution=9),))
            + fr.pcapng(frames[5:], ">", (Interface(resolution=9, offset=99),))
        ),
        lambda time: time,
    ),
}
MIXED = [
    Frame(data, EPOCH + 987_654_321 + n * 77_777_777)
    for n, data in enumerate(d for k in CONVERSATIONS for d in CONVERSATIONS[k](3))
]


def nameless(one_way: OneWay) -> Counter[tuple[object, ...]]:
    """Rows without their observer; first frames stay."""
    return Counter((key[1:], value) for key, value in fr.plain(one_way).items())


def counted(one_way: OneWay) -> Coverage:
    (ledger,) = one_way.settled().coverage
    return ledger


def summed_over_interfaces(one_way: OneWay) -> OneWay:
    """Without interface and direction, which only some formats know."""
    rows = one_way.rows.copy()
    rows["interface"] = 0
    rows["direction"] = 0
    return replace(one_way, rows=sum_rows(rows))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_format_says_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = VARIANTS[name]
    kept = [replace(f, time=variant.kept(f.time)) for f in MIXED]
    expected = fr.read(fr.pcap(kept, "ns"))
    for compression, compress in fr.COMPRESSIONS.items():
        content = compress(variant.write(MIXED))
        path = fr.save(tmp_path, f"capture-{compression}", content)
        monkeypatch.setattr(sys, "stdin", fr.Pipe(content))
        for one_way in (read_capture(path, SOURCE), read_capture("-", SOURCE)):
            assert nameless(summed_over_interfaces(one_way)) == nameless(expected), compression
            assert counted(one_way) == counted(expected), compression


def test_the_formats_differ_where_they_should() -> None:
    """Were every file read alike, the test above could not tell."""
    ms = fr.read(VARIANTS["pcapng ms"].write(MIXED))
    assert nameless(ms) != nameless(fr.read(fr.pcap(MIXED, "ns")))
    assert int(ms.rows["start"].min()) == (EPOCH + 987_654_321) // 10**6 * 10**6


def test_simple_packets_have_no_time(tmp_path: Path) -> None:
    content = fr.pcapng(MIXED, ">", kind="simple")
    one_way = read_capture(fr.save(tmp_path, "simple", content), SOURCE)
    expected = fr.read(fr.pcap(MIXED))
    assert [int(row["packets"]) for row in one_way.rows] == [int(row["packets"]) for row in expected.rows]
    assert [int(row["bytes"]) for row in one_way.rows] == [int(row["bytes"]) for row in expected.rows]
    assert set(one_way.rows["start"].tolist()) == {int(NO_TIME)}
    assert not one_way.rows["end"].any()
    assert counted(one_way) == replace(counted(expected), start=0, end=0)
    assert pair(one_way)["start"].isna().all()


def test_simple_packets_are_as_long_as_their_snaplen_says() -> None:
    whole = fr.talk(client_of(0), server_of(0))[3]
    body = fr.pcapng([Frame(whole[:60], wire=len(whole))], interfaces=(Interface(snaplen=60),), kind="simple")
    (row,) = fr.read(body).rows
    assert (int(row["packets"]), int(row["bytes"])) == (1, len(whole) - 14)


def test_interfaces_are_observers() -> None:
    """Named where a file describes several; SLL2 gives the kernel's numbers, however many there are."""
    frames = fr.timed(fr.talk(client_of(0), server_of(0)))
    second = [replace(f, interface=1) for f in frames]
    both = fr.read(fr.pcapng([*frames, *second], interfaces=TWO_INTERFACES))
    assert both.observers == (Observer(SOURCE, "0-eth0"), Observer(SOURCE, "1-cni0"))
    assert [o.name for o in both.observers] == ["capture.pcap:0-eth0", "capture.pcap:1-cni0"]
    one = fr.read(fr.pcapng(second, interfaces=TWO_INTERFACES))
    assert one.observers == (Observer(SOURCE, "1-cni0"),)
    assert fr.read(fr.pcapng(frames, interfaces=TWO_INTERFACES[:1])).observers == (Observer(SOURCE),)
    assert fr.read(fr.pcap([fr.on_any(f, 7) for f in frames], link=SLL2)).observers == (
        Observer(SOURCE, "if7"),
    )


@pytest.mark.parametrize(("packet_type", "direction"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2)])
def test_cooked_frames_say_which_way_they_went(packet_type: int, direction: int) -> None:
    frames = [fr.on_any(Frame(fr.segment(client_of(0), server_of(0), SYN)), 7, packet_type)]
    assert fr.read(fr.pcap(frames, link=SLL2)).rows["direction"].tolist() == [direction]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("length", [0, 4, 8], ids=["none", "32 bits", "64 bits"])
def test_frames_may_end_with_a_check_sequence(length: int, order: str) -> None:
    """Above the link type a pcap header says whether they do (bit 26), and how long it is, in units of 16
    bits. It is no part of the IP packet.
    """
    frames = fr.timed(fr.talk(client_of(0), server_of(0)))
    checked = [replace(f, data=f.data + bytes(length)) for f in frames]
    said = fr.read(fr.pcap(checked, order=order, link=ETHERNET | 1 << 26 | length // 2 << 28))
    same(said, fr.read(fr.pcap(frames)))


def test_interface_names_are_hostile() -> None:
    name = "eth0\x1b[31m\n\xff;x" + "y" * 80
    one_way = fr.read(
        fr.pcapng(
            fr.timed([fr.arp(), *fr.refusal(client_of(0), server_of(0))]),
            interfaces=(Interface(name), Interface()),
        )
    )
    (observer,) = one_way.observers
    assert observer.interface.startswith("0-eth0")
    assert len(observer.interface) < 80
    assert pair(one_way)["source"].nunique() == 1


DROPS: dict[str, tuple[bytes, int]] = {
    "none": (b"", 0),
    "by the interface": (fr.statistics("<", 0, 7), 7),
    "by the system too": (fr.statistics("<", 0, 7, 5), 12),
    "the latest block says all": (fr.statistics("<", 0, 7) + fr.statistics("<", 0, 9), 9),
    "of two interfaces": (fr.statistics("<", 0, 7) + fr.statistics("<", 1, 4), 11),
}


@pytest.mark.parametrize("name", DROPS)
def test_drop_counts_are_lost_frames(name: str) -> None:
    blocks, lost = DROPS[name]
    frames = fr.timed(fr.talk(client_of(0), server_of(0)))
    ledger = counted(fr.read(fr.pcapng(frames, interfaces=TWO_INTERFACES, more=blocks)))
    assert (ledger.lost, ledger.frames) == (lost, len(frames))


def test_standard_input_of_the_command(tmp_path: Path) -> None:
    content = fr.COMPRESSIONS["zstd"](fr.pcapng(MIXED))
    out = tmp_path / "flows.csv"
    command = [str(Path(sys.executable).parent / "rke2-flows"), "flows", "-", "-o", str(out)]
    done = subprocess.run(command, input=content, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(out)
    assert (
        table["packets_out"].sum() + table["packets_in"].sum()
        == pair(fr.read(fr.pcapng(MIXED)).settled())[["packets_out", "packets_in"]].sum().sum()
    )
    assert len(table) > 10


def test_a_file_that_is_given_twice_is_read_once(tmp_path: Path) -> None:
    """Its rows would add up, since they are of one source."""
    path = fr.save(tmp_path, "x.pcap", fr.pcap(fr.timed(fr.talk(client_of(0), server_of(0)))))
    same(read_captures([path, str(path), path]), read_captures([path]))


def test_several_files_are_read_under_names_that_differ(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    frames = fr.timed(fr.talk(client_of(0), server_of(0)))
    paths = [
        fr.save(tmp_path / folder, name, fr.pcap(frames))
        for folder, name in (("a", "x.pcap"), ("b", "x.pcap"), ("b", "y.pcap"))
    ]
    one_way = read_captures(paths)
    assert set(fr.ledgers(one_way)) == {str(paths[0]), str(paths[1]), "y.pcap"}
    told: list[int] = []
    read_captures(paths, progress=told.append)
    assert sum(told) >= sum(p.stat().st_size for p in paths) - 3 * 24


def test_one_bad_file_of_several_is_the_one_named(tmp_path: Path) -> None:
    good = fr.save(tmp_path, "good.pcap", fr.pcap(MIXED))
    bad = fr.save(tmp_path, "bad.pcap", b"no capture")
    with pytest.raises(CaptureError, match=r"bad\.pcap: .*neither pcap nor pcapng"):
        read_captures([good, bad])


def test_ledgers_of_parts_add_up() -> None:
    a = Coverage("x", start=5, end=9, frames=2, flow=2, damage="frame 3", overflow=0, alerts_lost=1)
    b = Coverage("x", start=0, end=0)
    c = Coverage(
        "x", start=3, end=4, frames=3, not_ip=1, lost=6, overflow=2, inner_overflow=5, other_bytes=60
    )
    total = reduce(Coverage.plus, (b, a, c))
    assert total == Coverage(
        "x", 3, 9, frames=5, flow=2, not_ip=1, lost=6, damage="frame 3", overflow=2, inner_overflow=5,
        other_bytes=60, alerts_lost=1,
    )  # fmt: skip
    assert total.accounted() == total.frames


@given(st.permutations(range(3)), st.booleans())
def test_words_of_ledgers_unite(order: list[int], left: bool) -> None:
    """What several parts say stands once, whatever the order and grouping."""
    words = ("why; who", "who", "")
    x, y, z = (Coverage("x", missing=words[n], damage=words[n]) for n in order)
    total = x.plus(y).plus(z) if left else x.plus(y.plus(z))
    assert (total.missing, total.damage) == ("who; why", "who; why")


def test_many_datagrams_are_joined_in_time() -> None:
    """Fragments of one part wait for those of another: sorted, not searched for one by one."""
    fragments = np.zeros(50_000, FRAGMENT)
    fragments["id"], fragments["packets"], fragments["bytes"] = np.arange(50_000), 1, 100
    part = OneWay(fragments=fragments, observers=(Observer("x"),), coverage=(Coverage("x"),))
    begin = process_time()
    assert len(merge([part, OneWay()]).fragments) == 50_000
    assert process_time() - begin < 60
