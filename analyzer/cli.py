"""The command line. Rule: arguments → library → print. The only place that turns an AnalyzerError into a
line and an exit status.

Heavy imports stand in the commands that need them, so that `--help` and shell completion are quick.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from analyzer.errors import AnalyzerError, CaptureError

if TYPE_CHECKING:
    import pandas as pd

    from analyzer.analysis import Analysis
    from analyzer.capture.live import Collector
    from analyzer.change import Change
    from analyzer.cluster import Cluster
    from analyzer.documents import Document
    from analyzer.gate import Gate
    from analyzer.rows import OneWay

NOTHING, FOUND, INPUT_FAULT, UNABLE, INTERRUPTED = 0, 1, 2, 3, 130
_UNITS = {"ns": 1, "us": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}

EXIT_STATUS = """Exit status: 0 nothing at or above --fail-on, 1 findings at or above it, 2 the input or the
command line is at fault, 3 this machine cannot do it."""

app = typer.Typer(
    name="rke2-flows",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="What really flows between the nodes of an RKE2 cluster, and does it belong to the port and role "
    "table?",
    epilog=EXIT_STATUS,
)
spec_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Specifications: list, show, import."
)
cluster_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Cluster files: show, make from kubectl."
)
app.add_typer(spec_app, name="spec")
app.add_typer(cluster_app, name="cluster")


class FailOn(StrEnum):
    """The least severity that makes the exit status 1."""

    critical = "critical"
    high = "high"
    medium = "medium"
    low = "low"
    info = "info"
    never = "never"


class By(StrEnum):
    """What a matrix is over."""

    role = "role"
    node = "node"
    rule = "rule"


class Measure(StrEnum):
    """What a matrix counts."""

    flows = "flows"
    packets = "packets"
    bytes = "bytes"


def _spec_names(incomplete: str) -> list[str]:
    from analyzer.spec import shipped_specs

    return [name for name in shipped_specs() if name.startswith(incomplete)]


FailAt = Annotated[FailOn, typer.Option(help="Exit with 1 where a finding is at least this severe.")]
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="Captures, flow files or folders of them; - is a capture on standard input.",
        show_default=False,
    ),
]
_RUN_HELP = "JSON document of `check --json` (.json), or a capture, a flow file or a folder of them."
Captures = Annotated[
    list[str],
    typer.Argument(
        metavar="CAPTURE",
        help="pcap or pcapng files, plain or in gzip, zstd or lz4, or folders of them; - is standard input.",
        show_default=False,
    ),
]
ClusterFile = Annotated[
    str,
    typer.Option(
        "--cluster",
        "-c",
        help="Cluster file: YAML, or the JSON of `kubectl get nodes -o json`.",
        show_default=False,
    ),
]
MaybeClusterFile = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "-c",
        help="Cluster file: YAML, or the JSON of `kubectl get nodes -o json`. Without it nodes and roles are "
        "inferred from the flows.",
        show_default=False,
    ),
]
SpecName = Annotated[
    str,
    typer.Option(
        "--spec", "-s", help="A shipped specification's name, or a YAML file.", autocompletion=_spec_names
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="Write the table here: .parquet, .csv or .jsonl; - is CSV on standard output.",
        show_default=False,
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from analyzer.report import analyzer_version

        print(f"rke2-flows {analyzer_version()}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""


def _nanoseconds(text: str | None) -> int:
    """`60s`, `5m`, `500ms` to ns; 0 for none."""
    if not text:
        return 0
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :] or "s"
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit() or float(number) <= 0:
        raise typer.BadParameter(f"{text!r} is no duration: write 60s, 5m or 500ms")
    return int(float(number) * _UNITS[unit])


# ---- flows ----

_FLOW_VIEW = ("client", "client_port", "server", "server_port", "protocol", "tunnel", "vni", "start",
"packets_out", "packets_in",
              "bytes_out", "bytes_in", "outcome", "direction_by")  # fmt: skip


@app.command(
    epilog="""Examples:

    rke2-flows flows server-1.pcap

    rke2-flows flows captures/ --interval 60s -o flows.parquet

    tcpdump -i eth0 -s 160 -w - | rke2-flows flows -"""
)
def flows(
    captures: Captures,
    output: Output = None,
    interval: Annotated[
        str | None, typer.Option(help="One row for each flow and interval, e.g. 60s.", show_default=False)
    ] = None,
    spec: SpecName = "rke2-canal",
) -> None:
    """Captures to a flow table: who talked to whom, on which port, how much, and was it answered.

    The specification only helps to tell client from server where no SYN was seen; nothing is judged.
    """
    from analyzer import console
    from analyzer.analysis import server_ports
    from analyzer.flows import pair
    from analyzer.spec import load_spec
    from analyzer.store import read_inputs, write_flows

    step, ports = _nanoseconds(interval), server_ports(load_spec(spec))
    with console.reading(captures) as progress:
        whole = read_inputs(captures, interval=step, progress=progress).settled()
    table = pair(whole, ports)
    if output:
        write_flows(table, output, whole.coverage, whole.interval)
    else:
        console.show(table[list(_FLOW_VIEW)])
    _note_coverage(whole.coverage)
    if output and output != "-":
        console.note(f"wrote {len(table)} flows to {output}")


def _note_coverage(coverage: Any) -> None:
    """One line for each source on standard error: what was read and what was not."""
    from analyzer import console
    from analyzer.rows import COUNTS

    for ledger in coverage:
        parts = [
            f"{getattr(ledger, name)} {name.replace('_', ' ')}"
            for name in COUNTS
            if name not in ("frames", "other_bytes") and getattr(ledger, name)
        ]
        damage = f"; damaged: {ledger.damage}" if ledger.damage else ""
        console.note(
            f"{ledger.source}: {ledger.frames} frames{': ' if parts else ''}{', '.join(parts)}{damage}"
        )


# ---- check ----

_ACCEPTED_VIEW = ("until", "who", "reason", "severity", "title", "id")
_FINDING_VIEW = ("severity", "kind", "title", "flows", "capture, frame", "id")


@app.command(
    epilog=f"""Examples:

    rke2-flows check captures/ --cluster nodes.yaml --html report.html

    rke2-flows check day.parquet --cluster nodes.yaml --spec site.yaml --json result.json --fail-on medium

    rke2-flows check flows/ -c nodes.yaml --baseline result.json --accept accept.yaml --junit junit.xml

