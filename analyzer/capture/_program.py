"""The eBPF program in the kernel. Rule: compiles bpf/live.c, reads and writes its maps; knows no clock but
the kernel's, no file that it writes, no interface.

Rows come out of the kernel as arrays: two system calls for a table, whatever its length.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import sys
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analyzer.capture import _btf, _tcx
from analyzer.capture._judging import CLASSES, PLACE, PLACE_KEY, PORT_CLASS, RANGE_KEY
from analyzer.errors import LiveError
from analyzer.rows import COUNTERS, KEY, KEY_BYTES, ROW
from analyzer.spec import ROLE_MASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from analyzer.capture._judging import Judging

Records = NDArray[np.void]

#: the ring buffer and batched reading of maps (kernel 5.6, 5.8)
LEAST_KERNEL = (5, 8)
FLOWS = 131072
#: DROP_ROWS of bpf/live.c: rows that fit a table of drops
DROP_ROWS = 32768
ETHERNET, RAW = 1, 101
#: link type (https://www.tcpdump.org/linktypes.html) → what live.c's programs for it are called
LINK_NAMES = {ETHERNET: "ethernet", RAW: "raw"}
#: which of live.c's `watchers` a program is (enum watcher)
WATCHERS = {"ethernet": 0, "raw": 1}
PARSE_RESULTS = ("flow", "not_ip", "truncated", "malformed", "unsupported")
#: struct ledger of bpf/live.c, and the field of Coverage that each count is; None is no count of Coverage
LEDGER = {
    "frames": "frames",
    **dict(zip((f"results_{name}" for name in PARSE_RESULTS), PARSE_RESULTS, strict=True)),
    "fragment": "fragment",
    "overflow": "overflow",
    **{f"inner_{name}": f"inner_{name}" if 0 < n < 4 else None for n, name in enumerate(PARSE_RESULTS)},
    "inner_fragment": "inner_fragment",
    "inner_overflow": "inner_overflow",
    "bytes": None,
    "other_bytes": "other_bytes",
    "rows": None,
    "alerts": None,
    "alerts_lost": "alerts_lost",
    "drops_lost": "drops_lost",
    "drop_rows": None,
}
OWNER_KEY = np.dtype(
    [("src", "V16"), ("dst", "V16"), ("src_port", "u2"), ("dst_port", "u2"), ("reserved", "u4")]
)
OWNER = np.dtype([("cgroup", "u8"), ("pid", "u4"), ("reserved", "u4"), ("process", "S16")])
DROP_KEY = np.dtype(
    [
        ("src", "V16"), ("dst", "V16"), ("src_port", "u2"), ("dst_port", "u2"), ("reason", "u4"),
        ("protocol", "u1"), ("reserved", "V7"), ("cpu", "u8"),
    ]
)  # fmt: skip
DROP = np.dtype([("packets", "u8"), ("start", "u8"), ("end", "u8")])
ALERT_BYTES = 128
ALERT = np.dtype(
    [
        ("time", "u8"), ("key", KEY), ("owner", OWNER), ("length", "u4"), ("captured", "u4"), ("port", "u2"),
        ("verdict", "u1"), ("reversed", "u1"), ("link", "u1"), ("reserved", "V3"), ("bytes", "V128"),
    ]
)  # fmt: skip
_LAYOUTS: dict[str, tuple[int, int]] = {
    "flows_0": (KEY_BYTES, COUNTERS.itemsize),
    "flows_1": (KEY_BYTES, COUNTERS.itemsize),
    "ledgers": (4, 8 * len(LEDGER)),
    "owners": (OWNER_KEY.itemsize, OWNER.itemsize),
    "drops_0": (DROP_KEY.itemsize, DROP.itemsize),
    "drops_1": (DROP_KEY.itemsize, DROP.itemsize),
    "members": (PLACE_KEY.itemsize, PLACE.itemsize),
    "ranges": (RANGE_KEY.itemsize, 4),
    "port_classes": (4, PORT_CLASS.itemsize),
    "pairs_allowed": (4, 4),
    "configs": (4, 16),
    "watchers": (4, 4),
}
_OFFSETS = {
    "sk_buff": ("head", "tail", "network_header", "dev", "sk"),
    "net_device": ("nd_net",),
    "sock_common": ("skc_net",),
    "net": ("ns.inum",),
}
_MACROS = {
    "OFFSET_SKB_HEAD": "sk_buff.head",
    "OFFSET_SKB_TAIL": "sk_buff.tail",
    "OFFSET_SKB_NETWORK_HEADER": "sk_buff.network_header",
    "OFFSET_SKB_DEV": "sk_buff.dev",
    "OFFSET_SKB_SK": "sk_buff.sk",
    "OFFSET_DEVICE_NET": "net_device.nd_net",
    "OFFSET_SOCK_NET": "sock_common.skc_net",
    "OFFSET_NET_INUM": "net.ns.inum",
}
_TASK_OFFSETS = {"task_struct": ("group_leader", "comm")}
_TASK_MACROS = {"OFFSET_TASK_LEADER": "task_struct.group_leader", "OFFSET_TASK_COMM": "task_struct.comm"}
BTF = Path("/sys/kernel/btf/vmlinux")
TRACING = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_GLOBAL = 1  # linux/membarrier.h
_PREPARE = "run deploy/prepare-live.sh, or `rke2-flows doctor` for all that is missing"


def source_folder() -> Path:
    """Where live.c and the headers that it shares with the native reader are: beside the package or in it."""
    package = Path(__file__).resolve().parent.parent
    return next(f for f in (package / "bpf", package.parent / "bpf") if (f / "live.c").is_file())


def kernel_version(release: str = "") -> tuple[int, int]:
    """Major and minor number of the running kernel, or of a release given."""
    found = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def tracing_folder() -> Path | None:
    """Where tracefs is mounted; None where it is not."""
    return next(
        (folder for folder in TRACING if os.path.isdir(folder / "events")), None
    )  # a Path would raise


def headers_folder() -> Path | None:
    """The kernel headers as BCC looks for them; None where it would find none."""
    build = Path("/lib/modules", platform.release(), "build")
    inside = Path("/sys/kernel/kheaders.tar.xz")
    return build if (build / "include").is_dir() else inside if inside.exists() else None


def import_bcc() -> Any:
    """BCC's Python module. Raises LiveError where the distribution's package is not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BCC's own
            import bcc  # noqa: PLC0415

            bcc.BPF  # noqa: B018  what PyPI calls bcc has none
    except (ImportError, AttributeError, OSError) as error:
        raise LiveError(
            "BCC is not installed for this Python",
            next_step="install your distribution's python3-bpfcc, and make the environment with "
            "--system-site-packages by the system's python3",
        ) from error
    return bcc


