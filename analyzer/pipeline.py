r"""A gate's findings in the formats that pipelines read: JUnit XML and SARIF 2.1.0. Rule: findings to text
and plain values; decides nothing.

Titles, names and sources come from packets and files. In XML every character that cannot be printed, and so
every one that XML 1.0 cannot hold, stands as ``\x1b``; in SARIF sources are percent-encoded URIs.
"""

from __future__ import annotations

import urllib.parse
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pandas as pd

from analyzer.findings import KINDS
from analyzer.report import not_chosen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from analyzer.gate import Gate

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "findingId/v1"

#: kind → what it is, in one sentence
KIND_WORDS = {
    "violation": "Traffic between two nodes that the port and role table does not have.",
    "blocked": "Traffic that the table allows does not get through.",
    "exposure": "An address outside the cluster is answered on a port of the table.",
    "foreign-tunnel": "Tunnel traffic comes to a node from an address that is no node.",
    "scan": "One client tries many ports or many nodes, mostly in vain.",
    "listener": "What a node listens on and the port and role table do not fit.",
    "blind-spot": "The coverage does not allow a statement.",
}
#: severity → (SARIF's level, its rank from 0 to 100)
LEVELS = {
    "critical": ("error", 95.0),
    "high": ("error", 80.0),
    "medium": ("warning", 55.0),
    "low": ("note", 30.0),
    "info": ("note", 5.0),
}
#: change since the baseline → SARIF's baselineState
_BASELINE_STATES = {"": "unchanged", "new": "new", "worse": "updated"}


# ---- JUnit XML ----


def junit(gate: Gate, document: Mapping[str, Any]) -> str:
    """JUnit XML, as Ant's and Jenkins' schemas both have it.

    A suite for each kind, a test case for each finding: failed where it makes the gate fail, skipped where it
    is known or accepted, else passed with its title in the suite's system-out. A kind without findings is one
    case that passed. `document`: what :func:`analyzer.report.document` returns.
    """
    root = ET.Element("testsuites")
    for number, kind in enumerate(KINDS):
        root.append(_suite(number, kind, gate, document))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(number: int, kind: str, gate: Gate, document: Mapping[str, Any]) -> ET.Element:
    rows: list[dict[Any, Any]] = gate.findings[gate.findings["kind"] == kind].to_dict("records")
    failing = set(gate.failing["id"])
    skipped = sum(row["state"] != "open" for row in rows)
    failures = sum(row["id"] in failing for row in rows)
    head = {
        "name": kind,
        "package": "rke2-flows",
        "id": number,
        "hostname": document["cluster"]["name"],
        "timestamp": _timestamp(document),
        "tests": max(len(rows), 1),
        "failures": failures,
        "errors": 0,
        "skipped": skipped,
        "time": 0,
    }
    suite = _element("testsuite", **head)
    suite.append(_properties(gate, document))
    suite.extend(_case(row, row["id"] in failing) for row in rows)
    if not rows:
        suite.append(_element("testcase", classname=f"rke2-flows.{kind}", name=f"no {kind}", time=0))
    passed = [row for row in rows if row["state"] == "open" and row["id"] not in failing]
    told = [f"{row['severity']} {row['id']}: {row['title']}" for row in passed]
    suite.append(_element("system-out", *told))
    suite.append(_element("system-err"))
    return suite


def _properties(gate: Gate, document: Mapping[str, Any]) -> ET.Element:
    stated = {
        "spec": document["spec"]["name"],
        "cluster": document["cluster"]["name"],
        "fail-on": gate.fail_on,
        "baseline": gate.baseline,
        "rke2-flows": document["analyzer"]["version"],
        **({"not-chosen": not_chosen(document)} if not_chosen(document) else {}),
    }
    properties = _element("properties")
    properties.extend(_element("property", name=name, value=value) for name, value in stated.items())
    return properties


def _case(row: Mapping[str, Any], fails: bool) -> ET.Element:
    """Its name has no counts, so that a pipeline knows it again."""
    port = f" {row['protocol']}/{row['port']}" if row["protocol"] else ""
    ends = " → ".join(filter(None, (row["client"], row["server"])))
    name = f"{ends}{port} [{row['id']}]".strip()
    case = _element("testcase", classname=f"rke2-flows.{row['kind']}", name=name, time=0)
    if fails:
        case.append(_element("failure", *_story(row), message=row["title"], type=row["severity"]))
    elif row["state"] != "open":
        case.append(_element("skipped", message=_why_skipped(row)))
    return case


def _why_skipped(row: Mapping[str, Any]) -> str:
    if row["state"] == "known":
        return "known from the baseline"
    return f"accepted by {row['who']} until {row['until']}: {row['reason']}"


