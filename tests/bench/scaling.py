"""What a store of many nodes costs: constants measured on small ones, and a large one to check them by.
Rule: makes stores, runs the real code on them in processes of their own, returns numbers; no text for people.

``python -m bench.scaling phases|engine ...`` are those processes; each prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer import workers
from analyzer.addresses import find_inputs
from analyzer.cluster import load_cluster
from analyzer.findings import find
from analyzer.flows import pair
from analyzer.matrices import matrix
from analyzer.overview import tally
from analyzer.report import MATRICES
from analyzer.rows import ROW, merge
from analyzer.spec import load_spec, server_ports
from analyzer.store import read_rows, write_rows
from analyzer.verdict import judge
from bench.compare import run_once
from bench.parts import Shape, block, cluster_yaml, part, write_store
from bench.sections import script

if TYPE_CHECKING:
    from collections.abc import Callable

    from analyzer.rows import OneWay

TINY = 100  # flows of a part that is nothing but a file


@dataclass(frozen=True)
class Plan:
    """Stores, as (flows of a node and minute, minutes): two to tell start and row apart, and of the large one
    the part that is checked.

    `phases`: nodes of the cluster whose minute is taken through each step by itself; `rows`: of the large
    store.
    """

    nodes: int
    stores: tuple[tuple[int, int], tuple[int, int]]
    checked: tuple[int, int]
    phases: int
    rows: int
    scheduler: str = "processes"


FULL = Plan(1_000, ((1_000, 1), (4_000, 1)), (10_000, 2), 100, 1_000_000_000)
QUICK = Plan(6, ((60, 1), (240, 1)), (400, 2), 6, 8_000, scheduler="threads")


# ---- processes of their own ----


def _timed(did: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.process_time()
    result = did()
    return result, time.process_time() - begin


def _write_all(tables: list[OneWay], paths: list[Path]) -> None:
    for table, path in zip(tables, paths, strict=True):
        write_rows(table, path)


def phases(folder: Path, shape: Shape) -> dict[str, Any]:
    """CPU seconds of each step on a minute of all nodes, one step after the other."""
    made, spec = block(shape), load_spec("rke2-canal")
    (folder / "cluster.yaml").write_text(cluster_yaml(shape), encoding="utf-8")
    cluster = load_cluster(folder / "cluster.yaml")
    tables = [part(made, node, 0) for node in range(shape.nodes)]
    paths = [folder / f"{node}.parquet" for node in range(shape.nodes)]
    _, write = _timed(lambda: _write_all(tables, paths))
    small = block(Shape(shape.nodes, TINY, shape.seed))
    tiny = [folder / f"tiny-{node}.parquet" for node in range(shape.nodes)]
    _write_all([part(small, node, 0) for node in range(shape.nodes)], tiny)
    _, files = _timed(lambda: [read_rows(path) for path in tiny])
    seconds = {"write": write}
    parts, seconds["read"] = _timed(lambda: [read_rows(path) for path in paths])
    whole, seconds["merge"] = _timed(lambda: merge(parts).settled())
    paired, seconds["pair"] = _timed(lambda: pair(whole, server_ports(spec)))
    judged, seconds["judge"] = _timed(lambda: judge(paired, cluster, spec))
    found, seconds["find"] = _timed(lambda: find(judged, cluster, spec, whole.coverage))
    _, seconds["matrices"] = _timed(lambda: [matrix(judged, by, spec, cluster) for by in MATRICES])
    partial, seconds["tally"] = _timed(lambda: tally(judged, cluster, spec))
    return {
        "parts": len(paths),
        "rows": len(whole.rows),
        "flows": len(judged),
        "findings": len(found),
        "bytes": sum(path.stat().st_size for path in paths),
        "tiny_bytes": sum(path.stat().st_size for path in tiny),
        "open": files,
        "seconds": seconds,
        "tally_bytes": len(pickle.dumps(partial)),
        "table_bytes": int(judged.memory_usage(deep=True).sum()),
    }


def engine(cluster: Path, scheduler: str, folders: list[str]) -> dict[str, Any]:
    """One check of a store by workers."""
    begin = time.perf_counter()
    sizes = [found.size for found in find_inputs(folders)]
    listing = time.perf_counter() - begin
    found = workers.analyze(*folders, cluster=cluster, scheduler=scheduler)
    return {
        "seconds": time.perf_counter() - begin,
        "listing": listing,
        "parts": len(sizes),
        "bytes": sum(sizes),
        "flows": int(found.summary("scopes")["flows"].sum()),
        "packets": int(found.summary("scopes")["packets"].sum()),
        "findings": len(found.findings),
    }


# ---- the run ----


def _told(command: list[str], folder: Path) -> dict[str, Any]:
    took = run_once(command, folder)
    told: dict[str, Any] = json.loads(took.output.splitlines()[-1])
    return {**told, "wall": took.wall, "cpu": took.cpu, "peak_mb": took.peak}


def _made(folder: Path, plan: Plan, flows: int, minutes: range) -> tuple[Path, dict[str, Any]]:
    shape = Shape(plan.nodes, flows)
    folder.mkdir(exist_ok=True)
    (folder / "cluster.yaml").write_text(cluster_yaml(shape), encoding="utf-8")
    begin = time.perf_counter()
    rows, size = write_store(folder / "store", shape, minutes, os.cpu_count() or 1)
    seconds = time.perf_counter() - begin
    return folder / "store", {
        "rows": rows,
        "bytes": size,
        "parts": plan.nodes * len(minutes),
        "writing": seconds,
    }


def _checked(store: Path, minutes: range, plan: Plan) -> dict[str, Any]:
    folders = [str(store / f"minute-{minute:05d}") for minute in minutes]
    cluster = str(store.parent / "cluster.yaml")
    return _told(script("scaling", "engine", cluster, plan.scheduler, *folders), store.parent)


def measure(folder: Path, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """All constants, and the large store with what was measured on a part of it."""
    say(f"steps, {plan.phases} nodes")
    steps = folder / "steps"
    steps.mkdir()
    told = {
        "steps": _told(
            script("scaling", "phases", str(steps), str(plan.phases), str(plan.checked[0])), folder
        )
    }
    shutil.rmtree(steps)
    runs = []
    for number, (flows, minutes) in enumerate(plan.stores):
        say(f"store of {plan.nodes} nodes, {flows} flows, {minutes} minutes")
        store, made = _made(folder / str(number), plan, flows, range(minutes))
        runs.append({**made, "run": _checked(store, range(minutes), plan)})
        shutil.rmtree(store.parent)
    flows, minutes = plan.checked
    a_minute = told["steps"]["rows"] / plan.phases * plan.nodes
    length = max(minutes, round(plan.rows / a_minute))
    say(f"store of {plan.nodes} nodes, {flows} flows, {length} minutes, about {length * a_minute:,.0f} rows")
    store, made = _made(folder / "large", plan, flows, range(length))
    say(f"checking {minutes} minutes of it")
    run = _checked(store, range(minutes), plan)
    shutil.rmtree(store.parent)
    return {**told, "plan": asdict(plan), "cores": os.cpu_count(), "row_bytes": ROW.itemsize, "small": runs,
            "large": {**made, "minutes": length, "checked_minutes": minutes, "run": run}}  # fmt: skip


def main(what: str, *arguments: str) -> dict[str, Any]:
    """One of the processes."""
    if what == "phases":
        return phases(Path(arguments[0]), Shape(int(arguments[1]), int(arguments[2])))
    return engine(Path(arguments[0]), arguments[1], list(arguments[2:]))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
