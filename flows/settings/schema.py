"""Generate the JSON Schema of pipelines.yaml from the classes that the file is validated with.

An editor uses it to complete keys and to mark mistakes. It checks each key alone. Only `changepair pipelines` checks several keys together,
for example that a target is one of the datasets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from changepair.flows.settings.keys import ABOUT_KIND, ABOUT_PRESET, words_of
from changepair.flows.settings.pipelines import NO_PAIRS, Pipelines
from changepair.flows.settings.runs import UNITS, of_cron_line
from changepair.tasks.common import tiles
from changepair.tasks.common.bounds import Between, Bound, NonEmpty, Unique
from changepair.tasks.detectors.registry import ALIASES, DETECTORS, KIND, NAME, RENAMED
from changepair.tasks.encoders.presets import ENCODERS, PRESET, PRESETS
from changepair.tasks.scoring.perturbation_names import KINDS, Perturbations

DIALECT = "https://json-schema.org/draft/2020-12/schema"
INTERVAL = f"^[1-9][0-9]* ({'|'.join(unit.removesuffix('s') for unit in UNITS)})s?$"
NUMBER = r"^\s*[-+]?[0-9._]+([eE][-+]?[0-9]+)?\s*$"  # in quotes
BOOLEANS = ("0", "1", "f", "n", "t", "y", "no", "on", "off", "yes", "true", "false")
"""Texts that are read as true or false, in letters of either case."""
NON_EMPTY: dict[str, JsonSchemaValue] = {
    "string": {"pattern": r"\S"},
    "array": {"minItems": 1, "uniqueItems": True},
    "object": {"minProperties": 1},
}
TILES: JsonSchemaValue = {
    "anyOf": [
        {"const": tiles.AUTO},
        {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": tiles.MOST}, "minItems": 2, "maxItems": 2},
    ]
}


def schema_of_file() -> dict[str, Any]:
    """Return the JSON Schema of pipelines.yaml, with the kinds of detectors that are installed here."""
    kinds = {name: DETECTORS[name] for name in DETECTORS}
    trainings = {name: kind.training.settings for name, kind in kinds.items() if kind.training is not None}
    inputs = [(name, "validation", TypeAdapter(kind.settings)) for name, kind in kinds.items()]
    inputs += [(f"training {name}", "validation", TypeAdapter(settings)) for name, settings in trainings.items()]
    refs: Mapping[Any, dict[str, Any]]
    refs, schema = TypeAdapter.json_schemas(
        [("file", "validation", TypeAdapter(Pipelines)), *inputs],  # type: ignore[list-item]
        schema_generator=_Schema,
        ref_template="#/$defs/{model}",
    )
    definitions: dict[str, Any] = schema["$defs"]
    section = {name: refs[name, "validation"] for name in kinds}
    training = {name: refs[f"training {name}", "validation"] for name in trainings}
    pipeline = definitions["Pipeline"]["properties"]
    pipeline["detectors"] |= {"type": "object", "minProperties": 1, **_detectors(section, definitions)}
    pipeline["training"] |= {"type": "object", "properties": training, "additionalProperties": {"anyOf": _different(training)}}
    for key in NO_PAIRS:  # without sources, an empty section is read too
        pipeline[key]["anyOf"] = [{"$ref": pipeline[key].pop("$ref")}, {"type": "null"}]
    _add_earlier_names(definitions["PromotionSettings"]["properties"], {"figure": "metric"})
    definitions["EncoderSettings"]["properties"][PRESET] = {"enum": list(PRESETS), "description": ABOUT_PRESET}
    for reference in section.values():
        _add_presets(definitions[_name(reference)]["properties"])
    for kind, names in RENAMED.items():
        _add_earlier_names(definitions[_name(section[kind])]["properties"], names)
    head: dict[str, Any] = {"$schema": DIALECT, "title": "pipelines.yaml of changepair"}
    return {**head, **refs["file", "validation"], "$defs": definitions}


def _detectors(section: Mapping[str, JsonSchemaValue], definitions: dict[str, Any]) -> JsonSchemaValue:
    """Describe the detectors of a pipeline. A detector is named after its kind, or has another name and a kind."""
    for reference in section.values():
        definitions[_name(reference)]["properties"][KIND] = {"type": "string", "description": ABOUT_KIND}
    of_earlier = {name: section[kind] for name, (kind, _defaults) in ALIASES.items()}
    known = {**section, **of_earlier}
    by_kind = [{"if": {"required": [KIND], "properties": {KIND: {"const": name}}}, "then": one} for name, one in known.items()]
    named = {"type": "object", "required": [KIND], "properties": {KIND: {"enum": list(known)}}, "allOf": by_kind}
    earlier = {name: {"if": {"required": [KIND]}, "then": named, "else": one} for name, one in of_earlier.items()}
    called = {name: [name, *(old for old, (kind, _defaults) in ALIASES.items() if kind == name)] for name in section}
    as_kind = {name: {"allOf": [one], "properties": {KIND: {"enum": called[name]}}} for name, one in section.items()}
    names = {"anyOf": [{"enum": list(known)}, {"pattern": f"^{NAME.pattern}$"}]}
    return {"properties": {**as_kind, **earlier}, "propertyNames": names, "additionalProperties": named}


def _add_presets(properties: dict[str, Any]) -> None:
    """Describe settings that hold an encoder: a section, or the name of a preset."""
    for key in ENCODERS:
        if key in properties:
            inner = properties[key].pop("anyOf", None) or [{"$ref": properties[key].pop("$ref")}]
            properties[key]["anyOf"] = [{"enum": list(PRESETS)}, *inner]


def _add_earlier_names(properties: dict[str, Any], names: Mapping[str, str]) -> None:
    """Describe settings with the names that they had in earlier versions, which are read with a warning. names: new names by old ones."""
    for old, new in names.items():
        properties[old] = {**properties[new], "description": f"Earlier name of `{new}`.", "deprecated": True}


def _name(reference: JsonSchemaValue) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _different(references: Mapping[str, JsonSchemaValue]) -> list[JsonSchemaValue]:
    return [{"$ref": name} for name in dict.fromkeys(str(one["$ref"]) for one in references.values())]


class _Schema(GenerateJsonSchema):
    """Adds what pydantic cannot know: our bounds, the docstrings of fields, and settings with a short form."""

    def int_schema(self, schema: Any) -> JsonSchemaValue:
        return _also_in_quotes(super().int_schema(schema))

    def float_schema(self, schema: Any) -> JsonSchemaValue:
        return _also_in_quotes(super().float_schema(schema))

    def bool_schema(self, schema: Any) -> JsonSchemaValue:
        letters = ("".join(f"[{one}{one.upper()}]" for one in text) for text in BOOLEANS)
        pattern = f"^({'|'.join(letters)})$"
        return {**super().bool_schema(schema), "type": ["boolean", "integer", "string"], "minimum": 0, "maximum": 1, "pattern": pattern}

    def function_after_schema(self, schema: Any) -> JsonSchemaValue:
        inner = super().function_after_schema(schema)
        bound = getattr(schema["function"]["function"], "__self__", None)
        return {**inner, **_bounds(bound, inner)} if isinstance(bound, Bound) else inner

    def function_before_schema(self, schema: Any) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        if inner.get("format") == "duration":
            return {"type": "string", "pattern": INTERVAL}
        return {"anyOf": [{"type": "string"}, inner]} if schema["function"]["function"] is of_cron_line else inner

    def function_plain_schema(self, schema: Any) -> JsonSchemaValue:
        bound = getattr(schema["function"]["function"], "__self__", None)
        return TILES if isinstance(bound, tiles.OfTiles) else {}  # detectors and training are described by `schema_of_file`

    def dict_schema(self, schema: Any) -> JsonSchemaValue:
        inner = super().dict_schema(schema)
        return {**inner, "additionalProperties": False} if "patternProperties" in inner else inner  # other names are wrong

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        return _described(super().model_schema(schema), schema["cls"])

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        return _described(super().dataclass_schema(schema), schema["cls"])


def _also_in_quotes(number: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of a number that may also be a text."""
    return {**number, "type": [number["type"], "string"], "pattern": NUMBER}


