"""What a finding's packets carried.

Rule: what must be found is put into the packets here, by hand or by OpenSSL, or is what the lab's programs
send; tshark and pyshark run for real.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import ssl
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from conftest import RECORDED, require_program, require_root
from frames import Frame, carried, datagram, on_wire, packet_of, pcap, save, timed, unreachable
from packets import ACK, FIN, SYN, TCP
from runs import recorded

from analyzer.analysis import analyze
from analyzer.capture.dissect import Dissection, dissect
from analyzer.errors import LiveError
from analyzer.explain import explain

if TYPE_CHECKING:
    from collections.abc import Iterable

pytest.importorskip("pyshark")

CLIENT, SERVER = ("10.10.0.21", 40000), ("10.10.0.11", 6443)
End = tuple[str, int]


@pytest.fixture(autouse=True)
def _tshark() -> None:
    require_program("tshark")


# ---- conversations with content ----


@dataclass
class Talk:
    """A TCP connection, byte for byte; segments hold at most 1,200 bytes."""

    client: End = CLIENT
    server: End = SERVER

    def frames(self, turns: Iterable[tuple[bool, bytes]]) -> list[bytes]:
        """`turns`: whether the client says it, and what."""
        sequence = {True: 1000, False: 5000}
        opening = ((True, SYN), (False, SYN | ACK), (True, ACK))
        made = []
        for mine, flags in opening:
            made.append(self._segment(sequence, mine, flags, b""))
            sequence[mine] += bool(flags & SYN)
        for mine, said in turns:
            for at in range(0, len(said), 1200):
                made.append(self._segment(sequence, mine, ACK | 0x08, said[at : at + 1200]))
                sequence[mine] += len(said[at : at + 1200])
        return [*made, self._segment(sequence, True, FIN | ACK, b"")]

    def _segment(self, sequence: dict[bool, int], mine: bool, flags: int, said: bytes) -> bytes:
        src, dst = (self.client, self.server) if mine else (self.server, self.client)
        acknowledged = sequence[not mine] if flags & ACK else 0
        head = struct.pack(
            ">HHIIHHHH", src[1], dst[1], sequence[mine], acknowledged, 5 << 12 | flags, 64240, 0, 0
        )
        return on_wire(packet_of(TCP, head + said, src[0], dst[0]))


AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("server-1", "10.10.0.11", common_name="server-1")


def tls_turns(version: ssl.TLSVersion, sni: str = "server-1") -> list[tuple[bool, bytes]]:
    """A handshake of two real ends, and a byte of content, without a socket."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERTIFICATE.configure_cert(server)
    client = ssl.create_default_context()
    AUTHORITY.configure_trust(client)
    for context in (client, server):
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
    wires = {True: ssl.MemoryBIO(), False: ssl.MemoryBIO()}  # by who writes
    ends = {
        True: client.wrap_bio(wires[False], wires[True], server_hostname=sni),
        False: server.wrap_bio(wires[True], wires[False], server_side=True),
    }
    turns: list[tuple[bool, bytes]] = []
    done = {True: False, False: False}
    while not all(done.values()):
        for mine in (True, False):
            try:
                ends[mine].do_handshake()
                done[mine] = True
            except ssl.SSLWantReadError:
                pass
            said = wires[mine].read()
            if said:
                turns.append((mine, said))
                wires[mine].write(said)
    return turns


def dissected(tmp_path: Path, frames: list[bytes], snaplen: int = 0) -> Dissection:
    records = [Frame(f.data[:snaplen], f.time, len(f.data)) if snaplen else f for f in timed(frames)]
    return dissect(save(tmp_path, "small.pcap", pcap(records)))


def said(found: Dissection) -> dict[str, set[str]]:
    """what → values"""
    groups = found.facts.groupby("what")["value"]
    return {str(what): set(values) for what, values in groups}


# ---- TLS ----


def test_tls_1_2_names_version_server_name_protocol_and_certificate(tmp_path: Path) -> None:
    found = dissected(tmp_path, Talk().frames(tls_turns(ssl.TLSVersion.TLSv1_2)))
    facts = said(found)
    assert facts["TLS version"] == {"TLS 1.2"}
    assert facts["TLS server name (SNI)"] == {"server-1"}
    assert facts["TLS ALPN offered"] == {"h2, http/1.1"}
    assert facts["TLS ALPN"] == {"h2"}
    (subject,) = facts["certificate subject"]
    (issuer,) = facts["certificate issuer"]
    assert "CN=server-1" in subject.split(",")
    assert "trustme" in issuer
    assert "CN=server-1" not in issuer
    assert facts["certificate names"] == {"server-1"}
    by = dict(zip(found.facts["what"], found.facts["sent by"], strict=True))
    assert (by["certificate subject"], by["TLS server name (SNI)"]) == (SERVER[0], CLIENT[0])
    assert set(found.facts["flows"]) == {1}
    assert found.whole


