"""The actions of history_script.py: list, exclude, explain, back-test, and promote an earlier evaluation."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Any

from src.core import records
from src.core.errors import IntegrityError, InvalidInput, InvalidParams, Refused
from src.core.params import METRICS, load_params
from src.core.records import EvaluationReport, read_object
from src.decisions import backtest, history
from src.decisions.history import Evaluation
from src.decisions.record import differences, evidence_of, question_of
from src.decisions.words import explain_lines, short, untrue
from src.evaluation.metrics import RowStatistics, corpus_scores, tokenizer_of
from src.evaluation.predictions import Prediction, rescored, statistics_of
from src.evaluation.significance import gain_evidence
from src.ledger.slots import LedgerView
from src.model_selection import GainEvidence, Policy, Question, ScoredRun, decide, scores_to_beat
from utils import environment, json_utils, mlflow_utils
from utils.answers import logged_predictions
from utils.tracking.history import HistoryReader, HistoryRuns
from utils.tracking.ledger import MlflowLedger
from utils.tracking.tag import CONTRACT, EXCLUDED, KIND, MODEL_DIGEST

_SAME = 1e-9  # scores are rounded to that; the last bit of a logarithm is the processor's
logger = logging.getLogger("champion")
_SCRATCH = Path(".promotion")
_DEPLOYMENT = Path(__file__).parents[1] / "deployment_script.py"


class HistoryCommands:
    """The actions on the evaluations of the model that a params.yaml names."""

    def __init__(self, config: Path) -> None:
        self._params = load_params(config)
        self._name = self._params.deployment.model_registry_name
        self._policy = Policy.from_params(self._params.deployment)
        self._client = mlflow_utils.connect_to_read(self._params.mlflow)
        experiment = self._params.mlflow.experiment_name
        self._runs = HistoryRuns(self._client, experiment=experiment, model_name=self._name)
        self._reader = HistoryReader(self._client, experiment=experiment, model_name=self._name, contract=None)
        self._ledger = MlflowLedger(self._client, self._name, experiment)

    def listing(self, form: str, limit: int | None) -> str:
        """The ranking as `table`, `json` or `csv`, limited to the first `limit` rows of each contract."""
        view, evaluations = self._ledger.view(), self._evaluations()
        promotions = {slot.key: f"promote ({slot.kind})" for slot in view.slots if slot.kind in ("promote", "force")}
        groups = history.groups(evaluations, view, self._policy, promotions | self._runs.decisions(), datetime.now(UTC))
        shown = [(group, group.rows[:limit]) for group in groups]
        if form == "csv":
            return history.csv_text(row for _, rows in shown for row in rows).rstrip("\n")
        blocking = history.in_the_way(evaluations, view, self._policy)
        if form == "json":
            contracts = [history.as_json(group, rows, self._policy) for group, rows in shown]
            return _json({"model": self._name, "champion_version": view.head.version if view.head else None,
                          "in_the_way": blocking, "contracts": contracts})
        lines: list[str] = []
        for group, rows in shown:
            more = len(group.rows) - len(rows)
            lines += [*history.header(self._name, group, view, self._policy), history.table(rows),
                      *([f"... and {more} more"] if more else []), ""]
        lines += [f"latest evaluation: {blocking.partition(': ')[2]}"] if blocking else []
        return "\n".join(lines).rstrip("\n") or f"{self._name}: no evaluations"

    def exclude(self, run_id: str, reason: str) -> str:
        """Exclude an evaluation from every later comparison; returns a line that says so.

        Raises InvalidParams if the run is no evaluation of this model, Refused if its model was promoted: that takes a
        rollback, which the ledger records.
        """
        run = self._runs.find(run_id, "evaluation")
        if note := run.data.tags.get(EXCLUDED):
            return f"run {short(run_id)} was already excluded: {history.exclusion_words(note)}"
        digest = run.data.tags.get(MODEL_DIGEST)
        slot = next((s for s in reversed(self._ledger.view().slots) if s.model_digest == digest), None)
        if slot and digest in self._ledger.view().promoted_digests:
            raise Refused(f"run {short(run_id)}: is the score of version {slot.version}, which was promoted, so it "
                          "cannot be excluded; evaluate it again (the latest score counts), or "
                          f"`champion rollback --block {slot.version}`")
        note = history.exclusion(reason, environment.actor(), datetime.now(UTC))
        self._runs.exclude(run, note)
        return f"run {short(run_id)} is excluded from every later comparison: {history.exclusion_words(note)}"

    def explain(self, run_id: str) -> tuple[list[str], list[str], list[str]]:
        """A recorded decision in words, what differs in a replay of it today, and who states an untrue score."""
        run = self._runs.find(run_id, "deployment", "evaluation")
        if run.data.tags[KIND] == "evaluation":
            key = records.digest_of([run.data.tags.get(MODEL_DIGEST), run.data.tags.get(CONTRACT)])
            deployment = self._runs.deployment_of(key)
            if deployment is None:
                raise InvalidParams(f"run {short(run_id)}: nothing was decided about it yet; run "
                                    f"`champion history --promote {short(run_id)}`")
            run = deployment
        recorded = self._runs.evidence(run)
        question, report = _loaded(recorded, run.info.run_id)
        tokenizer = tokenizer_of(report.contract)
        found = self._question_today(question, tokenizer)
        again = evidence_of(found, decide(found), report)
        differing = differences(recorded, json.loads(json.dumps(again)))
        where = f"  {'recorded in':14}  MLflow run {short(run.info.run_id)}"
        return [*explain_lines(question, decide(question)), where], differing, self._untrue(question, tokenizer)

    def _untrue(self, question: Question, tokenizer: str) -> list[str]:
        """Who states other scores of challenger or baseline than their logged answers give: files, MLflow, record."""
        baseline, lines = scores_to_beat(question).best_promoted, list[str]()
        for run in filter(None, (question.challenger, baseline)):
            given, found = logged_predictions(self._client, run.run_id), mlflow_utils.find_run(self._client, run.run_id)
            if given is None or found is None:
                continue
            source = f"MLflow run {run.run_id}"
            claims: dict[str, Mapping[str, float]] = {
                **_local_claims(run.run_id), source: found.data.metrics, "the recorded decision": run.metrics.as_dict()}
            lines += untrue(corpus_scores(statistics_of(given, tokenizer)), claims, source)
            true = rescored(given, tokenizer)
            altered = (old.id for old, new in zip(given, true, strict=True) if old.stats != new.stats)
            lines += [f"{source}: predictions.jsonl has statistics of row {row_id} that its text does not give"
                      for row_id in list(altered)[:1]]
        return lines

    def backtest(self, settings: Sequence[str], form: str) -> str:
        """Decide the history again under today's policy and under the changed one, each from an empty ledger."""
        policies = [self._policy, Policy.from_params(backtest.changed(self._params.deployment, settings))]
        answers = lru_cache(maxsize=8)(lambda run_id: logged_predictions(self._client, run_id))

        def evidence(ours: ScoredRun, theirs: ScoredRun, policy: Policy, challengers: int) -> GainEvidence | None:
            given, before = answers(ours.run_id), answers(theirs.run_id)
            if given is None or before is None:
                return None
            return gain_evidence(given, before, policy=policy, contract=ours.contract, params=self._params.deployment,
                                 challengers=challengers)

        by_contract: dict[str, list[ScoredRun]] = {}
        for run in sorted((e.run for e in self._evaluations() if e.excluded is None), key=lambda r: -r.finished_at):
            by_contract.setdefault(run.contract, []).append(run)
        steps = {contract: [backtest.backtest(runs, policy, evidence) for policy in policies]
                 for contract, runs in by_contract.items()}
        if form == "json":
            return _json([{"contract": contract, "recorded": [step.as_json() for step in before],
                           "other": [step.as_json() for step in after]} for contract, (before, after) in steps.items()])
        found = (backtest.comparison(contract, policies, both) for contract, both in steps.items())
        return "\n".join(line for lines in found for line in lines) or f"{self._name}: no evaluations"

    def _answers(self, run_id: str, tokenizer: str) -> list[Prediction] | None:
        """The answers that an evaluation run keeps, their statistics computed from the texts; None if it keeps none."""
        found = logged_predictions(self._client, run_id)
        return None if found is None else rescored(found, tokenizer)

    def _evaluations(self) -> list[Evaluation]:
        return [Evaluation(*found) for found in self._reader.evaluations()]

    def _question_today(self, question: Question, tokenizer: str) -> Question:
        """The recorded question with the scores, interval and ledger that the store holds now."""
        baseline, recorded = scores_to_beat(question).best_promoted, question.evidence
        ids = [question.challenger.run_id, *([baseline.run_id] if baseline else [])]
        answers = {name: self._answers(name, tokenizer) for name in ids}
        policy, evidence = question.policy, None
        counted = question.challengers if policy.require_significance or policy.confidence is None else None
        ours, theirs = answers[ids[0]], answers[ids[-1]]
        if recorded and baseline and ours is not None and theirs is not None:
            stated, number = policy.confidence, counted
            if stated is None:  # the record of a version that counted otherwise: its interval is taken as it was
                stated, number = recorded.confidence, None
            params = self._params.deployment.model_copy(update={"confidence": stated})
            evidence = gain_evidence(ours, theirs, policy=policy, contract=question.challenger.contract, params=params,
                                     challengers=number, resamples=recorded.resamples)
        slots = self._ledger.view().slots[: len(question.ledger.slots)]
        return replace(question, ledger=LedgerView(slots), evidence=evidence, challengers=counted,
                       challenger=_scored_again(question.challenger, answers),
                       history=[_scored_again(run, answers) for run in question.history])


