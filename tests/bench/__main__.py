"""``python -m bench``. Rule: nothing but the call."""

from bench.cli import app

app(prog_name="bench")
