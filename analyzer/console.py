"""Tables and lines for people. Rule: text out of tables; knows the terminal, not what a number means.

Data goes to standard output: rich tables on a terminal, plain columns in a pipe. All else goes to standard
error. What comes from packets and files is printed as text, never as markup or as a control sequence.
rich is imported where it draws: a table that goes into a file does not wait for it.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.cards import is_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from rich.console import Console

    from analyzer.capture.streams import Progress

#: a look for a word, wherever it stands in a table
STYLES = {
    "critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim",
    "allowed": "green", "wrong-pair": "red", "wrong-protocol": "red", "unlisted": "red", "not-judged": "dim",
    "refused": "yellow", "unreachable": "yellow", "unanswered": "yellow",
    "ok": "green", "missing": "red", "limited": "yellow", "note": "dim",
}  # fmt: skip
_SENTENCE, _NARROWEST = 30, 12  # cells: what is wider than the first may be folded, down to the second
BAR_FROM = 32 << 20  # bytes of input; less is read before a bar could be seen


@cache
def out() -> Console:
    """Standard output."""
    from rich.console import Console  # noqa: PLC0415  see above

    return Console(highlight=False, soft_wrap=True)


@cache
def err() -> Console:
    """Standard error."""
    from rich.console import Console  # noqa: PLC0415  see above

    return Console(stderr=True, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """The text without control characters, which could change what a terminal shows."""
    return "".join(ch if ch.isprintable() else f"\\x{ord(ch):02x}" for ch in text)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None or is_missing(value):
        return ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    if isinstance(value, dict):
        return ", ".join(f"{number} {name}" for name, number in value.items())
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return printable(str(value))


def note(text: str) -> None:
    """A line on standard error."""
    print(printable(text), file=sys.stderr)


def show(table: pd.DataFrame, title: str = "") -> None:
    """A table on standard output; numbers to the right."""
    from pandas.api.types import is_numeric_dtype  # noqa: PLC0415  pandas takes long to load

    numeric = [is_numeric_dtype(table[name]) for name in table.columns]
    rows = [[cell(value) for value in row] for row in table.itertuples(index=False, name=None)]
    if out().is_terminal:
        _show_rich(table, rows, numeric, title)
    else:
        _show_plain([str(name) for name in table.columns], rows, numeric, title)


def _show_rich(table: pd.DataFrame, rows: list[list[str]], numeric: Sequence[bool], title: str) -> None:
    """Sentences are folded to the terminal's width. Names, ids and numbers are not, since half of one is
    another one: where there is no room for them, lines are longer than the terminal is wide.
    """
    from rich.cells import cell_len  # noqa: PLC0415  see above
    from rich.table import Table  # noqa: PLC0415  see above
    from rich.text import Text  # noqa: PLC0415

    shown = Table(
        title=Text(title, "bold") if title else None,
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    least = 2 * (len(numeric) - 1)
    for name, right, *cells in zip(table.columns, numeric, *rows, strict=True):
        width = max(map(cell_len, (str(name), *cells)))
        folds = width > _SENTENCE and any(" " in text for text in cells)
        least += _NARROWEST if folds else width
        shown.add_column(
            Text(str(name)), justify="right" if right else "left", overflow="fold", no_wrap=not folds
        )
    for row in rows:
        shown.add_row(*(Text(text, STYLES.get(text, "")) for text in row))
    shown.width = least if least > out().width else None
    out().print(shown, soft_wrap=False, crop=False)


def _show_plain(head: list[str], rows: list[list[str]], numeric: Sequence[bool], title: str) -> None:
    """Columns aligned by spaces, two between; an empty cell is a `-`, so that the columns can be counted."""
    lines = [head, *([text or "-" for text in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    if title:
        print(f"# {title}")
    for line in lines:
        cells = [
            t.rjust(w) if right else t.ljust(w) for t, w, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(cells).rstrip())


def say(text: str = "", style: str = "") -> None:
    """A line on standard output."""
    from rich.text import Text  # noqa: PLC0415  see above

    out().print(Text(printable(text), style))


@contextmanager
def reading(paths: Sequence[str | Path]) -> Iterator[Progress]:
    """A progress bar over the bytes of the inputs: on a terminal, and where there is enough to read."""
    total = sum(size for size in map(_size, paths))
    if total < BAR_FROM or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress  # noqa: PLC0415  see above

    columns = (progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn())
    left = progress.TimeRemainingColumn()
    with progress.Progress("reading", *columns, left, console=err(), transient=True) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over a number of things, told as (how many are done, how many there are): on a
    terminal, from the first one on.
    """
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich import progress  # noqa: PLC0415  see above

    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
    with progress.Progress(what, *columns, console=err(), transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _size(path: str | Path) -> int:
    try:
        files = list(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)]
        return sum(f.stat().st_size for f in files if f.is_file())
    except OSError:
        return 0
