"""What several commands share of their arguments. Rule: words, types and defaults of the command line; knows
no flow, reads no file and imports nothing heavy.
"""

from __future__ import annotations

import re
from enum import Enum, StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING, FOUND, INPUT_FAULT, UNABLE = 0, 1, 2, 3
_UNITS = {"ns": 1, "us": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_BARE = {"": 10**9}  # a number alone is seconds
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)([a-z]*)", re.ASCII)
_NS_LIMIT = 2**63  # as rows count time

EXIT_STATUS = """Exit status: 0 nothing at or above --fail-on, 1 findings at or above it, 2 the input or the
command line is at fault, 3 this machine cannot do it."""


class _Quick:
    """A command whose values, where they have their type already, are taken as they are: Typer asks pydantic
    of each, also of those that were not given, and to load pydantic takes 0.06 s.
    """

    def get_params(self, context: Any) -> Any:
        parameters = super().get_params(context)  # type: ignore[misc]  # of what it is mixed into
        for parameter in parameters:
            vars(parameter).setdefault("process_value", partial(_value, parameter, parameter.process_value))
        return parameters


class _Command(_Quick, TyperCommand):
    pass


class _Group(_Quick, TyperGroup):
    pass


def _value(parameter: Any, otherwise: Any, context: Any, value: Any) -> Any:
    several = parameter.multiple or parameter.nargs == -1
    _refuse_empty(parameter, context, value if several and value else (value,))
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if not _has_type(value, kind, several=several) or (parameter.required and not value):
        return otherwise(context, value)
    taken = value
    if several:
        taken = () if value is None else list(value)
    return parameter.callback(context, parameter, taken) if parameter.callback else taken


def _refuse_empty(parameter: Any, context: Any, given: Any) -> None:
    """A variable that is not set leaves an empty text. As a folder it would be the one that this runs in,
    which `store prune` empties; as a file to write, none.
    """
    source = context.get_parameter_source(parameter.name)
    if "" in given and source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter("an empty text; is a variable not set?", ctx=context, param=parameter)


def _has_type(value: Any, kind: Any, *, several: bool) -> bool:
    """Of texts and of words to choose from; numbers and paths have more to be asked for."""
    if value is None:
        return True
    if several:
        (kind,) = get_args(kind) if get_origin(kind) is list else (None,)
        return all(_has_type(one, kind, several=False) for one in value)
    return isinstance(kind, type) and issubclass(kind, str | Enum) and type(value) is kind


class _Commands(typer.Typer):
    def command(self, *words: Any, **named: Any) -> Any:
        return super().command(*words, cls=_Command, **named)


def group(**words: Any) -> typer.Typer:
    """A command that only has commands."""
    return _Commands(cls=_Group, no_args_is_help=True, rich_markup_mode="markdown", **words)


class FailOn(StrEnum):
    """The least severity that makes the exit status 1."""

    critical = "critical"
    high = "high"
    medium = "medium"
    low = "low"
    info = "info"
    never = "never"


class By(StrEnum):
    """What a matrix is over."""

    role = "role"
    node = "node"
    rule = "rule"


class Measure(StrEnum):
    """What a matrix counts."""

    flows = "flows"
    packets = "packets"
    bytes = "bytes"


def spec_names(incomplete: str) -> list[str]:
    """The shipped specifications, for completion."""
    from analyzer.spec import shipped_specs

    return [name for name in shipped_specs() if name.startswith(incomplete)]


