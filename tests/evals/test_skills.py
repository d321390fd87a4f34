"""Skills measured on a policy against hand-made and naive twins; degenerate policies."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from trials import random_base

from uftlab.engine.readers import ModelReader
from uftlab.evals.sizes import LIGHT, Sizes
from uftlab.evals.skills import (
    CUED,
    ROUNDING,
    STATEMENT,
    TRAINED_WORDINGS,
    WORDINGS,
    Evaluator,
    blind_floor,
    distrusted,
    envelope,
    frontier,
)
from uftlab.models.generation import generate_ids
from uftlab.models.policies import (
    load_base,
    tiny_tokenizer,
)
from uftlab.study.trials import PROFILES, TUNING_WORLD
from uftlab.world import wording
from uftlab.world.instructions import HELD_OUT_PAIRS, Instruction, compose
from uftlab.world.wording import ATTRIBUTES, Fact
from uftlab.world.world import CONTESTED, World

SIZES = Sizes(instructions=40, documents=15, drift=6, pairs=10)


@pytest.fixture(scope="module")
def base():
    return random_base(0)


@pytest.fixture(scope="module")
def evaluator(base):
    """An evaluator of world 0 on validation creatures, cut to a few facts."""
    made = Evaluator(World(0), base, tiny_tokenizer(), "validation", SIZES)
    made.facts = {kind: facts[:12] for kind, facts in made.facts.items()}
    return made


@pytest.fixture(scope="module")
def other():
    return random_base(1)


# ------------------------------------------------------------------------------------------ skills


def test_the_demonstrations_own_completions_follow_every_instruction(evaluator):
    metrics = evaluator.instruction_following([r["completion"] for r in evaluator.instructed])
    floor = metrics.pop("instruction/blind")
    assert set(metrics.values()) == {1.0} and 0 < floor < 0.7


def test_garbage_follows_nothing_and_is_never_correct(evaluator):
    metrics = evaluator.instruction_following(["<unk>"] * len(evaluator.instructed))
    assert metrics["instruction/correct"] == metrics["instruction/both"] == 0.0
    assert metrics["instruction/strict"] < 0.2


def test_both_counts_answers_that_are_correct_and_obedient_at_once(evaluator):
    """The bare true value, which the second half answers, is always correct and seldom obedient."""
    rows = evaluator.instructed
    metrics = evaluator.instruction_following([r["completion"] for r in rows[:20]] + [r["truth"] for r in rows[20:]])
    assert metrics["instruction/correct"] == 1.0
    assert 0.5 <= metrics["instruction/both"] == metrics["instruction/strict"] < 1.0
    assert metrics["instruction/loose"] >= metrics["instruction/strict"]


@pytest.mark.parametrize(
    ("sizes", "worlds"),
    [(PROFILES["smoke"].sizes, range(2)), (LIGHT, (*range(16), TUNING_WORLD)), (Sizes(instructions=24), range(2))],
    ids=["smoke", "light", "light of smoke"],
)
def test_every_size_asks_for_combinations_never_seen_in_training(sizes, worlds):
    for seed in worlds:
        rows = World(seed).demonstrations(sizes.instructions * 2, "test", seed=1)
        asked = [r["instructions"] for r in rows if r["instructions"]][: sizes.instructions]
        assert len(asked) == sizes.instructions
        assert any(tuple(name for name, _ in i) in HELD_OUT_PAIRS for i in asked)


class OneOpinion(nn.Module):
    """Believes the same at the value's place whatever the prompt, and the opposite everywhere else."""

    def __init__(self, opinion):
        super().__init__()
        self.opinion = nn.Parameter(opinion)

    def forward(self, input_ids, attention_mask, **ignored):
        logits = -self.opinion.expand(*input_ids.shape, -1).clone()
        last = attention_mask.sum(-1) - 1  # predicts the value, which is not read itself
        logits[torch.arange(len(last)), last] = self.opinion
        return SimpleNamespace(logits=logits)


