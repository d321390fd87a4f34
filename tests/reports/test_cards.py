"""The cards are what the registry and the docstrings say; the how-to runs as printed."""

import json
import re
from pathlib import Path

import pytest

from uftlab.losses import dpo_loss
from uftlab.objectives.objective import VERIFIED
from uftlab.objectives.registry import OBJECTIVES
from uftlab.reports.cards import cards, equation_of, write_cards
from uftlab.training.catalogue import all_methods, method_named
from uftlab.training.methods import default_settings

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_committed_cards_are_what_the_registry_and_the_docstrings_say():
    made = cards()
    committed = {path.name: path.read_text() for path in (DOCS / "methods").iterdir()}
    assert committed.keys() == made.keys()
    stale = [name for name, text in made.items() if committed[name] != text]
    assert stale == [], "run `uftlab methods --cards docs/methods`"


def test_cards_are_written_where_asked(tmp_path):
    paths = write_cards(tmp_path)
    assert {path.name: path.read_text() for path in paths} == cards()


@pytest.mark.parametrize("method", [m for m in all_methods().values() if m.stages], ids=lambda m: m.name)
def test_a_card_says_what_it_optimises_eats_costs_and_where_it_comes_from(method):
    text = cards()[f"{method.name}.md"]
    for heading in ("What it optimises", "Data", "Settings", "Cost", "Known failure", "Source"):
        assert f"## {heading}" in text
    assert all(f"`{name}` | {value:g} |" in text for name, value in default_settings(method).items())
    assert all(own.source in text and own.note in text for own in method.sourced)
    assert re.search(r"```text\n(\w+: +)?L = ", text)
    assert ("full distributions" in text) == any(objective.distributions for objective in method.objectives)


def test_every_row_of_the_index_has_the_columns_of_its_head_and_a_link_that_exists():
    rows = [line for line in cards()["README.md"].splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {8}
    assert all((DOCS / "methods" / target).exists() for target in re.findall(r"\]\((\S+)\)", "\n".join(rows)))


def test_every_loss_is_in_the_list_with_its_pull_or_the_reason_why_it_has_none():
    rows = {}
    for line in cards()["losses.md"].splitlines():
        if line.startswith("| ["):
            name, kind, _, loss, pull = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            rows[name.split("]")[0][1:], kind] = loss, pull, line
    assert set(rows) == {(name, kind) for name, own in OBJECTIVES.items() for kind in own.kinds}
    assert rows["sft-sum", "demonstration"][:2] == ("40", "1")
    assert rows["una-score", "scored"][:2] == ("0.25", "0.025")  # (1/2 - 1)^2 and beta / 4
    assert rows["dpo", "preference"][:2] == ("0.693", "0.05")  # log 2 and beta / 2
    for loss, pull, line in rows.values():
        assert (loss == "-") == (pull == "-") == ("(*" in line)


def test_a_recipe_does_not_borrow_the_letters_of_the_loss_that_it_trains_with():
    rows = {line.split("]")[0][3:]: line for line in cards()["README.md"].splitlines() if line.startswith("| [")}
    letters = {name: line.rsplit("|", 2)[1].strip() for name, line in rows.items()}
    assert {name: letters[name] for name in ("sdpo", "rs-dpo", "paft", "alright", "maxright", "dpo")} == {
        "sdpo": "2", "rs-dpo": "2 M", "paft": "2 M", "alright": "P", "maxright": "P", "dpo": "P T",
    }  # fmt: skip
    assert "sdpo: Kim et al. 2024 (sDPO), arXiv 2403.19270. Verified by: a secondary source (2)." in cards()["sdpo.md"]
    assert method_named("sdpo").needs()["verification"] == {"sft": "P", "dpo": "P T", "sdpo": "2"}
    assert [method_named(name).needs()["verified"] for name in ("sdpo", "sft-then-dpo")] == ["2", "P T"]


def test_what_a_method_adds_has_source_letters_and_a_note():
    for method in all_methods().values():
        assert bool(method.source) == bool(method.verified)
        assert set(method.verified.split()) <= set(VERIFIED)
        assert method.note or not set(method.verified) & {"2", "M"}


def test_an_equation_is_set_apart_and_arguments_are_left_out():
    text = equation_of(dpo_loss)
    assert "```text\nL = -log sigma(margin)" in text and "Args" not in text
    assert text.endswith("Value: Loss of each pair. log 2 where policy equals reference.")


def test_the_how_to_runs_as_printed(tmp_path, monkeypatch, capsys):
    """Each block in one namespace, in a folder of its own; the registry is as before afterwards."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "how_to_add_a_loss.md").read_text(), flags=re.S)
    assert len(blocks) == 2
    before, names = dict(OBJECTIVES), {}
    try:
        for block in blocks:
            exec(compile(block, "how_to_add_a_loss.md", "exec"), names)
        assert method_named("hinge").group == "loss" and "hinge" in all_methods()
        assert "max(0, 1 - margin)" in cards()["hinge.md"]
    finally:
        OBJECTIVES.clear()
        OBJECTIVES.update(before)
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert len(printed) == 8 and printed[0] == 1.0 and printed[-1] < 1.0
    assert "hinge" not in all_methods()
