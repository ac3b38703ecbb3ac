"""docker/compose.yaml without an engine: each service in namespaces of its own, on a machine of its own.

    with Machine(tmp_path) as machine:
        machine.run("docker compose -f docker/compose.yaml up -d --wait")

What Docker Compose does with the file is done here with what the kernel has: a network, processes, a root and a host name for each service,
volumes that outlive it, health checks, published ports. Images are not there: their programs are those of this machine (`images.py`).
Invariant: everything is below one process of the test's; when that goes, the kernel ends all of it. Needs root.
"""
