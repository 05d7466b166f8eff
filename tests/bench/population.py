"""Who talks to whom. Rule: knows a cluster's services and addresses, no frame, no file and no time.

The flows depend on seed, number, mix and nodes alone, so captures of different
length can hold the same flows.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

TCP, UDP = 6, 17
VXLAN_PORT = 8472
EPHEMERAL = (32768, 60999)  # net.ipv4.ip_local_port_range; VXLAN takes its source port from it too
EPHEMERAL_COUNT = EPHEMERAL[1] - EPHEMERAL[0] + 1
SERVERS = 3
NODES = (SERVERS + 2, 250)  # at most one pod /24 each in 10.42.0.0/16


@dataclass(frozen=True)
class Service:
    """One line of the mix: default share, protocol, server ports, who asks and who answers.

    ``tunnel``: the flow runs between pods of the two nodes, inside VXLAN.
    """

    share: float
    protocol: int
    ports: tuple[int, ...]
    clients: str
    servers: str
    tunnel: bool = False


# Ports and pairs of RKE2's table with the Canal CNI; the shares are a guess at a busy cluster.
SERVICES: dict[str, Service] = {
    "apiserver": Service(25, TCP, (6443,), "agents", "servers"),
    "kubelet": Service(20, TCP, (10250,), "servers", "agents"),
    "supervisor": Service(10, TCP, (9345,), "agents", "servers"),
    "etcd-client": Service(5, TCP, (2379,), "servers", "servers"),
    "etcd-peer": Service(5, TCP, (2380,), "servers", "servers"),
    "nodeport": Service(15, TCP, tuple(range(30000, 32768)), "outside", "nodes"),
    "nodeport-udp": Service(5, UDP, tuple(range(30000, 32768)), "outside", "nodes"),
    "vxlan": Service(15, TCP, (80, 443, 5432, 8080), "nodes", "nodes", tunnel=True),
}


def default_mix() -> dict[str, float]:
    """Name → share of the flows, as in SERVICES."""
    return {name: service.share for name, service in SERVICES.items()}


def parse_mix(text: str) -> dict[str, float]:
    """``vxlan=50,kubelet=50`` → shares; services not named get none. ValueError says which part is wrong."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        if name.strip() not in SERVICES:
            raise ValueError(f"no service {name.strip()!r}; there are {', '.join(SERVICES)}")
        mix[name.strip()] = float(share)
    if min(mix.values()) < 0 or sum(mix.values()) <= 0:
        raise ValueError(f"shares are at least 0 and not all 0, not {text!r}")
    return mix


