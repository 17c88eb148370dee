"""A promotion's release from end to end: merged, described, verified, and the same bytes for the same decision."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

from scripts.commands import assemble as assembly
from src.core.params import load_params
from src.core.records import CHAMPION_FILE, RELEASE_DIR, ChampionFile, Datasets
from src.decisions.record import Request
from src.evaluation.metrics import RowStatistics
from src.evaluation.predictions import Prediction, VerifiedRows
from src.evaluation.significance import score_intervals, seed_from
from src.model_selection import Policy, Reason
from src.promotion import release
from tests.fakes import tiny_model
from tests.fakes.history_store import write_params
from tests.promotion.test_model_card import decision, evidence, report_of
from tests.promotion.test_release import scored
from utils import json_utils
from utils.results import Inputs

PARAMS = Path(__file__).parents[2] / "params.yaml"
FIRST = decision(reason=Reason.FIRST_MODEL, gain=None)
EVALUATIONS = Path("results/evaluations")


@pytest.fixture
def request_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A scored challenger in results/, in float32, that waits for its release."""
    monkeypatch.chdir(tmp_path)
    tiny_model.write_models(tmp_path)
    model, split = tiny_model.fine_tuned(tmp_path), tiny_model.SPLIT
    report = report_of(model)
    generation = report.contract.generation.model_copy(update={"max_new_tokens": 16})
    report = report.model_copy(update={"contract": report.contract.model_copy(update={"generation": generation})})
    json_utils.write_object(Path("results/base_model.json"), tiny_model.base_ref(tmp_path).model_dump())
    json_utils.write_object(Path("results/data/datasets.json"),
                            Datasets(raw=split, train=split, validation=split, evaluation=split).model_dump())
    json_utils.write_lines(EVALUATIONS / "predictions.jsonl", [row.model_dump() for row in scored(Path("results"))])
    policy = Policy(dict(report.weights), Decimal("0.001"), require_significance=False)
    return Request(report=report, model=model, policy=policy, model_name="shop", force=False,
                   actor="me", reason="", git_commit="none", ci_url=None, tracking_uri="")


def assemble(request: Request, *decided: object, **deployment: object) -> dict[str, str]:
    """The manifest of the release for a decision."""
    params = load_params(write_params(Path(), PARAMS, **deployment))
    made = decided[0] if decided else FIRST
    given = Prediction.load_lines(EVALUATIONS / "predictions.jsonl")
    assembly.assemble(params, Inputs(request.report, request.model, EVALUATIONS), made, request,  # type: ignore[arg-type]
                      answers=given, verified=VerifiedRows([0, 1], [4]))
    return release.check_release(RELEASE_DIR)


def test_a_decision_that_was_taken_again_changes_the_card_and_nothing_else(request_for: Request) -> None:
    first = assemble(request_for)
    assert assemble(request_for) == first
    again = assemble(request_for, decision(evidence=evidence()))
    assert [path for path in first if first[path] != again[path]] == [release.CARD]
    assert "(`improved`)" in (RELEASE_DIR / release.CARD).read_text()
    assert assemble(request_for) == first


def test_a_release_says_which_model_it_is_and_how_it_scored(request_for: Request) -> None:
    files, report = assemble(request_for), request_for.report
    said = ChampionFile.load(RELEASE_DIR / CHAMPION_FILE)
    assert CHAMPION_FILE in files
    assert (said.key, said.model_digest) == (request_for.key, report.model_digest)
    assert (said.model_name, said.contract, said.metrics) == ("shop", report.contract_digest, report.metrics)
    assert said.base_model == request_for.model.base_model.name
    assert (RELEASE_DIR / CHAMPION_FILE).read_text() == said.text()


def test_the_card_has_the_intervals_of_the_report_page(request_for: Request) -> None:
    assemble(request_for)
    weights, contract = request_for.policy.weights, request_for.report.contract_digest
    statistics = RowStatistics.from_rows([row.stats for row in scored(Path("results"))])
    expected = score_intervals(statistics, weights=weights, confidence=0.95, seed=seed_from(contract))
    header = yaml.safe_load((RELEASE_DIR / release.CARD).read_text().split("---\n")[1])
    found = [metric["args"] for metric in header["model-index"][0]["results"][0]["metrics"]]
    assert [(args["low"], args["high"]) for args in found] == list(expected.values())


def test_the_card_states_the_size_of_the_release_and_what_the_parameters_state(request_for: Request) -> None:
    settings = yaml.safe_load(PARAMS.read_bytes())["deployment"]["huggingface"]
    assemble(request_for, huggingface={**settings, "language": ["de"], "license": "mit"})
    weights = load_file(RELEASE_DIR / "model.safetensors")
    text = (RELEASE_DIR / release.CARD).read_text()
    assert f" ({sum(tensor.size for tensor in weights.values()):,}), float32 |" in text
    context = json.loads((RELEASE_DIR / "config.json").read_text())["max_position_embeddings"]
    assert f"| context length | {context} tokens |" in text
    header = yaml.safe_load(text.split("---\n")[1])
    assert (header["language"], header["license"]) == (["de"], "mit")


def test_without_a_card_there_are_no_evaluation_results_either(request_for: Request) -> None:
    settings = yaml.safe_load(PARAMS.read_bytes())["deployment"]["huggingface"]
    files = assemble(request_for, huggingface={**settings, "create_model_card": False})
    assert not {release.CARD, release.EVAL_RESULTS} & files.keys()
