"""`changepair explain KEY`: print what a key of pipelines.yaml means, or the JSON Schema of the file for editors."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from changepair.flows.settings.keys import FILE_SECTION, NAME, PIPELINE, REQUIRED, SECTIONS, Setting, about_section, find, settings_of
from changepair.flows.settings.reader import FILE, load_yaml
from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.registry import KIND

EPILOG = """examples:
  changepair explain synthesis.resolution
  changepair explain detectors.patch-residual
  changepair explain --schema > pipelines.schema.json
"""
EXAMPLES = {
    "enabled": "[mine]",
    "datasets.packaged": "[sample-photos, elpv]",
    "datasets.folders.<name>.path": "/data/my-parts",
    "datasets.folders.<name>.normal": "[ok]",
    "datasets.folders.<name>.abnormal": "[nok]",
    "datasets.folders.<name>.masks": "masks",
    "datasets.folders.<name>.licence": "in-house",
    "datasets.objects.<name>.format": "coco",
    "datasets.objects.<name>.path": "/data/my-photos/instances.json",
    "datasets.elsewhere.<name>.layout": "visa",
    "execution.workers": "2",
    "execution.address": "tcp://10.0.0.5:8786",
    "execution.gpu": "GPU",
    "execution.trackers": "[tensorboard]",
    "runs.remote": "storage",
    "runs.pool": "machines",
    "sources": "[sample-photos]",
    "auxiliary": "[texture-defects]",
    "targets": "[my-parts]",
    "schedule.cron": '"0 3 * * 1"',
    "schedule.interval": "6 hours",
    "detectors": "{patch-residual: {}, metauas: {resolution: 256}}",
    "training": "{metauas: {epochs: 10, batch_size: 32}}",
    "sampling.target_protocols": "{digits: [one-vs-all]}",
    "sampling.normal_classes": '{digits: ["0", "1"]}',
    "sampling.prompts": "prompts.json",
    "evaluation.subset": "{metauas: 200}",
    "evaluation.perturbations": "[jpeg-50, blur-1, noise-15, gain-0.8, gain-1.2]",
    "promotion.detectors": "[metauas]",
    "watch.folder": "/data/line-3",
    "watch.prompts": "/data/line-3-prompts",
    "watch.normals": "/data/line-3-normals",
    "watch.detector": "patch-residual",
    "watch.retrain_after": "50",
    "watch.schedule.cron": '"*/10 * * * *"',
    "watch.schedule.interval": "10 minutes",
}
"""Values for keys whose default is no example."""
NO_EXAMPLE = ("null", REQUIRED, "[]", "{}", '""', "the name of the detector", "")
WIDTH = 100  # characters of a line


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "explain",
        help="Describe a setting of pipelines.yaml",
        description="Print the description, type, default and place of a setting. Without a key, list the sections.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("key", nargs="?", metavar="KEY", help="a dotted key, such as synthesis.resolution")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of pipelines.yaml, for an editor")
    parser.set_defaults(run=lambda arguments: explain(arguments.key, schema=arguments.schema))


def explain(key: str | None, *, schema: bool = False) -> None:
    """Print a setting, the sections, or the JSON Schema. Raises BadInput for an unknown key."""
    if schema:
        from changepair.flows.settings.schema import schema_of_file

        if key is not None:
            raise BadInput("--schema: describes the whole file; leave out the key")
        print(json.dumps(schema_of_file(), indent=1))
        return
    print("\n".join(_sections() if key is None else _described(find(key, kinds_in_file(key)))))


def kinds_in_file(key: str) -> dict[str, str]:
    """Read the kinds of the detectors in pipelines.yaml: those of the pipeline that a key names, else of all. The file may be invalid."""
    try:
        held = load_yaml(FILE)["pipelines"] if FILE.exists() else {}
        named = key.split(".")[1] if key.startswith("pipelines.") else ""
        pipelines = [held[named]] if named in held else held.values()
        sections = [(name, one) for pipeline in pipelines for name, one in (pipeline.get("detectors") or {}).items()]
        return {str(name): str(one[KIND]) for name, one in sections if isinstance(one, dict) and KIND in one}
    except (AttributeError, BadInput, KeyError, TypeError):
        return {}


def example_of(setting: Setting) -> str:
    """Return an example of a setting's value, as YAML on one line; empty without one."""
    value = EXAMPLES.get(setting.key, setting.default)
    return "" if value in NO_EXAMPLE else value


def _sections() -> Iterator[str]:
    """Yield the top-level keys, and the keys of a pipeline."""
    yield from ("Keys of pipelines.yaml:", *_listed(settings_of(SECTIONS[FILE_SECTION], "")), "")
    yield from (f"Keys of a pipeline, {PIPELINE}:", *_listed(settings_of(SECTIONS[PIPELINE], PIPELINE)), "")
    yield "`changepair explain KEY` describes one of them, for example `changepair explain synthesis.resolution`."


def _described(setting: Setting) -> Iterator[str]:
    yield setting.key
    about = setting.about or (about_section(setting.section) if setting.section else "")
    yield from (*textwrap.wrap(" ".join(about.split()), WIDTH, initial_indent="  ", subsequent_indent="  "), "")
    yield f"  type     {setting.values}"
    if setting.default:
        yield f"  default  {setting.default}"
    yield f"  place    {FILE}: {setting.place}"
    value = example_of(setting)
    if value and setting.section is None:
        yield from ("  example", *(f"      {line}" for line in _nested(setting.place, value)))
    if setting.settings:
        yield from ("", "  Keys:", *_listed(setting.settings, indent="    "))


def _nested(place: str, value: str) -> Iterator[str]:
    *sections, last = (("mine" if PIPELINE in place else "my-parts") if part == NAME else part for part in place.split("."))
    for depth, name in enumerate(sections):
        yield f"{'  ' * depth}{name}:"
    yield f"{'  ' * len(sections)}{last}: {value}"


def _listed(settings: list[Setting], indent: str = "  ") -> Iterator[str]:
    """Yield each key with the first sentence of its description."""
    width = max(len(_name(one)) for one in settings)
    for one in settings:
        line = f"{indent}{_name(one):{width}}  {one.about.partition('. ')[0].rstrip('.:')}"
        yield line if len(line) <= WIDTH else f"{line[: WIDTH - 2]} …"


def _name(setting: Setting) -> str:
    return setting.place.rpartition(".")[2]
