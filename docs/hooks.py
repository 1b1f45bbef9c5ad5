"""What mkdocs calls while it builds the site: pages that lie elsewhere in the repository join it where they are."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "kernels.md": "kernels/README.md",
    "log.md": "bench/LOG.md",
    **{
        f"rooms/{path.parent.name}.md": path.relative_to(ROOT).as_posix()
        for path in (*ROOT.glob("fastarat/*/README.md"), *ROOT.glob("bench/README.md"))
    },
}
"""page of the site → file of the repository, both as paths"""
PAGES = {source: page for page, source in ELSEWHERE.items()}
LINK = re.compile(r"(!?)\[([^][]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links of the repository lead to pages of the site; one to a file that is no page becomes its text."""
    folder = posixpath.dirname(ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def of_the_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[3]))
        to = PAGES.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(to) is None and (ROOT / target).exists():
            return link[2]
        here = posixpath.dirname(page.file.src_uri)
        return f"{link[1]}[{link[2]}]({posixpath.relpath(to, here or '.')}{link[4] or ''})"

    return LINK.sub(of_the_site, markdown)
