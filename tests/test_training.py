"""Training: it learns, it is the same twice, and killed anywhere it ends with the model an undisturbed run gives."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_pairs, make_places, save

from tasks.common.errors import BadInput
from tasks.common.files import sha256
from tasks.common.tensors import read_tensors as pixels
from tasks.detectors.encoders import build_encoder
from tasks.detectors.inctrl import InCTRLSettings
from tasks.detectors.load import build_detector
from tasks.detectors.metauas import MetaUASSettings
from tasks.detectors.settings import EncoderSettings
from tasks.detectors.weights import load_model
from tasks.ingestion.ingest import ingest_folder
from tasks.sampling.episodes import EpisodeFiles, read_pictures
from tasks.sampling.sample import sample
from tasks.sampling.settings import SamplingSettings, Use
from tasks.synthesis.settings import AugmentationSettings, SynthesisSettings
from tasks.synthesis.shards import read_index
from tasks.training.inctrl import AuxiliaryEvidence, InCTRLCourse, PairEvidence, Sides
from tasks.training.inctrl import train as train_inctrl
from tasks.training.loop import Examples, Places
from tasks.training.metauas import train as train_metauas
from tasks.training.pairs import Pairs
from tasks.training.settings import InCTRLTrainingSettings, TrainingSettings

DETECTOR = MetaUASSettings(resolution=64, decoder_channels=(16, 16, 16, 16, 16))
SETTINGS = TrainingSettings(epochs=2, batch_size=4, learning_rate=1e-3, schedule="cosine", log_every=3, checkpoint_every=2)


@pytest.fixture
def pairs(layout: Path) -> Path:
    kinds = {"local-region": 0.9, "none": 0.1}
    return make_pairs(
        layout, SynthesisSettings(pairs=40, pairs_per_shard=20, resolution=64, kinds=kinds, held_out=0.1), layout.parent / "pairs"
    )  # type: ignore[arg-type]


def train(pairs: Path, name: str, settings: TrainingSettings = SETTINGS, detector: MetaUASSettings = DETECTOR) -> Path:
    torch.set_num_threads(1)
    folder = pairs.parent / name
    train_metauas(
        detector, settings, examples=Examples(pairs, pairs / "none"), places=Places(folder, folder.with_suffix(".checkpoints")), workers=0
    )
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
    assert Pairs(pairs, rows, 64)[21][2].mean().item() == pytest.approx(rows[21].changed_area, abs=1e-6)


def test_training_writes_a_model_its_settings_and_a_log(pairs: Path) -> None:
    folder = train(pairs, "model")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "training_log.csv"]
    config = json.loads((folder / "config.json").read_text())
    assert config["detector"] == "metauas" and config["settings"]["resolution"] == 64 and config["examples"] == 36
    lines = log(folder)
    assert [line["step"] for line in lines] == ["3", "6", "9", "12", "15", "18"]
    assert [bool(line["held_out_loss"]) for line in lines] == [False, False, True, False, False, True]
    assert float(lines[-1]["learning_rate"]) == pytest.approx(0, abs=1e-9)


def test_the_loss_falls(pairs: Path) -> None:
    settings = TrainingSettings(epochs=12, batch_size=4, learning_rate=3e-3, log_every=9)
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
from tasks.training.loop import Examples, Places
from tasks.training.metauas import train as train_metauas
torch.set_num_threads(1)
folder = Path(sys.argv[3])
def report(share): print(f"at {share:.2f}", flush=True)
places = Places(folder, folder.with_suffix(".checkpoints"))
train_metauas(DETECTOR, SETTINGS, examples=Examples(Path(sys.argv[2]), Path("none")), places=places, workers=0, report=report)
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
    from tasks.training import checkpoint

    folder = pairs.parent / "model.checkpoints"
    folder.mkdir()
    torch.save({"fingerprint": "another", "step": 17}, folder / checkpoint.NAME)
    assert sha256(train(pairs, "model") / "model.safetensors") == sha256(train(pairs, "other") / "model.safetensors")


def test_too_few_pairs_are_told(pairs: Path) -> None:
    with pytest.raises(BadInput, match=r"training\.metauas: 36 examples do not fill one batch of 64; raise synthesis\.pairs"):
        train(pairs, "model", TrainingSettings(batch_size=64))


INCTRL = InCTRLSettings(encoder=EncoderSettings(), resolution=64, texts=False)
ON_PAIRS = InCTRLTrainingSettings(examples="pairs", epochs=12, batch_size=8, learning_rate=3e-3, schedule="cosine", log_every=4)


def train_on(pairs: Path, name: str, settings: InCTRLTrainingSettings, auxiliary: Path | None = None) -> Path:
    torch.set_num_threads(1)
    folder = pairs.parent / name
    places = Places(folder, folder.with_suffix(".checkpoints"))
    train_inctrl(INCTRL, settings, examples=Examples(pairs, auxiliary or pairs / "none"), places=places, workers=0)
    return folder


def scored(folder: Path, detector: MetaUASSettings | InCTRLSettings, queries: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    model = build_detector(detector, build_encoder(detector.encoder, 64))
    load_model(folder, model)
    with torch.inference_mode():
        return model.eval().score(queries, prompt)[0]


def test_inctrl_learns_from_pairs_and_is_the_same_twice(pairs: Path) -> None:
    first, second = train_on(pairs, "first", ON_PAIRS), train_on(pairs, "second", ON_PAIRS)
    lines = log(first)
    assert float(lines[-1]["loss"]) < 0.6 * float(lines[0]["loss"])
    assert sum(bool(line["held_out_loss"]) for line in lines) == 12
    assert sha256(first / "model.safetensors") == sha256(second / "model.safetensors")
    config = json.loads((first / "config.json").read_text())
    assert config["detector"] == "inctrl" and config["training"]["examples"] == "pairs" and config["examples"] == 36


def test_two_trainings_of_other_precision_follow_each_other(pairs: Path) -> None:
    train(pairs, "metauas", replace(SETTINGS, epochs=1, precision="bf16"))
    train_on(pairs, "inctrl", replace(ON_PAIRS, epochs=1, precision="no"))
    assert (pairs.parent / "inctrl" / "model.safetensors").is_file()


@pytest.mark.slow  # a minute of training
def test_a_query_equal_to_its_only_prompt_scores_lowest_of_its_set(layout: Path) -> None:
    """It holds for those that learn what a change is; the other detectors need no training to know."""
    # What forty pairs can teach: little geometry.
    augmentation, kinds = AugmentationSettings(rotation=5), {"local-region": 0.9, "none": 0.1}
    settings = SynthesisSettings(pairs=40, pairs_per_shard=20, resolution=64, kinds=kinds, augmentation=augmentation, apart=0.0)  # type: ignore[arg-type]
    pairs = make_pairs(layout, settings, layout.parent / "pairs")
    rows = sorted((row for row in read_index(pairs) if not row.swapped), key=lambda row: row.changed_area)[-6:]
    examples = [Pairs(pairs, rows, 64)[index] for index in range(len(rows))]
    # By the difference of features: concatenated, whether so small a training looks at its prompt differs from machine to machine.
    comparing = replace(DETECTOR, fusion="difference")
    metauas = train(pairs, "metauas", replace(SETTINGS, epochs=100, log_every=50, checkpoint_every=1000), comparing)
    inctrl = train_on(pairs, "inctrl", ON_PAIRS)
    for _query, prompt, _mask in examples[:3]:
        queries = torch.stack([prompt, *(query for query, _prompt, _mask in examples)])
        assert scored(metauas, comparing, queries, prompt[None]).argmin() == 0
        assert scored(inctrl, INCTRL, queries, prompt[None]).argmin() == 0


@pytest.fixture
def auxiliary(layout: Path) -> Path:
    """The small layout as a dataset with labels, in the file that sampling writes."""
    manifests, files = layout.parent / "manifests", EpisodeFiles.of(layout.parent / "episodes", "auxiliary")
    ingest_folder("parts", layout, licence="own", places=make_places(manifests), workers=1)
    other = layout.parent / "other"
    for number in range(2):
        for place in ("train/good", "test/good", "test/bad"):
            save(np.random.default_rng((number, len(place))).integers(0, 256, (64, 64), dtype=np.uint8), other / place / f"{number}.png")
    ingest_folder("other", other, licence="own", places=make_places(manifests), workers=1)
    use = Use(sources=(), targets=("other",), auxiliary=("parts",))
    sample(SamplingSettings(shots=(1,), seeds=(0,)), use, manifests=manifests, files=files)
    return files.auxiliary


def test_inctrl_learns_from_labelled_pictures_of_another_dataset(pairs: Path, auxiliary: Path) -> None:
    settings = InCTRLTrainingSettings(epochs=20, batch_size=8, learning_rate=3e-3, schedule="cosine", shots=2, held_out=0.0, log_every=2)
    first, second = (train_on(pairs, name, settings, auxiliary) for name in ("first", "second"))
    lines = log(first)
    assert float(lines[-1]["loss"]) < 0.6 * float(lines[0]["loss"]) and sha256(first / "model.safetensors") == sha256(
        second / "model.safetensors"
    )
    rows = read_pictures(auxiliary)
    bricks = [row for row in rows if row.category == "bricks"]
    prompts = [row.image for row in bricks if row.split == "train"][:2]
    queries = [row.image for row in bricks if row.split == "test"]
    scores = scored(first, INCTRL, pixels(queries, 64, torch.device("cpu")), pixels(prompts, 64, torch.device("cpu")))
    labels = torch.tensor([row.label for row in bricks if row.split == "test"])
    assert scores[labels == 1].min() > scores[labels == 0].max()


def test_prompts_are_normal_of_the_same_category_never_the_query_and_new_every_epoch(auxiliary: Path) -> None:
    rows = read_pictures(auxiliary)
    normal = [row for row in rows if row.split == "train" and row.label == 0]
    evidence = AuxiliaryEvidence(rows, normal, InCTRLTrainingSettings(shots=2), 64)
    assert len(evidence.labels) == len(rows) and sum(evidence.labels) == 4
    pool = [row.image for row in normal if row.category == "bricks"]
    drawn = [evidence._prompts(np.random.default_rng(seed), pool, pool[1]).tolist() for seed in range(20)]
    assert all(1 not in places and len(set(places)) == 2 for places in drawn) and len({tuple(places) for places in drawn}) > 1
    model = build_detector(INCTRL, build_encoder(INCTRL.encoder, 64)).eval()
    first, again, other = (torch.cat([part[0] for part in evidence.draw(model, epoch)]) for epoch in (0, 0, 1))  # type: ignore[arg-type]
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(BadInput, match="parts: category 'bricks' has 4 normal training pictures, too few to prompt each other with 4"):
        AuxiliaryEvidence(rows, normal, InCTRLTrainingSettings(shots=4), 64)


def test_inctrl_sees_the_artefact_in_the_query_whichever_role_it_has_in_the_pair(layout: Path) -> None:
    """The same pairs in either role, without geometry and light of their own, are the same evidence."""
    still = AugmentationSettings(rotation=0, shift=0, zoom=0, shear=0, light=0, hue=0)
    common = {"pairs": 8, "pairs_per_shard": 8, "resolution": 64, "kinds": {"local-region": 1.0}, "augmentation": still, "held_out": 0.0}
    model = build_detector(INCTRL, build_encoder(INCTRL.encoder, 64)).eval()
    drawn = []
    for share in (0.0, 1.0):
        folder = make_pairs(layout, SynthesisSettings(**common, swapped=share), layout.parent / f"pairs-{share}")  # type: ignore[arg-type]
        rows = read_index(folder)
        assert {row.swapped for row in rows} == {share == 1.0}
        evidence = PairEvidence(folder, rows, 64)
        assert set(evidence.labels) == {1}
        drawn.append(evidence.draw(model, 0)[0])  # type: ignore[arg-type]
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def test_every_batch_is_half_anomalous(pairs: Path) -> None:
    rows = read_index(pairs)
    evidence = PairEvidence(pairs, rows, 64)
    model = build_detector(INCTRL, build_encoder(INCTRL.encoder, 64))
    course = InCTRLCourse(model, INCTRL, InCTRLTrainingSettings(), Sides(evidence, None))  # type: ignore[arg-type]
    labels = np.array(evidence.labels)
    assert 0 < labels.mean() < 1 and labels.mean() != 0.5
    order = course.order(0)
    assert len(order) == len(rows) and labels[order[:8]].mean() == 0.5 and order != course.order(1) and order == course.order(0)


def test_examples_of_one_kind_alone_are_told(pairs: Path, auxiliary: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(auxiliary)
    pq.write_table(table.filter([label == 0 for label in table["label"].to_pylist()]), auxiliary)
    with pytest.raises(BadInput, match=r"training\.inctrl: its auxiliary are not both normal and anomalous"):
        train_on(pairs, "model", InCTRLTrainingSettings(batch_size=4, held_out=0.0), auxiliary)
