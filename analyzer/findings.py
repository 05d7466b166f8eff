"""Verdicts → findings. Rule: pure; the kinds, their severities and their words are tables.

A finding is one (kind, client, server, protocol, port), however many flows it stands for; its id depends on
nothing else, so that it is the same in every run. Who is part of a scan is settled first: the thousand
refused ports of one client are one finding.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer import clocks
from analyzer._witness import capture_ends, capturing_node
from analyzer.facts import parse_drops
from analyzer.given import given
from analyzer.spec import PROTOCOLS, ROLE_BITS, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from analyzer.cluster import Cluster
    from analyzer.rows import Coverage

Rows = npt.NDArray[np.intp]
"""Positions in the judged table, ascending."""
Unseen = Counter[tuple[str, str]]
"""(what was not seen, observer) → how much it shows; see :func:`unseen`."""
Deaf = dict[str, tuple[str, str]]
"""Captures that do not hold what was answered: name → what is said of it, and what to do."""

#: column → what it holds
COLUMNS = {
    "id": "the same for the same kind, pair, protocol and port in every run",
    "kind": "`violation`, `blocked`, `exposure`, `foreign-tunnel`, `scan`, `listener`, `blind-spot`",
    "severity": "`critical`, `high`, `medium`, `low`, `info`",
    "title": "one sentence: who did what",
    "client": "node, or the address where it is no node; empty for a blind spot",
    "client_role": "role of the client, `outside` for an address that is no node",
    "server": "node, or `(n nodes)` for a scan of several",
    "server_role": "role of the server",
    "protocol": "as in the flow table; empty where several",
    "port": "server's port, for ICMP the type; 0 where several",
    "rule": "id of the rule that names the port; empty where none does",
    "verdict": "of the flows",
    "flows": "how many flows it stands for",
    "packets": "their packets, both directions",
    "bytes": "their IP bytes, both directions",
    "first_seen": "start of the earliest flow, UTC",
    "last_seen": "end of the latest flow, UTC",
    "outcomes": "what became of the flows: outcome → how many",
    "evidence": "up to three places to look: capture and frame number",
    "advice": "what it probably means and what to do",
}
SEVERITIES = ("critical", "high", "medium", "low", "info")
#: of a judged flow table, what findings rest on
NEEDED = (
    *("source", "witnesses", "client", "client_port", "server", "server_port", "protocol", "tunnel"),
    *("start", "end", "packets_out", "packets_in", "bytes_out", "bytes_in", "outcome", "first_frame"),
    *("process", "pid", "pod", "drops", "client_node", "server_node", "client_role", "server_role"),
    *("scope", "rule", "verdict"),
)
#: without them a reset is an answer
_FLAGS = ("tcp_flags_out", "tcp_flags_in")

#: kind → (title, what it probably means and what to do)
KINDS = {
    "violation": (
        "{client} ({client_role}) {reached} {server} ({server_role}) on {port}, {verdict_words}",
        "Find out what on the client does this. If it is meant to be, write a rule for it in a specification "
        "of your own that extends {spec}; if not, close the port between these two nodes.",
    ),
    "blocked": (
        "{client} ({client_role}) {gets} through to {server} ({server_role}) on {port}{rule_words}: "
        "{outcomes}{answered}{dropped}",
        "The table allows it. {where}",
    ),
    "exposure": (
        "{client} (outside the cluster) is answered by {server} ({server_role}) on {port}{rule_words}",
        "Close the port to addresses that are no node, or, where it is meant to be open, write a rule with "
        "`clients: [external]`.",
    ),
    "foreign-tunnel": (
        "{client} (no node of the cluster) sends tunnel traffic to {server} ({server_role}) on {port}",
        "{what_of_it} Let only nodes reach this port; or, if the address belongs to a node, add it to the "
        "cluster file.",
    ),
    "scan": (
        "{client} ({client_role}) tried {targets} of {server}, mostly in vain: {outcomes}",
        "One client that tries many ports or many nodes is a scanner, or a program with a wrong list of "
        "targets. Find the process.",
    ),
    "listener": ("{what}", "{advice}"),
    "blind-spot": ("{client}: {what}", "{advice}"),
}

_VERDICT_WORDS = {
    "wrong-pair": "which the table has, but not for {client_role} → {server_role}",
    "wrong-protocol": "a port that the table has for another protocol",
    "unlisted": "which is not in the table",
}
FAILED = ("refused", "unreachable", "unanswered")
_TUNNEL_PORTS = (4789, 6081, 8472, 51820, 51821, 51871)
_WIREGUARD_PORTS = (51820, 51821, 51871)
_ETCD_PORTS = (2379, 2380, 2381)
_JOIN_PORTS = (6443, 9345)
_NODE_PORTS = range(30000, 32768)

#: (what it is, whether it got through) → severity of a violation; the first test that holds names what it is
_VIOLATION_TESTS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    (
        "etcd by an agent",
        lambda f: f["port"] in _ETCD_PORTS and f["client_role"] == "agent" and f["protocol"] == "tcp",
    ),
    (
        "server to server join",
        lambda f: f["port"] in _JOIN_PORTS and _both_servers(f) and f["protocol"] == "tcp",
    ),
    ("wrong-pair", lambda f: f["verdict"] == "wrong-pair"),
    ("wrong-protocol", lambda f: f["verdict"] == "wrong-protocol"),
    ("unlisted", lambda f: True),
)
_VIOLATION_SEVERITY = {
    ("etcd by an agent", True): "critical",
    ("etcd by an agent", False): "high",
    ("server to server join", True): "low",
    ("server to server join", False): "low",
    ("wrong-pair", True): "high",
    ("wrong-pair", False): "medium",
    ("wrong-protocol", True): "medium",
    ("wrong-protocol", False): "low",
    ("unlisted", True): "medium",
    ("unlisted", False): "low",
}
_JOIN_ADVICE = (
    "Real clusters need it: servers join through 9345 and keep a tunnel to every apiserver. Upstream's table "
    "has allowed all nodes since 2025-07-28 (rancher/rke2-docs ff8d0c2); judge with --spec "
    "rke2-canal-2025-07-28 if that is the table you mean."
)
#: port → severity of a blocked flow; others are medium. Those that bind to loopback by default refuse when
#: all is well.
_BLOCKED_SEVERITY = {
    6443: "high",
    9345: "high",
    2379: "high",
    2380: "high",
    8472: "high",
    4789: "high",
    6081: "high",
    51820: "high",
    51821: "high",
    51871: "high",
    2381: "info",
    9098: "info",
    9099: "info",
}
_LOOPBACK_PORTS = (2381, 9098, 9099)
#: port → severity of being answered from outside; NodePorts are there for that, 6443 is where kubectl comes
#: in
_EXPOSURE_SEVERITY = {
    6443: "low",
    9345: "medium",
    10250: "critical",
    2379: "critical",
    2380: "critical",
    2381: "critical",
}

#: failing flows of one client that make a scan: distinct ports of one node, or distinct nodes on one
#: unlisted port
SCAN_PORTS = 20
SCAN_NODES = 10
_SCAN_GAP = 5 * 10**9  # ns
#: a single unanswered packet so short before the capture's end proves nothing: TCP asks again after 1 s (RFC
#: 6298)
_GRACE = 10**9  # ns
_SEVERAL_PACKETS = 3  # of which one is neither the first nor the last
#: external clients of one port of one node, above which they are one finding, and what it calls them
MANY_CLIENTS = 50
MANY = "(many addresses)"

#: the kernel's name for why it dropped a packet (include/net/dropreason-core.h) → what it means and what to
#: do; one that is not here is told by its name alone
DROP_REASONS = {
    "NETFILTER_DROP": "a firewall rule on {node} drops it; see `nft list ruleset` or `iptables-save` there",
    "NO_SOCKET": "nothing on {node} listens on that port; look at the service there",
    "TCP_LISTEN_OVERFLOW": "the service on {node} accepts connections slower than they come, its backlog is "
    "full; look at its load, and at net.core.somaxconn",
    "IP_RPFILTER": "{node}'s route back to the sender leaves through another interface; look at its routes, "
    "and at net.ipv4.conf.*.rp_filter",
    "SOCKET_RCVBUFF": "the service on {node} reads slower than packets come, its receive buffer is full",
    "SOCKET_BACKLOG": "the service on {node} handles packets slower than they come, its backlog is full",
    "SOCKET_FILTER": "a program on {node} has put a filter on its socket that drops it",
    "PROTO_MEM": "{node}'s memory for sockets is used up; look at net.ipv4.tcp_mem and udp_mem",
    "NOMEM": "{node} is out of memory",
    "NEIGH_FAILED": "{node} gets no answer to its ARP or neighbour requests; the next hop is down or on "
    "another link",
    "NEIGH_QUEUEFULL": "{node} waits for the next hop's hardware address, which does not come",
    "IP_OUTNOROUTES": "{node} has no route to where it goes; see `ip route` there",
    "IP_INNOROUTES": "{node} has no route for what came in; see `ip route` there, and whether it forwards",
    "IP_INADDRERRORS": "the address is none of {node}'s, and {node} does not forward it",
    "PKT_TOO_BIG": "it is larger than the next link's MTU, as a tunnel's is; compare the MTUs on the way",
    "QDISC_DROP": "a queue or a traffic limit on {node}'s interface drops it; see `tc -s qdisc` there",
    "QDISC_OVERLIMIT": "a queue on {node}'s interface is full; see `tc -s qdisc` there",
    "CPU_BACKLOG": "{node} handles packets slower than they come; look at net.core.netdev_max_backlog",
    "XFRM_POLICY": "an IPsec policy on {node} does not let it through; see `ip xfrm policy` there",
    "XDP": "an XDP program on {node} drops it; see `bpftool net` there",
    "TC_INGRESS": "a tc program on {node}, a CNI's for one, drops what comes in; see `bpftool net` there",
    "TC_EGRESS": "a tc program on {node}, a CNI's for one, drops what goes out; see `bpftool net` there",
    "BPF_CGROUP_EGRESS": "an eBPF program on the sender's cgroup on {node} drops it",
    "SECURITY_HOOK": "a security module on {node}, SELinux for one, drops it",
    "IPV6DISABLED": "IPv6 is off on {node}'s interface",
}
_TAKEN = ("TCP_RESET",)  # names of what was taken in and done with: an answer, not a loss
_MANY_REASONS = 3
_MANY_OWNERS = 3
PLACES = 3

_MORE_SNAPLEN = "Capture with a larger snaplen: 160 bytes hold all headers."
_MORE_FOR_TUNNELS = "Capture with a larger snaplen: 160 bytes hold all headers, those in a tunnel too."
#: count in the ledger → (severity, what it is, what to do); what to do tells ids apart (`_REASONS`)
_BLIND_SPOTS = {
    "lost": (
        "medium",
        "frames were lost before they were written",
        "Capture with a larger buffer (tcpdump -B), or fewer bytes a frame.",
    ),
    "truncated": ("medium", "frames are cut off within their headers", _MORE_SNAPLEN),
    "unsupported": (
        "medium",
        "frames have a link type that is not known",
        "Capture on an Ethernet interface, or with -i any.",
    ),
    "malformed": (
        "low",
        "frames contradict themselves",
        "Look at them in Wireshark; a few may be damage, many are an attack or a bug.",
    ),
    "fragment": (
        "low",
        "later fragments belong to datagrams whose first fragment, which has the ports, was not seen",
        "Capture for longer, or where datagrams are still whole.",
    ),
    "inner_truncated": ("low", "packets in tunnels are cut off within their headers", _MORE_FOR_TUNNELS),
    "inner_malformed": ("low", "packets in tunnels contradict themselves", "Look at them in Wireshark."),
    "overflow": (
        "medium",
        "frames came when the flow table was full, so their flows are not known",
        "Live: a shorter --interval empties the table sooner. A file: split it by time; so many 5-tuples are "
        "often a flood of spoofed addresses.",
    ),
    "inner_overflow": (
        "low",
        "packets in tunnels came when the flow table was full",
        "Live: a shorter --interval empties the table sooner. A file: split it by time.",
    ),
    "alerts_lost": (
        "low",
        "alerts were lost, there being more than could be taken",
        "What they were about is in the flows and findings all the same.",
    ),
    "drops_lost": (
        "low",
        "packets that the kernel dropped found no room in its table, so `drops` does not tell of them",
        "Packets, bytes and verdicts do not hang on it. So many 5-tuples dropped at once are often a scan or "
        "a flood against a firewall.",
    ),
}
_MISSING_ADVICE = (
    "This node could not observe it; flows and verdicts do not hang on it. `rke2-flows doctor`, run there, "
    "says what to do."
)
_CLOCK_ADVICE = (
    "Times in it do not fit the others': with intervals, as live captures have, what both saw may be counted "
    "twice, and nothing is said to be lost on its way to or from this node. Set the nodes' clocks by NTP and "
    "capture again; or shift the file: `editcap -t SECONDS IN OUT`, with a minus sign where it is ahead."
)
_DAMAGE_ADVICE = "What comes after it was not read. Copy or record the capture again."
_DEAF = (
    "only one direction of the conversations is in it, so what was not answered cannot be told",
    "Capture on the node's own uplink, or mirror both directions of the switch port.",
)
_FLAGLESS = (
    "of {} TCP's flags are not in it, so what was refused cannot be told from what was answered",
    "Capture with a larger snaplen: 160 bytes hold all headers, TCP's flags too.",
)
_SYNS = (
    "no connection in it goes on after its SYN, so what was not answered cannot be told",
    "Capture without a filter on TCP's flags: it leaves out the answers.",
)
_ANOTHER_CLUSTER = (
    "none of the {} flows has a node of this cluster at either end, so that nothing was judged",
    "Give the file of the cluster that was captured, with all addresses of its nodes; and capture on the "
    "uplink of a node, not where only pods talk.",
)
_EMPTY = ("it holds no frames", "Check the interface and the capture filter.")
_NO_ROWS: Rows = np.zeros(0, np.intp)
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_NEVER, _LAST = np.iinfo(np.int64).min, np.iinfo(np.int64).max  # NaT, and after all times


@dataclass
class _Draft:
    """A finding before its id, words and severity."""

    kind: str
    severity: str
    rows: Rows
    client: str
    server: str
    protocol: str = ""
    port: int = 0
    words: dict[str, str] = field(default_factory=dict)
    advice: str = ""
    #: columns that do not come from flows
    fixed: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Remark:
    """What the sockets of a node say of a port. `reason`: one word, part of the id; `node` empty: it is about
    the rule. `source`: where the sockets, or the flows, were read.
    """

    reason: str
    severity: str
    node: str
    protocol: str
    port: int
    what: str
    advice: str
    rule: str = ""
    source: str = ""


def find(
    judged: pd.DataFrame,
    cluster: Cluster,
    spec: Spec,
    coverage: Sequence[Coverage] = (),
    remarks: Sequence[Remark] = (),
    *,
    known: Unseen | None = None,
    strange: int | None = None,
) -> pd.DataFrame:
    """Judged flows and the coverage ledger to findings, the gravest first.

    `judged`: what :func:`analyzer.verdict.judge` returns; `remarks`: what
    :func:`analyzer.listeners.remark` returns. Where `judged` is what :mod:`analyzer.telling` keeps of more
    flows, `known` is :func:`unseen` and `strange` :func:`strangers` of those. Returns a DataFrame with
    :data:`COLUMNS`; `outcomes` holds dicts, `evidence` lists of dicts with `source` and `first_frame`. Raises
    CaptureError where a column lacks.
    """
    judged = given(judged, "find()", _needed(judged))
    return _table(*_drafts(judged, cluster, spec, coverage, remarks, known, strange), spec)


def _needed(judged: pd.DataFrame) -> tuple[str, ...]:
    return (*NEEDED, *(name for name in _FLAGS if name in judged))


def members(
    judged: pd.DataFrame,
    cluster: Cluster,
    spec: Spec,
    coverage: Sequence[Coverage] = (),
    remarks: Sequence[Remark] = (),
) -> dict[str, Rows]:
    """The flows that each finding counts: its id → their positions in `judged`, ascending.

    Arguments are those of :func:`find`. Positions are intp arrays, as long as the finding's `flows` says.
    """
    judged = given(judged, "members()", _needed(judged))
    _, drafts = _drafts(judged, cluster, spec, coverage, remarks)
    return {_id(draft): draft.rows for draft in drafts}


def _drafts(
    judged: pd.DataFrame,
    cluster: Cluster,
    spec: Spec,
    coverage: Sequence[Coverage],
    remarks: Sequence[Remark],
    known: Unseen | None = None,
    strange: int | None = None,
) -> tuple[FlowColumns, list[_Draft]]:
    flows = FlowColumns(judged, folded=known is not None)
    scans, seen = _scans(flows, relevant(flows))
    files = by_file(unseen(judged) if known is None else known, {ledger.source for ledger in coverage})
    deaf = deaf_sources(files)
    return flows, [
        *scans,
        *_violations(flows, seen),
        *_blocked(flows, seen, cluster, coverage, deaf),
        *_exposures(flows, seen, spec),
        *_foreign_tunnels(flows, seen),
        *_listeners(remarks, flows, cluster),
        *_blind_spots(coverage, deaf, files),
        *_another_cluster(strangers(judged) if strange is None else strange, cluster, coverage),
    ]


def remarked(remarks: Sequence[Remark], judged: pd.DataFrame, cluster: Cluster, spec: Spec) -> pd.DataFrame:
    """The findings of the kind `listener` alone."""
    flows = FlowColumns(judged)
    return _table(flows, list(_listeners(remarks, flows, cluster)), spec)


def _table(flows: FlowColumns, drafts: list[_Draft], spec: Spec) -> pd.DataFrame:
    descriptions = {rule.id: rule.description for rule in spec.rules}
    told = _measured(flows, [draft for draft in drafts if len(draft.rows)])
    measures = [next(told) if len(draft.rows) else _nothing(draft) for draft in drafts]
    rows = [
        _finding(draft, measured, descriptions, spec.name)
        for draft, measured in zip(drafts, measures, strict=True)
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    rank = table["severity"].map(SEVERITIES.index)
    order = np.lexsort((table["id"], table["port"], table["server"], table["client"], table["kind"], rank))
    return table.iloc[order].reset_index(drop=True)


# ---- which flows ----


class _Coded(NamedTuple):
    """A column of some rows: codes (n,), and the text, or number, of each code. Equal texts have one code."""

    codes: npt.NDArray[np.int64]
    names: npt.NDArray[Any]

    def values(self) -> list[Any]:
        values: list[Any] = self.names[self.codes].tolist()
        return values


class FlowColumns:
    """A judged flow table by column, for some of its rows at a time.

    Columns are those of the table, and `from`, `to` (node, or address where it is none) and `port` (for ICMP
    the type). Missing texts are empty. `folded`: it is what :mod:`analyzer.telling` keeps, whose rows may
    stand for several flows; a column of the same name in another table says nothing of the kind.
    """

    def __init__(self, judged: pd.DataFrame, *, folded: bool = False) -> None:
        self.judged, self.folded = judged, folded
        self._names: dict[str, npt.NDArray[Any]] = {}
        self._ends: dict[str, npt.NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self.judged)

    def number(self, name: str, rows: Rows) -> npt.NDArray[Any]:
        """A column of numbers, in its own dtype."""
        values: npt.NDArray[Any] = self.judged[name].to_numpy()[rows]
        return values

    def time(self, name: str, rows: Rows) -> npt.NDArray[np.int64]:
        """In ns since the epoch; :data:`_NEVER` where there is none."""
        return pd.DatetimeIndex(self.judged[name].array[rows]).as_unit("ns").asi8

    def by_start(self, rows: Rows) -> Rows:
        """The rows with the earliest first, those without a time last."""
        start = self.time("start", rows)
        return rows[np.argsort(np.where(start == _NEVER, _LAST, start), kind="stable")]

    def weights(self, rows: Rows) -> npt.NDArray[np.int64]:
        """How many flows each row stands for: one, but in what :mod:`analyzer.telling` has added up."""
        if not self.folded:
            return np.ones(len(rows), np.int64)
        return self.number("flows", rows).astype(np.int64)

    def attempts(self, rows: Rows) -> npt.NDArray[np.int64]:
        """1 for the first row of each 5-tuple, 0 for those in which it goes on, an interval each; or how many
        such first rows each stands for.
        """
        if self.folded:
            return self.number("attempts", rows).astype(np.int64)
        first = np.zeros(len(rows), np.int64)
        first[np.unique(self.numbers(rows, *_FIVE_TUPLE), return_index=True)[1]] = 1
        return first

    def shut(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether nothing but resets came back to TCP that opened nothing: a scan without SYN at a closed
        port. A reset has ACK only where what it answers has none (RFC 9293 3.10.7.1), so that a connection's
        acknowledgements are told from it.
        """
        if "shut" in self.judged:
            known: npt.NDArray[np.bool_] = self.number("shut", rows)
            return known
        if not set(_FLAGS) <= set(self.judged):
            return np.zeros(len(rows), bool)
        out, back = (self.number(name, rows) for name in _FLAGS)
        resets = (back == _RST) | ((back == (_RST | _ACK)) & (out & _ACK == 0))
        found: npt.NDArray[np.bool_] = resets & (out & _SYN == 0) & self.among("protocol", ("tcp",), rows)
        return found

    def column(self, name: str, rows: Rows) -> _Coded:
        """A column of texts, or ports."""
        return _DERIVED[name](self, rows) if name in _DERIVED else self._text(name, rows)

    def looked_up(self, name: str, value: Callable[[Any], Any], rows: Rows | None = None) -> npt.NDArray[Any]:
        """value(text) of each row, computed once for each text. All rows where `rows` is None."""
        codes, names = self._coded(name, slice(None) if rows is None else rows)
        if len(names) <= len(codes):
            values = np.array([value(text) for text in names])
        else:
            present, codes = np.unique(codes, return_inverse=True)
            values = np.array([value(text) for text in names[present]], None if len(present) else bool)
        found: npt.NDArray[Any] = values[codes]
        return found

    def among(self, name: str, texts: Collection[str], rows: Rows | None = None) -> npt.NDArray[np.bool_]:
        """Whether each row has one of the texts. All rows where `rows` is None."""
        return self.looked_up(name, texts.__contains__, rows)

    def numbers(self, rows: Rows, *by: str) -> npt.NDArray[np.int64]:
        """Number of each row's group, from 0, none left out."""
        key, size = np.zeros(len(rows), np.int64), 1
        for codes, names in (self.column(name, rows) for name in by):
            if size * len(names) >= 2**62:
                found, key = np.unique(key, return_inverse=True)
                size = len(found)
            key, size = key * len(names) + codes, size * len(names)
        return np.unique(key, return_inverse=True)[1]

    def distinct(self, rows: Rows, by: tuple[str, ...], what: tuple[str, ...]) -> npt.NDArray[np.int64]:
        """For each row, how many different `what` its group has."""
        group = self.numbers(rows, *by)
        _, first = np.unique(self.numbers(rows, *by, *what), return_index=True)
        return np.bincount(group[first])[group] if len(rows) else group

    def groups(self, rows: Rows, *by: str) -> Iterator[tuple[tuple[Any, ...], Rows]]:
        """What the rows of each group have in common, and the rows."""
        if not len(rows):
            return
        number = self.numbers(rows, *by)
        ordered = rows[np.argsort(number, kind="stable")]
        ends = np.cumsum(np.bincount(number)).tolist()
        begins = [0, *ends[:-1]]
        common = [self.column(name, ordered[begins]).values() for name in by]
        for begin, end, *values in zip(begins, ends, *common, strict=True):
            yield tuple(values), ordered[begin:end]

    def _text(self, name: str, rows: Rows) -> _Coded:
        codes, names = self._coded(name, rows)
        whole = codes.astype(np.int64)
        missing = whole < 0
        if missing.any():
            whole[missing] = names.tolist().index("")
        return _Coded(whole, names)

    def _coded(self, name: str, rows: Rows | slice) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Codes, -1 where there is no text, and texts, of which the last is empty."""
        column = self.judged[name].array
        if not isinstance(column, pd.Categorical):
            codes, texts = pd.factorize(column[rows])
            return codes, np.array([*map(str, texts), ""], object)
        if name not in self._names:
            self._names[name] = np.array([*map(str, column.categories), ""], object)
        return column.codes[rows], self._names[name]

    def _end(self, side: str, rows: Rows) -> _Coded:
        (node, nodes), (address, addresses) = (self._text(n, rows) for n in (f"{side}_node", side))
        names = np.concatenate([nodes, addresses])
        # names are those of all rows where both are categories, else of `rows` alone
        if side not in self._ends or not {f"{side}_node", side} <= self._names.keys():
            first: dict[str, int] = {}
            self._ends[side] = np.array([first.setdefault(text, n) for n, text in enumerate(names)], np.int64)
        codes = np.where(nodes[node] == "", len(nodes) + address, node)
        return _Coded(self._ends[side][codes], names)

    def _port(self, rows: Rows) -> _Coded:
        icmp = self.among("protocol", ("icmp", "icmpv6"), rows)
        ports = np.where(icmp, self.number("client_port", rows), self.number("server_port", rows))
        return _Coded(ports.astype(np.int64), _PORTS)


_PORTS = np.arange(65536)
_FIVE_TUPLE = ("client", "client_port", "server", "server_port", "protocol")
_DERIVED: dict[str, Callable[[FlowColumns, Rows], _Coded]] = {
    "from": lambda flows, rows: flows._end("client", rows),
    "to": lambda flows, rows: flows._end("server", rows),
    "port": lambda flows, rows: flows._port(rows),
    "server_port": lambda flows, rows: _Coded(flows.number("server_port", rows).astype(np.int64), _PORTS),
}


def relevant(flows: FlowColumns) -> Rows:
    """The few flows that can be in a finding: all between nodes that failed or are not allowed, and all from
    outside.
    """
    inter, external = (flows.among("scope", (scope,)) for scope in ("inter-node", "external"))
    quiet = flows.among("verdict", ("allowed",)) & flows.among("outcome", ("answered",))
    return np.flatnonzero((inter & ~quiet) | external)


# ---- scans ----


def _scans(flows: FlowColumns, rows: Rows) -> tuple[list[_Draft], Rows]:
    """One draft for each scanning client; and the flows that are not part of a scan."""
    failed = rows[in_vain(flows, rows)]
    if len(failed) < min(SCAN_PORTS, SCAN_NODES):
        return [], rows
    wide = failed[on_many_ports(flows, failed)]
    stray = failed[~flows.among("verdict", ("allowed",), failed)]
    broad = stray[flows.distinct(stray, ("from", "protocol", "port"), ("to",)) >= SCAN_NODES]
    scanning = _within(flows, rows, np.isin(rows, wide) | np.isin(rows, broad))
    drafts = [_scan(flows, client, of) for (client,), of in flows.groups(rows[scanning], "from")]
    return drafts, rows[~scanning]


def in_vain(flows: FlowColumns, rows: Rows) -> npt.NDArray[np.bool_]:
    """Whether it can be part of a scan: it failed, on a port of a member."""
    return (
        flows.among("outcome", FAILED, rows)
        & ~flows.among("server_node", ("",), rows)
        & flows.among("protocol", ("tcp", "udp"), rows)
    )


def on_many_ports(flows: FlowColumns, failed: Rows) -> npt.NDArray[np.bool_]:
    """Whether its client failed on so many ports of its server that it is a scan."""
    return flows.distinct(failed, ("from", "to"), ("protocol", "port")) >= SCAN_PORTS


def _within(flows: FlowColumns, rows: Rows, failed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Without what failed on a port of the table outside of the time of the scan, and without clients who
    mostly succeeded.
    """
    if not failed.any():
        return failed
    client, pair = flows.numbers(rows, "from"), flows.numbers(rows, "from", "to")
    tried = np.flatnonzero(np.isin(pair, pair[failed]))
    attempts, clients = np.zeros(len(rows), np.int64), client.max() + 1
    attempts[tried] = flows.attempts(rows[tried])
    often, in_all = (np.bincount(client[those], attempts[those], clients) for those in (failed, tried))
    stray, start = failed & ~flows.among("verdict", ("allowed",), rows), flows.time("start", rows)
    timed = stray & (start != _NEVER)
    first, last = (np.full(len(often), bound, np.int64) for bound in (_LAST, _NEVER))
    np.minimum.at(first, client[timed], start[timed])
    np.maximum.at(last, client[timed], start[timed])
    during = (start >= first[client] - _SCAN_GAP) & (start <= last[client] + _SCAN_GAP)
    return failed & (often * 2 > in_all)[client] & (stray | during)