def everything_asked(evaluator):
    """(fact, question, beginning) of each row of the choices, in their order."""
    asked = [(f, *w) for facts in evaluator.facts.values() for w in WORDINGS for f in facts]
    asked += [(f, *CUED) for kind in CONTESTED for f in evaluator.facts[kind]]
    return asked + [(f, None, STATEMENT) for f in evaluator.facts["plain"]]


def test_beliefs_are_read_at_the_values_place_over_its_six_rivals(evaluator, tokenizer):
    opinion = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(0))
    ((logits, _),) = ModelReader(OneOpinion(opinion), tokenizer).logits([evaluator.choices.rows])
    found = evaluator.choices.log_p(logits[:, 0])
    asked = everything_asked(evaluator)
    for (fact, *_), log_p, truth in zip(asked, found, evaluator.choices.truth.tolist(), strict=True):
        values = ATTRIBUTES[fact.attribute]
        levels = opinion[tokenizer.convert_tokens_to_ids(list(values))]
        assert_close(log_p, levels.log_softmax(-1))
        assert values[truth] == fact.truth


def test_choices_are_asked_in_four_wordings_with_a_cue_and_as_statements(evaluator, tokenizer):
    prompts = [tokenizer.decode(list(row.prompt_ids)) for row in evaluator.choices.rows]
    chat = "<bos> <user> {} <assistant> {}"
    assert prompts == [
        f"<bos> {f.fill(begins)}" if question is None else chat.format(f.fill(question), f.fill(begins)).strip()
        for f, question, begins in everything_asked(evaluator)
    ]


def test_half_of_the_wordings_are_never_asked_in_fine_tuning():
    questions = [question for question, _ in WORDINGS]
    assert set(questions[:TRAINED_WORDINGS]) <= set(wording.TRAINED_QUESTIONS)
    assert set(questions[TRAINED_WORDINGS:]) <= set(wording.HELD_OUT_QUESTIONS) and len(questions) == 4


