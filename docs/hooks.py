"""Hooks of mkdocs: pages from the root of the repository, and links that leave ``docs/``.

Documents are written so that their links work in the repository. Here links to documents and measured files of the
repository lead to copies in the site, and links to its code become the path alone.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path, PurePosixPath
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
OUTSIDE: Final = ("GLOSSARY.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/results/")
"""Parts of the site from the repository outside ``docs/``: documents, and a folder of measured files."""

_LINK: Final = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]*)(?P<anchor>#[^)\s]*)?\)")
_LOG: Final = logging.getLogger("mkdocs.hooks.docs")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside ``docs/``; called by mkdocs."""
    for place in map(ROOT.joinpath, OUTSIDE):
        for path in sorted(place.iterdir()) if place.is_dir() else [place]:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site; called by mkdocs."""
    del config
    here = page.file.src_uri
    original = PurePosixPath(here if here.startswith(OUTSIDE) else f"docs/{here}")

    def replaced(link: re.Match[str]) -> str:
        if not link["path"]:
            return link[0]
        target = os.path.normpath(original.parent / link["path"])
        if not (ROOT / target).exists():
            _LOG.warning("%s has a link to %s, which does not exist", original, link["path"])
        in_site = target.removeprefix("docs/") if target.startswith("docs/") else target
        if files.get_file_from_path(in_site) is None:
            return (
                f"`{target}`" if link["text"].strip("`") in {target, link["path"]} else f"{link['text']} (`{target}`)"
            )
        to = os.path.relpath(in_site, PurePosixPath(here).parent)
        return f"[{link['text']}]({to}{link['anchor'] or ''})"

    return _LINK.sub(replaced, markdown)
