"""Read from MLflow what a decision needs of the score history, at a cost that hardly grows with its length.

Ordering by a metric on the server is quadratic on sqlite and silently wrong with NaN, infinity, a typo or a re-logged
step. Asking for the runs above a score is exact and fast, so a long history is searched that way. Each run is tagged
with the hash of the weights it was scored under. The server compares the scores of runs under today's weights. All
other runs are read page by page.
"""

import logging
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from pydantic import ValidationError

from src.core.errors import InvalidInput, InvalidParams, Undecided
from src.core.params import METRICS
from src.core.records import Metrics, digest_of, read_object
from src.ledger.slots import LedgerView
from src.model_selection import Policy, ScoredRun, counted_since
from utils.mlflow_utils import EVIDENCE, LocalArtifacts, fetch_files, find_experiment, find_run, mlflow_errors
from utils.tracking import tag

logger = logging.getLogger(__name__)
PAGE = 1000
_SHORT_ID = re.compile(r"[0-9a-f]{8,31}")
SHORT = 300  # a history of at most so many runs is read completely
T = TypeVar("T")


@dataclass(frozen=True)
class ScoreHistory:
    """Comparable evaluations. complete: False if there are more than `SHORT`, and these are only those that decide."""

    runs: tuple[ScoredRun, ...]
    complete: bool


@dataclass(frozen=True)
class _Found:
    """A comparable run. is_refused: True if its model failed a guard and was never promoted by force."""

    run: ScoredRun
    is_refused: bool


_Ask = Callable[[str, str | None], tuple[list[_Found], str | None]]


class HistoryReader:
    """Reads the evaluations of one registered model in one experiment, under one score contract."""

    def __init__(self, client: MlflowClient, *, experiment: str, model_name: str, contract: str | None) -> None:
        """contract: None to list the evaluations under every contract."""
        self._client, self._experiment = client, experiment
        # sqlite joins in the order of the clauses, so the one that fewest runs match comes first.
        self._wanted = {**({tag.CONTRACT: contract} if contract else {}), tag.MODEL_NAME: model_name,
                        tag.KIND: "evaluation"}

    def read(self, policy: Policy, ledger: LedgerView, ignored: Collection[str]) -> ScoreHistory:
        """Every run when there are at most 300; otherwise only those that can change the decision.

        Those are the champion's run, the best run of all models and the best of the promoted ones. The ignored models
        (the challenger and blocked ones) are left out, and so are models whose latest evaluation failed a guard.
        Raises Undecided if the server does not answer, or answers with runs that were not asked for.
        """
        experiment = find_experiment(self._client, self._experiment)
        if experiment is None:
            return ScoreHistory((), complete=True)
        home = experiment.experiment_id
        first, more = self._page(home, "", None, SHORT)
        if more is None:
            return ScoreHistory(tuple(_standing(self._found(first, ledger))), complete=True)

        def ask(clause: str, token: str | None) -> tuple[list[_Found], str | None]:
            runs, following = self._page(home, clause, token)
            return self._found(runs, ledger), following

        found = _Search(ask, policy, ledger, ignored).found()
        return ScoreHistory(tuple({run.run_id: run for run in found}.values()), complete=False)

    def challengers(self, challenger: ScoredRun, ledger: LedgerView) -> int:
        """The number of a challenger since the last promotion, from 1: see `counted_since` for the time.

        Each other model that was evaluated since and never promoted counts once for each contract, because each is a
        try. Excluded, blocked and refused models and deleted runs count too. Raises as `read`.
        """
        experiment = find_experiment(self._client, self._experiment)
        if experiment is None:
            return 1
        wanted = {name: value for name, value in self._wanted.items() if name != tag.CONTRACT}

        def ask(clause: str) -> Iterator[Run]:
            query = _query(clause, wanted)
            return _all_pages(lambda token: _page(self._client, experiment.experiment_id, query, PAGE, token,
                                                  view=ViewType.ALL))

        own, known = (challenger.model_digest, challenger.contract), {slot.model_digest for slot in ledger.slots}
        mine = ask(f"tags.`{tag.MODEL_DIGEST}` = '{challenger.model_digest}'")
        first = min((int(run.info.end_time or 0) for run in mine if _tried(run, wanted) == own), default=None)
        tries = {_tried(run, wanted) for run in ask(f"attributes.end_time > {counted_since(ledger, first)}")}
        return 1 + sum(digest not in known for digest, _ in tries - {own})

    def evaluations(self) -> list[tuple[ScoredRun, str | None, str | None]]:
        """Every evaluation with its tags EXCLUDED and FAILED_GUARD; the cost grows with the history. Raises as `read`.
        """
        experiment = find_experiment(self._client, self._experiment)
        if experiment is None:
            return []
        runs = _all_pages(lambda token: self._page(experiment.experiment_id, "", token))
        return [(scored, run.data.tags.get(tag.EXCLUDED), run.data.tags.get(tag.FAILED_GUARD)) for run in runs
                if (scored := _scored_run(run, self._wanted)) is not None]

    def read_latest(self, count: int) -> tuple[list[ScoredRun], bool]:
        """The latest evaluations, at most count of them, oldest first, and whether there are older ones."""
        experiment = find_experiment(self._client, self._experiment)
        if experiment is None:
            return [], False
        page, more = self._page(experiment.experiment_id, "", None)  # the server gives the latest first
        runs = sorted(self._scored(page), key=lambda run: (run.finished_at, run.run_id))
        return runs[-count:], more is not None or len(runs) > count

    def _page(self, home: str, clause: str, token: str | None, most: int = PAGE) -> tuple[list[Run], str | None]:
        return _page(self._client, home, _query(clause, self._wanted), most, token)

    def _scored(self, runs: Iterable[Run]) -> Iterator[ScoredRun]:
        return (found.run for found in self._found(runs, LedgerView(())))

    def _found(self, runs: Iterable[Run], ledger: LedgerView) -> list[_Found]:
        promoted = ledger.promoted_digests
        return [_Found(scored, tag.FAILED_GUARD in run.data.tags and scored.model_digest not in promoted)
                for run in runs if (scored := _scored_run(run, self._wanted)) and tag.EXCLUDED not in run.data.tags]


