"""Flows over time. Rule: every count is compared with one made here, flow by flow."""

from __future__ import annotations

from collections import Counter
from typing import Any

import frames as fr
import numpy as np
import pandas as pd
import pytest
from frames import EPOCH, NS
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.cluster import Cluster, Node
from analyzer.matrices import KINDS, matrix
from analyzer.spec import load_spec
from analyzer.timeline import MAX_BINS, NO_BIN, STEPS, timeline
from analyzer.verdict import judge

SERVER, AGENT, STRANGER = "10.10.0.11", "10.10.0.21", "192.0.2.9"
CLUSTER = Cluster("prod", (Node("server-1", "server", (SERVER,)), Node("agent-1", "agent", (AGENT,))))
#: what a flow is → a function that makes its row
FLOWS = {
    "allowed": lambda start: fr.flow(AGENT, SERVER, start=start),
    "outside": lambda start: fr.flow(AGENT, SERVER, 2379, start=start),
    "blocked": lambda start: fr.failed(AGENT, SERVER, 9345, start=start),
    "external": lambda start: fr.flow(STRANGER, SERVER, start=start),
}
STARTS = st.lists(
    st.tuples(st.sampled_from(sorted(FLOWS)), st.integers(0, 10**9) | st.integers(0, 10**17)), max_size=30
)


def judged(flows: list[tuple[str, int]], untimed: int = 0) -> pd.DataFrame:
    rows = [FLOWS[what](EPOCH + start) for what, start in flows]
    rows += [FLOWS["allowed"](EPOCH) for _ in range(untimed)]
    table = judge(fr.table(rows), CLUSTER, load_spec("rke2-canal"))
    timed = np.arange(len(rows)) < len(flows)
    return table.assign(start=table["start"].where(timed))


@settings(max_examples=25)
@given(STARTS, st.integers(0, 3), st.sampled_from((1, 2, 7, MAX_BINS)))
def test_each_flow_counts_once_in_the_bin_in_which_it_began(
    flows: list[tuple[str, int]], untimed: int, bins: int
) -> None:
    table = judged(flows, untimed)
    line = timeline(table, bins)
    assert len(line.counts) <= bins
    assert line.untimed == untimed
    expected = Counter(
        ((EPOCH + start - line.origin) // line.step, KINDS.index(what))
        for what, start in flows
        if what in KINDS
    )
    found = {(n, kind): int(line.counts[n, kind]) for n, kind in np.argwhere(line.counts)}
    assert found == expected
    cells = matrix(table, "role", load_spec("rke2-canal"), CLUSTER)
    assert int(line.counts.sum()) + untimed == int(cells["flows"].sum())


@settings(max_examples=25)
@given(STARTS.filter(bool))
def test_bins_are_widths_that_people_count_in(flows: list[tuple[str, int]]) -> None:
    line = timeline(judged(flows))
    starts = [EPOCH + start for _, start in flows]
    assert line.origin % line.step == 0
    assert line.step in STEPS or line.step % STEPS[-1] == 0
    assert line.origin <= min(starts) < line.origin + line.step
    assert 0 <= max(starts) - line.origin < line.step * len(line.counts)


@pytest.mark.parametrize(
    ("seconds", "step"),
    [
        (0, 10**6), (0.05, 10**6), (1, 20 * 10**6), (60, NS), (3600, 60 * NS),
        (86399, 900 * NS), (86400, 1800 * NS), (40 * 86400, 12 * 3600 * NS),
        (400 * 86400, 5 * 86400 * NS),
    ],
)  # fmt: skip
def test_steps(seconds: float, step: int) -> None:
    assert timeline(judged([("allowed", 0), ("allowed", int(seconds * NS))])).step == step


def test_bins_of_other_times() -> None:
    line = timeline(judged([("allowed", 0), ("allowed", 10 * NS)]))
    times: list[Any] = [EPOCH, EPOCH + 10 * NS, EPOCH - NS, EPOCH + 3600 * NS, None]
    starts = pd.Series(pd.to_datetime(times, unit="ns", utc=True))
    assert line.bins_of(starts).tolist() == [0, len(line.counts) - 1, NO_BIN, NO_BIN, NO_BIN]


def test_nothing() -> None:
    line = timeline(judged([]))
    assert (line.counts.shape, line.untimed) == ((0, len(KINDS)), 0)
    assert timeline(judged([], 2)).untimed == 2
