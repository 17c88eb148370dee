"""What every benchmark measures with: commands in processes of their own, interleaved rounds, spread, and JSON.

    measured = measure.run([sys.executable, "-m", "benchmarks.merge", "--side", "ours"])
    results = measure.interleave({"ours": ..., "theirs": ...}, rounds=5)
    rows = [measure.row("ours, s", [one.seconds for one in results["ours"]]), measure.ratio("theirs to ours", ...)]
    measure.finish("merge", rows, flags.json)

The peak is the kernel's own figure for the largest single process of the command (`ru_maxrss`: anonymous memory and
pages of mapped files). A process inherits the peak of the one that starts it, so a small one stands between:
this file, run as a program.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[1]
MB = 1e6
_SAMPLES_APART = 0.05  # seconds
T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """One command: seconds by the clock and of processor time, memory in MB (1e6 bytes), and what it printed.

    `peak_mb` is the largest of its processes, files' pages included; `anonymous_mb` the highest sum over all of them of
    memory that no file backs, sampled 20 times a second.
    """

    seconds: float
    cpu: float
    peak_mb: float
    anonymous_mb: float
    output: str


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark; the unit ends the measure's name."""

    measure: str
    value: float
    spread: tuple[float, float]
    peak_mb: float | None = None


def run(command: Sequence[str], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Measured:
    """Run a command in fresh processes. Raises SystemExit with its stderr where it fails."""
    read, write = os.pipe()
    launcher = [sys.executable, "-I", "-S", __file__, str(write), *command]
    done = subprocess.run(launcher, cwd=cwd, env=None if env is None else os.environ | env, pass_fds=[write],
                          capture_output=True, text=True, check=False)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        report = pipe.read()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    return Measured(output=done.stdout, **json.loads(report))


def interleave(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Each side so many times, in turns, every other round backwards; says on stderr how far it is."""
    results: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            start = time.monotonic()
            results[name].append(sides[name]())
            print(f"round {number + 1} of {rounds}: {name} {time.monotonic() - start:.1f} s", file=sys.stderr)
    return results


def row(measure: str, values: Sequence[float], peaks: Sequence[float] = ()) -> Row:
    """The median of the rounds with the lowest and the highest, and the highest of the peaks."""
    return Row(measure, statistics.median(values), (min(values), max(values)), max(peaks, default=None))


def ratio(measure: str, above: Sequence[float], below: Sequence[float]) -> Row:
    """The ratio of the medians; its spread is that of the ratios by round."""
    by_round = [a / b for a, b in zip(above, below, strict=True)]
    return Row(measure, statistics.median(above) / statistics.median(below), (min(by_round), max(by_round)))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flag that every benchmark has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


def finish(name: str, rows: Sequence[Row], file: Path | None) -> None:
    """Print the rows and write them where --json says; the last row is the ratio, and the last line says it again."""
    for one in rows:
        peak = "" if one.peak_mb is None else f"   peak {one.peak_mb:.0f} MB"
        print(f"{one.measure:48} {one.value:10.3f} ({one.spread[0]:.3f} to {one.spread[1]:.3f}){peak}")
    last = rows[-1]
    print(f"ratio {last.value:.2f} x ({last.spread[0]:.2f} to {last.spread[1]:.2f}): {last.measure}")
    if file is not None:
        file.write_text(json.dumps({"name": name, "rows": [asdict(one) for one in rows]}, indent=1) + "\n")


def _launch(report: int, command: Sequence[str]) -> int:
    """In between: run the command, tell what it took to a descriptor, and end as it ended."""
    os.set_inheritable(report, False)
    start, stopped, highest = time.monotonic(), threading.Event(), [0.0]
    child = subprocess.Popen(command)

    def watch() -> None:
        while not stopped.wait(_SAMPLES_APART):
            highest[0] = max(highest[0], sum(_anonymous_mb(pid) for pid in _tree(child.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.monotonic() - start
    stopped.set()
    watcher.join()
    figures = {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss * 1024 / MB,
               "anonymous_mb": highest[0]}
    with os.fdopen(report, "w", encoding="utf-8") as pipe:
        json.dump(figures, pipe)
    return os.waitstatus_to_exitcode(status) & 0xFF


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:  # grows as it goes
        try:
            children = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
        except OSError:  # it has just ended
            continue
        found += [int(child) for line in children for child in line.split()]
    return found


def _anonymous_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024 / MB


if __name__ == "__main__":
    sys.exit(_launch(int(sys.argv[1]), sys.argv[2:]))
