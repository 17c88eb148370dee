"""How often luck promotes: two equal models, and one that is better by 0.02, through both kinds of gate.

    python -m benchmarks.sample_answers SAMPLES.jsonl        (after `make repro`)
    python benchmarks/gate_noise.py SAMPLES.jsonl [--trials 1000]
    python benchmarks/gate_noise.py --synthetic data/customer_support.csv     (to develop this file only)

SAMPLES.jsonl: one evaluation row a line, {"id": ..., "reference": "...", "samples": [20 answers sampled from the
model]}. A trial draws rows with replacement, and for each drawn row one sampled answer per copy of the model, never
the same one: the copies are equally good by construction, so every promotion is false.

The better model gives, in a share of its answers, the best of a few samples of the same model, by `row_scores`. Its
true gain is the difference of the corpus scores over the whole file, every sample counted as often as each model would
give it; the share is solved for, so that this is 0.02 exactly. `plain` promotes at a gain of 0.001 or more, `require`
if also the 95 % interval of the gain excludes 0. Figures behind +- are standard errors over the trials. A promise that
is not kept ends in FAIL and exit code 1: a figure has to keep it with two of its standard errors where it is an upper
bound, and itself where it is a range.
"""

import argparse
import csv
import json
import math
import random
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import binom
from scipy.stats import rankdata

from src.evaluation.metrics import (
    RowStatistics,
    corpus_scores,
    row_scores,
    row_statistics,
    scores_of_counts,
    weight_vector,
)
from src.evaluation.significance import adjusted_confidence, paired_bootstrap
from src.model_selection import GainEvidence

WEIGHTS = {"bleu1": 0.10, "bleu2": 0.15, "bleu3": 0.25, "bleu4": 0.40, "rougeL_precision": 0.10}
THRESHOLD, CONFIDENCE, RESAMPLES = 0.001, 0.95, 2000
SIZES = (100, 300, 1000)
TRUE_GAIN = 0.02
FALSE_AT_MOST, COVERED = 0.05, (0.935, 0.965)
CHALLENGERS, SERIES, SERIES_ROWS = 20, 200, 300
SYNTHETIC = "SYNTHETIC ANSWERS: made by a random generator, no model. These figures say nothing about a real gate."


@dataclass(frozen=True, eq=False)
class Pool:
    """Every sampled answer: its statistics, row by row, and its rank in its row, int (rows, samples), 1 the worst."""

    statistics: RowStatistics
    rank: NDArray[np.int64]

    def gain(self, best_of: int, share: float) -> float:
        """The true gain of a model that gives the best of some samples in a share of the cases."""
        samples = self.rank.shape[1]
        best = binom(self.rank - 1, best_of - 1) / binom(samples, best_of)
        usual = np.full(self.rank.shape, 1 / samples)
        counts = np.array([(share * best + (1 - share) * usual).ravel(), usual.ravel()])
        ours, theirs = scores_of_counts(self.statistics, counts) @ weight_vector(WEIGHTS)
        return float(ours - theirs)

    def draw(
        self, rows: int, best_of: int, share: float, rng: np.random.Generator
    ) -> tuple[RowStatistics, RowStatistics]:
        """Answers of the better model and of the usual one to so many drawn rows; equal models for a share of 0."""
        available, samples = self.rank.shape
        drawn = rng.integers(available, size=rows)
        order = rng.permuted(np.tile(np.arange(samples), (rows, 1)), axis=1)
        usual, first, several = order[:, 0], order[:, 1], order[:, 1 : best_of + 1]
        places = np.argmax(np.take_along_axis(self.rank[drawn], several, axis=1), axis=1)
        best = several[np.arange(rows), places]
        answer = np.where(rng.random(rows) < share, best, first)
        return self.statistics.take(drawn * samples + answer), self.statistics.take(drawn * samples + usual)


