"""Pages of keys. The seeking is done beside the data, by `list_page` (migrations/regional/0003_functions.sql).

Invariant: a page costs what it returns: each common prefix is one seek. Not here: encoding of names and tokens (`api`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from anvil.base.limits import LIST_KEYS_MAX
from anvil.meta.coalesce import Operation, Query, Rows
from anvil.meta.rows import unpack_checksum
from anvil.model.records import ListEntry, ListPage, ListQuery

# The function's rows come in its own order: nothing but a nested loop can join a LATERAL function.
_LIST_SQL: Final = """
    SELECT i.ord, l.* FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::int[])
        WITH ORDINALITY AS i (bucket_id, prefix, delimiter, after_name, page_limit, ord)
    CROSS JOIN LATERAL list_page(i.bucket_id, i.prefix, i.delimiter, i.after_name, i.page_limit) AS l"""


def _list_args(items: Sequence[ListQuery]) -> Sequence[object]:
    return [
        [item.bucket_id for item in items],
        [item.prefix for item in items],
        [item.delimiter for item in items],
        [item.after for item in items],
        [min(item.limit, LIST_KEYS_MAX) + 1 if item.limit > 0 else 0 for item in items],
    ]


def _list_results(items: Sequence[ListQuery], rows: Rows) -> Sequence[ListPage]:
    found: list[list[tuple[str, ListEntry | None]]] = [[] for _ in items]
    for ord_, name, is_prefix, size, etag, modified_us, checksum in rows:
        entry = None if is_prefix else ListEntry(name, size, etag, modified_us, unpack_checksum(checksum))
        found[ord_ - 1].append((name, entry))
    pages = []
    for item, names in zip(items, found, strict=True):
        limit = min(item.limit, LIST_KEYS_MAX)
        page = names[:limit]
        pages.append(
            ListPage(
                entries=tuple(entry for _, entry in page if entry is not None),
                prefixes=tuple(name for name, entry in page if entry is None),
                next_after=page[-1][0] if len(names) > limit and page else None,
            )
        )
    return pages


LIST: Final = Operation("list_objects", Query(_LIST_SQL, _list_args, _list_results), rows_max=8)
