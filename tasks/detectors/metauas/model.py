"""MetaUAS: anomaly segmentation as change segmentation against one normal prompt (Gao, NeurIPS 2024, arXiv 2505.09265)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector, upsample
from changepair.tasks.detectors.metauas.alignment import Alignment, FeatureAlignment, Similarity
from changepair.tasks.detectors.patches import resized
from changepair.tasks.encoders.encoder import Encoder, Features

STAGES = 5  # of the decoder's pyramid, strides 2 to 32
FPN_CHANNELS, FPN_SEGMENTATION_CHANNELS = 256, 128  # Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019

Fusion = Literal["concatenate", "add", "difference"]
DecoderName = Literal["unet", "fpn"]


class MetaUAS(Detector):
    """A frozen encoder, one alignment for each of the last stages, a decoder and a 1x1 head; `build_metauas` knows how they fit."""

    def __init__(self, encoder: Encoder, alignments: nn.ModuleList, decoder: nn.Module, head: nn.Module, fusion: Fusion) -> None:
        super().__init__()
        self.encoder = encoder
        self.alignments = alignments
        self.decoder = decoder.to(memory_format=torch.channels_last)  # as the encoder's maps come
        self.head = head
        self.fusion = fusion

    def forward(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """Segments queries against prompts, both Bx3xHxW in [0, 1], one prompt a query. Gives logits BxHxW, above 0 where the query
        differs."""
        features = self.encoder(queries)
        memory = [stage[:, None] for stage in self.remember(self.encoder(prompts))]
        return self.segment(features, self.relate(features, memory))

    def remember(self, prompts: Features) -> Features:
        """Keeps the stages that are aligned, KxCxhxw each."""
        return prompts[STAGES - len(self.alignments) : STAGES]

    def relate(self, queries: Features, memory: Features) -> Features:
        """Aligns each prompt to each query, BxKxCxhxw a stage."""
        aligned = zip(self.remember(queries), memory, self.alignments, strict=True)
        return [alignment(query, prompts) for query, prompts, alignment in aligned]

    def segment(self, queries: Features, relation: Features) -> Tensor:
        """Gives logits BxHxW; of several prompts the mean of their aligned features counts."""
        plain = queries[: STAGES - len(self.alignments)]
        fused = [self._fuse(query, aligned.mean(dim=1)) for query, aligned in zip(self.remember(queries), relation, strict=True)]
        finest, stride = queries[0], self.encoder.strides[0]
        size = (finest.shape[-2] * stride, finest.shape[-1] * stride)
        # smp's U-Net decoder reads of its first entry the shape alone: that of the picture.
        picture = finest.new_empty(1, 1, 1, 1).expand(finest.shape[0], 1, *size)
        return upsample(self.head(self.decoder([picture, *_pyramid([*plain, *fused], size)])).squeeze(1), size)

    def _fuse(self, query: Tensor, aligned: Tensor) -> Tensor:
        if self.fusion == "concatenate":
            return torch.cat([query, aligned], dim=1)
        return query + aligned if self.fusion == "add" else (query - aligned).abs()

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Gives image scores B and anomaly maps BxHxW; the score is the map's maximum."""
        maps = self.segment(queries, relation).sigmoid()
        return maps.flatten(1).amax(dim=1), maps


def build_metauas(
    encoder: Encoder,
    *,
    alignment: Alignment = "soft",
    similarity: Similarity = "cosine",
    aligned_stages: int = 3,
    fusion: Fusion = "concatenate",
    decoder: DecoderName = "unet",
    decoder_channels: Sequence[int] = (256, 128, 64, 64, 48),
) -> MetaUAS:
    """Builds MetaUAS; as in the paper, the last three stages are aligned, and query and aligned prompt concatenated.

    decoder_channels: of the U-Net, coarsest first. Raises ValueError if the encoder does not give five maps.
    """
    if encoder.maps != STAGES:
        raise ValueError(f"layers: MetaUAS needs {STAGES} of the encoder's, not {encoder.maps}")
    plain, aligned = encoder.channels[: STAGES - aligned_stages], encoder.channels[STAGES - aligned_stages : STAGES]
    widths = (3, *plain, *(channels * (2 if fusion == "concatenate" else 1) for channels in aligned))
    alignments = nn.ModuleList(FeatureAlignment(channels, alignment, similarity) for channels in aligned)
    if decoder == "fpn":
        fpn = FPNDecoder(list(widths), STAGES, FPN_CHANNELS, FPN_SEGMENTATION_CHANNELS)
        return MetaUAS(encoder, alignments, fpn, nn.Conv2d(FPN_SEGMENTATION_CHANNELS, 1, kernel_size=1), fusion)
    unet = UnetDecoder(encoder_channels=widths, decoder_channels=tuple(decoder_channels), n_blocks=STAGES, attention_type="scse")
    # The authors' decoder has no attention where there is no skip; today's smp has.
    unet.blocks[-1].attention1 = unet.blocks[-1].attention2 = nn.Identity()
    return MetaUAS(encoder, alignments, unet, nn.Conv2d(decoder_channels[-1], 1, kernel_size=1), fusion)


def _pyramid(stages: Features, size: Sequence[int]) -> Features:
    """Brings the stages to strides 2, 4, 8, 16 and 32 of a picture. A CNN's are; a transformer's, all of one grid, are resampled
    (Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022)."""
    sizes = [tuple(-(-side // 2**level) for side in size) for level in range(1, STAGES + 1)]
    return [resized(stage, wanted) for stage, wanted in zip(stages, sizes, strict=True)]
