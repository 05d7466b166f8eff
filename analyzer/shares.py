"""One-way rows cut into shares that are paired and judged apart, and what all shares must know of each
other. Rule: rows and tables in, rows and tables out; knows no file, no worker and no address of either.

All rows between two nodes (or two addresses that are no node's) are in one share: what answers what, what was
also seen in a tunnel, whose carriers are answered and which fragments belong together is then settled within
it. What is left over is small and the same for all: when each observer watched, where tunnels end, who
accepted a connection, and the ledgers. That is an :class:`Outline`; with it a share is paired exactly as the
whole would be.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer import clocks
from analyzer._grouping import ADDRESS, Array, group, mixed, pack
from analyzer.choice import ALL, Choice, packets_of, sift
from analyzer.facts import Facts
from analyzer.flows import format_address, pair, parse_address
from analyzer.rows import EVENT_SYN_ACK, NO_TIME, ROW, Coverage, Endpoint, Observer, OneWay, Rows, merge

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from analyzer._pairing import ServerPorts
    from analyzer.cluster import Cluster

Window = tuple[int, int]
_NO_ROWS: Window = (int(NO_TIME), 0)


@dataclass(frozen=True)
class Share:
    """The one-way rows of some pairs of ends; `rows.coverage` is this share's part of each ledger."""

    rows: OneWay

    def __sizeof__(self) -> int:
        """Bytes of its arrays: what a scheduler places and spills by."""
        whole, facts = self.rows, self.rows.facts
        arrays = (whole.rows, whole.fragments, facts.owners, facts.drops)
        return 1024 + sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class Outline:
    """What each share must know of all. A commutative monoid under :func:`merge_outlines`, up to order.

    `windows`: observer → least start and greatest end of its rows, ns. `tunnel_ends`: 16-byte addresses.
    `listeners`: end points that accepted a connection. `coverage`: the ledgers of all shares together.
    `connections`: what tells whose clocks are apart.
    """

    windows: dict[Observer, Window]
    tunnel_ends: frozenset[bytes]
    listeners: frozenset[Endpoint]
    coverage: tuple[Coverage, ...]
    interval: int
    connections: clocks.Sketches = field(compare=False)

    @cached_property
    def ledgers(self) -> tuple[Coverage, ...]:
        """The ledgers, with what is known when all shares are: whose clock is how far ahead."""
        return clocks.told(self.coverage, self.connections)


class Ends:
    """What stands for each address when rows are dealt out: of a node's addresses the first."""

    def __init__(self, cluster: Cluster | None = None) -> None:
        members = [] if cluster is None else [texts for _, _, texts in cluster.rows()]
        own = [[parse_address(text) for text in texts] for texts in members]
        self._known = np.array([address for texts in own for address in texts], ADDRESS)
        self._first = np.array([texts[0] for texts in own for _ in texts], ADDRESS)

    def numbers(self, *columns: Array) -> list[npt.NDArray[np.uint64]]:
        """A number for each address of each column, shape (n,): equal for the addresses of one node, the
        same in every process.
        """
        of, first = group(pack(np.concatenate([*columns, self._known])))
        values = np.concatenate([*columns, self._known])[first]
        values[of[len(of) - len(self._known) :]] = self._first
        halves = values.view("<u8").reshape(-1, 2)
        hashes = mixed(mixed(halves[:, 0]) ^ halves[:, 1])
        bounds = np.cumsum([len(column) for column in columns])
        return [hashes[numbers] for numbers in np.split(of, bounds)[: len(columns)]]


# ---- cutting ----


def deal(whole: OneWay, count: int, ends: Ends) -> list[Share]:
    """Cuts one-way rows into `count` shares by the unordered pair of their ends; their order stays.

    Each share takes of the ledgers what its rows count, and when they watched, so that rows can be chosen of
    its flows alone; the first one also what ended in no row. Added up they are the whole's.
    """
    rows, fragments = (_dealt(part, count, ends) for part in (whole.rows, whole.fragments))
    facts = _dealt_facts(whole.facts, count, ends)
    ledgers = _dealt_ledgers(whole, rows, fragments)
    return [
        Share(
            replace(
                whole,
                rows=rows[i],
                fragments=fragments[i],
                facts=facts[i],
                coverage=ledgers[i],
                listeners=frozenset() if i else whole.listeners,
            )
        )
        for i in range(count)
    ]


