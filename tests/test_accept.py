"""accept.yaml: what is read, and which line is at fault. Rule: files as people write them, with one thing
wrong in each.
"""

from __future__ import annotations

import contextlib
from datetime import date
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.accept import Acceptance, check_known, load_accepted, parse_accepted, template
from analyzer.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

ID, OTHER = "violation-b7f5ba8f8f", "blind-spot-0123456789"
ENTRY = f"""\
- finding: {ID}
  reason: backup job, moves to the API in March
  who: J. Rivera, platform
  until: 2027-03-31
"""


def test_an_entry_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "accept.yaml"
    file.write_text(f"# kept by the platform team\n{ENTRY}- {{finding: {OTHER}, reason: r, who: w, "
                    "until: 2026-12-01, sometimes: true}\n")  # fmt: skip
    first, second = load_accepted(file)
    assert (first.finding, first.reason, first.who) == (
        ID,
        "backup job, moves to the API in March",
        "J. Rivera, platform",
    )
    assert (first.until, first.sometimes, second.sometimes) == (date(2027, 3, 31), False, True)
    assert second.finding == OTHER
    assert [entry.place for entry in (first, second)] == [f"{file}, line 2", f"{file}, line 6"]


def test_none_is_an_empty_list() -> None:
    assert parse_accepted("[]\n") == ()


@given(st.dates(), st.dates())
def test_it_holds_up_to_its_last_day(today: date, until: date) -> None:
    assert Acceptance(ID, "r", "w", until).holds(today) == (today <= until)


def without(key: str) -> str:
    return "- " + "\n  ".join(line[2:] for line in ENTRY.splitlines() if not line[2:].startswith(key)) + "\n"


def changed(key: str, value: str) -> str:
    lines = [f"{line[: line.index(':')]}: {value}" if line[2:].startswith(key) else line
             for line in ENTRY.splitlines()]  # fmt: skip
    return "\n".join(lines) + "\n"


#: what is wrong → (the file, the line named, words of the message)
FAULTS: dict[str, tuple[str, int, str]] = {
    "no reason": (without("reason"), 1, "'reason' is missing"),
    "no who": (without("who"), 1, "'who' is missing"),
    "no until": (without("until"), 1, "'until' is missing"),
    "no finding": (without("finding"), 1, "'finding' is missing"),
    "reason left empty": (changed("reason", ""), 2, "a text is needed"),
    "who left empty": (changed("who", '""'), 3, "who accepts it is empty"),
    "reason of blanks": (changed("reason", '"  "'), 2, "the reason is empty"),
    "reason that writes to the terminal": (changed("reason", r'"\e[31m"'), 2, "unprintable"),
    "key mistyped": (ENTRY.replace("until", "untill"), 4, "did you mean 'until'"),
    "no day": (changed("until", "soon"), 4, "'soon' is no day"),
    "a day that is none": (changed("until", "2027-02-30"), 4, "no day"),
    "a day written another way": (changed("until", "31.03.2027"), 4, "year-month-day"),
    "no id": (changed("finding", "tcp/2379"), 1, "'tcp/2379' is no finding's id"),
    "kind mistyped": (changed("finding", "voilation-b7f5ba8f8f"), 1, "did you mean 'violation'"),
    "id cut short": (changed("finding", "violation-b7f5ba8f8"), 1, "no finding's id"),
    "an id that writes to the terminal": (
        changed("finding", r'"violation-b7f5ba8f8f\n"'),
        1,
        "no finding's id",
    ),
    "twice": (ENTRY + ENTRY, 5, "accepted twice"),
    "sometimes is a word": (ENTRY + "  sometimes: often\n", 5, "neither true nor false"),
    "second entry": (ENTRY + "- finding: 7\n", 5, "missing"),
    "no list": (ENTRY.replace("- finding", "  finding"), 1, "a list is needed"),
    "a list of ids": (f"- {ID}\n", 1, "a mapping is needed"),
    "an anchor": (ENTRY.replace("reason: ", "reason: &a "), 2, "anchors"),
    "no YAML": (ENTRY + "  who: [\n", 5, ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_with_its_place(name: str) -> None:
    text, line, words = FAULTS[name]
    with pytest.raises(SpecError) as raised:
        parse_accepted(text, where="accept.yaml")
    told = str(raised.value)
    assert words in told
    assert "\n" not in told
    if name != "no YAML":
        assert told.startswith(f"accept.yaml, line {line}: ")


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n"])
def test_an_empty_file_is_a_fault(text: str) -> None:
    with pytest.raises(SpecError, match="empty"):
        parse_accepted(text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"accept\.yaml"):
        load_accepted(tmp_path / "accept.yaml")


@given(st.text(max_size=200))
def test_any_text_ends_in_entries_or_one_line(text: str) -> None:
    with contextlib.suppress(SpecError):
        assert all(isinstance(entry, Acceptance) for entry in parse_accepted(text))


# ---- ids that no finding has ----


def test_an_unknown_id_is_told_with_its_line_and_a_near_one() -> None:
    entries = parse_accepted("\n" + ENTRY)
    with pytest.raises(SpecError) as raised:
        check_known(entries, [ID[:-1] + "0", "scan-0000000000"])
    told = str(raised.value)
    assert told.startswith(f"accept.yaml, line 2: no finding has the id {ID}")
    assert f"did you mean '{ID[:-1]}0'?" in told
    assert "remove the entry" in told


def test_known_ids_and_those_that_come_and_go_are_none() -> None:
    check_known(parse_accepted(ENTRY), [ID])
    check_known(parse_accepted(ENTRY + "  sometimes: true\n"), [])


# ---- the template ----


def test_a_template_is_refused_until_it_is_filled_in() -> None:
    findings = [
        {"id": ID, "severity": "high", "title": "agent-1 \x1b[31m reached\n- finding: x"},
        {"id": OTHER, "severity": "low", "title": "server-1: a gap"},
    ]
    text = template(findings)
    with pytest.raises(SpecError, match="line 3: a text is needed"):
        parse_accepted(text)
    filled = (
        text.replace("reason:", "reason: r").replace("who:", "who: w").replace("until:", "until: 2027-01-01")
    )
    assert [entry.finding for entry in parse_accepted(filled)] == [ID, OTHER]
    assert "\x1b" not in text
    assert "# high: agent-1 \\x1b[31m reached\\n- finding: x" in text


def test_a_template_of_nothing_accepts_nothing() -> None:
    assert parse_accepted(template([])) == ()
