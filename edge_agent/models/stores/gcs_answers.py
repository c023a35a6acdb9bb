"""Looks at each answer of Google Cloud Storage before its body is read.

The client library reads answers that should be small as a whole and unpacks them, and takes whatever comes for the
range of an object that it asked for. In between there may be proxies and captive portals. So:

- No redirect is followed: the API has none, a portal's login page has.
- What is no object may have `SMALL` bytes, unpacked: a decompression bomb ends there.
- An object is never unpacked, and one that comes packed is refused.
- A range is the one that was asked for. A server that has no ranges begins anew.
"""

import re
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from edge_agent.device.skew import measure_skew
from edge_agent.models.stores.base import PORTAL, OnSkew, StoreUnavailable
from edge_agent.models.stores.download import Received

SMALL = 1 << 18
"""Bytes; metadata take some ten thousand at most (8 KiB of them are the uploader's)."""
_STEP = 1 << 10
"""Bytes that are unpacked at a time: deflate makes 1032 times as many of them at most."""
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Answers:
    """The hook of a session of `requests`. `url` names the object; `on_skew` hears of the server's clock.

    `receiver` is what an object is written to while it is being fetched, and `size` how many bytes it has.
    """

    def __init__(self, url: str, on_skew: OnSkew | None) -> None:
        self._url = url
        self._on_skew = on_skew
        self.receiver: Received | None = None
        self.size = 0

    def watch(self, session: Any) -> None:
        """See all answers that a session gets from now on."""
        session.max_redirects = 0
        session.hooks["response"].append(self._look)

    def _look(self, response: Any, *, stream: bool = False, **_: object) -> None:
        self._compare_clocks(response)
        if (
            self.receiver is None
            or not stream
            or response.status_code not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
        ):
            response.raw = _Small(response.raw, self._url)
            return
        try:
            self._check_object(self.receiver, response)
        except BaseException:
            response.close()
            raise

    def _compare_clocks(self, response: Any) -> None:
        skew = measure_skew(response.headers, response.elapsed.total_seconds(), time.time())
        if skew is not None and self._on_skew is not None:
            self._on_skew(urlsplit(response.url).hostname or "", skew)

    def _check_object(self, receiver: Received, response: Any) -> None:
        packed = response.headers.get("Content-Encoding", "identity")
        if packed.lower() != "identity":
            raise StoreUnavailable(f"{self._url}: it comes packed ({packed[:20]}) though it is not: a proxy changes it")
        begin, length = receiver.size, response.headers.get("Content-Length", "")
        wanted = self.size - begin
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != begin or found[2] not in {str(self.size), "*"}:
                raise receiver.mismatch(f"another range than was asked for, from byte {begin} on")
        elif begin:
            if _is_page(response):
                raise StoreUnavailable(f"{self._url}: {PORTAL}")
            receiver.restart()
            wanted = self.size
        if length.isdecimal() and int(length) > wanted:
            raise self._wrong_length(receiver, response, "more bytes than announced")
        if length.isdecimal() and int(length) < wanted and response.status_code == HTTPStatus.OK:
            raise self._wrong_length(receiver, response, f"{length} bytes instead of {wanted}")

    def _wrong_length(self, receiver: Received, response: Any, what: str) -> Exception:
        return StoreUnavailable(f"{self._url}: {PORTAL}") if _is_page(response) else receiver.mismatch(what)


class _Small:
    """The body of an answer that should be small, in the place of `raw` of `requests`."""

    def __init__(self, raw: Any, url: str) -> None:
        self._raw = raw
        self._url = url

    def stream(self, _: int, decode_content: bool | None = None) -> Iterator[bytes]:  # noqa: FBT001  as urllib3 has it
        """Give the body in pieces. Raises `StoreUnavailable` where they become too many."""
        count = 0
        for data in self._raw.stream(_STEP, decode_content=decode_content):
            count += len(data)
            if count > SMALL:
                self._raw.close()
                raise StoreUnavailable(f"{self._url}: the answer has more than {SMALL >> 10} KiB, and is not read")
            yield data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _is_page(response: Any) -> bool:
    return bool(response.headers.get("Content-Type", "").lower().startswith("text/html"))
