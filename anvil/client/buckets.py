"""`client.buckets`. Not here: what is in them (`objects.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from anvil.api.grpc.proto import auth_pb2, bucket_pb2
from anvil.client.calls import Calls
from anvil.client.convert import bucket_of, policy_message, policy_of
from anvil.client.types import Ask, Bucket, BucketPolicy, StoredPolicy

__all__ = ["Buckets"]


class Buckets:
    """All raise ClientError: NoSuchBucket, PermissionMissing, Unreachable and so on."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def create(self, bucket: str, region: str = "") -> Bucket:
        """`region` empty: the node's. Raises BucketAlreadyOwnedByYou, BucketAlreadyExists."""
        request = bucket_pb2.CreateBucketRequest(bucket=bucket, region=region)
        ask = Ask("bucket:create", bucket, repeatable=False)
        answer = await self._calls.unary("BucketService/CreateBucket", request, bucket_pb2.CreateBucketResponse, ask)
        return bucket_of(answer.bucket)

    async def delete(self, bucket: str) -> None:
        """Raises BucketNotEmpty."""
        request = bucket_pb2.DeleteBucketRequest(bucket=bucket)
        ask = Ask("bucket:delete", bucket, repeatable=False)
        await self._calls.unary("BucketService/DeleteBucket", request, bucket_pb2.DeleteBucketResponse, ask)

    async def list(self, prefix: str = "", page_size: int = 0) -> AsyncIterator[Bucket]:
        """All buckets of the tenant, by name, page by page."""
        token = ""
        while True:
            request = bucket_pb2.ListBucketsRequest(prefix=prefix, page_size=page_size, page_token=token)
            page = await self._calls.unary(
                "BucketService/ListBuckets", request, bucket_pb2.ListBucketsResponse, Ask("bucket:list", "*")
            )
            for one in page.buckets:
                yield bucket_of(one)
            token = page.next_page_token
            if not token:
                return

    async def head(self, bucket: str) -> Bucket:
        request = bucket_pb2.HeadBucketRequest(bucket=bucket)
        ask = Ask("bucket:read", bucket)
        return bucket_of(
            (await self._calls.unary("BucketService/HeadBucket", request, bucket_pb2.HeadBucketResponse, ask)).bucket
        )

    async def get_policy(self, bucket: str) -> StoredPolicy:
        """Who has rights on exactly this bucket or in it, and whether everybody may read."""
        request = bucket_pb2.GetBucketPolicyRequest(bucket=bucket)
        ask = Ask("policy:grant", bucket)
        answer = await self._calls.unary("BucketService/GetBucketPolicy", request, bucket_pb2.GetBucketPolicyResponse, ask)
        return StoredPolicy(policy_of(answer.policy), answer.etag)

    async def put_policy(self, bucket: str, policy: BucketPolicy, if_match: str = "") -> str:
        """Replaces what `get_policy` shows, whole. Returns its new etag. Raises PreconditionFailed where `if_match` is another's."""
        request = bucket_pb2.PutBucketPolicyRequest(bucket=bucket, policy=policy_message(policy), if_match=if_match)
        ask = Ask("policy:grant and policy:revoke", f"{bucket} and {bucket}/*", repeatable=not if_match)
        return (await self._calls.unary("BucketService/PutBucketPolicy", request, bucket_pb2.PutBucketPolicyResponse, ask)).etag

    async def set_public(self, bucket: str, allow: bool) -> None:
        """Lets everybody read the objects of a bucket, or no longer."""
        request = auth_pb2.SetPublicAccessRequest(bucket=bucket, allow=allow)
        ask = Ask("policy:grant and object:read" if allow else "policy:revoke", f"{bucket}/*")
        await self._calls.unary("AuthService/SetPublicAccess", request, auth_pb2.SetPublicAccessResponse, ask)
