"""The notebooks run, top to bottom, and put out what is written in them. Rule: executed in a kernel, compared
cell by cell; `python tests/notebooks.py` writes them again.
"""

from __future__ import annotations

import ast
import base64
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from notebooks import METADATA, executed, paths, read

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 180  # for all of them
MAX_BYTES = 400_000
#: what draws them changes their last bits from release to release
_PICTURE = "image/png"
BOOKS = [pytest.param(path, id=path.stem) for path in paths()]


def outputs(book: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    """Source and outputs of each cell, pictures only named."""
    return [(cell.source, [_plain(output) for output in cell.get("outputs", ())]) for cell in book.cells]


def _plain(output: Any) -> dict[str, Any]:
    data = {kind: "" if kind == _PICTURE else text for kind, text in output.get("data", {}).items()}
    return {**output, "data": data}


def test_there_are_notebooks_for_all_three() -> None:
    assert {path.stem for path in paths()} >= {"captures", "live", "what-if"}


@pytest.mark.parametrize("path", BOOKS)
def test_a_notebook_runs_and_puts_out_what_is_written_in_it(path: Path) -> None:
    """An exception ends the run, and a warning is one."""
    begin = time.monotonic()
    book = executed(path)
    assert time.monotonic() - begin < SECONDS / len(BOOKS)
    assert outputs(book) == outputs(read(path))
    every = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert {output.output_type for output in every} <= {"execute_result", "display_data"}
    pictures = [output.data[_PICTURE] for output in every if _PICTURE in output.data]
    assert pictures
    for picture in pictures:
        assert base64.b64decode(picture).startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("path", BOOKS)
def test_what_is_committed_is_of_no_machine_and_no_moment(path: Path) -> None:
    text = path.read_text()
    for place in (str(PROJECT), "/home/", "/root", "/tmp/", "/usr/", "0x7"):
        assert place not in re.sub(r'"image/png": "[^"]*"', "", text), place
    book = read(path)
    assert dict(book.metadata) == METADATA
    assert [cell.metadata for cell in book.cells] == [{}] * len(book.cells)
    assert len(text) <= MAX_BYTES


@pytest.mark.parametrize("path", BOOKS)
def test_a_notebook_narrates_and_has_no_logic(path: Path) -> None:
    """No function, class, loop or branch, and words before each step."""
    book = read(path)
    assert book.cells[0].source.startswith("# ")
    for cell in book.cells:
        if cell.cell_type == "code":
            tree = ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE))
            forbidden = ast.FunctionDef | ast.ClassDef | ast.For | ast.While | ast.If | ast.Try | ast.Lambda
            assert [node for node in ast.walk(tree) if isinstance(node, forbidden)] == []
