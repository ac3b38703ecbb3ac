"""One object of every kind that is stored differently, and how they are read back."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from tests.support.cluster import AnvilCluster

PART_BYTES = 5 << 20
# In the row (up to 2,047), copies in segments (up to 65,535), coded in segments (units up to 256 KiB), coded in files.
SIZES = (0, 1, 2_047, 2_048, 65_535, 65_536, 1 << 20, (1 << 20) + 1, 3_500_000, 9_000_000)


def put_all(s3: Any, bucket: str, rng: random.Random, prefix: str = "") -> dict[str, bytes]:
    """Every kind once, and one of parts. Returns the contents by key."""
    objects = {f"{prefix}{size}": rng.randbytes(size) for size in SIZES}
    for key, data in objects.items():
        s3.put_object(Bucket=bucket, Key=key, Body=data)
    key, data = f"{prefix}parts", rng.randbytes(2 * PART_BYTES + 1000)
    put_parts(s3, bucket, key, data)
    return {**objects, key: data}


def put_parts(s3: Any, bucket: str, key: str, data: bytes) -> None:
    where = {"Bucket": bucket, "Key": key}
    where["UploadId"] = s3.create_multipart_upload(**where)["UploadId"]
    parts = [
        {"PartNumber": number, "ETag": s3.upload_part(**where, PartNumber=number, Body=data[at : at + PART_BYTES])["ETag"]}
        for number, at in enumerate(range(0, len(data), PART_BYTES), 1)
    ]
    s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})


def assert_all(cluster: AnvilCluster, over: Iterable[int], bucket: str, objects: dict[str, bytes]) -> None:
    """Each of these nodes gives every object, byte for byte, and lists exactly these."""
    for number in over:
        s3 = cluster.s3(number)
        for key, data in objects.items():
            found = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            assert found == data, f"{key} over node {number}: {len(found)} bytes, wanted {len(data)}"
        listed = {item["Key"]: item["Size"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}
        assert listed == {key: len(data) for key, data in objects.items()}, f"over node {number}"
