"""The benchmark's captures are valid, their truth true, its documents say what its numbers say. Rule: other
programs judge, nothing is timed.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from bench import document, model
from bench.cli import DOCS, app, hold, text_of
from bench.compare import Entry, RunError, Took, compare, counts, run_once, table
from bench.generate import Settings, Truth, write, write_file
from bench.parts import Shape, block, cluster_yaml, node_addresses, part, write_store
from bench.population import EPHEMERAL, SERVICES, Population, parse_mix, populate
from bench.spoofed import write_spoofed
from bench.tools import THREADS, TOOLS, Place
from conftest import require_program
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer import Exit
from typer.testing import CliRunner

from analyzer.analysis import analyze

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Settings(frames=2_000, flows=60, seed=7, ipv6=0.3)
VARIANTS = {
    "plain": SMALL,
    "zipf and stray lengths": replace(SMALL, weights="zipf", spread=0.5),
    "cut": replace(SMALL, snaplen=96, seed=8),
    "tunnels alone": replace(SMALL, mix=parse_mix("vxlan=1")),
    "short frames": replace(SMALL, size=70, mix=parse_mix("nodeport-udp=1,kubelet=1")),
}
VALIDATE = [
    *("-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"),
    *("-d", "udp.port==8472,vxlan"),
]
LAYERS = {"eth", "ethertype", "ip", "ipv6", "tcp", "udp", "vxlan", "data", "_ws.malformed"}
BAD = (
    "ip.checksum.status == Bad || tcp.checksum.status == Bad || udp.checksum.status == Bad"
    " || tcp.analysis.retransmission || tcp.analysis.out_of_order || tcp.analysis.lost_segment"
    " || tcp.analysis.ack_lost_segment || tcp.analysis.duplicate_ack"
)
FIELDS = (
    *("ip.src", "ip.dst", "ip.len", "ipv6.src", "ipv6.dst", "ipv6.plen"),
    *("udp.srcport", "udp.dstport", "tcp.srcport", "tcp.dstport", "tcp.flags", "frame.time_epoch"),
)

Key = tuple[str, str, int, int, int]
Table = dict[Key, tuple[int, int]]


def capture(settings: Settings, chunk: int = 100_000) -> tuple[bytes, Truth]:
    out = io.BytesIO()
    truth = write(out, settings, chunk=chunk)
    return out.getvalue(), truth


def tshark(path: Path, *arguments: str) -> list[str]:
    command = ["tshark", "-n", "-r", str(path), *VALIDATE, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def layer(row: dict[str, list[str]], place: int) -> tuple[Key, int]:
    """5-tuple and IP bytes of one layer (0 outer, 1 inner; every frame has one address family in both)."""
    family = 4 if row["ip.src"] else 6
    src, dst = ("ip.src", "ip.dst") if family == 4 else ("ipv6.src", "ipv6.dst")
    size = int(row["ip.len"][place]) if family == 4 else int(row["ipv6.plen"][place]) + 40
    udp = bool(row["udp.srcport"]) and place == 0
    ports = ("udp.srcport", "udp.dstport") if udp else ("tcp.srcport", "tcp.dstport")
    sport, dport = (int(row[port][0]) for port in ports)
    return (row[src][place], row[dst][place], sport, dport, 17 if udp else 6), size


def faults(path: Path) -> list[str]:
    """Frames that tshark finds fault with, by their protocols.

    Payload is zeros: what a dissector that claims a random client port thinks of it is no fault of the frame.
    """
    malformed = tshark(path, "-Y", "_ws.malformed", "-T", "fields", "-e", "frame.protocols")
    ours = [protocols for protocols in malformed if set(protocols.split(":")) <= LAYERS]
    return ours + tshark(path, "-Y", BAD, "-T", "fields", "-e", "frame.protocols")


def dissected(path: Path) -> list[dict[str, list[str]]]:
    lines = tshark(path, "-T", "fields", *(part for name in FIELDS for part in ("-e", name)))
    return [
        {name: cell.split(",") if cell else [] for name, cell in zip(FIELDS, line.split("\t"), strict=True)}
        for line in lines
    ]


def tabled(layers: list[tuple[Key, int]]) -> Table:
    packets: Counter[Key] = Counter()
    octets: Counter[Key] = Counter()
    for key, size in layers:
        packets[key] += 1
        octets[key] += size
    return {key: (packets[key], octets[key]) for key in packets}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_tshark_finds_nothing_wrong(tmp_path: Path, settings: Settings) -> None:
    require_program("tshark")
    write_file(tmp_path / "x.pcap", settings)
    assert len(tshark(tmp_path / "x.pcap")) == settings.frames
    # A cut frame is no fault of its headers, but tshark calls those that lie beyond the cut malformed.
    if not settings.snaplen:
        assert faults(tmp_path / "x.pcap") == []


@pytest.mark.parametrize("place", [8, 3, 20 + 13], ids=["TTL", "IP length", "TCP flags"])
def test_tshark_would_find_a_fault(tmp_path: Path, place: int) -> None:
    require_program("tshark")
    data = bytearray(capture(replace(SMALL, ipv6=0.0, mix=parse_mix("kubelet=1")))[0])
    data[24 + 16 + 14 + place] ^= 1
    (tmp_path / "x.pcap").write_bytes(data)
    assert faults(tmp_path / "x.pcap") != []


@pytest.mark.parametrize("settings", [VARIANTS[name] for name in VARIANTS if name != "cut"])
def test_truth_is_what_tshark_counts(tmp_path: Path, settings: Settings) -> None:
    require_program("tshark")
    truth = write_file(tmp_path / "x.pcap", settings)
    rows = dissected(tmp_path / "x.pcap")
    outer = tabled([layer(row, 0) for row in rows])
    inner = tabled([layer(row, 1) for row in rows if row["udp.srcport"] and row["tcp.srcport"]])
    assert outer == truth.outer()
    assert inner == truth.inner()
    summary = truth.summary()
    assert summary["one_way_tuples"] == len(outer)
    assert summary["tunnel_one_way_tuples"] == len(inner)
    assert (summary["frames"], summary["ip_bytes"]) == tuple(map(sum, zip(*outer.values(), strict=True)))


def test_tcp_opens_with_syn_and_syn_ack_and_time_rises(tmp_path: Path) -> None:
    require_program("tshark")
    write_file(tmp_path / "x.pcap", SMALL)
    rows = dissected(tmp_path / "x.pcap")
    times = [float(row["frame.time_epoch"][0]) for row in rows]
    assert times == sorted(times)
    seen: dict[frozenset[tuple[str, int]], list[tuple[Key, int]]] = {}
    for row in rows:
        if row["tcp.flags"]:
            key, _ = layer(row, 1 if row["udp.srcport"] else 0)
            ends = frozenset([(key[0], key[2]), (key[1], key[3])])
            seen.setdefault(ends, []).append((key, int(row["tcp.flags"][0], 16)))
    for frames in seen.values():
        (first, syn), (second, syn_ack) = frames[:2]
        assert (syn, syn_ack) == (0x02, 0x12)
        assert second[:4] == (first[1], first[0], first[3], first[2])
        assert EPHEMERAL[0] <= first[2] <= EPHEMERAL[1]
        assert all(flags == 0x18 for _, flags in frames[2:])


def test_length_of_data_frames_and_cut() -> None:
    whole, cut = capture(SMALL)[0], capture(replace(SMALL, snaplen=96))[0]
    lengths = [(caplen, length) for caplen, length in records(whole)]
    assert all(caplen == length for caplen, length in lengths)
    assert Counter(length for _, length in lengths)[450] > SMALL.frames - 2 * SMALL.flows - 1
    assert list(records(cut)) == [(min(length, 96), length) for _, length in lengths]


def records(data: bytes) -> list[tuple[int, int]]:
    """(captured, wire) length of each record, read as pcap's format says and to the last byte."""
    found, at = [], 24
    while at < len(data):
        captured, wire = np.frombuffer(data, "<u4", 2, at + 8).tolist()
        found.append((captured, wire))
        at += 16 + captured
    assert at == len(data)
    return found


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_same_bytes_whatever_the_chunk(settings: Settings) -> None:
    whole, truth = capture(settings)
    for chunk in (1, 333, 1_999):
        again, same = capture(settings, chunk)
        assert again == whole
        assert np.array_equal(same.packets, truth.packets)
        assert np.array_equal(same.ip_bytes, truth.ip_bytes)