def _dealt(records: Rows, count: int, ends: Ends) -> list[Rows]:
    src, dst = ends.numbers(records["src"], records["dst"])
    share = (mixed(src + dst) % np.uint64(count)).astype(np.intp)
    order = np.argsort(share, kind="stable")
    return np.split(records[order], np.cumsum(np.bincount(share, minlength=count))[:-1])


def _dealt_ledgers(
    whole: OneWay, rows: Sequence[Rows], fragments: Sequence[Rows]
) -> list[tuple[Coverage, ...]]:
    """What the rows of a flow table count is less than its ledger has; what they count is never more."""
    rest = {ledger.source: ledger for ledger in whole.coverage}
    dealt: list[tuple[Coverage, ...]] = []
    for mine, waiting in zip(rows[1:], fragments[1:], strict=True):
        counted, waited = packets_of(whole, mine), packets_of(whole, waiting)
        taken = []
        for source, ledger in rest.items():
            flow = min(ledger.flow, ledger.frames, counted[source])
            frames = flow + min(ledger.frames - flow, waited[source])
            taken.append(Coverage(source, ledger.start, ledger.end, frames, flow, windows=ledger.windows))
            rest[source] = replace(ledger, frames=ledger.frames - frames, flow=ledger.flow - flow)
        dealt.append(tuple(taken))
    return [tuple(rest.values()), *dealt]


def _dealt_facts(facts: Facts, count: int, ends: Ends) -> list[Facts]:
    if not len(facts):
        return [Facts()] * count
    dealt = zip(*(_dealt(part, count, ends) for part in (facts.owners, facts.drops)), strict=True)
    return [_used(facts.names, owners, drops) for owners, drops in dealt]


def _used(names: Sequence[str], owners: Rows, drops: Rows) -> Facts:
    """Facts with no other names than those that they use."""
    used = np.unique(np.concatenate([[0], owners["process"], owners["pod"], drops["reason"]])).astype(np.intp)
    number = np.zeros(len(names), np.uint32)
    number[used] = np.arange(len(used))
    for records, fields in ((owners, ("process", "pod")), (drops, ("reason",))):
        for name in fields:
            records[name] = number[records[name]]
    return Facts(tuple(names[i] for i in used), owners, drops)


def gather(shares: Iterable[Share], choice: Choice = ALL) -> Share:
    """The shares of one pair of ends out of all inputs as one; nothing is left open in it. `choice`: of which
    they were chosen.
    """
    return Share(sift(merge(share.rows for share in shares), choice).settled())


# ---- outlines ----


def outline(share: Share) -> Outline:
    """What the other shares must know of this one."""
    rows, observers = share.rows.rows, share.rows.observers
    start, end = np.full(len(observers), NO_TIME), np.zeros(len(observers), np.uint64)
    np.minimum.at(start, rows["interface"], rows["start"])
    np.maximum.at(end, rows["interface"], rows["end"])
    windows = zip(start.tolist(), end.tolist(), strict=True)
    inner = rows[rows["tunnel"] > 0]
    return Outline(
        dict(zip(observers, windows, strict=True)),
        frozenset(address for name in ("outer_src", "outer_dst") for address in _distinct(inner[name])),
        share.rows.listeners | _accepting(rows),
        share.rows.coverage,
        share.rows.interval,
        clocks.sketches(rows, observers),
    )


def _distinct(addresses: Array) -> list[bytes]:
    return [address.tobytes() for address in addresses[group(pack(addresses))[1]]]


def _accepting(rows: Rows) -> frozenset[Endpoint]:
    """Who sent a SYN-ACK, and from where."""
    accepting = rows[(rows["events"] & np.uint8(EVENT_SYN_ACK)) > 0]
    names = ("src", "protocol", "src_port")
    _, first = group(pack(*(accepting[name] for name in names)))
    ends = (accepting[name][first] for name in names)
    return frozenset(Endpoint(a.tobytes(), int(p), int(port)) for a, p, port in zip(*ends, strict=True))


