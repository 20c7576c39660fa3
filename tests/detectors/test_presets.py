"""Presets: one word names an encoder with the layers and the size of its papers; its weights are fetched, checked and found again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from changepair.flows.settings.detectors import parse_detectors
from changepair.tasks.detectors.registry import BUILT_IN
from changepair.tasks.detectors.store import (
    settings_as_json,
    settings_from_json,
)
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.presets import PRESETS
from changepair.tasks.encoders.settings import HUB, OF_THE_MODEL, EncoderSettings

SMALL = "dinov2-small"
NETWORK = PRESETS[SMALL].name
HEAVY = ("dinov2-large-reg", "clip-vit-b16-plus", "clip-vit-l14")  # 0.8 to 1.7 GB
BLOCKS = {"dinov2-small": 12, "dinov2-base-reg": 12, "dinov2-large-reg": 24, "dinov3-base": 12, "clip-vit-b16-plus": 12, "clip-vit-l14": 24}
WIDTHS = {
    "dinov2-small": 384,
    "dinov2-base-reg": 768,
    "dinov2-large-reg": 1024,
    "dinov3-base": 768,
    "clip-vit-b16-plus": 896,
    "clip-vit-l14": 1024,
}


def parsed(kind: str, **section: object) -> object:
    return parse_detectors({kind: section})[kind]


def encoder_of(preset: str, kind: str = "patch-residual", **changed: object) -> EncoderSettings:
    return replace(PRESETS[preset].encoder(kind), **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "preset", "layers", "layer_norm", "resolution", "stages"),
    [
        # AnomalyDINO: the last block of ViT-S/14 with its norm, at 448
        ("patch-residual", "dinov2-small", (12,), True, 448, ()),
        # SubspaceAD: hidden states -4 and -5 of 12 blocks, -7 to -11 of 24, at 448
        ("subspace", "dinov2-small", (8, 9), False, 448, ()),
        ("subspace", "dinov2-large-reg", (14, 15, 16, 17, 18), False, 448, (1, 2, 3, 4, 5)),
        # VisionAD: blocks 4 to 18 of ViT-L/14 with registers, counted from 0, in the scale of 448 pixels
        ("patch-residual", "dinov2-large-reg", tuple(range(5, 20)), False, 448, tuple(range(1, 16))),
        ("prompt-query", "dinov2-large-reg", (6, 12, 18, 24), True, 518, (1, 2, 3, 4)),
        # RAD: blocks 3, 6, 9 and 11 of DINOv3 ViT-B/16, counted from 0, in the scale of 512 pixels
        ("patch-residual", "dinov3-base", (4, 7, 10, 12), True, 512, (1, 2, 3, 4)),
        ("metric-residual", "clip-vit-b16-plus", (7, 9, 11), False, 240, ()),
        # AdaptCLIP: 6, 12, 18 and 24 of ViT-L/14@336px at 518
        ("prompt-query", "clip-vit-l14", (6, 12, 18, 24), True, 518, (1, 2, 3, 4)),
        ("metauas", "lite2", (), False, 256, None),
    ],
)
def test_one_word_stands_for_the_settings_of_a_paper(
    kind: str, preset: str, layers: tuple[int, ...], layer_norm: bool, resolution: int, stages: tuple[int, ...] | None
) -> None:
    settings = parsed(kind, encoder=preset)
    about = PRESETS[preset]
    assert settings.encoder == EncoderSettings(about.library, about.name, about.weights, layers, layer_norm=layer_norm)  # type: ignore
    assert settings.resolution == resolution and getattr(settings, "stages", None) == stages  # type: ignore[attr-defined]
    assert parsed(kind, encoder={"preset": preset}) == settings


def test_the_clip_of_inctrl_and_of_winclip_is_a_preset() -> None:
    for kind in ("inctrl", "winclip"):
        assert parsed(kind, encoder="clip-vit-b16-plus") == parsed(kind)
    prior = parse_detectors({"metauas": {}, "metauas+": {"prior": "clip-vit-b16-plus"}})["metauas+"]
    assert prior.prior == parsed("winclip").encoder and prior.prior_resolution == 240  # type: ignore[attr-defined]


def test_what_is_stated_next_to_a_preset_replaces_it() -> None:
    settings = parsed(
        "patch-residual", encoder={"preset": "dinov3-base", "layers": [12], "weights": "/models/mine.pth"}, resolution=256, top_share=0.01
    )
    assert settings.encoder == EncoderSettings("timm", PRESETS["dinov3-base"].name, "/models/mine.pth", (12,), layer_norm=True)  # type: ignore
    assert (settings.resolution, settings.stages, settings.top_share) == (256, (), 0.01)  # type: ignore[attr-defined]
    assert parsed("patch-residual", encoder="dinov3-base", stages=[2]).stages == (2,)  # type: ignore[attr-defined]
    folder = parsed("subspace", encoder={"preset": SMALL, "weights": "/models/"}).encoder  # type: ignore[attr-defined]
    assert folder.weights == f"/models/{SMALL}.safetensors" and folder.files == [folder.weights]
    for source in (HUB, OF_THE_MODEL):
        assert parsed("subspace", encoder={"preset": SMALL, "weights": source}).encoder.weights == source  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "encoder", "place", "message"),
    [
        (
            "patch-residual",
            "dinov2-smal",
            ("encoder",),
            "expected a section or one of lite0, .*, not 'dinov2-smal'; did you mean 'dinov2-small'",
        ),
        ("patch-residual", {"preset": 3}, ("encoder",), "expected a section or one of .*, not 3"),
        ("patch-residual", {"preset": SMALL, "layrs": [6]}, ("encoder", "layrs"), "unknown key; did you mean 'layers'"),
        ("metauas", "dinov2-small", ("encoder",), "metauas needs a CNN with five stages, such as lite0 or lite2, not dinov2-small"),
        ("winclip", "lite2", (), "encoder: one of library open_clip"),
        ("inctrl", "dinov2-small", (), "texts: false, because vit_small_patch14_dinov2"),
    ],
)
def test_a_preset_of_no_use_is_told_at_its_key(kind: str, encoder: object, place: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(kind, encoder=encoder)
    [error] = caught.value.errors()
    assert error["loc"] == (kind, *place) and re.search(message, error["msg"])


@pytest.mark.parametrize("kind", [kind for kind in BUILT_IN if kind not in ("metauas", "metauas+", "winclip", "inctrl")])
def test_settings_of_a_preset_come_back_from_a_file(kind: str) -> None:
    for preset in PRESETS:
        settings = parsed(kind, encoder=preset)
        assert settings_from_json(BUILT_IN[kind].settings, json.loads(json.dumps(settings_as_json(settings)))) == settings


def outputs_of(blocks: list[torch.nn.Module]) -> list[torch.Tensor]:
    """Return a list that the blocks' outputs are appended to."""
    outputs: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    return outputs


