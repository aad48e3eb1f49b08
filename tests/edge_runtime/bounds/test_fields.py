"""Every field of everything that comes from outside has a range, a pattern or a length, and keeps to it."""

from __future__ import annotations

import copy
import json
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from edge_runtime.bounds import limits
from edge_runtime.bounds.plain import plain
from edge_runtime.bounds.versioned import encode_description
from edge_runtime.errors import ManifestError, MessageError
from edge_runtime.formats.manifest import Manifest, decode_manifest
from edge_runtime.inference.description import CompactInfo
from edge_runtime.ort_training.description import OrtModels
from edge_runtime.wire.messages import AnyMessage, decode_message, encode_message
from tests.edge_runtime.wire.test_messages import EXAMPLES, name_of

ROOTS = [*typing.get_args(AnyMessage), Manifest, OrtModels, CompactInfo]

HOSTILE = [math.nan, math.inf, -math.inf, -1, -1.0, 2**63, -(2**63), 1e308, -1e308, 2**40, 0, 1e-300]

LEAVES = (
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.BytesType,
    inspect.BoolType,
    inspect.EnumType,
    inspect.LiteralType,
    inspect.NoneType,
)

Path = tuple[str | int, ...]


def unbounded(kind: inspect.Type, where: str) -> list[str]:
    """Fields without a limit, by path."""
    inside = [place for part, name in parts_of(kind, where) for place in unbounded(part, name)]
    return [where] * num_missing_ends(kind) + inside


