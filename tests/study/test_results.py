"""Intervals, named comparisons, sentences; the stored results; the report."""

import html
import json
import math
import re

import driver
import numpy as np
import pytest
from made_up import every_method, made_up, values_of
from scipy import stats
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.errors import InputError
from uftlab.files import write_atomically
from uftlab.reports.html import write_report
from uftlab.study import comparisons, results, tuning
from uftlab.study import trials as study
from uftlab.study.comparisons import COMPARISONS, ITSELF, PRIMARY
from uftlab.study.results import HEADLINES, Interval, interval, resampled_interval
from uftlab.training import settings as training
from uftlab.training.catalogue import METHODS, all_methods


@pytest.fixture(scope="module")
def trials():
    return every_method()


@pytest.fixture(scope="module")
def frame(trials):
    return results.tidy(trials)


@pytest.fixture(scope="module")
def summary(frame):
    return results.summary(frame)


def stored(folder, trials):
    """Writes trials as a results folder."""
    for number, trial in enumerate(trials):
        write_atomically(folder / "trials" / f"{number}.json", json.dumps(trial))
    return folder


# ------------------------------------------------------------------------------------------ intervals


def test_interval_by_hand():
    """Values 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653."""
    half = 4.302653 / math.sqrt(3)
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.seeds) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert (round(found.low, 3), round(found.high, 3)) == (-0.484, 4.484)  # as the docstring says


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_agrees_with_scipy(level):
    values = np.random.default_rng(0).normal(size=5).tolist()
    found = interval(values, level)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(level, 4, np.mean(values), stats.sem(values)))


def test_one_seed_has_no_interval_and_settles_nothing():
    assert interval([0.7]) == Interval(0.7, None, None, 1)
    assert interval([0.7]).verdict == "not settled"


def test_no_seed_is_refused():
    with pytest.raises(InputError, match="at least one value"):
        interval([])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.3, "higher"), (-0.3, -0.1, "lower"), (-0.1, 0.3, "not settled"), (0.0, 0.2, "not settled")],
)
def test_a_verdict_needs_an_interval_without_zero(low, high, verdict):
    assert Interval((low + high) / 2, low, high, 5).verdict == verdict


def test_one_row_for_each_cluster_gives_the_usual_interval():
    values = [0.3, 1.2, -0.5, 0.9]
    ours, usual = interval(values, clusters=list("abcd")), interval(values)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((usual.mean, usual.low, usual.high))


def test_repeating_every_row_does_not_make_anyone_surer():
    values = np.array([0.3, 1.2, -0.5, 0.9])
    once, often = (
        interval(values, clusters=list("abcd")),
        interval(np.repeat(values, 5), clusters=np.repeat(list("abcd"), 5)),
    )
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    naive = interval(np.repeat(values, 5).tolist())
    assert naive.high - naive.low < (once.high - once.low) / 2  # which is what the clusters are for


def test_one_cluster_has_no_interval():
    found = interval([1.0, 2.0], clusters=["a", "a"])
    assert found.mean == 1.5 and found.low is None and found.verdict == "not settled"


def test_resampling_agrees_with_the_interval_of_a_mean():
    rng = np.random.default_rng(1)
    names = np.repeat(np.arange(60), 3)
    values = rng.normal(size=60)[names] + rng.normal(size=180)
    ours, formula = resampled_interval(lambda at: values[at].mean(), names, draws=800), interval(values, clusters=names)
    assert ours.mean == pytest.approx(formula.mean)
    assert (ours.low, ours.high) == pytest.approx((formula.low, formula.high), abs=0.06)
    assert ours == resampled_interval(lambda at: values[at].mean(), names, draws=800)


def test_the_interval_over_clusters_by_hand():
    """Values 1, 3 | 2 | 6 have mean 3 and residuals -2 + 0, -1, 3; variance 3 / 2 * 14 / 16; t(0.975, 2) = 4.302653."""
    found = interval([1.0, 3.0, 2.0, 6.0], clusters=["a", "a", "b", "c"])
    half = 4.302653 * math.sqrt(3 / 2 * 14 / 16)
    assert (found.mean, found.seeds) == (3.0, 3) and (found.low, found.high) == pytest.approx((3 - half, 3 + half))


# ------------------------------------------------------------------------------------------ frames and comparisons


def test_tidy_has_one_row_per_method_seed_and_metric(frame, trials):
    assert list(frame.columns) == ["method", "seed", "draw", "metric", "value"]
    assert not frame.duplicated(["method", "seed", "metric"]).any()
    metrics = len(trials[0]["metrics"])
    ends = metrics * sum(m in METHODS for m in results.PIPELINES) * 3  # of stage one, on three seeds
    assert len(frame) == len(trials) * (metrics + 3) + ends  # three costs


