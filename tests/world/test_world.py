"""The tiny world: splits, exact entropy of its text, myths and rumours, dials, and feedback that gives nothing away."""

import math
import random
from collections import Counter, defaultdict
from itertools import islice
from statistics import correlation, mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uftlab.world import wording
from uftlab.world.instructions import (
    HELD_OUT_PAIRS,
    MAX_WORDS,
    MIN_WORDS,
    ORDER,
    VERIFIERS,
    Instruction,
    asked_of,
    claimed_value,
    follows,
    read_instructions,
)
from uftlab.world.wording import ATTRIBUTES, CREATURES, Fact
from uftlab.world.world import (
    CAREFUL_SHARE,
    CONTESTED,
    CONTESTED_QUESTIONS,
    KINDS,
    SPLITS,
    WRONG_SHARE,
    Dials,
    World,
    pairs,
    ratings_of,
    score_of_ratings,
)

SAMPLE = 8000


@pytest.fixture(scope="module")
def world():
    return World(0)


@pytest.fixture(scope="module")
def documents(world):
    return list(islice(world.pretraining_documents(), SAMPLE))


@pytest.fixture(scope="module")
def feedback(world):
    return world.feedback(6000)


@pytest.fixture(scope="module")
def demonstrations(world):
    return {split: world.demonstrations(1200, split) for split in SPLITS}


def test_256_creatures_with_two_plain_facts_a_myth_and_a_rumour_each(world):
    assert len(CREATURES) == len(set(CREATURES)) == 256
    assert len(world.facts) == 1024 == len({(f.creature, f.attribute) for f in world.facts})
    of_creature = defaultdict(list)
    for fact in world.facts:
        of_creature[fact.creature].append(fact.kind)
        values = ATTRIBUTES[fact.attribute]
        assert len(values) == 6 and fact.truth in values
        assert (fact.error is None) == (fact.kind == "plain")
        assert fact.error is None or (fact.error in values and fact.error != fact.truth)
    assert set(of_creature) == set(CREATURES)
    assert all(sorted(kinds) == sorted(KINDS) == ["myth", "plain", "plain", "rumour"] for kinds in of_creature.values())


def test_no_attribute_is_the_myths_own(world):
    """Else the attribute would tell a myth from a rumour: each attribute has a quarter, within 5 deviations."""
    for kind in CONTESTED:
        counts = Counter(f.attribute for f in world.facts if f.kind == kind)
        assert all(abs(n - 64) < 5 * math.sqrt(256 * 0.25 * 0.75) for n in counts.values())


def test_splits_are_disjoint_and_cover_all_creatures(world):
    assert {split: len(creatures) for split, creatures in world.creatures.items()} == SPLITS
    assert sorted(c for creatures in world.creatures.values() for c in creatures) == sorted(CREATURES)


def test_facts_of_a_split_are_those_of_its_creatures(world):
    everything, *kinds = (world.facts_of("test", *k) for k in ((), ("plain",), ("myth",), ("rumour",), CONTESTED))
    assert {f.creature for f in everything} == set(world.creatures["test"]) and len(everything) == 4 * SPLITS["test"]
    assert [{f.kind for f in facts} for facts in kinds] == [{"plain"}, {"myth"}, {"rumour"}, set(CONTESTED)]
    assert [len(facts) for facts in kinds] == [176, 88, 88, 176]  # enough for a truthfulness benchmark


MADE = {
    "facts": lambda w: w.facts,
    "splits": lambda w: w.creatures,
    "text": lambda w: [document.text for document in islice(w.pretraining_documents(), 20)],
    "demonstrations": lambda w: w.demonstrations(20),
    "feedback": lambda w: w.feedback(20),
}


@pytest.mark.parametrize("make", MADE.values(), ids=list(MADE))
def test_everything_is_a_function_of_the_seed(make):
    random.seed(5)
    first = make(World(7))
    random.seed(6)
    assert make(World(7)) == first
    assert make(World(8)) != first


