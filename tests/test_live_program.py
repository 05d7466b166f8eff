"""bpf/live.c in the kernel, one packet at a time. Rule: BPF_PROG_TEST_RUN gives it packets, the native reader
and `judge` say what it should have made of them; no interface and no clock of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import platform
import socket
import struct
import subprocess
import tempfile
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import frames as fr
import numpy as np
import pytest
from conftest import RECORDED, require
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packets import ETHERNET, PACKETS, RST, SYN, TCP, UDP, Packet, ether, ipv4, tcp, udp, vxlan
from pyroute2 import netns
from test_packet import BPF_PROG_TEST_RUN, BPF_SYSCALL, require_bpf

from analyzer import Cluster, Spec, find, judge, load_cluster, load_spec, pair
from analyzer.capture._judging import judging
from analyzer.capture._program import (
    ALERT,
    DROP_ROWS,
    LEDGER,
    LINK_NAMES,
    RAW,
    WATCHERS,
    Program,
    kernel_version,
)
from analyzer.capture.alerts import Alert, Reader
from analyzer.errors import LiveError
from analyzer.rows import Coverage, Observer, OneWay, sum_rows
from analyzer.spec import PROTOCOLS, server_ports
from lab import kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FLOWS = 4096
NEVER = 1 << 62
WINDOW = 192  # PACKET_WINDOW of bpf/live.c
OUTSIDE = ("wrong-pair", "wrong-protocol", "unlisted")
ACK = 0x10


class Skb(ctypes.Structure):
    """struct __sk_buff (linux/bpf.h), as BPF_PROG_TEST_RUN takes and gives it."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("len", "pkt_type", "mark", "queue_mapping", "protocol")),
        *((name, ctypes.c_uint32) for name in ("vlan_present", "vlan_tci", "vlan_proto", "priority")),
        *((name, ctypes.c_uint32) for name in ("ingress_ifindex", "ifindex", "tc_index")),
        ("cb", ctypes.c_uint32 * 5),
        *(
            (name, ctypes.c_uint32)
            for name in ("hash", "tc_classid", "data", "data_end", "napi_id", "family")
        ),
        ("addresses", ctypes.c_uint32 * 10),
        *((name, ctypes.c_uint32) for name in ("remote_port", "local_port", "data_meta")),
        ("flow_keys", ctypes.c_uint64),
        ("tstamp", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("wire_len", "gso_segs")),
        ("sk", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("gso_size", "tstamp_type")),
        ("hwtstamp", ctypes.c_uint64),
    ]


