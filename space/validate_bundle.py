"""Check that a bundle answers as well as the release it was made of: `python space/validate_bundle.py`."""

import argparse
import importlib.util
import logging
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import packages  # noqa: F401 - a missing package is one line
from bundling import comparison, examples
from bundling.comparison import STREAMS, Answerer
from bundling.source import SourceError, find, model_digest
from files import JsonLine, read_lines, sha256, shown, write_object
from serving.identity import VALIDATION, BundleIdentity, parse_object
from serving.settings import IDENTITY

logger = logging.getLogger("space")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
UNSAFE = 5
# The order in which SAFE weights are served: int8 is closer to the release and gives its first answer sooner;
# int4 takes less memory and is faster then. The figures are benchmarks/serving.py's.
_PRECEDENCE = ("int8", "int4")

PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--bundle", type=Path, default=HERE / "assets")
PARSER.add_argument("--model", help="the release: a folder, or NAME[@REVISION]; default: results/release, or "
                    "results/champion (which `make serve` fetches after a rollback) if the bundle is of that one")
PARSER.add_argument("--evaluation-rows", type=Path, default=ROOT / "results/data/evaluation.jsonl")
PARSER.add_argument("--evaluation", type=Path, default=ROOT / "results/evaluations",
                    help="answers of the pipeline's evaluation, used if they are of this model")
PARSER.add_argument("--rows", type=int, default=0, help="the first so many rows; 0: all")
PARSER.add_argument("--timed-rows", type=int, default=16, help="rows that are answered one by one, for the times")
PARSER.add_argument("--max-score-drop", type=float, help="default: space.max_score_drop of params.yaml")
PARSER.add_argument("--serving-python", default=str(HERE / ".venv/bin/python"), help="runs compressed weights")
PARSER.add_argument("--released-python", help="has torch and transformers; default: this one, or the builder's")
PARSER.add_argument("--scorer", help="scores a file of predictions; default: the project's scripts/score_script.py")
PARSER.add_argument("--output", type=Path, help=f"default: {VALIDATION} in the bundle")
PARSER.add_argument("--if-changed", action="store_true", help="do nothing if this bundle was found SAFE already")
PARSER.add_argument("--verbose", action="store_true", help="a table with times and memory as well")


@dataclass(frozen=True)
class Measured:
    """One side of the comparison."""

    answers: comparison.ScoredAnswers
    figures: dict[str, Any]
    source: str  # of the answers: generated, or the evaluation stage


@dataclass(frozen=True)
class Task:
    """The rows that each side answers, how many of them for the times, and what scores the answers."""

    rows: Sequence[JsonLine]
    timed: int
    scorer: Sequence[str]
    scratch: Path

    def measure(self, side: Answerer, known: list[JsonLine] | None = None) -> tuple[Measured, dict[str, Any]]:
        """Answer all rows, unless the answers are known, score them, and time some of them one by one."""
        answers = known if known is not None else side.ask(self.rows, self.scratch, streams=STREAMS)[0]
        _, figures = side.ask(self.rows[:self.timed], self.scratch, streams=1)
        found, told = comparison.scored(self.rows, answers, self.scorer, self.scratch / "predictions.jsonl")
        return Measured(found, figures, "generated" if known is None else "evaluation"), told


def main() -> int:
    """Exit 0 if some weights of the bundle are SAFE, 5 if none are, 2 if they could not be compared."""
    flags = PARSER.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if flags.if_changed and is_safe_already(flags.bundle):
            logger.info("%s: validated, up to date", shown(flags.bundle))
            return 0
        with tempfile.TemporaryDirectory(prefix="validate-bundle-") as scratch:
            record = validate(flags, Path(scratch))
        write_object(flags.output or flags.bundle / VALIDATION, record)
        if not record["identity_problems"]:
            serve_only(flags.bundle, record["serves"], record["weights"])
    except (comparison.MeasuringError, SourceError, OSError, ValueError, KeyError) as error:
        known = isinstance(error, (comparison.MeasuringError, SourceError))
        logger.critical("%s%s", "" if known else f"{type(error).__name__}: ", error)
        return 2
    except KeyboardInterrupt:
        logger.critical("interrupted; run it again")
        return 130
    sys.stdout.write((table(record) + "\n" if flags.verbose else "") + verdict(record))
    return 0 if record["verdict"] == "SAFE" else UNSAFE


def is_safe_already(bundle: Path) -> bool:
    """Whether validation.json is about these very weights, and found them SAFE."""
    path = bundle / VALIDATION
    if not path.is_file():
        return False
    record, identity = parse_object(path.read_text(encoding="utf-8"), path), BundleIdentity.load(bundle)
    return (record.get("verdict"), record.get("model_digest"), record.get("serves")) == (
        "SAFE", identity.model.digest, [*identity.weights]) and "examples" in record


