"""Specifications: list, show, import. Rule: no traffic is read."""

from __future__ import annotations

from typing import Annotated

import typer

from analyzer.commands.options import YamlFile, group, spec_names
from analyzer.commands.output import print_or_write
from analyzer.errors import SpecError

app = group(help="Specifications: list, show, import.")


@app.command("list")
def spec_list() -> None:
    """The shipped specifications."""
    import pandas as pd

    from analyzer import console
    from analyzer.spec import load_spec, shipped_specs

    specs = [load_spec(name) for name in shipped_specs()]
    console.show(pd.DataFrame([{"name": s.name, "rules": len(s.rules), "title": s.title} for s in specs]))


@app.command("show", epilog="Example:\n\n    rke2-flows spec show rke2-canal --yaml > site.yaml")
def spec_show(
    name: Annotated[
        str,
        typer.Argument(help="A shipped specification's name, or a YAML file.", autocompletion=spec_names),
    ],
    yaml: Annotated[bool, typer.Option("--yaml", help="Print it as a YAML file of its own.")] = False,
) -> None:
    """The rules of a specification, and where each is written."""
    from analyzer import console
    from analyzer.spec import load_spec

    spec = load_spec(name)
    if yaml:
        print_or_write(spec.to_yaml(), None)
        return
    console.say(f"{spec.name}: {spec.title}")
    console.say(f"source: {spec.source}")
    console.show(spec.to_frame())


@app.command("import", epilog="Example:\n\n    rke2-flows spec import traffic-flow-details.md -o ours.yaml")
def spec_import(
    table: Annotated[
        str,
        typer.Argument(
            help="Markdown tables of Port, Protocol, Source, Destination, Description; - is standard input."
        ),
    ],
    output: YamlFile = None,
) -> None:
    """Markdown tables to a specification file."""
    from analyzer._yaml import read_text
    from analyzer.spec import parse_table

    print_or_write(parse_table(read_text(table, SpecError), where=table).to_yaml(), output)
