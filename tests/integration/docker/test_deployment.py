"""The files of `docker/` that deploy the image: valid by the schemas of Compose and Kubernetes, of one mind with the image and with Anvil's
settings, and without a secret of their own. Nothing is fetched: the schemas are those that check-jsonschema and kubernetes-validate bring.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from anvil.base.config import CONFIG_FILE, load
from anvil.base.errors import InvalidSetting
from anvil.base.limits import STOP_MARGIN_S
from anvil.base.settings import Config, settings
from anvil.base.version import VERSION

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"
UID = 10001
NODES = ["node1", "node2", "node3"]
# Of the proxy and of Compose, not of a node.
OTHER_NAMES = {"ANVIL_SITE", "ANVIL_NODES", "ANVIL_IMAGE"}
# Oldest and newest release that the manifests are checked against.
KUBERNETES_VERSIONS = ["1.29", "1.37"]


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def manifests() -> list[tuple[Path, dict[str, Any]]]:
    """Every document of docker/kubernetes that Kubernetes itself takes."""
    return [
        (path, document)
        for path in sorted(KUBERNETES.glob("*.yaml"))
        for document in documents(path)
        if document["kind"] not in ("Kustomization", "ServiceMonitor")
    ]


def manifest(kind: str, name: str = "anvil") -> dict[str, Any]:
    [found] = [one for path, one in manifests() if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (DOCKER / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What docker/make-secrets.sh makes."""
    folder = tmp_path_factory.mktemp("made") / "secrets"
    subprocess.run([DOCKER / "make-secrets.sh", folder], check=True, capture_output=True)
    return folder


def pod() -> dict[str, Any]:
    found: dict[str, Any] = manifest("StatefulSet")["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    [found] = pod()["containers"]
    return dict(found)


def image_settings(dockerfile: str) -> dict[str, str]:
    """What the image itself sets."""
    return dict(re.findall(r"\b(ANVIL_\w+)=(\S+)", dockerfile))


def effective(environment: dict[str, str], mounted: str, folder: Path) -> Config:
    """The configuration of a node with these variables, where `mounted` is what it finds in `folder`. Raises InvalidSetting."""
    return load({name: value.replace(mounted, str(folder)) for name, value in environment.items()})


# -- schemas ----------------------------------------------------------------------------------------------------------------


def test_compose_is_valid(compose: dict[str, Any]) -> None:
    schema = json.loads(
        importlib.resources.files("check_jsonschema.builtin_schemas.vendor").joinpath("compose-spec.json").read_text()
    )
    validator = jsonschema.Draft202012Validator(schema)
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(compose)] == []
    broken = compose | {"services": compose["services"] | {"node1": compose["services"]["node1"] | {"helthcheck": {}}}}
    assert not validator.is_valid(broken)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_manifests_are_valid(version: str) -> None:
    assert {document["kind"] for _, document in manifests()} == {
        "ConfigMap",
        "Namespace",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Secret",
        "Service",
        "StatefulSet",
    }
    for path, document in manifests():
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{path.name}: {'.'.join(map(str, error.path))}: {error.message}")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest("Service") | {"spce": {}}, version, strict=True)


def test_kustomization_names_what_is_there() -> None:
    [kustomization] = documents(KUBERNETES / "kustomization.yaml")
    named = set(kustomization["resources"])
    assert {path.name for path in KUBERNETES.glob("*.yaml")} - named == {
        "kustomization.yaml",
        "secret.example.yaml",  # filled in by the operator
        "servicemonitor.yaml",  # a kind that not every cluster knows
    }
    assert kustomization["namespace"] == manifest("Namespace")["metadata"]["name"]
    [image] = kustomization["images"]
    assert container()["image"] == f"{image['name']}:{image['newTag']}" == f"anvil:{VERSION}"


def test_every_yaml_file_is_yaml() -> None:
    files = [*DOCKER.rglob("*.yaml"), *DOCKER.rglob("*.yml")]
    assert len(files) >= 12
    for path in files:
        assert documents(path), path


# -- one mind with Anvil's settings -----------------------------------------------------------------------------------------


def test_every_name_is_a_setting() -> None:
    known = {item.env for item in settings()} | {f"{item.env}_FILE" for item in settings() if item.secret} | {CONFIG_FILE}
    for path in [DOCKER / "Dockerfile", DOCKER / "compose.yaml", DOCKER / "make-secrets.sh", *KUBERNETES.glob("*.yaml")]:
        text = re.sub(r"Without this Kubernetes sets .*\n", "", path.read_text())
        unknown = set(re.findall(r"\bANVIL_[A-Z_]*[A-Z]\b", text)) - known
        allowed = OTHER_NAMES if path.name == "compose.yaml" else set()
        assert unknown <= allowed, f"{path.name} names {unknown - allowed}"


