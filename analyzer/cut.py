"""A finding's own frames, out of the captures that it was found in. Rule: finding → 5-tuples → frames → one
pcapng; judges nothing, and looks into no frame.

The captures are read a second time, by the native reader, which keeps the frames of a set of one-way
5-tuples. What is written is what was captured: all bytes, times to the nanosecond, link type; an interface
for each capture, or for each of its interfaces, named after it. Frames of several captures are in the order
of their times. What cannot be kept: the options of pcapng's packets, and that a record had no time (it gets
the epoch's).
"""

from __future__ import annotations

import io
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analyzer.addresses import is_address
from analyzer.capture.offline import CutFrames, cut_capture, source_names
from analyzer.capture.pcapng import Writer
from analyzer.errors import CaptureError
from analyzer.evidence import Evidence
from analyzer.flows import unpair
from analyzer.rows import NO_TIME, Observer
from analyzer.store import FLOW_FILES, expand, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd

    from analyzer.analysis import Analysis
    from analyzer.capture.streams import Progress
    from analyzer.rows import Rows

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Cut:
    """What a cut holds, frame by frame in its order: `source` indexes `sources`, `frame` is the number in
    there, from 1. `shortened`: frames that the capture's snaplen had cut.
    """

    sources: tuple[str, ...]
    source: Indices
    frame: npt.NDArray[np.uint64]
    shortened: int

    def __len__(self) -> int:
        return len(self.frame)

    def place(self, number: int) -> str:
        """Where the frame with this number in the cut, from 1, stands in the captures."""
        return f"{self.sources[self.source[number - 1]]} {int(self.frame[number - 1])}"

    def by_source(self) -> dict[str, int]:
        """Frames of each capture that has some."""
        counts = np.bincount(self.source, minlength=len(self.sources)).tolist()
        return {name: count for name, count in zip(self.sources, counts, strict=True) if count}


# ---- what to cut ----


def finding_of(analysis: Analysis, finding: str) -> dict[str, Any]:
    """The finding with this id, as a row of :data:`analyzer.findings.COLUMNS`. CaptureError where there is
    none.
    """
    found: list[dict[Any, Any]] = analysis.findings[analysis.findings["id"] == finding].to_dict("records")
    if not found:
        raise CaptureError(
            f"no finding {finding!r} in this input",
            next_step="`rke2-flows check` lists the findings of the same input, cluster and specification",
        )
    return found[0]


def flows_of(analysis: Analysis, finding: Mapping[str, Any]) -> pd.DataFrame:
    """The judged flows that a finding stands for, by start. CaptureError where it is about none."""
    evidence = Evidence.of(analysis)
    rows = evidence.rows_of(finding)
    if not len(rows):
        raise CaptureError(
            f"finding {finding['id']} ({finding['kind']}) is about no packets",
            next_step="choose one that is about flows",
        )
    return evidence.flows.iloc[rows]


def keys_of(flows: pd.DataFrame) -> Rows:
    """Both directions of flows as one-way rows: shape (n,), dtype ROW."""
    return unpair(flows).rows


def keep(inputs: Sequence[str | Path], output: str | Path) -> None:
    """Raises CaptureError where the output would take the place of a capture among the inputs."""
    target = Path(output)
    if target.is_file() and any(path.samefile(target) for path in captures_among(inputs) if path.exists()):
        raise CaptureError(
            "it is one of the captures to cut from", where=str(output), next_step="name another file"
        )


def captures_among(inputs: Sequence[str | Path]) -> list[Path]:
    """The capture files among inputs and in their folders. CaptureError where there is none, for an address,
    and for standard input, which cannot be read twice.
    """
    for address in filter(is_address, inputs):
        raise CaptureError(
            "packets are not taken from addresses", where=str(address), next_step="copy the captures here"
        )
    captures = [path for path in expand(inputs) if kind_of(path) not in FLOW_FILES]
    if any(str(path) == "-" for path in captures):
        raise CaptureError(
            "standard input can be read only once, and a cut reads twice",
            where="-",
            next_step="save the capture to a file",
        )
    if not captures:
        raise CaptureError(
            "flow tables hold no packets",
            where=", ".join(map(str, inputs)),
            next_step="give the captures themselves, or the file that `rke2-flows capture --pcap` wrote",
        )
    return captures


# ---- cutting ----


