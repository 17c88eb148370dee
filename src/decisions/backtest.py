"""Back-test: decide the history again under another policy, starting with an empty ledger. Pure."""

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from textwrap import indent
from typing import Any

from tabulate import tabulate

from src.core.errors import InvalidParams
from src.core.params import METRICS, DeploymentParams, validate
from src.core.records import digest_of
from src.decisions.words import decision_words, policy_words, short
from src.ledger.slots import LedgerView, Slot
from src.model_selection import Decision, GainEvidence, Policy, Question, Reason, ScoredRun, Verdict, decide

GetEvidence = Callable[[ScoredRun, ScoredRun, Policy, int], GainEvidence | None]
"""The paired bootstrap of a challenger against a baseline, for the k-th challenger since the last promotion."""


@dataclass(frozen=True)
class BacktestStep:
    """The decision of a policy about one evaluation. gain: over the best promoted model at that time."""

    run_id: str
    finished: str
    score: Decimal
    gain: Decimal | None
    decision: str
    reason: str

    @property
    def promotes(self) -> bool:
        """True if the model became the champion."""
        return self.decision == Verdict.PROMOTE.value

    def as_json(self) -> dict[str, Any]:
        """The step as JSON, with scores as numbers."""
        return asdict(self) | {"score": float(self.score), "gain": None if self.gain is None else float(self.gain)}


def changed(params: DeploymentParams, settings: Sequence[str]) -> DeploymentParams:
    """Apply settings like `weights.bleu4=0.5`, `threshold=0.01` or `significance=require` to params.

    Raises InvalidParams for any other setting, and for weights that do not sum to 1: they are never scaled silently.
    """
    values: dict[str, Any] = params.model_dump()
    for setting in settings:
        name, _, text = setting.partition("=")
        metric = name.removeprefix("weights.")
        if name == "significance":
            values[name] = text
        elif name == "threshold":
            values["min_improvement_threshold"] = _number(setting, text)
        elif name != metric and metric in METRICS:
            values["weighted_scoring"]["weights"][metric] = _number(setting, text)
        else:
            raise InvalidParams(f"--set {setting}: unknown; set threshold, significance or weights.<metric> "
                                f"({', '.join(METRICS)})")
    return validate(DeploymentParams, values, where="--set")


def backtest(runs: Iterable[ScoredRun], policy: Policy, get_evidence: GetEvidence) -> list[BacktestStep]:
    """Decide about each evaluation of one contract, in the order in which they finished.

    Guards, force and rollbacks are left out. get_evidence is called only if the policy requires significance.
    """
    replayed = _Replay(policy, get_evidence)
    return [replayed.step(run) for run in sorted(runs, key=lambda run: (run.finished_at, run.run_id))]


class _Replay:
    """A replayed ledger and history. A step compares only runs that can be a score to beat, which keeps it fast."""

    def __init__(self, policy: Policy, get_evidence: GetEvidence) -> None:
        self._policy = policy
        self._get_evidence = get_evidence
        self._ledger = LedgerView(())
        self._promoted: set[str] = set()
        self._latest: dict[str, ScoredRun] = {}
        self._ranked: list[tuple[Decimal, int, str, str]] = []  # score, age, run, model; the best is last
        self._since_head: set[str] = set()

    def step(self, run: ScoredRun) -> BacktestStep:
        """Decide about one evaluation, and add it to the history."""
        decision = self._decide(run)
        self._add(run)
        if decision.verdict is Verdict.PROMOTE:
            self._promote(run, decision.score)
        return BacktestStep(run.run_id, _iso(run.finished_at), decision.score, decision.gain,
                            decision.verdict.value, decision.reason.value)

    def _decide(self, run: ScoredRun) -> Decision:
        # The best two are enough: one of them may be the challenger's own model.
        digests = {entry[3] for entry in self._ranked[-2:]} | self._promoted
        question = Question(
            challenger=run, history=[self._latest[digest] for digest in sorted(digests)], history_complete=False,
            ledger=self._ledger, policy=replace(self._policy, require_significance=False), force=False,
            may_promote=True, hub_holds_release=False, failed_guard=None, evidence=None)
        decision = decide(question)
        baseline = decision.to_beat.best_promoted
        if decision.reason is not Reason.IMPROVED or not self._policy.require_significance or baseline is None:
            return decision
        challengers = 1 + len(self._since_head - {run.model_digest})
        found = self._get_evidence(run, baseline, self._policy, challengers)
        return decide(replace(question, policy=self._policy, evidence=found))

    def _add(self, run: ScoredRun) -> None:
        if before := self._latest.get(run.model_digest):
            del self._ranked[bisect.bisect_left(self._ranked, self._entry(before))]
        bisect.insort(self._ranked, self._entry(run))
        self._latest[run.model_digest] = run
        if run.model_digest not in self._promoted:
            self._since_head.add(run.model_digest)

    def _entry(self, run: ScoredRun) -> tuple[Decimal, int, str, str]:
        return self._policy.score(run), -run.finished_at, run.run_id, run.model_digest

    def _promote(self, run: ScoredRun, score: Decimal) -> None:
        view = self._ledger
        slot = Slot(
            number=view.next_number, kind="promote", key=digest_of([run.model_digest, run.contract]),
            model_digest=run.model_digest, version=view.next_number, score=str(score), metrics=run.metrics,
            contract=run.contract, evaluation_run=run.run_id, hub=None, blocks=[], unblocks=[],
            previous_sha256=view.head_sha256, actor="backtest", reason="backtest", git_commit="none", ci_url=None,
            time=_iso(run.finished_at))
        self._ledger = LedgerView((*view.slots, slot))
        self._promoted.add(run.model_digest)
        self._since_head.clear()


def comparison(contract: str, policies: Sequence[Policy], steps: Sequence[Sequence[BacktestStep]]) -> list[str]:
    """Two policies under one contract as lines of text: their totals, and the promotions of only one of them."""
    recorded, other = steps
    differ = [pair for pair in zip(recorded, other, strict=True) if pair[0].promotes != pair[1].promotes]
    title = f"{_count(len(recorded), 'evaluation')} on the same test set (contract {short(contract)})"
    lines = [f"{title}, decided again from an empty ledger",
             _totals("params.yaml", policies[0], recorded), _totals("--set", policies[1], other),
             f"{_count(len(differ), 'promotion')} {'differs' if len(differ) == 1 else 'differ'}"]
    if differ:
        cells = [("finished", "MLflow run", "params.yaml", "", "gain", "--set", "", "gain")]
        cells += [(one.finished, short(one.run_id), *_cells(one), *_cells(two)) for one, two in differ]
        lines += indent(tabulate(cells, tablefmt="plain", disable_numparse=True), "  ").splitlines()
    return lines


def _totals(name: str, policy: Policy, steps: Sequence[BacktestStep]) -> str:
    promoted = [step for step in steps if step.promotes]
    champion = f"score {promoted[-1].score:.6f}, MLflow run {short(promoted[-1].run_id)}" if promoted else "none"
    return f"  {name:11}  {policy_words(policy)}: {_count(len(promoted), 'promotion')}, the last champion: {champion}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _cells(step: BacktestStep) -> tuple[str, str, str]:
    gain = "" if step.gain is None else f"{step.gain:+.6f}"
    return f"{step.score:.6f}", decision_words(step.decision, step.reason), gain


def _number(setting: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidParams(f"--set {setting}: {text!r} is not a number") from None


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
