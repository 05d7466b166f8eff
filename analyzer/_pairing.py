"""Which rows answer each other, who asked, and how it went. Rule: the native pairing's Python face; one-way
rows in, arrays out, and no text but those of addresses.

How it decides stands in ``_connections.h`` and ``_flows.h``, beside the code that does.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analyzer import _pair
from analyzer._grouping import ADDRESS, SEED, Array

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from analyzer.rows import Endpoint, Rows

#: in the order of their numbers there
OUTCOMES = ("answered", "refused", "unreachable", "unanswered", "one-way")
DIRECTION_BY = ("syn", "listener", "spec", "port")
#: (protocol number, port) pairs that a specification names
ServerPorts = frozenset[tuple[int, int]]

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
#: request → reply, for ICMP and ICMPv6: the two directions of one flow (RFC 792, 950, 4443, 4861)
REPLIES = {ICMP: {8: 0, 13: 14, 15: 16, 17: 18}, ICMPV6: {128: 129, 133: 134, 135: 136}}

#: `struct endpoint`
_ENDPOINT = np.dtype([("address", ADDRESS), ("port", "u2"), ("protocol", "u1"), ("reserved", "V5")])
#: X(name, type) of ``_columns.h``
_COLUMNS = {
    **dict.fromkeys(("flow", "observer", "vni"), np.uint32),
    **dict.fromkeys(("client", "server", "outer_client", "outer_server"), np.int32),
    **dict.fromkeys(("client_port", "server_port", "tcp_flags_out", "tcp_flags_in"), np.uint16),
    **dict.fromkeys(("protocol", "tunnel", "outcome", "direction_by", "carrier"), np.uint8),
    **dict.fromkeys(("start", "end"), np.int64),
    **dict.fromkeys(("packets_out", "packets_in", "bytes_out", "bytes_in"), np.uint64),
    **dict.fromkeys(("first_frame", "interval"), np.uint64),
}


class Addresses(NamedTuple):
    """Texts one after the other, the first one empty. `offsets`: shape (texts + 1,), dtype int32."""

    texts: bytearray
    offsets: Array

    def names(self) -> list[str]:
        """Each as a string."""
        text, at = self.texts.decode("ascii"), self.offsets.tolist()
        return [text[begin:end] for begin, end in pairwise(at)]


class Pairing:
    """The flows of one-way rows, sorted by start; neither they nor their order depends on the order of the
    rows.

    `rows`: shape (n,), dtype ROW, fewer than 2³¹, not to be changed meanwhile. `observers`: turn, chain and
    window of each observer. Raises MemoryError.
    """

    def __init__(
        self,
        rows: Rows,
        observers: tuple[Array, Array, Array],
        server_ports: ServerPorts,
        listeners: Iterable[Endpoint],
    ) -> None:
        ports = np.array([protocol << 16 | port for protocol, port in server_ports], np.uint32)
        self._pairing = _pair.Pairing(_bytes(rows), _bytes(ports), _bytes(_endpoints(listeners)), SEED)
        turn, chain, window = observers
        numbers = [_bytes(of.astype(np.uint32)) for of in (turn, chain)]
        self._pairing.observe(numbers[0], numbers[1], _bytes(window))

    def __len__(self) -> int:
        """How many flows there are."""
        return len(self._pairing)

    def columns(self, begin: int, end: int, *, in_order: bool) -> tuple[dict[str, Array], Addresses]:
        """Columns of the flows from `begin` to `end`, and the texts that those of addresses number: in
        numerical order, or in order of appearance.

        `flow`: its number, which :meth:`flow_of_row` gives. `observer`: the fullest witness. `start`, `end`:
        ns, the least int64 where there is no time. `interval`: ns. `carrier`: 1 for a tunnel's carrier.
        """
        columns = self._pairing.columns(begin, end, in_order)
        texts = Addresses(columns.pop("texts"), _array(columns.pop("offsets"), np.int32))
        return {name: _array(columns[name], dtype) for name, dtype in _COLUMNS.items()}, texts

    def flow_of_row(self) -> Array:
        """The number of each row's flow, shape (rows,), dtype uint32."""
        return _array(self._pairing.flow_of_row(), np.uint32)


def _bytes(elements: Array) -> memoryview:
    return np.ascontiguousarray(elements).view(np.uint8).data


def _array(elements: bytearray, dtype: Any) -> Array:
    return np.frombuffer(elements, dtype) if elements else np.zeros(0, dtype)


def _endpoints(listeners: Iterable[Endpoint]) -> Array:
    known: Sequence[Endpoint] = list(listeners)
    records = np.zeros(len(known), _ENDPOINT)
    for name in ("address", "port", "protocol"):
        records[name] = np.array([getattr(e, name) for e in known], _ENDPOINT[name])
    return records
