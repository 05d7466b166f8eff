"""One-way rows: what a capture or a kernel map holds. Rule: knows `struct flow_row` and how rows add up, not
which end is the client.

Rows of one observer are a commutative monoid under :func:`merge`: a capture may be cut anywhere, read in
parts and in any order, and the merged table is the same. That is why one-way rows, not flows, are what parts
exchange.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzer._grouping import ADDRESS, Array, Groups, group, pack
from analyzer.capture import _reader
from analyzer.facts import Facts, merge_facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NO_TIME = np.uint64(2**64 - 1)
_EVER = 2**63  # ns: after all times
#: windows that are no further apart are one; a node's clock is set, and a part's end is the next one's start
GAP = 10**9  # ns
Window = tuple[int, int]  # from when to when, ns, both in it
FRAGMENT_MAX_NS = np.uint64(60 * 10**9)

KEY = np.dtype(
    [
        ("src", ADDRESS),
        ("dst", ADDRESS),
        ("outer_src", ADDRESS),
        ("outer_dst", ADDRESS),
        ("vni", "u4"),
        ("interface", "u4"),
        ("src_port", "u2"),
        ("dst_port", "u2"),
        ("protocol", "u1"),
        ("tunnel", "u1"),
        ("direction", "u1"),
        ("reserved", "u1"),
    ]
)
COUNTERS = np.dtype(
    [
        ("packets", "u8"),
        ("bytes", "u8"),
        ("start", "u8"),
        ("end", "u8"),
        ("first_frame", "u8"),
        ("unreachable", "u4"),
        ("tcp_flags", "u2"),
        ("events", "u1"),
        ("reserved_counters", "u1"),
    ]
)


def _offset(dtype: np.dtype[np.void], name: str) -> int:
    fields: Any = dtype.fields
    return int(fields[name][1])


def _fields(dtype: np.dtype[np.void], at: int = 0) -> dict[str, tuple[np.dtype[np.generic], int]]:
    return {name: (dtype[name], at + _offset(dtype, name)) for name in dtype.names or ()}


def _struct(size: int, fields: dict[str, tuple[np.dtype[np.generic], int]]) -> np.dtype[np.void]:
    formats, offsets = zip(*fields.values(), strict=True)
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": size})


#: ``struct flow_row`` of bpf/flow.h: the key, the interval's begin in ns, the counters.
ROW = _struct(136, {**_fields(KEY), "interval": (np.dtype("u8"), 80), **_fields(COUNTERS, 88)})
#: ``struct fragment_row`` of the reader: a datagram of which not all fragments have come.
FRAGMENT = _struct(
    168,
    {
        **_fields(KEY),
        "time": (np.dtype("u8"), 80),
        "seen": (np.dtype("u8"), 88),
        "expected": (np.dtype("u8"), 96),
        **_fields(COUNTERS, 104),
        "id": (np.dtype("u4"), 152),
        "first_src_port": (np.dtype("u2"), 156),
        "first_dst_port": (np.dtype("u2"), 158),
        "first_protocol": (np.dtype("u1"), 160),
        "has_first": (np.dtype("u1"), 161),
        "used": (np.dtype("u1"), 162),
    },
)
KEY_BYTES = 88  # struct flow_key and the interval: what tells rows apart

EVENT_SYN, EVENT_SYN_ACK, EVENT_CARRIER = 1, 2, 4
DIRECTION_UNKNOWN, DIRECTION_IN, DIRECTION_OUT = 0, 1, 2
BY_IFINDEX = 0x80000000

Rows = npt.NDArray[np.void]


def check_layout(layout: dict[str, int]) -> None:
    """Compares the dtypes above with the offsets that the compiler used; AssertionError where they differ."""
    expected = {"flow_row": ROW.itemsize, "fragment_row": FRAGMENT.itemsize}
    expected |= _layout_of("flow_row", ROW) | _layout_of("fragment_row", FRAGMENT)
    wrong = {name: (at, expected[name]) for name, at in layout.items() if expected.get(name, at) != at}
    if wrong:
        raise AssertionError(f"the native reader was built from another bpf/flow.h: {wrong}")


def _layout_of(struct: str, dtype: np.dtype[np.void]) -> dict[str, int]:
    offsets = {name: _offset(dtype, name) for name in dtype.names or ()}
    prefixes = dict.fromkeys(KEY.names or (), "key.") | dict.fromkeys(COUNTERS.names or (), "counters.")
    return {f"{struct}.{prefixes.get(name, '')}{name}": at for name, at in offsets.items()}


check_layout(_reader.layout())


def as_text(name: str) -> str:
    """A name as text: raw bytes, which Linux allows in names, are half characters in Python, and no table and
    no document can hold these. Their escapes stand in their place, so that two names stay two.
    """
    return name.encode("utf-8", "backslashreplace").decode()


class Observer(NamedTuple):
    """Who counted a row: a capture file, or the node of a live capture; and within it the interface where it
    names several.
    """

    source: str
    interface: str = ""

    @property
    def name(self) -> str:
        """The observer as `witnesses` names it, which puts `;` between names."""
        name = f"{self.source}:{self.interface}" if self.interface else self.source
        return name.replace(";", ",")


@dataclass(frozen=True)
class Coverage:
    """The ledger of one source: every frame read is in exactly one of the counts that :data:`ENDINGS` names.

    `frames`: records read. `flow`: those that ended in a row. `not_ip`: ARP, STP and the like. `truncated`:
    the snaplen cut a header off. `malformed`: contradicts itself. `unsupported`: unknown link type.
    `fragment`: later fragments whose first one, which has the ports, was never seen. `lost`: frames that the
    kernel or the capturing program dropped, where the file says so.
    `inner_*`: packets inside tunnels, whose carriers are counted as `flow` all the same. `start`, `end`: ns
    since the epoch, 0 for none. `damage`: what is wrong with the file, and where; empty for a whole one.
    `overflow`, `inner_overflow`: seen, and no room in the flow table. `clock_offset`: ns by which its clock
    is ahead of most others' (:mod:`analyzer.clocks`), 0 where nothing tells that it is.

    Live only, 0 or empty for capture files: `other_bytes`: bytes, link header included, of the frames that
    ended in no row. `alerts_lost`: alerts for which there was no room. `drops_lost`: packets that the
    kernel dropped and `drops` does not tell of, for want of room. `missing`: what could not be observed, in
    words, `; ` between.

    Where flows were chosen (:mod:`analyzer.choice`): `not_chosen`: frames whose flows were not;
    `parts_not_read`: parts of this source that were left unread, since nothing in them was asked for. Neither
    is lost.

    `windows`: when it watched, in order, where that was not all the while from `start` to `end`; else empty.
    """

    source: str
    start: int = 0
    end: int = 0
    frames: int = 0
    flow: int = 0
    not_ip: int = 0
    truncated: int = 0
    malformed: int = 0
    unsupported: int = 0
    fragment: int = 0
    lost: int = 0
    inner_not_ip: int = 0
    inner_truncated: int = 0
    inner_malformed: int = 0
    inner_fragment: int = 0
    damage: str = ""
    overflow: int = 0
    inner_overflow: int = 0
    other_bytes: int = 0
    alerts_lost: int = 0
    missing: str = ""
    not_chosen: int = 0
    parts_not_read: int = 0
    drops_lost: int = 0
    clock_offset: int = 0
    windows: tuple[Window, ...] = ()

    @property
    def watched(self) -> tuple[Window, ...]:
        """When it watched, in order; empty where no time is known."""
        return self.windows or (((self.start, self.end),) if self.start else ())

    def at(self, windows: Iterable[Window]) -> Coverage:
        """The same with these windows, in any order."""
        known = joined(windows)
        return replace(self, windows=() if known == ((self.start, self.end),) else known)

    def accounted(self) -> int:
        """Frames by what became of them; equals `frames`, always."""
        return sum(getattr(self, name) for name in ENDINGS)

    def plus(self, other: Coverage) -> Coverage:
        """The ledger of two parts of one source."""
        return _summed((self, other))


def joined(windows: Iterable[Window]) -> tuple[Window, ...]:
    """In order, those that meet or overlap as one."""
    found: list[Window] = []
    for start, end in sorted(windows):
        if found and start - found[-1][1] <= GAP:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return tuple(found)


def _summed(parts: Sequence[Coverage]) -> Coverage:
    """The ledger of parts of one source."""
    sums = {name: sum(getattr(part, name) for part in parts) for name in COUNTS}
    return Coverage(
        parts[0].source,
        start=min((part.start for part in parts if part.start), default=0),
        end=max(part.end for part in parts),
        damage=_united(part.damage for part in parts),
        missing=_united(part.missing for part in parts),
        clock_offset=max((part.clock_offset for part in parts), key=lambda ns: (abs(ns), ns)),
        **sums,
    ).at(window for part in parts for window in part.watched)


def _united(texts: Iterable[str]) -> str:
    """What any of them says, each once, in one order whatever the order of adding."""
    return "; ".join(sorted({clause for text in texts for clause in text.split("; ") if clause}))


#: what can become of a frame
ENDINGS = (
    *("flow", "not_ip", "truncated", "malformed", "unsupported", "fragment", "overflow", "not_chosen"),
)
_CLOCKS = ("start", "end", "clock_offset")
#: the fields that add up
COUNTS = tuple(name for name, t in Coverage.__annotations__.items() if t == "int" and name not in _CLOCKS)


def no_rows() -> Rows:
    """An empty one-way table, shape (0,), dtype ROW."""
    return np.zeros(0, ROW)


def no_fragments() -> Rows:
    """No unfinished datagrams, shape (0,), dtype FRAGMENT."""
    return np.zeros(0, FRAGMENT)


class Endpoint(NamedTuple):
    """A listening socket: address as 16 bytes, protocol number, port."""

    address: bytes
    protocol: int
    port: int


@dataclass(frozen=True)
class OneWay:
    """One-way rows, who observed them, and the ledgers.

    `rows`: shape (n,), dtype ROW, `interface` indexes `observers`. `fragments`: shape (m,), dtype FRAGMENT.
    `interval`: ns, 0 where the rows are not cut by time. `listeners`: end points known to listen, from other
    sources than the rows. `facts`: what nodes know about flows beside their packets.
    """

    rows: Rows = field(default_factory=no_rows)
    observers: tuple[Observer, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    fragments: Rows = field(default_factory=no_fragments)
    interval: int = 0
    listeners: frozenset[Endpoint] = frozenset()
    facts: Facts = field(default_factory=Facts)

    def settled(self) -> OneWay:
        """The same with nothing left open: later fragments without their first one go into the ledger."""
        waiting = self.fragments[self.fragments["packets"] > 0]
        ledgers = {c.source: c for c in self.coverage}
        for row in waiting:
            source = self.observers[int(row["interface"])].source
            name = "inner_fragment" if row["tunnel"] else "fragment"
            ledger = ledgers[source]
            ledgers[source] = replace(ledger, **{name: getattr(ledger, name) + int(row["packets"])})
        return replace(self, fragments=no_fragments(), coverage=tuple(ledgers.values()))


def _least_frame(groups: Groups, frames: npt.NDArray[np.uint64]) -> Array:
    """0 means "none", so it must not win."""
    return groups.reduce(np.minimum, frames - np.uint64(1)) + np.uint64(1)


def sum_rows(rows: Rows) -> Rows:
    """Rows with equal key and interval added up (`count()` of bpf/flow.h). Shape (groups,), order of first
    appearance.
    """
    numbers, first = group(rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)[:, :KEY_BYTES])
    if len(first) == len(rows):
        return rows
    groups = Groups(numbers, len(first))
    result = rows[first].copy()
    for name, function in REDUCTIONS.items():
        result[name] = groups.reduce(function, rows[name])
    result["first_frame"] = _least_frame(groups, rows["first_frame"])
    return result


REDUCTIONS = {
    "packets": np.add,
    "bytes": np.add,
    "start": np.minimum,
    "end": np.maximum,
    "unreachable": np.bitwise_or,
    "tcp_flags": np.bitwise_or,
    "events": np.bitwise_or,
}


def merge(tables: Iterable[OneWay]) -> OneWay:
    """One table of several: rows of one observer, key and interval add up, ledgers of one source too.

    Associative and commutative up to the order of rows. Later fragments in one part find their first one in
    another.
    """
    parts = list(tables)
    if len(parts) == 1:
        return parts[0]
    observers = tuple(dict.fromkeys(o for part in parts for o in part.observers))
    rows = np.concatenate([no_rows(), *(_renumbered(p.rows, p, observers) for p in parts)])
    fragments = np.concatenate([no_fragments(), *(_renumbered(p.fragments, p, observers) for p in parts)])
    interval = max((p.interval for p in parts), default=0)
    resolved, fragments = _join_fragments(fragments, interval)
    return OneWay(
        rows=sum_rows(np.concatenate([rows, resolved]) if len(resolved) else rows),
        observers=observers,
        coverage=_credit(_sum_coverage(parts), resolved, observers),
        fragments=fragments,
        interval=interval,
        listeners=frozenset().union(*(p.listeners for p in parts)),
        facts=merge_facts([(p.facts, _new_numbers(p, observers)) for p in parts]),
    )


FOLD_RECORDS = 1 << 18  # rows and other records that wait to be added up
_LEAST = 256  # records' worth of what a part is beside them


class Folding:
    """Tables added up as they come, as :func:`merge` does it: what waits is never much more than what there
    is, so memory follows distinct rows and not tables. `batch`: how many records wait at least.
    """

    def __init__(self, batch: int = FOLD_RECORDS) -> None:
        self._batch, self._size = batch, 0
        self._whole: list[OneWay] = []
        self._waiting: list[OneWay] = []

    def add(self, part: OneWay) -> None:
        """One more."""
        self._waiting.append(part)
        self._size += _records(part)
        # not before as much waits as is there: else each row would be added up again with each batch
        if self._size >= max([self._batch, *map(_records, self._whole)]):
            self._whole = [self.whole()]
            self._waiting, self._size = [], 0

    def whole(self) -> OneWay:
        """All of them so far."""
        return merge([*self._whole, *self._waiting])


def _records(part: OneWay) -> int:
    return len(part.rows) + len(part.fragments) + len(part.facts) + _LEAST


def fold(tables: Iterable[OneWay], batch: int = FOLD_RECORDS) -> OneWay:
    """As :func:`merge`, of tables that need not be there all at once."""
    folding = Folding(batch)
    for table in tables:
        folding.add(table)
    return folding.whole()


def coarser(one_way: OneWay, interval: int) -> OneWay:
    """The same with intervals of `interval` ns, which must be a multiple of its own, or 0 for none: what
    reading with that interval would have made.
    """
    if interval == one_way.interval:
        return one_way
    facts = replace(one_way.facts, drops=_floored(one_way.facts.drops, interval))
    rows = sum_rows(_floored(one_way.rows, interval))
    # merged with nothing: drops and fragments that had other intervals and now have the same add up
    return merge([replace(one_way, rows=rows, facts=facts, interval=interval), OneWay()])


def alike(parts: Sequence[OneWay]) -> list[OneWay]:
    """The same with the least interval that all of theirs divide, most often the longest; with none where
    rows of one are not cut by time. Else two observers of a flow, one in hours and one in seconds, would not
    be seen to tell of the same, and its packets count twice.
    """
    common = math.lcm(*(part.interval for part in parts if part.interval))
    if common >= _EVER or any(len(part.rows) and not part.interval for part in parts):
        common = 0
    return [coarser(part, common) if part.interval else part for part in parts]


def _floored(records: Rows, interval: int) -> Rows:
    records = records.copy()
    records["interval"] -= records["interval"] % np.uint64(interval) if interval else records["interval"]
    return records


def _new_numbers(part: OneWay, observers: Sequence[Observer]) -> npt.NDArray[np.uint32]:
    """The number that each of a part's observers has among all."""
    numbers = {observer: i for i, observer in enumerate(observers)}
    return np.array([numbers[o] for o in part.observers], np.uint32)


