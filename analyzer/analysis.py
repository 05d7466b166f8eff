"""One run: judged flows, findings, coverage, matrices. Rule: joins the rooms and holds what they made;
computes nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from analyzer import clocks
from analyzer.cards import card
from analyzer.choice import ALL, Choice
from analyzer.cluster import Cluster, load_cluster
from analyzer.findings import find
from analyzer.flows import COLUMNS, pair
from analyzer.given import given
from analyzer.infer import doubted
from analyzer.listeners import Listening, remark
from analyzer.matrices import By, matrix
from analyzer.pairs import pairs
from analyzer.report import summary, sums
from analyzer.rows import Coverage, OneWay
from analyzer.spec import DEFAULT_SPEC, Spec, load_spec, server_ports
from analyzer.store import read_inputs
from analyzer.verdict import COLUMNS as VERDICT_COLUMNS
from analyzer.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from matplotlib.axes import Axes

    from analyzer.plots import Measure


@dataclass(frozen=True)
class Analysis:
    """What one run found out.

    `flows`: the judged flow table (:data:`analyzer.flows.COLUMNS` and :data:`analyzer.verdict.COLUMNS`).
    `coverage`: a ledger for each source. `sockets`: what nodes listen on, where that is known. `doubtful`:
    of an inferred cluster, the private addresses outside of it (:func:`analyzer.infer.doubtful`). Raises
    CaptureError where `flows` lacks a column.
    """

    flows: pd.DataFrame
    cluster: Cluster
    spec: Spec
    coverage: tuple[Coverage, ...] = field(default_factory=tuple)
    sockets: tuple[Listening, ...] = ()
    doubtful: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Takes flows from wherever they come."""
        flows = given(self.flows, "Analysis()", (*COLUMNS, *VERDICT_COLUMNS), gaps=False)
        object.__setattr__(self, "flows", flows)

    @classmethod
    def of(cls, rows: OneWay, cluster: Cluster, spec: Spec, sockets: Iterable[Listening] = ()) -> Analysis:
        """Pairs and judges one-way rows."""
        whole = clocks.compared(rows.settled())
        flows = judge(pair(whole, server_ports(spec), nodes=cluster.members), cluster, spec)
        return cls(flows, cluster, spec, whole.coverage, tuple(sockets))

    @cached_property
    def findings(self) -> pd.DataFrame:
        """:data:`analyzer.findings.COLUMNS`, the gravest first."""
        known = (self.flows, self.cluster, self.spec, self.coverage)
        found = find(*known, remark(*known, self.sockets) if self.sockets else ())
        return doubted(found, self.doubtful) if self.doubtful else found

    @cached_property
    def diagnoses(self) -> pd.DataFrame:
        """:data:`analyzer.diagnosis.COLUMNS`: causes of findings, by name."""
        from analyzer.diagnosis import diagnose  # noqa: PLC0415  only where it is asked

        return diagnose(self)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """See :func:`analyzer.pairs.pairs`."""
        return pairs(self.flows)

    @cached_property
    def sums(self) -> dict[str, dict[str, dict[str, int]]]:
        """See :func:`analyzer.report.sums`."""
        return sums(self.flows)

    def matrix(self, by: By = "role") -> pd.DataFrame:
        """See :func:`analyzer.matrices.matrix`."""
        return matrix(self.flows, by, self.spec, self.cluster)

    def summary(self, by: Literal["verdicts", "scopes"] = "verdicts") -> pd.DataFrame:
        """Flows, packets and bytes (uint64) by verdict, or by scope. Raises ValueError for another `by`."""
        if by not in ("verdicts", "scopes"):
            raise ValueError(f"by={by!r}: one of verdicts, scopes")
        sums: dict[str, dict[str, int]] = summary(self)[by]
        index = pd.Index(sums, name=by.removesuffix("s"))
        return pd.DataFrame(list(sums.values()), index=index, dtype=np.uint64)

    def plot(self, by: By = "role", measure: Measure = "flows", ax: Axes | None = None) -> Any:
        """Draws a matrix, on `ax` or on a new figure. Returns the Axes; for `role`, one for each rule, as
        an array. See :func:`analyzer.plots.plot_roles`, `plot_nodes` and `plot_rules`.
        Raises ValueError for another `by` or `measure`.
        """
        from analyzer.plots import PLOTS  # noqa: PLC0415  matplotlib takes long to load

        table = self.matrix(by)
        return PLOTS[by][1](table, measure=measure, spec=self.spec, ax=ax)

    def __repr__(self) -> str:
        """One line."""
        counts = f"{len(self.flows):,} flows, {len(self.findings):,} findings"
        return f"<Analysis of cluster {self.cluster.name} by {self.spec.name}: {counts}>"

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        frames, lost = (sum(getattr(c, name) for c in self.coverage) for name in ("frames", "lost"))
        facts = {
            "cluster": f"{self.cluster.name}, {len(self.cluster.nodes)} nodes",
            "specification": f"{self.spec.name}, {len(self.spec.rules)} rules",
            "coverage": f"{len(self.coverage)} sources, {frames:,} frames, {lost:,} lost",
        }
        shown = ["severity", "kind", "title", "flows", "id"]
        tables = {"summary()": self.summary().reset_index(), "findings": self.findings[shown]}
        return card("Analysis", facts | {"further": "flows, matrix(by), plot(by), ledger"}, tables)

    @property
    def ledger(self) -> pd.DataFrame:
        """The coverage as a DataFrame, one row for each source; times are UTC."""
        return ledger_of(self.coverage)


def ledger_of(coverage: Iterable[Coverage]) -> pd.DataFrame:
    """See :attr:`Analysis.ledger`."""
    names = [name for name in Coverage.__annotations__ if name != "windows"]
    table = pd.DataFrame([c.__dict__ for c in coverage], columns=names)
    for name in ("start", "end"):
        table[name] = pd.to_datetime(table[name].where(table[name] > 0), unit="ns", utc=True)
    return table


def analyze(
    *inputs: str | Path,
    cluster: Cluster | str | Path,
    spec: Spec | str | Path = DEFAULT_SPEC,
    choice: Choice = ALL,
) -> Analysis:
    """Reads captures, flow files or folders of them, and judges what is in them.

    `cluster` and `spec` may be given as files, `spec` by the name of a shipped one. `choice`: which rows
    (:class:`analyzer.choice.Choice`). Raises AnalyzerError
    where an input is at fault.
    """
    whole = cluster if isinstance(cluster, Cluster) else load_cluster(cluster)
    rules = spec if isinstance(spec, Spec) else load_spec(spec)
    return Analysis.of(read_inputs(inputs, choice=choice), whole, rules)
