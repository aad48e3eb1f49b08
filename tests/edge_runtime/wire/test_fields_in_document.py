"""docs/wire.md describes every field of every message, with its type and default as they are in the code."""

from __future__ import annotations

import enum
import json
import re
import typing
from pathlib import Path

import msgspec
import pytest

from edge_runtime.bounds import fields
from edge_runtime.wire.messages import AnyMessage, Message

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "wire.md"
SECTION = DOCUMENT.read_text(encoding="utf-8").partition("\n## Fields\n")[2].partition("\n## ")[0]

WORDS: list[tuple[object, str]] = [
    (fields.Count, "count"),
    (fields.Positive, "positive"),
    (fields.Seed, "seed"),
    (fields.NumBytes, "bytes"),
    (fields.FileBytes, "file size"),
    (fields.Seconds, "amount"),
    (fields.Rate, "amount"),
    (fields.Loss, "loss"),
    (fields.Share, "share"),
    (fields.PruningRatio, "ratio"),
    (fields.Beta, "ratio"),
    (fields.Factor, "factor"),
    (fields.Decay, "weight"),
    (fields.Deviation, "deviation"),
    (fields.Digest, "digest"),
    (fields.Name, "name"),
    (fields.Url, "URL"),
    (fields.Text, "text"),
    (fields.Short, "short text"),
    (fields.Setting, "setting"),
    (fields.GroupName, "group name"),
    (bool, "boolean"),
]
"""Names in the document of the types that the table above its fields explains."""

Row = tuple[str, str, str]
"""Field, type and default, as they are written."""


def structs() -> dict[str, type[msgspec.Struct]]:
    """All messages and what is inside them: messages by their kind, others by their class."""
    found: dict[str, type[msgspec.Struct]] = {}

    def visit(hint: object) -> None:
        for inner in typing.get_args(hint):
            visit(inner)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            name = hint.__name__.lower() if issubclass(hint, Message) else hint.__name__
            if name not in found:
                found[name] = hint
                for one in typing.get_type_hints(hint, include_extras=True).values():
                    visit(one)

    visit(AnyMessage)
    return found


def documented() -> dict[str, list[Row]]:
    """Tables of the section on fields, by the name in their heading."""
    tables: dict[str, list[Row]] = {}
    for part in SECTION.split("\n### ")[1:]:
        heading, _, table = part.partition("\n")
        rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) \| .{3,} \|$", table, re.MULTILINE)
        tables[re.findall(r"`(\w+)`", heading)[0]] = rows
    return tables


STRUCTS = structs()


def test_every_type_is_explained() -> None:
    explained = SECTION.partition("\n### ")[0]
    assert [
        word for _, word in WORDS if not re.search(rf"^\| [^|]*\b{word}\b[^|]* \| .{{5,}} \|$", explained, re.MULTILINE)
    ] == []


def test_every_message_and_what_is_inside_has_a_table() -> None:
    assert set(documented()) == set(STRUCTS)
    assert {"register", "update", "AssignmentKey", "LoraWork", "ProbeWork", "KeptUnits"} < set(STRUCTS)


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_is_described_as_it_is(name: str) -> None:
    rows, kind = documented()[name], STRUCTS[name]
    hints = typing.get_type_hints(kind, include_extras=True)
    known = [field for field in msgspec.structs.fields(kind) if field.name != "schema_version"]
    assert [field for field, _, _ in rows] == [field.name for field in known]
    for (written, type_text, default), field in zip(rows, known, strict=True):
        assert default == ("" if field.required else f"`{json.dumps(field.default, default=bytes.decode)}`"), written
        for word in words_of(hints[field.name]):
            assert re.search(rf"(^|[\W_]){re.escape(word)}($|\W)", type_text), (written, word)


def words_of(hint: object) -> list[str]:
    """Return the name of a field's type: words for its parts, limits, `null`, names of structs, values of a choice."""
    if (word := next((word for one, word in WORDS if one == hint), None)) is not None:
        return [word]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return [*limits_of(inner[1]), *words_of(inner[0])]
    if origin is typing.Literal:
        return [f'"{value}"' for value in inner]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [f'"{member.value}"' for member in hint]
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return [hint.__name__]
    return ["null"] if hint is type(None) else [word for one in inner for word in words_of(one)]


def limits_of(meta: msgspec.Meta) -> list[str]:
    """Ends of a range that has no word of its own, and lengths."""
    least = [] if meta.ge is None else [f"{meta.ge:,}"]
    most = [f"to {meta.le:,}"] if meta.le is not None else [] if meta.lt is None else [f"below {meta.lt:,}"]
    return least + most + ([] if meta.max_length is None else [f"at most {meta.max_length:,}"])
