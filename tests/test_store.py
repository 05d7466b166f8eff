"""Flow tables in files: what is written is what is read, or one clear line. Rule: real files and folders."""

from __future__ import annotations

import bz2
import csv
import errno
import io
import json
import lzma
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import frames as fr
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import steps_on_disk
from frames import EPOCH, NS, Frame, Interface, same_table, traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes import drop, owner, plain_facts, with_facts

from analyzer.addresses import find_inputs
from analyzer.analysis import analyze
from analyzer.cluster import Cluster, Node
from analyzer.errors import CaptureError
from analyzer.flow_store import stored
from analyzer.flows import COLUMNS, pair, parse_address
from analyzer.rows import Coverage, Endpoint, Observer, OneWay, merge
from analyzer.spec import load_spec
from analyzer.store import (
    METADATA_KEY,
    add_rows,
    expand,
    read_flow_file,
    read_flows,
    read_inputs,
    read_rows,
    replacing,
    write_flows,
    write_rows,
)
from analyzer.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AGENT, SERVER = ("10.10.0.21", 40000), ("10.10.0.11", 6443)
TALK = fr.timed(fr.talk(AGENT, SERVER))
FORMATS = (".parquet", ".csv", ".jsonl")


def some() -> pd.DataFrame:
    """Flows of every kind that the reader knows, among them one that no packet of the capture has."""
    conversations = [frame for make in fr.CONVERSATIONS.values() for frame in make(3)]
    return pair(fr.read(fr.pcap(fr.timed(conversations), "ns")).settled())


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---- there and back ----


@pytest.mark.parametrize("suffix", FORMATS)
@given(frames=traffic(), kind=st.sampled_from(list(fr.FILES)))
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read(suffix: str, frames: list[Frame], kind: str, tmp_path_factory: Any) -> None:
    """Values and types; and as the input of the next step it pairs to the same table again."""
    path = tmp_path_factory.mktemp("round") / f"flows{suffix}"
    one_way = fr.read(fr.FILES[kind](frames)).settled()
    table = pair(one_way)
    write_flows(table, path, one_way.coverage)
    back = read_flow_file(path).table
    same_table(back, table)
    assert {n: str(t) for n, t in back.dtypes.items()} == {n: str(t) for n, t in table.dtypes.items()}
    same_table(pair(read_flows(path)), table)


@pytest.mark.parametrize("suffix", FORMATS)
def test_flows_without_a_time(suffix: str, tmp_path: Path) -> None:
    table = pair(fr.read(fr.pcapng(TALK, kind="simple")))
    assert table["start"].isna().all()
    write_flows(table, tmp_path / f"x{suffix}")
    same_table(read_flow_file(tmp_path / f"x{suffix}").table, table)


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_flows(suffix: str, tmp_path: Path) -> None:
    table = pair(fr.read(fr.pcap([Frame(fr.arp())])))
    write_flows(table, tmp_path / f"x{suffix}")
    back = read_flow_file(tmp_path / f"x{suffix}").table
    assert (len(back), set(back)) == (0, set(COLUMNS))
    assert pair(read_flows(tmp_path / f"x{suffix}")).empty


@pytest.mark.parametrize("suffix", FORMATS)
def test_live_columns(suffix: str, tmp_path: Path) -> None:
    rows = [
        fr.flow(AGENT[0], SERVER[0], process="kube-proxy", pid=4711, pod="kube-system/x"),
        fr.flow(AGENT[0], SERVER[0], 9345, drops="server-1 NETFILTER_DROP 3; agent-1 NO_SOCKET 1"),
    ]
    table = fr.table(rows)
    write_flows(table, tmp_path / f"x{suffix}")
    back = read_flow_file(tmp_path / f"x{suffix}").table
    assert back["pid"].tolist() == [4711, pd.NA]
    assert back["process"].tolist()[0] == "kube-proxy"
    assert back["pod"].isna().tolist() == [False, True]
    assert back["drops"].isna().tolist() == [True, False]
    again = pair(read_flows(tmp_path / f"x{suffix}"))
    for name in ("process", "pid", "pod", "drops"):
        assert set(again[name].dropna()) == set(table[name].dropna())


@pytest.mark.parametrize("suffix", FORMATS)
def test_judged_flows_keep_their_verdicts(suffix: str, tmp_path: Path) -> None:
    cluster = Cluster("x", (Node("agent-1", "agent", (AGENT[0],)), Node("server-1", "server", (SERVER[0],))))
    judged = judge(some(), cluster, load_spec("rke2-canal"))
    write_flows(judged, tmp_path / f"x{suffix}")
    back = read_flow_file(tmp_path / f"x{suffix}").table
    for name in ("scope", "rule", "verdict", "client_node", "server_role"):
        assert back[name].astype(str).tolist() == judged[name].astype(str).tolist()
    same_table(pair(read_flows(tmp_path / f"x{suffix}")), pair(read_flows(_plain(some(), tmp_path))))


def _plain(table: pd.DataFrame, folder: Path) -> Path:
    write_flows(table, folder / "plain.parquet")
    return folder / "plain.parquet"


