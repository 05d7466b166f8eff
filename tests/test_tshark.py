"""One-way rows against tshark.

Rule: this file compares; what tshark is asked and how its answer is read stands in ``oracles.py``.

Compared are the frames read, and for each one-way 5-tuple in its tunnel the packets and the IP bytes.

- Options: `-n`, no reassembly of IP (`ip.defragment`, `ipv6.defragment` FALSE) or of TCP streams, UDP port
  8472 as VXLAN (RKE2's Canal; 4789 and Geneve's 6081 are known to tshark). Fields with all their occurrences
  (`-E occurrence=a`): `frame.protocols` gives the order of the headers, and each header takes the next value
  of `ip.src`, `ip.dst`, `ip.proto`, `ip.len` (IPv6: `ipv6.src`, `ipv6.dst`, `ipv6.nxt` and the extension
  headers' next header, `ipv6.plen` + 40), `tcp.srcport`, `tcp.dstport` and so on.
- Only the headers up to the first transport header count, so that nothing that a payload is taken for adds a
  packet. They go on behind it where a tunnel follows that we decode: VXLAN and Geneve (`vxlan.vni`,
  `geneve.vni`), GRE, IP in IP. The outer packet and the inner one count each for itself, the inner one with
  the VNI and the outer addresses.
- ICMP: `icmp.type` and `icmp.code` stand as the ports. What an ICMP message quotes is no packet; of a
  destination-unreachable the quoted 5-tuple is compared with our rows that say so.
- Fragments: tshark shows a later fragment without ports. It gets those of the fragment with offset 0 and the
  same addresses and identification (IPv4: and protocol), wherever in the file that stands; where there is
  none its ports are 0, and our ledger's `fragment` has it.
- IP bytes are what the IP header says. Where it says 0 (segmentation offload) tshark shows 0 too, and the
  file is an exception.
- A damaged file is compared as far as tshark reads it.

Where the two differ, the file stands in ``EXCEPTIONS`` with the reason, and must differ in exactly that way.
"""

from __future__ import annotations

import re
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import frames as fr
import pytest
from conftest import PUBLIC, RECORDED, SHARED, ZEEK, require_program, require_shared
from oracles import TCP, UDP, Count, Counts, Dissected, Key, one_way_counts, quoted_keys, tshark

from analyzer.capture.offline import read_capture
from analyzer.errors import CaptureError
from analyzer.flows import pair
from analyzer.rows import Coverage, OneWay

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED = SHARED / "captures" / "expected" / "public"
NO_LEDGER = Coverage("")


def _captures(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.suffix not in (".log", ".md", ".yaml", ".json", ".parquet")
    )


PATHS = [*_captures(PUBLIC), *_captures(ZEEK), *_captures(RECORDED)]


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


# ---- where the two differ, and why ----


@dataclass(frozen=True)
class Difference:
    """`ours`, `theirs`: the counts that only one side has. `frames`: ours and tshark's, None where they are
    equal.

    `ledger`: what our ledger must say of it. `error`: what our CaptureError must say, where the file cannot
    be read.
    """

    reason: str
    ours: Counts = field(default_factory=dict)
    theirs: Counts = field(default_factory=dict)
    frames: tuple[int, int] | None = None
    ledger: dict[str, int] = field(default_factory=dict)
    error: str = ""
    damage: str = ""


_BIG_TCP = ("2604:1380:4091:ce00::d", "2604:1380:4091:ce00::b")
EXCEPTIONS = {
    "public/libpcap__ipv6_ext_headers.pcap": Difference(
        "100 extension headers before UDP; ours follows 8 (RFC 8200 4.1: each at most once, but "
        "destination options)",
        theirs={Key("2001:db8::1", "2001:db8::2", 12345, 54321, UDP): Count(1, 858)},
        ledger={"malformed": 1},
    ),
    "public/zeek__ip6-ext-trunc.pcap": Difference(
        "the record says that 54 bytes were on the wire, 40 of them IPv6, which says it has 60; no transport "
        "header is in them, and tshark has no more than the hop-by-hop header's own number, 0",
        theirs={
            Key("2001:4f8:4:7:2e0:81ff:fe52:ffff", "2001:4f8:4:7:2e0:81ff:fe52:9a6b", 0, 0, 0): Count(1, 60)
        },
        ledger={"malformed": 1},
    ),
    "public/tcpdump__bigtcp-ipv6-vxlan-ipv4.pcap": Difference(
        "BIG TCP: the length fields are 0, tshark 4.0 stops there; test_big_tcp compares with tcpdump",
        ours={
            Key(*_BIG_TCP, 52238, 4789, UDP): Count(1, 80122),
            Key("192.168.1.1", "192.168.1.2", 41873, 38131, TCP, "vxlan", 5001, *_BIG_TCP): Count(1, 80052),
        },
        theirs={Key(*_BIG_TCP, 0, 0, UDP): Count(1, 0)},
    ),
    "public/pcapng-test-generator__test202.pcapng": Difference(
        "tshark shows three custom blocks as frames; by the file's expected block counts 8 are packets",
        frames=(8, 11),
    ),
    "public/suricata-verify__fuzz.pcap": Difference(
        "the second record's header is damaged, from which tshark guesses that all have Kuznetzov's longer "
        "header; test_fuzzed_records compares with tcpdump",
        ours={Key("192.168.0.0", "0.0.16.64", 256, 0, TCP): Count(1, 174)},
        frames=(1, 2),
        damage="more than the limit",
    ),
    "public/libpcap__pcapng-invalid-vers-1.pcapng": Difference(
        "neither reads it", error="pcapng version 0.1 is not known"
    ),
    "public/libpcap__shb-option-too-long.pcapng": Difference(
        "neither reads it", error="a block begins with 52 and ends with"
    ),
    "public/pcapplusplus__crash-pcapng-epb-unbounded-length": Difference(
        "neither reads it", error="says it holds 65536 bytes"
    ),
}
NOTHING = Difference("")


