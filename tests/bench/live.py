"""What a live capture costs. Rule: runs collectors and other programs on one wire and reads the kernel's
clocks; knows no part, no row and no limit.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import signal
import statistics
import struct
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import live
from packets import TYPE_IPV4, UDP, ether, ipv4, udp, vxlan

from bench.provenance import machine
from lab.processes import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.processes import Child

BPF_PROG_TEST_RUN, BPF_ENABLE_STATS, BPF_STATS_RUN_TIME = 10, 32, 0  # linux/bpf.h; statistics since 5.8
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
COST_FRAMES, COST_FLOWS = 200_000, (100, 1_000, 10_000)
ACTIVE_FLOWS, ACTIVE_RATE = 10_000, 20_000
BESIDE_FRAMES, BESIDE_FLOWS, BESIDE_RATE, BESIDE_PAYLOAD = 1_500_000, 1_000, 150_000, 400
SILENT_SECONDS = 0.5  # a count that does not move for so long is final
PRODUCT = "rke2-flows capture"


# ---- frames ----


def checked(frame: bytes) -> bytes:
    """An IPv4 frame with the header checksum that a router wants."""
    total = sum(struct.unpack(">10H", frame[14:34]))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return frame[:24] + struct.pack(">H", total ^ 0xFFFF) + frame[26:]


def _datagram(ends: tuple[str, str], ports: tuple[int, int], payload: bytes, to: str = "near") -> bytes:
    frame = ether(TYPE_IPV4, ipv4(UDP, udp(*ports, payload), *ends))
    return checked(live.to_mac(frame, live.MACS[to]))


def _client(n: int, network: str = "10.99") -> str:
    return f"{network}.{128 + (n >> 8)}.{n & 255}"


def plain_frames(count: int, payload: int = 22) -> list[bytes]:
    """UDP datagrams that the near host swallows, each of a flow of its own."""
    return [_datagram((_client(n), "10.99.0.1"), (5000, 53), bytes(payload)) for n in range(count)]


def plain_answers(count: int, payload: int = 22) -> list[bytes]:
    """The other direction of each, for the far host to swallow."""
    return [_datagram(("10.99.0.1", _client(n)), (53, 5000), bytes(payload), "far") for n in range(count)]


def vxlan_frames(count: int, payload: int = 22) -> list[bytes]:
    """VXLAN that the near host swallows, each with an inner flow and a carrier of its own."""
    frames = []
    for n in range(count):
        inner = _datagram((_client(n, "10.42"), "10.42.0.1"), (5000, 53), bytes(payload))
        frames.append(_datagram((_client(n), "10.99.0.1"), (49152 + n % 16384, 8472), vxlan(inner)))
    return frames


KINDS: dict[str, Callable[[int], list[bytes]]] = {"plain": plain_frames, "vxlan": vxlan_frames}


# ---- the kernel's clocks ----


@contextmanager
def programs_timed() -> Iterator[None]:
    """The kernel times every eBPF program for the length of the block, as by kernel.bpf_stats_enabled."""
    libc = ctypes.CDLL(None, use_errno=True)
    order = ctypes.create_string_buffer(struct.pack("=I", BPF_STATS_RUN_TIME), 4)
    descriptor = libc.syscall(BPF_SYSCALL[platform.machine()], BPF_ENABLE_STATS, order, len(order))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        yield
    finally:
        os.close(descriptor)


def program_time(pid: int, name: str) -> tuple[int, int]:
    """ns and runs of one of the eBPF programs that a process holds, since it was loaded."""
    ids: set[str] = set()
    for file in Path(f"/proc/{pid}/fdinfo").iterdir():
        ids.update(re.findall(r"^prog_id:\s*(\d+)", file.read_text(encoding="ascii"), re.MULTILINE))
    shown = (
        subprocess.run(["bpftool", "-j", "prog", "show", "id", one], capture_output=True, check=True)
        for one in ids
    )
    (found,) = (p for p in map(json.loads, (one.stdout for one in shown)) if p["name"] == name)
    return found.get("run_time_ns", 0), found.get("run_cnt", 0)


@dataclass(frozen=True)
class Cost:
    """Of one kind of frame and number of flows: `ns` a frame in the kernel, `rate` frames a second."""

    kind: str
    flows: int
    ns: float
    rate: float


def kernel_costs(
    wire: live.Wire, blaster: live.Blaster, folder: Path, flows: tuple[int, ...] = COST_FLOWS, rounds: int = 5
) -> Iterator[Cost]:
    """One collector, and short bursts past it, each kind and number of flows in turn. The wire swallows."""
    files = {(kind, n): blaster.save(make(n)) for n in flows for kind, make in KINDS.items()}
    with live.collecting(wire, folder, "--interval", "10m") as collector, programs_timed():
        for _ in range(rounds):
            for (kind, n), file in files.items():
                ns, runs = program_time(collector.pid, "ethernet_in")
                sent = blaster.send(wire.far, file, COST_FRAMES)
                ns_after, runs_after = program_time(collector.pid, "ethernet_in")
                yield Cost(kind, n, (ns_after - ns) / (runs_after - runs), sent["frames"] / sent["seconds"])


def user_share(wire: live.Wire, blaster: live.Blaster, folder: Path, seconds: float = 20.0) -> float:
    """CPU seconds a second of a collector that runs: no terminal, intervals of 10 s, ACTIVE_FLOWS flows with
    packets both ways in each. The end of an interval is in it for every 10 s.
    """
    cluster = wire.write_cluster(folder)
    frames = int(ACTIVE_RATE * (seconds + 1))
    with live.collecting(
        wire, folder / "active", "--interval", "10s", "--cluster", str(cluster)
    ) as collector:
        senders = [
            blaster.start(namespace, blaster.save(make(ACTIVE_FLOWS)), frames, ACTIVE_RATE)
            for namespace, make in ((wire.far, plain_frames), (wire.near, plain_answers))
        ]
        begin, before = time.monotonic(), live.cpu_seconds(collector.pid)
        time.sleep(seconds)
        used = live.cpu_seconds(collector.pid) - before
        share = used / (time.monotonic() - begin)
        for sender in senders:
            blaster.sent(sender)
    return share


# ---- beside other programs ----


@dataclass(frozen=True)
class Beside:
    """One program that watched BESIDE_FRAMES frames. `cpu`: its own seconds, from ready to its end.
    `kernel`: the sender's seconds, in which the kernel sends, receives, and does what the program has it do.
    `lost`: frames that it did not count.
    """

    name: str
    cpu: float
    kernel: float
    lost: int


@dataclass(frozen=True)
class _Watcher:
    """How a program is started (None: not available here), known to be ready, and what it counted."""

    command: Callable[[Path], list[str] | None]
    ready: Callable[[Child, Path], bool]
    counted: Callable[[Child, Path], int]


def _program(name: str, *words: str) -> list[str] | None:
    return [name, *words] if shutil.which(name) else None


def _dumped(child: Child, _: Path) -> int:
    child.end(signal.SIGINT)
    return int(re.findall(r"(\d+) packets captured", child.said())[-1])


def _softflowd(folder: Path) -> list[str] | None:
    control = ["-c", str(folder / "control"), "-p", str(folder / "pid")]
    return _program(
        "softflowd", "-d", "-i", live.UPLINK, "-n", "127.0.0.1:9995", "-v", "9", "-m", "100000", *control
    )


def _processed(folder: Path) -> int:
    words = ["softflowctl", "-c", str(folder / "control"), "statistics"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"Packets processed: (\d+)", said)[0])


def _exported(child: Child, folder: Path) -> int:
    before, found = -1, _processed(folder)
    while found != before:
        time.sleep(SILENT_SECONDS)
        before, found = found, _processed(folder)
    child.end()
    return found


def _collected(child: Child, folder: Path) -> int:
    child.process.terminate()
    child.process.wait(live.END_SECONDS)
    (file,) = folder.glob("parts/*.summary.json")
    return int(json.loads(file.read_text(encoding="utf-8"))["coverage"]["flow"])


def _dump(*words: str) -> _Watcher:
    return _Watcher(
        lambda folder: _program("tcpdump", "-i", live.UPLINK, "-w", str(folder / "dump.pcap"), *words),
        lambda child, _: "listening on" in child.said(),
        _dumped,
    )


WATCHERS: dict[str, _Watcher] = {
    PRODUCT: _Watcher(
        lambda folder: live.command(folder / "parts"),
        lambda child, _: "capturing on" in child.said(),
        _collected,
    ),
    "tcpdump -w": _dump(),
    "tcpdump -s 128 -w": _dump("-s", "128"),
    "softflowd -v 9": _Watcher(_softflowd, lambda _, folder: (folder / "control").exists(), _exported),
}
NOBODY = "nobody"


def _children_seconds() -> float:
    """CPU of the children that have been waited for."""
    times = os.times()
    return times.children_user + times.children_system


def _kernel_seconds(wire: live.Wire, blaster: live.Blaster, file: Path) -> float:
    """What a sender and, in its time, the kernel need for all frames."""
    before = _children_seconds()
    sent = blaster.send(wire.far, file, BESIDE_FRAMES, BESIDE_RATE)
    assert sent["frames"] == BESIDE_FRAMES
    return _children_seconds() - before


def _beside(wire: live.Wire, blaster: live.Blaster, file: Path, name: str, folder: Path) -> Beside | None:
    folder.mkdir()
    watcher = WATCHERS[name]
    command = watcher.command(folder)
    if command is None:
        return None
    child = wire.children.start(folder.name, wire.near, command)
    child.wait_for(lambda: watcher.ready(child, folder), "ready", live.READY_SECONDS)
    ready = live.cpu_seconds(child.pid)
    kernel = _kernel_seconds(wire, blaster, file)
    time.sleep(1)
    before = _children_seconds()
    counted = watcher.counted(child, folder)
    cpu = _children_seconds() - before - ready
    shutil.rmtree(folder)
    return Beside(name, cpu, kernel, BESIDE_FRAMES - counted)


def beside(wire: live.Wire, blaster: live.Blaster, folder: Path, rounds: int = 3) -> Iterator[Beside]:
    """Each program in turn alone on the near host's interface, and nobody. The wire swallows."""
    call(wire.near, ["ip", "link", "set", "lo", "up"])
    file = blaster.save(plain_frames(BESIDE_FLOWS, BESIDE_PAYLOAD))
    for number in range(rounds):
        yield Beside(NOBODY, 0.0, _kernel_seconds(wire, blaster, file), 0)
        for place, name in enumerate(WATCHERS):
            found = _beside(wire, blaster, file, name, folder / f"beside-{number}-{place}")
            if found is not None:
                yield found


