"""The report of a run or a study: one page that can be opened anywhere, and the same in Markdown."""

from pathlib import Path
from typing import Optional, Union

from ...common.writing import replacing
from ...hub import require_folder_for
from .page import Plot, Section, html_page, markdown_page
from .run_report import run_report
from .study_report import study_report


def read_report(folder: Union[str, Path]) -> tuple[str, str, list[Section]]:
    """Returns title, first sentence and sections for the folder of a run (`results.json`) or a study (`summary.json`).

    Sections that there is nothing for are left out.

    Raises:
        FileNotFoundError: if it is neither.
    """
    folder = Path(folder)
    if (folder / "summary.json").is_file():
        title, lead, sections = study_report(folder)
    elif (folder / "results.json").is_file():
        title, lead, sections = run_report(folder)
    else:
        raise FileNotFoundError(
            f"{folder} has neither results.json, as a run has, nor summary.json, as a study has; give the folder of a "
            "run or a study that was evaluated"
        )
    return title, lead, [section for section in sections if section.parts]


def write_report(folder: Union[str, Path], read: Optional[tuple[str, str, list[Section]]] = None) -> Path:
    """Writes `report/index.html`, which needs no other file, and `report/report.md` with its plots beside it.

    Args:
        folder: The folder of a run or of a study.
        read: What `read_report` gave for it, if that was called before.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: if it is neither.
        ValueError: if its `report` holds something else.
    """
    folder = Path(folder)
    title, lead, sections = read or read_report(folder)
    with replacing(require_folder_for("report", folder / "report")) as beside:
        (beside / "index.html").write_text(html_page(title, lead, sections), encoding="utf-8")
        (beside / "report.md").write_text(markdown_page(title, lead, sections), encoding="utf-8")
        for plot in (part for section in sections for part in section.parts if isinstance(part, Plot)):
            (beside / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
    return folder / "report" / "index.html"
