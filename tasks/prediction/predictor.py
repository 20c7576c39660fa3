"""Score pictures against a few normal ones.

    predictor = Predictor.load()                       # or a model folder, a kit, the name of a detector
    predictor.prompt(["normal.png"])
    scores, maps = predictor(["part.png", array])      # 0 normal … 1 anomalous, and where

Pictures are paths, bytes, PIL images, arrays or tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from changepair.tasks.common.decoding import Intensity, choose_range, extent_of
from changepair.tasks.common.devices import best_device
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.imports import uncollected
from changepair.tasks.common.pictures import Picture
from changepair.tasks.common.places import place_of
from changepair.tasks.common.tensors import joined_maps, squared_tile, uncropped
from changepair.tasks.common.tiles import Box, Grid, boxes, grid_of, seams
from changepair.tasks.detectors.detector import ANY_CATEGORY
from changepair.tasks.encoders.encoder import Features
from changepair.tasks.prediction.calibration import Threshold, calibrated, check_count
from changepair.tasks.prediction.files import is_kit
from changepair.tasks.prediction.kit import Kit, Prompted
from changepair.tasks.prediction.models import Named, named
from changepair.tasks.prediction.pictures import PictureLike, as_decoded, as_list, as_picture, scaled

BATCH = 8  # pictures, or tiles, that go through the encoder at once
PROMPTS = 32  # prompts that are encoded at once
BEYOND_PROMPTS = 1.2
"""Maximum of normal pictures' maps, as a multiple of the maximum for the mirrored prompts. It was tested with 4 packaged detectors, 5
textures, and 1 and 4 prompts. The median of 8 new normal pictures was within it in 32 of 40 cases."""
CPU = torch.device("cpu")
Refuse = Callable[[int, BadInput], None]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Prediction:
    """The result for one picture."""

    number: int
    """Position of the picture among the given pictures, from 0."""
    score: float
    """Image score, 0 normal … 1 anomalous. With tiles, the highest score of a tile."""
    map: NDArray[np.float32]
    """Anomaly map HxW in [0, 1], at the picture's size."""
    picture: Picture
    """Pixels HxWx3 uint8 RGB of the decoded picture."""


class Predictions(NamedTuple):
    """The results for N pictures."""

    scores: NDArray[np.float32]
    """Image scores N, 0 normal … 1 anomalous."""
    maps: list[NDArray[np.float32]]
    """N anomaly maps HxW in [0, 1], each at its picture's size."""


class Tile(NamedTuple):
    """A part of a picture, or the whole picture, as input of a detector."""

    place: int
    """Index in the grid."""
    size: tuple[int, int]
    """Height and width in the picture, in pixels."""
    pixels: Tensor
    """Input 1x3xhxw in [0, 1]."""


class Said(NamedTuple):
    """The result for a tile."""

    score: float
    map: NDArray[np.float32]
    """Anomaly map hxw in [0, 1], on the detector's grid."""


