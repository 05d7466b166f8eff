"""The programs that are compared. Rule: how each is called and says what it counted; nothing is timed."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FLOOR_SOURCE = Path(__file__).with_name("floor.c")
NFSTREAM_METER = Path(__file__).with_name("nfmeter.py")
READER_SCRIPT = Path(__file__).with_name("reader.py")
PRODUCT = "rke2-flows"
THREADS = {number: f"{PRODUCT} --threads {number}" for number in (1, 2)}
READER = "reader alone"
READER_ALL = "reader alone, all cores"
GIB = 1 << 30
MEMORY_LIMIT = 16 * GIB  # of address space: a flood that is not bounded shall not take the machine with it


@dataclass(frozen=True)
class Place:
    """Where one run reads and writes: capture, empty folder, loopback UDP port that swallows exports.

    ``nfstream``: a Python that has NFStream, empty for none.
    """

    capture: Path
    folder: Path
    port: int
    nfstream: str = ""


@dataclass(frozen=True)
class Counted:
    """What a tool says it saw, None where it does not. ``tuples``: one-way flows, as it tells them apart."""

    frames: int | None = None
    ip_bytes: int | None = None
    tuples: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Tool:
    """One competitor. ``role``: `product`, `peer` (a user could take it instead) or `context`.

    ``command`` gives its arguments, or None where the program is not available here; ``counted`` reads its
    output (text) and what it left in the folder.
    """

    role: str
    command: Callable[[Place], list[str] | None]
    counted: Callable[[Place, str], Counted]


def program(name: str) -> str | None:
    """Path of a program: beside this interpreter (the environment's console scripts), then on PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _command(name: str, *arguments: str) -> list[str] | None:
    path = program(name)
    return [path, *arguments] if path else None


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def _product(place: Place, *options: str) -> list[str] | None:
    output = str(place.folder / "x.parquet")
    return _command(PRODUCT, "flows", str(place.capture), "-o", output, *options)


@cache
def has_threads() -> bool:
    """Whether the product can be told how many threads it may use."""
    asked = _command(PRODUCT, "flows", "--help")
    if asked is None:
        return False
    told = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True)
    return "--threads" in told.stdout


def _with_threads(number: int) -> Callable[[Place], list[str] | None]:
    def command(place: Place) -> list[str] | None:
        return _product(place, "--threads", str(number)) if has_threads() else None

    return command


def _limited(place: Place) -> list[str] | None:
    command = _product(place)
    return ["prlimit", f"--as={MEMORY_LIMIT}", *command] if command else None


def _reader(place: Place) -> list[str]:
    return [sys.executable, "-P", str(READER_SCRIPT), str(place.capture)]


def _reader_all(place: Place) -> list[str]:
    return [*_reader(place), "all"]


def _reader_counted(_: Place, output: str) -> Counted:
    said = json.loads(output)
    return Counted(said["frames"], said["ip_bytes"], said["tuples"])


def _product_counted(place: Place, output: str) -> Counted:
    import pandas as pd

    table = pd.read_parquet(place.folder / "x.parquet")
    outer = table[table["tunnel"].fillna("") == ""]
    both = [outer["packets_out"], outer["packets_in"]]
    folded = _number(r"\b(\d+) overflow", output)
    inside = f"and {len(table) - len(outer)} flows inside tunnels"
    return Counted(
        frames=int(sum(side.sum() for side in both)),
        ip_bytes=int(outer["bytes_out"].sum() + outer["bytes_in"].sum()),
        tuples=int(sum((side > 0).sum() for side in both)),
        note=f"{inside}; {folded} frames had no room" if folded else inside,
    )


def _nfpcapd(place: Place) -> list[str] | None:
    return _command("nfpcapd", "-r", str(place.capture), "-l", str(place.folder))


def _nfpcapd_counted(place: Place, _: str) -> Counted:
    reader = program("nfdump")
    if reader is None:
        return Counted(note="no nfdump to ask")
    asked = subprocess.run(
        [reader, "-R", str(place.folder), "-I"], stdout=subprocess.PIPE, text=True, check=True
    )
    frames, size, flows = (
        _number(rf"(?m)^{word}: (\d+)", asked.stdout) for word in ("Packets", "Bytes", "Flows")
    )
    return Counted(frames, size, flows)


def _softflowd(place: Place) -> list[str] | None:
    return _command("softflowd", "-r", str(place.capture), "-n", f"127.0.0.1:{place.port}")


def _softflowd_whole(place: Place) -> list[str] | None:
    plain = _softflowd(place)
    return [*plain, "-v", "9", "-m", "1000000"] if plain else None