def _scan(flows: FlowColumns, client: str, of: Rows) -> _Draft:
    nodes = set(flows.column("to", of).values())
    tried = set(zip(*(flows.column(name, of).values() for name in ("protocol", "port")), strict=True))
    protocols = {protocol for protocol, _ in tried}
    between = flows.among("scope", ("inter-node",), of).any()
    several = len(nodes) > 1
    return _Draft(
        "scan",
        "high" if between else "medium",
        of,
        client,
        f"({len(nodes)} nodes)" if several else nodes.pop(),
        protocols.pop() if len(protocols) == 1 else "",
        words={
            "targets": f"{len(tried)} ports" if len(tried) > 1 else "{}/{}".format(*tried.pop()),
            **({_SEVERAL: "(several nodes)"} if several else {}),
        },
    )


# ---- the other kinds ----


_PAIR_AND_PORT = ("from", "to", "protocol", "port")
_ROLES = ("client_role", "server_role")


def _violations(flows: FlowColumns, rows: Rows) -> Iterator[_Draft]:
    outside = rows[flows.among("scope", ("inter-node",), rows) & ~flows.among("verdict", ("allowed",), rows)]
    groups = list(flows.groups(outside, *_PAIR_AND_PORT))
    firsts = np.array([of[0] for _, of in groups], np.intp)
    told = [flows.column(name, firsts).values() for name in ("verdict", *_ROLES)]
    for ((client, server, protocol, port), of), *said in zip(groups, *told, strict=True):
        first = dict(zip(("verdict", *_ROLES), said, strict=True)) | {"protocol": protocol, "port": port}
        through = not (flows.among("outcome", FAILED, of) | flows.shut(of)).all()
        what = next(name for name, holds in _VIOLATION_TESTS if holds(first))
        roles = {name: first[name] or "outside" for name in _ROLES}
        words = {
            "reached": "reached" if through else "tried to reach",
            "verdict_words": _VERDICT_WORDS[first["verdict"]].format(**roles),
        }
        advice = _JOIN_ADVICE if what == "server to server join" else ""
        severity = _VIOLATION_SEVERITY[what, through]
        yield _Draft("violation", severity, of, client, server, protocol, port, words, advice)