def test_tls_1_3_says_that_its_certificate_is_encrypted(tmp_path: Path) -> None:
    facts = said(dissected(tmp_path, Talk().frames(tls_turns(ssl.TLSVersion.TLSv1_3))))
    assert facts["TLS version"] == {"TLS 1.3"}
    assert facts["TLS server name (SNI)"] == {"server-1"}
    assert facts["certificate subject"] == {"encrypted (TLS 1.3)"}
    assert "certificate issuer" not in facts


@pytest.mark.parametrize("port", [2379, 2380, 6443, 9345, 10250, 443])
def test_tls_is_known_on_every_port_that_has_it(tmp_path: Path, port: int) -> None:
    talk = Talk(server=("10.10.0.11", port))
    facts = said(dissected(tmp_path, talk.frames(tls_turns(ssl.TLSVersion.TLSv1_2))))
    assert facts["TLS version"] == {"TLS 1.2"}


def test_a_handshake_that_the_snaplen_cut_is_no_silence(tmp_path: Path) -> None:
    facts = said(dissected(tmp_path, Talk().frames(tls_turns(ssl.TLSVersion.TLSv1_2)), snaplen=160))
    assert facts["TLS"] == {"handshake, cut off by the snaplen"}


def test_the_same_fact_in_two_connections_is_one_row_of_two_flows(tmp_path: Path) -> None:
    turns = tls_turns(ssl.TLSVersion.TLSv1_2)
    frames = [f for port in (40000, 40001) for f in Talk((CLIENT[0], port)).frames(turns)]
    facts = dissected(tmp_path, frames).facts
    assert facts.loc[facts["what"] == "TLS server name (SNI)", "flows"].tolist() == [2]


# ---- the others ----

REQUEST = b"GET /metrics?x=1 HTTP/1.1\r\nHost: 10.10.0.11:9099\r\nUser-Agent: curl/8\r\n\r\n"
ANSWER = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("port", [9099, 2381, 30080, 80])
def test_http_names_method_path_host_and_status(tmp_path: Path, port: int) -> None:
    turns = [(True, REQUEST), (False, ANSWER)]
    facts = said(dissected(tmp_path, Talk(server=("10.10.0.11", port)).frames(turns)))
    assert facts["HTTP request"] == {"GET /metrics?x=1, host 10.10.0.11:9099"}
    assert facts["HTTP user agent"] == {"curl/8"}
    assert facts["HTTP status"] == {"404 Not Found"}


def h2_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, 4.1"""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """HPACK, a literal without indexing and a new name (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


GRPC_HEADERS = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/etcdserverpb.KV/Range"),
        (b":authority", b"10.10.0.11:2379"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    )
)  # fmt: skip


@pytest.mark.parametrize("port", [2379, 2380, 12379])
def test_plain_grpc_names_its_method(tmp_path: Path, port: int) -> None:
    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(4, 0, 0, b"")
    turns = [(True, opening + h2_frame(1, 4, 1, GRPC_HEADERS)), (False, h2_frame(4, 0, 0, b""))]
    facts = said(dissected(tmp_path, Talk(server=("10.10.0.11", port)).frames(turns)))
    assert facts["gRPC method"] == {"/etcdserverpb.KV/Range"}


def test_ssh_banners_of_both_ends(tmp_path: Path) -> None:
    turns = [(False, b"SSH-2.0-OpenSSH_9.2p1\r\n"), (True, b"SSH-2.0-libssh_0.11\r\n")]
    facts = said(dissected(tmp_path, Talk(server=("10.10.0.11", 22)).frames(turns)))
    assert facts["SSH banner"] == {"SSH-2.0-OpenSSH_9.2p1", "SSH-2.0-libssh_0.11"}


def dns_name(name: str) -> bytes:
    return b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0"


def dns_pair(name: str, address: str) -> tuple[bytes, bytes]:
    """A query and its answer (RFC 1035, 4.1)."""
    question = dns_name(name) + struct.pack(">2H", 1, 1)
    record = struct.pack(">3HIH", 0xC00C, 1, 1, 30, 4) + ipaddress.IPv4Address(address).packed
    return (
        struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + question,
        struct.pack(">6H", 7, 0x8180, 1, 1, 0, 0) + question + record,
    )


