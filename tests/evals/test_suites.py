"""One model measured: the numbers are lm-eval's own, and every other number has a value by hand."""

import functools
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from uftlab.cli import app
from uftlab.errors import InputError
from uftlab.evals import benchmarks, suites
from uftlab.evals.benchmarks import evaluate, recipe_of
from uftlab.evals.drift import divergences, documents
from uftlab.evals.outcomes import Measure, load_result
from uftlab.evals.suites import Settings, read_texts
from uftlab.models.logps import completion_logits
from uftlab.reports.evaluation import compare, comparison_page, difference, estimate, grouped, run_page
from uftlab.rows.batches import to_batch
from uftlab.rows.tokens import Completion
from uftlab.study.results import interval

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
INSTRUCTIONS = [  # prompt, instructions, their arguments
    ("Say something about rain without any comma.", ["punctuation:no_comma"], [{}]),
    ("Describe a bridge in lower case letters.", ["change_case:english_lowercase"], [{}]),
    (
        "Write two words about salt, without a comma, all in capital letters.",
        ["punctuation:no_comma", "change_case:english_capital", "length_constraints:number_words"],
        [{}, {}, {"relation": "at least", "num_words": 2}],
    ),
    ("Put your whole answer in double quotation marks.", ["startend:quotation"], [{}]),
]
QUESTIONS = [  # question, choices (mc1: the first is true), number of true choices of mc2
    ("Can a goldfish ride a bicycle?", ["No, it cannot", "Yes, on Sundays", "Only a small one"], 1),
    ("What is heavier than a feather?", ["A stone", "Nothing is", "A thought"], 1),
    ("Where does a river end?", ["In a sea or a lake", "In a sea", "At its source", "It never ends"], 2),
    ("Who paints the grass green?", ["Nobody", "Gardeners at night"], 1),
]


