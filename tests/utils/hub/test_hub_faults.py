"""The Hub's faults, each through a whole deployment: on a real MLflow store, by the real client, over HTTP.

In `make test` some; with `-m slow` all of them, each request of a deployment hit in turn, and the page's table.
"""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.promotion import release
from tests.fakes.faulty_hub import (
    ENOUGH,
    SHARD_BYTES,
    SHARDS,
    Ended,
    Resize,
    Row,
    World,
    deploy,
    grow_release,
    kill_half_way,
    opened,
    prepare,
    promoted_once,
    start,
)
from tests.fakes.hub_fault_rules import FROM_THERE_ON, LASTING, ONCE, PASSING, Rules
from tests.fakes.loopback_hub import WRITE
from tests.fakes.promoted import REPO, Shop
from tests.reliability.reliability_page import report, table

pytest_plugins = ["tests.fakes.promoted_fixtures", "tests.fakes.full_disk"]

HEADER = ("fault", "outcome", "exit", "commits on main", "words (stderr)")
QUICK = ("lost replies of both commits", "stale parent on main (412)", "read-only token",
         "429, Retry-After: 3600", "token expires (401) at main's commit")


@pytest.fixture(scope="module")
def with_a_champion(tmp_path_factory: pytest.TempPathFactory, three_promotions: Path) -> Path:
    """Three promotions, and a better challenger that waits."""
    return prepare(three_promotions, tmp_path_factory.mktemp("waiting") / "shop")


@pytest.fixture(scope="module")
def without_one(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Path:
    """An empty store and no repository, and a challenger that waits."""
    empty = tmp_path_factory.mktemp("empty")
    (empty / "mlflow.db").write_bytes(migrated_store.read_bytes())
    return prepare(empty, tmp_path_factory.mktemp("waiting") / "shop")


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    """The rows of the page, which is written where all of them are there."""
    found: list[Row] = []
    yield found
    cells = [row.cells() for row in found]
    if len(found) == len(FULL) + len(PASSING) + len(LASTING) + len(SWEEPS) + len(FROM_THERE_ON) + len(WAYS):
        report("hub-faults", table(HEADER, cells))
    elif found:
        print(table(HEADER, cells))


def meet(shop: Shop, capfd: pytest.CaptureFixture[str], rules: Rules) -> Ended:
    """Deploy while the hub keeps these rules."""
    for rule in rules:
        shop.hub.fault(**rule)
    ended = deploy(capfd)
    assert all(rule.seen >= rule.nth for rule in shop.hub.faults)
    shop.hub.faults.clear()
    return ended


def met(name: str, shop: Shop, capfd: pytest.CaptureFixture[str]) -> Row:
    """One of the faults above, and the run after it; returns its row."""
    before = World.of(shop)
    if name in PASSING:
        ended = meet(shop, capfd, PASSING[name])
        assert (ended.code, promoted_once(shop, before, strangers="412" in name)) == (0, 1)
        return Row(name, "recovers by itself", "0", "1", "".join(ended.warnings[:1]))
    environment, rules, code = LASTING[name]
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        ended = meet(shop, capfd, rules)
    assert ended.code == code
    if code == 6:
        assert before.shows_the_same(World.of(shop))
    assert deploy(capfd).code == 0
    assert promoted_once(shop, before) == 1
    return Row(name, *LEFT[code], ended.error)


LEFT = {6: ("nothing published; the next run promotes", "6", "0, then 1"),
        75: ("promoted, projections pending; the next run completes it", "75", "0, then 1"),
        5: ("nothing published; the next run promotes", "5", "0, then 1")}


@pytest.mark.parametrize("name", QUICK)
def test_a_deployment_recovers_or_publishes_nothing(
    with_a_champion: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    with opened(with_a_champion, tmp_path / "shop") as shop:
        row = met(name, shop, capfd)
        assert row.line
        assert WRITE not in row.line


def test_xet_carries_the_data_of_a_whole_promotion(
    with_a_champion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with opened(with_a_champion, tmp_path / "shop") as shop:
        monkeypatch.delenv("HF_HUB_DISABLE_XET")
        shop.hub.xet_sizes, before = {}, World.of(shop)
        assert deploy(capfd).code == 0
        assert promoted_once(shop, before) == 1
        assert shop.hub.requests("POST", "/_cas/v1/xorbs/")
        assert shop.hub.requests("PUT", "/_lfs/") == []


FULL = {  # size of the disk, whether the free space that the system tells is true, the words
    "the disk is too small to assemble": ("12m", True, r"results: \d+ bytes are free, a release needs \d+; make room"),
    "the disk fills up in assembling": ("300k", False, "results: the release could not be written: .*No space left.*"),
}


def filled(name: str, shop: Shop, disk: Resize, capfd: pytest.CaptureFixture[str]) -> str:
    """Deploy on a disk that is too small; returns the line that says so."""
    size, told, words = FULL[name]
    before, there = World.of(shop), sorted(Path("results").iterdir())
    with pytest.MonkeyPatch.context() as patch:
        if not told:  # a quota, or another program that takes what was free
            patch.setattr(release, "_require_space", lambda *_: None)
        disk(size)
        ended = deploy(capfd, weights=True)
    assert ended.code == 5
    assert re.match(words, ended.error)
    assert set(Path("results").iterdir()) == {*there, Path("results/deployment")}
    assert before.shows_the_same(World.of(shop))
    return ended.error


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_publishes_nothing_and_leaves_no_temporary_folder(
    weighty_shop: Shop, disk: Resize, capfd: pytest.CaptureFixture[str], *, name: str
) -> None:
    filled(name, weighty_shop, disk, capfd)


# By hand.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, of its own code
@pytest.mark.parametrize("name", FULL)
def test_a_disk_with_room_again(
    weighty_shop: Shop, disk: Resize, capfd: pytest.CaptureFixture[str], rows: list[Row], *, name: str
) -> None:
    rows.append(Row(name, *LEFT[5], filled(name, weighty_shop, disk, capfd)))
    disk(ENOUGH)
    assert deploy(capfd, weights=True).code == 0
    assert len(weighty_shop.hub.history(REPO)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PASSING, *LASTING])
def test_every_named_fault(
    with_a_champion: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], rows: list[Row], *, name: str
) -> None:
    with opened(with_a_champion, tmp_path / "shop") as shop:
        rows.append(met(name, shop, capfd))


def requests(source: Path, root: Path, capfd: pytest.CaptureFixture[str]) -> int:
    """How many requests a deployment makes that nothing disturbs."""
    with opened(source, root) as shop:
        assert deploy(capfd).code == 0
        return len(shop.hub.log)


SWEEPS = [*(("with_a_champion", fault) for fault in ONCE),
          *(("without_one", fault) for fault in ("500 though the work was done", "lost reply"))]


@pytest.mark.slow
@pytest.mark.parametrize(("start", "fault"), SWEEPS)
def test_a_fault_once_at_each_request(
    request: pytest.FixtureRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str], rows: list[Row],
    *, start: str, fault: str
) -> None:
    source = request.getfixturevalue(start)
    number = requests(source, tmp_path / "quiet", capfd)
    words: list[str] = []
    for nth in range(1, number + 1):
        with opened(source, tmp_path / f"{nth}") as shop:
            before = World.of(shop)
            ended = meet(shop, capfd, [{"path": "/", "nth": nth, **ONCE[fault]}])
            assert (nth, ended.code, promoted_once(shop, before)) == (nth, 0, 1)
            words += ended.warnings
    where = f"{fault}, once, at each of the {number} requests ({start.replace('_', ' ')})"
    rows.append(Row(where, f"recovers by itself, {number} of {number}", "0", "1 each", words[0]))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FROM_THERE_ON)
