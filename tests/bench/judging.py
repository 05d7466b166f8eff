"""Verdicts, findings and matrices on a long flow table. Rule: one process, nothing else in it; times from
inside.

``python -m bench.judging ROWS FOLDER`` prints one line of JSON. The table is a smaller one's rows again and
again, an hour later each time, since pairing as many rows would need the memory that is to be measured.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analyzer.cluster import load_cluster
from analyzer.findings import find
from analyzer.flows import pair
from analyzer.matrices import matrix
from analyzer.report import MATRICES
from analyzer.rows import merge
from analyzer.spec import load_spec, server_ports
from analyzer.verdict import judge
from bench.parts import Shape, block, cluster_yaml, part

if TYPE_CHECKING:
    from collections.abc import Callable

NODES, FLOWS = 40, 10_000


def table_of(rows: int, folder: Path) -> tuple[pd.DataFrame, Any]:
    """A flow table of so many rows, and its cluster."""
    shape = Shape(NODES, min(FLOWS, max(2 * rows // NODES, 40)))
    file = folder / "cluster.yaml"
    file.write_text(cluster_yaml(shape), encoding="utf-8")
    made = block(shape)
    whole = merge([part(made, node, 0) for node in range(NODES)])
    paired = pair(whole, server_ports(load_spec("rke2-canal")))
    times = -(-rows // len(paired))
    hours = [pd.Timedelta(hours=hour) for hour in range(times)]
    copies = [paired.assign(start=paired["start"] + hour, end=paired["end"] + hour) for hour in hours]
    return pd.concat(copies, ignore_index=True).head(rows), load_cluster(file)


def _resident(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


def _forget_peak() -> None:
    """The kernel's account of the most memory begins anew (proc(5), clear_refs)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _timed(did: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.process_time()
    result = did()
    return result, time.process_time() - begin


def main(rows: int, folder: Path) -> dict[str, Any]:
    """Seconds of CPU of each step, bytes of the table and of the most memory while they ran."""
    table, cluster = table_of(rows, folder)
    spec = load_spec("rke2-canal")
    _forget_peak()
    at_rest = _resident("VmRSS")
    judged, judging = _timed(lambda: judge(table, cluster, spec))
    found, finding = _timed(lambda: find(judged, cluster, spec, ()))
    matrices = {by: _timed(partial(matrix, judged, by, spec, cluster))[1] for by in MATRICES}
    return {
        "rows": len(table),
        "findings": len(found),
        "judge": judging,
        "find": finding,
        "matrix": matrices,
        "table_bytes": int(table.memory_usage(deep=True).sum()),
        "before_bytes": at_rest,
        "peak_bytes": _resident("VmHWM"),
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]))))
