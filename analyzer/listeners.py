"""What nodes listen on: documented × listening × observed. Rule: knows sockets, rules and judged flows; only
:func:`listening_here` asks the kernel, only :func:`read_listeners` opens a file.

Sockets come from this machine, from the JSON that :meth:`Listening.to_json` writes, or from what
``ss -H -tulpn`` printed elsewhere. Process names are what processes call themselves, and may be made to look
like the rest of the line.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from analyzer._pairing import REPLIES
from analyzer._witness import capturing_node
from analyzer._yaml import place_of, quote, read_bytes
from analyzer.capture import who
from analyzer.columns import PROTOCOL_NUMBERS
from analyzer.errors import CaptureError, ClusterError
from analyzer.findings import Remark, by_file, deaf_sources, remarked, unseen
from analyzer.rows import as_text
from analyzer.spec import ROLE_BITS, Rule, Spec, role_mask

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from analyzer.analysis import Analysis
    from analyzer.cluster import Cluster, Node
    from analyzer.rows import Coverage

SCHEMA = 1
_MAX_BYTES = 64 << 20
_EVERY_ADDRESS = ("*", "0.0.0.0", "::")  # noqa: S104 as sockets have it: both families, IPv4, IPv6 alone
_PROTOCOLS = ("tcp", "udp")


@dataclass(frozen=True, order=True)
class Socket:
    """A listening TCP socket, or a UDP socket without a peer.

    `address`: an IP address, or `0.0.0.0`, `::` (IPv6 alone) or `*` (both) for all of the node's. `process`
    and `pid`: one of those that have it open; empty and 0 for the kernel's own (VXLAN, WireGuard) and for
    what the lister might not see.
    """

    protocol: str
    address: str
    port: int
    process: str = ""
    pid: int = 0

    @property
    def is_everywhere(self) -> bool:
        """Whether it takes what comes to any of the node's addresses of a family."""
        return self.address in _EVERY_ADDRESS

    @property
    def is_loopback(self) -> bool:
        """Whether only the node itself reaches it."""
        return not self.is_everywhere and ipaddress.ip_address(self.address).is_loopback

    def __str__(self) -> str:
        owner = f"{_printable(self.process)} (pid {self.pid})" if self.process else "the kernel, or not known"
        return f"{self.protocol}/{self.port} on {self.address} by {owner}"


@dataclass(frozen=True)
class Listening:
    """The sockets of one node at one time. `node`: empty where it is not known; `source`: file, or `live`."""

    node: str
    sockets: tuple[Socket, ...]
    time: str = ""
    source: str = "live"

    def to_json(self) -> str:
        """The JSON document; :func:`read_listeners` reads it back. Keys: schema, node, time, sockets."""
        rows = [asdict(one) for one in self.sockets]
        document = {"schema": SCHEMA, "node": self.node, "time": self.time, "sockets": rows}
        return json.dumps(document, indent=1) + "\n"

    def to_frame(self) -> pd.DataFrame:
        """One row for each socket: node, protocol, address, port, process, pid."""
        names = [field.name for field in fields(Socket)]
        return pd.DataFrame([asdict(one) for one in self.sockets], columns=names).assign(node=self.node)


def listening_here(node: str = "") -> Listening:
    """The sockets of this machine, in the network namespace of the calling thread; `node` as it is to be
    called, by default the host's name. Raises LiveError where they cannot be listed.
    """
    sockets = {
        Socket(_PROTOCOLS[one.protocol == who.UDP], _bound_to(one), one.port, one.process, one.pid)
        for one in who.open_sockets()
    }
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: UP017 a plain name for UTC
    return Listening(node or as_text(socket.gethostname()), tuple(sorted(sockets)), now)


def _bound_to(one: who.Open) -> str:
    address = _unmapped(ipaddress.ip_address(one.address))
    return "*" if address == "::" and one.takes_v4 else address


def _unmapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


# ---- reading ----


