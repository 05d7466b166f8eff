"""What every test may lean on. Rule: places, order and skip decisions only; no analysis happens here."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

#: no deadline: machines are noisy, and a benchmark is no timed test; in CI the same examples in every run
settings.register_profile(
    "project",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"
PUBLIC = SHARED / "captures" / "public"
ZEEK = SHARED / "captures" / "zeek"
RECORDED = PROJECT / "captures"
_MODULES = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
#: what the linker is told of the native reader
LIBRARIES = [f"-l{name}" for module in _MODULES for name in module.get("libraries", ())]

#: the files that take longest, longest first: begun last, one of them would run on alone
_LONGEST = (
    "test_live_run",
    "test_live_lab",
    "test_fuzz",
    "test_cli",
    "test_lab",
    "test_workers",
    "test_live_counts",
    "test_damaged",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; else the order is pytest's."""
    begins = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: begins.get(item.path.stem, len(begins)))


def require(condition: bool, reason: str) -> None:
    """Skip the running test with its reason, or fail it where REQUIRE_EBPF=1 says that none may skip."""
    if condition:
        return
    if os.environ.get("REQUIRE_EBPF") == "1":
        pytest.fail(f"REQUIRE_EBPF=1, yet {reason}")
    pytest.skip(reason)


def require_root() -> None:
    """The test builds namespaces or loads programs into the kernel."""
    require(os.geteuid() == 0, "this test needs root")


def require_program(name: str) -> None:
    """The test asks a program that is not part of the Python environment."""
    require(shutil.which(name) is not None, f"{name} is not installed")


def require_shared() -> None:
    """The test reads other projects' captures, which lie beside the project and are not part of it."""
    if not (SHARED / "captures").is_dir():
        pytest.skip(f"no captures of other projects at {SHARED / 'captures'}")


def steps_on_disk(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[tuple[str, str]]:
    """What the system is asked for from now on, done as before: `fsync` and these of os' functions, each with
    the name of the file that it is about; of two the second.
    """
    steps: list[tuple[str, str]] = []

    def noting(name: str) -> Any:
        real = getattr(os, name)

        def call(*paths: Any, **more: Any) -> Any:
            of = os.readlink(f"/proc/self/fd/{paths[0]}") if name == "fsync" else paths[-1]
            result = real(*paths, **more)
            steps.append((name, Path(of).name))
            return result

        return call

    for name in ("fsync", *names):
        monkeypatch.setattr(os, name, noting(name))
    return steps
