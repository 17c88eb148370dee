"""Make the previous champion, or another older one, the champion again, and block what was promoted after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

try:
    import utils.interrupts  # noqa: F401 - from here on, Ctrl-C is one line
except ModuleNotFoundError:
    import activation  # noqa: F401 - says how to activate the environment, and exits

from src.core.errors import Refused
from src.core.records import CONFIG
from src.decisions.words import KINDS, NO_REASON, asked_by, hub_commit
from src.ledger.slots import LedgerView, Slot
from src.promotion.protocol import agree, append
from src.promotion.rollback import default_target, rollback
from src.promotion.status import versions
from utils import process

if TYPE_CHECKING:
    from scripts.commands.services import ManagedModel

PARSER = process.Arguments(description=__doc__, epilog="Nothing is deleted. Exit codes: docs/exit-codes.md")
PARSER.add_argument("--to", type=int, metavar="VERSION", help="the version to go back to, which is unblocked; default "
                    "the last model before the champion that is not blocked")
PARSER.add_argument("--block", type=int, metavar="VERSION", help="block this version; without --to, and if it is "
                    "not the champion, nothing else happens")
PARSER.add_argument("--reason", metavar="TEXT", help="why; recorded in the ledger")
PARSER.add_argument("--dry-run", action="store_true", help="print what would happen, and change nothing")
PARSER.add_argument("--config", type=Path, metavar="FILE", help=f"default {CONFIG}")
PARSER.add_argument("--skip-hf-push", action="store_true", help="do not touch the Hub")


def main() -> int:
    """Roll back or block; returns the exit code."""
    flags = PARSER.parse_args()

    from scripts.commands.services import managed_model, origin
    from utils.tracking.deployments import Journal

    model = managed_model(flags.config, skip_hf_push=flags.skip_hf_push, create=False)
    by = origin(flags.reason, NO_REASON)
    before, to, only_finish = model.checked_view(), flags.to, False
    if to is None and flags.block is None:
        # A rollback that was interrupted must not roll back twice when it is run again: finish it instead.
        last = before.standing  # the head, or the rollback whose version was published again since
        only_finish = last is not None and last.kind == "rollback" and not agree(model.services)
        to = None if only_finish else default_target(before).version

    def wanted(view: LedgerView) -> Slot | None:
        slot = None if only_finish else rollback(view, by, to=to, block=flags.block)
        if slot is not None:
            _check_there(model, view, slot)
        return slot

    if flags.dry_run:
        after, slot = before, wanted(before)
    else:
        after, slot = append(model.services, Journal("rollback").note, wanted)
        model.record(after, slot, "rolled_back")
    process.say(_summary(model, before, after, slot, flags.dry_run))
    result = "already" if slot is None else "rolled_back" if slot.version != _version(before) else "blocked"
    process.promote_line(result, 0, "finished" if only_finish else "rollback")
    return 0


def _check_there(model: ManagedModel, view: LedgerView, slot: Slot) -> None:
    if model.registry.keys().get(slot.version) != slot.key:
        raise Refused(f"version {slot.version}: the registry does not hold it any more; give another one with --to, "
                      "or restore MLflow's database")
    if slot.version != _version(view):
        model.require_weights(view, slot.version)


def _summary(model: ManagedModel, before: LedgerView, after: LedgerView, slot: Slot | None, dry_run: bool) -> str:
    if slot and dry_run:
        after = LedgerView((*before.slots, slot))
    head, last, blocked = after.head, after.standing, sorted(after.blocked_versions)
    if head is None or last is None:
        return "NO CHANGE: there is no champion"
    hub = hub_commit(head.hub.model_dump()) if head.hub else "does not have it"
    return "\n".join([
        _verdict(f"{model.model_name} version {head.version}", _version(before), head.version, slot, dry_run),
        f"  previous  {versions([after.previous.version if after.previous else None], nothing='none')}",
        f"  blocked   {versions(blocked, nothing='none')}",
        f"  Hub       {hub if model.repository else 'not pushed'}",
        f"  ledger    entry {last.number}, {KINDS[last.kind]} by {asked_by(last.actor, last.reason)}",
    ])


def _verdict(name: str, before: int | None, now: int, slot: Slot | None, dry_run: bool) -> str:
    would, stands = ("WOULD BE ", "would be") if dry_run else ("", "is")
    if slot is None:
        return f"NO CHANGE: {name} was already the champion"
    if now == before:
        return f"{would}BLOCKED: {versions(slot.blocks)}; {name} stays the champion"
    return f"{would}ROLLED BACK: {name} {stands} the champion again, instead of version {before}"


def _version(view: LedgerView) -> int | None:
    return view.head.version if view.head else None


if __name__ == "__main__":
    process.run(main, announce=process.promote_line)
