"""What a node knows about flows beside their packets: who opened a connection, what its kernel dropped. Rule:
knows one-way 5-tuples and how facts add up; no table, no file, and no flow that only a fact tells of.

Facts of any number of nodes are a commutative monoid under :func:`merge_facts`, as one-way rows are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analyzer._grouping import ADDRESS, Array, Groups, Indices, group, pack

if TYPE_CHECKING:
    from collections.abc import Sequence

_TUPLE_FIELDS = [
    ("src", ADDRESS),
    ("dst", ADDRESS),
    ("src_port", "u2"),
    ("dst_port", "u2"),
    ("protocol", "u1"),
    ("reserved", "u1", 3),
]
#: a one-way 5-tuple, as in rows.KEY: 16-byte addresses; for ICMP the type and the code stand as ports
TUPLE = np.dtype(_TUPLE_FIELDS)
#: who opened a connection: the tuple is the client's direction; `process` and `pod` index `Facts.names`,
#: `pid` is 0 where unknown
OWNER = np.dtype([*_TUPLE_FIELDS, ("pid", "u4"), ("process", "u4"), ("pod", "u4")])
#: packets that a node's kernel dropped. `reason` indexes `Facts.names`, `observer` indexes
#: `OneWay.observers`; `interval`: its begin in ns, 0 where not cut by time; `start`, `end`: ns
DROP = np.dtype(
    [
        *_TUPLE_FIELDS,
        ("reason", "u4"),
        ("observer", "u4"),
        ("interval", "u8"),
        ("packets", "u8"),
        ("start", "u8"),
        ("end", "u8"),
    ]
)
_DROP_KEY = 56  # tuple, reason, observer and interval: what tells drops apart
_NO_TIME = np.uint64(2**64 - 1)  # rows.NO_TIME
_UNKNOWN_REASON = "unknown"
_SEPARATORS = str.maketrans({" ": "_", ";": ","})

Records = npt.NDArray[np.void]


def no_owners() -> Records:
    """Shape (0,), dtype OWNER."""
    return np.zeros(0, OWNER)


def no_drops() -> Records:
    """Shape (0,), dtype DROP."""
    return np.zeros(0, DROP)


@dataclass(frozen=True)
class Facts:
    """`owners`: shape (n,), dtype OWNER, each once. `drops`: shape (m,), dtype DROP, one for each 5-tuple,
    reason, observer and interval. `names`: the distinct texts that both index; the first is "": not known.
    """

    names: tuple[str, ...] = ("",)
    owners: Records = field(default_factory=no_owners)
    drops: Records = field(default_factory=no_drops)

    def __len__(self) -> int:
        return len(self.owners) + len(self.drops)


def merge_facts(parts: Sequence[tuple[Facts, npt.NDArray[np.uint32]]]) -> Facts:
    """One set of facts of several, each with the new numbers of its observers.

    Associative and commutative up to the order of records and names: owners once, drops of one key add up.
    """
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return Facts()
    number = {name: i for i, name in enumerate(dict.fromkeys(["", *(n for f, _ in parts for n in f.names)]))}
    owners, drops = [no_owners()], [no_drops()]
    for facts, observers in parts:
        names = np.array([number[name] for name in facts.names], np.uint32)
        owners.append(_renumbered(facts.owners, process=names, pod=names))
        drops.append(_renumbered(facts.drops, reason=names, observer=observers))
    return Facts(tuple(number), _distinct(np.concatenate(owners)), sum_drops(np.concatenate(drops)))


def _renumbered(records: Records, **numbers: npt.NDArray[np.uint32]) -> Records:
    if not len(records):
        return records
    records = records.copy()
    for name, new in numbers.items():
        records[name] = new[records[name]]
    return records


def _bytes(records: Records, count: int | None = None) -> npt.NDArray[np.uint8]:
    """The first `count` bytes of each record. Shape (n, count)."""
    whole = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), records.dtype.itemsize)
    return whole[:, :count]


def _distinct(owners: Records) -> Records:
    _, first = group(pack(_bytes(owners)))
    return owners[first]


def sum_drops(drops: Records) -> Records:
    """Drops of one tuple, reason, observer and interval added up. Shape (groups,), dtype DROP."""
    numbers, first = group(_bytes(drops, _DROP_KEY))
    groups, result = Groups(numbers, len(first)), drops[first]
    for name, function in (("packets", np.add), ("start", np.minimum), ("end", np.maximum)):
        result[name] = groups.reduce(function, drops[name])
    return result


# ---- whose flows ----


def owner_of(facts: Facts, clients: Records) -> Indices:
    """The owner of each flow, by its client's direction; -1 where none is known. `clients`: shape (n,), dtype
    TUPLE.

    Where one 5-tuple was opened several times, the one of whom most is known stands.
    """
    owners = facts.owners
    numbers, first = group(np.concatenate([_bytes(clients), _bytes(owners, TUPLE.itemsize)]))
    rank = _text_rank(facts.names)
    # the last assignment stands; "" has the least rank
    order = np.lexsort((owners["pid"], rank[owners["process"]], rank[owners["pod"]]))
    owner = np.full(len(first), -1)
    owner[numbers[len(clients) :][order]] = order
    return owner[numbers[: len(clients)]]


def _text_rank(texts: Sequence[str]) -> Indices:
    rank = {text: i for i, text in enumerate(sorted(set(texts)))}
    return np.array([rank[text] for text in texts], np.intp)


# ---- dropped ----


def drops_by_flow(
    facts: Facts, nodes: Sequence[str], ways: tuple[Records, Records], interval: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """What was dropped of each flow, either way, as :func:`parse_drops` reads it: the most first.

    `nodes`: the name of each observer's node. `ways`: both directions of each flow, shape (n,), dtype TUPLE.
    `interval`: shape (n,). A drop is told of one flow: the one of its own interval, else the latest that
    began before it, else the first. Returns for each flow the index of its text, -1 for none.
    """
    flow = _flow_of(facts.drops, ways, interval)
    kept = (flow >= 0) & (facts.drops["packets"] > 0)
    drops, flow = facts.drops[kept], flow[kept]
    reasons = [name.translate(_SEPARATORS) or _UNKNOWN_REASON for name in facts.names]
    labels = [_numbers(nodes)[drops["observer"]], _numbers(reasons)[drops["reason"]]]
    numbers, first = group(pack(flow, *labels))
    packets = Groups(numbers, len(first)).reduce(np.add, drops["packets"])
    texts = [
        f"{nodes[o]} {reasons[r]} {count}"
        for o, r, count in zip(*(label[first].tolist() for label in labels), packets.tolist(), strict=True)
    ]
    order = np.lexsort((_text_rank(texts), ~packets, flow[first]))
    return _joined([texts[i] for i in order], flow[first][order], len(interval))


def _numbers(texts: Sequence[str]) -> Indices:
    """The first place of each text: equal texts cannot be told apart."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(text, i) for i, text in enumerate(texts)], np.intp)


