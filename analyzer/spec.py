"""The port and role table. Rule: knows rules and roles; nothing of addresses, nodes, packets or flows.

A specification comes in as YAML or as Markdown tables, is checked where it is read, and is compiled to
lookup tables that arrays of ports and role masks index. It is open to all that a rule allows: rules never
take anything away, so their order matters only for which rule is named.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzer._yaml import (
    Marked,
    dump_yaml,
    located,
    near,
    parse_yaml,
    place_of,
    printable,
    prose,
    quote,
    read_text,
)
from analyzer.cards import card
from analyzer.columns import PROTOCOL_NUMBERS
from analyzer.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd
    from numpy.typing import NDArray

PROTOCOLS = ("tcp", "udp", "sctp", "icmp", "icmpv6")
"""What a rule can be about. In the compiled tables a protocol is its index here."""

PORTED = 3
"""The first so many of PROTOCOLS carry ports; for the others a port is an ICMP type."""

LAST_PORT = {"tcp": 65535, "udp": 65535, "sctp": 65535, "icmp": 255, "icmpv6": 255}

ROLE_BITS = {"agent": 1, "control-plane": 2, "etcd": 4, "server": 6, "external": 8}
"""Role to bit mask. A rule's side takes a node when their masks intersect: ``server`` is ``etcd`` and
``control-plane`` in one, ``external`` is an address that is no node. Mask 0 is taken by no rule."""

ROLE_MASKS = 16
"""Number of role masks: the length of each axis of ``CompiledSpec.allowed``."""

MAX_RULES = 2000
MAX_EXTENDS = 20
DEFAULT_SPEC = "rke2-canal"

_WRITTEN_ROLES = ("server", "agent", "etcd", "control-plane", "external")
_PORTS = re.compile(r"([0-9]{1,9})(?:\s?[-–—]\s?([0-9]{1,9}))?")


@dataclass(frozen=True)
class Rule:
    """Who may reach whom on which ports.

    ``protocol`` is one of PROTOCOLS; ``first_port`` to ``last_port`` (both included) are 0-65535, for ICMP
    the types 0-255. ``clients`` and ``servers`` are words of ROLE_BITS. ``source`` is the document and
    section that says so. Raises SpecError when a field is none of that.
    """

    id: str
    protocol: str
    first_port: int
    last_port: int
    clients: frozenset[str]
    servers: frozenset[str]
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        with located(f"rule {quote(self.id)}", SpecError):
            printable(self.id, SpecError, "a rule id")
            object.__setattr__(self, "protocol", _protocol(self.protocol))
            _check_ports(self.protocol, self.first_port, self.last_port)
            for side in ("clients", "servers"):
                object.__setattr__(self, side, _roles(getattr(self, side)))
            for words in ("description", "source"):
                object.__setattr__(self, words, prose(getattr(self, words), SpecError))

    @property
    def ports(self) -> str:
        """For people and YAML: one port, or first-last."""
        return (
            str(self.first_port)
            if self.first_port == self.last_port
            else f"{self.first_port}-{self.last_port}"
        )


@dataclass(frozen=True)
class Spec:
    """A named specification. ``rules`` are in file order, those of an extended specification first.

    Raises SpecError when an id is there twice, or there are no rules or more than MAX_RULES.
    """

    name: str
    title: str
    source: str
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        with located(f"specification {quote(self.name)}", SpecError):
            printable(self.name, SpecError)
            for words in ("title", "source"):
                object.__setattr__(self, words, prose(getattr(self, words), SpecError))
            _check_rules(self.rules)

    def to_yaml(self) -> str:
        """The specification as one YAML file without ``extends``; ``load_spec`` reads the same back."""
        head = {"name": self.name, "title": self.title, "source": self.source}
        return dump_yaml({**head, "rules": [_written(rule, self.source) for rule in self.rules]})

    def to_frame(self) -> pd.DataFrame:
        """One row of text for each rule, for people."""
        import pandas as pd  # noqa: PLC0415  it takes long to load

        columns = ("id", "protocol", "ports", "clients", "servers", "description", "source")
        rows = [{**_written(rule, None), "ports": rule.ports} for rule in self.rules]
        shown = [{c: ", ".join(v) if isinstance(v := row[c], list) else v for c in columns} for row in rows]
        return pd.DataFrame(shown, columns=list(columns))

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        facts = {"title": self.title, "source": self.source}
        table = self.to_frame()
        return card(f"Specification {self.name}", facts, {"to_frame()": table.drop(columns="source")})

    def compile(self) -> CompiledSpec:
        """The lookup tables; made once for equal rules, read-only."""
        return _compile(self.rules)


@dataclass(frozen=True, eq=False)
class CompiledSpec:
    """The rules as read-only NumPy tables, to be indexed by arrays.

    A class is a distinct set of rules that cover a port of a protocol; class 0 is the empty set, the others
    are numbered from 1 by protocol (order of PROTOCOLS), then by their first port. P = len(PROTOCOLS), C is
    the number of classes.

    ``port_class``   uint16 (P, 65536)  [protocol, port] → class
    ``allowed``      int16 (C, 16, 16)  [class, client mask, server mask] → index of the first rule that
                     allows the pair, -1 when none does
    ``named``        int16 (C,)         class → index of its first rule, -1 for class 0: the rule to name when
                     the port is in the table and the pair is not
    ``other_class``  uint16 (P, 65536)  [protocol, port] → class of the same port under another port-carrying
                     protocol (tcp before udp before sctp), 0 when none; always 0 for the ICMPs
    """

    port_class: NDArray[np.uint16]
    allowed: NDArray[np.int16]
    named: NDArray[np.int16]
    other_class: NDArray[np.uint16]


def role_mask(roles: Iterable[str]) -> int:
    """The bits of all these roles together."""
    mask = 0
    for role in roles:
        mask |= ROLE_BITS[role]
    return mask


# Compiling


@lru_cache(maxsize=16)
def _compile(rules: tuple[Rule, ...]) -> CompiledSpec:
    port_class = np.zeros((len(PROTOCOLS), 65536), np.uint16)
    classes: dict[tuple[int, ...], int] = {(): 0}
    for row, protocol in enumerate(PROTOCOLS):
        own = [index for index, rule in enumerate(rules) if rule.protocol == protocol]
        if own:
            port_class[row] = _classify(rules, own, classes)
    tables = (port_class, _allowed(rules, classes), _named(classes), _other_class(port_class))
    for table in tables:
        table.setflags(write=False)
    return CompiledSpec(*tables)


def _classify(
    rules: tuple[Rule, ...], own: list[int], classes: dict[tuple[int, ...], int]
) -> NDArray[np.uint16]:
    """Port → class (65536,) for the rules ``own`` of one protocol; new classes are added to ``classes``."""
    indexes = np.array(own)
    first = np.array([rules[index].first_port for index in own])
    last = np.array([rules[index].last_port for index in own])
    starts = np.array(sorted({0, *first.tolist(), *(last + 1).tolist()}))
    starts = starts[starts < 65536]
    covers = (first <= starts[:, None]) & (starts[:, None] <= last)
    numbers = [classes.setdefault(tuple(indexes[row].tolist()), len(classes)) for row in covers]
    return np.repeat(np.array(numbers, np.uint16), np.diff(np.append(starts, 65536)))


def _allowed(rules: tuple[Rule, ...], classes: dict[tuple[int, ...], int]) -> NDArray[np.int16]:
    masks = np.arange(ROLE_MASKS)
    clients = np.array([(masks & role_mask(rule.clients)) != 0 for rule in rules])
    servers = np.array([(masks & role_mask(rule.servers)) != 0 for rule in rules])
    table = np.full((len(classes), ROLE_MASKS, ROLE_MASKS), -1, np.int16)
    for members, number in classes.items():
        if members:
            chosen = np.array(members)
            pairs = clients[chosen][:, :, None] & servers[chosen][:, None, :]
            table[number] = np.where(pairs.any(axis=0), chosen[pairs.argmax(axis=0)], -1)
    return table


def _named(classes: dict[tuple[int, ...], int]) -> NDArray[np.int16]:
    return np.array([members[0] if members else -1 for members in classes], np.int16)


def _other_class(port_class: NDArray[np.uint16]) -> NDArray[np.uint16]:
    table = np.zeros_like(port_class)
    for row in range(PORTED):
        for other in reversed([index for index in range(PORTED) if index != row]):
            table[row] = np.where(port_class[other] != 0, port_class[other], table[row])
    return table


# Checks of single values; their SpecErrors get a place from the caller


def _protocol(text: str) -> str:
    word = text.lower()
    if word not in PROTOCOLS:
        raise SpecError(f"unknown protocol {quote(text)}", next_step=f"one of {', '.join(PROTOCOLS)}")
    return word


def _role(text: str) -> str:
    if text not in ROLE_BITS:
        advice = near(text, _WRITTEN_ROLES) or f"one of {', '.join(_WRITTEN_ROLES)}"
        raise SpecError(f"unknown role {quote(text)}", next_step=advice)
    return text


def _roles(roles: Iterable[str]) -> frozenset[str]:
    known = frozenset(_role(role) for role in roles)
    if not known:
        raise SpecError("no role is named", next_step=f"name one of {', '.join(_WRITTEN_ROLES)}")
    return known


def _port_range(text: str, protocol: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(text.strip())
    if not match:
        raise SpecError(
            f"{quote(text)} is no port and no range", next_step="write 6443 or 30000-32767, one rule each"
        )
    first = int(match[1])
    last = int(match[2] or first)
    _check_ports(protocol, first, last)
    return first, last


def _check_ports(protocol: str, first: int, last: int) -> None:
    noun = "port" if protocol in PROTOCOLS[:PORTED] else "ICMP type"
    for port in (first, last):
        if not 0 <= port <= LAST_PORT[protocol]:
            raise SpecError(f"{noun} {port} is outside 0-{LAST_PORT[protocol]}", next_step="correct it")
    if first > last:
        raise SpecError(f"the range {first}-{last} is reversed", next_step=f"write {last}-{first}")


def _check_rules(rules: tuple[Rule, ...]) -> None:
    if not 0 < len(rules) <= MAX_RULES:
        raise SpecError(f"{len(rules)} rules", next_step=f"a specification has 1 to {MAX_RULES}")
    for name, count in Counter(rule.id for rule in rules).items():
        if count > 1:
            raise SpecError(
                f"the rule id {quote(name)} is there {count} times", next_step="give each rule its own"
            )


def _in_order(roles: frozenset[str]) -> list[str]:
    return [role for role in _WRITTEN_ROLES if role in roles]


def _written(rule: Rule, inherited: str | None) -> dict[str, Any]:
    """A rule's YAML mapping; its source only where it is not ``inherited`` from the file."""
    row: dict[str, Any] = {"id": rule.id, "protocol": rule.protocol}
    row["ports"] = rule.first_port if rule.first_port == rule.last_port else rule.ports
    row |= {
        "clients": _in_order(rule.clients),
        "servers": _in_order(rule.servers),
        "description": rule.description,
    }
    return row if rule.source == inherited else {**row, "source": rule.source}