class _Search:
    """Finds the runs of a long history that can change the decision, in few and narrow queries."""

    def __init__(self, ask: _Ask, policy: Policy, ledger: LedgerView, ignored: Collection[str]) -> None:
        """ask: returns one page of the runs that match a clause, and the token of the next page."""
        self._search, self._policy, self._ledger, self._ignored = ask, policy, ledger, ignored
        self._weights = digest_of(dict(policy.weights))
        self._promoted = ledger.promoted_digests
        self._latest: dict[str, ScoredRun | None] = {}

    def found(self) -> list[ScoredRun]:
        """The latest evaluation of each model that may be the champion, best promoted or best evaluated."""
        head, claims = self._ledger.head, self._of_ledger()
        if head and (champions := self._latest_of(head.model_digest)):
            claims.append(champions)
        claims += self._all(f"tags.`{tag.WEIGHTS}` != '{self._weights}'")
        above, more = self._ask(self._above(self._highest(self._of_promoted(claims))), None)
        claims += above
        if more is not None:  # so many are above the best promoted model that each promoted one is asked for
            claims += filter(None, map(self._latest_of, self._promoted))
        self._highest(self._of_promoted(claims))
        best = self._highest(claims)
        if more is not None:
            self._climb(best)
        return list(filter(None, self._latest.values()))

    def _climb(self, score: Decimal) -> None:
        """Find the best model when more than a page of runs are above this score."""
        token: str | None = None
        while True:
            runs, token = self._ask(self._above(score), token)
            highest = self._highest(runs)
            if token is None:
                return
            if highest > score:
                score, token = highest, None

    def _highest(self, claims: Iterable[ScoredRun]) -> Decimal:
        """The highest score among the models of these runs; of each model only the latest evaluation counts."""
        highest = Decimal(-1)
        eligible = (run for run in claims if run.model_digest not in self._ignored)
        for run in sorted(eligible, key=lambda run: (-self._policy.score(run), run.finished_at)):
            if self._policy.score(run) <= highest:
                break
            if latest := self._latest_of(run.model_digest):
                highest = max(highest, self._policy.score(latest))
        return highest

    def _latest_of(self, digest: str) -> ScoredRun | None:
        if digest not in self._latest:
            runs = _all_pages(lambda token: self._search(f"tags.`{tag.MODEL_DIGEST}` = '{digest}'", token))
            self._latest[digest] = next(_standing(runs), None)
        return self._latest[digest]

    def _ask(self, clause: str, token: str | None) -> tuple[list[ScoredRun], str | None]:
        found, following = self._search(clause, token)
        return [one.run for one in found if not one.is_refused], following

    def _of_ledger(self) -> list[ScoredRun]:
        # The server's parser takes a few thousand ids in one query.
        ids = [slot.evaluation_run for slot in self._ledger.slots if slot.evaluation_run][-500:]
        return self._all("attributes.run_id IN ({})".format(", ".join(f"'{name}'" for name in ids))) if ids else []

    def _of_promoted(self, runs: Iterable[ScoredRun]) -> list[ScoredRun]:
        return [run for run in runs if run.model_digest in self._promoted]

    def _above(self, score: Decimal) -> str:
        return f"metrics.weighted_score > {score:f} and tags.`{tag.WEIGHTS}` = '{self._weights}'"

    def _all(self, clause: str) -> list[ScoredRun]:
        return list(_all_pages(lambda token: self._ask(clause, token)))


