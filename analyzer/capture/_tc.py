"""Two programs on an interface, and away again. Rule: knows tcx, tc's filters and the names of sockets; not
what a program does, nor what it counts.

Where there is tcx (Linux 6.6) the programs are tcx links: before all others, on no qdisc, and gone with their
process. Elsewhere they are filters on a clsact qdisc, and three things need care:

- A filter outlives the process that added it. So its name says who that was, ``rke2-flows/TOKEN``, and an
  abstract socket of that name says that he lives: abstract sockets belong to the network namespace, as
  interfaces do, and end with their process, whatever ended it. A filter whose socket is gone is a leftover.
- Others have filters on the same qdisc. Only filters of our own names are removed, one by one, never by a
  flush. ``/q`` behind the name says that the qdisc is ours: made by this run, or by one that bore the mark.
  Who bears it and leaves nothing behind takes the qdisc along.
- What runs before us may swallow what we then do not see. Of one priority cls_bpf runs the newest filter
  first, so priority 1 is the place.

To add clsact to an interface that is up, or to delete it, makes the kernel stop and start the interface's
queues (net/sched/sch_api.c, qdisc_graft): what is sent at that moment is lost. tcx loses nothing, nor does a
clsact that is there already.

All of this is about the network namespace of the calling thread: where it was put on, it is taken off.
"""

from __future__ import annotations

import contextlib
import errno
import re
import secrets
import socket
import struct
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from pyroute2.netlink.exceptions import NetlinkError

from analyzer.capture import _tcx
from analyzer.capture._links import (
    index_of,
    link_of,
    link_type,
    local_addresses,
    names,
    netlink,
    uplinks,
    whole,
)
from analyzer.errors import LiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "Attachment",
    "Leftover",
    "Token",
    "has_tcx",
    "leftovers",
    "link_type",
    "local_addresses",
    "remove_leftovers",
    "uplinks",
]

OURS = "rke2-flows"
NAME = re.compile(rf"{OURS}/(?P<token>[0-9a-f]{{16}})(?P<mark>/q)?")
LOCK = f"\0{OURS}/lock"
#: how long another collector of ours may hold the lock; it needs milliseconds
LOCK_SECONDS = 5.0

ETH_P_ALL = 0x0003  # linux/if_ether.h
CLSACT_HANDLE = 0xFFFF0000  # linux/pkt_sched.h, TC_H_CLSACT; an ``ingress`` qdisc has it too
TCA_OPTIONS, TCA_CHAIN = 2, 11  # linux/rtnetlink.h
TCA_BPF_NAME, TCA_BPF_ID = 7, 11  # linux/pkt_cls.h
NLA_TYPE_MASK = 0x3FFF  # linux/netlink.h: an attribute's type without its two flags
HEADERS = 16 + 20  # struct nlmsghdr, struct tcmsg
#: what a removal meets where somebody else, or the interface's end, was faster
GONE = frozenset((errno.ENODEV, errno.ENOENT, errno.EINVAL))


class _Direction(NamedTuple):
    """``parent`` is TC_H_CLSACT with TC_H_MIN_INGRESS or TC_H_MIN_EGRESS (linux/pkt_sched.h)."""

    name: str
    parent: int
    hook: int


DIRECTIONS = (
    _Direction("ingress", 0xFFFFFFF2, _tcx.BPF_TCX_INGRESS),
    _Direction("egress", 0xFFFFFFF3, _tcx.BPF_TCX_EGRESS),
)


# ---- who lives ----


class Token:
    """The sign that this process lives, until closed. A context manager.

    ``text`` is 16 hexadecimal digits. A process forked from this one that does not exec keeps the sign up.
    """

    def __init__(self) -> None:
        self.text = secrets.token_hex(8)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(_address(self.text))
        self._socket.shutdown(socket.SHUT_RD)  # anybody may send to it; nothing is kept

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Token:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _address(token: str) -> str:
    return f"\0{OURS}/{token}"


