"""When compressed weights are SAFE: no score that falls too far, no more answers that are empty or go round."""

import pytest

pytestmark = pytest.mark.usefixtures("modules_of_space")


@pytest.mark.parametrize(("score", "empty", "looping", "said"), [
    (0.29, 0.0, 0.1, []),  # exactly the largest drop, which floats would not keep
    (0.35, 0.0, 0.0, []),
    (0.289999999, 0.0, 0.1, ["the score falls by 0.0100, more than 0.01"]),
    (0.3, 0.01, 0.1, ["1.0% of the answers are empty, 0.0% of the released model's"]),
    (0.3, 0.0, 0.2, ["20.0% of the answers are looping, 10.0% of the released model's"]),
])
def test_the_score_may_fall_by_the_largest_drop_and_no_share_may_rise(
    score: float, empty: float, looping: float, said: list[str]
) -> None:
    from bundling.comparison import ScoredAnswers, judge

    released = ScoredAnswers((), {}, 0.3, 0.0, 0.1, ())
    assert judge(released, ScoredAnswers((), {}, score, empty, looping, ()), 0.01) == said


@pytest.mark.parametrize(("tokens", "looping"), [
    ([7] * 24, True), ([7] * 23, False), ([1, 2, 3, *[4, 5] * 12], True), (list(range(30)) * 3, True),
    (list(range(30)) * 2, False), (list(range(100)), False), ([*[4, 5] * 12, 9], False), ([], False),
])
def test_an_answer_loops_where_it_ends_in_one_run_three_times_over(tokens: list[int], looping: bool) -> None:
    from bundling.comparison import loops

    assert loops(tokens) == looping
