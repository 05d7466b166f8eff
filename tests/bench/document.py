"""The numbers of a run → docs/benchmarks.md. Rule: pure; every figure in the text is in the numbers.

`GOALS` says what each figure is held against, and a goal that is missed is told like one that is reached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from bench.tools import PRODUCT, READER, THREADS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Numbers = dict[str, Any]

SCHEMA = 1
LIVE_MARKS = ("<!-- live: made by `python -m bench live --into` -->", "<!-- live: end -->")
PEERS = ("nfpcapd", "softflowd")  # as the goal names them: the faster one counts
MEBI, MEGA, TABLE_LIMIT = 1 << 20, 10**6, 3
BASE_MB, FLOW_BYTES = 150, 200
WHOLE = {"m4": "whole frames", "m8": "cut frames, more flows"}


@dataclass(frozen=True)
class Goal:
    """A limit: `value` gives the measured figure, None where the run has not what it takes."""

    words: str
    value: Callable[[Numbers], float | None]
    limit: float
    form: str
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Whether a figure is within the limit."""
        return value >= self.limit if self.at_least else value <= self.limit


# ---- figures ----


def times(section: Numbers) -> dict[str, Numbers]:
    """Tool → its row of times."""
    return {row["tool"]: row for row in section["times"]}


def faster_peer(section: Numbers) -> Numbers | None:
    """The row of the faster of nfpcapd and softflowd, by median wall time."""
    peers = [row for name, row in times(section).items() if name in PEERS]
    return min(peers, key=lambda row: float(row["wall_median"]), default=None)


def _ratio(name: str, threads: int) -> Callable[[Numbers], float | None]:
    """How many times the faster peer's rate, with so many threads."""

    def value(numbers: Numbers) -> float | None:
        section = numbers["sections"].get(name)
        peer = faster_peer(section) if section else None
        own = times(section).get(THREADS[threads]) if section else None
        return peer["wall_median"] / own["wall_median"] if peer and own else None

    return value


def _reader(name: str) -> Callable[[Numbers], float | None]:
    def value(numbers: Numbers) -> float | None:
        walk = numbers["sections"].get(name, {}).get("walk", {})
        return walk[READER] / walk["floor"] if {READER, "floor"} <= walk.keys() else None

    return value


def rows_of(numbers: Numbers, name: str) -> list[Numbers]:
    """The rows of a series that ran."""
    return [row for row in numbers["sections"].get(name, {}).get("rows", []) if "missing" not in row]


def one_way(truth: Mapping[str, int]) -> int:
    """One-way flows: in plain sight, and inside tunnels."""
    return truth["one_way_tuples"] + truth["tunnel_one_way_tuples"]


def _allowed_mb(flows: int) -> float:
    return BASE_MB + FLOW_BYTES * flows / MEGA


def peak_mb(row: Numbers) -> float:
    """Peak memory in MB of 10⁶ bytes; rows hold MiB."""
    return float(row["peak_mb"]) * MEBI / MEGA


def _memory_share(numbers: Numbers) -> float | None:
    rows = [*rows_of(numbers, "flows"), *rows_of(numbers, "frames")]
    return max((peak_mb(row) / _allowed_mb(one_way(row["truth"])) for row in rows), default=None)


def _memory_growth(numbers: Numbers) -> float | None:
    rows = rows_of(numbers, "frames")
    peaks = [float(row["peak_mb"]) for row in rows]
    return 100 * (max(peaks) / min(peaks) - 1) if len(peaks) > 1 else None


def _decade(numbers: Numbers) -> float | None:
    """The worst growth of time for ten times the frames, of all pairs that are so far apart or more."""
    rows = [(row["truth"]["frames"], row["wall_min"]) for row in rows_of(numbers, "frames")]
    pairs = [(math.log10(b[0] / a[0]), b[1] / a[1]) for a, b in combinations(rows, 2)]
    return max((grown ** (1 / decades) for decades, grown in pairs if decades >= 1), default=None)


def _unpacking(suffix: str, which: int = 0) -> Callable[[Numbers], float | None]:
    """`which`: of several captures that are packed so."""

    def value(numbers: Numbers) -> float | None:
        rows = [row for row in rows_of(numbers, "packed") if row["suffix"] == suffix]
        told = [
            row[name].get("wall_median") for row in rows[which : which + 1] for name in ("product", "other")
        ]
        return told[0] / told[1] if told and all(told) else None

    return value


