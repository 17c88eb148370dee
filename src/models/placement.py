"""Work shared out among the processes that a launcher started, and gathered; alone, all of it is one's own."""

import logging
import signal
import subprocess
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stderr
from datetime import timedelta
from io import StringIO
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import disable_fsdp_ram_efficient_loading, gather_object, get_int_from_env, is_cuda_available
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from transformers import PreTrainedModel

from src.core.errors import InvalidParams, RunAgain

logger = logging.getLogger(__name__)
T = TypeVar("T")
_PATIENCE = timedelta(days=30)  # gloo's own ends a wait after half an hour, and a share may take longer
_SMALL_MODEL = 20_000_000  # parameters
_LAUNCHER_SPEAKS = 60  # seconds


def start() -> None:
    """Meet the other processes, before any work: from then on each sees at once that another one is lost."""
    if state().num_processes > 1:
        disable_fsdp_ram_efficient_loading()  # it would leave all but the first without weights


def state() -> PartialState:
    """This process among the others, and its device: the GPU of its place on the machine, or the CPU.

    They talk by gloo, on GPUs too: it waits as long as it is told to, and sees at once that another one is lost.
    """
    backend = None if get_int_from_env(["LOCAL_RANK"], -1) < 0 else "gloo"
    return PartialState(cpu=not is_cuda_available(), backend=backend, timeout=_PATIENCE)


def own(items: Sequence[T]) -> Sequence[T]:
    """This process's share of what all of them hold equally."""
    return items[state().process_index :: state().num_processes]


def gather(items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order of these, in every one; each waits until all have called it.

    Raises RunAgain if another process is lost and no launcher of this machine says so.
    """
    state()
    try:
        return list(gather_object(list(items)))
    except RuntimeError as error:  # gloo has no class for it
        logger.debug("gather: %s", error)
        raise lost("stage", saved="what is saved") from None


def lost(what: str, *, saved: str) -> RunAgain:
    """The error for a lost process, after a minute: a launcher ends this one before, and says which one failed."""
    time.sleep(_LAUNCHER_SPEAKS)
    return RunAgain(f"another process of the {what} is lost; run it again, it goes on from {saved}")


def fit_threads(model: PreTrainedModel) -> None:
    """Give a small model one thread: on its small matrices threads wait for each other more than they compute.

    It also makes its results the same on any number of cores.
    """
    if model.num_parameters() < _SMALL_MODEL:
        torch.set_num_threads(1)


def launch(arguments: Sequence[str], stage: Sequence[str] = ()) -> int:
    """Start a stage as `accelerate launch ARGUMENTS STAGE` does, and wait for it; returns the stage's exit code.

    Without `stage`, the arguments end with it. The first process that fails decides the exit code, having said why.
    Raises RunAgain if a signal ended that process, and InvalidParams for arguments that accelerate refuses. Without
    GPUs several processes are several too; accelerate by itself would quietly start one.
    """
    flags = _parsed([*arguments, *stage])
    if stage and [flags.training_script, *flags.training_script_args] != list(stage):
        raise InvalidParams(f"launcher: {flags.training_script!r} is no flag of `accelerate launch`; take it out")
    for name in ("accelerate.commands.launch", "torch.distributed.elastic"):  # their reports of what is said here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="Port .* is already in use")  # then it takes another one
    if (flags.num_processes or 1) > 1 and not is_cuda_available():
        flags.cpu, flags.multi_gpu = False, not flags.use_fsdp
    try:
        launch_command(flags)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _code(rank, failure.exitcode)
    except subprocess.CalledProcessError as error:  # of one process alone
        return _code(0, error.returncode)
    except SignalException as error:
        return 128 + int(error.sigval)
    except (ValueError, ConnectionError) as error:
        raise InvalidParams(f"launcher: {error}; `accelerate launch --help` lists its flags") from error
    return 0


def _parsed(arguments: Sequence[str]) -> Namespace:
    with redirect_stderr(StringIO()) as said:
        try:
            flags: Namespace = launch_command_parser().parse_args(list(arguments))
        except SystemExit as error:
            if not error.code:  # --help
                raise
            problem = said.getvalue().strip().rpartition("error: ")[2]
            raise InvalidParams(f"launcher: {problem}; `accelerate launch --help` lists its flags") from None
    return flags


def _code(rank: int, exit_code: int) -> int:
    if exit_code > 0:
        return exit_code
    name = signal.Signals(-exit_code).name
    raise RunAgain(f"process {rank} of the stage was ended by {name}; run it again, it goes on from what is saved")
