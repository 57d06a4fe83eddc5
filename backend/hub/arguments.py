"""The arguments of `python -m backend weights`."""

import argparse

ACTIONS = ("list", "verify", "fetch", "publish")


def add(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which models (fetch: default is what is missing)")
    parser.add_argument("--from", dest="source", metavar="PATH", help="a file to take instead of downloading one")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="where to publish")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
