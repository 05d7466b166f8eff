"""Whether workers get on with it. Rule: knows what a Dask scheduler says of its workers, tells it, and says
when nothing more can come; starts no worker and ends none.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

from analyzer import waiting
from analyzer.errors import LiveError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

T = TypeVar("T")
STEP = 5.0  # s between two looks, and in which a scheduler must answer one
LIMIT = 120.0  # s after which a scheduler that is silent, or has no worker that can work, is given up
_NAMED = 3  # workers that a line names


def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task that keeps its error to itself where nobody waits for it any more, as after Ctrl-C."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class Watch:
    """Looks after one run. `scheduler`: what speaks to it, as `Client.scheduler`; `where`: its address."""

    def __init__(self, scheduler: Any, where: str) -> None:
        self._scheduler, self._where = scheduler, where
        now = time.monotonic()
        self._moved = self._answered = self._able = now
        self._fewest = -1  # tasks left
        self._heard: dict[str, tuple[float, float]] = {}  # what the scheduler said last, and since when
        self._ended: dict[str, float] = {}  # workers that went away
        self._pace = waiting.Pace()

    def count(self, left: int) -> None:
        """So many tasks are left."""
        if not 0 <= self._fewest <= left:
            self._fewest, self._moved = left, time.monotonic()
            self._pace.restart(self._moved)

    async def until(self, done: asyncio.Future[Any]) -> None:
        """Waits for it. Raises LiveError where it would wait for ever."""
        try:
            while not (await asyncio.wait([done], timeout=STEP))[0]:
                await self._look()
            done.result()
        finally:
            done.cancel()

    async def _look(self) -> None:
        try:
            known = await asyncio.wait_for(self._scheduler.identity(n_workers=-1), STEP)
        except TimeoutError:
            self._say_silent()
            return
        except OSError:  # it went away, which who waits for results learns too
            return
        now = time.monotonic()
        self._answered = now
        self._note(known["workers"], now)
        silent = {name: now - at for name, (_, at) in self._heard.items() if now - at >= waiting.PATIENCE}
        paused = [name for name, one in known["workers"].items() if one["status"] == "paused"]
        if set(self._heard) - set(silent) - set(paused):
            self._able = now
        words = [*_of_silent(silent), *_of_paused(paused), *self._of_ended(now)]
        if not self._heard:
            words.append(f"{self._where} has no workers")
        if now - self._able >= LIMIT:
            raise LiveError(
                f"no worker can work, for {now - self._able:.0f} s: {'; '.join(words)}",
                where=self._where,
                next_step="end and start the workers that are named, give them more memory where they are "
                "out of it (or fewer threads each), and run this again",
            )
        if self._pace.due(now):
            since = f"no task is done since {waiting.moment(now - self._moved)}, {self._fewest} are left"
            waiting.tell("; ".join([since, *(words or _of_busy(known["workers"]))]))

    def _say_silent(self) -> None:
        now = time.monotonic()
        silent = now - self._answered
        if silent >= LIMIT:
            raise LiveError(
                f"the scheduler has not answered for {silent:.0f} s",
                where=self._where,
                next_step="look whether it is stopped or out of memory, start it again, and run this again",
            )
        if self._pace.due(now):
            since = waiting.moment(silent)
            waiting.tell(f"waiting for the scheduler at {self._where}, which has not answered since {since}")

    def _note(self, workers: dict[str, Any], now: float) -> None:
        for name, one in workers.items():
            if self._heard.get(name, (None,))[0] != one["last_seen"]:
                self._heard[name] = one["last_seen"], now
        for name in set(self._heard) - set(workers):
            del self._heard[name]
            self._ended[name] = now

    def _of_ended(self, now: float) -> list[str]:
        if not self._ended:
            return []
        since = waiting.moment(now - min(self._ended.values()))
        return [f"{len(self._ended)} workers ended since {since}, most often for want of memory"]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _of_silent(silent: dict[str, float]) -> Iterable[str]:
    if silent:
        since = waiting.moment(max(silent.values()))
        yield f"waiting for {_named(sorted(silent))}, not heard from since {since}"


def _of_paused(paused: Sequence[str]) -> Iterable[str]:
    if paused:
        yield f"{_named(sorted(paused))} paused, since the memory is full"


def _of_busy(workers: dict[str, Any]) -> list[str]:
    busy = sorted(name for name, one in workers.items() if one["metrics"].get("executing"))
    return [f"working: {_named(busy)}"] if busy else ["no worker has a task"]
