"""Measured constants → what a large cluster costs, and docs/scale.md. Rule: pure; nothing here is measured,
and what is assumed is said.

A check of a store takes ``start + part · parts + row · rows`` seconds. What a part costs is measured by
itself, since a few thousand of them are lost in the noise of a whole run; start and row are solved from two
small stores. The constants then predict a larger one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.document import MEGA, table

Numbers = dict[str, Any]

WITHIN = 0.20  # of the measured figure: how near a prediction must be
NODES, FLOWS = 1_000, 10_000  # of the cluster that the question is about; flows that a node sees in a minute
MINUTES_A_DAY, DAYS_A_MONTH = 1_440, 30
GIGA = 10**9
TIMES = (1, 8, 32, 128)  # cores
#: assumed, not measured: one machine of a data centre
MACHINE = {"cores": 16, "memory": 64 * GIGA, "network": 1.25 * GIGA, "storage": 0.5 * GIGA}
PERIOD = 60  # s: what a minute of traffic may take


class Constants(NamedTuple):
    """Seconds with the measured number of cores."""

    start: float
    part: float
    row: float


class Prediction(NamedTuple):
    """What the model says, and what was measured."""

    what: str
    model: float
    measured: float
    form: str

    @property
    def error(self) -> float:
        """Relative to the measured figure."""
        return self.model / self.measured - 1

    @property
    def holds(self) -> bool:
        """Whether the model is near enough."""
        return abs(self.error) <= WITHIN


def constants(numbers: Numbers) -> Constants:
    """A part by what opening it costs, start and row from the two small stores."""
    steps = numbers["steps"]
    few, many = numbers["small"]
    part = steps["open"] / steps["parts"] / numbers["cores"]
    rest0, rest1 = (one["run"]["wall"] - part * one["parts"] for one in (few, many))
    row = (rest1 - rest0) / (many["rows"] - few["rows"])
    return Constants(rest0 - row * few["rows"], part, row)


def seconds(known: Constants, parts: float, rows: float) -> float:
    """Wall time of one check."""
    return known.start + known.part * parts + known.row * rows


def part_bytes(numbers: Numbers) -> tuple[float, float]:
    """Bytes of a part that are there for the file, and of each row."""
    small = numbers["small"]
    per_part = [(one["bytes"] / one["parts"], one["rows"] / one["parts"]) for one in small]
    (size0, rows0), (size1, rows1) = per_part
    row = (size1 - size0) / (rows1 - rows0)
    return size0 - row * rows0, row


def predictions(numbers: Numbers) -> list[Prediction]:
    """The large store by the model, beside what was measured."""
    large = numbers["large"]
    share = large["checked_minutes"] / large["minutes"]
    parts, rows = large["parts"] * share, large["rows"] * share
    file, row = part_bytes(numbers)
    steps = numbers["steps"]
    a_minute = steps["rows"] / steps["parts"] * numbers["plan"]["nodes"]
    return [
        Prediction("rows of the store", a_minute * large["minutes"], large["rows"], ",.0f"),
        Prediction("MB of the store", (file * large["parts"] + row * large["rows"]) / MEGA,
                   large["bytes"] / MEGA, ",.0f"),
        Prediction(f"seconds to check {large['checked_minutes']} minutes of it",
                   seconds(constants(numbers), parts, rows), large["run"]["wall"], ".1f"),
    ]  # fmt: skip


class Load(NamedTuple):
    """What a minute of the large cluster is."""

    parts: int
    rows: float
    bytes: float
    core_seconds: float
    shuffled: float
    memory: float


def load(numbers: Numbers) -> Load:
    """A minute of 1,000 nodes with 10,000 flows each."""
    steps, known = numbers["steps"], constants(numbers)
    rows = steps["rows"] / steps["parts"] * NODES
    file, row = part_bytes(numbers)
    large = numbers["large"]
    checked = large["rows"] * large["checked_minutes"] / large["minutes"]
    held = large["run"]["peak_mb"] * (1 << 20) * numbers["cores"] / checked
    return Load(
        NODES,
        rows,
        file * NODES + row * rows,
        numbers["cores"] * (known.part * NODES + known.row * rows),
        numbers["row_bytes"] * rows,
        held * rows,
    )


def use(numbers: Numbers) -> list[tuple[str, float, str]]:
    """What a minute takes of one machine (MACHINE), the scarcest first: what, share of it, in words."""
    a_minute = load(numbers)
    found = [
        ("cores", a_minute.core_seconds / PERIOD / MACHINE["cores"],
         f"{a_minute.core_seconds / PERIOD:,.1f} cores of {MACHINE['cores']}"),
        ("memory", a_minute.memory / MACHINE["memory"],
         f"{a_minute.memory / GIGA:,.1f} GB of {MACHINE['memory'] / GIGA:,.0f}"),
        ("network between workers", a_minute.shuffled / PERIOD / MACHINE["network"],
         f"{a_minute.shuffled / PERIOD / MEGA:,.0f} MB/s of {MACHINE['network'] / MEGA:,.0f}"),
        ("reading the store", a_minute.bytes / PERIOD / MACHINE["storage"],
         f"{a_minute.bytes / PERIOD / MEGA:,.1f} MB/s of {MACHINE['storage'] / MEGA:,.0f}"),
    ]  # fmt: skip
    return sorted(found, key=lambda item: -item[1])


# ---- text ----

_HEAD = """\
# Beyond one machine

