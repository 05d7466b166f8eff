r"""Pictures of matrices. Rule: knows ``matrix.py``'s tables and matplotlib's figures; no flow, no capture.

Three pictures: ``roles`` (one role × role panel for each rule), ``nodes`` (node × node) and ``rules`` (rule ×
pair of roles). A cell is split into one band for each kind found in it, and a band tells its kind by colour,
by hatch and by the sign beside its number. Colours are after Okabe and Ito's (2008) blue and orange, which
the colour-blind tell apart; in grey they are light, middle and dark.

No pyplot, so no global figure, no window; no setting of matplotlib outlives a call. Names come from packets
or inventories: never read as mathtext, and what the font cannot draw is shown as an escape, ``\x1b`` say.
"""

from __future__ import annotations

import math
import pathlib
import threading
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from analyzer.matrices import KINDS, MEASURES, OUTSIDE_THE_TABLE, matrix, short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from numpy.typing import NDArray

    from analyzer.matrices import ClusterLike

Measure = Literal["flows", "packets", "bytes"]
Window = str | tuple[Any, Any]
Drawn: TypeAlias = "Figure | Axes | NDArray[np.object_]"
"""A figure, or what is on one: the Axes that a plot returned."""
_Area = tuple[float, float, float, float]

MAX_NODES = 100
MAX_RULES = 60
LABEL_LIMIT = 36  # characters of a name; the rest of it is …
DOTS_PER_INCH = 150
NOTHING = "no inter-node flows"

_POINTS = 72.0
_FONT: dict[str, Any] = {"fontfamily": ["DejaVu Sans", "sans-serif"], "parse_math": False, "usetex": False}
_INK, _MUTED, _BLANK, _SILENT, _EMPTY = "#1A1A1A", "#6B6B6B", "#DDDDDD", "#9A9A9A", "#F6F6F6"
_DASHES = (0, (3, 2))
_NUMBER_SIZES = (10.0, 4.8)  # points: largest, smallest
_SIGN_SIZE = 3.5  # points: the smallest sign that is still one
_FLAT = 7.0  # points
_EM_HEIGHT = 1.25  # a line's height in font sizes

# matplotlib reads these while it writes, and has no other way to be told them.
_WRITING: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rke2-flows",
    "path.simplify": False,
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
}
_WRITING_LOCK = threading.Lock()
_METADATA: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": "rke2-flows"},
    "png": {"Software": "rke2-flows"},
    "pdf": {"CreationDate": None, "Creator": "rke2-flows", "Producer": None},
}


@dataclass(frozen=True)
class Look:
    """How one kind is drawn: face (few to many), hatch and its colour, colour of the text, sign, words."""

    faces: tuple[str, str]
    hatch: str
    hatch_colour: str
    ink: str
    sign: str
    words: str


LOOKS = {
    "allowed": Look(("#E4F1FB", "#A6D3F2"), "", "none", _INK, "✓", "allowed: {} (darker: more)"),
    "outside": Look(("#E69F00", "#E69F00"), "////", "#8A5A00", _INK, "!", "outside the specification: {}"),
    "blocked": Look(
        ("#005A8F", "#005A8F"), "xxxx", "#5FA9D6", "#FFFFFF", "✕",
        "blocked (allowed, yet refused, unreachable or unanswered): {}",
    ),
}  # fmt: skip


class SpecLike(Protocol):
    """What a picture needs of a specification: its name, and each rule's protocol and ports."""

    @property
    def name(self) -> str:
        """As in ``spec list``."""

    @property
    def rules(self) -> Sequence[Any]:
        """Each with ``id``, ``protocol``, ``first_port``, ``last_port``, ``clients`` and ``servers``."""


@dataclass(frozen=True)
class _Grid:
    """Cells of one panel.

    counts: uint64 (rows, columns, kinds). blank: bool (rows, columns), a cell that cannot have traffic.
    expected: the same shape, the specification foresees traffic here; all true where ``foresees`` is false,
    since a node matrix says nothing of that.
    """

    rows: list[str]
    columns: list[str]
    counts: NDArray[np.uint64]
    expected: NDArray[np.bool_]
    blank: NDArray[np.bool_]
    foresees: bool
    title: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)


