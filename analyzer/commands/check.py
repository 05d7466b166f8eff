"""A run judged and told, as text and as files. Rule: what is told is made elsewhere; here is its order."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from analyzer.commands.chosen import wanted
from analyzer.commands.judged import analysis_of, overview_of
from analyzer.commands.options import (
    EXIT_STATUS,
    FOUND,
    NOTHING,
    FailAt,
    FailOn,
    Inputs,
    MaybeClusterFile,
    OfNodes,
    OfPorts,
    Output,
    Scheduler,
    Since,
    SpecName,
    Threads,
    Until,
    refuse_threads,
)
from analyzer.commands.output import (
    end_unheard,
    in_utf8,
    is_chosen,
    reader_stays,
    refuse_inside,
    time_text,
    window_text,
    write_text,
)
from analyzer.errors import CaptureError

if TYPE_CHECKING:
    import pandas as pd

    from analyzer.analysis import Analysis
    from analyzer.gate import Gate
    from analyzer.report import Told

_ACCEPTED_VIEW = ("until", "who", "reason", "severity", "title", "id")
_FINDING_VIEW = ("severity", "kind", "title", "flows", "capture, frame", "id")


EPILOG = f"""Examples:

    rke2-flows check captures/ --cluster nodes.yaml --html report.html

    rke2-flows check day.parquet --cluster nodes.yaml --spec site.yaml --json result.json --fail-on medium

    rke2-flows check s3://flows/ -c nodes.yaml --scheduler tcp://10.0.0.5:8786

    rke2-flows check flows/ -c nodes.yaml --since 2h --node agent-1 --port 10250

    rke2-flows check flows/ -c nodes.yaml --baseline result.json --accept accept.yaml --junit junit.xml

{EXIT_STATUS}"""


def check(
    inputs: Inputs,
    cluster: MaybeClusterFile = None,
    spec: SpecName = "rke2-canal",
    output: Output = None,
    listeners: Annotated[
        list[str] | None,
        typer.Option(
            help="A node's listening sockets: what `rke2-flows listeners` wrote, which names the node, or "
            "`ss -H -tulpn` in a file whose name begins with the node's. May be given again.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", help="Write the JSON document here; - is standard output.", show_default=False
        ),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(
            "--html", help="Write the report, one HTML page, here; - is standard output.", show_default=False
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Write matrices as PNG and SVG into this folder.", show_default=False)
    ] = None,
    fail_on: FailAt = FailOn.high,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="JSON document of an earlier run: findings that it has, no less grave, are left out.",
            show_default=False,
        ),
    ] = None,
    accept: Annotated[
        str | None,
        typer.Option(
            help="YAML list of accepted findings: finding, reason, who, until. They are told apart, and do "
            "not count for --fail-on until their day is over.",
            show_default=False,
        ),
    ] = None,
    accept_template: Annotated[
        str | None,
        typer.Option(
            help="Write a list of all open findings for --accept here, reasons to be filled in; - is "
            "standard output.",
            show_default=False,
        ),
    ] = None,
    junit: Annotated[
        str | None,
        typer.Option(help="Write JUnit XML here, a suite for each kind of finding.", show_default=False),
    ] = None,
    sarif: Annotated[
        str | None, typer.Option(help="Write a SARIF 2.1.0 log here.", show_default=False)
    ] = None,
    since: Since = None,
    until: Until = None,
    node: OfNodes = None,
    port: OfPorts = None,
    scheduler: Scheduler = None,
    threads: Threads = None,
) -> None:
    """Judge the traffic against the port and role table: what is outside of it, what is blocked, what is
    exposed.
    """
    texts = {"json": json_file, "html": html, "template": accept_template, "junit": junit, "sarif": sarif}
    silent = _is_on_stdout(list(filter(None, [output, *texts.values()])))
    asked = wanted(since, until, node, port)
    analysis: Told
    if scheduler:
        refuse_threads(threads)
        refuse_inside(inputs, output)
        _refuse(html=html, plots=plots, listeners=listeners)
        analysis = overview_of(inputs, cluster, spec, scheduler, output, asked)
        step, output = 0, None
    else:
        if output:
            _check_suffix(output)
            refuse_inside(inputs, output)
        analysis, step = analysis_of(
            inputs, cluster, spec, listeners or (), aside=silent, threads=threads, wanted=asked
        )
    gate = _gate(analysis, fail_on, baseline, accept)
    heard = silent or reader_stays(partial(_print_analysis, analysis, gate))
    if output or plots:  # of workers neither
        _write_tables(cast("Analysis", analysis), step, output, plots)
    for name, path in texts.items():
        if path:
            write_text(_text_of(name, analysis, gate), path)
    if not heard:
        end_unheard()
    raise typer.Exit(NOTHING if gate.failing.empty else FOUND)


def _is_on_stdout(places: list[str]) -> bool:
    """Whether one of these is standard output. Raises typer.BadParameter where two are, or are one file."""
    if places.count("-") > 1:
        raise typer.BadParameter("standard output takes one document: write the others to files")
    files = [os.path.realpath(place) for place in places if place != "-" and not _is_device(place)]
    if len(set(files)) < len(files):
        raise typer.BadParameter("a file takes one document: give each a name of its own")
    return "-" in places


def _is_device(place: str) -> bool:
    """Of which the second document does not take the first one's place."""
    return os.path.exists(place) and not os.path.isfile(place)


