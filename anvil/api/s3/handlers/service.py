"""ListBuckets: what a principal may see of its tenant's buckets."""

from __future__ import annotations

from anvil.api.operations import buckets
from anvil.api.operations.listing import decode_token, encode_token
from anvil.api.operations.names import owner_id
from anvil.api.s3.call import Call
from anvil.api.s3.handlers.paging import limit_of
from anvil.api.s3.metadata import iso_date
from anvil.api.s3.xml import Xml
from anvil.base.errors import InvalidArgument
from anvil.base.limits import LIST_BUCKETS_MAX


async def list_buckets(call: Call) -> None:
    """The tenant's buckets for which `bucket:list` is granted, by name. Without `max-buckets` all of them, as in S3."""
    tenant = buckets.own_tenant(call)
    query = call.request.query
    limit = limit_of(query, "max-buckets", LIST_BUCKETS_MAX)
    if limit == 0:
        raise InvalidArgument(ArgumentName="max-buckets", ArgumentValue="0")
    prefix, region = query.get("prefix", ""), query.get("bucket-region", "")
    after = decode_token(query["continuation-token"]) if "continuation-token" in query else ""
    page, more = await buckets.page(call, tenant, prefix=prefix, after=after, limit=limit, region=region)
    xml = Xml()
    xml.open("ListAllMyBucketsResult", namespace=True)
    xml.open("Owner")
    xml.text("ID", owner_id(tenant))
    xml.text("DisplayName", tenant.name)
    xml.close("Owner")
    xml.open("Buckets")
    for bucket in page:
        xml.open("Bucket")
        xml.text("Name", bucket.name)
        xml.text("CreationDate", iso_date(bucket.created_us))
        xml.text("BucketRegion", bucket.region)
        xml.close("Bucket")
    xml.close("Buckets")
    if more:
        xml.text("ContinuationToken", encode_token(page[-1].name))
    if prefix:
        xml.text("Prefix", prefix)
    xml.close("ListAllMyBucketsResult")
    await call.respond_xml(200, xml.bytes())