{EXIT_STATUS}"""
)
def check(
    inputs: Inputs,
    cluster: MaybeClusterFile = None,
    spec: SpecName = "rke2-canal",
    output: Output = None,
    listeners: Annotated[
        list[str] | None,
        typer.Option(
            help="A node's listening sockets: what `rke2-flows listeners` wrote, or `ss -H -tulpn`; the "
            "file's name begins with the node's. May be given again.",
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
) -> None:
    """Judge the traffic against the port and role table: what is outside of it, what is blocked, what is
    exposed.
    """
    from analyzer import console
    from analyzer.analysis import Analysis
    from analyzer.cluster import load_cluster
    from analyzer.listeners import read_listeners
    from analyzer.spec import load_spec
    from analyzer.store import read_inputs

    rules = load_spec(spec)
    nodes = load_cluster(cluster) if cluster else None
    with console.reading(inputs) as progress:
        rows = read_inputs(inputs, progress=progress)
    nodes = nodes or _inferred(rows)
    sockets = [read_listeners(path, nodes=nodes.members) for path in listeners or ()]
    analysis = Analysis.of(rows, nodes, rules, sockets)
    gate = _gate(analysis, fail_on, baseline, accept)
    texts = {"json": json_file, "html": html, "template": accept_template, "junit": junit, "sarif": sarif}
    if "-" not in (output, *texts.values()):
        _print_analysis(analysis, gate)
    _write_tables(analysis, rows.interval, output, plots)
    for name, path in texts.items():
        if path:
            _write_text(_text_of(name, analysis, gate), path)
    raise typer.Exit(NOTHING if gate.failing.empty else FOUND)


def _gate(analysis: Analysis, fail_on: FailOn, baseline: str | None, accept: str | None) -> Gate:
    """Read before anything is printed, so that a fault in them leaves no half of an answer."""
    from datetime import UTC, datetime

    from analyzer.accept import load_accepted
    from analyzer.documents import read_document
    from analyzer.gate import decide

    known = read_document(baseline) if baseline else None
    accepted = load_accepted(accept) if accept else ()
    today = datetime.now(UTC).date()
    return decide(analysis.findings, today, fail_on=fail_on.value, baseline=known, accepted=accepted)


def _text_of(name: str, analysis: Analysis, gate: Gate) -> str:
    """One of the documents that `check` writes."""
    from analyzer import accept, page, pipeline
    from analyzer.report import document

    makers = {
        "json": lambda: json.dumps(document(analysis), indent=1) + "\n",
        "html": lambda: page.render(analysis),
        "template": lambda: accept.template(gate.of("open").to_dict("records")),
        "junit": lambda: pipeline.junit(gate, document(analysis)),
        "sarif": lambda: json.dumps(pipeline.sarif(gate, document(analysis)), indent=1) + "\n",
    }
    return makers[name]()


def _write_text(text: str, path: str) -> None:
    from analyzer import console
    from analyzer.store import replacing

    if path == "-":
        print(text, end="")
        return
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    console.note(f"wrote {path}")


def _inferred(rows: OneWay) -> Cluster:
    """The cluster that the flows show, and a line that says so."""
    from analyzer import console
    from analyzer.infer import infer

    found = infer(rows)
    console.say(f"no --cluster: inferred from the flows, {found}")
    console.note("`rke2-flows cluster infer` writes it as a file to check and keep")
    return found.to_cluster()


def _print_analysis(analysis: Analysis, gate: Gate) -> None:
    from analyzer import console
    from analyzer.listeners import crossing
    from analyzer.report import summary

    for line in _head(analysis):
        console.say(line)
    console.say()
    console.show(_counts(summary(analysis)["verdicts"], "verdict"), "Flows between nodes, by verdict")
    console.say()
    console.show(_counts(summary(analysis)["scopes"], "scope"), "All flows, by scope")
    console.say()
    if analysis.sockets:
        console.show(crossing(analysis, analysis.sockets), "Documented, listening, observed")
        console.say()
    _print_diagnoses(analysis)
    _print_findings(gate)


def _print_diagnoses(analysis: Analysis) -> None:
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


def _head(analysis: Analysis) -> list[str]:
    """What the verdicts rest on: specification, cluster, coverage."""
    spec, cluster, ledger = analysis.spec, analysis.cluster, analysis.ledger
    roles = ", ".join(f"{n} {role}" for role, n in cluster.to_frame().value_counts("role").items())
    frames = int(ledger["frames"].sum())
    not_ip, lost = int(ledger["not_ip"].sum()), int(ledger["lost"].sum())
    gaps = frames - int(ledger["flow"].sum()) - not_ip
    sources = f"{len(ledger)} source{'' if len(ledger) == 1 else 's'}"
    window = f"{_time(ledger['start'].min())} to {_time(ledger['end'].max())}" if frames else "empty"
    stated = [
        f"coverage       {sources}, {frames} frames ({not_ip} not IP, {gaps} undecoded, {lost} lost)",
        f"               {window}",
    ]
    unknown = ["coverage       not known: a flow table without a ledger (only Parquet keeps it)"]
    return [
        f"specification  {spec.name}: {spec.title} ({len(spec.rules)} rules)",
        f"cluster        {cluster.name} ({roles})",
        *(unknown if ledger.empty else stated),
    ]


def _time(value: Any) -> str:
    import pandas as pd

    return "unknown" if pd.isna(value) else value.strftime("%Y-%m-%d %H:%M:%S UTC")


def _write_tables(analysis: Analysis, interval: int, output: str | None, plots: Path | None) -> None:
    from analyzer import console
    from analyzer.store import write_flows

    written: list[str] = []
    if output:
        write_flows(analysis.flows, output, analysis.coverage, interval)
        written.append(output)
    if plots:
        written += _write_plots(analysis, plots)
    for path in written:
        if path != "-":
            console.note(f"wrote {path}")


def _write_plots(analysis: Analysis, folder: Path) -> list[str]:
    from analyzer.plots import save_plots

    try:
        paths = save_plots(
            analysis.flows, folder, spec=analysis.spec, cluster=analysis.cluster, window=_window(analysis)
        )
    except OSError as error:
        raise CaptureError(f"cannot be written: {error.strerror or error}", where=str(folder)) from error
    return [str(path) for path in paths]


def _window(analysis: Analysis) -> str:
    ledger = analysis.ledger
    return f"{_time(ledger['start'].min())} to {_time(ledger['end'].max())}"


# ---- explain, cut ----

FindingId = Annotated[
    str,
    typer.Option(
        "--finding", "-f", help="The finding's id, as `rke2-flows check` shows it.", show_default=False
    ),
]


@app.command(
    epilog="""Examples:

    rke2-flows explain captures/ --cluster nodes.yaml --finding violation-12ae446dc0

    rke2-flows explain flows/ alerts.pcapng -c nodes.yaml -f foreign-tunnel-c86293a133

