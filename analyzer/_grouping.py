"""Equal keys found and added up, exactly. Rule: knows arrays, not what they hold."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.capture import _reader

ADDRESS = np.dtype("V16")

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]

_SEED = int.from_bytes(os.urandom(8), "little")


def group(keys: npt.NDArray[np.uint8]) -> tuple[Indices, Indices]:
    """Groups equal keys exactly. `keys`: C-contiguous, shape (n, width), width a multiple of 8.

    Returns the group number of each key, in order of first appearance, and the first key of each group.
    """
    if not len(keys):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    numbers, first = _reader.group(np.ascontiguousarray(keys).data, keys.shape[1], _SEED)
    of, firsts = (np.frombuffer(memoryview(block), np.uint32).astype(np.intp) for block in (numbers, first))
    return of, firsts


def pack(*columns: Array) -> npt.NDArray[np.uint8]:
    """Columns side by side as bytes, padded to whole words: keys for :func:`group`. Shape (n, width)."""
    widths = [c.dtype.itemsize * (c.shape[1] if c.ndim > 1 else 1) for c in columns]
    parts = [
        np.ascontiguousarray(c).view(np.uint8).reshape(len(c), width)
        for c, width in zip(columns, widths, strict=True)
    ]
    pad = -sum(p.shape[1] for p in parts) % 8
    return np.concatenate([*parts, np.zeros((len(columns[0]), pad), np.uint8)], axis=1)


class Groups:
    """Rows by group, for exact integer reductions. `numbers`: group of each row; `count`: how many groups,
    none of them empty.
    """

    def __init__(self, numbers: Indices, count: int) -> None:
        self.order = np.argsort(numbers, kind="stable")
        self.starts = np.searchsorted(numbers[self.order], np.arange(count))

    def reduce(self, function: np.ufunc, values: Array) -> Array:
        """`function` over each group's values, in the values' dtype. Shape (count,)."""
        if not len(self.starts):
            return values[:0]
        result: Array = function.reduceat(values[self.order], self.starts, dtype=values.dtype)
        return result
