"""The process around a stage: each way to end, seen from outside."""

import base64
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from src.core import errors
from src.core.errors import InvalidParams, PipelineError, Undecided
from tests.fakes.history_store import write_params
from utils.process import Arguments, Formatter, deadline, redacted, show_exception

ROOT = Path(__file__).parents[2]
Endings = tuple[dict[str, list[object]], list[str]]
LEAVES = {cls.__name__: cls.code for cls in PipelineError.__subclasses__()}
HF = f"hf_{'a' * 34}"
STAGE = """
import json, logging, os, signal, sys, time
from pathlib import Path
from src.core import errors
from utils import process

signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a shell start without it

def announce(result, code, reason):
    Path("told.json").write_text(json.dumps([result, code, reason]))

def stage():
    {body}

process.run(stage, announce=announce)
"""


def start(body: str, folder: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", STAGE.replace("{body}", body)], cwd=folder, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def run(body: str, folder: Path, **environment: str) -> tuple[int, str, str]:
    process = start(body, folder, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def told(folder: Path) -> Any:
    return json.loads((folder / "told.json").read_text())


def test_the_leaves_have_the_documented_codes() -> None:
    assert LEAVES == {"InvalidParams": 2, "InvalidInput": 3, "Undecided": 4, "IntegrityError": 5, "HubError": 6,
                      "Refused": 7, "RunAgain": 75}
    assert set(LEAVES) | {"PipelineError"} == {name for name in vars(errors) if not name.startswith("_")}


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> Endings:
    """Each leaf raised by a stage in a process of its own: [exit code, what was announced], and the lines on stderr."""
    body = """
    for name in os.environ["LEAVES"].split():
        if os.fork() == 0:
            def fails(kind=getattr(errors, name)):
                raise kind("params.yaml: a\\n  b: wrong; correct it")
            process.run(fails, announce=announce)
        code = os.waitstatus_to_exitcode(os.wait()[1])
        print(json.dumps([name, code, json.loads(Path("told.json").read_text())]), flush=True)
    return 0
    """
    folder = tmp_path_factory.mktemp("stage")
    code, out, err = run(body.strip(), folder, LEAVES=" ".join(LEAVES))
    assert code == 0, err
    return {name: [code, said] for name, code, said in map(json.loads, out.splitlines())}, err.splitlines()


@pytest.mark.parametrize(("name", "code"), LEAVES.items())
def test_a_known_failure_ends_with_its_code_and_is_announced(name: str, code: int, endings: Endings) -> None:
    result = getattr(errors, name).result
    assert endings[0][name] == [code, [result, code, "params.yaml: a\n  b: wrong; correct it"]]


def test_a_known_failure_costs_one_line(endings: Endings) -> None:
    assert endings[1] == ["ERROR params.yaml: a b: wrong; correct it"] * len(LEAVES)


def test_a_bug_shows_its_traceback_and_exits_with_1(tmp_path: Path) -> None:
    code, out, err = run("return {}['absent']", tmp_path)
    assert (code, out) == (1, "")
    assert "Traceback" in err
    assert err.splitlines()[-1] == "ERROR KeyError: 'absent'; this is a bug"
    assert told(tmp_path)[:2] == ["failed", 1]


def test_a_full_disk_is_no_bug(tmp_path: Path) -> None:
    code, _, err = run("raise OSError(28, 'No space left on device', 'results/x')", tmp_path)
    assert (code, len(err.splitlines())) == (5, 1)
    assert err.startswith("ERROR results/x: No space left on device, or in your quota; make room")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB that has no room left; `room` on it takes a megabyte, to be removed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        (disk / "room").write_bytes(bytes(2**20))
        with contextlib.suppress(OSError), (disk / "rest").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


WRITERS = {
    "a record": "from utils import json_utils; json_utils.write_object(Path('{disk}/info.json'), {{'a': 'x' * 9999}})",
    "answers": "from utils.json_utils import write_lines; "
               "write_lines(Path('{disk}/new/predictions.jsonl'), ['x' * 9999])",
    "weights": "import torch; from safetensors.torch import save_file; "
               "save_file({{'a': torch.zeros(10**6)}}, '{disk}/model.safetensors')",
    "a checkpoint": "import torch; torch.save({{'a': torch.zeros(10**6)}}, '{disk}/optimizer.pt')",
    "a new store": "from utils.tracking import store; store.prepare('sqlite:///{disk}/mlflow.db')",
    "artifacts": "from utils import mlflow_utils; from src.core.params import load_params; "
                 "client = mlflow_utils.connect(load_params(Path('{disk}/../params.yaml')).mlflow); "
                 "home = mlflow_utils.ensure_experiment(client, 'full', {{}}); "
                 "exec('with mlflow_utils.mlflow_errors(): client.log_text("
                 "client.create_run(home.experiment_id).info.run_id, \\'x\\' * 99999, \\'page.html\\')')",
}


@pytest.mark.parametrize("what", WRITERS)
def test_whatever_meets_a_full_disk_ends_with_5_and_asks_for_room(
    what: str, full: Path, migrated_store: Path, tmp_path: Path
) -> None:
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    write_params(tmp_path, ROOT / "params.yaml")
    (tmp_path / "mlruns").symlink_to(full)
    code, _, err = run(WRITERS[what].format(disk=full) + "; return 0", tmp_path)
    assert (code, err.splitlines()[-1].endswith(": No space left on device, or in your quota; make room (`df .`, "
                                                "`df /tmp`) and run it again")) == (5, True), err
    assert "PASSWORD" not in err


def test_a_store_on_a_full_disk_ends_with_5_and_is_written_again_once_there_is_room(
    full: Path, migrated_store: Path, tmp_path: Path
) -> None:
    (full / "room").unlink()
    shutil.copy(migrated_store, full / "mlflow.db")
    with contextlib.suppress(OSError), (full / "rest").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    write_params(tmp_path, ROOT / "params.yaml")
    body = (f"os.environ['MLFLOW_TRACKING_URI'] = 'sqlite:///{full}/mlflow.db'; from utils import mlflow_utils; "
            "from src.core.params import load_params; "
            "client = mlflow_utils.connect(load_params(Path('params.yaml')).mlflow); "
            "mlflow_utils.ensure_experiment(client, 'full', {'note': 'x' * 4000}); return 0")
    code, _, err = run(body, tmp_path)
    assert code == 5, err
    assert f"MLflow at sqlite:///{full}/mlflow.db: No space left on device, or in your quota; make room" in err
    (full / "rest").unlink()
    assert run(body, tmp_path)[0] == 0


def test_a_bug_does_not_tell_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-token")
    code, _, err = run("import os; logging.warning('is %s', os.environ['HF_TOKEN']); return {}[os.environ['HF_TOKEN']]",
                       tmp_path)
    assert (code, err.count("'***'")) == (1, 2)
    assert "WARNING is ***" in err
    assert "s3cr3t-token" not in err + " ".join(map(str, told(tmp_path)))


SPEAK = """
    process.Arguments(description=None).parse_args(sys.argv[1:])
    for name in ("champion", "src.x", "utils.x", "scripts.x", "other"):
        for level in ("debug", "info", "warning", "error"):
            logging.getLogger(name).log(getattr(logging, level.upper()), "%s %s", name, level)
    return 0
"""


@pytest.mark.parametrize(("environment", "flags", "lowest"), [
    ("", [], "info"), ("debug", [], "debug"), ("WARNING", [], "warning"), ("", ["--log-level=warning"], "warning"),
    ("warning", ["--log-level", "debug"], "debug"), ("debug", ["--log-level", "info"], "info")])
def test_the_log_level_comes_from_the_flag_then_the_environment_and_leaves_libraries_alone(
        environment: str, flags: list[str], lowest: str, tmp_path: Path) -> None:
    body = SPEAK.strip().replace("sys.argv[1:]", repr(flags))
    code, _, err = run(body, tmp_path, CHAMPION_LOG_LEVEL=environment)
    levels = ["debug", "info", "warning", "error"]
    expected = [f"{name} {level}" for name in ("champion", "src.x", "utils.x", "scripts.x")
                for level in levels[levels.index(lowest):]] + ["other warning", "other error"]
    assert (code, [line.partition(" ")[2] for line in err.splitlines()]) == (0, expected)


def test_an_unknown_log_level_is_refused_by_name(tmp_path: Path) -> None:
    code, _, err = run("return 0", tmp_path, CHAMPION_LOG_LEVEL="loud")
    assert (code, err) == (2, "ERROR CHAMPION_LOG_LEVEL: 'loud' is unknown; choose one of debug, info, warning\n")
    code, _, err = run(SPEAK.strip().replace("sys.argv[1:]", "['--log-level', 'loud']"), tmp_path)
    assert (code, "argument --log-level: invalid choice: 'loud'" in err) == (2, True)


def test_every_script_takes_a_log_level() -> None:
    scripts = [import_module(f"scripts.{path.stem}") for path in (ROOT / "scripts").glob("*_script.py")]
    assert len(scripts) > 10
    assert [script.__name__ for script in scripts if "--log-level" not in script.PARSER.format_help()] == []


@pytest.mark.parametrize("code", [0, 10])
def test_a_stage_that_returns_exits_with_what_it_returned_and_announces_nothing(code: int, tmp_path: Path) -> None:
    assert run(f"return {code}", tmp_path) == (code, "", "")
    assert not (tmp_path / "told.json").exists()


@pytest.mark.parametrize(("number", "code", "result"), [
    (signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")])
def test_a_signal_ends_the_stage_with_its_code_and_removes_temporary_files(
    number: int, code: int, result: str, tmp_path: Path
) -> None:
    body = """
    import tempfile
    with tempfile.TemporaryDirectory(dir="."):
        print("ready", flush=True)
        time.sleep(600)
    """
    process = start(body.strip(), tmp_path)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "")
    assert err.startswith(f"ERROR {result} ")
    assert err.count("\n") == 1
    assert told(tmp_path)[:2] == [result, code]
    assert [path.name for path in tmp_path.iterdir()] == ["told.json"]


def test_the_environment_file_is_read_and_logs_go_to_stderr(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DEPLOY_REASON=from the file\nHF_HOME=/other\n")
    body = """
    logging.getLogger("src.x").info("kept %s", os.environ["DEPLOY_REASON"])
    logging.getLogger("src.x").debug("too fine")
    logging.getLogger("urllib3").info("somebody else's")
    process.say("summary " + os.environ["HF_HOME"])
    process.promote_line("kept", 0, "not best\\nat all")
    return 0
    """
    assert run(body.strip(), tmp_path, HF_HOME="/mine") == (
        0, "summary /mine\n", "INFO kept from the file\nPROMOTE result=kept code=0 reason=not best at all\n")


def test_a_deadline_interrupts_a_read_that_never_ends() -> None:
    before, (silent, _writer) = signal.getsignal(signal.SIGALRM), socket.socketpair()
    started = time.monotonic()
    with (silent, _writer, pytest.raises(Undecided, match="history took longer than 1 s; check"),
          deadline(1, "reading the history")):
        silent.recv(1)
    assert time.monotonic() - started > 0.9
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_deadline_that_was_kept_is_forgotten_and_a_failure_inside_passes() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with deadline(60, "nothing"):
        pass
    assert signal.alarm(0) == 0
    with pytest.raises(KeyError), deadline(60, "something"):
        raise KeyError("x")
    assert signal.alarm(0) == 0
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("line", [["--nope"], ["--reason"], ["--count", "x"], ["--rea", "x"], ["stray"]])
def test_a_wrong_command_line_is_one_line_and_never_guessed(line: list[str]) -> None:
    parser = Arguments(description="x")
    parser.add_argument("--reason")
    parser.add_argument("--count", type=int)
    with pytest.raises(InvalidParams, match=r"; see --help$"):
        parser.parse_args(line)


@pytest.mark.parametrize(("name", "value"), [
    ("HF_TOKEN", HF), ("MLFLOW_TRACKING_PASSWORD", "s3cr3t"), ("AWS_SECRET_ACCESS_KEY", "wJalr/XUtn+FEMI"),
    ("PGPASSWORD", "postgres-1"), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "eyJhbGciOi"),
])
def test_the_value_of_a_secret_variable_is_hidden(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"refused: {value}.") == "refused: ***."


@pytest.mark.parametrize(("name", "value"), [
    ("HF_TOKEN_PATH", "/home/me/token"), ("TOKENIZERS_PARALLELISM", "false-ish"), ("MY_TOKEN", "abc"),
    ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
])
def test_paths_names_and_what_is_too_short_to_tell_from_text_stay(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"see {value}") == f"see {value}"


@pytest.mark.parametrize(("text", "shown"), [
    (f"a Hub token of no variable: Bearer {HF}", "a Hub token of no variable: Bearer ***"),
    ("at postgresql://me:pw@host/db and https://x.example/a@b", "at postgresql://***@host/db and https://x.example/a@b"),
    (f"Basic {base64.b64encode(b'me:p/ss word').decode()}; p%2Fss%20word", "Basic ***; ***"),
    (r"Illegal header value b'Bearer first-part\nsecond-part'", r"Illegal header value b'Bearer ***\n***'"),
])
def test_a_secret_is_hidden_as_http_urls_and_messages_write_it(
    monkeypatch: pytest.MonkeyPatch, text: str, shown: str
) -> None:
    for name, value in {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "p/ss word",
                        "HF_TOKEN": "first-part\nsecond-part"}.items():
        monkeypatch.setenv(name, value)
    assert redacted(text) == shown


def test_a_log_line_and_its_traceback_are_redacted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-token")
    try:
        int("s3cr3t-token")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", ("s3cr3t-token",), sys.exc_info())
        show_exception(*sys.exc_info())
    text, shown = Formatter("%(message)s").format(record), capsys.readouterr().err
    assert "ValueError: invalid literal for int() with base 10: '***'" in text
    assert "ValueError: invalid literal for int() with base 10: '***'" in shown
    assert "s3cr3t-token" not in text + shown


HOSTILE = "\x1b[2Jcleared\x1b]0;title\x07\rhidden \x9b31m\u202egnp\x00"


def test_a_servers_text_cannot_steer_the_terminal(tmp_path: Path) -> None:
    body = """
    text = json.loads(os.environ["TEXT"])
    logging.getLogger("champion").warning("server: %s", text)
    logging.getLogger("champion").warning("two\\nPROMOTE result=promoted code=0 reason=x")
    process.say("summary\\tof " + text)
    process.promote_line("kept", 0, text)
    raise errors.Undecided(text) if os.environ.get("KNOWN") else ValueError(text)
    """
    for known in ("yes", ""):
        code, out, err = run(body.strip(), tmp_path, TEXT=json.dumps(HOSTILE), KNOWN=known)
        assert code == (4 if known else 1)
        shown = r"\x1b[2Jcleared\x1b]0;title\x07\rhidden \x9b31m\u202egnp\x00"
        assert out == f"summary\tof {shown}\n"
        assert err.startswith(f"WARNING server: {shown}\nWARNING two\n  PROMOTE result=promoted")
        assert f"\nPROMOTE result=kept code=0 reason={shown}\n" in err
        assert f"\nERROR {'' if known else 'ValueError: '}{shown}" in err
        assert not set(err) & set("\x1b\x07\r\x9b\u202e\x00")
        assert "\x1b" not in "".join(told(tmp_path)[2])


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*_script.py")), ids=lambda path: path.stem)
def test_a_script_watches_for_ctrl_c_before_it_imports_anything_else_of_ours(script: Path) -> None:
    lines = map(str.strip, script.read_text().splitlines())
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    ours = [line for line in imports if line.split()[1].split(".")[0] in ("src", "utils", "scripts", "space")]
    assert ours[0].startswith("import utils.interrupts ")


def test_ctrl_c_while_a_script_imports_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    code = ("import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "import __main__; __main__.__file__ = sys.argv[1]; runpy.run_path(sys.argv[1], run_name='__main__')")
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT / "scripts/status_script.py")], cwd=tmp_path,
                               env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "ERROR interrupted from the keyboard; run it again\n")


def test_ctrl_c_in_a_callback_which_python_drops_ends_the_stage_all_the_same(tmp_path: Path) -> None:
    body = """
    import weakref
    class Thing: pass
    def interrupted(_): raise KeyboardInterrupt
    thing = Thing()
    watched = weakref.ref(thing, interrupted)
    del thing
    time.sleep(600)
    """
    code, _, err = run(body.strip(), tmp_path)
    assert (code, err) == (130, "ERROR interrupted from the keyboard; run it again\n")