def test_differences_are_paired_over_the_seeds_that_both_methods_have():
    rows = [made_up("sft", seed, strict=value) for seed, value in enumerate((0.9, 0.5, 0.4))]
    rows += [made_up("sft-then-dpo", seed, strict=value) for seed, value in ((1, 0.2), (2, 0.2), (3, 0.0))]
    found = comparisons.contrast(results.tidy(rows), {"sft-then-dpo": 1, "sft": -1}, "instruction/strict")
    wanted = interval([0.2 - 0.5, 0.2 - 0.4])
    assert (found.mean, found.low, found.p) == pytest.approx((wanted.mean, wanted.low, wanted.p))


def test_methods_without_a_common_seed_are_not_compared():
    frame = results.tidy([made_up("uft", 0), made_up("sft-plus-dpo", 1)])
    assert comparisons.contrast(frame, {"uft": 1, "sft-plus-dpo": -1}, "instruction/strict") is None
    assert comparisons.compare(frame) == []


def test_a_verdict_follows_the_corrected_p():
    rows = []
    for seed, noise in enumerate((0.0, 0.2, 0.4)):  # seeds differ a lot, the difference hardly
        rows.append(made_up("sft-plus-dpo", seed, strict=0.5 + noise, mc2=0.2 + noise))
        rows.append(made_up("sft-then-dpo", seed, strict=(0.9, 0.1, 0.7)[seed], mc2=0.2 + noise + 0.1 + 1e-4 * seed))
    found = {(r["comparison"], r["metric"]): r for r in comparisons.compare(results.tidy(rows))}
    truth = found["sft-plus-dpo minus sft-then-dpo", "truth/mc2"]
    assert truth["verdict"] == "lower" and truth["p"] < truth["holm"] < 0.05
    assert truth["mean"] == pytest.approx(-0.1001)
    assert found["sft-plus-dpo minus sft-then-dpo", "instruction/strict"]["verdict"] == "not settled"


def test_every_named_comparison_is_made_on_every_headline(frame):
    found = {(r["comparison"], r["metric"]) for r in comparisons.compare(frame)}
    named = {(f"{a} minus {b}", m) for a, b, _ in COMPARISONS if {a, b} <= set(METHODS) for m in HEADLINES}
    assert named | {(comparisons.INTERACTION, m) for m in HEADLINES} <= found


def test_every_comparison_is_between_registered_methods():
    named = {name for a, b, _ in (*PRIMARY, *COMPARISONS) for name in (a, b)}
    assert named - {ITSELF} <= set(all_methods())


def test_interaction_by_hand():
    """Mixing adds 0.7 - 0.4 = 0.3 under the unified loss, 0.6 - 0.5 = 0.1 under separate losses: 0.2; then 0.4."""
    cells = {"uft": (0.7, 0.9), "uft-then-una": (0.4, 0.4), "sft-plus-dpo": (0.6, 0.6), "sft-then-dpo": (0.5, 0.5)}
    rows = [made_up(name, seed, strict=v) for name, values in cells.items() for seed, v in enumerate(values)]
    found = comparisons.interaction(results.tidy(rows), "instruction/strict")
    assert (found.mean, found.seeds) == (pytest.approx(0.3), 2)
    assert comparisons.interaction(results.tidy(rows[2:]), "instruction/strict") is None


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (
            (-0.456, -0.5, -0.4, 5, "lower"),
            "a is lower than b (-0.46, 95 % interval -0.50 to -0.40, 5 seeds, corrected p 0.03).",
        ),
        (
            (0.2, 0.1, 0.3, 5, "higher"),
            "a is higher than b (+0.20, 95 % interval 0.10 to 0.30, 5 seeds, corrected p 0.03).",
        ),
        (
            (0.1, -0.1, 0.3, 3, "not settled"),
            "a against b is not settled (+0.10, 95 % interval -0.10 to 0.30, 3 seeds, corrected p 0.03).",
        ),
        ((-0.1, None, None, 1, "not settled"), "a minus b is -0.10 (one seed, no interval, nothing settled)."),
    ],
)
def test_a_sentence_says_its_numbers_and_no_more(numbers, text):
    row = dict(zip(("mean", "low", "high", "seeds", "verdict"), numbers, strict=True))
    row |= {"comparison": "a minus b", "metric": "instruction/strict", "holm": 0.03}
    assert comparisons.sentence(row) == f"instructions followed: {text}"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.2, 0.1, 0.3, 5, "higher"), "what mixing adds is larger under the unified loss than under separate losses"),
        (
            (-0.2, -0.3, -0.1, 5, "lower"),
            "what mixing adds is smaller under the unified loss than under separate losses",
        ),
        ((0.1, -0.1, 0.3, 5, "not settled"), "whether mixing adds more under the unified loss is not settled"),
    ],
)
def test_the_interaction_has_a_wording_of_its_own(numbers, text):
    row = dict(zip(("mean", "low", "high", "seeds", "verdict"), numbers, strict=True))
    row |= {"comparison": comparisons.INTERACTION, "metric": "truth/mc2", "holm": 0.03}
    mean, low, high = numbers[:3]
    numbers = f"{mean:+.2f}, 95 % interval {low:.2f} to {high:.2f}, 5 seeds, corrected p 0.03"
    wanted = f"truth on contested facts: {text} ({numbers})."
    assert comparisons.sentence(row) == wanted


