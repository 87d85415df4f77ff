"""TorchScript archives are read without running anything; whatever asks for more is refused."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipreel.archive import DTYPES, UnsafeFile, is_torchscript, read_torchscript
from clipreel.checkpoints import load_weights
from clipreel.errors import ClipreelError


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3).half())
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.float().t() + self.bias


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Inner()
        self.blocks = nn.ModuleList([Inner(), Inner()])
        self.blocks[1].bias = self.blocks[0].bias  # a shared storage
        self.register_buffer("input_resolution", torch.tensor(224))
        self.register_buffer("turned", torch.arange(12.0).view(3, 4).t())

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(Outer()), str(path))
    return path


def test_names_types_and_values(archive: Path) -> None:
    wanted = torch.jit.load(str(archive)).state_dict()
    found = read_torchscript(archive)
    assert is_torchscript(archive)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert found["blocks.0.bias"].data_ptr() == found["blocks.1.bias"].data_ptr()


def rewritten(archive: Path, change: dict[str, bytes], extra: dict[str, bytes] | None = None) -> Path:
    out = archive.with_name("changed.pt")
    with zipfile.ZipFile(archive) as z, zipfile.ZipFile(out, "w") as w:
        for name in z.namelist():
            w.writestr(name, next((v for k, v in change.items() if name.endswith(k)), z.read(name)))
        for name, data in (extra or {}).items():
            w.writestr(name, data)
    return out


class Bomb:
    def __reduce__(self) -> tuple:
        return os.system, ("touch bomb-went-off",)


def test_a_pickle_bomb_is_refused_and_nothing_runs(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewritten(archive, {"data.pkl": pickle.dumps(Bomb(), protocol=2)})
    with pytest.raises(UnsafeFile, match=r"asks for (posix|nt)\.system"):
        read_torchscript(path)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ClipreelError):
        load_weights(plain)
    torch.save({"x": Bomb()}, tmp_path / "zip.pt")
    with pytest.raises(ClipreelError, match="asks for code to be run"):
        load_weights(tmp_path / "zip.pt")
    assert not (tmp_path / "bomb-went-off").exists()


def test_members_that_point_outside(archive: Path) -> None:
    with pytest.raises(UnsafeFile, match="points outside"):
        read_torchscript(rewritten(archive, {}, {"../evil": b"x"}))


def test_a_storage_that_is_too_short(archive: Path) -> None:
    with pytest.raises(ClipreelError, match="bytes instead of"):
        read_torchscript(rewritten(archive, {"/data/0": b"\0\0"}))


def test_a_tensor_that_reaches_outside_its_storage(archive: Path) -> None:
    with zipfile.ZipFile(archive) as z:
        name = next(n for n in z.namelist() if n.endswith("data.pkl"))
        code = z.read(name)
    # sizes are small integers in the pickle: K\x04K\x03 is the shape (4, 3)
    assert b"K\x04K\x03" in code
    with pytest.raises(UnsafeFile, match="outside its storage"):
        read_torchscript(rewritten(archive, {"data.pkl": code.replace(b"K\x04K\x03", b"K\x7fK\x7f", 1)}))


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def module(attributes: bytes) -> bytes:
    return b"c__torch__\nM\n)\x81}" + attributes + b"b"


def tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, kind: bytes = b"Float") -> bytes:
    """The pickle of a tensor over storage 0, which the file of `made` fills with four float32."""
    count = 16 // torch.empty(0, dtype=DTYPES[kind.decode()]).element_size()
    storage = (
        b"(" + text("storage") + b"ctorch\n" + kind + b"Storage\n" + text("0") + text("cpu") + number(count) + b"tQ"
    )
    rest = number(offset) + numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def made(folder: Path, code: bytes, packing: int = zipfile.ZIP_STORED, data: bytes = bytes(16)) -> Path:
    path = folder / "made.pt"
    with zipfile.ZipFile(path, "w", packing) as w:
        members = {"data.pkl": b"\x80\x02" + code + b".", "constants.pkl": b"", "code/a.py": b"", "data/0": data}
        for name, content in members.items():
            w.writestr(f"root/{name}", content)
    return path


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((2, 3), (2, 1), 0),
        ((2, 2), (2, 1), 1),
        ((10**12,), (0,), 0),  # a view over one number that would fill memory when copied
        ((2, 2), (-2, 1), 2),
        ((-2, -2), (1, 1), 0),
        ((0, 2), (-1, -1), 0),
    ],
)
def test_every_view_stays_inside_its_storage(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    assert read_torchscript(made(tmp_path, module(text("w") + tensor((2, 2), (2, 1)) + b"s")))["w"].shape == (2, 2)
    with pytest.raises(UnsafeFile, match="outside its storage"):
        read_torchscript(made(tmp_path, module(text("w") + tensor(size, stride, offset) + b"s")))


def test_one_storage_read_as_two_types(tmp_path: Path) -> None:
    both = text("a") + tensor((4,), (1,)) + b"s" + text("b") + tensor((8,), (1,), kind=b"Half") + b"s"
    found = read_torchscript(made(tmp_path, module(both)))
    assert (found["a"].dtype, found["b"].dtype) == (torch.float32, torch.float16)


def test_files_that_ask_for_endless_memory_or_time(tmp_path: Path) -> None:
    good = module(text("w") + tensor((2, 2), (2, 1)) + b"s")
    with pytest.raises(UnsafeFile, match="more than its own size"):
        read_torchscript(made(tmp_path, good, zipfile.ZIP_DEFLATED, bytes(1 << 20)))
    with pytest.raises(UnsafeFile, match="more memory than it needs"):
        read_torchscript(made(tmp_path, b"K\x01r\xff\xff\xff\x7f"))  # entry 2**31 of the unpickler's memo
    twice = module(text("w") + b"K\x01s") + b"q\x00"
    for i in range(1, 40):  # 2**40 names from a file of 2 kB
        held = b"h" + bytes([i - 1]) + b"s"
        twice += b"0" + module(text("a") + held + text("b") + held) + b"q" + bytes([i])
    with pytest.raises(UnsafeFile, match="parts"):
        read_torchscript(made(tmp_path, twice))
    with pytest.raises(UnsafeFile, match="names"):
        read_torchscript(made(tmp_path, module(text("a" * 2000) + module(text("w") + b"K\x01s") + b"s")))


@pytest.mark.parametrize("code", [b"", b"R", b"K\x01Q", b"(K\x01K\x01K\x01K\x01K\x01tQ", b"\xff", module(b"")])
def test_other_damage_is_one_clear_error(tmp_path: Path, code: bytes) -> None:
    with pytest.raises(ClipreelError, match=r"fetch it again|no tensors"):
        read_torchscript(made(tmp_path, code))
    with zipfile.ZipFile(tmp_path / "empty.pt", "w"):
        pass
    with pytest.raises(ClipreelError, match="fetch it again"):
        read_torchscript(tmp_path / "empty.pt")


def test_a_damaged_file(archive: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(ClipreelError, match="fetch it again"):
        read_torchscript(cut)
    assert not is_torchscript(cut)
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    ordinary = tmp_path / "ordinary.pt"
    ordinary.write_bytes(buffer.getvalue())
    assert not is_torchscript(ordinary)
