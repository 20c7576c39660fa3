"""Estimate the memory of a request, from the headers of its pictures and a measurement of the detector."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from changepair.tasks.common.tiles import Tiles, grid_of
from changepair.tasks.prediction.memory import RGB, Needs
from changepair.tasks.prediction.predictor import BATCH, PROMPTS, Predictor, in_flight

MAP_BYTES = 20  # bytes per pixel of a map while it is joined, drawn and written as PNG
UNMEASURED = 40
"""Bytes of activations per byte of the encoder's input, if they cannot be measured. The packaged detectors need 22 to 35 with up to 8
prompts."""
PROC = Path("/proc/self")


@dataclass(frozen=True)
class Costs:
    """The memory that a detector needs, in bytes."""

    tile: int
    """One tile as the encoder's input."""
    remembered: int
    """One tile of a prompt in the detector's memory."""
    batch_size: int
    """Number of tiles that are scored at once."""
    activations: int
    """Peak of the activations while `batch_size` tiles are scored. 0 if they are not in the host's memory."""
    tiles: Tiles
    """The detector's setting `tiles`."""

    @classmethod
    @torch.inference_mode()
    def of(cls, predictor: Predictor, *, batch_size: int = BATCH, prompts: int) -> Costs:
        """Measure a detector on one batch of black tiles. prompts: largest number of prompts of a picture."""
        detector, looks = predictor.detector, predictor.model.looks
        black = torch.zeros(1, RGB, looks.resolution, looks.resolution, device=predictor.device)
        blank = detector.memorise(black)  # also initialises what stays in memory
        memory = [part.expand(prompts, *part.shape[1:]) for part in blank]

        def score() -> None:
            tiles = torch.cat([black] * batch_size)  # as `Predictor.encode` joins them
            features = detector.encoder(tiles)
            detector.memorise(tiles, features)
            detector.conclude(features, detector.relate(features, memory))

        activations = 0
        if predictor.device.type == "cpu":
            measured = growth_of(score)
            activations = UNMEASURED * batch_size * black.nbytes if measured is None else measured
        return cls(black.nbytes, sum(part.nbytes for part in blank), batch_size, activations, looks.tiles)

    def scoring(self, own: Predictor, needs: Sequence[Needs]) -> int:
        """Return the memory to decode pictures one by one and to hold their tiles, without activations.

        own: the predictor that scores them, with its prompts.
        """
        return max(one.decoding for one in needs) + self._compared(own, len(needs), len(needs))

    def predicting(self, own: Predictor, needs: Sequence[Needs]) -> int:
        """Return the memory of `Predictor.each`, with one map and one overlay at a time, without activations."""
        pixels = sorted((one.pixels for one in needs), reverse=True)
        held = in_flight(own.prompted.grid.tiles, self.batch_size)
        drawing, decoding = MAP_BYTES * pixels[0], max(one.decoding for one in needs)
        at_once = drawing + decoding if len(needs) > 1 else max(drawing, decoding)  # the next picture is decoded in the background
        return RGB * sum(pixels[:held]) + at_once + self._compared(own, len(needs), held)

    def prompting(self, needs: Sequence[Needs]) -> int:
        """Return the memory of `Predictor.prompt`, with activations and the features that it keeps."""
        count, largest = len(needs), max(one.pixels for one in needs)
        cut = grid_of(self.tiles, [one.size for one in needs]).tiles
        mirrored = min(count, in_flight(cut, BATCH))
        scoring = (RGB * mirrored + MAP_BYTES) * largest + mirrored * cut * self.tile
        at_once = max(min(count, PROMPTS), min(BATCH, count * cut))
        copied = min(BATCH, count * cut) * count * self.remembered if cut > 1 else 0
        encoding = (at_once + 1) * self.activations // self.batch_size + 2 * count * (self.tile + cut * self.remembered) + copied
        return sum(one.held for one in needs) + encoding + max(*(one.decoding for one in needs), scoring)

    def _compared(self, own: Predictor, count: int, held: int) -> int:
        """Return the size of the tiles of `held` of `count` pictures, and of the prompts' features copied for each tile of a batch."""
        cut = own.prompted.grid.tiles
        copied = min(self.batch_size, count * cut) * sum(part[0].nbytes for part in own.prompted.memory) if cut > 1 else 0
        return min(count, held) * cut * self.tile + copied


def bytes_of(predictors: Sequence[Predictor]) -> int:
    """Return the size of detectors' tensors and of their prompts' features."""
    detectors = {id(one.detector): one.detector for one in predictors}.values()
    tensors = [tensor for detector in detectors for tensor in detector.state_dict().values()]
    return sum(tensor.nbytes for tensor in (*tensors, *(part for one in predictors for part in one.prompted.memory)))


def growth_of(work: Callable[[], object]) -> int | None:
    """Return the largest growth of this process's resident memory while `work` runs, in bytes.

    Return None if the system does not measure it. See clear_refs and VmHWM in proc(5).
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # free but resident memory would hide a part of the growth
    try:
        (PROC / "clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
        before = min(_status("VmRSS"), _status("VmHWM"))
    except (OSError, KeyError):
        before = None
    work()
    return None if before is None else max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    """Return a size in the status of this process, in bytes. Raises KeyError."""
    lines = (PROC / "status").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) * 1024
