"""One-way rows to flows: who asked, how it went, and back. Rule: frames in, flow table out; each case is
written out by hand.

`A` and `B` are agents, `S` is a server; their ports are those of an ordinary connection unless a case says
otherwise.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING

import frames as fr
import numpy as np
import pytest
from frames import EPOCH, FILES, NS, PUSH, SYN_ACK, Frame, same_table, segment, traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import ACK, FIN, RST, SCTP, SYN, TCP, UDP, gre, ipv4, sctp

from analyzer.errors import CaptureError
from analyzer.flows import CARRIER_PORTS, COLUMNS, format_address, pair, parse_address, unpair
from analyzer.rows import Endpoint, OneWay, merge

if TYPE_CHECKING:
    import pandas as pd

A, B, S = ("10.10.0.21", 40000), ("10.10.0.22", 40001), ("10.10.0.11", 6443)
A6, S6 = ("fd00:10::21", 40000), ("fd00:10::11", 6443)
LOW, HIGH = ("10.10.0.21", 1000), ("10.10.0.11", 50000)
PEER_A, PEER_S = ("10.10.0.21", 500), ("10.10.0.11", 500)
DNS = ("10.10.0.11", 53)
Frames = list[bytes]
End = tuple[str, int]


def listen(end: End, protocol: int = TCP) -> Endpoint:
    return Endpoint(parse_address(end[0]), protocol, end[1])


def flows_of(
    frames: Frames, ports: frozenset[tuple[int, int]] = frozenset(), listeners: tuple[Endpoint, ...] = ()
) -> pd.DataFrame:
    return pair(fr.read(fr.pcap(fr.timed(frames))).settled(), ports, listeners)


def ends_of(row: pd.Series) -> tuple[End, End]:
    """Client, server."""
    return (row["client"], row["client_port"]), (row["server"], row["server_port"])


def one(table: pd.DataFrame, *ends: End) -> pd.Series:
    """The flow between two ends, whoever the client is."""
    found = [
        row
        for _, row in table.iterrows()
        if {(row["client"], row["client_port"]), (row["server"], row["server_port"])} == set(ends)
    ]
    assert len(found) == 1, table[["client", "client_port", "server", "server_port", "protocol"]].to_string()
    return found[0]


def midway(a: End, b: End) -> Frames:
    """A connection that was open before the capture."""
    return [segment(a, b, PUSH, 10), segment(b, a, PUSH, 10)]


# ---- who asked ----

DIRECTIONS: dict[str, tuple[Frames, set[tuple[int, int]], list[Endpoint], tuple[End, End], str]] = {
    "a handshake": (fr.talk(A, S), set(), [], (A, S), "syn"),
    "a handshake, the answer first in the file": (fr.talk(A, S)[1::-1], set(), [], (A, S), "syn"),
    "a SYN against the ports": ([segment(LOW, HIGH, SYN)], set(), [], (LOW, HIGH), "syn"),
    "a SYN against specification and listener": (
        [segment(S, A, SYN)],
        {(TCP, 6443)},
        [listen(S)],
        (S, A),
        "syn",
    ),
    "only the SYN-ACK": ([segment(HIGH, LOW, SYN_ACK)], set(), [], (LOW, HIGH), "syn"),
    "a SYN-ACK and data from the other end": (
        [segment(HIGH, LOW, SYN_ACK), segment(LOW, HIGH, PUSH)],
        set(),
        [],
        (LOW, HIGH),
        "syn",
    ),
    "a listener learned from another connection": (
        [*fr.handshake(B, HIGH), *midway(LOW, HIGH)],
        set(),
        [],
        (LOW, HIGH),
        "listener",
    ),
    "a listener known from elsewhere": (midway(LOW, HIGH), set(), [listen(HIGH)], (LOW, HIGH), "listener"),
    "a listener against the specification": (
        midway(LOW, HIGH),
        {(TCP, 1000)},
        [listen(HIGH)],
        (LOW, HIGH),
        "listener",
    ),
    "a listener of another protocol": (midway(LOW, HIGH), set(), [listen(HIGH, UDP)], (HIGH, LOW), "port"),
    "a listener of another address": (
        midway(LOW, HIGH),
        set(),
        [listen((B[0], HIGH[1]))],
        (HIGH, LOW),
        "port",
    ),
    "both are known to listen": (midway(LOW, HIGH), set(), [listen(HIGH), listen(LOW)], (HIGH, LOW), "port"),
    "the specification names a port": (midway(LOW, HIGH), {(TCP, 50000)}, [], (LOW, HIGH), "spec"),
    "the specification names it for another protocol": (
        midway(LOW, HIGH),
        {(UDP, 50000)},
        [],
        (HIGH, LOW),
        "port",
    ),
    "the specification names both": (midway(LOW, HIGH), {(TCP, 50000), (TCP, 1000)}, [], (HIGH, LOW), "port"),
    "the lower port": (midway(LOW, HIGH), set(), [], (HIGH, LOW), "port"),
    "the lower port, one direction": ([segment(LOW, HIGH, ACK)], set(), [], (HIGH, LOW), "port"),
    "the lower port, UDP": ([fr.datagram(DNS, A)], set(), [], (A, DNS), "port"),
    "equal ports, the higher address first": (
        [fr.datagram(PEER_A, PEER_S), fr.datagram(PEER_S, PEER_A)],
        set(),
        [],
        (PEER_A, PEER_S),
        "port",
    ),
    "equal ports, the lower address first": (
        [fr.datagram(PEER_S, PEER_A), fr.datagram(PEER_A, PEER_S)],
        set(),
        [],
        (PEER_S, PEER_A),
        "port",
    ),
    "both open at once": (
        [
            segment(LOW, HIGH, SYN),
            segment(HIGH, LOW, SYN),
            segment(HIGH, LOW, SYN_ACK),
            segment(LOW, HIGH, SYN_ACK),
        ],
        set(),
        [],
        (HIGH, LOW),
        "port",
    ),
    "IPv6": (fr.talk(A6, S6), set(), [], (A6, S6), "syn"),
    **{
        f"to {group[0]}": (
            [fr.datagram(sender, group)],
            {(UDP, 1000)},
            [listen(sender, UDP)],
            (sender, group),
            "port",
        )
        for sender, group in (
            (LOW, ("239.192.1.1", 5405)),
            (LOW, ("224.0.0.1", 5405)),
            (LOW, ("255.255.255.255", 5405)),
            (("fe80::1", 1000), ("ff02::fb", 5405)),
        )
    },
    "to an address above multicast": (
        [fr.datagram(LOW, ("240.0.0.1", 5405))],
        set(),
        [],
        (("240.0.0.1", 5405), LOW),
        "port",
    ),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_who_asked(name: str) -> None:
    frames, ports, listeners, (client, server), by = DIRECTIONS[name]
    flow = one(flows_of(frames, frozenset(ports), tuple(listeners)), client, server)
    assert ends_of(flow) == (client, server)
    assert flow["direction_by"] == by


ECHOES = {
    "request and reply": ([fr.message(A[0], S[0], 8), fr.message(S[0], A[0], 0)], A[0], "answered"),
    "request only": ([fr.message(A[0], S[0], 8)], A[0], "unanswered"),
    "reply only": ([fr.message(S[0], A[0], 0)], A[0], "one-way"),
    "reply only, from the higher address": ([fr.message(A[0], S[0], 0)], S[0], "one-way"),
    "IPv6": ([fr.message(A6[0], S6[0], 128), fr.message(S6[0], A6[0], 129)], A6[0], "answered"),
    "IPv6 reply only": ([fr.message(S6[0], A6[0], 129)], A6[0], "one-way"),
    "neighbour solicitation": (
        [fr.message(A6[0], S6[0], 135), fr.message(S6[0], A6[0], 136)],
        A6[0],
        "answered",
    ),
    "timestamp": ([fr.message(A[0], S[0], 13), fr.message(S[0], A[0], 14)], A[0], "answered"),
}


@pytest.mark.parametrize("name", ECHOES)
def test_request_and_reply_are_one_flow(name: str) -> None:
    frames, client, outcome = ECHOES[name]
    (flow,) = (row for _, row in flows_of(frames).iterrows())
    assert flow["client"] == client
    assert flow["client_port"] in (8, 128, 135, 13), "the request's type"
    assert (flow["server_port"], flow["outcome"], flow["direction_by"]) == (0, outcome, "syn")
    assert flow["packets_out"] + flow["packets_in"] == len(frames)


@pytest.mark.parametrize("turn", [1, -1])
def test_pings_of_each_other_are_two_flows(turn: int) -> None:
    """One is answered, and does not hide that the other is not, whoever's rows come first."""
    asked, answered = [fr.message(A[0], S[0], 8)], [fr.message(S[0], A[0], 8), fr.message(A[0], S[0], 0)]
    table = flows_of([*asked, *answered, *asked][::turn])
    columns = ["client", "client_port", "packets_out", "packets_in", "outcome", "direction_by"]
    assert sorted(table[columns].itertuples(index=False, name=None)) == [
        (S[0], 8, 1, 1, "answered", "syn"),
        (A[0], 8, 2, 0, "unanswered", "syn"),
    ]