class Run(ctypes.Structure):
    """union bpf_attr's ``test`` with a context (linux/bpf.h, since 5.2)."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("prog_fd", "retval", "data_size_in", "data_size_out")),
        *((name, ctypes.c_uint64) for name in ("data_in", "data_out")),
        *((name, ctypes.c_uint32) for name in ("repeat", "duration", "ctx_size_in", "ctx_size_out")),
        *((name, ctypes.c_uint64) for name in ("ctx_in", "ctx_out")),
        *((name, ctypes.c_uint32) for name in ("flags", "cpu", "batch_size", "padding")),
    ]


def run(descriptor: int, frame: bytes, context: Skb | None = None) -> tuple[int, bytes, Skb]:
    """Lets a program see a frame. Returns its verdict, and frame and context as they are then."""
    data, out = ctypes.create_string_buffer(frame, len(frame)), ctypes.create_string_buffer(len(frame))
    before, after = context or Skb(), Skb()
    order = Run(
        prog_fd=descriptor,
        data_size_in=len(frame),
        data_size_out=len(frame),
        data_in=ctypes.addressof(data),
        data_out=ctypes.addressof(out),
        ctx_size_in=ctypes.sizeof(before),
        ctx_size_out=ctypes.sizeof(after),
        ctx_in=ctypes.addressof(before),
        ctx_out=ctypes.addressof(after),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    call = BPF_SYSCALL[platform.machine()]
    if libc.syscall(call, BPF_PROG_TEST_RUN, ctypes.byref(order), ctypes.sizeof(order)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return order.retval, out.raw, after


class Live:
    """The program with what a test asks of it."""

    def __init__(self) -> None:
        self.program = Program(FLOWS, (ETHERNET, RAW))
        self.told: list[Any] = []
        self.program.on_alert(self.told.append)
        self.functions = {
            f"{name}_{way}": descriptor
            for link, name in LINK_NAMES.items()
            for way, descriptor in zip(("in", "out"), self.program.functions(link), strict=True)
        }
        self.program.set_boundary(NEVER, 0)

    def sees(self, frames: Sequence[bytes], function: str = "ethernet_in") -> OneWay:
        """What the program makes of frames: rows and ledger. No datagram of an earlier call goes on."""
        self.program.forget_fragments()
        for frame in frames:
            run(self.functions[function], frame)
        return self.taken()

    def taken(self, slot: int = 0) -> OneWay:
        rows, ledger = self.program.take(slot)
        rows["interval"] = 0
        counts: dict[str, Any] = {name: ledger[count] for count, name in LEDGER.items() if name}
        coverage = Coverage("live", **counts)
        rows["interface"] = 0
        return OneWay(sum_rows(rows), (Observer("live"),), (coverage,))

    def alerts(self, cluster: Cluster, spec: Spec) -> list[Alert]:
        """What it told since the last call."""
        self.program.poll_alerts(0)
        reader = Reader(cluster, spec, lambda *_: "")
        alerts = [reader.read(record, 0) for record in self.told]
        self.told.clear()
        return alerts


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    require_bpf()
    loaded = Live()
    yield loaded
    loaded.program.close()


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster(RECORDED / "baseline" / "cluster.yaml")


def timeless(one_way: OneWay) -> dict[tuple[object, ...], tuple[object, ...]]:
    """Rows without who saw them, when, in which frame, in which direction."""
    rows = one_way.rows.copy()
    for name in ("start", "end", "first_frame", "direction", "interface"):
        rows[name] = 0
    return fr.plain(replace(one_way, rows=sum_rows(rows), observers=(Observer("x"),)))


def counts(one_way: OneWay) -> dict[str, int]:
    """The ledger's counts that both have."""
    ledger = one_way.coverage[0]
    names = (
        *("frames", "flow", "not_ip", "truncated", "malformed", "unsupported", "fragment"),
        *("inner_not_ip", "inner_truncated", "inner_malformed", "inner_fragment"),
    )
    return {name: getattr(ledger, name) for name in names}


def natively(frames: Sequence[bytes]) -> OneWay:
    """The reader's answer, of no more than the program's window."""
    stamped = [fr.Frame(f[:WINDOW], fr.EPOCH + n * 1000, len(f)) for n, f in enumerate(frames)]
    return fr.read(fr.pcap(stamped, "ns")).settled()


def whole_frames() -> list[Packet]:
    return [p for p in PACKETS if p.link == ETHERNET and len(p.data) == (p.wire or len(p.data))]


# ---- rows and ledger ----


def test_each_packet_of_the_table_is_counted_as_the_native_reader_counts_it(live: Live) -> None:
    refused, wrong = [], []
    for packet in whole_frames():
        try:
            seen = live.sees([packet.data])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            refused.append(packet.name)
            continue
        expected = natively([packet.data])
        if (timeless(seen), counts(seen)) != (timeless(expected), counts(expected)):
            wrong.append(packet.name)
    assert wrong == []
    assert len(refused) < 20, "the kernel takes all but what is shorter than its headers"


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(fr.traffic([kind for kind in fr.CONVERSATIONS if "fragments" not in kind]))
def test_traffic_is_counted_as_the_native_reader_counts_it(live: Live, frames: list[fr.Frame]) -> None:
    data = [frame.data for frame in frames]
    seen, expected = live.sees(data), natively(data)
    assert timeless(seen) == timeless(expected)
    assert counts(seen) == counts(expected)
    assert seen.coverage[0].frames == seen.coverage[0].accounted()


@pytest.mark.parametrize("kind", [kind for kind in fr.CONVERSATIONS if "fragments" in kind])
def test_fragments_in_order_are_counted_on_their_flow(live: Live, kind: str) -> None:
    data = [frame for n in range(40, 44) for frame in fr.CONVERSATIONS[kind](n)]
    seen, expected = live.sees(data), natively(data)
    assert timeless(seen) == timeless(expected)
    assert counts(seen) == counts(expected)


