"""The command line, as a person types it. Rule: real processes, their exit status and their two streams."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from conftest import PROJECT, RECORDED, require_program
from frames import arp, flow, pcap, talk, timed
from runs import AGENT, AGENT_2, analysis

from analyzer.report import document

COMMAND = Path(sys.executable).parent / "rke2-flows"
OFFENCES = RECORDED / "offences"
CLUSTER = ("--cluster", OFFENCES / "cluster.yaml")
BASELINE = RECORDED / "baseline"


def run(
    *arguments: object, stdin: bytes = b"", cwd: Path = PROJECT, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[bytes]:
    """`encoding`: that of the locale."""
    environment = {
        **os.environ,
        "COLUMNS": "160",
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": encoding,
    }
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        input=stdin,
        cwd=cwd,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )


def ok(*arguments: object, stdin: bytes = b"", cwd: Path = PROJECT) -> str:
    done = run(*arguments, stdin=stdin, cwd=cwd)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


# ---- exit status ----


@pytest.mark.parametrize(
    ("threshold", "status"),
    [("critical", 1), ("high", 1), ("medium", 1), ("low", 1), ("info", 1), ("never", 0)],
)
def test_findings_at_or_above_the_threshold_make_status_1(threshold: str, status: int) -> None:
    assert run("check", OFFENCES, *CLUSTER, "--fail-on", threshold).returncode == status


def test_only_an_info_finding_is_below_every_other_threshold() -> None:
    nodes = ("--cluster", BASELINE / "cluster.yaml")
    assert run("check", BASELINE, *nodes, "--fail-on", "low").returncode == 0
    assert run("check", BASELINE, *nodes, "--fail-on", "info").returncode == 1


FAULTS: dict[str, tuple[tuple[object, ...], str]] = {
    "missing capture": (("flows", "absent.pcap"), "absent.pcap"),
    "not a capture": (("flows", PROJECT / "Makefile"), "Makefile"),
    "folder without captures": (("flows", PROJECT / "bpf"), "bpf"),
    "missing cluster file": (("check", OFFENCES, "--cluster", "absent.yaml"), "absent.yaml"),
    "not a cluster file": (("check", OFFENCES, "--cluster", PROJECT / "pyproject.toml"), "pyproject.toml"),
    "unknown specification": (("check", OFFENCES, *CLUSTER, "--spec", "rke2-canall"), "rke2-canal"),
    "unknown table format": (("flows", BASELINE, "-o", "flows.xlsx"), ".parquet"),
    "unknown table format, before the work": (("check", "absent.pcap", "-o", "flows.xlsx"), ".parquet"),
    "folder that is not there": (("flows", BASELINE, "-o", "absent/flows.parquet"), "absent"),
    "unknown picture format": (("matrix", OFFENCES, *CLUSTER, "-o", "matrix.gif"), ".png"),
    "unknown picture format, before the work": (("matrix", "absent.pcap", "-o", "matrix.gif"), ".png"),
    "no tables": (("spec", "import", PROJECT / "LICENSE"), "LICENSE"),
    "missing table": (("spec", "import", "absent.md"), "(name a readable file)"),
    "not kubectl's": (("cluster", "from-kubectl", PROJECT / "LICENSE"), "LICENSE"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_input_is_one_line_and_status_2(name: str, tmp_path: Path) -> None:
    arguments, named = FAULTS[name]
    done = run(*arguments, cwd=tmp_path)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, len(lines), done.stdout) == (2, 1, b""), lines
    assert lines[0].startswith("rke2-flows: ")
    assert named in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("spec", "import", "-"),
        ("cluster", "show", "-"),
        ("check", BASELINE, "--cluster", BASELINE / "cluster.yaml", "--listeners", "-"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_closed_standard_input_is_said(arguments: tuple[object, ...]) -> None:
    closed = ("sh", "-c", 'exec "$@" <&-', "sh", COMMAND, *arguments)
    done = subprocess.run(list(map(str, closed)), capture_output=True, text=True, timeout=60, check=False)
    said = "rke2-flows: standard input: cannot be read: it is closed (name a readable file)\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize(
    "arguments",
    [
        ("flows",),
        ("matrix",),
        ("diff", BASELINE),
        ("capture",),
        ("flows", BASELINE, "--interval", "soon"),
        ("check", BASELINE, "--json", "-", "--html", "-"),
        ("nothing",),
        ("--nothing",),
    ],
)
def test_a_wrong_command_line_is_status_2(arguments: tuple[object, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


# ---- what it prints and writes ----


def test_data_goes_to_stdout_and_notes_to_stderr() -> None:
    done = run("flows", BASELINE / "agent-1.pcap")
    head, *rows = done.stdout.decode().splitlines()
    assert head.split()[:4] == ["client", "client_port", "server", "server_port"]
    assert {len(row.split()) for row in rows} == {len(head.split()) + 1}  # a time is a date and an hour
    assert b"frames" in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr


def test_every_output_says_the_same(tmp_path: Path) -> None:
    ok(
        "check",
        OFFENCES,
        *CLUSTER,
        "--fail-on",
        "never",
        "-o",
        "judged.parquet",
        "--json",
        "r.json",
        cwd=tmp_path,
    )
    for name in ("judged.csv", "judged.jsonl"):
        ok("check", OFFENCES, *CLUSTER, "--fail-on", "never", "-o", name, cwd=tmp_path)
    document = json.loads((tmp_path / "r.json").read_text())
    tables = [
        pd.read_parquet(tmp_path / "judged.parquet"),
        pd.read_csv(tmp_path / "judged.csv"),
        pd.read_json(tmp_path / "judged.jsonl", lines=True),
    ]
    for table in tables:
        counted = table["verdict"].astype(str).value_counts().to_dict()
        assert counted == {k: v["flows"] for k, v in document["summary"]["verdicts"].items() if v["flows"]}
    assert set(document) == {
        "schema",
        "pairs",
        "diagnoses",
        "spec",
        "cluster",
        "coverage",
        "summary",
        "matrix",
        "findings",
        "analyzer",
    }


def test_flow_files_are_judged_like_captures(tmp_path: Path) -> None:
    from_captures = json.loads(ok("check", OFFENCES, *CLUSTER, "--fail-on", "never", "--json", "-"))
    for suffix in ("parquet", "csv", "jsonl"):
        path = tmp_path / f"flows.{suffix}"
        ok("flows", OFFENCES, "-o", path)
        from_table = json.loads(ok("check", path, *CLUSTER, "--fail-on", "never", "--json", "-"))
        assert from_table["summary"] == from_captures["summary"]
        assert [f["id"] for f in from_table["findings"]] == [f["id"] for f in from_captures["findings"]]


@pytest.mark.parametrize("more", [(), ("--scheduler", "threads")], ids=["here", "workers"])
@pytest.mark.parametrize("command", [("flows",), ("check", *CLUSTER)], ids=lambda command: command[0])
def test_a_table_stands_in_no_folder_that_it_is_made_of(
    command: tuple[object, ...], more: tuple[str, ...], tmp_path: Path
) -> None:
    """The next run would read it too, and count each packet once more."""
    shutil.copy(OFFENCES / "agent-1.pcap", tmp_path)
    done = run(command[0], ".", *command[1:], "-o", "new/flows.parquet", *more, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"its packets counted once more" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["agent-1.pcap"]
    (tmp_path / ".hidden").mkdir()
    assert run("flows", ".", "-o", ".hidden/flows.parquet", cwd=tmp_path).returncode == 0


def test_a_capture_is_read_from_a_pipe() -> None:
    path = BASELINE / "server-1.pcap"
    assert ok("flows", "-", stdin=path.read_bytes()) == ok("flows", path)


def test_a_dash_is_standard_input_whatever_the_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "-").mkdir()
    said = ok("flows", "-", stdin=(BASELINE / "agent-1.pcap").read_bytes(), cwd=tmp_path)
    assert said == ok("flows", BASELINE / "agent-1.pcap")


def test_intervals_add_up() -> None:
    whole = pd.read_csv(_csv("flows", BASELINE, "-o", "-"))
    cut = pd.read_csv(_csv("flows", BASELINE, "--interval", "2s", "-o", "-"))
    assert len(cut) > len(whole)
    columns = ["packets_out", "packets_in", "bytes_out", "bytes_in"]
    assert cut[columns].sum().to_dict() == whole[columns].sum().to_dict()
    keys = ["client", "server", "server_port", "protocol"]
    assert set(map(tuple, cut[keys].to_numpy())) == set(map(tuple, whole[keys].to_numpy()))


def _csv(*arguments: object) -> StringIO:
    return StringIO(ok(*arguments))


@pytest.mark.parametrize("by", ["role", "node", "rule"])
def test_a_matrix_as_text_and_as_pictures(by: str, tmp_path: Path) -> None:
    assert "flows_outside" in ok("matrix", OFFENCES, *CLUSTER, "--by", by)
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        ok("matrix", OFFENCES, *CLUSTER, "--by", by, "-o", f"m{suffix}", cwd=tmp_path)
        assert (tmp_path / f"m{suffix}").read_bytes().startswith(magic)


def test_pictures_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("check", BASELINE, "-c", BASELINE / "cluster.yaml", "--plots", "file", cwd=tmp_path)
    said = "rke2-flows: file: cannot be written: File exists (check the folder, its rights and its space)\n"
    assert (done.returncode, done.stderr.decode()) == (2, said)


def test_specifications_and_clusters_round_trip(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(ok("spec", "show", "rke2-canal", "--yaml"))
    shown, again = (
        ok("check", OFFENCES, *CLUSTER, "--spec", spec, "--fail-on", "never") for spec in ("rke2-canal", own)
    )
    assert shown == again
    assert "rke2-canal" in ok("spec", "list")
    assert "server-3" in ok("cluster", "show", OFFENCES / "cluster.yaml")


def test_a_specification_chosen_changes_the_verdict() -> None:
    later = ok("check", OFFENCES, *CLUSTER, "--spec", "rke2-canal-2025-07-28", "--fail-on", "never")
    strict = ok("check", OFFENCES, *CLUSTER, "--fail-on", "never")
    assert strict.count("not for server → server") == 2
    assert later.count("not for server → server") == 0


# ---- being interrupted ----


def test_ctrl_c_leaves_one_line_and_no_file(tmp_path: Path) -> None:
    fifo = tmp_path / "slow.pcap"
    os.mkfifo(fifo)
    with (
        subprocess.Popen(
            [COMMAND, "flows", fifo, "-o", tmp_path / "out.parquet"],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
        fifo.open("wb") as pipe,
    ):
        pipe.write((BASELINE / "server-1.pcap").read_bytes()[:5000])
        pipe.flush()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        pipe.close()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.decode().splitlines() == ["rke2-flows: interrupted"]
    assert [p.name for p in tmp_path.iterdir()] == ["slow.pcap"]


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{COMMAND} flows {OFFENCES} {OFFENCES} 2>&- | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, timeout=60, check=False
    )
    assert done.returncode in (0, 128 + signal.SIGPIPE)
    assert done.stderr == b""
    assert done.stdout.startswith(b"client")


@pytest.mark.parametrize(
    "command",
    [("check", OFFENCES, "--plots", "pictures"), ("diff", BASELINE, OFFENCES)],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("errors", ["", " 2>&1"], ids=["apart", "one pipe"])
def test_a_reader_that_leaves_early_takes_no_file_along(
    command: tuple[object, ...], errors: str, tmp_path: Path
) -> None:
    """`check … --json result.json | head`; the exit status is the signal's, as where no file is written."""
    words = shlex.join(map(str, (COMMAND, *command, *CLUSTER, "--json", "result.json")))
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{words}{errors} | true"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 128 + signal.SIGPIPE
    assert errors or done.stderr.splitlines()[-1] == "wrote result.json"
    assert json.loads((tmp_path / "result.json").read_text())
    assert "--plots" not in command or len(list((tmp_path / "pictures").iterdir())) == 6


