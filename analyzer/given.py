"""A flow table as whoever has it gives it. Rule: knows columns and their types, not what a flow means; what
is as :func:`analyzer.flows.pair` makes it stays as it is, and costs a look at each column's type.

Tables come back from CSV, JSON Lines and other programs: texts that are no categories, times as text, in
another zone or in none, which is UTC as everywhere. What can be taken for what it is to be is; what lacks, or
cannot, is said with the verb that was asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyzer._tables import LIVE, NUMBERS, TIMES, pids, times, whole
from analyzer.columns import COLUMNS
from analyzer.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_FEW = 6
_JUDGE = "judge the flows first: `judge(flows, cluster, spec)`"
_KEEP = "leave out rows, not columns: a flow table is what `pair` returns"
_READ = "`pair(read_flows(path))` reads a flow table with its types"


def given(table: pd.DataFrame, verb: str, needed: Collection[str], *, gaps: bool = True) -> pd.DataFrame:
    """The flow table, judged or not, with each `needed` column of a type that all verbs take: the same object
    where all are.

    Numbers are integers, times datetime64 in UTC, texts categories or strings. What only live captures know
    (process, pid, pod, drops) may lack, as in older files. Unless `gaps` may stay, missing texts are empty.

    Raises CaptureError, which names the `verb`, where a column lacks or holds what it cannot.
    """
    types = dict(zip(table.columns, table.dtypes, strict=True))
    lacking = [name for name in needed if name not in types]
    _refuse_lacking([name for name in lacking if name not in LIVE], types, verb)
    if len(types) < len(table.columns):
        twice = table.columns[table.columns.duplicated()].tolist()
        raise CaptureError(
            f"the flow table has the column {_listed(twice)} twice",
            where=verb,
            next_step="drop one of the two",
        )
    changed: dict[str, Any] = dict.fromkeys(lacking)
    for name in needed:
        if name in types and not _fits(name, types[name]):
            changed[name] = _made_fit(table[name], verb)
    table = table.assign(**changed) if changed else table
    return table if gaps else without_gaps(table, [name for name in needed if _is_text(name)])


def _refuse_lacking(lacking: list[str], there: Collection[str], verb: str) -> None:
    if not lacking:
        return
    next_step = _KEEP if any(name in COLUMNS for name in lacking) else _JUDGE
    what = f"has no column {_listed(lacking)}" if len(there) else "has no columns"
    raise CaptureError(f"the flow table {what}", where=verb, next_step=next_step)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{', '.join(map(str, names[:_FEW]))}{more}"


def _is_text(name: str) -> bool:
    """Of those that are empty where there is nothing to say: live ones are missing there."""
    return name not in NUMBERS and name not in TIMES and name not in LIVE


def _fits(name: str, dtype: Any) -> bool:
    if name in TIMES:
        return isinstance(dtype, pd.DatetimeTZDtype) and str(dtype.tz) == "UTC"
    if name in NUMBERS:
        return bool(dtype == NUMBERS[name])
    if name == "pid":
        return isinstance(dtype, pd.Int64Dtype)
    if isinstance(dtype, np.dtype):
        return dtype.kind == "O"
    return isinstance(dtype, pd.CategoricalDtype | pd.StringDtype)


def _made_fit(column: pd.Series[Any], verb: str) -> Any:
    name = str(column.name)
    if isinstance(column.dtype, pd.ArrowDtype):  # of which pandas can do but a part of what it does of others
        column = column.astype(object)
    try:
        if name in TIMES:
            return times(column if column.dtype.kind == "M" else _as_text(column))
        if name in NUMBERS:
            return whole(column, NUMBERS[name])
        return pids(column) if name == "pid" else _text(column)
    except (ValueError, TypeError, ArithmeticError) as error:
        kind = "time" if name in TIMES else "whole number"
        raise CaptureError(
            f"the column {name} holds what is no {kind}: {error}", where=verb, next_step=_READ
        ) from error


def _as_text(column: pd.Series[Any]) -> pd.Series[Any]:
    """Whatever stands for a time: a number does not, since nobody says in which unit."""
    if column.dtype.kind in "iuf" and column.notna().any():
        raise ValueError("a number has no unit")
    return column.astype(object).map(str, na_action="ignore")


def _text(column: pd.Series[Any]) -> pd.Series[Any]:
    """Of a column that is all numbers, as one of protocols without a name, or all missing."""
    plain = column.astype(object)
    return plain.where(plain.isna(), plain.map(_word)).where(plain.notna(), None)


def _word(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def without_gaps(table: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The table with empty texts where columns of texts have missing ones: pandas makes NaN of a CSV file's
    empty cells.
    """
    missing = [name for name in names if _has_gaps(table[name])]
    texts = {name: table[name].astype(object).where(table[name].notna(), "") for name in missing}
    return table.assign(**texts) if texts else table


def _has_gaps(column: pd.Series[Any]) -> bool:
    values = column.array
    if isinstance(values, pd.Categorical):
        return bool(values.codes.min(initial=0) < 0)
    return bool(column.isna().any())
