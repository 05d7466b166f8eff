"""What connects from inside a namespace.

Rule: each action makes its connections and says how they ended; it judges nothing.

An action gives the outcome of each attempt: ``answered``, ``refused``, ``unreachable``, ``unanswered``. An
attempt that is answered at first and then does not go on as its protocol says is an error, never an outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lab import services

PATIENCE = 1.6
"""Seconds until an attempt counts as unanswered: the first SYN and one more after a second."""
ANSWER = 5.0
"""Seconds in which an open connection must go on."""
UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES}
STALL = 4.0
"""Seconds in which TCP sends a segment that is lost half a dozen times."""
SCANNERS = 16
SETTLE = 0.3

Outcomes = Counter[str]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ActionError(Exception):
    """A connection that was answered did not do what its protocol says."""


class NotConnectedError(Exception):
    """An attempt to connect did not end in a connection; carries its outcome."""

    def __init__(self, outcome: str) -> None:
        self.outcome = outcome
        super().__init__(outcome)


@dataclass(frozen=True)
class Job:
    """One action against one address and port.

    ``seconds`` is the window: short actions repeat ``times`` spread over it, long ones last that long.
    ``ports`` is for a scan.
    """

    action: str
    address: str
    port: int
    seconds: float
    times: int = 2
    ports: tuple[int, ...] = ()


class Clients:
    """The connections of one namespace; those of ``hold`` stay open from one action to the next."""

    def __init__(self, authority: str) -> None:
        self.tls = ssl.create_default_context(cafile=authority)
        self.held: dict[tuple[str, int], Stream] = {}

    async def run(self, job: Job) -> Outcomes:
        return await ACTIONS[job.action](self, job)

    @contextlib.asynccontextmanager
    async def connection(self, job: Job, *, tls: bool = False) -> AsyncIterator[Stream]:
        """A connection, closed again at the end. Raises NotConnectedError."""
        reader, writer = await self.open(job, tls=tls)
        try:
            yield reader, writer
        finally:
            await _close(writer)

    async def open(self, job: Job, *, tls: bool) -> Stream:
        sock = await _connect(job.address, job.port)
        how: dict[str, Any] = {"ssl": self.tls, "server_hostname": job.address, "ssl_shutdown_timeout": 1.0}
        return await asyncio.wait_for(asyncio.open_connection(sock=sock, **(how if tls else {})), ANSWER)


async def _connect(address: str, port: int) -> socket.socket:
    """A connected TCP socket. Raises NotConnectedError with the outcome, in the words of the flow table."""
    sock = socket.socket(_family(address), socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, (address, port)), PATIENCE)
    except OSError as error:  # TimeoutError is one
        sock.close()
        raise NotConnectedError(_outcome(error)) from error
    return sock


def _outcome(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if error.errno in UNREACHABLE:
        return "unreachable"
    if isinstance(error, TimeoutError):
        return "unanswered"
    raise error


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
        await writer.wait_closed()


async def _repeat(job: Job, once: Callable[[int], Awaitable[None]]) -> Outcomes:
    """``once`` as often as the job says, spread over its window; a failed attempt is an outcome."""
    outcomes: Outcomes = Counter()
    for number in range(job.times):
        try:
            await once(number)
            outcomes["answered"] += 1
        except NotConnectedError as failed:
            outcomes[failed.outcome] += 1
        if number + 1 < job.times:
            await asyncio.sleep(max(0.0, job.seconds - SETTLE) / job.times)
    return outcomes


def _get(path: str, address: str, more: str = "") -> bytes:
    host = f"[{address}]" if ":" in address else address
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: rke2-lab\r\n{more}\r\n".encode()


async def _request(stream: Stream, job: Job, path: str, more: str = "") -> bytes:
    """One request; gives the response's head. Raises ActionError unless the status is 101 or 200."""
    reader, writer = stream
    writer.write(_get(path, job.address, more))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER)
    if head.split(b" ", 2)[1] not in (b"101", b"200"):
        raise ActionError(f"{job.address}:{job.port}{path} gave {head[:40]!r}")
    return head


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The body of a response, by its length or up to its last chunk (RFC 9112 section 6)."""
    _, named, rest = head.lower().partition(b"content-length:")
    if named:
        return await reader.readexactly(int(rest.split(b"\r\n")[0]))
    body = b""
    while not body.endswith(b"\r\n0\r\n\r\n"):
        data = await reader.read(65536)
        if not data:
            raise ActionError("a response ended before its last chunk")
        body += data
    return body


def fetch(path: str, *, tls: bool, more: str = "") -> Action:
    """A request in a connection of its own."""

    async def action(clients: Clients, job: Job) -> Outcomes:
        async def once(_: int) -> None:
            async with clients.connection(job, tls=tls) as stream:
                head = await _request(stream, job, path, more)
                await asyncio.wait_for(_body(stream[0], head), ANSWER)

        return await _repeat(job, once)

    return action


async def watch(clients: Clients, job: Job) -> Outcomes:
    """A chunked stream of events, read until the window ends."""
    try:
        async with clients.connection(job, tls=True) as stream:
            await _request(stream, job, "/api/v1/nodes?watch=true")
            await _listen(stream[0], job)
    except NotConnectedError as failed:
        return Counter([failed.outcome])
    return Counter(["answered"])


async def hold_watch(clients: Clients, job: Job) -> Outcomes:
    """Open a watch and leave it open."""
    stream = await clients.open(job, tls=True)
    await _request(stream, job, "/api/v1/nodes?watch=true")
    clients.held[job.address, job.port] = stream
    return Counter(["answered"])


async def held_watch(clients: Clients, job: Job) -> Outcomes:
    """Read a watch that is open already, and leave it open."""
    await _listen(clients.held[job.address, job.port][0], job)
    return Counter(["answered"])


async def _listen(reader: asyncio.StreamReader, job: Job) -> None:
    """Read events for the length of the window, leaving time to close; at least two must come."""
    deadline = asyncio.get_running_loop().time() + max(2.5 * services.EVENT_INTERVAL, job.seconds - SETTLE)
    heard = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            while await reader.read(4096):
                heard += 1
    if heard < 2:
        raise ActionError(f"{heard} events from {job.address}:{job.port} in {job.seconds:g} s")


async def tunnel(clients: Clients, job: Job) -> Outcomes:
    """The agent's websocket to the supervisor, which beats until the window ends."""
    try:
        async with clients.connection(job, tls=True) as stream:
            await _request(stream, job, "/v1-rke2/connect", "Connection: Upgrade\r\nUpgrade: websocket\r\n")
            await _listen(stream[0], job)
    except NotConnectedError as failed:
        return Counter([failed.outcome])
    return Counter(["answered"])


