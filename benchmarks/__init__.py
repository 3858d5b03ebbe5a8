"""What the figures in RESULTS.md come from: one module a question, each run as `python -m benchmarks.QUESTION`."""
