"""Guards: limits that a challenger must keep whatever its weighted score. All are off in the shipped params.yaml."""

from collections.abc import Iterator

from src.params import GuardParams
from src.records import EvaluationReport, Metrics


def failed_guard(guards: GuardParams, report: EvaluationReport, baseline: Metrics | None) -> str | None:
    """The first guard that the evaluation fails, as `name: what it found`, None where it keeps them all.

    Drops are measured against the baseline's metrics, the best promoted model's; a first model has none.
    """
    return next(_failures(guards, report, baseline), None)


def _failures(guards: GuardParams, report: EvaluationReport, baseline: Metrics | None) -> Iterator[str]:
    if report.rows < guards.least_rows:
        yield f"least_rows: {report.rows} evaluated, {guards.least_rows} asked for"
    found, before = report.metrics.as_dict(), baseline.as_dict() if baseline else {}
    for name, floor in guards.metric_floors.items():
        if found[name] < floor:
            yield f"metric_floors.{name}: {found[name]:.4f} is below {floor}"
    for name, most in guards.largest_drops.items():
        drop = before.get(name, found[name]) - found[name]
        if drop > most:
            yield f"largest_drops.{name}: fell by {drop:.4f}, {most} is allowed"
    shares = {
        "largest_empty_share": (report.empty_rows, guards.largest_empty_share),
        "largest_truncated_share": (report.truncated_rows, guards.largest_truncated_share),
        "largest_overlap": (report.overlap_rows, guards.largest_overlap),
    }
    for share, (rows, most) in shares.items():
        if rows / report.rows > most:
            yield f"{share}: {rows} of {report.rows} rows, a share of {most} is allowed"
