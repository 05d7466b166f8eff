"""The kernel's types as bpftool and the compiler see them, and every kind of damage."""

from __future__ import annotations

import random
import re
import struct
import subprocess
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from conftest import require, require_program
from hypothesis import given
from hypothesis import strategies as st

from analyzer.capture import _btf
from analyzer.errors import LiveError

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
typedef unsigned int u32;
typedef unsigned long u64;
struct net { u32 passive; struct { u64 stashed; const void *ops; u32 inum; } ns; };
typedef struct { struct net *net; } possible_net_t;
enum mood { GLAD, SAD };
struct buff {
  union { struct { struct buff *next, *prev; union { void *dev; u64 scratch; }; }; long list[3]; };
  const volatile struct net *sk;
  u32 a:3, b:5, whole:8;
  possible_net_t nd_net;
  unsigned char cb[48];
  enum mood mood;
  unsigned char *head, *tail;
  float weight;
  struct net inside[2];
  char data[];
};
struct __attribute__((packed)) wire { unsigned char kind; u32 value; };
union either { u32 small; struct { u32 low, high; } parts; };
struct buff *keep(struct buff *b, struct wire *w, union either *e) { return b + w->kind + e->small; }
"""
ASKED = {
    "buff": (
        "next", "prev", "dev", "scratch", "list", "sk", "nd_net", "nd_net.net", "cb", "mood", "head", "tail",
        "weight", "inside", "data",
    ),
    "net": ("passive", "ns", "ns.inum", "ns.ops"),
    "wire": ("value",),
    "either": ("parts.high",),
}  # fmt: skip


def compiled(folder: Path, source: str) -> bytes:
    """The BTF that clang makes of C; it stands in the object's section .BTF."""
    require_program("clang")
    (folder / "types.c").write_text(source)
    subprocess.run(
        ["clang", "-target", "bpf", "-g", "-O1", "-Wno-everything", "-c", "types.c", "-o", "types.o"],
        cwd=folder,
        check=True,
    )
    data = (folder / "types.o").read_bytes()
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    sections = [struct.unpack_from("<IIQQQQ", data, table + n * size) for n in range(count)]
    texts = sections[names][4]
    found = {data[texts + s[0] : data.index(0, texts + s[0])]: data[s[4] : s[4] + s[5]] for s in sections}
    return found[b".BTF"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compiled(tmp_path_factory.mktemp("btf"), SOURCE)


@pytest.fixture(scope="module")
def right(small: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return answers(small, tmp_path_factory.mktemp("right"))


def answers(data: bytes, folder: Path) -> dict[str, int]:
    path = folder / "btf"
    path.write_bytes(data)
    return _btf.offsets(path, ASKED)


def outcome(data: bytes) -> dict[str, int] | None:
    """The offsets, or None for a LiveError; anything else is the test's failure."""
    try:
        btf = _btf._parse(data, "test")
        numbers = {name: btf.composites(name) for name in ASKED}
        if not all(numbers.values()):
            return None
        return {f"{n}.{m}": btf.offset(numbers[n][0], m, m) for n, ms in ASKED.items() for m in ms}
    except LiveError:
        return None


def c_offset(name: str) -> str:
    kind = "union" if name.startswith("either") else "struct"
    record, _, member = name.partition(".")
    return f"__builtin_offsetof({kind} {record}, {member})"


def test_the_compiler_agrees_on_every_member(right: dict[str, int], tmp_path: Path) -> None:
    checks = "\n".join(f'_Static_assert({c_offset(n)} == {at}, "{n}");' for n, at in right.items())
    assert len(right) == sum(map(len, ASKED.values()))
    compiled(tmp_path, SOURCE + checks)


# ---- this kernel ----


def dumped() -> list[tuple[str, str, int, bool]]:
    """Struct, member, bit offset, whether it is a bit-field: what bpftool reads of this kernel. Named members
    of structs whose name stands for one struct only.
    """
    require(_btf.VMLINUX.exists(), "this kernel publishes no BTF")
    require_program("bpftool")
    command = ["bpftool", "btf", "dump", "file", str(_btf.VMLINUX), "format", "raw"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bodies: dict[str, list[list[tuple[str, str, int, bool]]]] = defaultdict(list)
    for line in text.splitlines():
        if header := re.match(r"\[\d+\] (\w+) '([^']*)'", line):
            is_struct, name = header[1] == "STRUCT", header[2]
            body: list[tuple[str, str, int, bool]] = []
            if is_struct and name != "(anon)":
                bodies[name].append(body)
        elif found := re.match(r"\t'(?!\(anon\))([^']*)' type_id=\d+ bits_offset=(\d+)(.*)", line):
            body.append((name, found[1], int(found[2]), "bitfield_size" in found[3]))
    return [member for found in bodies.values() if len(found) == 1 for member in found[0]]


def test_bpftool_agrees_on_what_live_capture_asks_and_on_many_others() -> None:
    members = dumped()
    wanted = {
        "sk_buff": ("sk", "len", "tail", "head", "data", "network_header"),
        "net_device": ("nd_net", "ifindex"),
        "sock_common": ("skc_net", "skc_family"),
        "net": ("ns.inum", "ns"),
    }
    found = _btf.offsets(_btf.VMLINUX, wanted)
    direct = {f"{s}.{m}": at // 8 for s, m, at, bits in members if not bits}
    assert {n: at for n, at in found.items() if n in direct} == {n: direct[n] for n in found if n in direct}
    assert {"sk_buff.len", "net_device.nd_net", "sock_common.skc_net", "net.ns"}.intersection(direct)
    (inum,) = [at // 8 for s, m, at, _ in members if (s, m) == ("ns_common", "inum")]
    assert found["net.ns.inum"] == direct["net.ns"] + inum
    some = random.Random(3).sample([m for m in members if not m[3]], 40)  # noqa: S311  a seed, so that a fault can be had again
    for name, member, at, _ in some:
        assert _btf.offsets(_btf.VMLINUX, {name: (member,)}) == {f"{name}.{member}": at // 8}


def test_members_of_anonymous_unions_lie_within_their_struct() -> None:
    require(_btf.VMLINUX.exists(), "this kernel publishes no BTF")
    found = _btf.offsets(_btf.VMLINUX, {"sk_buff": ("next", "prev", "dev", "cb", "network_header", "tail")})
    assert (found["sk_buff.next"], found["sk_buff.prev"], found["sk_buff.dev"]) == (0, 8, 16)
    assert found["sk_buff.cb"] < found["sk_buff.network_header"] < found["sk_buff.tail"]


def test_a_bit_field_of_this_kernel_is_refused() -> None:
    name, member = next((s, m) for s, m, _, bits in dumped() if bits)
    with pytest.raises(LiveError, match=f"{name}.{member} is a bit-field"):
        _btf.offsets(_btf.VMLINUX, {name: (member,)})


def test_this_kernel_is_read_in_a_third_of_a_second() -> None:
    require(_btf.VMLINUX.exists(), "this kernel publishes no BTF")
    wanted = {"sk_buff": ("head", "network_header"), "net": ("ns.inum",)}

    def seconds() -> float:
        start = time.process_time()
        _btf.offsets(_btf.VMLINUX, wanted)
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.3


# ---- what is refused ----


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"buff": ("a",)}, "buff.a is a bit-field"),
        ({"buff": ("whole",)}, "buff.whole is a bit-field"),
        ({"buff": ("nothing",)}, "no buff.nothing"),
        ({"buff": ("head.more",)}, "no buff.head.more"),
        ({"buff": ("",)}, "no buff."),
        ({"net": ("ns.",)}, "no net.ns."),
        ({"buf": ("head",)}, "no struct buf"),
        ({"uff": ("head",)}, "no struct uff"),
        ({"u32": ("head",)}, "no struct u32"),
    ],
)
def test_what_is_not_there_is_named(
    small: bytes, tmp_path: Path, wanted: dict[str, tuple[str, ...]], said: str
) -> None:
    (tmp_path / "btf").write_bytes(small)
    with pytest.raises(LiveError, match=re.escape(said)) as caught:
        _btf.offsets(tmp_path / "btf", wanted)
    assert caught.value.where == str(tmp_path / "btf")


def test_no_btf_says_so(tmp_path: Path) -> None:
    with pytest.raises(LiveError, match="publishes no BTF"):
        _btf.offsets(tmp_path / "vmlinux", {})


def test_two_structs_of_one_name_must_agree(small: bytes, tmp_path: Path) -> None:
    """A kernel may have two; so do the types of two sources beside each other."""
    renamed = small.replace(b"\0wire\0", b"\0buff\0")
    assert renamed != small
    (tmp_path / "btf").write_bytes(renamed)
    with pytest.raises(LiveError, match=r"no buff\.head"):
        _btf.offsets(tmp_path / "btf", {"buff": ("head",)})
    other = compiled(
        tmp_path,
        "struct A { int x, y; }; struct B { int y, x; }; int f(struct A *a, struct B *b) {return a->x+b->x;}",
    )
    (tmp_path / "btf").write_bytes(other.replace(b"\0B\0", b"\0A\0"))
    with pytest.raises(LiveError, match="several structs A that differ in y"):
        _btf.offsets(tmp_path / "btf", {"A": ("y",)})


@given(st.data())
def test_a_cut_file_is_refused(small: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(small) - 1))
    assert outcome(small[:length]) is None


@given(st.data())
def test_flipped_bytes_end_in_an_answer_or_a_live_error(small: bytes, data: st.DataObject) -> None:
    broken = bytearray(small)
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(small) - 1), st.integers(0, 255)), max_size=8)
    ):
        broken[at] = value
    found = outcome(bytes(broken))
    assert found is None or all(0 <= at < 2**21 for at in found.values())


