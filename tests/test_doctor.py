"""What `doctor` says of a machine. Rule: the real one, whole or with a part of it hidden."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import live
import pytest
from conftest import PROJECT, require, require_root
from test_live_run import AS_NOBODY, FAR, FINE, INPUT_FAULT, NEAR, UNABLE, UPLINK, hooks, in_mounts
from test_packet import require_bpf
from test_tc import ARPHRD_IEEE80211, tun

from analyzer import doctor, load_cluster
from analyzer.capture import _program, _tc
from lab import kernel
from lab.processes import wrapper
from lab.topology import add_address, index_of, routes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from live import Wire

STATES = {"ok", "missing", "limited", "note"}


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    require_root()
    with live.Wire(tmp_path_factory.mktemp("wire")) as made:
        yield made


def ask(wire: Wire, *words: str, wrapped: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [
        *wrapper(wire.near),
        *wrapped,
        sys.executable,
        "-W",
        "error",
        "-m",
        "analyzer",
        "doctor",
        *words,
    ]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str, str]]:
    """Check → state, found, what to do; columns are two spaces apart."""
    assert done.stderr == ""
    head, *rows = done.stdout.splitlines()
    starts = [head.index(name) for name in ("check", "state", "found", "what to do")]
    cells = [[row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for row in rows]
    found = {cell[0]: (cell[1], cell[2], cell[3]) for cell in cells}
    assert {state for state, _, _ in found.values()} <= STATES
    return found


def test_a_machine_that_can_do_it(wire: Wire, tmp_path: Path) -> None:
    require_bpf()
    done = ask(wire, "--cluster", str(wire.write_cluster(tmp_path)))
    found = lines(done)
    assert done.returncode == FINE
    for name in ("kernel", "rights", "bcc", "headers", "program"):
        assert found[name][0] == "ok", name
    assert found[f"interface {UPLINK}"] == ("ok", f"{NEAR[4]}, {NEAR[6]} (server-1)", "-")
    assert found["leftovers"] == ("ok", "none", "-")
    with kernel.inside(wire.near):
        tcx = _tc.has_tcx(socket.if_nametoindex(UPLINK))
    way = "by tcx" if tcx else "by filters on a clsact qdisc"
    assert found["attaching"][1].startswith(way)
    assert "cluster" not in found
    assert hooks(wire.near) == [], "who asks changes nothing"


def test_a_machine_that_tells_less_can_still_do_it(wire: Wire, tmp_path: Path) -> None:
    """No BTF, no tracefs, and a cluster file of other machines."""
    require_bpf()
    others = {**live.CLUSTER, "nodes": [{"name": "x", "role": "agent", "addresses": ["192.0.2.9"]}]}
    hidden = ("/sys/kernel/btf", "/sys/kernel/tracing", "/sys/kernel/debug")
    mounts = tuple(in_mounts(*(f"mount -t tmpfs none {folder}" for folder in hidden)))
    done = ask(wire, "--cluster", str(wire.write_cluster(tmp_path, others)), wrapped=mounts)
    found = lines(done)
    assert done.returncode == FINE
    assert found["tracefs"] == ("limited", "not mounted", "mount -t tracefs tracefs /sys/kernel/tracing")
    assert found["BTF"][:2] == ("limited", "not published")
    assert found["program"][0] == "limited"
    assert "which process opens a connection" in found["program"][1]
    assert found["cluster"][0] == "note"
    assert "no node of the cluster file" in found["cluster"][1]


MISSING = {
    "bcc": ("mount -t tmpfs none /usr/lib/python3/dist-packages/bcc", "python3-bpfcc"),
    "headers": ("mount -t tmpfs none /lib/modules", "linux-headers"),
}


@pytest.mark.parametrize("name", list(MISSING))
def test_a_machine_that_cannot_do_it(wire: Wire, name: str) -> None:
    require_bpf()
    how, step = MISSING[name]
    done = ask(wire, wrapped=tuple(in_mounts(how)))
    found = lines(done)
    assert done.returncode == UNABLE
    assert found[name][0] == "missing"
    assert step in found[name][2]
    assert found["program"] == ("note", "not tried: something that it needs is missing", "-")
    assert [check for check, (state, _, _) in found.items() if state == "missing"] == [name]


def test_without_rights(wire: Wire) -> None:
    done = ask(wire, wrapped=AS_NOBODY)
    found = lines(done)
    assert done.returncode == UNABLE
    assert found["rights"] == ("missing", "user 65534", "run it with sudo")
    assert found["attaching"][0] == "note"
    assert found["leftovers"][0] == "ok", "they can be seen without rights"
    assert all(step != "-" for state, _, step in found.values() if state in ("missing", "limited"))


def test_without_rights_nothing_is_cleaned_and_that_is_said(wire: Wire) -> None:
    with kernel.inside(wire.near):
        subprocess.run(["tc", "qdisc", "add", "dev", UPLINK, "clsact"], check=True)
    try:
        done = ask(wire, "--clean", wrapped=AS_NOBODY)
        assert hooks(wire.near) == ["clsact"]
        assert (done.returncode, done.stderr) == (FINE, "")
        assert done.stdout == "nothing to remove: no killed capture left anything\n"
    finally:
        with kernel.inside(wire.near):
            subprocess.run(["tc", "qdisc", "del", "dev", UPLINK, "clsact"], check=True)


def test_a_broken_cluster_file_is_the_input_s_fault(wire: Wire, tmp_path: Path) -> None:
    (tmp_path / "nodes.yaml").write_text("nodes: [\n")
    done = ask(wire, "--cluster", str(tmp_path / "nodes.yaml"))
    assert (done.returncode, done.stdout) == (INPUT_FAULT, "")
    assert done.stderr.startswith(f"rke2-flows: {tmp_path}/nodes.yaml")
    assert len(done.stderr.splitlines()) == 1


def test_an_uplink_that_cannot_be_watched(wire: Wire, tmp_path: Path) -> None:
    cluster = load_cluster(wire.write_cluster(tmp_path))
    with kernel.inside(wire.far), tun("radio0", ARPHRD_IEEE80211):
        with routes(wire.far) as ip:
            index = index_of(ip, "radio0")
            ip.link("set", index=index, state="up")
            add_address(ip, index, NEAR[4], 32)
        found = {check.name: check for check in doctor._interfaces(cluster)}
    assert found[f"interface {UPLINK}"].state == "ok"
    assert FAR[4] in found[f"interface {UPLINK}"].found
    assert "(agent-1)" in found[f"interface {UPLINK}"].found
    radio = found["interface radio0"]
    assert radio.state == "limited"
    assert "801" in radio.found
    assert radio.next_step


def test_no_uplink(wire: Wire) -> None:
    """No default route, and all links are virtual."""
    with kernel.inside(wire.near):
        (only,) = doctor._interfaces(None)
    assert (only.name, only.state, only.next_step) == ("interfaces", "note", "name them with -i")


def test_what_clsact_costs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    require_root()
    monkeypatch.setattr(_tc, "has_tcx", lambda _: False)
    check = doctor._attaches()
    assert (check.state, "two packets" in check.found, "6.6" in check.next_step) == ("note", True, True)


def test_a_kernel_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_program, "kernel_version", lambda: (5, 4))
    good, _, step = doctor._kernel()
    assert not good
    assert "5.8" in step


def test_it_asks_all_that_it_needs() -> None:
    require(sys.platform == "linux", "live capture is for Linux")
    named = {check for check, (_, state) in doctor._CHECKS.items() if state == "missing"}
    assert named == {"kernel", "rights", "bcc", "headers"}
