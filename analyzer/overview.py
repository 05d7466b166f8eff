"""What one run found out whose flows stayed where they were judged: findings, matrices and sums. Rule: tables
of judged flows to small ones that add up, and those to what an Analysis shows; knows no worker and no file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import pandas as pd

from analyzer import pairs
from analyzer.analysis import ledger_of
from analyzer.diagnosis import COLUMNS as DIAGNOSIS_COLUMNS
from analyzer.errors import CaptureError
from analyzer.findings import Unseen, find, strangers, unseen
from analyzer.matrices import matrix
from analyzer.report import MATRICES
from analyzer.telling import joined, telling
from analyzer.verdict import COLUMNS as VERDICT_COLUMNS
from analyzer.verdict import SCOPES, VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes

    from analyzer.cluster import Cluster
    from analyzer.matrices import By
    from analyzer.plots import Measure
    from analyzer.rows import Coverage
    from analyzer.spec import Spec

_MEASURES = ("flows", "packets", "bytes")


@dataclass(frozen=True)
class Tally:
    """A partition of judged flows in short. Tallies of partitions are a commutative monoid under
    :func:`merge`, where each has all flows of its pairs of nodes.

    `matrices`: by → the counts of :func:`analyzer.matrices.matrix` in the cells that have any flow. `pairs`:
    see :func:`analyzer.pairs.of_part`. `sums`: `verdicts` and `scopes` → uint64 (names, 3), flows, packets
    and bytes. `telling`: see :func:`analyzer.telling.telling`. `unseen`: see
    :func:`analyzer.findings.unseen`. `strange`: see :func:`analyzer.findings.strangers`. `flows`: how many
    there are.
    """

    matrices: dict[By, pd.DataFrame]
    pairs: pd.DataFrame
    sums: dict[str, np.ndarray[Any, np.dtype[np.uint64]]]
    telling: pd.DataFrame
    unseen: Unseen
    strange: int
    flows: int

    def __sizeof__(self) -> int:
        """Bytes of its tables: what a scheduler places and spills by."""
        tables = [*self.matrices.values(), self.pairs, self.telling]
        return 1024 + sum(int(table.memory_usage(deep=True).sum()) for table in tables)


def tally(judged: pd.DataFrame, cluster: Cluster, spec: Spec, coverage: Sequence[Coverage] = ()) -> Tally:
    """What a partition adds to the run; `coverage`: the ledgers of all."""
    return Tally(
        {by: _sparse(matrix(judged, by, spec, cluster)) for by in MATRICES},
        pairs.of_part(judged),
        {"verdicts": _sums(judged, "verdict", VERDICTS), "scopes": _sums(judged, "scope", SCOPES)},
        telling(judged, spec, coverage, cluster.members),
        unseen(judged),
        strangers(judged),
        len(judged),
    )


def _sums(judged: pd.DataFrame, by: str, names: tuple[str, ...]) -> Any:
    codes = judged[by].cat.codes.to_numpy()
    sums = np.zeros((len(names), len(_MEASURES)), np.uint64)
    np.add.at(sums[:, 0], codes, 1)
    for place, what in enumerate(_MEASURES[1:], 1):
        np.add.at(sums[:, place], codes, (judged[f"{what}_out"] + judged[f"{what}_in"]).to_numpy(np.uint64))
    return sums


def merge(tallies: Sequence[Tally]) -> Tally:
    """One tally of several, of at least one."""
    if len(tallies) == 1:
        return tallies[0]
    return Tally(
        {by: _added(each.matrices[by] for each in tallies) for by in MATRICES},
        pairs.joined(each.pairs for each in tallies),
        {by: sum(each.sums[by] for each in tallies[1:]) + sums for by, sums in tallies[0].sums.items()},
        joined(each.telling for each in tallies),
        _counted_up(each.unseen for each in tallies),
        sum(each.strange for each in tallies),
        sum(each.flows for each in tallies),
    )


def _counted_up(parts: Iterable[Unseen]) -> Unseen:
    """Counters' own + leaves out what is below zero."""
    whole: Unseen = Counter()
    for part in parts:
        whole.update(part)
    return whole


def _sparse(table: pd.DataFrame) -> pd.DataFrame:
    """Only cells with flows: of a thousand nodes most pairs have none."""
    return table[table["flows"] > 0].drop(columns="foreseen", errors="ignore")


