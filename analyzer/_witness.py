"""Counting each datagram once, however many saw it. Rule: knows observers and times, not what a flow means.

Two observers whose captures overlap in time may have seen the same datagrams: of them the fullest one's
counts stand. Two whose captures do not overlap cannot have: they add up. Parts of one rotated capture are
one observer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer._grouping import Array, Groups, Indices, group, pack
from analyzer.rows import NO_TIME, Coverage, Observer, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

Booleans = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.uint64]
Window = tuple[int, int]
_TOP = np.uint64(2**63)
_NO_WINDOW: Window = (int(NO_TIME), 0)
_SPARSE = 16  # places for each element that a table of flags may have
_FEW = 32  # observers of one flow; a flow of more has its names joined one by one


@dataclass
class Fullest:
    """What stands for each flow. `packets`, `octets`: shape (flows, 2), out and in. The rest has shape
    (flows,).
    """

    packets: Counts
    octets: Counts
    observer: Indices
    first_frame: Counts


def stand_for(
    rows: Rows,
    observers: Sequence[Observer],
    flow: Indices,
    inward: Booleans,
    flows: int,
    coverage: Sequence[Coverage] = (),
) -> Fullest:
    """The fullest witness's counts for each flow and direction, and who it was."""
    windows = _watched(_windows(rows, len(observers)), observers, coverage)
    order = sorted(range(len(observers)), key=lambda n: (observers[n].name, observers[n]))
    turn = np.argsort(order)[rows["interface"]] if order else np.zeros(0, np.intp)
    chain = _chains(observers, windows)
    cluster = np.array(_clusters(chain, windows) or [0])[rows["interface"]]
    # the same datagram inside and outside of a tunnel, or coming in and going out, was seen twice by one
    # observer
    unit = (np.array(chain or [0])[rows["interface"]] * 4 + rows["direction"]) * 2 + (rows["tunnel"] > 0)
    first, packets, octets, turn = _unit_sums(rows, flow, inward, unit, turn)
    way = flow[first] * 2 + inward[first]
    apart = group(pack(way, cluster[first]))[0] if cluster.any() else way
    best = _first_of(apart, (_TOP - packets, _TOP - octets, turn, unit[first]))
    totals = np.zeros((2, flows * 2), np.uint64)
    np.add.at(totals[0], way[best], packets[best])
    np.add.at(totals[1], way[best], octets[best])
    lead = best[_first_of(flow[first[best]], (_TOP - packets[best], turn[best]))]
    observer = np.array(order, np.intp)[turn[lead]]
    return Fullest(
        totals[0].reshape(-1, 2), totals[1].reshape(-1, 2), observer, _first_frames(rows, flow, observer)
    )


def _unit_sums(
    rows: Rows, flow: Indices, inward: Booleans, unit: Indices, turn: Indices
) -> tuple[Indices, Counts, Counts, Indices]:
    """Rows of one flow, direction and unit of observation added up: first row of each sum, packets, bytes,
    least turn of those that counted any.
    """
    if _all_differ(flow * 2 + inward, unit):
        return np.arange(len(rows)), rows["packets"], rows["bytes"], turn
    numbers, first = group(pack(flow, unit, inward))
    groups = Groups(numbers, len(first))
    sums = [groups.reduce(np.add, rows[name]).astype(np.uint64) for name in ("packets", "bytes")]
    many = int(turn.max(initial=0)) + 1
    named = groups.reduce(np.minimum, turn + many * (rows["packets"] == 0)) % many
    return first, sums[0], sums[1], named


def _all_differ(one: Indices, other: Indices) -> bool:
    """Whether no two elements are equal in both; may say no where they differ, if the numbers are large."""
    width = int(other.max(initial=0)) + 1
    size = (int(one.max(initial=0)) + 1) * width
    return size <= _SPARSE * len(one) and bool(np.bincount(one * width + other, minlength=size).max() <= 1)


def _first_of(key: Indices, rank: tuple[Array, ...]) -> Indices:
    """Of each distinct key the element that comes first by rank, in the order of the keys. `key`: none
    negative, and not much greater than there are elements.
    """
    left = np.arange(len(key))
    for values in rank:
        least = np.full(int(key.max(initial=-1)) + 1, np.iinfo(values.dtype).max, values.dtype)
        np.minimum.at(least, key[left], values[left])
        left = left[values[left] == least[key[left]]]
    place = np.full(int(key.max(initial=-1)) + 1, -1)
    place[key[left[::-1]]] = left[::-1]
    return place[place >= 0]


def _first_frames(rows: Rows, flow: Indices, observer: Indices) -> Counts:
    frames = np.full(len(observer), _TOP, np.uint64)
    mine = (rows["interface"] == observer[flow]) & (rows["first_frame"] > 0)
    np.minimum.at(frames, flow[mine], rows["first_frame"][mine])
    frames[frames == _TOP] = 0
    return frames


