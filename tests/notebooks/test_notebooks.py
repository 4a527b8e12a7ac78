"""The notebooks run from top to bottom in a kernel of the running interpreter, and are stored without outputs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.pages import anchors

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SHOWN = {"display_data", "execute_result", "stream"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_shows_something(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COAR_DIST_CACHE", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows figures in the notebook
    notebook = nbformat.read(path, as_version=4)
    here = KernelSpecManager(kernel_dirs=[])  # no kernel but ipykernel's, which is the running interpreter
    kernel = AsyncKernelManager(kernel_spec_manager=here)
    try:
        NotebookClient(notebook, km=kernel, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    finally:
        asyncio.run(kernel.shutdown_kernel(now=True))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 10
    for cell in cells:
        shown = {output.output_type for output in cell.outputs}
        assert shown <= SHOWN, cell.source
        assert shown or "import coar_dist" in cell.source, cell.source
        assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.outputs
    assert list((tmp_path / "COAR_DIST_CACHE" / "runs").iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs_and_its_links_lead_somewhere(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    links = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.source
        else:
            links += re.findall(r"\]\((?!https?:)([^)\s]+)\)", cell.source)
    assert len(links) > 2
    for link in links:
        file, _, anchor = link.partition("#")
        page = FOLDER / file
        assert page.is_file(), link
        assert not anchor or anchor in anchors(page.read_text()), link
