"""The HTML page: one Analysis and its JSON document as one self-contained file. Rule: every number shown is
the document's, or a count of the flows it was made from; reads its own templates, writes nothing, and the
page it makes asks nobody for anything.

Names come from packets and inventories and are hostile. Three walls keep them text: what cannot be printed
is written as an escape (:func:`visible`), Jinja2 escapes every value, and the page's Content-Security-Policy
lets run and style only the two blocks whose hashes it names. No name becomes a link, a style or an id.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from analyzer.evidence import Evidence, Rows, display_filter, rules_about
from analyzer.findings import SEVERITIES
from analyzer.infer import doubt
from analyzer.matrices import KINDS, MEASURES, OUTSIDE_THE_TABLE, short
from analyzer.report import document, not_chosen, records
from analyzer.rows import COUNTS, ENDINGS
from analyzer.timeline import NO_BIN, Timeline, timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from analyzer.analysis import Analysis
    from analyzer.gate import Gate
    from analyzer.spec import Spec

#: above these the page shows the gravest and says how many it leaves out; the JSON document has them all
MAX_FINDINGS = 1200
MAX_NODES = 128
_GRAVEST = 5
_NAME_ROOM = 24  # characters of a node's name in the matrix
_ACROSS = 12  # of one above a column, which else stands upright: paper cannot be scrolled
_LEVELS = 4  # shades of a cell with allowed traffic alone

#: (kind, verdict), or kind alone → what it probably means
MEANINGS: dict[tuple[str, ...], str] = {
    ("violation", "wrong-pair"): "The specification has the port, but not for these roles: a "
    "component runs where it should not, a client has the wrong address, or the specification is older than "
    "the cluster.",
    ("violation", "wrong-protocol"): "The port is one of RKE2's for another protocol: a probe, or a program "
    "set to the wrong protocol.",
    ("violation", "unlisted"): "Something that is not part of RKE2's table talks between these nodes: site "
    "traffic such as SSH or monitoring, a workload on the host's network, or somebody who should not be "
    "there.",
    ("blocked",): "The specification allows this, and it does not get through: a firewall, a security "
    "group, or a service that does not run or listens elsewhere.",
    ("exposure",): "Whoever has an address outside the cluster gets an answer on a port that the "
    "specification has for nodes.",
    ("foreign-tunnel",): "A machine that the cluster file does not know takes part in the pod network, or "
    "tries to.",
    ("scan",): "Somebody looks for what is open, or a program has a wrong list of targets.",
    ("listener",): "What the node listens on, or what is used of it, is not what the table has for its role: "
    "a setting, a service that is not up, or a port that waits for whoever finds it.",
    ("blind-spot",): "This part of the traffic was not seen, so silence there says nothing.",
}
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE")
_KIND_WORDS = {
    "allowed": "allowed",
    "outside": "outside the specification",
    "blocked": "allowed, yet blocked",
}
_SIGNS = {"allowed": "", "outside": "!", "blocked": "✕"}
_FIRST_COLUMNS = (
    *("source", "first_frame", "start", "client", "client_port", "server", "server_port", "protocol"),
    *("packets_out", "packets_in", "bytes_out", "bytes_in", "tcp_flags_out", "tcp_flags_in", "outcome"),
    *("direction_by", "process", "pid", "pod", "drops"),
)


#: state of a finding → what those are called that are not open, in the order of the page
_APART = {"accepted": "Accepted", "known": "Known from {baseline}"}


def render(analysis: Analysis, doc: Mapping[str, Any] | None = None, gate: Gate | None = None) -> str:
    """The page, as HTML text without an unprintable sign in it but line feeds.

    ``doc``: the JSON document of the same run, where the caller has it already; else it is made here. Its
    findings are those shown. ``gate``: what became of them; those that are accepted or known stand apart, and
    the page's first sentence does not count them. The same input gives the same bytes.
    """
    result = _opened(document(analysis) if doc is None else doc, gate)
    grid, panels = _node_grid(result), _panels(result)
    line = timeline(analysis.flows)
    kept = result["findings"][:MAX_FINDINGS]
    places = _Places(Evidence.of(analysis), analysis.spec, panels, grid, line)
    views = places.views(kept)
    template = _environment().get_template("page.html")
    return template.render(
        doc=result,
        head=_head(result),
        panels=panels,
        grid=grid,
        chosen=not_chosen(result) > 0,
        line=_lanes(line),
        findings=views,
        shown={finding["id"] for finding in kept},
        left_out=len(result["findings"]) - len(kept),
        apart=_apart(gate),
        doubt=f"{doubt(analysis.doubtful)}." if analysis.doubtful else "",
        notes=list(gate.returned()) if gate else (),
        kinds=_counted(kept, "kind", sorted({f["kind"] for f in kept})),
        severities=_counted(kept, "severity", SEVERITIES),
        island=_island([view["index"] for view in views], grid),
        **_inlined(),
    )


def _opened(doc: Mapping[str, Any], gate: Gate | None) -> Mapping[str, Any]:
    """The document with the open findings alone."""
    if gate is None:
        return doc
    wanted = set(gate.of("open")["id"])
    return {**doc, "findings": [finding for finding in doc["findings"] if finding["id"] in wanted]}


def _apart(gate: Gate | None) -> list[dict[str, Any]]:
    """The findings that are not open, by state; at most MAX_FINDINGS of each."""
    if gate is None:
        return []
    titles = {state: title.format(baseline=gate.baseline) for state, title in _APART.items()}
    tables = {state: gate.of(state) for state in titles}
    return [
        {"state": state, "title": titles[state], "count": len(of), "rows": records(of.head(MAX_FINDINGS))}
        for state, of in tables.items()
        if len(of)
    ]


# ---- text ----


def visible(value: Any) -> Any:
    """Text with an escape for every sign that cannot be printed or that turns the reading direction;
    anything else as it is.
    """
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(sign if sign.isprintable() else _escape(ord(sign)) for sign in value)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def middle(name: str) -> str:
    """A node's name as the matrix has room for it, with … in the middle: nodes of one pool have the same
    beginning.
    """
    text, half = str(visible(name)), (_NAME_ROOM - 1) // 2
    return text if len(text) <= _NAME_ROOM else f"{text[: _NAME_ROOM - 1 - half]}…{text[-half:]}"


def number(value: int) -> str:
    """1234567 as 1,234,567."""
    return f"{value:,}"


def moment(iso: str | None) -> str:
    """An ISO 8601 time of the document for people, to the millisecond."""
    if iso is None:
        return "unknown"
    day, _, clock = iso.removesuffix("Z").partition("T")
    whole, _, fraction = clock.partition(".")
    return f"{day} {whole}.{fraction:0<3.3} UTC" if fraction else f"{day} {whole} UTC"


def clock(iso: str | None, day: str) -> str:
    """The same without its zone; and without its day, where that is ``day``."""
    return moment(iso).removesuffix(" UTC").removeprefix(f"{day} ")


def prose(text: str) -> Markup:
    """A sentence; what stands in backticks is code."""
    parts = (escape(visible(part)) for part in text.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part
                           for n, part in enumerate(parts))  # fmt: skip


def plural(count: int, noun: str) -> str:
    """``1 flow``, ``2 flows``, ``no flow``."""
    return f"{number(count) if count else 'no'} {noun}{'s' if count > 1 else ''}"


def tcp_flags(bits: int) -> str:
    """Names of the flags (RFC 9293 and RFC 3168), in the order of their bits."""
    return " ".join(name for place, name in enumerate(_TCP_FLAGS) if bits >> place & 1)


# ---- the head ----


def _head(doc: Mapping[str, Any]) -> dict[str, Any]:
    grave = [f for f in doc["findings"] if f["severity"] in SEVERITIES[:2]]
    return {
        "verdict": _verdict(doc),
        "day": _day(doc),
        "clean": not _grave(doc) and not any(_off(doc)),
        "coverage": _coverage(doc["coverage"]),
        "ledger": _ledger(doc["coverage"]),
        "gravest": grave[:_GRAVEST],
        "more": len(grave[_GRAVEST:]),
        "roles": _role_counts(doc["cluster"]["members"]),
    }


def _day(doc: Mapping[str, Any]) -> str:
    """The day on which all findings were first seen; empty where they were seen on several."""
    days = {f["first_seen"].partition("T")[0] for f in doc["findings"] if f["first_seen"]}
    return days.pop() if len(days) == 1 else ""


def _off(doc: Mapping[str, Any]) -> tuple[int, int]:
    """Flows outside of the specification, and flows that it allows and that do not get through."""
    return (
        sum(cell["flows_outside"] for cell in doc["matrix"]["role"]),
        sum(cell["flows_blocked"] for cell in doc["matrix"]["role"]),
    )


def _grave(doc: Mapping[str, Any]) -> dict[str, int]:
    return dict(_counted(doc["findings"], "severity", SEVERITIES[:2]))


def _verdict(doc: Mapping[str, Any]) -> str:
    """One sentence."""
    total = doc["summary"]["scopes"]["inter-node"]["flows"]
    outside, blocked = _off(doc)
    said = _SAID[bool(total), bool(outside), bool(blocked)].format(
        spec=doc["spec"]["name"],
        total=plural(total, "flow"),
        outside=number(outside),
        blocked=number(blocked),
        are_outside="is" if outside == 1 else "are",
        do="does" if blocked == 1 else "do",
    )
    grave = " and ".join(f"{number(n)} {severity}" for severity, n in _grave(doc).items())
    found = f"{grave} {'finding' if sum(_grave(doc).values()) == 1 else 'findings'}: " if grave else ""
    chosen = "among the chosen flows only, " if not_chosen(doc) else ""
    text = f"{chosen}{found}{said}{_limits(doc)}."
    return text[0].upper() + text[1:]


#: (flows between nodes were seen, some outside of the specification, some blocked) → what is said of them
_SAID = {
    (False, False, False): "no flow between two nodes was seen, so nothing can be said of them",
    (True, False, False): "all that was seen between nodes, {total}, is what {spec} allows",
    (True, True, False): "{outside} of {total} between nodes {are_outside} outside {spec}",
    (True, False, True): "{blocked} of {total} between nodes {do} not get through, though {spec} allows it",
    (True, True, True): "{outside} of {total} between nodes {are_outside} outside {spec}, and {blocked} that "
    "it allows {do} not get through",
}


def _limits(doc: Mapping[str, Any]) -> str:
    if not doc["coverage"]:
        return ", as far as a flow table without a coverage ledger can tell"
    spots = sum(f["kind"] == "blind-spot" and f["severity"] != "info" for f in doc["findings"])
    return f", with {plural(spots, 'blind spot')} that limit{'s' if spots == 1 else ''} this" if spots else ""


def _coverage(ledgers: Sequence[Mapping[str, Any]]) -> str:
    if not ledgers:
        return "not known: a flow table without a ledger (only Parquet keeps it)"
    total = {name: sum(ledger[name] for ledger in ledgers) for name in COUNTS}
    gaps = total["frames"] - total["flow"] - total["not_ip"] - total["not_chosen"]
    left = f", {number(total['not_chosen'])} not chosen" if total["not_chosen"] else ""
    known = [ledger for ledger in ledgers if ledger["start"] and ledger["end"]]
    window = (
        f", {moment(min(ledger['start'] for ledger in known))} to "
        f"{moment(max(ledger['end'] for ledger in known))}"
        if known
        else ""
    )
    return (
        f"{plural(len(ledgers), 'source')}, {plural(total['frames'], 'frame')}{window}: "
        f"{number(total['flow'])} in flows, {number(total['not_ip'])} not IP, {number(gaps)} not decoded, "
        f"{number(total['lost'])} lost{left}"
    )


def _ledger(ledgers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sources down; across, the ends that frames came to, and what else is not zero."""
    always = ("frames", "flow", "not_ip", "lost")
    ordered = ("frames", *ENDINGS, *(name for name in COUNTS if name not in ("frames", *ENDINGS)))
    shown = [name for name in ordered if name in always or any(ledger[name] for ledger in ledgers)]
    return {"columns": shown, "rows": ledgers}


