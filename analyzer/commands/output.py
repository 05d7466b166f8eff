"""What commands write, and how they say when. Rule: text → standard output or a file; knows no command."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from analyzer.report import Told


def in_utf8() -> None:
    """What follows on standard output is a document: it is written as a file is, whatever the locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def refuse_inside(inputs: Sequence[str], output: str | None) -> None:
    """Before the work: no table stands among what it is made of."""
    if not output or output == "-" or not any(map(os.path.isdir, inputs)):
        return
    from analyzer.addresses import is_address
    from analyzer.store import keep_apart

    if not is_address(output):
        keep_apart(inputs, output)


def reader_stays(tell: Callable[[], None]) -> bool:
    """Tells, on standard output; whether its reader heard all. One that leaves early (`| head`) ends nothing
    yet: the files that were asked for too are still to be written.
    """
    if not hasattr(signal, "SIGPIPE"):
        tell()
        return True
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        tell()
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich leaves by the latter
        _let_go(2)
        return False
    finally:
        signal.signal(signal.SIGPIPE, before)
    return True


def _let_go(descriptor: int) -> None:
    """What nobody reads any more goes nowhere: standard error may be the same pipe (`2>&1 | head`)."""
    asked = select.poll()
    asked.register(descriptor, 0)
    if any(event & select.POLLERR for _, event in asked.poll(0)):
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)


def end_unheard() -> None:
    """As the signal ends who writes for a reader that has left."""
    signal.raise_signal(signal.SIGPIPE)


def write_text(text: str, path: str) -> None:
    """Into a file, which is there whole or not at all, and a note of it; `-` is standard output."""
    from analyzer import console

    if path == "-":
        in_utf8()
        print(text, end="")
        return
    replace_text(text, path)
    console.note(f"wrote {path}")


def print_or_write(text: str, path: Path | None) -> None:
    """To standard output where no file is named."""
    if path is None:
        in_utf8()
        print(text, end="")
    else:
        replace_text(text, path)


def replace_text(text: str, path: str | Path) -> None:
    """The file is there whole or, where it cannot be written, as it was."""
    from analyzer.store import replacing

    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def time_text(value: Any) -> str:
    """A time to the second; `unknown` for NaT."""
    import pandas as pd

    return "unknown" if pd.isna(value) else value.strftime("%Y-%m-%d %H:%M:%S UTC")


def is_chosen(analysis: Told) -> bool:
    """Whether the inputs hold other flows too, which were not asked for."""
    return bool(analysis.ledger["not_chosen"].sum())


def window_text(analysis: Told) -> str:
    """From the first packet of all sources to the last, and whether that is about some flows only."""
    ledger = analysis.ledger
    only = ", chosen flows only" if is_chosen(analysis) else ""
    return f"{time_text(ledger['start'].min())} to {time_text(ledger['end'].max())}{only}"
