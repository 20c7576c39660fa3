"""Register the kinds of detectors: those of this package, and those of other installed packages. The module imports no torch.

A detector in a pipeline has a name. Its setting `kind` selects one of the kinds below, and defaults to the name. Another package registers
a kind by an entry point of the group `changepair.detectors` that names a `Kind`. It is imported when the kind is first looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.detectors.inctrl import settings as inctrl
from changepair.tasks.detectors.metauas import settings as metauas
from changepair.tasks.detectors.prompt_query import settings as prompt_query
from changepair.tasks.detectors.residual import settings as residual
from changepair.tasks.detectors.subspace import settings as subspace
from changepair.tasks.detectors.uniadet import settings as uniadet
from changepair.tasks.detectors.winclip import settings as winclip
from changepair.tasks.training.settings import PairTrainingSettings, TrainingSettings


@dataclass(frozen=True)
class Training:
    settings: type[TrainingSettings]
    module: str
    """Module whose `train` trains the detector. It is given by name, because it needs torch, and because scores do not depend on how a
    model was trained."""


@dataclass(frozen=True)
class Published:
    """The format of the checkpoint that a detector's authors published."""

    settings: Any
    names: tuple[tuple[str, str], ...]  # prefixes of tensor names, the authors' and ours
    home: str
    strict: bool = True  # whether a surplus tensor is an error; the authors' loader may ignore it


@dataclass(frozen=True)
class Kind:
    """A kind of detector: its settings, and how it is built, trained and imported."""

    settings: type[Any]
    model: str
    """Factory of the model as `module:name`, given by name because it needs torch. It is called with an encoder, or with the detector that
    is its `base`, and with the settings of the network by name."""
    training: Training | None = None  # None for a detector that needs no training and has no model folder
    scoring: tuple[str, ...] = ()
    """Settings that no weight depends on, so a trained model can be used with other values. `encoder.scales` names a part of a setting."""
    base: str | None = None
    """Kind of the detector that this one extends. Its setting `model_of` names that detector, whose encoder, weights and resolution it
    uses."""
    published: Published | None = None

    @property
    def modules(self) -> tuple[str, str]:
        """Modules of its settings and of its model. Whatever depends on this detector depends on these modules."""
        return self.settings.__module__, self.model.partition(":")[0]


HERE = __name__.rpartition(".")[0]
SEGMENTATION = Training(PairTrainingSettings, "changepair.tasks.training.segmentation")
RANKING = Training(PairTrainingSettings, f"{HERE}.residual.train")
ODDITY = Training(PairTrainingSettings, f"{HERE}.uniadet.train")
KIND = "kind"  # key of a detector's kind, in pipelines.yaml and in kits
AT_THE_AUTHORS = "the authors' checkpoint, linked from https://github.com"
GROUP = "changepair.detectors"  # group of entry points by which other packages register kinds
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")  # names of detectors, and of kinds that other packages register
BUILT_IN: dict[str, Kind] = {
    "patch-residual": Kind(residual.PatchResidualSettings, f"{HERE}.residual.patch:PatchResidual"),
    "robust-residual": Kind(residual.RobustResidualSettings, f"{HERE}.residual.robust:RobustResidual"),
    "metric-residual": Kind(residual.MetricResidualSettings, f"{HERE}.residual.metric:MetricResidual", RANKING, residual.SCORING),
    "subspace": Kind(subspace.SubspaceSettings, f"{HERE}.subspace.model:Subspace"),
    "metauas": Kind(
        metauas.MetaUASSettings,
        f"{HERE}.metauas.model:MetaUAS",
        SEGMENTATION,
        metauas.SCORING,
        published=Published(metauas.PUBLISHED, metauas.PUBLISHED_NAMES, f"{AT_THE_AUTHORS}/gaobb/MetaUAS"),
    ),
    "prompt-query": Kind(prompt_query.PromptQuerySettings, f"{HERE}.prompt_query.model:PromptQuery", SEGMENTATION, prompt_query.SCORING),
    "uniadet": Kind(uniadet.UniADetSettings, f"{HERE}.uniadet.model:UniADet", ODDITY, uniadet.SCORING),
    "metauas+": Kind(metauas.MetaUASPlusSettings, f"{HERE}.metauas.prior:build", base="metauas"),
    "inctrl": Kind(
        inctrl.InCTRLSettings,
        f"{HERE}.inctrl.model:InCTRL",
        Training(inctrl.InCTRLTrainingSettings, f"{HERE}.inctrl.train"),
        inctrl.SCORING,
        published=Published(inctrl.PUBLISHED, inctrl.PUBLISHED_NAMES, f"{AT_THE_AUTHORS}/mala-lab/InCTRL", strict=False),
    ),
    "winclip": Kind(winclip.WinCLIPSettings, f"{HERE}.winclip.model:WinCLIP"),
}


