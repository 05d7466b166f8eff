"""``python -m bench``. Rule: nothing but the call, which cleans up behind it also when it is ended."""

import signal
import sys

from bench.cli import app

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
app(prog_name="bench")
