"""Recommend a detector, prompts and thresholds for a pipeline's model.

Detector: `choices` lists the best detector and those that are not significantly worse, on the pictures that all detectors scored. The best
one is recommended. If it flags too many normal pictures under a mild perturbation, the first robust one replaces it. If none of them is
robust, the best one is recommended with a warning.

Prompts: each target has one number of shots, because targets may differ in protocols and shots. It is the lowest number whose metric is
within NEAR of the best. Each category has the prompts of the first seed.

Threshold: the normal test pictures of each category set it, from their scores with these prompts.

The recommendation is stored in data/evaluation/<pipeline>/decision.json. The current model keeps a copy.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from changepair.tasks.common.bounds import FINITE
from changepair.tasks.common.decoding import UNKNOWN, Intensity
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256, write_text
from changepair.tasks.common.places import place_of
from changepair.tasks.common.texts import percent
from changepair.tasks.ingestion.manifest import ANOMALOUS
from changepair.tasks.prediction.calibration import DECIMALS, Threshold, calibrated, least_rate
from changepair.tasks.sampling.episodes import Episode
from changepair.tasks.sampling.settings import PREFERRED
from changepair.tasks.scoring.decision import Choice, PromotionSettings, choices
from changepair.tasks.scoring.metrics import heading
from changepair.tasks.scoring.operating import RATE, binomial_interval
from changepair.tasks.scoring.results import ALL, DrawRow
from changepair.tasks.scoring.robustness import MOST_FLAGGED, RobustnessRow
from changepair.tasks.scoring.scores import Scored

NEAR = 0.01  # largest loss of the metric, a fraction, at which fewer prompts are preferred


@dataclass(frozen=True)
class Prompt:
    """A picture that prompts the detector."""

    image: str
    """Path, as in the manifest."""
    sha256: str


@dataclass(frozen=True)
class Use:
    """The prompts and the threshold for one category of a target."""

    __pydantic_config__ = FINITE

    target: str
    category: str
    protocol: str
    shots: int
    """Number of prompts for each category."""
    seed: int
    value: float | None
    """Metric of the target at these shots, a fraction. None if it is undefined."""
    prompts: tuple[Prompt, ...]
    threshold: Threshold | None
    """Threshold from the normal test pictures of the episode. Its rate is RATE, or the lowest that these pictures can promise."""
    intensity: Intensity
    """Ranges by which pictures of more than 8 bits were scaled."""
    anomalous: int
    """Number of anomalous test pictures in the episode."""
    found: int
    """Number of anomalous test pictures above the threshold."""
    reason: str = ""
    """Why there is no threshold. Empty if there is one."""

    @property
    def name(self) -> str:
        return f"{self.target}/{self.category}"

    @property
    def word(self) -> str | None:
        """The category that the detector was given in evaluation. None for the class-agnostic protocol."""
        return None if self.protocol == "class-agnostic" else self.category


@dataclass(frozen=True)
class Recommendation:
    """The content of decision.json."""

    detector: str
    """The recommended detector. Empty if the metric of several detectors is undefined."""
    choice: Choice | None
    """Why this detector was chosen. None if the metric is undefined."""
    uses: tuple[Use, ...]
    """Uses in the order of the targets and their categories."""
    robustness: tuple[RobustnessRow, ...] = ()
    """Robustness of the detector with these prompts, over all categories of each target. Empty without perturbations."""

    def __str__(self) -> str:
        warning = self.warning()
        return f"{self.choice if self.choice is not None else self.detector}{'; ' * bool(warning)}{warning}"

    def warning(self, target: str | None = None) -> str:
        """Describe the mild perturbations under which the detector flags too many normal pictures.

        With `target`, describe all of them on this target; otherwise only the worst one. Return "" without any.
        """
        fragile = sorted((row for row in self.robustness if row.fragile and target in (None, row.target)), key=lambda row: -row.flagged)
        if not fragile:
            return ""
        worst, *others = fragile
        where = "" if target is not None else f" of {worst.target}"
        also = "".join(f", {row.words}" for row in others if target is not None)
        return f"flags {100 * worst.flagged:.0f} % of normal pictures{where} under {worst.perturbation}{also}"

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(use.target for use in self.uses))

    def of(self, target: str) -> list[Use]:
        """List the uses of a target."""
        return [use for use in self.uses if use.target == target]

    def find(self, name: str | None) -> Use | None:
        """Find a use by name. Return None unless exactly one use matches.

        name: <target>/<category>, or a category or a target with only one use; None for the only use.
        """
        exact = [use for use in self.uses if name in (None, use.name)]
        found = exact or [use for use in self.uses if name in (use.category, use.target)]
        return found[0] if len(found) == 1 else None

    @property
    def lines(self) -> list[str]:
        """One line for each target: detector, prompts, metric and threshold."""
        metric = heading(self.choice.metric) if self.choice is not None else ""
        lines = []
        for target in self.targets:
            uses = self.of(target)
            value = "" if uses[0].value is None else f", {metric} {100 * uses[0].value:.1f} %"
            warning = self.warning(target)
            also = f"; {warning}" if warning else ""
            lines.append(f"{target}: {self.detector} {with_prompts(uses[0].shots)}{value}, {_thresholds(uses)}{also}")
        return lines


def with_prompts(shots: int) -> str:
    """Describe the number of prompts.

    >>> with_prompts(0), with_prompts(1), with_prompts(8)
    ('without a prompt', 'with 1 normal picture', 'with 8 normal pictures')
    """
    return "without a prompt" if shots == 0 else f"with {shots} normal picture{'' if shots == 1 else 's'}"


def _thresholds(uses: Sequence[Use]) -> str:
    known = [use.threshold for use in uses if use.threshold is not None]
    if not known:
        return "no threshold"
    if len(uses) == 1:
        return f"threshold {known[0].value:.{DECIMALS}f} for {rates_of(known)} % false alarms"
    count = str(len(uses)) if len(known) == len(uses) else f"{len(known)} of {len(uses)}"
    return f"thresholds of {count} categories for {rates_of(known)} % false alarms"


def rates_of(thresholds: Sequence[Threshold]) -> str:
    """Format the lowest and the highest target false-alarm rate, in percent."""
    rates = sorted({percent(threshold.false_alarms) for threshold in thresholds}, key=float)
    return rates[0] if len(rates) == 1 else f"{rates[0]} to {rates[-1]}"


def recommend(
    draws: Sequence[DrawRow],
    shared: Sequence[DrawRow],
    episodes: Sequence[Episode],
    scored: Mapping[str, Iterable[Scored]],
    settings: PromotionSettings,
    trained: Collection[str],
    intensities: Mapping[str, Intensity] | None = None,
    robustness: Sequence[RobustnessRow] = (),
) -> Recommendation:
    """Recommend a detector, and prompts and a threshold for each category.

    The detector is empty if several were scored and none has the metric. Raises BadInput if the file of a prompt is missing.

    The metrics in `shared`, on the pictures that all detectors scored, select the detector. Those in `draws` select the number of shots.
    `scored` has the scores on `episodes`, by detector, and `trained` the names of trained detectors. `intensities` are the ranges of
    targets with pictures of more than 8 bits. `robustness` has rows of all detectors.
    """
    targets = dict.fromkeys(episode.target for episode in episodes)

    def recommended(detector: str, choice: Choice | None) -> Recommendation:
        own = [(episodes[item.number], item) for item in scored[detector]]
        values = {
            (row.target, row.protocol, row.shots): row.value for row in draws if row.detector == detector and row.metric == settings.metric
        }
        of_targets = {target: [one for one in own if one[0].target == target] for target in targets}
        uses = [
            use for target, alike in of_targets.items() if alike for use in _uses(alike, values, (intensities or {}).get(target, UNKNOWN))
        ]
        used = {(detector, ALL, use.target, use.protocol, use.shots) for use in uses}
        measured = [row for row in robustness if (row.detector, row.category, row.target, row.protocol, row.shots) in used]
        return Recommendation(detector, choice, tuple(uses), tuple(measured))

    ranked = choices(shared, settings, trained)
    if not ranked:
        return Recommendation("", None, ()) if len(scored) > 1 else recommended(next(iter(scored)), None)
    best = recommended(ranked[0].detector, ranked[0])
    for choice in ranked[1:] if best.warning() else ():
        other = recommended(choice.detector, choice)
        if other.robustness and not other.warning():
            passed = f"{best.detector} {100 * ranked[0].value:.1f} %, which {best.warning()}"
            return replace(other, choice=replace(choice, instead_of=passed))
    return best


def _uses(own: Sequence[tuple[Episode, Scored]], values: Mapping[tuple[str, str, int], float], intensity: Intensity) -> list[Use]:
    """Decide for one target. own: its episodes in order, with the detector's scores."""
    target = own[0][0].target
    protocols = [episode.protocol for episode, _item in own]
    protocol = PREFERRED if PREFERRED in protocols else protocols[0]
    own = [one for one in own if one[0].protocol == protocol]
    counts = sorted({episode.shots for episode, _item in own})
    measured = {count: values[target, protocol, count] for count in counts if (target, protocol, count) in values}
    near = [count for count, value in measured.items() if value >= max(measured.values()) - NEAR]
    shots = min(near, default=counts[-1])  # without a metric, the most prompts
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
        reason = "each picture has its own prompts here, so no single set of prompts gives these scores; also evaluate class-specific"
        return Use(*about, (), None, intensity, len(anomalous), 0, reason)
    prompts = tuple(Prompt(image, _hash_of(image)) for image in episode.prompts)
    normal = [score for score, label in zip(item.scores.tolist(), labels, strict=True) if label != ANOMALOUS]
    if not normal:
        return Use(*about, prompts, None, intensity, len(anomalous), 0, f"all {len(labels)} test pictures are anomalous")
    threshold = calibrated(normal, item.maxima(labels), least_rate(len(normal), RATE))
    return Use(*about, prompts, threshold, intensity, len(anomalous), sum(map(threshold.exceeded, anomalous)))