def check_machine() -> None:
    """Raises LiveError for the first thing without which no program can be loaded here."""
    if os.geteuid() != 0:
        raise LiveError("live capture needs root", next_step="run it with sudo")
    if kernel_version() < LEAST_KERNEL:
        raise LiveError(
            f"kernel {platform.release()} is too old: it has no eBPF ring buffer",
            next_step="live capture needs 5.8; capture with tcpdump here and `check` the file",
        )
    import_bcc()
    if headers_folder() is None:
        raise LiveError(
            f"there are no kernel headers at /lib/modules/{platform.release()}/build", next_step=_PREPARE
        )


@dataclass(frozen=True)
class Features:
    """What the running kernel can tell beside packets. `macros`: for the compiler. `missing`: in words."""

    macros: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    reasons: dict[int, str] = field(default_factory=dict)


def _macros(wanted: Mapping[str, Sequence[str]], names: dict[str, str]) -> tuple[str, ...]:
    """Offsets of the running kernel's structs, for the compiler. LiveError where one is not known."""
    offsets = _btf.offsets(BTF, wanted)
    return tuple(f"-D{macro}={offsets[name]}" for macro, name in names.items())


def features() -> Features:
    """What can be known here of who connects and who drops."""
    tracing = tracing_folder()
    if tracing is None:
        return Features(
            missing=("which process opens a connection, and why packets are dropped: no tracefs",)
        )
    reasons = _btf.drop_reasons(tracing / "events" / "skb" / "kfree_skb" / "format")
    who: tuple[str, ...] = ("-DOWNERS_SEEN",)
    with suppress(LiveError):  # without them a thread's name stands for its process'
        who += _macros(_TASK_OFFSETS, _TASK_MACROS)
    if not reasons:
        return Features(who, ("why packets are dropped: this kernel gives no reason (5.17 and later do)",))
    try:
        macros = _macros(_OFFSETS, _MACROS)
    except LiveError as error:
        return Features(who, (f"why packets are dropped: {error.what}",))
    namespace = Path("/proc/thread-self/ns/net").stat().st_ino
    return Features((*who, "-DDROPS", f"-DNETWORK_NAMESPACE={namespace}u", *macros), (), reasons)


