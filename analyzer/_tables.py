"""Flow tables as pandas reads and writes them: CSV and JSON Lines, and the types of all. Rule: knows columns
and texts, not what a flow means; who imports it has to wait for pandas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

import numpy as np
import pandas as pd

from analyzer.columns import COLUMNS, PROTOCOLS, TUNNELS, parse_address
from analyzer.facts import parse_drops

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
NUMBERS = {
    **dict.fromkeys(("client_port", "server_port", "tcp_flags_out", "tcp_flags_in"), "uint16"),
    **dict.fromkeys(("packets_out", "packets_in", "bytes_out", "bytes_in", "first_frame"), "uint64"),
    "vni": "uint32",
}
LIVE = ("process", "pid", "pod", "drops")
TIMES = ("start", "end")


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:
        between = ";" if b"source;" in file.readline(64).replace(b'"', b"") else ","
    table = pd.read_csv(path, sep=between, dtype="str", keep_default_na=False)
    texts = [name for name in table.columns if name not in (*NUMBERS, *TIMES)]
    return table.assign(**{name: table[name].map(_unescape) for name in texts})


def _read_jsonl(path: Path) -> pd.DataFrame:
    table = pd.read_json(path, lines=True, dtype=False)
    return table if len(table.columns) else pd.DataFrame(columns=list(COLUMNS))  # of no flows


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The types of :func:`analyzer.flows.pair`. ValueError where a value has none or a column is missing."""
    table = table.assign(**{name: None for name in LIVE if name not in table})  # older than live capture
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    numbers = {name: whole(table[name], dtype) for name, dtype in NUMBERS.items()}
    moments = {name: times(table[name]) for name in TIMES}
    texts = [name for name in COLUMNS if name not in (*numbers, *moments, *LIVE)]
    plain = {name: table[name].astype("str").fillna("").astype("category") for name in texts}
    live = {name: table[name].replace("", None) for name in LIVE}
    pid = pids(live.pop("pid"))
    names = {name: column.map(str, na_action="ignore").astype("category") for name, column in live.items()}
    return table.assign(**numbers, **moments, **plain, **names, pid=pid)


def pids(column: pd.Series) -> pd.Series:
    """As Int64. ValueError where one is none."""
    pid = pd.to_numeric(column.astype("object")).astype("Int64")
    if ((pid < 0) | (pid > np.iinfo(np.uint32).max)).any():
        raise ValueError("pid holds what is no process id")
    return pid


def whole(column: pd.Series, dtype: str) -> pd.Series:
    """Whole numbers of that dtype, also from text. ValueError where one is none."""
    numbers = pd.to_numeric(column)
    if ((numbers < 0) | (numbers > np.iinfo(dtype).max) | (numbers % 1 != 0)).any():
        raise ValueError(f"{column.name} holds what is no whole number from 0 to {np.iinfo(dtype).max}")
    return numbers.astype(np.dtype(dtype))


def times(column: pd.Series) -> pd.Series:
    """datetime64[ns, UTC], also from ISO 8601; what has no zone is UTC. ValueError where one is no time."""
    times = pd.to_datetime(column, utc=True, format="ISO8601").dt.as_unit("ns")
    if (times < pd.Timestamp(0, tz="UTC")).any():
        raise ValueError(f"{column.name} holds a time before 1970")
    return times


def check(table: pd.DataFrame) -> None:
    """ValueError where a name or an address is none."""
    for column in ("client", "server", "outer_client", "outer_server"):
        for text in table[column].astype(str).unique():
            _check_address(column, text)
    for column, known in (("protocol", PROTOCOLS), ("tunnel", TUNNELS)):
        wrong = set(table[column].astype(str)) - set(known)
        if wrong:
            raise ValueError(f"{column} {min(wrong)!r} is not known")
    for text in table["drops"].dropna().unique():
        parse_drops(text)


def _check_address(column: str, text: str) -> None:
    if not text and column.startswith("outer"):
        return
    try:
        parse_address(text)
    except OSError as error:
        raise ValueError(f"{column} {text!r} is no IP address") from error


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        to_csv(table, file)


def to_csv(table: pd.DataFrame, file: TextIO) -> None:
    """Writes a flow table as CSV."""
    texts = _escaped(table)
    # Python quotes a carriage return only where it is part of the line's end
    returns = any(_has_returns(table[name]) for name in _texts(table))
    texts.to_csv(file, index=False, lineterminator="\r\n" if returns else "\n")


def _has_returns(column: pd.Series) -> bool:
    texts = column.cat.categories.to_series() if column.dtype == "category" else column
    return bool(texts.astype("str").str.contains("\r", regex=False, na=False).any())


def _texts(table: pd.DataFrame) -> list[str]:
    """Columns of texts, whatever pandas keeps them as."""
    return [
        name
        for name in table.columns
        if table[name].dtype == "category" or pd.api.types.is_string_dtype(table[name].dtype)
    ]


def _write_jsonl(table: pd.DataFrame, path: Path) -> None:
    _iso(table).to_json(path, orient="records", lines=True)


def _iso(table: pd.DataFrame) -> pd.DataFrame:
    times = {name: table[name].map(_isoformat, na_action="ignore").astype("object") for name in TIMES}
    return table.assign(**times)


def _isoformat(time: pd.Timestamp) -> str:
    return time.isoformat().replace("+00:00", "Z")


def _escaped(table: pd.DataFrame) -> pd.DataFrame:
    """Times as ISO 8601, and an apostrophe before text that a spreadsheet would take for a formula."""
    table = _iso(table)
    return table.assign(
        **{
            name: table[name].astype("str").map(_escape, na_action="ignore")
            for name in _texts(table)
            if name not in TIMES
        }
    )


def _escape(text: str) -> str:
    return f"'{text}" if text.startswith((*_FORMULA, "'")) else text


def _unescape(text: str) -> str:
    return text[1:] if text.startswith("'") else text


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {"csv": _read_csv, "jsonl": _read_jsonl}
WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {".csv": _write_csv, ".jsonl": _write_jsonl}
