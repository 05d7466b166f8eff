"""Damaged and hostile input: a result with what could be read and a note of the damage, or one line. Nothing
else.

Rule: this file makes the damage, and knows from a file's own record lengths how many frames stand before it;
what a packet means is no matter here.

What must hold of every input, whatever is in it:

- it ends in a result or in a CaptureError of one line; no other exception, no crash, no hang;
- the ledger's counts sum to its frames, and the frames that it calls flows are packets of rows;
- where bytes of a record (or of a compressed stream) are missing, `damage` says so, or the error does. A cut
  between two records leaves a whole file, and is read as one.

The many are read in this process, a sample of each kind by the command itself.
"""

from __future__ import annotations

import gzip
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import lz4.frame
import pytest
import zstandard
from conftest import PUBLIC, require, require_program, require_shared

from analyzer.capture.offline import read_capture
from analyzer.errors import AnalyzerError, CaptureError
from analyzer.flows import pair
from analyzer.rows import Coverage, OneWay
from analyzer.store import read_flows, write_flows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMAND = Path(sys.executable).parent / "rke2-flows"
LAST = 300  # bytes of each good file at which it is cut
FLANNEL = PUBLIC / "wz1st__flannel.pcap"
#: what capinfos reports a reader error for
UNREADABLE = {
    "libpcap__pcapng-invalid-vers-1.pcapng",
    "libpcap__shb-option-too-long.pcapng",
    "pcapplusplus__crash-pcapng-epb-unbounded-length",
    "suricata-verify__fuzz.pcap",
}
PATHS = sorted(path for path in PUBLIC.glob("*") if path.is_file())
GOOD = [path for path in PATHS if path.name not in UNREADABLE]
#: container formats that Wireshark's editcap writes
FORMATS = ("pcap", "nsecpcap", "modpcap", "pcapng")
CLUSTER = """
name: three
nodes:
  - {name: a, role: server, addresses: [192.168.2.100]}
  - {name: b, role: agent, addresses: [192.168.2.101]}
"""


@pytest.fixture(autouse=True)
def _captures() -> None:
    require_shared()


# ---- what a file's own lengths say ----


def record_ends(data: bytes) -> list[tuple[int, bool]]:
    """Where each record of a whole pcap or pcapng file ends, and whether it is a frame. The first is the file
    header.
    """
    return list(_blocks(data) if data[:4] == b"\x0a\x0d\x0d\x0a" else _records(data))


def _records(data: bytes) -> Iterator[tuple[int, bool]]:
    order = "<" if data[0] in (0xD4, 0x4D, 0x34) else ">"
    header = 24 if data[:4] in (b"\x34\xcd\xb2\xa1", b"\xa1\xb2\xcd\x34") else 16
    at = 24
    yield at, False
    while at < len(data):
        at += header + struct.unpack_from(f"{order}I", data, at + 8)[0]
        yield at, True


def _blocks(data: bytes) -> Iterator[tuple[int, bool]]:
    at, order = 0, "<"
    while at < len(data):
        if data[at : at + 4] == b"\x0a\x0d\x0d\x0a":
            order = "<" if data[at + 8] == 0x4D else ">"
        kind, length = struct.unpack_from(f"{order}II", data, at)
        at += length
        yield at, kind in (2, 3, 6)


def frames_before(ends: list[tuple[int, bool]], cut: int) -> tuple[int, bool]:
    """How many whole frames stand before a cut, and whether it falls between two records."""
    return sum(frame for end, frame in ends if end <= cut), any(end == cut for end, _ in ends)


# ---- what must hold ----


def outcome(path: Path) -> Coverage | str:
    """Reads a file and checks what must hold of any; the ledger, or the error's line."""
    try:
        whole = read_capture(path).settled()
    except CaptureError as error:
        line = str(error)
    else:
        return _checked(whole)
    assert one_line(line)
    return line


def _checked(whole: OneWay) -> Coverage:
    (ledger,) = whole.coverage
    assert ledger.accounted() == ledger.frames
    assert sum(whole.rows["packets"][whole.rows["tunnel"] == 0].tolist()) == ledger.flow
    return ledger


def one_line(text: str) -> bool:
    """What does not print in it, the command escapes."""
    return bool(text) and len(text.splitlines()) == 1


def check_cut(path: Path, frames: int, *, whole: bool) -> None:
    """A file cut behind `frames` frames; `whole`: between two records."""
    result = outcome(path)
    if isinstance(result, str):
        assert frames == 0, result
        assert not whole, result
        return
    assert result.frames == frames
    assert bool(result.damage) != whole, result.damage


