"""Counting each datagram once, however many saw it. Rule: captures in, flow table out; who saw what is
written out by hand.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import frames as fr
import pandas as pd
import pytest
from frames import EPOCH, NS, Frame, Interface, on_any, segment, talk, timed
from packets import ACK, ETHERNET, SLL2, SYN

from analyzer._witness import capturing_node
from analyzer.flows import pair, unpair
from analyzer.rows import Observer, OneWay, merge
from analyzer.store import read_flows, read_inputs, write_flows

if TYPE_CHECKING:
    from pathlib import Path

AGENT, SERVER = ("10.10.0.21", 40000), ("10.10.0.11", 6443)
POD, PEER = ("10.42.1.6", 42000), ("10.42.0.5", 80)
WHOLE = timed(talk(AGENT, SERVER, 3))  # 7 out, 5 in
LATER = 100 * NS


def capture(source: str, frames: list[Frame], *, link: int = ETHERNET, interval: int = 0) -> OneWay:
    return fr.read(fr.pcap(frames, "ns", link=link), source, interval)


def only(table: pd.DataFrame) -> pd.Series:
    assert len(table) == 1, table.to_string()
    return table.iloc[0]


def seen(*parts: OneWay) -> pd.Series:
    """The one flow of several captures, whatever the order in which they come."""
    row = only(pair(merge(parts)))
    pd.testing.assert_series_equal(row, only(pair(merge(parts[::-1]))))
    return row


def counts(row: pd.Series) -> tuple[int, int]:
    return int(row["packets_out"]), int(row["packets_in"])


def after(frames: list[Frame], by: int) -> list[Frame]:
    return [replace(f, time=f.time + by) for f in frames]


# ---- one node, many interfaces ----

VETH, BRIDGE, UPLINK = 10, 5, 2


def on_node(frames: list[bytes]) -> list[Frame]:
    """What `-i any` on the client's node shows of two pods: veth, bridge, and the carrier on the uplink; what
    comes back the other way round.
    """
    result = []
    for n, frame in enumerate(frames):
        out = segment(POD, PEER, 0)[26:30] == frame[26:30]
        way = (AGENT[0], SERVER[0]) if out else (SERVER[0], AGENT[0])
        copies = [(frame, VETH), (frame, BRIDGE), (fr.carried(frame, *way), UPLINK)]
        for at, (data, ifindex) in enumerate(copies if out else copies[::-1]):
            packet_type = 4 * ((ifindex == UPLINK) == out)
            result.append(on_any(Frame(data, EPOCH + n * 1_000_000 + at), ifindex, packet_type))
    return result


def test_a_pods_datagram_on_veth_bridge_and_uplink_counts_once() -> None:
    table = pair(capture("any.pcap", on_node(talk(POD, PEER)), link=SLL2))
    inner = only(table[table["server"] == PEER[0]])
    assert counts(inner) == (5, 3)
    assert (inner["bytes_out"], inner["bytes_in"]) == (4 * 40 + 140, 2 * 40 + 1040)
    assert inner["witnesses"] == "any.pcap:if10;any.pcap:if2;any.pcap:if5"
    assert (inner["tunnel"], inner["vni"], inner["outer_client"]) == ("vxlan", 1, AGENT[0])
    carriers = table[table["server_port"] == 8472]
    assert sorted(carriers["packets_out"]) == [3, 5]
    assert set(carriers["witnesses"]) == {"any.pcap:if2"}


def test_one_interface_that_shows_a_datagram_coming_and_going_counts_it_once() -> None:
    """A router: in and out on the same device, and no name in the file that would tell the two apart."""
    frames = [f for frame in WHOLE for f in (on_any(frame, 2, 0), on_any(frame, 2, 4))]
    row = seen(capture("any.pcap", frames, link=SLL2))
    assert counts(row) == (7, 5)
    assert row["witnesses"] == "any.pcap:if2"


def test_one_interface_that_shows_a_datagram_inside_and_outside_of_its_tunnel_counts_it_once() -> None:
    """A mirror port in front of and behind the tunnel's end, in a file that knows no interfaces."""
    frames = [Frame(d, EPOCH + n) for n, d in enumerate(talk(POD, PEER))]
    both = [g for f in frames for g in (f, replace(f, data=fr.carried(f.data, AGENT[0], SERVER[0])))]
    table = pair(capture("mirror.pcap", both))
    assert counts(only(table[table["server"] == PEER[0]])) == (5, 3)


