"""What a command costs before it works. Rule: CPU time beside that of `python -c pass`, in turns, no seconds.

Seconds differ from machine to machine; how many times an empty program's cost a command takes hardly does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest
from conftest import PROJECT, RECORDED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ROUNDS = 5
EMPTY = (sys.executable, "-c", "pass")
PRODUCT = (sys.executable, "-m", "analyzer")
RECORDING = RECORDED / "baseline"
CHECK = ("check", *map(str, sorted(RECORDING.glob("*.pcap"))), "--cluster", str(RECORDING / "cluster.yaml"))
FLOWS = ("flows", str(min(RECORDING.glob("*.pcap"))), "-o", "{folder}/flows.parquet")
#: what may not be imported by a command that does not use it
HEAVY = {
    "help": ({"numpy", "pandas", "pyarrow", "pydantic", "matplotlib", "dask", "bcc"}, ("--help",)),
    "version": ({"numpy", "pandas", "pyarrow", "pydantic", "matplotlib", "dask", "bcc"}, ("--version",)),
    "flows": ({"pandas", "pydantic", "matplotlib", "dask", "pyshark", "bcc", "pyroute2"}, FLOWS),
    "check": ({"pydantic", "matplotlib", "dask", "distributed", "pyshark", "bcc", "pyroute2"}, CHECK),
}
#: how many times `python -c pass` a command may cost: 0.2 s and 1.5 s where that takes 0.025 s
COSTS = {"help": (8, ("--help",)), "check": (60, CHECK)}


def cpu_seconds(command: Sequence[str]) -> float:
    """User and system time of one run, its children's included."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 1), command  # 1: check has findings
    return usage.ru_utime + usage.ru_stime


@pytest.mark.alone
@pytest.mark.parametrize("name", COSTS)
def test_a_command_costs_at_most_so_many_times_an_empty_program(name: str) -> None:
    most, words = COSTS[name]
    turns = [(cpu_seconds(EMPTY), cpu_seconds((*PRODUCT, *words))) for _ in range(ROUNDS)]
    empty, ours = (min(times) for times in zip(*turns, strict=True))
    assert ours <= most * empty, f"{ours:.3f} s beside {empty:.3f} s: {ours / empty:.1f} times"


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_packages_are_imported_where_they_are_used(name: str, tmp_path: Path) -> None:
    unused, words = HEAVY[name]
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['rke2-flows', *{[word.format(folder=tmp_path) for word in words]!r}]\n"
        "try:\n    runpy.run_module('analyzer', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code in (None, 0, 1), end.code\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not unused & set(done.stderr.split("\n"))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("typer", ("--help",)),
        ("analyzer.capture._reader", CHECK),
        ("matplotlib", (*CHECK, "--plots", "{folder}")),
        ("pyroute2", ("doctor",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_installation_that_lacks_a_module_is_said(
    module: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    """A clone in which nothing was built, or an environment from which something was removed."""
    argv = ["rke2-flows", *(word.format(folder=tmp_path) for word in words)]
    program = (
        f"import sys, runpy; sys.argv = {argv!r}; sys.modules[{module!r}] = None\n"
        "runpy.run_module('analyzer', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("rke2-flows: this installation is not whole: ")
    assert module.rpartition(".")[2] in said


def test_what_the_package_says_that_it_holds_is_there() -> None:
    """`py.typed` for one, without which no type checker of a user's reads our types (PEP 561)."""
    told = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package, patterns in told["package-data"].items():
        folder = PROJECT / told["package-dir"].get(package, package.replace(".", "/"))
        for pattern in patterns:
            assert list(folder.glob(pattern)), (package, pattern)
