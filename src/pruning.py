"""Which old versions' weights are deleted (deployment.keep_versions), and in which order that is safe. Pure.

Weights go only where the ledger, read after the version was marked, does not need them; who brings an older version
back looks for the mark after reading the ledger that the claim continues. So of a deletion and a rollback that meet,
one sees the other: the claim fails where the ledger has moved on.
"""

from src.errors import Refused
from src.ledger import LedgerView
from src.ports import Ledger, Weights


def kept(view: LedgerView, keep: int) -> frozenset[int]:
    """Versions whose weights stay: the last `keep` that were champion, blocked or not, and always head and previous."""
    latest = list(dict.fromkeys(slot.version for slot in reversed(view.slots)))
    return frozenset(latest[:keep]) | {slot.version for slot in (view.head, view.previous) if slot}


def prunable(view: LedgerView, keep: int) -> frozenset[int]:
    """Versions whose weights may go, none for a keep of 0. What was adopted was not made here, so it stays."""
    made = frozenset(slot.version for slot in view.slots if slot.metrics is not None)
    return made - kept(view, keep) if keep else frozenset()


def prune(ledger: Ledger, weights: Weights, keep: int) -> list[int]:
    """Delete the weights that may go, and return whose they were; anybody may repeat it at any time.

    Raises Undecided when a service fails; what is left is done by the next call. A version that somebody deleted is
    passed over.
    """
    done = []
    marks, there = weights.pruned(), weights.keys()
    for version in sorted(prunable(ledger.view(), keep) & there.keys()):
        if not marks.get(version):
            weights.mark_pruned(version, done=False)
            if version in prunable(ledger.view(), keep):
                weights.delete_weights(version)
                weights.mark_pruned(version, done=True)
                done.append(version)
    return done


def require_weights(view: LedgerView, version: int, weights: Weights, keep: int) -> None:
    """Raise Refused for a version whose weights are gone or may go at any time, naming the nearest that has them."""
    marked = weights.pruned()
    if version not in marked and version not in prunable(view, keep):
        return
    champions = {slot.version for slot in view.slots if slot.version != (view.head and view.head.version)}
    there = (champions & weights.keys().keys()) - marked.keys() - prunable(view, keep)
    nearest = min(there, key=lambda other: abs(other - version), default=None)
    advice = f"the nearest that is kept is version {nearest}" if nearest else "no other version's are kept"
    raise Refused(f"version {version}: its weights were pruned (deployment.keep_versions: {keep}); {advice}, and "
                  "`history_script.py --promote RUN` merges a pruned one anew")
