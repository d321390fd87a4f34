"""The registry: every objective as terms of `uftlab.losses`, with what it needs, its source and how sure we are of it.

To add one, write a function and a line here (docs/how_to_add_a_loss.md). It is then a method of that name, runs in
`uftlab run --methods` and in `ObjectiveTrainer`, gets a card in docs/methods and is tested with all others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uftlab import losses
from uftlab.errors import InputError
from uftlab.objectives.objective import Objective, Rows, Settings, Term

# ------------------------------------------------------------------------------ terms: rows to losses


def _sft_on(role: str, kind: str, per: str = "token", weight: str | None = None) -> Term:
    def term(rows: Rows, settings: Settings) -> Tensor:
        return losses.sft_loss(rows.of(role).policy_logps)

    return Term(kind, term, per, weight, losses.sft_loss)


def _sums(rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of pairs, summed log-probabilities: policy chosen, policy rejected, reference chosen, reference rejected."""
    chosen, rejected = rows.of("chosen"), rows.of("rejected")
    return chosen.policy_logps, rejected.policy_logps, chosen.reference_logps, rejected.reference_logps


def _on_pairs(loss: Callable[..., Tensor], *names: str, weight: str | None = None) -> Term:
    """A loss of the four sums of a pair and the named settings."""

    def term(rows: Rows, settings: Settings) -> Tensor:
        return loss(*_sums(rows), *(settings[name] for name in names))

    return Term("preference", term, weight=weight, equation=loss)


def _on_pair_means(loss: Callable[..., Tensor], *names: str) -> Term:
    """A loss of the two policy sums of a pair, their lengths and the named settings: no reference."""

    def term(rows: Rows, settings: Settings) -> Tensor:
        lengths = (rows.of(side).at.lengths for side in ("chosen", "rejected"))
        return loss(*_sums(rows)[:2], *lengths, *(settings[name] for name in names))

    return Term("preference", term, equation=loss)


def _una(kind: str, loss: Callable[..., Tensor]) -> Term:
    """A loss of policy and reference sums, feedback and beta."""

    def term(rows: Rows, settings: Settings) -> Tensor:
        own = rows.of(kind)
        return loss(own.policy_logps, own.reference_logps, own.scores, settings["beta"])

    return Term(kind, term, equation=loss)


def _kto(rows: Rows, settings: Settings) -> Tensor:
    labelled, mismatched = rows.of("label"), rows.of("mismatched")
    baseline = losses.kto_kl_baseline(mismatched.policy_logps, mismatched.reference_logps)
    return losses.kto_loss(labelled.policy_logps, labelled.reference_logps, labelled.scores, baseline, settings["beta"])


def _ipo_mean(rows: Rows, settings: Settings) -> Tensor:
    chosen, rejected = rows.of("chosen"), rows.of("rejected")
    return losses.ipo_mean_loss(*_sums(rows), chosen.at.lengths, rejected.at.lengths, settings["beta"])


def _dpo_norm(rows: Rows, settings: Settings) -> Tensor:
    chosen, rejected = rows.of("chosen"), rows.of("rejected")
    return losses.dpo_norm_loss(*_sums(rows), chosen.at.lengths, rejected.at.lengths, settings["beta"])


def _tpo(rows: Rows, settings: Settings) -> Tensor:
    return losses.tpo_loss(*_sums(rows)[:2], settings["beta"])


def _bco(rows: Rows, settings: Settings) -> Tensor:
    beta, sums = settings["beta"], _sums(rows)
    shift = losses.bco_shift(beta * (sums[0] - sums[2]), beta * (sums[1] - sums[3]))
    return losses.bco_loss(*sums, beta, shift)


def _tdpo(rows: Rows, settings: Settings) -> Tensor:
    chosen, rejected = rows.of("chosen").at.kl_from_reference(), rows.of("rejected").at.kl_from_reference()
    return losses.tdpo_loss(*_sums(rows), chosen, rejected, settings["beta"], settings["alpha"])


def _joint(rows: Rows, settings: Settings) -> Tensor:
    chosen, rejected = rows.of("chosen").at, rows.of("rejected").at
    prefix = losses.shared_prefix(chosen.ids, rejected.ids) & chosen.mask & rejected.mask
    more = (*_sums(rows)[2:], settings["beta"], settings["label_smoothing"])
    return losses.prefix_masked_cdpo_loss(chosen.logps, rejected.logps, prefix, *more)


