"""How often luck promotes: two equal models, and one that is better by 0.02, through both kinds of gate.

    python -m benchmarks.sample_answers SAMPLES.jsonl        (after `make repro`)
    python benchmarks/gate_noise.py SAMPLES.jsonl [--trials 1000] [--series 2000]
    python benchmarks/gate_noise.py --synthetic data/customer_support.csv     (to develop this file only)

SAMPLES.jsonl: one evaluation row a line, {"id": ..., "reference": "...", "samples": [20 answers sampled from the
model]}. A trial draws rows with replacement, and for each drawn row one sampled answer per copy of the model, never
the same one: the copies are equally good by construction, so every promotion is false.

The better model gives, in a share of its answers, the best of a few samples of the same model, by `row_scores`. Its
true gain is the difference of the corpus scores over the whole file, every sample counted as often as each model would
give it; the share is solved for, so that this is 0.02 exactly. `plain` promotes at a gain of 0.001 or more, `require`
if also the 95 % interval of the gain excludes 0. A series brings up to 500 equal challengers before the gate, one
after another against one champion on the same rows, and ends at its first promotion. Figures behind +- are
standard errors over the trials. A promise that is not kept ends in FAIL and exit code 1: a figure has to keep it with
two of its standard errors where it is an upper bound, and itself where it is a range.
"""

import argparse
import csv
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import binom, stdtrit
from scipy.stats import rankdata

from src.evaluation.metrics import (
    RowStatistics,
    corpus_scores,
    row_counts,
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
LENGTHS, SERIES, SERIES_ROWS = (20, 100, 500), 2000, 300
PLACES = (1, 5, 20)  # of the better model in a series
RULES: dict[str, Callable[[int], float]] = {
    "1 - 0.1/(k(k+1)), the gate's": lambda k: adjusted_confidence(CONFIDENCE, k),
    "1 - 0.05/(k(k+1))": lambda k: 1 - (1 - CONFIDENCE) / (k * (k + 1)),
    "1 - 0.05/k, until 0e3e8e5": lambda k: 1 - (1 - CONFIDENCE) / k,
}
FEW, NEAR = 200, 0.75  # resamples that find the gains near a rule, and how near: the rest is more than four errors away
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


def run_series(pool: Pool, series: int) -> bool:
    """Equal challengers of one champion on one split: how often at least one of the first n is promoted.

    The champion and the rows are those of the whole series, so the challengers' gains depend on each other as they do
    before a real gate. Returns whether the gate's rule keeps to FALSE_AT_MOST at each length.
    """
    places = np.arange(1, LENGTHS[-1] + 1)
    needed = {rule: needed_ratios([level(int(k)) for k in places]) for rule, level in RULES.items()}
    least = np.min(list(needed.values()), axis=0)
    found = np.array([gain_ratios(pool, least, seed) for seed in range(series)])
    print(f"\nat least one of the first n equal challengers promoted, {SERIES_ROWS} rows, {series} series")
    print(f"{'n':28}" + "".join(f"{length:>16}" for length in LENGTHS))
    shares = []
    for rule, ratio in needed.items():
        promoted = np.greater(found, ratio)
        shares.append([Share.of(promoted[:, :length].any(axis=1).tolist()) for length in LENGTHS])
        print_line(f"  {rule}", shares[-1])
    false = shares[0]
    return verdict("a false promotion in a series, at most 5 %", false,
                   [share.mean + 2 * share.error <= FALSE_AT_MOST for share in false])


def needed_ratios(levels: Sequence[float]) -> NDArray[np.float64]:
    """How many standard errors a gain on SERIES_ROWS rows must be above 0 at each confidence."""
    return np.asarray(stdtrit(SERIES_ROWS - 1, (1 + np.array(levels)) / 2))


def gain_ratios(pool: Pool, least: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """The gain of each challenger over its standard error, which the gate takes from RESAMPLES resamples of the rows.

    least: the ratio that promotes each under the mildest rule. A challenger that is not near it, or below THRESHOLD,
    gets 0, because FEW resamples or its gain alone show that it is not promoted.
    """
    rng, samples, weights = np.random.default_rng([20, seed]), pool.rank.shape[1], weight_vector(WEIGHTS)
    drawn = rng.integers(len(pool.rank), size=SERIES_ROWS) * samples
    answers = drawn + rng.integers(samples, size=(len(least) + 1, SERIES_ROWS))
    scores = _corpus_scores(pool.statistics, answers) @ weights
    gains = scores[1:] - scores[0]

    @cache
    def drawn_again(resamples: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        places = np.random.default_rng(seed).integers(SERIES_ROWS, size=(resamples, SERIES_ROWS))
        counts = row_counts(places, SERIES_ROWS)
        return counts, scores_of_counts(pool.statistics.take(answers[0]), counts) @ weights

    def error(challenger: int, resamples: int) -> float:
        counts, champion = drawn_again(resamples)
        ours = scores_of_counts(pool.statistics.take(answers[1 + challenger]), counts) @ weights
        return float(np.std(ours - champion, ddof=1)) * math.sqrt(SERIES_ROWS / (SERIES_ROWS - 1))

    usual = statistics.median(error(challenger, FEW) for challenger in range(5))
    ratios = np.zeros(len(least))
    for challenger in map(int, np.flatnonzero((gains >= THRESHOLD) & (gains > least * usual / 2))):
        if gains[challenger] > NEAR * least[challenger] * error(challenger, FEW):
            ratios[challenger] = gains[challenger] / error(challenger, RESAMPLES)
    return ratios


def _corpus_scores(system: RowStatistics, answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """The scores of models that give these answers: int (models, rows) -> float (models, 5)."""
    sums = RowStatistics(system.correct[answers].sum(axis=1), system.total[answers].sum(axis=1),
                         system.sys_len[answers].sum(axis=1), system.ref_len[answers].sum(axis=1),
                         system.rouge_l[answers].mean(axis=1))
    return scores_of_counts(sums, np.eye(len(answers)))


def shows(found: GainEvidence, confidence: float) -> bool:
    """Whether the gate promotes if the interval has another confidence: its width follows the t distribution's."""
    wider = stdtrit(found.rows - 1, (1 + confidence) / 2) / stdtrit(found.rows - 1, (1 + found.confidence) / 2)
    return found.gain >= THRESHOLD and found.gain > float(wider) * (found.high - found.low) / 2


def main() -> int:
    """Print the series, the table, and whether the promises hold; 1 where one does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("samples", type=Path, nargs="?", help="JSONL of sampled answers of a real model")
    source.add_argument("--synthetic", type=Path, metavar="CSV", help="make answers up from this file's `response`")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--series", type=int, default=SERIES, help="series of 500 challengers; 0 leaves them out")
    arguments = parser.parse_args()
    pool = make_pool(*(make_samples(arguments.synthetic) if arguments.synthetic else read_samples(arguments.samples)))
    rows, count = pool.rank.shape
    source_name = SYNTHETIC if arguments.synthetic else arguments.samples
    score = weight_vector(WEIGHTS) @ list(corpus_scores(pool.statistics).values())
    print(f"{source_name}\n{rows} rows, {count} samples each, weighted score {score:.4f}")
    kept = run_series(pool, arguments.series) if arguments.series else True
    kept = report(pool, arguments.trials) and kept
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
    for rule, level in RULES.items():
        print(f"true gain of {TRUE_GAIN}, promoted by require with an interval at {rule}")
        for k in PLACES:
            print_line(f"  as challenger {k}", [Share.of(shows(gate, level(k)) for gate in group) for group in gained])
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
