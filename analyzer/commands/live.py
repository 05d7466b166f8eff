"""Live capture and whether this machine can do it. Rule: the only commands that touch the kernel."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.commands.options import NOTHING, UNABLE, SpecName, name_of, nanoseconds

if TYPE_CHECKING:
    from analyzer.capture.live import Collector


CAPTURE_EPILOG = """Examples:

    rke2-flows capture --cluster nodes.yaml -o flows/

    rke2-flows capture -i eth0 -i eth1 --duration 60s -o flows/

    rke2-flows capture --cluster nodes.yaml --pcap alerts.pcapng -o flows/ && rke2-flows check flows/
    --cluster nodes.yaml

Ctrl-C or SIGTERM ends it, and nothing stays on the interfaces; SIGHUP reads the cluster and specification
files again."""


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
        name_of(node, "--node"),
        nanoseconds(interval, "--interval"),
        nanoseconds(duration, "--duration"),
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
        words = ["rke2-flows", "check", str(output), "--cluster", str(cluster)]
        say_all([f"judge it with: {shlex.join(words)}"])


def _obey_signals(collector: Collector) -> None:
    """Every end is an orderly one, also when who reads the output leaves: nothing must stay attached."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: collector.stop.set())
    signal.signal(signal.SIGHUP, lambda *_: collector.reload.set())
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


DOCTOR_EPILOG = """Examples:

    rke2-flows doctor --cluster nodes.yaml

    rke2-flows doctor --clean

Exit status: 3 where live capture cannot run here."""


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
