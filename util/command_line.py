"""What the command lines share: flags from recipes, numbers with a limit, and mistakes in one line."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn


def at_least(least: float, below: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a number not below `least`, and below a limit; whole if `least` is."""

    def number(text: str) -> float:
        value = type(least)(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        if not value < below:
            raise argparse.ArgumentTypeError(f"{text} is not below {below}")
        return value

    number.__name__ = "whole number" if isinstance(least, int) else "number"  # argparse names it in errors
    return number


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the description's lines and ends each flag's with its default, read off the parser."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = any(words in (action.help or "") for words in ("(default", "left out"))
        if said or isinstance(action.default, bool) or action.default in (None, ""):  # bool: a switch
            return action.help
        return super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """A parser that tells a mistake without a page of usage in front of it."""

    def error(self, message: str) -> NoReturn:
        """One line; exit status 2."""
        self.exit(2, f"error: {message}; see --help\n")


class RecipeParser(OneLineParser):
    """A parser that reads flags from recipes: `@file`, with comments and blank lines."""

    def __init__(self, prog: str, **kwargs: Any):
        super().__init__(prog, fromfile_prefix_chars="@", formatter_class=HelpWithDefaults, **kwargs)

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """One line of a recipe: any number of words; what follows a # is left out."""
        import shlex

        try:
            words = shlex.split(arg_line.removeprefix("\ufeff"), comments=True)  # a mark of some editors
        except ValueError as error:
            self.error(f"recipe line {arg_line!r}: {error}")
        self._look_for_recipes(words)
        return words

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does; a recipe that is missing or cannot be read is named."""
        self._look_for_recipes(sys.argv[1:] if args is None else args)
        try:
            return super().parse_known_args(args, namespace)
        except UnicodeDecodeError as error:
            self.error(f"a recipe is no UTF-8 text ({error.reason}): save it as such")
        except RecursionError:
            self.error("a recipe includes itself")

    def _look_for_recipes(self, words: Sequence[str]) -> None:
        for word in words:
            if word.startswith("@") and not Path(word[1:]).is_file():
                self.error(f"there is no recipe {word[1:]}: those of this project lie in recipes/")


def trained_model_flags(flag: Callable[..., Any]) -> None:
    """Add the flags of every command that loads a trained model and shows pictures to it."""
    flag("--eval_scale", type=at_least(1), help="shorter side for the model (default: as trained, else 800)")
    flag("--max_size", type=at_least(1), help="its longest side (default: as trained, else 1333)")
    flag("--white_level", type=float, help="white of pictures of more than 8 bits (default: as trained)")
    flag("--dilation", action="store_true", default=None, help="a DC5 model whose file does not say so")
    flag("--nheads", type=at_least(1), help="attention heads, where the file does not say them and not 8")
    flag("--device", help="cuda, cpu or mps; left out: cuda where there is a GPU, else cpu")
    flag("--debug", action="store_true", help="show the traceback of an error")
