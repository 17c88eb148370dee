"""A stage in several processes, by accelerate's own launcher; one that dies is one line and a fixed exit code."""

import logging
import signal
import subprocess
import warnings
from collections.abc import Sequence

from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import is_cuda_available
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from src.errors import InvalidParams, RunAgain


def launch(arguments: Sequence[str]) -> int:
    """Start and await what the arguments of `accelerate launch` say; returns the stage's exit code.

    The first process that fails decides it, having said why. Raises RunAgain where a signal ended that one, and
    InvalidParams for arguments that accelerate refuses. Without GPUs several processes are several too, where
    accelerate by itself would quietly start one.
    """
    flags = launch_command_parser().parse_args(list(arguments))
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


def _code(rank: int, exit_code: int) -> int:
    if exit_code > 0:
        return exit_code
    name = signal.Signals(-exit_code).name
    raise RunAgain(f"process {rank} of the stage was ended by {name}; run it again, it goes on from what is saved")