def _added(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The cells of all."""
    whole = pd.concat(list(tables))
    levels = list(range(whole.index.nlevels))
    return whole.groupby(level=levels, sort=False).sum().astype(np.uint64)


# ---- what is shown ----

_NO_FLOWS = pd.DataFrame(
    {name: pd.Categorical([]) for name in (*VERDICT_COLUMNS, "outcome")}
    | {f"{what}_{way}": np.zeros(0, np.uint64) for what in _MEASURES[1:] for way in ("out", "in")}
)


@dataclass(frozen=True)
class Total:
    """What a run's tally comes to: all that leaves the workers. `matrices`, `sums` and `flows` are the
    tally's; `pairs` and `findings` as an Analysis has them.
    """

    matrices: dict[By, pd.DataFrame]
    pairs: pd.DataFrame
    sums: dict[str, np.ndarray[Any, np.dtype[np.uint64]]]
    findings: pd.DataFrame
    flows: int


def total(whole: Tally, cluster: Cluster, spec: Spec, coverage: Sequence[Coverage]) -> Total:
    """Of the tally of all partitions, and the ledgers of all."""
    strange = whole.strange if whole.strange == whole.flows else 0
    findings = find(whole.telling, cluster, spec, coverage, known=whole.unseen, strange=strange)
    return Total(whole.matrices, pairs.finished(whole.pairs), whole.sums, findings, whole.flows)


@dataclass(frozen=True)
class Overview:
    """What one run found out, as an :class:`analyzer.Analysis` tells it, but for what needs the flows one by
    one: the flow table itself, the page, and causes by name.

    `coverage`: a ledger for each source.
    """

    total: Total
    cluster: Cluster
    spec: Spec
    coverage: tuple[Coverage, ...] = ()

    @property
    def findings(self) -> pd.DataFrame:
        """:data:`analyzer.findings.COLUMNS`, the gravest first."""
        return self.total.findings

    @property
    def pairs(self) -> pd.DataFrame:
        """:data:`analyzer.pairs.COLUMNS`."""
        return self.total.pairs

    @property
    def diagnoses(self) -> pd.DataFrame:
        """:data:`analyzer.diagnosis.COLUMNS`, and never a row: causes are found in single flows."""
        return pd.DataFrame(columns=list(DIAGNOSIS_COLUMNS))

    @property
    def flows(self) -> NoReturn:
        """Raises CaptureError: the flows are not here."""
        raise CaptureError(
            f"the {self.total.flows} flows stayed on the workers",
            next_step="have them written to a folder, and analyze what it holds of the hours or nodes in "
            "question on one machine",
        )

    def matrix(self, by: By = "role") -> pd.DataFrame:
        """See :func:`analyzer.matrices.matrix`."""
        silent = matrix(_NO_FLOWS, by, self.spec, self.cluster)
        counts = self.total.matrices[by]
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
            for by, sums in self.total.sums.items()
        }

    def summary(self, by: Literal["verdicts", "scopes"] = "verdicts") -> pd.DataFrame:
        """Flows, packets and bytes (uint64) by verdict, or by scope."""
        index = pd.Index(self.sums[by], name=by.removesuffix("s"))
        return pd.DataFrame(list(self.sums[by].values()), index=index, dtype=np.uint64)

    @property
    def ledger(self) -> pd.DataFrame:
        """The coverage as a DataFrame, one row for each source; times are UTC."""
        return ledger_of(self.coverage)

    def plot(self, by: By = "role", measure: Measure = "flows", ax: Axes | None = None) -> Any:
        """See :meth:`analyzer.Analysis.plot`."""
        from analyzer.plots import PLOTS  # noqa: PLC0415  matplotlib takes long to load

        return PLOTS[by][1](self.matrix(by), measure=measure, spec=self.spec, ax=ax)

    def __repr__(self) -> str:
        """One line."""
        counts = f"{self.total.flows:,} flows, {len(self.findings):,} findings"
        return f"<Overview of cluster {self.cluster.name} by {self.spec.name}: {counts}>"


def _with_cells(table: pd.DataFrame, further: pd.Index[Any], order: Sequence[str]) -> pd.DataFrame:
    """A matrix with further cells, in the order of the nodes; of so many nodes that it has no empty cells."""
    place = {name: number for number, name in enumerate(order)}
    cells = sorted([*table.index, *further], key=lambda cell: [place.get(name, len(place)) for name in cell])
    return table.reindex(pd.MultiIndex.from_tuples(cells, names=table.index.names), fill_value=0)
