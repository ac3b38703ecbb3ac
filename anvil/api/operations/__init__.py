"""What S3 and gRPC have in common: every rule about who may do what, on which conditions, and what it does, in terms of typed values.

Invariant: nothing here knows a header, a document or a message; both APIs parse into these values and render what comes back.
"""