def _both_servers(flow: Mapping[str, Any]) -> bool:
    return all(ROLE_BITS.get(flow[role], 0) & ROLE_BITS["server"] for role in _ROLES)


def _blocked(
    flows: FlowColumns,
    rows: Rows,
    cluster: Cluster,
    coverage: Sequence[Coverage],
    deaf: Deaf,
) -> Iterator[_Draft]:
    allowed = rows[flows.among("verdict", ("allowed",), rows) & flows.among("outcome", FAILED, rows)]
    files = {ledger.source for ledger in coverage}
    heard = allowed[~flows.looked_up("source", lambda name: file_of(name, files) in deaf, allowed)]
    proven = heard[~too_late(flows, heard, coverage, cluster.members)]
    got, meanwhile = np.zeros(len(flows), np.int64), np.zeros(len(flows), bool)
    got[proven] = got_through(flows, proven)
    meanwhile[proven] = watched(flows, proven, coverage, cluster.members)

    @cache
    def node_of(observer: str) -> str:
        return capturing_node(observer, cluster.members)

    captured = {node_of(ledger.source) for ledger in coverage}
    several = {name for name, _, addresses in cluster.rows() if _are_several(addresses)}
    for (client, server, protocol, port), of in flows.groups(proven, *_PAIR_AND_PORT):
        severity = _BLOCKED_SEVERITY.get(port, "medium")
        drops = _drops(flows.column("drops", of), flows.weights(of), node_of)
        dropping = {node for node, _, _ in drops}
        near = of[meanwhile[of]] if client in captured else _NO_ROWS
        seen_by = _seen_by(flows.column("witnesses", near), node_of)
        left = client in seen_by or (bool(len(near)) and client in dropping)
        where = [*_drop_advice(drops), *_where_lost(client, server, left, seen_by | dropping, several)]
        where += [
            advice
            for outcome, advice in (_OUTCOME_ADVICE if meanwhile[of].any() else _ADVICE_AFAR).items()
            if flows.among("outcome", (outcome,), of).any()
        ]
        if port in _LOOPBACK_PORTS and {reason for _, reason, _ in drops} <= {"NO_SOCKET"}:
            refused = flows.among("outcome", ("refused",), of).all()
            where = [_LOOPBACK_ADVICE] if refused else [*where, _LOOPBACK_BEHIND]
        words = {"where": " ".join(where), "dropped": _drop_words(drops), **_got_words(int(got[of[0]]))}
        yield _Draft("blocked", severity, of, client, server, protocol, port, words)


