"""What a finding's packets carried. Rule: joins the cut and its dissection, and says in words what they rest
on; looks into no packet itself.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.capture.dissect import Dissection, dissect, tshark_path
from analyzer.cut import Cut, cut, finding_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from analyzer.analysis import Analysis
    from analyzer.capture.streams import Progress

#: frames of each direction of a flow: handshakes, requests and banners stand at its begin
FRAMES_OF_FLOW = 200
#: frames in all: tshark takes some 10 µs for each
FRAMES = 100_000


@dataclass(frozen=True)
class Explanation:
    """`facts`: :data:`analyzer.capture.dissect.COLUMNS`, with `capture, frame` in place of `frame`: where in
    the inputs it is first said.
    """

    finding: dict[str, Any]
    cut: Cut
    dissection: Dissection

    @property
    def facts(self) -> pd.DataFrame:
        """What was said, by whom, in how many flows, and where first."""
        found = self.dissection.facts
        places = [self.cut.place(number) for number in found["frame"]]
        return found.drop(columns="frame").assign(**{"capture, frame": places})

    def head(self) -> list[str]:
        """The finding, and what the facts rest on, a line each."""
        captures = ", ".join(f"{count} in {name}" for name, count in self.cut.by_source().items())
        lines = [
            f"{self.finding['severity']} {self.finding['id']}: {self.finding['title']}",
            f"{len(self.cut)} frames: {captures}",
        ]
        if self.cut.shortened:
            lines.append(
                f"{self.cut.shortened} of them were cut off by the snaplen when they were captured, and what "
                "was behind cannot be seen; `tcpdump -s 0` keeps all"
            )
        if len(self.cut) >= FRAMES:
            lines.append(f"it has more: these are the earliest {FRAMES}; `rke2-flows cut` writes all")
        if not self.dissection.whole:
            lines.append(
                f"of those that could say something the first {self.dissection.dissected} were dissected; "
                "`rke2-flows cut` writes all"
            )
        if self.dissection.facts.empty:
            lines.append("nothing in them is recognised: handshakes alone, or a protocol that is not known")
        return lines


def explain(
    inputs: Sequence[str | Path],
    analysis: Analysis,
    finding: str,
    *,
    progress: Progress = lambda _: None,
    dissected: Callable[[int, int], None] = lambda _, __: None,
) -> Explanation:
    """Dissects a finding's packets, of each flow the first ones.

    `inputs`: those that `analysis` was made of. `progress`: see :func:`analyzer.cut.cut`. `dissected`: is
    called with the number of the frame that was reached, and how many there are. Raises LiveError where
    tshark or pyshark is missing, and what :func:`analyzer.cut.cut` raises.
    """
    tshark_path()  # before the work, not after it
    with tempfile.TemporaryDirectory(prefix="rke2-flows-") as folder:
        small = Path(folder, "finding.pcapng")
        with small.open("wb") as stream:
            whole = cut(
                inputs, analysis, finding, stream, limit=FRAMES_OF_FLOW, most=FRAMES, progress=progress
            )
        found = dissect(small, progress=lambda number: dissected(number, len(whole)))
    return Explanation(finding_of(analysis, finding), whole, found)