def read_listeners(path: str | Path, node: str = "", nodes: Collection[str] = ()) -> Listening:
    """The sockets in a file (``-`` is standard input): our JSON, or the text of ``ss -tulpn``, with or
    without its header, with or without ``-n``.

    Which node's they are: `node`, else what the JSON says, else that of `nodes` with whose name the file's
    name begins, else the file's name without its endings. Raises CaptureError with the line for a file that
    is neither.
    """
    text, where = _text(path), place_of(path)
    known = _from_json(text, where) if text.lstrip().startswith("{") else Listening("", _from_ss(text, where))
    named = node or known.node or capturing_node(where, nodes) or _stem(where)
    return Listening(named, known.sockets, known.time, where)


def _text(path: str | Path) -> str:
    """Whatever bytes a process' name has: they must not hide the other sockets."""
    where = place_of(path)
    try:
        data = read_bytes(path, _MAX_BYTES + 1)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise CaptureError(
            f"cannot be read: {reason}", where=where, next_step="name a readable file"
        ) from None
    if len(data) > _MAX_BYTES:
        raise _fault(f"larger than {_MAX_BYTES >> 20} MiB", where)
    return data.decode("utf-8-sig", "replace")


_ENDINGS = re.compile(r"(?:\.(?:txt|ss|out|log|json|sockets|listeners))+$")


def _stem(where: str) -> str:
    return _ENDINGS.sub("", PurePath(where).name)


def _from_json(text: str, where: str) -> Listening:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as fault:
        line = getattr(fault, "lineno", 1)
        raise _fault("no valid JSON", f"{where}, line {line}") from None
    if document.get("schema") != SCHEMA or not isinstance(document.get("sockets"), list):
        raise _fault(f"no listening sockets of schema {SCHEMA}", where)
    names = [document.get(key, "") for key in ("node", "time")]
    if not all(isinstance(name, str) for name in names):
        raise _fault("'node' and 'time' are texts", where)
    sockets = [_socket_of(row, f"{where}: sockets[{i}]") for i, row in enumerate(document["sockets"])]
    return Listening(names[0], tuple(sorted(set(sockets))), names[1])


def _socket_of(row: Any, where: str) -> Socket:
    try:
        one = Socket(**row)
    except TypeError:
        raise _fault(
            f"a socket has {', '.join(f.name for f in fields(Socket))}, and no more", where
        ) from None
    good = (
        one.protocol in _PROTOCOLS
        and isinstance(one.address, str)
        and isinstance(one.process, str)
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (one.port, one.pid))
        and 0 < one.port < 65536
    )
    if not good:
        raise _fault(f"no socket: {quote(row)}", where)
    return Socket(one.protocol, _address(one.address, where), one.port, one.process, one.pid)


_ADVICE = "give what `rke2-flows listeners` or `ss -H -tulpn` printed"


def _fault(what: str, where: str, next_step: str = _ADVICE) -> CaptureError:
    return CaptureError(what, where=where, next_step=next_step)


# ---- the text of ss ----

#: in which state ss prints a socket that waits for others (iproute2 misc/ss.c)
_WAITING = {"tcp": "LISTEN", "udp": "UNCONN"}
_STATE = (
    r"LISTEN|UNCONN|ESTAB|SYN-SENT|SYN-RECV|FIN-WAIT-[12]|TIME-WAIT|CLOSE-WAIT|LAST-ACK|CLOSING|NEW-SYN-RECV"
)
_PLACE = r"(?:\*|[0-9a-fA-F.:\[\]]*)(?:%[^\s:]+)?:[\w*+.-]+"
_LINE = re.compile(
    rf"(?:(?P<netid>tcp|udp)\s+)?(?P<state>{_STATE})\s+\d+\s+\d+\s+(?P<local>{_PLACE})\s+{_PLACE}(?P<rest>\s.*|)",
    re.DOTALL,
)
#: what `ss -l` prints beside TCP and UDP
_OTHERS = re.compile(
    r"(?:u_str|u_dgr|u_seq|nl|p_raw|p_dgr|raw|icmp6|sctp|dccp|mptcp|v_str|v_dgr|tipc|xdp|\?+)\s"
)
#: what stands after a process' name in `users:(("name",pid=1,fd=2),…)`, and after the list
_NAME_END = re.compile(r"""",pid=(\d{1,10})(?:,\w+=[^,()"]*)*\)""")
_LIST_END = re.compile(r"\)(?:\s+(?:\w+:\S+|<->|-->|<--|---))*\s*\Z")
_LONGEST_NAME = 15  # TASK_COMM_LEN without its end (include/linux/sched.h)