def _softflowd_counted(_: Place, output: str) -> Counted:
    octets = re.findall(r"(?m)^\s+\S+ \(\d+\):\s+(\d+)", output)
    ignored = _number(r"Ignored packets: (\d+)", output)
    forced = _number(r"Flows expired: \d+ \((\d+) forced\)", output)
    return Counted(
        frames=_number(r"Packets processed: (\d+)", output),
        ip_bytes=sum(map(int, octets)) if octets else None,
        tuples=_number(r"Flows exported: \d+ \((\d+) records\)", output),
        note=f"ignored {ignored} packets, cut {forced} flows short",
    )


def _argus(place: Place) -> list[str] | None:
    # -X: no file in /etc changes what is compared
    output = str(place.folder / "argus.out")
    return _command("argus", "-X", "-r", str(place.capture), "-w", output)


def _argus_counted(place: Place, _: str) -> Counted:
    """Its records hold both ways, with lengths of frames: no IP bytes; counted by ra, one line each."""
    reader = program("ra")
    if reader is None:
        return Counted(note="no ra to ask")
    arguments = [
        "-X",
        "-r",
        str(place.folder / "argus.out"),
        "-n",
        "-c,",
        "-L0",
        "-s",
        "proto",
        "spkts",
        "dpkts",
    ]
    command = [reader, *arguments, "-", "ip", "or", "ipv6"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as asked:
        assert asked.stdout is not None
        rows = [line.rstrip("\n").split(",") for line in asked.stdout]
    counts = [(int(out or 0), int(back or 0)) for _, out, back in rows if out.isdigit()]
    return Counted(
        frames=sum(map(sum, counts)),
        tuples=sum((out > 0) + (back > 0) for out, back in counts),
        note="records by its status interval: a long flow has several",
    )


def _nfstream(place: Place) -> list[str] | None:
    return [place.nfstream, str(NFSTREAM_METER), str(place.capture)] if place.nfstream else None


def _nfstream_counted(_: Place, output: str) -> Counted:
    said = json.loads(output.splitlines()[-1])
    return Counted(said["frames"], said["ip_bytes"], said["tuples"])


def _tshark(place: Place) -> list[str] | None:
    return _command("tshark", "-n", "-q", "-z", "conv,tcp", "-r", str(place.capture))


def _tshark_counted(_: Place, output: str) -> Counted:
    return Counted(tuples=2 * output.count("<->"), note="TCP only, one line both ways")


def _floor(place: Place) -> list[str] | None:
    """The floor, compiled beside the capture on first use."""
    binary, compiler = place.capture.parent / "floor", program("cc")
    if not binary.exists() and compiler is None:
        return None
    if not binary.exists():
        subprocess.run([str(compiler), "-O3", str(FLOOR_SOURCE), "-o", str(binary)], check=True)
    return [str(binary), str(place.capture)]


def _floor_counted(_: Place, output: str) -> Counted:
    said = json.loads(output)
    return Counted(said["frames"], said["ip_bytes"], said["tuples"], "its peak is the mapped file")


def _read(place: Place) -> list[str] | None:
    return _command("dd", f"if={place.capture}", "of=/dev/null", "bs=1M")


def _unpacked(name: str) -> Callable[[Place], list[str] | None]:
    """zcat and the like, to /dev/null and not to the log."""

    def command(place: Place) -> list[str] | None:
        path = program(name)
        return ["sh", "-c", 'exec "$0" "$1" >/dev/null', path, str(place.capture)] if path else None

    return command


# softflowd as it comes knows no IPv6 (NetFlow 5) and 8192 flows at a time; NetFlow 9 and more room mend both.
TOOLS: dict[str, Tool] = {
    PRODUCT: Tool("product", _product, _product_counted),
    **{name: Tool("product", _with_threads(n), _product_counted) for n, name in THREADS.items()},
    "rke2-flows in 16 GiB": Tool("product", _limited, _product_counted),
    "nfpcapd": Tool("peer", _nfpcapd, _nfpcapd_counted),
    "softflowd": Tool("peer", _softflowd, _softflowd_counted),
    "softflowd -v 9 -m 1M": Tool("peer", _softflowd_whole, _softflowd_counted),
    "argus": Tool("peer", _argus, _argus_counted),
    READER: Tool("context", _reader, _reader_counted),
    READER_ALL: Tool("context", _reader_all, _reader_counted),
    "floor": Tool("context", _floor, _floor_counted),
    "read (dd)": Tool("context", _read, lambda *_: Counted(note="reads the file and throws it away")),
    "tshark conv,tcp": Tool("context", _tshark, _tshark_counted),
    "NFStream": Tool("peer", _nfstream, _nfstream_counted),
    "zcat": Tool("context", _unpacked("zcat"), lambda *_: Counted(note="to /dev/null")),
    "zstdcat": Tool("context", _unpacked("zstdcat"), lambda *_: Counted(note="to /dev/null")),
}


@contextmanager
def sink() -> Iterator[int]:
    """A loopback UDP port that nobody reads: the kernel throws away what does not fit its buffer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])
