"""What the page on the withdrawn study says is what was measured, and what can be computed again is."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from uftlab.files import DATA
from uftlab.study.results import interval

PAGE = (Path(__file__).parents[2] / "docs" / "results" / "withdrawn.md").read_text()
AUDIT = json.loads((DATA / "results" / "first" / "audit.json").read_text())
STORED = pd.read_csv(DATA / "results" / "first" / "results.csv")
SECTIONS = dict(re.findall(r"^## (\d)\. [^\n]*\n(.*?)(?=^## )", PAGE, flags=re.M | re.S))
POINTS = {str(number): point for number, point in enumerate(AUDIT["points"], start=1)}
LABELS = {"strict": "instruction/strict", "followed and correct": "instruction/both", "truth": "truth/mc2"}
LABELS |= {"cued truth": "truth/cued", "plain facts": "plain/mc1", "truth, freely answered": "truth/free"}


def shown(values, digits, sign):
    """A number, a range, or a mean with its interval, as the page prints it."""
    if values is None:
        return "–"
    texts = [f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−") for value in values]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else " to ".join(texts)


def stored(method, metric):
    """The stored values of a method by world."""
    rows = STORED[(STORED["method"] == method) & (STORED["metric"] == metric)]
    return dict(zip(rows["seed"], rows["value"], strict=True))


def trained(name, metric):
    """What was trained for the page, by world."""
    return {int(world): metrics[metric] for world, metrics in AUDIT["trials"][name].items()}


def paired(one, other):
    """Mean and interval of the difference over the worlds of `one`."""
    found = interval([one[world] - other[world] for world in one])
    return [found.mean, found.low, found.high]


def ours(number, what):
    """What the file says of one line of a point."""
    (row,) = [row for row in POINTS[number]["rows"] if row["what"] == what]
    return row["ours"]


@pytest.mark.parametrize("number", list(POINTS))
def test_the_table_of_a_point_is_that_of_the_file(number):
    table = [line for line in SECTIONS[number].splitlines() if line.startswith("| ")][1:]
    rows = POINTS[number]["rows"]
    assert table == [
        f"| {r['what']} | {shown(r['ours'], r['digits'], r['sign'])} "
        f"| {shown(r['audit'], r['audit_digits'], r['sign'])} |"
        for r in rows
    ]


@pytest.mark.parametrize("number", list(POINTS))
def test_a_number_in_the_text_of_a_point_stands_in_its_table_or_its_settings(number):
    lines, settings = SECTIONS[number].splitlines(), POINTS[number]["settings"]
    table = " ".join(line for line in lines if line.startswith("|"))
    text = " ".join(line for line in lines if not line.startswith("|"))
    values = [v for own in settings.values() for v in (own if isinstance(own, list) else [own])]
    known = {float(value) for value in values if not isinstance(value, str)}
    known |= {float(value) for value in re.findall(r"\d+\.\d+", table)}
    stated = re.findall(r"\d+\.\d+(?:e-\d+)?|\d+e-\d+|\d+,\d{3}", text)
    assert [value for value in stated if float(value.replace(",", "")) not in known] == []


@pytest.mark.parametrize("other", ["uft", "sft-plus-dpo"])
@pytest.mark.parametrize("label", ["strict", "followed and correct", "truth"])
def test_differences_to_signed_sft_follow_from_the_trials(label, other):
    found = paired(trained("signed-sft", LABELS[label]), stored(other, LABELS[label]))
    assert ours("1", f"signed-sft − {other}, {label}") == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("label", ["truth", "plain facts", "cued truth"])
def test_what_distrust_is_compared_with_is_the_stored_mean(label):
    found = np.mean(list(stored("uft", LABELS[label]).values()))
    assert ours("2", f"uft, stored, {label}") == pytest.approx([found], abs=1e-5)
    assert ours("2", f"base, 1 nat off its first choice, {label}")[0] > found - 0.001


@pytest.mark.parametrize("method", ["uft", "sft-plus-dpo"])
@pytest.mark.parametrize("label", ["strict", "followed and correct"])
def test_strict_and_correct_disagree_in_the_stored_study(label, method):
    found = paired(stored(method, LABELS[label]), stored("sft-then-dpo", LABELS[label]))
    assert ours("3", f"{method} − sft-then-dpo, {label}") == pytest.approx(found, abs=1e-5)
    assert (found[0] < 0) == (label == "strict")


@pytest.mark.parametrize("label", ["strict", "followed and correct", "truth", "cued truth"])
def test_differences_at_matched_rates_follow_from_the_trials(label):
    uft = stored("uft", LABELS[label])
    for rate, mixed, apart in (("1.5e-3", uft, "std-1.5"), ("5e-3", trained("uft-5", LABELS[label]), "std-5")):
        sequence = trained(apart, LABELS[label])
        found = paired({world: mixed[world] for world in sequence}, sequence)
        what = f"at {rate} in both stages, five worlds: uft − sft-then-dpo, {label}"
        assert ours("4", what) == pytest.approx(found, abs=1e-5)


def test_edges_are_counted():
    edges = POINTS["5"]["edges"].values()
    assert ours("5", "methods with a chosen setting on an edge") == [sum(own["edge"] for own in edges)]
    assert all(own["edge"] == any(at for name, at in own.items() if name != "edge") for own in edges)


def test_corrected_p_of_the_thirteen_sentences_by_holm():
    """Holm 1979: the k-th smallest of m values times m - k + 1, never below one before it, at most 1."""
    sentences = POINTS["6"]["sentences"]
    pairs = [(*s["comparison"].split(" minus "), s["metric"]) for s in sentences]
    values = [
        stats.ttest_rel(*(list(stored(name, metric).values()) for name in (one, other))).pvalue
        for one, other, metric in pairs
    ]
    order = np.argsort(values)
    corrected = np.minimum(1, np.maximum.accumulate(np.array(values)[order] * np.arange(13, 0, -1)))
    assert [sentences[i]["holm"] for i in order] == pytest.approx(corrected.tolist(), rel=1e-3)
    assert ours("6", "settled after Holm's correction among the thirteen") == [int((corrected < 0.05).sum())]


@pytest.mark.parametrize(("key", "label"), [("una", "UNA on scores alone"), ("dpo", "DPO on pairs alone")])
def test_what_feedback_alone_teaches_follows_from_the_trials(key, label):
    found = paired(trained(f"instructed-{key}", "instruction/strict"), trained(key, "instruction/strict"))
    assert ours("7", f"{label}, strict: difference") == pytest.approx(found, abs=1e-5)
