"""What MkDocs needs to know of pages outside docs/: measured results and the prompts' page.

They are built beside the other pages, and links to them lead there; links to source files lead
nowhere in a site, so they become plain text.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """The measured results as the last part of the navigation."""
    pages = [f"results/{path.name}" for path in sorted((ROOT / "results").glob("*.md"))]
    config.nav = [*config.nav, {"Results": pages}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add results/ and the page of the prompts."""
    for path in sorted((ROOT / "results").iterdir()):
        if path.suffix in (".md", ".svg", ".png"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    page = ROOT / "prompts" / "README.md"
    files.append(File.generated(config, "prompts/index.md", abs_src_path=str(page)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as the site has its pages."""
    place = Path(page.file.src_uri).parent

    def led(found: re.Match[str]) -> str:
        image, text, link, anchor = found.groups()
        outside = place.name in ("results", "prompts")
        source = ROOT / place.name if outside else ROOT / "docs" / place
        target = (source / link).resolve()
        for folder, prefix in ((ROOT / "docs", ""), (ROOT / "results", "results/")):
            if target.is_relative_to(folder) and target.is_file():
                uri = prefix + str(target.relative_to(folder))
                return f"{image}[{text}]({'../' * len(place.parts)}{uri}{anchor or ''})"
        if target == ROOT / "prompts" / "README.md":
            return f"[{text}]({'../' * len(place.parts)}prompts/index.md)"
        return text if target.exists() else found[0]

    return _LINK.sub(led, markdown)
