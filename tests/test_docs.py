"""The documents, held to account. Rule: text against code; what a document says, the code must do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from conftest import PROJECT

import analyzer
from analyzer._pairing import DIRECTION_BY, OUTCOMES
from analyzer.cli import app
from analyzer.errors import AnalyzerError
from analyzer.findings import KINDS, SEVERITIES
from analyzer.rows import COUNTS
from analyzer.verdict import SCOPES, VERDICTS
from docs import DOCUMENTS, README, console_blocks

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_says_what_the_code_does(path: Path) -> None:
    """Real output, real help, real columns; `python tests/docs.py` writes them again."""
    assert path.read_text() == DOCUMENTS[path]()


def test_the_readme_shows_every_command() -> None:
    named = {line.split()[1] for block in console_blocks(README.read_text()) for line in block}
    named |= set(re.findall(r"rke2-flows (\w+)", README.read_text()))
    commands = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert commands | {group.name for group in app.registered_groups} <= named


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


def test_links_lead_somewhere() -> None:
    for path in PROJECT.glob("*.md"), PROJECT.glob("docs/*.md"), PROJECT.glob("captures/**/*.md"):
        for file in path:
            targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text())
            assert [t for t in targets if not (file.parent / t).exists()] == [], file
