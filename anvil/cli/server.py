"""`anvil server`: options for the settings that people change by hand, then the supervisor."""

from __future__ import annotations

import click

from anvil.base.config import load


@click.command()
@click.option("--config", "config_file", metavar="FILE", help="TOML file with settings.")
@click.option("--data-dir", metavar="DIR", help="Folder for everything the node keeps (./anvil-data).")
@click.option("--drives", metavar="DIR,...", help="Folders for object data, one per disk.")
@click.option("--listen", metavar="HOST:PORT", help="Address of the API (127.0.0.1:50051).")
@click.option("--region", metavar="NAME", help="Region of this node (us-east-1).")
@click.option("--workers", metavar="N", help="Worker processes (one per CPU).")
@click.option("--scheme", metavar="K+M", help="Erasure coding, data+parity (by number of drives).")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@click.option("--init-cluster", is_flag=True, help="Serve before another node was met: for the first one of a region.")
@click.option("--dev", is_flag=True, help="Dev mode: short secrets and grace times are allowed.")
def command(
    config_file: str | None,
    data_dir: str | None,
    drives: str | None,
    listen: str | None,
    region: str | None,
    workers: str | None,
    scheme: str | None,
    log_level: str | None,
    init_cluster: bool,
    dev: bool,
) -> int:
    """Start a node in the foreground. `anvil config` lists all settings."""
    flags = {
        "ANVIL_DATA_DIR": data_dir,
        "ANVIL_DRIVES": drives,
        "ANVIL_API_LISTEN_ADDR": listen,
        "ANVIL_REGION": region,
        "ANVIL_WORKERS": workers,
        "ANVIL_SCHEME": scheme,
        "ANVIL_LOG_LEVEL": log_level,
        "ANVIL_INIT_CLUSTER": "true" if init_cluster else None,
        "ANVIL_DEV_MODE": "true" if dev else None,
    }
    config = load(config_file=config_file, flags=flags)
    from anvil.node.supervisor import run

    return run(config)
