"""One run on many workers. Rule: what is expected is the run on one; workers are processes, the store speaks
S3 over loopback, and nothing here leaves the machine.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import frames as fr
import numpy as np
import pandas as pd
import pytest
from conftest import RECORDED
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer import Analysis, addresses, analyze, load_cluster, waiting, watch, workers
from analyzer import pairs as pairs_room
from analyzer.addresses import find_inputs, is_empty, read_inputs
from analyzer.choice import Choice
from analyzer.errors import AnalyzerError, CaptureError, LiveError
from analyzer.flow_store import Rules, compact
from analyzer.flows import parse_address
from analyzer.report import MATRICES, summary
from analyzer.rows import ROW, Coverage, Observer, OneWay
from analyzer.store import read_flow_file, write_flows, write_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analyzer.overview import Overview

pytest.importorskip("distributed", reason="Dask is an extra")

RECORDINGS = ("any", "live", "offences")
BUCKET = "captures"


def cluster_of(folder: Path) -> Path:
    return folder / "cluster.yaml"


def assert_as_on_one(found: Overview, whole: Analysis) -> None:
    pd.testing.assert_frame_equal(found.findings, whole.findings)
    for by in MATRICES:
        pd.testing.assert_frame_equal(found.matrix(by), whole.matrix(by))
    known = summary(whole)
    assert found.sums == {by: known[by] for by in found.sums}
    pd.testing.assert_frame_equal(found.pairs, pairs_room.pairs(whole.flows))
    assert found.coverage == whole.coverage
    pd.testing.assert_frame_equal(found.ledger, whole.ledger)


@contextmanager
def two_workers() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as local:  # fmt: skip
        yield local


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an S3 store on loopback that holds the recordings."""
    pytest.importorskip("s3fs", reason="s3fs is for s3:// alone")
    moto = pytest.importorskip("moto.server", reason="moto is the S3 of these tests")
    import fsspec

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }.items():
            patch.setenv(name, value)
        store = fsspec.filesystem("s3")
        store.mkdir(BUCKET)
        for name in RECORDINGS:
            store.put(f"{RECORDED / name}/", f"{BUCKET}/{name}/", recursive=True)
        yield f"s3://{BUCKET}"
        store.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def scheduler(bucket: str) -> Iterator[str]:
    with two_workers() as local:
        yield local.scheduler_address


@pytest.mark.parametrize("name", RECORDINGS)
def test_two_processes_find_what_one_finds(name: str, scheduler: str) -> None:
    folder = RECORDED / name
    found = workers.analyze(folder, cluster=cluster_of(folder), scheduler=scheduler)
    assert_as_on_one(found, analyze(folder, cluster=cluster_of(folder)))


@pytest.mark.parametrize("name", ["live", "offences"])
def test_an_s3_address(name: str, bucket: str, scheduler: str) -> None:
    """Parts and captures, listed here, read there."""
    folder = RECORDED / name
    found = workers.analyze(f"{bucket}/{name}/", cluster=cluster_of(folder), scheduler=scheduler)
    assert_as_on_one(found, analyze(folder, cluster=cluster_of(folder)))


def test_an_address_without_workers(bucket: str) -> None:
    folder = RECORDED / "offences"
    cluster = load_cluster(cluster_of(folder))
    whole = analyze(folder, cluster=cluster)
    rows = read_inputs([f"{bucket}/offences/"])
    pd.testing.assert_frame_equal(Analysis.of(rows, cluster, whole.spec).findings, whole.findings)
    mixed = read_inputs([f"{bucket}/offences/agent-1.pcap", folder / "server-1.pcap"])
    assert {ledger.source for ledger in mixed.coverage} == {"agent-1.pcap", "server-1.pcap"}


