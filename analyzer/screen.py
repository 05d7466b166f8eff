"""What a live capture shows. Rule: parts and alerts in, a terminal's table or plain lines out; captures
nothing.

Alerts are data and go to standard output; all else goes to standard error. Who reads either of them may
leave: that ends the capture in order. Or he stands still: nothing waits for him but alerts, and these not
beyond the end.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import threading
from collections import Counter, deque
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from analyzer.console import STYLES, err, printable
from analyzer.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from analyzer.capture.alerts import Alert
    from analyzer.capture.live import Collector, Part
    from analyzer.cluster import Cluster
    from analyzer.rows import Coverage
    from analyzer.spec import Spec

_BUSIEST, _NEWEST, _NOTES = 12, 8, 3
#: lines of a screen that are neither a pair, an alert nor a note: what is watched, losses, verdicts, heads,
#: and where the cursor is
_FRAME = 6
_LOSSES = (
    "overflow", "inner_overflow", "truncated", "malformed", "unsupported", "fragment",
    "inner_truncated", "inner_malformed", "inner_fragment", "alerts_lost", "drops_lost",
)  # fmt: skip
#: seconds in which who reads is expected to read on
_PATIENCE = 1.0
_PAIR = ("client_role", "server_role", "rule", "verdict")


def amount(number: float) -> str:
    """1234567 as `1.2 M`."""
    for unit in ("", " k", " M", " G"):
        if number < 999.5:
            return f"{number:.0f}{unit}" if not unit or number >= 99.95 else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} T"


def losses(ledger: Coverage) -> str:
    """What of a ledger was not counted in a flow though it should be; `nothing lost` where all was."""
    lost = [f"{getattr(ledger, name)} {name.replace('_', ' ')}" for name in _LOSSES if getattr(ledger, name)]
    return ", ".join(lost) or "nothing lost"


def alerts_of(collector: Collector) -> str:
    """How many alerts there were, by what they say."""
    counts = ", ".join(f"{count} {name}" for name, count in sorted(collector.alerts.items())) or "none"
    held = sum(collector.flood.held.values())
    return f"alerts: {counts}{f' ({held} of them only counted)' if held else ''}"


def watched(collector: Collector) -> str:
    """What is watched, and how to end it."""
    return f"{collector.node}: capturing on {', '.join(collector.interfaces)}; Ctrl-C ends it"


def ended(collector: Collector) -> Iterator[str]:
    """The summary of a capture, in lines."""
    total = collector.total
    yield (
        f"{collector.node}: {total.frames} frames on {', '.join(collector.interfaces)}: "
        f"{total.flow} in flows, {total.not_ip} not IP, {losses(total)}"
    )
    yield alerts_of(collector)
    for what in collector.missing:
        yield f"not captured: {what}"
    yield f"wrote {collector.parts} part{'' if collector.parts == 1 else 's'} to {collector.order.folder}"


def write(stream: IO[str], text: str) -> bool:
    """A line, at once. False where nobody reads the stream any more: what else is written there gets lost.

    Raises OSError where it cannot be written for another reason (a full disk).
    """
    try:
        print(printable(text), file=stream, flush=True)
    except OSError as error:
        left = _nobody_reads(stream, error)
        _silence(stream)
        if not left:
            raise
        return False
    return True


def takes(stream: IO[str], seconds: float) -> bool:
    """Whether a line can be written without waiting, now or before the time is over: a pipe or a terminal
    that nobody reads (Ctrl-S) takes none.
    """
    asked = select.poll()
    try:
        asked.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # closed, or none of the system's
        return True
    return bool(asked.poll(seconds * 1000))


def _silence(stream: IO[str]) -> None:
    """What is written from now on goes nowhere; the interpreter flushes again at exit."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _nobody_reads(stream: IO[str], error: OSError) -> bool:
    """A pipe says so by EPIPE. A terminal that hung up, as when a connection to the node ends, says EIO; so
    does a file on a broken disk, which is no such thing.
    """
    if error.errno == errno.EIO:
        return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    return error.errno == errno.EPIPE


def say_all(lines: Iterable[str]) -> None:
    """Lines on standard error, after a capture; as many as are read."""
    for line in lines:
        if not takes(sys.stderr, _PATIENCE):
            return
        write(sys.stderr, line)


class Lines:
    """Plain lines: alerts as they come, one line for each interval."""

    def __init__(self) -> None:
        self._collector: Collector | None = None
        self._untold = self._unsaid = 0

    def started(self, capture: Collector) -> None:
        """Says what is watched."""
        self._collector = capture
        self.note(watched(capture))

    def alert(self, alert: Alert) -> None:
        """Prints it at once, or as soon as somebody reads; once the capture ends, not at all where nobody
        does. Raises CaptureError where it cannot be written, though somebody reads.
        """
        while not takes(sys.stdout, 0 if self._untold else _PATIENCE):
            if self._collector is not None and self._collector.stop.is_set():
                self._untold += 1
                if self._untold == 1:
                    self.note("nobody reads standard output: alerts of the end are only counted")
                return
        try:
            self._write(sys.stdout, alert.line)
        except OSError as error:
            raise CaptureError(
                f"alerts cannot be written any more: {error.strerror or error}", where="standard output"
            ) from error

    def part(self, part: Part) -> None:
        """Says how much it was."""
        ledger = part.ledger
        counts = f"{len(part.rows.rows)} rows, {ledger.frames} frames, {ledger.not_ip} not IP"
        self.note(f"{part.path.name}: {counts}, {losses(ledger)}")

    def note(self, text: str) -> None:
        """Prints it, unless nobody reads."""
        if not takes(sys.stderr, 0 if self._unsaid else _PATIENCE):
            self._unsaid += 1
            return
        if self._unsaid:
            left_out, self._unsaid = self._unsaid, 0
            self._write(sys.stderr, f"nobody read: left out {left_out} lines")
        self._write(sys.stderr, text)

    def _write(self, stream: IO[str], text: str) -> None:
        if not write(stream, text) and self._collector is not None:
            self._collector.stop.set()


