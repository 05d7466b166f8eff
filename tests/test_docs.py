"""The documents, held to account. Rule: text against code; what a document says, the code must do."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

import pytest
import typer
from conftest import PROJECT

import analyzer
import docs
from analyzer import diagnosis, findings, flows, load_cluster, load_spec, verdict
from analyzer._pairing import DIRECTION_BY, OUTCOMES
from analyzer.accept import load_accepted
from analyzer.cli import app
from analyzer.documents import schema
from analyzer.errors import AnalyzerError
from analyzer.findings import KINDS, SEVERITIES
from analyzer.rows import COUNTS
from analyzer.verdict import SCOPES, VERDICTS
from docs import COMMANDS, DIAGNOSIS, DOCS, DOCUMENT, DOCUMENTS, README, console_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in DOCUMENTS])
def test_a_document_says_what_the_code_does(path: Path) -> None:
    """Real output, real help, real columns; `python tests/docs.py` writes them again."""
    assert path.read_text() == DOCUMENTS[path]()


def test_the_readme_shows_every_command() -> None:
    named = {line.split()[1] for block in console_blocks(README.read_text()) for line in block}
    named |= set(re.findall(r"rke2-flows (\w+)", README.read_text()))
    commands = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert commands | {group.name for group in app.registered_groups} <= named


def called(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command and group, with the words that call it."""
    yield " ".join(path), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from called(inner, (*path, name))


def section(text: str, heading: str) -> str:
    """From a heading to the next one of the same level or above."""
    level = heading.split(maxsplit=1)[0]
    found = re.search(
        rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.DOTALL | re.MULTILINE
    )
    return found[1] if found else ""


COMMAND_LINE = dict(called(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMAND_LINE)
def test_every_command_and_option_is_in_the_reference(words: str) -> None:
    level = "#" * (1 + len(words.split()))
    name = " ".join(("rke2-flows", words)).strip()
    text = section(COMMANDS.read_text(), f"{level} `{name}`")
    assert text
    for parameter in COMMAND_LINE[words].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("-"):
                assert re.search(rf"^\* `[^`]*(?<![\w-]){re.escape(option)}(?![\w-])", text, re.MULTILINE), (
                    option
                )
            assert getattr(parameter, "help", ""), f"{option} has no help"


@pytest.mark.parametrize(
    ("path", "heading", "columns"),
    [
        (docs.VERDICTS, "### The flow table", flows.COLUMNS),
        (docs.VERDICTS, "### Added by `check`", verdict.COLUMNS),
        (docs.VERDICTS, "### Findings", findings.COLUMNS),
        (DIAGNOSIS, "### A cause", diagnosis.COLUMNS),
    ],
)
def test_every_column_is_in_its_table(path: Path, heading: str, columns: Mapping[str, str]) -> None:
    named = re.findall(r"^\| `(\w+)` \|", section(path.read_text(), heading), re.MULTILINE)
    assert named == list(columns)


def test_every_kind_of_finding_has_its_row() -> None:
    text = section(docs.VERDICTS.read_text(), "## Findings").partition("|---|")[2]
    assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE) == list(KINDS)


def test_every_cause_has_its_row() -> None:
    text = section(DIAGNOSIS.read_text(), "### The causes")
    named = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert named == [signature.name for signature in diagnosis.SIGNATURES]


def test_every_field_of_the_document_is_explained() -> None:
    text = DOCUMENT.read_text()

    def check(name: str, shape: dict[str, Any]) -> int:
        shape = shape.get("items", shape)
        fields = shape.get("properties", {})
        named = re.findall(r"^\| `([\w-]+)` \|", section(text, f"### {name}"), re.MULTILINE)
        assert named == list(fields)
        return len(fields) + sum(check(f"{name}.{field}", inner) for field, inner in fields.items())

    assert check("document", schema()) + sum(check(n, s) for n, s in schema()["$defs"].items()) > 100


def test_every_exported_name_is_in_the_reference() -> None:
    told = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    for name in told:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    homes = {f"analyzer.{home}.{name}" for name, home in analyzer._HOMES.items()}
    assert homes <= set(told)


@pytest.mark.parametrize("words", [SCOPES, VERDICTS, OUTCOMES, DIRECTION_BY, tuple(KINDS), SEVERITIES])
def test_every_word_of_the_tables_is_explained(words: tuple[str, ...]) -> None:
    text = (PROJECT / "docs" / "verdicts.md").read_text()
    assert [word for word in words if f"`{word}`" not in text] == []


def test_every_count_of_the_ledger_is_explained() -> None:
    text = (PROJECT / "docs" / "capturing.md").read_text()
    counts = [name for name in COUNTS if name != "frames" and not name.startswith("inner")]
    assert [name for name in counts if f"| `{name}` |" not in text] == []


def test_every_exported_name_is_there_and_documented() -> None:
    assert set(analyzer.__all__) == set(analyzer._HOMES)
    undocumented = [n for n in analyzer.__all__ if not (getattr(analyzer, n).__doc__ or "").strip()]
    assert undocumented == []
    assert issubclass(analyzer.AnalyzerError, AnalyzerError)


def test_the_files_that_are_shown_are_read(tmp_path: Path) -> None:
    shown = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "files.md").read_text(), re.DOTALL | re.MULTILINE)
    readers: tuple[Callable[[Path], object], ...] = (load_cluster, load_spec, load_accepted)
    for load, text in zip(readers, shown, strict=True):
        path = tmp_path / "shown.yaml"
        path.write_text(text, encoding="utf-8")
        assert load(path)


def test_links_lead_somewhere() -> None:
    for path in PROJECT.glob("*.md"), PROJECT.glob("docs/*.md"), PROJECT.glob("captures/**/*.md"):
        for file in path:
            targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text())
            assert [t for t in targets if not (file.parent / t).exists()] == [], file