def test_compose_nodes_have_a_valid_configuration(compose: dict[str, Any], dockerfile: str, secrets: Path) -> None:
    """Each node's whole configuration, by Anvil's own checks, with the secrets that make-secrets.sh makes."""
    seen = []
    for name in NODES:
        environment = {
            key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)  # nothing set beside the file
            for key, value in compose["services"][name]["environment"].items()
        }
        config = effective(image_settings(dockerfile) | environment, "/run/secrets", secrets)
        assert config.cluster.address == f"{name}:7443"
        assert config.api.listen.port == 50051
        assert config.node.workers == 2
        assert config.api.public_urls == ("https://localhost",)
        assert config.metrics.token
        assert config.security.cluster_secret
        assert config.database.global_url != config.database.regional_url
        seen.append(config)
    assert [config.cluster.init_cluster for config in seen] == [True, False, False]
    assert len({config.security.encryption_key for config in seen}) == 1
    for database in ("global", "regional"):
        url = (secrets / f"{database}_database_url").read_text().strip()
        password = (secrets / f"{database}_database_password").read_text().strip()
        service = compose["services"][f"{database}-database"]
        user, name = service["environment"]["POSTGRES_USER"], service["environment"]["POSTGRES_DB"]
        assert url == f"postgresql://{user}:{password}@{database}-database:5432/{name}"
        assert service["secrets"] == [f"{database}_database_password"]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_kubernetes_nodes_have_a_valid_configuration(index: int, dockerfile: str, secrets: Path) -> None:
    here = container()
    environment = {str(name): str(value) for name, value in manifest("ConfigMap")["data"].items()}
    for item in here["env"]:
        if "value" in item:
            value = item["value"].replace("$(POD_NAME)", f"anvil-{index}").replace("$(POD_NAMESPACE)", "anvil")
        else:
            path = item["valueFrom"]["fieldRef"]["fieldPath"]
            value = {"metadata.name": f"anvil-{index}", "metadata.namespace": "anvil"}.get(path, "zone-a")
        environment[item["name"]] = value
    # What its shell adds, before it becomes tini.
    script = here["command"][2].replace("exec tini -- anvil server", 'echo "$ANVIL_INIT_CLUSTER"')
    added = subprocess.run(
        ["/bin/sh", "-c", script], env={"POD_NAME": f"anvil-{index}"}, capture_output=True, text=True, check=True
    )
    environment["ANVIL_INIT_CLUSTER"] = added.stdout.strip()
    config = effective(image_settings(dockerfile) | environment, "/run/secrets/anvil", secrets)
    assert config.cluster.init_cluster is (index == 0)
    service = manifest("StatefulSet")["spec"]["serviceName"]
    assert config.cluster.address == f"anvil-{index}.{service}.anvil.svc:7443"
    assert config.cluster.zone == "zone-a"
    assert config.metrics.token
    assert environment["ANVIL_WORKERS"] == here["resources"]["requests"]["cpu"]


def test_an_empty_secret_is_refused(dockerfile: str, tmp_path: Path) -> None:
    """The example of the secret, applied as it is, starts nothing."""
    for name, value in manifest("Secret")["stringData"].items():
        assert value == ""
        (tmp_path / name).write_text(value)
    environment = {item["name"]: item["value"] for item in container()["env"] if item["name"].endswith("_FILE")}
    environment |= {str(name): str(value) for name, value in manifest("ConfigMap")["data"].items()}
    with pytest.raises(InvalidSetting):
        effective(
            image_settings(dockerfile) | environment | {"ANVIL_PUBLIC_CLUSTER_ADDR": "a:7443"}, "/run/secrets/anvil", tmp_path
        )


def test_nothing_stops_a_node_before_it_has_drained(compose: dict[str, Any]) -> None:
    node = Config().node
    margin_s = STOP_MARGIN_S * 3  # workers, then the background process
    assert (
        float(compose["services"]["node1"]["stop_grace_period"].removesuffix("s")) > node.drain_notice_s + node.drain_s + margin_s
    )
    data = manifest("ConfigMap")["data"]
    notice_s, drain_s = float(data["ANVIL_DRAIN_NOTICE_S"]), float(data["ANVIL_DRAIN_S"])
    assert pod()["terminationGracePeriodSeconds"] > notice_s + drain_s + margin_s
    probe = container()["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"] < notice_s


# -- one mind with the image ------------------------------------------------------------------------------------------------