class Screen:
    """A table that is drawn anew: busiest role pairs and rules, verdicts, newest alerts, losses. Alerts are
    told in another thread than the rest.
    """

    def __init__(self, live: Live, cluster: Cluster | None, spec: Spec) -> None:
        self._live, self._cluster, self._spec = live, cluster, spec
        self._lock = threading.Lock()
        self._on_terminal = sys.stderr.isatty()
        self._alerts: deque[Alert] = deque(maxlen=_NEWEST)
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._pairs: Counter[tuple[str, ...]] = Counter()
        self._flows: Counter[tuple[str, ...]] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._head = "starting: the program is being compiled"
        self._collector: Collector | None = None
        with self._lock:
            self._draw()

    def started(self, capture: Collector) -> None:
        """Says what is watched."""
        with self._lock:
            self._collector, self._head = capture, watched(capture)
            self._draw()

    def alert(self, alert: Alert) -> None:
        """Shows it at once."""
        with self._lock:
            self._alerts.append(alert)
            self._draw()

    def note(self, text: str) -> None:
        """Shows it below the tables."""
        with self._lock:
            self._notes.append(text)
            self._draw()

    def part(self, part: Part) -> None:
        """Judges the interval and adds it up."""
        octets, flows, verdicts = self._counted(part)
        with self._lock:
            self._pairs.update(octets)
            self._flows, self._verdicts = flows, verdicts
            self._draw()

    def _counted(self, part: Part) -> tuple[Counter[tuple[str, ...]], Counter[tuple[str, ...]], Counter[str]]:
        """Of one interval: bytes and flows by pair, flows by verdict."""
        from analyzer.flows import pair  # noqa: PLC0415
        from analyzer.spec import server_ports  # noqa: PLC0415  pandas, and only where it is shown
        from analyzer.verdict import judge  # noqa: PLC0415

        flows, keys, verdicts = (
            pair(part.rows, server_ports(self._spec)),
            ["protocol", "server_port"],
            Counter[str](),
        )
        if self._cluster is not None:
            flows, keys = judge(flows, self._cluster, self._spec), list(_PAIR)
            flows = flows[flows["scope"].isin(("inter-node", "external"))]
            verdicts.update(flows["verdict"].astype(str).tolist())
        octets, number = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
        sizes = (flows["bytes_out"] + flows["bytes_in"]).tolist()
        for *key, size in zip(*(flows[name].astype(str) for name in keys), sizes, strict=True):
            octets[tuple(key)] += size
            number[tuple(key)] += 1
        return octets, number, verdicts

    # ---- drawing, with the lock held ----

    def _draw(self) -> None:
        if self._on_terminal and not takes(sys.stderr, 0):
            return
        self._live.update(Group(*self._parts()), refresh=True)
        if self._collector is not None and self._on_terminal and not sys.stderr.isatty():  # it hung up
            for stream in (sys.stdout, sys.stderr):
                _silence(stream)
            self._collector.stop.set()

    def _parts(self) -> Iterator[Any]:
        yield _line(self._head, "bold")
        if self._collector is not None:
            total = self._collector.total
            yield _line(f"{amount(total.frames)} frames, {amount(total.flow)} in flows; {losses(total)}")
        if self._verdicts:
            counts = ((f"{n} {name}  ", STYLES.get(name, "")) for name, n in self._verdicts.most_common())
            yield Text.assemble("flows now: ", *counts)
        room = self._live.console.height - _FRAME
        notes, room = self._newest([Text(printable(text), "dim") for text in self._notes], room - 1)
        alerts, room = self._newest([Text(printable(alert.line), "red") for alert in self._alerts], room)
        yield self._busiest(max(1, min(_BUSIEST, room + 1)))
        if alerts and self._collector is not None:
            yield _line(alerts_of(self._collector), "bold")
        yield from alerts
        yield from notes

    def _newest(self, texts: list[Text], room: int) -> tuple[list[Text], int]:
        """The last ones that fit so many lines of the screen, and how many lines are left then."""
        console, fitting = self._live.console, []
        for text in reversed(texts):
            needed = len(text.wrap(console, console.width))
            if needed > room:
                break
            fitting.append(text)
            room -= needed
        return fitting[::-1], room

    def _busiest(self, pairs: int) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        names = ("protocol", "port") if self._cluster is None else ("client", "server", "rule", "verdict")
        for name in names:
            table.add_column(name, no_wrap=True)
        table.add_column("flows now", justify="right", no_wrap=True)
        table.add_column("bytes", justify="right", no_wrap=True)
        for key, octets in self._pairs.most_common(pairs):
            cells = [Text(printable(text or "-"), STYLES.get(text, "")) for text in key]
            table.add_row(*cells, str(self._flows[key]), amount(octets))
        return table


def _line(text: str, style: str = "") -> Text:
    """One line of the screen, however narrow that is."""
    return Text(printable(text), style, no_wrap=True, overflow="ellipsis")


@contextmanager
def shown(cluster: Cluster | None, spec: Spec) -> Iterator[Lines | Screen]:
    """A screen where standard output and standard error are terminals that can show one, else lines."""
    terminals = all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
    if not terminals or err().is_dumb_terminal:
        yield Lines()
        return
    console = Console(stderr=True, highlight=False)  # that of err() folds no line
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield Screen(live, cluster, spec)
    write(sys.stdout, "")
