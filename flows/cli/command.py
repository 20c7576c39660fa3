"""Define the type of the object to which a group adds its commands."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
PIPELINE = "name of a pipeline in pipelines.yaml"
