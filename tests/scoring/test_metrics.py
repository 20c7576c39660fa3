"""The seven metrics against slow references, at their edges, streamed, as histograms; and how far they may be trusted."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score
from tallies import bounds_of, pixels_tally

from changepair.tasks.reporting.curves import pro, roc
from changepair.tasks.scoring import pixels
from changepair.tasks.scoring.metrics import (
    IMAGE_METRICS,
    METRICS,
    PIXEL_METRICS,
    Tally,
    aupro,
    aupro_as_published,
    auroc,
    average_precision,
    f1max,
    image_metrics,
    pixel_metrics,
    tally,
)
from changepair.tasks.scoring.pixels import PixelScores, truth_of
from changepair.tasks.scoring.spread import DRAWS, coarse_metrics, difference, image_draws, interval, pixel_draws, resample

# Few distinct scores, so that ties are common.
LABELLED = st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)
MASKS = hnp.arrays(np.bool_, (2, 7, 8)).filter(lambda masks: masks.any() and not masks.all())
MAPS = hnp.arrays(np.float32, (2, 7, 8), elements=st.integers(0, 9).map(lambda level: level / 8))


def counted(labels: np.ndarray, scores: np.ndarray) -> Tally:
    counts = tally(scores[labels], np.sort(scores[~labels]))
    assert counts is not None
    return counts


def regions(masks: np.ndarray) -> list[tuple[int, np.ndarray]]:
    return [
        (index, labelled == number)
        for index, mask in enumerate(masks)
        for labelled, count in [ndimage.label(mask, np.ones((3, 3)))]
        for number in range(1, count + 1)
    ]


def slow_aupro(masks: np.ndarray, maps: np.ndarray, limit: float = 0.3) -> float:
    """Threshold by threshold, region by region, as the definition reads."""
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        flagged = maps >= threshold
        points.append((flagged[~masks].mean(), np.mean([flagged[index][region].mean() for index, region in regions(masks)])))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1, x1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0), limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def slow_aupro_as_published(masks: np.ndarray, maps: np.ndarray) -> float:
    """Computes it as the field's shared script does: 200 thresholds, what is strictly above, the rate rescaled to [0, 1]."""
    low, high = maps.min(), maps.max()
    points = []
    for threshold in np.arange(low, high, (high - low) / 200):
        flagged = maps > threshold
        points.append((flagged[~masks].mean(), np.mean([flagged[index][region].mean() for index, region in regions(masks)])))
    rates, overlaps = (np.array(column) for column in zip(*points, strict=True))
    inside = rates < 0.3
    rates = rates[inside]
    return auc((rates - rates.min()) / (rates.max() - rates.min()), overlaps[inside])


