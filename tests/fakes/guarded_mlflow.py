"""`mlflow server` behind HTTP Basic auth: what tests.fakes.postgres.MlflowServer runs when it is given credentials."""

import base64
import os
from typing import Any

from mlflow.server.fastapi_app import app as unguarded

_WANTED = "Basic " + base64.b64encode(os.environ["MLFLOW_TEST_AUTH"].encode()).decode()


class _Guarded:
    """An ASGI application."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
        if scope["type"] != "http" or given == _WANTED:
            await unguarded(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 401,
                    "headers": [(b"www-authenticate", b'Basic realm="mlflow"')]})
        await send({"type": "http.response.body", "body": b"credentials are missing or wrong"})


app = _Guarded()
