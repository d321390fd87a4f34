"""What the names of methods mean is said once, from the catalogue, wherever a reader meets them."""

import pytest

from uftlab.course import along, methods
from uftlab.course.notebooks import NOTEBOOKS, write_between
from uftlab.errors import InputError
from uftlab.plots import widgets
from uftlab.training.catalogue import METHODS, VARIANTS


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("base", "nothing"),
        ("sft-sum", "demonstrations"),
        ("una-alone", "scores"),
        ("sft-then-kto", "demonstrations, then labels"),
        ("uft-then-una", "demonstrations, then scores"),
        ("uft-binary", "50 % demonstrations, 50 % labels"),
        ("sft-plus-dpo", "50 % demonstrations, 50 % pairs"),
        ("replay", "demonstrations, then 25 % demonstrations, 75 % pairs"),
    ],
)
def test_what_a_method_reads_by_hand(name, reads):
    assert methods.reads(name) == reads


def test_the_glossary_has_the_table_of_the_catalogue(tmp_path):
    glossary = NOTEBOOKS / "glossary.md"
    copy = tmp_path / "glossary.md"
    copy.write_text(glossary.read_text())
    write_between(copy, "methods", methods.for_the_glossary())
    assert copy.read_text() == glossary.read_text(), "make pages"
    for name in (*METHODS, *VARIANTS):
        assert f"| `{name}` |" in copy.read_text()
    assert "\n## Methods\n" in copy.read_text()  # notebooks link to it


def test_a_setting_of_a_method_is_named_and_an_unknown_method_is_refused():
    (row,) = methods.table(["uft, beta 0.25"]).to_dict("records")
    assert row["method"] == "uft, beta 0.25" and row["what it is"].endswith(", with beta 0.25")
    with pytest.raises(InputError, match="uftt"):
        methods.folded(["uftt"])


def test_what_is_in_a_menu_is_explained_below_the_controls():
    import pandas as pd

    numbers = {"metric": "instruction/both", "mean": 0.5, "low": 0.4, "high": 0.6, "seeds": 3}
    curves = pd.DataFrame(
        [{"method": m, "step": s, **numbers} for m in ("uft", "sft-then-dpo", "base") for s in (0, 200)]
    )
    box = along.explorer(curves)
    assert list(box.controls["method"].options) == ["sft-then-dpo", "uft"]
    (notes,) = [part for part in box.children[1].children[0].children if "uftlab-notes" in part._dom_classes]
    assert notes.value == methods.folded(["sft-then-dpo", "uft"]) and "<b>uft</b>: UFT on the mixture" in notes.value
    assert "step 200" in box.spoken.text and len(box.shown.data) == 3


def test_explanations_are_only_where_there_are_some():
    box = widgets.explore(lambda x: widgets.go.Figure(), {"x": widgets.slider("x", 0.0, 0.0, 1.0)}, lambda x: "")
    assert not [part for part in box.children[1].children[0].children if "uftlab-notes" in part._dom_classes]
