"""Time and memory of scoring 27,000 answers: src.evaluation.metrics against sacrebleu four times and rouge-score once.

    python -m benchmarks.scoring [--data FILE.csv] [--pairs 27000] [--rounds 3] [--tokenizer 13a]

Each side runs in a process of its own, in turns; only scoring is timed, in seconds of processor time (both sides keep
to one thread, and other work on the machine does not count), not imports or reading. The text: references
put together from sentences of two of the file's answers, so that lines rarely repeat, and predictions that are those
references with words dropped, replaced and repeated. The last line is the ratio of the medians.
"""

import argparse
import csv
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TypedDict

from benchmarks import measure as shared

ROOT = Path(__file__).parents[1]
METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rougeL_precision")
WEIGHTS = {"bleu1": 0.10, "bleu2": 0.15, "bleu3": 0.25, "bleu4": 0.40, "rougeL_precision": 0.10}
RESAMPLES = 2000
Texts = list[str]


class Measured(TypedDict):
    """What one side tells: seconds, and MiB of memory at its peak and added by it."""

    seconds: float
    peak: float
    added: float
    scores: dict[str, float]


def make_text(answers: Texts, pairs: int) -> tuple[Texts, Texts]:
    """Predictions and references, the same ones for the same answers."""
    rng = random.Random(20)
    sentences = [re.split(r"(?<=[.!?])\s+", answer) for answer in answers]
    vocabulary = " ".join(answers).split()
    references = [_mix(rng.choice(sentences), rng.choice(sentences), rng) for _ in range(pairs)]
    return [_perturb(text, vocabulary, rng) for text in references], references