def _got_words(answered: int) -> dict[str, str]:
    """For the title: whether other flows of the same ends and port got through."""
    return {
        "gets": "does not always get" if answered else "does not get",
        "answered": f", {answered} answered" if answered else "",
    }


def got_through(flows: FlowColumns, rows: Rows) -> npt.NDArray[np.int64]:
    """How many flows of the same two nodes, protocol and port were answered; `rows`: of flows that were not,
    though they are allowed.
    """
    if "got_through" in flows.judged:
        known: npt.NDArray[np.int64] = flows.number("got_through", rows)
        return known
    if not len(rows):
        return np.zeros(0, np.int64)
    good = flows.among("verdict", ("allowed",)) & flows.among("outcome", ("answered",))
    for name in ("client_node", "server_node"):
        good &= flows.among(name, set(flows.column(name, rows).values()))
    answered = np.flatnonzero(good)
    number = flows.numbers(np.concatenate([rows, answered]), *_PAIR_AND_PORT)
    counts = np.bincount(number[len(rows) :], minlength=int(number.max()) + 1)
    return counts[number[: len(rows)]]


def watched(
    flows: FlowColumns, rows: Rows, coverage: Sequence[Coverage], nodes: Collection[str]
) -> npt.NDArray[np.bool_]:
    """Whether a capture of the server's node was running while a packet of the flow was on its way: one of
    another time, or by another clock, says nothing of it. `nodes`: names of the cluster's members.
    """
    if "watched" in flows.judged:
        known: npt.NDArray[np.bool_] = flows.number("watched", rows)
        return known
    windows: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    ends = capture_ends(coverage, nodes)
    for ledger in coverage:
        if ledger.source in ends:
            *before, (start, _) = ledger.watched or [(ledger.start, ledger.end)]
            here = windows[capturing_node(ledger.source, nodes)]
            here += [*before, (start, ends[ledger.source])]
    wrong = off_time(coverage, nodes)
    found = np.zeros(len(flows), bool)
    for (client, server), of in flows.groups(rows, "from", "to"):
        for window in () if wrong & {client, server} else windows.get(server, ()):
            found[of] |= _meets(window, flows, of)
    return found[rows]


