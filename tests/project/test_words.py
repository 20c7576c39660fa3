"""The wording check of `make lint`: it names a stilted sentence with its place, and accepts a plain one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / ".ci"))
import words

PLAIN = """\
# Title

The detector scores a picture.

- It needs one normal prompt.

| key | meaning |
|---|---|
| a | One normal picture of the category. |
"""
CODE = '''\
"""Score pictures."""

SIZE = 3
"""Side of a patch in pixels."""


def score():
    """Return the score of a picture.

    It lies in 0..1.
    """
'''


def project(folder: Path, page: str = PLAIN, code: str = CODE) -> Path:
    (folder / "flows").mkdir()
    (folder / "README.md").write_text(page, encoding="utf-8")
    (folder / "flows" / "score.py").write_text(code, encoding="utf-8")
    return folder


def test_plain_texts_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert words.main(project(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pages: 2 sentences, mean 5.0 words, 0 % over 25, 0.0 stilted phrases per 1,000 words"
    assert [line.partition(":")[0] for line in lines] == ["pages", "table cells", "docstrings", "messages"]
    assert "docstrings: 3 sentences" in lines[2]


@pytest.mark.parametrize(
    ("page", "code", "expected"),
    [
        (f"{PLAIN}\nEverything is made\nagain after an edit.\n", CODE, "README.md:11: 'made again': Everything is made again"),
        (f"{PLAIN}\n```x``` is code.\n\nIt is told.\n\n```y``` ends.\n", CODE, "README.md:13: 'told': It is told."),
        (f"{PLAIN}\n````\n```\nIt is told.\n````\n\nIt is made anew.\n", CODE, "README.md:16: 'anew': It is made anew."),
        (PLAIN.replace("One normal picture", "What comes of one normal picture"), CODE, "README.md:9: 'comes of': What comes of"),
        (f"{PLAIN}\n```\nIt is made anew by this.\n```\n\nIt {'really ' * 90}ends.\n", CODE, "README.md:15: 92 words: It really"),
        (
            PLAIN,
            CODE.replace("It lies in", "Of the picture, it lies in"),
            "flows/score.py:10: begins as a fragment: Of the picture, it lies",
        ),
        (PLAIN, CODE.replace("Side of", "As many as the side of"), "flows/score.py:4: begins as a fragment: As many as"),
        (
            PLAIN,
            f'{CODE}    raise BadInput(f"{{file}}: goes on without " "a word")\n',
            "flows/score.py:12: 'goes on': CODE: goes on without a word",
        ),
        (PLAIN, f'{CODE}    tell(f"{{x:>{{width}}.1f}} goes on")\n', "flows/score.py:12: 'goes on': CODE goes on"),
        (PLAIN, f'{CODE}    parser.add_argument("-x", help="what is told of a picture")\n', "flows/score.py:12: 'told': what is told of"),
    ],
)
def test_a_stilted_text_fails_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], page: str, code: str, expected: str
) -> None:
    assert words.main(project(tmp_path, page, code)) == 1
    assert f"{tmp_path}/{expected}" in capsys.readouterr().out
