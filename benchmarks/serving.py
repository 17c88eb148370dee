"""A bundle against the release it was made of: start, tokens a second, time to the first token, memory.

    python -m benchmarks.serving [--layers 22] [--folder DIR] [--rounds 3] [--tokens 48] [--json FILE]

At TinyLlama's shape, random weights in bfloat16 (benchmarks/tinyllama.py), made below --folder unless they lie there.
The bundle answers as the app does (OpenVINO, space/.venv), the release through transformers in this environment, each
in processes of its own, in turns, on the same cores: one answer at a time, then four at once. No answer ends before
--tokens. Memory is the peak of both processes, app and engine, mapped weights included. The start is the app's, from
`python app.py` to a healthy /healthz, and on to the first answer of one token; the files are in the page cache.
What transformers has under way four at a time it answers in one batch, padded on the left.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2

from benchmarks import measure
from src.core.params import load_params
from src.core.records import CONFIG
from src.data import prepare as data_prep

SPACE = measure.ROOT / "space"
SERVING, BUILDER = SPACE / ".venv/bin/python", SPACE / ".venv-builder/bin/python"
KINDS = ("int8", "int4")
STREAMS = 4
PROMPTS = 8
_PATIENCE = 300  # seconds for one start


@dataclass(frozen=True)
class Speed:
    """Of one process: tokens a second, seconds to the median answer's first token, peak memory in MiB."""

    tokens_per_second: float
    first_token_seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Start:
    """Seconds from the start of the app."""

    healthy: float
    answered: float


@dataclass(frozen=True)
class Setting:
    """What is compared."""

    release: Path
    bundle: Path
    prompts: Path
    tokens: int

    def speed(self, kind: str, streams: int) -> Speed:
        """Of the bundle's weights of a kind, or of the release."""
        if kind == "released" and streams > 1:
            return self._batch()
        python, folder = (sys.executable, self.release) if kind == "released" else (str(SERVING), self.bundle)
        weights = [] if kind == "released" else ["--weights", kind]
        told = _output([python, "-m", "bundling.probe", "--bundle", str(folder), *weights, "--prompts",
                        str(self.prompts), "--output", os.devnull, "--streams", str(streams), "--max-new-tokens",
                        str(self.tokens), "--endless"], SPACE)
        return Speed(**{name: told[name] for name in Speed.__dataclass_fields__})

    def _batch(self) -> Speed:
        told = _output([sys.executable, "-m", "benchmarks.serving", "--batch", str(self.release), "--prompts",
                        str(self.prompts), "--tokens", str(self.tokens)], measure.ROOT)
        return Speed(**told)

    def start(self, kind: str) -> Start:
        """Of the app, in a fresh process."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "PORT": str(port), "HOST": "127.0.0.1", "MODEL_DIR": str(self.bundle),
                       "WEIGHTS": kind, "HF_HUB_OFFLINE": "1", "RATE_PER_MINUTE": "0"}
        begun = time.monotonic()
        app = subprocess.Popen([str(SERVING), "app.py"], cwd=SPACE, env=environment, stderr=subprocess.DEVNULL)
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE) as client:
                while not _healthy(client):
                    if app.poll() is not None or time.monotonic() > begun + _PATIENCE:
                        raise SystemExit(f"the app did not start with {kind}: exit code {app.poll()}")
                    time.sleep(0.01)
                healthy = time.monotonic() - begun
                body = {"messages": [{"role": "user", "content": "Where is my order?"}], "max_tokens": 1}
                client.post("/v1/chat/completions", json=body).raise_for_status()
                return Start(healthy, time.monotonic() - begun)
        finally:
            app.terminate()
            app.wait()


def _healthy(client: httpx2.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx2.TransportError:
        return False


def _output(command: list[str], folder: Path) -> dict[str, float]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def answer_batches(release: Path, prompts: Path, tokens: int) -> Speed:
    """In the child: transformers at its best, four answers in one batch. The first token is that of a whole batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(release).eval()
    tokenizer = AutoTokenizer.from_pretrained(release, padding_side="left")
    chats = [json.loads(line)["messages"] for line in prompts.read_text(encoding="utf-8").splitlines()]

    def answer(rows: list[list[dict[str, str]]], count: int) -> float:
        begun = time.monotonic()
        for place in range(0, len(rows), STREAMS):
            inputs = tokenizer.apply_chat_template(rows[place : place + STREAMS], add_generation_prompt=True,
                                                   padding=True, return_tensors="pt", return_dict=True)
            with torch.inference_mode():
                model.generate(**inputs, min_new_tokens=count, max_new_tokens=count)
        return time.monotonic() - begun

    answer(chats[:STREAMS], 1)
    first = answer(chats[:STREAMS], 1)
    speed = len(chats) * tokens / answer(chats, tokens)
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return Speed(speed, first, int(peak[1]) / 1024 if peak else 0.0)


