"""What is chosen of a run. Rule: what is expected is counted here row by row, or is every input read whole
and chosen from; what a reader spares itself may change no number.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import frames as fr
import numpy as np
import pandas as pd
import pytest
from conftest import RECORDED
from frames import EPOCH, NS, Frame, same_table, talk, timed, traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes import drop, plain_facts, with_facts
from packets import TCP, UDP
from test_flow_store import same
from typer import BadParameter
from typer.testing import CliRunner

from analyzer import store, workers
from analyzer.analysis import Analysis, analyze
from analyzer.change import compare
from analyzer.choice import ALL, EVER, Choice, addresses_of, choose, sift
from analyzer.cli import app
from analyzer.cluster import load_cluster
from analyzer.commands.chosen import moment, wanted
from analyzer.documents import Document
from analyzer.errors import AnalyzerError, CaptureError, ClusterError
from analyzer.flow_store import Rules, compact
from analyzer.flows import pair, parse_address
from analyzer.page import render
from analyzer.report import document
from analyzer.rows import NO_TIME, Coverage, OneWay, merge
from analyzer.spec import load_spec
from analyzer.store import expand, place_of, read_flows, read_inputs, read_notes, write_rows

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86400 * NS
NOW = EPOCH + 400 * DAY
LIVE, OFFENCES = RECORDED / "live", RECORDED / "offences"
#: ends of the drawn conversations and of the tunnels that carry some of them, and one that is nowhere
ADDRESSES = [
    parse_address(text) for text in ("10.10.0.11", "10.10.0.21", "10.10.0.22", "10.42.0.5", "192.0.2.1")
]
PORTS = (6443, 40000, 5000, 8472, 0, 8, 1)


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    """Times around the drawn traffic, some of them within its intervals."""
    times = st.integers(-2 * NS, 20 * NS).map(lambda n: EPOCH + n)
    since = draw(st.just(0) | times)
    until = draw(st.just(EVER) | times.filter(lambda n: n > since))
    addresses = draw(st.none() | st.frozensets(st.sampled_from(ADDRESSES), min_size=1, max_size=2))
    return Choice(since, until, addresses, draw(st.frozensets(st.sampled_from(PORTS), max_size=2)))


def recorded(frames: list[Frame], node: str = "agent-1", interval: int = NS) -> OneWay:
    """As a live capture would have counted them: a ledger with a window."""
    one_way = fr.read(fr.pcap(frames, "ns"), node, interval)
    times = [frame.time for frame in frames]
    (ledger,) = one_way.coverage
    return replace(one_way, coverage=(replace(ledger, start=min(times), end=max(times)),))


def by_hand(row: np.void, choice: Choice, interval: int) -> bool:
    """Whether a row that is cut by time is chosen."""
    begin = int(row["interval"])
    ends = {row[name].tobytes() for name in ("src", "dst", "outer_src", "outer_dst")}
    return (
        begin < choice.until
        and begin + interval > choice.since
        and (choice.addresses is None or bool(ends & choice.addresses))
        and (
            not choice.ports
            or (
                int(row["protocol"]) in (TCP, UDP) and bool({row["src_port"], row["dst_port"]} & choice.ports)
            )
        )
    )


# ---- what is chosen ----


@given(frames=traffic(), choice=choices(), step=st.sampled_from((1, 3, 10)))
@settings(max_examples=150, deadline=None)
def test_rows_are_chosen_by_their_keys(frames: list[Frame], choice: Choice, step: int) -> None:
    whole = recorded(frames, interval=step * NS)
    (ledger,) = whole.coverage
    found = choose(whole, choice)
    if not choice.reaches([(ledger.start, ledger.end)]):
        assert (len(found.rows), found.coverage) == (0, ())
        return
    rows = [row for row in whole.rows if by_hand(row, choice, step * NS)]
    assert fr.plain(found) == fr.plain(replace(whole, rows=np.array(rows, whole.rows.dtype)))


@given(frames=traffic(), choice=choices(), interval=st.sampled_from((0, NS)))
@settings(max_examples=150, deadline=None)
def test_the_ledger_still_accounts_for_every_frame(
    frames: list[Frame], choice: Choice, interval: int
) -> None:
    """What was left out is neither in flows nor lost, and choosing again leaves nothing more out."""
    whole = replace(recorded(frames, interval=interval))
    whole = replace(whole, coverage=(replace(whole.coverage[0], lost=3, frames=whole.coverage[0].frames),))
    found = choose(whole, choice)
    same(sift(found, choice), found)
    for ledger in found.settled().coverage:
        assert ledger.accounted() == ledger.frames == len(frames)
        assert ledger.lost == 3
        outside = found.rows[found.rows["tunnel"] == 0]
        assert ledger.flow == outside["packets"].sum()
    assert choose(whole, ALL) is whole


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_not_cut_by_time_is_chosen_with_its_flow(data: st.DataObject) -> None:
    """Each flow is there as a whole, or is not: never one way of it, never a part of its counts."""
    frames, choice = data.draw(traffic()), data.draw(choices())
    choice = replace(choice, addresses=None, ports=frozenset())
    whole = fr.read(fr.pcap(frames, "ns"))
    before, after = pair(whole.settled()), pair(choose(whole, choice).settled())
    key = ["client", "server", "client_port", "server_port", "protocol", "tunnel", "vni"]
    named = set(map(tuple, after[key].to_numpy().tolist()))
    expected = before[np.array([tuple(row) in named for row in before[key].to_numpy().tolist()], bool)]
    same_table(after, expected.reset_index(drop=True))
    start, end = (before[name].astype("int64") for name in ("start", "end"))
    packets = whole.rows[whole.rows["start"] != NO_TIME]
    inside = packets[(packets["start"] < choice.until) & (packets["end"] >= choice.since)]
    if len(inside):
        assert len(after) >= 1
    outside = before[(start >= choice.until) | (end < choice.since)]
    carriers = outside["server_port"].isin((8472,)) | outside["protocol"].isin(("icmp", "icmpv6"))
    assert not {tuple(r) for r in outside[~carriers][key].to_numpy().tolist()} & named


def test_an_answer_brings_its_question() -> None:
    """Neither way of a connection that lasts is left alone, nor of an echo, nor of a tunnel's carriers."""
    client, server = ("10.10.0.21", 40000), ("10.10.0.11", 6443)
    whole = fr.read(
        fr.pcap([*timed(talk(client, server)[:6]), Frame(talk(client, server)[5], EPOCH + 60 * NS)])
    )
    late = Choice(since=EPOCH + 50 * NS)
    assert len(choose(whole, late).rows) == 2
    (flow,) = pair(choose(whole, late)).to_dict("records")
    assert flow["outcome"] == "answered"
    echoes = timed(fr.echo(1)[:2])
    whole = fr.read(fr.pcap([*echoes[:1], *(replace(f, time=EPOCH + 60 * NS) for f in echoes[1:])]))
    assert len(choose(whole, late).rows) == len(whole.rows) == 2
    for vni in (1, 815):  # of the answer: Cilium's are the sender's
        sent = fr.carried(talk(client, server)[0], "10.10.0.21", "10.10.0.11")
        back = fr.carried(talk(client, server)[1], "10.10.0.11", "10.10.0.21", vni=vni)
        whole = fr.read(fr.pcap([Frame(sent, EPOCH), Frame(back, EPOCH + 60 * NS)]))
        assert len(choose(whole, late).rows) == len(whole.rows) == 4


