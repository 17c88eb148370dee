"""Answer prompts with the serving code in a process of its own, and print time and memory.

    python -m bundling.probe --bundle DIR --weights int8 --prompts FILE --output FILE [--streams 4]

A prompt is a JSON line with `id` and `messages`. Each answer becomes a line of --output: id, prediction (stripped, as
the evaluation strips it), tokens and truncated. The figures are printed as one JSON object.
"""

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from files import JsonLine, read_lines, write_lines
from serving.bundle import Bundle
from serving.engine import Engine, Options

_SECONDS = 3600  # for one answer; it shall end by itself
PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--bundle", type=Path, required=True, help="a bundle, or a release")
PARSER.add_argument("--weights", default="", help="int8 or int4; else the released ones")
PARSER.add_argument("--prompts", type=Path, required=True)
PARSER.add_argument("--output", type=Path, required=True)
PARSER.add_argument("--streams", type=int, default=1, help="answers under way at once")
PARSER.add_argument("--threads", type=int, default=0, help="0: the engine decides")
PARSER.add_argument("--max-new-tokens", type=int, default=0, help="0: as the model states")
PARSER.add_argument("--endless", action="store_true", help="answer on beyond the stop token, for timing")


@dataclass(frozen=True)
class Figures:
    """What answering took.

    tokens_per_second: all answers' tokens over the seconds from the first request to the last token, prompts included.
    first_token_seconds: the median over the answers. peak_mib: of the app's side and the engine's process together.
    """

    engine: str
    load_seconds: float
    first_token_seconds: float
    tokens_per_second: float
    tokens: int
    peak_mib: float


class Asking:
    """Answers prompts, several at once."""

    def __init__(self, bundle: Bundle, engine: Engine, options: Options, streams: int) -> None:
        self.bundle, self.engine, self.options = bundle, engine, options
        self.first_seconds: list[float] = []
        self._places = asyncio.Semaphore(streams)

    async def all(self, rows: list[JsonLine]) -> list[JsonLine]:
        """In the order of the rows."""
        return list(await asyncio.gather(*(self.one(row) for row in rows)))

    async def one(self, row: JsonLine) -> JsonLine:
        """As a line of predictions."""
        async with self._places:
            begun, tokens = time.monotonic(), list[int]()
            generation = self.engine.start(self.bundle.encode(row["messages"]), self.options)
            async for found in generation.tokens(_SECONDS):
                if not tokens:
                    self.first_seconds.append(time.monotonic() - begun)
                tokens += found
        return {"id": row["id"], "prediction": self.bundle.decoder()(tokens).strip(), "tokens": tokens,
                "truncated": generation.finish_reason == "length"}


async def ask(flags: argparse.Namespace, bundle: Bundle) -> tuple[list[JsonLine], Figures]:
    """Load the weights, answer one prompt to warm up, then all of them."""
    rows = read_lines(flags.prompts)
    begun = time.monotonic()
    engine = await Engine.open(bundle.folder / flags.weights, threads=flags.threads, concurrency=flags.streams)
    loaded = time.monotonic() - begun
    stops = [] if flags.endless else bundle.stop_tokens
    asking = Asking(bundle, engine, Options(flags.max_new_tokens or bundle.max_new_tokens, stops, 0.0, 1.0, 0),
                    flags.streams)
    await asking.all(rows[:1])
    asking.first_seconds.clear()
    begun = time.monotonic()
    answers = await asking.all(rows)
    seconds = time.monotonic() - begun
    tokens = sum(len(answer["tokens"]) for answer in answers)
    figures = Figures(engine.name, loaded, statistics.median(asking.first_seconds or [0.0]), tokens / seconds, tokens,
                      peak_mib("self") + peak_mib(engine.pid))
    await engine.close()
    return answers, figures


def peak_mib(process: int | str) -> float:
    """The most that was ever resident of a process, mapped weights included.

    Not ru_maxrss, which begins with the peak of whoever started it.
    """
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else 0.0


def main() -> int:
    """Write the answers, print the figures."""
    flags = PARSER.parse_args()
    answers, figures = asyncio.run(ask(flags, Bundle.open(flags.bundle)))
    write_lines(flags.output, answers)
    sys.stdout.write(json.dumps(asdict(figures)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
