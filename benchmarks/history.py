"""Time of a whole `--dry-run` decision over 100 to 50,000 scored runs, on sqlite and on PostgreSQL.

    python -m benchmarks.history [--runs 100 1000 10000 50000] [--stores sqlite postgresql] [--rounds 5]

One evaluation is really logged, and SQL multiplies it: a deployment run beside every evaluation, models scored twice,
other contracts and weights, and crashed, deleted and excluded runs of high scores. The ledger holds whatever beat the
threshold in its time. What a decision found is compared with a plain loop over all that was written. A PostgreSQL
server is started in a temporary folder, where Debian's `postgresql` and the driver `psycopg` are installed; it is
ANALYZEd, as its autovacuum would; sqlite is not, since MLflow does not. Times are medians of the rounds, in seconds by
the clock (and of processor time). The last line is the largest ratio of the medians, longest history to shortest.
"""

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy

from benchmarks import measure as shared
from src.core.params import Params, load_params
from src.core.records import read_object
from src.ledger.slots import LedgerView
from src.model_selection import Policy, Question, ScoredRun, ScoresToBeat, scores_to_beat
from tests.fakes import history_store
from tests.fakes.long_history import Made, fill
from utils import mlflow_utils
from utils.tracking.history import HistoryReader

ROOT = Path(__file__).parents[1]
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@dataclass(frozen=True)
class Filled:
    """A store with a history in it and a challenger before it."""

    config: Path
    params: Params
    challenger: ScoredRun
    made: list[Made]
    ledger: LedgerView

    @property
    def policy(self) -> Policy:
        """That of params.yaml."""
        deployment = self.params.deployment
        return Policy(deployment.weighted_scoring.weights, Decimal(repr(deployment.min_improvement_threshold)),
                      require_significance=False)

    def expected(self) -> ScoresToBeat:
        """What a plain loop over everything finds."""
        question = Question(self.challenger, [one.run for one in self.made if one.counts], True, self.ledger,
                            self.policy, False, True, False, None, None)
        return scores_to_beat(question)


@contextmanager
def sqlite(_folder: Path, uri: str) -> Iterator[str]:
    """The store that params.yaml names."""
    yield uri


@contextmanager
def postgresql(folder: Path, _uri: str) -> Iterator[str]:
    """A server of its own on a Unix socket, as the user postgres where this is root, who may not run one."""
    if not BINARIES or importlib.util.find_spec("psycopg") is None:
        raise SystemExit("PostgreSQL: `apt-get install postgresql` and `pip install 'psycopg[binary]'` first")
    data = folder / "pg"
    data.mkdir(mode=0o700)
    as_user = []
    if os.getuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        for place in (data, folder):
            subprocess.run(["chown", "postgres", str(place)], check=True)
        folder.chmod(0o755)

    def run(program: str, *arguments: str | Path) -> None:
        subprocess.run([*as_user, BINARIES[-1] / program, "-D", data / "db", *arguments], check=True, cwd=data,
                       stdout=subprocess.DEVNULL)

    run("initdb", "-A", "trust", "-U", "postgres")
    run("pg_ctl", "-w", "-l", data / "log", "-o", f"-c listen_addresses= -c unix_socket_directories={data}", "start")
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={data}"
    finally:
        run("pg_ctl", "-m", "fast", "-w", "stop")


STORES = {"sqlite": sqlite, "postgresql": postgresql}


def make_store(root: Path, uri: str, runs: int) -> Filled:
    """Fill the store that MLFLOW_TRACKING_URI names; results/ in `root` hold a challenger of a middling score."""
    config = history_store.write_params(root, ROOT / "params.yaml", weighted_scoring=history_store.BY_BLEU1)
    params = load_params(config)
    client = mlflow_utils.connect(params.mlflow)
    template = history_store.challenger(params, "template", history_store.scored_answers(0.5))
    made, view = fill(client, params, template, runs)
    report = history_store.challenger(params, "challenger", history_store.scored_answers(0.45))
    if uri.startswith("postgresql"):
        with sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(sqlalchemy.text("ANALYZE"))
    challenger = ScoredRun(report.run_id, report.model_digest, report.contract_digest, report.metrics, 0)
    return Filled(config, params, challenger, made, view)


