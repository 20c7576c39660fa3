"""Exports: what the file gives is what the detector gives; and one score wherever a picture is scored."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
from conftest import ROOT, make_clip, make_places, scored
from fastapi.testclient import TestClient
from PIL import Image
from test_prediction import predict

from flows.prediction.demo import make_page
from flows.prediction.page import gradio_in
from flows.prediction.service import make_app
from tasks.common.errors import BadInput
from tasks.detectors.encoders import build_encoder
from tasks.detectors.inctrl import InCTRLSettings
from tasks.detectors.load import build_detector
from tasks.detectors.metauas import MetaUASSettings
from tasks.detectors.metric_residual import MetricResidualSettings
from tasks.detectors.patch_residual import PatchResidualSettings
from tasks.detectors.prompt_query import PromptQuerySettings
from tasks.detectors.registry import name_of
from tasks.detectors.settings import EncoderSettings
from tasks.detectors.subspace import SubspaceSettings
from tasks.detectors.winclip import WinCLIPSettings
from tasks.ingestion.ingest import ingest_folder
from tasks.packaged.detectors import MODELS
from tasks.prediction.export import NAMES, export
from tasks.prediction.models import Named
from tasks.prediction.predictor import Predictor
from tasks.sampling.episodes import EpisodeFiles, read_episodes
from tasks.sampling.sample import sample
from tasks.sampling.settings import SamplingSettings, Use
from tasks.scoring.score import Contender
from tasks.scoring.scores import Work, read_scored

GRAVEL, BRICK = skimage.data.gravel(), skimage.data.brick()
PROMPTS = [GRAVEL[:100, :100], GRAVEL[100:200, :100]]
QUERIES = [GRAVEL[200 + 9 * place :][:100, 200:300] for place in range(5)] + [BRICK[:100, :100]]


def small(settings: Any) -> Predictor:
    torch.manual_seed(0)
    detector = build_detector(settings, build_encoder(settings.encoder, settings.resolution))
    return Predictor(Named(name_of(settings), {name_of(settings): settings}, detector))


def seen(pictures: list[np.ndarray], side: int) -> np.ndarray:
    squares = [Image.fromarray(picture).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for picture in pictures]
    return np.stack([np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / 255 for square in squares])


def outputs(session: onnxruntime.InferenceSession, *inputs: np.ndarray) -> list[np.ndarray]:
    return session.run(None, dict(zip((one.name for one in session.get_inputs()), inputs, strict=True)))


DETECTORS = {
    "all that a residual can do": lambda _folder: PatchResidualSettings(
        resolution=64, top_share=0.02, background=0.5, own=0.6, contrast=0.02, rotations=3, mirrored=True, smoothing=2.0
    ),
    "a metric at two scales": lambda _folder: MetricResidualSettings(EncoderSettings(scales=(1.0, 0.5)), resolution=64, own=0.6),
    "MetaUAS": lambda _folder: MetaUASSettings(resolution=64, decoder_channels=(16,) * 5, fusion="difference"),
    "a prompt-query adapter": lambda _folder: PromptQuerySettings(resolution=64),
    "InCTRL": lambda _folder: InCTRLSettings(encoder=EncoderSettings(), resolution=64, texts=False),
    "WinCLIP": lambda folder: WinCLIPSettings(EncoderSettings("open_clip", make_clip(folder / "clip"), "folder"), resolution=64),
}


ALWAYS = ("all that a residual can do", "MetaUAS")


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


def test_prompts_are_an_input_where_none_are_inside(tmp_path: Path) -> None:
    settings = MetricResidualSettings(resolution=64)
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
        (lambda: small(PatchResidualSettings(resolution=64, foreground=1.0)), {}, "by which the foreground is found"),
        (
            lambda: small(PatchResidualSettings(EncoderSettings(resize="crop"), resolution=64)),
            {"any_size": True},
            "can be squashed only, and resize is crop",
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


def test_one_picture_has_one_score_wherever_it_is_scored(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the evaluation of a pipeline's episodes, from Python, the command, the service, the page, and an export by the example that needs
    none of this project."""
    manifests, files = tmp_path / "manifests", EpisodeFiles.of(tmp_path / "episodes", "one")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    sample(SamplingSettings(shots=(2,), seeds=(0,), protocols=("class-specific",)), Use((), ("parts",)), manifests=manifests, files=files)
    settings = PatchResidualSettings(resolution=64, top_share=0.02, background=0.5, own=0.6)
    own = small(settings)
    contender = Contender("patch-residual", own.detector, 64, None, Work(tmp_path / "work"))
    expected = next(read_scored(scored([contender], files, tmp_path / "scores")["patch-residual"])).scores
    episode = read_episodes(files.episodes)[0]
    queries = list(episode.queries)

    own.prompt(episode.prompts)
    own.save(tmp_path / "kit")
    assert own(queries).scores == pytest.approx(expected, abs=1e-6)

    printed = predict("--kit", tmp_path / "kit", "--format", "json", *queries).stdout
    assert [json.loads(line)["score"] for line in printed.splitlines()] == pytest.approx(expected, abs=1e-6)

    with TestClient(make_app(own, {})) as client:
        answer = client.post("/v1/predict", files=[("pictures", Path(query).read_bytes()) for query in queries]).json()
    assert [one["score"] for one in answer["predictions"]] == pytest.approx(expected, abs=1e-6)

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "page"))
    gradio = gradio_in(tmp_path / "page")
    page = make_page(gradio, own, tmp_path / "page")
    check = next(block.fn for block in page.fns.values() if block.fn is not None and block.fn.__name__ == "check")
    _session, verdict, _shown = check(None, [(query, None) for query in queries], 1.0)
    assert [float(number) for number in re.findall(r"0\.\d{4}", verdict)] == pytest.approx(expected, abs=1e-4)

    export(own, tmp_path / "onnx", "onnx")
    example = ROOT / "docs" / "examples" / "score_with_onnx.py"
    assert len(example.read_text().splitlines()) <= 100
    alone = "import sys, runpy\nfor name in ('tasks', 'flows', 'torch', 'timm'): sys.modules[name] = None\nsys.argv = sys.argv[1:]\n"
    command = [sys.executable, "-c", f"{alone}runpy.run_path(sys.argv[0], run_name='__main__')", str(example), "onnx/model.onnx", *queries]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [float(line.split()[0]) for line in result.stdout.splitlines()] == pytest.approx(expected, abs=1e-4)


def test_the_command_says_what_it_wrote_and_keeps_the_threshold(tmp_path: Path) -> None:
    own = small(PatchResidualSettings(resolution=64)).prompt(PROMPTS)
    threshold = own.calibrate(QUERIES[:4], false_alarms=0.25)
    own.save(tmp_path / "kit")
    from flows.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["changepair", "export", "--kit", str(tmp_path / "kit"), "--out", str(tmp_path / "out")])
        main()
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["threshold"] == threshold.value and about["prompts"] == 2 and about["false_alarms"] == 0.25
    stored = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx").get_modelmeta().custom_metadata_map["changepair"]
    assert json.loads(stored) == about