def _unaccounted(numbers: Numbers) -> float | None:
    """Spoofed frames that are in no row and not told as folded; infinite where the run did not end."""
    section = numbers["sections"].get("spoofed")
    if section is None:
        return None
    if "missing" in section:
        return math.inf
    return float(section["truth"]["frames"] - section["counted"]["frames"] - section["folded"])


def _spoofed_share(numbers: Numbers) -> float | None:
    section = numbers["sections"].get("spoofed")
    if section is None:
        return None
    return math.inf if "missing" in section else peak_mb(section) / _allowed_mb(section["counted"]["tuples"])


def _judging(pick: Callable[[Numbers], float]) -> Callable[[Numbers], float | None]:
    def value(numbers: Numbers) -> float | None:
        section = numbers["sections"].get("judging")
        return pick(section) if section else None

    return value


def _of_ten_million(section: Numbers, seconds: float) -> float:
    return float(10**7 / section["rows"] * seconds)


def _after_verdicts(section: Numbers) -> float:
    return _of_ten_million(section, section["find"] + sum(section["matrix"].values()))


GOALS = (
    *(
        Goal(f"rate beside the faster of nfpcapd and softflowd, {words}, {WHOLE[name]}",
             _ratio(name, threads), least, "{:.1f} times", at_least=True)
        for threads, words, least in ((1, "one thread", 5), (2, "two threads", 8)) for name in WHOLE
    ),
    *(Goal(f"reader alone beside the floor, {WHOLE[name]}", _reader(name), 2, "{:.2f} times the time")
      for name in WHOLE),
    Goal("peak memory beside 200 bytes a one-way flow + 150 MB, the worst", _memory_share, 1, "{:.2f} of it"),
    Goal("peak memory over the frames of the same flows", _memory_growth, 5, "{:.1f} % more"),
    Goal("time for ten times the frames, the worst", _decade, 10.5, "{:.1f} times"),
    Goal("gzip input beside zcat to /dev/null", _unpacking("gz"), 1.2, "{:.2f} times the time"),
    *(Goal(f"zstd input beside zstdcat to /dev/null, the {words} capture", _unpacking("zst", which), 1.2,
           "{:.2f} times the time") for words, which in (("shorter", 0), ("longer", 1))),
    Goal("spoofed frames that the ledger does not account for", _unaccounted, 0, "{:,.0f}"),
    Goal("spoofed frames: peak memory beside 200 bytes a row that is kept + 150 MB", _spoofed_share, 1,
         "{:.2f} of it"),
    Goal("10 M flows judged, CPU", _judging(lambda s: _of_ten_million(s, s["judge"])), 1, "{:.2f} s"),
    Goal("findings and all matrices of them, CPU", _judging(_after_verdicts), 3,
         "{:.2f} s"),
    Goal("peak memory of that beside the table", _judging(lambda s: s["peak_bytes"] / s["table_bytes"]),
         TABLE_LIMIT, "{:.2f} times"),
)  # fmt: skip


def results(numbers: Numbers) -> list[tuple[Goal, float | None]]:
    """Each goal with what was measured."""
    return [(goal, goal.value(numbers)) for goal in GOALS]


