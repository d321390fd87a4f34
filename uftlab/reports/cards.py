"""A card for each method, made from the registry and the docstrings of the losses, so that the cards stay right.

uftlab methods --cards docs/methods
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import torch

from uftlab.files import write_atomically
from uftlab.losses.weights import ewc_to_start, l2_to_start
from uftlab.models.fisher import TEXTS
from uftlab.objectives import curves
from uftlab.objectives.objective import VERIFIED, Objective
from uftlab.objectives.registry import OBJECTIVES
from uftlab.reports.tables import markdown
from uftlab.rows.table import KINDS
from uftlab.training.catalogue import all_methods
from uftlab.training.methods import SAMPLING, Method, Stage, data_kinds, space, stage_defaults, tables_of
from uftlab.training.settings import chosen_settings
from uftlab.training.stages import RECIPES

EQUATION = re.compile(r"^(\w+: +)?L = ")
HEAD = "<!-- made by `uftlab methods --cards docs/methods`: change the registry or the docstrings instead -->"


def cards() -> dict[str, str]:
    """File name -> text, for every method that trains, for an index, and for a list of all losses."""
    methods = [method for method in all_methods().values() if method.stages]
    return {"README.md": _index(methods), "losses.md": losses()} | {
        f"{method.name}.md": card(method) for method in methods
    }


def write_cards(folder: Path) -> list[Path]:
    """Write all cards. Other files of the folder stay."""
    paths = []
    for name, text in cards().items():
        write_atomically(folder / name, text)
        paths.append(folder / name)
    return paths


def card(method: Method) -> str:
    """One page of Markdown: what a method optimises, its data, settings, cost, known failure and source."""
    objectives = method.objectives
    parts = [HEAD, f"# {method.name}", f"> {_sentence(method.summary)}", "## What it optimises"]
    for objective in objectives:
        parts += [f"### {objective.name}: {objective.summary}"] if len(objectives) > 1 else []
        parts += _terms(objective)
    for stage in method.stages:
        offline = stage.recipe == "offline"
        parts += _added(stage) if offline else ["## Recipe", equation_of(RECIPES[stage.recipe])]
    parts += ["## Data", *(_stage(index, method, stage) for index, stage in enumerate(method.stages))]
    parts += ["## Settings", _settings(method)]
    parts += ["## Cost"]
    for objective in objectives:
        parts += [f"`{objective.name}`:"] if len(objectives) > 1 else []
        parts += ["\n".join(_cost(objective))]
    named = len(objectives) > 1
    failures = (f"{o.name}: {o.failure}." if named else _sentence(o.failure) for o in objectives)
    parts += ["## Known failure", *failures]
    parts += ["## Source", *(_source(own) for own in method.sourced)]
    return "\n\n".join(parts) + "\n"


def losses() -> str:
    """A page with every loss of the registry: what it is, and its loss and pull on one good completion.

    The completion has 16 tokens and 40 nats under the reference, and beta is 0.1, as in notebook 02. SFT on summed
    log-probabilities then has a loss of 40 and a pull of 1.
    """
    start, rows = torch.zeros(1, dtype=torch.float64), []
    for name, objective in OBJECTIVES.items():
        for kind in dict.fromkeys(objective.kinds):
            summary, reason = objective.summary.replace("|", "\\|"), curves.why_not(name, kind)
            numbers = ["-", "-"]
            if not reason:
                curve = curves.registered_curve(name, start, kind, beta=0.1, tokens=16, reference_logps=-40.0)
                numbers = [f"{values.item() + 0.0:.3g}" for values in (curve.loss, curve.pull)]
            rows.append([f"[{name}]({name}.md)", kind, summary + (f" (*{reason}*)" if reason else ""), *numbers])
    intro = (
        "Every loss of the registry on one good completion: a demonstration, the chosen side of a pair, label 1 or "
        "score 1. It has 16 tokens and 40 nats under the reference, the policy is still the reference, and β is 0.1. "
        "The pull is -dL/dlog π(y|x): how strongly a step of gradient descent makes the completion likelier. "
        "[Notebook 2](../../notebooks/02_losses.ipynb) draws both as curves. Where one completion is not enough, the "
        "reason is in brackets and the numbers are missing. [All methods](README.md)."
    )
    head = ["loss", "on a", "what it is", "loss", "pull"]
    return "\n\n".join([HEAD, "# All losses", intro, markdown(head, rows)]) + "\n"


def equation_of(function: Callable) -> str:
    """The docstring of a loss without its arguments: equations as blocks, and what it returns."""
    text = inspect.getdoc(function) or ""
    body, _, returns = text.partition("\nReturns:\n")
    paragraphs = body.partition("\nArgs:\n")[0].strip().split("\n\n")
    shown = []
    for paragraph in paragraphs:
        lines = paragraph.split("\n")
        equation = EQUATION.match(lines[0])
        shown.append("```text\n" + paragraph + "\n```" if equation else paragraph)
    if returns.strip():
        shown.append("Value: " + " ".join(returns.split()))
    return "\n\n".join(shown)


def _added(stage: Stage) -> list[str]:
    """What the options of an offline stage add to its objective."""
    parts = []
    for name, penalty in (("l2", l2_to_start), ("ewc", ewc_to_start)):
        if name in dict(stage.options):
            parts += [f"### Added in the stage of {stage.objective}", equation_of(penalty)]
    if "ewc" in dict(stage.options):
        parts.append(
            f"Paid for on top: {TEXTS} texts that the policy samples after its begin token, and a forward and a "
            "backward pass for each."
        )
    if "refresh" in dict(stage.options):
        parts.append(
            "The reference is the policy itself, renewed before the first step and then every `refresh` steps."
        )
    return parts


def _sentence(text: str) -> str:
    first = text[:1] if text[1:2].isupper() else text[:1].upper()  # cDPO stays cDPO
    return first + text[1:] + ("" if text.endswith(".") else ".")


def _terms(objective: Objective) -> list[str]:
    parts = []
    for term in objective.terms:
        weight = f", times `{term.weight}`" if term.weight else ""
        many = len(objective.terms) > 1
        lead = f"**On {term.kind} rows{weight}**, per {term.per}:" if many else f"Averaged per {term.per}:"
        parts += [lead, equation_of(term.equation) if term.equation else "(a function of its own)"]
    return parts


def _stage(index: int, method: Method, stage: Stage) -> str:
    kinds = [f"{kind} rows ({', '.join(sorted(KINDS[kind]))})" for kind in data_kinds(stage)]
    shares = [stage.demonstrations, 1 - stage.demonstrations]
    parts = (
        [f"{share:.0%} of the completions from" for share in shares if share > 0] if len(kinds) > 1 else ["all from"]
    )
    tables = tables_of(stage)
    if stage.recipe in SAMPLING:
        tables[-1], kinds[-1] = f"prompts of the {tables[-1]}, which it answers itself", kinds[-1].partition(" (")[0]
    made = [f"{part} the {table}, as {kind}" for part, table, kind in zip(parts, tables, kinds, strict=True)]
    count = f"Stage {index + 1}: " if len(method.stages) > 1 else ""
    budget = "the whole budget" if stage.budget == 1 else f"{stage.budget:.0%} of the budget"
    return f"{count}`{stage.objective}`, {budget}; {'; '.join(made)}."


def _settings(method: Method) -> str:
    several, rows = len(method.stages) > 1, []
    draws = chosen_settings().get(method.name, [])
    for index, stage in enumerate(method.stages):
        for name, value in stage_defaults(stage).items():
            chosen = ", ".join(f"{draw[index][name]:g}" for draw in draws if name in draw[index]) or "-"
            rows.append([*([str(index + 1)] if several else []), f"`{name}`", f"{value:g}", chosen])
    table = markdown([*(["stage"] if several else []), "setting", "untuned", "chosen by the sweep in each draw"], rows)
    varied = [", ".join(f"`{dimension.name}`" for dimension in own) for own in space(method)]
    named = [f"{own} of stage {index + 1}" for index, own in enumerate(varied)] if several else varied
    return f"{table}\n\nThe sweep varies {' and '.join(named)}, all together."


def _cost(objective: Objective) -> list[str]:
    lines = ["- The policy: one forward and one backward pass per completion."]
    if objective.reference:
        lines.append("- The reference: one forward pass per completion before training, kept; no memory afterwards.")
    if objective.distributions:
        lines.append(
            "- The full distributions of the reference: one more forward pass per completion in every step, its "
            "weights in memory (none with LoRA, where the reference is the policy with its adapters off), and "
            "completions x tokens x vocabulary numbers of each model."
        )
    if objective.entropies:
        lines.append("- The policy's entropies are of the same pass: next to nothing.")
    if objective.mismatched:
        lines.append("- A mismatched completion with every row: one more forward pass of policy and reference.")
    if not objective.reference and not objective.distributions:
        lines.append("- No reference.")
    if objective.across_batch:
        lines.append(
            "- The loss of a row depends on other rows: accumulated micro-batches are not the same as one big batch."
        )
    return lines


def _source(own: Objective | Method) -> str:
    meanings = " and ".join(f"{VERIFIED[letter]} ({letter})" for letter in own.verified.split())
    note = f" {own.note}" if own.note else ""
    return f"{own.name}: {own.source}. Verified by: {meanings}.{note}"


def _index(methods: list[Method]) -> str:
    rows = []
    for method in methods:
        needs = method.needs()
        reference = "in every step" if needs["distributions"] else "once" if needs["reference"] else "no"
        link = f"[{method.name}]({method.name}.md)"
        summary, data = method.summary.replace("|", "\\|"), ", ".join(needs["data"])
        rows.append([link, method.group, summary, data, reference, needs["verified"]])
    letters = "; ".join(f"{letter}: {meaning}" for letter, meaning in VERIFIED.items())
    head = ["method", "group", "what it is", "learns from", "reference", "verified"]
    intro = (
        "Groups: *paper* and *control* are the study's methods (`uftlab run --methods all`); *loss* is one loss of the "
        "registry on the one table that it learns from, for the whole budget; *pipeline* and *online* are recipes "
        "around the losses (`uftlab.training.recipes`); *recent* methods are of 2025 and 2026 or asked for since; "
        "*question* are the controls of one question. [All losses on one completion](losses.md); [TRL's losses beside "
        "ours](../trl.md). Verified by, " + letters + "."
    )
    return "\n\n".join([HEAD, "# Methods", intro, markdown(head, rows)]) + "\n"