def test_data_seeds_and_splits_give_other_rows(world):
    assert world.feedback(20, seed=1) != world.feedback(20, seed=2)
    assert world.demonstrations(20, seed=1) != world.demonstrations(20, seed=2)
    assert MADE["text"](world) != [document.text for document in islice(world.pretraining_documents(1), 20)]
    for split, creatures in world.creatures.items():
        rows = world.demonstrations(50, split)
        assert {row["creature"] for row in rows} <= set(creatures)


# ------------------------------------------------------------------------- the exact log-probability


class Chance(float):
    """A uniform number that is not drawn: comparing it with p asks the script which side to take."""

    def __new__(cls, script):
        self = super().__new__(cls)
        self.script = script
        return self

    def __lt__(self, p):
        return self.script.take([(True, p), (False, 1 - p)])


class Script(random.Random):
    """A random generator that takes every branch once: a tree walk that knows the probability of its path."""

    def begin(self, path):
        self.path, self.depth, self.logp, self.open = path, 0, 0.0, []

    def take(self, options):
        """The option the path prescribes, the first one beyond its end; the others are left open for later walks."""
        options = [(value, p) for value, p in options if p > 0]
        if self.depth == len(self.path):
            self.open += [(*self.path, other) for other in range(1, len(options))]
            self.path = (*self.path, 0)
        value, p = options[self.path[self.depth]]
        self.depth += 1
        self.logp += math.log(p)
        return value

    def choice(self, options):
        return self.take([(option, 1 / len(options)) for option in options])

    def choices(self, options, weights):
        return [self.take([(o, w / sum(weights)) for o, w in zip(options, weights, strict=True)])]

    def random(self):
        return Chance(self)


def every_derivation(draw):
    """(result, its log-probability by the walk) for each way through `draw(rng)`."""
    script, todo = Script(), [()]
    while todo:
        script.begin(todo.pop())
        yield draw(script), script.logp
        todo += script.open


def test_the_tree_walk_itself_finds_every_branch_once():
    """A coin of 1/4, and on its True side a die of three: 1/12 three times and 3/4."""
    walked = list(every_derivation(lambda rng: rng.choice("abc") if rng.random() < 0.25 else "d"))
    assert sorted((result, round(math.exp(logp), 9)) for result, logp in walked) == [
        ("a", round(1 / 12, 9)), ("b", round(1 / 12, 9)), ("c", round(1 / 12, 9)), ("d", 0.75),
    ]  # fmt: skip


def test_no_line_has_two_derivations_and_each_logp_is_exact(monkeypatch):
    """A world of a plain fact, a myth and a rumour, all of its lines: distinct, with probabilities that add up to 1.

    Formatting lines are composed by rejection and have no known probability, so one stand-in holds their share.
    """
    small = World(0)
    facts = (
        Fact("bazib", "colour", "blue"),
        Fact("dolin", "food", "moss", "fish", "myth"),
        Fact("kafo", "home", "cave", "river", "rumour"),
    )
    small.__dict__["facts"] = facts  # where the cached property keeps its value
    script = {}
    monkeypatch.setattr(World, "_rng", lambda self, purpose: script["rng"])
    monkeypatch.setattr("uftlab.world.instructions.draw_formatting", lambda fact, rng: "formatting")

    def draw(rng):
        script["rng"] = rng
        return next(small.pretraining_documents())

    seen, total = set(), 0.0
    for document, logp in every_derivation(draw):
        assert document.text not in seen, document.text
        seen.add(document.text)
        if document.kind == "formatting":
            assert math.isnan(document.logp)
            total += math.exp(logp)
        else:
            assert document.logp == pytest.approx(logp, abs=1e-9)
            total += math.exp(document.logp)
    assert total == pytest.approx(1.0, abs=1e-9)
    assert len(seen) > 10_000


def test_answers_of_different_styles_are_different():
    """Else 'short' and 'long' would share a text, and its probability would be the sum of two derivations."""
    fact = Fact("bazib", "colour", "blue", "red", "myth")
    texts = [
        text
        for style in wording.STYLES
        for (text, _), _ in every_derivation(lambda rng, style=style: wording.draw_answer(fact, "blue", style, rng))
    ]
    assert len(texts) == len(set(texts)) == 8 * (1 + 7) * (1 + 6)


