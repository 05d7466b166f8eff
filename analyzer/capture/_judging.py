"""What the kernel needs to judge. Rule: cluster and compiled specification in, arrays for maps out; no
kernel.

The verdict itself is the one of ``verdict.py``: which rule a port is in, and whether it takes a pair of
roles.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analyzer.cluster import SPECIAL
from analyzer.errors import SpecError
from analyzer.flows import parse_address
from analyzer.spec import PROTOCOLS, ROLE_MASKS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from analyzer.cluster import Cluster
    from analyzer.spec import Spec

#: bpf/live.c
CLASSES = 1024
PLACE_KEY = np.dtype([("generation", "u4"), ("address", "V16")])
PLACE = np.dtype([("member", "u4"), ("roles", "u4")])
RANGE_KEY = np.dtype([("prefix_length", "u4"), ("generation", "u4"), ("address", "V16")])
PORT_CLASS = np.dtype([("own", "u2"), ("other", "u2")])
_GENERATION_BITS = 32  # of a range's key, before the address


@dataclass(frozen=True)
class Judging:
    """The contents of the verdict maps, generation 0.

    ``places``: shape (addresses,), keys and values. ``ranges``: shape (CIDRs,), addresses that are no node
    and yet not outside. ``port_classes``: shape (P × 65536,). ``allowed``: u4, shape (classes × 16 × 16,).
    """

    place_keys: NDArray[np.void]
    places: NDArray[np.void]
    range_keys: NDArray[np.void]
    port_classes: NDArray[np.void]
    allowed: NDArray[np.uint32]


def judging(cluster: Cluster, spec: Spec) -> Judging:
    """What to load so that the kernel judges as :func:`analyzer.verdict.judge` does.

    Raises SpecError where the specification has more distinct sets of rules than the kernel's table.
    """
    compiled = spec.compile()
    if len(compiled.allowed) > CLASSES:
        raise SpecError(
            f"its ports are in {len(compiled.allowed)} sets of rules, the kernel's table holds {CLASSES}",
            where=spec.name,
            next_step="merge rules that always stand together",
        )
    keys, places = _places(cluster)
    classes = np.zeros(len(PROTOCOLS) << 16, PORT_CLASS)
    classes["own"], classes["other"] = compiled.port_class.ravel(), compiled.other_class.ravel()
    allowed = (compiled.allowed >= 0).astype(np.uint32).reshape(-1, ROLE_MASKS * ROLE_MASKS)
    return Judging(keys, places, _ranges(cluster), classes, allowed.ravel())


def _places(cluster: Cluster) -> tuple[NDArray[np.void], NDArray[np.void]]:
    texts = [address for _, _, addresses in cluster.rows() for address in addresses]
    found = cluster.places(texts)
    keys, places = np.zeros(len(texts), PLACE_KEY), np.zeros(len(texts), PLACE)
    keys["address"] = [np.void(parse_address(text)) for text in texts]
    places["member"], places["roles"] = found.member, found.role
    return keys, places


def _ranges(cluster: Cluster) -> NDArray[np.void]:
    pods = [*cluster.pod_cidrs, *(cidr for node in cluster.nodes for cidr in node.pod_cidrs)]
    texts = dict.fromkeys([*pods, *cluster.service_cidrs, *(cidr for _, cidr in SPECIAL)])
    keys = np.zeros(len(texts), RANGE_KEY)
    for row, network in zip(keys, map(ipaddress.ip_network, texts), strict=True):
        row["address"] = np.void(parse_address(str(network.network_address)))
        row["prefix_length"] = _GENERATION_BITS + network.prefixlen + (96 if network.version == 4 else 0)
    return keys
