"""How often the rows that a release generates again hold a forged answer.

A model 0.02 below the champion is forged until it is 0.001 above it. This measures the choice of these rows alone. A
deployment reads all other answers as well, which finds a forged answer in any row (docs/release.md): every try of every
strategy, unless each forged answer is one that the model chooses up to near-ties. `copied_answers.py` measures that.

    python -m benchmarks.sample_answers SAMPLES.jsonl        (after `make repro`)
    python -m benchmarks.forged_answers SAMPLES.jsonl [--tries 1000] [--least 0.99]

SAMPLES.jsonl: one evaluation row a line, as for gate_noise.py. In each try the champion and the challenger answer all
rows with samples of the same model; the champion has the best of several in as many rows as it takes to be 0.02 above.
Then rows of the challenger are forged, each a part of the way from its own answer's statistics to a better one's, until
the gain is 0.001. The forger knows the rule by which `src.evaluation.significance.choose_rows` picks the rows that the
release must answer again, but not what the deployment draws. A try is caught if one forged row is among them: its
answer is then generated again, and differs. Strategies:

    fewest     the rows whose reference in place of the own answer lifts the score most
    20, 60     so many rows, each with an equal part of the gain
    all        every row, in equal parts
    copies     the champion's own answers where the challenger's are worse, fewest rows first: these rows show no gain,
               so that of the chosen rows only the drawn ones can be among them (no promise; reading finds them)
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from benchmarks.gate_noise import THRESHOLD, WEIGHTS, Pool, Share, make_pool, read_samples
from src.evaluation.metrics import RowStatistics, row_contributions, row_statistics, scores_of_counts, weight_vector
from src.evaluation.predictions import rows_to_verify

BELOW = 0.02
VERIFIED = 16  # deployment.verified_rows
Table = NDArray[np.float64]


@dataclass(frozen=True)
class Rivals:
    """Statistics of the champion's and the challenger's answers to the same rows, and of the references themselves."""

    champion: RowStatistics
    challenger: RowStatistics
    perfect: RowStatistics


def score(rows: RowStatistics) -> float:
    """The weighted corpus score."""
    return float((scores_of_counts(rows, np.ones((1, len(rows)))) @ weight_vector(WEIGHTS))[0])


def mixed(own: RowStatistics, better: RowStatistics, parts: NDArray[np.float64]) -> RowStatistics:
    """Statistics part of the way from one answer to another, row by row; parts: float (rows,) in [0, 1]."""
    part = parts[:, np.newaxis]
    return RowStatistics(
        correct=own.correct + part * (better.correct - own.correct),
        total=own.total + part * (better.total - own.total),
        sys_len=own.sys_len + parts * (better.sys_len - own.sys_len), ref_len=own.ref_len,
        rouge_l=own.rouge_l + parts * (better.rouge_l - own.rouge_l))


def draw(pool: Pool, perfect: RowStatistics, rng: np.random.Generator) -> Rivals | None:
    """A champion that is BELOW better than its challenger on these rows; None if luck alone made it better still."""
    rows, samples = pool.rank.shape
    order = rng.permuted(np.tile(np.arange(samples), (rows, 1)), axis=1)
    places = np.arange(rows) * samples
    challenger, first = (pool.statistics.take(places + order[:, column]) for column in (0, 1))
    best = order[np.arange(rows), 1 + np.argmax(np.take_along_axis(pool.rank, order[:, 1:], axis=1), axis=1)]
    top, wanted = pool.statistics.take(places + best), score(challenger) + BELOW
    turn = rng.permutation(rows)

    def champion(count: float) -> RowStatistics:
        parts = np.zeros(rows)
        parts[turn] = np.clip(count - np.arange(rows), 0, 1)
        return mixed(first, top, parts)

    if score(first) > wanted:
        return None
    found = brentq(lambda count: score(champion(count)) - wanted, 0, rows)
    return Rivals(champion(float(found)), challenger, perfect)


def forge(rivals: Rivals, target: RowStatistics, rows: NDArray[np.intp], parts: Callable[[float], NDArray[np.float64]]
          ) -> tuple[RowStatistics, NDArray[np.intp]] | None:
    """The forged challenger with a gain of THRESHOLD, and which rows differ; None if all these rows do not suffice.

    parts: how far each of `rows` is forged, for a strength in [0, 1].
    """
    wanted = score(rivals.champion) + THRESHOLD

    def forged(strength: float) -> RowStatistics:
        all_parts = np.zeros(len(rivals.challenger))
        all_parts[rows] = parts(strength)
        return mixed(rivals.challenger, target, all_parts)

    if score(forged(1.0)) < wanted:
        return None
    strength = float(brentq(lambda x: score(forged(x)) - wanted, 0, 1))
    return forged(strength), rows[parts(strength) > 0]


def one_by_one(count: int) -> Callable[[float], NDArray[np.float64]]:
    """Rows forged completely one after the other; the last one in part."""
    return lambda strength: np.clip(strength * count - np.arange(count), 0, 1)


def evenly(count: int) -> Callable[[float], NDArray[np.float64]]:
    """Every row forged the same part of the way."""
    return lambda strength: np.full(count, strength)


def attack(name: str, rivals: Rivals, rng: np.random.Generator) -> tuple[RowStatistics, NDArray[np.intp]] | None:
    """Forge by a strategy; None if it cannot reach the threshold."""
    rows = len(rivals.challenger)
    if name in ("fewest", "copies"):
        target = rivals.perfect if name == "fewest" else rivals.champion
        lifts = row_contributions(target, rivals.challenger, WEIGHTS)
        order = np.argsort(-lifts, kind="stable")
        if name == "copies":
            order = np.array([place for place in order if lifts[place] > 0])
        return forge(rivals, target, order, one_by_one(len(order)))
    chosen = np.arange(rows) if name == "all" else np.sort(rng.choice(rows, int(name), replace=False))
    return forge(rivals, rivals.perfect, chosen, evenly(len(chosen)))


def caught(forged: RowStatistics, differing: NDArray[np.intp], champion: RowStatistics, rng: np.random.Generator, *,
           verified: int = VERIFIED) -> bool:
    """Whether a forged row is among those that the release must answer again."""
    contributions = row_contributions(forged, champion, WEIGHTS).tolist()
    found = rows_to_verify(contributions, rng.permutation(len(forged)).tolist(), verified)
    return not set(found.places).isdisjoint(differing.tolist())


def run(pool: Pool, perfect: RowStatistics, name: str, tries: int) -> tuple[int, list[int]]:
    """How many of so many tries are caught, and how many rows each forged."""
    rng = np.random.default_rng([tries, *name.encode()])
    found, sizes = 0, list[int]()
    while len(sizes) < tries:
        rivals = draw(pool, perfect, rng)
        made = attack(name, rivals, rng) if rivals else None
        if rivals and made:
            found += caught(*made, rivals.champion, rng)
            sizes.append(len(made[1]))
    return found, sizes


def main() -> int:
    """Print how many tries each strategy was caught in; 1 where a promised strategy was caught too seldom."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, help="JSONL of sampled answers of a real model")
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--least", type=float, default=0.99, help="share of tries that must be caught")
    asked = parser.parse_args()
    references, samples = read_samples(asked.samples)
    pool, perfect = make_pool(references, samples), perfect_answers(references)
    print(f"{len(references)} rows, {VERIFIED} that gain most and {VERIFIED} drawn, {asked.tries} tries each")
    kept = True
    for name in ("fewest", "20", "60", "all", "copies"):
        found, sizes = run(pool, perfect, name, asked.tries)
        promised = name != "copies"
        kept &= not promised or found >= asked.least * asked.tries
        share = Share.of([True] * found + [False] * (asked.tries - found))
        print(f"{name:8} caught {found} of {asked.tries} ({share}), forged rows {min(sizes)} to {max(sizes)}"
              f"{'' if promised else ', no promise'}", flush=True)
    return 0 if kept else 1


def perfect_answers(references: list[str]) -> RowStatistics:
    """The statistics of answers that equal their references."""
    return row_statistics(references, references, "13a")


if __name__ == "__main__":
    sys.exit(main())
