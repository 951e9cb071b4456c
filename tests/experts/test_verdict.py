"""Verdicts are those that the loads were made for, and what they suggest is a field that exists."""

import numpy as np
import pytest
from experts.synthetic import course, drawn, experts, layer

from jscale.config.override import override, parse_overrides
from jscale.experts.causes import upwards
from jscale.experts.journal import Entry
from jscale.experts.setting import Setting, setting_for, settings_of
from jscale.experts.sharing import Sharing
from jscale.experts.table import advice_words, layers_words, rows, sharing_words
from jscale.experts.verdict import Verdict, advised, verdicts, verdicts_at_once

E = 16
EVEN = np.zeros(E)
STEEP = np.random.default_rng(3).normal(size=E) * 6  # scores that leave two or three experts


def only(entries: list[Entry], settings: tuple[Setting, ...] = (), **more: Sharing) -> Verdict:
    (found,) = verdicts(entries, settings, **more)
    return found


def advice(verdict: Verdict) -> tuple[str, str]:
    ((cause, _, fix),) = advice_words([verdict])
    return cause, fix


def test_even_use_is_ok() -> None:
    found = only(course(100, lambda step: EVEN), experts())
    assert found.ok and found.words == "ok" and not advised([found])
    assert found.figures.effective > 0.99 and found.figures.collapse < 0.01


@pytest.mark.parametrize("begin", [150, 400, 800])
def test_a_slow_collapse_is_dated(begin: int) -> None:
    """Scores part little by little from a step on: found within a window of kept steps."""
    part = lambda step: STEEP * max(0, step - begin) / 600
    found = only(course(120, part), experts())
    assert found.words.startswith("collapsing since step ")
    since = int(found.words.split("step ")[1].split(";")[0].replace(",", ""))
    assert abs(since - begin) <= 20 * 10


def test_a_sudden_collapse_is_dated_to_the_step() -> None:
    found = only(course(100, lambda step: STEEP if step > 500 else EVEN), experts())
    assert found.words.startswith(("collapsing since step 500", "collapsing since step 510"))


def test_collapsed_from_the_start_has_no_date() -> None:
    assert only(course(50, lambda step: STEEP), experts()).words.startswith("collapsed")
    assert "since" not in only(course(50, lambda step: STEEP), experts()).words


