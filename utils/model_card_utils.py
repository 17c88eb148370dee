"""Model cards in the Hub's format."""

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from src.model_card import DATASET_TYPE, TASK, CardMetadata


def render(metadata: CardMetadata, body: str) -> str:
    """The text of a README.md: the YAML header that the Hub reads, and the body below it."""
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=DATASET_TYPE,
            dataset_name=metadata.dataset_name,
            dataset_args=dict(metadata.dataset_args),
            metric_type=metric.type,
            metric_name=metric.name,
            metric_value=metric.value,
        )
        for metric in metadata.metrics
    ]
    data = ModelCardData(
        model_name=metadata.model_name,
        license=metadata.licence,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=list(metadata.tags),
        metrics=sorted({"bleu", "rouge"}),
        eval_results=results,
        base_model=metadata.base_model,
    )
    if metadata.base_model:
        data["base_model_relation"] = "finetune"
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))
