"""Whether live capture can run here. Rule: asks the machine, changes nothing; one line for each thing asked.

Each check is a function that says how things are; the table below says which of them live capture needs.
"""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyzer.capture import _program
from analyzer.errors import LiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from analyzer.cluster import Cluster


@dataclass(frozen=True)
class Check:
    """What was asked, how it is, and what to do where it is not well. `state`: `ok`, `missing` (live capture
    cannot run), `limited` (it runs, and tells less), `note`.
    """

    name: str
    state: str
    found: str
    next_step: str = ""


Answer = tuple[bool, str, str]


def _kernel() -> Answer:
    good = _program.kernel_version() >= _program.LEAST_KERNEL
    return good, platform.release(), "live capture needs 5.8 or later; capture with tcpdump here"


def _rights() -> Answer:
    root = os.geteuid() == 0
    return root, "root" if root else f"user {os.geteuid()}", "run it with sudo"


def _bcc() -> Answer:
    try:
        bcc = _program.import_bcc()
    except LiveError as error:
        return False, error.what, error.next_step
    return True, f"BCC {getattr(bcc, '__version__', 'of unknown version')}", ""


def _headers() -> Answer:
    folder = _program.headers_folder()
    step = (
        "install your distribution's linux-headers, or run deploy/prepare-live.sh where none match the kernel"
    )
    return folder is not None, str(folder.resolve()) if folder else "none for this kernel", step


def _tracefs() -> Answer:
    folder = _program.tracing_folder()
    return folder is not None, str(folder or "not mounted"), "mount -t tracefs tracefs /sys/kernel/tracing"


def _btf() -> Answer:
    there = _program.BTF.is_file()
    step = "a kernel built with CONFIG_DEBUG_INFO_BTF says why packets are dropped"
    return there, str(_program.BTF) if there else "not published", step


#: what is asked → (how, state where it is not well)
_CHECKS: dict[str, tuple[Callable[[], Answer], str]] = {
    "kernel": (_kernel, "missing"),
    "rights": (_rights, "missing"),
    "bcc": (_bcc, "missing"),
    "headers": (_headers, "missing"),
    "tracefs": (_tracefs, "limited"),
    "BTF": (_btf, "limited"),
}


def examine(cluster: Cluster | None = None) -> Iterator[Check]:
    """Every check, in an order in which the first one that is missing is the first to mend. The eBPF program
    is compiled and loaded where all it needs is there; that takes seconds.
    """
    able = True
    for name, (ask, otherwise) in _CHECKS.items():
        good, found, step = ask()
        able &= good or otherwise != "missing"
        yield Check(name, "ok" if good else otherwise, found, "" if good else step)
    yield _loads() if able else Check("program", "note", "not tried: something that it needs is missing")
    yield _attaches()
    yield from _interfaces(cluster)
    yield from _leftovers()


def _loads() -> Check:
    try:
        with _program.Program(flows=1024) as program:
            program.functions(_program.ETHERNET)
            missing = program.features.missing
    except LiveError as error:
        return Check("program", "missing", error.what, error.next_step)
    return Check("program", "limited" if missing else "ok", "; ".join(("the kernel takes it", *missing)))


def _attaches() -> Check:
    """Asked of the first interface there is; the answer is the kernel's, the same for each."""
    from analyzer.capture import _tc  # noqa: PLC0415  netlink, Linux only

    if os.geteuid() != 0:
        return Check("attaching", "note", "not asked: only root may", "run it with sudo")
    if _tc.has_tcx(socket.if_nameindex()[0][0]):
        return Check("attaching", "ok", "by tcx: no packet is lost, and nothing stays when it is killed")
    return Check(
        "attaching",
        "note",
        "by filters on a clsact qdisc: up to two packets are lost as it comes and as it goes",
        "tcx (Linux 6.6 and later) loses none; nor does a clsact qdisc that is there already",
    )


def _interfaces(cluster: Cluster | None) -> Iterator[Check]:
    from analyzer.capture import _tc  # noqa: PLC0415  netlink, Linux only

    owners = {a: node.name for node in (cluster.nodes if cluster else ()) for a in node.addresses}
    local = _tc.local_addresses()
    here = {a for addresses in local.values() for a in addresses}
    uplinks = _tc.uplinks(here & set(owners))
    for name in uplinks:
        yield _interface(name, local.get(name, []), owners)
    if not uplinks:
        yield Check("interfaces", "note", "none leads to other nodes", "name them with -i")
    if cluster and not here & set(owners):
        yield Check(
            "cluster",
            "note",
            "no node of the cluster file has an address of this machine",
            "check the addresses",
        )


def _interface(name: str, addresses: list[str], owners: dict[str, str]) -> Check:
    from analyzer.capture import _tc  # noqa: PLC0415  netlink, Linux only

    nodes = dict.fromkeys(owners[a] for a in addresses if a in owners)
    whose = f" ({', '.join(nodes)})" if nodes else ""
    found = f"{', '.join(addresses) or 'no address'}{whose}"
    try:
        _tc.link_type(name)
    except LiveError as error:
        return Check(f"interface {name}", "limited", f"{found}: {error.what}", error.next_step)
    return Check(f"interface {name}", "ok", found)


def _leftovers() -> Iterator[Check]:
    from analyzer.capture import _tc  # noqa: PLC0415  netlink, Linux only

    found = _tc.leftovers()
    for left in found:
        yield Check(
            f"leftover {left.interface}",
            "note",
            f"{left.direction} filter {left.name} of a run that was killed",
            "rke2-flows doctor --clean",
        )
    if not found:
        yield Check("leftovers", "ok", "none")
