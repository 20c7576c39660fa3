"""Declare stages: their inputs, outputs and settings.

Each `flows/<stage>.py` has a subclass of `Stage`, a function `declare` and a flow. `declare` creates the stages from pipelines.yaml. The
flow receives its stage, so it uses only files that DVC knows. plan.py imports these modules, collects the stages and writes dvc.yaml.
Prefect and torch take seconds to import, so a module imports them inside of its flow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar, get_args, get_type_hints

from changepair.flows.running.places import CHECKPOINTS, CODE
from changepair.flows.settings.pipelines import Execution
from changepair.flows.settings.reader import as_json
from changepair.tasks.detectors.registry import KIND, kind_of

if TYPE_CHECKING:
    from prefect import Flow

T = TypeVar("T")
DVC_YAML = Path("dvc.yaml")
PLAN = Path("plan.yaml")
"""A link to dvc.yaml. The stage `code` depends on it, so an edit is noticed. DVC refuses dvc.yaml itself as a dependency."""
CODE_STAGE = "code"
SPLIT = "_"
"""Separator of the parts of a stage name. No name in pipelines.yaml contains it."""


class Role(Enum):
    INPUT = "deps"
    OUTPUT = "outs"
    IN_GIT = "in_git"
    METRICS = "metrics"


@dataclass(frozen=True)
class Setting:
    """Mark a field as a setting that the stage depends on."""

    key: str = "pipelines.{pipeline}.{field}"
    """Its key in pipelines.yaml, with names of fields in braces. The part `*` stands for each key of a mapping."""
    dump: Callable[[Any], Any] = as_json


Input = Annotated[T, Role.INPUT]
"""Files or folders that the stage reads: None, a path, a sequence, a mapping by name, or a dataclass of them."""
Output = Annotated[T, Role.OUTPUT]
InGit = Annotated[T, Role.IN_GIT]
"""An output in Git instead of DVC's cache."""
MetricsFile = Annotated[T, Role.METRICS]
"""An output that `dvc metrics` shows."""
OfPipeline = Annotated[T, Setting()]
OfDetectors = Annotated[T, Setting("pipelines.{pipeline}.detectors.*", lambda one: {KIND: kind_of(one), **as_json(one)})]


@dataclass(frozen=True)
class Stage:
    """Declare a stage. Subclasses add names, inputs, outputs and settings as fields.

    The names are a dataset, or a pipeline and sometimes a detector. A field without a role is no dependency, so it must not affect outputs.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("dataset", "pipeline", "detector")

    @property
    def kind(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def of(self) -> tuple[str, ...]:
        """The dataset, or the pipeline and the detector, if the stage has one."""
        return tuple(getattr(self, name) for name in self.NAMES if hasattr(self, name))

    @property
    def name(self) -> str:
        return stage_name(self.kind, self.of)

    @property
    def command(self) -> str:
        return " ".join(("python -m", f"changepair.flows.{self.kind}", *self.of))

    @property
    def about(self) -> str:
        """Description in dvc.yaml. By default, the first line of the docstring."""
        return (type(self).__doc__ or "").partition("\n")[0].rstrip(".")

    @property
    def code(self) -> Path | None:
        """File with the code that the stage depends on; None for the stage that writes it."""
        return code_file(self.kind)

    @property
    def frozen(self) -> bool:
        """Whether DVC keeps the outputs although an input no longer exists."""
        return False

    @property
    def always(self) -> bool:
        """Whether DVC always runs the stage, because it cannot detect changes of all inputs."""
        return False

    @property
    def plots(self) -> Sequence[Mapping[str, Any] | str]:
        return ()

    @property
    def checkpoints(self) -> Path:
        """Folder for the checkpoints of an interrupted run."""
        return CHECKPOINTS.joinpath(*self.of)

    @cached_property
    def deps(self) -> tuple[str, ...]:
        code = () if self.code is None else (self.code,)
        return tuple(dict.fromkeys([*self._files(Role.INPUT), *map(str, code)]))

    @cached_property
    def outs(self) -> tuple[str, ...]:
        return tuple(self._files(Role.OUTPUT))

    @cached_property
    def in_git(self) -> tuple[str, ...]:
        return tuple(self._files(Role.IN_GIT))

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self._files(Role.METRICS))

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Settings, including defaults, by key in pipelines.yaml."""
        found: dict[str, Any] = {}
        names = {name: getattr(self, name) for name in self.NAMES if hasattr(self, name)}
        for name, setting in _marked(type(self), Setting):
            key, value = setting.key.format(field=name, **names), getattr(self, name)
            values = {f"{key[:-1]}{one}": of for one, of in value.items()} if key.endswith(".*") else {key: value}
            found |= {key: setting.dump(of) for key, of in values.items() if of is not None}
        return found

    @property
    def entry(self) -> dict[str, Any]:
        """Entry of the stage in dvc.yaml."""
        entry: dict[str, Any] = {"desc": self.about, "cmd": self.command}
        entry["deps"] = [*self.deps, *([settings_file(self.name).as_posix()] if self.settings else [])]
        if self.metrics:
            entry["metrics"] = [{path: {"cache": False}} for path in self.metrics]
        if self.frozen:
            entry["frozen"] = True
        if self.always:
            entry["always_changed"] = True
        entry["outs"] = [*({path: {"cache": False}} for path in self.in_git), *self.outs]
        return entry

    def _files(self, role: Role) -> Iterator[str]:
        for name, _ in _marked(type(self), Role, role):
            yield from _paths(getattr(self, name))