def test_use_that_is_a_little_uneven() -> None:
    half = lambda step: np.where(np.arange(E) < E // 2, 2.4, 0.0)
    assert only(course(50, half), experts()).words == "uneven"


def test_a_recovery_is_told_and_then_it_is_ok() -> None:
    back = lambda step: STEEP * max(0.0, 1 - step / 500)
    assert only(course(100, back), experts()).ok
    half_way = only(course(48, back), experts())
    assert half_way.words.split(";")[0].endswith("recovering")


def test_a_second_collapse_is_dated_anew() -> None:
    scores = lambda step: STEEP if step <= 200 or step > 700 else EVEN
    assert only(course(100, scores), experts()).words.startswith(
        ("collapsing since step 700", "collapsing since step 710")
    )


def test_dead_experts_are_named() -> None:
    scores = np.where(np.isin(np.arange(E), (3, 9)), -12.0, 0.0)
    found = only(course(50, lambda step: scores), experts())
    assert found.figures.dead == (3, 9) and found.words.endswith("dead experts 3, 9")
    many = np.where(np.arange(64) < 7, -12.0, 0.0)
    named = only(course(50, lambda step: many), experts(64)).words
    assert named.endswith("dead experts 0, 1, 2, 3 and 3 more")


def test_drops_and_overflows() -> None:
    chosen = np.full(E, 512.0)
    lost = [Entry(s, (layer(chosen, dropped=400.0, overflow=7.0),)) for s in range(1, 9)]
    found = only(lost, experts(dispatch__room=1.25))
    assert found.words == "overflowing; dropping 4.9%"
    assert "model.experts.dispatch.room=1.5" in [fix for *_, fix in advice_words([found])]


def test_room_is_suggested_for_the_busiest_device() -> None:
    chosen = np.where(np.arange(E) < 4, 1024.0, 256.0)  # of 4 devices the first has 16/7 shares
    entries = [Entry(1, (layer(chosen, overflow=9.0),))]
    sharing = Sharing({"blocks/block/feed/routed": 4})
    found = only(entries, experts(dispatch__room=1.5), sharing=sharing)
    assert found.imbalance == pytest.approx(16 / 7)
    assert "model.experts.dispatch.room=2.5" in [fix for *_, fix in advice_words([found])]
    assert sharing_words([found]).startswith("4 devices share the experts: the busiest has 2.29")


CAUSES = [
    (dict(balance__weight=0), {}, "nothing asks", "balance.weight=0.001"),
    (dict(balance__scope="microbatch"), {}, "within each microbatch", "balance.scope=global"),
    (dict(balance__scope="sequence"), {}, "within each row", "balance.scope=global"),
    (dict(balance__z=0.0), dict(highest=60.0), "scores have grown", "balance.z=0.001"),
    (dict(balance__z=0.0), dict(margin=4096 * 9.0), "scores have grown", "balance.z=0.001"),
    (dict(balance__steer=0), dict(correction=np.zeros(E)), "stay as they", "balance.steer=0.001"),
    ({}, dict(correction=np.linspace(-0.4, 0.4, E)), "moved by 0.4", "balance.steer=0.01"),
    ({}, dict(correction=np.linspace(-0.6, 0.6, E)), "1.2 apart", "balance.steer=0.0001"),
    (
        dict(balance__counted="likeliest"),
        dict(correction=np.zeros(E)),
        "likeliest",
        "counted=chosen",
    ),
    ({}, {}, "too weak", "balance.weight=0.1"),
    (dict(balance__weight=0.05), {}, "no setting stands out", ""),
    (dict(choice__type="jscale.models.gates.forced:Forced"), {}, "without a router", ""),
]


@pytest.mark.parametrize("changes, counted, cause, fix", CAUSES)
def test_each_cause_has_its_fix(changes: dict, counted: dict, cause: str, fix: str) -> None:
    found = only(course(50, lambda step: STEEP, **counted), experts(**changes))
    told = advice(found)
    assert cause in told[0]
    assert fix in told[1] if fix else not told[1]


def test_capacities_are_suggested_by_the_busiest_expert() -> None:
    chosen = np.where(np.arange(E) < 1, 1000.0, 480.0)
    entries = [Entry(1, (layer(chosen, dropped=900.0),))]
    for training, fix in (
        ({"factor": 1.0}, "model.experts.choice.training.factor=2"),
        ({"fraction": 0.1}, "model.experts.choice.training=None"),
    ):
        found = only(entries, experts(choice__training=training))
        assert advice(found)[1] == fix
    assert advice(only(entries, experts(choice__most=4)))[1] == "model.experts.choice.most=8"


def test_what_is_suggested_can_be_pasted() -> None:
    """Every fix is taken by a recipe of jscale as an override."""
    from jscale.config.data import to_data
    from jscale.models import DeepSeekV3
    from jscale.models.gates import TopK
    from jscale.models.latent import Latent
    from jscale.models.sparse import Experts

    model = DeepSeekV3(
        vocab=260, dim=32, layers=2, heads=2, hidden=32,
        latent=Latent(kv=16, q=None, rotated=8, plain=8, value=8),
        experts=Experts(E, TopK(2, "sigmoid", corrected=True), hidden=16),
    )  # fmt: skip
    (setting,) = settings_of({"model": to_data(model)})
    assert setting.paths == ("model.experts",) and setting.count == E
    for field, value in (
        ("balance.weight", 0.1), ("balance.scope", "global"), ("balance.z", 0.001),
        ("balance.steer", "0.01"), ("balance.counted", "chosen"), ("dispatch.room", upwards(1.3)),
    ):  # fmt: skip
        change = setting.override(field, value).removeprefix("model.")
        changed = override(model, parse_overrides([change]))
        part, name = field.split(".")
        assert str(getattr(getattr(changed.experts, part), name)) == str(value)


def test_experts_that_differ_are_not_taken_for_each_other() -> None:
    two = experts()[0].data, experts(balance__weight=0.0)[0].data
    alike = settings_of({"model": {"feed": [{"x": 1}, two[0]], "other": two[0]}})
    both = setting_for(alike, E)
    assert both is not None
    assert both.override("balance.z", 1) == "model.feed.1.balance.z=1 model.other.balance.z=1"
    differing = settings_of({"model": {"feed": list(two)}})
    assert setting_for(differing, E) is None and setting_for(differing, 8) is None
    assert only(course(20, lambda step: STEEP), differing).findings[0].advice is None


def test_parts_of_data_have_no_beginning() -> None:
    entries = course(30, lambda step: STEEP if step > 100 else EVEN)
    (found,) = verdicts_at_once(entries, experts())
    assert found.words.split(";")[0] == "collapsed"


def test_several_layers_and_layers_without_tokens() -> None:
    names = [f"blocks/block/feed/routed/{i}" for i in range(3)]
    entries = [
        Entry(step, (
            drawn(EVEN, step, name=names[0]),
            drawn(STEEP, step, name=names[1]),
            layer(np.zeros(E), name=names[2], tokens=0),
        ))
        for step in range(1, 30)
    ]  # fmt: skip
    found = verdicts(entries, experts())
    assert [v.name for v in found] == names[:2] and [v.ok for v in found] == [True, False]
    assert [row[0] for row in rows(found)] == ["0", "1"]
    assert advice_words(found)[0][1] == "layer 1"
    assert verdicts([], experts()) == () and layers_words(list("abcdefghij"), 20).endswith("2 more")
