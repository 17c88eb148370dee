"""Compare a bundle with its release: run both, score their answers with the project's scorer, judge the difference."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from bundling.source import Source
from files import JsonLine, read_lines, sha256, write_lines
from serving.identity import BundleError, BundleIdentity

HERE = Path(__file__).parents[1]
STREAMS = 4  # answers at once, as in the app
# Tokens at an answer's end. Of the pocket model's 232 answers, of 72 tokens at most, none ends in anything said three
# times, and the longest end that was said twice has 15 tokens; of the references, none.
_TAIL = 24
_PERIODS = range(1, 41)


class MeasuringError(Exception):
    """The comparison failed; the text says why."""


@dataclass(frozen=True)
class Answerer:
    """A folder of weights and the Python that can run them; weights is empty for released ones."""

    python: str
    folder: Path
    weights: str

    def ask(self, rows: Sequence[JsonLine], scratch: Path, *, streams: int) -> tuple[list[JsonLine], dict[str, Any]]:
        """Answers in the order of the rows, and the probe's figures; raises MeasuringError."""
        prompts, output = scratch / "prompts.jsonl", scratch / "answers.jsonl"
        write_lines(prompts, [{"id": row["id"], "messages": row["messages"][:-1]} for row in rows])
        words = [self.python, "-m", "bundling.probe", "--bundle", str(self.folder.resolve()), "--prompts", str(prompts),
                 "--output", str(output), "--streams", str(streams)]
        told = run([*words, *(["--weights", self.weights] if self.weights else [])], cwd=HERE)
        return read_lines(output), json.loads(told.splitlines()[-1])


def score(scorer: Sequence[str], predictions: Path) -> dict[str, Any]:
    """Run the project's scorer on a file of predictions; raises MeasuringError."""
    told = run([*scorer, "--predictions", str(predictions.resolve())], cwd=HERE.parent)
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def scored(
    rows: Sequence[JsonLine], answers: Sequence[JsonLine], scorer: Sequence[str], file: Path
) -> "tuple[ScoredAnswers, dict[str, Any]]":
    """Write the predictions, score them; the scorer's own words come second."""
    write_lines(file, [{**answer, "reference": row["messages"][-1]["content"].strip()}
                       for row, answer in zip(rows, answers, strict=True)])
    told = score(scorer, file)
    predictions = tuple(answer["prediction"] for answer in answers)
    looping = sum(loops(answer["tokens"]) for answer in answers) / len(answers)
    each = told.get("row_scores", [0.0] * len(answers))  # which another scorer need not tell
    complete = tuple(0.0 if answer["truncated"] else score for answer, score in zip(answers, each, strict=True))
    return ScoredAnswers(predictions, told["metrics"], told["weighted_score"],
                         empty=predictions.count("") / len(answers), looping=looping, row_scores=complete), told


def evaluated(folder: Path, release: Source, rows: Sequence[JsonLine]) -> list[JsonLine] | None:
    """The answers of the evaluation stage, if they are this model's answers to these rows under its limit."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        known = {line["id"]: line for line in read_lines(folder / "predictions.jsonl")}
        settings = json.loads((release.folder / "generation_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    limit = report["contract"]["generation"]["max_new_tokens"]
    if report["model_digest"] != release.model_digest or limit != settings.get("max_new_tokens"):
        return None
    ours = [known[row["id"]] for row in rows if row["id"] in known and _same(row, known[row["id"]])]
    if len(ours) < len(rows):
        return None
    # As the probe writes them: without the token that ended the answer.
    return [{"id": line["id"], "prediction": line["prediction"], "truncated": line["truncated"],
             "tokens": line["tokens"] if line["truncated"] else line["tokens"][:-1]} for line in ours]


def _same(row: JsonLine, line: JsonLine) -> bool:
    *prompt, answer = row["messages"]
    return [line["messages"], line["reference"]] == [prompt, answer["content"].strip()]


def run(command: Sequence[str], *, cwd: Path) -> str:
    """A command's output; raises MeasuringError with its last line when it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MeasuringError(f"{command[0]}: {error.strerror}; run `make serving`, or name another Python with "
                             "--serving-python or --released-python") from error
    if done.returncode or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise MeasuringError(f"{' '.join(command[:3])} ended with {done.returncode}: {last}")
    return done.stdout


@dataclass(frozen=True)
class ScoredAnswers:
    """A model's answers to all rows, in their order. Shares and scores are in 0..1."""

    predictions: tuple[str, ...]
    metrics: Mapping[str, float]
    weighted_score: float
    empty: float
    looping: float
    row_scores: tuple[float, ...]  # of each answer alone; 0 for one that was cut off


def loops(tokens: Sequence[int]) -> bool:
    """Whether an answer ends in a run of up to 40 tokens, repeated three times or more over at least 24 tokens."""
    sizes = {period: max(_TAIL, 3 * period) for period in _PERIODS}
    return any(len(tokens) >= size and tokens[-size:-period] == tokens[period - size:]
               for period, size in sizes.items())


def judge(released: ScoredAnswers, bundled: ScoredAnswers, largest_drop: float) -> list[str]:
    """Reasons why the bundle is UNSAFE: a score that falls by more than the largest drop, more unusable answers."""
    reasons = []
    drop = Decimal(repr(released.weighted_score)) - Decimal(repr(bundled.weighted_score))
    if drop > Decimal(repr(largest_drop)):
        reasons.append(f"the score falls by {drop:.4f}, more than {largest_drop}")
    for what in ("empty", "looping"):
        before, after = getattr(released, what), getattr(bundled, what)
        if after > before:
            reasons.append(f"{after:.1%} of the answers are {what}, {before:.1%} of the released model's")
    return reasons


def identity_problems(bundle: Path, release: Source) -> list[str]:
    """One line for each way in which a bundle is not what its identity says, or not made of this release."""
    try:
        identity = BundleIdentity.load(bundle)
    except BundleError as error:
        return [str(error)]
    problems = [] if release.model_digest else ["the release does not state its model digest"]
    if identity.model.digest != release.model_digest:
        problems.append(f"it is of the model {str(identity.model.digest)[:12]}, not {str(release.model_digest)[:12]}")
    problems += identity.differences(bundle, contents=True)
    both = [name for name in sorted(identity.sha256) if (bundle / name).is_file() and (release.folder / name).is_file()]
    return problems + [f"{name} is not the release's" for name in both
                       if sha256(release.folder / name) != sha256(bundle / name)]
