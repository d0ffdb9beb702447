"""The command: `llmrec`, `python -m llmrec`, and so `accelerate launch -m llmrec`."""

import signal

# Until the command listens there is nothing to save, and Ctrl+C ends it without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from llmrec.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
