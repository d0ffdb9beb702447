"""`llmrec serve`: a run answers over HTTP until it is told to stop. Needs the extra `serve`."""

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from llmrec import stopping
from llmrec.errors import LlmrecError, RecipeError
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(
    recipe: Recipe,
    folder: RunFolder,
    systems: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    seconds: float = 30.0,
) -> dict[str, Any]:
    """Load a run, serve it, and return when asked to stop.

    On the loopback address only requests that name it as their host are answered, so that no page
    of another site can reach it under a name of its own. Raises RecipeError where the extra
    `serve` is not installed, LlmrecError for an address that cannot be had.
    """
    try:
        import uvicorn

        from llmrec.server.app import Limits, application
    except ImportError as error:
        if (error.name or "").startswith("llmrec"):
            raise
        raise RecipeError(
            f"`llmrec serve` needs {error.name}: pip install 'llmrec[serve]'"
        ) from None
    from llmrec.server.answers import Answers

    answers = Answers(recipe, folder, systems)
    hosts = [*LOOPBACK[:2], "[::1]"] if host in LOOPBACK else []
    app = application(answers, Limits(seconds=seconds), hosts)
    if not hosts:
        log.warning(
            "%s can be reached from outside this machine, and asks nobody who they are", host
        )
    settings = uvicorn.Config(
        app, host, port, log_config=None, access_log=False, timeout_graceful_shutdown=10
    )
    server = uvicorn.Server(settings)
    server.capture_signals = contextlib.nullcontext  # those of the terminal are looked at below
    threading.Thread(target=_told_when_it_listens, args=(server, host, port), daemon=True).start()
    gc.collect()
    gc.freeze()  # what was loaded stays: to look through it again and again would halt every answer
    begun = time.monotonic()
    try:
        with stopping.gracefully():
            server.run()
    except SystemExit as end:  # as uvicorn ends where it cannot listen
        if stopping.requested() is None:
            raise LlmrecError(
                f"{host}:{port} cannot be listened on; another program may: give another --port"
            ) from end
    finally:
        app.state.batcher.close()
    stopping.withdraw()  # to end when told so is what a server does
    return {"served": f"http://{host}:{port}", "seconds": round(time.monotonic() - begun, 1)}


def _told_when_it_listens(server: Any, host: str, port: int) -> None:
    while not server.started and not server.should_exit:
        time.sleep(0.05)
    if server.started:
        log.info("serving at http://%s:%d; Ctrl+C stops", host, port)
    while not server.should_exit:
        if stopping.requested() is not None:
            server.should_exit = True
        time.sleep(0.1)
