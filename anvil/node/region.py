"""What one process knows of its region: drives here and elsewhere, layouts, scheme; kept up to date in place.

Owns: the placement that everything in this process uses, and the remote drives in it. Invariant: whoever holds the placement sees the
newest view at its next question; a drive of this node is never reached over the network; a node that was removed uses its own drives as
little as the others do, so that it neither stores nor finds there what nobody else would. Not here: how the view is read and who changes
the region (`node/membership.py`), what a drive does (`shards`, `peers`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from anvil.base.config import StorageConfig
from anvil.engine.context import Placement
from anvil.engine.ports import Drive
from anvil.model.cluster import ClusterView, NodeId, NodeState
from anvil.model.layout import Layout
from anvil.model.records import DriveId
from anvil.model.scheme import Scheme, default_scheme
from anvil.node.health import Standing, lone
from anvil.peers.directory import Peers
from anvil.shards.drive import LocalDrive

log = logging.getLogger(__name__)


class Region:
    """`own`: this node; `local`: this process's drives; `peers`: None on a node that is alone. `view` has at least one layout."""

    def __init__(
        self, storage: StorageConfig, own: NodeId, view: ClusterView, local: Mapping[DriveId, LocalDrive], peers: Peers | None
    ) -> None:
        self._own = own
        self.local = dict(local)
        self.peers = peers
        self.view = view
        self._storage = storage
        self.placement = Placement(view.layouts, self._drives(view))
        self.scheme = scheme_of(storage, view.layout)

    def follow(self, view: ClusterView) -> None:
        """Use that view from now on. Layouts that were known and are not there any more were lost with the database's last moments."""
        before, self.view = self.view, view
        if view.layout.version < before.layout.version or (
            view.layout.version == before.layout.version and view.made_us[-1:] != before.made_us[-1:]
        ):
            log.error(
                "the regional database was set back: this is another layout than before; restart this node",
                extra={"version": view.layout.version},
            )
        self.scheme = scheme_of(self._storage, view.layout)
        self.placement.follow(view.layouts, self._drives(view))
        if view.layout.version != before.layout.version:
            log.info("a new layout is in use", extra={"version": view.layout.version, "drives": len(view.layout.drives)})

    def away(self, drive: Drive) -> bool:
        """Whether a drive that is not readable here is so for all of the region: its node is down, or answers and says so itself. Else it
        is the way from here to there."""
        node_id = next((one.node_id for one in self.view.drives if one.drive_id == drive.drive_id), b"")
        node = self.view.node(node_id)
        if drive.local or node is None or not node.leased or node.state in (NodeState.DOWN, NodeState.REMOVED):
            return True
        return self.peers is not None and self.peers.reachable(node_id)

    @property
    def cut_off_from(self) -> int:
        """How many other nodes hold a lease while not one of them answers; 0 where one does, or there is none."""
        up = [node.node_id for node in self.view.nodes if node.leased and node.node_id != self._own]
        if self.peers is None or any(self.peers.reachable(node_id) for node_id in up):
            return 0
        return len(up)

    def serves_alone(self) -> bool:
        """Whether this node's own drives hold k shards of every object."""
        layout, k = self.view.layout, self.scheme.k
        ours = {number for number, place in enumerate(layout.drives) if place.drive_id in self.local}
        return all(len(ours.intersection(row[: layout.primaries or None])) >= k for row in layout.rows())

    def _drives(self, view: ClusterView) -> dict[DriveId, Drive]:
        """The local ones first."""
        if self.peers is None:
            return {**self.local}
        self.peers.update(view.nodes)
        removed = {node.node_id for node in view.nodes if node.state is NodeState.REMOVED}
        # A disk that was carried to another node is that node's, though this process still looks for it in its folder.
        carried = {drive.drive_id for drive in view.drives if drive.node_id != self._own}
        drives: dict[DriveId, Drive] = {
            drive_id: drive for drive_id, drive in self.local.items() if self._own not in removed and drive_id not in carried
        }
        for drive in view.drives:
            if drive.drive_id not in drives and drive.state != "gone" and drive.node_id not in removed:
                drives[drive.drive_id] = self.peers.drive(drive)
        return drives


class QuorumWatch:
    """Whether what is written now finds its quorum. Computed anew only when a drive comes or goes, or the layout changes."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._known: dict[frozenset[int], bool] = {}
        self._version = 0

    def __call__(self, good: int, bad: frozenset[str]) -> Standing:
        """`good`: how many of this node's own drives take a write; `bad`: which do not, by label. What this process has met of them itself
        is not enough: a probe or a worker may have met more."""
        region = self._region
        if region.peers is None:
            return lone(region.scheme.k, region.scheme.quorum)(good, bad)
        layout = region.view.layout
        if layout.version != self._version:
            self._known, self._version = {}, layout.version
        drives = region.placement.drives
        away = frozenset(
            number
            for number, place in enumerate(layout.drives)
            if (drive := drives.get(place.drive_id)) is None or not drive.writable or (drive.local and drive.label in bad)
        )
        ours = frozenset(number for number, place in enumerate(layout.drives) if place.drive_id in region.local)
        up = {node.node_id for node in region.view.nodes if node.leased}
        return Standing(1, self._holds(layout, away), self._holds(layout, away | ours), len(up))

    def _holds(self, layout: Layout, away: frozenset[int]) -> bool:
        """Whether each partition has a quorum of drives that are not away."""
        held = self._known.get(away)
        if held is None:
            quorum = self._region.scheme.quorum
            held = self._known[away] = all(sum(index not in away for index in row) >= quorum for row in layout.rows())
        return held


def domains(layout: Layout) -> int:
    """How many failure domains a layout has: its nodes, or the drives of a lone node."""
    nodes = {drive.node_id for drive in layout.drives}
    return len(nodes) if len(nodes) > 1 else len(layout.drives)


def scheme_of(storage: StorageConfig, layout: Layout) -> Scheme:
    """The configured scheme, or the one that the number of failure domains suggests."""
    return Scheme.parse(storage.scheme) if storage.scheme else default_scheme(domains(layout))
