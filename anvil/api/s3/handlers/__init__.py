"""Handlers of the S3 API, one file per group of operations. Each takes a `Call` and answers it."""