def byte_tokenizer():
    """One token per byte, as in byte-level BPE without merges; pad is the end token."""
    special = ["<|start|>", "<|end|>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*special, *letters])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_model(folder, seed, context=1024):
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two models with random weights and questions in the columns of the benchmarks."""
    folder = tmp_path_factory.mktemp("lab")
    for seed, name in enumerate(("model", "other")):
        save_model(folder / name, seed)
    columns = ("key", "prompt", "instruction_id_list", "kwargs")
    rows = [dict(zip(columns, (number, *row), strict=True)) for number, row in enumerate(INSTRUCTIONS)]
    write_lines(folder / "data" / "ifeval" / "questions.jsonl", rows)
    rows = []
    for question, choices, true in QUESTIONS:
        labels = [int(number < true) for number in range(len(choices))]
        mc1 = {"choices": [choices[0], *choices[true:]], "labels": [1] + [0] * (len(choices) - true)}
        rows.append({"question": question, "mc1_targets": mc1, "mc2_targets": {"choices": choices, "labels": labels}})
    write_lines(folder / "data" / "truthfulqa" / "questions.jsonl", rows)
    # an empty table: no question here is about sentences, and nothing is downloaded
    (folder / "data" / "punkt_tab_english" / "tokenizers" / "punkt_tab").mkdir(parents=True)
    scored = [
        {"prompt": "hello", "completion": "good day", "score": 0.9},
        {"prompt": "hello", "completion": "go away", "score": 0.1},
        {"prompt": "who is there", "completion": "a friend", "score": 0.6},
    ]
    write_lines(folder / "rows.jsonl", scored)
    (folder / "text.txt").write_text("The first part.\n\nThe second part is longer.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(lab):
    """One run with everything, as a user would start it, and its result."""
    options = {"--reference": "other", "--data": "data", "--rows": "rows.jsonl", "--text": "text.txt"}
    arguments = ["eval", "--model", lab / "model", "--suite", "wordcount,perplexity,kl,reward,truthfulqa,ifeval"]
    for name, value in options.items():
        arguments += [name, lab / value]
    arguments += ["--batch", 3, "--max-new-tokens", 8, "--beta", 0.1, "--out", lab / "run"]
    ended = CliRunner().invoke(app, [str(a) for a in arguments])
    assert ended.exit_code == 0, ended.output
    return load_result(lab / "run")


def measured(result, name, template=None):
    (found,) = (m for m in result["measures"] if (m.name, m.template) == (name, template))
    return found


def by_lm_eval(folder, files, tmp_path, template, limit, most, seed=0, batch=1):
    """The same tasks by lm-eval alone: its own class, its own loop, a YAML as its manual writes it."""
    import lm_eval
    import lm_eval.tasks
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = Path(lm_eval.tasks.__file__).parent
    for task, (source, split, file) in files.items():
        spec = {"include": str(root / source), "task": task, "dataset_path": "json", "dataset_name": None}
        spec["dataset_kwargs"] = {"data_files": {split: str(file)}}
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(spec))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=batch)
    return lm_eval.simple_evaluate(
        lm,
        tasks=list(files),
        limit=limit,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        apply_chat_template=template,
        gen_kwargs={"max_gen_toks": most},
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
    )


def files_of(data):
    longest = max((data / "truthfulqa").glob("*.jsonl"), key=lambda path: len(path.read_text().splitlines()))
    (instructions,) = (data / "ifeval").glob("*.jsonl")
    return {
        "ifeval": ("ifeval/ifeval.yaml", "train", instructions),
        "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "validation", longest),
        "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", "validation", longest),
    }


def assert_same(result, theirs, template):
    """Every value of every question, and the means."""
    assert theirs["results"]
    for name in ("mc1", "mc2"):
        own, samples = measured(result, f"truthfulqa/{name}", template), theirs["samples"][f"truthfulqa_{name}"]
        values = [value for value, _ in own.questions.values()]
        assert values == pytest.approx([s["acc"] for s in samples], abs=1e-5)
        assert own.mean == pytest.approx(theirs["results"][f"truthfulqa_{name}"]["acc,none"], abs=1e-5)
    for level in ("prompt", "inst"):
        for rule in ("strict", "loose"):
            metric = f"{level}_level_{rule}_acc"
            own = measured(result, f"ifeval/{metric}", template)
            assert own.mean == pytest.approx(theirs["results"]["ifeval"][f"{metric},none"])
            followed = [s[metric] for s in theirs["samples"]["ifeval"]]
            if level == "inst":
                assert list(own.questions.values()) == [(sum(f) / len(f), len(f)) for f in followed]


# ------------------------------------------------------------------------------------------ benchmarks


@pytest.mark.parametrize("template", [False, True])
def test_benchmarks_equal_lm_eval_alone(lab, run, tmp_path, template):
    """Shared beginnings, another batch size and the command line change nothing."""
    theirs = by_lm_eval(lab / "model", files_of(lab / "data"), tmp_path, template, None, 8)
    assert_same(run, theirs, template)
    values = {value for value, _ in measured(run, "truthfulqa/mc2", template).questions.values()}
    assert len(values) == len(QUESTIONS)  # it depends on the question: the comparison could fail
    stored = [json.loads(line) for line in (lab / "run" / "answers.jsonl").read_text().splitlines()]
    own = [a["answer"] for a in stored if a["suite"] == "ifeval" and a["template"] == template]
    assert own == [s["filtered_resps"][0] for s in theirs["samples"]["ifeval"]]


def test_the_worked_examples_are_read_once(lab, monkeypatch):
    """TruthfulQA's six examples have 660 bytes; without sharing every choice would read them again."""
    pytest.importorskip("lm_eval")
    from uftlab.evals.harness import Harness

    read = []
    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)  # whose parameters are looked at
    def counted(self, input_ids, *args, **kwargs):
        read.append(tuple(input_ids.shape))
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    policy, tokenizer = benchmarks.load_policy(str(lab / "model"))
    harness = Harness(policy, tokenizer, batch=2)
    common = list(range(10, 40))
    requests = [(("", ""), [*common, 50], [60, 61]), (("", ""), [*common, 51, 52], [62]), (("", ""), [*common], [63])]
    shared = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    assert read == [(1, 29), (2, 3), (1, 1)]  # the last common token stays: it predicts 63
    alone = [harness._loglikelihood_tokens([r], disable_tqdm=True)[0][0] for r in requests]
    assert [logp for logp, _ in shared] == pytest.approx(alone, abs=1e-5)


def test_weights_that_are_nan_are_refused_and_not_called_right(lab, tmp_path):
    """argmax of NaN is 0, which is where TruthfulQA's mc1 has the true choice: 100 % right."""
    policy, tokenizer = benchmarks.load_policy(str(lab / "model"))
    policy.lm_head.weight.data.fill_(float("nan"))
    policy.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    settings = Settings(("truthfulqa",), data=lab / "data", chat_template=False)
    with pytest.raises(InputError, match="The weights of .* must be finite"):
        evaluate(str(tmp_path / "broken"), tmp_path / "out", settings, say=str)
    assert not (tmp_path / "out").exists()


