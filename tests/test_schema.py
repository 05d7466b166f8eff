"""The JSON Schema, and documents read back. Rule: the schema is asked of another program's validator; what we
read is compared with what it says.
"""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import frames as fr
import pytest
from frames import Frame, traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes import drop, owner
from packets import SYN
from runs import AGENT, CLUSTER, RECORDINGS, SERVER, SPEC, analysis, failed, flow, ledger, recorded, run

from analyzer import diagnosis, findings, pairs
from analyzer.analysis import Analysis
from analyzer.cluster import Cluster, Node, VirtualIP
from analyzer.documents import NEEDED, Document, faults, parse_document, read_document, schema
from analyzer.errors import CaptureError
from analyzer.report import document
from analyzer.rows import Coverage, merge
from analyzer.spec import PROTOCOLS, load_spec, shipped_specs
from analyzer.verdict import SCOPES, VERDICTS, judge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

jsonschema = pytest.importorskip("jsonschema")
VALIDATOR = jsonschema.Draft202012Validator(schema())
DEFS = schema()["$defs"]


def through_json(whole: Analysis) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(document(whole), allow_nan=False))
    return loaded


def offences() -> dict[str, Any]:
    return copy.deepcopy(OFFENCES)


OFFENCES = through_json(recorded("offences"))


def live() -> Analysis:
    """Two nodes that captured live: processes, drops, a table that was full, no frame numbers."""
    joining = (AGENT, 40000), (SERVER, 9345)
    asked = [Frame(fr.segment(*joining, SYN), fr.EPOCH + n * fr.NS) for n in range(3)]
    parts = [
        replace(fr.read(fr.pcap(asked), source), facts=facts)
        for source, facts in (
            ("agent-1", owner((*joining[0], *joining[1], 6), "rke2", 4711)),
            ("server-1", drop((*joining[0], *joining[1], 6), packets=3)),
        )
    ]
    whole = merge(parts)
    first = replace(whole.coverage[0], frames=5, overflow=2, other_bytes=120, missing="who owns a socket")
    return Analysis.of(replace(whole, coverage=(first, *whole.coverage[1:])), CLUSTER, SPEC)


def with_other_roles() -> Analysis:
    cluster = Cluster(
        "x",
        (
            Node("a", "etcd", ("10.0.0.1",)),
            Node("b", "control-plane", ("10.0.0.2", "fd00::2"), ("10.42.0.0/24",)),
        ),
        (VirtualIP("10.0.0.9", "server"),),
    )
    flows = judge(fr.table([flow("10.0.0.1", "10.0.0.2", 2379)]), cluster, SPEC)
    return Analysis(flows, cluster, SPEC, (ledger(damage="cut off"),))


# ---- what is written ----


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("name", RECORDINGS)
def test_recordings(name: str) -> None:
    VALIDATOR.validate(through_json(recorded(name)))


SHAPES: dict[str, Analysis] = {
    "live": live(),
    "nothing read": Analysis.of(fr.read(fr.pcap([])), CLUSTER, SPEC),
    "no ledger": Analysis(judge(fr.table([flow(AGENT, SERVER)]), CLUSTER, SPEC), CLUSTER, SPEC, ()),
    "no times": Analysis.of(
        fr.read(fr.pcapng(fr.timed(fr.talk((AGENT, 1), (SERVER, 2379))), kind="simple")), CLUSTER, SPEC
    ),
    "other protocols": analysis(flow(AGENT, SERVER, 0, "132"), flow(AGENT, SERVER, 9, "sctp")),
    "a scan of nodes": analysis(*[failed(AGENT, SERVER, port) for port in range(1, 60)]),
    "roles of their own": with_other_roles(),
}


@pytest.mark.parametrize("name", SHAPES)
def test_other_shapes(name: str) -> None:
    told = through_json(SHAPES[name])
    VALIDATOR.validate(told)
    assert parse_document(json.dumps(told), where="x").findings == tuple(told["findings"])


