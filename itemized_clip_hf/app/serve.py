"""Runs an app until it is interrupted, and leaves nothing of anybody's data behind."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine can reach."""


def serve(app: "gr.Blocks", host: str = "127.0.0.1", port: int = 7860, say: Callable[[str], Any] = print) -> None:
    """
    Serves an app of `page.build_app`; returns when the process is interrupted, with all sessions deleted.

    Args:
        host, port: where it listens, and nowhere else.
        say: called with the address.

    Raises:
        OSError: the port is taken, or the host is not of this machine.
    """
    try:
        try:
            _, url, _ = app.launch(server_name=host, server_port=port, prevent_thread_lock=True)
        except OSError:  # in words of the library's own options
            raise OSError(
                f"the app cannot listen on {host}, port {port}: another program does, or the host is not of this machine. "
                "Choose another --port or --host."
            ) from None
        say(f"the app is at {url} (Ctrl-C ends it and deletes what was uploaded)")
        threading.Event().wait()
    finally:
        if getattr(app, "is_running", False):
            app.close(verbose=False)
        vars(app)["sessions"].close()