def _local_claims(run_id: str) -> dict[str, dict[str, float]]:
    """The metrics in results/evaluations, by file, if they are of this evaluation."""
    path = records.EVALUATION_RESULTS.with_name("report.json")
    try:
        report, numbers = read_object(path), read_object(records.EVALUATION_RESULTS)
    except InvalidInput:
        return {}
    if report.get("run_id") != run_id:
        return {}
    stated = {str(records.EVALUATION_RESULTS): numbers, str(path): report.get("metrics", {})}
    return {file: {name: float(values[name]) for name in METRICS if isinstance(values.get(name), int | float)}
            for file, values in stated.items()}


def _scored_again(run: ScoredRun, answers: Mapping[str, list[Prediction] | None]) -> ScoredRun:
    given = answers.get(run.run_id)
    if given is None:
        return run
    found = corpus_scores(RowStatistics.from_rows([row.stats for row in given]))
    known = run.metrics.as_dict()
    found |= {name: value for name, value in known.items() if abs(found[name] - value) <= _SAME}
    return replace(run, metrics=records.Metrics(**found))


def _loaded(recorded: Mapping[str, Any], run_id: str) -> tuple[Question, EvaluationReport]:
    where = Path(f"run {run_id}: evidence.json")
    try:
        return question_of(recorded, where=where), EvaluationReport.parse(recorded["report"], where=where)
    except (KeyError, TypeError, ValueError, InvalidOperation) as error:
        raise IntegrityError(f"{where}: cannot be read as evidence ({error!r:.200}), so it was altered; restore it "
                             "from the artifact store's backup") from error


