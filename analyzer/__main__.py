"""`rke2-flows` and `python -m analyzer`. Rule: what has to be done before the command line is loaded, which
takes as long as to read 30 MB: they are read meanwhile; and after it: Ctrl-C may come at any time.
"""

import gc
import os
import signal
import sys
from typing import NoReturn

from analyzer.errors import INTERRUPTED, LiveError

#: objects made before cycles among them are looked for: to load modules makes many, and nearly no cycle
_GARBAGE = 100_000
_AGAIN = "install it again: `pip install rke2-flows`, in a clone `pip install -e .`"


def main() -> NoReturn:
    """Runs the command line and leaves the process with its exit status.

    A reader of the output that leaves early (`| head`) ends the process by SIGPIPE, as it ends others: no
    exit status of ours could be told from a finding.
    """
    gc.set_threshold(_GARBAGE)
    # NumPy's linear algebra, of which nothing is used here, would start a thread for each core at its import
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if sys.stderr is None:  # closed from the start: what is said must not go into the data
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for as long as the process
        os.dup2(sys.stderr.fileno(), 2)
    status = _run()
    if status == INTERRUPTED:
        print("rke2-flows: interrupted", file=sys.stderr)
    gc.freeze()  # what is there goes with the process: looking for cycles in it takes as long as an import
    sys.exit(status)


def _run() -> int:
    try:
        from analyzer.commands.early import foreseen  # noqa: PLC0415

        with foreseen(sys.argv[1:]):
            from analyzer.cli import run  # noqa: PLC0415

            return run()
    except ImportError as error:  # of what is optional it was said where it is used
        print(f"rke2-flows: this installation is not whole: {error} ({_AGAIN})", file=sys.stderr)
        return LiveError.exit_status
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # asked for twice: it is about to be done
        # where it came amid an exec(), as dataclasses and named tuples are made, the interpreter holds it for
        # unhandled until the next one, and would end by the signal instead of with the status
        exec("")  # noqa: S102
        return INTERRUPTED


if __name__ == "__main__":
    main()
