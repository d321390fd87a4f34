"""Recipes with a teacher, and SFT on accepted samples, on a bandit whose every probability is known."""

import gc
from dataclasses import replace

import pytest
import torch
from enumerable import IDS, PROMPT, REFERENCE, TABLES, TOKENS, WORDS, BanditPolicy, scored
from torch.testing import assert_close

from uftlab.course import bandit
from uftlab.engine.trainer import training_arguments
from uftlab.errors import InputError
from uftlab.models.logps import completion_logits
from uftlab.models.policies import load_base, with_lora
from uftlab.objectives.registry import objective_named
from uftlab.rows.batches import to_batch
from uftlab.rows.table import from_rows
from uftlab.rows.tokens import Completion
from uftlab.training.catalogue import RECENT_METHODS
from uftlab.training.distillation import DistillingTrainer, example_in_prompt, unscored
from uftlab.training.reward_functions import world_context
from uftlab.training.stages import Job, check_recipes, run
from uftlab.world.world import World

CUE = "hello friend"  # what the teacher is asked instead of PROMPT
SHIFT = torch.tensor([-1.0, 1.0, 0.5, 0.0, 0.0])  # what the cue adds to the logits
TAUGHT = (REFERENCE.log() + SHIFT).softmax(-1)


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """The library collects garbage after each run."""
    gc.freeze()
    yield
    gc.unfreeze()


class CuedBandit(BanditPolicy):
    """The bandit, which believes something else where the cue is in its prompt."""

    def cued(self, input_ids):
        return (input_ids == TOKENS.prompt(CUE)[-2]).any(-1, keepdim=True)

    def forward(self, input_ids, **kwargs):
        out = super().forward(input_ids, **kwargs)
        words = torch.zeros(out.logits.shape[-1]).index_put((torch.tensor(IDS),), SHIFT)
        opens = (input_ids == TOKENS.prompt(PROMPT)[-1])[..., None]
        out.logits = out.logits + words * (opens & self.cued(input_ids)[..., None])
        return out

    def generate(self, input_ids, **kwargs):
        probs = (self.logits.detach() + SHIFT * self.cued(input_ids)).softmax(-1)
        words = torch.tensor(IDS)[torch.multinomial(probs, 1)]
        return torch.cat([input_ids, words, torch.full_like(words, TOKENS.tokenizer.eos_token_id)], -1)


def cue(prompt):
    assert prompt == PROMPT
    return CUE


def never(prompts, texts):
    raise AssertionError("nobody has to score this")


def trained(name, steps=60, batch=32, reward=never, context=cue, optim="adamw_torch_fused", **settings):
    """The probabilities without the cue after a method on the bandit, and its record."""
    policy, stage = CuedBandit(), RECENT_METHODS[name].stages[-1]
    job = Job(policy, stage, TABLES, {"learning_rate": 0.1, **settings}, steps, 0, reward, context=context)
    (made,) = run([job], TOKENS, batch=batch, logging_steps=1, optim=optim)
    return policy.probs(), made.record


def test_words_of_the_cued_bandit_are_what_it_says_they_are():
    """What these tests rest on: the cue changes the prompt alone, and the answer to it."""
    assert TOKENS.prompt(CUE) != TOKENS.prompt(PROMPT) and TOKENS.prompt(CUE)[-1] == TOKENS.prompt(PROMPT)[-1]
    assert bandit.kl(REFERENCE, TAUGHT) > 0.25


# ------------------------------------------------------------------------------------------ towards the teacher


@pytest.mark.parametrize("reverse", [0.0, 0.5, 1.0])
def test_self_distillation_goes_to_what_the_model_said_with_the_cue(reverse):
    """Whatever the direction, since the bandit can say it exactly; nothing is scored."""
    probs, record = trained("sdft", 60, reverse=reverse, teacher_rate=0.0)
    assert bandit.kl(probs, TAUGHT) < 0.01
    assert record.completions == record.sampled == record.extra_forwards == 60 * 32 and record.extra_runs == 0


