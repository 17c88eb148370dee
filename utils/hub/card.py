"""Model cards and evaluation results in the Hub's formats."""

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from src.promotion.card import DATASET_TYPE, TASK, CardMetadata


def render(metadata: CardMetadata, body: str) -> str:
    """The text of a README.md: the YAML header that the Hub reads, and the body below it."""
    results = [
        EvalResult(
            task_type=TASK, dataset_type=DATASET_TYPE, dataset_name=metadata.dataset_name,
            dataset_args=dict(metadata.dataset_args), metric_type=metric.type, metric_name=metric.name,
            metric_value=metric.value,
            metric_args={"confidence": metadata.confidence, "low": metric.low, "high": metric.high})
        for metric in metadata.metrics
    ]
    data = ModelCardData(
        model_name=metadata.model_name, language=list(metadata.languages) or None, license=metadata.licence,
        library_name="transformers", pipeline_tag=TASK,
        tags=list(metadata.tags), metrics=["bleu", "rouge"], eval_results=results, base_model=metadata.base_model)
    if metadata.base_model:
        data["base_model_relation"] = "finetune"
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def render_plain(repo_id: str, licence: str | None, base_model: str | None, body: str) -> str:
    """The text of a README.md without evaluation results: the YAML header that the Hub reads, and the body below it."""
    data = ModelCardData(model_name=repo_id, license=licence, library_name="transformers", pipeline_tag=TASK,
                         tags=["lora", "merged", "customer-support"], base_model=base_model)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def render_results(metadata: CardMetadata) -> str:
    """The text of a file in .eval_results/, with one task for each metric. The commit has the date.

    The Hub requires the id of a data set. The evaluation split has none, so the model's own id is given.
    Source: https://huggingface.co/docs/hub/eval-results
    """
    entries = [
        EvalResultEntry(
            dataset_id=metadata.model_name, task_id=metric.key, value=metric.value,
            notes=f"{100 * metadata.confidence:.6g} % interval {metric.low:.4f} to {metric.high:.4f}; {metadata.notes}",
        )
        for metric in metadata.metrics
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
