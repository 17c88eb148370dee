"""A small Hugging Face Hub over HTTP: the real client speaks to it, and faults are injected by rule.

In a test: `with LoopbackHub(tmp_path) as hub: ... hub.url`. On its own: `python -m tests.fakes.loopback_hub --port 0
--root DIR` prints its address, and GET /_log lists the requests. It speaks huggingface_hub 2.4.0's side of the
protocol; agreement with it is not agreement with huggingface.co.
"""

import argparse
from pathlib import Path

from tests.fakes.loopback.server import Fault, LoopbackHub
from tests.fakes.loopback.store import READ, SCOPED, TOKENS, UNKNOWN, WRITE

__all__ = ["READ", "SCOPED", "TOKENS", "UNKNOWN", "WRITE", "Fault", "LoopbackHub"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--root", type=Path, required=True, help="holds the content between runs")
    arguments = parser.parse_args()
    hub = LoopbackHub(arguments.root, arguments.port)
    print(hub.url, flush=True)
    hub.serve()


if __name__ == "__main__":
    main()
