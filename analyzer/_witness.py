"""Counting each datagram once, however many saw it. Rule: knows observers and times, not what a flow means.

Two observers whose captures overlap in time may have seen the same datagrams: of them the fullest one's
counts stand. Two whose captures do not overlap cannot have: they add up, whoever else watched meanwhile and
saw nothing of the flow. Parts of one rotated capture are one observer; so of several nodes, whatever the
digits in their names. Where the nodes' names are known, those tell captures of two of them apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import reduce
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analyzer import _pair
from analyzer.rows import NO_TIME, Observer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from analyzer._grouping import Array, Indices
    from analyzer.rows import Coverage, Rows

Window = tuple[int, int]
_NO_WINDOW: Window = (int(NO_TIME), 0)
#: what an interface of `-i any` is called; and ns after which at most a datagram is on the next one
_OF_ANY, _HOP = re.compile(r"if\d+"), 10**7
_PACKED = re.compile(r"\.(gz|zst|lz4)$")
#: of what was captured of one interface of a pcapng file by several sections, and so under several numbers
_NUMBERED = re.compile(r"\d+-(.+)")
#: ns by which at most frames stand in a file before others that came earlier: each CPU puts its own there
_STIR = 10**6
#: ns between two parts of one rotated capture, from which on it is not known that none is missing
_GAP = 10**9
_FEW = 32  # observers of one flow; a flow of more has its names joined one by one


def roles_of(
    rows: Rows,
    observers: Sequence[Observer],
    coverage: Sequence[Coverage] = (),
    nodes: Collection[str] = (),
) -> tuple[Indices, Indices, npt.NDArray[np.uint64]]:
    """What each observer is among the others: its turn, the chain of its parts, and when that watched, as
    begin and end in ns, shape (observers, 2), dtype uint64. Of two that counted as much the one with the
    lesser turn stands. `nodes`: names of nodes; what begins with those of two is of two.
    """
    count = len(observers)
    order = sorted(range(count), key=lambda n: (observers[n].name, observers[n]))
    turn = np.empty(count, np.intp)
    turn[order] = np.arange(count)
    if count == 1:
        return turn, np.zeros(1, np.intp), np.zeros((1, 2), np.uint64)
    windows = _watched(
        _pair.windows(np.ascontiguousarray(rows).view(np.uint8).data, count), observers, coverage
    )
    chain = _chains(observers, windows, nodes)
    spans = _by_one_clock(_spans(observers, chain, windows), observers, chain, coverage)
    return turn, np.array(chain, np.intp), np.array(spans, np.uint64)


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
    return [_both(a, b) for a, b in zip(windows, watched, strict=True)]


def _unpacked(source: str) -> str:
    """The name before it was packed: of a rotated capture's parts often all are but the last."""
    return _PACKED.sub("", source)


def _stem(source: str) -> str:
    """What the parts of one rotated capture have in common: the name without its digits."""
    return "".join(ch for ch in _unpacked(source) if not ch.isdigit())


def _digits(source: str) -> dict[int, str]:
    """The other half of a name: digits by how much of the stem stands before them."""
    found: dict[int, str] = {}
    before = 0
    for ch in _unpacked(source):
        if ch.isdigit():
            found[before] = found.get(before, "") + ch
        else:
            before += 1
    return found


def capturing_node(name: str, nodes: Iterable[str]) -> str:
    """The node of a live observer, or the one on which a capture was taken, where its file name begins with
    the node's, or with the first label of that (`hostname -s`), if no other node has it. Empty where it is
    none of `nodes`.

    Of several the longest: all of the cluster's are asked, so that `server-1-b` is not taken for `server-1`.
    """
    stem, known = PurePath(name).name, list(nodes)
    fitting = [node for node in known if _begins(stem, node)]
    if fitting:
        return max(fitting, key=len)
    labels = [_label(node) for node in known]
    label = max((label for label in labels if _begins(stem, label)), key=len, default="")
    return known[labels.index(label)] if label and labels.count(label) == 1 else ""


def _label(node: str) -> str:
    """The first one of a node's name of several, empty where that is no name, but part of an address."""
    first, dot, _ = node.partition(".")
    return first if dot and not first.isdigit() else ""