def test_a_context_that_is_too_short_is_refused_or_reported(lab, tmp_path):
    folder = save_model(tmp_path / "short", 0, context=200)
    settings = Settings(("ifeval",), data=lab / "data", chat_template=False, max_new_tokens=200)
    with pytest.raises(InputError, match="below the context of the model, 200 tokens; got 200"):
        evaluate(folder, tmp_path / "out", settings, say=str)
    settings = Settings(("truthfulqa",), data=lab / "data", chat_template=False)
    found = evaluate(folder, tmp_path / "out", settings, say=str)
    assert found["facts"] == {"truthfulqa: prompts cut from the left": 23}  # 11 choices of mc1, 12 of mc2


def test_questions_about_sentences_need_their_table_before_anything_is_generated(lab, tmp_path):
    row = {"key": 1, "prompt": "Two sentences.", "instruction_id_list": ["length_constraints:number_sentences"]}
    write_lines(tmp_path / "ifeval" / "one.jsonl", [{**row, "kwargs": [{"relation": "at least", "num_sentences": 2}]}])
    (tmp_path / "punkt_tab_english").symlink_to(lab / "data" / "punkt_tab_english")
    settings = Settings(("ifeval",), data=tmp_path, chat_template=False, max_new_tokens=4)
    with pytest.raises(InputError, match="punkt_tab"):
        evaluate(str(lab / "model"), tmp_path / "out", settings, say=str)


def test_questions_that_are_neither_here_nor_on_the_hub_are_refused_in_one_line(lab, tmp_path):
    with pytest.raises(InputError, match="questions of hellaswag must be on this disk or on the hub"):
        evaluate(str(lab / "model"), tmp_path / "out", Settings(("hellaswag",), chat_template=False), say=str)


@pytest.mark.skipif(
    not os.environ.get("UFTLAB_REAL_MODEL") or not (Path(os.environ.get("UFTLAB_REAL_DATA", "")) / "ifeval").is_dir(),
    reason="UFTLAB_REAL_MODEL: a model; UFTLAB_REAL_DATA: a folder with ifeval, truthfulqa, punkt_tab_english",
)
def test_a_real_model_has_lm_evals_numbers_on_20_questions_and_10_prompts(tmp_path):
    """Minutes on one core. The two suites have limits of their own, so there are two runs."""
    model, data = os.environ["UFTLAB_REAL_MODEL"], Path(os.environ["UFTLAB_REAL_DATA"])
    (tmp_path / "yaml").mkdir()
    files, results, theirs = files_of(data), [], {"results": {}, "samples": {}}
    for suite, limit in (("truthfulqa", 20), ("ifeval", 10)):
        settings = Settings((suite,), data=data, chat_template=False, limit=limit, max_new_tokens=96)
        evaluate(model, tmp_path / suite, settings, say=print)
        results.append(load_result(tmp_path / suite))
        own = {task: spec for task, spec in files.items() if task.startswith(suite)}
        found = by_lm_eval(model, own, tmp_path / "yaml", False, limit, 96, batch=8)
        theirs = {key: {**theirs[key], **found[key]} for key in theirs}
    assert_same({"measures": [m for result in results for m in result["measures"]]}, theirs, False)


# ------------------------------------------------------------------------------------------ lengths, text, KL, rewards


def test_lengths_are_of_the_rows_when_there_are_rows(lab, run):
    stored = [json.loads(line) for line in (lab / "run" / "answers.jsonl").read_text().splitlines()]
    own = [a for a in stored if a["suite"] == "wordcount"]
    assert len(own) == 2  # two distinct prompts in three rows
    assert measured(run, "wordcount/tokens").mean == sum(a["tokens"] for a in own) / 2
    assert all(a["tokens"] == 8 for a in own if not a["ended"])  # cut at --max-new-tokens