def test_interfaces_of_a_pcapng_file() -> None:
    frames = [replace(f, interface=n) for f in WHOLE for n in (0, 1)]
    file = fr.pcapng(frames[:-1], interfaces=(Interface("eth0", 9), Interface("br0", 9)))
    row = seen(fr.read(file, "x.pcapng"))
    assert counts(row) == (7, 5)
    assert (row["source"], row["witnesses"]) == ("x.pcapng:0-eth0", "x.pcapng:0-eth0;x.pcapng:1-br0")


def test_a_flow_that_is_in_two_tunnels_is_not_folded_into_either() -> None:
    """The same pod addresses in two networks: which one the plain flow belongs to cannot be told."""
    ask = segment(POD, PEER, SYN)
    frames = [ask, *(fr.carried(ask, AGENT[0], SERVER[0], vni=vni) for vni in (1, 2))]
    table = pair(capture("x.pcap", timed(frames)))
    mine = table[table["server"] == PEER[0]]
    assert sorted(zip(mine["tunnel"], mine["vni"], mine["packets_out"], strict=True)) == [
        ("", 0, 1),
        ("vxlan", 1, 1),
        ("vxlan", 2, 1),
    ]


def identified(frames: list[bytes], *, node: str = AGENT[0]) -> list[bytes]:
    """Carriers as Cilium makes them: the VNI is the sender's identity."""
    out = [frame[26:30] == segment(POD, PEER, 0)[26:30] for frame in frames]
    return [
        fr.carried(frame, node, SERVER[0], vni=4711) if to else fr.carried(frame, SERVER[0], node, vni=815)
        for frame, to in zip(frames, out, strict=True)
    ]


def test_a_flow_whose_directions_have_each_their_vni_is_one() -> None:
    """Seen on the pod's veth as well, it is that flow all the same."""
    talk_of_pods = talk(POD, PEER)
    for frames in (identified(talk_of_pods), [*talk_of_pods, *identified(talk_of_pods)]):
        table = pair(capture("x.pcap", timed(frames)))
        inner = only(table[table["server"] == PEER[0]])
        assert counts(inner) == (5, 3)
        assert (inner["outcome"], inner["direction_by"], inner["vni"]) == ("answered", "syn", 4711)
        assert (inner["outer_client"], inner["outer_server"]) == (AGENT[0], SERVER[0])


def test_networks_that_can_be_told_apart_stay_apart() -> None:
    """Both directions in one network and one of them in another; or one direction in each of two, and in two
    both.
    """
    ask, answer = talk(POD, PEER)[:2]
    way, back = (AGENT[0], SERVER[0]), (SERVER[0], AGENT[0])
    whole = [fr.carried(ask, *way, vni=1), fr.carried(answer, *back, vni=1)]
    for more in ([fr.carried(answer, *back, vni=2)], [fr.carried(ask, *way, vni=2)]):
        table = pair(capture("x.pcap", timed([*whole, *more])))
        assert sorted(table[table["server"] == PEER[0]]["vni"]) == [1, 2]
    asked = [fr.carried(ask, *way, vni=vni) for vni in (1, 2)]
    table = pair(capture("x.pcap", timed([*asked, fr.carried(answer, *back, vni=3)])))
    assert sorted(table[table["server"] == PEER[0]]["vni"]) == [1, 2, 3]


def refused(frame: bytes, *, vni: int, by: str = PEER[0]) -> bytes:
    """What `by`, behind the other tunnel's end, says of a pod's frame."""
    return fr.carried(fr.unreachable(by, frame, 3), SERVER[0], AGENT[0], vni=vni)


def test_what_icmp_says_under_its_senders_vni_is_of_the_flow() -> None:
    """A question that is not answered, one that is answered before, one that was seen on the veth too; the
    quote comes under the VNI of the pod that refuses, or of the node for it, before or after what it quotes.
    """
    ask, answer = fr.datagram(POD, PEER, b"?"), fr.datagram(PEER, POD, b"!")
    asked, answered = identified([ask, answer])
    for by, vni in ((PEER[0], 815), (SERVER[0], 6)):
        quote = refused(ask, vni=vni, by=by)
        for more, frames in (
            ((1, 0), [asked, quote]),
            ((1, 0), [ask, asked, quote]),
            ((1, 1), [asked, answered, quote]),
            ((1, 1), [ask, quote, answered, asked]),
        ):
            for order in (frames, frames[::-1]):
                table = pair(capture("x.pcap", timed(order)), frozenset({(17, PEER[1])}))
                inner = only(table[(table["server"] == PEER[0]) & (table["protocol"] == "udp")])
                assert (counts(inner), inner["vni"], inner["client"]) == (more, 4711, POD[0])
                assert inner["outcome"] == ("answered" if more[1] else "unreachable")


