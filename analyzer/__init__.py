"""What really flows between the nodes of an RKE2 cluster, and does it belong to the port and role table.

    capture  →  flows  →  verdicts  →  findings  →  views

Each arrow is one function here; what stands between two arrows can be printed, saved and read back.
Rule: names only, each imported when it is first used, so that the command line starts without pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyzer.analysis import Analysis, analyze
    from analyzer.capture.offline import read_captures
    from analyzer.cluster import Cluster, load_cluster
    from analyzer.errors import AnalyzerError
    from analyzer.findings import find
    from analyzer.flows import pair
    from analyzer.matrices import matrix
    from analyzer.rows import OneWay, merge
    from analyzer.spec import Spec, load_spec
    from analyzer.store import read_flows, write_flows
    from analyzer.verdict import judge

_HOMES = {
    "Analysis": "analysis",
    "AnalyzerError": "errors",
    "Cluster": "cluster",
    "OneWay": "rows",
    "Spec": "spec",
    "analyze": "analysis",
    "find": "findings",
    "judge": "verdict",
    "load_cluster": "cluster",
    "load_spec": "spec",
    "matrix": "matrices",
    "merge": "rows",
    "pair": "flows",
    "read_captures": "capture.offline",
    "read_flows": "store",
    "write_flows": "store",
}

__all__ = [
    "Analysis",
    "AnalyzerError",
    "Cluster",
    "OneWay",
    "Spec",
    "analyze",
    "find",
    "judge",
    "load_cluster",
    "load_spec",
    "matrix",
    "merge",
    "pair",
    "read_captures",
    "read_flows",
    "write_flows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'analyzer' has no attribute {name!r}")
    value = getattr(import_module(f"analyzer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
