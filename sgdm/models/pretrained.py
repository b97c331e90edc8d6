"""Networks as two files that anyone can read: model.safetensors and config.json."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

import huggingface_hub
import pydantic
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sgdm.files import atomic_write, read_json, write_json
from sgdm.models.config import UNetConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class PretrainedError(ValueError):
    """A saved network is missing, damaged or of another architecture."""


class Pretrained(nn.Module):
    """A network that is built from a UNetConfig alone: its configuration and its weights are all of it."""

    config: UNetConfig

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the weights and the configuration. A save that is interrupted leaves no folder that loads."""
        folder = Path(folder)
        (folder / CONFIG).unlink(missing_ok=True)
        with atomic_write(folder / WEIGHTS) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, temporary)
        write_json(folder / CONFIG, {"architecture": type(self).__name__, **asdict(self.config)})

    @classmethod
    def from_pretrained(cls, source: Path | str, expected: UNetConfig | None = None, **arguments: Any) -> Self:
        """Build a saved network and load its weights, on the CPU and in training mode.

        `source` is a folder or the name of a repository on the Hugging Face hub ("owner/name"). `arguments`
        go to the constructor. PretrainedError where files are missing, damaged or not of this architecture,
        where the configuration differs from `expected`, and where the hub cannot be reached.
        """
        folder = _local_folder(source)
        config = read_config(folder / CONFIG, architecture=cls.__name__)
        if expected is not None and config != expected:
            raise PretrainedError(f"{source} is of another architecture: {_differences(config, expected)}")
        network = cls(config, **arguments)
        weights = _read_weights(folder / WEIGHTS)
        _check_tensors(folder / WEIGHTS, weights, network.state_dict())
        network.load_state_dict(weights)
        return network


def _local_folder(source: Path | str) -> Path:
    """The folder itself, or that of the two files fetched from the hub."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or not _is_hub_name(source):
        raise PretrainedError(f"{source} is not a folder, nor the name of a hub repository (owner/name)")
    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=[WEIGHTS, CONFIG]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise PretrainedError(
            f"there is no folder {source}, and it could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {error}). Check the name and the network, or fetch {WEIGHTS} and "
            f"{CONFIG} elsewhere and give their folder"
        ) from error


def _is_hub_name(source: str) -> bool:
    owner, slash, name = source.partition("/")
    return bool(owner and slash and name) and "/" not in name and owner not in (".", "..", "~")


def read_config(path: Path, architecture: str) -> UNetConfig:
    """The configuration of a saved network. PretrainedError where it is missing, damaged or of another architecture."""
    values = _existing(path, read_json)
    found = values.pop("architecture", None) if isinstance(values, dict) else None
    if found != architecture:
        raise PretrainedError(f"{path} describes the architecture {found!r}, not {architecture!r}")
    try:
        return pydantic.TypeAdapter(UNetConfig).validate_json(json.dumps(values))
    except pydantic.ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'configuration'}: {problem['msg']}" for problem in error.errors()
        )
        raise PretrainedError(f"{path} does not fit this version of {architecture}: {problems}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return _existing(path, load_file)
    except SafetensorError as error:
        raise PretrainedError(f"{path} is damaged ({error}); save or fetch it again") from error


def _existing(path: Path, read: Any) -> Any:
    if not path.is_file():
        raise PretrainedError(f"{path} is missing; a saved network is {WEIGHTS} and {CONFIG} in one folder")
    return read(path)


def _differences(found: UNetConfig, expected: UNetConfig) -> str:
    return ", ".join(
        f"{field.name} is {getattr(found, field.name)} where {getattr(expected, field.name)} is expected"
        for field in fields(UNetConfig)
        if getattr(found, field.name) != getattr(expected, field.name)
    )


def _check_tensors(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in found.keys() & expected.keys()
        if found[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise PretrainedError(
            f"{path} does not hold the tensors that its {CONFIG} describes ({len(problems)} differ): {shown}"
        )
