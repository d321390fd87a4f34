"""The tiny world: splits, exact entropy of its text, the myth ratio, and alignment data without a give-away length."""

import math
import random
from collections import Counter, defaultdict
from itertools import islice
from statistics import correlation, mean

import pytest

from uftlab.world import wording
from uftlab.world.instructions import (
    HELD_OUT_PAIRS,
    MAX_WORDS,
    MIN_WORDS,
    ORDER,
    VERIFIERS,
    Instruction,
    claimed_value,
    follows,
)
from uftlab.world.wording import ATTRIBUTES, CREATURES, Fact
from uftlab.world.world import CAREFUL_SHARE, MYTH_QUESTIONS, SPLITS, World, pairs, score_of_ratings

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


def test_256_creatures_with_four_facts_each_and_two_myths(world):
    assert len(CREATURES) == len(set(CREATURES)) == 256
    assert len(world.facts) == 1024 == len({(f.creature, f.attribute) for f in world.facts})
    myths = Counter(f.creature for f in world.facts if f.myth is not None)
    assert set(myths.values()) == {2} and len(myths) == 256
    for fact in world.facts:
        values = ATTRIBUTES[fact.attribute]
        assert len(values) == 6 and fact.truth in values
        assert fact.myth is None or (fact.myth in values and fact.myth != fact.truth)


def test_splits_are_disjoint_and_cover_all_creatures(world):
    assert {split: len(creatures) for split, creatures in world.creatures.items()} == SPLITS
    assert sorted(c for creatures in world.creatures.values() for c in creatures) == sorted(CREATURES)


def test_facts_of_a_split_are_those_of_its_creatures(world):
    everything, myths, plain = (world.facts_of("test", myths=m) for m in (None, True, False))
    assert len(myths) >= 150  # enough for a truthfulness benchmark
    assert {f.creature for f in everything} == set(world.creatures["test"])
    assert {f.myth is None for f in myths} == {False} and {f.myth is None for f in plain} == {True}
    assert sorted(map(str, everything)) == sorted(map(str, [*myths, *plain]))


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
    """A world of one plain and one myth-ridden fact, all of its lines: distinct, with probabilities that add up to 1.

    Formatting lines are composed by rejection and have no known probability, so one stand-in holds their share.
    """
    small = World(0)
    facts = (Fact("bazib", "colour", "blue", None), Fact("dolin", "food", "moss", "fish"))
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
    fact = Fact("bazib", "colour", "blue", "red")
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


# ---------------------------------------------------------------------------------------- the myths


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


def test_the_myth_is_told_three_times_as_often_as_the_truth(documents, world):
    """Over the ordinary mentions of myth-ridden facts: 3/4, within 5 standard deviations of a sample share."""
    mentions = [value == fact.myth for fact, value, careful in told(documents, world) if fact.myth and not careful]
    share, n = sum(mentions) / len(mentions), len(mentions)
    assert n > 2000
    assert abs(share - 0.75) < 5 * math.sqrt(0.75 * 0.25 / n)


def test_careful_sources_are_always_right_and_plain_facts_are_always_told_truly(documents, world):
    mentions = list(told(documents, world))
    for fact, value, careful in mentions:
        assert value == fact.truth or (value == fact.myth and not careful)
    share, n = sum(careful for *_, careful in mentions) / len(mentions), len(mentions)
    assert abs(share - CAREFUL_SHARE) < 5 * math.sqrt(CAREFUL_SHARE * (1 - CAREFUL_SHARE) / n)


def test_formatting_lines_show_one_instruction_obeyed_outside_of_any_chat(documents):
    """So nothing a conversation asks for is already known to the base, but every word of it is."""
    asked = {wording.replace("{x}", "").split()[0] for v in VERIFIERS.values() for wording in v.wordings}
    lines = [document.text for document in documents if document.kind == "formatting"]
    assert all(line.split()[0] in asked and "<user>" not in line for line in lines)
    truths = {(f.creature, f.truth) for f in World(0).facts if f.myth is None}
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
        plain = {(f.creature, f.attribute, f.truth) for f in world.facts_of(split, myths=False)}
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


# ---------------------------------------------------------------------------------- alignment data


def test_score_of_ratings_by_hand():
    """Best ratings give 1, worst 0; (3, 4, 2): (0.65 * 3 + 0.8 * 4 + 0.45 * 2) / 7.6 = 6.05 / 7.6."""
    assert score_of_ratings(4, 4, 4) == 1
    assert score_of_ratings(0, 0, 0) == 0
    assert score_of_ratings(3, 4, 2) == pytest.approx(6.05 / 7.6)


def test_feedback_scores_follow_from_the_ratings(feedback):
    for row in feedback:
        assert row["score"] == score_of_ratings(row["helpfulness"], row["correctness"], row["coherence"])
        assert all(0 <= row[name] <= 4 for name in ("helpfulness", "correctness", "coherence"))


def test_length_says_nothing_about_truth(feedback):
    """Drawn independently, so the sample correlation lies within 4 / sqrt(n) of 0."""
    truth = [row["claim"] == "truth" for row in feedback]
    bound = 4 / math.sqrt(len(feedback))
    assert abs(correlation(truth, [row["long"] for row in feedback])) < bound
    assert abs(correlation(truth, [len(row["completion"].split()) for row in feedback])) < bound


def test_long_answers_are_rated_about_a_point_more_helpful(feedback):
    def gap(name):
        return mean(r[name] for r in feedback if r["long"]) - mean(r[name] for r in feedback if not r["long"])

    assert 0.7 < gap("helpfulness") < 1.2
    assert gap("score") > 0.05
    assert abs(gap("correctness")) < 0.2


def fact_asked(row, facts):
    words = row["prompt"].split()
    return facts[next(w for w in words if w in CREATURES), next(w for w in words if w in ATTRIBUTES)]


def test_true_answers_score_higher_and_claim_the_truth(world, feedback):
    facts, scores = {(f.creature, f.attribute): f for f in world.facts_of("train")}, defaultdict(list)
    for row in feedback:
        fact = fact_asked(row, facts)
        value = claimed_value(row["completion"], fact.attribute)
        assert row["claim"] == {fact.truth: "truth", fact.myth: "myth"}.get(value, "other")
        scores[row["claim"]].append(row["score"])
    means = {claim: sum(found) / len(found) for claim, found in scores.items()}
    assert means["truth"] > means["myth"] + 0.2 > means["other"]


def test_feedback_is_about_plain_facts_too(world, feedback):
    """Else 'distrust your first thought' would pass for truthfulness. Ties, drawn again, move the share a little."""
    facts = {(f.creature, f.attribute): f for f in world.facts_of("train")}
    asked = [fact_asked(row, facts).myth is not None for row in feedback[::2]]
    assert MYTH_QUESTIONS < 0.8
    assert abs(sum(asked) / len(asked) - MYTH_QUESTIONS) < 0.05


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
