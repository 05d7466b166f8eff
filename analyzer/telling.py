"""The judged flows that findings are about, as few rows as tell the same. Rule: what
:func:`analyzer.findings.find` says of these rows, it says of all flows; knows no worker and no file.

Flows that no finding can tell apart are one row, but for the first of them, which a finding may show, and the
last, which says how long it went on. Of many addresses outside that use one port of a node, the names of all
but the first are not kept. Both can be done to parts of a table, and again to what was kept of them: parts
must hold all flows between the two nodes (or addresses) of a pair, as :mod:`analyzer.shares` cuts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer.findings import (
    FAILED,
    MANY,
    MANY_CLIENTS,
    PLACES,
    FlowColumns,
    answered_outside,
    exposed,
    got_through,
    in_vain,
    on_many_ports,
    relevant,
    too_late,
    tunnelled,
    watched,
)
from analyzer.flows import PROTOCOLS, TUNNELS, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from analyzer.findings import Rows
    from analyzer.rows import Coverage
    from analyzer.spec import Spec

#: what findings tell flows apart by
_ALIKE = ("from", "to", "protocol", "port", "scope", "client_role", "server_role", "rule", "verdict",
          "outcome", "source", "witnesses", "drops", "process", "pid", "pod", "watched", "shut")  # fmt: skip
_SUMS = ("flows", "attempts", "packets_out", "packets_in", "bytes_out", "bytes_in")
#: columns that say nothing to findings, nor in which order flows come
_UNTOLD = ("outer_client", "outer_server", "tcp_flags_out", "tcp_flags_in", "direction_by")


def telling(
    judged: pd.DataFrame, spec: Spec, coverage: Sequence[Coverage] = (), nodes: Collection[str] = ()
) -> pd.DataFrame:
    """What findings hang on, of judged flows with categorical text columns; `coverage` is of the whole,
    `nodes` are the names of the cluster's members.

    Columns are those of `judged` but five, and `flows` (int64): how many each row stands for; `attempts`
    (int64): how many of those are the first of their 5-tuple, of pairs that also failed; `apart` (bool): its
    own time matters; `watched` (bool): see :func:`analyzer.findings.watched`; `shut` (bool): see
    :meth:`analyzer.findings.FlowColumns.shut`; `got_through` (int64): see
    :func:`analyzer.findings.got_through`. Rows are in the order of a flow table.
    """
    flows = FlowColumns(judged)
    rows = relevant(flows)
    inside = flows.among("scope", ("inter-node",), rows)
    beside = _beside_failures(flows, rows)
    here = inside | exposed(flows, rows, spec) | tunnelled(flows, rows) | beside
    kept, attempts = rows[here], np.zeros(len(rows), np.int64)
    attempts[beside] = flows.attempts(rows[beside])
    table = judged.drop(columns=[name for name in _UNTOLD if name in judged]).take(kept)
    apart, blocked = _apart(flows, kept, coverage, nodes), _blocked(flows, kept)
    seen = np.zeros(len(kept), bool)
    seen[blocked] = watched(flows, kept[blocked], coverage, nodes)
    got = np.zeros(len(kept), np.int64)
    got[blocked] = got_through(flows, kept[blocked])
    marks = {"apart": apart, "watched": seen, "shut": flows.shut(kept), "got_through": got}
    return _folded(table.assign(flows=1, attempts=attempts[here], **marks))


def joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """What :func:`telling` kept of several parts, as of their whole."""
    return _folded(_together(list(tables)))


def _beside_failures(flows: FlowColumns, rows: Rows) -> npt.NDArray[np.bool_]:
    """Whether its pair also failed: how much of what a client tried failed makes it a scan or none."""
    pair = flows.numbers(rows, "from", "to")
    return np.isin(pair, pair[in_vain(flows, rows)])


def _blocked(flows: FlowColumns, rows: Rows) -> npt.NDArray[np.bool_]:
    """Whether it failed though it is allowed."""
    return flows.among("verdict", ("allowed",), rows) & flows.among("outcome", FAILED, rows)


def _apart(
    flows: FlowColumns, rows: Rows, coverage: Sequence[Coverage], nodes: Collection[str]
) -> npt.NDArray[np.bool_]:
    """What failed though it is allowed, and is in a finding or not by its own time: what had no time to be
    answered, and what a scan has beside it.
    """
    failed = in_vain(flows, rows)
    failed[failed] = on_many_ports(flows, rows[failed])
    return flows.among("verdict", ("allowed",), rows) & (failed | too_late(flows, rows, coverage, nodes))


# ---- fewer rows ----


def _folded(table: pd.DataFrame) -> pd.DataFrame:
    table = _crowds_named_once(_in_order(table.reset_index(drop=True)))
    number = _alike(table)
    order = np.argsort(number, kind="stable")
    sizes = np.bincount(number)
    size = np.repeat(sizes, sizes)
    rank = np.arange(len(table)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    shown = (rank < PLACES) | (rank == size - 1)
    rest = order[~shown]
    firsts = np.unique(number[rest], return_index=True)[1]
    kept = np.sort(np.concatenate([order[shown], rest[firsts]]))
    return _only_used(_added_up(table, rest, firsts).take(kept).reset_index(drop=True))


def _alike(table: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Number of each row's group, from 0, none left out; rows with a time and without are never in one."""
    flows, rows = FlowColumns(table), np.arange(len(table))
    number = flows.numbers(rows, *_ALIKE) * 2 + table["start"].isna().to_numpy()
    number[table["apart"]] = len(table) * 2 + np.flatnonzero(table["apart"])
    return np.unique(number, return_inverse=True)[1]


