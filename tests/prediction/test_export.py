"""Exports: what the file gives is what the detector gives."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
from conftest import ROOT, make_clip
from PIL import Image, ImageDraw

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.tensors import squared
from changepair.tasks.common.tiles import Grid, boxes
from changepair.tasks.detectors.inctrl.settings import InCTRLSettings
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.prompt_query.settings import PromptQuerySettings
from changepair.tasks.detectors.registry import kind_of
from changepair.tasks.detectors.residual.positions import REGISTERED, registration
from changepair.tasks.detectors.residual.settings import MetricResidualSettings, PatchResidualSettings, RobustResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.detectors.subspace.settings import SubspaceSettings
from changepair.tasks.detectors.uniadet.settings import UniADetSettings
from changepair.tasks.detectors.winclip.settings import WinCLIPSettings
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.packaged.detectors import MODELS
from changepair.tasks.prediction.export import NAMES, export
from changepair.tasks.prediction.models import Named
from changepair.tasks.prediction.predictor import Predictor

GRAVEL, BRICK = skimage.data.gravel(), skimage.data.brick()
PROMPTS = [GRAVEL[:100, :100], GRAVEL[100:200, :100]]
QUERIES = [GRAVEL[200 + 9 * place :][:100, 200:300] for place in range(5)] + [BRICK[:100, :100]]


def small(settings: Any) -> Predictor:
    torch.manual_seed(0)
    detector = create_detector(settings)
    return Predictor(Named(kind_of(settings), {kind_of(settings): settings}, detector))


def seen(pictures: list[np.ndarray], side: int) -> np.ndarray:
    squares = [Image.fromarray(picture).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for picture in pictures]
    return np.stack([np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / 255 for square in squares])


def outputs(session: onnxruntime.InferenceSession, *inputs: np.ndarray) -> list[np.ndarray]:
    return session.run(None, dict(zip((one.name for one in session.get_inputs()), inputs, strict=True)))


DETECTORS = {
    "all that a residual can do": lambda _folder: PatchResidualSettings(
        resolution=64, top_share=0.02, background=0.5, self_residual=0.6, contrast=0.02, rotations=3, mirrored=True, smoothing=2.0
    ),
    "a bounded memory": lambda _folder: PatchResidualSettings(resolution=64, top_share=0.02, self_residual=0.6, memory=30),
    "a robust residual": lambda _folder: RobustResidualSettings(resolution=64, mirrored=True, positions="auto"),
    "a robust residual of positions": lambda _folder: RobustResidualSettings(resolution=64, patch=16, positions="on"),
    "a metric at two scales": lambda _folder: MetricResidualSettings(EncoderSettings(scales=(1.0, 0.5)), resolution=64, self_residual=0.6),
    "MetaUAS": lambda _folder: MetaUASSettings(
        resolution=64, decoder_channels=(16,) * 5, fusion="difference", residual=20.0, top_share=0.01
    ),
    "MetaUAS at two scales": lambda _folder: MetaUASSettings(
        encoder=EncoderSettings(scales=(1.0, 0.5)), resolution=64, decoder_channels=(16,) * 5, residual=20.0
    ),
    "a prompt-query adapter": lambda _folder: PromptQuerySettings(resolution=64),
    "UniADet": lambda _folder: UniADetSettings(resolution=64),
    "InCTRL": lambda _folder: InCTRLSettings(encoder=EncoderSettings(), resolution=64, texts=False),
    "WinCLIP": lambda folder: WinCLIPSettings(EncoderSettings("open_clip", make_clip(folder / "clip"), "folder"), resolution=64),
}


ALWAYS = ("all that a residual can do", "a bounded memory", "a robust residual")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind in ALWAYS else pytest.mark.slow) for kind in DETECTORS])
def test_an_export_of_any_detector_gives_its_scores_and_maps_of_any_number(kind: str, tmp_path: Path) -> None:
    own = small(DETECTORS[kind](tmp_path)).prompt(PROMPTS)
    expected = own(QUERIES).scores
    with torch.inference_mode():
        maps = own.detector.score(torch.from_numpy(seen(QUERIES, 64)), [part[0] for part in own.prompted.memory])[1].numpy()
    assert export(own, tmp_path, "onnx").farthest <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for count in (1, 6):
        scores, found = outputs(session, seen(QUERIES[:count], 64))
        assert scores == pytest.approx(expected[:count], abs=1e-4) and np.abs(found - maps[:count]).max() <= 1e-4


def label(right: int, down: int, lot: str = "LOT 42") -> np.ndarray:
    """A printed label, moved by some pixels."""
    picture = Image.new("L", (64, 64), 220)
    drawing = ImageDraw.Draw(picture)
    for line, text in enumerate((lot, "A-17 X", "00913")):
        drawing.text((6 + right, 6 + 18 * line + down), text, fill=20)
    drawing.rectangle((48 + right, 8 + down, 58 + right, 56 + down), fill=70)
    return np.asarray(picture)


def test_an_export_with_registered_prompts_compares_patches_near_their_own_position(tmp_path: Path) -> None:
    prompts, queries = [label(0, 0), label(1, 0), label(-1, 1)], [label(1, 1), label(0, 0, "TOL 24"), label(12, 0), BRICK[:64, :64]]
    encoder = EncoderSettings("timm", "resnet10t", "model")  # at random, and exported in half the time

    def positions(how: Any) -> Predictor:
        return small(RobustResidualSettings(encoder, resolution=64, versions=False, positions=how)).prompt(prompts)

    own = positions("auto")
    bank = own.prompted.memory[0][0]
    assert float(registration(bank[:, :-1], 0.08)) > REGISTERED
    expected, off, on = own(queries).scores, positions("off")(queries).scores, positions("on")(queries).scores
    assert np.array_equal(expected, on) and (expected > off + 1e-3).any()
    with torch.inference_mode():
        maps = own.detector.score(torch.from_numpy(seen(queries, 64)), [part[0] for part in own.prompted.memory])[1].numpy()
    export(own, tmp_path, "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for count in (1, 4):
        scores, found = outputs(session, seen(queries[:count], 64))
        assert np.abs(scores - expected[:count]).max() <= 1e-5 and np.abs(found - maps[:count]).max() <= 1e-5


@pytest.fixture(scope="module")
def example() -> Any:
    """The functions of docs/examples/score_with_onnx.py."""
    return runpy.run_path(str(ROOT / "docs" / "examples" / "score_with_onnx.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "resize"), [*((kind, "squash") for kind in DETECTORS), *((ALWAYS[0], resize) for resize in ("aligned", "crop"))]
)
def test_the_example_scores_in_tiles_with_any_detector_and_any_resizing(kind: str, resize: Any, example: Any, tmp_path: Path) -> None:
    settings = DETECTORS[kind](tmp_path)
    own = small(replace(settings, encoder=replace(settings.encoder, resize=resize))).prompt(PROMPTS, grid=Grid(2, 3))
    pictures = [np.repeat(picture[:80, :, None], 3, axis=2) for picture in QUERIES]
    expected, maps = own(pictures)
    about = json.loads(json.dumps(asdict(export(own, tmp_path / "out", "onnx"))))
    assert about["grid"] == [2, 3] and about["overlap"] == 0.125
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for picture, score, map_ in zip(pictures, expected, maps, strict=True):
        found, joined = example["score"](session, about, picture)
        assert found == pytest.approx(score, abs=1e-4)
        assert np.abs(joined - map_).mean() < 0.03 * max(np.ptp(map_), 0.01)  # Pillow averages where a map is larger than its tile


def test_the_seams_of_tiles_are_left_out_of_a_kit_and_of_its_export_too(example: Any, tmp_path: Path) -> None:
    settings = RobustResidualSettings(EncoderSettings(), stages=(2,), patch=4, resolution=64, versions=False)
    own = small(settings).prompt(PROMPTS, grid=Grid(2, 2))
    pictures = [np.repeat(picture[..., None], 3, axis=2) for picture in QUERIES]
    expected = own(pictures).scores
    own.save(tmp_path / "kit")
    kit = Predictor.load(tmp_path / "kit")
    assert kit(pictures).scores == pytest.approx(expected, abs=1e-6)
    about = json.loads(json.dumps(asdict(export(kit, tmp_path / "out", "onnx"))))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [example["score"](session, about, picture)[0] for picture in pictures] == pytest.approx(expected, abs=1e-4)
    boxes_ = boxes((100, 100), Grid(2, 2))
    cut = [[picture[box.top : box.bottom, box.left : box.right] for picture in (*PROMPTS, *QUERIES)] for box in boxes_]
    to_the_edges = np.max([small(settings).prompt(tiles[:2])(tiles[2:]).scores for tiles in cut], axis=0)
    assert (to_the_edges > expected - 1e-5).all() and (to_the_edges > expected + 1e-3).any()


@pytest.mark.parametrize("resize", ["squash", "aligned", "crop"])
@pytest.mark.parametrize("shape", [(90, 150), (301, 64), (64, 64)])
def test_the_example_resizes_and_joins_as_the_detectors_do(resize: Any, shape: tuple[int, int], example: Any) -> None:
    tile = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    [theirs] = squared(tile, 64, torch.device("cpu"), resize)
    assert np.allclose(example["square"](tile, 64, resize).transpose(2, 0, 1), theirs, atol=1e-5)
    grid = Grid(2, 3)
    assert [
        (top, left, bottom, right)
        for top, bottom in example["spans"](shape[0], 2, 0.125)
        for left, right in example["spans"](shape[1], 3, 0.125)
    ] == boxes(shape, grid)


def test_pictures_of_any_size_are_cut_where_the_prompts_are(example: Any, tmp_path: Path) -> None:
    own = small(PatchResidualSettings(resolution=64, top_share=0.02)).prompt(PROMPTS, grid=Grid(1, 2))
    pictures = [np.repeat(picture[..., None], 3, axis=2) for picture in (GRAVEL[:90, :150], GRAVEL[100:300, 100:223])]
    expected, maps = own(pictures)
    about = json.loads(json.dumps(asdict(export(own, tmp_path, "onnx", any_size=True))))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for picture, score, map_ in zip(pictures, expected, maps, strict=True):
        found, joined = example["score"](session, about, picture)
        assert found == pytest.approx(score, abs=2e-3)  # Pillow rounds to whole levels, twice
        assert np.abs(joined - map_).max() < 0.01


@pytest.mark.parametrize("settings", [MetricResidualSettings(resolution=64), RobustResidualSettings(resolution=64)])
def test_prompts_are_an_input_where_none_are_inside(settings: Any, tmp_path: Path) -> None:
    expected = {count: small(settings).prompt(PROMPTS[:count])(QUERIES).scores for count in (1, 2)}
    assert export(small(settings), tmp_path, "onnx").prompts == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for count, wanted in expected.items():
        assert outputs(session, seen(QUERIES, 64), seen(PROMPTS[:count], 64))[0] == pytest.approx(wanted, abs=1e-4)


def test_pictures_of_any_size_are_brought_to_the_resolution_inside(tmp_path: Path) -> None:
    own = small(PatchResidualSettings(resolution=64, top_share=0.02)).prompt(PROMPTS)
    pictures = [GRAVEL[:90, :150], GRAVEL[100:300, 100:223], BRICK[:64, :64]]
    expected, maps = own(pictures)
    export(own, tmp_path, "onnx", any_size=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for picture, score, map_ in zip(pictures, expected, maps, strict=True):
        raw = np.repeat(picture[None, None], 3, axis=1).astype(np.float32) / 255
        scores, found = outputs(session, raw)
        assert found.shape[1:] == picture.shape
        assert scores[0] == pytest.approx(score, abs=2e-3)  # Pillow rounds to whole levels, twice
        assert np.abs(found[0] - map_).max() < 0.01


def test_a_file_for_torch_needs_nothing_of_this_project(tmp_path: Path) -> None:
    own = small(PatchResidualSettings(resolution=64)).prompt(PROMPTS)
    expected = own(QUERIES).scores
    export(own, tmp_path, "torch")
    np.save(tmp_path / "queries.npy", seen(QUERIES, 64))
    program = (
        "import sys; sys.modules['tasks'] = sys.modules['timm'] = None\n"
        "import numpy, torch; model = torch.export.load('model.pt2').module()\n"
        "print(*model(torch.from_numpy(numpy.load('queries.npy')))[0].tolist())"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [float(score) for score in result.stdout.split()] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: small(SubspaceSettings(resolution=64)), {}, "no eigenvalue decomposition"),
        (lambda: small(PatchResidualSettings(resolution=64, foreground=1.0)), {}, "which the foreground needs"),
        (lambda: small(RobustResidualSettings(resolution=64, positions="auto")), {}, "cannot have prompts as an input; give --prompt"),
        (lambda: small(PatchResidualSettings(resolution=64, memory=30)), {}, "cannot have prompts as an input; give --prompt"),
        (
            lambda: small(PatchResidualSettings(EncoderSettings(resize="crop"), resolution=64)),
            {"any_size": True},
            "need resize: squash, not crop",
        ),
    ],
)
def test_what_cannot_be_exported_is_told_before_anything_is_written(tmp_path: Path, make: Any, options: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        export(make(), tmp_path / "out", "onnx", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("name", MODELS)
def test_every_packaged_model_can_be_exported(name: str, form: Any, tmp_path: Path) -> None:
    about = export(Predictor.load(name).prompt(PROMPTS), tmp_path, form)
    print(f"{name}, {form}: {about.farthest:.1g}")


def test_the_command_says_what_it_wrote_and_keeps_the_threshold(tmp_path: Path) -> None:
    own = small(PatchResidualSettings(resolution=64)).prompt(PROMPTS)
    threshold = own.calibrate(QUERIES[:4], false_alarms=0.25)
    own.save(tmp_path / "kit")
    from changepair.flows.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["changepair", "export", "--kit", str(tmp_path / "kit"), "--out", str(tmp_path / "out")])
        main()
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["threshold"] == threshold.value and about["prompts"] == 2 and about["false_alarms"] == 0.25
    stored = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx").get_modelmeta().custom_metadata_map["changepair"]
    assert json.loads(stored) == about
