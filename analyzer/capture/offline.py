"""Capture files to one-way rows. Rule: what the reader has counted, as a table; how its bytes came is
reading.py's, what they mean is the native reader's.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import IO, TYPE_CHECKING

import numpy as np

from analyzer.capture import _reader
from analyzer.capture.reading import MAX_ROWS, SEED, Early, Reading, counting, read_all, threads_of
from analyzer.capture.streams import Progress, no_progress
from analyzer.errors import CaptureError
from analyzer.rows import BY_IFINDEX, FRAGMENT, KEY, ROW, Coverage, Observer, OneWay, Rows, merge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt


def read_captures(
    paths: str | Path | Sequence[str | Path],
    *,
    interval: int = 0,
    progress: Progress = no_progress,
    names: Sequence[str] | None = None,
    max_rows: int = MAX_ROWS,
    threads: int | None = None,
    early: Early | None = None,
) -> OneWay:
    """Reads a capture file, or several at a time, to one table. ``-`` is standard input. One that is given
    twice is read once.

    `interval`: ns; rows are cut at its multiples, 0 for none. `names`: what to call the sources, by default
    :func:`source_names`. `max_rows`: of each source, 0 for no limit; packets of further 5-tuples are counted
    in the ledger's `overflow` and `inner_overflow`. `threads`: how many read at most; by default one for each
    core, and of a single large capture as many up to three: one unpacks, one parses, one counts. The table is
    the same, however many there are. `early`: one that is being read already.

    Formats: pcap (µs, ns, both byte orders, Kuznetzov), pcapng; plain or in gzip, zstd or lz4. Raises
    CaptureError where a file is missing or is no capture; one that is damaged further on is read up to there,
    and its ledger says so.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths  # a text is a sequence of texts, too
    if names is None:  # rows of one source add up
        paths = list({str(path): path for path in paths}.values())
    sources = list(names) if names is not None else source_names(paths)
    at_once, stop = max(1, min(len(sources), threads_of(threads))), Event()
    each = (interval, progress, max_rows, threads if at_once == 1 else threads_of(threads) // at_once)
    if at_once == 1:
        return merge([read_capture(p, n, *each, early) for p, n in zip(paths, sources, strict=True)])
    with ThreadPoolExecutor(at_once) as pool:
        jobs = [
            pool.submit(read_capture, p, n, *each, None, stop) for p, n in zip(paths, sources, strict=True)
        ]
        try:
            return merge([job.result() for job in jobs])
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def source_names(paths: Sequence[str | Path]) -> list[str]:
    """What to call each file: its own name, or the path as given where two files have the same name. A name
    that is no text (Linux allows any bytes) has question marks in it.
    """
    names = [Path(path).name or str(path) for path in paths]
    times = Counter(names)
    full = [name if times[name] == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [name.encode("utf-8", "replace").decode() for name in full]


def read_capture(
    path: str | Path,
    source: str | None = None,
    interval: int = 0,
    progress: Progress = no_progress,
    max_rows: int = MAX_ROWS,
    threads: int | None = None,
    early: Early | None = None,
    stop: Event | None = None,
) -> OneWay:
    """Reads one capture file; see :func:`read_captures`. `stop`: ends it earlier, where it is set."""
    name = source or str(path)
    if early and early.serves(path, interval, max_rows):
        return _table(early.whole(name, progress), interval)
    job = counting(name, interval, max_rows, threads, stop)
    read_all(job, path, progress)
    return _table(job, interval)


#: `struct kept` of the reader: time in ns, number in its file from 1, bytes of its block
KEPT = np.dtype([("time", "u8"), ("frame", "u8"), ("length", "u8")])


@dataclass(frozen=True)
class CutFrames:
    """Frames of one capture, in its order.

    `interfaces`: name and link type of each of the file's. `index`: shape (n,), dtype KEPT. Their blocks,
    pcapng's enhanced packet blocks in this machine's byte order, were written one after the other.
    """

    source: str
    interfaces: tuple[tuple[str, int], ...]
    index: npt.NDArray[np.void]


def cut_capture(
    path: str | Path,
    keys: npt.NDArray[np.void],
    blocks: IO[bytes],
    *,
    source: str | None = None,
    limit: int = 0,
    progress: Progress = no_progress,
) -> CutFrames:
    """Writes those frames of a capture file to `blocks`, an empty file, that belong to one-way 5-tuples, or
    in which ICMP quotes one.

    `keys`: shape (n,), dtype ROW, of which protocol, addresses, ports, tunnel and VNI count. `limit`: at most
    so many frames of each key, 0 for all. A fragment goes where its datagram goes, also where it comes before
    the one with the ports: then the file is read twice. Reads what :func:`read_capture` reads, and raises
    what it raises.
    """
    packed = np.ascontiguousarray(keys.view(np.uint8).reshape(len(keys), ROW.itemsize)[:, : KEY.itemsize])
    name = source or str(path)
    cut, late = _cut_once(path, name, packed, limit, np.zeros(0, np.uint64), blocks, progress)
    if not len(late):
        return cut
    blocks.seek(0)
    blocks.truncate()
    return _cut_once(path, name, packed, limit, np.unique(late), blocks, no_progress)[0]


def _cut_once(
    path: str | Path,
    source: str,
    keys: npt.NDArray[np.uint8],
    limit: int,
    also: npt.NDArray[np.uint64],
    blocks: IO[bytes],
    progress: Progress,
) -> tuple[CutFrames, npt.NDArray[np.uint64]]:
    """The frames, and the numbers of those that were passed over before it was known that they belong."""
    index = [np.zeros(0, KEPT)]

    def drain() -> None:
        frames, kept = job.reader.take_cut()
        if memoryview(kept).nbytes:
            blocks.write(memoryview(frames))
            index.append(np.frombuffer(memoryview(kept), KEPT))

    job = Reading(source, _reader.Reader(SEED, 0), drain)
    job.reader.select(keys.data, limit, also.data)
    read_all(job, path, progress)
    _damage(job, job.reader.ledger())
    late = np.frombuffer(memoryview(job.reader.late()), np.uint64)
    return CutFrames(source, tuple(_described(job.reader)), np.concatenate(index)), late


def _described(reader: _reader.Reader) -> Iterator[tuple[str, int]]:
    names, links = reader.interfaces(), reader.links()
    for number, link in enumerate(links):
        yield names[number] if number < len(names) else "", link & 0xFFFF


def _table(job: Reading, interval: int) -> OneWay:
    ledger = job.reader.ledger()
    damage = _damage(job, ledger)
    coverage = Coverage(
        job.source,
        start=ledger["start"] if ledger["end"] else 0,
        damage=damage,
        **{name: value for name, value in ledger.items() if name not in _OF_THE_FILE},
    )
    rows = np.frombuffer(memoryview(job.reader.take_rows()), ROW)
    fragments = np.frombuffer(memoryview(job.reader.fragments()), FRAGMENT)
    table = OneWay(rows, (), (coverage,), fragments, interval)
    return _named(table, job.source, job.reader.interfaces())


#: what the reader tells of bytes rather than of frames
_OF_THE_FILE = ("start", "offset", "rest", "fault", "format", "whole")


def _damage(job: Reading, ledger: dict[str, int | str]) -> str:
    """What is wrong with the file; raises CaptureError where not even its header could be read."""
    place = f"frame {int(ledger['frames']) + 1}, byte {ledger['offset']}"
    if ledger["fault"]:
        damage = f"{place}: {ledger['fault']}"
    elif not ledger["whole"]:
        damage = f"{place}: the compressed stream is damaged: it ends too early"
    elif ledger["rest"]:
        damage = f"{place}: the file ends within a record, {ledger['rest']} bytes into it"
    else:
        damage = ""
    if not ledger["format"] or (damage and not ledger["frames"]):
        raise CaptureError(
            damage or "the file is empty",
            where=job.source,
            next_step="give a pcap or pcapng file, plain or in gzip, zstd or lz4",
        )
    return damage


def _named(table: OneWay, source: str, names: list[str]) -> OneWay:
    """Gives the file's interface numbers their names, where the file can tell interfaces apart.

    Never by how many were seen: then a part of a capture would name the same interface otherwise than the
    whole does.
    """
    numbers = np.concatenate([table.rows["interface"], table.fragments["interface"]])
    if not len(numbers):
        return replace(table, observers=(Observer(source),))
    if not numbers.any():  # as in most captures: nothing is to be numbered anew
        return replace(table, observers=(Observer(source, _label(0, names)),))
    if numbers.min() == numbers.max():
        seen, inverse = numbers[:1], np.zeros(len(numbers), np.intp)
    else:
        seen, inverse = np.unique(numbers, return_inverse=True)
    observers = [Observer(source, _label(int(n), names)) for n in seen]
    known = dict.fromkeys(observers)
    position = {observer: i for i, observer in enumerate(known)}
    index = np.array([position[o] for o in observers], np.uint32)
    return replace(
        table,
        rows=_with_interface(table.rows, index[inverse][: len(table.rows)]),
        fragments=_with_interface(table.fragments, index[inverse][len(table.rows) :]),
        observers=tuple(known),
    )


def _label(number: int, names: list[str]) -> str:
    return _interface_name(number, names) if len(names) > 1 or number & BY_IFINDEX else ""


def _interface_name(number: int, names: list[str]) -> str:
    if number & BY_IFINDEX:
        return f"if{number & ~BY_IFINDEX}"
    name = names[number] if number < len(names) else ""
    return f"{number}-{name}" if name else str(number)


def _with_interface(rows: Rows, numbers: np.ndarray[tuple[int, ...], np.dtype[np.uint32]]) -> Rows:
    if np.array_equal(rows["interface"], numbers):
        return rows
    rows = rows.copy()
    rows["interface"] = numbers
    return rows