def test_dns_in_vxlan_names_the_inner_flow_and_the_name(tmp_path: Path) -> None:
    query, answer = dns_pair("api.example.org", "10.43.0.1")
    pods = ("10.42.1.6", 5353), ("10.42.0.5", 53)
    frames = [
        carried(datagram(*pods, query), "10.10.0.21", "10.10.0.11", vni=7),
        carried(datagram(*pods[::-1], answer), "10.10.0.11", "10.10.0.21", vni=7, source_port=51001),
    ]
    facts = said(dissected(tmp_path, frames))
    assert facts["DNS query"] == {"api.example.org A"}
    assert facts["DNS answer"] == {"api.example.org A → 10.43.0.1"}
    assert facts["inner flow"] == {
        "VNI 7, udp 10.42.1.6:5353 → 10.42.0.5:53",
        "VNI 7, udp 10.42.0.5:53 → 10.42.1.6:5353",
    }


def test_wireguard_names_its_messages(tmp_path: Path) -> None:
    initiation = struct.pack("<I", 1) + bytes(144)
    data = struct.pack("<I", 4) + bytes(28)
    for port in (51820, 51821):
        ends = ("10.10.0.21", port), ("10.10.0.11", port)
        facts = said(dissected(tmp_path, [datagram(*ends, initiation), datagram(*ends, data)]))
        assert facts["WireGuard"] == {"Handshake Initiation", "Transport Data"}


def test_an_icmp_error_is_told_and_what_it_quotes_is_not(tmp_path: Path) -> None:
    query, _ = dns_pair("api.example.org", "10.43.0.1")
    asked = datagram(("10.10.0.21", 5353), ("10.10.0.11", 53), query)
    facts = said(dissected(tmp_path, [unreachable("10.10.0.11", asked, 13)]))
    assert facts == {"ICMP": {"Destination unreachable: Communication administratively filtered"}}


def test_six_addresses_stand_in_brackets(tmp_path: Path) -> None:
    query, _ = dns_pair("api.example.org", "10.43.0.1")
    inner = datagram(("fd00:42::6", 5353), ("fd00:42::5", 53), query)
    facts = said(dissected(tmp_path, [carried(inner, "10.10.0.21", "10.10.0.11")]))
    assert facts["inner flow"] == {"VNI 1, udp [fd00:42::6]:5353 → [fd00:42::5]:53"}


# ---- hostile, long, broken ----


def test_hostile_text_arrives_as_text_and_not_too_long(tmp_path: Path) -> None:
    hostile = "</packet><field name='dns.qry.name' show='x'/>\x1b[31m\u202e" + "a" * 3000
    request = f"GET /{'<script>'} HTTP/1.1\r\nHost: h\r\nUser-Agent: {hostile}\r\n\r\n".encode()
    facts = said(dissected(tmp_path, Talk(server=("10.10.0.11", 80)).frames([(True, request)])))
    assert facts["HTTP request"] == {"GET /<script>, host h"}
    (agent,) = facts["HTTP user agent"]
    assert agent.startswith("</packet><field")
    assert len(agent) == 201
    assert "DNS query" not in facts


def test_damaged_packets_end_in_a_result(tmp_path: Path) -> None:
    turns = tls_turns(ssl.TLSVersion.TLSv1_2)
    whole = Talk().frames(turns)
    broken = [f[: 60 + 37 * n] + bytes([n * 7 % 256]) * 20 + f[80 + 37 * n :] for n, f in enumerate(whole)]
    assert isinstance(dissected(tmp_path, broken), Dissection)


def test_no_more_is_dissected_than_was_asked_for(tmp_path: Path) -> None:
    query, _ = dns_pair("api.example.org", "10.43.0.1")
    frames = [datagram(("10.10.0.21", 5000 + n), ("10.10.0.11", 53), query) for n in range(50)]
    path = save(tmp_path, "small.pcap", pcap(timed(frames)))
    reached: list[int] = []
    found = dissect(path, most=10, progress=reached.append)
    assert (found.dissected, found.whole) == (10, False)
    assert reached == list(range(1, 11))
    assert found.facts["flows"].tolist() == [10]
    assert not children()


