"""Who listens, who is connected, and which pod that is: real sockets in a namespace, real cgroups."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from conftest import require, require_root
from hypothesis import given
from hypothesis import strategies as st
from pyroute2 import DiagSocket, netns

from analyzer.capture import who
from analyzer.capture.who import Connection, Listener, Pods
from analyzer.errors import LiveError
from analyzer.flows import parse_address
from lab import kernel, topology

if TYPE_CHECKING:
    from collections.abc import Iterator

V4, V6 = "10.77.0.1", "fd77::1"
OTHER_V4 = "10.77.0.2"
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP

#: opens what it is told in JSON, says which ports it got, and stays until its input ends
CHILD = """
import ctypes, json, resource, socket, sys
plan = json.loads(sys.argv[1])
ctypes.CDLL(None).prctl(15, plan.get("name", "child").encode())
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
kept, ports = [], []
for kind, host, port, only in plan.get("open", ()):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    if only is not None:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    s.bind((host, port))
    if kind == "tcp":
        s.listen(4096)
    kept.append(s)
    ports.append(s.getsockname()[1])
for kind, source, host, port in plan.get("connect", []) * plan.get("times", 1):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.bind((source, 0))
    s.connect((host, port))
    kept.append(s)
    ports.append(s.getsockname()[1])
    if plan.get("accept"):
        kept.append(kept[0].accept()[0])
print(json.dumps(ports), flush=True)
for _ in range(plan.get("accepts", 0)):
    kept.append(kept[0].accept()[0])
sys.stdin.read()
"""

_count = itertools.count()


# ---- places and children ----


@pytest.fixture
def place() -> Iterator[str]:
    """The test is in a network namespace of its own, which has one address of each family."""
    require_root()
    tag = f"rke2-flows-who-{os.getpid()}-{next(_count)}"
    try:
        netns.create(tag)
        with topology.routes(tag) as ip:
            ip.link("set", index=1, state="up")
            topology.add_address(ip, 1, V4, 32)
            topology.add_address(ip, 1, OTHER_V4, 32)
            topology.add_address(ip, 1, V6, 128)
        with kernel.inside(tag):
            yield tag
    finally:
        topology.remove_namespace(tag)


@contextlib.contextmanager
def child(**plan: Any) -> Iterator[tuple[int, list[int]]]:
    """A process that holds sockets; gives its pid and their ports."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(plan)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.pid, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def found(*addresses: str) -> set[tuple[str, int, int, int]]:
    """Address, protocol, port and pid of each listener."""
    return {
        (text(one.address), one.protocol, one.port, one.pid) for one in who.listeners(addresses or (V4, V6))
    }


def text(packed: bytes) -> str:
    return (
        socket.inet_ntop(socket.AF_INET, packed[12:])
        if packed.startswith(bytes(10) + b"\xff\xff")
        else socket.inet_ntop(socket.AF_INET6, packed)
    )


def without_diagnosis(*_: int) -> list[who._Socket]:
    raise FileNotFoundError


# ---- who listens ----


@pytest.mark.usefixtures("place")
def test_each_kind_of_listener_stands_for_the_addresses_that_it_takes() -> None:
    plan = {
        ("tcp", "0.0.0.0", 6443, None): {V4},
        ("tcp", V4, 2379, None): {V4},
        ("tcp", OTHER_V4, 2380, None): {OTHER_V4},
        ("tcp", "127.0.0.1", 10248, None): set(),
        ("tcp", "127.8.9.1", 10249, None): set(),
        ("tcp", "::1", 10250, None): set(),
        ("tcp", "::", 9345, 0): {V4, V6},
        ("tcp", "::", 9346, 1): {V6},
        ("tcp", V6, 9347, None): {V6},
        ("tcp", f"::ffff:{V4}", 9348, 0): {V4},
        ("udp", "0.0.0.0", 8472, None): {V4},
        ("udp", "::", 123, 0): {V4, V6},
        ("udp", "::", 546, 1): {V6},
    }
    with child(open=list(plan)) as (pid, _):
        expected = {
            (address, TCP if kind == "tcp" else UDP, port, pid)
            for (kind, _, port, _), addresses in plan.items()
            for address in addresses
        }
        assert found() == expected


