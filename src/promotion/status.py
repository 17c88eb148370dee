"""The status of a model, and every difference between the ledger and registry, Hub, mirror and record. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any

from tabulate import tabulate

from src.decisions.words import KINDS, asked_by, decision_words, result_words, rounded, short
from src.ledger.copies import COPY, MIRROR, OLD_STORE, STORE, added_remedy, differing, is_copy_alone, remedy, words
from src.ledger.ports import Holders, HubState
from src.ledger.slots import HubRef, LedgerView, Slot, entries
from src.promotion.protocol import Step

REPAIR = "`--repair` restores it"
_ADOPT = "`--adopt` adds it to the ledger"
_LOST = "the store is lost or another one: restore it or correct mlflow.tracking_uri, or `--adopt`"
_PUBLISH = "`--repair` publishes it, and so does the next deployment that pushes"
_BACKUP = "restore MLflow's database from a backup"
_UNENDED = "an adoption was interrupted, and `--adopt` again ends it"
BEFORE_THE_COMMIT_POINT = (Step.ASSEMBLE, Step.REGISTER, Step.PUBLISH, Step.CLAIM)
RELEASE = "release/"
ALTERED = "ledger"  # the place of a finding about a slot that differs between ledger, copy and mirror
_SECONDS = 19  # characters of an ISO 8601 time up to the second


@dataclass(frozen=True)
class ObservedHub:
    """One Hub repository, and the lines of its copy of the ledger, None if it has no copy.

    lost: the versions of the ledger that were published there, and whose commit is gone.
    """

    repo: str
    state: HubState
    holds_release: bool
    mirror: Sequence[str] | None
    lost: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ObservedState:
    """The ledger, and what registry, Hub and record show.

    expected: what holders must be to agree with the ledger.
    keys: the promotion key of each registered version.
    pruned: versions whose weights were deleted because of deployment.keep_versions.
    hub: None if nothing is pushed.
    info: the last deployment_info.json.
    lost_weights: versions that were restored without their weights.
    copy: the slots of results/deployment/ledger.jsonl, None if it has none.
    """

    view: LedgerView
    holders: Holders
    expected: Holders
    keys: Mapping[int, str | None]
    pruned: frozenset[int]
    hub: ObservedHub | None
    info: Mapping[str, Any]
    lost_weights: frozenset[int] = frozenset()
    copy: Sequence[str] | None = None


@dataclass(frozen=True)
class Finding:
    """One difference: the place, what differs, and what to do."""

    place: str
    text: str
    remedy: str


def drift(seen: ObservedState) -> list[Finding]:
    """Every difference from the ledger; empty if everything agrees with it."""
    head, hub = seen.view.head, seen.hub
    found = [*_holders(seen), *_versions(seen, head)] if head else [*_unknown_to_an_empty_ledger(seen)]
    if hub and head:
        found += [*_hub(seen.view, hub, head), *_tags(seen.view, hub, head)]
    return [*found, *_slots(seen), *_record(seen)]


def exit_code(findings: Sequence[Finding]) -> int:
    """The exit code for these findings: 5 if a slot was altered, 1 for any other drift, else 0."""
    return 5 if any(finding.place == ALTERED for finding in findings) else 1 if findings else 0


def lost_releases(seen: ObservedState) -> list[int]:
    """Older versions that are no longer on the Hub. This is no drift, because a rollback publishes them again."""
    head = seen.view.head
    return sorted(seen.hub.lost - {head.version}) if seen.hub and head else []


def _unknown_to_an_empty_ledger(seen: ObservedState) -> Iterator[Finding]:
    shown = {*seen.holders.production, *filter(None, [seen.holders.champion])}
    if shown:
        yield Finding("registry", f"shows {versions(shown)} as champion, but the ledger is empty", _ADOPT)
    if seen.hub and seen.hub.holds_release and not seen.hub.mirror:
        yield Finding("hub", f"{seen.hub.repo} holds a release, but the ledger is empty", _ADOPT)


def _holders(seen: ObservedState) -> Iterator[Finding]:
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


def _versions(seen: ObservedState, head: Slot) -> Iterator[Finding]:
    if head.version not in seen.keys:  # an older version may be deleted; it only cannot be rolled back to
        yield Finding("registry", f"version {head.version} is gone", f"{_BACKUP}, or `--adopt`, or roll back")
    elif head.version in seen.lost_weights:
        yield Finding("registry", f"version {head.version} has no weights in this MLflow store",
                      "restore MLflow's artifacts from a backup, or bring back results/release or the Hub's release "
                      "and `--adopt`, or promote another model with `champion deploy --force-deploy`")
    for version, key in sorted({slot.version: slot.key for slot in seen.view.slots}.items()):
        found = seen.keys.get(version, key)
        if found != key:
            yield Finding("registry", f"version {version} carries the key {short(found or 'none')}; the ledger says "
                          f"{short(key)}: another model has its number",
                          _UNENDED if version in seen.lost_weights else _BACKUP)


def _hub(view: LedgerView, hub: ObservedHub, head: Slot) -> Iterator[Finding]:
    repo, shown = hub.repo, whose_tree(view, hub.state.tree)
    if head.hub is None:
        yield Finding("hub", f"version {head.version} was promoted without the Hub; {repo} main holds {shown}",
                      _PUBLISH)
    elif head.hub.repo != repo:
        yield Finding("hub", f"version {head.version} was published to {head.hub.repo}, params.yaml names {repo}",
                      f"correct deployment.huggingface.model_id; if it is right, {_PUBLISH}")
    elif head.version in hub.lost:
        yield Finding("hub", f"version {head.version} is no longer on the Hub; {repo} main holds {shown}", _PUBLISH)
    elif hub.state.tree != head.hub.tree:
        yield Finding("hub", f"{repo} main holds {shown}; the ledger says version {head.version}", REPAIR)


def _tags(view: LedgerView, hub: ObservedHub, head: Slot) -> Iterator[Finding]:
    for version, release in sorted(releases(view, hub.repo).items()):
        found, commit = hub.state.tags.get(f"v{version}"), release.commit
        if found is None and version not in hub.lost:
            whose = "" if version == head.version else ", and its commit is still there"
            yield Finding("hub", f"tag v{version} is missing{whose}", REPAIR)
        elif found not in (None, commit):
            yield Finding("hub", f"tag v{version} is at {short(str(found))}; the ledger says {short(commit)}",
                          "find out who moved it, delete it, and `--repair`")


def releases(view: LedgerView, repo: str) -> dict[int, HubRef]:
    """The last release of each version that was published to a repository."""
    return {slot.version: slot.hub for slot in view.slots if slot.hub and slot.hub.repo == repo}


def _slots(seen: ObservedState) -> Iterator[Finding]:
    """Slots that differ between ledger, copy and mirror, and how many slots each of them lacks."""
    ours, hub = [slot.text() for slot in seen.view.slots], seen.hub
    ledgers = {STORE: ours, COPY: seen.copy or [], MIRROR: (hub.mirror if hub else None) or []}
    present = {place: texts for place, texts in ledgers.items() if texts}
    found = differing(present)
    yield from (Finding(ALTERED, slot.text, remedy(present, slot)) for slot in found)
    if found:
        return
    pushed = hub is not None and any(slot.hub and slot.hub.repo == hub.repo for slot in seen.view.slots)
    for place, texts, expected in (("copy", seen.copy or [], bool(seen.copy)), ("mirror", ledgers[MIRROR], pushed)):
        behind = len(ours) - len(texts)
        if behind < 0:
            lacks = f"has {entries(len(texts))}, the ledger {len(ours)}, which lacks {words(texts[len(ours)])}"
            yield Finding(place, lacks, _ahead(place, present) if ours or seen.keys else _LOST)
        elif behind and expected:
            yield Finding(place, f"is {entries(behind)} behind the ledger", REPAIR)


def _ahead(place: str, ledgers: Mapping[str, Sequence[str]]) -> str:
    if place == "copy" and is_copy_alone(ledgers):
        return added_remedy()
    return f"{OLD_STORE}{REPAIR}; if it was not, find out who added to the {place}, and take that back"


def _record(seen: ObservedState) -> Iterator[Finding]:
    if "champion" not in seen.info:
        return
    head, champion = seen.view.head, seen.info["champion"]
    recorded = champion.get("version") if isinstance(champion, Mapping) else None
    wanted = head.version if head else None
    if recorded != wanted:
        yield Finding("record", f"deployment_info.json names {versions([recorded])} as champion; the ledger says "
                      f"{versions([wanted])}", f"{REPAIR}, and so does `dvc repro`" if head else _LOST)


def whose_tree(view: LedgerView, tree: str | None) -> str:
    """The version whose release has this tree digest, in words."""
    if tree is None:
        return "nothing"
    owner = next((slot.version for slot in reversed(view.slots) if slot.hub and slot.hub.tree == tree), None)
    return "files that are no release of this ledger" if owner is None else f"version {owner}"


def versions(numbers: Iterable[int | None], *, nothing: str = "no version") -> str:
    """Version numbers in words: `version 3` or `versions 2, 3`; `nothing` if there are none."""
    known = sorted(number for number in numbers if number is not None)
    return f"version{'s' if len(known) > 1 else ''} {', '.join(map(str, known))}" if known else nothing


def highest_release(tags: Mapping[str, str]) -> int:
    """The highest number among tags named v<number>; 0 if there is none."""
    return max((int(tag[1:]) for tag in tags if re.fullmatch(r"v\d+", tag)), default=0)


@dataclass(frozen=True)
class StartedPromotion:
    """A trace that a started promotion left.

    key: its promotion key, the first 12 characters of it, or a name.
    time: when it started, UTC in ISO 8601.
    text: where the trace is.
    """

    key: str
    time: str
    text: str


@dataclass(frozen=True)
class EndedDeployment:
    """A deployment run that ended, with its decision."""

    time: str
    decision: str
    reason: str
    version: str | None
    run_id: str


def unfinished(begun: Sequence[StartedPromotion], seen: ObservedState) -> dict[str, list[str]]:
    """Traces of started promotions without a later ledger entry, and release branches left on the Hub, by key."""
    found: dict[str, list[str]] = {}
    for trace in begun:
        if not any(_accounts_for(slot, trace) for slot in seen.view.slots):
            found.setdefault(trace.key[:12], []).append(trace.text)
    for branch in sorted(seen.hub.state.branches if seen.hub else ()):
        if branch.startswith(RELEASE):
            found.setdefault(branch.removeprefix(RELEASE), []).append(f"Hub branch {branch}")
    return found


def facts(model_name: str, seen: ObservedState, findings: Sequence[Finding], decided: Sequence[EndedDeployment],
          begun: Sequence[StartedPromotion]) -> dict[str, Any]:
    """The status as a JSON object."""
    view, hub = seen.view, seen.hub
    tag = f"v{view.head.version}" if view.head else ""
    return {
        "model_name": model_name,
        "champion": _slot(_champion(view)),
        "previous": _slot(view.previous),
        "blocked_versions": sorted(view.blocked_versions),
        "pruned_versions": sorted(seen.pruned),
        "ledger": {"slots": len(view.slots), "chain": "whole", "head_sha256": view.head_sha256},
        "registry": {"champion": seen.holders.champion, "previous": seen.holders.previous,
                     "production": sorted(seen.holders.production)},
        "hub": {"repo": hub.repo, "main": hub.state.head, "tag": tag if tag in hub.state.tags else None,
                "release": whose_tree(view, hub.state.tree)} if hub else None,
        "mirror_slots": len(hub.mirror or ()) if hub else None,
        "record": seen.info.get("result"),
        "slots": [_slot(slot) for slot in reversed(view.slots[-5:])],
        "decisions": [vars(each) for each in decided],
        "unfinished": unfinished(begun, seen),
        **({"lost_releases": lost} if (lost := lost_releases(seen)) else {}),
        "drift": [vars(finding) for finding in findings],
    }


def text(told: Mapping[str, Any]) -> str:
    """The JSON object of `facts` as text for a terminal."""
    champion, registry, hub = told["champion"], told["registry"], told["hub"]
    title, rows = f"{told['model_name']}: no champion yet", dict[str, str]()
    if champion:
        score = f" (score {rounded(champion['score'])[0]})" if champion["score"] else ""
        title = f"{told['model_name']}: version {champion['version']} is the champion{score}"
        rows["since"] = (f"{_when(champion['time'])}, {KINDS[champion['kind']]} by "
                         f"{asked_by(champion['actor'], champion['reason'])}")
    rows["previous"] = versions([told["previous"]["version"] if told["previous"] else None], nothing="none")
    rows["blocked"] = versions(told["blocked_versions"], nothing="none")
    if told["pruned_versions"]:
        rows["pruned"] = versions(told["pruned_versions"])
    rows["ledger"] = f"{entries(told['ledger']['slots'])}, hash chain intact"
    production = versions(registry["production"], nothing="")
    rows["registry"] = ", ".join([
        _holder("champion", registry["champion"]), _holder("previous version", registry["previous"]),
        f"stage Production = {production}" if production else "stage Production is empty"])
    rows["Hub"] = "not pushed"
    if hub:
        tag = f"tag {hub['tag']}" if hub["tag"] else "no tag of the champion"
        commit = f"commit {short(hub['main'])}" if hub["main"] else "no commit"
        rows["Hub"] = f"{hub['repo']}: main shows {hub['release']}, {tag}, {commit}"
        rows["copy on Hub"] = entries(told["mirror_slots"])
    if lost := told.get("lost_releases"):
        rows["lost"] = (f"{versions(lost)} {'are' if len(lost) > 1 else 'is'} no longer on the Hub; a rollback to one "
                        "publishes it again")
    rows["last decision"] = result_words(told["record"]) if told["record"] else "none"
    lists = {"decisions": [f"{_when(each['time'])}  {decision_words(each['decision'], each['reason'])}, MLflow run "
                           f"{short(each['run_id'])}" for each in told["decisions"]],
             "unfinished": [f"{key}: {', '.join(where)}" for key, where in told["unfinished"].items()],
             "drift": [f"{each['place']}: {each['text']}; {each['remedy']}" for each in told["drift"]]}
    rows |= {name: "\n".join(lines) or "none" for name, lines in lists.items()}
    return f"{title}\n{indent(tabulate(rows.items(), tablefmt='plain', disable_numparse=True), '  ')}"


def _holder(name: str, number: int | None) -> str:
    return f"no {name}" if number is None else f"{name} = version {number}"


def _when(time: str) -> str:
    return f"{time[:_SECONDS].replace('T', ' ')} UTC"


def _champion(view: LedgerView) -> Slot | None:
    """The slot that made the head the champion, with the release that it has now."""
    return view.standing.model_copy(update={"hub": view.head.hub}) if view.standing and view.head else None


def _slot(slot: Slot | None) -> dict[str, Any] | None:
    if slot is None:
        return None
    return slot.model_dump(mode="json", include={"number", "kind", "version", "key", "model_digest", "score", "hub",
                                                 "blocks", "unblocks", "actor", "reason", "time"})


def _accounts_for(slot: Slot, trace: StartedPromotion) -> bool:
    is_key = len(trace.key) in (12, 64)
    return slot.time[:_SECONDS] >= trace.time[:_SECONDS] and (not is_key or slot.key.startswith(trace.key))
