"""What the nodes of a large cluster would store. Rule: makes one-way rows as a live capture writes them;
times and judges nothing.

One block of flows serves all nodes and minutes. A flow of the block runs from node k to node k + d (counted
round the cluster), for every k; so each part is the block with addresses moved, both ends of a flow have it
in their parts with the same ports, and a part costs little to make. Half of the flows live on from minute to
minute, the others are new in each.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analyzer._grouping import ADDRESS
from analyzer.rows import (
    DIRECTION_IN,
    DIRECTION_OUT,
    EVENT_CARRIER,
    EVENT_SYN,
    EVENT_SYN_ACK,
    ROW,
    Coverage,
    Observer,
    OneWay,
    Rows,
    sum_rows,
)
from analyzer.store import write_rows
from bench.population import EPHEMERAL, EPHEMERAL_COUNT, TCP, UDP, VXLAN_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

START = 1_763_942_400 * 10**9  # ns; a midnight
MINUTE = 60 * 10**9
PEERS = 64  # nodes that a node talks to
SERVERS = 3
FAILING = 1 / 100  # share of the flows of some nodes that nobody answers
TROUBLED = 100, 7  # the seventh of each hundred nodes is such a one
BALANCERS, BALANCED = 2, 2  # load balancers outside, and the NodePorts that they ask
VXLAN = 1  # `tunnel` of a row
HALF = EPHEMERAL_COUNT // 2  # ports of lasting flows below, of the others above
STEP = 7_919  # by which ports of short flows move each minute: coprime to HALF
SYN, ACK, PSH = 0x02, 0x10, 0x08
#: what the row of a flow that nobody answers holds
TRIES = {"packets": 5, "bytes": 300, "tcp_flags": SYN, "events": EVENT_SYN}


class Kind(NamedTuple):
    """Share of the flows, protocol, first port and number of ports, who asks."""

    share: float
    protocol: int
    port: int
    ports: int = 1
    outside: bool = False
    tunnel: bool = False


# ports of RKE2's table that any node may ask at any other, and NodePorts from outside
KINDS = (
    Kind(35, TCP, 10250),
    Kind(30, TCP, 30000, 2768),
    Kind(5, TCP, 9099),
    Kind(10, TCP, 30000, BALANCED, outside=True),
    Kind(20, TCP, 8080, tunnel=True),
)


@dataclass(frozen=True)
class Shape:
    """A store's size: nodes of the cluster, flows that a node sees in a minute, and the seed."""

    nodes: int = 1_000
    flows: int = 10_000
    seed: int = 1


@dataclass(frozen=True)
class Block:
    """Flows, one element each: `kind` (place in KINDS), `distance` of the server in nodes, ports, `packets`
    and their `size`, `delay` in ns.
    """

    shape: Shape
    kind: NDArray[np.int64]
    distance: NDArray[np.int64]
    client_port: NDArray[np.int64]
    server_port: NDArray[np.int64]
    packets: NDArray[np.int64]
    size: NDArray[np.int64]
    delay: NDArray[np.int64]
    lasting: NDArray[np.bool_]
    failing: NDArray[np.bool_]


def block(shape: Shape) -> Block:
    """The flows that start at one node. ValueError where a node has not so many ports, or no two peers."""
    count = shape.flows // 2
    if not 1 <= count <= HALF or shape.nodes < SERVERS + 1:
        raise ValueError(f"2 to {2 * HALF} flows, and {SERVERS + 1} nodes or more")
    rng = np.random.default_rng([shape.seed, 5])
    share = np.array([kind.share for kind in KINDS])
    kind = rng.choice(len(KINDS), count, p=share / share.sum())
    width = np.array([kind.ports for kind in KINDS])[kind]
    peers = rng.permutation(np.arange(1, shape.nodes))[: min(PEERS, shape.nodes - 1)]
    return Block(
        shape,
        kind,
        peers[rng.integers(0, len(peers), count)],
        rng.permutation(HALF)[:count],
        np.array([kind.port for kind in KINDS])[kind] + rng.integers(0, width),
        rng.geometric(0.05, count),
        rng.integers(60, 1400, count),
        rng.integers(0, 30 * 10**9, count),
        rng.random(count) < 0.5,
        rng.random(count) < FAILING,
    )


def _book(first: int, numbers: Any) -> Any:
    """IPv4 addresses as rows have them: shape (n,), dtype ADDRESS."""
    table = np.zeros((len(numbers), 16), np.uint8)
    table[:, 10:12] = 0xFF
    table[:, 12:] = (first + np.asarray(numbers)).astype(">u4").view(np.uint8).reshape(-1, 4)
    return table.view(ADDRESS)[:, 0]


def node_addresses(numbers: Any) -> Any:
    """10.10.0.11 and on."""
    return _book(0x0A0A000B, numbers)


def _pods(numbers: Any, flow: Any) -> Any:
    return _book(0x0A2A0000, np.asarray(numbers) * 64 + 2 + flow % 60)


def _ends(made: Block, node: int, *, asks: bool) -> tuple[Any, Any]:
    """Client's and server's node numbers; of flows from outside the client's has no meaning."""
    count = made.shape.nodes
    here = np.full(len(made.kind), node)
    return (here, (node + made.distance) % count) if asks else ((node - made.distance) % count, here)