@pytest.mark.parametrize("preset", [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in BLOCKS])
@torch.inference_mode()
def test_a_preset_builds_the_architecture_and_reads_the_layers_that_it_names(preset: str) -> None:
    """Against hooks on the network's own blocks, at a small resolution with random weights."""
    side, patch = 112, 16 if preset in ("dinov3-base", "clip-vit-b16-plus") else 14
    for kind in ("patch-residual", "subspace", "prompt-query"):
        settings = encoder_of(preset, kind, weights=OF_THE_MODEL)
        encoder = build_encoder(settings, side)
        clip = settings.library == "open_clip"
        network = encoder.network.visual if clip else encoder.network.model
        blocks = network.transformer.resblocks if clip else network.blocks
        assert encoder.channels[: encoder.maps] == (WIDTHS[preset],) * len(settings.layers)
        assert encoder.strides[: encoder.maps] == (patch,) * len(settings.layers)
        assert len(blocks) == (BLOCKS[preset] if clip else max(settings.layers))  # timm leaves out blocks that no layer needs
        outputs = outputs_of([blocks[layer - 1] for layer in settings.layers])
        found = encoder(torch.rand(1, 3, side, side))[: encoder.maps]
        norm = (network.ln_post if clip else network.norm) if settings.layer_norm else torch.nn.Identity()
        for map_, output in zip(found, outputs, strict=True):
            expected = norm(output)[:, -((side // patch) ** 2) :]
            assert torch.allclose(map_.flatten(2).mT, expected, atol=1e-5)
            assert map_.std() > 0


def test_the_clip_of_openai_has_its_activation() -> None:
    """OpenAI's weights were trained with QuickGELU. open_clip only warns if a network has another activation."""
    import open_clip

    for preset in ("clip-vit-b16-plus", "clip-vit-l14"):
        about = PRESETS[preset]
        weights = open_clip.get_pretrained_cfg(about.name, about.weights)
        assert bool(open_clip.get_model_config(about.name).get("quick_gelu")) == bool(weights.get("quick_gelu")), preset


def test_a_tag_is_not_downloaded_from_the_repository_of_another_tag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from changepair.tasks.encoders.weights import file_of_tag

    seen: list[str] = []
    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_url", lambda url: seen.append(url) or str(tmp_path / "weights.pt"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert file_of_tag("ViT-B-16-plus-240", "laion400m_e31") is None and file_of_tag("ViT-L-14-336-quickgelu", "openai") is None
    assert file_of_tag("ViT-L-14", "metaclip_fullcc") is None and not seen
    assert file_of_tag("ViT-B-16-plus-240", "laion400m_e32") == tmp_path / "weights.pt"
    assert seen == [PRESETS["clip-vit-b16-plus"].url]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        file_of_tag("ViT-B-16-plus-240", "laion400m_e32")
