"""Tell what the pipeline came to, from results/: for a job's summary page, a pull request, or this terminal."""

import logging
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.records import CONFIG, OUTPUT_DIR
from src.report import summary
from utils import github_utils, process

logger = logging.getLogger("champion")
FORMATS = ("github", "markdown", "text")

PARSER = process.Arguments(description=__doc__, epilog="github appends to the file that GITHUB_STEP_SUMMARY names, or "
                           "prints if none is named. PIPELINE_OUTCOME (success, failure, cancelled or skipped) says "
                           "how the pipeline ended. Exits 0 whatever is missing in results/, and with a warning if "
                           "GitHub refuses the comment")
TARGET = PARSER.add_mutually_exclusive_group()
TARGET.add_argument("--format", choices=FORMATS, help=f"default {FORMATS[-1]}")
TARGET.add_argument("--comment", action="store_true", help="write it on the pull request of this branch, as one "
                    "comment that each run updates; needs GITHUB_REPOSITORY and GITHUB_TOKEN (pull-requests: write)")
PARSER.add_argument("--output-dir", type=Path, metavar="DIR", help=f"the decision's records, default {OUTPUT_DIR}")


def main() -> int:
    """Write the summary; returns the exit code."""
    flags = PARSER.parse_args()

    from scripts.commands.summarise import outcome
    from src.core.params import check_place

    check_place(CONFIG)

    told = outcome(flags.output_dir)
    if flags.comment:
        _comment(summary.comment(told))
    elif flags.format == "github":
        page = summary.markdown(told)
        process.say("summary: on the job's page" if github_utils.append_summary(page) else page)
    else:
        process.say(summary.comment(told) if flags.format == "markdown" else summary.text(told))
    return 0


def _comment(body: str) -> None:
    requests = github_utils.PullRequests()
    try:
        number = requests.number()
        process.say(f"comment: {requests.comment(number, body, summary.MARKER)}" if number is not None else
                    f"comment: no open pull request of branch {github_utils.branch()}, so nothing to comment on")
    except github_utils.GithubError as error:
        logger.warning("comment: not written: %s", error)


if __name__ == "__main__":
    process.run(main)