@pytest.mark.usefixtures("place")
def test_a_listener_has_its_process_and_each_place_is_there_once() -> None:
    with child(open=[("tcp", V4, 6443, None), ("tcp", "0.0.0.0", 80, None)], name="kube-apiserver") as (
        pid,
        _,
    ):
        expected = [
            Listener(parse_address(V4), TCP, 80, pid, "kube-apiserver"),
            Listener(parse_address(V4), TCP, 6443, pid, "kube-apiserver"),
        ]
        assert who.listeners([V4, "127.0.0.1", "::1"]) == expected
        assert who.listeners([V4, V4]) == expected
        assert [one.port for one in who.listeners([])] == [6443]
    assert who.listeners([V4]) == []


@pytest.mark.usefixtures("place")
def test_open_sockets_are_told_as_they_are_bound() -> None:
    plan = [
        ("tcp", "0.0.0.0", 6443, None),
        ("tcp", "127.0.0.1", 10248, None),
        ("tcp", "::", 9345, 0),
        ("udp", "::", 546, 1),
    ]
    with child(open=plan, name="etcd") as (pid, _):
        told = {(text(one.address), one.port): one for one in who.open_sockets()}
        assert set(told) == {(address, port) for _, address, port, _ in plan}
        assert {(one.pid, one.process) for one in told.values()} == {(pid, "etcd")}
        assert {port: told["::", port].takes_v4 for port in (9345, 546)} == {9345: True, 546: False}
        assert {one.protocol for one in told.values()} == {TCP, UDP}


@pytest.mark.usefixtures("place")
def test_two_processes_on_one_port_each_have_their_family() -> None:
    with (
        child(open=[("tcp", "0.0.0.0", 443, None)]) as (four, _),
        child(open=[("tcp", "::", 443, 1)]) as (six, _),
    ):
        assert found() == {(V4, TCP, 443, four), (V6, TCP, 443, six)}


@pytest.mark.usefixtures("place")
def test_udp_sockets_of_clients_are_no_listeners() -> None:
    """One has a peer; the other, of a resolver that sends with sendto(), has a port from the kernel."""
    with (
        child(open=[("udp", V4, 53, None)]) as (server, _),
        child(connect=[("udp", V4, V4, 53)], open=[("udp", "0.0.0.0", 0, None)]) as (_, ports),
    ):
        assert all(port in who._handed_out() for port in ports)
        assert found() == {(V4, UDP, 53, server)}


@pytest.mark.usefixtures("place")
def test_the_range_of_client_ports_is_the_namespace_s_own() -> None:
    kernel.sysctl("ipv4/ip_local_port_range", "20000 20100")
    assert who._handed_out() == range(20000, 20101)
    with child(open=[("udp", V4, 40000, None), ("udp", V4, 20100, None)]) as (pid, _):
        assert found() == {(V4, UDP, 40000, pid)}


def test_a_tunnel_of_the_kernel_listens_without_a_process(place: str) -> None:
    with topology.routes(place) as ip:
        ip.link("add", ifname="vx0", kind="vxlan", vxlan_id=1, vxlan_port=8472, vxlan_local=V4)
        ip.link("set", index=topology.index_of(ip, "vx0"), state="up")
    assert who.listeners([V4]) == [Listener(parse_address(V4), UDP, 8472, 0, "")]


