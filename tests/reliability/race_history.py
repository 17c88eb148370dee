"""What a watcher saw of a race, checked afterwards against the invariants of the design, without the code under test.

An observation is read in this order, so that a promotion under way is no false alarm: what customers see (registry,
Hub), then the ledger, then what the ledger's slots refer to.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any

from src.core.records import tree_digest

NO_SLOT = "0" * 64


@dataclass(frozen=True)
class Observation:
    """One look. `tree` is a fingerprint of a commit's files, None where the Hub shows no file of ours."""

    at: float
    champion: int | None
    previous: int | None
    production: tuple[int, ...]
    tree: str | None  # main's
    tags: Mapping[str, str]
    mirror: tuple[str, ...]
    slots: Mapping[str, str]  # name to text
    keys: Mapping[str, str | None]  # version to promotion key, duplicates left out
    trees: Mapping[str, str | None]  # of the slots' commits, None for one that the Hub does not know
    kept: tuple[str, ...]  # commits that a tag or a branch holds

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return [json.loads(self.slots[name]) for name in sorted(self.slots)]


def violations(history: Sequence[Observation], threshold: Decimal) -> list[str]:
    """Every broken promise, in the order of time; empty where all held."""
    found = [f"{seen.at:.3f}: {text}" for seen in history for text in _at_once(seen, threshold)]
    return found + [f"{after.at:.3f}: {text}" for before, after in pairwise(history)
                    for text in _since(before, after)]


def unsettled(seen: Observation) -> Iterator[str]:
    """What is not as it must be once a quiet run has ended."""
    if not seen.slots:
        return
    head = seen.ledger[-1]
    older = [slot["version"] for slot in seen.ledger if slot["model_digest"] != head["model_digest"]]
    previous = older[-1] if older else None
    if seen.champion != head["version"]:
        yield f"alias champion is {seen.champion}, the head is version {head['version']}"
    if seen.previous != previous:
        yield f"alias previous is {seen.previous}, not {previous}"
    if seen.production != (head["version"],):
        yield f"in Production are {seen.production}, not {head['version']}"
    if seen.tree != seen.trees[head["hub"]["commit"]]:
        yield "main does not show the head's tree"
    if seen.tags.get(f"v{head['version']}") != head["hub"]["commit"]:
        yield f"tag v{head['version']} is not at the head's commit"
    if seen.mirror != tuple(seen.slots[name] for name in sorted(seen.slots)):
        yield f"the mirror has {len(seen.mirror)} of {len(seen.slots)} slots"
    if len(seen.keys) != len(set(seen.keys.values())):
        yield "a key has two versions"


def uncrowned(seen: Observation, scores: Sequence[Decimal], threshold: Decimal) -> Iterator[str]:
    """Where the champion is not the best of those that passed, or where one of all evaluated would pass against it."""
    promoted = [Decimal(slot["score"]) for slot in seen.ledger]
    if promoted[-1] != max(promoted):
        yield f"the champion has {promoted[-1]}, and one that passed {max(promoted)}"
    if max(scores) - promoted[-1] >= threshold:
        yield f"the champion has {promoted[-1]}, and {max(scores)} was evaluated"


def misshown(seen: Observation, state: Mapping[str, Any], repo: str) -> Iterator[str]:
    """From the Hub's own disk: what main ever showed that no slot has, and commits that differ from their slots."""
    found = state[f"models/{repo}"]
    trees = {oid: {path: file["sha256"] for path, file in commit["files"].items() if path != ".gitattributes"}
             for oid, commit in found["commits"].items()}
    promoted = {slot["hub"]["tree"] for slot in seen.ledger}
    for slot in seen.ledger:
        if tree_digest(trees.get(slot["hub"]["commit"], {})) != slot["hub"]["tree"]:
            yield f"slot {slot['number']}: its commit has other files"
    oid = found["branches"]["main"]
    while oid is not None:
        if trees[oid] and tree_digest(trees[oid]) not in promoted:
            yield f"main once showed {oid}, which no slot has"
        oid = found["commits"][oid]["parent"]


def _at_once(seen: Observation, threshold: Decimal) -> Iterator[str]:
    names = [f"s{number:08d}" for number in range(1, len(seen.slots) + 1)]
    if sorted(seen.slots) != names:
        yield f"the slots have holes: {sorted(seen.slots)}"
        return
    slots, texts = seen.ledger, [seen.slots[name] for name in names]
    yield from _chain(slots, texts)
    yield from _bars(slots, threshold)
    yield from _visible(seen, slots)
    for slot in slots:
        commit = slot["hub"]["commit"]
        if seen.trees.get(commit) is None or commit not in seen.kept:
            yield f"slot {slot['number']}: its commit {commit} is gone"
        if seen.keys.get(str(slot["version"])) != slot["key"]:
            yield f"slot {slot['number']}: version {slot['version']} carries another key"
    if list(seen.mirror) != texts[: len(seen.mirror)]:
        yield "the mirror is not the ledger"


def _chain(slots: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> Iterator[str]:
    hashes = [NO_SLOT, *(hashlib.sha256(text.encode()).hexdigest() for text in texts)]
    for number, (slot, before) in enumerate(zip(slots, hashes, strict=False), start=1):
        if (slot["number"], slot["previous_sha256"]) != (number, before):
            yield f"slot {number} does not continue slot {number - 1}"


def _bars(slots: Sequence[Mapping[str, Any]], threshold: Decimal) -> Iterator[str]:
    for index, slot in enumerate(slots):
        if slot["kind"] != "promote":
            continue
        bars = [Decimal(other["score"]) for other in slots[:index] if other["model_digest"] != slot["model_digest"]]
        if bars and Decimal(slot["score"]) - max(bars) < threshold:
            yield f"slot {slot['number']} was promoted with {slot['score']} over a score to beat of {max(bars)}"
        # A forced slot in between may bring a model back through the gate.
        reign = next((other["number"] for other in reversed(slots[:index]) if other["kind"] != "promote"), 0)
        if any(other["key"] == slot["key"] for other in slots[reign:index] if other["kind"] == "promote"):
            yield f"slot {slot['number']} promotes a key twice"


def _visible(seen: Observation, slots: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    versions = {slot["version"] for slot in slots}
    for alias, version in (("champion", seen.champion), ("previous", seen.previous)):
        if version is not None and version not in versions:
            yield f"alias {alias} names version {version}, which no slot has"
    if hasty := set(seen.production) - versions:
        yield f"versions {sorted(hasty)} are in Production, and no slot has them"
    if seen.tree is not None and seen.tree not in {seen.trees.get(slot["hub"]["commit"]) for slot in slots}:
        yield "main shows what no slot has"
    tags = {(f"v{slot['version']}", slot["hub"]["commit"]) for slot in slots}
    for tag in seen.tags.items():
        if tag not in tags:
            yield f"tag {tag[0]} is at {tag[1]}, where no slot has it"


def _since(before: Observation, after: Observation) -> Iterator[str]:
    for name, text in before.slots.items():
        if after.slots.get(name) != text:
            yield f"slot {name} was rewritten"
    for tag, commit in before.tags.items():
        if after.tags.get(tag) != commit:
            yield f"tag {tag} moved from {commit} to {after.tags.get(tag)}"
    for version, key in before.keys.items():
        if version in after.keys and after.keys[version] != key:
            yield f"version {version} changed its key"
    if before.champion is not None and after.champion is None:
        yield "alias champion is gone"
    if before.tree is not None and after.tree is None:
        yield "main is empty again"
    if len(after.mirror) < len(before.mirror):
        yield "the mirror lost slots"
