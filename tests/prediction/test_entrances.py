"""A picture has the same score at every entrance: command, Python, service, page and evaluation. Large pictures are cut the same way."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, make_places
from dicoms import as_dicom
from fastapi.testclient import TestClient
from lines import old
from PIL import Image
from predictors import predict, small
from scipy.ndimage import gaussian_filter

from changepair.flows.prediction.budget import default_budget
from changepair.flows.prediction.demo import make_page
from changepair.flows.prediction.page import gradio_in
from changepair.flows.prediction.service import make_app
from changepair.tasks.common.tiles import Grid
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import save_model, settings_as_json
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.monitoring.record import Record, arrived, judge
from changepair.tasks.prediction import export as exporting
from changepair.tasks.prediction.export import export
from changepair.tasks.prediction.models import Named
from changepair.tasks.prediction.predictor import Predictor
from changepair.tasks.sampling.episodes import EpisodeFiles, read_episodes
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.scoring.batch_scoring import Scoring, score_detector
from changepair.tasks.scoring.scores import read_scored
from changepair.tasks.scoring.settings import EvaluationSettings

SETTINGS = PatchResidualSettings(resolution=64, stages=(3, 4), top_share=0.02, background=0.5, self_residual=0.6)
NEW: dict[str, Callable[[], Predictor]] = {
    "patch-residual": lambda: small(SETTINGS),
    "bounded": lambda: small(replace(SETTINGS, memory=40)),
    "metauas": lambda: Predictor.load("metauas"),
}
EXAMPLE = ROOT / "docs" / "examples" / "score_with_onnx.py"
ALONE = "import sys, runpy\nfor name in ('tasks', 'flows', 'torch', 'timm'): sys.modules[name] = None\nsys.argv = sys.argv[1:]\n"


def write_parts(folder: Path, height: int, width: int, write: Callable[[np.ndarray, Path], object]) -> None:
    """Write a prompt, a normal and two anomalous pictures in MVTec AD's layout. write: gets grey pixels HxW in [0, 1], and a path to
    which it may add an ending of its own."""
    for seed, name in enumerate(("train/good/0", "test/good/0", "test/nick/0", "test/nick/1")):
        random = np.random.default_rng(seed)
        pixels = gaussian_filter(random.random((height, width), dtype=np.float32), 1.5)
        pixels = np.clip(0.5 + 3 * (pixels - 0.5), 0, 1)
        if "nick" in name:
            top, left = int(random.integers(height - 24)), int(random.integers(width - 24))
            pixels[top : top + 24, left : left + 24] *= 0.4
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(pixels, folder / name)


def as_png(pixels: np.ndarray, file: Path) -> None:
    Image.fromarray(np.rint(255 * pixels).astype(np.uint8)).save(file.with_suffix(".png"), compress_level=1)


def eight(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(255 * pixels).astype(np.uint8))


def turned(pixels: np.ndarray, file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a viewer
    eight(pixels).transpose(Image.Transpose.ROTATE_90).save(file.with_suffix(".png"), exif=exif)


def transparent(pixels: np.ndarray, file: Path) -> None:
    """Darker where it is more transparent, so that over white it shows the pixels."""
    ink = np.zeros((*pixels.shape, 4), np.uint8)
    ink[..., 3] = np.rint(255 * (1 - pixels))
    Image.fromarray(ink).save(file.with_suffix(".png"))


def dicom(pixels: np.ndarray, file: Path) -> None:
    tags = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 2048, "WindowWidth": 4096}
    file.with_suffix(".dcm").write_bytes(as_dicom(np.rint(pixels * 4095).astype(np.uint16), **tags))


def as_tiff(scale: float, kind: type[Any], **options: Any) -> Callable[[np.ndarray, Path], None]:
    def write(pixels: np.ndarray, file: Path) -> None:
        values = pixels * scale if kind is np.float32 else np.rint(pixels * scale)
        tifffile.imwrite(file.with_suffix(".tif"), values.astype(kind), **options)

    return write


def by_pillow(ending: str, mode: str = "L", **options: Any) -> Callable[[np.ndarray, Path], None]:
    return lambda pixels, file: eight(pixels).convert(mode).save(file.with_suffix(ending), **options)


WRITERS: dict[str, tuple[Callable[[np.ndarray, Path], None], float]] = {
    "PNG": (as_png, 0),
    "BMP": (by_pillow(".bmp"), 0),
    "WebP": (by_pillow(".webp", "RGB", lossless=True), 0),
    "TIFF": (by_pillow(".tif", compression="tiff_lzw"), 0),
    "palette": (by_pillow(".png", "P"), 0),
    "alpha": (transparent, 0),
    "turned by EXIF": (turned, 0),
    "JPEG": (by_pillow(".jpg", quality=95), 0.05),
    "CMYK": (by_pillow(".tif", "CMYK"), 0.05),
    "PNG of 16 bits": (
        lambda pixels, file: Image.fromarray(np.rint(pixels * 65535).astype(np.uint16)).save(file.with_suffix(".png")),
        0.01,
    ),
    "TIFF of 12 bits": (as_tiff(4095, np.uint16), 0.01),
    "TIFF of float, 0 to 1": (as_tiff(1, np.float32), 0.01),
    "TIFF of float, 0 to 65535": (as_tiff(65535, np.float32), 0.01),
    "TIFF of 32 bits": (as_tiff(2**31 - 1, np.int32), 0.01),
    "TIFF, white is 0": (lambda pixels, file: as_tiff(65535, np.uint16, photometric="miniswhite")(1 - pixels, file), 0.01),
    "DICOM": (dicom, 0.01),
}
"""Kinds of files, and how far a score may be from that of the same pixels in 8 bits: rounding, and what JPEG and CMYK lose."""
PICTURES: list[tuple[str, tuple[int, int], Callable[[np.ndarray, Path], None], float]] = [
    *((name, (96, 140), write, far) for name, (write, far) in WRITERS.items()),
    ("a line scan of 200x5000", (5000, 200), as_png, 0),
    ("12 megapixels", (3000, 4000), as_png, 0),
]
"""Kinds of pictures that every entrance is tried with."""
QUICK = {"TIFF of 12 bits", "turned by EXIF"}
EXPORTED: dict[tuple[str, ...], bytes] = {}


@pytest.fixture(autouse=True)
def equal_memories_are_exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes most of a test's time. `export` still compares each file with its detector."""
    made = exporting._exported

    def kept(module: exporting.Exported, inputs: dict[str, torch.Tensor], form: exporting.Form, *, any_size: bool) -> bytes:
        memory = hashlib.sha256(b"".join(part.numpy().tobytes() for part in module.memory)).hexdigest()
        key = (memory, *(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items()))
        if key not in EXPORTED:
            EXPORTED[key] = made(module, inputs, form, any_size=any_size)
        return EXPORTED[key]

    monkeypatch.setattr(exporting, "_exported", kept)


