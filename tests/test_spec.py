"""The specification: shipped equals the documents, what is wrong has its line, tables say what rules say."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer import _yaml
from analyzer.errors import SpecError
from analyzer.spec import (
    LAST_PORT,
    PORTED,
    PROTOCOLS,
    ROLE_BITS,
    Rule,
    Spec,
    load_spec,
    parse_spec,
    parse_table,
    role_mask,
    shipped_specs,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEED = SHARED / "spec" / "traffic-flow-details.md"
NODES = frozenset({"server", "agent"})
SERVER = frozenset({"server"})
AGENT = frozenset({"agent"})

MINIMAL = """\
name: site
rules:
  - id: ssh
    protocol: tcp
    ports: 22
    clients: [server, agent, external]
    servers: [server, agent]
"""


def facts(rules: tuple[Rule, ...]) -> list[Rule]:
    """The rules without what a reader is free to choose: the ids."""
    return [dataclasses.replace(rule, id="-") for rule in rules]


def seed_table() -> Spec:
    if not SEED.is_file():
        pytest.skip(f"no {SEED}")
    return parse_table(SEED.read_text(encoding="utf-8"), where=SEED.name)


# What is shipped


def test_the_default_is_the_documents_table_rule_by_rule() -> None:
    table, shipped = seed_table(), load_spec()
    assert shipped.name == "rke2-canal"
    assert facts(table.rules) == facts(shipped.rules)
    sections = [rule.source for rule in table.rules]
    assert sections == [
        *["Traffic Flow Details, Inbound Network Rules Table"] * 7,
        *["Traffic Flow Details, CNI Specific Inbound Network Rules"] * 4,
    ]


@pytest.mark.parametrize("index", range(11))
def test_that_comparison_fails_without_a_rule_or_with_a_changed_one(index: int) -> None:
    document = yaml.safe_load(load_spec().to_yaml())
    table = facts(seed_table().rules)
    removed = {**document, "rules": document["rules"][:index] + document["rules"][index + 1 :]}
    assert facts(parse_spec(yaml.safe_dump(removed)).rules) != table
    document["rules"][index]["clients"] = ["external"]
    assert facts(parse_spec(yaml.safe_dump(document)).rules) != table


def test_shipped_ids_are_those_that_import_makes() -> None:
    assert [rule.id for rule in seed_table().rules] == [rule.id for rule in load_spec().rules]


def test_the_default_without_the_document() -> None:
    rows = {
        (r.protocol, r.first_port, r.last_port): (r.clients, r.servers) for r in load_spec("rke2-canal").rules
    }
    assert rows == {
        ("tcp", 6443, 6443): (AGENT, SERVER),
        ("tcp", 9345, 9345): (AGENT, SERVER),
        ("tcp", 10250, 10250): (NODES, NODES),
        ("tcp", 2379, 2379): (SERVER, SERVER),
        ("tcp", 2380, 2380): (SERVER, SERVER),
        ("tcp", 2381, 2381): (SERVER, SERVER),
        ("tcp", 30000, 32767): (NODES, NODES),
        ("udp", 8472, 8472): (NODES, NODES),
        ("tcp", 9099, 9099): (NODES, NODES),
        ("udp", 51820, 51820): (NODES, NODES),
        ("udp", 51821, 51821): (NODES, NODES),
    }


def test_upstream_widened_two_rules_of_the_default_and_no_other() -> None:
    old, new = facts(load_spec().rules), facts(load_spec("rke2-canal-2025-07-28").rules)
    changed = [(a, b) for a, b in zip(old, new, strict=True) if dataclasses.replace(b, source=a.source) != a]
    assert [(a.first_port, a.clients, b.clients) for a, b in changed] == [
        (6443, AGENT, NODES),
        (9345, AGENT, NODES),
    ]


UPSTREAM_CNI = {
    "rke2-inbound-2025-07-28": set(),
    "rke2-canal-2025-07-28": {("udp", 8472), ("tcp", 9099), ("udp", 51820), ("udp", 51821)},
    "rke2-cilium": {("icmp", 8), ("icmp", 0), ("tcp", 4240), ("udp", 8472), ("udp", 51871)},
    "rke2-calico": {("tcp", 179), ("udp", 4789), ("tcp", 5473), ("tcp", 9098), ("tcp", 9099)},
    "rke2-flannel": {("udp", 4789)},
}


def test_every_shipped_specification_is_tested_here() -> None:
    assert shipped_specs() == sorted([*UPSTREAM_CNI, "rke2-canal"])


@pytest.mark.parametrize("name", UPSTREAM_CNI)
def test_upstream_specifications(name: str) -> None:
    spec = load_spec(name)
    base = load_spec("rke2-inbound-2025-07-28").rules
    assert spec.rules[:7] == base
    assert {(rule.protocol, rule.first_port) for rule in spec.rules[7:]} == UPSTREAM_CNI[name]
    assert all((rule.clients, rule.servers) == (NODES, NODES) for rule in spec.rules[7:])
    assert all("rancher/rke2-docs@9477b7b docs/install/requirements.md" in rule.source for rule in spec.rules)
    assert spec.title
    assert "rancher/rke2-docs@9477b7b" in spec.source


@pytest.mark.parametrize("name", [*UPSTREAM_CNI, "rke2-canal"])
def test_shipped_specifications_round_trip(name: str) -> None:
    assert parse_spec(load_spec(name).to_yaml()) == load_spec(name)


# YAML: extends, errors


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / next(iter(files))


def test_extends_a_shipped_specification(tmp_path: Path) -> None:
    path = write(tmp_path, {"site.yaml": MINIMAL.replace("rules:", "extends: rke2-canal\nrules:")})
    spec = load_spec(path)
    assert spec.name == "site"
    assert spec.rules[:-1] == load_spec().rules
    assert spec.rules[-1].clients == {"server", "agent", "external"}
    assert spec.rules[-1].source == "site.yaml"


def test_extends_a_file_beside_the_extending_one_and_needs_no_rules(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"a.yaml": "name: a\nextends: sub/b.yaml", "sub/b.yaml": "name: b\nextends: c.yaml"}
    )
    write(tmp_path, {"sub/c.yaml": MINIMAL})
    assert [rule.id for rule in load_spec(str(path)).rules] == ["ssh"]


def test_a_cycle_names_the_whole_chain(tmp_path: Path) -> None:
    files = {"a.yaml": "name: a\nextends: b.yaml", "b.yaml": "name: b\n\nextends: c.yaml"}
    path = write(tmp_path, files | {"c.yaml": "extends: a.yaml\nname: c"})
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    a, b, c = (tmp_path / name for name in ("a.yaml", "b.yaml", "c.yaml"))
    assert caught.value.where == f"{c}, line 1"
    assert f"{a} → {b} → {c} → {a}" in caught.value.what


def test_too_long_a_chain(tmp_path: Path) -> None:
    files = {f"{i}.yaml": f"name: x\nextends: {i + 1}.yaml" for i in range(40)}
    with pytest.raises(SpecError, match="more than 20 files extend"):
        load_spec(write(tmp_path, files))


def test_an_id_of_the_extended_file_is_taken(tmp_path: Path) -> None:
    text = "name: mine\nextends: rke2-canal\n" + MINIMAL.partition("\n")[2].replace("ssh", "etcd-peer")
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, {"mine.yaml": text}))
    assert caught.value.where.endswith("mine.yaml, line 4")
    assert "rke2-canal.yaml, line 31" in caught.value.next_step


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("rke2-cannal", "did you mean 'rke2-canal'?"),
        ("rke2-cillium", "'rke2-cilium'"),
        ("xyz", "name a YAML file"),
    ],
)
def test_an_unknown_name_lists_what_is_shipped(name: str, advice: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(name)
    assert advice in caught.value.next_step
    assert ", ".join(shipped_specs()) in caught.value.next_step


def test_an_unknown_extended_name_is_placed(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, {"a.yaml": "name: a\nextends: nowhere.yaml"}))
    assert caught.value.where.endswith("a.yaml, line 2")


@pytest.mark.parametrize("name", ["\0", "a" * 5000, "a\nb", ""])
def test_hostile_names_are_one_clear_line(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(name)
    assert str(caught.value).isprintable()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path)


def edit(old: str, new: str) -> str:
    assert old in MINIMAL
    return MINIMAL.replace(old, new)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"
FAULTS = [
    ("", "", "the file is empty"),
    ("# only words\n", "", "the file is empty"),
    ("- a\n", ", line 1", "a mapping is needed here, not a list"),
    ("rules\n", ", line 1", "a mapping is needed here, not a text"),
    ("name: x\nrules: [\n", ", line 3", "no valid YAML"),
    ("name: x\n\tb: c\n", ", line 2", "no valid YAML"),
    ("name: x\nrules: a\n", ", line 2", "a list is needed here, not a text"),
    ("name: x\nrules:\n", ", line 2", "a list is needed here, not nothing"),
    ("name: x\nrules: []\n", ", line 2", "0 rules"),
    ("name: x\n", ", line 1", "the key 'rules' is missing"),
    ("rules: []\n", ", line 1", "the key 'name' is missing"),
    ("name: x\nname: y\n", ", line 2", "the key 'name' is there twice"),
    (edit("rules:", "rule:"), ", line 2", "unknown key 'rule'"),
    (edit("name: site", 'name: "a\\eb"'), ", line 1", "unprintable characters: 'a\\x1bb'"),
    (edit("name: site", 'name: "a\\u202eb"'), ", line 1", "unprintable characters"),
    (edit("name: site", 'name: " "'), ", line 1", "a name is empty"),
    (edit("name: site", "name: [a]"), ", line 1", "a text is needed here, not a list"),
    (edit("id: ssh", 'id: "s\\0"'), ", line 3", "unprintable characters"),
    (edit("    protocol: tcp\n", ""), ", line 3", "the key 'protocol' is missing"),
    (edit("protocol", "protocoll"), ", line 4", "unknown key 'protocoll'"),
    (edit("tcp", "tpc"), ", line 4", "unknown protocol 'tpc'"),
    (edit("22", "65536"), ", line 5", "port 65536 is outside 0-65535"),
    (edit("22", "99999999999999"), ", line 5", "'99999999999999' is no port"),
    (edit("22", "-1"), ", line 5", "'-1' is no port"),
    (edit("22", "0x16"), ", line 5", "'0x16' is no port"),
    (edit("22", "٢٢"), ", line 5", "is no port"),
    (edit("22", "22, 23"), ", line 5", "'22, 23' is no port and no range"),
    (edit("22", "[22, 23]"), ", line 5", "a text is needed here, not a list"),
    (edit("22", "32767-30000"), ", line 5", "the range 32767-30000 is reversed"),
    (edit("22", "60000-70000"), ", line 5", "port 70000 is outside 0-65535"),
    (edit("22", ""), ", line 5", "a text is needed here, not nothing"),
    (edit("tcp\n    ports: 22", "icmp\n    ports: 256"), ", line 5", "ICMP type 256 is outside 0-255"),
    (edit("[server, agent]", "[server,\n     agnet]"), ", line 8", "unknown role 'agnet'"),
    (edit("[server, agent]", "[]"), ", line 7", "no role is named"),
    (edit("[server, agent]", "server"), ", line 7", "a list is needed here, not a text"),
    (edit("[server, agent]", "[[server]]"), ", line 7", "a text is needed here, not a list"),
    (edit("ssh", "ssh\n    description: [a]"), ", line 4", "a text is needed here, not a list"),
    (MINIMAL + MINIMAL.partition("rules:\n")[2], ", line 8", "the rule id 'ssh' is there twice"),
    (BOMB, ", line 1", "anchors and aliases are not read here"),
    ("name: !!python/object/apply:os.system [ls]\n", ", line 1", "the tag"),
    ("name: a\n---\nname: b\n", ", line 2", "a second document begins"),
    ("name: a\nrules: " + "[" * 500 + "]" * 500, ", line 2", "nested deeper than 64 levels"),
    ("? [a]\n: b\n", ", line 1", "a text is needed here, not a list"),
    ("name: a\n<<: {b: c}\nrules: []\n", ", line 2", "unknown key '<<'"),
    ("name: a\nrules: \x1b[0m\n", ", line 2", "a control character, '\\x1b'"),
]


@pytest.mark.parametrize(("text", "place", "what"), FAULTS)
def test_faults_of_the_format_have_place_and_advice(text: str, place: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "faulty.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert caught.value.where == f"{path}{place}"
    assert what in caught.value.what
    assert str(caught.value).isprintable()


def test_known_keys_are_told_once() -> None:
    with pytest.raises(SpecError, match=r"\(known keys: name, rules, title, source, extends\)"):
        parse_spec("pod_cidrs: []\n")


def test_the_minimal_file_of_the_fault_table_is_good() -> None:
    assert parse_spec(MINIMAL).rules[0].ports == "22"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"name: x\nrules: \xff\xff\n")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert caught.value.where == f"{path}, line 2"


def test_utf16_with_its_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(MINIMAL, encoding="utf-16")
    assert load_spec(path) == parse_spec(MINIMAL, where="a.yaml")


def test_too_large_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_yaml, "MAX_YAML_CHARACTERS", len(MINIMAL) - 1)
    with pytest.raises(SpecError, match="larger than"):
        parse_spec(MINIMAL)


def test_scalars_are_never_guessed() -> None:
    """Other YAML readers make False, 8 and 130 of these."""
    text = MINIMAL.replace("name: site", "name: no").replace("id: ssh", "id: 010").replace("22", "'22 - 23'")
    spec = parse_spec(text)
    assert (spec.name, spec.rules[0].id, spec.rules[0].ports) == ("no", "010", "22-23")


@pytest.mark.parametrize("text", [MINIMAL, load_spec().to_yaml(), "a:\nb: ~\nc: null\nd: ''\ne: |\n  x\n"])
def test_both_parsers_of_yaml_see_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(loader: type) -> _yaml.Marked:
        monkeypatch.setattr(_yaml, "LOADER", loader)
        return _yaml.parse_yaml(text, where="x", error=SpecError)

    def places(item: _yaml.Marked) -> object:
        if isinstance(item.value, dict):
            return item.place, item.key_places, {key: places(value) for key, value in item.value.items()}
        return item.place, [places(each) for each in item.value] if isinstance(
            item.value, list
        ) else item.value

    assert places(read(yaml.SafeLoader)) == places(read(getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


GOOD = {"id": "a", "protocol": "tcp", "first_port": 1, "last_port": 1, "clients": NODES, "servers": NODES}


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": "any"},
        {"first_port": 2},
        {"last_port": 65536},
        {"first_port": -1},
        {"clients": frozenset()},
        {"servers": frozenset({"master"})},
        {"id": ""},
        {"description": "\a"},
    ],
)
def test_a_rule_made_in_code_is_checked_alike(wrong: dict[str, object]) -> None:
    Rule(**GOOD)  # type: ignore[arg-type]
    with pytest.raises(SpecError):
        Rule(**GOOD | wrong)  # type: ignore[arg-type]


def test_a_specification_made_in_code_is_checked_alike() -> None:
    rule = Rule(**GOOD)  # type: ignore[arg-type]
    for rules in ((), (rule, rule)):
        with pytest.raises(SpecError):
            Spec("a", "a", "a", rules)


def test_frame_for_people() -> None:
    frame = load_spec().to_frame().set_index("id")
    assert list(frame.columns) == ["protocol", "ports", "clients", "servers", "description", "source"]
    assert frame.loc["nodeport", "ports"] == "30000-32767"
    assert frame.loc["kubernetes-api", "ports"] == "6443"
    assert frame.loc["kubelet-metrics", "clients"] == "server, agent"


# Markdown tables

UPSTREAM = """\
---
title: Requirements
---
## Sizes

