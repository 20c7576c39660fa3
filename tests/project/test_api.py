"""The public API, `changepair`: what it exports, and that it is imported quickly and from any folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from conftest import make_pairs
from PIL import Image

import changepair
from changepair.tasks.common.places import place_of
from changepair.tasks.synthesis.settings import SynthesisSettings

SYNTHESIS = SynthesisSettings(pairs=12, pairs_per_shard=6, resolution=32, kinds={"local-region": 1.0}, held_out=0.25)


def python(folder: Path, program: str) -> str:
    """Run a program by the installed package in a folder, and return what it prints."""
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_every_exported_name_is_there_and_no_other() -> None:
    assert all(getattr(changepair, name) is not None for name in changepair.__all__) and dir(changepair) == changepair.__all__
    with pytest.raises(AttributeError, match="no attribute 'Predictr'"):
        _ = changepair.Predictr


def test_the_import_is_quick_and_loads_no_library(tmp_path: Path) -> None:
    heavy = ("torch", "numpy", "PIL", "prefect", "dvc", "pydantic")
    program = (
        "import sys, time; start = time.perf_counter(); import changepair; print(time.perf_counter() - start); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    seconds, loaded = python(tmp_path, program).splitlines()
    assert float(seconds) < 0.2 and loaded == "[]"


@pytest.mark.parametrize("model", ["packaged", "patch-residual", "metric-residual", "prompt-query"])
def test_the_command_predicts_without_libraries_that_it_does_not_need(model: str, tmp_path: Path) -> None:
    """The import of each takes longer than a score."""
    heavy = ("timm", "torchvision", "segmentation_models_pytorch", "open_clip", "prefect", "dvc", "pandas", "onnx", "scipy", "pyarrow")
    others = ("cv2", "pydantic", "rich", "ruamel", "matplotlib", "huggingface_hub", "transformers", "torch._dynamo", "sympy")
    Image.fromarray(skimage.data.gravel()[:64, :64]).save(tmp_path / "normal.png")
    program = (
        "import sys; from changepair.flows.__main__ import main; "
        f"sys.argv = ['changepair', 'predict', '--model', {model!r}, '--prompt', 'normal.png', 'normal.png']; main(); "
        f"print([name for name in {heavy + others} if name in sys.modules])"
    )
    lines = python(tmp_path, program).splitlines()
    assert lines[1].endswith("normal.png") and lines[-1] == "[]"


def test_modules_of_the_working_folder_named_tasks_and_flows_are_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("raise RuntimeError('the tasks of the user')\n")
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("raise RuntimeError('the flows of the user')\n")
    Image.fromarray(skimage.data.gravel()[:64, :64]).save(tmp_path / "normal.png")
    program = (
        "from changepair import Predictor; scores, maps = Predictor.load('patch-residual').prompt('normal.png')(['normal.png']); "
        "print(len(scores), maps[0].shape); "
        "import sys; from changepair.flows.__main__ import main; sys.argv = ['changepair', 'predict', '--help']; main()"
    )
    assert python(tmp_path, program).startswith("1 (64, 64)\nusage: changepair predict")


@pytest.mark.parametrize("name", ["tasks", "flows"])
def test_a_second_copy_under_a_short_name_is_refused(name: str) -> None:
    """Its classes would not be those of the first."""
    root = Path(changepair.__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=root, capture_output=True, text=True)
    assert result.returncode == 1 and f"ImportError: import changepair.{name}, not {name}" in result.stderr


def test_a_loaded_detector_scores_as_the_predictor_does() -> None:
    texture = skimage.data.gravel()
    predictor = changepair.Predictor.load("patch-residual")
    side = predictor.model.looks.resolution
    normal, query = (np.stack([texture[place : place + side, :side]] * 3, axis=-1) for place in (0, 512 - side))
    detector = changepair.load_detector("patch-residual").eval()
    tensors = [torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255 for picture in (query, normal)]
    with torch.inference_mode():
        scores, maps = detector.score(*tensors)
    expected = predictor.prompt(normal)(query)
    assert scores.item() == pytest.approx(float(expected.scores[0]), abs=5e-6)
    assert np.allclose(maps[0].numpy(), expected.maps[0], atol=1e-5)


def test_every_listed_detector_is_loaded() -> None:
    for name in changepair.list_detectors():
        if name != "winclip":  # its encoder's weights are downloaded
            assert changepair.load_detector(name).encoder is not None


def test_a_kit_is_loaded_and_saved_again(tmp_path: Path) -> None:
    texture = skimage.data.brick()
    changepair.Predictor.load("patch-residual").prompt(texture[:64, :64]).save(tmp_path / "kit")
    kit = changepair.Kit.load(tmp_path / "kit")
    kit.save(tmp_path / "copy")
    assert kit.model.name == "patch-residual" and kit.threshold is None
    first, second = (changepair.Predictor.load(tmp_path / name)(texture[64:128, :64]).scores for name in ("kit", "copy"))
    assert first == second


def test_change_pairs_are_a_torch_dataset_of_a_folder_or_a_url(layout: Path) -> None:
    folder = make_pairs(layout, SYNTHESIS, layout.parent / "pairs")
    pairs = changepair.ChangePairs(folder)
    query, prompt, mask = pairs[0]
    assert len(pairs) == 12 and query.shape == prompt.shape == (3, 32, 32) and mask.shape == (32, 32)
    held_out, others = (changepair.ChangePairs(folder, held_out=chosen) for chosen in (True, False))
    assert len(held_out) == 3 and len(others) == 9
    batch = next(iter(torch.utils.data.DataLoader(changepair.ChangePairs(folder, 16), batch_size=12, num_workers=2)))
    assert batch[0].shape == (12, 3, 16, 16) and set(batch[2].unique().tolist()) == {0.0, 1.0}
    store = place_of("memory://change-pairs")
    for file in folder.glob("*.*"):
        (store / file.name).write_bytes(file.read_bytes())
    by_url = changepair.ChangePairs("memory://change-pairs")
    assert all(torch.equal(one, other) for one, other in zip(by_url[7], pairs[7], strict=True))
    with pytest.raises(changepair.BadInput, match="no such file"):
        changepair.ChangePairs(layout)
