"""How the deployment commands are put together: flags, environment and params.yaml in, one Setting out."""

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from src import pruning
from src.deployment_record import Request
from src.errors import Undecided
from src.model_selection import Policy
from src.params import DeploymentParams, HuggingFaceParams, Params
from src.ports import Hub
from src.records import CONFIG, EVALUATION_RESULTS, MODEL_LOCATION
from utils import deployment_run, environment, git_utils, mlflow_store, mlflow_utils, results, yaml_utils
from utils.mlflow_ledger import MlflowLedger
from utils.mlflow_registry import MlflowRegistry
from utils.no_registry import NoRegistry

logger = logging.getLogger("champion")


@dataclass(frozen=True)
class Setting:
    """What one deployment works with and how it was asked for."""

    params: Params
    config: Path
    request: Request
    inputs: results.Inputs
    client: MlflowClient
    hub: Hub | None
    output: Path
    may_promote: bool
    dry_run: bool
    code_when_kept: int
    log: results.LogBuffer


def challenger_setting(flags: argparse.Namespace, output: Path, log: results.LogBuffer) -> Setting:
    """The setting of a deployment of results/, as the flags ask for it."""
    config = flags.config or CONFIG
    params = yaml_utils.load_params(config, _overrides(flags))
    _tell_overruled(params.deployment, yaml_utils.load_params(config).deployment, config)
    asked = environment.asked(params.deployment, force=flags.force_deploy, reason=flags.reason,
                              skip_hf_push=flags.skip_hf_push)
    inputs = results.read_inputs(flags.evaluation_results or EVALUATION_RESULTS,
                                 flags.model_artifact_path or MODEL_LOCATION)
    if asked.push and environment.in_ci():
        mlflow_store.check_lasting(params.mlflow.tracking_uri)
    hub = _hub(params.deployment.huggingface) if asked.push else None
    client = mlflow_utils.connect(params.mlflow)
    if not flags.dry_run:
        inputs = deployment_run.with_known_run(client, inputs, params)
    git = git_utils.identity()
    policy = Policy(params.deployment.weighted_scoring.weights,
                    Decimal(repr(params.deployment.min_improvement_threshold)),
                    require_significance=params.deployment.significance == "require")
    request = Request(
        report=inputs.report, model=inputs.model, policy=policy, model_name=params.deployment.model_registry_name,
        registry=params.deployment.registry, force=asked.force, actor=environment.actor(), reason=asked.reason,
        git_commit=git.commit, ci_url=environment.ci_url(), tracking_uri=client.tracking_uri,
        hub_repo=params.deployment.huggingface.model_id if asked.push else None,
    )
    branches = params.deployment.promoting_branches
    return Setting(params=params, config=config, request=request, inputs=inputs, client=client, hub=hub,
                   output=output, may_promote=environment.may_promote(branches, git.branch), dry_run=flags.dry_run,
                   code_when_kept=10 if flags.fail_on_reject else 0, log=log)


def registry_of(params: Params, client: MlflowClient, ledger: MlflowLedger, *, save: Callable[[Path], None],
                run_id: Callable[[], str], tags: Callable[[], Mapping[str, str]]) -> MlflowRegistry | NoRegistry:
    """The Model Registry, or what stands in for it where deployment.registry is none."""
    if params.deployment.registry == "none":
        return NoRegistry(client, params.mlflow.experiment_name, ledger, save=save, run_id=run_id, tags=tags)
    return MlflowRegistry(client, params.deployment.model_registry_name, save=save, run_id=run_id, tags=tags,
                          spent=lambda: pruning.prunable(ledger.view(), params.deployment.keep_versions))


def prune(params: Params, ledger: MlflowLedger, registry: MlflowRegistry | NoRegistry) -> None:
    """Delete the weights beyond deployment.keep_versions; what fails is left to the next deployment."""
    if isinstance(registry, MlflowRegistry) and params.deployment.keep_versions:
        try:
            done = pruning.prune(ledger, registry, params.deployment.keep_versions)
        except Undecided as error:
            logger.warning("old weights are not all pruned, the next deployment goes on: %s", error)
            return
        if done:
            logger.info("pruned the weights of versions %s", ", ".join(map(str, done)))


def _hub(params: HuggingFaceParams) -> Hub:
    from utils import hub_port  # huggingface_hub: only a push pays for it

    return hub_port.repository(params)


def _tell_overruled(asked: DeploymentParams, stated: DeploymentParams, config: Path) -> None:
    if asked.min_improvement_threshold != stated.min_improvement_threshold:
        logger.info("threshold %s by flag, %s says %s", asked.min_improvement_threshold, config,
                    stated.min_improvement_threshold)
    if asked.huggingface.model_id != stated.huggingface.model_id:
        logger.info("Hub repository %s by flag, %s says %s", asked.huggingface.model_id, config,
                    stated.huggingface.model_id)


def _overrides(flags: argparse.Namespace) -> dict[str, Any]:
    deployment: dict[str, Any] = {}
    if flags.min_improvement_threshold is not None:
        deployment["min_improvement_threshold"] = flags.min_improvement_threshold
    if flags.hf_model_id is not None:
        deployment["huggingface"] = {"model_id": flags.hf_model_id}
    return {"deployment": deployment}
