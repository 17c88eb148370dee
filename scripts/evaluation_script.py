"""Score the challenger, or the champion, on the evaluation split with greedy answers of the merged model."""

import tempfile
from pathlib import Path

from src.records import CONFIG
from utils import process, ranks

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
    ranks.set_up()

    from scripts import scoring
    from src import sharing
    from src.evaluation_record import numbers, summary
    from src.predictions import score_contract
    from utils import evaluation_run, mlflow_utils, yaml_utils

    params = yaml_utils.load_params(flags.config or CONFIG)
    split, rows = scoring.read_split(params.evaluation)
    contract = score_contract(rows, max_new_tokens=params.evaluation.max_new_tokens)
    sharing.start()
    if not ranks.is_first():
        scoring.assist(rows, params, contract, of_champion=flags.model == CHAMPION)
        return 0
    client = mlflow_utils.connect(params.mlflow)
    with tempfile.TemporaryDirectory(prefix="champion-evaluation-") as scratch:
        if flags.model == CHAMPION:
            output, candidate = Path(scratch), scoring.champion(client, params, Path(scratch) / "model")
        else:
            output, candidate = flags.output_dir or OUTPUT, scoring.challenger(params.model)
        tags = evaluation_run.tags(params.deployment, candidate.identity, contract)
        with mlflow_utils.stage_run(params.mlflow, kind="evaluation", name="evaluation", tags=tags) as run_id:
            scored = scoring.score(candidate, rows, params, contract)
            report = scored.report(run_id=run_id, tracking_uri=client.tracking_uri, contract=contract, split=split,
                                   overlap=scoring.overlap(rows))
            files = scoring.write(output, report, scored.predictions)
            evaluation_run.log(client, run_id, numbers(report), files)
    scored.partial.remove()
    process.say(summary(report))
    return 0


if __name__ == "__main__":
    process.run(main)