def num_missing_ends(kind: inspect.Type) -> int:
    """Return the number of limits that a type should have and lacks."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            ends = ((kind.ge, kind.gt), (kind.le, kind.lt))
            return sum(not any(end is not None and math.isfinite(end) for end in either) for either in ends)
        case inspect.StrType():
            return int(kind.pattern is None and kind.max_length is None)
        case inspect.BytesType() | inspect.VarTupleType() | inspect.ListType() | inspect.DictType():
            return int(kind.max_length is None)
        case _:
            return 0


def parts_of(kind: inspect.Type, where: str) -> list[tuple[inspect.Type, str]]:
    """Return the parts of a type, with the place of each."""
    match kind:
        case inspect.StructType():
            return [(field.type, f"{where}.{field.name}") for field in kind.fields]
        case inspect.VarTupleType() | inspect.ListType():
            return [(kind.item_type, f"{where}[]")]
        case inspect.DictType():
            return [(kind.key_type, f"{where}{{}}"), (kind.value_type, f"{where}{{}}")]
        case inspect.UnionType():
            return [(part, where) for part in kind.types]
        case inspect.Metadata():
            return [(kind.type, where)]
        case _:
            assert isinstance(kind, LEAVES), f"{where}: {kind} is not known to this test"
            return []


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.__name__)
def test_every_field_has_limits(root: type[msgspec.Struct]) -> None:
    assert unbounded(inspect.type_info(root), root.__name__) == []


def test_a_field_without_limits_is_found() -> None:
    class Loose(msgspec.Struct):
        number: int
        half: typing.Annotated[float, msgspec.Meta(ge=0)]
        text: str
        many: tuple[bool, ...]

    assert len(unbounded(inspect.type_info(Loose), "")) == 5  # both ends of ``number``


# ---- what is sent ----------------------------------------------------------------------------------------------------


def leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Paths and values of everything that is not a container."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, (*path, name))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from leaves(item, (*path, place))
    else:
        yield path, value


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def changed(fields: Any, path: Path, value: object) -> Any:
    """A copy of ``fields`` with another value at ``path``."""
    out = copy.deepcopy(fields)
    at = out
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    return out


def at(struct: Any, path: Path) -> Any:
    """The value at ``path`` of a decoded struct."""
    for part in path:
        struct = struct[part] if isinstance(part, int) or isinstance(struct, dict) else getattr(struct, part)
    return struct


def check_refused_or_small(decode: Callable[[], object], path: Path) -> None:
    try:
        decoded = decode()
    except (MessageError, ManifestError) as error:
        assert str(error).isprintable()  # noqa: PT017 - the other answer is as good
        return
    taken = at(decoded, path)
    assert math.isfinite(taken)
    assert -limits.MAX_FLOAT32 <= taken <= limits.MAX_FLOAT32
    assert not isinstance(taken, int) or abs(taken) <= limits.MAX_BYTES or path[-1] == "seed"


@pytest.mark.parametrize("message", EXAMPLES, ids=name_of)
def test_hostile_numbers_in_messages(message: AnyMessage) -> None:
    fields = msgspec.msgpack.decode(encode_message(message))
    for path, before in leaves(fields):
        for value in HOSTILE if is_number(before) else ():
            data = msgspec.msgpack.encode(changed(fields, path, value))
            check_refused_or_small(lambda data=data: decode_message(data), path)  # type: ignore[misc]


@pytest.mark.parametrize("message", EXAMPLES, ids=name_of)
def test_numbers_that_are_none_are_always_refused(message: AnyMessage) -> None:
    fields = msgspec.msgpack.decode(encode_message(message))
    for path, before in leaves(fields):
        for value in (math.nan, math.inf, -math.inf, 1e308, -1e308) if is_number(before) else ():
            with pytest.raises(MessageError):
                decode_message(msgspec.msgpack.encode(changed(fields, path, value)))


def test_hostile_numbers_in_manifests(manifest: Manifest) -> None:
    fields = json.loads(encode_description(manifest))
    numbers = [path for path, value in leaves(fields) if is_number(value) and path != ("format_version",)]
    seen = set()
    for path in numbers:
        pattern = tuple(part for part in path if isinstance(part, str))
        if pattern in seen:  # one tensor is as good as another
            continue
        seen.add(pattern)
        for value in (-1, 2**40, 2**62, 2**63, 2**70, 1e308):
            data = json.dumps(changed(fields, path, value)).encode()
            check_refused_or_small(lambda data=data: decode_manifest(data), path)  # type: ignore[misc]
    assert len(seen) >= 12


BAD_NAMES = ["", "a\0b", "a" * 5_000, "a b", "../a", "a/b", "-a", "a\n", "a\x1b[2J", "a\u202eb", "é"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
@pytest.mark.parametrize("field", ["run_id", "device_id", "session_id"])
def test_names_keep_to_their_pattern(field: str, name: str) -> None:
    tried = 0
    for message in EXAMPLES:
        fields = msgspec.msgpack.decode(encode_message(message))
        for inside in (fields, fields.get("key", {})):
            if field in inside:
                tried += 1
                right, inside[field] = inside[field], name
                with pytest.raises(MessageError):
                    decode_message(msgspec.msgpack.encode(fields))
                inside[field] = right
    assert tried >= 4


# ---- text ------------------------------------------------------------------------------------------------------------

HOSTILE_TEXT = "\x1b[2J\x1b[31mred\x1b[0m\n2026-01-01 INFO forged\r\x07\x9b \u202eright to left\u2066 \x00\u2028 [red]é"


def texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from texts(name)
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


@pytest.mark.parametrize("message", EXAMPLES, ids=name_of)
def test_no_text_of_a_message_can_steer_a_terminal(message: AnyMessage) -> None:
    """Each text is refused, or comes out in characters that can be shown."""
    fields = msgspec.msgpack.decode(encode_message(message))
    for path, before in leaves(fields):
        if not isinstance(before, str) or path[-1] == "kind":
            continue
        try:
            decoded = decode_message(msgspec.msgpack.encode(changed(fields, path, HOSTILE_TEXT)))
        except MessageError as error:
            assert str(error).isprintable()  # noqa: PT017 - the other answer is as good
            continue
        assert at(decoded, path) == plain(HOSTILE_TEXT)
    for text in texts(msgspec.to_builtins(decode_message(encode_message(message)))):
        assert text.isprintable()


def test_names_and_values_of_versions_are_escaped_and_cut(manifest: Manifest) -> None:
    fields = json.loads(encode_description(manifest))
    fields["producer"] = {"fed\x1bspine": "1\n" * 100}
    fields["model_name"] = "\u202e" * limits.MAX_SHORT_TEXT
    decoded = decode_manifest(json.dumps(fields).encode())
    assert decoded.producer == {"fed\\x1bspine": ("1\\n" * 100)[: limits.MAX_SHORT_TEXT]}
    assert decoded.model_name == ("\\u202e" * limits.MAX_SHORT_TEXT)[: limits.MAX_SHORT_TEXT]


@given(st.text(alphabet=st.characters(), max_size=50))
def test_plain_text_is_printable_and_stays_as_it_is(text: str) -> None:
    once = plain(text)
    assert once.isprintable()
    assert plain(once) == once
    once.encode("utf-8")


def test_half_of_a_surrogate_pair_is_escaped() -> None:
    assert plain("a\ud800b") == "a\\ud800b"
    with pytest.raises(MessageError):
        decode_message(b"\x81\xa6detail\xa3\xed\xa0\x80")