def test_a_teacher_that_follows_moves_the_goal_away():
    """The cue adds to whatever the policy has become, so with a teacher of the moment there is no end."""
    fixed, _ = trained("sdft", 40, teacher_rate=0.0)
    current, _ = trained("sdft", 40, teacher_rate=1.0)
    assert fixed[1] < TAUGHT[1] + 0.05 < TAUGHT[1] + 0.1 < current[1]


def test_a_cue_that_says_nothing_changes_nothing():
    probs, _ = trained("sdft", 5, context=lambda prompt: prompt, optim="sgd")
    assert_close(probs, REFERENCE, atol=1e-6, rtol=0)


def test_sft_on_cued_answers_goes_there_too_and_samples_once():
    probs, record = trained("cue-sft", 60)
    assert (probs - TAUGHT).abs().max() < 0.06
    assert record.sampled == record.completions == 60 * 32 and record.extra_forwards == 0


def test_cued_answers_are_the_starting_models_unless_they_are_drawn_anew():
    """Drawn anew they are cued answers of a policy that has moved, and move it on: further than the start knew."""
    again, _ = trained("cue-sft", 60, refresh=1.0)
    assert again[1] > TAUGHT[1] + 0.1


def test_the_distilled_student_goes_where_its_teacher_went():
    """The demonstration is red. A teacher hardly trained stays, and so does its student."""
    probs, record = trained("on-policy-distillation", 40, context=None, teacher_learning_rate=0.1)
    assert probs[0] > 0.9 and record.extra_runs == record.extra_forwards == 40 * 32
    still, _ = trained("on-policy-distillation", 5, context=None, teacher_learning_rate=0.0, optim="sgd")
    assert_close(still, REFERENCE, atol=1e-4, rtol=0)


def test_demonstrations_beside_own_samples_are_distilled_too():
    stage = replace(RECENT_METHODS["on-policy-distillation"].stages[0], demonstrations=0.5)
    policy = CuedBandit()
    settings = {"learning_rate": 0.1, "teacher_learning_rate": 0.1}
    (made,) = run([Job(policy, stage, TABLES, settings, 30, reward=never)], TOKENS)
    assert policy.probs()[0] > REFERENCE[0] + 0.2
    assert (made.record.completions, made.record.sampled) == (30 * 32, 30 * 16)


# ------------------------------------------------------------------------------------------ accepted samples

ACCEPTED = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
REWARD = scored(0.2, 0.9, 0.6, 0.5, 0.7)


def test_self_sft_goes_to_the_starting_model_among_what_is_accepted():
    """A score of exactly `accept_above` is not accepted; accepted ones weigh alike, whatever their score."""
    goal = REFERENCE * ACCEPTED / (REFERENCE * ACCEPTED).sum()
    probs, record = trained("self-sft", 80, reward=REWARD)
    assert (probs - goal).abs().max() < 0.06
    assert record.completions == 80 * 32
    assert 0.25 < record.completions / record.sampled < 0.45  # 0.35 of the base's samples are accepted
    assert record.history[0]["rollout/score"] > 0.6


def test_a_line_drawn_higher_accepts_less():
    probs, _ = trained("self-sft", 60, reward=REWARD, accept_above=0.8)
    assert probs[1] > 0.9


def test_drawn_anew_the_accepted_become_fewer_kinds_by_chance_but_not_worse():
    """The iterative variant: samples of the policy as it is by then need fewer tries."""
    once, again = (trained("self-sft", 20, 8, reward=REWARD, refresh=r)[1] for r in (20.0, 1.0))
    assert once.completions == again.completions == 160 and again.sampled < once.sampled


def test_a_reward_that_accepts_nothing_is_one_clear_error():
    with pytest.raises(InputError, match=r"accept at least 2% of the samples above a score of 0.5; got 0 of 1064"):
        trained("self-sft", 2, reward=scored(*[0.1] * 5))


