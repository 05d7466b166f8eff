"""Programs go on an interface and away again, whoever else is there.

Rule: this file makes its own namespaces, and every filter and program in them is a real one. The programs
count packets by their first byte and return what the test says, so that what the kernel runs, and in which
order, is seen and not assumed.

Run as a program, it is a collector to be killed: ``test_tc.py NAMESPACE INTERFACE [tcx]``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import platform
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT, require, require_program, require_root
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2 import IPRoute, netns

from analyzer.capture import _links, _tc, _tcx
from analyzer.capture._tc import (
    Attachment,
    Token,
    leftovers,
    link_type,
    local_addresses,
    remove_leftovers,
    uplinks,
)
from analyzer.errors import LiveError
from lab import kernel, topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UPLINK = "up0"
HERE, THERE = "10.99.0.1", "10.99.0.2"
UNSPEC, OK = -1, 0  # linux/pkt_cls.h: TC_ACT_UNSPEC goes on to the next program, TC_ACT_OK ends the run
INGRESS, EGRESS = _tc.DIRECTIONS
TUNSETIFF, TUNSETLINK, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x400454CD, 0x0001, 0x1000  # linux/if_tun.h
ARPHRD_IEEE80211 = 801
BPF_MAP_CREATE, BPF_MAP_LOOKUP_ELEM, BPF_PROG_LOAD = 0, 1, 5
SCHED_CLS, XDP, ARRAY = 3, 6, 2
XDP_PASS, BPF_XDP, XDP_FLAGS_SKB_MODE = 2, 37, 2
NOBODY = 65534

_count = itertools.count()


# ---- programs ----


def bpf(command: int, layout: str, *values: Any, size: int = 128) -> int:
    fields = ctypes.create_string_buffer(struct.pack(layout, *values), size)
    libc = ctypes.CDLL(None, use_errno=True)
    call = _tcx.BPF_SYSCALL[platform.machine()]
    result = int(libc.syscall(call, command, ctypes.byref(fields), size))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def instruction(code: int, registers: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, registers, offset, value)


def load(kind: int, code: bytes, name: bytes) -> int:
    text, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    at = (ctypes.addressof(text), ctypes.addressof(licence))
    return bpf(BPF_PROG_LOAD, "=IIQQIIQII16s", kind, len(code) // 8, *at, 0, 0, 0, 0, 0, name)


class Program:
    """Counts packets by their first byte; ``verdict`` is what it returns for each."""

    def __init__(self, verdict: int = UNSPEC, name: bytes = b"counting") -> None:
        self.map = bpf(BPF_MAP_CREATE, "=IIII", ARRAY, 4, 8, 256)
        code = b"".join(
            (
                instruction(0xBF, 0x16),  # r6 = r1, for the next one
                instruction(0x30),  # r0 = the packet's byte 0
                instruction(0x63, 0x0A, -4),  # *(u32 *)(r10 - 4) = r0
                instruction(0x18, 0x11, 0, self.map),  # r1 = the map
                instruction(0x00),
                instruction(0xBF, 0xA2),  # r2 = r10
                instruction(0x07, 0x02, 0, -4),  # r2 -= 4
                instruction(0x85, 0, 0, 1),  # r0 = bpf_map_lookup_elem(r1, r2)
                instruction(0x15, 0x00, 2, 0),  # if r0 == 0 skip two
                instruction(0xB7, 0x01, 0, 1),  # r1 = 1
                instruction(0xDB, 0x10),  # lock *(u64 *)r0 += r1
                instruction(0xB7, 0x00, 0, verdict),  # r0 = verdict
                instruction(0x95),  # exit
            )
        )
        try:
            self.fd = load(SCHED_CLS, code, name)
        except BaseException:
            os.close(self.map)
            raise

    def seen(self) -> dict[int, int]:
        """First byte → packets."""
        found = {}
        for first in range(256):
            key, value = ctypes.c_uint32(first), ctypes.c_uint64()
            bpf(BPF_MAP_LOOKUP_ELEM, "=IIQQ", self.map, 0, ctypes.addressof(key), ctypes.addressof(value))
            if value.value:
                found[first] = value.value
        return found

    def packets(self) -> int:
        return sum(self.seen().values())

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.map)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def programs() -> Iterator[tuple[Program, Program]]:
    """One for ingress, one for egress."""
    with Program() as ingress, Program() as egress:
        yield ingress, egress


# ---- a place ----


@contextlib.contextmanager
def node() -> Iterator[str]:
    """The calling thread is in a namespace with an uplink, whose peer answers pings. Gives its name."""
    require_root()
    require(platform.machine() in _tcx.BPF_SYSCALL, f"bpf(2) has no known number on {platform.machine()}")
    require_program("tc")
    tag = f"rke2-flows-tc-{os.getpid()}-{next(_count)}"
    try:
        for end in (tag, f"{tag}-peer"):
            netns.create(end)
        with topology.routes(tag) as ip:
            topology.add_veth(ip, UPLINK, UPLINK, f"{tag}-peer")
        for end, address in ((tag, HERE), (f"{tag}-peer", THERE)):
            with topology.routes(end) as ip:
                kernel.sysctl("ipv6/conf/all/disable_ipv6", 1)
                kernel.sysctl("ipv4/ping_group_range", "0 0")
                index = topology.index_of(ip, UPLINK)
                ip.link("set", index=1, state="up")
                ip.link("set", index=index, state="up")
                topology.add_address(ip, index, address, 24)
        with kernel.inside(tag):
            yield tag
    finally:
        for end in (tag, f"{tag}-peer"):
            topology.remove_namespace(end)


@pytest.fixture
def place() -> Iterator[str]:
    with node() as namespace:
        yield namespace


@pytest.fixture(params=[True, False], ids=["tcx", "clsact"])
def tcx(place: str, request: pytest.FixtureRequest) -> bool:
    """Both ways on."""
    if request.param:
        require_tcx()
    return bool(request.param)


def require_tcx() -> None:
    require(_tcx.programs(socket.if_nametoindex(UPLINK), INGRESS.hook) is not None, "this kernel has no tcx")


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=20).stdout


def tc(words: str) -> str:
    return run("tc", *words.split())


def ip_(words: str) -> str:
    return run("ip", *words.split())


def ping(count: int = 1, address: str = THERE) -> None:
    """``count`` packets each way, one after the other; all are answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
        sock.connect((address, 0))
        sock.settimeout(5)
        for number in range(count):
            sock.send(struct.pack(">BBHHH", 8, 0, 0, 0, number))  # RFC 792
            assert sock.recv(64)[6:8] == struct.pack(">H", number)


