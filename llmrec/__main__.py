"""`python -m llmrec`, and so `accelerate launch -m llmrec`."""

from llmrec.cli import main

main()
