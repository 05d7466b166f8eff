"""A store of parts: compacted and pruned, nothing lost and nothing twice. Rule: real files, real kills;
readers are the product's own.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import frames as fr
import numpy as np
import pytest
from conftest import RECORDED, steps_on_disk
from frames import EPOCH, NS, Frame, same_table, traffic
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nodes import plain_facts, with_facts
from typer.testing import CliRunner

from analyzer import addresses, cli, flow_store, store
from analyzer.analysis import Analysis
from analyzer.choice import EVER, Choice
from analyzer.cluster import load_cluster
from analyzer.commands.store import app
from analyzer.errors import CaptureError
from analyzer.flow_store import LOCK, Rules, compact, encoded, gaps, prune, stored
from analyzer.flows import pair
from analyzer.rows import Coverage, Observer, OneWay, as_text, coarser, merge
from analyzer.spec import load_spec
from analyzer.store import content_id, expand, place_of, read_inputs, replaced, write_flows, write_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOUR, DAY = 3600 * NS, 86400 * NS
NOW = EPOCH + 400 * DAY
LIVE = RECORDED / "live"
TALK = fr.timed(fr.talk(("10.10.0.21", 40000), ("10.10.0.11", 6443), rounds=3))
FRAMES = len(TALK)


def recorded(frames: list[Frame], node: str = "agent-1", interval: int = NS) -> OneWay:
    """As a live capture would have counted them: a ledger with a window."""
    one_way = fr.read(fr.pcap(frames, "ns"), node, interval)
    times = [frame.time for frame in frames]
    (ledger,) = one_way.coverage
    return replace(one_way, coverage=(replace(ledger, start=min(times), end=max(times)),))


def later(frames: list[Frame], by: int) -> list[Frame]:
    return [replace(frame, time=frame.time + by) for frame in frames]


def fill(folder: Path, parts: int = 4, node: str = "agent-1", step: int = 10 * NS) -> Path:
    """Parts as `capture -o` names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(parts):
        write_rows(recorded(later(TALK, n * step), node), folder / f"{node}-{n:03}Z.parquet")
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.parquet*") if path.is_file()}


def same(one: OneWay, other: OneWay) -> None:
    """Every row, ledger, fact, listener and waiting fragment, up to their order."""
    assert fr.plain(one) == fr.plain(other)
    assert fr.ledgers(one) == fr.ledgers(other)
    assert plain_facts(one) == plain_facts(other)
    assert (one.listeners, one.interval) == (other.listeners, other.interval)
    assert waiting(one) == waiting(other)


def waiting(one_way: OneWay) -> list[Any]:
    names = [name for name in one_way.fragments.dtype.names or () if name != "interface"]
    rows = one_way.fragments
    return sorted((one_way.observers[r["interface"]], *(r[name].tolist() for name in names)) for r in rows)


# ---- the same as before ----


