"""Where `anvil bench` finds its endpoint and keys.

    keys        options; a profile of `anvil configure` that was named; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; the AWS credentials
    file; the
                default profile of `anvil configure`
    endpoint    option or AWS_ENDPOINT_URL; the profile whose keys are taken; `endpoint_url` of the AWS files
    region      option or AWS_REGION; `region` of the AWS files; us-east-1

Owns: this order. Invariant: key and secret come from the same place. Not here: profiles in their file (`profiles.py`).
"""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource

from anvil.base.errors import InvalidSetting

if TYPE_CHECKING:
    from anvil.bench.plan import Target


class Options(msgspec.Struct, frozen=True):
    """As they were given. `keys_typed`: on the command line, and not by the environment."""

    endpoint: str | None
    bucket: str
    access_key: str | None
    secret_key: str | None
    session_token: str | None
    region: str | None
    ca: str | None
    profile: str | None
    aws_profile: str | None
    credentials_file: str
    config_file: str
    keys_typed: bool

    @classmethod
    def of(cls, options: dict[str, Any], context: click.Context) -> Options:
        typed = context.get_parameter_source("access_key") == ParameterSource.COMMANDLINE
        named = {name: options[name] for name in cls.__struct_fields__ if name in options}
        return msgspec.convert(named | {"keys_typed": typed}, cls)


class Keys(msgspec.Struct, frozen=True):
    """`origin`: for people; `endpoint`, `region`, `ca`: what stands beside the keys, or ""."""

    access_key: str
    secret: str
    token: str
    origin: str
    endpoint: str = ""
    region: str = ""
    ca: str = ""


def resolve(options: Options) -> tuple[Target, str]:
    """The target, and where its keys are from. Raises InvalidSetting that says what is missing."""
    from anvil.bench.plan import Target, parse_endpoint

    keys = _keys(options)
    files = _aws_section(options.config_file, options.aws_profile, config=True) if not keys.endpoint or not keys.region else {}
    endpoint = options.endpoint or keys.endpoint or files.get("endpoint_url", "")
    if not endpoint:
        raise InvalidSetting("which endpoint? --endpoint, AWS_ENDPOINT_URL or --profile says it")
    host, port, tls = parse_endpoint(endpoint)
    ca = options.ca or keys.ca
    region = options.region or keys.region or files.get("region", "") or "us-east-1"
    return Target(host, port, tls, keys.access_key, keys.secret, region, options.bucket, ca or "", keys.token), keys.origin


def _keys(options: Options) -> Keys:
    from anvil.cli import profiles  # these know gRPC, which takes its time to be imported
    from anvil.cli.client import secret_of

    given = options.access_key, options.secret_key
    if bool(given[0]) != bool(given[1]):
        raise InvalidSetting("access key and secret key belong together: one of them is missing")
    if options.profile and not options.keys_typed:
        return _from_profile(options.profile)
    if given[0] and given[1]:
        origin = "the command line" if options.keys_typed else "AWS_ACCESS_KEY_ID"
        return Keys(given[0], secret_of(given[1]), options.session_token or "", origin)
    found = _aws_section(options.credentials_file, options.aws_profile)
    if found.get("aws_access_key_id") and found.get("aws_secret_access_key"):
        return Keys(
            found["aws_access_key_id"],
            found["aws_secret_access_key"],
            found.get("aws_session_token", ""),
            options.credentials_file,
            found.get("endpoint_url", ""),
            found.get("region", ""),
        )
    if options.aws_profile:
        raise InvalidSetting(f"{options.credentials_file} has no key pair for the profile {options.aws_profile!r}")
    if profiles.load().default:
        return _from_profile(None)
    raise InvalidSetting(
        "whose keys? --access-key and --secret-key, AWS_ACCESS_KEY_ID, an AWS credentials file or --profile says it"
    )


def _from_profile(name: str | None) -> Keys:
    from anvil.cli import profiles
    from anvil.client.channel import parse_endpoint

    name, chosen = profiles.load().named(name)
    endpoint = str(parse_endpoint(chosen.host))
    return Keys(chosen.client_id, chosen.client_secret, "", f"profile {name}", endpoint, "", chosen.ca)


def _aws_section(path: str, profile: str | None, config: bool = False) -> dict[str, str]:
    """A profile's section of an AWS file; nothing where there is no such file. In the config file it is called `profile NAME`."""
    file = Path(path).expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InvalidSetting(f"{file} cannot be read: {reason}") from None
    name = profile or "default"
    section = f"profile {name}" if config and name != "default" else name
    return dict(parser[section]) if parser.has_section(section) else {}