def with_ipv6() -> None:
    """Off elsewhere: what a host says by itself over IPv6 would be counted as well."""
    kernel.sysctl("ipv6/conf/all/disable_ipv6", 0)


def qdisc(interface: str = UPLINK) -> str:
    with IPRoute() as ip:
        return _tc._qdiscs(ip).get(socket.if_nametoindex(interface), "")


def tcx_programs() -> list[tuple[int, int]]:
    index = socket.if_nametoindex(UPLINK)
    return [one for direction in _tc.DIRECTIONS for one in _tcx.programs(index, direction.hook) or ()]


def filters(interface: str = UPLINK) -> list[_tc._Filter]:
    with IPRoute() as ip:
        return _tc._filters(ip, socket.if_nametoindex(interface))


def texts(interface: str = UPLINK) -> list[str]:
    return [one.text() for one in filters(interface)]


def foreign(
    direction: _tc._Direction, program: Program, name: str = "other", priority: int = 1, **more: Any
) -> None:
    """A bpf filter as another program would add it."""
    with IPRoute() as ip:
        ip.tc(
            "add-filter",
            "bpf",
            socket.if_nametoindex(UPLINK),
            parent=direction.parent,
            prio=priority,
            fd=program.fd,
            name=name,
            direct_action=True,
            **({"protocol": _tc.ETH_P_ALL} | more),
        )


def fds(programs: tuple[Program, Program]) -> tuple[int, int]:
    return programs[0].fd, programs[1].fd


# ---- on and off ----


def test_both_ways_are_seen_and_nothing_stays(
    place: str, tcx: bool, programs: tuple[Program, Program]
) -> None:
    with Token() as token:
        with Attachment(UPLINK, *fds(programs), token, tcx=tcx) as attachment:
            assert attachment.index == socket.if_nametoindex(UPLINK)
            assert attachment.attached()
            assert attachment.behind == []
            assert [f.name for f in filters()] == ([] if tcx else [f"rke2-flows/{token.text}/q"] * 2)
            ping()
            before = [program.packets() for program in programs]
            ping(20)
            assert [p.packets() - b for p, b in zip(programs, before, strict=True)] == [20, 20]
        assert not attachment.attached()
        assert attachment.behind == []
        attachment.detach()
    counted = [program.packets() for program in programs]
    ping(3)
    assert [program.packets() for program in programs] == counted
    assert (qdisc(), texts(), tcx_programs()) == ("", [], [])


def test_the_kernel_keeps_the_programs(place: str, tcx: bool) -> None:
    with Token() as token, contextlib.ExitStack() as stack:
        with Program() as ingress, Program() as egress:
            attachment = stack.enter_context(Attachment(UPLINK, ingress.fd, egress.fd, token, tcx=tcx))
        ping()
        assert attachment.attached()


@pytest.mark.parametrize("first", [0, 1])
def test_two_collectors_leave_in_either_order(
    place: str, tcx: bool, programs: tuple[Program, Program], first: int
) -> None:
    with Token() as one, Token() as other, Program() as ingress, Program() as egress:
        both = [
            Attachment(UPLINK, *fds(programs), one, tcx=tcx),
            Attachment(UPLINK, ingress.fd, egress.fd, other, tcx=tcx),
        ]
        assert all(attachment.attached() for attachment in both)
        both[first].detach()
        assert qdisc() == ("" if tcx else "clsact")
        assert both[1 - first].attached()
        assert both[1 - first].behind == []
        both[1 - first].detach()
    assert (qdisc(), tcx_programs()) == ("", [])


def test_collectors_with_filters_are_not_in_each_others_way(
    place: str, programs: tuple[Program, Program]
) -> None:
    with Token() as one, Token() as other:
        both = [Attachment(UPLINK, *fds(programs), token, tcx=False) for token in (one, other)]
        assert [attachment.behind for attachment in both] == [[], []]  # the newer one lets all pass
        for attachment in both:
            attachment.detach()


def test_an_empty_clsact_of_another_stays(place: str, programs: tuple[Program, Program]) -> None:
    tc(f"qdisc add dev {UPLINK} clsact")
    with Token() as one, Token() as other:
        both = [Attachment(UPLINK, *fds(programs), token, tcx=False) for token in (one, other)]
        assert not any(f.marked for f in filters())
        for attachment in both:
            attachment.detach()
    assert (qdisc(), texts()) == ("clsact", [])


