"""The one Hub of a test session, and the environment that sends huggingface_hub to it.

huggingface_hub reads its address when it is imported, so conftest.py imports this first. The ports are taken here;
nothing listens before a test asks for the fixture `hub`.
"""

import atexit
import os

from .hub import Hub

HUB = Hub()
atexit.register(HUB.stop)

for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.lower(), None)
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "NO_PROXY": "127.0.0.1,localhost",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
