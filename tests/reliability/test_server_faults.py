"""The MLflow server killed, hung, or dropping a reply at the gate's and the promotion's calls."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.mlflow_proxy import Fault, Kind, SqliteServer
from tests.reliability import jobs
from tests.reliability.reliability_page import report, table
from tests.reliability.server_faults import HEADER, SECONDS, Place, Row, pivot

pytest_plugins = ["tests.fakes.server_fixtures"]

CLAIM = ("POST runs/log-parameter", 3)  # the first two are the probe's


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path, mlflow_server: SqliteServer) -> Place:
    mlflow_server.put_back(migrated_store)
    return Place(tmp_path_factory.mktemp("faults"), mlflow_server, jobs.start(tmp_path_factory.mktemp("home")))


def points(place: Place) -> Iterator[tuple[str, Fault]]:
    """The first and the last call of each endpoint in a second promotion, and what only a first one does."""
    calls = place.calls("second")
    last = {call.endpoint: call.occurrence for call in calls}
    ends = [("second", call) for call in calls if call.occurrence in (1, last[call.endpoint])]
    opening = [("first", call) for call in place.calls("first")
               if call.endpoint == "POST experiments/create" or call.occurrence > last[call.endpoint]]
    for promotion, call in [*opening, ("first", Fault(Kind.LOST, *CLAIM)), *ends]:
        yield from ((promotion, Fault(kind, call.endpoint, call.occurrence)) for kind in Kind)


def shown(rows: list[Row]) -> str:
    slowest = max(rows, key=lambda row: row.seconds)
    summary = (f"{len(rows)} rows; slowest {slowest.seconds:.1f} s: {slowest.fault.kind} at "
               f"`{slowest.fault.endpoint}`")
    return f"{summary}\n\n{table(HEADER, pivot(rows))}"


@pytest.mark.parametrize("fault", [
    pytest.param(Fault(Kind.REFUSED, "POST runs/search"), marks=pytest.mark.reliability),
    pytest.param(Fault(Kind.LOST, "POST model-versions/create"), marks=pytest.mark.reliability),
    Fault(Kind.KILLED, *CLAIM),
], ids=lambda fault: f"{fault.kind}-{fault.endpoint.rpartition('/')[2]}")
def test_a_server_that_fails_promotes_nothing_or_says_so_and_the_next_run_completes_it(
    place: Place, fault: Fault
) -> None:
    row = place.row("second", fault, settings={})  # with time for a server on a busy machine
    assert not row.problems, row


@pytest.mark.reliability
@pytest.mark.slow
def test_the_servers_fault_matrix(place: Place) -> None:
    rows = []
    for promotion, fault in points(place):
        rows.append(place.row(promotion, fault))
        print(*rows[-1].call, fault.kind, rows[-1].cell(), flush=True)
    report("server-faults", shown(rows))
    assert not [row for row in rows if row.problems]


@pytest.mark.reliability
@pytest.mark.slow
def test_with_the_shipped_time_outs_a_hung_server_ends_a_run_within_a_minute(place: Place) -> None:
    calls = (("GET experiments/get-by-name", 1), ("GET artifacts/predictions.jsonl", 1),
             ("POST model-versions/create", 1), CLAIM, ("POST registered-models/alias", 2), ("POST runs/update", 1))
    faults = [*(Fault(Kind.HUNG, *call) for call in calls), Fault(Kind.REFUSED, *CLAIM), Fault(Kind.KILLED, *CLAIM)]
    rows = []
    for fault in faults:
        rows.append(place.row("second", fault, settings={}))
        print(*rows[-1].call, fault.kind, rows[-1].cell(), f"{rows[-1].after:.1f} s after", flush=True)
    report("server-faults-shipped", shown(rows))
    assert not [row for row in rows if row.problems]
    assert max(row.after for row in rows) < SECONDS
