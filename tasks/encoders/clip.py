"""Encoders of open_clip: any of its image towers, its text tower, and WinCLIP's windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changepair.tasks.common.onednn import in_onednn
from changepair.tasks.encoders.encoder import Features, FrozenEncoder, exporting

Tokenizer = Callable[[list[str]], Tensor]
TOKENS_AT_ONCE = 1024  # tokens of windows in one pass through the transformer, so that activations stay in the processor's cache
TEXTS_AT_ONCE = 16  # texts in one pass through the text transformer
WINDOWS = (2, 3)  # window sides in patches (WinCLIP, section 4.2)


class ClipEncoder(FrozenEncoder):
    """An open_clip model. It returns the maps of chosen layers of the image tower, then the picture's embedding as a map of one position.

    It works only at the resolution of its network.
    """

    def __init__(
        self, network: nn.Module, tokenizer: Callable[[], Tokenizer], *, layers: Sequence[int] = (), layer_norm: bool = False
    ) -> None:
        """Wrap an open_clip network. `layers` counts the tower's layers from 1; the default is all of a CNN, or the last three of a
        transformer. `layer_norm` sets whether the transformer's last LayerNorm is applied to them.

        `tokenizer` returns the model's tokenizer when a text is first embedded, because some tokenizers are on a hub.
        """
        visual: Any = network.visual
        for name in ("logit_scale", "logit_bias"):  # for contrastive training only; nothing here multiplies by them
            if hasattr(network, name):
                delattr(network, name)
        super().__init__(network, mean=visual.image_mean, std=visual.image_std)
        side = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
        self.resolution = int(side)
        self.tokenizer = tokenizer
        self.indices = [layer - 1 for layer in layers] or None
        if layer_norm and not hasattr(visual, "ln_post"):
            raise ValueError(f"layer_norm needs one of open_clip's own transformers, not {type(visual).__name__}")
        self.asked = {"normalize_intermediates": True} if layer_norm else {}
        features = self(torch.zeros(1, 3, self.resolution, self.resolution))
        maps = features[:-1]
        if not layers and len({tuple(map_.shape) for map_ in maps}) == 1:  # a transformer
            self.indices = list(range(len(maps)))[-3:]
            features = [*maps[-3:], features[-1]]
        self.maps = len(features) - 1
        self.channels = tuple(map_.shape[1] for map_ in features)
        self.strides = tuple(self.resolution // map_.shape[-1] for map_ in features)

    def features(self, normalised: Tensor) -> Features:
        features = self.network.visual.forward_intermediates(normalised, indices=self.indices, **self.asked)  # type: ignore[operator, union-attr]
        return [*features["image_intermediates"], features["image_features"][:, :, None, None]]

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Embed texts: (N, D), not normalised."""
        with torch.autocast(self.mean.device.type, enabled=False), in_onednn(self.mean):
            tokens = self.tokenizer()(texts).to(self.mean.device)
            return torch.cat([self.network.encode_text(part) for part in tokens.split(TEXTS_AT_ONCE)])  # type: ignore[operator]


