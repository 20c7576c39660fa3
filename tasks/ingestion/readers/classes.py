"""Read datasets of classes: MNIST and CIFAR-10. Every picture is normal for its class; a sampling protocol sets which are anomalous."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.ingestion.listing import GOOD, DatasetFolder, Item, ListedPicture, folders, pictures, write_png

CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_SIDE = 32
CIFAR_BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
IDX_IMAGES, IDX_LABELS = 2051, 2049  # magic numbers (LeCun et al., the MNIST database)
SPLIT_FOLDERS = {"train": ("training", "train"), "test": ("testing", "test")}


def mnist(source: DatasetFolder) -> Iterator[Item]:
    """Read train-images-idx3-ubyte and its siblings, gzipped or not; or folders training/<digit>/*.png and testing/<digit>/*.png."""
    for split, start in (("train", "train"), ("test", "t10k")):
        images, labels = (
            _either(source.folder, f"{start}-{kind}", f"{start}-{kind}".replace("-idx", ".idx"))
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        if images is None or labels is None:
            yield from _class_folders(source, split)
            continue
        arrays, digits = _idx(images, IDX_IMAGES), _idx(labels, IDX_LABELS)
        if len(arrays) != len(digits):
            raise BadInput(f"{images}: {len(arrays)} pictures, but {labels.name} has {len(digits)} labels")
        yield from _written(source, split, arrays, [str(digit) for digit in digits])


def cifar10(source: DatasetFolder) -> Iterator[Item]:
    """Read the binary version (data_batch_1.bin, …), the Python version (data_batch_1, …), or folders train/<class> and test/<class> of
    PNG."""
    for split, batches in CIFAR_BATCHES.items():
        present = [file for name in batches if (file := _either(source.folder, f"{name}.bin", name)) is not None]
        if not present:
            yield from _class_folders(source, split)
        for file in present:
            arrays, labels = _cifar_binary(file) if file.suffix == ".bin" else _cifar_python(file)
            yield from _written(source, split, arrays, [CIFAR_NAMES[label] for label in labels], file.stem)


def _class_folders(source: DatasetFolder, split: str) -> Iterator[Item]:
    tried = [source.folder / inner / name for inner in ("", "mnist_png", "cifar10") for name in SPLIT_FOLDERS[split]]
    folder = next((at for at in tried if folders(at)), None)
    if folder is None:
        names = " nor ".join(f"{name}/<class>" for name in SPLIT_FOLDERS[split])
        raise BadInput(f"{source.name}: {source.folder} has neither the packed files of its layout nor {names}")
    for child in folders(folder):
        yield from pictures(child, child.name, split, GOOD)


def _either(folder: Path, *names: str) -> Path | None:
    """Find the first of the names that exists, gzipped or not, in the folder or one level down."""
    inside = [folder, *folders(folder)]
    return next((file for at in inside for name in names for file in (at / name, at / f"{name}.gz") if file.is_file()), None)


def _idx(file: Path, magic: int) -> NDArray[np.uint8]:
    """Read an IDX file: pictures (N, H, W), or labels (N,)."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        dimensions = 3 if magic == IDX_IMAGES else 1
        present, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
        if present != magic:
            raise ValueError(f"its magic number is {present}, not {magic}")
        return np.frombuffer(content, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise BadInput(f"{file}: not an IDX file, or truncated ({in_short(error)})") from error


def _cifar_binary(file: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """Read rows of one label and 3x32x32 bytes: red, green, blue."""
    content = np.frombuffer(file.read_bytes(), np.uint8)
    row = 1 + 3 * CIFAR_SIDE**2
    if not len(content) or len(content) % row:
        raise BadInput(f"{file}: {len(content)} bytes, not a multiple of {row}; the file may be truncated, so download it again")
    rows = content.reshape(-1, row)
    return _pixels(file, rows[:, 1:], rows[:, 0].tolist())


class _Plain(pickle.Unpickler):
    """Unpickle only arrays and built-in types. Everything else is refused before it is created."""

    ARRAYS = (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"))
    ALLOWED = frozenset({*ARRAYS, ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it needs {module}.{name}")
        return super().find_class(module, name)


def _cifar_python(file: Path) -> tuple[NDArray[np.uint8], list[int]]:
    try:
        with file.open("rb") as stream:
            content = _Plain(stream, encoding="bytes").load()
        data, labels = np.asarray(content[b"data"], dtype=np.uint8), [int(label) for label in content[b"labels"]]
    except Exception as error:  # a pickle may raise anything
        raise BadInput(f"{file}: refused, because it is not a CIFAR-10 batch that holds only arrays ({in_short(error)})") from error
    return _pixels(file, data, labels)


def _pixels(file: Path, data: NDArray[np.uint8], labels: list[int]) -> tuple[NDArray[np.uint8], list[int]]:
    if data.shape != (len(labels), 3 * CIFAR_SIDE**2) or any(not 0 <= label < len(CIFAR_NAMES) for label in labels):
        raise BadInput(f"{file}: {data.shape} pixels for {len(labels)} labels, not rows of 3x32x32 with labels 0 to 9")
    return data.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1), labels


def _written(source: DatasetFolder, split: str, arrays: NDArray[np.uint8], classes: Sequence[str], batch: str = "") -> Iterator[Item]:
    for number, (array, name) in enumerate(zip(arrays, classes, strict=True)):
        image = source.written / split / name / f"{batch}{'-' if batch else ''}{number:05d}.png"
        yield ListedPicture(image, name, split, GOOD, (), partial(write_png, image, array))
