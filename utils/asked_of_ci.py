"""What a workflow run was asked for: its event, its inputs, and the parameters that they lay over params.yaml."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from src.errors import InvalidParams, Refused
from src.params import Params
from utils import environment, yaml_utils

logger = logging.getLogger(__name__)

PROFILE, THRESHOLD = "PIPELINE_PROFILE", "PIPELINE_MIN_IMPROVEMENT_THRESHOLD"
_EVENTS = ("push", "workflow_dispatch")
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")
_LEAST = 0.0001  # DVC writes what is smaller as 1e-05, which YAML 1.1 reads as a text


@dataclass(frozen=True)
class Overrides:
    """Parameters for this run only; empty where params.yaml holds."""

    profile: str
    threshold: str

    def settings(self) -> list[str]:
        """What `dvc exp run -S` takes; none: `dvc repro`."""
        given = {"profile": self.profile, "deployment.min_improvement_threshold": self.threshold}
        return [f"{key}={value}" for key, value in given.items() if value]


def overrides() -> Overrides:
    """PIPELINE_PROFILE and PIPELINE_MIN_IMPROVEMENT_THRESHOLD, not yet checked against params.yaml."""
    return Overrides(*(os.environ.get(name, "").strip() for name in (PROFILE, THRESHOLD)))


def check(config: Path) -> Params:
    """The parameters that this run will work with.

    Raises Refused for an event that may not promote, and InvalidParams for an unknown profile, a threshold out of
    range, an unclear switch, or a forced promotion without the reason that params ask for.
    """
    _check_event()
    asked = overrides()
    deployment = {"min_improvement_threshold": _threshold(asked.threshold)} if asked.threshold else {}
    params = yaml_utils.load_params(config, {"deployment": deployment} if deployment else {}, profile=asked.profile)
    _check_promotion(params)
    return params


def _check_event() -> None:
    event, kind = os.environ.get("GITHUB_EVENT_NAME", ""), os.environ.get("GITHUB_REF_TYPE", "")
    if event and event not in _EVENTS:
        raise Refused(f"GITHUB_EVENT_NAME: a {event} event never promotes; push the branch, or start the workflow by "
                      "hand")
    if kind and kind != "branch":
        raise Refused(f"GITHUB_REF_TYPE: this is a {kind}; start the workflow from a branch, where its records can go")


def _check_promotion(params: Params) -> None:
    """As the deployment will ask, but for the Hub's token, which this step is not given."""
    hub = params.deployment.huggingface.model_copy(update={"push_to_hub": False})
    asked = environment.asked(params.deployment.model_copy(update={"huggingface": hub}), force=False, reason=None,
                              skip_hf_push=False)
    if asked.force:
        logger.info("a forced promotion is asked for; reason: %s", asked.reason or "none given")


def _threshold(text: str) -> float:
    if not _DECIMAL.fullmatch(text) or 0 < float(text) < _LEAST:
        raise InvalidParams(f"{THRESHOLD}: {text!r} is no usable threshold; give 0, or a decimal number from "
                            f"{_LEAST} to 1 such as 0.002")
    return float(text)
