"""Any bytes as input end in a result: short, repeatable fuzzing of the packet parser and of the reader.

Rule: this file builds the harnesses of ``fuzz/`` and runs them; what must hold is said there. That they find
faults is tested with parsers and readers that have one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from bench.generate import Settings, write_file
from conftest import LIBRARIES, PROJECT, require, require_program
from frames import COMPRESSIONS, save
from packets import PACKETS

from analyzer.capture.offline import read_capture

FUZZ = PROJECT / "tests" / "fuzz"
READER = PROJECT / "analyzer" / "capture" / "_reader.c"
BPF_DIR = PROJECT / "bpf"
SANITIZERS = ["-O1", "-g", "-std=gnu11", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# tests/fuzz/packet_fuzz.c: LINKS
LINKS = [1, 0, 9, 12, 14, 50, 51, 101, 108, 113, 228, 229, 276, 105]


def compiles(*command: str | Path) -> bool:
    """Whether a compiler and its sanitizers' runtime are there."""
    program = "int LLVMFuzzerTestOneInput(void);\nint LLVMFuzzerTestOneInput(void) { return 0; }\n"
    done = subprocess.run(
        [*command, "-x", "c", "-"], input=program, text=True, capture_output=True, check=False
    )
    return done.returncode == 0


# ---- packet.h ----


def corpus(folder: Path) -> Path:
    """The packet table as packet_fuzz.c reads it."""
    folder.mkdir()
    for number, packet in enumerate(PACKETS):
        longer = min(packet.wire - len(packet.data), 0xFFFF)
        head = bytes([LINKS.index(packet.link)]) + longer.to_bytes(2, "little") + b"\x80"
        (folder / f"{number:03}").write_bytes(head + packet.data)
    return folder


def build_packet_fuzz(folder: Path, include: Path = BPF_DIR) -> Path:
    require_program("clang")
    fuzzer = ["clang", "-fsanitize=fuzzer,address,undefined", *SANITIZERS]
    require(compiles(*fuzzer, "-o", folder / "empty"), "clang has no libFuzzer (libclang-rt-dev)")
    target = folder / "packet_fuzz"
    subprocess.run([*fuzzer, *WARNINGS, f"-I{include}", "-o", target, FUZZ / "packet_fuzz.c"], check=True)
    return target


def run_packet_fuzz(target: Path, folder: Path, runs: int, seed: int = 1) -> subprocess.CompletedProcess[str]:
    limits = [
        f"-seed={seed}",
        f"-runs={runs}",
        "-max_total_time=60",
        "-max_len=4096",
        "-timeout=5",
        "-print_final_stats=1",
    ]
    return subprocess.run(
        [target, *limits, f"-artifact_prefix={folder}/", corpus(folder / f"corpus-{seed}")],
        capture_output=True, text=True, check=False, timeout=120, cwd=folder,
    )  # fmt: skip


def test_packet_parser(tmp_path: Path) -> None:
    done = run_packet_fuzz(build_packet_fuzz(tmp_path), tmp_path, 150_000)
    assert done.returncode == 0, done.stderr[-4000:]
    executed = next(line for line in done.stderr.splitlines() if "number_of_executed_units" in line)
    assert int(executed.split()[-1]) >= 100_000, executed


@pytest.mark.parametrize(
    ("right", "wrong", "seen"),
    [
        ("at + n > c->have || ", "", "AddressSanitizer"),
        ("h[1] < 16) {", "h[1] < 64) {", "shift exponent"),
        ("? MALFORMED : TRUNCATED", "? TRUNCATED : MALFORMED", "does not hold"),
    ],
)
def test_packet_parser_with_a_fault(right: str, wrong: str, seen: str, tmp_path: Path) -> None:
    text = (BPF_DIR / "packet.h").read_text()
    assert text.count(right) == 1, f"packet.h has changed: {right!r}"
    include = tmp_path / "include"
    include.mkdir()
    (include / "packet.h").write_text(text.replace(right, wrong))
    shutil.copy(BPF_DIR / "flow.h", include)
    target = build_packet_fuzz(tmp_path, include)
    # the order in which a folder is read depends on the file system, so a seed may find it here and not there
    for seed in range(1, 9):
        done = run_packet_fuzz(target, tmp_path, 1_000_000, seed)
        if done.returncode:
            break
    assert done.returncode != 0
    assert seen in done.stderr


# ---- the reader ----


def build_reader(folder: Path, source: Path = READER) -> Path:
    require_program("gcc")
    require(Path(sysconfig.get_path("include"), "Python.h").exists(), "python3-dev is not installed")
    sanitized = ["gcc", "-fsanitize=address,undefined", *SANITIZERS, "-shared", "-fPIC"]
    require(compiles(*sanitized, "-o", folder / "empty.so"), "gcc has no libasan or libubsan")
    target = folder / "_reader.so"
    subprocess.run(
        [
            *sanitized, *WARNINGS, "-DPy_LIMITED_API=0x030B0000", f"-I{BPF_DIR}",
            f"-I{sysconfig.get_path('include')}", "-o", target, source, *LIBRARIES,
        ],
        check=True,
    )  # fmt: skip
    return target


