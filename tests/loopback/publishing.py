"""Short-hands of the tests that publish to the loopback hub."""

from pathlib import Path

from src.hub_records import HubRelease
from src.manifest import manifest, tree_digest
from tests.loopback.store import WRITE
from utils.hub_publisher import HubRepository
from utils.hub_reader import Patience

REPO = "acme/shop"
BRANCH = "release/0123456789ab"
ROOT = Path(__file__).parents[2]
QUICK = Patience(deadline=20, request=3, stall=3, attempts=4, backoff=0.02)
COMMIT = r"/commit/release/"


def release_folder(folder, weights):
    folder.mkdir()
    for name, data in {"model.safetensors": weights, "config.json": b"{}", "README.md": b"---\nlicense: mit\n---\nx",
                       "manifest.json": weights}.items():
        (folder / name).write_bytes(data)
    return folder


def repository(*, token=WRITE, repo=REPO, patience=QUICK):
    return HubRepository(repo_id=repo, token=token, private=True, patience=patience)


def publish(folder, patience=QUICK):
    return repository(patience=patience).publish(folder, BRANCH, "release 0123456789ab")


def put(hub, folder):
    """What publish leaves, without its process."""
    oid = hub.put(REPO, {path: (folder / path).read_bytes() for path in manifest(folder)}, BRANCH)
    return HubRelease(REPO, oid, tree_digest(manifest(folder)))


def shown(hub, revision="main"):
    return {path: digest for path, digest in hub.files(REPO, revision).items() if path != ".gitattributes"}


def commits_since_main(hub):
    return [oid for oid in hub.history(REPO, BRANCH) if oid not in hub.history(REPO)]
