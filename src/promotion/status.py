"""Where registry, Hub, mirror and record differ from the ledger, whose head is the champion. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.hub_records import HubState
from src.ledger import LedgerView, Slot
from src.ports import Holders

REPAIR = "`--repair` restores it"
_ADOPT = "`--adopt` takes it in"
_BACKUP = "restore MLflow's database from a backup"


@dataclass(frozen=True)
class HubSeen:
    """One Hub repository and the lines of its ledger mirror, None where it has none."""

    repo: str
    state: HubState
    holds_release: bool
    mirror: Sequence[str] | None


@dataclass(frozen=True)
class Seen:
    """What stands outside. keys: promotion key of each registered version, None without a registry.

    expected is what the holders must be; pruned are versions whose weights were taken away, as it was asked for; hub
    is None when nothing is pushed, info the last deployment_info.json.
    """

    view: LedgerView
    holders: Holders
    expected: Holders
    keys: Mapping[int, str | None] | None
    pruned: frozenset[int]
    hub: HubSeen | None
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One difference: where it is, what it is, and what to do about it."""

    place: str
    text: str
    remedy: str

    def line(self) -> str:
        """All three in one line."""
        return f"{self.place}: {self.text}; {self.remedy}"


def drift(seen: Seen) -> list[Finding]:
    """Every difference; empty where all shows the ledger's head."""
    head = seen.view.head
    if head is None:
        return [*_unknown_to_an_empty_ledger(seen), *_mirror(seen), *_record(seen)]
    return [*_holders(seen), *_versions(seen, head), *_hub(seen, head), *_tags(seen, head), *_mirror(seen),
            *_record(seen)]


def _unknown_to_an_empty_ledger(seen: Seen) -> Iterator[Finding]:
    shown = {*seen.holders.production, *filter(None, [seen.holders.champion])}
    if shown:
        yield Finding("registry", f"shows {versions(shown)} as champion, but the ledger is empty", _ADOPT)
    if seen.hub and seen.hub.holds_release and not seen.hub.mirror:
        yield Finding("hub", f"{seen.hub.repo} holds a release, but the ledger is empty", _ADOPT)


def _holders(seen: Seen) -> Iterator[Finding]:
    known = {slot.version for slot in seen.view.slots}
    pairs = {"champion": (seen.holders.champion, seen.expected.champion),
             "previous": (seen.holders.previous, seen.expected.previous)}
    for alias, (found, wanted) in pairs.items():
        if found == wanted:
            continue
        whose = "" if found is None or found in known else ", which the ledger does not know"
        adopting = f", {_ADOPT}" if alias == "champion" and found is not None else ""
        yield Finding("registry", f"alias {alias} is at {versions([found])}{whose}; the ledger says "
                      f"{versions([wanted])}", REPAIR + adopting)
    if seen.holders.production != seen.expected.production:
        yield Finding("registry", f"stage Production holds {versions(seen.holders.production)}; the ledger says "
                      f"{versions(seen.expected.production)}", REPAIR)


def _versions(seen: Seen, head: Slot) -> Iterator[Finding]:
    if seen.keys is None:
        return
    if head.version not in seen.keys:  # an older one that was deleted only cannot be rolled back to
        yield Finding("registry", f"version {head.version} is gone", f"{_BACKUP}, or roll back")
    for version, key in sorted({slot.version: slot.key for slot in seen.view.slots}.items()):
        found = seen.keys.get(version, key)
        if found != key:
            yield Finding("registry", f"version {version} carries the key {(found or 'none')[:12]}; the ledger says "
                          f"{key[:12]}: another model has its number", _BACKUP)


def _hub(seen: Seen, head: Slot) -> Iterator[Finding]:
    if seen.hub is None:
        return
    repo, state = seen.hub.repo, seen.hub.state
    shown = whose_tree(seen.view, state.tree)
    if head.hub is None:
        yield Finding("hub", f"version {head.version} was promoted without the Hub; {repo} main holds {shown}",
                      "the next promotion with the Hub ends it")
    elif head.hub.repo != repo:
        yield Finding("hub", f"version {head.version} was published to {head.hub.repo}, params.yaml names {repo}",
                      "correct deployment.huggingface.model_id, or wait for the next promotion")
    elif state.tree != head.hub.tree:
        yield Finding("hub", f"{repo} main holds {shown}; the ledger says version {head.version}", REPAIR)


def _tags(seen: Seen, head: Slot) -> Iterator[Finding]:
    if seen.hub is None:
        return
    commits = {slot.version: slot.hub.commit for slot in seen.view.slots
               if slot.hub and slot.hub.repo == seen.hub.repo}
    for version, commit in sorted(commits.items()):
        found = seen.hub.state.tags.get(f"v{version}")
        if found is None and version == head.version:
            yield Finding("hub", f"tag v{version} is missing", REPAIR)
        elif found not in (None, commit):
            yield Finding("hub", f"tag v{version} is at {str(found)[:12]}; the ledger says {commit[:12]}",
                          "find out who moved it, delete it, and `--repair`")


def _mirror(seen: Seen) -> Iterator[Finding]:
    if seen.hub is None:
        return
    ours = [slot.text() for slot in seen.view.slots]
    pushed = any(slot.hub and slot.hub.repo == seen.hub.repo for slot in seen.view.slots)
    theirs = list(seen.hub.mirror or [])
    common = min(len(ours), len(theirs))
    if ours[:common] != theirs[:common]:
        first = next(number for number in range(common) if ours[number] != theirs[number]) + 1
        yield Finding("mirror", f"differs from the ledger at slot {first}: one of them was altered",
                      "see docs/status.md")
    elif len(theirs) > len(ours):
        yield Finding("mirror", f"has {len(theirs)} slots, the ledger {len(ours)}: the ledger lost some", REPAIR)
    elif pushed and len(theirs) < len(ours):
        behind = len(ours) - len(theirs)
        yield Finding("mirror", f"is {behind} slot{'s' if behind > 1 else ''} behind the ledger", REPAIR)


def _record(seen: Seen) -> Iterator[Finding]:
    if "champion" not in seen.info:
        return
    head, champion = seen.view.head, seen.info["champion"]
    recorded = champion.get("version") if isinstance(champion, Mapping) else None
    wanted = head.version if head else None
    if recorded != wanted:
        yield Finding("record", f"deployment_info.json names {versions([recorded])} as champion; the ledger says "
                      f"{versions([wanted])}", f"{REPAIR}, and so does `dvc repro`")


def whose_tree(view: LedgerView, tree: str | None) -> str:
    """Which version's release a tree is, in words."""
    if tree is None:
        return "nothing"
    owner = next((slot.version for slot in reversed(view.slots) if slot.hub and slot.hub.tree == tree), None)
    return "files that are no release of this ledger" if owner is None else f"version {owner}"


def versions(numbers: Sequence[int | None] | frozenset[int] | set[int], *, nothing: str = "no version") -> str:
    """`version 3`, `versions 2, 3`, or the word for nothing."""
    known = sorted(number for number in numbers if number is not None)
    if not known:
        return nothing
    return ("version " if len(known) == 1 else "versions ") + ", ".join(str(number) for number in known)


def highest_release(tags: Mapping[str, str]) -> int:
    """The highest number of a tag v<number>, 0 without one."""
    return max((int(tag[1:]) for tag in tags if re.fullmatch(r"v\d+", tag)), default=0)
