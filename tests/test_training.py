"""Training: it learns, it is the same twice, and killed anywhere it ends with the model an undisturbed run gives."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_pairs
from tasks.training.data import Pairs
from tasks.training.train import train_metauas

from tasks.detector_settings import MetaUASSettings
from tasks.errors import BadInput
from tasks.files import sha256
from tasks.synthesis.settings import SynthesisSettings
from tasks.training.settings import TrainingSettings

DETECTOR = MetaUASSettings(resolution=64, decoder_channels=(16, 16, 16, 16, 16))
SETTINGS = TrainingSettings(epochs=2, batch_size=4, learning_rate=1e-3, schedule="cosine", log_every=3, checkpoint_every=2, held_out=0.1)


@pytest.fixture
def pairs(layout: Path) -> Path:
    kinds = {"local-region": 0.9, "none": 0.1}
    return make_pairs(layout, SynthesisSettings(pairs=40, pairs_per_shard=20, resolution=64, kinds=kinds), layout.parent / "pairs")  # type: ignore[arg-type]


def train(pairs: Path, name: str, settings: TrainingSettings = SETTINGS) -> Path:
    torch.set_num_threads(2)
    folder = pairs.parent / name
    train_metauas(DETECTOR, settings, pairs=pairs, model_folder=folder, checkpoints=folder.with_suffix(".checkpoints"), workers=0)
    return folder


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "training_log.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_pairs_come_as_the_shards_hold_them(pairs: Path) -> None:
    from tasks.synthesis.shards import read_index

    rows = read_index(pairs)
    for resolution in (64, 32):
        query, prompt, mask = Pairs(pairs, rows, resolution)[21]
        assert query.shape == prompt.shape == (3, resolution, resolution) and mask.shape == (resolution, resolution)
        assert query.min() >= 0 and query.max() <= 1 and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert Pairs(pairs, rows, 64)[21][2].mean().item() == pytest.approx(rows[21]["changed_area"], abs=1e-6)


def test_training_writes_a_model_its_settings_and_a_log(pairs: Path) -> None:
    folder = train(pairs, "model")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "training_log.csv"]
    config = json.loads((folder / "config.json").read_text())
    assert config["detector"] == "metauas" and config["settings"]["resolution"] == 64 and config["pairs"] == 36
    lines = log(folder)
    assert [line["step"] for line in lines] == ["3", "6", "9", "12", "15", "18"]
    assert [bool(line["held_out_loss"]) for line in lines] == [False, False, True, False, False, True]
    assert float(lines[-1]["learning_rate"]) == pytest.approx(0, abs=1e-9)


def test_the_loss_falls(pairs: Path) -> None:
    settings = TrainingSettings(epochs=12, batch_size=4, learning_rate=3e-3, log_every=9, held_out=0.1)
    losses = [float(line["loss"]) for line in log(train(pairs, "model", settings))]
    assert losses[-1] < 0.6 * losses[0]


def test_the_same_training_twice_gives_the_same_bytes(pairs: Path) -> None:
    first, second = train(pairs, "first"), train(pairs, "second")
    assert sha256(first / "model.safetensors") == sha256(second / "model.safetensors")
    assert sha256(first / "training_log.csv") == sha256(second / "training_log.csv")


KILLED = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_training import DETECTOR, SETTINGS
from tasks.training.train import train_metauas
torch.set_num_threads(2)
folder = Path(sys.argv[3])
def report(share): print(f"at {share:.2f}", flush=True)
places = {"pairs": Path(sys.argv[2]), "model_folder": folder, "checkpoints": folder.with_suffix(".checkpoints")}
train_metauas(DETECTOR, SETTINGS, **places, workers=0, report=report)
"""


def test_killed_midway_it_goes_on_and_ends_with_the_same_bytes(pairs: Path) -> None:
    undisturbed = train(pairs, "undisturbed")
    command = [sys.executable, "-c", KILLED, str(ROOT / "tests"), str(pairs), str(pairs.parent / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    checkpoint = pairs.parent / "killed.checkpoints" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    for _line in process.stdout:
        if checkpoint.exists() or time.monotonic() > deadline:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not (pairs.parent / "killed" / "model.safetensors").exists()
    assert torch.load(checkpoint, weights_only=True)["step"] > 0
    killed = train(pairs, "killed")
    assert sha256(killed / "model.safetensors") == sha256(undisturbed / "model.safetensors")
    assert sha256(killed / "training_log.csv") == sha256(undisturbed / "training_log.csv")
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_training_is_not_gone_on_from(pairs: Path) -> None:
    from tasks import checkpoint

    folder = pairs.parent / "model.checkpoints"
    folder.mkdir()
    torch.save({"fingerprint": "another", "step": 17}, folder / checkpoint.NAME)
    assert sha256(train(pairs, "model") / "model.safetensors") == sha256(train(pairs, "other") / "model.safetensors")


def test_too_few_pairs_are_told(pairs: Path) -> None:
    with pytest.raises(BadInput, match=r"training: 36 pairs do not fill one batch of 64 on 1 devices; raise synthesis\.pairs"):
        train(pairs, "model", TrainingSettings(batch_size=64, held_out=0.1))