def test_seed_decides() -> None:
    assert capture(SMALL)[0] == capture(SMALL)[0]
    assert capture(SMALL)[0] != capture(replace(SMALL, seed=9))[0]


def test_longer_capture_has_the_same_flows() -> None:
    short, long = capture(SMALL)[1], capture(replace(SMALL, frames=5_000))[1]
    assert short.outer().keys() == long.outer().keys()
    assert short.inner().keys() == long.inner().keys()


def one_way(people: Population) -> list[tuple[int, ...]]:
    """What tells flows apart where each runs: pods inside tunnels, hosts elsewhere."""
    ends = np.where(people.tunnel[:, None], people.pod, people.host)
    columns = [people.family, people.protocol, *ends.T, *people.port.T]
    return list(map(tuple, np.stack(columns, axis=1).tolist()))


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    flows=st.integers(1, 60_000),
    seed=st.integers(0, 2**32),
    nodes=st.integers(6, 250),  # with five, two agents are the clients: too few ports for so many flows
    name=st.sampled_from(sorted(SERVICES)),
)
def test_no_two_flows_share_a_tuple(flows: int, seed: int, nodes: int, name: str) -> None:
    people = populate(flows, seed=seed, mix={name: 1.0}, nodes=nodes, ipv6=0.0)
    assert len(set(one_way(people))) == flows
    assert (people.host[:, 0] != people.host[:, 1]).all()


