"""Paths: what they mean, which are refused, and how they are spelled to people and to the other end; on both machines.

Two kinds come from the other end. One is what a person typed, `~/data/x.csv`: it may be any path of this
machine, unless a root confines it. The other stands in the manifest of a folder and is relative
to that folder: it never leads out of it, whatever the other end writes there.
"""

# ruff: noqa: PTH102, PTH111, PTH112, PTH118, PTH119, PTH120, PTH121 - names that are no text, a slash at the end: that is `os`

from __future__ import annotations

import difflib
import errno
import itertools
import ntpath
import os
import re
from collections.abc import Callable
from typing import Any

from ._config import WINDOWS
from ._errors import TransferError, printable

DEEPEST = 100
"""Folders within folders: each that is open takes a descriptor, of which some systems give only 256."""

_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?", re.IGNORECASE)
_NOT_IN_WINDOWS = re.compile(r'[\x00-\x1f<>:"\\|?*]')


# --- words -----------------------------------------------------------------------------------


def shown(path: str | bytes) -> str:
    """A path as it may be printed and sent: what is no printable character is written as an escape."""
    return printable(os.fsdecode(path))


def amount(count: float) -> str:
    """Bytes for a person: `12.4 MB`."""
    if count < 1000:
        return f"{count:.0f} byte{'' if count == 1 else 's'}"
    units = ["kB", "MB", "GB", "TB"]
    while (count := count / 1000) >= 999.95 and len(units) > 1:
        units.pop(0)
    return f"{count:.1f} {units[0]}"


def encode_path(path: str) -> bytes:
    """The path as it is sent: names on Unix are bytes, and need not be text."""
    return os.fsencode(path)


def decode_path(value: Any) -> str:
    """The path that the other end means. Raises TransferError."""
    try:
        path = os.fsdecode(value)
    except (TypeError, UnicodeDecodeError):
        raise TransferError(f"`{ascii(value)[:200]}` is no path", id="path") from None
    if "\0" in path:
        raise TransferError(f"`{shown(path)}` is no path", cause="it has a NUL in it", id="path")
    return path


def decode_name(value: Any) -> str:
    """The name of a file or folder, which is not a path. Raises TransferError."""
    name = decode_path(value)
    if "/" in name or name in ("", ".", "..") or (WINDOWS and objection(os.fsencode(name))):
        raise TransferError(f"`{shown(name)}` is not the name of a file", id="path")
    return name


def reason(error: OSError) -> str:
    """Why it failed, in the words of the system."""
    return (error.strerror or str(error)).lower()


def read_error(path: str | bytes, error: OSError) -> TransferError:
    """The error that something cannot be read."""
    return TransferError(f"cannot read `{shown(path)}`", cause=reason(error), id="path")


def is_full(error: OSError) -> bool:
    """Whether it failed for want of room."""
    return error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None))


def write_error(path: str | bytes, error: OSError, *, hints: tuple[str, ...] = ()) -> TransferError:
    """The error that something cannot be written."""
    id = "no-space" if is_full(error) else "unwritable"
    return TransferError(f"cannot write `{shown(path)}`", cause=reason(error), hints=hints, id=id)


def exists_error(path: str | bytes, what: str = "") -> TransferError:
    """The error that the place is taken; `what`: by something that no file replaces."""
    if what:
        return TransferError(f"`{shown(path)}` is {what}, and no file replaces that", id="exists")
    return TransferError(
        f"`{shown(path)}` exists",
        hints=("`overwrite=True` replaces it", "`update=True` does so only if size or time differ"),
        id="exists",
    )


# --- what somebody typed ---------------------------------------------------------------------


def resolve(path: str, base: str, root: str | None = None) -> str:
    """The path without links and `..`; where there is something or not.

    Args:
        path: as somebody typed it; `~` is the home.
        base: what it is relative to.
        root: outside of it, no path is used. A relative one is relative to it if `base` is outside.

    Raises:
        TransferError: it leads out of the root. It is the same whether anything is there or not.
    """
    expanded = os.path.expanduser(path)
    if root is None:
        return os.path.realpath(os.path.join(base, expanded))
    if not is_below(os.path.realpath(base), root):
        base = root
    resolved = os.path.realpath(os.path.join(base, expanded))
    if not is_below(resolved, root):
        raise TransferError(
            f"`{shown(path)}` is outside of `{shown(root)}`",
            cause="the session's files are confined to that folder",
            id="path",
        )
    return resolved


def is_below(path: str, root: str) -> bool:
    """Whether a resolved path is that root, or below it."""
    return path == root or path.startswith(root if root.endswith(os.sep) else root + os.sep)


