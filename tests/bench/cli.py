"""Arguments → generate, compare, print. Rule: the only file here that prints."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench import compare as cmp
from bench import document, provenance, sections
from bench.document import LIVE_MARKS
from bench.generate import SPREADS, Settings, write_file
from bench.population import NODES, SERVICES, default_mix, parse_mix
from bench.tools import PRODUCT, program

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(
    help="Large captures, and rke2-flows timed on them beside other flow meters.", no_args_is_help=True
)
err = Console(stderr=True, highlight=False)

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
TSHARK, TSHARK_FRAMES = "tshark conv,tcp", 200_000

Frames = Annotated[int, typer.Option(min=2, help="frames in the capture")]
Flows = Annotated[int, typer.Option(min=1, help="client/server flows")]
Size = Annotated[int, typer.Option("--bytes", min=1, max=9000, help="bytes of a data frame")]
Spread = Annotated[float, typer.Option(min=0, max=0.9, help="lengths stray by this share of --bytes")]
Snaplen = Annotated[int, typer.Option(min=0, help="cut frames after so many bytes; 0 keeps them whole")]
Seed = Annotated[int, typer.Option(min=0, help="the same seed and settings give the same bytes")]
Ipv6 = Annotated[float, typer.Option(min=0, max=1, help="share of the flows on IPv6")]
Nodes = Annotated[int, typer.Option(min=NODES[0], max=NODES[1], help="nodes of the cluster")]
Weights = Annotated[str, typer.Option(help=f"frames in a flow: {' or '.join(SPREADS)}")]
Mix = Annotated[str, typer.Option(help=f"shares of the flows, as NAME=SHARE,...; of {', '.join(SERVICES)}")]
Where = Annotated[Path | None, typer.Option("--in", help="folder for captures (2-4 GB)")]
Rounds = Annotated[int, typer.Option(min=1, help="turns of every tool")]
Nfstream = Annotated[str, typer.Option(help="a Python that has NFStream; without it NFStream is left out")]
Quick = Annotated[bool, typer.Option("--quick", help="sizes that tell nothing, in seconds")]
Docs = Annotated[Path, typer.Option(help="folder of the documents that are written")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="write every number to this file too")]


def _settings(mix: str, **values: Any) -> Settings:
    try:
        return replace(Settings(**values), mix=parse_mix(mix) if mix else default_mix())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--mix") from None


def _write(path: Path, settings: Settings) -> dict[str, Any]:
    try:
        return write_file(path, settings).summary()
    except ValueError as error:
        path.unlink(missing_ok=True)
        raise typer.BadParameter(str(error)) from None


@contextmanager
def _workplace(where: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rke2-flows-bench-", dir=where) as folder:
        yield Path(folder)


@app.command()
def generate(
    out: Annotated[Path, typer.Argument(help="the pcap file to write")],
    *,
    frames: Frames = 4_000_000,
    flows: Flows = 50_000,
    size: Size = 450,
    spread: Spread = 0.0,
    snaplen: Snaplen = 0,
    seed: Seed = 1,
    ipv6: Ipv6 = 0.1,
    nodes: Nodes = 100,
    weights: Weights = "uniform",
    mix: Mix = "",
) -> None:
    """Write a capture of a busy cluster; print as JSON what is in it."""
    settings = _settings(
        mix,
        frames=frames,
        flows=flows,
        size=size,
        spread=spread,
        snaplen=snaplen,
        seed=seed,
        ipv6=ipv6,
        nodes=nodes,
        weights=weights,
    )
    print(json.dumps(_write(out, settings), indent=2))


@app.command()
def run(
    *,
    frames: Frames = 4_000_000,
    flows: Flows = 50_000,
    size: Size = 450,
    spread: Spread = 0.0,
    snaplen: Snaplen = 0,
    seed: Seed = 1,
    ipv6: Ipv6 = 0.1,
    weights: Weights = "uniform",
    mix: Mix = "",
    rounds: Rounds = 3,
    where: Where = None,
    tshark: Annotated[bool, typer.Option("--tshark", help="time tshark too; small captures only")] = False,
    at_most: Annotated[
        float | None,
        typer.Option(help=f"exit with 1 if {PRODUCT} needs more than this share of the fastest peer's time"),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Time all tools on one capture, in turns, and set what they counted beside the truth."""
    settings = _settings(
        mix,
        frames=frames,
        flows=flows,
        size=size,
        spread=spread,
        snaplen=snaplen,
        seed=seed,
        ipv6=ipv6,
        weights=weights,
    )
    if tshark and frames > TSHARK_FRAMES:
        raise typer.BadParameter(f"tshark needs minutes beyond {TSHARK_FRAMES} frames", param_hint="--tshark")
    names = [*sections.WHOLE, *([TSHARK] if tshark else [])]
    with _workplace(where) as folder:
        err.print(f"generating {frames} frames", markup=False)
        truth = _write(folder / "capture.pcap", settings)
        entries = cmp.compare(folder / "capture.pcap", names, rounds, _progress)
    document = {
        "truth": truth,
        "rounds": rounds,
        "times": cmp.table(entries, frames),
        "counts": cmp.counts(entries, truth),
        "left_out": [entry.missing for entry in entries if entry.missing],
    }
    _show_run(document)
    _save(json_file, document)
    hold(entries, at_most)


