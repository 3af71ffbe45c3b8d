"""A configuration in a YAML file.

    fxquant: 1                  the version of the format
    preset: w4a8                where to start from; QuantConfig() where it is left out
    config:                     the fields of QuantConfig
      calibrator: {kind: Percentile, percent: 99.9}
      overrides:
        - {path: layer1.*, weight: 6}
"""

from __future__ import annotations

import os

from fxquant.config import QuantConfig
from fxquant.errors import ConfigError
from fxquant.presets import preset
from fxquant.records import plain, read_file, read_record, versioned, write_file


def load_config(path: str | os.PathLike[str]) -> QuantConfig:
    """The configuration in the YAML file at `path`.

    Raises ConfigError, with the file's name and the line: it is no YAML, of another version, holds
    an unknown key (names those that are near) or a value that cannot be.
    """
    parts = versioned(read_file(path), "preset", "config")
    base = QuantConfig()
    if "preset" in parts:
        name = parts["preset"].scalar()
        try:
            base = preset(name).config
        except ConfigError as error:
            raise parts["preset"].error(str(error)) from error
    return read_record(parts["config"], QuantConfig, base) if "config" in parts else base


def save_config(config: QuantConfig, path: str | os.PathLike[str]) -> None:
    """Write every field of `config` to `path`, as YAML, so that later defaults do not change it;
    what is None is left out. A file that stands there is replaced, whole or not at all.
    """
    if not isinstance(config, QuantConfig):
        raise ConfigError(f"save_config takes a QuantConfig, got {config!r}")
    write_file(path, config=plain(config))
