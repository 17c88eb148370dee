"""The process around a stage: signals, exit codes, logs without secrets. Holds the one broad catch."""

import argparse
import base64
import errno
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn
from urllib.parse import quote

import dotenv

from src.core.errors import IntegrityError, InvalidParams, PipelineError, Undecided
from utils import interrupts

logger = logging.getLogger("champion")
LOG_LEVEL = "CHAMPION_LOG_LEVEL"
LOG_LEVELS = ("debug", "info", "warning")
INTERRUPTED = 130
TERMINATED = 143
Announce = Callable[[str, int, str], None]
_SECRET_WORDS = {"TOKEN", "PASSWORD", "PGPASSWORD", "PASSWD", "SECRET", "SECRETS", "KEY"}
_NO_SECRETS = {"PATH", "FILE", "DIR", "ID", "URL"}  # the last word of HF_TOKEN_PATH and the like
_LEAST = 6  # characters; replacing less would garble any text
_HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_USERINFO = re.compile(r"(?<=://)[^\s/@'\"]+@")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_FULL = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full|os error 28\b"
                   r"|inline_container\.cc:\d+\] \. unexpected pos")  # the last is torch's


class _Terminated(BaseException):
    """SIGTERM, raised in the main thread, so that temporary files are removed."""


def run(stage: Callable[[], int], *, announce: Announce = lambda _result, _code, _reason: None) -> NoReturn:
    """Run a stage and exit with its code; `announce(result, code, reason)` is told how a failed one ended.

    A PipelineError costs one line; anything unexpected its traceback and exit code 1.
    """
    dotenv.load_dotenv(Path(".env"))
    _set_up_logging()
    signal.signal(signal.SIGTERM, _terminate)
    interrupts.hand_over()
    sys.exit(_guarded(stage, announce))


def _guarded(stage: Callable[[], int], announce: Announce) -> int:
    try:
        _set_level(_level_of_environment())  # a flag of the stage comes later, and wins
        return stage()
    except PipelineError as error:
        _leave_it_to_rank_0()
        return _failed(error.result, error.code, str(error), announce)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED, "interrupted from the keyboard; run it again", announce)
    except _Terminated:  # a launcher that ends a process says why by itself
        return TERMINATED if launched() else _failed("terminated", TERMINATED, "terminated by a signal; run it again",
                                                     announce)
    except Exception as error:
        if full := full_disk(error):
            return _failed(full.result, full.code, str(full), announce)
        _leave_it_to_rank_0()
        logger.debug("traceback", exc_info=True)
        sys.excepthook(*sys.exc_info())
        return _failed("failed", 1, f"{type(error).__name__}: {error}; this is a bug", announce)


def full_disk(error: BaseException, where: object = "disk") -> IntegrityError | None:
    """The error to end with if this one, or what caused it, is a full disk or an exhausted quota; None otherwise.

    where: what could not be written, for an error that names no file.
    """
    cause: BaseException | None = error
    while cause is not None:
        if _FULL.search(str(cause)) or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)):
            name = cause.filename if isinstance(cause, OSError) else None
            return IntegrityError(f"{name or where}: No space left on device, or in your quota; make room (`df .`, "
                                  "`df /tmp`) and run it again")
        cause = cause.__cause__ or cause.__context__
    return None


def _failed(result: str, code: int, reason: str, announce: Announce) -> int:
    reason = printable(reason)
    logger.error("%s", " ".join(reason.split()))
    announce(result, code, reason)
    return code


def _leave_it_to_rank_0() -> None:
    """Only rank 0 reports an error that all ranks share; the launcher ends the others while they wait."""
    if not is_first():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _set_up_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    sys.excepthook, sys.unraisablehook = show_exception, _show_unraisable
    # Ours to hear when a library is updated; noise to whoever runs a stage.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|mlflow|torch|peft")
    # MLflow prints "View run ..." lines with the address, credentials included.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _level_of_environment() -> str:
    level = os.environ.get(LOG_LEVEL, "").strip().lower() or "info"
    if level not in LOG_LEVELS:
        raise InvalidParams(f"{LOG_LEVEL}: {level!r} is unknown; choose one of {', '.join(LOG_LEVELS)}")
    return level


