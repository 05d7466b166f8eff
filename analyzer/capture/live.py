"""Live capture on a node. Rule: runs the eBPF program, the clock and the parts; knows no table that people
see and no terminal: whoever asked is told through a :class:`Teller`.

The kernel counts into one of two tables, by time. When an interval is over the other one counts on, and the
first is read at rest; so the parts add up to what the interface carried, to the packet.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from analyzer.capture import _tc, who
from analyzer.capture._judging import judging
from analyzer.capture._program import DROP_ROWS, FLOWS, LEDGER, Program, check_machine
from analyzer.capture.alerts import Alert, Flood, Reader
from analyzer.capture.pcapng import Writer
from analyzer.cluster import Cluster, load_cluster
from analyzer.errors import AnalyzerError, CaptureError, LiveError
from analyzer.facts import DROP, OWNER, Facts, sum_drops
from analyzer.rows import Coverage, Endpoint, Observer, OneWay, as_text, merge, sum_rows
from analyzer.spec import DEFAULT_SPEC, Spec, load_spec
from analyzer.store import add_rows, flush, writing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

NS = 10**9
TICK_NS = NS // 4
#: a table that is so full is emptied before its interval ends
PRESSURE = 0.5
#: rows and facts kept back for the interval's part, above which they are written at once
PENDING_ROWS = 1_000_000
#: bytes of the 255 that file systems allow; Kubernetes allows a node 253
LONGEST_NAME = 200
LISTENERS_EVERY_NS = 60 * NS
POLL_MS = 100
#: how many times as long as it took to look after the interfaces nobody looks again
CHECK_PAUSE = 20
#: alerts do not wait behind what keeps the node busy; their thread sleeps but for them
ALERT_NICE = -10


@dataclass(frozen=True)
class Order:
    """What to capture. `interfaces`: names, none for the node's uplinks. `cluster`, `spec`: files or names,
    read again on reload; without a cluster nothing is judged. `node`: how to call this node, by default as
    the cluster does or by its host name. `interval`: ns of one part. `flows`: rows that fit the kernel's
    table. `duration`: ns, 0 until stopped. `pcap`: where the packets of alerts go. `tcx`: attach by tcx where
    the kernel has it, else by filters.
    """

    folder: Path
    interfaces: tuple[str, ...] = ()
    cluster: str | Path | None = None
    spec: str | Path = DEFAULT_SPEC
    node: str = ""
    interval: int = 10 * NS
    duration: int = 0
    flows: int = FLOWS
    pcap: Path | None = None
    tcx: bool = True


@dataclass(frozen=True)
class Part:
    """One interval, written: where, and what is in it."""

    path: Path
    rows: OneWay
    ledger: Coverage


class Teller(Protocol):
    """Who is told what happens. `alert` is called in a thread of its own, as soon as the kernel tells."""

    def started(self, capture: Collector) -> None:
        """Packets are being counted."""

    def alert(self, alert: Alert) -> None:
        """A flow outside the specification began."""

    def part(self, part: Part) -> None:
        """An interval is over and its part written."""

    def note(self, text: str) -> None:
        """Something to know, in a line."""


class Sign:
    """A threading.Event that a signal handler may set. It runs in the very thread that waits, and would wait
    for ever for the lock that an Event holds at that moment; a SimpleQueue takes it.
    """

    def __init__(self) -> None:
        self._set = False
        self._woken: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Wakes who waits."""
        self._set = True
        self._woken.put(None)

    def clear(self) -> None:
        """As if it had not been set."""
        self._set = False

    def is_set(self) -> bool:
        """Whether it was."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Returns when it is set, or so many seconds are over; whether it is set."""
        if not self._set:
            with suppress(Empty):
                self._woken.get(timeout=seconds)
        return self._set


