from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.cache import FeatureCache

ROOT = Path(__file__).parents[2]


def tensors(seed: int = 0, size: int = 1000) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"features": torch.randn(size, generator=generator), "times": torch.arange(4, dtype=torch.float64)}


def same(one: dict[str, torch.Tensor] | None, other: dict[str, torch.Tensor]) -> bool:
    return (
        one is not None
        and one.keys() == other.keys()
        and all(
            one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in other
        )
    )


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", 1 << 20)


def entry_bytes(tmp_path: Path) -> int:
    """Bytes of one entry of `tensors()` on disk."""
    probe = FeatureCache(tmp_path / "probe", 1 << 20)
    probe.put("one", tensors())
    return probe.size_bytes


def test_what_is_put_comes_back_bit_for_bit(cache: FeatureCache) -> None:
    cache.put("one", tensors())
    assert same(cache.get("one"), tensors())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4).to(torch.bfloat16),
        torch.randn(3, 4).to(torch.float16),
        torch.tensor(7),
        torch.tensor([True, False]),
        torch.empty(0, 5),
        torch.randn(4, 6).T,
        torch.randn(4, 6, requires_grad=True),
    ],
    ids=["bfloat16", "float16", "scalar", "bool", "no elements", "transposed", "with gradient"],
)
def test_any_tensor_comes_back(cache: FeatureCache, tensor: torch.Tensor) -> None:
    cache.put("one", {"t": tensor})
    assert same(cache.get("one"), {"t": tensor.detach()})


def test_tensors_that_share_memory_come_back(cache: FeatureCache) -> None:
    whole = torch.arange(10.0)
    cache.put("one", {"a": whole[:6], "b": whole[3:], "c": whole})
    assert same(cache.get("one"), {"a": whole[:6], "b": whole[3:], "c": whole})


def test_what_was_never_put_is_absent(cache: FeatureCache) -> None:
    assert cache.get("one") is None
    assert "one" not in cache
    assert cache.size_bytes == 0


def test_putting_again_replaces(cache: FeatureCache) -> None:
    cache.put("one", tensors(0))
    cache.put("one", tensors(1))
    assert same(cache.get("one"), tensors(1))


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    match how:
        case "empty":
            data = bytearray()
        case "cut short":
            data = data[: len(data) // 2]
        case "no header":
            data = data[:4]
        case "one bit":
            data[-100] ^= 1
        case "zeros":
            data = bytearray(len(data))
        case "text":
            data = bytearray(b"not tensors at all " * 50)
        case "longer":
            data += b"more"
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "cut short", "no header", "one bit", "zeros", "text", "longer"])
def test_a_damaged_file_counts_as_absent_and_is_removed(cache: FeatureCache, how: str) -> None:
    cache.put("one", tensors())
    (file,) = cache.directory.iterdir()
    damage(file, how)
    assert cache.get("one") is None
    assert not file.exists()
    cache.put("one", tensors())
    assert same(cache.get("one"), tensors())


def test_a_file_of_somebody_else_counts_as_damaged(cache: FeatureCache) -> None:
    cache.put("one", tensors())
    (file,) = cache.directory.iterdir()
    save_file(load_file(file), file)
    assert cache.get("one") is None


def test_the_longest_unused_entries_go_first(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", 3 * entry_bytes(tmp_path))
    for key in ("a", "b", "c"):
        cache.put(key, tensors())
    assert cache.get("a") is not None
    cache.put("d", tensors())
    assert [key for key in "abcd" if key in cache] == ["a", "c", "d"]
    assert cache.size_bytes <= cache.max_bytes


def test_an_entry_larger_than_the_cache_is_not_stored_and_drives_nothing_out(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", 2 * entry_bytes(tmp_path))
    cache.put("small", tensors())
    cache.put("large", tensors(size=100_000))
    assert "large" not in cache
    assert same(cache.get("small"), tensors())


def test_a_smaller_bound_is_kept_from_the_next_put_on(tmp_path: Path) -> None:
    size = entry_bytes(tmp_path)
    wide = FeatureCache(tmp_path / "cache", 10 * size)
    for key in "abcde":
        wide.put(key, tensors())
    narrow = FeatureCache(tmp_path / "cache", 2 * size)
    narrow.put("f", tensors())
    assert [key for key in "abcdef" if key in narrow] == ["e", "f"]


def test_files_that_killed_processes_left_unfinished_are_removed(cache: FeatureCache) -> None:
    cache.put("one", tensors())
    old, young = cache.directory / "old.unfinished", cache.directory / "young.unfinished"
    for file in (old, young):
        file.write_bytes(b"half an entry")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    cache.put("two", tensors())
    assert not old.exists()
    assert young.exists()


def test_a_write_that_fails_leaves_the_old_entry_and_no_rubbish(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put("one", tensors(0))

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match="No space left"):
            cache.put("one", tensors(1))
    assert same(cache.get("one"), tensors(0))
    assert len(list(cache.directory.iterdir())) == 1


def test_an_entry_that_vanishes_while_it_is_read_is_no_error(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put("one", tensors())
    utime = os.utime

    def make_room_first(path: Path, **arguments: object) -> None:
        Path(path).unlink(missing_ok=True)
        utime(path, **arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "utime", make_room_first)
    assert same(cache.get("one"), tensors())


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    # Each writes and reads the same few keys in a cache that holds only some of them.
    script = (
        "import sys, torch\nfrom pipeline.cache import FeatureCache\n"
        "cache = FeatureCache(sys.argv[1], 30_000)\n"
        "for step in range(60):\n"
        "    number = step % 5\n"
        "    found = cache.get(f'key{number}')\n"
        "    assert found is None or torch.equal(found['t'], torch.full((2000,), float(number)))\n"
        "    cache.put(f'key{number}', {'t': torch.full((2000,), float(number))})\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "cache")]
    processes = [subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    cache = FeatureCache(tmp_path / "cache", 30_000)
    assert 0 < cache.size_bytes <= 30_000
    assert all(file.suffix == ".safetensors" for file in cache.directory.iterdir())


@pytest.mark.parametrize("key", ["", "../elsewhere", "a/b", "a.b", "ä"])
def test_keys_cannot_leave_the_folder(cache: FeatureCache, key: str) -> None:
    with pytest.raises(ValueError, match="a key consists of letters"):
        cache.get(key)


def test_the_checksums_name_is_taken(cache: FeatureCache) -> None:
    with pytest.raises(ValueError, match="must leave the name 'crc32'"):
        cache.put("one", tensors(), {"crc32": "0"})


def test_the_bound_is_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_bytes must be positive, but got 0"):
        FeatureCache(tmp_path, 0)
