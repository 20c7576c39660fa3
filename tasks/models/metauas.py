"""MetaUAS: anomaly segmentation as change segmentation against one normal prompt (Gao, NeurIPS 2024, arXiv 2505.09265)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from tasks.models.alignment import Alignment, FeatureAlignment
from tasks.models.encoder import Encoder, Features

STAGES = 5  # of the encoder, strides 2 to 32


class MetaUAS(nn.Module):
    """A frozen encoder, one alignment for each of the last stages, a U-Net decoder and a 1x1 head.

    The parts come already built; `build_metauas` knows how they fit. Comparing goes in three steps, so that a caller with
    many episodes does each once: `remember` prompts, `relate` every query to every prompt, `conclude` from some of the prompts.
    """

    def __init__(self, encoder: Encoder, alignments: nn.ModuleList, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.alignments = alignments
        self.decoder = decoder
        self.head = head

    def forward(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """queries, prompts: Bx3xHxW in [0, 1], one prompt a query. Logits BxHxW, above 0 where the query differs."""
        features = self.encoder(queries)
        memory = [stage[:, None] for stage in self.remember(self.encoder(prompts))]
        return self.segment(features, self.relate(features, memory))

    def remember(self, prompts: Features) -> Features:
        """What comparing needs of prompts' features, KxCxhxw a stage: the stages that are aligned."""
        return prompts[len(prompts) - len(self.alignments) :]

    def relate(self, queries: Features, memory: Features) -> Features:
        """Each prompt aligned to each query, BxKxCxhxw a stage; memory KxCxhxw a stage for all queries, or BxKxCxhxw."""
        aligned = zip(queries[len(queries) - len(self.alignments) :], memory, self.alignments, strict=True)
        return [alignment(query, prompts) for query, prompts, alignment in aligned]

    def segment(self, queries: Features, relation: Features) -> Tensor:
        """Logits BxHxW; of several prompts the mean of their aligned features counts."""
        plain = len(queries) - len(self.alignments)
        fused = [torch.cat([query, aligned.mean(dim=1)], dim=1) for query, aligned in zip(queries[plain:], relation, strict=True)]
        finest = queries[0]
        # smp's decoder reads of its first entry the shape alone: that of the picture, twice the finest stage.
        picture = finest.new_empty(1, 1, 1, 1).expand(len(finest), 1, finest.shape[-2] * 2, finest.shape[-1] * 2)
        return self.head(self.decoder([picture, *queries[:plain], *fused])).squeeze(1)

    def conclude(self, queries: Features, relation: Features) -> tuple[Tensor, Tensor]:
        """Image scores B and anomaly maps BxHxW in [0, 1]; the score is the map's maximum."""
        maps = self.segment(queries, relation).sigmoid()
        return maps.flatten(1).amax(dim=1), maps

    def score(self, queries: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """queries Bx3xHxW against prompts Kx3xHxW, both in [0, 1]: image scores B, anomaly maps BxHxW."""
        features = self.encoder(queries)
        return self.conclude(features, self.relate(features, self.remember(self.encoder(prompts))))


def build_metauas(
    encoder: Encoder, *, alignment: Alignment = "soft", aligned_stages: int = 3, decoder_channels: Sequence[int] = (256, 128, 64, 64, 48)
) -> MetaUAS:
    """MetaUAS as in the paper: the last stages aligned, query and aligned prompt concatenated, scSE attention in the decoder."""
    plain, aligned = encoder.channels[: STAGES - aligned_stages], encoder.channels[STAGES - aligned_stages :]
    decoder = UnetDecoder(
        encoder_channels=(3, *plain, *(2 * channels for channels in aligned)),
        decoder_channels=tuple(decoder_channels),
        n_blocks=STAGES,
        attention_type="scse",
    )
    # smp never calls this one, as the last block has no skip; the published checkpoint holds it all the same.
    decoder.blocks[-1].attention1.requires_grad_(False)
    alignments = nn.ModuleList(FeatureAlignment(channels, alignment) for channels in aligned)
    return MetaUAS(encoder, alignments, decoder, nn.Conv2d(decoder_channels[-1], 1, kernel_size=1))
