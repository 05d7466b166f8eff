"""What `make bench` measures, a section each. Rule: makes captures, runs what is compared, returns numbers;
no text for people, no judgement.

A section is independent of the others and removes what it made, so that a run can be taken up where it ended.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import compare as cmp
from bench.generate import Settings, write_file
from bench.population import parse_mix
from bench.spoofed import write_spoofed
from bench.tools import PRODUCT, READER, READER_ALL, THREADS, TOOLS, has_threads, program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Numbers = dict[str, Any]

WHOLE = (
    *(PRODUCT, *THREADS.values()),
    *("nfpcapd", "softflowd", "softflowd -v 9 -m 1M", "argus", "floor", "read (dd)"),
)
SLOW = (PRODUCT, "nfpcapd", "tshark conv,tcp", "NFStream")
ALONE = (READER, "floor")
TESTS = Path(__file__).resolve().parent.parent
#: suffix → the program that packs to standard output, and the tool that unpacks
PACKERS = {"gz": (["gzip", "-c"], "zcat"), "zst": (["zstd", "-q", "-c"], "zstdcat")}
# three servers have not ports enough for a million flows: here agents and those outside ask
MANY_FLOWS = parse_mix("apiserver=50,supervisor=20,nodeport=20,nodeport-udp=10")


def script(name: str, *arguments: str) -> list[str]:
    """The call of a module here that is a program of its own."""
    return ["env", f"PYTHONPATH={TESTS}", sys.executable, "-m", f"bench.{name}", *arguments]


@dataclass(frozen=True)
class Sizes:
    """How large everything is. `flows` of Settings are client/server flows, two one-way flows each."""

    rounds: int
    m4: Settings
    m8: Settings
    slow: Settings
    frames: tuple[int, ...]
    frames_of: Settings
    flows: tuple[int, ...]
    flows_of: Settings
    spoofed: int
    packed: tuple[tuple[str, Settings], ...]
    judged: int


_PACKED = Settings(frames=8_000_000, flows=200_000, size=450, snaplen=96)
FULL = Sizes(
    rounds=5,
    m4=Settings(frames=4_000_000, flows=50_000, size=450),
    m8=Settings(frames=8_000_000, flows=200_000, size=450, snaplen=96),
    slow=Settings(frames=200_000, flows=10_000, size=450),
    frames=(1_000_000, 4_000_000, 16_000_000, 64_000_000),
    frames_of=Settings(flows=50_000, size=450, snaplen=96),
    flows=(50_000, 200_000, 1_000_000, 2_000_000),
    flows_of=Settings(frames=4_000_000, size=450, snaplen=96, mix=MANY_FLOWS),
    spoofed=20_000_000,
    packed=(("gz", _PACKED), ("zst", _PACKED), ("zst", replace(_PACKED, frames=32_000_000))),
    judged=10_000_000,
)
_SMALL = Settings(frames=2_000, flows=100, size=450)
_CUT = replace(_SMALL, snaplen=96)
QUICK = Sizes(
    rounds=1,
    m4=_SMALL,
    m8=replace(_CUT, frames=4_000, flows=200),
    slow=_SMALL,
    frames=(1_000, 10_000),
    frames_of=_CUT,
    flows=(100, 1_000),
    flows_of=replace(_CUT, frames=2_000, mix=MANY_FLOWS),
    spoofed=2_000,
    packed=(("gz", _CUT), ("zst", _CUT), ("zst", replace(_CUT, frames=4_000))),
    judged=2_000,
)


@dataclass(frozen=True)
class Run:
    """What every section is given: an empty folder, the sizes, who hears of progress, NFStream's Python."""

    folder: Path
    sizes: Sizes
    say: Callable[[str], None]
    nfstream: str = ""

    def compare(self, capture: Path, names: tuple[str, ...], rounds: int) -> list[cmp.Entry]:
        """Tools in turns on one capture."""
        return cmp.compare(capture, list(names), rounds, self.say, self.nfstream)


def _beside(run: Run, settings: Settings, names: tuple[str, ...], rounds: int) -> Numbers:
    truth = write_file(run.folder / "capture.pcap", settings).summary()
    entries = run.compare(run.folder / "capture.pcap", names, rounds)
    return _compared(entries, truth, rounds)


def _compared(entries: list[cmp.Entry], truth: Numbers, rounds: int) -> Numbers:
    return {
        "truth": truth,
        "rounds": rounds,
        "times": cmp.table(entries, truth["frames"]),
        "counts": cmp.counts(entries, truth),
        "left_out": [entry.missing for entry in entries if entry.missing],
    }


def _with_reader(run: Run, settings: Settings) -> Numbers:
    told = _beside(run, settings, WHOLE, run.sizes.rounds)
    alone = run.compare(run.folder / "capture.pcap", ALONE, run.sizes.rounds + 2)
    return {**told, "walk": {entry.name: _within(entry) for entry in alone if entry.runs}}


def _within(entry: cmp.Entry) -> float:
    """The median of what it timed itself, without its start."""
    return statistics.median(float(json.loads(took.output)["seconds"]) for took in entry.runs)


def m4(run: Run) -> Numbers:
    """All tools, and the reader alone, on whole frames."""
    return _with_reader(run, run.sizes.m4)