def _added_up(table: pd.DataFrame, rest: Rows, firsts: Rows) -> pd.DataFrame:
    """The first of each group among `rest` with what the group adds up to."""
    if not len(rest):
        return table
    flows, columns = FlowColumns(table), {}
    for name in _SUMS:
        columns[name] = table[name].to_numpy().copy()
        columns[name][rest[firsts]] = np.add.reduceat(columns[name][rest], firsts)
    end = flows.time("end", np.arange(len(table))).copy()
    end[rest[firsts]] = np.maximum.reduceat(end[rest], firsts)
    return table.assign(**columns, end=pd.DatetimeIndex(end.view("M8[ns]"), tz="UTC"))


def _crowds_named_once(table: pd.DataFrame) -> pd.DataFrame:
    """Of each port of a server, those clients outside that are more than make a crowd go by one name."""
    flows = FlowColumns(table)
    rows = np.arange(len(table))
    rows = rows[answered_outside(flows, rows) & ~_beside_failures(flows, rows)]
    port = flows.numbers(rows, "to", "protocol", "port")
    client = flows.numbers(rows, "to", "protocol", "port", "from")  # ascending with `port`
    one = np.unique(client, return_index=True)[1]
    before = np.searchsorted(port[one], np.arange(len(one)))
    crowd = rows[client - before[port] > MANY_CLIENTS]
    names = table["client_node"].array
    names = names if MANY in names.categories else names.add_categories(MANY)
    codes = names.codes.copy()
    codes[crowd] = names.categories.get_loc(MANY)
    return table.assign(client_node=pd.Categorical.from_codes(codes, names.categories))


# ---- order and columns ----


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """As :func:`analyzer.flows.pair` sorts: by start, then by what tells flows apart."""
    ranks: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(("server", "client"), parse_address),
        "tunnel": TUNNELS.index,
        "protocol": PROTOCOLS.index,
    }
    names = ("server_port", "client_port", "server", "client", "vni", "tunnel", "protocol")
    keys = [_rank(table[name], ranks[name]) if name in ranks else table[name] for name in names]
    order = np.lexsort((*keys, table["start"].astype("int64")))
    return table.take(order).reset_index(drop=True)


def _rank(column: pd.Series[Any], of: Callable[[str], Any]) -> Any:
    texts = [str(text) for text in column.cat.categories]
    place = {text: number for number, text in enumerate(sorted(filter(None, texts), key=of), 1)}
    return np.array([place.get(text, 0) for text in texts], np.int64)[column.cat.codes.to_numpy()]


def _together(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Rows of all, in no order; text columns stay categorical."""
    texts = _texts(tables[0])
    joined = {name: pd.api.types.union_categoricals([table[name] for table in tables]) for name in texts}
    rest = pd.concat([table.drop(columns=texts) for table in tables], ignore_index=True)
    return rest.assign(**joined)[list(tables[0].columns)]


def _only_used(table: pd.DataFrame) -> pd.DataFrame:
    """Text columns with no other categories than those that a row has."""
    return table.assign(**{name: table[name].cat.remove_unused_categories() for name in _texts(table)})


def _texts(table: pd.DataFrame) -> list[str]:
    return [name for name, kind in table.dtypes.items() if isinstance(kind, pd.CategoricalDtype)]  # type: ignore[misc]
