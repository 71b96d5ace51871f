"""Passwords and tokens in URLs: found, and left out of what is printed, logged and recorded."""

import re

PASSWORD = re.compile(r"((?:^|(?<==))[^:/?#=]+://[^:/?#@]*):(.*)@")
_VALUE = re.compile(r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token|key|sig)[^=&;]*=)[^&;#]*")
# A password may hold anything; a port is none.
_USER = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)(?:[^\s/@:'\"]*:(?!\d{1,5}(?:[\s/'\",;)\]}]|$))[^\n@]*|[^\s/@'\"]*)@")


def without_secrets(text: str) -> str:
    """Returns a URL, or ``KEY=URL``, with passwords and tokens as ``***``, fit to be printed, logged and recorded."""
    return _VALUE.sub(r"\1***", PASSWORD.sub(r"\1:***@", text)) if "://" in text else text


def without_users(text: str) -> str:
    """Returns a text in which URLs have ``***`` in place of users and passwords."""
    return _USER.sub(r"\1***@", text)