def test_an_address_is_listed_anew_each_time(bucket: str) -> None:
    """A process that lives long, as a notebook does, sees what others wrote and deleted meanwhile."""
    other = pytest.importorskip("fsspec").filesystem("s3", skip_instance_cache=True)
    place = f"{BUCKET}/grows"

    def frames() -> list[tuple[str, int]]:
        return [(ledger.source, ledger.frames) for ledger in read_inputs([f"s3://{place}/"]).coverage]

    def put(name: str, content: str) -> None:
        other.put_file(str(RECORDED / "offences" / content), f"{place}/{name}")

    put("a.pcap", "agent-1.pcap")
    assert frames() == [("a.pcap", 639)]
    put("b.pcap", "agent-2.pcap")
    assert frames() == [("a.pcap", 639), ("b.pcap", 533)]
    put("a.pcap", "server-1.pcap")
    assert frames() == [("a.pcap", 1703), ("b.pcap", 533)]
    assert not is_empty(f"s3://{place}")
    other.rm(place, recursive=True)
    assert is_empty(f"s3://{place}")
    with pytest.raises(CaptureError, match="no capture"):
        frames()


def unfinished(folder: Path) -> Path:
    """The recorded parts compacted by a run that was stopped before it deleted any."""
    shutil.copytree(RECORDED / "live", folder)
    kept = shutil.copytree(folder, folder.with_name(f"{folder.name}-before"))
    compact(folder, Rules(), 2**62)
    for path in kept.rglob("*.parquet"):
        place = folder / path.relative_to(kept)
        place.parent.mkdir(exist_ok=True)
        shutil.copy(path, place)
    return folder


def test_parts_that_were_replaced_count_once(bucket: str, scheduler: str, tmp_path: Path) -> None:
    """At an address as in a folder, by workers or not; a part of the same name with other rows counts."""
    folder = unfinished(tmp_path / "s")
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("s3").put(f"{folder}/", f"{BUCKET}/unfinished/", recursive=True)
    cluster = cluster_of(RECORDED / "live")
    whole = analyze(RECORDED / "live", cluster=cluster)
    assert len(list(folder.rglob("*.parquet"))) == 25 + 6
    for place in (str(folder), f"{bucket}/unfinished/"):
        assert len(find_inputs([place])) == 6
        found = workers.analyze(place, cluster=cluster, scheduler=scheduler)
        assert found.findings["id"].tolist() == whole.findings["id"].tolist()
        assert found.sums == {by: summary(whole)[by] for by in found.sums}
        assert read_inputs([place]).rows["packets"].sum() == read_inputs([folder]).rows["packets"].sum()
    old = next(path for path in folder.rglob("*/*.parquet") if not path.parts[-3].startswith("date="))
    other = next(path for path in folder.rglob("*/*.parquet") if path.name != old.name)
    shutil.copy(other, tmp_path / old.name)
    fsspec.filesystem("s3").put(str(tmp_path / old.name), f"{BUCKET}/unfinished/again/{old.name}")
    assert len(find_inputs([f"{bucket}/unfinished/"])) == 7
    apart = [str(path) for path in folder.iterdir() if path.is_dir()]
    assert len(find_inputs(apart)) == 6


def test_of_an_address_no_more_is_read_than_is_chosen(bucket: str, scheduler: str, tmp_path: Path) -> None:
    """Compacted parts of another day are not opened there, of others the rows are not read; the same as of a
    folder.
    """
    folder = shutil.copytree(RECORDED / "live", tmp_path / "s")
    compact(folder, Rules(), 2**62)
    paths = sorted(folder.glob("date=*/node=*/*.parquet"))
    cluster = cluster_of(RECORDED / "live")
    ends = sorted(ledger.end for ledger in read_inputs([folder]).coverage)
    choice = Choice(since=ends[-3] + 10**6, ports=frozenset((6443, 10250, 8472)))
    found = analyze(folder, cluster=cluster, choice=choice)
    assert (len(paths), len(found.coverage)) == (6, 2)
    store = pytest.importorskip("fsspec").filesystem("s3")
    read = {ledger.source for ledger in found.coverage}
    for path in paths:
        if path.parent.name.removeprefix("node=") not in read:
            path.write_bytes(b"PAR1 and nothing else")
    store.put(f"{folder}/", f"{BUCKET}/days/", recursive=True)
    for place in (str(folder), f"{bucket}/days/"):
        again = Analysis.of(read_inputs([place], choice=choice), found.cluster, found.spec)
        pd.testing.assert_frame_equal(again.findings, found.findings)
        assert sorted(again.coverage, key=str) == sorted(found.coverage, key=str)
        by_workers = workers.analyze(place, cluster=cluster, scheduler=scheduler, choice=choice)
        assert_as_on_one(by_workers, found)
        with pytest.raises(CaptureError):
            find_inputs([place])
    with pytest.raises(CaptureError, match="nothing was recorded"):
        workers.analyze(f"{bucket}/days/", cluster=cluster, scheduler=scheduler, choice=Choice(until=1))


