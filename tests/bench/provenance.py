"""Where a run's numbers come from. Rule: asks git, the package manager and the system; measures nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.document import SCHEMA

PROJECT = Path(__file__).resolve().parent.parent.parent
#: whose state decides what is measured
CODE = ("analyzer", "bpf", "tests/bench", "pyproject.toml")
PACKAGES = {"nfpcapd": "nfdump", "softflowd": "softflowd", "argus": "argus-server", "tshark": "tshark",
            "zcat": "gzip", "zstdcat": "zstd"}  # fmt: skip


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine() -> str:
    """The processor, its cores, the distribution and the kernel."""
    cpu = re.search(
        r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
    )
    system = platform.freedesktop_os_release()
    return (
        f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {system.get('NAME', '')} "
        f"{system.get('VERSION_ID', '')}, kernel {platform.release()}"
    )


def versions() -> dict[str, str]:
    """Package version of each compared program, empty where the package manager does not say."""
    told = {
        name: _said("dpkg-query", "-W", "-f", "${Version}", package) for name, package in PACKAGES.items()
    }
    return {name: re.sub(r"^\d+:|[-+].*$", "", version) for name, version in told.items()}


def head(*, quick: bool) -> dict[str, Any]:
    """What stands above a run's numbers. `changes`: a digest of what git calls changed in the code."""
    changed = _said("git", "--no-optional-locks", "status", "--porcelain", "--", *CODE)
    changes = _said("git", "diff", "HEAD", "--", *CODE) + changed
    return {
        "schema": SCHEMA,
        "commit": _said("git", "rev-parse", "--short", "HEAD") or "unknown",
        "dirty": bool(changed),
        "changes": hashlib.sha256(changes.encode()).hexdigest()[:12] if changed else "",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "quick": quick,
    }
