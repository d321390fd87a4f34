"""The committed list of licences is that of the dependencies, and none of them asks uftlab to have another one."""

import licences
import pytest
from packaging.version import Version
from pinned import pins


def test_the_list_names_every_dependency_with_what_it_says():
    here = {name: licences.licence(package) for name, package in licences.needed().items()}
    pinned = pins()
    others = {n for n, p in licences.needed().items() if n in pinned and Version(p.version).public != pinned[n]}
    lacking = {name: own for name, own in here.items() if licences.listed().get(name) != own and name not in others}
    assert lacking == {}, "run `make licences`"
    assert {"torch", "transformers", "numpy", "jinja2", "filelock"} <= set(here)


def test_no_licence_is_strong_or_unknown():
    table = licences.listed()
    assert len(table) > 100
    assert {name: own for name, own in table.items() if licences.strong(own) or own == "not stated"} == {}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("GPL-3.0-or-later", True), ("GNU Affero General Public License v3", True), ("SSPL-1.0", True), ("MIT", False),
     ("GNU Lesser General Public License v3 (LGPLv3)", False), ("MIT OR GPL-2.0-only", False)],
)  # fmt: skip
def test_what_is_strong(name, wanted):
    assert licences.strong(name) == wanted