def prepare(folder: Path, layers: int) -> tuple[Path, Path]:
    """The release and its bundle below a folder, made where they do not lie there."""
    release, bundle = folder / "release", folder / "bundle"
    if not (release / "config.json").is_file():
        measure.run([sys.executable, "-m", "benchmarks.tinyllama", str(release), "--layers", str(layers)])
    if not (bundle / "identity.json").is_file():
        measure.run([str(BUILDER), str(SPACE / "prepare_assets.py"), "--model", str(release), "--output", str(bundle)],
                    env={"HF_HUB_OFFLINE": "1"})
    return release, bundle


def write_prompts(file: Path) -> Path:
    """Questions of the shipped conversations, evenly spaced."""
    params = load_params(CONFIG).data
    rows = data_prep.read(Path(params.path), params).rows
    chats = [rows[place * len(rows) // PROMPTS].conversation()[:-1] for place in range(PROMPTS)]
    file.write_text("".join(json.dumps({"id": str(n), "messages": chat}) + "\n" for n, chat in enumerate(chats)))
    return file


def compare(setting: Setting, rounds: int) -> list[measure.Row]:
    """Everything, in turns; the last row is the slower of the two bundles against the release, one answer at a time."""
    sides = ("released", *KINDS)
    rows, ratios = [], []
    for streams in (1, STREAMS):
        found = measure.interleave({kind: lambda kind=kind, streams=streams: setting.speed(kind, streams)  # type: ignore[misc]
                                    for kind in sides}, rounds)
        for name in Speed.__dataclass_fields__:
            values = {kind: [getattr(one, name) for one in found[kind]] for kind in sides}
            rows += [measure.row(f"{streams} at once: {name}, {kind}", values[kind]) for kind in sides]
            ratios += [measure.ratio(f"{streams} at once: {name}, {kind} to released", values[kind], values["released"])
                       for kind in KINDS if name != "first_token_seconds"]
    starts = measure.interleave({kind: lambda kind=kind: setting.start(kind) for kind in KINDS}, rounds)  # type: ignore[misc]
    for kind in KINDS:
        rows.append(measure.row(f"start to healthy, s, {kind}", [one.healthy for one in starts[kind]]))
        rows.append(measure.row(f"start to first answer, s, {kind}", [one.answered for one in starts[kind]]))
    single = [one for one in ratios if one.measure.startswith("1 at once: tokens_per_second")]
    return [*rows, *ratios, min(single, key=lambda one: one.value)]


PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--layers", type=int, default=22)
PARSER.add_argument("--folder", type=Path, help="holds release/ and bundle/, or gets them; default: a temporary one")
PARSER.add_argument("--rounds", type=int, default=3)
PARSER.add_argument("--tokens", type=int, default=48, help="of each answer")
PARSER.add_argument("--batch", type=Path, help=argparse.SUPPRESS)
PARSER.add_argument("--prompts", type=Path, help=argparse.SUPPRESS)
measure.add_flags(PARSER)


def main() -> None:
    """Make what is compared, and compare it."""
    flags = PARSER.parse_args()
    if flags.batch:
        print(json.dumps(answer_batches(flags.batch, flags.prompts, flags.tokens).__dict__))
        return
    with tempfile.TemporaryDirectory(prefix="serving-") as scratch:
        release, bundle = prepare((flags.folder or Path(scratch)).resolve(), flags.layers)
        prompts = write_prompts(Path(scratch) / "prompts.jsonl")
        rows = compare(Setting(release, bundle, prompts, flags.tokens), flags.rounds)
    measure.finish("serving", rows, flags.json)


if __name__ == "__main__":
    main()
