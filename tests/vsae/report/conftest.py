"""A real browser, and the helpers of known_codes.py."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.fail("these tests look at the page in a real browser: install one with 'apt-get install -y chromium'.")


@pytest.fixture
def browse(chromium, tmp_path):
    """browse(index, script, csp=True) -> what the body of the async function `script` returns, with page errors beside it.

    The page is opened from disk; `csp=False` takes its content security policy away, to see that escaping alone suffices.
    """

    def run(index: Path, script: str, csp: bool = True, size: str = "1400,900") -> dict:
        folder = tmp_path / "browsed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(index.parent, folder)
        page = (folder / "index.html").read_text("utf-8")
        if "script-src" not in page:  # a page without scripts still has to let this one look at it
            page = page.replace("default-src 'none';", "default-src 'none'; script-src 'self' file:;", 1)
        if not csp:
            page, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
            assert count == 1
        (folder / "watch.js").write_text(
            "window.seen = []; addEventListener('error', (e) => seen.push(String(e.message || e.target.src)), true);"
            "document.addEventListener('securitypolicyviolation', (e) => seen.push('csp ' + e.violatedDirective));"
        )
        (folder / "probe.js").write_text(
            "const pause = (ms = 60) => new Promise((done) => setTimeout(done, ms));"
            "const until = async (holds) => { for (let i = 0; i < 400 && !holds(); i++) await pause(50); };"
            "const shows = (id) => until(() => document.querySelector('#latent h2')?.textContent === `Latent ${id}`);"
            "const press = (key, target = document.body) => target.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));"
            f"addEventListener('load', async () => {{ let result; try {{ result = await (async () => {{ await pause(); {script} }})(); }}"
            "catch (error) { result = {failed: String(error)}; }"
            "console.log('PROBE:' + encodeURIComponent(JSON.stringify({result, seen})) + ':END'); });"
        )
        page = page.replace("<link", '<script src="watch.js"></script><link', 1)
        (folder / "index.html").write_text(page.replace("</body>", '<script src="probe.js"></script></body>'), "utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        # The port keeps the browser open; what the page has to say arrives on its console.
        flags += ["--remote-debugging-port=0", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [chromium, *flags, f"--window-size={size}", (folder / "index.html").as_uri()]
        said: list[str] = []
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        ) as browser:
            watchdog = threading.Timer(240, stop, [browser])
            watchdog.start()
            try:
                for line in browser.stderr:
                    said.append(line)
                    if found := re.search("PROBE:(.*?):END", line):
                        return json.loads(unquote(found[1]))
            finally:
                watchdog.cancel()
                stop(browser)
        pytest.fail(f"the page did not come up: {''.join(said)[-1000:]}")

    return run


def stop(browser: subprocess.Popen) -> None:
    """End the browser and its helpers: they are one session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(browser.pid, signal.SIGKILL)
