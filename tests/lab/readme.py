"""The words beside the recordings. Rule: text from tables; reads and writes no file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab import plan
from lab.scenarios import EVERY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lab.recordings import Recording, Tool
    from lab.truth import Truth

FOLDER = """# {name}

{summary}

Recorded as root by `PYTHONPATH=tests python -m lab record captures --recording {name}`, in the lab's
variant `{variant}`. In each node's namespace ran

    {command}

No packet was lost. Packets are cut to {snaplen} bytes; offloads were off on all links but loopback, so each
packet is what a wire would carry.

| scenario | what happens |
|---|---|
{scenarios}

| file | what it is |
|---|---|
{files}
| `cluster.yaml` | the inventory: names, roles, addresses |
| `truth.json` | what the lab did: {rows} rows, {findings} of them with a finding (fields: `../README.md`) |
"""

OVERVIEW = """# Recorded captures

Real packets of a small cluster, three servers and three agents in network namespaces (`tests/lab`), with the
truth beside them. `make captures` records all of it again: the packets differ, the rows of the truth do not.

| folder | what it shows |
|---|---|
{rows}
| [`live/`](live/) | The offences again, counted live on the six nodes (`make lab`): flows, no packets. |

What is real: etcd (three members with TLS, and etcdctl), the kernel's VXLAN, wireguard-go, nftables, TLS,
DNS. What stands for something else: the apiserver, the supervisor, the kubelet, felix and the pods are
small HTTP servers, and their clients poll, watch, scrape and probe as RKE2's do.

## truth.json

Written by the lab from what it did, once every attempt had ended as the scenario's table says; never from
what the analyzer says.

| field | meaning |
|---|---|
| `schema` | 1 |
| `variant` | `vxlan` or `wireguard` |
| `scenarios` | what ran |
| `rows` | one for each scenario, client, server, protocol, server port on a captured node's uplink |
| `overlay` | the inner flows of VXLAN: pod addresses, protocol, port, outcome, VNI |

In a row

- `client` and `server` are node names, or the address of the host outside; `scope` is `inter-node` or
  `external`;
- `verdict`, `outcome` and `finding` are those of the flow table; `finding` is null where all is well;
- the carriers of VXLAN have the sender as client: one row for each direction that was sent, `answered` when
  the other node's were sent too;
- of a WireGuard pair the client is the node that sent the first handshake;
- a port scan is one row with port 0, and the `ports` that were tried;
- IPv4 and IPv6 between the same two nodes are one row;
- ARP, neighbour discovery and ICMP errors are no rows.

In `overlay` the client of a NodePort's way to its pod is the node's tunnel address, because the node puts
its own address in place of the client's. What WireGuard carries cannot be read and is not listed.

Nodes have 10.10.0.11-13 and 10.10.0.21-23 (fd00:10:: with the same last number), the host outside
10.10.0.99; pods are in 10.42.0.0/16 and 2001:cafe:42::/56.
"""


def folder(recording: Recording, tool: Tool, snaplen: int, truth: Truth) -> str:
    """README of one recording."""
    return FOLDER.format(
        name=recording.name,
        summary=recording.summary,
        variant=recording.variant,
        command=" ".join(tool.line(f"NODE.{tool.suffix}")),
        snaplen=snaplen,
        scenarios=_lines(f"| `{name}` | {EVERY[name].summary} |" for name in truth.scenarios),
        files=_lines(f"| `{node}.{tool.suffix}` | {_file(tool, node)} |" for node in recording.nodes),
        rows=len(truth.rows),
        findings=sum(row.expected.finding is not None for row in truth.rows.values()),
    )


def overview(recordings: Iterable[Recording]) -> str:
    """README of the folder that holds the recordings."""
    return OVERVIEW.format(
        rows=_lines(f"| [`{row.name}/`]({row.name}/) | {row.summary} |" for row in recordings)
    )


def _file(tool: Tool, node: str) -> str:
    pods = ", ".join(pod.name for pod in plan.PODS.values() if pod.node == node)
    return f"{tool.watches} of {node}: {tool.format}" + (f"; the pod {pods} is on it" if pods else "")


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