What a cluster of {nodes:,} nodes costs, of which each sees {flows:,} flows a minute: how large its store grows, how long a check
takes, and what gives way first. `PYTHONPATH=tests .venv/bin/python -m bench scale` measures the constants on small stores, predicts
a larger one, makes that one, checks a part of it by the real code, and writes this page; nothing here is from another run.

Commit {commit}{dirty}, {date}: {machine}.{quick}

## The store

A node's part of one minute holds {rows_a_part:,.0f} one-way rows: each flow has a row there and one back, what runs in VXLAN also the
carrier's, and the nodes at both ends have it. A stored row takes {row_bytes:.1f} bytes (Parquet, zstd), the file around them
{file_bytes:,.0f}. The flows are made up: their sizes and times are random, and most of a row is those; ports and peers of a real
cluster repeat more or less than these. Half of the flows live on from minute to minute; that changes nothing here, since each
interval has its own row.

{store}
Intervals of ten minutes (`capture --interval 10m`) instead of one: the flows that live on have a row every ten minutes, and a tenth
of the parts are there.

## One core, step by step

CPU of each step on {step_rows:,} rows in {step_parts:,} parts, one process, no workers: {step_flows:,} flows, {step_findings:,} findings.

{steps}
Opening a part costs {opening:.2f} ms, whatever is in it.

## The model, and a store to check it by

A check by workers (`--scheduler {scheduler}`, {cores} cores, whole process) takes `start + part · parts + row · rows`:

{model}
A part is what opening it costs above, shared by the cores; start and row are solved from two stores of {plan_nodes:,} nodes:

{small}
They predict this store, of which the first {checked_minutes} minutes were checked ({checked_rows:,.0f} rows, {checked_flows:,} flows,
{checked_findings:,} findings; the largest process had {peak_mb:,.0f} MB):

{predictions}
## What it comes to

{days}
## What gives way first

To check each minute before the next one is over, in shares of one machine with {machine_cores} cores, {machine_memory:.0f} GB, 10 Gbit/s
and storage of {machine_storage:.0f} MB/s (assumed):