# ---- all of it ----


def measure(folder: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Every number of the live benchmark; ready for JSON."""
    with live.Wire(folder) as wire:
        wire.swallow()
        blaster = live.Blaster(wire, folder)
        say("in the kernel")
        costs = list(kernel_costs(wire, blaster, folder / "costs", rounds=max(rounds, 5)))
        say("in user space")
        shares = [user_share(wire, blaster, _made(folder / f"share-{n}")) for n in range(rounds)]
        say("beside others")
        others = list(beside(wire, blaster, folder, rounds))
    say("from packet to line")
    return {
        "machine": machine(),
        "rounds": max(rounds, 5),
        "kernel": [_cost_row(costs, kind, n) for n in COST_FLOWS for kind in KINDS],
        "user_percent": [round(100 * share, 2) for share in shares],
        "beside": [
            _beside_row(others, name) for name in (NOBODY, *WATCHERS) if any(o.name == name for o in others)
        ],
        "latency": latency(folder / "latency"),
    }


def latency(folder: Path) -> dict[str, float]:
    """From packet to line, of the best run, ms; `rate` in frames a second."""
    import live_latency

    best = live_latency.latency(_made(folder))
    return {
        "offences": best.offences,
        "told": len(best.seconds),
        "rate": best.rate,
        "median": best.milliseconds(0.5),
        "p99": best.milliseconds(0.99),
    }


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _cost_row(costs: list[Cost], kind: str, flows: int) -> dict[str, Any]:
    of = [cost for cost in costs if (cost.kind, cost.flows) == (kind, flows)]
    ns = [cost.ns for cost in of]
    return {
        "kind": kind,
        "flows": flows,
        "ns_least": min(ns),
        "ns_median": statistics.median(ns),
        "rate_median": statistics.median(cost.rate for cost in of),
    }


def _beside_row(others: list[Beside], name: str) -> dict[str, Any]:
    of = [one for one in others if one.name == name]
    return {
        "name": name,
        "cpu": statistics.median(one.cpu for one in of),
        "kernel": statistics.median(one.kernel for one in of),
        "lost": [one.lost for one in of],
    }


# ---- as text ----

_TEXT = """\
{machine}; {date}. Two network namespaces and one veth pair, offloads off; the receiver forwards into a device that swallows.

What a frame costs in the kernel, by the program's own statistics (as of `kernel.bpf_stats_enabled`; reading the clock for them is
in it). UDP with 22 bytes of payload, plain or in VXLAN, where carrier and inner flow are counted; {bursts} bursts of {burst:,} frames,
as fast as the sender goes:

