"""Reading that begins before its time. Rule: which large file will be read, by the words of the command line
and then by what they mean; a wrong guess costs a moment's reading, and never an answer.

To parse the words and to load what makes tables takes a quarter of a second, in which one core reads a GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from analyzer.capture.reading import Early, is_large, threads_of

_READING = ("flows", "check", "matrix", "explain", "cut")
#: words with which it would be read otherwise, or not at all
_OTHERWISE = ("--interval", "--scheduler", "--help")
_foreseen: list[Early] = []


@contextmanager
def foreseen(words: Sequence[str]) -> Iterator[None]:
    """Reads from now on what these words seem to ask for, should :func:`begun` want it."""
    path = _guess(words)
    if path is not None:
        _foreseen.append(Early(path, 0, _threads(words)))
    try:
        yield
    finally:
        while _foreseen:
            _foreseen.pop().stop()


def _guess(words: Sequence[str]) -> str | None:
    if not words or words[0] not in _READING or any(word.startswith(_OTHERWISE) for word in words):
        return None
    large = [word for word in words[1:] if is_large(word)]
    return large[0] if len(large) == 1 and _threads(words) != 1 else None


def _threads(words: Sequence[str]) -> int | None:
    """As asked for; 1 where that cannot be told, or where there is but one core."""
    given = [word.removeprefix("--threads=") for word in words if word.startswith("--threads=")]
    given += [after for word, after in pairwise(words) if word == "--threads"]
    if not given:
        return 1 if threads_of(None) == 1 else None
    return int(given[-1]) if given[-1].isdecimal() and int(given[-1]) else 1


@contextmanager
def begun(inputs: Sequence[str], interval: int, threads: int | None) -> Iterator[Early | None]:
    """Reads a single large file from now on, if that was not foreseen; None of other inputs, and where one
    thread is to read.
    """
    wanted = len(inputs) == 1 and threads_of(threads) > 1 and is_large(inputs[0])
    early = next((one for one in _foreseen if wanted and one.serves(inputs[0], interval)), None)
    for one in _foreseen:
        if one is not early:
            one.stop()
    if wanted and not early:
        early = Early(inputs[0], interval, threads)
    try:
        yield early
    finally:
        if early:
            early.stop()