def read_samples(path: Path) -> tuple[list[str], list[list[str]]]:
    """References and their sampled answers."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line["reference"] for line in lines], [line["samples"] for line in lines]


def make_samples(path: Path, rows: int = 300, samples: int = 20) -> tuple[list[str], list[list[str]]]:
    """A stand-in for a model: it answers right, garbled or with another answer, as often as the row is hard."""
    rng = random.Random(4)
    with path.open(encoding="utf-8", newline="") as file:
        answers = [row["response"] for row in csv.DictReader(file)]
    vocabulary = " ".join(answers).split()

    def garble(text: str, wrong: float) -> str:
        kept = [word for word in text.split() if rng.random() > wrong / 3]
        return " ".join(rng.choice(vocabulary) if rng.random() < wrong else word for word in kept)

    def sample(text: str, ease: float) -> str:
        if rng.random() < ease:
            return text
        return garble(rng.choice(answers), 0.05) if rng.random() < 0.3 else garble(text, 0.3)

    references = rng.sample(answers, rows)
    eases = [rng.betavariate(0.5, 0.8) for _ in references]
    return references, [
        [sample(text, ease) for _ in range(samples)] for text, ease in zip(references, eases, strict=True)
    ]


def make_pool(references: list[str], samples: list[list[str]]) -> Pool:
    """Score every sampled answer once."""
    count = len(samples[0])
    if count < 3 or any(len(answers) != count for answers in samples):
        raise SystemExit("every row needs the same number of samples, at least 3")
    flat = [answer for answers in samples for answer in answers]
    stats = row_statistics(flat, [reference for reference in references for _ in range(count)], "13a")
    scores = row_scores(stats, WEIGHTS).reshape(len(samples), count)
    return Pool(stats, rankdata(scores, axis=1, method="ordinal").astype(np.int64))


def better_model(pool: Pool) -> tuple[int, float]:
    """Of how many samples, and in which share of cases, the best is taken for a true gain of TRUE_GAIN."""
    most = pool.rank.shape[1] - 1  # the other copy gives one
    for best_of in (*(few for few in (2, 3, 5, 10) if few < most), most):
        if pool.gain(best_of, 1) >= TRUE_GAIN:
            return best_of, float(brentq(lambda share, n=best_of: pool.gain(n, share) - TRUE_GAIN, 0, 1))
    raise SystemExit(f"even the best of all samples gains less than {TRUE_GAIN}: sample at a higher temperature")


def evidence(ours: RowStatistics, theirs: RowStatistics, *, confidence: float, seed: int) -> GainEvidence:
    """The gate's own evidence, under the documented policy."""
    return paired_bootstrap(
        ours, theirs, weights=WEIGHTS, threshold=THRESHOLD, confidence=confidence, resamples=RESAMPLES, seed=seed
    )


def promotes(found: GainEvidence) -> bool:
    """Whether `significance: require` promotes."""
    return found.gain >= THRESHOLD and not found.includes_zero


def run_trials(pool: Pool, rows: int, model: tuple[int, float], trials: int, *, true_gain: float) -> list[GainEvidence]:
    """One gate after the other, each on rows of its own."""
    rng = np.random.default_rng([rows, round(true_gain * 1e6)])
    found = [evidence(*pool.draw(rows, *model, rng), confidence=CONFIDENCE, seed=trial) for trial in range(trials)]
    print(f"done: {rows} rows, true gain {true_gain}", file=sys.stderr, flush=True)
    return found


