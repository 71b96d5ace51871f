"""Secrets in what is printed, logged, recorded or shown by a cluster: passwords and tokens become ``***``."""

from __future__ import annotations

import re

_VALUE = re.compile(r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token|key)[^=&;]*=)[^&;#]*")
PASSWORD = re.compile(r"((?:^|(?<==))[^:/?#=]+://[^:/?#@]*):(.*)@")


def without_secrets(text: str) -> str:
    """Returns a URL, or ``KEY=URL``, as it may be printed, logged and written to a manifest."""
    return _VALUE.sub(r"\1***", PASSWORD.sub(r"\1:***@", text)) if "://" in text else text
