"""params.yaml as types: what is refused, what a profile and the flags change, and the defaults of absent keys."""

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.utils._validators import validate_repo_id
from pydantic import BaseModel

from src.core import params as params_module
from src.core import records
from src.core.errors import InvalidParams
from src.core.params import METRICS, Params, parse
from src.data import rows
from src.evaluation import predictions
from src.ledger import slots

ROOT = Path(__file__).parents[2]
SHIPPED: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
WEIGHTS = "deployment.weighted_scoring.weights"
THRESHOLD = "deployment.min_improvement_threshold"


def shipped(**changes: object) -> dict[str, Any]:
    """params.yaml with values changed; dots of the key are written `__`, and `...` takes a key away."""
    values = copy.deepcopy(SHIPPED)
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = values
        for name in sections:
            section = section[name]
        section[key] = value
        if value is ...:
            del section[key]
    return values


def refusal(values: dict[str, Any], overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(InvalidParams) as caught:
        parse(values, overrides or {})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", ["colour", "data__colour", "deployment__huggingface__colour"])
def test_an_unknown_key_is_named(path: str) -> None:
    assert refusal(shipped(**{path: 1})) == f"params.yaml: {path.replace('__', '.')}: unknown key, found 1"


PASTED = """
deployment:
  min_improvement_threshold: 0.02
  model_registry_name: my-bot
  huggingface:
    model_id: shop/bot
    push_to_hub: true
    create_model_card: false
  weighted_scoring:
    weights: {bleu1: 0.2, bleu2: 0.2, bleu3: 0.2, bleu4: 0.2, rougeL_precision: 0.2}
"""


@pytest.mark.parametrize("around", [SHIPPED, {}], ids=["in the shipped file", "alone"])
def test_the_documented_deployment_block_works_as_it_is_pasted(around: dict[str, Any]) -> None:
    block = yaml.safe_load(PASTED)
    found, untouched = parse({**around, **block}, {}), parse(shipped(), {})
    assert found.deployment.model_dump(include=block["deployment"].keys() - {"huggingface"}) == {
        key: value for key, value in block["deployment"].items() if key != "huggingface"}
    given = {"model_id": "shop/bot", "push_to_hub": True, "create_model_card": False}
    assert found.deployment.huggingface == untouched.deployment.huggingface.model_copy(update=given)
    assert found.deployment.guards == untouched.deployment.guards
    assert found.model_copy(update={"deployment": untouched.deployment}) == untouched


def test_the_block_has_every_key_of_its_section_that_dvc_yaml_lists() -> None:
    block, stages = yaml.safe_load(PASTED), yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    listed = {key for stage in stages.values() for key in stage["params"] if key.startswith("deployment.")}
    assert listed
    assert {key.split(".")[1] for key in listed} <= block["deployment"].keys()


@pytest.mark.parametrize("path", ["data", "model.pocket.seed", WEIGHTS, "deployment", "evaluation.max_rows", "profile",
                                  "deployment.guards.largest_overlap", "profiles", "space"])
def test_an_absent_key_takes_the_shipped_value_under_flags_and_profiles_too(path: str) -> None:
    without, flags = {path.replace(".", "__"): ...}, {"deployment": {"min_improvement_threshold": 0.1}}
    assert parse(shipped(**without), {}) == parse(shipped(), {})
    assert parse(shipped(**without), flags) == parse(shipped(), flags)
    if not path.startswith("profile"):
        tiny = {"profile": "tinyllama"}
        assert parse(shipped(**without, **tiny), {}) == parse(shipped(**tiny), {})


def test_the_defaults_are_the_shipped_values_to_the_last_key() -> None:
    shown = {key: value for key, value in SHIPPED.items() if key != "profiles"}
    assert Params().model_dump() == shown
    assert [f"{c.__name__}.{name}" for c in models(params_module) for name, field in c.model_fields.items()
            if field.is_required()] == []


def test_every_problem_of_a_file_is_named_in_one_run() -> None:
    values = shipped(colour=1, data__path="", deployment__treshold=0.1, deployment__registry="mlflow", space=None,
                     profile="tinyllama", profiles__tinyllama__evaluation__max_rows="all",
                     profiles__tinyllama__model__colour=1)
    message = refusal(values)
    assert message.startswith("params.yaml: 7 problems: ")
    for said in ("colour: unknown key, found 1;", "data.path: String should have at least 1 character, found '';",
                 "deployment.treshold: unknown key, found 0.1;", "deployment.registry is gone: every SQL store",
                 "space: expected a mapping, found None;", "profiles.tinyllama.model.colour: unknown key, found 1",
                 "profiles.tinyllama.evaluation.max_rows: Input should be a valid integer, found 'all'"):
        assert said in message


def test_a_profile_may_fill_a_mapping_that_is_empty_as_shipped() -> None:
    values = shipped(profile="tinyllama", profiles__tinyllama__deployment__guards={"metric_floors": {"bleu4": 0.2}})
    assert parse(values, {}).deployment.guards.metric_floors == {"bleu4": 0.2}


@pytest.mark.parametrize(
    ("path", "value"),
    [("data__path", 3), ("data__path", ""), ("data__seed", "20"), ("data__seed", 1.5), ("data__seed", True),
     ("data__max_bad_rows", -1), ("data__validation_fraction", 0), ("data__evaluation_fraction", 0.9),
     ("model__release_dtype", "float8"), ("model__pocket__layers", 0), ("fine_tuning__lora__target_modules", []),
     ("fine_tuning__lora__target_modules", "q_proj"), ("fine_tuning__learning_rate", "2e-3"),
     ("fine_tuning__precision", "fp16"), ("evaluation__max_rows", None), ("deployment__force_requires_reason", "no"),
     ("deployment__huggingface__push_to_hub", 1), ("deployment__promoting_branches", "main"),
     ("deployment__model_registry_name", "a/b"), ("deployment__model_registry_name", "' or 1=1"),
     ("mlflow__deadline_seconds", 0), ("data", None), ("data", [])],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_name(path: str, value: object) -> None:
    assert refusal(shipped(**{path: value})).startswith(f"params.yaml: {path.replace('__', '.')}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, -1e-9, "0.001", 5, 1.01, True, None])
def test_a_threshold_that_is_no_gain_is_refused(value: object) -> None:
    assert refusal(shipped(deployment__min_improvement_threshold=value)).startswith(f"params.yaml: {THRESHOLD}: ")


@pytest.mark.parametrize("value", [0, 0.0, 0.001, 1, 1.0])
def test_a_threshold_from_0_to_1_is_taken(value: float) -> None:
    assert parse(shipped(deployment__min_improvement_threshold=value), {}).deployment.min_improvement_threshold == value


def weights(**changes: float) -> dict[str, float]:
    return {**SHIPPED["deployment"]["weighted_scoring"]["weights"], **changes}


@pytest.mark.parametrize(
    ("value", "said"),
    [(weights(bleu1=0.05), "sum is 0.95, expected 1.0"),
     (weights(bleu1=0.30), "sum is 1.2, expected 1.0"),
     (weights(bleu1=0.10001), "sum is 1.00001, expected 1.0"),
     (weights(bleu1=-0.1, bleu2=0.35), "greater than or equal to 0"),
     (weights(bleu1=float("nan")), "finite number"),
     ({**weights(), "meteor": 0.0}, "missing or unknown: meteor"),
     ({k: v for k, v in weights(bleu4=0.5).items() if k != "bleu1"}, "missing or unknown: bleu1"),
     ({"BLEU1": 0.1, **{k: v for k, v in weights().items() if k != "bleu1"}}, "missing or unknown: BLEU1, bleu1"),
     ({}, "must name exactly bleu1, bleu2, bleu3, bleu4, rougeL_precision"),
     ({**weights(), "bleu1": "0.1"}, "valid number")],
)
def test_weights_that_are_no_weighting_of_the_metrics_are_refused(value: object, said: str) -> None:
    message = refusal(shipped(deployment__weighted_scoring__weights=value))
    assert message.startswith(f"params.yaml: {WEIGHTS}")
    assert said in message


@pytest.mark.parametrize("off", [-1e-7, 0.0, 1e-7, -9e-7])
def test_weights_may_miss_the_sum_of_1_by_rounding(off: float) -> None:
    found = parse(shipped(deployment__weighted_scoring__weights=weights(bleu1=0.1 + off)), {})
    assert tuple(found.deployment.weighted_scoring.weights) == METRICS


BAD_REPOS = ["", "a", "a/b/c", "https://huggingface.co/a/b", "a b/c", "a/b c", "a/b;rm", "a/b\n", "/b", "a/", "-a/b",
             ".a/b", "a/.b", "a/b.", "a/b-", "a/b.git", "a/b..c", "a/b--c", "a/" + "b" * 97, "\u00e4/b", "a/b$(id)"]
GOOD_REPOS = ["ShenghaoYummy/TinyLlama-ECommerce-Chatbot", "a/b", "A1/b_c.d-e", "a/" + "b" * 96, "a/b_"]


@pytest.mark.parametrize("repo", BAD_REPOS)
def test_what_is_no_hub_repository_is_refused_in_the_file_and_as_a_flag(repo: str) -> None:
    assert "deployment.huggingface.model_id: " in refusal(shipped(deployment__huggingface__model_id=repo))
    message = refusal(shipped(), {"deployment": {"huggingface": {"model_id": repo}}})
    assert message.startswith("flags: deployment.huggingface.model_id: ")


@pytest.mark.parametrize("repo", GOOD_REPOS)
def test_a_repository_that_the_hubs_own_client_accepts_is_taken(repo: str) -> None:
    validate_repo_id(repo)
    assert parse(shipped(deployment__huggingface__model_id=repo), {}).deployment.huggingface.model_id == repo


def test_no_repository_is_taken_that_the_hubs_own_client_refuses() -> None:
    parts = ["a", "-", ".", "_", "git", "1", "\u00e9"]
    for name in (f"o/{x}{y}{z}" for x in parts for y in parts for z in parts):
        try:
            parse(shipped(deployment__huggingface__model_id=name), {})
        except InvalidParams:
            continue
        validate_repo_id(name)


@pytest.mark.parametrize(
    ("values", "said"),
    [(shipped(profile="gpt5"), "profile: 'gpt5' is unknown; choose one of pocket, production, tinyllama"),
     (shipped(profile=None), "profile: None is unknown; choose one of pocket, production, tinyllama"),
     (shipped(profile=["tinyllama"]), "profile: ['tinyllama'] is unknown; choose one of pocket, production, tinyllama"),
     (shipped(profiles=None), "profiles: expected a mapping of profile names; correct the key or delete it"),
     (shipped(profile="tinyllama", profiles__tinyllama__colour=1), "profiles.tinyllama.colour: unknown key"),
     (shipped(profile="tinyllama", profiles__tinyllama__model__colour=1), "profiles.tinyllama.model.colour: unknown"),
     (shipped(profile="tinyllama", profiles__tinyllama=None), "profiles.tinyllama: expected a mapping"),
     (shipped(profile="tinyllama", profiles__tinyllama__model=3), "profiles.tinyllama.model: expected a mapping"),
     (shipped(profile="tinyllama", profiles__tinyllama__fine_tuning__max_length="8"),
      "profiles.tinyllama.fine_tuning.max_length: ")],
)
def test_a_wrong_profile_is_named(values: dict[str, Any], said: str) -> None:
    assert refusal(values).startswith(f"params.yaml: {said}")


@pytest.mark.parametrize(("changes", "said"), [
    ({"deployment__registry": "none"}, "deployment.registry is gone: every SQL store, DagsHub included, has a "),
    ({"deployment__registry": "mlflow"}, "deployment.registry is gone: "),
    ({"fine_tuning__gradient_checkpointing": "auto"}, "fine_tuning.gradient_checkpointing: auto is gone: choose "),
    ({"profile": "tinyllama", "profiles__tinyllama__deployment__registry": "none"},
     "profiles.tinyllama.deployment.registry is gone: "),
    ({"profile": "tinyllama", "profiles__tinyllama__fine_tuning__gradient_checkpointing": "auto"},
     "profiles.tinyllama.fine_tuning.gradient_checkpointing: auto is gone: "),
])
def test_what_an_earlier_version_took_is_refused_with_what_to_do_instead(changes: dict[str, Any], said: str) -> None:
    assert refusal(shipped(**changes)).startswith(f"params.yaml: {said}")


def test_the_file_must_be_right_even_where_a_flag_would_overrule_it() -> None:
    values = shipped(deployment__min_improvement_threshold=-1)
    assert refusal(values, {"deployment": {"min_improvement_threshold": 0.1}}).startswith(f"params.yaml: {THRESHOLD}")


def test_a_profile_changes_what_it_names_and_nothing_else() -> None:
    pocket, tiny = parse(shipped(), {}), parse(shipped(profile="tinyllama"), {})
    assert tiny.model.base_model == "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    assert tiny.fine_tuning.lora.dropout == SHIPPED["profiles"]["tinyllama"]["fine_tuning"]["lora"]["dropout"]
    assert tiny.fine_tuning.lora.r == pocket.fine_tuning.lora.r
    assert tiny.model.pocket == pocket.model.pocket
    assert tiny.deployment.huggingface.push_to_hub is True
    strict = {"min_improvement_threshold": 0.01, "significance": "require"}
    assert tiny.deployment == pocket.deployment.model_copy(update={
        **strict, "model_registry_name": "ecommerce-chatbot-tinyllama", "huggingface": tiny.deployment.huggingface})
    assert parse(shipped(profile="production"), {}) == pocket.model_copy(update={
        "profile": "production", "deployment": pocket.deployment.model_copy(update=strict)})


def test_a_flag_wins_over_profile_and_file() -> None:
    flags = {"deployment": {"min_improvement_threshold": 0.25, "huggingface": {"model_id": "shop/bot"}}}
    for profile in ("pocket", "tinyllama"):
        found = parse(shipped(profile=profile), flags).deployment
        assert (found.min_improvement_threshold, found.huggingface.model_id) == (0.25, "shop/bot")
        assert found.huggingface.create_model_card is True


def test_parsing_leaves_its_input_alone() -> None:
    values = shipped(profile="tinyllama")
    parse(values, {"deployment": {"huggingface": {"model_id": "shop/bot"}}})
    assert values == shipped(profile="tinyllama")


def test_the_shipped_file_holds_the_documented_values() -> None:
    found = parse(shipped(), {})
    assert found.deployment.min_improvement_threshold == 0.001
    assert found.deployment.model_registry_name == "ecommerce-chatbot"
    assert found.deployment.huggingface.model_id == "ShenghaoYummy/TinyLlama-ECommerce-Chatbot"
    assert found.deployment.huggingface.push_to_hub is False
    assert list(found.deployment.weighted_scoring.weights.values()) == [0.10, 0.15, 0.25, 0.40, 0.10]
    assert (found.mlflow.tracking_uri, found.mlflow.experiment_name) == (
        "sqlite:///mlflow.db", "ecommerce-chatbot-evaluation")
    assert found.model.base_model == "pocket"


def models(module: object) -> list[type[BaseModel]]:
    found = (value for _, value in inspect.getmembers(module, inspect.isclass))
    return [c for c in found if issubclass(c, BaseModel) and c.__module__ == module.__name__]  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [records, slots, rows, predictions], ids=lambda m: m.__name__)
def test_no_record_has_a_default_but_none_for_what_an_earlier_version_did_not_write(module: object) -> None:
    assert models(module)
    assert [f"{c.__name__}.{name}" for c in models(module) for name, field in c.model_fields.items()
            if not (field.is_required() or field.default is None)] == []


def test_every_key_of_the_file_is_read() -> None:
    files = [path for name in ("src", "utils", "scripts") for path in (ROOT / name).rglob("*.py")]
    text = "".join(path.read_text() for path in [*files, ROOT / "dvc.yaml"])
    assert [key for key in leaves(SHIPPED) if not re.search(rf'\.{key.rpartition(".")[2]}\b|"{key}"', text)] == []


def leaves(section: dict[str, Any], above: str = "") -> list[str]:
    """Dotted keys without a mapping below them; the weights are read by the names in METRICS, profiles by overlay."""
    found = []
    for key, value in section.items():
        if above + key == "profiles":
            continue
        nested = isinstance(value, dict) and value and above + key != WEIGHTS
        found += leaves(value, f"{above}{key}.") if nested else [above + key]
    return found