@dataclass
class _Picture:
    """Words around the panels."""

    headline: str
    measure: Measure
    spec: SpecLike | None = None
    window: Window | None = None
    reading: str = "rows are clients, columns servers"
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"measure={self.measure!r}: one of {', '.join(MEASURES)}")

    def lines(self, width: float) -> list[str]:
        """Lines of at most ``width`` points."""
        parts = [
            f"specification {label(self.spec.name, 60)}" if self.spec else "",
            _window_words(self.window),
            f"numbers are {self.measure}",
            self.reading,
        ]
        return _wrapped([part for part in parts if part], width) + self.notes


# --- The pictures -----------------------------------------------------------------------------------------


def plot_roles(
    table: pd.DataFrame,
    *,
    measure: Measure = "flows",
    spec: SpecLike | None = None,
    window: Window | None = None,
    ax: Axes | None = None,
) -> NDArray[np.object_]:
    """Small multiples: one role × role panel for each rule, and one for what lies outside the table.

    ``table``: a ``matrix(by="role")``. ``measure``: which numbers. ``spec``: its name goes into the title,
    ports to the panels. ``window``: text, or first and last moment. ``ax``: draw within that one's area
    instead of on a new figure; its size must be final, and it is turned off. Returns the panels' Axes, shape
    (panels,), in the order of the rules; one that says so where there is nothing to draw.
    """
    picture = _Picture("Flows between roles, rule by rule", measure, spec, window)
    rules = _names(table, "rule")
    kept = _kept(rules, table, ("rule",), MAX_RULES, picture)
    roles = _names(table, "client_role", "server_role")
    panels = [_role_panel(table, rule, roles, picture) for rule in kept]
    return _multiples(panels, picture, ax)


def plot_nodes(
    table: pd.DataFrame,
    *,
    measure: Measure = "flows",
    spec: SpecLike | None = None,
    window: Window | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Heat map: client nodes down, server nodes across.

    ``table``: a ``matrix(by="node")``. More than MAX_NODES nodes: those with most outside, then blocked, then
    allowed traffic are drawn, and the picture says so. ``ax``: draw there instead of on a new figure; its
    size must be final. Returns the Axes drawn on. Else as plot_roles.
    """
    picture = _Picture("Flows between nodes", measure, spec, window)
    levels = ("client_node", "server_node")
    nodes = _kept(_names(table, *levels), table, levels, MAX_NODES, picture)
    grid = _grid(table, levels, (nodes, nodes), measure, [label(name) for name in nodes])
    np.fill_diagonal(grid.blank, grid.counts.sum(axis=2).diagonal() == 0)
    side = min(max(12 / max(len(nodes), 1), 0.22), 0.85) * _POINTS
    return _single(grid, (side, side), picture, ax)


def plot_rules(
    table: pd.DataFrame,
    *,
    measure: Measure = "flows",
    spec: SpecLike | None = None,
    window: Window | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Rules down, pairs of roles across. ``table``: a ``matrix(by="rule")``; else as plot_nodes."""
    picture = _Picture("Flows by rule and pair of roles", measure, spec, window, "client role → server role")
    rules = _kept(_names(table, "rule"), table, ("rule",), MAX_RULES, picture)
    pairs = _names(table, "pair")
    titles = [_rule_words(rule, spec, " · ") for rule in rules]
    grid = _grid(table, ("rule", "pair"), (rules, pairs), measure, titles)
    width = 110.0 if len(pairs) <= 9 else 84.0
    return _single(grid, (width, 30.0), picture, ax)


def save_plots(
    source: pd.DataFrame | Mapping[str, pd.DataFrame],
    directory: str | pathlib.Path,
    formats: Sequence[str] = ("png", "svg"),
    *,
    spec: SpecLike | None = None,
    cluster: ClusterLike | None = None,
    window: Window | None = None,
    measure: Measure = "flows",
) -> list[pathlib.Path]:
    """Write ``roles``, ``nodes`` and ``rules`` in each format into ``directory``, made if missing.

    Returns the paths written.
    ``source``: judged flows, or their matrices by ``role``, ``node`` and ``rule`` (those given are drawn).
    The same input gives the same bytes. Raises OSError when the directory cannot be written.
    """
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for by, (name, plot) in PLOTS.items():
        if not isinstance(source, pd.DataFrame) and by not in source:
            continue
        table = matrix(source, by, spec, cluster) if isinstance(source, pd.DataFrame) else source[by]
        drawn = plot(table, measure=measure, spec=spec, window=window)
        written += [save_figure(drawn, folder / f"{name}.{suffix}") for suffix in formats]
    return written


def save_figure(drawn: Drawn, path: str | pathlib.Path, suffix: str = "") -> pathlib.Path:
    """Write a figure, or the one that these Axes are on. ``suffix``: the format (``png``, ``svg``, ``pdf``);
    without it, the path's.

    SVG keeps text as text, and none of these carries a date. Raises ValueError for a format unknown.
    """
    target = pathlib.Path(path)
    form = (suffix or target.suffix).lower().lstrip(".")
    with _WRITING_LOCK, mpl.rc_context(_WRITING):
        figure_of(drawn).savefig(target, format=form, dpi=DOTS_PER_INCH, metadata=_METADATA.get(form))
    return target


def figure_of(drawn: Drawn) -> Figure:
    """The figure on which a plot was drawn. ``drawn``: what a ``plot_`` function returned."""
    first: Any = drawn.flat[0] if isinstance(drawn, np.ndarray) else drawn
    figure = first.get_figure(root=True)
    assert isinstance(figure, Figure)  # noqa: S101 - axes always hang on one
    return figure


PLOTS: dict[Any, tuple[str, Any]] = {
    "role": ("roles", plot_roles),
    "node": ("nodes", plot_nodes),
    "rule": ("rules", plot_rules),
}


# --- Words ------------------------------------------------------------------------------------------------


def label(name: str, limit: int = LABEL_LIMIT) -> str:
    """A hostile name as it may be drawn: escapes for what has no glyph, … in the middle of a long one."""
    known = _glyphs()
    # Escapes make a name longer, never shorter: so cut first; a name of a million characters is cheap.
    cut = name if len(name) <= 4 * limit else f"{name[: 2 * limit]}…{name[-2 * limit :]}"
    text = "".join(sign if sign.isprintable() and ord(sign) in known else _escape(sign) for sign in cut)
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[: limit - 1 - half]}…{text[-half:]}"


