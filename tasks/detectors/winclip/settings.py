"""Settings of WinCLIP and WinCLIP+."""

from __future__ import annotations

from dataclasses import dataclass

from changepair.tasks.detectors.settings import DetectorSettings
from changepair.tasks.encoders.settings import NATURAL, EncoderSettings, Resolution


@dataclass(frozen=True)
class WinCLIPSettings(DetectorSettings):
    """The defaults are those of InCTRL's comparison with it; the method has no others."""

    encoder: EncoderSettings = EncoderSettings("open_clip", "ViT-B-16-plus-240", "laion400m_e32")
    """What turns pictures and texts into features."""
    resolution: Resolution = 240
    """Pixels a side that pictures are scored at."""
    natural: tuple[str, ...] = NATURAL
    """Categories of natural objects: for them normal means that one is there, in one sentence."""

    def __post_init__(self) -> None:
        if self.encoder.library != "open_clip":
            raise ValueError(f"encoder: one of open_clip, which reads texts, not {self.encoder.library}")
