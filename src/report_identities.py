"""What was judged and by which records, as names and values to look them up by."""

from collections.abc import Mapping
from typing import Any

from src.records import DatasetRef, EvaluationReport, FineTunedModel

Facts = Mapping[str, str | int | None]


def identities(report: EvaluationReport, model: FineTunedModel, info: Mapping[str, Any], versions: Mapping[str, str]
               ) -> dict[str, Facts]:
    """Groups of names and values; None where a deployment that failed, or none, left a value out."""
    base, contract, hub = report.model, report.contract, info.get("hub")
    champion = info.get("champion")
    return {
        "Model": {
            "Registered name": info.get("model_name"),
            "Champion's version": champion["version"] if champion else None,
            "Model digest": report.model_digest,
            "Promotion key": info.get("key"),
            "Adapter": report.model.adapter_sha256,
            "Base model": f"{base.base_name} at revision {base.base_revision}",
            "Base model's weights": base.base_sha256,
            "Precision": base.dtype,
            "On the Hub": f"{hub['repo']} at {hub['commit']}" if hub else None,
        },
        "Data": {"Training": _data(model.train), "Evaluation": _data(report.evaluation)},
        "Score contract": {
            "Contract": report.contract_digest,
            "Evaluated rows": contract.rows_sha256,
            "Decoding": f"greedy, at most {contract.generation.max_new_tokens} new tokens",
            "Metric": contract.metric_signature,
        },
        "MLflow": {
            "Tracking server": info.get("tracking_uri") or report.tracking_uri,
            "Evaluation run": info.get("evaluation_run") or report.run_id,
            "Fine-tuning run": model.run_id,
            "Deployment run": info.get("deployment_run"),
            "Decision": info.get("decision_id"),
            "Ledger slot": info.get("ledger_slot"),
        },
        "Origin": {
            "Commit of the training": model.git_commit,
            "Commit of the decision": info.get("git_commit"),
            "Decided by": info.get("actor"),
            "CI run": info.get("ci_url"),
        },
        "Software": versions,
    }


def _data(data: DatasetRef) -> str:
    return f"{data.path}, {data.rows} rows, sha256 {data.sha256}"
