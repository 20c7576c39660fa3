"""WinCLIP scores pictures by texts; WinCLIP+ adds the residuals to a few prompts (Jeong et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector
from changepair.tasks.detectors.patches import nearest_cosine, unit_patches
from changepair.tasks.encoders.clip import WINDOWS, ClipEncoder, WindowEncoder
from changepair.tasks.encoders.encoder import Features
from changepair.tasks.encoders.texts import TextPrior

PATCHES = 1  # side in patches of the first map's windows
LEAST = 1e-8  # smallest value in a harmonic mean, which cannot hold 0


class WinCLIP(Detector):
    """WinCLIP: compare every window and the whole picture with texts. With prompts, also compare windows and patches with theirs."""

    needs_prompts = False
    reads = True

    def __init__(self, encoder: ClipEncoder, *, natural: Collection[str] = ()) -> None:
        """Wrap the encoder. `natural` lists categories of natural objects. Raises ValueError if the encoder is not a transformer of
        open_clip."""
        super().__init__()
        self.encoder: WindowEncoder = WindowEncoder(encoder)
        self.prior = TextPrior(encoder.embed_texts, natural)
        self.stages = tuple(range(1, self.encoder.maps + 1))

    def remember(self, prompts: Features) -> Features:
        return unit_patches(prompts, self.stages)

    def relate(self, queries: Features, memory: Features) -> Features:
        """Return each query patch's and window's highest cosine with those of its size in each prompt, (B, K, h, w)."""
        return windows_related(self.remember(queries), memory)

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Return image scores (B,) and anomaly maps (B, h, w) on the patches' grid.

        The text map is the harmonic mean over scales of each patch's windows and of the picture (section 4.2). With prompts, the anomaly
        map is the mean of the text map and the few-shot map. The image score is the mean of the text score and the highest residual
        (section 4.3).
        """
        picture = self.prior(queries[-1], category)  # (B, 1, 1)
        windows = [harmonic(self.prior(embeddings, category), size) for embeddings, size in zip(queries[1:-1], WINDOWS, strict=True)]
        scales = torch.stack([*windows, picture.expand_as(windows[0])])
        by_words = len(scales) / scales.clamp_min(LEAST).reciprocal().sum(dim=0)
        if not relation:
            return picture.flatten(), by_words
        by_prompts = few_shot_map(relation)
        return 0.5 * (picture.flatten() + by_prompts.flatten(1).amax(dim=1)), 0.5 * (by_words + by_prompts)


def windows_related(queries: Features, memory: Features) -> Features:
    """Return the highest cosine of patches and windows with those of the same size in each prompt, (B, K, h, w). All have unit length."""
    return [nearest_cosine(query, bank) for query, bank in zip(queries, memory, strict=True)]


def few_shot_map(relation: Features) -> Tensor:
    """Return the mean over scales of the residuals to the nearest patches and windows of all prompts, (B, h, w) (section 4.3)."""
    residuals = [(0.5 * (1.0 - cosine.amax(dim=1))).clamp(0.0, 1.0) for cosine in relation]
    return torch.stack([harmonic(residual, size) for residual, size in zip(residuals, (PATCHES, *WINDOWS), strict=True)]).mean(dim=0)


def harmonic(windows: Tensor, size: int) -> Tensor:
    """Average (harmonic mean, equation 5) over the windows of size x size that hold each patch: (B, h-size+1, w-size+1) to (B, h, w)."""
    ones = windows.new_ones(1, 1, size, size)
    inverse = F.conv_transpose2d(windows[:, None].clamp_min(LEAST).reciprocal(), ones)
    count = F.conv_transpose2d(torch.ones_like(windows[:1, None]), ones)
    return (count / inverse)[:, 0]
