"""The command `docker` of a test: what the documents use of `docker compose`, and nothing else.

    docker compose [-f FILE] up -d [--build] [--wait] [--no-deps] [SERVICE...]
    docker compose [-f FILE] run --rm SERVICE COMMAND...
    docker compose [-f FILE] exec [-T] SERVICE COMMAND...
    docker compose [-f FILE] cp SERVICE:PATH DESTINATION
    docker compose [-f FILE] kill [-s SIGNAL] SERVICE
    docker compose [-f FILE] stop|start SERVICE
    docker compose [-f FILE] ps | logs [SERVICE...] | down

FILE: else COMPOSE_FILE. The state is in the folder COMPOSE_STATE.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.support.compose.engine import Engine, Failed
from tests.support.compose.file import Unknown, load

UP = {"-d", "--build", "--wait", "--no-deps"}


def refuse(words: list[str]) -> Failed:
    return Failed(f"tests/support/compose does not know: docker {' '.join(words)}")


def main(words: list[str]) -> int:
    rest = words[1:]
    if words[:1] != ["compose"] or not rest:
        raise refuse(words)
    file = os.environ.get("COMPOSE_FILE", "")
    if rest[0] == "-f":
        file, rest = rest[1], rest[2:]
    if not file:
        raise Failed("no configuration file provided: not found")
    action, *rest = rest
    engine = Engine(Path(os.environ["COMPOSE_STATE"]), load(Path(file), os.environ))
    names = [word for word in rest if not word.startswith("-")]
    options = {word for word in rest if word.startswith("-")}
    if action == "up" and "-d" in options <= UP:
        for line in engine.up(names, dependencies="--no-deps" not in options, wait="--wait" in options):
            print(line, file=sys.stderr)
    elif action == "run" and rest[:1] == ["--rm"] and names[:1] == rest[1:2] and len(rest) > 2:
        code, said = engine.once(rest[1], rest[2:])
        print(said, end="")
        return code
    elif action == "exec":
        name, *command = rest[1:] if rest[:1] == ["-T"] else rest
        if name.startswith("-") or not command:
            raise refuse(words)
        found = engine.within(name, command)
        sys.stdout.flush()
        os.execvp(found[0], found)
    elif action == "cp" and len(rest) == 2 and ":" in rest[0]:
        name, _, path = rest[0].partition(":")
        shutil.copy(engine.path(name, path), rest[1])
    elif action == "kill" and rest[:1] == ["-s"] and len(rest) == 3:
        engine.signal(rest[2], rest[1])
    elif action in ("kill", "stop", "start") and len(rest) == len(names) == 1:
        getattr(engine, action)(names[0])
    elif action == "ps" and not rest:
        for name in load(Path(file), os.environ).services:
            print(f"{name:<20}{engine.state(name)}")
    elif action == "logs" and not options:
        for name in names:
            print(engine.log(name).read_text(errors="replace"), end="")
    elif action == "down" and not rest:
        engine.down()
    else:
        raise refuse(words)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Failed, Unknown) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
