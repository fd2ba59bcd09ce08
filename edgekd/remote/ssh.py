"""Where a device is, and the command that runs Python there: the system's ``ssh``, with the user's own configuration.

Nothing that a user writes reaches a shell: addresses and paths are checked by what they may hold, and ``ssh`` is given
its arguments one by one.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgekd.errors import UsageError

FETCH = "import sys;sys.path.pop(0);i=sys.stdin.buffer;exec(i.read(int(i.readline())))"
"""Python that reads the length of a program on the first line of its input, and the program behind it."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
IPV6 = re.compile(r"[0-9A-Fa-f:]+(?:%[A-Za-z0-9_.-]+)?")
PATH = re.compile(r"(?:~/|/)?[A-Za-z0-9_][A-Za-z0-9_./+-]*")


@dataclass(frozen=True)
class Address:
    """A host as ssh knows it (also an alias of its configuration); ``None``: whatever its configuration says."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


def parse(text: str) -> Address:
    """``ssh://[user@]host[:port]``. Raises ``UsageError`` for anything else."""
    try:
        found = urlsplit(text)
        port, rest = found.port, (found.path.strip("/"), found.query, found.fragment)
    except ValueError as error:
        raise UsageError(f"{text!r} is no address of a device ({error}); it is ssh://user@host[:port]") from error
    user, _, host = found.netloc.rpartition("@")
    host = re.sub(r":\d*$", "", host)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    good = (
        text.isprintable()
        and found.scheme == "ssh"
        and not any(rest)
        and (NAME.fullmatch(host) or IPV6.fullmatch(host))
    )
    if not good or port == 0 or (user and not NAME.fullmatch(user)) or ("@" in found.netloc and not user):
        raise UsageError(f"{text!r} is no address of a device; it is ssh://user@host[:port], e.g. ssh://pi@192.168.1.7")
    return Address(host, user or None, port)


def command(address: Address, python: str, config: Path | None = None) -> list[str]:
    """Run ``python`` on the device on what comes over standard input (``FETCH``); never asks for a password.

    Raises ``UsageError`` for a path of Python that a shell would not take as it is.
    """
    if not PATH.fullmatch(python):
        raise UsageError(f"{python!r}: the path of Python on the device may hold letters, digits and ~/._+- only")
    options = ["-T", "-a", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]
    options += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4", "-o", "ClearAllForwardings=yes"]
    if config is not None:
        options += ["-F", str(config)]
    options += ["-p", str(address.port)] if address.port else []
    options += ["-l", address.user] if address.user else []
    return ["ssh", *options, "--", address.host, f"exec {python} -c '{FETCH}'"]


def here() -> list[str]:
    """The same on this machine, in this Python."""
    return [sys.executable, "-c", FETCH]


HINTS = {
    "Host key verification failed": "connect once with ssh yourself, and check its key",
    "Permission denied": "let your key in there (ssh-copy-id), and into your agent; no password is asked for",
    "Could not resolve": "check the host's name",
    "Connection refused": "check that sshd runs there, and on which port",
    "timed out": "check that it is on and in reach",
    "No route to host": "check that it is on and in reach",
}


def hint(said: str) -> str:
    """What to do about ssh's last words."""
    return next((what for words, what in HINTS.items() if words in said), "try it with ssh yourself")
