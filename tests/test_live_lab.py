"""The lab, captured live on every node. Rule: what the lab did (`truth.json`), and what tcpdump saw at the
same time on the same interfaces, against what the collectors wrote and said.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import RECORDED, require_program, require_root
from oracles import Key, one_way_counts, quoted_keys
from test_packet import require_bpf
from test_recordings import findings_of, told_findings, told_verdicts, verdicts_of

from analyzer import Analysis, OneWay, load_cluster, load_spec, read_captures
from analyzer.flows import format_address
from analyzer.store import read_inputs
from lab import RECORDINGS, SCENARIOS, Truth, plan
from lab.live import joint
from lab.recordings import BROKEN, OFFENCES, Recording
from lab.scenarios import BASELINE

if TYPE_CHECKING:
    from pathlib import Path

#: what the lab can do, in as few runs as it takes
WATCHED = {
    "everything": Recording("", "", (BASELINE, *OFFENCES, *BROKEN, "open-watch")),
    "vxlan-answers-lost": RECORDINGS["vxlan-answers-lost"],
    "wireguard": RECORDINGS["wireguard"],
}
OUTSIDE = ("wrong-pair", "wrong-protocol", "unlisted")
#: group membership and neighbour discovery go on by themselves, also while one watcher starts or ends before
#: the other
_DISCOVERY = (*range(130, 138), 143)


@dataclass(frozen=True)
class Watched:
    """One run of the lab: what happened, what was captured, what was said."""

    truth: Truth
    folder: Path
    rows: OneWay
    analysis: Analysis

    @property
    def document(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.truth.document()["rows"]
        return rows

    def said(self, node: str) -> str:
        return (self.folder / "live" / f"{node}.log").read_text()


@pytest.fixture(scope="module", params=WATCHED)
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    require_root()
    require_bpf()
    for program in ("etcd", "tcpdump", "nft", "wireguard-go", "wg"):
        require_program(program)
    folder = tmp_path_factory.mktemp(request.param)
    truth = joint(WATCHED[request.param], folder, with_tcpdump=True)
    rows = read_inputs([folder / "live"])
    cluster = load_cluster(RECORDED / "baseline" / "cluster.yaml")
    return Watched(truth, folder, rows, Analysis.of(rows, cluster, load_spec()))


def test_every_scenario_of_the_lab_is_watched() -> None:
    assert {name for recording in WATCHED.values() for name in recording.scenarios} == set(SCENARIOS)


def test_every_flow_has_the_verdict_and_outcome_of_the_truth(watched: Watched) -> None:
    judged, told = verdicts_of(watched.analysis.flows), told_verdicts(watched.document)
    assert judged - told == set(), "said by the analysis, not by the truth"
    assert told - judged == set(), "said by the truth, not by the analysis"


def test_the_findings_are_those_of_the_truth(watched: Watched) -> None:
    assert findings_of(watched.analysis) == told_findings(watched.document)


def lasting(counts: dict[Key, Any]) -> dict[Key, Any]:
    return {k: v for k, v in counts.items() if not (k.protocol == 58 and k.src_port in _DISCOVERY)}


def ends_of(key: Key) -> frozenset[tuple[str, int]]:
    return frozenset(((key.src, key.src_port), (key.dst, key.dst_port)))


def open_before(rows: OneWay) -> set[frozenset[tuple[str, int]]]:
    """Connections without a SYN: they went on while one watcher had started and the other had not."""
    tcp = rows.rows[(rows.rows["protocol"] == 6) & (rows.rows["packets"] > 0) & (rows.rows["tunnel"] == 0)]
    keys = one_way_counts(replace(rows, rows=tcp))
    opened = one_way_counts(replace(rows, rows=tcp[tcp["events"] > 0]))
    return {ends_of(key) for key in keys} - {ends_of(key) for key in opened}


@pytest.mark.parametrize("node", list(plan.NODES))
def test_the_rows_are_those_of_tcpdump(watched: Watched, node: str) -> None:
    live = read_inputs([watched.folder / "live" / node])
    offline = read_captures([watched.folder / "tcpdump" / f"{node}.pcap"])
    assert offline.coverage[0].lost == 0
    before = open_before(offline)
    seen, expected = (
        {key: count for key, count in lasting(one_way_counts(rows)).items() if ends_of(key) not in before}
        for rows in (live, offline)
    )
    assert seen == expected
    assert bool(before) == ("open-watch" in watched.truth.scenarios and node in ("server-2", "agent-2"))
    assert quoted_keys(live) == quoted_keys(offline)


def test_every_frame_is_in_the_ledger(watched: Watched) -> None:
    assert {ledger.source for ledger in watched.rows.coverage} == set(plan.NODES)
    for ledger in watched.rows.coverage:
        assert ledger.frames == ledger.accounted() > 0
        gaps = ("truncated", "malformed", "unsupported", "fragment", "overflow", "lost", "alerts_lost")
        assert [getattr(ledger, name) for name in gaps] == [0] * len(gaps)
        assert (ledger.damage, ledger.missing) == ("", "")


def test_what_is_outside_was_told_by_both_ends(watched: Watched) -> None:
    """Each violation of the truth as an alert line of its client's node and of its server's node, and no
    other.
    """
    expected: Counter[str] = Counter()
    for row in watched.document:
        ports = row.get("ports") or [row["port"]]
        if row["verdict"] in OUTSIDE:
            expected.update(
                f"{node}: {row['verdict']} {row['client']} → {row['server']} {row['protocol']}/{port}"
                for port in ports
                for node in (row["client"], row["server"])
            )
    said: Counter[str] = Counter()
    for node in plan.NODES:
        for line in watched.said(node).splitlines():
            words = line.split()
            if len(words) > 6 and words[1] in OUTSIDE:
                said[f"{node}: {words[1]} {words[2]} → {words[5]} {words[7].rstrip(':')}"] += 1
    floods = {key for key in expected if key not in said and "unlisted" in key}
    assert set(said) - set(expected) == set()
    assert max(said.values(), default=1) == 1, "one alert for one pair and port"
    assert set(expected) - set(said) == {key for key in floods if watched_scan(watched, key)}


def watched_scan(watched: Watched, key: str) -> bool:
    """Ports of a scan beyond the lines that are shown of one pair."""
    scans = [row for row in watched.document if row["finding"] == "scan"]
    return any(f"{row['client']} → {row['server']}" in key for row in scans)


def test_processes_are_named(watched: Watched) -> None:
    """Who connects from a node is known by name: the lab's worker there, etcd or etcdctl."""
    flows = watched.analysis.flows
    opened = flows[
        (flows["scope"] == "inter-node") & (flows["protocol"] == "tcp") & (flows["direction_by"] == "syn")
    ]
    assert len(opened)
    names = opened["process"].astype("str")
    assert not opened["process"].isna().any()
    clients = opened["client_node"].astype(str)
    assert all(name in (client, "etcd", "etcdctl") for name, client in zip(names, clients, strict=True))
    assert (opened["pid"] > 0).all()


