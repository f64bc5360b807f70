"""Offers a function in a web service of your own (extra `serve`):

    python examples/fastapi_app.py

    curl localhost:8000/reviews -H 'content-type: application/json' -d '{"texts": ["A wonderful film."]}'
"""

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from modeling_tagi import TagiModel
from modeling_tagi.function import TagiFunction


class Reviews(BaseModel):
    texts: list[str] = Field(min_length=1, max_length=64)


def application(classify: TagiFunction) -> FastAPI:
    """Returns the service: `POST /reviews` with texts gives a label to each."""
    app = FastAPI(title="Reviews")

    @app.post("/reviews")
    async def label(reviews: Reviews) -> dict[str, list[str]]:
        return {"labels": await classify.call_async(reviews.texts)}  # in a thread: others are served meanwhile

    return app


if __name__ == "__main__":
    model = TagiModel.from_pretrained("checkpoints/smollm2-135m")
    instruction = "Decide whether the review is positive or negative."
    uvicorn.run(application(model.function(instruction, options=["positive", "negative"])), port=8000)
