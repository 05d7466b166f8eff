"""One namespace's worker process and the lab's hand on it.

Rule: carries orders and results as JSON lines; takes no decision.

The worker (``python -m lab.room NAME AUTHORITY CERTIFICATE``) is started inside its namespace and ends with
its standard input.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import clients, kernel, services
from lab.errors import LabError

if TYPE_CHECKING:
    from lab.processes import Child, Children


class Room:
    """The lab's hand on one worker. Orders run side by side in it; each result is fetched by its ticket."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._tickets = 0
        self._results: dict[int, dict[str, Any]] = {}
        self._rest = b""

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, verb: str, **words: Any) -> int:
        """Give an order and return its ticket."""
        assert self._child.process.stdin is not None
        self._tickets += 1
        line = json.dumps({"ticket": self._tickets, "verb": verb, **words}) + "\n"
        try:
            self._child.process.stdin.write(line.encode())
            self._child.process.stdin.flush()
        except OSError as error:
            raise self._child.fault("takes no orders any more") from error
        return self._tickets

    def result(self, ticket: int, seconds: float = 30.0) -> Any:
        """Wait for what an order gave. Raises LabError if it failed or took too long."""
        deadline = time.monotonic() + seconds
        while ticket not in self._results:
            self._read(deadline)
        answer = self._results.pop(ticket)
        if "error" in answer:
            raise LabError(f"{self._child.name}: {answer['error']}")
        return answer["result"]

    def order(self, verb: str, **words: Any) -> Any:
        return self.result(self.send(verb, **words))

    def _read(self, deadline: float) -> None:
        assert self._child.process.stdout is not None
        descriptor = self._child.process.stdout.fileno()
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise self._child.fault("gave no answer in time")
        data = os.read(descriptor, 65536)
        if not data:
            raise self._child.fault("ended")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._results[answer["ticket"]] = answer


def start(children: Children, name: str, namespace: str, authority: Path, certificate: Path) -> Room:
    """Start a worker; it is ready to take orders at once, and works them off when it is up."""
    package = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "lab.room", name, str(authority), str(certificate)]
    return Room(
        children.start(name, namespace, command, pipes=True, environment={"PYTHONPATH": str(package)})
    )


class Worker:
    """The inside of a room."""

    def __init__(self, authority: str, certificate: str) -> None:
        self._clients = clients.Clients(authority)
        self._listeners = services.Listeners(certificate)

    async def serve(self, service: str, port: int) -> None:
        await self._listeners.serve(service, port)

    async def close(self, port: int) -> None:
        await self._listeners.close(port)

    async def act(self, **words: Any) -> dict[str, int]:
        words["ports"] = tuple(words.get("ports", ()))
        return dict(await self._clients.run(clients.Job(**words)))

    async def obey(self, order: dict[str, Any]) -> None:
        ticket = order.pop("ticket")
        try:
            answer = {"result": await getattr(self, order.pop("verb"))(**order)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error} ({order})"}
        sys.stdout.write(json.dumps({"ticket": ticket, **answer}) + "\n")
        sys.stdout.flush()

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_fault)
        orders = asyncio.StreamReader(limit=1 << 20)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        tasks: set[asyncio.Task[None]] = set()
        while line := await orders.readline():
            task = asyncio.create_task(self.obey(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


def _log_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A peer that breaks off a TLS handshake is what some scenarios are about; the log alone hears of it."""
    logging.getLogger("room").info("%s: %s", context["message"], context.get("exception"))


def main() -> None:
    name, authority, certificate = sys.argv[1:]
    kernel.set_process_name(name)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    asyncio.run(Worker(authority, certificate).work())


if __name__ == "__main__":
    main()
