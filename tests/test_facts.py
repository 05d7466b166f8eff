"""What nodes know about flows: how it adds up, whose flow it is, and back. Rule: facts by hand or drawn,
beside rows that were read; what is expected is written out, or added up here with dictionaries.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import frames as fr
import numpy as np
import pandas as pd
import pytest
from frames import EPOCH, FILES, NS, Frame, same_table, segment, traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes import drop, knowing, owner, plain_facts, with_facts
from packets import ICMP, SYN, TCP, UDP

from analyzer.facts import DROP, OWNER, Facts, merge_facts, parse_drops
from analyzer.flows import pair, unpair
from analyzer.rows import Observer, OneWay, merge

if TYPE_CHECKING:
    from typing import Any

    from nodes import Tuple

A, S = ("10.10.0.21", 40000), ("10.10.0.11", 6443)
OUT: Tuple = (*A, *S, TCP)
BACK: Tuple = (*S, *A, TCP)
KNOWN = ("process", "pid", "pod", "drops")


def seen(frames: list[bytes], source: str = "agent-1", interval: int = 0) -> OneWay:
    return fr.read(fr.pcap(fr.timed(frames)), source, interval).settled()


def known(*facts: Facts, frames: list[bytes] | None = None, source: str = "server-1") -> pd.Series:
    """The one flow of the frames, with what nodes know of it."""
    rows = seen(fr.talk(A, S) if frames is None else frames)
    (row,) = (row for _, row in pair(merge([rows, *(knowing(f, source) for f in facts)])).iterrows())
    return row


# ---- how facts add up ----


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_merging_facts_is_a_commutative_monoid(data: st.DataObject) -> None:
    interval = data.draw(st.sampled_from((0, NS)))
    parts = [
        data.draw(with_facts(fr.read(FILES[kind](data.draw(traffic())), source, interval)))
        for kind, source in zip(
            data.draw(st.lists(st.sampled_from(list(FILES)), min_size=3, max_size=3)),
            ("a", "b", "a"),
            strict=True,
        )
    ]
    x, y, z = parts
    whole = plain_facts(merge([x, y, z]))
    for other in (
        merge([merge([x, y]), z]),
        merge([x, merge([y, z])]),
        merge([z, x, y]),
        merge([x, OneWay(), y, z]),
    ):
        assert plain_facts(other) == whole
    assert plain_facts(merge([x, OneWay()]))[0] == plain_facts(x)[0]


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_merging_against_dictionaries(data: st.DataObject) -> None:
    """Owners are a set; drops of one 5-tuple, reason, observer and interval are a sum and a span of time."""
    interval = data.draw(st.sampled_from((0, NS)))
    base = fr.read(FILES["pcapng"](data.draw(traffic())), interval=interval)
    parts = [data.draw(with_facts(base)) for _ in range(2)]
    owners, drops = plain_facts(merge(parts))
    each = [plain_facts(part) for part in parts]
    assert owners == each[0][0] | each[1][0]
    sums: dict[tuple[Any, ...], list[Any]] = {}
    for (*key, packets, start, end, reason, observer), count in (item for _, d in each for item in d.items()):
        total = sums.setdefault((*key, reason, observer), [0, start, end])
        total[:] = total[0] + packets * count, min(total[1], start), max(total[2], end)
    merged = {(*key, reason, observer): [packets, start, end]
              for (*key, packets, start, end, reason, observer) in drops}  # fmt: skip
    assert merged == sums
    assert set(drops.values()) <= {1}


def test_drops_of_two_intervals_stay_apart() -> None:
    drops = [drop(OUT, start=EPOCH + n * NS, interval=EPOCH + n * NS) for n in (0, 1, 1)]
    facts = merge([knowing(d) for d in drops]).facts
    assert sorted(facts.drops[["interval", "packets"]].tolist()) == [(EPOCH, 1), (EPOCH + NS, 2)]


def test_nothing_known_costs_nothing() -> None:
    facts = merge_facts([(Facts(), np.zeros(1, np.uint32))] * 3)
    assert (facts.names, len(facts)) == (("",), 0)
    assert merge([seen(fr.talk(A, S)), seen(fr.talk(A, S), "b")]).facts.names == ("",)


# ---- whose flow ----


def test_who_opened_a_connection() -> None:
    row = known(owner(OUT, "curl", 123, "default/web-1"))
    assert (row["process"], row["pid"], row["pod"]) == ("curl", 123, "default/web-1")
    assert pd.isna(row["drops"])


NOT_ITS_OWNER: dict[str, Facts] = {
    "of the answers": owner(BACK, "rke2", 1),
    "of another port": owner((*A, S[0], 6444, TCP), "x", 1),
    "of another protocol": owner((*A, *S, UDP), "x", 1),
    "of another client": owner(("10.10.0.22", 40000, *S, TCP), "x", 1),
}


@pytest.mark.parametrize("name", NOT_ITS_OWNER)
def test_not_its_owner(name: str) -> None:
    assert known(NOT_ITS_OWNER[name])[list(KNOWN)].isna().all()


def test_what_is_known_of_an_owner_in_part() -> None:
    row = known(owner(OUT, pid=7))
    assert (row["pid"], pd.isna(row["process"]), pd.isna(row["pod"])) == (7, True, True)
    row = known(owner(OUT, "curl"))
    assert (row["process"], pd.isna(row["pid"])) == ("curl", True)


@pytest.mark.parametrize("turn", [1, -1])
def test_of_several_owners_the_best_known_stands(turn: int) -> None:
    """A 5-tuple used again; and the same owner, known before and after its pod was."""
    facts = [
        owner(OUT, "curl", 9),
        owner(OUT, "curl", 9, "default/web"),
        owner(OUT, "wget", 3),
        owner(OUT, "", 99),
    ]
    row = known(*facts[::turn])
    assert (row["process"], row["pid"], row["pod"]) == ("curl", 9, "default/web")


def test_an_owner_of_a_flow_of_which_only_answers_were_seen() -> None:
    row = known(owner(OUT, "curl", 5), frames=[segment(S, A, fr.SYN_ACK)])
    assert (row["client"], row["process"]) == (A[0], "curl")


def test_an_owner_has_its_process_in_every_interval() -> None:
    rows = fr.read(fr.pcap(fr.timed(fr.talk(A, S, rounds=3), step=NS)), interval=NS).settled()
    table = pair(merge([rows, knowing(owner(OUT, "curl", 5))]))
    assert len(table) > 3
    assert set(table["process"]) == {"curl"}


def test_a_forged_inner_packet_has_no_owner() -> None:
    """Facts are about what a node's own stack sent, not about what somebody put into a tunnel."""
    inner = fr.carried(segment(A, S, SYN), "10.10.0.22", S[0])
    table = pair(merge([seen([inner]), knowing(owner(OUT, "curl", 5)), knowing(drop(OUT))]))
    assert len(table) == 2
    assert table[list(KNOWN)].isna().all(axis=None)


