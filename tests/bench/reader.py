"""The packet reader alone, in a process of its own. Rule: one read, timed from inside; no pairing, no output.

``python -P reader.py CAPTURE`` prints one line of JSON. One thread: it stands beside a loop that has one.
With ``all`` behind the capture it has as many as the command line gives it.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from typing import Any

from analyzer.capture.offline import read_capture


def main(capture: str, threads: int | None) -> None:
    """Print seconds of one read, and what it counted outside of tunnels."""
    words: dict[str, Any] = (
        {"threads": threads} if "threads" in inspect.signature(read_capture).parameters else {}
    )
    begin = time.perf_counter()
    table = read_capture(capture, **words)
    seconds = time.perf_counter() - begin
    outer = table.rows[table.rows["tunnel"] == 0]
    counts = {name: int(outer[name].sum()) for name in ("packets", "bytes")}
    print(
        json.dumps(
            {
                "frames": counts["packets"],
                "ip_bytes": counts["bytes"],
                "tuples": len(outer),
                "one_way_rows": len(table.rows),
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], None if sys.argv[2:] == ["all"] else 1)