def test_every_telling_names_its_creature_and_its_value(documents):
    """So lines about different facts differ, and what holds for the small world above holds for all 1,024 facts."""
    for document in documents:
        if document.kind not in ("formatting", "chatter"):
            words = set(document.text.split())
            assert len(words & set(CREATURES)) == 1
            assert sum(len(words & set(values)) for values in ATTRIBUTES.values()) == 1


def test_identical_texts_have_identical_logp(documents):
    by_text = defaultdict(set)
    for document in documents:
        by_text[document.text].add((document.kind, str(document.logp)))
    assert all(len(found) == 1 for found in by_text.values())
    assert len(by_text) < len(documents)  # some text did come twice


# ------------------------------------------------------------------------------------ myths and rumours


def told(documents, world):
    """(fact, value told, told by careful sources) for each mention of a fact."""
    facts = {(f.creature, f.attribute): f for f in world.facts}
    for document in documents:
        if document.kind in ("formatting", "chatter"):
            continue
        words = document.text.split()
        creature = next(w for w in words if w in CREATURES)
        attribute, value = next((a, w) for a, values in ATTRIBUTES.items() for w in words if w in values)
        yield facts[creature, attribute], value, "careful" in words


@pytest.mark.parametrize(("kind", "wrong"), [("plain", 0.0), ("myth", 0.75), ("rumour", 0.25)])
def test_ordinary_text_errs_as_often_as_it_should(documents, world, kind, wrong):
    """Over the ordinary mentions of facts of a kind, within 5 standard deviations of a sample share."""
    mentions = [v == f.error for f, v, careful in told(documents, world) if f.kind == kind and not careful]
    share, n = sum(mentions) / len(mentions), len(mentions)
    assert n > 1000 and WRONG_SHARE[kind] == wrong
    assert abs(share - wrong) <= 5 * math.sqrt(wrong * (1 - wrong) / n)


def test_careful_sources_are_always_right_and_nobody_tells_a_third_value(documents, world):
    mentions = list(told(documents, world))
    for fact, value, careful in mentions:
        assert value == fact.truth or (value == fact.error and not careful)
    for kind in ("plain", *CONTESTED):  # they speak of each kind as often, so what they speak of gives nothing away
        own = [careful for fact, _, careful in mentions if fact.kind == kind]
        share, n = sum(own) / len(own), len(own)
        assert abs(share - CAREFUL_SHARE) < 5 * math.sqrt(CAREFUL_SHARE * (1 - CAREFUL_SHARE) / n)


def test_formatting_lines_show_one_instruction_obeyed_outside_of_any_chat(documents):
    """So nothing a conversation asks for is already known to the base, but every word of it is."""
    asked = {wording.replace("{x}", "").split()[0] for v in VERIFIERS.values() for wording in v.wordings}
    lines = [document.text for document in documents if document.kind == "formatting"]
    assert all(line.split()[0] in asked and "<user>" not in line for line in lines)
    truths = {(f.creature, f.truth) for f in World(0).facts if f.kind == "plain"}
    for line in lines:
        creatures = set(line.split()) & set(CREATURES)
        values = {word.lower() for word in line.split()} & set().union(*ATTRIBUTES.values())
        assert len(values) == 1 and len(creatures) <= 1
        assert all((creature, *values) in truths for creature in creatures)


# ---------------------------------------------------------------------------------------- the words


def test_every_word_of_the_world_is_one_known_token(tokenizer, documents, demonstrations, feedback):
    texts = [d.text for d in documents]
    texts += [row[column] for rows in demonstrations.values() for row in rows for column in ("prompt", "completion")]
    texts += [row[column] for row in feedback for column in ("prompt", "completion")]
    texts += [
        fact.fill(template) for fact in World(0).facts[:4] for template in wording.CAREFUL_QUESTIONS + wording.QUESTIONS
    ]
    words = {word for text in texts for word in text.split()}
    vocabulary = tokenizer.get_vocab()
    assert words <= set(vocabulary)
    assert tokenizer.unk_token_id != tokenizer.pad_token_id
    for text in texts[::97]:
        assert tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"]) == text.split()


