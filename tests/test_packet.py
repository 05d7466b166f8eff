"""One packet parser serves kernel and reader.

Rule: this file compares. The packets and their meaning come from ``packets.py``, the two answers from the
native reader and from a program that the kernel has loaded; that the comparison can fail is tested as well.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import ipaddress
import os
import platform
import random
import shutil
import struct
import subprocess
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LIBRARIES, PROJECT, require, require_program, require_root
from packets import (
    ETHERNET,
    IEEE802_11,
    NEXT_CUT,
    NEXT_NONE,
    NOT_IP,
    OVERLAY,
    PACKETS,
    PARSED,
    SYN4,
    TRUNCATED,
    TYPE_IPV4,
    Layer,
    Packet,
    ether,
)

from analyzer.capture import _reader

BPF_DIR = PROJECT / "bpf"
WINDOW = 192  # tests/bpf/packet_probe.c
LAYERS = 3  # PACKET_LAYERS

# bpf/flow.h and bpf/packet.h
KEY = [
    ("src", "16u1"), ("dst", "16u1"), ("outer_src", "16u1"), ("outer_dst", "16u1"), ("vni", "<u4"),
    ("interface", "<u4"), ("src_port", "<u2"), ("dst_port", "<u2"), ("protocol", "u1"), ("tunnel", "u1"),
    ("direction", "u1"), ("reserved", "u1"),
]  # fmt: skip
PACKET = np.dtype(
    [
        ("key", np.dtype(KEY, align=True)), ("bytes", "<u8"), ("fragment_payload", "<u8"),
        ("fragment_end", "<u8"),
        ("fragment_id", "<u4"), ("next_vni", "<u4"), ("unreachable", "<u4"), ("tcp_flags", "<u2"),
        ("events", "u1"),
        ("fragment", "u1"), ("fragment_protocol", "u1"), ("next", "u1"), ("next_tunnel", "u1"),
        ("reserved", "u1"), ("start", "<u2"), ("payload", "<u2"),
    ],
    align=True,
)  # fmt: skip

KEY_FIELDS = {name for name, _ in KEY}

Answer = list[tuple[int, bytes]]
Ask = Callable[[Packet], Answer]


def native(packet: Packet, window: int = 1 << 40, parser: Any = _reader) -> Answer:
    """What the native reader says of a frame of which the first ``window`` bytes can be read."""
    return list(parser.parse(packet.link, packet.data[:window], packet.wire))


def packed(address: str) -> bytes:
    """The 16 bytes of an address, IPv4 as ::ffff:a.b.c.d."""
    parsed = ipaddress.ip_address(address)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed


def differences(expected: Layer, result: int, got: bytes) -> dict[str, tuple[Any, Any]]:
    """Fields that are not as expected; of a layer that was not parsed the result alone is promised."""
    if result != expected.result:
        return {"result": (result, expected.result)}
    if result != PARSED:
        return {}
    record = np.frombuffer(got, PACKET)[0]
    wrong: dict[str, tuple[Any, Any]] = {}
    for name, value in asdict(expected).items():
        if name == "result" or (name in {"next_tunnel", "next_vni"} and expected.next == NEXT_NONE):
            continue
        found = record["key"][name] if name in KEY_FIELDS else record[name]
        found, wanted = (found.tobytes(), packed(value)) if isinstance(value, str) else (int(found), value)
        if found != wanted:
            wrong[name] = (found, wanted)
    return wrong


def faults(packet: Packet, answer: Answer) -> list[dict[str, tuple[Any, Any]]]:
    """What is wrong with an answer, layer by layer; empty when nothing is."""
    if len(answer) != len(packet.layers):
        return [{"layers": (len(answer), len(packet.layers))}]
    wrong = [differences(layer, *got) for layer, got in zip(packet.layers, answer, strict=True)]
    return wrong if any(wrong) else []


def failing(ask: Ask) -> list[str]:
    return [packet.name for packet in PACKETS if faults(packet, ask(packet))]


# ---- natively ----


def test_table_is_what_it_says() -> None:
    assert len(PACKETS) >= 80
    assert len({packet.name for packet in PACKETS}) == len(PACKETS)
    results = {layer.result for packet in PACKETS for layer in packet.layers}
    assert results == set(range(5)), "each result of parse_result is in the table"


def test_dtype_is_the_struct() -> None:
    layout = _reader.layout()
    assert layout["packet"] == PACKET.itemsize == 128
    assert layout["packet.bytes"] == PACKET["key"].itemsize == 80
    assert PACKET.fields is not None
    assert PACKET["key"].fields is not None
    assert PACKET.fields["payload"][1] + 2 == PACKET.itemsize
    keys = {name: offset for name, offset in layout.items() if name.startswith("flow_row.key.")}
    assert len(keys) >= 7
    for name, offset in keys.items():
        assert PACKET["key"].fields[name.rsplit(".", 1)[1]][1] == offset, name


@pytest.mark.parametrize("packet", PACKETS, ids=[packet.name for packet in PACKETS])
def test_native(packet: Packet) -> None:
    assert faults(packet, native(packet)) == []


def test_no_packet_sets_what_is_reserved() -> None:
    for packet in PACKETS:
        for _, got in native(packet):
            record = np.frombuffer(got, PACKET)[0]
            assert (record["reserved"], record["key"]["reserved"]) == (0, 0), packet.name


def whole_packets() -> list[Packet]:
    """Packets of the table that nothing is wrong with: the capture alone may cut them."""
    return [
        packet
        for packet in PACKETS
        if packet.wire == len(packet.data) and all(layer.result == PARSED for layer in packet.layers)
    ]


def same_flow(shorter: bytes, longer: bytes) -> bool:
    """Key and IP bytes: what a cut may not change. TCP flags and what comes next may be cut off."""
    return shorter[: PACKET["key"].itemsize + 8] == longer[: PACKET["key"].itemsize + 8]


@pytest.mark.parametrize("packet", whole_packets(), ids=[packet.name for packet in whole_packets()])
def test_cut_anywhere(packet: Packet) -> None:
    """A snaplen makes a packet truncated, never malformed, and never another flow."""
    whole = native(packet)
    for keep in range(min(len(packet.data), 400)):
        answer = native(replace(packet, data=packet.data[:keep]))
        for (result, got), (_, full) in zip(answer, whole, strict=False):
            assert result in {PARSED, TRUNCATED}, (keep, result)
            assert result == TRUNCATED or same_flow(got, full), keep
        lost = len(answer) < len(whole) and answer[-1][0] == PARSED
        assert not lost or np.frombuffer(answer[-1][1], PACKET)[0]["next"] == NEXT_CUT, keep


# ---- in the kernel ----


class TestRun(ctypes.Structure):
    """union bpf_attr's ``test`` (linux/bpf.h), as long as every kernel since 4.12 has it."""

    __test__ = False
    _fields_ = [
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
    ]


