"""What the running kernel's own types look like. Rule: reads what the kernel publishes of itself, BTF and a
tracepoint's format, and answers in numbers and names; knows no program, no map, no packet.

A wrong offset would make a program read the wrong memory, so whatever does not add up is an error: a length,
a type number, a member that does not fit its struct or lies over the next one. Format:
Documentation/bpf/btf.rst and include/uapi/linux/btf.h of the kernel.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from analyzer.errors import LiveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

VMLINUX = Path("/sys/kernel/btf/vmlinux")
KFREE_SKB = Path("/sys/kernel/tracing/events/skb/kfree_skb/format")

_HEADER = struct.Struct("=HBBIIIII")  # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
_MAGIC, _VERSION = 0xEB9F, 1
_WORD = 4
_INFO_BITS = 0x9F00FFFF  # kind_flag, kind, vlen; the others are 0
_RECORD = 3  # words of struct btf_type

INT, PTR, ARRAY, STRUCT, UNION, ENUM = 1, 2, 3, 4, 5, 6
TYPEDEF, VOLATILE, CONST, RESTRICT, FLOAT, TYPE_TAG, ENUM64 = 8, 9, 10, 11, 16, 18, 19
#: kind → words behind its struct btf_type: always, and for each of `vlen`
_TAILS = {
    INT: (1, 0),
    PTR: (0, 0),
    ARRAY: (3, 0),
    STRUCT: (0, 3),
    UNION: (0, 3),
    ENUM: (0, 2),
    7: (0, 0),  # FWD
    TYPEDEF: (0, 0),
    VOLATILE: (0, 0),
    CONST: (0, 0),
    RESTRICT: (0, 0),
    12: (0, 0),  # FUNC; its vlen is a linkage
    13: (0, 2),  # FUNC_PROTO
    14: (1, 0),  # VAR
    15: (0, 3),  # DATASEC
    FLOAT: (0, 0),
    17: (1, 0),  # DECL_TAG
    TYPE_TAG: (0, 0),
    ENUM64: (0, 3),
}
_COMPOSITE = frozenset((STRUCT, UNION))
_ALIASES = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
_SIZED = frozenset((INT, STRUCT, UNION, ENUM, FLOAT, ENUM64))
_POINTER_BYTES = struct.calcsize("P")
#: aliases and arrays within each other, far above what C code has; a damaged file may have a circle
_DEEPEST = 64


class _Member(NamedTuple):
    """`offset` in bits from the struct's begin; `bits`: its width where it is a bit-field, else 0."""

    name: str
    type: int
    offset: int
    bits: int


