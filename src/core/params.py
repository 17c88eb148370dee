"""params.yaml as frozen types. A key that the file lacks takes the default here, which is the shipped file's value.

tests/core/test_params.py holds the two equal. No other module has a default of its own.
"""

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
METRIC_NAMES: Mapping[str, str] = {"bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3", "bleu4": "BLEU-4",
                                   "rougeL_precision": "ROUGE-L precision"}
Tokenizer = Literal["13a", "intl", "zh", "char", "ja-mecab", "ko-mecab", "flores101", "flores200"]
TOKENIZERS: tuple[Tokenizer, ...] = get_args(Tokenizer)
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=0.4)]
Unit = Annotated[float, Field(ge=0, le=1)]
M = TypeVar("M", bound=BaseModel)

# What earlier versions took: a key, or one value of a key that stays, and what to do instead.
_REMOVED: tuple[tuple[str, str | None, str], ...] = (
    ("deployment.registry", None, "every SQL store, DagsHub included, has a Model Registry; delete the key"),
    ("deployment.resamples", None, "every interval is of 2000 resamples now; delete the key"),
    *((f"model.pocket.{key}", None, "it is fixed now; delete the key")
      for key in ("vocabulary", "heads", "context", "batch_size", "learning_rate")),
    ("fine_tuning.gradient_checkpointing", "auto", "choose always (less memory, more time) or never"),
)