def _in_memory() -> IO[str]:
    """A file on no disk: in a container there may be none that can be written."""
    return os.fdopen(os.memfd_create("said"), "w+", encoding="utf-8", errors="replace")


@contextmanager
def _stderr_to(sink: Any) -> Iterator[None]:
    """BCC and clang write to descriptor 2, whatever Python thinks of it."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class Program:
    """live.c, loaded. A context manager: leaving it detaches the tracepoints and lets the maps go.

    `flows`: rows that fit a table. `links`: types of the links to watch, as of LINK_NAMES.

    Raises LiveError where the machine cannot do it.
    """

    def __init__(self, flows: int = FLOWS, links: Iterable[int] = (ETHERNET,)) -> None:
        check_machine()
        self.flows = flows
        self._links = sorted({LINK_NAMES[link] for link in links})
        self.features = features()
        bcc = import_bcc()
        self._lib = bcc.libbcc.lib
        self._bpf = self._compiled(bcc.BPF)
        try:
            self._sched_cls, self._tracepoint = bcc.BPF.SCHED_CLS, bcc.BPF.TRACEPOINT
            self._maps = {
                name: self._bpf[name.encode()].map_fd
                for name in _LAYOUTS
                if self.has_drops or not name.startswith("drops_")
            }
            self._check_layouts()
        except BaseException:
            self.close()
            raise
        cpus = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
        self._cpus = int(re.split(r"[-,]", cpus.strip())[-1]) + 1
        self._keys = np.zeros((flows, KEY_BYTES), np.uint8)
        self._values = np.zeros((flows, COUNTERS.itemsize), np.uint8)
        self._generation = 0
        self._judging = 0
        self._boundary = 0
        self._not_run = 0
        self._places: tuple[Records, Records] = np.zeros(0, PLACE_KEY), np.zeros(0, RANGE_KEY)

    @property
    def has_drops(self) -> bool:
        return "-DDROPS" in self.features.macros

    def _compiled(self, bpf: Any) -> Any:
        flags = [f"-I{source_folder()}", "-w", f"-DFLOWS={self.flows}"]
        flags += [f"-D{name.upper()}_LINKS" for name in self._links] + list(self.features.macros)
        with _in_memory() as said:
            try:
                with warnings.catch_warnings(), _stderr_to(said):
                    warnings.simplefilter("ignore")  # BCC's own
                    return bpf(src_file=os.fsencode(source_folder() / "live.c"), cflags=flags)
            except Exception as error:
                said.seek(0)
                raise LiveError(
                    f"the eBPF program cannot be compiled or loaded: {_last_words(said.read()) or error}",
                    next_step=_PREPARE,
                ) from error

    def _check_layouts(self) -> None:
        """The sizes that the compiler used; the offsets are asserted in live.c."""
        for name in self._maps:
            table = self._bpf[name.encode()]
            leaf = table.sLeaf if hasattr(table, "sLeaf") else table.Leaf
            found = ctypes.sizeof(table.Key), ctypes.sizeof(leaf)
            if found != _LAYOUTS[name]:
                raise AssertionError(f"bpf/live.c's map {name} has sizes {found}, not {_LAYOUTS[name]}")

    def bytecode(self, name: str) -> bytes:
        """The instructions of one of live.c's programs, as loaded (linux/bpf.h, struct bpf_insn)."""
        return bytes(self._bpf.dump_func(name.encode()))

    def close(self) -> None:
        """Lets all of it go; a second call does nothing."""
        with _in_memory() as sink, _stderr_to(sink):
            self._bpf.cleanup()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def functions(self, link: int) -> tuple[int, int]:
        """The descriptors of the tc programs for what comes in and what goes out of a link."""
        name = LINK_NAMES[link]
        self._update("watchers", WATCHERS[name], self._function(name).to_bytes(4, sys.byteorder))
        return self._function(f"{name}_in"), self._function(f"{name}_out")

    def _function(self, name: str) -> int:
        with _in_memory() as said:
            try:
                with _stderr_to(said):
                    return int(self._bpf.load_func(name.encode(), self._sched_cls).fd)
            except Exception as error:
                said.seek(0)
                raise LiveError(
                    f"the kernel refused the eBPF program {name}: {_last_words(said.read()) or error}",
                    next_step="report it with the output of `uname -r` and `rke2-flows doctor`",
                ) from error

    # ---- what it does ----

    def set_boundary(self, time: int, slot: int) -> None:
        """Table `slot` counts until `time` (ns of CLOCK_MONOTONIC), the other one from then on."""
        self._boundary = (time & ~1) | slot
        self._configure()

    def _configure(self) -> None:
        value = (
            self._boundary.to_bytes(8, sys.byteorder)
            + np.array([self._generation, self._judging], np.uint32).tobytes()
        )
        self._update("configs", 0, value)

    def judge_by(self, tables: Judging) -> None:
        """Loads verdict tables beside the ones in use and switches over: no packet is judged by half of them.

        Raises LiveError where they do not fit; then those in use stay.
        """
        half = (self._generation + 1) & 1
        places = tables.place_keys.copy(), tables.range_keys.copy()
        for keys in places:
            keys["generation"] = half
        try:
            self._load(half, *places, tables)
        except LiveError:
            self._forget(places)
            raise
        before, self._places = self._places, places
        self._generation, self._judging = self._generation + 1, 1
        self._configure()
        self.wait_for_readers()
        self._forget(before)

    def _load(self, half: int, members: Records, ranges: Records, tables: Judging) -> None:
        self._write("members", members, tables.places)
        for key in ranges:
            self._update("ranges", key.tobytes(), np.ones(1, np.uint32).tobytes())
        for name, values, room in (
            ("port_classes", tables.port_classes, len(tables.port_classes)),
            ("pairs_allowed", tables.allowed, CLASSES * ROLE_MASKS * ROLE_MASKS),
        ):
            self._write(name, np.arange(half * room, half * room + len(values), dtype=np.uint32), values)

    def _forget(self, places: tuple[Records, Records]) -> None:
        for name, keys in zip(("members", "ranges"), places, strict=True):
            for key in keys:
                self._lib.bpf_delete_elem(self._maps[name], key.tobytes())

    @staticmethod
    def wait_for_readers() -> None:
        """Returns when every program that ran at the call has ended: membarrier(2) waits for an RCU grace
        period.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        call = _MEMBARRIER.get(platform.machine())
        if call is None or libc.syscall(call, _MEMBARRIER_GLOBAL, 0, 0) != 0:
            import time  # noqa: PLC0415

            time.sleep(0.05)  # nohz_full machines refuse the call; a program runs for less than a microsecond

    # ---- what it saw ----

    def take(self, slot: int) -> tuple[Records, dict[str, int]]:
        """Empties a table that is at rest. Returns its rows, dtype ROW with the CPU's number as `interval`
        and times of CLOCK_MONOTONIC; and its ledger, by the names of LEDGER.
        """
        count = self._drain(f"flows_{slot}", self._keys, self._values)
        rows = np.empty((count, ROW.itemsize), np.uint8)
        rows[:, :KEY_BYTES] = self._keys[:count]
        rows[:, KEY_BYTES:] = self._values[:count]
        ledger = self.ledger(slot)
        ledger["drops_lost"] += self._drops_let_go()
        self._update("ledgers", slot, bytes(8 * len(LEDGER) * self._cpus))
        return rows.reshape(-1).view(ROW), ledger

    def _drops_let_go(self) -> int:
        """Since the last call; of any network namespace, since the program that would tell did not run."""
        if not self.has_drops:
            return 0
        tracing = self._bpf.load_func(b"tracepoint__skb__kfree_skb", self._tracepoint)
        before, self._not_run = self._not_run, _tcx.not_run(tracing.fd)
        return self._not_run - before

    def ledger(self, slot: int) -> dict[str, int]:
        """The counts of one table's ledger, all CPUs together."""
        value = np.zeros((self._cpus, len(LEDGER)), np.uint64)
        self._lookup("ledgers", slot, value)
        return dict(zip(LEDGER, value.sum(axis=0).tolist(), strict=True))

    def take_owners(self) -> tuple[Records, Records]:
        """Who opened connections since the last call: keys, dtype OWNER_KEY, and values, dtype OWNER."""
        return self._take("owners", OWNER_KEY, OWNER, 65536)

    def take_drops(self, slot: int) -> tuple[Records, Records]:
        """Empties a table that is at rest: what the kernel dropped, keys, dtype DROP_KEY, and values, dtype
        DROP. What found no room there is `drops_lost` in the ledger.
        """
        if not self.has_drops:
            return np.zeros(0, DROP_KEY), np.zeros(0, DROP)
        return self._take(f"drops_{slot}", DROP_KEY, DROP, DROP_ROWS)

    def _take(
        self, name: str, key: np.dtype[np.void], value: np.dtype[np.void], room: int
    ) -> tuple[Records, Records]:
        keys, values = np.zeros(room, key), np.zeros(room, value)
        count = self._drain(name, keys, values)
        return keys[:count], values[:count]

    def forget_fragments(self) -> None:
        """No later fragment finds its first one any more."""
        self._bpf[b"fragments"].clear()

    def forget_told(self) -> None:
        """Nothing was told before, and nobody heard before another."""
        self._bpf[b"alerted"].clear()
        self._bpf[b"heard"].clear()

    def on_alert(self, tell: Callable[[Records], None]) -> None:
        """`tell` gets each alert, dtype ALERT and shape (1,), from :meth:`poll_alerts`."""

        def called(_: object, data: int, size: int) -> None:
            tell(np.frombuffer(ctypes.string_at(data, size), ALERT, 1))

        self._bpf[b"alerts"].open_ring_buffer(called)

    def poll_alerts(self, milliseconds: int) -> None:
        """Waits for alerts at most so long, and hands them on."""
        self._bpf.ring_buffer_poll(milliseconds)

    # ---- maps ----

    def _drain(self, name: str, keys: NDArray[Any], values: NDArray[Any]) -> int:
        count = ctypes.c_uint32(len(keys))
        cursor = ctypes.c_uint32(0)
        ctypes.set_errno(0)
        failed = self._lib.bpf_lookup_and_delete_batch(
            self._maps[name],
            None,
            ctypes.byref(cursor),
            keys.ctypes.data,
            values.ctypes.data,
            ctypes.byref(count),
        )
        if failed and ctypes.get_errno() != errno.ENOENT:  # ENOENT: the end of the map was reached
            raise LiveError(f"the kernel's map {name} cannot be read: {os.strerror(ctypes.get_errno())}")
        return count.value

    def _write(self, name: str, keys: NDArray[Any], values: NDArray[Any]) -> None:
        count = ctypes.c_uint32(len(keys))
        keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
        done = self._lib.bpf_update_batch(
            self._maps[name], keys.ctypes.data, values.ctypes.data, ctypes.byref(count)
        )
        if done:
            raise LiveError(f"{len(keys)} entries do not fit the kernel's map {name}")

    def _update(self, name: str, key: int | bytes, value: bytes) -> None:
        packed = key if isinstance(key, bytes) else key.to_bytes(4, sys.byteorder)
        if self._lib.bpf_update_elem(self._maps[name], packed, value, 0):
            raise LiveError(f"the kernel's map {name} cannot be written")

    def _lookup(self, name: str, key: int, value: NDArray[Any]) -> None:
        self._lib.bpf_lookup_elem(self._maps[name], key.to_bytes(4, sys.byteorder), value.ctypes.data)


def _last_words(said: str) -> str:
    """What of a compiler's or verifier's output tells the fault."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    verdicts = [before for before, line in pairwise(lines) if line.startswith("processed ")]
    return (errors or verdicts or lines[-1:] or [""])[0][:300]
