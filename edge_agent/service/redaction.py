"""Masks what looks like a secret in a log line, by the name of the value or by what it looks like."""

import re
from typing import Any

from structlog.typing import EventDict, WrappedLogger

MASK = "***"

_SECRET_NAME = re.compile(
    r"(^|[_.-])(token|password|passwd|passphrase|secret|authorization|cookie|signature)s?$|(private|api|secret)[_-]?key$",
    re.IGNORECASE,
)
_PATTERNS = [
    # To the end of the text where the block is cut off.
    (re.compile(r"-----BEGIN [^-]{1,64}-----.*?(?:-----END [^-]{1,64}-----|\Z)", re.DOTALL), MASK),
    (re.compile(r"\b(Bearer|Basic) +[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\bya29\.[\w.-]+|\bAIza[\w-]{30,}"), MASK),  # access tokens and API keys of Google
    (re.compile(r"(://[^/\s:@]*):[^/\s@]+@"), rf"\1:{MASK}@"),
    # In URLs and in JSON, but not in prose ("token: expired").
    (
        re.compile(
            r"((?:token|password|passwd|secret|signature|(?:private|api)_?key)(?:=|[\"']\s*:\s*[\"']))[^\s\"'&,]+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
]


def redact(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """A structlog processor. Values that are neither numbers nor collections become text."""
    return {name: _clean(name, value) for name, value in line.items()}


def redact_text(text: str) -> str:
    """The text without secrets that can be told by what they look like."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _clean(name: str, value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case _ if _SECRET_NAME.search(name):
            return MASK
        case dict():
            return {key: _clean(str(key), item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(name, item) for item in value]
        case bytes() | bytearray():
            return redact_text(value.decode(errors="backslashreplace"))
        case _:
            return redact_text(str(value))
