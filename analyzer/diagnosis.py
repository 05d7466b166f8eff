"""Flows and findings → named causes. Rule: pure and vectorised; reads no packet, and names no cause that the
flow table cannot show. A signature is a row of ``SIGNATURES``: its words, and the function that looks for it.

A function takes what was seen (:class:`_Scene`) and gives the pairs that show its sign, one row each. One
cause is one row of the result, however many pairs show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyzer._witness import capturing_node
from analyzer.findings import FlowColumns, by_file, deaf_sources, file_of, off_time, unseen
from analyzer.flows import CARRIER_PORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from analyzer.analysis import Analysis

#: column → what it holds
COLUMNS = {
    "name": "of the signature",
    "cause": "one sentence: what is probably wrong, and between whom",
    "confidence": "`high`: nothing else known looks like it; `medium`: something else may; `low`: a hint",
    "nodes": "nodes concerned, sorted; an address where it is no node",
    "findings": "ids of the findings that it explains",
    "evidence": "up to three places to look: capture and frame number",
    "issue": "upstream's reports of the same, `, ` between; empty where none is known",
    "next_step": "what to do",
}
CONFIDENCES = ("high", "medium", "low")

_JOIN_PORTS = (9345, 6443)
_SUPERVISOR, _API, _ETCD, _TYPHA, _KUBELET, _DNS = 9345, 6443, 2379, 5473, 10250, 53
_ICMP = ("icmp", "icmpv6")
_SYN = 0x02
_EXPLAINED = ("blocked", "violation", "foreign-tunnel")
#: (protocol, type, code) of an ICMP error that a firewall's rule sends, and no kernel by itself (RFC 1122
#: 3.2.2.1, RFC 4443 3.1); iptables' and firewalld's REJECT is the second
_PROHIBITED = (("icmp", 3, 9), ("icmp", 3, 10), ("icmp", 3, 13), ("icmpv6", 1, 1))
#: the same of a packet that is too large (RFC 792, RFC 4443 3.2)
_TOO_BIG = (("icmp", 3, 4), ("icmpv6", 2, 0))
#: VirtualBox's NAT and QEMU's user network give it to every machine; a cluster may have its own such network
_NAT_ADDRESS, _NAT_NETWORK = "10.0.2.15", "10.0.2."
_FIXED_VNIS = (1, 4096)  # flannel's and Calico's, whoever sends
_FEW = 3  # pairs named in a cause, places in its evidence
_SEVERAL = 2
_MANY_PORTS = 4  # unlisted ports that one client fails on, from which it is no slip of a finger
_LARGE = 1000  # bytes: below what any link of a cluster lets through, above what a question has
_STALLED = pd.Timedelta(seconds=1.5)  # by then TCP has sent a segment three times (RFC 6298)
_FEW_ANSWERS = 6  # packets: handshake, question, repeated acknowledgements

Frame = pd.DataFrame


def _slips(port: int) -> frozenset[int]:
    """What a slip of the finger makes of a port: two digits swapped, one dropped, or one doubled."""
    digits = str(port)
    swapped = [digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :] for i in range(len(digits) - 1)]
    dropped = [digits[:i] + digits[i + 1 :] for i in range(len(digits))]
    doubled = [digits[: i + 1] + digits[i:] for i in range(len(digits))]
    return frozenset(map(int, (*swapped, *dropped, *doubled))) - {port}


_SLIPS = sorted(slip for slip in _slips(_SUPERVISOR) if slip < 2**16)


# ---- what was seen ----


_BY = ("from", "to", "server_port", "outcome")
_OF_THE_FIRST = (
    *("client", "server", "client_node", "server_node", "client_role", "server_role"),
    *("scope", "rule", "source"),
)


class _Scene:
    """What signatures look at, each part made when it is asked for.

    `from`, `to`: node or virtual address by name, else the address. `source`, `first_frame`: of the earliest
    flow.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.flows, self.cluster, self.coverage = analysis.flows, analysis.cluster, analysis.coverage
        self.findings = analysis.findings
        self.member_of = {text: name for name, _, texts in self.cluster.rows() for text in texts}
        self.vips = {vip.name for vip in self.cluster.virtual_ips}

    @cached_property
    def asked(self) -> Frame:
        """TCP outside of tunnels by `from`, `to`, `port` and `outcome`; of a node, or to one."""
        tcp = (self.flows["protocol"] == "tcp") & self.flows["scope"].isin(("inter-node", "external"))
        return self._by_pair(tcp)

    @cached_property
    def carriers(self) -> Frame:
        """VXLAN and Geneve between nodes by `from`, `to`, `port` and `outcome`; `witnesses` of all."""
        udp = (self.flows["protocol"] == "udp") & (self.flows["scope"] == "inter-node")
        return self._by_pair(udp & self.flows["server_port"].isin(CARRIER_PORTS), witnesses=True)

    def _by_pair(self, chosen: pd.Series[bool], *, witnesses: bool = False) -> Frame:
        """Texts are those of the earliest flow, but `witnesses`, which are all."""
        flows = FlowColumns(self.flows)
        rows = flows.by_start(np.flatnonzero(chosen))
        number = flows.numbers(rows, *_BY)
        first = rows[np.unique(number, return_index=True)[1]]
        ends = list(zip(*(flows.column(name, first).values() for name in _BY), strict=True))
        ranks = np.zeros(len(ends), np.intp)
        ranks[sorted(range(len(ends)), key=ends.__getitem__)] = np.arange(len(ends))
        number, first = ranks[number], first[np.argsort(ranks)]
        counts = np.bincount(number, minlength=len(ends))
        order, begins = np.argsort(number, kind="stable"), np.cumsum(counts) - counts
        groups = np.split(rows[order], begins[1:]) if witnesses and ends else []
        opened = flows.among("direction_by", ("syn",), rows)[order].astype(np.int64)
        return pd.DataFrame(
            {
                **{name: np.array(flows.column(name, first).values(), object) for name in ("from", "to")},
                "port": flows.number("server_port", first).astype(np.int64),
                "outcome": np.array(flows.column("outcome", first).values(), object),
                **{
                    name: np.add.reduceat(flows.number(name, rows)[order], begins)
                    for name in ("packets_out", "packets_in")
                },
                "start": self.flows["start"].array[first],
                "end": pd.to_datetime(
                    np.maximum.reduceat(flows.time("end", rows)[order], begins), unit="ns", utc=True
                ),
                **{name: np.array(flows.column(name, first).values(), object) for name in _OF_THE_FIRST},
                "first_frame": flows.number("first_frame", first),
                **({"witnesses": [_union(flows, of) for of in groups]} if witnesses else {}),
                "flows": counts,
                "opened": np.add.reduceat(opened, begins),
            }
        )

    @cached_property
    def inner(self) -> Frame:
        """Flows inside VXLAN or Geneve whose ends are both of the cluster; one row for each flow."""
        rows = self.flows[(self.flows["vni"] > 0) & (self.flows["outer_client"] != "")]
        ends = {"from": rows["outer_client"], "to": rows["outer_server"]}
        members = {name: self._members(column) for name, column in ends.items()}
        named = rows.assign(**members, port=rows["server_port"])
        return named[(named["from"] != "") & (named["to"] != "")]

    def _members(self, addresses: pd.Series[Any]) -> npt.NDArray[np.object_]:
        """The member that each address is of, empty where none."""
        column = pd.Categorical(addresses)
        known = np.array([*(self.member_of.get(text, "") for text in column.categories), ""], object)
        members: npt.NDArray[np.object_] = known[column.codes]
        return members

    @cached_property
    def questions(self) -> Frame:
        """Inner flows that expect an answer: opened TCP, an echo request, a question to DNS."""
        inner = self.inner
        tcp = (inner["protocol"] == "tcp") & (inner["direction_by"] == "syn")
        echo = inner["protocol"].isin(_ICMP) & inner["client_port"].isin((8, 128))
        dns = (inner["protocol"] == "udp") & (inner["port"] == _DNS)
        return inner[tcp | echo | dns]

    @cached_property
    def unanswered_carriers(self) -> Frame:
        """See :func:`_unanswered_carriers`."""
        return _unanswered_carriers(self)

    def errors(self, kinds: Sequence[tuple[str, int, int]]) -> Frame:
        """ICMP errors of these kinds: `by` who sent it, `about` whom it was sent to."""
        flows = self.flows[self.flows["protocol"].isin(_ICMP)]
        told = list(zip(flows["protocol"], flows["client_port"], flows["server_port"], strict=True))
        chosen = flows[np.array([kind in kinds for kind in told], bool)]
        return pd.DataFrame({"by": self._members(chosen["client"]), "about": self._members(chosen["server"])})

    def tcp(self, ports: Sequence[int], *outcomes: str) -> Frame:
        asked = self.asked
        return asked[asked["port"].isin(ports) & asked["outcome"].isin(outcomes)]

    def found(self, rows: Frame) -> Frame:
        """Those of the rows that a finding tells of: of what had no time to be answered none does."""
        return _those(rows, self.explainable, _PORT) if len(rows) else rows

    @cached_property
    def last_spoke(self) -> pd.Series[Any]:
        """When the last flow began in which a member sent something, by its name."""
        flows = self.flows[["client_node", "server_node", "start", "packets_out", "packets_in"]]
        sent = {"client_node": flows["packets_out"] > 0, "server_node": flows["packets_in"] > 0}
        starts = [flows[which].groupby(side, observed=True)["start"].max() for side, which in sent.items()]
        spoke: pd.Series[Any] = pd.concat(starts).groupby(level=0).max()
        return spoke

    @cached_property
    def explainable(self) -> Frame:
        """Findings that a cause may explain, with `from` and `to`."""
        found = self.findings[self.findings["kind"].isin(_EXPLAINED)]
        return found.assign(**{"from": found["client"], "to": found["server"]})

    @cached_property
    def deaf(self) -> set[str]:
        """Observers that did not see answers."""
        files = {ledger.source for ledger in self.coverage}
        deaf = deaf_sources(by_file(unseen(self.flows), files))
        return {name for name in self.flows["source"].unique() if file_of(str(name), files) in deaf}

    def captured(self) -> set[str]:
        return {capturing_node(ledger.source, self.cluster.members) for ledger in self.coverage} - {""}

    def saw(self, witnesses: str) -> set[str]:
        return {capturing_node(name, self.cluster.members) for name in witnesses.split(";")}


