"""The Hub's faults, each through a whole deployment: on a real MLflow store, by the real client, over HTTP.

In `make test` some; with `-m slow` all of them, each request of a deployment hit in turn, and the page's table.
"""

import re
import shutil
import time
from collections.abc import Iterator, Mapping
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
    disk,
    grow_release,
    kill_half_way,
    opened,
    prepare,
    promoted_once,
    start,
    weighty_shop,
)
from tests.fakes.loopback.publishing import Rule
from tests.fakes.loopback_hub import READ, UNKNOWN, WRITE
from tests.fakes.promoted import REPO, Shop
from tests.reliability.reliability_page import report, table

pytest_plugins = ["tests.fakes.promoted_fixtures"]
__all__ = ["disk", "weighty_shop"]  # fixtures, found by their names

Capture = pytest.CaptureFixture[str]
HEADER = ("fault", "outcome", "exit", "commits on main", "words (stderr)")
QUICK = ("lost replies of both commits", "stale parent on main (412)", "read-only token",
         "429, Retry-After: 3600", "token expires (401) at main's commit")

RELEASE, MAIN = "/commit/release/", "/commit/main"
LOCK = {"status": 409, "body": {"error": "Another commit operation is in progress"}}
EXPIRED = {"status": 401, "body": {"error": "Invalid credentials in Authorization header"}, "times": 999}
FORBIDDEN = {"status": 403, "body": {"error": "You don't have the rights to write to this repository"}, "times": 999}
PAGE = {"status": 502, "headers": {"Content-Type": "text/html"}, "body": "<html>bad gateway</html>"}
LOST = {"after": True, "close": True}
Rules = list[Rule]

PASSING: Mapping[str, Rules] = {
    "500 at the release's commit": [{"path": RELEASE, "status": 500}],
    "500 at main's commit, which was made": [{"path": MAIN, "status": 500, "after": True}],
    "429, Retry-After: 1": [{"path": RELEASE, "status": 429, "headers": {"Retry-After": "1"}}],
    "connection reset in the data": [{"path": "/_lfs/", "reset": True}],
    "lost replies of both commits": [{"path": path, **LOST} for path in (RELEASE, MAIN)],
    "stale parent on main (412)": [{"path": MAIN, "intrude": {
        "repo": REPO, "files": {"notes.txt": "by somebody else"}}}],
    "lock at both commits (409)": [{"path": path, **LOCK} for path in (RELEASE, MAIN)],
    "a proxy's page instead of an answer": [{"path": "/refs", **PAGE}],
    "an upload in which nothing moves": [{"path": "/_lfs/", "delay": 60}],
}
LASTING: Mapping[str, tuple[Mapping[str, str], Rules, int]] = {  # environment, rules, exit code
    "read-only token": ({"HF_TOKEN": READ}, [], 2),
    "expired token": ({"HF_TOKEN": UNKNOWN}, [], 2),
    "no server": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, [], 6),
    "a server that never answers": ({}, [{"path": "^/api", "delay": 60, "times": 999}], 6),
    "answers that drip, a byte in 0.1 s": ({}, [{"path": "^/api", "drip": 0.1, "times": 999}], 6),
    "500 for ever at the release's commit": ({}, [{"path": RELEASE, "status": 500, "times": 999}], 6),
    "429, Retry-After: 3600": ({}, [{"path": "/preupload/release/", "status": 429, "headers": {"Retry-After": "3600"},
                                     "times": 999}], 6),
    "token without the right (403) at the release's commit": ({}, [{"path": RELEASE, **FORBIDDEN}], 6),
    "token expires (401) at the release's commit": ({}, [{"path": RELEASE, **EXPIRED}], 6),
    "token expires (401) at main's commit": ({}, [{"path": MAIN, **EXPIRED}], 75),
    "500 for ever at main's commit": ({}, [{"path": MAIN, "status": 500, "times": 999}], 75),
}