def cut_everywhere(path: Path, last: int) -> int:
    """Cuts a file, which is overwritten, at each of its last bytes, from behind; how many cuts."""
    data = path.read_bytes()
    ends = record_ends(data)
    assert ends[-1][0] == len(data), "a good file's records fill it"
    first = max(len(data) - last, 1)
    for cut in range(len(data), first - 1, -1):
        os.truncate(path, cut)
        frames, whole = frames_before(ends, cut)
        check_cut(path, frames, whole=whole)
    return len(data) - first


def seeded(name: str) -> random.Random:
    """The same numbers in each run."""
    return random.Random(name)  # noqa: S311 a seed, so that a fault can be had again


# ---- the published ones ----


def test_capinfos_agrees_on_what_is_unreadable() -> None:
    require_program("capinfos")

    def fails(path: Path) -> bool:
        return (
            subprocess.run(["capinfos", path], capture_output=True, check=False, timeout=60).returncode != 0
        )

    with ThreadPoolExecutor(2) as pool:
        assert {
            path.name for path, bad in zip(PATHS, pool.map(fails, PATHS), strict=True) if bad
        } == UNREADABLE


@pytest.mark.parametrize("name", sorted(UNREADABLE))
def test_unreadable(name: str) -> None:
    result = outcome(PUBLIC / name)
    assert isinstance(result, str) or result.damage


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("zeek__ip6-ext-trunc.pcap", {"frames": 1, "malformed": 1}),
        ("libpcap__ipv6_ext_headers.pcap", {"frames": 1, "malformed": 1}),
        ("tcpdump__timestamp_invalid_micro.pcap", {"frames": 3, "flow": 3}),
        ("pcapng-test-generator__test012.pcapng", {"frames": 4, "flow": 4}),
    ],
)
def test_odd_packets_in_a_whole_file(name: str, counts: dict[str, int]) -> None:
    result = outcome(PUBLIC / name)
    assert isinstance(result, Coverage)
    assert result.damage == ""
    assert {key: getattr(result, key) for key in counts} == counts


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_good_file_cut_at_every_byte_of_its_last(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    assert cut_everywhere(copy, LAST) >= min(LAST, path.stat().st_size - 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_cut_at_every_byte(kind: str, tmp_path: Path) -> None:
    require_program("editcap")
    copy = tmp_path / "converted"
    subprocess.run(["editcap", "-F", kind, FLANNEL, copy], check=True, timeout=60)
    assert cut_everywhere(copy, copy.stat().st_size) > 7000


# ---- compressed ----


def _zstd_of_unknown_size(data: bytes) -> bytes:
    frame = zstandard.ZstdCompressor(write_checksum=False, write_content_size=False).compressobj()
    return frame.compress(data) + frame.flush()


def _skippable(data: bytes, magic: int = 0x5A) -> bytes:
    return bytes((magic, 0x2A, 0x4D, 0x18)) + struct.pack("<I", len(data)) + data


def _pzstd(data: bytes) -> bytes:
    """In front of each frame pzstd says how long it is."""
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    return _skippable(struct.pack("<I", len(frame)), 0x50) + frame


def _zstd_of_raw_blocks(data: bytes) -> bytes:
    """RFC 8878: no checksum, no content size, a window of 2 MiB; blocks of type 0."""
    parts = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    heads = [len(part) << 3 | (number == len(parts) - 1) for number, part in enumerate(parts)]
    blocks = [head.to_bytes(3, "little") + part for head, part in zip(heads, parts, strict=True)]
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(blocks)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    "zstd, size unknown": _zstd_of_unknown_size,
    "zstd, skippable frame": lambda data: zstandard.compress(data) + _skippable(b"index"),
    "zstd, skipped frame first": lambda data: _skippable(b"index", 0x5F) + zstandard.compress(data),
    "zstd, by pzstd": _pzstd,
    "zstd, uncompressed blocks": _zstd_of_raw_blocks,
    "lz4": lambda data: lz4.frame.compress(data, content_checksum=True),
}


def places(length: int) -> list[int]:
    """Where to cut: at each byte of headers and checksums, and at some between."""
    edge = min(64, length // 2)
    return [*range(1, edge), *range(edge, length - edge, 5), *range(length - edge, length)]


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_compressed_file_cut_anywhere(kind: str, tmp_path: Path) -> None:
    original = FLANNEL.read_bytes()
    ends = record_ends(original)
    data = COMPRESSIONS[kind](original)
    path = tmp_path / "capture"
    path.write_bytes(data)
    check_cut(path, len(ends) - 1, whole=True)
    for cut in reversed(places(len(data))):
        os.truncate(path, cut)
        result = outcome(path)
        if cut == len(data) - len(_skippable(b"index")) and kind == "zstd, skippable frame":
            check_cut(path, len(ends) - 1, whole=True)
        else:
            assert isinstance(result, str) or result.damage, f"cut at {cut} of {len(data)}"


@pytest.mark.parametrize("kind", ["gzip", "zstd", "zstd, size unknown", "lz4"])
def test_second_compressed_part_missing(kind: str, tmp_path: Path) -> None:
    """Parts compressed one by one and joined are one file; without the second one it is a file cut where the
    first one ends.
    """
    original = FLANNEL.read_bytes()
    ends = record_ends(original)
    path = tmp_path / "capture"
    for middle in (ends[20][0], ends[20][0] + 9):
        first, second = (COMPRESSIONS[kind](part) for part in (original[:middle], original[middle:]))
        path.write_bytes(first + second)
        check_cut(path, len(ends) - 1, whole=True)
        path.write_bytes(first)
        check_cut(path, 20, whole=middle == ends[20][0])
        for cut in places(len(second)):
            path.write_bytes(first + second[:cut])
            result = outcome(path)
            assert isinstance(result, str) or result.damage


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_compressed_file_with_changed_bytes(kind: str, tmp_path: Path) -> None:
    """Where the format has a checksum, a change cannot pass for a whole file; without one it may."""
    chance = seeded(kind)
    original = COMPRESSIONS[kind](FLANNEL.read_bytes())
    path = tmp_path / "capture"
    for _ in range(300):
        data = bytearray(original)
        data[chance.randrange(4, len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        outcome(path)


@pytest.mark.parametrize("tail", [b"garbage", bytes(100), b"\x1f\x8b", b"\x28\xb5\x2f\xfd"])
@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_compressed_file_with_a_tail(kind: str, tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(COMPRESSIONS[kind](FLANNEL.read_bytes()) + tail)
    result = outcome(path)
    if kind == "gzip" and not any(tail):  # gzip allows padding with zeros
        assert isinstance(result, Coverage)
        assert (result.frames, result.damage) == (40, "")
    else:
        assert isinstance(result, str) or result.damage


# ---- changed bytes ----


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_changed_bytes(path: Path, tmp_path: Path) -> None:
    """Seeded changes, most of them where the headers are: in the file's first bytes and at the beginning of a
    record.
    """
    chance = seeded(path.name)
    original = path.read_bytes()
    starts = [0] if path.name in UNREADABLE else [0, *(end for end, _ in record_ends(original)[:-1])]
    copy = tmp_path / "changed"
    for _ in range(60 if len(original) < 1 << 16 else 12):
        data = bytearray(original)
        for _ in range(chance.randint(1, 4)):
            at = min(chance.choice(starts) + chance.randrange(80), len(data) - 1)
            data[at] = chance.choice((0, 0xFF, 0x7F, 0x80, data[at] ^ 1 << chance.randrange(8)))
        copy.write_bytes(data)
        result = outcome(copy)
        if isinstance(result, Coverage):
            assert len(pair(read_capture(copy).settled())) >= 0


# ---- flow files ----


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_damaged_flow_file(suffix: str, tmp_path: Path) -> None:
    """A flow table as input: a table or an error of one line, wherever it is cut and whatever byte is
    changed.
    """
    path, chance = tmp_path / f"flows{suffix}", seeded(suffix)
    whole = read_capture(FLANNEL).settled()
    write_flows(pair(whole), path, whole.coverage)
    original = path.read_bytes()
    for cut in range(len(original) - LAST, len(original)):
        _read_flow_file(path, original[:cut])
    for _ in range(300):
        data = bytearray(original)
        data[chance.randrange(len(data))] = chance.randrange(256)
        _read_flow_file(path, bytes(data))


def _read_flow_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    line = "none"
    try:
        pair(read_flows(path))
    except AnalyzerError as error:
        line = str(error)
    assert one_line(line)


# ---- the command ----


def run(
    *arguments: str | Path,
    stdin: bytes | IO[bytes] = b"",
    user: int | None = None,
    cwd: str | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """The command as a user runs it. `user`: run it as another one, who is in no group of ours."""
    options: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    if user is not None:
        options |= {"user": user, "group": user, "extra_groups": []}
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [COMMAND, *arguments], cwd=cwd, capture_output=True, check=False, timeout=60, **options
    )
    return done


def shell(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """The command in bash, `"$@"` in the text is it and its arguments."""
    line: list[str | Path] = ["bash", "-c", command, "bash", COMMAND, *arguments]
    return subprocess.run(line, capture_output=True, check=False, timeout=60)


def well_behaved(done: subprocess.CompletedProcess[bytes], *statuses: int) -> str:
    """Checks status and standard error; gives the latter."""
    errors = done.stderr.decode()
    assert b"Traceback" not in done.stderr + done.stdout
    assert done.returncode in statuses, errors
    assert "\x1b" not in errors
    if done.returncode == 2:
        assert one_line(errors.rstrip("\n")), errors
        assert errors.rstrip("\n").isprintable()
        assert errors.startswith("rke2-flows: ")
        assert not done.stdout
    return errors


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    file = tmp_path / "nodes.yaml"
    file.write_text(CLUSTER, encoding="utf-8")
    return file


def _samples(folder: Path) -> dict[str, Path]:
    data = FLANNEL.read_bytes()
    inputs = {
        "cut in a record": data[:-5],
        "cut in a record's header": data[: 24 + 16 + 60 + 7],
        "cut in the first record": data[:50],
        "cut in the file header": data[:20],
        "header alone": data[:24],
        "cut gzip": gzip.compress(data)[:-9],
        "cut zstd": zstandard.compress(data)[:-3],
        "cut lz4": lz4.frame.compress(data)[:-9],
    }
    for name, content in inputs.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in inputs} | {name: PUBLIC / name for name in UNREADABLE}


def test_command_on_damaged_files(tmp_path: Path, cluster: Path) -> None:
    samples = _samples(tmp_path)

    def both(name: str) -> tuple[str, ...]:
        path = samples[name]
        one, other = run("flows", path), run("check", path, "--cluster", cluster)
        judged = well_behaved(other, 0, 1, 2) + other.stdout.decode()
        assert (one.returncode == 2) == (other.returncode == 2), name
        return well_behaved(one, 0, 2), judged

    with ThreadPoolExecutor(2) as pool:
        said = dict(zip(samples, pool.map(both, samples), strict=True))
    for name, (flows, judged) in said.items():
        if name == "header alone":
            assert "0 frames" in flows
        elif flows.startswith("rke2-flows: "):
            assert str(samples[name].name) in flows
        else:
            assert "damaged: frame " in flows, name
            assert "blind-spot" in judged, f"{name}: check says nothing of the damage"


INPUTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"src,dst\n10.0.0.1,10.0.0.2\n", "neither pcap nor pcapng"),
    "one byte": (b"\xd4", "ends within a record"),
    "escape": (b"\x1b]0;title\x07" * 20, "neither pcap nor pcapng"),
    "gzip of nothing": (gzip.compress(b""), "the file is empty"),
    "gzip of text": (gzip.compress(b"no capture"), "neither pcap nor pcapng"),
    "zip": (b"PK\x03\x04" + bytes(60), "neither pcap nor pcapng"),
    "pcap version 3": (struct.pack("<IHHiIII", 0xA1B2C3D4, 3, 0, 0, 0, 65535, 1), "version 3"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_command_on_other_files(name: str, tmp_path: Path) -> None:
    content, expected = INPUTS[name]
    path = tmp_path / "input"
    path.write_bytes(content)
    errors = well_behaved(run("flows", path), 2)
    assert "input" in errors
    assert expected in errors


def test_command_on_what_is_no_file(tmp_path: Path) -> None:
    empty = tmp_path / "folder"
    empty.mkdir()
    assert "No such file" in well_behaved(run("flows", tmp_path / "missing"), 2)
    assert "no capture and no flow file" in well_behaved(run("flows", empty), 2)
    assert "the file is empty" in well_behaved(run("flows", "/dev/null"), 2)
    assert "No such file" in well_behaved(run("flows", tmp_path / "two\nlines\x1b[31m"), 2)
    assert "No such file" in well_behaved(run("flows", FLANNEL, tmp_path / "missing"), 2)
    (tmp_path / "loop").symlink_to("loop")
    well_behaved(run("flows", tmp_path / "loop"), 2)


def test_command_on_a_file_that_cannot_be_read() -> None:
    """/proc/self/mem opens and does not read."""
    require(Path("/proc/self/mem").exists(), "there is no /proc/self/mem")
    assert "cannot be read" in well_behaved(run("flows", "/proc/self/mem"), 2)


def test_command_without_the_right_to_read() -> None:
    """Rights do not bind root: then the command runs as another user, in a folder that this one may enter."""
    other = 65534 if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "secret.pcap"
        shutil.copy(FLANNEL, path)
        path.chmod(0)
        try:
            works = run("spec", "list", cwd="/", user=other).returncode == 0
        except PermissionError:
            works = False
        require(works, "the user `nobody` may not run the command")
        assert "Permission denied" in well_behaved(run("flows", path, cwd="/", user=other), 2)
        shutil.copy(FLANNEL, folder / "open.pcap")
        shown = run("store", "show", folder, cwd="/", user=other)
        assert shown.stderr.decode().splitlines()[-1] == f"{path}: cannot be opened; left as it is"
        told = well_behaved(run("flows", folder, cwd="/", user=other), 2)
        assert f"{path}: cannot be opened: Permission denied" in told
        closed = folder / "closed"
        closed.mkdir()
        path.rename(closed / path.name).chmod(0o644)
        closed.chmod(0)
        told = well_behaved(run("flows", folder, cwd="/", user=other), 2)
        assert f"{closed}: the folder cannot be read: Permission denied (run it as" in told
        told = well_behaved(
            run("flows", folder / "open.pcap", "-o", closed / "x.csv", cwd="/", user=other), 2
        )
        assert f"{closed}/x.csv: cannot be written: Permission denied (check" in told
        closed.chmod(0o755)
        well_behaved(run("flows", folder, cwd="/", user=other), 0)


def test_command_on_standard_input() -> None:
    require_program("editcap")
    pcapng = subprocess.run(
        ["editcap", "-F", "pcapng", FLANNEL, "-"], capture_output=True, check=True, timeout=60
    ).stdout
    data = FLANNEL.read_bytes()
    whole = [data, pcapng, *(compress(data) for compress in COMPRESSIONS.values())]
    tables = set()
    for content in whole:
        done = run("flows", "-", stdin=content)
        assert "40 frames" in well_behaved(done, 0)
        tables.add(done.stdout)
    assert len(tables) == 1
    assert next(iter(tables)).count(b"\n") == 17
    for content in whole[:4]:
        done = run("flows", "-", stdin=content[:-5])
        assert done.returncode == 2 or "damaged: " in well_behaved(done, 0)
    assert "the file is empty" in well_behaved(run("flows", "-", stdin=b""), 2)


def test_command_on_redirected_and_closed_streams() -> None:
    with FLANNEL.open("rb") as file:
        assert "40 frames" in well_behaved(run("flows", "-", stdin=file), 0)
    assert "standard input is closed" in well_behaved(shell('"$@" <&-', "flows", "-"), 2)
    for redirection, status in ((">&-", 0), ("> /dev/full", 2)):
        done = shell(f'"$@" {redirection}', "flows", FLANNEL)
        assert done.returncode == status
        assert b"Traceback" not in done.stderr


def test_command_on_a_named_pipe(tmp_path: Path) -> None:
    for content, expected in (
        (FLANNEL.read_bytes(), "40 frames"),
        (FLANNEL.read_bytes()[:-3], "damaged: frame 40"),
    ):
        pipe = tmp_path / "pipe"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        writer = threading.Thread(target=_trickle, args=(pipe, content), daemon=True)
        writer.start()
        errors = well_behaved(run("flows", pipe), 0)
        writer.join(30)
        assert not writer.is_alive()
        assert expected in errors


def _trickle(pipe: Path, content: bytes) -> None:
    """Writes piece by piece, so that records come in parts."""
    with pipe.open("wb", buffering=0) as file:
        for at in range(0, len(content), 999):
            file.write(content[at : at + 999])
            time.sleep(0.002)


# ---- large and hostile ----


def test_trailing_zeros(tmp_path: Path) -> None:
    """100 bytes of zeros are six records of no bytes and a rest; they are counted, and none of them passes
    for a flow.
    """
    path = tmp_path / "zeros.pcap"
    path.write_bytes(FLANNEL.read_bytes() + bytes(100))
    result = outcome(path)
    assert isinstance(result, Coverage)
    assert (result.frames, result.flow, result.malformed) == (46, 40, 6)
    assert "4 bytes into it" in result.damage


def test_file_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "zeros"
    path.touch()
    os.truncate(path, 64 << 20)
    result = outcome(path)
    assert isinstance(result, str)
    assert "begins with 00 00 00 00" in result


@pytest.mark.parametrize("length", [0xFFFFFFFC, 0xFFFFFFFF, 0x80000000, (64 << 20) + 4, 0, 8, 13])
def test_impossible_block_length(length: int, tmp_path: Path) -> None:
    require_program("editcap")
    path = tmp_path / "long.pcapng"
    subprocess.run(["editcap", "-F", "pcapng", FLANNEL, path], check=True, timeout=60)
    with path.open("ab") as file:
        file.write(struct.pack("<II", 6, length) + bytes(64))
    result = outcome(path)
    assert isinstance(result, Coverage)
    assert result.frames == 40
    assert f"a block of {length} bytes" in result.damage
    assert peak_memory("flows", path)[0] == 0


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, (256 << 10) + 1])
def test_impossible_record_length(length: int, tmp_path: Path) -> None:
    path = tmp_path / "long.pcap"
    path.write_bytes(FLANNEL.read_bytes() + struct.pack("<IIII", 1, 0, length, length) + bytes(64))
    result = outcome(path)
    assert isinstance(result, Coverage)
    assert result.frames == 40
    assert str(length) in result.damage


def peak_memory(*arguments: str | Path) -> tuple[int, int]:
    """Exit status of the command, and the largest resident set of it in MiB."""
    with tempfile.TemporaryFile() as errors:
        pid = os.posix_spawn(
            COMMAND, [str(word) for word in (COMMAND, *arguments)], os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, errors.fileno(), stream) for stream in (1, 2)],
        )  # fmt: skip
        _, status, usage = os.wait4(pid, 0)
        errors.seek(0)
        assert b"Traceback" not in errors.read()
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss >> 10


PACKERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1),
    "zstd": lambda file: zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False),
    "lz4": lambda file: lz4.frame.open(file, mode="wb"),
}


