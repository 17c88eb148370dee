"""One deployment: answers the protocol's questions, and records how it ended."""

import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.evidence import PREDICTIONS, gain_evidence, logged_predictions, read_predictions
from scripts.wiring import Setting, prune, registry_of
from src import replay
from src.deployment_record import RESULTS, comparison, info, summary
from src.errors import Undecided
from src.evidence import GainEvidence
from src.guards import failed_guard
from src.ledger import HubRef, LedgerView, Slot
from src.model_selection import (
    Decision,
    Question,
    Reason,
    ScoredRun,
    Verdict,
    bars,
    challengers_since_head,
    contributions,
    decide,
    needs_champion_evaluated,
)
from src.promotion import Ports
from src.records import RELEASE_DIR, canonical_json
from utils import json_utils, mlflow_utils, process, results
from utils.deployment_run import DeploymentRun
from utils.mlflow_history import HistoryReader
from utils.mlflow_ledger import MlflowLedger
from utils.mlflow_registry import IDENTITY

logger = logging.getLogger("champion")

_EVALUATE_CHAMPION = (sys.executable, "scripts/evaluation_script.py", "--model", "champion")
_CODES = {Verdict.REFUSED: 7, Verdict.UNDECIDED: 4}


class Deployer:
    """Answers the protocol's questions for one setting, and records how it ended."""

    def __init__(self, setting: Setting) -> None:
        self._setting, params, key = setting, setting.params, setting.request.key
        name, experiment = params.deployment.model_registry_name, params.mlflow.experiment_name
        self.ledger = MlflowLedger(setting.client, name, experiment)
        self._run = DeploymentRun(setting.client, experiment, name, key)
        self.registry = registry_of(params, setting.client, self.ledger, save=_save, run_id=self._run.id,
                                    tags=self._tags)
        self._decision: Decision | None = None
        self._evidence_of_decision: Mapping[str, Any] = {}

    def ports(self) -> Ports:
        """What src.promotion works on."""
        return Ports(ledger=self.ledger, registry=self.registry, hub=self._setting.hub, decide=self.decide,
                     assemble=self._assemble, slot=self._slot, record=self.record, key=self._setting.request.key)

    def decide(self, view: LedgerView) -> Decision:
        """The gate over today's history; a champion without a comparable score is evaluated first."""
        question = self._question(view)
        if needs_champion_evaluated(question):
            self._evaluate_champion()
            question = self._question(view)
        decision = self._decision = decide(question)
        self._evidence_of_decision = replay.dump(question, decision, self._setting.inputs.report,
                                                 challengers_since_head(question))
        logger.info("decision: %s (%s), score %.6f, %d comparable models", decision.verdict, decision.reason,
                    decision.score, decision.bars.runs)
        return decision

    def record(self, decision: Decision, view: LedgerView) -> None:
        """Write results/deployment and the MLflow run, unless files and run say all of it already."""
        request, output = self._setting.request, self._setting.output
        compared, last = comparison(decision, request), results.last_info(output)
        facts = info(decision, request, view, code=self.code(decision), run_id="",
                     dry_run=self._setting.dry_run)
        unchanged = all(last.get(fact) == facts[fact] for fact in ("decision_id", "dry_run"))
        standing = last.get("result") in ("promoted", "already") and last.get("ledger_slot") == facts["ledger_slot"]
        said = unchanged or (decision.verdict is Verdict.ALREADY and standing)
        if said and (self._setting.dry_run or self._run.ended(last["deployment_run"])):
            facts["deployment_run"] = last["deployment_run"]
        else:
            facts["deployment_run"] = "none: dry run" if self._setting.dry_run else self._run.id()
            self._write(facts, compared)
        process.say(summary(facts, compared, str(output)))

    def prune(self) -> None:
        """Delete the weights of old versions, as far as deployment.keep_versions asks for it."""
        prune(self._setting.params, self.ledger, self.registry)

    def code(self, decision: Decision) -> int:
        """The exit code that a decision leads to."""
        if decision.verdict is Verdict.KEEP:
            return self._setting.code_when_kept
        return _CODES.get(decision.verdict, 0)

    def result(self, decision: Decision) -> tuple[str, int, str]:
        """What the PROMOTE line says of a decision."""
        would = self._setting.dry_run and decision.verdict is Verdict.PROMOTE
        result = "would_promote" if would else RESULTS[decision.verdict]
        return result, self.code(decision), decision.reason.value

    def _question(self, view: LedgerView) -> Question:
        setting, request = self._setting, self._setting.request
        with process.deadline(setting.params.mlflow.deadline_seconds, "reading the history from MLflow"):
            self._refuse_lost_history(view)
            reader = HistoryReader(setting.client, experiment=setting.params.mlflow.experiment_name,
                                   model_name=request.model_name, contract=request.challenger.contract)
            ignored = {request.challenger.model_digest, *view.blocked_digests}
            history = reader.read(request.policy, view, ignored)
        hub_holds_release = view.head is None and setting.hub is not None and setting.hub.holds_release()
        question = Question(challenger=request.challenger, history=history.runs,
                            history_complete=history.complete, ledger=view, policy=request.policy,
                            force=request.force, may_promote=setting.may_promote, hub_holds_release=hub_holds_release,
                            failed_guard=None, evidence=None)
        baseline = bars(question).best_promoted
        guards, report = setting.params.deployment.guards, setting.inputs.report
        return replace(question, failed_guard=failed_guard(guards, report, baseline.metrics if baseline else None),
                       evidence=self._evidence(baseline, question) if baseline else None)

    def _evidence(self, baseline: ScoredRun, question: Question) -> GainEvidence | None:
        setting = self._setting
        theirs = logged_predictions(setting.client, baseline.run_id)
        if theirs is None:
            return None
        return gain_evidence(
            read_predictions(setting.inputs.evaluations / PREDICTIONS), theirs, policy=question.policy,
            contract=question.challenger.contract, params=setting.params.deployment,
            challengers=challengers_since_head(question),
        )

    def _refuse_lost_history(self, view: LedgerView) -> None:
        name, experiment = self._setting.request.model_name, self._setting.params.mlflow.experiment_name
        if view.head and mlflow_utils.find_experiment(self._setting.client, experiment) is None:
            raise Undecided(f"{name}: has a champion, but MLflow experiment {experiment!r} with its history is "
                            "missing; correct mlflow.experiment_name or restore it")
        if view.head is None:
            holders = self.registry.holders()
            if holders.champion or holders.production:
                raise Undecided(f"{name}: the registry shows a champion that the ledger does not know; "
                                "run `python scripts/status_script.py --adopt`")

    def _evaluate_champion(self) -> None:
        if self._setting.dry_run:
            logger.warning("the champion has no score under today's contract; a dry run does not evaluate it")
            return
        logger.info("the champion has no score under today's contract; evaluating it first")
        command = [*_EVALUATE_CHAMPION, "--config", str(self._setting.config)]
        done = subprocess.run(command, check=False, stdout=sys.stderr)
        if done.returncode:
            logger.warning("the champion could not be evaluated (exit %d)", done.returncode)

    def _assemble(self, decision: Decision) -> None:
        from scripts.assembly import assemble

        assemble(self._setting.params, self._setting.inputs, decision, self._setting.request)

    def _slot(self, decision: Decision, view: LedgerView, version: int, hub: HubRef | None) -> Slot:
        request, report = self._setting.request, self._setting.inputs.report
        return Slot(
            number=view.next_number, kind="force" if decision.reason is Reason.FORCED else "promote",
            key=request.key, model_digest=report.model_digest, version=version, score=str(decision.score),
            metrics=report.metrics, contract=report.contract_digest, evaluation_run=report.run_id, hub=hub,
            blocks=[], unblocks=[], previous_sha256=view.head_sha256, actor=request.actor,
            reason=request.reason or "no reason given", git_commit=request.git_commit, ci_url=request.ci_url,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _tags(self) -> dict[str, str]:
        report, decision = self._setting.inputs.report, self._decision
        if decision is None:
            raise AssertionError("a version is registered after the decision")
        parts = contributions(report.metrics.as_dict(), self._setting.request.policy.weights)
        return {
            IDENTITY: canonical_json(report.model.model_dump(mode="json")),
            mlflow_utils.MODEL_DIGEST: report.model_digest,
            mlflow_utils.CONTRACT: report.contract_digest,
            "champion.score": str(decision.score),
            "champion.contributions": canonical_json(parts),
            "champion.gain": str(decision.gain),
            "champion.decision": decision.reason.value,
            "champion.evaluation_run": report.run_id,
        }

    def _write(self, facts: Mapping[str, Any], compared: Mapping[str, Any]) -> None:
        output = self._setting.output
        json_utils.write_object(output / results.COMPARISON, compared)
        json_utils.write_text(output / results.LOGS, self._setting.log.text())
        json_utils.write_object(output / results.INFO, facts)
        if not self._setting.dry_run:
            self._run.finish(facts, compared, self._evidence_of_decision, output)


def _save(folder: Path) -> None:
    from scripts.assembly import save_flavour  # torch: only a promotion pays for it

    save_flavour(RELEASE_DIR, folder)