# ---- text ----


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left."""
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _limit(goal: Goal) -> str:
    return f"{'≥' if goal.at_least else '≤'} {goal.limit:g}"


def _goal_row(goal: Goal, value: float | None) -> list[str]:
    if value is None:
        return [goal.words, _limit(goal), "not measured", ""]
    told = "did not finish" if math.isinf(value) else goal.form.format(value)
    return [goal.words, _limit(goal), told, "holds" if goal.holds(value) else "**missed**"]


def _goals(numbers: Numbers) -> str:
    rows = [_goal_row(goal, value) for goal, value in results(numbers)]
    return "## In short\n\n" + table(("what", "limit", "measured", ""), rows)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _time_row(row: Numbers, peer: Numbers | None) -> list[str]:
    share = peer["wall_median"] / row["wall_median"] if peer else None
    return [
        row["tool"],
        f"{row['wall_min']:.2f}",
        f"{row['wall_median']:.2f}",
        f"{row['cpu_median']:.2f}",
        f"{peak_mb(row):,.0f}",
        f"{row['frames_per_second'] / MEGA:.2f}",
        _figure(share, ".2f"),
    ]


def _count_row(row: Numbers) -> list[str]:
    return [row["tool"], *(_figure(row[name], ",") for name in ("frames", "ip_bytes", "tuples")), row["note"]]


def _both(section: Numbers) -> str:
    """Times and counts of tools on one capture."""
    peer = faster_peer(section)
    heads = (
        "tool",
        "wall, least s",
        "wall, median s",
        "CPU, median s",
        "peak MB",
        "M frames/s",
        "rate of the peer's",
    )
    counts = ("tool", "frames", "IP bytes", "one-way flows", "")
    left = "".join(f"\n{line}" for line in section["left_out"])
    return (
        table(heads, (_time_row(row, peer) for row in section["times"]))
        + "\nWhat each counted:\n\n"
        + table(counts, map(_count_row, section["counts"]))
        + (f"\nLeft out:\n{left}\n" if left else "")
    )


def _whole(title: str) -> Callable[[Numbers], str]:
    def text(section: Numbers) -> str:
        truth, walk = section["truth"], section["walk"]
        alone = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in walk.items())
        return (
            f"## {truth['frames']:,} {title}\n\n{truth['file_bytes'] / MEGA:,.0f} MB, "
            f"{truth['client_server_flows']:,} client/server flows, {truth['one_way_tuples']:,} one-way ones "
            f"outside of tunnels; {section['rounds']} rounds.\n\n{_both(section)}\n"
            f"Without start-up, pairing and output, in turns, medians: {alone}.\n"
        )

    return text


def _slow(section: Numbers) -> str:
    return (
        "## The slower ones\n\n"
        f"Once, on {section['truth']['frames']:,} frames: the captures above take them minutes each.\n\n"
        f"{_both(section)}"
    )


def _series_row(row: Numbers) -> list[str]:
    truth = row["truth"]
    sizes = [f"{truth['frames']:,}", f"{one_way(truth):,}"]
    if "missing" in row:
        return [*sizes, "", row["missing"], "", ""]
    allowed = _allowed_mb(one_way(truth))
    figures = [
        f"{row['wall_min']:.2f}",
        f"{row['wall_median']:.2f}",
        f"{peak_mb(row):,.0f}",
        f"{allowed:,.0f}",
    ]
    return [*sizes, *figures]


def _series(title: str, words: str) -> Callable[[Numbers], str]:
    heads = ("frames", "one-way flows", "wall, least s", "wall, median s", "peak MB", "limit, MB")

    def text(section: Numbers) -> str:
        return f"## {title}\n\n{words.format(**section)}\n\n{table(heads, map(_series_row, section['rows']))}"

    return text


def _packed(section: Numbers) -> str:
    heads = ("suffix", "frames", "MB before", "MB", f"{PRODUCT}, median s", "reader alone, median s",
             "unpacked, median s", "by")  # fmt: skip
    rows = map(_packed_row, section["rows"])
    told = (
        "The reader alone unpacks, parses and counts; the whole command\n"
        "starts Python, loads what it needs while that is done, pairs and writes."
    )
    return f"## Compressed\n\n{section['rounds']} rounds, all cores. {told}\n\n{table(heads, rows)}"


def _packed_row(row: Numbers) -> list[str]:
    if "missing" in row:
        return [f".{row['suffix']}", row["missing"], "", "", "", "", "", ""]
    sizes = [f"{row['truth']['frames']:,}"]
    sizes += [f"{size / MEGA:,.0f}" for size in (row["truth"]["file_bytes"], row["file_bytes"])]
    seconds = [f"{row[name]['wall_median']:.2f}" if "wall_median" in row[name] else row[name]["missing"]
               for name in ("product", "other")]  # fmt: skip
    seconds.insert(1, f"{row['reader_median']:.2f}")
    return [f".{row['suffix']}", *sizes, *seconds, row["unpacker"]]


def _spoofed(section: Numbers) -> str:
    head = f"## A flood\n\n{section['truth']['frames']:,} SYNs, each from another address. "
    if "missing" in section:
        return f"{head}It did not finish within 16 GiB of address space: {section['missing']}\n"
    counted = section["counted"]
    return (
        f"{head}Finished in {section['wall_median']:.1f} s with at most {peak_mb(section):,.0f} MB; "
        f"{counted['tuples']:,} rows with {counted['frames']:,} frames, and {section['folded']:,} frames "
        "had no room in the table, as the ledger says.\n"
    )


def _judged(section: Numbers) -> str:
    rows = [
        ["verdicts", f"{section['judge']:.2f}"],
        [f"findings ({section['findings']:,})", f"{section['find']:.2f}"],
    ]
    rows += [[f"matrix by {by}", f"{seconds:.2f}"] for by, seconds in section["matrix"].items()]
    return (
        f"## Many flows judged\n\n{section['rows']:,} flows, "
        f"a table of {section['table_bytes'] / MEGA:,.0f} MB; "
        f"at most {section['peak_bytes'] / MEGA:,.0f} MB of memory were in use "
        f"({section['before_bytes'] / MEGA:,.0f} MB before).\n\n{table(('step', 'CPU, s'), rows)}"
    )


_CHARTS = {"m8": "bench-rate", "m4": "", "frames": "bench-frames", "flows": "bench-memory"}
_TEXTS: dict[str, Callable[[Numbers], str]] = {
    "m4": _whole("whole frames"),
    "m8": _whole("frames cut to 96 bytes"),
    "slow": _slow,
    "packed": _packed,
    "frames": _series(
        "More frames",
        "The same flows, `{tool}`, {rounds} rounds in turns: time grows with frames, memory does not.",
    ),
    "flows": _series("More flows", "{frames:,} frames each, `{tool}`: memory grows with flows."),
    "spoofed": _spoofed,
    "judging": _judged,
}

_HEAD = """\
# Speed and memory

