"""Set up the DVC remote that clones share their cache by: a folder, S3, DagsHub or SSH."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from src.core.errors import InvalidParams
from utils import process


class _Kind(process.Arguments):
    """The command line of one kind of remote, as argparse makes it."""

    def __init__(self, **more: Any) -> None:
        argparse.ArgumentParser.__init__(self, allow_abbrev=False, **more)


PARSER = process.Arguments(description=__doc__, epilog="Writes .dvc/config, to be committed; credentials come from the "
                           "environment, or lie in .dvc/config.local, which is not. See docs/remotes.md")
KINDS = PARSER.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=_Kind)
_KNOWN = {
    "local": ("PATH", "a folder, made if absent: a disk, or a network drive that all clones mount"),
    "s3": ("BUCKET[/PREFIX]", "S3, or what speaks like it at --endpoint-url; by AWS_ACCESS_KEY_ID and the like"),
    "dagshub": ("OWNER/REPO", "DagsHub; by DAGSHUB_USERNAME and DAGSHUB_TOKEN, or DAGSHUB_USER_TOKEN"),
    "ssh": ("USER@HOST[:PORT]/PATH", "a folder on another machine; by the keys that ssh has"),
}
for kind, (where, what) in _KNOWN.items():
    command = KINDS.add_parser(kind, help=what, description=what)
    command.add_argument("where", metavar=where)
    command.add_argument("--replace", action="store_true", help="where another default remote is set")
    if kind == "s3":
        command.add_argument("--endpoint-url", metavar="URL", help="of MinIO, R2, Ceph...; AWS itself needs none")
KINDS.add_parser("credentials", help="write a DagsHub remote's user and token from the environment to "
                 ".dvc/config.local; nothing to do for other remotes")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]+(/[^\s?#]+)?/?")
_DAGSHUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SSH = re.compile(r"([\w.-]+@)?[\w.-]+(:\d+)?/\S+", re.ASCII)


def main() -> int:
    """Set the remote up, or its credentials; returns the exit code."""
    flags = PARSER.parse_args()
    if flags.kind == "credentials":
        process.say(_credentials())
        return 0

    from utils import dvc_utils

    url, options = _address(flags)
    dvc_utils.check_plugin(url.partition("://")[0])
    if flags.kind == "local":
        Path(url).mkdir(parents=True, exist_ok=True)
    made = dvc_utils.add(url, options, replace=flags.replace)
    known = _credentials() if flags.kind == "dagshub" else ""
    done = "set up; commit .dvc/config, then `dvc push`" if made else "set up already"
    process.say("\n".join(filter(None, [f"remote: {url}: {done}", known])))
    return 0


def _address(flags: argparse.Namespace) -> tuple[str, dict[str, str]]:
    """The remote's URL, and DVC's options for it."""
    where = flags.where
    if flags.kind == "local":
        return where, {}
    pattern = {"s3": _BUCKET, "dagshub": _DAGSHUB, "ssh": _SSH}[flags.kind]
    bare = where.removeprefix(f"{flags.kind}://")
    if not pattern.fullmatch(bare):
        raise InvalidParams(f"{flags.kind} {where!r}: expected {_KNOWN[flags.kind][0]}; see docs/remotes.md")
    if flags.kind == "dagshub":
        from utils.tracking import store

        return f"{store.host()}/{bare}.dvc", {}
    options = {"endpointurl": flags.endpoint_url} if flags.kind == "s3" and flags.endpoint_url else {}
    return f"{flags.kind}://{bare}", options


def _credentials() -> str:
    """Keep a DagsHub remote's credentials; returns what was done."""
    from utils import dvc_utils
    from utils.tracking import store

    remote = dvc_utils.default_remote()
    if remote is None or not store.is_dagshub(remote.url):
        return "credentials: nothing to do, the DVC remote is not DagsHub's"
    token = next(filter(None, (os.environ.get(name, "").strip() for name in ("DAGSHUB_TOKEN", "DAGSHUB_USER_TOKEN"))),
                 "")
    if not token:
        raise InvalidParams(f"DAGSHUB_TOKEN: not set; make a token at {store.host()}/user/settings/tokens")
    user = os.environ.get("DAGSHUB_USERNAME", "").strip() or store.user(token)
    dvc_utils.keep_secret(remote.name, {"auth": "basic", "user": user, "password": token})
    return f"credentials: of {user}, in .dvc/config.local"


if __name__ == "__main__":
    process.run(main)