class Predictor:
    """A detector with its prompts and, after calibration, its threshold.

    A score depends only on the picture and the prompts. Scores at different batch sizes agree within 5e-6.

    >>> import skimage.data
    >>> texture = skimage.data.gravel()
    >>> predictor = Predictor.load().prompt(texture[:200, :200])
    >>> dented = texture[200:400, 100:300].copy()
    >>> dented[80:120, 60:100] = 0
    >>> scores, maps = predictor([texture[200:400, 100:300], dented])
    >>> bool(scores[1] > 1.5 * scores[0]), maps[1].shape
    (True, (200, 200))
    >>> row, column = divmod(int(maps[1].argmax()), 200)
    >>> 80 <= row < 120 and 60 <= column < 100
    True
    """

    def __init__(
        self, model: Named, *, prompted: Prompted | None = None, threshold: Threshold | None = None, device: torch.device | None = None
    ) -> None:
        self.device = device or best_device()
        self.model = model
        self.detector = model.detector.to(self.device).eval()
        self.prompted = prompted or Prompted([], grid_of(model.looks.tiles, []), ANY_CATEGORY, ())
        self._memory = [part.to(self.device) for part in self.prompted.memory]
        self.threshold = threshold

    @classmethod
    @uncollected(freeze=False)  # it imports the libraries of the detector
    def load(cls, model: str | Path = "packaged", *, device: torch.device | None = None) -> Predictor:
        """Load a detector.

        model: `packaged`, a name from `list_detectors`, a model folder, or a kit. A kit has its prompts. Raises BadInput if the detector
        does not exist or is damaged.
        """
        folder = place_of(model)
        if is_kit(folder):
            kit = Kit.load(folder)
            return cls(kit.model, prompted=kit.prompted, threshold=kit.threshold, device=device)
        return cls(named(model), device=device)

    @property
    def ready(self) -> bool:
        """Whether it can score pictures: it has prompts, or needs none."""
        return bool(self._memory) or not self.detector.needs_prompts

    @torch.inference_mode()
    def prompt(
        self,
        pictures: PictureLike | Iterable[PictureLike],
        *,
        category: str = ANY_CATEGORY,
        grid: Grid | None = None,
        intensity: Intensity | None = None,
        refuse: Refuse | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Predictor:
        """Replace the prompts by these normal pictures, and remove the threshold. Return the predictor itself.

            category    name of the object in the pictures, for text-prompted detectors
            grid        tiles that each picture is cut into; None follows the detector's setting `tiles`
            intensity   range of pictures of more than 8 bits; None chooses it from the prompts (`choose_range`)
            refuse      called for each unreadable picture, which is left out; with None its BadInput is raised
            check       called before each step; its exception ends the work and leaves the predictor unchanged

        Raises BadInput if the detector needs a prompt and there is none.
        """
        listed = as_list(pictures)
        names = [_name(picture, place) for place, picture in enumerate(listed)]
        decoded = _each(lambda place: as_decoded(listed[place], names[place]), range(len(listed)), refuse)
        if intensity is None:
            intensity = choose_range(extent_of(one) for one in decoded.values() if one.deep)
        given = list(_each(lambda place: scaled(decoded[place], names[place], intensity), decoded, refuse).values())
        if not given and self.detector.needs_prompts:
            raise BadInput(f"no prompt: {self.model.name} needs at least one normal picture to compare with")
        chosen = grid or grid_of(self.model.looks.tiles, [picture.shape[:2] for picture in given])
        places: list[list[Any]] = []
        for place in range(chosen.tiles) if given else ():
            check()
            tiles = torch.cat([self._seen(picture, boxes(picture.shape[:2], chosen)[place]) for picture in given])
            encoded = [self.detector.memorise(part.to(self.device)) for part in tiles.split(PROMPTS)]
            memory = [torch.cat(parts) for parts in zip(*encoded, strict=True)]
            places.append(self.detector.bounded(self.detector.of_tile(memory, seams(place, chosen, self.model.looks.encoder.resize))))
        memory = [torch.stack(parts) for parts in zip(*places, strict=True)]
        prompted = Prompted(memory, chosen, category, tuple(map(_hash, given)), intensity=intensity)
        tops = []
        for one in Predictor(self.model, prompted=prompted, device=self.device).each(np.ascontiguousarray(one[:, ::-1]) for one in given):
            check()
            tops.append(float(one.map.max()))
        self.prompted = replace(prompted, top=float(np.median(tops)) if tops else 0.0)
        self._memory = memory
        self.threshold = None
        return self

    @property
    def top(self) -> float:
        """Map value that normal pictures reach: from the pictures that set the threshold, otherwise estimated from the prompts."""
        return (self.threshold.top if self.threshold is not None else 0.0) or BEYOND_PROMPTS * self.prompted.top

    def __call__(self, pictures: PictureLike | Iterable[PictureLike], *, batch_size: int = BATCH) -> Predictions:
        """Score pictures. Use `each` for very many pictures. Raises BadInput without prompts, or if a picture cannot be read."""
        found = [(one.score, one.map) for one in self.each(as_list(pictures), batch_size=batch_size)]
        return Predictions(np.array([score for score, _map in found], dtype=np.float32), [map_ for _score, map_ in found])

    def each(self, pictures: Iterable[PictureLike], *, batch_size: int = BATCH, refuse: Refuse | None = None) -> Iterator[Prediction]:
        """Score pictures one by one, in order, and keep none. The next pictures are read in the background.

        refuse: called for each unreadable picture, which is left out; with None its BadInput is raised.
        """
        if not self.ready:
            raise BadInput(f"no prompt: {self.model.name} needs at least one normal picture to compare with")
        waiting: list[tuple[int, Picture]] = []
        said: list[Said] = []
        tiles = self.prompted.grid.tiles
        for part in _parts(self._read(pictures, batch_size, refuse, waiting), batch_size):
            said += self.conclude(self.encode(part), part)
            while len(said) >= tiles:
                number, picture = waiting.pop(0)
                yield Prediction(number, score_of(said[:tiles]), self.map_of(said[:tiles], picture.shape[:2]), picture)
                del said[:tiles]

    def calibrate(
        self, normals: Iterable[PictureLike], *, false_alarms: float = 0.01, batch_size: int = BATCH, refuse: Refuse | None = None
    ) -> Threshold:
        """Set the threshold from normal pictures, and return it. Pictures that are prompts are left out.

        false_alarms: target false-alarm rate, a fraction. Raises BadInput if the pictures are too few for it.
        """
        scores, tops, prompts = [], [], 0
        for one in self.each(normals, batch_size=batch_size, refuse=refuse):
            if _hash(one.picture) in self.prompted.prompts:
                prompts += 1
                continue
            scores.append(one.score)
            tops.append(float(one.map.max()))
        check_count(len(scores), false_alarms, prompts=prompts)
        self.threshold = calibrated(scores, tops, false_alarms)
        return self.threshold

    def save(self, folder: str | Path) -> None:
        """Write a kit: a self-contained folder with detector, prompts and threshold, which `load` reads.

        Raises BadInput without prompts, or if the folder contains anything else.
        """
        if not self.ready:
            raise BadInput(f"{folder}: a kit needs prompts; give at least one normal picture")
        Kit(self.model, self.prompted, self.threshold).save(folder)

    def cut(self, picture: Picture) -> list[Tile]:
        """Cut a picture HxWx3 into the tiles that the detector sees."""
        places = boxes(picture.shape[:2], self.prompted.grid)
        return [Tile(place, box.size, self._seen(picture, box)) for place, box in enumerate(places)]

    @torch.inference_mode()
    def encode(self, tiles: Sequence[Tile]) -> Features:
        """Encode tiles of this predictor, or of others with the same model."""
        return self.detector.encoder(torch.cat([tile.pixels for tile in tiles]).to(self.device))

    @torch.inference_mode()
    def conclude(self, features: Features, tiles: Sequence[Tile]) -> list[Said]:
        """Compare tiles with the prompts. features: the tiles' features from `encode`."""
        memory = self._memory
        if memory:
            shared = self.prompted.grid.tiles == 1  # all tiles have the same memory, so they are compared at once
            memory = [part[0] if shared else part[[tile.place for tile in tiles]] for part in memory]
        relation = self.detector.relate(features, memory) if memory else []
        scores, maps = self.detector.conclude(features, relation, self.prompted.category)
        if self.model.looks.encoder.resize == "crop":
            maps = uncropped(maps, [tile.size for tile in tiles])
        if not torch.isfinite(scores + maps.sum((1, 2))).all():
            raise BadInput(f"{self.model.name}: a score is not a number; its weights are damaged, so load or train it again")
        return [Said(score, map_) for score, map_ in zip(scores.float().cpu().tolist(), maps.float().cpu().numpy(), strict=True)]

    def map_of(self, said: Sequence[Said], size: tuple[int, int]) -> NDArray[np.float32]:
        """Join the maps of a picture's tiles. size: height and width of the picture."""
        return joined_maps([one.map for one in said], self.prompted.grid, *size)

    def _read(
        self, pictures: Iterable[PictureLike], batch_size: int, refuse: Refuse | None, waiting: list[tuple[int, Picture]]
    ) -> Iterator[Tile]:
        """Read pictures ahead, and yield their tiles. waiting: receives each picture with its number, before its tiles."""

        def read(part: Sequence[tuple[int, PictureLike]]) -> list[tuple[int, Picture]]:
            given = dict(part)
            found = _each(lambda number: as_picture(given[number], _name(given[number], number), self.prompted.intensity), given, refuse)
            return list(found.items())

        ahead = max(1, batch_size // self.prompted.grid.tiles)  # pictures, each with all its tiles
        for number, picture in chain.from_iterable(_ahead(read, _parts(enumerate(pictures), ahead))):
            waiting.append((number, picture))
            yield from self.cut(picture)  # here, because PyTorch would start threads for the reading one, which wait actively

    def _seen(self, picture: Picture, box: Box) -> Tensor:
        """Cut a part out of a picture as input of the encoder: 1x3xhxw in [0, 1]."""
        looks = self.model.looks
        return squared_tile(picture, box, looks.resolution, CPU, looks.encoder.resize)


def in_flight(tiles: int, batch_size: int) -> int:
    """Return the largest number of pictures that `Predictor.each` holds, in the batch and read ahead. tiles: tiles of each picture."""
    return (2 if tiles == 1 else 3) * max(1, batch_size // tiles)


def score_of(said: Sequence[Said]) -> float:
    """Return the score of a picture, the highest of its tiles."""
    return max(one.score for one in said)


def _each(work: Callable[[int], Item], places: Iterable[int], refuse: Refuse | None) -> dict[int, Item]:
    """Return the result of `work` for each place. With `refuse`, places that raise BadInput are left out and reported."""
    results = {}
    for place in places:
        try:
            results[place] = work(place)
        except BadInput as error:
            if refuse is None:
                raise
            refuse(place, error)
    return results


def _parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last may be shorter."""
    left = iter(items)
    while part := list(islice(left, size)):
        yield part


def _ahead(work: Callable[[Any], list[Item]], parts: Iterable[Any]) -> Iterator[list[Item]]:
    """Do the work on each part in another thread, one part ahead."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for part in parts:
            following = pool.submit(work, part)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def _name(given: Any, number: int) -> str:
    return str(given) if isinstance(given, (str, Path)) else f"picture {number + 1}"


def _hash(picture: Picture) -> str:
    digest = hashlib.sha256(repr(picture.shape).encode())
    digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()
