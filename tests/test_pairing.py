"""The native pairing beside the same written once more with NumPy, on rows that no capture would hold. Rule:
one-way rows in; both must tell the same of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pairing_reference as reference
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer import _arrow, _pair
from analyzer.columns import COLUMNS, FlowColumns, Text, parse_address
from analyzer.facts import DROP, OWNER, Facts
from analyzer.flows import frame_of, pair
from analyzer.rows import NO_TIME, ROW, Coverage, Endpoint, Observer, OneWay, Rows, no_rows, sum_rows
from analyzer.store import read_flow_file, write_columns, write_flows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ADDRESSES = [
    parse_address(text)
    for text in (
        "10.0.0.1",
        "10.0.0.2",
        "10.42.0.9",
        "255.255.255.255",
        "::",
        "fd00::1",
        "239.0.0.1",
        "ff02::1",
    )
]
PORTS = (0, 3, 8, 80, 443, 6443, 8472, 32768)
NAMED = frozenset({(6, 443), (6, 6443), (17, 8472), (6, 32768), (17, 32768)})
OBSERVERS = (
    Observer("a"),
    Observer("b", "eth0"),
    Observer("b", "eth1"),
    Observer("c;d"),
    Observer("b0"),
    Observer("b1"),
)
NONE = b"\0" * 16
#: protocol → what packets of it can be
SYNS, CARRIER = 1 | 2, 4
EVENTS_OF = {6: SYNS, 17: CARRIER}


def rows_of(
    addresses: Sequence[bytes], ports: Sequence[int], tunnel_ends: Sequence[bytes]
) -> st.SearchStrategy[list[dict[str, Any]]]:
    row = st.fixed_dictionaries(
        {
            "src": st.sampled_from(addresses),
            "dst": st.sampled_from(addresses),
            "src_port": st.sampled_from(ports),
            "dst_port": st.sampled_from(ports),
            "protocol": st.sampled_from((1, 6, 6, 6, 17, 17, 58, 132, 47)),
            "tunnel": st.sampled_from((0, 0, 0, 1, 2)),
            "vni": st.sampled_from((0, 0, 7, 8)),
            "outer_src": st.sampled_from(tunnel_ends),
            "outer_dst": st.sampled_from(tunnel_ends),
            "interface": st.sampled_from((0, 0, 0, 1, 2, 3, 4, 5)),
            "direction": st.sampled_from((0, 0, 1, 2)),
            "interval": st.sampled_from((0, 0, 0, 60, 120)),
            "packets": st.sampled_from((0, 1, 1, 2, 9)),
            "bytes": st.sampled_from((0, 40, 1500)),
            "start": st.sampled_from((int(NO_TIME), 5, 70, 130)),
            "lasts": st.sampled_from((0, 0, 1, 50)),
            "first_frame": st.sampled_from((0, 1, 2, 77)),
            "unreachable": st.sampled_from((0, 0, 0, 1 << 3, 1 << 4, 1 << 20)),
            "tcp_flags": st.sampled_from((0x02, 0x12, 0x10, 0x04, 0x14, 0x18)),
            "events": st.sampled_from((0, 0, 1, 2, 4)),
        }
    )
    return st.lists(row, max_size=40)


#: everything; what folds, inner flows seen outside of their tunnels as well, of which some are of a tunnel's
#: end; and few ends that many rows have
drawn_rows = (
    rows_of(ADDRESSES, PORTS, ADDRESSES[:4])
    | rows_of(ADDRESSES[2:4], PORTS[2:4], ADDRESSES[:2])
    | rows_of(ADDRESSES[1:3], PORTS[3:4], ADDRESSES[:2])
    | rows_of(ADDRESSES[:2], PORTS[3:5], ADDRESSES[2:4])
)


def rows_from(drawn: list[dict[str, Any]]) -> Rows:
    rows = np.zeros(len(drawn), ROW)
    for row, values in zip(rows, drawn, strict=True):
        lasts = values.pop("lasts")
        for name, value in values.items():
            row[name] = np.void(value) if isinstance(value, bytes) else value
        if not row["tunnel"]:
            row["outer_src"] = row["outer_dst"] = np.void(NONE)
            row["vni"] = 0
        row["end"] = 0 if row["start"] == NO_TIME else row["start"] + np.uint64(lasts)
        row["events"] &= EVENTS_OF.get(row["protocol"], 0)
    return sum_rows(rows) if len(rows) else no_rows()


tables = st.builds(
    lambda drawn, quiet: OneWay(rows_from(drawn), OBSERVERS, quiet),
    drawn_rows,
    st.sampled_from(((), (Coverage("a", 1, 200), Coverage("b0", 1, 40)))),
)


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """Whatever the order of a categorical's names."""
    texts = [name for name in table if table[name].dtype == "category"]
    return table.astype(dict.fromkeys(texts, "object"))


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(plain(one), plain(other))


