"""Draw a histogram of the scores of normal pictures, with the threshold as a line, for a web page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, BASE, TOP = 420, 156, 118, 14  # of the drawing; BASE and TOP are the ends of the bars, all in pixels
MARGIN = 16  # left and right of the axis, in pixels
BINS = 28
NORMAL_COLOUR, ANOMALOUS_COLOUR = "#3b7dd8", "#d1242f"


def histogram(normals: Sequence[float], threshold: float, scores: Sequence[float], about: str) -> str:
    """Return HTML with a histogram of `normals`, the threshold as a dashed line, and a triangle at each of `scores`.

    about: name of the normal pictures, for example "19 normal pictures".
    """
    low, high = min(*normals, *scores, threshold), max(*normals, *scores, threshold)
    span = (high - low) or 1.0

    def x(score: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (score - low) / span

    counts = [0] * BINS
    for score in normals:
        counts[min(BINS - 1, int(BINS * (score - low) / span))] += 1
    wide, most = (WIDTH - 2 * MARGIN) / BINS, max(*counts, 1)
    bars = [
        f'<rect x="{MARGIN + place * wide:.1f}" y="{BASE - (BASE - TOP) * count / most:.1f}" width="{wide - 1:.1f}" '
        f'height="{(BASE - TOP) * count / most:.1f}" fill="currentColor" opacity="0.45"/>'
        for place, count in enumerate(counts)
        if count
    ]
    marks = [
        f'<path d="M{x(score):.1f} {BASE + 1} l-6 11 h12 z" fill="{ANOMALOUS_COLOUR if score > threshold else NORMAL_COLOUR}"/>'
        for score in scores
    ]
    line = f'<line x1="{x(threshold):.1f}" x2="{x(threshold):.1f}" y1="2" y2="{BASE}" stroke="{ANOMALOUS_COLOUR}" stroke-width="2" '
    checked = "this picture" if len(scores) == 1 else "checked pictures"
    words = f"Scores of {about}, with the threshold {threshold:.6f}"
    return (
        f'<figure class="histogram"><figcaption>Scores: <b>▮</b> {escape(about)}, <b style="color:{ANOMALOUS_COLOUR}">┆</b> '
        f"threshold {threshold:.6f}, "
        f'▲ {checked} (<b style="color:{NORMAL_COLOUR}">normal</b>, <b style="color:{ANOMALOUS_COLOUR}">anomalous</b>)</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{"".join(bars)}'
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{BASE}" y2="{BASE}" stroke="currentColor"/>{line}stroke-dasharray="5 3"/>'
        f'{"".join(marks)}<g fill="currentColor" font-size="13"><text x="{MARGIN}" y="{HEIGHT - 10}">{low:.3f}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 10}" text-anchor="end">{high:.3f}</text></g></svg></figure>'
    )
