"""Model versions, aliases and stages in the MLflow Model Registry."""

import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from src.core.errors import IntegrityError, RunAgain, Undecided
from src.core.records import ModelIdentity
from src.ledger.ports import Holders
from src.ledger.slots import Slot
from utils.mlflow_utils import (
    artifacts_at,
    explained,
    find_run,
    list_files,
    mlflow_errors,
    refuse_local,
    sent_once,
    time_for,
    unanswered,
)
from utils.tracking import tag

logger = logging.getLogger(__name__)
_ATTEMPTS = 3
ARTIFACT = "model"
LOST, RESTORING = "lost", "restoring"  # without weights; the second one while `restore` is not done


class MlflowRegistry:
    """The registry that the promotion protocol works on.

    save: writes the model in MLflow's transformers flavour to a folder. run_id: returns the deployment run whose
    artifact it becomes. tags, description: what a new version shows. spent: the versions whose weights may be pruned.
    """

    def __init__(self, client: MlflowClient, name: str, *, save: Callable[[Path], None],
                 run_id: Callable[[], str], tags: Callable[[], Mapping[str, str]],
                 spent: Callable[[], frozenset[int]] = frozenset, description: Callable[[], str] = str) -> None:
        self._client, self._name = client, name
        self._save, self._run_id, self._tags, self._spent, self._description = save, run_id, tags, spent, description
        self._has_stages = True

    def register(self, key: str) -> int:
        """The lowest version with this key and its weights; uploaded and created if there is none.

        If two were created at once, or after a time-out, the higher one is tagged as a duplicate.
        Raises Undecided when the server fails, IntegrityError when it kept other files than were sent.
        """
        self._ensure_model()
        first, *others = self._carrying(key) or self._create(key)
        for other in others:
            with mlflow_errors():
                self._client.set_model_version_tag(self._name, str(other), tag.DUPLICATE, str(first))
        return first

    def holders(self) -> Holders:
        """The aliases and stages as they are now; all empty for a name that was never registered."""
        aliases = self._aliases()
        production = (int(v.version) for v in self._versions("") if v.current_stage == "Production")
        return Holders(aliases.get("champion"), aliases.get("previous"), frozenset(production))

    def keys(self) -> dict[int, str | None]:
        """The promotion key of every version, None for a version that Champion did not create."""
        return {int(v.version): v.tags.get(tag.KEY) for v in self._versions("")}

    def identities(self) -> dict[str, ModelIdentity]:
        """What each version was made from (adapter, base, precision), by promotion key, if the version has that tag."""
        return {v.tags[tag.KEY]: ModelIdentity.model_validate_json(v.tags[tag.IDENTITY]) for v in self._versions("")
                if {tag.KEY, tag.IDENTITY} <= v.tags.keys()}

    def described(self, version: int) -> tuple[str, dict[str, str]]:
        """The address of a version's files, and its tags."""
        with mlflow_errors():
            found = self._client.get_model_version(self._name, str(version))
        return str(found.source), dict(found.tags)

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Add tags to a version."""
        with mlflow_errors():
            for name, value in tags.items():
                self._client.set_model_version_tag(self._name, str(version), name, value)

    def pruned(self) -> dict[int, bool]:
        """Versions marked as pruned: True if the weights are deleted, False if that was only started."""
        return {int(v.version): v.tags[tag.FILES] == "pruned" for v in self._versions("")
                if v.tags.get(tag.FILES, LOST) not in (LOST, RESTORING)}

    def lost_weights(self) -> frozenset[int]:
        """Versions that `restore` made and whose weights this store does not have."""
        return frozenset(int(v.version) for v in self._versions("") if v.tags.get(tag.FILES) in (LOST, RESTORING))

    def restoring(self) -> frozenset[int]:
        """Versions whose `restore` was interrupted; it must be repeated before a new version is created."""
        return frozenset(int(v.version) for v in self._versions("") if v.tags.get(tag.FILES) == RESTORING)

    def mark_pruned(self, version: int, *, done: bool) -> None:
        """Tag a version, once before its weights are deleted (done=False) and once after."""
        self.tag(version, {tag.FILES: "pruned" if done else "pruning"})

    def delete_weights(self, version: int) -> None:
        """Delete the model files in a version's run; raises Undecided if the store fails or does not delete them."""
        with mlflow_errors():
            run_id = self._client.get_model_version(self._name, str(version)).run_id
        run = find_run(self._client, run_id)
        if run is None:  # removed for good, with its files
            return
        with mlflow_errors(), contextlib.suppress(NotImplementedError):  # see the check below
            artifacts_at(self._client, run.info.artifact_uri).delete_artifacts(ARTIFACT)
        if list_files(self._client, run_id, ARTIFACT):
            raise Undecided(f"MLflow run {run_id}: its artifact store deletes nothing; "
                            "set deployment.keep_versions: 0")

    def use_up(self, number: int) -> None:
        """Skip the version numbers up to this one, because the lost registry had used them."""
        self._ensure_model()
        with mlflow_errors():
            source = self._client.get_run(self._run_id()).info.artifact_uri
            refuse_local(self._client.tracking_uri, source)
            made = 0
            while made < number:
                made = int(self._client.create_model_version(self._name, source, self._run_id()).version)
                self._client.delete_model_version(self._name, str(made))

    def restore(self, version: int, tags: Mapping[str, str], used: int) -> bool:
        """Create this version number again in a new registry, still without weights, and skip the others up to `used`.

        Returns False if the registry has used the number already. It can be repeated after a crash.
        """
        self._ensure_model()
        for other in self.restoring() - {version}:  # left by a crash
            with mlflow_errors():
                self._client.delete_model_version(self._name, str(other))
        with mlflow_errors():
            source = f"{self._client.get_run(self._run_id()).info.artifact_uri}/{ARTIFACT}"
            made = max(self.keys(), default=0)
            while made < used:
                new = self._client.create_model_version(self._name, source, self._run_id(),
                                                        tags={**tags, tag.FILES: RESTORING})
                made = int(new.version)
                if made != version:
                    self._client.delete_model_version(self._name, str(made))
        is_made = version in self.restoring()
        if is_made:  # last, so that after a crash no new model gets a number that was used
            self.tag(version, {tag.FILES: LOST})
        return is_made

    def put_weights(self, version: int, save: Callable[[Path], None]) -> None:
        """Upload the weights of a version that was restored without them."""
        with mlflow_errors():
            run_id = self._client.get_model_version(self._name, str(version)).run_id
        keep_model(self._client, run_id, save)
        with mlflow_errors():
            self._client.delete_model_version_tag(self._name, str(version), tag.FILES)

    def expected(self, head: Slot, previous: Slot | None) -> Holders:
        """What holders() must return for this head, without stages if the server has none, or a deleted `previous`."""
        production = frozenset({head.version}) if self._has_stages else frozenset()
        return Holders(head.version, self._if_kept(previous.version) if previous else None, production)

    def set_alias(self, alias: str, version: int | None) -> None:
        """Point an alias to a version, or remove it; writes nothing if it is right already.

        If the previous version was deleted, its alias is removed. Raises Undecided if the champion was deleted.
        """
        if alias == "previous" and version is not None:
            version = self._if_kept(version)
        if self._aliases().get(alias) == version:
            return
        if version is not None and self._if_kept(version) is None:
            raise Undecided(f"{self._name}: version {version} is the champion by the ledger, but the registry does not "
                            "have it; `champion status` names the ways on")
        with mlflow_errors():
            if version is None:
                self._client.delete_registered_model_alias(self._name, alias)
            else:
                self._client.set_registered_model_alias(self._name, alias, str(version))

    def set_production(self, version: int) -> None:
        """Move a version to stage Production, then archive the others one by one. Without stages, do nothing.

        Not in one request: with archive_existing_versions, MLflow 3.17 fails on PostgreSQL under psycopg 3 (it compares
        the version's number with the text that came over HTTP).
        """
        there = self.holders().production
        if version not in there:
            self._transition(version, "Production")
        for other in sorted(there - {version}):
            self._transition(other, "Archived")

    def _transition(self, version: int, stage: str) -> None:
        if not self._has_stages:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated, but many dashboards still read it
            try:
                self._client.transition_model_version_stage(self._name, str(version), stage)
            except MlflowException as error:
                if error.error_code not in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):
                    raise explained(error) from error
                self._has_stages = False
                logger.warning("MLflow: this server has no stages; the aliases alone name the champion")

    def _if_kept(self, version: int) -> int | None:
        return version if list(self._versions(f" and version_number = {version}")) else None

    def _ensure_model(self) -> None:
        try:
            self._client.create_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                with _registry_errors():
                    raise

    def _carrying(self, key: str) -> list[int]:
        found, spent = list(self._versions(f" and tags.`{tag.KEY}` = '{key}'")), self._spent()
        # A duplicate shares its files.
        gone = {v.run_id for v in found if tag.FILES in v.tags or int(v.version) in spent}
        return sorted(int(v.version) for v in found if v.run_id not in gone)

    def _versions(self, clause: str) -> Iterable[ModelVersion]:
        token: str | None = None
        while True:
            with _registry_errors():
                page = self._client.search_model_versions(f"name = '{self._name}'{clause}", page_token=token)
            yield from page
            if not (token := page.token):
                return

    def _aliases(self) -> dict[str, int]:
        try:
            aliases = self._client.get_registered_model(self._name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            with _registry_errors():
                raise
        return {alias: int(version) for alias, version in aliases.items()}

    def _create(self, key: str) -> list[int]:
        if half := self.restoring():
            raise RunAgain(f"{self._name}: version {min(half)} is half restored, because an adoption was interrupted; "
                           "run `champion status --adopt` again, and then this")
        run_id = self._run_id()
        keep_model(self._client, run_id, self._save)
        with mlflow_errors():
            source = f"{self._client.get_run(run_id).info.artifact_uri}/{ARTIFACT}"
        refuse_local(self._client.tracking_uri, source)
        for _ in range(_ATTEMPTS):
            with mlflow_errors(), sent_once():
                try:
                    self._client.create_model_version(self._name, source, run_id, tags={**self._tags(), tag.KEY: key},
                                                      description=self._description())
                except MlflowException as error:
                    if not unanswered(error):
                        raise
            if made := self._carrying(key):
                return made
        raise Undecided(f"{self._name}: MLflow made no version, {_ATTEMPTS} times without a word; check the server")


@contextmanager
def _registry_errors() -> Iterator[None]:
    """Like mlflow_errors(), with advice for a server that has no registry."""
    try:
        with mlflow_errors():
            yield
    except Undecided as error:
        if "NOT_FOUND" in str(error) or "Not Found" in str(error):
            raise Undecided(f"{error}; this server has no Model Registry: use MLflow 2.9 or newer on a SQL store, or "
                            "DagsHub") from error
        raise


def save_flavour(model: Any, tokenizer: Any, folder: Path, requirements: list[str]) -> None:
    """Save a merged model so that `mlflow.transformers.load_model` gives it back.

    model and tokenizer must have been loaded from an absolute path: MLflow asks the Hub for the card of anything
    that looks like a repository name. requirements are pinned by the caller, since MLflow's own guess imports
    torchvision.
    """
    import mlflow.transformers

    mlflow.transformers.save_model({"model": model, "tokenizer": tokenizer}, str(folder), task="text-generation",
                                   pip_requirements=requirements)


def fetch_version(client: MlflowClient, name: str, version: int, folder: Path) -> tuple[Path, ModelIdentity]:
    """Download a registered version as one plain transformers folder, with the identity it was promoted under.

    Raises Undecided when the server fails or the version was not made by Champion.
    """
    with mlflow_errors():
        found = client.get_model_version(name, str(version))
        if found.tags.get(tag.FILES) in (LOST, RESTORING):
            raise Undecided(f"{name} version {version}: its weights are not in this MLflow store; see Lost weights in "
                            "docs/status.md")
        identity = found.tags.get(tag.IDENTITY)
        if identity is None:
            raise Undecided(f"{name} version {version}: carries no {tag.IDENTITY}, so it was not made here; "
                            "run `champion status --adopt`")
        store = artifacts_at(client, client.get_model_version_download_uri(name, str(version)))
        folder.mkdir(parents=True, exist_ok=True)
        local = Path(store.download_artifacts("", str(folder)))
    return plain(local), ModelIdentity.model_validate_json(identity)


def keep_model(client: MlflowClient, run_id: str, save: Callable[[Path], None]) -> None:
    """Let `save` write a model into a folder, and upload it as artifact `model` of a run.

    Raises Undecided when the server fails, IntegrityError when it kept other files than were sent.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / ARTIFACT
        save(model)
        sent = {p.relative_to(model.parent).as_posix(): p.stat().st_size for p in model.rglob("*") if p.is_file()}
        with mlflow_errors(), time_for(max(sent.values())):
            client.log_artifacts(run_id, str(model), ARTIFACT)
    # A version says READY whatever its source holds, so sizes are compared before it is created.
    kept = dict(_listed(client, run_id, ARTIFACT))
    if kept != sent:
        odd = sorted(set(sent.items()) ^ set(kept.items()))[0][0]
        raise IntegrityError(f"MLflow run {run_id}: {odd} was not kept as it was sent; check the artifact store")


def plain(flavour: Path) -> Path:
    """Turn a download in MLflow's transformers flavour into one plain transformers folder; returns that folder."""
    model = flavour / "model"
    for file in (flavour / "components" / "tokenizer").iterdir():
        shutil.copy2(file, model / file.name)
    return model


def _listed(client: MlflowClient, run_id: str, path: str) -> Iterable[tuple[str, int]]:
    for entry in list_files(client, run_id, path):
        if entry.is_dir:
            yield from _listed(client, run_id, entry.path)
        else:
            yield entry.path, int(entry.file_size)