FailAt = Annotated[FailOn, typer.Option(help="Exit with 1 where a finding is at least this severe.")]
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="Captures, flow files or folders of them, paths or s3://, gs://, abfs:// addresses; - is a "
        "capture on standard input.",
        show_default=False,
    ),
]
Packets = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="Captures or folders of them, paths only; they are read twice, so not from standard input. Flow "
        "files beside them are judged too, and hold no packets.",
        show_default=False,
    ),
]
RUN_HELP = "JSON document of `check --json` (.json), or a capture, a flow file or a folder of them."
Captures = Annotated[
    list[str],
    typer.Argument(
        metavar="CAPTURE",
        help="pcap or pcapng files, plain or in gzip, zstd or lz4, flow files, or folders of them, paths or "
        "s3://, gs://, abfs:// addresses; - is a capture on standard input.",
        show_default=False,
    ),
]
MaybeClusterFile = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "-c",
        help="Cluster file: YAML, or the JSON of `kubectl get nodes -o json`. Without it nodes and roles are "
        "inferred from the flows.",
        show_default=False,
    ),
]
SpecName = Annotated[
    str,
    typer.Option(
        "--spec", "-s", help="A shipped specification's name, or a YAML file.", autocompletion=spec_names
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="threads|processes|tcp://...",
        help="Share the work among Dask workers: threads of this process, processes of this machine, or a "
        "scheduler's. Needs Dask (`pip install 'rke2-flows[cluster]'`) and, where flows are judged, "
        "--cluster.",
        show_default=False,
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Only flows from this time on: 2026-11-24T10:00 (UTC), or 2h for so long ago. A flow, or each "
        "interval of it, is in whole or not at all.",
        show_default=False,
    ),
]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only flows before this time.", show_default=False)
]
OfNodes = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        metavar="NAME",
        help="Only flows of this node, whichever end it is, its own or its tunnel's. May be given again.",
        show_default=False,
    ),
]
OfPorts = Annotated[
    list[int] | None,
    typer.Option(
        "--port",
        metavar="PORT",
        min=0,
        max=65535,
        help="Only flows with this port at either end. May be given again.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="How many threads read captures at most; by default as many as pay. The result is the same.",
        show_default=False,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="Write the table here: .parquet, .csv or .jsonl; - is CSV on standard output. With --scheduler "
        "an empty or a new folder.",
        show_default=False,
    ),
]
FindingId = Annotated[
    str,
    typer.Option(
        "--finding", "-f", help="The finding's id, as `rke2-flows check` shows it.", show_default=False
    ),
]
YamlFile = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Write the YAML here instead of to standard output.", show_default=False
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Write the JSON here instead of to standard output.", show_default=False
    ),
]


def refuse_threads(threads: int | None) -> None:
    """Where workers read, it is they who have the threads."""
    if threads:
        raise typer.BadParameter("with --scheduler the workers' threads read: leave one of the two out")


def nanoseconds(text: str | None, option: str) -> int:
    """`60s`, `5m`, `500ms`, `60` to ns; 0 for None. An empty text (a variable that is not set) is no
    duration.

    Raises typer.BadParameter that names the option.
    """
    return 0 if text is None else _duration(text, option, _UNITS | _BARE, "60s, 5m or 500ms")


def age(text: str, option: str) -> int:
    """As :func:`nanoseconds`, and days: `30d`; `0` for none. A number alone may be meant as days, and what is
    older than as many seconds would be deleted: it needs its unit.
    """
    return 0 if text == "0" else _duration(text, option, {**_UNITS, "d": 24 * _UNITS["h"]}, "30d, 12h or 60s")


def refused(what: str, option: str) -> typer.BadParameter:
    """A value that the option cannot have, to be raised; told as Typer tells of those that it refuses."""
    return typer.BadParameter(what, param_hint=f"'{option}'")


def name_of(text: str, option: str) -> str:
    """A name that is to be kept, as cluster files have it: raw bytes and control characters are none.

    Raises typer.BadParameter that names the option.
    """
    if not text.isprintable():
        raise refused(f"{text!r} is no name: use printable characters only", option)
    return text


def _duration(text: str, option: str, units: Mapping[str, int], examples: str) -> int:
    found = _DURATION.fullmatch(text)
    ns = float(found[1]) * units.get(found[2], 0) if found else 0
    if not 1 <= ns < _NS_LIMIT:
        raise refused(f"{text!r} is no duration: write {examples}", option)
    return int(ns)