def _role_counts(members: Sequence[Mapping[str, Any]]) -> str:
    roles = [member["role"] for member in members]
    return ", ".join(f"{roles.count(role)} {role}" for role in dict.fromkeys(roles))


def _counted(findings: Sequence[Mapping[str, Any]], by: str, names: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, count) for name in names if (count := sum(f[by] == name for f in findings))]


# ---- matrices ----


@dataclass(frozen=True)
class Cell:
    """One cell of a matrix, ready to be shown. ``shade``: 1 to _LEVELS for allowed traffic, else 0."""

    counts: Mapping[str, int]
    foreseen: bool
    shade: int
    words: str

    @property
    def kinds(self) -> list[str]:
        """What is in it, the usual first."""
        return [kind for kind in KINDS if self.counts[f"flows_{kind}"]]

    @property
    def look(self) -> str:
        """Its style classes."""
        empty = "silent" if self.foreseen else "empty"
        return " ".join(self.kinds) + f" s{self.shade}" if self.kinds else empty


def _cell(counts: Mapping[str, Any], peak: int, words: str) -> Cell:
    flows = counts["flows"]
    shade = 0 if not flows else 1 + min(_LEVELS - 1, int((_LEVELS - 1) * flows.bit_length() / _bits(peak)))
    return Cell(counts, bool(counts.get("foreseen")), shade, f"{words}: {cell_words(counts)}")


