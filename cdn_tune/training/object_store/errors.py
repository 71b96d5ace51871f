"""What an object store says when something is wrong, as one cause and one remedy."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a store.

    Attributes:
        cause: In a few words.
        remedy: What the user can do.
        passing: Whether it may go away by itself.
    """

    cause: str
    remedy: str
    passing: bool = False


_AWAY = Trouble(
    "the store does not answer",
    "check the network, and the endpoint (AWS_ENDPOINT_URL, or ?endpoint_override=HOST:PORT in the URL)",
    passing=True,
)
NO_BUCKET = Trouble("there is no such bucket", "create it, or correct --run")
_NO_KEY = Trouble(
    "the store knows no such credentials",
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (gs: GOOGLE_APPLICATION_CREDENTIALS, abfs: AZURE_CLIENT_ID and "
    "the like), or give this machine a role",
)
_DENIED = Trouble(
    "access is denied", "let this user or role list, read, write and delete objects there, or set other credentials"
)
_REGION = Trouble("the bucket is in another region", "name its region with AWS_REGION, or ?region=REGION in the URL")

# In the words of the AWS SDK, of Google's and of Azure's; the first that fits is told.
_KINDS = (
    (r"NO_?SUCH_?BUCKET|bucket does not exist|container ?not ?found|ContainerBeingDeleted", NO_BUCKET),
    (
        r"INVALID_?ACCESS_?KEY|INVALID_?CLIENT_?TOKEN|SIGNATURE_?DOES_?NOT_?MATCH|EXPIRED_?TOKEN|INVALID_?TOKEN|"
        r"UNAUTHENTICATED|Authentication ?Failed|UNRECOGNIZED_?CLIENT|MISSING_?AUTH|HTTP status 401|"
        r"could not.*credential",
        _NO_KEY,
    ),
    (r"ACCESS_?DENIED|PERMISSION_?DENIED|Authorization ?(Failure|Permission)|HTTP status 403|Forbidden", _DENIED),
    (r"HTTP status 301|PERMANENT_?REDIRECT|AuthorizationHeaderMalformed|region.*is wrong", _REGION),
    (
        r"NETWORK_CONNECTION|curlCode|could(n't| not) (connect|resolve)|time(d )?[- ]?out|REQUEST_TIMEOUT|UNAVAILABLE|"
        r"SLOW_?DOWN|THROTTL|INTERNAL_(FAILURE|ERROR)|HTTP status (429|5\d\d)|DEADLINE|"
        r"connection (reset|refused|closed)|Transport|retry policy exhausted",
        _AWAY,
    ),
)
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AZURE_CLIENT_SECRET")


def trouble_of(error: BaseException) -> Trouble:
    """Returns what an error of pyarrow's file systems means."""
    text = " ".join(str(error).split())
    for pattern, trouble in _KINDS:
        if re.search(pattern, text, re.IGNORECASE):
            return trouble
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return Trouble(text[:200] or type(error).__name__, "mend that, or choose another --run")
