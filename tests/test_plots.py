"""plots.py by what it draws: numbers, hatches, luminance, labels, bytes. Rule: tables in, figures out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from analyzer.matrices import KINDS, matrix, short
from analyzer.plots import (
    LABEL_LIMIT,
    LOOKS,
    MAX_NODES,
    MAX_RULES,
    NOTHING,
    Drawn,
    figure_of,
    label,
    plot_nodes,
    plot_roles,
    plot_rules,
    save_figure,
    save_plots,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

BOTH, SERVERS, AGENTS = frozenset({"server", "agent"}), frozenset({"server"}), frozenset({"agent"})
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    "$x^2$",
    "$\\frac{1}{0",
    "<script>alert(1)</script>",
    "a&b\"'",
    "\x1b[31m\x00\n\t",
    "\u202eevil",
    "日本語",
    "\ufffe",
    "n" * 5000,
    "",
)


def rule(
    name: str, port: int, clients: frozenset[str] = BOTH, servers: frozenset[str] = BOTH
) -> SimpleNamespace:
    sides = {"clients": clients, "servers": servers}
    return SimpleNamespace(
        id=name, protocol="tcp", first_port=port, last_port=port, description=name, **sides
    )


SPEC = SimpleNamespace(
    name="some-table",
    rules=(
        rule("kube-api", 6443, AGENTS, SERVERS),
        rule("kubelet", 10250),
        rule("etcd", 2379, SERVERS, SERVERS),
    ),
)
WINDOW = ("2026-01-02T03:04:05Z", "2026-01-02T04:04:05Z")
COLUMNS = ("client_node", "server_node", "client_role", "server_role", "rule", "verdict", "outcome", "scope")


def judged(rows: Sequence[tuple[str, ...]], packets: int = 1) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(COLUMNS[:-1])).assign(scope="inter-node")
    for column in ("packets_out", "packets_in", "bytes_out", "bytes_in"):
        frame[column] = np.full(len(frame), packets, dtype=np.uint64)
    return frame.astype(dict.fromkeys(COLUMNS, "category"))


def cluster_of(size: int, seed: int = 1, flows: int = 3000, names: tuple[str, ...] = ()) -> pd.DataFrame:
    """All kinds, mixed, between ``size`` nodes."""
    rng = np.random.default_rng(seed)
    nodes = names or tuple(f"{'server' if i < 3 else 'agent'}-{i + 1}.example.internal" for i in range(size))
    verdicts = (
        ("allowed", "answered"),
        ("wrong-pair", "answered"),
        ("allowed", "refused"),
        ("unlisted", "one-way"),
    )
    rules = ("kube-api", "kubelet", "etcd")
    rows = []
    for _ in range(flows):
        client, server = rng.integers(0, len(nodes), 2)
        verdict, outcome = verdicts[rng.choice(4, p=(0.85, 0.05, 0.05, 0.05))]
        roles = tuple("server" if node < 3 else "agent" for node in (client, server))
        name = "" if verdict == "unlisted" else rules[rng.integers(0, 3)]
        rows.append((nodes[client], nodes[server], *roles, name, verdict, outcome))
    return judged(rows)


def numbers(drawn: Drawn) -> dict[str, str]:
    """What is written in the cells: the text's id → text."""
    found = {}
    for ax in figure_of(drawn).axes:
        for text in ax.texts:
            gid = text.get_gid()
            assert gid not in found
            found[str(gid)] = text.get_text()
    return found


def cells(table: pd.DataFrame) -> list[tuple[Any, dict[Any, Any]]]:
    return list(zip(table.index, table.to_dict("records"), strict=True))


def digits(text: str) -> str:
    return text.lstrip("✓!✕ ")


def words(drawn: Drawn) -> str:
    return "\n".join(text.get_text() for text in figure_of(drawn).findobj(Text) if isinstance(text, Text))


def areas(figure: Figure, kind: str) -> list[Any]:
    return [artist for ax in figure.axes for artist in ax.get_children() if artist.get_label() == kind]


# --- Numbers ---