def test_parquet_keeps_coverage_and_interval(tmp_path: Path) -> None:
    one_way = fr.read(fr.pcap([*TALK, Frame(fr.arp())]), interval=NS).settled()
    coverage = (replace(one_way.coverage[0], damage="frame 9: {\"x\": 'é'}", lost=2**40), Coverage("b.pcap"))
    write_flows(pair(one_way), tmp_path / "x.parquet", coverage, NS)
    file = read_flow_file(tmp_path / "x.parquet")
    assert (file.coverage, file.interval) == (coverage, NS)
    back = read_flows(tmp_path / "x.parquet")
    assert (back.coverage, back.interval) == (coverage, NS)
    assert set(back.rows["interval"].tolist()) == {EPOCH}


def test_counts_as_large_as_they_come(tmp_path: Path) -> None:
    table = fr.table(
        [
            fr.flow(
                AGENT[0],
                SERVER[0],
                bytes_out=2**63 + 5,
                packets_in=2**53 + 1,
                client_port=65535,
                vni=2**24 - 1,
            )
        ]
    )
    for suffix in FORMATS[:2]:
        write_flows(table, tmp_path / f"x{suffix}")
        back = read_flow_file(tmp_path / f"x{suffix}").table
        assert (back["bytes_out"][0], back["packets_in"][0]) == (2**63 + 5, 2**53 + 1)


# ---- CSV and spreadsheets ----

TEXTS = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "'quoted",
    "''",
    "a,b",
    'a"b',
    "a\nb",
    "é",
    "{0}",
    "<b>",
    "plain.pcap",
    "NA",
    "null",
    "nan",
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_hostile_texts(text: str, suffix: str, tmp_path: Path) -> None:
    table = fr.table([fr.flow(AGENT[0], SERVER[0], source=text, witnesses=f"{text};other")])
    write_flows(table, tmp_path / f"x{suffix}")
    back = read_flow_file(tmp_path / f"x{suffix}").table
    assert (back["source"][0], back["witnesses"][0]) == (text, f"{text};other")