def test_the_namespace_is_the_calling_threads(place: str) -> None:
    """Not that of the process' first thread, which /proc/net shows."""
    seen: list[list[Listener]] = []
    elsewhere = f"{place}-elsewhere"

    def look() -> None:
        kernel.enter(elsewhere)
        seen.append(who.listeners([V4]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(who, "_diagnosed", without_diagnosis)
            seen.append(who.listeners([V4]))

    try:
        netns.create(elsewhere)
        with child(open=[("tcp", V4, 6443, None)]) as (pid, _):
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            assert found(V4) == {(V4, TCP, 6443, pid)}
    finally:
        topology.remove_namespace(elsewhere)
    assert seen == [[], []]


@pytest.mark.usefixtures("place")
def test_psutil_sees_the_same_listeners_and_connections() -> None:
    with (
        child(open=[("tcp", V4, 1000, None), ("tcp", V6, 1001, None), ("udp", V4, 1002, None)]),
        child(open=[("tcp", V4, 2000, None)], connect=[("tcp", OTHER_V4, V4, 1000)]),
    ):
        theirs: list[Any] = psutil.net_connections("inet")  # whose addresses may be empty tuples
        listening = {
            (one.laddr.ip, TCP if one.type == socket.SOCK_STREAM else UDP, one.laddr.port, one.pid)
            for one in theirs
            if one.status == "LISTEN" or (one.type == socket.SOCK_DGRAM and not one.raddr)
        }
        connected = {(*one.laddr, *one.raddr, one.pid or 0) for one in theirs if one.status == "ESTABLISHED"}
        assert len(listening) == 4
        assert len(connected) == 2
        assert found() == listening
        assert {
            (text(one.src), one.src_port, text(one.dst), one.dst_port, one.pid) for one in who.connections()
        } == connected


# ---- where the kernel has no sock_diag ----


@pytest.mark.usefixtures("place")
def test_the_lists_in_proc_say_the_same_but_for_v6only(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [
        ("tcp", "0.0.0.0", 443, None),
        ("tcp", "::", 443, 1),
        ("tcp", "::", 9345, 0),
        ("tcp", V6, 9347, None),
        ("tcp", f"::ffff:{V4}", 9348, 0),
        ("udp", V4, 8472, None),
    ]
    with child(open=plan, connect=[("tcp", V4, V4, 443), ("tcp", V6, V6, 9347)]):
        exact, connected = found(), who.connections()
        monkeypatch.setattr(who, "_diagnosed", without_diagnosis)
        assert found() == exact
        assert sorted(who.connections()) == sorted(connected)
    with child(open=[("tcp", "::", 9346, 1)]) as (pid, _):
        assert found() == {(V4, TCP, 9346, pid), (V6, TCP, 9346, pid)}


def test_a_protocol_without_diagnosis_is_an_error_not_an_empty_list() -> None:
    """The kernel says so in the message that ends the list. No kernel knows protocol 255's sockets."""
    with pytest.raises(OSError, match=r".+"):
        who._diagnosed(socket.AF_INET, 255, who._LISTEN)


def test_without_ipv6_there_are_no_ipv6_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(who, "_diagnosed", without_diagnosis)
    monkeypatch.setattr(who, "_PROC_NET", tmp_path)
    assert who.listeners([V4]) == []
    assert who.connections() == []


def test_lists_that_cannot_be_read_are_a_live_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(who, "_diagnosed", without_diagnosis)
    monkeypatch.setattr(who, "_PROC_NET", tmp_path)
    (tmp_path / "tcp").mkdir()
    with pytest.raises(LiveError, match="sockets cannot be listed"):
        who.listeners([V4])


# ---- who is connected ----


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("listening", "address"), [("0.0.0.0", V4), (V4, V4), ("::", V4), ("::", V6), (V6, V6)]
)
def test_both_ends_of_a_connection(listening: str, address: str) -> None:
    """A server of :: has IPv4 peers as mapped addresses, which are the addresses of flows."""
    with (
        child(open=[("tcp", listening, 6443, None)], accepts=1, name="server") as (server, _),
        connecting(address, 6443) as (client, port),
    ):
        ends = {
            one
            for one in within(2.0, lambda: all(c.pid for c in who.connections()) and who.connections())
            if port in {one.src_port, one.dst_port}
        }
        ip = parse_address(address)
        assert ends == {
            Connection(ip, ip, port, 6443, client, "client", listening=False),
            Connection(ip, ip, 6443, port, server, "server", listening=True),
        }


@contextlib.contextmanager
def connecting(address: str, port: int) -> Iterator[tuple[int, int]]:
    with child(connect=[("tcp", address, address, port)], name="client") as (pid, ports):
        yield pid, ports[0]


def within(seconds: float, ask: Any) -> Any:
    """The first answer that is true, or the last one."""
    deadline = time.monotonic() + seconds
    answer = ask()
    while not answer and time.monotonic() < deadline:
        time.sleep(0.02)
        answer = ask()
    return answer


@pytest.mark.usefixtures("place")
def test_a_listener_on_another_address_is_none_of_this_connection() -> None:
    with (
        child(open=[("tcp", V4, 6443, None), ("tcp", OTHER_V4, 20000, None)], accepts=1),
        connecting(V4, 6443) as (_, port),
        child(open=[("tcp", OTHER_V4, port, None)]),
    ):
        (client,) = [one for one in who.connections() if one.src_port == port]
        assert not client.listening


@pytest.mark.usefixtures("place")
def test_ten_thousand_connections_cost_less_than_two_percent_of_a_minute() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    require(hard >= 10_100, f"a process may open {hard} files only")
    connect = [("tcp", V4, V4, 6443)]
    with child(open=[("tcp", V4, 6443, None)], connect=connect, times=5000, accept=True) as (pid, _):
        start = time.process_time()
        assert found() == {(V4, TCP, 6443, pid)}
        assert time.process_time() - start < 0.02 * 60
        assert len([one for one in who.connections() if one.pid == pid]) == 10_000


# ---- processes ----


def test_a_process_is_called_what_it_calls_itself() -> None:
    with child(name="etcd") as (pid, _):
        assert who.process_name(pid) == "etcd"
    assert who.process_name(pid) == ""
    with child(name="a\nb\x1b[2J") as (pid, _):
        assert who.process_name(pid) == "a\nb\x1b[2J"


# ---- pods ----

UIDS = st.one_of(st.uuids().map(str), st.binary(min_size=16, max_size=16).map(bytes.hex))
CLASSES = st.sampled_from(["", "burstable", "besteffort"])
CONTAINER = "9b4f" * 16


def systemd(uid: str, kind: str, root: str = "") -> str:
    """As kubelet's systemd driver and containerd name it: a slice is in the one whose name it begins with."""
    steps = [*filter(None, [root, "kubepods", kind, "pod" + uid.replace("-", "_")])]
    slices = ["-".join(steps[: n + 1]) + ".slice" for n in range(len(steps))]
    return "/" + "/".join([*slices, f"cri-containerd-{CONTAINER}.scope"])


def cgroupfs(uid: str, kind: str, root: str = "") -> str:
    return "/" + "/".join([*filter(None, [root, "kubepods", kind, f"pod{uid}"]), CONTAINER])


def mixed(uid: str, kind: str, root: str = "") -> str:
    """The kubelet has the systemd driver, containerd has not."""
    slices = systemd(uid, kind, root).split("/")[-2]
    return f"/system.slice/containerd.service/{slices}:cri-containerd:{CONTAINER}"


DRIVERS = st.sampled_from([systemd, cgroupfs, mixed])


@given(UIDS, CLASSES, DRIVERS, st.sampled_from(["", "kubelet"]))
def test_every_driver_s_path_gives_the_uid(uid: str, kind: str, driver: Any, root: str) -> None:
    assert who.pod_uids(driver(uid, kind, root)) == [uid]
    assert who.pod_uids("/.." + driver(uid, kind, root)) == [uid]
    assert who.pod_uids(driver(uid, kind, root) + "/init.scope") == [uid]
    assert who.pod_uids(f"/user.slice/user-1000.slice/user@1000.service{driver(uid, kind, root)}") == []


@given(UIDS, UIDS, DRIVERS, DRIVERS)
def test_pods_in_a_pod_come_outermost_first(outer: str, inner: str, first: Any, then: Any) -> None:
    assert who.pod_uids(first(outer, "") + then(inner, "burstable")) == [outer, inner]


@given(st.text())
def test_no_other_path_has_a_pod(path: str) -> None:
    assert who.pod_uids(path) == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/system.slice/rke2-server.service",
        "/kubepods.slice/kubepods-burstable.slice",
        "/kubepods/burstable/pod",
        "/kubepods.slice/kubepods-pod12.slice/cri-containerd-1.scope",
        f"/notkubepods/pod{uuid.UUID(int=1)}/1",
        f"/kubepods/other/pod{uuid.UUID(int=1)}/1",
        f"/kubepods/pod{uuid.UUID(int=1)}0/1",
        f"/machine.slice/libpod-pod{uuid.UUID(int=1)}.slice/1",
    ],
)
def test_what_only_looks_like_a_pod_is_none(path: str) -> None:
    assert who.pod_uids(path) == []