{kernel}

It is the same program for few flows and for many: what grows is the time for which the processor waits for memory.

In user space, with {flows:,} flows active in both directions, intervals of 10 s and no terminal, each run: {user} % of one core.

The same traffic past other programs: {frames:,} frames of {size} bytes at {rate:,} a second, {rounds} rounds, medians. `own CPU` is the
program's, from when it was ready to its end. `sender` is what the sending process needed; in its time the kernel sends, receives,
and does there what the watching program has it do.

{beside}

A program counts what it has processed: the few that softflowd lacks still wait in libpcap's buffer when it is asked, which says that it
dropped none.

From the packet of an offence to its printed line, while the wire carried {wire:,.0f} frames/s: median {median:.2f} ms, 99th percentile
{p99:.2f} ms ({told} of {offences} told).
"""  # noqa: E501  rows of a Markdown table are one line


def markdown(document: dict[str, Any], date: str) -> str:
    """The numbers of :func:`measure`, for people."""
    shares = sorted(document["user_percent"])
    latency = document["latency"]
    return _TEXT.format(
        machine=document["machine"],
        date=date,
        kernel=_table(
            ("frame", "flows", "ns, least", "ns, median", "frames/s"),
            (
                (row["kind"], f"{row['flows']:,}", f"{row['ns_least']:.0f}", f"{row['ns_median']:.0f}",
                 f"{row['rate_median']:,.0f}")
                for row in document["kernel"]
            ),
        ),
        bursts=document["rounds"],
        burst=COST_FRAMES,
        flows=ACTIVE_FLOWS,
        user=", ".join(f"{share:.1f}" for share in shares),
        frames=BESIDE_FRAMES,
        size=BESIDE_PAYLOAD + 42,
        rate=BESIDE_RATE,
        rounds=len(document["beside"][0]["lost"]),
        beside=_table(
            ("program", "own CPU, s", "sender, s", "frames lost, each round"),
            (
                (row["name"], f"{row['cpu']:.2f}", f"{row['kernel']:.2f}", _listed(row["lost"]))
                for row in document["beside"]
            ),
        ),
        told=latency["told"],
        offences=latency["offences"],
        wire=latency["rate"],
        median=latency["median"],
        p99=latency["p99"],
    )  # fmt: skip


def _listed(numbers: list[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