def _lives(token: str) -> bool:
    """Whether a process in this network namespace holds the token; asked without taking its name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(_address(token))
        except ConnectionRefusedError:
            return False
        except OSError:  # somebody has the name and does not let us in
            return True
    return True


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """No other collector of ours adds or removes meanwhile, so none deletes a qdisc that another counts on.

    A name that stays taken is taken by somebody else; he cannot keep us from removing our filters.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        until = time.monotonic() + LOCK_SECONDS
        while not _bound(sock, LOCK) and time.monotonic() < until:
            time.sleep(0.01)
        yield


def _bound(sock: socket.socket, address: str) -> bool:
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


# ---- filters ----


@dataclass(frozen=True)
class _Filter:
    """One filter of an interface; ``protocol`` in host order, ``program`` 0 where there is none."""

    index: int
    direction: _Direction
    kind: str
    name: str
    chain: int
    priority: int
    protocol: int
    handle: int
    program: int

    @property
    def token(self) -> str:
        """Of which run of ours it is; "" for the filters of others."""
        found = NAME.fullmatch(self.name) if self.kind == "bpf" else None
        return found["token"] if found else ""

    @property
    def marked(self) -> bool:
        return bool(self.token) and self.name.endswith("/q")

    def text(self) -> str:
        words = (self.direction.name, self.kind, self.name, f"priority {self.priority}")
        return " ".join(filter(None, words))


def _filters(ip: Any, index: int) -> list[_Filter]:
    """All filters on an interface's clsact, per direction in the order in which the kernel runs them."""
    return [
        _filter(message, direction)
        for direction in DIRECTIONS
        for message in whole(partial(ip.get_filters, index=index, parent=direction.parent))
        if message["handle"]  # a priority announces itself before its filters, without one
    ]


def _filter(message: Any, direction: _Direction) -> _Filter:
    """pyroute2 decodes neither the chain nor the program's id: the message's own bytes have them."""
    end = message.offset + message["header"]["length"]
    attributes = _attributes(bytes(message.data[message.offset + HEADERS : end]))
    kind = message.get_attr("TCA_KIND")
    options = _attributes(attributes.get(TCA_OPTIONS, b"")) if kind == "bpf" else {}
    return _Filter(
        index=message["index"],
        direction=direction,
        kind=kind,
        name=_tcx.printable(options.get(TCA_BPF_NAME, b"")),
        chain=int.from_bytes(attributes.get(TCA_CHAIN, b""), sys.byteorder),
        priority=message["info"] >> 16,
        protocol=socket.ntohs(message["info"] & 0xFFFF),
        handle=message["handle"],
        program=int.from_bytes(options.get(TCA_BPF_ID, b""), sys.byteorder),
    )


def _attributes(data: bytes) -> dict[int, bytes]:
    """Type → value of netlink attributes that stand one behind the other (linux/netlink.h)."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        found[kind & NLA_TYPE_MASK] = data[at + 4 : at + length]
        at += max(length + 3 & ~3, 4)
    return found


def _priority(filters: Iterable[_Filter]) -> int:
    """The lowest one that the kernel takes: filters of one priority are of one kind and one protocol."""
    ours = ("bpf", ETH_P_ALL)
    taken = {f.priority for f in filters if not f.chain and (f.kind, f.protocol) != ours}
    return next(n for n in count(1) if n not in taken)


def _handle(token: str) -> int:
    """Far from 1, which programs that replace "their" filter by its number take for their own."""
    return 1 << 30 | int(token[:7], 16)


def _qdiscs(ip: Any) -> dict[int, str]:
    """Interface index → kind of the qdisc in clsact's place: ``clsact`` or ``ingress``."""
    found = whole(ip.get_qdiscs)
    return {qdisc["index"]: qdisc.get_attr("TCA_KIND") for qdisc in found if qdisc["handle"] == CLSACT_HANDLE}


def _add_clsact(ip: Any, index: int) -> bool:
    """Whether it was not there before."""
    try:
        ip.tc("add", "clsact", index)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        return False
    return True


def _remove(ip: Any, index: int, tokens: set[str], *, made: bool = False) -> None:
    """Take off these runs' filters; the qdisc too, if ``made`` or one bears the mark, once it is empty."""
    mine = [f for f in _filters(ip, index) if f.token in tokens]
    for one in mine:
        info = one.priority << 16 | socket.htons(one.protocol)
        with _gone():
            ip.tc("del-filter", "bpf", index, handle=one.handle, parent=one.direction.parent, info=info)
    if (made or any(f.marked for f in mine)) and not _filters(ip, index):
        with _gone():
            ip.tc("del", "clsact", index)


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in GONE:
            raise