def test_the_image_is_what_the_manifests_expect(compose: dict[str, Any], dockerfile: str) -> None:
    final = dockerfile.rsplit("FROM ${BASE}\n", maxsplit=1)[-1]
    assert re.search(rf"^USER {UID}:{UID}$", final, re.MULTILINE)
    assert re.search(r"^EXPOSE 50051 7443$", final, re.MULTILINE)
    assert 'ENTRYPOINT ["/usr/bin/tini", "--", "anvil"]' in final
    assert re.search(r'^HEALTHCHECK .*CMD \["anvil", "health"\]$', final, re.MULTILINE)
    assert f'org.opencontainers.image.version="{VERSION}"' in final
    given = image_settings(final)
    assert given["ANVIL_API_LISTEN_ADDR"].endswith(":50051")
    assert f"VOLUME {given['ANVIL_DATA_DIR']}\n" in final
    whole = final.replace("\\\n", " ")
    folders = set(re.search(r"install -d -m 0700 -o anvil -g anvil (.*)", whole)[1].split())  # type: ignore[index]
    mounts = {mount.split(":")[1] for name in NODES for mount in compose["services"][name]["volumes"]}
    claimed = {mount["mountPath"] for mount in container()["volumeMounts"] if mount["name"] not in ("tmp", "secrets")}
    assert mounts | claimed <= folders, "a volume takes over the owner of the image's folder"


def test_no_compiler_and_no_test_comes_into_the_image(dockerfile: str) -> None:
    final = dockerfile.rsplit("FROM ${BASE}\n", maxsplit=1)[-1]
    assert not re.search(r"\b(gcc|libc6-dev|python3-dev|python3-venv|pip)\b", final)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not [line for line in ignored if re.match(r"!(tests|bench|docs|docker/secrets|\.git)", line)]
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE) for name in line.split()]
    assert "requirements.lock" in copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