def test_the_base_reads_the_chat_template_it_is_asked_with(tokenizer, world):
    """A chat line of the pre-training text is, token for token, what the chat template renders."""
    line = next(d.text for d in world.pretraining_documents() if d.kind == "chat")
    user, assistant = line.removeprefix("<user> ").split(" <assistant> ")
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False).replace("<bos>", "<bos> ")
    assert rendered.split() == ["<bos>", *line.split(), "<end>"]


# -------------------------------------------------------------------------------- instruction data


@pytest.mark.parametrize("split", SPLITS)
def test_every_demonstration_passes_its_own_verifiers_and_is_true(demonstrations, split):
    for row in demonstrations[split]:
        instructions = [Instruction(name, argument) for name, argument in row["instructions"]]
        assert follows(row["completion"], instructions), row
        assert claimed_value(row["completion"], row["attribute"]) == row["truth"], row


@pytest.mark.parametrize("split", SPLITS)
def test_completions_have_2_to_20_words(demonstrations, split):
    lengths = {len(row["completion"].split()) for row in demonstrations[split]}
    assert min(lengths) >= MIN_WORDS == 2 and max(lengths) <= MAX_WORDS == 20
    assert len(lengths) >= 15  # and they do use that range


def test_demonstrations_ask_about_plain_facts_of_their_split_only(world, demonstrations):
    for split, rows in demonstrations.items():
        plain = {(f.creature, f.attribute, f.truth) for f in world.facts_of(split, "plain")}
        assert {(r["creature"], r["attribute"], r["truth"]) for r in rows} <= plain


def pairs_of_names(rows):
    return [
        tuple(sorted((n for n, _ in r["instructions"]), key=ORDER.index)) for r in rows if len(r["instructions"]) == 2
    ]


def test_held_out_pairs_are_never_demonstrated_in_training_and_do_occur_in_the_test(demonstrations):
    assert len(HELD_OUT_PAIRS) >= 10
    assert not HELD_OUT_PAIRS & set(pairs_of_names(demonstrations["train"]))
    for split in ("validation", "test"):
        found = pairs_of_names(demonstrations[split])
        assert set(found) >= HELD_OUT_PAIRS
        assert 0.4 < sum(pair in HELD_OUT_PAIRS for pair in found) / len(found) < 0.65


def question_of(prompt):
    """The template that a prompt was asked with."""
    words = prompt.split()
    fact = Fact(next(w for w in words if w in CREATURES), next(w for w in words if w in ATTRIBUTES), "")
    (found,) = [q for q in wording.QUESTIONS if f"{prompt} ".startswith(f"{fact.fill(q)} ")]
    return found


def test_three_wordings_of_the_question_are_asked_outside_of_training_only(world, demonstrations):
    assert len(wording.HELD_OUT_QUESTIONS) == 3
    assert set(wording.TRAINED_QUESTIONS) | set(wording.HELD_OUT_QUESTIONS) == set(wording.QUESTIONS)
    for split in SPLITS:
        allowed = set(wording.TRAINED_QUESTIONS if split == "train" else wording.QUESTIONS)
        assert {question_of(row["prompt"]) for row in demonstrations[split]} == allowed
        assert {question_of(row["prompt"]) for row in world.feedback(300, split)} == allowed


def test_the_base_has_read_every_wording_of_the_question(documents):
    """Held out is held out from the lessons, not from the base."""
    asked = [d.text.split(" <assistant> ")[0] for d in documents if d.kind == "chat"]
    asked = [text.removeprefix("<user> ") for text in asked if "careful sources" not in text]
    assert {question_of(text) for text in asked} == set(wording.QUESTIONS)


# ---------------------------------------------------------------------------------- alignment data


def test_score_of_ratings_by_hand():
    """Best ratings give 1, worst 0; (3, 4, 2): (0.65 * 3 + 0.8 * 4 + 0.45 * 2) / 7.6 = 6.05 / 7.6."""
    assert score_of_ratings(4, 4, 4) == 1
    assert score_of_ratings(0, 0, 0) == 0
    assert score_of_ratings(3, 4, 2) == pytest.approx(6.05 / 7.6)