def test_where_a_syn_was_lost_is_told(watched: Watched) -> None:
    dropped = [
        row
        for row in watched.document
        if row["scenario"] in ("supervisor-dropped", "supervisor-lost") and row["finding"] == "blocked"
    ]
    for row in dropped:
        wanted = ("blocked", row["client"], row["server"], row["port"])
        findings = watched.analysis.findings.to_dict("records")
        (finding,) = (f for f in findings if (f["kind"], f["client"], f["server"], f["port"]) == wanted)
        text = f"{finding['title']} {finding['advice']}"
        between = f"between {row['client']} and {row['server']}"
        if row["scenario"] == "supervisor-dropped":
            assert f"dropped by {row['server']} (NETFILTER_DROP)" in text
            assert between not in text
        else:
            assert "NETFILTER_DROP" not in text
            assert between in text
    assert len(dropped) == (2 if "supervisor-dropped" in watched.truth.scenarios else 0)


def test_a_summary_is_written(watched: Watched) -> None:
    for node in plan.NODES:
        summary = json.loads((watched.folder / "live" / node / f"{node}.summary.json").read_text())
        parts = list((watched.folder / "live" / node).glob("*.parquet"))
        assert (summary["node"], summary["parts"]) == (node, len(parts))
        ledger = next(c for c in watched.rows.coverage if c.source == node)
        assert summary["coverage"]["frames"] == ledger.frames


def test_nothing_is_sent_by_a_node_that_is_none(watched: Watched) -> None:
    """A row's source address is on one of the two ends of each uplink: addresses are read as tcpdump reads
    them.
    """
    known = {a for host in plan.HOSTS.values() for a in host.addresses.values()}
    rows = watched.rows.rows
    outer = rows[(rows["tunnel"] == 0) & (rows["packets"] > 0) & (rows["protocol"] != 58)]
    assert {format_address(a.tobytes()) for a in outer["src"]} <= known