def _rows(made: Block, node: int, minute: int, *, asks: bool) -> Iterator[Rows]:
    """Rows of the flows that the node starts (`asks`) or answers: there, back, and inside tunnels."""
    outside = np.array([kind.outside for kind in KINDS])[made.kind]
    tunnel = np.array([kind.tunnel for kind in KINDS])[made.kind]
    client, server = _ends(made, node, asks=asks)
    flow = np.arange(len(made.kind))
    moved = HALF + (made.client_port + minute * STEP) % HALF
    port = EPHEMERAL[0] + np.where(made.lasting, made.client_port, moved)
    asking = np.where(outside, _book(0xC6120000, flow % BALANCERS), node_addresses(client))
    ends = {True: (asking, port), False: (node_addresses(server), made.server_port)}
    inner = {True: (_pods(client, flow), port), False: (_pods(server, flow), made.server_port)}
    failing = made.failing & (client % TROUBLED[0] == TROUBLED[1]) & ~outside & ~tunnel
    seen = ~outside if asks else np.ones(len(flow), bool)
    for there in (True, False):
        sent = seen if there else seen & ~failing
        way = DIRECTION_OUT if there == asks else DIRECTION_IN
        plain, carried = sent & ~tunnel, sent & tunnel
        rows = _filled(made, plain, ends, there=there, way=way, minute=minute)
        for name, value in TRIES.items():
            rows[name][failing[plain]] = value
        yield rows
        yield _carriers(made, carried, ends, there=there, way=way, minute=minute)
        rows = _filled(made, carried, inner, there=there, way=way, minute=minute)
        rows["outer_src"], rows["outer_dst"] = ends[there][0][carried], ends[not there][0][carried]
        rows["tunnel"], rows["vni"] = VXLAN, 1
        yield rows


def _filled(made: Block, mine: Any, ends: Any, *, there: bool, way: int, minute: int) -> Rows:
    rows = np.zeros(int(mine.sum()), ROW)
    (rows["src"], rows["src_port"]), (rows["dst"], rows["dst_port"]) = (
        (address[mine], ports[mine]) for address, ports in (ends[there], ends[not there])
    )
    opens = ~made.lasting[mine] | (minute == 0)
    rows["protocol"], rows["direction"] = TCP, way
    rows["packets"] = made.packets[mine] + there
    rows["bytes"] = rows["packets"] * made.size[mine].astype(np.uint64)
    rows["interval"] = START + minute * MINUTE
    rows["start"] = rows["interval"] + made.delay[mine].astype(np.uint64) + np.uint64(not there)
    rows["end"] = rows["start"] + np.uint64(20 * 10**9)
    rows["tcp_flags"] = ACK | PSH | np.where(opens, SYN, 0)
    rows["events"] = np.where(opens, EVENT_SYN if there else EVENT_SYN_ACK, 0)
    return rows


def _carriers(made: Block, mine: Any, ends: Any, *, there: bool, way: int, minute: int) -> Rows:
    rows = _filled(made, mine, ends, there=there, way=way, minute=minute)
    rows["src_port"] = ends[True][1][mine] if there else EPHEMERAL[0] + made.client_port[mine][::-1]
    rows["dst_port"], rows["protocol"] = VXLAN_PORT, UDP
    rows["tcp_flags"], rows["events"] = 0, EVENT_CARRIER
    rows["bytes"] += rows["packets"] * np.uint64(50)
    return rows


def part(made: Block, node: int, minute: int) -> OneWay:
    """What one node stores of one minute."""
    rows = np.concatenate([rows for asks in (True, False) for rows in _rows(made, node, minute, asks=asks)])
    rows = sum_rows(rows)  # carriers of two flows may share a 5-tuple, as they do on a wire
    frames = int(rows["packets"][rows["tunnel"] == 0].sum())
    name, begin = node_name(node), START + minute * MINUTE
    ledger = Coverage(name, start=begin, end=begin + MINUTE, frames=frames, flow=frames)
    return OneWay(rows, (Observer(name),), (ledger,), interval=MINUTE)


def node_name(node: int) -> str:
    """The first few are servers, the others agents."""
    return f"{'server' if node < SERVERS else 'agent'}-{node:04d}"


def cluster_yaml(shape: Shape) -> str:
    """The cluster file of a store."""
    addresses = node_addresses(np.arange(shape.nodes)).view(np.uint8).reshape(-1, 16)[:, 12:]
    lines = [
        f"  - {{name: {node_name(number)}, role: {node_name(number).partition('-')[0]},"
        f" addresses: [{'.'.join(map(str, address))}]}}\n"
        for number, address in enumerate(addresses.tolist())
    ]
    return "name: large\npod_cidrs: [10.42.0.0/16]\nnodes:\n" + "".join(lines)


def _write_node_minutes(shape: Shape, folder: str, wanted: list[tuple[int, int]]) -> tuple[int, int]:
    made, rows, size = block(shape), 0, 0
    for node, minute in wanted:
        path = Path(folder) / f"minute-{minute:05d}" / f"{node_name(node)}.parquet"
        table = part(made, node, minute)
        write_rows(table, path)
        rows, size = rows + len(table.rows), size + path.stat().st_size
    return rows, size


def write_store(folder: Path, shape: Shape, minutes: range, workers: int) -> tuple[int, int]:
    """Parts of all nodes, a folder for each minute. Returns rows and bytes."""
    for minute in minutes:
        (folder / f"minute-{minute:05d}").mkdir(parents=True)
    wanted = [(node, minute) for minute in minutes for node in range(shape.nodes)]
    shares = [wanted[i::workers] for i in range(workers)]
    with ProcessPoolExecutor(workers) as pool:
        done = list(pool.map(_write_node_minutes, [shape] * workers, [str(folder)] * workers, shares))
    return sum(rows for rows, _ in done), sum(size for _, size in done)
