"""Who is behind a socket. Rule: asks the kernel's socket lists, /proc, the cgroup tree and the kubelet's
folders, and changes nothing; knows no packet and no flow. What none of them says stays empty: never a guess.

Sockets are those of the calling thread's network namespace. They are asked of sock_diag(7), for it alone says
which sockets of :: take IPv4 too, and it hands out listening sockets without the connections; where a kernel
lacks it, /proc/thread-self/net is read.

Names come from strangers: a process calls itself what it wants.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from analyzer.errors import LiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
_MAPPED = b"\0" * 10 + b"\xff\xff"
_ANY_V4, _ANY_V6 = _MAPPED + bytes(4), bytes(16)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

_ESTABLISHED, _CLOSE, _LISTEN = 1, 7, 10  # include/net/tcp_states.h; a UDP socket without a peer is in CLOSE
#: in which state a socket of each protocol takes what strangers send
_OPEN = {TCP: _LISTEN, UDP: _CLOSE}

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20  # linux/netlink.h, linux/sock_diag.h
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_NLMSG = struct.Struct("=IHHII")
_LAST = frozenset((2, 3))  # NLMSG_ERROR, NLMSG_DONE: both say how it went
_REQUEST = struct.Struct("=BBBBI48x")  # struct inet_diag_req_v2
_ANSWER = struct.Struct("=BBBB2s2s16s16s4x8x16xI")  # struct inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")
_INET_DIAG_SKV6ONLY = 11  # linux/inet_diag.h
_RECEIVE = 1 << 18
_PROC_NET = Path("/proc/thread-self/net")
_PROC_FILES = {(TCP, 4): "tcp", (TCP, 6): "tcp6", (UDP, 4): "udp", (UDP, 6): "udp6"}
_LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Listener(NamedTuple):
    """Who takes what is sent to an address (16 bytes), protocol number and port. `pid` 0 and `process` empty:
    the kernel itself (VXLAN, WireGuard), or a process that this one may not see.
    """

    address: bytes
    protocol: int
    port: int
    pid: int
    process: str


class Connection(NamedTuple):
    """An established TCP connection, as this end sees it: `src` is here. Addresses are 16 bytes. `listening`:
    this end has a listener on that port, so the other end opened it.
    """

    src: bytes
    dst: bytes
    src_port: int
    dst_port: int
    pid: int
    process: str
    listening: bool


class Open(NamedTuple):
    """A socket that waits to be asked. `address` (16 bytes): what it is bound to. `takes_v4`: whether one of
    :: takes IPv4 too. `pid` 0 and `process` empty: as of a :class:`Listener`.
    """

    protocol: int
    address: bytes
    port: int
    takes_v4: bool
    pid: int
    process: str


class _Socket(NamedTuple):
    """`inode`: by which /proc/PID/fd knows it. `only_v6`: None where it is not known."""

    protocol: int
    src: bytes
    src_port: int
    dst: bytes
    dst_port: int
    inode: int
    only_v6: bool | None


# ---- sockets ----


def listeners(addresses: Iterable[str]) -> list[Listener]:
    """Listening TCP sockets and UDP sockets that are bound and have no peer, sorted; each address, protocol
    and port once, with the lowest of the pids that have it.

    A socket of 0.0.0.0 stands for each of `addresses` (this node's) that is IPv4, one of :: for the IPv6 ones
    and, unless it is IPV6_V6ONLY, for the IPv4 ones. Where the kernel does not tell that, it takes IPv4 only
    if nothing else listens on 0.0.0.0 with its port. Sockets of loopback addresses are left out, and so are
    UDP sockets with a port that the kernel hands out to clients: of those it cannot be told who is asked and
    who asks. Raises LiveError where sockets cannot be listed.
    """
    local = [packed for packed in map(_packed, addresses) if not _is_loopback(packed)]
    handed_out = _handed_out()
    open_ones = [
        one
        for one in _sockets(_OPEN)
        if one.src_port and not (one.protocol == UDP and one.src_port in handed_out)
    ]
    owners = _owners({one.inode for one in open_ones})
    found: dict[tuple[bytes, int, int], int] = {}
    for one in open_ones:
        pid = owners.get(one.inode, 0)
        for address in _stands_for(one, open_ones, local):
            place = address, one.protocol, one.src_port
            found[place] = min(filter(None, (found.get(place), pid)), default=0)
    names = {pid: process_name(pid) for pid in set(found.values())}
    return sorted(Listener(*place, pid, names[pid]) for place, pid in found.items())


def open_sockets() -> list[Open]:
    """Listening TCP sockets and UDP sockets that are bound and have no peer, as they are bound, in the
    network namespace of the calling thread. Raises LiveError where they cannot be listed.
    """
    found = [one for one in _sockets(_OPEN) if one.src_port]
    owners = _owners({one.inode for one in found})
    pids = [owners.get(one.inode, 0) for one in found]
    return [
        Open(one.protocol, one.src, one.src_port, _takes_v4(one, found), pid, process_name(pid))
        for one, pid in zip(found, pids, strict=True)
    ]


def _stands_for(one: _Socket, others: list[_Socket], local: list[bytes]) -> list[bytes]:
    if one.src not in (_ANY_V4, _ANY_V6):
        return [] if _is_loopback(one.src) else [one.src]
    takes_v4 = one.src == _ANY_V4 or _takes_v4(one, others)
    takes_v6 = one.src == _ANY_V6
    return [address for address in local if (takes_v4 if address.startswith(_MAPPED) else takes_v6)]


def _takes_v4(one: _Socket, others: list[_Socket]) -> bool:
    if one.only_v6 is not None:
        return not one.only_v6
    same_port = (
        other for other in others if (other.protocol, other.src_port) == (one.protocol, one.src_port)
    )
    return all(other.src != _ANY_V4 for other in same_port)


def connections() -> list[Connection]:
    """The established TCP connections."""
    waiting = list(_sockets({TCP: _LISTEN}))
    found = list(_sockets({TCP: _ESTABLISHED}))
    places = {(one.src, one.src_port) for one in waiting}
    places |= {(_ANY_V4, one.src_port) for one in waiting if one.src == _ANY_V6 and _takes_v4(one, waiting)}
    owners = _owners({one.inode for one in found})
    names = {pid: process_name(pid) for pid in {0, *owners.values()}}
    return [_connection(one, places, owners.get(one.inode, 0), names) for one in found]


def _connection(one: _Socket, places: set[tuple[bytes, int]], pid: int, names: dict[int, str]) -> Connection:
    anywhere = _ANY_V4 if one.src.startswith(_MAPPED) else _ANY_V6
    listening = not places.isdisjoint(((one.src, one.src_port), (anywhere, one.src_port)))
    return Connection(one.src, one.dst, one.src_port, one.dst_port, pid, names[pid], listening)


def _packed(address: str) -> bytes:
    ip = ipaddress.ip_address(address)
    return _MAPPED + ip.packed if ip.version == 4 else ip.packed


def _is_loopback(address: bytes) -> bool:
    v4 = address.startswith(_MAPPED)
    return address[12] == 127 if v4 else address == _ANY_V6[:15] + b"\1"


def _handed_out() -> range:
    """The ports from which the kernel gives one to a socket that asks for none."""
    try:
        low, high = map(int, _LOCAL_PORTS.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        low, high = 32768, 60999  # Documentation/networking/ip-sysctl.rst
    return range(low, high + 1)


# ---- socket lists ----


def _sockets(states: dict[int, int]) -> Iterator[_Socket]:
    """The sockets of both families that are in the state given for their protocol."""
    for protocol, state in states.items():
        for family in _FAMILIES:
            try:
                yield from _diagnosed(family, protocol, state)
            except OSError:
                yield from _listed(4 if family == socket.AF_INET else 6, protocol, state)


def _diagnosed(family: int, protocol: int, state: int) -> list[_Socket]:
    """As sock_diag(7) has them. OSError where this kernel has no diagnosis of that protocol."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        request = _REQUEST.pack(family, protocol, 0, 0, 1 << state)
        netlink.send(_NLMSG.pack(_NLMSG.size + _REQUEST.size, _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + request)
        return [_diagnosis(message, protocol) for message in _messages(netlink)]


def _messages(netlink: socket.socket) -> Iterator[bytes]:
    """The bodies of a dump's messages."""
    while True:
        data = netlink.recv(_RECEIVE)
        at = 0
        while at < len(data):
            length, kind, _, _, _ = _NLMSG.unpack_from(data, at)
            body = data[at + _NLMSG.size : at + length]
            if kind in _LAST:
                _check(body)
                return
            yield body
            at += length + 3 & ~3


def _check(body: bytes) -> None:
    number = -struct.unpack_from("=i", body)[0]
    if number:
        raise OSError(number, os.strerror(number))


def _diagnosis(message: bytes, protocol: int) -> _Socket:
    family, _, _, _, src_port, dst_port, src, dst, inode = _ANSWER.unpack_from(message)
    if family == socket.AF_INET:
        src, dst = _MAPPED + src[:4], _MAPPED + dst[:4]
    ports = int.from_bytes(src_port, "big"), int.from_bytes(dst_port, "big")
    only_v6 = _attribute(message, _INET_DIAG_SKV6ONLY) == b"\1" if src == _ANY_V6 else True
    return _Socket(protocol, src, ports[0], dst, ports[1], inode, only_v6)


def _attribute(message: bytes, wanted: int) -> bytes:
    at = _ANSWER.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == wanted:
            return message[at + _ATTRIBUTE.size : at + length]
        at += max(length, _ATTRIBUTE.size) + 3 & ~3
    return b""


def _listed(version: int, protocol: int, state: int) -> Iterator[_Socket]:
    """As /proc/net/tcp and its like have them (Documentation/networking/proc_net_tcp.rst)."""
    path = _PROC_NET / _PROC_FILES[protocol, version]
    try:
        lines = path.read_text(encoding="ascii").splitlines()[1:]
    except FileNotFoundError:  # this kernel has no IPv6
        return
    except OSError as error:
        raise LiveError(f"sockets cannot be listed: {error.strerror}", where=str(path)) from error
    for words in map(str.split, lines):
        if int(words[3], 16) == state:
            (src, src_port), (dst, dst_port) = _listed_place(words[1]), _listed_place(words[2])
            yield _Socket(protocol, src, src_port, dst, dst_port, int(words[9]), None)


def _listed_place(text: str) -> tuple[bytes, int]:
    """``0100007F:1F90``: the address in words of this machine's byte order, and the port."""
    address, _, port = text.partition(":")
    words = struct.pack(
        f"={len(address) // 8}I", *(int(address[n : n + 8], 16) for n in range(0, len(address), 8))
    )
    return (_MAPPED + words if len(words) == 4 else words), int(port, 16)


# ---- processes ----


def process_name(pid: int) -> str:
    """What the process calls itself (/proc/PID/comm, at most 15 bytes); empty where there is none."""
    try:
        comm = Path("/proc", str(pid), "comm").read_bytes()
    except OSError:
        return ""
    return comm.removesuffix(b"\n").decode("utf-8", "replace")


def _owners(inodes: set[int]) -> dict[int, int]:
    """Socket inode → the lowest pid that has it open; pid 1, which opens sockets for others, last. Looks no
    further when all are found.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, int] = {}
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
    for pid in sorted(pids, key=lambda pid: (pid == 1, pid)):
        if not wanted:
            break
        for link in _open_files(pid):
            inode = wanted.pop(link, 0)
            if inode:
                found[inode] = pid
    return found


def _open_files(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:  # gone, or not ours to see
        return
    for name in names:
        with contextlib.suppress(OSError):
            yield os.readlink(f"{folder}/{name}")


# ---- pods ----

_UID = r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32}"
#: a pod's part of a cgroup path; of a static pod the uid is a hash of its manifest
_POD = re.compile(
    rf"(?:^|/)(?:[^/]*-)?kubepods(?P<step>[-/])(?:(?:burstable|besteffort)(?P=step))?pod(?P<uid>{_UID})"
    r"(?:\.slice)?(?=[/:]|$)"
)
_LOG_FOLDER = re.compile(rf"(?P<namespace>[a-z0-9.-]+)_(?P<name>[a-z0-9.-]+)_(?P<uid>{_UID})")
#: what a user may build for himself, with any name
_DELEGATED = "/user.slice/"
_WALK_SECONDS = 1.0


def pod_uids(path: str) -> list[str]:
    """The uids of the pods that a cgroup's path goes through, outermost first.

    How kubelet and containerd build it (kubernetes pkg/kubelet/cm/cgroup_manager_linux.go and
    pod_container_manager_linux.go; containerd internal/cri/server/podsandbox/helpers.go). RKE2 takes the
    systemd driver where systemd is 244 or later, else cgroupfs (k3s-io/k3s pull request 5462)::

        /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/cri-containerd-ID.scope
        /kubepods/besteffort/podU-I-D/ID
        /system.slice/containerd.service/kubepods-burstable-podU_I_D.slice:cri-containerd:ID

    the last where the two disagree on the driver. Guaranteed pods have no class in it; a kubelet with a
    cgroup root of its own puts that before kubepods.
    """
    if path.startswith(_DELEGATED):
        return []
    return [found["uid"].replace("_", "-") for found in _POD.finditer(path)]


class Pods:
    """Which pod a process is of. Safe to ask from several threads.

    `proc`, `logs`: where to look, /proc and the kubelet's folder of logs, whose folders are named
    NAMESPACE_NAME_UID (kubernetes pkg/kubelet/kuberuntime/helpers.go). `cgroup`: where the cgroup2 tree is,
    by default where `proc`/mounts says. The kubelet's other folder, /var/lib/kubelet/pods, has no pod's name:
    the host name in its etc-hosts may be another one, and says no namespace.
    """

    def __init__(
        self,
        proc: str | Path = "/proc",
        logs: str | Path = "/var/log/pods",
        cgroup: str | Path | None = None,
    ) -> None:
        self._proc, self._logs = Path(proc), Path(logs)
        self._root = Path(cgroup) if cgroup is not None else cgroup2_mount(self._proc)
        self._paths: dict[int, str] = {}
        self._names: dict[str, str] = {}
        self._walked = self._listed = -_WALK_SECONDS
        self._lock = threading.Lock()

    def pod_of(self, cgroup_id: int = 0, pid: int = 0) -> str:
        """``namespace/name``; empty where it is no pod's, or not known.

        `cgroup_id`: the number of its cgroup v2 folder, as bpf_get_current_cgroup_id() has it; 0 unknown. It
        says more than the pid, which another process may have by now: a pid counts only if that process is in
        this cgroup, or where the machine has no cgroup v2. The tree is walked only for an id that is new and
        whose process is gone, at most once a second; ids stay known.
        """
        with self._lock:
            path = self._path_of(cgroup_id, pid) if cgroup_id else None
            if path is not None and pod_uids(path):
                return self._first_named(pod_uids(path))
            if cgroup_id and not self._is_of(cgroup_id, pid):
                return ""
            return self._name_of_process(pid)

    # ---- cgroups ----

    def _path_of(self, cgroup_id: int, pid: int) -> str | None:
        """Where in the tree the cgroup is; empty for one that is gone, None where that is not known now."""
        if cgroup_id not in self._paths and self._root is not None:
            own = self._cgroups(pid).get("")
            if own is not None and self._number(own) == cgroup_id:
                self._paths[cgroup_id] = own
            elif self._walk():
                self._paths.setdefault(cgroup_id, "")
        return self._paths.get(cgroup_id)

    def _walk(self) -> bool:
        """Notes all cgroups there are. False where that was done less than a second ago."""
        if self._root is None or time.monotonic() - self._walked < _WALK_SECONDS:
            return False
        for number, path in _tree(self._root):
            self._paths[number] = path
        self._walked = time.monotonic()
        return True

    def _cgroups(self, pid: int) -> dict[str, str]:
        """/proc/PID/cgroup: controllers → path, "" of cgroup v2 (cgroups(7))."""
        try:
            text = (self._proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return {}
        lines = (line.split(":", 2) for line in text.splitlines())
        return {words[1]: words[2] for words in lines if len(words) == 3}

    def _number(self, path: str) -> int:
        """The number of a cgroup v2 folder; 0 where it cannot be seen from here."""
        if self._root is None or "/.." in path:  # outside of this process' cgroup namespace
            return 0
        try:
            return (self._root / path.lstrip("/")).stat().st_ino
        except OSError:
            return 0

    def _is_of(self, cgroup_id: int, pid: int) -> bool:
        """Whether the process is in that cgroup, or nothing can be said against it."""
        own = self._cgroups(pid).get("")
        return own is None or self._number(own) in (0, cgroup_id)

    def _name_of_process(self, pid: int) -> str:
        found = {tuple(pod_uids(path)) for path in self._cgroups(pid).values()} - {()}
        return self._first_named(found.pop()) if len(found) == 1 else ""

    # ---- names ----

    def _first_named(self, uids: Iterable[str]) -> str:
        return next(filter(None, map(self._name_of, uids)), "")

    def _name_of(self, uid: str) -> str:
        if uid not in self._names and time.monotonic() - self._listed >= _WALK_SECONDS:
            self._names.update(_named(self._logs))
            self._listed = time.monotonic()
        return self._names.get(uid, "")


def cgroup2_mount(proc: Path) -> Path | None:
    """Where cgroup v2 is: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside v1; None where there is none."""
    try:
        lines = (proc / "mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    mounts = (line.split() for line in lines)
    return next((Path(words[1]) for words in mounts if words[2:3] == ["cgroup2"]), None)


def _tree(root: Path) -> Iterator[tuple[int, str]]:
    """All cgroups: number and path from the root of the tree."""
    waiting = [""]
    while waiting:
        path = waiting.pop()
        with contextlib.suppress(OSError), os.scandir(f"{root}{path}") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{path}/{entry.name}")
                    yield entry.inode(), waiting[-1]


def _named(logs: Path) -> dict[str, str]:
    """Pod uid → namespace/name, for each folder of logs."""
    try:
        names = os.listdir(logs)
    except OSError:
        return {}
    found = map(_LOG_FOLDER.fullmatch, names)
    return {match["uid"]: f"{match['namespace']}/{match['name']}" for match in found if match}
