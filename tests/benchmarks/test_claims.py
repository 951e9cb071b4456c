"""The papers' claims: the figures that are kept show them, the page says them, and they hold today.

What is kept is looked at by default; `-m slow` measures smaller cuts anew.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks" / "claims"
KEPT = ROOT / "benchmarks" / "results" / "claims"
NAMES = ["deepnorm", "experts", "longnet", "subln", "xpos"]


def script(name):
    return runpy.run_path(str(SCRIPTS / f"{name}.py"))


def kept(name):
    return json.loads((KEPT / f"{name}.json").read_text())


def test_the_page_is_written_from_the_results():
    found = script("page")
    assert found["PAGE"].read_text() == found["page"](), "run python benchmarks/claims/page.py"


@pytest.mark.parametrize("name", NAMES)
def test_charts_are_those_of_the_figures(name):
    found = kept(name)
    assert found["machine"]["versions"]["jax"]
    for picture, chart in script(name)["charts"](found).items():
        assert (KEPT / f"{picture}.svg").read_text() == chart.svg() + "\n", f"run {name}.py again"


def test_deepnorm_carries_gradients_and_trains_where_post_norm_does_not():
    found = kept("deepnorm")
    for depth in found["flow"]["DeepNorm"]:
        assert all(0.5 < ratio < 2 for ratio in depth["ratios"])
    assert [depth["layers"] for depth in found["flow"]["post-LN"]] == [12, 100, 1000]
    twelve, hundred, thousand = (depth["ratio"] for depth in found["flow"]["post-LN"])
    assert twelve > hundred > thousand and hundred < 0.5 and thousand < 1e-4
    guess = found["guess"]
    deep, post = (list(found["ends"][name].values()) for name in ("DeepNorm", "post-LN"))
    assert min(deep) < guess / 2
    assert all(end is None or end > 0.95 * guess for end in post)


def test_compiling_takes_the_same_at_any_depth():
    for depths in kept("deepnorm")["flow"].values():
        seconds = [depth["compile_seconds"] for depth in depths]
        assert max(seconds) < 3 * min(seconds)


def test_xpos_reads_longer_rows_best():
    found = kept("xpos")
    far = [i for i, length in enumerate(found["lengths"]) if length >= 2 * found["trained"]]
    assert len(far) >= 3
    mean = {name: np.mean(each, 0) for name, each in found["losses"].items()}
    for i in far:
        assert mean["xPos"][i] < min(mean["ALiBi"][i], mean["RoPE"][i])


def test_dilated_attention_grows_linearly_and_dense_quadratically():
    grows = kept("longnet")["exponents"]
    assert abs(grows["dilated/flops"] - 1) < 0.05 and abs(grows["dilated/bytes"] - 1) < 0.05
    assert abs(grows["dense/flops"] - 2) < 0.05 and abs(grows["dense/bytes"] - 2) < 0.05
    assert grows["dilated/seconds"] < 1.5 and grows["dense/seconds"] > 1.75


def test_experts_learn_more_with_as_many_weights_and_stay_in_use():
    found = kept("experts")
    of, weights = found["courses"], found["weights"]
    assert weights["experts, steered"]["active"] <= weights["dense"]["active"]
    ends = {name: [course["losses"][-1] for course in each] for name, each in of.items()}
    assert all(e < d for e, d in zip(ends["experts, steered"], ends["dense"], strict=True))
    load = lambda name, at: np.mean([course["maxvio"][at] for course in of[name]])
    assert load("experts, steered", -1) < 0.5 < load("experts, left alone", -1)
    assert load("collapsed, steered", 0) == load("collapsed, left alone", 0) == 7
    assert load("collapsed, steered", -1) < 0.5 and load("collapsed, left alone", -1) > 3


@pytest.mark.slow
def test_experts_recover_today():
    claims = script("experts")
    text = claims["jnp"].asarray(claims["library"]())
    course = claims["course"](claims["experts"](0.05), 1, 120, text, "today", claims["collapsed"])
    assert course.maxvio[0] == 7 and course.maxvio[-1] < 1


@pytest.mark.slow
def test_deepnorm_carries_gradients_today():
    found = script("deepnorm")["flow"]((100, 1000), 3)
    for depth in found["DeepNorm"]:
        assert all(0.5 < ratio < 2 for ratio in depth["ratios"])
    hundred, thousand = (depth["ratio"] for depth in found["post-LN"])
    assert thousand < 1e-3 < hundred < 0.5


@pytest.mark.slow
def test_dilated_attention_is_linear_today():
    claims, lengths = script("longnet"), (1024, 2048, 4096)
    grows = claims["exponents"](lengths, claims["count"](lengths))
    assert abs(grows["dilated/flops"] - 1) < 0.05 and grows["dense/flops"] > 1.9


@pytest.mark.slow
def test_xpos_reads_longer_rows_best_today():
    found = script("xpos")["extrapolate"](400, (2,))
    far = {name: losses[0][-1] for name, losses in found.items()}
    assert far["xPos"] < min(far["ALiBi"], far["RoPE"])


@pytest.mark.slow
def test_a_thousand_layers_learn_with_deepnorm_only():
    claims = script("deepnorm")
    found = claims["train"](1000, (1e-3,), 25)
    deep, post = (claims["last"](found[name]["0.001"]) for name in ("DeepNorm", "post-LN"))
    assert deep < 1.6 and post > 2.6


def test_one_update_moves_hidden_states_less_with_sub_ln():
    moves = kept("subln")["moves"]
    assert kept("subln")["depths"] == [12, 100, 1000]
    for optimiser in ("SGD", "Adam"):
        sub, pre = (np.asarray(moves[name][optimiser]) for name in ("Sub-LN", "pre-LN"))
        assert sub.shape == pre.shape == (3, 5)
        assert (np.median(sub, 1) < 0.75 * np.median(pre, 1)).all()


def test_sub_ln_takes_a_larger_rate_of_layers():
    found, claims = kept("subln"), script("subln")
    for what in ("layers", "all"):
        assert claims["verdict"](found["rates"], found[what]["ends"]) == found[what]
    sub, pre = (found["layers"]["largest"][name] for name in ("Sub-LN", "pre-LN"))
    assert sub["median"] >= 2 * pre["median"] > 0
    assert len(sub["seeds"]) == 5
    assert all(one > other for one, other in zip(sub["seeds"], pre["seeds"], strict=True))


def test_with_one_rate_of_all_weights_sub_ln_takes_no_larger_one():
    found, middle = kept("subln"), script("subln")["middle"]
    sub, pre = (found["all"]["largest"][name]["median"] for name in ("Sub-LN", "pre-LN"))
    assert sub == pre == 0.016
    upto = found["rates"].index(sub) + 1
    ends = [middle(found["all"]["ends"][name])[:upto] for name in ("Sub-LN", "pre-LN")]
    assert all(one < other for one, other in zip(*ends, strict=True))


def test_a_rate_is_taken_up_to_a_bound():
    claims, rates = script("subln"), [1.0, 2.0, 4.0]
    assert claims["largest"](rates, [3.0, 3.1, 3.2], 3.1) == 2.0
    assert claims["largest"](rates, [3.0, 3.1, None], 3.1) == 2.0
    assert claims["largest"](rates, [3.0, 3.0, 3.0], 2.0) == 0.0
    assert claims["middle"]([[1.0, 5.0], [None, 7.0], [2.0, 6.0]]) == [2.0, 6.0]
    found = claims["verdict"]([1.0, 2.0], {"a": [[0.5, 1.0]], "b": [[0.9, None]]})
    assert found["bound"] == round((np.log(16) + 0.5) / 2, 4)
    assert found["largest"] == {
        "a": {"median": 2.0, "seeds": [2.0]},
        "b": {"median": 1.0, "seeds": [1.0]},
    }


@pytest.mark.slow
def test_sub_ln_learns_at_rates_at_which_pre_ln_does_not_today():
    found = script("subln")["sweep"]((8e-3, 1.6e-2), (1,), 1e-3)
    ((_, fast),), (slow,) = found["Sub-LN"], found["pre-LN"]
    assert fast is not None and fast < 1.3
    assert all(end is None or end > 1.6 for end in slow)
