"""Compare the ledger with its copies in git and on the Hub, to notice and restore a lost or altered one. Pure.

Here a ledger is a list of slot texts, oldest first, because altered text cannot be parsed as slots.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.core.errors import IntegrityError, Undecided
from src.core.records import canonical_json
from src.ledger.slots import entries, parse_slots

STORE, COPY, MIRROR = "MLflow", "results/deployment/ledger.jsonl", "the Hub's branch `ledger`"
NEW_LEDGER = "`champion status --adopt` writes a new ledger from its intact copy"
_REPAIR = "`champion status --repair`"
_WAYS = {
    STORE: NEW_LEDGER,
    COPY: f"`git checkout -- {COPY}`, or delete it, and {_REPAIR} writes it anew",
    MIRROR: f"delete {MIRROR}, and {_REPAIR} writes it anew",
}
OLD_STORE = "if the store was put back to an older state, "
_ALTERED_COPY = (f"if it was not, somebody added to the copy (`git log -p -- {COPY}`): {_WAYS[COPY]}")
_BEFORE = "previous_sha256"
_FIELDS = 3  # so many differing fields of a slot are shown
_CHARACTERS = 60


@dataclass(frozen=True)
class Difference:
    """A slot whose text differs between places.

    alone: the place that disagrees with two others that agree, None if there is no such place.
    follows: True if only the hash of the previous slot differs, so that an earlier slot is the cause.
    """

    text: str
    alone: str | None
    follows: bool


def is_whole(texts: Sequence[str]) -> bool:
    """True if every slot is valid and the hash chain is unbroken."""
    try:
        parse_slots(texts)
    except IntegrityError:
        return False
    return True


def differing(ledgers: Mapping[str, Sequence[str]]) -> list[Difference]:
    """The slots that differ between places, by number.

    Slots in which only the previous hash differs are left out: an earlier, altered slot is the cause.
    """
    found = [slot for number in range(max(map(len, ledgers.values()), default=0))
             if (slot := _difference(number, {place: texts[number] for place, texts in ledgers.items()
                                              if number < len(texts)}))]
    return [slot for slot in found if not slot.follows] or found[:1]


def remedy(ledgers: Mapping[str, Sequence[str]], first: Difference) -> str:
    """The advice for places that differ: write anew the broken one, or the one that disagrees with two others."""
    broken = next((place for place, texts in ledgers.items() if not is_whole(texts)), None)
    if odd := broken or first.alone:
        return _WAYS[odd]
    others = [place for place in ledgers if place != STORE]
    return (f"find out which one is right: if it is not MLflow's, {NEW_LEDGER}; if it is, delete "
            f"{' and '.join(others)}, and {_REPAIR} writes it anew")


def words(text: str) -> str:
    """A slot in words, so that a person can decide whether to accept it."""
    slot = _loaded(text)
    if not {"number", "kind", "version"} <= slot.keys():
        return "an entry that cannot be read"
    more = "".join(f", {name} {', '.join(map(str, slot[name]))}" for name in ("blocks", "unblocks") if slot.get(name))
    return (f"entry {slot['number']} ({slot['kind']}, version {slot['version']}{more}, by {_short(slot.get('actor'))}: "
            f"{_short(slot.get('reason'))})")


def is_copy_alone(ledgers: Mapping[str, Sequence[str]]) -> bool:
    """True if only the copy in git has more slots: MLflow's ledger and the mirror end at the same slot."""
    ends = {place: len(texts) for place, texts in ledgers.items() if texts}
    return len(ends) == 3 and ends[STORE] == ends[MIRROR] < ends[COPY]


def refuse_added(ledgers: Mapping[str, Sequence[str]]) -> None:
    """Raise IntegrityError if MLflow's ledger and the mirror agree that the copy in git has too many slots.

    A merged pull request can add slots to the copy, so only a person may accept them.
    """
    if is_copy_alone(ledgers):
        added = ledgers[COPY][len(ledgers[STORE]):]
        raise IntegrityError(f"ledger: {COPY} alone has {', '.join(map(words, added[:_FIELDS]))}"
                             f"{' and more' if len(added) > _FIELDS else ''}; {added_remedy()}")


def added_remedy() -> str:
    """The advice for slots that only the copy in git has, and that the mirror, written later, lacks."""
    return (f"if somebody added them (`git log -p -- {COPY}`), {_WAYS[COPY]}; {OLD_STORE}`champion status --adopt` "
            "takes them over")


