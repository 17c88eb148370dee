"""A challenger that waits for its promotion, the Hub's faults that it meets, and what came of it."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import evaluation_script
from src.core.records import manifest
from src.ledger.ports import Holders
from tests.fakes import tiny_model, weightless
from tests.fakes.history_store import answers, challenger, write_params
from tests.fakes.loopback.publishing import release_folder
from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.promoted import NAME, PUSHING, REPO, SOURCE, Shop, set_environment
from utils.hub.repository import Patience

QUICK = Patience(deadline=90, request=20, stall=20, attempts=4, backoff=0.02)
ENOUGH = "64m"  # of disk for a release of two layers
Resize = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One line of the table: the fault, what came of it, the exit code, our commits on main, and the words."""

    fault: str
    outcome: str
    exit: str
    commits: str
    line: str

    def cells(self) -> tuple[str, ...]:
        line = re.sub(r"127\.0\.0\.1:(?!9:)\d+", "127.0.0.1", re.sub(r"[0-9a-f]{40}", "...", self.line))
        return self.fault, self.outcome, self.exit, self.commits, line


@contextmanager
def opened(source: Path, root: Path, **settings: object) -> Iterator[Shop]:
    """A copy of a shop at `root`, which is the working directory meanwhile, with a hub that serves its content.

    settings: changes to deployment.huggingface.
    """
    shutil.copytree(source, root)
    write_params(root, SOURCE, huggingface={**PUSHING, **settings})
    with pytest.MonkeyPatch.context() as patch, LoopbackHub(root / "hub") as hub:
        set_environment(patch, root, hub)
        patch.setattr(Patience, "within", lambda _seconds: QUICK)
        yield Shop(root, hub)


def prepare(source: Path, root: Path) -> Path:
    """The shop with a challenger that is better than its champion and was not deployed yet."""
    with opened(source, root) as shop:
        challenger(shop.params, "waiting", answers(36))
        shutil.rmtree("results/release", ignore_errors=True)
        release_folder(Path("results/release"), b"waiting")
    return root


@dataclass(frozen=True)
class World:
    """All that a deployment can change outside; branches and registered versions without an alias are not visible."""

    slots: int
    holders: Holders
    main: tuple[str, ...]
    tags: dict[str, str]
    commits: int

    @classmethod
    def of(cls, shop: Shop) -> "World":
        repo = shop.hub.repos.get(f"models/{REPO}", {"commits": (), "tags": {}, "branches": {}})
        main = tuple(shop.hub.history(REPO)) if repo["commits"] else ()
        return cls(len(shop.view.slots), shop.holders, main, dict(repo["tags"]), len(repo["commits"]))

    def shows_the_same(self, now: "World") -> bool:
        """Whether nothing that is visible changed; a repository that was absent may stand empty."""
        main = now.main == self.main if self.main else len(now.main) <= 1
        return main and (now.slots, now.holders, now.tags) == (self.slots, self.holders, self.tags)


@dataclass(frozen=True)
class Ended:
    """What a deployment said: its exit code, its one line of error (empty for none), and its warnings."""

    code: int
    error: str
    warnings: tuple[str, ...]


def deploy(capfd: pytest.CaptureFixture[str], *, weights: bool = False) -> Ended:
    """The whole deployment of the waiting challenger; fails where it says more than one line of error."""
    capfd.readouterr()
    code = weightless.call(weights=weights)
    lines = capfd.readouterr().err.splitlines()
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]
    assert len(errors) == (code != 0), lines
    assert re.match(rf"PROMOTE result=\w+ code={code} ", lines[-1]), lines
    assert not [line for line in lines if line.startswith(("Traceback", "  File"))], lines
    warned = tuple(line.removeprefix("WARNING ") for line in lines if line.startswith("WARNING "))
    return Ended(code, "".join(errors), warned)


def promoted_once(shop: Shop, before: World, *, strangers: int = 0) -> int:
    """Prove that the waiting challenger is the champion everywhere; returns how many commits main got from us."""
    now, head = World.of(shop), shop.view.slots[-1]
    version = before.slots + 1
    assert (now.slots, head.version, head.kind) == (version, version, "promote")
    assert now.holders == Holders(version, version - 1 or None, frozenset({version}))
    assert head.hub
    assert shop.main() == manifest(Path("results/release"))
    assert now.tags == {**before.tags, f"v{version}": head.hub.commit}
    assert shop.main(f"v{version}") == shop.main()
    assert set(shop.hub.repos[f"models/{REPO}"]["branches"]) == {"main", "ledger"}
    mirror = shop.hub.blob(shop.hub.files(REPO, "ledger")["ledger.jsonl"]).read_text().splitlines()
    assert mirror == [slot.text() for slot in shop.view.slots]
    assert len(shop.client.search_model_versions(f"name = '{NAME}'")) == version
    strangers += not before.main  # the repository's own first commit
    assert now.commits == before.commits + 3 + strangers  # release, main, ledger
    return len(now.main) - len(before.main) - strangers


# A big release, killed half-way.

ROOT = Path(__file__).parents[2]
SHARDS, SHARD_BYTES = 4, 500_000_000


def grow_release(shards: int, size: int) -> int:
    """Put random shards of this size into results/release; returns the bytes of all."""
    for number in range(1, shards + 1):
        with Path(f"results/release/model-{number:05d}-of-{shards:05d}.safetensors").open("wb") as file:
            for _ in range(size // 10_000_000):
                file.write(os.urandom(10_000_000))
    return shards * (size // 10_000_000) * 10_000_000


def start() -> "subprocess.Popen[str]":
    """The deployment as a process of its own."""
    return subprocess.Popen([sys.executable, str(ROOT / "tests/fakes/weightless.py")], text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})


def kill_half_way(shop: Shop, total: int) -> int:
    """SIGKILL a deployment when half of the data has arrived; returns the bytes that had when its upload was gone."""
    process = start()
    while shop.hub.received() < total / 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    now = -1
    while now != shop.hub.received():  # its upload ends itself when its parent is gone
        now = shop.hub.received()
        time.sleep(1.5)
    return now


# A repository whose results/ is a file system of its own, as small as a test asks for.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Resize]:
    """Gives results/ a file system of this size, or another size to the one that it has."""
    place = tmp_path / "results"
    mounted: list[Path] = []

    def resize(size: str) -> None:
        place.mkdir(exist_ok=True)
        how = ["-o", f"remount,size={size}"] if mounted else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        done = subprocess.run(["mount", *how, str(place)], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(place)

    yield resize
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def weighty_shop(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch, disk: Resize
                 ) -> Iterator[Shop]:
    """A first challenger with true weights, evaluated, on that disk."""
    with LoopbackHub(tmp_path / "hub") as hub:
        set_environment(monkeypatch, tmp_path, hub)
        disk(ENOUGH)
        _evaluate(tmp_path, migrated_store)
        yield Shop(tmp_path, hub)


def _evaluate(root: Path, migrated_store: Path) -> None:
    """A model of two layers, made and evaluated in the working directory."""
    shutil.copyfile(migrated_store, root / "mlflow.db")
    tiny_model.write_stages(root)
    config = write_params(root, SOURCE, huggingface=PUSHING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluation_script.py", "--config", str(config)])
        patch.setenv("HF_MODULES_CACHE", str(root / "modules"))
        assert evaluation_script.main() == 0