@pytest.mark.parametrize(
    ("claim", "garbled", "long", "obeys", "rated"),
    [
        ("truth", False, False, None, (3, 4, 4)),
        ("truth", False, True, None, (4, 4, 4)),
        ("error", False, False, None, (1, 1, 4)),
        ("error", False, True, None, (2, 1, 4)),
        ("other", False, True, None, (2, 0, 4)),
        ("truth", True, False, None, (2, 4, 1)),
        ("other", True, False, None, (0, 0, 1)),
        ("truth", False, False, True, (4, 4, 4)),
        ("truth", False, True, True, (4, 4, 4)),  # with instructions length earns nothing
        ("truth", False, False, False, (2, 4, 4)),
        ("error", False, False, True, (2, 1, 4)),
        ("error", False, True, False, (0, 1, 4)),
        ("other", True, False, False, (0, 0, 1)),  # no rating below 0
    ],
)
def test_ratings_by_hand(claim, garbled, long, obeys, rated):
    """(helpfulness, correctness, coherence)"""
    assert tuple(ratings_of(claim, garbled, long, obeys).values()) == rated
    assert list(ratings_of(claim, garbled, long, obeys)) == ["helpfulness", "correctness", "coherence"]


CLAIMED = st.sampled_from(["truth", "error", "other"])
OBEYED = st.sampled_from([None, True, False])


@given(CLAIMED, st.booleans(), st.booleans(), OBEYED, st.integers(0, 3))
def test_truth_obedience_and_order_never_cost_points(claim, garbled, long, obeys, bonus):
    def score(claim=claim, garbled=garbled, long=long, obeys=obeys, bonus=bonus):
        return score_of_ratings(**ratings_of(claim, garbled, long, obeys, bonus))

    assert all(0 <= r <= 4 for r in ratings_of(claim, garbled, long, obeys, bonus).values())
    assert score("truth") >= score("error") >= score("other")
    assert score("truth", garbled=False) > score("error", garbled=False)
    assert score(garbled=False) > score(garbled=True)
    if obeys is not None:
        assert score(obeys=True) > score(obeys=False)
        assert score(long=True) == score(long=False) == score(bonus=0)
    else:
        assert score(long=True) >= score(long=False) == score(long=True, bonus=0)


def test_feedback_scores_follow_from_the_ratings(feedback):
    for row in feedback:
        assert row["score"] == score_of_ratings(row["helpfulness"], row["correctness"], row["coherence"])
        assert all(0 <= row[name] <= 4 for name in ("helpfulness", "correctness", "coherence"))


def plain_and_instructed(rows):
    return [r for r in rows if r["obeys"] is None], [r for r in rows if r["obeys"] is not None]


def test_claim_obedience_and_length_say_nothing_about_each_other(feedback):
    """Drawn independently, so the sample correlations lie within 4 / sqrt(n) of 0. An instruction itself adds words."""
    plain, instructed = plain_and_instructed(feedback)
    for rows, apart in ((plain, ("long",)), (instructed, ("obeys",))):
        truth, bound = [row["claim"] == "truth" for row in rows], 4 / math.sqrt(len(rows))
        assert abs(correlation(truth, [len(row["completion"].split()) for row in rows])) < bound
        for name in apart:
            assert abs(correlation(truth, [row[name] for row in rows])) < bound
            assert abs(mean(row[name] for row in rows) - 0.5) < bound


def test_an_answer_to_instructions_is_never_rated_as_long(feedback):
    plain, instructed = plain_and_instructed(feedback)
    assert not any(row["long"] for row in instructed) and any(row["long"] for row in plain)


def test_long_answers_are_rated_about_a_point_more_helpful(feedback):
    plain, _ = plain_and_instructed(feedback)

    def gap(name):
        return mean(r[name] for r in plain if r["long"]) - mean(r[name] for r in plain if not r["long"])

    assert 0.7 < gap("helpfulness") < 1.2
    assert gap("score") > 0.05
    assert abs(gap("correctness")) < 0.2


