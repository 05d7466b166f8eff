"""The lab as a whole.

Rule: puts the rooms together, in order, and takes them down on any exit; what happens is in the tables.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import trustme

from lab import etcd, faults, kernel, overlay, plan, processes, room, scenarios, topology
from lab.errors import LabError
from lab.scenarios import EVERY, Flow, Inner, Scenario
from lab.truth import Truth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

VARIANTS = ("vxlan", "wireguard")
PROGRAMS = ("setpriv", "nsenter", "nft")
ENDINGS = (signal.SIGTERM, signal.SIGHUP)
SECONDS = 3.0
"""How long the long connections of one run last."""


@dataclass(frozen=True)
class Node:
    """One machine: its uplink is ``eth0`` inside ``namespace``, and ``pid`` is a process that lives there."""

    name: str
    role: str
    namespace: str
    addresses: tuple[str, ...]
    pid: int


class Lab:
    """A small cluster in network namespaces. Use it as a context manager:

        with Lab() as lab:
            lab.start()                       # everything listens, nothing is sent
            ...                               # start who is to watch, in lab.nodes["server-1"].namespace
            truth = lab.run("baseline")       # traffic; returns when it is over

    Raises LabError when it cannot be built or when something did not happen as the scenario's table says.
    """

    def __init__(self, variant: str = "vxlan") -> None:
        if variant not in VARIANTS:
            raise LabError(f"no variant {variant!r}, only {', '.join(VARIANTS)}")
        self.variant = variant
        self.nodes: dict[str, Node] = {}
        self._topology = topology.Topology()
        self.namespaces = self._topology.namespaces
        self._rooms: dict[str, room.Room] = {}
        self._prepared: set[str] = set()
        self._wireguard: overlay.WireGuard | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._open = False

    # -- coming up and going down

    def __enter__(self) -> Self:
        check_machine()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self._topology.tag}-"))
        self.children = processes.Children(self.folder)
        self.etcd = etcd.Etcd(self.children, self.namespaces, self.folder)
        self._open = True
        atexit.register(self.close)
        self._catch_signals()
        try:
            self._topology.build()
            if self.variant == "vxlan":
                overlay.build_vxlan(self.namespaces)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down; a second call does nothing, and no signal interrupts the first."""
        if not self._open:
            return
        with signals_wait():
            self._open = False
            self.children.kill_all()
            self._topology.remove()
            shutil.rmtree(self.folder, ignore_errors=True)
            atexit.unregister(self.close)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _catch_signals(self) -> None:
        """A signal that would end the process without a word ends it through the context manager instead."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in ENDINGS:
            if signal.getsignal(number) is signal.SIG_DFL:
                self._handlers[number] = signal.signal(number, _leave)

    # -- what runs in it

    def start(self) -> None:
        """Start everything that listens.

        Nothing is sent between nodes yet; etcd starts with the first baseline.
        """
        self._certificates()
        for name in (*plan.HOSTS, *plan.PODS):
            authority, certificate = self.folder / "ca.pem", self.folder / f"{name}.pem"
            self._rooms[name] = room.start(self.children, name, self.namespaces[name], authority, certificate)
        if self.variant == "wireguard":
            self._wireguard = overlay.WireGuard(self.children, self.namespaces)
            self._wireguard.build()
        self._serve(scenarios.LISTENERS)
        for host in plan.NODES.values():
            faults.open_node_port(self.namespaces[host.name], "web-1")
            ends = tuple(host.addresses.values())
            self.nodes[host.name] = Node(
                host.name, host.role, self.namespaces[host.name], ends, self._rooms[host.name].pid
            )

    def prepare(self, *names: str) -> None:
        """Bring about what must be so before anybody looks: listeners, firewalls, open connections."""
        for name in names:
            scenario = self._scenario(name)
            if name in self._prepared:
                continue
            self._prepared.add(name)
            self._serve(scenario.listens)
            for host, port in scenario.closes:
                self._rooms[host].order("close", port=port)
            for rule in scenario.refusals:
                faults.refuse_client(self.namespaces[rule.server], rule.how, rule.client, rule.ports)
            for client, server, port in scenario.losses:
                faults.lose_between(self.namespaces["switch"], client, server, port)
            self._break_overlay(scenario)
            if any(isinstance(item, Inner) and item.client == plan.OUTSIDE.name for item in scenario.items):
                self._foreign_tunnel()
            for client, action, server, port in scenario.opens:
                address = plan.addresses(server)[4]
                self._rooms[client].order("act", action=action, address=address, port=port, seconds=0.0)

    def _break_overlay(self, scenario: Scenario) -> None:
        for host in scenario.mutes:
            faults.mute_overlay(self.namespaces[host])
        for one, other, length in scenario.drowns:
            faults.lose_overlay(self.namespaces["switch"], one, other, length)
        for what in scenario.builds:
            BUILDS[what](self.namespaces)

    def run(self, *names: str, seconds: float = SECONDS) -> Truth:
        """Let scenarios happen, all side by side, and wait until they are over.

        Returns what happened. Raises LabError if one attempt did not end as its table says.
        """
        self.prepare(*names)
        with_etcd = self.etcd.running or scenarios.need_etcd(names)
        todo = scenarios.items(names, self.variant, etcd=with_etcd)
        self._act([(name, item) for name, item in todo if isinstance(item, Flow) and item.first], seconds=0.0)
        if with_etcd and not self.etcd.running:
            self.etcd.start()
        self._act(
            [(name, item) for name, item in todo if not (isinstance(item, Flow) and item.first)], seconds
        )
        later = self._break(names, seconds)
        truth = Truth(self.variant)
        for name, item in todo + later:
            truth.add(name, item)
        return truth

    def _break(self, names: tuple[str, ...], seconds: float) -> list[tuple[str, Flow | Inner]]:
        """What fails once all else is done, and what happens then."""
        broken = [scenario for scenario in map(self._scenario, names) if scenario.stops]
        for scenario in broken:
            for host in scenario.stops:
                faults.stop_pods(self.namespaces[host])
        later = [(scenario.name, item) for scenario in broken for item in scenario.later]
        self._act(later, seconds)
        return later

    def settle(self) -> None:
        """Let nothing new begin: what is open stays open, no handshake starts. For the end of a recording."""
        time.sleep(0.3)
        if self.etcd.running:
            self.etcd.hold()
            time.sleep(0.2)

    def silence(self) -> None:
        """Nothing speaks by itself any more: neither etcd nor WireGuard. What they had open ends, without a
        handshake.
        """
        self.etcd.end()
        if self._wireguard is not None:
            self._wireguard.end()
        time.sleep(0.5)

    def _scenario(self, name: str) -> scenarios.Scenario:
        scenario = EVERY.get(name)
        if scenario is None:
            raise LabError(f"no scenario {name!r}, only {', '.join(EVERY)}")
        if self.variant not in scenario.variants:
            raise LabError(f"{name} needs the variant {' or '.join(scenario.variants)}")
        return scenario

    def _certificates(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        for name in (*plan.HOSTS, *plan.PODS):
            names = (name, "localhost", "127.0.0.1", "::1", *plan.addresses(name).values())
            pem = authority.issue_cert(*names, common_name=name).private_key_and_cert_chain_pem
            pem.write_to_path(str(self.folder / f"{name}.pem"))

    def _serve(self, listeners: tuple[tuple[str, str, int], ...]) -> None:
        tickets = [
            (where, self._room(where).send("serve", service=service, port=port))
            for where, service, port in listeners
        ]
        for where, ticket in tickets:
            self._rooms[where].result(ticket)

    def _room(self, name: str) -> room.Room:
        if name not in self._rooms:
            raise LabError("the lab is not started: call start() first")
        return self._rooms[name]

    def _foreign_tunnel(self) -> None:
        """The outside host builds a VXLAN device of the cluster's network, with web-2's node behind it."""
        node = plan.NODES[plan.node_of("web-2")]
        with topology.routes(self.namespaces[plan.OUTSIDE.name]) as ip:
            index = overlay.add_vxlan(ip, plan.OUTSIDE, 4)
            topology.add_address(ip, index, plan.FOREIGN_POD, 32)
            overlay.add_peer(ip, index, node, 4)

    def _act(self, todo: list[tuple[str, Flow | Inner]], seconds: float) -> None:
        """Do all items at once; what etcd does by itself is looked up after the others are done."""
        tickets = [
            (name, item, action, where, where.send("act", **words))
            for name, item in todo
            for action, where, words in self._orders(item, seconds)
        ]
        for _, item in todo:
            if "etcdctl" in item.do:
                self.etcd.write_and_read(item.client, item.server)
        for name, item, action, where, ticket in tickets:
            outcomes = where.result(ticket, seconds + 30)
            if set(outcomes) != {item.expected.outcome}:
                raise LabError(
                    f"{name}: {action} {item.client} → {item.server} {item.protocol}/{item.port}"
                    f" gave {outcomes}, not {item.expected.outcome}"
                )
        for name, item in todo:
            if "etcd-peer" in item.do and not self.etcd.peer_connection(item.client, item.server):
                raise LabError(f"{name}: etcd on {item.client} has no connection to its peer {item.server}")

    def _orders(self, item: Flow | Inner, seconds: float) -> Iterator[tuple[str, room.Room, dict[str, Any]]]:
        for action in item.do:
            if action in ("etcdctl", "etcd-peer"):
                continue
            target = plan.addresses(item.server)[item.family]
            if isinstance(item, Flow) and item.inside:
                target = plan.NODES[item.server].overlay_addresses[item.family]
            words: dict[str, Any] = {
                "action": action,
                "address": target,
                "port": item.port,
                "seconds": seconds,
                "times": 1 if len(item.do) > 1 else 2,  # one is enough beside a long connection
            }
            if isinstance(item, Flow) and item.ports:
                words["ports"] = item.ports
            host = plan.ALIASES[item.client][0] if item.client in plan.ALIASES else item.client
            yield action, self._room(host), words


def _build_nat(namespaces: dict[str, str]) -> None:
    """The outside host has the address that every virtual machine behind NAT has, and nodes go there."""
    host, address = plan.ALIASES["nat"]
    with topology.routes(namespaces[host]) as ip:
        topology.add_address(ip, topology.index_of(ip, plan.UPLINK), address, 32)
    for node in plan.NODES:
        with topology.routes(namespaces[node]) as ip:
            ip.route("add", dst=f"{address}/32", gateway=plan.addresses(host)[4])


BUILDS: dict[str, Callable[[dict[str, str]], None]] = {
    "bad-checksums": lambda all_: faults.corrupt_checksums(all_["agent-3"]),
    "nat": _build_nat,
    "stale-network": lambda all_: overlay.add_stale_network(all_, ("stale-agent-1", "stale-agent-3")),
    "virtual-address": lambda all_: overlay.move_to_virtual_address(all_["server-3"], plan.NODES["server-3"]),
}
"""What a scenario may have brought up before anybody looks."""


def check_machine() -> None:
    """Raises LabError where the lab cannot be built, and says what is missing."""
    if os.geteuid() != 0:
        raise LabError("network namespaces need root")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}")


def clean() -> list[str]:
    """Remove what killed labs left behind, and say what it was. Their programs died with them."""
    namespaces = topology.leftovers(kernel.NAMESPACES)
    folders = topology.leftovers(Path(tempfile.gettempdir()))
    for path in namespaces:
        topology.remove_namespace(path.name)
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)
    return [str(path) for path in (*namespaces, *folders)]


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """No ending signal is delivered to this thread before the block is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDINGS})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
