"""Waiting that is told of. Rule: says what is waited for and since when, in the log `analyzer`, which a
terminal shows; ends no wait, and knows neither Dask nor a store.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 15.0  # s of silence before it is told, and then twice as long each time
_LONGEST = 240.0  # s between two lines of one wait


def tell(words: str) -> None:
    """One line."""
    plain = "".join(ch if ch.isprintable() else "?" for ch in words)
    logging.getLogger("analyzer").warning("rke2-flows: %s", plain)


def moment(ago: float = 0) -> str:
    """The time of day so many seconds ago."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() - ago))


class Pace:
    """When it is time for another line. `due` is asked with what :func:`time.monotonic` says."""

    def __init__(self) -> None:
        self.restart(time.monotonic())

    def restart(self, now: float) -> None:
        """Something came."""
        self._next, self._step = now + PATIENCE, PATIENCE

    def due(self, now: float) -> bool:
        """Whether a line is due now, which is then the last one."""
        if now < self._next:
            return False
        self._step = min(2 * self._step, _LONGEST)
        self._next = now + self._step
        return True


@contextmanager
def told(what: str) -> Iterator[None]:
    """Says that `what` is waited for as long as that lasts, from :data:`PATIENCE` on."""
    ended, begin = threading.Event(), moment()

    def say() -> None:
        pace = Pace()
        while not ended.wait(PATIENCE):
            if pace.due(time.monotonic()):
                tell(f"waiting for {what} since {begin}")

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