def _escape(sign: str) -> str:
    code = ord(sign)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _wrapped(parts: list[str], width: float) -> list[str]:
    lines = parts[:1]
    for part in parts[1:]:
        longer = f"{lines[-1]} · {part}"
        fits = _em_width(longer) * _LINE_SIZE <= width
        lines = [*lines[:-1], longer] if fits else [*lines, part]
    return lines


def _window_words(window: Window | None) -> str:
    if window is None:
        return ""
    if isinstance(window, str):
        return label(window, 80)
    first, last = (pd.Timestamp(moment) for moment in window)
    zone = f" {first.tzname()}" if first.tzinfo else ""
    return f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S}{zone}"


def _rule_words(rule: str, spec: SpecLike | None, joint: str) -> str:
    if rule == OUTSIDE_THE_TABLE:
        return "outside the table"
    ports = {known.id: _port_words(known) for known in spec.rules} if spec else {}
    return label(rule) + (joint + ports[rule] if rule in ports else "")


def _port_words(rule: Any) -> str:
    last = "" if rule.first_port == rule.last_port else f"-{rule.last_port}"
    return f"{label(rule.protocol, 8)} {rule.first_port}{last}"


# --- From a matrix to cells -------------------------------------------------------------------------------


def _names(table: pd.DataFrame, *levels: str) -> list[str]:
    """Names of index levels in order of appearance, which is the matrix's own order."""
    return list(dict.fromkeys(name for level in levels for name in table.index.get_level_values(level)))


