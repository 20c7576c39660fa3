"""Training: it learns, it is the same twice, and killed anywhere it ends with the model an undisturbed run gives."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_pairs, make_places, save
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torch.utils.data import TensorDataset, default_collate

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.tensors import read_tensors as pixels
from changepair.tasks.detectors.inctrl.settings import InCTRLSettings, InCTRLTrainingSettings
from changepair.tasks.detectors.inctrl.train import AuxiliaryEvidence, InCTRLTask, PairEvidence, Sides
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.registry import DETECTORS
from changepair.tasks.detectors.residual.settings import MetricResidualSettings
from changepair.tasks.detectors.residual.train import filled, ranking_loss
from changepair.tasks.detectors.store import create_detector, load_model
from changepair.tasks.detectors.train import train as train_inctrl
from changepair.tasks.detectors.train import train as train_metauas
from changepair.tasks.detectors.train import train as train_metric
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.sampling.episodes import EpisodeFiles, read_pictures
from changepair.tasks.sampling.sample import sample
from changepair.tasks.sampling.settings import SamplingSettings, Use
from changepair.tasks.synthesis.dataset import ChangePairs
from changepair.tasks.synthesis.settings import AugmentationSettings, SynthesisSettings
from changepair.tasks.synthesis.shards import read_index
from changepair.tasks.training.loop import (
    SCHEDULES,
    Examples,
    Trained,
    TrainingFolders,
    _Kept,
    constant,
    cosine,
    fit,
)
from changepair.tasks.training.settings import PairTrainingSettings, TrainingSettings
from changepair.tasks.training.task import DetectorTask
from changepair.tasks.training.tracking import IS_HERE, Tracking

DETECTOR = MetaUASSettings(resolution=64, decoder_channels=(16, 16, 16, 16, 16))
SYNTHESIS = SynthesisSettings(pairs=40, pairs_per_shard=20, resolution=64, kinds={"local-region": 0.9, "none": 0.1}, held_out=0.1)
SETTINGS = PairTrainingSettings(epochs=2, batch_size=4, learning_rate=1e-3, schedule="cosine", log_every=3, checkpoint_every=2)


@pytest.fixture
def pairs(layout: Path) -> Path:
    return make_pairs(layout, SYNTHESIS, layout.parent / "pairs")


def of(pairs: Path, auxiliary: Path | None = None) -> Examples:
    """What there is to learn from: pairs or labelled pictures."""
    return Examples(auxiliary or pairs, SYNTHESIS.augmentation)


def train(pairs: Path, name: str, settings: PairTrainingSettings = SETTINGS, detector: MetaUASSettings = DETECTOR) -> Path:
    torch.set_num_threads(1)
    folder = pairs.parent / name
    train_metauas(detector, settings, examples=of(pairs), places=TrainingFolders(folder, folder.with_suffix(".checkpoints")), workers=0)
    return folder


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "training_log.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_a_training_is_logged_to_trackers_and_is_the_same_without(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from accelerate.tracking import TensorBoardTracker
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def broken(*_arguments: object, **_more: object) -> None:
        raise OSError("no room")

    torch.set_num_threads(1)
    folder, tracking = pairs.parent / "tracked", Tracking(("tensorboard",), tmp_path / "board", "metauas")
    places = TrainingFolders(folder, folder.with_suffix(".checkpoints"), tracking)
    train_metauas(DETECTOR, SETTINGS, examples=of(pairs), places=places, workers=0)
    board = EventAccumulator(str(tmp_path / "board" / "metauas")).Reload()
    shown = {event.step: event.value for event in board.Scalars("loss")}
    lines = {int(line["step"]): float(line["loss"]) for line in log(folder)}
    assert shown == pytest.approx(lines, rel=1e-5) and len(lines) > 3 and board.Scalars("held_out_loss")
    assert (train(pairs, "untracked") / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(TensorBoardTracker, "log", broken)  # as where its disk is full
    monkeypatch.setattr(TensorBoardTracker, "finish", broken)
    again = pairs.parent / "again"
    places = TrainingFolders(again, again.with_suffix(".checkpoints"), tracking)
    train_metauas(DETECTOR, SETTINGS, examples=of(pairs), places=places, workers=0)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert capsys.readouterr().err.count("no room") == 1  # and is told no more
    monkeypatch.setitem(IS_HERE, "mlflow", lambda: False)
    with pytest.raises(BadInput, match=r"execution\.trackers: mlflow is not installed; run `pip install mlflow`"):
        train_metauas(DETECTOR, SETTINGS, examples=of(pairs), places=replace(places, tracking=Tracking(("mlflow",))), workers=0)


def test_pairs_come_as_the_shards_hold_them(pairs: Path) -> None:
    from changepair.tasks.synthesis.shards import read_index

    rows = read_index(pairs)
    for resolution in (64, 32):
        query, prompt, mask = ChangePairs(pairs, resolution, rows=rows)[21]
        assert query.shape == prompt.shape == (3, resolution, resolution) and mask.shape == (resolution, resolution)
        assert query.min() >= 0 and query.max() <= 1 and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert ChangePairs(pairs, 64, rows=rows)[21][2].mean().item() == pytest.approx(rows[21].changed_area, abs=1e-6)


def test_training_writes_a_model_its_settings_and_a_log(pairs: Path) -> None:
    folder = train(pairs, "model")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "training_log.csv"]
    config = json.loads((folder / "config.json").read_text())
    assert config["detector"] == "metauas" and config["settings"]["resolution"] == 64 and config["examples"] == 36
    lines = log(folder)
    assert [line["step"] for line in lines] == ["3", "6", "9", "12", "15", "18"]
    assert [bool(line["held_out_loss"]) for line in lines] == [False, False, True, False, False, True]
    assert float(lines[-1]["learning_rate"]) == pytest.approx(0, abs=1e-9)


def test_the_ranking_loss_is_that_of_every_couple_of_one_that_changed_and_one_that_did_not() -> None:
    scores, changed = torch.tensor([2.0, 1.0, 0.5, 3.0]), torch.tensor([0.9, 0.0, 0.0, 0.2])
    couples = [(2.0, 1.0), (2.0, 0.5)]  # the last changed too little to be seen
    expected = np.mean([np.log1p(np.exp(-(high - low))) for high, low in couples])
    assert float(ranking_loss(scores, changed)) == pytest.approx(expected, abs=1e-6)
    assert float(ranking_loss(scores[:1], changed[:1])) == 0.0
    masks = torch.zeros(2, 16, 16)
    masks[0, 8:12, 8:16] = 1
    assert filled(masks, 8).tolist() == [0.5, 0.0]


@pytest.mark.parametrize(("compiles", "rate"), [(False, 1e-3), pytest.param(True, 1e-4, marks=pytest.mark.slow)])
def test_over_50_steps_the_losses_are_those_of_a_plain_loop(pairs: Path, compiles: bool, rate: float) -> None:
    """PyTorch's own parts, one line after the other, in float32. Compiled, sums are rounded in another order, and a step that is ten times
    as long carries that ten times as far."""
    compiler = torch._dynamo.utils.counters["frames"]
    before = compiler["ok"]
    settings = PairTrainingSettings(
        epochs=6, batch_size=4, learning_rate=rate, log_every=1, precision="no", largest_gradient=1.0, compile=compiles
    )
    lines = log(train(pairs, "model", settings))
    assert (compiler["ok"] > before) == compiles
    torch.manual_seed(settings.seed)
    model = create_detector(DETECTOR, build_encoder(DETECTOR.encoder, 64)).train()
    training = ChangePairs(pairs, 64, held_out=False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=rate, weight_decay=5e-4)
    losses = []
    for epoch in range(settings.epochs):
        order = generator(settings.seed, "epoch", epoch).permutation(len(training))
        for start in range(0, len(order) - 3, 4):
            query, prompt, mask = default_collate([training[int(place)] for place in order[start : start + 4]])
            loss = nn.functional.binary_cross_entropy_with_logits(model(query, prompt), mask)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss))
    assert len(lines) == len(losses) == 54
    assert [float(line["loss"]) for line in lines] == pytest.approx(losses, abs=1e-4)


def test_a_metric_learns_to_rank(pairs: Path) -> None:
    """The couples that it ranks wrongly become fewer, on the pairs that it learns from."""
    detector = MetricResidualSettings(resolution=64)
    settings = PairTrainingSettings(epochs=6, batch_size=12, learning_rate=0.05, log_every=3, weight_decay=0.0)
    folder = pairs.parent / "metric"
    train_metric(detector, settings, examples=of(pairs), places=TrainingFolders(folder, folder.with_suffix(".checkpoints")), workers=0)
    learned = ChangePairs(pairs, 64, held_out=False)
    query, prompt, mask = (torch.stack(part) for part in zip(*(learned[place] for place in range(len(learned))), strict=True))
    share, losses = filled(mask, 8), []
    assert (share > 0.5).any() and (share == 0).any()
    for learnt in (False, True):
        model = create_detector(detector, build_encoder(detector.encoder, 64))
        if learnt:
            load_model(folder, model)
        with torch.inference_mode():
            losses.append(float(ranking_loss(model(query, prompt), share)))
    assert losses[1] < 0.9 * losses[0]


def test_the_loss_falls(pairs: Path) -> None:
    settings = PairTrainingSettings(epochs=12, batch_size=4, learning_rate=3e-3, log_every=9)
    losses = [float(line["loss"]) for line in log(train(pairs, "model", settings))]
    assert losses[-1] < 0.6 * losses[0]


def test_the_same_training_twice_gives_the_same_bytes(pairs: Path) -> None:
    first, second = train(pairs, "first"), train(pairs, "second")
    assert sha256(first / "model.safetensors") == sha256(second / "model.safetensors")
    assert sha256(first / "training_log.csv") == sha256(second / "training_log.csv")


KILLED = """
import sys, torch
from pathlib import Path
sys.path[:0] = sys.argv[1].split(":")
from test_training import DETECTOR, SETTINGS, of
from changepair.tasks.training.loop import TrainingFolders
from changepair.tasks.detectors.train import train as train_metauas
torch.set_num_threads(1)
folder = Path(sys.argv[3])
def report(share): print(f"at {share:.2f}", flush=True)
places = TrainingFolders(folder, folder.with_suffix(".checkpoints"))
train_metauas(DETECTOR, SETTINGS, examples=of(Path(sys.argv[2])), places=places, workers=0, report=report)
"""


def test_killed_midway_it_goes_on_and_ends_with_the_same_bytes(pairs: Path) -> None:
    undisturbed = train(pairs, "undisturbed")
    command = [
        sys.executable,
        "-c",
        KILLED,
        ":".join(map(str, (ROOT / "tests", ROOT / "tests/support", Path(__file__).parent))),
        str(pairs),
        str(pairs.parent / "killed"),
    ]
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


class Line(nn.Linear):
    """A task of one weight: it learns to give 1, and is measured on giving 0."""

    name = "line"
    __module__ = DetectorTask.__module__  # a checkpoint is named by the code of its task's module, and a test is none of the project's

    def __init__(self, held_out: bool = True) -> None:
        super().__init__(1, 1, bias=False)
        self.weight.data.zero_()
        self.measures = held_out

    @property
    def model(self) -> nn.Module:
        return self

    def batches(self, epoch: int) -> list[list[int]]:
        return [[0, 1]] * 3

    def examples(self, epoch: int) -> TensorDataset:
        return TensorDataset(torch.ones(2, 1), torch.ones(2, 1))

    def example(self, place: int) -> str:
        return f"example {place}"

    def held_out(self) -> TensorDataset | None:
        return TensorDataset(torch.ones(1, 1), torch.zeros(1, 1)) if self.measures else None

    def collate(self, examples: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        return tuple(default_collate(examples))

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return ((model(batch[0]) - batch[1]) ** 2).mean()

    def save(self, folder: Path, model: nn.Module) -> None:
        torch.save(model.state_dict(), folder / "line.pt")


def fitted(folder: Path, settings: TrainingSettings, task: Line | None = None) -> tuple[Trained, float]:
    """A task of one weight, taken; and the weight that is kept."""
    folder.mkdir(exist_ok=True)
    places = TrainingFolders(folder, folder / "checkpoints")
    trained = fit(task or Line(), settings, places, inputs={}, workers=0, report=lambda share: None)
    return trained, float(torch.load(folder / "line.pt", weights_only=True)["weight"])


LINE = TrainingSettings(epochs=6, batch_size=2, learning_rate=0.01, weight_decay=0.0, precision="no")


def test_the_best_epoch_is_kept_and_training_ends_when_none_gets_better(tmp_path: Path) -> None:
    """It is better the less it has learnt, so the first epoch is the best."""
    last, weight = fitted(tmp_path / "last", LINE)
    assert last.steps == 18 and last.epoch == 5 and weight == pytest.approx(0.18, rel=0.05)
    best, first = fitted(tmp_path / "best", replace(LINE, keep="best"))
    assert best.steps == 18 and best.epoch == 0 and first == pytest.approx(0.03, rel=0.01)
    assert best.held_out_loss == pytest.approx(first**2, rel=1e-3)
    patient, same = fitted(tmp_path / "patient", replace(LINE, keep="best", patience=2))
    assert patient.steps == 9 and patient.epoch == 0 and same == first
    with pytest.raises(BadInput, match=r"training\.line: keep: best and patience need held-out examples, but there are none"):
        fitted(tmp_path / "none", replace(LINE, patience=2), Line(held_out=False))


def test_the_running_mean_of_the_weights_is_what_is_kept(tmp_path: Path) -> None:
    """Adam moves one weight, with a gradient of one sign, by the learning rate a step; the mean begins with the first step's weight."""
    weights = [0.01 * step for step in range(1, 19)]
    mean = weights[0]
    for weight in weights[1:]:
        mean = 0.8 * mean + 0.2 * weight
    _trained, kept = fitted(tmp_path, replace(LINE, average=0.8))
    assert kept == pytest.approx(mean, rel=0.05) and kept < 0.9 * weights[-1]


