"""The service of the demonstration: a FastAPI application that knows nothing of spandial."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI()


@app.get("/pay")
async def pay() -> dict[str, int]:
    return {"paid": 1}