# ------------------------------------------------------------------------------------------ contexts


def test_the_worlds_cue_asks_careful_sources_and_keeps_the_instructions():
    world = World(3)
    fact, context = world.facts[0], world_context(3)
    asked = f"according to careful sources , what is the {fact.attribute} of {fact.creature} ?"
    assert context(f"tell me the {fact.attribute} of {fact.creature} . shout it . start with well .") == (
        f"{asked} shout it . start with well ."
    )
    assert context(f"{fact.creature} : what {fact.attribute} ?") == asked
    assert all(context(row["prompt"]).startswith("according to") for row in world.feedback(20))
    with pytest.raises(InputError, match="prompt of the world's cue must be one it knows; got hello"):
        context("hello")


def test_without_a_cue_an_answer_from_the_table_is_the_context():
    """The chosen of a pair, the best of scored ones, the demonstration; behind the last message of a chat."""
    pairs = from_rows([{"prompt": "a ?", "chosen": "good", "rejected": "bad"}])
    assert "\ngood\n" in example_in_prompt(pairs)("a ?") and "bad" not in example_in_prompt(pairs)("a ?")
    rated = from_rows([{"prompt": "a ?", "completion": c, "score": s} for c, s in (("so", 0.4), ("best", 0.9))])
    assert "\nbest\n" in example_in_prompt(rated)("a ?")
    chat = [{"role": "user", "content": "a ?"}]
    shown = from_rows([{"prompt": chat, "completion": [{"role": "assistant", "content": "yes"}]}])
    (message,) = example_in_prompt(shown)(chat)
    assert message["role"] == "user" and message["content"].startswith("a ?") and "\nyes\n" in message["content"]
    assert chat[0]["content"] == "a ?"


def test_recipes_without_a_reward_function_take_any_feedback_and_others_say_what_they_lack():
    table = {"feedback": from_rows([{"prompt": PROMPT, "completion": "red", "score": 1.0}])}
    for name in ("sdft", "cue-sft", "on-policy-distillation"):
        check_recipes(RECENT_METHODS[name], table)
    with pytest.raises(InputError, match="The feedback of self-sft must have pairs"):
        check_recipes(RECENT_METHODS["self-sft"], table)


# ------------------------------------------------------------------------------------------ the teacher of the trainer


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_with_adapters_the_teacher_is_the_base_or_has_adapters_of_its_own(rate, tmp_path):
    """At rate 0 it reads its own prompts with the adapters off; one that follows starts with the policy's adapters."""
    policy = with_lora(load_base(0), 4)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1.0)
    row = Completion((1, 2, 3), (4, 5, TOKENS.tokenizer.eos_token_id), "scored")
    trainer = DistillingTrainer(
        policy,
        training_arguments(tmp_path, max_steps=1, per_device_train_batch_size=1),
        lambda trainer, step: [(row,)],
        objective_named("sdft"),
        asked={(1, 2, 3): (1, 9, 2, 3)},
        rate=rate,
    )
    found = trainer._positions(policy, trainer.batch([(row,)])).reference_logits
    with torch.no_grad():
        told = to_batch([(replace(row, prompt_ids=(1, 9, 2, 3)),)])
        expected = completion_logits(policy if rate else load_base(0), told)
    assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_moving_teacher_moves_by_its_rate(tmp_path):
    policy = CuedBandit()
    arguments = training_arguments(tmp_path, max_steps=1, per_device_train_batch_size=1)
    trainer = DistillingTrainer(policy, arguments, lambda t, s: [], objective_named("sdft"), rate=0.25)
    with torch.no_grad():
        policy.logits.add_(4.0)
    trainer.follow()
    assert_close(trainer.reference.logits, REFERENCE.log() + 1.0)


def test_unscored_samples_have_no_score_that_could_be_mistaken_for_one():
    assert all(score != score for score in unscored(["a"], ["b"])) and len(unscored([1, 2], WORDS[:2])) == 2
