"""What changed between two runs. Rule: runs by hand, of which it is known; and the lab's truth of two
recordings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import frames as fr
import pandas as pd
import pytest
from conftest import RECORDED
from frames import Frame, traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import AGENT, AGENT_2, CLUSTER, OUTSIDE, SERVER, SERVER_2, SPEC, failed, flow, ledger, recorded, run

from analyzer.analysis import Analysis
from analyzer.change import FINDINGS, GROWTH, PAIRS, compare, since
from analyzer.documents import Document
from analyzer.findings import MANY, MANY_CLIENTS, SEVERITIES
from analyzer.pairs import KEY
from analyzer.report import document
from analyzer.rows import Coverage

Key = tuple[Any, ...]
#: a run that is made when a test asks for it, not when the file is read
Run = Callable[[], Document]
late = partial(partial, run)


def changes(old: Document, new: Document, growth: float = GROWTH) -> dict[Key, str]:
    table = compare(old, new, growth).pairs
    return {tuple(row[name] for name in KEY): row["change"] for row in table.to_dict("records")}


def finding_changes(old: Document, new: Document) -> dict[str, str]:
    table = compare(old, new).findings
    return dict(zip(table["id"], table["change"], strict=True))


def of_recording(name: str) -> Document:
    return Document.of(name, document(recorded(name)))


# ---- recordings ----


def truth(name: str) -> set[Key]:
    rows = json.loads((RECORDED / name / "truth.json").read_text())["rows"]
    return {tuple(row[key] for key in KEY) for row in rows}


def test_offences_are_what_is_new_beside_the_baseline() -> None:
    old, new = of_recording("baseline"), of_recording("offences")
    found = changes(old, new)
    assert {key for key, change in found.items() if change == "new"} == truth("offences") - truth("baseline")
    assert "gone" not in found.values()
    known = {finding["id"] for finding in old.findings}
    assert finding_changes(old, new) == {f["id"]: "new" for f in new.findings if f["id"] not in known}
    assert len(known) == 1
    back = compare(new, old)
    assert set(back.findings["change"]) == {"fixed"}
    assert "new" not in set(back.pairs["change"])


@pytest.mark.parametrize("name", ["baseline", "offences", "blocked", "any"])
def test_nothing_changed_in_the_same_recording(name: str) -> None:
    same = compare(of_recording(name), of_recording(name))
    assert same.pairs.empty
    assert same.findings.empty
    assert same.notes == ()


# ---- pairs ----


@given(traffic(), traffic())
@settings(max_examples=12, deadline=None)
def test_new_is_what_the_other_way_round_is_gone(one: list[Frame], other: list[Frame]) -> None:
    """Runs of equal length, so that nothing is too rare."""
    runs = [
        replace(Document.of("run", document(Analysis.of(fr.read(fr.pcap(f)), CLUSTER, SPEC))), window=60.0)
        for f in (one, other)
    ]
    there, back = changes(runs[0], runs[1]), changes(runs[1], runs[0])
    assert {k for k, c in there.items() if c == "new"} == {k for k, c in back.items() if c == "gone"}
    keys = [{tuple(row[name] for name in KEY) for row in each.pairs} for each in runs]
    assert {k for k, c in there.items() if c == "new"} <= keys[1] - keys[0]
    assert {k for k, c in there.items() if c == "grown"} <= keys[1] & keys[0]
    ids = [{f["id"] for f in each.findings} for each in runs]
    found = finding_changes(runs[0], runs[1])
    assert {i for i, c in found.items() if c == "new"} == ids[1] - ids[0]
    assert {i for i, c in found.items() if c == "fixed"} == ids[0] - ids[1]


def busy(packets: int, size: int = 100, **more: Any) -> dict[str, Any]:
    return flow(
        AGENT, SERVER, packets_out=packets, packets_in=0, bytes_out=packets * size, bytes_in=0, **more
    )


GROWTHS: dict[str, tuple[Run, Run, bool]] = {
    "more than twice the packets": (late(busy(1000)), late(busy(2001)), True),
    "twice the packets": (late(busy(1000)), late(busy(2000)), False),
    "more in a run as much longer": (late(busy(1000)), late(busy(4000), seconds=2400), False),
    "as many in a run shorter than half": (late(busy(1000)), late(busy(1000), seconds=299), True),
    "below 100 packets": (late(busy(1), seconds=60), late(busy(99), seconds=60), False),
    "100 packets": (late(busy(1), seconds=60), late(busy(100), seconds=60), True),
    "below one packet a second": (late(busy(10), seconds=3600), late(busy(3599), seconds=3600), False),
    "one packet a second": (late(busy(10), seconds=3600), late(busy(3600), seconds=3600), True),
    "as many packets, larger": (late(busy(1000)), late(busy(1000, size=1000)), True),
    "as many, larger, below 1 kB a second": (late(busy(500, 10)), late(busy(500, 1000), seconds=600), False),
    "window not known": (late(busy(10), seconds=0), late(busy(100_000), seconds=0), False),
}


@pytest.mark.parametrize("name", GROWTHS)
def test_grown(name: str) -> None:
    old, new, grown = GROWTHS[name]
    found = changes(old(), new())
    assert found == ({("agent-1", "server-1", "tcp", 6443): "grown"} if grown else {})


def test_growth_can_be_set_and_is_told() -> None:
    old, new = run(busy(1000)), run(busy(2500))
    assert changes(old, new, 2.5) == {}
    assert changes(old, new, 2.4)
    (row,) = compare(old, new).pairs.to_dict("records")
    assert (row["packets_old"], row["packets_new"], row["packets_factor"]) == (1000, 2500, 2.5)


def test_several_sources_of_one_time_are_one_window() -> None:
    twice = run(busy(1000), coverage=(ledger(source="a.pcap"), ledger(source="b.pcap", since=300)))
    assert twice.window == 900
    apart = run(busy(1000), coverage=(ledger(60, "a.pcap"), ledger(60, "b.pcap", since=86400)))
    assert apart.window == 120


def test_a_pause_is_no_time_in_which_a_source_watched() -> None:
    """An hour of each night is no week: what is as busy as ever has not grown."""
    nights = [ledger(3600, "agent-1", since=night * 86400) for night in range(7)]
    week = run(busy(700_000), coverage=(reduce(Coverage.plus, nights),))
    one = run(busy(100_000), coverage=nights[:1])
    assert (week.window, one.window) == (7 * 3600, 3600)
    assert changes(week, one) == {}


MISSES: dict[str, tuple[Run, Run, dict[str, int]]] = {
    "as long": (late(flow(AGENT, SERVER)), late(), {"gone": 1}),
    "longer": (late(flow(AGENT, SERVER)), late(seconds=6000), {"gone": 1}),
    "shorter, one flow": (late(flow(AGENT, SERVER)), late(seconds=60), {}),
    "shorter, 30 flows": (late(*[flow(AGENT, SERVER)] * 30), late(seconds=60), {"gone": 1}),
    "shorter, 29 flows, few packets": (
        late(*[flow(AGENT, SERVER, packets_in=0)] * 29),
        late(seconds=60),
        {},
    ),
    "shorter, one long flow": (late(busy(1000)), late(seconds=60), {"gone": 1}),
    "window not known": (late(flow(AGENT, SERVER), seconds=0), late(seconds=0), {"gone": 1}),
}


@pytest.mark.parametrize("name", MISSES)
def test_gone(name: str) -> None:
    old, new, expected = MISSES[name]
    change = compare(old(), new())
    assert change.pairs["change"].value_counts().to_dict() == expected
    assert any("too rare" in note for note in change.notes) is not bool(expected)


@pytest.mark.parametrize("outside_is", ["client", "server"])
def test_addresses_within_many_are_neither_new_nor_gone(outside_is: str) -> None:
    outside = [f"192.0.2.{n}" for n in range(MANY_CLIENTS + 1)]
    flows = [flow(a, SERVER) if outside_is == "client" else flow(SERVER, a) for a in outside]
    few, many = run(*flows[:-1]), run(*flows)
    ends = (MANY, "server-1") if outside_is == "client" else ("server-1", MANY)
    assert changes(few, many) == changes(many, few) == {}
    assert changes(run(), many) == {(*ends, "tcp", 6443): "new"}
    assert changes(many, run()) == {(*ends, "tcp", 6443): "gone"}
    twice = run(*[row | {"packets_out": 6000} for row in flows[:-1]])
    (grown,) = compare(many, twice).pairs.to_dict("records")
    assert (grown["change"], grown["client"], grown["server"]) == ("grown", *ends)
    assert (grown["packets_old"], grown["packets_new"]) == (11 * (MANY_CLIENTS + 1), 6005 * MANY_CLIENTS)


def test_a_node_is_none_of_many_addresses_outside() -> None:
    crowd = [flow(f"192.0.2.{n}", AGENT, 30080) for n in range(MANY_CLIENTS + 1)]
    one = flow(AGENT_2, AGENT, 30080)
    assert changes(run(*crowd), run(*crowd, one)) == {("agent-2", "agent-1", "tcp", 30080): "new"}
    assert changes(run(*crowd, one), run(*crowd)) == {("agent-2", "agent-1", "tcp", 30080): "gone"}


def test_one_of_many_addresses_is_no_new_finding_and_its_own_is_not_fixed() -> None:
    """The crowd itself is one where there were few: over 50 are more than there were."""
    flows = [flow(f"192.0.2.{n}", SERVER, 10250) for n in range(MANY_CLIENTS + 1)]
    few, many = run(*flows[:-1]), run(*flows)
    told = {
        name: list(zip(table["change"], table["title"].str.startswith(MANY), strict=True))
        for name, table in (
            ("grows", compare(few, many).findings),
            ("shrinks", compare(many, few).findings),
        )
    }
    assert told == {"grows": [("new", True)], "shrinks": []}
    assert list(finding_changes(many, run()).values()) == ["fixed"]
    assert list(finding_changes(few, run()).values()) == ["fixed"] * MANY_CLIENTS


def test_ports_within_a_scan_are_neither_new_nor_gone() -> None:
    one = [flow(AGENT, AGENT_2, 22)]
    scan = [failed(AGENT, AGENT_2, port, outcome="refused") for port in range(7000, 7100)]
    assert changes(run(*one), run(*one, *scan)) == {("agent-1", "agent-2", "tcp", 0): "new"}
    assert changes(run(*one, *scan), run(*one)) == {("agent-1", "agent-2", "tcp", 0): "gone"}
    (row,) = compare(run(*one), run(*one, *scan)).pairs.to_dict("records")
    assert (row["packets_old"], row["packets_new"]) == (11, 11 + 3 * 100)


def test_a_port_that_a_rule_names_is_none_of_a_scan() -> None:
    scan = [failed(AGENT, SERVER, port, outcome="refused") for port in range(7000, 7100)]
    etcd = flow(AGENT, SERVER, 2379)
    assert changes(run(*scan), run(*scan, etcd)) == {("agent-1", "server-1", "tcp", 2379): "new"}
    assert changes(run(*scan, etcd), run(*scan)) == {("agent-1", "server-1", "tcp", 2379): "gone"}


def test_an_echo_reply_folds_nothing() -> None:
    reply, ask = (flow(AGENT, SERVER, 0, "icmp", client_port=kind) for kind in (0, 8))
    assert changes(run(reply), run(reply, ask)) == {("agent-1", "server-1", "icmp", 8): "new"}


# ---- findings ----


def test_a_finding_that_became_graver_is_worse_and_one_that_became_milder_is_not() -> None:
    tried, reached = run(failed(AGENT, SERVER, 2379, outcome="refused")), run(flow(AGENT, SERVER, 2379))
    (row,) = compare(tried, reached).findings.to_dict("records")
    assert (row["change"], row["severity_old"], row["severity"]) == ("worse", "high", "critical")
    assert compare(reached, tried).findings.empty


@given(st.sampled_from(SEVERITIES), st.sampled_from(SEVERITIES))
def test_worse_is_graver(before: str, now: str) -> None:
    graver = SEVERITIES.index(now) < SEVERITIES.index(before)
    assert since(now, {"severity": before}) == ("worse" if graver else "")
    assert since(now, None) == "new"


def test_the_new_come_first_and_the_gravest_of_them() -> None:
    old = run(flow(AGENT_2, SERVER_2, 2379))
    new = run(flow(AGENT, SERVER, 22), flow(AGENT, SERVER, 2379), flow(OUTSIDE, SERVER, 6443))
    table = compare(old, new).findings
    assert list(table.columns) == list(FINDINGS)
    assert table["change"].tolist() == ["new", "new", "new", "fixed"]
    assert table["severity"].tolist() == ["critical", "medium", "low", "critical"]


# ---- notes, and as JSON ----

NOTES: dict[str, dict[str, Any]] = {
    "the specifications differ": {"spec": "site"},
    "the clusters differ": {"cluster": "test"},
    "the new run is shorter": {"window": 60.0},
    "a run's window is not known": {"window": 0.0},
    "sources of the old run are not in the new one: capture.pcap": {"coverage": ()},
}


@pytest.mark.parametrize("words", NOTES)
def test_what_limits_the_comparison_is_said(words: str) -> None:
    old = run(flow(AGENT, SERVER))
    (note,) = compare(old, replace(old, **NOTES[words])).notes
    assert words in note


def test_as_json() -> None:
    change = compare(of_recording("baseline"), of_recording("offences"))
    told = json.loads(json.dumps(change.to_dict(), allow_nan=False))
    assert set(told) == {"old", "new", "notes", "pairs", "findings"}
    assert [set(row) for row in told["pairs"]] == [set(PAIRS)] * len(change.pairs)
    assert [row["id"] for row in told["findings"]] == change.findings["id"].tolist()
    assert all(row["packets_factor"] is None for row in told["pairs"] if row["change"] == "new")
    assert told["old"]["seconds"] > 1


def test_columns_are_told_also_of_empty_tables() -> None:
    change = compare(run(), run())
    assert list(change.pairs.columns) == list(PAIRS)
    assert list(change.findings.columns) == list(FINDINGS)
    assert isinstance(change.pairs, pd.DataFrame)


def test_counts_are_exact_above_2_to_the_53() -> None:
    most, odd = (1 << 64) - 1, (1 << 53) + 1
    old = run(
        flow(AGENT, SERVER, bytes_out=odd, bytes_in=0), flow(AGENT, SERVER_2, bytes_out=odd, bytes_in=0)
    )
    new = run(
        flow(AGENT, SERVER_2, bytes_out=most, bytes_in=0), flow(AGENT_2, SERVER, bytes_out=most, bytes_in=0)
    )
    rows = compare(old, new).to_dict()["pairs"]
    counts = {(row["change"], row["server"]): (row["bytes_old"], row["bytes_new"]) for row in rows}
    assert counts == {
        ("new", "server-1"): (0, most),
        ("gone", "server-1"): (odd, 0),
        ("grown", "server-2"): (odd, most),
    }
