"""`anvil bench`: a client that loads any S3 endpoint, verifies what it reads and says what it measured.

`run.run` is the way in; `docs/BENCH.md` says what the figures mean. Not here: the command line (`anvil/cli/bench.py`), and benchmarks of
Anvil's own parts (`bench/`).
"""