def test_what_rounding_leaves_is_said_to_be_zero():
    row = {
        "comparison": "a minus b",
        "metric": "truth/mc2",
        "mean": -2e-17,
        "low": -0.003,
        "high": 4e-5,
        "seeds": 5,
        "holm": 0.03,
    }
    wanted = "a against b is not settled (+0.00, 95 % interval -0.003 to 0.00, 5 seeds, corrected p 0.03)."
    assert comparisons.sentence({**row, "verdict": "not settled"}) == f"truth on contested facts: {wanted}"


def test_load_sorts_trials_and_refuses_an_empty_folder(tmp_path):
    stored(tmp_path, [made_up("uft", 1), made_up("uft", 0), made_up("base", 1)])
    assert [(t["method"], t["seed"]) for t in results.load(tmp_path)] == [("base", 1), ("uft", 0), ("uft", 1)]
    with pytest.raises(InputError, match="hold trials; got none in"):
        results.load(tmp_path / "none")


@pytest.mark.parametrize("content", ['{"schema": 0, "method": "uft", "seed": 0}', '{"schema": 2, "meth'])
def test_results_of_another_version_or_half_a_file_are_refused(tmp_path, content):
    write_atomically(tmp_path / "trials" / "a.json", content)
    with pytest.raises(InputError, match=r"schema 2; got 0|whole trial file"):
        results.load(tmp_path)


def test_a_study_is_found_by_path_and_an_unknown_one_is_refused(tmp_path):
    stored(tmp_path / "mine", [made_up("uft", 0)])
    assert results.results_folder(str(tmp_path / "mine")) == tmp_path / "mine"
    with pytest.raises(InputError, match="A study must .*got nowhere"):
        results.results_folder("nowhere")


# ------------------------------------------------------------------------------------------ the committed results


@pytest.fixture(scope="module")
def class_trials():
    return results.load(results.results_folder("class"))


def test_stored_results_have_every_method_on_the_same_five_seeds_or_more(class_trials):
    seeds = {name: {t["seed"] for t in class_trials if t["method"] == name} for name in METHODS}
    assert len(seeds["base"]) >= 5 and all(own == seeds["base"] for own in seeds.values())
    assert len(class_trials) == len(METHODS) * len(seeds["base"])


def test_stored_results_come_from_the_tuned_settings_of_this_version(class_trials):
    profile = study.PROFILES["class"]
    expected = {study.trial(t["method"], t["seed"], profile).path(results.RESULTS / "class").name for t in class_trials}
    assert {p.name for p in (results.RESULTS / "class" / "trials").glob("*.json")} == expected


def test_stored_results_have_the_same_budget_and_no_nan(class_trials):
    completions = {t["completions"] for t in class_trials if t["method"] not in ("base", "sft")}
    assert completions == {study.PROFILES["class"].steps * 32}
    assert all(math.isfinite(value) for t in class_trials for value in t["metrics"].values())


def test_results_json_says_what_the_trial_files_say(class_trials):
    output = CliRunner().invoke(app, ["results", "--json"])
    assert output.exit_code == 0
    rows = {(r["comparison"], r["metric"]): r for r in json.loads(output.stdout)}
    assert all({"comparison", "metric", "mean", "low", "high", "seeds"} <= set(row) for row in rows.values())
    value = {(t["method"], t["seed"]): t["metrics"]["instruction/both"] for t in class_trials}
    seeds = np.array(sorted({t["seed"] for t in class_trials}))
    differences = np.array([value["uft", seed] - value["sft-then-dpo", seed] for seed in seeds])
    wanted = results.crossed_interval(differences, seeds, seeds % study.DRAWS)
    row = rows["uft minus sft-then-dpo", "instruction/both"]
    found = (row["mean"], row["low"], row["high"], row["p"])
    assert found == pytest.approx((wanted.mean, wanted.low, wanted.high, wanted.p)) and row["seeds"] == len(seeds)
    assert row["family"] == "primary" and row["holm"] >= row["p"]


