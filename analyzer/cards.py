"""How a value shows itself in Jupyter. Rule: titles, facts and tables in, HTML out; knows no flow, cluster or
specification, and no number that it was not given.

What it is given comes from packets and inventories: all of it is text, never markup, never a formula, and
cut where it is long. The HTML holds no script and no style sheet, makes no request, and takes its colours
from the page around it, so that it reads on light and dark alike.
"""

from __future__ import annotations

import sys
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd

MAX_ROWS = 40
MAX_CHARACTERS = 160

#: the left edge of a row that has such a word in it: middle tones, seen on white and on black
EDGES = {
    "critical": "#d13b3b", "high": "#d97a1f", "medium": "#b8982f", "low": "#3f8fc4", "info": "#8a8a8a",
}  # fmt: skip
# the classes keep Jupyter's formula typesetting out: a name may hold a $
_OPEN = '<div class="rke2-flows tex2jax_ignore mathjax_ignore" style="color:inherit;line-height:1.4">'
_LINE = "1px solid rgba(128,128,128,.4)"
_CELL = f"padding:2px 10px 2px 6px;border:0;border-bottom:{_LINE};vertical-align:top;background:transparent"


def card(title: str, facts: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> str:
    """HTML of a titled value.

    ``facts``: name → value, one line each; empty ones are left out. ``tables``: how to get the table in
    Python → its rows, of which at most MAX_ROWS are shown.
    """
    lines = [f"<div><b>{_text(title)}</b></div>", *_facts(facts)]
    lines += [line for name, table in tables.items() for line in _table(name, table)]
    return _OPEN + "".join(lines) + "</div>"


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in facts.items():
        if value not in ("", None):
            yield f'<div><span style="opacity:.7">{_text(name)}</span> {_text(value)}</div>'


def _table(name: str, table: pd.DataFrame) -> Iterator[str]:
    yield f'<div style="margin-top:8px"><code>{_text(name)}</code> {_size(table)}</div>'
    if table.empty:
        return
    from pandas.api.types import is_numeric_dtype  # noqa: PLC0415  pandas takes long to load

    numeric = [is_numeric_dtype(kind) for kind in table.dtypes]
    yield '<div style="overflow-x:auto"><table style="border-collapse:collapse;margin:2px 0;font-size:90%">'
    yield f"<thead><tr>{''.join(map(_heading, map(str, table.columns), numeric))}</tr></thead><tbody>"
    for row in table.head(MAX_ROWS).itertuples(index=False):
        yield _row(tuple(row), numeric)
    yield "</tbody></table></div>"


def _size(table: pd.DataFrame) -> str:
    rows = len(table)
    shown = f", the first {MAX_ROWS} shown" if rows > MAX_ROWS else ""
    return f'<span style="opacity:.7">{rows:,} row{"" if rows == 1 else "s"}{shown}</span>'


def _heading(name: str, numeric: bool) -> str:
    return f'<th style="{_CELL};font-weight:600;{_aligned(numeric)}">{_text(name)}</th>'


def _row(values: tuple[Any, ...], numeric: list[bool]) -> str:
    edge = next((EDGES[value] for value in values if isinstance(value, str) and value in EDGES), "")
    first = f";border-left:4px solid {edge}" if edge else ""
    cells = [
        f'<td style="{_CELL}{first if place == 0 else ""};{_aligned(number)}">{_text(value)}</td>'
        for place, (value, number) in enumerate(zip(values, numeric, strict=True))
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _aligned(numeric: bool) -> str:
    return "text-align:right;white-space:nowrap" if numeric else "text-align:left"


def _text(value: Any) -> str:
    """Any value as text of a page."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if value is None or is_missing(value):
        return ""
    text = str(value)
    cut = text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"
    return escape("".join(sign if sign.isprintable() else _code(ord(sign)) for sign in cut))


def is_missing(value: Any) -> bool:
    """Whether it is what pandas puts where there is no value: there is none where pandas was not imported."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and (value is pandas.NaT or value is pandas.NA)


def _code(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
