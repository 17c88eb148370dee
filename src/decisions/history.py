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
from src.decisions.words import blocker, explain
from src.ledger.slots import LedgerView, Slot
from src.model_selection import Policy, Question, ScoredRun, decide

HEADINGS = ("contract", "rank", "score", "delta", "decision", "version", "alias", "age", "mark", "run_id",
            "model_digest", "finished")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation in the store; excluded is the tag that excludes it from comparisons, None if it counts."""

    run: ScoredRun
    excluded: str | None

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
    slots = {slot.model_digest: slot for slot in ledger.slots}
    context = _Context(ledger, policy, decisions, now, ledger.blocked_digests, slots)
    return [_group(contract, members, context) for contract, members in by_contract.items()]


def counting(evaluations: Iterable[Evaluation], ledger: LedgerView) -> list[ScoredRun]:
    """The latest evaluation of each model that is neither excluded nor blocked: the candidates for a score to beat."""
    latest: dict[tuple[str, str], ScoredRun] = {}
    blocked = ledger.blocked_digests
    for evaluation in sorted(evaluations, key=lambda e: (e.run.finished_at, e.run.run_id)):
        run = evaluation.run
        if evaluation.excluded is None and run.model_digest not in blocked:
            latest[run.contract, run.model_digest] = run
    return list(latest.values())


def in_the_way(evaluations: Sequence[Evaluation], ledger: LedgerView, policy: Policy) -> str | None:
    """A sentence naming the unpromoted run that alone keeps the latest challenger out; None if there is no such run."""
    latest = max((e.run for e in evaluations if e.excluded is None), key=lambda run: (run.finished_at, run.run_id),
                 default=None)
    if latest is None or ledger.head is None:
        return None
    question = Question(challenger=latest, history=counting(evaluations, ledger), history_complete=True, ledger=ledger,
                        policy=policy, force=False, may_promote=True, hub_holds_release=False, failed_guard=None,
                        evidence=None)
    decision = decide(question)
    return f"run {latest.run_id}: {explain(decision, policy)}" if blocker(decision, policy) else None


def header(name: str, group: Group, ledger: LedgerView, policy: Policy) -> list[str]:
    """The lines above a ranking: champion, best promoted and best evaluated model."""
    def side(run: ScoredRun | None) -> str:
        return f"{policy.score(run):.6f}  run {run.run_id}" if run else "none"

    head = ledger.head
    champion = f"version {head.version}, " if head else ""
    return [
        f"{name}: contract {group.contract[:12]}, comparable models: {group.models}",
        f"  champion        {champion}{side(group.champion)}",
        f"  best promoted   {side(group.best_promoted)}",
        f"  best evaluated  {side(group.best_evaluated)}",
    ]


def table(rows: Sequence[RankedRun]) -> str:
    """The ranking as aligned columns with a header line."""
    lines = [("rank", "score", "delta", "decision", "version", "alias", "age", "run", "mark")]
    for row in rows:
        delta = "" if row.delta is None else f"{row.delta:+.6f}"
        lines.append((str(row.rank or "-"), f"{row.score:.6f}", delta, row.decision, str(row.version or ""), row.alias,
                      row.age, row.run_id, row.mark))
    return tabulate(lines, tablefmt="plain", disable_numparse=True)


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


@dataclass(frozen=True)
class _Context:
    """What every line of the ranking is made from."""

    ledger: LedgerView
    policy: Policy
    decisions: Mapping[str, str]
    now: datetime
    blocked: frozenset[str]
    slots: Mapping[str, Slot]


def _group(contract: str, members: Sequence[Evaluation], context: _Context) -> Group:
    policy, ledger = context.policy, context.ledger
    counted = counting(members, ledger)
    champion = next((run for run in counted if ledger.head and run.model_digest == ledger.head.model_digest), None)
    promoted = ledger.promoted_digests
    ranked, ids = sorted(map(policy.score, counted)), {run.run_id for run in counted}
    rows = [_row(member, ranked if member.run.run_id in ids else None, champion, context) for member in members]
    rows.sort(key=lambda row: (row.rank is None, -row.score))
    return Group(contract, rows, len(counted), champion,
                 _best((run for run in counted if run.model_digest in promoted), policy), _best(counted, policy))


def _row(member: Evaluation, ranked: Sequence[Decimal] | None, champion: ScoredRun | None, context: _Context
         ) -> RankedRun:
    run, score, slot = member.run, context.policy.score(member.run), context.slots.get(member.run.model_digest)
    return RankedRun(
        contract=run.contract, score=score, decision=context.decisions.get(member.key, ""),
        rank=None if ranked is None else 1 + len(ranked) - bisect.bisect_right(ranked, score),
        delta=score - context.policy.score(champion) if champion else None,
        version=slot.version if slot else None, alias=_alias(run, context.ledger),
        age=age(run.finished_at, context.now),
        mark="" if ranked is not None else _mark(member, context.blocked), run_id=run.run_id,
        model_digest=run.model_digest,
        finished=datetime.fromtimestamp(run.finished_at / 1000, UTC).isoformat(timespec="seconds"),
    )


def _mark(member: Evaluation, blocked: frozenset[str]) -> str:
    if member.excluded is not None:
        return f"excluded: {exclusion_words(member.excluded)}"
    return "blocked" if member.run.model_digest in blocked else "superseded"


def _alias(run: ScoredRun, ledger: LedgerView) -> str:
    held = {"champion": ledger.head, "previous": ledger.previous}
    return next((alias for alias, slot in held.items() if slot and slot.model_digest == run.model_digest), "")


def _best(runs: Iterable[ScoredRun], policy: Policy) -> ScoredRun | None:
    return max(runs, key=lambda run: (policy.score(run), -run.finished_at), default=None)