# Reading YAML


@dataclass(frozen=True)
class _Origin:
    """A specification's text and where it comes from; ``folder`` is None for a shipped one."""

    key: str
    where: str
    text: str
    folder: Path | None


def shipped_specs() -> list[str]:
    """The names of the specifications that come with the package, sorted."""
    entries = resources.files("analyzer.specs").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_spec(name_or_path: str | Path = DEFAULT_SPEC) -> Spec:
    """A shipped specification by its name, or a YAML file; ``extends`` is followed.

    Raises SpecError with the file and line for any fault of the format, and with the shipped names for an
    unknown name.
    """
    return _load(_find(name_or_path, Path(), ""), ())[0]


def parse_spec(text: str, *, where: str = "specification") -> Spec:
    """The same from YAML text; ``where`` names it in errors, ``extends`` is relative to the working
    directory.
    """
    return _load(_Origin(where, where, text, Path()), ())[0]


def _find(name: str | Path, folder: Path | None, place: str) -> _Origin:
    """The text behind a name: a shipped name first, then a file relative to ``folder``."""
    if isinstance(name, str) and name in shipped_specs():
        text = (resources.files("analyzer.specs") / f"{name}.yaml").read_text("utf-8")
        return _Origin(f"shipped {name}", f"{name}.yaml", text, None)
    path = folder / name if folder is not None else None
    if path is None or not _exists(path):
        advice = near(str(name), shipped_specs()) or "or name a YAML file"
        shipped = f"{advice}; shipped are {', '.join(shipped_specs())}"
        raise SpecError(
            f"no file and no shipped specification {quote(name, 200)}", where=place, next_step=shipped
        )
    return _Origin(str(path.resolve()), place_of(path), read_text(path, SpecError), path.parent)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or one with a NUL
        return False