def find_target(
    to: str | None,
    name: str,
    base: str,
    root: str | None = None,
    *,
    is_unfinished: Callable[[str], bool] = lambda path: False,
) -> tuple[str, str]:
    """Where something called `name` goes: the resolved folder, and its name there.

    Into a folder that exists, or that ends with `/` (which is made if only it is missing); otherwise to
    that path itself; without one, under its own name. What has no name goes where the path
    leads: there the second is empty if that folder exists, and what it is to be called if not.

    Of a folder that exists `is_unfinished` says whether it is what an earlier attempt has made of the same thing:
    then the path means that again, and nothing in it, unless it ends with `/`.

    Raises:
        TransferError: the folder is missing, or outside of the root.
    """
    to = to or "."
    resolved = resolve(to, base, root)
    is_folder = to.endswith(("/", os.sep)) or os.path.basename(to) in (".", "..")
    if is_folder and not os.path.lexists(resolved) and os.path.isdir(os.path.dirname(resolved)):
        try:
            os.mkdir(resolved)
        except OSError as error:
            raise write_error(resolved, error) from None
    goes_on = not is_folder and os.path.isdir(resolved) and is_unfinished(resolved)
    if is_folder or (os.path.isdir(resolved) and not goes_on):
        folder = resolved
    elif goes_on or not name:
        folder, name = os.path.split(resolved)
    else:
        # The last part is taken as it was typed: if it is a link, the link is meant, not where it leads.
        parent, name = os.path.split(to)
        folder = resolve(parent or ".", base, root)
    if not os.path.isdir(folder):
        raise missing(folder, root, what="folder")
    return folder, name


def join(folder: str, name: str) -> str:
    """The path of what is called so in that folder; without a name the folder's own."""
    return os.path.join(folder, name) if name else folder


def missing(path: str, root: str | None = None, *, what: str = "file or folder") -> TransferError:
    """The error that there is nothing at a resolved path, with what was perhaps meant."""
    above = path
    name = ""
    while not os.path.isdir(above) and above not in (root, os.path.dirname(above)):
        above, name = os.path.split(above)
    cause, hints = f"`{shown(above)}` has no `{shown(name)}`", []
    try:
        with os.scandir(above) as found:
            names = [entry.name for entry in itertools.islice(found, 10_000)]
    except OSError as error:
        cause, names = f"`{shown(above)}`: {reason(error)}", []
    if name in names:
        cause = f"`{shown(os.path.join(above, name))}` is no folder"
    elif similar := difflib.get_close_matches(name, names, 3):
        hints = ["there is " + ", ".join(f"`{shown(one)}`" for one in similar)]
    return TransferError(f"there is no {what} `{shown(path)}`", cause=cause, hints=hints, id="path")


# --- what stands in a manifest ---------------------------------------------------------------


def check_relative(path: bytes) -> None:
    """Raises TransferError: it may lead out of the folder that it is relative to."""
    parts = path.split(b"/")
    # Absolute paths, `//` and a `/` at the end all make an empty part.
    if b"\0" in path or not all(part not in (b"", b".", b"..") for part in parts):
        raise TransferError(
            f"`{shown(path[:500])}` is not a path within a folder",
            cause="whoever sent it may want to write elsewhere: nothing was copied",
            id="path",
        )


def objection(path: bytes) -> str:
    """Why Windows cannot have a file of that relative path; empty if it can."""
    for part in path.split(b"/"):
        try:
            name = part.decode()
        except UnicodeDecodeError:
            return "its name is no text"
        if _NOT_IN_WINDOWS.search(name) or name.endswith((" ", ".")) or ntpath.splitdrive(name)[0]:
            return "its name has characters that Windows does not allow"
        if _DEVICE.fullmatch(name):
            return "its name is that of a device in Windows"
    return ""


def stays_inside(link: bytes, target: bytes) -> bool:
    """Whether a link at that relative path, if it leads to `target`, leads to something in the same folder.

    `..` is allowed at the beginning only: `x/..` is not where `x` is, if that is a link in its turn.
    """
    parts = target.rstrip(b"/").split(b"/")
    up = 0
    while up < len(parts) and parts[up] == b"..":
        up += 1
    is_plain = all(
        part not in (b"", b"..") for part in parts[up:]
    )  # an absolute path begins with an empty part
    return is_plain and b"\0" not in target and up <= link.count(b"/")


def is_case_insensitive(folder: str) -> bool:
    """Whether names there that differ only in case are the same, as on most disks of macOS and Windows."""
    parent, name = os.path.split(folder)
    while name and (name.swapcase() == name or not os.path.lexists(os.path.join(parent, name))):
        parent, name = os.path.split(parent)
    if not name:
        return WINDOWS
    try:
        return os.path.samefile(os.path.join(parent, name), os.path.join(parent, name.swapcase()))
    except OSError:
        return WINDOWS
