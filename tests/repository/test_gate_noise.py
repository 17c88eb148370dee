import numpy as np
import pytest

from benchmarks import gate_noise
from src.evaluation.metrics import corpus_scores, weight_vector

TEXT = "the parcel comes on friday with a new label and you pay nothing for it at all"
ROWS, SAMPLES = 30, 6


@pytest.fixture(scope="module")
def pool() -> gate_noise.Pool:
    """Answers that are right but for some words."""
    rng = np.random.default_rng(1)
    references = [" ".join(rng.permutation(TEXT.split())) for _ in range(ROWS)]
    answers = [[" ".join(word for word in text.split() if rng.random() > 0.2) for _ in range(SAMPLES)]
               for text in references]
    return gate_noise.make_pool(references, answers)


def test_rows_with_unequally_many_samples_are_refused() -> None:
    with pytest.raises(SystemExit, match="same number of samples"):
        gate_noise.make_pool(["a", "b"], [["a", "b", "c"], ["a", "b"]])


def test_a_model_that_cannot_gain_enough_is_refused() -> None:
    same = gate_noise.make_pool(["a b c d e"], [["a b c d"] * SAMPLES])
    with pytest.raises(SystemExit, match="gains less than"):
        gate_noise.better_model(same)


def test_copies_of_a_model_have_no_true_gain(pool: gate_noise.Pool) -> None:
    assert pool.gain(1, 0.0) == pytest.approx(0, abs=1e-12)


def test_copies_of_a_model_never_give_one_sample_twice(pool: gate_noise.Pool) -> None:
    numbered = gate_noise.Pool(pool.statistics.take(np.arange(ROWS * SAMPLES)), pool.rank)
    numbered.statistics.rouge_l[:] = np.arange(ROWS * SAMPLES)
    ours, theirs = numbered.draw(5000, 1, 0.0, np.random.default_rng(2))
    rows = [drawn.rouge_l.astype(int) // SAMPLES for drawn in (ours, theirs)]
    assert (rows[0] == rows[1]).all()
    assert (ours.rouge_l != theirs.rouge_l).all()


def test_the_better_model_gains_as_much_in_many_draws_as_is_promised(pool: gate_noise.Pool) -> None:
    best_of, share = gate_noise.better_model(pool)
    assert pool.gain(best_of, share) == pytest.approx(gate_noise.TRUE_GAIN, abs=1e-9)
    ours, theirs = (
        weight_vector(gate_noise.WEIGHTS) @ list(corpus_scores(drawn).values())
        for drawn in pool.draw(100_000, best_of, share, np.random.default_rng(3))
    )
    assert ours - theirs == pytest.approx(gate_noise.TRUE_GAIN, abs=0.003)


def test_a_share_has_its_standard_error() -> None:
    assert str(gate_noise.Share.of([True] * 25 + [False] * 75)) == "25.0 +- 4.3 %"


@pytest.mark.parametrize(("kept", "word"), [([True, True], "PASS"), ([True, False], "FAIL")])
def test_a_promise_is_kept_at_every_size_or_not_at_all(
    kept: list[bool], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    share = gate_noise.Share(0.025, 0.005)
    assert gate_noise.verdict("false promotions", [share, share], kept) == (word == "PASS")
    assert capsys.readouterr().out == f"{word} false promotions: 2.5 +- 0.5 %, 2.5 +- 0.5 %\n"


def test_a_series_finds_what_the_gate_itself_would_promote(
    pool: gate_noise.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pair is brought before the gate's own bootstrap, at its own confidence."""
    found = 0
    monkeypatch.setattr(gate_noise, "SERIES_ROWS", 40)
    monkeypatch.setattr(gate_noise, "RESAMPLES", 400)
    levels = [0.6 + 0.3 * (k % 2) for k in range(30)]
    needed = gate_noise.needed_ratios(levels)
    for seed in range(5):
        rng = np.random.default_rng([20, seed])
        drawn = rng.integers(ROWS, size=40) * SAMPLES
        champion, *rivals = map(pool.statistics.take, drawn + rng.integers(SAMPLES, size=(31, 40)))
        gates = [gate_noise.promotes(gate_noise.evidence(rival, champion, confidence=level, seed=seed))
                 for rival, level in zip(rivals, levels, strict=True)]
        assert (gate_noise.gain_ratios(pool, needed, seed) > needed).tolist() == gates
        found += sum(gates)
    assert 5 < found < 100


@pytest.mark.parametrize("confidence", [0.95, 0.99, 0.9998])
def test_an_interval_at_another_confidence_promotes_as_the_gate_would(
    pool: gate_noise.Pool, confidence: float
) -> None:
    rng, model = np.random.default_rng(5), gate_noise.better_model(pool)
    outcomes = set()
    for seed in range(20):
        pair = pool.draw(60, *model, rng)
        usual, asked = (gate_noise.evidence(*pair, confidence=level, seed=seed) for level in (0.95, confidence))
        assert gate_noise.shows(usual, confidence) == gate_noise.promotes(asked)
        outcomes.add(gate_noise.promotes(asked))
    assert outcomes == {True, False} or confidence != 0.95


def test_a_series_that_breaks_its_promise_fails(
    pool: gate_noise.Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate_noise, "LENGTHS", (3, 12))
    monkeypatch.setattr(gate_noise, "RULES", {"anything goes": lambda _: 0.5})
    assert not gate_noise.run_series(pool, 10)
    assert "FAIL a false promotion in a series, at most 5 %: " in capsys.readouterr().out
