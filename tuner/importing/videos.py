"""The file of a video that a record names by a path, a name or a stem."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

from tuner.errors import UserError
from tuner.importing.rows import UnreadableError

# Of files that a record may name without its suffix.
SUFFIXES = frozenset(".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv".split())


class Videos:
    """The files below a folder. A name means the file at this path, else the only one whose path ends with
    the name, else one whose whole path is the end of the name.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; --videos names the folder that holds the videos")
        self._folder = folder
        self._files = set[str]()
        self._named = defaultdict[str, list[str]](list)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                path = file.relative_to(folder)
                self._files.add(path.as_posix())
                self._named[path.name].append(path.as_posix())
                if path.suffix.lower() in SUFFIXES:
                    self._named[path.stem].append(path.as_posix())

    def find(self, name: str) -> str:
        """The path of this video in the folder. Errors: UnreadableError where none or several fit."""
        path = PurePosixPath(name.replace("\\", "/"))
        parts = [part for part in path.parts if part not in ("/", ".")]
        if not parts or ".." in parts:
            raise UnreadableError(f"the video is {name!r}; allowed is a path of a file")
        without_suffix = path.suffix.lower() not in SUFFIXES
        found = [
            file
            for file in self._named.get(parts[-1], ())
            if self._ends(PurePosixPath(file), parts, without_suffix=without_suffix)
        ]
        wanted = "/".join(parts)
        exact = [file for file in found if wanted in (file, str(PurePosixPath(file).with_suffix("")))]
        # The longest paths say most: a/1.mp4 rather than 1.mp4 for b/a/1.mp4.
        longest = max((min(len(PurePosixPath(file).parts), len(parts)) for file in found), default=0)
        found = [path for path in found if min(len(PurePosixPath(path).parts), len(parts)) == longest]
        found = exact or found
        if not found:
            raise UnreadableError(f"the video {name!r} is not in {self._folder}")
        if len(found) > 1:
            raise UnreadableError(f"the video {name!r} may be any of {', '.join(found)}")
        return found[0]

    def _ends(self, file: PurePosixPath, parts: list[str], *, without_suffix: bool) -> bool:
        """Whether the file's path ends with these parts, or they with the file's whole path."""
        own = [*file.parts[:-1], file.stem if without_suffix and file.name != parts[-1] else file.name]
        shared = min(len(own), len(parts))
        return own[-shared:] == parts[-shared:]