# ---- the comparison ----


@pytest.fixture(scope="module")
def dissected() -> dict[Path, Dissected]:
    """tshark on every file, two at a time."""
    require_shared()
    require_program("tshark")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PATHS, pool.map(tshark, PATHS), strict=True))


def read(path: Path) -> tuple[OneWay, Coverage, str]:
    """What we read: the rows, the ledger, and what the CaptureError says where there is one."""
    try:
        whole = read_capture(path).settled()
    except CaptureError as error:
        return OneWay(), NO_LEDGER, str(error)
    assert len(whole.coverage) == 1
    return whole, whole.coverage[0], ""


def difference(ours: Counts, theirs: Counts) -> tuple[Counts, Counts]:
    """What only the one, and what only the other has; a key with other counts is in both."""
    return (
        {key: count for key, count in ours.items() if theirs.get(key) != count},
        {key: count for key, count in theirs.items() if ours.get(key) != count},
    )


@pytest.mark.parametrize("path", PATHS, ids=_name)
def test_equal(path: Path, dissected: dict[Path, Dissected]) -> None:
    theirs, known = dissected[path], EXCEPTIONS.get(_name(path), NOTHING)
    whole, ledger, error = read(path)
    assert difference(one_way_counts(whole), theirs.counts) == (known.ours, known.theirs)
    assert (ledger.frames, theirs.frames) == (known.frames or (theirs.frames, theirs.frames))
    assert quoted_keys(whole) == theirs.quoted
    assert {name: getattr(ledger, name) for name in known.ledger} == known.ledger
    assert known.error in error
    assert bool(error) == bool(known.error)
    assert bool(theirs.errors) == bool(error or ledger.damage), "one of the two took the file for whole"
    assert known.damage in ledger.damage


@pytest.mark.parametrize("path", PATHS, ids=_name)
def test_every_frame_is_accounted(path: Path) -> None:
    require_shared()
    _, ledger, _ = read(path)
    assert ledger.accounted() == ledger.frames


def test_every_published_capture_is_compared() -> None:
    require_shared()
    index = (SHARED / "captures" / "INDEX.tsv").read_text(encoding="utf-8").splitlines()
    listed = {"/".join(line.split("\t")[:2]) for line in index if line.startswith(("public\t", "zeek\t"))}
    assert len(listed) == 60
    assert listed <= {_name(path) for path in PATHS}
    assert set(EXCEPTIONS) <= listed


def test_what_is_covered(dissected: dict[Path, Dissected]) -> None:
    """The files show what the comparison is about; without tunnels, fragments and quotes in them it would say
    little.
    """
    keys = [key for each in dissected.values() for key in each.counts]
    assert {key.tunnel for key in keys} == {"", "vxlan", "geneve", "gre"}
    assert {key.protocol for key in keys} >= {1, 6, 17, 47, 58}
    assert any(":" in key.src for key in keys)
    assert any(each.quoted for each in dissected.values())


def test_a_changed_port_is_seen(tmp_path: Path) -> None:
    require_shared()
    require_program("tshark")
    original, changed = PUBLIC / "suricata-verify__flow-test-01.pcap", tmp_path / "changed.pcap"
    data = bytearray(original.read_bytes())
    data[24 + 16 + 20] ^= 1  # the first packet's source port: file header, record header, IPv4 header
    changed.write_bytes(data)
    ours, theirs = difference(one_way_counts(read_capture(original)), tshark(changed).counts)
    assert [count.packets for count in ours.values()] == [4]
    assert sorted(count.packets for count in theirs.values()) == [1, 3]


# ---- what tshark cannot tell, by other programs ----


