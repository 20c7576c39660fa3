"""Small real pictures and a small real project that tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
os.environ["DVC_NO_ANALYTICS"] = "true"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make_layout(tmp_path / "parts")


def make_layout(folder: Path) -> Path:
    """A dataset of two categories in MVTec AD's layout, of crops of real textures; each picture differs from every other."""
    for category, photo in (("bricks", skimage.data.brick()), ("stones", skimage.data.gravel())):
        for number in range(4):
            save(photo[64 * number :][:96, :96], folder / category / "train" / "good" / f"{number}.png")
        for number in range(2):
            crop = photo[64 * number :][:96, 200:296].copy()
            save(crop, folder / category / "test" / "good" / f"{number}.png")
            mask = np.zeros((96, 96), dtype=np.uint8)
            mask[30:50, 40:70] = 255
            save(np.where(mask > 0, 255 - crop, crop), folder / category / "test" / "hole" / f"{number}.png")
            save(mask, folder / category / "ground_truth" / "hole" / f"{number}_mask.png")
    return folder


def save(pixels: np.ndarray, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


SMALL = {
    "enabled": ["small"],
    "datasets": {"packaged": ["sample-photos"], "folders": {"parts": {"path": "parts"}}},
    "execution": {"workers": 2},
    "pipelines": {
        "small": {
            "sources": ["sample-photos"],
            "targets": ["parts"],
            "synthesis": {"pairs": 24, "pairs_per_shard": 8, "resolution": 64},
            "sampling": {"shots": [1, 2], "seeds": [0, 1]},
            "detectors": {
                "patch-residual": {"resolution": 64},
                "metauas": {"resolution": 64, "decoder_channels": [16, 16, 16, 16, 16]},
            },
            "training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.001, "log_every": 2},
            "evaluation": {"resolution": 64},
        }
    },
}


def make_project(folder: Path) -> Path:
    """A checkout of this project, with a small pipeline over real pictures and nothing made yet."""
    folder.mkdir()
    for name in ("flows", "tasks", "dvc.yaml", "pyproject.toml", "requirements.lock", ".dvcignore", ".gitignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copyfile(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    make_layout(folder / "parts")
    write_pipelines(folder, SMALL)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def write_pipelines(folder: Path, content: object) -> Path:
    file = folder / "pipelines.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of this environment in `folder`, whose own code it imports; its output is in stdout and stderr."""
    bin_ = Path(sys.executable).parent
    variables = {
        **os.environ,
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        **environment,
    }
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=1800)
