"""Define the folders of the stages' artifacts."""

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
CANDIDATE = "candidate"  # in a pipeline's models: the detectors of the last training
IN_USE = "in-use"  # in a pipeline's models: the current model
SETTINGS_NAME = "settings.json"  # in in-use: the settings of the model's evaluation
SCORES = DATA / "scores"
EVALUATION = DATA / "evaluation"
REPORT_NAME, GALLERIES_NAME = "report.html", "galleries"  # in a pipeline's evaluation
CODE = DATA / "code"  # records of the code that each stage runs, for DVC to compare
WATCH = DATA / "watch"  # records of watched production lines; not written by a stage, so unknown to DVC
WRITTEN = (CODE, PICTURES, MANIFESTS, EPISODES, INPAINTERS, PAIRS, CHECKPOINTS, MODELS, SCORES, EVALUATION)
"""Folders that stages write to and delete from."""