class Kinds(Mapping[str, Kind]):
    """Map names to kinds of detectors. A look-up imports the package that registers the kind."""

    def __getitem__(self, name: str) -> Kind:
        """Return a kind. Raises KeyError if there is none.

        Raises BadInput if a package registers the kind, and its name is taken or it cannot be used.
        """
        packages = sorted(_package_of(point) for point in registered().get(name, ()))
        if name in BUILT_IN and packages:
            raise BadInput(f"package {packages[0]}: registers a detector {name!r}, as changepair does; rename it or uninstall the package")
        if len(packages) > 1:
            raise BadInput(f"packages {', '.join(packages)}: each registers a detector {name!r}; uninstall all but one or rename it")
        return BUILT_IN[name] if not packages else _loaded(registered()[name][0])

    def __contains__(self, name: object) -> bool:
        return name in BUILT_IN or name in registered()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*BUILT_IN, *registered()]))

    def __len__(self) -> int:
        return len({*BUILT_IN, *registered()})


DETECTORS = Kinds()


@cache
def registered() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of other installed packages by the kind that each registers. None of the packages is imported."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


@cache
def _loaded(point: EntryPoint) -> Kind:
    """Import the kind that an entry point names. Raises BadInput if it cannot be used."""
    where = f"package {_package_of(point)}: its detector {in_short(point.name)!r}, {in_short(point.value)}"
    try:
        kind = point.load()
    except Exception as error:  # another package's code may raise anything
        raise BadInput(f"{where}, cannot be imported ({in_short(f'{type(error).__name__}: {error}')}); fix or uninstall it") from error
    if wrong := _wrong_with(point, kind):
        raise BadInput(f"{where}, cannot be used: {wrong}")
    return cast(Kind, kind)


def _wrong_with(point: EntryPoint, kind: Any) -> str:
    """Describe what is wrong with the object of an entry point; "" if nothing is."""
    if not NAME.fullmatch(point.name):
        return "expected a name of at most 64 lower-case letters, digits and dashes"
    if not isinstance(kind, Kind):
        return f"expected a {Kind.__module__}.{Kind.__name__}, not a {type(kind).__name__}"
    if not is_dataclass(kind.settings):
        return "expected a dataclass as its settings"
    package = point.module.partition(".")[0]
    if any(module.partition(".")[0] != package for module in kind.modules):
        return f"expected settings and a model in the same package, {package}"  # results then depend on the code of that package
    needed = ["model_of"] if kind.base else ["encoder", "resolution", "tiles", *(["model"] if kind.training else [])]
    missing = [name for name in needed if name not in {field.name for field in fields(kind.settings)}]
    return f"expected settings with {', '.join(missing)}" if missing else ""


def _package_of(point: EntryPoint) -> str:
    return in_short(point.dist.name) if point.dist is not None else in_short(point.value)


ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "multi-scale-residual": (
        "metric-residual",
        {"encoder": {"scales": [1.0, 0.4, 0.3]}, "resolution": 320, "self_residual": 0.6, "contrast": 0.02},
    )
}
"""Kinds of earlier versions, each with its current kind and the defaults that it had."""
RENAMED = {kind: {"own": "self_residual"} for kind in ("patch-residual", "metric-residual")}
"""Settings of earlier versions, with their current names, by kind."""


def resolved(kind: str, section: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Replace a kind of an earlier version by its current kind, with the defaults that it had.

    Settings with earlier names get their current names.
    """
    now, defaults = ALIASES.get(kind, (kind, {}))
    names = RENAMED.get(now, {})
    return now, {**defaults, **{names.get(key, key): value for key, value in section.items()}}


def kind_of(settings: Any) -> str:
    """Return the kind of the detector that settings belong to. Only the package of the settings is imported."""
    package = type(settings).__module__.partition(".")[0]
    others = (name for name, points in registered().items() if any(point.module.partition(".")[0] == package for point in points))
    return next(name for name in (*BUILT_IN, *others) if type(settings) is DETECTORS[name].settings)


def base_of(name: str, detectors: Mapping[str, Any]) -> str:
    """Return the name of the detector that provides encoder, weights and resolution: the detector itself, or its base.

    `detectors` maps names to settings.
    """
    return str(getattr(detectors[name], "model_of", name))


def missing_base(name: str, detectors: Mapping[str, Any]) -> str:
    """Describe what is wrong with the detector that `model_of` names; "" if nothing is."""
    wanted, base = DETECTORS[kind_of(detectors[name])].base, base_of(name, detectors)
    if wanted is None or (base in detectors and kind_of(detectors[base]) == wanted):
        return ""
    return f"model_of: expected the name of a detector of kind {wanted} in the same pipeline, not {base!r}"


def files_of_prior(settings: Any) -> list[str]:
    """List the local files and folders that a detector's second encoder names, if it has one."""
    prior = getattr(settings, "prior", None)
    return [] if prior is None else list(prior.files)