def test_flows_written_by_workers_are_read_back(bucket: str, scheduler: str, tmp_path: Path) -> None:
    """To a path and to an address; all files together have the ledgers once."""
    folder = RECORDED / "offences"
    whole = analyze(folder, cluster=cluster_of(folder))
    for place in (str(tmp_path / "judged"), f"{bucket}/judged"):
        workers.analyze(folder, cluster=cluster_of(folder), scheduler=scheduler, folder=place)
        again = Analysis.of(read_inputs([place]), whole.cluster, whole.spec)
        pd.testing.assert_frame_equal(
            again.findings.drop(columns="evidence"), whole.findings.drop(columns="evidence")
        )
        assert sorted(again.coverage, key=str) == sorted(whole.coverage, key=str)
        assert not is_empty(place)
        with pytest.raises(CaptureError, match="something is in this folder"):
            workers.analyze(folder, cluster=cluster_of(folder), scheduler=scheduler, folder=place)
    tables = [read_flow_file(path).table for path in sorted((tmp_path / "judged").iterdir())]
    assert sum(map(len, tables)) == len(whole.flows)
    assert sum(int(table["bytes_out"].sum()) for table in tables) == int(whole.flows["bytes_out"].sum())


@pytest.mark.parametrize("ports", [(), (6443, 10250)])
def test_flows_written_by_workers_are_chosen_from(
    ports: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledgers say of all files what they say of one: how much was not chosen, and when they watched."""
    monkeypatch.setattr(workers, "LEAST_BYTES", 1)
    workers.analyze(OFFENCES, cluster=cluster_of(OFFENCES), folder=tmp_path / "all")
    assert len(list((tmp_path / "all").iterdir())) > 2
    write_flows(WHOLE.flows, tmp_path / "one.parquet", WHOLE.coverage)
    middle = WHOLE.coverage[0].start + 2 * 10**9
    for choice in (Choice(since=middle, ports=frozenset(ports)), Choice(ports=frozenset(ports))):
        one, all_ = (read_inputs([tmp_path / name], choice=choice) for name in ("one.parquet", "all"))
        assert len(one.rows) == len(all_.rows) > 0
        assert sorted(all_.coverage, key=str) == sorted(one.coverage, key=str)
    for name in ("one.parquet", "all"):
        with pytest.raises(CaptureError, match="nothing was recorded"):
            read_inputs([tmp_path / name], choice=Choice(until=1))


def test_flows_without_a_cluster(scheduler: str, tmp_path: Path) -> None:
    folder = RECORDED / "offences"
    whole = analyze(folder, cluster=cluster_of(folder))
    count, coverage = workers.flows(folder, folder=tmp_path / "flows", scheduler=scheduler)
    assert (count, coverage) == (len(whole.flows), whole.coverage)
    tables = [read_flow_file(path).table for path in sorted((tmp_path / "flows").iterdir())]
    assert sum(map(len, tables)) == count


def test_inputs_are_named_and_counted_as_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one name in two folders, by relative paths; and one file by its path, a link and its address."""
    monkeypatch.chdir(tmp_path)
    for name, capture in (("x/a.pcap", "agent-1"), ("y/a.pcap", "server-1"), ("y/b.pcap", "agent-2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(OFFENCES / f"{capture}.pcap", name)
    Path("link").symlink_to("y")
    Path("x/b.pcap").symlink_to("../y/b.pcap")
    whole = analyze("x", "y", cluster=cluster_of(OFFENCES))
    assert [ledger.source for ledger in whole.coverage] == ["x/a.pcap", "b.pcap", "y/a.pcap"]
    for more in ((), ("link", "link/a.pcap"), (f"file://{tmp_path}/y", f"file://{tmp_path}/link/")):
        assert_as_on_one(workers.analyze("x", "y", *more, cluster=cluster_of(OFFENCES)), whole)


def test_nodes_captured_one_after_the_other_count_as_on_one(tmp_path: Path) -> None:
    """Their names are the cluster's, not numbers of parts: who watched meanwhile adds to it."""
    talk = fr.timed(fr.talk(("10.10.0.21", 40000), ("10.10.0.11", 6443), 3))
    for n, name in enumerate(("server-1", "agent-1", "server-2")):
        frames = [replace(frame, time=frame.time + n * 100 * fr.NS) for frame in talk]
        fr.save(tmp_path, f"{name}.pcap", fr.pcap(frames))
    whole = analyze(tmp_path, cluster=cluster_of(OFFENCES))
    assert int(whole.flows["packets_out"].sum()) == 3 * 7
    assert_as_on_one(workers.analyze(tmp_path, cluster=cluster_of(OFFENCES)), whole)


def test_captures_beside_parts_are_cut_as_on_one(tmp_path: Path) -> None:
    """Else what both saw of one flow would not meet, and count twice."""
    talk = fr.timed(fr.talk(("10.10.0.21", 40000), ("10.10.0.11", 6443), 3))
    write_rows(fr.read(fr.pcap(talk), "agent-1", fr.NS), tmp_path / "part.parquet")
    fr.save(tmp_path, "server-1.pcap", fr.pcap(talk))
    whole = analyze(tmp_path, cluster=cluster_of(OFFENCES))
    assert int(whole.flows["packets_out"].sum() + whole.flows["packets_in"].sum()) == len(talk)
    assert_as_on_one(workers.analyze(tmp_path, cluster=cluster_of(OFFENCES)), whole)


# ---- a worker dies ----


def test_a_worker_killed_in_the_middle(tmp_path: Path) -> None:
    """SIGKILL to a worker's process while it has results that others need: nothing is missing, nothing is
    twice, neither in findings nor in files.
    """
    for source in sorted((RECORDED / "offences").glob("*.pcap")):
        for copy in range(6):
            shutil.copy(source, tmp_path / f"{source.stem}-{'abcdef'[copy]}.pcap")
    cluster = cluster_of(RECORDED / "offences")
    whole = analyze(tmp_path, cluster=cluster)
    killed: list[tuple[int, int]] = []
    with two_workers() as local:
        first = local.workers[0].pid

        def kill(done: int, tasks: int) -> None:
            if not killed and tasks // 5 < done < tasks:
                os.kill(first, signal.SIGKILL)
                killed.append((done, tasks))

        found = workers.analyze(
            tmp_path,
            cluster=cluster,
            scheduler=local.scheduler_address,
            folder=tmp_path / "out",
            progress=kill,
        )
        assert local.workers[0].pid != first
    assert killed
    assert killed[0][0] < killed[0][1]
    assert_as_on_one(found, whole)
    tables = [read_flow_file(path).table for path in (tmp_path / "out").iterdir()]
    assert sum(map(len, tables)) == len(whole.flows)


@contextmanager
def scheduler_by_hand() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address and the process of a scheduler that has a worker, each a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", port], **quiet) as asked,
        subprocess.Popen([*dask, "worker", address, "--nthreads", "1", "--no-nanny"], **quiet) as worker,
    ):
        try:
            yield address, asked
        finally:
            for process in (worker, asked):
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_scheduler_that_ends_in_the_middle(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Whether it says so or not, this machine cannot do it; and no traceback of Dask's stands beside that."""

    def end(done: int, _: int) -> None:
        if done:
            asked.send_signal(number)

    with scheduler_by_hand() as (address, asked):
        error = fails(
            LiveError,
            "the scheduler went away",
            RECORDED / "offences",
            scheduler=address,
            progress=end,
        )
    assert (error.where, error.exit_status) == (address, 3)
    assert "Traceback" not in capfd.readouterr().err


# ---- what comes back ----


def busy_store(folder: Path, connections: int, outside: int = 0) -> int:
    """A store of parts in which nodes talk as the table says, and one of them also as it does not; or in
    which so many addresses `outside` ask servers for their kubelets. Returns its bytes.
    """
    nodes = load_cluster(cluster_of(RECORDED / "live")).nodes
    ends = np.array([parse_address(node.addresses[0]) for node in nodes], "V16")
    server, agent = (np.flatnonzero([node.role == role for node in nodes]) for role in ("server", "agent"))
    random = np.random.default_rng(7)
    rows = np.zeros(2 * connections, ROW)
    ask, reply = rows[::2], rows[1::2]
    ask["src"], ask["dst"] = ends[random.choice(agent, connections)], ends[random.choice(server, connections)]
    ask["src_port"], ask["dst_port"] = random.integers(32768, 61000, connections), 6443
    ask["dst_port"][:20] = 2379
    if outside:
        numbers = np.arange(connections) % outside
        texts = [f"198.{18 + (n >> 16)}.{n >> 8 & 255}.{n & 255}" for n in numbers.tolist()]
        ask["src"] = [parse_address(text) for text in texts]
        ask["dst_port"] = 10250
    for there, back in (("src", "dst"), ("dst", "src"), ("src_port", "dst_port"), ("dst_port", "src_port")):
        reply[there] = ask[back]
    rows["protocol"], rows["packets"], rows["tcp_flags"] = 6, random.integers(1, 500, len(rows)), 0x1B
    rows["bytes"] = rows["packets"] * random.integers(40, 1500, len(rows)).astype(np.uint64)
    ask["events"], reply["events"] = 1, 2
    rows["start"] = np.repeat(1_790_000_000 * 10**9 + random.integers(0, 600 * 10**9, connections), 2)
    rows["end"] = rows["start"] + np.uint64(10**9)
    if outside:  # every third is not answered
        rows = np.delete(rows, slice(1, None, 6))
    folder.mkdir()
    for number, part in enumerate(np.array_split(rows, 8)):
        ledger = Coverage("n-1", int(part["start"].min()), int(part["end"].max()), int(part["packets"].sum()))
        write_rows(OneWay(part, (Observer("n-1"),), (ledger,)), folder / f"n-1-{number}.parquet")
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("outside", [0, 100_000])
def test_what_comes_back_is_small(
    outside: int, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a hundredth of the store's bytes, also where all comes from outside; the rest stays on the
    workers.
    """
    size = busy_store(tmp_path / "store", 150_000, outside)
    cluster = cluster_of(RECORDED / "live")
    came: list[int] = []
    compute = workers._Cluster.compute

    def weighed(self: Any, value: Any, progress: Any) -> Any:
        result = compute(self, value, progress)
        came.append(len(pickle.dumps(result)))
        return result

    monkeypatch.setattr(workers._Cluster, "compute", weighed)
    found = workers.analyze(tmp_path / "store", cluster=cluster, scheduler=scheduler)
    assert_as_on_one(found, analyze(tmp_path / "store", cluster=cluster))
    assert len(came) == 1
    assert came[0] <= size / 100, f"{came[0]} bytes came back of a store of {size}"
    with pytest.raises(CaptureError, match="stayed on the workers"):
        _ = found.flows


# ---- threads ----

OFFENCES = RECORDED / "offences"
WHOLE = analyze(OFFENCES, cluster=cluster_of(OFFENCES))


@given(
    tasks=st.integers(1, 12), shares=st.integers(1, 20), fan_in=st.integers(2, 9), size=st.integers(1, 10**6)
)
@settings(max_examples=4, deadline=None)
def test_the_number_of_tasks_changes_nothing(tasks: int, shares: int, fan_in: int, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "TASKS_A_WORKER", tasks)
        patch.setattr(workers, "MAX_SHARES", shares)
        patch.setattr(workers, "LEAST_BYTES", 1)
        patch.setattr(workers, "FAN_IN", fan_in)
        patch.setattr(workers, "GROUP_BYTES", size)
        told: list[tuple[int, int]] = []
        found = workers.analyze(
            OFFENCES, cluster=cluster_of(OFFENCES), progress=lambda done, all_: told.append((done, all_))
        )
    assert_as_on_one(found, WHOLE)
    assert told[-1][0] == told[-1][1] == len(told)


@given(sizes=st.lists(st.integers(0, 10**9), min_size=1, max_size=50), threads=st.integers(1, 64))
def test_groups_have_every_input_once(sizes: list[int], threads: int) -> None:
    groups = workers.grouped(sizes, threads)
    assert [place for of in groups for place in range(len(sizes))[of]] == list(range(len(sizes)))
    limit = max(workers.GROUP_BYTES, 1)
    assert all(len(sizes[of]) == 1 or sum(sizes[of]) <= limit for of in groups)
    assert all(sizes[of] for of in groups)


def test_processes_of_this_machine() -> None:
    found = workers.analyze(OFFENCES, cluster=cluster_of(OFFENCES), scheduler="processes")
    assert_as_on_one(found, WHOLE)


# ---- what goes wrong ----


def fails(kind: type[AnalyzerError], words: str, *inputs: str | Path, **more: Any) -> AnalyzerError:
    with pytest.raises(kind, match=words) as caught:
        workers.analyze(*inputs, cluster=cluster_of(OFFENCES), **more)
    assert caught.value.next_step
    return caught.value


@pytest.mark.parametrize("seconds", [0, 0.3, 0.6, 1.2])
def test_ctrl_c_ends_processes_in_order(seconds: float) -> None:
    """A terminal sends it to all of them: while they start, work and end."""
    words = ["check", str(OFFENCES), "--cluster", str(cluster_of(OFFENCES)), "--scheduler", "processes"]
    command = [sys.executable, "-m", "analyzer", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stderr
        try:
            while not list(started_by(process.pid)) and process.poll() is None:
                time.sleep(0.005)
            time.sleep(seconds)
            begin = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            said = process.stderr.read()  # until the last of them is gone
            took = time.monotonic() - begin
            status = process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    lines = said.splitlines()
    if lines[:1] != ["rke2-flows: interrupted"]:
        assert lines.pop(0).startswith("by workers no cause is named")  # it was done before
    assert (status, lines) in ((130, ["rke2-flows: interrupted"]), (1, []))
    assert took < 8  # what is half closed is waited for 10 s


def started_by(pid: int) -> Iterator[str]:
    for task in Path("/proc", str(pid), "task").iterdir():
        yield from (task / "children").read_text().split()


def test_a_fault_on_a_worker_comes_back(scheduler: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 and nothing else")
    error = fails(CaptureError, "cannot be read as a flow table", bad, OFFENCES, scheduler=scheduler)
    assert (error.where, error.exit_status) == (str(bad), 2)


def test_inputs_at_fault(bucket: str, tmp_path: Path) -> None:
    fails(CaptureError, "there is nothing at this address|no capture", f"{bucket}/none/")
    fails(CaptureError, "is not there", tmp_path / "none.pcap")
    fails(CaptureError, "standard input", "-")
    fails(CaptureError, "no capture and no flow file", tmp_path)
    fails(CaptureError, "nonsense", "nonsense://a/b")


def test_what_a_folder_at_an_address_holds() -> None:
    """Captures and flow files, by name; not what is hidden, empty or something else."""
    store = pytest.importorskip("fsspec").filesystem("memory")
    capture = (OFFENCES / "agent-1.pcap").read_bytes()
    contents = {
        **dict.fromkeys(("b/agent-1.pcap", "a/agent-1.pcap", ".hidden/agent-1.pcap"), capture),
        "README.md": b"# Words",
        "empty.pcap": b"",
        ".part.parquet": b"PAR1",
    }
    for name, content in contents.items():
        store.pipe_file(f"/day/{name}", content)
    try:
        found = find_inputs(["memory://day/", "memory://day/b/agent-1.pcap"])
        names = [one.address.removeprefix("memory://").lstrip("/") for one in found]
        assert names == ["day/a/agent-1.pcap", "day/b/agent-1.pcap"]
        assert {(one.kind, one.size) for one in found} == {("capture", len(capture))}
        rows = read_inputs(["memory://day/"])
        assert [ledger.source for ledger in rows.coverage] == [one.address for one in found]
    finally:
        store.rm("/day", recursive=True)


def test_a_folder_with_links_by_its_address(tmp_path: Path) -> None:
    """As by its path: links to files are read; links to folders or to nothing and pipes are none."""
    pytest.importorskip("fsspec")
    shutil.copy(OFFENCES / "agent-1.pcap", tmp_path)
    links = (
        ("file.pcap", OFFENCES / "agent-2.pcap"),
        ("folder", OFFENCES),
        ("gone", "none"),
        ("loop", "loop"),
    )
    for name, target in links:
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    found = read_inputs([f"file://{tmp_path}/"]).coverage
    assert [ledger.source for ledger in found] == ["agent-1.pcap", "file.pcap"]
    assert found == read_inputs([tmp_path]).coverage


def test_an_ipv6_address_in_a_name(bucket: str, tmp_path: Path) -> None:
    """It is a part of the name, of an input and of the folder that is written, not fsspec's chain of two."""
    folder = tmp_path / "fd00::11"
    shutil.copytree(OFFENCES, folder)
    store = pytest.importorskip("fsspec").filesystem("s3")
    for path in folder.iterdir():
        store.put_file(str(path), f"{BUCKET}/fd00::11/{path.name}")
    for place in (f"file://{folder}", f"{bucket}/fd00::11/"):
        assert_as_on_one(workers.analyze(place, cluster=cluster_of(OFFENCES)), WHOLE)
    for out in (tmp_path / "out::1", f"{bucket}/out::1"):
        assert workers.flows(folder, folder=out)[0] == len(WHOLE.flows)
        assert not is_empty(str(out))
    assert len(list((tmp_path / "out::1").iterdir())) > 1
    assert not (tmp_path / "out").exists()


def test_schedulers_at_fault(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    monkeypatch.setattr(workers, "TIMEOUT", 1)
    with socket.socket() as taken:  # a port that nobody listens on
        taken.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        error = fails(LiveError, "no Dask scheduler answers", OFFENCES, scheduler=nobody)
    assert (error.where, error.exit_status) == (nobody, 3)
    fails(CaptureError, "no scheduler is called 'thread'", OFFENCES, scheduler="thread")
    safe = nobody.replace("tcp", "tls")
    fails(LiveError, "no certificates are set for TLS", OFFENCES, scheduler=safe)
    files = ("ca-file", "client.cert", "client.key")
    with dask.config.set({f"distributed.comm.tls.{name}": os.devnull for name in files}):
        fails(LiveError, "the certificates for TLS cannot be read", OFFENCES, scheduler=safe)
    monkeypatch.setattr(workers, "analyzer_version", lambda: "0.0.1")
    error = fails(LiveError, "rke2-flows .* there, 0.0.1 here", OFFENCES, scheduler=scheduler)
    assert error.where.startswith("tcp://127.0.0.1:")


# ---- who keeps silent ----


@contextmanager
def mute() -> Iterator[str]:
    """Host and port of who takes connections, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that neither run nor end."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, name, seconds in (
        (waiting, "PATIENCE", 1.0),
        (watch, "STEP", 0.5),
        (watch, "LIMIT", 4.0),
        (workers, "TIMEOUT", 2),
        (workers, "ANSWER", 6.0),
    ):
        monkeypatch.setattr(room, name, seconds)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines for whoever waits."""
    return [record.getMessage() for record in caplog.records if record.name == "analyzer"]


@pytest.mark.usefixtures("hurried")
def test_a_scheduler_that_never_answers() -> None:
    with mute() as place:
        error = fails(LiveError, "has said nothing for 2 s", OFFENCES, scheduler=f"tcp://{place}")
    assert error.where == f"tcp://{place}"


@pytest.mark.usefixtures("hurried")
def test_a_worker_that_is_stopped_from_the_start() -> None:
    with two_workers() as local, stopped(local.workers[1].pid):
        error = fails(LiveError, "has said nothing for 6 s", OFFENCES, scheduler=local.scheduler_address)
        assert error.where == local.workers[1].worker_address


@pytest.mark.usefixtures("hurried")
def test_workers_that_are_stopped_in_the_middle(caplog: pytest.LogCaptureFixture) -> None:
    """One is told of, all of them are given up."""
    with two_workers() as local, ExitStack() as stops:

        def stop(done: int, tasks: int) -> None:
            if 0 < done < tasks and not pids:
                pids.extend(nanny.pid for nanny in local.workers.values())
                stops.enter_context(stopped(*pids))

        pids: list[int] = []
        names = sorted(nanny.worker_address for nanny in local.workers.values())
        error = fails(
            LiveError, "no worker can work", OFFENCES, scheduler=local.scheduler_address, progress=stop
        )
    assert error.where == local.scheduler_address
    assert names[0] in error.what
    lines = said(caplog)
    assert lines[0].startswith("rke2-flows: no task is done since ")
    assert f"waiting for {', '.join(names)}, not heard from since" in lines[-1]


@pytest.mark.usefixtures("hurried")
def test_a_scheduler_that_is_stopped_in_the_middle(caplog: pytest.LogCaptureFixture) -> None:
    with scheduler_by_hand() as (address, asked), ExitStack() as stops:

        def stop(done: int, _: int) -> None:
            if done and not pids:
                pids.append(asked.pid)
                stops.enter_context(stopped(asked.pid))

        pids: list[int] = []
        begin = time.monotonic()
        error = fails(LiveError, "the scheduler has not answered", OFFENCES, scheduler=address, progress=stop)
        assert time.monotonic() - begin < 30
    assert error.where == address
    assert f"waiting for the scheduler at {address}" in said(caplog)[-1]


@pytest.mark.usefixtures("hurried")
def test_workers_without_memory(caplog: pytest.LogCaptureFixture) -> None:
    """Dask gives no task to a worker whose memory is full, and it may never be less."""
    import dask

    full = {f"distributed.worker.memory.{name}": 1e-4 for name in ("target", "spill", "pause")}
    with dask.config.set(full | {"distributed.worker.memory.terminate": False}), two_workers() as local:
        fails(LiveError, "paused, since the memory is full", OFFENCES, scheduler=local.scheduler_address)
    assert "paused, since the memory is full" in said(caplog)[-1]


@pytest.mark.usefixtures("hurried", "bucket")
def test_a_store_that_never_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(addresses._S3, "read_timeout", 0.4)
    with mute() as place:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{place}")
        begin = time.monotonic()
        with pytest.raises(CaptureError, match=r"s3://x/y/: cannot be read: .*timeout"):
            read_inputs(["s3://x/y/"])
        took = time.monotonic() - begin
    assert took < 8, f"{took} s rather than six times 0.4 s, and what is between them"
    assert said(caplog)[0].startswith("rke2-flows: waiting for s3://x/y/ since ")


def test_a_scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(workers, "TIMEOUT", 1)
    with LocalCluster(
        n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
    ) as empty:
        fails(LiveError, "has no workers", OFFENCES, scheduler=empty.scheduler_address)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    fails(LiveError, "Dask is not installed", OFFENCES, scheduler="processes")
    monkeypatch.setitem(sys.modules, "dask", None)
    fails(LiveError, "Dask is not installed", OFFENCES)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(LiveError, match="fsspec"):
        find_inputs(["memory://a/b"])


def test_errors_go_through_pickle() -> None:
    error = CaptureError("is bad", where="s3://a/b", next_step="leave it out")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  its own
    assert str(again) == str(error) == "s3://a/b: is bad (leave it out)"


def test_a_run_that_cannot_begin_makes_no_folder(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for inputs, scheduler in ((tmp_path / "nothing", "threads"), (RECORDED / "any", "no-such")):
        with pytest.raises(AnalyzerError):
            workers.flows(inputs, folder=tmp_path / "flows", scheduler=scheduler)
    assert not (tmp_path / "flows").exists()