def _bits(peak: int) -> int:
    return max(int(peak).bit_length(), 1)


def cell_words(counts: Mapping[str, Any]) -> str:
    """``12 flows (10 allowed, 2 outside the specification), 120 packets, 4,000 bytes``."""
    if not counts["flows"]:
        return "no flow, though the specification foresees it" if counts.get("foreseen") else "no flow"
    parts = [
        f"{number(counts[f'flows_{kind}'])} {_KIND_WORDS[kind]}" for kind in KINDS if counts[f"flows_{kind}"]
    ]
    measures = [plural(counts[name], name.removesuffix("s")) for name in MEASURES]
    return f"{measures[0]} ({', '.join(parts)}), {', '.join(measures[1:])}"


def _panels(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One role × role matrix for each rule, in the specification's order; the last is outside the table."""
    rules = {rule["id"]: rule for rule in doc["spec"]["rules"]}
    cells = doc["matrix"]["role"]
    peak = max((cell["flows"] for cell in cells), default=0)
    roles = list(dict.fromkeys(cell["client_role"] for cell in cells))
    at: dict[str, dict[tuple[str, str], Cell]] = {}
    for cell in cells:
        words = f"{_rule_name(cell['rule'])}, {cell['client_role'] or '?'} → {cell['server_role'] or '?'}"
        place = (cell["client_role"], cell["server_role"])
        at.setdefault(cell["rule"], {})[place] = _cell(cell, peak, words)
    return [
        {"rule": rule, "name": _rule_name(rule), "about": rules.get(rule), "roles": roles, "cells": found}
        for rule, found in at.items()
    ]


def _rule_name(rule: str) -> str:
    return "outside the table" if rule == OUTSIDE_THE_TABLE else rule


def _node_grid(doc: Mapping[str, Any]) -> dict[str, Any]:
    """Clients down, servers across; where there are too many nodes, those with most that is amiss."""
    cells = doc["matrix"]["node"]
    roles = {member["name"]: member["role"] for member in doc["cluster"]["members"]}
    every = list(dict.fromkeys(cell[side] for side in ("client_node", "server_node") for cell in cells))
    nodes = _kept(every, cells)
    shown = set(nodes)
    peak = max((cell["flows"] for cell in cells), default=0)
    at = {
        (cell["client_node"], cell["server_node"]): _cell(
            cell, peak, f"{cell['client_node']} → {cell['server_node']}"
        )
        for cell in cells
        if cell["flows"] and cell["client_node"] in shown and cell["server_node"] in shown
    }
    edges = {b for a, b in pairwise(nodes) if roles.get(a) != roles.get(b)}
    size = next(name for most, name in ((12, "large"), (40, "middle"), (MAX_NODES, "small"))
                if len(nodes) <= most)  # fmt: skip
    upright = any(len(name) > _ACROSS for name in nodes)
    return {"nodes": nodes, "roles": roles, "cells": at, "edges": edges, "size": size, "upright": upright,
            "left_out": len(every) - len(nodes)}  # fmt: skip


def _kept(names: list[str], cells: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(names) <= MAX_NODES:
        return names
    weight = {name: [0, 0, 0] for name in names}
    for cell in cells:
        for name in {cell["client_node"], cell["server_node"]}:
            for place, kind in enumerate(("outside", "blocked", "allowed")):
                weight[name][place] += cell[f"flows_{kind}"]
    most = set(sorted(names, key=lambda name: weight[name], reverse=True)[:MAX_NODES])
    return [name for name in names if name in most]


# ---- time ----

_HEIGHT = 36  # of a lane, in the picture's units


def _lanes(line: Timeline) -> dict[str, Any]:
    """Bars for each kind, each lane to its own scale: what is rare must be seen beside what is usual."""
    lanes = [
        {
            "kind": kind,
            "words": _KIND_WORDS[kind],
            "total": int(line.counts[:, place].sum()),
            "peak": int(line.counts[:, place].max(initial=0)),
            "bars": _bars([int(count) for count in line.counts[:, place]]),
        }
        for place, kind in enumerate(KINDS)
    ]
    bins = [
        {"from": _clock(line.origin + n * line.step), "words": _bin_words(row.tolist())}
        for n, row in enumerate(line.counts)
    ]
    return {"lanes": lanes, "bins": bins, "height": _HEIGHT, "step": _width_words(line.step),
            "untimed": line.untimed, "until": _clock(line.origin + len(bins) * line.step)}  # fmt: skip


def _bars(counts: list[int]) -> list[tuple[int, float]]:
    """(bin, height) of those that are not empty; the least is high enough to be seen."""
    peak = max(counts, default=0)
    return [(n, round(max(_HEIGHT * count / peak, 2.0), 2)) for n, count in enumerate(counts) if count]


def _bin_words(counts: Sequence[int]) -> str:
    parts = [f"{number(count)} {_KIND_WORDS[kind]}" for kind, count in zip(KINDS, counts, strict=True)
             if count]  # fmt: skip
    listed = f" ({', '.join(parts)})" if parts else ""
    return f"{plural(sum(counts), 'flow')} began{listed}"


def _clock(ns: int) -> str:
    """The last bin may end after all times that can be told."""
    time = pd.Timestamp(min(ns, pd.Timestamp.max.value), unit="ns", tz="UTC")
    return moment(time.isoformat().replace("+00:00", "Z"))


def _width_words(step: int) -> str:
    units = ((86400 * 10**9, "d"), (3600 * 10**9, "h"), (60 * 10**9, "min"), (10**9, "s"), (10**6, "ms"))
    size, unit = next(((size, unit) for size, unit in units if step >= size and step % size == 0), (1, "ns"))
    return f"{step // size} {unit}"


# ---- findings ----


@dataclass(frozen=True)
class _Places:
    """Where in the page a finding is to be found, and what is shown of it."""

    evidence: Evidence
    spec: Spec
    panels: Sequence[Mapping[str, Any]]
    grid: Mapping[str, Any]
    line: Timeline

    def views(self, findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the template shows of each finding."""
        rows = [self.evidence.rows_of(finding) for finding in findings]
        firsts = [self.evidence.first_rows(of, f) for of, f in zip(rows, findings, strict=True)]
        shown = self.evidence.flows.iloc[np.concatenate([np.zeros(0, np.intp), *firsts])]
        flows = iter([_first(row) for row in records(shown[list(_FIRST_COLUMNS)])])
        return [
            self._view(finding, of, list(islice(flows, len(first))))
            for finding, of, first in zip(findings, rows, firsts, strict=True)
        ]

    def _view(self, finding: Mapping[str, Any], rows: Rows, first: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "finding": finding,
            "port": _port_words(finding),
            "meaning": _meaning(finding),
            "rules": () if finding["kind"] == "scan" else rules_about(finding, self.spec),
            "about_rule": _rule_words(finding, self.spec),
            "first": first,
            "filter": display_filter(self.evidence.distinct(rows, "client", "server", "protocol", "port")),
            "index": self._index(finding, rows),
        }

    def _index(self, finding: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
        """What the page's script filters and sorts by."""
        return {
            "severity": SEVERITIES.index(finding["severity"]),
            "kind": finding["kind"],
            **{name: finding[name] for name in MEASURES},
            "first": _microseconds(finding["first_seen"]),
            "title": visible(finding["title"]),
            "cells": self._cells(self.evidence.distinct(rows, "rule", "client_role", "server_role", "scope")),
            "pairs": self._pairs(self.evidence.distinct(rows, "client_node", "server_node", "scope")),
            "nodes": [self.node_at[n] for n in (finding["client"], finding["server"]) if n in self.node_at],
            "bins": sorted({int(n) for n in self.bins[rows] if n != NO_BIN}),
        }

    @cached_property
    def bins(self) -> npt.NDArray[np.int64]:
        """Bin of each flow of the evidence."""
        return self.line.bins_of(self.evidence.flows["start"])

    @cached_property
    def node_at(self) -> dict[str, int]:
        """Place of each node in the map."""
        return {name: n for n, name in enumerate(self.grid["nodes"])}

    @cached_property
    def cell_at(self) -> dict[tuple[Any, ...], str]:
        """Number of each cell of the panels, as the template counts."""
        roles = {role: n for panel in self.panels[:1] for n, role in enumerate(panel["roles"])}
        return {
            (panel["rule"], *place): f"{n}.{roles[place[0]]}.{roles[place[1]]}"
            for n, panel in enumerate(self.panels)
            for place in panel["cells"]
        }

    def _cells(self, cells: Iterable[tuple[Any, ...]]) -> list[str]:
        between = (cell for *cell, scope in cells if scope == "inter-node")
        return sorted(self.cell_at[tuple(cell)] for cell in between if tuple(cell) in self.cell_at)

    def _pairs(self, pairs: Iterable[tuple[Any, ...]]) -> list[str]:
        at = self.node_at
        return sorted(
            f"{at[a]}.{at[b]}" for a, b, scope in pairs if scope == "inter-node" and {a, b} <= at.keys()
        )


def _microseconds(iso: str | None) -> int | None:
    return None if iso is None else pd.Timestamp(iso).value // 1000


def _meaning(finding: Mapping[str, Any]) -> str:
    return _said(MEANINGS, finding)


def _said(words: Mapping[tuple[str, ...], str], finding: Mapping[str, Any]) -> str:
    """What a table of words has for a finding: by kind and verdict, else by kind."""
    both = (finding["kind"], finding["verdict"])
    return words.get(both, words.get(both[:1], ""))


def _port_words(finding: Mapping[str, Any]) -> str:
    protocol, port = finding["protocol"], finding["port"]
    if finding["kind"] == "scan":
        return f"several ({protocol})" if protocol else "several"
    if protocol in ("icmp", "icmpv6"):
        return f"{protocol} type {port}"
    return f"{protocol}/{port}" if port else protocol


#: (kind, verdict), or kind alone → what the specification has, or has not, to say of it
_RULE_WORDS: dict[tuple[str, ...], str] = {
    ("violation", "wrong-pair"): "{spec} names {port}, but not for {client_role} → {server_role}:",
    ("violation", "wrong-protocol"): "{spec} names port {number} for another protocol only:",
    ("violation", "unlisted"): "No rule of {spec} names {port}. What is not in the table is not allowed.",
    ("blocked",): "{spec} allows it:",
    ("exposure",): "{spec} names {port} for nodes only:",
    ("foreign-tunnel",): "{spec} names tunnels between nodes only:",
    ("scan", "unlisted"): "No rule of {spec} names what it tried.",
    ("scan",): "Some of what it tried is in a rule of {spec}, some is not.",
}


def _rule_words(finding: Mapping[str, Any], spec: Spec) -> str:
    return _said(_RULE_WORDS, finding).format(
        spec=spec.name,
        port=_port_words(finding),
        number=finding["port"],
        client_role=finding["client_role"],
        server_role=finding["server_role"],
    )


def _first(flow: Mapping[str, Any]) -> dict[str, Any]:
    flags = {f"tcp_flags_{way}": tcp_flags(flow[f"tcp_flags_{way}"]) for way in ("out", "in")}
    ends = {side: _end_point(flow, side) for side in ("client", "server")}
    owner = " ".join(str(flow[name]) for name in ("process", "pid", "pod") if _known(flow[name]))
    return {**flow, **flags, **ends, "owner": owner, "drops": flow["drops"] if _known(flow["drops"]) else ""}


def _end_point(flow: Mapping[str, Any], side: str) -> str:
    address, port = flow[side], flow[f"{side}_port"]
    if flow["protocol"] not in ("tcp", "udp", "sctp"):
        return str(address)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _known(value: Any) -> bool:
    return value is not None and value == value and value != ""  # noqa: PLR0124 - NaN


# ---- the page's own parts ----


def _island(findings: list[dict[str, Any]], grid: Mapping[str, Any]) -> Markup:
    """What the script knows, as JSON in a data block; no sign in it can end the block or break a line."""
    at = {name: n for n, name in enumerate(grid["nodes"])}
    names = (*(f"flows_{kind}" for kind in KINDS), *MEASURES[1:])
    pairs = {
        f"{at[a]}.{at[b]}": [cell.counts[name] for name in names] for (a, b), cell in grid["cells"].items()
    }
    data = {"severities": SEVERITIES, "findings": findings, "nodes": [visible(n) for n in grid["nodes"]],
            "pairs": pairs, "kinds": [_KIND_WORDS[kind] for kind in KINDS]}  # fmt: skip
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - ASCII without < > &


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_read),
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "short": short,
        "middle": middle,
        "moment": moment,
        "clock": clock,
        "prose": prose,
    }
    environment.globals |= {"signs": _SIGNS, "plural": plural}
    return environment


def _read(name: str) -> str:
    return (resources.files("analyzer") / "templates" / name).read_text(encoding="utf-8")


@cache
def _inlined() -> dict[str, Any]:
    """Style and script, and the policy that lets nothing but them run."""
    style, script = _read("page.css"), _read("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    return {"style": Markup(style), "script": Markup(script), "policy": policy}  # noqa: S704 - our own files


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
