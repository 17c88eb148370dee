"""The gate: whether a challenger replaces the champion, decided by comparable scores, guards and evidence. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Self

from src.core.params import DeploymentParams, GuardParams
from src.core.records import EvaluationReport, Metrics, weighted_score
from src.ledger.slots import PROMOTIONS, LedgerView


class Verdict(StrEnum):
    """What the gate decides."""

    PROMOTE = "promote"
    KEEP = "keep"
    ALREADY = "already"
    REFUSED = "refused"
    UNDECIDED = "undecided"


class Reason(StrEnum):
    """Why the gate decided so; docs/gate.md explains each reason."""

    ALREADY = "already"
    BLOCKED = "blocked"
    FORCED = "forced"
    NOT_PROMOTING_BRANCH = "not_promoting_branch"
    INCOMPARABLE = "incomparable"
    FIRST_MODEL = "first_model"
    NOT_BEST = "not_best"
    BELOW_THRESHOLD = "below_threshold"
    GUARD = "guard"
    WITHIN_NOISE = "within_noise"
    IMPROVED = "improved"


@dataclass(frozen=True)
class GainEvidence:
    """How sure a gain of the challenger over a baseline is, from `rows` shared rows; scores are in [0, 1].

    src.evaluation.significance computes it.

    gain: weighted score of the challenger minus that of the baseline, on these rows.
    low, high: its interval at `confidence`, within [-1, 1].
    p_value: what sacrebleu's PairedTest would print; for comparison only, nothing is decided by it.
    p_gain_positive, p_gain_at_least_threshold: share of resamples with gain > 0, and with gain >= threshold.
    minimum_detectable_gain: the smallest true gain that so many rows would show, at `confidence`, 4 times in 5.
    rows_needed: rows with which a true gain of `threshold` would show as often; None for a threshold of 0.
    """

    gain: float
    low: float
    high: float
    confidence: float
    threshold: float
    p_value: float
    p_gain_positive: float
    p_gain_at_least_threshold: float
    minimum_detectable_gain: float
    rows_needed: int | None
    rows: int
    resamples: int
    seed: int

    @property
    def includes_zero(self) -> bool:
        """True if the interval includes 0: the two models may be equally good."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class ScoredRun:
    """One evaluation of one model. finished_at is in milliseconds since the epoch."""

    run_id: str
    model_digest: str
    contract: str
    metrics: Metrics
    finished_at: int


@dataclass(frozen=True)
class Policy:
    """Score weights (their sum is 1), the smallest gain that promotes, and whether its interval must exclude 0.

    confidence: of the first challenger's interval; None if an earlier version of Champion recorded the decision.
    """

    weights: Mapping[str, float]
    threshold: Decimal
    require_significance: bool
    confidence: float | None = None

    @classmethod
    def from_params(cls, params: DeploymentParams) -> Self:
        """The policy in params.yaml."""
        return cls(params.weighted_scoring.weights, Decimal(repr(params.min_improvement_threshold)),
                   require_significance=params.significance == "require", confidence=params.confidence)

    def score(self, run: ScoredRun) -> Decimal:
        """The weighted score of a run's stored metrics under these weights."""
        return weighted_score(run.metrics.as_dict(), self.weights)


@dataclass(frozen=True)
class ScoresToBeat:
    """Best models and champion. `runs` counts the comparable models, a lower bound when `complete` is False."""

    best_evaluated: ScoredRun | None
    best_promoted: ScoredRun | None
    champion: ScoredRun | None
    runs: int
    complete: bool