@app.command("all")
def everything(
    *,
    docs: Docs = DOCS,
    where: Where = None,
    nfstream: Nfstream = "",
    quick: Quick = False,
    only: Annotated[
        list[str] | None, typer.Option(help=f"one of {', '.join(sections.SECTIONS)}, live")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="keep what an unfinished run on this commit has")
    ] = False,
) -> None:
    """Measure everything and write benchmarks.md, its numbers (benchmarks.json) and pictures."""
    unknown = set(only or ()) - {*sections.SECTIONS, "live"}
    if unknown:
        raise typer.BadParameter(f"no section is called {min(unknown)!r}", param_hint="--only")
    unfinished = docs / "benchmarks.unfinished.json"
    numbers = _begun(unfinished, quick=quick, resume=resume)
    wanted = tuple(n for n in only or sections.SECTIONS if n != "live" and n not in numbers["sections"])
    sizes = sections.QUICK if quick else sections.FULL
    for name, told in sections.measure(wanted, sizes, where, _progress, nfstream):
        numbers["sections"][name] = told
        _save(unfinished, numbers)
    if "live" not in numbers and ("live" in only if only else not quick):
        numbers |= _live_numbers(where)
    _save(docs / "benchmarks.json", numbers)
    unfinished.unlink(missing_ok=True)
    write(docs=docs)
    for goal, value in document.results(numbers):
        print("  ".join(cell for cell in document._goal_row(goal, value) if cell))


def _begun(unfinished: Path, *, quick: bool, resume: bool) -> dict[str, Any]:
    """The head of a run's numbers; with what is there already, where that is of this commit and asked for."""
    head = provenance.head(quick=quick)
    if resume and unfinished.exists():
        earlier: dict[str, Any] = json.loads(unfinished.read_text(encoding="utf-8"))
        if all(earlier[name] == head[name] for name in ("commit", "changes", "quick", "machine")):
            return earlier
        err.print("the unfinished run is of another state: begun anew", markup=False)
    return {**head, "sections": {}}


def _live_numbers(where: Path | None) -> dict[str, Any]:
    """The costs of live capture; nothing where this machine cannot capture."""
    asked = program(PRODUCT)
    if asked is None or subprocess.run([asked, "doctor"], capture_output=True, check=False).returncode:
        err.print("live capture is left out: `rke2-flows doctor` says why", markup=False)
        return {}
    from bench import live as lv

    with _workplace(where) as folder:
        return {"live": lv.measure(folder, 3, _progress)}


@app.command()
def write(*, docs: Docs = DOCS) -> None:
    """Write benchmarks.md and its pictures again from benchmarks.json."""
    from bench import charts

    page = docs / "benchmarks.md"
    numbers = json.loads((docs / "benchmarks.json").read_text(encoding="utf-8"))
    page.write_text(text_of(numbers, page), encoding="utf-8")
    charts.draw(numbers, docs)


def text_of(numbers: dict[str, Any], page: Path) -> str:
    """The page of these numbers; where they have none of live capture, what the page has of it stays."""
    earlier = document.live_of(page.read_text(encoding="utf-8")) if page.exists() else ""
    if "live" in numbers:
        from bench import live as lv

        earlier = lv.markdown(numbers["live"], numbers["date"])
    return document.markdown(numbers, earlier)


@app.command()
def scale(
    *,
    docs: Docs = DOCS,
    where: Where = None,
    quick: Quick = False,
    rows: Annotated[
        int, typer.Option(help="rows of the large store, about 15 bytes each; 0: 200 million")
    ] = 0,
) -> None:
    """What a large cluster's store costs: measure, predict, check, and write scale.md and scale.json."""
    from bench import model, scaling

    plan = scaling.QUICK if quick else scaling.FULL
    plan = replace(plan, rows=rows or plan.rows)
    with _workplace(where) as folder:
        numbers = provenance.head(quick=quick) | scaling.measure(folder, plan, _progress)
    _save(docs / "scale.json", numbers)
    (docs / "scale.md").write_text(model.markdown(numbers), encoding="utf-8")
    for told in model.predictions(numbers):
        print(
            f"{told.what}: {told.model:,.1f} by the model, {told.measured:,.1f} measured, {told.error:+.1%}"
        )


