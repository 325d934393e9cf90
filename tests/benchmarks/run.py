"""`make bench`: seconds and peak memory of the demo run, installed and with nothing cached.

    python -m tests.benchmarks.run --budget 0.3 --trials 40 --workers 1

Memory is PSS summed over the driver and all its children: pages shared between processes count once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

INTERVAL = 0.25  # seconds between two looks at the memory


def pss(process: psutil.Process) -> int:
    """Bytes of the process and its descendants; those that end meanwhile count nothing."""
    total = 0
    for member in [process, *_children(process)]:
        try:
            total += member.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def timed(command: list[str], folder: Path) -> tuple[float, int]:
    """Seconds, and the highest memory seen."""
    began, peak = time.perf_counter(), 0
    with (folder / "output.txt").open("a") as output:
        run = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        watched = psutil.Process(run.pid)
        while run.poll() is None:
            peak = max(peak, pss(watched))
            time.sleep(INTERVAL)
    if run.returncode:
        sys.exit((folder / "output.txt").read_text())
    return time.perf_counter() - began, peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="demo")
    parser.add_argument("--budget", default="0.3")
    parser.add_argument("--trials", default="40")
    parser.add_argument("--workers", default="1")
    arguments = parser.parse_args()
    study = Path(arguments.study)
    tuner = [str(Path(sys.executable).parent / "tuner"), "run"]
    options = ["--study", str(study.resolve() if study.is_dir() else study)]
    for name in ("budget", "trials", "workers"):
        options += [f"--{name}", getattr(arguments, name)]
    with tempfile.TemporaryDirectory() as folder:
        print(f"{' '.join(['tuner run', *options])}, {os.cpu_count()} cores")
        for name in ("nothing cached", "the same again"):
            seconds, peak = timed([*tuner, *options], Path(folder))
            print(f"{name:<16}{seconds:8.1f} s {peak / 2**30:8.2f} GiB peak (PSS)")


if __name__ == "__main__":
    main()
