"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
from conftest import ROOT

import changepair

WITH_EXAMPLES = sorted(
    file.relative_to(ROOT) for top in ("tasks", "flows") for file in (ROOT / top).rglob("*.py") if "\n    >>> " in file.read_text()
)


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=str)
def test_docstrings(file: Path) -> None:
    module = importlib.import_module(".".join(("changepair", *file.with_suffix("").parts)))
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_the_package() -> None:
    failed, tried = doctest.testmod(changepair)
    assert tried and not failed


def test_what_python_users_begin_with_has_one() -> None:
    assert Path("tasks/prediction/predictor.py") in WITH_EXAMPLES
