"""Rows cut into shares, paired apart. Rule: what is expected is the whole, paired at once."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import frames as fr
import numpy as np
import pandas as pd
import pytest
from conftest import PUBLIC, RECORDED, require_shared
from frames import FILES, NS, same_table, traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer import load_cluster, load_spec
from analyzer.errors import CaptureError
from analyzer.flows import format_address, pair
from analyzer.rows import OneWay, merge
from analyzer.shares import Ends, Outline, Share, deal, gather, merge_outlines, outline, paired
from analyzer.spec import server_ports
from analyzer.store import expand, read_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analyzer.cluster import Cluster

PORTS = server_ports(load_spec("rke2-canal"))
LIVE = RECORDED / "live"


def shared(
    parts: Sequence[OneWay], count: int, cluster: Cluster | None = None
) -> tuple[list[Share], Outline]:
    """The parts dealt out, and each share gathered again."""
    dealt = [deal(part, count, Ends(cluster)) for part in parts]
    shares = [gather(part[i] for part in dealt) for i in range(count)]
    return shares, merge_outlines(map(outline, shares))


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of several, texts as plain text."""
    return pd.concat([plain(table) for table in tables], ignore_index=True)


def plain(table: pd.DataFrame) -> pd.DataFrame:
    texts = [name for name in table if isinstance(table[name].dtype, pd.CategoricalDtype)]
    return table.astype(dict.fromkeys(texts, object))


def in_one_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(list(table.columns), ignore_index=True)


def assert_as_the_whole(parts: Sequence[OneWay], count: int, cluster: Cluster | None = None) -> None:
    whole = merge(parts).settled()
    shares, around = shared(parts, count, cluster)
    tables = [paired(share, around, PORTS) for share in shares]
    same_table(in_one_order(joined(tables)), in_one_order(plain(pair(whole, PORTS))))
    assert fr.ledgers(replace(whole, coverage=around.coverage)) == fr.ledgers(whole)
    for table in tables:
        assert table["start"].is_monotonic_increasing or table["start"].isna().any()


@pytest.mark.parametrize("kind", ["any", *[kind for kind in FILES if kind != "any"][:1]])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_cut_of_any_traffic(kind: str, data: st.DataObject) -> None:
    """Cut by time into parts, and by ends into shares."""
    frames = data.draw(traffic())
    interval = data.draw(st.sampled_from((0, NS)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(frames)), max_size=3)))
    names = data.draw(st.sampled_from((("a.pcap",) * 4, ("a.pcap", "b.pcap", "a.pcap", "c.pcap"))))
    bounds = list(zip([0, *cuts], [*cuts, len(frames)], strict=True))
    parts = [
        fr.shifted(fr.read(FILES[kind](frames[a:b]), name, interval), a)
        for (a, b), name in zip(bounds, names, strict=False)
    ]
    assert_as_the_whole(parts, data.draw(st.integers(1, 9)))


@pytest.mark.parametrize("folder", sorted(path.name for path in RECORDED.iterdir() if path.is_dir()))
def test_recordings(folder: str) -> None:
    cluster = load_cluster(RECORDED / folder / "cluster.yaml")
    parts = [read_inputs([path]) for path in expand([RECORDED / folder])]
    for count in (2, 7):
        assert_as_the_whole(parts, count, cluster)


def test_captures_of_other_projects() -> None:
    require_shared()
    parts = []
    for path in expand([PUBLIC]):
        with suppress(CaptureError):  # some are there for being broken
            parts.append(read_inputs([path]))
    assert len(parts) > 20
    assert_as_the_whole(parts, 5)


def test_all_of_a_pair_of_nodes_is_in_one_share() -> None:
    """Whichever of its addresses a node uses."""
    cluster = load_cluster(LIVE / "cluster.yaml")
    shares = deal(read_inputs([LIVE]), 16, Ends(cluster))
    places: dict[tuple[Any, ...], set[int]] = {}
    for number, share in enumerate(shares):
        rows = share.rows.rows
        texts = [[format_address(a.tobytes()) for a in rows[name]] for name in ("src", "dst")]
        members = cluster.places([*texts[0], *texts[1]]).member.reshape(2, -1)
        for ends, nodes in zip(zip(*texts, strict=True), members.T.tolist(), strict=True):
            key = [text if node < 0 else str(node) for text, node in zip(ends, nodes, strict=True)]
            places.setdefault(tuple(sorted(key)), set()).add(number)
    assert len(places) > 16
    assert all(len(numbers) == 1 for numbers in places.values())
    assert sum(len(share.rows.rows) > 0 for share in shares) > 8


def test_shares_are_the_same_in_every_process() -> None:
    """A worker that deals again must deal alike."""
    code = (
        "import sys; from analyzer.shares import Ends, deal; from analyzer.store import read_inputs;"
        "print([len(s.rows.rows) for s in deal(read_inputs([sys.argv[1]]), 8, Ends())])"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code, str(LIVE)], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert told[0] == told[1] == f"{[len(s.rows.rows) for s in deal(read_inputs([LIVE]), 8, Ends())]}\n"


def test_outlines_are_a_commutative_monoid() -> None:
    shares, around = shared([read_inputs([path]) for path in expand([LIVE])], 6)
    one, two, three = (merge_outlines(map(outline, shares[i : i + 2])) for i in (0, 2, 4))
    assert merge_outlines([merge_outlines([one, two]), three]) == around
    assert merge_outlines([one, merge_outlines([two, three])]) == around
    turned = merge_outlines([three, two, one])
    assert (turned.windows, turned.listeners) == (around.windows, around.listeners)
    assert set(turned.coverage) == set(around.coverage)


def test_facts_go_where_their_flows_go() -> None:
    whole = read_inputs([LIVE])
    shares = deal(whole, 5, Ends())
    assert sum(len(share.rows.facts) for share in shares) == len(whole.facts)
    assert (
        np.sum([share.rows.facts.drops["packets"].sum() for share in shares])
        == whole.facts.drops["packets"].sum()
    )
    used = {name for share in shares for name in share.rows.facts.names}
    assert used == set(whole.facts.names)
    assert all(len(share.rows.facts.names) <= 1 + 3 * len(share.rows.facts) for share in shares)


def test_nothing_at_all() -> None:
    assert_as_the_whole([OneWay()], 3)


def test_an_address_of_all_ones_is_a_flow_like_any_other() -> None:
    """What a share is told of the others stands beside its rows under an address that none of them has."""
    whole = read_inputs([LIVE])
    rows = whole.rows.copy()
    for number, name in enumerate(("src", "dst")):
        rows[name][:4] = np.frombuffer(b"\xff" * 8 + number.to_bytes(8, "little"), rows[name].dtype)
    assert_as_the_whole([replace(whole, rows=rows)], 4)