def off_time(coverage: Sequence[Coverage], nodes: Collection[str]) -> set[str]:
    """Nodes of whose captures one has times that do not fit the others'."""
    return {capturing_node(ledger.source, nodes) for ledger in coverage if ledger.clock_offset}


def _meets(window: tuple[int, int], flows: FlowColumns, of: Rows) -> npt.NDArray[np.bool_]:
    """Its first or its last packet came by meanwhile; or it is of several, and most of its time is within:
    who asks again waits twice as long each time (RFC 6298), so that no gap is more than half of it.
    """
    (begin, until), (start, end) = window, (flows.time(name, of) for name in ("start", "end"))
    # a packet of the very end may have come after it
    ends = [(begin <= at) & (at <= until - _GRACE) for at in (start, end)]
    within = np.minimum(end, until) - np.maximum(start, begin)
    several = (start != _NEVER) & (flows.number("packets_out", of) >= _SEVERAL_PACKETS)
    met: npt.NDArray[np.bool_] = ends[0] | ends[1] | (several & (within > 0) & (2 * within >= end - start))
    return met


def _drops(
    texts: _Coded, weights: npt.NDArray[np.int64], node_of: Callable[[str], str]
) -> list[tuple[str, str, int]]:
    """(node, kernel's reason, packets) of all these flows together, the most first."""
    counts: Counter[tuple[str, str]] = Counter()
    codes, of = np.unique(texts.codes, return_inverse=True)
    how_often = np.bincount(of, weights).astype(np.int64)
    for text, times in zip(texts.names[codes].tolist(), how_often.tolist(), strict=True):
        for observer, reason, packets in parse_drops(text):
            if reason not in _TAKEN:
                counts[node_of(observer) or observer, reason] += packets * times
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(node, reason, packets) for (node, reason), packets in ordered]


def _drop_words(drops: Sequence[tuple[str, str, int]]) -> str:
    """For the title."""
    told = [f"{packets} dropped by {node} ({reason})" for node, reason, packets in drops[:_MANY_REASONS]]
    return "".join(f", {words}" for words in told)


def _drop_advice(drops: Sequence[tuple[str, str, int]]) -> Iterator[str]:
    for node, reason, packets in drops[:_MANY_REASONS]:
        meaning = DROP_REASONS.get(reason, "").format(node=node)
        yield f"{node}'s kernel dropped {packets} of its packets: {reason}{meaning and f', {meaning}'}."


_LOOPBACK_ADVICE = (
    "RKE2 binds this port to loopback unless told otherwise: being refused is the default, not a fault."
)
_LOOPBACK_BEHIND = (
    "RKE2 binds this port to loopback unless told otherwise: then nothing serves it there anyway."
)


