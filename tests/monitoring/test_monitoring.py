"""A line that is watched: every picture once, an alert when many are flagged, and drift with a stated chance of a false alarm."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TINY, make_project, run, save
from lines import old, picture, predictor
from PIL import Image
from servers import ask

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.rows import write_rows
from changepair.tasks.monitoring import record as recording
from changepair.tasks.monitoring.drift import drift_of
from changepair.tasks.monitoring.record import Judged, Record, arrived, judge
from changepair.tasks.prediction.calibration import Threshold, calibrated


def line(random: np.random.Generator, count: int, shift: float = 0.0) -> list[float]:
    """Scores of normal pictures: skewed, as residuals' are."""
    return (random.gamma(4.0, 0.02, count) * (1 + shift)).tolist()


def threshold_of(random: np.random.Generator) -> Threshold:
    return calibrated(line(random, 200), [1.0], 0.01)


def test_an_unchanging_line_is_reported_no_more_often_than_was_stated() -> None:
    """Over the whole of 600 scores, not at one look; 200 lines."""
    reported = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        reported += drift_of(threshold_of(random), line(random, 600), chance=0.1).found
    assert reported / 200 <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 200)


@pytest.mark.parametrize("shift", [0.5, -0.4])
def test_a_line_that_has_changed_is_reported_soon_in_either_direction(shift: float) -> None:
    since = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        found = drift_of(threshold_of(random), [*line(random, 100), *line(random, 400, shift)], chance=0.01)
        since.append(found.since or 10_000)
    assert np.median(since) < 100 + 150 and sum(place < 10_000 for place in since) >= 19


def test_what_is_flagged_is_no_drift() -> None:
    """A batch of bad parts says nothing of what passes."""
    random = np.random.default_rng(0)
    threshold = threshold_of(random)
    scores = line(random, 200)
    bad = [*scores[:100], *[10 * threshold.value] * 300, *scores[100:]]
    assert drift_of(threshold, bad, chance=0.01) == drift_of(threshold, scores, chance=0.01)


def test_every_picture_is_scored_once_and_recorded_by_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "AT_ONCE", 3)
    folder, record = tmp_path / "line", Record(tmp_path / "watch")
    for place in range(7):
        old(save(picture(place, hole=place == 4), folder / f"shift-1/{place}.png"))
    (folder / "shift-1/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n half of it")
    old(folder / "shift-1/broken.png")
    save(picture(9), folder / "on-its-way.png")
    (folder / "notes.txt").write_text("no picture")
    new = arrived(folder, record, settled=30.0)
    assert len(new) == 8
    rows = [row for part in judge(predictor(), "kit-1", new, record) for row in part]
    assert [row.verdict for row in rows].count("unreadable") == 1 and record.rows() == rows and not arrived(folder, record, settled=30.0)
    scores = {row.picture: row.score for row in rows}
    assert scores["shift-1/2.png"] == pytest.approx(predictor()(picture(2)).scores[0], abs=1e-6) and scores["shift-1/broken.png"] is None
    flagged = [row for row in rows if row.verdict == "anomalous"]
    assert "shift-1/4.png" in [row.picture for row in flagged] and all(record.overlay(row).is_file() for row in flagged)
    kept = np.asarray(Image.open(record.flagged(next(row for row in flagged if row.picture == "shift-1/4.png"))))
    assert np.array_equal(kept[..., 0], picture(4, hole=True))
    table = pq.read_table(tmp_path / "watch" / "scores")  # as anybody reads it: a dataset by day
    assert table.num_rows == 8 and set(table["day"].to_pylist()) == {rows[0].time[:10]}
    old(save(picture(3, hole=True), folder / "shift-1/2.png"))  # another of the same name is another picture
    assert [one.key[0] for one in arrived(folder, record, settled=30.0)] == ["shift-1/2.png"]


def test_killed_in_the_middle_it_goes_on_where_the_record_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "AT_ONCE", 2)
    folder, record = tmp_path / "line", Record(tmp_path / "watch")
    for place in range(6):
        old(save(picture(place), folder / f"{place}.png"))
    parts: Iterator[object] = judge(predictor(), "kit-1", arrived(folder, record, settled=0), record)
    next(parts)
    del parts  # and whatever it was about to do
    left = arrived(folder, record, settled=0)
    assert len(left) == 4
    list(judge(predictor(), "kit-1", left, record))
    assert sorted(row.picture for row in record.rows()) == [f"{place}.png" for place in range(6)]


def test_what_is_recorded_stays_when_old_days_are_moved_away(tmp_path: Path) -> None:
    folder, record = tmp_path / "line", Record(tmp_path / "watch")
    for place in range(3):
        old(save(picture(place), folder / f"{place}.png"))
        list(judge(predictor(), "kit-1", arrived(folder, record, settled=0), record))
    next((tmp_path / "watch" / "scores").glob("day=*/00000000.parquet")).unlink()
    old(save(picture(3), folder / "3.png"))
    list(judge(predictor(), "kit-1", arrived(folder, record, settled=0), record))
    assert {row.picture for row in record.rows()} >= {"1.png", "2.png", "3.png"}


