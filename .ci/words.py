"""Measure the wording of pages, docstrings and messages. Exit with 1, and name the sentences to rewrite, if a limit is exceeded.

`make lint` runs it. It prints one line per group of texts. The limits keep sentences short and phrases common. Do not cut a good sentence
into stubs to meet them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LONG = 25  # words
MEAN = {"pages": 15.0, "docstrings": 12.0}  # words per sentence
SHARE = {"pages": 0.10}  # of sentences with more than LONG words
RATE = 1.0  # stilted phrases per 1,000 words
WORST = 20  # sentences named for a mean that is too high
STILTED = re.compile(
    r"""\b( anew | beside | told | tells?\s(of|apart|whether) | says?\sof | (is|are)\s(said|none|there) | that\sis\snone
    | that\sthere\s(is|are) | as\sit\sis | as\s\w+\s(has|have)\sit | has\sit\sthat | has\sto\sdo\swith | where\sit\swas | were\sit
    | not\shere | but\sfor | the\sless | of\s(its|their|your|one's)\sown | whose\sown | by\sitself | of\sanother\smake | in\splace\sof
    | for\swant\sof | to\sthe\sbit | so\smany | known\sto | (goes|go|gone|went|going)\son | (put|puts|putting)\sto\suse
    | takes?\sout | taken\sout | (made|make|makes|sent)\sagain | (come|comes|came)\s(of|to\snothing)
    | what\s(is|was|are)\s(read|made|done|seen|left|asked) | (is|are)\sat\swork | given\sback | to\sbe\s(had|known)
    | is\sto\shand | gives?\swhat | (is|are)\sof\sours )\b""",
    re.IGNORECASE | re.VERBOSE,
)
FRAGMENT = re.compile(r"(Of|As|What|The same|Whose|Where|Beside|With which|By which|For|In which|That|Gives|Says|Tells)\b")
HIDDEN = re.compile(  # code, comments, front matter
    r"^[ \t]*(`{3,}|~{3,})[^`\n]*\n.*?^[ \t]*\1[`~]*[ \t]*$|<!--.*?-->|\A---\n.*?^---$", re.DOTALL | re.MULTILINE
)
INLINE = ((r"!?\[([^\]]*)\]\([^)]*\)", r"\1"), (r"\{\{.*?\}\}|`[^`]*`", "CODE"), (r"\s+", " "))
SPOKEN = {"BadInput", "CommandFailed", "Stopped", "tell", "say", "info", "warning", "error"}  # functions whose text a person reads


@dataclass(frozen=True)
class Sentence:
    """A sentence and its place."""

    file: Path
    line: int
    text: str

    @property
    def words(self) -> int:
        return len(re.findall(r"[A-Za-z][A-Za-z'’-]*", self.text))

    @property
    def stilted(self) -> list[str]:
        return [match[0] for match in STILTED.finditer(self.text)]


def sentences(file: Path, line: int, text: str) -> Iterator[Sentence]:
    """Split a paragraph that starts at a line. Stubs of one or two words are skipped."""
    start = 0
    for end in [*(match.end() for match in re.finditer(r"[.!?:]\s+(?=[A-Z`(])", text)), len(text)]:
        part = text[start:end]
        plain = part
        for pattern, replacement in INLINE:
            plain = re.sub(pattern, replacement, plain)
        sentence = Sentence(file, line + text.count("\n", 0, start), plain.strip(" -*#"))
        start = end
        if sentence.words > 2:
            yield sentence


def of_page(file: Path) -> tuple[list[Sentence], list[Sentence]]:
    """Return the sentences of a page's prose, and its table cells of more than five words."""
    text = HIDDEN.sub(lambda match: "\n" * match[0].count("\n"), file.read_text(encoding="utf-8"))
    prose, cells = [], []
    paragraph, first = "", 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.lstrip().startswith("|"):
            found = [one for cell in line.strip().strip("|").split("|") for one in sentences(file, number, cell.strip())]
            cells += [one for one in found if one.words > 5]
        skipped = not line.strip() or re.match(r"\s*(\||#|!\[|<|!!!|===)", line)
        if skipped or re.match(r"\s*([-*]|\d+\.) ", line):
            prose += list(sentences(file, first, paragraph))
            paragraph, first = "", number
        paragraph, first = (paragraph, first) if skipped else (f"{paragraph}{line}\n", first if paragraph else number)
    return prose, cells


def of_code(file: Path) -> tuple[list[Sentence], list[Sentence]]:
    """Return the sentences of a module's docstrings, including those of fields, and of its messages and help texts."""
    docstrings, messages = [], []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        body = getattr(node, "body", [])
        for before, one in zip([None, *body], body, strict=False) if isinstance(body, list) else ():
            documented = before is None or isinstance(before, (ast.Assign, ast.AnnAssign))
            if documented and isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str):
                lines = [re.sub(rf"^ {{{one.col_offset}}}", "", line) for line in one.value.value.splitlines()]
                kept = "\n".join("" if line.startswith("    ") or line.startswith(">>>") else line for line in lines)
                for part in re.finditer(r"(?:.+\n?)+", kept):
                    docstrings += sentences(file, one.lineno + kept.count("\n", 0, part.start()), part[0])
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            texts = node.args if name in SPOKEN else [one.value for one in node.keywords if one.arg in ("help", "description")]
            messages += [one for text in texts for one in sentences(file, node.lineno, _text(text))]
    return docstrings, messages


