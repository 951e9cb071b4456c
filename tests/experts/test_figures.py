"""Figures of loads equal those that are written out expert by expert."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from experts.synthetic import layer

from jscale.experts.figures import collapse, dead, effective, figures, gate_mass, imbalance
from jscale.experts.layer import merged, short_names
from jscale.experts.onset import UNEVEN, window


def written_out(chosen: list[float]) -> dict[str, float]:
    """The same without arrays."""
    total, count = sum(chosen), len(chosen)
    mean = total / count
    variance = sum((c - mean) ** 2 for c in chosen) / count
    entropy = -sum(c / total * math.log(c / total) for c in chosen if c)
    return {
        "most": max(chosen) / mean,
        "least": min(chosen) / mean,
        "variation": math.sqrt(variance) / mean,
        "effective": math.exp(entropy) / count,
        "maxvio": (max(chosen) - mean) / mean,
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 3, 8, 128])
def test_figures_are_those_of_the_loads(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = np.floor(rng.lognormal(3.0, 1.5, count))
    found = figures(layer(chosen + (count == 1)))
    for name, value in written_out(list(chosen + (count == 1))).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12), name


def test_a_strongly_skewed_load() -> None:
    """As a lognormal of deviation 1.15 over 128 experts: half of them, as if."""
    quantiles = (np.arange(128) + 0.5) / 128

    chosen = np.exp(1.15 * np.array([NormalDist().inv_cdf(q) for q in quantiles])) * 1000
    found = figures(layer(chosen, tokens=chosen.sum() / 8))
    assert found.effective == pytest.approx(0.51, abs=0.05)
    assert found.variation == pytest.approx(1.28, abs=0.3)
    assert found.collapse > UNEVEN


def test_sums_over_tokens_are_told_as_means() -> None:
    found = figures(layer(np.array([3.0, 1.0]), tokens=2, log_sum=5.0, margin=1.0, dropped=1.0))
    assert (found.log_sum, found.margin, found.dropped) == (2.5, 0.5, 0.25)
    assert found.correction is None
    span = figures(layer(np.ones(2), correction=np.array([-0.5, 0.25]))).correction
    assert span == (-0.5, 0.25)


def test_collapse_goes_from_even_to_the_same_experts() -> None:
    even, same = np.full(8, 50.0), np.array([200.0, 200.0, 0, 0, 0, 0, 0, 0])
    assert collapse(even, 200) == pytest.approx(0)
    assert collapse(same, 200) == pytest.approx(1)
    assert 0 < collapse(even + same, 400) < 1
    assert collapse(np.full(2, 200.0), 200) == 0, "all experts for every token leave no choice"


def test_nothing_routed_is_no_number() -> None:
    found = figures(layer(np.zeros(4), tokens=0))
    assert all(math.isnan(x) for x in (found.most, found.effective, found.collapse, found.dropped))
    assert found.dead == () and imbalance(np.zeros(4), 2) == 1
    assert np.isnan(gate_mass(layer(np.zeros(4), tokens=0))).all()


def test_gate_mass_is_the_mean_weight_of_a_choice() -> None:
    found = gate_mass(layer(np.array([4.0, 0.0]), mass=np.array([1.0, 0.0])))
    assert found[0] == 0.25 and math.isnan(found[1])


def test_dead_experts_are_told_where_chance_does_not_explain_them() -> None:
    assert dead(np.array([1000.0, 1000.0, 4.0, 996.0])) == (2,)
    assert dead(np.array([10.0, 0.0])) == (), "ten tokens say nothing"


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_imbalance_is_of_experts_in_order(devices: int) -> None:
    chosen = np.random.default_rng(0).integers(0, 100, 16).astype(float)
    size = 16 // devices
    each = [sum(chosen[d * size : (d + 1) * size]) for d in range(devices)]
    assert imbalance(chosen, devices) == pytest.approx(max(each) / (sum(each) / devices))
    assert imbalance(chosen, 5) == 1, "not shared"


def test_steps_merge_into_one() -> None:
    some = layer(np.array([1.0, 2.0]), tokens=2, highest=5.0, correction=np.array([0.0, 0.1]))
    more = layer(np.array([3.0, 0.0]), tokens=1, highest=4.0, correction=np.array([0.2, 0.3]))
    both = merged([some, more])
    assert both.chosen.tolist() == [4.0, 2.0] and both.tokens == 3
    assert both.highest == 5.0 and both.correction.tolist() == [0.2, 0.3]


def test_names_stay_apart() -> None:
    same = ["a/1/0", "a/1/0/x"]
    assert len(set(short_names(same).values())) == 2
    assert effective(np.zeros(3)) != effective(np.zeros(3)), "no number"
    assert window(1) == window(4) == 1 and window(1000) == 20
