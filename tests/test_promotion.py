"""The gate: a retrained model takes the place of the one in use if it is not worse, on the same episodes; and back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import make_project, run, write_pipelines
from servers import ask

from tasks.evaluation.figures import image_figures, tally
from tasks.evaluation.promotion import PromotionSettings, decide, same_episodes
from tasks.evaluation.results import Measure, Measured, draws_table
from tasks.evaluation.spread import image_draws, resample
from tasks.files import sha256
from tasks.sampling.episodes import Episode

LABELS = np.arange(120) < 60


def draws_of(
    shift: float, noise: int = 0, *, target: str = "parts", detector: str = "metauas", prompts: tuple[str, ...] = ("p",)
) -> pa.Table:
    """Of a detector that tells anomalous pictures apart by `shift`; noise: which pictures it is unsure of."""
    images, labels = tuple(str(place) for place in range(120)), tuple(LABELS.astype(int).tolist())
    scores = np.random.default_rng(0).normal(size=120) + shift * LABELS + 0.2 * np.random.default_rng(noise).normal(size=120)
    draws = image_draws(resample(images, labels), LABELS, scores)
    values = image_figures(tally(scores[LABELS], np.sort(scores[~LABELS])))
    figures = {name: Measure(float(value), draws[name]) for name, value in values.items()}
    episode = Episode(target, "a", "class-specific", 1, 0, prompts, images, labels)
    return draws_table([Measured(detector, episode, 120, figures, figures, 120)])  # type: ignore[arg-type]


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
    new = pa.concat_tables([draws_of(1.0), draws_of(0.3, detector="inctrl"), draws_of(0.1, detector="winclip")])
    in_use = pa.concat_tables([draws_of(1.0), draws_of(1.0, detector="inctrl")])
    decision = decide(new, in_use, PromotionSettings(), ["metauas", "inctrl", "winclip"])
    assert [(item.detector, item.passes) for item in decision.compared] == [("metauas", True), ("inctrl", False)]
    assert not decision.promoted and decision.reason.startswith("inctrl I-AUROC")
    assert decide(new, in_use, PromotionSettings(), ["metauas", "winclip"]).promoted


def test_a_figure_that_is_not_there_keeps_the_model_in_use() -> None:
    decision = decide(draws_of(1), draws_of(1), PromotionSettings(figure="pixel_aupro"), ["metauas"])
    assert not decision.promoted and "metauas has no P-AUPRO on these targets" in decision.reason


def test_other_queries_or_prompts_are_other_episodes() -> None:
    args: tuple[Any, ...] = ("image_auroc", ["metauas"])
    assert same_episodes(draws_of(1.0), draws_of(0.5), *args)
    assert not same_episodes(draws_of(1.0), draws_of(1.0, prompts=("another",)), *args)
    assert not same_episodes(pa.concat_tables([draws_of(1.0), draws_of(1.0, target="more")]), draws_of(1.0), *args)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("promotion") / "project")
    content = small(folder)
    content["pipelines"]["small"] |= {
        "inpainter": {"model": "none"},
        "synthesis": {"pairs": 8, "pairs_per_shard": 8, "resolution": 64, "kinds": {"local-region": 1}},
        "sampling": {"shots": [1], "seeds": [0], "protocols": ["class-specific"]},
        "detectors": {"metauas": {"resolution": 64, "decoder_channels": [16] * 5}},
        "training": {"metauas": {"epochs": 1, "batch_size": 4, "learning_rate": 0.001}},
        "promotion": {"figure": "pixel_auroc", "tolerance": 0.0},
    }
    content["datasets"]["objects"] = {}
    write_pipelines(folder, content)
    return folder


def small(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "pipelines.yaml").read_text())


def change(folder: Path, **sections: dict[str, Any]) -> None:
    content = small(folder)
    for name, values in sections.items():
        content["pipelines"]["small"][name].update(values)
    write_pipelines(folder, content)


def retrain(folder: Path, api: str) -> str:
    """The state that the last run of retrain ended in, with its message."""
    came = run(folder, "changepair", "retrain", "small", PREFECT_API_URL=api)
    assert came.returncode == 0, came.stdout + came.stderr
    runs = sorted((item for item in ask(api, "flow_runs") if item["name"] == "retrain small"), key=lambda item: item["start_time"])
    return f"{runs[-1]['state']['name']}: {runs[-1]['state']['message']}"


def current(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "data/models/small/current").read_text())


def weights(folder: Path, which: str) -> str:
    return sha256(folder / f"data/models/small/{which}/metauas/model.safetensors")


def test_from_the_first_model_to_a_rollback(project: Path, api: str) -> None:
    """One story: promoted, in use already, kept out, promoted by hand, rolled back, measured again on new episodes."""
    assert retrain(project, api).startswith("Promoted: Promoted: the first model of this pipeline; ran ")
    first, in_use = current(project), weights(project, "in-use")
    assert in_use == weights(project, "candidate")
    assert first["figures"] == json.loads((project / "data/evaluation/small/metrics.json").read_text())
    locked = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["train@small"]["outs"][0]
    assert first["candidate"] == locked["md5"] and locked["path"] == "data/models/small/candidate"

    assert retrain(project, api).startswith("In use already: ")
    assert current(project) == first

    # A model that has learnt nothing, as its learning rate is next to none: it may be worse.
    change(project, training={"metauas": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-9, "seed": 5}})
    state = retrain(project, api)
    assert state.startswith("Kept: Kept: metauas P-AUROC "), state
    assert current(project) == first and weights(project, "in-use") == in_use != weights(project, "candidate")
    artifacts = {item["key"]: item for item in ask(api, "artifacts") if item["key"]}
    assert artifacts["small-promotion"]["data"].startswith("# small: Kept") and "| metauas |" in artifacts["small-promotion"]["data"]

    refused = run(project, "changepair", "rollback", "small")
    assert refused.returncode == 2 and "no model before the one in use" in refused.stderr
    by_hand = run(project, "changepair", "promote", "small")
    assert by_hand.returncode == 0 and by_hand.stdout.strip().endswith("is in use"), by_hand.stderr
    assert weights(project, "in-use") == weights(project, "candidate") != in_use
    back = run(project, "changepair", "rollback", "small")
    assert back.returncode == 0 and weights(project, "in-use") == in_use
    assert current(project)["hash"] == first["hash"] and current(project)["action"] == "rolled back"
    history = [json.loads(line) for line in (project / "data/models/small/history.jsonl").read_text().splitlines()]
    assert [line["action"] for line in history] == ["promoted", "kept", "promoted", "rolled back"]
    told = run(project, "changepair", "history", "small").stdout
    assert f"model {first['candidate'][:8]} is in use" in told and "by hand" in told

    # Other episodes: the model in use is measured on them too. With all the tolerance there is, the new one is promoted.
    change(project, sampling={"seeds": [0, 1]}, promotion={"tolerance": 1.0})
    assert retrain(project, api).startswith("Promoted: Promoted: metauas P-AUROC ")
    assert {"evaluate parts"} <= {
        item["name"]
        for item in ask(api, "task_runs")
        if item["flow_run_id"] in {flow["id"] for flow in ask(api, "flow_runs") if flow["name"] == "retrain small"}
    }
    status = run(project, "dvc", "status", "data/models/small/in-use.dvc")
    assert "up to date" in status.stdout


def test_a_run_that_fails_leaves_the_model_in_use(project: Path, api: str) -> None:
    before, in_use = current(project), weights(project, "in-use")
    change(project, training={"metauas": {"epochs": 1, "batch_size": 4, "learning_rate": 0.002}})
    evaluate = project / "tasks/evaluation/evaluate.py"
    whole = evaluate.read_text()
    evaluate.write_text(
        whole.replace(
            "    episodes = [episode for episode in read_episodes(files.episodes)",
            '    raise OSError("the disk is gone")\n    episodes = [episode for episode in read_episodes(files.episodes)',
        )
    )
    assert evaluate.read_text() != whole
    came = run(project, "changepair", "retrain", "small", PREFECT_API_URL=api)
    assert came.returncode == 2 and "stage evaluate@small failed" in came.stderr
    assert current(project) == before and weights(project, "in-use") == in_use != weights(project, "candidate")
    refused = run(project, "changepair", "promote", "small")
    assert refused.returncode == 2 and "evaluate@small is out of date" in refused.stderr
    evaluate.write_text(whole)


def test_a_model_in_use_that_is_gone_is_told_and_nothing_changes(project: Path) -> None:
    before = current(project)
    (project / "data/models/small/current").write_text(json.dumps({**before, "hash": "0" * 32 + ".dir"}))
    pointer = (project / "data/models/small/in-use.dvc").read_text()
    came = run(project, "changepair", "retrain", "small")
    assert came.returncode == 2, came.stdout
    assert came.stderr.splitlines()[-1].startswith("changepair: data/models/small/current: model ")
    assert "is neither in DVC's cache nor in a remote" in came.stderr
    assert (project / "data/models/small/in-use.dvc").read_text() == pointer