def test_settings_that_cannot_be() -> None:
    for wrong in (
        replace(SMALL, frames=100),
        replace(SMALL, weights="even"),
        replace(SMALL, spread=1.5),
        replace(SMALL, frames=400_000, flows=200_000, mix={"etcd-peer": 1.0}),
    ):
        with pytest.raises(ValueError, match=r"flows|spread"):
            capture(wrong)
    for text in ("dns=1", "kubelet=-1", "kubelet=0", "kubelet=x"):
        with pytest.raises(ValueError, match=r"share|service|float"):
            parse_mix(text)


PROGRAM = {
    "nfpcapd": "nfpcapd",
    "softflowd -v 9 -m 1M": "softflowd",
    "floor": "cc",
    "reader alone": sys.executable,
}


@pytest.mark.parametrize("name", PROGRAM)
def test_complete_tools_count_the_truth(tmp_path: Path, name: str) -> None:
    require_program(PROGRAM[name])
    truth = write_file(tmp_path / "x.pcap", SMALL).summary()
    (only,) = compare(tmp_path / "x.pcap", [name], 2, lambda _: None)
    assert only.missing == ""
    assert len(only.runs) == 2
    assert all(run.wall > 0 and run.peak > 0 for run in only.runs)
    true, said = ((row["frames"], row["ip_bytes"], row["tuples"]) for row in counts([only], truth))
    assert said == true


def test_product_s_flows_are_counted_as_one_way_and_outer(tmp_path: Path) -> None:
    flows = pd.DataFrame(
        {
            "tunnel": pd.Categorical(["", "", "vxlan"]),
            "packets_out": [5, 3, 2],
            "packets_in": [4, 0, 1],
            "bytes_out": [500, 300, 100],
            "bytes_in": [40, 0, 50],
        }
    )
    flows.to_parquet(tmp_path / "x.parquet")
    counted = TOOLS["rke2-flows"].counted(Place(tmp_path / "x.pcap", tmp_path, 0), "")
    assert (counted.frames, counted.ip_bytes, counted.tuples) == (12, 840, 3)
    assert counted.note == "and 1 flows inside tunnels"
    told = TOOLS["rke2-flows"].counted(
        Place(tmp_path / "x.pcap", tmp_path, 0), "x.pcap: 20 frames: 8 overflow"
    )
    assert told.note == "and 1 flows inside tunnels; 8 frames had no room"


def test_absent_and_failing_programs_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "x.pcap", SMALL)
    gone = replace(TOOLS["nfpcapd"], command=lambda _: None)
    failing = replace(TOOLS["nfpcapd"], command=lambda _: [sys.executable, "-c", "exit('no luck')"])
    monkeypatch.setitem(TOOLS, "gone", gone)
    monkeypatch.setitem(TOOLS, "failing", failing)
    entries = compare(tmp_path / "x.pcap", ["gone", "failing"], 2, lambda _: None)
    assert entries[0].missing == "gone: not available here, left out"
    assert "ended with 1: no luck" in entries[1].missing
    assert not (tmp_path / "turn").exists()


