"""The serving app of space/ as a process of its own, with a tiny chat model of random weights.

tests/fakes/space_bundle.tar.gz holds that model as a release (tiny-chat) and as the bundle that prepare_assets.py made
of it in the builder's environment (assets). It says letters and blanks and never ends by itself.
"""

import os
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "space"
PYTHON = SPACE / ".venv/bin/python"
CHAT = "/v1/chat/completions"
needs_serving = pytest.mark.skipif(not PYTHON.exists(), reason="space/.venv is missing: make serving")


def unpack(folder: Path) -> Path:
    """The tiny model; returns its bundle."""
    with tarfile.open(ROOT / "tests/fakes/space_bundle.tar.gz") as packed:
        packed.extractall(folder, filter="data")
    return folder / "assets"


def environment(**changes: str) -> dict[str, str]:
    """Nothing of the caller's but where programs are; on this machine alone, one thread."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "HOST": "127.0.0.1", "THREADS": "1",
            "HF_HUB_OFFLINE": "1", "RATE_PER_MINUTE": "0", **changes}


def run_to_end(*command: Path | str, cwd: Path | str | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    changes = {"PORT": str(free_port()), **changes}
    return subprocess.run([str(word) for word in command], env=environment(**changes), capture_output=True, text=True,
                          check=False, cwd=cwd, timeout=120)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Server:
    """A process that answers."""

    process: subprocess.Popen[str]
    client: httpx2.Client
    begun: float = field(default_factory=time.monotonic)

    def chat(self, content: str = "Where is my order?", **more: object) -> httpx2.Response:
        return self.client.post(CHAT, json={"messages": [{"role": "user", "content": content}], **more})

    def answer(self, content: str = "Where is my order?", **more: object) -> str:
        text: str = self.chat(content, **more).json()["choices"][0]["message"]["content"]
        return text

    def stream(self, **more: object) -> Any:
        body = {"messages": [{"role": "user", "content": "Where is my order?"}], "stream": True, **more}
        return self.client.stream("POST", CHAT, json=body)

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)

    def wait_for(self, name: str, value: float) -> None:
        """Until a metric has a value."""
        wait_until(lambda: self.metric(name) == value, f"{name} is not {value}")

    @property
    def engine(self) -> int:
        """The one process that the app started."""
        engine, = self.engines
        return engine

    @property
    def engines(self) -> list[int]:
        """The processes that the app started: none for a moment, then one."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(number) for file in children for number in file.read_text().split()]

    @contextmanager
    def engine_held(self) -> Iterator[None]:
        """No token comes and no answer ends before the end of the block; the app itself goes on."""
        engine = self.engine
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(engine, signal.SIGCONT)

    @contextmanager
    def unanswered(self) -> Iterator[None]:
        """A client that asks and waits, and leaves at the end of the block."""
        body = b'{"messages": [{"role": "user", "content": "hello"}]}'
        head = (f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n")
        with socket.create_connection((self.client.base_url.host, self.client.base_url.port)) as connection:
            connection.sendall(head.encode() + body)
            yield


def wait_until(true: Callable[[], bool], otherwise: str) -> None:
    """Look again and again; fails after a minute."""
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until, otherwise
        time.sleep(0.02)


@contextmanager
def serve(program: Path, python: Path | str = PYTHON, **changes: str) -> Iterator[Server]:
    """Start a program on a free port, wait until it is healthy, end it."""
    with start(program, python, **changes) as server:
        process = server.process
        wait_until(lambda: process.poll() is not None or _healthy(server.client), "not healthy")
        assert process.poll() is None, process.stderr and process.stderr.read()
        yield server


@contextmanager
def start(program: Path, python: Path | str = PYTHON, **changes: str) -> Iterator[Server]:
    """The same without waiting for its health."""
    port = free_port()
    process = subprocess.Popen([str(python), str(program)], env=environment(PORT=str(port), **changes), cwd="/",
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Server(process, client)
    finally:
        process.kill()
        process.communicate()


def _healthy(client: httpx2.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx2.TransportError:
        return False
