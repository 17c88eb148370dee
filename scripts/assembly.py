"""What a promotion does with weights: merge, assemble, verify, save. Imports torch."""

import importlib.metadata
import logging
import warnings
from pathlib import Path

from src import merging
from src.adapter import check_sources
from src.deployment_record import Request
from src.model_card import CardFacts, body, metadata
from src.model_selection import Decision
from src.params import Params
from src.predictions import Prediction, spread
from src.records import BASE_MODEL, RELEASE_DIR, BaseModelRef, Datasets
from src.release import assemble_release, verify_release
from utils import json_utils, mlflow_registry, model_card_utils, results

logger = logging.getLogger(__name__)

_RUNTIME = ("torch", "transformers", "accelerate", "safetensors")


def assemble(params: Params, inputs: results.Inputs, decision: Decision, request: Request) -> None:
    """Merge adapter and base, write results/release, and prove that it is the model that was scored."""
    report = inputs.report
    here = BaseModelRef.parse(json_utils.read_object(BASE_MODEL), where=BASE_MODEL)
    base, adapter = check_sources(inputs.model, here, root=Path.cwd())
    model, tokenizer = merging.merge(base, adapter, report.model.dtype)
    card = None
    if params.deployment.huggingface.create_model_card:
        card = _card(inputs, params, decision, request)
    assemble_release(model, tokenizer, RELEASE_DIR, max_new_tokens=report.contract.generation.max_new_tokens,
                     card=card)
    del model
    path = inputs.evaluations / "predictions.jsonl"
    predictions = [Prediction.parse(row, where=path) for row in json_utils.read_lines(path)]
    checked = verify_release(RELEASE_DIR, base=base, adapter=adapter, dtype=report.model.dtype,
                             predictions=spread(predictions, params.deployment.verified_rows))
    logger.info("release verified: %d of %d answers equal, logits within %.1e", checked.equal, checked.rows,
                checked.logits_difference)


def _card(inputs: results.Inputs, params: Params, decision: Decision, request: Request) -> str:
    path = Path(inputs.model.train.path).with_name("datasets.json")
    facts = CardFacts(
        repo_id=params.deployment.huggingface.model_id, report=inputs.report, fine_tuned=inputs.model,
        validation=Datasets.parse(json_utils.read_object(path), where=path).validation, decision=decision,
        threshold=request.policy.threshold, reason_given=request.reason or None,
        system_prompt=params.data.system_prompt,
    )
    return model_card_utils.render(metadata(facts), body(facts))


def save_flavour(release: Path, folder: Path) -> None:
    """Save an assembled release in MLflow's transformers flavour, with the versions it runs on."""
    # MLflow remarks on the types of its own wrapper.
    warnings.filterwarnings("ignore", message="Any type hint is inferred as AnyType")
    model, tokenizer = merging.load(release.resolve(), "auto")
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in _RUNTIME]
    mlflow_registry.save_flavour(model, tokenizer, folder, pins)
