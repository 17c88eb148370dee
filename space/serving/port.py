"""Bind the port before anything slow begins, so that a taken port costs no waiting.

Only the standard library is imported: `make serve` asks before it sets anything up.

    PORT=8000 python -m serving.port
"""

import errno
import os
import socket
import sys

from serving.settings import SettingError, Settings


def bind(settings: Settings) -> socket.socket:
    """A socket on HOST and PORT that does not listen yet, so clients are refused; raises SettingError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family)
    if os.name == "posix":  # elsewhere it would share the port with whoever has it
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise refusal(settings, error) from error
    return bound


def refusal(settings: Settings, error: OSError) -> SettingError:
    """What to tell somebody who cannot have the port."""
    if error.errno == errno.EADDRINUSE:
        other = settings.port + 1 if settings.port < 65535 else 8000
        return SettingError(f"port {settings.port} is already in use. Stop the program that uses it, or choose another "
                            f"port: PORT={other} make serve")
    if error.errno in (errno.EACCES, errno.EPERM):
        return SettingError(f"PORT={settings.port}: this user may not listen on it; choose one from 1024 upwards")
    return SettingError(f"HOST={settings.host}: cannot listen there ({error.strerror or error}); use 127.0.0.1, or "
                        "0.0.0.0 for every address of this machine")


def main() -> int:
    """Exit 0 if the port is free, 2 with one line if it is not."""
    try:
        bind(Settings.read(os.environ)).close()
    except SettingError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
