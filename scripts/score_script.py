"""Score a file of predictions: JSON lines with `prediction` and `reference`. One JSON object goes to stdout."""

import json
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.errors import InvalidInput
from src.core.params import load_params
from src.core.records import CONFIG, read_lines, weighted_score
from utils import process

PARSER = process.Arguments(description=__doc__)
PARSER.add_argument("--predictions", type=Path, required=True, metavar="FILE")
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")


def main() -> int:
    """Print metrics, weighted score, the score of each row, and how far a bundle may fall below; returns 0."""
    flags = PARSER.parse_args()

    from src.evaluation.metrics import corpus_scores, row_scores, row_statistics

    params = load_params(flags.config or CONFIG)
    texts: dict[str, list[str]] = {"prediction": [], "reference": []}
    for number, row in enumerate(read_lines(flags.predictions), start=1):
        for name, found in texts.items():
            if not isinstance(row.get(name), str):
                raise InvalidInput(f"{flags.predictions}:{number}: {name} is missing or no text")
            found.append(row[name])
    if not texts["reference"]:
        raise InvalidInput(f"{flags.predictions}: no rows to score")
    statistics = row_statistics(texts["prediction"], texts["reference"], params.evaluation.tokenizer)
    metrics, weights = corpus_scores(statistics), params.deployment.weighted_scoring.weights
    process.say(json.dumps({
        "metrics": metrics, "weighted_score": float(weighted_score(metrics, weights)), "rows": len(texts["reference"]),
        "row_scores": row_scores(statistics, weights).tolist(), "max_score_drop": params.space.max_score_drop}))
    return 0


if __name__ == "__main__":
    process.run(main)
