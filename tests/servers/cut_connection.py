"""A server that dies in the middle of a transfer and comes back: a relay before a real one, whose wire can be cut."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Passes connections to ``127.0.0.1:target`` on; a cut closes all of them and refuses new ones until `mend`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._left: int | None = None
        self._open: set[socket.socket] = set()
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def cut_after(self, size_bytes: int) -> None:
        """Cut the wire when so many further bytes went to the server."""
        with self._lock:
            self._left = size_bytes

    @property
    def is_cut(self) -> bool:
        """Whether nothing passes."""
        with self._lock:
            return self._left == 0

    def mend(self) -> None:
        """Let everything pass again, at the same port."""
        with self._lock:
            self._left = None
        self._listener = self._listen(self.port)

    def close(self) -> None:
        """Close everything."""
        with self._lock:
            self._cut()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self._target)) as server:
            with self._lock:
                self._open |= {client, server}
            with selectors.DefaultSelector() as selector:
                selector.register(client, selectors.EVENT_READ, server)
                selector.register(server, selectors.EVENT_READ, client)
                while True:
                    for key, _ in selector.select():
                        data = client.recv(1 << 16) if key.fileobj is client else server.recv(1 << 16)
                        if not data or (key.fileobj is client and not self._may_pass(len(data))):
                            return
                        key.data.sendall(data)

    def _may_pass(self, size_bytes: int) -> bool:
        with self._lock:
            if self._left is None:
                return True
            self._left = max(0, self._left - size_bytes)
            if self._left:
                return True
            self._cut()
            return False

    def _cut(self) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()


@contextlib.contextmanager
def relay(target: int) -> Iterator[Relay]:
    """Relay a port of this machine to another one until the block ends."""
    between = Relay(target)
    try:
        yield between
    finally:
        between.close()
