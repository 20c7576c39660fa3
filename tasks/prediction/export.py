"""Export a detector as one file for ONNX Runtime or `torch.export.load`, with its prompts inside or as an input.

    inputs    queries Bx3xHxW in [0, 1]; without prompts inside also prompts Kx3xHxW. B and K are any.
              HxW is the detector's resolution, or any size.
              If prompts inside are cut into tiles, each query is one tile, and places B has its index: row x columns + column
    outputs   scores B, 0 normal … 1 anomalous; maps BxHxW in [0, 1]

Each export is compared with the detector before it is written.
"""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changepair.tasks.common import decoding
from changepair.tasks.common.decoding import Range
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text, written_beside
from changepair.tasks.common.tiles import AUTO, OVERLAP
from changepair.tasks.detectors.detector import Detector
from changepair.tasks.encoders.encoder import Features, FrozenEncoder
from changepair.tasks.prediction.predictor import CPU, Predictor

Form = Literal["onnx", "torch"]
NAMES: dict[Form, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
ABOUT_NAME, READER_NAME = "export.json", "read_pictures.py"
ABOUT_KEY = "changepair"  # key in an ONNX model's metadata that has the content of ABOUT_NAME
CLOSE = 1e-4  # largest allowed difference between the outputs of the export and the detector


@dataclass(frozen=True)
class About:
    """Describe an exported file to its users: the content of ABOUT_NAME."""

    changepair: str
    """Version of changepair."""
    detector: str
    resolution: int
    """Pixels a side that the detector sees."""
    any_size: bool
    """Whether the file accepts pictures of any size and resizes them. Otherwise they must have the resolution."""
    resize: str
    """How a tile, or a whole picture, becomes a square of the resolution. `squash`: Pillow's BICUBIC. `crop`: Pillow's BICUBIC to the
    resolution on the shorter side and int(resolution * longer / shorter) on the other, then the middle square. `aligned`: bilinear between
    the corners' pixels (align_corners), without antialias."""
    grid: tuple[int, int] | None
    """Rows and columns of tiles that every picture is cut into. The picture's score is the highest score of its tiles. None if prompts
    are an input and determine the grid. A prompt with more than 2,048 pixels on its longer side then needs ceil(height / 1024) rows and
    ceil(width / 1024) columns. Pictures have the largest grid of all prompts. Each tile is compared with the same tile of the prompts. The
    file then scores tiles up to their edges, where the robust residual of a Predictor leaves out the seams."""
    overlap: float
    """How far a tile reaches into each neighbour, as a share of the picture's side divided by rows or columns."""
    reader: str
    """The file next to the model that reads pictures: `read_file(path, Intensity(...))` returns HxWx3 uint8 RGB. It applies the EXIF
    orientation, composites transparency over white, and scales pictures of more than 8 bits. It needs numpy and Pillow, and for some
    files tifffile, imagecodecs and pydicom."""
    intensity: dict[str, Range | bool | None]
    """Fields of that Intensity: [low, high] of integer and of float samples; null for the full range of the type."""
    prompts: int
    """Number of prompts inside. 0 if they are an input."""
    threshold: float | None
    false_alarms: float | None
    """Target false-alarm rate of the threshold, a fraction."""
    farthest: float
    """Largest difference between the outputs of the file and the detector, on three generated pictures."""


class Exported(nn.Module):
    """A detector as one function of tensors."""

    def __init__(self, detector: Detector, memory: Features, category: str, side: int | None) -> None:
        """Wrap a detector.

        memory: features of the prompts inside, TxKx... for T tiles; [] if prompts are an input. side: pixels a side that pictures of any
        size are resized to; None to not resize.
        """
        super().__init__()
        self.detector, self.memory, self.category, self.side = detector, memory, category, side

    def forward(self, queries: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score queries. other: prompts if none are inside, or places if the prompts inside are cut into tiles."""
        scores, maps = self.detector.score(self._seen(queries), self._known(other), self.category)
        if self.side is not None:  # without a check for equal size, because the size is dynamic
            maps = F.interpolate(maps[:, None], queries.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return scores, maps

    def _known(self, other: Tensor | None) -> Features | Tensor:
        if not self.memory:
            return [] if other is None else self._seen(other)
        return [part[0] if other is None else part[other] for part in self.memory]

    def _seen(self, pictures: Tensor) -> Tensor:
        if self.side is None:
            return pictures
        return F.interpolate(pictures, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def export(predictor: Predictor, folder: Path, form: Form, *, any_size: bool = False) -> About:
    """Write the exported file and ABOUT_NAME to `folder`, after comparing its outputs with the detector's.

    predictor: do not use it afterwards, because its network is changed. Raises BadInput if the detector cannot be exported, if the outputs
    differ, or if packages are missing.
    """
    looks, grid = predictor.model.looks, predictor.prompted.grid
    _check(predictor, any_size)
    detector = predictor.detector.to(CPU)
    memory = [part.to(CPU) for part in predictor.prompted.memory]
    module = Exported(detector, memory, predictor.prompted.category, looks.resolution if any_size else None).eval()
    tried = _examples(predictor, any_size)
    with torch.no_grad():
        expected = [module(*inputs.values()) for inputs in tried]
    for network in detector.modules():
        if isinstance(network, FrozenEncoder):
            network.become_fast()  # folds layers if the result is equal
    detector.requires_grad_(False)
    try:
        content = _exported(module, tried[0], form, any_size=any_size)
    except ImportError as error:
        raise BadInput(f"{error}; run `pip install 'changepair[export]'`") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{predictor.model.name} with these settings cannot be exported: {reason[:200]}") from error
    run = _run_onnx if form == "onnx" else _run_torch
    farthest = max(_difference(run(content, inputs), wanted) for inputs, wanted in zip(tried, expected, strict=True))
    if not farthest <= CLOSE:
        raise BadInput(f"{predictor.model.name}: exported scores or maps differ by {farthest:.2g} from the detector's; nothing is written")
    threshold = predictor.threshold
    about = About(
        changepair=version("changepair"),
        detector=predictor.model.name,
        resolution=looks.resolution,
        any_size=any_size,
        resize=looks.encoder.resize,
        grid=None if "prompts" in tried[0] and looks.tiles == AUTO else (grid.rows, grid.columns),
        overlap=OVERLAP,
        reader=READER_NAME,
        intensity=asdict(predictor.prompted.intensity),
        prompts=len(predictor.prompted.prompts),
        threshold=None if threshold is None else threshold.value,
        false_alarms=None if threshold is None else threshold.false_alarms,
        farthest=farthest,
    )
    text = json.dumps(asdict(about), indent=1)
    if form == "onnx":
        import onnx

        model = onnx.load_model_from_string(content)
        model.metadata_props.add(key=ABOUT_KEY, value=text)
        content = bytes(model.SerializeToString())
    with written_beside(folder / NAMES[form]) as partial:
        partial.write_bytes(content)
    write_text(folder / READER_NAME, Path(decoding.__file__).read_text(encoding="utf-8"))
    write_text(folder / ABOUT_NAME, text + "\n")
    return about


def _check(predictor: Predictor, any_size: bool) -> None:
    """Raise BadInput if the detector cannot be exported in this form."""
    detector, name, resize = predictor.detector, predictor.model.name, predictor.model.looks.encoder.resize
    if any_size and resize != "squash":
        raise BadInput(f"pictures of any size need resize: squash, not {resize}; export for the detector's resolution")
    if detector.not_exported is not None:
        raise BadInput(f"{name} with these settings cannot be exported: {detector.not_exported}")
    if detector.joint and not predictor.prompted.memory:
        raise BadInput(f"{name} with these settings cannot have prompts as an input; give --prompt, or export a kit")


def _examples(predictor: Predictor, any_size: bool) -> list[dict[str, Tensor]]:
    """Return two sets of inputs for comparing outputs."""
    resolution, tiles = predictor.model.looks.resolution, predictor.prompted.grid.tiles
    size = (resolution + 17, resolution + 40) if any_size else (resolution, resolution)
    first, second = {"queries": _pictures(2, size)}, {"queries": _pictures(1, size)}
    if predictor.prompted.memory and tiles > 1:
        first["places"], second["places"] = torch.tensor([0, tiles - 1]), torch.tensor([tiles // 2])
    elif not predictor.prompted.memory and predictor.detector.needs_prompts:
        first["prompts"], second["prompts"] = _pictures(2, size), _pictures(3, size)
    return [first, second]


def _exported(module: Exported, inputs: Mapping[str, Tensor], form: Form, *, any_size: bool) -> bytes:
    """Export the module by tracing one example of the inputs. Return the bytes of the file."""
    names, batch = list(inputs), torch.export.Dim("queries_0")
    shapes = []
    for name, tensor in inputs.items():
        axes: dict[int, Any] = {0: torch.export.Dim("prompts_0") if name == "prompts" else batch}
        if any_size and tensor.dim() == 4:
            axes |= {axis: torch.export.Dim(f"{name}_{axis}") for axis in (2, 3)}
        shapes.append(axes)
    with torch.no_grad(), _quiet():
        program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=tuple(shapes))
        stream = io.BytesIO()
        if form == "torch":
            torch.export.save(program, stream)
            return stream.getvalue()
        import onnx  # noqa: F401 - the exporter needs both; imported here so that an error names the missing one
        import onnxscript  # noqa: F401

        made = torch.onnx.export(program, dynamo=True, input_names=names, output_names=["scores", "maps"], verbose=False)
        assert made is not None
        return made.model_proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' messages off the terminal."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("onnxscript", "onnx_ir", "torch.onnx", "torch.export"))}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _run_onnx(content: bytes, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # otherwise the import writes an id of the machine
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})]


@torch.no_grad()
def _run_torch(content: bytes, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    scores, maps = torch.export.load(io.BytesIO(content)).module()(*inputs.values())
    return [scores.numpy(), maps.numpy()]


def _difference(outputs: Sequence[np.ndarray], expected: Sequence[Tensor]) -> float:
    return max(float(np.abs(output - wanted.numpy()).max()) for output, wanted in zip(outputs, expected, strict=True))


def _pictures(count: int, size: tuple[int, int]) -> Tensor:
    """Generate pictures with structure and without equal patches."""
    random = torch.Generator().manual_seed(count)
    coarse, fine = (torch.rand(count, 3, side, side, generator=random) for side in (6, 48))
    return sum(F.interpolate(part, size, mode="bicubic", align_corners=False).clamp(0, 1) / 2 for part in (coarse, fine))  # type: ignore[return-value]
