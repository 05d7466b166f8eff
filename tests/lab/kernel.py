"""Linux calls that Python 3.11 lacks. Rule: system calls and sysctls only; knows no node and no scenario."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACES = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_NAME = 15
SIOCETHTOOL = 0x8946  # linux/sockios.h
OFFLOADS = {  # linux/ethtool.h: the command that sets each one
    "tx-checksum": 0x17,
    "scatter-gather": 0x19,
    "tso": 0x1F,
    "gso": 0x24,
    "gro": 0x2C,
}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def enter(namespace: str) -> None:
    """Move the calling thread into a named network namespace, for good."""
    descriptor = os.open(NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(descriptor, CLONE_NEWNET), f"setns {namespace}")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The calling thread is in the namespace for the length of the block; sockets opened there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace)
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "setns back")
    finally:
        os.close(home)


def die_with_parent() -> None:
    """The calling process gets SIGKILL when the thread that started it ends (prctl(2))."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl PR_SET_PDEATHSIG")


def set_process_name(name: str) -> None:
    """What ``ps -o comm`` and the kernel's tracepoints call this process; at most 15 bytes are kept."""
    _check(_libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0), "prctl PR_SET_NAME")


def offloads_off(interface: str) -> None:
    """No segmentation, no aggregation, no deferred checksum: a capture sees what a wire would carry."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in OFFLOADS.values():
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
            with contextlib.suppress(OSError):  # a device that lacks the feature has nothing to switch off
                fcntl.ioctl(sock, SIOCETHTOOL, request)


def sysctl(name: str, value: int | str) -> None:
    """Set ``net.`` + name in the namespace that the calling thread is in."""
    Path("/proc/sys/net", name).write_text(f"{value}\n", encoding="ascii")