# ---- the two ways on ----


class _OnClsact:
    """Both programs as filters."""

    def __init__(self, ip: Any, index: int, token: str, programs: tuple[int, int]) -> None:
        self._index, self._token = index, token
        with _alone():
            self._attach(ip, programs)

    def _attach(self, ip: Any, programs: tuple[int, int]) -> None:
        index, token = self._index, self._token
        made = _add_clsact(ip, index)
        try:
            ours = made or any(f.marked for f in _filters(ip, index))
            for direction, program in zip(DIRECTIONS, programs, strict=True):
                self._add(ip, direction, program, f"{OURS}/{token}{'/q' if ours else ''}")
        except BaseException:
            _remove(ip, index, {token}, made=made)
            raise

    def _add(self, ip: Any, direction: _Direction, program: int, name: str) -> None:
        ip.tc(
            "add-filter",
            "bpf",
            self._index,
            handle=_handle(self._token),
            parent=direction.parent,
            prio=_priority(f for f in _filters(ip, self._index) if f.direction == direction),
            protocol=ETH_P_ALL,
            fd=program & 0xFFFFFFFF,  # a number that is no descriptor is for the kernel to refuse
            name=name,
            direct_action=True,
        )

    def present(self) -> bool:
        with netlink() as ip:
            there = {f.direction for f in _filters(ip, self._index) if f.token == self._token}
        return len(there) == len(DIRECTIONS)

    def before(self, ip: Any, direction: _Direction) -> list[str]:
        chain = [f for f in _filters(ip, self._index) if f.direction == direction and not f.chain]
        filters = [f.text() for f in takewhile(lambda f: f.token != self._token, chain) if not f.token]
        mine = [f.program for f in chain if f.token == self._token]
        return _on_tcx(_tcx.programs(self._index, direction.hook) or (), mine, direction) + filters

    def remove(self) -> None:
        with netlink() as ip, _alone():
            _remove(ip, self._index, {self._token})


class _OnTcx:
    """Both programs as tcx links."""

    def __init__(self, index: int, programs: tuple[int, int]) -> None:
        self._index = index
        self._links: list[int] = []
        try:
            for direction, program in zip(DIRECTIONS, programs, strict=True):
                self._links.append(_tcx.attach(index, direction.hook, program))
        except BaseException:
            self.remove()
            raise

    def present(self) -> bool:
        """A link says no word of an interface that was moved to another namespace: it goes along."""
        return all(
            _tcx.link_id(link) in {one for _, one in _tcx.programs(self._index, direction.hook) or ()}
            for link, direction in zip(self._links, DIRECTIONS, strict=True)
        )

    def before(self, _: Any, direction: _Direction) -> list[str]:
        links = {_tcx.link_id(link) for link in self._links}
        there = _tcx.programs(self._index, direction.hook) or ()
        first = takewhile(lambda one: one[1] not in links, there)
        return _on_tcx(first, (program for program, link in there if link in links), direction)

    def remove(self) -> None:
        while self._links:
            _tcx.detach(self._links.pop())


def _on_tcx(there: Iterable[tuple[int, int]], mine: Iterable[int], direction: _Direction) -> list[str]:
    """The programs that are not of the same instructions as ours: another capture lets all pass."""
    tags = {_tcx.program_tag(program) for program in mine} - {b""}
    others = [program for program, _ in there if _tcx.program_tag(program) not in tags]
    return [f"{direction.name} tcx {_tcx.program_name(program)}" for program in others]


def _on_xdp(ip: Any, index: int) -> list[str]:
    attached = None
    with _gone():
        attached = link_of(ip, index).get_attr("IFLA_XDP")
    program = attached.get_attr("IFLA_XDP_PROG_ID") if attached else None
    return [f"ingress xdp {_tcx.program_name(program)}"] if program else []


# ---- on and off ----


