"""Configuration: order of sources, refusals, and the generated reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anvil.base import config_reference
from anvil.base.config import child_environment, load
from anvil.base.errors import InvalidSetting
from anvil.base.setting_values import Address, parse_address, parse_master_key
from anvil.base.settings import settings
from anvil.base.version import VERSION

GOOD_KEY = bytes(range(32)).hex()
GOOD_SECRET = "Zb4kQ1xw9Tn7Lr2Vy5Mc8Gd3Hf6Js0Pa"
EXTERNAL = {
    "ANVIL_GLOBAL_DATABASE_URL": "postgresql://anvil@db/global",
    "ANVIL_REGIONAL_DATABASE_URL": "postgresql://anvil@db/regional",
}
SECRETS = {
    "ANVIL_SECRET_ENCRYPTION_KEY": GOOD_KEY,
    "ANVIL_JWT_SECRET": GOOD_SECRET,
    "ANVIL_CLUSTER_SECRET": GOOD_SECRET[::-1],
}


def test_without_configuration_the_documented_defaults_hold() -> None:
    config = load({})
    assert config.api.listen == Address("127.0.0.1", 50051)
    assert config.node.region == "us-east-1"
    assert config.node.data_path == Path("anvil-data").absolute()
    assert config.storage.drives == (str(Path("anvil-data/drives/0").absolute()),)
    assert config.database.embedded
    assert config.node.worker_count >= 1
    assert not config.node.dev_mode


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "anvil.toml"
    file.write_text('[node]\nregion = "file-1"\nworkers = 3\n[log]\nlevel = "error"\n[storage]\ndrives = ["/a", "/b"]\n')
    config = load({"ANVIL_REGION": "env-1", "ANVIL_WORKERS": "4", "ANVIL_CONFIG_FILE": str(file)}, flags={"ANVIL_WORKERS": "5"})
    assert (config.log.level, config.node.region, config.node.workers) == ("error", "env-1", 5)
    assert config.storage.drives == ("/a", "/b")


def test_secrets_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "jwt").write_text(GOOD_SECRET + "\n")
    assert load({"ANVIL_JWT_SECRET_FILE": str(tmp_path / "jwt")}).security.jwt_secret == GOOD_SECRET


def test_an_empty_variable_is_an_unset_one() -> None:
    assert load({"ANVIL_REGION": "", "ANVIL_DRIVES": "", "ANVIL_JWT_SECRET_FILE": ""}).node.region == "us-east-1"


def test_public_addresses_are_hosts_or_urls() -> None:
    api = load({"ANVIL_PUBLIC_API_ADDR": "https://s3.example.com, store.local:9000"}).api
    assert api.public_urls == ("https://s3.example.com", "http://store.local:9000")
    assert api.public_hosts == ("s3.example.com", "store.local:9000")
    assert load({}).api.public_urls == ("http://127.0.0.1:50051",)
    assert load({}).api.public_hosts == ()


REFUSED = [
    ({"ANVIL_REGOIN": "x"}, "Did you mean ANVIL_REGION?"),
    ({"ANVIL_JWT_SECRT_FILE": "x"}, "Did you mean ANVIL_JWT_SECRET_FILE?"),
    ({"ANVIL_WORKERS": "many"}, "a whole number from 0 to 256"),
    ({"ANVIL_WORKERS": "-1"}, "a whole number from 0 to 256"),
    ({"ANVIL_DRAIN_S": "nan"}, "a number from 0 to 3600"),
    ({"ANVIL_DEV_MODE": "perhaps"}, "true or false"),
    ({"ANVIL_LOG_LEVEL": "loud"}, "one of debug, info, warning, error"),
    ({"ANVIL_REGION": "EU West"}, "ANVIL_REGION"),
    ({"ANVIL_API_LISTEN_ADDR": "localhost"}, "not host:port"),
    ({"ANVIL_API_LISTEN_ADDR": "localhost:70000"}, "not host:port"),
    ({"ANVIL_PUBLIC_API_ADDR": "ftp://x"}, "ANVIL_PUBLIC_API_ADDR"),
    ({"ANVIL_PUBLIC_API_ADDR": "http://user@x"}, "ANVIL_PUBLIC_API_ADDR"),
    ({"ANVIL_PUBLIC_API_ADDR": "host:port"}, "ANVIL_PUBLIC_API_ADDR"),
    ({"ANVIL_BASE_DOMAINS": "S3.Example.com"}, "lower-case domain"),
    ({"ANVIL_TRUSTED_PROXIES": "proxy"}, "an address or a network"),
    ({"ANVIL_SCHEME": "4+2"}, "needs 6 drives, and ANVIL_DRIVES has 1"),
    ({"ANVIL_SCHEME": "4/2"}, "not of the form data+parity"),
    ({"ANVIL_SCHEME": "17+1"}, "1 to 16"),
    ({"ANVIL_DRIVES": "/a,/b,/a"}, "twice"),
    ({"ANVIL_DRIVES": "/a,/a/b"}, "inside one another"),
    ({"ANVIL_GC_GRACE_S": "60"}, "ANVIL_GC_GRACE_S"),
    ({"ANVIL_METADATA_DUMP_S": "86400", "ANVIL_GC_GRACE_S": "86400"}, "ANVIL_METADATA_DUMP_S"),
    ({"ANVIL_GLOBAL_DATABASE_URL": "postgresql://x/y"}, "ANVIL_REGIONAL_DATABASE_URL is not set"),
    ({**EXTERNAL, "ANVIL_GLOBAL_DATABASE_URL": "mysql://x/y"}, "must be a URL"),
    ({**EXTERNAL}, "ANVIL_SECRET_ENCRYPTION_KEY is not set"),
    ({"ANVIL_SECRET_ENCRYPTION_KEY": "abc"}, "32 bytes"),
    ({"ANVIL_SECRET_ENCRYPTION_KEY": "00" * 32}, "not random"),
    ({"ANVIL_JWT_SECRET": "hunter2"}, "at least 32"),
    ({"ANVIL_CLUSTER_SECRET": "changeme" * 5}, "default or too short"),
    ({"ANVIL_JWT_SECRET": GOOD_SECRET, "ANVIL_CLUSTER_SECRET": GOOD_SECRET}, "are equal"),
    ({"ANVIL_METRICS_TOKEN": "x"}, "ANVIL_METRICS_TOKEN"),
    ({"ANVIL_JWT_SECRET_FILE": "/nonexistent"}, "cannot be read"),
    ({"ANVIL_JWT_SECRET_FILE": "/nonexistent", "ANVIL_JWT_SECRET": GOOD_SECRET}, "both set"),
    ({"ANVIL_CONFIG_FILE": "/nonexistent"}, "cannot be read"),
]


@pytest.mark.parametrize(("environ", "told"), REFUSED, ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_what_is_wrong_is_said_in_one_line(environ: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        load(environ)
    assert told in caught.value.message
    assert "\n" not in caught.value.message
    for name, value in environ.items():
        if "SECRET" in name and not name.endswith("_FILE"):
            assert value not in caught.value.message


TOML_REFUSED = [
    ("[node]\nregin = 'x'\n", "Did you mean node.region?"),
    ("region = 'x'\n", "outside of any table"),
    ("[node]\nworkers = 'x'\n", "whole number"),
    ("[node\n", "not TOML"),
    ("[stoarge]\nscheme = '1+0'\n", "Did you mean storage.scheme?"),
]


@pytest.mark.parametrize(("text", "told"), TOML_REFUSED)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "anvil.toml").write_text(text)
    with pytest.raises(InvalidSetting, match=re.escape(told)):
        load({}, config_file=str(tmp_path / "anvil.toml"))


def test_dev_mode_allows_what_production_refuses() -> None:
    config = load({"ANVIL_DEV_MODE": "on", "ANVIL_JWT_SECRET": "dev", "ANVIL_GC_GRACE_S": "0", **EXTERNAL})
    assert config.security.jwt_secret == "dev"


def test_external_databases_with_all_secrets_are_accepted() -> None:
    config = load(EXTERNAL | SECRETS)
    assert not config.database.embedded
    assert config.security.master_key == bytes(range(32))


def test_no_secret_is_in_a_repr_or_in_the_effective_values() -> None:
    config = load(EXTERNAL | SECRETS | {"ANVIL_METRICS_TOKEN": GOOD_SECRET[:20]})
    shown = repr(config) + repr(config_reference.effective(config))
    for secret in config.secret_values:
        assert secret not in shown
    assert len(config.secret_values) == 6


def test_addresses() -> None:
    assert parse_address("[::1]:80") == Address("::1", 80)
    assert parse_address(":80") == Address("0.0.0.0", 80)
    assert str(Address("::1", 80)) == "[::1]:80"


def test_a_master_key_is_hex_or_base64() -> None:
    assert parse_master_key("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=") == bytes(range(32))


def test_every_setting_is_documented() -> None:
    page = config_reference.markdown()
    for item in settings():
        assert f"`{item.env}`" in page
        assert item.text in page.replace("\\|", "|")
        assert item.env in config_reference.text()


def test_the_committed_reference_is_up_to_date() -> None:
    committed = Path(__file__).parents[3] / "docs" / "CONFIGURATION.md"
    assert committed.read_text() == config_reference.markdown(), "run: anvil config --write docs/CONFIGURATION.md"


def test_children_inherit_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANVIL_JWT_SECRET", GOOD_SECRET)
    assert not any(name.startswith("ANVIL_") for name in child_environment())


def test_the_version_is_that_of_the_package() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert f'version = "{VERSION}"' in project


def test_tls_settings_make_sense_together() -> None:
    pair = {"ANVIL_TLS_CERT": "tls/cert.pem", "ANVIL_TLS_KEY": "/k.pem"}
    alone = load(pair).api  # neither file exists: what needs them is refused when a node starts
    assert (alone.tls_cert, alone.tls_key) == (str(Path("tls/cert.pem").absolute()), "/k.pem")
    assert (alone.tls_listen, alone.public_urls) == (None, ("https://127.0.0.1:50051",))
    assert load({**pair, "ANVIL_PUBLIC_API_ADDR": "store.local:9000"}).api.public_urls == ("https://store.local:9000",)
    both = load({**pair, "ANVIL_TLS_LISTEN_ADDR": ":50443"}).api
    assert (both.tls_listen, both.public_urls) == (Address("0.0.0.0", 50443), ("http://127.0.0.1:50051",))
    assert load({**pair, "ANVIL_API_LISTEN_ADDR": ":0", "ANVIL_TLS_LISTEN_ADDR": ":0"}).api.tls_listen == Address("0.0.0.0", 0)
    assert load({}).api.public_urls == ("http://127.0.0.1:50051",)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ANVIL_TLS_CERT": "/c"}, "ANVIL_TLS_KEY is not set, and ANVIL_TLS_CERT is: set both"),
        ({"ANVIL_TLS_KEY": "/k"}, "ANVIL_TLS_CERT is not set, and ANVIL_TLS_KEY is: set both"),
        ({"ANVIL_TLS_LISTEN_ADDR": ":1"}, "ANVIL_TLS_LISTEN_ADDR needs a certificate"),
        (
            {"ANVIL_TLS_CERT": "/c", "ANVIL_TLS_KEY": "/k", "ANVIL_TLS_LISTEN_ADDR": "x"},
            "ANVIL_TLS_LISTEN_ADDR='x' is not host:port",
        ),
        (
            {"ANVIL_TLS_CERT": "/c", "ANVIL_TLS_KEY": "/k", "ANVIL_TLS_LISTEN_ADDR": "127.0.0.1:50051"},
            "ANVIL_TLS_LISTEN_ADDR and ANVIL_API_LISTEN_ADDR are both 127.0.0.1:50051",
        ),
        ({"ANVIL_TLS_CERT": "/c", "ANVIL_TLS_KEY": "-----BEGIN KEY-----\nx"}, "ANVIL_TLS_KEY must be the path"),
    ],
)
def test_tls_settings_that_do_not_fit_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        load(environ)
    assert refused.value.message.startswith(message)
    assert "\n" not in refused.value.message


CLUSTERED = {
    "ANVIL_GLOBAL_DATABASE_URL": "postgresql://u:p@db/global",
    "ANVIL_REGIONAL_DATABASE_URL": "postgresql://u:p@db/regional",
    "ANVIL_DEV_MODE": "true",
    "ANVIL_CLUSTER_LISTEN_ADDR": "10.0.0.1:7443",
}


def test_a_node_of_a_cluster() -> None:
    config = load({**CLUSTERED, "ANVIL_ZONE": "rack-7", "ANVIL_SCHEME": "4+2"})
    assert str(config.cluster.listen) == "10.0.0.1:7443"
    assert config.cluster.address == "10.0.0.1:7443"
    assert load({**CLUSTERED, "ANVIL_PUBLIC_CLUSTER_ADDR": "node-1:7000"}).cluster.address == "node-1:7000"
    assert load({}).cluster.listen is None


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"ANVIL_GLOBAL_DATABASE_URL": "", "ANVIL_REGIONAL_DATABASE_URL": ""}, "ANVIL_GLOBAL_DATABASE_URL"),
        ({"ANVIL_CLUSTER_LISTEN_ADDR": "0.0.0.0:7443"}, "ANVIL_PUBLIC_CLUSTER_ADDR"),
        ({"ANVIL_CLUSTER_LISTEN_ADDR": "10.0.0.1:0"}, "port"),
        ({"ANVIL_CLUSTER_LISTEN_ADDR": ""} | {"ANVIL_ZONE": "a"}, "ANVIL_ZONE"),
        ({"ANVIL_ZONE": "a b"}, "ANVIL_ZONE"),
        ({"ANVIL_CLUSTER_LISTEN_ADDR": ""} | {"ANVIL_NODE_NAME": "a"}, "ANVIL_NODE_NAME"),
        ({"ANVIL_NODE_NAME": "a b"}, "ANVIL_NODE_NAME"),
        ({"ANVIL_CLUSTER_LISTEN_ADDR": "10.0.0.1"}, "ANVIL_CLUSTER_LISTEN_ADDR"),
    ],
)
def test_settings_of_a_cluster_that_cannot_be(changed: dict[str, str], names: str) -> None:
    with pytest.raises(InvalidSetting, match=names):
        load(CLUSTERED | changed)
