"""A folder of parts, kept for long. Rule: the only commands that delete what was captured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyzer.commands.options import age, group, nanoseconds, refused
from analyzer.commands.output import time_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analyzer.flow_store import Batch, Stored, Work

_SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "B": 1}

app = group(help="A folder of parts that `capture` writes: what is in it, compact it, delete what is old.")

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder that `capture -o` writes.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]


@app.command("show", epilog="Example:\n\n    rke2-flows store show flows/")
def store_show(folder: Folder) -> None:
    """The parts of each node and date, what their ledgers add up to, and when nothing was recorded."""
    from analyzer import console
    from analyzer.flow_store import gaps, stored

    parts, work = stored(folder)
    days: dict[tuple[str, str], list[Stored]] = {}
    for part in parts:
        days.setdefault((part.node, part.date if part.start else "unknown"), []).append(part)
    _show([_day(*key, days[key]) for key in sorted(days)])
    quiet = [
        {"node": node, "from": _time(start), "to": _time(end), "seconds": round((end - start) / 1e9)}
        for node, windows in gaps(parts).items()
        for start, end in windows
    ]
    _show(quiet, "nothing recorded")
    if not parts:
        console.note("no parts")
    _note_rest(work, "waiting to be deleted: `rke2-flows store compact` does it")


@app.command(
    "compact",
    epilog="""Examples:

    rke2-flows store compact flows/ --dry-run

    rke2-flows store compact flows/ --interval 1h --older-than 2d""",
)
def store_compact(
    folder: Folder,
    interval: Annotated[
        str | None,
        typer.Option(
            help="Make longer intervals of those that divide it, e.g. 1h.", show_default="as they are"
        ),
    ] = None,
    older_than: Annotated[str, typer.Option(help="Leave what ended less long ago.")] = "1h",
    target_size: Annotated[str, typer.Option(help="Put no more together than this.")] = "64MB",
    dry_run: DryRun = False,
) -> None:
    """Put the small parts of a node and date together, into DIR/date=…/node=…/.

    Packets, bytes, ledgers and flows stay the same, also for who reads meanwhile; it may be stopped at any
    time.
    """
    from analyzer import console
    from analyzer.flow_store import Rules, compact

    rules = Rules(nanoseconds(interval, "--interval"), age(older_than, "--older-than"), _size(target_size))
    work = compact(folder, rules, time.time_ns(), dry_run=dry_run)
    _show([_batch(folder, batch) for batch in work.batches])
    _note_rest(work, _done("deleted", dry_run))
    if not work.batches:
        console.note("nothing to compact")


@app.command("prune", epilog="Example:\n\n    rke2-flows store prune flows/ --keep 30d --dry-run")
def store_prune(
    folder: Folder,
    keep: Annotated[
        str, typer.Option(help="Delete the parts that ended longer ago, e.g. 30d.", show_default=False)
    ],
    dry_run: DryRun = False,
) -> None:
    """Delete the parts that ended longer ago than that. Captures and flow tables stay.

    It asks nothing; --dry-run says what it would delete.
    """
    from analyzer import console
    from analyzer.flow_store import prune

    work = prune(folder, age(keep, "--keep"), time.time_ns(), dry_run=dry_run)
    rows = [
        {
            "part": str(part.path.relative_to(folder)),
            "node": part.node,
            "to": _time(part.end),
            "bytes": part.size,
        }
        for part in work.old
    ]
    _show(rows)
    _note_rest(work, _done("deleted", dry_run))
    size = sum(part.size for part in work.old)
    console.note(f"{_done('deleted', dry_run)}: {len(work.old)} parts, {size} bytes")


def _show(rows: Sequence[dict[str, Any]], title: str = "") -> None:
    import pandas as pd

    from analyzer import console
    from analyzer.rows import as_text

    texts = [{key: as_text(v) if isinstance(v, str) else v for key, v in row.items()} for row in rows]
    if rows:
        console.show(pd.DataFrame(texts), title=title)


def _done(verb: str, dry_run: bool) -> str:
    return f"to be {verb}" if dry_run else verb


def _day(node: str, date: str, parts: Sequence[Stored]) -> dict[str, Any]:
    ledgers = [ledger for part in parts for ledger in part.coverage]
    return {
        "node": node,
        "date": date,
        "parts": len(parts),
        "records": sum(part.records for part in parts),
        "bytes": sum(part.size for part in parts),
        "from": _time(min((part.start for part in parts if part.start), default=0)),
        "to": _time(max(part.end for part in parts)),
        **{name: sum(getattr(ledger, name) for ledger in ledgers) for name in ("frames", "flow", "lost")},
    }


def _batch(folder: Path, batch: Batch) -> dict[str, Any]:
    return {
        "node": batch.parts[0].node,
        "date": batch.parts[0].date,
        "parts": len(batch.parts),
        "bytes": sum(part.size for part in batch.parts),
        "becomes": str(batch.path.relative_to(folder)) if batch.path else "one part",
        "new_bytes": batch.size or "",
    }


def _note_rest(work: Work, word: str) -> None:
    """What is to say beside the table, on standard error."""
    from analyzer import console

    for path in work.finished:
        console.note(f"{path}: compacted by a run that was stopped; {word}")
    for path in work.leftovers:
        console.note(f"{path}: left by a writer that was killed; {word}")
    for path, why in sorted(work.left.items()):
        console.note(f"{path}: {why}; left as it is")


def _time(ns: int) -> str:
    import pandas as pd

    return time_text(pd.Timestamp(ns, tz="UTC") if ns else pd.NaT)


def _size(text: str) -> int:
    unit = next((unit for unit in _SIZES if text.endswith(unit)), "")
    number = text.removesuffix(unit)
    if not number.isdecimal() or not int(number):
        raise refused(f"{text!r} is no size: write 64MB or 1GiB", "--target-size")
    return int(number) * _SIZES.get(unit, 1)