Needs tshark. Exit status: 2 the input or the command line is at fault, 3 tshark or pyshark is missing."""
)
def explain(
    inputs: Inputs, finding: FindingId, cluster: MaybeClusterFile = None, spec: SpecName = "rke2-canal"
) -> None:
    """What a finding's packets carried: TLS names and certificates, HTTP requests, DNS names, banners, what
    was inside a tunnel.

    Of each flow the first 200 frames either way are looked at, and dissected those that can say something.
    """
    from analyzer import console
    from analyzer.explain import explain as explained

    analysis = _analysis_of(inputs, cluster, spec)
    with console.reading(inputs) as progress, console.counting("dissecting") as dissected:
        found = explained(inputs, analysis, finding, progress=progress, dissected=dissected)
    for line in found.head():
        console.say(line)
    if not found.facts.empty:
        console.say()
        console.show(found.facts)


@app.command(
    epilog="""Examples:

    rke2-flows cut captures/ --cluster nodes.yaml --finding violation-12ae446dc0 -o small.pcapng

    rke2-flows cut captures/ -c nodes.yaml -f scan-059793e0f9 -o - | tshark -r -"""
)
def cut(
    inputs: Inputs,
    finding: FindingId,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Write the pcapng here; - is standard output.")
    ],
    cluster: MaybeClusterFile = None,
    spec: SpecName = "rke2-canal",
) -> None:
    """A finding's own packets as a small capture: all of its frames, from all captures, in order of time."""
    from analyzer import console
    from analyzer.cut import cut as cut_out
    from analyzer.store import replacing

    if output == "-" and sys.stdout.isatty():
        raise typer.BadParameter("a capture is no text: write it to a file, or into a pipe")
    analysis = _analysis_of(inputs, cluster, spec)
    with console.reading(inputs) as progress:
        if output == "-":
            done = cut_out(inputs, analysis, finding, sys.stdout.buffer, progress=progress)
        else:
            with replacing(output) as beside, beside.open("wb") as stream:
                done = cut_out(inputs, analysis, finding, stream, progress=progress)
    frames = ", ".join(f"{count} from {name}" for name, count in done.by_source().items())
    console.note(f"wrote {len(done)} frames to {output}: {frames}")