def test_a_dropped_packet_goes_with_its_flow() -> None:
    ends = ("10.10.0.21", 40000, "10.10.0.11", 6443, TCP)
    for interval, kept in ((0, 1), (NS, 0)):
        whole = recorded(timed(talk(("10.10.0.21", 40000), ("10.10.0.11", 6443))), interval=interval)
        facts = drop(ends, start=EPOCH + 90 * NS, interval=interval and EPOCH // NS * NS + 90 * NS)
        found = choose(replace(whole, facts=facts), Choice(until=EPOCH + 80 * NS))
        assert len(found.facts.drops) == kept
        assert len(choose(replace(whole, facts=facts), Choice(ports=frozenset((443,)))).facts.drops) == 0


def test_a_protocol_without_ports_has_none() -> None:
    """An echo request's type is 8, which is no port."""
    whole = fr.read(fr.pcap(timed(fr.echo(1)[:2])))
    assert set(whole.rows["src_port"].tolist()) == {8, 0}
    assert not len(choose(whole, Choice(ports=frozenset((8, 0)))).rows)


def test_fragments_are_chosen_when_their_ports_are_known(tmp_path: Path) -> None:
    """Later fragments in one part, the first one in another; by workers too, who read each part apart."""
    pytest.importorskip("dask")
    first, *later = fr.fragments(("10.10.0.21", 40000), ("10.10.0.11", 5000), 180, 7)
    for n, piece in enumerate((*later, first)):
        write_rows(recorded([Frame(piece, EPOCH + n * NS)]), tmp_path / f"{n}.parquet")
    for port, packets in ((5000, 3), (53, 0)):
        found = read_inputs([tmp_path], choice=Choice(ports=frozenset((port,)))).settled()
        (ledger,) = found.coverage
        assert found.rows["packets"].sum() == ledger.flow == packets
        assert (ledger.not_chosen, ledger.fragment) == (3 - packets, 0)
        out = tmp_path.with_name(f"{tmp_path.name}-{port}")
        count, coverage = workers.flows(tmp_path, folder=out, choice=Choice(ports=frozenset((port,))))
        assert (count, coverage) == (len(pair(found)), found.coverage)


def test_of_a_node_also_what_only_the_other_one_saw(tmp_path: Path) -> None:
    """Traffic of agent-1 that was recorded on server-1 alone, and inside a tunnel of agent-1's."""
    cluster = load_cluster({"nodes": [
        {"name": "server-1", "role": "server", "addresses": ["10.10.0.11"]},
        {"name": "agent-1", "role": "agent", "addresses": ["10.10.0.21", "fd00::21"]},
        {"name": "agent-2", "role": "agent", "addresses": ["10.10.0.22"]},
    ]})  # fmt: skip
    inner = fr.carried(talk(("10.42.0.5", 1), ("10.42.1.6", 2))[0], "10.10.0.21", "10.10.0.22")
    parts = {
        "server-1": talk(("10.10.0.21", 40000), ("10.10.0.11", 6443)),
        "agent-2": [inner, *talk(("10.10.0.22", 40000), ("10.10.0.11", 6443))],
    }
    for node, packets in parts.items():
        write_rows(recorded(timed(packets), node), tmp_path / f"{node}-0Z.parquet")
    compact(tmp_path, Rules(), NOW)
    found = read_inputs([tmp_path], choice=Choice(addresses=addresses_of(cluster, ["agent-1"])))
    names = [found.observers[n].source for n in found.rows["interface"].tolist()]
    assert sorted(names) == ["agent-2", "agent-2", "server-1", "server-1"]
    assert sorted(found.rows["tunnel"].tolist()) == [0, 0, 0, 1]
    assert {ledger.source: ledger.not_chosen for ledger in found.coverage} == {"server-1": 0, "agent-2": 8}
    with pytest.raises(ClusterError, match="no node is called 'agent-9'") as error:
        addresses_of(cluster, ["agent-1", "agent-9"])
    assert error.value.next_step == "there are server-1, agent-1, agent-2"


def test_a_capture_that_ends_by_choice_ends_there() -> None:
    """A question in the last moment that is asked for had no time to be answered: no finding of it."""
    client, server = ("10.10.0.21", 40000), ("10.10.0.11", 6443)
    syn, answer = talk(client, server)[:2]
    whole = recorded([Frame(syn, EPOCH), Frame(answer, EPOCH + 2 * NS), Frame(fr.arp(), EPOCH + 60 * NS)])
    cluster = load_cluster(LIVE / "cluster.yaml")
    names = {name: texts[0] for name, _, texts in cluster.rows()}
    assert {"10.10.0.21", "10.10.0.11"} <= set(names.values())
    early = choose(whole, Choice(until=EPOCH + NS // 2))
    (ledger,) = early.coverage
    assert (ledger.start, ledger.end) == (EPOCH, EPOCH // NS * NS + NS - 1)
    found = Analysis.of(early, cluster, load_spec())
    assert found.flows["outcome"].tolist() == ["unanswered"]
    assert "blocked" not in found.findings["kind"].tolist()
    unclipped = Analysis.of(replace(early, coverage=whole.coverage), cluster, load_spec())
    assert "blocked" in unclipped.findings["kind"].tolist()


# ---- as if all had been read ----


@st.composite
def stores(draw: st.DrawFn, folder: Path) -> Path:
    """Two nodes' parts, cut anywhere, some of them compacted."""
    for node in ("agent-1", "server-1"):
        frames = draw(traffic())
        cuts = sorted(draw(st.lists(st.integers(0, len(frames)), max_size=4)))
        for n, (a, b) in enumerate(pairwise([0, *cuts, len(frames)])):
            if a < b:
                part = draw(with_facts(fr.shifted(recorded(frames[a:b], node), a)))
                write_rows(part, folder / f"{node}-{n}.parquet")
        if draw(st.booleans()):
            compact(folder, Rules(target=draw(st.sampled_from((1 << 14, 1 << 26)))), NOW)
    return folder


def all_read(folder: Path, choice: Choice) -> OneWay:
    """Every part read whole, and chosen from."""
    notes = {path: read_notes(path) for path in expand([folder])}
    parts = [
        choose(read_flows(path), choice, note.windows) for path, note in notes.items() if note is not None
    ]
    return sift(merge([*parts, OneWay()]), choice)


def told_of_parts(one_way: OneWay, parts: int = 0) -> OneWay:
    """The same, with no word of parts that were not read."""
    return replace(one_way, coverage=tuple(replace(c, parts_not_read=parts) for c in one_way.coverage))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_reading_less_changes_nothing(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Facts, listeners, ledgers and waiting fragments included; with groups of two rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "GROUP_ROWS", 2)
        folder = data.draw(stores(tmp_path_factory.mktemp("store")))
    choice = data.draw(choices())
    expected = all_read(folder, choice)
    if choice.timed and not (expected.coverage or len(expected.rows)):
        with pytest.raises(CaptureError, match="nothing was recorded"):
            read_inputs([folder], choice=choice)
        return
    found = read_inputs([folder], choice=choice)
    same(told_of_parts(merge([found, OneWay()])), merge([expected, OneWay()]))
    assert {c.source for c in found.coverage} == {c.source for c in expected.coverage}


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_choosing_before_or_after_adding_up(data: st.DataObject) -> None:
    """By node and port anywhere; by time where no interval is in two parts, as of a live capture."""
    frames, choice = data.draw(traffic()), data.draw(choices())
    bounds = {n for n in range(1, len(frames)) if frames[n].time // NS > frames[n - 1].time // NS}
    cuts = sorted(data.draw(st.sets(st.sampled_from(sorted(bounds))))) if bounds else []
    if not choice.timed:
        cuts = sorted(data.draw(st.sets(st.integers(1, len(frames) - 1)))) if len(frames) > 1 else []
    parts = [recorded(frames[a:b]) for a, b in pairwise([0, *cuts, len(frames)])]
    whole = recorded(frames)
    # a datagram whose fragments lie on both sides of the time's edge is known to who reads all
    simple = not any(len(part.fragments) for part in parts)
    if simple or not choice.timed:
        before = sift(merge([*(choose(part, choice) for part in parts), OneWay()]), choice)
        assert {k: v[:2] for k, v in fr.plain(before).items()} == {
            k: v[:2] for k, v in fr.plain(choose(whole, choice)).items()
        }


def test_the_recorded_cluster(tmp_path: Path) -> None:
    """Every way to read a part of it finds the same: whole or by groups, compacted or not, one or workers."""
    cluster = load_cluster(LIVE / "cluster.yaml")
    ledgers = read_inputs([LIVE]).coverage
    start, end = min(c.start for c in ledgers), max(c.end for c in ledgers)
    third = (end - start) // 3
    choice = Choice(start + third, end - third, addresses_of(cluster, ["agent-1"]), frozenset((10250, 6443)))
    folder = shutil.copytree(LIVE, tmp_path / "live")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "GROUP_ROWS", 16)
        compact(folder, Rules(target=1 << 15), NOW * 2)
    plain, again = (analyze(place, cluster=cluster, choice=choice) for place in (LIVE, folder))
    assert 0 < len(plain.flows) < len(pair(read_inputs([LIVE]).settled()))
    same_table(again.flows, plain.flows)
    assert set(plain.flows["server_port"]) <= {10250, 6443}
    assert ((plain.flows["client_node"] == "agent-1") | (plain.flows["server_node"] == "agent-1")).all()
    pytest.importorskip("dask")
    for place in (LIVE, folder):
        found = workers.analyze(place, cluster=cluster, choice=choice)
        whole = analyze(place, cluster=cluster, choice=choice)
        assert found.findings["id"].tolist() == whole.findings["id"].tolist()
        assert found.matrix("node").equals(whole.matrix("node"))
        assert sorted(found.coverage, key=str) == sorted(whole.coverage, key=str)


@given(choice=choices())
@settings(max_examples=10, deadline=None)
def test_captures_on_workers_as_on_one(choice: Choice) -> None:
    """What is not cut by time too: each capture is chosen from by itself, whoever reads it."""
    pytest.importorskip("dask")
    cluster = load_cluster(OFFENCES / "cluster.yaml")
    ledgers = read_inputs([OFFENCES]).coverage
    start, end = min(c.start for c in ledgers), max(c.end for c in ledgers)
    choice = replace(
        choice,
        since=choice.since and start + (choice.since - EPOCH) % (end - start),
        until=EVER,
        addresses=addresses_of(cluster, ["agent-1"]) if choice.addresses else None,
    )
    whole = analyze(OFFENCES, cluster=cluster, choice=choice)
    found = workers.analyze(OFFENCES, cluster=cluster, choice=choice)
    assert found.findings["id"].tolist() == whole.findings["id"].tolist()
    assert found.matrix("node").equals(whole.matrix("node"))
    assert found.coverage == whole.coverage


# ---- what is not read ----


def days(folder: Path, count: int = 3, node: str = "agent-1") -> Path:
    """A compacted part for each day."""
    folder.mkdir(exist_ok=True)
    for n in range(count):
        for half in (0, 1):
            at = EPOCH + n * DAY + half * 10 * NS
            frames = [
                replace(f, time=at + f.time - EPOCH)
                for f in timed(talk(("10.10.0.21", 40000), ("10.10.0.11", 6443)))
            ]
            write_rows(recorded(frames, node), folder / f"{node}-{n}-{half}.parquet")
    compact(folder, Rules(), NOW)
    return folder


FRAMES = len(talk(("10.10.0.21", 40000), ("10.10.0.11", 6443)))
SECOND_DAY = Choice(EPOCH + DAY - 60 * NS, EPOCH + DAY + 60 * NS)


def test_a_compacted_part_of_another_day_is_not_opened(tmp_path: Path) -> None:
    """Nothing of it is as it should be but its place."""
    days(tmp_path)
    paths = sorted(tmp_path.glob("date=*/node=*/*.parquet"))
    expected = read_inputs([tmp_path], choice=SECOND_DAY)
    assert [(c.frames, c.not_chosen, c.parts_not_read) for c in expected.coverage] == [(2 * FRAMES, 0, 2)]
    for path in (paths[0], paths[2]):
        path.write_bytes(b"PAR1 and nothing else")
        path.chmod(0)
    same(read_inputs([tmp_path], choice=SECOND_DAY), expected)
    same(read_inputs(sorted(tmp_path.glob("*/*/*")), choice=SECOND_DAY), expected)
    pytest.importorskip("dask")
    count, coverage = workers.flows(tmp_path, folder=tmp_path.with_name("out"), choice=SECOND_DAY)
    assert (count, coverage) == (len(pair(expected)), expected.coverage)
    with pytest.raises(CaptureError):
        read_inputs([tmp_path])


def test_a_part_that_lies_anywhere_is_left_out_by_its_notes(tmp_path: Path) -> None:
    """Its rows are not read; a name that only looks like a place is not believed."""
    days(tmp_path / "s")
    paths = sorted((tmp_path / "s").rglob("*.parquet"))
    for n, path in enumerate(paths):
        shutil.copy(path, tmp_path / f"{n}.parquet")
    shutil.rmtree(tmp_path / "s")
    for n in (0, 2):
        damage(tmp_path / f"{n}.parquet", 4, 200)
    (ledger,) = read_inputs([tmp_path], choice=SECOND_DAY).coverage
    assert (ledger.frames, ledger.parts_not_read) == (2 * FRAMES, 2)
    with pytest.raises(CaptureError):
        read_inputs([tmp_path])


def damage(path: Path, start: int, length: int) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + length] = bytes(length)
    path.write_bytes(content)


def test_groups_of_rows_are_left_unread(tmp_path: Path) -> None:
    """By time, port and address; damage in one shows only to who asks for it."""
    import pyarrow.parquet as pq

    for n, (server, port) in enumerate((("10.10.0.11", 6443), ("10.10.0.12", 10250), ("10.10.0.13", 2379))):
        frames = [
            replace(f, time=f.time + n * 100 * NS) for f in timed(talk(("10.10.0.21", 40000), (server, port)))
        ]
        write_rows(recorded(frames), tmp_path / f"{n}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "GROUP_ROWS", 2)
        compact(tmp_path, Rules(interval=200 * NS), NOW)
    (path,) = tmp_path.rglob("*.parquet")
    whole = read_inputs([tmp_path])
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups == len(whole.rows) // 2 == 3
    asked = {
        "time": Choice(until=EPOCH + NS),
        "port": Choice(ports=frozenset((2379,))),
        "address": Choice(addresses=frozenset((parse_address("10.10.0.11"),))),
    }
    expected = {name: read_inputs([tmp_path], choice=choice) for name, choice in asked.items()}
    read = {name: groups_read(path, choice) for name, choice in asked.items()}
    assert all(0 < len(groups) < 3 for groups in read.values()), read
    for name, choice in asked.items():
        copy = tmp_path.with_name(f"{tmp_path.name}-{name}") / path.name
        copy.parent.mkdir()
        shutil.copy(path, copy)
        for n in set(range(3)) - set(read[name]):
            columns = [metadata.row_group(n).column(c) for c in range(metadata.num_columns)]
            for column in columns:
                begin = column.dictionary_page_offset or column.data_page_offset
                damage(copy, begin, column.total_compressed_size)
        same(read_inputs([copy], choice=choice), expected[name])
        with pytest.raises(CaptureError):
            read_inputs([copy])
        (ledger,) = expected[name].coverage
        assert ledger.flow == expected[name].rows["packets"].sum()
        assert ledger.frames == ledger.accounted() == 3 * FRAMES


def groups_read(path: Path, choice: Choice) -> list[int]:
    import pyarrow.parquet as pq

    from analyzer._parts import groups_of

    metadata = pq.read_metadata(path)
    return groups_of(metadata, choice, read_flows(path).interval)


def test_a_part_of_an_earlier_version_says_nothing_of_its_groups(tmp_path: Path) -> None:
    """It was written without statistics: read whole, and chosen from."""
    for path in sorted(LIVE.rglob("*.parquet"))[:3]:
        assert groups_read(path, Choice(ports=frozenset((1,)))) == [0]
        found = read_inputs([path], choice=Choice(ports=frozenset((6443,))))
        ports = found.rows["src_port"], found.rows["dst_port"]
        assert ((ports[0] == 6443) | (ports[1] == 6443)).all()


def test_a_connection_over_parts_keeps_both_ways_in_each(tmp_path: Path) -> None:
    client, server = ("10.10.0.21", 40000), ("10.10.0.11", 6443)
    packets = talk(client, server, rounds=6)
    other = talk(("10.10.0.22", 40001), ("10.10.0.11", 2379), rounds=6)
    frames = [
        Frame(p, EPOCH + n * NS) for n, pair_ in enumerate(zip(packets, other, strict=True)) for p in pair_
    ]
    for n in range(0, len(frames), 4):
        write_rows(recorded(frames[n : n + 4]), tmp_path / f"{n:03}.parquet")
    alone = recorded([f for f in frames if f.data in packets])
    found = read_inputs([tmp_path], choice=Choice(ports=frozenset((6443,))))
    same_table(
        pair(found.settled())[["packets_out", "packets_in", "outcome", "direction_by"]],
        pair(alone.settled())[["packets_out", "packets_in", "outcome", "direction_by"]],
    )
    (ledger,) = found.coverage
    assert (ledger.flow, ledger.not_chosen) == (len(packets), len(other))


@pytest.mark.parametrize(
    ("path", "node"),
    [
        ("s/date=2026-11-24/node=agent-1/20261124T100000.012Z-20261124T110000.010Z.parquet", "agent-1"),
        ("date=2026-11-24/node=a%2Fb/20261124T100000.012Z-20261124T110000.010Z-3.parquet", "a/b"),
        ("date=2026-11-25/node=agent-1/20261124T100000.012Z-20261124T110000.010Z.parquet", None),
        ("date=2026-11-24/node=agent-1/20261124T990000.012Z-20261124T110000.010Z.parquet", None),
        ("node=agent-1/20261124T100000.012Z-20261124T110000.010Z.parquet", None),
        ("date=2026-11-24/node=agent-1/agent-1-20261124T105720.013Z.parquet", None),
    ],
)
def test_places(path: str, node: str | None) -> None:
    found = place_of(path)
    assert (found and found[0]) == node
    if found:
        start, end = found[1]
        assert (start % NS, end % NS) == (12 * 10**6, 11 * 10**6 - 1)
        assert end - start == 3600 * NS - 10**6 - 1


def test_an_earlier_version_reads_what_was_not_chosen_from(tmp_path: Path) -> None:
    """Fields that it does not know are only there where they say something."""
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    write_rows(recorded(timed(talk(("10.10.0.21", 40000), ("10.10.0.11", 6443)))), path)
    assert b"not_chosen" not in pq.read_metadata(path).metadata[b"rke2-flows"]
    assert Coverage("x").not_chosen == 0


def test_a_run_of_what_was_chosen_says_so_beside_another() -> None:
    """What it does not have was perhaps not asked for; and nobody says of a node that all of it was seen."""
    cluster = load_cluster(LIVE / "cluster.yaml")
    whole, part = (
        analyze(LIVE, cluster=cluster, choice=choice) for choice in (ALL, Choice(ports=frozenset((6443,))))
    )
    old, new = (Document.of("x", document(each)) for each in (whole, part))
    notes = [note for note in compare(old, new).notes if "chosen" in note]
    assert notes == ["the new run is of chosen flows: what is not in it may not have been asked for"]
    assert not [note for note in compare(old, old).notes if "chosen" in note]
    assert "Among the chosen flows only, " in re.findall("<h1[^>]*>.*?</h1>", render(part), re.DOTALL)[0]
    assert "not chosen" in render(part)
    assert not re.search("not chosen|chosen flows", render(whole))


# ---- the command line ----


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2026-11-24", 1_795_478_400 * NS),
        ("2026-11-24T10:00", 1_795_514_400 * NS),
        ("2026-11-24 10:00:00 UTC", 1_795_514_400 * NS),
        ("2026-11-24T10:00:00.000001Z", 1_795_514_400 * NS + 1000),
        ("2026-11-24T10:00:00+02:00", 1_795_507_200 * NS),
        ("2h", NOW - 7200 * NS),
        ("3d", NOW - 3 * DAY),
        ("0", NOW),
    ],
)
def test_times(text: str, ns: int) -> None:
    assert moment(text, NOW, "--since") == ns


@pytest.mark.parametrize(
    "text", ["yesterday", "1969-12-31", "2026-13-01", "-2h", "2x", "", "2026", "2026-11-24T10"]
)
def test_what_is_no_time(text: str) -> None:
    if text == "2026-11-24T10":  # which Python knows
        assert moment(text, NOW, "--since") == 1_795_514_400 * NS
        return
    with pytest.raises(BadParameter):
        moment(text, NOW, "--since")


def test_a_time_ends_after_it_began() -> None:
    with pytest.raises(BadParameter, match="is not after"):
        wanted("2026-11-24", "2026-11-24", None, None)
    assert wanted(None, None, None, None).of(None) == ALL


def run(*words: object) -> tuple[int, str, str]:
    """Status, standard output, and what went wrong."""
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    failed = isinstance(done.exception, AnalyzerError)
    return 2 if failed else done.exit_code, done.stdout, f"{done.stderr}{done.exception if failed else ''}"


@pytest.fixture(scope="module")
def asked() -> tuple[str, ...]:
    ledgers = read_inputs([LIVE]).coverage
    start, end = min(c.start for c in ledgers), max(c.end for c in ledgers)
    times = (np.datetime64(n, "ns").astype("datetime64[ms]").item().isoformat() for n in (start, end))
    since, until = times
    return (
        "--since",
        since,
        "--until",
        f"{until}+00:00",
        "--node",
        "agent-1",
        "--port",
        "6443",
        "--port",
        "10250",
    )


def test_the_commands(asked: tuple[str, ...], tmp_path: Path) -> None:
    cluster = ("--cluster", LIVE / "cluster.yaml")
    status, text, _ = run("check", LIVE, *cluster, *asked, "--fail-on", "never", "-o", tmp_path / "x.csv")
    assert status == 0
    assert "not chosen)" in text
    assert "# Chosen flows, by verdict" in text
    assert "# All flows, by verdict" in run("check", LIVE, *cluster, "--fail-on", "never")[1]
    for words, left_out in ((asked, True), ((), False)):
        xml, log, html = (tmp_path / name for name in ("x.xml", "x.sarif", "x.html"))
        files = ("--junit", xml, "--sarif", log, "--html", html)
        assert run("check", LIVE, *cluster, *words, *files, "--fail-on", "never")[0] == 0
        assert ('name="not-chosen"' in xml.read_text()) == left_out
        assert ('"notChosen"' in log.read_text()) == left_out
        assert ("not seen among the chosen flows" in html.read_text()) == left_out
    ports = pd.read_csv(tmp_path / "x.csv", dtype=str)["server_port"].tolist()
    assert len(ports) > 0
    assert set(ports) <= {"6443", "10250"}
    status, text, said = run("flows", LIVE, *cluster, *asked, "-o", tmp_path / "y.parquet")
    assert (status, "not chosen" in said) == (0, True), said
    assert f"wrote {len(ports)} flows" in said
    status, text, said = run("matrix", LIVE, *cluster, *asked, "--by", "node")
    assert (status, "of chosen flows only" in said) == (0, True)
    assert "chosen" not in run("matrix", LIVE, *cluster, "--by", "node")[2]
    for words, only in ((asked, True), ((), False)):
        picture = tmp_path / f"{only}.svg"
        assert run("matrix", LIVE, *cluster, *words, "-o", picture)[0] == 0
        assert ("chosen flows only" in picture.read_text()) is only
    status, inferred, said = run("matrix", LIVE, *asked[:4], "--port", "6443", "--by", "node")
    assert (status, "inferred" in inferred) == (0, True)
    assert run("flows", LIVE, "--since", "1970-01-01", "--until", "1970-01-02")[0] == 2
    assert "no node is called 'nobody'" in run("check", LIVE, *cluster, "--node", "nobody")[2]
    assert run("check", LIVE, *cluster, "--port", "65536")[0] == 2
    assert "--cluster" in run("flows", LIVE, "--node", "x", "--scheduler", "threads", "-o", tmp_path / "n")[2]


def test_facts_of_the_store_are_of_what_is_chosen() -> None:
    found = read_inputs([LIVE], choice=Choice(ports=frozenset((6443,))))
    _, drops = plain_facts(found)
    assert all(6443 in key[2:4] for key in drops)