def test_what_icmp_says_of_one_of_two_networks_stays_apart() -> None:
    """Which of them it is of cannot be told; nor is there one where only the quote was seen."""
    ask = fr.datagram(POD, PEER, b"?")
    asked = [fr.carried(ask, AGENT[0], SERVER[0], vni=vni) for vni in (1, 2)]
    for frames, vnis in ((asked, [1, 2]), ([], [])):
        table = pair(capture("x.pcap", timed([*frames, refused(ask, vni=3)])))
        mine = table[(table["server"] == PEER[0]) & (table["protocol"] == "udp")]
        assert sorted(mine["vni"]) == [*vnis, 3]
        assert set(mine[mine["vni"] != 3]["outcome"]) <= {"unanswered"}


def test_a_forged_inner_packet_does_not_hide_a_flow_of_nodes() -> None:
    """Whoever may send VXLAN can send an inner packet of any 5-tuple: that of a flow between nodes too."""
    forged = fr.carried(segment(AGENT, SERVER, SYN), AGENT[0], SERVER[0])
    table = pair(capture("x.pcap", timed([*talk(AGENT, SERVER, 3), forged])))
    mine = table[(table["server"] == SERVER[0]) & (table["server_port"] == SERVER[1])]
    assert sorted(zip(mine["tunnel"], mine["packets_out"], strict=True)) == [("", 7), ("vxlan", 1)]


# ---- several nodes ----


def test_the_fullest_witness_stands() -> None:
    row = seen(capture("agent.pcap", WHOLE), capture("server.pcap", WHOLE[2:]))
    assert counts(row) == (7, 5)
    assert (row["source"], row["witnesses"]) == ("agent.pcap", "agent.pcap;server.pcap")
    assert row["first_frame"] == 1


def test_each_direction_has_its_own_fullest_witness() -> None:
    """Each node dropped some of what it sent last: together they have seen all."""
    out = [f for f in WHOLE if f.data[26:30] == WHOLE[0].data[26:30]]
    back = [f for f in WHOLE if f not in out]
    agent = sorted([*out, *back[:2]], key=lambda f: f.time)
    server = sorted([*out[:3], *back], key=lambda f: f.time)
    row = seen(capture("agent.pcap", agent), capture("server.pcap", server))
    assert counts(row) == (7, 5)
    assert row["source"] == "agent.pcap", "the one whose counts are larger"


def test_of_equal_witnesses_one_stands_whatever_the_order() -> None:
    row = seen(capture("b.pcap", WHOLE), capture("a.pcap", WHOLE))
    assert counts(row) == (7, 5)
    assert row["witnesses"] == "a.pcap;b.pcap"


def test_a_witness_without_counts_does_not_stand_for_the_fullest() -> None:
    """In a flow table the lesser witnesses keep their names alone; here one seems to follow the other, as
    parts of a rotated capture do.
    """
    whole = [Frame(f.data, EPOCH) for f in WHOLE]
    table = pair(merge([capture("node-3.pcap", whole), capture("node-2.pcap", whole[:1])]))
    again = only(pair(unpair(table)))
    assert again["source"] == only(table)["source"] == "node-3.pcap"
    assert counts(again) == counts(only(table)) == (7, 5)


def test_flags_and_times_are_of_all_witnesses() -> None:
    row = seen(capture("agent.pcap", WHOLE[3:]), capture("server.pcap", after(WHOLE[:3], 5)))
    assert row["direction_by"] == "syn"
    assert row["tcp_flags_out"] & SYN
    assert row["start"].value == EPOCH + 5


def test_one_side_saw_it_and_the_other_did_not() -> None:
    """Lost between the two: the server's capture runs all the while, and holds no frame of it."""
    lost = timed([segment(AGENT, SERVER, SYN)] * 3, step=NS)
    other = timed(talk(("10.10.0.22", 40001), SERVER), step=NS)
    table = pair(merge([capture("agent.pcap", lost), capture("server.pcap", other)]))
    row = only(table[table["client"] == AGENT[0]])
    assert (row["outcome"], row["witnesses"], counts(row)) == ("unanswered", "agent.pcap", (3, 0))


