"""The ranking of all evaluations: which ones count, their ranks, and what was decided about each. Pure."""

import bisect
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tabulate import tabulate

from src.core.records import digest_of
from src.decisions.words import blocker, decision_words, explain, rounded, short
from src.ledger.slots import LedgerView
from src.model_selection import Policy, Question, ScoredRun, best_of, decide, latest_by_model

HEADINGS = ("contract", "rank", "score", "delta", "decision", "version", "alias", "age", "mark", "run_id",
            "model_digest", "finished")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation in the store. excluded, failed_guard: why it was excluded, or which guard it failed; else None."""

    run: ScoredRun
    excluded: str | None
    failed_guard: str | None = None

    @property
    def key(self) -> str:
        """The promotion key of its model under its contract; its deployment runs carry the same key."""
        return digest_of([self.run.model_digest, self.run.contract])


@dataclass(frozen=True)
class RankedRun:
    """One line of the ranking. finished is UTC in ISO 8601.

    rank: None if the evaluation does not count; mark says why.
    delta: its score minus the champion's under the same contract, None if the champion has none.
    """

    contract: str
    rank: int | None
    score: Decimal
    delta: Decimal | None
    decision: str
    version: int | None
    alias: str
    age: str
    mark: str
    run_id: str
    model_digest: str
    finished: str


@dataclass(frozen=True)
class Group:
    """The evaluations under one score contract, which are ranked together; models is how many models count."""

    contract: str
    rows: list[RankedRun]
    models: int
    champion: ScoredRun | None
    best_promoted: ScoredRun | None
    best_evaluated: ScoredRun | None


def groups(evaluations: Iterable[Evaluation], ledger: LedgerView, policy: Policy, decisions: Mapping[str, str],
           now: datetime) -> list[Group]:
    """Rank the evaluations of each contract; the contract of the latest evaluation comes first.

    decisions: what was decided, by promotion key.
    """
    by_contract: dict[str, list[Evaluation]] = {}
    for evaluation in sorted(evaluations, key=lambda e: (e.run.finished_at, e.run.run_id), reverse=True):
        by_contract.setdefault(evaluation.run.contract, []).append(evaluation)
    return [_group(members, ledger, policy, decisions, now) for members in by_contract.values()]


def in_the_way(evaluations: Sequence[Evaluation], ledger: LedgerView, policy: Policy) -> str | None:
    """A sentence naming the unpromoted run that alone keeps the latest challenger out; None if there is no such run."""
    counted = [evaluation for evaluation in evaluations if evaluation.excluded is None]
    if not counted or ledger.head is None:
        return None
    latest = max((evaluation.run for evaluation in counted), key=lambda run: (run.finished_at, run.run_id))
    runs = list(_to_beat([member for member in counted if member.run.contract == latest.contract], ledger).values())
    if latest not in runs:
        return None
    question = Question(challenger=latest, history=runs, history_complete=True, ledger=ledger, policy=policy,
                        force=False, may_promote=True, hub_holds_release=False, failed_guard=None, evidence=None)
    decision = decide(question)
    return f"run {latest.run_id}: {explain(decision, policy, ledger)}" if blocker(decision, policy) else None


def header(name: str, group: Group, ledger: LedgerView, policy: Policy) -> list[str]:
    """The lines above a ranking: champion, best promoted and best evaluated model."""
    versions = {slot.model_digest: f"version {slot.version}" for slot in ledger.slots}

    def side(run: ScoredRun | None) -> str:
        if run is None:
            return "none"
        score, status = rounded(policy.score(run))[0], versions.get(run.model_digest, "never promoted")
        return f"{status}, score {score}, MLflow run {short(run.run_id)}"

    champion = side(group.champion)
    if group.champion is None and ledger.head:
        champion = f"version {ledger.head.version}, not evaluated on this test set"
    count = f"{group.models} model{'' if group.models == 1 else 's'}"
    return [f"{name}: {count} evaluated on the same test set (contract {short(group.contract)})",
            f"  champion        {champion}",
            f"  best promoted   {side(group.best_promoted)}",
            f"  best evaluated  {side(group.best_evaluated)}"]


def table(rows: Sequence[RankedRun]) -> str:
    """The ranking as aligned columns with a header line."""
    lines = [("rank", "score", "to champion", "decision", "version", "alias", "age", "MLflow run", "not compared")]
    lines += [(str(row.rank or "-"), f"{row.score:.6f}", "" if row.delta is None else f"{row.delta:+.6f}",
               _decided(row.decision), str(row.version or ""), row.alias, row.age, short(row.run_id), row.mark)
              for row in rows]
    return tabulate(lines, tablefmt="plain", disable_numparse=True)


def _decided(decision: str) -> str:
    """A decision as the runs keep it, `keep (not_best)`, in words."""
    verdict, _, reason = decision.partition(" (")
    return decision_words(verdict, reason.removesuffix(")")) if reason else decision


def csv_text(rows: Iterable[RankedRun]) -> str:
    """The ranking as CSV, with HEADINGS as its first line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADINGS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def as_json(group: Group, rows: Iterable[RankedRun], policy: Policy) -> dict[str, Any]:
    """The ranking of one contract as a JSON value; scores are numbers."""
    def side(run: ScoredRun | None) -> dict[str, Any] | None:
        return {"run_id": run.run_id, "score": float(policy.score(run))} if run else None

    listed = [asdict(row) | {"score": float(row.score), "delta": None if row.delta is None else float(row.delta)}
              for row in rows]
    return {"contract": group.contract, "models": group.models, "champion": side(group.champion),
            "best_promoted": side(group.best_promoted), "best_evaluated": side(group.best_evaluated), "runs": listed}