def test_time_is_limited_and_no_tshark_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "tshark").write_text(
        f'#!/bin/sh\n[ "$1" = -v ] && exec {shutil.which("tshark")} -v\nexec sleep 60\n'
    )
    (slow / "tshark").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
    began = time.monotonic()
    found = dissect(save(tmp_path, "small.pcap", pcap([])), seconds=0.5)
    assert not found.whole
    assert time.monotonic() - began < 5
    assert not children()


def test_an_error_in_between_leaves_no_tshark(tmp_path: Path) -> None:
    query, _ = dns_pair("api.example.org", "10.43.0.1")
    frames = [datagram(("10.10.0.21", 5000 + n % 9), ("10.10.0.11", 53), query) for n in range(3000)]

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dissect(save(tmp_path, "small.pcap", pcap(timed(frames))), progress=stop)
    assert not children()


@pytest.fixture(autouse=True)
def _earlier() -> None:
    """Other files' tests, in the same process, may have left what lasts as long as it: multiprocessing's."""
    _before.clear()
    _before.update(_children())


_before: set[str] = set()


def _children() -> list[str]:
    mine = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [pid for file in mine for pid in file.read_text().split()]


def children() -> list[str]:
    """This process's children since the test began: tshark, or dead and not waited for."""
    pids = set(_children()) - _before
    return [name for pid in pids if (name := Path(f"/proc/{pid}/comm").read_text().strip()) != "pytest"]


def test_it_works_where_an_event_loop_runs_already(tmp_path: Path) -> None:
    import asyncio

    path = save(tmp_path, "small.pcap", pcap(timed(Talk().frames(tls_turns(ssl.TLSVersion.TLSv1_2)))))

    async def in_jupyter() -> Dissection:
        return dissect(path)

    assert "TLS version" in said(asyncio.run(in_jupyter()))


def test_a_failing_tshark_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(LiveError, match="tshark could not dissect"):
        dissect(save(tmp_path, "small.pcap", b"no capture at all"))


def test_without_tshark_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LiveError, match=r"tshark is not installed.*apt-get install tshark"):
        dissect(tmp_path / "small.pcap")


def test_without_pyshark_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyshark", None)
    with pytest.raises(LiveError, match=r"pyshark cannot be imported.*pip install pyshark"):
        dissect(tmp_path / "small.pcap")


# ---- findings, in recordings and in the lab ----


def explained(name: str, finding: str) -> dict[str, set[str]]:
    found = explain([RECORDED / name], recorded(name), finding)
    return {str(what): set(values) for what, values in found.facts.groupby("what")["value"]}


def finding_of(name: str, **wanted: object) -> str:
    table = recorded(name).findings
    for column, value in wanted.items():
        table = table[table[column] == value]
    (finding,) = table["id"]
    return str(finding)


def test_recorded_findings_name_what_is_in_them() -> None:
    ssh = explained("offences", finding_of("offences", port=22))
    assert ssh == {"SSH banner": {"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3", "SSH-2.0-lab"}}
    tunnel = explained("offences", finding_of("offences", kind="foreign-tunnel"))
    assert tunnel["DNS query"] == {"kubernetes.default.svc.cluster.local A"}
    assert any("VNI 1, tcp 10.42.99.10:" in flow for flow in tunnel["inner flow"])
    page = explained("offences", finding_of("offences", port=30080))
    assert page["HTTP request"] == {"GET /, host 10.10.0.21"}


def test_the_head_says_what_the_facts_rest_on() -> None:
    finding = finding_of("offences", port=6443, client="server-2")
    found = explain([RECORDED / "offences"], recorded("offences"), finding)
    title, frames, snaplen = found.head()
    assert title.startswith(f"high {finding}: server-2 (server) reached agent-1")
    assert frames == "72 frames: 36 in agent-1.pcap, 36 in server-2.pcap"
    assert snaplen.startswith("20 of them were cut off by the snaplen")
    nothing = explain([RECORDED / "blocked"], recorded("blocked"), finding_of("blocked", client="agent-3"))
    assert nothing.facts.empty
    assert nothing.head()[-1].startswith("nothing in them is recognised")


