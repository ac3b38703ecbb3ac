"""`anvil.v1.BucketService`: buckets over gRPC, by the operations that S3 uses.

Not here: who may do what (`operations`), what a policy looks like (`policy.py`).
"""

from __future__ import annotations

from anvil.api.grpc import values
from anvil.api.grpc.proto import bucket_pb2, bucket_pb2_grpc
from anvil.api.grpc.services.policy import get_bucket_policy, put_bucket_policy
from anvil.api.operations import access, buckets
from anvil.api.operations.listing import decode_token, encode_token
from anvil.base.limits import LIST_BUCKETS_MAX
from anvil.rpc.context import Context


class BucketService(bucket_pb2_grpc.BucketServiceServicer):
    async def CreateBucket(self, request: bucket_pb2.CreateBucketRequest, context: Context) -> bucket_pb2.CreateBucketResponse:
        name = values.bucket_name(request.bucket)
        tenant = buckets.creator(context.caller, name)
        made = await buckets.create(context.caller, tenant, name, request.region)
        return bucket_pb2.CreateBucketResponse(bucket=values.bucket_message(made))

    async def DeleteBucket(self, request: bucket_pb2.DeleteBucketRequest, context: Context) -> bucket_pb2.DeleteBucketResponse:
        await buckets.delete(context.caller, values.bucket_name(request.bucket))
        return bucket_pb2.DeleteBucketResponse()

    async def HeadBucket(self, request: bucket_pb2.HeadBucketRequest, context: Context) -> bucket_pb2.HeadBucketResponse:
        bucket = await access.described(context.caller, values.bucket_name(request.bucket))
        return bucket_pb2.HeadBucketResponse(bucket=values.bucket_message(bucket))

    async def ListBuckets(self, request: bucket_pb2.ListBucketsRequest, context: Context) -> bucket_pb2.ListBucketsResponse:
        tenant = buckets.own_tenant(context.caller)
        limit = values.page_size(request.page_size, LIST_BUCKETS_MAX)
        after = decode_token(request.page_token) if request.page_token else ""
        page, more = await buckets.page(context.caller, tenant, prefix=request.prefix, after=after, limit=limit)
        return bucket_pb2.ListBucketsResponse(
            buckets=[values.bucket_message(bucket) for bucket in page],
            next_page_token=encode_token(page[-1].name) if more else "",
        )

    async def GetBucketPolicy(
        self, request: bucket_pb2.GetBucketPolicyRequest, context: Context
    ) -> bucket_pb2.GetBucketPolicyResponse:
        return await get_bucket_policy(context.caller, request)

    async def PutBucketPolicy(
        self, request: bucket_pb2.PutBucketPolicyRequest, context: Context
    ) -> bucket_pb2.PutBucketPolicyResponse:
        return await put_bucket_policy(context.caller, request)
