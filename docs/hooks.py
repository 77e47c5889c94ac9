"""Hooks of `mkdocs build`: pages from outside docs/, links between them, and the command line reference.

Links in the repository's documents are relative to the file, so that they work where the repository is browsed. Here
they are rewritten: a link to another page leads to that page; a link to a source file or folder, which has no page,
becomes its name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/RELIABILITY.md": "reliability.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "benchmarks/memory.svg": "memory.svg",
}
"""Files of the repository outside docs/ → their place in the site."""

WIDTH = 100
"""Columns of the help texts."""
COMMANDS = "reference/cli.md"
"""The page that `commands_reference` ends."""

LINK = re.compile(r"\[([^\[\]\n]+)\]\(([^()\s]+)\)")
LITERAL = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES`."""
    from mkdocs.structure.files import File

    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page; end the command line reference."""
    place = page.file.src_uri
    source = next((source for source, other in PAGES.items() if other == place), f"docs/{place}")
    parts = LITERAL.split(markdown)
    parts[::2] = [LINK.sub(lambda link: rewritten(link, source, place), part) for part in parts[::2]]
    return "".join(parts) + (commands_reference() if place == COMMANDS else "")


def rewritten(link: re.Match[str], source: str, place: str) -> str:
    """Return the link as it must read on the page ``place``, made from the file ``source``."""
    text, target = link.groups()
    path, hash_sign, anchor = target.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return link[0]
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if file not in PAGES and not (ROOT / file).exists():
        return link[0]  # `mkdocs build --strict` reports it
    to = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
    if to is None:
        return text if text.startswith("`") else f"`{text}`"
    return f"[{text}]({posixpath.relpath(to, posixpath.dirname(place) or '.')}{hash_sign}{anchor})"


def commands_reference() -> str:
    """Return the help of every command, as the command prints it."""
    from fluxmpi.cli.main import cli

    parts: list[str] = []

    def add(command: click.Command, name: str, parent: click.Context | None, depth: int) -> None:
        with click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH) as context:
            path = context.command_path
            parts.append(f"\n{'#' * depth} {path}\n\n```text\n{context.get_help()}\n```\n")
            if isinstance(command, click.Group):
                for child in command.list_commands(context):
                    found = command.get_command(context, child)
                    assert found is not None, f"{path} {child} is listed and cannot be loaded"
                    add(found, child, context, min(depth + 1, 4))

    add(cli, "fluxmpi", None, 2)
    return "".join(parts)