def m8(run: Run) -> Numbers:
    """The same on cut frames of more flows."""
    return _with_reader(run, run.sizes.m8)


def slow(run: Run) -> Numbers:
    """Those that take minutes for the others' captures, once, on a small one."""
    return _beside(run, run.sizes.slow, SLOW, 1)


def _job(run: Run, name: str, capture: Path, label: str = "") -> cmp.Job:
    return cmp.Job(TOOLS[name], run.folder / capture, cmp.Entry(label or name, TOOLS[name].role))


def _row(entry: cmp.Entry) -> Numbers:
    """Figures of one job; only why it is missing, where it is."""
    if entry.missing:
        return {"missing": entry.missing}
    figures = {"wall_min": entry.wall(min), "wall_median": entry.wall(), "cpu_median": entry.cpu()}
    peaks = {"peak_mb": entry.peak(), "peak_mb_least": min(took.peak for took in entry.runs)}
    return {**figures, **peaks, "counted": vars(entry.counted)}


def _one_thread() -> str:
    return THREADS[1] if has_threads() else PRODUCT


def frames(run: Run) -> Numbers:
    """One thread on captures of the same flows and ever more frames, in turns."""
    name, captures = _one_thread(), {}
    for number in run.sizes.frames:
        run.say(f"generating {number:,} frames")
        settings = replace(run.sizes.frames_of, frames=number)
        captures[number] = write_file(run.folder / f"{number}.pcap", settings).summary()
    os.sync()
    jobs = [_job(run, name, Path(f"{number}.pcap"), f"{number:,} frames") for number in captures]
    entries = cmp.turns(jobs, run.sizes.rounds, run.say)
    rows = [{"truth": truth, **_row(entry)} for truth, entry in zip(captures.values(), entries, strict=True)]
    return {"tool": name, "rounds": run.sizes.rounds, "rows": rows}


def flows(run: Run) -> Numbers:
    """Peak memory over captures of as many frames and ever more flows."""
    name, rows = _one_thread(), []
    for number in run.sizes.flows:
        run.say(f"generating {number:,} flows")
        settings = replace(run.sizes.flows_of, flows=number)
        truth = write_file(run.folder / "capture.pcap", settings).summary()
        (entry,) = cmp.turns([_job(run, name, Path("capture.pcap"), f"{number:,} flows")], 1, run.say)
        rows.append({"truth": truth, **_row(entry)})
    return {"tool": name, "frames": run.sizes.flows_of.frames, "rows": rows}


def spoofed(run: Run) -> Numbers:
    """Every frame a new flow."""
    run.say(f"generating {run.sizes.spoofed:,} spoofed frames")
    truth = write_spoofed(run.folder / "capture.pcap", run.sizes.spoofed)
    (entry,) = cmp.turns([_job(run, "rke2-flows in 16 GiB", Path("capture.pcap"))], 1, run.say)
    return {"truth": truth, **_row(entry), "folded": _folded(entry)}


def _folded(entry: cmp.Entry) -> int:
    note = entry.counted.note.partition("; ")[2]
    return int(note.split()[0]) if note else 0


def packed(run: Run) -> Numbers:
    """gzip and zstd input beside the programs that only unpack it, and the reader alone."""
    rows = [_packed(run, suffix, settings) for suffix, settings in run.sizes.packed]
    return {"rounds": run.sizes.rounds, "rows": rows}


def _packed(run: Run, suffix: str, settings: Settings) -> Numbers:
    command, unpacker = PACKERS[suffix]
    told: Numbers = {"suffix": suffix, "unpacker": unpacker}
    if program(command[0]) is None:
        return {**told, "missing": f"{command[0]}: not available here, left out"}
    plain, file = run.folder / "plain.pcap", run.folder / f"capture.pcap.{suffix}"
    truth = write_file(plain, settings).summary()
    with file.open("wb") as out:
        subprocess.run([*command, str(plain)], stdout=out, check=True)
    plain.unlink()
    jobs = [_job(run, name, file) for name in (PRODUCT, READER_ALL, unpacker)]
    product, reader, other = cmp.turns(jobs, run.sizes.rounds, run.say)
    size = file.stat().st_size
    file.unlink()
    rows = {"product": _row(product), "other": _row(other)}
    return {**told, "truth": truth, "file_bytes": size, **rows, "reader_median": _within(reader)}


def judging(run: Run) -> Numbers:
    """Verdicts, findings and matrices on many rows."""
    run.say(f"judging {run.sizes.judged:,} rows")
    took = cmp.run_once(script("judging", str(run.sizes.judged), str(run.folder)), run.folder)
    told: Numbers = json.loads(took.output.splitlines()[-1])
    return told


SECTIONS: dict[str, Callable[[Run], Numbers]] = {
    section.__name__: section for section in (m4, m8, slow, packed, frames, flows, spoofed, judging)
}


def measure(
    names: tuple[str, ...],
    sizes: Sizes,
    where: Path | None,
    say: Callable[[str], None],
    nfstream: str = "",
) -> Iterator[tuple[str, Numbers]]:
    """Run sections one after the other, each in a folder of its own that is gone afterwards."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="rke2-flows-bench-", dir=where) as folder:
            yield name, SECTIONS[name](Run(Path(folder), sizes, say, nfstream))
