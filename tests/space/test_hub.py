"""The serving app with a model from the Hub: downloaded where that is allowed, and refused in one line elsewhere."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.space_process import PYTHON, SPACE, needs_serving, run_to_end, serve, unpack

pytestmark = needs_serving


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """Holds the bundle, and the release it was made of."""
    folder = tmp_path_factory.mktemp("hub")
    bundle = unpack(folder)
    with LoopbackHub(folder / "store") as started:
        for name, source in (("shop/chat", bundle), ("shop/release", folder / "tiny-chat")):
            started.put(name, {str(path.relative_to(source)): path.read_bytes()
                               for path in source.rglob("*") if path.is_file()})
        yield started


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: beside the app itself there may be a bundle, which goes before what is on the Hub."""
    folder = tmp_path_factory.mktemp("app")
    shutil.copytree(SPACE / "serving", folder / "serving")
    for name in ("app.py", "files.py", "packages.py", "questions.json"):
        shutil.copy(SPACE / name, folder)
    return folder / "app.py"


def online(hub: LoopbackHub, home: Path, model: str) -> dict[str, str]:
    return {"HF_MODEL_ID": model, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}


def refusal(app: Path, **settings: str) -> str:
    ended = run_to_end(PYTHON, app, cwd="/", **settings)
    assert ended.returncode == 2
    *_, last = ended.stderr.splitlines()
    assert "Traceback" not in ended.stderr
    return last


@pytest.mark.parametrize(("model", "changes"), [("shop/nothing", {}), ("shop/chat@none", {}), ("no name", {}),
                                                ("shop/chat", {"HF_ENDPOINT": "http://127.0.0.1:9"})])
def test_what_cannot_be_downloaded_is_named(hub: LoopbackHub, app: Path, tmp_path: Path, model: str,
                                            changes: dict[str, str]) -> None:
    said = refusal(app, **{**online(hub, tmp_path, model), **changes})
    assert said.startswith(f"HF_MODEL_ID={model}: could not be downloaded; ")


def test_a_bad_token_is_named_and_the_copy_from_before_is_not_served(
        hub: LoopbackHub, app: Path, tmp_path: Path) -> None:
    settings = online(hub, tmp_path, "shop/chat")
    with serve(app, **settings) as server:
        assert server.client.get("/healthz").json()["model"] == "tiny-chat"
    said = refusal(app, **settings, HF_TOKEN="hf_" + "x" * 30)
    assert said == ("HF_MODEL_ID=shop/chat: the Hub refuses HF_TOKEN (401); correct it, or unset it for a public model")
    with serve(app, **settings | {"HF_ENDPOINT": "http://127.0.0.1:9"}) as server:
        server.process.terminate()
        assert server.process.stderr
        assert "the Hub does not answer; serving the copy of commit" in server.process.stderr.read()
    assert refusal(app, **settings | {"HF_MODEL_ID": "shop/chat@"}).endswith("the revision is empty")


def test_a_plain_release_without_transformers_says_what_to_install(hub: LoopbackHub, app: Path, tmp_path: Path) -> None:
    assert "install torch and transformers" in refusal(app, **online(hub, tmp_path, "shop/release"))


def test_a_bundle_is_downloaded_at_its_revision_and_answers(hub: LoopbackHub, app: Path, tmp_path: Path) -> None:
    commit = hub.history("shop/chat")[0]
    hub.put("shop/chat", {"int8/openvino_model.bin": b"a later one, broken"})
    with serve(app, **online(hub, tmp_path, f"shop/chat@{commit}")) as server:
        assert server.client.get("/healthz").json()["model"] == "tiny-chat"
        assert server.chat(max_tokens=5).json()["usage"]["completion_tokens"] == 5


def test_a_plain_release_is_served_by_transformers_if_installed(hub: LoopbackHub, app: Path, tmp_path: Path) -> None:
    # The environment of the tests has what the app needs but for this one.
    (tmp_path / "packages").mkdir()
    found, = PYTHON.parents[1].glob("lib/python*/site-packages/prometheus_client")
    (tmp_path / "packages/prometheus_client").symlink_to(found)
    settings = {**online(hub, tmp_path / "home", "shop/release"), "PYTHONPATH": str(tmp_path / "packages")}
    with serve(app, sys.executable, **settings) as server:
        health = server.client.get("/healthz").json()
        assert (health["model"], health["commit"]) == ("shop/release", hub.history("shop/release")[0])
        assert health["engine"].startswith("transformers ")
        whole = server.answer(max_tokens=20)
        with server.stream() as reply:
            pieces = reply.iter_text()
            assert next(pieces)
            assert server.answer(max_tokens=20) == whole
        server.wait_for("chat_answering", 0)