def _check_suffix(output: str) -> None:
    """Before the work, not after it."""
    from analyzer.store import writer_of

    writer_of(output)


def _refuse(**given: object) -> None:
    """What needs the flows one by one, which stay on the workers."""
    for name, value in given.items():
        if value:
            raise CaptureError(
                f"--{name} needs the flows one by one, and they stay on the workers",
                where="--scheduler",
                next_step="leave one of the two out",
            )


def _gate(analysis: Told, fail_on: FailOn, baseline: str | None, accept: str | None) -> Gate:
    """Read before anything is printed, so that a fault in them leaves no half of an answer."""
    from datetime import UTC, datetime

    from analyzer.accept import load_accepted
    from analyzer.documents import read_document
    from analyzer.gate import decide

    known = read_document(baseline) if baseline else None
    accepted = load_accepted(accept) if accept else ()
    today = datetime.now(UTC).date()
    return decide(analysis.findings, today, fail_on=fail_on.value, baseline=known, accepted=accepted)


def _text_of(name: str, analysis: Told, gate: Gate) -> str:
    """One of the documents that `check` writes."""
    from analyzer import accept, page, pipeline
    from analyzer.report import document

    makers = {
        "json": lambda: json.dumps(document(analysis), indent=1) + "\n",
        "html": lambda: page.render(cast("Analysis", analysis), gate=gate),
        "template": lambda: accept.template(gate.of("open").to_dict("records")),
        "junit": lambda: pipeline.junit(gate, document(analysis)),
        "sarif": lambda: json.dumps(pipeline.sarif(gate, document(analysis)), indent=1) + "\n",
    }
    return makers[name]()


def _print_analysis(analysis: Told, gate: Gate) -> None:
    from analyzer import console
    from analyzer.analysis import Analysis
    from analyzer.listeners import crossing
    from analyzer.report import summary

    for line in _head(analysis):
        console.say(line)
    console.say()
    which = "Chosen" if is_chosen(analysis) else "All"
    console.show(_counts(summary(analysis)["verdicts"], "verdict"), f"{which} flows, by verdict")
    console.say()
    console.show(_counts(summary(analysis)["scopes"], "scope"), f"{which} flows, by scope")
    console.say()
    if isinstance(analysis, Analysis) and analysis.sockets:
        console.show(crossing(analysis, analysis.sockets), "Documented, listening, observed")
        console.say()
    _print_diagnoses(analysis)
    _print_findings(gate)


