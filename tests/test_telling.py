"""What is kept of parts for findings. Rule: what is expected is find() of all flows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import frames as fr
import numpy as np
import pandas as pd
import pytest
from frames import EPOCH, NS
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.cluster import Cluster, Node
from analyzer.findings import MANY, MANY_CLIENTS, PLACES, Unseen, find, strangers, unseen
from analyzer.rows import Coverage
from analyzer.spec import load_spec
from analyzer.telling import _in_order, joined, telling
from analyzer.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Sequence

SPEC = load_spec("rke2-canal")
ADDRESSES = tuple(f"10.10.0.{n}" for n in range(10, 24))
CLUSTER = Cluster(
    "prod",
    tuple(Node(f"node-{n}", "agent" if n > 1 else "server", (a,)) for n, a in enumerate(ADDRESSES)),
)
END = EPOCH + 60 * NS
COVERAGE = tuple(
    Coverage(name, frames=9, flow=9, start=EPOCH, end=END) for name in ("node-0.pcap", "node-3.pcap")
)
OUTSIDE = tuple(f"192.0.2.{n}" for n in range(1, 120))
#: column → what some kind of traffic may have there: one value for all flows, or any of several
ANY: dict[str, tuple[Sequence[Any], ...]] = {
    "client": (ADDRESSES[2:3], ADDRESSES[:3], (*ADDRESSES[:1], *OUTSIDE), OUTSIDE[:52], OUTSIDE[:1]),
    "server": (ADDRESSES[:1], ADDRESSES[3:4], ADDRESSES),
    "server_port": ((6443,), (22,), (8472,), (10250,), range(30000, 30050), (*range(1, 30), 6443)),
    "client_port": (range(1000, 1010),),
    "protocol": (("tcp",), ("udp",), ("tcp", "tcp", "udp")),
    "outcome": (
        ("answered",),
        ("unanswered",),
        ("one-way",),
        ("answered", "unanswered", "refused"),
        ("answered", "answered", "refused"),
    ),
    "source": (("node-3.pcap",), ("node-0.pcap", "node-3.pcap:eth1", "else")),
    "witnesses": (("node-0.pcap",), ("node-0.pcap;node-3.pcap", "else")),
    "drops": (("",), ("", "", "node-3 NO_SOCKET 2")),
    "process": ((None,), ("curl", "nc")),
    "packets_out": ((1,), (1, 2)),
    "bytes_out": (range(40, 1500),),
    "tcp_flags_out": ((0x1B,), (0x10, 0x1B)),
    "tcp_flags_in": ((0x1B,), (0x04, 0x1B)),
    "first_frame": (range(1000),),
}


def kind(draw: st.DrawFn, random: np.random.Generator, count: int) -> pd.DataFrame:
    values = {name: draw(st.sampled_from(choices)) for name, choices in ANY.items()}
    start = EPOCH + random.integers(0, draw(st.sampled_from((8, 240))), count) * (NS // 4)
    columns = {name: random.choice(np.array(of, object), count) for name, of in values.items()}
    columns |= {"start": start, "end": np.minimum(END, start + random.integers(0, 3, count) * NS)}
    like = fr.flow(ADDRESSES[0], ADDRESSES[1])
    return pd.DataFrame({name: columns.get(name, [like.get(name)] * count) for name in [*like, "drops"]})


@st.composite
def crowds(draw: st.DrawFn) -> pd.DataFrame:
    """Some kinds of traffic at once, the flows of each with much in common."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = [kind(draw, random, draw(st.sampled_from((9, 200, 400)))) for _ in range(draw(st.integers(1, 3)))]
    rows: Any = pd.concat(kinds).to_dict("records")
    table = fr.table(rows)
    if draw(st.booleans()):
        table.loc[random.random(len(table)) < 0.1, ["start", "end"]] = pd.NaT
    names = ["start", "client", "client_port", "server", "server_port", "protocol"]
    return _in_order(table).drop_duplicates(names, ignore_index=True)


