"""What the doctor says, as lines of a terminal, Markdown of a page, and a section of the HTML report."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from uftlab.evals.doctor import DIAGNOSES, Finding, Report, diagnose
from uftlab.evals.run_logs import runs_of
from uftlab.reports.tables import wide

STYLES = {"serious": "bold red", "notice": "yellow"}


def counted(report: Report) -> str:
    """The findings of a run in numbers: `1 serious finding, 2 notices`."""
    found: Counter[str] = Counter(finding.severity for finding in report.findings)
    names = {"serious": ("serious finding", "serious findings"), "notice": ("notice", "notices")}
    told = [f"{found[kind]} {names[kind][found[kind] > 1]}" for kind in names if found[kind]]
    return ", ".join(told) or f"nothing found in {len(report.healthy)} diagnoses"


def where(finding: Finding) -> str:
    """Where a finding was read: `reward/chosen from step 40, 0.03 against 0.1`."""
    evidence = finding.evidence
    return f"{evidence.curve} from step {evidence.step:g}, {evidence.value:.3g} against {finding.threshold:g}"


def cannot_tell(report: Report) -> list[str]:
    """One line for everything that is missing: which diagnoses need it."""
    lacking: dict[str, list[str]] = {}
    for name, needs in report.unknown.items():
        lacking.setdefault(" and ".join(needs), []).append(name)
    return [f"cannot tell {', '.join(names)}: needs {needs}" for needs, names in lacking.items()]


def lines(report: Report) -> list[Text]:
    """The report for a terminal. Names of files are shown as they are: brackets in them are no markup."""
    made = [Text.assemble((report.run, "bold"), f": {counted(report)}")]
    for finding in report.findings:
        links = ", ".join(filter(None, (finding.notebook, finding.thread)))
        made += [
            Text.assemble("  ", (f"{finding.severity}: {finding.name}", STYLES[finding.severity])),
            Text(f"    {finding.evidence.words} ({where(finding)})"),
            Text(f"    {finding.means}"),
            Text(f"    What to do: {finding.remedy}"),
            Text(f"    See {links}"),
        ]
    return [*made, *(Text(f"  {line}", "dim") for line in cannot_tell(report))]


def alarms(reports: Sequence[Report]) -> list[str]:
    """The serious findings alone, one line each: what a training says of itself when it has ended."""
    return [
        f"{report.run}: {own.name}: {own.evidence.words}. {own.means} {own.remedy} `uftlab doctor` says more."
        for report in reports
        for own in report.findings
        if own.severity == "serious"
    ]


def section(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """The findings of a training as a part of a page in Markdown, from `Report.asdict`; nothing without a log."""
    if not reports:
        return []
    parts = ["## What the doctor says of its training"]
    for report in reports:
        found = [
            f"- **{own['name']}** ({own['severity']}): {own['evidence']['words']}. {own['means']} {own['remedy']}"
            for own in report["findings"]
        ]
        stage = report["run"].rpartition(", ")[2] if ", stage " in report["run"] else "training"
        parts.append("\n".join([f"{stage}:", "", *(found or ["- nothing was found."])]))
    return parts


def html_section(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many stages of each method have a finding, as a table of HTML; nothing for trials without histories."""
    found: dict[str, Counter[str]] = {}
    stages: Counter[str] = Counter()
    for trial in trials:
        for run in runs_of(trial["method"], trial):
            stages[run.name] += 1
            found.setdefault(run.name, Counter()).update(own.name for own in diagnose(run).findings)
    names = [own.name for own in DIAGNOSES if any(own.name in counts for counts in found.values())]
    if not stages:
        return []
    parts = ["<h2>What the doctor says</h2>", "<p>Runs in which a curve looks as it should not (docs/doctor.md).</p>"]
    if not names:
        return [*parts, "<p>Nothing was found.</p>"]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = [
        f"<tr><td>{html.escape(run)}</td><td>{stages[run]}</td>"
        + "".join(f"<td>{counts[name] or ''}</td>" for name in names)
        + "</tr>"
        for run, counts in found.items()
    ]
    heads = f"<thead><tr><th>method</th><th>runs</th>{head}</tr></thead>"
    return [*parts, wide(f"<table>{heads}<tbody>{''.join(rows)}</tbody></table>")]