def _from_ss(text: str, where: str) -> tuple[Socket, ...]:
    sockets = set()
    for number, record in _records(text):
        match, place = _LINE.fullmatch(record), f"{where}, line {number}"
        if match is None and not _OTHERS.match(record):
            raise _fault(f"no line of ss: {quote(record)}", place)
        protocol = match and (match["netid"] or ("udp" if match["state"] == "UNCONN" else "tcp"))
        if match and protocol and match["state"] == _WAITING[protocol]:
            sockets.add(_ss_socket(protocol, match, place))
    if not sockets:
        raise _fault("no listening socket in it", where)
    return tuple(sorted(sockets))


def _records(text: str) -> Iterator[tuple[int, str]]:
    """(line number, record): a line, and those after it that a line feed in a process' name has cut off."""
    held, at = "", 0
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if held and not _is_whole(held) and not _LINE.fullmatch(line):
            held += "\n" + line
            continue
        if line.startswith("\t"):  # what `ss -m` and `ss -i` say of the line before
            continue
        if held:
            yield at, held
        held, at = (line, number) if line.strip() and not _is_header(line) else ("", 0)
    if held:
        yield at, held.rstrip("\n")


def _is_header(line: str) -> bool:
    return line.split()[:1] in (["Netid"], ["State"]) and "Recv-Q" in line


def _is_whole(record: str) -> bool:
    return "users:((" not in record or bool(_users(record))


class _User(NamedTuple):
    pid: int
    name: str
    end: int


def _users(record: str) -> list[_User]:
    """The processes in `users:((…))`; none where it does not read to its end.

    A process calls itself what it wants, even `",pid=1,fd=3),(`. Its 15 bytes are too few for what else would
    have to stand there, so of all ways to divide the list the one that comes out at its end is right.
    """
    waiting = [_candidates(record, record.find("users:(") + len("users:("))]
    chosen: list[_User] = []
    failed: set[int] = set()
    while waiting:
        user = next((one for one in waiting[-1] if one.end not in failed), None)
        if user is None:
            waiting.pop()
            failed |= {chosen.pop().end} if chosen else set()
        elif _LIST_END.match(record, user.end):
            return [*chosen, user]
        elif record.startswith(",", user.end):
            chosen.append(user)
            waiting.append(_candidates(record, user.end + 1))
    return []


def _candidates(record: str, at: int) -> Iterator[_User]:
    """Every way to read one process here, the shortest name first."""
    begin = at + len('("')
    for end in range(begin, begin + _LONGEST_NAME + 1) if record.startswith('("', at) else ():
        match = _NAME_END.match(record, end)
        if match:
            yield _User(int(match[1]), record[begin:end], match.end())


def _ss_socket(protocol: str, match: re.Match[str], where: str) -> Socket:
    address, _, port = match["local"].rpartition(":")
    users = _users(match["rest"]) if "users:(" in match["rest"] else []
    owner = min(users, key=lambda user: (user.pid == 1, user), default=_User(0, "", 0))
    return Socket(protocol, _address(address, where), _port(port, protocol, where), owner.name, owner.pid)


def _address(text: str, where: str) -> str:
    """`*`, `[::]`, `127.0.0.53%lo`, `[fe80::1]%eth0`, `[::ffff:10.0.0.1]`, `::` as old versions have it."""
    bare = text.partition("%")[0].strip("[]")
    if bare == "*":
        return "*"
    try:
        return _unmapped(ipaddress.ip_address(bare))
    except ValueError:
        raise _fault(f"{quote(text)} is no IP address", where) from None


def _port(text: str, protocol: str, where: str) -> int:
    if text.isascii() and text.isdecimal() and 0 < int(text[:6]) < 65536:
        return int(text)
    try:
        return socket.getservbyname(text, protocol)
    except OSError:
        raise _fault(f"{quote(text)} is no port that is known here", where, "run ss with -n") from None


# ---- comparing: tables ----

