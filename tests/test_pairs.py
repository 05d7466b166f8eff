"""Pairs and ports of a run. Rule: counted again here, flow by flow, in plain Python."""

from __future__ import annotations

from collections import Counter
from typing import Any

import frames as fr
import pandas as pd
import pytest
from frames import Frame, flow, traffic
from hypothesis import given, settings
from runs import AGENT, AGENT_2, CLUSTER, OUTSIDE, SERVER, SPEC, recorded

from analyzer.analysis import Analysis
from analyzer.findings import MANY, MANY_CLIENTS, SCAN_PORTS
from analyzer.pairs import COLUMNS, KEY, pairs
from analyzer.verdict import judge


def paired(*flows: dict[str, Any]) -> pd.DataFrame:
    return pairs(judge(fr.table(flows), CLUSTER, SPEC))


def keys(table: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(table[list(KEY)].itertuples(index=False, name=None))


def by_hand(judged: pd.DataFrame) -> dict[tuple[Any, ...], Counter[str]]:
    """Without what is folded."""
    sums: dict[tuple[Any, ...], Counter[str]] = {}
    for _, row in judged.iterrows():
        if row["scope"] in ("inter-node", "external"):
            ends = [row[f"{side}_node"] or row[side] for side in ("client", "server")]
            icmp = row["protocol"] in ("icmp", "icmpv6")
            port = row["client_port"] if icmp else row["server_port"]
            guess = row["direction_by"] == "port" and port >= 32768 and not icmp and not row["rule"]
            sums.setdefault((*ends, row["protocol"], 0 if guess else port), Counter()).update(
                flows=1,
                packets=row["packets_out"] + row["packets_in"],
                bytes=row["bytes_out"] + row["bytes_in"],
            )
    return sums


@given(traffic())
@settings(max_examples=40, deadline=None)
def test_every_flow_with_a_node_is_counted_once(frames: list[Frame]) -> None:
    judged = Analysis.of(fr.read(fr.pcap(frames)), CLUSTER, SPEC).flows
    table = pairs(judged)
    assert list(table.columns) == list(COLUMNS)
    assert keys(table) == sorted(by_hand(judged))
    expected = by_hand(judged)
    for row in table.to_dict("records"):
        sums = expected[tuple(row[name] for name in KEY)]
        assert {name: row[name] for name in sums} == sums


@pytest.mark.parametrize("name", ["baseline", "offences", "blocked", "wireguard", "any"])
def test_recordings_lose_no_packet(name: str) -> None:
    flows = recorded(name).flows
    table = pairs(flows)
    judged = flows[flows["scope"].isin(("inter-node", "external"))]
    assert int(table["flows"].sum()) == len(judged)
    assert int(table["packets"].sum()) == int(judged["packets_out"].sum() + judged["packets_in"].sum())
    assert int(table["bytes"].sum()) == int(judged["bytes_out"].sum() + judged["bytes_in"].sum())
    assert not table.duplicated(list(KEY)).any()


def test_nothing_makes_an_empty_table() -> None:
    table = paired()
    assert table.empty
    assert list(table.columns) == list(COLUMNS)


def test_nodes_have_names_and_others_addresses() -> None:
    table = paired(
        flow(AGENT, SERVER), flow(OUTSIDE, SERVER), flow(AGENT, "10.42.0.9"), flow(OUTSIDE, "10.9.9.9")
    )
    assert keys(table) == [(OUTSIDE, "server-1", "tcp", 6443), ("agent-1", "server-1", "tcp", 6443)]
    assert table["verdict"].tolist() == ["not-judged", "allowed"]
    assert table["rule"].tolist() == ["kubernetes-api"] * 2


def test_a_scan_is_one_row_and_what_rules_name_keeps_its_own() -> None:
    few = [flow(AGENT, AGENT_2, 7000 + n) for n in range(SCAN_PORTS)]
    assert len(paired(*few)) == SCAN_PORTS
    table = paired(*few, flow(AGENT, AGENT_2, 8999), flow(AGENT, AGENT_2, 10250), flow(AGENT, SERVER, 22))
    assert keys(table) == [
        ("agent-1", "agent-2", "tcp", 0),
        ("agent-1", "agent-2", "tcp", 10250),
        ("agent-1", "server-1", "tcp", 22),
    ]
    assert table["flows"].tolist() == [SCAN_PORTS + 1, 1, 1]


@pytest.mark.parametrize("outside_is", ["client", "server"])
def test_many_addresses_are_one_row(outside_is: str) -> None:
    def some(count: int) -> list[dict[str, Any]]:
        addresses = [f"192.0.2.{n}" for n in range(count)]
        return [flow(a, SERVER) if outside_is == "client" else flow(SERVER, a, 443) for a in addresses]

    assert len(paired(*some(MANY_CLIENTS))) == MANY_CLIENTS
    table = paired(*some(MANY_CLIENTS + 1), flow(AGENT, SERVER))
    assert table[table["scope"] == "external"][outside_is].tolist() == [MANY]
    assert table["flows"].sum() == MANY_CLIENTS + 2
    assert "agent-1" in set(table["client"])


def test_a_high_port_that_is_guessed_is_not_kept() -> None:
    guessed = flow(AGENT, AGENT_2, 45000, direction_by="port")
    assert keys(paired(guessed)) == [("agent-1", "agent-2", "tcp", 0)]
    assert keys(paired(guessed | {"direction_by": "syn"})) == [("agent-1", "agent-2", "tcp", 45000)]
    assert keys(paired(guessed | {"server_port": 32767})) == [("agent-1", "agent-2", "tcp", 32767)]


def test_icmp_has_its_type_for_a_port() -> None:
    asked = flow(AGENT, SERVER, 0, "icmp", client_port=8)
    assert keys(paired(asked)) == [("agent-1", "server-1", "icmp", 8)]


def test_sums_are_exact_above_2_to_the_53() -> None:
    big = (1 << 53) + 1
    table = paired(*[flow(AGENT, SERVER, bytes_out=big, bytes_in=0) for _ in range(3)])
    assert int(table["bytes"].iloc[0]) == 3 * big


@pytest.mark.parametrize("kind", ["object", "category"])
def test_texts_that_are_missing_are_empty(kind: str) -> None:
    """As pandas reads a judged table's CSV: who is no node has NaN for its node."""
    run = recorded("offences")
    columns = dict.fromkeys(("client_node", "server_node", "rule"), kind)
    gaps = {name: run.flows[name].astype(object).where(run.flows[name] != "") for name in columns}
    table = run.flows.assign(**gaps).astype(columns)
    assert all(table[name].isna().any() for name in columns)
    pd.testing.assert_frame_equal(pairs(table), run.pairs)