def _text(node: ast.AST) -> str:
    """Return the words of a string expression, with CODE for its values."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        return _text(node.value)  # without its format
    texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return " ".join(texts) or "CODE"


def check(name: str, found: list[Sentence]) -> bool:
    """Print a group's line and its offending sentences; return whether the group keeps the limits."""
    total, long = sum(one.words for one in found), [one for one in found if one.words > LONG]
    mean, rate = total / max(len(found), 1), 1000 * sum(len(one.stilted) for one in found) / max(total, 1)
    fragments = [one for one in found if FRAGMENT.match(one.text)] if name == "docstrings" else []
    share = len(long) / max(len(found), 1)
    lengths = f"mean {mean:.1f} words, {100 * share:.0f} % over {LONG}"
    print(f"{name}: {len(found)} sentences, {lengths}, {rate:.1f} stilted phrases per 1,000 words")
    offending: dict[Sentence, str] = {}
    if mean > MEAN.get(name, total):
        offending |= {one: f"{one.words} words" for one in sorted(found, key=lambda one: -one.words)[:WORST]}
    if share > SHARE.get(name, 1):
        offending |= {one: f"{one.words} words" for one in long}
    if rate > RATE:
        offending |= {one: ", ".join(map(repr, one.stilted)) for one in found if one.stilted}
    offending |= {one: "begins as a fragment" for one in fragments}
    for one, why in sorted(offending.items(), key=lambda item: (str(item[0].file), item[0].line)):
        print(f"{one.file}:{one.line}: {why}: {one.text[:160]}")
    return not offending


def collected(files: Iterable[Path]) -> dict[str, list[Sentence]]:
    """Return the sentences of pages and modules by group."""
    groups: dict[str, list[Sentence]] = {"pages": [], "table cells": [], "docstrings": [], "messages": []}
    for file in files:
        page = file.suffix == ".md"
        first, second = of_page(file) if page else of_code(file)
        groups["pages" if page else "docstrings"] += first
        groups["table cells" if page else "messages"] += second
    return groups


def main(root: Path) -> int:
    """Check all texts of a project; return the exit code."""
    pages = [file for file in (root / "docs" / "pages").rglob("*.md") if file.name != "settings-all.md"]  # which is generated
    code = [file for folder in ("flows", "tasks") for file in (root / folder).rglob("*.py")]
    files = [root / "README.md", root / "CONTRIBUTING.md", *sorted(pages), *(root / "changepair").glob("*.py"), *sorted(code)]
    return int(not all([check(name, found) for name, found in collected(file for file in files if file.is_file()).items()]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else Path()))
