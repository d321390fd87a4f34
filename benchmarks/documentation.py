"""The documentation as a folder of web pages: the command behind `make site`.

    python benchmarks/documentation.py                        executes the notebooks: minutes
    python benchmarks/documentation.py --executed FOLDER      takes executed copies: seconds
    python benchmarks/documentation.py --without-course       keeps the pages of the course that are there

The pages of docs/, those at the top of the repository, a page for each module from its docstrings, and the course of
`uftlab export`. Nothing on a page is asked of a network, and the folder can be moved: all addresses are relative. A
page lies where its source lies (`docs/train.md` is `docs/train.html`); docs/index.md is the first page, and notebooks
are those of `course/`. A dead link, a page that nothing leads to and an address of another host that a browser would
fetch by itself end the command with exit code 1.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from bs4 import BeautifulSoup, Tag
from docstrings import ROOT, api_index, api_page, module_page, modules, names
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename

from uftlab.course.export import STYLE, export, markdown
from uftlab.errors import InputError
from uftlab.files import write_atomically

THEME = ROOT / "docs" / "theme"
HOME = Path("docs/index.md")
COMMANDS = Path("docs/commands.md")  # not a file: made from `uftlab --help`
API = Path("docs/api.md")  # not a file either: the modules
LIVE = Path("docs/live.html")  # for readers of the repository; the course has the same page
MENU = {  # what is in the menu, in order; a pattern stands for all files that it finds
    "Learn": ["course/index.html", "course/live.html", "notebooks/glossary.md", "docs/workshop/*.md"],
    "Research": ["docs/howto/research.md", "docs/data.md", "docs/train.md", "docs/evaluate.md", "docs/doctor.md",
                 "docs/how_to_add_a_loss.md", "docs/from_dpo_trainer.md", "docs/clusters.md", "docs/gpu.md",
                 "docs/ci.md"],
    "Results": ["docs/results/README.md", "docs/results/study.md", "docs/results/real.md", "docs/pipelines.md",
                "docs/recent.md", "docs/questions/[!p]*.md", "docs/leaderboard*.md", "docs/results/withdrawn.md",
                "docs/plan.md", "docs/questions/plan.md"],
    "Reference": ["docs/methods/README.md", "docs/methods/losses.md", "docs/trl.md", str(COMMANDS), str(API),
                  "data/README.md", "docs/troubleshooting.md"],
    "Carry on": ["docs/design.md", "CONTRIBUTING.md", "docs/speed.md", "docs/robustness.md", "docs/licences.md",
                 "SECURITY.md", "CHANGELOG.md"],
}  # fmt: skip
COURSE = {"course/index.html": "The course", "course/live.html": "Explorers that move"}


class Documentation:
    """All pages but those of the course, each a Markdown text and its place."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.dead: list[str] = []  # links of sources to files that are not there
        self.sections: list[dict[str, str]] = []  # what search reads
        found = {path.relative_to(root) for path in [*root.glob("*.md"), *root.glob("docs/**/*.md")]}
        self.sources = {path: (root / path).read_text(encoding="utf-8") for path in sorted(found)}
        self.sources[Path("data/README.md")] = (root / "data/README.md").read_text(encoding="utf-8")
        self.sources[COMMANDS] = commands()
        self.sources |= {API: api_index()} | {module_page(name): api_page(name) for name in modules()}

    @cached_property
    def titles(self) -> dict[Path, str]:
        """What a page is called: its first heading."""
        found = {path: re.search(r"^# (.+)$", text, flags=re.M) for path, text in self.sources.items()}
        return {path: match.group(1).replace("`", "") if match else path.stem for path, match in found.items()}

    @cached_property
    def menu(self) -> dict[str, list[tuple[Path, str]]]:
        """Heading of the menu -> (source or page, title) of its entries."""
        found = {}
        for heading, patterns in MENU.items():
            entries: list[tuple[Path, str]] = []
            for pattern in patterns:
                if pattern in COURSE:
                    entries.append((Path(pattern), COURSE[pattern]))
                elif pattern.startswith("notebooks/"):
                    entries.append((Path(pattern), "Glossary"))
                else:
                    entries += [(path, self.titles[path]) for path in self.sources if path.match(pattern)]
            found[heading] = entries
        return found

    def _chapter(self, source: Path) -> Path:
        """The entry of the menu that a page belongs to."""
        if any(source == path for entries in self.menu.values() for path, _ in entries):
            return source
        return API if source.is_relative_to("docs/api") else source.with_name("README.md")

    def write(self, out: Path) -> list[Path]:
        """Write all pages and what they show. Returns the pages."""
        colours = [HtmlFormatter(style=own).get_style_defs(".highlight") for own in ("default", "github-dark")]
        own = (THEME / "site.css").read_text(encoding="utf-8")
        dark = f"@media (prefers-color-scheme: dark) {{ {colours[1]} }}"
        write_atomically(out / "site.css", "\n".join([colours[0], dark, STYLE, own]))
        shutil.copyfile(THEME / "search.js", out / "search.js")
        written, shown = [], set()
        for source, text in self.sources.items():
            soup = BeautifulSoup(markdown(text), "html.parser")
            shown |= self._point(soup, source)
            _arrange(soup)
            written.append(self._write_page(out, source, self.titles[source], soup))
        for path in sorted(shown):  # pictures, and files that are not Markdown
            target = out / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".png", ".svg"):
                shutil.copyfile(self.root / path, target)
            else:
                code = (self.root / path).read_text(encoding="utf-8")
                name = {"": "a.txt", ".cff": "a.yml"}.get(path.suffix, path.name)
                coloured = highlight(code, get_lexer_for_filename(name), HtmlFormatter())
                soup = BeautifulSoup(f"<h1>{path}</h1>{coloured}", "html.parser")
                written.append(self._write_page(out, path, str(path), soup))
        return written

    def _point(self, soup: BeautifulSoup, source: Path) -> set[Path]:
        """Turn links to files of the repository into links to pages. Returns the files that these need."""
        needed = set()
        links = [(tag, "href") for tag in soup.select("a[href]")] + [(tag, "src") for tag in soup.select("img[src]")]
        for tag, key in links:
            target, _, part = str(tag[key]).partition("#")
            if re.match(r"[\w+.-]+:", target) or not target:
                continue
            path = Path(os.path.normpath(source.parent / unquote(target)))
            if (self.root / path).is_dir() and path / "README.md" in self.sources:
                path = path / "README.md"
            if path not in self.sources and path.parts[0] != "course":
                if not (self.root / path).is_file():
                    self.dead.append(f"{source}: dead link {target}")
                    continue
                if path.parts[0] != "notebooks" and path != LIVE:
                    needed.add(path)
            tag[key] = _between(source, path, part)
        for code in soup.select("code"):
            page = names().get(code.get_text().removesuffix("()"))
            if page and code.parent and not code.find_parent(["a", "pre", "h1", "h2", "h3", "summary"]):
                code.wrap(soup.new_tag("a", href=_between(source, *page)))
        return needed

    def _write_page(self, out: Path, source: Path, title: str, soup: BeautifulSoup) -> Path:
        place = page_of(source)
        up = "../" * (len(place.parts) - 1)
        menu, chapter = [], self._chapter(source)
        for heading, entries in self.menu.items():
            rows, inside = [], False
            for path, name in entries:
                here = path == chapter
                inside |= here
                current = ' aria-current="page"' if here else ""
                row = f'<a href="{_between(source, path)}"{current}>{html.escape(name)}</a>'
                rows.append(f"<li>{row}{_on_this_page(soup) if here else ''}</li>")
            opened = " open" if inside or source == HOME else ""
            menu.append(f"<details{opened}><summary>{heading}</summary><ul>{''.join(rows)}</ul></details>")
        full = "uftlab" if title.lower() == "uftlab" else f"{html.escape(title)} · uftlab"
        page = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><title>{full}</title>'
            f'<link rel="stylesheet" href="{up}site.css">'
            f'<script src="{up}search.js" defer></script></head>\n<body><header><a href="{up}index.html">uftlab</a>'
            f'<a href="#contents">Contents</a><div id="search" data-root="{up}" role="search" hidden>'
            '<input type="search" placeholder="Search ( / )" aria-label="Search the documentation" autocomplete="off">'
            f'<ul id="found" aria-live="polite"></ul></div></header>\n<div class="frame"><main>{soup}</main>\n'
            f'<nav id="contents" aria-label="Contents">{"".join(menu)}</nav></div></body></html>\n'
        )
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out / place, page)
        self.sections += _sections(soup, place.as_posix())
        return out / place