@pytest.mark.parametrize("measure", ["flows", "packets", "bytes"])
def test_node_numbers_are_the_matrixs(measure: Any) -> None:
    table = matrix(cluster_of(6), "node")
    drawn = numbers(plot_nodes(table, measure=measure))
    names = table.index.get_level_values(0).unique().tolist()
    expected: dict[str, str] = {}
    for (client, server), row in cells(table):
        place = f"cell-{names.index(client)}-{names.index(server)}"
        found = {
            f"{place}-{kind}": short(int(row[f"{measure}_{kind}"]))
            for kind in KINDS
            if row[f"{measure}_{kind}"]
        }
        expected |= found or ({} if client == server else {f"{place}-none": "0"})
    assert {place: digits(text) for place, text in drawn.items()} == expected
    for place, text in drawn.items():
        kind = place.rsplit("-", 1)[1]
        assert kind == "none" or text.startswith(LOOKS[kind].sign)


def test_role_numbers_are_the_matrixs() -> None:
    table = matrix(cluster_of(6), "role", SPEC)
    drawn = numbers(plot_roles(table, spec=SPEC))
    rules, roles = (table.index.get_level_values(level).unique().tolist() for level in (0, 1))
    expected: dict[str, str] = {}
    for (name, client, server), row in cells(table):
        place = f"panel-{rules.index(name)}-{roles.index(client)}-{roles.index(server)}"
        found = {
            f"{place}-{kind}": short(int(row[f"flows_{kind}"])) for kind in KINDS if row[f"flows_{kind}"]
        }
        expected |= found or {f"{place}-none": "0" if row["foreseen"] else "·"}
    assert {place: digits(text) for place, text in drawn.items()} == expected


def test_rule_numbers_are_the_matrixs() -> None:
    table = matrix(cluster_of(6), "rule", SPEC)
    drawn = numbers(plot_rules(table, spec=SPEC))
    rules, pairs = (table.index.get_level_values(level).unique().tolist() for level in (0, 1))
    expected: dict[str, str] = {}
    for (name, pair), row in cells(table):
        place = f"cell-{rules.index(name)}-{pairs.index(pair)}"
        found = {
            f"{place}-{kind}": short(int(row[f"flows_{kind}"])) for kind in KINDS if row[f"flows_{kind}"]
        }
        expected |= found or {f"{place}-none": "0" if row["foreseen"] else "·"}
    assert {place: digits(text) for place, text in drawn.items()} == expected


def test_a_hundred_nodes_still_have_their_numbers() -> None:
    table = matrix(cluster_of(100), "node")
    drawn = numbers(plot_nodes(table))
    assert sum(place.endswith("-allowed") for place in drawn) == int((table["flows_allowed"] > 0).sum())
    alone = table[(table["flows"] == table["flows_outside"]) & (table["flows"] > 0)]
    names = table.index.get_level_values(0).unique().tolist()
    for (client, server), row in cells(alone):
        text = drawn[f"cell-{names.index(client)}-{names.index(server)}-outside"]
        assert text.replace(" ", "") == f"!{row['flows']}"


def test_the_legend_has_the_totals() -> None:
    table = matrix(cluster_of(6), "node")
    text = words(plot_nodes(table))
    for kind in KINDS:
        assert LOOKS[kind].words.format(short(int(table[f"flows_{kind}"].sum()))) in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (1234, "1.2k"), (9949, "9.9k"), (9950, "10k"), (999_499, "999k"),
     (999_500, "1M"), (12_345_678, "12M"), (10**18, "1E"), (2**64 - 1, "18E")],
)  # fmt: skip
def test_short_numbers(number: int, text: str) -> None:
    assert short(number) == text


@given(st.integers(0, 2**64 - 1))
def test_short_numbers_are_short_and_near(number: int) -> None:
    text = short(number)
    assert len(text) <= 4
    scale = 1000 ** " kMGTPE".index(text[-1]) if text[-1].isalpha() else 1
    assert float(text.rstrip("kMGTPE")) * scale == pytest.approx(number, rel=0.06)


# --- Telling kinds apart ---


def test_hatches_and_signs_differ_by_kind() -> None:
    figure = figure_of(plot_nodes(matrix(cluster_of(6), "node")))
    hatches = {kind: {area.get_hatch() for area in areas(figure, kind)} for kind in KINDS}
    assert all(len(found) == 1 for found in hatches.values())
    assert len({next(iter(found)) for found in hatches.values()}) == 3
    assert len({look.sign for look in LOOKS.values()}) == 3
    assert len({look.hatch for look in LOOKS.values()}) == 3


