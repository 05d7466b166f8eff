"""From a finding to its flows, its rules and its frames. Rule: flows are compared with what the finding
counts, and filters are given to tshark on the captures that they are for.
"""

from __future__ import annotations

import io
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import frames as fr
import pandas as pd
import pytest
from conftest import RECORDED, require_program
from frames import EPOCH, NS

from analyzer.analysis import Analysis, analyze
from analyzer.cluster import Cluster, Node
from analyzer.cut import cut
from analyzer.evidence import Evidence, display_filter, rules_about
from analyzer.page import render
from analyzer.spec import Rule, load_spec
from analyzer.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORDINGS = sorted(folder.parent.name for folder in RECORDED.glob("*/cluster.yaml"))
SPEC = load_spec("rke2-canal")
SERVER, AGENT, STRANGER = "10.10.0.11", "10.10.0.21", "192.0.2.9"
CLUSTER = Cluster("prod", (Node("server-1", "server", (SERVER,)), Node("agent-1", "agent", (AGENT,))))
ENDS = ("client", "server", "protocol", "port")


def recorded(name: str) -> Analysis:
    return analyze(RECORDED / name, cluster=RECORDED / name / "cluster.yaml")


def analysed(rows: list[dict[str, Any]]) -> Analysis:
    return Analysis(judge(fr.table(rows), CLUSTER, SPEC), CLUSTER, SPEC)


def findings(analysis: Analysis) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in f.items()} for f in analysis.findings.to_dict("records")]


# ---- flows ----


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_finding_s_flows_add_up_to_what_it_counts(name: str) -> None:
    analysis = recorded(name)
    evidence = Evidence.of(analysis)
    for finding in findings(analysis):
        flows = evidence.flows.iloc[evidence.rows_of(finding)]
        assert len(flows) == finding["flows"]
        for what in ("packets", "bytes"):
            assert int(flows[f"{what}_out"].sum() + flows[f"{what}_in"].sum()) == finding[what]
        if len(flows):
            assert (flows["start"].min(), flows["end"].max()) == (finding["first_seen"], finding["last_seen"])


def test_the_page_and_the_cut_of_a_table_that_pandas_read() -> None:
    """It makes NaN of the empty cells of a CSV file, and an empty text is what they mean."""
    whole = recorded("offences")
    text = whole.flows.to_csv(index=False)
    table = pd.read_csv(io.StringIO(text), parse_dates=["start", "end"], date_format="ISO8601")
    again = replace(whole, flows=table)
    assert table[["outer_client", "client_node"]].isna().any().all()
    assert render(again) == render(whole)
    written = [io.BytesIO(), io.BytesIO()]
    for analysis, stream in zip((whole, again), written, strict=True):
        cut([RECORDED / "offences"], analysis, str(whole.findings["id"][0]), stream)
    assert written[0].getvalue() == written[1].getvalue()


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_first_flows_are_those_of_the_evidence(name: str) -> None:
    analysis = recorded(name)
    evidence = Evidence.of(analysis)
    for finding in findings(analysis):
        first = evidence.flows.iloc[evidence.first_rows(evidence.rows_of(finding), finding)]
        places = [(place["source"], place["first_frame"]) for place in finding["evidence"]]
        assert places == list(zip(first["source"], first["first_frame"], strict=True))


def test_live_rows_have_no_frames_and_the_earliest_are_first() -> None:
    rows = [fr.flow(AGENT, SERVER, 2379, source="agent-1", first_frame=0, start=EPOCH + n * NS, client_port=n)
            for n in (5, 3, 9, 1, 7)]  # fmt: skip
    analysis = analysed(rows)
    evidence = Evidence.of(analysis)
    (finding,) = findings(analysis)
    first = evidence.flows.iloc[evidence.first_rows(evidence.rows_of(finding), finding)]
    assert first["client_port"].tolist() == [1, 3, 5]


def test_many_addresses_are_one_finding_with_all_their_flows() -> None:
    rows = [fr.flow(f"192.0.2.{n}", SERVER, 10250) for n in range(60)]
    rows += [fr.flow("192.0.2.7", SERVER, 9345), fr.flow("192.0.2.7", AGENT, 10250)]
    analysis = analysed(rows)
    evidence = Evidence.of(analysis)
    (finding,) = [f for f in findings(analysis) if f["client"] == "(many addresses)"]
    assert len(evidence.rows_of(finding)) == finding["flows"] == 60


@pytest.mark.parametrize("kind", ["blind-spot", "a kind that is not known"])
def test_a_finding_about_no_flow_has_none(kind: str) -> None:
    evidence = Evidence.of(analysed([fr.flow(AGENT, SERVER, 2379)]))
    finding = {
        "id": f"{kind}-0123456789",
        "kind": kind,
        "client": "agent-1",
        "server": "server-1",
        "protocol": "tcp",
        "port": 2379,
    }
    assert evidence.rows_of(finding).tolist() == []


# ---- rules ----


def about(protocol: str, port: int, spec: Any = SPEC) -> list[str]:
    return [rule.id for rule in rules_about({"protocol": protocol, "port": port}, spec)]


@pytest.mark.parametrize(
    ("protocol", "port", "rules"),
    [
        ("tcp", 2379, ["etcd-client"]),
        ("udp", 2379, ["etcd-client"]),
        ("tcp", 30000, ["nodeport"]),
        ("tcp", 32767, ["nodeport"]),
        ("tcp", 32768, []),
        ("tcp", 22, []),
        ("icmp", 8, []),
        ("112", 0, []),
    ],
)
def test_the_rules_that_name_a_port(protocol: str, port: int, rules: list[str]) -> None:
    assert about(protocol, port) == rules


