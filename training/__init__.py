"""Training of the embedded models: one module per stage, each run as `python -m training.STAGE`."""
