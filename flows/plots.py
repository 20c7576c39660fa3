"""Draw DVC's plots of metrics, curves and galleries as one page: the command `changepair plots`.

The page shows one revision, or compares several. It opens from disk without a network; the page of `dvc plots` loads scripts from the web.
"""

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
<title>changepair plots</title>
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
  // A chart with several panels takes the full width.
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
    """Add the command."""
    command = commands.add_parser("plots", help="Plot metrics and curves, and compare revisions")
    command.add_argument(
        "revisions", nargs="*", metavar="REVISION", help="commits, branches, tags or experiments (default: the files of this checkout)"
    )
    command.add_argument(
        "--out", type=Path, default=Path("build/plots"), metavar="FOLDER", help="folder for index.html (default: %(default)s)"
    )
    command.description = "Plot metrics, curves and galleries as a page that opens without a network."
    command.epilog = "example:\n  changepair plots HEAD~1 HEAD"
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.set_defaults(run=lambda arguments: print(draw(arguments.revisions, arguments.out)))


def draw(revisions: list[str], out: Path) -> str:
    """Write the page and its pictures. Return a line that names the page. Raises BadInput if DVC fails."""
    with tempfile.TemporaryDirectory(prefix="changepair-") as work:
        template = Path(work) / "page.html"
        template.write_text(PAGE.replace("BUNDLE", _bundle()), encoding="utf-8")
        command = ["plots", "diff" if revisions else "show", *revisions, "--out", str(out), "--html-template", str(template)]
        done = subprocess.run([sys.executable, "-m", "dvc", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise BadInput(f"dvc {' '.join(command[:2])}: {(lines or ['failed without a message'])[0].removeprefix('ERROR: ')}")
    return f"plots: {out / 'index.html'}"


def _bundle() -> str:
    """Return the drawing script, in a form that can stand inside a page."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(SNIPPET)
    return bundle.replace("</script", "<\\/script")