def time_decision(store: Filled) -> tuple[float, float]:
    """Seconds of one `deployment_script.py --dry-run`, by the clock and of the processor; checks what it found."""
    command = [sys.executable, str(ROOT / "scripts/deployment_script.py"), "--dry-run", "--config", str(store.config),
               "--output-dir", "results/deployment"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    found, expected = read_object(Path("results/deployment/model_comparison.json")), store.expected()
    for name in ("best_evaluated", "best_promoted", "champion"):
        side, run = found[name], getattr(expected, name)
        if (side and side["run_id"]) != (run and run.run_id):
            raise SystemExit(f"{name}: found {side}, expected {run}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def print_queries(store: Filled) -> None:
    """Each query of one reading of the history, with its time and its answer's size."""
    client = mlflow_utils.connect(store.params.mlflow)
    search = client.search_runs

    def timed(ids: list[str], query: str, *rest: Any, **more: Any) -> Any:
        start = time.monotonic()
        page = search(ids, query, *rest, **more)
        clause = query.partition("attributes.status")[0] or "the latest"
        print(f"      {1000 * (time.monotonic() - start):7.0f} ms {len(page):5} runs  {clause[:90]}")
        return page

    client.search_runs = timed
    reader = HistoryReader(client, experiment=store.params.mlflow.experiment_name, contract=store.challenger.contract,
                           model_name=store.params.deployment.model_registry_name)
    start = time.monotonic()
    reader.read(store.policy, store.ledger, {store.challenger.model_digest})
    print(f"      {1000 * (time.monotonic() - start):7.0f} ms in all")
    number = reader.challengers(store.challenger, store.ledger)
    print(f"      {1000 * (time.monotonic() - start):7.0f} ms with the count for `require`: challenger {number}")


def measure(name: str, runs: int, rounds: int) -> list[float]:
    """Seconds of decisions over a fresh history of so many runs."""
    with tempfile.TemporaryDirectory(prefix="champion-history-") as folder, chdir(folder):
        root = Path(folder)
        with STORES[name](root, f"sqlite:///{root}/mlflow.db") as uri:
            os.environ["MLFLOW_TRACKING_URI"] = uri
            store = make_store(root, uri, runs)
            times = [time_decision(store) for _ in range(rounds)]
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            least, most = min(times)[0], max(times)[0]
            print(f"{name:10} {runs:6} runs, {len(store.ledger.slots):3} promotions: {wall:6.2f} s "
                  f"({least:.2f} to {most:.2f}; processor {cpu:.2f} s)", flush=True)
            print_queries(store)
    return [seconds for seconds, _ in times]


def main() -> None:
    """Measure each store at each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000, 10_000, 50_000])
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--rounds", type=int, default=5)
    shared.add_flags(parser)
    asked = parser.parse_args()
    rows, ratios = [], []
    for name in asked.stores:
        times = [measure(name, runs, asked.rounds) for runs in asked.runs]
        rows += [shared.row(f"{name}, {runs} runs, s", found) for runs, found in zip(asked.runs, times, strict=True)]
        ratios.append(shared.ratio(f"{name}: {asked.runs[-1]} runs to {asked.runs[0]}", times[-1], times[0]))
        print(f"{name}: {asked.runs[-1]} runs take {ratios[-1].value:.2f} times as long as {asked.runs[0]} (fastest "
              f"rounds: {min(times[-1]) / min(times[0]):.2f})", flush=True)
    shared.finish("history", rows + sorted(ratios, key=lambda ratio: ratio.value), asked.json)


if __name__ == "__main__":
    main()