def _renumbered(rows: Rows, part: OneWay, observers: Sequence[Observer]) -> Rows:
    new = _new_numbers(part, observers)
    if not len(rows) or np.array_equal(new, np.arange(len(new))):
        return rows
    rows = rows.copy()
    rows["interface"] = new[rows["interface"]]
    return rows


def _sum_coverage(parts: Sequence[OneWay]) -> dict[str, Coverage]:
    ledgers: dict[str, list[Coverage]] = {}
    for ledger in (ledger for part in parts for ledger in part.coverage):
        ledgers.setdefault(ledger.source, []).append(ledger)
    return {source: _summed(of) if len(of) > 1 else of[0] for source, of in ledgers.items()}


def _credit(
    ledgers: dict[str, Coverage], resolved: Rows, observers: Sequence[Observer]
) -> tuple[Coverage, ...]:
    """Frames whose flow was found by merging were in no count of the ledger before."""
    for row in resolved[resolved["tunnel"] == 0]:
        ledger = ledgers[observers[int(row["interface"])].source]
        ledgers[ledger.source] = replace(ledger, flow=ledger.flow + int(row["packets"]))
    return tuple(ledgers.values())


def _join_fragments(fragments: Rows, interval: int) -> tuple[Rows, Rows]:
    """Waiting later fragments whose first one is known, as flow rows; and the datagrams still unfinished."""
    if not len(fragments):
        return no_rows(), fragments
    numbers, first = group(
        pack(fragments.view(np.uint8).reshape(len(fragments), -1)[:, :80], fragments["id"])
    )
    groups = Groups(numbers, len(first))
    entries = np.split(fragments[groups.order], groups.starts[1:])
    datagrams = [datagram for parts in entries for datagram in _datagrams(parts)]
    resolved = [_flow_rows(d, interval) for d in datagrams if d["has_first"].any()]
    unfinished = [_unfinished(d, interval) for d in datagrams]
    return np.concatenate([no_rows(), *resolved]), np.concatenate([no_fragments(), *unfinished])