def _begins(stem: str, name: str) -> bool:
    return bool(name) and stem.startswith(name) and not _goes_on(stem[len(name) :])


def _goes_on(rest: str) -> bool:
    """Whether a name does not end where this begins."""
    return rest[:1].isascii() and rest[:1].isalnum()


def capture_ends(coverage: Iterable[Coverage], nodes: Collection[str] = ()) -> dict[str, int]:
    """When the capture ended that each source is part of, ns: where a part of a rotated one is followed by
    the next one, what the first still waited for can be in that. A missing part ends it. `nodes`: names of
    the cluster's; captures that begin with those of two are two.
    """
    timed = [ledger for ledger in coverage if ledger.end]
    observers = [Observer(ledger.source) for ledger in timed]
    parts: defaultdict[int, list[Coverage]] = defaultdict(list)
    chains = _chains(observers, [(ledger.start, ledger.end) for ledger in timed], nodes)
    for number, ledger in zip(chains, timed, strict=True):
        parts[number].append(ledger)
    ends: dict[str, int] = {}
    for capture in parts.values():
        after, end = int(NO_TIME), 0
        for part in sorted(capture, key=lambda part: (part.start, part.end), reverse=True):
            end = end if after - part.end < _GAP else part.end
            after, ends[part.source] = part.start, end
    return ends


def _chains(
    observers: Sequence[Observer], windows: Sequence[Window], nodes: Collection[str] = ()
) -> list[int]:
    """Each observer's chain: parts of one capture, one after the other in time."""
    alike: dict[tuple[str, str, str], list[int]] = {}
    for number in sorted(range(len(observers)), key=lambda n: (windows[n], observers[n])):
        source, interface = observers[number].source, observers[number].interface
        named = _NUMBERED.fullmatch(interface)
        name = named[1] if named else interface
        alike.setdefault((_stem(source), name, capturing_node(source, nodes)), []).append(number)
    chain = [0] * len(observers)
    count = 0
    for members in alike.values():
        for capture in _captures(members, observers, windows):
            turns = _in_turn(capture, windows)
            for number, turn in zip(capture, turns, strict=True):
                chain[number] = count + turn
            count += max(turns) + 1
    return chain


def _captures(
    members: list[int], observers: Sequence[Observer], windows: Sequence[Window]
) -> list[list[int]]:
    """Those of one stem by capture. Digits that tell nodes apart (agent-1, agent-2) are known from those that
    count parts by this: what is alike in them does not overlap in time. Overlaps weigh twice, so that one of
    two parts of a node splits nothing.
    """
    digits = [_digits(observers[number].source) for number in members]
    places = {place for found in digits for place in found}
    told: list[int] = []
    best, least = [members], _weight([members], windows)
    while least > len(best) and len(told) < len(places):
        tried = []
        for place in sorted(places - {*told}):
            groups: dict[tuple[str, ...], list[int]] = {}
            for number, found in zip(members, digits, strict=True):
                groups.setdefault(tuple(found.get(at, "") for at in (*told, place)), []).append(number)
            if len(best) < len(groups) < len(members):
                split = list(groups.values())
                tried.append((_weight(split, windows), place, split))
        if not tried or min(tried)[0] >= least:
            break
        least, place, best = min(tried)
        told.append(place)
    return best


def _weight(captures: Sequence[Sequence[int]], windows: Sequence[Window]) -> int:
    return sum(1 + 2 * max(_in_turn(capture, windows)) for capture in captures)


def _in_turn(capture: Sequence[int], windows: Sequence[Window]) -> list[int]:
    """For each part, in order of time, in which of as many rows as it takes it follows the part before."""
    last: list[Window] = []
    turns = []
    for mine in (windows[number] for number in capture):
        # a copy has the same window
        fitting = (turn for turn, other in enumerate(last) if other != mine and _is_next(other, mine))
        turn = next(fitting, len(last))
        last[turn : turn + 1] = [mine]
        turns.append(turn)
    return turns


def _is_next(one: Window, other: Window) -> bool:
    """Whether the other one may go on where one ends. The last frame and the next may have one time, or stand
    in the files the other way round: then both lasted far longer than what they have in common.
    """
    common = one[1] - other[0]
    return common <= 0 or (common <= _STIR and 100 * common <= min(one[1] - one[0], other[1] - other[0]))


