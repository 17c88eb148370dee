"""How things stand, as JSON and as words. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.drift import Finding, Seen, versions, whose_tree
from src.ledger import Slot
from src.promotion import Step

BEFORE_THE_COMMIT_POINT = (Step.ASSEMBLE, Step.REGISTER, Step.PUBLISH, Step.CLAIM)
RELEASE = "release/"
_SECONDS = 19  # characters of an ISO 8601 time up to the second


@dataclass(frozen=True)
class Begun:
    """A trace of a promotion that was begun: where it is, its key (the first 12 of it, or a name), what, and when."""

    key: str
    time: str
    text: str


@dataclass(frozen=True)
class Decided:
    """A deployment that ended."""

    time: str
    decision: str
    reason: str
    version: str | None
    run_id: str


def unfinished(begun: Sequence[Begun], seen: Seen) -> dict[str, list[str]]:
    """The traces that no later slot accounts for, by key, and the release branches that still stand on the Hub."""
    found: dict[str, list[str]] = {}
    for trace in begun:
        if not any(_accounts_for(slot, trace) for slot in seen.view.slots):
            found.setdefault(trace.key[:12], []).append(trace.text)
    for branch in sorted(seen.hub.state.branches if seen.hub else ()):
        if branch.startswith(RELEASE):
            found.setdefault(branch.removeprefix(RELEASE), []).append(f"Hub branch {branch}")
    return found


def facts(model_name: str, seen: Seen, findings: Sequence[Finding], decided: Sequence[Decided],
          begun: Sequence[Begun]) -> dict[str, Any]:
    """All that --json says."""
    view, hub = seen.view, seen.hub
    return {
        "model_name": model_name,
        "champion": _slot(view.head),
        "previous": _slot(view.previous),
        "blocked_versions": sorted(view.blocked_versions),
        "pruned_versions": sorted(seen.pruned),
        "ledger": {"slots": len(view.slots), "chain": "whole", "head_sha256": view.head_sha256},
        "registry": {"champion": seen.holders.champion, "previous": seen.holders.previous,
                     "production": sorted(seen.holders.production)} if seen.keys is not None else "none",
        "hub": {"repo": hub.repo, "main": hub.state.head, "tag": _tag(seen), "release": _shown(seen)} if hub else None,
        "mirror_slots": len(hub.mirror or ()) if hub else None,
        "record": seen.info.get("result"),
        "slots": [_slot(slot) for slot in reversed(view.slots[-5:])],
        "decisions": [vars(each) for each in decided],
        "unfinished": unfinished(begun, seen),
        "drift": [vars(finding) for finding in findings],
    }


def text(told: Mapping[str, Any]) -> str:
    """The same facts for a person."""
    champion, registry, hub = told["champion"], told["registry"], told["hub"]
    lines = [_opening(told["model_name"], champion)]
    lines += _line("previous", versions([told["previous"]["version"] if told["previous"] else None], nothing="none"))
    lines += _line("blocked", versions(told["blocked_versions"], nothing="none"))
    if told["pruned_versions"]:
        lines += _line("pruned", versions(told["pruned_versions"]))
    lines += _line("ledger", f"{told['ledger']['slots']} slots, chain whole")
    if registry == "none":
        lines += _line("registry", "none")
    else:
        lines += _line("registry", f"champion {registry['champion']}, previous {registry['previous']}, Production "
                       f"{', '.join(map(str, registry['production'])) or None}")
    lines += _line("Hub", f"{hub['repo']}: main at {str(hub['main'])[:12]}, {hub['release']}, tag {hub['tag']}"
                   if hub else "not pushed")
    if hub:
        lines += _line("mirror", f"{told['mirror_slots']} slots")
    lines += _line("record", told["record"] or "none")
    lines += _line("decisions", *(f"{each['time']}  {each['decision']} ({each['reason']}), run {each['run_id']}"
                                  for each in told["decisions"]))
    lines += _line("unfinished", *(f"{key}: {', '.join(where)}" for key, where in told["unfinished"].items()))
    lines += _line("drift", *(f"{each['place']}: {each['text']}; {each['remedy']}" for each in told["drift"]))
    return "\n".join(lines)


def _opening(model_name: str, champion: Mapping[str, Any] | None) -> str:
    if champion is None:
        return f"{model_name}: no champion yet"
    score = f", score {champion['score']}" if champion["score"] else ""
    return (f"{model_name}: version {champion['version']} is the champion{score}\n  {'since':<11} {champion['time']}, "
            f"slot {champion['number']}, {champion['kind']} by {champion['actor']}: {champion['reason']}")


def _line(name: str, *values: str) -> list[str]:
    first, *others = values or ("none",)
    return [f"  {name:<11} {first}", *(f"  {'':<11} {other}" for other in others)]


def _slot(slot: Slot | None) -> dict[str, Any] | None:
    if slot is None:
        return None
    return slot.model_dump(mode="json", include={"number", "kind", "version", "key", "model_digest", "score", "hub",
                                                 "blocks", "unblocks", "actor", "reason", "time"})


def _accounts_for(slot: Slot, trace: Begun) -> bool:
    is_key = len(trace.key) in (12, 64)
    return slot.time[:_SECONDS] >= trace.time[:_SECONDS] and (not is_key or slot.key.startswith(trace.key))


def _tag(seen: Seen) -> str | None:
    head = seen.view.head
    name = f"v{head.version}" if head else ""
    return name if seen.hub and name in seen.hub.state.tags else None


def _shown(seen: Seen) -> str:
    return whose_tree(seen.view, seen.hub.state.tree if seen.hub else None)