def _print_diagnoses(analysis: Told) -> None:
    """Named causes, where there are any."""
    from analyzer import console

    told = analysis.diagnoses.to_dict("records")
    if told:
        console.say(f"Diagnosis ({len(told)})", style="bold")
    for row in told:
        places = ", ".join(f"{found['source']} {found['first_frame']}" for found in row["evidence"])
        console.say(f"{row['name']}, confidence {row['confidence']}:")
        console.say(f"    {row['cause']}")
        for word, text in (("explains", ", ".join(row["findings"])), ("capture, frame", places),
                           ("reported as", row["issue"]), ("what to do", row["next_step"])):  # fmt: skip
            if text:
                console.say(f"    {word}: {text}")
        console.say()


def _print_findings(gate: Gate) -> None:
    from analyzer import console

    findings, accepted = gate.of("open"), gate.of("accepted")
    for note in gate.notes():
        console.say(note)
    if not accepted.empty:
        console.say()
        console.show(accepted[list(_ACCEPTED_VIEW)], f"Accepted ({len(accepted)})")
        console.say()
    if findings.empty:
        console.say("No new findings." if gate.baseline else "No findings.")
        return
    places = findings["evidence"].map(lambda found: f"{found[0]['source']} {found[0]['first_frame']}")
    console.show(
        findings.assign(**{"capture, frame": places})[list(_FINDING_VIEW)], f"Findings ({len(findings)})"
    )
    console.say()
    console.say("What to do", style="bold")
    for advice, ids in findings.groupby("advice", sort=False)["id"]:
        console.say(f"{', '.join(ids)}:")
        console.say(f"    {advice}")


def _counts(sums: dict[str, dict[str, int]], name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([{name: key, **values} for key, values in sums.items()])


def _head(analysis: Told) -> list[str]:
    """What the verdicts rest on: specification, cluster, coverage."""
    spec, cluster, ledger = analysis.spec, analysis.cluster, analysis.ledger
    roles = ", ".join(f"{n} {role}" for role, n in cluster.to_frame().value_counts("role").items())
    frames = int(ledger["frames"].sum())
    not_ip, lost = int(ledger["not_ip"].sum()), int(ledger["lost"].sum())
    left = int(ledger["not_chosen"].sum())
    gaps = frames - int(ledger["flow"].sum()) - not_ip - left
    chosen = f", {left} not chosen" if left else ""
    sources = f"{len(ledger)} source{'' if len(ledger) == 1 else 's'}"
    window = f"{time_text(ledger['start'].min())} to {time_text(ledger['end'].max())}" if frames else "empty"
    stated = [
        f"coverage       {sources}, {frames} frames ({not_ip} not IP, {gaps} undecoded, {lost} lost{chosen})",
        f"               {window}",
    ]
    unknown = ["coverage       not known: a flow table without a ledger (only Parquet keeps it)"]
    return [
        f"specification  {spec.name}: {spec.title} ({len(spec.rules)} rules)",
        f"cluster        {cluster.name} ({roles})",
        *(unknown if ledger.empty else stated),
    ]


def _write_tables(analysis: Analysis, interval: int, output: str | None, plots: Path | None) -> None:
    from analyzer import console
    from analyzer.store import write_flows

    written: list[str] = []
    if output:
        if output == "-":
            in_utf8()
        write_flows(analysis.flows, output, analysis.coverage, interval)
        written.append(output)
    if plots:
        written += _write_plots(analysis, plots)
    for path in written:
        if path != "-":
            console.note(f"wrote {path}")


def _write_plots(analysis: Analysis, folder: Path) -> list[str]:
    from analyzer.plots import save_plots
    from analyzer.store import writing

    with writing(folder):
        paths = save_plots(
            analysis.flows, folder, spec=analysis.spec, cluster=analysis.cluster, window=window_text(analysis)
        )
    return [str(path) for path in paths]