def test_later_fragments_without_their_first_one_are_in_the_ledger(live: Live) -> None:
    pieces = fr.fragments(("10.10.0.11", 999), ("10.10.0.21", 53), 200, 777)
    seen = live.sees(pieces[1:])
    assert (len(seen.rows), seen.coverage[0].fragment) == (0, len(pieces) - 1)
    assert seen.coverage[0].other_bytes == sum(map(len, pieces[1:]))


def test_bytes_of_what_ends_in_no_row_are_counted(live: Live) -> None:
    frames = [fr.arp(), fr.arp(), fr.segment(("10.10.0.11", 5), ("10.10.0.21", 6443), SYN)]
    seen = live.sees(frames)
    assert seen.coverage[0].other_bytes == 2 * len(fr.arp())
    assert int(seen.rows["bytes"].sum()) == len(frames[2]) - 14


def test_a_raw_link_begins_with_the_ip_header(live: Live) -> None:
    syn = ipv4(TCP, tcp(SYN), "10.10.0.11", "10.10.0.21")
    # the kernel's test run takes Ethernet alone; a raw program reads from its first byte on
    rows = live.sees([syn + bytes(20)], "raw_in").rows
    assert (len(rows), int(rows["bytes"][0])) == (1, 40)


@pytest.mark.parametrize(("function", "direction"), [("ethernet_in", 1), ("ethernet_out", 2)])
def test_direction_is_the_hook(live: Live, function: str, direction: int) -> None:
    frame = fr.segment(("10.10.0.11", 5), ("10.10.0.21", 6443), SYN)
    assert live.sees([frame], function).rows["direction"].tolist() == [direction]


# ---- segmentation offload ----


def super_packet(payload: int) -> bytes:
    return ether(0x0800, ipv4(TCP, tcp(ACK, bytes(payload)), "10.10.0.11", "10.10.0.21"))


