"""What `modalities.load` refuses whatever the family, and what the hub refuses."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import modalities


def test_an_unknown_family_and_an_option_of_another_family_are_named():
    with pytest.raises(ValueError, match="unknown model family 'video': choose one of vision"):
        modalities.load("video", "x")
    with pytest.raises(ValueError, match=r"family 'llm' take no option 'img_size': choose from .*length, padding"):
        modalities.load("llm", "x", img_size=3)
    with pytest.raises(ValueError, match="text encoders take no option 'img_size'"):
        modalities.load("diffusion", "x", img_size=3)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine whose every model is gated, as huggingface.co answers for one, or is not there: name -> answer."""
    from huggingface_hub import constants

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            gated = "/gated/" in self.path
            self.send_response(403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path), raising=False)
    yield
    server.shutdown()


FAMILIES = [
    ("llm", ""),
    ("llava", ""),
    ("diffusion", ""),
    ("clip", "hf-hub:"),
    ("clip", ""),
    ("vision", "hf-hub:"),
    ("vision", ""),
]


@pytest.mark.parametrize(("family", "scheme"), FAMILIES)
def test_a_gated_model_says_what_to_do_and_a_missing_one_that_it_is_missing(hub, family, scheme):
    with pytest.raises(OSError, match=r"cannot load .*gated/model \(it is gated: accept its terms") as found:
        modalities.load(family, f"{scheme}gated/model")
    assert "\n" not in str(found.value)
    with pytest.raises(OSError, match=r"cannot load .*nobody/nothing: .") as found:
        modalities.load(family, f"{scheme}nobody/nothing")
    assert "\n" not in str(found.value)
