"""What listens inside a namespace.

Rule: real sockets that answer whoever comes; knows no scenario and starts no connection.

Served over asyncio: HTTP with TLS for the apiserver, the supervisor and the kubelet, plain HTTP for felix and
the pods, an SSH banner, and DNS over UDP and TCP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

EVENT_INTERVAL = 0.7
"""Seconds between two events of a watch, and between two beats of the supervisor's tunnel."""

DNS_NAME = "kubernetes.default.svc.cluster.local"
DNS_ANSWER = "10.43.0.1"
SSH_BANNER = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"
EVENT = b'{"type":"MODIFIED","object":{"kind":"Node","metadata":{"name":"agent-1","resourceVersion":"%d"}}}\n'
BEAT = b"\x89\x00"  # a websocket ping without payload (RFC 6455 section 5.5.2)
PAGES = {  # path → content type, body
    "/api/v1/nodes": (
        "application/json",
        b'{"kind":"NodeList","items":[' + b'{"kind":"Node"},' * 150 + b"{}]}",
    ),
    "/metrics": ("text/plain", b'kubelet_running_pods{node="lab"} 4\n' * 60),
    "/v1-rke2/readyz": ("text/plain", b"ok"),
    "/liveness": ("text/plain", b"ok"),
    "/": ("text/html", b"<html><body>" + b"pod " * 500 + b"</body></html>"),
}
NOT_FOUND = ("text/plain", b"not found")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Service:
    """How a port is served: by which handler, over TLS or not, and whether it answers DNS over UDP too."""

    handler: Handler
    tls: bool = False
    dns: bool = False


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """HTTP/1.1, as many requests as the client sends; a watch or a tunnel lasts until the client leaves."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        path = head.split(b" ", 2)[1].decode()
        if "watch=" in path:
            await _watch(writer)
            return
        if path.endswith("/connect"):
            await _tunnel(writer)
            return
        kind, body = PAGES.get(path, NOT_FOUND)
        status = "404 Not Found" if (kind, body) == NOT_FOUND else "200 OK"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()


async def _watch(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    version = 1000
    while not writer.is_closing():
        event = EVENT % version
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        version += 1
        await asyncio.sleep(EVENT_INTERVAL)


async def _tunnel(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    while not writer.is_closing():
        await writer.drain()
        await asyncio.sleep(EVENT_INTERVAL)
        writer.write(BEAT)


async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The version exchange that opens SSH (RFC 4253 section 4.2), and no more."""
    writer.write(SSH_BANNER)
    await writer.drain()
    await reader.readline()


async def dns_over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """DNS with the two length bytes in front (RFC 1035 section 4.2.2)."""
    while True:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        answer = dns_answer(await reader.readexactly(length))
        writer.write(struct.pack("!H", len(answer)) + answer)
        await writer.drain()


class DnsOverUdp(asyncio.DatagramProtocol):
    """DNS, one datagram in, one out."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | int, int]) -> None:
        with contextlib.suppress(struct.error):
            self._transport.sendto(dns_answer(data), addr)


def dns_query(number: int) -> bytes:
    """A question for the A record of the lab's one name (RFC 1035 section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label for label in DNS_NAME.encode().split(b"."))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def dns_answer(query: bytes) -> bytes:
    """The same question with one A record behind it. Raises struct.error where there is no whole header."""
    number, flags, *_ = struct.unpack_from("!6H", query)
    record = struct.pack("!3HIH", 0xC00C, 1, 1, 30, 4) + ipaddress.IPv4Address(DNS_ANSWER).packed
    return struct.pack("!6H", number, 0x8180 | (flags & 0x0100), 1, 1, 0, 0) + query[12:] + record


SERVICES = {
    "apiserver": Service(http, tls=True),
    "supervisor": Service(http, tls=True),
    "kubelet": Service(http, tls=True),
    "felix": Service(http),
    "web": Service(http),
    "ssh": Service(ssh),
    "dns": Service(dns_over_tcp, dns=True),
}


class Listeners:
    """The open ports of one namespace."""

    def __init__(self, certificate: str) -> None:
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._open: dict[int, list[asyncio.Server | asyncio.DatagramTransport]] = {}

    async def serve(self, service: str, port: int) -> None:
        """Listen on a port of every address of both IP versions."""
        what = SERVICES[service]
        server = await asyncio.start_server(
            _quiet(what.handler), None, port, ssl=self._tls if what.tls else None
        )
        self._open[port] = [server]
        if what.dns:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                DnsOverUdp, local_addr=("::", port)
            )
            self._open[port].append(transport)  # one socket for both IP versions

    async def close(self, port: int) -> None:
        for listener in self._open.pop(port):
            listener.close()


def _quiet(handler: Handler) -> Handler:
    """A client that leaves ends its handler without a word, as it ends a real server's."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, ssl.SSLError, asyncio.LimitOverrunError):
            await handler(reader, writer)
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
            await writer.wait_closed()

    return served
