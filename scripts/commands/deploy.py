"""One deployment: its setting from flags, environment and params.yaml, what the protocol asks of it, and its record."""

import argparse
import gc
import logging
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from scripts.commands.claims import check_claims, check_logged
from scripts.commands.services import check_store, prune, republication
from src import model_selection as gate
from src.core.errors import IntegrityError, RunAgain, Undecided
from src.core.params import DeploymentParams, Params, load_params
from src.core.records import (
    CONFIG,
    EVALUATION_RESULTS,
    MODEL_LOCATION,
    OUTPUT_DIR,
    RELEASE_DIR,
    canonical_json,
    contributions,
    manifest,
    tree_digest,
)
from src.decisions.record import Request, comparison, evidence_of, info
from src.decisions.words import (
    NO_REASON,
    RESULTS,
    explain,
    rounded,
    terminal_summary,
    verdict_line,
    version_description,
)
from src.evaluation.metrics import tokenizer_of
from src.evaluation.predictions import Prediction, rescored
from src.evaluation.significance import choose_rows, gain_evidence
from src.ledger.ports import Hub
from src.ledger.slots import HubRef, LedgerView, Slot
from src.promotion.protocol import Ports
from src.promotion.rollback import prunable
from utils import environment, json_utils, mlflow_utils, process, results
from utils.answers import logged_predictions
from utils.tracking import deployments, store, tag
from utils.tracking.deployments import DeploymentRun
from utils.tracking.history import HistoryReader, HistoryRuns
from utils.tracking.ledger import MlflowLedger
from utils.tracking.registry import MlflowRegistry

logger = logging.getLogger("champion")
_CODES = {gate.Verdict.REFUSED: 7, gate.Verdict.UNDECIDED: 4}


@dataclass(frozen=True)
class Setting:
    """What one deployment works with, and the flags it was started with.

    shuffled: the places of all answers in an order drawn after they were read, so that no one who wrote them knew it.
    """

    params: Params
    config: Path
    request: Request
    inputs: results.Inputs
    answers: list[Prediction]
    shuffled: list[int]
    client: MlflowClient
    hub: Hub | None
    output: Path | None  # None: a dry run that writes nothing
    may_promote: bool
    dry_run: bool
    code_when_kept: int
    log: results.LogBuffer


def challenger_setting(flags: argparse.Namespace, output: Path | None, log: results.LogBuffer) -> Setting:
    """The setting for deploying the challenger in results/, from the command's flags."""
    config = flags.config or CONFIG
    params = load_params(config, _overrides(flags))
    _tell_overruled(params.deployment, load_params(config).deployment, config)
    asked = environment.asked(params.deployment, force=flags.force_deploy, reason=flags.reason,
                              skip_hf_push=flags.skip_hf_push)
    metrics = flags.evaluation_results or EVALUATION_RESULTS
    inputs = results.read_inputs(metrics, flags.model_artifact_path or MODEL_LOCATION)
    answers = check_claims(inputs, metrics, params)
    shuffled = secrets.SystemRandom().sample(range(len(answers)), len(answers))
    if asked.push and environment.in_ci():
        store.check_lasting(params.mlflow.tracking_uri)
    uri = store.tracking_uri(params.mlflow.tracking_uri)  # a dry run without a store is connected to another one
    client = (mlflow_utils.connect_to_read if flags.dry_run else mlflow_utils.connect)(params.mlflow)
    name = params.deployment.model_registry_name
    with process.deadline(params.mlflow.deadline_seconds, "reading the ledger from MLflow"):
        check_store(MlflowLedger(client, name, params.mlflow.experiment_name), name, OUTPUT_DIR, output or OUTPUT_DIR)
    hub = _hub(params, client) if asked.push else None
    if not flags.dry_run:
        inputs = deployments.with_known_run(client, inputs, params)
    check_logged(client, inputs.report, answers)
    git = environment.git_identity()
    request = Request(
        report=inputs.report, model=inputs.model, policy=gate.Policy.from_params(params.deployment),
        model_name=name, force=asked.force, actor=environment.actor(),
        reason=asked.reason, git_commit=git.commit, ci_url=environment.ci_url(), tracking_uri=uri)
    logger.info("results: score %s on %d rows, as the answers give it", *rounded(inputs.report.weighted_score),
                len(answers))
    may_promote = environment.may_promote(params.deployment.promoting_branches, git.branch)
    return Setting(params=params, config=config, request=request, inputs=inputs, answers=answers,
                   shuffled=shuffled, client=client, hub=hub, output=output, may_promote=may_promote,
                   dry_run=flags.dry_run, code_when_kept=10 if flags.fail_on_reject else 0, log=log)