def entry(name: str, *walls: float) -> Entry:
    return Entry(name, TOOLS[name].role, [Took(wall, wall * 2, 50, "") for wall in walls])


def test_share_is_of_the_fastest_peer_s_median(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        entry("rke2-flows", 1.5, 0.9, 1.2),
        entry("nfpcapd", 3, 1, 5),
        entry("softflowd", 4, 2, 2.5),
        entry("floor", 0.1, 0.1, 0.1),
    ]
    rows = {row["tool"]: row for row in table(entries, 120)}
    assert rows["rke2-flows"]["of_fastest_peer"] == pytest.approx(1.2 / 2.5)
    assert rows["softflowd"]["of_fastest_peer"] == 1
    assert rows["rke2-flows"]["frames_per_second"] == pytest.approx(100)
    assert (rows["nfpcapd"]["wall_min"], rows["nfpcapd"]["wall_median"]) == (1, 3)
    hold(entries, 0.5)
    assert "takes 0.48 of the time of softflowd" in capsys.readouterr().out
    with pytest.raises(Exit) as missed:
        hold(entries, 0.47)
    assert missed.value.exit_code == 1
    with pytest.raises(Exit) as unknown:
        hold(entries[:1], 0.5)
    assert unknown.value.exit_code == 3


def test_peak_memory_is_the_program_s_own(tmp_path: Path) -> None:
    """100 MB held here must not show in a small child; 100 MB held there must."""
    ballast = np.ones(100 << 20, np.uint8)
    small = run_once([sys.executable, "-I", "-S", "-c", "pass"], tmp_path)
    large = run_once([sys.executable, "-I", "-S", "-c", "b'x' * (100 << 20)"], tmp_path)
    assert small.peak < 50
    assert large.peak > 100
    assert ballast.all()
    with pytest.raises(RunError, match="ended with 127"):
        run_once(["/no/such/program"], tmp_path)


def test_generate_prints_its_truth(tmp_path: Path) -> None:
    out = tmp_path / "x.pcap"
    done = CliRunner().invoke(
        app, ["generate", str(out), "--frames", "2000", "--flows", "60", "--mix", "vxlan=1"]
    )
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert said["frames"] == said["tunnel_frames"] == len(records(out.read_bytes())) == 2000
    wrong = CliRunner().invoke(app, ["generate", str(tmp_path / "y.pcap"), "--mix", "dns=1"])
    assert wrong.exit_code == 2
    assert not (tmp_path / "y.pcap").exists()


@pytest.mark.skipif(
    not (shutil.which("argus") and shutil.which("ra")),
    reason="argus is not installed: its package would begin to capture, so that no test's command brings it",
)
def test_argus_counts_frames_and_flows(tmp_path: Path) -> None:
    truth = write_file(tmp_path / "x.pcap", SMALL).summary()
    (only,) = compare(tmp_path / "x.pcap", ["argus"], 1, lambda _: None)
    assert only.missing == ""
    assert (only.counted.frames, only.counted.tuples) == (truth["frames"], truth["one_way_tuples"])


def test_every_spoofed_frame_is_a_flow_of_its_own(tmp_path: Path) -> None:
    require_program("tshark")
    truth = write_spoofed(tmp_path / "x.pcap", 3_000, chunk=700)
    rows = dissected(tmp_path / "x.pcap")
    assert faults(tmp_path / "x.pcap") == []
    flows = tabled([layer(row, 0) for row in rows])
    assert len(flows) == len(rows) == truth["frames"] == truth["one_way_tuples"]
    assert len({source for source, *_ in flows}) == len(flows)
    assert sum(size for _, size in flows.values()) == truth["ip_bytes"]


# ---- documents ----


