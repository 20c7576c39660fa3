"""Decide how a pipeline's model is used: by which detector, with which prompts and at which threshold.

`choose` chooses the detector, by the pictures that all detectors scored. The number of prompts is decided for each target, as targets may
have other protocols and shots: the fewest that come within NEAR of its best metric there. For each category the prompts are those of the
first seed's episode. The normal test pictures of that same episode set the threshold, so that prompts, scores and threshold match.

data/evaluation/<pipeline>/decision.json holds it; the model in use keeps a copy.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.common.bounds import FINITE
from tasks.common.decoding import FULL, Intensity
from tasks.common.errors import BadInput
from tasks.common.files import sha256, write_text
from tasks.common.places import place_of
from tasks.common.texts import percent
from tasks.ingestion.manifest import ANOMALOUS
from tasks.prediction.calibration import DECIMALS, Threshold, calibrated, least_rate
from tasks.sampling.episodes import Episode
from tasks.scoring.decision import Choice, PromotionSettings, choose
from tasks.scoring.figures import heading
from tasks.scoring.operating import RATE, binomial_interval
from tasks.scoring.results import DrawRow
from tasks.scoring.scores import Scored

DECISION_NAME = "decision.json"
NEAR = 0.01
"""Fewer prompts are recommended where they cost no more of the metric than this, a fraction."""
PREFERRED = "class-specific"
"""The protocol of whoever uses a model: prompts of the part that is checked."""


@dataclass(frozen=True)
class Prompt:
    """A normal picture that prompts."""

    image: str
    """Its path, as in the manifest."""
    sha256: str
    """Of the file at that path."""


@dataclass(frozen=True)
class Use:
    """How the model is used on one category of a target."""

    __pydantic_config__ = FINITE

    target: str
    category: str
    protocol: str
    shots: int
    """Prompts of a category."""
    seed: int
    value: float | None
    """The metric of the target at these shots, a fraction; None where it is undefined."""
    prompts: tuple[Prompt, ...]
    threshold: Threshold | None
    """Set by the normal test pictures of the episode; its rate is RATE, or the least that so few can promise."""
    intensity: Intensity
    """The range by which the target's pictures of more than 8 bits were scaled."""
    anomalous: int
    """Anomalous test pictures of the episode."""
    found: int
    """Of those, how many are above the threshold."""
    reason: str = ""
    """Why there is no threshold; empty where there is one."""

    @property
    def name(self) -> str:
        """The name that --category takes where a model has several uses."""
        return f"{self.target}/{self.category}"

    @property
    def word(self) -> str | None:
        """The category that the detector was told when it was scored; None for none."""
        return None if self.protocol == "class-agnostic" else self.category


@dataclass(frozen=True)
class Recommendation:
    """The content of decision.json."""

    detector: str
    """Empty where no metric tells which of several detectors is the best."""
    choice: Choice | None
    """Why it is this detector; None where it is the only one, and its metric is undefined."""
    uses: tuple[Use, ...]
    """In the order of the targets and their categories."""

    def __str__(self) -> str:
        return str(self.choice) if self.choice is not None else self.detector

    def of(self, target: str) -> list[Use]:
        """List the uses on a target."""
        return [use for use in self.uses if use.target == target]

    def find(self, name: str | None) -> Use | None:
        """Find the use that a name means: <target>/<category>, or a category or target if there is no other of that name.

        None names the only use. Returns None if the name means none or several.
        """
        exact = [use for use in self.uses if name in (None, use.name)]
        found = exact or [use for use in self.uses if name in (use.category, use.target)]
        return found[0] if len(found) == 1 else None

    @property
    def lines(self) -> list[str]:
        """Say what to use on each target, a line each."""
        metric = heading(self.choice.figure) if self.choice is not None else ""
        lines = []
        for target in dict.fromkeys(use.target for use in self.uses):
            uses = self.of(target)
            value = "" if uses[0].value is None else f", {metric} {100 * uses[0].value:.1f} %"
            lines.append(f"{target}: {self.detector} {with_prompts(uses[0].shots)}{value}, {_thresholds(uses)}")
        return lines


def with_prompts(shots: int) -> str:
    """Say how many prompts a detector has.

    >>> with_prompts(0), with_prompts(1), with_prompts(8)
    ('without a prompt', 'with 1 normal picture', 'with 8 normal pictures')
    """
    return "without a prompt" if shots == 0 else f"with {shots} normal picture{'' if shots == 1 else 's'}"