# At one request, and at it and all that follow.
ONCE: Mapping[str, Rule] = {
    "500": {"status": 500},
    "500 though the work was done": {"status": 500, "after": True},
    "connection reset": {"reset": True},
    "lost reply": LOST,
    "429": {"status": 429, "headers": {"Retry-After": "0"}},
    "409": LOCK,
}
FROM_THERE_ON: Mapping[str, Rule] = {
    "503": {"status": 503, "times": 9999},
    "connection reset": {"reset": True, "times": 9999},
    "token expired (401)": {**EXPIRED, "times": 9999},
    "token without the right (403)": {**FORBIDDEN, "times": 9999},
}


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


def meet(shop: Shop, capfd: Capture, rules: Rules) -> Ended:
    """Deploy while the hub keeps these rules."""
    for rule in rules:
        shop.hub.fault(**rule)
    ended = deploy(capfd)
    assert all(rule.seen >= rule.nth for rule in shop.hub.faults)
    shop.hub.faults.clear()
    return ended


def met(name: str, shop: Shop, capfd: Capture) -> Row:
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
    if code in (2, 6):
        assert before.shows_the_same(World.of(shop))
    assert deploy(capfd).code == 0
    assert promoted_once(shop, before) == 1
    return Row(name, *LEFT[code], ended.error)


LEFT = {2: ("nothing published; the next run promotes", "2", "0, then 1"),
        6: ("nothing published; the next run promotes", "6", "0, then 1"),
        75: ("promoted, projections pending; the next run completes it", "75", "0, then 1"),
        5: ("nothing published; the next run promotes", "5", "0, then 1")}


@pytest.mark.parametrize("name", QUICK)
def test_a_deployment_recovers_or_publishes_nothing(
    with_a_champion: Path, tmp_path: Path, capfd: Capture, name: str
) -> None:
    with opened(with_a_champion, tmp_path / "shop") as shop:
        row = met(name, shop, capfd)
        assert row.line
        assert WRITE not in row.line


def test_xet_carries_the_data_of_a_whole_promotion(
    with_a_champion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
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


def filled(name: str, shop: Shop, disk: Resize, capfd: Capture) -> str:
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
    weighty_shop: Shop, disk: Resize, capfd: Capture, *, name: str
) -> None:
    filled(name, weighty_shop, disk, capfd)


# By hand.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, of its own code
@pytest.mark.parametrize("name", FULL)
def test_a_disk_with_room_again(
    weighty_shop: Shop, disk: Resize, capfd: Capture, rows: list[Row], *, name: str
) -> None:
    rows.append(Row(name, *LEFT[5], filled(name, weighty_shop, disk, capfd)))
    disk(ENOUGH)
    assert deploy(capfd, weights=True).code == 0
    assert len(weighty_shop.hub.history(REPO)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PASSING, *LASTING])
def test_every_named_fault(
    with_a_champion: Path, tmp_path: Path, capfd: Capture, rows: list[Row], *, name: str
) -> None:
    with opened(with_a_champion, tmp_path / "shop") as shop:
        rows.append(met(name, shop, capfd))


def requests(source: Path, root: Path, capfd: Capture) -> int:
    """How many requests a deployment makes that nothing disturbs."""
    with opened(source, root) as shop:
        assert deploy(capfd).code == 0
        return len(shop.hub.log)


SWEEPS = [*(("with_a_champion", fault) for fault in ONCE),
          *(("without_one", fault) for fault in ("500 though the work was done", "lost reply"))]


@pytest.mark.slow
@pytest.mark.parametrize(("start", "fault"), SWEEPS)
def test_a_fault_once_at_each_request(
    request: pytest.FixtureRequest, tmp_path: Path, capfd: Capture, rows: list[Row],
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
    with_a_champion: Path, tmp_path: Path, capfd: Capture, rows: list[Row], *, fault: str
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
