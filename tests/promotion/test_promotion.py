"""The decision at the gate: a retrained model takes the place of the one in use if it is not worse, on the same episodes.

How a run ends at it, and what is in use before and after, is in test_pipeline.py.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from changepair.flows.promotion import gate
from changepair.flows.promotion.history import Model
from changepair.flows.runs.states import RunState
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.scoring.decision import PromotionSettings, choices, choose, decide, same_episodes
from changepair.tasks.scoring.metrics import image_metrics, tally
from changepair.tasks.scoring.operating import binomial_interval
from changepair.tasks.scoring.recommendation import Recommendation, less_robust, write_recommendation
from changepair.tasks.scoring.results import DrawRow, Measure, Measured, draw_rows
from changepair.tasks.scoring.robustness import RobustnessRow
from changepair.tasks.scoring.spread import image_draws, resample

LABELS = np.arange(120) < 60


def draws_of(
    shift: float, noise: int = 0, *, target: str = "parts", detector: str = "metauas", prompts: tuple[str, ...] = ("p",)
) -> list[DrawRow]:
    """Gives the draws of a detector that tells anomalous pictures apart by `shift`; noise: which pictures it is unsure of."""
    images, labels = tuple(str(place) for place in range(120)), tuple(LABELS.astype(int).tolist())
    scores = np.random.default_rng(0).normal(size=120) + shift * LABELS + 0.2 * np.random.default_rng(noise).normal(size=120)
    draws = image_draws(resample(images, labels), LABELS, scores)
    values = image_metrics(tally(scores[LABELS], np.sort(scores[~LABELS])))
    metrics = {name: Measure(float(value), draws[name]) for name, value in values.items()}
    episode = Episode(target, "a", "class-specific", 1, 0, prompts, images, labels)
    return draw_rows([Measured(detector, episode, 120, metrics, metrics, 120)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("new", "in_use", "tolerance", "promoted"),
    [
        (1.0, 1.0, 0.02, True),
        (1.5, 1.0, 0.0, True),
        (0.5, 1.0, 0.02, False),
        (0.5, 1.0, 0.5, True),
    ],
)
def test_a_model_is_promoted_if_it_is_not_worse_by_more_than_the_tolerance(
    new: float, in_use: float, tolerance: float, promoted: bool
) -> None:
    decision = decide(draws_of(new), draws_of(in_use), PromotionSettings(tolerance=tolerance), ["metauas"])
    assert decision.promoted == promoted
    [compared] = decision.compared
    assert compared.difference == pytest.approx(compared.new - compared.in_use) and compared.low <= compared.difference <= compared.high
    assert f"metauas I-AUROC {100 * compared.new:.1f} % against {100 * compared.in_use:.1f} %" in decision.reason
    assert ("not worse by more than" if promoted else "may be worse by more than") in decision.reason


def test_what_the_pictures_cannot_tell_is_kept_out() -> None:
    """About as good on average, on few pictures, with other mistakes: the interval reaches below the tolerance."""
    decision = decide(draws_of(1.0, noise=3), draws_of(1.0, noise=4), PromotionSettings(tolerance=0.0), ["metauas"])
    [compared] = decision.compared
    assert not decision.promoted and compared.low < 0 and abs(compared.difference) < 0.02


def test_every_detector_must_pass_and_a_new_one_does() -> None:
    new = [*draws_of(1.0), *draws_of(0.3, detector="inctrl"), *draws_of(0.1, detector="winclip")]
    in_use = [*draws_of(1.0), *draws_of(1.0, detector="inctrl")]
    decision = decide(new, in_use, PromotionSettings(), ["metauas", "inctrl", "winclip"])
    assert [(item.detector, item.passes) for item in decision.compared] == [("metauas", True), ("inctrl", False)]
    assert not decision.promoted and decision.reason.startswith("inctrl I-AUROC")
    assert decide(new, in_use, PromotionSettings(), ["metauas", "winclip"]).promoted


def test_a_metric_that_is_not_there_keeps_the_model_in_use() -> None:
    decision = decide(draws_of(1), draws_of(1), PromotionSettings(metric="pixel_aupro"), ["metauas"])
    assert not decision.promoted and "metauas has no P-AUPRO on these targets" in decision.reason


def test_other_queries_or_prompts_are_other_episodes() -> None:
    args: tuple[Any, ...] = ("image_auroc", ["metauas"])
    assert same_episodes(draws_of(1.0), draws_of(0.5), *args)
    assert not same_episodes(draws_of(1.0), draws_of(1.0, prompts=("another",)), *args)
    assert not same_episodes([*draws_of(1.0), *draws_of(1.0, target="more")], draws_of(1.0), *args)


def test_what_was_trained_and_is_worse_than_what_needs_no_training_is_not_what_the_model_is_used_by() -> None:
    draws = [*draws_of(0.3), *draws_of(1.5, detector="patch-residual"), *draws_of(0.8, detector="inctrl")]
    trained = ["metauas", "inctrl"]
    choice = choose(draws, PromotionSettings(), trained)
    assert choice is not None and choice.detector == "patch-residual" and {name for name, _value in choice.beneath} == set(trained)
    assert re.match(r"patch-residual, I-AUROC [\d.]+ %; worse than an untrained detector: metauas [\d.]+ %,", str(choice))
    without = choose(draws, PromotionSettings(floor=False), trained)
    assert without is not None and without.detector == "inctrl"
    better = choose([*draws_of(1.5), *draws_of(0.3, detector="patch-residual")], PromotionSettings(), trained)
    assert better is not None and better.detector == "metauas" and not better.beneath
    assert choose(draws, PromotionSettings(metric="pixel_aupro"), trained) is None


def test_detectors_are_chosen_by_what_all_of_them_were_measured_on() -> None:
    """One that was measured on an easy target alone is no better for it."""
    draws = [*draws_of(1.0), *draws_of(2.0, target="easy"), *draws_of(1.5, target="easy", detector="inctrl")]
    choice = choose(draws, PromotionSettings(), [])
    assert choice is not None and choice.detector == "metauas" and not choice.beneath


def test_detectors_that_are_not_significantly_worse_are_alternatives() -> None:
    draws = [*draws_of(1.0, noise=1), *draws_of(1.0, noise=2, detector="near"), *draws_of(0.2, detector="far")]
    ranked = choices(draws, PromotionSettings(), [])
    values = [one.value for one in ranked]
    assert {one.detector for one in ranked} == {"metauas", "near"} and values == sorted(values, reverse=True)
    assert ranked[0] == choose(draws, PromotionSettings(), [])
    single = [one.detector for one in choices([replace(row, draws=()) for row in draws], PromotionSettings(), [])]
    assert single == [ranked[0].detector]  # without draws, no difference has an interval


def test_a_trained_detector_below_the_floor_is_no_alternative() -> None:
    draws = [*draws_of(1.0, noise=1), *draws_of(1.0, noise=2, detector="patch-residual"), *draws_of(0.1, detector="inctrl")]
    assert [one.detector for one in choices(draws, PromotionSettings(), [])] == ["patch-residual", "metauas"]
    assert [one.detector for one in choices(draws, PromotionSettings(), ["metauas", "inctrl"])] == ["patch-residual"]


def flagged(share: float, perturbation: str = "jpeg-50", target: str = "parts", detector: str = "metauas") -> RobustnessRow:
    low, high = binomial_interval(round(50 * share), 50)
    return RobustnessRow(target, "", detector, "class-specific", 1, perturbation, 0.01, 0.02, share, low, high, 0.6, 50)


def recommended(*rows: RobustnessRow) -> Recommendation:
    return Recommendation("metauas", None, (), rows)


@pytest.mark.parametrize(
    ("new", "current", "lost"),
    [
        (
            [flagged(0.42)],
            [flagged(0.1)],
            "metauas flags 42 % of normal pictures of parts under jpeg-50, more than 20 %, and the current model 10 %",
        ),
        ([flagged(0.42)], [flagged(0.3)], ""),
        ([flagged(0.2)], [flagged(0.02)], ""),
        ([flagged(0.42)], [], ""),
        ([flagged(0.42)], [flagged(0.02, "blur-1")], ""),
        ([flagged(0.42)], [flagged(0.02, target="others")], ""),
        ([flagged(0.9, "jpeg-20")], [flagged(0.02, "jpeg-20")], ""),
        ([], [flagged(0.02)], ""),
        (
            [flagged(0.3), flagged(0.42, "blur-1")],
            [flagged(0.3), flagged(0.06, "blur-1")],
            "metauas flags 42 % of normal pictures of parts under blur-1",
        ),
    ],
)
def test_a_model_that_loses_robustness_is_named(new: list[RobustnessRow], current: list[RobustnessRow], lost: str) -> None:
    """Only a mild perturbation counts, which the current model was measured under and withstands."""
    found = less_robust(recommended(*new), recommended(*current))
    assert found.startswith(lost) and bool(found) == bool(lost)


def test_the_gate_does_not_promote_a_model_that_loses_robustness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same model, new recommendation. It is promoted if it withstands what the current one does, or if that was not measured."""
    monkeypatch.chdir(tmp_path)
    taken: list[str] = []
    monkeypatch.setattr(gate, "_promoted", lambda pipeline, reason, decision=None: taken.append(reason))
    new, old = (Path("data", folder, "decision.json") for folder in ("evaluation/mine", "models/mine/in-use"))
    current = Model("1" * 32 + ".dir", 1, 1, "1" * 32, "", {}, "the first", "2026-01-01T00:00:00+00:00")
    for file, share in ((old, 0.04), (new, 0.5)):
        file.parent.mkdir(parents=True)
        write_recommendation(file, recommended(flagged(share)))
    kept = gate._again("mine", current, automatic=True)
    assert not taken and kept.state == RunState.IN_USE
    assert "metauas flags 50 % of normal pictures of parts under jpeg-50" in kept.reason
    assert "`changepair promote mine` adopts" in kept.reason and "\n" not in kept.reason
    write_recommendation(new, recommended(flagged(0.1)))
    gate._again("mine", current, automatic=True)
    write_recommendation(new, recommended(flagged(0.5)))
    write_recommendation(old, recommended())
    assert "robustness" not in old.read_text()  # as an older version wrote it
    gate._again("mine", current, automatic=True)
    old.unlink()
    gate._again("mine", current, automatic=True)
    assert len(taken) == 3
