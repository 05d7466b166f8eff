"""What packets carried, as tshark dissects them. Rule: the only room that knows pyshark and tshark; a small
capture in, facts out. It knows no finding and no cluster, judges nothing, and reaches no network.

Wireshark's field names: https://www.wireshark.org/docs/dfref/. Every value comes from packets and is hostile
text: cut to a length here, escaped by whoever prints it.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import shutil
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from analyzer.errors import LiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: what tshark does not tell by the port alone, or would take for something else
DECODE_AS = {
    **dict.fromkeys(("udp.port==4789", "udp.port==8472"), "vxlan"),
    **dict.fromkeys(("udp.port==51820", "udp.port==51821"), "wg"),
    **{f"tcp.port=={port}": "tls" for port in (2379, 2380, 6443, 9345, 10250)},
}
_PREFERENCES = {
    "tcp.desegment_tcp_streams": "TRUE",
    "tcp.check_checksum": "FALSE",
    "ip.defragment": "TRUE",
    "tls.desegment_ssl_records": "TRUE",
}
#: the frames that can say something; all others tshark passes over, which is much faster than pyshark is
_TELLING = (
    "tls.record.content_type == 21 || tls.record.content_type == 22 || http || http2 || dns || ssh || wg "
    "|| vxlan || geneve || icmp.type in {3, 11} || icmpv6.type in {1, 3} "
    '|| tcp.payload contains "PRI * HTTP/2.0"'
)
_PREFACE = b"PRI * HTTP/2.0".hex(":")  # RFC 9113, 3.4
MOST = 1000
SECONDS = 60.0
_LONGEST = 200
#: column → what it holds
COLUMNS = {
    "what": "kind of fact",
    "value": "what the packets said",
    "sent by": "address that said it; in a tunnel the inner one",
    "flows": "in how many flows: 5-tuples, both directions together; in a tunnel the inner ones",
    "frame": "number of the first frame that says it, in the capture that was dissected",
}


@dataclass(frozen=True)
class Dissection:
    """`facts`: :data:`COLUMNS`, in the order of :data:`WHATS`. `dissected`: frames that could say something.
    `whole`: whether all of those were dissected, in the time and up to the number that was allowed.
    """

    facts: pd.DataFrame
    dissected: int
    whole: bool


def tshark_path() -> str:
    """Where tshark is. LiveError where it is not installed."""
    path = shutil.which("tshark")
    if path is None:
        raise LiveError(
            "tshark is not installed, and it is what looks into packets",
            next_step="install it: Debian and Ubuntu `apt-get install tshark`, Fedora `dnf install "
            "wireshark-cli`; `rke2-flows cut` needs none",
        )
    return path


def _pyshark() -> Any:
    try:
        return importlib.import_module("pyshark")
    except ImportError as error:
        raise LiveError(
            f"pyshark cannot be imported: {error}",
            next_step="install it: `pip install pyshark`; `rke2-flows cut` needs none",
        ) from error


def dissect(
    path: Path,
    *,
    most: int = MOST,
    seconds: float = SECONDS,
    progress: Callable[[int], None] = lambda _: None,
) -> Dissection:
    """Dissects a capture, the smaller the better: pyshark takes a millisecond and more for a frame.

    `most`: how many frames to dissect; `seconds`: how long. `progress`: is called with the number of the
    frame that was reached. Raises LiveError where tshark or pyshark is missing, or fails; whatever happens,
    no tshark is left running.
    """
    tshark, pyshark = tshark_path(), _pyshark()

    def hear(decode_as: dict[str, str]) -> tuple[_Hearing, bool]:
        hearing = _Hearing(most, progress)
        return hearing, _heard(_Job(pyshark, path, tshark, hearing, seconds, decode_as))

    hearing, in_time = hear(DECODE_AS)
    if hearing.plain_http2:
        hearing, in_time = hear(DECODE_AS | {f"tcp.port=={port}": "http2" for port in hearing.plain_http2})
    return Dissection(hearing.table(), hearing.dissected, in_time and not hearing.full)


def _heard(job: _Job) -> bool:
    """Whether all was heard in time. What pyshark raises has no common base."""
    try:
        return _apart(job) if _loop_runs() else job.run()
    except Exception as error:
        raise LiveError(
            f"tshark could not dissect it: {error}",
            where=str(job.path),
            next_step="look at the frames themselves: `rke2-flows cut` writes them",
        ) from error


# ---- tshark, by way of pyshark ----


@dataclass(frozen=True)
class _Job:
    pyshark: Any
    path: Path
    tshark: str
    hearing: _Hearing
    seconds: float
    decode_as: dict[str, str]

    def run(self) -> bool:
        """Whether it ended in time. The runner takes back an interrupt and every open task."""
        with asyncio.Runner() as runner:
            return runner.run(self._dissect(runner.get_loop()))

    async def _dissect(self, loop: asyncio.AbstractEventLoop) -> bool:
        try:
            return await self._listen(loop)
        finally:
            await asyncio.sleep(0)  # Ctrl-C, which ends tshark too, goes before what is said of that

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> bool:
        capture = self.pyshark.FileCapture(
            str(self.path),
            keep_packets=False,
            display_filter=_TELLING,
            decode_as=self.decode_as,
            override_prefs=_PREFERENCES,
            tshark_path=self.tshark,
            eventloop=loop,
        )
        try:
            async with asyncio.timeout(self.seconds):
                await capture.packets_from_tshark(self._hear, close_tshark=False)
                return await self._ended(capture)
        except TimeoutError:
            return False
        finally:
            await _close(capture)

    async def _ended(self, capture: Any) -> bool:
        """Whether tshark came to its end by itself. It is given the time for it: one that is killed just then
        cannot be waited for.
        """
        running = () if self.hearing.full else tuple(capture._running_processes)
        return all([await process.wait() >= 0 for process in running])

    def _hear(self, packet: Any) -> None:
        self.hearing.hear(packet)
        if self.hearing.full:
            raise self.pyshark.capture.capture.StopCapture


async def _close(capture: Any) -> None:
    """Kills a tshark that still runs; raises where one failed. Nothing is left for the garbage collector to
    close: by then the event loop is gone.
    """
    try:
        await capture.close_async()
    finally:
        capture._running_processes.clear()


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _apart(job: _Job) -> bool:
    """In a thread of its own: Jupyter runs an event loop in this one."""
    outcome: list[bool | BaseException] = []

    def run() -> None:
        try:
            outcome.append(job.run())
        except BaseException as error:  # raised again below, in the other thread
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


# ---- one packet ----


@dataclass
class _Ends:
    """Of the packet that the walk through the layers has reached."""

    src: str = ""
    dst: str = ""
    protocol: str = ""
    src_port: str = ""
    dst_port: str = ""
    vni: str = ""

    @property
    def flow(self) -> tuple[object, ...]:
        """The same for both directions."""
        ends = frozenset(((self.src, self.src_port), (self.dst, self.dst_port)))
        return self.protocol, self.vni, ends

    def __str__(self) -> str:
        """As an arrow; an IPv6 address in brackets before a port."""
        sides = ((self.src, self.src_port), (self.dst, self.dst_port))
        ends = [f"[{a}]:{p}" if ":" in a and p else f"{a}:{p}" if p else a for a, p in sides]
        return f"{self.protocol} {' → '.join(ends)}".strip()


@dataclass
class _Fact:
    frame: int
    flows: set[tuple[object, ...]] = field(default_factory=set)


class _Hearing:
    """Collects what packets say; a fact that many packets tell is one.

    `plain_http2`: ports on which HTTP/2 begins without TLS. tshark must be told them.
    """

    def __init__(self, most: int, progress: Callable[[int], None]) -> None:
        self._most, self._progress = most, progress
        self._facts: dict[tuple[str, str, str], _Fact] = {}
        self.dissected = 0
        self.plain_http2: set[str] = set()

    @property
    def full(self) -> bool:
        return self.dissected >= self._most

    def hear(self, packet: Any) -> None:
        self.dissected += 1
        number = int(packet.number)
        self._progress(number)
        ends, cut = _Ends(), any(layer.layer_name == "_ws.short" for layer in packet.layers)
        for layer in packet.layers:
            told = list(_told_by(layer, ends, cut))
            for what, value in told:
                self._note(what, value, ends, number)
            if any(what == ICMP for what, _ in told):
                break  # what follows is the packet that it quotes
            if layer.layer_name == "tcp" and _first(layer, "tcp.payload").startswith(_PREFACE):
                self.plain_http2.add(ends.dst_port)
        if ends.vni:
            self._note(INNER, f"VNI {ends.vni}, {ends}", ends, number)

    def _note(self, what: str, value: str, ends: _Ends, number: int) -> None:
        text = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
        self._facts.setdefault((what, text, ends.src), _Fact(number)).flows.add(ends.flow)

    def table(self) -> pd.DataFrame:
        rows = [
            (what, value, sender, len(fact.flows), fact.frame)
            for (what, value, sender), fact in self._facts.items()
        ]
        rows.sort(key=lambda row: (WHATS.index(row[0]), row[4]))
        return pd.DataFrame(rows, columns=list(COLUMNS))


def _told_by(layer: Any, ends: _Ends, cut: bool) -> Iterator[tuple[str, str]]:
    name = layer.layer_name
    if name in _ADDRESSED:
        ends.src, ends.dst = (_first(layer, f"{name}.{side}") for side in ("src", "dst"))
        ends.protocol = ends.src_port = ends.dst_port = ""
    elif name in _PORTED:
        ends.protocol = name
        ends.src_port, ends.dst_port = (_first(layer, f"{name}.{side}port") for side in ("src", "dst"))
    elif name in _TUNNELS:
        ends.vni = _first(layer, _TUNNELS[name])
    elif name == "tls" and cut and "22" in _all(layer, "tls.record.content_type"):
        yield from _tls_cut(layer)
    elif name in _TELLERS:
        yield from _TELLERS[name](layer)


def _all(layer: Any, name: str) -> list[str]:
    found = layer.get_field(name)
    return [] if found is None else [one.show or "" for one in found.all_fields]


def _named(layer: Any, name: str) -> list[str]:
    """As Wireshark shows them, without label and number: `TLS 1.3` for `Version: TLS 1.3 (0x0304)`."""
    found = layer.get_field(name)
    texts = [] if found is None else [one.showname or one.show or "" for one in found.all_fields]
    return [_NUMBER.sub(r"\1", _LABEL.sub("", text, count=1)) for text in texts]


_LABEL = re.compile(r"^.*?(?:: | = )")
_NUMBER = re.compile(r" \((?:0x[0-9a-f]+|\d+)\)$|^\d+ \((.*)\)$")


def _first(layer: Any, name: str) -> str:
    return next(iter(_all(layer, name)), "")


# ---- what each protocol says ----

VERSION, OFFERED = "TLS version", "TLS versions offered"
SNI, ALPN, ALPN_OFFERED = "TLS server name (SNI)", "TLS ALPN", "TLS ALPN offered"
CIPHER, ALERT, CUT_OFF = "TLS cipher suite", "TLS alert", "TLS"
SUBJECT, ISSUER, NAMES = "certificate subject", "certificate issuer", "certificate names"
HTTP, HTTP_STATUS, AGENT = "HTTP request", "HTTP status", "HTTP user agent"
GRPC, HTTP2 = "gRPC method", "HTTP/2 request"
DNS, DNS_ANSWER = "DNS query", "DNS answer"
SSH, WIREGUARD, INNER, ICMP = "SSH banner", "WireGuard", "inner flow", "ICMP"
#: every kind of fact, in the order in which they are shown
WHATS = (
    INNER, ICMP, CUT_OFF, VERSION, OFFERED, SNI, ALPN, ALPN_OFFERED, CIPHER, ALERT, SUBJECT, ISSUER, NAMES,
    HTTP, AGENT, HTTP_STATUS, GRPC, HTTP2, DNS, DNS_ANSWER, SSH, WIREGUARD,
)  # fmt: skip
ENCRYPTED = "encrypted (TLS 1.3)"

_CLIENT_HELLO, _SERVER_HELLO, _CERTIFICATE = "1", "2", "11"
_RDN = {
    "id-at-commonName": "CN", "id-at-organizationName": "O", "id-at-organizationalUnitName": "OU",
    "id-at-countryName": "C", "id-at-localityName": "L", "id-at-stateOrProvinceName": "ST",
}  # fmt: skip


def _tls(layer: Any) -> Iterator[tuple[str, str]]:
    for kind in dict.fromkeys(_all(layer, "tls.handshake.type")):
        yield from _HANDSHAKES.get(kind, _nothing)(layer)
    for alert in _named(layer, "tls.alert_message.desc"):
        yield ALERT, alert


def _tls_cut(layer: Any) -> Iterator[tuple[str, str]]:
    told = list(_tls(layer))
    yield from told or [(CUT_OFF, "handshake, cut off by the snaplen")]


def _nothing(_: Any) -> Iterator[tuple[str, str]]:
    yield from ()


def _versions(layer: Any) -> list[str]:
    newer = _named(layer, "tls.handshake.extensions.supported_version")
    return newer or _named(layer, "tls.handshake.version")[:1]


def _client_hello(layer: Any) -> Iterator[tuple[str, str]]:
    yield OFFERED, ", ".join(v for v in _versions(layer) if not v.startswith("Reserved"))
    for name in _all(layer, "tls.handshake.extensions_server_name"):
        yield SNI, name
    offered = _all(layer, "tls.handshake.extensions_alpn_str")
    if offered:
        yield ALPN_OFFERED, ", ".join(offered)


def _server_hello(layer: Any) -> Iterator[tuple[str, str]]:
    for version in _versions(layer)[:1]:
        yield VERSION, version
        if version == "TLS 1.3":
            yield SUBJECT, ENCRYPTED
    for suite in _named(layer, "tls.handshake.ciphersuite")[:1]:
        yield CIPHER, suite
    for name in _all(layer, "tls.handshake.extensions_alpn_str"):
        yield ALPN, name


def _certificate(layer: Any) -> Iterator[tuple[str, str]]:
    """The first one is the sender's own; what follows is its chain. The issuer's name is an X.501 Name, the
    subject's one of X.509's own, and so tshark calls them.
    """
    for what, name in ((SUBJECT, "x509af.rdnSequence"), (ISSUER, "x509if.rdnSequence")):
        for text in _named(layer, name)[:1]:
            yield what, _distinguished(text)
    hosts = _all(layer, "x509ce.dNSName")
    if hosts:
        yield NAMES, ", ".join(hosts)


def _distinguished(text: str) -> str:
    """`2 items (id-at-commonName=a,id-at-organizationName=b)` → `CN=a,O=b`."""
    inner = text.partition("(")[2].rpartition(")")[0] or text
    return re.sub(r"id-at-\w+", lambda found: _RDN.get(found[0], found[0].removeprefix("id-at-")), inner)


_HANDSHAKES: dict[str, Callable[[Any], Iterator[tuple[str, str]]]] = {
    _CLIENT_HELLO: _client_hello,
    _SERVER_HELLO: _server_hello,
    _CERTIFICATE: _certificate,
}


def _http(layer: Any) -> Iterator[tuple[str, str]]:
    method, path = _first(layer, "http.request.method"), _first(layer, "http.request.uri")
    if method:
        host = _first(layer, "http.host")
        yield HTTP, f"{method} {path}{f', host {host}' if host else ''}"
    for agent in _all(layer, "http.user_agent"):
        yield AGENT, agent
    code = _first(layer, "http.response.code")
    if code:
        yield HTTP_STATUS, f"{code} {_first(layer, 'http.response.phrase')}".strip()


def _http2(layer: Any) -> Iterator[tuple[str, str]]:
    names, values = _all(layer, "http2.header.name"), _all(layer, "http2.header.value")
    headers = dict(zip(names, values, strict=False))
    path = headers.get(":path", "")
    if headers.get("content-type", "").startswith("application/grpc") and path:
        yield GRPC, path
    elif path:
        host = headers.get(":authority", "")
        yield HTTP2, f"{headers.get(':method', '')} {path}{f', host {host}' if host else ''}".strip()


def _dns(layer: Any) -> Iterator[tuple[str, str]]:
    name, kind = _first(layer, "dns.qry.name"), next(iter(_named(layer, "dns.qry.type")), "")
    asked = f"{name} {kind.partition(' ')[0]}".strip()
    if _first(layer, "dns.flags.response") in ("0", "False"):
        yield DNS, asked
        return
    code = next(iter(_named(layer, "dns.flags.rcode")), "")
    answers = [*_all(layer, "dns.a"), *_all(layer, "dns.aaaa"), *_all(layer, "dns.cname")]
    yield DNS_ANSWER, f"{asked} → {', '.join(answers) or code or 'nothing'}"


def _texts_of(name: str, what: str) -> Callable[[Any], Iterator[tuple[str, str]]]:
    def tell(layer: Any) -> Iterator[tuple[str, str]]:
        for text in _all(layer, name):
            yield what, text

    return tell


def _wireguard(layer: Any) -> Iterator[tuple[str, str]]:
    for kind in _named(layer, "wg.type"):
        yield WIREGUARD, kind


def _icmp(layer: Any) -> Iterator[tuple[str, str]]:
    """The errors alone, those that quote a packet."""
    name = layer.layer_name
    if _first(layer, f"{name}.type") in _ERRORS[name]:
        words = (*_named(layer, f"{name}.type")[:1], *_named(layer, f"{name}.code")[:1])
        yield ICMP, ": ".join(words)


_ERRORS = {"icmp": ("3", "11"), "icmpv6": ("1", "3")}
_ADDRESSED = ("ip", "ipv6")
_PORTED = ("tcp", "udp")
_TUNNELS = {"vxlan": "vxlan.vni", "geneve": "geneve.vni"}
_TELLERS: dict[str, Callable[[Any], Iterator[tuple[str, str]]]] = {
    "tls": _tls,
    "http": _http,
    "http2": _http2,
    "dns": _dns,
    "ssh": _texts_of("ssh.protocol", SSH),
    "wg": _wireguard,
    "icmp": _icmp,
    "icmpv6": _icmp,
}