def test_a_place_is_that_of_the_capture() -> None:
    found = explain([RECORDED / "offences"], recorded("offences"), finding_of("offences", port=22))
    places = found.facts["capture, frame"].tolist()
    assert len(places) == 2
    for place, banner in zip(places, found.facts["value"], strict=True):
        name, frame = place.split()
        shown = subprocess.run(
            ["tshark", "-n", "-r", RECORDED / "offences" / name, "-Y", f"frame.number=={frame}",
             "-T", "fields", "-e", "ssh.protocol"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        assert shown.stdout.strip() == banner


TLS_1_2 = """
import socket, ssl, sys
address, port, name, authority, pem = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
context.maximum_version = ssl.TLSVersion.TLSv1_2
context.load_cert_chain(pem)
context.set_alpn_protocols(["h2", "http/1.1"])
with socket.create_connection((address, int(port)), 5) as plain:
    with context.wrap_socket(plain, server_hostname=name) as tls:
        print(tls.version())
"""
PAGE = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"User-Agent": "lab-page"})
try:
    urllib.request.urlopen(request, timeout=5).read()
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture(scope="module")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole packets of a lab in which each finding carries something else."""
    from dataclasses import replace

    from lab import Lab, live, plan, processes, recordings

    require_root()
    for program in ("etcd", "etcdctl", "nft", "setpriv", "tcpdump", "tshark"):
        require_program(program)
    folder = tmp_path_factory.mktemp("lab")
    uplink = recordings.TOOLS["uplink"]
    command = tuple("0" if word == str(recordings.SNAPLEN) else word for word in uplink.command)
    scenarios = ("apiserver-on-agent", "etcd-from-agent-answered", "ssh-agent-to-agent", "foreign-vxlan")
    with pytest.MonkeyPatch.context() as patch, Lab() as lab:
        patch.setitem(recordings.TOOLS, "whole", replace(uplink, command=command))
        lab.start()
        lab.prepare(*scenarios)
        watched = recordings.Recording("", "", (), tool="whole", nodes=("agent-1", "agent-2", "server-1"))

        def ask(client: str, server: str, port: int) -> None:
            ends = (plan.addresses(server)[4], str(port), server)
            files = (str(lab.folder / "ca.pem"), str(lab.folder / f"{client}.pem"))
            line = [sys.executable, "-c", TLS_1_2, *ends, *files]
            assert processes.call(lab.namespaces[client], line) == "TLSv1.2\n"

        with recordings.capture(lab, watched, folder):
            lab.run(*scenarios, seconds=1.0)
            ask("server-2", "agent-1", 6443)
            ask("agent-1", "server-1", 2379)
            url = f"http://{plan.addresses('agent-1')[4]}:{plan.NODE_PORT}/not/there?x=1"
            line = [sys.executable, "-c", PAGE, url]
            assert processes.call(lab.namespaces[plan.OUTSIDE.name], line) == "404\n"
            lab.settle()
        live.write_cluster(folder)
    return folder


def test_lab_findings_name_their_real_content(lab_folder: Path) -> None:
    analysis = analyze(lab_folder, cluster=lab_folder / "cluster.yaml")
    names = ("kind", "client", "server", "port", "id")
    findings = {row[:-1]: row[-1] for row in zip(*(analysis.findings[n] for n in names), strict=True)}

    def facts(*key: object) -> dict[str, set[str]]:
        found = explain([lab_folder], analysis, str(findings[key]))
        return {str(what): set(values) for what, values in found.facts.groupby("what")["value"]}

    apiserver = facts("violation", "server-2", "agent-1", 6443)
    assert apiserver["TLS version"] == {"TLS 1.3", "TLS 1.2"}
    assert apiserver["TLS server name (SNI)"] == {"agent-1"}
    subjects = apiserver["certificate subject"] - {"encrypted (TLS 1.3)"}
    assert {"CN=agent-1"} == {part for s in subjects for part in s.split(",") if part.startswith("CN=")}
    assert any("O=trustme" in issuer for issuer in apiserver["certificate issuer"])

    etcd = facts("violation", "agent-1", "server-1", 2379)
    assert etcd["TLS server name (SNI)"] == {"server-1"}
    assert etcd["TLS ALPN"] == {"h2"}
    owners = {part for s in etcd["certificate subject"] for part in s.split(",") if part.startswith("CN=")}
    assert owners == {"CN=server-1", "CN=agent-1"}

    page = facts("exposure", "10.10.0.99", "agent-1", 30080)
    assert page["HTTP request"] == {"GET /not/there?x=1, host 10.10.0.21:30080"}
    assert page["HTTP status"] == {"404 Not Found"}
    assert page["HTTP user agent"] == {"lab-page"}

    tunnel = facts("foreign-tunnel", "10.10.0.99", "agent-2", 8472)
    assert tunnel["DNS query"] == {"kubernetes.default.svc.cluster.local A"}

    ssh = facts("violation", "agent-1", "agent-3", 22)
    assert ssh["SSH banner"] == {"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3", "SSH-2.0-lab"}
