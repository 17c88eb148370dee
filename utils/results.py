"""results/ as the deployment stage reads and writes it: the challenger in, the records of the decision out."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.errors import InvalidInput, InvalidParams
from src.core.params import METRICS
from src.core.records import EvaluationReport, FineTunedModel, Metrics, manifest, read_object, tree_digest
from utils import json_utils
from utils.process import Formatter

INFO = "deployment_info.json"
COMPARISON = "model_comparison.json"
LOGS = "deployment_logs.txt"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """A challenger as the earlier stages left it: its score, what was scored, and where the adapter is."""

    report: EvaluationReport
    model: FineTunedModel
    evaluations: Path


def read_inputs(evaluation_results: Path, model_location: Path) -> Inputs:
    """The challenger's records, once they are checked to belong together.

    Raises InvalidInput for missing or malformed files, a metric that is missing or not in [0, 1], an evaluation of
    no rows, an adapter outside the repository, and metrics of another model than the adapter.
    """
    numbers = read_object(evaluation_results)
    metrics = _metrics(numbers, evaluation_results)
    report_path = evaluation_results.with_name("report.json")
    report = EvaluationReport.load(report_path)
    model = FineTunedModel.load(model_location)
    _check_same_evaluation(metrics, numbers.get("rows"), report, evaluation_results)
    adapter = _inside("adapter_path", model.adapter_path, model_location)
    _inside("base_model.path", model.base_model.path, model_location)
    found = tree_digest(manifest(adapter)) if any(adapter.iterdir()) else "empty"
    stale = "is stale: run `dvc repro evaluation`"
    if found != model.adapter_sha256:
        raise InvalidInput(f"{model_location}: the adapter in {adapter} is {found[:12]}, not "
                           f"{model.adapter_sha256[:12]}; run `dvc repro fine_tuning`")
    if report.model.adapter_sha256 != model.adapter_sha256:
        raise InvalidInput(f"{report_path}: scores adapter {report.model.adapter_sha256[:12]}, but the adapter at hand "
                           f"is {model.adapter_sha256[:12]}; it {stale}")
    if report.model_digest != report.model.digest() or report.contract_digest != report.contract.digest():
        raise InvalidInput(f"{report_path}: its digests do not follow from its content; it {stale}")
    return Inputs(report, model, evaluation_results.parent)


def check_output_dir(folder: Path) -> Path:
    """The folder for records, created if needed; raises InvalidParams for one that must not be written to."""
    try:
        resolved = folder.resolve()
    except RuntimeError as error:
        raise InvalidParams(f"--output-dir {folder}: {error}; use results/deployment") from None
    if any(place.resolve().is_relative_to(resolved) for place in (Path.home(), Path.cwd())):
        raise InvalidParams(f"--output-dir {folder}: holds other things; use results/deployment")
    try:
        resolved.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidParams(f"--output-dir {folder}: {error.strerror}; use results/deployment") from None
    if not os.access(resolved, os.W_OK):
        raise InvalidParams(f"--output-dir {folder}: is not writable; use results/deployment")
    return folder


def last_info(folder: Path) -> dict[str, Any]:
    """The deployment_info.json of the last run, empty if there is none or it cannot be read."""
    try:
        return read_object(folder / INFO)
    except InvalidInput:
        return {}


def write_failure(folder: Path, result: str, code: int, reason: str) -> None:
    """deployment_info.json of a run that ended without a decision; comparison and log of the run before stay."""
    json_utils.write_object(folder / INFO, {"result": result, "code": code, "reason": reason})


class LogBuffer(logging.Handler):
    """Keeps the log of a run in memory, so that a run that changes nothing leaves the old file alone."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self._lines.append(self.format(record))

    def text(self) -> str:
        """All that was logged, a line each."""
        return "".join(f"{line}\n" for line in self._lines)


def _metrics(numbers: dict[str, Any], path: Path) -> Metrics:
    if missing := [name for name in METRICS if name not in numbers]:
        raise InvalidInput(f"{path}: {', '.join(missing)} missing; expected {', '.join(METRICS)}; "
                           "run `dvc repro evaluation`")
    for name in METRICS:
        value = numbers[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInput(f"{path}: {name} is {value!r}, expected a number; run `dvc repro evaluation`")
        if not 0 <= value <= 1:
            raise InvalidInput(f"{path}: {name} is {value}, outside [0, 1] (sacrebleu's scale is 0 to 100); "
                               "run `dvc repro evaluation`")
    if not any(numbers[name] for name in METRICS):
        logger.warning("%s: every metric is 0; look at predictions.jsonl beside it", path)
    return Metrics(**{name: float(numbers[name]) for name in METRICS})


def _check_same_evaluation(metrics: Metrics, rows: object, report: EvaluationReport, path: Path) -> None:
    if isinstance(rows, bool) or not isinstance(rows, int | float) or rows < 1:
        raise InvalidInput(f"{path}: rows is {rows!r}, expected the number of evaluated rows; "
                           "run `dvc repro evaluation`")
    other = [n for n, v in metrics.as_dict().items() if abs(v - getattr(report.metrics, n)) > 1e-9]
    if rows != report.rows or other:
        what = other[0] if other else "rows"
        raise InvalidInput(f"{path}: {what} differs from report.json beside it, so these are the metrics of another "
                           "model; run `dvc repro evaluation`")


def _inside(key: str, value: str, source: Path) -> Path:
    path = Path(value)
    again = "run `dvc repro fine_tuning`"
    try:
        stays = path.resolve().is_relative_to(Path.cwd().resolve())
        found = path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL
        raise InvalidInput(f"{source}: {key} {value!r:.200}: {error!s:.100}; {again}") from None
    if path.is_absolute() or ".." in path.parts or not stays:
        raise InvalidInput(f"{source}: {key} {value!r:.200} leaves the repository; {again}")
    if not found:
        raise InvalidInput(f"{source}: {key} {value!r:.200}: no such folder; {again}")
    return path