def _flow_of(drops: Records, ways: tuple[Records, Records], interval: Array) -> Indices:
    """The flow of each drop, -1 none."""
    n = len(interval)
    numbers, _ = group(np.concatenate([_bytes(w) for w in ways] + [_bytes(drops, TUPLE.itemsize)]))
    when = np.where(drops["interval"] > 0, drops["interval"], drops["start"])
    when[drops["start"] == _NO_TIME] = 0
    of = np.concatenate([np.arange(n), np.arange(n), np.full(len(drops), -1)])
    # one that sent it comes after one that would have received it, so that it stands before the drop
    turn = np.repeat(np.array([1, 0, 2], np.uint8), (n, n, len(drops)))
    order = np.lexsort((turn, np.concatenate([interval, interval, when]), numbers))
    numbers, of = numbers[order], of[order]
    place = np.arange(len(order))
    before = np.maximum.accumulate(np.where(of >= 0, place, -1))
    after = np.minimum.accumulate(np.where(of >= 0, place, len(order))[::-1])[::-1]
    found = np.full(len(order), -1)
    for candidate in (after, before):
        near = (candidate >= 0) & (candidate < len(order))
        near[near] = numbers[candidate[near]] == numbers[near]
        found[near] = of[candidate[near]]
    result = np.empty(len(order), np.intp)
    result[order] = found
    return result[2 * n :]


def _joined(texts: Sequence[str], flow: Indices, flows: int) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Texts of one flow, which stand side by side, as one."""
    codes, number = np.full(flows, -1, np.int32), dict[str, int]()
    bounds = [*np.flatnonzero(np.diff(flow, prepend=-1)).tolist(), len(texts)]
    for start, end in pairwise(bounds):
        text = texts[start] if end - start == 1 else "; ".join(texts[start:end])
        codes[flow[start]] = number.setdefault(text, len(number))
    return codes, list(number)


def parse_drops(text: str) -> list[tuple[str, str, int]]:
    """(node, kernel's reason, packets) of each part of a `drops` text. ValueError where it is none."""
    return [_parse_drop(part) for part in text.split("; ")] if text else []


def _parse_drop(part: str) -> tuple[str, str, int]:
    words = part.rsplit(" ", 2)
    if (
        len(words) != 3
        or not words[1]
        or not (words[2].isascii() and words[2].isdecimal())
        or not 0 < int(words[2][:20]) < 2**64
    ):
        raise ValueError(f"drops {part!r} is not a node, a reason and a count")
    return words[0], words[1], int(words[2])