class Section(BaseModel):
    """A part of params.yaml: immutable, strictly typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataParams(Section):
    """Where the raw conversations are and how they are split; fractions are of all rows."""

    path: Text = "data/customer_support.csv"
    instruction_column: Text = "instruction"
    response_column: Text = "response"
    intent_column: Text = "intent"
    messages_column: Text = "messages"
    system_prompt: str = ""
    max_bad_rows: Annotated[int, Field(ge=0)] = 0
    validation_fraction: Fraction = 0.05
    evaluation_fraction: Fraction = 0.1
    seed: int = 20


class PocketParams(Section):
    """Size and training of the stand-in base model; what is fixed stands in src.models.base_model."""

    hidden_size: Count = 128
    layers: Count = 2
    epochs: Count = 5
    seed: int = 7


class ModelParams(Section):
    """The base model and the precision in which a merged model is scored and released."""

    base_model: Text = "pocket"
    revision: Text = "main"
    release_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    pocket: PocketParams = PocketParams()


class LoraParams(Section):
    """PEFT's LoraConfig, as far as it is ours to choose."""

    r: Count = 16
    alpha: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: Annotated[list[Text], Field(min_length=1)] = [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class FineTuningParams(Section):
    """One training run; max_length counts tokens."""

    lora: LoraParams = LoraParams()
    epochs: Count = 1
    batch_size: Count = 32
    gradient_accumulation_steps: Count = 1
    learning_rate: Annotated[float, Field(gt=0)] = 0.003
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_length: Annotated[int, Field(ge=16)] = 512
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    batches: Literal["padded", "end_to_end"] = "padded"
    find_batch_size: bool = False
    gradient_checkpointing: Literal["always", "never"] = "never"
    quantization: Literal["none", "4bit"] = "none"
    compile: bool = False
    seed: int = 13


class EvaluationParams(Section):
    """Greedy generation; tokens_per_batch counts prompts and room for answers, max_rows 0 means the whole split.

    tokenizer: what BLEU and ROUGE-L count, src.evaluation.tokenizers.
    """

    tokens_per_batch: Count = 8192
    max_new_tokens: Count = 160
    max_rows: Annotated[int, Field(ge=0)] = 0
    tokenizer: Tokenizer = "13a"


class HuggingFaceParams(Section):
    """The Hub repository of the released model; deadline_seconds bounds one upload."""

    model_id: Text = "ShenghaoYummy/TinyLlama-ECommerce-Chatbot"
    push_to_hub: bool = False
    create_model_card: bool = True
    language: list[Annotated[str, Field(pattern=r"^([a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual)$")]] = []
    license: Annotated[str, Field(pattern=r"^[a-z0-9.-]*$")] = ""
    private: bool = True
    deadline_seconds: Count = 3600

    @field_validator("model_id")
    @classmethod
    def _is_repo_id(cls, value: str) -> str:
        if not _REPO_ID.fullmatch(value) or ".." in value or "--" in value or value.endswith(".git"):
            raise ValueError(f"{value!r} is not a Hub repository; expected owner/name")
        return value


class WeightedScoringParams(Section):
    """Weights of the score: exactly the five metrics, none negative, sum 1 within 1e-6."""

    weights: dict[str, Annotated[float, Field(ge=0, le=1)]] = {
        "bleu1": 0.1, "bleu2": 0.15, "bleu3": 0.25, "bleu4": 0.4, "rougeL_precision": 0.1}

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

    least_rows: Count = 1
    metric_floors: dict[Metric, Unit] = {}
    largest_drops: dict[Metric, Unit] = {}
    largest_empty_share: Unit = 1.0
    largest_truncated_share: Unit = 1.0
    largest_overlap: Unit = 1.0
    largest_answer_overlap: Unit = 1.0


class DeploymentParams(Section):
    """The gate's policy and where a promotion goes."""

    min_improvement_threshold: Unit = 0.001
    model_registry_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = "ecommerce-chatbot"
    significance: Literal["report", "require"] = "report"
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    guards: GuardParams = GuardParams()
    force_requires_reason: bool = False
    promoting_branches: list[Text] = []
    verified_rows: Count = 16
    keep_versions: Annotated[int, Field(ge=0)] = 0
    huggingface: HuggingFaceParams = HuggingFaceParams()
    weighted_scoring: WeightedScoringParams = WeightedScoringParams()


class MlflowParams(Section):
    """The tracking server; deadline_seconds bounds everything the gate asks of it."""

    tracking_uri: Text = "sqlite:///mlflow.db"
    experiment_name: Text = "ecommerce-chatbot-evaluation"
    deadline_seconds: Count = 45


class SpaceParams(Section):
    """The bundle that is served; rows 0 means every row of the evaluation split."""

    enabled: bool = False
    weights: Annotated[list[Literal["int8", "int4", "safetensors"]], Field(min_length=1)] = ["int8", "int4"]
    max_score_drop: Unit = 0.01
    rows: Annotated[int, Field(ge=0)] = 0


class Params(Section):
    """All of params.yaml, its profile applied."""

    profile: Text = "pocket"
    launcher: Text = "python"
    data: DataParams = DataParams()
    model: ModelParams = ModelParams()
    fine_tuning: FineTuningParams = FineTuningParams()
    evaluation: EvaluationParams = EvaluationParams()
    deployment: DeploymentParams = DeploymentParams()
    mlflow: MlflowParams = MlflowParams()
    space: SpaceParams = SpaceParams()


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
    return parse({**values, "profile": profile} if profile else values, overrides or {}, file=path)


def check_place(path: Path) -> None:
    """Raise InvalidParams if there is no parameter file: every path is relative to the repository's folder."""
    if not path.exists():
        home = Path(__file__).parents[2]
        where = f" (`cd {home}`)" if (home / "params.yaml").is_file() else ""
        raise InvalidParams(f"{path}: not found in {Path.cwd()}; run it in the repository's folder{where}")


def read_values(path: Path) -> dict[str, Any]:
    """The content of the file as it stands there; raises InvalidParams if it is not a mapping in YAML."""
    yaml = YAML(typ="safe")
    yaml.Constructor = _Constructor
    check_place(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidParams(f"{path}: {error.strerror}; check the file and its permissions") from None
    except RecursionError:
        raise InvalidParams(f"{path}: nested too deeply; correct the file") from None
    except YAMLError as error:
        raise InvalidParams(f"{path}{_yaml_problem(error)}; correct the file") from None
    except (ValueError, KeyError) as error:  # of bytes that are not UTF-8, or a value that its tag does not fit
        raise InvalidParams(f"{path}: {error}; correct the file") from None
    if not isinstance(values, dict):
        raise InvalidParams(f"{path}: expected a mapping at the top, found {type(values).__name__}")
    return values


def parse(mapping: Mapping[str, Any], overrides: Mapping[str, Any], *, file: Path | str = "params.yaml") -> Params:
    """Params from the content of a file, the chosen profile laid over it, and the overrides (flags) over that.

    A key that is absent takes its default. Raises InvalidParams, naming the file, every unknown key and every wrong
    value.
    """
    values = dict(mapping)
    profiles = values.pop("profiles", {})
    known = [BASE_PROFILE, *profiles] if isinstance(profiles, Mapping) else [BASE_PROFILE]
    name, problems = values.get("profile", BASE_PROFILE), []
    if not isinstance(profiles, Mapping):
        problems.append("profiles: expected a mapping of profile names; correct the key or delete it")
    if name not in known:
        problems.append(f"profile: {name!r} is unknown; choose one of {', '.join(known)}")
        values["profile"] = name = BASE_PROFILE
    params, found = _checked(values)
    problems += found
    if name != BASE_PROFILE:
        params, found = _with_profile(params, name, profiles[name])
        problems += found
    if problems:
        raise InvalidParams(f"{file}: {_listed(problems)}")
    return validate(Params, overlay(params.model_dump(), overrides), where="flags") if overrides else params


def _with_profile(params: Params, name: str, changes: object) -> tuple[Params, list[str]]:
    if not isinstance(changes, Mapping):
        return params, [f"profiles.{name}: expected a mapping, found {changes!r:.40}"]
    laid, found = _checked(overlay(params.model_dump(), changes))
    return laid, [f"profiles.{name}.{problem}" for problem in found]


def _checked(values: Mapping[str, Any]) -> tuple[Params, list[str]]:
    """The parameters, or the defaults and every problem of the values."""
    try:
        return Params.model_validate(values), []
    except ValidationError as error:
        return Params(), problems_of(error)


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section."""
    merged = dict(base)
    for key, value in changes.items():
        below = base.get(key)
        nested = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = overlay(below, value) if nested else value  # type: ignore[arg-type] # both are mappings
    return merged


def validate(model: type[M], values: Mapping[str, Any], *, where: str) -> M:
    """`values` as `model`; its problems become one InvalidParams `where: key: what; key: what`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidParams(f"{where}: {_listed(problems_of(error))}") from None


def problems_of(error: ValidationError) -> list[str]:
    """Each problem of a validation as `dotted.key: what, found value`, on one line."""
    return [_problem(dict(problem)) for problem in error.errors(include_url=False)]


def _listed(problems: list[str]) -> str:
    return problems[0] if len(problems) == 1 else f"{len(problems)} problems: {'; '.join(problems)}"


def first_problem(error: ValidationError) -> str:
    """The first of `problems_of`."""
    return problems_of(error)[0]


def _problem(problem: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    for removed, value, instead in _REMOVED:
        if key == removed and value in (None, problem["input"]):
            return f"{key if value is None else f'{key}: {value}'} is gone: {instead}"
    text = str(problem["msg"]).removeprefix("Value error, ")
    found = f", found {problem['input']!r}"[:80] if problem["type"] not in ("missing", "value_error") else ""
    texts = {"missing": "required key is missing", "extra_forbidden": "unknown key",
             "string_type": "expected text in quotes", "bool_type": "expected true or false",
             "model_type": "expected a mapping", "dict_type": "expected a mapping"}
    return f"{key}: " * bool(key) + texts.get(problem["type"], text) + found


def _yaml_problem(error: YAMLError) -> str:
    """The line of an error, and what is wrong there."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f": {str(error).splitlines()[0]}"
    problem = str(error.problem)
    if isinstance(error, DuplicateKeyError):
        problem = problem.partition(" with value ")[0]
    return f":{error.problem_mark.line + 1}: {problem}"