@pytest.mark.parametrize(
    "form",
    [{}, {"delimiter": ";"}, {"quoting": csv.QUOTE_ALL}, {"delimiter": ";", "quoting": csv.QUOTE_ALL}],
    ids=["plain", "semicolons", "quoted", "both"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_file_that_a_spreadsheet_saved_is_not_passed_over(
    form: dict[str, Any], encoding: str, tmp_path: Path
) -> None:
    table = pair(merge([fr.read(fr.pcap(TALK), "server-1"), fr.read(fr.pcap(TALK), "agent-1")]))
    write_flows(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        cells = list(csv.reader(file))
    with (tmp_path / "t.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, **form).writerows(cells)
    assert table["witnesses"].tolist() == ["agent-1;server-1"]
    same_table(pair(read_inputs([tmp_path])), table)


@pytest.mark.parametrize("text", TEXTS)
def test_no_cell_of_a_csv_file_is_a_formula(text: str, tmp_path: Path) -> None:
    table = fr.table([fr.flow(AGENT[0], SERVER[0], source=text)])
    cluster = Cluster("x", (Node("=cmd", "agent", (AGENT[0],)), Node("s", "server", (SERVER[0],))))
    write_flows(judge(table, cluster, load_spec("rke2-canal")), tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        (cells,) = csv.DictReader(file)
    assert not [cell for cell in cells.values() if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert cells["client_node"] == "'=cmd"
    assert cells["source"].removeprefix("'") in (text, text.removeprefix("'"))


@pytest.mark.parametrize("kind", ["category", "object", "str", "string"])
@pytest.mark.parametrize("text", ["=1+1", "a\rb", "'"])
def test_csv_of_texts_whatever_pandas_keeps_them_as(kind: str, text: str, tmp_path: Path) -> None:
    """Tables with different categories, put together, have plain texts."""
    row = fr.flow(AGENT[0], SERVER[0], source=text, witnesses="other")
    table = fr.table([row]).astype({"source": kind})
    write_flows(table, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        (cells,) = csv.DictReader(file)
    assert cells["source"] == (text if text[0] == "a" else f"'{text}")
    assert read_flow_file(tmp_path / "x.csv").table["source"].tolist() == [text]


def test_csv_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    write_flows(some(), "-")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == len(some())
    assert rows[0]["start"].endswith("Z")
    assert list(rows[0]) == list(COLUMNS)


def test_jsonl_is_json_a_line(tmp_path: Path) -> None:
    write_flows(some(), tmp_path / "x.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert [row["client"] for row in rows] == some()["client"].tolist()
    assert pd.Timestamp(rows[0]["start"]) == some()["start"][0]
    assert {type(row["bytes_out"]) for row in rows} == {int}
    assert {row["pid"] for row in rows} == {None}


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Linux allows any bytes in a file's name; a table holds text."""
    path = tmp_path / os.fsdecode(b"\xff\xfe.pcap")
    path.write_bytes(fr.pcap(TALK))
    table = pair(read_inputs([path]))
    assert table["source"].tolist() == ["??.pcap"]
    for suffix in FORMATS:
        write_flows(table, tmp_path / f"x{suffix}")
        same_table(read_flow_file(tmp_path / f"x{suffix}").table, table)


# ---- writing ----


@contextmanager
def full_disk(at: int = 512) -> Iterator[None]:
    """No file may grow beyond `at` bytes: writing fails as it does where no space is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    write_flows(some(), path)
    before, larger = path.read_bytes(), pd.concat([some()] * 50)
    with full_disk(), pytest.raises(CaptureError, match=r"x\.\w+: cannot be written: "):
        write_flows(larger, path)
    assert path.read_bytes() == before
    assert leftovers(tmp_path) == [path.name]


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """A fault of another kind: what a caller put into the table is no Parquet value."""
    table = some().assign(verdict=pd.Series([{object()}] * len(some()), dtype="object"))
    with pytest.raises(pa.ArrowException):
        write_flows(table, tmp_path / "x.parquet")
    assert leftovers(tmp_path) == []


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    """The old file stands, whole, until the new one does: it is another file, not the old one overwritten."""
    path = tmp_path / "x.parquet"
    write_flows(some(), path)
    with path.open("rb") as old:
        write_flows(pd.concat([some()] * 3), path)
        assert len(pq.read_table(old)) == len(some())
    assert len(read_flow_file(path).table) == 3 * len(some())


def test_what_is_written_may_be_read_by_others(tmp_path: Path) -> None:
    """As with any new file, the umask decides; a temporary file's own rights would not let anyone else in."""
    mask = os.umask(0o027)
    try:
        write_flows(some(), tmp_path / "x.csv")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x.csv").stat().st_mode) == 0o640


def test_files_written_at_once_have_the_rights_of_files(tmp_path: Path) -> None:
    """What the process asks its mask for is the same from every thread."""
    mask, switches = os.umask(0o022), sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: replace_empty(tmp_path / str(n)), range(8000)))
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    finally:
        sys.setswitchinterval(switches)
        assert os.umask(mask) == 0o022


def replace_empty(path: Path) -> None:
    with replacing(path):
        pass


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)
    with subprocess.Popen(
        [sys.executable, "-c", f"print(open({str(path)!r}).read())"], stdout=subprocess.PIPE
    ) as reader:
        write_flows(some(), path)
        out, _ = reader.communicate(timeout=30)
    assert len(out.splitlines()) >= len(some())
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert leftovers(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.txt", r"no table format has the suffix '\.txt' \(use \.parquet, \.csv, \.jsonl\)"),
        ("x", r"no table format has the suffix ''"),
        ("missing/x.csv", r"cannot be written: No such file or directory"),
        ("folder.csv", r"cannot be written: Is a directory"),
        ("file/x.csv", r"cannot be written: Not a directory"),
    ],
)
def test_where_nothing_can_be_written(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptureError, match=message):
        write_flows(some(), tmp_path / name)
    assert leftovers(tmp_path) == ["file", "folder.csv"]


# ---- rights ----


@contextmanager
def as_nobody() -> Iterator[None]:
    """Rights do not bind root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everyone gets to, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("name", ["closed/x.csv", f"{'x' * 300}.csv"])
def test_a_place_that_cannot_be_looked_at(name: str, open_folder: Path) -> None:
    (open_folder / "closed").mkdir(mode=0)
    place = open_folder / name
    with as_nobody():
        with pytest.raises(CaptureError, match=r"cannot be opened: (Permission denied|File name too long)"):
            read_inputs([place])
        with pytest.raises(CaptureError, match="is not a flow file"):
            read_flows(place)
        with pytest.raises(CaptureError, match=r"cannot be written: (Permission denied|File name too long)"):
            write_flows(some(), place)


# ---- reading what is none ----


def damaged(**columns: Any) -> pd.DataFrame:
    return some().astype(dict.fromkeys(columns, object)).assign(**columns)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an address": ({"client": "node-1"}, "client 'node-1' is no IP address"),
    "no address": ({"server": ""}, "server '' is no IP address"),
    "an outer address": ({"outer_client": "x"}, "outer_client 'x' is no IP address"),
    "a protocol": ({"protocol": "tpc"}, "protocol 'tpc' is not known"),
    "a tunnel": ({"tunnel": "wormhole"}, "tunnel 'wormhole' is not known"),
    "a port beyond the last": (
        {"client_port": 65536},
        "client_port holds what is no whole number from 0 to 65535",
    ),
    "a negative count": ({"packets_out": -1}, "packets_out holds what is no whole number"),
    "half a packet": ({"packets_in": 1.5}, "packets_in holds what is no whole number"),
    "no count": ({"bytes_in": "many"}, "many"),
    "a process id below 0": ({"pid": -1}, "pid holds what is no process id"),
    "a process id beyond the last": ({"pid": 2**32}, "pid holds what is no process id"),
    "no time": ({"start": "yesterday"}, "yesterday"),
    "a time before all captures": ({"start": "1969-12-31T23:59:59Z"}, "start holds a time before 1970"),
    "a time after all captures": ({"end": "9999-01-01T00:00:00Z"}, "9999"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_with_a_wrong_value(name: str, suffix: str, tmp_path: Path) -> None:
    columns, message = WRONG[name]
    path = tmp_path / f"x{suffix}"
    table = damaged(**columns)
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_json(
        path, orient="records", lines=True, date_format="iso"
    )
    with pytest.raises(CaptureError, match=r"x\.\w+: cannot be read as a flow table: .*") as raised:
        read_flows(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_names_that_others_wrote_as_numbers(suffix: str, tmp_path: Path) -> None:
    """A process may be called 7, and not every writer puts quotes around it."""
    path = tmp_path / f"x{suffix}"
    table = some().assign(process=7, pod=1)
    table.to_parquet(path) if suffix == ".parquet" else table.to_json(
        path, orient="records", lines=True, date_format="iso"
    )
    named = pair(read_flows(path))
    plain = (named["tunnel"] == "").to_numpy()
    assert set(named["process"][plain]) == {"7"}
    assert set(named["pod"][plain]) == {"1"}


LIVE_ONLY = ("process", "pid", "pod", "drops")


@pytest.mark.parametrize("column", LIVE_ONLY)
def test_a_table_from_before_live_capture(column: str, tmp_path: Path) -> None:
    some().drop(columns=column).to_parquet(tmp_path / "x.parquet")
    table = pair(read_flows(tmp_path / "x.parquet"))
    assert len(table) == len(some())
    assert table[column].isna().all()


@pytest.mark.parametrize("column", [name for name in COLUMNS if name not in LIVE_ONLY])
def test_a_table_that_lacks_a_column(column: str, tmp_path: Path) -> None:
    some().drop(columns=column).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(CaptureError, match=f"it lacks the columns {column}"):
        read_flows(tmp_path / "x.parquet")


def test_a_table_with_wrong_drops(tmp_path: Path) -> None:
    write_flows(some().assign(drops="server-1 NETFILTER_DROP many"), tmp_path / "x.csv")
    with pytest.raises(
        CaptureError, match=r"drops 'server-1 NETFILTER_DROP many' is not a node, a reason and"
    ):
        read_flows(tmp_path / "x.csv")


NOTES: dict[str, tuple[Any, str]] = {
    "an interval before all": ({"interval": -1}, "its interval of -1 ns is none"),
    "of a later version": ({"schema": 99}, "it has schema 99, this version reads up to 1"),
    "no notes": ([], "cannot be read"),
    "a ledger without a name": ({"coverage": [{"frames": 1}]}, "source"),
    "a ledger with an unknown count": ({"coverage": [{"source": "x", "eaten": 1}]}, "eaten"),
    "a ledger with no count": ({"coverage": [{"source": "x", "frames": "many"}]}, "holds what is no count"),
    "a ledger below zero": ({"coverage": [{"source": "x", "frames": -1}]}, "holds what is no count"),
    "a ledger beyond all counts": (
        {"coverage": [{"source": "x", "frames": 2**64}]},
        "holds what is no count",
    ),
    "a ledger beyond all times": ({"coverage": [{"source": "x", "end": 2**63}]}, "holds what is no count"),
    "coverage of another shape": ({"coverage": 5}, "cannot be read"),
    "an interval that is none": ({"interval": "often"}, "often"),
}


@pytest.mark.parametrize("name", NOTES)
def test_parquet_with_wrong_notes(name: str, tmp_path: Path) -> None:
    notes, message = NOTES[name]
    arrow = pa.Table.from_pandas(some(), preserve_index=False)
    metadata = {**arrow.schema.metadata, METADATA_KEY: json.dumps(notes).encode()}
    pq.write_table(arrow.replace_schema_metadata(metadata), tmp_path / "x.parquet")
    with pytest.raises(CaptureError) as raised:
        read_flows(tmp_path / "x.parquet")
    assert message in str(raised.value)


def test_parquet_by_other_hands_needs_no_notes(tmp_path: Path) -> None:
    some().to_parquet(tmp_path / "x.parquet")
    same_table(read_flow_file(tmp_path / "x.parquet").table, some())


@pytest.mark.parametrize("suffix", FORMATS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_table_is_a_table_or_one_line(
    suffix: str, data: st.DataObject, tmp_path_factory: Any
) -> None:
    """Cut anywhere, or with bytes turned over: a table that can be taken apart, or CaptureError."""
    path = tmp_path_factory.mktemp("damaged") / f"x{suffix}"
    write_flows(some(), path, (Coverage("x", frames=5),), NS)
    content = bytearray(path.read_bytes())
    keep = data.draw(st.integers(1, len(content)))
    for at in data.draw(st.lists(st.integers(0, keep - 1), max_size=4)):
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[:keep])
    with suppress(CaptureError):
        pair(read_flows(path))


BEGINNINGS = (b"", b"PAR1", b"PAR1" + bytes(100), b"source,witnesses,\n", b'{"source":', b"text")


@pytest.mark.parametrize("content", [*BEGINNINGS, b'{"source":1}\n{"x":2}\n'])
def test_what_only_begins_like_a_table(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"x\.tab: (is not a flow file|cannot be read as a flow table: )"):
        read_flows(fr.save(tmp_path, "x.tab", content))


# ---- inputs ----


def test_a_folder_is_its_captures_and_tables(tmp_path: Path) -> None:
    """By what is in them, not by their names; what is neither is passed over."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    fr.save(tmp_path, "b.txt", fr.pcap(TALK))
    fr.save(tmp_path, "a.pcapng", fr.pcapng(TALK))
    fr.save(tmp_path / "deep" / "er", "c.zst", fr.COMPRESSIONS["zstd"](fr.pcap(TALK)))
    fr.save(tmp_path, "README.md", b"# words")
    fr.save(tmp_path, "truth.json", b'{"rows": []}')
    write_flows(some(), tmp_path / "deep" / "flows.csv")
    (tmp_path / "link").symlink_to(tmp_path / "a.pcapng")
    (tmp_path / "loop").symlink_to("loop")
    names = [path.name for path in expand([tmp_path])]
    assert names == ["a.pcapng", "b.txt", "c.zst", "flows.csv"]
    assert next(expand([tmp_path / "b.txt", tmp_path, tmp_path / "b.txt"])).name == "b.txt"
    assert len(list(expand([tmp_path, tmp_path]))) == 4


@pytest.mark.parametrize("pack", [lzma.compress, bz2.compress], ids=["xz", "bzip2"])
def test_a_capture_that_cannot_be_unpacked_is_not_passed_over(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """Else its packets were missing, and nobody told."""
    fr.save(tmp_path, "a.pcap", fr.pcap(TALK))
    fr.save(tmp_path, "b.pcap", pack(fr.pcap(TALK)))
    with pytest.raises(CaptureError, match=r"b\.pcap: .*neither pcap nor pcapng"):
        read_inputs([tmp_path])


def test_a_folder_without_captures(tmp_path: Path) -> None:
    fr.save(tmp_path, "README.md", b"# words")
    with pytest.raises(CaptureError, match="no capture and no flow file in this folder"):
        read_inputs([tmp_path])


@pytest.mark.parametrize(
    ("closed", "rights"), [("a.pcap", 0), ("part.parquet", 0), ("deep", 0), ("deep", 0o744)]
)
def test_what_may_not_be_read_is_not_passed_over(closed: str, rights: int, open_folder: Path) -> None:
    """It may be a capture, and its packets would be missing without a word."""
    (open_folder / "deep").mkdir()
    for place in ("a.pcap", "b.pcap", "deep/c.pcap"):
        fr.save(open_folder, place, fr.pcap(TALK))
    write_rows(a_part(), open_folder / "part.parquet")
    (open_folder / "lost+found").mkdir(mode=0o700)
    with as_nobody():
        assert len(list(expand([open_folder]))) == 4
    (open_folder / closed).chmod(rights)
    with as_nobody(), pytest.raises(CaptureError, match=f"{closed}.*: Permission denied"):
        read_inputs([open_folder])
    if closed == "part.parquet":
        with as_nobody():
            assert stored(open_folder)[1].left == {open_folder / closed: "cannot be opened"}


def test_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"missing\.pcap: cannot be opened: No such file"):
        read_inputs([tmp_path / "missing.pcap"])
    with pytest.raises(CaptureError, match="is not a flow file"):
        read_flows(tmp_path / "missing.parquet")


def test_no_input_is_no_run_without_findings() -> None:
    """`analyze(*folder.glob("*.pcap"), …)` in a folder that has none."""
    cluster = Cluster("prod", (Node("server-1", "server", (SERVER[0],)),))
    for take in (lambda: analyze(cluster=cluster), lambda: find_inputs([])):
        with pytest.raises(CaptureError, match="no input is given"):
            take()


def test_captures_and_tables_together(tmp_path: Path) -> None:
    """Monday's flows, saved, and Tuesday's capture: one table."""
    monday = pair(fr.read(fr.pcap(TALK), "monday.pcap"))
    write_flows(monday, tmp_path / "monday.parquet", (Coverage("monday.pcap", frames=8, flow=8),))
    later = [replace(f, time=f.time + 86400 * NS) for f in TALK]
    fr.save(tmp_path, "tuesday.pcap", fr.pcap(later))
    one_way = read_inputs([tmp_path])
    table = pair(one_way)
    assert table["packets_out"].tolist() == [10]
    assert table["witnesses"].tolist() == ["monday.pcap;tuesday.pcap"]
    assert {ledger.source: ledger.frames for ledger in one_way.coverage} == {
        "monday.pcap": 8,
        "tuesday.pcap": 8,
    }


def test_interfaces_survive_a_file(tmp_path: Path) -> None:
    frames = [replace(f, interface=n) for f in TALK for n in (0, 1)]
    table = pair(fr.read(fr.pcapng(frames, interfaces=(Interface("eth0"), Interface("br0")))))
    for suffix in FORMATS:
        write_flows(table, tmp_path / f"x{suffix}")
        same_table(pair(read_flows(tmp_path / f"x{suffix}")), table)


# ---- parts of a live capture ----


def same_rows(one: OneWay, other: OneWay) -> None:
    """Up to the order of records and the numbers of names and observers."""
    assert fr.plain(one) == fr.plain(other)
    assert fr.ledgers(one) == fr.ledgers(other)
    assert plain_facts(one) == plain_facts(other)
    assert (one.listeners, one.interval) == (other.listeners, other.interval)
    waiting = [name for name in one.fragments.dtype.names or () if name != "interface"]
    kept = [
        sorted((o.observers[f["interface"]], *(f[name].tolist() for name in waiting)) for f in o.fragments)
        for o in (one, other)
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("kind", fr.FILES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_part_is_read_as_it_was_written(kind: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    """Fragments that still wait for their first one too."""
    path = tmp_path_factory.mktemp("part") / "x.parquet"
    interval = data.draw(st.sampled_from((0, NS)))
    one_way = merge(
        [data.draw(with_facts(fr.read(fr.FILES[kind](data.draw(traffic())), "a\x1b", interval)))] * 2
    )
    write_rows(one_way, path)
    back = read_rows(path)
    same_rows(back, one_way)
    assert back.observers == one_way.observers
    assert np.array_equal(back.rows, one_way.rows)
    assert np.array_equal(back.fragments, one_way.fragments)
    same_rows(read_flows(path), one_way)
    same_table(pair(read_inputs([path]).settled()), pair(one_way.settled()))


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_parts_make_the_whole(data: st.DataObject, tmp_path_factory: Any) -> None:
    """One capture, cut, each part written; the folder read is the capture read."""
    folder = tmp_path_factory.mktemp("parts")
    frames = data.draw(traffic())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(frames)), max_size=4)))
    bounds = list(zip([0, *cuts], [*cuts, len(frames)], strict=True))
    parts = [
        data.draw(with_facts(fr.shifted(fr.read(fr.pcap(frames[a:b], "ns"), "server-1", NS), a)))
        for a, b in bounds
    ]
    for n, part in enumerate(parts):
        write_rows(part, folder / f"server-1-{n}.parquet")
    same_rows(
        read_inputs([folder]), merge([*parts, OneWay()])
    )  # merged with nothing: drops drawn twice add up
    whole = fr.read(fr.pcap(frames, "ns"), "server-1", NS)
    assert fr.plain(read_inputs([folder])) == fr.plain(whole)
    assert fr.ledgers(read_inputs([folder])) == fr.ledgers(whole)


FULL = Coverage(
    "server-1", 5, 9, 7, 6, overflow=1, inner_overflow=2, other_bytes=99, alerts_lost=3, missing="why; é",
    drops_lost=4, clock_offset=-(10**9),
)  # fmt: skip


def a_part() -> OneWay:
    """Of every record something."""
    read = fr.read(fr.pcap(fr.timed([f for make in fr.CONVERSATIONS.values() for f in make(3)])), interval=NS)
    lost = fr.read(fr.pcap(fr.timed(fr.fragments(AGENT, SERVER, 3000, 7)[1:])))
    facts = [
        replace(OneWay(), observers=(Observer("server-1"),), facts=f)
        for f in (owner((*AGENT, *SERVER, 6), "curl", 7, "default/web"), drop((*AGENT, *SERVER, 6)))
    ]
    listening = OneWay(
        listeners=frozenset(
            {Endpoint(parse_address(SERVER[0]), 6, 6443), Endpoint(parse_address("fd00::1"), 17, 53)}
        )
    )
    return merge([read, lost, *facts, listening, OneWay(coverage=(FULL,))])


def test_a_part_keeps_everything(tmp_path: Path) -> None:
    one_way = a_part()
    assert len(one_way.fragments)
    assert len(one_way.facts) == 2
    write_rows(one_way, tmp_path / "x.parquet")
    same_rows(read_rows(tmp_path / "x.parquet"), one_way)
    write_rows(OneWay(), tmp_path / "empty.parquet")
    same_rows(read_rows(tmp_path / "empty.parquet"), OneWay())


def test_a_part_is_a_table_that_others_can_read(tmp_path: Path) -> None:
    write_rows(a_part(), tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet").to_pandas()
    assert set(table["record"]) == {"flow", "owner", "drop", "listener", "fragment"}
    assert int(table[table["record"] == "flow"]["packets"].sum()) == int(a_part().rows["packets"].sum())
    assert table[table["record"] == "owner"]["process"].tolist() == ["curl"]
    assert table[table["record"] == "drop"]["reason"].tolist() == ["NETFILTER_DROP"]
    assert table[table["record"] == "listener"]["process"].isna().all()


def test_a_name_that_is_no_text_is_written(tmp_path: Path) -> None:
    """A process may call itself any bytes."""
    facts = owner((*AGENT, *SERVER, 6), b"\xff\xfex".decode("utf-8", "surrogateescape"), 7)
    write_rows(OneWay(facts=facts), tmp_path / "x.parquet")
    assert read_rows(tmp_path / "x.parquet").facts.names[1] == "??x"


def test_parts_captures_and_tables_together(tmp_path: Path) -> None:
    live = fr.read(fr.pcap(TALK), "agent-1")
    write_rows(live, tmp_path / "agent-1-1.parquet")
    write_flows(
        pair(fr.read(fr.pcap(TALK), "server-1")), tmp_path / "server-1.parquet", (Coverage("server-1"),)
    )
    fr.save(tmp_path, "agent-2.pcap", fr.pcap([replace(f, time=f.time + 1000 * NS) for f in TALK]))
    table = pair(read_inputs([tmp_path]))
    assert table["witnesses"].tolist() == ["agent-1;agent-2.pcap;server-1"]
    assert table["packets_out"].tolist() == [10]


def test_what_is_hidden_is_not_read(tmp_path: Path) -> None:
    """A part that is being written, and whatever a tool keeps in folders of its own."""
    (tmp_path / ".cache").mkdir()
    for name in ("x.parquet", ".x.parquet.abcd", ".cache/y.parquet"):
        write_rows(a_part(), tmp_path / name)
    assert [path.name for path in expand([tmp_path])] == ["x.parquet"]
    assert len(list(expand([tmp_path / ".x.parquet.abcd"]))) == 1  # who names it gets it
    hidden = tmp_path / ".hidden"
    hidden.mkdir()
    write_rows(a_part(), hidden / "z.parquet")
    assert [path.name for path in expand([hidden])] == ["z.parquet"]


def test_a_part_that_cannot_be_written(tmp_path: Path) -> None:
    part = a_part()
    write_rows(part, tmp_path / "x.parquet")
    before = (tmp_path / "x.parquet").read_bytes()
    with full_disk(), pytest.raises(CaptureError, match=r"x\.parquet: cannot be written: "):
        write_rows(part, tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").read_bytes() == before
    assert leftovers(tmp_path) == ["x.parquet"]
    with pytest.raises(CaptureError, match="cannot be written: No such file"):
        write_rows(part, tmp_path / "missing" / "x.parquet")


def no_links(*_: object) -> None:
    """As on FAT."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_part_takes_no_other_part_s_place(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two captures of a node end their intervals at the same moment and name their parts by it."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    write_rows(a_part(), tmp_path / "x.013Z.parquet")
    before = (tmp_path / "x.013Z.parquet").read_bytes()
    part = fr.read(fr.pcap(TALK), interval=NS)
    names = [add_rows(part, tmp_path / "x.013Z.parquet").name for _ in range(2)]
    assert names == ["x.013Z-1.parquet", "x.013Z-2.parquet"]
    assert leftovers(tmp_path) == sorted(["x.013Z.parquet", *names])
    assert (tmp_path / "x.013Z.parquet").read_bytes() == before
    for name in names:
        same_rows(read_rows(tmp_path / name), part)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_part_is_on_the_disk_when_it_appears(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    steps = steps_on_disk(monkeypatch, "link" if links else "replace")
    path = add_rows(a_part(), tmp_path / "x.parquet")
    (_, beside), (appears, _), *_ = steps
    assert steps == [("fsync", beside), (appears, path.name), ("fsync", tmp_path.name)]
    assert beside.startswith(".x.parquet.")


def test_a_file_system_that_cannot_flush_a_folder_takes_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    same_rows(read_rows(add_rows(a_part(), tmp_path / "x.parquet")), a_part())


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CaptureError, match="cannot be written: Input/output error"):
        add_rows(a_part(), tmp_path / "x.parquet")
    assert leftovers(tmp_path) == []


def test_parts_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: add_rows(a_part(), path).name, range(64)))
    assert sorted(names) == leftovers(tmp_path)
    assert len(set(names)) == 64


def test_a_part_is_no_flow_table_and_a_flow_table_no_part(tmp_path: Path) -> None:
    write_rows(a_part(), tmp_path / "part.parquet")
    write_flows(some(), tmp_path / "table.parquet")
    fr.save(tmp_path, "x.pcap", fr.pcap(TALK))
    with pytest.raises(CaptureError, match=r"it is a part of a live capture; `rke2-flows flows` makes"):
        read_flow_file(tmp_path / "part.parquet")
    for name in ("table.parquet", "x.pcap", "missing"):
        with pytest.raises(CaptureError, match="is not a part of a live capture"):
            read_rows(tmp_path / name)


def rewritten(path: Path, change: Any = lambda table: table, **notes: Any) -> Path:
    """A part of which the table or the notes are others."""
    write_rows(a_part(), path)
    table = pq.read_table(path)
    kept = json.loads(table.schema.metadata[METADATA_KEY])
    changed = {name: value for name, value in (kept | notes).items() if value is not None}
    table = change(table).replace_schema_metadata({METADATA_KEY: json.dumps(changed).encode()})
    pq.write_table(table, path)
    return path


def with_column(name: str, values: Any) -> Any:
    """`values`: of the old column as a list, the new one."""

    def change(table: pa.Table) -> pa.Table:
        made = values(table[name].to_pylist())
        column = made if isinstance(made, pa.Array) else pa.array(made, table[name].type)
        return table.set_column(table.column_names.index(name), name, column)

    return change


def first(value: Any) -> Any:
    return lambda old: [value, *old[1:]]


def of_record(kind: str, name: str, value: Any) -> Any:
    """The value in all records of one kind."""

    def change(table: pa.Table) -> pa.Table:
        kinds = table["record"].to_pylist()
        return with_column(
            name, lambda old: [value if k == kind else o for k, o in zip(kinds, old, strict=True)]
        )(table)

    return change


WRONG_PARTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "of a later version": (None, {"schema": 2}, "it has schema 2, this version reads up to 1"),
    "without observers": (None, {"observers": None}, "observers"),
    "observers that are none": (None, {"observers": [[1, 2]]}, "it names 1 as an observer"),
    "observers of another shape": (None, {"observers": [["a", "b", "c"]]}, "cannot be read"),
    "too few observers": (None, {"observers": [["capture.pcap", ""]]}, "has observer 1, out of its range"),
    "no observers": (None, {"observers": []}, "out of its range"),
    "an interval that is none": (None, {"interval": -5}, "its interval of -5 ns is none"),
    "a ledger that is none": (None, {"coverage": [{"source": "x", "frames": -1}]}, "holds what is no count"),
    "fragments without a ledger": (None, {"coverage": []}, "fragments of a source that its coverage"),
    "a record of another kind": (with_column("record", first("spell")), {}, "record 'spell' is not known"),
    "no record": (lambda t: t.drop_columns("record"), {}, "it lacks the column record"),
    "no packets": (lambda t: t.drop_columns("packets"), {}, "it lacks the column packets"),
    "a missing count": (with_column("bytes", first(None)), {}, "bytes is missing where a record must"),
    "counts of another type": (
        with_column("packets", lambda old: pa.array(old, pa.int32())), {},
        "packets is of type int32, not uint64",
    ),
    "addresses as text": (
        with_column("src", lambda old: pa.array([None if o is None else "10.0.0.1" for o in old])), {},
        "src is ",
    ),
    "short addresses": (
        with_column("dst", lambda old: pa.array([o and o[:4] for o in old], pa.binary(4))), {},
        "dst is of type fixed_size_binary[4], not fixed_size_binary[16]",
    ),
    "a schema that is none": (None, {"schema": "x"}, "cannot be read"),
    "a tunnel that is none": (of_record("flow", "tunnel", 5), {}, "a flow has tunnel 5, out of its range"),
    "a direction that is none": (of_record("flow", "direction", 3), {}, "a flow has direction 3, out of"),
    "an observer that is none": (of_record("drop", "observer", 2**32 - 1), {}, "a drop has observer 4294967"),
    "a time beyond all": (of_record("flow", "end", 2**63), {}, "a flow has end 9223372036854775808"),
    "an end before its start": (of_record("flow", "start", 2**62), {}, "a flow ends before it starts"),
    "a start beyond all": (of_record("drop", "start", 2**64 - 2), {}, "a drop ends before it starts"),
    "an interval beyond all": (of_record("flow", "interval", 2**63), {}, "a flow has interval"),
    "a fragment's time": (of_record("fragment", "time", 2**63), {}, "a fragment has time"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_PARTS)
def test_a_part_with_a_wrong_value(name: str, tmp_path: Path) -> None:
    change, notes, message = WRONG_PARTS[name]
    path = rewritten(tmp_path / "x.parquet", change or (lambda table: table), **notes)
    for read in (read_rows, read_flows, lambda path: read_inputs([path])):
        with pytest.raises(CaptureError, match=r"x\.parquet: cannot be read as a flow table: ") as raised:
            read(path)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_rewritten_part_is_a_part(tmp_path: Path) -> None:
    """Else the cases above would fail for another reason; records may stand in any order, and in several
    pieces.
    """
    same_rows(read_rows(rewritten(tmp_path / "x.parquet")), a_part())

    def turned(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table.slice(n, 1) for n in reversed(range(len(table)))])

    back = read_rows(rewritten(tmp_path / "y.parquet", turned))
    assert fr.plain(back) == fr.plain(a_part())
    assert plain_facts(back) == plain_facts(a_part())
    assert len(back.fragments) == len(a_part().fragments)


def test_a_part_cut_anywhere(tmp_path: Path) -> None:
    write_rows(a_part(), tmp_path / "x.parquet")
    content = (tmp_path / "x.parquet").read_bytes()
    for keep in [*range(4, len(content), 97), len(content) - 1]:
        (tmp_path / "x.parquet").write_bytes(content[:keep])
        with pytest.raises(CaptureError, match=r"x\.parquet: cannot be read as a flow table: ") as raised:
            read_flows(tmp_path / "x.parquet")
        assert "\n" not in str(raised.value)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_damaged_part_is_itself_or_one_line(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Bytes turned over: CaptureError, or no difference, since pages bear checksums. What the footer says is
    not among them; then what is read is at least a table that pairs.
    """
    path = tmp_path_factory.mktemp("damaged") / "x.parquet"
    write_rows(a_part(), path)
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    places = data.draw(st.lists(st.integers(4, len(content) - 1), min_size=1, max_size=4))
    for at in places:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with suppress(CaptureError):
        read = read_flows(path)
        pair(merge([read, read]).settled())
        if max(places) < footer:
            assert int(read.rows["packets"].sum()) == int(a_part().rows["packets"].sum())


def test_many_parts_cost_what_they_hold(tmp_path: Path) -> None:
    """500 parts: the reader's own cost is not felt. The limit is ten times what it takes."""
    part = fr.read(fr.pcap(TALK), "server-1")
    for n in range(500):
        write_rows(part, tmp_path / f"{n}.parquet")
    begin = time.process_time()
    one_way = read_inputs([tmp_path])
    assert time.process_time() - begin < 15
    assert int(one_way.rows["packets"].sum()) == 500 * int(part.rows["packets"].sum())
    assert one_way.coverage[0].frames == 500 * len(TALK)
