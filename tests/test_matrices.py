"""matrix.py against a plain row-by-row count. Rule: tables in, tables out; no capture is read here."""

from __future__ import annotations

import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.errors import CaptureError
from analyzer.matrices import (
    FAILED_OUTCOMES,
    KIND_OF_VERDICT,
    KINDS,
    MEASURES,
    matrix,
    pair_name,
    totals,
)

BOTH, SERVERS, AGENTS = frozenset({"server", "agent"}), frozenset({"server"}), frozenset({"agent"})
TEXT = ("scope", "client_node", "server_node", "client_role", "server_role", "rule", "verdict", "outcome")
NUMBERS = ("packets_out", "packets_in", "bytes_out", "bytes_in")
LEVELS = {
    "role": ("rule", "client_role", "server_role"),
    "node": ("client_node", "server_node"),
    "rule": ("rule", "client_role", "server_role"),
}


def rule(name: str, clients: frozenset[str] = BOTH, servers: frozenset[str] = BOTH) -> SimpleNamespace:
    return SimpleNamespace(
        id=name, protocol="tcp", first_port=1, last_port=1, clients=clients, servers=servers
    )


SPEC = SimpleNamespace(
    name="some",
    rules=(
        rule("kube-api", AGENTS, SERVERS),
        rule("kubelet"),
        rule("etcd", frozenset({"etcd"}), frozenset({"etcd"})),
        rule("ssh", frozenset({"external"}), BOTH),
    ),
)
CLUSTER = SimpleNamespace(members=("server-1", "agent-1", "agent-10", "agent-2"))


def flow(client: str = "agent-1", server: str = "server-1", **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "scope": "inter-node",
        "client_node": client,
        "server_node": server,
        "client_role": client.split("-", maxsplit=1)[0],
        "server_role": server.split("-", maxsplit=1)[0],
        "rule": "kube-api",
        "verdict": "allowed",
        "outcome": "answered",
        "packets_out": 3,
        "packets_in": 2,
        "bytes_out": 300,
        "bytes_in": 200,
    }
    return row | changes


def table(rows: list[dict[str, Any]], *, categorical: bool = True) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=[*TEXT, *NUMBERS])
    kinds: dict[str, Any] = dict.fromkeys(TEXT, "category" if categorical else "str")
    return frame.astype(kinds | dict.fromkeys(NUMBERS, "uint64"))


def row_by_row(rows: list[dict[str, Any]], levels: tuple[str, ...]) -> Counter[tuple[Any, ...]]:
    """The same sums, the slow and obvious way: (cell…, column) → count."""
    found: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        if row["scope"] != "inter-node":
            continue
        kind = "allowed" if row["verdict"] == "allowed" else "outside"
        if kind == "allowed" and row["outcome"] in {"refused", "unreachable", "unanswered"}:
            kind = "blocked"
        cell = tuple(row[level] or "" for level in levels)
        amounts = {
            "flows": 1,
            "packets": row["packets_out"] + row["packets_in"],
            "bytes": row["bytes_out"] + row["bytes_in"],
        }
        for measure, amount in amounts.items():
            found[(*cell, measure)] += amount
            found[(*cell, f"{measure}_{kind}")] += amount
    return found


nodes = st.sampled_from(["server-1", "agent-1", "agent-2", "agent-10", "etcd-1", "<b>$x^2$\x00", "Knoten ü"])
counts = st.integers(0, 2**53 + 1)
flows = st.builds(
    flow,
    nodes,
    nodes,
    scope=st.sampled_from(
        ["inter-node", "inter-node", "inter-node", "external", "overlay", "intra-node", "other"]
    ),
    client_role=st.sampled_from(["server", "agent", "etcd", "control-plane", ""]),
    server_role=st.sampled_from(["server", "agent", "etcd", "control-plane", ""]),
    rule=st.sampled_from(["kube-api", "kubelet", "", "of another specification"]),
    verdict=st.sampled_from(sorted(KIND_OF_VERDICT)),
    outcome=st.sampled_from([*sorted(FAILED_OUTCOMES), "answered", "one-way"]),
    packets_out=counts,
    packets_in=counts,
    bytes_out=counts,
    bytes_in=counts,
)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(flows, max_size=30),
    by=st.sampled_from(["role", "node", "rule"]),
    categorical=st.booleans(),
    context=st.sampled_from([(None, None), (SPEC, CLUSTER), (SPEC, None), (None, CLUSTER)]),
)
def test_every_cell_equals_a_row_by_row_count(
    rows: list[dict[str, Any]], by: Any, categorical: bool, context: Any
) -> None:
    found = matrix(table(rows, categorical=categorical), by, *context)
    expected = row_by_row(rows, LEVELS[by])
    cells = {
        (*cell, column): value
        for cell, row in zip(found.index, found.to_dict("records"), strict=True)
        for column, value in row.items()
        if column != "foreseen" and value
    }
    if by == "rule":
        expected = Counter({(key[0], pair_name(*key[1:3]), key[3]): value for key, value in expected.items()})
    assert cells == {key: value for key, value in expected.items() if value}
    assert found.index.is_unique


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(flows, max_size=30), by=st.sampled_from(["role", "node", "rule"]))
def test_totals_equal_those_of_the_inter_node_flows(rows: list[dict[str, Any]], by: Any) -> None:
    judged = table(rows)
    between = judged[judged["scope"] == "inter-node"]
    sums = totals(matrix(judged, by, SPEC, CLUSTER))
    assert sums["flows"] == len(between)
    for measure in ("packets", "bytes"):
        assert sums[measure] == between[f"{measure}_out"].sum() + between[f"{measure}_in"].sum()
    for measure in MEASURES:
        assert sums[measure] == sum(sums[f"{measure}_{kind}"] for kind in KINDS)


