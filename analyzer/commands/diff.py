"""Two runs beside each other. Rule: compares what both say, judges only where one is no document yet."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.commands.judged import doubting, inferred, rows_of
from analyzer.commands.options import FOUND, NOTHING, RUN_HELP, FailOn, SpecName
from analyzer.commands.output import end_unheard, reader_stays, write_text

if TYPE_CHECKING:
    import pandas as pd

    from analyzer.analysis import Analysis
    from analyzer.change import Change
    from analyzer.cluster import Cluster
    from analyzer.documents import Document
    from analyzer.rows import OneWay
    from analyzer.spec import Spec

_PAIR_VIEW = ("change", "client", "server", "protocol", "port", "verdict",
"packets_old", "packets_new", "times")  # fmt: skip


EPILOG = """Examples:

    rke2-flows diff last-week.json today.json

    rke2-flows diff last-week/ today/ --cluster nodes.yaml --fail-on medium

Grown is what has more than --growth times as many packets or bytes a second, at least 100 packets and 1 a
second, or 100 kB and 1 kB a second. What a shorter run may have missed is not said to be gone.

Exit status: 0 no new or graver finding at or above --fail-on, 1 some at or above it, 2 the input or
the command line is at fault."""


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help=RUN_HELP, show_default=False)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The same of the later run.", show_default=False)],
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            "-c",
            help="Cluster file, where OLD or NEW is no JSON document. Without it nodes and roles are "
            "inferred from the flows.",
            show_default=False,
        ),
    ] = None,
    spec: SpecName = "rke2-canal",
    growth: Annotated[float, typer.Option(help="How many times as much is grown.", min=1.0)] = 2.0,
    json_file: Annotated[
        str | None,
        typer.Option("--json", help="Write the changes here; - is standard output.", show_default=False),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            help="Exit with 1 where a finding that is new, or graver than before, is at least so severe."
        ),
    ] = FailOn.high,
) -> None:
    """What changed between two runs: pairs and ports that are new, gone or grown, findings new and fixed."""
    from analyzer.change import compare
    from analyzer.gate import at_or_above

    runs = _runs((old, new), cluster, spec, aside=json_file == "-")
    change = compare(runs[old], runs[new], growth)
    heard = json_file == "-" or reader_stays(partial(_print_change, change))
    if json_file:
        write_text(json.dumps(change.to_dict(), indent=1) + "\n", json_file)
    if not heard:
        end_unheard()
    worse = change.findings[change.findings["change"] != "fixed"]
    raise typer.Exit(FOUND if at_or_above(worse["severity"], fail_on.value).any() else NOTHING)


def _runs(paths: tuple[str, ...], cluster: str | None, spec: str, *, aside: bool) -> dict[str, Document]:
    """Path → its JSON document, or captures and flow files judged now."""
    from analyzer.cluster import load_cluster
    from analyzer.documents import Document, read_document
    from analyzer.report import document
    from analyzer.spec import load_spec

    rules, nodes = load_spec(spec), load_cluster(cluster) if cluster else None
    documents = {path: read_document(path) for path in paths if path.endswith(".json")}
    rows = {path: rows_of([path]) for path in paths if path not in documents}
    judged = _judged(list(rows.values()), nodes, rules, aside) if rows else []
    of_rows = zip(rows, judged, strict=True)
    return documents | {path: Document.of(path, document(analysis)) for path, analysis in of_rows}


def _judged(rows: list[OneWay], nodes: Cluster | None, rules: Spec, aside: bool) -> list[Analysis]:
    """All by one cluster, so that a node is called the same in both."""
    from analyzer.analysis import Analysis

    whole = nodes or inferred(rows, aside=aside)
    analyses = [Analysis.of(of, whole, rules) for of in rows]
    return analyses if nodes else doubting(analyses, aside=aside)


def _told_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """How many times as much the grown are, and a word for the port of those with many."""
    from analyzer.spec import PORTED, PROTOCOLS

    factors = pairs[["packets_factor", "bytes_factor"]].max(axis=1).map("{:.1f}".format)
    many = (pairs["port"] == 0) & pairs["protocol"].isin(PROTOCOLS[:PORTED])  # ESP and the like have none
    return pairs.assign(
        times=factors.where(pairs["change"] == "grown", ""),
        port=pairs["port"].astype(object).where(~many, "(many)"),
    )


def _print_change(change: Change) -> None:
    from analyzer import console

    for note in change.notes:
        console.say(f"note: {note}")
    if change.pairs.empty and change.findings.empty:
        console.say("Nothing changed.")
        return
    pairs = _told_pairs(change.pairs)
    for table, title in ((pairs[list(_PAIR_VIEW)], "Pairs and ports"), (change.findings, "Findings")):
        if len(table):
            console.show(table, f"{title} ({len(table)})")
            console.say()
