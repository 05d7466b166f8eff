"""What one run found out whose flows stayed where they were judged: findings, matrices and sums. Rule: tables
of judged flows to small ones that add up, and those to what an Analysis shows; knows no worker and no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import pandas as pd

from analyzer import pairs
from analyzer.analysis import Analysis
from analyzer.diagnosis import COLUMNS as DIAGNOSIS_COLUMNS
from analyzer.errors import CaptureError
from analyzer.findings import _file_of, find
from analyzer.flows import PROTOCOLS, TUNNELS, parse_address
from analyzer.matrices import matrix
from analyzer.report import MATRICES
from analyzer.verdict import SCOPES, VERDICTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from matplotlib.axes import Axes

    from analyzer.cluster import Cluster
    from analyzer.matrices import By
    from analyzer.plots import Measure
    from analyzer.rows import Coverage
    from analyzer.spec import Spec

_MEASURES = ("flows", "packets", "bytes")
_ADDRESSES = ("client", "server", "outer_client", "outer_server")
_SEEN_BY = ["source", "outcome"]


@dataclass(frozen=True)
class Tally:
    """A partition of judged flows in short. Tallies of partitions are a commutative monoid under
    :func:`merge`.

    `matrices`: by → the counts of :func:`analyzer.matrices.matrix` in the cells that have any flow. `pairs`:
    flows of each pair and port, before many are folded to one. `sums`: `verdicts` and `scopes` → uint64
    (names, 3), flows, packets and bytes. `telling`: the judged flows that a finding can be about. `tcp`: how
    many flows of TCP outside of tunnels each observer has of each outcome. `flows`: how many there are.
    """

    matrices: dict[By, pd.DataFrame]
    pairs: pd.DataFrame
    sums: dict[str, np.ndarray[Any, np.dtype[np.uint64]]]
    telling: pd.DataFrame
    tcp: pd.Series[int]
    flows: int

    def __sizeof__(self) -> int:
        """Bytes of its tables: what a scheduler places and spills by."""
        tables = [*self.matrices.values(), self.pairs, self.telling]
        return 1024 + sum(int(table.memory_usage(deep=True).sum()) for table in tables)


def tally(judged: pd.DataFrame, cluster: Cluster, spec: Spec) -> Tally:
    """What a partition adds to the run."""
    return Tally(
        {by: _sparse(matrix(judged, by, spec, cluster)) for by in MATRICES},
        pairs._grouped(pairs._keyed(judged)),
        {"verdicts": _sums(judged, "verdict", VERDICTS), "scopes": _sums(judged, "scope", SCOPES)},
        judged[_is_telling(judged)].reset_index(drop=True),
        _tcp(judged),
        len(judged),
    )


def _sums(judged: pd.DataFrame, by: str, names: tuple[str, ...]) -> Any:
    codes = judged[by].cat.codes.to_numpy()
    sums = np.zeros((len(names), len(_MEASURES)), np.uint64)
    np.add.at(sums[:, 0], codes, 1)
    for place, what in enumerate(_MEASURES[1:], 1):
        np.add.at(sums[:, place], codes, (judged[f"{what}_out"] + judged[f"{what}_in"]).to_numpy(np.uint64))
    return sums


def _is_telling(judged: pd.DataFrame) -> Any:
    quiet = (judged["verdict"] == "allowed") & (judged["outcome"] == "answered")
    return ((judged["scope"] == "inter-node") & ~quiet) | (judged["scope"] == "external")


def merge(tallies: Iterable[Tally]) -> Tally:
    """One tally of several, of at least one."""
    return reduce(_both, tallies)


def _both(one: Tally, other: Tally) -> Tally:
    return Tally(
        {by: _added(table, other.matrices[by]) for by, table in one.matrices.items()},
        pairs._grouped(pd.concat([one.pairs, other.pairs], ignore_index=True)),
        {by: sums + other.sums[by] for by, sums in one.sums.items()},
        _joined(one.telling, other.telling),
        pd.concat([one.tcp, other.tcp]).groupby(level=[0, 1]).sum(),
        one.flows + other.flows,
    )


def _sparse(table: pd.DataFrame) -> pd.DataFrame:
    """Only cells with flows: of a thousand nodes most pairs have none."""
    return table[table["flows"] > 0].drop(columns="foreseen", errors="ignore")


def _added(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The cells of both."""
    levels = list(range(one.index.nlevels))
    return pd.concat([one, other]).groupby(level=levels, sort=False).sum().astype(np.uint64)


