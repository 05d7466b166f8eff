"""What nodes know beside packets, drawn and by hand. Rule: facts about the flows of frames.py; nothing is
expected here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from frames import EPOCH, NS
from hypothesis import strategies as st
from packets import ICMP, TCP, UDP

from analyzer.facts import DROP, OWNER, Facts
from analyzer.flows import parse_address
from analyzer.rows import Endpoint, Observer, OneWay

if TYPE_CHECKING:
    from analyzer.rows import Rows

Tuple = tuple[str, int, str, int, int]
NAMES = (
    "curl",
    "rke2",
    "",
    "kube-system/etcd-1",
    "=cmd",
    "a\x1b[31m",
    "NETFILTER_DROP",
    "TCP_LISTEN_OVERFLOW",
    "no;t a",
)


def tuples(records: Rows, ends: list[Tuple]) -> Rows:
    for record, (src, src_port, dst, dst_port, protocol) in zip(records, ends, strict=True):
        record["src"], record["dst"] = np.void(parse_address(src)), np.void(parse_address(dst))
        record["src_port"], record["dst_port"], record["protocol"] = src_port, dst_port, protocol
    return records


def owner(ends: Tuple, process: str = "", pid: int = 0, pod: str = "") -> Facts:
    """One owner."""
    names = tuple(dict.fromkeys(("", process, pod)))
    records = tuples(np.zeros(1, OWNER), [ends])
    records["pid"], records["process"], records["pod"] = pid, names.index(process), names.index(pod)
    return Facts(names, owners=records)


def drop(
    ends: Tuple, reason: str = "NETFILTER_DROP", packets: int = 1, start: int = EPOCH, interval: int = 0
) -> Facts:
    """One drop, by the first observer."""
    records = tuples(np.zeros(1, DROP), [ends])
    records["reason"], records["packets"], records["interval"] = 1, packets, interval
    records["start"], records["end"] = start, start + 5
    return Facts(("", reason), drops=records)


def knowing(facts: Facts, source: str = "server-1") -> OneWay:
    """What a node says that saw no packet."""
    return OneWay(observers=(Observer(source),), facts=facts)


@st.composite
def with_facts(draw: st.DrawFn, one_way: OneWay) -> OneWay:
    """The same, with facts about some of its rows, either way, and about flows that it does not have; and
    with listeners.
    """
    names = (
        "",
        *draw(st.lists(st.sampled_from([n for n in NAMES if n]), min_size=2, max_size=5, unique=True)),
    )
    index = st.integers(0, len(names) - 1)
    owners = np.zeros(draw(st.integers(0, 6)), OWNER)
    drops = np.zeros(draw(st.integers(0, 6)) if one_way.observers else 0, DROP)
    for records in (owners, drops):
        for record in records:
            _about(draw, record, one_way.rows)
    for record in owners:
        record["pid"], record["process"], record["pod"] = draw(st.integers(0, 3)), draw(index), draw(index)
    for record in drops:
        record["reason"], record["observer"] = draw(index), draw(st.integers(0, len(one_way.observers) - 1))
        record["packets"], record["start"] = draw(st.integers(1, 3)), EPOCH + draw(st.integers(0, 30 * NS))
        record["end"] = record["start"] + draw(st.integers(0, NS))
        if one_way.interval:
            record["interval"] = record["start"] - record["start"] % one_way.interval
    ports = draw(st.lists(st.integers(1, 3), max_size=3))
    listeners = frozenset(Endpoint(parse_address("10.9.9.9"), TCP, port) for port in ports)
    return replace(one_way, facts=Facts(names, owners, drops), listeners=listeners)


def _about(draw: st.DrawFn, record: np.void, rows: Rows) -> None:
    """The 5-tuple of one of the rows, its reverse, or one that is nowhere."""
    if not len(rows) or draw(st.integers(0, 4)) == 0:
        record["src_port"], record["protocol"] = (
            draw(st.integers(0, 3)),
            draw(st.sampled_from((TCP, UDP, ICMP))),
        )
        return
    row = rows[draw(st.integers(0, len(rows) - 1))]
    turn = (
        {"src": "dst", "dst": "src", "src_port": "dst_port", "dst_port": "src_port"}
        if draw(st.booleans())
        else {}
    )
    for name in ("src", "dst", "src_port", "dst_port", "protocol"):
        record[name] = row[turn.get(name, name)]


def plain_facts(one_way: OneWay) -> tuple[set[tuple[Any, ...]], Counter[tuple[Any, ...]]]:
    """Owners, and drops, each without a number that hangs on an order."""
    facts, key = one_way.facts, ("src", "dst", "src_port", "dst_port", "protocol")
    owners = {
        (*(o[name].tolist() for name in key), int(o["pid"]), facts.names[o["process"]], facts.names[o["pod"]])
        for o in facts.owners
    }
    drops: Counter[tuple[Any, ...]] = Counter()
    for d in facts.drops:
        where = (facts.names[d["reason"]], one_way.observers[d["observer"]])
        drops[(*(d[name].tolist() for name in (*key, "interval", "packets", "start", "end")), *where)] += 1
    return owners, drops
