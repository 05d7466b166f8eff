"""The command line: its commands, and its edge. Rule: the only place that turns an AnalyzerError into a line
and an exit status; what a command does stands in its file of analyzer/commands.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.commands import check, cluster, diff, evidence, flows, listeners, live, matrix, spec, store
from analyzer.commands.options import EXIT_STATUS, INPUT_FAULT, NOTHING, group
from analyzer.errors import INTERRUPTED, AnalyzerError

if TYPE_CHECKING:
    from collections.abc import Callable

app = group(
    name="rke2-flows",
    pretty_exceptions_enable=False,
    help="What really flows between the nodes of an RKE2 cluster, and does it belong to the port and role "
    "table?",
    epilog=EXIT_STATUS,
)
_COMMANDS: tuple[tuple[Callable[..., None], str], ...] = (  # in the order of --help
    (flows.flows, flows.EPILOG),
    (check.check, check.EPILOG),
    (evidence.explain, evidence.EXPLAIN_EPILOG),
    (evidence.cut, evidence.CUT_EPILOG),
    (diff.diff, diff.EPILOG),
    (matrix.matrix, matrix.EPILOG),
    (listeners.listeners, listeners.EPILOG),
    (live.capture, live.CAPTURE_EPILOG),
    (live.doctor, live.DOCTOR_EPILOG),
)
for _command, _epilog in _COMMANDS:
    app.command(epilog=_epilog)(_command)
for _name, _group in (("spec", spec.app), ("cluster", cluster.app), ("store", store.app)):
    app.add_typer(_group, name=_name)


def _version(wanted: bool) -> None:
    if wanted:
        from analyzer.version import analyzer_version

        print(f"rke2-flows {analyzer_version()}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""


def run() -> int:
    """Runs what the words of the command line ask for; the exit status. KeyboardInterrupt: Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without our arrows must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(standalone_mode=True)
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else NOTHING
        if status == INTERRUPTED:
            raise KeyboardInterrupt from None
        return _flush(status)
    except AnalyzerError as error:
        print(f"rke2-flows: {_printable(str(error))}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        return _unwritable(error)
    except MemoryError:
        print("rke2-flows: out of memory (read fewer captures at once)", file=sys.stderr)
        return INPUT_FAULT
    return NOTHING


def _printable(text: str) -> str:
    return "".join(ch if ch.isprintable() else f"\\x{ord(ch):02x}" for ch in text)


def _flush(status: int) -> int:
    if sys.stdout is None:  # closed from the start
        return status
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unwritable(error)
    return status


def _unwritable(error: OSError) -> int:
    """Files are opened and written where it can be said which one; what is left is standard output, but for
    what nobody foresaw.
    """
    if error.filename is not None:
        print(f"rke2-flows: {_printable(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return INPUT_FAULT
    print(f"rke2-flows: the output cannot be written: {error.strerror or error}", file=sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at exit
    return INPUT_FAULT