@settings(max_examples=300)
@given(tables, st.sampled_from((frozenset(), NAMED)), st.booleans())
def test_it_tells_what_the_reference_tells(
    one_way: OneWay, named: frozenset[tuple[int, int]], listens: bool
) -> None:
    listeners = [Endpoint(ADDRESSES[1], 17, 80), Endpoint(ADDRESSES[0], 6, 3)] if listens else []
    same(pair(one_way, named, listeners), reference.pair(one_way, named, listeners))


@settings(max_examples=60)
@given(tables)
def test_what_nodes_know_goes_to_the_same_flows(one_way: OneWay) -> None:
    rows = one_way.rows.copy()
    rows["events"] &= (
        SYNS  # a carrier and what is none may have one 5-tuple; whose the drop is nobody can tell
    )
    one_way = OneWay(rows, OBSERVERS, facts=known_of(rows))
    same(pair(one_way), reference.pair(one_way))


def known_of(rows: Rows) -> Facts:
    """An owner and a drop for every other row."""
    owners, drops = np.zeros(len(rows[::2]), OWNER), np.zeros(len(rows[1::2]), DROP)
    for records, of in ((owners, rows[::2]), (drops, rows[1::2])):
        for name in ("src", "dst", "src_port", "dst_port", "protocol"):
            records[name] = of[name]
    owners["pid"], owners["process"], owners["pod"] = (
        np.arange(len(owners)) % 3,
        1,
        np.arange(len(owners)) % 2 * 2,
    )
    drops["reason"], drops["packets"] = 3, rows["packets"][1::2]
    for name in ("interval", "start", "end"):
        drops[name] = rows[name][1::2]
    return Facts(("", "curl", "default/web", "NO_SOCKET"), owners, drops)


@settings(max_examples=30)
@given(tables, st.integers(1, 9))
def test_flows_in_pieces_are_the_flows(one_way: OneWay, size: int) -> None:
    flows = FlowColumns(one_way, NAMED)
    pieces = [flows.between(at, at + size, in_order=False) for at in range(0, len(flows), size)]
    whole = plain(frame_of(flows.between()))
    if pieces:
        joined = pd.concat([plain(frame_of(piece)) for piece in pieces], ignore_index=True)
        pd.testing.assert_frame_equal(joined.astype(whole.dtypes), whole)
    assert len(whole) == len(flows) == sum(len(piece["vni"]) for piece in pieces)


@given(tables, st.randoms())
@settings(max_examples=30)
def test_the_order_of_rows_does_not_matter(one_way: OneWay, random: Any) -> None:
    rows = one_way.rows
    order = list(range(len(rows)))
    random.shuffle(order)
    same(pair(OneWay(rows, OBSERVERS), NAMED), pair(OneWay(rows[order], OBSERVERS), NAMED))


@pytest.mark.parametrize("outer", ["src", "dst"])
@pytest.mark.parametrize("end", ["src", "dst", None])
@pytest.mark.parametrize("back", [False, True])
def test_a_forged_inner_packet_hides_no_flow_of_a_node(outer: str, end: str | None, back: bool) -> None:
    """A flow seen within and outside of a tunnel is one, but where the tunnel's ends are its own."""
    ends = {"src": ADDRESSES[0], "dst": ADDRESSES[2]}
    rows = np.zeros(2, ROW)
    inner, outside = rows
    inner["outer_src"], inner["outer_dst"] = np.void(ADDRESSES[3]), np.void(ADDRESSES[4])
    inner["tunnel"] = 1
    for row in rows:
        row["src"], row["dst"], row["protocol"] = np.void(ends["src"]), np.void(ends["dst"]), 6
        row["src_port"], row["dst_port"], row["packets"], row["start"] = 32768, 443, 1, 5
    if back:
        outside["src"], outside["dst"] = outside["dst"].copy(), outside["src"].copy()
        outside["src_port"], outside["dst_port"] = 443, 32768
    if end:
        inner[f"outer_{outer}"] = np.void(ends[end])
    one_way = OneWay(rows, OBSERVERS)
    assert len(pair(one_way)) == (2 if end else 1)
    same(pair(one_way), reference.pair(one_way))


