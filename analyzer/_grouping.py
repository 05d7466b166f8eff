"""Equal keys found and added up, exactly. Rule: knows arrays, not what they hold."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.capture import _reader

ADDRESS = np.dtype("V16")

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]

_NOTHING = np.zeros((), "V1")
#: nobody who sends packets can choose keys that meet in a table
SEED = int.from_bytes(os.urandom(8), "little")


def group(keys: npt.NDArray[np.uint8]) -> tuple[Indices, Indices]:
    """Groups equal keys exactly. `keys`: C-contiguous, shape (n, width), width a multiple of 8.

    Returns the group number of each key, in order of first appearance, and the first key of each group.
    """
    if not len(keys):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    numbers, first = _reader.group(np.ascontiguousarray(keys).data, keys.shape[1], SEED)
    of, firsts = (np.frombuffer(memoryview(block), np.uint32).astype(np.intp) for block in (numbers, first))
    return of, firsts


def pack(*columns: Array) -> npt.NDArray[np.uint8]:
    """Columns side by side as bytes, padded to whole words: keys for :func:`group`. Shape (n, width)."""
    fields = [(f"f{i}", c.dtype, c.shape[1:]) for i, c in enumerate(columns)]
    width = sum(np.dtype((dtype, shape)).itemsize for _, dtype, shape in fields)
    keys = np.empty(len(columns[0]), [*fields, ("pad", "V1", (-width % 8,))])
    for (name, _, _), column in zip(fields, columns, strict=True):
        keys[name] = column
    keys["pad"] = _NOTHING
    return keys.view(np.uint8).reshape(len(keys), keys.dtype.itemsize)


class Groups:
    """Rows by group, for exact integer reductions. `numbers`: group of each row; `count`: how many groups,
    none of them empty.
    """

    def __init__(self, numbers: Indices, count: int) -> None:
        self._numbers, self._count = numbers, count

    @cached_property
    def order(self) -> Indices:
        """The rows, those of one group together."""
        return np.argsort(self._numbers, kind="stable")

    @cached_property
    def starts(self) -> Indices:
        """Where in `order` each group begins."""
        return np.searchsorted(self._numbers[self.order], np.arange(self._count))

    def reduce(self, function: np.ufunc, values: Array) -> Array:
        """`function` (a sum, a bound or a bitwise or) over each group's values, in the values' dtype. Shape
        (count,).
        """
        result = np.zeros(self._count, values.dtype)
        if function is not np.add or self._count == len(self._numbers):
            result[self._numbers] = values  # a bound may begin with any value of the group, and meet it again
        if self._count < len(self._numbers):
            function.at(result, self._numbers, np.ascontiguousarray(values))
        return result


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of MurmurHash3: each bit of the input changes half of the output's."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))