def _standing(found: Iterable[_Found]) -> Iterator[ScoredRun]:
    """The latest run of each model that no guard refused."""
    latest = {one.run.model_digest: one for one in sorted(found, key=lambda one: (one.run.finished_at, one.run.run_id))}
    return (one.run for one in latest.values() if not one.is_refused)


def _query(clause: str, wanted: Mapping[str, str]) -> str:
    tags = [f"tags.`{name}` = '{value}'" for name, value in wanted.items()]
    return " and ".join(filter(None, [clause, "attributes.status = 'FINISHED'", *tags]))


def _page(client: MlflowClient, home: str, query: str, most: int, token: str | None, *,
          view: int = ViewType.ACTIVE_ONLY) -> tuple[list[Run], str | None]:
    """One page of an experiment's runs (active ones, unless `view` says otherwise), and the token of the next page."""
    with mlflow_errors():
        page = client.search_runs([home], query, view, most, page_token=token)
    return list(page), page.token or None


def _all_pages(ask: Callable[[str | None], tuple[list[T], str | None]]) -> Iterator[T]:
    """The items of all pages. ask: returns one page and the token of the next, None after the last."""
    page, token = ask(None)
    yield from page
    while token is not None:
        page, token = ask(token)
        yield from page


def _tried(run: Run, wanted: Mapping[str, str]) -> tuple[str, str]:
    """The model and the contract of an evaluation; each pair counts as one try."""
    _check_asked(run, wanted)
    return run.data.tags.get(tag.MODEL_DIGEST, ""), run.data.tags.get(tag.CONTRACT, "")


def _check_asked(run: Run, wanted: Mapping[str, str]) -> None:
    tags = run.data.tags
    if run.info.status != "FINISHED" or any(tags.get(name) != value for name, value in wanted.items()):
        raise Undecided(f"MLflow run {run.info.run_id}: the server returned a run that was not asked for; "
                        "check its version")


def _scored_run(run: Run, wanted: Mapping[str, str]) -> ScoredRun | None:
    _check_asked(run, wanted)
    tags = run.data.tags
    try:
        metrics = Metrics.model_validate({name: run.data.metrics.get(name) for name in METRICS})
        digest, contract = tags[tag.MODEL_DIGEST], tags[tag.CONTRACT]
    except (ValidationError, KeyError):
        logger.warning("MLflow run %s: a component or a digest is missing or out of range; left out", run.info.run_id)
        return None
    return ScoredRun(run.info.run_id, digest, contract, metrics, int(run.info.end_time or 0))