def test_texts_are_in_numerical_order_where_asked() -> None:
    rows = np.zeros(3, ROW)
    rows["dst"], rows["start"] = np.void(ADDRESSES[0]), 1
    rows["src"] = np.array([parse_address(t) for t in ("fd00::2", "10.0.0.200", "10.0.0.30")], "V16")
    column = FlowColumns(OneWay(rows, OBSERVERS)).between()["client"]
    assert isinstance(column, Text)
    assert list(frame_of({"client": column})["client"].cat.categories) == [
        "", "10.0.0.1", "10.0.0.30", "10.0.0.200", "fd00::2"
    ]  # fmt: skip


def test_no_rows_are_no_flows() -> None:
    table = pair(OneWay())
    assert list(table) == list(COLUMNS)
    assert table.empty


def bytes_of(rows: Rows) -> memoryview:
    return np.ascontiguousarray(rows).view(np.uint8).data


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="136 bytes"):
        _pair.Pairing(b"x" * 137, b"", b"", 0)
    with pytest.raises(ValueError, match="24 bytes"):
        _pair.Pairing(b"", b"", b"x", 0)
    pairing = _pair.Pairing(bytes_of(np.zeros(2, ROW)), b"", b"", 0)
    one, window = np.zeros(1, np.uint32).data, bytes(16)
    with pytest.raises(ValueError, match="nobody observed"):
        pairing.columns(0, 1, True)
    for roles in ((np.array([7], np.uint32).data, one, window), (one, b"", window), (one, one, b"")):
        with pytest.raises(ValueError, match="not those of the rows"):
            _pair.Pairing(bytes_of(np.zeros(2, ROW)), b"", b"", 0).observe(*roles)
    with pytest.raises(ValueError, match="16 bytes"):
        _pair.Pairing(bytes_of(np.zeros(2, ROW)), b"", b"", 0).observe(one, one, one)
    for interface in (1, 2**32 - 1):
        rows = np.zeros(2, ROW)
        rows["interface"][1] = interface
        with pytest.raises(ValueError, match="not those of the rows"):
            _pair.Pairing(bytes_of(rows), b"", b"", 0).observe(one, one, window)
    pairing.observe(one, one, window)
    for begin, end in ((0, 2), (1, 0)):
        with pytest.raises(ValueError, match="not there"):
            pairing.columns(begin, end, True)
    with pytest.raises(RuntimeError, match="one table"):
        pairing.__init__(b"", b"", b"", 0)  # type: ignore[misc]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables)
def test_columns_in_a_file_are_the_table_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_way: OneWay
) -> None:
    monkeypatch.setattr(_arrow, "ROW_GROUP", 7)
    one_way = OneWay(one_way.rows, OBSERVERS, one_way.coverage, facts=known_of(one_way.rows))
    write_columns(FlowColumns(one_way, NAMED), tmp_path / "columns.parquet", one_way.coverage, 60)
    write_flows(pair(one_way, NAMED), tmp_path / "table.parquet", one_way.coverage, 60)
    columns, table = (read_flow_file(tmp_path / f"{name}.parquet") for name in ("columns", "table"))
    pd.testing.assert_frame_equal(columns.table, table.table)
    assert (columns.coverage, columns.interval) == (table.coverage, table.interval) == (one_way.coverage, 60)
    types = [dict(pd.read_parquet(tmp_path / f"{name}.parquet").dtypes) for name in ("columns", "table")]
    assert types[0]["pid"] == types[1]["pid"] == "Int64"
    assert {str(kind) for kind in types[0].values()} == {str(kind) for kind in types[1].values()}
