"""Weights and model folders that are damaged or hostile: read to the tensor, or refused in one line; nothing in them runs."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hostile import ODD, attack, changed, damaged
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn

from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.store import load_model, read_config, settings_as_json
from changepair.tasks.encoders.weights import read_weights
from changepair.tasks.prediction.files import KIT_NAME
from changepair.tasks.prediction.predictor import Predictor
from changepair.tasks.training.checkpoint import NAME, Progress, resume, save

pytestmark = pytest.mark.attack
FLAG = "CHANGEPAIR_RAN"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


class Payload:
    def __reduce__(self) -> Any:
        return os.putenv, (FLAG, "yes")


def as_pt(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def read(data: bytes, folder: Path, name: str = "x.pt") -> dict[str, Tensor]:
    file = folder / name
    file.write_bytes(data)
    try:
        return read_weights(file)
    except BadInput as error:
        assert "weights_only" not in str(error)
        raise


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_are_damaged(suffix: str, tmp_path: Path) -> None:
    own = model().state_dict()
    whole = as_pt(own) if suffix == ".pt" else as_safetensors(dict(own))
    attack(f"weights, {suffix}, damaged", lambda draw: damaged(whole, draw), lambda data: read(data, tmp_path, f"x{suffix}"))


def test_nothing_in_weights_runs(tmp_path: Path) -> None:
    inner = ({"a": Payload()}, [Payload()], Payload(), {"state_dict": {"a": Payload()}}, {"a": torch.zeros(2), "b": Payload()})

    def draw(random_: random.Random) -> bytes:
        content = random_.choice(inner)
        return random_.choice((lambda: as_pt(content), lambda: pickle.dumps(content, random_.randrange(6))))()

    def attempt(data: bytes) -> None:
        read(data, tmp_path)
        raise AssertionError("it was read")

    attack("weights, hostile", draw, attempt)
    assert FLAG not in os.popen("env").read()


@pytest.mark.filterwarnings("ignore:.*the training starts from the beginning")
def test_a_checkpoint_that_is_damaged_is_gone_on_from_or_begun_anew(tmp_path: Path) -> None:
    own = model()
    optimizer = torch.optim.AdamW(own.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    save(tmp_path, "mine", own, optimizer, schedule, Progress(7, [0.5], [], None))
    whole = (tmp_path / NAME).read_bytes()

    def attempt(data: bytes) -> None:
        (tmp_path / NAME).write_bytes(data)
        assert resume(tmp_path, "mine", own, optimizer, schedule).step in (0, 7)

    attack("checkpoints, cut off", lambda draw: whole[: draw.randrange(len(whole))], attempt)
    attempt(whole)


def test_what_does_not_fit_a_model_is_refused(tmp_path: Path) -> None:
    """Another type too: whole numbers in the place of others are no weights, whatever they become when they are cast."""
    own = model()

    def draw(random_: random.Random) -> dict[str, Tensor]:
        tensors = {name: tensor.clone() for name, tensor in model().state_dict().items()}
        name = random_.choice(list(tensors))
        match random_.choice(("type", "shape", "gone", "more", "none")):
            case "type":
                tensors[name] = tensors[name].to(random_.choice([torch.float16, torch.int32, torch.float64, torch.bool, torch.uint8]))
            case "shape":
                tensors[name] = tensors[name][None]
            case "gone":
                del tensors[name]
            case "more":
                tensors["another"] = torch.zeros(1)
        return tensors

    def attempt(tensors: dict[str, Tensor]) -> None:
        (tmp_path / "model.safetensors").write_bytes(as_safetensors(tensors))
        load_model(tmp_path, own)
        assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in tensors.items())

    attack("weights, that do not fit", draw, attempt)


def test_a_model_folders_settings(tmp_path: Path) -> None:
    whole = {"detector": "metauas", "settings": settings_as_json(MetaUASSettings())}
    text = json.dumps(whole).encode()

    def draw(random_: random.Random) -> bytes:
        if random_.random() < 0.4:
            return damaged(text, random_)
        return (
            json.dumps(changed(json.loads(text), random_)).encode() if random_.random() < 0.9 else json.dumps(random_.choice(ODD)).encode()
        )

    def attempt(data: bytes) -> None:
        (tmp_path / "config.json").write_bytes(data)
        read_config(tmp_path)

    attack("model folders, settings", draw, attempt)


def test_a_kit(tmp_path: Path) -> None:
    """kit.json is no part of what its hashes cover. What is read scores, and its threshold is one."""
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(12)]
    predictor = Predictor.load("patch-residual").prompt(pictures[:2])
    predictor.calibrate(pictures[2:], false_alarms=0.1)
    kit = tmp_path / "kit"
    predictor.save(kit)
    whole = (kit / KIT_NAME).read_bytes()

    def spoilt(random_: random.Random) -> bytes:
        match random_.choice(("bytes", "values", "values", "values", "deep")):
            case "bytes":
                return damaged(whole, random_)
            case "deep":
                return b"[" * 100_000
        return json.dumps(changed(json.loads(whole), random_)).encode()

    def attempt(data: bytes) -> None:
        (kit / KIT_NAME).write_bytes(data)
        read = Predictor.load(kit)
        [score] = read(pictures[2:3]).scores
        assert math.isfinite(score) and (read.threshold is None or math.isfinite(read.threshold.value))

    attack("kits", spoilt, attempt)


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/etc", "local-dir:../../elsewhere"])
@pytest.mark.parametrize("key", ["encoder", "prior"])
def test_a_kit_and_a_model_folder_name_nothing_outside_them(name: str, key: str, tmp_path: Path) -> None:
    """Nothing is opened but their own files, and no connection is begun."""
    kit = tmp_path / "kit"
    Predictor.load("patch-residual").prompt(np.zeros((64, 64, 3), np.uint8)).save(kit)
    content = json.loads((kit / KIT_NAME).read_text())
    if key == "prior":
        content["detector"], content["settings"] = "metauas+", {"metauas+": {}, "metauas": {}}
        content["settings"]["metauas+"]["prior"] = {"library": "open_clip", "name": name, "weights": "hub"}
    else:
        content["settings"]["patch-residual"]["encoder"] = {"library": "open_clip", "name": name, "weights": "hub"}
    (kit / KIT_NAME).write_text(json.dumps(content))
    folder = tmp_path / "model"
    folder.mkdir()
    settings = settings_as_json(MetaUASSettings()) | {"encoder": {"library": "open_clip", "name": name, "weights": "hub"}}
    (folder / "config.json").write_text(json.dumps({"detector": "metauas", "settings": settings}))
    touched: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and (event in ("socket.connect", "socket.getaddrinfo") or (event == "open" and not str(arguments[0]).startswith(ours))):
            touched.append(f"{event} {arguments}")

    ours, watching = (str(tmp_path), sys.prefix, sys.base_prefix, str(ROOT)), True
    sys.addaudithook(watch)
    for place in (kit, folder):
        with pytest.raises(BadInput, match="may only name networks that an installed library has") as error:
            Predictor.load(place)
        assert "\n" not in str(error.value)
    watching = False
    assert not touched
