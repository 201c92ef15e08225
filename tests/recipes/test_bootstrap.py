"""The bootstrap: determinism, what it resamples, and by simulation how often its intervals hold the truth."""

import numpy as np
import pytest

from recipes.evaluation import bootstrap
from recipes.evaluation.bootstrap import mean_intervals


def evaluations(generator, count, problems, n):
    """Shares of right samples, (problems, count): hard and easy problems, n samples of each; the truth is 2/5."""
    return generator.binomial(n, generator.beta(0.8, 1.2, size=(problems, count))) / n


def test_95_percent_intervals_hold_the_truth_in_95_percent_of_evaluations():
    generator = np.random.default_rng(7)
    held = []
    for seed in range(600):
        _, low, high = mean_intervals(evaluations(generator, 1, 100, 8), resamples=1000, seed=seed)[0]
        held.append(low <= 0.4 <= high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_paired_intervals_hold_the_true_difference():
    generator = np.random.default_rng(11)
    held, narrower = [], []
    for seed in range(400):
        chance = generator.beta(0.8, 1.2, size=(100, 1))
        before = generator.binomial(8, chance) / 8
        after = generator.binomial(8, chance + 0.25 * (1 - chance)) / 8
        _, low, high = mean_intervals(after - before, resamples=1000, seed=seed)[0]
        held.append(low <= 0.25 * 0.6 <= high)
        alone = mean_intervals(np.hstack([before, after]), resamples=200, seed=seed)
        narrower.append(high - low < (alone[:, 2] - alone[:, 1]).max())
    assert 0.92 <= np.mean(held) <= 0.98
    assert np.mean(narrower) > 0.95


def test_samples_of_a_problem_are_not_independent():
    """Drawing single samples would give an interval several times too narrow for problems all right or all wrong."""
    values = np.array([[0.0]] * 50 + [[1.0]] * 50)
    _, low, high = mean_intervals(values)[0]
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)


def test_equal_seeds_give_equal_intervals_whatever_the_chunks(monkeypatch):
    values = evaluations(np.random.default_rng(0), 3, 40, 4)
    whole = mean_intervals(values, resamples=500, seed=3)
    monkeypatch.setattr(bootstrap, "_CHUNK_CELLS", 40 * 7)
    assert np.allclose(mean_intervals(values, resamples=500, seed=3), whole)
    assert not np.allclose(mean_intervals(values, resamples=500, seed=4), whole)


def test_columns_share_their_draws():
    values = evaluations(np.random.default_rng(0), 1, 40, 4)
    both = mean_intervals(np.hstack([values, 1 - values]))
    assert both[0, 1] == pytest.approx(1 - both[1, 2])


def test_no_variance_gives_no_width():
    assert mean_intervals(np.ones((20, 1))).tolist() == [[1.0, 1.0, 1.0]]


def test_no_problems_have_no_mean():
    with pytest.raises(ValueError, match="no problems"):
        mean_intervals(np.empty((0, 2)))
