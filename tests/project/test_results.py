"""The committed figures of the quickstart: what docs/pages/results.md claims, and what the baseline has to reach on real solar cells."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT

from changepair.tasks.scoring.figures import FIGURES
from changepair.tasks.scoring.results import ALL, FigureRow, read_figures

EVALUATION = ROOT / "data/evaluation/quickstart"
ROWS = read_figures(EVALUATION / "figures.csv")
OVERALL = {(row.target, row.detector, row.protocol, row.shots, row.figure): row for row in ROWS if row.category == ALL}
TARGETS, DETECTORS = (
    ("elpv", "texture-defects", "digits"),
    ("patch-residual", "metric-residual", "multi-scale-residual", "metauas", "inctrl"),
)
PROTOCOLS, SHOTS = ("class-specific", "class-agnostic"), (1, 2, 4, 8)


@pytest.mark.parametrize(("shots", "least"), [(2, 0.73), (4, 0.79), (8, 0.83)])
def test_patch_residual_finds_defective_solar_cells(shots: int, least: float) -> None:
    assert OVERALL["elpv", "patch-residual", "class-specific", shots, "image_auroc"].mean >= least


def test_every_target_detector_protocol_and_shots_is_there() -> None:
    assert set(OVERALL) == {
        (target, detector, protocol, shots, figure)
        for target in TARGETS
        for detector in DETECTORS
        for protocol in PROTOCOLS
        for shots in SHOTS
        for figure in (FIGURES if target == "texture-defects" else FIGURES[:3])
    }
    for row in ROWS:
        assert 0 <= row.low <= row.high <= 1 and 0 <= row.mean <= 1 and 0 <= row.std <= 0.5 and row.seeds == 3


def test_the_metrics_are_those_at_one_shot() -> None:
    metrics = json.loads((EVALUATION / "metrics.json").read_text())
    assert metrics == {
        target: {
            detector: {
                figure: OVERALL[target, detector, "class-specific", 1, figure].mean
                for figure in ("image_auroc", "pixel_aupro")
                if (target, detector, "class-specific", 1, figure) in OVERALL
            }
            for detector in DETECTORS
        }
        for target in TARGETS
    }


def percent(row: FigureRow) -> str:
    return f"{100 * row.mean:.1f} ± {100 * row.std:.1f}"


def test_the_page_of_results_gives_the_committed_figures() -> None:
    """Its table has, for each target and detector, class-specific image AUROC at 1, 2, 4 and 8 shots."""
    page = (ROOT / "docs" / "pages" / "results.md").read_text()
    for target in TARGETS:
        for detector in DETECTORS:
            cells = [percent(OVERALL[target, detector, "class-specific", shots, "image_auroc"]) for shots in SHOTS]
            assert f"| {target} | {detector} | {' | '.join(cells)} |" in page
