"""What the Hub holds, as the protocol sees it."""

from dataclasses import dataclass

MANIFEST = "manifest.json"  # in every Champion release, at its top level
LEDGER_BRANCH = "ledger"
LEDGER_FILE = "ledger.jsonl"


@dataclass(frozen=True)
class HubRelease:
    """A verified commit; tree is src.manifest.tree_digest of its files (path to sha256) without .gitattributes."""

    repo: str
    commit: str
    tree: str


@dataclass(frozen=True)
class HubState:
    """The repository as it is now: main's commit and tree digest (None: no repository, or no file in it), refs."""

    head: str | None
    tree: str | None
    tags: dict[str, str]
    branches: dict[str, str]