@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_an_answer_ended_by_itself_only_if_it_said_the_end_token(lab, tmp_path, bias, monkeypatch):
    """pad is the end token here: padding after an answer must not count as its end, nor as tokens."""
    end = byte_tokenizer().eos_token_id
    forward = LlamaForCausalLM.forward

    def biased(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits[..., end] += bias
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", biased)
    settings = Settings(("ifeval", "wordcount"), data=lab / "data", chat_template=False, max_new_tokens=5)
    evaluate(str(lab / "model"), tmp_path / "out", settings, say=str)
    result = load_result(tmp_path / "out")
    tokens, ended = (measured(result, f"wordcount/{name}", False).mean for name in ("tokens", "ended"))
    assert (tokens, ended) == ((1, 1) if bias > 0 else (5, 0))


def test_perplexity_predicts_every_token_once_in_windows(lab, run):
    policy, tokenizer = benchmarks.load_policy(str(lab / "model"))
    text = "The first part."
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        logps = policy(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    nats = -logps.gather(-1, torch.tensor(ids[1:])[:, None]).sum().item()
    value, weight = next(iter(measured(run, "perplexity/nats-per-token").questions.values()))
    assert (value, weight) == (pytest.approx(nats / 15, abs=1e-5), 15)
    (windows,) = documents(tokenizer, [text], context=8)
    assert [len(w.completion_ids) for w in windows] == [7, 7, 1]
    assert [i for w in windows for i in w.completion_ids] == ids[1:]
    assert {w.prompt_ids for w in windows} == {(tokenizer.bos_token_id,)}


def test_the_mean_of_perplexity_weighs_tokens(run):
    own = measured(run, "perplexity/nats-per-token").questions.values()
    assert [weight for _, weight in own] == [15, 26]
    (a, m), (b, n) = own
    assert measured(run, "perplexity/nats-per-token").mean == pytest.approx((a * m + b * n) / (m + n))


def test_divergence_by_hand_and_zero_from_itself(lab):
    policy, other = (benchmarks.load_policy(str(lab / name))[0] for name in ("model", "other"))
    rows = [Completion((0, 70), (80, 81, 1), "scored"), Completion((0,), (90,), "scored")]
    assert divergences(policy, policy, rows).tolist() == [0, 0]
    found = divergences(policy, other, rows).tolist()
    for row, value in zip(rows, found, strict=True):
        batch = to_batch([(row,)])
        with torch.no_grad():
            p, q = (completion_logits(m, batch)[0].softmax(-1) for m in (policy, other))
        assert value == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-4)
    assert divergences(other, policy, rows).tolist() != pytest.approx(found, rel=1e-2)  # which way matters


def test_forward_and_reverse_kl_sample_from_their_first_model(lab, run, tmp_path):
    """Model and reference exchanged: the two ways exchange."""
    settings = Settings(("kl",), str(lab / "model"), rows=lab / "rows.jsonl", max_new_tokens=8)
    evaluate(str(lab / "other"), tmp_path / "out", settings, say=str)
    exchanged = load_result(tmp_path / "out")
    assert measured(exchanged, "kl/forward").questions == measured(run, "kl/reverse").questions
    assert measured(exchanged, "kl/reverse").questions == measured(run, "kl/forward").questions
    assert measured(run, "kl/forward").mean > 0 and measured(run, "kl/reverse").mean > 0


def test_the_implicit_reward_has_beta_and_is_zero_at_the_reference(lab, run, tmp_path):
    fact = run["facts"]["reward"]
    values = [value for value, _ in measured(run, "reward/implicit").questions.values()]
    mean = sum(values) / 3
    assert fact["spread"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 3), rel=1e-5)
    assert (fact["beta"], fact["rows"]) == (0.1, 3) and fact["spread"] > 0
    settings = Settings(("reward",), str(lab / "model"), rows=lab / "rows.jsonl")
    same = evaluate(str(lab / "model"), tmp_path / "out", settings, say=str)["facts"]["reward"]
    assert (same["beta"], same["spread"], same["inert"]) == (0.01, 0, 1)
    assert same["rank correlation with the score"] is None
    double = Settings(("reward",), str(lab / "other"), rows=lab / "rows.jsonl", beta=0.2)
    assert evaluate(str(lab / "model"), tmp_path / "two", double, say=str)["facts"]["reward"][
        "spread"
    ] == pytest.approx(2 * fact["spread"])