# ---- dropped ----


DROPS: dict[str, tuple[list[Facts], str]] = {
    "one packet": ([drop(OUT)], "server-1 NETFILTER_DROP 1"),
    "an answer": ([drop(BACK)], "server-1 NETFILTER_DROP 1"),
    "both ways add up": ([drop(OUT, packets=2), drop(BACK, packets=3)], "server-1 NETFILTER_DROP 5"),
    "the most first": (
        [drop(OUT, "NO_SOCKET"), drop(OUT, packets=2)],
        "server-1 NETFILTER_DROP 2; server-1 NO_SOCKET 1",
    ),
    "then by name": ([drop(OUT, "B"), drop(OUT, "A")], "server-1 A 1; server-1 B 1"),
    "a reason without a name": ([drop(OUT, "")], "server-1 unknown 1"),
    "a reason with separators": ([drop(OUT, "a b; c 9")], "server-1 a_b,_c_9 1"),
}


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("name", DROPS)
def test_what_was_dropped(name: str, turn: int) -> None:
    facts, text = DROPS[name]
    assert known(*facts[::turn])["drops"] == text


def test_a_dropped_packet_is_told_by_node_not_by_interface() -> None:
    parts = [OneWay(observers=(Observer("server-1", name),), facts=drop(OUT)) for name in ("eth0", "eth1")]
    table = pair(merge([seen(fr.talk(A, S)), *parts, knowing(drop(OUT, packets=4), "a;b c")]))
    assert table["drops"].tolist() == ["a,b c NETFILTER_DROP 4; server-1 NETFILTER_DROP 2"]
    assert parse_drops(table["drops"][0]) == [
        ("a,b c", "NETFILTER_DROP", 4),
        ("server-1", "NETFILTER_DROP", 2),
    ]


def test_a_flow_that_only_a_drop_tells_of_is_no_row() -> None:
    other: Tuple = ("10.10.0.22", 1, *S, TCP)
    one_way = merge([seen(fr.talk(A, S)), knowing(drop(other, packets=50))])
    table = pair(one_way)
    assert len(table) == 1
    assert table["drops"].isna().all()
    assert int(table["packets_out"].sum() + table["packets_in"].sum()) == len(fr.talk(A, S))
    assert pair(knowing(drop(OUT))).empty


@pytest.mark.parametrize("ends", [("10.10.0.21", 8, "10.10.0.11", 0), ("10.10.0.11", 0, "10.10.0.21", 0)])
def test_a_dropped_ping(ends: tuple[str, int, str, int]) -> None:
    """Request or reply: both are of the one flow."""
    asked = fr.message("10.10.0.21", "10.10.0.11", 8)
    assert known(drop((*ends, ICMP)), frames=[asked])["drops"] == "server-1 NETFILTER_DROP 1"
    assert pd.isna(known(drop((*ends[:1], 13, *ends[2:], ICMP)), frames=[asked])["drops"])


