"""Compare the challenger with the champion, and promote it if it wins."""

import contextlib
import gc
import logging
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.params import check_place
from src.core.records import CONFIG, EVALUATION_RESULTS, MODEL_LOCATION, OUTPUT_DIR
from utils import process, results

PARSER = process.Arguments(description=__doc__, epilog="What is not given comes from the environment (DEPLOY_FORCE, "
                           "DEPLOY_REASON, DEPLOY_SKIP_HF_PUSH), then from params.yaml. Exit codes: docs/exit-codes.md")
PARSER.add_argument("--evaluation-results", type=Path, metavar="FILE", help=f"default {EVALUATION_RESULTS}")
PARSER.add_argument("--model-artifact-path", type=Path, metavar="FILE", help=f"default {MODEL_LOCATION}")
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")
PARSER.add_argument("--output-dir", type=Path, metavar="DIR", help=f"where the records go, default {OUTPUT_DIR}")
PARSER.add_argument("--min-improvement-threshold", type=float, metavar="X", help="smallest gain that promotes")
PARSER.add_argument("--hf-model-id", metavar="OWNER/NAME", help="Hub repository of the release")
PARSER.add_argument("--skip-hf-push", action="store_true", help="leave the Hub alone")
PARSER.add_argument("--force-deploy", action="store_true", help="promote whatever the comparison says; files and "
                    "release are still checked")
PARSER.add_argument("--reason", metavar="TEXT", help="why; recorded with the promotion")
PARSER.add_argument("--dry-run", action="store_true", help="decide and write nothing; the records go to --output-dir, "
                    "if it is given")
PARSER.add_argument("--fail-on-reject", action="store_true", help="exit 10 if the challenger is not promoted")


class Deployment:
    """One call of this script; remembers its step and where its records go, so that a failure is recorded too."""

    def __init__(self) -> None:
        self._output: Path | None = None
        self._log = results.LogBuffer()
        self._doing = "reading its inputs"

    def run(self) -> int:
        """Decide and promote; returns the exit code."""
        flags = PARSER.parse_args()

        check_place(flags.config or CONFIG)
        folder = flags.output_dir or (None if flags.dry_run else OUTPUT_DIR)
        output = results.check_output_dir(folder) if folder else None
        self._output = output
        logging.getLogger().addHandler(self._log)

        from scripts.commands.deploy import Deployer, challenger_setting
        from src.promotion.protocol import DOING, Progress, Step, promote
        from utils.tracking.deployments import Journal

        setting = challenger_setting(flags, output, self._log)
        deployer = Deployer(setting)
        if flags.dry_run:
            view = deployer.ledger.view()
            decision = deployer.decide(view)
            deployer.record(decision, view)
        else:
            journal = Journal(setting.request.key)

            def note(step: Step) -> None:
                self._doing = DOING[step]
                journal.note(step)

            decision = promote(deployer.ports(), note, Progress(Step.PREFLIGHT)).decided()
            self._output = None  # what was decided is recorded and stands, whatever becomes of old weights
            deployer.prune()
        result, code, reason = deployer.result(decision)
        process.promote_line(result, code, reason)
        return code

    def failed(self, result: str, code: int, reason: str) -> None:
        """Record how the run failed, for DVC hides the exit code."""
        if self._output:
            with contextlib.suppress(OSError):  # a full disk; the line below says how it ended all the same
                end = f"STOPPED while {self._doing}: {result}, exit {code}"
                results.write_failure(self._output, result, code, reason, self._log.text(end))
        process.promote_line(result, code, reason)


if __name__ == "__main__":
    gc.disable()  # until weights are loaded: a sixth of a decision's time would go into looking for garbage
    call = Deployment()
    process.run(call.run, announce=call.failed)
