"""Firewalls that break things, and the NodePort.

Rule: nftables rulesets as text, put into one namespace; sends nothing itself.

Each fault is a table of its own, so that two do not meet and one can be taken out alone.
"""

from __future__ import annotations

from lab import plan, processes

ETCD_PEERS = "etcd-peers-wait"
NODE_PORTS = "node-ports"

DROP_INPUT = "drop-input"
REJECT_RESET = "reject-reset"
REJECT_PROHIBITED = "reject-prohibited"
MUTE_OVERLAY = "mute-overlay"

_INPUT = "type filter hook input priority filter;"
_OUTPUT = "type filter hook output priority filter;"
_VERDICTS = {
    DROP_INPUT: "drop",
    REJECT_RESET: "reject with tcp reset",
    REJECT_PROHIBITED: "reject with icmpx admin-prohibited",
}


def refuse_client(namespace: str, how: str, client: str, ports: tuple[int, ...]) -> None:
    """What ``client`` sends to these TCP ports is dropped or rejected, over both IP versions."""
    source = plan.addresses(client)
    match = f"tcp dport {{ {', '.join(map(str, ports))} }} {_VERDICTS[how]}"
    _load(
        namespace,
        f"{how}-{client}",
        f"chain input {{ {_INPUT} ip saddr {source[4]} {match}; ip6 saddr {source[6]} {match}; }}",
    )


def lose_between(namespace: str, client: str, server: str, port: int) -> None:
    """What ``client`` sends to a TCP port of ``server`` goes into the switch, and never comes out."""
    source, target = plan.addresses(client), plan.addresses(server)
    match = f"tcp dport {port} drop;"
    _load(
        namespace,
        f"lost-{client}-{server}",
        f"chain forward {{ type filter hook forward priority filter; "
        f"ip saddr {source[4]} ip daddr {target[4]} {match} "
        f"ip6 saddr {source[6]} ip6 daddr {target[6]} {match} }}",
        family="bridge",
    )


def lose_overlay(namespace: str, one: str, other: str, longer_than: int = 0) -> None:
    """VXLAN between two nodes goes into the switch, and does not come out; or only the long packets of it."""
    ends = (plan.addresses(one)[4], plan.addresses(other)[4])
    long = f"ip length > {longer_than} " if longer_than else ""
    rules = " ".join(
        f"ip saddr {a} ip daddr {b} udp dport {plan.VXLAN_PORT} {long}drop;" for a, b in (ends, ends[::-1])
    )
    _load(
        namespace,
        f"overlay-{one}-{other}",
        f"chain forward {{ type filter hook forward priority filter; {rules} }}",
        family="bridge",
    )


def corrupt_checksums(namespace: str) -> None:
    """TCP that pods of this node send into the tunnel has a wrong checksum, as a faulty offload makes it."""
    _load(
        namespace,
        "bad-checksums",
        "chain forward { type filter hook forward priority filter; "
        'iifname cni0 oifname "flannel.1" tcp checksum set 0xdead; }',
    )


def stop_pods(namespace: str) -> None:
    """The node forwards nothing any more, as when a firewall is loaded again without the CNI's rules."""
    _load(
        namespace,
        "no-forwarding",
        "chain forward { type filter hook forward priority filter; oifname cni0 drop; iifname cni0 drop; }",
    )


def mute_overlay(namespace: str) -> None:
    """VXLAN that this node sends never reaches its uplink."""
    _load(namespace, MUTE_OVERLAY, f"chain output {{ {_OUTPUT} udp dport {plan.VXLAN_PORT} drop; }}")


def hold_etcd_peers(namespace: str) -> None:
    """New connections to etcd peers do not leave; open ones live on.

    It stands while the members start one after another, so that none is refused by a peer that is not there
    yet, and while a recording ends, so that no handshake is cut in two.
    """
    _load(
        namespace,
        ETCD_PEERS,
        f"chain output {{ {_OUTPUT} tcp dport 2380 tcp flags & (syn|ack) == syn drop; }}",
    )


def release_etcd_peers(namespace: str) -> None:
    processes.call(namespace, ["nft", "delete", "table", "inet", ETCD_PEERS])


def open_node_port(namespace: str, pod: str) -> None:
    """A NodePort as kube-proxy makes it: the destination becomes the pod, the source becomes the node."""
    target = plan.addresses(pod)
    match = f"tcp dport {plan.NODE_PORT} fib daddr type local"
    _load(
        namespace,
        NODE_PORTS,
        f"""chain prerouting {{
            type nat hook prerouting priority dstnat;
            meta nfproto ipv4 {match} dnat ip to {target[4]}:{plan.POD_PORT}
            meta nfproto ipv6 {match} dnat ip6 to [{target[6]}]:{plan.POD_PORT}
        }}
        chain postrouting {{
            type nat hook postrouting priority srcnat;
            ct status dnat masquerade
        }}""",
    )


def _load(namespace: str, table: str, body: str, family: str = "inet") -> None:
    processes.call(namespace, ["nft", "-f", "-"], text=f"table {family} {table} {{\n{body}\n}}\n")
