"""Shards on local disks: record format, segments with group commit, files of their own, index, recovery, compaction.

`drive.LocalDrive` is the face (the engine's `Drive` port); `docs/FORMATS.md` describes the bytes. Not here: what the bytes of a
frame mean, placement, repair of content, peers.
"""