def less_robust(new: Recommendation, current: Recommendation) -> str:
    """Describe the worst mild perturbation under which the new detector is fragile and the current one is not. Return "" without one.

    A perturbation counts only if both detectors were measured under it on the same target.
    """
    before = {(row.target, row.perturbation): row for row in current.robustness}
    lost = [row for row in new.robustness if row.fragile and (old := before.get((row.target, row.perturbation))) and not old.fragile]
    if not lost:
        return ""
    worst = max(lost, key=lambda row: row.flagged)
    share = 100 * before[worst.target, worst.perturbation].flagged
    return (
        f"{new.detector} flags {100 * worst.flagged:.0f} % of normal pictures of {worst.target} under {worst.perturbation}, more than "
        f"{percent(MOST_FLAGGED)} %, and the current model {share:.0f} %"
    )


def found_of(uses: Sequence[Use]) -> tuple[int, int, float, float] | None:
    """Count the anomalous pictures above their thresholds. Return found, total, and both ends of the 95 % interval of the share.

    Uses without a threshold are left out. Returns None if no anomalous picture remains.
    """
    known = [use for use in uses if use.threshold is not None]
    found, anomalous = sum(use.found for use in known), sum(use.anomalous for use in known)
    return (found, anomalous, *binomial_interval(found, anomalous)) if anomalous else None


def _hash_of(image: str) -> str:
    try:
        return sha256(place_of(image))
    except FileNotFoundError as error:
        raise BadInput(f"{image}: this prompt does not exist; run `dvc checkout` or `dvc pull`") from error


def write_recommendation(file: Path, recommendation: Recommendation) -> None:
    """Write decision.json. Equal recommendations give equal bytes. The fields `robustness` and `instead_of` are left out if empty."""
    written = asdict(recommendation)
    for section, name in ((written, "robustness"), (written["choice"], "instead_of")):
        if section is not None and not section[name]:
            del section[name]
    write_text(file, json.dumps(written, indent=1, sort_keys=True) + "\n")