def tcpdump_output(name: str) -> str:
    require_shared()
    return (EXPECTED / f"{name}.tcpdump.out").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "outer", "inner"),
    [
        ("tcpdump__bigtcp-ipv6-vxlan-ipv4.pcap", r"real length (\d+)", r"length (\d+) \[was 0"),
        ("tcpdump__gso-ipv4-vxlan-ipv4.pcap", r"UDP \(17\), length (\d+)", r"TCP \(6\), length (\d+)"),
    ],
)
def test_big_tcp(name: str, outer: str, inner: str) -> None:
    """A packet longer than the network's: tcpdump's IP lengths of carrier and inner packet, which count as
    one packet each.
    """
    said = [re.search(pattern, tcpdump_output(name)) for pattern in (outer, inner)]
    counts = one_way_counts(read_capture(PUBLIC / name))
    by_tunnel = {key.tunnel: count for key, count in counts.items()}
    assert by_tunnel == {
        tunnel: Count(1, int(match[1])) for tunnel, match in zip(("", "vxlan"), said, strict=True) if match
    }
    assert f"vni {next(key.vni for key in counts if key.tunnel)}" in tcpdump_output(name)


def test_double_tags_before_arp() -> None:
    _, ledger, _ = read(PUBLIC / "tcpdump__802.1ad_QinQ.pcap")
    assert (
        ledger.not_ip == ledger.frames == tcpdump_output("tcpdump__802.1ad_QinQ.pcap").count("(0x0806)") == 2
    )


def test_fuzzed_records() -> None:
    require_shared()
    require_program("tcpdump")
    path = PUBLIC / "suricata-verify__fuzz.pcap"
    done = subprocess.run(
        ["tcpdump", "-n", "-r", path], capture_output=True, text=True, check=False, timeout=60
    )
    packets = [line for line in done.stdout.splitlines() if " IP " in line]
    assert [line.split()[2:5] for line in packets] == [["192.168.0.0.256", ">", "0.0.16.64.0:"]]
    assert done.returncode != 0
    _, ledger, _ = read(path)
    assert ledger.frames == ledger.flow == 1


def test_packet_blocks() -> None:
    """The expected block counts of the pcapng generator: enhanced, simple and obsolete packet blocks are
    frames, all else is none.
    """
    require_shared()
    outputs = sorted(EXPECTED.glob("*.blocks.txt"))
    assert outputs
    for output in outputs:
        blocks = dict(re.findall(r"^\t(\w+): (\d+)$", output.read_text(encoding="utf-8"), re.MULTILINE))
        _, ledger, _ = read(PUBLIC / output.name.removesuffix(".blocks.txt"))
        assert ledger.frames == sum(int(blocks.get(kind, 0)) for kind in ("EPB", "SPB", "PB"))


#: blocks of pcapng that are no packets: a journal's entry, a custom one, sysdig's event, secrets, one unknown
NO_PACKETS = {
    "journal": (9, b"__REALTIME_TIMESTAMP=1735689600000000\nMESSAGE=hello\n"),
    "custom": (0xBAD, struct.pack("<I", 32473) + b"custom"),
    "custom, not to be copied": (0x40000BAD, struct.pack("<I", 32473) + b"custom"),
    "sysdig": (0x204, struct.pack("<HQQIH", 0, fr.EPOCH, 1, 26, 0)),
    "secrets": (10, struct.pack("<II", 0x544C534B, 4) + b"none"),
    "unknown": (0x1234, b"unknown"),
}


@pytest.mark.parametrize("kind", NO_PACKETS)
def test_frames_have_the_numbers_that_wireshark_gives_them(kind: str, tmp_path: Path) -> None:
    """It numbers some blocks that are no packets, too."""
    require_program("tshark")
    talks = [fr.timed(fr.handshake(("10.10.0.21", port), ("10.10.0.11", 6443))) for port in (40000, 40001)]
    between = fr.block("<", *NO_PACKETS[kind])
    head = fr.pcapng(talks[0], more=between * 2)
    path = fr.save(tmp_path, "capture.pcapng", head + fr.pcapng(talks[1])[len(fr.pcapng([])) :])
    fields = ["-T", "fields", "-e", "frame.number", "-e", "tcp.flags.syn", "-e", "tcp.flags.ack"]
    done = subprocess.run(
        ["tshark", "-r", path, *fields], capture_output=True, text=True, check=False, timeout=60
    )
    opened = [int(n) for n, *flags in map(str.split, done.stdout.splitlines()) if flags == ["1", "0"]]
    one_way = read_capture(path)
    rows = one_way.rows[one_way.rows["dst_port"] == 6443]
    assert len(opened) == 2
    assert sorted(rows["first_frame"].tolist()) == opened
    assert one_way.coverage[0].frames == 6


# ---- flows that other projects' tests expect ----