def luminance(colour: Any) -> float:
    """Relative luminance, WCAG 2.2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: Any, other: Any) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_contrasts_with_its_field() -> None:
    for look in LOOKS.values():
        assert min(contrast(look.ink, face) for face in look.faces) >= 4.5


def grey(figure: Figure, ax: Axes, x: float, y: float) -> float:
    """Grey value (ITU-R BT.601, as Pillow does) of the pixels around a place in data coordinates."""
    canvas: Any = figure.canvas
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] @ np.array([0.299, 0.587, 0.114])
    column, row = ax.transData.transform((x, y)).astype(int)
    return float(np.median(pixels[len(pixels) - row - 4 : len(pixels) - row + 4, column - 3 : column + 3]))


def test_kinds_differ_in_grey_as_drawn() -> None:
    rows = [("a", "b", "server", "agent", "kubelet", "allowed", "answered")] * 50
    rows += [("b", "c", "agent", "agent", "", "unlisted", "answered")]
    rows += [("c", "a", "agent", "server", "kubelet", "allowed", "refused")]
    figure = figure_of(plot_nodes(matrix(judged(rows), "node")))
    figure.canvas.draw()
    ax = figure.axes[0]
    values = sorted(grey(figure, ax, column + 0.15, row + 0.2) for row, column in ((0, 1), (1, 2), (2, 0)))
    assert min(np.diff(values)) > 35
    lightest = [luminance(face) for face in LOOKS["allowed"].faces]
    assert min(lightest) > luminance(LOOKS["outside"].faces[0]) > luminance(LOOKS["blocked"].faces[0])


# --- Labels ---


def overlapping(labels: list[Text], renderer: Any) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in labels if text.get_text()]
    return [
        (one, other)
        for (one, first), (other, second) in pairwise(boxes)
        if first.x0 < second.x1 and second.x0 < first.x1 and first.y0 < second.y1 and second.y0 < first.y1
    ]


def assert_legible(drawn: Drawn) -> None:
    figure = figure_of(drawn)
    canvas: Any = figure.canvas
    canvas.draw()
    renderer = canvas.get_renderer()
    for ax in figure.axes:
        assert not overlapping(ax.get_xticklabels(), renderer)
        assert not overlapping(ax.get_yticklabels(), renderer)
    assert not overlapping([ax._left_title for ax in figure.axes], renderer)  # type: ignore[attr-defined]
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0, text
            assert box.y0 >= 0, text
            assert box.x1 <= figure.bbox.width, text
            assert box.y1 <= figure.bbox.height, text


@pytest.mark.parametrize("size", [2, 3, 6, 12, 30, 100])
def test_labels_do_not_overlap_and_nothing_leaves_the_figure(size: int) -> None:
    figure = figure_of(plot_nodes(matrix(cluster_of(size), "node"), spec=SPEC, window=WINDOW))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(labels) == size
    assert max(figure.get_size_inches()) <= 26
    assert_legible(figure)


@pytest.mark.parametrize("roles", [("server", "agent"), ("server", "control-plane", "etcd", "agent")])
def test_roles_and_rules_are_legible(roles: tuple[str, ...]) -> None:
    rows = [("a", "b", one, other, "kubelet", "allowed", "answered") for one in roles for other in roles]
    rows += [(*row[:4], "", "unlisted", "answered") for row in rows] + [(*row[:6], "refused") for row in rows]
    long = SimpleNamespace(name=SPEC.name, rules=(*SPEC.rules, rule("m" * 50, 1), rule("w" * 50, 2)))
    assert_legible(plot_roles(matrix(judged(rows), "role", long), spec=long, window=WINDOW))
    assert_legible(plot_rules(matrix(judged(rows), "rule", SPEC), spec=SPEC, window=WINDOW))


def test_labels_thin_out_on_small_axes() -> None:
    figure = Figure(figsize=(4, 4))
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.3, 0.2, 0.6, 0.5))
    assert plot_nodes(matrix(cluster_of(100), "node"), ax=ax) is ax
    figure.canvas.draw()
    renderer: Any = figure.canvas
    assert 0 < len(ax.get_yticklabels()) < 100
    assert not overlapping(ax.get_yticklabels(), renderer.get_renderer())
    assert not overlapping(ax.get_xticklabels(), renderer.get_renderer())


def test_roles_are_drawn_within_given_axes() -> None:
    figure = Figure(figsize=(24, 8))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    panels = plot_roles(matrix(cluster_of(4), "role", SPEC), ax=left)
    assert figure.axes == [left, right, *panels.tolist()]
    assert len(panels) == 4
    assert figure_of(panels) is figure
    figure.canvas.draw()
    area = left.get_position()
    for panel in panels.tolist():
        box = panel.get_position()
        assert area.x0 <= box.x0 < box.x1 <= area.x1
        assert area.y0 <= box.y0 < box.y1 <= area.y1
    assert right.axison
    assert not left.axison


@pytest.mark.parametrize(("by", "plot"), [("node", plot_nodes), ("rule", plot_rules)])
def test_a_plot_returns_the_axes_it_drew_on(by: Any, plot: Callable[..., Axes]) -> None:
    table = matrix(cluster_of(4), by, SPEC)
    new = plot(table)
    assert figure_of(new).axes == [new]
    given = Figure(figsize=(9, 9)).subplots()
    assert plot(table, ax=given) is given
    assert [text.get_text() for text in new.texts] != []


def test_too_many_nodes_keeps_the_worst_and_says_so() -> None:
    rows = [
        (f"n{i}", f"n{i + 1}", "agent", "agent", "kubelet", "allowed", "answered") for i in range(150)
    ] * 2
    rows.append(("n148", "n0", "agent", "agent", "", "unlisted", "answered"))
    table = matrix(judged(rows), "node")
    figure = figure_of(plot_nodes(table))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(labels) == MAX_NODES
    assert {"n148", "n0"} <= set(labels)
    drawn = sum(int(digits(text)) for place, text in numbers(figure).items() if not place.endswith("none"))
    assert f"{MAX_NODES} of 151 nodes" in words(figure)
    assert f"{int(table['flows'].sum()) - drawn} flows not shown" in words(figure)


def test_too_many_rules_keeps_the_worst_and_says_so() -> None:
    rows = [("a", "b", "agent", "server", f"r{i}", "allowed", "answered") for i in range(90)]
    rows.append(("a", "b", "agent", "server", "r89", "wrong-pair", "answered"))
    for by, plot in (("role", plot_roles), ("rule", plot_rules)):
        figure = plot(matrix(judged(rows), by), measure="flows")  # type: ignore[arg-type]
        assert f"{MAX_RULES} of 91 rules" in words(figure)
        assert "r89" in words(figure)


# --- Hostile names ---


def drawn_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def test_hostile_names_are_literal_in_every_format(tmp_path: Path) -> None:
    rows = [(one, HOSTILE[0], one, "agent", one, "allowed", "answered") for one in HOSTILE]
    spec = SimpleNamespace(name="<b>$y$</b>", rules=(rule("$x^2$", 1), rule("<script>", 2)))
    paths = save_plots(judged(rows), tmp_path, spec=spec, window="$t$ <i>")
    for path in paths:
        if path.suffix == ".svg":
            text = path.read_text("utf-8")
            tree = ET.fromstring(text)  # noqa: S314 - our own file
            assert not [node for node in tree.iter() if node.tag in {f"{SVG}script", f"{SVG}b", f"{SVG}i"}]
            assert "<script" not in text
            assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202e\ufffe]", text)
    figure = figure_of(plot_nodes(matrix(judged(rows), "node")))
    labels = drawn_labels(figure)
    assert {"$x^2$", "$\\frac{1}{0", "a&b\"'", "\\x1b[31m\\x00\\x0a\\x09", "\\u202eevil", "?"} <= set(labels)
    assert all(len(text) <= LABEL_LIMIT for text in labels)
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and "$" in text.get_text()]
    assert texts
    assert not any(text.get_parse_math() for text in texts)


@given(st.text(max_size=200))
@settings(max_examples=100)
def test_any_name_becomes_a_drawable_label(name: str) -> None:
    text = label(name)
    assert len(text) <= LABEL_LIMIT
    assert text.isprintable()
    ET.fromstring(f"<a>{text.replace('&', '').replace('<', '')}</a>")  # noqa: S314


@given(st.from_regex(r"[a-z0-9.-]{1,28}", fullmatch=True))
def test_a_usual_name_is_its_own_label(name: str) -> None:
    assert label(name) == name


def test_long_names_keep_both_ends() -> None:
    text = label("worker-" + "x" * 80 + "-0017.internal")
    assert text.startswith("worker-")
    assert text.endswith("-0017.internal"[-13:])
    assert "…" in text


# --- Files ---


def test_svg_keeps_text_as_text_and_has_no_date(tmp_path: Path) -> None:
    path = save_figure(
        plot_nodes(matrix(cluster_of(3), "node"), spec=SPEC, window=WINDOW), tmp_path / "n.svg"
    )
    tree = ET.parse(path)  # noqa: S314 - our own file
    texts = ["".join(node.itertext()) for node in tree.iter(f"{SVG}text")]
    assert {"server-1.example.internal", "Flows between nodes"} <= set(texts)
    assert any("specification some-table" in text and "2026-01-02 03:04:05" in text for text in texts)
    assert "dc:date" not in path.read_text("utf-8")


MAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_plots import *
save_plots(cluster_of(7), sys.argv[2], spec=SPEC, window=WINDOW)
"""