def test_the_image_installs_what_the_project_names() -> None:
    """The layer of dependencies is that of running; the build's stays behind."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    printed = {
        kind: subprocess.run(
            [sys.executable, ROOT / "tools" / "requirements.py", "--only", kind], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        for kind in ("run", "build")
    }
    assert printed == {"run": project["project"]["dependencies"], "build": project["build-system"]["requires"]}


def test_nodes_write_only_into_volumes(compose: dict[str, Any]) -> None:
    for name in NODES:
        node = compose["services"][name]
        assert node["read_only"] is True
        assert node["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in node["security_opt"]
        assert [line.split(":")[0] for line in node["tmpfs"]] == ["/tmp"]
        drives = node["environment"]["ANVIL_DRIVES"].split(",")
        volumes = {"backup": "/backup", name: "/var/lib/anvil"} | {f"{name}-drive{drive[-1]}": drive for drive in drives}
        assert dict(mount.split(":") for mount in node["volumes"]) == volumes, "only backups are shared"
    security = container()["securityContext"]
    assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    whole = pod()["securityContext"]
    assert (whole["runAsNonRoot"], whole["runAsUser"], whole["runAsGroup"], whole["fsGroup"]) == (True, UID, UID, UID)
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    claims = {claim["metadata"]["name"] for claim in manifest("StatefulSet")["spec"]["volumeClaimTemplates"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert set(mounts) == claims | {volume["name"] for volume in pod()["volumes"]}
    drives = manifest("ConfigMap")["data"]["ANVIL_DRIVES"].split(",")
    assert {mounts[name] for name in claims} == {"/var/lib/anvil", *drives}


# -- Kubernetes' own traps --------------------------------------------------------------------------------------------------


def test_kubernetes_adds_no_setting_of_its_own() -> None:
    """It would set ANVIL_SERVICE_HOST and others for the service `anvil`, which `load` refuses as unknown."""
    assert manifest("Service")["metadata"]["name"] == "anvil"
    with pytest.raises(InvalidSetting):
        load({"ANVIL_SERVICE_HOST": "10.0.0.1"})
    assert pod()["enableServiceLinks"] is False
    assert pod()["automountServiceAccountToken"] is False


def test_kubernetes_selectors_and_ports_fit() -> None:
    labels = manifest("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"api": 50051, "cluster": 7443}
    assert manifest("StatefulSet")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("PodDisruptionBudget")["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
    for name, port in (("anvil", "api"), ("anvil-nodes", "cluster")):
        spec = manifest("Service", name)["spec"]
        assert spec["selector"] == labels
        assert [(one["port"], one["targetPort"]) for one in spec["ports"]] == [(ports[port], port)]
    headless = manifest("Service", "anvil-nodes")["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)
    probes = {name: container()[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {"startup": "/", "liveness": "/", "readiness": "/ready"}
    assert {probe["port"] for probe in probes.values()} == {"api"}
    [anti] = pod()["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    [spread] = pod()["topologySpreadConstraints"]
    for rule, key in ((anti, "kubernetes.io/hostname"), (spread, "topology.kubernetes.io/zone")):
        assert (rule["topologyKey"], rule["labelSelector"]["matchLabels"]) == (key, labels)


def test_the_cluster_port_is_for_nodes_alone(compose: dict[str, Any]) -> None:
    labels = manifest("StatefulSet")["spec"]["selector"]["matchLabels"]
    spec = manifest("NetworkPolicy")["spec"]
    assert (spec["podSelector"]["matchLabels"], spec["policyTypes"]) == (labels, ["Ingress"])
    assert [[port["port"] for port in rule["ports"]] for rule in spec["ingress"]] == [["api"], ["cluster"]]
    assert spec["ingress"][1]["from"] == [{"podSelector": {"matchLabels": labels}}]
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert {port.split(":")[-1] for port in published} == {"80", "443", "9090", "3000"}
    assert all(port.startswith("127.0.0.1:") for port in published if port.split(":")[-1] in ("9090", "3000"))


# -- the other services, and the secrets ------------------------------------------------------------------------------------


def test_images_are_pinned_and_files_are_there(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name in NODES:
            continue
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", service["image"]), f"{name}: {service['image']}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in compose["volumes"], volume
    assert (DOCKER / compose["services"]["node1"]["build"]["dockerfile"]).parent.name == "docker"


def test_caddy_and_prometheus_know_every_node(compose: dict[str, Any]) -> None:
    addresses = [f"{name}:50051" for name in NODES]
    caddy = compose["services"]["caddy"]["environment"]
    assert caddy["ANVIL_NODES"].split() == addresses
    assert set(caddy) <= set(re.findall(r"ANVIL_\w+", (DOCKER / "caddy" / "Caddyfile").read_text()))
    [prometheus] = documents(DOCKER / "prometheus" / "prometheus.yml")
    [job] = [one for one in prometheus["scrape_configs"] if one["job_name"] == "anvil"]
    assert job["static_configs"] == [{"targets": addresses}]
    secret = compose["services"]["node1"]["environment"]["ANVIL_METRICS_TOKEN_FILE"]
    assert job["authorization"] == {"type": "Bearer", "credentials_file": secret}
    assert "metrics_token" in compose["services"]["prometheus"]["secrets"]
    [monitor] = documents(KUBERNETES / "servicemonitor.yaml")
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": manifest("Secret")["metadata"]["name"], "key": "metrics_token"}
    assert endpoint["port"] in [port["name"] for port in manifest("Service")["spec"]["ports"]]


def test_grafana_finds_its_dashboards_and_its_data(compose: dict[str, Any]) -> None:
    [sources] = documents(DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")
    [provided] = documents(DOCKER / "grafana" / "provisioning" / "dashboards" / "anvil.yaml")
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
    mounts = [volume.split(":") for volume in compose["services"]["grafana"]["volumes"]]
    assert ["./grafana", provided["providers"][0]["options"]["path"], "ro"] in mounts


def test_secrets_are_made_once_and_each_is_its_own(compose: dict[str, Any], secrets: Path, tmp_path: Path) -> None:
    named = {Path(secret["file"]).name: secret["file"] for secret in compose["secrets"].values()}
    assert {path.name for path in secrets.iterdir()} == set(named)
    assert set(named.values()) == {f"./secrets/{name}" for name in named}
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    values = {path.name: path.read_text() for path in secrets.iterdir()}
    assert len(set(values.values())) == len(values)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o444 for path in secrets.iterdir())
    copy = tmp_path / "again"
    shutil.copytree(secrets, copy)
    (copy / "metrics_token").unlink()
    done = subprocess.run([DOCKER / "make-secrets.sh", copy], check=True, capture_output=True, text=True)
    assert done.stdout.strip().endswith("made now: metrics_token")
    again = {path.name: path.read_text() for path in copy.iterdir()}
    assert {name for name in values if values[name] != again[name]} == {"metrics_token"}


def test_kubernetes_secret_is_what_the_script_makes_beside_the_urls(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    done = subprocess.run([DOCKER / "make-secrets.sh", "--kubernetes", folder], check=True, capture_output=True, text=True)
    urls = {"global_database_url", "regional_database_url"}
    assert {path.name for path in folder.iterdir()} | urls == set(manifest("Secret")["stringData"])
    assert all(f"{folder}/{name}" in done.stderr for name in urls)
    files = {Path(item["value"]).name for item in container()["env"] if item["name"].endswith("_FILE")}
    assert files == set(manifest("Secret")["stringData"])


def test_nothing_secret_can_be_committed_or_built_in() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/docker/secrets/", "/docker/kubernetes/secrets/"} <= set(ignored)
