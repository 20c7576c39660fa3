"""Name the folders of the stages' artifacts."""

from __future__ import annotations

from pathlib import Path

DATA = Path("data")
PICTURES = DATA / "pictures"
MANIFESTS = DATA / "manifests"
EPISODES = DATA / "episodes"
INPAINTERS = DATA / "inpainters"
PAIRS = DATA / "pairs"
CHECKPOINTS = DATA / "checkpoints"
MODELS = DATA / "models"
CANDIDATE = "candidate"  # within a pipeline's models: what was trained last
IN_USE = "in-use"  # and what is used
SETTINGS_NAME = "settings.json"  # within in-use: the settings that its metrics are of
SCORES = DATA / "scores"
EVALUATION = DATA / "evaluation"
REPORT_NAME, GALLERIES_NAME = "report.html", "galleries"  # within a pipeline's evaluation
CODE = DATA / "code"  # which code each stage runs: what DVC compares
WATCH = DATA / "watch"  # what was said of pictures of a line; no stage's, so DVC knows nothing of it
WRITTEN = (CODE, PICTURES, MANIFESTS, EPISODES, INPAINTERS, PAIRS, CHECKPOINTS, MODELS, SCORES, EVALUATION)
"""Those that stages write to, and delete from."""
