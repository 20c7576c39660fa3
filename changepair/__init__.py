"""Few-shot anomaly detection, learned from change pairs.

    from changepair import Predictor

    predictor = Predictor.load().prompt(["normal.png"])
    scores, maps = predictor(["part.png"])  # a score from 0 (normal) to 1 (anomalous), and a map of where

Names are imported on first use, so `import changepair` is fast and does not import torch.

>>> import changepair
>>> "metauas" in changepair.list_detectors()
True
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from changepair.tasks.common.errors import BadInput
    from changepair.tasks.pairs.sampler import PairSampler
    from changepair.tasks.prediction.kit import Kit
    from changepair.tasks.prediction.models import list_detectors, load_detector
    from changepair.tasks.prediction.predictor import Predictor
    from changepair.tasks.synthesis.dataset import ChangePairs

    __version__: str

__all__ = ["BadInput", "ChangePairs", "Kit", "PairSampler", "Predictor", "__version__", "list_detectors", "load_detector"]

_MODULES = {
    "BadInput": "common.errors",
    "ChangePairs": "synthesis.dataset",
    "Kit": "prediction.kit",
    "PairSampler": "pairs.sampler",
    "Predictor": "prediction.predictor",
    "list_detectors": "prediction.models",
    "load_detector": "prediction.models",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("changepair")
    if name not in _MODULES:
        raise AttributeError(f"module 'changepair' has no attribute {name!r}")
    from changepair.tasks.common.imports import uncollected

    with uncollected(freeze=False):
        return getattr(import_module(f"changepair.tasks.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
