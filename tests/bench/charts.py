"""The numbers of a run → pictures. Rule: pure but for matplotlib; the style of analyzer/plots.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analyzer.plots import save_figure
from bench.document import BASE_MB, FLOW_BYTES, MEGA, one_way, peak_mb, rows_of, times

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.document import Numbers

INK, MUTED, OWN, OTHER = "#1A1A1A", "#6B6B6B", "#E69F00", "#A6D3F2"  # as in analyzer/plots.py
FONT: dict[str, Any] = {"fontfamily": ["DejaVu Sans", "sans-serif"], "parse_math": False}
OWN_NAMES = "rke2-flows"
NO_METER = ("read (dd)", "floor")


def _sheet(title: str, axes: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.6 * axes, 3.4), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left", **FONT)
    return figure, list(figure.subplots(1, axes, squeeze=False)[0])


def _plain(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=8.5, color=MUTED, loc="left", **FONT)
    ax.tick_params(labelsize=8, colors=INK)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _by_decades(ax: Axes, which: str, unit: float = 1, name: str = "") -> None:
    """A logarithmic axis with numbers that people read."""
    getattr(ax, f"set_{which}scale")("log")
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}{name}"))
    axis.set_minor_locator(NullLocator())


def _bars(ax: Axes, title: str, values: dict[str, float], form: str) -> None:
    names = list(values)[::-1]
    places = range(len(names))
    own = [name.startswith(OWN_NAMES) for name in names]
    bars = ax.barh(places, [values[name] for name in names], color=[OWN if mine else OTHER for mine in own],
                   hatch=["////" if mine else "" for mine in own], edgecolor=INK, linewidth=0.5)  # fmt: skip
    ax.bar_label(bars, fmt=form, fontsize=7.5, padding=2, color=INK)
    ax.set_yticks(places, names)
    ax.margins(x=0.18)
    _plain(ax, title)


def rate(numbers: Numbers) -> Figure | None:
    """Rate and memory of each tool, on cut frames."""
    section = numbers["sections"].get("m8")
    if not section:
        return None
    rows = {name: row for name, row in times(section).items() if name not in NO_METER}
    figure, (left, right) = _sheet(f"{section['truth']['frames']:,} frames cut to 96 bytes, whole process", 2)
    speeds = {name: row["frames_per_second"] / MEGA for name, row in rows.items()}
    _bars(left, "million frames a second, median", speeds, "{:.2f}")
    _bars(right, "peak memory, MB", {name: peak_mb(row) for name, row in rows.items()}, "{:,.0f}")
    return figure


def _line(
    ax: Axes, points: Sequence[tuple[float, float]], limit: Callable[[float], float] | None, title: str
) -> None:
    across, up = zip(*points, strict=True)
    ax.plot(across, up, color=INK, marker="o", markersize=4, linewidth=1.2, label="measured")
    if limit is not None:
        ax.plot(
            across, [limit(x) for x in across], color=MUTED, linestyle=(0, (3, 2)), linewidth=1, label="limit"
        )
        ax.legend(fontsize=7.5, frameon=False)
    _by_decades(ax, "x", MEGA, " M")
    _plain(ax, title)


def scaling(numbers: Numbers) -> Figure | None:
    """Time and memory over frames."""
    rows = rows_of(numbers, "frames")
    if len(rows) < 2:
        return None
    figure, (left, right) = _sheet("The same flows, more frames", 2)
    _line(
        left, [(row["truth"]["frames"], row["wall_min"]) for row in rows], None, "seconds, least, over frames"
    )
    _by_decades(left, "y")
    peaks = [(row["truth"]["frames"], peak_mb(row)) for row in rows]
    _line(right, peaks, None, "peak memory, MB, over frames")
    right.set_ylim(0, 1.2 * max(peak for _, peak in peaks))
    return figure


def memory(numbers: Numbers) -> Figure | None:
    """Memory over flows."""
    rows = rows_of(numbers, "flows")
    if len(rows) < 2:
        return None
    figure, (ax,) = _sheet("More flows", 1)
    points = [(one_way(row["truth"]), peak_mb(row)) for row in rows]
    _line(
        ax, points, lambda flows: BASE_MB + FLOW_BYTES * flows / MEGA, "peak memory, MB, over one-way flows"
    )
    _by_decades(ax, "y")
    return figure


CHARTS = {"bench-rate": rate, "bench-frames": scaling, "bench-memory": memory}


def draw(numbers: Numbers, folder: Path) -> list[Path]:
    """Write the pictures that a run has the numbers for."""
    figures = {name: make(numbers) for name, make in CHARTS.items()}
    return [save_figure(figure, folder / f"{name}.svg") for name, figure in figures.items() if figure]