def test_a_day_that_is_over_becomes_one_file_and_a_kill_in_between_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(place: int, day: int) -> Judged:
        return Judged(f"{place}.png", 1, place, f"2026-11-{day}T10:00:00.000+00:00", 0.1, 0.2, "normal", None, "kit-1")

    record, rows = Record(tmp_path), [row(place, 20 + place // 4) for place in range(12)]
    for one in rows:
        record.append([one])

    def die(rows: object, *_arguments: object) -> None:
        write_rows(rows, *_arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(recording, "write_rows", die)
        record.merge("2026-11-22")
    assert pq.read_table(tmp_path / "scores").num_rows == 15
    assert Record(tmp_path).rows() == record.rows() == rows
    for _ in range(2):
        record.merge("2026-11-22")
        files = sorted(tmp_path.rglob("*.parquet"))
        assert [len([file for file in files if f"day=2026-11-{day}" in str(file)]) for day in (20, 21, 22)] == [1, 1, 4]
        assert Record(tmp_path).rows() == record.rows() == rows
        assert pq.read_table(tmp_path / "scores").num_rows == 12
    record.append([row(12, 22)])
    assert record.rows()[-1].picture == "12.png"


def test_a_folder_that_is_away_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such folder; mount it, or change watch\.folder"):
        arrived(tmp_path / "away", Record(tmp_path), settled=0)


def test_too_few_normal_pictures_are_an_error_before_anything_is_loaded(tmp_path: Path) -> None:
    """Before the model in use is looked for, which there is none of."""
    content = yaml.safe_load(yaml.safe_dump(TINY))
    content["pipelines"]["small"]["watch"] = {
        "folder": "line",
        "prompts": "parts/bricks/train/good/0.png",
        "normals": "parts/bricks/train/good",
    }
    project = make_project(tmp_path / "project", content)
    result = run(project, "changepair", "watch", "small")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "pipelines.small.watch.normals: parts/bricks/train/good: 1 of the 4 normal pictures are prompts" in result.stderr
    assert "3 are left, and 1 % false alarms needs 99; with 3 the lowest rate is 25 %" in result.stderr


@pytest.mark.slow
def test_pictures_in_an_alert_out(tmp_path: Path, api: str) -> None:
    """A pipeline is retrained; pictures appear and are scored by its model in use, once; many bad ones raise the alert."""
    content = yaml.safe_load(yaml.safe_dump(TINY))
    content["pipelines"]["small"]["watch"] = {
        "folder": "line", "prompts": "parts/bricks/train/good/0.png", "normals": "normals", "false_alarms": 0.1, "alert": 0.5,
    }  # fmt: skip
    project = make_project(tmp_path / "project", content)
    for place in range(12):
        old(save(picture(place), project / "normals" / f"{place}.png"))
        old(save(picture(place + 12), project / "line" / f"good-{place}.png"))
    environment = {"PREFECT_API_URL": api, "PREFECT_LOGGING_LEVEL": "INFO"}
    early = run(project, "changepair", "watch", "small", **environment)
    assert early.returncode == 2 and "has no current model" in early.stderr
    assert run(project, "changepair", "retrain", "small", **environment).returncode == 0
    first = run(project, "changepair", "watch", "small", **environment)
    assert first.returncode == 0 and "12 new pictures" in first.stdout, first.stdout + first.stderr
    again = run(project, "changepair", "watch", "small", **environment)
    assert "Nothing unusual: 0 new pictures" in again.stdout and "threshold" not in again.stderr  # the kit is kept
    for place in range(6):
        old(save(picture(place, hole=True), project / "line" / f"bad-{place}.png"))
    alerted = run(project, "changepair", "watch", "small", **environment)
    assert "small: Alert: 6 new pictures" in alerted.stdout and "more than the limit of 50 %" in alerted.stdout, alerted.stdout
    names = [item["name"] for item in ask(api, "flow_runs")]
    assert names.count("watch small") == 4
    artifacts = {item["key"] for item in ask(api, "artifacts")}
    assert {"small-watch", "small-flagged"} <= artifacts
    rows = Record(project / "data/watch/small").rows()
    assert len(rows) == 18 and len({row.key for row in rows}) == 18


@pytest.mark.slow
def test_a_run_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    content = yaml.safe_load(yaml.safe_dump(TINY))
    content["pipelines"]["small"]["watch"] = {
        "folder": "line", "prompts": "parts/bricks/train/good/0.png", "normals": "parts/bricks/train/good", "false_alarms": 0.4,
    }  # fmt: skip
    project = make_project(tmp_path / "project", content)
    assert run(project, "changepair", "retrain", "small").returncode == 0
    for place in range(400):
        old(save(np.roll(picture(place % 20), place, axis=0), project / "line" / f"{place:03d}.png"))
    command = [str(Path(sys.executable).parent / "changepair"), "score", "small"]
    process = subprocess.Popen(command, cwd=project, env={**os.environ, "PYTHONPATH": str(project)}, start_new_session=True)
    record = Record(project / "data/watch/small")
    while not record.rows():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(record.rows())
    assert 0 < done < 400
    ended = run(project, "changepair", "watch", "small")
    assert f"{400 - done} new pictures" in ended.stdout, ended.stdout + ended.stderr
    rows = record.rows()
    assert len(rows) == 400 == len({row.picture for row in rows})
    shutil.rmtree(project)