def page_of(source: Path) -> Path:
    """Where the page of a file lies.

    >>> [str(page_of(Path(name))) for name in ("docs/index.md", "docs/train.md", "notebooks/02_losses.ipynb", "a.py")]
    ['index.html', 'docs/train.html', 'course/02_losses.html', 'a.py.html']
    """
    if source == HOME:
        return Path("index.html")
    if source == LIVE:
        return Path("course/live.html")
    if source.parts[0] == "notebooks":
        source = Path("course", *source.parts[1:])
    if source.suffix in (".md", ".ipynb"):
        return source.with_suffix(".html")
    return source if source.suffix in (".png", ".svg", ".html") else source.with_name(f"{source.name}.html")


def _between(source: Path, target: Path, part: str = "") -> str:
    """The address of one file's page, as it stands on another file's page."""
    place = os.path.relpath(page_of(target), page_of(source).parent)
    return place.replace(os.sep, "/") + (f"#{part}" if part else "")


def _arrange(soup: BeautifulSoup) -> None:
    """Tables that can be scrolled, headings with anchors of their own, the doors of the first page."""
    for table in soup.select("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "wide", "tabindex": "0"}))
    seen: dict[str, int] = {}
    for heading in soup.select("h1[id], h2[id], h3[id], h4[id]"):
        name = str(heading["id"])
        seen[name] = seen.get(name, -1) + 1
        if seen[name]:
            heading["id"] = f"{name}-{seen[name]}"  # as GitHub counts


def _on_this_page(soup: BeautifulSoup) -> str:
    headings = soup.select("h2[id]")
    rows = [f'<li><a href="#{h["id"]}">{html.escape(h.get_text())}</a></li>' for h in headings]
    return f"<ul>{''.join(rows)}</ul>" if 1 < len(rows) < 25 else ""


def commands() -> str:
    """Every command of uftlab with its options, as Typer writes it."""
    command = [sys.executable, "-m", "typer", "uftlab.cli", "utils", "docs", "--name", "uftlab"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True)
    text = re.sub(r"^# `uftlab`$", "# The command line", ended.stdout, count=1, flags=re.M)
    text = re.sub(r"^(#+ )`(.+)`$", r"\1\2", text, flags=re.M)
    first = dict(re.findall(r"^## uftlab (\w+)\n\n(.+)$", text, flags=re.M))  # Typer shortens them in its list

    def named(found: re.Match[str]) -> str:  # arguments of commands look the same
        name = found[1]
        return f"* [`{name}`](#uftlab-{name}): {first[name]}" if name in first else found[0]

    text = re.sub(r"^\* `(\w+)`: .*$", named, text, flags=re.M)
    return re.sub(r"^ {4}(?=\S)", "", text, flags=re.M)


# ------------------------------------------------------------------------------------------ search and check


def write_index(out: Path, sections: Iterable[dict[str, str]]) -> int:
    """Write what search reads, as a script: these sections and those of the course. Returns how many."""
    entries = list(sections)
    for path in sorted((out / "course").glob("*.html")):
        text = re.sub(r"<(script|style|svg)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.S)
        main = BeautifulSoup(text, "html.parser").find("main")
        if isinstance(main, Tag):
            entries += _sections(main, path.relative_to(out).as_posix())
    write_atomically(out / "search-index.js", f"window.searchIndex = {json.dumps(entries, ensure_ascii=False)};\n")
    return len(entries)


def _sections(main: BeautifulSoup | Tag, page: str) -> Iterator[dict[str, str]]:
    first = main.find("h1")
    title = " ".join(first.get_text().split()) if isinstance(first, Tag) else page
    for code in main.select("details.code"):
        code.decompose()  # the page has been written; whole functions would drown the rest
    heading, place, words = title, "", ""
    for part in main.descendants:
        if isinstance(part, Tag):
            if part.name in ("h1", "h2", "h3"):
                if words.strip():
                    yield _section(page, place, title, heading, words)
                heading, place, words = " ".join(part.get_text().split()), str(part.get("id") or ""), ""
            words += " " if part.name in ("p", "li", "td", "th", "br") else ""
        elif not part.find_parent(["h1", "h2", "h3"]):
            words += part
    yield _section(page, place, title, heading, words)


def _section(page: str, place: str, title: str, heading: str, words: str) -> dict[str, str]:
    return {"page": page, "anchor": place, "title": title, "heading": heading, "text": " ".join(words.split())}


def troubles(out: Path, outside: Iterable[str] = ()) -> list[str]:
    """Dead links, addresses of other hosts that a browser would fetch, and pages that nothing leads to.

    Args:
        outside: folders of the site whose pages are not there and are not looked for.
    """
    pages = {path: path.read_text(encoding="utf-8") for path in out.rglob("*.html")}
    ids = {path: set(re.findall(r'\sid="([^"]+)"', text)) for path, text in pages.items()}
    found, reached = [], {out / "index.html"}
    for path, text in pages.items():
        body = re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", text, flags=re.S)
        fetched = re.findall(r'<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\ssrc="([^"]+)"', body)
        fetched += re.findall(r'<link\b[^>]*?\shref="([^"]+)"', body)
        fetched += re.findall(
            r"(?:url\(|@import )[\"']?([^\"')]+)", "".join(re.findall(r"<style>.*?</style>", body, re.S))
        )
        own = path.relative_to(out)
        for address in (html.unescape(one) for one in fetched):
            if address.startswith("data:"):
                continue
            if re.match(r"([\w+.-]+:)?//", address):
                found.append(f"{own}: asks another host: {address}")
            elif not (path.parent / address).is_file():
                found.append(f"{own}: lacks {address}")
        for address in map(html.unescape, re.findall(r'<a\b[^>]*?\shref="([^"]*)"', body)):
            if re.match(r"[\w+.-]+:", address):
                continue
            target, _, part = address.partition("#")
            place = Path(os.path.normpath(path.parent / unquote(target))) if target else path
            if place.relative_to(out).parts[0] in outside if place.is_relative_to(out) else False:
                continue
            reached.add(place)
            if not place.is_file():
                found.append(f"{own}: dead link {address}")
            elif part and unquote(part) not in ids.get(place, {part}):
                found.append(f"{own}: no such place: {address}")
    found += [f"{path.relative_to(out)}: nothing leads to this page" for path in sorted(set(pages) - reached)]
    for path in [*out.rglob("*.css"), out / "search.js"]:
        found += [
            f"{path.name}: asks another host: {a}"
            for a in re.findall(r"(?:https?:)?//[\w.-]+\.\w+\S*", path.read_text())
        ]
    return sorted(set(found))


def _emptied(out: Path, keep: str = "") -> None:
    """An empty folder but for what is kept, because a page whose source has gone would stay.

    Raises:
        InputError: for a folder with anything in it that is not a site of this command.
    """
    out.mkdir(parents=True, exist_ok=True)
    own = [path for path in out.iterdir() if path.name != "course"]
    if own and not (out / "search-index.js").is_file():
        raise InputError("--out", "be empty or an earlier site", out, "Choose another folder, or remove it")
    for path in out.iterdir():
        if path.name != keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    """Build the site and check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    parser.add_argument("--executed", type=Path, help="A folder with executed notebooks; nothing is run then.")
    parser.add_argument("--profile", default="class", help="How the notebooks are executed: smoke, class or research.")
    parser.add_argument("--without-course", action="store_true", help="Keep the pages of the course that are there.")
    given = parser.parse_args()
    out = given.out.resolve()
    try:
        _emptied(out, keep="course" if given.without_course else "")
        documentation = Documentation()
        pages = documentation.write(out)
        print(f"{len(pages)} pages of documentation", flush=True)
        failed = [] if given.without_course else export(out / "course", given.profile, executed=given.executed)
        sections = write_index(out, documentation.sections)
    except InputError as error:
        sys.exit(str(error))
    lacking = not (out / "course" / "index.html").is_file()
    wrong = [f"{name} failed" for name in failed] + documentation.dead + troubles(out, ["course"] if lacking else [])
    print(f"{sections} sections can be searched; {out / 'index.html'}")
    if wrong:
        sys.exit("\n".join([*wrong, f"{len(wrong)} faults"]))


if __name__ == "__main__":
    main()