def test_beta_and_seed_come_from_the_training(lab, tmp_path):
    policy, tokenizer = benchmarks.load_policy(str(lab / "model"))
    policy.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    stages = [
        {"objective": "sft", "settings": {}},
        {"objective": "una-score", "settings": {"beta": 0.3}, "history": []},
    ]
    training = {"method": "sft-then-una", "model": "base", "seed": 4, "stages": stages}
    (tmp_path / "trained" / "training.json").write_text(json.dumps(training))
    settings = Settings(("reward",), str(lab / "other"), rows=lab / "rows.jsonl")
    found = evaluate(str(tmp_path / "trained"), tmp_path / "out", settings, say=str)
    assert (found["method"], found["seed"], found["facts"]["reward"]["beta"]) == ("sft-then-una", 4, 0.3)
    assert recipe_of({**training, "seed": 5}) == found["recipe"] and "seed" not in found["recipe"]


def test_rows_are_what_training_accepts(lab, run, tmp_path):
    """A folder in the hub's layout with ratings: the rows, scores and rewards are those of the plain file."""
    ratings = ("helpfulness", "correctness", "coherence")
    rows = [json.loads(line) for line in (lab / "rows.jsonl").read_text().splitlines()]
    as_rated = [
        {"prompt": r["prompt"], "response": r["completion"], **dict.fromkeys(ratings, 4 * r["score"])} for r in rows
    ]
    write_lines(tmp_path / "owner" / "steer" / "train.jsonl", as_rated)
    write_lines(tmp_path / "owner" / "steer" / "validation.jsonl", as_rated[:1])
    lines = []
    settings = Settings(("reward",), str(lab / "other"), rows=str(tmp_path / "owner" / "steer"), beta=0.1)
    found = evaluate(str(lab / "model"), tmp_path / "out", settings, say=lines.append)
    assert lines[0].startswith(f"rows: {tmp_path / 'owner' / 'steer'}@train: 3 scored rows; score = (0.65 helpfulness")
    assert found["facts"]["reward"] == pytest.approx(run["facts"]["reward"])


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"suites": ("ifevil",)}, "got ifevil"),
        ({"suites": ()}, "got nothing"),
        ({"suites": ("kl",)}, "suite kl must have --rows"),
        ({"suites": ("reward",), "rows": Path(__file__)}, "suite reward must have --reference"),
        ({"suites": ("perplexity",)}, "suite perplexity must have --text"),
        ({"suites": ("perplexity",), "text": Path("no/where")}, "The data set no/where must be in the cache"),
        ({"suites": ("wordcount",)}, "have --rows, or ifeval"),
        ({"data": Path("no/where")}, "--data must be a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_cannot_be_are_refused_before_the_model_is_loaded(tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        evaluate("there/is/no/such/model", tmp_path / "out", Settings(**settings), say=str)


def test_a_result_is_not_written_over(lab, run):
    before = (lab / "run" / "eval.json").read_bytes()
    with pytest.raises(InputError, match="got a run of other weights or settings"):
        evaluate(str(lab / "other"), lab / "run", Settings(("ifeval",)), say=str)
    assert (lab / "run" / "eval.json").read_bytes() == before


def test_a_run_that_was_cut_goes_on_and_a_finished_one_is_refused(lab, tmp_path, monkeypatch):
    settings = Settings(("wordcount", "reward"), str(lab / "other"), rows=lab / "rows.jsonl", max_new_tokens=4)

    def stopped(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as cut, pytest.raises(KeyboardInterrupt):
        cut.setattr(benchmarks.Run, "_reward", stopped)
        evaluate(str(lab / "model"), tmp_path / "out", settings, say=str)
    answers = (tmp_path / "out" / "answers.jsonl").read_bytes()
    with monkeypatch.context() as never:
        never.setattr(benchmarks.Run, "_lengths", stopped)
        evaluate(str(lab / "model"), tmp_path / "out", settings, say=str)
    names = [m.name for m in load_result(tmp_path / "out")["measures"]]
    assert names == [f"wordcount/{n}" for n in ("words", "characters", "tokens", "ended")] + ["reward/implicit"]
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == answers
    with pytest.raises(InputError, match="got a finished run"):
        evaluate(str(lab / "model"), tmp_path / "out", settings, say=str)


def test_what_a_later_suite_cannot_use_is_refused_before_the_first(lab, tmp_path):
    """The table of --rows has a line without a completion; IFEval must not run before that is said."""
    rows = write_lines(tmp_path / "bad.jsonl", [{"prompt": "hello", "completion": "", "score": 1}])
    settings = Settings(("ifeval", "reward"), str(lab / "other"), lab / "data", rows, max_new_tokens=4)
    with pytest.raises(InputError, match=r"bad\.jsonl, row 1, column 'completion'"):
        evaluate(str(lab / "model"), tmp_path / "out", settings, say=str)
    settings = Settings(("wordcount",), rows=lab / "rows.jsonl", max_new_tokens=1020)
    with pytest.raises(InputError, match="fit the context of the model, 1024 tokens; got 15 and 1020"):
        evaluate(str(lab / "model"), tmp_path / "out", settings, say=str)
    assert not (tmp_path / "out").exists()


def test_lm_eval_has_the_tasks_of_every_benchmark():
    tasks = pytest.importorskip("lm_eval.tasks")
    for benchmark in suites.BENCHMARKS.values():
        folder = Path(tasks.__file__).parent / benchmark.folder
        have = tasks.TaskManager(include_path=str(folder), include_defaults=False).all_tasks
        assert set(benchmark.tasks) <= set(have)


def test_without_lm_eval_there_is_one_line_that_names_the_extra(monkeypatch, tmp_path):
    find = suites.find_spec
    monkeypatch.setattr(suites, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r'no lm_eval.*pip install "uftlab\[real\]"'):
        evaluate("there/is/no/such/model", tmp_path / "out", Settings(), say=str)


def test_a_line_of_questions_without_its_columns_is_named(tmp_path):
    write_lines(tmp_path / "truthfulqa" / "a.jsonl", [{"question": "Why?"}])
    with pytest.raises(InputError, match=r"a\.jsonl, question 1, must have question, mc1_targets, mc2_targets"):
        evaluate("there/is/no/such/model", tmp_path / "out", Settings(("truthfulqa",), data=tmp_path), say=str)


def test_a_reference_with_other_words_is_refused(lab, tmp_path):
    settings = Settings(("kl",), "tiny", rows=lab / "rows.jsonl")
    with pytest.raises(InputError, match="have the vocabulary of the model; got tiny"):
        evaluate(str(lab / "model"), tmp_path / "out", settings, say=str)


def test_texts_are_rows_or_paragraphs_and_a_bad_line_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("one\nmore\n\n\n two \n\none\nmore\n")
    assert read_texts(tmp_path / "a.txt") == ["one\nmore", "two"]
    write_lines(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two", "from": "here"}])
    assert read_texts(tmp_path / "a.jsonl") == ["one", "two"]
    write_lines(tmp_path / "b.jsonl", [{"text": "one"}, {"prompt": "two"}])
    with pytest.raises(InputError, match=r"b\.jsonl, row 2, must have text"):
        read_texts(tmp_path / "b.jsonl")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_texts(tmp_path / "c.txt")


# ------------------------------------------------------------------------------------------ comparisons


def measure(values, weights=None, name="truthfulqa/mc1", template=False):
    pairs = zip(map(float, values), map(float, weights or [1] * len(values)), strict=True)
    return Measure(name, template, {f"q{number}": pair for number, pair in enumerate(pairs)})


def test_a_paired_interval_is_that_of_the_differences():
    """Equal weights: Student's t interval of the differences 1, 0, 0."""
    found = difference(measure([1, 1, 0]), measure([0, 1, 0]))
    by_hand = interval([1.0, 0.0, 0.0])
    assert (found.mean, found.low, found.high, found.p) == pytest.approx(
        (by_hand.mean, by_hand.low, by_hand.high, by_hand.p)
    )
    assert found.seeds == 3


def test_an_interval_with_weights_is_that_of_clusters():
    """A question with three instructions weighs as three values that belong together."""
    found = estimate(measure([2 / 3, 0.0, 1.0], [3, 1, 2]))
    by_hand = interval([1.0, 1.0, 0.0, 0.0, 1.0, 1.0], clusters=[0, 0, 0, 1, 2, 2])
    assert (found.mean, found.low, found.high) == pytest.approx((by_hand.mean, by_hand.low, by_hand.high))


def stored(
    folder, values, method=None, seed=None, questions=None, most=8, beta=0.1, weights=None, name="truthfulqa/mc1"
):
    own = measure(values, weights, name)
    names = questions or list(own.questions)
    result = {
        "schema": 1,
        "model": "m",
        "reference": None,
        "method": method,
        "seed": seed,
        "recipe": recipe_of({"method": method, "stages": [{"objective": "o", "settings": {"beta": beta}}]}),
        "settings": {"max_new_tokens": most, "suites": ["ifeval"], "limit": None},
        "sources": {},
        "versions": {},
        "device": "CPU",
        "seconds": {"ifeval": 1.0},
        "facts": {},
        "measures": [
            {
                "name": own.name,
                "template": own.template,
                "questions": dict(zip(names, own.questions.values(), strict=True)),
            }
        ],
    }
    folder.mkdir()
    (folder / "eval.json").write_text(json.dumps(result))
    return folder


def test_seeds_of_one_method_are_one_group_with_an_interval_of_their_own(tmp_path):
    base = stored(tmp_path / "base", [0, 0, 0, 1])
    runs = [stored(tmp_path / f"uft{s}", v, "uft", s) for s, v in enumerate(([1, 0, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]))]
    (row,) = compare(runs, base)
    assert (row["run"], row["baseline"]) == ("uft", "base")
    assert row["value"] == pytest.approx(0.75) and row["baseline value"] == 0.25
    seeds = interval([0.25, 0.5, 0.75])
    assert (row["seeds"].low, row["seeds"].high) == pytest.approx((seeds.low, seeds.high))
    questions = interval([1.0, 2 / 3, 1 / 3, 0.0])
    assert (row["questions"].low, row["questions"].high) == pytest.approx((questions.low, questions.high))
    assert row["verdict"] == "not settled"  # one of the two intervals has 0 in it
    page = comparison_page([row], [*runs, base])
    assert "| uft | 0.750 |" in page and "not settled" in page


def test_seeds_are_paired_where_both_sides_have_them(tmp_path):
    base = [stored(tmp_path / f"sft{s}", v, "sft", s) for s, v in enumerate(([0, 0], [1, 1]))]
    runs = [stored(tmp_path / f"uft{s}", v, "uft", s) for s, v in enumerate(([1, 0], [1, 0]))]
    (row,) = compare([*runs, *base], base[0])
    found = interval([0.5, -0.5])
    assert (row["seeds"].mean, row["seeds"].low) == pytest.approx((found.mean, found.low), abs=1e-12)


def test_other_settings_or_the_same_seed_twice_are_no_seeds_of_one_method(tmp_path):
    folders = [
        stored(tmp_path / "a", [1, 0], "uft", 0),
        stored(tmp_path / "b", [1, 0], "uft", 1, beta=0.3),
        stored(tmp_path / "c", [1, 0], "dpo", 0),
        stored(tmp_path / "d", [1, 0], "dpo", 0),
    ]
    assert [(g.label, len(g.runs)) for g in grouped(folders)] == [("a", 1), ("b", 1), ("c", 1), ("d", 1)]


def test_runs_with_other_questions_lengths_or_tokens_are_refused(tmp_path):
    one = stored(tmp_path / "one", [1, 0])
    with pytest.raises(InputError, match="have the same questions; got 2 that only one of"):
        compare([stored(tmp_path / "two", [1, 0], questions=["q0", "q7"])], one)
    with pytest.raises(InputError, match=r"same --max-new-tokens; got 8 .*, 9 "):
        compare([one, stored(tmp_path / "three", [1, 0], most=9)], one)
    text = [
        stored(tmp_path / f"text{n}", [1, 2], weights=w, name="perplexity/nats-per-token")
        for n, w in enumerate(([5, 5], [5, 6]))
    ]
    with pytest.raises(InputError, match="count the same tokens"):
        compare(text, text[0])
    with pytest.raises(InputError, match="at least two runs"):
        compare([one], one)
    with pytest.raises(InputError, match=r"be a folder with eval\.json"):
        compare([one], tmp_path / "nothing")


def test_the_pages_of_real_results(lab, run, tmp_path):
    page = run_page(run)
    assert page == (lab / "run" / "eval.md").read_text()
    assert "without chat template" in page and "with chat template" in page
    assert "IFEval, mean of the four" in page and "Is the implicit reward inert?" in page
    settings = Settings(("ifeval", "truthfulqa"), data=lab / "data", chat_template=False, max_new_tokens=8)
    evaluate(str(lab / "other"), tmp_path / "other", settings, say=str)
    out = tmp_path / "page.md"
    arguments = ["compare", str(tmp_path / "other"), "--baseline", str(lab / "run"), "--out", str(out)]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    assert "## TruthfulQA mc2, without chat template (probability)" in out.read_text()
    ended = CliRunner().invoke(app, [*arguments[:-2], "--json"])
    rows = {row["measure"]: row for row in json.loads(ended.output)}
    assert len(rows) == 6 and rows["truthfulqa/mc2"]["questions"]["seeds"] == len(QUESTIONS)
