"""The words of the command line. Rule: what we take without asking Typer is what Typer would have said."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from analyzer.cli import app
from analyzer.commands.options import FailOn, age, nanoseconds

if TYPE_CHECKING:
    from collections.abc import Iterator

#: given or not, one or several, of the type that is asked for or of another one
VALUES: tuple[Any, ...] = (None, "", "words", FailOn.low, (), ("one",), ("one", "other"), ["one"])


def commands(command: Any = None) -> Iterator[Any]:
    command = command or typer.main.get_command(app)
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from commands(below)


def outcome(take: Any, context: Any, value: Any) -> Any:
    try:
        return take(context, value)
    except Exception as error:  # whatever it is: that it is the same is what is asked
        return type(error), str(error)


@pytest.mark.parametrize("command", list(commands()), ids=lambda command: command.name)
def test_values_are_taken_as_typer_takes_them(command: Any) -> None:
    context = command.context_class(command)
    for parameter in command.get_params(context):
        ours, theirs = parameter.process_value, type(parameter).process_value
        assert ours.func.__module__ == "analyzer.commands.options"
        for value in _values(parameter, context):
            said, expected = (
                outcome(ours, context, value),
                outcome(partial(theirs, parameter), context, value),
            )
            assert (said, type(said)) == (expected, type(expected)), (parameter.name, value)


def _values(parameter: Any, context: Any) -> Iterator[Any]:
    yield None
    if parameter.callback:  # which for anything else would do its work
        return
    several = bool(parameter.multiple or parameter.nargs == -1)
    for value in (*VALUES, parameter.get_default(context)):
        if isinstance(value, tuple | list) == several:
            yield value


@pytest.mark.parametrize(
    ("text", "ns"),
    [("60s", 60 * 10**9), ("5.s", 5 * 10**9), ("1.5ms", 1_500_000), (".5us", 500), ("2h", 7200 * 10**9)],
)
def test_durations(text: str, ns: int) -> None:
    assert (nanoseconds(text, "--interval"), age(text, "--keep")) == (ns, ns)


def test_what_is_not_given_is_none_and_an_age_may_be_in_days() -> None:
    assert nanoseconds(None, "--interval") == 0
    assert (age("0", "--keep"), age("30d", "--keep")) == (0, 30 * 86400 * 10**9)


def test_a_number_alone_is_seconds_and_no_age() -> None:
    """`prune --keep 30` is meant as days, and would leave half a minute."""
    assert nanoseconds("30", "--interval") == 30 * 10**9
    for text in ("30", "1.5"):
        with pytest.raises(typer.BadParameter, match="is no duration: write 30d"):
            age(text, "--keep")


@pytest.mark.parametrize(
    "words",
    [
        ("store", "prune", "--dry-run", "--keep", "30d", ""),  # which else is the folder that this runs in
        ("store", "show", ""),
        ("capture", "--duration", "1ms", "-o", ""),
        ("check", "x", "--cluster", ""),  # which else is inferred
        *(("check", "x", option, "") for option in ("--json", "--html", "-o", "--plots", "--accept")),
        ("check", "x", "--listeners", "y", "--listeners", ""),
        ("flows", "x", ""),
        ("listeners", "--node", ""),
    ],
    ids=" ".join,
)
def test_an_empty_text_is_what_a_variable_that_is_not_set_leaves(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 2
    assert "an empty text; is a variable not set?" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("capture", "-o", "x", "--duration", "0s", "--node"),  # which else would run until it is stopped
        ("listeners", "--node"),
        ("cluster", "infer", "x", "--name"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["a\udcff", "a\x1b[2J", "a\n"], ids=["raw bytes", "escape", "line"])
def test_a_name_that_is_to_be_kept_is_text(name: str, words: tuple[str, ...]) -> None:
    """No table, no document and no cluster file can hold raw bytes."""
    done = CliRunner().invoke(app, [*words, name])
    said = re.sub(r"\W+", " ", done.stderr)
    assert done.exit_code == 2
    assert f"Invalid value for {words[-1].removeprefix('--')} a" in said
    assert "is no name use printable characters only" in said


@pytest.mark.parametrize("text", ["", "s", "d", "0s", "-5s", "²s", "0.1ns", "1e3s", "5 s", "9" * 400 + "h"])
def test_what_is_no_duration_is_said(text: str) -> None:
    """Above all an empty text, which `prune --keep "$DAYS"` has where the variable is not set: no age at all
    would delete every part.
    """
    for read, example in ((nanoseconds, "60s"), (age, "30d")):
        with pytest.raises(typer.BadParameter, match=f"is no duration: write {example}"):
            read(text, "--keep")


@pytest.mark.parametrize(
    "words",
    [
        ("flows", "x", "--interval"),
        *((verb, "x", option) for verb in ("flows", "check", "matrix") for option in ("--since", "--until")),
        ("capture", "-o", "x", "--interval"),
        ("capture", "-o", "x", "--duration"),
        *(("store", "compact", "x", option) for option in ("--interval", "--older-than", "--target-size")),
        ("store", "prune", "x", "--keep"),
    ],
    ids=" ".join,
)
def test_a_refused_value_names_its_option(words: tuple[str, ...]) -> None:
    """With both of `--since` and `--until` the value alone does not say which."""
    done = CliRunner().invoke(app, [*words, "5x"])
    said = re.sub(r"\W+", " ", done.stderr)  # in a box that breaks lines
    assert done.exit_code == 2
    assert f"Invalid value for {words[-1].removeprefix('--').replace('-', ' ')} 5x is no " in said
