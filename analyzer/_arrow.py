"""Columns of flows to Arrow and Parquet. Rule: knows types, not what a column means; who imports it waits for
Arrow.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analyzer._pairing import Addresses
from analyzer.columns import Masked, Text, Times

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from analyzer._grouping import Array
    from analyzer.columns import Column, FlowColumns

#: flows of a row group: what stands in memory twice while a file is written
ROW_GROUP = 1 << 15
#: what pandas has to be told: that numbers of which some are missing stay whole ones
_FOR_PANDAS = {
    "index_columns": [],
    "column_indexes": [],
    "columns": [
        {"name": "pid", "field_name": "pid", "pandas_type": "int64", "numpy_type": "Int64", "metadata": None}
    ],
    "pandas_version": "2.2.0",
}


def write_columns(
    flows: FlowColumns, place: Path | IO[bytes], metadata: dict[bytes, bytes], threads: int = 1
) -> None:
    """Writes all flows to a Parquet file, :data:`ROW_GROUP` of them at a time; with several threads the next
    ones are made while those before them are written.
    """
    schema = batch_of(flows.between(0, 0)).schema
    schema = schema.with_metadata({b"pandas": json.dumps(_FOR_PANDAS).encode(), **metadata})
    with pq.ParquetWriter(place, schema, **how_written(schema)) as writer:
        for batch in _batches(flows) if threads == 1 else _ahead(_batches(flows)):
            writer.write_batch(batch)


def how_written(schema: pa.Schema) -> dict[str, Any]:
    """What Parquet is told of a flow table: counts and times hardly repeat, and differ little from one row to
    the next; nearly every text is in each row group, so that the least and the greatest of them tell nothing.
    """
    texts = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    numbers = [field.name for field in schema if _is_whole(field.type)]
    return {
        "compression": "zstd",
        "use_dictionary": texts or False,
        "column_encoding": dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
        "write_statistics": [field.name for field in schema if field.name not in texts],
    }


def _is_whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_timestamp(kind))


def _batches(flows: FlowColumns) -> Iterator[pa.RecordBatch]:
    for begin in range(0, len(flows), ROW_GROUP):
        yield batch_of(flows.between(begin, begin + ROW_GROUP, in_order=False))


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same, the next one made in another thread while one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def batch_of(columns: dict[str, Column]) -> pa.RecordBatch:
    """Columns of one length as a record batch; the buffers of numbers are theirs."""
    return pa.RecordBatch.from_arrays([_array(column) for column in columns.values()], names=list(columns))


def _array(column: Column) -> pa.Array:
    """Made of buffers: of arrays Arrow asks pandas first, and imports it."""
    if isinstance(column, Text):
        codes = _numbers(column.codes.astype(np.int32, copy=False), pa.int32(), column.codes < 0)
        return pa.DictionaryArray.from_arrays(codes, _texts(column.names))
    if isinstance(column, Masked):
        return _numbers(column.values, pa.int64(), column.missing)
    if isinstance(column, Times):
        return _numbers(column.ns, pa.timestamp("ns", "UTC"), column.ns == np.iinfo(np.int64).min)
    return _numbers(column, pa.type_for_alias(column.dtype.name), np.zeros(0, bool))


def _numbers(values: Array, kind: pa.DataType, missing: Array) -> pa.Array:
    valid = pa.py_buffer(np.packbits(~missing, bitorder="little")) if missing.any() else None
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(np.ascontiguousarray(values))])


def _texts(names: Sequence[str] | Addresses) -> pa.StringArray:
    if not isinstance(names, Addresses):
        encoded = [name.encode() for name in names]
        offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
        names = Addresses(bytearray(b"".join(encoded)), offsets)
    offsets = pa.py_buffer(names.offsets)
    return pa.StringArray.from_buffers(len(names.offsets) - 1, offsets, pa.py_buffer(names.texts))
