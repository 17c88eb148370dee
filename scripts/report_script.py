"""Write the report on the last deployment, results/report/index.html."""

import importlib.metadata
import logging
import platform
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core import records
from src.core.errors import PipelineError
from src.core.params import Params, load_params
from src.core.records import CONFIG, EVALUATION_RESULTS, MODEL_LOCATION, OUTPUT_DIR, EvaluationReport
from utils import json_utils, process, results

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from src.report.page import ModelHistory

logger = logging.getLogger("champion")

OUTPUT = Path("results/report/index.html")
LOSSES = Path("results/training/loss.csv")
RUNS = 500  # the latest evaluations that the history shows
_SOFTWARE = ("torch", "transformers", "peft", "mlflow", "sacrebleu", "rouge-score", "huggingface_hub")

PARSER = process.Arguments(description=__doc__)
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")
PARSER.add_argument("--output", type=Path, metavar="FILE", help=f"default {OUTPUT}")


def main() -> int:
    """Write the page, and log it to the deployment's MLflow run; returns the exit code."""
    flags = PARSER.parse_args()

    from src.evaluation.predictions import Prediction
    from src.report.page import Records, losses_of, no_past, render
    from utils import mlflow_utils
    from utils.answers import PREDICTIONS
    from utils.mlflow_utils import LocalArtifacts
    from utils.tracking.runs import log_page

    output = flags.output or OUTPUT
    params = load_params(flags.config or CONFIG)
    report_path = EVALUATION_RESULTS.with_name("report.json")
    report = EvaluationReport.load(report_path)
    client = None
    try:
        with process.deadline(params.mlflow.deadline_seconds, "reading the history from MLflow"):
            client = mlflow_utils.connect_to_read(params.mlflow)
            past = _past(client, params, report)
    except LocalArtifacts:
        raise
    except PipelineError as error:  # a report without its history is better than none
        logger.warning("%s", error)
        client, past = None, no_past(str(error))
    losses = losses_of(LOSSES.read_text(encoding="utf-8"), where=LOSSES) if LOSSES.is_file() else None
    compared = OUTPUT_DIR / results.COMPARISON
    seen = Records(
        report=report, model=records.FineTunedModel.load(MODEL_LOCATION), losses=losses, past=past,
        predictions=Prediction.load_lines(report_path.with_name(PREDICTIONS)), info=results.last_info(OUTPUT_DIR),
        comparison=records.read_object(compared) if compared.is_file() else {}, policy=params.deployment,
        versions={"Python": platform.python_version(),
                  **{name: importlib.metadata.version(name) for name in _SOFTWARE}})
    html = render(seen)
    json_utils.write_text(output, html)
    if client and seen.deployment_run:
        try:
            log_page(client, seen.deployment_run, html)
        except LocalArtifacts:
            raise
        except PipelineError as error:
            logger.warning("the report is not in MLflow: %s", error)
    process.say(f"report: {output} ({len(html.encode()):,} bytes)")
    return 0


def _past(client: "MlflowClient", params: Params, report: EvaluationReport) -> "ModelHistory":
    from src.report.page import ModelHistory, rival_run, rival_slot
    from utils.answers import logged_predictions
    from utils.tracking.history import HistoryReader
    from utils.tracking.ledger import MlflowLedger

    name, experiment = params.deployment.model_registry_name, params.mlflow.experiment_name
    ledger = MlflowLedger(client, name, experiment).view()
    reader = HistoryReader(client, experiment=experiment, model_name=name, contract=report.contract_digest)
    runs, older = reader.read_latest(RUNS)
    slot = rival_slot(ledger, report.model_digest)
    run_id = rival_run(slot, runs) if slot else None
    return ModelHistory(runs, older, ledger, logged_predictions(client, run_id) if run_id else None, problem="")


if __name__ == "__main__":
    process.run(main)