#: port → what it is, where that is said: RKE2 binds it to loopback unless told otherwise
LOOPBACK_PORTS = {
    2381: ("etcd's metrics", "k3s pkg/etcd/etcd.go listenMetricsURLs; etcd-expose-metrics opens it"),
    2382: ("etcd's plain HTTP", "k3s pkg/etcd/etcd.go listenClientHTTPURLs"),
    6444: ("the agent's own load balancer", "docs.rke2.io reference/server_config"),
    9098: ("Typha's health", "projectcalico config_params HealthHost"),
    9099: ("Felix's health", "projectcalico config_params HealthHost"),
    10010: ("containerd's streaming", "k3s pkg/daemons/agent/agent_linux.go"),
    10248: ("the kubelet's health", "k3s pkg/daemons/agent/agent_linux.go"),
    10249: ("kube-proxy's metrics", "kubernetes kube-proxy --metrics-bind-address"),
    10256: ("kube-proxy's health", "k3s pkg/daemons/agent/agent_linux.go"),
    10257: ("kube-controller-manager", "k3s pkg/daemons/control/server.go"),
    10258: ("cloud-controller-manager", "k3s pkg/daemons/control/server.go"),
    10259: ("kube-scheduler", "k3s pkg/daemons/control/server.go"),
}

#: (protocol, port) → what it is, where that is said: RKE2 itself opens it, though no table has it
KNOWN_PORTS = {
    ("tcp", 5001): ("the embedded registry mirror", "docs.rke2.io install/registry_mirror"),
    ("udp", 5001): ("the embedded registry mirror", "docs.rke2.io install/registry_mirror"),
    ("tcp", 8081): ("flanneld's health", "rke2-charts canal values, flannel main.go"),
    ("tcp", 9091): ("Felix's metrics", "rke2-charts canal values"),
}

#: (protocol, port) → when silence is no fault, and where that is said
SILENT_PORTS = {
    ("tcp", 2379): (
        "with all servers in one role each apiserver asks its own node's etcd",
        "k3s pkg/etcd/etcd.go",
    ),
    ("tcp", 2381): ("it is bound to loopback by default", "k3s pkg/etcd/etcd.go listenMetricsURLs"),
    ("tcp", 9098): ("Typha's health is asked on loopback", "projectcalico config_params HealthHost"),
    ("tcp", 9099): ("Felix's health is asked on loopback", "rke2-charts canal values"),
    ("tcp", 179): ("BGP is off by default", "rke2-charts calico values"),
    ("tcp", 5001): ("the embedded registry is off by default", "docs.rke2.io install/registry_mirror"),
    ("udp", 51820): ("WireGuard is off by default", "docs.rke2.io networking"),
    ("udp", 51821): ("WireGuard is off by default", "docs.rke2.io networking"),
    ("udp", 51871): ("WireGuard is off by default", "docs.cilium.io security/network/encryption-wireguard"),
    ("udp", 8472): ("no pod asks one on another node, or WireGuard is on", "flannel backends"),
    ("udp", 4789): ("no pod asks one on another node, or another backend is on", "flannel backends"),
    ("tcp", 30000): ("no node asks a NodePort", "kubernetes Service, type NodePort"),
}

#: (protocol, port) → why a node that serves it may have no socket for it
NO_SOCKET_PORTS = {
    **{key: why for key, (why, _) in SILENT_PORTS.items() if key not in (("tcp", 2379), ("tcp", 30000))},
    ("tcp", 5473): "Typha runs on some nodes only",
    ("tcp", 4240): "Cilium's health checks may be off",
}
#: port → role that serves it: the tables' "server" is both (docs.rke2.io install/server_roles)
_SERVED_BY = {6443: "control-plane", 9345: "control-plane", 2379: "etcd", 2380: "etcd"}
#: those of them that any server may have open: the supervisor runs beside etcd alone too, and others join
#: through it (docs.rke2.io install/server_roles, k3s-io/k3s#2772)
_ANY_SERVER = (9345,)

#: what is wrong → severity
_SEVERITIES = {
    "loopback": "medium",
    "role": "medium",
    "missing": "medium",
    "unlisted": "low",
    "known": "info",
    "silent": "info",
}
_EPHEMERAL = 32768  # from here on a UDP socket may be a client's (Documentation/networking/ip-sysctl.rst)