class Collector:
    """One capture, from start to summary.

    Set `stop` to end it, `reload` to have the cluster and specification files read again; both from any
    thread or signal handler.
    """

    def __init__(self, order: Order, teller: Teller) -> None:
        self.order, self.teller = order, teller
        self.stop, self.reload = Sign(), Sign()
        self.node = order.node
        self.interfaces: tuple[str, ...] = ()
        self.missing: tuple[str, ...] = ()
        self.total = Coverage("")
        self.parts = 0
        self.alerts: dict[str, int] = {}
        self.flood = Flood()
        self._pods = who.Pods()
        self._reader: Reader | None = None
        self._pcap: Writer | None = None
        self._pending: list[OneWay] = []
        self._slot = 0
        self._vanished: list[str] = []
        self._next_check = 0
        self._before: set[tuple[str, str]] = set()
        self._fault: Exception | None = None
        self._listeners: frozenset[Endpoint] = frozenset()
        self._listened = 0

    # ---- before ----

    def run(self) -> Coverage:
        """Captures until stopped, and returns the ledger of all of it.

        Raises LiveError where this machine cannot do it or an interface vanished; AnalyzerError where a file
        is at fault. Nothing stays on the interfaces, however it ends.
        """
        check_machine()
        cluster, spec = self._inventory()
        self._find_place(cluster)
        self._types = {name: _tc.link_type(name) for name in self.interfaces}
        self._make_folder()
        with ExitStack() as stack:
            token = stack.enter_context(_tc.Token())
            for left in _tc.remove_leftovers():
                self.teller.note(
                    f"removed a filter that a killed run left on {left.interface} ({left.direction})"
                )
            if self.order.pcap:
                stream = stack.enter_context(_created(self.order.pcap))
                self._pcap = Writer(stream, list(self._types.items()))
            self._program = stack.enter_context(Program(self.order.flows, self._types.values()))
            self._prepare(cluster, spec)
            with self._watched(token):
                try:
                    self._loop()
                    self._look_ahead()
                except Exception as error:  # what was counted is written all the same
                    self._fault = error
                until = time.monotonic_ns()  # from now on not all of them are watched
            self._finish(until)
        if self._fault is not None:
            raise self._fault
        if self._vanished:
            raise LiveError(
                f"{' and '.join(self._vanished)} vanished during the capture, or another program swept it",
                next_step="what was captured before is written; see `rke2-flows doctor`",
            )
        return self.total

    def _inventory(self) -> tuple[Cluster | None, Spec]:
        cluster = load_cluster(self.order.cluster) if self.order.cluster else None
        return cluster, load_spec(self.order.spec)

    def _find_place(self, cluster: Cluster | None) -> None:
        """Which node this is, and which interfaces carry its addresses."""
        here = {a for addresses in _tc.local_addresses().values() for a in addresses}
        nodes = cluster.nodes if cluster else ()
        found = [node for node in nodes if here & set(node.addresses)]
        self.node = self.order.node or (found[0].name if found else as_text(socket.gethostname()))
        named = [node for node in nodes if node.name == self.node]
        addresses = {a for node in named or found for a in node.addresses}
        self.interfaces = tuple(dict.fromkeys(self.order.interfaces)) or tuple(_tc.uplinks(addresses & here))
        if not self.interfaces:
            raise LiveError(
                "no interface leads to other nodes", next_step="name it with -i; `ip -brief link` lists them"
            )
        if cluster and self.order.node and not named:
            known = ", ".join(node.name for node in nodes)
            self.teller.note(f"no node of the cluster file is called {self.node} (there are {known})")
        if cluster and not found:
            self.teller.note("no node of the cluster file has an address of this machine")
        self._addresses = sorted(here)
        self.total = Coverage(self.node)

    def _make_folder(self) -> None:
        """There is a folder, and it takes files: better asked now than when the first part is full."""
        try:
            folder = self.order.folder.absolute()
            missing = [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for place in missing:
                flush(place.parent)
            with TemporaryFile(dir=self.order.folder):
                pass
        except OSError as error:
            raise CaptureError(
                f"no parts can be written there: {error.strerror}",
                where=str(self.order.folder),
                next_step="give a folder that can be written",
            ) from error

    def _prepare(self, cluster: Cluster | None, spec: Spec) -> None:
        self.missing = self._program.features.missing
        if cluster:
            self._program.judge_by(judging(cluster, spec))
            self._reader = Reader(cluster, spec, self._pods.pod_of)
        self._program.on_alert(self._told)
        self._links = {_index(name): name for name in self.interfaces}

    @contextmanager
    def _watched(self, token: _tc.Token) -> Iterator[None]:
        """The program is on every interface and alerts are read, for the length of the block."""
        with ExitStack() as stack:
            functions = {link: self._program.functions(link) for link in self._types.values()}
            self._begin()
            stack.enter_context(self._alerting())  # left last: what is told until the end is heard
            self._attachments = [
                stack.enter_context(_tc.Attachment(name, *functions[link], token, tcx=self.order.tcx))
                for name, link in self._types.items()
            ]
            self._since = time.monotonic_ns()  # from now on all of them are watched
            self._ends = self._since + self.order.duration if self.order.duration else None
            self._look_ahead()
            self.teller.started(self)
            yield

    def _look_ahead(self) -> None:
        """What of others has come to run before us, and may keep packets to itself; each is told once."""
        for attachment in self._attachments:
            with suppress(LiveError):  # it vanished, which is told elsewhere
                found = [(attachment.interface, one) for one in attachment.behind]
                new = [one for one in found if one not in self._before]
                self._before.update(new)
                if new:
                    names = ", ".join(name for _, name in new)
                    self._miss(f"what {names} on {attachment.interface}, running first, keeps to itself")

    def _miss(self, what: str) -> None:
        self.missing = (*self.missing, what)
        self.teller.note(f"not captured: {what}")

    # ---- time ----

    def _begin(self) -> None:
        self._offset = _to_epoch()
        self._boundary = self._next_boundary()
        self._program.set_boundary(self._boundary, self._slot)
        self._pending.append(self._at_start())

    def _next_boundary(self) -> int:
        """When the current interval ends: intervals begin at multiples of their length since the epoch."""
        wall = time.monotonic_ns() + self._offset
        return wall - wall % self.order.interval + self.order.interval - self._offset

    def _loop(self) -> None:
        while not self.stop.wait(max(0, min(self._boundary - time.monotonic_ns(), TICK_NS)) / NS):
            now = time.monotonic_ns()
            if self.reload.is_set():
                self.reload.clear()
                self._reload()
            if self._ends is not None and now >= self._ends:
                return
            if now >= self._boundary:
                self._look_ahead()
                self._turn()
                self._write()
            elif self._fills():
                self._turn_early(now)
            if self._check_links():
                return

    def _fills(self) -> bool:
        """Whether a table would overflow if it waited for the interval's end."""
        ledger = self._program.ledger(self._slot)
        return ledger["rows"] > PRESSURE * self.order.flows or ledger["drop_rows"] > PRESSURE * DROP_ROWS

    def _turn_early(self, now: int) -> None:
        """The table fills up: the other one takes over before the interval is over."""
        self._program.set_boundary(now, self._slot)
        self._turn()
        if sum(len(part.rows) + len(part.facts) for part in self._pending) > PENDING_ROWS:
            self._write()

    def _turn(self) -> None:
        """Reads the table that has come to rest; the clock may have been set meanwhile."""
        self._program.wait_for_readers()
        self._offset = _to_epoch()
        rested, self._slot = self._slot, 1 - self._slot
        self._take(rested, time.monotonic_ns())
        self._boundary = self._next_boundary()
        self._program.set_boundary(self._boundary, self._slot)

    def _take(self, slot: int, until: int) -> None:
        rows, ledger = self._program.take(slot)
        self._pending.append(self._one_way(rows, self._coverage(ledger, until), self._facts(slot)))
        self._since = until

    def _check_links(self) -> bool:
        """Whether no interface is left. Of hundreds it takes a while to ask, and is asked less often."""
        begun = time.monotonic_ns()
        if begun < self._next_check:
            return False
        for attachment in [a for a in self._attachments if not a.attached()]:
            attachment.detach()  # it may live on in another namespace
            self._attachments.remove(attachment)
            self._vanished.append(attachment.interface)
            if self._attachments:
                self._miss(f"{attachment.interface}, since it vanished or was swept")
        now = time.monotonic_ns()
        self._next_check = now + CHECK_PAUSE * (now - begun)
        return not self._attachments

    def _reload(self) -> None:
        if not self.order.cluster:
            self.teller.note("nothing to reload: there is no cluster file")
            return
        before = self._reader
        try:
            cluster, spec = load_cluster(self.order.cluster), load_spec(self.order.spec)
            tables = judging(cluster, spec)
            self._reader = Reader(cluster, spec, self._pods.pod_of)  # it has to know whom the new tables name
            self._program.judge_by(tables)
        except AnalyzerError as error:
            self._reader = before
            self.teller.note(f"not reloaded, judging goes on as before: {error}")
            return
        self.teller.note(f"reloaded {self.order.cluster} and {spec.name}")

    # ---- rows ----

    def _coverage(self, ledger: dict[str, int], end: int) -> Coverage:
        counts: dict[str, Any] = {name: ledger[count] for count, name in LEDGER.items() if name}
        window: dict[str, Any] = {"start": self._since + self._offset, "end": end + self._offset}
        return Coverage(self.node, missing="; ".join(self.missing), **window, **counts)

    def _one_way(self, rows: NDArray[np.void], coverage: Coverage, facts: Facts) -> OneWay:
        rows["start"] += np.uint64(self._offset)
        rows["end"] += np.uint64(self._offset)
        rows["interval"] = rows["start"] - rows["start"] % np.uint64(self.order.interval)
        numbers = np.zeros(max(self._links, default=0) + 1, np.uint32)
        for number, index in enumerate(self._links):
            numbers[index] = number
        rows["interface"] = numbers[np.minimum(rows["interface"], len(numbers) - 1)]
        return OneWay(
            sum_rows(rows),
            self._observers(),
            (coverage,),
            interval=self.order.interval,
            listeners=self._listening(),
            facts=facts,
        )

    def _observers(self) -> tuple[Observer, ...]:
        if len(self._links) == 1:
            return (Observer(self.node),)
        return tuple(Observer(self.node, name) for name in self._links.values())

    def _listening(self) -> frozenset[Endpoint]:
        """Who listens here; asked again once a minute."""
        now = time.monotonic_ns()
        if not self._listened or now - self._listened > LISTENERS_EVERY_NS:
            self._listened = now
            self._listeners = frozenset(
                Endpoint(found.address, found.protocol, found.port)
                for found in who.listeners(self._addresses)
            )
        return self._listeners

    def _facts(self, slot: int) -> Facts:
        names: dict[str, int] = {"": 0}
        owners = self._owners(*self._program.take_owners(), names)
        drops = self._drops(*self._program.take_drops(slot), names)
        return Facts(tuple(names), owners, drops)

    def _owners(
        self, keys: NDArray[np.void], values: NDArray[np.void], names: dict[str, int]
    ) -> NDArray[np.void]:
        owners = np.zeros(len(keys), OWNER)
        for name in ("src", "dst", "src_port", "dst_port"):
            owners[name] = keys[name]
        owners["protocol"] = socket.IPPROTO_TCP
        owners["pid"] = values["pid"]
        owners["process"] = _numbered(
            values["process"], names, lambda comm, _: comm.decode("utf-8", "replace")
        )
        owners["pod"] = _numbered(
            values["cgroup"],
            names,
            lambda cgroup, row: self._pods.pod_of(int(cgroup), int(values["pid"][row])),
        )
        return owners

    def _drops(
        self, keys: NDArray[np.void], values: NDArray[np.void], names: dict[str, int]
    ) -> NDArray[np.void]:
        drops = np.zeros(len(keys), DROP)
        for name in ("src", "dst", "src_port", "dst_port", "protocol"):
            drops[name] = keys[name]
        reasons = self._program.features.reasons
        drops["reason"] = _numbered(
            keys["reason"], names, lambda number, _: reasons.get(int(number), str(number))
        )
        drops["packets"] = values["packets"]
        for name in ("start", "end"):
            drops[name] = values[name] + np.uint64(self._offset)
        drops["interval"] = drops["start"] - drops["start"] % np.uint64(self.order.interval)
        return sum_drops(drops)

    def _at_start(self) -> OneWay:
        """Who owns the connections that were open before."""
        mine = [c for c in who.connections() if not c.listening]
        owners = np.zeros(len(mine), OWNER)
        names: dict[str, int] = {"": 0}
        for row, c in zip(owners, mine, strict=True):
            row["src"], row["dst"] = np.void(c.src), np.void(c.dst)
            row["src_port"], row["dst_port"], row["protocol"] = c.src_port, c.dst_port, socket.IPPROTO_TCP
            row["pid"] = c.pid
            row["process"] = names.setdefault(c.process, len(names))
            row["pod"] = names.setdefault(self._pods.pod_of(pid=c.pid) if c.pid else "", len(names))
        return OneWay(
            observers=self._observers(), interval=self.order.interval, facts=Facts(tuple(names), owners)
        )

    # ---- alerts ----

    @contextmanager
    def _alerting(self) -> Iterator[None]:
        over = threading.Event()

        def listen() -> None:
            with suppress(OSError):  # of this thread alone (setpriority(2)); a container may forbid it
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), ALERT_NICE)
            while not over.is_set():
                self._program.poll_alerts(POLL_MS)

        thread = threading.Thread(target=listen, name="alerts", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._program.poll_alerts(0)

    def _told(self, record: NDArray[np.void]) -> None:
        """What fails here ends the capture: the kernel's library, which calls, would lose the error."""
        if self._fault is not None:
            return
        try:
            self._tell(record)
        except Exception as error:  # whatever it is
            self._fault = error
            self.stop.set()

    def _tell(self, record: NDArray[np.void]) -> None:
        reader = self._reader
        if reader is None:
            return
        alert = reader.read(record, self._offset)
        self.alerts[alert.verdict] = self.alerts.get(alert.verdict, 0) + 1
        if self.flood.shows(alert):
            self.teller.alert(alert)
        elif self.flood.first(alert):
            self.teller.note(
                f"{alert.client} → {alert.server}: too many ports at once; further ones are only counted"
            )
        if self._pcap is not None:
            self._keep(self._pcap, alert)

    def _keep(self, pcap: Writer, alert: Alert) -> None:
        number = list(self._links).index(alert.interface) if alert.interface in self._links else 0
        try:
            pcap.packet(alert.time, number, alert.packet, alert.length, alert.line)
        except LiveError as error:
            self._pcap = None
            self._miss(f"packets of further alerts: {error}")

    # ---- parts ----

    def _write(self) -> None:
        rows = merge(self._pending)
        ledger = rows.coverage[0]
        moment = datetime.fromtimestamp(ledger.start / NS, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
        try:
            path = add_rows(rows, self.order.folder / f"{_file_name(self.node)}-{moment}Z.parquet")
        except CaptureError as error:
            raise LiveError(
                f"the capture ends: {error.what}", where=error.where, next_step=error.next_step
            ) from error
        self._pending = []
        self.total = self.total.plus(ledger)
        self.parts += 1
        self.teller.part(Part(path, rows, ledger))

    def _finish(self, until: int) -> None:
        """Nothing is attached any more: both tables are at rest."""
        self._program.wait_for_readers()
        for slot in (self._slot, 1 - self._slot):
            self._take(slot, until)
        self._write()
        self._summarize()

    def _summarize(self) -> None:
        document = {
            "schema": 1,
            "node": self.node,
            "interfaces": list(self.interfaces),
            "cluster": str(self.order.cluster or ""),
            "spec": str(self.order.spec),
            "parts": self.parts,
            "coverage": {name: value for name, value in asdict(self.total).items() if name != "windows"},
            "alerts": dict(sorted(self.alerts.items())),
            "alerts_held": sum(self.flood.held.values()),
            "cpu_seconds": round(time.process_time(), 3),
        }
        path = self.order.folder / f"{_file_name(self.node)}.summary.json"
        beside = path.with_name(f".{path.name}")
        try:
            beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            flush(beside)
            beside.replace(path)
            flush(path.parent)
        except OSError as error:
            raise LiveError(
                f"cannot be written: {error.strerror}",
                where=str(path),
                next_step="check the folder, its rights and its space",
            ) from error
        finally:
            beside.unlink(missing_ok=True)


def _numbered(values: NDArray[Any], names: dict[str, int], name_of: Any) -> NDArray[np.uint32]:
    """The number of each value's name, each distinct value named once."""
    if not len(values):
        return np.zeros(0, np.uint32)
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    texts = [name_of(value, row) for value, row in zip(distinct, first, strict=True)]
    return np.array([names.setdefault(text, len(names)) for text in texts], np.uint32)[inverse]


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise LiveError(
            "there is no such interface", where=interface, next_step="`ip -brief link` lists them"
        ) from error


def _to_epoch() -> int:
    """How many ns to add to the kernel's clock for the time since the epoch."""
    return time.time_ns() - time.monotonic_ns()


def _file_name(node: str) -> str:
    """One too long for a file system, with what stands behind it, is cut and ends in a digest."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", node).lstrip(".") or "node"
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(node.encode(errors="surrogatepass")).hexdigest()[:32]
    return f"{name[: LONGEST_NAME - 33]}~{digest}"


@contextmanager
def _created(path: Path) -> Iterator[Any]:
    with writing(path):
        stream = path.open("wb")
    with stream:
        yield stream
