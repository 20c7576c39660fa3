"""Detectors that need no training, and the command, for tests of prediction."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from changepair.flows.cli import main
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.prediction.models import Named
from changepair.tasks.prediction.predictor import Predictor


def small(settings: object | None = None) -> Predictor:
    """One that needs no training, at 64 pixels."""
    settings = settings or PatchResidualSettings(resolution=64, top_share=0.01)
    detector = create_detector(settings)
    return Predictor(Named("patch-residual", {"patch-residual": settings}, detector))


def prompt_and_queries(layout: Path) -> tuple[Path, list[Path]]:
    return layout / "bricks/train/good/0.png", sorted((layout / "bricks/test").rglob("*.png"))


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def predict(*arguments: object) -> Answer:
    """Runs the command in this process, which has imported what takes it seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["changepair", "predict", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())