def refuse_altered(ledgers: Mapping[str, Sequence[str]]) -> None:
    """Raise IntegrityError, with the way out, for a slot that differs between places or breaks the chain."""
    if found := differing(ledgers):
        raise IntegrityError(f"ledger {found[0].text}; {remedy(ledgers, found[0])}")
    for place, texts in ledgers.items():
        try:
            parse_slots(texts)
        except IntegrityError as error:
            raise IntegrityError(f"{str(error).partition(';')[0]} in {place}; {_WAYS[place]}") from None


def refuse_lost(name: str, store: Sequence[str], copy: Sequence[str] | None, recorded: int | None) -> None:
    """Refuse a store that contradicts the copy, or that is empty although the records name a champion.

    copy: None if there is none. recorded: the champion of deployment_info.json, None if it names none. Raises
    IntegrityError for a slot that differs, and Undecided for a store that lacks slots: an empty one is never a first
    model.
    """
    kept = len(copy or ())
    if store:
        refuse_altered({STORE: store, COPY: copy or ()})
        if len(store) < kept:
            raise Undecided(f"{name}: MLflow's ledger has {entries(len(store))} and {COPY} {kept}, so MLflow's lacks "
                            f"{words((copy or ())[len(store)])}; {OLD_STORE}restore a newer one, or {_REPAIR} writes "
                            f"them anew; {_ALTERED_COPY}")
    elif kept or recorded is not None:
        says = f"{COPY} has {entries(kept)}" if kept else f"deployment_info.json names version {recorded} as champion"
        raise Undecided(f"{name}: {says}, but MLflow holds no ledger of it, so the store is lost or another one; "
                        "restore it or correct mlflow.tracking_uri, or `champion status --adopt` to go "
                        "on in this one, or give deployment.model_registry_name a value of your own to start anew")


def choose(store: Sequence[str], copies: Mapping[str, Sequence[str]]) -> list[str]:
    """The slots of a new ledger for an altered store: the longest intact copy, then the store's slots that continue it.

    Raises IntegrityError if no copy is intact, if the store is not the one that was altered, and if two intact copies
    differ.
    """
    whole = {place: texts for place, texts in copies.items() if texts and is_whole(texts)}
    if not whole:
        raise IntegrityError(f"ledger: MLflow's is lost or was altered, and neither {COPY} nor {MIRROR} is intact; "
                             f"restore MLflow's database from a backup, or an older copy (`git log -- {COPY}`, then "
                             f"`git checkout COMMIT -- {COPY}`) and `--adopt` again")
    if found := differing(whole):
        raise IntegrityError(f"ledger {found[0].text}; both are intact, so one of them was rewritten: find out which "
                             f"(`git log -p -- {COPY}`), delete that one, and `--adopt` again")
    longest = max((list(texts) for texts in whole.values()), key=len)
    if is_whole(store) and not differing({STORE: store, COPY: longest}):
        refuse_altered({STORE: store, **copies})
    for text in store[len(longest):]:
        if not is_whole([*longest, text]):
            break
        longest.append(text)
    return longest


def _difference(number: int, held: Mapping[str, str]) -> Difference | None:
    groups: dict[str, list[str]] = {}
    for place, text in held.items():
        groups.setdefault(text, []).append(place)
    if len(groups) < 2:
        return None
    single = [places[0] for places in groups.values() if len(places) == 1]
    alone = single[0] if len(groups) == 2 and len(held) == 3 else None
    slots = {" and ".join(places): _loaded(text) for text, places in groups.items()}
    names = sorted({name for slot in slots.values() for name in slot})
    differ = [name for name in names if len({canonical_json(slot.get(name)) for slot in slots.values()}) > 1]
    own = [name for name in differ if name != _BEFORE]
    if empty := [place for place, slot in slots.items() if not slot]:
        return Difference(f"entry {number + 1} differs: {' and '.join(empty)} cannot be read", alone, follows=False)
    parts = [f"{name} ({', '.join(f'{place}: {_short(slot.get(name))}' for place, slot in slots.items())})"
             for name in own or differ]
    more = f" and {len(parts) - _FIELDS} more" if len(parts) > _FIELDS else ""
    says = f", {alone} stands alone" if alone else ""
    return Difference(f"entry {number + 1} differs{says}: {', '.join(parts[:_FIELDS])}{more}", alone, follows=not own)


def _short(value: object) -> str:
    text = canonical_json(value)
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."


def _loaded(text: str) -> Mapping[str, Any]:
    """The fields of a slot, none if it is no JSON object."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
