"""Every objective again in plain Python, token by token, from probabilities: slow, naive and independent.

A completion is a list of positions; a position has the probabilities of all words under policy and reference and the
word that came. `ORACLES[name](rows, s)` returns the summands of each term: [(summands, how many to divide by)].
"""

import math
from dataclasses import replace

from rows import tables


def naive_rows(examples):
    """Completions as dictionaries of plain numbers."""
    completions = [c for example in examples for c in example]
    models = {salt: tables(examples, salt) for salt in ("policy", "reference")}
    rows = []
    for i, c in enumerate(completions):
        row = {"role": c.role, "score": c.score, "ids": c.completion_ids, "n": len(c.completion_ids)}
        for salt, made in models.items():
            weights = [[math.exp(x) for x in position] for position in made[i].tolist()]
            row[salt] = [[w / sum(position) for w in position] for position in weights]
            row[f"{salt} tokens"] = [math.log(p[word]) for p, word in zip(row[salt], c.completion_ids, strict=True)]
        row["sum"] = sum(row["policy tokens"])
        row["delta"] = row["sum"] - sum(row["reference tokens"])
        row["mean"] = row["sum"] / row["n"]
        row["kl from reference"] = kl(row["reference"], row["policy"])
        row["kl to reference"] = kl(row["policy"], row["reference"])
        rows.append(row)
    return rows


def kl(ps, qs):
    return sum(
        p * math.log(p / q) for first, second in zip(ps, qs, strict=True) for p, q in zip(first, second, strict=True)
    )


def sigma(x):
    return 1 / (1 + math.exp(-x))


def of(rows, role):
    return [row for row in rows if row["role"] == role]


def pairs_of(rows):
    return list(zip(of(rows, "chosen"), of(rows, "rejected"), strict=True))


def per_pair(function):
    return lambda rows, s: [([function(w, r, s) for w, r in pairs_of(rows)], len(pairs_of(rows)))]


def per_row(role, function, per="example"):
    def terms(rows, s):
        own = of(rows, role)
        return [([function(row, s) for row in own], sum(r["n"] for r in own) if per == "token" else len(own))]

    return terms


def both(*terms):
    """A sum of terms, each with the setting that weighs it."""

    def all_terms(rows, s):
        found = []
        for weight, term in terms:
            ((summands, count),) = term(rows, s)
            found.append(([x * (s[weight] if weight else 1) for x in summands], count))
        return found

    return all_terms


def margin(w, r, s):
    return s["beta"] * (w["delta"] - r["delta"])


def dpo(w, r, s):
    return -math.log(sigma(margin(w, r, s)))


def cdpo(w, r, s):
    e = s["label_smoothing"]
    return -(1 - e) * math.log(sigma(margin(w, r, s))) - e * math.log(1 - sigma(margin(w, r, s)))


def joint(w, r, s):
    """cDPO on the tokens after the common prefix, of the reference too: here the prefix is left out on all sides."""
    k = 0
    while k < min(w["n"], r["n"]) and w["ids"][k] == r["ids"][k]:
        k += 1
    deltas = [sum(row["policy tokens"][k:]) - sum(row["reference tokens"][k:]) for row in (w, r)]
    return cdpo({"delta": deltas[0]}, {"delta": deltas[1]}, s)


def orpo(w, r, s):
    odds = [math.exp(row["mean"]) / (1 - math.exp(row["mean"])) for row in (w, r)]
    return -w["mean"] - s["odds_weight"] * math.log(sigma(math.log(odds[0] / odds[1])))


def tdpo(w, r, s):
    held = s["alpha"] * (r["kl from reference"] - w["kl from reference"])
    return -math.log(sigma(s["beta"] * (w["delta"] - r["delta"] - held)))


def bco(rows, s):
    pairs = pairs_of(rows)
    rewards = [(s["beta"] * w["delta"], s["beta"] * r["delta"]) for w, r in pairs]
    shift = sum(a + b for a, b in rewards) / (2 * len(pairs))
    return [([-math.log(sigma(a - shift)) - math.log(1 - sigma(b - shift)) for a, b in rewards], len(pairs))]


