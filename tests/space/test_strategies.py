"""Each strategy in an environment of its own: it installs as locked, and serves what the table says, and nothing else.

Minutes, and a download of some 300 MB; with pytorch's wheel on the disk: PIP_FIND_LINKS=... PIP_RETRIES=0.
"""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.space_process import SPACE, Server, free_port, run_to_end, serve, unpack
from tests.fakes.tiny_model import edit_json, write_adapter

pytestmark = pytest.mark.slow
TABLE: dict[str, dict[str, Any]] = tomllib.loads((SPACE / "dependencies/strategies.toml").read_text())["strategies"]
RELEASE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
           "model.safetensors")
BUILD = """import json, pathlib, sys
from dependencies import environment, strategies
print(json.dumps(environment.build(strategies.load()[sys.argv[1]], pathlib.Path(sys.argv[2]))))"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """assets (compressed), tiny-chat (safetensors), and adapter: the latter with an adapter beside its weights."""
    folder = tmp_path_factory.mktemp("models")
    unpack(folder)
    base, adapted = folder / "tiny-chat", folder / "adapter"
    write_adapter(base, adapted)
    edit_json(adapted / "adapter_config.json", base_model_name_or_path=str(base))
    for name in RELEASE:
        shutil.copy(base / name, adapted / name)
    return folder


def streams(server: Server) -> bool:
    with server.stream(max_tokens=4) as reply:
        return reply.status_code == 200 and "data: [DONE]" in reply.iter_lines()


def refused(python: Path, model: Path) -> bool:
    """Whether the app ends at its start, by itself, since it lacks what the model needs."""
    ended = run_to_end(python, SPACE / "app.py", MODEL_DIR=str(model), PORT=str(free_port()))
    return ended.returncode != 0 and "No module named" in ended.stderr


@pytest.fixture(scope="module", params=sorted(TABLE))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The strategy's name, and the Python of an environment that --test's own code made and asserted."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    ended = subprocess.run([sys.executable, "-c", BUILD, request.param, folder], cwd=SPACE, capture_output=True,
                           text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    megabytes, seconds = json.loads(ended.stdout)
    print(f"\n{request.param}: {megabytes:.0f} MB, {seconds:.0f} s")
    assert megabytes == pytest.approx(TABLE[request.param]["megabytes"], rel=0.1)
    return request.param, folder / "bin/python"


def test_it_serves_what_the_table_says_and_refuses_the_rest(built: tuple[str, Path], models: Path) -> None:
    name, python = built
    found = {"fallback"} if fallback_answers(python, models) else set()
    answers: dict[str, str] = {}
    for kind, folder in {"compressed": "assets", "safetensors": "tiny-chat", "adapter": "adapter"}.items():
        if kind in TABLE[name]["works"]:
            with serve(SPACE / "app.py", python, MODEL_DIR=str(models / folder)) as server:
                answers[kind] = server.answer(max_tokens=12, temperature=0)
                found |= {kind, "streaming"} if streams(server) else {kind}
        elif not refused(python, models / folder):
            found.add(kind)
    print(f"{name}: {answers}")
    assert found == {*TABLE[name]["works"]}
    assert len(set(answers.values())) == len(answers)  # an adapter that was passed over would answer as its base


def fallback_answers(python: Path, models: Path) -> bool:
    with serve(SPACE / "app_minimal_fallback.py", python, MODEL_DIR=str(models / "assets")) as server:
        return "fallback" in server.answer() and server.chat(stream=True).status_code == 400