def too_late(
    flows: FlowColumns, rows: Rows, coverage: Sequence[Coverage], nodes: Collection[str]
) -> npt.NDArray[np.bool_]:
    """Whether a flow is a single packet that had no time to be answered before its capture ended.

    `nodes`: names of the cluster's members.
    """
    last = _next_ends(flows, rows, coverage, nodes)
    single = (flows.number("packets_out", rows) <= 1) & flows.among("outcome", ("unanswered",), rows)
    end = flows.time("end", rows)
    known = (last != _NEVER) & (end != _NEVER)
    left = np.where(known, last, 0) - np.where(known, end, 0)
    too_late: npt.NDArray[np.bool_] = single & known & (left < _GRACE)
    return too_late


def _next_ends(
    flows: FlowColumns, rows: Rows, coverage: Sequence[Coverage], nodes: Collection[str]
) -> npt.NDArray[np.int64]:
    """When each flow's capture ended, or paused, after its last packet, ns; :data:`_NEVER` if not known."""
    ends = capture_ends(coverage, nodes)
    last = flows.looked_up("source", lambda name: ends.get(file_of(name, ends), _NEVER), rows)
    pauses = {ledger.source: [until for _, until in ledger.watched[:-1]] for ledger in coverage}
    number = {name: n for n, name in enumerate(pauses)}
    source = flows.looked_up("source", lambda name: number.get(file_of(name, ends), -1), rows)
    for name in [name for name, stops in pauses.items() if stops]:
        of = np.flatnonzero(source == number[name])
        stops = np.array([*pauses[name], _LAST])
        paused = stops[np.searchsorted(stops, flows.time("end", rows[of]))]
        last[of] = np.minimum(last[of], paused)
    return np.asarray(last, np.int64)


def _seen_by(witnesses: _Coded, node_of: Callable[[str], str]) -> set[str]:
    texts = witnesses.names[np.unique(witnesses.codes)].tolist()
    return {node_of(name) for text in texts for name in text.split(";")}


def _are_several(addresses: Collection[str]) -> bool:
    """Whether two are of one family: those of a dual stack are most often of one interface."""
    return max(Counter(":" in address for address in addresses).values(), default=0) > 1


def _where_lost(client: str, server: str, left: bool, seen_by: set[str], several: set[str]) -> list[str]:
    """What the observers at both ends say about where it was lost. A node whose kernel dropped it had it.
    `several`: nodes that have several addresses, and perhaps an interface that was not captured.
    """
    place = _SERVER_SAW if server in seen_by else _SERVER_DID_NOT
    doubt = [_OF_WHICH.format(server=server)] if server in several - seen_by else []
    return [place.format(client=client, server=server), *doubt] if left else []


_SERVER_SAW = (
    "It left {client} and came to {server}, as both captures show: look at {server}'s own firewall "
    "and service."
)
_SERVER_DID_NOT = (
    "It left {client} and never came to {server}, as both captures show: it is lost between {client} and "
    "{server}, unless {server}'s capture was filtered. Look at what is there: security groups, firewalls, "
    "switches, routes."
)
_OF_WHICH = "{server} has several addresses: see that it was captured on the interface of this one."
_OUTCOME_ADVICE = {
    "refused": "A reset says that nothing listens there, or that a firewall rejects with a reset.",
    "unreachable": "ICMP says that a firewall rejects it, as firewalld does, or that nothing is there.",
    "unanswered": "Silence says that a firewall drops it, or that the answer is lost.",
}
#: the same where no capture of the server shows that this is up
_ADVICE_AFAR = _OUTCOME_ADVICE | {
    "unanswered": "Silence says that a firewall drops it, that the answer is lost, or that the machine is "
    "down.",
}


def _exposures(flows: FlowColumns, rows: Rows, spec: Spec) -> Iterator[_Draft]:
    for (client, server, protocol, port), of in _from_outside(flows, rows[exposed(flows, rows, spec)]):
        ping = protocol in ("icmp", "icmpv6")
        severity = "info" if ping or port in _NODE_PORTS else _EXPOSURE_SEVERITY.get(port, "high")
        advice = _PING_ADVICE if ping else ""
        yield _Draft("exposure", severity, of, client, server, protocol, port, advice=advice)


_PING_ADVICE = (
    "Machines answer a ping unless they are told otherwise. Where it is meant to be so, write a rule with "
    "`clients: [external]`."
)


def _from_outside(flows: FlowColumns, rows: Rows) -> Iterator[tuple[tuple[Any, ...], Rows]]:
    """By pair and port; as one where a port of a server has more than :data:`MANY_CLIENTS`."""
    many = flows.distinct(rows, _PAIR_AND_PORT[1:], ("from",)) > MANY_CLIENTS
    for common, of in flows.groups(rows[many], *_PAIR_AND_PORT[1:]):
        yield (MANY, *common), of
    yield from flows.groups(rows[~many], *_PAIR_AND_PORT)


def answered_outside(flows: FlowColumns, rows: Rows) -> npt.NDArray[np.bool_]:
    """Whether a member answered it to an address that is none."""
    return (
        flows.among("scope", ("external",), rows)
        & ~flows.among("server_node", ("",), rows)
        & flows.among("outcome", ("answered",), rows)
        & ~flows.shut(rows)
        & ~_is_tunnel(flows, rows)
    )


def exposed(flows: FlowColumns, rows: Rows, spec: Spec) -> npt.NDArray[np.bool_]:
    """Whether it was answered on a port of the table that is not meant for outside."""
    served = answered_outside(flows, rows) & ~flows.among("rule", ("",), rows)
    served[served] = ~_meant_for_outside(flows, rows[served], spec)
    return served


def _is_tunnel(flows: FlowColumns, rows: Rows) -> npt.NDArray[np.bool_]:
    port = np.isin(flows.number("server_port", rows), _TUNNEL_PORTS)
    return port & flows.among("protocol", ("udp",), rows)


def _meant_for_outside(flows: FlowColumns, served: Rows, spec: Spec) -> npt.NDArray[np.bool_]:
    """`served`: of ports that a rule names. What nodes only ask outside, as 443 of a registry, is no port of
    theirs: such a rule says nothing of who may ask them.
    """
    tables = spec.compile()
    places = {name: number for number, name in enumerate(PROTOCOLS)}
    protocol = flows.looked_up("protocol", lambda name: places.get(name, 0), served).astype(np.intp)
    mask = flows.looked_up("server_role", lambda name: ROLE_BITS.get(name, 0), served).astype(np.intp)
    number = tables.port_class[protocol, flows.column("port", served).codes]
    by_nodes = (tables.allowed[:, :, 1 : ROLE_BITS["external"]] >= 0).any(axis=(1, 2)).astype(bool)
    meant: npt.NDArray[np.bool_] = tables.allowed[number, ROLE_BITS["external"], mask] >= 0
    return np.where(by_nodes[number], meant, True)


def _foreign_tunnels(flows: FlowColumns, rows: Rows) -> Iterator[_Draft]:
    for (client, server, protocol, port), of in _from_outside(flows, rows[tunnelled(flows, rows)]):
        away = bool(flows.among("outcome", ("unreachable",), of).all())
        words = {"what_of_it": _TURNED_AWAY if away else _TUNNEL_WORDS[port in _WIREGUARD_PORTS]}
        yield _Draft("foreign-tunnel", "high", of, client, server, protocol, port, words)


#: whether it is WireGuard → what a stranger's packets are
_TUNNEL_WORDS = {
    False: "Whoever can send it can put packets into the pod network.",
    True: "WireGuard takes in nothing without the key of a peer, and answers nobody else.",
}
_TURNED_AWAY = "ICMP says that it was turned away."


def tunnelled(flows: FlowColumns, rows: Rows) -> npt.NDArray[np.bool_]:
    """Whether an address that is no member sent tunnel traffic to one: what only the member sent is none."""
    sent: npt.NDArray[np.bool_] = flows.number("packets_out", rows) > 0
    return (
        sent
        & flows.among("scope", ("external",), rows)
        & ~flows.among("server_node", ("",), rows)
        & _is_tunnel(flows, rows)
    )


