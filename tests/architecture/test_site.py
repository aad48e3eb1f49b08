"""The documentation as a site: it builds without a warning, and reads without network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the extra docs is not installed")


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a tree."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)


def test_the_site_builds_and_loads_nothing_from_the_network(root: Path, tmp_path: Path) -> None:
    done = build(root, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")
    }
    assert {"index.html", "api.html", "GLOSSARY.html", "benchmarks/index.html"} <= set(pages)
    loaded = re.compile(r"""<(?:script|img|iframe)[^>]+src=["']?(?:https?:)?//|<link[^>]+href=["']?(?:https?:)?//""")
    assert not [name for name, page in pages.items() if loaded.search(page)]
    assert 'href="api.html"' in pages["index.html"]
    assert 'href="GLOSSARY.html"' in pages["index.html"]


def test_links_that_lead_nowhere_fail_the_build(root: Path, tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "docs", "GLOSSARY.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, tmp_path / name)
    links = "[a](missing-page.md) [b](../missing_code.py) [c](index.md#missing-anchor)"
    for page in (tmp_path / "docs").glob("*.md"):
        page.write_text(f"# Page\n\n{links if page.name == 'index.md' else ''}\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("WARNING")]
    for link in ("missing-page.md", "../missing_code.py", "#missing-anchor"):
        assert any(link in line for line in said), said