def compare(analysis: Analysis, sockets: Sequence[Listening]) -> pd.DataFrame:
    """What the nodes listen on against the rules and the flows, as findings of the kind `listener`
    (:data:`analyzer.findings.COLUMNS`). Raises ClusterError where sockets are of a node that is not in the
    cluster.
    """
    remarks = remark(analysis.flows, analysis.cluster, analysis.spec, analysis.coverage, sockets)
    return remarked(remarks, analysis.flows, analysis.cluster, analysis.spec)


def remark(
    judged: pd.DataFrame,
    cluster: Cluster,
    spec: Spec,
    coverage: Sequence[Coverage],
    sockets: Sequence[Listening],
) -> list[Remark]:
    """The same before it is made a table."""
    found: list[Remark] = []
    for node, of in _by_node(cluster, sockets):
        found += _of_sockets(node, of, spec)
        found += _missing(node, of, spec)
    return [*found, *_silent(judged, cluster, spec, coverage)]


def crossing(analysis: Analysis, sockets: Sequence[Listening]) -> pd.DataFrame:
    """Documented × listening × observed, a row for each rule: rule, protocol, ports, description, `serving`
    (nodes whose role serves it), `listed` (of how many of those the sockets are known), `listening` (how many
    listen beyond loopback), flows (between nodes), `silence` (why it would be no fault).
    """
    listed = _by_node(analysis.cluster, sockets)
    rows = [_crossed(rule, analysis, listed) for rule in analysis.spec.rules]
    return pd.DataFrame(rows)


def _crossed(rule: Rule, analysis: Analysis, listed: list[tuple[Node, Listening]]) -> dict[str, Any]:
    serving = [node for node in analysis.cluster.nodes if _serves(rule, node)]
    of = [(node, sockets) for node, sockets in listed if node in serving]
    return {
        "rule": rule.id,
        "protocol": rule.protocol,
        "ports": rule.ports,
        "description": rule.description,
        "serving": len(serving),
        "listed": len(of),
        "listening": sum(any(_covers(rule, s) and _is_open(s, n) for s in all_.sockets) for n, all_ in of),
        "flows": _flows_of(rule, analysis.flows),
        "silence": SILENT_PORTS.get((rule.protocol, rule.first_port), ("", ""))[0],
    }


# ---- comparing: sockets ----


def _by_node(cluster: Cluster, sockets: Iterable[Listening]) -> list[tuple[Node, Listening]]:
    """Each node's sockets; several lists of one node add up."""
    nodes = {node.name: node for node in cluster.nodes}
    found: dict[str, Listening] = {}
    for one in sockets:
        if one.node not in nodes:
            raise ClusterError(
                f"no node is called {quote(one.node)}",
                where=one.source,
                next_step=f"there are {', '.join(list(nodes)[:10])}: name a file of ss by one of them; JSON "
                "names its node itself, write it with `rke2-flows listeners --node NAME`",
            )
        before = found.get(one.node, Listening(one.node, (), one.time, one.source))
        found[one.node] = Listening(
            one.node, tuple(sorted({*before.sockets, *one.sockets})), one.time, before.source
        )
    return [(nodes[name], found[name]) for name in sorted(found)]


def _is_open(one: Socket, node: Node) -> bool:
    """Whether other nodes reach it at an address that the cluster file knows."""
    return one.is_everywhere or one.address in node.addresses


def _covers(rule: Rule, one: Socket) -> bool:
    return rule.protocol == one.protocol and rule.first_port <= one.port <= rule.last_port


def _is_for_nodes(rule: Rule) -> bool:
    """Whether any node serves it; what nodes only ask outside is no port of theirs."""
    return bool(set(rule.servers) - {"external"})


def _serves(rule: Rule, node: Node) -> bool:
    mask = ROLE_BITS[node.role] & role_mask(rule.servers)
    narrow = _SERVED_BY.get(rule.first_port) if rule.protocol == "tcp" else None
    return bool(mask) and (narrow is None or node.role == "agent" or bool(mask & ROLE_BITS[narrow]))


