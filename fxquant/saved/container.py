"""One safetensors file around a text and tensors, with a version and a digest.

    metadata   fxquant: "1"     the version of the format, which only grows
               network: "{…}"   the text
               sha256: "…"      of the text and of every tensor's name, type, shape and bytes

The digest finds damage. It is no signature: who changes a file on purpose can make a new one,
and what is read is checked regardless.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fxquant.errors import FileError
from fxquant.extras import needs_extra
from fxquant.files import need_path, write_whole

VERSION = 1


def write_file(path: str | os.PathLike[str], text: str, tensors: Mapping[str, Tensor]) -> None:
    """Write it, whole or not at all. The tensors are contiguous, on the CPU, and none shares
    memory with another.
    """
    with needs_extra("save"):
        import safetensors.torch
    metadata = {"fxquant": str(VERSION), "network": text, "sha256": _digest(text, tensors)}
    write_whole(path, safetensors.torch.save(dict(tensors), metadata))


def read_file(path: str | os.PathLike[str]) -> tuple[str, dict[str, Tensor]]:
    """The text and the tensors. Raises FileError where they are not what was written."""
    with needs_extra("save"):
        import safetensors
    need_path(path)
    Path(path).open("rb").close()  # whether it can be read at all is the system's to say
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_version(path, metadata.get("fxquant"))
            # copies: the file may be overwritten while they are in use
            names = list(file.keys())
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except safetensors.SafetensorError as error:
        raise FileError(
            f"{os.fspath(path)} is no safetensors file, or a part of one ({error}).\n"
            "What to do: load what fxquant.save wrote; a checkpoint of torch.save is read with "
            "torch.load and load_state_dict."
        ) from error
    text, digest = metadata.get("network", ""), metadata.get("sha256")
    if _digest(text, tensors) != digest:
        raise FileError(
            f"{os.fspath(path)} is damaged: its content does not have the digest it was saved "
            "with.\nWhat to do: copy or save it again."
        )
    return text, tensors


def _check_version(path: str | os.PathLike[str], version: str | None) -> None:
    if version is None or not version.isdecimal():
        raise FileError(
            f"{os.fspath(path)} was not written by fxquant.save.\n"
            "What to do: read tensors alone with safetensors.torch.load_file."
        )
    if int(version) > VERSION:
        raise FileError(
            f"{os.fspath(path)} has format {version}; this fxquant reads formats up to {VERSION}.\n"
            "What to do: install a newer fxquant."
        )


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