def test_a_ping_of_oneself() -> None:
    """As a capture of `lo` holds it: request and reply have the same ends."""
    (flow,) = (row for _, row in flows_of([fr.message(A[0], A[0], kind) for kind in (8, 0)]).iterrows())
    assert (flow["packets_out"], flow["packets_in"], flow["outcome"]) == (1, 1, "answered")


# ---- how it went ----


def ip(end: End, other: End, protocol: int, payload: bytes) -> bytes:
    return fr.on_wire(ipv4(protocol, payload, end[0], other[0]))


SYN_OUT, DATA_OUT = segment(A, S, SYN), segment(A, S, PUSH, 9)
OUTCOMES: dict[str, tuple[Frames, tuple[End, End], str]] = {
    "a conversation": (fr.talk(A, S), (A, S), "answered"),
    "midway, both directions": (midway(A, S), (A, S), "answered"),
    "accepted, then reset": ([*fr.handshake(A, S), segment(S, A, RST)], (A, S), "answered"),
    "UDP with an answer": ([fr.datagram(A, DNS), fr.datagram(DNS, A)], (A, DNS), "answered"),
    "a reset to a SYN": (fr.refusal(A, S), (A, S), "refused"),
    "resets to several SYNs": (fr.refusal(A, S) * 3, (A, S), "refused"),
    "a reset without ACK": ([SYN_OUT, segment(S, A, RST)], (A, S), "refused"),
    "a reset midway is no refusal": ([DATA_OUT, segment(S, A, RST)], (A, S), "answered"),
    "a SYN": ([SYN_OUT], (A, S), "unanswered"),
    "SYNs": ([SYN_OUT] * 4, (A, S), "unanswered"),
    "a SYN that is given up with a reset": ([SYN_OUT, segment(A, S, RST)], (A, S), "unanswered"),
    "UDP without an answer": ([fr.datagram(A, DNS)], (A, DNS), "unanswered"),
    "SCTP without an answer": ([ip(A, S, SCTP, sctp(A[1], S[1]))], (A, S), "unanswered"),
    "midway, the client only": ([DATA_OUT], (A, S), "one-way"),
    "midway, the server only": ([segment(S, A, PUSH, 9)], (A, S), "one-way"),
    "a SYN-ACK only": ([segment(S, A, SYN_ACK)], (A, S), "one-way"),
    "a SYN and acknowledgements": ([SYN_OUT, segment(A, S, ACK), DATA_OUT], (A, S), "one-way"),
    "a SYN, data and a reset with ACK": ([SYN_OUT, segment(A, S, RST | ACK)], (A, S), "one-way"),
    "a goodbye only": ([segment(A, S, FIN | ACK)], (A, S), "one-way"),
    "an answer of UDP only": ([fr.datagram(DNS, A)], (A, DNS), "one-way"),
    "another protocol": ([ip(A, S, 47, gre(0x88BE, b""))], ((A[0], 0), (S[0], 0)), "one-way"),
    "a refusal that was answered at last": ([*fr.refusal(A, S), *fr.talk(A, S)], (A, S), "answered"),
    "unreachable, and yet answered": (
        [SYN_OUT, fr.unreachable(S[0], SYN_OUT, 1), *fr.talk(A, S)],
        (A, S),
        "answered",
    ),
    "unreachable, said by a router": (
        [SYN_OUT, fr.unreachable("10.10.0.1", SYN_OUT, 1)],
        (A, S),
        "unreachable",
    ),
    "unreachable, the flow itself not in the capture": (
        [fr.unreachable(S[0], SYN_OUT, 3)],
        (A, S),
        "unreachable",
    ),
    "too big a packet over IPv6": (
        [segment(A6, S6, SYN), fr.message(S6[0], A6[0], 2, 0, segment(A6, S6, SYN)[14:])],
        (A6, S6),
        "unanswered",
    ),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_how_it_went(name: str) -> None:
    frames, ends, outcome = OUTCOMES[name]
    flow = one(flows_of(frames), *ends)
    assert flow["outcome"] == outcome
    assert flow["client"] == ends[0][0], "who asked"


@pytest.mark.parametrize("asked", [SYN_OUT, fr.datagram(A, DNS)], ids=["tcp", "udp"])
@pytest.mark.parametrize("code", range(16))
def test_every_code_of_unreachable_but_fragmentation_needed(asked: bytes, code: int) -> None:
    """RFC 792 code 4 (RFC 1191: path MTU discovery) says that the packet was too large, no more."""
    server = S if asked is SYN_OUT else DNS
    flow = one(flows_of([asked, fr.unreachable(server[0], asked, code)]), A, server)
    assert flow["outcome"] == ("unanswered" if code == 4 else "unreachable")
    assert (flow["packets_out"], flow["packets_in"]) == (1, 0), "a quote is no packet"


@pytest.mark.parametrize("code", range(8))
def test_every_code_of_unreachable_over_ipv6(code: int) -> None:
    asked = segment(A6, S6, SYN)
    assert one(flows_of([asked, fr.unreachable(S6[0], asked, code)]), A6, S6)["outcome"] == "unreachable"


def test_unreachable_says_nothing_of_other_flows() -> None:
    other = segment(B, S, SYN)
    table = flows_of([SYN_OUT, other, fr.unreachable(S[0], SYN_OUT, 1)])
    assert one(table, B, S)["outcome"] == "unanswered"


# ---- carriers ----

INNER_A, INNER_B = ("10.42.1.6", 42000), ("10.42.0.5", 80)


def overlay(frames: Frames, ports: tuple[int, int] = (51000, 52000)) -> Frames:
    """Frames between two pods, each in a carrier whose source port hangs on the direction."""
    result = []
    for frame in frames:
        out = frame[26:30] == ipaddress.ip_address(INNER_A[0]).packed
        way = (A[0], S[0]) if out else (S[0], A[0])
        result.append(fr.carried(frame, *way, source_port=ports[0] if out else ports[1]))
    return result


def carriers(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["server_port"].isin(CARRIER_PORTS)]


def test_each_direction_of_a_carrier_is_a_row_whose_client_is_the_sender() -> None:
    frames = overlay(fr.talk(INNER_A, INNER_B))
    table = carriers(flows_of(frames, frozenset({(UDP, 8472)})))
    rows = set(
        zip(table["client"], table["client_port"], table["packets_out"], table["packets_in"], strict=True)
    )
    assert rows == {(A[0], 51000, 5, 0), (S[0], 52000, 3, 0)}
    assert set(table["outcome"]) == {"answered"}
    assert set(table["direction_by"]) == {"spec"}


def test_a_carrier_with_a_source_port_below_its_destination_port() -> None:
    """Its source port is a hash: it tells nothing, though it is the lower one or that of a service."""
    frames = overlay(fr.talk(INNER_A, INNER_B), (4789, 53))
    table = carriers(flows_of(frames))
    assert set(zip(table["client"], table["client_port"], strict=True)) == {(A[0], 4789), (S[0], 53)}


@pytest.mark.parametrize(
    ("back", "outcome"),
    [
        ([], "unanswered"),
        ([fr.carried(segment(INNER_B, INNER_A, ACK), S[0], A[0])], "answered"),
        ([fr.carried(segment(INNER_B, INNER_A, ACK), S[0], A[0], port=4789)], "unanswered"),
        ([fr.carried(segment(INNER_B, INNER_A, ACK), S[0], B[0])], "unanswered"),
        ([fr.carried(segment(B, S, SYN), S[0], A[0])], "answered"),
    ],
    ids=["nothing", "the same tunnel", "another tunnel", "another node", "another inner flow"],
)
def test_a_carrier_is_answered_by_pair(back: Frames, outcome: str) -> None:
    there = fr.carried(segment(INNER_A, INNER_B, SYN), A[0], S[0], source_port=50001)
    assert one(flows_of([there, *back]), (A[0], 50001), (S[0], 8472))["outcome"] == outcome


def test_a_datagram_to_the_tunnel_port_that_is_no_tunnel_is_an_ordinary_flow() -> None:
    asked, answer = (A[0], 50001), (S[0], 8472)
    flow = one(
        flows_of([fr.datagram(asked, answer, b"plain"), fr.datagram(answer, asked, b"text")]), asked, answer
    )
    assert (flow["packets_out"], flow["packets_in"], flow["outcome"]) == (1, 1, "answered")


@pytest.mark.parametrize("part", [slice(None), slice(0, 1), slice(1, 2)], ids=["both", "there", "back"])
def test_an_inner_flow_hangs_on_its_carrier(part: slice) -> None:
    """Also where only one direction was seen, the outer client is the tunnel's end on the client's side."""
    flow = one(flows_of(overlay(fr.talk(INNER_A, INNER_B)[part])), INNER_A, INNER_B)
    assert (flow["tunnel"], flow["vni"]) == ("vxlan", 1)
    assert (flow["outer_client"], flow["outer_server"]) == (A[0], S[0])


def test_equal_inner_flows_of_two_networks_stay_apart() -> None:
    ask = segment(INNER_A, INNER_B, SYN)
    table = flows_of([fr.carried(ask, A[0], S[0], vni=vni) for vni in (1, 2)])
    assert sorted(table[table["tunnel"] == "vxlan"]["vni"]) == [1, 2]


# ---- the table ----


def test_two_nodes_that_saw_one_packet_saw_one_packet() -> None:
    """Each row stands at its own time, and no two overlap; but both nodes watched all the while."""
    asked = segment(A, S, SYN)
    parts = [
        fr.read(fr.pcap([Frame(asked, EPOCH + delay)], "ns"), source)
        for source, delay in (("agent-1", 0), ("server-1", 20_000))
    ]
    live = [
        replace(part, coverage=(replace(part.coverage[0], start=EPOCH - NS, end=EPOCH + NS),))
        for part in parts
    ]
    for order in (live, live[::-1]):
        table = pair(merge(order))
        assert (table["packets_out"].tolist(), table["witnesses"].tolist()) == ([1], ["agent-1;server-1"])
    assert pair(merge(parts))["packets_out"].tolist() == [2]  # two captures, the one after the other


def test_columns_and_their_types() -> None:
    for table in (pair(OneWay()), flows_of(fr.talk(A, S)), flows_of([fr.arp()])):
        assert list(table) == list(COLUMNS)
        kinds = {name: str(table[name].dtype) for name in COLUMNS}
        assert kinds["start"] == kinds["end"] == "datetime64[ns, UTC]"
        assert {kinds[f"{what}_{way}"] for what in ("packets", "bytes") for way in ("out", "in")} == {
            "uint64"
        }
        assert kinds["client_port"] == kinds["server_port"] == "uint16"
        texts = (
            "source",
            "witnesses",
            "client",
            "server",
            "protocol",
            "tunnel",
            "outer_client",
            "outcome",
            "direction_by",
            "process",
            "pod",
            "drops",
        )
        assert kinds["pid"] == "Int64"
        assert {kinds[name] for name in texts} == {"category"}


def test_counts_of_one_connection() -> None:
    (flow,) = (row for _, row in flows_of([fr.arp(), *fr.talk(A, S)]).iterrows())
    assert (flow["packets_out"], flow["packets_in"]) == (5, 3)
    assert (flow["bytes_out"], flow["bytes_in"]) == (4 * 40 + 140, 2 * 40 + 1040)
    assert (flow["tcp_flags_out"], flow["tcp_flags_in"]) == (SYN | FIN | PUSH, SYN | FIN | PUSH)
    assert flow["first_frame"] == 2
    assert (flow["start"].value, flow["end"].value) == (EPOCH + 1_000_000, EPOCH + 8_000_000)
    assert (flow["source"], flow["witnesses"]) == ("capture.pcap", "capture.pcap")


def test_the_opening_tells_the_direction_of_every_interval() -> None:
    """A SYN in the first part still tells who asked in the last, whichever is merged first."""
    ends = (LOW, HIGH)
    opening = fr.read(fr.pcap(fr.timed(fr.handshake(*ends))), interval=NS)
    later = fr.read(fr.pcap(fr.timed(midway(*ends), start=EPOCH + 100 * NS)), interval=NS)
    alone = pair(later)
    assert alone["direction_by"].tolist() == ["port"]
    table = pair(merge([later, opening]))
    assert table["client"].tolist() == [LOW[0], LOW[0]]
    assert table["direction_by"].tolist() == ["syn", "syn"]
    assert table["packets_out"].tolist() == [2, 1]


@pytest.mark.parametrize("kind", FILES)
@given(frames=traffic(), seed=st.integers(0, 2**16), interval=st.sampled_from((0, NS)))
@settings(max_examples=60, deadline=None)
def test_the_order_of_rows_does_not_matter(kind: str, frames: list[Frame], seed: int, interval: int) -> None:
    one_way = fr.read(FILES[kind](frames), interval=interval).settled()
    same_table(pair(fr.shuffled(one_way, seed)), pair(one_way))


# ---- and back ----


@pytest.mark.parametrize("kind", FILES)
@given(frames=traffic(), interval=st.sampled_from((0, NS)), seed=st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_unpaired_flows_pair_to_the_same_table(
    kind: str, frames: list[Frame], interval: int, seed: int
) -> None:
    """Lost are each direction's times, the ICMP code, and lesser witnesses' counts: the table has none."""
    one_way = fr.read(FILES[kind](frames), interval=interval).settled()
    table = pair(one_way, frozenset({(TCP, 6443), (UDP, 8472)}))
    back = unpair(table, one_way.coverage, interval)
    assert back.coverage == one_way.coverage
    same_table(pair(fr.shuffled(back, seed), frozenset({(TCP, 6443), (UDP, 8472)})), table)


@pytest.mark.parametrize("name", [*DIRECTIONS, *OUTCOMES])
def test_unpairing_keeps_each_case(name: str) -> None:
    frames = (DIRECTIONS.get(name) or OUTCOMES[name])[0]
    ports, listeners = (
        (frozenset(DIRECTIONS[name][1]), DIRECTIONS[name][2]) if name in DIRECTIONS else (frozenset(), [])
    )
    table = flows_of(frames, ports, tuple(listeners))
    same_table(pair(unpair(table), ports, listeners), table)


def test_who_was_not_heard_was_not_heard_first() -> None:
    """Flows were saved by their ports alone, and are judged by a specification that names the other end's."""
    frames, named = [fr.datagram((HIGH[0], 53), (LOW[0], 8472), b"plain")] * 2, frozenset({(UDP, 8472)})
    same_table(pair(unpair(flows_of(frames)), named), flows_of(frames, named))


def test_what_unpairing_loses() -> None:
    """Whether a datagram to a tunnel's port held a tunnel: unanswered ones are taken for carriers."""
    there, back = (
        fr.datagram((A[0], 50001), (S[0], 8472), b"plain"),
        fr.datagram((S[0], 50002), (A[0], 8472), b"plain"),
    )
    table = flows_of([there, back])
    assert table["outcome"].tolist() == ["unanswered", "unanswered"]
    assert pair(unpair(table))["outcome"].tolist() == ["answered", "answered"]


def test_intervals_that_were_saved_join_those_that_follow() -> None:
    ends = (LOW, HIGH)
    first = pair(fr.read(fr.pcap(fr.timed(fr.handshake(*ends)))))
    later = fr.read(fr.pcap(fr.timed(midway(*ends), start=EPOCH + 100 * NS)))
    (flow,) = (row for _, row in pair(merge([unpair(first), later])).iterrows())
    assert (flow["client"], flow["direction_by"]) == (LOW[0], "syn")
    assert (flow["packets_out"], flow["packets_in"]) == (3, 2)


def test_a_learned_listener_is_remembered() -> None:
    table = flows_of([*fr.handshake(B, HIGH), *midway(LOW, HIGH)])
    assert unpair(table[table["direction_by"] == "listener"]).listeners == {listen(HIGH)}
    apart = unpair(table[table["client"] == LOW[0]])
    assert pair(apart)["client"].tolist() == [LOW[0]]


def test_unpairing_asks_for_its_columns() -> None:
    with pytest.raises(CaptureError, match=r"unpair\(\): .* no column witnesses"):
        unpair(flows_of(fr.talk(A, S)).drop(columns="witnesses"))


# ---- addresses ----


@given(st.ip_addresses())
def test_addresses_there_and_back(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    packed = parse_address(str(address))
    expected = address if address.version == 4 or address.ipv4_mapped is None else address.ipv4_mapped
    assert len(packed) == 16
    assert ipaddress.ip_address(format_address(packed)) == expected


@pytest.mark.parametrize("text", ["", "10.0.0", "node-1", "10.0.0.1/8", "fe80::1%eth0", "::g"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(OSError, match="illegal IP address"):
        parse_address(text)


def test_no_row_is_lost_where_a_flow_has_no_time() -> None:
    table = pair(fr.read(fr.pcapng([Frame(f) for f in fr.talk(A, S)], kind="simple"), interval=NS))
    assert int(table["packets_out"].sum()) == 5
    assert table["start"].isna().all()
    same_table(pair(unpair(table, interval=NS)), table)
    assert np.array_equal(replace(unpair(table)).rows["interval"], [0, 0])