def _story(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"{row['severity']} {row['id']}"
    yield row["title"]
    if row["expired"]:
        yield f"accepted by {row['who']} until {row['until']}, which is over: {row['reason']}"
    yield f"flows {row['flows']}, packets {row['packets']}, bytes {row['bytes']}"
    places = [f"{found['source']} {found['first_frame']}" for found in row["evidence"]]
    yield f"capture and frame: {', '.join(places)}"
    yield row["advice"]


def _timestamp(document: Mapping[str, Any]) -> str:
    """When the traffic ended, to the second; a report made again of the same captures is the same."""
    ends = [ledger["end"] for ledger in document["coverage"] if ledger["end"]]
    return max(ends, default="1970-01-01T00:00:00Z")[: len("1970-01-01T00:00:00")]


def _element(tag: str, *lines: str, **attributes: object) -> ET.Element:
    element = ET.Element(tag, {name: _xml(value) for name, value in attributes.items()})
    element.text = "\n".join(_xml(line) for line in lines) or None
    return element


def _xml(value: object) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


# ---- SARIF ----


def sarif(gate: Gate, document: Mapping[str, Any]) -> dict[str, Any]:
    """A SARIF 2.1.0 log of one run, as plain values.

    Rules are the kinds; `partialFingerprints` hold the finding's id, logical locations its client and server,
    artifact locations the captures; accepted ones are suppressed, and with a baseline each says whether it is
    new. `document`: what :func:`analyzer.report.document` returns.
    """
    driver = {
        "name": "rke2-flows",
        "version": document["analyzer"]["version"],
        "rules": [_rule(kind) for kind in KINDS],
    }
    cluster = document["cluster"]["name"]
    rows = gate.findings.to_dict("records")
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"rke2-flows/{urllib.parse.quote(_text(cluster), safe='')}/"},
        "invocations": [{"executionSuccessful": True}],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "spec": _text(document["spec"]["name"]),
            "failOn": gate.fail_on,
            **({"notChosen": not_chosen(document)} if not_chosen(document) else {}),
        },
        "results": [_result(row, cluster, gate) for row in rows],
    }
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(kind: str) -> dict[str, Any]:
    return {
        "id": kind,
        "name": "".join(word.capitalize() for word in kind.split("-")),
        "shortDescription": {"text": KIND_WORDS[kind]},
        "defaultConfiguration": {"level": "warning"},
        "properties": {"tags": ["security", "network"]},
    }


def _result(row: Mapping[Any, Any], cluster: str, gate: Gate) -> dict[str, Any]:
    level, rank = LEVELS[row["severity"]]
    result: dict[str, Any] = {
        "ruleId": row["kind"],
        "ruleIndex": list(KINDS).index(row["kind"]),
        "kind": "fail",
        "level": level,
        "rank": rank,
        "message": {"text": _message(f"{row['title']}\n\n{row['advice']}")},
        "partialFingerprints": {FINGERPRINT: row["id"]},
        "locations": _locations(row, cluster),
        "properties": _result_properties(row),
    }
    if gate.baseline:
        result["baselineState"] = _BASELINE_STATES[row["change"]]
    if row["state"] == "accepted":
        result["suppressions"] = [_suppression(row)]
    return result


def _suppression(row: Mapping[Any, Any]) -> dict[str, Any]:
    words = f"{row['reason']} ({row['who']}, until {row['until']})"
    return {"kind": "external", "status": "accepted", "justification": _text(words)}


def _locations(row: Mapping[Any, Any], cluster: str) -> list[dict[str, Any]]:
    """One for each place of the evidence; the nodes are at each."""
    logical = [_logical(row, side, cluster) for side in ("client", "server") if row[side]]
    return [
        {
            "physicalLocation": {"artifactLocation": {"uri": _uri(found["source"])}},
            "logicalLocations": logical,
            "properties": {"frame": int(found["first_frame"])},
        }
        for found in row["evidence"]
    ]


def _logical(row: Mapping[Any, Any], side: str, cluster: str) -> dict[str, str]:
    end, kind = row[side], "address" if row[f"{side}_role"] == "outside" else "node"
    return {"name": _text(end), "fullyQualifiedName": _text(f"{cluster}/{end}"), "kind": kind}


def _uri(source: str) -> str:
    """A relative reference (RFC 3986); a colon in its first segment would be taken for a scheme's."""
    return urllib.parse.quote(_text(source))


def _result_properties(row: Mapping[Any, Any]) -> dict[str, Any]:
    texts = ("severity", "client", "client_role", "server", "server_role", "protocol", "rule", "verdict")
    counts = ("port", "flows", "packets", "bytes")
    times = ("first_seen", "last_seen")
    return {
        **{name: _text(row[name]) for name in texts},
        **{name: int(row[name]) for name in counts},
        **{name: None if pd.isna(row[name]) else row[name].isoformat() for name in times},
    }


def _message(text: str) -> str:
    """In a message `[words](address)` is a link (SARIF 2.1.0, 3.11.6); a packet's name must make none."""
    return _text(text).replace("](", "] (")


def _text(value: object) -> str:
    """A lone surrogate is no character, and not every reader takes one."""
    return str(value).encode("utf-8", "backslashreplace").decode()
