"""The notebooks with what they put out. Rule: executes; judges nothing.

`python tests/notebooks.py` writes them again, test_notebooks.py compares. What is written depends on the
project alone: no times of execution, no version of a kernel, no place on a machine.
"""

from __future__ import annotations

import os
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import nbformat
from conftest import PROJECT
from nbclient import NotebookClient
from traitlets.config import Config

if TYPE_CHECKING:
    from pathlib import Path

NOTEBOOKS = PROJECT / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
#: a warning in a notebook is a fault of it; those that importing our dependencies may cause are not
_STRICT = """import warnings, pandas, pyarrow, matplotlib.pyplot
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")
"""
_SECONDS = 120


def paths() -> list[Path]:
    """All notebooks."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def read(path: Path) -> Any:
    """A notebook as it is written down."""
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]  # nbformat has no types


def executed(path: Path) -> Any:
    """The notebook, executed top to bottom in a kernel of its own. Raises CellExecutionError with the cell.

    The kernel is spoken to through sockets in a folder, which no other user can reach, and leaves no profile.
    """
    notebook = read(path)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_STRICT))  # type: ignore[no-untyped-call]  # nbformat has no types
    with TemporaryDirectory() as folder:
        sockets = {"transport": "ipc", "connection_file": f"{folder}/kernel.json", "ip": f"{folder}/kernel"}
        place = {"metadata": {"path": str(path.parent)}}
        config = Config({"KernelManager": sockets})
        client = NotebookClient(
            notebook, config=config, kernel_name="python3", timeout=_SECONDS, resources=place
        )
        client.execute(env={**os.environ, "IPYTHONDIR": folder})
    notebook.cells.pop(0)
    return _bare(notebook)


def _bare(notebook: Any) -> Any:
    notebook.metadata = nbformat.from_dict(METADATA)  # type: ignore[no-untyped-call]  # nbformat has no types
    codes = 0
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            codes += 1
            cell.execution_count = codes
            for output in cell.outputs:
                _trim(output, codes)
    return notebook


def _trim(output: Any, count: int) -> None:
    """No counter of an earlier run, and no text beside a picture or a table, which says less of the same."""
    if "execution_count" in output:
        output["execution_count"] = count
    if {"text/html", "image/png"} & set(output.get("data", {})):
        output["data"].pop("text/plain", None)


if __name__ == "__main__":
    for path in paths():
        nbformat.write(executed(path), path)  # type: ignore[no-untyped-call]  # nbformat has no types
