"""One run by hand: flow rows, a window and its document. Rule: builds what is compared; expects nothing."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import frames as fr
from conftest import RECORDED
from frames import EPOCH, NS, failed, flow

from analyzer.analysis import Analysis, analyze
from analyzer.cluster import Cluster, Node
from analyzer.documents import Document, parse_document
from analyzer.report import document
from analyzer.rows import Coverage
from analyzer.spec import load_spec
from analyzer.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVER, SERVER_2, AGENT, AGENT_2, OUTSIDE = (f"10.10.0.{n}" for n in (11, 12, 21, 22, 99))
CLUSTER = Cluster(
    "prod",
    (
        Node("server-1", "server", (SERVER,)),
        Node("server-2", "server", (SERVER_2,)),
        Node("agent-1", "agent", (AGENT,)),
        Node("agent-2", "agent", (AGENT_2,)),
    ),
    pod_cidrs=("10.42.0.0/16",),
)
SPEC = load_spec("rke2-canal")
RECORDINGS = ("any", "baseline", "blocked", "nanoseconds", "offences", "open-watch", "vxlan-answers-lost",
              "wireguard")  # fmt: skip


def ledger(seconds: float = 600, source: str = "capture.pcap", since: float = 0, **counts: Any) -> Coverage:
    start = EPOCH + int(since * NS)
    return Coverage(
        source, **({"start": start, "end": start + int(seconds * NS), "frames": 100, "flow": 100} | counts)
    )


def analysis(
    *flows: dict[str, Any], coverage: Sequence[Coverage] = (), cluster: Cluster = CLUSTER
) -> Analysis:
    return Analysis(judge(fr.table(flows), cluster, SPEC), cluster, SPEC, tuple(coverage or (ledger(),)))


def run(
    *flows: dict[str, Any], seconds: float = 600, coverage: Sequence[Coverage] = (), name: str = "run.json"
) -> Document:
    """As it is read back from its JSON."""
    whole = analysis(*flows, coverage=coverage or (ledger(seconds),))
    return parse_document(json.dumps(document(whole), allow_nan=False), where=name)


@cache
def recorded(name: str) -> Analysis:
    """What the lab recorded, analysed."""
    return analyze(RECORDED / name, cluster=RECORDED / name / "cluster.yaml")


__all__ = ["analysis", "failed", "flow", "ledger", "recorded", "run"]
