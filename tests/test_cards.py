"""What Jupyter shows of an analysis, a cluster and a specification. Rule: HTML is parsed by the standard
library; what is hostile stays text.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import AGENT, CLUSTER, SERVER, SPEC, analysis, flow, recorded

from analyzer.analysis import Analysis
from analyzer.cards import EDGES, MAX_CHARACTERS, MAX_ROWS, card
from analyzer.cluster import Cluster, Node
from analyzer.findings import SEVERITIES
from analyzer.spec import Rule, Spec
from analyzer.verdict import SCOPES, VERDICTS

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</td></table></div><style>*{display:none}</style>",
    "' style='position:fixed",
    "&lt;b&gt;",
    "$\\frac{1}{0}$",
    "a\x00b\x1b[31m",
    "\u202egpj.exe",
    "\ud800",
    "n" * 100_000,
)
TAGS = {"div", "b", "span", "code", "table", "thead", "tbody", "tr", "th", "td"}
ATTRIBUTES = {"class", "style"}


class Shown(HTMLParser):
    """HTML as tags, attributes and the texts of its cells; fails where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= set(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def shown(value: Any) -> Shown:
    """What a value shows, once it is known to be harmless."""
    html = value if isinstance(value, str) else value._repr_html_()
    page = Shown(html)
    assert page.tags <= TAGS
    assert {name for name, _ in page.attributes} <= ATTRIBUTES
    styles = {value for name, value in page.attributes if name == "style"}
    assert not [style for style in styles if "url" in str(style) or "position" in str(style)]
    html.encode()
    return page


# ---- what is shown is what is there ----


def test_an_analysis_shows_its_numbers_and_findings() -> None:
    whole = recorded("offences")
    rows = shown(whole).rows
    sums = [[row[0], *(int(n.replace(",", "")) for n in row[1:])] for row in rows[1 : 1 + len(VERDICTS)]]
    assert sums == whole.summary().reset_index().astype(object).to_numpy().tolist()
    columns = ["severity", "kind", "title", "flows", "id"]
    assert rows[1 + len(VERDICTS)] == columns
    assert rows[2 + len(VERDICTS) :] == whole.findings[columns].astype(str).to_numpy().tolist()


def test_a_cluster_and_a_specification_show_their_tables() -> None:
    for value, table in (
        (CLUSTER, CLUSTER.to_frame()),
        (SPEC, SPEC.to_frame().drop(columns="source")),
    ):
        assert shown(value).rows == [list(table.columns), *table.astype(str).to_numpy().tolist()]


def test_one_line_says_what_an_analysis_is() -> None:
    whole = recorded("offences")
    counts = f"{len(whole.flows)} flows, {len(whole.findings)} findings"
    assert repr(whole) == f"<Analysis of cluster lab by rke2-canal: {counts}>"


@pytest.mark.parametrize(("by", "names"), [("verdicts", VERDICTS), ("scopes", SCOPES)])
def test_sums_are_a_table_with_all_names(by: Any, names: tuple[str, ...]) -> None:
    whole = recorded("offences")
    table = whole.summary(by)
    assert tuple(table.index) == names
    assert set(table.dtypes) == {np.dtype(np.uint64)}
    assert int(table["flows"].sum()) == len(whole.flows)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda whole: whole.summary("rules"), "by='rules': one of verdicts, scopes"),
        (lambda whole: whole.plot("colour"), "by='colour': one of role, node, rule"),
        (lambda whole: whole.plot("node", "frames"), "measure='frames': one of flows, packets, bytes"),
    ],
)
def test_a_word_that_is_not_known_is_told_with_those_that_are(ask: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ask(recorded("offences"))


def test_an_analysis_without_flows_shows_itself() -> None:
    empty = Analysis(analysis(flow(AGENT, SERVER, 6443)).flows.iloc[:0], CLUSTER, SPEC)
    assert "0 sources" in shown(empty).text


def test_many_rows_are_cut_and_counted() -> None:
    table = pd.DataFrame({"n": range(1000)})
    page = shown(card("t", {}, {"frame": table}))
    assert len(page.rows) == 1 + MAX_ROWS
    assert f"1,000 rows, the first {MAX_ROWS} shown" in page.text


def test_every_severity_has_its_edge() -> None:
    assert tuple(EDGES) == SEVERITIES
    table = pd.DataFrame({"severity": SEVERITIES})
    html = card("t", {}, {"findings": table})
    assert re.findall(r"border-left:4px solid (#\w{6})", html) == list(EDGES.values())


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("paper", ["#ffffff", "#111111"])
def test_edges_are_seen_on_light_and_dark(paper: str) -> None:
    assert min(contrast(edge, paper) for edge in EDGES.values()) >= 2.5


def test_text_takes_the_colour_of_the_page() -> None:
    html = recorded("offences")._repr_html_()
    assert re.findall(r"[;\"]color:(\w+)", html) == ["inherit"]


# ---- hostile text ----


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
def test_hostile_text_stays_text(text: str) -> None:
    table = pd.DataFrame([[text, text]], columns=pd.Index([text, "severity"], dtype=object), dtype=object)
    page = shown(card(text, {text: text}, {text: table}))
    assert all(len(cell) <= MAX_CHARACTERS * 10 for row in page.rows for cell in row)
    if text.isprintable() and len(text) <= MAX_CHARACTERS:
        assert page.rows[1] == [text, text]
    assert all(sign.isprintable() for sign in page.text)


def test_no_formula_is_set() -> None:
    """Jupyter's MathJax leaves elements of these classes alone."""
    assert ("class", "rke2-flows tex2jax_ignore mathjax_ignore") in shown(CLUSTER).attributes


@pytest.mark.parametrize("name", ["<b>node</b>", "a&b", "$x$", "n'\"n"])
def test_hostile_names_in_all_three(name: str) -> None:
    cluster = Cluster(name, (Node(name, "agent", (AGENT,)), Node("s", "server", (SERVER,))))
    spec = Spec(name, name, name, (Rule(name, "tcp", 1, 2, frozenset({"agent"}), frozenset({"server"})),))
    whole = Analysis(analysis(flow(AGENT, SERVER, 2379), cluster=cluster).flows, cluster, spec)
    for value in (whole, cluster, spec):
        assert name in shown(value).text


@given(st.text(), st.text())
def test_any_text_is_shown(title: str, cell: str) -> None:
    page = shown(card(title, {}, {"t": pd.DataFrame({"c": [cell, None, True, 5]}, dtype=object)}))
    assert [row[0] for row in page.rows[2:]] == ["", "yes", "5"]


# ---- plots ----


def test_an_analysis_plots_on_axes_and_returns_them() -> None:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    whole = recorded("offences")
    ax = Figure(figsize=(9, 9)).subplots()
    for by in ("node", "rule"):
        assert whole.plot(by, ax=ax) is ax
        assert isinstance(whole.plot(by), Axes)
    panels = whole.plot()
    assert len(panels) == len(SPEC.rules) + 1
    assert all(isinstance(panel, Axes) for panel in panels)
    drawn = [text.get_text() for text in whole.plot("node").texts]
    assert "! 240" in drawn
