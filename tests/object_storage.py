"""An S3 server (moto's) behind a door that can be shut: clients then meet a storage that is down."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import pytest

# moto keeps buckets for as long as its process lives, whatever server they were made in.
_BUCKETS = count()


class Door:
    """A port that leads to another one; while it is shut, connections are reset, which `refused` counts."""

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self._shut = False
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.refused = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        self._shut = True
        for end in tuple(self._ends):
            _end(end)

    def open(self) -> None:
        self._shut = False

    def close(self) -> None:
        self.shut()
        _end(self._listener)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._shut:
                    self.refused += 1
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._behind))
                self._ends |= {client, server}
                for item, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(item, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        for end in (one, other):
            _end(end)
            self._ends.discard(end)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@dataclass
class ObjectServer:
    """A running server: how to reach it, and the door before it."""

    url: str
    environment: dict[str, str]
    door: Door

    def objects(self) -> list[str]:
        """Their names."""
        import s3fs

        found: list[str] = s3fs.S3FileSystem(use_listings_cache=False).find(self.url)
        return found


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    """Skips the test where moto or s3fs is not installed."""
    moto = pytest.importorskip("moto.server", reason="needs an S3 server: pip install 'moto[s3]'")
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'adatp-tuner[s3]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    door = Door(server.get_host_and_port()[1])
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{door.port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "of-the-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            bucket = f"bucket-{next(_BUCKETS)}"
            s3fs.S3FileSystem().mkdir(bucket)
            yield ObjectServer(f"s3://{bucket}/encoded", environment, door)
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        door.close()
        server.stop()