def cut(
    inputs: Sequence[str | Path],
    analysis: Analysis,
    finding: str,
    stream: IO[bytes],
    *,
    limit: int = 0,
    most: int = 0,
    progress: Progress = lambda _: None,
) -> Cut:
    """Writes a finding's frames as pcapng, among them ICMP messages that quote them and all fragments.

    `inputs`: those that `analysis` was made of; flow tables among them hold no packets and are passed over.
    `limit`: at most so many frames of each direction of a flow and capture. `most`: at most so many frames,
    the earliest. 0: all. Raises CaptureError where there is no such finding and where no frame of it is in
    the inputs; nothing has been written then.
    """
    flows = flows_of(analysis, finding_of(analysis, finding))
    captures = captures_among(inputs)
    keys = keys_of(flows)
    with ExitStack() as stack, _told():
        parts = [
            _Part(cut_capture(path, keys, blocks, source=name, limit=limit, progress=progress), blocks)
            for path, name in zip(captures, source_names(captures), strict=True)
            for blocks in [stack.enter_context(tempfile.TemporaryFile(prefix="rke2-flows-"))]
        ]
        if not sum(len(part.frames.index) for part in parts):
            raise CaptureError(
                f"none of the packets of {finding} is in there",
                where=", ".join(part.frames.source for part in parts),
                next_step="give the captures that the finding was made of",
            )
        return _assembled(parts, stream, most)


@contextmanager
def _told() -> Iterator[None]:
    """What a full disk says, of the temporary files too."""
    try:
        yield
    except OSError as error:
        raise CaptureError(
            f"the cut cannot be written: {error.strerror or error}",
            where=str(error.filename or ""),
            next_step="make room; TMPDIR says where temporary files go",
        ) from error


@dataclass(frozen=True)
class _Part:
    """The frames of one capture, and the file that their blocks are in."""

    frames: CutFrames
    blocks: IO[bytes]

    @property
    def interfaces(self) -> list[tuple[str, int]]:
        several = len(self.frames.interfaces) > 1
        return [
            (Observer(self.frames.source, name or str(i) if several else "").name, link)
            for i, (name, link) in enumerate(self.frames.interfaces)
        ]

    def words(self, first_interface: int) -> npt.NDArray[np.uint32]:
        """The blocks as 32-bit words, their interfaces numbered from `first_interface`."""
        self.blocks.flush()
        if not len(self.frames.index):
            return np.zeros(0, np.uint32)
        words: npt.NDArray[np.uint32] = np.memmap(self.blocks, np.uint32, "r+")
        words[self.starts() + _INTERFACE_WORD] += np.uint32(first_interface)
        return words

    def starts(self) -> Indices:
        """The word at which each block begins."""
        lengths = (self.frames.index["length"] // 4).astype(np.intp)
        return np.cumsum(lengths) - lengths


_INTERFACE_WORD, _CAPTURED_WORD, _WIRE_WORD = 2, 5, 6  # of an enhanced packet block


def _assembled(parts: Sequence[_Part], stream: IO[bytes], most: int) -> Cut:
    interfaces = [interface for part in parts for interface in part.interfaces]
    bases = np.cumsum([0, *(len(part.interfaces) for part in parts)]).tolist()
    words = [part.words(base) for part, base in zip(parts, bases, strict=False)]
    order = _order([part.frames.index["time"] for part in parts])[: most or None]
    _write_head(stream, interfaces)
    source = np.repeat(np.arange(len(parts)), [len(part.frames.index) for part in parts])[order]
    for number, begin, end in _runs(source, [part.frames.index["length"] // 4 for part in parts]):
        stream.write(words[number][begin:end].data.cast("B"))
    return Cut(
        tuple(part.frames.source for part in parts),
        source,
        np.concatenate([part.frames.index["frame"] for part in parts])[order],
        int(np.concatenate([*map(_shortened, parts, words)])[order].sum()),
    )


def _write_head(stream: IO[bytes], interfaces: Sequence[tuple[str, int]]) -> None:
    """Made apart, so that a full disk is told as it is everywhere here."""
    head = io.BytesIO()
    Writer(head, interfaces)
    stream.write(head.getvalue())


def _order(times: Sequence[npt.NDArray[np.uint64]]) -> Indices:
    """By time, but each capture's frames in their own order: as a merge takes them."""
    own = [np.maximum.accumulate(np.where(t == NO_TIME, np.uint64(0), t)) for t in times if len(t)]
    return np.argsort(np.concatenate(own), kind="stable")


def _runs(source: Indices, lengths: Sequence[npt.NDArray[np.uint64]]) -> Iterator[tuple[int, int, int]]:
    """Stretches of frames that follow each other in one part too: its number, first and last word."""
    ends = [np.concatenate([[0], np.cumsum(of, dtype=np.intp)]) for of in lengths]
    taken = [0] * len(lengths)
    starts = np.flatnonzero(np.diff(source, prepend=-1)).tolist()
    for begin, end in zip(starts, [*starts[1:], len(source)], strict=True):
        number = int(source[begin])
        first, taken[number] = taken[number], taken[number] + end - begin
        yield number, int(ends[number][first]), int(ends[number][taken[number]])


def _shortened(part: _Part, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    starts = part.starts()
    less: npt.NDArray[np.bool_] = words[starts + _CAPTURED_WORD] < words[starts + _WIRE_WORD]
    return less
