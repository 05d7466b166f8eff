"""The JSON document. Rule: turns one Analysis into plain values; reads and writes nothing, and computes no
number of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from analyzer.errors import CaptureError
from analyzer.given import given
from analyzer.verdict import SCOPES, VERDICTS
from analyzer.version import analyzer_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from analyzer.cluster import Cluster
    from analyzer.matrices import By
    from analyzer.rows import Coverage
    from analyzer.spec import Spec

SCHEMA = 1
MATRICES: tuple[By, ...] = ("role", "node", "rule")


class Told(Protocol):
    """What a document is made of: an Analysis, or the Overview that workers make."""

    @property
    def cluster(self) -> Cluster:
        """As given."""

    @property
    def spec(self) -> Spec:
        """As given."""

    @property
    def coverage(self) -> tuple[Coverage, ...]:
        """Of each source."""

    @property
    def ledger(self) -> pd.DataFrame:
        """A row for each source."""

    @property
    def findings(self) -> pd.DataFrame:
        """:data:`analyzer.findings.COLUMNS`."""

    @property
    def diagnoses(self) -> pd.DataFrame:
        """:data:`analyzer.diagnosis.COLUMNS`."""

    @property
    def pairs(self) -> pd.DataFrame:
        """:data:`analyzer.pairs.COLUMNS`."""

    @property
    def sums(self) -> dict[str, dict[str, dict[str, int]]]:
        """See :func:`sums`."""

    def matrix(self, by: By) -> pd.DataFrame:
        """See :func:`analyzer.matrices.matrix`."""


def document(analysis: Told) -> dict[str, Any]:
    """The whole result as values that JSON can hold. Times are ISO 8601 in UTC, counts integers."""
    return {
        "schema": SCHEMA,
        "analyzer": {"name": "rke2-flows", "version": analyzer_version()},
        "spec": _spec(analysis),
        "cluster": _cluster(analysis),
        "coverage": _coverage(analysis),
        "summary": summary(analysis),
        "matrix": {by: records(analysis.matrix(by).reset_index()) for by in MATRICES},
        "pairs": records(analysis.pairs),
        "findings": records(analysis.findings),
        "diagnoses": records(analysis.diagnoses),
    }


def _coverage(analysis: Told) -> list[dict[str, Any]]:
    """The ledgers; those of sources that paused also say when they watched."""
    rows = records(analysis.ledger)
    for row, ledger in zip(rows, analysis.coverage, strict=True):
        if ledger.windows:
            times = pd.DataFrame(list(ledger.windows), columns=["start", "end"])
            row["windows"] = records(times.apply(pd.to_datetime, unit="ns", utc=True))
    return rows


def not_chosen(document: Mapping[str, Any]) -> int:
    """Frames whose flows were left out by choice: the document is about the others."""
    return sum(int(ledger["not_chosen"]) for ledger in document["coverage"])


def _spec(analysis: Told) -> dict[str, Any]:
    spec = analysis.spec
    return {"name": spec.name, "title": spec.title, "source": spec.source, "rules": records(spec.to_frame())}


def _cluster(analysis: Told) -> dict[str, Any]:
    cluster = analysis.cluster
    return {
        "name": cluster.name,
        "members": records(cluster.to_frame()),
        "pod_cidrs": list(cluster.pod_cidrs),
        "service_cidrs": list(cluster.service_cidrs),
    }


def summary(analysis: Told) -> dict[str, Any]:
    """Flows, packets and bytes by verdict and by scope, findings by severity and kind."""
    findings = analysis.findings
    counts = {
        by: findings[by].value_counts().sort_index().astype(int).to_dict() for by in ("severity", "kind")
    }
    return {**analysis.sums, "findings": counts}


def sums(flows: pd.DataFrame) -> dict[str, dict[str, dict[str, int]]]:
    """Flows, packets and bytes of judged flows, by verdict and by scope. Raises CaptureError where a column
    lacks.
    """
    measures = ("packets_out", "packets_in", "bytes_out", "bytes_in")
    flows = given(flows, "sums()", ("verdict", "scope", *measures))
    return {"verdicts": _sums(flows, "verdict", VERDICTS), "scopes": _sums(flows, "scope", SCOPES)}


def _sums(flows: pd.DataFrame, by: str, names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    values = pd.Categorical(flows[by].array)
    place = pd.Index(names).get_indexer(values.categories)
    codes = np.append(place, -1)[values.codes]  # the last one is what a missing one finds
    if (codes < 0).any():
        raise CaptureError(
            f"the flow table holds flows with no known {by}", next_step="judge the flows again"
        )
    totals = {
        "flows": np.ones(len(flows), np.uint64),
        "packets": flows["packets_out"].to_numpy() + flows["packets_in"].to_numpy(),
        "bytes": flows["bytes_out"].to_numpy() + flows["bytes_in"].to_numpy(),
    }
    sums = {what: np.zeros(len(names), np.uint64) for what in totals}
    for what, values in totals.items():
        np.add.at(sums[what], codes, values)
    return {name: {what: int(values[i]) for what, values in sums.items()} for i, name in enumerate(names)}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts of plain values; missing ones are None."""
    return [{str(k): _plain(v) for k, v in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, pd.Timestamp):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, np.generic):
        return value.item()
    if value is pd.NaT or value is pd.NA or value is None:
        return None
    return value
