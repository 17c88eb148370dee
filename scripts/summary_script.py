"""Tell what the pipeline came to, from results/: for a job's summary page, a pull request, or this terminal."""

from pathlib import Path

from src.core.records import OUTPUT_DIR
from utils import process

FORMATS = ("github", "markdown", "text")

PARSER = process.Arguments(description=__doc__, epilog="github appends to the file that GITHUB_STEP_SUMMARY names, or "
                           "prints where none is named. PIPELINE_OUTCOME (success, failure, cancelled or skipped) says "
                           "how the pipeline ended. Exits 0 whatever is missing in results/")
PARSER.add_argument("--format", choices=FORMATS, help=f"default {FORMATS[-1]}")
PARSER.add_argument("--output-dir", type=Path, metavar="DIR", help=f"the decision's records, default {OUTPUT_DIR}")


def main() -> int:
    """Write the summary; returns the exit code."""
    flags = PARSER.parse_args()

    from scripts.commands.summarise import outcome
    from src.report import summary
    from utils import github_utils

    told = outcome(flags.output_dir)
    if flags.format == "github":
        page = summary.markdown(told)
        process.say("summary: on the job's page" if github_utils.append_summary(page) else page)
    else:
        process.say(summary.comment(told) if flags.format == "markdown" else summary.text(told))
    return 0


if __name__ == "__main__":
    process.run(main)