def section(**medians: float) -> dict[str, Any]:
    """Numbers of a comparison in which tools took so many seconds."""
    row = {"cpu_median": 1.0, "peak_mb": 100.0, "frames_per_second": 1e6, "of_fastest_peer": None, "role": ""}
    names = {"one": THREADS[1], "two": THREADS[2]}
    truth = {"frames": 8_000_000, "client_server_flows": 200_000}
    times = [
        {**row, "tool": names.get(name, name), "wall_min": s, "wall_median": s} for name, s in medians.items()
    ]
    return {"truth": truth, "times": times}


def goal_of(numbers: dict[str, Any], words: str) -> tuple[Any, bool]:
    ((goal, value),) = [(g, v) for g, v in document.results(numbers) if g.words.startswith(words)]
    return value, value is not None and goal.holds(value)


def series(*rows: tuple[int, float, float]) -> dict[str, Any]:
    """Numbers of a series: frames, seconds, MiB; of 100,000 one-way flows."""
    truth = {"one_way_tuples": 90_000, "tunnel_one_way_tuples": 10_000}
    return {"rows": [{"truth": {"frames": n, **truth}, "wall_min": s, "peak_mb": m} for n, s, m in rows]}


def test_rate_is_held_against_the_faster_of_two_peers() -> None:
    numbers = {"sections": {"m8": section(one=2.0, two=1.0, nfpcapd=12.0, softflowd=10.0, argus=1.0)}}
    one = "rate beside the faster of nfpcapd and softflowd, one thread, cut"
    two = "rate beside the faster of nfpcapd and softflowd, two threads, cut"
    assert goal_of(numbers, one) == (5.0, True)
    assert goal_of(numbers, two) == (10.0, True)
    assert "5.0 times the rate of softflowd with one thread and 10.0 times with two threads" in (
        document.sentence({**numbers, "machine": "this"})
    )
    plain: dict[str, Any] = {"sections": {"m8": section(nfpcapd=12.0, softflowd=10.0)}, "machine": "this"}
    with pytest.raises(ValueError, match="make bench"):
        document.sentence(plain)
    plain["sections"]["m8"]["times"] += section(**{"rke2-flows": 4.0})["times"]
    assert "the whole command has 2.5 times the rate of softflowd (" in document.sentence(plain)
    slower = {"sections": {"m8": section(one=2.1, two=1.3, nfpcapd=12.0, softflowd=10.0)}}
    assert not goal_of(slower, one)[1]
    assert not goal_of(slower, two)[1]
    assert goal_of({"sections": {"m8": section(nfpcapd=12.0)}}, one) == (None, False)


def test_growth_is_the_worst_of_far_pairs_and_of_all_peaks() -> None:
    numbers = {"sections": {"frames": series((10**6, 1.0, 100), (10**7, 9.0, 104), (10**8, 99.0, 101))}}
    assert goal_of(numbers, "time for ten times") == (pytest.approx(11.0), False)
    assert goal_of(numbers, "peak memory over the frames") == (pytest.approx(4.0), True)
    share = 104 * 2**20 / 1e6 / (150 + 20)
    assert goal_of(numbers, "peak memory beside 200 bytes a one-way") == (pytest.approx(share), True)


def test_flood_that_is_not_accounted_for_or_does_not_end_is_missed() -> None:
    ended = {
        "truth": {"frames": 100},
        "counted": {"frames": 60, "tuples": 60},
        "folded": 40,
        "peak_mb": 100.0,
        "wall_median": 1.0,
    }
    words = "spoofed frames that the ledger"
    assert goal_of({"sections": {"spoofed": ended}}, words) == (0, True)
    assert goal_of({"sections": {"spoofed": {**ended, "folded": 39}}}, words) == (1, False)
    broken = {"sections": {"spoofed": {"truth": {"frames": 100}, "missing": "left out, killed"}}}
    assert goal_of(broken, words) == (math.inf, False)
    assert "did not finish" in document._goals(broken)