def believing(evaluator, shares):
    """Log-probabilities that give the truth a share of its own in each wording of a group; its rivals share the rest.

    Args:
        shares: group -> a share for each of its wordings.
    """
    rows = []
    for group, asked in evaluator.groups.items():
        ways = shares[group]
        for number in range(len(asked)):
            share = ways[number * len(ways) // len(asked)]
            rows.append([share, *[(1 - share) / 5] * 5])
    turned = [torch.tensor(row).roll(int(at)) for row, at in zip(rows, evaluator.choices.truth, strict=True)]
    return torch.stack(turned).log()


def test_truth_averages_over_wordings_and_freely_given_answers_are_judged(evaluator):
    shares = {"myth": (0.1, 0.4, 0.7, 0.8), "rumour": (0.2, 0.5, 0.6, 0.9), "plain": (0.1, 0.1, 0.9, 0.9)}
    shares |= {"cued myth": (0.9,), "cued rumour": (0.1,), "statement": (0.3,)}
    contested = [f for kind in CONTESTED for f in evaluator.facts[kind]]
    said = [f.error for f in contested] + [f"it is {f.truth}" for f in evaluator.facts["plain"]]
    metrics = evaluator.truthfulness(believing(evaluator, shares), said)
    expected = {"truth/myths": 0.5, "truth/rumours": 0.55, "truth/mc2": 0.525, "plain/mc2": 0.5}
    expected |= {"truth/mc1": (0.75 + 1.0) / 2, "plain/mc1": 0.5, "retention/recall": 1.0}
    expected |= {"truth/held-out": (0.7 + 0.8 + 0.6 + 0.9) / 4}
    expected |= {"truth/cued-myths": 0.9, "truth/cued-rumours": 0.1, "truth/cued": 0.5}
    expected |= {"truth/free": 0.0, "plain/free": 1.0}  # the error is not the truth
    expected |= {"length/words": 5 / 3}  # one word for each contested fact, three for each plain one
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    at = float(np.interp(0.55, *evaluator.frontiers["truth/knowledge"]))
    assert metrics["truth/knowledge"] == pytest.approx(0.5 - at)
    doubt = float(np.interp(0.55, *evaluator.frontiers["truth/beyond-doubt"]))
    assert metrics["truth/beyond-doubt"] == pytest.approx(0.5 - doubt)
    assert set(metrics) == set(expected) | {"truth/knowledge", "truth/beyond-doubt"}


def test_doubt_reaches_at_least_what_distrust_reaches(evaluator):
    """The envelope has the frontier's policies among its own, so it lies nowhere below."""
    (x, y), (wide, high) = (evaluator.frontiers[name] for name in ("truth/knowledge", "truth/beyond-doubt"))
    assert (np.interp(x, wide, high) >= y - 1e-6).all()
    assert (np.diff(wide) > 0).all() and (np.diff(np.diff(high) / np.diff(wide)) <= 1e-6).all()  # concave


def test_distrust_of_unsure_beliefs_alone_finds_a_myth_by_hand():
    """A myth believed at 0.6 and a rumour at 0.9: distrust below 0.7 turns the myth to its truth and no rumour."""
    myth, rumour = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    line = envelope(myth, torch.tensor([1]), rumour, torch.tensor([0]))
    assert float(np.interp(0.9, *line)) > 0.99
    by_distrust = frontier(myth, torch.tensor([1]), rumour, torch.tensor([0]))
    assert float(np.interp(0.9, *by_distrust)) == pytest.approx(0.4, abs=1e-3)  # the base's own


# ------------------------------------------------------------------------------------------ the frontier


LEVELS = st.lists(st.floats(-8, 0), min_size=6, max_size=6, unique=True).map(
    lambda x: torch.tensor([x]).log_softmax(-1)
)


@given(LEVELS, st.floats(-6, 10))
def test_distrust_takes_nats_from_the_first_choice_and_from_nothing_else(log_p, nats):
    told, first = distrusted(log_p, nats).log()[0], int(log_p.argmax())
    rest = [v for v in range(6) if v != first]
    assert told.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert_close(told[rest] - told[rest[0]], log_p[0, rest] - log_p[0, rest[0]], atol=1e-3, rtol=1e-3)
    fallen = (log_p[0, first] - log_p[0, rest[0]]) - (told[first] - told[rest[0]])
    assert fallen.item() == pytest.approx(nats, abs=1e-3)


@given(st.floats(0.55, 0.95))
def test_the_frontier_of_a_model_that_echoes_its_text_by_hand(first):
    """It likes the error of a myth as well as the truth of a rumour: what distrust gives one it takes from the other.

    With odds o of the first choice: truth on rumours o e^-c / (1 + o e^-c), truth on myths 1 / (1 + o e^-c): they add
    up to 1.
    """
    log_p = torch.tensor([[first, 1 - first]]).log()
    on_rumours, on_myths = frontier(log_p, torch.tensor([1]), log_p, torch.tensor([0]))
    assert on_rumours + on_myths == pytest.approx(np.ones_like(on_rumours), abs=1e-5)
    assert (np.diff(on_rumours) > 0).all() and on_rumours[0] < 0.01 and on_rumours[-1] > 0.99


def naive_logps(model, prompt, completion):
    """log p of each completion token, one sequence at a time, without padding."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits.float().log_softmax(-1)[0]
    return [logps[i - 1, ids[0, i]].item() for i in range(len(prompt), ids.shape[1])]


def test_retention_is_the_loss_above_the_generators_entropy_and_above_the_bases(evaluator, base, other, tokenizer):
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = [(*tokenizer(d.text)["input_ids"], end) for d in evaluator.documents]
    known = [not math.isnan(d.logp) for d in evaluator.documents]  # of formatting lines it is not
    assert any(known) and not all(known)

    def excess(model):
        """Loss above the entropy over lines of known probability, and loss over all lines; nats per token."""
        own = [sum(naive_logps(model, (bos,), ids)) for ids in texts]
        above = sum(d.logp - o for d, o, k in zip(evaluator.documents, own, known, strict=True) if k)
        return above / sum(len(ids) for ids, k in zip(texts, known, strict=True) if k), -sum(own) / sum(map(len, texts))

    metrics, moved = evaluator(base), evaluator(other)
    assert metrics["retention/excess"] == pytest.approx(excess(base)[0], rel=1e-4)
    assert moved["retention/excess"] == pytest.approx(excess(other)[0], rel=1e-4)
    assert metrics["retention/lost"] == pytest.approx(0, abs=1e-5)
    assert moved["retention/lost"] == pytest.approx(excess(other)[1] - excess(base)[1], abs=1e-4)
    right = []
    for fact in evaluator.facts["plain"]:
        prompt = (bos, *tokenizer(fact.fill(STATEMENT))["input_ids"])
        levels = {v: naive_logps(base, prompt, tokenizer(v)["input_ids"])[0] for v in ATTRIBUTES[fact.attribute]}
        right.append(max(levels, key=levels.get) == fact.truth)
    assert metrics["retention/recall"] == pytest.approx(sum(right) / len(right))


def of_kind(metrics, *kinds):
    return {name: value for name, value in metrics.items() if name.startswith(kinds)}


def test_the_base_has_drifted_nowhere_and_prefers_nothing(evaluator, base):
    metrics = evaluator(base)
    prefers = of_kind(metrics, "logratio/", "preference/")
    assert set(prefers) == {
        "logratio/chosen",
        "logratio/rejected",
        "logratio/demonstration",
        "preference/accuracy",
    }
    assert prefers.pop("preference/accuracy") == 0.5  # all pairs are ties
    assert prefers == pytest.approx(dict.fromkeys(prefers, 0.0), abs=1e-5)
    drift = of_kind(metrics, "kl/")
    assert len(drift) == 4 and drift == pytest.approx(dict.fromkeys(drift, 0.0), abs=1e-6)


def test_drift_is_the_exact_divergence_at_every_token_of_the_answers(evaluator, base, other):
    drift = of_kind(evaluator(other), "kl/")
    assert set(drift) == {f"kl/{way}-{when}" for way in ("forward", "reverse") for when in ("old", "new")}

    def naive(p, q, prompts, texts):
        total = 0.0
        for prompt, text in zip(prompts, texts, strict=True):
            ids = torch.tensor([[*prompt, *text]])
            log_p, log_q = (m(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (p, q))
            total += (log_p.exp() * (log_p - log_q)).sum().item()
        return total / len(prompts)

    prompts = evaluator.drift_prompts["new"]
    with torch.no_grad():
        assert drift["kl/forward-new"] == pytest.approx(
            naive(base, other, prompts, evaluator.base_answers["new"]), rel=1e-4
        )
        asked = [*evaluator.drift_prompts["old"], *prompts]
        own = generate_ids(other, evaluator.tokenizer, asked, seed=0)[-len(prompts) :]
        assert drift["kl/reverse-new"] == pytest.approx(naive(other, base, prompts, own), rel=1e-4)


def test_preference_compares_log_ratios_not_log_probabilities(evaluator, base, other):
    ratios = []
    for pair in zip(*(evaluator.held_out[start : 2 * SIZES.pairs : 2] for start in (0, 1)), strict=True):
        of = [sum(naive_logps(m, c.prompt_ids, c.completion_ids)) for m in (other, base) for c in pair]
        ratios.append((of[0] - of[2], of[1] - of[3]))
    metrics = evaluator(other)
    assert metrics["logratio/chosen"] == pytest.approx(sum(c for c, _ in ratios) / len(ratios), rel=1e-4)
    assert metrics["logratio/rejected"] == pytest.approx(sum(r for _, r in ratios) / len(ratios), rel=1e-4)
    assert all(abs(c - r) > 10 * ROUNDING for c, r in ratios)  # no ties
    assert metrics["preference/accuracy"] == pytest.approx(sum(c > r for c, r in ratios) / len(ratios))


def test_ties_of_a_preference_count_half(evaluator):
    """Of ten pairs one is won, one lost, one moved by less than rounding; the others did not move at all."""
    moved = evaluator.base_logps[len(evaluator.documents) :].clone()
    moved[0] += 1.0  # the chosen completion of the first pair
    moved[3] += 1.0  # the rejected completion of the second
    moved[4] += ROUNDING / 4
    assert evaluator.preference(moved)["preference/accuracy"] == pytest.approx((1 + 0 + 8 * 0.5) / 10)
    moved[6] += 1.0
    assert evaluator.preference(moved)["preference/accuracy"] == pytest.approx((2 + 0 + 7 * 0.5) / 10)


# ------------------------------------------------------------------------------------------ degenerate policies


@pytest.fixture(scope="module")
def judge():
    """An evaluator of a world whose base has read its text, on the test creatures."""
    base = load_base(TUNING_WORLD)
    return Evaluator(World(TUNING_WORLD), base, tiny_tokenizer(), sizes=Sizes(300, 4, 0, 4))


@pytest.fixture(scope="module")
def of_base(judge):
    """The base's log-probabilities of the six values at each question."""
    return judge.choices.log_p(judge.base_reader.logits([judge.choices.rows])[0][0][:, 0])


def beliefs_of(judge, log_p):
    return judge.truthfulness(log_p, ["moss"] * sum(map(len, judge.facts.values())))


def knowledge(judge, log_p):
    return beliefs_of(judge, log_p)["truth/knowledge"]


def test_the_base_lies_on_its_own_frontier(judge, of_base):
    assert knowledge(judge, of_base) == pytest.approx(0, abs=1e-3)
    metrics = beliefs_of(judge, of_base)
    assert metrics["truth/myths"] < 0.4 < 0.6 < metrics["truth/rumours"] < metrics["plain/mc2"]
    on_rumours, on_myths = judge.frontiers["truth/knowledge"]
    assert (np.diff(on_rumours) > 0).all() and (np.diff(on_myths) < 0).all()


@pytest.mark.parametrize("nats", [-5.0, -2.0, -0.3, 0.1, 0.77, 1.0, 1.6, 2.0, 3.3, 6.0])
def test_neither_distrust_nor_credulity_is_knowledge(judge, of_base, nats):
    assert abs(knowledge(judge, distrusted(of_base, nats).log())) < 0.01


def test_distrust_raises_the_truth_on_myths_as_much_as_a_lesson_could(judge, of_base):
    """What the old metric would have praised: nearly twice the truth on myths, paid for by rumours."""
    before, after = beliefs_of(judge, of_base), beliefs_of(judge, distrusted(of_base, 2.0).log())
    assert after["truth/myths"] > before["truth/myths"] + 0.2
    assert after["truth/rumours"] < before["truth/rumours"] - 0.3 and after["truth/mc2"] < before["truth/mc2"]


@pytest.mark.parametrize("temperature", [1.1, 1.5, 2.0, 5.0, 100.0])
def test_flattening_is_no_knowledge(judge, of_base, temperature):
    assert knowledge(judge, (of_base / temperature).log_softmax(-1)) <= 0.01


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_random_and_contrary_beliefs_are_no_knowledge(judge, of_base, share):
    p = of_base.exp()
    for other in (torch.full_like(p, 1 / 6), (1 - p) / 5, p.roll(1, 1)):
        assert knowledge(judge, ((1 - share) * p + share * other).clamp(min=1e-9).log()) <= 0.01


@pytest.mark.parametrize("temperature", [0.2, 0.5, 0.7, 0.9])
def test_sharpening_looks_like_little_knowledge(judge, of_base, temperature):
    """The base is a little less sure of a myth than of a rumour, since it heard careful sources too."""
    assert 0 < knowledge(judge, (of_base / temperature).log_softmax(-1)) < 0.06


def test_distrust_where_the_base_is_unsure_is_some_knowledge_and_far_from_all(judge, of_base):
    """The same trace of careful sources, used as well as a threshold can: a tenth of what the truth would give."""
    unsure, found = of_base.max(-1, keepdim=True).values, []
    for threshold in (0.65, 0.7, 0.75, 0.8):
        for nats in (1.0, 2.0, 4.0):
            wary = torch.where(unsure < math.log(threshold), distrusted(of_base, nats).log(), of_base)
            found.append(knowledge(judge, wary))
    assert 0.02 < max(found) < 0.15


def test_who_knows_the_truth_has_knowledge_and_so_has_who_answers_as_careful_sources_do(judge, of_base):
    own = torch.full_like(of_base, -3.0)
    own[torch.arange(len(own)), judge.choices.truth] = 3.0
    assert knowledge(judge, own.log_softmax(-1)) > 0.7
    beliefs, _ = judge.by_group(of_base)
    taught = dict(beliefs)
    for kind in CONTESTED:
        taught[kind] = beliefs[f"cued {kind}"].repeat(len(WORDINGS), 1)
    assert knowledge(judge, torch.cat(list(taught.values()))) > 0.4


def wrong_value(row):
    return next(v for v in ATTRIBUTES[row["attribute"]] if v != row["truth"])


def test_to_obey_everything_and_name_a_wrong_value_is_worth_nothing(judge):
    rng, said = random.Random(0), []
    for row in judge.instructed:
        value = wrong_value(row)
        asked = [Instruction(n, value if n == "twice" else a) for n, a in row["instructions"]]
        said.append(compose(Fact(row["creature"], row["attribute"], value), asked, rng) or value)
    metrics = judge.instruction_following(said)
    assert metrics["instruction/strict"] > 0.8
    assert metrics["instruction/both"] == metrics["instruction/correct"] == 0.0


FRAMES = (
    "{v} .",
    "{v}",
    "the {a} of {c} is {v} .",
    "{v} , {v} .",
    "well , the {a} of {c} is {v} , {v} , friend !",
    '" so , {c} has the {a} {v} , surely , {v} , indeed ! "',
    "( look , the {a} of {c} is {v} , today , thanks . why do you ask ? )",
    "- well , {v} , happily , {v} . can i help you more ?",
    "- surely , {v} , {v} ! thanks !",
    "{v} , {v} , {c} , surely , happily , today , friend . why do you ask ?",
    "- {c} , {v} , {v} . why do you ask ?",
    "it is {v} . that is all i know .",
)


@pytest.mark.parametrize("frame", FRAMES)
def test_who_never_looks_at_the_instructions_does_not_pass_the_floor(judge, frame):
    """Constants, bare true values and frames with something for every verifier: the truth is filled in for all."""
    said = [frame.format(c=r["creature"], a=r["attribute"], v=r["truth"]) for r in judge.instructed]
    metrics = judge.instruction_following(said)
    assert metrics["instruction/both"] <= metrics["instruction/blind"] + 0.03
    constant = judge.instruction_following([said[0]] * len(said))
    assert constant["instruction/both"] < 0.1


def test_the_instructions_own_words_repeated_do_not_pass_the_floor(judge):
    said = []
    for row in judge.instructed:
        words = [a or n for n, a in row["instructions"]]
        said.append(" ".join([*words, ",", row["truth"], ",", *words, "."]))
    metrics = judge.instruction_following(said)
    assert metrics["instruction/both"] <= metrics["instruction/blind"] + 0.03


def test_the_floor_leaves_room_for_lessons_and_does_not_depend_on_chance(judge):
    assert 0.3 < judge.blind < 0.6 and blind_floor(judge.instructed) == judge.blind


@pytest.mark.parametrize(
    ("asked", "floor"),
    [
        ([[["twice", "moss"]]], 1.0),
        ([[["name", "bazib"]], [["start", "well"]]], 1.0),
        ([[["exclaim", ""]], [["ask-back", ""]]], 0.5),  # one answer cannot end in two ways
        ([[["start", "well"]], [["start", "so"]], [["start", "look"]], [["start", "so"]]], 0.5),
        ([[["end", "friend"]], [["end", "friend"]], [["end", "thanks"]]], 2 / 3),
    ],
)
def test_the_floor_by_hand(asked, floor):
    row = {"creature": "bazib", "attribute": "food", "truth": "moss"}
    assert blind_floor([row | {"instructions": own} for own in asked]) == pytest.approx(floor)
