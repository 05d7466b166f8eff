"""What a pipeline stops on. Rule: pure; each finding gets one state, and the day of today is given.

    all findings  →  accepted, known or open  →  failing: open and at or above a severity

An acceptance goes before a baseline: where its day is over the finding is open again, also one that the
baseline knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from analyzer.accept import Acceptance, check_known
from analyzer.change import Earlier, since
from analyzer.findings import COLUMNS as FINDING
from analyzer.findings import SEVERITIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    from analyzer.documents import Document

NEVER = "never"
STATES = ("open", "known", "accepted")
#: column → what it holds, beside the findings' own
COLUMNS = {
    **FINDING,
    "state": "`open`, `known` (the baseline has it, no less grave), `accepted`",
    "change": "`new` or `worse` than in the baseline; empty for known ones, and without a baseline",
    "reason": "why it is or was accepted",
    "who": "who accepted it",
    "until": "up to which day, as text",
    "expired": "whether that day is over (bool)",
}


@dataclass(frozen=True)
class Gate:
    """The findings of one run, with what becomes of each.

    `findings`: DataFrame with :data:`COLUMNS`. `fail_on`: one of the severities or ``never``. `baseline`: the
    name of the document that known ones are in, empty for none.
    """

    findings: pd.DataFrame
    fail_on: str
    baseline: str = ""

    def of(self, state: str) -> pd.DataFrame:
        """The findings of one state."""
        return self.findings[self.findings["state"] == state].reset_index(drop=True)

    @property
    def failing(self) -> pd.DataFrame:
        """What makes a pipeline stop."""
        opened = self.of("open")
        return opened[at_or_above(opened["severity"], self.fail_on)].reset_index(drop=True)

    def notes(self) -> Iterator[str]:
        """What is left out of the open findings, and what came back, one sentence each."""
        known, accepted = len(self.of("known")), len(self.of("accepted"))
        if self.baseline:
            yield f"{_many(known, 'finding')} left out, known from {self.baseline}"
        if accepted:
            yield f"{_many(accepted, 'finding')} accepted, told apart"
        yield from self.returned()

    def returned(self) -> Iterator[str]:
        """What counts again since its acceptance is over, one sentence each."""
        for row in self.findings[self.findings["expired"]].to_dict("records"):
            yield f"{row['id']} counts again: accepted by {row['who']} until {row['until']}, {row['reason']}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{' is' if number == 1 else 's are'}"


def at_or_above(severities: pd.Series[str], fail_on: str) -> pd.Series[bool]:
    """Which are at least as grave as `fail_on`; none where it is ``never``."""
    grave = () if fail_on == NEVER else SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    return severities.isin(grave)


def decide(
    findings: pd.DataFrame,
    today: date,
    *,
    fail_on: str = "high",
    baseline: Document | None = None,
    accepted: Sequence[Acceptance] = (),
) -> Gate:
    """The state of each finding (:func:`analyzer.findings.find`) on the day `today`, in UTC.

    Raises SpecError where an accepted id is neither a finding's of this run nor one of the baseline's.
    """
    before = Earlier(baseline) if baseline else None
    check_known(accepted, [*findings["id"], *(before.by_id if before else ())])
    entries = {entry.finding: entry for entry in accepted}
    rows = [
        _state(row, before, entries.get(row["id"]), today)
        for row in findings[list(_ASKED)].to_dict("records")
    ]
    added = pd.DataFrame(rows, columns=list(COLUMNS)[len(FINDING) :], index=findings.index)
    added["expired"] = added["expired"].astype(bool)
    return Gate(pd.concat([findings, added], axis=1), fail_on, baseline.name if baseline else "")


_ASKED = ("id", "severity", "kind", "client", "server", "protocol", "port")


def _state(
    finding: Mapping[Any, Any], before: Earlier | None, entry: Acceptance | None, today: date
) -> dict[str, Any]:
    change = "" if before is None else since(finding["severity"], before.of(finding))
    known = before is not None and not change
    accepted = entry is not None and entry.holds(today)
    expired = entry is not None and not accepted
    return {
        "state": "accepted" if accepted else "known" if known and not expired else "open",
        "change": change,
        "reason": entry.reason if entry else "",
        "who": entry.who if entry else "",
        "until": entry.until.isoformat() if entry else "",
        "expired": expired,
    }
