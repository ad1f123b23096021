"""Secrets in text: passwords, keys and signatures in URIs and in the messages of storage clients.

A run keeps its configuration, and process lists show every command. So a secret in a URI is refused there, and what is
printed, logged or recorded of messages is without. Secrets are recognised by their form; no check can recognise all.
"""

from __future__ import annotations

import re
from typing import Final

# The name of a parameter that is a secret, with `=`: of signed URLs, and of Azure's connection strings.
_PARAMETERS: Final = r"(?:[?&;]|\b)(?:sig|access_token|[\w-]*Signature|X-Amz-Security-Token|AccountKey)="
_PASSWORD: Final = r"(?<=://)[^/\s@:]*:[^/\s@]*@"
_TOKENS: Final = r"\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{30,}"
_SECRET: Final = re.compile(f"{_PASSWORD}|{_PARAMETERS}|{_TOKENS}|-----BEGIN", re.IGNORECASE)
_TEXT: Final = re.compile(rf"({_PARAMETERS})[^&;\s'\")]+|{_PASSWORD}|{_TOKENS}", re.IGNORECASE)


def has_secret(text: str) -> bool:
    """Whether a URI or an argument holds a password, a key, a token or a signature."""
    return _SECRET.search(text) is not None


def without_secrets(text: str) -> str:
    """The text with `...` for each secret: `sig=...`; a user name and password of a URI are left out."""
    return _TEXT.sub(_hidden, text)


def _hidden(match: re.Match[str]) -> str:
    if match[1]:
        return f"{match[1]}..."
    return "" if match[0].endswith("@") else "..."