# ---- observers ----


def _windows(rows: Rows, count: int) -> list[Window]:
    start, end = np.full(count, NO_TIME), np.zeros(count, np.uint64)
    np.minimum.at(start, rows["interface"], rows["start"])
    np.maximum.at(end, rows["interface"], rows["end"])
    return list(zip(start.tolist(), end.tolist(), strict=True))


def _watched(
    windows: Sequence[Window], observers: Sequence[Observer], coverage: Sequence[Coverage]
) -> list[Window]:
    """When each observer watched: a quiet node does for longer than its rows say. Interfaces of one source
    have no window of their own in the ledger: one that takes over from another did not watch before. Nor has
    one without rows, such as an empty part's: it must not join in time what others saw apart.
    """
    ledgers = {ledger.source: (ledger.start, ledger.end) for ledger in coverage if ledger.end}
    watched = [
        window if observer.interface or window == _NO_WINDOW else ledgers.get(observer.source, window)
        for observer, window in zip(observers, windows, strict=True)
    ]
    return [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(windows, watched, strict=True)]


def _stem(source: str) -> str:
    """What the parts of one rotated capture have in common: the name without its digits."""
    return "".join(ch for ch in source if not ch.isdigit())


def _chains(observers: Sequence[Observer], windows: Sequence[Window]) -> list[int]:
    """Each observer's chain: alike in name, one after the other in time."""
    chain = [0] * len(observers)
    alike: dict[tuple[str, str], dict[int, Window]] = {}  # label → chain → its last part
    count = 0
    for number in sorted(range(len(observers)), key=lambda n: (windows[n], observers[n])):
        parts = alike.setdefault((_stem(observers[number].source), observers[number].interface), {})
        mine = windows[number]
        # the last frame of a part and the first of the next may have one time; a copy has the same window
        fitting = (which for which, last in parts.items() if last[1] <= mine[0] and last != mine)
        chain[number] = next(fitting, count)
        parts[chain[number]] = mine
        count += chain[number] == count
    return chain


def _clusters(chain: Sequence[int], windows: Sequence[Window]) -> list[int]:
    """Each observer's cluster: chains whose spans overlap, directly or through others."""
    spans: dict[int, Window] = {}
    for number, (start, end) in zip(chain, windows, strict=True):
        low, high = spans.get(number, (start, end))
        spans[number] = (min(low, start), max(high, end))
    cluster: dict[int, int] = {}
    reached, count = -1, -1
    for number in sorted(spans, key=lambda n: spans[n]):
        count += spans[number][0] > reached
        reached = max(reached, spans[number][1])
        cluster[number] = count
    return [cluster[number] for number in chain]


def witnesses(rows: Rows, flow: Indices, flows: int, names: Sequence[str]) -> pd.Categorical:
    """All observers' names of each flow, sorted, `;` between. Sets grow one observer at a time, equal sets
    staying one.
    """
    ordered = sorted(set(names)) or [""]
    if len(ordered) == 1 and flows:
        return pd.Categorical.from_codes(np.zeros(flows, np.int8), pd.Index(ordered, dtype="str"))
    position = {name: i for i, name in enumerate(ordered)}
    rank = np.array([position[name] for name in names] or [0])
    pairs = np.unique(flow * len(ordered) + rank[rows["interface"]])
    of, observer = np.divmod(pairs, len(ordered))
    turn = np.arange(len(pairs)) - np.searchsorted(of, of)
    sets, state = [""], np.zeros(flows, np.intp)
    for now in (turn == n for n in range(min(int(turn.max(initial=-1)) + 1, _FEW))):
        steps, inverse = np.unique(state[of[now]] * len(ordered) + observer[now], return_inverse=True)
        state[of[now]] = len(sets) + inverse
        grown = [divmod(step, len(ordered)) for step in steps.tolist()]
        sets += [f"{sets[old]};{ordered[new]}".lstrip(";") for old, new in grown]
    for number in np.unique(of[turn >= _FEW]):
        state[number] = len(sets)
        sets.append(";".join(ordered[n] for n in observer[of == number]))
    sets, state = _distinct(sets, state)
    used, codes = np.unique(state, return_inverse=True)
    return pd.Categorical.from_codes(codes, pd.Index([sets[n] for n in used], dtype="str"))


def _distinct(names: Sequence[str], state: Indices) -> tuple[list[str], Indices]:
    """Equal names under one number."""
    number: dict[str, int] = {}
    of = np.array([number.setdefault(name, len(number)) for name in names], np.intp)
    return list(number), of[state]