def _load(origin: _Origin, chain: tuple[_Origin, ...]) -> tuple[Spec, dict[str, str]]:
    """The specification and the place of each rule id. ``chain``: the files that led here by
    ``extends``.
    """
    root = parse_yaml(origin.text, where=origin.where, error=SpecError)
    keys = ("name", "rules")
    extending = isinstance(root.value, dict) and "extends" in root.value
    fields = root.mapping(keys[:1] if extending else keys, ("title", "source", "extends", "rules"))
    name = fields["name"].read(_name)
    base, places = _base(fields.get("extends"), (*chain, origin))
    source = _prose(fields, "source", Path(origin.where).name)
    rules = [*base, *_rules(fields.get("rules"), source, places)]
    with located(fields["rules"].place if "rules" in fields else root.place, SpecError):
        _check_rules(tuple(rules))
    return Spec(name, _prose(fields, "title", name), source, tuple(rules)), places


def _base(extends: Marked | None, chain: tuple[_Origin, ...]) -> tuple[tuple[Rule, ...], dict[str, str]]:
    if extends is None:
        return (), {}
    origin = _find(extends.text(), chain[-1].folder, extends.place)
    way = " → ".join(step.where for step in (*chain, origin))
    if origin.key in {step.key for step in chain}:
        raise extends.fault(f"the specification extends itself: {way}", "take one 'extends' out")
    if len(chain) >= MAX_EXTENDS:
        raise extends.fault(f"more than {MAX_EXTENDS} files extend each other", "put them together")
    spec, places = _load(origin, chain)
    return spec.rules, places


