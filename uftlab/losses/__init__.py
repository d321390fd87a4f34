"""One pure function per equation. Losses come out unreduced, one per completion or per pair.

Arguments are summed log-probabilities in nats (`*_logps`), unless a name says `mean_` or `token_`; every reward
carries beta. How losses are averaged over a batch is decided in `uftlab.objectives.registry`, where the batch is known.

`family` holds the losses that are a distance between sigma(reward - baseline) and a score; `pairs` those that
compare a chosen with a rejected completion; `completions` those that reweight the likelihood of one completion, and
the policy gradient.
"""

# ruff: noqa: F401  (the names are imported here to be found in one place)

from uftlab.losses.completions import (
    asft_loss,
    dft_loss,
    kl_sft_loss,
    leave_one_out,
    log_partition_of_quantiles,
    policy_gradient_loss,
    qrpo_loss,
    sft_loss,
    signed_sft_loss,
    var_loss,
    var_weights,
)
from uftlab.losses.family import (
    DISTANCES,
    absolute_error,
    apo_zero_loss,
    bco_loss,
    bco_shift,
    cdpo_loss,
    cross_entropy,
    kto_kl_baseline,
    kto_loss,
    minor_sft_loss,
    squared_error,
    una_absolute_error_loss,
    una_cross_entropy_loss,
    una_pair_loss,
    una_squared_error_loss,
)
from uftlab.losses.pairs import (
    dpo_loss,
    dpop_loss,
    ipo_loss,
    ipo_mean_loss,
    log1mexp,
    orpo_loss,
    prefix_masked_cdpo_loss,
    shared_prefix,
    simpo_loss,
    tdpo_loss,
)
