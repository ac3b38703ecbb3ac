"""Policies of buckets, for BucketService: from messages to operations and back."""

from __future__ import annotations

from anvil.api.grpc.proto import bucket_pb2 as pb
from anvil.api.operations import rights
from anvil.api.operations.caller import Caller
from anvil.base.errors import InvalidArgument
from anvil.model.identity import Grant, Policy


async def get_bucket_policy(caller: Caller, request: pb.GetBucketPolicyRequest) -> pb.GetBucketPolicyResponse:
    """Raises NoSuchBucket, AccessDenied, LimitExceeded."""
    found = await rights.bucket_policy(caller, request.bucket)
    policy = pb.BucketPolicy(
        public_read=found.public_read,
        grants=[pb.Grant(app=grant.app, action=grant.right.action, resource=grant.right.resource) for grant in found.grants],
    )
    return pb.GetBucketPolicyResponse(policy=policy, etag=found.etag)


async def put_bucket_policy(caller: Caller, request: pb.PutBucketPolicyRequest) -> pb.PutBucketPolicyResponse:
    """Raises InvalidArgument where no policy is given (an empty one would take all rights away), LimitExceeded, and as the operation."""
    if not request.HasField("policy"):
        raise InvalidArgument("The policy is missing: an empty one takes all rights in the bucket away.", ArgumentName="policy")
    rights.check_count(len(request.policy.grants))  # before a million empty ones are looked at, for anybody
    grants = [Grant(grant.app, Policy(grant.action, grant.resource)) for grant in request.policy.grants]
    etag = await rights.put_bucket_policy(caller, request.bucket, request.policy.public_read, grants, request.if_match)
    return pb.PutBucketPolicyResponse(etag=etag)
