"""The JSON schema of a bundle's network.json."""

from __future__ import annotations

from typing import Any

VERSION = 1
"""Of the format; another one is another format."""

_CODES = {
    "type": "object",
    "description": "a code q stands for (q - zero_point) * scale",
    "properties": {
        "scheme": {"type": "string"},
        "scale": {"type": "number", "exclusiveMinimum": 0},
        "zero_point": {"type": "integer"},
    },
    "required": ["scheme", "scale", "zero_point"],
}
_GIVES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "type": {"type": "string"},
        },
        "required": ["shape", "type"],
    },
}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "An integer network: nodes in the order in which they run",
    "type": "object",
    "required": ["format", "network", "nodes", "outputs"],
    "properties": {
        "format": {"const": VERSION},
        "fxquant": {"type": "string"},
        "network": {"type": "string"},
        "outputs": {"type": "array", "items": {"type": "string"}},
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "module", "reads", "gives", "kind"],
                "properties": {
                    "name": {"type": "string"},
                    "module": {"type": "string"},
                    "reads": {"type": "array", "items": {"type": "string"}},
                    "gives": _GIVES,
                    "kind": {
                        "enum": ["input", "constant", "quantize", "dequantize", "operator", "move"]
                    },
                    "operator": {"type": "string"},
                    "text": {"type": "string"},
                    "rounding": {"type": ["string", "null"]},
                    "codes": _CODES,
                    "settings": {"type": "object"},
                    "numbers": {
                        "type": "object",
                        "description": "names of tensors in numbers.safetensors",
                        "additionalProperties": {"type": "string"},
                    },
                    "places": {"type": "array", "items": {"type": "string"}},
                    "counts": {"type": "object"},
                },
            },
        },
    },
}
