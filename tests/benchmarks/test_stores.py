"""What a worker keeps of videos is found again, and no file is hashed twice."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.stores import Counted, count


def counted(folder: Path, prefix_bytes: int | None = None) -> Counted:
    """A search of three trials on eight videos, two more are held out, with two questions each."""
    return count(
        folder,
        videos=8,
        questions=2,
        trials=3,
        gpu_bytes=2 * 10**9,
        host_bytes=10**9,
        shape="tiny",
        prefix_bytes=prefix_bytes,
    )


def test_every_video_is_encoded_hashed_and_run_through_the_first_layers_once(tmp_path: Path) -> None:
    """At ae20304: 512 MiB of prefixes, whatever the device, and each look at a video hashed its file."""
    found = counted(tmp_path)
    assert found.files == found.hashed == 10
    # Each video when it is first pruned; the unpruned model's prefixes end at another layer.
    assert found.trial_visits - found.trial_found == 10
    assert found.trial_visits >= 3 * 8 + 2
    assert found.prefix_peak <= found.prefix_bytes
    # Counted are the positions' rotary embeddings too.
    assert found.prefix_planned <= found.prefix_peak <= 1.1 * found.prefix_planned
    assert found.clip_peak <= found.clip_bytes


def test_stores_too_small_for_all_videos_hold_some_of_them(tmp_path: Path) -> None:
    """At ae20304: of videos visited in turns the least recently used made room, which was the next one, so
    that none was found.
    """
    found = counted(tmp_path, prefix_bytes=12 * 10**6)
    assert found.prefix_peak <= found.prefix_bytes
    assert found.trial_visits - found.trial_found > 10
    assert found.trial_found >= 4
