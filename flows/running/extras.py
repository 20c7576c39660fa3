"""Name the extra of this package that installs a missing module."""

from __future__ import annotations

from importlib.metadata import requires
from traceback import walk_tb

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("pipelines", "serve", "export", "samples", "s3", "plots", "trackers")
SERVICES = "changepair.flows.prediction."  # modules of the page and the service, which share packages with pipelines
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "skimage": "scikit-image", "sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
"""Distributions that are named differently from their module."""


def line_of(error: ModuleNotFoundError) -> str | None:
    """Say which extra installs a missing module; None if none does."""
    module = (error.name or "").partition(".")[0]
    distribution = canonicalize_name(DISTRIBUTIONS.get(module, module))
    needed = [one for one in map(Requirement, requires("changepair") or ()) if canonicalize_name(one.name) == distribution]
    having = [name for name in EXTRAS if any(one.marker is not None and one.marker.evaluate({"extra": name}) for one in needed)]
    if not having:
        return None
    served = any(frame.f_globals.get("__name__", "").startswith(SERVICES) for frame, _line in walk_tb(error.__traceback__))
    extra = "serve" if served and "serve" in having else having[0]
    return f"this needs {module}, which is not installed; pip install 'changepair[{extra}]'"
