"""Reads the weights of a TorchScript archive without executing anything from the file.

Specification core.md 1.9: OpenAI's CLIP files are such archives, and torch.load(weights_only=True) refuses them. The
pickle inside is read by an unpickler that knows a dozen names; every other name is an error.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from clipreel.errors import ClipreelError

MOST_BYTES = 64 << 30
DTYPES = {
    "Half": torch.float16,
    "Float": torch.float32,
    "BFloat16": torch.bfloat16,
    "Double": torch.float64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
CONTAINERS = {"build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag"}


class UnsafeFile(ClipreelError):
    """A file that asks for more than tensors."""


class Module:
    """Stands for any class of the archive; holds its attributes and does nothing."""

    def __init__(self, *args: object) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


class Marker:
    """Stands for a storage type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip with the code folder of a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as z:
        names = z.namelist()
    return any(n.endswith("/constants.pkl") for n in names) and any("/code/" in n for n in names)


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str, path: Path) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root, self.path = archive, root, path
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return Module
        if module == "torch" and name.endswith("Storage") and name.removesuffix("Storage") in DTYPES:
            return Marker(DTYPES[name.removesuffix("Storage")])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in CONTAINERS:
            return lambda value, *rest: value
        raise UnsafeFile(f"{self.path} asks for {module}.{name}, which no weights need; nothing of it was run")

    def persistent_load(self, pid: Any) -> Tensor:
        _, marker, key, _, count = pid
        if key not in self.storages:
            dtype = marker.dtype
            folder = next(
                (f for f in ("data", "tensors") if f"{self.root}/{f}/{key}" in self.archive.NameToInfo), "data"
            )
            raw = self.archive.read(f"{self.root}/{folder}/{key}")
            wanted = count * torch.empty(0, dtype=dtype).element_size()
            if len(raw) != wanted:
                raise ClipreelError(
                    f"{self.path}: storage {key} has {len(raw)} bytes instead of {wanted}; fetch it again"
                )
            self.storages[key] = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return self.storages[key]

    def rebuild(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *rest: object) -> Tensor:
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        inside = 0 not in size and min((offset, *size, *stride)) >= 0 and last < storage.numel()
        if not (inside or 0 in size):
            raise UnsafeFile(f"{self.path}: a tensor of size {tuple(size)} reaches outside its storage")
        return storage.as_strided(size, stride, offset)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive under their state-dict names. Raises ClipreelError, runs nothing."""
    try:
        with zipfile.ZipFile(path) as z:
            for info in z.infolist():
                parts = PurePosixPath(info.filename).parts
                if ".." in parts or info.filename.startswith("/"):
                    raise UnsafeFile(
                        f"{path} has a member named {info.filename!r} that points outside; it was not read"
                    )
            if sum(i.file_size for i in z.infolist()) > MOST_BYTES:
                raise UnsafeFile(f"{path} would unpack to more than {MOST_BYTES >> 30} GiB; it was not read")
            root = z.namelist()[0].split("/")[0]
            order = f"{root}/byteorder"
            if order in z.NameToInfo and z.read(order).strip() != sys.byteorder.encode():
                raise ClipreelError(f"{path} was written with another byte order; convert it to safetensors")
            tree = _Unpickler(z, root, path).load()
    except ClipreelError:
        raise
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, ValueError, EOFError, TypeError, OSError) as e:
        raise ClipreelError(f"{path} is damaged or no weights file ({type(e).__name__}: {e}); fetch it again") from e
    found: dict[str, Tensor] = {}
    _collect(tree, "", found, set())
    if not found:
        raise ClipreelError(f"{path} contains no tensors")
    return found


def _collect(node: Any, prefix: str, found: dict[str, Tensor], open_nodes: set[int]) -> None:
    if isinstance(node, Tensor):
        found[prefix.rstrip(".")] = node
    elif isinstance(node, (Module, dict)) and id(node) not in open_nodes:
        items = node.state if isinstance(node, Module) else node
        for name, value in items.items() if isinstance(items, dict) else ():
            _collect(value, f"{prefix}{name}.", found, open_nodes | {id(node)})