@app.command()
def memory(
    *,
    small: Annotated[int, typer.Option(min=2, help="frames of the smaller capture")] = 1_000_000,
    large: Annotated[int, typer.Option(min=2, help="frames of the larger one")] = 4_000_000,
    flows: Flows = 50_000,
    size: Size = 450,
    seed: Seed = 1,
    rounds: Rounds = 3,
    where: Where = None,
    json_file: JsonFile = None,
) -> None:
    """Peak memory of rke2-flows on two captures of the same flows and different length."""
    peaks: dict[int, list[float]] = {}
    for frames in (small, large):
        settings = Settings(frames=frames, flows=flows, size=size, seed=seed)
        with _workplace(where) as folder:
            _write(folder / "capture.pcap", settings)
            (entry,) = cmp.compare(folder / "capture.pcap", [PRODUCT], rounds, _progress)
        if entry.missing:
            err.print(entry.missing, markup=False)
            raise typer.Exit(3)
        peaks[frames] = [took.peak for took in entry.runs]
    growth = 100 * (max(peaks[large]) / max(peaks[small]) - 1)
    rows = [[f"{frames:,}", f"{min(peak):.1f}", f"{max(peak):.1f}"] for frames, peak in peaks.items()]
    _print_table("Peak resident memory, MB, mapped files included", ["frames", "least", "most"], rows)
    print(f"{small:,} to {large:,} frames of the same {flows:,} flows: peak changes by {growth:+.1f} %.")
    _save(json_file, {"flows": flows, "peak_mb": peaks, "growth_percent": growth})


@app.command()
def live(
    *,
    rounds: Rounds = 3,
    where: Where = None,
    json_file: JsonFile = None,
    into: Annotated[
        Path | None, typer.Option(help="write the result into this document, between its two marks")
    ] = None,
) -> None:
    """What a live capture costs in the kernel and in user space, and other programs beside it. Needs root."""
    from bench import live as lv

    with _workplace(where) as folder:
        document = lv.measure(folder, rounds, _progress)
    text = lv.markdown(document, datetime.now(UTC).date().isoformat())
    print(text)
    if into is not None:
        before, _, rest = into.read_text(encoding="utf-8").partition(LIVE_MARKS[0])
        _, _, after = rest.partition(LIVE_MARKS[1])
        into.write_text(f"{before}{LIVE_MARKS[0]}\n\n{text}\n{LIVE_MARKS[1]}{after}", encoding="utf-8")
    _save(json_file, document)


def _progress(line: str) -> None:
    err.print(line, markup=False)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


TIME_COLUMNS = {
    "tool": ("tool", "s"),
    "wall min s": ("wall_min", ".2f"),
    "wall median s": ("wall_median", ".2f"),
    "CPU median s": ("cpu_median", ".2f"),
    "peak MB": ("peak_mb", ".0f"),
    "frames/s": ("frames_per_second", ",.0f"),
    "of fastest peer": ("of_fastest_peer", ".2f"),
}
COUNT_COLUMNS = {
    "tool": ("tool", "s"),
    "frames": ("frames", ","),
    "IP bytes": ("ip_bytes", ","),
    "one-way flows": ("tuples", ","),
    "": ("note", "s"),
}
LEFT = ("tool", "")


def _show_run(document: dict[str, Any]) -> None:
    for title, columns, rows in (
        (f"Whole process, {document['rounds']} rounds, page cache warm", TIME_COLUMNS, document["times"]),
        ("Counted", COUNT_COLUMNS, document["counts"]),
    ):
        cells = [[_figure(row[key], form) for key, form in columns.values()] for row in rows]
        _print_table(title, list(columns), cells)
    for line in document["left_out"]:
        print(line)


def _pad(cell: str, width: int, head: str) -> str:
    return cell.ljust(width) if head in LEFT else cell.rjust(width)


def _print_table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    """A rich table on a terminal, plain columns elsewhere."""
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        print(title)
        for cells in (heads, *rows):
            padded = (_pad(cell, width, head) for cell, width, head in zip(cells, widths, heads, strict=True))
            print("  ".join(padded).rstrip())
        print()
        return
    grid = Table(title=title, title_justify="left")
    for head in heads:
        grid.add_column(head, justify="left" if head in LEFT else "right", overflow="fold")
    for cells in rows:
        grid.add_row(*cells)
    Console().print(grid)


def _save(path: Path | None, document: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(document, indent=2) + "\n")


def hold(entries: list[cmp.Entry], at_most: float | None) -> None:
    """Say the product's share of the fastest peer's median time; Exit 1 above ``at_most``, 3 if unknown."""
    peer = cmp.fastest_peer(entries)
    product = next(entry for entry in entries if entry.name == PRODUCT)
    if peer is None or product.missing:
        if at_most is not None:
            err.print(
                f"{PRODUCT} or every peer was left out: nothing to compare",
                markup=False,
            )
            raise typer.Exit(3)
        return
    share = product.wall() / peer.wall()
    print(f"{PRODUCT} takes {share:.2f} of the time of {peer.name}, the fastest peer here;")
    quickest, cpu = product.wall(min) / peer.wall(min), product.cpu() / peer.cpu()
    print(f"{quickest:.2f} by the quickest rounds, {cpu:.2f} by CPU.")
    if at_most is not None and share > at_most:
        raise typer.Exit(1)