def test_the_live_shape_is_one() -> None:
    told = through_json(SHAPES["live"])
    assert any("(pid 4711)" in finding["title"] for finding in told["findings"])
    assert told["coverage"][0]["overflow"] == 2


@pytest.mark.parametrize("name", shipped_specs())
def test_every_shipped_specification(name: str) -> None:
    whole = recorded("baseline")
    spec = load_spec(name)
    VALIDATOR.validate(through_json(Analysis(judge(whole.flows, whole.cluster, spec), whole.cluster, spec)))


@given(traffic(), traffic())
@settings(max_examples=15, deadline=None)
def test_any_traffic(one: list[Frame], other: list[Frame]) -> None:
    parts = [fr.read(fr.pcap(frames), name) for frames, name in ((one, "a"), (other, "b;\u2028<"))]
    VALIDATOR.validate(through_json(Analysis.of(merge(parts), CLUSTER, SPEC)))


def test_the_schema_says_what_the_code_says() -> None:
    """A column, kind or verdict that is added is added there too."""
    assert list(DEFS["finding"]["properties"]) == list(findings.COLUMNS)
    assert list(DEFS["pair"]["properties"]) == list(pairs.COLUMNS)
    assert list(DEFS["ledger"]["properties"]) == [field.name for field in fields(Coverage)]
    assert DEFS["kind"]["enum"] == list(findings.KINDS)
    assert DEFS["severity"]["enum"] == list(findings.SEVERITIES)
    assert DEFS["verdict"]["enum"] == ["", *VERDICTS]
    assert DEFS["rule"]["properties"]["protocol"]["enum"] == list(PROTOCOLS)
    assert DEFS["pair"]["properties"]["scope"]["enum"] == list(pairs.SCOPES)
    summary = schema()["properties"]["summary"]["properties"]
    assert list(summary["scopes"]["properties"]) == list(SCOPES)
    assert list(summary["findings"]["properties"]["kind"]["properties"]) == list(findings.KINDS)
    assert f"({'|'.join(findings.KINDS)})-" in DEFS["finding_id"]["pattern"]
    assert list(DEFS["diagnosis"]["properties"]) == list(diagnosis.COLUMNS)
    assert DEFS["diagnosis"]["properties"]["confidence"]["enum"] == list(diagnosis.CONFIDENCES)


def objects(shape: Any) -> Iterator[dict[str, Any]]:
    if isinstance(shape, dict):
        if shape.get("type") == "object":
            yield shape
        for inner in shape.values():
            yield from objects(inner)
    elif isinstance(shape, list):
        for inner in shape:
            yield from objects(inner)


def test_every_object_is_closed() -> None:
    every = list(objects(schema()))
    assert len(every) > 15
    assert all(shape["additionalProperties"] is False for shape in every)


# ---- documents with one thing wrong ----


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place of a document; of a list the first and the last two elements."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for number in sorted({0, len(value) - 2, len(value) - 1} & set(range(len(value)))):
            yield from places(value[number], (*path, number))


PLACES = list(places(OFFENCES))[1:]
FREE = (
    "title",
    "advice",
    "description",
    "source",
    "version",
    "name",
    "damage",
    "missing",
    "pod_cidrs",
    "rule",
)
#: objects whose keys are what there was
COUNTERS = ("outcomes", "severity", "kind")
#: what documents of earlier versions do not have, which are read all the same
LATER = ("drops_lost", "clock_offset")
WRONG: tuple[Any, ...] = (None, -1, 1 << 64, 1.5, "x\n", True, [], {}, [None])


