"""Asking a server that runs, by the standard library alone: what ``ml-opt why`` needs of HTTP."""

from __future__ import annotations

import http.client
import json
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from optimizer.errors import BadInput, MissingPiece

__all__ = ["fetch"]

_LARGEST = 8 << 20


def fetch(url: str, path: str, key: str = "", seconds: float = 10.0) -> tuple[int, dict[str, Any], Message]:
    """The status, the JSON object and the headers (found in any case) that a server answers a GET with.

    No redirect is followed, so that the key goes nowhere else, and no proxy of the environment is asked.

    Args:
        url: of the server: ``http://127.0.0.1:8000``.
        path: behind it, quoted.
        key: sent as ``Authorization: Bearer``; nothing is sent where it is empty.
        seconds: that it may take.

    Raises:
        BadInput: this is no URL of a server, or what answers there is no server of ml-opt.
        MissingPiece: nobody answers there.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("http", "https"):
        raise BadInput(f"--url {url!r} is no address of a server", "write http://127.0.0.1:8000")
    if not key.isascii() or not key.isprintable():
        raise BadInput("--key holds what no key has", "ml-opt keys create makes one")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=seconds)
    try:
        connection.request(
            "GET", parts.path.rstrip("/") + path, headers={"Authorization": f"Bearer {key}"} if key else {}
        )
        response = connection.getresponse()
        body = response.read(_LARGEST)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MissingPiece(
            f"no server answers at {url}: {why}", "start one with ml-opt serve REF, or name another: --url URL"
        ) from None
    finally:
        connection.close()
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise BadInput(f"what answers at {url} is no server of ml-opt", "name the server: --url http://127.0.0.1:8000")
    return response.status, document, response.headers