def cut(judged: pd.DataFrame, count: int) -> list[pd.DataFrame]:
    """By the unordered pair of ends."""
    ends = zip(judged["client"].astype(str), judged["server"].astype(str), strict=True)
    share = np.array([sum(map(ord, a + b)) * 7 % count for a, b in ends], int)
    return [judged[share == n].reset_index(drop=True) for n in range(count)]


def told(parts: list[pd.DataFrame], coverage: tuple[Coverage, ...], fan_in: int = 3) -> pd.DataFrame:
    """Findings of parts, kept apart and joined a few at a time."""
    known: Unseen = Counter()
    for part in parts:
        known.update(unseen(part))
    kept = [telling(part, SPEC, coverage, CLUSTER.members) for part in parts]
    while len(kept) > 1:
        kept = [joined(kept[n : n + fan_in]) for n in range(0, len(kept), fan_in)]
    strange = sum(map(strangers, parts))
    strange = strange if strange == sum(map(len, parts)) else 0
    return find(kept[0], CLUSTER, SPEC, coverage, known=known, strange=strange)


@given(crowds(), st.integers(1, 7), st.integers(2, 4))
@settings(max_examples=50, deadline=None)
def test_parts_tell_what_the_whole_tells(table: pd.DataFrame, count: int, fan_in: int) -> None:
    judged = judge(table, CLUSTER, SPEC)
    expected = find(judged, CLUSTER, SPEC, COVERAGE)
    pd.testing.assert_frame_equal(told(cut(judged, count), COVERAGE, fan_in), expected)


def assert_told_alike(rows: list[dict[str, Any]], count: int = 5) -> tuple[pd.DataFrame, int]:
    """The findings, and how many rows they needed."""
    judged = judge(_in_order(fr.table(rows)), CLUSTER, SPEC)
    expected = find(judged, CLUSTER, SPEC, COVERAGE)
    parts = cut(judged, count)
    pd.testing.assert_frame_equal(told(parts, COVERAGE), expected)
    return expected, len(joined(telling(part, SPEC, COVERAGE, CLUSTER.members) for part in parts))


@pytest.mark.parametrize("clients", range(MANY_CLIENTS - 1, MANY_CLIENTS + 4))
@pytest.mark.parametrize("port", [10250, 8472])
def test_a_crowd_is_one_finding_from_51_on(clients: int, port: int) -> None:
    protocol = "udp" if port == 8472 else "tcp"
    findings, _ = assert_told_alike(
        [
            fr.flow(f"192.0.2.{n % clients}", ADDRESSES[0], port, protocol, client_port=n, first_frame=n)
            for n in range(4 * clients)
        ]
    )
    assert (findings["client"].tolist() == [MANY]) == (clients > MANY_CLIENTS)
    assert findings["flows"].sum() == 4 * clients


