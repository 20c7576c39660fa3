"""Kits: detector, prompts and threshold in a folder that needs nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import skimage.data
import torch
from predictors import prompt_and_queries, small

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.tiles import Grid, Tiles
from changepair.tasks.detectors.metauas.settings import MetaUASPlusSettings, MetaUASSettings
from changepair.tasks.detectors.registry import DETECTORS
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector, save_detector, save_model, settings_as_json, settings_from_json
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.packaged.detectors import MODELS
from changepair.tasks.prediction.models import Named, named, of_pipeline
from changepair.tasks.prediction.pictures import as_picture
from changepair.tasks.prediction.predictor import Predictor


def kits(tmp_path: Path) -> list[Named]:
    """Detectors of every kind that a kit may hold: packaged, of a model folder, upon another, with a name of its own."""
    torch.manual_seed(0)
    settings = MetaUASSettings(resolution=64, decoder_channels=(16,) * 5)
    model = create_detector(settings, build_encoder(settings.encoder, 64))
    save_detector(tmp_path / "models" / "metauas", model, settings)
    return [
        *(named(name) for name in MODELS),
        named(tmp_path / "models" / "metauas"),
        of_pipeline("metauas+", {"metauas": settings, "metauas+": MetaUASPlusSettings()}, tmp_path / "models"),
        named("subspace"),
        of_pipeline("plus", {"metauas": settings, "plus": MetaUASPlusSettings()}, tmp_path / "models"),
        of_pipeline("mine", {"mine": PatchResidualSettings(resolution=64)}, tmp_path / "models"),
    ]


def test_a_kit_gives_the_scores_of_what_it_was_made_of_and_needs_nothing_else(layout: Path, tmp_path: Path) -> None:
    prompt, queries = prompt_and_queries(layout)
    pictures = [as_picture(query) for query in queries]
    expected = {}
    for place, one in enumerate(kits(tmp_path)):
        own = Predictor(one).prompt([prompt, layout / "bricks/train/good/1.png"], grid=Grid(1, 2) if place == 0 else None)
        own.save(tmp_path / "kits" / str(place))
        expected[place] = own(pictures).scores
    shutil.rmtree(layout)
    shutil.rmtree(tmp_path / "models")
    for place, scores in expected.items():
        assert Predictor.load(tmp_path / "kits" / str(place))(pictures).scores == pytest.approx(scores, abs=1e-6)


def test_kits_and_model_folders_of_a_kind_of_an_earlier_version_give_the_same_scores(layout: Path, tmp_path: Path) -> None:
    """What an earlier version called multi-scale-residual, with the settings that it did not know left out."""
    prompt, queries = prompt_and_queries(layout)
    pictures = [as_picture(query) for query in queries]
    old = "multi-scale-residual"
    now = named(old)
    own = Predictor(now).prompt([prompt])
    own.save(tmp_path / "kit")
    file = tmp_path / "kit" / "kit.json"
    content = json.loads(file.read_text())
    stored = content["settings"].pop(old)
    assert stored["kind"] == "metric-residual" and stored["resolution"] == 320
    names = {"self_residual": "own"}
    earlier = {names.get(key, key): value for key, value in stored.items() if key not in ("kind", "contrast", "smoothing")}
    assert "own" in earlier
    for kind in ({}, {"kind": old}):  # the oldest kits have no kind
        file.write_text(json.dumps({**content, "detector": old, "settings": {old: {**earlier, **kind}}}))
        again = Predictor.load(tmp_path / "kit")
        assert again(pictures).scores.tolist() == own(pictures).scores.tolist()
        assert again.model.settings[old] == replace(now.looks, model=None)
    save_model(tmp_path / "model", now.detector, {"detector": old, "settings": {"resolution": 320}})
    for model in (tmp_path / "model", old):
        assert Predictor.load(model).prompt([prompt])(pictures).scores.tolist() == own(pictures).scores.tolist()


def test_a_kit_holds_no_picture_and_no_path(layout: Path, tmp_path: Path) -> None:
    own = small().prompt(layout / "bricks/train/good/0.png")
    own.save(tmp_path / "kit")
    content = "".join(file.read_text() for file in (tmp_path / "kit").iterdir() if file.suffix != ".safetensors")
    assert str(tmp_path) not in content and sorted(file.name for file in (tmp_path / "kit").iterdir()) == [
        "card.md",
        "kit.json",
        "memory.safetensors",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda kit: (kit / "memory.safetensors").write_bytes(b""), "memory.safetensors: missing or damaged"),
        (lambda kit: (kit / "model.safetensors").unlink(), "model.safetensors: missing or damaged"),
        (lambda kit: (kit / "kit.json").write_text("{"), "kit.json: not JSON"),
        (lambda kit: (kit / "kit.json").write_text("[]"), "kit.json: is invalid"),
        (lambda kit: edit(kit, form=2), "kit.json: form 2 is not supported"),
        (lambda kit: edit(kit, detector="none"), "kit.json: is invalid"),
        (lambda kit: edit(kit, settings={"patch-residual": {"kind": "none"}}), "kit.json: no detector .none. is installed"),
        (lambda kit: edit(kit, settings={"plus": {"kind": "metauas+", "model_of": "plus"}}, detector="plus"), "no settings of plus"),
        (lambda kit: edit(kit, settings={"patch-residual": {"resolution": 7}}), "kit.json: is invalid"),
        (lambda kit: edit(kit, settings={"patch-residual": {"other": 7}}), "no setting 'other'"),
        (lambda kit: edit(kit, settings={"metauas": {}}, detector="metauas"), "does not fit the detector's settings"),
    ],
)
def test_a_kit_that_is_damaged_or_anothers_is_refused(tmp_path: Path, spoil: object, message: str) -> None:
    small().prompt(skimage.data.brick()[:96, :96]).save(tmp_path / "kit")
    spoil(tmp_path / "kit")  # type: ignore[operator]
    with pytest.raises(BadInput, match=message):
        Predictor.load(tmp_path / "kit")


def edit(kit: Path, **changes: object) -> None:
    content = json.loads((kit / "kit.json").read_text())
    (kit / "kit.json").write_text(json.dumps({**content, **changes}))


def test_a_folder_that_is_no_kit_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    own = small().prompt(skimage.data.brick()[:96, :96])
    with pytest.raises(BadInput, match="is neither a kit nor empty"):
        own.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    own.save(tmp_path / "kit")
    own.save(tmp_path / "kit")  # over itself


@pytest.mark.parametrize("name", DETECTORS)
def test_settings_come_back_from_json_as_they_were(name: str) -> None:
    published = DETECTORS[name].published
    for settings in (DETECTORS[name].settings(), *([published.settings] if published else [])):
        assert settings_from_json(DETECTORS[name].settings, settings_as_json(settings)) == settings


@pytest.mark.parametrize("tiles", ["auto", (2, 3)])
def test_the_setting_of_tiles_is_kept_and_is_auto_where_an_older_version_wrote_none(tiles: Tiles, tmp_path: Path) -> None:
    own = small(PatchResidualSettings(resolution=64, tiles=tiles)).prompt(skimage.data.brick()[:96, :96])
    own.save(tmp_path / "kit")
    settings = settings_as_json(own.model.looks)
    save_model(tmp_path / "model", own.detector, {"detector": "patch-residual", "settings": settings})
    for folder in ("kit", "model"):
        assert Predictor.load(tmp_path / folder).model.looks.tiles == tiles
    del settings["tiles"]
    edit(tmp_path / "kit", settings={"patch-residual": settings})
    save_model(tmp_path / "model", own.detector, {"detector": "patch-residual", "settings": settings})
    for folder in ("kit", "model"):
        assert Predictor.load(tmp_path / folder).model.looks.tiles == "auto"
    assert Predictor.load(tmp_path / "kit").prompted.grid == own.prompted.grid


@pytest.mark.parametrize("tiles", ["3x4", [3], [0, 1], [1, 65], ["1", 2], [True, 1], None, {}, 7])
def test_a_stored_setting_of_tiles_is_checked(tiles: object, tmp_path: Path) -> None:
    small().prompt(skimage.data.brick()[:96, :96]).save(tmp_path / "kit")
    edit(tmp_path / "kit", settings={"patch-residual": {"resolution": 64, "tiles": tiles}})
    with pytest.raises(BadInput, match=r"kit\.json: is invalid"):
        Predictor.load(tmp_path / "kit")
