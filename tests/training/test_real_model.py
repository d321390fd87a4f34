"""The first step on a real model, against plain transformers. Needs a model: set UFTLAB_REAL_MODEL to its folder."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from uftlab.models.policies import load_policy

MODEL = os.environ.get("UFTLAB_REAL_MODEL", "")
pytestmark = pytest.mark.skipif(not MODEL, reason="UFTLAB_REAL_MODEL: the folder of a model with a chat template")

QUESTIONS = ("What is the capital of France?", "Name a fruit.", "How many legs has a spider?")
GOOD = ("The capital of France is Paris.", "An apple is a fruit.", "A spider has eight legs.")
BAD = ("I do not know.", "A stone.", "It has six legs, and it is an insect of the garden.")


def naive(model, tokenizer, question, answer):
    """Log-probability of each token of the answer, one conversation at a time, without padding."""
    asked = [{"role": "user", "content": question}]
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": answer}], tokenize=False)
    start = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
    begin = len(tokenizer(start, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logps = model(ids).logits.double().log_softmax(-1)
    return logps[0, :-1].gather(-1, ids[0, 1:, None])[begin - 1 :, 0]


STEP = """
import json, sys
from datasets import Dataset
from uftlab import UFTConfig, UFTTrainer
from uftlab.models.policies import load_policy

folder, objective, batch, model, tables = sys.argv[1:]
tables = {name: Dataset.from_list(rows) for name, rows in json.loads(tables).items()}
policy, tokenizer = load_policy(model)
told = dict(max_steps=1, logging_steps=1, warmup_steps=0, use_cpu=True, report_to="none", save_strategy="no")
arguments = UFTConfig(folder, objective=objective, learning_rate=1e-6, per_device_train_batch_size=int(batch), **told)
trainer = UFTTrainer(policy, args=arguments, train_dataset=tables, processing_class=tokenizer)
trainer.train()
print("\\n" + json.dumps(trainer.state.log_history[0]))
"""


def first_step(folder, objective, batch, **tables):
    """What is logged of the first step, in a process of its own, as in a user's script."""
    command = [sys.executable, "-c", STEP, str(folder), objective, str(batch), MODEL, json.dumps(tables)]
    made = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert made.returncode == 0, made.stderr[-2000:]
    return json.loads(made.stdout.splitlines()[-1])


def test_step_one_of_sft_dpo_uft_and_kto_is_what_plain_transformers_says(tmp_path):
    model, tokenizer = load_policy(MODEL)
    good, bad = ([naive(model, tokenizer, q, a) for q, a in zip(QUESTIONS, own, strict=True)] for own in (GOOD, BAD))
    shown = [{"prompt": q, "completion": a} for q, a in zip(QUESTIONS, GOOD, strict=True)]
    pairs = [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in zip(QUESTIONS, GOOD, BAD, strict=True)]
    expected = -sum(t.sum() for t in good).item() / sum(map(len, good))
    assert first_step(tmp_path, "sft", 3, demonstrations=shown)["loss"] == pytest.approx(expected, abs=1e-4)
    dpo = first_step(tmp_path, "dpo", 3, feedback=pairs)
    assert dpo["loss"] == pytest.approx(math.log(2), abs=1e-5) and dpo["reward/margin"] == pytest.approx(0, abs=1e-5)
    for name, own in (("chosen", good), ("rejected", bad)):
        assert dpo[f"logps/{name}"] == pytest.approx(sum(t.sum() for t in own).item() / 3, rel=1e-5, abs=1e-4)
    uft = first_step(tmp_path, "una-score", 6, demonstrations=shown, feedback=pairs)
    assert uft["loss"] == pytest.approx(0.25, abs=1e-5) and uft["reward/demonstration"] == pytest.approx(0, abs=1e-5)
    kto = first_step(tmp_path, "kto", 6, feedback=pairs)
    assert kto["loss"] == pytest.approx(0.5, abs=1e-4)
