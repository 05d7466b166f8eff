"""The etcd cluster on the servers.

Rule: real etcd members and etcdctl; what they send is read from the kernel, not assumed.

Members listen on their node's address for clients (2379), peers (2380) and plain metrics (2381), with TLS for
the first two.
"""

from __future__ import annotations

import shutil
import socket
from functools import partial
from pathlib import Path

from lab import faults, plan, processes
from lab.errors import LabError

CLIENT_PORT, PEER_PORT, METRICS_PORT = 2379, 2380, 2381
HEARTBEAT_MS = 500
ELECTION_MS = 2500
ESTABLISHED, LISTEN = "01", "0A"  # state numbers of /proc/net/tcp


class Etcd:
    """One member on each server, started side by side; none hears of a peer before all of them listen."""

    def __init__(self, children: processes.Children, namespaces: dict[str, str], folder: Path) -> None:
        self._children = children
        self._namespaces = namespaces
        self._folder = folder
        self._members: dict[str, processes.Child] = {}

    @property
    def running(self) -> bool:
        return bool(self._members)

    def start(self) -> None:
        """Start the members and wait until each of them answers a client."""
        self.hold()
        for name in plan.SERVERS:
            command = self._command(name)
            self._members[name] = self._children.start(f"{name}-etcd", self._namespaces[name], command)
        for member in self._members.values():
            member.wait_for(partial(listens, member.pid, PEER_PORT), f"listening on {PEER_PORT}")
        self.release()
        for name in plan.SERVERS:
            member = self._members[name]
            member.wait_for(partial(self._healthy, name), "being healthy", 40.0)

    def hold(self) -> None:
        """No new connection between members starts from now on."""
        for name in plan.SERVERS:
            faults.hold_etcd_peers(self._namespaces[name])

    def release(self) -> None:
        for name in plan.SERVERS:
            faults.release_etcd_peers(self._namespaces[name])

    def end(self) -> None:
        """The members end; call hold() before, or they look for each other on the way."""
        self._children.end(*self._members.values())
        self._members.clear()

    def write_and_read(self, client: str, server: str) -> None:
        """etcdctl on one server puts a key at another and reads it back."""
        key = f"/registry/leases/{client}"
        self._ctl(client, server, "put", key, "renewed")
        if "renewed" not in self._ctl(client, server, "get", key):
            raise LabError(f"etcd on {server} did not give back what {client} put")

    def peer_connection(self, client: str, server: str) -> bool:
        """Whether the member on ``client`` has a connection open to the peer port of ``server``."""
        peer = plan.addresses(server)[4]
        return (peer, PEER_PORT) in remote_ends(self._members[client].pid)

    def _healthy(self, name: str) -> bool:
        """Asked over the member's own loopback, so that nothing of it is on the uplink."""
        try:
            self._ctl(name, None, "endpoint", "health")
        except LabError:
            return False
        return True

    def _ctl(self, client: str, server: str | None, *words: str) -> str:
        address = plan.addresses(server)[4] if server else "127.0.0.1"
        command = [
            "etcdctl",
            f"--endpoints=https://{address}:{CLIENT_PORT}",
            f"--cacert={self._folder / 'ca.pem'}",
            f"--cert={self._folder / f'{client}.pem'}",
            f"--key={self._folder / f'{client}.pem'}",
            "--dial-timeout=3s",
            "--command-timeout=4s",
            *words,
        ]
        return processes.call(self._namespaces[client], ["env", "ETCDCTL_API=3", *command])

    def _command(self, name: str) -> list[str]:
        if shutil.which("etcd") is None:
            raise LabError("etcd is not installed (Debian: etcd-server, etcd-client)")
        address = plan.addresses(name)[4]
        pem, authority = self._folder / f"{name}.pem", self._folder / "ca.pem"
        peers = ",".join(f"{peer}=https://{plan.addresses(peer)[4]}:{PEER_PORT}" for peer in plan.SERVERS)
        options = {
            "name": name,
            "data-dir": self._folder / f"{name}.etcd",
            "listen-client-urls": f"https://127.0.0.1:{CLIENT_PORT},https://{address}:{CLIENT_PORT}",
            "advertise-client-urls": f"https://{address}:{CLIENT_PORT}",
            "listen-peer-urls": f"https://{address}:{PEER_PORT}",
            "initial-advertise-peer-urls": f"https://{address}:{PEER_PORT}",
            "initial-cluster": peers,
            "listen-metrics-urls": f"http://{address}:{METRICS_PORT}",
            "heartbeat-interval": HEARTBEAT_MS,
            "election-timeout": ELECTION_MS,
            "logger": "zap",
            "log-level": "warn",
        }
        for prefix in ("", "peer-"):
            options |= {
                f"{prefix}cert-file": pem,
                f"{prefix}key-file": pem,
                f"{prefix}trusted-ca-file": authority,
            }
            options |= {f"{prefix}client-cert-auth": "true"}
        return ["etcd", *(f"--{key}={value}" for key, value in options.items())]


def _sockets(pid: int) -> list[tuple[str, str, str]]:
    """(local, remote, state) of the IPv4 TCP sockets in a process's namespace, as proc(5) writes them."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return [(fields[1], fields[2], fields[3]) for fields in map(str.split, lines)]


def _end(text: str) -> tuple[str, int]:
    address, port = text.split(":")
    return socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)


def listens(pid: int, port: int) -> bool:
    return any(_end(local)[1] == port and state == LISTEN for local, _, state in _sockets(pid))


def remote_ends(pid: int) -> set[tuple[str, int]]:
    return {_end(remote) for _, remote, state in _sockets(pid) if state == ESTABLISHED}