def put(whole: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key in path[:-1]:
        whole = whole[key]
    whole[path[-1]] = value


@pytest.mark.parametrize("path", [p for p in PLACES if isinstance(p[-1], str)], ids=str)
def test_a_key_that_is_missing_or_too_many_is_refused(path: tuple[str | int, ...]) -> None:
    told = offences()
    put(told, (*path[:-1], "surplus"), 1)
    assert not VALIDATOR.is_valid(told)
    told, optional = offences(), len(path) > 1 and (path[-2] in COUNTERS or path[-1] in LATER)
    inner: Any = told
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    assert VALIDATOR.is_valid(told) == optional


def repeats(told: dict[str, Any]) -> bool:
    ids = [finding["id"] for finding in told["findings"]]
    keys = [tuple(pair[name] for name in pairs.KEY) for pair in told["pairs"]]
    return len(set(ids)) < len(ids) or len(set(keys)) < len(keys)


@given(st.sampled_from(PLACES), st.sampled_from(WRONG))
@settings(max_examples=100, deadline=None)
def test_a_wrong_value_is_refused_by_both(path: tuple[str | int, ...], value: Any) -> None:
    """The validator's opinion of the parts that we read is ours."""
    told = offences()
    put(told, path, value)
    theirs = next(VALIDATOR.iter_errors(told), None)
    if theirs is not None and theirs.absolute_path and theirs.absolute_path[0] not in NEEDED:
        assert parse_document(json.dumps(told), where="x")
        return
    if theirs is None and not repeats(told):
        assert parse_document(json.dumps(told), where="old.json")
        return
    with pytest.raises(CaptureError) as raised:
        parse_document(json.dumps(told), where="old.json")
    assert str(raised.value).startswith("old.json")
    assert str(raised.value).isprintable()


def test_most_wrong_values_are_wrong() -> None:
    """The property above says something only where documents do become wrong."""
    wrong, some = 0, PLACES[:: max(1, len(PLACES) // 60)]
    for n, path in enumerate(some):
        told = offences()
        put(told, path, WRONG[n % len(WRONG)])
        wrong += not VALIDATOR.is_valid(told)
    assert wrong > 0.85 * len(some)


VALUES: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "a port too high": (("findings", 0, "port"), 70000, "findings[0].port: 70000 is above 65535"),
    "a count below 0": (("pairs", 1, "packets"), -1, "pairs[1].packets: -1 is below 0"),
    "a text for a count": (
        ("pairs", 1, "flows"),
        "2",
        "pairs[1].flows: a text stands where a whole number should",
    ),
    "a fraction": (("pairs", 1, "flows"), 2.5, "a number with a fraction stands where a whole number should"),
    "true for a count": (("pairs", 0, "flows"), True, "true or false stands where a whole number should"),
    "an unknown severity": (("findings", 0, "severity"), "grave", "'grave' is none of critical, high"),
    "no id": (("findings", 0, "id"), "violation-1", "'violation-1' is not of the form"),
    "an id with a line break": (("findings", 0, "id"), "scan-0123456789\n", "is not of the form"),
    "no time": (("coverage", 0, "start"), "yesterday", "'yesterday' is not of the form"),
    "a month that is none": (
        ("coverage", 0, "end"),
        "2026-13-01T00:00:00Z",
        "coverage[0]: '2026-13-01T00:00:00Z' is",
    ),
    "a list for the findings": (("findings",), {}, "findings: an object stands where a list should"),
    "an id twice": (("findings", 1), OFFENCES["findings"][0], "findings[1]: the same as findings[0]"),
    "a pair twice": (("pairs", 2), OFFENCES["pairs"][0], "pairs[2]: the same as pairs[0]"),
    "another schema": (("schema",), 2, "a document of schema 2; this version reads 1"),
    "a schema that is no number": (("schema",), True, "no schema number"),
    "half a character": (("findings", 0, "title"), "\ud800", "half of a character"),
    "a name that writes to the terminal": (("pairs", 0, "scope"), "\x1b[31m", r"'\x1b[31m' is none of"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_fault_is_one_line_that_says_where(name: str, tmp_path: Path) -> None:
    path, value, words = VALUES[name]
    told = offences()
    put(told, path, value)
    file = tmp_path / "old.json"
    file.write_text(json.dumps(told))
    with pytest.raises(CaptureError) as raised:
        read_document(file)
    assert words in str(raised.value)
    assert str(raised.value).startswith(str(file))
    assert str(raised.value).isprintable()


TEXTS: dict[str, tuple[str, str]] = {
    "empty": ("", "line 1: no valid JSON"),
    "no JSON": ("{\n'a': 1}", "line 2: no valid JSON"),
    "another JSON": ("{}", "no schema number"),
    "a list": ("[]", "a list is no document"),
    "a number": ("1", "a number is no document"),
    "not a number": ('{"schema": NaN}', "NaN is no JSON number"),
    "a number without end": (f'{{"schema": {"1" * 5000}}}', "thousands of digits"),
    "a key twice": ('{"schema": 1, "schema": 1}', "the key 'schema' is there twice"),
    "deep": ("[" * 200_000, "nested too deep"),
    "no findings": (
        json.dumps({k: v for k, v in OFFENCES.items() if k != "findings"}),
        "'findings' is missing",
    ),
    "cut off": (json.dumps(OFFENCES)[:5000], "no valid JSON"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_document(name: str) -> None:
    text, words = TEXTS[name]
    with pytest.raises(CaptureError) as raised:
        parse_document(text, where="old.json")
    assert words in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


@given(st.binary(max_size=300))
def test_any_bytes_end_in_one_line(data: bytes) -> None:
    with pytest.raises(CaptureError):
        parse_document(data.decode("latin-1"), where="old.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.sampled_from(NEEDED), JSON)
def test_any_value_in_place_of_a_part(part: str, value: Any) -> None:
    told = offences() | {part: value}
    if value in ([], 1) and part != "schema":
        return
    with pytest.raises(CaptureError):
        parse_document(json.dumps(told), where="old.json")


# ---- what is read ----


def test_what_a_later_version_adds_is_passed_over() -> None:
    told = offences() | {"diagnosis": [{"cause": "mtu"}]}
    told["findings"][0]["owner"] = "platform"
    del told["summary"], told["matrix"]
    read = parse_document(json.dumps(told), where="old.json")
    assert read.pairs == tuple(OFFENCES["pairs"])
    assert len(read.findings) == len(OFFENCES["findings"])


def test_read_back_it_is_what_was_found(tmp_path: Path) -> None:
    whole = recorded("offences")
    file = tmp_path / "x.json"
    file.write_text(json.dumps(document(whole)))
    read = read_document(file)
    assert read == Document.of(str(file), document(whole))
    assert [finding["id"] for finding in read.findings] == whole.findings["id"].tolist()
    ends = [c.end for c in whole.coverage]
    assert 0 < read.window <= (max(ends) - min(c.start for c in whole.coverage)) / 1e9


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot be read"):
        read_document(tmp_path / "absent.json")


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=6))
@settings(max_examples=25, deadline=None)
def test_the_window_is_the_seconds_in_which_someone_watched(spans: list[tuple[int, int]]) -> None:
    watched = {second for start, length in spans for second in range(start, start + length)}
    told = copy.deepcopy(EMPTY)
    told["coverage"] = [
        told["coverage"][0] | {"start": _time(start), "end": _time(start + length)} for start, length in spans
    ]
    assert parse_document(json.dumps(told), where="x").window == len(watched)


EMPTY = through_json(analysis())


def _time(second: int) -> str:
    return f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}Z"


def test_faults_are_all_told() -> None:
    told = offences()["findings"][0] | {"port": -1, "severity": 7}
    assert [place for place, _ in faults(told, DEFS["finding"], "f")] == ["f.severity", "f.port"]


def test_a_run_without_a_ledger_has_no_window() -> None:
    assert parse_document(json.dumps(through_json(SHAPES["no ledger"])), where="x").window == 0
    assert run(seconds=0).window == 0
