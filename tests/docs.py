"""What the documents must say. Rule: makes text from the code.

`python tests/docs.py` writes it, test_docs.py compares it. README.md and docs/tutorial.md hold commands with
their real output, docs/commands.md the help of every command, docs/verdicts.md and docs/diagnosis.md the
columns of the tables, docs/document.md the fields of the JSON document. What the README
says of speed it takes from the numbers of the last benchmark.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.document import sentence
from conftest import PROJECT, RECORDED

from analyzer import diagnosis, findings, flows, pairs, verdict
from analyzer.documents import schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

README = PROJECT / "README.md"
DOCS = PROJECT / "docs"
TUTORIAL = DOCS / "tutorial.md"
COMMANDS = DOCS / "commands.md"
VERDICTS = DOCS / "verdicts.md"
DIAGNOSIS = DOCS / "diagnosis.md"
DOCUMENT = DOCS / "document.md"
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_BENCH = re.compile(r"(<!-- bench -->\n).*?(<!-- bench: end -->)", re.DOTALL)
_MARK = "<!-- columns -->\n"
_TABLES: dict[Path, dict[str, Mapping[str, str]]] = {
    VERDICTS: {
        "The flow table": flows.COLUMNS,
        "Added by `check`": verdict.COLUMNS,
        "Findings": findings.COLUMNS,
    },
    DIAGNOSIS: {"A cause": diagnosis.COLUMNS},
}
_MEANINGS = {"finding": findings.COLUMNS, "pair": pairs.COLUMNS, "diagnosis": diagnosis.COLUMNS}


def run(command: str, folder: Path) -> str:
    """What a command prints to standard output, run in a folder that has the project's captures."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "200",
    }
    done = subprocess.run(  # noqa: S602  the documents' own commands, as a reader types them
        command,
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def console_blocks(text: str) -> list[list[str]]:
    """The commands of each console block."""
    return [re.findall(r"^\$ (.*)$", block, re.MULTILINE) for block in _BLOCK.findall(text)]


def with_output(path: Path) -> str:
    """A document with the output of its commands as they print it now."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "captures").symlink_to(RECORDED)

        def filled(match: re.Match[str]) -> str:
            commands = re.findall(r"^\$ (.*)$", match[1], re.MULTILINE)
            return "```console\n" + "".join(f"$ {c}\n{run(c, folder)}" for c in commands) + "```"

        return _BENCH.sub(quoted, _BLOCK.sub(filled, path.read_text()))


def quoted(match: re.Match[str]) -> str:
    """What the last benchmark says, between the marks, in lines as long as the others."""
    numbers = json.loads((DOCS / "benchmarks.json").read_text(encoding="utf-8"))
    said = textwrap.fill(sentence(numbers), 125, break_on_hyphens=False, break_long_words=False)
    return f"{match[1]}{said}\n{match[2]}"


def commands(_path: Path) -> str:
    """The reference of the command line, as typer makes it from the code."""
    command = [sys.executable, "-m", "typer", "analyzer.cli", "utils", "docs", "--name", "rke2-flows"]
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.rstrip() + "\n"


def with_columns(path: Path) -> str:
    """A document that ends in tables of columns, with those that the code has."""
    parts = [path.read_text().partition(_MARK)[0], _MARK]
    for title, columns in _TABLES[path].items():
        rows = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in columns.items())
        parts.append(f"\n### {title}\n\n| column | unit and meaning |\n|---|---|\n{rows}")
    return "".join(parts)


def with_causes(path: Path) -> str:
    """The same, and before the columns every cause that a diagnosis can name."""
    rows = (
        f"| `{s.name}` | {s.cause}{f' ({s.issue})' if s.issue else ''} | {s.next_step} |\n"
        for s in diagnosis.SIGNATURES
    )
    head = "\n### The causes\n\n| name | what is probably wrong | what to do |\n|---|---|---|\n"
    return with_columns(path).replace(_MARK, _MARK + head + "".join(rows), 1)


# ---- the JSON document ----


def with_fields(path: Path) -> str:
    """A document that ends in the fields of the JSON document, as its schema has them."""
    whole = schema()
    objects = {"document": whole, **whole["$defs"]}
    sections = [section for name, shape in objects.items() for section in _sections(name, shape)]
    return path.read_text().partition(_MARK)[0] + _MARK + "".join(sections)


def _sections(name: str, shape: Mapping[str, Any]) -> Iterator[str]:
    """A table for an object, or for those in a list, then those of the objects that are written out in it."""
    shape = shape.get("items", shape)
    fields = shape.get("properties")
    if not fields:
        return
    rows = "".join(
        f"| `{field}` | {_type(inner, f'{name}.{field}')} | {_meaning(name, field, inner)} |\n"
        for field, inner in fields.items()
    )
    words = shape.get("description", "")
    yield f"\n### {name}\n\n{words}\n\n| field | value | meaning |\n|---|---|---|\n{rows}"
    for field, inner in fields.items():
        yield from _sections(f"{name}.{field}", inner)


def _type(shape: Mapping[str, Any], path: str) -> str:
    """What a field holds, in words; objects are links to their tables."""
    if "$ref" in shape:
        name = shape["$ref"].rpartition("/")[2]
        return _type(schema()["$defs"][name], name)
    if shape.get("properties"):
        return f"[{path}](#{path.replace('.', '')})"
    if "const" in shape or "enum" in shape:
        values = shape.get("enum", [shape.get("const")])
        return ", ".join(f"`{value}`" if value != "" else "empty" for value in values)
    if shape.get("type") == "array":
        return f"list of {_type(shape['items'], path)}"
    kinds = shape.get("type", "any")
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _meaning(name: str, field: str, shape: Mapping[str, Any]) -> str:
    named: Mapping[str, Any] = (
        schema()["$defs"][shape["$ref"].rpartition("/")[2]] if "$ref" in shape else shape
    )
    return shape.get("description") or _MEANINGS.get(name, {}).get(field) or named.get("description", "")


MADE = {
    with_output: (README, TUTORIAL),
    commands: (COMMANDS,),
    with_columns: (VERDICTS,),
    with_causes: (DIAGNOSIS,),
    with_fields: (DOCUMENT,),
}
DOCUMENTS = {path: partial(make, path) for make, paths in MADE.items() for path in paths}

if __name__ == "__main__":
    for path, made in DOCUMENTS.items():
        path.write_text(made())
