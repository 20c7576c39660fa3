"""The commands of the README, of tutorials and of how-to guides run as written, and links lead somewhere.

The blocks of a page run in order, in one temporary folder that has a link `changepair` to this repository, and a link `docs` to its docs:

    ```console                     runs each line that begins with `$ `, and its continuation after a backslash; other lines show the output
    ```console title="terminal 2"  runs in the background until the page ends; the page continues once as many lines are printed as shown
    ```yaml title="a/file.yaml"    is written to the file; so is a block with a title in any language but console

Lines of output that begin with a score are compared. `changepair predict` may exit with 1, which says that a picture is anomalous.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT
from processes import kill_group, within
from servers import free_port, new_database

from changepair.tasks.scoring.results import ALL, read_metrics

SITE = ROOT / "docs/pages"
PAGES = [ROOT / "README.md", *sorted(SITE.glob("tutorials/*.md")), *sorted(SITE.glob("how-to/*.md"))]
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?: +(?P<options>[^\n]*))?\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
TITLE = re.compile(r'title="([^"]+)"')
LONG = re.compile(r"^ *\$ .*(changepair (retrain|serve|work|watch)\b(?!.*--dry-run)|dvc (repro|exp|queue))", re.MULTILINE)
"""Commands that take a minute or so."""
SCORED = re.compile(r"^(?P<score>[01]\.\d{6})(?P<rest>\s.*)$")
CLOSE = 0.001
"""Scores of other versions of torch and other processors differ by less."""
LONGEST = 900
"""Seconds that a command may take."""
START = 120
"""Seconds until a command in the background has printed what the page shows."""
PORTS = ("4200", "7860", "7861", "8000")
"""Ports that pages name. A test uses free ones."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """Number of its first line in the page."""
    language: str
    title: str | None
    text: str

    @property
    def commands(self) -> Iterator[tuple[int, str, list[str]]]:
        """Yield line, command and shown output of each command of a console block."""
        lines = self.text.splitlines()
        starts = [place for place, line in enumerate(lines) if line.startswith("$ ")]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            last = next(place for place in range(start, end) if not lines[place].endswith("\\"))
            command = "\n".join([lines[start][2:], *lines[start + 1 : last + 1]])
            yield self.line + start, command, [line for line in lines[last + 1 : end] if line.strip()]


def blocks(page: Path) -> list[Block]:
    """List the blocks of a page that a reader runs or writes to a file."""
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        title = TITLE.search(match["options"] or "")
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(page, line, match["language"], title and title[1], textwrap.dedent(match["text"])))
    return [block for block in found if block.language == "console" or block.title is not None]


def is_long(page: Path) -> bool:
    return LONG.search(page.read_text()) is not None


def short(page: Path) -> str:
    return str(page.relative_to(ROOT)).removeprefix("docs/pages/")


def runnable() -> Iterator[object]:
    for page in PAGES:
        if any(block.language == "console" for block in blocks(page)):
            marks = [pytest.mark.slow] if is_long(page) else []
            yield pytest.param(page, id=short(page), marks=marks)


class Terminal:
    """A shell in a folder; working directory and environment persist from one command to the next."""

    def __init__(self, folder: Path, *, server: bool = False) -> None:
        """server: prepare the database of a Prefect server, which takes it most of its first start."""
        self.work, self.state = folder / "work", folder / "state"
        self.ports = {port: str(free_port()) for port in PORTS}
        home = folder / "home"
        for one in (self.work, self.state, home / ".prefect"):
            one.mkdir(parents=True)
        if server:
            (home / ".prefect/prefect.db").write_bytes(new_database())
        (self.work / "changepair").symlink_to(ROOT)
        (self.work / "docs").symlink_to(ROOT / "docs")
        self.environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "HF_HUB_OFFLINE": "1",
            "DVC_NO_ANALYTICS": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            **{f"GIT_{who}_{what}": "changepair@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def script(self, command: str) -> list[str]:
        for port, free in self.ports.items():
            command = re.sub(rf"\b{port}\b", free, command)
        pwd, variables = self.state / "pwd", self.state / "variables"
        before = f'cd {self.work}; [ ! -f {pwd} ] || cd "$(cat {pwd})"; [ ! -f {variables} ] || . {variables}\n'
        after = f"\ncode=$?; pwd > {pwd}; export -p > {variables}; exit $code"
        return ["bash", "-c", before + command + after]

    def run(self, command: str) -> tuple[int, str]:
        """Return exit code and output."""
        done = subprocess.run(
            self.script(command), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, text=True, timeout=LONGEST,
        )  # fmt: skip
        return done.returncode, done.stdout

    @contextmanager
    def background(self, command: str, lines: int) -> Iterator[None]:
        """Keep a command running. Continue when it has printed this many lines."""
        log = self.state / f"{free_port()}.log"
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                self.script(command), env=self.environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            within(START, lambda: process.poll() is not None or len(log.read_text().splitlines()) >= lines, f"the output of {command}")
            assert process.poll() is None, f"{command}: {log.read_text()}"
            yield
        finally:
            end(process)

    def folder(self) -> Path:
        """Return the working directory."""
        pwd = self.state / "pwd"
        return Path(pwd.read_text().strip()) if pwd.exists() else self.work


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and all that it started to end, and wait for them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(60)
    kill_group(process)


@pytest.mark.parametrize("page", runnable())
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, server=is_long(page))
    with ExitStack() as running:
        for block in blocks(page):
            if block.language != "console":
                file = terminal.folder() / str(block.title)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text)
                continue
            for line, command, shown in block.commands:
                if block.title is not None:
                    running.enter_context(terminal.background(command, len(shown)))
                    continue
                code, output = terminal.run(command)
                place = f"{page.relative_to(ROOT)}:{line}: {command}"
                assert code == 0 or (code == 1 and "changepair predict" in command), f"{place}: exit code {code}\n{output}"
                assert (wrong := differing(shown, output)) is None, f"{place}: the page shows {wrong}\n{output}"


def differing(shown: list[str], output: str) -> str | None:
    """Return the first line of a page that shows another score than the output, or one that is missing there."""
    real = [match for line in output.splitlines() if (match := SCORED.match(line))]
    for match in filter(None, map(SCORED.match, shown)):
        if not any(match["rest"] == one["rest"] and abs(float(match["score"]) - float(one["score"])) <= CLOSE for one in real):
            return match[0]
    return None


def test_a_page_that_is_wrong_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs/pages/tutorials/first-answer.md"
    found = list(blocks(page))
    assert [block for block in found if block.language == "console"]
    wrong = Block(page, 7, "console", None, "$ cd docs && \\\n  ls missing\nmissing\n$ false\n")
    assert list(wrong.commands) == [(7, "cd docs && \\\n  ls missing", ["missing"]), (10, "false", [])]
    terminal = Terminal(tmp_path)
    assert terminal.run("mkdir -p here && cd here && export NAME=value")[0] == 0
    assert terminal.run('[ "$NAME" = value ]') == (0, "") and terminal.folder() == terminal.work / "here"
    assert terminal.run("false")[0] == 1
    assert differing(["0.120000  part.png"], "0.120999  part.png\n") is None
    assert differing(["0.120000  part.png"], "0.130000  part.png\n") == "0.120000  part.png"


OUTSIDE = sorted(
    ROOT / name
    for name in subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    if name and not name.startswith("docs/pages/") and (ROOT / name).exists()
)
"""Pages in Markdown that the site does not have, so mkdocs does not check them."""


@pytest.mark.parametrize("page", OUTSIDE, ids=short)
def test_no_link_outside_the_site_is_broken(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.relative_to(ROOT)}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.relative_to(ROOT)}: {link}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them of plain words."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


README = (ROOT / "README.md").read_text()


def test_the_readme_is_a_landing_page() -> None:
    assert len(README.split()) <= 700


def test_the_map_of_the_readme_names_every_folder() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    folders = {name.split("/")[0] for name in listed if "/" in name}
    assert {name for name in folders if not name.startswith(".")} <= set(re.findall(r"\b(\w+)/", README.split("## Map")[1].split("```")[1]))


def test_the_readme_gives_the_committed_metrics() -> None:
    """Its table has class-specific image AUROC at 1 shot: a row a detector, a column a target."""
    rows = read_metrics(ROOT / "data/evaluation/quickstart/metrics.csv")
    found = {
        (row.target, row.detector): f"{100 * row.mean:.1f} ± {100 * row.std:.1f}"
        for row in rows
        if (row.category, row.protocol, row.shots, row.metric) == (ALL, "class-specific", 1, "image_auroc")
    }
    for detector in dict.fromkeys(detector for _target, detector in found):
        cells = [found[target, detector] for target in ("elpv", "texture-defects", "digits")]
        assert re.search(rf"^\| {detector}\b[^|]*\| {re.escape(' | '.join(cells))} \|$", README, re.MULTILINE), (detector, cells)
