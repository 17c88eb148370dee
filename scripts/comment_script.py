"""Put the summary on the pull request of this branch, as one comment that each run updates in place."""

import logging
from pathlib import Path

from src.core.records import OUTPUT_DIR
from utils import process

logger = logging.getLogger("champion")

PARSER = process.Arguments(description=__doc__, epilog="Needs GITHUB_TOKEN (pull-requests: write) and "
                           "GITHUB_REPOSITORY. A comment that GitHub refuses costs a warning and no exit code: what "
                           "was promoted is promoted")
PARSER.add_argument("--output-dir", type=Path, metavar="DIR", help=f"the decision's records, default {OUTPUT_DIR}")


def main() -> int:
    """Write or update the comment; returns the exit code."""
    flags = PARSER.parse_args()

    from scripts.commands.summarise import outcome
    from src.report import summary
    from utils import github_utils

    requests = github_utils.PullRequests(github_utils.repository())
    body = summary.comment(outcome(flags.output_dir))
    try:
        number = requests.number()
        if number is None:
            process.say(f"comment: no open pull request of branch {github_utils.branch()}, so nothing to comment on")
            return 0
        process.say(f"comment: {requests.comment(number, body, summary.MARKER)}")
    except github_utils.GithubError as error:
        logger.warning("comment: not written: %s", error)
    return 0


if __name__ == "__main__":
    process.run(main)