def _rules(listed: Marked | None, source: str, places: dict[str, str]) -> Iterator[Rule]:
    """The rules of one file; each id is entered in ``places``, where those of the extended files stand
    already.
    """
    for entry in listed.items() if listed else ():
        rule = _rule(entry, source)
        place = entry.value["id"].place
        if rule.id in places:
            what = f"the rule id {quote(rule.id)} is there twice"
            raise SpecError(what, where=place, next_step=f"rename it; the first is in {places[rule.id]}")
        places[rule.id] = place
        yield rule


def _rule(entry: Marked, source: str) -> Rule:
    fields = entry.mapping(("id", "protocol", "ports", "clients", "servers"), ("description", "source"))
    protocol = fields["protocol"].read(_protocol)
    first, last = fields["ports"].read(lambda text: _port_range(text, protocol))
    return Rule(
        id=fields["id"].read(_name),
        protocol=protocol,
        first_port=first,
        last_port=last,
        clients=_side(fields["clients"]),
        servers=_side(fields["servers"]),
        description=_prose(fields, "description", ""),
        source=_prose(fields, "source", source),
    )


def _side(listed: Marked) -> frozenset[str]:
    words = [role.read(_role) for role in listed.items()]
    with located(listed.place, SpecError):
        return _roles(words)


def _name(text: str) -> str:
    return printable(text, SpecError)


def _prose(fields: dict[str, Marked], key: str, default: str) -> str:
    return fields[key].read(lambda text: prose(text, SpecError)) if key in fields else default


# Reading Markdown tables

_HEADINGS = {
    "port": "ports",
    "ports": "ports",
    "protocol": "protocols",
    "protocols": "protocols",
    "source": "clients",
    "destination": "servers",
    "description": "description",
}
_COLUMNS = ("ports", "protocols", "clients", "servers", "description")

