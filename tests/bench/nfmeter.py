"""NFStream as a flow meter. Rule: runs in a Python of its own that has it, knows nothing of this project.

No dissection, no timeout that could cut a flow of a capture, IP bytes; one line of JSON at the end.
"""

import json
import sys

from nfstream import NFStreamer  # type: ignore[import-not-found,unused-ignore]  # runs in a Python of its own

DAY = 86_400


def main(capture: str) -> None:
    """Print frames, IP bytes and one-way flows of a capture."""
    streamer = NFStreamer(
        source=capture,
        accounting_mode=1,
        n_dissections=0,
        statistical_analysis=False,
        decode_tunnels=False,
        idle_timeout=DAY,
        active_timeout=DAY,
    )
    frames = octets = tuples = 0
    for flow in streamer:
        frames += flow.bidirectional_packets
        octets += flow.bidirectional_bytes
        tuples += (flow.src2dst_packets > 0) + (flow.dst2src_packets > 0)
    print(json.dumps({"frames": frames, "ip_bytes": octets, "tuples": tuples}))


if __name__ == "__main__":
    main(sys.argv[1])
