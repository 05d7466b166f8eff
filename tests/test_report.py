"""The JSON document. Rule: every number in it is compared with the table that it stands for, added up
here.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import frames as fr
import pandas as pd
import pytest
from frames import Frame, traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes import drop, owner
from packets import SYN

from analyzer.analysis import Analysis, analyze
from analyzer.cluster import Cluster, Node, VirtualIP
from analyzer.errors import AnalyzerError, CaptureError, ClusterError, SpecError
from analyzer.findings import COLUMNS as FINDING
from analyzer.report import SCHEMA, document
from analyzer.rows import COUNTS, ENDINGS, Coverage, merge
from analyzer.spec import load_spec
from analyzer.store import read_flows, write_flows, write_rows
from analyzer.verdict import SCOPES, VERDICTS

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = Cluster(
    "prod",
    (
        Node("server-1", "server", ("10.10.0.11", "fd00:10::11")),
        Node("server-2", "etcd", ("10.10.0.12",)),
        Node("agent-1", "agent", ("10.10.0.21", "fd00:10::21"), ("10.42.1.0/24",)),
    ),
    (VirtualIP("10.10.0.10", "server"),),
    ("10.42.0.0/16",),
    ("10.43.0.0/16",),
)
SPEC = load_spec("rke2-canal")
KEYS = {"schema", "analyzer", "spec", "cluster", "coverage", "summary", "matrix", "pairs", "findings",
        "diagnoses"}  # fmt: skip


def analysed(frames: list[Frame], **sources: list[Frame]) -> Analysis:
    parts = [fr.read(fr.pcap(frames)), *(fr.read(fr.pcap(more), source) for source, more in sources.items())]
    return Analysis.of(merge(parts), CLUSTER, SPEC)


def through_json(analysis: Analysis) -> dict[str, Any]:
    """As another program gets it; no NaN, no Infinity, which JSON does not have."""
    text = json.dumps(document(analysis), allow_nan=False)
    loaded: dict[str, Any] = json.loads(text)
    return loaded


EVERYTHING = fr.timed([frame for make in fr.CONVERSATIONS.values() for frame in make(2)])


def sums(flows: pd.DataFrame, by: str, names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    result = {name: {"flows": 0, "packets": 0, "bytes": 0} for name in names}
    for _, flow in flows.iterrows():
        row = result[flow[by]]
        row["flows"] += 1
        for what in ("packets", "bytes"):
            row[what] += int(flow[f"{what}_out"]) + int(flow[f"{what}_in"])
    return result


@given(traffic(), traffic())
@settings(max_examples=25, deadline=None)
def test_the_document_says_what_the_tables_say(frames: list[Frame], more: list[Frame]) -> None:
    analysis = analysed(frames, other=more)
    doc = through_json(analysis)
    assert set(doc) == KEYS
    flows, findings = analysis.flows, analysis.findings
    assert doc["summary"]["verdicts"] == sums(flows, "verdict", VERDICTS)
    assert doc["summary"]["scopes"] == sums(flows, "scope", SCOPES)
    for by in ("severity", "kind"):
        assert doc["summary"]["findings"][by] == Counter(findings[by])
    assert [f["id"] for f in doc["findings"]] == findings["id"].tolist()
    assert [f["flows"] for f in doc["findings"]] == findings["flows"].tolist()
    for ledger, read in zip(doc["coverage"], analysis.coverage, strict=True):
        assert {name: ledger[name] for name in COUNTS} == {name: getattr(read, name) for name in COUNTS}
        assert sum(ledger[name] for name in ENDINGS) == ledger["frames"]
    assert sum(ledger["frames"] for ledger in doc["coverage"]) == len(frames) + len(more)


@given(traffic())
@settings(max_examples=25, deadline=None)
def test_matrices_hold_every_judged_flow_once(frames: list[Frame]) -> None:
    analysis = analysed(frames)
    doc = through_json(analysis)
    inter = doc["summary"]["scopes"]["inter-node"]
    for by in ("role", "node", "rule"):
        assert sum(cell["flows"] for cell in doc["matrix"][by]) == inter["flows"], by
        assert sum(cell["packets"] for cell in doc["matrix"][by]) == inter["packets"], by


def test_every_flow_has_one_verdict_and_one_scope() -> None:
    doc = through_json(analysed(EVERYTHING))
    totals = [
        {
            what: sum(row[what] for row in doc["summary"][by].values())
            for what in ("flows", "packets", "bytes")
        }
        for by in ("verdicts", "scopes")
    ]
    assert totals[0] == totals[1]
    analysis = analysed(EVERYTHING)
    assert totals[0]["flows"] == len(analysis.flows)
    outside = analysis.flows[analysis.flows["tunnel"] == ""]
    assert int(outside["packets_out"].sum() + outside["packets_in"].sum()) == analysis.coverage[0].flow
    assert not any(set(row) - {"flows", "packets", "bytes"} for row in doc["summary"]["verdicts"].values())


def test_head_spec_and_cluster() -> None:
    doc = through_json(analysed(EVERYTHING))
    assert doc["schema"] == SCHEMA == 1
    assert doc["analyzer"] == {"name": "rke2-flows", "version": version("rke2-flows")}
    assert (doc["spec"]["name"], doc["spec"]["title"]) == (SPEC.name, SPEC.title)
    assert [rule["id"] for rule in doc["spec"]["rules"]] == [rule.id for rule in SPEC.rules]
    assert (doc["cluster"]["name"], doc["cluster"]["pod_cidrs"]) == ("prod", ["10.42.0.0/16"])
    assert [m["name"] for m in doc["cluster"]["members"]] == list(CLUSTER.members)


def test_a_finding_in_json() -> None:
    frames = fr.timed(fr.talk(("10.10.0.21", 40000), ("10.10.0.11", 2379)))
    (finding,) = through_json(analysed(frames))["findings"]
    assert set(finding) == set(FINDING)
    assert finding["first_seen"] == "2025-01-01T00:00:00Z"
    assert finding["last_seen"] == "2025-01-01T00:00:00.007000Z"
    assert finding["evidence"] == [{"source": "capture.pcap", "first_frame": 1}]
    assert finding["outcomes"] == {"answered": 1}
    assert (finding["kind"], finding["severity"], finding["packets"]) == ("violation", "critical", 8)


def test_times_that_are_missing_are_null() -> None:
    simple = Analysis.of(
        fr.read(fr.pcapng(fr.timed(fr.talk(("10.10.0.21", 1), ("10.10.0.11", 2379))), kind="simple")),
        CLUSTER,
        SPEC,
    )
    doc = through_json(simple)
    assert (doc["coverage"][0]["start"], doc["coverage"][0]["end"]) == (None, None)
    assert (doc["findings"][0]["first_seen"], doc["findings"][0]["last_seen"]) == (None, None)
    blind = through_json(Analysis.of(fr.read(fr.pcap([])), CLUSTER, SPEC))
    assert [f["kind"] for f in blind["findings"]] == ["blind-spot"]
    assert blind["findings"][0]["first_seen"] is None


def test_coverage_has_all_of_a_ledger() -> None:
    (ledger,) = through_json(analysed(EVERYTHING))["coverage"]
    assert set(ledger) == {field.name for field in fields(Coverage)} - {"windows"}
    assert (ledger["start"], ledger["source"]) == ("2025-01-01T00:00:00Z", "capture.pcap")
    assert ledger["frames"] == len(EVERYTHING)


def test_hostile_names_stay_text() -> None:
    name = "x\x1b[31m</script>\n\u2028;\ud83d.pcap".encode("utf-8", "replace").decode()
    ask = fr.timed([fr.segment(("10.10.0.21", 1), ("10.10.0.11", 2379), SYN)])
    doc = through_json(Analysis.of(fr.read(fr.pcap(ask), name), CLUSTER, SPEC))
    assert doc["coverage"][0]["source"] == name
    assert doc["findings"][0]["evidence"][0]["source"] == name.replace(";", ",")


# ---- the way in ----


def test_analyze_reads_files_by_name(tmp_path: Path) -> None:
    capture = fr.save(tmp_path, "x.pcap", fr.pcap(EVERYTHING))
    (tmp_path / "cluster.yaml").write_text(CLUSTER.to_yaml())
    (tmp_path / "spec.yaml").write_text(SPEC.to_yaml())
    by_object = analyze(capture, cluster=CLUSTER, spec=SPEC)
    by_file = analyze(str(capture), cluster=tmp_path / "cluster.yaml", spec=tmp_path / "spec.yaml")
    by_name = analyze(tmp_path / "x.pcap", cluster=str(tmp_path / "cluster.yaml"))
    for other in (by_file, by_name):
        pd.testing.assert_frame_equal(other.flows, by_object.flows)
        pd.testing.assert_frame_equal(other.findings, by_object.findings)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"capture": "no.pcap"}, CaptureError),
        ({"cluster": "no.yaml"}, ClusterError),
        ({"spec": "no-spec"}, SpecError),
    ],
)
def test_analyze_says_whose_fault_it_is(
    changes: dict[str, str], error: type[AnalyzerError], tmp_path: Path
) -> None:
    capture = fr.save(tmp_path, "x.pcap", fr.pcap(EVERYTHING))
    given_: dict[str, Any] = {"capture": str(capture), "cluster": CLUSTER, "spec": SPEC} | changes
    with pytest.raises(error) as raised:
        analyze(given_["capture"], cluster=given_["cluster"], spec=given_["spec"])
    assert next(iter(changes.values())) in str(raised.value)


WHOLE = [kind for kind in fr.CONVERSATIONS if "fragments" not in kind and kind != "odd"]


@given(frames=traffic(WHOLE), cut=st.integers(0, 60))
@settings(max_examples=25, deadline=None)
def test_saved_parts_make_the_same_findings(frames: list[Frame], cut: int, tmp_path_factory: Any) -> None:
    """The first part saved as a flow file, then analysed with the rest: as if it had been one capture. Not
    with fragments: saving settles those that still wait for their first one.
    """
    folder = tmp_path_factory.mktemp("parts")
    whole = analysed(frames)
    first = fr.read(fr.pcap(frames[:cut])).settled()
    write_flows(Analysis.of(first, CLUSTER, SPEC).flows, folder / "first.parquet", first.coverage)
    rest = fr.shifted(fr.read(fr.pcap(frames[cut:])), cut)
    both = Analysis.of(merge([read_flows(folder / "first.parquet"), rest]), CLUSTER, SPEC)
    columns = ["id", "severity", "flows", "packets", "bytes"]
    pd.testing.assert_frame_equal(both.findings[columns], whole.findings[columns])
    assert both.coverage == whole.coverage


def test_a_packet_that_a_node_dropped_is_in_the_document(tmp_path: Path) -> None:
    """Two nodes capture live: the SYN came to server-1, whose firewall dropped it."""
    joining = ("10.10.0.21", 40000), ("10.10.0.11", 9345)
    asked = [Frame(fr.segment(*joining, SYN), fr.EPOCH + n * fr.NS) for n in range(3)]
    for source, facts in (
        ("agent-1", owner((*joining[0], *joining[1], 6), "rke2", 4711)),
        ("server-1", drop((*joining[0], *joining[1], 6), packets=3)),
    ):
        write_rows(replace(fr.read(fr.pcap(asked), source), facts=facts), tmp_path / f"{source}.parquet")
    analysis = analyze(tmp_path, cluster=CLUSTER, spec=SPEC)
    (finding,) = (f for f in through_json(analysis)["findings"] if f["kind"] == "blocked")
    assert (finding["client"], finding["server"], finding["port"]) == ("agent-1", "server-1", 9345)
    assert "3 dropped by server-1 (NETFILTER_DROP), by rke2 (pid 4711)" in finding["title"]
    assert "came to server-1" in finding["advice"]
    assert finding["packets"] == 3


def test_what_a_live_ledger_holds_is_in_the_document() -> None:
    one_way = fr.read(fr.pcap(EVERYTHING), "server-1")
    (ledger,) = one_way.coverage
    live = replace(
        ledger, frames=ledger.frames + 2, overflow=2, other_bytes=120, missing="why packets were dropped"
    )
    doc = through_json(Analysis.of(replace(one_way, coverage=(live,)), CLUSTER, SPEC))
    assert {"overflow": 2, "other_bytes": 120, "missing": "why packets were dropped"}.items() <= doc[
        "coverage"
    ][0].items()
    assert sum(doc["coverage"][0][name] for name in ENDINGS) == doc["coverage"][0]["frames"]
    titles = [f["title"] for f in doc["findings"] if f["kind"] == "blind-spot"]
    assert "server-1: not observed: why packets were dropped" in titles
    assert any(title.startswith("server-1: 2 frames came when") for title in titles)


@given(frames=traffic(), cut=st.integers(0, 60))
@settings(max_examples=25, deadline=None)
def test_written_parts_make_the_same_findings(frames: list[Frame], cut: int, tmp_path_factory: Any) -> None:
    """Rows as they are lose nothing: fragments too find their first one in another part."""
    folder = tmp_path_factory.mktemp("parts")
    for n, part in enumerate((frames[:cut], frames[cut:])):
        write_rows(fr.shifted(fr.read(fr.pcap(part)), cut * n), folder / f"{n}.parquet")
    parts, whole = analyze(folder, cluster=CLUSTER, spec=SPEC), analysed(frames)
    pd.testing.assert_frame_equal(parts.findings, whole.findings)
    assert parts.coverage == whole.coverage


def test_sums_go_by_the_names_of_verdicts_whatever_their_categories() -> None:
    """Pandas drops unused categories, sorts them, and makes plain text of tables put together."""
    flows = analysed(EVERYTHING).flows
    names = ["verdict", "scope"]
    used = flows.assign(**{name: flows[name].cat.remove_unused_categories() for name in names})
    for table in (used, flows.astype(dict.fromkeys(names, "str"))):
        assert Analysis(table, CLUSTER, SPEC).sums == {
            "verdicts": sums(flows, "verdict", VERDICTS),
            "scopes": sums(flows, "scope", SCOPES),
        }


def test_a_flow_without_a_verdict_is_in_no_sum() -> None:
    flows = analysed(EVERYTHING).flows
    flows["verdict"] = flows["verdict"].where(flows["verdict"] != "unlisted")
    with pytest.raises(CaptureError, match="no known verdict"):
        _ = Analysis(flows, CLUSTER, SPEC).sums
