"""Forged answers are among those that a release must give again, whatever the forger knows of the rule."""

import numpy as np
import pytest

from benchmarks import forged_answers, gate_noise

ROWS, SAMPLES, TRIES = 120, 6, 40
WORDS = [f"w{number}" for number in range(20)]


@pytest.fixture(scope="module")
def references() -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, 16)) for _ in range(ROWS)]


@pytest.fixture(scope="module")
def pool(references: list[str]) -> gate_noise.Pool:
    """Answers that are partly right, as those of a small model are."""
    rng = np.random.default_rng(2)
    return gate_noise.make_pool(references, [
        [" ".join(rng.choice(WORDS) if rng.random() < 0.4 else word for word in text.split()) for _ in range(SAMPLES)]
        for text in references])


@pytest.mark.parametrize("strategy", ["fewest", "20", "60", "all"])
def test_a_gain_that_was_forged_is_found(strategy: str, pool: gate_noise.Pool, references: list[str]) -> None:
    found, sizes = forged_answers.run(pool, forged_answers.perfect_answers(references), strategy, TRIES)
    assert found == TRIES
    assert max(sizes) == {"fewest": max(sizes), "all": ROWS}.get(strategy, int(sizes[0]))


@pytest.mark.parametrize("strategy", ["fewest", "20", "all", "copies"])
def test_the_challenger_is_forged_to_just_above_the_threshold(strategy: str, pool: gate_noise.Pool,
                                                             references: list[str]) -> None:
    rng = np.random.default_rng(3)
    rivals = None
    while rivals is None:
        rivals = forged_answers.draw(pool, forged_answers.perfect_answers(references), rng)
    honest = forged_answers.score(rivals.challenger) - forged_answers.score(rivals.champion)
    assert honest == pytest.approx(-forged_answers.BELOW, abs=1e-9)
    made = forged_answers.attack(strategy, rivals, rng)
    assert made
    gain = forged_answers.score(made[0]) - forged_answers.score(rivals.champion)
    assert gain == pytest.approx(gate_noise.THRESHOLD, abs=1e-6)


def test_evenly_spaced_rows_would_not_find_what_is_forged_beside_them(pool: gate_noise.Pool,
                                                                       references: list[str]) -> None:
    rng, perfect = np.random.default_rng(4), forged_answers.perfect_answers(references)
    spread = {place * ROWS // 8 for place in range(8)}
    others = np.array([place for place in range(ROWS) if place not in spread])
    rivals = None
    while rivals is None:
        rivals = forged_answers.draw(pool, perfect, rng)
    made = forged_answers.forge(rivals, perfect, others[:30], forged_answers.evenly(30))
    assert made
    assert spread.isdisjoint(made[1].tolist())
    assert forged_answers.caught(*made, rivals.champion, rng)
