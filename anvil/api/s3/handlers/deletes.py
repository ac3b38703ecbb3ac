"""DeleteObjects: up to 1,000 keys in one request, each authorized and answered for itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from anvil.api.operations import access, objects
from anvil.api.operations.names import check_key
from anvil.api.s3 import checksums, conditions
from anvil.api.s3.call import Call
from anvil.api.s3.documents import Deletion, deletions
from anvil.api.s3.errors import INTERNAL_MESSAGE, classify
from anvil.api.s3.payload import read_document
from anvil.api.s3.xml import Xml
from anvil.base.errors import AnvilError, MissingRequestBody, NotSupported
from anvil.base.limits import DELETES_IN_FLIGHT_MAX, XML_BODY_BYTES_MAX
from anvil.model.identity import Bucket
from anvil.model.records import NO_CONDITION, Condition

log = logging.getLogger(__name__)


async def delete_objects(call: Call) -> None:
    """Answers 200 with one line per key, in the order of the request; quiet mode leaves out what went well."""
    bucket = await access.visible(call, call.request.bucket, owner=call.request.owner)
    document, stated = await read_document(call, XML_BODY_BYTES_MAX)
    if not document:
        raise MissingRequestBody()
    checksums.require_some(stated)
    wanted = deletions(document)
    failures: list[BaseException | None] = [None] * len(wanted.objects)
    queue = iter(enumerate(wanted.objects))
    async with asyncio.TaskGroup() as group:
        for _ in range(min(len(wanted.objects), DELETES_IN_FLIGHT_MAX)):
            group.create_task(_work(call, bucket, queue, failures))
    xml = Xml()
    xml.open("DeleteResult", namespace=True)
    for line, failure in zip(wanted.objects, failures, strict=True):
        if failure is not None:
            _write_error(xml, line, failure)
        elif not wanted.quiet:
            xml.open("Deleted")
            xml.text("Key", line.key)
            if line.version is not None:
                xml.text("VersionId", line.version)
            xml.close("Deleted")
    xml.close("DeleteResult")
    await call.respond_xml(200, xml.bytes())


async def _work(call: Call, bucket: Bucket, queue: Iterator[tuple[int, Deletion]], failures: list[BaseException | None]) -> None:
    """Take lines off the shared queue until it is empty; many at once meet in one batch of the database."""
    for index, line in queue:
        try:
            await _delete(call, bucket, line)
        except AnvilError as error:
            failures[index] = error
        except Exception as error:
            log.exception("request %s: deleting one of its keys failed", call.request_id)
            failures[index] = error


async def _delete(call: Call, bucket: Bucket, line: Deletion) -> None:
    access.require_deletable(call, bucket, line.key)
    check_key(line.key)
    access.refuse_version(line.key, line.version)
    if line.unsupported is not None:
        raise NotSupported(f"The condition {line.unsupported} is not implemented.")
    condition = NO_CONDITION
    if line.etag is not None:
        condition = Condition(if_match=conditions.etags(line.etag.encode("utf-8")))
    await objects.delete(call, bucket, line.key, condition)


def _write_error(xml: Xml, line: Deletion, failure: BaseException) -> None:
    xml.open("Error")
    xml.text("Key", line.key)
    if line.version is not None:
        xml.text("VersionId", line.version)
    xml.text("Code", classify(failure).code)
    xml.text("Message", failure.message if isinstance(failure, AnvilError) else INTERNAL_MESSAGE)
    xml.close("Error")