class HistoryRuns:
    """Runs of one registered model in one experiment."""

    def __init__(self, client: MlflowClient, *, experiment: str, model_name: str) -> None:
        self._client, self._experiment, self._model_name = client, experiment, model_name

    def decisions(self) -> dict[str, str]:
        """The latest decision of each promotion key, as `verdict (reason)`."""
        deployments = sorted(self._deployments(""), key=lambda run: int(run.info.end_time or 0))
        return {run.data.tags[tag.KEY]: f"{run.data.tags[tag.DECISION]} ({run.data.tags.get(tag.REASON, 'no reason')})"
                for run in deployments if tag.KEY in run.data.tags and tag.DECISION in run.data.tags}

    def find(self, run_id: str, *kinds: str) -> Run:
        """A run of this model, of one of these kinds and not deleted; raises InvalidParams for any other.

        run_id: its id, or the first characters of it, at least 8 of them.
        """
        run = self._begun(run_id) if _SHORT_ID.fullmatch(run_id) else find_run(self._client, run_id)
        what = None if run is None else run.data.tags.get(tag.KIND)
        if run is None or run.info.lifecycle_stage != "active":
            raise InvalidParams(f"run {run_id}: MLflow has no such run; `champion history` lists them")
        if what not in kinds or run.data.tags.get(tag.MODEL_NAME) != self._model_name:
            raise InvalidParams(f"run {run_id}: is no {' or '.join(kinds)} of {self._model_name}; "
                                "`champion history` lists them")
        return run

    def _begun(self, start: str) -> Run | None:
        """The run of this model whose id begins so, None if there is none; raises InvalidParams if there are several.
        """
        found = list(self.search(f"attributes.run_id LIKE '{start}%'"))
        if len(found) > 1:
            raise InvalidParams(f"run {start}: {len(found)} runs begin so; give more characters of the id")
        return found[0] if found else None

    def deployment_of(self, key: str) -> Run | None:
        """The latest deployment of a promotion key that came to a decision."""
        found = (run for run in self._deployments(f"tags.`{tag.KEY}` = '{key}' and ") if tag.DECISION in run.data.tags)
        return max(found, key=lambda run: int(run.info.end_time or 0), default=None)

    def training_of(self, adapter: str) -> Run | None:
        """The fine-tuning run that made an adapter, by its sha256; None if MLflow has none."""
        return next(self.search(f"tags.`{tag.ADAPTER}` = '{adapter}' and tags.{tag.KIND} = 'fine_tuning' and "
                                "attributes.status = 'FINISHED'"), None)

    def data_of(self, adapter: str) -> str | None:
        """The path of the raw data that an adapter was trained on, None if MLflow does not know it."""
        run = self.training_of(adapter)
        return run.data.tags.get(tag.DATA, "").rpartition("@")[0] or None if run else None

    def evidence(self, deployment: Run) -> dict[str, Any]:
        """The evidence.json of a deployment; raises InvalidInput if it has none."""
        with tempfile.TemporaryDirectory() as folder:
            return read_object(self.download(deployment.info.run_id, EVIDENCE, Path(folder)))

    def download(self, run_id: str, artifact: str, folder: Path) -> Path:
        """Download an artifact of a run into a folder; raises InvalidInput if the run has none of this name."""
        try:
            return fetch_files(self._client, run_id, artifact, folder)
        except LocalArtifacts:
            raise
        except Undecided as error:
            raise InvalidInput(f"MLflow run {run_id}: its artifact {artifact} cannot be read "
                               f"({error!s:.300}); is the artifact store complete?") from error

    def exclude(self, run: Run, note: str) -> None:
        """Take an evaluation out of every later comparison."""
        with mlflow_errors():
            self._client.set_tag(run.info.run_id, tag.EXCLUDED, note)

    def _deployments(self, clause: str) -> Iterator[Run]:
        return self.search(f"{clause}tags.{tag.KIND} = 'deployment' and attributes.status = 'FINISHED'")

    def search(self, clause: str) -> Iterator[Run]:
        """The active runs of this model that match a clause."""
        experiment = find_experiment(self._client, self._experiment)
        if experiment is None:
            return iter(())
        query = f"{clause} and tags.`{tag.MODEL_NAME}` = '{self._model_name}'"
        return _all_pages(lambda token: _page(self._client, experiment.experiment_id, query, PAGE, token))
