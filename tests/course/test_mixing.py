"""What notebook 06 draws and says is what the stored map has."""

import pytest

from uftlab.course import mixing
from uftlab.plots import figures
from uftlab.study import maps
from uftlab.study.results import interval

PLACE = {name: control.value for name, control in mixing.controls().items()}


def of_map(experiment, metric, **where):
    own = mixing.frame().query("experiment == @experiment and method != 'base'")
    for name, value in where.items():
        own = own[own[name] == value]
    return own.sort_values("seed")[metric].to_numpy()


def test_the_share_of_demonstrations_is_compared_within_worlds():
    ends = [
        of_map("E4", "instruction/both", method="uft", budget=200, demonstrations=share) for share in (0.125, 0.875)
    ]
    assert mixing.along("instruction/both", "uft", 200) == interval(ends[1] - ends[0])
    other = of_map("E4", "instruction/both", method="sft-plus-dpo", budget=200, demonstrations=0.125)
    assert mixing.apart("instruction/both", 200, 0.125) == interval(ends[0] - other)


def test_more_steps_are_averaged_over_shares_first():
    wide = mixing.by_share("retention/lost")["uft"]
    assert mixing.more_steps("retention/lost", "uft").mean == pytest.approx((wide[800] - wide[200]).to_numpy().mean())


@pytest.mark.parametrize("metric", mixing.OUTCOMES)
def test_the_figure_of_shares_has_four_lines_with_the_means(metric):
    fig = mixing.shares_figure(metric)
    assert [t.name for t in fig.data] == [f"{n}, {s} steps" for n in ("UFT", "SFT plus DPO") for s in (200, 800)]
    assert fig.data[1].y[0] == pytest.approx(
        of_map("E4", metric, method="uft", budget=800, demonstrations=0.125).mean()
    )


def test_the_figure_of_the_paper_has_its_numbers():
    fig = mixing.paper_figure()
    assert list(fig.data[0].y) == [44.21, 46.03, 46.76, 41.91, 44.2, 45.8] and list(fig.data[2].y)[-1] == 280


@pytest.mark.parametrize("metric", mixing.OUTCOMES)
@pytest.mark.parametrize("rate", maps.RATES)
def test_a_place_of_the_map_is_drawn_from_its_trials(metric, rate):
    fig = mixing.picture(**{**PLACE, "metric": metric, "rate": rate, "on_target": False, "instructed": 1.0})
    una, dpo, methods = fig.data[:3]
    where = {"first_rate": 2e-3, "rate": rate, "nats": 0.5}
    assert dict(zip(una.y, una.x, strict=True))["SFT first"] == pytest.approx(
        of_map("E1", metric, method="sft-then-una", **where).mean()
    )
    assert dict(zip(dpo.y, dpo.x, strict=True))["mixed"] == pytest.approx(
        of_map("E1", metric, method="sft-plus-dpo", rate=rate).mean()
    )
    own = of_map("E2", metric, method="uft", instructed=1.0, on_target=False, rate=rate)
    at = list(methods.y).index("uft")
    assert methods.x[at] == pytest.approx(own.mean())
    assert methods.x[at] + methods.error_x.array[at] == pytest.approx(own.max())
    low, high = mixing.RANGES[metric]
    assert low <= min(own) and max(own) <= high
    assert [trace.type for trace in fig.data] == ["bar"] * 3 + ["scatter"] * 2


def test_the_floor_is_drawn_for_instructions_only():
    drawn = {metric: mixing.picture(**{**PLACE, "metric": metric}).data[3] for metric in mixing.OUTCOMES}
    assert {metric: bool(trace.x) for metric, trace in drawn.items()} == {
        metric: metric in figures.FLOORED for metric in mixing.OUTCOMES
    }
    assert drawn["instruction/both"].x[0] == mixing.floor() == pytest.approx(0.48, abs=0.01)


def test_a_small_beta_of_una_changes_una_and_not_dpo():
    small, usual = (mixing.picture(**{**PLACE, "nats": nats}).data for nats in (0.05, 0.5))
    assert small[0].x != usual[0].x and small[1].x == usual[1].x and small[2].x == usual[2].x


def test_the_words_name_the_best_and_the_gain():
    said = mixing.words(**PLACE)
    gain = interval(
        mixing.of_order("instruction/both", "mixed", "UNA", 2e-3, 2e-3, 0.5)
        - mixing.of_order("instruction/both", "SFT first", "UNA", 2e-3, 2e-3, 0.5)
    )
    assert gain.told() in said and "Best method: sft-full (0.67)" in said
    assert "best order is feedback first (0.56)" in said


def test_less_old_text_lost_is_better():
    said = mixing.words(**{**PLACE, "metric": "retention/lost"})
    lost = {name: mixing.by_method("retention/lost")[name, 0.5, True, 2e-3].mean() for name in maps.SIX}
    assert f"Best method: {min(lost, key=lost.get)}" in said