@pytest.mark.parametrize(
    ("kind", "size", "write", "far"),
    [
        *(pytest.param("patch-residual", *rest, id=name, marks=[] if name in QUICK else [pytest.mark.slow]) for name, *rest in PICTURES),
        pytest.param("bounded", (96, 140), as_png, 0, id="a bounded memory"),
        pytest.param("metauas", (96, 140), as_png, 0, id="metauas", marks=pytest.mark.slow),
    ],
)
def test_a_picture_has_one_score_by_every_entrance(
    kind: str,
    size: tuple[int, int],
    write: Callable[[np.ndarray, Path], None],
    far: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts, plain = tmp_path / "parts", tmp_path / "plain"
    write_parts(parts, *size, write)
    write_parts(plain, *size, as_png)
    new, model = NEW[kind], tmp_path / "models" / kind
    named = new().model
    save_model(model, named.detector, {"detector": named.name, "settings": settings_as_json(named.looks)})
    files, by_pipeline = scored_by_a_pipeline(named, parts, tmp_path)
    [episode] = read_episodes(files.episodes)
    order = [re.search(r"test/\w+/\d", image)[0] for image in episode.queries]  # type: ignore[index]
    prompt, *queries = (str(next(parts.glob(f"{name}.*"))) for name in ("train/good/0", *order))
    expected = new().prompt(prompt)(queries).scores
    assert len(set(expected.tolist())) == len(expected) == 3
    assert by_pipeline == pytest.approx(expected, abs=1e-6)
    by_hand = cut_by_hand(new(), str(plain / "train/good/0.png"), [str(plain / f"{name}.png") for name in order])
    assert expected == pytest.approx(by_hand, abs=max(far, 1e-6))

    printed = predict("--model", model, "--prompt", prompt, "--format", "csv", *queries).stdout
    assert [float(row["score"]) for row in csv.DictReader(io.StringIO(printed))] == pytest.approx(expected, abs=1e-6)

    own = new().prompt(prompt)
    own.calibrate([query for query in queries if "good" in query], false_alarms=0.5)
    own.save(tmp_path / "kit")
    kit = Predictor.load(tmp_path / "kit")
    assert kit(queries).scores == pytest.approx(expected, abs=1e-6)

    sent = [("pictures", Path(query).read_bytes()) for query in queries]
    with TestClient(make_app(Predictor.load(model), {"line-3": kit})) as client:
        prompts = client.post("/v1/prompts", files=[("pictures", Path(prompt).read_bytes())]).json()["prompts"]
        for by in ({"kit": "line-3"}, {"prompts": prompts}):
            answer = client.post("/v1/predict", files=sent, data=by).json()
            assert [one["score"] for one in answer["predictions"]] == pytest.approx(expected, abs=1e-6)

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "page"))
    gradio = gradio_in(tmp_path / "page")
    page = make_page(gradio, Predictor.load(model), tmp_path / "page", default_budget())
    steps = {block.fn.__name__: block.fn for block in page.fns.values() if block.fn is not None}
    session, _ready = steps["prompt"]([(prompt, None)])
    _session, shown, _pictures, _drawn = steps["check"](session, [(query, None) for query in queries], 1.0)
    assert [float(number) for number in re.findall(r"0\.\d{6}", shown)] == pytest.approx(expected, abs=1e-4)

    for query in queries:
        old(Path(query))
    watched, record = parts / "test", Record(tmp_path / "record")
    rows = [row for part in judge(kit, "kit-1", arrived(watched, record, settled=0.0), record) for row in part]
    by_watch = {row.picture: row.score for row in rows}
    assert [by_watch[Path(query).relative_to(watched).as_posix()] for query in queries] == pytest.approx(expected, abs=1e-6)

    if kind == "metauas":
        return  # its export takes half a minute; test_every_packaged_model_can_be_exported compares it
    export(own, tmp_path / "onnx", "onnx")
    assert len(EXAMPLE.read_text().splitlines()) <= 100
    command = [sys.executable, "-c", f"{ALONE}runpy.run_path(sys.argv[0], run_name='__main__')", str(EXAMPLE), "onnx/model.onnx", *queries]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [float(line.split()[0]) for line in result.stdout.splitlines()] == pytest.approx(expected, abs=1e-4)


