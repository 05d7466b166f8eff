"""A finding's own frames.

Rule: which frames belong is what tshark selects, or what reading the capture again tells; files are taken
apart here by hand.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from conftest import RECORDED, require_program
from frames import (
    COMPRESSIONS,
    EPOCH,
    FILES,
    Frame,
    Interface,
    carried,
    client_of,
    datagram,
    fragments,
    on_any,
    pcap,
    pcapng,
    read,
    save,
    segment,
    server_of,
    talk,
    timed,
    traffic,
    unreachable,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import ETHERNET, SLL2, SYN
from runs import recorded

from analyzer.analysis import Analysis, analyze
from analyzer.capture import _reader
from analyzer.capture.offline import CutFrames, cut_capture, read_capture
from analyzer.capture.reading import SEED
from analyzer.cut import Cut, cut, flows_of, keys_of
from analyzer.errors import CaptureError
from analyzer.flows import pair
from analyzer.rows import ROW, OneWay, Rows, no_rows
from analyzer.store import write_flows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

CUT_RECORDINGS = ("offences", "blocked", "any", "vxlan-answers-lost")


# ---- files, taken apart by hand ----


class Record(NamedTuple):
    """One frame as a file holds it. `interface`: name and link type."""

    time: int
    interface: tuple[str, int]
    data: bytes
    length: int


def records_of_pcap(data: bytes, name: str) -> list[Record]:
    """A little-endian pcap file with microseconds."""
    (link,) = struct.unpack_from("<I", data, 20)
    found, at = [], 24
    while at < len(data):
        seconds, fraction, captured, length = struct.unpack_from("<IIII", data, at)
        at += 16 + captured
        time = seconds * 10**9 + fraction * 1000
        found.append(Record(time, (name, link), data[at - captured : at], length))
    return found


def options_of(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(data):
        code, size = struct.unpack_from("=HH", data, at)
        found[code] = data[at + 4 : at + 4 + size]
        at += 4 + (size + 3) // 4 * 4
    return found


def records_of_cut(data: bytes) -> list[Record]:
    """A pcapng file as a cut writes it: enhanced packet blocks, nanoseconds."""
    interfaces: list[tuple[str, int]] = []
    found, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from("=II", data, at)
        body = data[at + 8 : at + length - 4]
        assert struct.unpack_from("=I", data, at + length - 4) == (length,)
        at += length
        if kind == 1:
            options = options_of(body[8:])
            assert options[9] == b"\x09"
            interfaces.append((options[2].decode(), struct.unpack_from("=H", body)[0]))
        elif kind == 6:
            number, high, low, captured, wire = struct.unpack_from("=IIIII", body)
            found.append(Record(high << 32 | low, interfaces[number], body[20 : 20 + captured], wire))
    return found


def cut_out(
    inputs: Sequence[str | Path], analysis: Analysis, finding: str, most: int = 0
) -> tuple[Cut, bytes]:
    stream = io.BytesIO()
    done = cut(inputs, analysis, finding, stream, most=most)
    return done, stream.getvalue()


def cut_file(data: bytes, keys: Rows, limit: int = 0) -> tuple[CutFrames, bytes]:
    """A capture's bytes, by way of a file; the blocks that were written."""
    with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryFile() as blocks:
        file.write(data)
        file.flush()
        found = cut_capture(file.name, keys, blocks, source="capture.pcap", limit=limit)
        blocks.seek(0)
        return found, blocks.read()


def whole_file(found: CutFrames, blocks: bytes) -> bytes:
    """The blocks as a file that can be read again."""
    return (
        pcapng([], "<", [Interface(name or "eth0", 9, link=link) for name, link in found.interfaces]) + blocks
    )


# ---- against tshark ----


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


_ENDS = ("ip.src", "ip.dst", "ipv6.src", "ipv6.dst")
_PORTS = ("tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport")


