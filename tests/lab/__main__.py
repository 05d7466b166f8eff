"""The command line of the lab. Rule: arguments in, library calls, words out."""

from __future__ import annotations

import shutil
import time
from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import Annotated

import typer

from lab import cluster, live, plan, recordings, scenarios
from lab.errors import LabError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="A small RKE2-like cluster in network namespaces."
)


@app.command("record")
def record_all(
    out: Annotated[Path, typer.Argument(help="The folder that gets one folder for each recording.")],
    recording: Annotated[list[str] | None, typer.Option(help="Only this one; may be given again.")] = None,
) -> None:
    """Record traffic with its truth."""
    unknown = sorted(set(recording or ()) - set(recordings.RECORDINGS))
    if unknown:
        raise LabError(f"no recording {', '.join(unknown)}; there are {', '.join(recordings.RECORDINGS)}")
    out.mkdir(parents=True, exist_ok=True)
    for name in recording or recordings.RECORDINGS:
        started = time.monotonic()
        folder = recordings.record(recordings.RECORDINGS[name], out)
        size = sum(path.stat().st_size for path in folder.iterdir())
        typer.echo(f"{folder}: {size / 1000:.0f} kB in {time.monotonic() - started:.0f} s")
    recordings.write_overview(out)


@app.command("live")
def watch_live(
    out: Annotated[Path, typer.Argument(help="The new folder that gets the parts of each node.")],
    recording: Annotated[str, typer.Option(help="What happens; one of the recordings' names.")] = "offences",
) -> None:
    """Let a recording's scenarios happen with a live capture on each node, and show what was told at once."""
    if recording not in recordings.RECORDINGS:
        raise LabError(f"no recording {recording}; there are {', '.join(recordings.RECORDINGS)}")
    if out.exists():
        shutil.rmtree(out / "live", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    typer.echo(f"starting the cluster, and a live capture on each of {len(plan.NODES)} nodes: half a minute")
    live.joint(recordings.RECORDINGS[recording], out)
    for node in plan.NODES:
        typer.echo(f"\n== {node} ==")
        typer.echo((out / "live" / f"{node}.log").read_text(encoding="utf-8").rstrip())


@app.command()
def up(variant: Annotated[str, typer.Option(help="vxlan or wireguard")] = "vxlan") -> None:
    """Start a cluster, say how to enter it, and hold it until Ctrl-C."""
    with cluster.Lab(variant) as lab:
        lab.start()
        lab.etcd.start()
        for name, namespace in lab.namespaces.items():
            typer.echo(f"{name:9} ip netns exec {namespace} bash")
        typer.echo("up; Ctrl-C takes it down")
        while True:  # pause() sleeps through a signal that comes just before it
            time.sleep(0.5)


@app.command("scenarios")
def list_scenarios() -> None:
    """What can happen in the lab, a line each."""
    for scenario in scenarios.TABLE:
        typer.echo(f"{scenario.name:36} {scenario.summary}")


@app.command()
def clean() -> None:
    """Remove what killed labs left behind; those of a running lab stay."""
    for path in cluster.clean():
        typer.echo(f"removed {path}")


def main() -> None:
    """Run the command line; a LabError becomes one line on stderr and status 1."""
    try:
        app()
    except LabError as error:
        typer.echo(f"lab: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
