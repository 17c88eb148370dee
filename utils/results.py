"""results/ as the deployment stage reads and writes it: the challenger in, the records of the decision out."""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.errors import InvalidInput, InvalidParams
from src.core.params import METRICS
from src.core.records import (
    CHAMPION_FILE,
    EvaluationReport,
    FineTunedModel,
    Metrics,
    ModelIdentity,
    Record,
    canonical_json,
    manifest,
    read_object,
    tree_digest,
)
from src.ledger.ports import LEDGER_FILE
from src.ledger.slots import LedgerView, Slot
from utils import json_utils
from utils.process import Formatter, printable

INFO = "deployment_info.json"
_KEY_ON_CARD = re.compile(r"\| promotion key \| `([0-9a-f]{64})` \|")
_RUN_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
COMPARISON = "model_comparison.json"
LOGS = "deployment_logs.txt"
_LAST_KNOWN = "last_known"  # of a failure: the model's name and its champion as they were recorded before

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
    _check_named(report, model, report_path)
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


def recorded_champion(folder: Path, model_name: str) -> int | None:
    """The version that deployment_info.json names as this model's champion; one that failed keeps the last known."""
    info = last_info(folder)
    known = info.get(_LAST_KNOWN, info)
    return recorded(info)[0] if isinstance(known, dict) and known.get("model_name") == model_name else None


def recorded(info: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """Version and promotion key of the champion in a deployment_info.json, None where it does not say so."""
    known = info.get(_LAST_KNOWN, info)  # a deployment that failed keeps the last known
    champion = known.get("champion") if isinstance(known, dict) else None
    version, key = (champion.get(name) if isinstance(champion, dict) else None for name in ("version", "key"))
    return version if isinstance(version, int) else None, key if isinstance(key, str) else None


def write_failure(folder: Path, result: str, code: int, reason: str, log: str) -> None:
    """deployment_info.json and log of a run that ended without a decision; the comparison of the run before stays."""
    json_utils.write_text(folder / LOGS, log)
    before = last_info(folder)
    known = before.get(_LAST_KNOWN) or {name: before[name] for name in ("model_name", "champion") if before.get(name)}
    more = {_LAST_KNOWN: known} if "champion" in known else {}
    json_utils.write_object(folder / INFO, {"result": result, "code": code, "reason": reason, **more})


class LedgerLine(Record):
    """One line of ledger.jsonl: a slot, the name in the registry, and the model's identity if it is known here."""

    model_name: str
    identity: ModelIdentity | None = None
    slot: Slot


def read_ledger(folder: Path, model_name: str) -> list[LedgerLine]:
    """The lines of a model's ledger in a folder of records, empty if there are none.

    Raises InvalidInput for a file that cannot be read: a first model is never concluded from it.
    """
    return [line for line in _ledger_lines(folder / LEDGER_FILE) if line.model_name == model_name]


def write_ledger(folder: Path, model_name: str, view: LedgerView,
                 identities: Callable[[], Mapping[str, ModelIdentity]]) -> None:
    """Copy a model's ledger to a folder of records, for git to keep; other models' lines stay as they are.

    identities: gives those of the registered models, by promotion key; called if a line lacks its own. A copy that goes
    on beyond `view` stays: somebody appended to it meanwhile.
    """
    path = folder / LEDGER_FILE
    lines = _ledger_lines(path)
    ours = [line for line in lines if line.model_name == model_name]
    if tuple(line.slot for line in ours[:len(view.slots)]) == view.slots and len(ours) > len(view.slots):
        return
    known = {line.slot.key: line.identity for line in ours if line.identity}
    if any(slot.key not in known for slot in view.slots):
        known |= identities()
    ours = [LedgerLine(model_name=model_name, identity=known.get(slot.key), slot=slot) for slot in view.slots]
    others = [line for line in lines if line.model_name != model_name]
    text = "".join(f"{canonical_json(line.model_dump(mode='json'))}\n"
                   for line in sorted([*others, *ours], key=lambda line: (line.model_name, line.slot.number)))
    if text or path.exists():
        json_utils.write_text(path, text)


def _ledger_lines(path: Path) -> list[LedgerLine]:
    if not path.exists():
        return []
    try:
        return LedgerLine.load_lines(path)
    except InvalidInput as error:
        raise InvalidInput(f"{str(error).partition(';')[0]}; `git checkout -- {path}` brings back the one that was "
                           "committed, or look at it and delete it: it is written again from MLflow's ledger") from None


class LogBuffer(logging.Handler):
    """Keeps the log of a run in memory, so that a run that changes nothing leaves the old file alone.

    A line is a UTC time in ISO 8601, a level and a message; the last one says how the run ended.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        formatter = Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self._lines.append(self.format(record))

    def text(self, end: str) -> str:
        """All that was logged, a line each, and then how the run ended."""
        time_now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return "".join(f"{line}\n" for line in (*self._lines, f"{time_now} END {printable(end)}"))


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


def _check_named(report: EvaluationReport, model: FineTunedModel, path: Path) -> None:
    """Base and run: under another word for its base a model would be another one, which nobody blocked or counted."""
    for name in ("name", "revision", "sha256"):
        said, known = getattr(report.model, f"base_{name}"), getattr(model.base_model, name)
        if said != known:
            raise InvalidInput(f"{path}: scores base {name} {said!r:.70}, but the adapter at hand was trained on "
                               f"{known!r:.70}; it is stale: run `dvc repro evaluation`")
    if not _RUN_ID.fullmatch(report.run_id):
        raise InvalidInput(f"{path}: run_id {report.run_id!r:.70} is no id of an MLflow run; "
                           "run `dvc repro evaluation`")


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


def release_key(release: Path) -> str | None:
    """The promotion key of a release: champion.json's, or its card's if it was made before there was that file."""
    champion, card = release / CHAMPION_FILE, release / "README.md"
    if champion.is_file():
        return str(read_object(champion).get("key"))
    found = _KEY_ON_CARD.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return found[1] if found else None
