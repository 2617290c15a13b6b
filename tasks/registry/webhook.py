"""A signed message to a team's own endpoint whenever the champion moves.

NIGHTOWL_WEBHOOK_URL says where, NIGHTOWL_WEBHOOK_SECRET signs: the header `X-Nightowl-Signature` is `sha256=` and the
hex HMAC-SHA256 of the timestamp header, a dot and the body. Whoever receives it recomputes that, and refuses an old
timestamp. A move is never undone because nobody could be told: trouble is logged, and the journal has every move.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

log = logging.getLogger(__name__)
URL, SECRET = "NIGHTOWL_WEBHOOK_URL", "NIGHTOWL_WEBHOOK_SECRET"
_TRIES = 3
_TIMEOUT = 5.0  # seconds a try
_WAIT = 0.5  # seconds before the second try, doubled before each further one


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What the header of a message with this body says."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def post(event: str, payload: Mapping[str, object]) -> bool:
    """Send an event where the environment says so; whether it was taken."""
    url, secret = os.environ.get(URL), os.environ.get(SECRET)
    if not url:
        return False
    if not secret:
        log.warning("%s is set and %s is not: nothing is sent unsigned", URL, SECRET)
        return False
    body = json.dumps({"event": event, **payload}, ensure_ascii=False).encode()
    trouble = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_WAIT * 2 ** (attempt - 1))
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "X-Nightowl-Event": event,
            "X-Nightowl-Timestamp": timestamp,
            "X-Nightowl-Signature": signature(secret, timestamp, body),
        }
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=_TIMEOUT):
                return True
        except urllib.error.HTTPError as error:
            trouble = f"it answered {error.code}"
            if error.code < 500 and error.code != 429:
                break
        except (OSError, ValueError) as error:
            trouble = str(error)
    log.warning("%s was not told of %s: %s", URL, event, trouble)
    return False
