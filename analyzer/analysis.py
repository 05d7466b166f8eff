"""One run: judged flows, findings, coverage, matrices. Rule: joins the rooms and holds what they made;
computes nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from analyzer.cluster import Cluster, load_cluster
from analyzer.findings import find
from analyzer.flows import PROTOCOL_NUMBERS, pair
from analyzer.listeners import Listening, remark
from analyzer.matrices import By, matrix
from analyzer.rows import Coverage, OneWay
from analyzer.spec import DEFAULT_SPEC, PORTED, PROTOCOLS, Spec, load_spec
from analyzer.store import read_inputs
from analyzer.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def server_ports(spec: Spec) -> frozenset[tuple[int, int]]:
    """(protocol number, port) pairs that the specification names; NodePorts too, though they border on
    ephemeral ports.
    """
    tables = spec.compile()
    return frozenset(
        (PROTOCOL_NUMBERS[name], port)
        for row, name in enumerate(PROTOCOLS[:PORTED])
        for port in tables.port_class[row].nonzero()[0].tolist()
    )


@dataclass(frozen=True)
class Analysis:
    """What one run found out.

    `flows`: the judged flow table (:data:`analyzer.flows.COLUMNS` and :data:`analyzer.verdict.COLUMNS`).
    `coverage`: a ledger for each source. `sockets`: what nodes listen on, where that is known.
    """

    flows: pd.DataFrame
    cluster: Cluster
    spec: Spec
    coverage: tuple[Coverage, ...] = field(default_factory=tuple)
    sockets: tuple[Listening, ...] = ()

    @classmethod
    def of(cls, rows: OneWay, cluster: Cluster, spec: Spec, sockets: Iterable[Listening] = ()) -> Analysis:
        """Pairs and judges one-way rows."""
        whole = rows.settled()
        flows = judge(pair(whole, server_ports(spec)), cluster, spec)
        return cls(flows, cluster, spec, whole.coverage, tuple(sockets))

    @cached_property
    def findings(self) -> pd.DataFrame:
        """:data:`analyzer.findings.COLUMNS`, the gravest first."""
        known = (self.flows, self.cluster, self.spec, self.coverage)
        return find(*known, remark(*known, self.sockets) if self.sockets else ())

    def matrix(self, by: By = "role") -> pd.DataFrame:
        """See :func:`analyzer.matrices.matrix`."""
        return matrix(self.flows, by, self.spec, self.cluster)

    @property
    def ledger(self) -> pd.DataFrame:
        """The coverage as a DataFrame, one row for each source; times are UTC."""
        table = pd.DataFrame([c.__dict__ for c in self.coverage], columns=list(Coverage.__annotations__))
        for name in ("start", "end"):
            table[name] = pd.to_datetime(table[name].where(table[name] > 0), unit="ns", utc=True)
        return table


def analyze(
    *inputs: str | Path, cluster: Cluster | str | Path, spec: Spec | str | Path = DEFAULT_SPEC
) -> Analysis:
    """Reads captures, flow files or folders of them, and judges what is in them.

    `cluster` and `spec` may be given as files, `spec` by the name of a shipped one. Raises AnalyzerError
    where an input is at fault.
    """
    whole = cluster if isinstance(cluster, Cluster) else load_cluster(cluster)
    rules = spec if isinstance(spec, Spec) else load_spec(spec)
    return Analysis.of(read_inputs(inputs), whole, rules)
