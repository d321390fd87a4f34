"""The names that notebooks and scripts use most, in one place; each is loaded when it is asked for.

    from uftlab import bandit, losses, rewards, theme, widgets

And what a script needs that trained with TRL's DPOTrainer before (docs/from_dpo_trainer.md):

    from uftlab import UFTConfig, UFTTrainer

Everything else is imported from the room it lives in: `from uftlab.world.world import World`.
"""

import importlib
from typing import Any

from uftlab.version import VERSION

__version__ = VERSION

HOMES = {
    "bandit": "uftlab.course.bandit",
    "comparisons": "uftlab.study.comparisons",
    "losses": "uftlab.losses",
    "results": "uftlab.study.results",
    "rewards": "uftlab.losses.rewards",
    "texts": "uftlab.course.texts",
    "theme": "uftlab.plots.theme",
    "widgets": "uftlab.plots.widgets",
}
CLASSES = dict.fromkeys(("UFTConfig", "UFTTrainer"), "uftlab.training.trainer")


def __getattr__(name: str) -> Any:
    if name in CLASSES:
        return getattr(importlib.import_module(CLASSES[name]), name)
    if name not in HOMES:
        raise AttributeError(f"module 'uftlab' has no attribute {name!r}")
    return importlib.import_module(HOMES[name])


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES, *CLASSES])
