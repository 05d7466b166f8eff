"""Pivots of judged flows. Rule: pure functions from tables to tables; no capture, file, clock or picture.

One table answers one question. Its rows are the cells of a pivot, its columns what was found in that cell:

    by        index                             question
    role      rule, client_role, server_role    which roles use which rule, and which do not though they may
    node      client_node, server_node          who talks to whom
    rule      rule, pair ("agent → server")     the cells of ``role``, with the two roles as one word

Columns (uint64): for each measure (``flows``, ``packets``, ``bytes``; both directions summed, bytes are IP
bytes) the total, and its three parts, which always add up to it:

    flows_allowed    the specification allows it, and nothing shows that it failed
    flows_outside    wrong-pair, wrong-protocol or unlisted, whatever became of it
    flows_blocked    the specification allows it, yet it was refused, unreachable or unanswered

``role`` and ``rule`` have one more column, ``foreseen`` (bool): the specification allows this pair of roles
under this rule. A pivot is one step: ``m["flows_blocked"].unstack("server_node")``, ``m.loc["kube-api"]``,
``m[m.foreseen & (m.flows == 0)]`` (silent where traffic was to be expected).

Rows are complete: every rule × every role × every role, every node × every node, seen or not. A rule that
flows name but the specification lacks keeps its rows. Rule ``""`` is the layer outside the table: flows of no
rule. A ``wrong-pair`` flow stands under the rule whose port it used: that is where one looks for it.
Only flows between two nodes count (scope ``inter-node``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyzer.errors import CaptureError
from analyzer.given import given
from analyzer.spec import ROLE_BITS, role_mask

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

By = Literal["role", "node", "rule"]

KINDS = ("allowed", "outside", "blocked")
MEASURES = ("flows", "packets", "bytes")
OUTSIDE_THE_TABLE = ""

# Verdicts to kinds; an allowed flow with one of the failed outcomes is blocked.
KIND_OF_VERDICT = {"allowed": 0, "wrong-pair": 1, "wrong-protocol": 1, "unlisted": 1}
FAILED_OUTCOMES = frozenset({"refused", "unreachable", "unanswered"})

ROLE_ORDER = ("server", "control-plane", "etcd", "agent")
USUAL_ROLES = ("server", "agent")

# Above this many cells (1024 nodes) a node matrix keeps only pairs with traffic, and each node's own cell so
# that no node is lost.
DENSE_CELLS = 1 << 20

_DIMENSIONS: dict[str, tuple[str, ...]] = {
    "role": ("rule", "client_role", "server_role"),
    "node": ("client_node", "server_node"),
    "rule": ("rule", "client_role", "server_role"),
}
_NEEDED = ("scope", "verdict", "outcome", "packets_out", "packets_in", "bytes_out", "bytes_in")

_Ints = NDArray[np.intp]
_Counts = NDArray[np.uint64]


class RuleLike(Protocol):
    """What a matrix needs of one rule."""

    @property
    def id(self) -> str:
        """What the column ``rule`` of a flow table says."""

    @property
    def clients(self) -> Collection[str]:
        """Roles that may ask."""

    @property
    def servers(self) -> Collection[str]:
        """Roles that may be asked."""


class SpecLike(Protocol):
    """What a matrix needs of a specification."""

    @property
    def rules(self) -> Sequence[Any]:
        """Each a RuleLike, in the order in which people read them."""


class ClusterLike(Protocol):
    """What a matrix needs of a cluster. The roles of ``nodes`` and ``virtual_ips`` are used where present."""

    @property
    def members(self) -> Sequence[str]:
        """Names of nodes and virtual addresses, in the order in which people read them."""


def matrix(
    judged: pd.DataFrame, by: By = "role", spec: SpecLike | None = None, cluster: ClusterLike | None = None
) -> pd.DataFrame:
    """Count the inter-node flows of a judged flow table by role, node or rule.

    ``judged``: the flow table with verdict columns; text columns categorical (fast) or text. ``spec`` adds
    the rules that were never seen, ``cluster`` the nodes and roles. Index and columns as this file's head
    says; sums are exact (uint64). Raises CaptureError when a column is missing or an inter-node flow has no
    verdict, ValueError for another ``by``.
    """
    if by not in _DIMENSIONS:
        raise ValueError(f"by={by!r}: one of {', '.join(_DIMENSIONS)}")
    dimensions = _DIMENSIONS[by]
    judged = given(judged, "matrix()", (*_NEEDED, *dimensions))
    rows = _inter_node(judged)
    texts = [_TextColumn(judged[name], rows) for name in dimensions]
    axes = _axes(by, texts, spec, cluster)
    shape = tuple(len(axis) for axis in axes)
    cells = _ravel([text.positions(axis) for text, axis in zip(texts, axes, strict=True)], shape)
    shown = _shown(cells, shape)
    table = _counted(judged, rows, _places(cells, shown, shape), len(shown))
    table.index = _index(axes, shown, shape, dimensions)
    return table if by == "node" else _with_rules(table, by, spec)


def totals(table: pd.DataFrame) -> pd.Series[int]:
    """Sum of every count column of a matrix: uint64, index as the columns."""
    return table[[name for name in table.columns if name != "foreseen"]].sum().astype(np.uint64)


def _inter_node(judged: pd.DataFrame) -> _Ints | slice:
    """Which rows count. A slice where all do, since that spares a copy of each column."""
    codes, names = _coded(judged["scope"])
    wanted = np.array([name == "inter-node" for name in [*names, ""]], dtype=bool)[codes]
    return slice(None) if wanted.all() else np.flatnonzero(wanted)


def _coded(column: pd.Series[Any]) -> tuple[_Ints, list[str]]:
    """Codes and names of a text column; null is code -1."""
    values = column.array if isinstance(column.dtype, pd.CategoricalDtype) else pd.Categorical(column)
    assert isinstance(values, pd.Categorical)  # noqa: S101 - for mypy
    return np.asarray(values.codes), [str(name) for name in values.categories]


class _TextColumn:
    """The counted rows of one text column. Null and empty are the same name: ``""``."""

    def __init__(self, column: pd.Series[Any], rows: _Ints | slice) -> None:
        codes, names = _coded(column)
        self.codes = codes[rows]
        self.names = [*names, ""]  # the last one is what code -1 finds

    def seen(self) -> set[str]:
        used = np.zeros(len(self.names), dtype=bool)
        used[self.codes] = True
        return {self.names[code] for code in np.flatnonzero(used)}

    def positions(self, axis: Sequence[str]) -> _Ints:
        place = {name: position for position, name in enumerate(axis)}
        lookup = np.array([place.get(name, 0) for name in self.names], dtype=np.intp)
        return lookup[self.codes]


def _axes(
    by: By, texts: Sequence[_TextColumn], spec: SpecLike | None, cluster: ClusterLike | None
) -> list[list[str]]:
    seen = [text.seen() for text in texts]
    if by == "node":
        nodes = _ordered(seen[0] | seen[1], tuple(cluster.members) if cluster else ())
        return [nodes, nodes]
    roles = _ordered(seen[1] | seen[2] | _foreseen_roles(cluster), ROLE_ORDER, keep=False)
    rules = tuple(rule.id for rule in spec.rules if _between_nodes(rule)) if spec else ()
    return [[*_ordered(seen[0] - {OUTSIDE_THE_TABLE}, rules), OUTSIDE_THE_TABLE], roles, roles]


def _between_nodes(rule: RuleLike) -> bool:
    """A rule for addresses outside the cluster alone can have no cell between nodes."""
    return all(set(side) - {"external"} for side in (rule.clients, rule.servers))


def _foreseen_roles(cluster: ClusterLike | None) -> set[str]:
    """The roles that the cluster has; without an inventory, the two that every cluster may have."""
    members = (*getattr(cluster, "nodes", ()), *getattr(cluster, "virtual_ips", ()))
    return {member.role for member in members} or set(USUAL_ROLES)


def _ordered(seen: set[str], first: Sequence[str], *, keep: bool = True) -> list[str]:
    """Names of ``first`` in their order (all, or those seen), then the others as people count them."""
    known = [name for name in dict.fromkeys(first) if keep or name in seen]
    return known + sorted(seen.difference(first), key=_natural)


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """node-2 before node-10."""
    parts = [part.lstrip("0") if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]
    return [(len(part) if index % 2 else 0, part) for index, part in enumerate(parts)], name


def _ravel(positions: Sequence[_Ints], shape: tuple[int, ...]) -> _Ints:
    cells = positions[0]
    for place, length in zip(positions[1:], shape[1:], strict=True):
        cells = cells * length
        cells += place
    return cells


def _shown(cells: _Ints, shape: tuple[int, ...]) -> _Ints:
    """Which cells get a row, ascending: all; where that is too many, those with traffic and the diagonal."""
    size = int(np.prod(shape))
    if size <= DENSE_CELLS or len(shape) > 2:
        return np.arange(size, dtype=np.intp)
    diagonal = np.arange(shape[0], dtype=np.intp) * (shape[0] + 1)
    return np.union1d(cells, diagonal)


def _places(cells: _Ints, shown: _Ints, shape: tuple[int, ...]) -> _Ints:
    return cells if len(shown) == int(np.prod(shape)) else np.searchsorted(shown, cells)


def _counted(judged: pd.DataFrame, rows: _Ints | slice, places: _Ints, size: int) -> pd.DataFrame:
    """Columns of counts; places: for each counted flow its row among ``size``."""
    slots = places * len(KINDS)
    slots += _kinds(judged, rows)
    found = {"flows": np.bincount(slots, minlength=size * len(KINDS)).astype(np.uint64)}
    for measure in MEASURES[1:]:
        found[measure] = _summed(judged, rows, measure, slots, size * len(KINDS))
    split = {measure: counts.reshape(size, len(KINDS)) for measure, counts in found.items()}
    columns = {measure: split[measure].sum(axis=1, dtype=np.uint64) for measure in MEASURES}
    for measure in MEASURES:
        columns |= {f"{measure}_{kind}": split[measure][:, place] for place, kind in enumerate(KINDS)}
    return pd.DataFrame(columns)


def _summed(judged: pd.DataFrame, rows: _Ints | slice, measure: str, slots: _Ints, size: int) -> _Counts:
    """Exact sums: a float (``bincount`` with weights) would round above 2^53 bytes."""
    sums = np.zeros(size, dtype=np.uint64)
    both = _whole(judged[f"{measure}_out"])[rows] + _whole(judged[f"{measure}_in"])[rows]
    np.add.at(sums, slots, both)
    return sums


def _whole(column: pd.Series[Any]) -> _Counts:
    return column.to_numpy(dtype=np.uint64)


def _kinds(judged: pd.DataFrame, rows: _Ints | slice) -> _Ints:
    """Index in KINDS for each counted flow."""
    verdict = _TextColumn(judged["verdict"], rows)
    unknown = verdict.seen().difference(KIND_OF_VERDICT)
    if unknown:
        raise CaptureError(
            f"inter-node flows have the verdict {', '.join(map(repr, sorted(unknown)))}",
            next_step=f"known are {', '.join(KIND_OF_VERDICT)}: judge the flows again",
        )
    outcome = _TextColumn(judged["outcome"], rows)
    failed = np.array([name in FAILED_OUTCOMES for name in outcome.names], dtype=bool)
    kinds = np.array([KIND_OF_VERDICT.get(name, 0) for name in verdict.names], dtype=np.intp)[verdict.codes]
    kinds[(kinds == 0) & failed[outcome.codes]] = KINDS.index("blocked")
    return kinds


def _index(
    axes: Sequence[Sequence[str]], shown: _Ints, shape: tuple[int, ...], names: Sequence[str]
) -> pd.MultiIndex:
    codes: Any = (
        [place.astype(np.int32) for place in np.unravel_index(shown, shape)]
        if all(shape)
        else [[]] * len(shape)
    )
    levels: Any = [pd.Series(axis, dtype=object) for axis in axes]
    return pd.MultiIndex(levels=levels, codes=codes, names=list(names), verify_integrity=False)


def _with_rules(table: pd.DataFrame, by: By, spec: SpecLike | None) -> pd.DataFrame:
    """Add ``foreseen``, and for ``rule`` make one word of the two roles."""
    rules = {rule.id: (_bits(rule.clients), _bits(rule.servers)) for rule in spec.rules} if spec else {}
    cells = list(table.index)
    table["foreseen"] = [_foreseen(rules.get(rule, (0, 0)), client, server) for rule, client, server in cells]
    if by == "rule":
        pairs = [(rule, pair_name(client, server)) for rule, client, server in cells]
        table.index = pd.MultiIndex.from_tuples(pairs, names=("rule", "pair"))
    return table


def _bits(side: Iterable[str]) -> int:
    return role_mask(word for word in side if word in ROLE_BITS)


def _foreseen(sides: tuple[int, int], client: str, server: str) -> bool:
    return bool(sides[0] & ROLE_BITS.get(client, 0)) and bool(sides[1] & ROLE_BITS.get(server, 0))


def pair_name(client: str, server: str) -> str:
    """The two roles as one word: ``agent → server``; ``?`` where a role is not known."""
    return f"{client or '?'} → {server or '?'}"


# ---- words ----


def short(number: int) -> str:
    """At most four characters for a count: 999, 1.2k, 35k, 1.2M. Rounded to nearest."""
    if number < 1000:
        return str(number)
    value = float(number)
    thousands = 0
    while value >= 999.5:
        value /= 1000
        thousands += 1
    digits = f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
    return digits.removesuffix(".0") + " kMGTPE"[thousands]
