"""How long it takes from an offence to the line that tells it. Rule: sends, reads and takes the time, all by
one clock; judges nothing.

The far host has the addresses of many nodes, so that no pair has more lines than are shown of one. The
offences are datagrams to ports that no rule names, each its own. Meanwhile two processes, one on each host,
send to each other as fast as they can.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import live
import numpy as np

from lab import kernel
from lab.topology import add_address, index_of, routes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODES = 25
FIRST_PORT = 40000  # no rule of the default specification has one from here
CLIENT_PORT = 65000  # of two ports that no rule has, the lower one counts as the server's
LOAD_PORT = 51820  # WireGuard's, which it has
PAUSE_SECONDS = 0.02
LATE_SECONDS = 5.0
_PORT = re.compile(rb" udp/(\d+):")

#: sends and takes what comes, without a rest
LOAD = f"""
import contextlib, socket, sys
here, there = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((here, {LOAD_PORT}))
s.setblocking(False)
while True:
    for _ in range(16):
        with contextlib.suppress(OSError):
            s.sendto(bytes(200), (there, {LOAD_PORT}))
    with contextlib.suppress(OSError):
        while True:
            s.recv(2048)
"""


@dataclass(frozen=True)
class Latency:
    """`seconds`: of each offence, sorted. `offences`: how many there were. `rate`: frames a second on the
    wire.
    """

    seconds: tuple[float, ...]
    offences: int
    rate: float

    def milliseconds(self, quantile: float) -> float:
        return float(np.quantile(self.seconds, quantile, method="higher")) * 1e3

    def __str__(self) -> str:
        return (
            f"{len(self.seconds)} of {self.offences} offences told, at {self.rate:,.0f} packets/s: "
            f"median {self.milliseconds(0.5):.2f} ms, p99 {self.milliseconds(0.99):.2f} ms, "
            f"slowest {self.milliseconds(1):.2f} ms"
        )


def addresses() -> list[str]:
    return [f"10.10.0.{n}" for n in range(21, 21 + NODES)]


def cluster() -> dict[str, Any]:
    """The far host is many nodes."""
    near, _ = live.CLUSTER["nodes"]
    far = [{"name": f"agent-{n}", "role": "agent", "addresses": [a]} for n, a in enumerate(addresses(), 1)]
    return {**live.CLUSTER, "nodes": [near, *far]}


@contextmanager
def load(wire: live.Wire) -> Iterator[None]:
    """Two processes that exchange packets as fast as they can."""
    ends = ((wire.near, live.NEAR[4], live.FAR[4]), (wire.far, live.FAR[4], live.NEAR[4]))
    children = [
        wire.children.start(f"load-{n}", namespace, [sys.executable, "-c", LOAD, here, there])
        for n, (namespace, here, there) in enumerate(ends)
    ]
    try:
        time.sleep(0.5)
        yield
    finally:
        wire.children.end(*children)


@contextmanager
def prompt() -> Iterator[None]:
    """The calling thread waits for no other: what measures must not be what is slow."""
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, -20)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, thread, before)


def read_lines(stream: IO[bytes], seen: dict[int, int]) -> None:
    """Notes when each port's line came, ns since the epoch, until the stream ends."""
    with prompt():
        for line in stream:
            now = time.time_ns()
            found = _PORT.search(line)
            if found:
                seen.setdefault(int(found[1]), now)


def offend(wire: live.Wire, first: int, offences: int) -> dict[int, int]:
    """Datagrams to ports from `first` on, to one node after the other. Returns port → ns since the epoch."""
    sent = {}
    with kernel.inside(wire.near):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind((live.NEAR[4], CLIENT_PORT))
        for n in range(offences):
            port, node = first + n, addresses()[n % NODES]
            sent[port] = time.time_ns()
            sock.sendto(b"offence", (node, port))
            time.sleep(PAUSE_SECONDS)
    return sent


class Watch:
    """A collector whose lines are timed, on a wire whose far host is many nodes; a context manager."""

    def __init__(self, folder: Path, interval: str = "2s") -> None:
        self.folder, self.interval = folder, interval
        self.wire = live.Wire(folder)
        self.seen: dict[int, int] = {}
        self._port = FIRST_PORT

    def __enter__(self) -> Watch:
        self.wire.__enter__()
        try:
            self._start()
        except BaseException:
            self.wire.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        with routes(self.wire.far) as ip:
            for address in addresses()[1:]:
                add_address(ip, index_of(ip, live.UPLINK), address, 24)
        file = self.wire.write_cluster(self.folder, cluster())
        words = ("--cluster", str(file), "--interval", self.interval)
        self.collector = live.start(self.wire, self.folder / "parts", *words, pipes=True)
        self.collector.wait_until_captures()
        stream = self.collector.child.process.stdout
        self._reader = threading.Thread(target=read_lines, args=(stream, self.seen))
        self._reader.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.collector.end()
        finally:
            self.collector.child.process.kill()
            self._reader.join()
            self.wire.__exit__(None, None, None)

    def latency(self, offences: int = 200) -> Latency:
        """Under load. Every call takes new ports."""
        first, self._port = self._port, self._port + offences
        with load(self.wire):
            before, since = self.wire.counters(), time.monotonic()
            with prompt():
                sent = offend(self.wire, first, offences)
            carried, seconds = self.wire.counters().since(before).packets, time.monotonic() - since
        until = time.monotonic() + LATE_SECONDS
        while not sent.keys() <= self.seen.keys() and time.monotonic() < until:
            time.sleep(0.05)
        took = sorted((self.seen[port] - sent[port]) / 1e9 for port in sent if port in self.seen)
        return Latency(tuple(took), offences, carried / seconds)


def latency(folder: Path, offences: int = 200, runs: int = 5, enough: float = 0.0) -> Latency:
    """The best of so many runs, by its 99th percentile; no further run once that is at most `enough` ms. A
    line may wait for a processor that another program has, never be early: noise only adds.
    """
    with Watch(folder) as watch:
        found: list[Latency] = []
        for _ in range(runs):
            found.append(watch.latency(offences))
            if len(found[-1].seconds) == offences and found[-1].milliseconds(0.99) <= enough:
                break
    return min(found, key=lambda one: (-len(one.seconds), one.milliseconds(0.99)))
