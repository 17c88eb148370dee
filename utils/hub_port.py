"""The Hub as the promotion protocol sees it: keys and slots, told to a repository as branches, commits and tags."""

from pathlib import Path

from src.errors import IntegrityError
from src.hub_records import HubRelease
from src.ledger import HubRef, LedgerView, Slot
from src.params import HuggingFaceParams
from src.records import RELEASE_DIR
from utils.environment import token
from utils.hub_publisher import HubRepository
from utils.hub_reader import Patience


class HubPort:
    """Implements src.ports.Hub over one repository; `folder` holds the assembled release."""

    def __init__(self, repository: HubRepository, folder: Path) -> None:
        self._repository, self._folder = repository, folder

    @property
    def repo(self) -> str:
        """Its id, owner/name."""
        return self._repository.repo_id

    def check(self) -> None:
        """Token, rights and server; raises HubError or InvalidParams."""
        self._repository.check()

    def holds_release(self) -> bool:
        """Whether main holds a release of Champion, known to this ledger or not."""
        return self._repository.holds_release()

    def publish(self, key: str) -> HubRef:
        """The folder as one verified commit on branch release/<key12>."""
        release = self._repository.publish(self._folder, _branch(key), f"release {key[:12]}")
        return HubRef(repo=release.repo, commit=release.commit, tree=release.tree)

    def project(self, slot: Slot) -> None:
        """Main shows the slot's tree, tag v<version> its commit; the release branch goes."""
        self._repository.project(_release(slot), _tag(slot), _branch(slot.key))

    def shows(self, slot: Slot) -> bool:
        """Whether main and tag agree with a slot."""
        state, release = self._repository.state(), _release(slot)
        return (state.tree, state.tags.get(_tag(slot))) == (release.tree, release.commit)

    def mirror(self, view: LedgerView) -> None:
        """Copy the slots to the branch `ledger`."""
        self._repository.mirror([slot.text() for slot in view.slots])


def repository(params: HuggingFaceParams) -> HubPort:
    """The repository that results/release goes to. Asks nothing of the Hub yet."""
    return HubPort(HubRepository(repo_id=params.model_id, token=token(), private=params.private,
                                 patience=Patience.within(params.deadline_seconds)), RELEASE_DIR)


def _release(slot: Slot) -> HubRelease:
    if slot.hub is None:
        raise IntegrityError(f"ledger slot {slot.number}: was promoted without the Hub, so the Hub cannot show it")
    return HubRelease(slot.hub.repo, slot.hub.commit, slot.hub.tree)


def _branch(key: str) -> str:
    return f"release/{key[:12]}"


def _tag(slot: Slot) -> str:
    return f"v{slot.version}"
