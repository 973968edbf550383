"""Sphinx: the pages of the methods are copied from their folders, the API pages come from the docstrings."""

import re
import shutil
from pathlib import Path

from natwise import registry

project = "natwise"
author = copyright = "The natwise developers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "download_all_examples": False,
    "capture_repr": (),
}
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_static_path = ["_static"]
html_theme_options = {"description": "What a model learns from its data, in nats", "page_width": "1100px"}
autodoc_default_options = {"members": True, "inherited-members": False}
autodoc_typehints = "none"
napoleon_use_ivar = True
suppress_warnings = ["myst.header", "ref.python"]  # the last: attributes of one name

_HERE = Path(__file__).parent


def copy_pages(app: object) -> None:
    """Copy each method's page.md into the documentation, with its public names below it."""
    methods = _HERE / "methods"
    shutil.rmtree(methods, ignore_errors=True)
    methods.mkdir()
    for card in registry.cards():
        for picture in card.folder.glob("*.svg"):
            shutil.copy(picture, methods / f"{card.key}.{picture.name}")
        page = (card.folder / "page.md").read_text("utf-8")
        page = page.replace("](picture.svg)", f"]({card.key}.picture.svg)")
        names = f"\n## Public names\n\n```{{eval-rst}}\n.. automodule:: natwise.{card.key}\n```\n"
        (methods / f"{card.key}.md").write_text(page + names, "utf-8")


def lead_to_pages(app: object, path: Path, document: str, content: list[str]) -> None:
    """Let the links of the README and its like, which lead to files, lead to the pages that are made of them."""
    text = re.sub(r"\]\(src/natwise/(\w+)/(\w+)/page\.md", r"](methods/\1.\2.md", content[0])
    text = text.replace("](docs/", "](")
    content[0] = re.sub(r"\]\(([A-Z]+\.md)", lambda link: link[0].lower(), text)


def skip_generated(app: object, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Leave out the methods that scikit-learn generates for metadata routing."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def setup(app: object) -> None:
    """Connect what stands above to the build."""
    app.connect("builder-inited", copy_pages)  # type: ignore[attr-defined]
    app.connect("include-read", lead_to_pages)  # type: ignore[attr-defined]
    app.connect("autodoc-skip-member", skip_generated)  # type: ignore[attr-defined]