@pytest.mark.parametrize("segments_known", [True, False])
def test_a_super_packet_is_the_packets_that_cross_the_wire(live: Live, segments_known: bool) -> None:
    payload, each = 2500, 700
    segments = -(-payload // each)
    run(
        live.functions["ethernet_out"],
        super_packet(payload),
        Skb(gso_size=each, gso_segs=segments if segments_known else 0),
    )
    seen = live.taken()
    assert int(seen.rows["packets"][0]) == segments == seen.coverage[0].frames
    assert int(seen.rows["bytes"][0]) == payload + segments * 40


def test_a_super_packet_in_a_tunnel_repeats_the_tunnels_headers(live: Live) -> None:
    payload, each = 2000, 500
    inner = ether(0x0800, ipv4(TCP, tcp(ACK, bytes(payload)), "10.42.0.5", "10.42.1.6"))
    outer = ether(0x0800, ipv4(UDP, udp(50000, 8472, vxlan(inner)), "10.10.0.11", "10.10.0.21"))
    run(live.functions["ethernet_out"], outer, Skb(gso_size=each, gso_segs=4))
    by_tunnel = {int(row["tunnel"]): row for row in live.taken().rows}
    assert [int(by_tunnel[t]["packets"]) for t in (0, 1)] == [4, 4]
    assert int(by_tunnel[1]["bytes"]) == payload + 4 * 40
    assert int(by_tunnel[0]["bytes"]) == payload + 4 * (40 + 14 + 8 + 8 + 20)


# ---- the two tables ----


def test_time_says_which_table_counts(live: Live) -> None:
    frame = fr.segment(("10.10.0.11", 5), ("10.10.0.21", 6443), SYN)
    for boundary, slot, counted in ((NEVER, 0, 0), (2, 0, 1), (NEVER, 1, 1), (2, 1, 0)):
        live.program.set_boundary(boundary, slot)
        run(live.functions["ethernet_in"], frame)
        taken = {number: len(live.taken(number).rows) for number in (0, 1)}
        assert taken == {counted: 1, 1 - counted: 0}
    live.program.set_boundary(NEVER, 0)


@pytest.fixture
def _one_cpu() -> Iterator[None]:
    """A row is of a CPU too: who is moved to another one needs room for it again."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("_one_cpu")
def test_what_does_not_fit_is_counted_to_the_packet(live: Live) -> None:
    more = 300
    frames = [
        fr.datagram((f"10.9.{n >> 8}.{n & 255}", 5000), ("10.10.0.21", 53), b"?") for n in range(FLOWS + more)
    ]
    seen = live.sees([*frames, frames[0], frames[-1]])
    ledger = seen.coverage[0]
    assert len(seen.rows) == FLOWS
    assert (ledger.overflow, ledger.flow) == (more + 1, FLOWS + 1)
    assert ledger.frames == ledger.accounted() == len(frames) + 2
    assert ledger.other_bytes == sum(map(len, frames[FLOWS:])) + len(frames[-1])
    assert int(seen.rows["packets"].sum()) == ledger.flow


def test_the_table_is_empty_after_it_was_read(live: Live) -> None:
    assert len(live.sees([fr.segment(("10.10.0.11", 5), ("10.10.0.21", 6443), SYN)]).rows) == 1
    again = live.taken()
    assert (len(again.rows), again.coverage[0].frames) == (0, 0)


# ---- what the kernel drops ----


def refused(count: int) -> None:
    """So many datagrams to ports of this machine where nobody listens, each of a 5-tuple of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for n in range(count):
            sock.sendto(b"?", (f"127.{n >> 16}.{n >> 8 & 255}.{n & 255 or 1}", 1 + (n & 255)))


def drops_to_loopback(live: Live, slot: int = 0) -> Any:
    """Packets of each row whose destination is in 127/8, and the ledger's count of those without one."""
    keys, values = live.program.take_drops(slot)
    mine = np.array([key["dst"].tobytes()[12] == 127 and key["protocol"] == 17 for key in keys], bool)
    _, ledger = live.program.take(slot)
    return values["packets"][mine], ledger["drops_lost"]


def require_drops(live: Live) -> None:
    require(live.program.has_drops, "this kernel does not say why it drops")


@pytest.mark.usefixtures("_one_cpu")
def test_a_drop_without_room_is_counted_to_the_packet(live: Live) -> None:
    require_drops(live)
    live.program.take_drops(0), live.taken()
    more = 300
    refused(DROP_ROWS + more)
    packets, lost = drops_to_loopback(live)
    assert DROP_ROWS - 50 <= len(packets) <= DROP_ROWS, "some rows may be others' on this machine"
    assert int(packets.sum()) + lost >= DROP_ROWS + more
    assert more <= lost < more + 100


@contextlib.contextmanager
def on_any_cpu() -> Iterator[None]:
    """A namespace in which what is received interrupts any CPU, not just the sender's (RPS, as in
    Documentation/networking/scaling.rst).
    """
    name = f"rke2-flows-drops-{os.getpid()}"
    masks = (1 << min(os.cpu_count() or 1, 32)) - 1
    script = f"ip link set lo up && echo {masks:x} > /sys/class/net/lo/queues/rx-0/rps_cpus"
    netns.create(name)
    try:
        subprocess.run(["ip", "netns", "exec", name, "sh", "-c", script], check=True)
        with kernel.inside(name):
            yield
    finally:
        netns.remove(name)


def test_a_drop_while_the_cpu_reads_a_map_is_counted_as_lost(live: Live) -> None:
    """The kernel runs no program of a tracepoint then."""
    require_drops(live)
    require((os.cpu_count() or 1) > 1, "one CPU cannot both send and read")
    require(kernel_version() >= (6, 7), "this kernel does not count them")
    sent = threading.Event()

    def read() -> None:
        while not sent.is_set():
            live.program.take_drops(1)

    live.taken()
    readers = [threading.Thread(target=read) for _ in range(os.cpu_count() or 1)]
    with on_any_cpu():
        for reader in readers:
            reader.start()
        try:
            for _ in range(100):
                refused(2000)
                lost = live.taken().coverage[0].drops_lost
                if lost:
                    break
        finally:
            sent.set()
            for reader in readers:
                reader.join()
    assert 0 < lost <= 2000 * 100
    live.taken()
    assert live.taken().coverage[0].drops_lost < 100, "they are counted once"


def test_time_says_which_table_of_drops_counts(live: Live) -> None:
    require_drops(live)
    for boundary, slot, counted in ((NEVER, 0, 0), (2, 0, 1), (NEVER, 1, 1), (2, 1, 0)):
        live.program.set_boundary(boundary, slot)
        for number in (0, 1):
            live.program.take_drops(number), live.taken(number)
        refused(20)
        assert {n: int(drops_to_loopback(live, n)[0].sum()) for n in (0, 1)} == {counted: 20, 1 - counted: 0}
    live.program.set_boundary(NEVER, 0)


# ---- verdicts ----

Ends = tuple[str, str, str, int, str]


def expected_alerts(frames: Sequence[bytes], cluster: Cluster, spec: Spec) -> set[Ends]:
    """What `judge` says of the same packets, each seen alone."""
    found: set[Ends] = set()
    for frame in frames:
        flows = judge(pair(natively([frame]), server_ports(spec)), cluster, spec)
        rows: Any = flows.itertuples(index=False)
        for f in rows:
            icmp = "icmp" in f.protocol
            port = int(f.client_port if icmp else f.server_port)
            if f.verdict in OUTSIDE:
                found.add((str(f.client_node), str(f.server_node), str(f.protocol), port, str(f.verdict)))
    return found


def told(alerts: Sequence[Alert]) -> set[Ends]:
    return {
        (a.client, a.server, a.protocol, a.port, a.verdict) for a in alerts if a.verdict != "foreign-tunnel"
    }


def addresses(cluster: Cluster) -> list[str]:
    return [node.addresses[0] for node in cluster.nodes] + ["192.0.2.7", "10.42.0.5"]


def edges(spec: Spec) -> list[int]:
    """Ports where a rule begins or ends, and their neighbours."""
    found = {
        p
        for rule in spec.rules
        for p in (rule.first_port - 1, rule.first_port, rule.last_port, rule.last_port + 1)
    }
    return sorted({*found, 0, 22, 53, 40000, 65535} & set(range(65536)))


SHAPES: dict[str, Callable[[tuple[str, int], tuple[str, int]], bytes]] = {
    "SYN": lambda a, b: fr.segment(a, b, SYN),
    "SYN-ACK": lambda a, b: fr.segment(a, b, SYN | ACK),
    "ACK": lambda a, b: fr.segment(a, b, ACK),
    "RST": lambda a, b: fr.segment(a, b, RST),
    "UDP": fr.datagram,
    "echo": lambda a, b: fr.message(a[0], b[0], 128 if ":" in a[0] else 8),
    "echo reply": lambda a, b: fr.message(a[0], b[0], 129 if ":" in a[0] else 0),
    "timestamp": lambda a, b: fr.message(a[0], b[0], 13),
    "exceeded": lambda a, b: fr.message(a[0], b[0], 3 if ":" in a[0] else 11),
    "GRE": lambda a, b: fr.on_wire(fr.packet_of(47, bytes(24), a[0], b[0])),
}


def test_every_rule_is_judged_as_judge_does(live: Live, cluster: Cluster) -> None:
    spec = load_spec()
    live.program.judge_by(judging(cluster, spec))
    frames = [
        make((src, 50000), (dst, port))
        for src in addresses(cluster)
        for dst in addresses(cluster)
        for port in edges(spec)
        for make in (SHAPES["SYN"], SHAPES["UDP"])
        if src != dst
    ]
    seen = set()
    for at in range(0, len(frames), 200):  # the ring buffer holds some thousand
        live.sees(frames[at : at + 200])
        seen |= told(live.alerts(cluster, spec))
    sample = expected_alerts(frames[:: max(1, len(frames) // 60)], cluster, spec)
    assert sample <= seen
    whole = fr.read(fr.pcap([fr.Frame(f) for f in frames], "ns"))
    flows = judge(pair(whole, server_ports(spec)), cluster, spec)
    outside = flows[flows["verdict"].isin(OUTSIDE)]
    columns = ("client_node", "server_node", "protocol", "server_port", "verdict")
    assert seen == {
        (str(a), str(b), str(c), int(d), str(e))
        for a, b, c, d, e in outside[list(columns)].itertuples(index=False)
    }


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_first_packet_is_judged_as_judge_does(live: Live, cluster: Cluster, data: st.DataObject) -> None:
    spec = load_spec(data.draw(st.sampled_from(("rke2-canal", "rke2-canal-2025-07-28"))))
    live.program.judge_by(judging(cluster, spec))
    live.program.forget_told()
    family = data.draw(st.sampled_from((0, 1)))
    nodes = data.draw(st.permutations(cluster.nodes))[:2]
    ports = st.sampled_from(edges(spec)) | st.integers(1, 65535)
    ends = [(node.addresses[family], data.draw(ports)) for node in nodes]
    frame = SHAPES[data.draw(st.sampled_from(sorted(SHAPES)))](*ends)
    live.sees([frame])
    assert told(live.alerts(cluster, spec)) == expected_alerts([frame], cluster, spec)


def test_a_tunnel_from_outside_is_told_and_one_from_a_pod_is_not(live: Live, cluster: Cluster) -> None:
    spec = load_spec()
    live.program.judge_by(judging(cluster, spec))
    node = cluster.nodes[0].addresses[0]
    sources = ("192.0.2.7", "10.42.1.6", "10.43.0.10", "169.254.1.1", cluster.nodes[1].addresses[0])
    live.sees([fr.datagram((source, 50000), (node, 8472), bytes(8)) for source in sources])
    alerts = live.alerts(cluster, spec)
    assert [(a.client, a.server, a.verdict) for a in alerts] == [
        ("192.0.2.7", cluster.nodes[0].name, "foreign-tunnel")
    ]


def told_of_a_capture(frames: Sequence[bytes], cluster: Cluster, spec: Spec) -> tuple[set[Ends], set[Ends]]:
    """What `judge` and `find` say of packets that came one after the other: verdicts, and foreign tunnels."""
    whole = fr.read(fr.pcap(fr.timed(list(frames)), "ns"))
    flows = judge(pair(whole, server_ports(spec)), cluster, spec)
    ends = ("client_node", "server_node", "protocol", "server_port", "verdict")
    outside: Any = flows.loc[flows["verdict"].isin(OUTSIDE), list(ends)]
    tunnels: Any = find(flows, cluster, spec, whole.coverage)
    tunnels = tunnels[tunnels["kind"] == "foreign-tunnel"]
    return (
        {(str(a), str(b), str(c), int(d), str(e)) for a, b, c, d, e in outside.itertuples(index=False)},
        {(f.client, f.server, f.protocol, int(f.port), f.kind) for f in tunnels.itertuples(index=False)},
    )


TUNNEL_PORTS = (4789, 6081, 8472, 51820, 51871)
#: payload → whose packets there are, in this order: of the end with the tunnel's port, of the other one. No
#: carrier goes back on the ports on which it came
HEARD = {
    b"\x08" + bytes(39): ("named", "other"),
    b"\xc5\xd7\x81\x80\0\1\0\1": (
        *("named", "other", "named other", "other named", "other other named", "named named other other"),
    ),
}


@pytest.mark.parametrize("port", TUNNEL_PORTS)
@pytest.mark.parametrize("payload", HEARD, ids=["tunnel", "DNS"])
def test_a_tunnels_port_is_judged_as_a_capture_of_it_is(
    live: Live, cluster: Cluster, port: int, payload: bytes
) -> None:
    """One table of packets through both: between nodes and with an address outside, whoever has the port,
    whoever was heard first, with a tunnel's header and without.
    """
    spec, wrong, node, other = load_spec(), [], cluster.nodes[3].addresses[0], cluster.nodes[4].addresses[0]
    places = ((node, other), (node, "192.0.2.7"), ("192.0.2.7", node))
    live.program.judge_by(judging(cluster, spec))
    for ends, far, heard in itertools.product(places, (53, 1053, 40000, port), HEARD[payload]):
        named, client = (ends[0], port), (ends[1], far)
        ways = {"named": fr.datagram(named, client, payload), "other": fr.datagram(client, named, payload)}
        frames = [ways[who] for who in heard.split()]
        live.program.forget_told()
        live.sees(frames)
        alerts = live.alerts(cluster, spec)
        tunnels = {(a.client, a.server, a.protocol, a.port, a.verdict) for a in alerts} - told(alerts)
        if (told(alerts), tunnels) != told_of_a_capture(frames, cluster, spec):
            wrong.append((ends, far, heard))
    assert wrong == []


@pytest.mark.parametrize("port", [10250, 31000, 2379])
def test_an_open_connection_is_judged_as_a_capture_of_it_is(live: Live, cluster: Cluster, port: int) -> None:
    """TCP without its opening, from either end first, beside ports that clients have or do not."""
    spec, wrong, ends = load_spec(), [], [node.addresses[0] for node in cluster.nodes[-2:]]
    live.program.judge_by(judging(cluster, spec))
    for far, order in itertools.product((443, 700, 1053, 40000), (1, -1)):
        way = (ends[0], port), (ends[1], far)
        frames = [fr.segment(*pair, ACK, 9) for pair in (way, way[::-1])][::order]
        live.program.forget_told()
        live.sees(frames)
        if told(live.alerts(cluster, spec)) != told_of_a_capture(frames, cluster, spec)[0]:
            wrong.append((far, order))
    assert wrong == []


def test_one_flow_is_told_once(live: Live, cluster: Cluster) -> None:
    """Its further packets, its answers, its later intervals, and more connections of the kind."""
    spec = load_spec()
    live.program.judge_by(judging(cluster, spec))
    ends = [node.addresses[0] for node in cluster.nodes[-2:]]
    for client_port in (50000, 50001, 50002):
        for _ in range(3):
            live.sees(fr.talk((ends[0], client_port), (ends[1], 60000)))
    alerts = live.alerts(cluster, spec)
    assert [(a.client, a.server, a.port, a.verdict) for a in alerts] == [
        (cluster.nodes[-2].name, cluster.nodes[-1].name, 60000, "unlisted")
    ]


def test_an_alert_holds_the_packet_and_says_what_is_wrong(live: Live, cluster: Cluster) -> None:
    spec = load_spec()
    live.program.judge_by(judging(cluster, spec))
    agent = next(node for node in cluster.nodes if node.role == "agent")
    server = next(node for node in cluster.nodes if node.role == "server")
    frame = fr.segment((agent.addresses[0], 50000), (server.addresses[0], 2379), SYN, 300)
    live.sees([frame])
    (alert,) = live.alerts(cluster, spec)
    assert (alert.packet, alert.length) == (frame[:128], len(frame))
    assert alert.verdict == "wrong-pair"
    assert f"{agent.name} (agent) → {server.name} (server) tcp/2379" in alert.line
    assert alert.rule in alert.line


def test_tables_that_do_not_fit_leave_those_in_use(live: Live, cluster: Cluster) -> None:
    spec = load_spec()
    live.program.judge_by(judging(cluster, spec))
    tables = judging(cluster, spec)
    many = np.zeros(70000, tables.place_keys.dtype)
    many["address"] = [np.void(n.to_bytes(16, "big")) for n in range(len(many))]
    with pytest.raises(LiveError, match="70000 entries do not fit"):
        live.program.judge_by(replace(tables, place_keys=many, places=np.zeros(70000, tables.places.dtype)))
    agent, other = (node for node in cluster.nodes if node.role == "agent" and node.name != "agent-3")
    live.sees([fr.segment((agent.addresses[0], 50000), (other.addresses[0], 4444), SYN)])
    assert [(a.client, a.port) for a in live.alerts(cluster, spec)] == [(agent.name, 4444)]
    live.program.judge_by(tables)  # the room of what did not fit is free again


def test_no_disk_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's root may be read-only, and have no /tmp."""
    require_bpf()
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with Program(1024) as program:
        assert len(program.functions(1)) == 2


def test_nothing_is_judged_without_a_cluster() -> None:
    require_bpf()
    with Program(FLOWS) as program:
        records: list[Any] = []
        program.on_alert(records.append)
        program.set_boundary(NEVER, 0)
        run(program.functions(ETHERNET)[0], fr.segment(("10.10.0.21", 5), ("10.10.0.22", 22), SYN))
        program.poll_alerts(0)
        assert records == []
        assert len(program.take(0)[0]) == 1


def test_alerts_for_which_there_is_no_room_are_counted(live: Live, cluster: Cluster) -> None:
    spec = load_spec()
    live.program.judge_by(judging(cluster, spec))
    ends = [node.addresses[0] for node in cluster.nodes[-2:]]
    frames = [fr.segment((ends[0], 50000), (ends[1], port), SYN) for port in range(20000, 20000 + FLOWS)]
    seen = live.sees(frames)
    room = 256 * os.sysconf("SC_PAGE_SIZE") // (ALERT.itemsize + 8)
    alerts = live.alerts(cluster, spec)
    assert len(alerts) <= room
    assert seen.coverage[0].alerts_lost == FLOWS - len(alerts) > 0


# ---- it only watches ----

#: helpers that read, that write the program's own maps, or that call another of its programs (linux/bpf.h):
#: none changes or sends a packet
HARMLESS = {
    1: "map_lookup_elem", 2: "map_update_elem", 3: "map_delete_elem", 5: "ktime_get_ns",
    8: "get_smp_processor_id", 12: "tail_call", 14: "get_current_pid_tgid", 16: "get_current_comm",
    26: "skb_load_bytes", 35: "get_current_task", 80: "get_current_cgroup_id", 113: "probe_read_kernel",
    115: "probe_read_kernel_str", 131: "ringbuf_reserve", 132: "ringbuf_submit",
}  # fmt: skip
_CALL = 0x85
_DATA = (Skb.data.offset, Skb.data_end.offset, Skb.data_meta.offset)


def instructions(code: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(opcode, destination, source, offset, immediate) of each instruction (linux/bpf.h, struct bpf_insn)."""
    for opcode, registers, offset, immediate in struct.iter_unpack("<BBhi", code):
        yield opcode, registers & 15, registers >> 4, offset, immediate


def programs(live: Live) -> dict[str, bytes]:
    names = [*live.functions, *WATCHERS, "tracepoint__sock__inet_sock_set_state"]
    if live.program.has_drops:
        names.append("tracepoint__skb__kfree_skb")
    return {name: live.program.bytecode(name) for name in names}


def test_no_program_calls_a_helper_that_writes_drops_or_redirects(live: Live) -> None:
    for name, code in programs(live).items():
        called = {
            immediate
            for opcode, _, source, _, immediate in instructions(code)
            if opcode == _CALL and source == 0
        }
        assert called, name
        assert called <= set(HARMLESS), f"{name} calls {called - set(HARMLESS)}"


def test_no_program_takes_a_packets_own_memory(live: Live) -> None:
    """`data` and `data_end` are the only way to a packet's bytes beside helpers; no tc program loads them."""
    for name in (*live.functions, *WATCHERS):
        loads = [
            offset
            for opcode, _, source, offset, _ in instructions(live.program.bytecode(name))
            if opcode == 0x61 and source != 10 and offset in _DATA
        ]
        # other structs have fields at these offsets; of the context (r1, or where it is kept) there is none
        assert not [o for o in loads if o in _context_loads(live.program.bytecode(name))], name


def _context_loads(code: bytes) -> set[int]:
    """Offsets that are loaded from the context, by the registers that hold it in a straight line from the
    start.
    """
    holds, found = {1}, set()
    for opcode, destination, source, offset, _ in instructions(code):
        if opcode == 0x61 and source in holds:
            found.add(offset)
        if opcode == 0xBF and source in holds:
            holds.add(destination)
        elif opcode & 7 in (0, 1, 4, 7) and destination in holds and destination not in (6, 7, 8, 9):
            holds.discard(destination)
        if opcode == _CALL:
            holds -= {0, 1, 2, 3, 4, 5}
    return found


def test_packets_and_their_context_leave_as_they_came(live: Live) -> None:
    fields = [
        name
        for name, *_ in Skb._fields_
        if name not in ("len", "ifindex", "protocol", "tstamp_type", "wire_len")
    ]
    for packet in whole_frames():
        before = Skb(mark=0x1234, priority=7, cb=(ctypes.c_uint32 * 5)(1, 2, 3, 4, 5), tstamp=99)
        for function in live.functions.values():
            try:
                verdict, data, after = run(function, packet.data, before)
            except OSError:
                continue  # refused by the kernel before the program saw it
            assert verdict == 0xFFFFFFFF, "TC_ACT_UNSPEC, always"
            assert data == packet.data
            for name in fields:
                one, other = getattr(before, name), getattr(after, name)
                assert list(one) == list(other) if hasattr(one, "__len__") else one == other, name
    live.taken()


def test_layouts_are_the_compilers(live: Live) -> None:
    """Sizes of maps were compared when it was loaded, offsets are asserted in live.c; here the alert's."""
    fields: Any = ALERT.fields
    offsets = {name: int(fields[name][1]) for name in ("key", "owner", "length", "port", "verdict", "bytes")}
    assert offsets == {"key": 8, "owner": 88, "length": 120, "port": 128, "verdict": 130, "bytes": 136}
    assert ALERT.itemsize == 264


def test_protocol_rows_are_those_of_the_specification() -> None:
    assert PROTOCOLS == ("tcp", "udp", "sctp", "icmp", "icmpv6")
