"""Models that come with the package: what they are, that they fit, and that pairs are the same bytes wherever they are painted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, make_inputs
from inpaintings import asked
from instruction_sets import OLDEST
from pydantic import TypeAdapter

from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.fingerprint import code_of
from changepair.tasks.detectors.inctrl.settings import InCTRLSettings
from changepair.tasks.detectors.pretrained import use_model
from changepair.tasks.detectors.registry import DETECTORS
from changepair.tasks.detectors.store import create_detector, load_detector, settings_from_json
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.inpainting.inpainter import load_inpainter, write_choice
from changepair.tasks.inpainting.settings import InpainterSettings, RepaintingSettings
from changepair.tasks.packaged.detectors import MODELS, fill, write
from changepair.tasks.packaged.inpainting import write_packaged
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.synthesize import finish, make_shard, start

PACKAGED = ROOT / "tasks" / "packaged"
LARGEST = 20 * 10**6  # bytes, of a file


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inpainter")
    write_packaged(folder)
    write_choice(folder, InpainterSettings(model="packaged"))
    return folder


def settings(name: str) -> Any:
    """How the packaged model of that name was trained."""
    weights, about = MODELS[name]
    assert (PACKAGED / weights).is_file()
    return TypeAdapter(DETECTORS[name].settings).validate_python(json.loads((PACKAGED / about).read_text(encoding="utf-8"))["settings"])


def test_nothing_that_comes_with_the_package_is_large() -> None:
    sizes = {file.name: file.stat().st_size for file in PACKAGED.iterdir() if file.suffix == ".safetensors"}
    assert set(sizes) == {"inpainter.safetensors", *(weights for weights, _about in MODELS.values())} and max(sizes.values()) < LARGEST


def test_the_packaged_inpainter_paints_within_the_hole(inpainter: Path) -> None:
    paint = load_inpainter(inpainter, RepaintingSettings())
    images, masks, texts, seeds = asked()
    painted = paint(images, masks, texts, seeds)
    hole = (masks > 0).expand_as(images)
    assert torch.equal(painted[~hole], images[~hole]) and not torch.equal(painted[hole], images[hole])
    # It has learnt something: nearer to what was there than the mean of what is around.
    around = torch.stack([image[~one].mean() for image, one in zip(images, hole, strict=True)]).view(-1, 1, 1, 1).expand_as(images)
    assert (painted - images)[hole].abs().mean() < 0.8 * (around - images)[hole].abs().mean()


@pytest.mark.parametrize("name", MODELS)
def test_a_packaged_detector_is_used_as_it_is(name: str, tmp_path: Path) -> None:
    chosen = replace(settings(name), model="packaged", resolution=64)
    use_model(name, chosen, tmp_path / name)
    used = load_detector(name, {name: chosen}, tmp_path)
    filled = create_detector(chosen, build_encoder(chosen.encoder, 64))
    before = [weight.clone() for weight in filled.parameters()]
    fill(chosen, filled)
    assert all(torch.equal(one, other) for one, other in zip(used.parameters(), filled.parameters(), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(before, filled.parameters(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_packaged_detector_is_written_from_a_model_folder_and_has_no_encoder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_model(name, replace(settings(name), model="packaged"), tmp_path / "model")
    monkeypatch.setattr("changepair.tasks.packaged.detectors.HERE", tmp_path)
    write(name, tmp_path / "model")
    weights, _about = MODELS[name]
    assert sha256(tmp_path / weights) == sha256(PACKAGED / weights)


def test_the_pipelines_say_how_the_packaged_detectors_were_trained() -> None:
    pipelines = read_pipelines(ROOT / "examples/packaged/pipelines.yaml").pipelines
    for name, pipeline in (("metauas", "packaged-metauas"), ("metric-residual", "packaged"), ("prompt-query", "packaged")):
        about = json.loads((PACKAGED / MODELS[name][1]).read_text(encoding="utf-8"))
        asked = pipelines[pipeline]
        for said, kept in ((asked.detectors[name], about["settings"]), (asked.training[name], about["training"])):
            assert settings_from_json(type(said), kept) == said
        assert about["examples"] <= asked.synthesis.pairs


def test_what_is_trained_depends_on_the_packaged_models_files() -> None:
    files = {Path(file).name for file in code_of("changepair.tasks.detectors.pretrained").files}
    assert {name for model in MODELS.values() for name in model} <= files


def test_a_packaged_metric_or_metauas_is_the_same_at_any_scales_and_an_adapter_is_not() -> None:
    scales = EncoderSettings(scales=(1.0, 0.75))
    chosen = replace(settings("metric-residual"), encoder=scales)
    fill(chosen, create_detector(chosen, build_encoder(scales, 64)))
    metauas = replace(settings("metauas"), encoder=scales)
    fill(metauas, create_detector(metauas, build_encoder(scales, 64)))
    other = replace(settings("prompt-query"), encoder=scales)
    with pytest.raises(BadInput, match=r"set encoder: .*\"scales\": \[1.0, 0.5\]"):
        fill(other, create_detector(other, build_encoder(scales, 64)))


def test_what_no_packaged_model_is_for_is_told() -> None:
    other = replace(settings("prompt-query"), width=7)
    with pytest.raises(BadInput, match=r"detectors\.prompt-query: the packaged model was trained with other settings; set width: \d+, or"):
        fill(other, create_detector(other, build_encoder(EncoderSettings(), 64)))
    with pytest.raises(BadInput, match="inctrl: there is no packaged model of this kind, only of metauas, metric-residual, prompt-"):
        fill(InCTRLSettings(), torch.nn.Linear(1, 1))


MAKE = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(":")
from test_packaged import pairs_of
pairs_of(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
"""


def pairs_of(parts: Path, inpainter: Path, folder: Path) -> None:
    """Makes pairs of every kind, half of them painted."""
    kinds = {"appearance": 0.25, "disappearance": 0.2, "exchange": 0.2, "local-region": 0.15, "distractor": 0.1, "none": 0.1}
    synthesis = SynthesisSettings(pairs=24, pairs_per_shard=24, resolution=64, kinds=kinds, regenerated=0.5)
    inputs = make_inputs(parts, inpainter)
    work, missing = start(synthesis, inputs, folder / "work")
    for number in missing:
        make_shard(synthesis, inputs, number, work)
    finish(synthesis, work, folder / "pairs")


@pytest.mark.slow
def test_pairs_are_the_same_bytes_under_other_instruction_sets_and_numbers_of_threads(
    inpainter: Path, layout: Path, tmp_path: Path
) -> None:
    hashes = []
    for name, environment in (("newest", {"OMP_NUM_THREADS": "2"}), ("oldest", {**OLDEST, "OMP_NUM_THREADS": "1"})):
        command = [
            sys.executable,
            "-c",
            MAKE,
            ":".join(map(str, (ROOT / "tests", ROOT / "tests/support", Path(__file__).parent))),
            str(layout),
            str(inpainter),
            str(tmp_path / name),
        ]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **environment})
        hashes.append([sha256(file) for file in sorted((tmp_path / name / "pairs").glob("*.tar"))])
    assert hashes[0] == hashes[1] and len(hashes[0]) == 1