def _hub(params: Params, client: MlflowClient) -> Hub:
    from scripts.commands.republish import hub_port  # huggingface_hub: only a push pays for it
    from utils.hub.repository import repository

    return hub_port(repository(params.deployment.huggingface), params, client)


def _tell_overruled(asked: DeploymentParams, stated: DeploymentParams, config: Path) -> None:
    for what, now, before in (
            ("threshold", asked.min_improvement_threshold, stated.min_improvement_threshold),
            ("Hub repository", asked.huggingface.model_id, stated.huggingface.model_id)):
        if now != before:
            logger.info("%s: the flag %s replaces %s of %s", what, now, before, config)


def _overrides(flags: argparse.Namespace) -> dict[str, Any]:
    deployment: dict[str, Any] = {}
    if flags.min_improvement_threshold is not None:
        deployment["min_improvement_threshold"] = flags.min_improvement_threshold
    if flags.hf_model_id is not None:
        deployment["huggingface"] = {"model_id": flags.hf_model_id}
    return {"deployment": deployment}


class Deployer:
    """Does what the protocol asks for one setting, and records the outcome."""

    def __init__(self, setting: Setting) -> None:
        self._setting, params, key = setting, setting.params, setting.request.key
        name, experiment = params.deployment.model_registry_name, params.mlflow.experiment_name
        self.ledger = MlflowLedger(setting.client, name, experiment)
        self._keep = params.deployment.keep_versions
        self._run = DeploymentRun(setting.client, experiment, name, key)
        self.registry = MlflowRegistry(
            setting.client, name, save=_save, run_id=self._run.id, tags=self._tags, description=self._description,
            spent=(lambda: prunable(self.ledger.view(), self._keep)) if self._keep else frozenset)
        self._decision: gate.Decision | None = None
        self._rival: list[Prediction] | None = None
        self._verified: Mapping[str, Any] | None = None
        self._evidence_of_decision: Mapping[str, Any] = {}
        self._view = LedgerView(())  # the ledger as it was at the decision
        self._notes: list[str] = []

    def ports(self) -> Ports:
        """The services and steps that the promotion protocol calls."""
        return Ports(ledger=self.ledger, registry=self.registry, hub=self._setting.hub, decide=self.decide,
                     assemble=self._assemble, slot=self._slot, record=self.record, key=self._setting.request.key,
                     republication=republication if self._setting.may_promote else None)

    def decide(self, view: LedgerView) -> gate.Decision:
        """Ask the gate, with the history as it is now; a champion without a comparable score is evaluated first."""
        question = self._question(view)
        if gate.needs_champion_evaluated(question):
            self._evaluate_champion()
            question = self._question(view)
        decision = self._decision = gate.decide(question)
        self._evidence_of_decision = evidence_of(question, decision, self._setting.inputs.report)
        self._view, self._notes = view, list(self._note_on_data(view))
        logger.info("decision: %s (%s), %s", decision.verdict, decision.reason,
                    explain(decision, self._setting.request.policy, view))
        return decision

    def record(self, decision: gate.Decision, view: LedgerView) -> None:
        """Write results/deployment and the MLflow run, unless both hold this decision already."""
        request, output = self._setting.request, self._setting.output
        self._mark_guard(decision)
        if output and not self._setting.dry_run:
            results.write_ledger(output, request.model_name, view, self.registry.identities)
        compared = {**comparison(decision, request, view), "verified_rows": self._verified}
        last = results.last_info(output) if output else {}
        facts = info(decision, request, view, code=self.code(decision), run_id="", dry_run=self._setting.dry_run)
        unchanged = all(last.get(fact) == facts[fact] for fact in ("decision_id", "dry_run"))
        standing = last.get("result") in ("promoted", "already") and last.get("ledger_slot") == facts["ledger_slot"]
        said = unchanged or (decision.verdict is gate.Verdict.ALREADY and standing)
        if said and (self._setting.dry_run or self._run.ended(last["deployment_run"])):
            facts["deployment_run"] = last["deployment_run"]
        else:
            facts["deployment_run"] = "none: dry run" if self._setting.dry_run else self._run.id()
            if output:
                self._write(facts, compared, output)
        process.say(terminal_summary(facts, compared, output, self._notes))

    def _mark_guard(self, decision: gate.Decision) -> None:
        """Tag the evaluation of a model that a guard refused. Done again when the decision is already on record, so
        that an interrupted deployment, or one by an earlier version, is completed."""
        if decision.verdict in (gate.Verdict.KEEP, gate.Verdict.PROMOTE) and not self._setting.dry_run:
            refused = decision.verdict is gate.Verdict.KEEP
            deployments.mark_guard(self._setting.client, self._setting.request.report.run_id,
                                   decision.failed_guard if refused else None)

    def prune(self) -> None:
        """Delete the weights of old versions, as deployment.keep_versions says."""
        if self._keep:
            prune(self._setting.params, self.ledger, self.registry)

    def code(self, decision: gate.Decision) -> int:
        """The exit code that a decision leads to."""
        if decision.verdict is gate.Verdict.KEEP:
            return self._setting.code_when_kept
        return _CODES.get(decision.verdict, 0)

    def result(self, decision: gate.Decision) -> tuple[str, int, str]:
        """What the PROMOTE line says of a decision."""
        would = self._setting.dry_run and decision.verdict is gate.Verdict.PROMOTE
        result = "would_promote" if would else RESULTS[decision.verdict]
        return result, self.code(decision), decision.reason.value

    def _question(self, view: LedgerView) -> gate.Question:
        setting, request = self._setting, self._setting.request
        with process.deadline(setting.params.mlflow.deadline_seconds, "reading the history from MLflow"):
            self._refuse_lost_history(view)
            reader = HistoryReader(setting.client, experiment=setting.params.mlflow.experiment_name,
                                   model_name=request.model_name, contract=request.challenger.contract)
            ignored = {request.challenger.model_digest, *view.blocked_digests}
            history = reader.read(request.policy, view, ignored)
            counted = request.policy.require_significance and view.head is not None
            challengers = reader.challengers(request.challenger, view) if counted else None
        found = len(history.runs)
        logger.info("history: %s%d evaluation%s on this test set", "" if history.complete else "long, read ", found,
                    "" if found == 1 else "s")
        hub_holds_release = view.head is None and setting.hub is not None and setting.hub.holds_release()
        question = gate.Question(
            challenger=request.challenger, history=history.runs, history_complete=history.complete, ledger=view,
            policy=request.policy, force=request.force, may_promote=setting.may_promote,
            hub_holds_release=hub_holds_release, failed_guard=None, evidence=None, challengers=challengers)
        baseline = gate.scores_to_beat(question).best_promoted
        guards, report = setting.params.deployment.guards, setting.inputs.report
        return replace(question, failed_guard=gate.failed_guard(guards, report, baseline.metrics if baseline else None),
                       evidence=self._evidence(baseline, question) if baseline else None)

    def _evidence(self, baseline: gate.ScoredRun, question: gate.Question) -> gate.GainEvidence | None:
        setting = self._setting
        theirs = logged_predictions(setting.client, baseline.run_id)
        self._rival = None if theirs is None else rescored(theirs, tokenizer_of(setting.inputs.report.contract))
        if self._rival is None:
            return None
        return gain_evidence(
            setting.answers, self._rival, policy=question.policy,
            contract=question.challenger.contract, params=setting.params.deployment,
            challengers=question.challengers)

    def _note_on_data(self, view: LedgerView) -> Iterator[str]:
        """A sentence for the reader if the champion was trained on another file than the challenger.

        A champion that was promoted on the same test set needs no look at MLflow. What is only a note must not stop a
        deployment.
        """
        setting, head = self._setting, view.head
        if head is None or head.evaluation_run is None or head.contract == setting.inputs.report.contract_digest:
            return
        runs = HistoryRuns(setting.client, experiment=setting.params.mlflow.experiment_name,
                           model_name=setting.request.model_name)
        with suppress(Undecided), process.deadline(setting.params.mlflow.deadline_seconds, "asking for the data"):
            evaluation = mlflow_utils.find_run(setting.client, head.evaluation_run)
            theirs = runs.data_of(evaluation.data.tags.get(tag.ADAPTER, "")) if evaluation else None
            ours = runs.data_of(setting.inputs.model.adapter_sha256)
            if theirs and ours and theirs != ours:
                yield (f"Your data ({ours}) joined the history of {theirs}, on which version {head.version} was "
                       "trained; a new value of deployment.model_registry_name gives it a history of its own.")

    def _refuse_lost_history(self, view: LedgerView) -> None:
        name, experiment = self._setting.request.model_name, self._setting.params.mlflow.experiment_name
        if view.head and mlflow_utils.find_experiment(self._setting.client, experiment) is None:
            raise Undecided(f"{name}: has a champion, but MLflow experiment {experiment!r} with its history is "
                            "missing; correct mlflow.experiment_name or restore it")
        if view.head is None:
            holders = self.registry.holders()
            if holders.champion or holders.production:
                raise Undecided(f"{name}: the registry shows a champion that the ledger does not know; "
                                "run `champion status --adopt`")

    def _evaluate_champion(self) -> None:
        if self._setting.dry_run:
            logger.warning("champion: has no score on this test set yet, and a dry run does not evaluate it")
            return
        head = self.ledger.view().head
        if head and head.version in self.registry.lost_weights():
            lost = (f"version {head.version} is the champion, and its weights are not in this MLflow store, so it "
                    "cannot be evaluated; promote the challenger with --force-deploy --reason TEXT, or bring the "
                    "weights back (docs/status.md)")
            if not self._setting.request.force:
                raise Undecided(lost)
            logger.warning("%s", lost)
            return
        logger.info("champion: has no score on this test set yet, so it is evaluated first")
        command = [sys.executable, "scripts/evaluation_script.py", "--model", "champion", "--config",
                   str(self._setting.config)]
        if code := subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            logger.warning("champion: its evaluation failed (exit %d)", code)

    def _assemble(self, decision: gate.Decision) -> None:
        from scripts.commands.assemble import assemble

        gc.enable()  # the script disables it, and weights must not stay in memory
        setting, rival = self._setting, self._rival if decision.to_beat.best_promoted else None
        verified = choose_rows(setting.answers, rival, setting.shuffled, setting.request.policy.weights,
                               count=setting.params.deployment.verified_rows)
        try:
            assemble(setting.params, setting.inputs, decision, setting.request, answers=setting.answers,
                     verified=verified)
        except IntegrityError as error:  # nobody could ever promote it, so it must not stand in the way of others
            with suppress(Undecided, RunAgain):  # what failed first is what is told
                deployments.mark_guard(setting.client, setting.request.report.run_id, f"release: {error!s:.200}")
            raise
        self._verified = {name: [setting.answers[place].id for place in places]
                          for name, places in asdict(verified).items()}

    def _slot(self, decision: gate.Decision, view: LedgerView, version: int, hub: HubRef | None) -> Slot:
        request, report = self._setting.request, self._setting.inputs.report
        return Slot(
            number=view.next_number, kind="force" if decision.reason is gate.Reason.FORCED else "promote",
            key=request.key, model_digest=report.model_digest, version=version, score=str(decision.score),
            metrics=report.metrics, contract=report.contract_digest, evaluation_run=report.run_id, hub=hub,
            blocks=[], unblocks=[], previous_sha256=view.head_sha256, actor=request.actor,
            reason=request.reason or NO_REASON, git_commit=request.git_commit, ci_url=request.ci_url,
            time=datetime.now(UTC).isoformat(timespec="seconds"))

    def _tags(self) -> dict[str, str]:
        report, decision = self._setting.inputs.report, self._decision
        if decision is None:
            raise AssertionError("a version is registered after the decision")
        parts = contributions(report.metrics.as_dict(), self._setting.request.policy.weights)
        return {
            tag.IDENTITY: canonical_json(report.model.model_dump(mode="json")),
            tag.MODEL_DIGEST: report.model_digest,
            tag.CONTRACT: report.contract_digest,
            **({tag.RELEASE: tree_digest(manifest(RELEASE_DIR))} if RELEASE_DIR.is_dir() else {}),
            tag.SCORE: str(decision.score),
            **{f"{tag.METRIC}{name}": repr(value) for name, value in report.metrics.as_dict().items()},
            tag.CONTRIBUTIONS: canonical_json(parts),
            tag.GAIN: str(decision.gain),
            tag.REASON: decision.reason.value,
            tag.EVALUATION_RUN: report.run_id,
        }

    def _description(self) -> str:
        request, decision = self._setting.request, self._decision
        if decision is None:
            raise AssertionError("a version is registered after the decision")
        return version_description(decision, request.policy, request.report, self._view, request.git_commit)

    def _write(self, facts: Mapping[str, Any], compared: Mapping[str, Any], output: Path) -> None:
        json_utils.write_object(output / results.COMPARISON, compared)
        json_utils.write_text(output / results.LOGS, self._setting.log.text(verdict_line(facts, compared)))
        json_utils.write_object(output / results.INFO, facts)
        if not self._setting.dry_run:
            self._run.finish(facts, compared, self._evidence_of_decision, output)


def _save(folder: Path) -> None:
    from scripts.commands.assemble import save_flavour  # torch: only a promotion pays for it

    save_flavour(RELEASE_DIR, folder)
