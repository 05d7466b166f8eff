"""What a run is judged from. Rule: inputs, cluster and specification as named on the command line → the
analysis; prints only where the cluster came from, and what is not sure of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from analyzer.commands.chosen import ALL_WANTED, Wanted
from analyzer.commands.early import begun
from analyzer.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analyzer.analysis import Analysis
    from analyzer.capture.reading import Early
    from analyzer.choice import Choice
    from analyzer.cluster import Cluster
    from analyzer.overview import Overview
    from analyzer.rows import OneWay


def analysis_of(
    inputs: list[str],
    cluster: str | None,
    spec: str,
    listeners: Sequence[str] = (),
    *,
    aside: bool = False,
    threads: int | None = None,
    wanted: Wanted = ALL_WANTED,
) -> tuple[Analysis, int]:
    """The inputs judged, as far as they are `wanted`, and their interval in ns.

    Without a cluster file the cluster is inferred from the flows, and the first lines say so: on standard
    output, or with `aside` on standard error, which leaves standard output to what was asked for.
    """
    with begun(inputs, 0, threads) as early:
        from analyzer.analysis import Analysis
        from analyzer.cluster import load_cluster
        from analyzer.listeners import read_listeners
        from analyzer.spec import load_spec

        rules = load_spec(spec)
        nodes = load_cluster(cluster) if cluster else None
        rows, whole = _rows_and_cluster(inputs, nodes, wanted, threads, early, aside=aside)
    sockets = [read_listeners(path, nodes=whole.members) for path in listeners]
    analysis = Analysis.of(rows, whole, rules, sockets)
    return analysis if nodes else doubting([analysis], aside=aside)[0], rows.interval


def _rows_and_cluster(
    inputs: list[str],
    nodes: Cluster | None,
    wanted: Wanted,
    threads: int | None,
    early: Early | None,
    *,
    aside: bool,
) -> tuple[OneWay, Cluster]:
    if nodes:
        return rows_of(inputs, threads, wanted.of(nodes), early=early), nodes
    return rows_by_inferred(inputs, wanted, threads, early, aside=aside)


def rows_by_inferred(
    inputs: list[str],
    wanted: Wanted,
    threads: int | None,
    early: Early | None,
    *,
    aside: bool,
    interval: int = 0,
) -> tuple[OneWay, Cluster]:
    """The wanted rows, and the cluster that all flows of the time show."""
    from analyzer.choice import sift

    rows = rows_of(inputs, threads, wanted.of_time(), interval, early)
    found = inferred([rows], aside=aside)
    return sift(rows, wanted.of(found)), found


def overview_of(
    inputs: list[str],
    cluster: str | None,
    spec: str,
    scheduler: str,
    folder: str | None = None,
    wanted: Wanted = ALL_WANTED,
) -> Overview:
    """The inputs judged by Dask workers; judged flows go to `folder`, where one is given."""
    from analyzer import console, workers
    from analyzer.cluster import load_cluster

    if not cluster:
        raise ClusterError(
            "workers cannot infer the nodes",
            where="--cluster",
            next_step="write a cluster file with `rke2-flows cluster infer` on some of the inputs",
        )
    nodes = load_cluster(cluster)
    choice = wanted.of(nodes)
    with console.counting("tasks") as progress:
        found = workers.analyze(
            *inputs,
            cluster=nodes,
            spec=spec,
            scheduler=scheduler,
            folder=folder,
            choice=choice,
            progress=progress,
        )
    console.note("by workers no cause is named: `check` on the hours or nodes in question does that")
    return found


def rows_of(
    inputs: list[str],
    threads: int | None = None,
    choice: Choice | None = None,
    interval: int = 0,
    early: Early | None = None,
) -> OneWay:
    """What the inputs hold of what is chosen, read with a progress bar; `early` is read already."""
    from analyzer import console
    from analyzer.addresses import read_inputs
    from analyzer.choice import ALL

    with console.reading(inputs) as progress:
        return read_inputs(
            inputs,
            interval=interval,
            progress=progress,
            threads=threads,
            choice=choice or ALL,
            early=early,
        )


def inferred(runs: Sequence[OneWay], *, aside: bool) -> Cluster:
    """The cluster that the flows of these runs show, and a line that says so."""
    from analyzer import console
    from analyzer.infer import infer, no_node

    found = infer(*runs)
    if not found.nodes:
        raise no_node(found, (ledger for run in runs for ledger in run.coverage))
    _tell(f"no --cluster: inferred from the flows, {found}", aside)
    console.note("`rke2-flows cluster infer` writes it as a file to check and keep")
    return found.to_cluster()


def doubting(analyses: Sequence[Analysis], *, aside: bool) -> list[Analysis]:
    """The analyses by an inferred cluster; what counts as outside and may be a node is named in a line."""
    from analyzer.infer import doubt, doubtful

    found = [doubtful(analysis.flows, analysis.cluster) for analysis in analyses]
    addresses = tuple(dict.fromkeys(address for each in found for address in each))
    if addresses:
        _tell(doubt(addresses), aside)
    return [replace(each, doubtful=of) for each, of in zip(analyses, found, strict=True)]


def _tell(line: str, aside: bool) -> None:
    from analyzer import console

    (console.note if aside else console.say)(line)
