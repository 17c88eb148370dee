"""Score the challenger, or the champion, on the evaluation split with greedy answers of the merged model."""

import tempfile
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.params import load_params
from src.core.records import CONFIG
from utils import process

OUTPUT = Path("results/evaluations")
CHAMPION = "champion"

PARSER = process.Arguments(description=__doc__)
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")
PARSER.add_argument("--model", choices=("challenger", CHAMPION), help="default challenger; the champion's score "
                    "goes to MLflow alone")
PARSER.add_argument("--output-dir", type=Path, metavar="DIR", help=f"of the challenger's records, default {OUTPUT}")


def main() -> int:
    """Evaluate one model; returns the exit code."""
    flags = PARSER.parse_args()
    if flags.model == CHAMPION and flags.output_dir:
        PARSER.error("--output-dir: the champion's score goes to MLflow alone; leave it out")
    process.set_up()

    from scripts.commands import evaluate
    from src.evaluation.neighbour import nearest_neighbour
    from src.evaluation.predictions import score_contract, summary
    from src.models import placement
    from utils import mlflow_utils
    from utils.tracking import runs

    params = load_params(flags.config or CONFIG)
    split, rows = evaluate.read_split(params.evaluation)
    contract = score_contract(rows, max_new_tokens=params.evaluation.max_new_tokens,
                              tokenizer=params.evaluation.tokenizer)
    placement.start()
    if not process.is_first():
        evaluate.assist(rows, params, contract, of_champion=flags.model == CHAMPION)
        return 0
    client = mlflow_utils.connect(params.mlflow)
    with tempfile.TemporaryDirectory(prefix="champion-evaluation-") as scratch:
        if flags.model == CHAMPION:
            output, candidate = Path(scratch), evaluate.champion(client, params, Path(scratch) / "model")
        else:
            output, candidate = flags.output_dir or OUTPUT, evaluate.challenger(params.model)
        tags = runs.evaluation_tags(params.deployment, candidate.identity, contract)
        with mlflow_utils.stage_run(params.mlflow, kind="evaluation", name="evaluation", tags=tags) as run_id:
            scored = evaluate.score(candidate, rows, params, contract)
            trained, tokenizer = evaluate.read_train(), params.evaluation.tokenizer
            report = scored.report(
                run_id=run_id, tracking_uri=client.tracking_uri, contract=contract, split=split,
                counts=evaluate.count_rows(rows, trained, tokenizer),
                nearest_neighbour=nearest_neighbour(trained, rows, weights=scored.weights, tokenizer=tokenizer))
            files = evaluate.write(output, report, scored.predictions)
            runs.log_evaluation(client, run_id, report.logged_metrics(), files)
    scored.partial.remove()
    process.say(summary(report))
    return 0


if __name__ == "__main__":
    process.run(main)