S = TypeVar("S", bound=Stage)


@dataclass(frozen=True)
class StageFlow(Generic[S]):
    """The Prefect flow of a stage. Building it imports Prefect.

    Prefect stores and shows the parameters of a run: the fields of the stage without secrets.
    """

    function: Callable[[S, Execution], None]
    on_gpu: bool
    runner: Callable[[Execution], Any] | None

    def build(self, stage: S, execution: Execution) -> Flow[..., Any]:
        from prefect import Flow

        from changepair.flows.running.api import stoppable

        work = partial(stoppable(self.function), stage, execution)

        def flow(stage: Any, execution: Any) -> Any:
            return work()

        return Flow(
            flow,
            name=stage.kind,
            flow_run_name=" ".join((stage.kind, *stage.of)),
            task_runner=None if self.runner is None else self.runner(execution),
            validate_parameters=False,
        )


def stage_flow(
    *, on_gpu: bool = False, runner: Callable[[Execution], Any] | None = None
) -> Callable[[Callable[[S, Execution], None]], StageFlow[S]]:
    """Turn a function into the Prefect flow of its stage.

    on_gpu: whether it uses a GPU if one is available. runner: returns the task runner of Prefect (default: threads).
    """
    return lambda function: StageFlow(function, on_gpu, runner)


def stage_name(kind: str, of: Sequence[str]) -> str:
    """Return the name of a stage in dvc.yaml. A plus sign is not allowed there, so it is replaced."""
    return SPLIT.join((kind, *of)).replace("+", f"{SPLIT}plus")


def code_file(kind: str, detector: str | None = None) -> Path:
    """Return the file in which the stage `code` records the code of a kind of stage. detector: a kind of detector."""
    return CODE / f"{kind if detector is None else f'{kind}{SPLIT}{detector}'}.json"


def settings_file(stage: str) -> Path:
    """Return the file in which the stage `code` records the settings of a stage. stage: its name."""
    return CODE / "settings" / f"{stage}.json"


def settings_text(stage: Stage) -> str:
    """Return the text of a settings file."""
    return json.dumps(stage.settings, indent=1, ensure_ascii=False) + "\n"


def loss_plot(file: Path, title: str) -> Mapping[str, Any]:
    """Return the entry of dvc.yaml that plots a training log."""
    return {file.as_posix(): {"x": "step", "y": "loss", "title": f"training loss of {title}"}}


def _marked(stage: type[Stage], of: type[T], only: T | None = None) -> tuple[tuple[str, T], ...]:
    """List the fields of a stage that have a role or a setting, with this mark."""
    hints = get_type_hints(stage, include_extras=True)
    for name, hint in hints.items():
        inner = get_args(hint)[:1] if hasattr(hint, "__metadata__") else get_args(hint)
        if any(hasattr(one, "__metadata__") for one in inner):
            raise TypeError(
                f"{stage.__name__}.{name}: a mark on a part of a type has no effect; mark the whole type, as in Input[Path | None]"
            )
    marks = ((item.name, mark) for item in fields(stage) for mark in getattr(hints[item.name], "__metadata__", ()))
    return tuple((name, mark) for name, mark in marks if isinstance(mark, of) and only in (None, mark))


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, Path):
        yield value.as_posix()
    elif isinstance(value, str):
        yield value
    elif is_dataclass(value):
        for item in fields(value):
            yield from _paths(getattr(value, item.name))
    elif value is not None:
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(one)