def test_the_answer_was_seen_on_one_side_only() -> None:
    """Lost on the way back: only both captures together tell that the server did answer."""
    asked, answered = timed([segment(AGENT, SERVER, SYN)]), timed(talk(AGENT, SERVER)[:2])
    row = seen(capture("agent.pcap", asked), capture("server.pcap", answered))
    assert counts(row) == (1, 1)


# ---- one after the other ----


@pytest.mark.parametrize("gap", [0, 1, NS, -20_000], ids=["the same time", "1 ns", "1 s", "20 µs earlier"])
def test_parts_of_a_rotated_capture_add_up(gap: int) -> None:
    """Also where another node saw both parts, and where the last frame and the next have one time, or stand
    the other way round.
    """
    parts = [
        capture("agent_00001.pcap", WHOLE[:5]),
        capture("agent_00002.pcap", after(WHOLE[5:], gap - 1_000_000)),
    ]
    assert counts(seen(*parts)) == (7, 5)
    row = seen(*parts, capture("server.pcap", WHOLE[:-1]))
    assert counts(row) == (7, 5)
    assert row["witnesses"] == "agent_00001.pcap;agent_00002.pcap;server.pcap"


@pytest.mark.parametrize("gap", [0, 1, NS, -20_000], ids=["the same time", "1 ns", "1 s", "20 µs earlier"])
def test_parts_that_are_sections_of_one_file_add_up(gap: int) -> None:
    """As `cat` makes of pcapng files: the same interface has another number in each section."""
    parts = (WHOLE[:5], after(WHOLE[5:], gap - 1_000_000))
    eth0, other = Interface("eth0"), Interface("eth1")
    file = b"".join(fr.pcapng(part, interfaces=(eth0, other)) for part in parts)
    assert counts(seen(fr.read(file))) == (7, 5)
    twice = [replace(frame, interface=n) for frame in parts[1] for n in (0, 1)]
    assert counts(seen(fr.read(file + fr.pcapng(twice, interfaces=(other, eth0))))) == (7, 5)


def test_what_two_saw_together_for_a_moment_is_no_rotated_capture() -> None:
    """No more than 20 µs, and that is half of what either saw."""
    parts = [
        capture("agent-1.pcap", timed(talk(AGENT, SERVER), step=10_000)),
        capture("agent-2.pcap", after(timed(talk(AGENT, SERVER), step=10_000), 20_000)),
    ]
    assert counts(seen(*parts)) == counts(seen(parts[0]))


@pytest.mark.parametrize(
    "name", ["agent-{}_{:05}.pcap", "{1:03}-node{0}.pcap", "10.0.{0}.{0}.pcap{1:.0}", "n{0}-2026112{1}.pcap"]
)
def test_rotated_captures_of_nodes_whose_names_differ_in_digits(name: str) -> None:
    """Cut by size, their parts end at any time, and one of a node could follow one of the other."""
    parts = []
    for node, cuts in ((1, (0, 3, 6, 9, 12)), (2, (0, 2, 7, 11, 12)), (3, (0, 4, 5, 8, 12))):
        for number, (a, b) in enumerate(pairwise(cuts)):
            text = name.replace("{1:.0}", str(number or "")).format(node, number)
            parts.append(capture(text, WHOLE[a:b]))
    row = seen(*parts)
    assert counts(row) == (7, 5)
    assert len(row["witnesses"].split(";")) == 12
    assert counts(seen(*parts[:8], capture("4.pcap", WHOLE[:9]))) == (7, 5)


@pytest.mark.parametrize("end", [".pcap", "_1.pcap.gz"])
def test_nodes_that_were_captured_one_after_the_other_are_no_parts(end: str) -> None:
    """Who watched between them saw what neither of them did. Without names of nodes they may be parts, of
    which one is missing.
    """
    days = (WHOLE, after(WHOLE, 2 * LATER))
    parts = [capture(f"server-{n}{end}", frames) for n, frames in enumerate(days, 1)]
    between = capture("agent-1.pcap", after(WHOLE, LATER))
    whole = merge([*parts, between])
    nodes = ("agent-1", "server-1", "server-2")
    assert counts(only(pair(whole, nodes=nodes))) == (21, 15)
    assert counts(only(pair(whole))) == counts(only(pair(whole, nodes=("agent-1", "server")))) == (14, 10)


