"""Which version this is. Rule: asks the installed distribution, and imports nothing that takes time."""

from __future__ import annotations


def analyzer_version() -> str:
    """The distribution's version; `unknown` where the package runs without being installed."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  not needed for --help

    try:
        return version("rke2-flows")
    except PackageNotFoundError:
        return "unknown"