@dataclass(frozen=True)
class Question:
    """Everything that a decision depends on.

    history: the evaluations, or of a long history (history_complete is False) those that can be a score to beat.
    hub_holds_release: False if nothing is pushed.
    failed_guard: the result of `failed_guard`, None if every guard holds.
    evidence: the paired bootstrap against the best promoted model, None without such a model or its answers.
    challengers: the number of this challenger since the last promotion, from 1; None if nothing depends on it.
    """

    challenger: ScoredRun
    history: Sequence[ScoredRun]
    history_complete: bool
    ledger: LedgerView
    policy: Policy
    force: bool
    may_promote: bool
    hub_holds_release: bool
    failed_guard: str | None
    evidence: GainEvidence | None
    challengers: int | None = None


@dataclass(frozen=True)
class Decision:
    """The result of the gate. overrode: the reason that force overruled, else None. gain: None for a first model."""

    verdict: Verdict
    reason: Reason
    score: Decimal
    to_beat: ScoresToBeat
    gain: Decimal | None
    overrode: Reason | None
    failed_guard: str | None
    evidence: GainEvidence | None


def failed_guard(guards: GuardParams, report: EvaluationReport, baseline: Metrics | None) -> str | None:
    """The first guard that the evaluation fails, as `name: what it found`; None if every guard holds.

    baseline: the metrics of the best promoted model, from which drops are measured; None for a first model.
    """
    return next(_failures(guards, report, baseline), None)


def comparable(history: Iterable[ScoredRun], challenger: ScoredRun, blocked: frozenset[str]) -> list[ScoredRun]:
    """The latest evaluation of each unblocked model, except the challenger, under the challenger's contract."""
    skipped = blocked | {challenger.model_digest}
    others = (run for run in history if run.run_id != challenger.run_id and run.model_digest not in skipped
              and run.contract == challenger.contract)
    return list(latest_by_model(others).values())


def latest_by_model(runs: Iterable[ScoredRun]) -> dict[str, ScoredRun]:
    """The latest run of each model, by digest."""
    return {run.model_digest: run for run in sorted(runs, key=lambda run: (run.finished_at, run.run_id))}


def best_of(runs: Iterable[ScoredRun], policy: Policy) -> ScoredRun | None:
    """The run with the highest score, None if there is none; of equals the earliest, so a tie keeps the champion."""
    return max(runs, key=lambda run: (policy.score(run), -run.finished_at, run.run_id), default=None)


def scores_to_beat(question: Question) -> ScoresToBeat:
    """Best evaluated model, best promoted model and champion among the comparable evaluations."""
    ledger, policy = question.ledger, question.policy
    records = comparable(question.history, question.challenger, ledger.blocked_digests)
    promoted, champion = ledger.promoted_digests, ledger.head.model_digest if ledger.head else None
    return ScoresToBeat(
        best_evaluated=best_of(records, policy),
        best_promoted=best_of((run for run in records if run.model_digest in promoted), policy),
        champion=next((run for run in records if run.model_digest == champion), None),
        runs=len(records), complete=question.history_complete,
    )


def decide(question: Question) -> Decision:
    """Decide by the table in docs/gate.md: the first row that matches. Force overrides every reason but `already`."""
    found, score = scores_to_beat(question), question.policy.score(question.challenger)
    best = found.best_promoted
    gain = score - question.policy.score(best) if best else None
    verdict, reason = _unforced(question, found, score, gain)
    overrode = None
    if question.force and verdict not in (Verdict.PROMOTE, Verdict.ALREADY):
        verdict, reason, overrode = Verdict.PROMOTE, Reason.FORCED, reason
    return Decision(verdict, reason, score, found, gain, overrode, question.failed_guard, question.evidence)


def needs_champion_evaluated(question: Question) -> bool:
    """True if the decision needs only one more thing: the champion's score under today's contract."""
    reason = _unforced(question, scores_to_beat(question), question.policy.score(question.challenger), None)[1]
    return question.ledger.head is not None and reason is Reason.INCOMPARABLE


