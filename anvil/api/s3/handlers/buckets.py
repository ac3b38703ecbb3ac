"""Operations on a bucket as such: create, head, location, delete, and the two configurations whose answer is known without any.

GetBucketVersioning and GetBucketAcl are answered truthfully (never versioned; the owner alone) because clients ask by
default; the calls that would change them are 501.
"""

from __future__ import annotations

from anvil.api.operations import access, buckets
from anvil.api.operations.names import check_new_bucket_name, owner_id
from anvil.api.s3.call import Call
from anvil.api.s3.documents import location_constraint
from anvil.api.s3.payload import read_document
from anvil.api.s3.xml import Xml
from anvil.base.limits import XML_BODY_BYTES_MAX
from anvil.model.identity import Bucket, Tenant

DEFAULT_REGION = "us-east-1"  # the region whose LocationConstraint is empty
_XSI = "http://www.w3.org/2001/XMLSchema-instance"


async def create_bucket(call: Call) -> None:
    name = call.request.bucket
    tenant = buckets.creator(call, name)
    document, _ = await read_document(call, XML_BODY_BYTES_MAX)
    check_new_bucket_name(name)  # a bad name is told before a bad document
    await buckets.create(call, tenant, name, location_constraint(document))
    await call.respond(200, [(b"location", b"/" + name.encode("ascii"))])


async def _described(call: Call) -> Bucket:
    return await access.described(call, call.request.bucket, call.request.owner)


async def head_bucket(call: Call) -> None:
    bucket = await _described(call)
    await call.respond(
        200,
        [
            (b"x-amz-bucket-region", bucket.region.encode("ascii")),
            (b"x-amz-access-point-alias", b"false"),
            (b"content-type", b"application/xml"),
            (b"content-length", b"0"),
        ],
    )


async def get_bucket_location(call: Call) -> None:
    bucket = await access.located(call, call.request.bucket, call.request.owner)
    xml = Xml()
    if bucket.region == DEFAULT_REGION:
        xml.raw('<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>')
    else:
        xml.open("LocationConstraint", namespace=True)
        xml.raw(bucket.region)
        xml.close("LocationConstraint")
    await call.respond_xml(200, xml.bytes())


async def delete_bucket(call: Call) -> None:
    await buckets.delete(call, call.request.bucket, call.request.owner)
    await call.respond(204)


async def get_bucket_versioning(call: Call) -> None:
    """A bucket that was never versioned has an empty configuration."""
    await _described(call)
    xml = Xml()
    xml.open("VersioningConfiguration", namespace=True)
    xml.close("VersioningConfiguration")
    await call.respond_xml(200, xml.bytes())


async def get_bucket_acl(call: Call) -> None:
    bucket = await _described(call)
    await call.respond_xml(200, _acl(bucket.tenant))


async def _with_object(call: Call) -> Bucket:
    """The bucket of the request, whose object is there and may be read."""
    request = call.request
    bucket = await access.readable(call, request.bucket, request.key, request.owner)
    await access.find(call, bucket, request.key, content=False, version=request.version)
    return bucket


async def get_object_acl(call: Call) -> None:
    bucket = await _with_object(call)
    await call.respond_xml(200, _acl(bucket.tenant))


async def get_object_tagging(call: Call) -> None:
    """No object has tags. The AWS CLI asks before it copies a large object."""
    await _with_object(call)
    xml = Xml()
    xml.open("Tagging", namespace=True)
    xml.open("TagSet")
    xml.close("TagSet")
    xml.close("Tagging")
    await call.respond_xml(200, xml.bytes())


def _acl(tenant: Tenant) -> bytes:
    """The owner, with full control."""
    xml = Xml()
    xml.open("AccessControlPolicy", namespace=True)
    xml.open("Owner")
    xml.text("ID", owner_id(tenant))
    xml.text("DisplayName", tenant.name)
    xml.close("Owner")
    xml.open("AccessControlList")
    xml.open("Grant")
    xml.raw(f'<Grantee xmlns:xsi="{_XSI}" xsi:type="CanonicalUser">')
    xml.text("ID", owner_id(tenant))
    xml.text("DisplayName", tenant.name)
    xml.close("Grantee")
    xml.text("Permission", "FULL_CONTROL")
    xml.close("Grant")
    xml.close("AccessControlList")
    xml.close("AccessControlPolicy")
    return xml.bytes()