| Server CPU | Agents |
| ---------- | ------ |
| 2          | 0-225  |

### Inbound Network Rules

| Port        | Protocol | Source            | Destination       | Description
|-------------|----------|-------------------|-------------------|------------
| 6443        | TCP      | All RKE2 nodes    | RKE2 server nodes | Kubernetes API

#### CNI rules

<Tabs groupId="cni-rules" queryString>
<TabItem value="Cilium" default>

| Port        | Protocol | Source            | Destination       | Description
|-------------|:--------:|-------------------|-------------------|------------
| 8/0         | ICMP     | All RKE2 nodes    | All RKE2 nodes    | Cilium CNI health checks
| 4240        | TCP      | All RKE2 nodes    | All RKE2 nodes    | Cilium CNI health checks

</TabItem>
</Tabs>

### Windows

| Protocol | Port | Source         | Destination    | Description
|----------|------|----------------|----------------|---|
| UDP      | 4789 | All RKE2 nodes | All RKE2 nodes | Required for Calico
"""


def test_upstreams_layout() -> None:
    spec = parse_table(UPSTREAM, where="docs/requirements.md")
    assert (spec.name, spec.title) == ("requirements", "Requirements")
    assert [(r.id, r.protocol, r.first_port, r.source) for r in spec.rules] == [
        ("kubernetes-api", "tcp", 6443, "Requirements, Inbound Network Rules"),
        ("cilium-health-checks-icmp-8", "icmp", 8, "Requirements, CNI rules, Cilium"),
        ("cilium-health-checks-icmp-0", "icmp", 0, "Requirements, CNI rules, Cilium"),
        ("cilium-health-checks-tcp-4240", "tcp", 4240, "Requirements, CNI rules, Cilium"),
        ("required-for-calico", "udp", 4789, "Requirements, Windows"),
    ]


def table(row: str, head: str = "Port|Protocol|Source|Destination|Description") -> str:
    return f"# Doc\n\n|{head}|\n|-|-|-|-|-|\n|{row}|\n"


@pytest.mark.parametrize(
    ("protocol", "ports", "expected"),
    [
        ("TCP", "30000-32767", [("tcp", "30000-32767")]),
        ("tcp", "30000 – 32767", [("tcp", "30000-32767")]),
        ("TCP", "2379, 2380", [("tcp", "2379"), ("tcp", "2380")]),
        ("TCP", "2379-2380", [("tcp", "2379-2380")]),
        ("TCP", "80<br/>443", [("tcp", "80"), ("tcp", "443")]),
        ("TCP", "**80** and `443`", [("tcp", "80"), ("tcp", "443")]),
        ("TCP/UDP", "53", [("tcp", "53"), ("udp", "53")]),
        ("TCP, UDP", "53 or 5353", [("tcp", "53"), ("tcp", "5353"), ("udp", "53"), ("udp", "5353")]),
        ("SCTP", "port 38412", [("sctp", "38412")]),
        ("ICMP", "8/0", [("icmp", "8"), ("icmp", "0")]),
        ("ICMP", "Types 0 and 8", [("icmp", "0"), ("icmp", "8")]),
        ("ICMP", "ICMP type 8", [("icmp", "8")]),
        ("ICMPv6", "128, 129", [("icmpv6", "128"), ("icmpv6", "129")]),
    ],
)
def test_cells_of_ports_and_protocols(protocol: str, ports: str, expected: list[tuple[str, str]]) -> None:
    spec = parse_table(table(f"{ports}|{protocol}|All RKE2 nodes|All RKE2 nodes|x"), where="t.md")
    assert [(rule.protocol, rule.ports) for rule in spec.rules] == expected


@pytest.mark.parametrize(
    ("phrase", "roles"),
    [
        ("All RKE2 nodes", NODES),
        ("all rke2  Nodes (both agents and servers)", NODES),
        ("RKE2 nodes", NODES),
        ("All nodes", NODES),
        ("RKE2 server and agent nodes", NODES),
        ("RKE2 agent nodes", AGENT),
        ("**RKE2 Agent node**", AGENT),
        ("Worker nodes", AGENT),
        ("RKE2 server nodes", SERVER),
        ("All RKE2 server nodes", SERVER),
        ("servers", SERVER),
        ("etcd nodes", {"etcd"}),
        ("control-plane nodes", {"control-plane"}),
        ("Control plane and etcd nodes", {"control-plane", "etcd"}),
        ("Anywhere", NODES | {"external"}),
        ("Any", NODES | {"external"}),
        ("Any RKE2 node", NODES),
        ("external", {"external"}),
        ("server, agent, external", NODES | {"external"}),
    ],
)
def test_phrases_to_roles(phrase: str, roles: set[str]) -> None:
    spec = parse_table(table(f"1|TCP|{phrase}|All RKE2 nodes|x"), where="t.md")
    assert spec.rules[0].clients == roles


def test_columns_in_any_order_and_case_beside_others() -> None:
    text = table(
        "b|x|all nodes|9|agents|6443|tcp", "DESTINATION||Source|Note|x|PORT|protocol".replace("||", "|y|")
    )
    text = text.replace("|DESTINATION|y|", "|Description|y|").replace("|Note|x|", "|Note|Destination|")
    spec = parse_table(text.replace("|-|-|-|-|-|", "|-|-|-|-|-|-|-|"), where="t.md")
    (rule,) = spec.rules
    assert (rule.description, rule.clients, rule.servers, rule.ports) == ("b", NODES, AGENT, "6443")


def test_ids_are_readable_stable_and_distinct() -> None:
    rows = ["1|TCP|all nodes|all nodes|Same words", "2|TCP|all nodes|all nodes|Same words"]
    rows += [
        "1|TCP|servers|servers|Same words",
        "5-9|UDP|all nodes|all nodes|",
        "7|UDP|all nodes|all nodes|é!",
    ]
    ids = [rule.id for rule in parse_table(table("|\n|".join(rows)), where="t.md").rules]
    assert ids == ["same-words-tcp-1-no-1", "same-words-tcp-2", "same-words-tcp-1-no-2", "udp-5-9", "é"]


TABLE_FAULTS = [
    ("1|TCP|all nodes|the moon|x", 5, "'the moon' names no role"),
    ("1|TCP||all nodes|x", 5, "the row names no source or destination"),
    ("|TCP|all nodes|all nodes|x", 5, "the row names no port"),
    ("1||all nodes|all nodes|x", 5, "the row names no protocol"),
    ("1|IPX|all nodes|all nodes|x", 5, "unknown protocol 'IPX'"),
    ("http|TCP|all nodes|all nodes|x", 5, "'http' is no port"),
    ("70000|TCP|all nodes|all nodes|x", 5, "port 70000 is outside"),
    ("9-1|TCP|all nodes|all nodes|x", 5, "the range 9-1 is reversed"),
    ("8/300|ICMP|all nodes|all nodes|x", 5, "ICMP type 300 is outside"),
    ("1|TCP|all nodes", 5, "the row names no source or destination"),
    ("1|TCP|all nodes|all nodes|x|y", 5, "the row has 6 cells, its heading 5"),
    ("1|TCP|all nodes|all nodes|\x07", 5, "unprintable characters"),
    ("1|TCP|all nodes|all nodes|x|\n|2|TCP|all nodes|nowhere|x", 6, "'nowhere' names no role"),
]


@pytest.mark.parametrize(("row", "line", "what"), TABLE_FAULTS)
def test_rows_that_cannot_be_read_have_a_line(row: str, line: int, what: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_table(table(row), where="t.md")
    assert caught.value.where == f"t.md, line {line}"
    assert what in caught.value.what


@pytest.mark.parametrize(
    "text", ["", "# Title\n\nwords\n", UPSTREAM.partition("### Inb")[0], f"```\n{table('1')}```\n"]
)
def test_no_port_table(text: str) -> None:
    with pytest.raises(SpecError, match="no port table"):
        parse_table(text, where="t.md")


def test_an_escaped_bar_stays_in_its_cell() -> None:
    assert parse_table(table("1|TCP|nodes|nodes|a \\| b"), where="t").rules[0].description == "a | b"


def outcome(read: Callable[[str], Spec], text: str) -> str:
    """One line, whether it is read or refused; anything else that is raised fails the test."""
    try:
        return read(text).name
    except SpecError as fault:
        return str(fault)


@given(st.text(alphabet=st.sampled_from("|-:#`~ \n\r\t0129,/PortTCP<>*\\\x00é")))
def test_any_text_is_a_specification_or_an_error(text: str) -> None:
    for document in (text, table(text), text + table("1|TCP|nodes|nodes|x")):
        assert outcome(lambda text: parse_table(text, where="t.md"), document).isprintable()


@given(st.text(alphabet=st.sampled_from("{}[]:,-'\"\n abc01./&*!|>#%@\t\x00é")), st.integers(0, len(MINIMAL)))
def test_any_yaml_is_a_specification_or_an_error(text: str, position: int) -> None:
    for document in (text, MINIMAL[:position] + text + MINIMAL[position:], MINIMAL[:position] + text):
        assert outcome(parse_spec, document).isprintable()


# Properties

PRINTABLE = st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" ")
WORDS = st.text(PRINTABLE, max_size=12)
NAMES = st.text(PRINTABLE, min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
SIDES = st.frozensets(st.sampled_from(sorted(ROLE_BITS)), min_size=1)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    protocol = draw(st.sampled_from(PROTOCOLS))
    # Mostly from few ports, so that rules overlap, touch and repeat.
    few = st.sampled_from([p for p in (0, 1, 2, 3, 254, 255, 256, 65534, 65535) if p <= LAST_PORT[protocol]])
    port = few | st.integers(0, LAST_PORT[protocol])
    first, last = sorted((draw(port), draw(port)))
    return Rule(draw(NAMES), protocol, first, last, draw(SIDES), draw(SIDES), draw(WORDS), draw(WORDS))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    listed = draw(st.lists(rules(), min_size=1, max_size=8, unique_by=lambda rule: rule.id))
    return Spec(draw(NAMES), draw(WORDS), draw(WORDS), tuple(listed))


@given(specs())
def test_yaml_round_trip(spec: Spec) -> None:
    assert parse_spec(spec.to_yaml()) == spec


def covering(spec: Spec, protocol: str, port: int) -> list[int]:
    """Oracle: the indexes of the rules that cover a port, one comparison for each rule."""
    return [
        index
        for index, rule in enumerate(spec.rules)
        if rule.protocol == protocol and rule.first_port <= port <= rule.last_port
    ]


def naive_allowed(spec: Spec, protocol: str, port: int, client: int, server: int) -> int:
    for index in covering(spec, protocol, port):
        rule = spec.rules[index]
        if role_mask(rule.clients) & client and role_mask(rule.servers) & server:
            return index
    return -1


@settings(max_examples=60, deadline=None)
@given(specs(), st.data())
def test_compiled_tables_say_what_each_rule_says(spec: Spec, data: st.DataObject) -> None:
    compiled = spec.compile()
    edges = {e for rule in spec.rules for p in (rule.first_port, rule.last_port) for e in (p - 1, p, p + 1)}
    ports = sorted(
        edge for edge in edges | {0, 65535, data.draw(st.integers(0, 65535))} if 0 <= edge <= 65535
    )
    for row, protocol in enumerate(PROTOCOLS):
        for port in ports:
            number = compiled.port_class[row, port]
            members = covering(spec, protocol, port)
            assert (number == 0) == (not members)
            assert compiled.named[number] == (members[0] if members else -1)
            pairs = [(c, s) for c in range(16) for s in range(16)]
            expected = [naive_allowed(spec, protocol, port, c, s) for c, s in pairs]
            assert compiled.allowed[number].ravel().tolist() == expected
            others = [compiled.port_class[q, port] for q in range(PORTED) if q != row and row < PORTED]
            assert compiled.other_class[row, port] == next((o for o in others if o), 0)


@settings(max_examples=30, deadline=None)
@given(specs())
def test_a_class_is_one_set_of_rules(spec: Spec) -> None:
    compiled = spec.compile()
    sets: dict[int, set[tuple[int, ...]]] = {}
    for row, protocol in enumerate(PROTOCOLS):
        starts = np.flatnonzero(np.diff(compiled.port_class[row], prepend=-1))
        for port in starts.tolist():
            key = int(compiled.port_class[row, port])
            sets.setdefault(key, set()).add(tuple(covering(spec, protocol, port)))
    assert all(len(found) == 1 for found in sets.values())
    assert len({next(iter(found)) for found in sets.values()}) == len(sets)
    assert set(sets) | {0} == set(range(len(compiled.named)))


def test_shapes_dtypes_and_that_tables_cannot_be_written() -> None:
    compiled = load_spec().compile()
    classes = len(compiled.named)
    assert classes == 12
    tables = (compiled.port_class, compiled.other_class, compiled.allowed, compiled.named)
    assert [(str(table.dtype), table.shape) for table in tables] == [
        ("uint16", (5, 65536)),
        ("uint16", (5, 65536)),
        ("int16", (classes, 16, 16)),
        ("int16", (classes,)),
    ]
    with pytest.raises(ValueError, match="read-only"):
        compiled.allowed[0, 0, 0] = 0
    assert load_spec().compile() is compiled


AGENT_BIT, PLANE, ETCD, BOTH, OUTSIDE = (
    ROLE_BITS[role] for role in ("agent", "control-plane", "etcd", "server", "external")
)
JUDGED = [
    ("tcp", 6443, AGENT_BIT, BOTH, True),
    ("tcp", 6443, BOTH, BOTH, False),
    ("tcp", 6443, AGENT_BIT, PLANE, True),
    ("tcp", 6443, OUTSIDE, BOTH, False),
    ("tcp", 2380, ETCD, ETCD, True),
    ("tcp", 2379, AGENT_BIT, BOTH, False),
    ("tcp", 30000, AGENT_BIT, AGENT_BIT, True),
    ("tcp", 32767, BOTH, AGENT_BIT, True),
    ("tcp", 32768, BOTH, AGENT_BIT, False),
    ("tcp", 29999, BOTH, AGENT_BIT, False),
    ("udp", 6443, AGENT_BIT, BOTH, False),
    ("tcp", 22, AGENT_BIT, BOTH, False),
    ("tcp", 6443, 0, BOTH, False),
]


def test_the_default_judged_through_arrays() -> None:
    spec = load_spec()
    tables = spec.compile()
    protocol = np.array([PROTOCOLS.index(row[0]) for row in JUDGED])
    port, client, server = (np.array([row[i] for row in JUDGED]) for i in (1, 2, 3))
    number = tables.port_class[protocol, port]
    rule = tables.allowed[number, client, server]
    assert (rule >= 0).tolist() == [row[4] for row in JUDGED]
    assert spec.rules[rule[0]].id == "kubernetes-api"
    udp = tables.other_class[PROTOCOLS.index("udp"), 6443]
    assert spec.rules[tables.named[udp]].id == "kubernetes-api"


def test_narrow_roles_of_a_rule() -> None:
    text = MINIMAL.replace("[server, agent, external]", "[etcd]").replace(
        "[server, agent]", "[etcd, external]"
    )
    tables = parse_spec(text).compile()
    allowed = tables.allowed[tables.port_class[0, 22]] >= 0
    assert [bool(allowed[mask, ETCD]) for mask in (AGENT_BIT, PLANE, ETCD, BOTH, OUTSIDE)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert allowed[ETCD, OUTSIDE]
    assert not allowed[ETCD, AGENT_BIT]
