"""Who talks to whom, as text or as a picture. Rule: one run, counted; no finding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.commands.chosen import wanted
from analyzer.commands.judged import analysis_of, overview_of
from analyzer.commands.options import (
    By,
    Inputs,
    MaybeClusterFile,
    Measure,
    OfNodes,
    OfPorts,
    Scheduler,
    Since,
    SpecName,
    Threads,
    Until,
    refuse_threads,
)
from analyzer.commands.output import is_chosen, window_text
from analyzer.errors import CaptureError

if TYPE_CHECKING:
    import pandas as pd

    from analyzer.report import Told


EPILOG = """Examples:

    rke2-flows matrix captures/ --cluster nodes.yaml --by rule

    rke2-flows matrix captures/ --cluster nodes.yaml --by node -o nodes.svg

    rke2-flows matrix flows/ --cluster nodes.yaml --since 2026-11-24 --until 2026-11-25"""


def matrix(
    inputs: Inputs,
    cluster: MaybeClusterFile = None,
    by: Annotated[By, typer.Option(help="role × role for each rule, node × node, or rule × pair.")] = By.role,
    measure: Annotated[Measure, typer.Option(help="What the cells count.")] = Measure.flows,
    spec: SpecName = "rke2-canal",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw it: .png, .svg or .pdf.", show_default=False)
    ] = None,
    since: Since = None,
    until: Until = None,
    node: OfNodes = None,
    port: OfPorts = None,
    scheduler: Scheduler = None,
    threads: Threads = None,
) -> None:
    """Who talks to whom: a matrix by role, node or rule, as text or as a picture."""
    from analyzer import console

    asked = wanted(since, until, node, port)
    if output is not None:
        _check_suffix(output)
    analysis: Told
    if scheduler:
        refuse_threads(threads)
        analysis = overview_of(inputs, cluster, spec, scheduler, wanted=asked)
    else:
        analysis, _ = analysis_of(inputs, cluster, spec, threads=threads, wanted=asked)
    table = analysis.matrix(by.value)
    if output is None:
        columns = [
            name for name in table.columns if name == measure.value or name.startswith(f"{measure.value}_")
        ]
        console.show(table[columns].reset_index())
        if is_chosen(analysis):
            console.note("of chosen flows only")
        return
    _draw(table, by.value, measure.value, output, analysis)
    console.note(f"wrote {output}")


def _check_suffix(output: Path) -> None:
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise CaptureError(
            f"no picture format has the suffix {output.suffix!r}",
            where=str(output),
            next_step="use .png, .svg or .pdf",
        )


def _draw(table: pd.DataFrame, by: str, measure: str, output: Path, analysis: Told) -> None:
    from analyzer.plots import PLOTS, save_figure
    from analyzer.store import replacing

    figure = PLOTS[by][1](table, measure=measure, spec=analysis.spec, window=window_text(analysis))
    with replacing(output) as beside:
        save_figure(figure, beside, output.suffix)