@given(st.binary(max_size=400), st.booleans())
def test_noise_is_refused(noise: bytes, headed: bool) -> None:
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(noise) & ~3, len(noise) & ~3, len(noise) & 3)
    assert outcome(header + noise if headed else noise) is None


def test_a_flipped_bit_is_seen_or_harmless(small: bytes, right: dict[str, int]) -> None:
    """Every bit of a file. What cannot be seen is a member that moves within its own struct's padding."""
    wrong = 0
    for bit in range(8 * len(small)):
        broken = bytearray(small)
        broken[bit // 8] ^= 1 << bit % 8
        wrong += outcome(bytes(broken)) not in (None, right)
    assert wrong <= 0.002 * 8 * len(small)


def words(data: bytes) -> int:
    """Where the types begin, in bytes."""
    length, offset = struct.unpack_from("=II", data, 4)
    return int(length + offset)


def test_types_that_are_made_of_themselves_end() -> None:
    """An alias of itself, an array of itself, a struct that has itself within, without a name."""
    names = b"\0s\0m\0"

    def btf(*types: int) -> bytes:
        body = struct.pack(f"={len(types)}I", *types)
        return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(names)) + body + names

    circles = {
        "alias": btf(1, 4 << 24 | 1, 8, 3, 2, 0, 0, 8 << 24, 2),
        "array": btf(1, 4 << 24 | 1, 8, 3, 2, 0, 0, 3 << 24, 0, 2, 2, 1),
        "struct": btf(1, 4 << 24 | 1, 8, 0, 1, 0),
    }
    for data in circles.values():
        made = _btf._parse(data, "test")
        (number,) = made.composites("s")
        with pytest.raises(LiveError):
            made.offset(number, "nothing", "s.nothing")


