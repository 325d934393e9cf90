"""Stores are sized from what is free once the model is loaded."""

import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from pipeline import memory
from pipeline.memory import host_bytes
from tuner.evaluation.memory import CPU_SHARE, DEVICE_SHARE, HOST_SHARE, store_bytes, trim

pytestmark = pytest.mark.quick

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GB = 10**9


@pytest.fixture(autouse=True)
def free(monkeypatch):
    """A host with 100 GB free outside of any container, a GPU of 80 GB of which 60 are free and 17 ours."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * GB))
    monkeypatch.setattr(memory, "_CONTAINER", ())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 17 * GB)


def test_workers_share_the_hosts_memory():
    assert store_bytes(CPU) == (CPU_SHARE * 100 * GB, CPU_SHARE * 100 * GB)
    assert store_bytes(CPU, workers=4) == (CPU_SHARE * 25 * GB, CPU_SHARE * 25 * GB)


@pytest.mark.parametrize(("share", "room"), [(1.0, 60), (2.0, 60), (0.5, 40 - 17), (0.2, 0)])
def test_prefixes_get_half_of_what_is_free_of_the_workers_part_of_a_gpu(share, room):
    assert store_bytes(CUDA, gpu_share=share) == (DEVICE_SHARE * room * GB, HOST_SHARE * 100 * GB)


def test_what_the_user_names_is_taken():
    assert store_bytes(CUDA, workers=3, asked=7) == (7, 7)


@pytest.mark.parametrize(("limit", "left"), [("max", 100), ("8000000000", 5), (str(400 * GB), 100)])
def test_a_container_may_have_less(monkeypatch, tmp_path: Path, limit, left):
    (tmp_path / "max").write_text(f"{limit}\n")
    (tmp_path / "current").write_text(f"{3 * GB}\n")
    files = ((tmp_path / "missing", tmp_path / "current"), (tmp_path / "max", tmp_path / "current"))
    monkeypatch.setattr(memory, "_CONTAINER", files)
    assert host_bytes() == left * GB


@pytest.mark.skipif(sys.platform != "linux", reason="asks for resident memory as Linux tells it")
def test_freed_memory_goes_back_to_the_system():
    """Many small blocks between blocks that stay: what glibc keeps by itself."""
    process = psutil.Process()
    kept, freed = [], []
    for _ in range(2000):
        freed.append(torch.ones(16_000))  # 64 kB
        kept.append(torch.ones(100))
    full = process.memory_info().rss
    del freed
    trim()
    assert process.memory_info().rss < full - 64e6
    assert len(kept) == 2000
