"""The port: taken first of all, and a port that cannot be had is one line."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.space_process import PYTHON, ROOT, SPACE, needs_serving, run_to_end, serve, unpack

FROM_MAKE = ["make", "--no-print-directory", "-C", str(ROOT), f"PYTHON={sys.executable}"]


@pytest.fixture
def taken() -> Iterator[str]:
    """The number of a port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield str(listening.getsockname()[1])


@needs_serving
def test_a_taken_port_is_one_line_before_the_model_is_looked_for(taken: str) -> None:
    ended = run_to_end(PYTHON, SPACE / "app.py", PORT=taken, MODEL_DIR="/nowhere")
    assert ended.returncode == 2
    assert ended.stderr == (f"port {taken} is already in use. Stop the program that uses it, or choose another port: "
                            f"PORT={int(taken) + 1} make serve\n")


def test_make_serve_asks_for_the_port_before_it_sets_anything_up(taken: str) -> None:
    steps = subprocess.run([*FROM_MAKE, "--dry-run", "serve", f"PORT={taken}"], capture_output=True, text=True,
                           check=True).stdout.splitlines()
    assert f"PORT={taken}" in steps[0]
    assert "-m serving.port" in steps[0]
    assert any("space/app.py" in step and f"PORT={taken}" in step for step in steps)
    ended = subprocess.run([*FROM_MAKE, "port", f"PORT={taken}"], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert ended.stderr.startswith(f"port {taken} is already in use.")
    assert "Traceback" not in ended.stderr


def test_make_serve_listens_on_8000_unless_the_environment_says_otherwise() -> None:
    for environment, port in (({}, "8000"), ({"PORT": "8123"}, "8123")):
        steps = subprocess.run([*FROM_MAKE, "--dry-run", "serve"], capture_output=True, text=True, check=True,
                               env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment}).stdout
        assert f"PORT={port} " in steps


@pytest.mark.usefixtures("modules_of_space")
@pytest.mark.parametrize(("changes", "said"), [
    ({"HOST": "203.0.113.1"}, "HOST=203.0.113.1: cannot listen there"),
    ({"PORT": "nonsense"}, "PORT=nonsense: expected a whole number"),
], ids=["address", "number"])
def test_an_address_that_is_not_this_machines_is_named(changes: dict[str, str], said: str) -> None:
    ended = run_to_end(sys.executable, "-m", "serving.port", cwd=SPACE, **changes)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert said in ended.stderr


@needs_serving
def test_once_the_model_is_loaded_it_says_which_one_answers_and_where(tmp_path: Path) -> None:
    with serve(SPACE / "app.py", MODEL_DIR=str(unpack(tmp_path))) as server:
        port = server.client.base_url.port
        server.process.terminate()
        assert server.process.stderr
        said = server.process.stderr.read().splitlines()
    assert said[0].startswith("loading the model in ")
    assert "tiny-chat version 7 is ready." in said
    assert f"  chat page  http://127.0.0.1:{port}" in said
    assert [line for line in said if "rror" in line or "arning" in line] == []
