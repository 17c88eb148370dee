"""One row of the fault matrix: a deployer is killed at a point, one more run follows, and all is compared."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.compared_worlds import broken, differences, essence, parts, seen_hub
from tests.fakes.history_store import write_params
from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.postgres import MlflowServer, PostgresCluster
from tests.fakes.promoted import PUSHING, SOURCE
from tests.reliability import jobs
from tests.reliability.kill_points import Point

FIRST_MODEL = ("one", 10)  # what stands for the weights, and how many of 40 answers are right
SECOND_MODEL = ("two", 20)


class Sqlite:
    """Where MLflow keeps what it has: a file in the shop's folder, which is set aside and put back with it."""

    name = "sqlite"
    environment: Mapping[str, str] = {}

    def set_aside(self, name: str) -> None: ...
    def put_back(self, name: str) -> None: ...


class Postgres(Sqlite):
    """`mlflow server` over a PostgreSQL whose database is exchanged below it."""

    name = "PostgreSQL"

    def __init__(self, cluster: PostgresCluster, server: MlflowServer, artifacts: Path) -> None:
        self._cluster, self._artifacts = cluster, artifacts
        self.environment = {"MLFLOW_TRACKING_URI": server.url}

    def set_aside(self, name: str) -> None:
        self._cluster.create(name, template="mlflow")
        shutil.copytree(self._artifacts, self._beside(name))

    def put_back(self, name: str) -> None:
        self._cluster.create("mlflow", template=name)
        shutil.rmtree(self._artifacts)
        shutil.copytree(self._beside(name), self._artifacts)

    def _beside(self, name: str) -> Path:
        return self._artifacts.with_name(f"artifacts-{name}")


@dataclass(frozen=True)
class Row:
    """What came of one point; problems is empty where the end is that of a run never killed."""

    point: str
    champion: bool
    store: str
    left: str
    rerun: str
    problems: Sequence[str]

    def cells(self) -> Sequence[str]:
        equal = "yes" if not self.problems else "NO: " + "; ".join(self.problems)
        return (self.point, "yes" if self.champion else "no", self.store, self.left, self.rerun, equal)


STORES = ("sqlite", "PostgreSQL")
HEADER = ("killed", "prior champion", "left behind, of what the run makes", "the next run",
          *(f"equal on {store}" for store in STORES))


