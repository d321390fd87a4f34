"""DPO with TRL, on pairs in conversational form: python dpo_script.py MODEL PAIRS.jsonl OUT."""

import sys

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer

name, rows, out = sys.argv[1:]
set_seed(0)
model = AutoModelForCausalLM.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
table = load_dataset("json", data_files=rows, split="train").train_test_split(test_size=8, seed=0)
args = DPOConfig(
    output_dir=out,
    beta=0.1,
    learning_rate=1e-3,
    per_device_train_batch_size=8,
    max_steps=3,
    logging_steps=1,
    eval_strategy="steps",
    eval_steps=3,
    save_strategy="no",
    gradient_checkpointing=False,
    bf16=False,
    report_to="none",
)
trainer = DPOTrainer(
    model=model,
    args=args,
    train_dataset=table["train"],
    eval_dataset=table["test"],
    processing_class=tokenizer,
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
trainer.save_model(out)
