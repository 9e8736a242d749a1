"""The fits find laws that are known, exactly where nothing hides them and within their intervals where noise does."""

import numpy as np
import pytest

from lpm_jax.scaling import fit as fit_module
from lpm_jax.scaling import laws
from lpm_jax.scaling.fit import fit, frontier

COMPUTE = np.geomspace(1e12, 3e13, 7)
SIZES, TOKENS = np.repeat([6e5, 2.6e6, 9e6], 4), np.tile([1e5, 2e5, 4e5, 8e5], 3)


def runs(noise: float = 0.0, clips: int = 200, seed: int = 0) -> list[dict]:
    """A study of twelve runs that keep ``L(N, D)`` with compute ``6 N D``; every clip with noise of its own."""
    rng = np.random.default_rng(seed)
    loss = 0.2 + 20 * SIZES**-0.35 + 15 * TOKENS**-0.4
    return [
        {
            "name": f"{n:.0f}", "steps": int(d / 1e3), "seed": 0, "flops": 6 * n * d, "blocks": n, "tokens": d,
            "clips": value * (1 + noise * rng.normal(size=clips)),
        }
        for n, d, value in zip(SIZES, TOKENS, loss, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("E, alpha", [(0.2, 0.3), (0.02, 0.8), (0.9, 0.15)])
def test_a_law_of_compute_is_found_exactly(E, alpha):
    loss = E + 0.5 * (COMPUTE / 1e12) ** -alpha
    law = fit(COMPUTE[:, None], loss, np.ones_like(loss))
    assert (float(law.E), float(law.exponents[0])) == (pytest.approx(E, rel=1e-4), pytest.approx(alpha, rel=1e-4))
    assert float(law.scales[0]) == pytest.approx(0.5 * 1e12**alpha, rel=1e-2)
    np.testing.assert_allclose(law(np.array([[1e15]])), E + 0.5 * 1e3**-alpha, rtol=1e-4)


def test_a_law_of_size_and_data_is_found_exactly():
    found = laws.points(runs(clips=2))
    law = laws.size_law(found)[0]
    np.testing.assert_allclose([law.E, *law.exponents], [0.2, 0.35, 0.4], rtol=1e-3)
    np.testing.assert_allclose(law.scales, [20, 15], rtol=1e-2)
    told = laws.describe_size(found)
    assert told["best_size_exponent"] == pytest.approx(0.4 / 0.75, rel=1e-3)
    assert told["largest_residual"] < 1e-5


def test_noise_stays_within_the_intervals():
    """Of eight studies with noise the 95 % intervals hold the true exponents in at least seven, and are no excuse."""
    hits, widths = np.zeros(2), []
    for seed in range(8):
        told = laws.describe_size(laws.points(runs(noise=0.02, seed=seed)))
        for j, (name, true) in enumerate((("alpha", 0.35), ("beta", 0.4))):
            low, high = told[f"{name}_interval"]
            hits[j] += low <= true <= high
            widths.append(high - low)
    assert (hits >= 7).all() and 0.005 < np.median(widths) < 0.1


def test_one_wild_run_does_not_bend_the_law(monkeypatch):
    loss = 0.2 + 0.5 * (COMPUTE / 1e12) ** -0.3
    wild = loss * np.array([1, 1, 1, 1, 1, 1.3, 1])
    others = [0, 1, 2, 3, 4, 6]

    def off() -> float:
        law = fit(COMPUTE[:, None], wild, np.ones_like(loss))
        return float(np.abs(np.log(law(COMPUTE[:, None]) / loss))[others].max())

    assert off() < 0.02
    monkeypatch.setattr(fit_module, "HUBER", 10.0)  # plain least squares
    assert off() > 0.05
    weight = (np.arange(7) != 5).astype(float)
    assert float(fit(COMPUTE[:, None], wild, weight).exponents[0]) == pytest.approx(0.3, rel=1e-3)


def test_many_rows_are_fitted_as_one_by_one():
    rng = np.random.default_rng(0)
    rows = 0.3 + 0.5 * (COMPUTE / 1e12) ** -np.array([[0.2], [0.5]]) * np.exp(0.01 * rng.normal(size=(2, 7)))
    weight = np.ones_like(rows)
    together = fit(COMPUTE[:, None], rows, weight)
    for i in range(2):
        alone = fit(COMPUTE[:, None], rows[i], weight[i])
        np.testing.assert_allclose([alone.E, *alone.exponents], [together.E[i], *together.exponents[i]], rtol=1e-6)
    near = fit(COMPUTE[:, None], rows[:1], weight[:1], near=alone)  # from another law to the same end
    np.testing.assert_allclose(near.exponents[0], together.exponents[0], rtol=1e-3)


def test_frontier():
    compute = np.array([1.0, 2, 3, 3, 4, 5])
    loss = np.array([1.0, 1.2, 0.8, 0.7, 0.7, 0.6])
    assert frontier(compute, loss).tolist() == [True, False, False, True, True, True]
    assert frontier(compute, np.stack([loss, loss[::-1]]))[1].tolist() == [True, False, False, False, False, False]


def test_the_largest_run_is_foreseen():
    told = laws.foresee(laws.points(runs(clips=2)))
    assert told["run"] == f"{SIZES[-1]:.0f} {TOKENS[-1] / 1e3:.0f}" and told["on_frontier"]
    assert abs(told["size"]["error"]) < 1e-4
    assert abs(told["compute"]["error"]) < 0.05  # the frontier of a coarse grid is a law of compute but roughly
    broken = runs(clips=2)
    broken[-1]["clips"] = broken[-1]["clips"] * 1.2
    told = laws.foresee(laws.points(broken))
    assert told["size"]["error"] == pytest.approx(1 / 1.2 - 1, rel=1e-2)


def test_too_few_runs_give_no_law_but_a_reason():
    few = runs()[:3]
    told = laws.analyse(few)
    assert told["compute"]["missing"] == "expected at least 4 runs on the frontier, found 3"
    assert told["size"]["missing"].endswith("found 3 runs of 1 sizes and 3 amounts of data")
    assert "missing" in told["held_back"]["compute"]
    assert laws.analyse(few[:1])["held_back"]["measured"] == pytest.approx(0.2, rel=2)


def test_seeds_count_as_one_run():
    one, other = runs()[0], runs(noise=0.1)[0] | {"seed": 1}
    found = laws.points([one, other])
    assert found.labels == ["600000 100"]
    np.testing.assert_allclose(found.clips[0], (one["clips"] + other["clips"]) / 2)


def test_left_out_spans_the_law():
    found = laws.points(runs(noise=0.1))
    low, high = laws.left_out(found)
    assert low < float(laws.compute_law(found)[0].exponents[0]) < high