def dissected(capture: Path) -> list[dict[str, set[str]]]:
    """Each frame's addresses and ports, those of quoted packets too. Tunnels are not looked into: no 5-tuple
    of an inner packet is meant.
    """
    off = [word for name in ("vxlan", "geneve") for word in ("--disable-protocol", name)]
    fields = [word for name in (*_ENDS, *_PORTS) for word in ("-e", name)]
    done = subprocess.run(
        ["tshark", "-n", *off, "-r", capture, "-T", "fields", "-E", "occurrence=a", *fields],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    values = [[set(cell.split(",")) for cell in line.split("\t")] for line in done.stdout.splitlines()]
    return [dict(zip((*_ENDS, *_PORTS), row, strict=True)) for row in values]


def selected_frames(frames: Sequence[dict[str, set[str]]], flows: pd.DataFrame) -> list[int]:
    """What the display filter of both directions of each 5-tuple, any occurrence, selects."""
    found = set()
    for row in rows_of(flows):
        family, protocol = "ipv6" if ":" in row["client"] else "ip", row["protocol"]
        ends = [(row[side], str(row[f"{side}_port"])) for side in ("client", "server")]
        for (a, p), (b, q) in (ends, ends[::-1]):
            wanted = {
                f"{family}.src": a,
                f"{family}.dst": b,
                f"{protocol}.srcport": p,
                f"{protocol}.dstport": q,
            }
            found |= {
                n for n, frame in enumerate(frames, 1) if all(v in frame[name] for name, v in wanted.items())
            }
    return sorted(found)


@pytest.mark.parametrize("name", CUT_RECORDINGS)
def test_each_findings_frames_are_those_that_tshark_selects(name: str) -> None:
    require_program("tshark")
    folder, analysis = RECORDED / name, recorded(name)
    captures = sorted(folder.glob("*.pcap"))
    frames = {path.name: dissected(path) for path in captures}
    originals = {path.name: records_of_pcap(path.read_bytes(), path.name) for path in captures}
    assert len(analysis.findings)
    for finding in rows_of(analysis.findings):
        done, data = cut_out([folder], analysis, finding["id"])
        flows = flows_of(analysis, finding)
        selected = {path.name: selected_frames(frames[path.name], flows) for path in captures}
        places = {n: [int(f) for s, f in zip(done.source, done.frame, strict=True) if done.sources[s] == n]
                  for n in selected}  # fmt: skip
        assert places == selected, finding["title"]
        kept = records_of_cut(data)
        assert sorted(kept) == sorted(originals[n][f - 1] for n, numbers in selected.items() for f in numbers)
        assert [r.time for r in kept] == sorted(r.time for r in kept)
        assert [
            originals[done.sources[s]][f - 1] for s, f in zip(done.source, done.frame, strict=True)
        ] == kept
        assert done.shortened == sum(len(r.data) < r.length for r in kept)


_NAMED_BY_SOURCE = ["source", "witnesses", "first_frame", "direction_by"]
_COUNTED_BY_INTERFACE = ["packets_out", "bytes_out"]


@pytest.mark.parametrize("name", CUT_RECORDINGS)
def test_reading_the_cut_again_gives_the_same_flows(name: str, tmp_path: Path) -> None:
    analysis = recorded(name)
    for finding in rows_of(analysis.findings):
        _, data = cut_out([RECORDED / name], analysis, finding["id"])
        path = save(tmp_path, "small.pcapng", data)
        again = analyze(path, cluster=analysis.cluster, spec=analysis.spec)
        wanted = flows_of(analysis, finding)
        ends = ["client", "client_port", "server", "server_port", "protocol"]
        # one packet alone, on two interfaces of one file, may as well have passed the one and the other
        alone = finding["packets"] == 1 and ";" in wanted["witnesses"].iloc[0]
        left_out = [*_NAMED_BY_SOURCE, *(_COUNTED_BY_INTERFACE if alone else ())]
        compared = [n for n in analysis.flows.columns if n not in left_out]
        one, other = (
            table[compared].astype(object).sort_values(ends).reset_index(drop=True)
            for table in (wanted, again.flows.merge(wanted[ends].astype(object), on=ends))
        )
        pd.testing.assert_frame_equal(one, other[one.columns], check_dtype=False)
        assert finding["id"] in set(again.findings["id"])


# ---- as a property ----


def five_tuples(one_way: OneWay) -> dict[tuple[object, ...], Rows]:
    """What a cut goes by → the rows of it, whoever saw them and wherever the tunnel went."""
    names = ("src", "dst", "src_port", "dst_port", "protocol", "tunnel", "vni")
    found: dict[tuple[object, ...], list[int]] = {}
    for number, row in enumerate(one_way.rows):
        found.setdefault(tuple(row[n].tobytes() for n in names), []).append(number)
    return {key: one_way.rows[numbers] for key, numbers in found.items()}


def counted(rows: Rows) -> list[tuple[object, ...]]:
    names = (
        "outer_src",
        "outer_dst",
        "packets",
        "bytes",
        "start",
        "end",
        "unreachable",
        "tcp_flags",
        "events",
    )
    return sorted(tuple(row[n].tobytes() for n in names) for row in rows)


def keys_from(found: Iterable[Rows]) -> Rows:
    return np.concatenate([no_rows(), *found])


@settings(max_examples=80)
@given(
    frames=traffic(),
    kind=st.sampled_from(sorted(FILES)),
    packing=st.sampled_from(sorted(COMPRESSIONS)),
    chosen=st.data(),
)
def test_a_cut_has_all_of_its_flows_and_what_is_left_has_none(
    frames: list[Frame], kind: str, packing: str, chosen: st.DataObject
) -> None:
    data = COMPRESSIONS[packing](FILES[kind](frames))
    whole = five_tuples(read(data))
    wanted = chosen.draw(st.sets(st.sampled_from(sorted(whole)))) if whole else set()
    found, blocks = cut_file(data, keys_from(whole[key] for key in wanted))
    numbers = [int(n) for n in found.index["frame"]]
    assert numbers == sorted(set(numbers))
    assert [int(t) for t in found.index["time"]] == [frames[n - 1].time for n in numbers]
    again = five_tuples(read(whole_file(found, blocks)))
    for key in wanted:
        assert counted(again[key]) == counted(whole[key])
    rest = [f for n, f in enumerate(frames, 1) if n not in set(numbers)]
    left = five_tuples(read(FILES[kind](rest)))
    assert not wanted & set(left)


def all_keys(data: bytes) -> Rows:
    return read(data).rows


@pytest.mark.parametrize("writing", ["us", "ns", "kuznetzov"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_pcap_variant(writing: str, order: str) -> None:
    frames = timed(talk(client_of(1), server_of(1)), step=1_000_000)
    data = pcap(frames, writing, order)
    found, blocks = cut_file(data, all_keys(data))
    kept = records_of_cut(whole_file(found, blocks))
    assert [r.data for r in kept] == [f.data for f in frames]
    assert [r.time for r in kept] == [f.time for f in frames]
    assert {r.interface[1] for r in kept} == {ETHERNET}


@pytest.mark.parametrize("kind", ["enhanced", "obsolete"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("resolution", [6, 9, 0x8A, 3])
def test_every_pcapng_variant(kind: str, order: str, resolution: int) -> None:
    interface = Interface("eth0", resolution, offset=5)
    frames = timed(talk(client_of(1), server_of(1)), step=1_000_000)
    data = pcapng(frames, order, [interface], kind)
    found, blocks = cut_file(data, all_keys(data))
    kept = records_of_cut(whole_file(found, blocks))
    assert [r.data for r in kept] == [f.data for f in frames]
    assert [r.time for r in kept] == [interface.kept(f.time) for f in frames]


def test_a_packet_without_a_time_gets_none_of_its_own() -> None:
    frames = timed(talk(client_of(1), server_of(1)))
    data = pcapng(frames, kind="simple")
    found, blocks = cut_file(data, all_keys(data))
    assert [r.data for r in records_of_cut(whole_file(found, blocks))] == [f.data for f in frames]
    assert {r.time for r in records_of_cut(whole_file(found, blocks))} == {0}


def test_interfaces_keep_their_names_and_link_types(tmp_path: Path) -> None:
    conversation = talk(("10.10.0.21", 40000), ("10.10.0.11", 22))
    plain = timed(conversation)
    cooked = [on_any(f, 3) for f in timed(conversation, EPOCH + 10**9)]
    frames = [*plain, *(Frame(f.data, f.time, interface=1) for f in cooked)]
    interfaces = [Interface("eth0"), Interface("any", 9, link=SLL2)]
    path = save(tmp_path, "two.pcapng", pcapng(frames, interfaces=interfaces))
    analysis = analyze(path, cluster=recorded("offences").cluster)
    (finding,) = analysis.findings["id"]
    _, data = cut_out([path], analysis, finding)
    kept = records_of_cut(data)
    assert [r.data for r in kept] == [f.data for f in frames]
    names = [r.interface for r in kept]
    assert names == [("two.pcapng:eth0", ETHERNET)] * len(plain) + [("two.pcapng:any", SLL2)] * len(cooked)


# ---- fragments, tunnels, quotes ----


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_fragments_go_with_their_datagram_in_any_order(order: list[int]) -> None:
    one = fragments(("10.10.0.21", 5000), ("10.10.0.11", 6443), 150, ident=1)
    other = fragments(("10.10.0.21", 5001), ("10.10.0.11", 6443), 150, ident=2)
    frames = timed(
        [one[order[0]], other[order[0]], one[order[1]], other[order[1]], one[order[2]], other[order[2]]]
    )
    data = pcap(frames, "ns")
    rows = all_keys(data)
    found, blocks = cut_file(data, rows[rows["src_port"] == 5000])
    assert [int(n) for n in found.index["frame"]] == [1, 3, 5]
    assert [r.data for r in records_of_cut(whole_file(found, blocks))] == [one[i] for i in order]


def test_a_fragment_of_another_datagram_with_that_id_stays_out() -> None:
    ends = ("10.10.0.21", 5000), ("10.10.0.11", 6443)
    first = fragments(*ends, 150, ident=1)
    late = fragments(*ends, 150, ident=1)[1:]  # a minute and a half later, without its first one
    frames = [*timed(first), *timed(late, EPOCH + 90 * 10**9)]
    data = pcap(frames, "ns")
    found, _ = cut_file(data, all_keys(data))
    assert [int(n) for n in found.index["frame"]] == [1, 2, 3]


def test_an_inner_flow_takes_its_carriers_whatever_way_they_went() -> None:
    inner = talk(("10.42.0.5", 40000), ("10.42.1.6", 80))
    frames = timed(
        [carried(f, "10.10.0.21", "10.10.0.11", vni=v) for f in inner for v in (1, 2)]
        + [carried(f, "10.10.0.22", "10.10.0.11", vni=1) for f in inner]
        + inner
    )
    data = pcap(frames, "ns")
    rows = all_keys(data)
    found, _ = cut_file(data, rows[(rows["vni"] == 1) & (rows["tunnel"] == 1)])
    n = len(inner)
    assert [int(f) for f in found.index["frame"]] == [*range(1, 2 * n, 2), *range(2 * n + 1, 3 * n + 1)]


def test_an_icmp_error_goes_with_what_it_quotes() -> None:
    asked = segment(("10.10.0.21", 40000), ("10.10.0.11", 9345), SYN)
    data = pcap(timed([asked, unreachable("10.10.0.1", asked, 13)]), "ns")
    rows = all_keys(data)
    found, _ = cut_file(data, rows[rows["src_port"] == 40000])
    assert [int(n) for n in found.index["frame"]] == [1, 2]


def test_a_limit_holds_for_each_direction() -> None:
    frames = timed(talk(client_of(1), server_of(1), rounds=20) + talk(client_of(2), server_of(1)))
    data = pcap(frames, "ns")
    found, blocks = cut_file(data, all_keys(data), limit=3)
    kept = read(whole_file(found, blocks)).rows
    assert kept["packets"].tolist() == [3, 3, 3, 3]


# ---- several captures ----


def test_frames_of_several_captures_are_in_order_of_time(tmp_path: Path) -> None:
    conversation = talk(("10.10.0.21", 40000), ("10.10.0.11", 22), rounds=5)
    paths = [
        save(tmp_path, f"{name}.pcap", pcap(timed(conversation, EPOCH + shift)))
        for name, shift in (("one", 0), ("two", 500_000))
    ]
    analysis = analyze(*paths, cluster=recorded("offences").cluster)
    (finding,) = analysis.findings["id"]
    done, data = cut_out(paths, analysis, finding)
    kept = records_of_cut(data)
    assert [r.interface[0] for r in kept] == ["one.pcap", "two.pcap"] * len(conversation)
    assert done.by_source() == {"one.pcap": len(conversation), "two.pcap": len(conversation)}
    assert done.place(4) == "two.pcap 2"
    few, part = cut_out(paths, analysis, finding, most=5)
    assert len(few) == 5
    assert records_of_cut(part) == kept[:5]


def test_a_captures_own_order_is_kept_where_its_times_go_back(tmp_path: Path) -> None:
    conversation = talk(("10.10.0.21", 40000), ("10.10.0.11", 22))
    frames = [Frame(data, EPOCH - n * 1_000_000) for n, data in enumerate(conversation)]
    path = save(tmp_path, "back.pcap", pcap(frames))
    analysis = analyze(path, cluster=recorded("offences").cluster)
    _, data = cut_out([path], analysis, str(analysis.findings["id"].iloc[0]))
    assert [r.data for r in records_of_cut(data)] == conversation


# ---- what cannot be cut ----

SSH_FINDING = "violation-12ae446dc0"
OFFENCES = RECORDED / "offences"


def refused(
    inputs: Sequence[str | Path], finding: str = SSH_FINDING, analysis: Analysis | None = None
) -> str:
    stream = io.BytesIO()
    with pytest.raises(CaptureError) as caught:
        cut(inputs, analysis or recorded("offences"), finding, stream)
    assert not stream.getvalue()
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_an_unknown_finding() -> None:
    assert "no finding 'violation-0'" in refused([OFFENCES], "violation-0")


def test_a_finding_without_packets() -> None:
    analysis = analyze(OFFENCES / "agent-1.pcap", cluster=OFFENCES / "cluster.yaml")
    blind = analysis.findings[analysis.findings["kind"] == "blind-spot"]["id"]
    for finding in blind:
        assert "is about no packets" in refused([OFFENCES / "agent-1.pcap"], finding, analysis)


def test_flow_tables_hold_no_packets_but_captures_beside_them_do(tmp_path: Path) -> None:
    table = pair(read_capture(OFFENCES / "agent-1.pcap").settled())
    write_flows(table, tmp_path / "flows.parquet")
    said = refused([tmp_path / "flows.parquet"])
    assert "flow tables hold no packets" in said
    assert "capture --pcap" in said
    done, _ = cut_out(
        [tmp_path / "flows.parquet", OFFENCES / "agent-1.pcap"], recorded("offences"), SSH_FINDING
    )
    assert done.by_source() == {"agent-1.pcap": 20}


def test_captures_without_the_findings_packets() -> None:
    said = refused([RECORDED / "baseline" / "server-1.pcap", RECORDED / "baseline" / "server-2.pcap"])
    assert said.startswith("server-1.pcap, server-2.pcap: none of the packets")


def test_standard_input_cannot_be_read_twice() -> None:
    assert "read only once" in refused(["-"])


def test_a_full_disk_is_told_in_a_line() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(CaptureError, match="No space left"):
        cut([OFFENCES], recorded("offences"), SSH_FINDING, full)


# ---- damage ----

_SEED_FILES = [
    pcap(timed(talk(client_of(1), server_of(1)) + fragments(client_of(1), server_of(2), 150, 5)[::-1]), "ns"),
    pcapng(timed(talk(client_of(1), server_of(1)) + fragments(client_of(1), server_of(2), 150, 5)[::-1])),
]


@settings(max_examples=100)
@given(
    original=st.sampled_from(_SEED_FILES),
    damage=st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), max_size=6),
    end=st.integers(0, 3000),
)
def test_any_bytes_end_in_a_cut_or_in_one_clear_line(
    original: bytes, damage: list[tuple[int, bytes]], end: int
) -> None:
    data = bytearray(original)
    for at, new in damage:
        data[at : at + len(new)] = new
    broken = bytes(data[:end])
    keys = all_keys(original)
    try:
        found, blocks = cut_file(broken, keys)
    except CaptureError:
        with pytest.raises(CaptureError):
            read(broken)
        return
    whole, wanted = five_tuples(read(broken)), set(five_tuples(OneWay(keys)))
    again = five_tuples(read(whole_file(found, blocks))) if len(found.index) else {}
    for key in wanted & set(whole):
        assert [c[2:4] for c in counted(again[key])] == [c[2:4] for c in counted(whole[key])]


@pytest.mark.parametrize(
    ("keys", "also"), [(b"x" * 79, b""), (b"", b"x" * 7)], ids=["half a key", "half a number"]
)
def test_the_reader_takes_whole_records_only(keys: bytes, also: bytes) -> None:
    with pytest.raises(ValueError, match="records of"):
        _reader.Reader(SEED, 0).select(keys, 0, also)


def test_frames_are_selected_before_reading_and_once() -> None:
    reader = _reader.Reader(SEED, 0)
    with pytest.raises(RuntimeError, match="nothing was selected"):
        reader.take_cut()
    reader.select(b"", 0, b"")
    with pytest.raises(RuntimeError, match="once"):
        reader.select(b"", 0, b"")
    late = _reader.Reader(SEED, 0)
    late.consume(pcap(timed([datagram(client_of(1), server_of(1))])))
    with pytest.raises(RuntimeError, match="before the first one"):
        late.select(b"", 0, b"")


def test_keys_of_flows_are_both_directions() -> None:
    flows = recorded("offences").flows
    ssh = flows[flows["server_port"] == 22]
    keys = keys_of(ssh)
    assert keys.dtype == ROW
    ports = {(int(k["src_port"]), int(k["dst_port"])) for k in keys}
    clients = set(ssh["client_port"].tolist())
    assert ports == {(port, 22) for port in clients} | {(22, port) for port in clients}


if sys.byteorder == "big":
    pytest.skip("files are taken apart here as a little-endian machine writes them", allow_module_level=True)