def _may_serve(rule: Rule, node: Node) -> bool:
    """Whether its socket is no surprise, expected or not."""
    any_server = rule.protocol == "tcp" and rule.first_port in _ANY_SERVER
    return _serves(rule, node) or (any_server and bool(ROLE_BITS[node.role] & role_mask(rule.servers)))


def _of_sockets(node: Node, of: Listening, spec: Spec) -> Iterator[Remark]:
    """One remark for each protocol and port that should not be open as it is."""
    together: dict[tuple[str, int], list[Socket]] = defaultdict(list)
    for one in of.sockets:
        if _is_open(one, node):
            together[one.protocol, one.port].append(one)
    for (protocol, port), ones in sorted(together.items()):
        rules = [rule for rule in spec.rules if _covers(rule, ones[0]) and _is_for_nodes(rule)]
        reason = _reason(protocol, port, node, rules)
        if reason:
            what, advice = _words(reason, node, protocol, port, ones, spec)
            rule = rules[0].id if rules else ""
            yield Remark(
                reason, _SEVERITIES[reason], node.name, protocol, port, what, advice, rule, of.source
            )


def _reason(protocol: str, port: int, node: Node, rules: list[Rule]) -> str:
    """What is wrong with it, empty where nothing is."""
    may_be_client = protocol == "udp" and port >= _EPHEMERAL
    cases = (
        (protocol == "tcp" and port in LOOPBACK_PORTS, "loopback"),
        (any(_may_serve(rule, node) for rule in rules), ""),
        (bool(rules), "role"),
        ((protocol, port) in KNOWN_PORTS, "known"),
        (may_be_client, ""),
        (True, "unlisted"),
    )
    return next(reason for holds, reason in cases if holds)


_WORDS = {
    "loopback": (
        "{node} ({role}) listens on {port} {where}, which RKE2 binds to loopback: {owner}",
        "It is {meaning}, meant for the node alone ({source}). Bind it to loopback again, or, where it is "
        "meant to be open, let only those reach it who need it.",
    ),
    "role": (
        "{node} ({role}) listens on {port} {where}, which the table has, but not for {role}s: {owner}",
        "Find out what it is: a leftover of another role, or something that stands in for a server. "
        "`ss -tulpn 'sport = :{number}'` on the node shows the process.",
    ),
    "known": (
        "{node} ({role}) listens on {port} {where}, which is in no rule: {owner}",
        "RKE2 opens it itself: {meaning} ({source}). Write a rule for it in a specification that extends "
        "{spec}, or close it to other machines.",
    ),
    "unlisted": (
        "{node} ({role}) listens on {port} {where}, which is in no rule: {owner}",
        "Whoever reaches the node reaches it. If it is meant to be asked, write a rule for it in a "
        "specification that extends {spec}; if not, bind it to loopback or stop it.",
    ),
}


def _words(
    reason: str, node: Node, protocol: str, port: int, ones: list[Socket], spec: Spec
) -> tuple[str, str]:
    everywhere = any(one.is_everywhere for one in ones)
    owners = sorted({(one.process, one.pid) for one in ones if one.process})
    told = [f"{_printable(name)} (pid {pid})" for name, pid in owners[:3]]
    table: dict[Any, tuple[str, str]] = {**LOOPBACK_PORTS, **KNOWN_PORTS}
    meaning, source = table.get(port) or table.get((protocol, port)) or ("", "")
    words = {
        "node": node.name,
        "role": node.role,
        "port": f"{protocol}/{port}",
        "number": str(port),
        "where": "on all its addresses"
        if everywhere
        else f"on {', '.join(sorted({one.address for one in ones}))}",
        "owner": ", ".join(told) or "the kernel, or a process that was not seen",
        "meaning": meaning,
        "source": source,
        "spec": spec.name,
    }
    title, advice = _WORDS[reason]
    return title.format(**words), advice.format(**words)


def _printable(text: str) -> str:
    return "".join(ch if ch.isprintable() else f"\\x{ord(ch):02x}" for ch in text)


# ---- comparing: rules ----


