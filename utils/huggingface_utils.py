"""The Hugging Face Hub: the connection check, and base models."""

import math
import shutil
import sys
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path

import dotenv
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from src.core.errors import HubError, InvalidParams
from utils.environment import token
from utils.hub.client import endpoint, hub_errors, time_limit
from utils.hub.identity import TokenOwner, no_token, who
from utils.process import say

CHECK_SECONDS = 10
# Weights and texts only: a pickle or a Python file runs code when it is loaded.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
UNWANTED = ["*/*", "consolidated*"]  # other formats and copies of the same weights


def test_huggingface_connection() -> None:
    """Say on stdout who the Hub token belongs to and what it may do. Reads `.env`, as every script does.

    If something is wrong, says what and what to do about it, and raises SystemExit with the code of docs/exit-codes.md.
    """
    dotenv.load_dotenv(Path(".env"))
    try:
        identity = _owner(token())
    except (HubError, InvalidParams) as error:
        say(str(error))
        raise SystemExit(error.code) from None
    say(f"{endpoint()}: connected as {identity.name}; {identity.rights()}")


def _owner(value: str | None) -> TokenOwner:
    if value is None:
        raise InvalidParams(no_token())
    with time_limit(CHECK_SECONDS, CHECK_SECONDS, client_waits=0), hub_errors("the connection check"):
        return who(HfApi(endpoint=endpoint(), token=value))


test_huggingface_connection.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it by its name


def fetch_snapshot(repo_id: str, revision: str, folder: Path) -> str:
    """Copy a base model's safetensors, JSON and tokenizer files into a folder; returns the resolved commit.

    Resumes from the client's cache. Raises InvalidParams if the repository, the revision or safetensors weights
    in it do not exist, HubError if the Hub does not answer.
    """
    bars = nullcontext() if sys.stderr.isatty() else disable_progress_bars()
    try:
        # 60 s for one wait for the network, not for the whole.
        with time_limit(math.inf, 60, client_waits=math.inf), hub_errors(repo_id), bars:
            snapshot = Path(snapshot_download(repo_id, revision=revision, token=token(), endpoint=endpoint(),
                                              allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except HubError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError):
            raise InvalidParams(f"model.base_model: {repo_id} at revision {revision}: {error}") from error
        raise
    # The cache may hold what another program fetched of the same commit, pickles included.
    files = [path for path in snapshot.iterdir() if any(fnmatch(path.name, wanted) for wanted in WANTED)
             and not any(fnmatch(path.name, unwanted) for unwanted in UNWANTED)]
    if not any(path.suffix == ".safetensors" for path in files):
        raise InvalidParams(f"model.base_model: {repo_id} at {revision} has no safetensors weights, and pickles are "
                            "never loaded; choose a revision that has them")
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
    return snapshot.name
