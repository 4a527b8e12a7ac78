"""The report as one self-contained HTML file: ``report/index.html`` of the run directory.

``gather`` reads the attributions, block by block, with ``components``, ``examples`` and ``looks``;
``content`` packs that for the page's script, the files of ``js/``; ``verdict``, ``facts``, ``history`` and ``edits``
say the rest in words; ``render`` fills ``page.html``, with ``page.css`` and the script inside.
"""

FOLDER = "report"
PAGE = f"{FOLDER}/index.html"