def test_a_recorded_cluster_is_judged_as_before(tmp_path: Path) -> None:
    """The parts of an older version too: these were written when there was no store."""
    folder = shutil.copytree(LIVE, tmp_path / "live")
    cluster, spec = load_cluster(LIVE / "cluster.yaml"), load_spec()
    before = read_inputs([LIVE])
    work = compact(folder, Rules(), NOW * 2)
    after = read_inputs([folder])
    assert [len(batch.parts) for batch in work.batches] == [3, 4, 3, 5, 5, 5]
    assert len(files(folder)) == 6
    same(after, before)
    one, other = (Analysis.of(rows, cluster, spec) for rows in (before, after))
    same_table(other.flows, one.flows)
    assert other.findings["id"].tolist() == one.findings["id"].tolist()
    assert len(one.flows)
    assert not compact(folder, Rules(), NOW * 2).batches


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_cut_anywhere_and_compacted(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Facts, listeners and fragments that wait for their first one in another part included."""
    folder = tmp_path_factory.mktemp("store")
    frames = data.draw(traffic())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(frames)), max_size=3)))
    bounds = [(a, b) for a, b in zip([0, *cuts], [*cuts, len(frames)], strict=True) if a < b]
    for n, (a, b) in enumerate(bounds):
        part = data.draw(with_facts(fr.shifted(recorded(frames[a:b]), a)))
        write_rows(part, folder / f"agent-1-{n}.parquet")
    if not bounds:
        return
    before = merge([read_inputs([folder]), OneWay()])
    compact(folder, Rules(target=data.draw(st.sampled_from((1 << 14, 1 << 26)))), NOW)
    same(merge([read_inputs([folder]), OneWay()]), before)


@given(frames=traffic(), step=st.sampled_from((2, 10, 3600)))
@example(frames=TALK, step=3600)
@settings(max_examples=15, deadline=None)
def test_a_longer_interval_is_what_reading_with_it_makes(frames: list[Frame], step: int) -> None:
    whole = fr.read(fr.pcap(frames, "ns"), "agent-1", step * NS)
    same(coarser(fr.read(fr.pcap(frames, "ns"), "agent-1", NS), step * NS), merge([whole, OneWay()]))


def test_longer_intervals_also_beside_such_as_were_made_before(tmp_path: Path) -> None:
    folder = fill(tmp_path / "s", 3)
    before = read_inputs([folder])
    compact(folder, Rules(interval=HOUR), NOW)
    write_rows(recorded(later(TALK, 100 * NS)), folder / "agent-1-later.parquet")
    compact(folder, Rules(interval=HOUR), NOW)
    after = read_inputs([folder])
    assert len(files(folder)) == 1
    assert after.interval == HOUR
    assert set((after.rows["interval"] % np.uint64(HOUR)).tolist()) == {0}
    assert len(after.rows) == 2 < len(before.rows)
    for name in ("packets", "bytes"):
        assert after.rows[name].sum() * 3 == before.rows[name].sum() * 4


def test_one_node_in_hours_and_the_other_in_seconds(tmp_path: Path) -> None:
    """Both saw the same packets, which count once, whichever was compacted."""
    for node in ("agent-1", "server-1"):
        fill(tmp_path / node, 3, node)
    before = pair(coarser(read_inputs([tmp_path]), HOUR))
    compact(tmp_path / "agent-1", Rules(interval=HOUR), NOW)
    after = pair(read_inputs([tmp_path]))
    assert before["packets_out"].sum() + before["packets_in"].sum() == 3 * len(TALK)
    assert before["witnesses"].tolist() == ["agent-1;server-1"]
    same_table(after, before)


def test_intervals_of_which_none_divides_the_other(tmp_path: Path) -> None:
    frames = [frame for n in range(12) for frame in later(TALK, n * 5 * NS)]
    for node, interval in (("agent-1", 10 * NS), ("server-1", 15 * NS)):
        write_rows(recorded(frames, node, interval), tmp_path / f"{node}.parquet")
    rows = read_inputs([tmp_path])
    table = pair(rows)
    assert rows.interval == 30 * NS
    assert table["packets_out"].sum() + table["packets_in"].sum() == len(frames)
    assert len(table) == 2


def test_intervals_that_have_nothing_in_common(tmp_path: Path) -> None:
    for n, interval in enumerate((2**61 - 1, 2**60 - 93)):
        write_rows(recorded(TALK, f"agent-{n}", interval), tmp_path / f"{n}.parquet")
    rows = read_inputs([tmp_path])
    assert (rows.interval, len(pair(rows))) == (0, 1)


@pytest.mark.parametrize("name", ["server-1.pcap", "server-1.parquet", "server-1.csv", "server-1.jsonl"])
def test_one_node_in_seconds_and_the_other_not_cut(name: str, tmp_path: Path) -> None:
    """A capture is cut as the parts beside it are; of a flow table, which cannot be, none is. Both saw the
    same packets, which count once.
    """
    fill(tmp_path, 3)
    frames = [frame for n in range(3) for frame in later(TALK, n * 10 * NS)]
    place = tmp_path / name
    if name.endswith(".pcap"):
        fr.save(tmp_path, name, fr.pcap(frames, "ns"))
    else:
        whole = fr.read(fr.pcap(frames, "ns"), "server-1")
        write_flows(pair(whole), place, whole.coverage)
    for given_ in ([tmp_path], [place, tmp_path], [tmp_path, place]):
        rows = read_inputs(given_)
        table = pair(rows)
        assert table["packets_out"].sum() + table["packets_in"].sum() == 3 * FRAMES
        assert rows.interval == (NS if name.endswith(".pcap") else 0)
    same_table(pair(addresses.read_inputs([f"file://{tmp_path}"])), table)


@pytest.mark.parametrize("interval", [7 * NS, 5 * NS])
def test_an_interval_that_does_not_divide_stays(interval: int, tmp_path: Path) -> None:
    write_rows(recorded(TALK, interval=10 * NS), tmp_path / "x.parquet")
    compact(tmp_path, Rules(interval=interval), NOW)
    assert read_inputs([tmp_path]).interval == 10 * NS


# ---- what is put together ----


def test_layout(tmp_path: Path) -> None:
    """By date and node; the newest, other nodes' and whole ones are not mixed in."""
    fill(tmp_path, 2)
    fill(tmp_path / "sub", 2, "agent-2")
    write_rows(recorded(later(TALK, DAY)), tmp_path / "next.parquet")
    write_rows(recorded(later(TALK, 2 * DAY)), tmp_path / "young.parquet")
    before = read_inputs([tmp_path])
    compact(tmp_path, Rules(older_than=HOUR), EPOCH + 2 * DAY + HOUR // 2)
    stamp = f"date=2025-01-01/node=agent-1/20250101T000000.{EPOCH // 10**6 % 1000:03}Z-20250101T000010."
    assert sorted(name.partition("/2025")[0] for name in files(tmp_path)) == [
        "date=2025-01-01/node=agent-1",
        "date=2025-01-01/node=agent-2",
        "date=2025-01-02/node=agent-1",
        "young.parquet",
    ]
    assert any(name.startswith(stamp) for name in files(tmp_path))
    same(read_inputs([tmp_path]), before)


def test_target_size(tmp_path: Path) -> None:
    fill(tmp_path, 6)
    size = max(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    before = read_inputs([tmp_path])
    work = compact(tmp_path, Rules(target=2 * size), NOW)
    assert [len(batch.parts) for batch in work.batches] == [2, 2, 2]
    same(read_inputs([tmp_path]), before)


def test_no_more_is_put_together_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are packed well or badly: bytes alone say nothing of them. Again, and nothing is left to do."""
    fill(tmp_path, 6)
    before = read_inputs([tmp_path])
    records = {part.records for part in stored(tmp_path)[0]}
    monkeypatch.setattr(flow_store, "_MOST_RECORDS", 2 * max(records) + 1)
    assert [len(batch.parts) for batch in compact(tmp_path, Rules(), NOW).batches] == [2, 2, 2]
    assert compact(tmp_path, Rules(), NOW).batches == []
    same(read_inputs([tmp_path]), before)


def test_what_is_no_part_of_one_node_stays(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    write_rows(merge([recorded(TALK, "a"), recorded(TALK, "b")]), tmp_path / "two.parquet")
    write_rows(OneWay(observers=(Observer("a"),), coverage=(Coverage("a"),)), tmp_path / "timeless.parquet")
    write_flows(pair(recorded(TALK)), tmp_path / "flows.parquet")
    fr.save(tmp_path, "x.pcap", fr.pcap(TALK))
    outside = tmp_path.with_name(f"{tmp_path.name}-outside.parquet")
    write_rows(recorded(TALK, "c"), outside)
    (tmp_path / "link.parquet").symlink_to(outside)
    damaged = bytearray((tmp_path / "agent-1-000Z.parquet").read_bytes())
    damaged[200:300] = bytes(100)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    kept = {"two.parquet", "timeless.parquet", "flows.parquet", "x.pcap", "link.parquet", "damaged.parquet"}
    work = compact(tmp_path, Rules(), NOW)
    assert kept <= {path.name for path in tmp_path.iterdir()}
    # one that cannot be read keeps those beside it as they are; nothing is deleted unread
    assert {"agent-1-000Z.parquet", "agent-1-001Z.parquet"} <= files(tmp_path)
    assert {path.name: why for path, why in work.left.items() if path.name in kept}.keys() == kept - {
        "flows.parquet",
        "x.pcap",
    }
    (tmp_path / "damaged.parquet").unlink()
    before = read_inputs([tmp_path])
    assert len(compact(tmp_path, Rules(), NOW).batches) == 1
    same(read_inputs([tmp_path]), before)
    prune(tmp_path, 0, NOW)
    assert {path.name for path in tmp_path.iterdir()} >= {"timeless.parquet", "flows.parquet", "x.pcap"}
    assert outside.exists()


def test_a_compacted_part_that_cannot_be_read_stops_no_other(tmp_path: Path) -> None:
    """Nothing of it is deleted or put together again, and the disk does not fill up for it."""
    originals = fill(tmp_path / "s", 2)
    kept = {path: path.read_bytes() for path in originals.glob("*.parquet")}
    (batch,) = compact(tmp_path / "s", Rules(), NOW).batches
    assert batch.path is not None
    whole = batch.path.read_bytes()
    batch.path.write_bytes(whole[:-200] + bytes(100) + whole[-100:])
    for path, content in kept.items():  # the run was stopped before it had deleted them
        path.write_bytes(content)
    fill(tmp_path / "s", 2, "agent-2")
    with pytest.raises(CaptureError, match=batch.path.name):
        read_inputs([tmp_path / "s"])
    work = compact(tmp_path / "s", Rules(), NOW)
    assert [batch.parts[0].node for batch in work.batches] == ["agent-2"]
    assert work.left.keys() == {batch.path, *kept}
    parts, _ = stored(tmp_path / "s")
    assert {part.node for part in parts} == {"agent-1", "agent-2"}
    batch.path.write_bytes(whole)
    assert sorted(c.frames for c in read_inputs([tmp_path / "s"]).coverage) == [2 * FRAMES, 2 * FRAMES]
    batch.path.write_bytes(whole[:-200] + bytes(100) + whole[-100:])
    assert len(prune(tmp_path / "s", DAY, NOW).old) == 3
    assert files(tmp_path / "s") == {str(batch.path.relative_to(tmp_path / "s"))}


HOSTILE = ("../../up", "a/b", ".", "..", "node=x", "%2F", "~", "é\x1b[31m", "a" * 253, "é" * 200, "\ud800")


@pytest.mark.parametrize("node", HOSTILE)
def test_hostile_names(node: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "s", 0)
    for n in range(2):
        write_rows(recorded(later(TALK, n * 10 * NS), node), folder / f"{n}.parquet")
    before = read_inputs([folder])
    (batch,) = compact(folder, Rules(), NOW).batches
    assert batch.path is not None
    assert batch.path.resolve().relative_to(folder.resolve()).parts[0] == "date=2025-01-01"
    assert len(batch.path.relative_to(folder).parts) == 3
    same(read_inputs([folder]), before)
    name = batch.path.parent.name.removeprefix("node=")
    if len(name) < 200:
        assert urllib.parse.unquote(name) == as_text(node)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


RAW = os.fsdecode(b"a\xff")


def test_a_node_of_raw_bytes_is_shown_and_read(tmp_path: Path) -> None:
    """As a part has it that an earlier version wrote; files and folders may have such names too."""
    folder = fill(tmp_path / "s", 0)
    write_rows(recorded(TALK, RAW), folder / f"{RAW}-1.parquet")
    write_rows(recorded(later(TALK, 10 * NS), os.fsdecode(b"a\xfe")), folder / f"{RAW}-2.parquet")
    commands: tuple[tuple[object, ...], ...] = (
        ("store", "show", folder),
        ("store", "prune", folder, "--keep", "1d", "--dry-run"),
        ("flows", folder),
        ("flows", folder, "-o", tmp_path / f"{RAW}.parquet"),
        ("check", folder, "-c", RECORDED / "baseline" / "cluster.yaml", "--json", "-", "--fail-on", "never"),
        ("store", "compact", folder, "--older-than", "1h"),
        ("flows", folder, "--since", "2025-01-01"),
        ("store", "show", folder),
    )
    for words in commands:
        done = CliRunner().invoke(cli.app, [str(word) for word in words])
        assert (done.exit_code, done.exception) == (0, None), words
        named = {name.replace("\\\\", "\\") for name in re.findall(r"a\\+udcf[ef]", done.output)}
        assert named == {r"a\udcfe", r"a\udcff"}, words


def test_a_folder_that_is_no_text_has_no_node_by_its_name(tmp_path: Path) -> None:
    place = "date=2025-01-01/node={}/20250101T000000.000Z-20250101T000100.000Z.parquet"
    assert place_of(place.format("%ff")) is None
    assert place_of(place.format("a")) is not None
    folder = fill(tmp_path / "s", 0)
    (folder / "date=2025-01-01" / "node=%ff").mkdir(parents=True)
    write_rows(recorded(TALK), folder / place.format("%ff"))
    assert CliRunner().invoke(cli.app, ["flows", str(folder), "--since", "2030-01-01"]).exit_code == 1


@given(st.text(), st.text())
def test_names_stay_apart(one: str, other: str) -> None:
    assert (encoded(one) == encoded(other)) == (one == other)
    assert "/" not in encoded(one)


# ---- killed ----

#: at its first step, at its second one, …: a child does the work and ends itself with SIGKILL
KILLED = """
import os, shutil, signal, sys
from itertools import count
from pathlib import Path
import pyarrow.parquet as pq
from analyzer.flow_store import Rules, compact, prune
origin, place, now, keep = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def deadly(function, steps):
    def call(*arguments, **named):
        if next(steps) == 0:
            die()
        return function(*arguments, **named)
    return call

def torn(function, steps):
    def write(table, path, **named):
        last = next(steps) == 0
        function(table, path, **named)
        if last:
            os.truncate(path, os.path.getsize(path) // 2)
            die()
    return write

for step in count():
    folder = shutil.copytree(origin, place / f"{step:03}")
    child = os.fork()
    if not child:
        steps = count(step, -1)
        for name in ("replace", "rename", "unlink", "fsync", "mkdir", "rmdir", "chmod"):
            setattr(os, name, deadly(getattr(os, name), steps))
        pq.write_table = torn(pq.write_table, steps)
        prune(folder, keep, now) if keep else compact(folder, Rules(), now)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
"""


def killed(origin: Path, place: Path, keep: int = 0) -> list[Path]:
    """The folder as each kill left it, and last as it is when none came."""
    place.mkdir()
    subprocess.run(
        [sys.executable, "-c", KILLED, origin, place, str(_soon()), str(keep)], check=True, timeout=120
    )
    return sorted(place.iterdir())


def _soon() -> int:
    """When what is written now is old."""
    return time.time_ns() + HOUR


def _whole_again(folder: Path, expected: OneWay) -> None:
    """Read as it was left; then the next run finishes, and nothing hidden stays."""
    same(read_inputs([folder]), expected)
    compact(folder, Rules(), _soon())
    same(read_inputs([folder]), expected)
    assert len(files(folder)) == 1
    assert [path.name for path in folder.rglob(".*")] == [LOCK]


def test_killed_at_every_step(tmp_path: Path) -> None:
    """Also in a run that had to finish what an earlier, killed one had begun."""
    origin = fill(tmp_path / "origin", 3)
    expected = read_inputs([origin])
    left = killed(origin, tmp_path / "first")
    seen = [len(files(folder)) for folder in left]
    assert max(seen) > 3 > min(seen) == 1 == seen[-1]  # hidden ones; both; some of the old ones; only the new
    unfinished = [folder for folder in left if replaced(store.files_in(folder))]
    assert {len(replaced(store.files_in(folder))) for folder in unfinished} == {1, 2, 3}
    again = shutil.copytree(unfinished[1], tmp_path / "again")
    for folder in left:
        _whole_again(folder, expected)
    write_rows(recorded(later(TALK, 99 * NS)), again / "agent-1-new.parquet")
    expected = read_inputs([again])
    left = killed(again, tmp_path / "second")
    assert len(left) > 10
    for folder in left:
        _whole_again(folder, expected)


def test_nothing_is_deleted_before_what_takes_its_place_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "s", 3)
    old = sorted(path.name for path in folder.iterdir())
    with monkeypatch.context() as patched:
        steps = steps_on_disk(patched, "replace", "unlink")
        (batch,) = compact(folder, Rules(), NOW).batches
    assert batch.path is not None
    node, date = batch.path.parent, batch.path.parent.parent
    steps = [step for step in steps if not (step[0] == "unlink" and step[1].startswith("."))]
    assert steps[-9:] == [
        *(("fsync", f".{batch.path.name}"), ("replace", batch.path.name)),
        *(("fsync", place.name) for place in (node, date, folder)),
        *(("unlink", name) for name in old),
        ("fsync", folder.name),
    ]


def test_nor_by_the_run_that_finishes_what_another_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = fill(tmp_path / "origin", 3)
    left = killed(origin, tmp_path / "killed")
    unfinished = next(folder for folder in left if replaced(store.files_in(folder)))
    (made,) = unfinished.rglob("date=*/node=*/*.parquet")
    with monkeypatch.context() as patched:
        steps = steps_on_disk(patched, "unlink")
        compact(unfinished, Rules(), _soon())
    first = next(number for number, (what, _) in enumerate(steps) if what == "unlink")
    places = (made, made.parent, made.parent.parent, unfinished)
    assert steps[:first] == [("fsync", place.name) for place in places]


def test_killed_while_pruning(tmp_path: Path) -> None:
    origin = fill(tmp_path / "origin", 3)
    compact(origin, Rules(target=1), NOW)
    compact(origin, Rules(), NOW)
    young = recorded(later(TALK, _soon() - EPOCH - HOUR))
    write_rows(young, origin / "agent-1-young.parquet")
    before = read_inputs([origin]).rows["packets"].sum()
    left = killed(origin, tmp_path / "killed", keep=DAY)
    assert len(left) > 2
    for folder in left:
        assert read_inputs([folder]).rows["packets"].sum() in {before, young.rows["packets"].sum()}
        prune(folder, DAY, _soon())
        same(read_inputs([folder]), young)
        assert sorted(p.name for p in folder.iterdir()) == [LOCK, "agent-1-young.parquet"]


def test_leftovers(tmp_path: Path) -> None:
    """Hidden files of killed writers, when they are old; and nobody else's."""
    fill(tmp_path, 1)
    ours = {".agent-1-003Z.parquet.a1b2c3_d", "..20250101T000000.123Z-20250101T000010.123Z.parquet.abcdefgh"}
    others = {".mine.parquet", ".notes.parquet.bak", ".agent-1.summary.json"}
    for name in (*ours, *others):
        (tmp_path / name).write_bytes(b"PAR1")
    assert not compact(tmp_path, Rules(), time.time_ns()).leftovers
    work = compact(tmp_path, Rules(), _soon(), dry_run=True)
    assert {path.name for path in work.leftovers} == ours
    compact(tmp_path, Rules(), _soon())
    assert {path.name for path in tmp_path.glob(".*")} == others | {LOCK}


# ---- beside readers, and beside another run ----


@pytest.mark.parametrize("where", ["walk", "kind", "read"])
def test_compacted_between_any_two_steps_of_a_reader(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that has listed, and then finds gone what it listed, begins again."""
    name = {"walk": "_listed", "kind": "kind_of", "read": "read_flows"}[where]
    real = getattr(store, name)
    steps = 0
    for step in range(100):
        folder = fill(tmp_path / f"{step}" / "z", 3)  # listed after date=…
        expected, left = read_inputs([folder]), step

        def disturb(folder: Path = folder) -> None:
            nonlocal left
            if left == 0:
                with monkeypatch.context() as undisturbed:
                    undisturbed.setattr(store, name, real)
                    assert compact(folder.parent, Rules(), NOW).batches
            left -= 1

        def disturbed(path: Path, disturb: Any = disturb) -> Any:
            if where == "walk":
                return _disturbed_walk(real(path), disturb)
            disturb()
            return real(path)

        with monkeypatch.context() as patch:
            patch.setattr(store, name, disturbed)
            same(read_inputs([folder.parent]), expected)
        if left >= 0:
            break
        steps += 1
    assert 3 <= steps < 99


def _disturbed_walk(paths: Iterator[Path], disturb: Any) -> Iterator[Path]:
    for path in paths:
        disturb()
        yield path


BUSY = """
import sys
from pathlib import Path
from analyzer.flow_store import Rules, compact
for folder in sorted(Path(sys.argv[1]).iterdir()):
    for times in (2.5, 5, 100):
        compact(folder, Rules(target=int(float(sys.argv[2]) * times)), int(sys.argv[3]))
"""


def test_readers_beside_compactions(tmp_path: Path) -> None:
    """Eight parts become four, two and one, in one store after the other; each reading has all packets."""
    origin = fill(tmp_path / "origin", 8)
    size = max(path.stat().st_size for path in origin.iterdir())
    expected = read_inputs([origin]).rows["packets"].sum()
    for n in range(4):
        shutil.copytree(origin, tmp_path / "stores" / str(n))
    stores = sorted((tmp_path / "stores").iterdir())
    busy = subprocess.Popen([sys.executable, "-c", BUSY, tmp_path / "stores", str(size), str(NOW)])
    try:
        readings = 0
        while busy.poll() is None:
            for folder in stores:
                assert read_inputs([folder]).rows["packets"].sum() == expected
                readings += 1
    finally:
        busy.kill()
        busy.wait()
    assert busy.returncode == 0
    assert readings > len(stores)
    assert [len(files(folder)) for folder in stores] == [1] * 4


def test_one_run_at_a_time(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    with (tmp_path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # the weakest that another run could hold
        with pytest.raises(CaptureError, match="another run"):
            compact(tmp_path, Rules(), NOW)
        with pytest.raises(CaptureError, match="another run"):
            prune(tmp_path, 1, NOW)
        assert compact(tmp_path, Rules(), NOW, dry_run=True).batches
    assert len(files(tmp_path)) == 2
    assert compact(tmp_path, Rules(), NOW).batches


def test_a_name_alone_replaces_nothing(tmp_path: Path) -> None:
    """A part with the name of one that was compacted, and other rows, counts."""
    fill(tmp_path, 2)
    compact(tmp_path, Rules(), NOW)
    before = read_inputs([tmp_path]).rows["packets"].sum()
    other = recorded(later(TALK, HOUR))
    write_rows(other, tmp_path / "agent-1-000Z.parquet")
    assert read_inputs([tmp_path]).rows["packets"].sum() == before + other.rows["packets"].sum()
    assert content_id(tmp_path / "gone") == ""


def test_no_name_is_used_again(tmp_path: Path) -> None:
    """Else a reader that had listed the old one would read the new one, and what is in it twice."""
    fill(tmp_path, 2)
    names = set()
    for n in range(4):
        (batch,) = compact(tmp_path, Rules(), NOW).batches
        assert batch.path is not None
        assert batch.path.name not in names
        names.add(batch.path.name)
        write_rows(recorded(later(TALK, NS)), tmp_path / f"agent-1-again-{n}.parquet")


def test_what_vanishes_for_good_is_told(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"x\.parquet"):
        read_inputs([fill(tmp_path, 1), tmp_path / "x.parquet"])


# ---- a part of it ----


def chosen(folder: Path, since: int = 0, until: int = EVER) -> dict[str, tuple[int, int]]:
    """Of each node how many frames the ledger of what was read counts, and how many parts were not; the rows
    agree with it. What a row is chosen by is for test_choice.py.
    """
    one_way = read_inputs([folder], choice=Choice(since, until))
    assert one_way.rows["packets"].sum() == sum(ledger.flow for ledger in one_way.coverage)
    assert all(ledger.accounted() == ledger.frames for ledger in one_way.coverage)
    return {ledger.source: (ledger.frames, ledger.parts_not_read) for ledger in one_way.coverage}


@pytest.mark.parametrize("moved", [False, True])
def test_a_time(moved: bool, tmp_path: Path) -> None:
    """What was recorded at the very end of a window counts as in it."""
    fill(tmp_path / "a", 2, "agent-1", DAY)
    fill(tmp_path / "b", 1, "agent-2", DAY)
    if moved:
        assert len(compact(tmp_path, Rules(), NOW).batches) == 3
    size, first, last = len(TALK), TALK[0].time, TALK[-1].time
    assert chosen(tmp_path) == {"agent-1": (2 * size, 0), "agent-2": (size, 0)}
    assert chosen(tmp_path, since=first + DAY) == {"agent-1": (size, 1)}
    assert chosen(tmp_path, since=last) == {"agent-1": (2 * size, 0), "agent-2": (size, 0)}
    assert chosen(tmp_path, until=first + 1) == {"agent-1": (size, 1), "agent-2": (size, 0)}
    assert chosen(tmp_path, since=last + 1, until=first + DAY + 1) == {"agent-1": (size, 1)}
    for words in ({"since": last + 1, "until": first + DAY}, {"since": NOW}, {"until": first}):
        with pytest.raises(CaptureError, match="nothing was recorded"):
            chosen(tmp_path, **words)


def test_a_compacted_part_is_accounted_for_and_not_read_for_its_gaps(tmp_path: Path) -> None:
    fill(tmp_path, 2, step=HOUR)
    compact(tmp_path, Rules(), NOW)
    assert chosen(tmp_path, since=EPOCH + HOUR) == {"agent-1": (2 * len(TALK), 0)}
    with pytest.raises(CaptureError, match="nothing was recorded"):
        chosen(tmp_path, since=EPOCH + 10 * NS, until=EPOCH + HOUR // 2)


# ---- show and prune ----


def test_gaps_outlive_compaction(tmp_path: Path) -> None:
    for n in (0, 1, 5):
        one_way = recorded(later(TALK, n * 10 * NS))
        (ledger,) = one_way.coverage
        ledger = replace(ledger, start=EPOCH + n * 10 * NS, end=EPOCH + (n + 1) * 10 * NS)
        write_rows(replace(one_way, coverage=(ledger,)), tmp_path / f"{n}.parquet")
    expected = {"agent-1": [(EPOCH + 20 * NS, EPOCH + 50 * NS)]}
    assert gaps(stored(tmp_path)[0]) == expected
    compact(tmp_path, Rules(), NOW)
    compact(tmp_path, Rules(interval=HOUR), NOW)
    assert len(files(tmp_path)) == 1
    assert gaps(stored(tmp_path)[0]) == expected


ASKED = fr.talk(("10.10.0.11", 41000), ("10.10.0.21", 10250))[0]


def paused(folder: Path, asked: float, nodes: tuple[str, ...]) -> None:
    """Two nodes, of which these pause from second 20 to 60; server-1 asks agent-1 for what nobody answers."""
    folder.mkdir()
    for begin in range(0, 80, 10):
        talk, mine = later(TALK, begin * NS), Frame(ASKED, EPOCH + int(asked * NS))
        seen = {"agent-1": talk, "server-1": [*talk, *([mine] if begin <= asked < begin + 10 else [])]}
        for node, frames in seen.items():
            part = recorded(frames, node, 10 * NS)
            start = EPOCH + begin * NS
            ledger = replace(part.coverage[0], start=start, end=start + 10 * NS)
            if node not in nodes or not 20 <= begin < 60:
                write_rows(replace(part, coverage=(ledger,)), folder / f"{node}-{begin:02}.parquet")


@pytest.mark.parametrize(
    ("asked", "nodes", "said"),
    [
        (15, ("agent-1",), "never came to agent-1, as both captures show"),
        (40, ("agent-1",), "The table allows it. Silence says"),
        (65, ("agent-1",), "never came to agent-1, as both captures show"),
        (19.5, ("agent-1",), "The table allows it. Silence says"),
        (19.5, ("agent-1", "server-1"), ""),
        (79.5, ("agent-1",), ""),
    ],
)
def test_a_node_that_paused_did_not_watch_meanwhile(
    asked: float, nodes: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    """As while it was started again: that nothing came to it then is not said. Nothing is either of what was
    asked in the last second before the asking node's capture paused.
    """
    parts, kept, table = (tmp_path / name for name in ("parts", "store", "flows.parquet"))
    paused(parts, asked, nodes)
    shutil.copytree(parts, kept)
    compact(kept, Rules(), NOW)
    rows = read_inputs([parts])
    write_flows(pair(rows), table, rows.coverage, rows.interval)
    cluster = load_cluster(LIVE / "cluster.yaml")
    for place in (parts, kept, table):
        whole = read_inputs([place])
        assert {ledger.source for ledger in whole.coverage if len(ledger.windows) == 2} == {*nodes}
        advice = Analysis.of(whole, cluster, load_spec()).findings["advice"].tolist()
        assert len(advice) == bool(said)
        assert said in "".join(advice)


@pytest.mark.parametrize(("since", "until"), [(5, 15), (30, 70), (15, 65), (25, 50), (20.5, 65)])
def test_of_a_node_that_paused_a_time_is_chosen(since: float, until: int, tmp_path: Path) -> None:
    """Of the compacted part, and of all in one, as of the parts."""
    parts, kept, whole = (tmp_path / name for name in ("parts", "store", "whole.parquet"))
    paused(parts, 40, ("agent-1",))
    shutil.copytree(parts, kept)
    compact(kept, Rules(), NOW)
    write_rows(read_inputs([parts]), whole)
    choice = Choice(EPOCH + int(since * NS), EPOCH + until * NS)
    chosen = [read_inputs([place], choice=choice).coverage for place in (parts, kept, whole)]
    watched = [{(c.source, c.start, c.end, c.windows, c.flow) for c in coverage} for coverage in chosen]
    assert watched[0] == watched[1] == watched[2]


@pytest.mark.parametrize("windows", [[[5, 4]], [[-1, 4]], [[1, 2**63]], ["x"], [[None, 1]], 7])
def test_hostile_windows(windows: object, tmp_path: Path) -> None:
    write_rows(recorded(TALK), tmp_path / "x.parquet", {"windows": windows})
    parts, work = stored(tmp_path)
    assert (parts, len(work.left)) == ([], 1)


@pytest.mark.parametrize("replaces", [7, [1], ["ab", [1, 2]], [["x"]], [["x", 1]]])
def test_hostile_replaces(replaces: object, tmp_path: Path) -> None:
    name = "20250101T000000.123Z-20250101T000010.123Z.parquet"
    write_rows(recorded(TALK), tmp_path / name, {"replaces": replaces})
    with pytest.raises(CaptureError, match=name):
        list(expand([tmp_path]))


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    return done.exit_code, done.output


def test_the_commands(tmp_path: Path) -> None:
    folder = shutil.copytree(LIVE, tmp_path / "live")
    before = {line.split()[0]: line.split()[4:] for line in run("show", folder)[1].splitlines()[1:]}
    ledgers = {ledger.source: ledger for ledger in read_inputs([folder]).coverage}
    assert {node: int(words[-3]) for node, words in before.items()} == {
        node: ledger.frames for node, ledger in ledgers.items()
    }
    everything = files(folder)
    status, text = run("compact", folder, "--older-than", "0", "--dry-run")
    assert (status, text.count("one part"), files(folder)) == (0, 6, everything)
    assert run("compact", folder, "--older-than", "30000d")[1] == "nothing to compact\n"
    assert run("compact", folder, "--interval", "1h", "--older-than", "0", "--target-size", "1MiB")[0] == 0
    assert len(files(folder)) == 6
    after = {line.split()[0]: line.split()[4:] for line in run("show", folder)[1].splitlines()[1:]}
    assert {node: words[1:] for node, words in after.items()} == {
        node: words[1:] for node, words in before.items()
    }
    status, text = run("prune", folder, "--keep", "30000d")
    assert (status, text) == (0, "deleted: 0 parts, 0 bytes\n")
    assert "to be deleted: 6 parts" in run("prune", folder, "--keep", "1ns", "--dry-run")[1]
    assert len(files(folder)) == 6
    assert "deleted: 6 parts" in run("prune", folder, "--keep", "1ns")[1]
    assert not list(folder.glob("date=*"))
    assert run("show", folder) == (0, "no parts\n")
    assert (folder / "cluster.yaml").exists()


@pytest.mark.parametrize(
    "words",
    [("compact", "--target-size", "0"), ("compact", "--target-size", "lots"), ("prune", "--keep", "xd"),
     ("prune",), ("compact", "--older-than", "-1h")],
)  # fmt: skip
def test_wrong_words(words: tuple[str, ...], tmp_path: Path) -> None:
    assert run(words[0], tmp_path, *words[1:])[0] == 2


def test_no_folder(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(CaptureError, match="no folder"):
        compact(missing, Rules(), NOW)
    with pytest.raises(CaptureError, match="no folder"):
        prune(missing, 1, NOW)