def _spans(observers: Sequence[Observer], chain: Sequence[int], windows: Sequence[Window]) -> list[Window]:
    """When each observer's chain watched. Interfaces of one source that do so together, directly or through
    others, do so as long as all of them: none has a window of its own, and a quiet one watched all the while.
    """
    own: dict[int, Window] = {}
    for number, window in zip(chain, windows, strict=True):
        own[number] = _both(own.get(number, _NO_WINDOW), window)
    groups: dict[tuple[str, int], set[int]] = {}  # source and how far apart → chains
    for number, observer in zip(chain, observers, strict=True):
        groups.setdefault((observer.source, 0), set()).add(number)
        if _OF_ANY.fullmatch(observer.interface):
            groups.setdefault((observer.source, _HOP), set()).add(number)
    spans = dict(own)
    for (_, apart), chains in groups.items():
        for together in _clusters(chains, own, apart):
            whole = reduce(_both, (own[number] for number in together))
            spans |= {number: _both(spans[number], whole) for number in together}
    return [spans[number] for number in chain]


def _by_one_clock(
    spans: Sequence[Window], observers: Sequence[Observer], chain: Sequence[int], coverage: Sequence[Coverage]
) -> Sequence[Window]:
    """The spans as the clock of most has them; parts of one capture have one clock."""
    known = {ledger.source: ledger.clock_offset for ledger in coverage}
    ahead = dict.fromkeys(chain, 0)
    for number, observer in zip(chain, observers, strict=True):
        ahead[number] = max(ahead[number], known.get(observer.source, 0), key=abs)
    return [
        span if span == _NO_WINDOW else (max(span[0] - ahead[number], 0), max(span[1] - ahead[number], 0))
        for number, span in zip(chain, spans, strict=True)
    ]


def _both(one: Window, other: Window) -> Window:
    return min(one[0], other[0]), max(one[1], other[1])


def _clusters(chains: Iterable[int], spans: Mapping[int, Window], apart: int) -> list[list[int]]:
    """Chains whose spans overlap, directly or through others, or are no more than `apart` ns apart."""
    clusters: list[list[int]] = []
    reached = 0
    for number in sorted(chains, key=lambda n: spans[n]):
        if not clusters or spans[number][0] > reached + apart:
            clusters.append([])
        clusters[-1].append(number)
        reached = max(reached, spans[number][1])
    return clusters


def witnesses(
    observer: Array, flow: Indices, flows: int, names: Sequence[str]
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """All observers' names of each flow, sorted, `;` between: a code for each flow, and the texts. Sets grow
    one observer at a time, equal sets staying one.

    `observer`, `flow`: of each row.
    """
    ordered = sorted(set(names)) or [""]
    position = {name: i for i, name in enumerate(ordered)}
    rank = np.array([position[name] for name in names] or [0])
    pairs = np.unique(flow * len(ordered) + rank[observer])
    of, seen_by = np.divmod(pairs, len(ordered))
    turn = np.arange(len(pairs)) - np.searchsorted(of, of)
    sets, state = [""], np.zeros(flows, np.intp)
    for now in (turn == n for n in range(min(int(turn.max(initial=-1)) + 1, _FEW))):
        steps, inverse = np.unique(state[of[now]] * len(ordered) + seen_by[now], return_inverse=True)
        state[of[now]] = len(sets) + inverse
        grown = [divmod(step, len(ordered)) for step in steps.tolist()]
        sets += [f"{sets[old]};{ordered[new]}".lstrip(";") for old, new in grown]
    for number in np.unique(of[turn >= _FEW]):
        state[number] = len(sets)
        sets.append(";".join(ordered[n] for n in seen_by[of == number]))
    sets, state = _distinct(sets, state)
    used, codes = np.unique(state, return_inverse=True)
    return codes.astype(np.int32), [sets[n] for n in used]


def _distinct(names: Sequence[str], state: Indices) -> tuple[list[str], Indices]:
    """Equal names under one number."""
    number: dict[str, int] = {}
    of = np.array([number.setdefault(name, len(number)) for name in names], np.intp)
    return list(number), of[state]