def _kl_sft(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("demonstration")
    return losses.kl_sft_loss(own.policy_logps, own.at.kl_to_reference(), settings["kl_weight"])


def _asft(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("demonstration")
    return losses.asft_loss(own.at.logps, own.at.kl_from_reference(), settings["kl_weight"])


def _dft(rows: Rows, settings: Settings) -> Tensor:
    return losses.dft_loss(rows.of("demonstration").at.logps)


def _chord_phi(rows: Rows, settings: Settings) -> Tensor:
    return losses.chord_phi_loss(rows.of("demonstration").at.logps)


def _iw_sft(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("demonstration")
    more = (own.at.lengths, settings["exponent"], settings["cap"])
    return losses.iw_sft_loss(own.policy_logps, own.reference_logps, *more)


def _psft(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("demonstration").at
    return losses.psft_loss(own.logps, own.reference_token_logps(), own.mask, settings["clip"])


def _eaft(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("demonstration").at
    return losses.eaft_loss(own.logps, own.entropies, settings["power"], settings["scale"])


def _eaft_rolled(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("demonstration").at
    return losses.eaft_rolled_loss(own.logps, own.entropies, own.mask, settings["power"], settings["scale"])


def _minor_sft(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("demonstration")
    return losses.minor_sft_loss(own.policy_logps, own.reference_logps, own.at.lengths, settings["beta"])


def _var(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("scored")
    return losses.var_loss(own.policy_logps, own.scores, settings["temperature"])


def _signed_sft(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("scored")
    return losses.signed_sft_loss(own.policy_logps, own.scores, settings["scale"])


def _accepted_sft(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("scored")
    return losses.accepted_sft_loss(own.policy_logps, own.scores)


def _policy_gradient(rows: Rows, settings: Settings) -> Tensor:
    own = rows.of("scored")
    return losses.policy_gradient_loss(own.policy_logps, own.reference_logps, own.scores, float(settings["clip"]))


def _chord_policy_gradient(rows: Rows, settings: Settings) -> Tensor:
    return (1 - settings["mu"]) * _policy_gradient(rows, settings)


def _luffy(rows: Rows, settings: Settings) -> Tensor:
    shown = rows.of("demonstration")
    shaped = losses.shaped_policy_gradient_loss(shown.at.logps, shown.at.mask, shown.scores, settings["shape"])
    return torch.cat([_policy_gradient(rows, settings), shaped])


def _distillation(rows: Rows, settings: Settings) -> Tensor:
    return rows.of("scored").at.divergence_from_reference(float(settings["reverse"]))


# ------------------------------------------------------------------------------------- the registry

_DEMONSTRATION, _PAIR = "demonstration", "preference"
_SFT = _sft_on(_DEMONSTRATION, _DEMONSTRATION)
_BETA = {"beta": 0.1}
_UNA = "UNA, arXiv 2408.15339"
_KL_WEIGHTS = ("kl_weight", (0.03, 0.1, 0.3, 1.0))
_EAFT = {"power": 1.0, "scale": 3.0}
_CLOSES = "the gate {} closes once the implicit score s is near 0 or 1: what is learned by then stays as it is"
_SQUARED_CLOSES = _CLOSES.format("2 beta |score - s| s (1 - s)")
_ABSOLUTE_CLOSES = _CLOSES.format("beta s (1 - s)")
_DISTILLED = Term("scored", _distillation, "token", equation=losses.distillation_loss)
_MARGIN = "only the margin counts: both log-probabilities may fall, the chosen one too"

_ALL = (
    Objective(
        "sft", (_SFT,), "negative log-likelihood, averaged over tokens", "standard", reference=False, verified="P",
        failure="pulls every token with the same force, so it drifts from the reference and forgets",
        learning_rate=4e-3,
    ),
    Objective(
        "sft-sum", (_sft_on(_DEMONSTRATION, _DEMONSTRATION, per="example"),),
        "negative log-likelihood, summed over each completion", "standard", reference=False, verified="-",
        note="A control: UFT sums, so this is SFT with the same weighting of long completions.",
        failure="long completions weigh more than short ones", learning_rate=2.5e-3,
    ),
    Objective(
        "dpo", (_on_pairs(losses.dpo_loss, "beta"),), "log-likelihood of the preference",
        "Rafailov et al. 2023, arXiv 2305.18290", _BETA, verified="P T", failure=_MARGIN,
    ),
    Objective(
        "cdpo", (_on_pairs(losses.cdpo_loss, "beta", "label_smoothing"),), "DPO that expects some labels to be flipped",
        "Mitchell 2023, cdpo.pdf", {**_BETA, "label_smoothing": 0.1}, verified="P T",
        note="Eq. 3 is in the author's DPO code, as an issue there quotes it, and in TRL's CPO trainer; TRL's DPO "
        "trainer ignores the smoothing.",
        failure="noise that is not symmetric moves the target; " + _MARGIN,
    ),
    Objective(
        "ipo", (_on_pairs(losses.ipo_loss, "beta"),), "squared distance of the log-ratio difference to 1 / (2 beta)",
        "Azar et al. 2023, arXiv 2310.12036, Eq. 17", _BETA, verified="2",
        note="On sums, as Eq. 17 is quoted in the code of DPO's authors. The paper itself could not be read.",
        failure="sums make the same target easy for long completions and hard for short ones",
    ),
    Objective(
        "ipo-mean", (Term(_PAIR, _ipo_mean, equation=losses.ipo_mean_loss),), "IPO on log-ratios per token",
        "Azar et al. 2023, arXiv 2310.12036; TRL", _BETA, tokens=True, verified="T",
        note="TRL's comment says that the paper's authors confirmed the token means.",
        failure="beta has another unit than in IPO on sums: the target is 1 / (2 beta) nats per token",
        axis=("beta", (0.3, 1.0, 3.0, 10.0)),
    ),
    Objective(
        "kto", (Term("label", _kto, equation=losses.kto_loss),), "prospect-theoretic value of labelled completions",
        "Ethayarajh et al. 2024, arXiv 2402.01306", _BETA, mismatched=True, across_batch=True, verified="P T",
        note="The paper shifts completions within a batch, we within the table; both estimate the same mean.",
        failure="the baseline is noisy in small batches, and matched completions in its place estimate something else",
    ),
    Objective(
        "orpo", (_on_pair_means(losses.orpo_loss, "odds_weight"),), "SFT on the chosen plus a log odds ratio",
        "Hong et al. 2024, arXiv 2403.07691", {"odds_weight": 0.1}, reference=False, tokens=True, verified="P T",
        failure="odds are infinite at probability 1 (NaN without a clamp); no reference holds it back",
        axis=("odds_weight", (0.1, 0.3, 1.0, 3.0)),
    ),
    Objective(
        "simpo", (_on_pair_means(losses.simpo_loss, "beta", "target_margin"),),
        "DPO on log-probabilities per token with a target margin", "Meng et al. 2024, arXiv 2405.14734",
        {"beta": 2.0, "target_margin": 1.0}, reference=False, tokens=True, verified="P T",
        failure="no reference: it can leave the base model altogether; " + _MARGIN,
        axis=("beta", (1.0, 2.0, 5.0, 10.0)),
    ),
    Objective(
        "dpop", (_on_pairs(losses.dpop_loss, "beta", "penalty"),), "DPO that keeps the chosen above the reference",
        "Pal et al. 2024 (Smaug), arXiv 2402.13228", {**_BETA, "penalty": 5.0}, verified="P",
        note="As an author corrects it (abacusai/smaug, issue 2): the penalty stands inside beta [...]; the first "
        "version of the paper had other brackets. They found lambda to matter little between 5 and 500.",
        failure="a penalty that is large swamps the preference while the chosen is below the reference",
    ),
    Objective(
        "tdpo", (Term(_PAIR, _tdpo, equation=losses.tdpo_loss),), "DPO with a KL term per token (TDPO2)",
        "Zeng et al. 2024, arXiv 2404.11999", {**_BETA, "alpha": 0.5}, tokens=True, distributions=True, verified="P",
        failure="needs the reference's full distribution in every step; " + _MARGIN,
    ),
    Objective(
        "apo-zero", (_on_pairs(losses.apo_zero_loss, "beta"),), "each side of a pair by itself, absolute error",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266", _BETA, verified="T", failure=_ABSOLUTE_CLOSES,
    ),
    Objective(
        "bco", (Term(_PAIR, _bco, equation=losses.bco_loss),), "each side of a pair by itself, cross-entropy, shifted",
        "Jung et al. 2024, arXiv 2404.04656", _BETA, across_batch=True, verified="T",
        note="We depart in the shift: TRL's is the mean of all rewards since the first step, chosen and rejected, "
        "updated before use; ours is that of the batch, the same in the first step, and needs no state.",
        failure="without the shift a reward that is high on both sides pushes the rejected side alone",
    ),
    Objective(
        "una-pair", (_on_pairs(losses.una_pair_loss, "beta"),), "UNA on pairs with log sigma: the same as DPO",
        _UNA, _BETA, verified="P", failure=_MARGIN,
    ),
    Objective(
        "una-binary", (_una("label", losses.una_squared_error_loss),),
        "squared error of the implicit score against labels", _UNA, _BETA, verified="P", failure=_SQUARED_CLOSES,
    ),
    Objective(
        "una-binary-cross-entropy", (_una("label", losses.una_cross_entropy_loss),),
        "cross-entropy of the implicit score against labels", _UNA, _BETA, verified="P",
        failure="a rejected completion is pushed down without bound",
    ),
    Objective(
        "una-binary-absolute-error", (_una("label", losses.una_absolute_error_loss),),
        "absolute error of the implicit score against labels", f"{_UNA}; the distance is ours", _BETA, verified="-",
        failure=_ABSOLUTE_CLOSES,
    ),
    Objective(
        "una-score", (_una("scored", losses.una_squared_error_loss),),
        "squared error of the implicit score against scores", _UNA, _BETA, verified="P", failure=_SQUARED_CLOSES,
    ),
    Objective(
        "una-score-cross-entropy", (_una("scored", losses.una_cross_entropy_loss),),
        "cross-entropy of the implicit score against scores", f"{_UNA}, Eq. 12 with soft scores (ours)", _BETA,
        verified="P", failure="its lowest value is the entropy of the score, not 0: losses of tables do not compare",
    ),
    Objective(
        "una-score-absolute-error", (_una("scored", losses.una_absolute_error_loss),),
        "absolute error of the implicit score against scores", f"{_UNA}; the distance is ours", _BETA, verified="-",
        failure=_ABSOLUTE_CLOSES,
    ),
    Objective(
        "signed-sft", (Term("scored", _signed_sft, equation=losses.signed_sft_loss),),
        "likelihood weighted by score - 1/2", f"derived from {_UNA}: its limit for small beta", {"scale": 1.0},
        reference=False, verified="-",
        note="A control: UFT without reference, beta and gate. A small scale matters to Adam's epsilon alone.",
        failure="nothing closes: a completion below one half is pushed down without bound, whatever the reference says",
    ),
    Objective(
        "accepted-sft", (Term("scored", _accepted_sft, equation=losses.accepted_sft_loss),),
        "likelihood weighted by score - 1/2, on completions above one half alone", "ours; rejection sampling with "
        "graded acceptance", reference=False, verified="-",
        note="A control: signed SFT without the negative part.",
        failure="a bad completion teaches nothing, so what the policy already says badly stays likely",
    ),
    Objective(
        "rpo", (_on_pairs(losses.dpo_loss, "beta"), _sft_on("chosen", _PAIR, weight="sft_weight")),
        "DPO plus SFT on the chosen completion", "Pang et al. 2024, arXiv 2404.19733; Liu et al. 2024, "
        "arXiv 2405.16436; TRL", {**_BETA, "sft_weight": 1.0}, verified="T",
        note="Token-averaged over the batch as in TRL; Pang et al. divide each completion by its own length.",
        failure="the two weights must be balanced by hand",
    ),
    Objective(
        "sft-plus-dpo", (_SFT, _on_pairs(losses.dpo_loss, "beta", weight="preference_weight")),
        "SFT on demonstrations plus weighted DPO on pairs in each step",
        "the plain mixture; compare RPO, Pang et al. 2024", {**_BETA, "preference_weight": 1.0}, verified="-",
        failure="two losses of different scale: the weight must be tuned",
    ),
    Objective(
        "joint-sft-dpo",
        (
            Term(_PAIR, _joint, equation=losses.prefix_masked_cdpo_loss),
            _sft_on("chosen", _PAIR, weight="sft_weight"),
        ),
        "cDPO beyond the prefix that both sides share, plus SFT on the chosen",
        "Yin et al. 2025 (Marco-o1 v2), arXiv 2503.01461", {**_BETA, "label_smoothing": 0.1, "sft_weight": 1.0},
        tokens=True, verified="2",
        note="The paper's equation and its epsilon could not be read. The mask cannot change the loss without dropout.",
        failure="pairs that differ late leave few tokens to the preference",
    ),
    Objective(
        "kl-sft", (Term(_DEMONSTRATION, _kl_sft, "token", equation=losses.kl_sft_loss),),
        "SFT plus KL(policy || reference) at each token", "a common control", {"kl_weight": 0.1}, reference=False,
        tokens=True, distributions=True, verified="-",
        note="No one paper's. The code of ASFT's authors has the other direction under a like name.",
        failure="holds the policy where the demonstrations go, not elsewhere", learning_rate=4e-3, axis=_KL_WEIGHTS,
    ),
    Objective(
        "var", (Term("scored", _var, equation=losses.var_loss),), "SFT weighted by e^(score / lambda)",
        "Du et al. 2025, arXiv 2502.11026", {"temperature": 0.5}, reference=False, across_batch=True, verified="2",
        note="A variant: a summary of the paper keeps a factor pi_ref(y|x) in the weight, which ours leaves out. The "
        "estimate of Z could not be read beyond its being taken in the batch; ours pools prompts.",
        failure="it never pushes a completion down, so a table of bad completions is still imitated",
        axis=("temperature", (0.1, 0.3, 1.0, 3.0)),
    ),
    Objective(
        "dft", (Term(_DEMONSTRATION, _dft, "token", equation=losses.dft_loss),),
        "SFT with each token weighted by its probability", "Wu et al. 2025, arXiv 2508.05629", reference=False,
        tokens=True, verified="T",
        failure="what the base finds unlikely is hardly learned; the value of the loss rises before it falls",
        learning_rate=4e-3,
    ),
    Objective(
        "asft", (Term(_DEMONSTRATION, _asft, "token", equation=losses.asft_loss),),
        "DFT plus KL(reference || policy) at each token", "Zhu et al. 2025, arXiv 2509.23753", {"kl_weight": 0.1},
        reference=False, tokens=True, distributions=True, verified="P",
        failure="needs the reference's full distribution in every step; learns the unlikely as slowly as DFT",
        learning_rate=4e-3, axis=_KL_WEIGHTS,
    ),
    Objective(
        "minor-sft", (Term(_DEMONSTRATION, _minor_sft, equation=losses.minor_sft_loss),),
        "SFT whose weight falls with the implicit reward", "Xie et al. 2024, arXiv 2408.10642", _BETA, tokens=True,
        verified="2", note="The gradient is as a summary of the paper prints it; the paper itself could not be read.",
        failure="with the factor 2 / (beta n) dropped, as in some libraries, beta scales the learning rate too",
        learning_rate=4e-3,
    ),
    Objective(
        "qrpo", (_una("scored", losses.qrpo_loss),), "regression of the implicit reward on its optimum, by quantiles",
        "Matrenok et al. 2025, arXiv 2507.08068", _BETA, quantiles=True, verified="P",
        note="The authors let the reference complete each prompt and rank among those; we pool the table's scores.",
        failure="with ties, or scores that the reference would not produce, the known Z is wrong for all rows",
    ),
    Objective(
        "dpo-norm", (Term(_PAIR, _dpo_norm, equation=losses.dpo_norm_loss),), "DPO on log-ratios per token",
        "Lambert et al. 2024 (Tulu 3), arXiv 2411.15124; TRL", {"beta": 5.0}, tokens=True, verified="T",
        note="As TRL has it (`sigmoid_norm`). beta is 5 in the authors' scripts. It is no setting of DPO under another "
        "name: pairs of unequal lengths weigh their sides unequally.",
        failure="beta has another unit than in DPO: nats per token; " + _MARGIN,
        axis=("beta", (0.01, 0.1, 1.0, 10.0)),
    ),
    Objective(
        "tpo",
        (_sft_on(_DEMONSTRATION, _DEMONSTRATION, weight="sft_weight"), Term(_PAIR, _tpo, equation=losses.tpo_loss)),
        "SFT on demonstrations plus DPO without a reference on pairs, in each step",
        "Saeidi et al. 2024, arXiv 2405.16681; TRL", {"beta": 0.01, "sft_weight": 1.0}, reference=False, verified="T",
        note="As in TRL's experimental trainer, with its defaults; its variants (hinge, IPO, TPO-L) are left out. "
        "There the best completion answers the prompt of the pair; ours are demonstrations, on prompts of their own.",
        failure="no reference: the weight of SFT alone holds it back; " + _MARGIN,
        axis=("beta", (0.001, 0.01, 0.1, 1.0)),
    ),
    Objective(
        "eaft", (Term(_DEMONSTRATION, _eaft, "token", equation=losses.eaft_loss),),
        "SFT with each token weighted by the policy's entropy", "Diao et al. 2026, arXiv 2601.02151", _EAFT,
        reference=False, tokens=True, entropies=20, verified="P",
        note="As in the code that the authors gave to LLaMA-Factory: entropy among the 20 most probable words, divided "
        "by 3 (log 20 is 2.996), average over all tokens. The README of the method says \"normalized\" without a "
        "formula. Axolotl divides by nothing: scale 1.",
        failure="where the policy is sure and wrong it learns as little as where it is sure and right",
        learning_rate=4e-3,
    ),
    Objective(
        "eaft-rolled", (Term(_DEMONSTRATION, _eaft_rolled, "token", equation=losses.eaft_rolled_loss),),
        "SFT with each token weighted by the policy's entropy at another token", "ours; a control of EAFT", _EAFT,
        reference=False, tokens=True, entropies=20, across_batch=True, verified="-",
        note="The weights of a batch are those of EAFT, each given to the token half a batch further on.",
        failure="weights know nothing of their tokens, so it is SFT with noise",
        learning_rate=4e-3,
    ),
    Objective(
        "psft", (Term(_DEMONSTRATION, _psft, "token", equation=losses.psft_loss),),
        "the clipped ratio of PPO with advantage 1, on demonstrations", "Zhu et al. 2025, arXiv 2508.17784",
        {"clip": 0.28}, reference=False, tokens=True, distributions=True, verified="P",
        note="As in the authors' recipe: clip 0.2 below, which has no effect, and 0.28 above; average over all tokens. "
        "There the old policy is renewed every 8 steps: 64 rows are read, then stepped on 8 at a time. Here it is the "
        "reference, so the policy at the start, unless the stage has the option `refresh`.",
        failure="with an old policy that is never renewed, no token becomes much more probable than 1 + clip times",
        learning_rate=4e-3, axis=("clip", (0.05, 0.2, 0.8, 3.2)),
    ),
    Objective(
        "iw-sft", (Term(_DEMONSTRATION, _iw_sft, "token", equation=losses.iw_sft_loss),),
        "SFT on completions weighted by how much likelier they have become",
        "Qin & Springenberg 2025, arXiv 2507.12856", {"exponent": 1.0, "cap": 16.0}, tokens=True, verified="P",
        note="As in the authors' code, which disagrees with itself: its loss has 2 for the exponent unless told "
        "otherwise, and its trainer says 1. There the paper's ratio of whole completions is one of mean tokens. A "
        "variant with a ratio for each token, between 0.2 and 1.8, is never called.",
        failure="what was learned first is learned faster, also if it is a mistake",
        learning_rate=4e-3, axis=("exponent", (0.25, 0.5, 1.0, 4.0)),
    ),
    Objective(
        "chord-phi", (Term(_DEMONSTRATION, _chord_phi, "token", equation=losses.chord_phi_loss),),
        "SFT with each token weighted by p (1 - p)", "Zhang et al. 2025 (CHORD), arXiv 2508.11408", reference=False,
        tokens=True, verified="P",
        note="The SFT term of the authors' code alone (`sft_phi`); CHORD adds it to reinforcement learning. A cut-off "
        "at high probabilities in that code is off by default and left out.",
        failure="what the base finds unlikely is hardly learned",
        learning_rate=4e-3,
    ),
)  # fmt: skip

OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in _ALL}

# On completions that a recipe samples, and on no table. In policy gradients the "reference" of a row is the policy
# that sampled it and its "score" an advantage; in distillation the reference is the teacher.
ON_SAMPLES: dict[str, Objective] = {
    "rloo": Objective(
        "rloo", (Term("scored", _policy_gradient, equation=losses.policy_gradient_loss),),
        "policy gradient with a leave-one-out baseline", "Ahmadian et al. 2024, arXiv 2402.14740",
        {"beta": 0.03, "clip": 0.2}, verified="2",
        note="KL is in the reward, R - beta log(pi / pi_ref), as of when the completion was sampled.",
        failure="it climbs whatever the reward function is wrong about; a small beta lets it",
        learning_rate=1e-3, axis=("beta", (0.003, 0.01, 0.03, 0.1)),
    ),
    "sampled-sft": Objective(
        "sampled-sft", (_sft_on("scored", "scored"),), "negative log-likelihood of samples, averaged over tokens",
        "standard", reference=False, verified="P",
        failure="all samples weigh the same; what was wrongly accepted is imitated like the rest",
    ),
    "sdft": Objective(
        "sdft", (_DISTILLED,), "divergence of the policy from itself with a context in the prompt, at each token",
        "Shenfeld et al. 2026, arXiv 2601.19897; TRL", {"reverse": 1.0}, reference=False, tokens=True,
        distributions=True, verified="2 T",
        note="Sources disagree. The paper's equation has reverse KL, our default; an author found later that all its "
        "results were made with forward KL, the default of the authors' code (idanshen/Self-Distillation, issue 5): "
        "`reverse` 0. The paper itself could not be read. We average over tokens of the step.",
        failure="the policy cannot become better than the teacher is with the context, and learns its faults too",
    ),
    "on-policy-distillation": Objective(
        "on-policy-distillation", (_DISTILLED,), "divergence of the policy from a teacher, at each token",
        "Agarwal et al. 2023 (GKD), arXiv 2306.13649; TRL", {"reverse": 1.0}, reference=False, tokens=True,
        distributions=True, verified="T",
        note="TRL's distillation trainer has reverse KL as its default, its GKD trainer the divergence at 1/2.",
        failure="the student gets no better than its teacher; where it never goes, nothing is learned",
    ),
    "chord-mu": Objective(
        "chord-mu",
        (
            _sft_on(_DEMONSTRATION, _DEMONSTRATION, weight="mu"),
            Term("scored", _chord_policy_gradient, "token", equation=losses.policy_gradient_loss),
        ),
        "mu SFT on demonstrations plus (1 - mu) policy gradient on own samples", "Zhang et al. 2025, arXiv 2508.11408",
        {"mu": 0.9, "clip": 0.2}, reference=False, verified="P",
        note="mu and its fall are from the authors' code and its example. Its advantages are those of GRPO; ours "
        "leave one out. There is no KL term, as in the example.",
        failure="while mu is large it forgets as SFT does; once mu is small it climbs what the reward is wrong about",
    ),
    "hpt": Objective(
        "hpt",
        (
            _sft_on(_DEMONSTRATION, _DEMONSTRATION, weight="sft_weight"),
            Term("scored", _policy_gradient, "token", equation=losses.policy_gradient_loss),
        ),
        "SFT on some prompts, policy gradient on the others", "Lv et al. 2025, arXiv 2509.04419",
        {"sft_weight": 1.0, "clip": 0.2}, reference=False, verified="P",
        note="The authors divide SFT by its tokens and the policy gradient by a fixed length; here both are divided by "
        "their tokens. Advantages leave one out, theirs are less the mean: the same but for a factor.",
        failure="a step with one unsolved prompt gives its demonstration the weight of all other prompts together",
    ),
    "luffy": Objective(
        "luffy", (Term("scored", _luffy, equation=losses.shaped_policy_gradient_loss),),
        "policy gradient on own samples and, shaped, on the demonstration of the same prompt",
        "Yan et al. 2025, arXiv 2504.14945", {"shape": 0.1, "clip": 0.2}, reference=False, tokens=True, verified="P",
        note="Own samples have the loss of rloo. The authors' script leaves out the clip, which does nothing with "
        "fresh samples, and has a bonus of 0.001 for entropy, which we leave out.",
        failure="a demonstration whose score is below the samples' is pushed down",
    ),
}  # fmt: skip


def objective_named(name: str) -> Objective:
    """The registered objective, or one clear error with the names there are."""
    known = {**OBJECTIVES, **ON_SAMPLES}
    if name not in known:
        raise InputError("An objective", f"be one of {', '.join(known)}", name, "See `uftlab methods`")
    return known[name]


# What every process finds here; what is registered later has to be handed over to worker processes.
SHIPPED: dict[str, Objective] = {**OBJECTIVES, **ON_SAMPLES}