{use}
**{first}** first: {first_words}. {advice}
"""  # noqa: E501  rows of a Markdown table are one line

_ADVICE = {
    "cores": "Pairing and judging spread over workers by pairs of nodes, reading by parts.",
    "memory": "All rows of a run are held by its workers together: judge shorter windows, or add workers.",
    "network between workers": "Each row crosses once, unpacked; fewer and larger machines exchange less.",
    "reading the store": "Compact parts and coarser intervals make it smaller.",
}


def markdown(numbers: Numbers) -> str:
    """The page."""
    steps, large, a_minute = numbers["steps"], numbers["large"], load(numbers)
    file, row = part_bytes(numbers)
    scarce = use(numbers)
    share = large["checked_minutes"] / large["minutes"]
    return _HEAD.format(
        nodes=NODES,
        flows=FLOWS,
        commit=numbers["commit"],
        dirty=" with changes that are not committed" if numbers["dirty"] else "",
        date=numbers["date"],
        machine=numbers["machine"],
        quick=" A run with `--quick`: sizes too small to tell anything." if numbers["quick"] else "",
        rows_a_part=steps["rows"] / steps["parts"],
        row_bytes=row,
        file_bytes=file,
        store=_store(a_minute),
        step_rows=steps["rows"],
        step_parts=steps["parts"],
        step_flows=steps["flows"],
        step_findings=steps["findings"],
        steps=_steps(steps),
        opening=1000 * steps["open"] / steps["parts"],
        scheduler=numbers["plan"]["scheduler"],
        cores=numbers["cores"],
        model=_model(constants(numbers)),
        plan_nodes=numbers["plan"]["nodes"],
        small=_small(numbers),
        checked_minutes=large["checked_minutes"],
        checked_rows=large["rows"] * share,
        checked_flows=large["run"]["flows"],
        checked_findings=large["run"]["findings"],
        peak_mb=large["run"]["peak_mb"] * (1 << 20) / MEGA,
        predictions=_predictions(numbers),
        days=_days(a_minute),
        machine_cores=MACHINE["cores"],
        machine_memory=MACHINE["memory"] / GIGA,
        machine_storage=MACHINE["storage"] / MEGA,
        use=table(("what", "share", ""), [[what, f"{part:.0%}", words] for what, part, words in scarce]),
        first=scarce[0][0],
        first_words=scarce[0][2],
        advice=_ADVICE[scarce[0][0]],
    )


def _store(a_minute: Load) -> str:
    heads = ("", "parts", "rows", "GB")
    spans = {"a minute": 1, "a day": MINUTES_A_DAY, "a month": MINUTES_A_DAY * DAYS_A_MONTH}
    rows = [
        [
            name,
            f"{n * a_minute.parts:,}",
            f"{n * a_minute.rows / MEGA:,.0f} M",
            f"{n * a_minute.bytes / GIGA:,.1f}",
        ]
        for name, n in spans.items()
    ]
    return table(heads, rows)


def _steps(steps: Numbers) -> str:
    took = steps["seconds"]
    rows = [[name, f"{s:.2f}", f"{steps['rows'] / s / MEGA:.2f}"] for name, s in took.items()]
    return table(("step", "CPU, s", "M rows/s"), rows)


def _model(known: Constants) -> str:
    rows = [
        ["start", f"{known.start:.2f} s"],
        ["part", f"{1000 * known.part:.2f} ms"],
        ["row", f"{MEGA * known.row:.2f} µs"],
    ]
    return table(("constant", "wall"), rows)


def _small(numbers: Numbers) -> str:
    rows = [
        [f"{one['parts']:,}", f"{one['rows']:,}", f"{one['bytes'] / MEGA:,.1f}", f"{one['run']['wall']:.1f}",
         f"{one['run']['cpu']:.1f}"]
        for one in numbers["small"]
    ]  # fmt: skip
    return table(("parts", "rows", "MB", "wall, s", "CPU, s"), rows)


def _predictions(numbers: Numbers) -> str:
    rows = [
        [p.what, format(p.model, p.form), format(p.measured, p.form), f"{p.error:+.0%}",
         f"within {WITHIN:.0%}" if p.holds else f"**not within {WITHIN:.0%}**"]
        for p in predictions(numbers)
    ]  # fmt: skip
    return table(("what", "model", "measured", "error", ""), rows)


def _duration(value: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if value >= 2 * size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.1f} s"


def _days(a_minute: Load) -> str:
    """Wall time by number of cores, where they share the work without loss."""
    spans = {"a minute": 1, "a day": MINUTES_A_DAY, "a month": MINUTES_A_DAY * DAYS_A_MONTH}
    rows = [
        [str(cores), *(_duration(n * a_minute.core_seconds / cores) for n in spans.values())]
        for cores in TIMES
    ]
    return "Wall time if cores share the work without loss, each with its share of memory:\n\n" + table(
        ("cores", *spans), rows
    )
