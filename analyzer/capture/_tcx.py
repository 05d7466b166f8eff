"""Programs on tcx (Linux 6.6), and what the kernel says of programs. Rule: bpf(2) alone; knows no filter, no
netlink.

A tcx link is a descriptor. The program is off the interface once its last copy is closed, and so when its
process ends, whatever ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct

BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
# linux/bpf.h: enum bpf_cmd; the flag that puts a program before all others
BPF_PROG_GET_FD_BY_ID, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_QUERY = 13, 15, 16
BPF_LINK_CREATE, BPF_LINK_DETACH = 28, 34
BPF_F_BEFORE = 1 << 3
BPF_TCX_INGRESS, BPF_TCX_EGRESS = 46, 47
PROGRAMS = 64  # kernel/bpf/mprog.c: no hook takes more

_libc = ctypes.CDLL(None, use_errno=True)


def programs(index: int, hook: int) -> list[tuple[int, int]] | None:
    """(program id, link id) on an interface's hook, in the order in which they run.

    None where this kernel has no tcx, or there is no interface or no right to ask.
    """
    ids, links = ((ctypes.c_uint32 * PROGRAMS)() for _ in range(2))
    # target_ifindex, attach_type, query_flags, attach_flags; prog_ids; count; prog_attach_flags, link_ids
    question = _fields(
        "=IIIIQIIQQ", index, hook, 0, 0, ctypes.addressof(ids), PROGRAMS, 0, 0, ctypes.addressof(links)
    )
    try:
        _bpf(BPF_PROG_QUERY, question)
    except OSError:
        return None
    count = int(struct.unpack_from("=I", question, 24)[0])
    return list(zip(ids[:count], links[:count], strict=True))


def attach(index: int, hook: int, program: int) -> int:
    """Put a program before all others of the hook; the link's descriptor. OSError as the kernel says."""
    # prog_fd, target_ifindex, attach_type, flags
    return _bpf(BPF_LINK_CREATE, _fields("=iIII", program, index, hook, BPF_F_BEFORE))


def detach(link: int) -> None:
    """Take the program off, if the interface is still there, and close the link.

    To close it alone would do, a little later: the kernel may leave that to a worker of its own.
    """
    try:
        with contextlib.suppress(OSError):
            _bpf(BPF_LINK_DETACH, _fields("=I", link))
    finally:
        os.close(link)


def link_id(link: int) -> int:
    """The link's id. OSError as the kernel says."""
    return int(struct.unpack_from("=I", _information(link, 24), 4)[0])


def program_name(program: int) -> str:
    """What a program is called; its id where the kernel does not say. Printable ASCII."""
    return printable(_program(program)[64:]) or str(program)


def program_tag(program: int) -> bytes:
    """What the kernel makes of a program's instructions; empty where it does not say."""
    return _program(program)[8:16]


def not_run(descriptor: int) -> int:
    """How often the kernel let an event go by, since another program ran on that CPU: a tracepoint's does not
    interrupt one, nor work on a map. 0 before Linux 6.7, which counts it.
    """
    return int(struct.unpack_from("=Q", _information(descriptor, 216), 208)[0])


def _program(program: int) -> bytes:
    """The beginning of a program's struct bpf_prog_info; empty where the kernel does not say."""
    try:
        descriptor = _bpf(BPF_PROG_GET_FD_BY_ID, _fields("=I", program))
    except OSError:
        return b""
    try:
        return _information(descriptor, 80)
    finally:
        os.close(descriptor)


def printable(name: bytes) -> str:
    """A C string that another program chose, as printable ASCII."""
    return name.split(b"\0", 1)[0].decode("latin-1").encode("unicode_escape").decode("ascii")


def _information(descriptor: int, size: int) -> bytes:
    """The first ``size`` bytes of a program's struct bpf_prog_info or a link's struct bpf_link_info."""
    answer = ctypes.create_string_buffer(size)
    _bpf(BPF_OBJ_GET_INFO_BY_FD, _fields("=IIQ", descriptor, size, ctypes.addressof(answer)))
    return answer.raw


def _fields(layout: str, *values: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack(layout, *values), 64)


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """bpf(2), which may write into ``attributes``. OSError as the kernel says."""
    number = BPF_SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result = int(_libc.syscall(number, command, ctypes.byref(attributes), ctypes.sizeof(attributes)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