def test_a_fault_from_each_request_on(
    with_a_champion: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], rows: list[Row], *, fault: str
) -> None:
    number = requests(with_a_champion, tmp_path / "quiet", capfd)
    codes = []
    for nth in range(1, number + 1):
        with opened(with_a_champion, tmp_path / f"{nth}") as shop:
            before = World.of(shop)
            ended = meet(shop, capfd, [{"path": "/", "nth": nth, **FROM_THERE_ON[fault]}])
            now = World.of(shop)
            assert (nth, ended.code) == (nth, 75 if now.slots > before.slots else 6)
            assert now.slots > before.slots or before.shows_the_same(now)
            assert deploy(capfd).code == 0
            assert promoted_once(shop, before) == 1
            codes.append(ended.code)
    first = codes.count(6)
    rows.append(Row(f"{fault}, from each of the {number} requests on",
                    f"{first} times nothing published, {number - first} times promoted with projections pending; the "
                    "next run completes each", "6; 75", "0 or 1, then 1", ended.error))


WAYS = ("plain LFS", "Xet")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_gigabytes_killed_half_way(
    with_a_champion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row], *, way: str
) -> None:
    with opened(with_a_champion, tmp_path / "shop", deadline_seconds=900) as shop:
        if way == "Xet":
            monkeypatch.delenv("HF_HUB_DISABLE_XET")
            shop.hub.xet_sizes = {}
        before, total = World.of(shop), grow_release(SHARDS, SHARD_BYTES)
        started = time.monotonic()
        first = kill_half_way(shop, total)
        assert World.of(shop) == before
        again, killed = start(), time.monotonic()
        assert (again.communicate()[1].splitlines()[-1], again.returncode) == (
            "PROMOTE result=promoted code=0 reason=improved", 0)
        second = shop.hub.received() - first
        assert promoted_once(shop, before) == 1
    shutil.rmtree(tmp_path / "shop")  # 4 GB
    repeated = max(first + second - total, 0)
    rows.append(Row(f"{total / 1e9:.0f} GB in {SHARDS} shards by {way}, SIGKILL half-way",
                    f"the next run completes it: {first / 1e6:.0f} MB before, {second / 1e6:.0f} MB after, "
                    f"{repeated / 1e6:.0f} MB sent again; {killed - started:.0f} s and "
                    f"{time.monotonic() - killed:.0f} s", "-9, then 0", "0, then 1", ""))