def has_tcx(index: int) -> bool:
    """Whether programs go on this interface by tcx. Asked without rights, or of no interface: False."""
    return all(_tcx.programs(index, direction.hook) is not None for direction in DIRECTIONS)


class Attachment:
    """Two programs (BPF_PROG_TYPE_SCHED_CLS) on one interface, until detached. A context manager.

    ``ingress_fd`` and ``egress_fd`` are their descriptors and may be closed afterwards; ``index`` is the
    interface's. The programs have to return TC_ACT_UNSPEC, so that the next one runs. With ``tcx=False`` they
    are filters on every kernel.

    LiveError: no such interface, no rights, refused, vanished meanwhile; nothing of ours is left on it then.
    """

    def __init__(
        self, interface: str, ingress_fd: int, egress_fd: int, token: Token, *, tcx: bool = True
    ) -> None:
        self.interface = interface
        self.index = index_of(interface)
        programs = (ingress_fd, egress_fd)
        there = tcx and has_tcx(self.index)
        self._way: _OnClsact | _OnTcx | None = None
        with netlink(interface) as ip:
            self._way = _OnTcx(self.index, programs) if there else self._filters(ip, token.text, programs)

    def _filters(self, ip: Any, token: str, programs: tuple[int, int]) -> _OnClsact:
        if _qdiscs(ip).get(self.index, "clsact") != "clsact":
            # The kernel would take filters for egress there, and silently run them on ingress.
            raise LiveError(
                "an ingress qdisc of another program stands where clsact has to",
                where=self.interface,
                next_step=f"tc qdisc show dev {self.interface}; with tcx (Linux 6.6) both have room",
            )
        if any(f.token == token for f in _filters(ip, self.index)):
            raise LiveError("this run watches it already", where=self.interface, next_step="name it once")
        return _OnClsact(ip, self.index, token, programs)

    @property
    def behind(self) -> list[str]:
        """What of others runs before us at this moment, and may swallow what we then do not see.

        Each as ``direction kind name priority N``. Kinds are tc's (these have a priority), ``tcx``, ``xdp``.
        """
        if self._way is None:
            return []
        with netlink(self.interface) as ip:
            found = _on_xdp(ip, self.index)
            for direction in DIRECTIONS:
                found += self._way.before(ip, direction)
        return found

    def attached(self) -> bool:
        """Whether both programs are still there: an interface can vanish, another program can sweep it."""
        if self._way is None:
            return False
        return self._way.present()

    def detach(self) -> None:
        """Take both off, and the qdisc too if it is ours and empty. Again, or too late, does nothing."""
        way, self._way = self._way, None
        if way is not None:
            way.remove()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


# ---- what dead runs left ----


@dataclass(frozen=True)
class Leftover:
    """A filter of a dead run of ours. ``program`` is the kernel's id of it, 0 where it does not say."""

    interface: str
    direction: str
    name: str
    priority: int
    handle: int
    program: int


def leftovers() -> list[Leftover]:
    """What dead runs left on the interfaces of this namespace; tcx leaves nothing. Needs no rights."""
    with netlink() as ip:
        return _told(ip, _dead(ip))


def remove_leftovers() -> list[Leftover]:
    """Remove them, and a qdisc of theirs on which nothing else is; what they were.

    LiveError: no rights.
    """
    with netlink() as ip, _alone():
        dead = _dead(ip)
        told = _told(ip, dead)
        for index in {one.index for one in dead}:
            _remove(ip, index, {one.token for one in dead if one.index == index})
    return told


def _dead(ip: Any) -> list[_Filter]:
    on_clsact = [index for index, kind in _qdiscs(ip).items() if kind == "clsact"]
    ours = [one for index in on_clsact for one in _filters(ip, index) if one.token]
    dead = {token for token in {one.token for one in ours} if not _lives(token)}
    return [one for one in ours if one.token in dead]


def _told(ip: Any, filters: list[_Filter]) -> list[Leftover]:
    named = names(ip) if filters else {}
    return [
        Leftover(
            interface=named.get(one.index, f"interface {one.index}"),
            direction=one.direction.name,
            name=one.name,
            priority=one.priority,
            handle=one.handle,
            program=one.program,
        )
        for one in filters
    ]
