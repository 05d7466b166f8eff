"""Findings that people have accepted. Rule: reads accept.yaml and knows ids and dates; has no clock and
judges no finding.

    - finding: violation-b7f5ba8f8f
      reason: backup job, moves to the API in March
      who: J. Rivera, platform
      until: 2027-03-31

It holds up to the end of its last day in UTC. One that is over counts no more, and an id that no finding has
is a fault, so that the file stays true; a finding that is not in every run says so with ``sometimes: true``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from analyzer._yaml import near, parse_yaml, place_of, printable, prose, quote, read_text
from analyzer.errors import SpecError
from analyzer.findings import KINDS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from analyzer._yaml import Marked

REQUIRED = ("finding", "reason", "who", "until")
OPTIONAL = ("sometimes",)
MAX_BYTES = 16 << 20
_ID = re.compile(rf"({'|'.join(KINDS)})-[0-9a-f]{{10}}")
_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Acceptance:
    """Who accepts which finding, why, and up to which day (that day included, UTC).

    `sometimes`: the finding need not be in every run. `place`: where it is written.
    """

    finding: str
    reason: str
    who: str
    until: date
    sometimes: bool = False
    place: str = ""

    def holds(self, today: date) -> bool:
        """Whether its last day is not over."""
        return today <= self.until


def load_accepted(path: str | Path) -> tuple[Acceptance, ...]:
    """The entries of an accept.yaml (``-`` is standard input), in its order.

    Raises SpecError with the line where one lacks a key, has an unknown one, or a value cannot be.
    """
    return parse_accepted(read_text(path, SpecError, limit=MAX_BYTES), where=place_of(path))


def parse_accepted(text: str, *, where: str = "accept.yaml") -> tuple[Acceptance, ...]:
    """See :func:`load_accepted`; `where` names the text."""
    entries = [_acceptance(entry) for entry in parse_yaml(text, where=where, error=SpecError).items()]
    _check_twice(entries)
    return tuple(entries)


def _acceptance(entry: Marked) -> Acceptance:
    fields = entry.mapping(REQUIRED, OPTIONAL)
    return Acceptance(
        finding=fields["finding"].read(_id),
        reason=fields["reason"].read(lambda text: _words(text, "the reason")),
        who=fields["who"].read(lambda text: _words(text, "who accepts it")),
        until=fields["until"].read(_day),
        sometimes=fields["sometimes"].read(_flag) if "sometimes" in fields else False,
        place=fields["finding"].place,
    )


def _id(text: str) -> str:
    if not _ID.fullmatch(text):
        kind = text.rpartition("-")[0]
        advice = near(kind, KINDS) if kind not in KINDS else ""
        raise SpecError(
            f"{quote(text)} is no finding's id", next_step=advice or "copy it from the column id of `check`"
        )
    return text


def _words(text: str, what: str) -> str:
    return prose(printable(" ".join(text.split()), SpecError, what), SpecError)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise SpecError(
            f"{quote(text)} is no day", next_step="write it as year-month-day: 2027-03-31"
        ) from None


def _flag(text: str) -> bool:
    if text not in _WORDS:
        raise SpecError(f"{quote(text)} is neither true nor false", next_step="write true, or leave it out")
    return _WORDS[text]


def _check_twice(entries: Iterable[Acceptance]) -> None:
    first: dict[str, Acceptance] = {}
    for entry in entries:
        other = first.setdefault(entry.finding, entry)
        if other is not entry:
            what = f"{entry.finding} is accepted twice"
            raise SpecError(what, where=entry.place, next_step=f"first in {other.place}; keep one")


def check_known(accepted: Iterable[Acceptance], known: Collection[str]) -> None:
    """Raises SpecError with its line for an entry whose id is none of `known`, the ids of all findings."""
    for entry in accepted:
        if entry.finding not in known and not entry.sometimes:
            advice = near(entry.finding, known)
            raise SpecError(
                f"no finding has the id {entry.finding}",
                where=entry.place,
                next_step=f"{advice} Else remove".strip() + " the entry, or add `sometimes: true`",
            )


def template(findings: Iterable[Mapping[Any, Any]]) -> str:
    """An accept.yaml for these findings (`id`, `severity`, `title`), its reasons, names and days left open.

    Until they are written it is refused.
    """
    return "\n".join(_entry(finding) for finding in findings) or "[]\n"


def _entry(finding: Mapping[Any, Any]) -> str:
    told = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(finding["title"])
    )
    lines = [f"# {finding['severity']}: {told}", f"- finding: {finding['id']}", "  reason:", "  who:"]
    return "\n".join([*lines, "  until:", ""])
