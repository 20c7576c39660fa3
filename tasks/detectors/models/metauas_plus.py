"""MetaUAS*+: MetaUAS with a visual prior (Gao, NeurIPS 2024, arXiv 2505.09265)."""

from __future__ import annotations

from torch import Tensor

from tasks.detectors.models.detector import ANY_CATEGORY, Detector, upsample
from tasks.detectors.models.encoder import Features
from tasks.detectors.models.metauas import MetaUAS
from tasks.detectors.models.patch_residual import PatchResidual


class MetaUASPlus(Detector):
    """MetaUAS with a visual prior: its map averaged with the patch residual of the same features (MetaUAS*+, in our reading)."""

    def __init__(self, metauas: MetaUAS, residual: PatchResidual) -> None:
        super().__init__()
        self.encoder = metauas.encoder
        self.metauas = metauas
        self.residual = residual

    def remember(self, prompts: Features) -> Features:
        return [*self.metauas.remember(prompts), *self.residual.remember(prompts)]

    def relate(self, queries: Features, memory: Features) -> Features:
        aligned = len(self.metauas.alignments)
        return [*self.metauas.relate(queries, memory[:aligned]), *self.residual.relate(queries, memory[aligned:])]

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Gives image scores B and anomaly maps BxHxW; the score is the map's maximum."""
        aligned = len(self.metauas.alignments)
        _score, changed = self.metauas.conclude(queries, relation[:aligned])
        _score, residual = self.residual.conclude(queries, relation[aligned:])
        maps = 0.5 * (changed + upsample(residual, changed.shape[-2:]))
        return maps.flatten(1).amax(dim=1), maps