def by_store(rows: Iterable[Row]) -> list[Sequence[str]]:
    """The lines of HEADER: rows that differ in nothing but the store share one."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for point, prior, store, left, rerun, equal in (row.cells() for row in rows):
        lines.setdefault((point, prior, left, rerun), {})[store] = equal
    return [(*line, *(found.get(store, "") for store in STORES)) for line, found in lines.items()]


class Shop:
    """One place for all rows: a folder, a store and a Hub that are put back to a prior state before each."""

    merges = False

    def __init__(self, root: Path, store: Sqlite, environment: Mapping[str, str], migrated: Path) -> None:
        self._root, self._store, self._environment = root, store, {**environment, **store.environment}
        self.folder = root / "shop"
        self._turns = 0
        self._known: dict[str, dict[str, Any]] = {}
        for kept in ("shop", "hub"):
            (self._aside("empty") / kept).mkdir(parents=True)
        shutil.copy(migrated, self._aside("empty") / "shop/mlflow.db")
        store.set_aside("empty")

    def row(self, point: Point, *, champion: bool, fresh: bool = False, unpublished: bool = False) -> Row:
        """Kill a run at a point, run once more, and compare; unpublished: the champion is not on the Hub yet."""
        prior = self.prior(champion=champion, unpublished=unpublished)
        with self._hub(prior) as hub:
            before = self._known.setdefault(f"before {prior}", {})
            before.update(before or self.look(hub))
            hub.faults = [hub.fault(**rule) for rule in point.faults]
            code = self._do(hub, "deploy", at=point.name, fresh=fresh).code
            hub.faults.clear()
            left = self.look(hub)
            problems = [] if code == jobs.KILLED else [f"was not killed but ended with {code}"]
            problems += broken(left)
            code = self._do(hub, "deploy", fresh=fresh).code
            end = self.look(hub)
            problems += [] if code == 0 else [f"the next run ended with {code}"]
        made = parts(left, before)
        again = "slot" in made and "deployment run" not in made  # its records are the next run's to write
        problems += differences(essence(end), essence(self.clean(prior, again=again)))
        added = [part for part in parts(end, before) if part not in made]
        rerun = f"{end['info'].get('result')}: {', '.join(added) or 'nothing to do'}"
        return Row(point.name, champion, self._store.name, ", ".join(made) or "nothing", rerun, problems)

    def prior(self, *, champion: bool, unpublished: bool = False) -> str:
        """A challenger in results/ that waits for its deployment, with or without a champion before it.

        unpublished: it is the champion already, and was promoted without the Hub.
        """
        name = "unpublished" if unpublished else "champion" if champion else "first"
        if not self._aside(name).exists():
            with self._hub("empty") as hub:
                write_params(self.folder, SOURCE, huggingface=PUSHING)
                self._evaluate(hub, *FIRST_MODEL)
                if unpublished:
                    self._done(hub, "deploy", "--skip-hf-push")
                elif champion:
                    self._done(hub, "deploy")
                    self._evaluate(hub, *SECOND_MODEL)
                shutil.copytree(self.folder, self._aside(name) / "shop")
                shutil.copytree(hub.root, self._aside(name) / "hub")
                self._store.set_aside(name)
        return name

    def clean(self, prior: str, *, again: bool) -> dict[str, Any]:
        """What a run that is not killed leaves; again: what the next one does where its records are lost."""
        if f"clean {prior}" not in self._known:
            with self._hub(prior) as hub:
                self._done(hub, "deploy")
                self._known[f"clean {prior}"] = self.look(hub)
                shutil.rmtree(self.folder / "results/deployment")
                self._done(hub, "deploy")
                self._known[f"again {prior}"] = self.look(hub)
        return self._known[f"{'again' if again else 'clean'} {prior}"]

    def look(self, hub: LoopbackHub) -> dict[str, Any]:
        """All that stands in MLflow, on the Hub and in results/."""
        return {**json.loads(self._done(hub, "look")), "hub": seen_hub(hub)}

    def _evaluate(self, hub: LoopbackHub, mark: str, right: int) -> None:
        self._done(hub, "evaluate", mark, str(right))

    def _hub(self, prior: str) -> LoopbackHub:
        """All put back; the Hub in a folder of its own, since a request may still be under way to the last one."""
        self._turns += 1
        folder = self._root / f"hub-{self._turns}"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._aside(prior) / "shop", self.folder)
        shutil.copytree(self._aside(prior) / "hub", folder)
        self._store.put_back(prior)
        hub = LoopbackHub(folder)
        hub.multipart_over, hub.part_size = 1_000_000, 500_000
        return hub

    def _done(self, hub: LoopbackHub, what: str, *arguments: str) -> str:
        """What a job says that ends well."""
        ended = self._do(hub, what, *arguments)
        assert ended.code == 0, ended.err[-3000:]
        return ended.out

    def _do(self, hub: LoopbackHub, what: str, *arguments: str, at: str = "", fresh: bool = False) -> jobs.Ended:
        return jobs.run(what, *arguments, folder=self.folder, environment={**self._environment, "HF_ENDPOINT": hub.url},
                        at=at, merges=self.merges, fresh=fresh)

    def _aside(self, name: str) -> Path:
        return self._root / f"prior-{name}"


class MergingShop(Shop):
    """The same with a small model whose weights are merged, verified and kept for real."""

    merges = True

    def _evaluate(self, hub: LoopbackHub, _mark: str, _right: int) -> None:
        self._done(hub, "evaluate_tiny")
