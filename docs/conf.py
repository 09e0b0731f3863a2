"""Settings of the site: the chapters as they are stored, and the pages of this folder. Runs and fetches nothing.

    python -m pip install -e ".[site]" -c constraints.txt
    sphinx-build -W -c docs . build/site      (then open build/site/index.html)

The repository is sphinx's source folder, so a link means the same here, on GitHub and in JupyterLab.
"""

import json
import re
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

project = html_title = "SegFormer, built and understood step by step"
author = "the segformer-course authors"
root_doc = "docs/index"
include_patterns = ["docs/**.md", "data/README.md", "notebooks/*.ipynb", "notebooks/solutions/*.ipynb"]
exclude_patterns = [".*", "build", "work", "runs", "data/[a-z]*"]  # not even looked into: some hold 100,000 files

extensions = ["myst_nb"]
suppress_warnings = ["myst.header"]  # solutions hold exercises (H3) without the sections (H2) they stand in
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

# What docutils does not read as TeX does: \frac12 would become 12/…, and these signs an error.
BARE_FRACTION = re.compile(r"(\\[dt]?frac) ?(\w) ?(\w)")
SIGNS = str.maketrans({"×": r"\times ", "≈": r"\approx "})

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = html_copy_source = html_use_index = False


def setup(app) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(write_math, None), block_renderers=(write_math, None))
    app.connect("doctree-read", describe_figures)
    app.connect("build-finished", open_at_the_top)


def write_math(writer, node) -> None:
    """Formulas as MathML, which browsers draw by themselves: no script, no network."""
    tex = BARE_FRACTION.sub(r"\1{\2}{\3}", node.astext()).translate(SIGNS)
    try:
        writer.body.append(tex2mathml(tex, as_block=isinstance(node, nodes.math_block)))
    except MathError as error:
        logging.getLogger(__name__).warning("formula %s: %s", tex, error, location=node)
    raise nodes.SkipNode


def describe_figures(app, doctree) -> None:
    """Give each figure of a notebook its alt text, which is stored beside it (`show.figure`) and which myst-nb leaves
    there. myst-nb names a picture's file after the hash of its bytes."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    outputs = [output for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
               for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    alts = {sha256(b64decode("".join(output["data"]["image/png"]))).hexdigest():
            output["metadata"].get("image/png", {}).get("alt", "") for output in outputs}
    for picture in doctree.findall(nodes.image):
        picture["alt"] = alts.get(Path(picture["uri"]).stem, picture.get("alt", ""))


def open_at_the_top(app, exception) -> None:
    """A page at the top of the site that leads to the first one."""
    if exception is None:
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html"><title>{project}</title>\n'
        page += f'<a href="{root_doc}.html">{project}</a>\n'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")