@pytest.mark.parametrize("packed", [".gz", ".zst", ".lz4"])
def test_parts_of_which_some_are_packed(packed: str) -> None:
    """As rotation leaves them that packs what is done with; and one of them twice, packed and not."""
    cuts = tuple(pairwise((0, 3, 6, 9, 12)))
    parts = [capture(f"agent.pcap{n}{packed if n % 2 else ''}", WHOLE[a:b]) for n, (a, b) in enumerate(cuts)]
    assert counts(seen(*parts)) == (7, 5)
    assert counts(seen(*parts, capture("agent.pcap1", WHOLE[3:6]))) == (7, 5)


def test_captures_apart_in_time_add_up_whatever_their_names() -> None:
    row = seen(capture("monday.pcap", WHOLE), capture("tuesday.pcap", after(WHOLE, LATER)))
    assert counts(row) == (14, 10)


@pytest.mark.parametrize("interval", [0, 1000 * NS], ids=["whole", "intervals"])
def test_who_saw_nothing_of_a_flow_joins_nobody(interval: int) -> None:
    """A third node's capture overlaps both, and holds other flows."""
    days = [
        capture("monday.pcap", WHOLE, interval=interval),
        capture("tuesday.pcap", after(WHOLE, LATER), interval=interval),
    ]
    others = timed([segment(("10.10.0.22", 40001), SERVER, ACK)] * 2, step=LATER)
    table = pair(merge([*days, capture("both.pcap", others, interval=interval)]))
    assert counts(only(table[table["client"] == AGENT[0]])) == (14, 10)


def test_who_saw_both_ends_of_a_flow_joins_them() -> None:
    """All of it was seen by the third node, too: whose datagrams the others saw."""
    days = capture("monday.pcap", WHOLE), capture("tuesday.pcap", after(WHOLE, LATER))
    row = seen(*days, capture("both.pcap", [*WHOLE, *after(WHOLE, LATER)]))
    assert counts(row) == (14, 10)
    assert row["source"] == "both.pcap"


def test_a_witness_without_counts_joins_nobody() -> None:
    """A flow table names it, and does not say what it counted."""
    days, edges = (WHOLE, after(WHOLE, LATER)), (WHOLE[:1], after(WHOLE, LATER)[-1:])
    both = capture("both.pcap", [frame for frames in edges for frame in frames])
    saved = []
    for name, frames, edge in zip(("monday.pcap", "tuesday.pcap"), days, edges, strict=True):
        part = merge([capture(name, frames), capture("both.pcap", edge)])
        saved.append(unpair(pair(part), [*capture(name, frames).coverage, *both.coverage]))
    row = seen(*saved)
    assert row["witnesses"] == "both.pcap;monday.pcap;tuesday.pcap"
    assert counts(row) == (14, 10)


@pytest.mark.parametrize(("late", "packets"), [(1, 1), (5_000_000, 1), (20_000_000, 3)])
def test_one_datagram_alone_on_its_way_through_a_node_counts_once(late: int, packets: int) -> None:
    """On no interface is there anything else, so that each is quiet before and after. One that comes on
    another much later is another one.
    """
    way = [(VETH, 0), (BRIDGE, 0), (UPLINK, 4)]
    ask = segment(POD, PEER, SYN)
    frames = [on_any(Frame(ask, EPOCH + n * late), *where) for n, where in enumerate(way)]
    assert counts(seen(capture("any.pcap", frames, link=SLL2))) == (packets, 0)


def test_any_interface_at_the_beginning_of_time() -> None:
    """Where a clock was not set, or times are made relative: the first datagram comes at 0 ns."""
    frames = [on_any(frame, ifindex) for frame in after(WHOLE, -EPOCH) for ifindex in (VETH, UPLINK)]
    assert counts(seen(capture("any.pcap", frames, link=SLL2))) == (7, 5)


def test_interfaces_of_one_capture_watch_together() -> None:
    """A quiet one has no window of its own: that another was busy meanwhile says that it was there."""
    ask = Frame(segment(POD, PEER, SYN), EPOCH + NS)
    busy = timed([segment(AGENT, SERVER, ACK)] * 3, step=NS)
    veth, bridge = on_any(ask, VETH), on_any(replace(ask, time=ask.time + 1000), BRIDGE, 4)
    frames = sorted([*(on_any(f, UPLINK) for f in busy), veth, bridge], key=lambda f: f.time)
    table = pair(capture("any.pcap", frames, link=SLL2))
    assert counts(only(table[table["client"] == POD[0]])) == (1, 0)