def _union(flows: FlowColumns, rows: npt.NDArray[np.intp]) -> str:
    codes, names = flows.column("witnesses", rows)
    return _joined(names[np.unique(codes)].tolist())


def _joined(witnesses: Iterable[str]) -> str:
    return ";".join(sorted({name for text in witnesses for name in text.split(";")}))


def _index(rows: Frame, by: Sequence[str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([np.asarray(rows[name], object) for name in by])


def _those(rows: Frame, others: Frame, by: Sequence[str]) -> Frame:
    """The rows whose key another table has too."""
    if rows.empty or others.empty:
        return rows[:0]
    return rows[_index(rows, by).isin(_index(others, by))]


def _without(rows: Frame, others: Frame, by: Sequence[str]) -> Frame:
    """The rows whose key the other table has not."""
    if rows.empty or others.empty:
        return rows
    return rows[~_index(rows, by).isin(_index(others, by))]


_PAIR = ("from", "to")
_PORT = ("from", "to", "port")


# ---- joining ----


def _unanswered(scene: _Scene, ports: Sequence[int]) -> Frame:
    """Between nodes, found, and never answered while it was watched."""
    silent = scene.tcp(ports, "unanswered")
    if silent.empty:
        return silent
    told = scene.found(silent[silent["scope"] == "inter-node"])
    told = told[~told["source"].isin(scene.deaf)]
    return _without(told, scene.tcp(ports, "answered", "refused"), _PORT)


def _join_blocked(scene: _Scene) -> Frame:
    """More than one SYN to a server that takes nodes in, and no answer."""
    silent = _unanswered(scene, _JOIN_PORTS)
    silent = silent[(silent["server_role"] != "agent") & (silent["packets_out"] >= _SEVERAL)]
    return _sure_if_up(scene, silent)


def _sure_if_up(scene: _Scene, silent: Frame) -> Frame:
    """`sure`: the server's machine was up meanwhile, as its own capture or a later flow with packets of it
    shows; one that is down looks the same.
    """
    if silent.empty:
        return silent
    spoke = silent["to"].map(scene.last_spoke).ge(silent["start"]).to_numpy()
    return silent.assign(sure=spoke | _watched(scene, silent))


def _rejected(scene: _Scene) -> Frame:
    """Unreachable, and the server's node itself said by ICMP that a rule prohibits it."""
    told = scene.asked[scene.asked["outcome"] == "unreachable"]
    if told.empty:
        return told
    errors = scene.errors(_PROHIBITED).set_axis(["to", "from"], axis=1)
    return _those(scene.found(told[told["scope"] == "inter-node"]), errors, _PAIR)


def _etcd_silent(scene: _Scene) -> Frame:
    """The supervisor answers this server, etcd on the same machine does not. An agent is rightly kept out."""
    silent = _unanswered(scene, (_ETCD,))
    silent = silent[(silent["client_role"] != "agent") & (silent["server_role"] != "agent")]
    return _those(silent, scene.tcp((_SUPERVISOR,), "answered"), _PAIR)


def _server_is_api(scene: _Scene) -> Frame:
    """Nodes that open connection after connection to 6443, and do nothing else: no supervisor, no kubelet, no
    tunnel. A node that has joined cannot be without these. Others must be seen to ask for the supervisor: a
    capture may have been filtered.
    """
    asked = scene.asked[scene.asked["scope"] == "inter-node"]
    api = asked[(asked["port"] == _API) & (asked["outcome"] == "answered") & (asked["client_role"] != "")]
    api = api[(api["opened"] == api["flows"]) & (api["flows"] >= _SEVERAL)]
    if api.empty:
        return api
    rest = asked[asked["port"] != _API]
    if not rest["port"].eq(_SUPERVISOR).any():
        return api[:0]
    busy = pd.concat([rest["from"], rest["to"], scene.carriers["from"], scene.inner["from"]])
    return api[~api["from"].isin(busy) & api["from"].isin(scene.captured() | set(api["to"]))]


def _mistyped(scene: _Scene) -> Frame:
    """A node fails on a port that 9345 becomes by a slip, and no server's 9345 answers it."""
    asked = scene.asked[(scene.asked["scope"] == "inter-node") & (scene.asked["rule"] == "")]
    failed = asked[asked["outcome"].isin(("refused", "unanswered", "unreachable"))]
    tried = failed.groupby("from")["port"].nunique()
    few = tried.index[tried < _MANY_PORTS]
    slipped = failed[failed["port"].isin(_SLIPS) & failed["from"].isin(few)]
    joined = scene.tcp((_SUPERVISOR,), "answered")
    return slipped[(slipped["server_role"] != "agent") & ~slipped["from"].isin(joined["from"])]


def _strangers(scene: _Scene, ports: Sequence[int], *outcomes: str) -> Frame:
    """What nodes ask of addresses that are no node's."""
    rows = scene.tcp(ports, *outcomes)
    return rows[(rows["scope"] == "external") & (rows["client_node"] != "")]


def _old_address(scene: _Scene) -> Frame:
    """An address that is no node resets a node that asks for the supervisor again and again. One that answers
    too is in use: a load balancer, say, while the server behind it restarts.
    """
    answered = scene.tcp((_SUPERVISOR,), "answered")
    reset = _strangers(scene, (_SUPERVISOR,), "refused")
    reset = reset[(reset["flows"] >= _SEVERAL) & ~_is_nat(scene, reset)]
    return _without(reset.assign(sure=reset["from"].isin(answered["from"])), answered, ("to",))


def _nat_address(scene: _Scene) -> Frame:
    """A node asks for the supervisor at the address that every such machine has."""
    rows = _strangers(scene, _JOIN_PORTS, "refused", "unanswered", "unreachable")
    return rows[_is_nat(scene, rows)]


def _is_nat(scene: _Scene, rows: Frame) -> pd.Series[bool]:
    """Whether it is the address of NAT, and not another machine's beside the nodes."""
    among_nodes = any(text.startswith(_NAT_NETWORK) for text in scene.member_of)
    return (rows["to"] == _NAT_ADDRESS) & (not among_nodes)


def _typha_blocked(scene: _Scene) -> Frame:
    """One Typha is enough for a node: it tries the next one where the first is silent."""
    silent = _without(_unanswered(scene, (_TYPHA,)), scene.tcp((_TYPHA,), "answered"), ("from",))
    return _sure_if_up(scene, silent)


def _kubelet_blocked(scene: _Scene) -> Frame:
    """Servers do not reach agents' kubelets."""
    silent = _unanswered(scene, (_KUBELET,))
    silent = silent[(silent["server_role"] == "agent") & (silent["client_role"] != "agent")]
    return _sure_if_up(scene, silent)


# ---- the pod network ----


def _unanswered_carriers(scene: _Scene) -> Frame:
    """Carriers that nothing comes back for, though what they carry asks, and no question of it is answered.

    `lost`: both ends were captured, and the other end's capture has none of them. `sure`: it has them.
    """
    asked = scene.questions
    silent = _without(asked[asked["outcome"] == "unanswered"], asked[asked["outcome"] == "answered"], _PAIR)
    lonely = scene.carriers["outcome"] == "unanswered"
    carriers = _without(scene.carriers[lonely], scene.carriers[~lonely], _PORT)
    carriers = _those(carriers[carriers["packets_out"] >= _SEVERAL], silent, _PAIR)
    saw = [scene.saw(text) for text in carriers["witnesses"]]
    arrived = [to in seen for to, seen in zip(carriers["to"], saw, strict=True)]
    left = [by in seen for by, seen in zip(carriers["from"], saw, strict=True)]
    both = _watched(scene, carriers)
    return carriers.assign(lost=np.array(left, bool) & ~np.array(arrived, bool) & both, sure=arrived)


def _watched(scene: _Scene, sent: Frame) -> npt.NDArray[np.bool_]:
    """Whether a capture of the other end's node was running while these flows were sent, by one clock."""
    windows: dict[str, list[tuple[int, int]]] = {}
    for ledger in scene.coverage:
        node = capturing_node(ledger.source, scene.cluster.members)
        windows.setdefault(node, []).extend(ledger.watched or [(ledger.start, ledger.end)])
    ends = zip(sent["to"], sent["start"], sent["end"], strict=True)
    running = [
        any(begin <= end.value and start.value <= until for begin, until in windows.get(to, ()))
        for to, start, end in ends
    ]
    wrong = sent[["from", "to"]].isin(off_time(scene.coverage, scene.cluster.members)).any(axis=1)
    return np.array(running, bool) & ~wrong.to_numpy()


def _vxlan_one_way(scene: _Scene) -> Frame:
    carriers = scene.unanswered_carriers
    return carriers[~carriers["lost"]]


def _vxlan_lost(scene: _Scene) -> Frame:
    """`sure`: the other end's capture has VXLAN, so no filter kept it out."""
    carriers = scene.unanswered_carriers
    lost = carriers[carriers["lost"]]
    return lost.assign(sure=lost["to"].isin(scene.saw(_joined(scene.carriers["witnesses"]))))


def _pods_stopped(scene: _Scene) -> Frame:
    """A node's pods answered every question up to a moment and none from then on, and the node lives on.

    A pod that ends alone leaves others; so at least two of what was asked (pod, port) must have turned, and
    nothing may have been answered afterwards.
    """
    if scene.questions.empty:
        return scene.questions
    asked = scene.questions.assign(good=scene.questions["outcome"] == "answered")
    asked = asked[asked["good"] | (asked["outcome"] == "unanswered")]
    last = asked[asked["good"]].groupby("to")["start"].max()
    first = asked[~asked["good"]].groupby("to")["start"].min()
    turned = pd.DataFrame({"last": last, "first": first}).dropna()
    asked = asked[asked["to"].isin(turned.index[turned["last"] < turned["first"]])]
    ends = ["to", "server", "protocol", "port"]
    plain = asked.astype({"server": object, "protocol": object})
    both = _those(plain[~plain["good"]], plain[plain["good"]], ends).drop_duplicates(ends)
    counts = both.groupby("to").agg(turned=("server", "size"), pods=("server", "nunique"))
    stopped = both[both["to"].isin(counts.index[counts["turned"] >= _SEVERAL])].drop_duplicates("to")
    alive = scene.asked[(scene.asked["outcome"] == "answered") & (scene.asked["scope"] == "inter-node")]
    lives = pd.concat([alive.set_index(side)["end"] for side in _PAIR]).groupby(level=0).max()
    stopped = stopped[np.asarray(lives.reindex(stopped["to"]).array > stopped["start"].array, bool)]
    return stopped.assign(**{"from": stopped["to"]}, sure=stopped["to"].map(counts["pods"]) >= _SEVERAL)


def _tcp_lost(scene: _Scene) -> Frame:
    """Between two nodes pods' pings are answered, and of TCP nothing, whatever was asked."""
    asked = scene.questions
    if asked.empty:
        return asked
    good, tcp = asked["outcome"] == "answered", asked["protocol"] == "tcp"
    silent = asked[(asked["outcome"] == "unanswered") & tcp]
    silent = _those(silent, asked[good & asked["protocol"].isin(_ICMP)], _PAIR)
    silent = _without(silent, asked[~asked["outcome"].isin(("unanswered",)) & tcp], _PAIR)
    ends = silent.astype({"server": object}).drop_duplicates(["from", "to", "server", "port"])
    several = ends.groupby(list(_PAIR))["port"].transform("size") >= _SEVERAL
    return ends[several].drop_duplicates(list(_PAIR))


def _two_vnis(scene: _Scene) -> Frame:
    """Between two nodes, a VNI that one CNI always uses and another one, on one carrier port."""
    if scene.inner.empty:
        return scene.inner
    pair = {"a": np.minimum, "b": np.maximum}
    named = scene.inner.assign(**{name: of(*_texts(scene.inner)) for name, of in pair.items()})
    ports = scene.carriers.assign(**{name: of(*_texts(scene.carriers)) for name, of in pair.items()})
    many_ports = ports.groupby(["a", "b"])["port"].nunique().loc[lambda n: n > 1].reset_index()
    vnis = named.drop_duplicates(["a", "b", "vni"])
    mixed = vnis.groupby(["a", "b"])["vni"].agg(
        lambda all_: len(all_) > 1 and bool(all_.isin(_FIXED_VNIS).any())
    )
    keys = mixed[mixed.astype(bool)].reset_index()[["a", "b"]]
    return _without(_those(vnis, keys, ["a", "b"]), many_ports, ["a", "b"])


def _texts(rows: Frame) -> list[npt.NDArray[np.object_]]:
    return [rows[name].to_numpy(object) for name in _PAIR]


def _vip_as_vtep(scene: _Scene) -> Frame:
    """A tunnel's own end is an address that moves between nodes."""
    return scene.carriers[scene.carriers["from"].isin(scene.vips)]


# ---- path MTU ----


def _black_hole(scene: _Scene) -> Frame:
    """Large segments go one way and nothing comes back for them, though small packets pass.

    The flow table does not count retransmissions. What it can show: after a handshake, several large packets
    over seconds and no more answers than a handshake and a question have; no connection whose large packets
    were acknowledged between the same two nodes; small ones that were answered. `sure`: ICMP said too big to
    the sender, or whole intervals have large packets and no answer.
    """
    sent = _sent(scene)
    if sent.empty:
        return sent
    large = sent[sent["size"] >= _LARGE]
    few = (large["answers"] <= _FEW_ANSWERS) & (large["packets"] >= large["answers"] + _SEVERAL)
    lasting = large["end"] - large["start"] >= _STALLED
    stalled = large[large["shaken"] & few & lasting]
    if stalled.empty:
        return stalled
    passed = large.drop(stalled.index)
    stalled = _without(stalled, passed[passed["answers"] * 3 >= passed["packets"]], _PAIR)
    stalled = _those(stalled, sent[(sent["size"] < _LARGE) & (sent["answers"] > 0)], _PAIR)
    mute = (stalled["mute"] >= _SEVERAL) & (stalled["later"] == 0)
    stalled = stalled.assign(sure=mute | stalled["from"].isin(scene.errors(_TOO_BIG)["about"]))
    several = stalled.groupby(list(_PAIR))["start"].transform("size") >= _SEVERAL
    return stalled[several | stalled["sure"]]


#: sender, receiver, the sender's columns, the answers', packets of a handshake that it sends
_WAYS = (("from", "to", "out", "in", 2), ("to", "from", "in", "out", 1))
_ENDS = {"from": "client_node", "to": "server_node", "port": "server_port"}
_COUNTED = [
    *(
        "client",
        "server",
        "client_port",
        "server_port",
        "client_node",
        "server_node",
        "source",
        "start",
        "end",
    ),
    *("first_frame", "packets_out", "packets_in", "bytes_out", "bytes_in", "tcp_flags_out", "tcp_flags_in"),
]
_CONNECTION = ("from", "to", "port", "client", "server", "client_port")


def _sent(scene: _Scene) -> Frame:
    """TCP by connection and direction, intervals added up, between those nodes that have a connection with
    large packets and few answers. `mute`: intervals in which none came, `later`: answers after the first one.
    """
    chosen = (scene.flows["scope"] == "inter-node") & (scene.flows["protocol"] == "tcp")
    plain = scene.flows.loc[chosen, _COUNTED]
    plain = plain.assign(**{name: plain[column] for name, column in _ENDS.items()})
    tcp = [plain, scene.inner[scene.inner["protocol"] == "tcp"]]
    large = [(rows, _is_large(rows, way), way) for rows in tcp for way in _WAYS]
    unanswered = [_one_way(rows[which], way) for rows, which, way in large if which.any()]
    if not unanswered:
        return pd.DataFrame()
    suspects = pd.concat([_pairs_of(rows) for rows in unanswered]).drop_duplicates()
    if suspects.empty:
        return suspects
    mine = [_those(rows, pd.concat([suspects, _turned(suspects)]), _PAIR) for rows in tcp]
    return _connections(pd.concat([_one_way(rows, way) for rows in mine for way in _WAYS], ignore_index=True))


def _pairs_of(rows: Frame) -> Frame:
    return rows[list(_PAIR)].drop_duplicates()


def _turned(pairs: Frame) -> Frame:
    return pairs.set_axis(["to", "from"], axis=1)


def _is_large(tcp: Frame, way: tuple[str, str, str, str, int]) -> npt.NDArray[np.bool_]:
    """Which rows may be of a black hole, by counts alone."""
    _, _, there, back, _ = way
    packets, octets = (tcp[f"{what}_{there}"].to_numpy(np.float64) for what in ("packets", "bytes"))
    few = tcp[f"packets_{back}"].to_numpy() <= _FEW_ANSWERS
    large: npt.NDArray[np.bool_] = few & (packets > 0) & (octets >= _LARGE * np.maximum(packets - 2, 1))
    return large


def _one_way(tcp: Frame, way: tuple[str, str, str, str, int]) -> Frame:
    """One direction of each row. `shaken`: both ways have a SYN; `hands`: packets of the handshake."""
    sender, receiver, there, back, hands = way
    packets, answers = (tcp[f"packets_{side}"].to_numpy(np.float64) for side in (there, back))
    shaken = (tcp[f"tcp_flags_{there}"] & _SYN & tcp[f"tcp_flags_{back}"]).to_numpy() > 0
    return pd.DataFrame(
        {
            "from": tcp[sender].to_numpy(object),
            "to": tcp[receiver].to_numpy(object),
            **{name: tcp[name].to_numpy(object) for name in ("client", "server", "source")},
            **{name: tcp[name].array for name in ("port", "client_port", "start", "end", "first_frame")},
            "packets": packets,
            "answers": answers,
            "octets": tcp[f"bytes_{there}"].to_numpy(np.float64),
            "shaken": shaken,
            "hands": shaken * hands,
            "mute": ~shaken & (answers == 0) & (packets > 0),
            "later": np.where(shaken, 0, answers),
        }
    )


def _connections(ways: Frame) -> Frame:
    """Intervals added up. `size`: mean of all packets but the handshake's, which have 60 bytes at most."""
    sums = dict.fromkeys(("packets", "answers", "octets", "hands", "mute", "later"), "sum")
    firsts = {"source": "first", "first_frame": "first", "start": "min", "end": "max", "shaken": "any"}
    whole = ways.groupby(list(_CONNECTION), sort=False).agg({**sums, **firsts}).reset_index()
    rest = np.maximum(whole["octets"] - 60 * whole["hands"], 0)
    return whole.assign(size=rest / np.maximum(whole["packets"] - whole["hands"], 1))


# ---- the table ----


@dataclass(frozen=True)
class Signature:
    """`cause` goes before the pairs that show it. `confidence`: of a sure sign, and of one that is not.
    `look`: see the module.
    """

    name: str
    cause: str
    issue: str
    next_step: str
    confidence: tuple[str, str]
    look: Callable[[_Scene], Frame]


SIGNATURES = (
    Signature(
        "join-blocked",
        "A firewall drops what nodes need to join: SYNs to the supervisor or the API server are not answered",
        "rancher/rke2-docs#390",
        "Open tcp/9345 and tcp/6443 from every node to every server: in the servers' own firewalls and in "
        "the security groups between them. Try `nc -vz SERVER 9345` from the node.",
        ("high", "medium"),
        _join_blocked,
    ),
    Signature(
        "firewall-rejects",
        "The host firewall of the server, as firewalld does, answers with ICMP prohibited (`No route to "
        "host` in the log)",
        "rancher/rke2#4777",
        "RKE2 and firewalld do not go together: `systemctl disable --now firewalld` on the server, or add "
        "the ports of the table to its zone. `nft list ruleset` shows the rule.",
        ("high", "high"),
        _rejected,
    ),
    Signature(
        "etcd-port-closed",
        "A server joins through the supervisor, whose 9345 answers, and then hangs at etcd, whose 2379 does "
        "not; the log speaks of TLS",
        "rancher/rke2#618",
        "Open tcp/2379 and tcp/2380 between all servers; look for a mistyped port (2397) in the security "
        "group.",
        ("high", "high"),
        _etcd_silent,
    ),
    Signature(
        "server-url-is-6443",
        "`server:` in the node's config.yaml probably names port 6443: it asks the API server again and "
        "again, and no supervisor",
        "rancher/rke2#165",
        "Write `server: https://SERVER:9345` in /etc/rancher/rke2/config.yaml on the node and restart it. "
        "The log has a 401 for /cacerts.",
        ("medium", "medium"),
        _server_is_api,
    ),
    Signature(
        "port-mistyped",
        "`server:` in the node's config.yaml has a mistyped port: it fails on a port that is 9345 with a "
        "slip, and reaches no supervisor",
        "rancher/rke2#3901",
        "Write `server: https://SERVER:9345` in /etc/rancher/rke2/config.yaml on the node and restart it.",
        ("high", "high"),
        _mistyped,
    ),
    Signature(
        "old-server-address",
        "A node asks for the supervisor at an address that is no node of the cluster and resets it: probably "
        "a server's former address",
        "rancher/rke2#5949",
        "If the address was a server's, correct `server:` in config.yaml, and remove it from the node's "
        "/var/lib/rancher/rke2/agent/etc/rke2-agent-load-balancer.json; if it is a server's now, add it to "
        "the cluster file.",
        ("high", "medium"),
        _old_address,
    ),
    Signature(
        "nat-address-advertised",
        "A server advertises 10.0.2.15, which a virtual machine's NAT interface has on every machine alike",
        "rancher/rke2#813, rancher/rke2#5775",
        "Set `node-ip:` and `advertise-address:` to the address that the nodes share, and flannel's or "
        "Canal's interface to the same; then restart the server and its agents.",
        ("high", "high"),
        _nat_address,
    ),
    Signature(
        "typha-blocked",
        "Calico's Typha is not reached: SYNs to 5473 stay unanswered, so these nodes get no network policy "
        "and no routes",
        "rancher/rke2#1996, rancher/rancher#34300",
        "Open tcp/5473 between all nodes. Only nodes without a Typha of their own show it.",
        ("high", "medium"),
        _typha_blocked,
    ),
    Signature(
        "kubelet-blocked",
        "Servers do not reach agents' kubelets: SYNs to 10250 stay unanswered, so metrics are missing, and "
        "with `egress-selector-mode: disabled` logs and exec fail",
        "rancher/rke2#3481",
        "Open tcp/10250 between all nodes, in the agents' own firewalls and in the security groups.",
        ("high", "medium"),
        _kubelet_blocked,
    ),
    Signature(
        "vxlan-one-way",
        "VXLAN goes one way only: pods ask, and nothing comes back in the tunnel",
        "rancher/rke2#6307",
        "Look at the node that does not answer: does its own firewall let udp/8472 (udp/4789) in and out, "
        "and does it send from the address that the others know (`bridge fdb show dev flannel.1`)? On a "
        "virtual machine switch the network card's UDP tunnel offload off (`ethtool -K DEV "
        "tx-udp_tnl-segmentation off`).",
        ("high", "medium"),
        _vxlan_one_way,
    ),
    Signature(
        "vxlan-lost",
        "VXLAN is lost between the nodes: it leaves the one and never comes to the other, as both captures "
        "show",
        "rancher/rke2-charts#86, flannel-io/flannel#2388",
        "Look at what is between them: security groups for udp/8472, and an overlay of the hypervisor (NSX "
        "uses 8472 itself). If it cannot be changed, give the CNI another port.",
        ("high", "medium"),
        _vxlan_lost,
    ),
    Signature(
        "pods-stopped",
        "From one moment on no pod of a node answers, while the node itself does: its forwarding rules were "
        "probably flushed",
        "rancher/rke2#774",
        "Was the node drained? Else: was `firewall-cmd --reload`, or anything else that reloads the "
        "firewall, run on it at that time? Restart its Canal pod, which writes the rules again, and disable "
        "firewalld.",
        ("medium", "low"),
        _pods_stopped,
    ),
    Signature(
        "pod-tcp-lost",
        "Pods of these nodes can ping each other, and TCP gets no answer: probably bad checksums of a "
        "network card that computes them for tunnels wrongly",
        "rancher/rke2#5164, rancher/rke2#1541, flannel-io/flannel#1279",
        "Look at checksums in a capture of the receiving node (at the sender they are always wrong while "
        "offload is on): `nstat -az TcpInCsumErrors` there. If they are bad, `ethtool -K flannel.1 "
        "tx-checksum-ip-generic off` on the senders. If they are good, look for a network policy.",
        ("medium", "medium"),
        _tcp_lost,
    ),
    Signature(
        "two-vnis",
        "Two VXLAN networks share one port between the same nodes: probably two CNIs, or the interface of "
        "one that was replaced",
        "",
        "`ip -d link show type vxlan` on both nodes: delete the interface that the present CNI does not use, "
        "or reboot. No upstream report of exactly this is known.",
        ("medium", "medium"),
        _two_vnis,
    ),
    Signature(
        "virtual-address-as-vtep",
        "A node sends VXLAN from a virtual address, which moves to another node one day and takes the pod "
        "network with it",
        "harvester/harvester#10787",
        "Set `node-ip:`, or the annotation flannel.alpha.coreos.com/public-ip-overwrite, to the node's own "
        "address; `ip -d link show flannel.1` shows `local`.",
        ("high", "high"),
        _vip_as_vtep,
    ),
    Signature(
        "mtu-black-hole",
        "Large packets do not get through: handshakes are good, then large segments go out and are not "
        "acknowledged",
        "flannel-io/flannel#1614",
        "Compare the MTUs on the way (`ip link`; VXLAN needs 50 bytes, WireGuard 80) and let ICMP "
        "fragmentation-needed through; `ping -M do -s 1400 POD` shows the limit. Flows do not count "
        "retransmissions: in a packet capture look for `tcp.analysis.retransmission and tcp.len > 1000`.",
        ("high", "medium"),
        _black_hole,
    ),
)


# ---- the result ----


def diagnose(analysis: Analysis) -> pd.DataFrame:
    """The causes that flows and findings show, the surest first, then in the order of :data:`SIGNATURES`.

    Returns a DataFrame with :data:`COLUMNS`; `nodes` and `findings` hold lists of texts, `evidence` lists of
    dicts with `source` and `first_frame`. Empty where no signature's sign is there, which says nothing about
    causes that no signature is about.
    """
    scene = _Scene(analysis)
    rows = [_diagnosis(signature, scene, hits) for signature, hits in _hits(scene)]
    rows.sort(key=lambda row: CONFIDENCES.index(row["confidence"]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _hits(scene: _Scene) -> Iterator[tuple[Signature, Frame]]:
    for signature in SIGNATURES:
        hits = signature.look(scene)
        if len(hits):
            yield signature, hits


def _diagnosis(signature: Signature, scene: _Scene, hits: Frame) -> dict[str, Any]:
    sure = bool(hits["sure"].astype(bool).any()) if "sure" in hits else True
    pairs = _named_pairs(hits)
    more = [f"{len(pairs) - _FEW} more"] if len(pairs) > _FEW else []
    return {
        "name": signature.name,
        "cause": f"{signature.cause}: {', '.join([*pairs[:_FEW], *more])}",
        "confidence": signature.confidence[not sure],
        "nodes": sorted(set(hits["from"]) | set(hits["to"])),
        "findings": _explained(scene, hits),
        "evidence": _places(hits),
        "issue": signature.issue,
        "next_step": signature.next_step,
    }


def _named_pairs(hits: Frame) -> list[str]:
    """`a → b (port)`; a cause that lies in one node has it alone."""
    rows = zip(hits["from"], hits["to"], hits["port"], strict=True)
    told = {f"{a} → {b} ({port})" if a != b else str(a) for a, b, port in rows}
    return sorted(told)


def _explained(scene: _Scene, hits: Frame) -> list[str]:
    return [str(name) for name in _those(scene.explainable, hits, _PORT)["id"]]


def _places(hits: Frame) -> list[dict[str, Any]]:
    earliest = hits.sort_values("start", kind="stable").drop_duplicates(["source", "first_frame"]).head(_FEW)
    places = zip(earliest["source"], earliest["first_frame"], strict=True)
    return [{"source": str(source), "first_frame": int(frame)} for source, frame in places]
