"""Flows over time. Rule: a pure pivot, as those of ``matrices.py``; no capture, file, clock or picture.

Only flows between two nodes count, each once, in the bin in which it began: the same flows as in the
matrices, so that all bins and ``untimed`` together are the matrices' total.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzer.given import given
from analyzer.matrices import FAILED_OUTCOMES, KINDS

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

MAX_BINS = 96
_MS, _S = 10**6, 10**9
#: widths that people count in, ns; above the last one, multiples of it
STEPS = (
    *(n * _MS for n in (1, 2, 5, 10, 20, 50, 100, 200, 500)),
    *(n * _S for n in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)),
    *(n * 3600 * _S for n in (1, 2, 3, 6, 12, 24)),
)
NO_BIN = -1


@dataclass(frozen=True)
class Timeline:
    """Counts of flows by the time they began.

    ``origin``: ns since the epoch at which the first bin begins. ``step``: ns. ``counts``: uint64 (bins,
    len(KINDS)), columns as :data:`analyzer.matrices.KINDS`. ``untimed``: flows between nodes that have no
    time, in no bin.
    """

    origin: int
    step: int
    counts: npt.NDArray[np.uint64]
    untimed: int

    def bins_of(self, starts: pd.Series[Any]) -> npt.NDArray[np.int64]:
        """Bin of each time, shape (n,); NO_BIN where there is no time or it lies outside."""
        bins = (_ns(starts) - self.origin) // max(self.step, 1)
        inside = starts.notna().to_numpy() & (bins >= 0) & (bins < len(self.counts))
        return np.where(inside, bins, NO_BIN)


def timeline(judged: pd.DataFrame, bins: int = MAX_BINS) -> Timeline:
    """The judged flow table to at most ``bins`` bins of equal width, over the time of all its flows.

    Raises CaptureError where a column lacks.
    """
    judged = given(judged, "timeline()", ("start", "scope", "verdict", "outcome"))
    times = _ns(judged["start"][judged["start"].notna()])
    between = judged[(judged["scope"] == "inter-node").to_numpy()]
    untimed = int(between["start"].isna().sum())
    if not len(times):
        return Timeline(0, 0, np.zeros((0, len(KINDS)), np.uint64), untimed)
    first, last = int(times.min()), int(times.max())
    step = _step(first, last, bins)
    origin = first - first % step
    line = Timeline(origin, step, np.zeros(((last - origin) // step + 1, len(KINDS)), np.uint64), untimed)
    place = line.bins_of(between["start"])
    timed = place != NO_BIN
    np.add.at(line.counts, (place[timed], _kinds(between)[timed]), 1)
    return line


def _step(first: int, last: int, bins: int) -> int:
    """The narrowest width that needs no more bins than asked for."""
    day = STEPS[-1]
    wider = (day * n for n in range(2, (last - first) // day + 3))
    return next(step for step in (*STEPS, *wider) if last // step - first // step < bins)


def _ns(times: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """Ns since the epoch, shape (n,); what is missing is far before it."""
    ns: npt.NDArray[np.int64] = (
        times.dt.as_unit("ns").dt.tz_localize(None).to_numpy(dtype="datetime64[ns]").view(np.int64)
    )
    return ns


def _kinds(between: pd.DataFrame) -> npt.NDArray[np.intp]:
    allowed = (between["verdict"] == "allowed").to_numpy()
    failed = between["outcome"].isin(FAILED_OUTCOMES).to_numpy()
    names = np.where(allowed, np.where(failed, KINDS.index("blocked"), 0), KINDS.index("outside"))
    return names.astype(np.intp)