_NODES = frozenset({"server", "agent"})
_GROUPS = {
    "server": frozenset({"server"}),
    "agent": frozenset({"agent"}),
    "worker": frozenset({"agent"}),
    "etcd": frozenset({"etcd"}),
    "control-plane": frozenset({"control-plane"}),
    "control plane": frozenset({"control-plane"}),
}
_SHAPES = ("{}", "all {}", "{} node", "all {} node", "any {} node")
_SIDES = {
    **{shape.format(group): roles for group, roles in _GROUPS.items() for shape in _SHAPES},
    **dict.fromkeys(("node", "all", "all node", "any node"), _NODES),
    **dict.fromkeys(("any", "anywhere"), _NODES | {"external"}),
    **dict.fromkeys(("external", "outside the cluster"), frozenset({"external"})),
}
"""Phrases of a Source or Destination cell, lower case, singular, without "RKE2": "All RKE2 nodes" is "all
node"."""

_SINGULAR = {"nodes": "node", "servers": "server", "agents": "agent", "workers": "worker", "rke2": ""}
_SEPARATORS = re.compile(r" ?(?:[,;/&]|\band\b|\bor\b) ?")
_PORT_NOUNS = re.compile(r"\b(?:ports?|types?|icmp(?:v6)?)\b", re.IGNORECASE)
_BREAKS = re.compile(r"<br ?/?>")
_ID_FILLERS = frozenset({"rke2", "port", "range", "with", "cni"})
_TAB = re.compile(r"<TabItem\b.*?\bvalue=[\"']([^\"'<>]*)[\"']")


@dataclass
class _Section:
    """Where in a Markdown document the reading stands."""

    title: str = ""
    heading: str = ""
    tab: str = ""
    fence: str = ""

    def feed(self, line: str) -> None:
        """Take in a line that belongs to no table."""
        if line.startswith(("```", "~~~")) and self.fence in ("", line[:3]):
            self.fence = "" if self.fence else line[:3]
        elif self.fence:
            return
        elif re.match("#{1,6} ", line):
            self.head(line)
        elif line.startswith("title:") and not self.title:  # front matter
            self.title = _plain(line.removeprefix("title:")).strip("\"'")
        elif line.startswith(("<TabItem", "</TabItem")):
            match = _TAB.match(line[:400])
            self.tab = match[1] if match else ""

    def head(self, line: str) -> None:
        text = _plain(line.strip("# "))
        first = line.startswith("# ") and not self.title
        self.title, self.heading, self.tab = (text, "", "") if first else (self.title, text, "")

    def source(self, where: str) -> str:
        """Title, heading and tab, as far as there are such."""
        return ", ".join(part for part in (self.title or where, self.heading, self.tab) if part)


@dataclass(frozen=True)
class _Row:
    """One row of a port table: its place, its section and its cells by _COLUMNS."""

    place: str
    source: str
    cells: dict[str, str]


def parse_table(text: str, *, where: str) -> Spec:
    """A specification from Markdown: all pipe tables headed Port, Protocol, Source, Destination and
    Description.

    The columns may stand in any order and case, beside others. A row with several ports or protocols gives
    one rule for each. Ids come from the descriptions. A rule's source is the document's title and the
    heading above the table. ``where`` names the text in errors and gives the specification its name. Raises
    SpecError, with the line, for a row that cannot be read, and when there is no such table.
    """
    section = _Section()
    drafts = [draft for row in _rows(text, where, section) for draft in _row_rules(row)]
    if not drafts:
        raise SpecError(
            "no port table with a row in it",
            where=where,
            next_step="head a pipe table with Port, Protocol, Source, Destination, Description",
        )
    stem = Path(where).stem
    with located(where, SpecError):
        rules = tuple(Rule(id=id_, **draft) for id_, draft in zip(_ids(drafts), drafts, strict=True))
        return Spec(
            _kebab(stem, frozenset()) or "table", section.title or stem, section.title or where, rules
        )


def _rows(text: str, where: str, section: _Section) -> Iterator[_Row]:
    """The rows of all port tables; ``section`` is kept up to date."""
    lines = [line.strip() for line in text.split("\n")]
    columns: list[str] | None = None
    for number, line in enumerate(lines, 1):
        if "|" not in line or section.fence:
            columns = None
            section.feed(line)
        elif number < len(lines) and _is_delimiter(lines[number]) and columns is None:
            columns = [_HEADINGS.get(_plain(cell).lower(), "") for cell in _cells(line)]
        elif columns and set(_COLUMNS) <= set(columns) and not _is_delimiter(line):
            yield _Row(
                f"{where}, line {number}", section.source(where), _named_cells(line, columns, where, number)
            )