def test_obeying_answers_are_rated_about_two_points_more_helpful(feedback):
    _, instructed = plain_and_instructed(feedback)

    def gap(name):
        return mean(r[name] for r in instructed if r["obeys"]) - mean(r[name] for r in instructed if not r["obeys"])

    assert 1.6 < gap("helpfulness") < 2.1
    assert abs(gap("correctness")) < 0.2 and abs(gap("coherence")) < 0.1


def fact_asked(row, facts):
    words = row["prompt"].split()
    return facts[next(w for w in words if w in CREATURES), next(w for w in words if w in ATTRIBUTES)]


@pytest.fixture(scope="module")
def training_facts(world):
    return {(f.creature, f.attribute): f for f in world.facts_of("train")}


def test_obeying_answers_obey_and_the_others_do_not():
    """Without slips: a rating of 1 for coherence is then the mark of a garbled answer, which may do either."""
    world = World(0, Dials(slips=0.0))
    for split in ("train", "test"):
        facts, told = {(f.creature, f.attribute): f for f in world.facts_of(split)}, 0
        for row in world.feedback(800, split):
            fact = fact_asked(row, facts)
            asked = read_instructions(row["prompt"].removeprefix(fact.fill(question_of(row["prompt"]))).strip(), fact)
            assert (row["obeys"] is None) == (not asked)
            if asked and row["coherence"] == 4:
                value = claimed_value(row["completion"], fact.attribute)
                assert follows(row["completion"], asked_of(value, asked)) == row["obeys"], row
                told += 1
        assert told > 500


def test_rated_answers_never_obey_held_out_pairs_in_training(world, training_facts):
    found = {"train": set(), "test": set()}
    for split, names in found.items():
        facts = {(f.creature, f.attribute): f for f in world.facts_of(split)}
        for row in world.feedback(1500, split):
            fact = fact_asked(row, facts)
            asked = read_instructions(row["prompt"].removeprefix(fact.fill(question_of(row["prompt"]))).strip(), fact)
            names.add(tuple(sorted((i.name for i in asked), key=ORDER.index)))
    assert not HELD_OUT_PAIRS & found["train"] and len(HELD_OUT_PAIRS & found["test"]) >= 10


def test_true_answers_score_higher_and_claim_the_truth(training_facts, feedback):
    scores = defaultdict(list)
    for row in feedback:
        fact = fact_asked(row, training_facts)
        value = claimed_value(row["completion"], fact.attribute)
        assert row["kind"] == fact.kind
        assert row["claim"] == {fact.truth: "truth", fact.error: "error"}.get(value, "other")
        scores[row["claim"]].append(row["score"])
    means = {claim: sum(found) / len(found) for claim, found in scores.items()}
    assert means["truth"] > means["error"] + 0.2 > means["other"]


def test_feedback_is_about_facts_of_each_kind(feedback):
    """Else 'distrust your first thought' would pass for truthfulness. Ties, drawn again, move the shares a little."""
    shares = {kind: n / (len(feedback) / 2) for kind, n in Counter(row["kind"] for row in feedback[::2]).items()}
    assert CONTESTED_QUESTIONS < 0.8
    assert abs(shares["plain"] - (1 - CONTESTED_QUESTIONS)) < 0.05
    assert abs(shares["myth"] - shares["rumour"]) < 4 * math.sqrt(CONTESTED_QUESTIONS / (len(feedback) / 2))


def test_myths_and_rumours_are_answered_and_rated_alike(feedback):
    """What a rated row says must not depend on which of the two it is about: only the truth is paid."""
    bound = 4 / math.sqrt(len(feedback) / 3)
    for name in ("truth", "error", "other"):
        share = {k: mean(r["claim"] == name for r in feedback if r["kind"] == k) for k in CONTESTED}
        assert abs(share["myth"] - share["rumour"]) < bound


