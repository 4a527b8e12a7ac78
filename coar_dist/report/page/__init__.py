"""The report as one self-contained HTML file: ``report/index.html`` of the run directory.

``layers``, ``examples``, ``history`` and ``edits`` read what it says from the run directory, in bounded memory;
``render`` fills ``page.html``, with ``page.css`` and ``page.js`` inside.
"""
