"""Name encoders by one word, with the layers and the size that their papers use. The module imports no torch.

`encoder: dinov2-small` in pipelines.yaml stands for a section. Papers that cut the border of a picture off (VisionAD, RAD, InCTRL) are
followed in scale but not in cutting: a preset looks at the whole picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.encoders.settings import FILES_OF_WEIGHTS, HUB, LITE0, LITE2, OF_THE_MODEL, PACKAGED, EncoderSettings

PRESET = "preset"  # key of a preset's name, next to settings that replace the preset's
APACHE, MIT = "Apache-2.0", "MIT"
ENCODERS = {"encoder": "resolution", "prior": "prior_resolution"}
"""Settings of a detector that hold an encoder, each with the setting of its resolution."""


@dataclass(frozen=True)
class Use:
    """Settings with which detectors use an encoder."""

    layers: tuple[int, ...] = ()
    """Layers that give feature maps, counted from 1."""
    layer_norm: bool = False
    resolution: int = 256
    """Pixels a side."""


@dataclass(frozen=True)
class Preset:
    """An encoder with the settings that papers use it with."""

    library: str
    name: str
    weights: str
    licence: str
    """Licence of the weights, as their model card states it."""
    origin: str
    """Papers that the settings are from."""
    use: Use
    """Settings for detectors that compare patches."""
    uses: Mapping[str, Use] = field(default_factory=dict)
    """Settings for kinds of detectors that a paper uses this encoder for in another way."""
    repository: str = ""
    """Repository of the weights on the Hugging Face Hub; empty for packaged weights and those at `url`."""
    file: str = "model.safetensors"
    """File in the repository."""
    url: str = ""
    """Address of the weights outside of the hub. The name of the file ends in the first digits of its sha256."""

    def encoder(self, kind: str) -> EncoderSettings:
        """Return the settings of the encoder for a kind of detector."""
        use = self.uses.get(kind, self.use)
        return EncoderSettings(self.library, self.name, self.weights, use.layers, layer_norm=use.layer_norm)  # type: ignore[arg-type]

    def resolution(self, kind: str) -> int:
        """Return pixels a side for a kind of detector."""
        return self.uses.get(kind, self.use).resolution


# SubspaceAD takes the blocks at 55 to 70 % of the depth, without the last normalisation (scripts/backbone_ablation.sh of its repository).
# AdaptCLIP reads a transformer at each quarter of its depth (scripts/train_adaptclip.sh of its repository).
MIDDLE_OF_12, MIDDLE_OF_24 = (8, 9), (14, 15, 16, 17, 18)
QUARTERS_OF_12, QUARTERS_OF_24 = (3, 6, 9, 12), (6, 12, 18, 24)
LEARNT = ("prompt-query", "uniadet")
"""Kinds that learn weights for each layer."""


def _uses(subspace: Use, learnt: Use) -> dict[str, Use]:
    return {"subspace": subspace, **dict.fromkeys(LEARNT, learnt)}


PRESETS: Mapping[str, Preset] = {
    "lite0": Preset("timm", LITE0, PACKAGED, APACHE, "EfficientNet-Lite", Use()),
    "lite2": Preset("timm", LITE2, PACKAGED, APACHE, "EfficientNet-Lite", Use()),
    "dinov2-small": Preset(
        "timm",
        "vit_small_patch14_dinov2.lvd142m",
        HUB,
        APACHE,
        "AnomalyDINO (arXiv 2405.14529); SubspaceAD (arXiv 2602.23013)",
        Use((12,), True, 448),
        _uses(Use(MIDDLE_OF_12, False, 448), Use(QUARTERS_OF_12, True, 448)),
        "timm/vit_small_patch14_dinov2.lvd142m",
    ),
    "dinov2-base-reg": Preset(
        "timm",
        "vit_base_patch14_reg4_dinov2.lvd142m",
        HUB,
        APACHE,
        "VisionAD (arXiv 2504.11895); SubspaceAD",
        Use(tuple(range(3, 11)), False, 448),
        _uses(Use(MIDDLE_OF_12, False, 448), Use(QUARTERS_OF_12, True, 448)),
        "timm/vit_base_patch14_reg4_dinov2.lvd142m",
    ),
    "dinov2-large-reg": Preset(
        "timm",
        "vit_large_patch14_reg4_dinov2.lvd142m",
        HUB,
        APACHE,
        "VisionAD; SubspaceAD; UniADet (arXiv 2601.05552)",
        Use(tuple(range(5, 20)), False, 448),
        _uses(Use(MIDDLE_OF_24, False, 448), Use(QUARTERS_OF_24, True, 518)),
        "timm/vit_large_patch14_reg4_dinov2.lvd142m",
    ),
    "dinov3-base": Preset(
        "timm",
        "vit_base_patch16_dinov3.lvd1689m",
        HUB,
        "DINOv3 License (accept its terms before you use the weights)",
        "RAD (arXiv 2601.22763); FoundAD (arXiv 2510.01934)",
        Use((4, 7, 10, 12), True, 512),
        _uses(Use(MIDDLE_OF_12, False, 512), Use(QUARTERS_OF_12, True, 512)),
        "timm/vit_base_patch16_dinov3.lvd1689m",
    ),
    "clip-vit-b16-plus": Preset(
        "open_clip",
        "ViT-B-16-plus-240",
        "laion400m_e32",
        MIT,
        "WinCLIP (CVPR 2023); InCTRL (arXiv 2403.06495)",
        Use((7, 9, 11), False, 240),
        {
            **_uses(Use(MIDDLE_OF_12, False, 240), Use(QUARTERS_OF_12, True, 240)),
            "winclip": Use((), False, 240),
            "metauas+": Use((), False, 240),
        },
        url="https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/vit_b_16_plus_240-laion400m_e32-699c4b84.pt",
    ),
    "clip-vit-l14": Preset(
        "open_clip",
        "ViT-L-14-336-quickgelu",  # OpenAI's weights need this activation; ViT-L-14-336 has another
        "openai",
        APACHE,
        "AdaptCLIP (arXiv 2505.09926)",
        Use(QUARTERS_OF_24, True, 518),
        {"subspace": Use(MIDDLE_OF_24, False, 518), "winclip": Use((), False, 336), "metauas+": Use((), False, 336)},
        "timm/vit_large_patch14_clip_336.openai",
        "open_clip_model.safetensors",
    ),
}
"""Presets by name."""


def preset_of(encoder: EncoderSettings) -> str | None:
    """Return the name of the preset with an encoder's library and network, if its weights can be fetched; otherwise None."""
    fetched = {(one.library, one.name): name for name, one in PRESETS.items() if one.weights != PACKAGED}
    return fetched.get((encoder.library, encoder.name))