def test_run_writes_numbers_page_and_pictures_and_can_be_taken_up(tmp_path: Path) -> None:
    words = ["all", "--quick", "--docs", str(tmp_path), "--in", str(tmp_path)]
    unfinished = tmp_path / "benchmarks.unfinished.json"
    first = CliRunner().invoke(app, [*words, "--only", "spoofed"])
    assert first.exit_code == 0, first.output
    numbers = json.loads((tmp_path / "benchmarks.json").read_text())
    assert numbers["sections"]["spoofed"]["counted"]["frames"] == 2_000
    assert numbers["commit"]
    assert not unfinished.exists()
    unfinished.write_text(json.dumps(numbers))
    taken_up = [*words, "--only", "spoofed", "--only", "flows", "--resume"]
    assert CliRunner().invoke(app, taken_up).exit_code == 0
    more = json.loads((tmp_path / "benchmarks.json").read_text())
    assert more["sections"]["spoofed"] == numbers["sections"]["spoofed"]
    page = tmp_path / "benchmarks.md"
    assert page.read_text() == text_of(more, page)
    assert "## More flows" in page.read_text()
    assert "missed" in page.read_text() or "holds" in page.read_text()
    assert (tmp_path / "bench-memory.svg").read_text().startswith("<?xml")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".svg"]


def test_constants_are_those_that_the_times_were_made_of() -> None:
    made = [(1_000, 2e6), (4_000, 9e6)]
    numbers = {
        "small": [{"parts": p, "rows": r, "run": {"wall": 3 + 0.002 * p + 4e-6 * r}} for p, r in made],
        "steps": {"open": 0.4, "parts": 100},
        "cores": 2,
    }
    found = model.constants(numbers)
    assert (found.start, found.part, found.row) == pytest.approx((3, 0.002, 4e-6))
    assert model.seconds(found, 2_000, 46e6) == pytest.approx(3 + 4 + 184)
    assert model.Prediction("x", 121, 100, "").holds is False
    assert model.Prediction("x", 119, 100, "").holds is True


def test_both_ends_store_a_flow_between_nodes() -> None:
    """So a plain flow has the same counts at both, and each part is as large as any other of its kind."""
    shape = Shape(nodes=8, flows=200)
    made = block(shape)
    rows = [part(made, node, 1).rows for node in range(shape.nodes)]
    names = ["src", "dst", "src_port", "dst_port", "protocol", "packets", "bytes", "start"]
    nodes = node_addresses(range(shape.nodes)).tolist()
    outer = [row for of in rows for row in of[of["tunnel"] == 0][names].tolist()]
    plain = [row for row in outer if row[0] in nodes and row[1] in nodes]
    assert plain
    assert set(Counter(plain).values()) == {2}
    assert len({row[:5] for row in plain}) == len(plain) // 2


def test_store_is_judged_as_it_was_made(tmp_path: Path) -> None:
    shape = Shape(nodes=6, flows=100)
    rows, size = write_store(tmp_path / "store", shape, range(2), 1)
    (tmp_path / "cluster.yaml").write_text(cluster_yaml(shape))
    files = sorted((tmp_path / "store").rglob("*.parquet"))
    assert len(files) == 12
    assert sum(file.stat().st_size for file in files) == size
    analysis = analyze(tmp_path / "store", cluster=tmp_path / "cluster.yaml")
    assert set(analysis.flows["verdict"]) == {"allowed", "not-judged"}
    assert set(analysis.findings["kind"]) == {"exposure"}
    assert sum(ledger.frames for ledger in analysis.coverage) > rows


@pytest.mark.parametrize("name", ["benchmarks", "scale"])
def test_page_in_the_tree_says_what_the_numbers_beside_it_say(name: str) -> None:
    page, numbers = DOCS / f"{name}.md", DOCS / f"{name}.json"
    if not numbers.exists():
        pytest.skip(f"{numbers.name} is not there: no run has written it yet")
    told = json.loads(numbers.read_text())
    assert not told["quick"]
    assert page.read_text() == (text_of(told, page) if name == "benchmarks" else model.markdown(told))


@pytest.mark.alone
def test_scale_predicts_and_writes_its_page(tmp_path: Path) -> None:
    pytest.importorskip("dask")
    done = CliRunner().invoke(app, ["scale", "--quick", "--docs", str(tmp_path), "--in", str(tmp_path)])
    assert done.exit_code == 0, done.output
    numbers = json.loads((tmp_path / "scale.json").read_text())
    assert (tmp_path / "scale.md").read_text() == model.markdown(numbers)
    rows, size, _ = model.predictions(numbers)
    assert rows.holds
    assert size.holds
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scale.json", "scale.md"]