@pytest.mark.parametrize("kind", PACKERS)
def test_bomb(kind: str, tmp_path: Path) -> None:
    """A GiB of zeros behind a pcap header: 64 M records of no bytes in some KiB, read in no more memory than
    a small file.
    """
    path, chunk = tmp_path / "bomb", bytes(1 << 20)
    with path.open("wb") as file, PACKERS[kind](file) as packed:
        packed.write(FLANNEL.read_bytes()[:24])
        for _ in range(1024):
            packed.write(chunk)
    _, small = peak_memory("flows", FLANNEL)
    status, large = peak_memory("flows", path)
    assert status == 0
    assert large < small + 64


def test_large_block_in_a_compressed_file(tmp_path: Path) -> None:
    """The longest block that is accepted comes in many pieces; putting them together must not take the square
    of them.
    """
    length = 64 << 20
    section = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    block = struct.pack("<II", 0x0BAD, length) + bytes(length - 12) + struct.pack("<I", length)
    for kind in ("gzip", "zstd", "lz4"):
        path = tmp_path / kind
        path.write_bytes(COMPRESSIONS[kind](section + block))
        started = time.process_time()
        result = outcome(path)
        assert isinstance(result, Coverage)
        assert result.damage == ""
        assert time.process_time() - started < 20


def test_no_warning_of_an_open_file(tmp_path: Path) -> None:
    """Errors close what was opened; warnings are errors here, and so would a ResourceWarning be."""
    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in _samples(tmp_path).values():
            outcome(path)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > before


def test_sixty_thousand_interfaces_take_seconds() -> None:
    """Each saw one frame of one flow: nothing may look at every interface for every other."""
    frame = (
        bytes(12) + b"\x08\x00" + bytes.fromhex("4500001c000000004011000001020304050607080035003500080000")
    )
    head = bytes.fromhex("0a0d0d0a1c0000004d3c2b1a01000000ffffffffffffffff1c000000")
    interface = bytes.fromhex("0100000014000000010000000000000014000000")
    padded = frame.ljust(-(-len(frame) // 4) * 4, b"\0")
    length = (32 + len(padded)).to_bytes(4, "little")
    blocks = [
        b"\6\0\0\0" + length + struct.pack("<5I", n, 0, n, len(frame), len(frame)) + padded + length
        for n in range(60_000)
    ]
    content = head + interface * 60_000 + b"".join(blocks)
    done = subprocess.run(
        [COMMAND, "flows", "-", "-o", "-"], input=content, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert len(done.stdout.splitlines()) == 2