_NDPI_FLOW = re.compile(
    r"\t(?P<protocol>TCP|UDP) (?P<a>[\d.]+):(?P<a_port>\d+) <-> (?P<b>[\d.]+):(?P<b_port>\d+) .*?"
    r"\[(?P<a_packets>\d+) pkts/(?P<a_bytes>\d+) bytes <-> (?P<b_packets>\d+) pkts/(?P<b_bytes>\d+) bytes\]"
)


@pytest.mark.parametrize(
    ("name", "tunnel", "overhead"),
    [
        (
            "ndpi__vxlan.pcap",
            "vxlan",
            14 + 4 + 20 + 8 + 8 + 14,
        ),  # Ethernet, 802.1Q, IPv4, UDP, VXLAN, Ethernet
        ("ndpi__wireguard.pcap", "", 14),
    ],
)
def test_ndpi(name: str, tunnel: str, overhead: int) -> None:
    """nDPI counts bytes of frames, of the carrier's where a tunnel is decoded; `overhead` is what stands
    before the flow's IP.
    """
    require_shared()
    text = (EXPECTED / f"{name}.ndpi.out").read_text(encoding="utf-8")
    theirs: Counts = {}
    for match in _NDPI_FLOW.finditer(text):
        protocol = {"TCP": TCP, "UDP": UDP}[match["protocol"]]
        a, b = (match["a"], int(match["a_port"])), (match["b"], int(match["b_port"]))
        for (src, src_port), (dst, dst_port), side in ((a, b, "a"), (b, a, "b")):
            count = Count(int(match[f"{side}_packets"]), int(match[f"{side}_bytes"]))
            theirs[Key(src, dst, src_port, dst_port, protocol)] = count
    ours = {
        Key(*key[:5]): Count(count.packets, count.bytes + overhead * count.packets)
        for key, count in one_way_counts(read_capture(PUBLIC / name)).items()
        if key.tunnel == tunnel
    }
    assert len(theirs) >= 4
    assert ours == theirs


def test_arkime() -> None:
    """One session; `network.bytes` are of frames, so that each packet's Ethernet header is taken off."""
    import json

    require_shared()
    text = (EXPECTED / "arkime__bigendian.pcap.arkime.json").read_text(encoding="utf-8")
    (session,) = (each["body"] for each in json.loads(text)["sessions3"])
    flows = pair(read_capture(PUBLIC / "arkime__bigendian.pcap"))
    assert len(flows) == 1
    flow = flows.iloc[0]
    assert (flow["client"], flow["server"]) == (session["source"]["ip"], session["destination"]["ip"])
    assert [flow["client_port"]] == session["icmp"]["type"]
    assert [flow["server_port"]] == session["icmp"]["code"]
    assert flow["packets_out"] == session["source"]["packets"] == session["network"]["packets"]
    assert flow["packets_in"] == session["destination"]["packets"]
    assert flow["bytes_out"] == session["source"]["bytes"] - 14 * flow["packets_out"]
    assert flow["start"].value // 10**6 == session["firstPacket"]
    assert flow["end"].value // 10**6 == session["lastPacket"]


def test_deepflow() -> None:
    """deepflow's test expects the dialogue of one connection; its first message names the server's port."""
    require_shared()
    text = (EXPECTED / "deepflow__nats-nrpc1.pcap.deepflow.result").read_text(encoding="utf-8")
    ports = set(re.findall(r"\bport: (\d+)", text))
    flows = pair(read_capture(PUBLIC / "deepflow__nats-nrpc1.pcap"))
    assert {str(port) for port in flows["server_port"]} == ports
    assert list(flows["outcome"]) == ["answered"]


@pytest.mark.parametrize(("name", "tcp"), [("suricata-verify__flow-test-01.pcap", 7)])
def test_suricata(name: str, tcp: int) -> None:
    """Suricata's own test counts `stats.decoder.tcp`."""
    require_shared()
    text = (EXPECTED / f"{name}.suricata-test.yaml").read_text(encoding="utf-8")
    assert f"stats.decoder.tcp: {tcp}" in text
    counts = one_way_counts(read_capture(PUBLIC / name))
    assert sum(count.packets for key, count in counts.items() if key.protocol == TCP) == tcp


# ---- cut captures ----


def test_truncated_by_snaplen_is_not_damage(tmp_path: Path) -> None:
    """Bytes are those on the wire also where the capture holds fewer; tshark says the same of the cut file as
    of the whole.
    """
    require_shared()
    require_program("editcap")
    source, cut = PUBLIC / "wz1st__flannel.pcap", tmp_path / "cut.pcap"
    subprocess.run(["editcap", "-F", "pcap", "-s", "96", source, cut], check=True, timeout=60)
    assert cut.stat().st_size < source.stat().st_size
    assert one_way_counts(read_capture(cut)) == one_way_counts(read_capture(source)) == tshark(cut).counts
