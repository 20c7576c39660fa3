"""What is typed after a command: whatever a word or an option's value is, it answers, or says in one line what is wrong with it."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import pytest
from commands import told
from conftest import ROOT, SMALL, write_pipelines
from dvc.repo import Repo
from hostile import attack
from PIL import Image

from changepair.flows.cli import parser
from changepair.tasks.common.errors import BadInput

pytestmark = pytest.mark.attack
COMMANDS = {
    "predict": ["one/a.png", "--prompt", "one/b.png", "--model", "patch-residual"],
    "demo": ["--port=-1"],
    "export": ["--prompt", "one/b.png", "--model", "patch-residual", "--format", "program", "--out", "exported"],
    "api": ["--port=-1"],
    "retrain": ["small", "--dry-run"],
    "explain": ["targets"],
    "set": ["small", "evaluation.resolution=64"],
    "watch": ["small"],
    "review": ["small", "--port=-1"],
    "ui": ["--port=-1"],
    "status": [],
    "promote": ["small"],
    "rollback": ["small"],
    "history": ["small"],
    "init": ["one"],
    "inspect": ["parts"],
    "unpack": ["one/a.png", "unpacked"],
    "completion": ["bash"],
    "import": ["metauas", "one/a.png", "--out", "imported"],
}
"""Those that take any, each as it ends soon: at port -1 nothing is served."""
WORDS = (
    "", " ", ".", "x", "/dev/null", "/dev/full", "a" * 300, "-1", "0", "1", "65536", "9" * 20, "nan", "inf", "-inf", "1e400", "1e-300",
    "0.5", "1_0", "\u0663", "~nobody-of-that-name/x", "caf\udce9", "s3://", "s3://no-such-bucket-of-anybody", "http://127.0.0.1:9/x",
    "a\nb", "{}", "%s", "data", "small", "one", "one/a.png", "one/a.png/x", "parts", "pipelines.yaml", "--", "-", "\x1b[31m", "../x",
    "packaged", "2x2", "0x0", "1x99999999", "x:y", "\u202e", "::1", "999.1.1.1", "[", "*", "one/*",
)  # fmt: skip
NO_PORTS = ("", "-1", "65536", "9" * 20, "nan", "0.5", "x", "--")
ANSWERS = {0, 1, 2, 3}
"""Exit codes that say something: done, a picture flagged, refused, pictures left out."""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    Repo.init(no_scm=True).close()
    for part in ("flows", "tasks", "requirements.lock"):
        (tmp_path / part).symlink_to(ROOT / part)
    draw = np.random.default_rng(0)
    for file in ("parts/train/good/a.png", "parts/test/good/b.png", "parts/test/bad/c.png", "one/a.png", "one/b.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / file)
    write_pipelines(tmp_path, SMALL)


def test_every_word_and_option_of_every_command() -> None:
    [commands] = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    settings = Path("pipelines.yaml").read_text()

    def draw(random_: random.Random) -> list[str]:
        name = random_.choice([*COMMANDS])
        words, options = list(COMMANDS[name]), commands.choices[name]._actions
        action = random_.choice([one for one in options if one.nargs != 0 and not isinstance(one, argparse._HelpAction)])
        value = random_.choice(NO_PORTS if action.dest == "port" else WORDS)
        if action.option_strings:
            return [name, *words, f"{action.option_strings[-1]}={value}"]
        place = [one.dest for one in options if not one.option_strings].index(action.dest)
        return [name, *words[:place], value, *words[place + 1 :]]

    def attempt(command: list[str]) -> None:
        Path("pipelines.yaml").write_text(settings)
        code, said = told(command)
        assert code in ANSWERS and "Traceback" not in said, f"{command}: {code}: {said[-1500:]}"
        if code == 2:
            lines = said.strip().splitlines()
            assert lines, command
            usage = lines[0].startswith("usage: ")  # as argparse says it
            each = command[0] == "predict" and all(line.startswith("changepair: ") for line in lines)  # a line a picture
            assert usage or each or len(lines) <= 2, f"{command}: {said[-1500:]}"
            raise BadInput(lines[-1])

    attack("commands, a word or an option", draw, attempt)
