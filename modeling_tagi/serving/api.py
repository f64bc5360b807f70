"""The server's endpoints."""

import asyncio
from contextlib import asynccontextmanager
from typing import Optional

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from .. import __version__
from ..tokens import instruction_text
from .gates import Counted, KeyGate, Plain, SizeGate, refused
from .limits import Refusal
from .packing import zipped
from .replies import DONE, event
from .requests import AdapterBody, ChatBody, CompletionBody, said_wrong
from .service import Answering, Service

_REFUSALS = {
    400: {"description": "The request cannot be done; the message says why."},
    401: {"description": "The key is missing or wrong."},
    404: {"description": "There is no such model or adapter."},
    413: {"description": "The body is too large."},
    429: {"description": "The queue is full; Retry-After says when to try again."},
}


def make_app(service: Service, key: Optional[str] = None) -> FastAPI:
    """Returns the server of a [`Service`] as an ASGI application.

    Args:
        key: What clients must send as `Authorization: Bearer KEY`; `None` lets everybody in.
    """

    @asynccontextmanager
    async def lifespan(app):
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="tagi serve",
        version=__version__,
        description="Adapters from instructions, and answers by them.",
        lifespan=lifespan,
        responses=_REFUSALS,
        default_response_class=Plain,
    )
    app.add_middleware(KeyGate, key=key)
    app.add_middleware(SizeGate, most=service.limits.body_bytes)
    app.add_middleware(Counted, metrics=service.metrics)
    _say_errors_in_one_shape(app)
    _add_answers(app, service)
    _add_adapters(app, service)
    _add_state(app, service)
    return app


def _say_errors_in_one_shape(app: FastAPI):
    @app.exception_handler(Refusal)
    async def refusal(request, error):
        return refused(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        return refused(Refusal(400, *said_wrong(error.errors())))

    @app.exception_handler(Exception)
    async def of_the_program(request, error):
        return refused(Refusal(500, "an error of the server's own, which its log shows"))

    @app.exception_handler(HTTPException)
    async def of_http(request, error):
        text = {404: f"there is no {request.url.path}; /docs lists what there is",
                405: f"{request.url.path} does not take {request.method}; /docs says what it takes",
                400: "the body is no JSON; send an object with Content-Type: application/json"}  # fmt: skip
        answer = refused(Refusal(error.status_code, text.get(error.status_code, str(error.detail))))
        answer.headers.update(error.headers or {})
        return answer


def _add_answers(app: FastAPI, service: Service):
    @app.post("/v1/completions", tags=["answers"])
    async def completions(body: CompletionBody, request: Request):
        """Answers one or several prompts; with an adapter, they are its inputs, without the instruction."""
        return await _answer(await service.complete(body), request)

    @app.post("/v1/chat/completions", tags=["answers"])
    async def chat_completions(body: ChatBody, request: Request):
        """Answers messages; with an adapter one message of the user's, its input."""
        return await _answer(await service.chat(body), request)


async def _answer(answering: Answering, request: Request) -> Response:
    if answering.streams:
        return StreamingResponse(_events(answering), media_type="text/event-stream")
    whole, gone = asyncio.ensure_future(answering.whole()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():  # nobody is there to read it
            answering.cancel()
            await asyncio.wait((whole,))
            return Response(status_code=499)
        return Plain(whole.result())
    finally:
        gone.cancel()


async def _gone(request: Request):
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(answering: Answering):
    try:
        async for one in answering.events():
            yield one
    except Refusal as error:  # the status is sent already
        yield event(error.body())
    yield DONE


def _add_adapters(app: FastAPI, service: Service):
    @app.post("/v1/adapters", status_code=201, tags=["adapters"])
    async def make_adapter(body: AdapterBody):
        """Writes the adapter of an instruction, or finds it; `id` is then a `model` of requests."""
        try:
            text = instruction_text(body.instruction, body.demonstrations)
        except ValueError as error:
            raise Refusal(400, str(error), "instruction") from None
        await service.adapter_of(text)
        return service.described(service.disk.id_of(text))

    @app.get("/v1/adapters", tags=["adapters"])
    async def list_adapters():
        """Lists the adapters on the disk, the one used last first."""
        return {"object": "list", "data": [{"id": name, "object": "adapter"} for name in service.disk.ids()]}

    @app.get("/v1/adapters/{adapter_id}", tags=["adapters"])
    async def get_adapter(adapter_id: str):
        """Says what an adapter was made of, and where to download it."""
        return service.described(adapter_id)

    @app.get("/v1/adapters/{adapter_id}/download", tags=["adapters"])
    async def download_adapter(adapter_id: str):
        """Returns the adapter's PEFT folder as a zip file."""
        folder = service.folder_of(adapter_id)
        data = await asyncio.get_running_loop().run_in_executor(service.reader, zipped, folder)
        named = {"Content-Disposition": f'attachment; filename="{adapter_id}.zip"'}
        return Response(data, media_type="application/zip", headers=named)


def _add_state(app: FastAPI, service: Service):
    @app.get("/v1/models", tags=["models"])
    async def models():
        """Lists the backbone, the short names, and the adapters on the disk."""
        return {"object": "list", "data": service.models()}

    @app.get("/v1/models/{model:path}", tags=["models"])
    async def model(model: str):
        """Says what a request's `model` stands for."""
        return service.model(model)

    @app.get("/health", tags=["state"])
    async def health():
        """Answers as soon as the server takes requests."""
        return {"status": "ok", **service.state()}

    @app.get("/metrics", tags=["state"])
    async def metrics():
        """Returns counts and times for Prometheus."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)