# ---- reasons of drops ----


def test_reasons_are_those_of_this_kernel() -> None:
    require(_btf.KFREE_SKB.exists(), "there is no tracefs")
    reasons = _btf.drop_reasons()
    require(bool(reasons), "this kernel gives no reason for a drop (5.17 and later do)")
    require_program("bpftool")
    command = ["bpftool", "btf", "dump", "file", str(_btf.VMLINUX), "format", "raw"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    known = {(int(n), name) for name, n in re.findall(r"'SKB_DROP_REASON_(\w+)' val=(\d+)", text)}
    assert set(reasons.items()) <= known  # which also has those of subsystems, with numbers of their own
    assert "NETFILTER_DROP" in reasons.values()


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ('print fmt: "skbaddr=%p protocol=%u location=%p", REC->skbaddr, REC->protocol, REC->location\n', {}),
        ("", {}),
        (
            'print fmt: "reason: %s", __print_symbolic(REC->reason, { 1, "NOT_SPECIFIED" }, {0x10002,"X"})\n',
            {1: "NOT_SPECIFIED", 0x10002: "X"},
        ),
        (
            '__print_symbolic(REC->other, { 1, "NO" }), __print_symbolic(REC->reason, { 2, "YES" })',
            {2: "YES"},
        ),
    ],
)
def test_reasons_of_other_kernels(tmp_path: Path, text: str, reasons: dict[int, str]) -> None:
    (tmp_path / "format").write_text(text)
    assert _btf.drop_reasons(tmp_path / "format") == reasons
    assert _btf.drop_reasons(tmp_path / "gone") == {}