def test_a_filter_of_another_keeps_our_qdisc(place: str, programs: tuple[Program, Program]) -> None:
    with Token() as token, Program() as others:
        attachment = Attachment(UPLINK, *fds(programs), token, tcx=False)
        foreign(EGRESS, others)
        attachment.detach()
    assert (qdisc(), texts()) == ("clsact", ["egress bpf other priority 1"])


def test_the_qdisc_goes_with_the_last_of_ours_though_another_came_and_went(
    place: str, programs: tuple[Program, Program]
) -> None:
    with Token() as one, Token() as other, Program() as others:
        first = Attachment(UPLINK, *fds(programs), one, tcx=False)
        foreign(EGRESS, others, priority=5)
        second = Attachment(UPLINK, *fds(programs), other, tcx=False)
        tc(f"filter del dev {UPLINK} egress prio 5")
        first.detach()
        assert second.attached()
        second.detach()
    assert qdisc() == ""


def test_another_name_that_looks_like_ours_stays(place: str, programs: tuple[Program, Program]) -> None:
    with Token() as token, Program() as others:
        tc(f"qdisc add dev {UPLINK} clsact")
        names = [
            "rke2-flows",
            "rke2-flows/xyz",
            f"rke2-flows/{'0' * 17}",
            f"x/rke2-flows/{'0' * 16}",
        ]
        for name in names:
            foreign(INGRESS, others, name)
        Attachment(UPLINK, *fds(programs), token, tcx=False).detach()
        assert remove_leftovers() == []
        assert sorted(f.name for f in filters()) == sorted(names)


def test_who_replaces_its_own_filter_by_number_does_not_hit_ours(
    place: str, programs: tuple[Program, Program]
) -> None:
    with Token() as token, Program() as others:
        with Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment, IPRoute() as ip:
            ip.tc(
                "replace-filter", "bpf", attachment.index, handle=1, parent=INGRESS.parent, prio=1,
                protocol=_tc.ETH_P_ALL, fd=others.fd, name="replacing", direct_action=True,
            )  # fmt: skip
            assert attachment.attached()
        assert texts() == ["ingress bpf replacing priority 1"]


def test_swept_by_another(place: str, programs: tuple[Program, Program]) -> None:
    with Token() as token, Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment:
        tc(f"filter del dev {UPLINK} ingress")
        assert not attachment.attached()
        attachment.detach()
        assert qdisc() == ""


def test_the_qdisc_swept_by_another(place: str, programs: tuple[Program, Program]) -> None:
    with Token() as token, Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment:
        tc(f"qdisc del dev {UPLINK} clsact")
        assert not attachment.attached()
        assert attachment.behind == []
        tc(f"qdisc add dev {UPLINK} clsact")
        attachment.detach()
        assert qdisc() == "clsact"


# ---- the order ----


def test_we_see_what_an_older_program_of_priority_1_swallows(
    place: str, programs: tuple[Program, Program]
) -> None:
    tc(f"qdisc add dev {UPLINK} clsact")
    with Token() as token, Program(OK) as others:
        foreign(INGRESS, others)
        with Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment:
            assert attachment.behind == []
            ping(5)
            assert programs[0].packets() == others.packets() >= 5


def test_a_newer_program_of_priority_1_is_told(place: str, programs: tuple[Program, Program]) -> None:
    with (
        Token() as token,
        Program(OK) as others,
        Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment,
    ):
        ping()
        foreign(INGRESS, others, "newer")
        assert attachment.behind == ["ingress bpf newer priority 1"]
        before = programs[0].packets()
        ping(5)
        assert others.packets() >= 5
        assert programs[0].packets() == before


@pytest.mark.parametrize("direction", _tc.DIRECTIONS)
def test_behind_a_filter_of_another_kind(
    place: str, programs: tuple[Program, Program], direction: _tc._Direction
) -> None:
    tc(f"qdisc add dev {UPLINK} clsact")
    tc(f"filter add dev {UPLINK} {direction.name} prio 1 u32 match u32 0 0 classid 1:1")
    with Token() as token, Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment:
        assert attachment.behind == [f"{direction.name} u32 priority 1"] * 2  # its hash table and its rule
        priorities = {f.direction: f.priority for f in filters() if f.token}
        assert priorities == {INGRESS: 1, EGRESS: 1} | {direction: 2}
        ping(3)
        swallowed = programs[_tc.DIRECTIONS.index(direction)]
        assert swallowed.packets() == 0
    assert {f.kind for f in filters()} == {"u32"}


def test_tcx_runs_before_all_filters(place: str, programs: tuple[Program, Program]) -> None:
    require_tcx()
    tc(f"qdisc add dev {UPLINK} clsact")
    tc(f"filter add dev {UPLINK} ingress prio 1 u32 match u32 0 0 classid 1:1")
    with Token() as token, Program(OK) as others, Attachment(UPLINK, *fds(programs), token) as attachment:
        foreign(EGRESS, others)
        assert attachment.behind == []
        ping(5)
        assert programs[1].packets() == others.packets() >= 5
        assert programs[0].packets() >= 5
    assert qdisc() == "clsact"
    assert {f.kind for f in filters()} == {"u32", "bpf"}


def test_behind_bpf_filters_of_another_protocol(place: str, programs: tuple[Program, Program]) -> None:
    tc(f"qdisc add dev {UPLINK} clsact")
    with Token() as token, Program() as others:
        foreign(INGRESS, others, "v4", 1, protocol=0x0800)
        foreign(INGRESS, others, "all", 2)
        foreign(INGRESS, others, "last", 3)
        with Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment:
            assert attachment.behind == ["ingress bpf v4 priority 1"]
            assert texts()[:2] == [*attachment.behind, f"ingress bpf rke2-flows/{token.text} priority 2"]
            ping(3)
            assert programs[0].packets() >= 3


