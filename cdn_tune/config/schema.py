"""JSON Schemas of an experiment and of a search space, for editors to complete, explain and check YAML by.

They are shipped beside the files they describe: ``python -m cdn_tune.config.schema`` rewrites them.
"""

import json
from typing import Any, Union

from pydantic import create_model

from cdn_tune.config.check import COMPARED
from cdn_tune.config.experiment import Experiment
from cdn_tune.config.family import LossConfig, ModelConfig
from cdn_tune.config.keys import leaf_keys
from cdn_tune.config.space import SearchSpace
from cdn_tune.model import families
from cdn_tune.resources import ROOT

FILE = "schema.json"
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_CHOICE = {"type": ["string", "boolean", "number", "null"]}


def experiment_schema() -> dict[str, Any]:
    """Returns the JSON Schema of an experiment file."""
    return {"$schema": _DRAFT, **_any_family().model_json_schema()}


def space_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a search-space file; dotted keys are listed one by one, so that editors offer them."""
    schema = {"$schema": _DRAFT, **SearchSpace.model_json_schema()}
    leaves = _leaves()
    fields, definitions = schema["properties"], schema["$defs"]
    searched = {key: leaf for key, leaf in leaves.items() if not key.startswith(COMPARED)}
    condition = {"anyOf": [_CHOICE, {"type": "array", "items": _CHOICE, "minItems": 1}]}
    definitions["Parameter"] = fields["parameters"].pop("additionalProperties")
    definitions["Point"] = _closed(searched)
    definitions["When"] = _closed({key: {**condition, **_meaning(leaf)} for key, leaf in leaves.items()})
    fields["parameters"] |= _closed(
        {key: {"$ref": "#/$defs/Parameter", **_meaning(leaf)} for key, leaf in searched.items()}
    )
    fields["overrides"] |= _closed(leaves)
    fields["family_overrides"]["additionalProperties"] = {"$ref": "#/$defs/Point"}
    next(each for each in fields["start_with"]["anyOf"] if each.get("type") == "array")["items"] = {
        "$ref": "#/$defs/Point"
    }
    for kind in ("Float", "Int", "Categorical"):
        when = definitions[kind]["properties"]["when"]
        definitions[kind]["properties"]["when"] = {"$ref": "#/$defs/When", **_meaning(when)}
        definitions[kind].setdefault("required", []).insert(0, "type")
    named = fields["objectives"]["items"]
    fields["objectives"]["items"] = {"anyOf": [{"type": "string", "description": "a metric's or a cost's name"}, named]}
    return schema


def schema_text(kind: str) -> str:
    """Returns a schema as it is shipped, of an ``experiment`` or of a ``space``."""
    schema = experiment_schema() if kind == "experiment" else space_schema()
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _any_family() -> type[Experiment]:
    """Returns the experiment with the sections of all families in place of what they have in common."""
    first = families.default()
    models: Any = Union[tuple(ModelConfig.variants())]  # noqa: UP007
    losses: Any = Union[tuple(dict.fromkeys(LossConfig.variants()))]  # noqa: UP007
    fields: dict[str, Any] = {"model": (models, first), "loss": (losses, first.loss())}
    return create_model("Experiment", __base__=Experiment, __doc__=Experiment.__doc__, **fields)


def _leaves() -> dict[str, dict[str, Any]]:
    """Returns the schema of every key of an experiment that holds a value, by its dotted key."""
    schema = _any_family().model_json_schema()
    found: dict[str, dict[str, Any]] = {}
    for key in leaf_keys(Experiment):
        inner = [schema]
        for part in key.split("."):
            sections = [section for each in inner for section in _sections(schema, each)]
            inner = [section["properties"][part] for section in sections if part in section["properties"]]
        found[key] = inner[0] if len(inner) == 1 else {"anyOf": inner, **_meaning(inner[0])}
    return found


def _sections(schema: dict[str, Any], field: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the sections that a field's schema refers to; a section itself where it is one."""
    referred = field.get("anyOf", [field])
    return [schema["$defs"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each for each in referred]


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _meaning(leaf: dict[str, Any]) -> dict[str, Any]:
    return {"description": leaf["description"]} if "description" in leaf else {}


if __name__ == "__main__":
    for folder, kind in (("experiments", "experiment"), ("search_spaces", "space")):
        (ROOT / folder / FILE).write_text(schema_text(kind), encoding="utf-8")