def kto(rows, s):
    labelled, other = of(rows, "label"), of(rows, "mismatched")
    z0 = max(0.0, sum(row["delta"] for row in other) / len(other))

    def value(row):
        u = s["beta"] * (row["delta"] - z0)
        return 1 - sigma(u) if row["score"] == 1 else 1 - sigma(-u)

    return [([value(row) for row in labelled], len(labelled))]


def dft(row, s):
    return -sum(math.exp(x) * x for x in row["policy tokens"])


def chord_phi(row, s):
    return -sum(math.exp(x) * (1 - math.exp(x)) * x for x in row["policy tokens"])


def iw_sft(row, s):
    return -min(math.exp(s["exponent"] * row["delta"] / row["n"]), s["cap"]) * row["sum"]


def psft(row, s):
    both = zip(row["policy tokens"], row["reference tokens"], strict=True)
    ratios = [math.exp(policy - old) for policy, old in both]
    return sum(-min(ratio, max(0.8, min(ratio, 1 + s["clip"]))) for ratio in ratios)  # as PPO has it


def entropy_weights(row, s):
    entropies = [-sum(p * math.log(p) for p in position) for position in row["policy"]]
    return [(h / s["scale"]) ** s["power"] for h in entropies]


def eaft(row, s):
    return -sum(w * x for w, x in zip(entropy_weights(row, s), row["policy tokens"], strict=True))


def eaft_rolled(rows, s):
    own = of(rows, "demonstration")
    weights = [w for row in own for w in entropy_weights(row, s)]
    half = len(weights) // 2
    turned, tokens = weights[half:] + weights[:half], [x for row in own for x in row["policy tokens"]]
    return [([-w * x for w, x in zip(turned, tokens, strict=True)], len(tokens))]


def var(rows, s):
    own = of(rows, "scored")
    weights = [math.exp(row["score"] / s["temperature"]) for row in own]
    z = sum(weights) / len(weights)
    return [([-w / z * row["sum"] for w, row in zip(weights, own, strict=True)], len(own))]


def qrpo(row, s):
    z = s["beta"] * (math.exp(1 / s["beta"]) - 1)
    return (row["score"] - s["beta"] * math.log(z) - s["beta"] * row["delta"]) ** 2


def squared(row, s):
    return (sigma(s["beta"] * row["delta"]) - row["score"]) ** 2


def cross(row, s):
    implicit = sigma(s["beta"] * row["delta"])
    return -row["score"] * math.log(implicit) - (1 - row["score"]) * math.log(1 - implicit)


def absolute(row, s):
    return abs(sigma(s["beta"] * row["delta"]) - row["score"])


def sft(row, s):
    return -row["sum"]