def _is_delimiter(line: str) -> bool:
    return "-" in line and set(line) <= set("|:- \t")


def _cells(line: str) -> list[str]:
    inner = line.removeprefix("|")
    if inner.endswith("|") and not inner.endswith("\\|"):
        inner = inner[:-1]
    return [cell.replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def _named_cells(line: str, columns: list[str], where: str, number: int) -> dict[str, str]:
    cells = _cells(line)
    if len(cells) > len(columns):
        what = f"the row has {len(cells)} cells, its heading {len(columns)}"
        raise SpecError(what, where=f"{where}, line {number}", next_step="write a | inside a cell as \\|")
    padded = cells + [""] * (len(columns) - len(cells))
    return {column: _plain(cell) for column, cell in zip(columns, padded, strict=True) if column}


def _plain(cell: str) -> str:
    """A cell's text without emphasis, code marks and line breaks."""
    return " ".join(_BREAKS.sub(", ", cell).replace("*", "").replace("`", "").split())


def _row_rules(row: _Row) -> Iterator[dict[str, Any]]:
    """The rules of one row, as Rule's arguments without the id."""
    with located(row.place, SpecError):
        sides = {side: _phrase(row.cells[side]) for side in ("clients", "servers")}
        words = {
            "description": prose(row.cells["description"], SpecError),
            "source": prose(row.source, SpecError),
        }
        for protocol in map(_protocol, _parts(row.cells["protocols"], "protocol")):
            for part in _parts(_PORT_NOUNS.sub("", row.cells["ports"]), "port"):
                first, last = _port_range(part, protocol)
                yield {"protocol": protocol, "first_port": first, "last_port": last, **sides, **words}


def _parts(cell: str, noun: str) -> list[str]:
    parts = [part for part in _SEPARATORS.split(" ".join(cell.split())) if part]
    if not parts:
        raise SpecError(f"the row names no {noun}", next_step="fill the cell")
    return parts


def _phrase(cell: str) -> frozenset[str]:
    """The roles of "All RKE2 nodes", "RKE2 server and agent nodes", "server, agent" and the like."""
    bare = re.sub(r"\([^()]*\)", "", cell.lower())
    phrases = [_singular(part) for part in _parts(bare, "source or destination")]
    if not all(phrase in _SIDES for phrase in phrases):
        raise SpecError(
            f"{quote(cell)} names no role", next_step="write 'All RKE2 nodes' or 'RKE2 server nodes', say"
        )
    return frozenset().union(*(_SIDES[phrase] for phrase in phrases))


def _singular(phrase: str) -> str:
    return " ".join(word for word in (_SINGULAR.get(w, w) for w in phrase.split()) if word)


def _kebab(text: str, fillers: frozenset[str] = _ID_FILLERS) -> str:
    return "-".join(word for word in re.findall(r"[^\W_]+", text.lower()) if word not in fillers)


def _ids(drafts: list[dict[str, Any]]) -> list[str]:
    """An id for each rule: its description's words; where several share them, with protocol and ports."""
    plain = [_kebab(draft["description"]) for draft in drafts]
    shared = Counter(plain)
    ids = [
        name if name and shared[name] == 1 else _long_id(name, d)
        for name, d in zip(plain, drafts, strict=True)
    ]
    seen: Counter[str] = Counter()
    taken = Counter(ids)
    return [id_ if taken[id_] == 1 else f"{id_}-no-{_next(seen, id_)}" for id_ in ids]


def _next(seen: Counter[str], key: str) -> int:
    seen[key] += 1
    return seen[key]


def _long_id(name: str, draft: dict[str, Any]) -> str:
    ends = (draft["first_port"], draft["last_port"])
    return "-".join(str(part) for part in (name, draft["protocol"], *dict.fromkeys(ends)) if part != "")


def server_ports(spec: Spec) -> frozenset[tuple[int, int]]:
    """(protocol number, port) pairs that the specification names; NodePorts too, though they border on
    ephemeral ports.
    """
    tables = spec.compile()
    return frozenset(
        (PROTOCOL_NUMBERS[name], port)
        for row, name in enumerate(PROTOCOLS[:PORTED])
        for port in tables.port_class[row].nonzero()[0].tolist()
    )
