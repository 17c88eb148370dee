"""The weights of a promotion: merge, assemble the release, verify it, save it for MLflow. Imports torch."""

import importlib.metadata
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from src.core.params import Params
from src.core.records import BASE_MODEL, CHAMPION_FILE, RELEASE_DIR, BaseModelRef, ChampionFile, Datasets
from src.decisions.record import Request
from src.evaluation.metrics import RowStatistics
from src.evaluation.predictions import Prediction, VerifiedRows
from src.evaluation.significance import RESAMPLES, score_intervals, seed_from
from src.model_selection import Decision
from src.models import merging
from src.models.files import check_sources
from src.promotion.card import CardFacts, Intervals, body, metadata
from src.promotion.release import CARD, EVAL_RESULTS, assemble_release, verify_release
from utils import results
from utils.hub import card
from utils.tracking import registry

logger = logging.getLogger(__name__)
_RUNTIME = ("torch", "transformers", "accelerate", "safetensors")


def assemble(params: Params, inputs: results.Inputs, decision: Decision, request: Request, *,
             answers: Sequence[Prediction], verified: VerifiedRows) -> None:
    """Merge adapter and base, write results/release, and prove that it is the model that was scored.

    answers: of the evaluation, checked; verified: which of them the release has to generate again.
    """
    report = inputs.report
    base, adapter = check_sources(inputs.model, BaseModelRef.load(BASE_MODEL), root=Path.cwd())
    model, tokenizer = merging.merge(base, adapter, report.model.dtype)
    champion = ChampionFile(format=1, key=request.key, model_digest=report.model_digest,
                            model_name=request.model_name, contract=report.contract_digest, metrics=report.metrics,
                            base_model=inputs.model.base_model.name)
    texts = {CHAMPION_FILE: champion.text()}
    if params.deployment.huggingface.create_model_card:
        size = model.num_parameters(), getattr(model.config, "max_position_embeddings", None)
        facts = _facts(params, request, decision, answers, size)
        header = metadata(facts)
        texts |= {CARD: card.render(header, body(facts)), EVAL_RESULTS: card.render_results(header)}
    assemble_release(model, tokenizer, RELEASE_DIR, max_new_tokens=report.contract.generation.max_new_tokens,
                     texts=texts)
    del model
    checked = verify_release(RELEASE_DIR, base=base, adapter=adapter, dtype=report.model.dtype,
                             predictions=answers, again=verified.places)
    logger.info("release verified: %d answers generated again, %d equal; all %d answers read, every token the model's "
                "choice, %d by a near-tie; logits within %.1e", checked.rows, checked.equal, checked.answers,
                checked.near_ties, checked.logits_difference)


def _facts(params: Params, request: Request, decision: Decision, predictions: Sequence[Prediction],
           size: tuple[int, int | None]) -> CardFacts:
    path, policy = Path(request.model.train.path).with_name("datasets.json"), params.deployment
    datasets, seed = Datasets.load(path), seed_from(request.report.contract_digest)
    bounds = score_intervals(
        RowStatistics.from_rows([row.stats for row in predictions]), weights=request.policy.weights,
        confidence=policy.confidence, seed=seed)
    return CardFacts(
        repo_id=policy.huggingface.model_id, request=request, decision=decision,
        parameters=size[0], context=size[1], raw_sha256=datasets.raw.sha256, validation=datasets.validation,
        languages=tuple(policy.huggingface.language), licence=policy.huggingface.license,
        intervals=Intervals(bounds, policy.confidence, RESAMPLES, seed),
        versions={name: importlib.metadata.version(name) for name in ("peft", *_RUNTIME)},
        system_prompt=params.data.system_prompt)


def save_flavour(release: Path, folder: Path) -> None:
    """Save an assembled release in MLflow's transformers flavour, with the versions it runs on."""
    # MLflow remarks on the types of its own wrapper.
    warnings.filterwarnings("ignore", message="Any type hint is inferred as AnyType")
    model, tokenizer = merging.load(release.resolve(), "auto")
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in _RUNTIME]
    registry.save_flavour(model, tokenizer, folder, pins)
