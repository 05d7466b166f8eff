"""One-way rows as an Arrow table, and back. Rule: knows columns and their limits, no file and no flow.

One table holds all records of a :class:`OneWay`, one row each; `record` says of which kind, and a column that
a kind does not have is null there. What is read is hostile until it was checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from analyzer._grouping import ADDRESS, Array
from analyzer.choice import BOUNDED, Choice
from analyzer.facts import DROP, OWNER, Facts, merge_facts
from analyzer.rows import FRAGMENT, NO_TIME, ROW, Coverage, Endpoint, Observer, OneWay, Rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow.parquet as pq

KIND = "rows"
_LISTENER = np.dtype([("dst", ADDRESS), ("dst_port", "u2"), ("protocol", "u1")])
#: record → its dtype; the order in the table
RECORDS = {"flow": ROW, "owner": OWNER, "drop": DROP, "listener": _LISTENER, "fragment": FRAGMENT}
#: struct field → column, where they differ
_COLUMNS = {"interface": "observer"}
#: columns of few values, which a dictionary makes small; the others only cost time
DICTIONARY = [
    *("record", "observer", "src", "dst", "outer_src", "outer_dst", "vni", "dst_port", "protocol", "tunnel"),
    *(
        "direction",
        "interval",
        "first_frame",
        "unreachable",
        "tcp_flags",
        "events",
        "process",
        "pod",
        "reason",
    ),
]
_TEXTS = ("process", "pod", "reason")
_ADDRESS = pa.binary(16)
_TIME_LIMIT = 2**63  # a signed 64-bit number of ns
#: field → the first value that it cannot have
_LIMITS = {
    "tunnel": 5,
    "direction": 3,
    "events": 8,
    "interval": _TIME_LIMIT,
    "end": _TIME_LIMIT,
    "time": _TIME_LIMIT,
    "has_first": 2,
}


def to_arrow(one_way: OneWay) -> pa.Table:
    """All records, rows first. Shape: as many rows as there are records."""
    listeners = np.zeros(len(one_way.listeners), _LISTENER)
    ends = sorted(one_way.listeners)
    for field, values in (("dst_port", [e.port for e in ends]), ("protocol", [e.protocol for e in ends])):
        listeners[field] = values
    listeners["dst"] = np.array([e.address for e in ends], ADDRESS)
    facts = one_way.facts
    records = (one_way.rows, facts.owners, facts.drops, listeners, one_way.fragments)
    tables = [
        _table(kind, rows, facts.names)
        for kind, rows in zip(RECORDS, records, strict=True)
        if len(rows) or kind == "flow"
    ]
    return pa.concat_tables(tables, promote_options="default")


def _fields(dtype: np.dtype[np.void]) -> Iterator[tuple[str, str]]:
    """Field and column of a record's dtype."""
    names = (name for name in dtype.names or () if not name.startswith("reserved"))
    yield from ((name, _COLUMNS.get(name, name)) for name in names)


def _table(kind: str, rows: Rows, names: Sequence[str]) -> pa.Table:
    record = pa.DictionaryArray.from_arrays(
        np.full(len(rows), list(RECORDS).index(kind), np.int8), list(RECORDS)
    )
    columns = {column: _column(field, rows[field], names) for field, column in _fields(rows.dtype)}
    return pa.table({"record": record, **columns})


def _column(field: str, values: Array, names: Sequence[str]) -> pa.Array:
    if field in _TEXTS:
        used, codes = np.unique(values, return_inverse=True)
        texts = [names[i].encode("utf-8", "replace").decode() for i in used.tolist()]
        return pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(texts, pa.string()))
    values = np.ascontiguousarray(values)
    if values.dtype == ADDRESS:
        return pa.FixedSizeBinaryArray.from_buffers(_ADDRESS, len(values), [None, pa.py_buffer(values.data)])
    return pa.array(values)


# ---- reading ----


def groups_of(metadata: pq.FileMetaData, choice: Choice, interval: int) -> list[int]:
    """The numbers of the groups of rows in which something chosen may be, and of those that hold other
    records than flows. A file of an earlier version says nothing of its groups: all.
    """
    groups = range(metadata.num_row_groups)
    if not choice:
        return list(groups)
    columns = {metadata.schema.column(n).name: n for n in range(metadata.num_columns)}
    wanted = {name: columns[name] for name in ("record", *BOUNDED) if name in columns}
    return [n for n in groups if _may_have(metadata.row_group(n), wanted, choice, interval)]