def test_the_same_flows_give_the_same_bytes(tmp_path: Path) -> None:
    for seed, name in (("1", "one"), ("2", "two")):
        command = [sys.executable, "-c", MAKE, str(PROJECT / "tests"), str(tmp_path / name)]
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(PROJECT)}
        subprocess.run(command, check=True, env=environment, timeout=120)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(
        f"{name}.{suffix}" for name in ("roles", "nodes", "rules") for suffix in ("png", "svg")
    )
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_matrices_are_drawn_as_flows_are(tmp_path: Path) -> None:
    flows = cluster_of(4)
    save_plots(flows, tmp_path / "flows", ("svg",), spec=SPEC)
    ways = {"node": matrix(flows, "node", SPEC), "rule": matrix(flows, "rule", SPEC)}
    paths = save_plots(ways, tmp_path / "matrices", ("svg",), spec=SPEC)
    assert [path.name for path in paths] == ["nodes.svg", "rules.svg"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "flows" / path.name).read_bytes()


def test_settings_of_the_caller_stay_and_do_not_matter(tmp_path: Path) -> None:
    table = matrix(cluster_of(3), "node")
    plain = save_figure(plot_nodes(table), tmp_path / "plain.svg").read_bytes()
    with mpl.rc_context(
        {
            "text.parse_math": True,
            "font.size": 30,
            "font.family": "serif",
            "font.sans-serif": ["x"],
            "svg.fonttype": "path",
            "svg.hashsalt": "x",
        }
    ):
        before = dict(mpl.rcParams)
        assert save_figure(plot_nodes(table), tmp_path / "other.svg").read_bytes() == plain
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_format_may_be_named_apart_from_the_path(tmp_path: Path, form: str, start: bytes) -> None:
    table = matrix(cluster_of(3), "node")
    one = save_figure(plot_nodes(table), tmp_path / "without.tmp", form).read_bytes()
    assert one.startswith(start)
    assert one == save_figure(plot_nodes(table), tmp_path / f"with.{form.upper()}").read_bytes()


def test_pyplot_is_not_loaded() -> None:
    code = "import sys, analyzer.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT, timeout=60)


# --- Nothing to draw ---


@pytest.mark.parametrize(("by", "plot"), [("role", plot_roles), ("node", plot_nodes), ("rule", plot_rules)])
@pytest.mark.parametrize("spec", [None, SPEC])
def test_no_flows_is_a_picture_that_says_so(by: Any, plot: Callable[..., Drawn], spec: Any) -> None:
    figure = figure_of(plot(matrix(judged([]), by, spec), spec=spec))
    assert NOTHING in words(figure)
    assert_legible(figure)


def test_some_flows_are_not_called_none() -> None:
    assert NOTHING not in words(plot_nodes(matrix(cluster_of(2), "node")))


def test_a_matrix_without_rows_is_a_picture(tmp_path: Path) -> None:
    for by, plot in (("role", plot_roles), ("node", plot_nodes), ("rule", plot_rules)):
        table = matrix(judged([]), by).iloc[:0]  # type: ignore[arg-type]
        figure = figure_of(plot(table))
        assert NOTHING in words(figure)
        save_figure(figure, tmp_path / f"{by}.png")
