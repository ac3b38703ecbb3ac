"""The commands that speak to a server, against a fake one: what they do, print and end with."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from anvil.base.config import load as load_settings
from anvil.base.errors import InvalidSetting
from anvil.cli import client as cli_client
from anvil.cli import main as cli_main
from anvil.cli import profiles
from anvil.cli.client import shown
from anvil.cli.exits import Exit
from anvil.cli.paths import Remote, local_file, parse_object, parse_remote
from anvil.cli.profiles import Profile, Profiles
from anvil.client import Token
from tests.support.fake_grpc import FakeServer, Refused
from tests.support.node import ROOT
from tests.support.ports import free_port
from tests.unit.client.conftest import KIB, SMALL

DATA = bytes(range(256)) * 1600  # 400 KiB: seven parts


class Result(NamedTuple):
    code: int
    out: str
    err: str
    raw: bytes


Anvil = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ANVIL_PROFILE", raising=False)
    monkeypatch.setattr(cli_client, "TRANSFER", SMALL)
    return tmp_path / "config" / "anvil"


@pytest.fixture
def anvil(home: Path, monkeypatch: pytest.MonkeyPatch) -> Anvil:
    """Runs `anvil ...` as the script does."""

    def run(*arguments: str, input: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["anvil", *arguments])
        with CliRunner().isolation(input=io.BytesIO(input)) as streams:
            with pytest.raises(SystemExit) as ended:
                cli_main.main()
            sys.stdout.flush()
            out, err = streams[0].getvalue(), streams[1].getvalue()
        code = ended.value.code
        return Result(int(code or 0), out.decode(errors="replace"), err.decode(), out)

    return run


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(part_bytes_min=64 * KIB) as running:
        running.buckets["b"] = 0.0
        yield running


@pytest.fixture
def ready(anvil: Anvil, server: FakeServer) -> FakeServer:
    """A server with a profile for it."""
    client_id, secret = server.keys
    made = anvil("static-config", "--name", "p", "--host", server.host, "--client-id", client_id, "--client-secret", secret)
    assert made.code == 0, made.err
    return server


# -- profiles --------------------------------------------------------------------------------------------------------------


def test_static_config_saves_a_profile_that_only_its_owner_reads(anvil: Anvil, home: Path) -> None:
    first = anvil("static-config", "--name", "one", "--host", "h1", "--client-id", "AK1", "--client-secret", 's"e\\c\x7f')
    assert first.code == 0 and "(default)" in first.out
    second = anvil(
        *("static-config", "--name", "two", "--host", "http://h2", "--client-id", "AK2", "--client-secret", "-", "--json"),
        input=b"from-stdin\n",
    )
    assert json.loads(second.out) == {"profile": "two", "host": "http://h2:80", "client_id": "AK2", "default": False}
    document = tomllib.loads((home / "profiles.toml").read_text())
    assert document["default"] == "one"
    assert document["profiles"]["one"] == {"host": "h1", "client_id": "AK1", "client_secret": 's"e\\c\x7f'}
    assert document["profiles"]["two"]["client_secret"] == "from-stdin"
    assert (home / "profiles.toml").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in home.iterdir()] == ["profiles.toml"]
    third = anvil("static-config", "--name", "two", "--host", "h3", "--client-id", "A", "--client-secret", "s", "--default")
    assert third.code == 0
    assert profiles.load().named(None) == ("two", Profile("h3", "A", "s"))
    assert all("from-stdin" not in one.out + one.err for one in (first, second, third))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--name", "a b", "--host", "h", "--client-id", "i", "--client-secret", "s"), "cannot be a profile's name"),
        (("--name", "a", "--host", "ftp://h", "--client-id", "i", "--client-secret", "s"), "not an address"),
        (("--name", "a", "--host", "h", "--client-id", "i", "--client-secret", "-"), "must not be empty"),
        (("--name", "a", "--host", "h", "--client-id", "i", "--client-secret", "s", "--ca", "/no"), "cannot be read"),
    ],
)
def test_static_config_refuses(anvil: Anvil, home: Path, arguments: tuple[str, ...], said: str) -> None:
    result = anvil("static-config", *arguments)
    assert (result.code, home.exists()) == (Exit.USAGE, False)
    assert said in result.err


def test_a_file_that_others_can_read_is_told(anvil: Anvil, ready: FakeServer, home: Path) -> None:
    (home / "profiles.toml").chmod(0o644)
    result = anvil("bucket", "ls")
    assert result.code == 0
    assert f"chmod 600 {home / 'profiles.toml'}" in result.err


def test_profiles_that_are_not_there(anvil: Anvil, home: Path) -> None:
    nothing = anvil("bucket", "ls")
    assert (nothing.code, nothing.err) == (Exit.USAGE, "anvil: there is no profile yet: `anvil configure` makes one\n")
    profiles.save(Profiles().with_profile("work", Profile("h", "i", "s"), True))
    wrong = anvil("bucket", "ls", "--profile", "wrok")
    assert wrong.code == Exit.USAGE and "Did you mean work?" in wrong.err
    (home / "profiles.toml").write_text("default = 3\n")
    assert "profiles.toml" in anvil("bucket", "ls").err
    (home / "profiles.toml").write_text("not toml")
    assert anvil("bucket", "ls").code == Exit.USAGE


def test_the_profile_of_the_environment(anvil: Anvil, ready: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANVIL_PROFILE", "absent")
    assert "there is no profile 'absent'" in anvil("bucket", "ls").err
    assert anvil("bucket", "ls", "--profile", "p").code == 0
    load_settings({"ANVIL_PROFILE": "x"})  # a server in the same environment starts all the same
    with pytest.raises(InvalidSetting):
        load_settings({"ANVIL_PROFILES": "x"})


def test_configure_asks_tries_and_saves(anvil: Anvil, server: FakeServer, home: Path) -> None:
    client_id, secret = server.keys
    answers = f"mine\nhttp://{server.host}\n{client_id}\n{secret}\n"
    done = anvil("configure", input=answers.encode())
    assert done.code == 0, done.err
    assert server.calls == {"GetAccessToken": 1}
    assert profiles.load().named(None) == ("mine", Profile(f"http://{server.host}", client_id, secret))
    assert secret not in done.out + done.err
    kept = anvil("configure", "--profile", "mine", input=b"\n\n\n")
    assert kept.code == 0, kept.err
    assert profiles.load().named("mine")[1].client_secret == secret
    wrong = anvil("configure", "--profile", "other", input=f"http://{server.host}\n{client_id}\nwrong\nn\nn\n".encode())
    assert wrong.code == 130 and "does not accept the credentials" in wrong.err
    assert list(profiles.load().profiles) == ["mine"]


def test_configure_warns_of_connections_in_the_clear(anvil: Anvil) -> None:
    result = anvil("configure", "--profile", "x", input=b"http://198.51.100.1\n")
    assert "not encrypted" in result.err


def test_one_token_serves_many_commands(anvil: Anvil, ready: FakeServer, home: Path) -> None:
    for _ in range(3):
        assert anvil("bucket", "ls").code == 0
    assert ready.calls["GetAccessToken"] == 1
    assert (home / "tokens.json").stat().st_mode & 0o777 == 0o600
    assert ready.keys[1] not in (home / "tokens.json").read_text()
    ready.tokens.clear()
    assert anvil("bucket", "ls").code == 0
    assert ready.calls["GetAccessToken"] == 2
    (home / "tokens.json").write_text("{damaged")
    assert anvil("bucket", "ls").code == 0
    assert ready.calls["GetAccessToken"] == 3


def test_a_cached_token_is_of_one_secret(home: Path) -> None:
    token = Token("t", time.time() + 50, time.time() + 100)
    profiles.TokenCache(Profile("h", "i", "s")).save(token)
    assert profiles.TokenCache(Profile("h", "i", "s")).load() == token
    for other in (Profile("h", "i", "other"), Profile("h", "other", "s"), Profile("other", "i", "s")):
        assert profiles.TokenCache(other).load() is None
    profiles.TokenCache(Profile("h", "i", "x")).save(Token("old", 0, time.time() - 1))
    profiles.TokenCache(Profile("h", "i", "s")).save(None)
    assert json.loads((home / "tokens.json").read_text()) == {}


# -- failures --------------------------------------------------------------------------------------------------------------


def test_unreachable(anvil: Anvil) -> None:
    host = f"127.0.0.1:{free_port()}"
    anvil("static-config", "--name", "gone", "--host", host, "--client-id", "a", "--client-secret", "b")
    result = anvil("bucket", "ls")
    assert result.code == Exit.UNAVAILABLE
    assert result.err == f"anvil: cannot reach http://{host}: connection refused: is the server running? (profile gone)\n"


def test_wrong_credentials(anvil: Anvil, ready: FakeServer) -> None:
    ready.apps["AKOWNER"] = "another"
    result = anvil("bucket", "ls")
    assert result.code == Exit.DENIED
    assert "app AKOWNER: wrong client id or secret (profile p; `anvil configure` changes it)" in result.err
    assert ready.keys[1] not in result.err


def test_a_missing_right_says_which_and_how_to_get_it(anvil: Anvil, ready: FakeServer, tmp_path: Path) -> None:
    ready.rights = {("AKOWNER", "object:list", "*")}
    (tmp_path / "f").write_bytes(b"x")
    result = anvil("object", "put", str(tmp_path / "f"), "s3://b/my key")
    assert result.code == Exit.DENIED
    assert result.err == (
        "anvil: not allowed: object:write on b/my key (app AKOWNER): ask somebody who may for "
        "`anvil auth grant AKOWNER object:write 'b/my key'`\n"
    )
    assert "bucket:create on new" in anvil("bucket", "create", "new").err


def test_exit_codes(anvil: Anvil, ready: FakeServer, tmp_path: Path) -> None:
    ready.store("b", "k", b"x")
    assert anvil("object", "head", "s3://b/absent").code == Exit.NOT_FOUND
    assert anvil("object", "ls", "s3://absent").code == Exit.NOT_FOUND
    assert anvil("bucket", "rm", "b").code == Exit.CONFLICT
    assert anvil("object", "put", str(tmp_path / "absent"), "s3://b/k").code == Exit.FAILED
    assert anvil("object", "head", "not-a-path").code == Exit.USAGE
    assert anvil("object", "get", "s3://b").code == Exit.USAGE
    assert anvil("object", "cp", "a", "b").code == Exit.USAGE
    ready.faults.fail["ListBuckets"] = [Refused("SlowDown")] * 4
    assert anvil("bucket", "ls").code == Exit.UNAVAILABLE


# -- auth, buckets ---------------------------------------------------------------------------------------------------------


def test_auth(anvil: Anvil, ready: FakeServer) -> None:
    token = anvil("auth", "get-token")
    assert ready.tokens[token.out.strip()][0] == "AKOWNER"
    assert set(json.loads(anvil("auth", "get-token", "--json").out)) == {"access_token", "expires_at"}
    ready.apps["AKTWO"] = "two"
    other = anvil("auth", "get-token", "--client-id", "AKTWO", "--client-secret", "-", input=b"two\n")
    assert ready.tokens[other.out.strip()][0] == "AKTWO"
    assert anvil("auth", "get-token", "--client-id", "AKTWO").code == Exit.USAGE
    granted = anvil("auth", "grant", "AKTWO", "object:read", "b/*", "--json")
    assert json.loads(granted.out) == {"app": "AKTWO", "action": "object:read", "resource": "b/*", "changed": True}
    assert ("AKTWO", "object:read", "b/*") in ready.rights
    assert anvil("auth", "grant", "AKTWO", "object:read", "b/*").out == "object:read on b/*: was granted before\n"
    assert anvil("auth", "revoke", "AKTWO", "object:read", "b/*").code == 0
    assert anvil("auth", "revoke", "AKTWO", "object:read", "b/*").code == Exit.NOT_FOUND
    assert anvil("auth", "grant", "AKTWO", "object:fly", "b/*").code == Exit.USAGE
    assert anvil("auth", "grant", "AKTWO", "object:read", "b/*/c").code == Exit.USAGE


def test_buckets(anvil: Anvil, ready: FakeServer) -> None:
    assert anvil("bucket", "create", "new").out == "bucket new created in us-east-1\n"
    assert [one["name"] for one in json.loads(anvil("bucket", "ls", "--json").out)] == ["b", "new"]
    assert [line.split()[-1] for line in anvil("object", "ls").out.splitlines()] == ["b", "new"]
    assert anvil("bucket", "set-public", "new", "--allow", "true").code == 0
    assert ready.public == {"new"}
    assert anvil("bucket", "set-public", "--name", "new", "--allow", "false").code == 0
    assert ready.public == set()
    assert anvil("bucket", "set-public", "--allow", "true").code == Exit.USAGE
    for number in range(30):
        ready.store("b", f"k{number}", b"")
    refused = anvil("bucket", "rm", "b")
    assert refused.code == Exit.CONFLICT and "--force" in refused.err and len(ready.objects) == 30
    assert json.loads(anvil("bucket", "rm", "b", "--force", "--json").out)["objects_deleted"] == 30
    assert "b" not in ready.buckets


# -- objects ---------------------------------------------------------------------------------------------------------------


def test_put_and_get(anvil: Anvil, ready: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_bytes(DATA)
    put = anvil("object", "put", str(tmp_path / "page.html"), "s3://b/dir/", "--metadata", "Who=me", "--json")
    stored = ready.objects["b", "dir/page.html"]
    assert (stored.data, stored.parts) == (DATA, 7)
    assert (stored.attributes.content_type, dict(stored.attributes.user_metadata)) == ("text/html", {"who": "me"})
    told = json.loads(put.out)
    assert (told["target"], told["size"], told["etag"]) == ("s3://b/dir/page.html", len(DATA), stored.etag)
    assert told["checksum"] == f"crc64nvme:{stored.checksum.value.hex()}"
    assert put.err == ""
    (tmp_path / "to").mkdir()
    got = anvil("object", "get", "s3://b/dir/page.html", str(tmp_path / "to"), "--json")
    assert json.loads(got.out)["verified"] is True
    assert (tmp_path / "to" / "page.html").read_bytes() == DATA
    assert anvil("object", "get", "s3://b/dir/page.html", str(tmp_path / "renamed")).err.startswith("download: s3://b/dir/page")
    assert (tmp_path / "renamed").read_bytes() == DATA
    quiet = anvil("object", "cp", "s3://b/dir/page.html", f"{tmp_path}/new/", "-q")
    assert (quiet.out, quiet.err) == ("", "") and (tmp_path / "new" / "page.html").read_bytes() == DATA


@pytest.mark.parametrize(
    ("name", "guessed"),
    [("a.json", "application/json"), ("a.tar.gz", "application/gzip"), ("a.unheard-of", ""), ("a.txt", "text/plain")],
)
def test_content_types(anvil: Anvil, ready: FakeServer, tmp_path: Path, name: str, guessed: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    anvil("object", "put", str(tmp_path / name), "s3://b")
    assert ready.objects["b", name].attributes.content_type == guessed
    anvil("object", "put", str(tmp_path / name), "s3://b", "--content-type", "x/y")
    assert ready.objects["b", name].attributes.content_type == "x/y"


def test_standard_input_and_output(anvil: Anvil, ready: FakeServer) -> None:
    assert anvil("object", "put", "-", "s3://b/in", input=DATA).code == 0
    assert ready.objects["b", "in"].data == DATA and ready.objects["b", "in"].parts == 7
    for target in ((), ("-",)):
        got = anvil("object", "get", "s3://b/in", *target)
        assert (got.raw, got.err) == (DATA, "")
    assert anvil("object", "put", "-", "s3://b/dir/", input=b"x").code == Exit.USAGE
    assert anvil("object", "get", "s3://b/in", "-", "--json").code == Exit.USAGE
    assert anvil("object", "get", "s3://b/", "-", "-r").code == Exit.USAGE


def test_a_pipe_of_another_process(ready: FakeServer, home: Path) -> None:
    """A real standard input, and its end."""
    done = subprocess.run(
        [sys.executable, "-m", "anvil.cli.main", "object", "put", "-", "s3://b/in", "--json"],
        input=DATA,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size"] == len(DATA)
    assert ready.objects["b", "in"].data == DATA


def test_folders(anvil: Anvil, ready: FakeServer, tmp_path: Path) -> None:
    source = tmp_path / "from"
    for name in ("a.txt", "sub/b.txt", "sub/deep/c", "é"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "loop").symlink_to(source)
    put = anvil("object", "put", "-r", str(source), "s3://b/x", "--json")
    names = ["a.txt", "sub/b.txt", "sub/deep/c", "é"]
    assert sorted(key for _, key in ready.objects) == [f"x/{name}" for name in names]
    assert json.loads(put.out)["failed"] == [] and len(json.loads(put.out)["done"]) == 4
    ready.store("b", "x/empty/", b"")
    ready.store("b", "xy", b"not below x")
    got = anvil("object", "get", "-r", "s3://b/x", str(tmp_path / "to"))
    assert (got.code, got.err.splitlines()[-1]) == (0, f"4 objects, {sum(len(name.encode()) for name in names)} bytes")
    assert {path.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("*") if path.is_file()} == set(names)
    assert anvil("object", "cp", "-r", "s3://b/x/", "s3://b/y").code == 0
    assert ready.objects["b", "y/sub/deep/c"].data == b"sub/deep/c"
    assert anvil("object", "cp", "-r", "s3://b/x", "s3://b/x/y").code == Exit.USAGE
    assert anvil("object", "rm", "-r", "s3://b/x").code == 0
    assert sorted(key for _, key in ready.objects) == sorted(["xy", "y/empty/", *(f"y/{name}" for name in names)])
    assert anvil("object", "get", "-r", "s3://b/nothing", str(tmp_path / "n")).code == Exit.NOT_FOUND
    assert anvil("object", "put", str(source), "s3://b").code == Exit.USAGE
    assert anvil("object", "put", "-r", str(source / "a.txt"), "s3://b").code == Exit.USAGE


def test_a_link_that_leads_nowhere_is_told(anvil: Anvil, ready: FakeServer, tmp_path: Path) -> None:
    source = tmp_path / "from"
    source.mkdir()
    (source / "a").write_text("a")
    (source / "gone").symlink_to(tmp_path / "absent")
    put = anvil("object", "put", "-r", str(source), "s3://b/x")
    assert put.code == Exit.FAILED
    assert f"{source / 'gone'}: No such file or directory" in put.err
    assert list(ready.objects) == [("b", "x/a")]


def test_what_fails_in_a_folder_is_told_and_the_rest_is_done(anvil: Anvil, ready: FakeServer, tmp_path: Path) -> None:
    for key in ("d/../../evil", "d//abs", "d/ok", "d/..", "d/back\\slash", "d/file", "d/file/under"):
        ready.store("b", key, key.encode())
    result = anvil("object", "get", "-r", "s3://b/d", str(tmp_path / "in" / "to"), "--json")
    told = json.loads(result.out)
    assert result.code in (Exit.USAGE, Exit.FAILED)
    failed = {one["name"] for one in told["failed"]}
    assert {"d/../../evil", "d//abs", "d/..", "d/back\\slash"} < failed and len(failed) == 5
    assert (tmp_path / "in" / "to" / "ok").read_bytes() == b"d/ok"
    assert not (tmp_path / "evil").exists() and not (tmp_path / "in" / "evil").exists()


def test_a_lost_server_ends_a_folder_at_once(anvil: Anvil, ready: FakeServer, tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}").write_text("x")
    ready.apps.clear()
    result = anvil("object", "put", "-r", str(tmp_path), "s3://b")
    assert result.code == Exit.DENIED
    assert len(result.err.splitlines()) == 1


def test_listing_and_head(anvil: Anvil, ready: FakeServer) -> None:
    ready.store("b", "a/1", b"one")
    ready.store("b", "a/2", b"two")
    ready.store("b", "esc\x1b[31m\n", b"x", content_type="text/plain", user_metadata={"k": "v"})
    ready.page = 1
    lines = anvil("object", "ls", "s3://b").out.splitlines()
    assert len(lines) == 2 and lines[0].split() == ["PRE", "a/"]
    assert lines[1].endswith("esc\\x1b[31m\\n") and "\x1b" not in lines[1]
    listed = json.loads(anvil("object", "ls", "s3://b/a", "-r", "--json").out)
    assert [(one["key"], one["size"]) for one in listed] == [("a/1", 3), ("a/2", 3)]
    assert json.loads(anvil("object", "ls", "s3://b/none", "--json").out) == []
    head = anvil("object", "head", "s3://b/esc\x1b[31m\n").out
    assert re.search(r"^content-type +text/plain$", head, re.MULTILINE) and re.search(r"^metadata k +v$", head, re.MULTILINE)
    assert re.search(r"^checksum +crc64nvme \S{12} \(FULL_OBJECT\)$", head, re.MULTILINE)
    assert json.loads(anvil("object", "head", "s3://b/a/1", "--json").out)["size"] == 3


def test_copies_and_removals(anvil: Anvil, ready: FakeServer) -> None:
    ready.store("b", "k", DATA, content_type="image/png")
    assert json.loads(anvil("object", "cp", "s3://b/k", "s3://b/kept", "--json").out)["size"] == len(DATA)
    assert anvil("object", "cp", "s3://b/k", "s3://b/dir/", "--content-type", "x/y").code == 0
    assert ready.objects["b", "kept"].attributes.content_type == "image/png"
    assert ready.objects["b", "dir/k"].attributes.content_type == "x/y"
    assert anvil("object", "rm", "s3://b/k").err == "delete: s3://b/k\n"
    assert anvil("object", "rm", "s3://b/k").code == 0
    assert anvil("object", "rm", "s3://b").code == Exit.USAGE


def test_damage_on_the_way_is_an_error_at_both_ends(anvil: Anvil, ready: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    ready.faults.flip_up_always = True
    up = anvil("object", "put", str(tmp_path / "f"), "s3://b/k")
    assert up.code == Exit.FAILED and "did not match what we received" in up.err
    assert ready.objects == {} and ready.uploads == {}
    ready.faults.flip_up_always = False
    ready.store("b", "k", DATA)
    ready.faults.flip_down_always = True
    down = anvil("object", "get", "s3://b/k", str(tmp_path / "g"))
    assert down.code == Exit.FAILED and "what arrived has" in down.err
    assert not (tmp_path / "g").exists()


# -- a terminal ------------------------------------------------------------------------------------------------------------


def test_progress_on_a_terminal_and_an_interrupt_that_aborts(ready: FakeServer, home: Path, tmp_path: Path) -> None:
    """Standard error is a terminal here; Ctrl-C comes while parts are on their way."""
    (tmp_path / "f").write_bytes(bytes(40 << 20))
    begun, go_on = threading.Event(), threading.Event()

    def before(method: str) -> None:
        if method == "UploadPart" and ready.calls["UploadPart"] == 3:
            begun.set()
        if begun.is_set() and method == "UploadPart":
            go_on.wait(90)

    ready.faults.before = before
    master, slave = pty.openpty()
    process = subprocess.Popen(
        # Ctrl-C is heard there also where these tests run in the background of a script, which has it ignored.
        ["env", "--default-signal=INT", sys.executable, "-m", "anvil.cli.main", "object", "put", str(tmp_path / "f"), "s3://b/k"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(slave)
    with ThreadPoolExecutor(1) as reader:
        shown = reader.submit(shown_on, master)  # beside it: a terminal that nobody reads holds up who writes to it
        try:
            assert begun.wait(60)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            go_on.set()
            process.kill()
            process.wait()
    assert ready.uploads == {} and ready.calls["AbortMultipartUpload"] == 1
    assert re.search(r"\rf .*/40\.0 MiB", shown.result()), "name and size"


@pytest.mark.parametrize(("unit", "total"), [("", r"4\.0/8\.0 MiB \d+\.\d MB/s"), ("partitions", "4194304/8388608 partitions")])
def test_progress_shows_speed_and_time_left(home: Path, unit: str, total: str) -> None:
    code = (
        "import time\n"
        "from anvil.cli.progress import Meter\n"
        f"with Meter(quiet=False, unit={unit!r})('[name]') as meter:\n"
        "    meter.expect(8 << 20)\n"
        "    for _ in range(8):\n"
        "        meter.moved(1 << 19)\n"
        "        time.sleep(0.05)\n"
    )
    master, slave = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", code], stderr=slave, env=env, check=True, timeout=30)
    os.close(slave)
    seen = shown_on(master)
    assert re.search(rf"\[name\] \S+ {total} 0:00:0\d", seen), seen


def shown_on(master: int) -> str:
    """What was written to a terminal whose other side is closed, without colours."""
    seen = b""
    try:
        while block := os.read(master, 65536):
            seen += block
    except OSError:  # the other side of a terminal was closed
        pass
    os.close(master)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))


def test_the_version_is_quick_and_imports_no_grpc() -> None:
    code = (
        "import sys; sys.argv=['anvil','version']; from anvil.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
        "assert not {'grpc', 'google.protobuf', 'anvil.client'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0


# -- paths -----------------------------------------------------------------------------------------------------------------


def test_remote_paths() -> None:
    assert parse_remote("s3://b") == parse_remote("s3://b/") == Remote("b", "")
    assert parse_object("s3://b/a//b%20c ") == Remote("b", "a//b%20c ")
    assert Remote("b", "x").inside("y") == Remote("b", "x/y") and Remote("b", "").inside("y") == Remote("b", "y")
    for wrong in ("b/k", "s3:/b/k", "s3://", "s3:///k", "s3://b/" + "x" * 1025, "s3://b/\0", "s3://b/\udcff"):
        with pytest.raises(InvalidSetting):
            parse_remote(wrong)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/", "a\\b", "a\0b", "link/x", "file-link"])
def test_names_that_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "in"
    (inside / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (inside / "link").symlink_to(tmp_path / "out")
    (inside / "file-link").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidSetting):
        local_file(inside, name)
    assert list((tmp_path / "out").iterdir()) == []


def test_names_that_stay_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "alias").symlink_to("in")
    for name in ("a", "sub/deep/a", "...", "a..b", "é ü", "-r"):
        target = local_file(tmp_path / "alias", name)
        target.write_text("x")
        assert (tmp_path / "in" / name).read_text() == "x"


def test_control_characters_are_shown_not_obeyed() -> None:
    assert shown("a\x1b[2J\r\n\x9b\u202e\udcffé") == "a\\x1b[2J\\r\\n\\x9b\\u202e\\udcffé"
