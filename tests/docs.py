"""What the documents must say. Rule: makes text from the code.

`python tests/docs.py` writes it, test_docs.py compares it. README.md holds commands with their real output,
docs/commands.md the help of every command, docs/verdicts.md the columns of the tables.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from conftest import PROJECT, RECORDED

from analyzer import findings, flows, verdict

README = PROJECT / "README.md"
COMMANDS = PROJECT / "docs" / "commands.md"
VERDICTS = PROJECT / "docs" / "verdicts.md"
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_MARK = "<!-- columns -->\n"
_TABLES = {
    "The flow table": flows.COLUMNS,
    "Added by `check`": verdict.COLUMNS,
    "Findings": findings.COLUMNS,
}


def run(command: str, folder: Path) -> str:
    """What a README command prints to standard output, run in a folder that has the project's captures."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "200",
    }
    done = subprocess.run(  # noqa: S602  the README's own commands, as a reader types them
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


def readme() -> str:
    """README.md with the output of its commands as they print it now."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "captures").symlink_to(RECORDED)

        def filled(match: re.Match[str]) -> str:
            commands = re.findall(r"^\$ (.*)$", match[1], re.MULTILINE)
            return "```console\n" + "".join(f"$ {c}\n{run(c, folder)}" for c in commands) + "```"

        return _BLOCK.sub(filled, README.read_text())


def commands() -> str:
    """The reference of the command line, as typer makes it from the code."""
    command = [sys.executable, "-m", "typer", "analyzer.cli", "utils", "docs", "--name", "rke2-flows"]
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.rstrip() + "\n"


def verdicts() -> str:
    """docs/verdicts.md with the columns as the code has them."""
    head = VERDICTS.read_text().partition(_MARK)[0]
    parts = [head, _MARK]
    for title, columns in _TABLES.items():
        rows = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in columns.items())
        parts.append(f"\n### {title}\n\n| column | unit and meaning |\n|---|---|\n{rows}")
    return "".join(parts)


DOCUMENTS = {README: readme, COMMANDS: commands, VERDICTS: verdicts}

if __name__ == "__main__":
    for path, made in DOCUMENTS.items():
        path.write_text(made())
