"""How the embedded models were made: one module a stage, each run as `python -m training.STAGE`."""