def test_a_chain_of_its_own_is_not_before_us(place: str, programs: tuple[Program, Program]) -> None:
    tc(f"qdisc add dev {UPLINK} clsact")
    tc(f"filter add dev {UPLINK} ingress chain 5 prio 1 u32 match u32 0 0 classid 1:1")
    with Token() as token, Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment:
        assert attachment.behind == []
        assert {f.priority for f in filters() if f.token} == {1}
        ping(3)
        assert programs[0].packets() >= 3
    assert {(f.kind, f.chain) for f in filters()} == {("u32", 5)}


def test_a_hostile_name_is_told_in_printable_letters(place: str, programs: tuple[Program, Program]) -> None:
    with (
        Token() as token,
        Program() as others,
        Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment,
    ):
        foreign(INGRESS, others, "\x1b[2Jé\n")
        assert attachment.behind == [r"ingress bpf \x1b[2J\xc3\xa9\n priority 1"]


def test_many_filters_are_read_whole(place: str) -> None:
    tc(f"qdisc add dev {UPLINK} clsact")
    names = [f"{n:03}".ljust(200, "x") for n in range(300)]
    with Program() as others:
        for priority, name in enumerate(names, 1):
            foreign(EGRESS, others, name, priority)
    found = filters()
    assert [f.name for f in found] == names
    assert [f.priority for f in found] == list(range(1, 301))
    assert len({f.program for f in found}) == 1
    assert found[0].program > 0


# ---- tcx and other things in the way ----


@contextlib.contextmanager
def others_on_tcx(direction: _tc._Direction, program: Program) -> Iterator[None]:
    require_tcx()
    link = _tcx.attach(socket.if_nametoindex(UPLINK), direction.hook, program.fd)
    try:
        yield
    finally:
        os.close(link)


@pytest.mark.parametrize("direction", _tc.DIRECTIONS)
def test_before_others_on_tcx(
    place: str, programs: tuple[Program, Program], direction: _tc._Direction
) -> None:
    with Token() as token, Program(OK, b"cil_from_netdev") as others, others_on_tcx(direction, others):
        with Attachment(UPLINK, *fds(programs), token) as attachment:
            assert attachment.behind == []
            assert attachment.attached()
            ping(5)
            assert min(program.packets() for program in programs) >= 5
            with Program(OK, b"cil_newer") as newer, others_on_tcx(direction, newer):
                assert attachment.behind == [f"{direction.name} tcx cil_newer"]
        assert not attachment.attached()
        counted = [program.packets() for program in programs]
        ping(3)
        assert [program.packets() for program in programs] == counted
    assert qdisc() == ""


def test_others_who_come_to_tcx_are_told(place: str, programs: tuple[Program, Program]) -> None:
    with (
        Token() as token,
        Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment,
        Program(OK, b"cil_to_netdev") as others,
        others_on_tcx(EGRESS, others),
    ):
        assert attachment.behind == ["egress tcx cil_to_netdev"]
        before = programs[1].packets()
        ping(3)
        assert programs[1].packets() == before


def test_xdp_is_told(place: str, tcx: bool, programs: tuple[Program, Program]) -> None:
    with Token() as token, Attachment(UPLINK, *fds(programs), token, tcx=tcx) as attachment:
        with passing_on_xdp(attachment.index):
            assert attachment.behind == ["ingress xdp passing"]
        assert attachment.behind == []


@contextlib.contextmanager
def passing_on_xdp(index: int) -> Iterator[None]:
    code = instruction(0xB7, 0x00, 0, XDP_PASS) + instruction(0x95)
    with contextlib.ExitStack() as stack:
        program = load(XDP, code, b"passing")
        stack.callback(os.close, program)
        link = bpf(_tcx.BPF_LINK_CREATE, "=IIII", program, index, BPF_XDP, XDP_FLAGS_SKB_MODE)
        stack.callback(os.close, link)
        yield


def test_an_ingress_qdisc_of_another_stays_and_both_ways_are_seen(
    place: str, programs: tuple[Program, Program]
) -> None:
    tc(f"qdisc add dev {UPLINK} ingress")
    with Token() as token, Program(OK) as others:
        require_tcx()
        foreign(INGRESS, others)
        with Attachment(UPLINK, *fds(programs), token) as attachment:
            assert attachment.behind == []
            ping(5)
            assert min(program.packets() for program in programs) >= 5
            assert others.packets() >= 5
    assert qdisc() == "ingress"
    assert {f.name for f in filters()} == {"other"}


def test_an_ingress_qdisc_where_there_is_no_tcx(place: str, programs: tuple[Program, Program]) -> None:
    tc(f"qdisc add dev {UPLINK} ingress")
    with Token() as token, pytest.raises(LiveError, match=rf"^{UPLINK}: an ingress qdisc .*tc qdisc show"):
        Attachment(UPLINK, *fds(programs), token, tcx=False)
    assert (qdisc(), texts()) == ("ingress", [])


