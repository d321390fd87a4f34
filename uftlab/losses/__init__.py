"""One pure function per equation. A loss is returned unreduced, with one value per completion or per pair.

Arguments named `*_logps` are log-probabilities in nats, summed over the tokens of a completion, unless the name says
`mean_` or `token_`. Every reward includes beta. `uftlab.objectives.registry` decides how losses are averaged over a
batch, because the sizes are known there.

| module        | what it holds                                                                                |
|---------------|----------------------------------------------------------------------------------------------|
| `family`      | losses that are a distance between sigma(reward - baseline) and a score                      |
| `pairs`       | losses that compare a chosen with a rejected completion                                      |
| `completions` | losses that reweight the likelihood of one completion, and the policy gradient               |
| `distillation` | the divergence of a student from a teacher at each token                                   |
| `weights`     | what is added to any loss for how far the weights have moved                                 |
| `rewards`     | implicit rewards and gates; notebooks import this module under its own name                  |

Every public function of all modules but `rewards` is also a name of this package: `losses.dpo_loss`. The list is read
from the modules, so a new function needs no entry here. A new module needs one line, for type checkers only.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers, which do not run the loop below
    from uftlab.losses.completions import *  # noqa: F403
    from uftlab.losses.distillation import *  # noqa: F403
    from uftlab.losses.family import *  # noqa: F403
    from uftlab.losses.pairs import *  # noqa: F403
    from uftlab.losses.weights import *  # noqa: F403

for _found in pkgutil.iter_modules(__path__, "uftlab.losses."):  # noqa: F405
    _module = importlib.import_module(_found.name)
    if _found.name != "uftlab.losses.rewards":
        globals().update(
            (_name, _value)
            for _name, _value in vars(_module).items()
            if not _name.startswith("_") and getattr(_value, "__module__", "") == _found.name
        )
