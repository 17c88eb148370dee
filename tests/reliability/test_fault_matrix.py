"""A deployer is killed at any point of the protocol; one more run ends as if nothing had happened."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.fakes.postgres import MlflowServer, PostgresCluster, needs_postgres
from tests.reliability import jobs
from tests.reliability.fault_matrix import HEADER, MergingShop, Postgres, Row, Shop, Sqlite, by_store
from tests.reliability.kill_points import MERGING, NAMED, POINTS, PUBLISHING_AGAIN, Point
from tests.reliability.reliability_page import report, table

MORE = ("upload: third of six parts", "main shown, no tag")
MORE_AGAIN = ("before the claim of what was republished", "tag made, not read back")
FRESH = 7  # every seventh row in interpreters of its own, the others in forks of one


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return jobs.start(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path, environment: Mapping[str, str]) -> Shop:
    return Shop(tmp_path_factory.mktemp("sqlite"), Sqlite(), environment, migrated_store)


@pytest.fixture(scope="module")
def merging_shop(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path, environment: Mapping[str, str]
                 ) -> Shop:
    return MergingShop(tmp_path_factory.mktemp("merging"), Sqlite(), environment, migrated_store)


@pytest.fixture(scope="module")
def on_postgres(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path, environment: Mapping[str, str]
                ) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("postgres")
    artifacts = root / "artifacts"
    with PostgresCluster() as cluster, MlflowServer(cluster.migrated("mlflow"), artifacts) as server:
        yield Shop(root, Postgres(cluster, server, artifacts), environment, migrated_store)


@pytest.mark.parametrize("point", ["slot written, reply unread",
                                   *(pytest.param(point, marks=pytest.mark.reliability) for point in MORE)])
def test_one_more_run_ends_what_a_killed_one_began(point: str, on_sqlite: Shop) -> None:
    row = on_sqlite.row(NAMED[point], champion=False)
    assert not row.problems, row


@pytest.mark.parametrize("point", ["slot written, reply unread",
                                   *(pytest.param(point, marks=pytest.mark.reliability) for point in MORE_AGAIN)])
def test_one_more_run_ends_what_a_killed_publication_of_the_standing_champion_began(point: str, on_sqlite: Shop
                                                                                    ) -> None:
    row = on_sqlite.row(NAMED[point], champion=True, unpublished=True)
    assert not row.problems, row


@pytest.mark.reliability
@pytest.mark.slow
def test_killed_at_every_point_of_publishing_what_stands(on_sqlite: Shop) -> None:
    rows = [on_sqlite.row(point, champion=True, unpublished=True, fresh=number % FRESH == 0)
            for number, point in enumerate(PUBLISHING_AGAIN)]
    for row in rows:
        print(*row.cells(), sep=" | ", flush=True)
    report("publishing-again", table(HEADER, by_store(rows)))
    assert [row for row in rows if row.problems] == []


@pytest.mark.reliability
@pytest.mark.slow
@needs_postgres
def test_killed_at_every_point_on_both_stores_with_and_without_a_champion(on_sqlite: Shop, on_postgres: Shop) -> None:
    rows: list[Row] = []
    for point in POINTS:
        for champion in (False, True):
            for shop in (on_sqlite, on_postgres):
                if point.met(champion=champion):
                    rows.append(shop.row(point, champion=champion, fresh=len(rows) % FRESH == 0))
                    print(*rows[-1].cells(), sep=" | ", flush=True)
    report("fault-matrix", table(HEADER, by_store(rows)))
    assert [row for row in rows if row.problems] == []


@pytest.mark.reliability
@pytest.mark.slow
@pytest.mark.parametrize("point", MERGING, ids=lambda point: point.name)
def test_killed_while_real_weights_are_merged(point: Point, merging_shop: Shop) -> None:
    row = merging_shop.row(point, champion=False)
    assert not row.problems, row