async def connect(clients: Clients, job: Job) -> Outcomes:
    """The TCP handshake and no byte more."""

    async def once(_: int) -> None:
        async with clients.connection(job):
            await asyncio.sleep(0.05)

    return await _repeat(job, once)


async def stall(clients: Clients, job: Job) -> Outcomes:
    """Requests, all at once, whose answers are too large to come; the handshakes are good all the same."""

    async def once() -> None:
        async with clients.connection(job) as (reader, writer):
            writer.write(_get("/", job.address))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.readuntil(b"</html>"), STALL)
                raise ActionError(f"{job.address}:{job.port} answered, though it could not")

    await asyncio.gather(*(once() for _ in range(job.times)))
    return Counter(answered=job.times)


async def ssh(clients: Clients, job: Job) -> Outcomes:
    async def once(_: int) -> None:
        async with clients.connection(job) as (reader, writer):
            banner = await asyncio.wait_for(reader.readline(), ANSWER)
            if not banner.startswith(b"SSH-2.0-"):
                raise ActionError(f"{job.address}:{job.port} sent {banner[:40]!r}")
            writer.write(b"SSH-2.0-lab\r\n")
            await writer.drain()

    return await _repeat(job, once)


async def dns_tcp(clients: Clients, job: Job) -> Outcomes:
    async def once(number: int) -> None:
        async with clients.connection(job) as (reader, writer):
            query = services.dns_query(number + 1)
            writer.write(struct.pack("!H", len(query)) + query)
            (length,) = struct.unpack("!H", await asyncio.wait_for(reader.readexactly(2), ANSWER))
            if await reader.readexactly(length) != services.dns_answer(query):
                raise ActionError(f"{job.address} gave a wrong DNS answer over TCP")

    return await _repeat(job, once)


