"""A release says one version everywhere, is built from what is committed, and its lock is that of the tests."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
import release
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from uftlab.errors import InputError
from uftlab.version import VERSION

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tree(tmp_path):
    """A small repository whose version is 1.2.3."""
    (tmp_path / "CITATION.cff").write_text("version: 1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 1.2.3\n\n- a\n\n## 1.2.2\n")
    own = ["git", "-c", "user.name=A", "-c", "user.email=a@a.example"]
    for line in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*own, *line], cwd=tmp_path, check=True)
    return tmp_path


def test_what_is_committed_and_agrees_is_released(tree):
    release.check(tree, "1.2.3")


@pytest.mark.parametrize(
    ("version", "change", "said"),
    [
        ("1.2.4", None, r"head of CITATION\.cff must be 1\.2\.4; got 1\.2\.3"),
        ("1.2.3", "a new file", "The tree must be committed"),
        ("1.2.3", "tag", r"must be a new one; got 1\.2\.3"),
    ],
)
def test_what_may_not_be_released_is_refused(tree, version, change, said):
    if change == "a new file":
        (tree / "new").touch()
    if change == "tag":
        subprocess.run(["git", "tag", "v1.2.3"], cwd=tree, check=True)
    with pytest.raises(InputError, match=said):
        release.check(tree, version)


def test_a_changelog_of_another_version_is_refused(tree):
    (tree / "CHANGELOG.md").write_text("# Changes\n\n## Unreleased\n\n## 1.2.3\n")
    subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@a.example", "commit", "-qam", "b"], cwd=tree)
    with pytest.raises(InputError, match=r"head of CHANGELOG\.md must be 1\.2\.3; got Unreleased"):
        release.check(tree, "1.2.3")


def test_the_version_has_one_home():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1]
    assert str(cited["version"]) == first == VERSION
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


def test_what_is_told_has_digests_and_two_commands(tmp_path):
    files = [tmp_path / name for name in ("a-1.2.3-py3-none-any.whl", "a-1.2.3.tar.gz", "a-1.2.3-site.zip")]
    for path in files:
        path.write_text(path.name)
    lines = release.told(files, "1.2.3").splitlines()
    assert lines[0] == f"{hashlib.sha256(files[0].name.encode()).hexdigest()}  {files[0].name}"
    assert lines[-2].strip() == "git tag v1.2.3 && git push origin v1.2.3"
    assert lines[-1].strip() == f"python -m twine upload build/dist/{files[0].name} build/dist/{files[1].name}"


def test_the_site_is_built_only_where_there_is_one():
    assert release.has_site("run: a\nsite: b\n") and not release.has_site("run: a\n\techo site:\n")


def test_make_release_checks_tests_and_builds():
    steps = re.search(r"^release:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.M)[1].splitlines()
    assert [line.split()[-1] for line in steps] == ["check", "test", "build"]


def test_the_lock_has_the_pinned_versions_and_a_digest_of_every_file():
    """Made by `make lock`. It has more packages: those of other systems."""
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", lock.strip())
    entries = [own for own in entries if not own.startswith("#")]
    assert all("--hash=sha256:" in own for own in entries)
    locked = [Requirement(own.split("\\")[0].strip()) for own in entries]
    found = {canonicalize_name(own.name): str(own.specifier) for own in locked}
    assert len(found) == len(locked)
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {canonicalize_name(own.name): str(own.specifier) for own in map(Requirement, filter(None, lines))}
    assert {name: found.get(name) for name in pinned} == pinned, "run `make lock`"


# ------------------------------------------------------------------------------------------ what people fill in


@pytest.mark.parametrize("name", ["bug", "result", "method"])
def test_a_form_for_issues_has_what_github_asks_for(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form["name"] and form["description"] and form["body"]
    assert len({own["id"] for own in form["body"]}) == len(form["body"])
    for own in form["body"]:
        assert own["type"] in ("input", "textarea", "dropdown") and own["attributes"]["label"]
        assert own["type"] != "dropdown" or own["attributes"]["options"]


@pytest.mark.parametrize(
    "page", ["SECURITY.md", ".github/pull_request_template.md", ".github/ISSUE_TEMPLATE/method.yml"]
)
def test_what_these_pages_name_exists(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`?((?:tests|docs|data)/[\w/.-]+\.(?:py|md))", text)
    assert named and [path for path in named if not (ROOT / path).exists()] == []
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in re.findall(r"`make (\w+)`", text))
