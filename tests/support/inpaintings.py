"""What an inpainting model is asked: pictures, masks, texts and seeds."""

from __future__ import annotations

import skimage.data
import torch


def asked(count: int = 3, size: int = 64) -> tuple[torch.Tensor, torch.Tensor, list[str], list[int]]:
    """Real pictures with a hole each."""
    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    images = torch.stack([photo[:, 60 * n :, 90 * n :][:, :size, :size] for n in range(count)])
    masks = torch.zeros(count, 1, size, size)
    for number in range(count):
        masks[number, 0, 20 : 34 + 3 * number, 10 + 5 * number : 30 + 5 * number] = 1
    return images, masks, ["a cat"] * count, list(range(count))