def test_help_does_not_import_pandas() -> None:
    code = "import sys, analyzer.cli; sys.exit('pandas' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_from_files_cannot_write_control_sequences(tmp_path: Path) -> None:
    hostile = tmp_path / "\x1b[31mred\n.pcap"
    hostile.write_bytes((BASELINE / "agent-1.pcap").read_bytes())
    done = run("check", hostile, "--cluster", BASELINE / "cluster.yaml", "--fail-on", "never")
    assert b"\x1b" not in done.stdout + done.stderr


# ---- for people, and for pipelines ----


def test_the_report_is_one_page_that_asks_for_nothing(tmp_path: Path) -> None:
    ok("check", OFFENCES, *CLUSTER, "--fail-on", "never", "--html", "report.html", cwd=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "agent-1 (agent) reached server-1 (server) on tcp/2379" in page
    printed = ok("check", OFFENCES, *CLUSTER, "--fail-on", "never", "--html", "-", cwd=tmp_path)
    assert printed == page


def test_a_baseline_leaves_the_known_out(tmp_path: Path) -> None:
    everything = ("check", OFFENCES, *CLUSTER)
    ok(*everything, "--fail-on", "never", "--json", "known.json", cwd=tmp_path)
    assert run(*everything, "--fail-on", "info", "--baseline", "known.json", cwd=tmp_path).returncode == 0
    ok("check", BASELINE, *CLUSTER, "--json", "healthy.json", cwd=tmp_path)
    done = run(*everything, "--baseline", "healthy.json", cwd=tmp_path)
    assert done.returncode == 1
    assert b"known" in done.stdout
    assert b"tcp/30080" not in done.stdout, "the one finding of a healthy cluster"


def test_accepted_findings_are_told_apart_and_do_not_count(tmp_path: Path) -> None:
    everything = ("check", OFFENCES, *CLUSTER)
    template = ok(*everything, "--fail-on", "never", "--accept-template", "-", cwd=tmp_path)
    assert run(*everything, "--accept", save(tmp_path, template), cwd=tmp_path).returncode == 2
    filled = re.sub(r"reason:.*", "reason: a test", re.sub(r"who:.*", "who: an engineer", template))
    filled = re.sub(r"until:.*", "until: 2999-12-31", filled)
    done = run(*everything, "--accept", save(tmp_path, filled), "--html", "report.html", cwd=tmp_path)
    assert (done.returncode, b"Accepted (" in done.stdout) == (0, True), done.stderr
    assert '<details class="apart" id="accepted">' in (tmp_path / "report.html").read_text()
    expired = filled.replace("2999-12-31", "2020-01-01")
    assert run(*everything, "--accept", save(tmp_path, expired), cwd=tmp_path).returncode == 1


def save(folder: Path, text: str) -> Path:
    path = folder / "accept.yaml"
    path.write_text(text)
    return path


def test_pipelines_get_their_formats(tmp_path: Path) -> None:
    wanted = ("--junit", "junit.xml", "--sarif", "log.sarif", "--json", "r.json")
    assert run("check", OFFENCES, *CLUSTER, *wanted, cwd=tmp_path).returncode == 1
    findings = {f["id"] for f in json.loads((tmp_path / "r.json").read_text())["findings"]}
    log = json.loads((tmp_path / "log.sarif").read_text())
    told = {print_ for r in log["runs"][0]["results"] for print_ in r["partialFingerprints"].values()}
    assert findings <= told
    suites = ElementTree.fromstring((tmp_path / "junit.xml").read_bytes())  # noqa: S314  ours, just written
    assert suites.tag == "testsuites"
    assert len(suites.findall(".//failure")) > 0


def test_diff_fails_on_what_is_new_and_on_nothing_else(tmp_path: Path) -> None:
    for name, folder in (("old", BASELINE), ("new", OFFENCES)):
        ok("check", folder, *CLUSTER, "--fail-on", "never", "--json", f"{name}.json", cwd=tmp_path)
    worse = run("diff", "old.json", "new.json", cwd=tmp_path)
    assert worse.returncode == 1
    assert b"tcp/2379" in worse.stdout
    better = run("diff", "new.json", "old.json", cwd=tmp_path)
    assert better.returncode == 0
    assert b"fixed" in better.stdout
    assert ok("diff", "new.json", "new.json", cwd=tmp_path) == "Nothing changed.\n"
    judged = run("diff", BASELINE, OFFENCES, *CLUSTER)
    assert (judged.returncode, judged.stdout) == (1, worse.stdout)


def test_diff_says_many_of_ports_and_not_of_a_protocol_without(tmp_path: Path) -> None:
    """ESP has no port, and is no sum of many."""
    scan = [flow(AGENT, AGENT_2, port) for port in range(1000, 1021)]
    esp = flow(AGENT, AGENT_2, 0, "50", client_port=0)
    for name, flows in (("old", [flow(AGENT, AGENT_2)]), ("new", [flow(AGENT, AGENT_2), *scan, esp])):
        (tmp_path / f"{name}.json").write_text(json.dumps(document(analysis(*flows))))
    told = ok("diff", "old.json", "new.json", "--fail-on", "never", cwd=tmp_path)
    ports = dict(re.findall(r"^new +agent-1 +agent-2 +(tcp|50) +(\S+) ", told, re.MULTILINE))
    assert ports == {"tcp": "(many)", "50": "0"}


@pytest.mark.parametrize("more", [(), ("--scheduler", "threads")])
def test_another_clusters_file_is_not_green(more: tuple[str, ...], tmp_path: Path) -> None:
    """Nothing is judged, in whichever form it is told."""
    node = "{name: a, role: server, addresses: [172.30.0.1]}"
    (tmp_path / "other.yaml").write_text(f"name: other\nnodes: [{node}]\n")
    told = ("--json", "x.json", "--junit", "x.xml", "--sarif", "x.sarif")
    done = run("check", OFFENCES, "-c", "other.yaml", *told, *more, cwd=tmp_path)
    assert done.returncode == 1
    assert b"other: none of the 452 flows has a node of this cluster at either end" in done.stdout
    (finding,) = json.loads((tmp_path / "x.json").read_text())["findings"]
    assert (finding["kind"], finding["severity"]) == ("blind-spot", "high")
    assert all(finding["id"] in (tmp_path / f"x.{form}").read_text() for form in ("xml", "sarif"))
    if not more:
        assert run("check", OFFENCES, "-c", "other.yaml", "--html", "x.html", cwd=tmp_path).returncode == 1


def test_without_a_cluster_file_the_cluster_is_inferred_and_said_so(tmp_path: Path) -> None:
    done = run("check", BASELINE, cwd=tmp_path)
    first = done.stdout.decode().splitlines()[0]
    assert first.startswith("no --cluster: inferred from the flows")
    ok("cluster", "infer", BASELINE, "-o", "nodes.yaml", cwd=tmp_path)
    assert run("check", BASELINE, "--cluster", "nodes.yaml", cwd=tmp_path).returncode == 0
    given = ok("matrix", OFFENCES, "--by", "node", "--cluster", "nodes.yaml", cwd=tmp_path)
    said, unsure, *table = ok("matrix", OFFENCES, "--by", "node", cwd=tmp_path).splitlines()
    assert said.startswith("no --cluster: inferred from the flows")
    assert "10.10.0.99; it may be a node that the flows did not show" in unsure
    assert table == given.splitlines()


@pytest.mark.parametrize(
    "command", [("cluster", "infer"), ("check",), ("flows", "--node", "agent-1")], ids=" ".join
)
def test_where_no_node_shows_it_is_said_what_was_seen(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "arp.pcap").write_bytes(pcap(timed([arp()] * 5)))
    done = run(*command, "arp.pcap", "-o", "out.csv", cwd=tmp_path)
    (line,) = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (2, b"")
    assert line.startswith(
        "rke2-flows: no node's role shows (0 may be nodes): 5 frames in 1 source: 5 not IP ("
    )
    assert not (tmp_path / "out.csv").exists()


def test_where_only_unknown_machines_show_they_are_written_to_be_filled_in(tmp_path: Path) -> None:
    (tmp_path / "kubelet.pcap").write_bytes(pcap(timed(talk((AGENT, 40000), (AGENT_2, 10250)))))
    done = run("cluster", "infer", "kubelet.pcap", cwd=tmp_path)
    assert (done.returncode, b"# Unknown (" in done.stdout) == (0, True)
    assert b" may be nodes): 8 frames in 1 source: 8 in flows (write a cluster file" in done.stderr


def test_a_cluster_is_inferred_from_addresses_too() -> None:
    assert ok("cluster", "infer", BASELINE.as_uri()) == ok("cluster", "infer", BASELINE)


def test_two_runs_without_a_cluster_file_are_judged_by_one_cluster() -> None:
    done = run("diff", BASELINE, OFFENCES)
    said, _, *told = done.stdout.decode().splitlines()
    assert said.startswith("no --cluster: inferred from the flows, 3 server")
    by_file = run("diff", BASELINE, OFFENCES, *CLUSTER)
    assert (done.returncode, told) == (by_file.returncode, by_file.stdout.decode().splitlines())
    as_json = run("diff", BASELINE, OFFENCES, "--json", "-")
    assert json.loads(as_json.stdout)
    assert as_json.stderr.startswith(b"no --cluster: inferred from the flows")


def test_documents_on_standard_output_are_nothing_but_that() -> None:
    done = run("check", OFFENCES, "--json", "-", "--fail-on", "never")
    advice = [finding["advice"] for finding in json.loads(done.stdout)["findings"]]
    assert any("may be a node that the flows did not show" in text for text in advice)
    assert done.stderr.startswith(b"no --cluster: inferred from the flows")


def test_two_documents_are_not_written_into_one_file(tmp_path: Path) -> None:
    """The second one would take the place of the first."""
    (tmp_path / "link.json").symlink_to("one.json")
    for other in ("one.json", "./one.json", "link.json"):
        done = run("check", OFFENCES, *CLUSTER, "--json", "one.json", "--sarif", other, cwd=tmp_path)
        assert (done.returncode, b"a file takes one document" in done.stderr) == (2, True)
    assert not (tmp_path / "one.json").exists()
    nowhere = ("--json", os.devnull, "--sarif", os.devnull)
    assert run("check", OFFENCES, *CLUSTER, *nowhere, "--fail-on", "never").returncode == 0


def test_a_locale_without_arrows_ends_no_run() -> None:
    done = run("check", OFFENCES, *CLUSTER, encoding="ascii")
    assert (done.returncode, done.stderr) == (1, b"")
    assert rb"not for agent \u2192 server" in done.stdout
    assert run("matrix", "--help", encoding="ascii").returncode == 0


def test_documents_are_utf_8_in_every_locale(tmp_path: Path) -> None:
    table = "| Port | Protocol | Source | Destination | Description |\n|-|-|-|-|-|\n"
    (tmp_path / "t.md").write_text(f"{table}| 22 | TCP | Nodes | Nodes | Café |\n", encoding="utf-8")
    assert "Café".encode() in run("spec", "import", "t.md", cwd=tmp_path, encoding="ascii").stdout
    page = ("check", OFFENCES, *CLUSTER, "--fail-on", "never", "--html", "-")
    assert run(*page, encoding="ascii").stdout == run(*page).stdout
    shown = run("spec", "import", "t.md", "-o", "s.yaml", cwd=tmp_path)
    assert shown.returncode == 0
    assert "Café".encode() in run("spec", "show", "s.yaml", "--yaml", cwd=tmp_path, encoding="ascii").stdout


def test_listening_sockets_are_set_beside_the_table(tmp_path: Path) -> None:
    ok("listeners", "--node", "agent-1", "-o", "agent-1.json", cwd=tmp_path)
    (tmp_path / "server-1.ss").write_text(
        'tcp LISTEN 0 4096 0.0.0.0:6443 0.0.0.0:* users:(("kube-apiserver",pid=7,fd=3))\n'
        "tcp LISTEN 0 128 0.0.0.0:2222 0.0.0.0:*\n"
    )
    done = run(
        *("check", BASELINE, *CLUSTER, "--fail-on", "never"),
        *("--listeners", "agent-1.json", "--listeners", "server-1.ss"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert b"Documented, listening, observed" in done.stdout
    assert b"tcp/2222" in done.stdout


# ---- explain, cut ----

SSH = "violation-12ae446dc0"


def test_cut_writes_a_small_capture_that_can_be_checked_again(tmp_path: Path) -> None:
    small = tmp_path / "small.pcapng"
    done = run("cut", OFFENCES, *CLUSTER, "--finding", SSH, "-o", small)
    assert done.returncode == 0
    assert done.stdout == b""
    said = f"wrote 40 frames to {small}: 20 from agent-1.pcap, 20 from agent-3.pcap\n"
    assert done.stderr.decode() == said
    again = run("check", small, *CLUSTER, "--json", "-", "--fail-on", "never")
    assert [finding["id"] for finding in json.loads(again.stdout)["findings"]] == [SSH]


def test_cut_to_standard_output_is_the_same_file(tmp_path: Path) -> None:
    small = tmp_path / "small.pcapng"
    run("cut", OFFENCES, *CLUSTER, "-f", SSH, "-o", small)
    assert run("cut", OFFENCES, *CLUSTER, "-f", SSH, "-o", "-").stdout == small.read_bytes()


def test_a_cut_has_nowhere_to_go_where_standard_output_is_closed() -> None:
    words = ("cut", OFFENCES, *CLUSTER, "-f", SSH, "-o", "-")
    closed = ("sh", "-c", 'exec "$@" >&-', "sh", COMMAND, *words)
    done = subprocess.run(list(map(str, closed)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "into a pipe" in done.stderr
    assert "Traceback" not in done.stderr


def test_cut_without_a_cluster_keeps_standard_output_clean() -> None:
    done = run("cut", OFFENCES, "-f", "exposure-e1a5e4c329", "-o", "-")
    assert done.stdout.startswith(b"\n\r\r\n")
    assert done.stderr.startswith(b"no --cluster: inferred from the flows")


def test_explain_says_what_the_packets_carried() -> None:
    pytest.importorskip("pyshark")
    require_program("tshark")
    lines = ok("explain", OFFENCES, *CLUSTER, "--finding", SSH).splitlines()
    assert lines[1] == "40 frames: 20 in agent-1.pcap, 20 in agent-3.pcap"
    assert [line.split("  ")[0] for line in lines[3:]] == ["what", "SSH banner", "SSH banner"]
    assert "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3" in lines[4]


def test_explain_without_tshark_is_status_3_and_says_what_to_install(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    words = list(map(str, (COMMAND, "explain", OFFENCES, *CLUSTER, "-f", SSH)))
    done = subprocess.run(words, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.startswith(b"rke2-flows: tshark is not installed")
    assert done.stderr.count(b"\n") == 1


def test_ctrl_c_that_ends_tshark_is_no_fault_of_tshark(tmp_path: Path) -> None:
    """A terminal sends it to both, and tshark may be asked for its version just then."""
    pytest.importorskip("pyshark")
    tshark = tmp_path / "tshark"
    tshark.write_text("#!/bin/sh\nkill -INT 0\nsleep 9\n")
    tshark.chmod(0o755)
    words = list(map(str, (COMMAND, "explain", OFFENCES, *CLUSTER, "-f", SSH)))
    done = subprocess.run(words, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
                          start_new_session=True, capture_output=True, timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"rke2-flows: interrupted\n")


@pytest.mark.parametrize("command", [("explain",), ("cut", "-o", "small.pcapng")])
def test_flow_files_have_no_packets(command: tuple[str, ...], tmp_path: Path) -> None:
    flows = tmp_path / "flows.parquet"
    ok("flows", OFFENCES, "-o", flows)
    done = run(command[0], flows, *CLUSTER, "-f", SSH, *command[1:], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"flow tables hold no packets" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flows.parquet"]


def test_packets_are_not_taken_from_addresses(tmp_path: Path) -> None:
    address = (OFFENCES / "agent-1.pcap").as_uri()
    done = run("cut", address, *CLUSTER, "--finding", SSH, "-o", "x.pcapng", cwd=tmp_path)
    said = f"rke2-flows: {address}: packets are not taken from addresses (copy the captures here)\n"
    assert (done.returncode, done.stderr.decode(), list(tmp_path.iterdir())) == (2, said, [])


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_cut_takes_no_place_of_a_capture_that_it_is_of(given: str, tmp_path: Path) -> None:
    """Also not of an earlier cut in the folder, whose packets would count again."""
    for path in OFFENCES.glob("agent-*.pcap"):
        shutil.copy(path, tmp_path)
    target = tmp_path / "agent-1.pcap"
    inputs = [tmp_path] if given == "folder" else sorted(tmp_path.iterdir())
    done = run("cut", *inputs, *CLUSTER, "-f", SSH, "-o", "agent-1.pcap", cwd=tmp_path)
    said = "rke2-flows: agent-1.pcap: it is one of the captures to cut from (name another file)\n"
    assert (done.returncode, done.stderr.decode()) == (2, said)
    assert target.read_bytes() == (OFFENCES / "agent-1.pcap").read_bytes()


def test_an_unknown_finding_leaves_no_file(tmp_path: Path) -> None:
    done = run("cut", OFFENCES, *CLUSTER, "-f", "violation-0", "-o", tmp_path / "small.pcapng")
    assert done.returncode == 2
    assert done.stderr.startswith(b"rke2-flows: no finding 'violation-0' in this input")
    assert not list(tmp_path.iterdir())


# ---- many workers ----


def test_workers_say_what_one_process_says(tmp_path: Path) -> None:
    ask = ("check", OFFENCES, *CLUSTER, "--fail-on", "never", "--json")
    plain, shared = (
        run(*ask, f"{name}.json", *more, cwd=tmp_path)
        for name, more in (("plain", ()), ("shared", ("--scheduler", "threads", "-o", "flows")))
    )
    assert (shared.returncode, shared.stdout) == (0, plain.stdout)
    documents = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "shared")]
    assert documents[0] == documents[1]
    assert ok("matrix", OFFENCES, *CLUSTER, "--scheduler", "threads") == ok("matrix", OFFENCES, *CLUSTER)
    judged = pd.concat(pd.read_parquet(part) for part in (tmp_path / "flows").glob("*.parquet"))
    assert len(judged) == sum(v["flows"] for v in documents[0]["summary"]["scopes"].values())


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("check", OFFENCES, "--scheduler", "threads"), 2, "--cluster: workers cannot infer the nodes"),
        (("check", OFFENCES, *CLUSTER, "--scheduler", "threads", "--html", "x"), 2, "--html needs the flows"),
        (("flows", OFFENCES, "--scheduler", "threads"), 2, "name an empty or a new folder with -o"),
        (("flows", OFFENCES, "--scheduler", "threads", "-o", "-"), 2, "and standard output is none"),
        (("check", OFFENCES, *CLUSTER, "--scheduler", "thread"), 2, "no scheduler is called 'thread'"),
    ],
)
def test_what_workers_cannot_do_is_one_line(arguments: tuple[object, ...], status: int, said: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (status, b"")
    (line,) = done.stderr.decode().splitlines()
    assert said in line


# ---- on a terminal ----


def test_a_narrow_terminal_breaks_no_id_and_no_number(tmp_path: Path) -> None:
    """Half of one is another one; only sentences are folded."""
    for words, whole in (
        (("check", OFFENCES, *CLUSTER, "--fail-on", "never"), SSH),
        (("flows", OFFENCES / "agent-1.pcap"), "2026-11-24 06:07:1"),
        (("matrix", OFFENCES, *CLUSTER, "--by", "rule"), "flows_outside"),
    ):
        leader, follower = os.openpty()
        narrow = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
        with (tmp_path / "said").open("wb") as stderr:
            process = subprocess.Popen([COMMAND, *words], stdout=follower, stderr=stderr, env=narrow)
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):  # a pty's way to say that nobody writes any more
            while read := os.read(leader, 1 << 16):
                shown += read
        os.close(leader)
        assert process.wait(60) == 0
        assert whole in re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