def _kept(
    names: list[str], table: pd.DataFrame, levels: Sequence[str], limit: int, picture: _Picture
) -> list[str]:
    """At most ``limit`` names, in their order: those with most outside, then blocked, then any traffic."""
    if len(names) <= limit:
        return names
    columns = [f"{picture.measure}_{kind}" for kind in ("outside", "blocked", "allowed")]
    sums = [table.groupby(level=level, sort=False)[columns].sum() for level in levels]
    score = sum(
        (part.reindex(names, fill_value=0) for part in sums[1:]), sums[0].reindex(names, fill_value=0)
    )
    first = set(score.sort_values(columns, ascending=False, kind="stable").index[:limit])
    inside = np.logical_and.reduce([table.index.get_level_values(level).isin(first) for level in levels])
    missing = int(table.loc[~inside, picture.measure].sum())
    picture.notes.append(
        f"{limit} of {len(names)} {levels[0].removeprefix('client_')}s: "
        f"those with most outside, then blocked, then allowed; "
        f"{short(missing)} {picture.measure} not shown"
    )
    return [name for name in names if name in first]


def _grid(
    table: pd.DataFrame,
    levels: tuple[str, str],
    axes: tuple[list[str], list[str]],
    measure: Measure,
    rows: list[str],
) -> _Grid:
    shape = (len(axes[0]), len(axes[1]))
    places = [
        pd.Index(axis, dtype=object).get_indexer(table.index.get_level_values(level))
        for level, axis in zip(levels, axes, strict=True)
    ]
    inside = (places[0] >= 0) & (places[1] >= 0)
    at = (places[0][inside], places[1][inside])
    counts = np.zeros((*shape, len(KINDS)), dtype=np.uint64)
    counts[at] = table[[f"{measure}_{kind}" for kind in KINDS]].to_numpy(dtype=np.uint64)[inside]
    foresees = "foreseen" in table
    expected = np.full(shape, not foresees)
    if foresees:
        expected[at] = table["foreseen"].to_numpy(dtype=bool)[inside]
    headings = [label(name) or "?" for name in axes[1]]
    blank = np.zeros(shape, dtype=bool)
    return _Grid([row or "?" for row in rows], headings, counts, expected, blank, foresees)


def _role_panel(table: pd.DataFrame, rule: str, roles: list[str], picture: _Picture) -> _Grid:
    part = table[table.index.get_level_values("rule") == rule]
    words = [label(role) for role in roles]
    grid = _grid(part, ("client_role", "server_role"), (roles, roles), picture.measure, words)
    return replace(grid, title=_rule_words(rule, picture.spec, "\n"))


# --- Drawing ----------------------------------------------------------------------------------------------


def _draw(ax: Axes, grid: _Grid, peak: int, name: str) -> None:
    """All cells of one grid; the axes must have their final size, since that decides what fits."""
    rows, columns = grid.shape
    ax.set_xlim(0, columns)
    ax.set_ylim(rows, 0)
    ax.tick_params(length=0, pad=3, colors=_INK)
    ax.set_facecolor("none")
    for spine in ax.spines.values():
        spine.set_visible(False)
    cell = _cell_points(ax, grid)
    bands = _bands(grid, cell)
    _draw_backgrounds(ax, grid, cell)
    for kind, found in bands.items():
        _draw_bands(ax, kind, found, peak)
        _draw_numbers(ax, kind, found, cell, name)
    _draw_zeros(ax, grid, cell, name)


def _cell_points(ax: Axes, grid: _Grid) -> tuple[float, float]:
    box = ax.get_window_extent()
    dots = figure_of(ax).dpi / _POINTS
    return box.width / dots / max(grid.shape[1], 1), box.height / dots / max(grid.shape[0], 1)


@dataclass(frozen=True)
class _Band:
    """One kind's part of a cell: its place in cell units, the cell, the count."""

    left: float
    top: float
    width: float
    height: float
    row: int
    column: int
    count: int

    @property
    def area(self) -> _Area:
        return self.left, self.top, self.width, self.height


def _bands(grid: _Grid, cell: tuple[float, float]) -> dict[str, list[_Band]]:
    """Each cell's kinds, side by side where the cell is wide, else one below the other."""
    bands: dict[str, list[_Band]] = {kind: [] for kind in KINDS}
    for row, column in np.argwhere(grid.counts.any(axis=2)):
        present = np.flatnonzero(grid.counts[row, column])
        part = 1 / len(present)
        # Too flat for a number, a band still has room for its sign when it stands upright.
        wide = cell[0] > 2 * cell[1] or part * cell[1] < _FLAT
        for order, kind in enumerate(present):
            start = order * part
            area = (column + start, row, part, 1) if wide else (column, row + start, 1, part)
            count = int(grid.counts[row, column, kind])
            bands[KINDS[kind]].append(_Band(*_padded(area, cell), int(row), int(column), count))
    return bands