def test_a_dropped_carrier_is_its_senders() -> None:
    there: Tuple = ("10.10.0.21", 50000, "10.10.0.11", 8472, UDP)
    back: Tuple = ("10.10.0.11", 8472, "10.10.0.21", 50000, UDP)
    inner = fr.carried(
        segment(("10.42.0.1", 1), ("10.42.1.1", 80), SYN), there[0], there[2], source_port=50000
    )
    one_way = merge([seen([inner]), knowing(drop(there, packets=2)), knowing(drop(back))])
    table = pair(one_way)
    assert table[table["tunnel"] == ""]["drops"].tolist() == ["server-1 NETFILTER_DROP 2"]
    assert table[table["tunnel"] != ""]["drops"].isna().all()


@pytest.mark.parametrize("cut", [True, False], ids=["by interval", "by its time"])
def test_a_drop_is_told_in_its_interval(cut: bool) -> None:
    frames = [Frame(segment(A, S, SYN), EPOCH + n * NS) for n in (0, 1, 4)]
    rows = fr.read(fr.pcap(frames, "ns"), interval=NS).settled()
    drops = [
        drop(OUT, packets=n + 1, start=EPOCH + n * NS + 7, interval=(EPOCH + n * NS) * cut) for n in (0, 3, 9)
    ]
    # three parts that are not merged by their time: each drop stays by itself
    told = [pair(merge([rows, knowing(d)]))["drops"].tolist() for d in drops]
    text = "server-1 NETFILTER_DROP {}".format
    assert [[*map(str, row)].index(text(n)) for row, n in zip(told, (1, 4, 10), strict=True)] == [0, 1, 2]
    early = drop(OUT, start=EPOCH - 5 * NS)
    assert pair(merge([rows, knowing(early)]))["drops"].tolist()[0] == text(1)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_each_drop_is_told_once(data: st.DataObject) -> None:
    """Added up over the whole table, by dictionaries: the drops of plain flows that have a row."""
    interval = data.draw(st.sampled_from((0, NS)))
    rows = fr.read(
        FILES["pcap"](data.draw(traffic(["tcp", "tcp6", "udp", "refused"]))), "a", interval
    ).settled()
    one_way = merge([data.draw(with_facts(rows)), OneWay()])
    keys = {
        tuple(row[n].tolist() for n in ("src", "dst", "src_port", "dst_port", "protocol"))
        for row in rows.rows
    }
    keys |= {(d, s, dp, sp, p) for s, d, sp, dp, p in keys}
    expected: Counter[str] = Counter()
    for (src, dst, sport, dport, protocol, _, packets, _, _, reason, _), n in plain_facts(one_way)[1].items():
        name = str(reason).replace(" ", "_").replace(";", ",") or "unknown"
        expected[name] += int(str(packets)) * n * ((src, dst, sport, dport, protocol) in keys)
    told: Counter[str] = Counter()
    for text in pair(one_way)["drops"].dropna():
        for _, reason, packets in parse_drops(text):
            told[reason] += packets
    assert told == +expected


# ---- and back ----


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_unpairing_keeps_what_nodes_know(data: st.DataObject) -> None:
    interval = data.draw(st.sampled_from((0, NS)))
    kind = data.draw(st.sampled_from(list(FILES)))
    one_way = data.draw(with_facts(fr.read(FILES[kind](data.draw(traffic())), interval=interval).settled()))
    table = pair(one_way)
    back = pair(unpair(table, one_way.coverage, interval))
    same_table(back[list(KNOWN)], table[list(KNOWN)])
    same_table(back, table)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_order_of_facts_does_not_matter(data: st.DataObject) -> None:
    rows = fr.read(FILES["pcap"](data.draw(traffic()))).settled()
    one_way = data.draw(with_facts(rows))
    facts = one_way.facts
    turned = Facts(facts.names, facts.owners[::-1], facts.drops[::-1])
    same_table(pair(replace(one_way, facts=turned)), pair(one_way))


@pytest.mark.parametrize(
    "text",
    ["x", "server-1 NETFILTER_DROP", "a B x", "a B -1", "a B 0", "a B 1; ", "a  1", f"a B {2**64}", "a B ١"],
)
def test_what_is_no_drops_text(text: str) -> None:
    with pytest.raises(ValueError, match="is not a node, a reason and a count"):
        parse_drops(text)


def test_the_records_are_what_the_names_say() -> None:
    assert OWNER.names == (
        "src",
        "dst",
        "src_port",
        "dst_port",
        "protocol",
        "reserved",
        "pid",
        "process",
        "pod",
    )
    assert DROP.itemsize == 80