class WindowEncoder(FrozenEncoder):
    """The encoder of WinCLIP (Jeong et al., CVPR 2023, section 4.2).

    It returns the patch tokens of a CLIP transformer's last block, the embeddings of all windows of 2x2 and of 3x3 patches, and the
    picture's embedding. A window's embedding is that of the class token when the transformer sees only the patches of the window.
    """

    def __init__(self, clip: ClipEncoder) -> None:
        # The import takes a second, and few callers need it.
        from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

        visual: Any = clip.network.visual
        plain = isinstance(visual, VisionTransformer) and all(
            type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks
        )
        if not plain or visual.attn_pool is not None or visual.pool_type != "tok":
            raise ValueError(f"windows need one of open_clip's own transformers with a class token, not {type(visual).__name__}")
        super().__init__(clip.network, mean=visual.image_mean, std=visual.image_std)
        self.resolution = clip.resolution
        self.embed_texts = clip.embed_texts
        width, embedding, patch = visual.conv1.out_channels, visual.output_dim, visual.patch_size[0]
        self.grid: tuple[int, int] = visual.grid_size
        self.maps = 1 + len(WINDOWS)
        self.channels = (width, *(embedding for _size in WINDOWS), embedding)
        self.strides = (patch, *(patch for _size in WINDOWS), self.resolution)

    def features(self, normalised: Tensor) -> Features:
        visual: Any = self.network.visual
        tokens = visual._embeds(normalised)  # open_clip has no public access to single blocks
        last = visual.transformer(tokens)
        patches = last[:, 1:].mT.unflatten(-1, self.grid)
        embedding = self._embedding(last)[:, :, None, None]
        return [patches, *self._windows(tokens), embedding]

    def _windows(self, tokens: Tensor) -> Features:
        """Embed the windows of each size, (B, D, h-size+1, w-size+1) each.

        `tokens` (B, L, C) are the input of the transformer. The class token is the first.
        """
        blocks: Any = self.network.visual.transformer.resblocks  # type: ignore[union-attr]
        packed = packed_projection(blocks[0], tokens)
        found = []
        for size in WINDOWS:
            members = windows(self.grid, size).to(tokens.device)
            count = members.shape[-1]
            chosen = torch.cat([torch.zeros_like(members[:1]), members + 1]).T.repeat(len(tokens), 1)  # (B*W, 1 + size²)
            pictures = torch.arange(len(tokens), device=tokens.device).repeat_interleave(count)[:, None]
            at_once = len(chosen) if exporting() else max(1, TOKENS_AT_ONCE // chosen.shape[1])
            parts = [
                class_tokens(blocks, tokens[picture, part], packed[picture, part])
                for picture, part in zip(pictures.split(at_once), chosen.split(at_once), strict=True)
            ]
            embeddings = self._embedding(torch.cat(parts))
            found.append(embeddings.unflatten(0, (-1, count)).mT.unflatten(-1, (self.grid[0] - size + 1, self.grid[1] - size + 1)))
        return found

    def _embedding(self, tokens: Tensor) -> Tensor:
        visual: Any = self.network.visual
        pooled, _rest = visual._pool(tokens)
        return pooled @ visual.proj


def windows(grid: tuple[int, int], size: int) -> Tensor:
    """Return the indices of the patches in each window of size x size, (size², W). Windows are ordered by their upper left patch."""
    patches = torch.arange(grid[0] * grid[1], dtype=torch.float64).view(1, 1, *grid)
    return F.unfold(patches, size)[0].long()


def class_tokens(blocks: Sequence[Any], tokens: Tensor, packed: Tensor) -> Tensor:
    """Run the transformer's blocks on tokens (N, L, C), and return the class token (N, 1, C), the first one.

    `packed` is the result of `packed_projection` for the first block. The last block computes only the class token.
    """
    first, *middle, last = blocks
    tokens = _rest_of_block(first, tokens, *packed.chunk(3, dim=2))
    for block in middle:
        tokens = block(tokens)
    width = tokens.shape[2]
    normal, attend = last.ln_1(tokens), last.attn
    query = F.linear(normal[:, :1], attend.in_proj_weight[:width], attend.in_proj_bias[:width])
    key_value = F.linear(normal, attend.in_proj_weight[width:], attend.in_proj_bias[width:])
    return _rest_of_block(last, tokens[:, :1], query, *key_value.chunk(2, dim=2))


def packed_projection(block: Any, tokens: Tensor) -> Tensor:
    """Return queries, keys and values (N, L, 3C) of tokens (N, L, C) in a block of open_clip."""
    return F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias)


def _rest_of_block(block: Any, tokens: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the block's output for tokens (N, L, C). `query` is (N, L, C); `key` and `value` are (N, M, C) of all tokens."""
    heads = [part.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    tokens = tokens + block.ls_1(F.linear(attended, block.attn.out_proj.weight, block.attn.out_proj.bias))
    return cast(Tensor, tokens + block.ls_2(block.mlp(block.ln_2(tokens))))