def _datagrams(parts: Rows) -> list[Rows]:
    """Entries of one datagram id: those within the reassembly time are one datagram."""
    parts = parts[np.argsort(parts["time"], kind="stable")]
    apart = np.diff(parts["time"]) > FRAGMENT_MAX_NS
    return np.split(parts, np.flatnonzero(apart) + 1)


def _unfinished(parts: Rows, interval: int) -> Rows:
    """One entry of a datagram whose first fragment is known; else one for each interval in which later ones
    wait.
    """
    if not parts["has_first"].any():
        begin = _interval_of(parts["start"], interval)
        return np.concatenate([_fold_datagram(parts[begin == b]) for b in np.unique(begin)])
    whole = _fold_datagram(parts)
    for name in COUNTERS.names or ():
        whole[name] = NO_TIME if name == "start" else 0
    done = (whole["expected"] > 0) & (whole["seen"] >= whole["expected"])
    return whole[~done]


def _interval_of(start: npt.NDArray[np.uint64], interval: int) -> npt.NDArray[np.uint64]:
    """When the interval of each time begins; 0 where there is none."""
    if not interval:
        return np.zeros(len(start), np.uint64)
    return np.where(start == NO_TIME, np.uint64(0), start - start % np.uint64(interval))


def _fold_datagram(parts: Rows) -> Rows:
    result = parts[:1].copy()
    for name, function in (REDUCTIONS | {"time": np.maximum, "seen": np.add, "expected": np.maximum}).items():
        result[name] = function.reduce(parts[name], dtype=parts[name].dtype)
    frames = parts["first_frame"][parts["packets"] > 0]
    result["first_frame"] = frames.min() if len(frames) else 0
    first = parts[parts["has_first"] > 0]
    if len(first):
        for name in ("first_src_port", "first_dst_port", "first_protocol", "has_first"):
            result[name] = first[0][name]
    return result


def _flow_rows(datagram: Rows, interval: int) -> Rows:
    """What waits in a datagram's entries, with the ports of its first fragment."""
    first, fragments = datagram[datagram["has_first"] > 0][0], datagram[datagram["packets"] > 0]
    rows = np.zeros(len(fragments), ROW)
    for name in (*(KEY.names or ()), *(COUNTERS.names or ())):
        rows[name] = fragments[name]
    for name in ("src_port", "dst_port", "protocol"):
        rows[name] = first[f"first_{name}"]
    rows["interval"] = _interval_of(rows["start"], interval)
    return rows
