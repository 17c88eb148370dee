"""Looks at MLflow and the Hub from outside, with clients of its own, and writes down what it sees."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.reliability.race_history import Observation

PAUSE = 0.05  # seconds between two looks


class Watcher:
    """Of one model: its registry entry, its ledger, its Hub repository."""

    def __init__(self, uri: str, model: str, repo: str) -> None:
        self._uri, self._model, self._repo = uri, model, repo
        self._trees: dict[str, str | None] = {}
        self._ledger_run: str | None = None
        self._api = HfApi()

    @cached_property
    def _client(self) -> MlflowClient:
        return MlflowClient(self._uri, self._uri)

    def watch(self, stop: Event) -> tuple[list[Observation], int]:
        """Look until the event and once after that; gives the looks that saw something new, and the number of all."""
        looks, history = 0, list[Observation]()
        while True:
            enough = stop.wait(PAUSE)
            seen = self.look()
            looks += 1
            if not history or replace(seen, at=history[-1].at) != history[-1]:
                history.append(seen)
            if enough:
                return history, looks

    def look(self) -> Observation:
        """One observation, in the order that race_history explains."""
        at = time.time()
        aliases, versions = self._aliases(), self._versions()
        tags, tree, mirror = self._refs()[0], self._tree("main"), self._mirror()
        slots = self._slots()
        commits = {json.loads(text)["hub"]["commit"] for text in slots.values()}
        for commit in commits - self._trees.keys():
            self._trees[commit] = self._tree(commit)
        tags_after, branches = self._refs()
        return Observation(
            at=at, champion=aliases.get("champion"), previous=aliases.get("previous"), tree=tree, tags=tags,
            production=tuple(sorted(number for number, version in versions.items()
                                    if version.current_stage == "Production")),
            mirror=mirror, slots=slots, trees={commit: self._trees[commit] for commit in sorted(commits)},
            keys={str(number): version.tags.get("champion.key") for number, version in self._versions().items()
                  if "champion.duplicate_of" not in version.tags},
            kept=tuple(sorted({*tags_after.values(), *branches.values()})))

    def _aliases(self) -> dict[str, int]:
        try:
            found = self._client.get_registered_model(self._model).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: int(version) for alias, version in found.items()}

    def _versions(self) -> dict[int, Any]:
        found = self._client.search_model_versions(f"name = '{self._model}'", max_results=1000)
        return {int(version.version): version for version in found}

    def _slots(self) -> dict[str, str]:
        if self._ledger_run is None:
            found = self._client.get_experiment_by_name(f"{self._model}.ledger")
            if found is None:
                return {}
            self._ledger_run = found.tags["champion.ledger_run"]
        params: Mapping[str, str] = self._client.get_run(self._ledger_run).data.params
        return {name: text for name, text in sorted(params.items()) if name != "probe"}

    def _refs(self) -> tuple[dict[str, str], dict[str, str]]:
        try:
            refs = self._api.list_repo_refs(self._repo)
        except RepositoryNotFoundError:
            return {}, {}
        tags, branches = ({ref.name: ref.target_commit for ref in group} for group in (refs.tags, refs.branches))
        return tags, branches

    def _tree(self, revision: str) -> str | None:
        try:
            info = self._api.model_info(self._repo, revision=revision, files_metadata=True)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        files = sorted((file.rfilename, str(file.blob_id)) for file in info.siblings or []
                       if file.rfilename != ".gitattributes")
        return hashlib.sha256(json.dumps(files).encode()).hexdigest() if files else None

    def _mirror(self) -> tuple[str, ...]:
        try:
            info = self._api.model_info(self._repo, revision="ledger")
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return ()
        if "ledger.jsonl" not in {file.rfilename for file in info.siblings or []}:
            return ()
        path = self._api.hf_hub_download(self._repo, "ledger.jsonl", revision=info.sha)
        return tuple(Path(path).read_text().splitlines())