def _analysis_of(inputs: list[str], cluster: str | None, spec: str) -> Analysis:
    """What `check` would find. Standard output stays free for what was asked for."""
    from analyzer import console
    from analyzer.analysis import Analysis
    from analyzer.cluster import load_cluster
    from analyzer.infer import infer
    from analyzer.spec import load_spec
    from analyzer.store import read_inputs

    rules = load_spec(spec)
    nodes = load_cluster(cluster) if cluster else None
    with console.reading(inputs) as progress:
        rows = read_inputs(inputs, progress=progress)
    if nodes is None:
        found = infer(rows)
        console.note(f"no --cluster: inferred from the flows, {found}")
        nodes = found.to_cluster()
    return Analysis.of(rows, nodes, rules)


# ---- diff ----

_PAIR_VIEW = ("change", "client", "server", "protocol", "port", "verdict",
"packets_old", "packets_new", "times")  # fmt: skip


@app.command(
    epilog="""Examples:

    rke2-flows diff last-week.json today.json

    rke2-flows diff last-week/ today/ --cluster nodes.yaml --fail-on medium

Grown is what has more than --growth times as many packets or bytes a second, at least 100 packets and 1 a
second, or 100 kB and 1 kB a second. What a shorter run may have missed is not said to be gone.

Exit status: 0 no new finding at or above --fail-on, 1 new ones at or above it, 2 the input or the command
line is at fault."""
)
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help=_RUN_HELP, show_default=False)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The same of the later run.", show_default=False)],
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", "-c", help="Cluster file, where OLD or NEW is no JSON document.", show_default=False
        ),
    ] = None,
    spec: SpecName = "rke2-canal",
    growth: Annotated[float, typer.Option(help="How many times as much is grown.", min=1.0)] = 2.0,
    json_file: Annotated[
        str | None,
        typer.Option("--json", help="Write the changes here; - is standard output.", show_default=False),
    ] = None,
    fail_on: FailAt = FailOn.high,
) -> None:
    """What changed between two runs: pairs and ports that are new, gone or grown, findings new and fixed."""
    from analyzer.change import compare
    from analyzer.gate import at_or_above

    change = compare(_run_of(old, cluster, spec), _run_of(new, cluster, spec), growth)
    if json_file != "-":
        _print_change(change)
    if json_file:
        _write_text(json.dumps(change.to_dict(), indent=1) + "\n", json_file)
    worse = change.findings[change.findings["change"] != "fixed"]
    raise typer.Exit(FOUND if at_or_above(worse["severity"], fail_on.value).any() else NOTHING)


