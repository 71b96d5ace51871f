"""Text without secrets, fit to be shown to strangers: passwords, tokens and keys, and the user's name and home folder.

`config.secrets.without_secrets` masks one URL, such as a storage's, before it is recorded. Here are texts of any kind,
such as logs, in which a secret may stand anywhere. Rather too much is masked than too little.
"""

import getpass
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from cdn_tune.config.secrets import without_secrets

MASK = "***"
# Names of what is secret. Not `tokens`, `tokenizer` and `keys`, which are words of this field.
_SECRET_NAME = re.compile(
    r"(?i)(^aws_|pass(word|wd|phrase|code)|secret|credential|token($|[^si])|authorization|cookie"
    r"|(api|access|private|account|shared)[_-]?key|(^|[_.-])(pass|pwd|auth|key|sas|sig|signature)$)"
)
# Of a cloud's variables, those that tell where and not who.
_HARMLESS = re.compile(r"(?i)AWS_((DEFAULT_)?(REGION|PROFILE|OUTPUT)|EC2_METADATA_DISABLED|ENDPOINT_URL(_S3)?)$")
_FOLDERS = ("PWD", "OLDPWD")  # variables of the shell
_WORDS = frozenset(["true", "false", "none", "null", "auto"])  # values that are no secrets whatever their names
_SHORTEST = 4  # characters of a value of the environment that is looked for everywhere
_LONGEST = 4000  # characters of a line; longer ones are no text for people
_COMMON = frozenset(["root", "user", "users", "home", "ray", "data", "test", "train", "admin", "ubuntu"])

