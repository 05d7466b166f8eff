"""Flow tables from elsewhere. Rule: every verb that takes a table, asked with every form that a table comes
back in, says the same as of the original, or says as an AnalyzerError what lacks.
"""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from runs import CLUSTER, SPEC, analysis, recorded

from analyzer import page
from analyzer._tables import LIVE
from analyzer.analysis import Analysis
from analyzer.errors import AnalyzerError, CaptureError
from analyzer.findings import NEEDED, find, members
from analyzer.flows import COLUMNS, unpair
from analyzer.given import given
from analyzer.infer import doubtful, infer
from analyzer.matrices import matrix
from analyzer.pairs import pairs
from analyzer.report import document, sums
from analyzer.store import read_flow_file, write_flows
from analyzer.timeline import timeline
from analyzer.verdict import COLUMNS as VERDICT_COLUMNS
from analyzer.verdict import judge, silent_carriers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Table = pd.DataFrame


def plain(table: Table) -> list[tuple[str, ...]]:
    """As text, a missing one empty."""
    return [
        tuple("" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value) for value in row)
        for row in table.reset_index(drop=True).itertuples(index=False, name=None)
    ]


def told(of: Analysis) -> list[object]:
    doc = document(of)
    return [doc, page.render(of, doc)]


def rows_of(table: Table) -> list[object]:
    one_way = unpair(table)
    known = (one_way.facts.names, one_way.facts.owners.tobytes(), one_way.facts.drops.tobytes())
    return [one_way.rows.tobytes(), one_way.observers, one_way.listeners, known]


#: verb → what it says of a judged table
VERBS: dict[str, Callable[[Table, Analysis], Any]] = {
    "judge()": lambda t, run: plain(judge(t, run.cluster, run.spec)[[*VERDICT_COLUMNS, "outcome"]]),
    "silent_carriers()": lambda t, run: plain(silent_carriers(t, run.cluster)),
    "unpair()": lambda t, _: rows_of(t),
    "infer()": lambda t, _: plain(infer(t).to_frame()),
    "doubtful()": lambda t, run: doubtful(t, run.cluster),
    "find()": lambda t, run: plain(find(t, run.cluster, run.spec, run.coverage)),
    "members()": lambda t, run: {
        name: rows.tolist() for name, rows in members(t, run.cluster, run.spec, run.coverage).items()
    },
    "matrix()": lambda t, run: [
        plain(matrix(t, by, run.spec, run.cluster).reset_index()) for by in ("role", "node", "rule")
    ],
    "pairs()": lambda t, _: plain(pairs(t)),
    "sums()": lambda t, _: sums(t),
    "timeline()": lambda t, _: timeline(t).counts.tolist(),
    "Analysis()": lambda t, run: told(Analysis(t, run.cluster, run.spec, run.coverage)),
}


@cache
def run_of(name: str) -> Analysis:
    """`blocked`: with causes by name; `live`: with processes and drops; `empty`: of no flow."""
    if name == "empty":
        return analysis()
    run = recorded(name)
    return replace(run, flows=run.flows.head(200))


@cache
def expected(name: str) -> dict[str, Any]:
    return {verb: say(run_of(name).flows, run_of(name)) for verb, say in VERBS.items()}


def with_times(table: Table, change: Callable[[Any], Any]) -> Table:
    return table.assign(**{name: change(table[name]) for name in ("start", "end")})


def back(table: Table, suffix: str) -> Table:
    """As pandas alone reads what is written."""
    text = io.StringIO(
        table.to_csv(index=False)
        if suffix == "csv"
        else with_times(table, lambda column: column.astype(str)).to_json(orient="records", lines=True)
    )
    return pd.read_csv(text) if suffix == "csv" else pd.read_json(text, lines=True)