@contextlib.contextmanager
def _datagram(address: str, port: int, protocol: int = 0) -> Iterator[socket.socket]:
    with socket.socket(_family(address), socket.SOCK_DGRAM, protocol) as sock:
        sock.setblocking(False)
        sock.connect((address, port))
        yield sock


async def _exchange(sock: socket.socket, data: bytes) -> bytes:
    """One datagram out, one in. Raises NotConnectedError; an ICMP error makes that ``unreachable``."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(sock, data)
        return await asyncio.wait_for(loop.sock_recv(sock, 4096), PATIENCE)
    except ConnectionRefusedError as error:
        raise NotConnectedError("unreachable") from error
    except OSError as error:
        raise NotConnectedError(_outcome(error)) from error


async def dns_udp(_: Clients, job: Job) -> Outcomes:
    async def once(number: int) -> None:
        query = services.dns_query(number + 1)
        with _datagram(job.address, job.port) as sock:
            if await _exchange(sock, query) != services.dns_answer(query):
                raise ActionError(f"{job.address} gave a wrong DNS answer")

    return await _repeat(job, once)


async def datagram(_: Clients, job: Job) -> Outcomes:
    """A datagram that nothing is expected to understand."""

    async def once(number: int) -> None:
        with _datagram(job.address, job.port) as sock:
            await _exchange(sock, b"lab %d" % number)

    return await _repeat(job, once)


async def ping(_: Clients, job: Job) -> Outcomes:
    """ICMP echo; the kernel fills in the identifier and the checksum (a ping socket, icmp(7))."""
    protocol, kind = (socket.IPPROTO_ICMPV6, 128) if ":" in job.address else (socket.IPPROTO_ICMP, 8)

    async def once(number: int) -> None:
        with _datagram(job.address, 0, protocol) as sock:
            await _exchange(sock, struct.pack("!BBHHH", kind, 0, 0, 0, number + 1) + b"lab")

    return await _repeat(job, once)


async def scan(_: Clients, job: Job) -> Outcomes:
    """A TCP connect to each of many ports."""
    outcomes: Outcomes = Counter()
    left = iter(job.ports)

    async def scanner() -> None:
        for port in left:
            try:
                (await _connect(job.address, port)).close()
                outcomes["answered"] += 1
            except NotConnectedError as failed:
                outcomes[failed.outcome] += 1

    await asyncio.gather(*(scanner() for _ in range(SCANNERS)))
    return outcomes


Action = Callable[[Clients, Job], Awaitable[Outcomes]]
ACTIONS: dict[str, Action] = {
    "list": fetch("/api/v1/nodes", tls=True),
    "poll": fetch("/v1-rke2/readyz", tls=True),
    "scrape": fetch("/metrics", tls=True),
    "scrape-plain": fetch("/metrics", tls=False, more="Accept-Encoding: gzip\r\n"),  # as Prometheus asks
    "probe": fetch("/liveness", tls=False),
    "page": fetch("/", tls=False),
    "watch": watch,
    "hold-watch": hold_watch,
    "held-watch": held_watch,
    "tunnel": tunnel,
    "connect": connect,
    "stall": stall,
    "ssh": ssh,
    "dns-tcp": dns_tcp,
    "dns-udp": dns_udp,
    "datagram": datagram,
    "ping": ping,
    "scan": scan,
}
