"""Define the evaluation settings in pipelines.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from changepair.tasks.common.bounds import STRICT, Between
from changepair.tasks.scoring.perturbation_names import Perturbations

Queries = Annotated[int, Between(2, None)]
Convention = Literal["exact", "published"]


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of scoring, metrics and galleries."""

    __pydantic_config__ = STRICT

    batch_size: Annotated[int, Between(1, None)] = 32
    """Number of queries scored at once. Scores at different batch sizes agree within 5e-6."""
    resolution: Annotated[int, Between(32, 2048)] = 256
    """Pixels a side at which anomaly maps and masks are compared."""
    subset: dict[str, Queries] = field(default_factory=dict)
    """Number of queries of each category that a slow detector scores, by detector: the first in the episodes' seeded order."""
    shown: Annotated[int, Between(0, None)] = 6
    """Number of pictures of each category in the overlays, and of each kind in a detector's gallery (missed, false alarms, borderline,
    found)."""
    convention: Convention = "exact"
    """How AUPRO is computed. `exact` is the area up to a false positive rate of 0.3, divided by 0.3. `published` follows most published
    tables: 200 thresholds, with the rates below 0.3 rescaled. `published` also resizes masks as MetaUAS's authors do: bilinear, and every
    value above 0 counts. With `exact`, a pixel is anomalous if it covers an anomalous pixel of the mask, so no region vanishes."""
    perturbations: Annotated[tuple[str, ...], Perturbations()] = ()
    """Perturbations under which normal test pictures are scored too, for `robustness.csv`, such as `jpeg-50`. Each is a kind and a
    strength. `jpeg`: quality. `blur`: sigma. `noise`: standard deviation in grey levels. `gain`: factor. `gamma`: exponent. `side-light`:
    gain across the picture. `shift`: distance. `rotation`: degrees. `resolution` and `crop`: share of each side. Blur and shift are in
    pixels of a picture whose shorter side has 256. Empty scores no perturbed picture."""
    perturbed: Annotated[int, Between(2, None)] = 50
    """Number of normal test pictures of each category that are scored under each perturbation: the first in the episodes' seeded order."""
