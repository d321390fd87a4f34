"""Beat `uft` in worlds that no study used: an entry, and its verification by training it again.

An entry is one JSON file: a method, its settings, and what came of it in four worlds, beside `uft` and the base there.
The worlds are drawn by a digest from numbers above all that a study or a tuning has used. Anyone can compute them, so
they are unused, not secret. Therefore whoever verifies draws one more world, from the entry and the day, which the
entrant could not know.

    uftlab enter l2-start --by "The uftlab authors"      trains in the four worlds, writes l2-start.json
    uftlab verify l2-start.json                          trains again, compares, measures in a fresh world

Only methods that are registered are ever run. Nothing in an entry names code that is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uftlab.errors import InputError
from uftlab.fields import Number, first_fault
from uftlab.files import DATA, check_writable, read_json, write_atomically
from uftlab.study.results import HEADLINES, Interval, interval
from uftlab.study.trials import DRAWS, PROFILES, Trial, draw_of, frozen, read_trial, trial
from uftlab.study.tuning import worth
from uftlab.training.catalogue import method_named
from uftlab.training.methods import Method, space, stage_defaults
from uftlab.training.settings import settings_of
from uftlab.version import VERSION

STORED = DATA / "leaderboard"
ROUND = 1  # a new round has new worlds; entries of another round are refused
FIRST = 10_000  # every study and every tuning has smaller numbers
RIVAL, BASE, ENTRY = "uft", "base", "entry"  # what is measured in each world
TOLERANCE = 0.05  # in every metric, for a verification on another machine or with other versions
MORE = 4.0  # how far settings may lie outside of what the sweep varies, as a factor

Settings = list[dict[str, float]]
Measured = dict[str, list[dict[str, float]]]

_words = Annotated[str, Field(pattern=r"^[\w ,.'&()+-]{1,80}$")]  # it becomes part of a page
_name = Annotated[str, Field(pattern=r"^[\w.+-]{1,100}$")]
_metrics = dict[Annotated[str, Field(pattern=r"^[\w/.+-]{1,100}$")], Number]
_who = Annotated[str, Field(pattern="^(base|uft|entry)$")]
_versions = dict[_name, _name]


def worlds_of(number: int = ROUND) -> tuple[int, ...]:
    """The four worlds of a round, drawn by a digest of its number: the k-th takes the tuning draw k.

    >>> worlds_of(1)
    (3990340, 2184793, 2071450, 2764259)
    """
    return tuple(FIRST + DRAWS * (_digest(f"round {number} {k}") % 1_000_000) + k for k in range(DRAWS))


def fresh_world(told: str, day: str) -> int:
    """The world in which an entry is verified: drawn from its digest and the day, so nobody knows it beforehand."""
    return FIRST + _digest(f"{told} {day}") % 4_000_000


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"uftlab leaderboard {text}".encode(), digest_size=8).digest())


class Fresh(BaseModel):
    """What came of an entry in the world that was drawn for its verification."""

    model_config = ConfigDict(strict=True, extra="forbid")
    world: int
    measured: dict[_who, _metrics]

    def margin(self) -> float:
        """The sum of the tuning rule there, entry minus `uft`."""
        return sums(self.measured[ENTRY], self.measured[RIVAL], self.measured[BASE])


class Verified(BaseModel):
    """A verification: when, with which versions, how far from what the entry says, and the fresh world."""

    model_config = ConfigDict(strict=True, extra="forbid")
    day: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    versions: _versions
    device: _words
    largest_difference: Number
    fresh: Fresh


class Entry(BaseModel):
    """A file of the leaderboard."""

    model_config = ConfigDict(strict=True, extra="forbid")
    round: int
    by: _words
    method: _name
    code: Annotated[str, Field(pattern=r"^[\w ./@#-]{0,200}$")]  # file and commit of a method of one's own
    settings: Annotated[list[list[dict[_name, Number]]], Field(min_length=DRAWS, max_length=DRAWS)]  # of each world
    worlds: list[int]
    measured: dict[_who, Annotated[list[_metrics], Field(min_length=DRAWS, max_length=DRAWS)]]
    versions: _versions
    device: _words
    verified: Verified | None = None

    def told(self) -> str:
        """A digest of all that the entrant says."""
        said = json.dumps(self.model_dump(exclude={"verified"}), sort_keys=True)
        return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()

    def margin(self) -> Interval:
        """The sum of the tuning rule, entry minus `uft`, paired by world: what is ranked."""
        of = self.measured
        return interval([sums(*own) for own in zip(of[ENTRY], of[RIVAL], of[BASE], strict=True)])

    def forgets(self) -> float:
        """Old text lost, entry minus `uft`, in nats per token: above 0 an entry has no rank."""
        lost = [
            own["retention/lost"] - uft["retention/lost"]
            for own, uft in zip(self.measured[ENTRY], self.measured[RIVAL], strict=True)
        ]
        return sum(lost) / len(lost)


def sums(entry: Mapping[str, float], rival: Mapping[str, float], base: Mapping[str, float]) -> float:
    """The sum that the tuning rule maximises, entry minus rival, in one world.

    >>> known = {"truth/cued": 0.8}
    >>> one, other = ({"instruction/both": b, "truth/mc2": 0.4} for b in (0.75, 0.5))
    >>> sums(one, other, known)
    0.25
    """
    return worth(dict(entry), base["truth/cued"]) - worth(dict(rival), base["truth/cued"])


# -------------------------------------------------------------------------------------------- entries


def read_entry(path: Path) -> Entry:
    """An entry as it is in a file.

    Raises:
        InputError: for what is no entry of this round, names no registered method or other worlds, or has settings
            that the method does not have.
    """
    remedy = "Make it with `uftlab enter`"
    try:
        entry = Entry.model_validate(read_json(path.read_bytes()))
    except ValidationError as error:
        place, wrong = first_fault(error)
        raise InputError(f"{path}: {place}", "be as `uftlab enter` writes it", wrong, remedy) from None
    except (OSError, ValueError) as error:
        got = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}", "be an entry of the leaderboard", got, remedy) from None
    if (entry.round, tuple(entry.worlds)) != (ROUND, worlds_of()):
        rule = f"be of round {ROUND} and its worlds {worlds_of()}"
        raise InputError(f"{path}", rule, f"round {entry.round}, worlds {tuple(entry.worlds)}", remedy)
    method = method_named(entry.method)
    lacking = [who for who in (BASE, RIVAL, ENTRY) for own in entry.measured.get(who, [{}]) if set(own) != {*HEADLINES}]
    if lacking:
        raise InputError(f"{path}: measured.{lacking[0]}", f"have {', '.join(HEADLINES)}", "others", remedy)
    for number, settings in enumerate(entry.settings):
        check_settings(method, settings, f"{path}: settings.{number}")
    return entry


def read_settings(path: Path) -> Settings:
    """The settings of each stage from a JSON file: a list of objects. `check_settings` looks at what they say.

    Raises:
        InputError: for anything else.
    """
    remedy = 'Write [{"learning_rate": 0.001}]'
    try:
        own = read_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}", "be a JSON list", error, remedy) from None
    if not isinstance(own, list) or not all(isinstance(stage, dict) for stage in own):
        raise InputError(f"{path}", "be a list with one object for each stage", type(own).__name__, remedy)
    return own


def check_settings(method: Method, settings: Sequence[Mapping[str, float]], what: str = "Settings") -> None:
    """Refuses settings of other stages or names, and those that would cost more than the budget.

    Those that ship are taken. Else what the sweep varies may be anywhere near its range, and the rest must be the
    default: how many completions are sampled, for instance, is a cost that the budget does not count.

    Raises:
        InputError: naming the stage and the setting.
    """
    if not method.stages:
        raise InputError(what, "belong to a method that is trained", method.name, "Choose another method")
    if len(settings) != len(method.stages):
        rule = f"have {len(method.stages)} stage(s), as {method.name} has"
        raise InputError(what, rule, len(settings), "Give the settings of each stage")
    if [dict(own) for own in settings] in [settings_of(method, draw) for draw in range(DRAWS)]:
        return
    for number, (stage, own, varied) in enumerate(zip(method.stages, settings, space(method), strict=True)):
        ranges = {d.name: (d.low / MORE, d.high * MORE) if d.log else (d.low, d.high) for d in varied}
        if "beta_nats" in ranges:
            ranges["beta"] = (1e-6, 1e3)
        defaults = stage_defaults(stage)
        for name, value in own.items():
            low, high = ranges.get(name, (defaults.get(name),) * 2)
            if low is None or high is None or not low <= value <= high:
                rule = f"be from {low:g} to {high:g}" if low is not None and high is not None else "be one it has"
                raise InputError(f"{what}.{number}: {name} of {method.name}", rule, value, "Take it out or change it")
        if "learning_rate" not in own:
            raise InputError(f"{what}.{number}", "have a learning_rate", sorted(own), "Give one")


def enter(
    method: str, by: str, folder: Path, code: str = "", settings: Settings | None = None, train: Callable | None = None
) -> Entry:
    """Train a method, `uft` and nothing (the base) in the four worlds, and return the entry.

    Args:
        folder: of the trials; what is finished there is not trained again.
        code: file and commit of a method of one's own.
        settings: of each stage, for all worlds; by default the k-th world has those of the tuning draw k.
        train: runs trials in a folder; by default `uftlab.study.workers.run_trials`.

    Raises:
        InputError: for settings that the method does not have, or a method of one's own without its code.
    """
    from uftlab.study.workers import registered  # here, because reading entries must not wait for torch

    known = method_named(method)
    if any(registered([method])) and not code:
        rule = "come with the file and commit of its code"
        raise InputError(f"The method {method} of your own", rule, "none", "Give --code 'FILE at COMMIT'")
    chosen = [settings or [dict(own) for own in trial(method, w, PROFILES["class"]).settings] for w in worlds_of()]
    for own in chosen:
        check_settings(known, own)
    measured = measure(method, chosen, worlds_of(), folder, train)
    said = {"round": ROUND, "by": by, "method": method, "code": code, "settings": chosen, "worlds": [*worlds_of()]}
    try:
        return Entry.model_validate({**said, **measured})
    except ValidationError as error:
        place, wrong = first_fault(error)
        raise InputError(f"The entry's {place}", "be plain words", wrong, "Change it") from None


def write_entry(path: Path, entry: Entry) -> None:
    """Write an entry, verified or not."""
    write_atomically(path, json.dumps(entry.model_dump(exclude_none=True), indent=1) + "\n")


def measure(
    method: str, settings: Sequence[Settings], worlds: Sequence[int], folder: Path, train: Callable | None = None
) -> dict[str, Any]:
    """Train a method with its settings in each world beside `uft` and the base: `measured`, `versions`, `device`.

    Raises:
        InputError: for a world whose base model is not there.
    """
    from uftlab.models.policies import check_worlds
    from uftlab.study.workers import run_trials

    check_worlds(worlds)
    size = PROFILES["class"]
    wanted: dict[str, list[Trial]] = {
        BASE: [trial(BASE, world, size) for world in worlds],
        RIVAL: [trial(RIVAL, world, size) for world in worlds],
        ENTRY: [
            Trial(method, world, size, frozen(own), draw=draw_of(method, world))
            for own, world in zip(settings, worlds, strict=True)
        ],
    }
    wanted = {who: [replace(own, curves=False) for own in trials] for who, trials in wanted.items()}
    every = list(dict.fromkeys(own for trials in wanted.values() for own in trials))
    for _ in (train or run_trials)(every, folder):
        pass
    stored = {own: read_trial(own.path(folder)) for own in every}
    one = stored[every[0]]
    return {
        "measured": {
            who: [{name: stored[own]["metrics"][name] for name in HEADLINES} for own in trials]
            for who, trials in wanted.items()
        },
        "versions": {"uftlab": VERSION, **one["versions"]},
        "device": _plain(one["device"]),
    }


def _plain(text: str) -> str:
    return re.sub(r"[^\w ,.'&()+-]", " ", text)[:80]


# --------------------------------------------------------------------------------------- verification


@dataclass(frozen=True)
class Difference:
    """The place where an entry and its repetition differ most, and by how much."""

    who: str
    world: int
    metric: str
    said: float
    found: float

    @property
    def size(self) -> float:
        """The distance between what the entry says and what was found."""
        return abs(self.said - self.found)


def largest_difference(said: Measured, found: Measured, worlds: Sequence[int]) -> Difference:
    """Over all that was measured in all worlds."""
    return max(
        (
            Difference(who, world, name, one[name], other[name])
            for who in said
            for world, one, other in zip(worlds, said[who], found[who], strict=True)
            for name in one
        ),
        key=lambda own: own.size,
    )


def verify(entry: Entry, day: date | None = None, train: Callable | None = None) -> Entry:
    """Train an entry again, compare to the last digit or within `TOLERANCE`, and measure it in a fresh world.

    To the last digit where versions and device are those of the entry. Otherwise a sum over a batch may have other
    last digits, and training makes more of them.

    Args:
        day: of the verification; today if None.
        train: as in `enter`.

    Raises:
        InputError: for an entry that differs, naming the world, the metric and both values.
    """
    today = (day or datetime.now(UTC).date()).isoformat()
    fresh = fresh_world(entry.told(), today)
    with tempfile.TemporaryDirectory(prefix="uftlab-") as own:
        again = measure(entry.method, entry.settings, entry.worlds, Path(own), train)
        most = largest_difference(entry.measured, again["measured"], entry.worlds)
        alike = (entry.versions, entry.device) == (again["versions"], again["device"])
        allowed = 0.0 if alike else TOLERANCE
        if most.size > allowed:
            what = f"{most.metric} of {most.who} in world {most.world}"
            rule = f"be within {allowed:g} of {most.found:g}, which training it again gave"
            raise InputError(what, rule, f"{most.said:g}", "Measure the entry again with `uftlab enter`")
        with base_of(fresh):
            settings = entry.settings[draw_of(entry.method, fresh)]
            there = measure(entry.method, [settings], [fresh], Path(own), train)
    verified = {
        "day": today,
        "versions": again["versions"],
        "device": again["device"],
        "largest_difference": most.size,
        "fresh": {"world": fresh, "measured": {who: own[0] for who, own in there["measured"].items()}},
    }
    return entry.model_copy(update={"verified": Verified.model_validate(verified)})


@contextmanager
def base_of(world: int) -> Iterator[None]:
    """The base model of a world, built if it is not there, and then removed afterwards."""
    from uftlab.models import pretrain
    from uftlab.models.policies import world_weights

    path = world_weights(world)
    if path.is_file():
        yield
        return
    check_writable(path.parent, "copy of uftlab: the base model of the fresh world goes there")
    try:
        pretrain.save_base(pretrain.pretrain(world), world)
        yield
    finally:
        path.unlink(missing_ok=True)


def stored_entries(folder: Path | None = None) -> list[Entry]:
    """The entries of a folder in the order of their rank: by `margin`; those that forget more than `uft` come last."""
    found = [read_entry(path) for path in sorted((folder or STORED).glob("*.json"))]
    return sorted(found, key=lambda own: (own.forgets() > 0, -own.margin().mean))
