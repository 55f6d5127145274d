"""`torchrec-archiver completion`: a script by which a shell completes this command line."""

import argparse

HELP = "print a script by which a shell completes commands and options"
EXAMPLES = """\
torchrec-archiver completion bash > ~/.local/share/bash-completion/completions/torchrec-archiver
torchrec-archiver completion zsh > "${fpath[1]}/_torchrec-archiver"
eval "$(torchrec-archiver completion bash)"                 # in this shell alone
"""

SHELLS = ("bash", "zsh", "tcsh")
FILES = ("A", "ARCHIVE", "B", "CHECKPOINT", "FOLDER", "NAME=PATH", "PATH", "REQUEST")
"""What options call a path."""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="the shell")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    import shtab  # noqa: PLC0415  nothing else needs it

    for command in options.commands.values():
        for action in command._actions:  # noqa: SLF001  argparse has no other way to ask
            if action.metavar in FILES:
                action.complete = shtab.FILE
    print(shtab.complete(options.root, options.shell))
    return 0
