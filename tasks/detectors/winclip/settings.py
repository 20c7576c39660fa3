"""Define the settings of WinCLIP and WinCLIP+."""

from __future__ import annotations

from dataclasses import dataclass

from changepair.tasks.detectors.settings import DetectorSettings
from changepair.tasks.encoders.settings import NATURAL, EncoderSettings, Resolution


@dataclass(frozen=True)
class WinCLIPSettings(DetectorSettings):
    """Settings of WinCLIP. The defaults are those of InCTRL's comparison with it. The method has no others."""

    encoder: EncoderSettings = EncoderSettings("open_clip", "ViT-B-16-plus-240", "laion400m_e32")
    """Network of open_clip that turns pictures and texts into features."""
    resolution: Resolution = 240
    """Side in pixels of the square that a picture is resized to before scoring."""
    natural: tuple[str, ...] = NATURAL
    """Categories of natural objects. They have no flaws, so the text score compares a sentence for their presence with one for their
    absence (InCTRL, section 3.2)."""

    def __post_init__(self) -> None:
        if self.encoder.library != "open_clip":
            raise ValueError(f"encoder: one of library open_clip, which reads texts, not of {self.encoder.library}")
