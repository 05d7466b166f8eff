"""Cluster files: shown, or made from what knows the nodes. Rule: nothing is judged here."""

from __future__ import annotations

from typing import Annotated

import typer

from analyzer.commands.judged import rows_of
from analyzer.commands.options import Inputs, YamlFile, group, name_of
from analyzer.commands.output import print_or_write

app = group(help="Cluster files: show, make from kubectl or from flows.")


@app.command("show")
def cluster_show(file: Annotated[str, typer.Argument(help="Cluster file; - is standard input.")]) -> None:
    """The nodes, roles and addresses of a cluster file."""
    from analyzer import console
    from analyzer.cluster import load_cluster

    cluster = load_cluster(file)
    pods, services = (", ".join(cidrs) or "-" for cidrs in (cluster.pod_cidrs, cluster.service_cidrs))
    console.say(f"{cluster.name}: pods {pods}, services {services}")
    console.show(cluster.to_frame())


@app.command(
    "from-kubectl",
    epilog="Example:\n\n    kubectl get nodes -o json | rke2-flows cluster from-kubectl - > nodes.yaml",
)
def cluster_from_kubectl(
    file: Annotated[str, typer.Argument(help="Output of `kubectl get nodes -o json`; - is standard input.")],
    output: YamlFile = None,
) -> None:
    """The JSON of `kubectl get nodes -o json` to a cluster file to check and keep."""
    from analyzer.cluster import load_cluster

    print_or_write(load_cluster(file).to_yaml(), output)


@app.command("infer", epilog="Example:\n\n    rke2-flows cluster infer captures/ -o nodes.yaml")
def cluster_infer(
    inputs: Inputs,
    name: Annotated[str, typer.Option(help="How the cluster is to be called.")] = "inferred",
    output: YamlFile = None,
) -> None:
    """Nodes, roles, tunnel ends and pod ranges as the flows show them: a cluster file to check, with why and
    how sure beside each entry.
    """
    from analyzer import console
    from analyzer.infer import infer, no_node

    called = name_of(name, "--name")
    rows = rows_of(inputs)
    found = infer(rows)
    nothing = None if found.nodes else no_node(found, rows.coverage)
    if (
        nothing and not found.unknown
    ):  # a file with no entry to check is none that anything could be done with
        raise nothing
    print_or_write(found.to_yaml(called), output)
    console.note(str(nothing or found))
