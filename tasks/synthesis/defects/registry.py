"""List the defects by the names that `synthesis.kinds` uses."""

from __future__ import annotations

from collections.abc import Mapping

from changepair.tasks.synthesis.defects import lines, shapes, spots, whole
from changepair.tasks.synthesis.defects.drawing import Defect

DEFECTS: Mapping[str, Defect] = {
    "local.scratch": lines.scratch,
    "local.crack": lines.crack,
    "local.fibre": lines.fibre,
    "local.fold": lines.fold,
    "local.missing-thread": lines.missing_thread,
    "local.doubled-thread": lines.doubled_thread,
    "local.stain": spots.stain,
    "local.spill": spots.spill,
    "local.pit": spots.pit,
    "local.dent": spots.dent,
    "local.dust": spots.dust,
    "local.corrosion": spots.corrosion,
    "local.discolouration": spots.discolouration,
    "local.defocus": spots.defocus,
    "local.overexposure": spots.overexposure,
    "local.smear": spots.smear,
    "local.burr": shapes.burr,
    "local.chip": shapes.chip,
    "local.missing-print": shapes.missing_print,
    "local.shifted-print": shapes.shifted_print,
    "global.colour": whole.colour,
    "global.contrast": whole.contrast,
    "global.weave": whole.weave,
    "global.focus": whole.focus,
}
