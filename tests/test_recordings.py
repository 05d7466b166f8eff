"""The recorded cluster, judged. Rule: what the lab did (`truth.json`) against what the analysis says.

Nothing may be missing and nothing extra. The truth was written by the lab from what it did; nothing here
computes an expectation.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import RECORDED

from analyzer import Analysis, analyze, judge, load_spec, read_captures
from analyzer.flows import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

RECORDINGS = sorted(folder.name for folder in RECORDED.iterdir() if (folder / "truth.json").is_file())
JUDGED = ("inter-node", "external")

Row = tuple[str, str, str, int]


def _truth(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RECORDED / name / "truth.json").read_text())["rows"]
    return rows


def _analysis(name: str) -> Analysis:
    folder = RECORDED / name
    return analyze(folder, cluster=folder / "cluster.yaml")


@pytest.fixture(scope="module")
def analyses() -> dict[str, Analysis]:
    return {name: _analysis(name) for name in RECORDINGS}


def _ends(flows: pd.DataFrame) -> pd.DataFrame:
    """Flows with node names, or the address where it is no node."""
    texts = flows[
        ["client", "server", "client_node", "server_node", "protocol", "verdict", "outcome"]
    ].astype(str)
    return texts.assign(
        client=texts["client_node"].where(texts["client_node"] != "", texts["client"]),
        server=texts["server_node"].where(texts["server_node"] != "", texts["server"]),
        port=flows["server_port"].astype(int),
    )


def verdicts_of(flows: pd.DataFrame) -> set[tuple[Row, str, str]]:
    seen = _ends(flows[flows["scope"].isin(JUDGED) & flows["protocol"].isin(("tcp", "udp"))])
    rows: Any = seen.itertuples(index=False)
    return {((r.client, r.server, r.protocol, r.port), r.verdict, r.outcome) for r in rows}


def told_verdicts(truth: list[dict[str, Any]]) -> set[tuple[Row, str, str]]:
    """What the truth says of each pair and port."""
    told = {
        ((r["client"], r["server"], r["protocol"], r["port"]), r["verdict"], r["outcome"])
        for r in truth
        if r["finding"] != "scan"
    }
    scans = [row for row in truth if row["finding"] == "scan"]
    scanned = {(r["client"], r["server"], r["protocol"], port) for r in scans for port in r["ports"]}
    return told | {(row, "unlisted", "refused") for row in scanned}


def findings_of(analysis: Analysis) -> Counter[tuple[str, ...]]:
    """The analysis' findings by what tells them apart."""
    rows: Any = analysis.findings.itertuples(index=False)
    return Counter((f.kind, f.client, f.server, f.protocol, f.port) for f in rows)


def told_findings(truth: list[dict[str, Any]]) -> Counter[tuple[str, ...]]:
    """The truth's findings."""
    return Counter(
        (r["finding"], r["client"], r["server"], r["protocol"], r["port"]) for r in truth if r["finding"]
    )


def test_there_are_recordings() -> None:
    assert len(RECORDINGS) >= 8
    size = sum(file.stat().st_size for file in RECORDED.rglob("*") if file.is_file())
    assert size <= 6_000_000


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_flow_has_the_verdict_and_outcome_of_the_truth(
    name: str, analyses: dict[str, Analysis]
) -> None:
    judged, told = verdicts_of(analyses[name].flows), told_verdicts(_truth(name))
    assert judged - told == set(), "said by the analysis, not by the truth"
    assert told - judged == set(), "said by the truth, not by the analysis"


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_findings_are_those_of_the_truth(name: str, analyses: dict[str, Analysis]) -> None:
    assert findings_of(analyses[name]) == told_findings(_truth(name))


@pytest.mark.parametrize("name", RECORDINGS)
def test_no_other_protocol_between_nodes_is_judged(name: str, analyses: dict[str, Analysis]) -> None:
    """Neighbour discovery and ICMP errors cross the uplinks too: of the link, and of the flows quoted."""
    flows = analyses[name].flows
    other = flows[(flows["scope"] == "inter-node") & ~flows["protocol"].isin(("tcp", "udp"))]
    assert other.empty


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_inner_flows_are_those_of_the_truth(name: str, analyses: dict[str, Analysis]) -> None:
    told = {
        (r["client"], r["server"], r["protocol"], r["port"], r["outcome"], r["vni"])
        for r in json.loads((RECORDED / name / "truth.json").read_text()).get("overlay", [])
    }
    flows = analyses[name].flows
    inner = flows[(flows["tunnel"] == "vxlan") & flows["protocol"].isin(("tcp", "udp"))]
    rows: Any = inner.itertuples(index=False)
    seen = {
        (str(r.client), str(r.server), str(r.protocol), int(r.server_port), str(r.outcome), int(r.vni))
        for r in rows
    }
    assert told <= seen


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_frame_is_in_the_ledger(name: str, analyses: dict[str, Analysis]) -> None:
    for ledger in analyses[name].coverage:
        assert ledger.frames == ledger.accounted() > 0
        assert (ledger.truncated, ledger.malformed, ledger.unsupported, ledger.lost, ledger.damage) == (
            0,
            0,
            0,
            0,
            "",
        )


@pytest.mark.parametrize("removed", [rule.id for rule in load_spec().rules])
def test_a_rule_taken_away_is_noticed(removed: str, analyses: dict[str, Analysis]) -> None:
    """The comparison above can fail: without any one rule, some recording's truth no longer holds."""
    spec = load_spec()
    without = replace(spec, rules=tuple(rule for rule in spec.rules if rule.id != removed))
    assert any(
        verdicts_of(judge(analysis.flows[list(COLUMNS)], analysis.cluster, without))
        != told_verdicts(_truth(name))
        for name, analysis in analyses.items()
    )


def test_one_capture_need_not_be_in_a_list() -> None:
    path = RECORDED / "baseline" / "agent-1.pcap"
    of_list = read_captures([path])
    assert read_captures(path).coverage == read_captures(str(path)).coverage == of_list.coverage
