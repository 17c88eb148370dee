"""Work shared out among the processes that a launcher started, and gathered; alone, all of it is one's own."""

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading, gather_object, get_int_from_env, is_cuda_available

from src.errors import RunAgain

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = timedelta(days=30)  # gloo's own ends a wait after half an hour, and a share may take longer
_LAUNCHER_SPEAKS = 60  # seconds; it ends the processes that are left, and says which one failed


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

    Raises RunAgain where another process is lost and no launcher of this machine says so.
    """
    state()
    try:
        return list(gather_object(list(items)))
    except RuntimeError as error:  # gloo has no class for it
        logger.debug("gather: %s", error)
        time.sleep(_LAUNCHER_SPEAKS)
        raise RunAgain("another process of the stage is lost; run it again, it goes on from what is saved") from None
