"""`changepair plots`: DVC's plots of the metrics, curves and galleries, of one revision or of several against each other, as one page that
opens from disk with no network. `dvc plots` alone makes a page that fetches what draws it."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from changepair.tasks.common.errors import BadInput

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>changepair: plots</title>
{refresh_tag}
<script>BUNDLE</script>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 1rem; }
  main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem; align-items: start; }
  main > * { min-width: 0; max-width: 100%; overflow-x: auto; } img, svg, canvas { max-width: 100%; height: auto !important; }
</style>
</head>
<body>
<script>
  // A chart of several panels takes the whole width.
  new MutationObserver(() => {
    for (const chart of document.querySelectorAll("main canvas, main svg")) {
      if (parseFloat(chart.getAttribute("width")) > 800 * devicePixelRatio) chart.closest("main > *").style.gridColumn = "1 / -1";
    }
  }).observe(document.body, { childList: true, subtree: true });
</script>
<main>
{plot_divs}
</main>
</body>
</html>
"""
SNIPPET = "globalThis.vegaEmbed = vegaEmbed;"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser(
        "plots", help="draw DVC's plots, of this checkout or of revisions against each other, as one page for offline"
    )
    command.add_argument("revisions", nargs="*", metavar="REVISION", help="commits, branches, tags or experiments; none for what is here")
    command.add_argument("--out", type=Path, default=Path("build/plots"), metavar="FOLDER", help="where to write index.html (%(default)s)")
    command.epilog = "example: changepair plots HEAD~1 HEAD"
    command.set_defaults(run=lambda arguments: print(draw(arguments.revisions, arguments.out)))


def draw(revisions: list[str], out: Path) -> str:
    """Writes the page, and the pictures that it shows beside it; gives what to tell. Raises BadInput."""
    with tempfile.TemporaryDirectory(prefix="changepair-") as work:
        template = Path(work) / "page.html"
        template.write_text(PAGE.replace("BUNDLE", _bundle()), encoding="utf-8")
        command = ["plots", "diff" if revisions else "show", *revisions, "--out", str(out), "--html-template", str(template)]
        done = subprocess.run([sys.executable, "-m", "dvc", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise BadInput(f"dvc {' '.join(command[:2])}: {(lines or ['it failed'])[0].removeprefix('ERROR: ')}")
    return f"to look at: {out / 'index.html'}"


def _bundle() -> str:
    """Gives the JavaScript that draws, all in one, as a page may hold it."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(SNIPPET)
    return bundle.replace("</script", "<\\/script")
