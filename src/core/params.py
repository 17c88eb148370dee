"""params.yaml as frozen types. No field has a default: the file is the only place where one is written."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node

from src.core.errors import InvalidParams

BASE_PROFILE = "pocket"
_REPO_ID = re.compile(r"[A-Za-z0-9]([\w.-]{0,94}\w)?/[A-Za-z0-9]([\w.-]{0,94}\w)?", re.ASCII)

Metric = Literal["bleu1", "bleu2", "bleu3", "bleu4", "rougeL_precision"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=0.4)]
Unit = Annotated[float, Field(ge=0, le=1)]
M = TypeVar("M", bound=BaseModel)

# What earlier versions took: a key, or one value of a key that stays, and what to do instead.
_REMOVED: tuple[tuple[str, str | None, str], ...] = (
    ("deployment.registry", None, "every SQL store, DagsHub included, has a Model Registry; delete the key"),
    ("fine_tuning.gradient_checkpointing", "auto", "choose always (less memory, more time) or never"),
)


class Section(BaseModel):
    """A part of params.yaml: immutable, strictly typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataParams(Section):
    """Where the raw conversations are and how they are split; fractions are of all rows."""

    path: Text
    instruction_column: Text
    response_column: Text
    intent_column: Text
    messages_column: Text
    system_prompt: str
    max_bad_rows: Annotated[int, Field(ge=0)]
    validation_fraction: Fraction
    evaluation_fraction: Fraction
    seed: int


class PocketParams(Section):
    """Shape and training of the stand-in base model."""

    vocabulary: Annotated[int, Field(ge=256)]
    hidden_size: Count
    layers: Count
    heads: Count
    context: Count
    epochs: Count
    batch_size: Count
    learning_rate: Annotated[float, Field(gt=0)]
    seed: int


class ModelParams(Section):
    """The base model and the precision in which a merged model is scored and released."""

    base_model: Text
    revision: Text
    release_dtype: Literal["float32", "bfloat16", "float16"]
    pocket: PocketParams


class LoraParams(Section):
    """PEFT's LoraConfig, as far as it is ours to choose."""

    r: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[list[Text], Field(min_length=1)]


class FineTuningParams(Section):
    """One training run; max_length counts tokens."""

    lora: LoraParams
    epochs: Count
    batch_size: Count
    gradient_accumulation_steps: Count
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    max_length: Annotated[int, Field(ge=16)]
    precision: Literal["auto", "bfloat16", "float32"]
    batches: Literal["padded", "end_to_end"]
    find_batch_size: bool
    gradient_checkpointing: Literal["always", "never"]
    quantization: Literal["none", "4bit"]
    compile: bool
    seed: int


class EvaluationParams(Section):
    """Greedy generation; tokens_per_batch counts prompts and room for answers, max_rows 0 means the whole split."""

    tokens_per_batch: Count
    max_new_tokens: Count
    max_rows: Annotated[int, Field(ge=0)]


class HuggingFaceParams(Section):
    """The Hub repository of the released model; deadline_seconds bounds one upload."""

    model_id: Text
    push_to_hub: bool
    create_model_card: bool
    private: bool
    deadline_seconds: Count

    @field_validator("model_id")
    @classmethod
    def _is_repo_id(cls, value: str) -> str:
        if not _REPO_ID.fullmatch(value) or ".." in value or "--" in value or value.endswith(".git"):
            raise ValueError(f"{value!r} is not a Hub repository; expected owner/name")
        return value


class WeightedScoringParams(Section):
    """Weights of the score: exactly the five metrics, none negative, sum 1 within 1e-6."""

    weights: dict[str, Annotated[float, Field(ge=0, le=1)]]

    @field_validator("weights")
    @classmethod
    def _name_the_metrics_and_sum_to_one(cls, value: dict[str, float]) -> dict[str, float]:
        if set(value) != set(METRICS):
            wrong = ", ".join(sorted(set(value) ^ set(METRICS)))
            raise ValueError(f"must name exactly {', '.join(METRICS)}; missing or unknown: {wrong}")
        total = math.fsum(value.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"sum is {total:g}, expected 1.0")
        return {name: value[name] for name in METRICS}


class GuardParams(Section):
    """Limits beside the score; shares are of the evaluated rows."""

    least_rows: Count
    metric_floors: dict[Metric, Unit]
    largest_drops: dict[Metric, Unit]
    largest_empty_share: Unit
    largest_truncated_share: Unit
    largest_overlap: Unit


class DeploymentParams(Section):
    """The gate's policy and where a promotion goes."""

    min_improvement_threshold: Unit
    model_registry_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    significance: Literal["report", "require"]
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    guards: GuardParams
    force_requires_reason: bool
    promoting_branches: list[Text]
    verified_rows: Count
    keep_versions: Annotated[int, Field(ge=0)]
    huggingface: HuggingFaceParams
    weighted_scoring: WeightedScoringParams


class MlflowParams(Section):
    """The tracking server; deadline_seconds bounds everything the gate asks of it."""

    tracking_uri: Text
    experiment_name: Text
    deadline_seconds: Count


class SpaceParams(Section):
    """The bundle that is served; rows 0 means every row of the evaluation split."""

    enabled: bool
    weights: Annotated[list[Literal["int8", "int4", "safetensors"]], Field(min_length=1)]
    max_score_drop: Unit
    rows: Annotated[int, Field(ge=0)]