class Tree:
    """Cgroups of the real kernel, under a folder of this test; and the kubelet's logs."""

    def __init__(self, root: Path, logs: Path) -> None:
        self.root, self.logs = root, logs
        self.mount = Path(str(who.cgroup2_mount(Path("/proc"))))
        root.mkdir()
        logs.mkdir()

    def add(self, path: str) -> Path:
        folder = self.root / path.lstrip("/")
        folder.mkdir(parents=True)
        return folder

    def log(self, namespace: str, name: str, uid: str) -> None:
        (self.logs / f"{namespace}_{name}_{uid}").mkdir()

    def pods(self) -> Pods:
        return Pods(logs=self.logs)

    def remove(self) -> None:
        for folder, _, _ in os.walk(self.root, topdown=False):
            os.rmdir(folder)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    require_root()
    mount = who.cgroup2_mount(Path("/proc"))
    require(mount is not None, "cgroup v2 is not mounted")
    made = Tree(Path(str(mount), f"rke2-flows-who-{os.getpid()}-{next(_count)}"), tmp_path / "pods")
    try:
        yield made
    finally:
        made.remove()


def join(cgroup: Path, pid: int) -> None:
    (cgroup / "cgroup.procs").write_text(str(pid))


UID, STATIC = "0b5a3b1e-7f43-4c0c-9d5a-6e1c2f3a4b5c", "33d556edd3ae8ef21980288cef77ae8b"


