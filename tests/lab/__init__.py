"""A small RKE2-like cluster in network namespaces, to record and to watch.

Rule: names only; loads a part when it is asked for.

The workers inside the namespaces import this package too, and need none of what builds it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.cluster import Lab, Node, clean
    from lab.errors import LabError
    from lab.recordings import RECORDINGS, record
    from lab.scenarios import SCENARIOS
    from lab.truth import Truth

__all__ = ["RECORDINGS", "SCENARIOS", "Lab", "LabError", "Node", "Truth", "clean", "record"]

_HOMES = {
    "Lab": "lab.cluster",
    "LabError": "lab.errors",
    "Node": "lab.cluster",
    "RECORDINGS": "lab.recordings",
    "SCENARIOS": "lab.scenarios",
    "Truth": "lab.truth",
    "clean": "lab.cluster",
    "record": "lab.recordings",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
