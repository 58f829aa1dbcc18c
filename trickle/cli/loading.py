"""From ``module:attribute`` on the command line to the App.

What can go wrong is told apart: the path is not written so, the module is not there, it is there
and fails, the attribute is missing, or is no App. Each has another cure.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, cast

from trickle.app import App
from trickle.exceptions import ConfigurationError, DefinitionError, TrickleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import ModuleType

__all__ = ["check_commands", "load_app"]

_PATH = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<attribute>[^\W\d]\w*)")
_HOW = "write MODULE:ATTRIBUTE, like app:app for the variable app in app.py"


def load_app(path: str) -> App:
    """Import an app.

    Args:
        path: ``module:attribute``; the current directory is put on ``sys.path``.

    Raises:
        UsageError: the path is not written so, or there is nothing there.
        ConfigurationError: the module raises while it is imported.
    """
    match = _PATH.fullmatch(path)
    if match is None or match["module"].endswith(".py"):
        raise UsageError(f"the app path {path!r} cannot be read: {_guess(path)}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _import(match["module"], path)
    try:
        found = cast("object", getattr(module, match["attribute"]))
    except AttributeError:
        raise UsageError(_no_attribute(path, module, match["attribute"])) from None
    if not isinstance(found, App):
        raise UsageError(
            f"the app path {path!r} names a {type(found).__name__}, not a trickle.App: "
            f"{_hint(module)}"
        )
    return found


def check_commands(app: App, taken: Collection[str]) -> None:
    """See that each of an app's commands can be called: trickle's own would go before it.

    Raises:
        DefinitionError: a command has the name of one of trickle's own.
    """
    for command in app.commands:
        if command.name in taken:
            raise DefinitionError(
                f"the command {command.name!r} of app {app.id!r} has the name of one of trickle's "
                "own: give it another by @app.command(name)"
            )


def _guess(path: str) -> str:
    """Say how to write it, by what was written."""
    if path.endswith(".py") or ".py:" in path or "/" in path:
        file, _, attribute = path.partition(":")
        module = file.removesuffix(".py").strip("./").replace("/", ".")
        if re.fullmatch(r"[\w.]+", module or " "):
            return f"it names a module, not a file: write {module}:{attribute or 'app'}"
    if re.fullmatch(r"[\w.]+", path):
        return f"the attribute is missing: write {path}:app for the variable app in it"
    return _HOW


def _import(name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(
                f"the app path {path!r} names the module {name!r}, but there is no module "
                f"{missing!r} in {os.getcwd()} or on sys.path: {_HOW}, and start trickle in the "
                "directory that holds the module"
            ) from error
        raise _failed(name, path, error) from error
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit too: a module that exits is a module that fails
        raise _failed(name, path, error) from error


def _failed(name: str, path: str, error: BaseException) -> ConfigurationError:
    place = _place(error)
    where = f" at {place}" if place else ""
    if isinstance(error, TrickleError):
        return ConfigurationError(
            f"the module {name!r} of the app path {path!r} fails{where}: {error}"
        )
    if isinstance(error, ModuleNotFoundError):
        what = f"it imports {error.name!r}, which is not installed here"
    elif isinstance(error, SystemExit):
        what = "it exits while it is imported: guard that with if __name__ == '__main__'"
    elif isinstance(error, SyntaxError):
        what = f"SyntaxError: {error.msg}"
    else:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    where = f" at {place}" if place else ""
    return ConfigurationError(f"the module {name!r} of the app path {path!r} fails{where}: {what}")


def _place(error: BaseException) -> str | None:
    """Return ``file:line`` of the last frame in the user's own files."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_relative(error.filename)}:{error.lineno}"
    own = str(Path(__file__).parent.parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", own, os.path.dirname(importlib.__file__)))
        and "site-packages" not in frame.filename
    ]
    return f"{_relative(frames[-1].filename)}:{frames[-1].lineno}" if frames else None


def _relative(filename: str) -> str:
    return filename.removeprefix(os.getcwd() + os.sep)


def _apps(module: ModuleType) -> list[str]:
    return sorted(
        f"{module.__name__}:{name}"
        for name, value in vars(module).items()
        if isinstance(value, App)
    )


def _hint(module: ModuleType) -> str:
    apps = _apps(module)
    if apps:
        return f"write {' or '.join(apps)}"
    return f"{module.__name__} holds no App; make one by app = trickle.App('name')"


def _no_attribute(path: str, module: ModuleType, attribute: str) -> str:
    return (
        f"the app path {path!r} names {attribute!r}, which the module {module.__name__!r} does not "
        f"have: {_hint(module)}"
    )