def counted_since(ledger: LedgerView, first_evaluated: int | None) -> int:
    """The time from which challengers are counted, in milliseconds since the epoch: when the champion was promoted.

    Only slots of the kinds in PROMOTIONS count as promotions. After a rollback, the time is the earlier promotion of
    the model that is champion again. If the challenger was first evaluated (first_evaluated) before that time, the
    count starts at the promotion before its evaluation, because it was chosen from all models evaluated since then.
    """
    head = ledger.head
    promoted = [(_milliseconds(slot.time), slot.model_digest) for slot in ledger.slots if slot.kind in PROMOTIONS]
    since = max((time for time, digest in promoted if head and digest == head.model_digest), default=0)
    if first_evaluated is None or first_evaluated > since:
        return since
    return max((time for time, _ in promoted if time < first_evaluated), default=0)


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)


def _failures(guards: GuardParams, report: EvaluationReport, baseline: Metrics | None) -> Iterator[str]:
    if report.rows < guards.least_rows:
        yield f"least_rows: {report.rows} evaluated, {guards.least_rows} asked for"
    found, before = report.metrics.as_dict(), baseline.as_dict() if baseline else {}
    for name, floor in guards.metric_floors.items():
        if found[name] < floor:
            yield f"metric_floors.{name}: {found[name]:.4f} is below {floor}"
    for name, most in guards.largest_drops.items():
        drop = before.get(name, found[name]) - found[name]
        if drop > most:
            yield f"largest_drops.{name}: fell by {drop:.4f}, {most} is allowed"
    shares = [("largest_empty_share", report.empty_rows, guards.largest_empty_share),
              ("largest_truncated_share", report.truncated_rows, guards.largest_truncated_share),
              ("largest_overlap", report.overlap_rows, guards.largest_overlap)]
    if report.answer_overlap_rows is not None:
        shares.append(("largest_answer_overlap", report.answer_overlap_rows, guards.largest_answer_overlap))
    elif guards.largest_answer_overlap < 1:
        yield "largest_answer_overlap: not counted by the version that evaluated this model; evaluate it again"
    for share, rows, most in shares:
        if rows / report.rows > most:
            yield f"{share}: {rows} of {report.rows} rows, a share of {most} is allowed"


def _unforced(question: Question, found: ScoresToBeat, score: Decimal, gain: Decimal | None) -> tuple[Verdict, Reason]:
    ledger, digest = question.ledger, question.challenger.model_digest
    if ledger.head and ledger.head.model_digest == digest:
        return Verdict.ALREADY, Reason.ALREADY
    if digest in ledger.blocked_digests:
        return Verdict.REFUSED, Reason.BLOCKED
    if not question.may_promote:
        return Verdict.KEEP, Reason.NOT_PROMOTING_BRANCH
    if (ledger.head and found.champion is None) or (ledger.head is None and question.hub_holds_release):
        return Verdict.UNDECIDED, Reason.INCOMPARABLE
    return _by_score(question, found, score, gain)


def _by_score(question: Question, found: ScoresToBeat, score: Decimal, gain: Decimal | None) -> tuple[Verdict, Reason]:
    policy, best = question.policy, found.best_evaluated
    is_first = gain is None and (best is None or policy.score(best) <= score)
    if not is_first and best and score <= policy.score(best):
        return Verdict.KEEP, Reason.NOT_BEST
    if gain is not None and gain < policy.threshold:
        return Verdict.KEEP, Reason.BELOW_THRESHOLD
    if question.failed_guard:
        return Verdict.KEEP, Reason.GUARD
    if is_first:
        return Verdict.PROMOTE, Reason.FIRST_MODEL
    return _by_evidence(question)


def _by_evidence(question: Question) -> tuple[Verdict, Reason]:
    if not question.policy.require_significance:
        return Verdict.PROMOTE, Reason.IMPROVED
    if question.evidence is None:
        return Verdict.UNDECIDED, Reason.INCOMPARABLE
    noise = question.evidence.includes_zero
    return (Verdict.KEEP, Reason.WITHIN_NOISE) if noise else (Verdict.PROMOTE, Reason.IMPROVED)
