"""What this node listens on. Rule: looks at this machine, reads no traffic."""

from __future__ import annotations

from typing import Annotated

import typer

from analyzer.commands.options import JsonFile, name_of
from analyzer.commands.output import print_or_write

EPILOG = """Examples:

    rke2-flows listeners -o server-1.json

    rke2-flows check captures/ --cluster nodes.yaml --listeners server-1.json --listeners agent-1.ss"""


def listeners(
    output: JsonFile = None,
    node: Annotated[
        str, typer.Option(help="How this node is called in the cluster file.", show_default="the host name")
    ] = "",
) -> None:
    """What this node listens on, and which process does, as JSON for `check --listeners`; root sees all."""
    from analyzer.listeners import listening_here

    print_or_write(listening_here(name_of(node, "--node")).to_json(), output)
