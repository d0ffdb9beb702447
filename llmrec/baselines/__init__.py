"""Recommenders without a language model, each fitted to training interactions alone.

A baseline is a frozen dataclass of hyperparameters; its `fit` gives something that scores all
items for raw histories. `llmrec.baselines.tuning.choose` picks the hyperparameters on validation.
Import the modules themselves: this file stays empty so that SASRec's torch is loaded on demand.
"""