def _may_have(rows: pq.RowGroupMetaData, columns: dict[str, int], choice: Choice, interval: int) -> bool:
    bounds = {}
    for name, number in columns.items():
        statistics = rows.column(number).statistics
        if statistics is not None and statistics.has_min_max:
            bounds[name] = (statistics.min, statistics.max)
    return bounds.pop("record", None) != ("flow", "flow") or choice.may_be_in(bounds, interval)


def from_arrow(
    table: pa.Table, observers: tuple[Observer, ...], coverage: tuple[Coverage, ...], interval: int
) -> OneWay:
    """The inverse of :func:`to_arrow`. ValueError where the table has a record that cannot be."""
    table.validate(full=True)
    kinds = _kinds(table)
    records: dict[str, Rows] = {}
    names = {"": 0}
    for number, (kind, dtype) in enumerate(RECORDS.items()):
        records[kind] = _records(_of_kind(table, kinds == number), dtype, names)
        _check(kind, records[kind], len(observers))
    facts = Facts(tuple(names), records["owner"], records["drop"])
    ends = (records["listener"][name].tolist() for name in ("dst", "protocol", "dst_port"))
    fragments = records["fragment"]
    ledgers = {ledger.source for ledger in coverage}
    if not {observers[n].source for n in np.unique(fragments["interface"])} <= ledgers:
        raise ValueError("it has fragments of a source that its coverage does not name")
    return OneWay(
        rows=records["flow"],
        observers=observers,
        coverage=coverage,
        fragments=fragments,
        interval=interval,
        listeners=frozenset(Endpoint(*end) for end in zip(*ends, strict=True)),
        facts=merge_facts([(facts, np.arange(len(observers), dtype=np.uint32))]),
    )


def _kinds(table: pa.Table) -> Array:
    """The number of each row's kind of record."""
    texts = _whole(table, "record", pa.string()).dictionary_encode()
    found = texts.dictionary.to_pylist()
    unknown = set(found) - set(RECORDS)
    if unknown:
        raise ValueError(f"record {min(unknown)!r} is not known")
    numbers: Array = np.array([list(RECORDS).index(kind) for kind in found], np.int8)
    return numbers[_numpy(texts.indices)]


def _whole(table: pa.Table, name: str, expected: pa.DataType) -> pa.Array:
    """A column of one chunk, of the expected type, and with a value in each row."""
    if name not in table.column_names:
        raise ValueError(f"it lacks the column {name}")
    column = table[name]
    if column.null_count:
        raise ValueError(f"{name} is missing where a record must have it")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type != expected:
        raise ValueError(f"{name} is of type {column.type}, not {expected}")
    return column.combine_chunks()


def _numpy(array: pa.Array) -> Array:
    values: Array = array.to_numpy()
    return values


def _of_kind(table: pa.Table, mine: Array) -> pa.Table:
    places = np.flatnonzero(mine)
    if not len(places):
        return table.slice(0, 0)
    if places[-1] - places[0] + 1 == len(places):
        return table.slice(places[0], len(places))
    return table.take(places)


def _records(table: pa.Table, dtype: np.dtype[np.void], names: dict[str, int]) -> Rows:
    """Rows of one kind as its dtype; texts are numbered in `names`."""
    records = np.zeros(len(table), dtype)
    for field, column in _fields(dtype) if len(table) else ():
        if field in _TEXTS:
            records[field] = _numbered(_whole(table, column, pa.string()), names)
        elif dtype[field] == ADDRESS:
            records[field] = _addresses(_whole(table, column, _ADDRESS))
        else:
            records[field] = _numpy(_whole(table, column, pa.from_numpy_dtype(dtype[field])))
    return records


def _numbered(texts: pa.Array, names: dict[str, int]) -> Array:
    encoded = texts.dictionary_encode()
    numbers = [names.setdefault(text, len(names)) for text in encoded.dictionary.to_pylist()]
    return np.array(numbers, np.uint32)[_numpy(encoded.indices)]


def _addresses(array: pa.Array) -> Array:
    return np.frombuffer(array.buffers()[1], ADDRESS, len(array), array.offset * ADDRESS.itemsize)


def _check(kind: str, records: Rows, observers: int) -> None:
    fields = set(records.dtype.names or ())
    limits = _LIMITS | {"interface": observers, "observer": observers}
    for name, limit in limits.items():
        if name in fields and len(records) and int(records[name].max()) >= limit:
            raise ValueError(
                f"a {kind} has {_COLUMNS.get(name, name)} {records[name].max()}, out of its range"
            )
    if "start" in fields:
        timed = records[records["start"] != NO_TIME]
        if (timed["start"] > timed["end"]).any():
            raise ValueError(f"a {kind} ends before it starts")
