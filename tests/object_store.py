"""A local S3 server that fails now and then: what a run in an object store has to live with."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"


class _Quiet(WSGIRequestHandler):
    def log(self, *arguments: Any, **more: Any) -> None: ...


class ObjectStore:
    """S3 on 127.0.0.1.

    Attributes:
        fail_every: every so many requests one fails, in turn by a 500, by a connection reset before the request is
            carried out, and by one after; 0 is never.
        num_failures: failures so far.
        delay_s: seconds before a request is carried out, as of a store that is far away.
        lets_write: while it is not set, what writes to a path with ``held_path`` in it waits.
        held_path: a part of paths.
    """

    def __init__(self) -> None:
        self.fail_every = 0
        self.num_failures = 0
        self.delay_s = 0.0
        self.lets_write, self.held_path = threading.Event(), ""
        self.lets_write.set()
        self._requests = count(1)
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def make_bucket(self) -> None:
        """Make the bucket ``BUCKET``."""
        environment = self.environment
        s3fs.S3FileSystem(
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            key=environment["AWS_ACCESS_KEY_ID"],
            secret=environment["AWS_SECRET_ACCESS_KEY"],
            skip_instance_cache=True,
        ).mkdir(BUCKET)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "access-key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": "secret-key-of-the-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def stop(self) -> None:
        self.lets_write.set()
        self._server.shutdown()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("PUT", "POST") and self.held_path in environ["PATH_INFO"]:
            self.lets_write.wait()
        time.sleep(self.delay_s)
        if not self.fail_every or next(self._requests) % self.fail_every:
            return self._application(environ, start_response)  # type: ignore[no-any-return]
        kind = self.num_failures % 3
        self.num_failures += 1
        if kind == 0:
            start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>injected</Message></Error>"]
        if kind == 2:
            list(self._application(environ, lambda *_: None))
        connection: socket.socket = environ["werkzeug.socket"]
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no orderly end
        connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError("injected")
