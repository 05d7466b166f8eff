"""A finding's own packets: what they carried, and the packets themselves. Rule: one finding of one run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from analyzer.commands.judged import analysis_of
from analyzer.commands.options import FindingId, MaybeClusterFile, Packets, SpecName

EXPLAIN_EPILOG = """Examples:

    rke2-flows explain captures/ --cluster nodes.yaml --finding violation-12ae446dc0

    rke2-flows explain flows/ alerts.pcapng -c nodes.yaml -f foreign-tunnel-c86293a133

Needs tshark. Exit status: 2 the input or the command line is at fault, 3 tshark or pyshark is missing."""


def explain(
    inputs: Packets, finding: FindingId, cluster: MaybeClusterFile = None, spec: SpecName = "rke2-canal"
) -> None:
    """What a finding's packets carried: TLS names and certificates, HTTP requests, DNS names, banners, what
    was inside a tunnel.

    Of each flow the first 200 frames either way are looked at, and dissected those that can say something.
    """
    from analyzer import console
    from analyzer.explain import explain as explained

    analysis, _ = analysis_of(inputs, cluster, spec, aside=True)
    with console.reading(inputs) as progress, console.counting("dissecting") as dissected:
        found = explained(inputs, analysis, finding, progress=progress, dissected=dissected)
    for line in found.head():
        console.say(line)
    if not found.facts.empty:
        console.say()
        console.show(found.facts)


CUT_EPILOG = """Examples:

    rke2-flows cut captures/ --cluster nodes.yaml --finding violation-12ae446dc0 -o small.pcapng

    rke2-flows cut captures/ -c nodes.yaml -f scan-059793e0f9 -o - | tshark -r -"""


def cut(
    inputs: Packets,
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
    from analyzer.cut import keep
    from analyzer.store import replacing

    if output == "-" and (sys.stdout is None or sys.stdout.isatty()):
        raise typer.BadParameter("a capture is no text: write it to a file, or into a pipe")
    keep(inputs, output)
    analysis, _ = analysis_of(inputs, cluster, spec, aside=True)
    with console.reading(inputs) as progress:
        if output == "-":
            done = cut_out(inputs, analysis, finding, sys.stdout.buffer, progress=progress)
        else:
            with replacing(output) as beside, beside.open("wb") as stream:
                done = cut_out(inputs, analysis, finding, stream, progress=progress)
    frames = ", ".join(f"{count} from {name}" for name, count in done.by_source().items())
    console.note(f"wrote {len(done)} frames to {output}: {frames}")