@dataclass(frozen=True)
class Share:
    """A share of trials with its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> "Share":
        """Of so many outcomes, those that are true."""
        values = list(outcomes)
        mean = sum(values) / len(values)
        return cls(mean, math.sqrt(mean * (1 - mean) / len(values)))

    def __str__(self) -> str:
        """In percent."""
        return f"{100 * self.mean:.1f} +- {100 * self.error:.1f} %"


def run_series(pool: Pool, series: int) -> None:
    """Twenty equal challengers on one split: how often at least one is promoted."""
    rng = np.random.default_rng(20)
    plain, constant, adjusted = [], [], []
    for number in range(series):
        drawn = rng.integers(len(pool.rank), size=SERIES_ROWS)
        champion, *challengers = (_answers(pool, drawn, rng) for _ in range(CHALLENGERS + 1))
        pairs = [(challenger, champion) for challenger in challengers]
        levels = [adjusted_confidence(CONFIDENCE, k) for k in range(1, CHALLENGERS + 1)]
        usual = [evidence(*pair, confidence=CONFIDENCE, seed=number) for pair in pairs]
        strict = [evidence(*pair, confidence=c, seed=number) for pair, c in zip(pairs, levels, strict=True)]
        plain.append(any(gate.gain >= THRESHOLD for gate in usual))
        constant.append(any(promotes(gate) for gate in usual))
        adjusted.append(any(promotes(gate) for gate in strict))
    print(f"\nat least one of {CHALLENGERS} equal challengers promoted, {SERIES_ROWS} rows, {series} series:")
    print(f"  plain {Share.of(plain)}, require at 95 % {Share.of(constant)}, "
          f"require at 1 - 0.05/k {Share.of(adjusted)}")


def _answers(pool: Pool, drawn: NDArray[np.int64], rng: np.random.Generator) -> RowStatistics:
    samples = pool.rank.shape[1]
    return pool.statistics.take(drawn * samples + rng.integers(samples, size=len(drawn)))


def main() -> int:
    """Print the series, the table, and whether the promises hold; 1 where one does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("samples", type=Path, nargs="?", help="JSONL of sampled answers of a real model")
    source.add_argument("--synthetic", type=Path, metavar="CSV", help="make answers up from this file's `response`")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--series", type=int, default=SERIES, help="series of 20 challengers; 0 leaves them out")
    arguments = parser.parse_args()
    pool = make_pool(*(make_samples(arguments.synthetic) if arguments.synthetic else read_samples(arguments.samples)))
    rows, count = pool.rank.shape
    source_name = SYNTHETIC if arguments.synthetic else arguments.samples
    score = weight_vector(WEIGHTS) @ list(corpus_scores(pool.statistics).values())
    print(f"{source_name}\n{rows} rows, {count} samples each, weighted score {score:.4f}")
    if arguments.series:
        run_series(pool, arguments.series)
    kept = report(pool, arguments.trials)
    if arguments.synthetic:
        print(SYNTHETIC)
    return 0 if kept else 1


def report(pool: Pool, trials: int) -> bool:
    """The table: equal models and the better one at each size; then the promises, and whether they are kept."""
    better = better_model(pool)
    equal = [run_trials(pool, rows, (1, 0.0), trials, true_gain=0.0) for rows in SIZES]
    gained = [run_trials(pool, rows, better, trials, true_gain=TRUE_GAIN) for rows in SIZES]
    print(f"\nthe better model gives the best of {better[0]} samples in {better[1]:.1%} of its answers")
    print(f"{trials} trials in each place of the table\n")
    print(f"{'rows':28}" + "".join(f"{size:>16}" for size in SIZES))
    covered = []
    for title, groups, truth in (("equal models", equal, 0.0), (f"true gain of {TRUE_GAIN}", gained, TRUE_GAIN)):
        covered.append([[gate.low <= truth <= gate.high for gate in group] for group in groups])
        print(title)
        print_line("  promoted by plain", [Share.of(gate.gain >= THRESHOLD for gate in group) for group in groups])
        print_line("  promoted by require", [Share.of(promotes(gate) for gate in group) for group in groups])
        print_line("  interval holds the truth", [Share.of(values) for values in covered[-1]])
        print_line("  mean gain", [f"{statistics.fmean(gate.gain for gate in group):.4f}" for group in groups])
        print_line("  standard deviation", [f"{statistics.stdev(gate.gain for gate in group):.4f}" for group in groups])
    false = [Share.of(promotes(gate) for gate in group) for group in equal]
    both = [Share.of(at_zero + at_gain) for at_zero, at_gain in zip(*covered, strict=True)]
    print()
    return all([
        verdict("false promotions under require, at most 5 %", false,
                [share.mean + 2 * share.error <= FALSE_AT_MOST for share in false]),
        verdict("interval holds the truth, both gains, 93.5 to 96.5 %", both,
                [COVERED[0] <= share.mean <= COVERED[1] for share in both]),
    ])


def print_line(title: str, cells: Iterable[object]) -> None:
    """One line of the table."""
    print(f"{title:28}" + "".join(f"{cell!s:>16}" for cell in cells))


def verdict(promise: str, found: Iterable[Share], kept: list[bool]) -> bool:
    """Print whether a promise is kept at each size."""
    print(f"{'PASS' if all(kept) else 'FAIL'} {promise}: {', '.join(map(str, found))}")
    return all(kept)


if __name__ == "__main__":
    sys.exit(main())
