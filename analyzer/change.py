"""What changed between two runs. Rule: pure; compares two documents, reads and judges nothing.

Two runs differ in length, so what is compared are rates: packets and bytes a second over the time in which at
least one source watched. What a short run did not see is not said to be gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer.findings import MANY, SEVERITIES
from analyzer.pairs import COLUMNS as PAIR
from analyzer.pairs import ICMP, KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from analyzer.documents import Document

#: column of :attr:`Change.pairs` → what it holds
PAIRS = {
    "change": "`new`, `gone`, `grown`",
    **{name: PAIR[name] for name in (*KEY, "scope", "rule", "verdict")},
    "packets_old": "packets in the old run, both directions",
    "packets_new": "packets in the new run",
    "packets_factor": "how many times as many packets a second; null where a run's window is not known",
    "bytes_old": "IP bytes in the old run, both directions",
    "bytes_new": "IP bytes in the new run",
    "bytes_factor": "how many times as many bytes a second; null where a run's window is not known",
}
#: column of :attr:`Change.findings` → what it holds
FINDINGS = {
    "change": "`new`, `worse` (graver than before), `fixed` (not found any more)",
    "severity": "now; of a fixed one what it was",
    "severity_old": "before; empty for a new one",
    "kind": "as in the findings",
    "title": "as in the findings",
    "id": "as in the findings",
}
PAIR_CHANGES = ("new", "gone", "grown")
FINDING_CHANGES = ("new", "worse", "fixed")

GROWTH = 2.0
"""Grown is what has more than so many times as many packets or bytes a second."""
_GROWN_FROM = {"packets": (100, 1.0), "bytes": (100_000, 1000.0)}
"""Measure → least number in the new run, and least number a second: below them a factor says nothing."""
_MISSED = {"flows": 3.0, "packets": 100.0}
"""So many of one or the other must be to come in a shorter new run for their absence to say something: where
3 come in the mean, none comes once in 20 times (Poisson)."""
_MEASURES = ("flows", "packets", "bytes")


@dataclass(frozen=True)
class Change:
    """What changed from `old` to `new`.

    `pairs`: DataFrame with :data:`PAIRS`, `findings`: with :data:`FINDINGS`, the gravest first. `notes`: what
    limits the comparison, one sentence each.
    """

    old: Document
    new: Document
    pairs: pd.DataFrame
    findings: pd.DataFrame
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        return {
            **{name: _run(run) for name, run in (("old", self.old), ("new", self.new))},
            "notes": list(self.notes),
            "pairs": [_plain(row) for row in self.pairs.to_dict("records")],
            "findings": self.findings.to_dict("records"),
        }


def _run(run: Document) -> dict[str, Any]:
    return {"name": run.name, "spec": run.spec, "cluster": run.cluster, "seconds": run.window}


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): _number(value) for name, value in row.items()}


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def compare(old: Document, new: Document, growth: float = GROWTH) -> Change:
    """What is new, gone, grown, worse and fixed.

    A pair is grown where its packets or its bytes a second are more than `growth` times what they were, and
    it has at least 100 packets and 1 packet a second, or 100 kB and 1 kB a second. It is gone where the new
    run is as long as the old one, or would have had at least 3 of its flows or 100 of its packets.
    """
    both = _side_by_side(old, new)
    both["change"] = _pair_changes(both, old, new, growth)
    changed = both[both["change"].isin(PAIR_CHANGES)]
    order = changed["change"].map(PAIR_CHANGES.index)
    pairs = changed.assign(order=order).sort_values(["order", *KEY], ignore_index=True)[list(PAIRS)]
    rare = int((both["change"] == "rare").sum())
    return Change(old, new, pairs, finding_changes(old, new), tuple(_notes(old, new, rare)))


# ---- pairs ----


def _side_by_side(old: Document, new: Document) -> pd.DataFrame:
    """One row for each pair of either, with `…_old` and `…_new`; 0 where it is not. What one run has as one
    row of many addresses or ports is one row of the other too. Counts stay Python's own numbers until none is
    missing: a float would round them.
    """
    folded = _folded(old) | _folded(new)
    sides = [pd.DataFrame(_rows(run, folded), columns=list(PAIR), dtype=object) for run in (old, new)]
    both = sides[0].merge(sides[1], on=list(KEY), how="outer", suffixes=("_old", "_new"), indicator=True)
    for name in ("scope", "rule", "verdict"):
        both[name] = both[f"{name}_new"].where(both[f"{name}_new"].notna(), both[f"{name}_old"])
    for measure in _MEASURES:
        for name in (f"{measure}_old", f"{measure}_new"):
            both[name] = both[name].where(both[name].notna(), 0).astype(np.uint64)
        both[f"{measure}_factor"] = _factor(both, measure, old.window, new.window)
    return both


def _factor(both: pd.DataFrame, measure: str, old_window: float, new_window: float) -> pd.Series[float]:
    if not (old_window and new_window):
        return pd.Series(np.nan, both.index, dtype=float)
    counts = both[[f"{measure}_old", f"{measure}_new"]].astype(float)
    before, after = counts.iloc[:, 0] / old_window, counts.iloc[:, 1] / new_window
    return (after / before.where(before > 0)).astype(float)


def _pair_changes(both: pd.DataFrame, old: Document, new: Document, growth: float) -> list[str]:
    """The change of each row; `rare` where too little was to come to be missed, empty for none. That one of a
    pair's ports became many is new, and that many became few: which ports these are is not known.
    """
    before, after = (_is_among(both, {key for key in _folded(run) if key[-1] == 0}) for run in (old, new))
    came, went = (both["_merge"] == side for side in ("right_only", "left_only"))
    tests = {
        "new": came | (after & ~before),
        "gone": (went & _is_missed(both, old, new)) | (before & ~after & ~went),
        "rare": went,
        "grown": (both["_merge"] == "both") & _is_grown(both, new.window, growth),
    }
    words = np.select([np.asarray(test, bool) for test in tests.values()], list(tests), "")
    return [str(word) for word in words]


_Key = tuple[Any, ...]


def _is_among(both: pd.DataFrame, keys: set[_Key]) -> npt.NDArray[np.bool_]:
    return np.array([key in keys for key in zip(*(both[name] for name in KEY), strict=True)], bool)


def _key(row: Mapping[str, Any]) -> _Key:
    return tuple(row[name] for name in KEY)


def _folded(run: Document) -> set[_Key]:
    """The rows that stand for many addresses, or for many ports."""
    return {_key(row) for row in run.pairs if _is_folded(row)}


def _is_folded(row: Mapping[str, Any]) -> bool:
    return MANY in (row["client"], row["server"]) or (row["port"] == 0 and row["protocol"] not in ICMP)


def _rows(run: Document, folded: set[_Key]) -> list[dict[str, Any]]:
    """The pairs of a run, with those as one that are part of the same folded row of either run."""
    rows: dict[_Key, dict[str, Any]] = {}
    for row in run.pairs:
        key = _place(row, folded)
        known = rows.get(key)
        if known is None:
            rows[key] = row | dict(zip(KEY, key, strict=True))
        else:
            known |= {name: known[name] + row[name] for name in _MEASURES}
    return list(rows.values())


def _place(row: Mapping[str, Any], folded: set[_Key]) -> _Key:
    """Its own key, or that of the folded row that it is part of: of ports only those that no rule names are,
    of addresses only those outside.
    """
    client, server, protocol, port = _key(row)
    ports = (port, 0) if row["rule"] == "" and protocol not in ICMP else (port,)
    outside = ((MANY, server), (client, MANY)) if row["scope"] == "external" else ()
    widest_first = [(*ends, protocol, at) for at in reversed(ports) for ends in (*outside, (client, server))]
    return next((key for key in widest_first if key in folded), _key(row))


def _is_missed(both: pd.DataFrame, old: Document, new: Document) -> npt.NDArray[np.bool_]:
    share = new.window / old.window if old.window and new.window else 1.0
    if share >= 1:
        return np.ones(len(both), bool)
    tests = [both[f"{name}_old"].astype(float) * share >= least for name, least in _MISSED.items()]
    return np.asarray(np.logical_or.reduce(tests), bool)


def _is_grown(both: pd.DataFrame, window: float, growth: float) -> npt.NDArray[np.bool_]:
    tests = [
        (both[f"{name}_factor"] > growth)
        & (both[f"{name}_new"] >= least)
        & (both[f"{name}_new"].astype(float) >= a_second * window)
        for name, (least, a_second) in _GROWN_FROM.items()
    ]
    return np.asarray(np.logical_or.reduce(tests), bool)


# ---- findings ----


def finding_changes(old: Document, new: Document) -> pd.DataFrame:
    """Findings that are new, worse or fixed: DataFrame with :data:`FINDINGS`."""
    before, after = Earlier(old), Earlier(new)
    parts = {_crowd(finding) for finding in new.findings}
    rows = [_finding(f, since(f["severity"], before.of(f)), before.of(f)) for f in new.findings]
    rows += [
        _finding(f, "fixed", f)
        for f in old.findings
        if after.of(f) is None and not (f["client"] == MANY and _crowd(f) in parts)
    ]
    table = pd.DataFrame([row for row in rows if row["change"]], columns=list(FINDINGS))
    ranks = {"change": FINDING_CHANGES.index, "severity": SEVERITIES.index}
    order = [table[name].map(rank).to_numpy(dtype=np.int64) for name, rank in ranks.items()]
    return table.iloc[np.lexsort((order[1], order[0]))].reset_index(drop=True)


class Earlier:
    """The findings of a run, to be asked for that of another run's: the one with its id, or the one of many
    addresses that it is part of.
    """

    def __init__(self, run: Document) -> None:
        self.by_id = {finding["id"]: finding for finding in run.findings}
        self._crowds = {_crowd(finding): finding for finding in run.findings if finding["client"] == MANY}

    def of(self, finding: Mapping[Any, Any]) -> dict[str, Any] | None:
        """None where there is none."""
        return self.by_id.get(finding["id"]) or self._crowds.get(_crowd(finding))


def _crowd(finding: Mapping[Any, Any]) -> _Key:
    """What findings of single addresses have in common with that of many."""
    return tuple(finding[name] for name in ("kind", "server", "protocol", "port"))


def since(severity: str, before: Mapping[str, Any] | None) -> str:
    """`new`, `worse` or empty: a finding of this severity beside that of the earlier run, None for none."""
    if before is None:
        return "new"
    return "worse" if SEVERITIES.index(severity) < SEVERITIES.index(before["severity"]) else ""


def _finding(finding: Mapping[str, Any], change: str, before: Mapping[str, Any] | None) -> dict[str, Any]:
    told = {name: finding[name] for name in ("severity", "kind", "title", "id")}
    return {"change": change, "severity_old": before["severity"] if before else "", **told}


# ---- what limits it ----


def _notes(old: Document, new: Document, rare: int) -> Iterator[str]:
    for what in ("spec", "cluster"):
        names = [getattr(run, what) for run in (old, new)]
        if names[0] != names[1]:
            yield f"{_NAMES[what]} differ: {names[0]} before, {names[1]} now, which changes verdicts too"
    if not (old.window and new.window):
        yield "a run's window is not known, so nothing can be said to have grown"
    elif new.window < old.window:
        yield f"the new run is shorter ({_seconds(new)}, not {_seconds(old)}): what is rare may not be in it"
    if rare:
        yield f"{rare} pairs of the old run are too rare to be missed in the new one, and are left out"
    for word, run in (("old", old), ("new", new)):
        if any(ledger.get("not_chosen") or ledger.get("parts_not_read") for ledger in run.coverage):
            yield f"the {word} run is of chosen flows: what is not in it may not have been asked for"
    lost = sorted(_sources(old) - _sources(new))
    if lost:
        more = f" and {len(lost) - _FEW} more" if len(lost) > _FEW else ""
        yield f"sources of the old run are not in the new one: {', '.join(lost[:_FEW])}{more}"


def _seconds(run: Document) -> str:
    return f"{run.window:.0f} s" if run.window >= 10 else f"{run.window:.3g} s"


_NAMES = {"spec": "the specifications", "cluster": "the clusters"}
_FEW = 5


def _sources(run: Document) -> set[str]:
    return {ledger["source"] for ledger in run.coverage}