def _run_of(path: str, cluster: str | None, spec: str) -> Document:
    """A JSON document, or captures and flow files judged now."""
    from analyzer import console
    from analyzer.analysis import Analysis
    from analyzer.cluster import load_cluster
    from analyzer.documents import Document, read_document
    from analyzer.report import document
    from analyzer.spec import load_spec
    from analyzer.store import read_inputs

    if path.endswith(".json"):
        return read_document(path)
    if cluster is None:
        raise typer.BadParameter(f"{path!r} is no JSON document: to judge it, --cluster is needed")
    nodes, rules = load_cluster(cluster), load_spec(spec)
    with console.reading([path]) as progress:
        rows = read_inputs([path], progress=progress)
    return Document.of(path, document(Analysis.of(rows, nodes, rules)))


def _told_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """How many times as much the grown are, and a word for the port of those with many."""
    from analyzer.pairs import ICMP

    factors = pairs[["packets_factor", "bytes_factor"]].max(axis=1).map("{:.1f}".format)
    many = (pairs["port"] == 0) & ~pairs["protocol"].isin(ICMP)
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


# ---- matrix ----


@app.command(
    epilog="""Examples:

    rke2-flows matrix captures/ --cluster nodes.yaml --by rule

    rke2-flows matrix captures/ --cluster nodes.yaml --by node -o nodes.svg"""
)
def matrix(
    inputs: Inputs,
    cluster: ClusterFile,
    by: Annotated[By, typer.Option(help="role × role for each rule, node × node, or rule × pair.")] = By.role,
    measure: Annotated[Measure, typer.Option(help="What the cells count.")] = Measure.flows,
    spec: SpecName = "rke2-canal",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw it: .png, .svg or .pdf.", show_default=False)
    ] = None,
) -> None:
    """Who talks to whom: a matrix by role, node or rule, as text or as a picture."""
    from analyzer import console
    from analyzer.analysis import Analysis
    from analyzer.cluster import load_cluster
    from analyzer.spec import load_spec
    from analyzer.store import read_inputs

    nodes, rules = load_cluster(cluster), load_spec(spec)
    with console.reading(inputs) as progress:
        analysis = Analysis.of(read_inputs(inputs, progress=progress), nodes, rules)
    table = analysis.matrix(by.value)
    if output is None:
        columns = [
            name for name in table.columns if name == measure.value or name.startswith(f"{measure.value}_")
        ]
        console.show(table[columns].reset_index())
        return
    _draw(table, by.value, measure.value, output, analysis)
    console.note(f"wrote {output}")


