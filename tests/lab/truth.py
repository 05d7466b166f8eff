"""What the lab did, as rows.

Rule: turns items that were seen to happen into truth.json; neither makes nor watches traffic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lab import plan
from lab.errors import LabError
from lab.scenarios import Expected, Flow, Inner

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SCHEMA = 1
Key = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class Row:
    """One (scenario, client, server, protocol, server port) of what crossed the uplinks."""

    scenario: str
    client: str
    server: str
    protocol: str
    port: int
    expected: Expected
    ports: tuple[int, ...] = ()

    @property
    def key(self) -> Key:
        return self.scenario, self.client, self.server, self.protocol, self.port

    def document(self) -> dict[str, Any]:
        ends_in = (
            "external" if self.client not in plan.NODES or self.server not in plan.NODES else "inter-node"
        )
        row = {
            "scenario": self.scenario,
            "client": self.client,
            "server": self.server,
            "protocol": self.protocol,
            "port": self.port,
            "scope": ends_in,
            "verdict": self.expected.verdict,
            "outcome": self.expected.outcome,
            "finding": self.expected.finding,
        }
        return row | ({"ports": list(self.ports)} if self.ports else {})


@dataclass
class Truth:
    """Everything that one or more runs of a lab did.

    ``overlay`` holds the inner flows of tunnels that can be read.
    """

    variant: str
    scenarios: list[str] = field(default_factory=list)
    rows: dict[Key, Row] = field(default_factory=dict)
    overlay: list[dict[str, Any]] = field(default_factory=list)

    def add(self, scenario: str, item: Flow | Inner) -> None:
        """Note that an item happened as its table says.

        Raises LabError where two scenarios contradict each other.
        """
        if scenario not in self.scenarios:
            self.scenarios.append(scenario)
        if isinstance(item, Inner):
            self._add_inner(scenario, item)
            return
        client, server = plan.public_name(item.client), plan.public_name(item.server)
        self._add_row(Row(scenario, client, server, item.protocol, item.port, item.expected, item.ports))
        if item.leads_to is not None:
            self._add_inner(scenario, item.leads_to)

    def _add_inner(self, scenario: str, item: Inner) -> None:
        """An inner flow's carriers, a row for each direction sent; WireGuard has items of its own."""
        if self.variant != "vxlan":
            return
        client, server = (plan.public_name(plan.node_of(name)) for name in (item.client, item.server))
        carriers = item.carriers or item.expected
        self._add_row(Row(scenario, client, server, "udp", plan.VXLAN_PORT, carriers))
        if carriers.outcome == "answered":
            self._add_row(Row(scenario, server, client, "udp", plan.VXLAN_PORT, carriers))
        inner = {
            "client": inner_source(item),
            "server": plan.addresses(item.server)[item.family],
            "protocol": item.protocol,
            "port": item.port,
            "outcome": item.expected.outcome,
            "vni": plan.VNI,
        }
        if inner not in self.overlay:
            self.overlay.append(inner)

    def _add_row(self, row: Row) -> None:
        for other in self.rows.values():
            if other.key[1:] == row.key[1:] and other.expected != row.expected:
                raise LabError(
                    f"{row.scenario} and {other.scenario} contradict each other about {row.key[1:]}"
                )
        self.rows[row.key] = row

    def seen_by(self, nodes: Iterable[str]) -> Truth:
        """What of it crossed these nodes' uplinks."""
        names = set(nodes)
        inside = {
            plan.addresses(pod)[family]
            for pod in plan.PODS
            if plan.node_of(pod) in names
            for family in (4, 6)
        }
        inside |= {plan.NODES[name].overlay_addresses[family] for name in names for family in (4, 6)}
        return Truth(
            self.variant,
            self.scenarios,
            {key: row for key, row in self.rows.items() if names & {row.client, row.server}},
            [inner for inner in self.overlay if inside & {inner["client"], inner["server"]}],
        )

    def document(self) -> dict[str, Any]:
        rows = sorted(self.rows.values(), key=lambda row: row.key)
        overlay = sorted(self.overlay, key=lambda inner: tuple(map(str, inner.values())))
        return {
            "schema": SCHEMA,
            "variant": self.variant,
            "scenarios": self.scenarios,
            "rows": [row.document() for row in rows],
            "overlay": overlay,
        }

    def write(self, path: Path) -> None:
        """JSON with one row a line, so that two recordings can be compared by eye."""
        document = self.document()
        parts = []
        for key, value in document.items():
            if key in ("rows", "overlay"):
                lines = ",\n  ".join(json.dumps(row) for row in value)
                parts.append(f'"{key}": [\n  {lines}\n]' if value else f'"{key}": []')
            else:
                parts.append(f'"{key}": {json.dumps(value)}')
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def inner_source(item: Inner) -> str:
    """The address that an inner flow comes from."""
    if item.client in plan.PODS or item.client in plan.ALIASES:
        return plan.addresses(item.client)[item.family]
    if item.client == plan.OUTSIDE.name:
        return plan.FOREIGN_POD
    return plan.NODES[item.client].overlay_addresses[item.family]
