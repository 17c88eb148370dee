"""The records that stages hand each other in results/, as frozen types, and how their files are read."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from src.core.errors import IntegrityError, InvalidInput
from src.core.params import METRICS, first_problem

CONFIG = Path("params.yaml")
EVALUATION_RESULTS = Path("results/evaluations/metrics.json")
BASE_MODEL = Path("results/base_model.json")
DATASETS = Path("results/data/datasets.json")
MODEL_LOCATION = Path("results/fine_tuned_model_location.json")
OUTPUT_DIR = Path("results/deployment")
RELEASE_DIR = Path("results/release")
CHAMPION_FILE = "champion.json"  # in a release
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Unit = Annotated[float, Field(ge=0, le=1)]
MAX_BYTES = 16 * 1024 * 1024  # of a JSON file
_AGAIN = "run `dvc repro` to write it afresh"


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII; NaN and infinity raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(value: object) -> str:
    """Sha256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small UTF-8 file (a byte-order mark is accepted).

    Raises InvalidInput for a missing, oversized, malformed or too deeply nested file, for another top level than
    an object, a key given twice, NaN and infinity.
    """
    text = _read_text(path)
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise InvalidInput(f"{path}: not JSON at byte {offset}: {error.msg}; {_AGAIN}") from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidInput(f"{path}: {what}; {_AGAIN}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: expected a JSON object at the top, found {type(value).__name__}; {_AGAIN}")
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file; raises InvalidInput with the line number for anything else."""
    if not path.is_file():
        raise InvalidInput(f"{path}: missing; {_AGAIN}")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"{path}:{number}: not a JSON object: {error}; {_AGAIN}") from None
            if not isinstance(row, dict):
                raise InvalidInput(f"{path}:{number}: expected a JSON object, found {type(row).__name__}; "
                                   f"{_AGAIN}")
            yield row


def parse_json(text: str) -> Any:
    """The value of a JSON text; raises ValueError, also for a key given twice, NaN and infinity."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InvalidInput(f"{path}: larger than {MAX_BYTES} bytes; {_AGAIN}")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise InvalidInput(f"{path}: missing; {_AGAIN}") from None
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}; {_AGAIN}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 at byte {error.start}; {_AGAIN}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} is given twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON or a score can hold")


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, so that it survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Record(BaseModel):
    """An immutable record; unknown keys, wrong types and non-finite numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], *, where: Path | str) -> Self:
        """The record in a decoded JSON object; raises InvalidInput naming file and key."""
        try:
            return cls.model_validate_json(json.dumps(mapping))
        except ValidationError as error:
            raise InvalidInput(f"{where}: {first_problem(error)}; {_AGAIN}") from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """The record in a JSON file; raises InvalidInput as `read_object` and `parse` do."""
        return cls.parse(read_object(path), where=path)

    @classmethod
    def load_lines(cls, path: Path) -> list[Self]:
        """The records of a JSON Lines file; raises InvalidInput as `read_lines` and `parse` do."""
        return [cls.parse(row, where=f"{path}:{number}") for number, row in enumerate(read_lines(path), start=1)]

    def digest(self) -> str:
        """The record as one sha256 (hex)."""
        return digest_of(self.model_dump(mode="json"))


class DatasetRef(Record):
    """One split: chat JSONL, one `{"id", "intent", "messages"}` a line. sha256 is of the file's bytes."""

    path: str
    sha256: Digest
    rows: Annotated[int, Field(ge=1)]


class Datasets(Record):
    """results/data/datasets.json: the three splits and the raw file they come from."""

    raw: DatasetRef
    train: DatasetRef
    validation: DatasetRef
    evaluation: DatasetRef


class BaseModelRef(Record):
    """results/base_model.json. revision is the resolved commit, or `none` for pocket and folders.

    sha256 is the manifest digest of the folder, path is relative to the repository.
    """

    name: str
    revision: str
    path: str
    sha256: Digest


class LoraSettings(Record):
    """What the adapter was trained with."""

    r: int
    alpha: int
    dropout: float
    target_modules: list[str]


class FineTunedModel(Record):
    """results/fine_tuned_model_location.json: where the adapter is and what it belongs to."""

    run_id: str
    tracking_uri: str
    adapter_path: str
    adapter_sha256: Digest
    base_model: BaseModelRef
    train: DatasetRef
    lora: LoraSettings
    git_commit: str


class Metrics(Record):
    """The five unweighted components, each in [0, 1]."""

    bleu1: Unit
    bleu2: Unit
    bleu3: Unit
    bleu4: Unit
    rougeL_precision: Unit  # noqa: N815 - the documented key

    def as_dict(self) -> dict[str, float]:
        """Name to value, in the order of METRICS."""
        return {name: float(getattr(self, name)) for name in METRICS}


class GenerationSettings(Record):
    """How the scored answers were generated: greedy, left padded, stopped at the end of the turn."""

    max_new_tokens: int
    do_sample: Literal[False]


class ScoreContract(Record):
    """What makes two scores comparable. Weights, threshold and significance are policy and not in here."""

    rows_sha256: Digest
    generation: GenerationSettings
    metric_version: str
    metric_signature: str


class ModelIdentity(Record):
    """What a merged model is made of; equal digests mean equal weights. No time, run id or score enters it."""

    adapter_sha256: Digest
    base_name: str
    base_revision: str
    base_sha256: Digest
    dtype: str
    safe_merge: Literal[True]

    def key(self, contract: str) -> str:
        """The promotion key: the model under one score contract."""
        return digest_of([self.digest(), contract])


class Baseline(Record):
    """The score of copied training answers (src/evaluation/neighbour.py), by the metrics and weights of the model's."""

    weighted_score: Unit
    metrics: Metrics

    def scores(self) -> dict[str, float]:
        """The five metrics and weighted_score."""
        return {**self.metrics.as_dict(), "weighted_score": self.weighted_score}