# ---- listening sockets ----


def _listeners(remarks: Sequence[Remark], flows: FlowColumns, cluster: Cluster) -> Iterator[_Draft]:
    """Each with the flows that other machines sent to that port of that node."""
    roles = {name: role for name, role, _ in cluster.rows()}
    asked = _asked(remarks, flows)
    for told in remarks:
        of = asked.get((told.node, told.protocol, told.port), _NO_ROWS)
        words = {"what": told.what, "advice": told.advice, "reason": told.reason}
        fixed: dict[str, object] = {
            "client_role": "",
            "server_role": roles.get(told.node, ""),
            "rule": told.rule,
            "verdict": "",
            **({} if len(of) else {"evidence": [{"source": told.source, "first_frame": 0}]}),
        }
        yield _Draft(
            "listener", told.severity, of, "", told.node, told.protocol, told.port, words, fixed=fixed
        )


def _asked(remarks: Sequence[Remark], flows: FlowColumns) -> dict[tuple[str, str, int], Rows]:
    """Flows from other machines by server, protocol and port, of the nodes and ports that are remarked on."""
    nodes, protocols, ports = (
        {getattr(told, name) for told in remarks} for name in ("node", "protocol", "port")
    )
    nodes -= {""}
    if not nodes:
        return {}
    rows = np.flatnonzero(
        flows.among("scope", ("inter-node", "external"))
        & flows.among("server_node", nodes)
        & flows.among("protocol", protocols)
    )
    rows = rows[np.isin(flows.number("server_port", rows), list(ports))]
    by = ("server_node", "protocol", "server_port")
    return {(node, protocol, port): of for (node, protocol, port), of in flows.groups(rows, *by)}


# ---- blind spots ----


def unseen(judged: pd.DataFrame) -> Unseen:
    """What shows that observers did not see all of TCP; of parts of a table it adds up.

    `answers`: how many more flows are one-way than not: their clients acknowledge what is not in the capture.
    `more than SYNs`: how many more connections were one SYN, not sent again, than were several; as many less
    as there are flows where one was answered. `flags`: how many flows show none, since the snaplen cut them
    off: behind IPv6 64 bytes hold the ports and no more.
    """
    flows = FlowColumns(judged)
    tcp = np.flatnonzero(flows.among("protocol", ("tcp",)) & flows.among("tunnel", ("",)))
    source = flows.column("source", tcp)
    seen = np.flatnonzero(np.bincount(source.codes, minlength=len(source.names)))
    names = source.names[seen].tolist()
    found: Unseen = Counter()
    for what, measure in _UNSEEN.items():
        balance = measure(flows, tcp, source).astype(np.int64)[seen].tolist()
        found.update({(what, name): count for name, count in zip(names, balance, strict=True) if count})
    return found


def _one_way_excess(flows: FlowColumns, tcp: Rows, source: _Coded) -> npt.NDArray[Any]:
    one_way = flows.among("outcome", ("one-way",), tcp)
    in_all, those = (_per_name(source, rows) for rows in (slice(None), one_way))
    return 2 * those - in_all


def _syn_excess(flows: FlowColumns, tcp: Rows, source: _Coded) -> npt.NDArray[Any]:
    unanswered = flows.among("outcome", ("unanswered",), tcp)
    silent = tcp[unanswered]
    connection = flows.numbers(silent, *_FIVE_TUPLE)
    several = np.bincount(connection, flows.number("packets_out", silent)) > 1
    firsts = np.flatnonzero(unanswered)[np.unique(connection, return_index=True)[1]]
    single, repeated = (_per_name(source, firsts[rows]) for rows in (~several, several))
    return single - repeated - _MORE_THAN_ANY * _per_name(source, ~unanswered)


def _flagless(flows: FlowColumns, tcp: Rows, source: _Coded) -> npt.NDArray[Any]:
    if not set(_FLAGS) <= set(flows.judged):
        return np.zeros(len(source.names), np.int64)
    bare = flows.number("packets_out", tcp) + flows.number("packets_in", tcp) > 0
    for name in _FLAGS:
        bare &= flows.number(name, tcp) == 0
    return _per_name(source, bare)


def _per_name(source: _Coded, rows: Any) -> npt.NDArray[np.int64]:
    """How many of the rows have each name."""
    return np.bincount(source.codes[rows], minlength=len(source.names)).astype(np.int64)


_UNSEEN: dict[str, Callable[[FlowColumns, Rows, _Coded], npt.NDArray[Any]]] = {
    "answers": _one_way_excess,
    "more than SYNs": _syn_excess,
    "flags": _flagless,
}
_MORE_THAN_ANY = 1 << 32
_FEW_SYNS = 3


def by_file(known: Unseen, files: Collection[str]) -> Unseen:
    """What was known of observers, of their captures."""
    found: Unseen = Counter()
    for (what, observer), count in known.items():
        found[what, file_of(observer, files)] += count
    return found


def deaf_sources(known: Unseen) -> Deaf:
    """Captures most of whose TCP is one-way, so that they hold one direction only; or in which no connection
    goes on after its SYN, and most have one alone: who gets no answer sends it again. `known`: of files.
    """
    syns = {
        name: _SYNS
        for (what, name), count in known.items()
        if what == "more than SYNs" and count >= _FEW_SYNS
    }
    return syns | {name: _DEAF for (what, name), count in known.items() if what == "answers" and count > 0}


def file_of(observer: str, files: Collection[str]) -> str:
    """The capture or live node of an observer, which may be one interface of it, named after a colon."""
    parts = observer.split(":")
    prefixes = [":".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in prefixes if name in files), observer.rpartition(":")[0] or observer)


def _blind_spots(coverage: Sequence[Coverage], deaf: Deaf, known: Unseen) -> Iterator[_Draft]:
    for ledger in coverage:
        for severity, packets, what, advice in _ledger_gaps(ledger, deaf, known["flags", ledger.source]):
            words = {"what": what, "advice": advice, "packets": str(packets)}
            yield _Draft("blind-spot", severity, _NO_ROWS, ledger.source, "", words=words)


def _ledger_gaps(ledger: Coverage, deaf: Deaf, bare: int) -> Iterator[tuple[str, int, str, str]]:
    if ledger.damage:
        yield "high", 0, f"the file is damaged, {ledger.damage}", _DAMAGE_ADVICE
    if not ledger.frames:
        yield ("medium", 0, *_EMPTY)
    if ledger.source in deaf:
        yield ("medium", ledger.frames, *deaf[ledger.source])
    if bare:
        what, advice = _FLAGLESS
        yield "medium", 0, what.format(f"{bare} flow{'s' * (bare > 1)}"), advice
    if ledger.clock_offset:
        what = f"its clock is {clocks.words(ledger.clock_offset)} the other captures'"
        yield "medium", 0, what, _CLOCK_ADVICE
    if ledger.missing:
        yield "info", 0, f"not observed: {ledger.missing}", _MISSING_ADVICE
    for name, (severity, what, advice) in _BLIND_SPOTS.items():
        count = getattr(ledger, name)
        if count:
            yield severity, count, f"{count} {what}", advice


def strangers(judged: pd.DataFrame) -> int:
    """How many flows there are, where none of them has a node at either end; else 0."""
    flows = FlowColumns(judged)
    none = flows.among("client_node", ("",)) & flows.among("server_node", ("",))
    return len(judged) if none.all() else 0


def _another_cluster(strange: int, cluster: Cluster, coverage: Sequence[Coverage]) -> Iterator[_Draft]:
    """Of all that was captured, not of what was chosen of it: else silence would look like health."""
    if strange and coverage and not any(ledger.not_chosen for ledger in coverage):
        what, advice = _ANOTHER_CLUSTER
        words = {"what": what.format(strange), "advice": advice, "packets": "0"}
        place: dict[str, object] = {"evidence": [{"source": coverage[0].source, "first_frame": 0}]}
        yield _Draft("blind-spot", "high", _NO_ROWS, cluster.name, "", words=words, fixed=place)