def test_statistics_of_batches_are_averaged_with_the_weights() -> None:
    network = nn.BatchNorm1d(1, momentum=1.0)
    kept = _Kept(network, 0.75)
    for value in (4.0, 8.0):
        network(torch.full((2, 1), value))
        kept.update()
    assert kept.model is not network and float(kept.model.running_mean) == pytest.approx(0.75 * 4 + 0.25 * 8)


class Bad(Line):
    """Its loss is what the test says from a step on."""

    __module__ = Line.__module__

    def __init__(self, wrong: Callable[[torch.Tensor], torch.Tensor], after: int = 4) -> None:
        super().__init__()
        self.wrong, self.left = wrong, after

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        loss = super().loss(model, batch)
        self.left -= self.training
        return loss if self.left >= 0 or not self.training else self.wrong(loss)


@pytest.mark.parametrize(
    ("wrong", "after", "told"),
    [
        (lambda loss: loss * float("nan"), 4, "step 5: the loss is not a number"),
        (lambda loss: loss + (0 * loss).sqrt(), 4, "step 5: the gradients are not numbers"),  # the slope of a root at 0
        (lambda loss: 1e6 * loss, 120, r"step 121: the gradients exploded \(norm .*, median .*\)"),
    ],
)
def test_a_step_that_goes_wrong_stops_with_the_step_the_examples_and_the_weights(
    wrong: Callable[[torch.Tensor], torch.Tensor], after: int, told: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=rf"training\.line: {told}; lower learning_rate.* batch \(example 0, example 1\) "):
        fitted(tmp_path, replace(LINE, epochs=60, learning_rate=1e-4), Bad(wrong, after))
    kept = torch.load(tmp_path / "checkpoints" / "failed.pt", weights_only=True)
    assert kept["step"] == after + 1 and kept["examples"] == ["example 0", "example 1"] and len(kept["batch"]) == 2
    assert float(kept["trained"]["weight"]) == pytest.approx(1e-4 * after, rel=0.01)  # of before the step
    assert not (tmp_path / "line.pt").exists()


