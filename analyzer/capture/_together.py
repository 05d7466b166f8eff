"""One capture read by several threads. Rule: who reads which piece of the file, and when; that the result is
that of one thread is the native reader's business (`_share.h`).

Each thread takes the next piece of the file and reads its bytes. When those before it are walked over, it
puts what they left of a record in front, has the first reader walk over its own, lets the next thread in, and
counts the frames with its own reader. So there is no thread that only hands out, copying is shared too, and
what goes one after the other is short. The first reader is used by who holds the lock.
"""

from __future__ import annotations

import os
from itertools import count
from threading import Condition, Thread
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from analyzer.capture._reader import Reader

#: bytes of a piece, and before it in its buffer room for the beginning of a record
PIECE, ROOM = 1 << 20, 64 << 10
#: threads of one file at most, as walking takes a twentieth of the time; bytes for which one more is worth it
MOST, SHARE = 8, 4 << 20


class Pieces(Protocol):
    """What is read. `in_turn`: a piece can be read only after the one before it."""

    in_turn: bool

    def fill(self, number: int, view: memoryview) -> int:
        """Bytes put into the view; fewer than a piece only at the end."""


class File:
    """A file, from byte `start` on."""

    in_turn = False

    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor, self._start = descriptor, start

    def fill(self, number: int, view: memoryview) -> int:
        at, filled = self._start + number * PIECE, 0
        while got := os.preadv(self._descriptor, [view[filled:]], at + filled):
            filled += got
        return filled


class Together:
    """A capture while several threads read it. `handed`: how many of its bytes are read; `rest`: the last of
    them, which are no whole record.
    """

    def __init__(self, first: Reader, pieces: Pieces, progress: Callable[[int], None], max_rows: int) -> None:
        self.rest, self.handed = b"", 0
        self._first, self._pieces, self._progress, self._max_rows = first, pieces, progress, max_rows
        self._numbers, self._turn, self._stopped = count(), 0, False
        self._settled: set[int] = set()  # pieces of which all is counted, after the first one that is not:
        self._open = 0
        self._rows: dict[Reader, int] = {}
        self._error: BaseException | None = None
        self._changed = Condition()

    def read(self, workers: Sequence[Reader]) -> None:
        """Until the end, or a fault of the file, or so many rows that one reader must go on alone. The first
        worker is of the calling thread.
        """
        threads = [Thread(target=self._work, args=[worker], name="read") for worker in workers[1:]]
        for thread in threads:
            thread.start()
        try:
            self._work(workers[0])
        finally:
            self._wait_for(threads)
        if self._error:
            raise self._error
        self._first.join(workers)

    def _wait_for(self, threads: list[Thread]) -> None:
        """Where waiting is interrupted, they end before that is told."""
        try:
            for thread in threads:
                thread.join()
        finally:
            self._stop()
            for thread in threads:
                thread.join()

    def _work(self, worker: Reader) -> None:
        try:
            self._count_pieces(worker)
        except BaseException as error:  # raised again in the thread that called
            self._error = self._error or error
            self._stop()

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _count_pieces(self, worker: Reader) -> None:
        buffer = memoryview(bytearray(ROOM + PIECE))
        before: int | None = None
        for number in self._numbers:
            length = 0 if self._pieces.in_turn else self._pieces.fill(number, buffer[ROOM:])
            with self._changed:
                if before is not None:
                    self._settle(worker, before)
                if not self._may_walk(number):
                    return
                if self._pieces.in_turn:
                    length = self._pieces.fill(number, buffer[ROOM:])
                piece, used = self._walk(worker, buffer, length)
                self._turn += 1
                self._changed.notify_all()
            if worker.consume(piece) != used:
                raise RuntimeError("a piece was not read as it was walked over")
            before = number

    def _may_walk(self, number: int) -> bool:
        self._changed.wait_for(lambda: self._stopped or self._turn == number)
        return not self._stopped

    def _walk(self, worker: Reader, buffer: memoryview, length: int) -> tuple[memoryview, int]:
        """A piece with the rest before it, and how much of that is whole records."""
        start = ROOM - len(self.rest)
        if start >= 0:
            buffer[start:ROOM] = self.rest
            view = buffer[start : ROOM + length]
        else:
            view = memoryview(self.rest + buffer[ROOM : ROOM + length])
        used = self._first.hand(worker, view)
        self.rest, self.handed = bytes(view[used:]), self.handed + length
        self._progress(length)
        self._stopped = self._stopped or length < PIECE or bool(self._first.ledger()["fault"])
        return view, used

    def _settle(self, worker: Reader, piece: int) -> None:
        """A piece's fragments are followed when those of all pieces before it were."""
        if worker.waiting():
            self._changed.wait_for(lambda: self._error or self._open == piece)
            self._first.replay(worker)
        self._settled.add(piece)
        while self._open in self._settled:
            self._settled.remove(self._open)
            self._open += 1
        self._rows[worker] = worker.count()
        # half of them: the joined table lies beside the others for a moment
        if 0 < self._max_rows <= 2 * (sum(self._rows.values()) + self._first.count()):
            self._stopped = True
        self._changed.notify_all()