def _padded(area: _Area, cell: tuple[float, float]) -> _Area:
    """An area (left, top, width, height in cells) less the margin that parts neighbours."""
    left, top, width, height = area
    across, down = (min(0.8, 0.06 * min(cell)) / side for side in cell)
    return left + across, top + down, width - 2 * across, height - 2 * down


def _draw_bands(ax: Axes, kind: str, bands: list[_Band], peak: int) -> None:
    if not bands:
        return
    look, areas = LOOKS[kind], [band.area for band in bands]
    if look.hatch:
        ways = {"hatch": look.hatch, "edgecolor": look.hatch_colour}
        _add_areas(ax, areas, facecolor=look.faces[0], label=kind, **ways)
        return
    few, many = (np.array(to_rgb(face)) for face in look.faces)
    depth = np.log1p([float(band.count) for band in bands]) / math.log1p(max(peak, 1))
    shades = few + np.clip(depth, 0, 1)[:, None] * (many - few)
    ax.add_collection(
        PolyCollection(list(_corners(areas)), facecolors=shades, linewidths=0, label=kind), autolim=False
    )


def _draw_numbers(ax: Axes, kind: str, bands: list[_Band], cell: tuple[float, float], name: str) -> None:
    look = LOOKS[kind]
    fitted = [
        (band, *_fitting(kind, band.count, band.width * cell[0], band.height * cell[1])) for band in bands
    ]
    if look.hatch:
        chips = [_chip(band, text, size, cell) for band, text, size in fitted if text]
        _add_areas(ax, chips, facecolor=look.faces[0])
    for band, text, size in fitted:
        if text:
            middle = (band.left + band.width / 2, band.top + band.height / 2)
            drawn = _write_number(ax, middle, text, size, look.ink)
            drawn.set_gid(f"{name}-{band.row}-{band.column}-{kind}")


def _write_number(ax: Axes, middle: tuple[float, float], text: str, size: float, ink: str) -> Text:
    return ax.text(*middle, text, ha="center", va="center_baseline", fontsize=size, color=ink, **_FONT)


def _chip(band: _Band, text: str, size: float, cell: tuple[float, float]) -> _Area:
    """A plain field behind a number, within its band, so that the hatch does not cross it."""
    width = min((_em_width(text) + 0.3) * size / cell[0], band.width)
    height = min(1.2 * size / cell[1], band.height)
    return band.left + (band.width - width) / 2, band.top + (band.height - height) / 2, width, height


def _add_areas(ax: Axes, areas: Sequence[_Area], **look: Any) -> None:
    """All areas of one look as one path: ten thousand hatched patches of their own take far longer."""
    if areas:
        corners = _corners(areas)
        codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(areas))
        path = Path(corners[:, [0, 1, 2, 3, 0]].reshape(-1, 2), codes)
        ax.add_artist(PathPatch(path, **{"linewidth": 0.0, "edgecolor": "none", **look}))


def _corners(areas: Sequence[_Area]) -> NDArray[np.float64]:
    """Shape (areas, 4, 2): x and y of each corner."""
    left, top, width, height = np.array(areas, dtype=np.float64).T
    right, bottom = left + width, top + height
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return np.array(corners).transpose(2, 0, 1)


def _fitting(kind: str, count: int, width: float, height: float) -> tuple[str, float]:
    """The fullest text that fits into width × height points, and its size."""
    sign, number = LOOKS[kind].sign, short(count)
    largest, smallest = _NUMBER_SIZES
    for text, least in (
        (f"{sign} {number}", 6.5),
        (f"{sign}{number}", smallest),
        (number, smallest),
        (sign, _SIGN_SIZE),
    ):
        size = min(largest, 0.92 * width / _em_width(text), 0.9 * height)
        if size >= least:
            return text, size
    return "", 0.0


@lru_cache(maxsize=4096)
def _em_width(text: str) -> float:
    """Width of a text in font sizes."""
    size = FontProperties(family="DejaVu Sans", size=100)
    return float(_ruler().get_text_width_height_descent(text, size, ismath=False)[0]) / 100


