import io
import pickle
import resource
import signal
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from natwise.core.io import atomic_path, load_npz, load_torch, save_torch, write_bytes, write_text
from natwise.testing import same_bits

KILLS = """
import os, random, signal, sys, time
from natwise.core.io import write_bytes
path, times = sys.argv[1], random.Random(0)
write_bytes(path, bytes(300_000))
for kill in range(12):
    writer = os.fork()
    if writer == 0:
        while True:
            write_bytes(path, bytes([times.randrange(256)]) * 300_000)
    time.sleep(times.uniform(0.005, 0.06))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    with open(path, "rb") as file:
        content = file.read()
    assert len(content) == 300_000 and len(set(content)) == 1, "torn file"
"""


def test_writes_whole_and_makes_the_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "é\r\n\ud800")
    assert path.read_bytes() == "é\r\n\\ud800".encode()
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def _write_and_fail(path, written):
    if written is not None:
        path.write_bytes(written)
        raise KeyboardInterrupt


def test_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "a"
    write_bytes(path, b"old")
    for written, error in ((b"half of the n", KeyboardInterrupt), (None, FileNotFoundError)):
        with pytest.raises(error), atomic_path(path) as temporary:
            _write_and_fail(temporary, written)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_killed_writer_leaves_one_whole_version(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path / "target")], check=False)
    assert done.returncode == 0, "a version was half written, see above"


def test_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "a"
    write_bytes(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write_bytes(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_load_npz(tmp_path):
    arrays = {"x": np.arange(6.0).reshape(2, 3), "name": np.array(["é", "b"]), "none": np.zeros((0, 3), bool)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        loaded = load_npz(tmp_path / "a.npz")
        assert list(loaded) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_npz(tmp_path / "absent.npz")
    with pytest.raises(IsADirectoryError):
        load_npz(tmp_path)


def _npz(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def _claiming(shape, payload=b"12345678"):
    header = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload


GOOD = _npz(**{"a.npy": _npy(np.random.default_rng(0).random(200))})
HOSTILE = {
    "empty": (b"", "not a zip"),
    "text": (b"hello" * 100, "not a zip"),
    "nothing in it": (_npz(), "holds no arrays"),
    "objects": (_npz(**{"a.npy": _npy(np.array([print, {}]), allow_pickle=True)}), "Object arrays|pickle"),
    "bomb": (_npz(**{"a.npy": _npy(np.zeros(2_000_000))}), "more than the limit"),
    "claim": (_npz(**{"a.npy": _claiming((2**50,))}), "claims shape"),
    "negative": (_npz(**{"a.npy": _claiming((-1, -1))}), ""),
    "no array": (_npz(**{"a.txt": b"hello"}), "magic"),
    "code": (_npz(**{"a.npy": _claiming("__import__('os')")}), ""),
    "short": (_npz(**{"a.npy": b"\x93NUM"}), ""),
    **{f"cut {n}": (GOOD[:n], "") for n in (1, 30, 60, len(GOOD) // 2, len(GOOD) - 30, len(GOOD) - 1)},
    "flipped": (GOOD[:400] + bytes([GOOD[400] ^ 1]) + GOOD[401:], ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_npz_is_refused(tmp_path, name):
    content, text = HOSTILE[name]
    path = tmp_path / "hostile.npz"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=text or None) as caught:
        load_npz(path, max_bytes=10_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 8_000_000


class _Opens:
    def __reduce__(self):
        return (open, ("/dev/null",))


def _torch_file(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


TENSORS = _torch_file({"a": torch.arange(100), "n": 3})
HOSTILE_TENSORS = {
    "empty": b"",
    "text": b"x" * 1000,
    "pickle": pickle.dumps({"a": _Opens()}),
    "code": _torch_file({"a": _Opens()}),
    "module": _torch_file(torch.nn.Linear(1, 1)),
    "list": _torch_file([1]),
    "flipped bit": TENSORS.replace(bytes([7, 0, 0, 0, 0, 0, 0, 0, 8]), bytes([7, 0, 0, 0, 0, 0, 0, 1, 8])),
    **{f"cut {n}": TENSORS[:n] for n in (1, 100, len(TENSORS) // 2, len(TENSORS) - 200, len(TENSORS) - 1)},
}


def test_load_torch(tmp_path):
    path = tmp_path / "a.pt"
    save_torch(path, {"a": torch.arange(100), "n": 3})
    assert same_bits(load_torch(path), {"a": torch.arange(100), "n": 3})
    with pytest.raises(FileNotFoundError, match="absent"):
        load_torch(tmp_path / "absent")


@pytest.mark.parametrize("name", HOSTILE_TENSORS)
def test_hostile_torch_file_is_refused(tmp_path, name):
    path = tmp_path / "hostile.pt"
    path.write_bytes(HOSTILE_TENSORS[name])
    with pytest.raises(ValueError, match=r"hostile.pt is no readable file of tensors: .") as caught:
        load_torch(path)
    assert "\n" not in str(caught.value)