def _draw(table: pd.DataFrame, by: str, measure: str, output: Path, analysis: Analysis) -> None:
    from analyzer.plots import PLOTS, save_figure
    from analyzer.store import replacing

    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise CaptureError(
            f"no picture format has the suffix {output.suffix!r}",
            where=str(output),
            next_step="use .png, .svg or .pdf",
        )
    figure = PLOTS[by][1](table, measure=measure, spec=analysis.spec, window=_window(analysis))
    with replacing(output) as beside:
        save_figure(figure, beside, output.suffix)


# ---- spec ----


@spec_app.command("list")
def spec_list() -> None:
    """The shipped specifications."""
    import pandas as pd

    from analyzer import console
    from analyzer.spec import load_spec, shipped_specs

    specs = [load_spec(name) for name in shipped_specs()]
    console.show(pd.DataFrame([{"name": s.name, "rules": len(s.rules), "title": s.title} for s in specs]))


@spec_app.command("show", epilog="Example:\n\n    rke2-flows spec show rke2-canal --yaml > site.yaml")
def spec_show(
    name: Annotated[
        str,
        typer.Argument(help="A shipped specification's name, or a YAML file.", autocompletion=_spec_names),
    ],
    yaml: Annotated[bool, typer.Option("--yaml", help="Print it as a YAML file of its own.")] = False,
) -> None:
    """The rules of a specification, and where each is written."""
    from analyzer import console
    from analyzer.spec import load_spec

    spec = load_spec(name)
    if yaml:
        print(spec.to_yaml(), end="")
        return
    console.say(f"{spec.name}: {spec.title}")
    console.say(f"source: {spec.source}")
    console.show(spec.to_frame())


@spec_app.command(
    "import", epilog="Example:\n\n    rke2-flows spec import traffic-flow-details.md -o ours.yaml"
)
def spec_import(
    table: Annotated[
        str,
        typer.Argument(
            help="Markdown tables of Port, Protocol, Source, Destination, Description; - is standard input."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the YAML here instead of to standard output.", show_default=False
        ),
    ] = None,
) -> None:
    """Markdown tables to a specification file."""
    from analyzer.spec import parse_table
    from analyzer.store import replacing

    text = parse_table(_read_text(table), where=table).to_yaml()
    if output is None:
        print(text, end="")
        return
    with replacing(output) as beside:
        beside.write_text(text, encoding="utf-8")