@pytest.mark.parametrize(
    ("verdict", "outcome", "kind"),
    [
        ("allowed", "answered", "allowed"),
        ("allowed", "one-way", "allowed"),
        ("allowed", "refused", "blocked"),
        ("allowed", "unreachable", "blocked"),
        ("allowed", "unanswered", "blocked"),
        ("wrong-pair", "answered", "outside"),
        ("wrong-protocol", "refused", "outside"),
        ("unlisted", "unanswered", "outside"),
    ],
)
def test_what_was_found(verdict: str, outcome: str, kind: str) -> None:
    sums = totals(matrix(table([flow(verdict=verdict, outcome=outcome)]), "node"))
    assert {name: sums[f"flows_{name}"] for name in KINDS} == {name: int(name == kind) for name in KINDS}


def test_sums_are_exact_where_floats_are_not() -> None:
    odd = 2**53 + 1
    found = matrix(table([flow(bytes_out=odd, bytes_in=0), flow(bytes_out=odd, bytes_in=1)]), "node")
    assert found.loc[("agent-1", "server-1"), "bytes"] == 2 * odd + 1
    assert {str(found[column].dtype) for column in found} == {"uint64"}


def test_a_rule_never_seen_is_there_with_zeros() -> None:
    found = matrix(table([flow()]), "role", SPEC)
    assert found.index.get_level_values("rule").unique().tolist() == ["kube-api", "kubelet", "etcd", ""]
    silent = found[found["foreseen"] & (found["flows"] == 0)]
    assert ("etcd", "server", "server") in silent.index
    assert ("kubelet", "agent", "server") in silent.index
    assert ("kube-api", "server", "server") not in silent.index
    assert not found.loc[("kube-api", "agent", "agent"), "foreseen"]


def test_a_rule_for_outside_addresses_alone_has_no_cell_unless_seen() -> None:
    assert "ssh" not in matrix(table([flow()]), "role", SPEC).index.get_level_values("rule")
    assert "ssh" in matrix(
        table([flow(rule="ssh", verdict="wrong-pair")]), "role", SPEC
    ).index.get_level_values(0)


def test_nodes_without_traffic_are_there_in_the_clusters_order() -> None:
    found = matrix(table([flow("stranger-10", "stranger-9")]), "node", cluster=CLUSTER)
    names = found.index.get_level_values("client_node").unique().tolist()
    assert names == [*CLUSTER.members, "stranger-9", "stranger-10"]
    assert len(found) == len(names) ** 2
    assert found.unstack("server_node")["flows"].to_numpy().sum() == 1


def test_roles_come_from_the_cluster_where_it_says_them() -> None:
    members = [SimpleNamespace(name="a", role="etcd"), SimpleNamespace(name="b", role="agent")]
    cluster = SimpleNamespace(members=("a", "b"), nodes=members, virtual_ips=())
    found = matrix(table([]), "role", SPEC, cluster)
    assert found.index.get_level_values("client_role").unique().tolist() == ["etcd", "agent"]
    assert found.loc[("etcd", "etcd", "etcd"), "foreseen"]


@pytest.mark.parametrize("by", ["role", "node", "rule"])
def test_nothing_in_gives_zeros_out(by: Any) -> None:
    found = matrix(table([]), by)
    assert totals(found).sum() == 0
    assert list(found.index.names) == (["rule", "pair"] if by == "rule" else list(LEVELS[by]))


def test_names_of_any_length_are_put_in_order() -> None:
    found = matrix(table([flow("n-" + "9" * 6000, "n-2")]), "node")
    assert found.index.get_level_values(0)[0] == "n-2"


def test_a_huge_cluster_keeps_pairs_with_traffic_and_loses_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = table([flow(), flow("agent-2", "agent-10")])
    dense = matrix(judged, "node", cluster=CLUSTER)
    monkeypatch.setattr(sys.modules[matrix.__module__], "DENSE_CELLS", 3)
    found = matrix(judged, "node", cluster=CLUSTER)
    assert len(found) == 2 + len(CLUSTER.members)
    pd.testing.assert_frame_equal(found, dense.loc[list(found.index)])


@pytest.mark.parametrize(
    ("judged", "words"),
    [
        (table([flow()]).drop(columns="verdict"), "no column verdict"),
        (table([flow(verdict="not-judged")]), "'not-judged'"),
        (table([flow(verdict=None)]), "''"),
    ],
)
def test_a_table_that_is_not_judged_is_an_error(judged: pd.DataFrame, words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        matrix(judged, "node")


def test_another_pivot_is_an_error() -> None:
    with pytest.raises(ValueError, match="colour"):
        matrix(table([]), "colour")  # type: ignore[arg-type]


def test_the_input_is_left_alone() -> None:
    judged = table([flow(), flow(scope="external")])
    before = judged.copy(deep=True)
    matrix(judged, "rule", SPEC, CLUSTER)
    pd.testing.assert_frame_equal(judged, before)


def test_the_time_grows_with_rows_not_with_rows_times_cells() -> None:
    """No loop over rows: two million flows in far less than the ten seconds that a loop needs."""
    import time

    rng = np.random.default_rng(0)
    base = table([flow(f"agent-{i % 40}", f"server-{i % 7}") for i in range(280)])
    judged = base.iloc[rng.integers(0, len(base), 2_000_000)].reset_index(drop=True)
    start = time.perf_counter()
    found = matrix(judged, "node")
    assert time.perf_counter() - start < 3
    assert totals(found)["flows"] == 2_000_000