def command_for(preset: str) -> str:
    """Return what a person does to get the weights of a preset that this machine lacks."""
    return f"run `changepair weights fetch {preset} --to FOLDER` where a hub can be reached"


def expanded(kind: str, keys: frozenset[str], section: Mapping[str, Any]) -> dict[str, Any]:
    """Replace presets in the section of a detector by the settings that they stand for.

    `keys` are the settings that the kind of detector has. Settings next to a preset replace the preset's. Raises BadInput if there is no
    such preset.
    """
    found = dict(section)
    for key, resolution in ENCODERS.items():
        written = section.get(key)
        inner = {PRESET: written} if isinstance(written, str) else written
        if key not in keys or not isinstance(inner, Mapping) or PRESET not in inner:
            continue
        preset = _preset(key, inner[PRESET])
        if kind == "metauas" and PRESETS[preset].use.layers:
            raise BadInput(f"{key}: metauas needs a CNN with five stages, such as lite0 or lite2, not {preset}")
        own = {name: value for name, value in inner.items() if name != PRESET}
        encoder = _as_yaml(PRESETS[preset].encoder(kind)) | own
        encoder["weights"] = _file(preset, encoder["weights"])
        found |= {key: encoder, resolution: section.get(resolution, PRESETS[preset].resolution(kind))}
        if key == "encoder" and "stages" in keys and len(encoder["layers"]) > 3:  # the default would be the last three
            found.setdefault("stages", list(range(1, len(encoder["layers"]) + 1)))
    return found


def _preset(key: str, name: Any) -> str:
    if isinstance(name, str) and name in PRESETS:
        return name
    near = get_close_matches(str(name), PRESETS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise BadInput(f"{key}: expected a section or one of {', '.join(PRESETS)}, not {in_short(repr(name))}{hint}")


def _as_yaml(encoder: EncoderSettings) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(encoder).items()}


def _file(preset: str, weights: Any) -> Any:
    """Return the weights next to a preset: its file, if they name a folder of `changepair weights fetch`."""
    sources = (PACKAGED, HUB, OF_THE_MODEL, PRESETS[preset].weights)
    if not isinstance(weights, str) or weights in sources or weights.endswith(FILES_OF_WEIGHTS):
        return weights
    return f"{weights.rstrip('/')}/{preset}.safetensors"