# What a terminal obeys, as it is and as it is written down, and what is not seen: it may stand within a secret's name.
_UNSEEN = re.compile(
    r"(?:\x1b|\\(?:e|x1b|u001b|033))\[[0-?]*[ -/]*[@-~]"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
)
_URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>`]+")
# From a user's name to the last @ of the line, for a password may hold anything; a port is none.
_PASSWORD = re.compile(r"(:/{1,2}[^\s/:@?#]*):(?!\d{1,5}(?:[/\s\"',;)\]}]|$))[^\n]{0,300}@")
_TOKEN = re.compile(r"(://)[^\s/:@'\"]+@")  # in the place of a user without a password
_NAME = re.compile(
    r"(?<![\w.-])(?P<name>(?:--)?[A-Za-z_][\w.-]*)(?:\\*[\"'])?"
    r"(?P<sign>[ \t]*[=:][ \t]*|(?<=[\"'])[ \t]*,[ \t]*|[ \t]+)"
)
_QUOTED = r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'"
_WORD, _REST = re.compile(rf"{_QUOTED}|[\"'][^\n]*|\S+"), re.compile(rf"{_QUOTED}|\S[^\n]*")
# A line of YAML that begins with a key, the value of which goes on in the lines that are indented more; a line of any
# text that ends as one does whose value begins in the next line.
_KEY = re.compile(r"(?P<lead>[ \t]*(?:-[ \t]+)*)[\"']?(?P<name>[A-Za-z_][\w.-]*)[\"']?[ \t]*:(?:\s|$)")
_OPENS = re.compile(r":[ \t]+[|>][-+\d]{0,2}[ \t]*(?:#.*)?\r?$")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
# What shows by its form: keys of clouds and of hosts of code and of models, signed tokens.
_FORMS = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bhf_[A-Za-z0-9]{16,}"
    r"|\bsk-[\w-]{16,}|\bxox[abposr]-[\w-]{10,}|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?"
)
_KEY_BEGINS, _KEY_ENDS = r"-----BEGIN [A-Z ]*PRIVATE KEY-----", r"-----END [A-Z ]*PRIVATE KEY-----"
_WHOLE_KEY = re.compile(rf"{_KEY_BEGINS}[\s\S]*?(?:{_KEY_ENDS}|\Z)")
_END_OF_KEY = re.compile(rf"\A[\s\S]*{_KEY_ENDS}")  # of one whose beginning was cut off
_HOMES = re.compile(r"((?:/home|/Users|[A-Za-z]:\\Users)[/\\])[^/\\\s\"':,;)\]]+")


class Masking:
    """Masks the secrets of an environment and of its user, and whatever has the name or the form of a secret.

    Args:
        environment: Variables; the values of those with a secret's name are looked for everywhere.
        home: The user's home folder, which becomes ``~``.
        user: The user's name, which becomes ``USER`` unless it is a common word.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, home: Path | None = None, user: str | None = None
    ) -> None:
        home = home or Path.home()
        if user is None:
            with suppress(Exception):  # in a container a user may have no name
                user = getpass.getuser()
        self._values = _secret_values(os.environ if environment is None else environment)
        homes = sorted({str(home), str(home.resolve())} - {"/", "."}, key=len, reverse=True)
        self._homes = [re.compile(rf"(?<![\w.]){re.escape(each)}(?![\w.-])") for each in homes]
        named = user is not None and len(user) > 2 and user not in _COMMON
        self._user = re.compile(rf"(?<![\w-]){re.escape(user)}(?![\w-])") if named and user is not None else None

    def text(self, text: str) -> str:
        """Returns a text without secrets, control characters, and lines of more than 4,000 characters."""
        text = _UNSEEN.sub("", text)
        text = _END_OF_KEY.sub(MASK, _WHOLE_KEY.sub(MASK, text))
        text = "\n".join(map(_line, _masked_blocks(text.split("\n"))))
        for value in self._values:
            text = text.replace(value, MASK)
        text = masked_urls(text)
        text = _masked_pairs(text)
        text = _FORMS.sub(MASK, _BEARER.sub(rf"\1 {MASK}", text))
        for home in self._homes:
            text = home.sub("~", text)
        text = _HOMES.sub(r"\1USER", text)
        return text if self._user is None else self._user.sub("USER", text)

    def plain(self, value: Any, name: str = "") -> Any:
        """Returns a plain value, of JSON or YAML, without secrets; `name` is the key under which it stands."""
        if isinstance(value, dict):
            return {
                self.text(str(key)): self.plain(item, name if is_secret(name) else str(key))
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):  # such as a command, in which a value may follow its option
            before = [each if isinstance(each, str) and each.startswith("--") else name for each in (name, *value)]
            return [self.plain(item, option) for item, option in zip(value, before, strict=False)]
        if isinstance(value, str):
            return MASK if value and is_secret(name) else self.text(value)
        return MASK if is_secret(name) and value not in (None, True, False) else value


def masked_urls(text: str) -> str:
    """Returns a text in which the passwords and tokens of URLs are masked."""
    text = _TOKEN.sub(rf"\1{MASK}@", _PASSWORD.sub(rf"\1:{MASK}@", text))
    return _URL.sub(lambda found: without_secrets(found[0]), text)


def is_secret(name: str) -> bool:
    """Returns whether what has a name is a secret, by the name."""
    return _SECRET_NAME.search(name.lstrip("-")) is not None and not _HARMLESS.match(name)


def _line(line: str) -> str:
    return line if len(line) <= _LONGEST else f"(a line of {len(line):,} characters)"


def _masked_blocks(lines: Iterable[str]) -> Iterator[str]:
    """Yields lines; masked are those in which a secret's value in YAML goes on, be it a text, a list or a mapping."""
    secret = None  # indentation of the key
    for line in lines:
        rest = line.lstrip(" \t")
        indent = len(line) - len(rest)
        if secret is not None and (not rest.strip() or indent > secret or (indent == secret and rest.startswith("- "))):
            yield line[:indent] + MASK if rest.strip() else ""
            continue
        yield line
        secret = _secret_indent(line[:_LONGEST])


def _secret_indent(line: str) -> int | None:
    """Returns the indentation of a secret's name whose value may go on in the next lines; None if there is none."""
    key = _KEY.match(line)
    if key is not None and is_secret(key["name"]):
        return len(key["lead"])
    if _OPENS.search(line) and any(is_secret(found["name"]) for found in _NAME.finditer(line)):  # after a log's prefix
        return len(line) - len(line.lstrip(" \t"))
    return None


def _masked_pairs(text: str) -> str:
    """Masks NAME=VALUE; NAME: VALUE to the end of the line, unless it is in quotes; --NAME VALUE."""
    parts, at = [], 0
    for found in _NAME.finditer(text):
        name, sign = found["name"], found["sign"].strip()
        if found.start() < at or not is_secret(name) or not (sign or name.startswith("--")):
            continue
        value = (_REST if sign == ":" else _WORD).match(text, found.end())
        if value is not None:
            parts += [text[at : found.end()], MASK]
            at = value.end()
    return "".join([*parts, text[at:]])


def _secret_values(environment: Mapping[str, str]) -> list[str]:
    """Returns values to be masked wherever they stand, the longest first, as they are and as URLs hold them."""
    values = {value for name, value in environment.items() if is_secret(name) and name not in _FOLDERS}
    for value in environment.values():
        password = re.match(r"[^:/?#]+://[^:/?#@]*:(.*)@", value)
        if password is not None:  # whatever the variable's name
            values |= {password[1], unquote(password[1])}
    values |= {quote(value, safe="") for value in values}
    return sorted(
        (each for each in values if len(each) >= _SHORTEST and each.lower() not in _WORDS), key=len, reverse=True
    )