class Params(Section):
    """All of params.yaml, its profile applied."""

    profile: Text
    launcher: Text
    data: DataParams
    model: ModelParams
    fine_tuning: FineTuningParams
    evaluation: EvaluationParams
    deployment: DeploymentParams
    mlflow: MlflowParams
    space: SpaceParams


class _Constructor(SafeConstructor):
    """The safe subset of YAML without the types that no parameter has."""

    def refuse(self, node: Node) -> NoReturn:
        """Raise ConstructorError with the line of the value."""
        kind = str(node.tag).rpartition(":")[2]
        raise ConstructorError(None, None, f"a parameter is no {kind}; put text in quotes", node.start_mark)


for _kind in ("timestamp", "binary", "set", "omap", "pairs"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _Constructor.refuse)


def load_params(path: Path, overrides: Mapping[str, Any] | None = None, *, profile: str | None = None) -> Params:
    """The parameters in a YAML file, its profile and then the overrides laid over it, validated whole.

    A profile takes the place of the file's own, as `dvc exp run -S profile=` does. Raises InvalidParams with the line
    for a missing or malformed file, a key given twice, a date, a Python tag or a wrong value.
    """
    values = read_values(path)
    return parse({**values, "profile": profile} if profile else values, overrides or {})


def read_values(path: Path) -> dict[str, Any]:
    """The content of the file as it stands there; raises InvalidParams if it is not a mapping in YAML."""
    yaml = YAML(typ="safe")
    yaml.Constructor = _Constructor
    try:
        values = yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidParams(f"{path}: {error.strerror}; give the parameter file with --config") from None
    except RecursionError:
        raise InvalidParams(f"{path}: nested too deeply; correct the file") from None
    except YAMLError as error:
        raise InvalidParams(f"{path}{_yaml_problem(error)}; correct the file") from None
    except (ValueError, KeyError) as error:  # of bytes that are not UTF-8, or a value that its tag does not fit
        raise InvalidParams(f"{path}: {error}; correct the file") from None
    if not isinstance(values, dict):
        raise InvalidParams(f"{path}: expected a mapping at the top, found {type(values).__name__}")
    return values


def parse(mapping: Mapping[str, Any], overrides: Mapping[str, Any]) -> Params:
    """Params from the content of params.yaml, the chosen profile laid over it, and the overrides (flags) over that.

    Raises InvalidParams, naming the first offending key, for anything unknown, missing or out of range.
    """
    values = dict(mapping)
    profiles = values.pop("profiles", None)
    if not isinstance(profiles, dict):
        raise InvalidParams("params.yaml: profiles: expected a mapping of profile names; restore the key")
    _refuse_removed(values, where="")
    name = values.get("profile")
    if name != BASE_PROFILE:
        if not isinstance(name, str) or name not in profiles:
            known = ", ".join([BASE_PROFILE, *profiles])
            raise InvalidParams(f"params.yaml: profile: {name!r} is unknown; choose one of {known}")
        _refuse_removed(profiles[name], where=f"profiles.{name}.")
        values = overlay(values, profiles[name], where=f"profiles.{name}")
    params = validate(Params, values, where="params.yaml")  # on its own: a flag does not excuse a wrong file
    if not overrides:
        return params
    return validate(Params, overlay(values, overrides, where="flags"), where="flags")


def _refuse_removed(values: object, *, where: str) -> None:
    """Raise InvalidParams for a key or value of an earlier version; `where` is the prefix of the keys."""
    for path, value, instead in _REMOVED:
        found = values
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None and value in (None, found):
            gone = path if value is None else f"{path}: {value}"
            raise InvalidParams(f"params.yaml: {where}{gone} is gone: {instead}")


def overlay(base: Mapping[str, Any], changes: object, *, where: str) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section; a key that base lacks raises InvalidParams."""
    if not isinstance(changes, Mapping):
        raise InvalidParams(f"params.yaml: {where}: expected a mapping")
    merged = dict(base)
    for key, value in changes.items():
        if key not in base:
            raise InvalidParams(f"params.yaml: {where}.{key}: unknown key; a profile only changes keys that exist")
        nested = isinstance(base[key], dict)
        merged[key] = overlay(base[key], value, where=f"{where}.{key}") if nested else value
    return merged


def validate(model: type[M], values: Mapping[str, Any], *, where: str) -> M:
    """`values` as `model`; the first problem becomes an InvalidParams `where: key: what`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidParams(f"{where}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first problem of a validation as `dotted.key: what, found value`, on one line."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    text = problem["msg"].removeprefix("Value error, ")
    found = f", found {problem['input']!r}"[:80] if problem["type"] not in ("missing", "value_error") else ""
    texts = {"missing": "required key is missing", "extra_forbidden": "unknown key",
             "string_type": "expected text in quotes", "bool_type": "expected true or false"}
    return (f"{key}: " if key else "") + texts.get(problem["type"], text) + found


def _yaml_problem(error: YAMLError) -> str:
    """The line of an error, and what is wrong there."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f": {str(error).splitlines()[0]}"
    problem = str(error.problem)
    if isinstance(error, DuplicateKeyError):
        problem = problem.partition(" with value ")[0]
    return f":{error.problem_mark.line + 1}: {problem}"