def _described(schema: JsonSchemaValue, section: Any) -> JsonSchemaValue:
    """Add the docstrings of a section's fields."""
    words = words_of(section)
    for name, field in schema.get("properties", {}).items():
        field.pop("title", None)
        if "$ref" in field:
            field.pop("default", None)  # of a whole section
        if name in words:
            field["description"] = words[name]
    return schema


def _bounds(bound: Bound, inner: JsonSchemaValue) -> JsonSchemaValue:
    """Return a bound as keywords of JSON Schema."""
    kind = inner.get("type")
    if isinstance(bound, Between):
        limits = {key: one for key, one in (("minimum", bound.low), ("maximum", bound.high)) if one is not None}
        if kind != "array":
            return limits
        return {key: _within(inner[key], limits) for key in ("items", "prefixItems") if key in inner}
    if isinstance(bound, Perturbations):
        return {"uniqueItems": True, "items": {"type": "string", "pattern": f"^({'|'.join(KINDS)})-{NUMBER.strip('^')}"}}
    if isinstance(bound, NonEmpty):
        return NON_EMPTY.get(str(kind), {})
    unique: JsonSchemaValue = {"uniqueItems": True}
    return unique if isinstance(bound, Unique) else {}


def _within(items: Any, limits: JsonSchemaValue) -> Any:
    return [{**one, **limits} for one in items] if isinstance(items, list) else {**items, **limits}
