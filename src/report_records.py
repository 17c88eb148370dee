"""What a report is made of: the records of a deployment, and what MLflow knows of those before it."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import InvalidInput
from src.ledger import LedgerView, Slot
from src.model_selection import ScoredRun
from src.params import DeploymentParams
from src.predictions import Prediction
from src.records import EvaluationReport, FineTunedModel


@dataclass(frozen=True)
class Losses:
    """The loss per token of each epoch, from 1."""

    train: Sequence[float]
    validation: Sequence[float]


@dataclass(frozen=True)
class Past:
    """What MLflow knows of this model name under this contract.

    runs: the latest evaluations, oldest first, the challenger's own among them; older says that there are more.
    rival: the answers to compare with, None where they are not at hand.
    problem: why nothing of this is available, empty where it is.
    """

    runs: Sequence[ScoredRun]
    older: bool
    ledger: LedgerView
    rival: Sequence[Prediction] | None
    problem: str


@dataclass(frozen=True)
class Records:
    """All that a page is made of. info and comparison are the files of results/deployment, empty before a decision."""

    report: EvaluationReport
    model: FineTunedModel
    predictions: Sequence[Prediction]
    info: Mapping[str, Any]
    comparison: Mapping[str, Any]
    losses: Losses | None
    past: Past
    policy: DeploymentParams
    versions: Mapping[str, str]

    @property
    def are_judged(self) -> bool:
        """Whether info tells of a decision on the evaluated model, rather than of another one or of a failure."""
        report = self.report
        judged = (self.info.get("model_digest"), self.info.get("contract"))
        return judged == (report.model_digest, report.contract_digest)

    @property
    def deployment_run(self) -> str | None:
        """The MLflow run of the decision, None where it was not recorded."""
        run_id = str(self.info["deployment_run"]) if self.are_judged else "none"
        return None if run_id.startswith("none") else run_id


def no_past(problem: str) -> Past:
    """The past of a model when MLflow cannot be asked, with the reason."""
    return Past((), older=False, ledger=LedgerView(()), rival=None, problem=problem)


def losses_of(text: str, *, where: Path) -> Losses | None:
    """The content of loss.csv, None where it has no row; raises InvalidInput for other content."""
    rows = list(csv.DictReader(io.StringIO(text)))
    try:
        train, validation = ([float(row[name]) for row in rows] for name in ("train_loss", "validation_loss"))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{where}: {error!r}; run `dvc repro fine_tuning` to write it afresh") from None
    if not all(math.isfinite(loss) for loss in (*train, *validation)):
        raise InvalidInput(f"{where}: a loss is not finite; run `dvc repro fine_tuning` with a lower learning rate")
    return Losses(train, validation) if rows else None


def rival_slot(ledger: LedgerView, model_digest: str) -> Slot | None:
    """Whose answers stand beside the challenger's: the champion's, or its predecessor's where it is the champion."""
    is_champion = ledger.head is not None and ledger.head.model_digest == model_digest
    return ledger.previous if is_champion else ledger.head


def rival_run(slot: Slot, runs: Sequence[ScoredRun]) -> str | None:
    """The evaluation run with a model's answers: its latest under today's contract, else the one it was promoted by."""
    known = [run.run_id for run in runs if run.model_digest == slot.model_digest]
    return known[-1] if known else slot.evaluation_run