`make bench` generates seeded captures of traffic like a cluster's (6443, 9345, 10250, etcd, NodePorts, VXLAN with inner flows; a
tenth IPv6), runs the whole command and other flow meters on them in turns in one run, with the page cache warm, sets what each
counted beside the truth, and writes this page. Times are of whole processes, Python's start included. Read the ratios: absolute
times of a shared machine change by a factor of two within an hour. MB are 10⁶ bytes; mapped files count as memory.

Commit {commit}{dirty}, {date}: {machine}.{quick}
{versions}"""  # noqa: E501  rows of a Markdown table are one line

_WORDS = """\

`floor` is a bare C loop over the mapped file (fixed offsets, one hash table, no check): less no reader can do. Plain softflowd ignores
IPv6 and cuts flows short when more than 8,192 are alive: it does less than the others. The last column of times is the rate as
a multiple of the faster one of nfpcapd and softflowd.
"""  # noqa: E501  rows of a Markdown table are one line


def _header(numbers: Numbers) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items() if version)
    return _HEAD.format(
        commit=numbers["commit"],
        dirty=" with changes that are not committed" if numbers["dirty"] else "",
        date=numbers["date"],
        machine=numbers["machine"],
        quick=" A run with `--quick`: sizes too small to tell anything." if numbers["quick"] else "",
        versions=f"\n{versions}.\n" if versions else "",
    )


def _section(name: str, section: Numbers) -> str:
    chart = _CHARTS.get(name)
    picture = f"\n![{name}]({chart}.svg)\n" if chart else ""
    return _TEXTS[name](section) + picture


def markdown(numbers: Numbers, live: str) -> str:
    """The whole page; `live` stands between the marks."""
    sections = [_section(name, numbers["sections"][name]) for name in _TEXTS if name in numbers["sections"]]
    parts = [_header(numbers) + "\n" + _goals(numbers) + _WORDS, *sections]
    return "\n".join(parts) + f"\n## Live capture\n\n{LIVE_MARKS[0]}\n\n{live.strip()}\n\n{LIVE_MARKS[1]}\n"


def live_of(text: str) -> str:
    """What stands between the marks of a page."""
    return text.partition(LIVE_MARKS[0])[2].partition(LIVE_MARKS[1])[0].strip()


def sentence(numbers: Numbers) -> str:
    """What the README quotes of a run. ValueError where it lacks the comparison."""
    section = numbers["sections"].get("m8", {"times": []})
    peer, rows = faster_peer(section), times(section)
    ours = {f" with {_COUNTS[n]}": rows[name] for n, name in THREADS.items() if name in rows}
    if not ours and PRODUCT in rows:
        ours = {"": rows[PRODUCT]}
    if peer is None or not ours:
        raise ValueError("no comparison with nfpcapd or softflowd in this run: run `make bench`")
    said = [f"{peer['wall_median'] / own['wall_median']:.1f} times{{}}{how}" for how, own in ours.items()]
    ratios = " and ".join([said[0].format(f" the rate of {peer['tool']}"), *(s.format("") for s in said[1:])])
    return (
        f"On {section['truth']['frames']:,} frames of {section['truth']['client_server_flows']:,} "
        f"client/server flows the whole command has {ratios} "
        f"(`make bench` on {numbers['machine']}; [docs/benchmarks.md](docs/benchmarks.md) has all of it)."
    )


_COUNTS = {1: "one thread", 2: "two threads"}