BPF_PROG_TEST_RUN = 10
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
TC_ACT_UNSPEC = 0xFFFFFFFF


def run_program(descriptor: int, frame: bytes, repeat: int = 1) -> TestRun:
    """BPF_PROG_TEST_RUN; ``duration`` of the answer is ns for one run. OSError as the kernel says."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(frame, len(frame))
    run = TestRun(
        prog_fd=descriptor, data_size_in=len(frame), data_in=ctypes.addressof(buffer), repeat=repeat
    )
    call = BPF_SYSCALL[platform.machine()]
    if libc.syscall(call, BPF_PROG_TEST_RUN, ctypes.byref(run), ctypes.sizeof(run)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return run


class Probe:
    """packet.h loaded into the kernel by BCC; answers as ``native`` does."""

    # What the kernel need not understand stands behind an Ethernet header of a local experimental type.
    ENVELOPE = ether(0x88B5, bytes(50))

    def __init__(self, include: Path = BPF_DIR, *flags: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BCC's own
            from bcc import BPF

            self.bpf = BPF(
                src_file=os.fsencode(PROJECT / "tests" / "bpf" / "packet_probe.c"),
                cflags=[f"-I{include}", "-w", *flags],
            )
            self.descriptor: int = self.bpf.load_func(b"probe", BPF.SCHED_CLS).fd

    def close(self) -> None:
        self.bpf.cleanup()

    def order(self, wire: int, link: int, offset: int) -> None:
        orders = self.bpf[b"orders"]
        orders[orders.Key(0)] = orders.Leaf(wire, link, offset)

    def answer(self) -> Answer:
        table = self.bpf[b"answers"]
        raw = bytes(table[table.Key(0)])
        *results, count = struct.unpack_from(f"={LAYERS}iI", raw, LAYERS * PACKET.itemsize)
        assert 0 < count <= LAYERS, "the probe could not fill its window"
        layers = [raw[i * PACKET.itemsize : (i + 1) * PACKET.itemsize] for i in range(count)]
        return list(zip(results, layers, strict=False))

    def plain(self, frame: bytes) -> Answer:
        """An Ethernet frame as the network brings it. OSError EINVAL where the kernel takes it for none."""
        self.order(0, ETHERNET, 0)
        assert run_program(self.descriptor, frame).retval == TC_ACT_UNSPEC
        return self.answer()

    def enveloped(self, packet: Packet) -> Answer:
        """Any bytes of any link type, also those that no kernel would let in."""
        self.order(packet.wire, packet.link, len(self.ENVELOPE))
        assert run_program(self.descriptor, self.ENVELOPE + packet.data).retval == TC_ACT_UNSPEC
        return self.answer()


def require_bpf() -> None:
    require_root()
    require(importlib.util.find_spec("bcc") is not None, "python3-bpfcc is not installed")
    require(platform.machine() in BPF_SYSCALL, f"bpf(2) has no known number on {platform.machine()}")
    headers = Path("/lib/modules", platform.release(), "build", "include")
    require(
        headers.is_dir() or Path("/sys/kernel/kheaders.tar.xz").exists(),
        "BCC finds no kernel headers; run deploy/prepare-live.sh",
    )


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    require_bpf()
    loaded = Probe()
    yield loaded
    loaded.close()


def disagreement(one: Answer, other: Answer) -> bool:
    """Results and every byte of the structs."""
    return one != other


def enveloped_disagreements(probe: Probe, packets: list[Packet]) -> list[str]:
    return [
        packet.name for packet in packets if disagreement(probe.enveloped(packet), native(packet, WINDOW))
    ]


def plain_disagreements(probe: Probe, packets: list[Packet]) -> tuple[list[str], int, list[Packet]]:
    """(names of packets with two answers, packets run, packets that the kernel refused)."""
    wrong, ran, refused = [], 0, []
    for packet in packets:
        try:
            answer = probe.plain(packet.data)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            refused.append(packet)
            continue
        ran += 1
        if disagreement(answer, native(replace(packet, wire=len(packet.data)), WINDOW)):
            wrong.append(packet.name)
    return wrong, ran, refused


def ethernet_frames() -> list[Packet]:
    return [packet for packet in PACKETS if packet.link == ETHERNET]


def test_kernel_says_what_the_table_says(probe: Probe) -> None:
    """All packets of all link types, but for those whose headers go beyond the window."""
    within = [packet for packet in PACKETS if not faults(packet, native(packet, WINDOW))]
    assert len(within) >= len(PACKETS) - 3
    assert [packet.name for packet in within if faults(packet, probe.enveloped(packet))] == []


def test_kernel_and_reader_agree_on_the_table(probe: Probe) -> None:
    assert enveloped_disagreements(probe, list(PACKETS)) == []


def test_kernel_and_reader_agree_on_frames_as_they_come(probe: Probe) -> None:
    frames = ethernet_frames()
    wrong, ran, refused = plain_disagreements(probe, frames)
    assert wrong == []
    assert ran >= 200
    assert ran + len(refused) == len(frames)
    # What the kernel does not run is shorter than Ethernet, or than the IP header that follows it.
    assert all(len(packet.data) < 14 + 40 for packet in refused), [packet.name for packet in refused]


def test_no_answer_depends_on_the_packet_before(probe: Probe) -> None:
    """The window keeps the bytes of the packet before; whoever reads beyond the captured length sees them."""
    for filling in (b"\0", b"\xff", SYN4, OVERLAY):
        before = Packet("filling", (filling * WINDOW)[:WINDOW], (), IEEE802_11)
        for packet in PACKETS:
            probe.enveloped(before)
            assert not disagreement(probe.enveloped(packet), native(packet, WINDOW)), packet.name


def mutate(packet: Packet, chance: random.Random) -> Packet:
    """One to six bytes changed, then perhaps cut (by the capture or on the wire) or padded."""
    data = bytearray(packet.data)
    for _ in range(chance.randint(1, 6) if data else 0):
        data[chance.randrange(len(data))] = chance.choice((0, 1, 0x45, 0x60, 0xFF, chance.randrange(256)))
    wire = packet.wire
    match chance.randrange(4):
        case 0:
            del data[chance.randint(0, len(data)) :]
        case 1:
            del data[chance.randint(0, len(data)) :]
            wire = len(data)
        case 2:
            data += bytes(chance.randint(1, 64))
            wire = max(wire, len(data))
    return Packet(f"{packet.name}: {data.hex()}", bytes(data), (), packet.link, wire)


def test_kernel_and_reader_agree_on_mutated_packets(probe: Probe) -> None:
    chance = random.Random(20260101)  # noqa: S311 a seed, so that each run asks the same
    mutants = [mutate(chance.choice(PACKETS), chance) for _ in range(1500)]
    assert enveloped_disagreements(probe, mutants) == []
    wrong, ran, _ = plain_disagreements(probe, [packet for packet in mutants if packet.link == ETHERNET])
    assert wrong == []
    assert ran >= 500
    results = [native(packet, WINDOW)[0][0] for packet in mutants]
    assert all(results.count(result) >= 10 for result in (PARSED, NOT_IP, TRUNCATED)), (
        "mutants of one kind only"
    )


def test_kernel_and_reader_agree_on_every_cut(probe: Probe) -> None:
    for packet in whole_packets()[::4]:
        cuts = [replace(packet, data=packet.data[:keep]) for keep in range(min(len(packet.data), WINDOW))]
        assert enveloped_disagreements(probe, cuts) == [], packet.name


# ---- the comparison can fail: parsers with one fault each ----

# fault → (what packet.h says, what it says instead)
FAULTS = {
    "IHL is not checked": ("header < 20 || ", ""),
    "IP options are not stepped over": ("skip(c, header - 20);", ""),
    "a length of 0 is none": ("p->bytes = length ? length : c->end - start;", "p->bytes = length;"),
    "padding belongs to the packet": ("c->end = start + length;", ";"),
    "the captured length is not checked": ("at + n > c->have || ", ""),
    "truncated and malformed are one": ("? MALFORMED : TRUNCATED", "? TRUNCATED : TRUNCATED"),
    "three tags": ("#define PACKET_VLAN_TAGS   4", "#define PACKET_VLAN_TAGS   3"),
    "five tags": ("#define PACKET_VLAN_TAGS   4", "#define PACKET_VLAN_TAGS   5"),
    "seven labels": ("#define PACKET_MPLS_LABELS 8", "#define PACKET_MPLS_LABELS 7"),
    "seven extension headers": ("i <= PACKET_EXTENSIONS", "i < PACKET_EXTENSIONS"),
    "two layers": ("#define PACKET_LAYERS      3", "#define PACKET_LAYERS      2"),
    "an extension's length lacks its first 8 bytes": ("(h[1] + 1) * 8 - 2", "h[1] * 8 - 2"),
    "AH counts words as IPv6 extensions do": ("(h[1] + 2) * 4 - 2", "(h[1] + 1) * 8 - 2"),
    "an atomic fragment is a fragment": ("!(field & 0xfff9)", "0"),
    "an offset is in bytes": ("(fragment & 0x1fff) * 8", "(fragment & 0x1fff)"),
    "a VNI of 16 bits": ("p->next_vni = be32(h + 4) >> 8;\n}", "p->next_vni = be16(h + 5);\n}"),
    "GRE has no key": ("h[0] & 0x20 ? 4 : 0", "0"),
    "Geneve has no options": ("skip(c, (h[0] & 0x3f) * 4);", ""),
    "VXLAN needs no I flag": ("be32(h) == 0x08000000", "!(be32(h) & 0xf7ffffff)"),
    "VXLAN's reserved bits may be set": ("be32(h) == 0x08000000", "h[0] & 0x08"),
    "Geneve's reserved bits may be set": (" || h[1] & 0x3f || h[7]", ""),
    "a quote keeps its direction": ("p->key.outer_src, outer->key.outer_dst",
        "p->key.outer_src, outer->key.outer_src"),
    "a quote is a packet": ("p->bytes = 0;", ""),
    "SYN-ACK is SYN": ("h[9] & TCP_ACK ? EVENT_SYN_ACK : EVENT_SYN", "EVENT_SYN"),
    "no ninth flag": ("(h[8] & 1) << 8 | h[9]", "h[9]"),
    "IPv6's payload length counts its header": ("        length += 40;", "        length += 0;"),
    "PPP does not compress": ("if (!(protocol & 1)) {", "if (1) {"),
    "incoming is outgoing": ("DIRECTION_OUT : DIRECTION_IN", "DIRECTION_IN : DIRECTION_OUT"),
}  # fmt: skip
KERNEL_FAULTS = ("the captured length is not checked", "IHL is not checked", "GRE has no key")


def faulty_include(folder: Path, name: str) -> Path:
    """bpf/ with one line of packet.h changed."""
    right, wrong = FAULTS[name]
    text = (BPF_DIR / "packet.h").read_text()
    assert text.count(right) == 1, f"packet.h has changed: {right!r}"
    (folder / "packet.h").write_text(text.replace(right, wrong))
    shutil.copy(BPF_DIR / "flow.h", folder)
    return folder


def native_parser(include: Path) -> Any:
    """The reader built with another packet.h."""
    library = include / "_reader.so"
    subprocess.run(
        [
            "gcc", "-O0", "-std=gnu11", "-w", "-shared", "-fPIC", f"-I{include}",
            f"-I{sysconfig.get_path('include')}",
            "-o", library, PROJECT / "analyzer" / "capture" / "_reader.c", *LIBRARIES,
        ],
        check=True,
    )  # fmt: skip
    loader = ExtensionFileLoader("_reader", os.fspath(library))
    spec = importlib.util.spec_from_loader("_reader", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def require_compiler() -> None:
    require_program("gcc")
    require(Path(sysconfig.get_path("include"), "Python.h").exists(), "python3-dev is not installed")


@pytest.mark.parametrize("fault", FAULTS)
def test_table_finds(fault: str, tmp_path: Path) -> None:
    require_compiler()
    parser = native_parser(faulty_include(tmp_path, fault))
    assert failing(lambda packet: native(packet, parser=parser)), "no packet of the table is parsed otherwise"


@pytest.mark.parametrize("fault", KERNEL_FAULTS)
def test_comparison_finds(fault: str, tmp_path: Path) -> None:
    """The verifier proves memory safety, not meaning: these parsers load."""
    require_bpf()
    probe = Probe(faulty_include(tmp_path, fault))
    try:
        assert enveloped_disagreements(probe, list(PACKETS))
    finally:
        probe.close()


def test_comparison_finds_another_window() -> None:
    require_bpf()
    probe = Probe(BPF_DIR, "-DPACKET_WINDOW=64")
    try:
        assert "VXLAN on 8472" in enveloped_disagreements(probe, list(PACKETS))
    finally:
        probe.close()


def test_envelope_changes_nothing(probe: Probe) -> None:
    """What is asked through an envelope is what would be asked of the frame itself."""
    frame = Packet("TCP", ether(TYPE_IPV4, SYN4), ())
    assert not disagreement(probe.plain(frame.data), probe.enveloped(frame))
