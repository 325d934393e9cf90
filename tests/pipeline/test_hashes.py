"""Hashes of files: right whatever happens to the file and to what is kept, and read once per machine."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import hashes
from pipeline.hashes import file_hash

pytestmark = pytest.mark.quick

LARGE = 2**20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_KEPT_FROM", LARGE)
    monkeypatch.setattr(hashes, "_SETTLED", -(10**12))  # files of a test are new
    return tmp_path / "cache" / "adatp" / "hashes.json"


@pytest.fixture
def read(monkeypatch):
    """Names of the files read so far."""
    names = []
    digest = hashlib.file_digest

    def noted(stream, how):
        names.append(Path(stream.name).name)
        return digest(stream, how)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    return names


def write(path, byte=b"a", size=LARGE):
    path.write_bytes(byte * size)
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_file_is_read_once(tmp_path, read):
    """A process has nothing but the kept file in common with the next."""
    file = write(tmp_path / "model.safetensors")
    assert file_hash(file) == file_hash(file) == digest(file)
    assert read == ["model.safetensors"]


def test_a_file_written_again_is_read_again(tmp_path, read):
    """Of the same size, and with its times put back."""
    file = write(tmp_path / "a")
    before, state = file_hash(file), file.stat()
    write(file, b"b")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert before != file_hash(file) == digest(file)
    other = write(tmp_path / "other", b"c")
    other.replace(file)  # another inode
    assert file_hash(file) == digest(file)
    assert len(read) == 3


def test_a_hash_of_a_file_just_written_is_not_kept(tmp_path, read, cache, monkeypatch):
    """Within a tick of the clock it may be written again without another time."""
    monkeypatch.setattr(hashes, "_SETTLED", 60 * 10**9)
    file = write(tmp_path / "a")
    assert file_hash(file) == file_hash(file)
    assert len(read) == 2
    assert not cache.exists()


def test_small_files_are_not_kept(tmp_path, read, cache):
    file = write(tmp_path / "config.json", size=100)
    assert file_hash(file) == file_hash(file) == digest(file)
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"PATH": 3}', '{"PATH": [1, 2, 3, 4, "x"]}', "\xff"])
def test_a_damaged_cache_is_written_anew(tmp_path, cache, damage):
    file = write(tmp_path / "a")
    expected = file_hash(file)
    cache.write_bytes(damage.replace("PATH", str(file)).encode("latin-1"))
    assert file_hash(file) == expected
    assert expected in cache.read_text()


def test_without_a_writable_cache_files_are_read_each_time(tmp_path, read, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    file = write(tmp_path / "a")
    assert file_hash(file) == file_hash(file) == digest(file)
    assert len(read) == 2


def test_several_at_a_time_leave_a_whole_cache(tmp_path, cache):
    files = [write(tmp_path / str(i), bytes([i])) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(file_hash, files * 3))
    assert found == [digest(file) for file in files] * 3
    assert set(hashes._kept()) <= {str(file) for file in files}
    assert [file.name for file in cache.parent.iterdir()] == ["hashes.json"]


def test_files_that_are_gone_are_forgotten(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    file_hash(first)
    first.unlink()
    file_hash(second)
    assert list(hashes._kept()) == [str(second)]


def test_a_name_that_looks_like_a_hash_is_believed_in_the_hubs_cache_alone(tmp_path):
    blob = tmp_path / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    write(blob)
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert file_hash(tmp_path / "model.safetensors") == blob.name
    assert file_hash(blob) == digest(blob)
    (tmp_path / "elsewhere").mkdir()
    plain = write(tmp_path / "elsewhere" / ("0" * 64))
    (tmp_path / "link").symlink_to(plain)
    assert file_hash(tmp_path / "link") == digest(plain)


def test_a_link_that_leads_nowhere_cannot_be_hashed(tmp_path):
    for target in (tmp_path / "gone", tmp_path / "blobs" / ("0" * 64)):
        link = tmp_path / f"to-{target.name[:4]}"
        link.symlink_to(target)
        with pytest.raises(FileNotFoundError):
            file_hash(link)
