"""A long history in a real store: one really logged evaluation, multiplied by SQL."""

import random
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlRun, SqlTag

from src.core.params import Params
from src.core.records import EvaluationReport, digest_of
from src.ledger.slots import LedgerView, Slot
from src.model_selection import ScoredRun
from tests.fakes import factories
from utils.tracking.ledger import MlflowLedger

THRESHOLD = 0.001
BATCH = 500


@dataclass(frozen=True)
class Made:
    """One run of the history. counts is False where it must say nothing: crashed, deleted, excluded."""

    run: ScoredRun
    tags: dict[str, str]
    status: str
    stage: str
    counts: bool


SHARES = {"again": 0.05, "FAILED": 0.02, "deleted": 0.01, "excluded": 0.01, "other_contract": 0.02, "weights": 0.01}


def make_history(runs: int, contract: str, start: int, growth: float = 0.3, **odd: float) -> list[Made]:
    """Scores that grow as tuning goes on, the same for the same number; `odd` changes SHARES of the odd ones.

    again: evaluations of a model that was evaluated before. Without growth a model's earlier score is often its best.
    """
    shares = SHARES | odd
    rng = random.Random(runs)
    made: list[Made] = []
    for number in range(runs):
        score = round(0.3 + growth * (number / runs) ** 0.5 + rng.gauss(0, 0.02), 6)
        again = made and rng.random() < shares["again"]
        digest = rng.choice(made).run.model_digest if again else digest_of([runs, number])
        drawn = {name: rng.random() < share for name, share in shares.items()}
        tags = {"champion.excluded": "a broken machine"} if drawn["excluded"] else {}
        tags |= {"champion.weights": "0" * 64} if drawn["weights"] else {}
        silent = drawn["FAILED"] or drawn["deleted"] or drawn["excluded"]
        run = ScoredRun(uuid.UUID(int=rng.getrandbits(128)).hex, digest,
                        "e" * 64 if drawn["other_contract"] else contract,
                        factories.metrics(0.99 if silent else score), start + number * 1000)
        made.append(Made(run, tags, "FAILED" if drawn["FAILED"] else "FINISHED",
                         "deleted" if drawn["deleted"] else "active", not silent))
    return made


def promotions(made: list[Made], contract: str) -> list[ScoredRun]:
    """The runs that beat all before them by the threshold, as the gate would have promoted them."""
    found: list[ScoredRun] = []
    for one in made:
        better = not found or one.run.metrics.bleu4 - found[-1].metrics.bleu4 >= THRESHOLD
        if one.counts and one.run.contract == contract and better:
            found.append(one.run)
    return found


def multiply(engine: sqlalchemy.Engine, run_id: str, made: list[Made]) -> None:
    """Write runs with their deployments, in batches, after the rows of one really logged evaluation."""
    for table in (SqlRun, SqlTag, SqlLatestMetric, SqlMetric):
        with engine.begin() as connection:
            found = connection.execute(sqlalchemy.select(table.__table__).where(table.run_uuid == run_id))
            rows = [dict(row) for row in found.mappings()]
            for start in range(0, len(made), BATCH):
                connection.execute(sqlalchemy.insert(table.__table__), [
                    copy for one in made[start:start + BATCH] for copy in _copies(rows, table, one)])


def _copies(rows: list[dict[str, Any]], table: Any, one: Made) -> Iterator[dict[str, Any]]:
    run, deployment = one.run, one.run.run_id[::-1]
    tags = {"champion.model_digest": run.model_digest, "champion.contract": run.contract, **one.tags}
    for row in rows:
        if table is SqlRun:
            fresh = row | {"start_time": run.finished_at - 900, "end_time": run.finished_at,
                           "run_uuid": run.run_id, "status": one.status, "lifecycle_stage": one.stage,
                           "artifact_uri": row["artifact_uri"].replace(row["run_uuid"], run.run_id)}
            yield fresh
            yield fresh | {"run_uuid": deployment, "status": "FINISHED", "lifecycle_stage": "active",
                           "name": "deployment", "start_time": run.finished_at, "end_time": run.finished_at + 90}
        elif table is SqlTag:
            yield row | {"run_uuid": run.run_id, "value": tags.get(row["key"], row["value"])}
            if row["key"] in ("champion.model_name", "mlflow.user"):
                yield row | {"run_uuid": deployment}
            if row["key"] == "kind":
                yield row | {"run_uuid": deployment, "value": "deployment"}
        elif row["key"] == "rows":
            yield row | {"run_uuid": run.run_id}
        else:
            yield row | {"run_uuid": run.run_id, "value": run.metrics.bleu4}
    if table is SqlTag and "champion.excluded" in tags:
        yield {"run_uuid": run.run_id, "key": "champion.excluded", "value": tags["champion.excluded"]}


def fill(client: MlflowClient, params: Params, report: EvaluationReport, runs: int,
         **odd: float) -> tuple[list[Made], LedgerView]:
    """Multiply the evaluation of this report into a history with its ledger, then delete it; returns both."""
    engine = sqlalchemy.create_engine(client.tracking_uri)
    contract, run = report.contract_digest, client.get_run(report.run_id)
    made = make_history(runs, contract, run.info.end_time - runs * 1000, **odd)
    multiply(engine, report.run_id, made)
    engine.dispose()
    ledger = MlflowLedger(client, params.deployment.model_registry_name, params.mlflow.experiment_name)
    view = LedgerView(())
    source = Path(run.info.artifact_uri)
    for promoted in promotions(made, contract):
        folder = Path(str(source).replace(report.run_id, promoted.run_id))
        folder.mkdir(parents=True)
        shutil.copy(source / "predictions.jsonl", folder)
        claimed = slot(view, promoted)
        ledger.claim(claimed)
        view = LedgerView((*view.slots, claimed))
    client.delete_run(report.run_id)
    return made, view


def slot(view: LedgerView, run: ScoredRun) -> Slot:
    """The next slot: a promotion of what this run scored."""
    return factories.slot(view, "", run.metrics.bleu4, key=digest_of([run.model_digest, run.contract]),
                          model_digest=run.model_digest, metrics=run.metrics, contract=run.contract,
                          evaluation_run=run.run_id,
                          time=datetime.fromtimestamp(run.finished_at // 1000, UTC).isoformat())