def _missing(node: Node, of: Listening, spec: Spec) -> Iterator[Remark]:
    """A port of a rule of its own that this node's role serves, and nothing that listens for it; of several
    such rules the first one's.
    """
    expected: dict[tuple[str, int], Rule] = {}
    for rule in spec.rules:
        if rule.protocol in _PROTOCOLS and rule.first_port == rule.last_port and _serves(rule, node):
            expected.setdefault((rule.protocol, rule.first_port), rule)
    for (protocol, port), rule in expected.items():
        if (protocol, port) in NO_SOCKET_PORTS:
            continue
        mine = [one for one in of.sockets if _covers(rule, one)]
        if any(_is_open(one, node) for one in mine):
            continue
        bound = ", ".join(sorted({one.address for one in mine}))
        where = f"only on {bound}" if bound else "not at all"
        what = (
            f"{node.name} ({node.role}) listens on {protocol}/{port} {where}, though it should serve "
            f"it ({rule.description or rule.id})"
        )
        yield Remark(
            "missing",
            _SEVERITIES["missing"],
            node.name,
            protocol,
            port,
            what,
            _MISSING_ADVICE,
            rule.id,
            of.source,
        )


_MISSING_ADVICE = (
    "Who asks it is refused. Look whether the service runs there (systemctl status rke2-server or "
    "rke2-agent, crictl ps), whether the node has the role that the cluster file gives it, and whether the "
    "sockets were listed in the host's network namespace."
)


def _silent(
    judged: pd.DataFrame, cluster: Cluster, spec: Spec, coverage: Sequence[Coverage]
) -> Iterator[Remark]:
    """Rules that no flow between nodes used, where the captures would have shown one and silence is not
    normal.
    """
    captured = _captured(judged, cluster, coverage)
    for rule in spec.rules:
        pairs = _pairs(rule, cluster)
        seen = all(client in captured or server in captured for client, server in pairs)
        normal = (rule.protocol, rule.first_port) in SILENT_PORTS
        if pairs and seen and not normal and not _flows_of(rule, judged):
            ports = f"{rule.protocol}/{rule.ports}"
            what = (
                f"{ports} ({rule.description or rule.id}) is in the table and no flow between nodes used it"
            )
            port = rule.first_port if rule.first_port == rule.last_port else 0
            yield Remark(
                f"silent {rule.id}",
                _SEVERITIES["silent"],
                "",
                rule.protocol,
                port,
                what,
                _SILENT_ADVICE,
                rule.id,
                coverage[0].source,
            )


_SILENT_ADVICE = (
    "Of any two nodes that could use it one at least was captured. Either the capture is too short, or "
    "nobody uses it: then a firewall need not let it through."
)


def _pairs(rule: Rule, cluster: Cluster) -> list[tuple[str, str]]:
    """(client, server) of the different nodes between which the rule allows it."""
    clients = [node.name for node in cluster.nodes if ROLE_BITS[node.role] & role_mask(rule.clients)]
    servers = [node.name for node in cluster.nodes if _serves(rule, node)]
    return [(client, server) for client in clients for server in servers if client != server]


def _flows_of(rule: Rule, judged: pd.DataFrame) -> int:
    """How many flows between nodes the rule's port has, with whatever roles. An ICMP reply's type is used by
    the flows of its request that were answered.
    """
    used = judged["rule"].astype(str) == rule.id
    replies = REPLIES.get(PROTOCOL_NUMBERS[rule.protocol], {})
    asked = [ask for ask, reply in replies.items() if rule.first_port <= reply <= rule.last_port]
    if asked:
        requests = (judged["protocol"].astype(str) == rule.protocol) & judged["client_port"].isin(asked)
        used |= requests & (judged["packets_in"] > 0)
    return int((used & (judged["scope"].astype(str) == "inter-node")).sum())


def _captured(judged: pd.DataFrame, cluster: Cluster, coverage: Sequence[Coverage]) -> set[str]:
    """Nodes of which a whole capture is there: nothing lost, damaged or left out, both directions."""
    deaf = deaf_sources(by_file(unseen(judged), {ledger.source for ledger in coverage}))
    gaps = ("lost", "overflow", "damage", "not_chosen")
    whole = [c for c in coverage if c.frames and not any(getattr(c, name) for name in gaps)]
    whole = [c for c in whole if c.source not in deaf]
    return {name for c in whole if (name := capturing_node(c.source, cluster.members))}
