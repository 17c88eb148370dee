"""An evaluation as numbers, table and line: what its files and its MLflow run show."""

import csv
import io

from src.model_selection import contributions
from src.records import EvaluationReport


def numbers(report: EvaluationReport) -> dict[str, float]:
    """The content of metrics.json: the five metrics and weighted_score in [0, 1], and rows."""
    return {**report.metrics.as_dict(), "weighted_score": report.weighted_score, "rows": report.rows}


def contributions_table(report: EvaluationReport) -> str:
    """The content of contributions.csv, for `dvc plots`: metric, value, weight, contribution."""
    values = report.metrics.as_dict()
    parts = contributions(values, report.weights)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["metric", "value", "weight", "contribution"])
    writer.writerows([name, values[name], report.weights[name], parts[name]] for name in values)
    return table.getvalue()


def summary(report: EvaluationReport) -> str:
    """The score in one line."""
    parts = ", ".join(f"{name} {value:.4f}" for name, value in report.metrics.as_dict().items())
    return (f"evaluation: weighted score {report.weighted_score:.4f} on {report.rows} rows ({parts}); "
            f"{report.truncated_rows} truncated, {report.empty_rows} empty; MLflow run {report.run_id}")