def test_a_scan_and_what_failed_beside_it() -> None:
    """A port of the table that fails while the client scans is part of the scan; before and after, not."""
    scanner, server = ADDRESSES[2], ADDRESSES[0]
    scan = [
        fr.failed(scanner, server, 1 + n % 25, client_port=n, start=EPOCH + n * NS // 10, first_frame=n)
        for n in range(250)
    ]
    beside = [
        fr.failed(scanner, server, client_port=2000 + n, start=EPOCH + (n - 20) * NS, first_frame=n)
        for n in range(80)
    ]
    findings, _ = assert_told_alike([*scan, *beside])
    assert dict(zip(findings["kind"], findings["flows"], strict=True)) == {"scan": 285, "blocked": 45}


def test_who_mostly_succeeds_is_no_scanner() -> None:
    """However many rows stand for its successes, and though it is one of a crowd."""
    late = "192.0.2.99"
    tries = [fr.failed(late, ADDRESSES[0], n, first_frame=n) for n in range(1, 26)]
    crowd = [fr.flow(f"192.0.2.{n}", ADDRESSES[0], 10250, client_port=n) for n in range(10, 70)]
    asked = [fr.flow(late, ADDRESSES[0], 10250, client_port=n, first_frame=n) for n in range(26)]
    findings, _ = assert_told_alike([*tries, *crowd, *asked], count=1)
    assert findings["kind"].tolist() == ["exposure"]
    findings, _ = assert_told_alike([*tries, *crowd, *asked[:20]])
    assert sorted(findings["kind"]) == ["exposure", "scan"]


def test_intervals_of_one_connection_are_one_attempt() -> None:
    scanner, server = ADDRESSES[2], ADDRESSES[0]
    tries = [fr.failed(scanner, server, n, first_frame=n) for n in range(1, 31)]
    watch = [fr.flow(scanner, server, 9100, start=EPOCH + n * NS, first_frame=n) for n in range(200)]
    findings, rows = assert_told_alike([*tries, *watch])
    assert sorted(findings["kind"]) == ["scan", "violation"]
    assert rows < len(tries) + 10


@pytest.mark.parametrize(
    ("column", "usual", "once", "words"),
    [
        ("witnesses", "node-3.pcap", "node-0.pcap;node-3.pcap", "It left node-3 and came to node-0"),
        ("drops", "node-0 NO_SOCKET 2", "node-0 NO_SOCKET 3", "41 of its packets"),
        ("process", "curl", "nc", "by curl, nc"),
    ],
)
def test_what_one_flow_of_many_has(column: str, usual: str, once: str, words: str) -> None:
    rows = [
        fr.failed(ADDRESSES[3], ADDRESSES[0], client_port=n, first_frame=n)
        | {column: once if n == 9 else usual}
        for n in range(20)
    ]
    findings, _ = assert_told_alike(rows)
    assert words in findings["title"].iloc[0] + findings["advice"].iloc[0]


@pytest.mark.parametrize("times", [1, 20])
def test_what_is_kept_does_not_grow_with_the_flows(times: int) -> None:
    """Nor with the addresses that share a port of a node."""
    rows = [
        *[fr.flow(ADDRESSES[2], ADDRESSES[3], 22, start=EPOCH + n, first_frame=n) for n in range(60 * times)],
        *[fr.failed(ADDRESSES[2], ADDRESSES[0], start=EPOCH + n, first_frame=n) for n in range(60 * times)],
        *[
            fr.flow(f"198.51.{n // 250}.{n % 250}", ADDRESSES[0], 10250, start=EPOCH + n, first_frame=n)
            for n in range(60 * times)
        ],
        *[fr.flow(ADDRESSES[0], "192.0.2.1", n, start=EPOCH + n) for n in range(60 * times)],
        *[fr.flow("192.0.2.1", ADDRESSES[0], 22, start=EPOCH + n) for n in range(60 * times)],
    ]
    findings, kept = assert_told_alike(rows)
    assert findings["flows"].tolist() == [60 * times] * 3
    assert kept <= 2 * (PLACES + 2) + MANY_CLIENTS + 1 + PLACES + 2


@pytest.mark.parametrize(("begin", "end", "lost"), [(9, 12, True), (21, 25, False)])
def test_a_capture_that_ran_for_some_flows_only(begin: int, end: int, lost: bool) -> None:
    """Which of many flows alike it could have seen, the first ones and the last one do not tell."""
    source = {"source": "node-3.pcap", "witnesses": "node-3.pcap"}
    rows = [
        fr.failed(ADDRESSES[3], ADDRESSES[0], 6443, client_port=1000 + n, start=at, end=at, **source)
        for n, at in enumerate(EPOCH + second * NS for second in range(20))
    ]
    coverage = (Coverage("node-0.pcap", start=EPOCH + begin * NS, end=EPOCH + end * NS), COVERAGE[1])
    judged = judge(_in_order(fr.table(rows)), CLUSTER, SPEC)
    expected = find(judged, CLUSTER, SPEC, coverage)
    pd.testing.assert_frame_equal(told(cut(judged, 5), coverage), expected)
    (blocked,) = expected[expected["kind"] == "blocked"]["advice"]
    assert ("never came to node-0" in blocked) == lost
