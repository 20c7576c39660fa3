"""Give all inpainting models one interface, from images, masks, texts and seeds to images."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from changepair.tasks.common.devices import best_device
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import content_of, written_beside
from changepair.tasks.inpainting.settings import EXEMPLAR, NAMED, NONE, OWN, PACKAGED, InpainterSettings, RepaintingSettings

CHOICE_NAME = "inpainter.json"
PIPELINE_NAME = "pipeline"


class Inpainter(Protocol):
    def __call__(self, images: Tensor, masks: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Paint the masked regions. Return (B, 3, H, W) in [0, 1], on the CPU. The caller ignores pixels outside the masks.

        `images` is (B, 3, H, W) in [0, 1], and `masks` is (B, 1, H, W), 1 where to paint. `texts` are prompts for text-prompted models.
        `seeds` holds one seed an image, so that only the low bits depend on the others of its batch.
        """


def write_choice(folder: Path, settings: InpainterSettings) -> None:
    """Write folder/inpainter.json, which names the model. `own` and `packaged` have their pipeline next to it.

    A local folder is recorded with the hash of its content, so that pairs depend on the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    choice: dict[str, Any] = {"model": settings.model, "revision": settings.revision}
    content = content_of(settings.model) if settings.model not in NAMED else None
    if content is not None:
        choice["sha256"] = content
    with written_beside(folder / CHOICE_NAME) as partial:
        partial.write_text(json.dumps(choice, indent=2) + "\n", encoding="utf-8")


@lru_cache(maxsize=2)
def load_inpainter(folder: Path, settings: RepaintingSettings) -> Inpainter:
    """Load the model that the inpainter stage wrote to `folder`, once a process. Raises BadInput if it is missing or cannot be loaded."""
    file = folder / CHOICE_NAME
    if not file.is_file():
        raise BadInput(f"{file}: no such file; the inpainter stage writes it, so run `dvc repro` first")
    choice = json.loads(file.read_text(encoding="utf-8"))
    if choice["model"] == NONE:
        raise BadInput(f"{file}: names no inpainting model, but synthesis.kinds needs one; set inpainter.model in pipelines.yaml")
    if choice["model"] == EXEMPLAR:
        from changepair.tasks.inpainting.exemplar import Exemplar

        return Exemplar()
    from diffusers.utils.logging import disable_progress_bar

    device = best_device()
    disable_progress_bar()  # loading would show one in every process
    if choice["model"] in (OWN, PACKAGED):
        from changepair.tasks.inpainting.crop_pipeline import CropInpaintPipeline

        pipeline = CropInpaintPipeline.from_pretrained(folder / PIPELINE_NAME).to(device)
        return Own(pipeline, settings)
    from diffusers import AutoPipelineForInpainting

    model, dtype = choice["model"], getattr(torch, settings.dtype)
    try:
        pipeline = AutoPipelineForInpainting.from_pretrained(model, revision=choice["revision"], dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"inpainter.model: {model!r} cannot be loaded as an inpainting pipeline of diffusers from a folder or the hub: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return AnyDiffusion(pipeline.to(device), settings)


class Own:
    """The small model of tasks/inpainting/crop_pipeline.py. It ignores texts.

    It paints in double precision, so that pairs have the same bytes on every machine. In single precision, kernels for other instruction
    sets differ by 1e-6 of the range, which rounds one value in a million to another level. In double they differ by 1e-15, which rounds
    none.
    """

    def __init__(self, pipeline: Any, settings: RepaintingSettings) -> None:
        self.pipeline, self.steps = pipeline.in_double(), settings.steps

    def __call__(self, images: Tensor, masks: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        steps = {} if self.steps is None else {"num_inference_steps": self.steps}
        with one_thread():
            painted: Tensor = self.pipeline(images.double(), masks.double(), generator=_generators(seeds), **steps).images
            return painted.float().cpu()


class AnyDiffusion:
    """Any inpainting pipeline of diffusers, at its own or the set resolution."""

    def __init__(self, pipeline: Any, settings: RepaintingSettings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.lock = threading.Lock()  # a scheduler holds the state of the pictures in progress
        pipeline.set_progress_bar_config(disable=True)

    def __call__(self, images: Tensor, masks: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        size = (self.settings.resolution or self._own_resolution(),) * 2
        asked: dict[str, Any] = {"height": size[0], "width": size[1], "guidance_scale": self.settings.guidance, "output_type": "pt"}
        if self.settings.steps is not None:
            asked["num_inference_steps"] = self.settings.steps
        large = F.interpolate(images, size, mode="bilinear", antialias=True)
        holes = (F.interpolate(masks, size, mode="bilinear", antialias=True) > 0).float()  # so that no object shows around the holes
        with self.lock, one_thread():
            painted = self.pipeline(prompt=list(texts), image=large, mask_image=holes, generator=_generators(seeds), **asked)
        answer = F.interpolate(painted.images.float().cpu(), images.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
        refused = getattr(painted, "nsfw_content_detected", None)
        if refused:  # a safety checker blackens pictures; the original is returned, which counts as no change
            answer = torch.where(torch.tensor(refused)[:, None, None, None], images, answer)
        return answer

    def _own_resolution(self) -> int:
        denoiser: Any = getattr(self.pipeline, "unet", None) or self.pipeline.transformer
        return int(denoiser.config.sample_size) * int(self.pipeline.vae_scale_factor)


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return generators on the CPU, because random numbers differ between types of GPU."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


_lock = threading.Lock()
_inside, _threads_before = 0, 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Run an operation on the CPU in one thread. With more, the low bits of sums depend on the number of cores. Shards use the other
    cores."""
    global _inside, _threads_before
    with _lock:
        if _inside == 0:
            _threads_before = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)  # of this thread, and of MKL everywhere
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_threads_before)
