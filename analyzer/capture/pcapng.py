"""Packets worth keeping, as pcapng. Rule: bytes and words in, blocks out; knows no kernel and no cluster.

Format: draft-ietf-opsawg-pcapng. Each block goes out in one write and is flushed, so that a run which is
killed leaves a file that every reader takes.
"""

from __future__ import annotations

import struct
from typing import IO, TYPE_CHECKING

from analyzer.errors import LiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER = 0x1A2B3C4D
_UNKNOWN_LENGTH = 0xFFFFFFFFFFFFFFFF
_COMMENT, _USERAPPL, _IF_NAME, _IF_TSRESOL = 1, 4, 2, 9
_NANOSECONDS = b"\x09"  # 10⁻⁹ s
_OPTION_MAX = 0xFFFF
_NO_SNAPLEN = 0


class Writer:
    """Writes packets to `stream`, a binary file. `interfaces`: pairs of a name and a link type (LINKTYPE_, 1
    is Ethernet, 101 bare IP), numbered from 0 in their order.

    Every method raises LiveError where the stream takes no more (a full disk).
    """

    def __init__(
        self, stream: IO[bytes], interfaces: Sequence[tuple[str, int]], application: str = "rke2-flows"
    ) -> None:
        self._stream = stream
        self._interfaces = len(interfaces)
        section = struct.pack("=IHHQ", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
        blocks = [_block(_SECTION, section + _options([(_USERAPPL, application.encode())]))]
        for name, link in interfaces:
            options = _options([(_IF_NAME, _utf8(name)), (_IF_TSRESOL, _NANOSECONDS)])
            blocks.append(_block(_INTERFACE, struct.pack("=HHI", link, 0, _NO_SNAPLEN) + options))
        self._write(b"".join(blocks))

    def packet(self, time_ns: int, interface_index: int, data: bytes, length: int, comment: str = "") -> None:
        """One packet. `time_ns`: ns since the epoch. `interface_index`: its number in `interfaces`. `data`:
        its first bytes, of `length` on the wire. `comment`: one line on it, as Wireshark shows it; one longer
        than 65,535 bytes is cut.

        Raises ValueError where there is no such interface or `data` is longer than the packet.
        """
        if not 0 <= interface_index < self._interfaces:
            raise ValueError(f"there is no interface {interface_index}")
        if len(data) > length:
            raise ValueError(f"{len(data)} bytes of a packet of {length}")
        head = struct.pack("=IIIII", interface_index, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), length)
        comments = [(_COMMENT, _utf8(comment))] if comment else []
        self._write(_block(_PACKET, head + _padded(data) + _options(comments)))

    def _write(self, block: bytes) -> None:
        try:
            self._stream.write(block)
            self._stream.flush()
        except OSError as error:
            raise LiveError(
                f"no packet can be kept any more: {error.strerror or error}",
                where=str(getattr(self._stream, "name", "")),
                next_step="make room, or keep them elsewhere",
            ) from error


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("=II", kind, length) + body + struct.pack("=I", length)


def _options(options: Iterable[tuple[int, bytes]]) -> bytes:
    packed = [struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options]
    return b"".join([*packed, bytes(4)]) if packed else b""


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _utf8(text: str) -> bytes:
    """Valid UTF-8 that fits an option, cut between two characters."""
    return text.encode("utf-8", "replace")[:_OPTION_MAX].decode("utf-8", "ignore").encode()
