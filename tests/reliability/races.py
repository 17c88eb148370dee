"""Races of real deployers: `-m tests.reliability.races --store sqlite --deployers 4 --rounds 25 --seed 1 --root DIR`.

Each deployer runs the whole deployment script (its weights are texts) with MLflow's and the Hub's own clients, in a
folder of its own, and may be killed at any moment and started again. A watcher looks on all the time. After each
round one run comes alone, then every one that was interrupted. Ends with a line of JSON, or with what was broken.
"""

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fakes.loopback_hub import WRITE
from tests.reliability.reliability_page import table

if TYPE_CHECKING:
    from tests.reliability.race_rounds import Race

_ROOT = Path(__file__).parents[2]
_COUNTED = ("started", "killed", "claimed", "lost", "run_again", "rerun")
_HEADER = ("store", "deployers", "rounds", "processes", "killed", "slots claimed", "claims lost", "promoted", "kept",
           "already", "run again", "looks", "broken invariants", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True, help="sqlite, or postgresql: `mlflow server` over one of its own")
    parser.add_argument("--deployers", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--share", type=float, default=0.5, help="of the processes that are to be killed")
    parser.add_argument("--root", type=Path, required=True)
    flags = parser.parse_args()
    root = flags.root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        endpoint = stack.enter_context(_hub(root / "hub"))
        os.environ |= {"HF_TOKEN": WRITE, "HF_ENDPOINT": endpoint, "HF_HOME": str(root / "home"),
                       "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1",
                       "MLFLOW_DISABLE_TELEMETRY": "true"}
        uri = _store(flags.store, root, stack)
        _warm_up()
        from tests.reliability.race_rounds import Race

        race, began = Race(root, uri, endpoint, flags.deployers, flags.share, flags.seed), time.monotonic()
        race.run(flags.rounds)
        print(json.dumps(summary(race, flags.store, time.monotonic() - began)))


def summary(race: "Race", store: str, seconds: float) -> dict[str, Any]:
    """The figures of a race in which nothing was broken."""
    results, killed_in = Counter[str](), Counter[str]()
    for each in race.rounds:
        results.update(each.results)
        killed_in.update(each.killed_in)
    counts = {name: sum(getattr(each, name) for each in race.rounds) for name in _COUNTED}
    return {"store": store, "deployers": race.deployers, "rounds": len(race.rounds), "looks": race.looks,
            "seconds": round(seconds), **counts, "results": dict(results), "killed_in": dict(killed_in.most_common())}


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The block of docs/reliability.md; found: store to summary."""
    rows = [(name, each["deployers"], each["rounds"], each["started"], each["killed"], each["claimed"], each["lost"],
             *(each["results"].get(result, 0) for result in ("promoted", "kept", "already")), each["run_again"],
             each["looks"], 0, each["seconds"]) for name, each in found.items()]
    where = ["Killed in, " + name + ": " + ", ".join(f"{step} {count}" for step, count in each["killed_in"].items())
             for name, each in found.items()]
    return "\n\n".join([table(_HEADER, rows), *where])


def _warm_up() -> None:
    """Import once what every deployer would import for itself; nothing here opens a connection."""
    for module in ("tests.reliability.race_deployer", "tests.reliability.race_watcher", "scripts.commands.services",
                   "utils.tracking.deployments", "alembic.command", "git", "mako.template", "mlflow.store.db.utils",
                   "mlflow.store.model_registry.sqlalchemy_store", "mlflow.store.tracking.sqlalchemy_store",
                   "mlflow.tracing.otel"):
        importlib.import_module(module)
    importlib.import_module("sqlalchemy.orm").configure_mappers()
    gc.freeze()


@contextmanager
def _hub(root: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.fakes.loopback_hub", "--port", "0", "--root", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def _store(store: str, root: Path, stack: ExitStack) -> str:
    if store == "sqlite":
        return f"sqlite:///{root}/mlflow.db"
    from tests.fakes.postgres import MlflowServer, PostgresCluster

    cluster = stack.enter_context(PostgresCluster())
    return stack.enter_context(MlflowServer(cluster.migrated("races"), root / "artifacts")).url


if __name__ == "__main__":
    main()