def test_icmp_types_are_no_ports() -> None:
    icmp = Rule("echo", "icmp", 8, 8, frozenset({"agent"}), frozenset({"agent"}))
    spec = type(SPEC)("x", "x", "x", (icmp,))
    assert (about("icmp", 8, spec), about("tcp", 8, spec), about("icmpv6", 8, spec)) == (["echo"], [], [])


# ---- display filters ----


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ([], ""),
        ([("10.0.0.2", "10.0.0.1", "tcp", 22)],
         "ip.addr == 10.0.0.1 && ip.addr == 10.0.0.2 && tcp.port == 22"),
        ([("fd00::2", "fd00::1", "udp", 8472)],
         "ipv6.addr == fd00::1 && ipv6.addr == fd00::2 && udp.port == 8472"),
        ([("10.0.0.2", "10.0.0.1", "icmp", 8)], "ip.addr == 10.0.0.1 && ip.addr == 10.0.0.2 && icmp"),
        ([("10.0.0.2", "10.0.0.1", "112", 0)],
         "ip.addr == 10.0.0.1 && ip.addr == 10.0.0.2 && (ip.proto == 112 || ipv6.nxt == 112)"),
        ([("10.0.0.2", "10.0.0.1", "tcp", 22), ("fd00::2", "fd00::1", "tcp", 22)],
         "((ip.addr == 10.0.0.1 && ip.addr == 10.0.0.2) || (ipv6.addr == fd00::1 && ipv6.addr == fd00::2)) "
         "&& tcp.port == 22"),
        ([("10.0.0.2", "10.0.0.1", "tcp", port) for port in (23, 22)],
         "ip.addr == 10.0.0.1 && ip.addr == 10.0.0.2 && tcp.port in {22, 23}"),
        ([("10.0.0.2", f"10.0.0.{n}", "tcp", 22) for n in range(3, 8)],
         "ip.addr == 10.0.0.2 && ip.addr in {10.0.0.3, 10.0.0.4, 10.0.0.5, 10.0.0.6, 10.0.0.7} "
         "&& tcp.port == 22"),
        ([(f"10.0.{n}.2", "10.0.0.1", "tcp", 22) for n in range(70)],
         "ip.addr == 10.0.0.1 && tcp.port == 22"),
        ([(f"10.0.{n}.2", f"10.1.{n}.1", "tcp", 22) for n in range(70)], "ip && tcp.port == 22"),
        ([("10.0.0.2", "10.0.0.1", "tcp", n) for n in range(20)],
         "ip.addr == 10.0.0.1 && ip.addr == 10.0.0.2 && tcp"),
    ],
)  # fmt: skip
def test_filters(ends: list[Any], text: str) -> None:
    assert display_filter(ends) == text


def test_tshark_takes_every_kind_of_filter(tmp_path: Any) -> None:
    """Its own reading of each is asked for by the frames that it must, and must not, let through."""
    require_program("tshark")
    four, six = (("10.0.0.2", 40000), ("10.0.0.1", 22)), (("fd00::2", 40000), ("fd00::1", 22))
    wide = [(f"10.0.0.{n}", 40000) for n in range(3, 9)]
    frames = fr.timed(
        [fr.segment(*four, 2), fr.segment(*six, 2), fr.segment(four[1], four[0], 18),
         fr.message("10.0.0.2", "10.0.0.1", 8),
         fr.datagram(*four), fr.on_wire(fr.packet_of(112, bytes(8), "10.0.0.2", "10.0.0.1")),
         *[fr.segment(end, four[1], 2) for end in wide]]
    )  # fmt: skip
    path = fr.save(tmp_path, "x.pcap", fr.pcap(frames))
    ours = [("10.0.0.2", "10.0.0.1", "tcp", 22), ("fd00::2", "fd00::1", "tcp", 22),
            ("10.0.0.2", "10.0.0.1", "icmp", 8), ("10.0.0.2", "10.0.0.1", "udp", 22),
            ("10.0.0.2", "10.0.0.1", "112", 0)]  # fmt: skip
    for end, seen in zip(ours, ({1, 3}, {2}, {4}, {5}, {6}), strict=True):
        assert frames_of(path, display_filter([end])) == seen
    assert frames_of(path, display_filter(ours)) == {1, 2, 3, 4, 5, 6}
    assert frames_of(path, display_filter([(end[0], "10.0.0.1", "tcp", 22) for end in wide])) == {
        7,
        8,
        9,
        10,
        11,
        12,
    }
    assert (
        frames_of(path, display_filter([(end[0], "10.0.0.1", "tcp", n) for n, end in enumerate(wide)]))
        == set()
    )


def frames_of(path: Any, text: str) -> set[int]:
    run = subprocess.run(["tshark", "-n", "-r", str(path), "-Y", text, "-T", "fields", "-e", "frame.number"],
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 0, f"{text}: {run.stderr}"
    return {int(number) for number in run.stdout.split()}


def test_filters_show_the_packets_of_the_finding() -> None:
    """Each filter on each capture of the evidence: the named frames are there, and as many as the finding
    counts where no other traffic has the same ends and port.
    """
    require_program("tshark")
    analysis = recorded("offences")
    evidence = Evidence.of(analysis)
    exact = 0
    for finding in findings(analysis):
        ends = evidence.distinct(evidence.rows_of(finding), *ENDS)
        frames = {
            source: frames_of(RECORDED / "offences" / source, display_filter(ends))
            for source in sources(finding)
        }
        for place in finding["evidence"]:
            assert place["first_frame"] in frames[place["source"]]
        fullest = max(len(numbers) for numbers in frames.values())
        assert fullest >= finding["packets"]
        exact += fullest == finding["packets"]
    assert exact >= 13


def sources(finding: dict[str, Any]) -> Iterable[str]:
    return {place["source"] for place in finding["evidence"]}
