"""The committed metrics of the quickstart: the page of results states them, and the baseline reaches its floor on real solar cells."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT

from changepair.tasks.scoring.metrics import METRICS
from changepair.tasks.scoring.results import ALL, MetricRow, read_metrics

EVALUATION = ROOT / "data/evaluation/quickstart"
ROWS = read_metrics(EVALUATION / "metrics.csv")
OVERALL = {(row.target, row.detector, row.protocol, row.shots, row.metric): row for row in ROWS if row.category == ALL}
TARGETS, DETECTORS = (
    ("elpv", "texture-defects", "digits"),
    ("patch-residual", "robust-residual", "metric-residual", "multi-scale-residual", "metauas", "inctrl"),
)
SHOTS = (1, 2, 4, 8)


@pytest.mark.parametrize(("shots", "least"), [(2, 0.73), (4, 0.79), (8, 0.83)])
def test_patch_residual_finds_defective_solar_cells(shots: int, least: float) -> None:
    assert OVERALL["elpv", "patch-residual", "class-specific", shots, "image_auroc"].mean >= least


def test_every_target_detector_and_shots_is_there() -> None:
    assert set(OVERALL) == {
        (target, detector, "class-specific", shots, metric)
        for target in TARGETS
        for detector in DETECTORS
        for shots in SHOTS
        for metric in (METRICS if target == "texture-defects" else METRICS[:3])
    }
    for row in ROWS:
        assert 0 <= row.low <= row.high <= 1 and 0 <= row.mean <= 1 and 0 <= row.std <= 0.5 and row.seeds == 3


def test_the_metrics_are_those_at_one_shot() -> None:
    metrics = json.loads((EVALUATION / "metrics.json").read_text())
    assert metrics == {
        target: {
            detector: {
                metric: OVERALL[target, detector, "class-specific", 1, metric].mean
                for metric in ("image_auroc", "pixel_aupro")
                if (target, detector, "class-specific", 1, metric) in OVERALL
            }
            for detector in DETECTORS
        }
        for target in TARGETS
    }


def percent(row: MetricRow) -> str:
    return f"{100 * row.mean:.1f} ± {100 * row.std:.1f}"


def test_the_page_of_results_gives_the_committed_metrics() -> None:
    """Its table has, for each target and detector, class-specific image AUROC at 1, 2, 4 and 8 shots."""
    page = (ROOT / "docs" / "pages" / "explanation" / "results.md").read_text()
    for target in TARGETS:
        for detector in DETECTORS:
            cells = [percent(OVERALL[target, detector, "class-specific", shots, "image_auroc"]) for shots in SHOTS]
            assert f"| {target} | {detector} | {' | '.join(cells)} |" in page