def offsets(path: str | Path, wanted: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Byte offsets of members: ``{"net": ("ns.inum",)}`` → ``{"net.ns.inum": 144}``.

    A member of an anonymous struct or union within counts as the struct's own, as in C; a path with dots goes
    into members that are structs themselves. Raises LiveError, which names the member, where there is none,
    where it is a bit-field, or where the kernel has several structs of that name that differ in it; and where
    there is no BTF or it is damaged.
    """
    btf = _read(Path(path))
    found: dict[str, int] = {}
    for name, members in wanted.items():
        structs = btf.composites(name)
        if not structs:
            raise LiveError(f"this kernel has no struct {name}", where=str(path))
        for member in members:
            answers = {btf.offset(number, member, f"{name}.{member}") for number in structs}
            if len(answers) > 1:
                raise LiveError(
                    f"this kernel has several structs {name} that differ in {member}", where=str(path)
                )
            found[f"{name}.{member}"] = answers.pop()
    return found


def drop_reasons(format_path: str | Path = KFREE_SKB) -> dict[int, str]:
    """Why packets are dropped, number → name without its prefix: ``{12: "NETFILTER_DROP", …}``.

    As this kernel publishes it in the format of its tracepoint skb:kfree_skb (include/trace/events/skb.h);
    empty where there is no such tracepoint or it has no reason (before Linux 5.17).
    """
    try:
        text = Path(format_path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    _, _, symbols = text.partition("__print_symbolic(REC->reason,")
    pairs = re.findall(r'\{\s*(0[xX][0-9a-fA-F]+|\d+)\s*,\s*"([^"]*)"\s*\}', symbols)
    return {int(number, 16 if number[:2] in {"0x", "0X"} else 10): name for number, name in pairs}


def _read(path: Path) -> _Btf:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LiveError(
            "this kernel publishes no BTF",
            where=str(path),
            next_step="a kernel built with CONFIG_DEBUG_INFO_BTF=y does",
        ) from error
    return _parse(data, str(path))


def _damaged(what: str, where: str) -> NoReturn:
    raise LiveError(f"the kernel's BTF cannot be understood: {what}", where=where)


def _parse(data: bytes, where: str) -> _Btf:
    if len(data) < _HEADER.size:
        _damaged("it is cut short", where)
    magic, version, flags, length, type_offset, type_length, text_offset, text_length = _HEADER.unpack_from(
        data
    )
    if (magic, version, flags) != (_MAGIC, _VERSION, 0):
        _damaged(f"its header says {magic:#x}, version {version}, flags {flags}", where)
    types, texts = length + type_offset, length + text_offset
    if length < _HEADER.size or max(types + type_length, texts + text_length) > len(data):
        _damaged("it is cut short", where)
    if types % _WORD or type_length % _WORD:
        _damaged("its types are not aligned", where)
    strings = data[texts : texts + text_length]
    if not strings or strings[0] or strings[-1]:
        _damaged("its names do not begin and end with a zero", where)
    words = np.frombuffer(data, np.uint32, type_length // _WORD, types)
    return _Btf(words, np.array(_starts(words.tolist(), where), np.int64), strings, where)


def _starts(words: list[int], where: str) -> list[int]:
    """The word at which each type begins; type 0, void, has none: -1."""
    starts, at, end = [-1], 0, len(words)
    while at + 1 < end:
        starts.append(at)
        info = words[at + 1]
        kind = info >> 24 & 0x1F
        if kind not in _TAILS or info & ~_INFO_BITS:
            _damaged(f"type {len(starts) - 1} is of an unknown kind, {info:#x}", where)
        fixed, each = _TAILS[kind]
        at += _RECORD + fixed + each * (info & 0xFFFF)
    if at != end:
        _damaged(f"type {len(starts) - 1} is cut short", where)
    return starts


@dataclass(frozen=True)
class _Btf:
    """The type section. `words`: u4, shape (n,). `starts`: i8, shape (types,), by type number. `strings`: the
    names, each ended by a zero.
    """

    words: np.ndarray[tuple[int], np.dtype[np.uint32]]
    starts: np.ndarray[tuple[int], np.dtype[np.int64]]
    strings: bytes
    where: str

    # ---- records ----

    def _word(self, number: int, word: int) -> int:
        if not 0 < number < len(self.starts):
            _damaged(f"there is no type {number}", self.where)
        return int(self.words[self.starts[number] + word])

    def _kind(self, number: int) -> int:
        return self._word(number, 1) >> 24 & 0x1F if number else 0

    def _text(self, offset: int) -> str:
        if offset >= len(self.strings):
            _damaged(f"there is no name at {offset}", self.where)
        return self.strings[offset : self.strings.index(0, offset)].decode("utf-8", "replace")

    def composites(self, name: str) -> list[int]:
        """Numbers of the structs and unions of that name."""
        needle = name.encode() + b"\0"
        names = [found.start() for found in re.finditer(re.escape(needle), self.strings)]
        names = [at for at in names if at and self._text(at) == name]
        starts = self.starts[1:]
        info = self.words[starts + 1] >> 24 & 0x1F
        hits = np.isin(self.words[starts], names) & np.isin(info, sorted(_COMPOSITE))
        return [int(number) + 1 for number in np.flatnonzero(hits)]

    def _plain(self, number: int) -> int:
        """The type behind typedefs and qualifiers."""
        for _ in range(_DEEPEST):
            if self._kind(number) not in _ALIASES:
                return number
            number = self._word(number, 2)
        _damaged(f"type {number} is an alias of itself", self.where)

    def _size(self, number: int) -> int:
        """Bytes of a value of that type."""
        times = 1
        for _ in range(_DEEPEST):
            number = self._plain(number)
            kind = self._kind(number)
            if kind != ARRAY:
                break
            number, times = self._word(number, 3), times * self._word(number, 5)
        sizes = (
            {PTR: _POINTER_BYTES} if kind == PTR else {kind: self._word(number, 2)} if kind in _SIZED else {}
        )
        if kind not in sizes:
            _damaged(f"type {number} has no size", self.where)
        return times * sizes[kind]

    # ---- members ----

    def _members(self, number: int) -> list[_Member]:
        """The members of a struct or union, in order, checked to lie within it and not over each other."""
        info = self._word(number, 1)
        members = list(self._raw_members(number, info & 0xFFFF, with_bits=bool(info >> 31)))
        room = 8 * self._word(number, 2)
        end = 0
        for member in members:
            after = member.offset + (member.bits or 8 * self._size(member.type))
            if after > room or member.offset < end:
                _damaged(f"member {member.name!r} of type {number} does not fit", self.where)
            end = after if info >> 24 & 0x1F == STRUCT else 0
        return members

    def _raw_members(self, number: int, count: int, *, with_bits: bool) -> Iterator[_Member]:
        first = int(self.starts[number]) + _RECORD
        for name, kind, offset in self.words[first : first + 3 * count].reshape(-1, 3).tolist():
            bits = offset >> 24 if with_bits else self._narrow(kind)
            yield _Member(self._text(name), kind, offset & 0xFFFFFF if with_bits else offset, bits)

    def _narrow(self, number: int) -> int:
        """Bits of an integer that is narrower than its bytes: a bit-field, where kind_flag is not set."""
        number = self._plain(number)
        if self._kind(number) != INT:
            return 0
        bits = self._word(number, 3) & 0xFF
        return bits if bits < 8 * self._word(number, 2) else 0

    def offset(self, number: int, path: str, name: str) -> int:
        """Bytes from the begin of type `number` to the member at `path`; `name`: how an error calls it."""
        part, dot, rest = path.partition(".")
        number = self._plain(number)
        member = self._find(number, part) if part and self._kind(number) in _COMPOSITE else None
        if member is None:
            raise LiveError(f"this kernel has no {name}", where=self.where)
        if member.bits or member.offset % 8:
            raise LiveError(f"{name} is a bit-field in this kernel", where=self.where)
        return member.offset // 8 + (self.offset(member.type, rest, name) if dot else 0)

    def _find(self, number: int, name: str) -> _Member | None:
        """The member of that name; also one of anonymous structs and unions, none of which is in it twice."""
        waiting, seen = [(number, 0)], {number}
        while waiting:
            at, base = waiting.pop()
            for member in self._members(at):
                if member.name == name:
                    return member._replace(offset=base + member.offset)
                inner = self._plain(member.type) if not member.name else 0
                if inner not in seen and self._kind(inner) in _COMPOSITE:
                    seen.add(inner)
                    waiting.append((inner, base + member.offset))
        return None
