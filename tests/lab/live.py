"""The lab watched live. Rule: one `rke2-flows capture` in each node's namespace, from before the first packet
to after the last; judges nothing.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import yaml

from lab import plan
from lab.recordings import Recording, capture

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lab.cluster import Lab
    from lab.processes import Child
    from lab.truth import Truth

READY_SECONDS = 90.0
END_SECONDS = 30.0


def command(folder: Path, *words: str, interval: str = "2s") -> list[str]:
    """What starts a collector on a lab node."""
    return [
        sys.executable,
        "-m",
        "analyzer",
        "capture",
        "-i",
        plan.UPLINK,
        "--interval",
        interval,
        "-o",
        str(folder),
        *words,
    ]


def write_cluster(folder: Path) -> Path:
    """The lab's cluster file."""
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(plan.cluster(), sort_keys=False), encoding="utf-8")
    return file


@contextmanager
def watch(
    lab: Lab, folder: Path, nodes: Sequence[str] = tuple(plan.NODES), *words: str
) -> Iterator[dict[str, Child]]:
    """Collectors on these nodes for the length of the block; parts go to ``folder/NODE``, what it says to
    ``folder/NODE.log``.

    Raises LabError where one did not start, or did not end with status 0.
    """
    cluster = write_cluster(folder)
    running = {
        node: lab.children.start(
            f"{node}-live", lab.namespaces[node], command(folder / node, "--cluster", str(cluster), *words)
        )
        for node in nodes
    }
    for child in running.values():
        child.wait_for(partial(_captures, child), "capturing", READY_SECONDS)
    yield running
    for child in running.values():
        child.process.terminate()
    for node, child in running.items():
        status = child.process.wait(END_SECONDS)
        (folder / f"{node}.log").write_text(child.said(), encoding="utf-8")
        if status != 0:
            raise child.fault(f"ended with status {status}")


def _captures(child: Child) -> bool:
    return "capturing on" in child.said()


def joint(recording: Recording, folder: Path, *, with_tcpdump: bool = False) -> Truth:
    """Lets a recording's scenarios happen with a collector on every node, and beside it tcpdump, if wanted,
    whose files come to lie in ``folder/tcpdump``. Returns what happened.
    """
    from lab.cluster import Lab

    with Lab(recording.variant) as lab:
        lab.start()
        lab.prepare(*recording.scenarios)
        files, live = folder / "tcpdump", folder / "live"
        for made in (files, live):
            made.mkdir(parents=True, exist_ok=True)
        watched = (
            Recording("", "", (), nodes=recording.nodes) if with_tcpdump else Recording("", "", (), nodes=())
        )
        with capture(lab, watched, files), watch(lab, live, recording.nodes):
            truth = lab.run(*recording.scenarios)
            lab.settle()
            lab.silence()
    return truth.seen_by(recording.nodes)
