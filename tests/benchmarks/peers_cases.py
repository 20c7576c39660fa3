"""List the cases that peers.py compares. As a program, this module is one of the processes that peers.py times.

python peers_cases.py CASE ours|theirs FOLDER THREADS
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peers_work import (
    CLIP,
    DINO,
    SIDE,
    SMALL,
    WIDE,
    Work,
    anomaly_dino,
    export,
    infer,
    our_aupro,
    our_nearest,
    our_patches,
    our_winclip,
    patchcore,
    their_aupro,
    their_dino,
    their_faiss,
    their_nearest,
    their_openvino,
    their_patchcore,
    their_winclip,
    winclip,
    write_pictures,
    write_weights,
)

SHOTS = 4
DINO_SIDE = 448


@dataclass(frozen=True)
class Case:
    """A measurement of changepair and a peer."""

    what: str
    peer: str
    ours: Callable[[Path, int], Work]
    """Function that builds the work from the folder of shared files and the number of threads."""
    theirs: Callable[[Path, int], Work]
    same: bool = True
    """Whether both return the same numbers."""


ONCE = f"{SHOTS} prompts, whole"
EXPORTED = {
    "winclip": (f"WinCLIP by texts, {CLIP}, batches of 1", partial(our_winclip, 1), partial(winclip), 240),
    "dino": (
        f"patch residual, DINOv2-S at {DINO_SIDE}, {ONCE}",
        partial(our_patches, DINO, (12,), DINO_SIDE, SHOTS, False),
        partial(anomaly_dino, DINO_SIDE, SHOTS),
        DINO_SIDE,
    ),
    **{
        f"patchcore-{name}": (
            f"patch residual, {name} at {SIDE}, {ONCE}",
            partial(our_patches, name, (3, 4), SIDE, SHOTS, False),
            partial(patchcore, name, SIDE, SHOTS),
            SIDE,
        )
        for name in (WIDE, SMALL)
    },
}
CASES: dict[str, Case] = {
    **{
        f"winclip-{batch}": Case(
            f"WinCLIP by texts, {CLIP}, batches of {batch}", "anomalib WinCLIP", partial(our_winclip, batch), partial(their_winclip, batch)
        )
        for batch in (1, 4)
    },
    **{
        f"dino-{'search' if search else 'whole'}": Case(
            f"patch residual, DINOv2-S at {DINO_SIDE}, {SHOTS} prompts, {'search alone' if search else 'whole'}",
            "anomalib AnomalyDINO",
            partial(our_patches, DINO, (12,), DINO_SIDE, SHOTS, search),
            partial(their_dino, DINO_SIDE, SHOTS, search),
        )
        for search in (False, True)
    },
    **{
        f"patchcore-{name}-{shots}-{'search' if search else 'whole'}": Case(
            f"patch residual, {name} at {SIDE}, {shots} prompts, {'search alone' if search else 'whole'}",
            "anomalib PatchCore",
            partial(our_patches, name, (3, 4), SIDE, shots, search),
            partial(their_patchcore, name, SIDE, shots, search),
            same=False,
        )
        for name in (WIDE, SMALL)
        for shots in (4, 8)
        for search in (False, True)
    },
    **{
        f"{name}-openvino{'-' if precision else ''}{precision}": Case(
            what,
            f"anomalib, OpenVINO{', float32' if precision else ''}",
            ours,
            partial(their_openvino, build, side, precision),
            same=not name.startswith("patchcore"),
        )
        for name, (what, ours, build, side) in EXPORTED.items()
        for precision in ("f32", "")
    },
    **{
        f"nearest-{peer.split()[0]}-{channels}-{shots}": Case(
            f"nearest of {shots * 1024:,} rows with {channels:,} channels, 1,024 queries",
            peer,
            partial(our_nearest, channels, shots),
            partial(theirs, channels, shots),
        )
        for peer, theirs in (("faiss IndexFlatIP", their_faiss), ("anomalib PatchCore", their_nearest))
        for channels, shots in ((384, SHOTS), (1536, SHOTS), (384, 64))
    },
    **{
        f"aupro-{count}": Case(
            f"AUPRO of {count:,} maps of 256×256", "anomalib AUPRO", partial(our_aupro, count), partial(their_aupro, count)
        )
        for count in (100, 1000)
    },
}


def serve(name: str, side: str, folder: str, threads: str) -> None:
    """Build one side of a case, and answer requests from standard input: `values`, `seconds`, or `memory` in MiB."""
    import torch

    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(int(threads))
    case = CASES[name]
    with torch.inference_mode():
        work = (case.ours if side == "ours" else case.theirs)(Path(folder), int(threads))
        for line in sys.stdin:
            start = time.perf_counter()
            result = work() if line.strip() != "memory" else None
            seconds = time.perf_counter() - start
            memory = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
            answer = {"values": result, "seconds": seconds, "memory": memory and int(memory[1]) / 1024}[line.strip()]
            print(json.dumps(answer if isinstance(answer, float) else [float(one) for one in answer]), file=answers, flush=True)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    {"pictures": write_pictures, "weights": write_weights, "export": export, "inferencer": infer}.get(command, partial(serve, command))(
        *rest
    )
