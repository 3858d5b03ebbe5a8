"""The benchmarks behind RESULTS.md: one module per question, each run as `python -m benchmarks.QUESTION`."""