def _set_level(level: str) -> None:
    """Set what goes to stderr. Our own loggers stay at INFO or below, so that deployment_logs.txt misses nothing."""
    number = logging.getLevelNamesMapping()[level.upper()]
    for name in ("champion", "src", "utils", "scripts"):
        logging.getLogger(name).setLevel(min(number, logging.INFO))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.formatter, Formatter):
            handler.setLevel(number)


class _SetLevel(argparse.Action):
    def __call__(self, _parser: object, namespace: argparse.Namespace, values: Any, _option: object = None) -> None:
        setattr(namespace, self.dest, values)
        _set_level(values)


class Arguments(argparse.ArgumentParser):
    """A command line whose errors end like any other: one line, exit code 2. A flag is spelt in full.

    Every one takes --log-level. Under `dvc repro`, which passes no flags, CHAMPION_LOG_LEVEL does the same.
    """

    def __init__(self, *, description: str | None, epilog: str | None = None) -> None:
        super().__init__(description=description, epilog=epilog, allow_abbrev=False)
        self.add_argument("--log-level", choices=LOG_LEVELS, action=_SetLevel, help="what goes to stderr; default "
                          f"info, or what {LOG_LEVEL} says")

    def error(self, message: str) -> NoReturn:
        """Raise InvalidParams; argparse would print the whole usage."""
        raise InvalidParams(f"{message}; see --help")


@contextmanager
def deadline(seconds: int, doing: str) -> Iterator[None]:
    """Raise Undecided in the block after this many seconds, even inside a socket that never answers.

    Works in the main thread, by SIGALRM; time-outs of single requests add up, this does not.
    """

    def _late(_signal: int, _frame: FrameType | None) -> None:
        raise Undecided(f"{doing} took longer than {seconds} s; check the server, or raise the deadline")

    before = signal.signal(signal.SIGALRM, _late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def say(text: str) -> None:
    """The final summary: the only thing that a stage writes to stdout."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def promote_line(result: str, code: int, reason: str) -> None:
    """The last line on stderr, for machines: DVC turns every failure into 255."""
    sys.stderr.write(f"PROMOTE result={result} code={code} reason={' '.join(printable(reason).split())}\n")
    sys.stderr.flush()


def is_first() -> bool:
    """Whether this is the process that talks to services and writes results; a stage alone is that."""
    return int(os.environ.get("RANK", "0")) == 0


def set_up() -> None:
    """In every process of a stage, before it works: all but the first keep to their errors.

    Raises InvalidParams for FSDP without GPUs, because accelerate would quietly train a whole copy in every process.
    """
    from accelerate.utils import is_cuda_available

    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in {"1", "true"} and not is_cuda_available():
        raise InvalidParams("launcher: FSDP needs GPUs and this machine has none; take --use_fsdp out of it")
    if not is_first():
        logging.disable(logging.WARNING)


def launched() -> bool:
    """True under torchrun or accelerate, which report a failed rank themselves."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def printable(text: str) -> str:
    """Redacted text whose control characters are visible: a server's text must not steer the terminal.

    Tabs and line breaks stay. A carriage return, and what turns the direction of writing, could hide a text.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), redacted(text))


def redacted(text: str) -> str:
    """Text with *** for the Hub's tokens, user names and passwords in addresses, and what the environment hides.

    Hidden are the values of variables that are named a token, password, secret or key, also as a URL or HTTP's basic
    authentication writes them.
    """
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _USERINFO.sub("***@", _HUB_TOKEN.sub("***", text))


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        words = name.upper().split("_")
        if not _SECRET_WORDS.isdisjoint(words) and words[-1] not in _NO_SECRETS:
            for part in (value.strip(), *value.split()):
                if len(part) >= _LEAST:
                    yield from (part, quote(part, safe=""))
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if password:
        yield base64.b64encode(f"{user}:{password}".encode()).decode()


class Formatter(logging.Formatter):
    """Formats a record, traceback included, as printable text. Further lines are indented: none passes for a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one text."""
        return printable(super().format(record)).replace("\n", "\n  ")


def show_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A sys.excepthook that redacts the traceback."""
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def _show_unraisable(told: "sys.UnraisableHookArgs") -> None:
    """Python drops a Ctrl-C that arrives in a callback, for example of the import system: send it again."""
    if told.exc_type is KeyboardInterrupt:
        main = threading.main_thread().ident or 0
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(told)