@cache
def _ruler() -> Any:
    canvas: Any = FigureCanvasAgg(Figure(dpi=_POINTS))
    return canvas.get_renderer()


def _draw_backgrounds(ax: Axes, grid: _Grid, cell: tuple[float, float]) -> None:
    """Cells without flows: grey where none can be, a dashed frame where the specification foresees some."""
    silent = ~grid.counts.any(axis=2)
    looks: tuple[tuple[NDArray[np.bool_], dict[str, Any]], ...] = (
        (silent & grid.blank, {"facecolor": _BLANK}),
        (silent & ~grid.blank & ~_news(grid), {"facecolor": _EMPTY}),
        (
            _news(grid),
            {"facecolor": "white", "edgecolor": _SILENT, "linewidth": 0.8, "linestyle": _DASHES},
        ),
    )
    for where, look in looks:
        _add_areas(ax, [_padded((column, row, 1, 1), cell) for row, column in np.argwhere(where)], **look)


def _news(grid: _Grid) -> NDArray[np.bool_]:
    """Cells whose zero is news: foreseen by the specification."""
    return grid.expected & ~grid.counts.any(axis=2) & grid.foresees


def _draw_zeros(ax: Axes, grid: _Grid, cell: tuple[float, float], name: str) -> None:
    size = min(9.0, 0.5 * min(cell))
    if size < _NUMBER_SIZES[1]:
        return
    for row, column in np.argwhere(~grid.counts.any(axis=2) & ~grid.blank):
        text = "0" if grid.expected[row, column] else "·"
        drawn = _write_number(ax, (column + 0.5, row + 0.5), text, size, _MUTED)
        drawn.set_gid(f"{name}-{row}-{column}-none")


# --- Layout, in points ------------------------------------------------------------------------------------

_EDGE = 14.0
_LEAST_WIDTH = 500.0
_TITLE_SIZE, _LINE_SIZE, _LEGEND_SIZE, _LABEL_SIZE = 13.0, 8.5, 8.5, 9.0
_LINE_STEP, _LEGEND_STEP = 12.5, 15.0
_PANEL_CELL = (64.0, 44.0)
_PANEL_GAP = 22.0
_PANELS_WIDTH = 1000.0


def _single(grid: _Grid, cell: tuple[float, float], picture: _Picture, ax: Axes | None) -> Axes:
    if ax is not None:
        return _on_axes(grid, picture, ax)
    rows, columns = grid.shape
    size = _label_size(min(cell))
    left = _EDGE + max((_em_width(row) * size for row in grid.rows), default=0) + 8
    above = _heading_height(grid, cell[0], size)
    width = max(left + columns * cell[0] + _EDGE, _LEAST_WIDTH)
    lines = _lines(picture, [grid], width)
    legend = _legend_entries([grid])
    below = _legend_height(legend, width)
    height = below + rows * cell[1] + above + _head_height(lines) + (0 if rows else 60)
    sheet = _sheet(width, height)
    _write_head(sheet, picture.headline, lines)
    if rows and columns:
        ax = sheet.axes(left, below, columns * cell[0], rows * cell[1])
        _draw_single(ax, grid, _peak([grid]))
    else:
        ax = _write_nothing(sheet)
    _write_legend(sheet, legend)
    return ax


def _draw_single(ax: Axes, grid: _Grid, peak: int) -> None:
    ax.xaxis.tick_top()
    _draw(ax, grid, peak, "cell")
    _label_ticks(ax, grid)


def _on_axes(grid: _Grid, picture: _Picture, ax: Axes) -> Axes:
    """On the caller's axes, whose size is the caller's: text shrinks, labels thin out."""
    _draw_single(ax, grid, _peak([grid]))
    lines = _lines(picture, [grid], max(_cell_points(ax, grid)[0] * len(grid.columns), 240))
    ax.set_title("\n".join([picture.headline, *lines]), fontsize=_LINE_SIZE, loc="left", color=_INK, **_FONT)
    handles = [handle for handle, _ in _legend_entries([grid])]
    ax.legend(
        handles=handles, prop=_legend_font(), loc="upper left", bbox_to_anchor=(0.0, 0.0), frameon=False
    )
    return ax