def _json(value: object) -> str:
    return json.dumps(value, indent=2, allow_nan=False)


def promote(config: Path, run_id: str, reason: str | None) -> int:
    """Restore the files of an evaluated model from MLflow, and run the deployment with it; returns its exit code.

    Raises InvalidParams if the run is no evaluation of this model, InvalidInput if a file of it is missing, Refused
    if results/base_model holds another base model.
    """
    params = load_params(config)
    client = mlflow_utils.connect_to_read(params.mlflow)
    runs = HistoryRuns(client, experiment=params.mlflow.experiment_name,
                       model_name=params.deployment.model_registry_name)
    run_id = runs.find(run_id, "evaluation").info.run_id
    _SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="restored-", dir=_SCRATCH) as scratch:
        folder = Path(scratch)
        for name in ("metrics.json", "report.json", "predictions.jsonl"):
            runs.download(run_id, name, folder)
        report = EvaluationReport.parse(read_object(folder / "report.json"), where=f"run {run_id}")
        _check_base(report)
        model = _restore(runs, run_id, report, folder)
        location = folder / records.MODEL_LOCATION.name
        json_utils.write_object(location, model.model_dump(mode="json"))
        command = [sys.executable, str(_DEPLOYMENT), "--config", str(config), "--evaluation-results",
                   str(folder / "metrics.json"), "--model-artifact-path", str(location)]
        command += [] if reason is None else ["--reason", reason]
        return subprocess.run(command, check=False).returncode


def _check_base(report: EvaluationReport) -> None:
    base = records.BaseModelRef.load(records.BASE_MODEL)
    if base.sha256 != report.model.base_sha256:
        raise Refused(f"run {report.run_id}: was trained on base {report.model.base_name}@{report.model.base_revision} "
                      f"(sha256 {report.model.base_sha256[:12]}), results/base_model is {base.name}@{base.revision} "
                      f"({base.sha256[:12]}); set model.base_model and model.revision, and run `dvc repro base_model`")


def _restore(runs: HistoryRuns, run_id: str, report: EvaluationReport, folder: Path) -> records.FineTunedModel:
    """Download the adapter into `folder` from the run that trained it; returns its record."""
    wanted = report.model.adapter_sha256
    trained = runs.training_of(wanted)
    if trained is None:
        raise InvalidParams(f"run {run_id}: MLflow has no training run of its adapter {wanted[:12]}; "
                            "train it again with `dvc repro fine_tuning evaluation` on its commit")
    name = trained.info.run_id
    adapter = runs.download(name, "adapter", folder)
    if records.tree_digest(records.manifest(adapter)) != wanted:
        raise InvalidInput(f"MLflow run {name}: its adapter is not {wanted[:12]} any more, so the artifact store was "
                           "changed; restore it from a backup")
    location = runs.download(name, records.MODEL_LOCATION.name, folder)
    model = records.FineTunedModel.parse(read_object(location), where=f"MLflow run {name}: {location.name}")
    logger.info("restored adapter %s from run %s", wanted[:12], name)
    return model.model_copy(update={"adapter_path": Path(os.path.relpath(adapter)).as_posix()})