# ---- words ----


def _finding(
    draft: _Draft, measured: dict[str, Any], descriptions: Mapping[str, str], spec: str
) -> dict[str, object]:
    owners = measured.pop("owners")
    row = _identity(draft) | measured | draft.fixed
    title, advice = KINDS[draft.kind]
    words = _words(draft, row, descriptions) | {"spec": spec} | draft.words
    row["title"] = title.format(**words) + ("" if draft.kind == "listener" else _by(owners))
    row["advice"] = draft.advice or advice.format(**words)
    return row


_Owner = tuple[str, str, str]


def _by(owners: list[_Owner]) -> str:
    """Which processes it is, where nodes know: each with its pid where they are few."""
    if len(owners) > _MANY_OWNERS:
        owners = [
            (process, "", pod) for process, pod in sorted({(process, pod) for process, _, pod in owners})
        ]
    told = [_owner_words(owner) for owner in owners[:_MANY_OWNERS]]
    more = [f"{len(owners) - len(told)} more"] if len(owners) > len(told) else []
    return f", by {', '.join(told + more)}" if told else ""


def _owner_words(owner: _Owner) -> str:
    process, pid, pod = owner
    marks = [f"{name} {text}" for name, text in (("pid", pid), ("pod", pod)) if text]
    return f"{process} ({', '.join(marks)})" if marks else process


#: the word that stands in an id for a server whose name has a number, which changes with the number of nodes
_SEVERAL = "several"
#: kind → the word that tells apart what pair, protocol and port do not
_REASONS = {"blind-spot": "advice", "listener": "reason"}


def _id(draft: _Draft) -> str:
    reason = draft.words.get(_REASONS.get(draft.kind, ""), "")
    server = draft.words.get(_SEVERAL, draft.server)
    key = "|".join((draft.kind, draft.client, server, draft.protocol, str(draft.port), reason))
    return f"{draft.kind}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def _identity(draft: _Draft) -> dict[str, object]:
    return {
        "id": _id(draft),
        "kind": draft.kind,
        "severity": draft.severity,
        "client": draft.client,
        "server": draft.server,
        "protocol": draft.protocol,
        "port": draft.port,
    }


def _nothing(draft: _Draft) -> dict[str, Any]:
    """Of a finding that is about no flow."""
    roles = dict.fromkeys(("client_role", "server_role", "rule", "verdict"), "")
    return roles | {
        "flows": 0,
        "packets": int(draft.words.get("packets", 0)),
        "bytes": 0,
        "first_seen": pd.NaT,
        "last_seen": pd.NaT,
        "outcomes": {},
        "evidence": [{"source": draft.client, "first_frame": 0}],
        "owners": [],
    }


def _measured(flows: FlowColumns, drafts: Sequence[_Draft]) -> Iterator[dict[str, Any]]:
    """What the flows of each draft add up to; each has some."""
    if not drafts:
        return
    parts = _Parts(flows, [draft.rows for draft in drafts])
    columns = {
        "client_role": [role or "outside" for role in parts.first("client_role")],
        **{name: parts.common(name) for name in ("server_role", "rule", "verdict")},
        "flows": np.add.reduceat(flows.weights(parts.rows), parts.begins).tolist(),
        **{what: parts.both_ways(what) for what in ("packets", "bytes")},
        "first_seen": _moments(np.minimum.reduceat(parts.start, parts.begins)),
        "last_seen": _moments(np.maximum.reduceat(flows.time("end", parts.rows), parts.begins)),
        "outcomes": parts.outcomes(),
        "evidence": parts.evidence(),
        "owners": parts.owners(),
    }
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _moments(ns: npt.NDArray[np.int64]) -> list[Any]:
    never = ns == _LAST
    return list(pd.DatetimeIndex(np.where(never, _NEVER, ns).view("M8[ns]"), tz="UTC"))


class _Parts:
    """Several sets of rows, none empty, one after another. `begins`: where each begins, `of`: whose each is.

    `start`: of each flow; those without one come last.
    """

    def __init__(self, flows: FlowColumns, parts: Sequence[Rows]) -> None:
        self.flows, self.rows = flows, np.concatenate(parts)
        self.sizes = np.array([len(rows) for rows in parts], np.intp)
        self.begins = np.cumsum(self.sizes) - self.sizes
        self.of = np.repeat(np.arange(len(parts)), self.sizes)
        start = flows.time("start", self.rows)
        self.start = np.where(start == _NEVER, _LAST, start)

    def first(self, name: str) -> list[Any]:
        return self.flows.column(name, self.rows[self.begins]).values()

    def common(self, name: str) -> list[Any]:
        """What all flows of a set have; empty where they differ."""
        codes = self.flows.column(name, self.rows).codes
        same = np.logical_and.reduceat(codes == codes[self.begins][self.of], self.begins)
        return [text if one else "" for text, one in zip(self.first(name), same.tolist(), strict=True)]

    def both_ways(self, what: str) -> list[int]:
        out, back = (
            np.add.reduceat(self.flows.number(f"{what}_{way}", self.rows), self.begins)
            for way in ("out", "in")
        )
        sums: list[int] = (out + back).tolist()
        return sums

    def outcomes(self) -> list[dict[str, int]]:
        codes, names = self.flows.column("outcome", self.rows)
        cells, weights = self.of * len(names) + codes, self.flows.weights(self.rows)
        counts = np.bincount(cells, weights, len(self.sizes) * len(names)).astype(np.int64)
        order = sorted(range(len(names)), key=lambda code: str(names[code]))
        return [
            {names[code]: row[code] for code in order if row[code]}
            for row in counts.reshape(-1, len(names)).tolist()
        ]

    def evidence(self) -> list[list[dict[str, Any]]]:
        order = np.lexsort((self.start, self.of))
        early = order[np.arange(len(order)) - self.begins[self.of] < PLACES]
        frames = self.flows.number("first_frame", self.rows[early]).tolist()
        sources = self.flows.column("source", self.rows[early]).values()
        places = iter([{"source": s, "first_frame": f} for s, f in zip(sources, frames, strict=True)])
        return [list(islice(places, min(size, PLACES))) for size in self.sizes.tolist()]

    def owners(self) -> list[list[_Owner]]:
        """The different processes of each, with pid and pod; sorted."""
        owners: list[list[_Owner]] = [[] for _ in self.sizes]
        known = np.flatnonzero(~self.flows.among("process", ("",), self.rows))
        if len(known):
            rows = self.rows[known]
            same = self.flows.numbers(rows, "process", "pid", "pod")
            _, once = np.unique(self.of[known] * (same.max() + 1) + same, return_index=True)
            texts = [self.flows.column(name, rows[once]).values() for name in ("process", "pid", "pod")]
            for number, *owner in zip(self.of[known][once].tolist(), *texts, strict=True):
                owners[number].append((owner[0], owner[1], owner[2]))
        return [sorted(of) for of in owners]


def _words(draft: _Draft, row: Mapping[str, Any], descriptions: Mapping[str, str]) -> dict[str, str]:
    description = descriptions.get(row["rule"], "")
    return {
        "client": draft.client,
        "server": draft.server,
        "client_role": row["client_role"],
        "server_role": row["server_role"],
        "port": f"{draft.protocol}/{draft.port}"
        if draft.protocol not in ("icmp", "icmpv6")
        else f"{draft.protocol} type {draft.port}",
        "rule_words": f" ({description})" if description else "",
        "outcomes": ", ".join(f"{n} {name}" for name, n in row["outcomes"].items()),
    }
