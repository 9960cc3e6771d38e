"""MLServer with one worker-less process on a port of ours: ``python start_mlserver.py PORT FOLDER``."""

from __future__ import annotations

import asyncio
import sys

from mlserver import MLServer, ModelSettings, Settings


async def main(port: int, folder: str) -> None:
    """Serve what the folder describes."""
    settings = Settings(
        http_port=port, grpc_port=port + 1, metrics_port=port + 2, parallel_workers=0, host="127.0.0.1", debug=False
    )
    server = MLServer(settings)
    await server.start([ModelSettings.parse_file(f"{folder}/model-settings.json")])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