def _multiples(panels: list[_Grid], picture: _Picture, ax: Axes | None) -> NDArray[np.object_]:
    roles = max((len(panel.rows) for panel in panels), default=0)
    names = max((_em_width(row) * 8 for panel in panels for row in panel.rows), default=0)
    inner = (max(roles, 1) * _PANEL_CELL[0], max(roles, 1) * _PANEL_CELL[1])
    titles = max((_em_width(line) * 9 for panel in panels for line in panel.title.split("\n")), default=0)
    outer = (max(inner[0], titles) + names + _PANEL_GAP, inner[1] + 58.0)
    across = max(1, min(len(panels), int(_PANELS_WIDTH // outer[0]), math.ceil(math.sqrt(1.4 * len(panels)))))
    width = max(across * outer[0] + 2 * _EDGE, _LEAST_WIDTH)
    lines = _lines(picture, panels, width)
    legend = _legend_entries(panels)
    height = _legend_height(legend, width) + math.ceil(len(panels) / across) * outer[1] + _head_height(lines)
    sheet = _sheet(width, height, ax)
    _write_head(sheet, picture.headline, lines)
    drawn = []
    for number, panel in enumerate(panels if roles else []):
        x = _EDGE + (number % across) * outer[0] + names + 6
        y = height - _head_height(lines) - (number // across) * outer[1] - 32 - inner[1]
        drawn.append(sheet.axes(x, y, *inner))
        _draw_panel(drawn[-1], panel, _peak(panels), number)
    _write_legend(sheet, legend)
    return np.array(drawn or [_write_nothing(sheet)], dtype=np.object_)


def _draw_panel(ax: Axes, panel: _Grid, peak: int, number: int) -> None:
    _draw(ax, panel, peak, f"panel-{number}")
    _label_ticks(ax, panel)
    ax.set_title(panel.title, fontsize=9, loc="left", color=_INK, linespacing=1.15, **_FONT)


@dataclass(frozen=True)
class _Sheet:
    """A picture's area of a figure. ``width``, ``height``: the area in points, as the picture counts them.
    ``place``: the area in fractions of the figure: left, bottom, width, height.
    """

    figure: Figure | SubFigure
    width: float
    height: float
    place: _Area = (0.0, 0.0, 1.0, 1.0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Points from the area's lower left corner to fractions of the figure."""
        left, bottom, width, height = self.place
        return left + x / self.width * width, bottom + y / self.height * height

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        (left, bottom), (right, top) = self.at(x, y), self.at(x + width, y + height)
        return self.figure.add_axes((left, bottom, right - left, top - bottom))


def _sheet(width: float, height: float, ax: Axes | None = None) -> _Sheet:
    """A new figure of that many points, or the area of the caller's axes, whose own marks go."""
    if ax is None:
        figure = Figure(figsize=(width / _POINTS, height / _POINTS), dpi=100, facecolor="white")
        FigureCanvasAgg(figure)
        return _Sheet(figure, width, height)
    ax.set_axis_off()
    parent = ax.get_figure()
    assert parent is not None  # noqa: S101 - axes always hang on one
    return _Sheet(parent, width, height, ax.get_position().bounds)


def _lines(picture: _Picture, grids: list[_Grid], width: float) -> list[str]:
    """Lines below the headline. The first says so when no cell has flows; without cells the panel does."""
    cells = [grid.counts for grid in grids if grid.counts.size]
    nothing = [NOTHING] if cells and not any(counts.any() for counts in cells) else []
    return [*nothing, *picture.lines(width - 2 * _EDGE)]


def _head_height(lines: list[str]) -> float:
    return _EDGE + 1.4 * _TITLE_SIZE + _LINE_STEP * len(lines) + 8


def _write_head(sheet: _Sheet, headline: str, lines: list[str]) -> None:
    place: dict[str, Any] = {"ha": "left", "va": "top", "color": _INK, **_FONT}
    top = sheet.height - _EDGE
    sheet.figure.text(*sheet.at(_EDGE, top), headline, fontsize=_TITLE_SIZE, fontweight="bold", **place)
    for number, line in enumerate(lines):
        y = top - 1.4 * _TITLE_SIZE - number * _LINE_STEP
        sheet.figure.text(*sheet.at(_EDGE, y), line, fontsize=_LINE_SIZE, **place)


def _write_nothing(sheet: _Sheet) -> Axes:
    """Axes that hold nothing but the word for it."""
    ax = sheet.axes(0, 0, sheet.width, sheet.height)
    ax.set(xticks=[], yticks=[])
    ax.set_axis_off()
    place: dict[str, Any] = {"ha": "center", "va": "center", "transform": ax.transAxes, **_FONT}
    ax.text(0.5, 0.5, NOTHING, fontsize=14, color=_MUTED, **place)
    return ax


def _peak(grids: list[_Grid]) -> int:
    return max((int(grid.counts.max()) for grid in grids if grid.counts.size), default=0)


def _label_size(side: float) -> float:
    return float(min(_LABEL_SIZE, max(5.0, 0.6 * side)))


def _turned(grid: _Grid, width: float, size: float) -> bool:
    return any(_em_width(column) * size > width - 3 for column in grid.columns)


def _heading_height(grid: _Grid, width: float, size: float) -> float:
    widest = max((_em_width(column) for column in grid.columns), default=0) * size
    return (widest if _turned(grid, width, size) else size * _EM_HEIGHT) + 8


def _label_ticks(ax: Axes, grid: _Grid) -> None:
    """Names at rows and columns; where the axes are too small for all, every second, third, … one."""
    cell = _cell_points(ax, grid)
    size = _label_size(min(cell))
    turned = _turned(grid, cell[0], size)
    steps = [math.ceil(size * _EM_HEIGHT / side) for side in (cell[0] if turned else math.inf, cell[1])]
    ways: dict[str, Any] = {"fontsize": size, "color": _INK, **_FONT}
    across, down = (
        (np.arange(0, len(names), max(step, 1)), names[:: max(step, 1)])
        for names, step in zip((grid.columns, grid.rows), steps, strict=True)
    )
    ax.set_xticks(across[0] + 0.5, across[1], rotation=90 if turned else 0, **ways)
    ax.set_yticks(down[0] + 0.5, down[1], **ways)


# --- Legend -----------------------------------------------------------------------------------------------


def _legend_font() -> FontProperties:
    return FontProperties(family=_FONT["fontfamily"], size=_LEGEND_SIZE)


def _legend_entries(grids: list[_Grid]) -> list[tuple[Patch, float]]:
    """One patch for each kind, with its total; its width in points."""
    sums = sum(
        (grid.counts.sum(axis=(0, 1), dtype=object) for grid in grids), np.zeros(len(KINDS), dtype=object)
    )
    handles = [_kind_patch(kind, int(sums[place])) for place, kind in enumerate(KINDS)]
    if any(grid.foresees for grid in grids):
        words = "0 foreseen, none seen (· not foreseen, none seen)"
        handles.append(Patch(facecolor="white", edgecolor=_SILENT, linestyle=_DASHES, label=words))
    return [(handle, _em_width(str(handle.get_label())) * _LEGEND_SIZE + 40) for handle in handles]


def _kind_patch(kind: str, total: int) -> Patch:
    look = LOOKS[kind]
    words = f"{look.sign} {look.words.format(short(total))}"
    return Patch(
        facecolor=look.faces[1], edgecolor=look.hatch_colour, hatch=look.hatch, linewidth=0, label=words
    )


def _legend_columns(entries: list[tuple[Patch, float]], width: float) -> int:
    widest = max(length for _, length in entries)
    return max(1, min(len(entries), int((width - 2 * _EDGE) // widest)))


def _legend_height(entries: list[tuple[Patch, float]], width: float) -> float:
    return math.ceil(len(entries) / _legend_columns(entries, width)) * _LEGEND_STEP + 2 * _EDGE


def _write_legend(sheet: _Sheet, entries: list[tuple[Patch, float]]) -> None:
    sheet.figure.legend(
        handles=[handle for handle, _ in entries],
        loc="lower left",
        bbox_to_anchor=sheet.at(_EDGE, _EDGE / 2),
        ncols=_legend_columns(entries, sheet.width),
        prop=_legend_font(),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        labelspacing=0.6,
        handlelength=2.4,
        handleheight=1.1,
    )
