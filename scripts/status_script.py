"""Show the champion, registry, Hub and mirror, the last decisions, unfinished promotions and every drift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.records import CONFIG
from src.promotion.status import (
    BEFORE_THE_COMMIT_POINT,
    EndedDeployment,
    StartedPromotion,
    drift,
    exit_code,
    facts,
    text,
)
from utils import process

if TYPE_CHECKING:
    from scripts.commands.services import ManagedModel

PARSER = process.Arguments(description=__doc__, epilog="Exits 1 if registry, Hub, mirror or record differ from the "
                           "ledger, 5 if a slot of it was altered. Other exit codes: docs/exit-codes.md")
PARSER.add_argument("--json", action="store_true", help="the same facts as one JSON object")
PARSER.add_argument("--repair", action="store_true", help="first make everything agree with the ledger; a lost ledger "
                    "is restored from its copy in results/deployment or on the Hub")
PARSER.add_argument("--adopt", action="store_true", help="first restore a lost or altered ledger from its copy, then "
                    "add a champion that it does not know: one that was set by hand, an existing registry's, or a "
                    "release on the Hub alone")
PARSER.add_argument("--reason", metavar="TEXT", help="why it is adopted; recorded in the ledger")
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")


def main() -> int:
    """Repair or adopt if asked, then print the status; returns the exit code."""
    flags = PARSER.parse_args()

    from scripts.commands.services import managed_model

    model = managed_model(flags.config, skip_hf_push=False, create=flags.adopt or flags.repair)
    if flags.adopt or flags.repair:
        from scripts.commands import adopt

        if flags.adopt:
            adopt.adopt(model, flags.reason, _save_flavour)
        else:
            adopt.repair(model)
    seen = model.observe()
    findings = drift(seen)
    told = facts(model.model_name, seen, findings, _ended(model), _started(model))
    process.say(json.dumps(told, indent=2) if flags.json else text(told))
    return exit_code(findings)


def _ended(model: ManagedModel) -> list[EndedDeployment]:
    from utils.tracking import deployments

    past = deployments.latest(model.client, model.params.mlflow.experiment_name, model.model_name,
                              count=5, running=False)
    return [EndedDeployment(each.time, each.decision or each.status, each.reason or "no reason", each.version,
                            each.run_id) for each in past]


def _started(model: ManagedModel) -> list[StartedPromotion]:
    from utils.tracking import deployments

    here = [StartedPromotion(each.key, each.time, f"on this machine {'at' if each.running else 'stopped at'} step "
                             f"{each.step}, {each.time[:19]}")
            for each in deployments.traces() if each.step in BEFORE_THE_COMMIT_POINT]
    runs = deployments.latest(model.client, model.params.mlflow.experiment_name, model.model_name,
                              count=20, running=True)
    return [*here, *(StartedPromotion(each.key, each.time, f"MLflow run {each.run_id} of {each.time[:19]}")
                     for each in runs)]


def _save_flavour(release: Path, folder: Path) -> None:
    from scripts.commands.assemble import save_flavour  # torch: only an adoption from the Hub pays for it

    save_flavour(release, folder)


if __name__ == "__main__":
    process.run(main)
