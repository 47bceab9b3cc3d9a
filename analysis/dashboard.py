"""A sweep in optuna-dashboard: its projection into Optuna's studies, kept up to date while it is served."""

import contextlib
import errno
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna_dashboard import wsgi

from analysis.optuna_journal import head
from analysis.optuna_view import JOURNAL, Projection
from spaces import BadInput

FOLLOW_S = 1.0  # between two looks at the ledger


def bring_up_to_date(run: Path) -> list[str]:
    """Update the run's journal once; what it holds now, and how to open it in Optuna, as lines to print."""
    with Projection(run) as projection:
        written, studies = projection.update(), projection.studies()
    counted = f"{run / JOURNAL}: {len(studies)} studies, {sum(studies.values())} trials"
    lines = [counted if written else f"{counted}, kept up to date by another process"]
    if studies:
        lines += [
            "open one in Python, this is the first:",
            "",
            "import optuna",
            "from optuna.storages import JournalStorage",
            "from optuna.storages.journal import JournalFileBackend",
            f"storage = JournalStorage(JournalFileBackend({str((run / JOURNAL).resolve())!r}))",
            f"study = optuna.load_study(study_name={next(iter(studies))!r}, storage=storage)",
        ]
    return lines


def serve(
    run: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    say: Callable[[str], None] = print,
    stop: threading.Event | None = None,
) -> None:
    """Serve the run's studies, following its ledger, until SIGINT, SIGTERM or `stop`. port: 0 for any that is free.

    Raises BadInput where nothing can listen at the address, and whatever `Projection` raises.
    """
    stop = stop or threading.Event()
    with Projection(run) as projection, _listening(host, port) as server:
        projection.update()
        shown = _show(projection.path, server)
        with _set_by_signals(stop), _answering(server):
            say(f"optuna-dashboard: http://{host}:{server.server_port}/  (Ctrl-C ends it)")
            while not stop.wait(FOLLOW_S):
                projection.update()
                if head(projection.path) != shown:
                    shown = _show(projection.path, server)


def _show(journal: Path, server: WSGIServer) -> bytes:
    """Let the server show the journal, a new one since it was rebuilt; returns what it is known by."""
    shown = head(journal)
    server.set_app(wsgi(JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))))
    return shown


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Not a line for every request."""


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[WSGIServer]:
    try:
        server = _Server((host, port), _Quiet)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise BadInput(f"port {port} of {host} is in use: give another one, such as --port {port + 1}") from None
        raise BadInput(f"cannot listen at --host {host} --port {port}: {error}") from None
    with server:
        yield server


@contextlib.contextmanager
def _answering(server: WSGIServer) -> Iterator[None]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()


@contextlib.contextmanager
def _set_by_signals(stop: threading.Event) -> Iterator[None]:
    """Signals set `stop`, so that no update is broken off; only the main thread may handle them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