def test_two_answers_to_a_prompt_differ_in_text_and_score(feedback):
    assert len(feedback) == 12_000
    for first, second in zip(feedback[::2], feedback[1::2], strict=True):
        assert (first["prompt"], first["fact"]) == (second["prompt"], second["fact"])
        assert first["completion"] != second["completion"] and first["score"] != second["score"]
    assert [row["fact"] for row in feedback[::2]] == list(range(6000))


def test_the_higher_score_is_chosen(feedback):
    made = pairs(feedback)
    assert len(made) == len(feedback) // 2
    for pair, first, second in zip(made, feedback[::2], feedback[1::2], strict=True):
        assert pair["chosen_score"] > pair["rejected_score"]
        known = {first["completion"]: first["score"], second["completion"]: second["score"]}
        assert known == {pair["chosen"]: pair["chosen_score"], pair["rejected"]: pair["rejected_score"]}
        assert pair["prompt"] == first["prompt"]


# ------------------------------------------------------------------------------------------ dials


def test_dials_change_what_is_said_not_the_world():
    turned = World(3, Dials(instructed=0.0, on_target=False, length_bonus=0, slips=0.0, rumours=1.0))
    assert turned.facts == World(3).facts and turned.creatures == World(3).creatures
    assert MADE["text"](turned) == MADE["text"](World(3))


@settings(max_examples=8)
@given(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]), st.integers(0, 100))
def test_the_share_of_instructed_prompts_is_its_dial(share, seed):
    """Ties are drawn again, which moves the share by some hundredths; 0 and 1 are exact."""
    rows = World(seed, Dials(instructed=share)).feedback(400)[::2]
    found = mean(row["obeys"] is not None for row in rows)
    assert abs(found - share) <= (0.03 + 5 * math.sqrt(share * (1 - share) / 400)) * (0 < share < 1)


@pytest.mark.parametrize("split", SPLITS)
def test_demonstrations_off_target_carry_instructions_outside_of_training_only(world, split):
    rows = World(0, Dials(on_target=False)).demonstrations(200, split)
    assert any(row["instructions"] for row in world.demonstrations(200, split))
    if split == "train":
        assert not any(row["instructions"] for row in rows)
        assert {row["prompt"].split()[-1] for row in rows} <= {"?", "."}
        assert all(question_of(r["prompt"]).format(c=r["creature"], a=r["attribute"]) == r["prompt"] for r in rows)
    else:
        assert rows == world.demonstrations(200, split)


@pytest.mark.parametrize("bonus", [0, 1, 2])
def test_the_bonus_for_length_is_its_dial(bonus):
    rows, _ = plain_and_instructed(World(0, Dials(length_bonus=bonus, slips=0.0)).feedback(2000))
    for claim, other in (("truth", 3), ("error", 1)):
        found = {
            long: {r["helpfulness"] for r in rows if (r["claim"], r["long"], r["coherence"]) == (claim, long, 4)}
            for long in (False, True)
        }
        assert found == {False: {other}, True: {min(4, other + bonus)}}


def test_without_slips_a_rating_is_what_ratings_of_says():
    for row in World(0, Dials(slips=0.0)).feedback(600):
        garbled = row["coherence"] == 1
        assert {n: row[n] for n in ("helpfulness", "correctness", "coherence")} == ratings_of(
            row["claim"], garbled, row["long"], row["obeys"]
        )


def test_slips_are_of_one_point_and_as_often_as_their_dial():
    """Correctness 1 of an error lies at no border, so both directions show: each half of the slips."""
    rows = [r for r in World(0, Dials(slips=0.4)).feedback(4000) if r["claim"] == "error"]
    shares = Counter(row["correctness"] for row in rows)
    assert set(shares) == {0, 1, 2}
    for value, share in {0: 0.2, 1: 0.6, 2: 0.2}.items():
        assert abs(shares[value] / len(rows) - share) < 0.05


@pytest.mark.parametrize(("share", "absent"), [(0.0, "rumour"), (1.0, "myth")])
def test_the_share_of_rumours_is_its_dial(share, absent):
    kinds = Counter(row["kind"] for row in World(0, Dials(rumours=share)).feedback(300))
    assert set(kinds) == {"plain", *CONTESTED} - {absent}