def merge_outlines(outlines: Iterable[Outline]) -> Outline:
    """One outline of several."""
    return reduce(_both, outlines)


def _both(one: Outline, other: Outline) -> Outline:
    windows = dict(one.windows)
    for observer, (start, end) in other.windows.items():
        low, high = windows.get(observer, _NO_ROWS)
        windows[observer] = (min(low, start), max(high, end))
    ledgers = {ledger.source: ledger for ledger in one.coverage}
    for ledger in other.coverage:
        ledgers[ledger.source] = ledgers[ledger.source].plus(ledger) if ledger.source in ledgers else ledger
    return Outline(
        windows,
        one.tunnel_ends | other.tunnel_ends,
        one.listeners | other.listeners,
        tuple(ledgers.values()),
        max(one.interval, other.interval),
        clocks.merge_sketches(one.connections, other.connections),
    )


# ---- pairing ----

_ADDRESSES = ("client", "server", "outer_client", "outer_server")
_VXLAN, _UDP = 1, 17


def paired(
    share: Share, around: Outline, server_ports: ServerPorts, nodes: Collection[str] = ()
) -> pd.DataFrame:
    """The flow table of a share: those rows of :func:`analyzer.flows.pair` of the whole that are between the
    share's ends, in the same order.
    """
    whole = share.rows
    mark = _unused_address(whole.rows)
    known = replace(
        whole,
        rows=np.concatenate([whole.rows, _carried(whole.observers, around, mark)]),
        coverage=around.ledgers,
        listeners=around.listeners,
        interval=around.interval,
    )
    table = pair(known, server_ports, nodes=nodes)
    table = table[(table["client"] != format_address(mark)).to_numpy()].reset_index(drop=True)
    return table.assign(**_only_used(table), protocol=table["protocol"].cat.remove_unused_categories())


def _unused_address(rows: Rows) -> bytes:
    """An address that no row has."""
    halves = np.concatenate([np.ascontiguousarray(rows[name]).view("<u8") for name in ("src", "dst")])
    taken = set(halves.reshape(-1, 2)[:, 1][halves.reshape(-1, 2)[:, 0] == 2**64 - 1].tolist())
    return b"\xff" * 8 + next(n for n in range(len(taken) + 1) if n not in taken).to_bytes(8, "little")


def _carried(observers: Sequence[Observer], around: Outline, mark: bytes) -> Rows:
    """The outline as rows without packets, all of one flow that is taken out again: a row for each observer,
    as long as its window, and one in a tunnel of its own for each tunnel's end.
    """
    ends = sorted(around.tunnel_ends)
    rows = np.zeros(len(observers) + len(ends), ROW)
    windows = [around.windows[observer] for observer in observers]
    rows["src"] = rows["dst"] = np.frombuffer(mark, ADDRESS)
    rows["protocol"] = _UDP
    rows["start"] = [start for start, _ in windows] + [int(NO_TIME)] * len(ends)
    rows["end"] = [end for _, end in windows] + [0] * len(ends)
    rows["interface"] = [*range(len(observers)), *(0 for _ in ends)]
    inner = rows[len(observers) :]
    inner["tunnel"], inner["vni"] = _VXLAN, np.arange(len(ends))
    inner["outer_src"] = inner["outer_dst"] = np.array(ends, ADDRESS)
    return rows


def _only_used(table: pd.DataFrame) -> dict[str, pd.Categorical]:
    """The columns of addresses with no other categories than those that one of them uses."""
    names = table["client"].cat.categories
    codes = {name: table[name].cat.codes.to_numpy() for name in _ADDRESSES}
    used = np.unique(np.concatenate([[0], *codes.values()])).astype(np.intp)
    number = np.zeros(len(names), np.int32)
    number[used] = np.arange(len(used))
    return {name: pd.Categorical.from_codes(number[code], names[used]) for name, code in codes.items()}