def test_a_kernel_without_tcx_gets_filters(
    place: str, programs: tuple[Program, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel before 6.6 cannot be had here; that bpf(2) refuses the question is what is seen of it."""
    monkeypatch.setattr(_tcx, "BPF_PROG_QUERY", 9999)
    with Token() as token, Attachment(UPLINK, *fds(programs), token) as attachment:
        assert attachment.attached()
        assert len(filters()) == 2
    assert qdisc() == ""


def test_an_egress_filter_on_an_ingress_qdisc_would_see_ingress(place: str) -> None:
    """Why an ``ingress`` qdisc is not taken for clsact: the kernel takes the filter, at the wrong place."""
    tc(f"qdisc add dev {UPLINK} ingress")
    with Program() as program:
        foreign(EGRESS, program)
        neighbour = kernel_mac()
        ping(3)
        assert set(program.seen()) == {neighbour[0]}


def kernel_mac() -> bytes:
    """The uplink's own address, with which each frame that comes in begins."""
    with IPRoute() as ip:
        link = ip.get_links(socket.if_nametoindex(UPLINK))[0]
        return bytes.fromhex(link.get_attr("IFLA_ADDRESS").replace(":", ""))


# ---- refusals ----


def test_no_such_interface(place: str, programs: tuple[Program, Program]) -> None:
    for name in ("nope0", "", "a" * 40, "nul\0", "../up0"):
        with (
            Token() as token,
            pytest.raises(LiveError, match=r"no such interface \(ip -brief link lists them\)"),
        ):
            Attachment(name, *fds(programs), token)
    with pytest.raises(LiveError, match=r"^nope0: no such interface"):
        link_type("nope0")


@pytest.mark.parametrize("there", ["", "clsact"])
@pytest.mark.parametrize("broken", [0, 1])
def test_a_refused_program_leaves_nothing(
    place: str, tcx: bool, programs: tuple[Program, Program], there: str, broken: int
) -> None:
    if there:
        tc(f"qdisc add dev {UPLINK} {there}")
    wrong = list(fds(programs))
    with Token() as token, Path("/dev/null").open() as no_program:
        for wrong[broken] in (no_program.fileno(), -1, 1 << 20):
            with pytest.raises(LiveError, match=rf"^{UPLINK}: the kernel refused the program: "):
                Attachment(UPLINK, wrong[0], wrong[1], token, tcx=tcx)
            assert (qdisc(), texts(), tcx_programs()) == (there, [], [])


def test_a_refused_program_leaves_the_filters_of_others(
    place: str, programs: tuple[Program, Program]
) -> None:
    with (
        Token() as one,
        Token() as other,
        Program() as others,
        Attachment(UPLINK, *fds(programs), one, tcx=False) as attachment,
    ):
        foreign(INGRESS, others)
        before = texts()
        with pytest.raises(LiveError):
            Attachment(UPLINK, programs[0].fd, -1, other, tcx=False)
        assert texts() == before
        assert attachment.attached()


def test_without_rights(place: str, tcx: bool, programs: tuple[Program, Program]) -> None:
    with Token() as token:
        os.seteuid(NOBODY)
        try:
            with pytest.raises(LiveError, match=rf"^{UPLINK}: no right .*run as root"):
                Attachment(UPLINK, *fds(programs), token, tcx=tcx)
            assert leftovers() == []
        finally:
            os.seteuid(0)
    assert qdisc() == ""


def test_without_rights_leftovers_are_found_and_not_removed(
    place: str, programs: tuple[Program, Program]
) -> None:
    with Token() as token:
        Attachment(UPLINK, *fds(programs), token, tcx=False)
    os.seteuid(NOBODY)
    try:
        assert len(leftovers()) == 2
        with pytest.raises(LiveError, match="no right"):
            remove_leftovers()
    finally:
        os.seteuid(0)
    assert len(remove_leftovers()) == 2


def test_one_interface_named_twice(place: str, tcx: bool, programs: tuple[Program, Program]) -> None:
    with Token() as token, Attachment(UPLINK, *fds(programs), token, tcx=tcx) as attachment:
        with pytest.raises(LiveError, match=rf"^{UPLINK}: this run watches it already"):
            Attachment(UPLINK, *fds(programs), token, tcx=tcx)
        assert attachment.attached()


def test_the_interface_vanishes(place: str, tcx: bool, programs: tuple[Program, Program]) -> None:
    with Token() as token, Attachment(UPLINK, *fds(programs), token, tcx=tcx) as attachment:
        ip_(f"link del {UPLINK}")
        assert not attachment.attached()
        assert attachment.behind == []
        attachment.detach()
    assert leftovers() == []


@pytest.mark.parametrize("at", [1, 2])
def test_the_interface_vanishes_in_the_middle(
    place: str, programs: tuple[Program, Program], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Before the first, before the second filter is added; the link is really deleted."""
    calls = itertools.count(1)
    choose = _tc._priority

    def and_the_link_goes(found: Any) -> int:
        if next(calls) == at:
            ip_(f"link del {UPLINK}")
        return choose(found)

    monkeypatch.setattr(_tc, "_priority", and_the_link_goes)
    with Token() as token, pytest.raises(LiveError, match=rf"^{UPLINK}: the interface vanished"):
        Attachment(UPLINK, *fds(programs), token, tcx=False)


@pytest.mark.parametrize("swept", ["link", "qdisc", "filters"])
def test_somebody_is_faster_while_we_detach(
    place: str, programs: tuple[Program, Program], monkeypatch: pytest.MonkeyPatch, swept: str
) -> None:
    """What is about to be removed is really gone when the removal reaches the kernel."""
    sweeps: dict[str, Callable[[], object]] = {
        "link": lambda: ip_(f"link del {UPLINK}"),
        "qdisc": lambda: tc(f"qdisc del dev {UPLINK} clsact"),
        "filters": lambda: [tc(f"filter del dev {UPLINK} {way.name}") for way in _tc.DIRECTIONS],
    }
    ask = _tc._filters
    left = [sweeps[swept]]

    def and_they_go(ip: Any, index: int) -> list[_tc._Filter]:
        found = ask(ip, index)
        while left:
            left.pop()()
        return found

    with Token() as token:
        attachment = Attachment(UPLINK, *fds(programs), token, tcx=False)
        monkeypatch.setattr(_tc, "_filters", and_they_go)
        attachment.detach()
    assert left == []
    if swept != "link":
        assert (qdisc(), texts()) == ("", [])


def test_a_lock_that_somebody_keeps_does_not_stop_us(
    place: str, programs: tuple[Program, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tc, "LOCK_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs, Token() as token:
        theirs.bind(_tc.LOCK)
        with Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment:
            assert attachment.attached()
        assert qdisc() == ""


# ---- who lives ----


def test_a_token_lives_in_its_namespace_and_as_long_as_it_is_held(place: str) -> None:
    with Token() as token, Token() as other:
        assert token.text != other.text
        assert _tc._lives(token.text)
        assert _tc._lives(token.text)  # to ask takes nothing away
        with kernel.inside(f"{place}-peer"):
            assert not _tc._lives(token.text)
    assert not _tc._lives(token.text)


def test_a_token_keeps_nothing_that_is_sent_to_it(place: str) -> None:
    with Token() as token, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(_tc._address(token.text))
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")


class Echo:
    """Datagrams to the peer and back, one after the other, until the block ends; counts what is lost."""

    def __init__(self, namespace: str) -> None:
        self.sent = self.lost = 0
        self._stop, self._hang_up = threading.Event(), threading.Event()
        self._ready = threading.Barrier(3, timeout=10)
        self._threads = [
            threading.Thread(target=self._answer, args=(f"{namespace}-peer",)),
            threading.Thread(target=self._ask, args=(namespace,)),
        ]

    def _answer(self, namespace: str) -> None:
        kernel.enter(namespace)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((THERE, 7))
            sock.settimeout(0.1)
            self._ready.wait()
            while not self._hang_up.is_set():
                with contextlib.suppress(TimeoutError):
                    sock.sendto(*sock.recvfrom(64))

    def _ask(self, namespace: str) -> None:
        kernel.enter(namespace)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((THERE, 7))
            sock.settimeout(1)
            self._ready.wait()
            while not self._stop.is_set():
                self.sent += 1
                sock.send(b"%d" % self.sent)
                try:
                    self.lost += int(sock.recv(64)) != self.sent
                except TimeoutError:
                    self.lost += 1
                time.sleep(0.0005)

    def __enter__(self) -> Echo:
        for thread in self._threads:
            thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        for end, thread in zip((self._stop, self._hang_up), reversed(self._threads), strict=True):
            end.set()
            thread.join(10)


@contextlib.contextmanager
def child(namespace: str, interface: str, *, tcx: bool) -> Iterator[subprocess.Popen[str]]:
    """A collector in a process of its own, attached when the block begins; killed at its end."""
    path = os.pathsep.join((str(PROJECT), str(PROJECT / "tests")))
    process = subprocess.Popen(
        [sys.executable, __file__, namespace, interface, *(["tcx"] if tcx else [])],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "attached\n"
        yield process
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def be_a_collector(namespace: str, interface: str, tcx: str = "") -> None:
    kernel.die_with_parent()
    kernel.enter(namespace)
    with (
        Token() as token,
        Program() as ingress,
        Program() as egress,
        Attachment(interface, ingress.fd, egress.fd, token, tcx=bool(tcx)),
    ):
        sys.stdout.write("attached\n")
        sys.stdout.flush()
        signal.pause()


@pytest.mark.parametrize("theirs", [False, True])
def test_a_killed_run_is_found_and_removed_and_the_traffic_flows(place: str, theirs: bool) -> None:
    if theirs:
        tc(f"qdisc add dev {UPLINK} clsact")
    with Echo(place) as echo:
        with child(place, UPLINK, tcx=False) as process:
            assert leftovers() == []  # it lives
            name = filters()[0].name
            process.kill()
            process.wait(10)
            found = leftovers()
            assert [(x.interface, x.direction, x.name, x.priority) for x in found] == [
                (UPLINK, "ingress", name, 1),
                (UPLINK, "egress", name, 1),
            ]
            assert all(x.handle and x.program for x in found)
            assert remove_leftovers() == found
        assert (leftovers(), remove_leftovers(), qdisc()) == ([], [], "clsact" if theirs else "")
        time.sleep(0.05)
    assert echo.sent > 20
    # The qdisc comes once and goes once, and the kernel drops what is sent just then.
    assert echo.lost <= (0 if theirs else 2)


def test_a_killed_run_on_tcx_leaves_nothing_and_no_packet_is_lost(place: str) -> None:
    require_tcx()
    with Echo(place) as echo:
        for _ in range(3):
            with child(place, UPLINK, tcx=True) as process:
                assert len(tcx_programs()) == 2
                process.kill()
                process.wait(10)
                assert (leftovers(), qdisc()) == ([], "")
                until = time.monotonic() + 5
                while tcx_programs() and time.monotonic() < until:  # the kernel closes links a little later
                    time.sleep(0.01)
                assert tcx_programs() == []
    assert echo.sent > 100
    assert echo.lost == 0


def test_on_and_off_again_and_again_loses_no_packet(place: str, programs: tuple[Program, Program]) -> None:
    require_tcx()
    with Token() as token, Echo(place) as echo:
        for _ in range(50):
            with Attachment(UPLINK, *fds(programs), token):
                time.sleep(0.005)
    assert echo.sent > 100
    assert echo.lost == 0


def test_a_killed_run_beside_a_living_one_and_another(place: str, programs: tuple[Program, Program]) -> None:
    with Token() as token, Program() as others:
        with child(place, UPLINK, tcx=False):
            attachment = Attachment(UPLINK, *fds(programs), token, tcx=False)
            foreign(INGRESS, others)
        assert len(remove_leftovers()) == 2
        assert attachment.attached()
        assert len(filters()) == 3
        tc(f"filter del dev {UPLINK} ingress handle {_handle_of('other')} prio 1 bpf")
        attachment.detach()
    assert qdisc() == ""  # the dead one made it, the living one inherited it


def _handle_of(name: str) -> str:
    return hex(next(f.handle for f in filters() if f.name == name))


def test_leftovers_are_found_on_every_interface_and_in_this_namespace_alone(
    place: str, programs: tuple[Program, Program]
) -> None:
    ip_("link add second type veth peer name third")
    tc("qdisc add dev third clsact")
    with Token() as token:
        for interface in (UPLINK, "second", "third", "lo"):
            Attachment(interface, *fds(programs), token, tcx=False)
    with kernel.inside(f"{place}-peer"):
        assert leftovers() == []
    assert {x.interface for x in remove_leftovers()} == {UPLINK, "second", "third", "lo"}
    assert [qdisc(name) for name in (UPLINK, "second", "third", "lo")] == ["", "", "clsact", ""]


def test_collectors_that_come_and_go_at_once_do_not_harm_each_other(
    place: str, programs: tuple[Program, Program]
) -> None:
    faults: list[BaseException | str] = []

    def come_and_go() -> None:
        kernel.enter(place)
        try:
            for _ in range(15):
                with Token() as token, Attachment(UPLINK, *fds(programs), token, tcx=False) as attachment:
                    if not attachment.attached():
                        faults.append("not attached")
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert (qdisc(), texts()) == ("", [])


# ---- any order ----

STEPS = st.lists(
    st.tuples(st.sampled_from(("attach", "detach", "kill", "clean", "come", "go")), st.integers(0, 1 << 16)),
    max_size=25,
)


class Story:
    """Collectors and another program on one interface; ``made_by`` says whose qdisc it has to be."""

    def __init__(self, programs: tuple[Program, Program]) -> None:
        self.programs = programs
        self.living: list[tuple[Token, Attachment]] = []
        self.dead = 0
        self.others: dict[str, tuple[_tc._Direction, int]] = {}
        self.made_by = ""

    def take(self, step: str, dice: int) -> None:
        getattr(self, step)(random.Random(dice))  # noqa: S311
        if self.made_by == "us" and not self.living and not self.dead:
            self.made_by = "others" if self.others else ""  # what we leave behind under their filters
        self.check()

    def attach(self, _: random.Random) -> None:
        token = Token()
        self.living.append((token, Attachment(UPLINK, *fds(self.programs), token, tcx=False)))
        self.made_by = self.made_by or "us"

    def detach(self, dice: random.Random) -> None:
        if self.living:
            token, attachment = self.living.pop(dice.randrange(len(self.living)))
            attachment.detach()
            token.close()

    def kill(self, dice: random.Random) -> None:
        if self.living:
            self.living.pop(dice.randrange(len(self.living)))[0].close()
            self.dead += 1

    def clean(self, _: random.Random) -> None:
        assert len(remove_leftovers()) == 2 * self.dead
        self.dead = 0

    def come(self, dice: random.Random) -> None:
        if not self.made_by:
            tc(f"qdisc add dev {UPLINK} clsact")
            self.made_by = "others"
        direction, priority, name = (
            dice.choice(_tc.DIRECTIONS),
            dice.choice((1, 2, 9)),
            f"other{next(_count)}",
        )
        if all(f.protocol == _tc.ETH_P_ALL for f in filters() if f.priority == priority):
            foreign(direction, self.programs[0], name, priority)
            self.others[name] = direction, priority

    def go(self, dice: random.Random) -> None:
        if self.others:
            name = dice.choice(sorted(self.others))
            direction, priority = self.others.pop(name)
            tc(f"filter del dev {UPLINK} {direction.name} handle {_handle_of(name)} prio {priority} bpf")

    def check(self) -> None:
        assert qdisc() == ("clsact" if self.made_by else "")
        assert all(attachment.attached() for _, attachment in self.living)
        there = filters()
        assert sorted(f.name for f in there if not f.token) == sorted(self.others)
        assert len([f for f in there if f.token]) == 2 * (len(self.living) + self.dead)

    def end(self) -> None:
        while self.living:
            self.take("detach", 0)
        self.take("clean", 0)
        assert sorted(f.name for f in filters()) == sorted(self.others)
        assert qdisc() == ("clsact" if self.made_by == "others" else "")


@settings(max_examples=40)
@given(steps=STEPS)
def test_whoever_comes_and_goes_exactly_what_others_made_remains(steps: list[tuple[str, int]]) -> None:
    with node(), Program() as ingress, Program() as egress:
        story = Story((ingress, egress))
        try:
            for step, dice in steps:
                story.take(step, dice)
            story.end()
        finally:
            for token, _ in story.living:
                token.close()


# ---- interfaces ----


@contextlib.contextmanager
def tun(name: str, hardware: int | None = None) -> Iterator[int]:
    """A tun interface; packets written to the descriptor come in there. ``hardware`` sets its ARPHRD type."""
    require(Path("/dev/net/tun").exists(), "there is no /dev/net/tun")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        if hardware is not None:
            fcntl.ioctl(descriptor, TUNSETLINK, hardware)
        yield descriptor
    finally:
        os.close(descriptor)


def first_bytes(interface: str, tcx: bool, cause: Callable[[], object]) -> list[set[int]]:
    """What the frames that come in and go out begin with, as a program sees them."""
    with (
        Token() as token,
        Program() as ingress,
        Program() as egress,
        Attachment(interface, ingress.fd, egress.fd, token, tcx=tcx),
    ):
        cause()
        return [set(program.seen()) for program in (ingress, egress)]


def test_the_link_type_says_what_a_program_sees_first(place: str, tcx: bool) -> None:
    assert link_type(UPLINK) == link_type("lo") == 1
    with tun("tun0") as descriptor:
        assert link_type("tun0") == 101
        ip_("address add 10.98.0.1/24 dev tun0")
        ip_("link set tun0 up")
        packet = bytes.fromhex("45000014000000004011000001020304") + b"\x0a\x62\0\1"

        def both_ways() -> None:
            os.write(descriptor, packet)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", ("10.98.0.2", 9))

        assert first_bytes("tun0", tcx, both_ways) == [{0x45}, {0x45}]
    zeros = first_bytes("lo", tcx, lambda: ping(address="127.0.0.1"))
    assert zeros == [{0}, {0}]


def test_of_hundreds_of_interfaces_only_the_one_is_asked_after(
    place: str, tcx: bool, programs: tuple[Program, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node has one for each pod: who watches them all would ask for all of them once for each."""
    asked: list[tuple[int, ...]] = []

    @contextlib.contextmanager
    def watched() -> Iterator[Any]:
        with IPRoute() as ip:
            get_links = ip.get_links

            def noted(*numbers: int) -> Any:
                asked.append(numbers)
                return get_links(*numbers)

            ip.get_links = noted
            yield ip

    monkeypatch.setattr(_links, "IPRoute", watched)
    with Token() as token, Attachment(UPLINK, *fds(programs), token, tcx=tcx) as attachment:
        assert (link_type(UPLINK), attachment.behind, attachment.attached()) == (1, [], True)
    assert asked == [(socket.if_nametoindex(UPLINK),)] * 2


def test_a_link_that_cannot_be_watched(place: str) -> None:
    with (
        tun("radio0", ARPHRD_IEEE80211),
        pytest.raises(LiveError, match=r"^radio0: it cannot be watched: .*801"),
    ):
        link_type("radio0")


def test_local_addresses(place: str) -> None:
    with_ipv6()
    ip_(f"address add fd99::1/64 dev {UPLINK} nodad")
    ip_(f"address add 10.99.1.1 peer 10.99.1.2 dev {UPLINK}")
    ip_("link add second type bridge")
    found = local_addresses()
    assert sorted(found.pop(UPLINK)) == sorted([HERE, "10.99.1.1", "fd99::1"])
    assert found == {"lo": [], "second": []}


def test_uplinks_carry_a_node_address(place: str) -> None:
    assert uplinks({HERE}) == [UPLINK]
    assert uplinks({"10.99.0.77"}) == []
    with_ipv6()
    ip_("link add second type veth peer name third")
    ip_("address add fd99::5/64 dev second nodad")
    ip_("link set second up")
    assert uplinks({"FD99:0:0::5", "192.0.2.1"}) == ["second"]
    assert set(uplinks({"fd99::5", HERE})) == {"second", UPLINK}


def test_uplinks_of_an_address_on_loopback_are_where_the_routes_lead(place: str) -> None:
    ip_("address add 10.99.9.9/32 dev lo")
    assert uplinks({"10.99.9.9"}) == []
    ip_(f"route add default via {THERE}")
    assert uplinks({"10.99.9.9"}) == [UPLINK]
    assert uplinks({"10.99.9.8"}) == []


def test_uplinks_without_addresses_are_those_of_default_routes(place: str) -> None:
    assert uplinks() == []  # a veth is not of the wire
    ip_("link add second type veth peer name third")
    for words in ("link set second up", "link set third up", "address add 10.97.0.1/24 dev second"):
        ip_(words)
    ip_("route add blackhole default metric 9")
    assert uplinks() == []
    ip_(f"route add default nexthop via {THERE} nexthop via 10.97.0.2")
    assert set(uplinks()) == {UPLINK, "second"}
    ip_("route del default nexthop via 10.99.0.2 nexthop via 10.97.0.2")
    with_ipv6()
    ip_("-6 route add default dev third")
    assert uplinks() == ["third"]


def test_interfaces_of_the_wire() -> None:
    with IPRoute() as ip:
        links = list(ip.get_links())
    chosen = {_links._name(link) for link in _links.of_wire(links)}
    physical = {path.parent.name for path in Path("/sys/class/net").glob("*/device")}
    up = {_links._name(link) for link in links if link["flags"] & _links.IFF_UP}
    assert chosen >= physical & up
    assert "lo" not in chosen
    for link in links:
        link["flags"] &= ~_links.IFF_UP
    assert _links.of_wire(links) == []


def test_an_error_number_unknown_to_us_says_what_the_kernel_said() -> None:
    told = r"^eth9: the kernel refused the program: No buffer space"
    with pytest.raises(LiveError, match=told), _links.netlink("eth9"):
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))


if __name__ == "__main__":
    be_a_collector(*sys.argv[1:])
