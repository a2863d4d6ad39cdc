"""The settings of the installed TRL and peft with their types, for comparison with the package's list.

python tests/support/trl_settings.py    # rewrites the list, after an update of TRL or peft
"""

import dataclasses
import json
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

LIST = Path(__file__).parents[2] / "ladder_lite/config/trl_settings.json"

FOR_ALL_VERSIONS = {
    "pad_to_multiple_of": {"types": ["int", "null"], "default": None},  # TRL 1.16 adds "auto", its default
}


def installed_settings() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the types (in YAML's terms) and the default of each setting of TRL's and peft's configurations.

    The keys are the class and the name of the setting. Settings that YAML cannot express are left out.
    """
    import peft
    import trl

    return {
        owner.__name__: {
            field.name: FOR_ALL_VERSIONS.get(
                field.name, {"types": sorted(kinds(hints[field.name])), "default": default(field)}
            )
            for field in dataclasses.fields(owner)
            if field.init and kinds(hints[field.name]) - {"null"}
        }
        for owner in (trl.GRPOConfig, peft.LoraConfig)
        for hints in (typing.get_type_hints(owner),)
    }


def default(field: "dataclasses.Field[Any]") -> Any:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    value = None if value is dataclasses.MISSING else value
    return value.value if isinstance(value, Enum) else value


def kinds(hint: Any) -> set[str]:
    names = {bool: "bool", int: "int", float: "float", str: "str", list: "list", tuple: "list", dict: "dict"}
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(kinds(part) for part in typing.get_args(hint)))
    if origin is typing.Literal:
        return {names[type(value)] for value in typing.get_args(hint)}
    if hint is type(None):
        return {"null"}
    if isinstance(origin or hint, type) and issubclass(origin or hint, Enum):
        return {"str"}
    return {names[origin or hint]} if (origin or hint) in names else set()  # YAML cannot express the library's classes


if __name__ == "__main__":
    lines = [
        f' "{owner}": {{\n' + ",\n".join(f"  {json.dumps(n)}: {json.dumps(t)}" for n, t in settings.items()) + "\n }"
        for owner, settings in installed_settings().items()
    ]
    LIST.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
