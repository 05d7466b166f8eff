"""Captures to flow tables. Rule: nothing is judged here."""

from __future__ import annotations

from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyzer.capture.reading import threads_of
from analyzer.commands.chosen import Wanted, wanted
from analyzer.commands.early import begun
from analyzer.commands.judged import rows_by_inferred, rows_of
from analyzer.commands.options import (
    Captures,
    OfNodes,
    OfPorts,
    Output,
    Scheduler,
    Since,
    SpecName,
    Threads,
    Until,
    nanoseconds,
    refuse_threads,
)
from analyzer.commands.output import in_utf8, refuse_inside
from analyzer.errors import CaptureError, ClusterError

if TYPE_CHECKING:
    from analyzer.choice import Choice

_FLOW_VIEW = ("client", "client_port", "server", "server_port", "protocol", "tunnel", "vni", "start",
"packets_out", "packets_in",
              "bytes_out", "bytes_in", "outcome", "direction_by")  # fmt: skip


EPILOG = """Examples:

    rke2-flows flows server-1.pcap

    rke2-flows flows captures/ --interval 60s -o flows.parquet

    rke2-flows flows s3://captures/2026-11-24/ --scheduler processes -o flows/

    rke2-flows flows flows/ --since 2026-11-24T10:00 --until 2026-11-24T11:00 --port 6443

    tcpdump -i eth0 -s 160 -w - | rke2-flows flows -"""


def flows(
    captures: Captures,
    output: Output = None,
    interval: Annotated[
        str | None, typer.Option(help="One row for each flow and interval, e.g. 60s.", show_default=False)
    ] = None,
    spec: SpecName = "rke2-canal",
    since: Since = None,
    until: Until = None,
    node: OfNodes = None,
    port: OfPorts = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            "-c",
            help="Cluster file that --node's names stand in. Without it nodes are inferred from the flows.",
            show_default=False,
        ),
    ] = None,
    scheduler: Scheduler = None,
    threads: Threads = None,
) -> None:
    """Captures to a flow table: who talked to whom, on which port, how much, and was it answered.

    The specification only helps to tell client from server where no SYN was seen; nothing is judged.
    """
    refuse_inside(captures, output)
    asked, step = wanted(since, until, node, port), nanoseconds(interval, "--interval")
    if scheduler:
        refuse_threads(threads)
        _by_workers(captures, output, step, spec, scheduler, _choice(asked, cluster))
    else:
        _here(captures, output, step, spec, asked, cluster, threads)


def _here(
    captures: list[str],
    output: str | None,
    step: int,
    spec: str,
    asked: Wanted,
    cluster: str | None,
    threads: int | None,
) -> None:
    with begun(captures, step, threads) as early:
        from analyzer import console
        from analyzer.clocks import compared
        from analyzer.columns import FlowColumns
        from analyzer.spec import load_spec, server_ports
        from analyzer.store import write_columns, writer_of

        ports = server_ports(load_spec(spec))
        writer = writer_of(output) if output else "analyzer.flows"
        if threads_of(threads) > 1:  # what writes is loaded while others read and pair, without the GIL
            Thread(target=import_module, args=[writer]).start()
        if asked.nodes and not cluster:
            whole = rows_by_inferred(captures, asked, threads, early, aside=True, interval=step)[0].settled()
        else:
            whole = rows_of(captures, threads, _choice(asked, cluster), step, early).settled()
        whole = compared(whole)
    table = FlowColumns(whole, ports)
    if output:
        if output == "-":
            in_utf8()
        write_columns(table, output, whole.coverage, whole.interval, threads)
    else:
        _show(table)
    _note_coverage(whole.coverage)
    if output and output != "-":
        console.note(f"wrote {len(table)} flows to {output}")


def _choice(asked: Wanted, cluster: str | None) -> Choice:
    if not asked.nodes:
        return asked.of(None)
    if not cluster:
        raise ClusterError(
            "workers cannot infer the nodes",
            where="--cluster",
            next_step="write a cluster file with `rke2-flows cluster infer` on some of the inputs",
        )
    from analyzer.cluster import load_cluster

    return asked.of(load_cluster(cluster))


def _show(table: Any) -> None:
    from analyzer import console
    from analyzer.flows import frame_of

    console.show(frame_of(table.between())[list(_FLOW_VIEW)])


def _by_workers(
    captures: list[str], folder: str | None, step: int, spec: str, scheduler: str, choice: Choice
) -> None:
    from analyzer import console, workers

    if folder is None:
        raise CaptureError(
            "workers write a folder of flow tables",
            where="--output",
            next_step="name an empty or a new folder with -o",
        )
    with console.counting("tasks") as progress:
        count, coverage = workers.flows(
            *captures,
            folder=folder,
            spec=spec,
            scheduler=scheduler,
            interval=step,
            choice=choice,
            progress=progress,
        )
    _note_coverage(coverage)
    console.note(f"wrote {count} flows to {folder}")


def _note_coverage(coverage: Any) -> None:
    """One line for each source on standard error: what was read and what was not."""
    from analyzer import console
    from analyzer.clocks import words
    from analyzer.rows import COUNTS

    for ledger in coverage:
        parts = [
            f"{getattr(ledger, name)} {name.replace('_', ' ')}"
            for name in COUNTS
            if name not in ("frames", "other_bytes") and getattr(ledger, name)
        ]
        damage = f"; damaged: {ledger.damage}" if ledger.damage else ""
        clock = f"; its clock is {words(ledger.clock_offset)} the others'" if ledger.clock_offset else ""
        console.note(
            f"{ledger.source}: {ledger.frames} frames{': ' if parts else ''}{', '.join(parts)}{damage}{clock}"
        )