def validate(flags: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Everything that was found, as validation.json holds it."""
    release = find(flags.model or _release_of(flags.bundle), None)
    rows = read_lines(flags.evaluation_rows)[:flags.rows or None]
    kinds = kinds_in(flags.bundle)
    problems = comparison.identity_problems(flags.bundle, release)
    scorer = shlex.split(flags.scorer) if flags.scorer else _project_scorer()
    task = Task(rows, flags.timed_rows, scorer, scratch)
    with_torch = flags.released_python or _with_torch()
    known = comparison.evaluated(flags.evaluation, release, rows)
    logger.info("checking the bundle on %d evaluation questions%s", len(rows), "" if known else "; the release first")
    released, told = task.measure(Answerer(with_torch, release.folder, ""), known)
    largest = told["max_score_drop"] if flags.max_score_drop is None else flags.max_score_drop
    found, answered = {}, {}
    for kind in kinds:
        logger.info("answering them with %s", kind)
        side = (Answerer(with_torch, flags.bundle, "") if kind == "safetensors" else
                Answerer(flags.serving_python, flags.bundle, kind))
        measured, _ = task.measure(side)
        reasons = [*problems, *comparison.judge(released.answers, measured.answers, largest)]
        found[kind] = {"verdict": "UNSAFE" if reasons else "SAFE", "reasons": reasons, **_as_record(measured, released)}
        answered[kind] = [*zip(measured.answers.predictions, measured.answers.row_scores, strict=True)]
    serves = [kind for kind in kinds if found[kind]["verdict"] == "SAFE"]
    return {
        "verdict": "SAFE" if serves else "UNSAFE", "serves": serves, "model": release.model,
        "model_digest": release.model_digest, "identity_problems": problems, "max_score_drop": largest,
        "rows": len(rows), "rows_sha256": sha256(flags.evaluation_rows),
        "timed_rows": min(flags.timed_rows, len(rows)), "streams": STREAMS,
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "released": _as_record(released, released),
        "weights": found, "examples": examples.choose(rows, *(answered[kind] for kind in serves)),
    }


def _release_of(bundle: Path) -> str:
    folders = [ROOT / "results/release", ROOT / "results/champion"]
    stated = (parse_object((bundle / IDENTITY).read_text(encoding="utf-8"), bundle).get("model_digest")
              if (bundle / IDENTITY).is_file() else None)
    return str(next((folder for folder in folders if stated and model_digest(folder) == stated), folders[0]))


def kinds_in(bundle: Path) -> list[str]:
    """The weights of a bundle, what is to be served first before the rest."""
    return [kind for kind in _PRECEDENCE if (bundle / kind).is_dir()] or ["safetensors"]


def _as_record(measured: Measured, released: Measured) -> dict[str, Any]:
    answers = asdict(measured.answers)
    answers.pop("row_scores")
    pairs = zip(answers.pop("predictions"), released.answers.predictions, strict=True)
    return {**answers, "same_answers": sum(a == b for a, b in pairs), "source": measured.source,
            "figures": measured.figures}


def _with_torch() -> str:
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers", "jinja2", "tokenizers")):
        return sys.executable
    return str(HERE / ".venv-builder/bin/python")


def _project_scorer() -> tuple[str, ...]:
    own = importlib.util.find_spec("sacrebleu") is not None
    python = sys.executable if own else str(ROOT / ".venv/bin/python")
    return (python, "-m", "scripts.score_script")


def serve_only(bundle: Path, weights: Sequence[str], judged: Iterable[str]) -> None:
    """Name these weights in identity.json, the first to be served, and delete the others that were judged.

    So nothing ships what is UNSAFE. If all are, they stay to be looked at: app, deploy.py and image refuse them.
    """
    gone = [kind for kind in judged if weights and kind not in weights]
    identity = BundleIdentity.load(bundle)
    kept = [name for name in identity.sha256 if name.partition("/")[0] not in gone]
    replace(identity, weights=tuple(weights), sizes={name: identity.sizes[name] for name in kept},
            sha256={name: identity.sha256[name] for name in kept}).write(bundle)
    for kind in gone:
        shutil.rmtree(bundle / kind)


def verdict(record: dict[str, Any]) -> str:
    """A line for each kind of weights, and what is served."""
    released, text = record["released"]["weighted_score"], list[str]()
    for kind, each in record["weights"].items():
        why = "".join(f"; {reason}" for reason in each["reasons"])
        text.append(f"{kind}: {each['verdict']}, score {each['weighted_score']:.3f}, the release {released:.3f}{why}")
    end = f"SAFE: {record['serves'][0]} is served" if record["serves"] else (
        f"UNSAFE: nothing may be served. {VALIDATION} in the bundle has the details. Either make a bundle of the "
        "released weights (prepare_assets.py --weights safetensors), or accept a larger loss (space.max_score_drop in "
        "params.yaml)")
    return "\n".join([*text, end]) + "\n"


def table(record: dict[str, Any]) -> str:
    """Both sides with times and memory, a line each."""
    head = ("", "score", "same", "empty", "looping", "load s", "first ms", "tokens/s", "MiB", "")
    lines = [head, _line("released", record["released"], record["rows"]),
             *(_line(kind, each, record["rows"]) for kind, each in record["weights"].items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width)
                               in enumerate(zip(line, widths, strict=True))).rstrip() for line in lines)


def _line(name: str, side: dict[str, Any], rows: int) -> tuple[str, ...]:
    figures = side["figures"]
    return (name, f"{side['weighted_score']:.4f}", f"{side['same_answers']}/{rows}", f"{side['empty']:.1%}",
            f"{side['looping']:.1%}", f"{figures['load_seconds']:.2f}", f"{1000 * figures['first_token_seconds']:.1f}",
            f"{figures['tokens_per_second']:.1f}", f"{figures['peak_mib']:.0f}", side.get("verdict", ""))


if __name__ == "__main__":
    sys.exit(main())