def test_stored_means_are_the_means_of_the_trial_files(class_trials):
    summary = results.summary(results.tidy(class_trials))
    for row in summary[summary["metric"].isin(class_trials[0]["metrics"])].to_dict("records"):
        values = [t["metrics"][row["metric"]] for t in class_trials if t["method"] == row["method"]]
        assert row["mean"] == pytest.approx(np.mean(values)) and row["seeds"] == len(values)


SWEEPS = {
    "sweep": [name for name, method in METHODS.items() if method.tuned],
    "recent_sweep": sorted({t["method"] for t in results.load(results.RESULTS / "recent")}),
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_tuned_settings_are_what_the_rule_chooses_from_the_committed_sweep(sweep, tmp_path, monkeypatch):
    committed = json.loads(training.TUNED.read_text())["settings"]
    monkeypatch.setattr(tuning, "TUNED", tmp_path / "tuned.json")
    tuning.choose(SWEEPS[sweep], results.RESULTS / sweep)
    assert json.loads(tuning.TUNED.read_text())["settings"] == {name: committed[name] for name in SWEEPS[sweep]}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_sweep_has_the_trials_of_both_rounds_of_every_tuned_method_and_no_others(sweep):
    """Eighteen of each in each draw; two points may fall on the same three digits."""
    folder, names = results.RESULTS / sweep, SWEEPS[sweep]
    wanted = [*tuning.base_trials(), *tuning.first_round(names), *tuning.second_round(names, folder)]
    assert len(wanted) == study.DRAWS * (1 + len(names) * (tuning.FIRST + tuning.SECOND))
    assert {t.path(folder).name for t in wanted} == {p.name for p in (folder / "trials").iterdir()}


# ------------------------------------------------------------------------------------------ the report


@pytest.fixture(scope="module")
def page(trials, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report") / "report.html", trials).read_text()


def test_the_report_needs_nothing_from_outside_and_holds_plotly_once(page):
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page)
    assert tags and not [tag for tag in tags if re.search(r"\b(?:src|href)\s*=", tag)]
    assert not re.search(r"@import|url\(\s*[\"']?http", page.split("</head>")[0])
    assert len(re.findall(r"\* plotly\.js v\d", page)) == 1


def test_the_report_names_every_method_with_its_numbers(page, summary):
    cells = {row.split("</td>")[0].split(">")[-1]: row for row in page.split("<tr>")[2:]}
    assert set(cells) == set(METHODS)
    for name, row in cells.items():
        mean, above, below = values_of(summary, name, "instruction/strict")
        assert f"{mean:.2f}<br><small>{mean - below:.2f} to {mean + above:.2f}</small>" in row


def test_the_findings_of_the_report_are_the_sentences_of_the_results(page, frame):
    listed = [html.unescape(item) for item in re.findall(r"<li>(.*?)</li>", page)]
    sentences = comparisons.findings(frame)
    assert listed[: len(sentences)] == sentences and len(sentences) >= 2 * len(PRIMARY)


def test_the_report_has_all_figures_and_says_what_is_not_shown(page):
    assert page.count("Plotly.newPlot(") >= 5
    assert "What this does not show" in page and "tuned four times" in page


@pytest.mark.skipif(driver.chromium() is None, reason="no Chromium here; Debian: apt-get install chromium")
def test_the_report_is_for_every_reader(page, tmp_path):
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    with driver.browser() as browser:
        for look in ({"color_scheme": "light"}, {"color_scheme": "dark", "viewport": {"width": 390, "height": 800}}):
            shown = browser.new_context(**look).new_page()
            shown.goto((tmp_path / "report.html").as_uri())
            shown.wait_for_function("() => document.querySelectorAll('.main-svg').length > 4")
            assert driver.inaccessible(shown) == [], look


@pytest.mark.parametrize("names", [("base",), ("base", "sft"), ("uft",)])
def test_the_report_of_a_partial_study(tmp_path, names):
    path = write_report(tmp_path / "report.html", [made_up(name, 0) for name in names])
    assert all(f">{name}</td>" in path.read_text() for name in names)