@pytest.mark.slow
def test_of_a_compiled_training_a_failed_step_is_kept_by_the_networks_own_names(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the loss is not a number"):
        fitted(tmp_path, replace(LINE, epochs=60, learning_rate=1e-4, compile=True), Bad(lambda loss: loss * float("nan")))
    kept = torch.load(tmp_path / "checkpoints" / "failed.pt", weights_only=True)
    assert set(kept["trained"]) == {"weight"}


class Large(Line):
    """It takes no more examples at once than memory has room for."""

    __module__ = Line.__module__

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.seen: list[int] = []

    def batches(self, epoch: int) -> list[list[int]]:
        return [list(range(7))] * 3

    def examples(self, epoch: int) -> TensorDataset:
        return TensorDataset(torch.arange(7.0)[:, None], torch.arange(7.0)[:, None] ** 2)

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if self.training:
            self.seen.append(len(batch[0]))
            if len(batch[0]) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(model, batch)


def test_a_batch_that_does_not_fit_is_taken_in_parts_to_the_same_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, weight = fitted(tmp_path / "whole", LINE, Large(7))
    task = Large(2)
    parted, same = fitted(tmp_path / "parted", LINE, task)
    assert same == pytest.approx(weight, abs=1e-6) and parted.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (whole.parts, parted.parts) == (1, 4) and task.seen[:6] == [7, 4, 2, 2, 2, 1]
    told = capsys.readouterr().err
    assert "a batch of 7 does not fit into memory; splitting into 2 parts" in told and "into 4 parts" in told
    with pytest.raises(BadInput, match=r"training\.line\.resolution: one example does not fit into memory; lower it"):
        fitted(tmp_path / "none", LINE, Large(0))


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_schedules_are_pytorchs(schedule: str) -> None:
    weight, steps = nn.Parameter(torch.zeros(1)), 40
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs: LRScheduler = CosineAnnealingLR(optimizer, steps)
    if schedule == "one-cycle":
        # It counts to the last step, where ours counts to the step after; it is highest at pct_start times its steps less one.
        theirs = OneCycleLR(optimizer, max_lr=1.0, total_steps=steps + 1, pct_start=13 / 41, final_div_factor=1e9, cycle_momentum=False)
    for step in range(steps):
        assert SCHEDULES[schedule](step, steps) == pytest.approx(theirs.get_last_lr()[0], abs=1e-5)
        optimizer.step()
        theirs.step()


def test_a_warm_up_rises_evenly_to_the_schedule() -> None:
    assert [constant(step, 20, warm_up=0.2) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert cosine(10, 20, warm_up=0.2) == cosine(10, 20)


def test_training_starts_from_a_model_that_is_given(pairs: Path) -> None:
    longer = replace(SETTINGS, epochs=12, learning_rate=3e-3)
    first = train(pairs, "first", longer)
    again = train(pairs, "again", replace(SETTINGS, init=str(first)))
    assert float(log(again)[0]["loss"]) < 0.7 * float(log(first)[0]["loss"])
    with pytest.raises(BadInput, match="does not fit the detector's settings"):
        train(pairs, "other", replace(SETTINGS, init=str(first)), replace(DETECTOR, fusion="difference"))
    with pytest.raises(BadInput, match=r"nowhere/model\.safetensors: no such file"):
        train(pairs, "other", replace(SETTINGS, init="nowhere"))


def test_a_checkpoint_of_another_training_is_not_gone_on_from(pairs: Path) -> None:
    from changepair.tasks.training import checkpoint

    folder = pairs.parent / "model.checkpoints"
    folder.mkdir()
    torch.save({"fingerprint": "another", "step": 17}, folder / checkpoint.NAME)
    assert sha256(train(pairs, "model") / "model.safetensors") == sha256(train(pairs, "other") / "model.safetensors")


def test_too_few_pairs_are_told(pairs: Path) -> None:
    with pytest.raises(BadInput, match=r"training\.model\.batch_size: 36 examples do not fill a batch of 64; lower it"):
        train(pairs, "model", PairTrainingSettings(batch_size=64))


INCTRL = InCTRLSettings(encoder=EncoderSettings(), resolution=64, texts=False)
ON_PAIRS = InCTRLTrainingSettings(examples="pairs", epochs=12, batch_size=8, learning_rate=3e-3, schedule="cosine", log_every=4)


def train_on(pairs: Path, name: str, settings: InCTRLTrainingSettings, auxiliary: Path | None = None) -> Path:
    torch.set_num_threads(1)
    folder = pairs.parent / name
    places = TrainingFolders(folder, folder.with_suffix(".checkpoints"))
    train_inctrl(INCTRL, settings, examples=of(pairs, auxiliary), places=places, workers=0)
    return folder


def scored(folder: Path, detector: MetaUASSettings | InCTRLSettings, queries: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    model = create_detector(detector, build_encoder(detector.encoder, 64))
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


@pytest.mark.slow
@pytest.mark.parametrize("which", ["metric-residual", "metric-residual, scales", "prompt-query", "uniadet", "inctrl"])
def test_every_training_is_the_same_compiled(pairs: Path, which: str) -> None:
    """(Of MetaUAS it is shown above, against a plain loop.)"""
    losses = []
    for compiles in (False, True):
        folder = pairs.parent / f"{which}-{compiles}"
        if which == "inctrl":
            train_on(pairs, folder.name, replace(ON_PAIRS, epochs=2, learning_rate=1e-4, compile=compiles))
        else:
            kind, _, scales = which.partition(", ")
            encoder = EncoderSettings(scales=(1.0, 0.4, 0.3) if scales else (1.0,))
            settings = replace(SETTINGS, batch_size=12, learning_rate=1e-4, precision="no", compile=compiles)
            places = TrainingFolders(folder, folder.with_suffix(".checkpoints"))
            train_metric(DETECTORS[kind].settings(encoder=encoder, resolution=64), settings, examples=of(pairs), places=places, workers=0)
        losses.append([float(line["loss"]) for line in log(folder)])
    assert len(losses[0]) >= 2 and losses[0] == pytest.approx(losses[1], abs=1e-4)


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
    examples = [ChangePairs(pairs, 64, rows=rows)[index] for index in range(len(rows))]
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
    ingest_folder("parts", layout, licence="own", places=make_places(manifests))
    other = layout.parent / "other"
    for number in range(2):
        for place in ("train/good", "test/good", "test/bad"):
            save(np.random.default_rng((number, len(place))).integers(0, 256, (64, 64), dtype=np.uint8), other / place / f"{number}.png")
    ingest_folder("other", other, licence="own", places=make_places(manifests))
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
    evidence = AuxiliaryEvidence(rows, normal, InCTRLTrainingSettings(shots=2), InCTRLSettings(resolution=64))
    assert len(evidence.labels) == len(rows) and sum(evidence.labels) == 4
    pool = [row.image for row in normal if row.category == "bricks"]
    drawn = [evidence._prompts(np.random.default_rng(seed), pool, pool[1]).tolist() for seed in range(20)]
    assert all(1 not in places and len(set(places)) == 2 for places in drawn) and len({tuple(places) for places in drawn}) > 1
    model = create_detector(INCTRL, build_encoder(INCTRL.encoder, 64)).eval()
    first, again, other = (torch.cat([part[0] for part in evidence.draw(model, epoch)]) for epoch in (0, 0, 1))  # type: ignore[arg-type]
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(BadInput, match="parts: category 'bricks' has 4 normal training pictures, too few for 4"):
        AuxiliaryEvidence(rows, normal, InCTRLTrainingSettings(shots=4), InCTRLSettings(resolution=64))


def test_inctrl_sees_the_artefact_in_the_query_whichever_role_it_has_in_the_pair(layout: Path) -> None:
    """The same pairs in either role, without geometry and light of their own, are the same evidence."""
    still = AugmentationSettings(rotation=0, shift=0, zoom=0, shear=0, light=0, hue=0)
    common = {"pairs": 8, "pairs_per_shard": 8, "resolution": 64, "kinds": {"local-region": 1.0}, "augmentation": still, "held_out": 0.0}
    common["apart"] = 0.0  # of two crops the query is the one with the artefact, always
    model = create_detector(INCTRL, build_encoder(INCTRL.encoder, 64)).eval()
    drawn = []
    for share in (0.0, 1.0):
        folder = make_pairs(layout, SynthesisSettings(**common, swapped=share), layout.parent / f"pairs-{share}")  # type: ignore[arg-type]
        rows = read_index(folder)
        assert {row.swapped for row in rows} == {share == 1.0}
        evidence = PairEvidence(folder, rows, 64)
        assert set(evidence.labels) == {1}
        drawn.append(evidence.draw(model, 0)[0])  # type: ignore[arg-type]
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def test_more_views_of_a_prompt_leave_a_pair_less_residual_and_one_is_the_prompt_as_it_came(pairs: Path) -> None:
    """The first view is the prompt itself, so of each patch's nearest there can only be a nearer."""
    rows = read_index(pairs)
    model = create_detector(INCTRL, build_encoder(INCTRL.encoder, 64)).eval()
    one, again, two, four = (
        [torch.cat(parts) for parts in zip(*PairEvidence(pairs, rows, 64, views).draw(model, 0), strict=True)]  # type: ignore[arg-type]
        for views in ((1,), (1,), (2,), (4,))
    )
    assert one[2].shape[1] == 1 and four[2].shape[1] == 4 and all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert (two[0] <= one[0] + 1e-6).all() and (four[0] <= two[0] + 1e-6).all() and four[0].mean() < two[0].mean() < one[0].mean()
    assert torch.allclose(one[2][:, 0], four[2][:, 0], atol=1e-5) and not torch.allclose(four[2][:, 1], four[2][:, 0], atol=1e-3)


def test_every_batch_is_half_anomalous(pairs: Path) -> None:
    rows = read_index(pairs)
    evidence = PairEvidence(pairs, rows, 64)
    model = create_detector(INCTRL, build_encoder(INCTRL.encoder, 64))
    task = InCTRLTask("inctrl", model, INCTRL, InCTRLTrainingSettings(), Sides(evidence, None))  # type: ignore[arg-type]
    labels = np.array(evidence.labels)
    assert 0 < labels.mean() < 1 and labels.mean() != 0.5
    order = task.order(0)
    assert len(order) == len(rows) and labels[order[:8]].mean() == 0.5 and order != task.order(1) and order == task.order(0)


def test_examples_of_one_kind_alone_are_told(pairs: Path, auxiliary: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(auxiliary)
    pq.write_table(table.filter([label == 0 for label in table["label"].to_pylist()]), auxiliary)
    with pytest.raises(BadInput, match=r"training\.model: its auxiliary need both normal and anomalous pictures"):
        train_on(pairs, "model", InCTRLTrainingSettings(batch_size=4, held_out=0.0), auxiliary)
