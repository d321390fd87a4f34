"""The API as Markdown: a page for each module of the package, from its docstrings and its code.

`documentation.py` makes web pages of them. What is public is shown: its signature, what its docstring says, and the
code, folded.
"""

from __future__ import annotations

import ast
import html
import inspect
import re
import textwrap
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from uftlab.course.export import anchor

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "uftlab"
SECTION = re.compile(r"^(Args|Returns|Raises|Yields):\n((?:[ \t]+.*\n?|\n)+)", re.M)
FORMULA = re.compile(r"^[\w(){}|/^,' -]+ (=|->|~) .*[^.:]$|^[A-Z]\w* = ")


def modules() -> list[str]:
    """The names of all modules, without `uftlab.`, rooms in the order of the picture in CONTRIBUTING.md."""
    picture = re.search(r"```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.S)
    rooms = [line.split()[0] for line in picture.group(1).splitlines()] if picture else []
    found = []
    for room in rooms:
        paths = sorted((PACKAGE / room).rglob("*.py")) if room.endswith("/") else [PACKAGE / room]
        paths = [path for path in paths if path.stem != "__init__" or path.parent.name == "losses"]
        found += [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in found]


def module_page(name: str) -> Path:
    """The place of a module's page, as if it were made from a file of docs/."""
    return Path("docs/api") / f"{name}.md"


@cache
def _tree(name: str) -> tuple[ast.Module, str]:
    path = PACKAGE / name.replace(".", "/")
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    return ast.parse(text), text


def _public(nodes: Iterable[ast.stmt]) -> list[ast.FunctionDef | ast.ClassDef]:
    return [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]


@cache
def names() -> dict[str, tuple[Path, str]]:
    """Public dotted name -> (page, anchor)."""
    found: dict[str, tuple[Path, str]] = {}
    for name in modules():
        found[f"uftlab.{name}"] = (module_page(name), "")
        for node in _public(_tree(name)[0].body):
            place = (module_page(name), anchor(node.name))
            found[f"uftlab.{name}.{node.name}"] = place
            if name.startswith("losses."):  # every loss is a name of uftlab.losses, too
                found[f"losses.{node.name}"] = found[f"uftlab.losses.{node.name}"] = place
    return found


def _first_line(node: ast.AST) -> str:
    return _escaped((ast.get_docstring(node) or "").partition("\n")[0])  # type: ignore[arg-type]


def api_index() -> str:
    """The page that lists all modules by their rooms."""
    lines = ["# Modules", "", "Every module of the package in one line, from the top room to the bottom one. "
             "A room imports only from those below it ([design](design.md)). A page has what a module's docstrings "
             "say: what a function computes, its equation and source, units, and one value to check.", ""]  # fmt: skip
    room = ""
    for name in modules():
        if name.partition(".")[0] != room:
            room = name.partition(".")[0]
            lines += ["", f"## {room}", ""]
        lines.append(f"- [`{name}`](api/{name}.md): {_first_line(_tree(name)[0])}")
    return "\n".join(lines) + "\n"


def api_page(name: str) -> str:
    """The page of a module: its docstring, and each public function and class with signature, docstring and code."""
    tree, text = _tree(name)
    parts = [f"# uftlab.{name}", said(ast.get_docstring(tree) or "")]
    for node in _public(tree.body):
        parts += _entry(node, text, "##")
        if isinstance(node, ast.ClassDef):
            for method in _public(node.body):
                if not any(isinstance(d, ast.Name) and d.id == "overload" for d in method.decorator_list):
                    parts += _entry(method, text, "###", f"{node.name}.")
    parts.append("[All modules](../api.md)")
    return "\n\n".join(parts) + "\n"


def _entry(node: ast.FunctionDef | ast.ClassDef, text: str, level: str, before: str = "") -> list[str]:
    code = textwrap.dedent("\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]))
    shown = html.escape(code).replace("\n", "&#10;")  # in one line, because a blank one would end the HTML in Markdown
    folded = f'<details class="code"><summary>Code</summary><pre>{shown}</pre></details>'
    docstring = ast.get_docstring(node) or ""
    return [f"{level} {before}{node.name}", f"```python\n{_signature(node)}\n```", said(docstring), folded]


def _signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        fields = [ast.unparse(own) for own in node.body if isinstance(own, ast.AnnAssign)]
        bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
        return "\n".join(
            [f"class {node.name}{bases}:" if fields else f"class {node.name}{bases}", *("    " + f for f in fields)]
        )
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({ast.unparse(node.args)}){returns}"
    if len(line) <= 88:
        return line
    hollow = ast.parse(f"def f({ast.unparse(node.args)}): pass").body[0]
    assert isinstance(hollow, ast.FunctionDef)
    return f"{node.name}(\n{_one_a_line(hollow.args)}){returns}"


def _one_a_line(given: ast.arguments) -> str:
    """The arguments of a signature, one a line."""
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    rows = [_argument(own, default) for own, default in zip(plain, defaults, strict=True)]
    if given.vararg or given.kwonlyargs:
        rows.append(f"*{ast.unparse(given.vararg) if given.vararg else ''}")
    rows += [_argument(own, default) for own, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    rows += [f"**{ast.unparse(given.kwarg)}"] if given.kwarg else []
    return "".join(f"    {row},\n" for row in rows)


def _argument(own: ast.arg, default: ast.expr | None) -> str:
    equals = " = " if own.annotation else "="
    return ast.unparse(own) + (f"{equals}{ast.unparse(default)}" if default is not None else "")


def _escaped(text: str) -> str:
    """Text of a docstring as Markdown: only what stands in backticks has a meaning."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_$<\\\[\]])", r"\\\1", p) for p in parts)


def said(docstring: str) -> str:
    """A docstring as Markdown: paragraphs, equations and examples as blocks, arguments and what is raised as lists."""
    text = SECTION.sub(_listed, docstring + "\n")
    shown = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith("\x00"):
            shown.append(paragraph[1:])
        elif paragraph.lstrip().startswith(">>>"):
            shown.append(f"```pycon\n{inspect.cleandoc(paragraph)}\n```")
        elif paragraph.lstrip().startswith("|"):
            shown.append(paragraph)
        elif paragraph.startswith("    "):
            shown.append(f"```text\n{inspect.cleandoc(paragraph)}\n```")
        elif "`" not in paragraph and all(FORMULA.match(line) for line in paragraph.splitlines()):
            shown.append(f"```text\n{paragraph}\n```")
        else:
            shown.append(
                "\n".join(re.sub(r"^(\s*(?:[-*]|\d+\.) )?(.*)$", _line, line) for line in paragraph.splitlines())
            )
    return "\n\n".join(shown)


def _line(match: re.Match[str]) -> str:
    return (match.group(1) or "") + _escaped(match.group(2))


def _listed(match: re.Match[str]) -> str:
    """A section of a docstring as a list, marked so that it is not read again."""
    heading = {"Args": "Arguments", "Yields": "Yields"}.get(match.group(1), match.group(1))
    body = inspect.cleandoc("\n" + match.group(2))
    if match.group(1) in ("Returns", "Yields"):
        return f"\n\x00**{heading}.** {_escaped(' '.join(body.split()))}\n\n"
    items: list[str] = []
    for line in body.splitlines():
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        elif line.strip():
            items.append(line)
    rows = [re.sub(r"^([\w*., `]+?)`?: (.*)$", lambda m: f"`{m.group(1).strip('`')}`: {_escaped(m.group(2))}", own)
            if re.match(r"^[\w*., `]+?: ", own) else _escaped(own) for own in items]  # fmt: skip
    return f"\n\x00**{heading}**\n\n\x00" + "\n".join(f"- {row}" for row in rows) + "\n\n"