def _read_text(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise CaptureError(f"cannot be read: {reason}", where=path) from error


# ---- cluster ----


@cluster_app.command("show")
def cluster_show(file: Annotated[str, typer.Argument(help="Cluster file; - is standard input.")]) -> None:
    """The nodes, roles and addresses of a cluster file."""
    from analyzer import console
    from analyzer.cluster import load_cluster

    cluster = load_cluster(file)
    pods, services = (", ".join(cidrs) or "-" for cidrs in (cluster.pod_cidrs, cluster.service_cidrs))
    console.say(f"{cluster.name}: pods {pods}, services {services}")
    console.show(cluster.to_frame())


@cluster_app.command(
    "from-kubectl",
    epilog="Example:\n\n    kubectl get nodes -o json | rke2-flows cluster from-kubectl - > nodes.yaml",
)
def cluster_from_kubectl(
    file: Annotated[str, typer.Argument(help="Output of `kubectl get nodes -o json`; - is standard input.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the YAML here instead of to standard output.", show_default=False
        ),
    ] = None,
) -> None:
    """The JSON of `kubectl get nodes -o json` to a cluster file to check and keep."""
    from analyzer.cluster import load_cluster
    from analyzer.store import replacing

    text = load_cluster(file).to_yaml()
    if output is None:
        print(text, end="")
        return
    with replacing(output) as beside:
        beside.write_text(text, encoding="utf-8")


@cluster_app.command("infer", epilog="Example:\n\n    rke2-flows cluster infer captures/ -o nodes.yaml")
def cluster_infer(
    inputs: Inputs,
    name: Annotated[str, typer.Option(help="How the cluster is to be called.")] = "inferred",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the YAML here instead of to standard output.", show_default=False
        ),
    ] = None,
) -> None:
    """Nodes, roles, tunnel ends and pod ranges as the flows show them: a cluster file to check, with why and
    how sure beside each entry.
    """
    from analyzer import console
    from analyzer.infer import infer
    from analyzer.store import read_inputs, replacing

    with console.reading(inputs) as progress:
        found = infer(read_inputs(inputs, progress=progress))
    if output is None:
        print(found.to_yaml(name), end="")
    else:
        with replacing(output) as beside:
            beside.write_text(found.to_yaml(name), encoding="utf-8")
    console.note(str(found))


# ---- listeners ----


@app.command(
    epilog="""Examples:

    rke2-flows listeners -o server-1.json

    rke2-flows check captures/ --cluster nodes.yaml --listeners server-1.json --listeners agent-1.ss"""
)
def listeners(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the JSON here instead of to standard output.", show_default=False
        ),
    ] = None,
    node: Annotated[
        str, typer.Option(help="How this node is called in the cluster file.", show_default="the host name")
    ] = "",
) -> None:
    """What this node listens on, and which process does, as JSON for `check --listeners`; root sees all."""
    from analyzer.listeners import listening_here
    from analyzer.store import replacing

    text = listening_here(node).to_json()
    if output is None:
        print(text, end="")
        return
    with replacing(output) as beside:
        beside.write_text(text, encoding="utf-8")


# ---- capture ----


@app.command(
    epilog="""Examples:

    rke2-flows capture --cluster nodes.yaml -o flows/

    rke2-flows capture -i eth0 -i eth1 --duration 60s -o flows/

    rke2-flows capture --cluster nodes.yaml --pcap alerts.pcapng -o flows/ && rke2-flows check flows/
    --cluster nodes.yaml

Ctrl-C or SIGTERM ends it, and nothing stays on the interfaces; SIGHUP reads the cluster and specification
files again."""
)
def capture(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Write a Parquet part for each interval into this folder.")
    ],
    interface: Annotated[
        list[str] | None,
        typer.Option(
            "--interface",
            "-i",
            help="Watch this interface; may be given again. By default those with this node's addresses.",
            show_default=False,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            "-c",
            help="Cluster file. With it the kernel judges, and what is outside is told at once.",
            show_default=False,
        ),
    ] = None,
    spec: SpecName = "rke2-canal",
    duration: Annotated[
        str | None, typer.Option(help="End after so long, e.g. 60s.", show_default="until stopped")
    ] = None,
    interval: Annotated[str, typer.Option(help="How long one part is.")] = "10s",
    pcap: Annotated[
        Path | None,
        typer.Option(help="Keep the first packet of each alert in this pcapng file.", show_default=False),
    ] = None,
    node: Annotated[
        str,
        typer.Option(
            help="How to call this node.", show_default="as the cluster file does, else the host name"
        ),
    ] = "",
    clsact: Annotated[
        bool,
        typer.Option(
            "--clsact",
            help="Attach by tc filters on clsact also where the kernel has tcx (Linux 6.6 and later).",
        ),
    ] = False,
    flows: Annotated[
        int,
        typer.Option(help="Rows that the kernel's table holds; about 400 bytes each.", min=1024, max=1 << 24),
    ] = 131072,
) -> None:
    """Record this node's flows with eBPF, and say at once what is outside the specification.

    Needs root, BCC and kernel headers: `rke2-flows doctor` says what is missing. Alerts go to standard
    output.
    """
    from analyzer.capture.live import Collector, Order
    from analyzer.cluster import load_cluster
    from analyzer.screen import ended, say_all, shown
    from analyzer.spec import load_spec

    order = Order(
        output,
        tuple(interface or ()),
        cluster,
        spec,
        node,
        _nanoseconds(interval),
        _nanoseconds(duration),
        flows,
        pcap,
        tcx=not clsact,
    )
    with shown(load_cluster(cluster) if cluster else None, load_spec(spec)) as teller:
        collector = Collector(order, teller)
        _obey_signals(collector)
        collector.run()
    say_all(ended(collector))
    if cluster:
        say_all([f"judge it with: rke2-flows check {output} --cluster {cluster}"])


