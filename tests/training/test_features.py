"""Maps of pairs that are encoded once and stored: they are the encoder's, and change no byte of a trained model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_pairs
from torch.utils.data import DataLoader

from changepair.flows.settings.pipelines import Execution
from changepair.flows.train import Train, train_detector
from changepair.tasks.common.files import sha256
from changepair.tasks.detectors.metauas.model import MetaUAS
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.detectors.train import train
from changepair.tasks.synthesis.dataset import ChangePairs
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.training.features import EncodedPairs
from changepair.tasks.training.loop import Examples, TrainingFolders
from changepair.tasks.training.processes import Job
from changepair.tasks.training.settings import PairTrainingSettings

DETECTOR = MetaUASSettings(resolution=64, aligned_stages=2, decoder_channels=(16, 16, 16, 16, 16))
SYNTHESIS = SynthesisSettings(pairs=14, pairs_per_shard=7, resolution=64, kinds={"local-region": 0.9, "none": 0.1}, held_out=0.15)
SETTINGS = PairTrainingSettings(epochs=3, batch_size=4, learning_rate=1e-3, log_every=2, checkpoint_every=1, average=0.5)
ALL = 2**30  # bytes, for more than all pairs


@pytest.fixture
def pairs(layout: Path) -> Path:
    torch.set_num_threads(1)
    return make_pairs(layout, SYNTHESIS, layout.parent / "pairs")


def network() -> MetaUAS:
    detector = create_detector(DETECTOR)
    assert isinstance(detector, MetaUAS)
    return detector


class Interrupted(Exception):
    pass


def trained(pairs: Path, room: int, stops_at: float = 2.0) -> tuple[str, str]:
    """Train. Return the hashes of the model and the log. `stops_at` is the share of the steps after which the training is interrupted."""
    folder = pairs.parent / f"{room}"

    def report(share: float) -> None:
        if share >= stops_at:
            raise Interrupted

    places = TrainingFolders(folder, folder.with_suffix(".checkpoints"), room=room)
    train(DETECTOR, SETTINGS, examples=Examples(pairs, SYNTHESIS.augmentation), places=places, workers=0, report=report)
    assert not places.checkpoints.exists()
    return sha256(folder / "model.safetensors"), sha256(folder / "training_log.csv")


@pytest.mark.parametrize("room", [0, 200_000, ALL])
def test_stored_maps_and_masks_are_those_of_the_encoder(pairs: Path, room: int, tmp_path: Path) -> None:
    detector, pictures, places = network(), ChangePairs(pairs, 64), tmp_path / "checkpoints"
    encoded = EncodedPairs(pictures, detector.encode_pairs, places, room)
    for order in ([3, 0, 8], [8, 3, 1, 2, 0], [5]):  # known and new pairs in one batch, and batches of several sizes
        [batch] = DataLoader(encoded, batch_sampler=[order], collate_fn=lambda batch: batch)
        for row, index in enumerate(order):
            query, prompt, mask = (part[None] for part in pictures[index])
            expected = [*detector.encoder(query, first=True), *detector.encoder(prompt, first=True)[3:], mask]
            assert len(expected) == len(batch) == 5 + 2 + 1
            assert all(torch.equal(part[row], alone[0]) for part, alone in zip(batch, expected, strict=True))
            assert all(torch.equal(part, alone[0]) for part, alone in zip(encoded[index], expected, strict=True))
        assert all(part.is_contiguous(memory_format=torch.channels_last) for part in batch[:-1])
    assert len(encoded) == 14 and not list(places.iterdir())  # the file has no name, so it cannot remain


def test_a_stored_pair_is_neither_read_nor_encoded_again(pairs: Path, tmp_path: Path) -> None:
    read: list[int] = []

    class Pairs(ChangePairs):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            read.append(index)
            return super().__getitem__(index)

    detector = network()
    first = EncodedPairs(Pairs(pairs, 64), detector.encode_pairs, tmp_path, ALL)[0]
    size = sum(part.numel() * part.element_size() for part in first)
    for room, again in ((ALL, []), (2 * size, [2]), (2 * size - 1, [1, 2]), (0, [0, 1, 2])):
        encoded = EncodedPairs(Pairs(pairs, 64), detector.encode_pairs, tmp_path, room)
        encoded.__getitems__([0, 1, 2])
        read.clear()
        encoded.__getitems__([0, 1, 2])
        assert read == again


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_changes_no_batch(pairs: Path, tmp_path: Path) -> None:
    pictures, detector = ChangePairs(pairs, 64), network()
    encoded, expected = (EncodedPairs(pictures, detector.encode_pairs, tmp_path, room) for room in (ALL, 0))
    with Path("/dev/full").open("r+b", buffering=0) as full:
        encoded._file = full
        for _time in range(2):
            assert all(map(torch.equal, encoded.__getitems__([0, 1]), expected.__getitems__([0, 1])))
    assert encoded.room == 0


def test_a_model_depends_neither_on_the_room_nor_on_an_interruption(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, encoded = MetaUAS.encode_pairs, [0]

    def counted(self: MetaUAS, queries: torch.Tensor, prompts: torch.Tensor) -> list[torch.Tensor]:
        encoded[-1] += len(queries)
        return plain(self, queries, prompts)

    monkeypatch.setattr(MetaUAS, "encode_pairs", counted)
    without = trained(pairs, 0)
    for room in (1_000_000, ALL):
        encoded.append(0)
        assert trained(pairs, room) == without
    assert encoded[0] == 3 * (8 + 3)  # in three epochs: two batches, and the held-out pairs
    assert 14 >= encoded[2] < encoded[1] < encoded[0]
    for room in (ALL + 1, 1_000_001):
        with pytest.raises(Interrupted):
            trained(pairs, room, stops_at=0.5)  # in the second of three epochs
        assert trained(pairs, room) == without


def test_the_file_takes_at_most_a_quarter_of_the_free_disk(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=4000)
    monkeypatch.setattr("changepair.tasks.training.features.disk_usage", lambda folder: usage)
    rooms = [EncodedPairs(ChangePairs(pairs, 64), network().encode_pairs, tmp_path, room).room for room in (ALL, 999)]
    assert rooms == [1000, 999]


@pytest.mark.parametrize(("gib", "processes", "room"), [(4.0, 1, 2**32), (0.5, 2, 2**28), (0, 1, 0)])
def test_the_setting_is_shared_by_the_processes_of_a_training(
    gib: float, processes: int, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr("changepair.tasks.training.processes.train", lambda job, count, report: jobs.append(job))
    monkeypatch.setattr("changepair.flows.running.steps.progress", lambda title: None)
    stage = Train("line", "metauas", tmp_path, [], {"metauas": DETECTOR}, SETTINGS, SYNTHESIS.augmentation, tmp_path / "metauas")
    train_detector(stage, Execution(cached_features=gib, processes=processes))
    assert jobs[0].places.room == room
