"""Say how things stand: champion, registry, Hub and mirror, last decisions, what is unfinished, and all drift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from src.core.records import CONFIG
from utils import process

if TYPE_CHECKING:
    from scripts.commands.services import Standing
    from src.promotion.status import Begun, Decided

DRIFT = 1
_DECISIONS = 5
_ABANDONED = 20

PARSER = process.Arguments(description=__doc__, epilog="Exits 1 where registry, Hub, mirror or record differ from the "
                           "ledger. Other exit codes: docs/exit-codes.md")
PARSER.add_argument("--json", action="store_true", help="the same facts as one JSON object")
PARSER.add_argument("--repair", action="store_true", help="first make all else follow the ledger, which is restored "
                    "from its mirror where it was lost")
PARSER.add_argument("--adopt", action="store_true", help="first take in what stands outside of the ledger: a champion "
                    "that was set by hand, an existing registry, or a release on the Hub alone")
PARSER.add_argument("--reason", metavar="TEXT", help="why it is adopted; recorded in the ledger")
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")


def main() -> int:
    """Report, after repairing or adopting where asked; returns the exit code."""
    flags = PARSER.parse_args()

    from scripts.commands.services import standing
    from src.promotion.status import drift, facts, text

    stands = standing(flags.config, skip_hf_push=False)
    if flags.adopt or flags.repair:
        from scripts.commands import adopt

        if flags.adopt:
            adopt.adopt(stands, flags.reason, _save_flavour)
        else:
            adopt.repair(stands)
    seen = stands.seen(stands.ledger.view())
    findings = drift(seen)
    told = facts(stands.model_name, seen, findings, _decided(stands), _begun(stands))
    process.say(json.dumps(told, indent=2) if flags.json else text(told))
    return DRIFT if findings else 0


def _decided(stands: Standing) -> list[Decided]:
    from src.promotion.status import Decided
    from utils.tracking import deployments

    past = deployments.latest(stands.client, stands.params.mlflow.experiment_name, stands.model_name,
                                 count=_DECISIONS, running=False)
    return [Decided(each.time, each.decision or each.status, each.reason or "no reason", each.version, each.run_id)
            for each in past]


def _begun(stands: Standing) -> list[Begun]:
    from src.promotion.status import BEFORE_THE_COMMIT_POINT, Begun
    from utils.tracking import deployments

    here = [Begun(each.key, each.time, f"on this machine {'at' if each.running else 'stopped at'} step {each.step}, "
                  f"{each.time[:19]}") for each in deployments.traces() if each.step in BEFORE_THE_COMMIT_POINT]
    runs = deployments.latest(stands.client, stands.params.mlflow.experiment_name, stands.model_name,
                                 count=_ABANDONED, running=True)
    return [*here, *(Begun(each.key, each.time, f"MLflow run {each.run_id} of {each.time[:19]}") for each in runs)]


def _save_flavour(release: Path, folder: Path) -> None:
    from scripts.commands.assemble import save_flavour  # torch: only an adoption from the Hub pays for it

    save_flavour(release, folder)


if __name__ == "__main__":
    process.run(main)
