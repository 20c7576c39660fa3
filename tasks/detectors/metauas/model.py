"""MetaUAS segments anomalies as changes against one normal prompt (Gao, NeurIPS 2024, arXiv 2505.09265)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from changepair.tasks.common.onednn import attention, runs_onednn
from changepair.tasks.detectors.detector import ANY_CATEGORY, Detector, upsample
from changepair.tasks.detectors.metauas.attention import Attention
from changepair.tasks.detectors.patches import image_scores, nearest_cosine, residual_map, resized
from changepair.tasks.encoders.encoder import Encoder, Features, exporting

STAGES = 5  # levels of the decoder's pyramid, strides 2 to 32
FPN_CHANNELS, FPN_SEGMENTATION_CHANNELS = 256, 128  # Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019

START = 20.0  # initial inverse temperature of the cosines; it is learnt
SMALL_MATRIX = 2**17  # entries of the matrix for one query and prompt (512 KiB of float32)
LARGE = 2**16
"""Pixels. On a CPU, larger pictures are decoded one by one, which is 2.5 times as fast as 16 at once (320 or 384 pixels a side)."""
MOST_PRODUCTS = 2**22  # products that hard alignment holds at once (16 MiB of float32)

Alignment = Literal["soft", "hard", "none"]
Similarity = Literal["cosine", "dot"]
Fusion = Literal["concatenate", "add", "difference"]


class FeatureAlignment(nn.Module):
    """Feature alignment of one stage: rebuild the prompt's features on the query's grid (section 3.3).

    `soft` computes softmax(s(q, k)) F, `hard` takes the best-matching position, and `none` returns the prompt unchanged. Here F are the
    prompt's features. A 1x1 convolution to half the channels, which query and prompt share, computes q and k.

    The similarity s is `dot`, q kᵀ without 1/sqrt(d), as in the authors' code. Or it is `cosine`, as in their paper, times a learnt scale.
    With features as large as an EfficientNet's, the softmax of `dot` selects one position and passes no gradient.
    """

    def __init__(self, channels: int, mode: Alignment = "soft", similarity: Similarity = "cosine") -> None:
        super().__init__()
        self.mode = mode
        self.similarity = similarity
        if mode == "soft" and similarity == "cosine":
            self.log_scale = nn.Parameter(torch.tensor(math.log(START)))
        if mode != "none":
            self.reduction = nn.Conv2d(channels, channels // 2, kernel_size=1)

    def forward(self, query: Tensor, prompts: Tensor) -> Tensor:
        """Align prompts, (K, C, h, w) for all queries or (B, K, C, h, w), to queries (B, C, h, w). Return (B, K, C, h, w)."""
        shared = prompts.ndim == 4
        if self.mode == "none":
            return prompts[None].expand(query.shape[0], -1, -1, -1, -1) if shared else prompts
        asked = self.reduction(query).flatten(2).mT[:, None]  # (B, 1, N, d): the prompts are the attention's heads
        offered = self.reduction(prompts.flatten(0, -4)).flatten(2).mT  # (K or B*K, M, d)
        if self.similarity == "cosine":
            asked, offered = F.normalize(asked, dim=-1), F.normalize(offered, dim=-1)
            if self.mode == "soft":
                asked = asked * self.log_scale.exp()
        values = prompts.flatten(0, -4).flatten(2).mT.contiguous()  # (K or B*K, M, C); the kernel of `soft` takes no strides
        heads = prompts.shape[0] if shared else prompts.shape[1]
        asked, offered, values = (_per_query(part, query.shape[0], heads, shared) for part in (asked, offered, values))
        aligned = soft(asked, offered, values) if self.mode == "soft" else hard(asked, offered, values)
        return aligned.mT.unflatten(-1, query.shape[-2:])


def soft(asked: Tensor, offered: Tensor, values: Tensor) -> Tensor:
    """Attend from (B, K, N, d) to (B, K, M, d). Return the values (B, K, M, C) as (B, K, N, C), without holding the matrix (N, M).

    PyTorch's kernels without the matrix need queries and values of one width. Zeros appended to q and k change no product. A small matrix
    is held, because that is faster than computing the products twice. Without gradients on a CPU, only some rows are held at once.
    """
    if runs_onednn(asked):
        return attention(asked, offered, values, scale=1.0)
    if asked.shape[-2] * offered.shape[-2] > SMALL_MATRIX:
        room = values.shape[-1] - asked.shape[-1]
        asked, offered = (F.pad(part, (0, room)) for part in (asked, offered))
    return F.scaled_dot_product_attention(asked, offered, values, scale=1.0)


def hard(asked: Tensor, offered: Tensor, values: Tensor) -> Tensor:
    """Return for each query position the value of the prompt position that it matches best. Shapes are as in `soft`."""
    rows = max(1, MOST_PRODUCTS // offered[..., 0].numel())
    best = torch.cat([(part @ offered.mT).argmax(dim=-1, keepdim=True) for part in asked.split(rows, dim=2)], dim=2)
    return values.gather(2, best.expand(-1, -1, -1, values.shape[-1]))


def _per_query(part: Tensor, queries: int, heads: int, shared: bool) -> Tensor:
    """Expand prompts to one view for each query, without copying shared ones: (B, K, M, c)."""
    if part.ndim == 4:
        return part.expand(-1, heads, -1, -1)
    return part[None].expand(queries, -1, -1, -1) if shared else part.unflatten(0, (queries, heads))


class MetaUAS(Detector):
    """MetaUAS: a frozen encoder, one alignment for each of the last stages, a decoder and a 1x1 head.

    If the encoder works at several scales, the network segments the first, and the residual compares the others.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        alignment: Alignment = "soft",
        similarity: Similarity = "cosine",
        aligned_stages: int = 3,
        fusion: Fusion = "concatenate",
        residual: float = 0.0,
        top_share: float = 0.0,
        decoder: Literal["unet", "fpn"] = "unet",
        decoder_channels: Sequence[int] = (256, 128, 64, 64, 48),
    ) -> None:
        """Build the network around an encoder. The defaults are the paper's.

        `residual` is the weight of the patch residual that is added to the logits. `top_share` is the share of pixels whose mean is the
        image score; 0 takes the maximum. `decoder_channels` are those of the U-Net, coarsest first. Raises ValueError if the encoder does
        not return five maps at each scale.
        """
        super().__init__()
        maps, scales = encoder.maps, len(encoder.scales)
        if maps != STAGES * scales:
            raise ValueError(f"layers: MetaUAS needs {STAGES} feature maps of the encoder, not {maps // scales}")
        self.stride = round(encoder.strides[0] * encoder.scales[0])  # of the finest map, in pixels of the picture at the first scale
        plain, aligned = encoder.channels[: STAGES - aligned_stages], encoder.channels[STAGES - aligned_stages : STAGES]
        widths = (3, *plain, *(channels * (2 if fusion == "concatenate" else 1) for channels in aligned))
        self.encoder = encoder
        self.fusion, self.residual, self.top_share = fusion, residual, top_share
        self.alignments = nn.ModuleList(FeatureAlignment(channels, alignment, similarity) for channels in aligned)
        if decoder == "fpn":
            network: Any = FPNDecoder(list(widths), STAGES, FPN_CHANNELS, FPN_SEGMENTATION_CHANNELS)
        else:
            network = UnetDecoder(encoder_channels=widths, decoder_channels=tuple(decoder_channels), n_blocks=STAGES, attention_type="scse")
            # The authors' decoder has no attention where there is no skip connection; the current smp has.
            network.blocks[-1].attention1 = network.blocks[-1].attention2 = nn.Identity()
            for block in list(network.blocks)[:-1]:
                block.attention1.attention.__class__ = block.attention2.attention.__class__ = Attention
        self.decoder = network.to(memory_format=torch.channels_last)  # the memory format of the encoder's maps
        self.head = nn.Conv2d(FPN_SEGMENTATION_CHANNELS if decoder == "fpn" else decoder_channels[-1], 1, kernel_size=1)

    def forward(self, *pairs: Tensor) -> Tensor:
        """Segment changes in queries against prompts, one prompt a query.

        `pairs` are two batches of pictures (B, 3, H, W) in [0, 1], queries and prompts, or the result of `encode_pairs`. Return logits
        (B, H, W), above 0 where the query differs. The residual is not added, so that training learns the change alone.
        """
        maps = self.encode_pairs(*pairs) if len(pairs) == 2 else list(pairs)
        memory = [stage[:, None] for stage in maps[STAGES:]]
        return self.segment(maps[:STAGES], self._align(maps, memory))

    def encode_pairs(self, queries: Tensor, prompts: Tensor) -> Features:
        """Return what training needs of pictures (B, 3, H, W) in [0, 1]: the maps of the queries, then the aligned maps of the prompts."""
        return [*self.encoder(queries, first=True), *self._last(self.encoder(prompts, first=True))]

    @property
    def remembered(self) -> int:
        """Number of tensors that `remember` returns."""
        return len(self.alignments) * len(self.encoder.scales)

    @property
    def related(self) -> int:
        """Number of tensors that `relate` returns."""
        return len(self.alignments) + (self.remembered - self._compared if self.residual else 0)

    @property
    def _compared(self) -> int:
        """Index of the first remembered stage that the residual compares: of the second scale, or of the only one."""
        return len(self.alignments) if len(self.encoder.scales) > 1 else 0

    def remember(self, prompts: Features) -> Features:
        """Return the stages that are aligned, (K, C, h, w) each, and the same stages of the other scales."""
        last = range(STAGES - len(self.alignments), STAGES)
        return [prompts[STAGES * scale + stage] for scale in range(len(self.encoder.scales)) for stage in last]

    def relate(self, queries: Features, memory: Features) -> Features:
        """Align each prompt to each query: (B, K, C, h, w) for each stage of the first scale.

        With `residual`, append the cosines, (B, K, h, w) for each stage of the other scales, or of the only one.
        """
        aligned, start = self._align(queries, memory), self._compared
        return [*aligned, *map(_cosines, self.remember(queries)[start:], memory[start:])] if self.residual else aligned

    def _align(self, queries: Features, memory: Features) -> Features:
        stages = zip(self._last(queries), memory[: len(self.alignments)], self.alignments, strict=True)
        return [alignment(query, prompts) for query, prompts, alignment in stages]

    def _last(self, features: Features) -> Features:
        """Select the aligned stages, which are the last ones of the first scale."""
        return features[STAGES - len(self.alignments) : STAGES]

    def segment(self, queries: Features, relation: Features) -> Tensor:
        """Return logits (B, H, W) at the first scale, without the residual. The aligned features of several prompts are averaged."""
        size = [side * self.stride for side in queries[0].shape[-2:]]
        if self.training or exporting() or queries[0].device.type != "cpu" or math.prod(size) <= LARGE:
            return self._segment(queries, relation, size)
        each = zip(*(stage.split(1) for stage in queries), strict=True), zip(*(stage.split(1) for stage in relation), strict=True)
        return torch.cat([self._segment([*query], [*related], size) for query, related in zip(*each, strict=True)])

    def _segment(self, queries: Features, relation: Features, size: Sequence[int]) -> Tensor:
        plain = queries[: STAGES - len(self.alignments)]
        aligned = zip(self._last(queries), relation[: len(self.alignments)], strict=True)
        fused = [self._fuse(query, found.mean(dim=1)) for query, found in aligned]
        finest = queries[0]
        # smp's U-Net decoder only reads the shape of its first entry, the picture.
        picture = finest.new_empty(1, 1, 1, 1).expand(finest.shape[0], 1, *size)
        return upsample(self.head(self.decoder([picture, *_pyramid([*plain, *fused], size)])).squeeze(1), size)

    def _fuse(self, query: Tensor, aligned: Tensor) -> Tensor:
        if self.fusion == "concatenate":
            return torch.cat([query, aligned], dim=1)
        return query + aligned if self.fusion == "add" else (query - aligned).abs()

    def conclude(self, queries: Features, relation: Features, category: str = ANY_CATEGORY) -> tuple[Tensor, Tensor]:
        """Return image scores (B,) and anomaly maps (B, H, W). The score is the mean of the map's highest pixels."""
        logits = self.segment(queries, relation)
        if self.residual:  # to the nearest patch of all prompts
            logits = logits + self.residual * upsample(residual_map(relation[len(self.alignments) :]), logits.shape[-2:])
        maps = logits.sigmoid()
        return image_scores(maps.flatten(1), self.top_share, 0.0), maps


@torch.no_grad()
def _cosines(query: Tensor, prompts: Tensor) -> Tensor:
    """Return the highest cosine of each query position with a position of each prompt, (B, K, h, w)."""
    with torch.autocast(query.device.type, enabled=False):  # in full precision: a hundredth of a cosine matters here
        units = F.normalize(query.float(), dim=1), F.normalize(prompts.float(), dim=-3)
        return nearest_cosine(*units)


def _pyramid(stages: Features, size: Sequence[int]) -> Features:
    """Resample stages to strides 2, 4, 8, 16 and 32. Those of a transformer have one grid; those of a CNN have these strides already.

    Follows Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022.
    """
    sizes = [tuple(-(-side // 2**level) for side in size) for level in range(1, STAGES + 1)]
    return [resized(stage, wanted) for stage, wanted in zip(stages, sizes, strict=True)]
