"""Commit local files to the Hub in a child process, because hf_xet can hang so that only a kill ends it.

The parent calls `commit_files`. The child (`python -m utils.hub.upload`) reads the job from stdin, writes the result
to stdout, and ends itself if no byte moves for too long or the parent is gone.
"""

import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src.core.errors import HubError
from utils.hub.client import HubBusy, endpoint, hub_errors, time_limit
from utils.process import show_exception

STALLED = 3


@dataclass(frozen=True)
class Job:
    """A commit on `branch`, which must be at `parent`: files to add (path to local path) and to delete."""

    repo_id: str
    branch: str
    parent: str
    message: str
    add: dict[str, str]
    delete: list[str]


class XetFailed(HubBusy):
    """The Xet transfer failed, hung, or is not offered by this Hub; plain LFS may work."""


def commit_files(job: Job, *, token: str, seconds: float, stall_seconds: float, xet: bool) -> str:
    """Make the commit; returns its id, or the head's if the files were there already.

    seconds limits the whole upload, stall_seconds the time without a moving byte. Raises HubBusy if another attempt
    may help (XetFailed: without Xet), HubError otherwise.
    """
    xet = xet and os.environ.get("HF_HUB_DISABLE_XET", "").strip().upper() not in {"1", "ON", "YES", "TRUE"}
    environment = {
        "HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_INTERVAL": "1s",  # how often Xet notes what it has sent; else 20 s
        **os.environ,
        "HF_ENDPOINT": endpoint(),
        "HF_HUB_VERBOSITY": "error",  # its warnings show signed addresses
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
        "HF_HUB_DISABLE_PROGRESS_BARS": "0",  # without them Xet reports no progress, and seems to stall
        **({} if xet else {"HF_HUB_DISABLE_XET": "1"}),
        **({} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}),
    }
    order = {"job": asdict(job), "token": token, "stall_seconds": stall_seconds, "parent_pid": os.getpid()}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "utils.hub.upload"], input=json.dumps(order), stdout=subprocess.PIPE,
            text=True, timeout=seconds, env=environment, check=False, start_new_session=True)
    except subprocess.TimeoutExpired:
        raise HubError(f"{job.repo_id}: upload not done within {seconds:.0f} s; run it again, or allow it more time") \
            from None
    return _outcome(job, done, xet=xet)


def _outcome(job: Job, done: "subprocess.CompletedProcess[str]", *, xet: bool) -> str:
    if done.returncode == STALLED:
        kind = XetFailed if xet else HubBusy
        raise kind(f"{job.repo_id}: the upload moved no byte for too long and was stopped")
    if done.returncode:
        raise HubError(f"{job.repo_id}: the upload's process ended with {done.returncode}; see its words above, "
                       "and the memory that it had")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "commit" in answer:
        return str(answer["commit"])
    if answer["xet"]:
        raise XetFailed(answer["error"])
    if answer["busy"]:
        raise HubBusy(answer["error"], answer["retry_after"])
    raise HubError(answer["error"])


def main() -> None:
    """Run the child process."""
    sys.excepthook = show_exception
    order = json.load(sys.stdin)
    pulse = _Pulse(order["stall_seconds"], order["parent_pid"])
    threading.Thread(target=pulse.watch, daemon=True).start()
    sys.stdout.write(json.dumps(_commit(Job(**order["job"]), order["token"], pulse)))


class _Pulse:
    """End this process if it stalls or its parent is gone; works even while another thread hangs in native code."""

    def __init__(self, stall_seconds: float, parent: int) -> None:
        self.stall_seconds, self._parent = stall_seconds, parent
        self._last = time.monotonic()

    def beat(self) -> None:
        self._last = time.monotonic()

    def watch(self) -> None:
        while os.getppid() == self._parent and time.monotonic() - self._last < self.stall_seconds:
            time.sleep(0.2)
        os._exit(STALLED)


def _commit(job: Job, token: str, pulse: _Pulse) -> dict[str, Any]:
    import httpx2
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils._runtime import is_xet_available

    _hear_progress(pulse)
    limit = time_limit(math.inf, pulse.stall_seconds, client_waits=pulse.stall_seconds, heard=pulse.beat)
    try:
        with limit, hub_errors(job.repo_id):
            commit = HfApi(endpoint=endpoint(), token=token).create_commit(
                job.repo_id,
                [*(CommitOperationAdd(path, local) for path, local in job.add.items()),
                 *(CommitOperationDelete(path) for path in job.delete)],
                commit_message=job.message, revision=job.branch, parent_commit=job.parent,
                num_threads=2,  # files at once by plain LFS; after a kill, complete files are not sent again
            )
    except HubError as error:
        return {"error": str(error), "busy": isinstance(error, HubBusy),
                "retry_after": getattr(error, "retry_after", None),
                "xet": is_xet_available() and not isinstance(error.__cause__, httpx2.HTTPError)}
    return {"commit": commit.oid}


def _hear_progress(pulse: _Pulse) -> None:
    """Both transfers, Xet and LFS, report the bytes that moved to the client's progress bars, shown or not."""
    from huggingface_hub.utils.tqdm import tqdm

    original = tqdm.update

    def update(bar: Any, n: float | None = 1) -> Any:
        if n:
            pulse.beat()
        return original(bar, n)

    tqdm.update = update  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