def scored_by_a_pipeline(named: Named, parts: Path, folder: Path) -> tuple[EpisodeFiles, np.ndarray]:
    """Ingest a dataset, sample one episode, and score it as the stage does."""
    manifests, files = folder / "manifests", EpisodeFiles.of(folder / "episodes", "one")
    ingest_folder("parts", parts, licence="own", places=make_places(manifests))
    sample(SamplingSettings(shots=(1,), seeds=(0,), protocols=("class-specific",)), Use((), ("parts",)), manifests=manifests, files=files)
    scoring = Scoring(named.settings, EvaluationSettings(batch_size=4), files, *(folder / name for name in ("models", "s", "c")))
    score_detector(named.name, scoring)
    [scored] = read_scored(folder / "s" / named.name)
    return files, scored.scores


def cut_by_hand(own: Predictor, prompt: str, queries: list[str]) -> list[float]:
    """Cut pictures with a loop of the test's own, score each tile as a whole picture against the same tile of the prompt, and take the
    maximum."""
    pictures = [np.asarray(Image.open(file)) for file in (prompt, *queries)]
    height, width = pictures[0].shape[:2]
    rows, columns = (math.ceil(side / 1024) if max(height, width) > 2048 else 1 for side in (height, width))
    highest = np.zeros(len(queries))
    for row in range(rows):
        for column in range(columns):
            top, bottom = edges(height, rows, row)
            left, right = edges(width, columns, column)
            first, *others = (picture[top:bottom, left:right] for picture in pictures)
            highest = np.maximum(highest, own.prompt(first, grid=Grid(1, 1))(others).scores)
    return highest.tolist()


def edges(side: int, count: int, place: int) -> tuple[int, int]:
    """Start and end of a tile: its share of the side, extended by an eighth of that into each neighbour."""
    low, high = 8 * place - (place > 0), 8 * place + 8 + (place < count - 1)  # in eighths of a share
    return side * low // (8 * count), -(-side * high // (8 * count))