@pytest.mark.parametrize("driver", [systemd, cgroupfs, mixed])
@pytest.mark.parametrize("uid", [UID, STATIC])
def test_a_cgroup_s_number_gives_its_pod(tree: Tree, driver: Any, uid: str) -> None:
    tree.log("kube-system", "etcd-server-1", uid)
    cgroup = tree.add(driver(uid, "burstable"))
    plain = tree.add("/system.slice/rke2-server.service")
    pods = tree.pods()
    assert pods.pod_of(cgroup.stat().st_ino) == "kube-system/etcd-server-1"
    assert pods.pod_of(plain.stat().st_ino) == ""
    assert pods.pod_of() == ""


def test_the_number_is_the_kernel_s_own(tree: Tree) -> None:
    """sock_diag tells the cgroup of a socket by the number that bpf_get_current_cgroup_id() gives."""
    cgroup = tree.add(systemd(UID, "burstable"))
    plan = {"open": [("tcp", "127.0.0.1", 0, None)]}
    script = f"import os; open({str(cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n" + CHILD
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(plan)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        (port,) = json.loads(process.stdout.readline())
        with DiagSocket() as diag:
            diag.bind()
            (number,) = [
                one.get_attr("INET_DIAG_CGROUP_ID")
                for one in diag.get_sock_stats(family=socket.AF_INET, states=1 << who._LISTEN)
                if one["idiag_sport"] == port
            ]
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert number == cgroup.stat().st_ino