def _obey_signals(collector: Collector) -> None:
    """Every end is an orderly one, also when who reads the output leaves: nothing must stay attached."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: collector.stop.set())
    signal.signal(signal.SIGHUP, lambda *_: collector.reload.set())
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


# ---- doctor ----


@app.command(
    epilog="""Examples:

    rke2-flows doctor --cluster nodes.yaml

    rke2-flows doctor --clean

Exit status: 3 where live capture cannot run here."""
)
def doctor(
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", "-c", help="Cluster file: says which node this is.", show_default=False),
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what a killed capture left on the interfaces.")
    ] = False,
) -> None:
    """Say whether live capture can run on this machine, and what to do where it cannot."""
    import pandas as pd

    from analyzer import console
    from analyzer.cluster import load_cluster
    from analyzer.doctor import examine

    if clean:
        _clean()
        return
    checks = list(examine(load_cluster(cluster) if cluster else None))
    rows = [{"check": c.name, "state": c.state, "found": c.found, "what to do": c.next_step} for c in checks]
    console.show(pd.DataFrame(rows))
    raise typer.Exit(UNABLE if any(check.state == "missing" for check in checks) else NOTHING)


def _clean() -> None:
    from analyzer import console
    from analyzer.capture import _tc

    removed = _tc.remove_leftovers()
    for left in removed:
        console.say(f"removed {left.name} from {left.interface} ({left.direction})")
    if not removed:
        console.say("nothing to remove: no killed capture left anything")


# ---- the edge ----


def main() -> NoReturn:
    """Runs the command line and leaves the process with its exit status.

    A reader of the output that leaves early (`| head`) ends the process by SIGPIPE, as it ends others: no
    exit status of ours could be told from a finding.
    """
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if sys.stderr is None:  # closed from the start: what is said must not go into the data
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for as long as the process
        os.dup2(sys.stderr.fileno(), 2)
    sys.exit(_run())


def _run() -> int:
    try:
        app(standalone_mode=True)
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else NOTHING
        return _interrupted() if status == INTERRUPTED else _flush(status)
    except AnalyzerError as error:
        print(f"rke2-flows: {_printable(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return _interrupted()
    except OSError as error:
        return _unwritable(error)
    except MemoryError:
        print("rke2-flows: out of memory (read fewer captures at once)", file=sys.stderr)
        return INPUT_FAULT
    return NOTHING


def _interrupted() -> int:
    print("rke2-flows: interrupted", file=sys.stderr)
    return INTERRUPTED


def _printable(text: str) -> str:
    return "".join(ch if ch.isprintable() else f"\\x{ord(ch):02x}" for ch in text)


def _flush(status: int) -> int:
    if sys.stdout is None:  # closed from the start
        return status
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unwritable(error)
    return status


def _unwritable(error: OSError) -> int:
    """Files are opened and written where it can be said which one; what is left is standard output, but for
    what nobody foresaw.
    """
    if error.filename is not None:
        print(f"rke2-flows: {_printable(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return INPUT_FAULT
    print(f"rke2-flows: the output cannot be written: {error.strerror or error}", file=sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at exit
    return INPUT_FAULT