def test_each_interval_has_its_own_fullest_witness() -> None:
    """The agent's capture is the fuller one in the first interval, the server's in the second."""
    second = after(WHOLE, NS)
    agent = capture("agent.pcap", [*WHOLE, *second[:4]], interval=NS)
    server = capture("server.pcap", [*WHOLE[:4], *second], interval=NS)
    table = pair(merge([agent, server]))
    assert table["source"].tolist() == ["agent.pcap", "server.pcap"]
    assert table["packets_out"].tolist() == [7, 7]


# ---- the same once more ----


@pytest.mark.parametrize("names", [("a.pcap", "copy.pcap"), ("a1.pcap", "a2.pcap")])
@pytest.mark.parametrize("frames", [WHOLE, WHOLE[:1]], ids=["a conversation", "one frame"])
def test_a_copy_of_a_file_counts_once(names: tuple[str, str], frames: list[Frame]) -> None:
    one = seen(capture(names[0], frames))
    both = seen(*(capture(name, frames) for name in names))
    assert counts(both) == counts(one)
    assert both["witnesses"] == ";".join(names)


def test_the_same_file_given_twice_counts_once(tmp_path: Path) -> None:
    path = fr.save(tmp_path, "x.pcap", fr.pcap(WHOLE))
    table = pair(read_inputs([path, tmp_path, str(path)]))
    assert counts(only(table)) == (7, 5)


def test_a_saved_table_and_its_capture_count_once(tmp_path: Path) -> None:
    """The flow file names the same source: it is no second observer, yet not the sum either."""
    path = fr.save(tmp_path, "agent.pcap", fr.pcap(WHOLE))
    write_flows(pair(read_inputs([path])), tmp_path / "server.parquet")
    table = pair(merge([capture("server.pcap", WHOLE), read_flows(tmp_path / "server.parquet")]))
    assert counts(only(table)) == (7, 5)


# ---- names ----


def test_semicolons_in_names_do_not_make_witnesses(tmp_path: Path) -> None:
    """A file's and an interface's name are anybody's: the table must still be taken apart."""
    file = fr.pcapng(WHOLE, interfaces=(Interface("a;b", 9), Interface("c")))
    row = seen(fr.read(file, "x;y.pcap"))
    assert row["witnesses"] == row["source"] == "x,y.pcap:0-a,b"
    write_flows(pair(fr.read(file, "x;y.pcap")), tmp_path / "x.csv")
    assert counts(only(pair(read_flows(tmp_path / "x.csv")))) == (7, 5)


def test_a_table_by_other_hands_may_name_its_source_anyhow() -> None:
    table = fr.table([fr.flow(AGENT[0], SERVER[0], source="x;y.pcap", witnesses="x;y.pcap")])
    assert counts(only(pair(unpair(table)))) == (6, 5)


def test_two_observers_of_one_name_still_count_once() -> None:
    one = capture("a:b", WHOLE)
    other = replace(capture("a", WHOLE), observers=(Observer("a", "b"),))
    assert {o.name for part in (one, other) for o in part.observers} == {"a:b"}
    row = seen(one, other)
    assert counts(row) == (7, 5)
    assert row["witnesses"] == "a:b"


def test_many_witnesses_are_all_named() -> None:
    names = [f"node-{n:02}.pcap" for n in range(40)]
    row = only(pair(merge(capture(name, WHOLE[: 3 + n % 3]) for n, name in enumerate(names))))
    assert row["witnesses"] == ";".join(names)
    assert counts(row) == (3, 2)
    assert row["tcp_flags_out"] & ACK


# ---- whose capture it is ----

FULL = (
    "server-1.example.com",
    "server-1-b.example.com",
    "agent-1.a.example",
    "agent-1.b.example",
    "10.0.0.21",
)


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("server-1.pcap", "server-1.example.com"),
        ("x/server-1-2026-11-24.pcap0", "server-1.example.com"),
        ("server-1-b.pcap", "server-1-b.example.com"),
        ("server-1.example.com.pcap", "server-1.example.com"),
        ("server-10.pcap", ""),
        ("agent-1.pcap", ""),
        ("agent-1.b.example.pcap", "agent-1.b.example"),
        ("10.0.0.21.pcap", "10.0.0.21"),
        ("10-uplink.pcap", ""),
    ],
)
def test_a_capture_is_named_by_the_first_label_of_its_node_too(name: str, node: str) -> None:
    """`tcpdump -w $(hostname -s).pcap`; not where two nodes have it, or where it is part of an address."""
    assert capturing_node(name, FULL) == node
    assert capturing_node("server-1.pcap", (*FULL, "server-1")) == "server-1"
