"""Clocks that are apart. Rule: connections whose true times are known, seen by sources whose clocks are set
by hand; and the project's recordings with one of them shifted, which must tell what they told.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import frames as fr
import numpy as np
import pandas as pd
import pytest
from conftest import RECORDED
from frames import EPOCH, NS, Frame, segment, server_of, talk
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import SYN

from analyzer import analyze
from analyzer.clocks import APART, KEPT, compared, merge_sketches, offsets, sketches, told
from analyzer.flows import pair
from analyzer.rows import Coverage, OneWay, merge
from analyzer.workers import analyze as analyze_by_workers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from analyzer.analysis import Analysis

MS = 10**6
SERVER = server_of(0)


def connection(n: int, begin: int, *, port: int = 0) -> list[Frame]:
    """Number `n`, which is longer than those before, from `begin` on."""
    frames = talk(("10.10.0.21", port or 40000 + n), SERVER, 1 + n)
    return [Frame(data, EPOCH + begin + at * MS) for at, data in enumerate(frames)]


def seen(source: str, frames: list[Frame], ahead: int = 0, interval: int = 0) -> OneWay:
    """A capture of these frames by a clock that is so far ahead."""
    return fr.read(fr.pcap([replace(f, time=f.time + ahead) for f in frames], "ns"), source, interval)


def clocks_of(*captures: OneWay) -> dict[str, int]:
    whole = compared(merge(captures))
    return {ledger.source: ledger.clock_offset for ledger in whole.coverage if ledger.clock_offset}


SOME = [frame for n in range(5) for frame in connection(n, n * NS)]


@pytest.mark.parametrize("interval", [0, NS // 2], ids=["whole", "intervals"])
@pytest.mark.parametrize("ahead", [3600 * NS, APART + NS // 2, -APART - NS // 2, -3600 * NS])
def test_a_clock_that_is_apart_is_found(ahead: int, interval: int) -> None:
    agent, server = seen("agent.pcap", SOME, 0, interval), seen("server.pcap", SOME, ahead, interval)
    assert clocks_of(agent, server) == {"server.pcap": ahead}
    assert clocks_of(server, agent) == {"server.pcap": ahead}


@pytest.mark.parametrize("ahead", [0, APART - MS, MS - APART])
def test_clocks_that_are_close_are_not_told(ahead: int) -> None:
    assert not clocks_of(seen("agent.pcap", SOME), seen("server.pcap", SOME, ahead))


def test_of_many_connections_some_are_compared() -> None:
    opened = [
        Frame(segment((f"10.10.1.{n % 200}", 1024 + n), SERVER, SYN), EPOCH + n * MS)
        for n in range(KEPT + 500)
    ]
    agent, server = seen("agent.pcap", opened), seen("server.pcap", opened, 7 * NS)
    assert [len(of) for of in sketches(agent.rows, agent.observers).values()] == [KEPT]
    assert clocks_of(agent, server) == {"server.pcap": 7 * NS}


def test_one_source_has_nothing_to_compare() -> None:
    whole = seen("agent.pcap", SOME)
    assert compared(whole) is whole


def test_two_connections_are_too_few() -> None:
    few = SOME[: sum(len(connection(n, 0)) for n in range(2))]
    assert not clocks_of(seen("agent.pcap", few), seen("server.pcap", few, 60 * NS))


def test_captures_of_two_times_are_none_of_two_clocks() -> None:
    """A client with fixed ports, whose connections are alike and come each minute: one capture has two of
    each, the other one the second alone.
    """
    first, second = ([f for n in range(5) for f in connection(n, n * NS + at)] for at in (0, 60 * NS))
    for interval in (0, 10 * NS):
        both = seen("agent.pcap", [*first, *second], 0, interval)
        assert not clocks_of(both, seen("server.pcap", second, 0, interval))


def moved(by: Sequence[int]) -> list[Frame]:
    """Connections of SOME, each later by so many seconds."""
    return [f for n, late in enumerate(by) for f in connection(n, (n + late) * NS)]


@pytest.mark.parametrize(
    ("by", "known"),
    [
        ((10, 10, 10, -3600, 7), 10),
        ((10, 10, 10, -3600, 7, 3600), 0),
        ((-9, -4, 10, 10, 10, 60, 3600), 0),
        ((0, 0, 0, 0, 10, 10, 10), 0),
    ],
)
def test_what_most_connections_say_counts(by: Sequence[int], known: int) -> None:
    """Some are alike by chance: a 5-tuple was used again."""
    found = clocks_of(seen("a.pcap", moved([0] * len(by))), seen("b.pcap", moved(by)))
    assert found == ({"b.pcap": known * NS} if known else {})


def test_connections_of_other_bytes_are_not_compared() -> None:
    """Those that were cut say nothing: neither for a clock nor against it."""
    cut = [f for n in range(5, 11) for f in connection(n, n * NS)[2:]]
    whole = [f for n in range(11) for f in connection(n, n * NS)]
    assert clocks_of(seen("a.pcap", whole), seen("b.pcap", [*SOME, *cut], 10 * NS)) == {"b.pcap": 10 * NS}
    longer = [f for n in range(5) for f in connection(n + 1, (n + 10) * NS, port=40000 + n)]
    assert not clocks_of(seen("a.pcap", SOME), seen("b.pcap", longer))


def test_a_lost_packet_or_a_late_one_is_no_other_clock() -> None:
    """Of each connection the second capture lacks a packet, or has its SYN a second later, sent again."""
    lacking = [f for n in range(5) for k, f in enumerate(connection(n, n * NS)) if k != 3]
    late = [
        replace(f, time=f.time + (0 if k else -2 * NS))
        for n in range(5)
        for k, f in enumerate(connection(n, n * NS))
    ]
    for other in (lacking, late):
        assert not clocks_of(seen("agent.pcap", SOME), seen("server.pcap", other, 0))


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_clocks_of_a_cluster(data: st.DataObject) -> None:
    """Each connection is seen by two of several nodes, a little later by the second; most clocks agree."""
    nodes = [f"node-{n}.pcap" for n in range(data.draw(st.integers(3, 5)))]
    wrong = data.draw(st.sampled_from(nodes))
    ahead = data.draw(st.integers(APART + 200 * MS, 10**5 * NS)) * data.draw(st.sampled_from((-1, 1)))
    frames: dict[str, list[Frame]] = {name: [] for name in nodes}
    number = 0
    for place, one in enumerate(nodes):
        for other in nodes[place + 1 :]:
            for _ in range(3):
                number += 1
                way = data.draw(st.integers(0, 40 * MS))
                whole = connection(number % 7, number * NS, port=41000 + number)
                frames[one] += whole
                frames[other] += [replace(f, time=f.time + way) for f in whole]
    parts = [seen(name, of, ahead if name == wrong else 0) for name, of in frames.items()]
    found = clocks_of(*data.draw(st.permutations(parts)))
    assert found.keys() == {wrong}
    assert abs(found[wrong] - ahead) <= 200 * MS
    entire = {name: known for part in parts for name, known in sketches(part.rows, part.observers).items()}
    pieces = _in_parts(data, parts)
    assert pieces.keys() == entire.keys()
    for name, piece in pieces.items():
        np.testing.assert_array_equal(piece, entire[name])
    assert found == offsets(pieces)


def _in_parts(data: st.DataObject, parts: list[OneWay]) -> dict[str, np.ndarray]:
    """What is compared, taken from pieces of the rows and put together in any order."""
    pieces = [
        sketches(piece, part.observers)
        for part in parts
        for piece in np.split(
            part.rows, sorted(data.draw(st.sets(st.integers(0, len(part.rows)), max_size=3)))
        )
    ]
    whole: dict[str, np.ndarray] = {}
    for piece in data.draw(st.permutations(pieces)):
        whole = merge_sketches(whole, piece)
    return whole


def test_two_groups_that_saw_nothing_alike_are_told_apart_from_nobody() -> None:
    far = [replace(f, data=f.data.replace(bytes([10, 10, 0, 21]), bytes([10, 10, 0, 99]))) for f in SOME]
    sources = [
        seen("a.pcap", SOME),
        seen("b.pcap", SOME),
        seen("c.pcap", far, 9 * NS),
        seen("d.pcap", far, 9 * NS),
    ]
    assert not clocks_of(*sources)


def test_what_a_ledger_says_already_stays() -> None:
    known = (Coverage("a.pcap", clock_offset=5 * NS), Coverage("b.pcap"))
    assert told(known, {}) == known
    assert known[0].plus(replace(known[0], clock_offset=-7 * NS)).clock_offset == -7 * NS
    assert replace(known[0], clock_offset=-7 * NS).plus(known[0]).clock_offset == -7 * NS


def test_what_both_saw_counts_once_by_whatever_clock() -> None:
    """The captures do not overlap, by what their frames say."""
    table = pair(compared(merge([seen("a.pcap", SOME), seen("b.pcap", SOME, 3600 * NS)])))
    assert table["witnesses"].unique().tolist() == ["a.pcap;b.pcap"]
    once = pair(seen("a.pcap", SOME))
    for name in ("packets_out", "packets_in", "bytes_out", "bytes_in"):
        assert table[name].tolist() == once[name].tolist()


# ---- recordings ----

TELLING = ("client", "client_port", "server", "server_port", "protocol", "tunnel", "witnesses", "outcome",
           "packets_out", "packets_in", "bytes_out", "bytes_in", "rule", "verdict")  # fmt: skip


def shifted(folder: Path, scenario: str, node: str, seconds: float) -> Path:
    """A recording in which the clock of one node was so far ahead."""
    folder.mkdir(exist_ok=True)
    for path in (RECORDED / scenario).glob("*.pcap"):
        by = str(seconds if path.stem == node else 0)
        subprocess.run(["editcap", "-t", by, str(path), str(folder / path.name)], check=True)
    return folder


def flows_of(analysis: Analysis) -> pd.DataFrame:
    order = ["client", "client_port", "server", "server_port", "protocol", "tunnel"]
    return analysis.flows[list(TELLING)].astype(str).sort_values(order, ignore_index=True)


@pytest.mark.parametrize("seconds", [3600, -40, 5])
def test_a_recording_tells_the_same_by_another_clock(tmp_path: Path, seconds: int) -> None:
    scenario = RECORDED / "blocked"
    true = analyze(scenario, cluster=scenario / "cluster.yaml")
    found = analyze(shifted(tmp_path, "blocked", "server-1", seconds), cluster=scenario / "cluster.yaml")
    pd.testing.assert_frame_equal(flows_of(found), flows_of(true))
    side = "ahead of" if seconds > 0 else "behind"
    title = f"server-1.pcap: its clock is {abs(seconds):,}.0 s {side} the other captures'"
    assert [t for t in found.findings["title"] if "clock" in t] == [title]
    assert (
        found.findings["id"][found.findings["kind"] != "blind-spot"].tolist() == true.findings["id"].tolist()
    )


def test_nothing_is_lost_on_the_way_by_two_clocks(tmp_path: Path) -> None:
    """By one clock the packets to server-1 left agent-2 and never came; by two nothing says when."""
    scenario = RECORDED / "blocked"
    true = analyze(scenario, cluster=scenario / "cluster.yaml").findings
    lost = true["advice"].str.contains("never came to server-1")
    assert lost.sum() == 1
    for node in ("server-1", "agent-2"):
        found = analyze(shifted(tmp_path, "blocked", node, 1.1), cluster=scenario / "cluster.yaml").findings
        assert not found["advice"].str.contains("never came").any()
    found = analyze(shifted(tmp_path, "blocked", "agent-3", 5), cluster=scenario / "cluster.yaml").findings
    assert found["advice"].str.contains("never came to server-1").sum() == 1


@pytest.mark.parametrize(("scenario", "seconds"), [("baseline", 3600), ("blocked", 1.1)])
def test_workers_say_the_same_of_clocks(tmp_path: Path, scenario: str, seconds: float) -> None:
    cluster = RECORDED / scenario / "cluster.yaml"
    folder = shifted(tmp_path / "captures", scenario, "server-1", seconds)
    one = analyze(folder, cluster=cluster)
    many = analyze_by_workers(folder, cluster=cluster, scheduler="threads", folder=tmp_path / "judged")
    assert (many.coverage, many.sums) == (one.coverage, one.sums)
    pd.testing.assert_frame_equal(many.findings, one.findings)
    again = analyze(tmp_path / "judged", cluster=cluster)
    assert again.coverage == one.coverage
    assert again.findings["title"].tolist() == one.findings["title"].tolist()
