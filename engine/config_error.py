"""What is wrong with a configuration."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field and the way out."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
