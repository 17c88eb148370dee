"""The fine-tuned pocket model of the shipped parameters, with three seeds, against copying the nearest training answer.

    python -m benchmarks.pocket [--seeds 7 8 9]

For each seed (of the base model and of the fine-tuning) a copy of this repository runs its stages up to the evaluation.
Then the merged model answers the questions of benchmarks/evaluation_232.jsonl greedily. None of these questions stands
in the shipped data. Both sides are scored by the weighted score, on these 232 rows and on the evaluation split. The
seconds are those of the stages base_model and fine_tuning by the clock. The last line is the ratio of the two scores on
the 232 rows.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import measure, scratch
from src.core.params import load_params
from src.core.records import read_lines, weighted_score
from src.data.prepare import normalise
from src.data.rows import EvaluationRow, parse_rows
from src.evaluation import generation
from src.evaluation.metrics import corpus_scores, row_statistics
from src.evaluation.neighbour import nearest_neighbour
from src.models import merging

HELD_OUT = Path(__file__).with_name("evaluation_232.jsonl")

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
measure.add_flags(PARSER)


def trained(seed: int) -> tuple[Mapping[str, float], list[measure.Measured]]:
    """The scores on the 232 rows and on the split, of model and baseline, and what base and fine-tuning took."""
    with tempfile.TemporaryDirectory(prefix="champion-pocket-") as name:
        folder = Path(name)
        scratch.make(folder, {"model": {"pocket": {"seed": seed}}, "fine_tuning": {"seed": seed}})
        scratch.run(folder, "python", "scripts/data_preprocessing_script.py")
        stages = [scratch.run(folder, "python", f"scripts/{stage}_script.py")
                  for stage in ("base_model", "fine_tuning")]
        scratch.run(folder, "python", "scripts/evaluation_script.py")
        report = json.loads((folder / "results/evaluations/report.json").read_text())
        return {"split": report["weighted_score"], "split, copied": report["nearest_neighbour"]["weighted_score"],
                **held_out(folder)}, stages


def held_out(folder: Path) -> Mapping[str, float]:
    """The scores of the copy's model and of the baseline on the 232 rows."""
    params = load_params(folder / "params.yaml")
    rows = parse_rows(read_lines(HELD_OUT), where=HELD_OUT, max_rows=0)
    train = folder / "results/data/train.jsonl"
    known = parse_rows(read_lines(train), where=train, max_rows=0)
    require_unknown(rows, known)
    model, tokenizer = merging.merge(folder / "results/base_model", folder / "results/adapter", "float32")
    generation.set_greedy(model, tokenizer, max_new_tokens=params.evaluation.max_new_tokens)
    answers = generation.answer(model, tokenizer, [row.prompt() for row in rows],
                                tokens_per_batch=params.evaluation.tokens_per_batch)
    weights = params.deployment.weighted_scoring.weights
    found = corpus_scores(row_statistics([answer.text for answer in answers], [row.reference() for row in rows],
                                         params.evaluation.tokenizer))
    copied = nearest_neighbour(known, rows, weights=weights, tokenizer=params.evaluation.tokenizer)
    return {"232": float(weighted_score(found, weights)), "232, copied": copied.weighted_score}


def require_unknown(rows: list[EvaluationRow], known: list[EvaluationRow]) -> None:
    """Raise SystemExit if a question of the 232 rows was trained on."""
    asked, seen = ({normalise(row.prompt()[-1]["content"]) for row in which} for which in (rows, known))
    if asked & seen:
        raise SystemExit(f"{len(asked & seen)} questions of {HELD_OUT.name} stand in the training split")


def main() -> None:
    """One training for each seed."""
    flags = PARSER.parse_args()
    found = [trained(seed) for seed in flags.seeds]
    scores = {name: [scored[name] for scored, _ in found] for name in found[0][0]}
    measure.finish("pocket", [
        measure.row("base and fine-tuning, s", [sum(stage.seconds for stage in stages) for _, stages in found],
                    [stage.peak_mb for _, stages in found for stage in stages]),
        measure.row("evaluation split, score", scores["split"]),
        measure.row("evaluation split, nearest answer copied", scores["split, copied"]),
        measure.row("232 rows, score", scores["232"]),
        measure.row("232 rows, nearest answer copied", scores["232, copied"]),
        measure.ratio("232 rows, score to nearest answer copied", scores["232"], scores["232, copied"]),
    ], flags.json)


if __name__ == "__main__":
    main()
