"""Rounds of whole processes, in turns. Rule: times and judges numbers; knows no tool by name.

Turns (A B C, A B C) spread a noisy machine's moods over all; the smallest wall time is the steadiest measure
of a program, the median says what a user sees.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.tools import TOOLS, Counted, Place, Tool, sink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LAUNCHER = Path(__file__).with_name("launch.py")


class RunError(Exception):
    """A compared program ended with an error; says which, its status and its last words."""


@dataclass(frozen=True)
class Took:
    """One whole process: seconds of wall and CPU (user + system), peak resident MB with mapped files."""

    wall: float
    cpu: float
    peak: float
    output: str


@dataclass
class Entry:
    """All runs of one tool; empty ``runs`` and a ``missing`` line where it could not be run."""

    name: str
    role: str
    runs: list[Took] = field(default_factory=list)
    counted: Counted = field(default_factory=Counted)
    missing: str = ""

    def wall(self, pick: Callable[[list[float]], float] = statistics.median) -> float:
        """Wall seconds, by default of the median round."""
        return pick([run.wall for run in self.runs])

    def cpu(self) -> float:
        """CPU seconds of the median round."""
        return statistics.median(run.cpu for run in self.runs)

    def peak(self) -> float:
        """Most memory of any round, MB."""
        return max(run.peak for run in self.runs)


def run_once(command: list[str], folder: Path) -> Took:
    """Run a program to its end. RunError where its exit status is not 0."""
    report, log = folder / "took", folder / "output"
    subprocess.run([sys.executable, "-I", "-S", str(LAUNCHER), str(report), str(log), *command], check=True)
    status, wall, user, system, peak = report.read_text().split()
    output = log.read_text(errors="replace")
    report.unlink()
    if int(status) != 0:
        # names, not places: this goes into the page
        words = (Path(word).name if word.startswith("/") else word for word in command)
        raise RunError(f"{' '.join(words)} ended with {status}: {' '.join(output.split())[-300:]}")
    return Took(float(wall), float(user) + float(system), int(peak) / 1024, output)


@dataclass
class Job:
    """One tool on one capture, and its runs."""

    tool: Tool
    capture: Path
    entry: Entry


def _turn(job: Job, port: int, nfstream: str) -> None:
    entry = job.entry
    folder, logs = job.capture.parent / "turn", job.capture.parent / "logs"
    folder.mkdir()
    logs.mkdir(exist_ok=True)
    try:
        place = Place(job.capture, folder, port, nfstream)
        command = job.tool.command(place)
        if command is None:
            entry.missing = f"{entry.name}: not available here, left out"
            return
        entry.runs.append(run_once(command, logs))
        if len(entry.runs) == 1:
            entry.counted = job.tool.counted(place, entry.runs[0].output)
    except RunError as error:
        entry.missing = f"{entry.name}: left out, {error}"
    finally:
        shutil.rmtree(folder)


def turns(jobs: list[Job], rounds: int, say: Callable[[str], None], nfstream: str = "") -> list[Entry]:
    """Run the jobs in turns, as often as there are rounds; ``say`` hears what goes on."""
    for capture in {job.capture for job in jobs}:
        _warm(capture)
    with sink() as port:
        for number in range(rounds):
            for job in jobs:
                if not job.entry.missing:
                    say(f"round {number + 1} of {rounds}: {job.entry.name}")
                    _turn(job, port, nfstream)
    return [job.entry for job in jobs]


def compare(
    capture: Path, names: list[str], rounds: int, say: Callable[[str], None], nfstream: str = ""
) -> list[Entry]:
    """Run the named tools in turns on a capture in a folder of its own."""
    jobs = [Job(TOOLS[name], capture, Entry(name, TOOLS[name].role)) for name in names]
    return turns(jobs, rounds, say, nfstream)


def _warm(capture: Path) -> None:
    with capture.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def fastest_peer(entries: list[Entry]) -> Entry | None:
    """The peer with the least median wall time, whatever it counted."""
    peers = [entry for entry in entries if entry.role == "peer" and entry.runs and not entry.missing]
    return min(peers, key=Entry.wall, default=None)


def table(entries: list[Entry], frames: int) -> list[dict[str, Any]]:
    """One row for each tool that ran: times, memory, speed, share of the fastest peer's median time."""
    peer = fastest_peer(entries)
    return [
        {
            "tool": entry.name,
            "role": entry.role,
            "wall_min": entry.wall(min),
            "wall_median": entry.wall(),
            "cpu_median": entry.cpu(),
            "peak_mb": entry.peak(),
            "frames_per_second": frames / entry.wall(),
            "of_fastest_peer": entry.wall() / peer.wall() if peer else None,
        }
        for entry in entries
        if entry.runs and not entry.missing
    ]


def counts(entries: list[Entry], truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each tool counted, the truth first."""
    true = Counted(truth["frames"], truth["ip_bytes"], truth["one_way_tuples"], "what the generator wrote")
    said = [(entry.name, entry.counted) for entry in entries if entry.runs and not entry.missing]
    return [{"tool": name, **asdict(counted)} for name, counted in [("ground truth", true), *said]]
