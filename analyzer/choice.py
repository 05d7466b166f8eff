"""Which rows are asked for: of a time, of nodes, of ports. Rule: rows in, the chosen ones out, and the ledger
says how many were not; reads no file, and what a reader may spare itself hangs on nothing but this.

A row is chosen whole. What was cut by time is, where its interval reaches into the time: the key alone says
so, so rows may be chosen before or after they are added up. What was not is chosen with all rows that its
source has of the flow, both ways, where one of them does. A time is cut as a capture's edge is: what a source
knows from before is not known, and of one that recorded nothing in it nothing is left.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analyzer._grouping import ADDRESS, Array, group, pack
from analyzer.errors import CaptureError, ClusterError
from analyzer.rows import EVENT_CARRIER, NO_TIME, Coverage, OneWay, Rows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from analyzer.cluster import Cluster

Window = tuple[int, int]
#: source → how many of its parts were not read
Unread = tuple[tuple[str, int], ...]
Mask = npt.NDArray[np.bool_]

EVER = 2**63  # ns: after all times
_ICMP = (1, 58)
_WITH_PORTS = (6, 17, 132)  # TCP, UDP, SCTP
_ENDS = ("src", "dst", "outer_src", "outer_dst")
_PORTS = ("src_port", "dst_port")
#: columns whose least and greatest value in a group of rows :meth:`Choice.may_be_in` asks for
BOUNDED = ("interval", *_PORTS, *_ENDS)


@dataclass(frozen=True)
class Choice:
    """What is asked for; without arguments all. `since`, `until`: ns since the epoch, the first one in it,
    the last one not. `addresses`: 16-byte addresses of which a row must have one as an end, its own or its
    tunnel's; None for all. `ports`: of which a row must have one on either side; none for all.
    """

    since: int = 0
    until: int = EVER
    addresses: frozenset[bytes] | None = None
    ports: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        """Whether anything can be left out."""
        return self.timed or self.addresses is not None or bool(self.ports)

    @property
    def timed(self) -> bool:
        """Whether a time is asked for."""
        return self.since > 0 or self.until < EVER

    def rounded(self, interval: int) -> Choice:
        """The same, out to whole intervals of `interval` ns, 0 for none."""
        if not interval:
            return self
        until = min(-(-self.until // interval) * interval, EVER)
        return replace(self, since=self.since // interval * interval, until=until)

    def reaches(self, windows: Sequence[Window]) -> bool:
        """Whether one of these windows (ns, both ends in it) reaches into the time."""
        return any(start < self.until and end >= self.since for start, end in windows)

    def may_be_in(self, bounds: Mapping[str, tuple[Any, Any]], interval: int) -> bool:
        """Whether a chosen row can be among rows, by the least and the greatest value of each column that is
        known. Of rows that are not cut by time, time says nothing.
        """
        low, high = bounds.get("interval", (0, EVER))
        time = self.rounded(interval)
        if low > 0 and (high < time.since or low >= time.until):
            return False
        if self.ports and not _within(self.ports, [bounds.get(name) for name in _PORTS]):
            return False
        return self.addresses is None or _within(self.addresses, [bounds.get(name) for name in _ENDS])


ALL = Choice()


def _within(wanted: Iterable[Any], bounds: Sequence[tuple[Any, Any] | None]) -> bool:
    return None in bounds or any(low <= one <= high for one in wanted for low, high in filter(None, bounds))


def addresses_of(cluster: Cluster, names: Collection[str]) -> frozenset[bytes] | None:
    """The addresses of nodes by name, None for no names. Raises ClusterError for one that is not there."""
    from analyzer.columns import parse_address  # noqa: PLC0415  only where nodes are named

    known = {name: texts for name, _, texts in cluster.rows()}
    strange = sorted(set(names) - known.keys())
    if strange:
        raise ClusterError(
            f"no node is called {strange[0]!r}", where=cluster.name, next_step=f"there are {', '.join(known)}"
        )
    return frozenset(parse_address(text) for name in names for text in known[name]) if names else None


def nothing_recorded() -> CaptureError:
    """What to say where nothing is left of the inputs."""
    return CaptureError(
        "nothing was recorded in this time", next_step="`rke2-flows store show` says when it was in a store"
    )


# ---- choosing ----


def choose(whole: OneWay, choice: Choice, windows: Sequence[Window] = ()) -> OneWay:
    """The chosen rows of one input, and what is known beside them.

    Ledgers begin and end with the time where rows are cut by it, and count packets of other rows as
    `not_chosen`; what had become of no row stays as it is, since nobody knows when it was. `windows`: when
    something was recorded, ns, where that is known better than by the ledgers. Nothing at all is left of a
    source that recorded nothing in the time.
    """
    if not choice:
        return whole
    if choice.timed and windows and not choice.reaches(windows):
        return OneWay()
    gone = _elsewhere(whole.coverage, choice)
    if gone:
        whole = _without(whole, gone)
        if not (whole.coverage or len(whole.rows)):
            return OneWay()
    chosen = sift(whole, choice)
    if not (whole.interval and choice.timed):
        return chosen
    time = choice.rounded(whole.interval)
    return replace(chosen, coverage=tuple(_clipped(ledger, choice, time) for ledger in chosen.coverage))


def sift(whole: OneWay, choice: Choice) -> OneWay:
    """The chosen rows, drops and fragments of what was chosen from before and then added up: of fragments the
    ports come to be known with that, or of what was to be chosen by the names of nodes.
    """
    if not choice:
        return whole
    time = choice.rounded(whole.interval)
    rows, drops, fragments = whole.rows, whole.facts.drops, whole.fragments
    in_time, dropped_in_time = _timely(whole, time)
    kept = in_time & _of_ports(rows, choice) & _of_nodes(rows, choice)
    drops = drops[dropped_in_time & _of_ports(drops, choice) & _of_nodes(drops, choice)]
    waiting = _waiting_in(fragments, time) & _of_nodes(fragments, choice)
    return replace(
        whole,
        rows=rows[kept],
        facts=replace(whole.facts, drops=drops),
        fragments=fragments[waiting],
        coverage=_counted(whole, rows[~kept], fragments[~waiting]),
    )


def unread_groups(part: OneWay) -> OneWay:
    """A part of which groups of rows that hold nothing chosen were not read: the ledger has their packets."""
    read = packets_of(part, part.rows)
    ledgers = (_moved(ledger, max(0, ledger.flow - read[ledger.source])) for ledger in part.coverage)
    return replace(part, coverage=tuple(ledgers))


def with_unread(whole: OneWay, unread: Unread) -> OneWay:
    """The same; the ledgers also say how many parts of their source were not read."""
    counts = dict(unread)
    ledgers = (
        replace(ledger, parts_not_read=ledger.parts_not_read + counts.get(ledger.source, 0))
        for ledger in whole.coverage
    )
    return replace(whole, coverage=tuple(ledgers)) if unread else whole


# ---- time ----


def _elsewhere(coverage: Sequence[Coverage], choice: Choice) -> set[str]:
    """Sources that recorded nothing in the time."""
    if not choice.timed:
        return set()
    timed = [ledger for ledger in coverage if ledger.start]
    return {ledger.source for ledger in timed if not choice.reaches(ledger.watched)}


def _without(whole: OneWay, sources: Collection[str]) -> OneWay:
    mine = np.array([observer.source not in sources for observer in whole.observers], bool)
    facts = whole.facts
    return replace(
        whole,
        rows=whole.rows[mine[whole.rows["interface"]]],
        fragments=whole.fragments[mine[whole.fragments["interface"]]],
        facts=replace(facts, drops=facts.drops[mine[facts.drops["observer"]]]),
        coverage=tuple(ledger for ledger in whole.coverage if ledger.source not in sources),
    )


def _clipped(ledger: Coverage, choice: Choice, time: Choice) -> Coverage:
    """Its windows within the time, that is the choice's in whole intervals. A capture that ends there says of
    the last packets no more than this.
    """
    if not ledger.start:
        return ledger
    reached = [window for window in ledger.watched if choice.reaches([window])]
    inside = [(max(start, time.since), min(end, time.until - 1)) for start, end in reached]
    return replace(ledger, start=inside[0][0], end=inside[-1][1]).at(inside) if inside else ledger


def _timely(whole: OneWay, time: Choice) -> tuple[Mask, Mask]:
    """Which rows and which drops are of the time, that is given in whole intervals."""
    rows, drops = whole.rows, whole.facts.drops
    if not time.timed:
        return np.ones(len(rows), bool), np.ones(len(drops), bool)
    masks = _by_interval(rows, time), _by_interval(drops, time)
    loose = [np.flatnonzero(records["interval"] == 0) for records in (rows, drops)]
    if any(map(len, loose)):
        _with_their_flows(whole, time, masks, loose)
    return masks


def _by_interval(records: Rows, time: Choice) -> Mask:
    begin = records["interval"]
    mask: Mask = (begin > 0) & (begin >= np.uint64(time.since)) & (begin < np.uint64(time.until))
    return mask


def _with_their_flows(whole: OneWay, time: Choice, masks: tuple[Mask, Mask], loose: list[Array]) -> None:
    """Sets what is not cut by time where something of its flow is in it."""
    tables = (whole.rows, whole.facts.drops)
    numbers, first = group(np.concatenate([_flow_keys(whole, records) for records in tables]))
    of = np.split(numbers, [len(whole.rows)])
    hit = np.zeros(len(first), bool)
    for records, mask, places, flow in zip(tables, masks, loose, of, strict=True):
        mask[places] = _spans(records[places], time)
        hit[flow[mask]] = True
    for mask, places, flow in zip(masks, loose, of, strict=True):
        mask[places] = hit[flow[places]]


def _spans(records: Rows, time: Choice) -> Mask:
    start, end = records["start"], records["end"]
    mask: Mask = (start != NO_TIME) & (start < np.uint64(time.until)) & (end >= np.uint64(time.since))
    return mask


def _flow_keys(whole: OneWay, records: Rows) -> npt.NDArray[np.uint8]:
    """What all records of a flow have in common, whichever way they go. ICMP's types differ by direction, and
    so do the port that a tunnel's carrier is sent from, and Cilium's VNIs.
    """
    is_row = "interface" in (records.dtype.names or ())
    names = np.array([observer.source for observer in whole.observers] or [""])
    sources = np.unique(names, return_inverse=True)[1].astype(np.uint32)
    source = sources[records["interface" if is_row else "observer"]]
    ports = [records[name].copy() for name in _PORTS]
    portless = np.isin(records["protocol"], _ICMP)
    tunnel = np.zeros(len(records), np.uint8)
    if is_row:
        portless |= (records["events"] & np.uint8(EVENT_CARRIER)) > 0
        tunnel = records["tunnel"]
    for column in ports:
        column[portless] = 0
    turned = _later(records["src"], records["dst"], *ports)
    low, high = (np.where(turned, a, b) for a, b in ((ports[1], ports[0]), (ports[0], ports[1])))
    ends = [records[name].copy() for name in ("src", "dst")]
    ends[0][turned], ends[1][turned] = records["dst"][turned], records["src"][turned]
    return pack(*ends, low, high, records["protocol"], tunnel, source)


def _later(src: Array, dst: Array, src_port: Array, dst_port: Array) -> Mask:
    """Whether the first end comes after the second one, in any one order of ends."""
    one, other = (np.ascontiguousarray(column).view("<u8").reshape(-1, 2) for column in (src, dst))
    mask = src_port > dst_port
    for half in (0, 1):
        a, b = one[:, half], other[:, half]
        mask = (a > b) | ((a == b) & mask)
    return mask


def _waiting_in(fragments: Rows, time: Choice) -> Mask:
    """Which fragments are of the time: later ones by when they came, a first one by when it was last seen."""
    if not time.timed:
        return np.ones(len(fragments), bool)
    first = fragments["packets"] == 0
    start = np.where(first, fragments["time"], fragments["start"])
    end = np.where(first, fragments["time"], fragments["end"])
    mask: Mask = (start < np.uint64(time.until)) & (end >= np.uint64(time.since))
    return mask


# ---- ends ----


def _of_ports(records: Rows, choice: Choice) -> Mask:
    if not choice.ports:
        return np.ones(len(records), bool)
    asked = np.zeros(2**16, bool)
    asked[list(choice.ports)] = True
    either = asked[records["src_port"]] | asked[records["dst_port"]]
    mask: Mask = either & np.isin(records["protocol"], _WITH_PORTS)
    return mask


def _of_nodes(records: Rows, choice: Choice) -> Mask:
    mask = np.full(len(records), choice.addresses is None)
    if choice.addresses is not None:
        for name in set(_ENDS) & set(records.dtype.names or ()):
            mask |= _among(records[name], choice.addresses)
    return mask


def _among(column: Array, addresses: Collection[bytes]) -> Mask:
    known = np.array(sorted(addresses), ADDRESS)
    numbers, _ = group(pack(np.concatenate([known, column])))
    mask: Mask = numbers[len(known) :] < len(known)  # numbers are in order of appearance
    return mask


# ---- the ledger ----


def _counted(whole: OneWay, rows: Rows, fragments: Rows) -> tuple[Coverage, ...]:
    """The ledgers with what was left out. Waiting fragments are in no count but `frames` yet."""
    left, waited = packets_of(whole, rows), packets_of(whole, fragments)
    return tuple(
        replace(moved, not_chosen=moved.not_chosen + waited[moved.source])
        for moved in (_moved(ledger, left[ledger.source]) for ledger in whole.coverage)
    )


def _moved(ledger: Coverage, packets: int) -> Coverage:
    """Never more than there are: the rows of a flow table have no counts but the fullest witness's."""
    count = min(ledger.flow, packets)
    return replace(ledger, flow=ledger.flow - count, not_chosen=ledger.not_chosen + count)


def packets_of(whole: OneWay, records: Rows) -> Counter[str]:
    """Packets of each source, without those in tunnels, which their carriers count for."""
    outside = records[records["tunnel"] == 0]
    sums = np.zeros(len(whole.observers), np.uint64)
    np.add.at(sums, outside["interface"], outside["packets"])
    counts: Counter[str] = Counter()
    for observer, packets in zip(whole.observers, sums.tolist(), strict=True):
        counts[observer.source] += packets
    return counts
