"""Types of fields from outside: every number has a finite range, every name a pattern, every text a maximum length.

Every range has two ends, so msgspec refuses NaN and both infinities.
``tests/edge_runtime/bounds/test_fields.py`` checks every field of every message and description.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from edge_runtime.bounds import limits

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Fleet names and device ids: no slash, no wildcard, at most 64 characters."""
NAME_RULE: Final = "1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
"""The rule of :data:`NAME` in words."""

FOR_PEOPLE: Final = "for_people"
"""Marks text that is shown in a terminal or a log: it is escaped when it is decoded, see
:mod:`edge_runtime.bounds.plain`."""

# ---- numbers ---------------------------------------------------------------------------------------------------------

Count = Annotated[int, msgspec.Meta(ge=0, le=limits.MOST)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=limits.MOST)]
Integer = Annotated[int, msgspec.Meta(ge=-limits.MOST, le=limits.MOST)]
"""A number that may be negative; its exact range is checked where it is used."""
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
NumBytes = Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_BYTES)]
"""Bytes of memory or traffic."""
FileBytes = Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_FILE_BYTES)]
Layer = Annotated[int, msgspec.Meta(ge=0, lt=limits.MAX_LAYERS)]
NumUnits = Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_UNITS)]
Version = Annotated[int, msgspec.Meta(ge=0, le=limits.MOST)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=limits.LONGEST_S)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
"""A rate, 1e9 operations or bytes a second."""
Loss = Annotated[float, msgspec.Meta(ge=-limits.MAX_FLOAT32, le=limits.MAX_FLOAT32)]
"""A loss of any float32 value: a message with a large loss is valid."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
AxisNumber = Annotated[float, msgspec.Meta(ge=0, le=limits.MOST)]
"""Value of an arm on some axis; the axis declares the exact range."""
PruningRatio = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Factor = Annotated[float, msgspec.Meta(gt=0, le=limits.MAX_FACTOR)]
Decay = Annotated[float, msgspec.Meta(ge=0, le=limits.MAX_FACTOR)]
Deviation = Annotated[float, msgspec.Meta(ge=0, le=100)]
"""Standard deviation of noise, relative to the values that it is added to."""
Beta = Annotated[float, msgspec.Meta(ge=0, lt=1)]

# ---- names -----------------------------------------------------------------------------------------------------------

DIGEST: Final = r"[0-9a-f]{64}"
"""A SHA-256 in hexadecimal digits, as a regular expression."""
Digest = Annotated[str, msgspec.Meta(pattern=rf"^{DIGEST}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=rf"^{NAME.pattern}\Z")]
"""Name of a run, device, session, model family, or file in a folder."""
GroupName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_]{1,64}\Z")]
TensorName = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,255}\Z")]
"""Name of a parameter or module, or the prefix of a block's names: printable ASCII without spaces."""
Url = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,2000}\Z")]

# ---- text ------------------------------------------------------------------------------------------------------------

Text = Annotated[str, msgspec.Meta(max_length=limits.MAX_TEXT, extra={FOR_PEOPLE: limits.MAX_TEXT})]
Short = Annotated[str, msgspec.Meta(max_length=limits.MAX_SHORT_TEXT, extra={FOR_PEOPLE: limits.MAX_SHORT_TEXT})]
Versions = Annotated[dict[Short, Short], msgspec.Meta(max_length=64)]
"""Versions of packages, by name."""
Label = Annotated[str, msgspec.Meta(max_length=limits.MAX_TEXT)]
"""Class of an example: it is compared character by character, so it is escaped only when it is shown."""

# ---- settings of the methods of installed packages ------------------------------------------------------------------

SettingText = Annotated[str, msgspec.Meta(pattern=rf"^[ -~]{{0,{limits.MAX_SHORT_TEXT}}}\Z")]
"""Printable ASCII, which needs no escapes."""
Setting = (
    bool
    | Annotated[int, msgspec.Meta(ge=-limits.MAX_SETTING, le=limits.MAX_SETTING)]
    | Annotated[float, msgspec.Meta(ge=-limits.MAX_SETTING, le=limits.MAX_SETTING)]
    | SettingText
)
"""A setting of a package's method; the package checks its exact type and range."""
Settings = Annotated[dict[Name, Setting], msgspec.Meta(max_length=limits.MAX_SETTINGS)]
"""Settings of a package's method, by name."""