def _thresholds(uses: Sequence[Use]) -> str:
    known = [use.threshold for use in uses if use.threshold is not None]
    if not known:
        return "no threshold"
    rates = sorted({percent(threshold.false_alarms) for threshold in known}, key=float)
    rate = f"{rates[0]} %" if len(rates) == 1 else f"{rates[0]} to {rates[-1]} %"
    if len(uses) == 1:
        return f"threshold {known[0].value:.{DECIMALS}f} for {rate} false alarms"
    categories = f"{len(uses)} categories" if len(known) == len(uses) else f"{len(known)} of {len(uses)} categories"
    return f"thresholds of {categories} for {rate} false alarms"


def recommend(
    draws: Sequence[DrawRow],
    shared: Sequence[DrawRow],
    episodes: Sequence[Episode],
    scored: Mapping[str, Iterable[Scored]],
    settings: PromotionSettings,
    trained: Collection[str],
    intensities: Mapping[str, Intensity] | None = None,
) -> Recommendation:
    """Decide.

    draws: the metrics of each detector. shared: the same on the pictures that all detectors scored, by which they are compared. scored: by
    detector, the scores of `episodes`. trained: the detectors that have a model. intensities: the range of each target's pictures of
    more than 8 bits; none where it has no such picture.

    Raises BadInput if the file of a prompt is missing.
    """
    choice = choose(shared, settings, trained)
    if choice is None and len(scored) > 1:
        return Recommendation("", None, ())
    detector = choice.detector if choice is not None else next(iter(scored))
    own = [(episodes[item.number], item) for item in scored[detector]]
    values = {
        (row.target, row.protocol, row.shots): row.value for row in draws if row.detector == detector and row.figure == settings.figure
    }
    uses = [
        use
        for target in dict.fromkeys(episode.target for episode, _item in own)
        for use in _uses([one for one in own if one[0].target == target], values, (intensities or {}).get(target, FULL))
    ]
    return Recommendation(detector, choice, tuple(uses))


def _uses(own: Sequence[tuple[Episode, Scored]], values: Mapping[tuple[str, str, int], float], intensity: Intensity) -> list[Use]:
    """Decide on one target. own: its episodes and the detector's scores of them, in the order of the episodes."""
    target = own[0][0].target
    protocols = [episode.protocol for episode, _item in own]
    protocol = PREFERRED if PREFERRED in protocols else protocols[0]
    own = [one for one in own if one[0].protocol == protocol]
    counts = sorted({episode.shots for episode, _item in own})
    measured = {count: values[target, protocol, count] for count in counts if (target, protocol, count) in values}
    near = [count for count, value in measured.items() if value >= max(measured.values()) - NEAR]
    shots = min(near, default=counts[-1])  # where no metric says that fewer are enough, the most
    first: dict[str, tuple[Episode, Scored]] = {}
    for episode, item in own:
        if episode.shots == shots:
            first.setdefault(episode.category, (episode, item))
    return [_use(episode, item, measured.get(shots), intensity) for episode, item in first.values()]


def _use(episode: Episode, item: Scored, value: float | None, intensity: Intensity) -> Use:
    labels = episode.labels[: len(item.scores)]
    anomalous = [score for score, label in zip(item.scores.tolist(), labels, strict=True) if label == ANOMALOUS]
    about = (episode.target, episode.category, episode.protocol, episode.shots, episode.seed, value)
    if episode.own or (episode.protocol == "class-agnostic" and len(episode.prompts) > episode.shots):
        reason = "its episodes choose the prompts of each picture, so no one set of prompts has these scores; measure class-specific too"
        return Use(*about, (), None, intensity, len(anomalous), 0, reason)
    prompts = tuple(Prompt(image, _hash_of(image)) for image in episode.prompts)
    normal = [score for score, label in zip(item.scores.tolist(), labels, strict=True) if label != ANOMALOUS]
    if not normal:
        return Use(*about, prompts, None, intensity, len(anomalous), 0, f"all {len(labels)} test pictures are anomalous")
    threshold = calibrated(normal, item.maxima(labels), least_rate(len(normal), RATE))
    return Use(*about, prompts, threshold, intensity, len(anomalous), sum(map(threshold.exceeded, anomalous)))


def found_of(uses: Sequence[Use]) -> tuple[int, int, float, float] | None:
    """Count the anomalous pictures that are found, and all of them, over uses with a threshold, with the 95 % interval of their share."""
    known = [use for use in uses if use.threshold is not None]
    found, anomalous = sum(use.found for use in known), sum(use.anomalous for use in known)
    return (found, anomalous, *binomial_interval(found, anomalous)) if anomalous else None


def _hash_of(image: str) -> str:
    try:
        return sha256(place_of(image))
    except FileNotFoundError as error:
        raise BadInput(f"{image}: no such file, and it is a prompt; get it with `dvc checkout` or `dvc pull`") from error


def write_recommendation(file: Path, recommendation: Recommendation) -> None:
    """Write decision.json; the same bytes for the same recommendation."""
    write_text(file, json.dumps(asdict(recommendation), indent=1, sort_keys=True) + "\n")