def test_a_living_process_needs_no_walk(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.log("default", "web-0", UID)
    cgroup = tree.add(systemd(UID, ""))
    monkeypatch.setattr(who, "_tree", lambda root: pytest.fail(f"{root} was walked"))
    with child() as (pid, _):
        join(cgroup, pid)
        pods = tree.pods()
        assert pods.pod_of(cgroup.stat().st_ino, pid) == "default/web-0"
        assert pods.pod_of(pid=pid) == "default/web-0"
    assert pods.pod_of(cgroup.stat().st_ino) == "default/web-0"


def test_numbers_stay_known_when_the_pod_is_gone(tree: Tree) -> None:
    tree.log("default", "job-1", UID)
    cgroup = tree.add(cgroupfs(UID, "besteffort"))
    number = cgroup.stat().st_ino
    pods = tree.pods()
    assert pods.pod_of(number) == "default/job-1"
    cgroup.rmdir()
    (tree.logs / f"default_job-1_{UID}").rmdir()
    assert pods.pod_of(number) == "default/job-1"


def test_a_pid_that_another_process_has_now_is_not_believed(tree: Tree) -> None:
    tree.log("default", "new", UID)
    cgroup, gone = tree.add(systemd(UID, "")), tree.add("/gone")
    number = gone.stat().st_ino
    gone.rmdir()
    with child() as (pid, _):
        join(cgroup, pid)
        assert tree.pods().pod_of(number, pid) == ""
        assert tree.pods().pod_of(0, pid) == "default/new"


def test_the_tree_is_walked_at_most_once_a_second(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[Path] = []
    real = who._tree

    def counted(root: Path) -> Iterator[tuple[int, str]]:
        walks.append(root)
        return real(root)

    monkeypatch.setattr(who, "_tree", counted)
    tree.log("default", "late", UID)
    pods = tree.pods()
    for number in range(2**40, 2**40 + 100):
        assert pods.pod_of(number) == ""
    assert walks == [tree.mount]
    late = tree.add(systemd(UID, "")).stat().st_ino
    assert pods.pod_of(late) == ""
    time.sleep(who._WALK_SECONDS + 0.05)
    assert pods.pod_of(late) == "default/late"
    assert pods.pod_of(2**40) == ""
    assert len(walks) == 2


def test_a_name_may_come_after_the_cgroup(tree: Tree) -> None:
    number = tree.add(systemd(UID, "")).stat().st_ino
    pods = tree.pods()
    assert pods.pod_of(number) == ""
    tree.log("default", "web-0", UID)
    time.sleep(who._WALK_SECONDS + 0.05)
    assert pods.pod_of(number) == "default/web-0"


# ---- machines of other kinds: what their /proc says ----


class Machine:
    """A /proc of another kind of machine."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.logs = folder / "proc", folder / "logs"
        (self.proc / "7").mkdir(parents=True)
        self.logs.mkdir()

    def says(self, *lines: str) -> None:
        (self.proc / "7" / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def log(self, folder: str) -> None:
        (self.logs / folder).mkdir()

    def pod(self, cgroup_id: int = 0) -> str:
        return Pods(self.proc, self.logs).pod_of(cgroup_id, 7)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("driver", [systemd, cgroupfs, mixed])
def test_cgroup_v1_names_the_pod_by_the_process(machine: Machine, driver: Any) -> None:
    path = driver(UID, "besteffort")
    machine.says(f"11:cpu,cpuacct:{path}", "10:cpuset:/", f"1:name=systemd:{path}")
    machine.log(f"kube-system_rke2-canal-x7k2p_{UID}")
    assert machine.pod() == "kube-system/rke2-canal-x7k2p"
    assert machine.pod(1) == "kube-system/rke2-canal-x7k2p"


def test_lines_that_contradict_each_other_name_no_pod(machine: Machine) -> None:
    machine.log(f"default_a_{UID}")
    machine.log(f"default_b_{STATIC}")
    machine.says(f"2:cpu:{systemd(UID, '')}", f"1:memory:{systemd(STATIC, '')}")
    assert machine.pod() == ""


def test_a_path_from_outside_of_the_cgroup_namespace_is_read(machine: Machine, tmp_path: Path) -> None:
    """A collector in a container of its own: it sees other pods' paths from where it is."""
    machine.log(f"default_a_{UID}")
    (tmp_path / "cgroup").mkdir()
    (machine.proc / "mounts").write_text(f"cgroup2 {tmp_path}/cgroup cgroup2 ro 0 0\n")
    machine.says(f"0::/../../..{systemd(UID, '')}")
    assert machine.pod(12345) == "default/a"


def test_of_a_pod_in_a_pod_the_one_with_logs_here_is_named(machine: Machine) -> None:
    machine.says(f"0::{systemd(STATIC, '')}{systemd(UID, '')}")
    machine.log(f"default_inner_{UID}")
    assert machine.pod() == "default/inner"
    machine.log(f"default_outer_{STATIC}")
    assert machine.pod() == "default/outer"


@pytest.mark.parametrize(
    "folder",
    [
        f"default_{UID}",
        f"default_a_b_{UID}",
        f"Default_a_{UID}",
        f"default_\x1b[2J_{UID}",
        f"default_a_{UID}x",
        f"default_a_{UID}\n",
    ],
)
def test_a_log_folder_that_no_kubelet_made_names_nothing(machine: Machine, folder: str) -> None:
    machine.says(f"0::{systemd(UID, '')}")
    machine.log(folder)
    assert machine.pod() == ""


def test_where_there_is_nothing_nothing_is_known(tmp_path: Path) -> None:
    pods = Pods(tmp_path / "proc", tmp_path / "logs")
    assert pods.pod_of(5, 7) == ""
    assert pods.pod_of(pid=7) == ""
    assert who.cgroup2_mount(tmp_path) is None


def test_hybrid_and_pure_machines_have_their_trees_in_other_places(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n")
    assert who.cgroup2_mount(tmp_path) == Path("/sys/fs/cgroup/unified")
    mounts.write_text("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")
    assert who.cgroup2_mount(tmp_path) == Path("/sys/fs/cgroup")
