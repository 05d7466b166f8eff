"""Columns of flows to Arrow and Parquet. Rule: knows types, not what a column means; who imports it waits for
Arrow.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analyzer._pairing import Addresses
from analyzer.columns import Masked, Text, Times

if TYPE_CHECKING:
    from pathlib import Path

    from analyzer.columns import Column, FlowColumns

#: flows of a row group: what stands in memory twice while a file is written
ROW_GROUP = 1 << 17
#: what pandas has to be told: that numbers of which some are missing stay whole ones
_FOR_PANDAS = {
    "index_columns": [],
    "column_indexes": [],
    "columns": [
        {"name": "pid", "field_name": "pid", "pandas_type": "int64", "numpy_type": "Int64", "metadata": None}
    ],
    "pandas_version": "2.2.0",
}


def write_columns(flows: FlowColumns, path: Path, metadata: dict[bytes, bytes]) -> None:
    """Writes all flows to a Parquet file, :data:`ROW_GROUP` of them at a time."""
    schema = batch_of(flows.between(0, 0)).schema
    # counts and times hardly repeat: a dictionary of them costs time and makes the file longer
    named = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    schema = schema.with_metadata({b"pandas": json.dumps(_FOR_PANDAS).encode(), **metadata})
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=named) as writer:
        for begin in range(0, len(flows), ROW_GROUP):
            writer.write_batch(batch_of(flows.between(begin, begin + ROW_GROUP, in_order=False)))


def batch_of(columns: dict[str, Column]) -> pa.RecordBatch:
    """Columns of one length as a record batch; the buffers of numbers are theirs."""
    return pa.RecordBatch.from_arrays([_array(column) for column in columns.values()], names=list(columns))


def _array(column: Column) -> pa.Array:
    if isinstance(column, Text):
        codes = pa.array(column.codes.astype(np.int32, copy=False), mask=column.codes < 0)
        return pa.DictionaryArray.from_arrays(codes, _texts(column))
    if isinstance(column, Masked):
        return pa.array(column.values, mask=column.missing)
    if isinstance(column, Times):
        return pa.array(column.ns.view("datetime64[ns]"), pa.timestamp("ns", "UTC"))
    return pa.array(column)


def _texts(column: Text) -> pa.StringArray:
    names = column.names
    if not isinstance(names, Addresses):
        return pa.array(list(names), pa.string())
    offsets = pa.py_buffer(names.offsets)
    return pa.StringArray.from_buffers(len(names.offsets) - 1, offsets, pa.py_buffer(names.texts))
