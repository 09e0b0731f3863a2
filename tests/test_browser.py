"""A chapter in the real JupyterLab, in headless Chromium: every cell runs, and every control changes its picture.

Controls are moved from the keyboard alone. The walk is shown planted mistakes first.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install -e '.[course]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium or Google Chrome on the PATH", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ("11_receptive_fields",)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
SETTINGS = {
    # No question waits for an answer; cells out of sight stay in the page, and their controls with them.
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"autoStartDefaultKernel": true, "windowingMode": "none"}',
}
CONTROL = "select, .noUi-handle, .widget-toggle-button:not(.mod-active)"  # the pressed button changes nothing
KERNEL_READY = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
SHUT_DOWN = "() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()"
RUN_ALL = """async () => {
    const panel = window.jupyterapp.shell.currentWidget;
    const late = new Promise((_, reject) => setTimeout(() => reject('the cells were not done in 600 s'), 600000));
    const run = command => window.jupyterapp.commands.execute(`notebook:${command}`);
    const all = async () => {
        await run('run-all-cells');
        for (;;) {  // it stops at every open exercise: go on behind it
            const cells = panel.content.model.toJSON().cells;
            const next = cells.findIndex(cell => cell.cell_type === 'code' && cell.execution_count === null);
            const last = cells.slice(0, Math.max(next, 0)).findLast(cell => cell.cell_type === 'code');
            if (!(last?.metadata.tags ?? []).includes('raises-exception')) return;
            panel.content.activeCellIndex = next;
            await run('run-all-below');
        }
    };
    await Promise.race([all(), late]);
    await new Promise(resolve => setTimeout(resolve, 500));  // the last messages of the run
    window.complaints = [];
    panel.sessionContext.iopubMessage.connect((_, message) => {
        const content = message.content;
        if (message.header.msg_type === 'error') window.complaints.push(content.ename + ': ' + content.evalue);
        if (message.header.msg_type === 'stream' && content.name === 'stderr') window.complaints.push(content.text);
    });
    return panel.content.model.toJSON().cells;
}"""
PICTURES = """async cell => {
    const bytes = async img => Array.from(new Uint8Array(await (await fetch(img.src)).arrayBuffer())).join();
    return (await Promise.all(Array.from(cell.querySelectorAll('.jp-OutputArea img')).map(bytes))).join(';');
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A running JupyterLab over an empty folder: (its address, the folder)."""
    own, folder = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("work")
    for name, text in SETTINGS.items():
        file = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {f"JUPYTER_{what}_DIR": str(own / what) for what in ("CONFIG", "DATA", "RUNTIME")}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(own / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces")}
    short = {"SEGFORMER_TEST": "1", "SEGFORMER_QUICK": "1", "SEGFORMER_LITE_MODE": "fast", "CUDA_VISIBLE_DEVICES": ""}
    with open(own / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
             "--ServerApp.port_retries=0", "--IdentityProvider.token=t", "--LabApp.expose_app_in_browser=True",
             f"--ServerApp.root_dir={folder}"],
            env={**os.environ, **places, **short}, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/api?token=t", server, own / "log")
        yield address, folder
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def walk(browser, address: str, notebook: str, patience: float = 30) -> tuple[int, list[str]]:
    """Run all cells, move every control once; how many there were, and everything that went wrong.

    patience: seconds in which a picture must have changed.
    """
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(180_000)
    found, moved = [], 0
    page.on("pageerror", lambda error: found.append(f"the page: {error}"))
    page.goto(f"{address}/doc/tree/{notebook}?token=t&reset")
    page.wait_for_function(KERNEL_READY)
    for number, cell in enumerate(page.evaluate(RUN_ALL)):
        open_exercise = "raises-exception" in cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and cell["execution_count"] is None:
            found.append(f"cell {number} was not run")
        found += [f"cell {number}: {output['ename']}: {output['evalue']}" for output in cell.get("outputs", [])
                  if output["output_type"] == "error" and not open_exercise]
    for cell in page.locator(".jp-CodeCell").filter(has=page.locator(CONTROL)).all():
        for control in cell.locator(CONTROL).all():  # one button is pressed after as before: the number stays
            moved += 1
            found += move(page, cell, control, patience)
    found += page.evaluate("window.complaints")
    page.evaluate(SHUT_DOWN)
    page.close()
    return moved, found


def move(page, cell, control, patience: float) -> list[str]:
    """A button pressed, anything else one step down, or up from its lower end; a line if no picture's bytes change."""
    name = control.evaluate("c => c.closest(':has(> .widget-label)').querySelector('.widget-label').textContent")
    before = cell.evaluate(PICTURES)
    control.focus()
    for key in ("Space",) if control.evaluate("c => c.tagName") == "BUTTON" else ("ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if cell.evaluate(PICTURES) != before:
                return []
            page.wait_for_timeout(100)
    return [f"{name!r} was moved and no picture changed"]


PLANTED = """
import io, ipywidgets as w
from PIL import Image
def png(value):
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (value, 0, 0)).save(file, "png")
    return file.getvalue()
slider, picture = w.IntSlider(100, 0, 200, description="red", continuous_update=False), w.Image(value=png(100))
choice = w.{choice}(options=[10, 20], description="choice")
def update(change):
    {body}
for control in (slider, choice):
    control.observe(update, "value")
w.VBox([slider, choice, picture])
"""


def write(folder: Path, name: str, *cells: str) -> str:
    kernel = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel)
    nbformat.write(book, folder / f"{name}.ipynb")
    return f"{name}.ipynb"


@pytest.mark.parametrize("body, choice, wrong", [
    ("picture.value = png(change.new)", "ToggleButtons", []),
    ("pass", "ToggleButtons", ["'red' was moved and no picture changed", "'choice' was moved and no picture changed"]),
    ("picture.value = png(change.new) if change.owner is slider else picture.value", "ToggleButtons",
     ["'choice' was moved and no picture changed"]),
    ("picture.value = png(change.new)", "Dropdown", ["'choice' was moved and no picture changed"]),
    ("picture.value = png(change.new); raise RuntimeError('planted')", "ToggleButtons", ["planted"]),
], ids=["sound", "nothing changes", "one control is dead", "a list the keyboard cannot move", "the callback raises"])
def test_the_walk_sees_controls_that_do_not_work(lab, browser, body, choice, wrong):
    address, folder = lab
    moved, found = walk(browser, address, write(folder, "planted", PLANTED.format(body=body, choice=choice)), 10)
    assert moved == 2
    assert all(any(line in complaint for complaint in found) for line in wrong) and bool(found) == bool(wrong), found


def test_the_walk_sees_a_cell_that_raises(lab, browser):
    address, folder = lab
    moved, found = walk(browser, address, write(folder, "raises", "1 / 0", "2"))
    assert moved == 0 and "cell 0: ZeroDivisionError: division by zero" in found and "cell 1 was not run" in found


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_control_of_a_chapter_changes_its_picture(lab, browser, chapter):
    address, folder = lab
    book = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4)
    for cell in book.cells:  # as `course.py lab` copies it: without results
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(book, folder / f"{chapter}.ipynb")
    moved, found = walk(browser, address, f"{chapter}.ipynb")
    assert found == [] and moved >= 5
