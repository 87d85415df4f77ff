"""Reads the weights of a TorchScript archive without executing anything from the file.

Specification core.md 1.9: OpenAI's CLIP files are such archives, and torch.load(weights_only=True) refuses them. The
pickle inside is read by an unpickler that knows a dozen names; every other name is an error. Memory stays in proportion
to the file: nothing is unpacked, no tensor is larger than its storage, and no name is followed without end.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from clipreel.errors import ClipreelError

MOST_PARTS = 1_000_000  # modules and attributes; a ViT-L/14 has about 10,000
LONGEST_NAME = 1000
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

    state: Any = None

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: Any) -> None:
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
        code = archive.read(f"{root}/data.pkl")
        # a memo index costs memory by its value: eleven bytes could ask for 32 GiB
        indices = (arg for op, arg, _ in pickletools.genops(code) if op.name in ("PUT", "BINPUT", "LONG_BINPUT"))
        if any(isinstance(index, int) and index > len(code) for index in indices):
            raise UnsafeFile(f"{path} asks for far more memory than it needs; it was not read")
        super().__init__(io.BytesIO(code))
        self.archive, self.root, self.path = archive, root, path
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}

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
        dtype = marker.dtype
        if (key, dtype) not in self.storages:
            member = f"{self.root}/tensors/{key}"
            raw = self.archive.read(member if member in self.archive.NameToInfo else f"{self.root}/data/{key}")
            wanted = count * torch.empty(0, dtype=dtype).element_size()
            if len(raw) != wanted:
                raise ClipreelError(
                    f"{self.path}: storage {key} has {len(raw)} bytes instead of {wanted}; fetch it again"
                )
            self.storages[key, dtype] = (
                torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            )
        return self.storages[key, dtype]

    def rebuild(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *rest: object) -> Tensor:
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        inside = min((offset, *size, *stride)) >= 0 and (0 in size or last < storage.numel())
        if not inside or math.prod(size) > storage.numel():
            raise UnsafeFile(f"{self.path}: a tensor of size {tuple(size)} reaches outside its storage")
        return storage.as_strided(size, stride, offset)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive under their state-dict names. Raises ClipreelError, runs nothing."""
    try:
        with zipfile.ZipFile(path) as z:
            root = check_members(z, path)
            found = named_tensors(_Unpickler(z, root, path).load(), path)
    except ClipreelError:
        raise
    except Exception as e:  # a damaged zip or pickle can raise nearly anything
        raise ClipreelError(f"{path} is damaged or no weights file ({type(e).__name__}: {e}); fetch it again") from e
    if not found:
        raise ClipreelError(f"{path} contains no tensors")
    return found


def check_members(z: zipfile.ZipFile, path: Path) -> str:
    """The root folder of an archive whose members stay inside it, are not packed, and fit this machine."""
    for info in z.infolist():
        if ".." in PurePosixPath(info.filename.replace("\\", "/")).parts or info.filename.startswith("/"):
            raise UnsafeFile(f"{path} has a member named {info.filename!r} that points outside; it was not read")
    root = z.namelist()[0].split("/")[0]
    # torch stores weights unpacked, so their members together cannot be larger than the file
    folders = tuple(f"{root}/{name}" for name in ("data.pkl", "byteorder", "data/", "tensors/"))
    if sum(i.file_size for i in z.infolist() if i.filename.startswith(folders)) > path.stat().st_size:
        raise UnsafeFile(f"{path} would unpack to more than its own size, as no weights do; it was not read")
    order = f"{root}/byteorder"
    if order in z.NameToInfo and z.read(order).strip() != sys.byteorder.encode():
        raise ClipreelError(f"{path} was written with another byte order; convert it to safetensors")
    return root


def named_tensors(tree: Any, path: Path) -> dict[str, Tensor]:
    """Every tensor of a module tree under its dotted name."""
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", tree)]
    for _ in range(MOST_PARTS):
        if not waiting:
            return found
        name, node = waiting.pop()
        if len(name) > LONGEST_NAME:
            break
        node = node.state if isinstance(node, Module) else node
        if isinstance(node, Tensor):
            found[name] = node
        elif isinstance(node, dict):
            waiting += [(f"{name}.{key}" if name else str(key), value) for key, value in node.items()]
    raise UnsafeFile(f"{path} has more than {MOST_PARTS:,} parts, or endless names, as no weights do; it was not read")
