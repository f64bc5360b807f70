"""Makes the site of the pages that the repository has: takes in those outside docs/, the API reference, and a page for
each file or folder that a page links to, and turns links between them, which hold in the repository, into the site's.
"""

import json
import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PLACES = {  # of a page in the repository -> in the site
    "README.md": "index.md", "docs/README.md": "all-pages.md", "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md", "checkpoints/smollm2-135m/README.md": "smollm2-135m.md",
}  # fmt: skip
REFERENCE = {  # page -> its title, and what it documents
    "model": ("TagiModel", ["modeling_tagi.modeling_tagi.TagiModel"]),
    "config": ("TagiConfig", ["modeling_tagi.configuration_tagi.TagiConfig"]),
    "adapter": ("TagiAdapter", ["modeling_tagi.adapter.TagiAdapter"]),
    "function": ("Functions", ["modeling_tagi.function", "modeling_tagi.common.saved_functions"]),
    "training": ("Settings of a run", ["modeling_tagi.training.setting_fields"]),
    "losses": ("Losses", ["modeling_tagi.training.losses"]),
    "python": (
        "Runs and studies in Python",
        ["modeling_tagi.pipeline.run_experiment", "modeling_tagi.training.settings.load_settings",
         "modeling_tagi.studies.settings.StudySettings", "modeling_tagi.training.trainer.TagiTrainer",
         "modeling_tagi.evaluation.modules.load_metric"],
    ),
}  # fmt: skip
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)


def on_files(files, config):
    """Adds the pages that are not in docs/, and follows links until there is a page for all that they name."""
    files.remove(files.get_file_from_path("README.md"))
    for path, place in PLACES.items():
        add(files, config, place, (ROOT / path).read_text(encoding="utf-8"))
    for name, (title, objects) in REFERENCE.items():
        documented = "".join(f"\n::: {path}\n" for path in objects)
        add(files, config, f"reference/{name}.md", f"# {title}\n{documented}")
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        for target in links(home(page.src_uri), page.content_string):
            if not target.startswith("docs/") or (ROOT / target).is_dir():
                place = site_place(target)
                if files.get_file_from_path(place) is None:
                    add(files, config, place, shown(target))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links to the site's pages, and writes lists as Python's Markdown reads them."""
    uri = page.file.src_uri

    def of_site(link):
        place, anchor = link.group(1), link.group(2) or ""
        if re.match(r"\w+:", place):
            return link.group()
        return f"]({posixpath.relpath(site_place(joined(home(uri), place)), posixpath.dirname(uri) or '.')}{anchor})"

    if uri.startswith(("source/", "reference/")):
        return markdown
    return outside_fences(lambda text: as_python_reads_lists(LINK.sub(of_site, text)), markdown)


def as_python_reads_lists(text):
    """Returns the text with four spaces before what belongs to an item, and a line between its last paragraph and the
    next item."""
    text = re.sub(r"^ {2,3}(?=\S)", "    ", text, flags=re.M)
    return re.sub(r"(\n\n(?:    .*\n)+)(?=[*-] |\d+\. )", r"\1\n", text)


def on_page_content(html, page, config, files):
    """Shows the names that docstrings have in brackets, as transformers' do, without these."""
    return re.sub(r"\[(<code>[^<]*</code>)\]", r"\1", html) if page.file.src_uri.startswith("reference/") else html


def add(files, config, place, text):
    files.append(File.generated(config, place, content=text))


def home(place):
    """Returns where in the repository a page of the site is."""
    return next((path for path, other in PLACES.items() if other == place), f"docs/{place}")


def joined(path, link):
    """Returns what a link of the page at `path` names, from the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def links(path, text):
    targets = []
    outside_fences(lambda part: targets.extend(LINK.findall(part)) or part, text)
    return [joined(path, link) for link, _ in targets if not re.match(r"\w+:", link)]


def site_place(target):
    """Returns where the site has a file or a folder of the repository; a folder with a README.md has that."""
    for path in (target, f"{target}/README.md"):
        if path in PLACES:
            return PLACES[path]
    if target.startswith("docs/") and not (ROOT / target).is_dir():
        return target.removeprefix("docs/")
    return f"source/{target}.md"


def shown(target):
    """Returns a page that shows a file's text, a notebook's cells or the names in a folder; searches leave it out."""
    path = ROOT / target
    if path.is_dir():
        names = sorted(name for name in os.listdir(path) if not name.startswith((".", "__pycache__")))
        body = "".join(f"* `{name}`\n" for name in names)
    elif path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        body = "\n\n".join(fenced("python", "".join(cell["source"])) if cell["cell_type"] == "code" else
                           re.sub(r"^#", "##", "".join(cell["source"]), flags=re.M) for cell in cells)  # fmt: skip
    else:
        body = fenced({"": "text"}.get(path.suffix, path.suffix[1:]), path.read_text(encoding="utf-8"))
    return f"---\nsearch:\n  exclude: true\n---\n\n# {target}\n\n{body}"


def fenced(language, text):
    return f"````{language}\n{text}\n````"


def outside_fences(change, text):
    """Returns the text, changed outside its code blocks; those that stand in a list move to where lists are read."""
    parts, end = [], 0
    for block in FENCE.finditer(text):
        moved = "  " if len(block.group(1)) in (2, 3) else ""
        parts += [change(text[end:block.start()]), re.sub(r"^(?=.)", moved, block.group(), flags=re.M)]
        end = block.end()
    return "".join([*parts, change(text[end:])])