def scramble(values: NDArray[np.integer], salt: int) -> NDArray[np.uint64]:
    """Counter-based random 64-bit numbers (splitmix64): the n-th is the same whatever is asked beside it."""
    x = np.asarray(values).astype(np.uint64) + np.uint64((salt * 0x9E3779B97F4A7C15) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


@dataclass(frozen=True)
class Addresses:
    """Every host of the capture. Host numbers: nodes, then as many outside hosts, then 256 pods a node.

    ``v4``: uint8 (hosts, 4); ``v6``: uint8 (hosts, 16), both in network order.
    """

    nodes: int
    v4: Bytes
    v6: Bytes

    def text(self, family: int, host: int) -> str:
        """Canonical text of one host's address; family is 4 or 6."""
        return str(ipaddress.ip_address((self.v4 if family == 4 else self.v6)[host].tobytes()))


def addresses(nodes: int) -> Addresses:
    """Nodes 10.10.0.0/16, fd00:10::/64; outside: RFC 2544, 3849; pods 10.42.0.0/16, fd00:42::/64."""
    numbers = (np.arange(nodes) + 11, np.arange(nodes) + 1, np.arange(nodes * 256))
    bases4 = (0x0A0A0000, 0xC6120000, 0x0A2A0000)
    bases6 = (0xFD00_0010_0000_0000, 0x2001_0DB8_0000_0000, 0xFD00_0042_0000_0000)
    low = np.concatenate(numbers)
    v4 = np.concatenate([base + n for base, n in zip(bases4, numbers, strict=True)]).astype(">u4")
    v6 = np.empty((len(low), 2), ">u8")
    v6[:, 0] = np.repeat(np.array(bases6, np.uint64), [len(n) for n in numbers])
    v6[:, 1] = low
    return Addresses(nodes, v4.view(np.uint8).reshape(-1, 4), v6.view(np.uint8).reshape(-1, 16))


@dataclass(frozen=True)
class Population:
    """Client/server flows, one element each in every array; int64 but for ``tunnel``.

    Shape (flows,): ``service`` (place in SERVICES), ``family`` (4 or 6, both layers), ``protocol`` (of the
    flow itself), ``tunnel``. Shape (flows, 2), [client, server]: ``host`` (on the wire, its number in
    ``addresses``), ``port``, ``pod`` (host numbers inside the tunnel), ``carrier_port`` (source port of what
    that side tunnels).
    """

    addresses: Addresses
    service: Ints
    family: Ints
    protocol: Ints
    tunnel: NDArray[np.bool_]
    host: Ints
    port: Ints
    pod: Ints
    carrier_port: Ints

    def __len__(self) -> int:
        """How many client/server flows."""
        return len(self.service)


def _pool(name: str, nodes: int) -> tuple[int, int]:
    """First host number and size of a side."""
    return {
        "servers": (0, SERVERS),
        "agents": (SERVERS, nodes - SERVERS),
        "nodes": (0, nodes),
        "outside": (nodes, nodes),
    }[name]


def _clients(count: int, pool: tuple[int, int], rng: np.random.Generator) -> tuple[Ints, Ints]:
    """``count`` different (host, ephemeral port): a slot a port, and each time round the next host."""
    first, size = pool
    if count > EPHEMERAL_COUNT * size:
        raise ValueError(f"{count} flows do not fit on {size} clients; use more nodes")
    slot, turn = np.arange(count) % EPHEMERAL_COUNT, np.arange(count) // EPHEMERAL_COUNT
    ports = EPHEMERAL[0] + rng.permutation(EPHEMERAL_COUNT)
    begin = rng.integers(0, size, EPHEMERAL_COUNT)
    return first + (begin[slot] + turn) % size, ports[slot]


def _servers(clients: Ints, pool: tuple[int, int], rng: np.random.Generator) -> Ints:
    """One server for each client, never the client itself."""
    first, size = pool
    server = rng.integers(0, size, len(clients))
    return np.asarray(first + np.where(first + server == clients, (server + 1) % size, server))


def populate(flows: int, *, seed: int, mix: Mapping[str, float], nodes: int, ipv6: float) -> Population:
    """Draw the flows: no two share a one-way 5-tuple, but tunnel carriers may, as they do on a wire."""
    rng = np.random.default_rng([seed, 0])
    names = list(SERVICES)
    share = np.array([mix.get(name, 0.0) for name in names])
    service = rng.choice(len(names), flows, p=share / share.sum())
    host, port = np.empty((flows, 2), np.int64), np.empty((flows, 2), np.int64)
    for number, name in enumerate(names):
        entry, rows = SERVICES[name], np.flatnonzero(service == number)
        host[rows, 0], port[rows, 0] = _clients(len(rows), _pool(entry.clients, nodes), rng)
        host[rows, 1] = _servers(host[rows, 0], _pool(entry.servers, nodes), rng)
        port[rows, 1] = rng.choice(np.array(entry.ports), len(rows))
    sides = scramble(np.arange(flows * 2), seed + 1).reshape(flows, 2)
    tunnel = np.array([SERVICES[name].tunnel for name in names])[service]
    pods = 2 * nodes + host * 256 + 2 + (sides % np.uint64(250)).astype(np.int64)
    return Population(
        addresses=addresses(nodes),
        service=service.astype(np.int64),
        family=np.where(rng.random(flows) < ipv6, 6, 4),
        protocol=np.array([SERVICES[name].protocol for name in names])[service],
        tunnel=tunnel,
        host=host,
        port=port,
        pod=np.where(tunnel[:, None], pods, 0),
        carrier_port=EPHEMERAL[0] + ((sides >> np.uint64(32)) % np.uint64(EPHEMERAL_COUNT)).astype(np.int64),
    )
