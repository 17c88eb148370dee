"""One step of the workflow's run: check what was asked for, log in to the DVC remote, pull, run, push, commit."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.errors import InvalidParams
from src.core.params import check_place
from src.core.records import CONFIG, OUTPUT_DIR, read_object
from utils import dvc_utils, environment, git_utils, github_utils, process, results
from utils.tracking import store

logger = logging.getLogger("champion")

PARSER = process.Arguments(description=__doc__, epilog="PIPELINE_PROFILE and PIPELINE_MIN_IMPROVEMENT_THRESHOLD are "
                           "parameters for this run only, whose records are not committed. DEPLOY_FORCE, "
                           "DEPLOY_REASON and DEPLOY_SKIP_HF_PUSH reach the deployment as they are")
PARSER.add_argument("step", choices=("check", "credentials", "pull", "run", "push", "commit"), help="which one")
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")


def check(config: Path) -> int:
    """Refuse early what could not end in a promotion; asks no service."""
    params, settings = github_utils.checked_params(config), github_utils.overrides().settings(config)
    logger.info("profile %s; %s", params.profile, ", ".join(settings) or f"parameters as in {config}")
    return 0


def credentials(_config: Path) -> int:
    """Write the user name and token of a DVC remote on DagsHub from the environment to .dvc/config.local."""
    remote = dvc_utils.default_remote()
    if remote is None or not store.is_dagshub(remote.url):
        process.say("credentials: nothing to do, the DVC remote is not DagsHub's")
        return 0
    login = store.dagshub_login()
    if login is None:
        raise InvalidParams(f"DAGSHUB_TOKEN: not set; make a token at {store.host()}/user/settings/tokens")
    user, token = login
    dvc_utils.keep_secret(remote.name, {"auth": "basic", "user": user, "password": token})
    process.say(f"credentials: those of {user} are now in .dvc/config.local")
    return 0


def pull(_config: Path) -> int:
    """Data, models and run cache from the DVC remote."""
    dvc_utils.pull()
    return 0


def run(config: Path) -> int:
    """The pipeline, once; returns DVC's exit code."""
    github_utils.checked_params(config)
    return dvc_utils.reproduce(github_utils.overrides().settings(config))


def push(_config: Path) -> int:
    """Data, models and run cache to the DVC remote."""
    dvc_utils.push()
    return 0


def commit(config: Path) -> int:
    """dvc.lock and the small results onto this run's branch; nothing after a run with parameters of its own."""
    settings, branch = github_utils.overrides().settings(config), github_utils.branch()
    if settings or not branch:
        process.say(f"records: not committed: {'run with ' + ', '.join(settings) if settings else 'no branch'}")
        return 0
    info = read_object(OUTPUT_DIR / results.INFO)
    subject = f"Record the pipeline's run: {info['result']} ({info['reason']})"
    made = git_utils.commit_records(branch, f"{subject}\n\n{environment.ci_url() or 'no address'}\n")
    process.say(f"records: {f'committed to {branch}, commit {made[:8]}' if made else f'{branch} is unchanged'}")
    return 0


STEPS: Mapping[str, Callable[[Path], int]] = {
    "check": check, "credentials": credentials, "pull": pull, "run": run, "push": push, "commit": commit}


def main() -> int:
    """Take the step; returns the exit code."""
    flags = PARSER.parse_args()
    check_place(flags.config or CONFIG)
    return STEPS[flags.step](flags.config or CONFIG)


if __name__ == "__main__":
    process.run(main)