FORMS: dict[str, Callable[[Table], Table]] = {
    "further columns": lambda t: t.assign(note="x", port=5, flows=7, attempts=3, apart=True, **{"from": "y"}),
    "another order": lambda t: t[list(reversed(t.columns))],
    "another index": lambda t: t.set_axis(np.arange(len(t)) * 7 + 1000),
    "labels several times": lambda t: t.set_axis([0] * len(t)),
    "no categories": lambda t: t.astype({name: object for name in t if t[name].dtype == "category"}),
    "CSV": lambda t: back(t, "csv"),
    "JSON Lines": lambda t: back(t, "jsonl") if len(t) else t,
    "Parquet": lambda t: pd.read_parquet(io.BytesIO(t.to_parquet())),
    "Arrow's types": lambda t: pd.read_parquet(io.BytesIO(t.to_parquet()), dtype_backend="pyarrow"),
    "nullable types": lambda t: pd.read_csv(
        io.StringIO(t.to_csv(index=False)), dtype_backend="numpy_nullable"
    ),
    "times without a zone": lambda t: with_times(t, lambda column: column.dt.tz_localize(None)),
    "times of another zone": lambda t: with_times(t, lambda column: column.dt.tz_convert("Asia/Kolkata")),
    "times as text": lambda t: with_times(t, lambda column: column.astype(str)),
    "times as objects": lambda t: with_times(t, lambda column: column.astype(object)),
    "numbers as text": lambda t: t.assign(
        **{name: t[name].astype(str) for name in COLUMNS if t[name].dtype.kind == "u"}
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["blocked", "live", "empty"])
def test_verbs_say_the_same_of_every_form(name: str, form: str) -> None:
    run = run_of(name)
    table = FORMS[form](run.flows)
    for verb, say in VERBS.items():
        assert say(table, run) == expected(name)[verb], verb


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_form_is_written_and_read_as_it_was(form: str, suffix: str, tmp_path: Path) -> None:
    run = run_of("live")
    write_flows(FORMS[form](run.flows), tmp_path / f"x{suffix}")
    read = read_flow_file(tmp_path / f"x{suffix}").table
    assert plain(read[list(COLUMNS)]) == plain(run.flows[list(COLUMNS)])


def test_a_table_as_it_is_made_is_taken_as_it_is() -> None:
    flows = run_of("blocked").flows
    assert given(flows, "find()", NEEDED) is flows
    assert run_of("blocked").flows is Analysis(flows, CLUSTER, SPEC).flows


# ---- what lacks ----


def says(verb: str, table: Table) -> str:
    with pytest.raises(AnalyzerError) as told:
        VERBS[verb](table, run_of("blocked"))
    assert isinstance(told.value, CaptureError)
    return str(told.value)


@pytest.mark.parametrize("verb", VERBS)
def test_a_column_that_lacks_is_said_with_the_verb(verb: str) -> None:
    """Without it the verb says the same, or what lacks and what to do."""
    run = run_of("blocked")
    lacked: set[str] = set()
    for column in (*COLUMNS, *VERDICT_COLUMNS):
        step = "judge the flows first" if column in VERDICT_COLUMNS else "leave out rows, not columns"
        expects = f"{verb}: the flow table has no column {column} ({step}"
        try:
            said = VERBS[verb](run.flows.drop(columns=column), run)
        except CaptureError as error:
            said, lacked = str(error)[: len(expects)], {*lacked, column}
        else:
            expects = expected("blocked")[verb]
        assert said == expects
    assert bool(lacked & VERDICT_COLUMNS.keys()) == (verb not in BEFORE_VERDICTS)
    assert not lacked & set(LIVE)


BEFORE_VERDICTS = ("judge()", "silent_carriers()", "unpair()", "infer()")


@pytest.mark.parametrize("verb", VERBS)
def test_a_table_of_nothing_is_said(verb: str) -> None:
    """As pandas reads JSON Lines of no flow."""
    assert says(verb, pd.DataFrame()).startswith(f"{verb}: the flow table has no columns (")


def test_of_many_columns_that_lack_a_few_are_named() -> None:
    assert "has no column client, client_port, server, server_port, protocol, tunnel and 2 more (" in says(
        "judge()", pd.DataFrame({"note": ["x"]})
    )


def test_a_table_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        with pytest.raises(CaptureError, match=r"^write_flows\(\): the flow table has no column witnesses "):
            write_flows(run_of("blocked").flows.drop(columns="witnesses"), tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("start", "yesterday", "the column start holds what is no time: "),
        ("start", 2026, "the column start holds what is no time: a number has no unit ("),
        ("server_port", 65536, "the column server_port holds what is no whole number: "),
        ("server_port", 1.5, "the column server_port holds what is no whole number: "),
        ("packets_out", None, "the column packets_out holds what is no whole number: "),
        ("packets_out", "many", "the column packets_out holds what is no whole number: "),
        ("pid", "init", "the column pid holds what is no whole number: "),
    ],
)
def test_what_a_column_cannot_hold_is_said(column: str, value: object, said: str) -> None:
    flows = run_of("blocked").flows
    wrong = flows.assign(**{column: pd.Series([value] * len(flows), flows.index)})
    assert says("Analysis()", wrong).startswith(f"Analysis(): {said}")


def test_a_column_that_is_there_twice_is_said() -> None:
    flows = run_of("blocked").flows
    twice = pd.concat([flows, flows[["server_port"]]], axis=1)
    assert (
        says("find()", twice)
        == "find(): the flow table has the column server_port twice (drop one of the two)"
    )