ORACLES = {
    "sft": per_row("demonstration", sft, "token"),
    "sft-sum": per_row("demonstration", sft),
    "dpo": per_pair(dpo),
    "cdpo": per_pair(cdpo),
    "ipo": per_pair(lambda w, r, s: (w["delta"] - r["delta"] - 0.5 / s["beta"]) ** 2),
    "ipo-mean": per_pair(lambda w, r, s: (w["delta"] / w["n"] - r["delta"] / r["n"] - 0.5 / s["beta"]) ** 2),
    "kto": kto,
    "orpo": per_pair(orpo),
    "simpo": per_pair(lambda w, r, s: -math.log(sigma(s["beta"] * (w["mean"] - r["mean"]) - s["target_margin"]))),
    "dpop": per_pair(
        lambda w, r, s: -math.log(sigma(s["beta"] * (w["delta"] - r["delta"] - s["penalty"] * max(0, -w["delta"]))))
    ),
    "tdpo": per_pair(tdpo),
    "apo-zero": per_pair(lambda w, r, s: 1 - sigma(s["beta"] * w["delta"]) + sigma(s["beta"] * r["delta"])),
    "bco": bco,
    "una-pair": per_pair(dpo),
    "una-binary": per_row("label", squared),
    "una-binary-cross-entropy": per_row("label", cross),
    "una-binary-absolute-error": per_row("label", absolute),
    "una-score": per_row("scored", squared),
    "una-score-cross-entropy": per_row("scored", cross),
    "una-score-absolute-error": per_row("scored", absolute),
    "signed-sft": per_row("scored", lambda r, s: -s["scale"] * (r["score"] - 0.5) * r["sum"]),
    "accepted-sft": per_row("scored", lambda r, s: -max(0.0, r["score"] - 0.5) * r["sum"]),
    "rpo": both((None, per_pair(dpo)), ("sft_weight", per_row("chosen", sft, "token"))),
    "sft-plus-dpo": both((None, per_row("demonstration", sft, "token")), ("preference_weight", per_pair(dpo))),
    "joint-sft-dpo": both((None, per_pair(joint)), ("sft_weight", per_row("chosen", sft, "token"))),
    "kl-sft": per_row("demonstration", lambda r, s: -r["sum"] + s["kl_weight"] * r["kl to reference"], "token"),
    "var": var,
    "dft": per_row("demonstration", dft, "token"),
    "asft": per_row("demonstration", lambda r, s: dft(r, s) + s["kl_weight"] * r["kl from reference"], "token"),
    "minor-sft": per_row(
        "demonstration", lambda r, s: -2 / (s["beta"] * r["n"]) * math.log(sigma(s["beta"] * r["delta"]))
    ),
    "qrpo": per_row("scored", qrpo),
    "dpo-norm": per_pair(lambda w, r, s: -math.log(sigma(s["beta"] * (w["delta"] / w["n"] - r["delta"] / r["n"])))),
    "tpo": both(
        ("sft_weight", per_row("demonstration", sft, "token")),
        (None, per_pair(lambda w, r, s: -math.log(sigma(s["beta"] * (w["sum"] - r["sum"]))))),
    ),
    "eaft": per_row("demonstration", eaft, "token"),
    "eaft-rolled": eaft_rolled,
    "psft": per_row("demonstration", psft, "token"),
    "iw-sft": per_row("demonstration", iw_sft, "token"),
    "chord-phi": per_row("demonstration", chord_phi, "token"),
}


def naive_loss(name, examples, settings):
    """The objective's value on the examples, in plain Python."""
    return sum(sum(summands) / count for summands, count in ORACLES[name](naive_rows(examples), settings) if count)


# ------------------------------ where policy equals reference

LOG2 = math.log(2)
QRPO_TARGET = 0.1 * math.log(0.1 * math.expm1(10))  # beta log Z at beta 0.1: 0.77


def mean_over(function):
    """The mean of a function of each row."""
    return lambda examples: sum(function(e[0]) for e in examples) / len(examples)


def likelihood(role, oracle="sft", plus=0.0):
    """The token-averaged likelihood term that is left of completions of a role, and a constant."""

    def value(examples):
        kept = [(replace(c, role="demonstration"),) for e in examples for c in e if c.role == role]
        return plus + naive_loss(oracle, kept, {})

    return value


# Where policy equals reference, with the default settings: the value of every loss that has a reference.
AT_REFERENCE = {
    "dpo": LOG2,
    "cdpo": LOG2,
    "ipo": 25.0,
    "ipo-mean": 25.0,
    "kto": 0.5,
    "dpop": LOG2,
    "tdpo": LOG2,
    "apo-zero": 1.0,
    "bco": 2 * LOG2,
    "una-pair": LOG2,
    "una-binary": 0.25,
    "una-binary-cross-entropy": LOG2,
    "una-binary-absolute-error": 0.5,
    "una-score": mean_over(lambda c: (0.5 - c.score) ** 2),
    "una-score-cross-entropy": LOG2,
    "una-score-absolute-error": mean_over(lambda c: abs(0.5 - c.score)),
    "rpo": likelihood("chosen", plus=LOG2),
    "sft-plus-dpo": likelihood("demonstration", plus=LOG2),
    "joint-sft-dpo": likelihood("chosen", plus=LOG2),
    "kl-sft": likelihood("demonstration"),
    "asft": likelihood("demonstration", "dft"),
    "minor-sft": mean_over(lambda c: 20 * LOG2 / len(c.completion_ids)),
    "qrpo": mean_over(lambda c: (c.score - QRPO_TARGET) ** 2),
    "dpo-norm": LOG2,
    "psft": -1.0,
    "iw-sft": likelihood("demonstration"),
}