class EvaluationReport(Record):
    """results/evaluations/report.json: the score, what it was taken of and how."""

    run_id: str
    tracking_uri: str
    model: ModelIdentity
    model_digest: Digest
    contract: ScoreContract
    contract_digest: Digest
    metrics: Metrics
    weighted_score: Unit
    weights: dict[str, Unit]
    rows: Annotated[int, Field(ge=1)]
    truncated_rows: int
    empty_rows: int
    overlap_rows: int  # evaluated questions that stand in the training split too
    evaluation: DatasetRef
    answer_overlap_rows: int | None = None  # reference answers that stand in the training split too; None: not counted
    unsplit_rows: int | None = None  # references that 13a hardly splits; None: not counted, or another tokenizer
    nearest_neighbour: Baseline | None = None  # on the same rows; None: written before it was computed

    def weights_digest(self) -> str:
        """The weights that the stored weighted score was taken under, as one sha256 (hex)."""
        return digest_of(self.weights)

    def scores(self) -> dict[str, float]:
        """The five metrics and weighted_score."""
        return {**self.metrics.as_dict(), "weighted_score": self.weighted_score}

    def logged_metrics(self) -> dict[str, float]:
        """The metrics of the MLflow run: those of metrics.json, and the baseline's as `nearest_neighbour/<metric>`."""
        copied = self.nearest_neighbour.scores() if self.nearest_neighbour else {}
        return {**self.scores(), "rows": self.rows,
                **{f"nearest_neighbour/{name}": value for name, value in copied.items()}}

    def is_below_neighbour(self) -> bool:
        """True if copied training answers score more than the model's own."""
        return self.nearest_neighbour is not None and self.weighted_score < self.nearest_neighbour.weighted_score

    def neighbour_warning(self) -> str | None:
        """The warning that copied answers are better than the model's, as a sentence; None if they are not."""
        if self.nearest_neighbour is None or not self.is_below_neighbour():
            return None
        return ("The model answers worse than copying the nearest training answer "
                f"({self.nearest_neighbour.weighted_score:.3f}); it is not worth serving yet.")

    def beside_neighbour(self) -> str | None:
        """The model's score beside the nearest-neighbour baseline, in one line; None if there is no baseline."""
        if self.nearest_neighbour is None:
            return None
        line = (f"score {self.weighted_score:.3f}; copying the nearest training answer scores "
                f"{self.nearest_neighbour.weighted_score:.3f}")
        return ". ".join(filter(None, [line, self.neighbour_warning()]))

    def tokenizer_warning(self) -> str | None:
        """The warning that 13a does not fit the language, if it hardly splits more than a tenth of the references."""
        if not self.unsplit_rows or 10 * self.unsplit_rows <= self.rows:
            return None
        return (f"{self.unsplit_rows} of {self.rows} references ({self.unsplit_rows / self.rows:.0%}) are written "
                "mostly in letters that tokenizer 13a and rouge_score do not split, so correct answers score low; set "
                "evaluation.tokenizer (docs/evaluation.md#languages).")

    @field_validator("weights")
    @classmethod
    def _name_the_metrics(cls, value: dict[str, float]) -> dict[str, float]:
        if set(value) != set(METRICS):
            raise ValueError(f"must name exactly {', '.join(METRICS)}")
        return value


def file_sha256(path: Path) -> str:
    """Sha256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> dict[str, str]:
    """POSIX path below the folder to sha256, sorted, for every regular file.

    Raises IntegrityError for a link (what it points to could change behind the digest) and for an empty folder.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise IntegrityError(f"{path}: is a link; copy the file into place")
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = file_sha256(path)
    if not found:
        raise IntegrityError(f"{folder}: holds no file; {_AGAIN}")
    return found


def tree_digest(files: Mapping[str, str]) -> str:
    """One sha256 (hex) of a manifest: equal digests mean equal names and bytes."""
    return digest_of(dict(files))


class ChampionFile(Record):
    """champion.json of a release: which model it is, under which name, and how it scored. The same for equal releases.

    The format changes with the meaning of a key. Releases made before there was this file state key and digest on
    their model card alone.
    """

    format: Literal[1]
    key: Digest
    model_digest: Digest
    model_name: str
    contract: Digest
    metrics: Metrics
    base_model: str | None = None  # its name; older releases do not state it

    def text(self) -> str:
        """The file's content."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True)) + "\n"


class SpaceRecord(Record):
    """off, nothing (there is no release of the champion here), or made: a bundle lies in bundle/.

    serves: weights that are SAFE, the one that answers first. made_from: equal if the bundle would come out the
    same, so that nothing is made twice.
    """

    state: Literal["off", "nothing", "made"]
    why: str
    key: str | None  # the champion's promotion key
    version: Annotated[int, Field(ge=1)] | None
    serves: list[Literal["int8", "int4", "safetensors"]]
    made_from: Digest | None


def weighted_score(metrics: Mapping[str, float], weights: Mapping[str, float]) -> Decimal:
    """Sum of weight x metric, each taken at its shortest decimal, rounded half-even to 1e-9.

    Decimals, because 28 of 998 exact steps of 0.001 vanish in binary floats. Raises KeyError for a missing metric.
    """
    total = sum((Decimal(repr(float(weights[m]))) * Decimal(repr(float(metrics[m]))) for m in METRICS), Decimal(0))
    return total.quantize(Decimal("1e-9"), rounding=ROUND_HALF_EVEN)


def contributions(metrics: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Weight x metric for each metric: what it adds to the weighted score."""
    return {name: float(weighted_score({**dict.fromkeys(METRICS, 0.0), name: metrics[name]}, weights))
            for name in METRICS}
