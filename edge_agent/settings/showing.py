"""How a value from the admin's file is shown in a message: short, printable, and never a secret."""

import json
import re
from collections.abc import Callable

MAX_LENGTH = 60
HIDDEN = "(a value that looks secret and is not shown)"

_SECRET_KEY = re.compile(r"passw|secret|token|credential|private|api_?key", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"-----BEGIN|PRIVATE KEY|\bya29\.|\bAIza|\beyJ[\w-]{8}|\bgh[pousr]_|\bsk-\w|\bxox[a-z]-|\bAKIA|GOCSPX-"
    r"|\bBearer\s|://[^/\s]*:[^/\s]*@"
)
_LONG_WORD = re.compile(r"[A-Za-z0-9+=_-]{32,}")


def show(value: object, key: str = "") -> str:
    """Return `value` as it could stand in the file, in at most 60 characters. `key` tells where it belongs."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if _SECRET_KEY.search(key) or looks_secret(text):
        return HIDDEN
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    end = '…"' if isinstance(value, str) else "…"
    return shown if len(shown) <= MAX_LENGTH else shown[: MAX_LENGTH - len(end)] + end


def looks_secret(text: str) -> bool:
    """Tell whether `text` holds a private key, a token or a password in a URL."""
    return bool(_SECRET_TEXT.search(text)) or any(_is_random(word) for word in _LONG_WORD.findall(text))


def _is_random(word: str) -> bool:
    kinds: tuple[Callable[[str], bool], ...] = (str.isdigit, str.islower, str.isupper)
    mixed = all(any(kind(char) for char in word) for kind in kinds)
    return mixed or re.fullmatch(r"(?=.*\d)[0-9a-f]+", word) is not None
