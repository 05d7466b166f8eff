"""Whose clocks are apart. Rule: one-way rows to sketches of TCP connections, and those to offsets; knows no
role and no file, and puts no time right.

What an initiator sent has as many bytes in two sources that saw it whole, and begins and ends in both at one
moment, but for what it takes on its way. Where it does so later by one and the same time in most connections,
it is the clocks: who counts by them counts twice what both saw, and looks for packets at a time when nobody
recorded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analyzer._grouping import mixed
from analyzer.rows import EVENT_SYN, NO_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from analyzer.rows import Coverage, Observer, OneWay, Rows

CONNECTION = np.dtype([("hash", "u8"), ("bytes", "u8"), ("start", "u8"), ("end", "u8"), ("source", "u4")])
#: source → what the initiators of connections sent, dtype CONNECTION by ascending hash of the 5-tuple, each
#: once; `source` is unused
Sketches = dict[str, npt.NDArray[np.void]]

#: connections of a source that are compared, those with the least hashes: what two sources saw is kept in
#: both or in neither, as far as both have room
KEPT = 4096
APART = 10**9  # ns, from which on clocks are told to be apart; what is told of a capture's end has this grace
_ON_ITS_WAY = 10**8  # ns within which both ends of a connection must show the same offset
_LEAST = 3  # connections that must
_TCP = 6


def sketches(rows: Rows, observers: Sequence[Observer]) -> Sketches:
    """What is compared of one-way rows, dtype ROW. Those of parts go together by :func:`merge_sketches`."""
    opened = np.flatnonzero(_are_initiators(rows))
    found = np.zeros(len(opened), CONNECTION)
    found["hash"] = _hashes(rows, opened)
    for name in ("bytes", "start", "end"):
        found[name] = rows[name][opened]
    numbers: dict[str, int] = {}
    number = np.array([numbers.setdefault(one.source, len(numbers)) for one in observers], np.uint32)
    of = number[rows["interface"][opened]]
    return {source: _least(found[of == n]) for source, n in numbers.items() if (of == n).any()}


def merge_sketches(one: Sketches, other: Sketches) -> Sketches:
    """Of both; associative and commutative."""
    return {
        source: _least(np.concatenate([of[source] for of in (one, other) if source in of]))
        for source in {**one, **other}
    }


def _are_initiators(rows: Rows) -> npt.NDArray[np.bool_]:
    """Of TCP; with intervals, what was sent in that of the SYN."""
    found: npt.NDArray[np.bool_] = (
        ((rows["events"] & np.uint8(EVENT_SYN)) > 0)
        & (rows["protocol"] == _TCP)
        & (rows["tunnel"] == 0)
        & (rows["start"] != NO_TIME)
    )
    return found


def _hashes(rows: Rows, opened: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
    """Of the 5-tuples of some rows; the same in every process."""
    values = rows["src_port"][opened].astype(np.uint64) << np.uint64(16)
    values |= rows["dst_port"][opened]
    for name in ("src", "dst"):
        for half in np.ascontiguousarray(rows[name][opened]).view("<u8").reshape(-1, 2).T:
            values = mixed(values ^ half)
    return values


def _least(found: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """A 5-tuple that was used several times, or seen on several interfaces, adds up: it is like no other."""
    hashes, of, seen = np.unique(found["hash"], return_inverse=True, return_counts=True)
    kept = found[of < KEPT] if len(hashes) > KEPT else found
    kept = kept[np.argsort(kept["hash"], kind="stable")]
    first = np.cumsum(seen[:KEPT]) - seen[:KEPT]
    whole: npt.NDArray[np.void] = kept[first]
    for name, function in (("bytes", np.add), ("start", np.minimum), ("end", np.maximum)):
        whole[name] = function.reduceat(kept[name], first) if len(first) else 0
    return whole


# ---- offsets ----


def compared(one_way: OneWay) -> OneWay:
    """The same, and its ledgers say whose clock is how far ahead."""
    if len({observer.source for observer in one_way.observers}) < 2:
        return one_way
    return replace(one_way, coverage=told(one_way.coverage, sketches(one_way.rows, one_way.observers)))


def told(coverage: Iterable[Coverage], sketches: Sketches) -> tuple[Coverage, ...]:
    """The ledgers, with what the sketches of their sources show; what they say already stays."""
    found = offsets(sketches)
    return tuple(
        replace(ledger, clock_offset=found[ledger.source]) if ledger.source in found else ledger
        for ledger in coverage
    )


def words(offset: int) -> str:
    """As `3,600.0 s ahead of`."""
    return f"{abs(offset) / 1e9:,.1f} s {'ahead of' if offset > 0 else 'behind'}"


def offsets(sketches: Mapping[str, npt.NDArray[np.void]]) -> dict[str, int]:
    """Source → ns by which its clock is ahead of most others'; only of those that are :data:`APART`. Of two
    that are apart nothing tells which is right: the first by name is taken to be.
    """
    names = sorted(sketches)
    links = _links([sketches[name] for name in names])
    found: dict[str, int] = {}
    for places in _together(links):
        normal = _most_frequent([places[number] for number in sorted(places)])
        found |= {
            names[number]: place - normal for number, place in places.items() if abs(place - normal) >= APART
        }
    return found


def _links(known: Sequence[npt.NDArray[np.void]]) -> dict[tuple[int, int], int]:
    """Pairs of sources, of which one saw enough of what the other one saw → ns by which the second's clock
    is ahead: the median of their connections, from which more than half of these are not far.
    """
    if not known:
        return {}
    every = np.concatenate(known)
    every["source"] = np.repeat(np.arange(len(known)), [len(of) for of in known])
    every = every[np.lexsort((every["source"], every["hash"]))]
    one, other = every[:-1], every[1:]
    same = (one["hash"] == other["hash"]) & (one["bytes"] == other["bytes"])
    one, other = one[same], other[same]
    at, until = (other[name].astype(np.int64) - one[name].astype(np.int64) for name in ("start", "end"))
    order = np.lexsort((at, other["source"], one["source"]))
    pairs = np.stack([one["source"], other["source"]], axis=1)[order]
    begins = np.flatnonzero((np.diff(pairs, axis=0, prepend=-1) != 0).any(axis=1))
    if not len(begins):
        return {}
    sizes = np.diff(begins, append=len(order))
    offsets = at[order][begins + (sizes - 1) // 2]
    usual = np.repeat(offsets, sizes)
    near = (abs(at[order] - usual) <= _ON_ITS_WAY) & (abs(until[order] - usual) <= _ON_ITS_WAY)
    counts = np.add.reduceat(near.astype(np.int64), begins)
    agreed = (counts >= _LEAST) & (2 * counts > sizes)
    told = zip(pairs[begins][agreed].tolist(), offsets[agreed].tolist(), strict=True)
    return {(first, second): offset for (first, second), offset in told}


def _together(links: Mapping[tuple[int, int], int]) -> Iterable[dict[int, int]]:
    """For sources that are linked, directly or through others: by how much each clock is ahead of one's."""
    beside: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for (one, other), offset in links.items():
        beside[one][other], beside[other][one] = offset, -offset
    left = sorted(beside)
    while left:
        places = {left[0]: 0}
        waiting = [left[0]]
        while waiting:
            here = waiting.pop()
            new = {there: places[here] + by for there, by in beside[here].items() if there not in places}
            places |= new
            waiting += new
        yield places
        left = [number for number in left if number not in places]


def _most_frequent(places: Sequence[int]) -> int:
    """The one near which most are; of several the first."""
    near = Counter({n: sum(abs(place - other) < APART for other in places) for n, place in enumerate(places)})
    return places[max(near, key=lambda n: (near[n], -n))]