def exclusion(reason: str, actor: str, now: datetime) -> str:
    """The value of the tag that excludes an evaluation: reason, actor and time, all written at once."""
    return json.dumps({"reason": reason, "actor": actor, "time": now.isoformat(timespec="seconds")})


def exclusion_words(note: str) -> str:
    """The value of such a tag in words; a value that was set by hand is returned unchanged."""
    try:
        return "{reason} ({actor}, {time})".format(**json.loads(note))
    except (ValueError, KeyError, TypeError):
        return note


def age(finished_at: int, now: datetime) -> str:
    """The time since finished_at (milliseconds since the epoch), in its largest whole unit."""
    seconds = max(0, int(now.timestamp() - finished_at / 1000))
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    return next((f"{seconds // size} {unit}" for unit, size in units if seconds >= size), "0 s")


def _group(members: Sequence[Evaluation], ledger: LedgerView, policy: Policy, decisions: Mapping[str, str],
           now: datetime) -> Group:
    """The ranking of evaluations under one contract."""
    head, by_model = ledger.head, _to_beat(members, ledger)
    counted = list(by_model.values())
    champion = by_model.get(head.model_digest) if head else None
    slots, promoted = {slot.model_digest: slot for slot in ledger.slots}, ledger.promoted_digests
    aliases = {slot.model_digest: alias for alias, slot in (("previous", ledger.previous), ("champion", head)) if slot}
    ranked = sorted(map(policy.score, counted))

    def row(member: Evaluation) -> RankedRun:
        run, score, slot = member.run, policy.score(member.run), slots.get(member.run.model_digest)
        counts = by_model.get(run.model_digest) is run
        return RankedRun(
            contract=run.contract, rank=1 + len(ranked) - bisect.bisect_right(ranked, score) if counts else None,
            score=score, delta=score - policy.score(champion) if champion else None,
            decision=decisions.get(member.key, ""), version=slot.version if slot else None,
            alias=aliases.get(run.model_digest, ""), age=age(run.finished_at, now),
            mark="" if counts else _mark(member, ledger), run_id=run.run_id, model_digest=run.model_digest,
            finished=datetime.fromtimestamp(run.finished_at / 1000, UTC).isoformat(timespec="seconds"),
        )

    rows = sorted(map(row, members), key=lambda row: (row.rank is None, -row.score))
    best_promoted = best_of((run for run in counted if run.model_digest in promoted), policy)
    return Group(members[0].run.contract, rows, len(counted), champion, best_promoted, best_of(counted, policy))


def _to_beat(members: Sequence[Evaluation], ledger: LedgerView) -> dict[str, ScoredRun]:
    """The evaluations of one contract that can be a score to beat: the latest of each model, without excluded ones.

    Blocked models are left out. So are models whose latest evaluation failed a guard, unless they were promoted.
    """
    blocked, promoted = ledger.blocked_digests, ledger.promoted_digests
    counted = {member.run.run_id: member for member in members if member.excluded is None}
    latest = latest_by_model(member.run for member in counted.values())
    return {digest: run for digest, run in latest.items()
            if digest not in blocked and (digest in promoted or counted[run.run_id].failed_guard is None)}


def _mark(member: Evaluation, ledger: LedgerView) -> str:
    """Why an evaluation has no rank."""
    digest = member.run.model_digest
    if member.excluded is not None:
        return f"excluded: {exclusion_words(member.excluded)}"
    if digest in ledger.blocked_digests:
        return "blocked"
    refused = member.failed_guard is not None and digest not in ledger.promoted_digests
    return f"refused by guard {member.failed_guard}" if refused else "superseded"
