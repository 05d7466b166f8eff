"""What of the inputs is asked for, as the command line says it. Rule: words to times, names and ports, and
with a cluster to a choice; reads no file.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from analyzer.commands.options import age, refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analyzer.choice import Choice
    from analyzer.cluster import Cluster

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Wanted:
    """`--since` and `--until` in ns, 0 and None where not given; `--node` by name, `--port`."""

    since: int
    until: int | None
    nodes: tuple[str, ...]
    ports: tuple[int, ...]

    def of_time(self) -> Choice:
        """The time alone: what nodes are inferred from needs all of them, and all ports."""
        from analyzer.choice import EVER, Choice

        return Choice(self.since, EVER if self.until is None else self.until)

    def of(self, cluster: Cluster | None) -> Choice:
        """All of it. `cluster`: where the nodes are named; None where no node is."""
        from analyzer.choice import addresses_of

        addresses = addresses_of(cluster, self.nodes) if cluster else None
        return replace(self.of_time(), addresses=addresses, ports=frozenset(self.ports))


ALL_WANTED = Wanted(0, None, (), ())


def wanted(
    since: str | None, until: str | None, nodes: Sequence[str] | None, ports: Sequence[int] | None
) -> Wanted:
    """The four options. Raises typer.BadParameter for what is no time, and for a time that ends before it
    begins.
    """
    now = time.time_ns()
    first = 0 if since is None else moment(since, now, "--since")
    last = None if until is None else moment(until, now, "--until")
    if last is not None and last <= first:
        raise typer.BadParameter(f"--until {until} is not after --since {since or 'the epoch'}")
    return Wanted(first, last, tuple(nodes or ()), tuple(ports or ()))


def moment(text: str, now: int, option: str) -> int:
    """`2026-11-24`, `2026-11-24T10:57:20.5Z`, `2026-11-24 10:57:20 UTC` or `2h`, so long before `now`, to ns
    since the epoch. A time without a zone is UTC, as all times that are shown. Raises typer.BadParameter that
    names the option.
    """
    try:
        found = datetime.fromisoformat(text.removesuffix(" UTC"))
    except ValueError:
        return max(0, now - _so_long(text, option))
    since_epoch = (found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH
    ns = (since_epoch.days * 86400 + since_epoch.seconds) * 10**9 + since_epoch.microseconds * 1000
    if ns < 0:
        raise refused(f"{text!r} is before 1970", option)
    return ns


def _so_long(text: str, option: str) -> int:
    with suppress(typer.BadParameter):
        return age(text, option)
    raise refused(f"{text!r} is no time: write 2026-11-24T10:00 (UTC), or 2h for so long ago", option)