def run_reader_fuzz(reader: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The fuzzer in an interpreter of its own: ASan is loaded first, Python's allocator out of its way."""
    asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    require(Path(asan.stdout.strip()).is_absolute(), "gcc has no shared libasan")
    environment = os.environ | {
        "LD_PRELOAD": asan.stdout.strip(),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(
        [sys.executable, FUZZ / "reader_fuzz.py", "--reader", reader, "--keep", reader.parent / "input",
            *arguments],
        capture_output=True, text=True, check=False, timeout=240, env=environment,
    )  # fmt: skip


def test_reader(tmp_path: Path) -> None:
    limits = ("--inputs", "200", "--seconds", "60")
    done = run_reader_fuzz(build_reader(tmp_path), "--seed", "1", "--packed", *limits)
    assert done.returncode == 0, done.stderr[-4000:]
    said = dict(word.split("=") for word in done.stdout.split())
    assert int(said["inputs"]) >= 150
    assert int(said["frames"]) >= 5 * int(said["inputs"]), "so damaged that hardly a frame is left"


@pytest.mark.parametrize(
    ("right", "wrong", "seen", "seed"),
    [
        ("if (length - r->record_header < captured)\n        return 0;", "", "AddressSanitizer", 1),
        ("i->shift = value & 0x7f;", "i->shift = value;", "shift exponent", 1),
        ("m->ledger.results[result]++;", ";", "frames are not the sum", 1),
        (
            "    if (length < 24)\n        return 0;",
            "    if (length < 24)\n        return length;",
            "depends on",
            1,
        ),
    ],
)
def test_reader_with_a_fault(right: str, wrong: str, seen: str, seed: int, tmp_path: Path) -> None:
    """The seed is one that finds it soon; others do later."""
    folder = tmp_path / "source"
    folder.mkdir()
    for part in (READER, *READER.parent.glob("*.h")):
        shutil.copy(part, folder)
    places = [part for part in folder.iterdir() if right in part.read_text()]
    assert len(places) == 1, f"the reader has changed: {right!r}"
    text = places[0].read_text()
    assert text.count(right) == 1, f"the reader has changed: {right!r}"
    places[0].write_text(text.replace(right, wrong))
    source = folder / READER.name
    limits = ("--inputs", "4000", "--seconds", "60")
    done = run_reader_fuzz(build_reader(tmp_path, source), "--seed", str(seed), *limits)
    assert done.returncode != 0, done.stdout
    assert seen in done.stderr, done.stderr[-2000:]


# ---- the reader's threads ----


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Race:
    return Race(tmp_path_factory.mktemp("races"))


class Race:
    """``reader_race.c`` with ThreadSanitizer; each reader is compiled once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[tuple[str, str], Path] = {}

    def __call__(self, capture: Path, batch: int, right: str = "", wrong: str = "", packing: str = "") -> str:
        """What ThreadSanitizer and the program say, of the reader with `right` replaced by `wrong`."""
        if (right, wrong) not in self._built:
            self._built[right, wrong] = self._build(right, wrong)
        arguments = [os.fspath(capture), str(batch), *([packing] if packing else [])]
        command = [os.fspath(self._built[right, wrong]), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        return done.stdout + done.stderr

    def _build(self, right: str, wrong: str) -> Path:
        source = self._folder / str(len(self._built))
        source.mkdir()
        for header in READER.parent.glob("*.h"):
            text = header.read_text()
            (source / header.name).write_text(text.replace(right, wrong) if right else text)
        sanitized = ["gcc", "-fsanitize=thread", *SANITIZERS, *WARNINGS, "-Wno-unused-function"]
        include = [f"-I{source}", f"-I{BPF_DIR}"]
        program = source / "race"
        subprocess.run([*sanitized, *include, "-o", program, FUZZ / "reader_race.c", *LIBRARIES], check=True)
        return program


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_program("gcc")
    folder = tmp_path_factory.mktemp("race")
    sanitized = compiles("gcc", "-fsanitize=thread", "-shared", "-fPIC", "-o", folder / "empty.so")
    require(sanitized, "gcc has no libtsan")
    write_file(folder / "x.pcap", Settings(frames=30_000, flows=2_000))
    return folder / "x.pcap"


@pytest.mark.parametrize("batch", [1, 1024])
def test_what_two_threads_share_is_under_their_lock(batch: int, race: Race, capture: Path) -> None:
    said = race(capture, batch)
    assert "ThreadSanitizer" not in said
    whole = read_capture(capture, threads=1)
    assert said.split() == [str(len(whole.rows)), str(whole.rows["packets"].sum())]


@pytest.mark.parametrize("packing", ["gzip", "zstd", "lz4"])
def test_what_is_unpacked_ahead_is_shared_under_a_lock(
    packing: str, race: Race, capture: Path, tmp_path: Path
) -> None:
    packed = save(tmp_path, "packed", COMPRESSIONS[packing](capture.read_bytes()))
    said = race(packed, 1024, packing=packing)
    assert "ThreadSanitizer" not in said
    whole = read_capture(capture, threads=1)
    assert said.split() == [str(len(whole.rows)), str(whole.rows["packets"].sum())]


def test_a_piece_given_back_too_early_is_seen(race: Race, capture: Path, tmp_path: Path) -> None:
    right = """        stream_put(s, r, piece->bytes, piece->length);
        *count += stream_tell(s, piece->read);
        ahead_give(s->ahead);
"""
    assert sum(header.read_text().count(right) for header in READER.parent.glob("*.h")) == 1
    lines = right.splitlines(keepends=True)
    packed = save(tmp_path, "packed", COMPRESSIONS["lz4"](capture.read_bytes()))
    assert "data race" in race(packed, 1024, right, "".join([lines[2], *lines[:2]]), "lz4")


def test_a_row_asked_for_too_early_is_seen(race: Race, capture: Path) -> None:
    waits = "while (b->put - b->counted > left)"
    assert sum(header.read_text().count(waits) for header in READER.parent.glob("*.h")) == 1
    assert "data race" in race(capture, 1024, waits, "while (left > BATCHES)")
