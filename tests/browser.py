"""A page in headless Chromium, by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab.

    Attributes:
        errors: what its scripts threw, and what it was not allowed to load.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.errors: list[str] = []
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            got = message.json()
            if "id" in got:
                self._answers.pop(got["id"]).set_result(got)
            elif got["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(got["params"]["exceptionDetails"]))
            elif got["method"] == "Log.entryAdded" and got["params"]["entry"]["level"] == "error":
                self.errors.append(got["params"]["entry"]["text"])

    async def send(self, method: str, **params: Any) -> Any:
        number = len(self._answers) + 1
        while number in self._answers:
            number += 1
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        got = await answer
        assert "error" not in got, got
        return got["result"]

    async def js(self, expression: str) -> Any:
        got = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true."""
        async with asyncio.timeout(20):
            while not (value := await self.js(expression)):
                await asyncio.sleep(0.05)
        return value

    async def shot(self, file: Path, width: int, height: int, dark: bool = False) -> None:
        """A picture of it."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])
        got = await self.send("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(got["data"]))


@asynccontextmanager
async def opened(url: str, folder: Path) -> AsyncIterator[Page]:
    """A page, once it is loaded; the browser's own files go into a folder."""
    assert CHROMIUM is not None
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--hide-scrollbars", "--disable-background-networking", "--remote-debugging-port=0",
        f"--user-data-dir={folder}", "about:blank",
        stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert browser.stderr is not None
        async with asyncio.timeout(60):
            while not (found := re.search(rb"ws://([^/]+)/", await browser.stderr.readline())):
                pass
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{found[1].decode()}/json/list") as answer:
                tab = next(tab for tab in await answer.json() if tab["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Runtime", "Log", "Page"):
                    await page.send(f"{domain}.enable")
                await page.send("Page.navigate", url=url)
                await page.until(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")
                yield page
    finally:
        browser.terminate()
        await browser.wait()