def _joined(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Rows of both, in no order; text columns stay categorical."""
    texts = {
        name: pd.api.types.union_categoricals([one[name], other[name]])
        for name in one.columns
        if isinstance(one[name].dtype, pd.CategoricalDtype)
    }
    rest = pd.concat([one.drop(columns=list(texts)), other.drop(columns=list(texts))], ignore_index=True)
    return rest.assign(**texts)[list(one.columns)]


# ---- what is shown ----


@dataclass(frozen=True)
class Overview:
    """What one run found out, as an :class:`analyzer.Analysis` tells it, but for what needs the flows one by
    one: the flow table itself, the page, and causes by name.

    `coverage`: a ledger for each source. `tally`: of all partitions.
    """

    tally: Tally
    cluster: Cluster
    spec: Spec
    coverage: tuple[Coverage, ...] = ()

    @cached_property
    def findings(self) -> pd.DataFrame:
        """:data:`analyzer.findings.COLUMNS`, the gravest first."""
        return find(_told(self.tally, self.coverage), self.cluster, self.spec, self.coverage)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """:data:`analyzer.pairs.COLUMNS`."""
        return _folded(self.tally.pairs)

    @property
    def diagnoses(self) -> pd.DataFrame:
        """:data:`analyzer.diagnosis.COLUMNS`, and never a row: causes are found in single flows."""
        return pd.DataFrame(columns=list(DIAGNOSIS_COLUMNS))

    @property
    def flows(self) -> NoReturn:
        """Raises CaptureError: the flows are not here."""
        raise CaptureError(
            f"the {self.tally.flows} flows stayed on the workers",
            next_step="have them written to a folder, and analyze what it holds of the hours or nodes in "
            "question on one machine",
        )

    def matrix(self, by: By = "role") -> pd.DataFrame:
        """See :func:`analyzer.matrices.matrix`."""
        silent = matrix(self.tally.telling[:0], by, self.spec, self.cluster)
        counts = self.tally.matrices[by]
        further = counts.index.difference(silent.index, sort=False)
        whole = silent if further.empty else _with_cells(silent, further, self.cluster.members)
        filled = counts.reindex(whole.index, fill_value=0).astype(np.uint64)
        return whole.assign(**{name: filled[name].to_numpy() for name in filled.columns})

    @property
    def sums(self) -> dict[str, dict[str, dict[str, int]]]:
        """Flows, packets and bytes by verdict and by scope."""
        names = {"verdicts": VERDICTS, "scopes": SCOPES}
        return {
            by: {
                name: dict(zip(_MEASURES, row, strict=True))
                for name, row in zip(names[by], sums.tolist(), strict=True)
            }
            for by, sums in self.tally.sums.items()
        }

    def summary(self, by: Literal["verdicts", "scopes"] = "verdicts") -> pd.DataFrame:
        """Flows, packets and bytes (uint64) by verdict, or by scope."""
        index = pd.Index(self.sums[by], name=by.removesuffix("s"))
        return pd.DataFrame(list(self.sums[by].values()), index=index, dtype=np.uint64)

    @property
    def ledger(self) -> pd.DataFrame:
        """The coverage as a DataFrame, one row for each source; times are UTC."""
        return Analysis(pd.DataFrame(), self.cluster, self.spec, self.coverage).ledger

    def plot(self, by: By = "role", measure: Measure = "flows", ax: Axes | None = None) -> Any:
        """See :meth:`analyzer.Analysis.plot`."""
        from analyzer.plots import PLOTS  # noqa: PLC0415  matplotlib takes long to load

        return PLOTS[by][1](self.matrix(by), measure=measure, spec=self.spec, ax=ax)

    def __repr__(self) -> str:
        """One line."""
        counts = f"{self.tally.flows:,} flows, {len(self.findings):,} findings"
        return f"<Overview of cluster {self.cluster.name} by {self.spec.name}: {counts}>"


def _with_cells(table: pd.DataFrame, further: pd.Index[Any], order: Sequence[str]) -> pd.DataFrame:
    """A matrix with further cells, in the order of the nodes; of so many nodes that it has no empty cells."""
    place = {name: number for number, name in enumerate(order)}
    cells = sorted([*table.index, *further], key=lambda cell: [place.get(name, len(place)) for name in cell])
    return table.reindex(pd.MultiIndex.from_tuples(cells, names=table.index.names), fill_value=0)


def _folded(counted: pd.DataFrame) -> pd.DataFrame:
    for fold in (pairs._many_ports, pairs._many_clients, pairs._many_servers):
        counted = fold(counted)
    table = counted.sort_values(list(pairs.KEY), ignore_index=True)[list(pairs.COLUMNS)]
    return table.astype(dict.fromkeys(_MEASURES, np.uint64) | {"port": np.int64})


# ---- flows for find() ----


def _told(whole: Tally, coverage: tuple[Coverage, ...]) -> pd.DataFrame:
    """The telling flows in the order of a flow table; and flows that no finding is about, so few of each
    capture that most of its TCP is one-way here just where it is so among all flows.
    """
    telling = _in_order(whole.telling)
    files = {ledger.source for ledger in coverage}
    all_, kept = _one_way(whole.tcp, files), _one_way(_tcp(telling), files)
    kept = kept.reindex(all_.index, fill_value=0)
    deaf = all_["one-way"] * 2 > all_["flows"]
    lead = kept["one-way"] * 2 - kept["flows"]
    times = np.where(deaf, (1 - lead).clip(lower=0), lead.clip(lower=0))
    outcomes = np.where(deaf, "one-way", "answered")
    return _joined(telling, _silent(telling, np.repeat(all_.index, times), np.repeat(outcomes, times)))


def _tcp(judged: pd.DataFrame) -> pd.Series[int]:
    """How many flows of TCP outside of tunnels each observer has of each outcome."""
    tcp = judged.loc[((judged["protocol"] == "tcp") & (judged["tunnel"] == "")).to_numpy(), _SEEN_BY]
    counted: pd.Series[int] = (
        tcp.groupby(_SEEN_BY, observed=True)
        .size()
        .rename("flows")
        .reset_index()
        .astype(dict.fromkeys(_SEEN_BY, object))
        .set_index(_SEEN_BY)["flows"]
    )
    return counted


def _one_way(tcp: pd.Series[int], files: set[str]) -> pd.DataFrame:
    """Capture → its flows, and how many of them are one-way."""
    captures = tcp.index.get_level_values("source").map(lambda name: _file_of(str(name), files))
    one_way = tcp.where(tcp.index.get_level_values("outcome") == "one-way", 0)
    counts = pd.DataFrame({"flows": tcp.to_numpy(np.int64), "one-way": one_way.to_numpy(np.int64)})
    return counts.groupby(np.asarray(captures, object)).sum()


def _silent(like: pd.DataFrame, sources: Any, outcomes: Any) -> pd.DataFrame:
    """Flows of TCP with a table's columns that say nothing but where they were seen and how they ended."""
    count = len(sources)
    said = {"source": sources, "outcome": outcomes, "protocol": ["tcp"] * count, "tunnel": [""] * count,
            "scope": ["other"] * count, "verdict": ["not-judged"] * count}  # fmt: skip
    return pd.DataFrame({name: _of_kind(like[name], said.get(name), count) for name in like.columns})


def _of_kind(like: pd.Series[Any], said: Any, count: int) -> Any:
    if isinstance(like.dtype, pd.CategoricalDtype):
        names = like.cat.categories
        if said is None:
            return pd.Categorical.from_codes(np.full(count, -1), names)
        return pd.Categorical(said, names.union(pd.Index(said, dtype=names.dtype), sort=False))
    if isinstance(like.dtype, np.dtype) and like.dtype.kind in "iub":
        return np.zeros(count, like.dtype)
    return pd.Series([None] * count, dtype=like.dtype)


def _in_order(telling: pd.DataFrame) -> pd.DataFrame:
    """As :func:`analyzer.flows.pair` sorts: by start, then by what tells flows apart."""
    ranks: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(("server", "client"), parse_address),
        "tunnel": TUNNELS.index,
        "protocol": PROTOCOLS.index,
    }
    names = ("server_port", "client_port", "server", "client", "vni", "tunnel", "protocol")
    keys = [_rank(telling[name], ranks[name]) if name in ranks else telling[name] for name in names]
    order = np.lexsort((*keys, telling["start"].astype("int64")))
    return telling.take(order).reset_index(drop=True)


def _rank(column: pd.Series[Any], of: Callable[[str], Any]) -> Any:
    texts = [str(text) for text in column.cat.categories]
    place = {text: number for number, text in enumerate(sorted(filter(None, texts), key=of), 1)}
    return np.array([place.get(text, 0) for text in texts], np.int64)[column.cat.codes.to_numpy()]