def _mix(first: Texts, second: Texts, rng: random.Random) -> str:
    half = [rng.sample(part, (len(part) + 1) // 2) for part in (first, second)]
    return " ".join(half[0] + half[1])


def _perturb(text: str, vocabulary: Texts, rng: random.Random) -> str:
    words: Texts = []
    for word in text.split(" "):
        chance = rng.random()
        if chance < 0.08:
            continue
        words.append(rng.choice(vocabulary) if chance < 0.2 else word)
        if chance > 0.97:
            words.append(word)
    return " ".join(words)


class AsBleu:
    """What rouge_score takes as tokenizer: one of sacrebleu's."""

    def __init__(self, name: str) -> None:
        from sacrebleu.metrics.bleu import BLEU

        self._tokenize = BLEU(tokenize=name).tokenizer

    def tokenize(self, text: str) -> Texts:
        """The tokens that BLEU counts."""
        return str(self._tokenize(text.rstrip())).split()


def libraries(predictions: Texts, references: Texts, tokenizer: str) -> dict[str, float]:
    """What sacrebleu and rouge_score make of it, in 0..1."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    bleu = [BLEU(max_ngram_order=n, tokenize=tokenizer).corpus_score(predictions, [references]).score / 100
            for n in (1, 2, 3, 4)]
    scorer = RougeScorer(["rougeL"], tokenizer=None if tokenizer == "13a" else AsBleu(tokenizer))
    rouge = [scorer.score(r, p)["rougeL"].precision for p, r in zip(predictions, references, strict=True)]
    return dict(zip(METRICS, [*bleu, sum(rouge) / len(rouge)], strict=True))


def champion(predictions: Texts, references: Texts, tokenizer: str) -> dict[str, float]:
    """What the pipeline makes of it."""
    from src.evaluation.metrics import corpus_scores, row_statistics

    return corpus_scores(row_statistics(predictions, references, tokenizer))


def resampling(predictions: Texts, references: Texts, tokenizer: str) -> dict[str, float]:
    """The gate's paired bootstrap of these answers against them shifted by one row; timed on its own."""
    from src.evaluation.metrics import row_statistics
    from src.evaluation.significance import paired_bootstrap

    ours = row_statistics(predictions, references, tokenizer)
    theirs = row_statistics([*predictions[1:], predictions[0]], references, tokenizer)
    start = time.process_time()
    paired_bootstrap(ours, theirs, weights=WEIGHTS, threshold=0.001, confidence=0.95, resamples=RESAMPLES, seed=1)
    return {"seconds": time.process_time() - start}


SIDES = {"libraries": libraries, "champion": champion, "resampling": resampling}


def run_side(side: str, corpus: Path, tokenizer: str) -> None:
    """In the child: score the corpus and print seconds, memory and scores as JSON."""
    predictions, references = json.loads(corpus.read_text(encoding="utf-8"))
    SIDES[side](predictions[:2], references[:2], tokenizer)  # imports
    before, start = _peak_mib(), time.process_time()
    scores = SIDES[side](predictions, references, tokenizer)
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "peak": _peak_mib(), "added": _peak_mib() - before, "scores": scores}))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(side: str, corpus: Path, tokenizer: str) -> Measured:
    """One side in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scoring", "--side", side, "--corpus", str(corpus),
               "--tokenizer", tokenizer]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    output = subprocess.run(command, cwd=ROOT, check=True, env=one_thread, capture_output=True, text=True).stdout
    result: Measured = json.loads(output)
    if side != "resampling":
        print(f"  {side:10} {result['seconds']:7.2f} s   peak {result['peak']:5.0f} MiB (+{result['added']:.0f})")
    return result


def compare(corpus: Path, rounds: int, tokenizer: str) -> list[shared.Row]:
    """Both sides in turns; prints the spread and returns the rows of the table, the ratio of the median times last."""
    results: dict[str, list[Measured]] = {"libraries": [], "champion": []}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for side in sorted(results, reverse=number % 2 == 0):
            results[side].append(measure(side, corpus, tokenizer))
    theirs, ours = ([result["seconds"] for result in results[side]] for side in ("libraries", "champion"))
    apart = max(abs(results["libraries"][0]["scores"][m] - results["champion"][0]["scores"][m]) for m in METRICS)
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    print(f"scores {json.dumps(results['champion'][0]['scores'])}")
    print(f"largest difference to the libraries {apart:.1e}")
    print(f"seconds, median (lowest to highest): libraries {_spread(theirs)}, champion {_spread(ours)}")
    print(f"peak memory, median: libraries {_peak(results['libraries'])}, champion {_peak(results['champion'])}")
    print(f"ratio by round: {min(ratios):.1f} to {max(ratios):.1f} x")
    if apart > 1e-9:
        raise SystemExit("the scores differ from the libraries' by more than 1e-9")
    peaks = {side: [result["peak"] * 2**20 / shared.MB for result in results[side]] for side in results}
    return [shared.row("libraries, s", theirs, peaks["libraries"]), shared.row("champion, s", ours, peaks["champion"]),
            shared.ratio("libraries to champion", theirs, ours)]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _peak(results: list[Measured]) -> str:
    return f"{statistics.median(result['peak'] for result in results):.0f} MiB"


def main() -> None:
    """Make the text, compare, time the resampling apart, and print the ratio last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data/customer_support.csv", help="CSV with `response`")
    parser.add_argument("--pairs", type=int, default=27_000)
    parser.add_argument("--rounds", type=int, default=3)
    shared.add_flags(parser)
    parser.add_argument("--tokenizer", default="13a", help="as evaluation.tokenizer")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, arguments.corpus, arguments.tokenizer)
        return
    with arguments.data.open(encoding="utf-8", newline="") as file:
        answers = [row["response"] for row in csv.DictReader(file)]
    predictions, references = make_text(answers, arguments.pairs)
    words = statistics.mean(len(text.split()) for text in references)
    print(f"{len(references)} pairs of {words:.0f} words, {len(set(references))} different, from {arguments.data}")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.json"
        corpus.write_text(json.dumps([predictions, references]), encoding="utf-8")
        rows = compare(corpus, arguments.rounds, arguments.tokenizer)
        resampled = measure("resampling", corpus, arguments.tokenizer)
    seconds = resampled["scores"]["seconds"]
    print(f"apart: paired bootstrap of {RESAMPLES} resamples {seconds:.2f} s, peak {resampled['peak']:.0f} MiB")
    shared.finish("scoring", rows, arguments.json)


if __name__ == "__main__":
    main()
