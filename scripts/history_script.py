"""List the scored runs of the model; exclude one, promote one, explain a decision, or back-test a policy."""

from argparse import Namespace
from pathlib import Path

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.errors import IntegrityError
from src.core.records import CONFIG
from utils import environment, process

PARSER = process.Arguments(description=__doc__, epilog="See docs/history.md; exit codes: docs/exit-codes.md")
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")
ACTION = PARSER.add_mutually_exclusive_group()
ACTION.add_argument("--exclude", metavar="RUN", help="exclude an evaluation from future comparisons; needs --reason")
ACTION.add_argument("--promote", metavar="RUN", help="decide again about an evaluated model, and promote it if it wins")
ACTION.add_argument("--explain", metavar="RUN", help="explain a deployment, or the latest deployment of an evaluation")
ACTION.add_argument("--backtest", action="store_true", help="decide the whole history again under the policy of --set")
PARSER.add_argument("--set", action="append", metavar="KEY=VALUE", dest="settings",
                    help="threshold=0.01, weights.bleu4=0.5 or significance=require; may be given again")
PARSER.add_argument("--reason", metavar="TEXT", help="why; recorded")
FORM = PARSER.add_mutually_exclusive_group()
FORM.add_argument("--json", action="store_const", const="json", dest="form")
FORM.add_argument("--csv", action="store_const", const="csv", dest="form")
PARSER.add_argument("--limit", type=int, metavar="N", help="list at most N runs of each contract")


def main() -> int:
    """Run the action that the flags name; returns the exit code."""
    flags = PARSER.parse_args()
    _check(flags)
    config = flags.config or CONFIG

    from scripts.commands import history

    if flags.promote:
        return history.promote(config, flags.promote, flags.reason)
    commands = history.HistoryCommands(config)
    if flags.exclude:
        process.say(commands.exclude(flags.exclude, flags.reason))
    elif flags.backtest:
        process.say(commands.backtest(flags.settings, flags.form or "table"))
    elif flags.explain:
        words, differing, false = commands.explain(flags.explain)
        same = "differs" if differing else "the same result, bit for bit"
        replay = [f"  {'replay':14}  {same}", *(f"    {line}" for line in differing)]
        process.say("\n".join([*words, *replay, *(f"  {'untrue':14}  {line}" for line in false)]))
        if differing:
            raise IntegrityError(f"run {flags.explain}: the replay differs from the record in {len(differing)} places, "
                                 f"first {differing[0]}; something was changed in the store since")
        if false:
            raise IntegrityError(f"run {flags.explain}: {false[0]}; restore what was changed from a backup, or run "
                                 "`dvc repro --force evaluation`")
    else:
        process.say(commands.listing(flags.form or "table", flags.limit))
    return 0


def _check(flags: Namespace) -> None:
    """Refuse flags that do not go together."""
    listing = not (flags.exclude or flags.promote or flags.explain or flags.backtest)
    flags.reason = None if flags.reason is None else environment.clean_reason(flags.reason)
    problems = {
        "--backtest: needs --set, and --set needs --backtest": flags.backtest != bool(flags.settings),
        f"--{flags.form}: is for the list, and --json for a backtest too":
            flags.form and not listing and not (flags.backtest and flags.form == "json"),
        f"--limit {flags.limit}: is for the list, and at least 1":
            flags.limit is not None and (flags.limit < 1 or not listing),
        "--exclude: needs --reason TEXT, which is recorded with the run": flags.exclude and not flags.reason,
        "--reason: goes with --exclude or --promote":
            flags.reason is not None and not (flags.exclude or flags.promote),
    }
    for problem, found in problems.items():
        if found:
            PARSER.error(problem)


if __name__ == "__main__":
    process.run(main)