@given(LABELLED)
def test_auroc_ap_and_f1max_are_scikit_learns(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([label for label, _ in rows]), np.array([score for _, score in rows], dtype=np.float32)
    counts = counted(labels, scores)
    precision, recall, _thresholds = precision_recall_curve(labels, scores)
    with np.errstate(invalid="ignore"):
        best = np.nanmax(2 * precision * recall / (precision + recall))
    assert auroc(counts) == pytest.approx(roc_auc_score(labels, scores))
    assert average_precision(counts) == pytest.approx(average_precision_score(labels, scores))
    assert f1max(counts) == pytest.approx(best)
    assert np.trapezoid(*reversed(roc(counts))) == pytest.approx(auroc(counts))  # the curve drawn is the curve measured


@settings(deadline=None)
@given(MASKS, MAPS, st.booleans())
def test_a_tally_counts_each_threshold(masks: np.ndarray, maps: np.ndarray, among: bool) -> None:
    """With negatives alone or with positives among them, and with or without ties."""
    truth = truth_of(list(masks), masks.shape[1:])
    counts = tally(maps.ravel()[truth.anomalous], np.sort(maps if among else maps[~masks], axis=None), truth.overlap, among=among)
    share = np.zeros(masks.shape)
    for index, region in regions(masks):
        share[index][region] = 1 / region.sum()
    thresholds = np.unique(maps[masks])[::-1]
    assert counts is not None and counts.negatives == (~masks).sum()
    assert counts.hits.tolist() == [(maps[masks] == threshold).sum() for threshold in thresholds]
    assert counts.above.tolist() == [(maps[~masks] > threshold).sum() for threshold in thresholds]
    assert counts.level.tolist() == [(maps[~masks] == threshold).sum() for threshold in thresholds]
    assert counts.overlap == pytest.approx(np.array([share[maps == threshold].sum() for threshold in thresholds]))


@settings(max_examples=60, deadline=None)
@given(MASKS, MAPS)
def test_aupro_is_the_definitions(masks: np.ndarray, maps: np.ndarray) -> None:
    counts = pixels_tally(masks, maps)
    assert aupro(counts) == pytest.approx(slow_aupro(masks, maps), abs=1e-9)
    assert aupro(counts, 1.0) == pytest.approx(np.trapezoid(*reversed(pro(counts))), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_the_published_convention_is_the_published_scripts(seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(random.random((3, 24, 24)), (0, 3, 3)) > 0.52
    maps = (0.6 * ndimage.gaussian_filter(random.random((3, 24, 24)), (0, 1, 1)) + 0.1 * masks).astype(np.float32)
    if not masks.any():
        return
    truth = truth_of(list(masks), masks.shape[1:])
    ours = aupro_as_published(maps.ravel()[truth.anomalous], np.sort(maps, axis=None), truth.overlap, among=True)
    assert ours == pytest.approx(slow_aupro_as_published(masks, maps.astype(np.float64)), abs=1e-9)
    assert ours != pytest.approx(float(aupro(pixels_tally(masks, maps))), abs=1e-6)


def test_a_perfect_map_scores_one_and_a_constant_one_chance() -> None:
    masks = np.zeros((2, 16, 16), dtype=bool)
    masks[0, 3:9, 3:9] = True  # one region
    perfect = pixel_metrics(pixels_tally(masks, masks.astype(np.float32)))
    assert perfect == {name: pytest.approx(1.0) for name in PIXEL_METRICS}
    share = masks.mean()
    assert pixel_metrics(pixels_tally(masks, np.full(masks.shape, 0.5, dtype=np.float32))) == {
        "pixel_auroc": pytest.approx(0.5),
        "pixel_ap": pytest.approx(share),
        "pixel_f1max": pytest.approx(2 * share / (1 + share)),
        "pixel_aupro": pytest.approx(0.15),  # a straight line to (1, 1): 0.3 x 0.3 / 2 / 0.3
    }
    assert image_metrics(counted(np.array([True, False]), np.array([1.0, 0.0]))) == {name: 1.0 for name in IMAGE_METRICS}
    assert image_metrics(counted(np.array([True, False]), np.array([1.0, 1.0])))["image_auroc"] == 0.5


@pytest.mark.parametrize("anomalous", [False, True])
def test_a_metric_that_is_not_defined_is_absent(anomalous: bool) -> None:
    """Only normal pictures, or only anomalous ones; masks that are empty, or all of the picture."""
    scores = np.array([0.1, 0.2, 0.3], dtype=np.float32)
    labels = np.full(3, anomalous)
    assert tally(scores[labels], scores[~labels]) is None and image_metrics(None) == {}
    assert image_draws(resample(("a", "b", "c"), (int(anomalous),) * 3), labels, scores) == {}
    room = PixelScores(3 * 64, exact=True)
    room.add(np.random.default_rng(0).random((3, 8, 8), dtype=np.float32), truth_of([np.full((8, 8), anomalous)] * 3, (8, 8)))
    assert room.metrics("exact") == {} == coarse_metrics(room.by_picture())


def test_without_two_thresholds_below_the_limit_the_published_convention_has_no_metric() -> None:
    constant = np.full(4, 0.5, dtype=np.float32)
    assert aupro_as_published(constant, constant, np.full(4, 0.25)) is None
    room = PixelScores(64, exact=True)
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:4, 2:4] = True
    room.add(np.full((1, 8, 8), 0.5, dtype=np.float32), truth_of([mask], (8, 8)))
    assert set(room.metrics("published")) == set(PIXEL_METRICS) - {"pixel_aupro"}


def test_pixels_of_an_anomalous_picture_without_a_mask_count_for_nothing() -> None:
    random = np.random.default_rng(0)
    masks, maps = random.random((3, 12, 12)) > 0.8, random.random((3, 12, 12), dtype=np.float32)
    room = PixelScores(maps.size, exact=True)
    room.add(maps, truth_of([masks[0], None, masks[2]], (12, 12)))
    assert room.metrics("exact") == pytest.approx(pixel_metrics(pixels_tally(masks[[0, 2]], maps[[0, 2]])))
    assert room.by_picture()[:, 1].sum() == 0


def picture(random: np.random.Generator, count: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps in [0, 1], higher inside the masks; every other mask is empty."""
    masks = ndimage.gaussian_filter(random.random((count, side, side)), (0, 3, 3)) > 0.54
    masks[::2] = False
    noise = ndimage.gaussian_filter(random.random((count, side, side)), (0, 2, 2))
    return masks, np.clip((noise - 0.4) * 3 + 0.15 * masks, 0, 1).astype(np.float32)


def streamed(masks: np.ndarray, maps: np.ndarray, *, exact: bool, batch: int) -> PixelScores:
    room = PixelScores(maps.size, exact=exact)
    for start in range(0, len(maps), batch):
        room.add(maps[start : start + batch], truth_of(list(masks[start : start + batch]), maps.shape[1:]))
    return room


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_streamed_in_batches_the_metrics_are_those_of_the_whole(batch: int) -> None:
    masks, maps = picture(np.random.default_rng(1), 12)
    maps = np.round(maps * 100) / 100  # few thresholds, for the slow one's sake
    whole = {name: float(value) for name, value in pixel_metrics(pixels_tally(masks, maps)).items()}
    assert streamed(masks, maps, exact=True, batch=batch).metrics("exact") == pytest.approx(whole, abs=1e-12)
    assert whole["pixel_aupro"] == pytest.approx(slow_aupro(masks, maps), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(MASKS, hnp.arrays(np.float32, (2, 7, 8), elements=st.floats(0, 1, width=32)))
def test_a_histograms_metrics_are_within_their_bounds(masks: np.ndarray, maps: np.ndarray) -> None:
    exact = pixel_metrics(pixels_tally(masks, maps))
    room = streamed(masks, maps, exact=False, batch=1)
    for name, (low, high) in bounds_of(room).items():
        assert low - 1e-9 <= exact[name] <= high + 1e-9
        assert low - 1e-9 <= room.metrics("exact")[name] <= high + 1e-9


def test_a_histograms_metrics_are_those_of_the_scores_to_a_ten_thousandth() -> None:
    masks, maps = picture(np.random.default_rng(2), 40, side=64)
    exact = streamed(masks, maps, exact=True, batch=8).metrics("exact")
    room = streamed(masks, maps, exact=False, batch=8)
    assert room.metrics("exact") == pytest.approx(exact, abs=1e-4)
    for name, (low, high) in bounds_of(room).items():
        assert low <= exact[name] <= high and high - low < 2e-3


def peak(work: object) -> int:
    tracemalloc.start()
    work()  # type: ignore[operator]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_memory_is_that_of_the_scores_and_of_a_histogram_no_more_with_more_pictures() -> None:
    masks, maps = picture(np.random.default_rng(3), 40, side=256)
    scores = maps.nbytes
    exact = peak(lambda: streamed(masks, maps, exact=True, batch=4).metrics("exact"))
    # The scores once, with each picture's coarse counts; the anomalous pixels' counts while the metrics are taken; a batch at work.
    assert exact < 1.1 * scores + 64 * masks.sum() + 2**22
    few, many = (peak(lambda part=part: streamed(masks[:part], maps[:part], exact=False, batch=4).metrics("exact")) for part in (10, 40))
    assert many - few < 30 * 3 * pixels.COARSE * 4 * 2.5 < 0.2 * scores  # coarse counts alone


def test_image_draws_are_the_metrics_of_pictures_drawn_anew() -> None:
    random = np.random.default_rng(0)
    labels = random.random(30) < 0.5
    scores = (random.integers(0, 8, 30) + 3 * labels).astype(np.float32)  # with ties
    counts = resample([str(place) for place in range(30)], labels.astype(int).tolist())
    assert (counts[:, labels].sum(1) == labels.sum()).all() and (counts.sum(1) == 30).all()
    draws = image_draws(counts, labels, scores)
    for number in range(0, DRAWS, 97):
        again = np.repeat(np.arange(30), counts[number].astype(int))
        assert draws["image_auroc"][number] == pytest.approx(roc_auc_score(labels[again], scores[again]), abs=1e-6)
        assert draws["image_ap"][number] == pytest.approx(average_precision_score(labels[again], scores[again]), abs=1e-6)
        assert draws["image_f1max"][number] == pytest.approx(float(f1max(counted(labels[again], scores[again]))), abs=1e-6)


def test_pixel_draws_are_near_the_metrics_of_pictures_drawn_anew() -> None:
    masks, maps = picture(np.random.default_rng(4), 24)
    room = streamed(masks, maps, exact=True, batch=8)
    labels = masks.any((1, 2)).astype(int).tolist()
    counts = resample([str(place) for place in range(24)], labels)
    by_picture, exact = room.by_picture(), room.metrics("exact")
    assert coarse_metrics(by_picture) == pytest.approx(exact, abs=0.02)
    draws = pixel_draws(counts, by_picture, exact)
    for number in range(0, DRAWS, 199):
        again = np.repeat(np.arange(24), counts[number].astype(int))
        slow = pixel_metrics(pixels_tally(masks[again], maps[again]))
        assert {name: values[number] for name, values in draws.items()} == pytest.approx(slow, abs=0.01)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """The AUROC of normal scores a known distance apart is known: Phi(distance / sqrt 2)."""
    truth, held = 0.76025, 0
    random = np.random.default_rng(0)
    labels = np.arange(120) < 60
    for trial in range(200):
        counts = resample([f"{trial}-{place}" for place in range(120)], labels.astype(int).tolist())
        low, high = interval(image_draws(counts, labels, random.normal(size=120) + labels)["image_auroc"]) or (1, 0)
        held += low <= truth <= high
    assert 0.9 <= held / 200 <= 0.99


def test_the_same_pictures_are_drawn_for_whoever_is_measured_on_them() -> None:
    names, labels = [str(place) for place in range(50)], [place % 2 for place in range(50)]
    assert (resample(names, labels) == resample(tuple(names), tuple(labels))).all()
    assert (resample(names, labels) != resample(names[1:] + names[:1], labels)).any()
    for root in ("parts/test", "/mnt/data/parts/test", "s3://factory/parts/test"):
        assert (resample(names, labels) == resample([f"{root}/{name}" for name in names], labels)).all()
    assert (resample(names, labels) != resample(names, labels, "parts", "bolt")).any()


def test_a_paired_difference_sees_what_two_intervals_do_not() -> None:
    """Two detectors that share their mistakes: their intervals overlap, their difference is clear."""
    random = np.random.default_rng(0)
    labels = np.arange(200) < 100
    shared = random.normal(size=200)
    one, other = shared + 1.0 * labels, shared + 0.8 * labels + 0.05 * random.normal(size=200)
    counts = resample([str(place) for place in range(200)], labels.astype(int).tolist())
    draws = [image_draws(counts, labels, scores)["image_auroc"] for scores in (one, other)]
    ends = [interval(each) for each in draws]
    assert ends[0] is not None and ends[1] is not None and ends[0][0] < ends[1][1]
    counts = difference(float(auroc(counted(labels, one)) - auroc(counted(labels, other))), draws[0] - draws[1])
    assert counts is not None and counts.low > 0 and counts.p < 0.01
    nothing = difference(0.0, draws[0] - draws[0])
    assert nothing is not None and (nothing.low, nothing.high, nothing.p) == (0, 0, 1)


def test_there_are_seven_metrics() -> None:
    assert (*IMAGE_METRICS, *PIXEL_METRICS) == METRICS and len(set(METRICS)) == 7
