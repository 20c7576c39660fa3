"""The committed figures of the quickstart: what README.md claims, and what the baseline has to reach on real solar cells."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import ROOT

from tasks.evaluation.figures import FIGURES

TREE: dict[str, Any] = json.loads((ROOT / "data/evaluation/quickstart/metrics.json").read_text())


@pytest.mark.parametrize(("shots", "least"), [("2", 0.73), ("4", 0.79), ("8", 0.83)])
def test_patch_residual_finds_defective_solar_cells(shots: str, least: float) -> None:
    assert TREE["elpv"]["patch-residual"]["class-specific"][shots]["image_auroc"]["mean"] >= least


def test_every_target_detector_protocol_and_shots_is_there() -> None:
    assert set(TREE) == {"elpv", "texture-defects", "digits"}
    for target, detectors in TREE.items():
        assert set(detectors) == {"patch-residual", "metauas", "inctrl"}
        for protocols in detectors.values():
            assert set(protocols) == {"class-specific", "class-agnostic"}
            for shots in protocols.values():
                assert set(shots) == {"1", "2", "4", "8"}
                for figures in shots.values():
                    assert set(figures) == set(FIGURES if target == "texture-defects" else FIGURES[:3])
                    assert all(0 <= figure["mean"] <= 1 and 0 <= figure["std"] <= 0.5 for figure in figures.values())


def test_the_readme_gives_the_committed_figures() -> None:
    """Its table has, for each target and detector, class-specific image AUROC at 1, 2, 4 and 8 shots."""
    readme = (ROOT / "README.md").read_text()
    for target, detectors in TREE.items():
        for detector, protocols in detectors.items():
            shots = protocols["class-specific"].values()
            cells = " | ".join(
                f"{100 * figures['image_auroc']['mean']:.1f} ± {100 * figures['image_auroc']['std']:.1f}" for figures in shots
            )
            assert f"| {target} | {detector} | {cells} |" in readme
